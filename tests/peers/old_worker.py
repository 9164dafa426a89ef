"""A worker of the old Python system, as far as a sentinel can tell.

A pyzmq DEALER with identity `w-<ns>`: says IDENTIFY with null for what it leaves out, beats,
does one job at a time, answers PREPARE_ENV, concludes an aborted job as FAILED. It runs
nothing: options say how its jobs end. Each event is one JSON line on stdout:

  identified {identity}            env_ready {env_hash}         heartbeat {status, job_id}
  dispatch {job_id, waiting, payload}    abort {job_id, known}  concluded {job_id, status}
  reload | err {message} | ignored {opcode}                     died {job_id} | exit {jobs}

`waiting` counts the jobs already here: more than 0 means the sentinel gave a busy worker work.
Exit codes: 0 after --jobs jobs, 9 when told to die, 1 on a message an old worker would
refuse, 3 when --deadline-s has passed.
"""

import argparse
import collections
import json
import os
import sys
import time

import zmq

import wire


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connect", required=True, metavar="ENDPOINT")
    parser.add_argument("--identity", default=f"w-{time.time_ns()}")
    parser.add_argument("--no-worker-id", action="store_true", help="IDENTIFY with worker_id null")
    parser.add_argument("--capability", action="append", help='plugin name; default "*"')
    parser.add_argument("--result", choices=["success", "failed", "err"], default="success")
    parser.add_argument("--artifacts", type=json.loads, metavar="JSON", help="default: one for each sink")
    parser.add_argument("--error-message", default="boom")
    parser.add_argument("--raw", metavar="TEXT", help="the payload of CONCLUDE and ERR, instead of the right one")
    parser.add_argument("--padding", type=int, default=0, help="bytes that are added to each CONCLUDE")
    parser.add_argument("--lose-receipt", type=int, metavar="N", help="send none for the Nth job")
    parser.add_argument("--delay-ms", type=int, default=0, help="how long a job takes")
    parser.add_argument("--die-on-job", type=int, metavar="N", help="exit without a word when the Nth job is due")
    parser.add_argument("--jobs", type=int, default=1, help="exit after so many jobs; 0: never")
    parser.add_argument("--heartbeat-ms", type=int, default=1000)
    parser.add_argument("--deadline-s", type=float, default=60)
    return parser.parse_args()


class Worker:
    """The socket and the jobs: `jobs` holds (id, payload), the first one is running until `due`."""

    def __init__(self, options):
        self.options = options
        self.jobs = collections.deque()
        self.due = None
        self.started = 0
        self.done = 0
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.identity = options.identity.encode()
        self.socket.linger = 5000
        self.socket.connect(options.connect)

    def send(self, opcode, job_id=0, payload=None):
        """Sends one control message."""
        frames = wire.encode(opcode, job_id, payload)
        if self.options.raw is not None and opcode in ("CONCLUDE", "ERR"):
            frames = wire.frames(opcode, job_id, self.options.raw.encode())
        self.socket.send_multipart(frames)

    def identify(self):
        """The first message of a worker."""
        self.send(
            "IDENTIFY",
            payload={
                "capabilities": self.options.capability or ["*"],
                "worker_id": None if self.options.no_worker_id else self.options.identity,
            },
        )
        wire.emit("identified", identity=self.options.identity)

    def heartbeat(self):
        """Says whether a job is running, and which."""
        job_id = self.jobs[0][0] if self.jobs else None
        status = "BUSY" if self.jobs else "IDLE"
        self.send("HEARTBEAT", payload={"status": status, "current_job_id": job_id})
        wire.emit("heartbeat", status=status, job_id=job_id)

    def start_next(self, now):
        """Starts the first waiting job when none is running."""
        if self.jobs and self.due is None:
            self.started += 1
            self.due = now + self.options.delay_ms / 1000
            self.heartbeat()

    def conclude(self, job_id, status, metrics, artifacts, error):
        """Sends the receipt of a job."""
        payload = {"status": status, "metrics": metrics, "artifacts": artifacts, "error_message": error}
        if self.options.padding:
            payload["padding"] = "x" * self.options.padding
        if self.started != self.options.lose_receipt:
            self.send("CONCLUDE", job_id, payload)
        wire.emit("concluded", job_id=job_id, status=status)
        self.done += 1

    def finish(self):
        """Ends the running job as the options say."""
        job_id, payload = self.jobs[0]
        options = self.options
        if self.started == options.die_on_job:
            wire.emit("died", job_id=job_id)
            os._exit(9)
        self.jobs.popleft()
        self.due = None
        if options.result == "success":
            artifacts = options.artifacts
            if artifacts is None:
                artifacts = [
                    {"topic": sink["topic"], "uri": f"file:///out/{job_id}_{sink['topic']}.parquet"}
                    for sink in payload["sinks"]
                ]
            self.conclude(job_id, "SUCCESS", {"rows": 3}, artifacts, None)
        elif options.result == "failed":
            self.conclude(job_id, "FAILED", {}, [], options.error_message)
        else:
            trace = f"Traceback (most recent call last):\n {options.error_message}"
            self.send("ERR", job_id, {"message": options.error_message, "traceback": trace})
            wire.emit("concluded", job_id=job_id, status="ERR")
            self.done += 1

    def abort(self, job_id):
        """Drops a job, running or waiting, with a FAILED receipt."""
        known = [job for job in self.jobs if job[0] == job_id]
        wire.emit("abort", job_id=job_id, known=bool(known))
        if not known:
            return
        if self.jobs[0][0] == job_id:
            self.due = None
        self.jobs.remove(known[0])
        self.conclude(job_id, "FAILED", {}, [], "Aborted by sentinel")

    def receive(self):
        """Takes one message from the sentinel."""
        try:
            opcode, job_id, payload = wire.decode(self.socket.recv_multipart())
        except wire.BadMessage as error:
            wire.fail(f"the sentinel sent what an old worker refuses: {error}")
        if opcode == "DISPATCH":
            wire.emit("dispatch", job_id=job_id, waiting=len(self.jobs), payload=payload)
            self.jobs.append((job_id, payload))
        elif opcode == "ABORT":
            self.abort(job_id)
        elif opcode == "PREPARE_ENV":
            answer = {"env_hash": payload["env_hash"], "interpreter_path": sys.executable, "cached": True}
            self.send("ENV_READY", job_id, answer)
            wire.emit("env_ready", env_hash=payload["env_hash"])
        elif opcode == "RELOAD":
            wire.emit("reload")
        elif opcode == "ERR":
            wire.emit("err", job_id=job_id, message=payload["message"])
        else:
            wire.emit("ignored", opcode=opcode, job_id=job_id)

    def run(self):
        """Until `--jobs` jobs are done."""
        self.identify()
        next_beat = time.monotonic()
        while not self.options.jobs or self.done < self.options.jobs:
            now = time.monotonic()
            if self.due is not None and now >= self.due:
                self.finish()
                continue
            self.start_next(now)
            if now >= next_beat:
                self.heartbeat()
                next_beat = now + self.options.heartbeat_ms / 1000
            wake = next_beat if self.due is None else min(next_beat, self.due)
            if self.socket.poll(max(0, int((wake - now) * 1000))):
                self.receive()
        wire.emit("exit", jobs=self.done)
        self.socket.close()
        zmq.Context.instance().term()


if __name__ == "__main__":
    given = arguments()
    wire.watchdog(given.deadline_s)
    Worker(given).run()
