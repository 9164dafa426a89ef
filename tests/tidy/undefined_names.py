"""Names that the program of a plugin process uses and does not define, a line each.

  undefined_names.py FILE…

The files are one program, with one set of global names. Exit code 1 if there are such names.
"""

import builtins
import dis
import sys
import types


def names_used(code, path):
    """(path, line, name) of each global name that code and the functions in it read."""
    line = code.co_firstlineno
    for step in dis.get_instructions(code):
        line = getattr(step, "starts_line", None) if not isinstance(step.starts_line, bool) else step.line_number
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield path, line or code.co_firstlineno, step.argval
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from names_used(value, path)


def names_set(code):
    """Names that code at the top of a file, a class or a function with `global` sets."""
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_GLOBAL", "STORE_NAME"):
            yield step.argval
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            yield from names_set(value)


def main():
    programs = []
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            programs.append((path, compile(file.read(), path, "exec")))
    known = set(dir(builtins)) | {"__file__", "__name__", "__qualname__", "__module__"}
    for _, code in programs:
        known.update(names_set(code))
    used = [name for path, code in programs for name in names_used(code, path)]
    missing = sorted({(path, line, name) for path, line, name in used if name not in known})
    for path, line, name in missing:
        print(f"{path}:{line}: {name}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
