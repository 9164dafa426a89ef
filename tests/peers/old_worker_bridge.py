"""The old worker's side of the bridge: starts a shim on a plugin and a file, reads what it writes.

  old_worker_bridge.py --shim SHIM.py --plugin PLUGIN.py --file PATH [--python EXE] [--raw OUT]

Listens on a Unix socket, starts `EXE SHIM.py` with the BRIDGE_* environment, reads the frames
with pyarrow, and prints one JSON line:

  {"exit_code", "summary" (stdout's last line as JSON or null), "ended" (a 0 came), "error" (text or
   null), "rows", "frames": [{"rows", "batches", "columns", "types", "topic"}], "stderr"}

`--raw` also writes every byte that came over the socket to a file. Exit codes: 0 when the bridge
was used as the old worker expects (a job that fails by an error frame counts as that), 1 when it
was not, 3 after --deadline-s.
"""

import argparse
import base64
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import pyarrow as pa

import wire

END = 0
ERROR = 0xFFFFFFFF
FRAME_SIZE_MAX = 1 << 30
TEXT_SIZE_MAX = 1 << 20


class Bridge:
    """The accepted connection, with every byte kept when `raw` is asked for."""

    def __init__(self, connection, raw, deadline):
        self.connection = connection
        self.raw = raw
        self.deadline = deadline

    def read(self, size):
        """Exactly `size` bytes."""
        data = bytearray()
        while len(data) < size:
            self.connection.settimeout(max(0.01, self.deadline - time.monotonic()))
            part = self.connection.recv(min(size - len(data), 1 << 20))
            if not part:
                raise EOFError(f"the plugin process closed after {len(data)} of {size} bytes")
            data += part
            if self.raw:
                self.raw.write(part)
        return bytes(data)

    def read_u32(self):
        """A length."""
        return struct.unpack("!I", self.read(4))[0]


def read_frames(bridge):
    """`(frames, error text or None)` up to the 0 that ends the output."""
    frames, error = [], None
    while (size := bridge.read_u32()) != END:
        if error is not None:
            raise ValueError("a frame after the error frame")
        if size == ERROR:
            size = bridge.read_u32()
            if size > TEXT_SIZE_MAX:
                raise ValueError(f"an error text of {size} bytes")
            error = bridge.read(size).decode("utf-8")
            continue
        if size > FRAME_SIZE_MAX:
            raise ValueError(f"a frame of {size} bytes")
        with pa.ipc.open_stream(bridge.read(size)) as stream:
            batches = list(stream)
            schema = stream.schema
        frames.append(
            {
                "rows": sum(batch.num_rows for batch in batches),
                "batches": len(batches),
                "columns": schema.names,
                "types": [str(kind) for kind in schema.types],
                "topic": (schema.metadata or {}).get(b"casparian.topic", b"").decode() or None,
            }
        )
    return frames, error


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shim", required=True)
    parser.add_argument("--plugin", required=True)
    parser.add_argument("--file", required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--job-id", type=int, default=7)
    parser.add_argument("--file-version-id", type=int, default=42)
    parser.add_argument("--raw", type=argparse.FileType("wb"))
    parser.add_argument("--deadline-s", type=float, default=60)
    return parser.parse_args()


def last_json_line(text):
    """stdout's last line as JSON, or None."""
    lines = text.strip().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:
        return None


def accept(listener, child, deadline):
    """The plugin process's connection; an error when it exits or is silent instead."""
    listener.settimeout(0.1)
    while True:
        # Looked at before accepting: a plugin process may connect, write and exit within one wait.
        exited = child.poll() is not None
        try:
            return listener.accept()[0]
        except TimeoutError:
            if exited:
                raise EOFError(f"the plugin process exited with {child.returncode} and never connected") from None
            if time.monotonic() > deadline:
                raise EOFError("the plugin process never connected") from None


def main():
    options = arguments()
    wire.watchdog(options.deadline_s + 10)
    deadline = time.monotonic() + options.deadline_s
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(folder, "bridge.sock")
        listener.bind(path)
        listener.listen(1)
        source = pathlib.Path(options.plugin).read_bytes()
        environment = {
            **os.environ,
            "BRIDGE_SOCKET": path,
            "BRIDGE_PLUGIN_CODE": base64.b64encode(source).decode(),
            "BRIDGE_FILE_PATH": os.path.abspath(options.file),
            "BRIDGE_JOB_ID": str(options.job_id),
            "BRIDGE_FILE_VERSION_ID": str(options.file_version_id),
        }
        child = subprocess.Popen(
            [options.python, options.shim],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        # Both pipes are drained from the start: a plugin process must never block on its own log.
        logs = {}
        drains = []
        for name in ("stdout", "stderr"):
            pipe = getattr(child, name)
            drains.append(threading.Thread(target=lambda n=name, p=pipe: logs.update({n: p.read()}), daemon=True))
            drains[-1].start()
        trouble, frames, error = None, [], None
        try:
            with accept(listener, child, deadline) as connection:
                frames, error = read_frames(Bridge(connection, options.raw, deadline))
            child.wait(max(0.1, deadline - time.monotonic()))
        except (OSError, EOFError, ValueError, pa.ArrowInvalid, subprocess.TimeoutExpired) as problem:
            trouble = f"{type(problem).__name__}: {problem}"
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for drain in drains:
            drain.join(5)
        stdout, stderr = (logs.get(name, b"").decode("utf-8", "replace") for name in ("stdout", "stderr"))
        print(
            json.dumps(
                {
                    "exit_code": child.returncode,
                    "summary": last_json_line(stdout),
                    "ended": trouble is None,
                    "error": error,
                    "rows": sum(frame["rows"] for frame in frames),
                    "frames": frames,
                    "stderr": stderr[-4000:],
                }
            ),
            flush=True,
        )
    if options.raw:
        options.raw.close()
    if trouble:
        wire.fail(trouble)


if __name__ == "__main__":
    main()
