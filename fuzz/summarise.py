"""Line coverage out of an lcov file: a table on standard output, what no input reaches in uncovered.txt.

Usage: summarise.py LCOV. Exits with 1 when an area is below its floor.
"""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Files of an area, and the percentage of their lines below which the corpora have rotted.
AREAS = {
    "zmtp": (["src/zmtp/"], 95),
    "socket": (["src/socket/"], 95),
    "protocol": (["src/protocol/"], 95),
    "bridge frames": (["src/plugin/bridge.rs"], 95),
    "other parsers": (
        ["src/reactor/endpoint.rs", "src/job/sink.rs", "src/store/manifest.rs", "src/cli/args.rs"],
        0,
    ),
    "sentinel and store": (["src/sentinel/control.rs", "src/sentinel/transaction.rs", "src/store/"], 0),
}


def read(path):
    """{file: {line: count}}; a line that several programs hold counts for all of them."""
    files, lines = {}, {}
    with open(path, encoding="utf-8") as lcov:
        for text in lcov:
            kind, _, rest = text.strip().partition(":")
            if kind == "SF":
                lines = files.setdefault(os.path.relpath(rest, ROOT), {})
            elif kind == "DA":
                line, count = (int(number) for number in rest.split(",")[:2])
                lines[line] = max(count, lines.get(line, 0))
    return files


def main():
    files = read(sys.argv[1])
    seen, failed = set(), False
    uncovered = open(os.path.join(os.path.dirname(sys.argv[1]), "uncovered.txt"), "w", encoding="utf-8")
    print("| area | lines | reached | |\n|---|---|---|---|")
    for area, (parts, floor) in AREAS.items():
        total = reached = 0
        rows = []
        for name in sorted(files):
            if name in seen or not name.startswith(tuple(parts)):
                continue
            seen.add(name)
            lines = files[name]
            missed = [line for line, count in sorted(lines.items()) if count == 0]
            total += len(lines)
            reached += len(lines) - len(missed)
            rows.append((name, len(lines), len(lines) - len(missed)))
            with open(os.path.join(ROOT, name), encoding="utf-8") as source:
                text = source.read().split("\n")
            for line in missed:
                uncovered.write(f"{name}:{line}: {text[line - 1].rstrip()}\n")
        percent = 100 * reached / max(total, 1)
        failed |= percent < floor
        print(f"| **{area}** | {total} | {reached} | **{percent:.1f} %** |")
        for name, lines, covered in rows:
            print(f"| {name} | {lines} | {covered} | {100 * covered / max(lines, 1):.1f} % |")
    uncovered.close()
    sys.exit(failed)


main()
