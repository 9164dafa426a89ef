"""Decodes control messages from stdin as an old Python peer would: struct and json only.

One message a line: `HEADER_HEX,PAYLOAD_HEX` (an empty payload is an empty second field),
or a JSON array of the frames in hex. For each, one JSON line:
{"opcode": "...", "job_id": n, "payload": {...} or null} or {"error": "Kind: details"}.
Exit code 1 when a line could not be decoded, 2 when a line is not hex, 3 after 60 s.
"""

import json
import os
import sys

import wire


def frames_of(line):
    """The frames of one input line."""
    parts = json.loads(line) if line.startswith("[") else line.split(",")
    return [bytes.fromhex(part) for part in parts]


def main():
    wire.watchdog(60)
    bad = 0
    for number, line in enumerate(sys.stdin, 1):
        line = line.strip()
        if not line:
            continue
        try:
            frames = frames_of(line)
        except (ValueError, TypeError) as error:
            wire.fail(f"line {number}: expected HEADER_HEX,PAYLOAD_HEX: {error}", 2)
        try:
            opcode, job_id, payload = wire.decode(frames)
            answer = {"opcode": opcode, "job_id": job_id, "payload": payload}
        except wire.BadMessage as error:
            bad += 1
            answer = {"error": str(error)}
        print(json.dumps(answer))
    sys.stdout.flush()
    os._exit(1 if bad else 0)


if __name__ == "__main__":
    main()
