"""A file system with one file, `f`, whose server can be stopped: then it does not respond, like a
hard mount of a network file system. Killing the server ends that, and what waits for it.

Usage: silent_fs.py FOLDER [--stop-at-read], as root. It prints a line once FOLDER is mounted. With the
option it stops itself when the file's content is asked for.
"""

import ctypes
import os
import signal
import stat
import struct
import sys

DATA = b"7\n"
ROOT, FILE = 1, 2
LOOKUP, FORGET, GETATTR, OPEN, READ = 1, 2, 3, 14, 15
RELEASE, FLUSH, INIT, OPENDIR, RELEASEDIR = 18, 25, 26, 27, 29
NOT_FOUND, NOT_IMPLEMENTED = 2, 38


def attributes(node):
    is_file = node == FILE
    mode = stat.S_IFREG | 0o644 if is_file else stat.S_IFDIR | 0o755
    size = len(DATA) if is_file else 0
    seconds = 1_700_000_000
    return struct.pack(
        "<6Q10I", node, size, 1, *[seconds] * 3, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
    )


def answer(operation, node, body):
    """The bytes of the answer, or the error's number."""
    if operation == INIT:
        return struct.pack("<4I2H2I2H8I", 7, 31, 65536, 0, 0, 0, 4096, 1, 0, 0, *[0] * 8)
    if operation == LOOKUP:
        if body.rstrip(b"\0") != b"f":
            return NOT_FOUND
        return struct.pack("<4Q2I", FILE, 0, 0, 0, 0, 0) + attributes(FILE)
    if operation == GETATTR:
        return struct.pack("<Q2I", 0, 0, 0) + attributes(node)
    if operation in (OPEN, OPENDIR):
        return struct.pack("<Q2I", 1, 0, 0)
    if operation == READ:
        _, offset, size = struct.unpack("<2QI", body[:20])
        return DATA[offset : offset + size]
    if operation in (RELEASE, FLUSH, RELEASEDIR):
        return b""
    return NOT_IMPLEMENTED


def main():
    folder = sys.argv[1]
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"silent", folder.encode(), b"fuse.silent", 0, options.encode()) != 0:
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    while True:
        request = os.read(device, 1 << 17)
        _, operation, unique, node = struct.unpack("<2I2Q", request[:24])
        if operation == FORGET:
            continue
        if operation == READ and "--stop-at-read" in sys.argv:
            os.kill(os.getpid(), signal.SIGSTOP)
        result = answer(operation, node, request[40:])
        error, data = (-result, b"") if isinstance(result, int) else (0, result)
        os.write(device, struct.pack("<IiQ", 16 + len(data), error, unique) + data)


main()
