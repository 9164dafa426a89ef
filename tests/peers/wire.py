"""Control protocol v4 as an old Python peer reads and writes it, with struct and json only.

Shared by the peers in this folder. Written from the protocol's table and the captured
vectors, not from the Rust code: that is what makes it a check of the Rust code.
"""

import json
import os
import struct
import sys
import threading

HEADER = struct.Struct("!BBHQI")  # version, opcode, reserved, job id, payload length
VERSION = 4
OPCODES = (
    "UNKNOWN",
    "IDENTIFY",
    "DISPATCH",
    "ABORT",
    "HEARTBEAT",
    "CONCLUDE",
    "ERR",
    "RELOAD",
    "PREPARE_ENV",
    "ENV_READY",
    "DEPLOY",
)


def _int(value):
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _str(value):
    return isinstance(value, str)


def _list_of(check):
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def _dict_of(check):
    return lambda value: isinstance(value, dict) and all(check(item) for item in value.values())


def _one_of(*names):
    return lambda value: value in names


def _sink(value):
    return isinstance(value, dict) and _misfit(SINK, value) is None


# Field → (check, required). An optional field may be absent or null; unknown fields are ignored.
SINK = {"topic": (_str, True), "uri": (_str, True), "mode": (_str, False), "schema_def": (_str, False)}
PAYLOADS = {
    "IDENTIFY": {"capabilities": (_list_of(_str), True), "worker_id": (_str, False)},
    "DISPATCH": {
        "plugin_name": (_str, True),
        "file_path": (_str, True),
        "sinks": (_list_of(_sink), True),
        "file_version_id": (_int, True),
        "env_hash": (_str, True),
        "source_code": (_str, True),
        "artifact_hash": (_str, False),
    },
    "ABORT": {},
    "HEARTBEAT": {"status": (_one_of("IDLE", "BUSY"), True), "current_job_id": (_int, False)},
    "CONCLUDE": {
        "status": (_one_of("SUCCESS", "FAILED"), True),
        "metrics": (_dict_of(_int), True),
        "artifacts": (_list_of(_dict_of(_str)), True),
        "error_message": (_str, False),
    },
    "ERR": {"message": (_str, True), "traceback": (_str, False)},
    "RELOAD": {},
    "PREPARE_ENV": {
        "env_hash": (_str, True),
        "lockfile_content": (_str, True),
        "python_version": (_str, False),
    },
    "ENV_READY": {
        "env_hash": (_str, True),
        "interpreter_path": (_str, True),
        "cached": (lambda value: isinstance(value, bool), False),
    },
    "DEPLOY": {
        "plugin_name": (_str, True),
        "version": (_str, True),
        "source_code": (_str, True),
        "lockfile_content": (_str, True),
        "env_hash": (_str, True),
        "artifact_hash": (_str, True),
        "signature": (_str, True),
        "publisher_name": (_str, True),
        "publisher_email": (_str, False),
        "azure_oid": (_str, False),
        "system_requirements": (_list_of(_str), False),
    },
}
MAY_BE_EMPTY = ("ABORT", "RELOAD")


def _misfit(fields, payload):
    """The first field of `payload` that an old peer's model would refuse, or None."""
    for name, (check, required) in fields.items():
        value = payload.get(name)
        if value is None:
            if required:
                return f"{name} is missing"
        elif not check(value):
            return f"{name} has the wrong type or value: {value!r}"
    return None


class BadMessage(Exception):
    """A message that an old peer would refuse; the first word says which check failed."""


def encode(opcode, job_id=0, payload=None):
    """The two frames of a message; `payload` None gives the empty second frame."""
    body = b"" if payload is None else json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
    return frames(opcode, job_id, body)


def frames(opcode, job_id, body):
    """The two frames of a message with the bytes of its payload."""
    return [HEADER.pack(VERSION, OPCODES.index(opcode), 0, job_id, len(body)), body]


def decode(frames):
    """`(opcode name, job id, payload or None)` of a message without its routing ID."""
    if len(frames) < 2:
        raise BadMessage(f"TooFewFrames: expected header and payload, got {len(frames)} frame(s)")
    head, body = frames[0], frames[1]
    if len(head) < HEADER.size:
        raise BadMessage(f"HeaderTooShort: expected {HEADER.size} bytes, got {len(head)}")
    version, opcode, _reserved, job_id, size = HEADER.unpack_from(head)
    if version != VERSION:
        raise BadMessage(f"VersionMismatch: expected {VERSION}, got {version}")
    if opcode >= len(OPCODES):
        raise BadMessage(f"InvalidOpCode: {opcode}")
    if size != len(body):
        raise BadMessage(f"PayloadLengthMismatch: header says {size}, frame has {len(body)}")
    name = OPCODES[opcode]
    if not body and name in MAY_BE_EMPTY:
        return name, job_id, None
    try:
        payload = json.loads(body.decode("utf-8"))
    except ValueError as error:
        raise BadMessage(f"BadPayload: {name}: {error}") from None
    if not isinstance(payload, dict):
        raise BadMessage(f"BadPayload: {name}: expected an object, got {type(payload).__name__}")
    misfit = _misfit(PAYLOADS.get(name, {}), payload)
    if misfit:
        raise BadMessage(f"BadPayload: {name}: {misfit}")
    return name, job_id, payload


def emit(event, **fields):
    """One JSON line on stdout, at once: what the Rust test reads."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def watchdog(deadline_s):
    """Ends this process with code 3 when `deadline_s` have passed, whatever it waits for."""

    def expire():
        sys.stderr.write(f"{os.path.basename(sys.argv[0])}: not done after {deadline_s} s\n")
        sys.stderr.flush()
        os._exit(3)

    timer = threading.Timer(deadline_s, expire)
    timer.daemon = True
    timer.start()


def fail(message, code=1):
    """Ends this process with one line on stderr."""
    sys.stderr.write(f"{os.path.basename(sys.argv[0])}: {message}\n")
    sys.stderr.flush()
    os._exit(code)
