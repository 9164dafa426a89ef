"""A sentinel of the old Python system, as far as a worker can tell.

A pyzmq ROUTER that waits for a worker's IDENTIFY, optionally has it prepare an environment,
gives it the jobs of a JSON file one at a time (as the old one did), and says what comes back.

The jobs file is an array of {"job_id": n, "payload": {DISPATCH fields}}.
Each event is one JSON line on stdout; the first is `bound {endpoint}`:

  bound {endpoint}   message {identity, opcode, job_id, payload, frames}
  sent {opcode, job_id}   done {concluded: {job_id: status}}

Exit codes: 0 when every job has concluded, 1 on a message an old sentinel would refuse or a
bad command line, 3 when --deadline-s has passed.
"""

import argparse
import collections
import json
import time

import zmq

import wire


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", metavar="JOBS.json")
    parser.add_argument("--bind", default="tcp://127.0.0.1:0", metavar="ENDPOINT")
    parser.add_argument("--prepare-env", metavar="FILE.json", help="payload of the PREPARE_ENV to send first")
    parser.add_argument("--burst", action="store_true", help="send all jobs at once instead of one by one")
    parser.add_argument("--abort-after-ms", type=int, metavar="N", help="ABORT each job N ms after its DISPATCH")
    parser.add_argument("--reload", action="store_true", help="send RELOAD before the first job")
    parser.add_argument("--deadline-s", type=float, default=120)
    return parser.parse_args()


def load(path):
    """The JSON in a file."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        wire.fail(f"{path}: {error}")


class Sentinel:
    """One worker, `waiting` jobs, `running` ones with the time of their ABORT, `concluded` ones."""

    def __init__(self, options):
        self.options = options
        self.waiting = collections.deque((job["job_id"], job["payload"]) for job in load(options.jobs))
        self.job_count = len(self.waiting)
        self.running = {}
        self.concluded = {}
        self.worker = None
        self.ready = False
        self.socket = zmq.Context.instance().socket(zmq.ROUTER)
        self.socket.linger = 5000
        # A message for a worker that is gone is an error here, never silently dropped.
        self.socket.router_mandatory = True
        self.socket.bind(options.bind)
        wire.emit("bound", endpoint=self.socket.last_endpoint.decode().rstrip("\0"))

    def send(self, opcode, job_id=0, payload=None):
        """Sends one control message to the worker."""
        try:
            self.socket.send_multipart([self.worker, *wire.encode(opcode, job_id, payload)])
        except zmq.ZMQError as error:
            wire.fail(f"{opcode} for job {job_id} can't be sent: {error}")
        wire.emit("sent", opcode=opcode, job_id=job_id)

    def greet(self, identity):
        """What follows a worker's IDENTIFY; a second one (after a reconnect) starts nothing again."""
        first = self.worker is None
        self.worker = identity
        if not first:
            return
        if self.options.reload:
            self.send("RELOAD")
        if self.options.prepare_env:
            self.send("PREPARE_ENV", payload=load(self.options.prepare_env))
        else:
            self.ready = True

    def receive(self):
        """Takes one message from a worker."""
        identity, *frames = self.socket.recv_multipart()
        try:
            opcode, job_id, payload = wire.decode(frames)
        except wire.BadMessage as error:
            wire.fail(f"the worker sent what an old sentinel refuses: {error}")
        wire.emit(
            "message",
            identity=identity.decode("utf-8", "backslashreplace"),
            opcode=opcode,
            job_id=job_id,
            payload=payload,
            frames=len(frames),
        )
        if opcode == "IDENTIFY":
            self.greet(identity)
        elif opcode == "ENV_READY":
            self.ready = True
        elif opcode == "CONCLUDE":
            self.end(job_id, payload["status"])
        elif opcode == "ERR":
            if job_id == 0 and not self.ready:
                wire.fail(f"the environment was not prepared: {payload['message']}")
            self.end(job_id, "ERR")

    def end(self, job_id, status):
        """A job is over; one that was never given out, or ended before, is the worker's error."""
        if job_id == 0:
            return
        if job_id not in self.running:
            wire.fail(f"receipt for job {job_id}, which is not running")
        del self.running[job_id]
        self.concluded[job_id] = status

    def give_out(self, now):
        """Dispatches what may be dispatched and aborts what is due."""
        while self.ready and self.waiting and (self.options.burst or not self.running):
            job_id, payload = self.waiting.popleft()
            self.send("DISPATCH", job_id, payload)
            delay_ms = self.options.abort_after_ms
            self.running[job_id] = None if delay_ms is None else now + delay_ms / 1000
        for job_id, abort_at in self.running.items():
            if abort_at is not None and now >= abort_at:
                self.send("ABORT", job_id)
                self.running[job_id] = None

    def run(self):
        """Until every job has concluded."""
        while len(self.concluded) < self.job_count:
            self.give_out(time.monotonic())
            due = [at for at in self.running.values() if at is not None]
            wait_ms = max(0, int((min(due) - time.monotonic()) * 1000) + 1) if due else 1000
            if self.socket.poll(wait_ms):
                self.receive()
        wire.emit("done", concluded=self.concluded)
        self.socket.close()
        zmq.Context.instance().term()


if __name__ == "__main__":
    given = arguments()
    wire.watchdog(given.deadline_s)
    Sentinel(given).run()
