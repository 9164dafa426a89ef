"""A worker that does what a test tells it, however harmful.

A pyzmq DEALER that does not connect again. Each line on stdin is `OPCODE JOB TIMES PAYLOAD`, where
PAYLOAD is a Python expression: the message is sent so often. Events are JSON lines on stdout:

  sent {opcode}      unsent {opcode}      closed {}
  and each message that comes: OPCODE {job_id, payload}

Usage: hostile.py ENDPOINT IDENTITY [UID]. With UID it becomes that user first.
"""

import json
import os
import sys

import zmq
from zmq.utils.monitor import recv_monitor_message

import wire


def emit(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def main():
    endpoint, identity, *uid = sys.argv[1:]
    for uid in map(int, uid):
        os.setgid(uid)
        os.setuid(uid)
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.identity = identity.encode()
    socket.linger = 0
    socket.ipv6 = endpoint.startswith("tcp://[")
    socket.sndhwm = 0
    socket.reconnect_ivl = -1
    monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    socket.connect(endpoint)
    poller = zmq.Poller()
    for source in (socket, monitor, sys.stdin.fileno()):
        poller.register(source, zmq.POLLIN)
    rest = b""
    while True:
        ready = dict(poller.poll())
        if socket in ready:
            name, job_id, payload = wire.decode(socket.recv_multipart())
            emit(name, job_id=job_id, payload=payload)
        if monitor in ready:
            recv_monitor_message(monitor)
            emit("closed")
        if sys.stdin.fileno() in ready:
            read = os.read(sys.stdin.fileno(), 1 << 16)
            if not read:
                os._exit(0)
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                opcode, job_id, times, payload = line.decode().split(" ", 3)
                frames = wire.encode(opcode, int(job_id), eval(payload))
                try:
                    for _ in range(int(times)):
                        socket.send_multipart(frames, zmq.NOBLOCK)
                    emit("sent", opcode=opcode)
                except zmq.Again:
                    # The connection has been closed: without one, a send would wait for ever.
                    emit("unsent", opcode=opcode)


main()
