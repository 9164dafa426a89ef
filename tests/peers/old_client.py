"""A client of the old Python system that deploys plugins.

A pyzmq DEALER. Each line on stdin is one message: {"payload": {...}} is sent as DEPLOY, {"raw": TEXT}
as DEPLOY with that text as its payload. Each gives one line on stdout:

  answer {opcode, job_id, payload}     as an old client reads it

Exit codes: 0 at the end of stdin, 1 on an answer that an old client would refuse, 3 when
--deadline-s has passed.
"""

import argparse
import json
import struct
import sys

import zmq

import wire


def main():
    """Sends what stdin says, one message at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connect", required=True, metavar="ENDPOINT")
    parser.add_argument("--job-id", type=int, default=0)
    parser.add_argument("--deadline-s", type=float, default=60)
    options = parser.parse_args()
    wire.watchdog(options.deadline_s)
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(options.connect)
    for line in sys.stdin:
        message = json.loads(line)
        if "raw" in message:
            body = message["raw"].encode()
            header = struct.pack("!BBHQI", wire.VERSION, wire.OPCODES.index("DEPLOY"), 0, options.job_id, len(body))
            socket.send_multipart([header, body])
        else:
            socket.send_multipart(wire.encode("DEPLOY", options.job_id, message["payload"]))
        try:
            opcode, job_id, payload = wire.decode(socket.recv_multipart())
        except wire.BadMessage as error:
            wire.fail(f"the sentinel sent what an old client refuses: {error}")
        wire.emit("answer", opcode=opcode, job_id=job_id, payload=payload)


if __name__ == "__main__":
    main()
