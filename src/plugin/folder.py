"""A plugin that is a folder: unpacked from its source and imported under its own names.

Concatenated with `shim.py` into one program. `folder.rs` describes the text. Its content is checked here
again, because a source may come from any program.
"""

import base64
import json
import os
import re
import sys

FOLDER_MARK = b"# casparian folder 1"
FOLDER_FILES_MAX = 2000
# Name of the folder, in the job's own folder, below which the plugin's folder is unpacked.
UNPACKED = ".casparian_folder"
# "root": the path of that folder with a slash, once it is unpacked. "module": the name of the entry's module.
ROOT = {"root": None, "module": None}


class FolderError(ValueError):
    """The source describes an invalid folder."""


def split_source(data):
    """The bytes of the entry file, and the lines after it if the plugin is a folder."""
    end = re.search(rb"\n" + FOLDER_MARK + rb": ([0-9]{1,9})\n\Z", data[-64:])
    if end is not None:
        size = int(end[1])
        start = b"\n\n" + FOLDER_MARK + b"\n"
        if data.startswith(start, size):
            return data[:size], data[size + len(start):].split(b"\n")[:-2]
    return data, None


def is_path(path):
    """True for a relative path that names a file below its folder."""
    if not isinstance(path, str) or re.search("[\0-\x1f\x7f\ud800-\udfff]", path):
        return False
    parts = path.split("/")
    return len(path) <= 1000 and len(parts) <= 64 and not any(part in ("", ".", "..") for part in parts)


def files_of(lines):
    """The name, the entry and the (path, content, executable) of the files."""
    try:
        head = json.loads(lines[0][2:])
        name, entry, files = head["name"], head["entry"], head["files"]
        listed = [(file["path"], file["size"], bool(file.get("executable"))) for file in files]
        data = base64.b64decode(b"".join(line[2:] for line in lines[1:]), validate=True)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FolderError(f"the list of its files cannot be read: {error}") from None
    if len(listed) > FOLDER_FILES_MAX:
        raise FolderError(f"{len(listed)} files, at most {FOLDER_FILES_MAX}")
    if not is_path(name) or "/" in name:
        raise FolderError(f"its name {text_of(name, repr)} is not one of a folder")
    for path in [entry, *(path for path, _, _ in listed)]:
        if not is_path(path):
            raise FolderError(f"the path {text_of(path, repr)} is not one below it")
    sizes = [size for _, size, _ in listed]
    if not all(type(size) is int and size >= 0 for size in sizes) or sum(sizes) != len(data):
        raise FolderError("the sizes of its files are not those of their contents")
    found, start = [], 0
    for path, size, executable in listed:
        found.append((path, data[start:start + size], executable))
        start += size
    return name, entry, found


def unpack(parent, source, lines):
    """Writes the files of a plugin's folder below a new folder in `parent`. Returns its name, entry and
    paths."""
    name, entry, files = files_of(lines)
    root = os.path.join(parent, UNPACKED)
    made = {""}
    try:
        os.mkdir(root, 0o700)
        os.mkdir(os.path.join(root, name), 0o700)
        for path, content, executable in [(entry, source, False), *files]:
            parts = path.split("/")
            for count in range(1, len(parts)):
                folder = "/".join(parts[:count])
                if folder not in made:
                    os.mkdir(os.path.join(root, name, folder), 0o700)
                    made.add(folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(os.path.join(root, name, path), flags, 0o700 if executable else 0o600)
            with open(target, "wb") as file:
                file.write(content)
    except (FileExistsError, NotADirectoryError):
        raise FolderError(f"the path {path!r} is there twice, or below a file") from None
    except OSError as error:
        raise EnvironmentFailure(f"the plugin's folder cannot be unpacked: {error}") from None
    ROOT["root"] = root + "/"
    return name, entry, [path for path, _, _ in files]


def load_folder(parent, source, lines):
    """Imports the entry file of a folder as a module. Returns the module, the file's name, and the names of
    modules of the folder that cannot be imported."""
    try:
        name, entry, paths = unpack(parent, source, lines)
        parts = entry[:-len(".py")].split("/") if entry.endswith(".py") else [""]
        is_package = "__init__.py" in (entry, *paths)
        if is_package:
            parts = [name, *parts]
        if parts[-1] == "__init__":
            parts.pop()
        if not parts or not all(part.isidentifier() for part in parts):
            raise FolderError(f"{entry!r} cannot be imported")
    except FolderError as error:
        raise FolderError(f"the plugin's folder in its source: {error}; deploy the folder again") from None
    root = os.path.join(parent, UNPACKED)
    own = {name} if is_package else {path.split("/")[0].partition(".")[0] for path in (entry, *paths)
                                     if path.endswith((".py", ".so"))}
    sys.path.insert(0, root if is_package else os.path.join(root, name))
    hidden = sorted(one for one in own if one in sys.modules or one in sys.builtin_module_names)
    ROOT["module"] = ".".join(parts)
    provide_sdk_to_children(parent)
    if parts[0] in hidden:
        raise FolderError(
            f"module {parts[0]!r} of the plugin's folder has the name of one that Python has imported"
            " already: give it another name")
    __import__(ROOT["module"])
    return sys.modules[ROOT["module"]], f"{name}/{entry}", hidden


def without_index(line):
    """A line of a traceback, with paths below the plugin's folder relative to it."""
    return line if ROOT["root"] is None else line.replace(f'File "{ROOT["root"]}', 'File "', 1)
