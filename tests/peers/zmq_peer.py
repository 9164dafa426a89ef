"""A libzmq socket that a test drives: actions as JSON lines on stdin, results on stdout.

  zmq_peer.py ROLE [--identity TEXT] [--option NAME=VALUE]… [--zap JSON] [--bind E | --connect E]

ROLE is any libzmq socket type (DEALER, ROUTER, REQ, …). Options are libzmq's, in lower case
(`--option heartbeat_ivl=100`), set before the first bind or connect. `--zap` starts a ZAP
handler: {"plain": {"user": "password"}} or {"curve": ["Z85 public key", …]}.

Every line in gives exactly one line out, {"event": ACTION, …} or {"event": "error", "message"}:

  {"do":"bind","endpoint":"tcp://127.0.0.1:*"}      → endpoint as bound (port 0 works too)
  {"do":"connect"|"disconnect"|"unbind","endpoint":E}
  {"do":"set","option":"sndhwm","value":1000}       {"do":"get","option":"last_endpoint"}
  {"do":"send","frames":["6869",…],"count":1,"timeout_ms":5000}        → count
      a frame may also be {"size":70000,"fill":120}
  {"do":"recv","count":n,"timeout_ms":5000}         → messages: [[hex, …], …]
      with "digest":true → count, bytes, sha256 of all frames' bytes instead of messages
  {"do":"echo","count":n,"timeout_ms":5000}         → count; every message goes back as it came
  {"do":"await","events":["HANDSHAKE_SUCCEEDED"],"timeout_ms":5000}    → name, endpoint, value
      waits for the next of these monitor events; events seen meanwhile are forgotten
  {"do":"curve_keypair"}                            → public, secret (Z85)
  {"do":"close","linger_ms":5000}                   → and exit 0

`timeout_ms` is for the whole action; when it passes, the answer is an error line that says how
far the action came. The end of stdin closes too. The first line out is {"event":"ready",
"endpoint":…}. Exit codes: 0 closed, 1 bad start, 3 after --deadline-s.
"""

import argparse
import hashlib
import json
import sys
import time

import zmq
import zmq.auth.thread
import zmq.utils.monitor

import wire

TIMEOUT_MS = 5000


class Expired(Exception):
    """An action's time is up."""


class Clock:
    """The time an action has left."""

    def __init__(self, action):
        self.end = time.monotonic() + action.get("timeout_ms", TIMEOUT_MS) / 1000

    def wait(self, socket, flag, progress):
        """Until `socket` is ready for `flag`, or Expired with `progress`."""
        left_ms = int((self.end - time.monotonic()) * 1000)
        if not socket.poll(max(0, left_ms), flag):
            raise Expired(progress)


# Options whose value is text, even when it looks like a number. CURVE_SERVER is a flag.
TEXT_OPTIONS = ("plain_username", "plain_password", "curve_", "identity", "routing_id", "zap_domain")


def option_value(name, value):
    """An option's value as libzmq wants it: an int, or bytes."""
    name = name.lower()
    if name.startswith(TEXT_OPTIONS) and name != "curve_server":
        return str(value).encode()
    return int(value)


def frame_bytes(frame):
    """A frame of an action as bytes."""
    if isinstance(frame, dict):
        return bytes([frame.get("fill", 0)]) * frame["size"]
    return bytes.fromhex(frame)


class Peer:
    """One socket and its monitor; a method `do_X` for each action X."""

    def __init__(self, options):
        self.context = zmq.Context.instance()
        if options.zap:
            self.start_zap(json.loads(options.zap))
        self.socket = self.context.socket(getattr(zmq, options.role.upper()))
        self.socket.linger = 0
        self.monitor = self.socket.get_monitor_socket()
        if options.identity is not None:
            self.socket.identity = options.identity.encode()
        for option in options.option:
            name, _, value = option.partition("=")
            self.socket.set(getattr(zmq, name.upper()), option_value(name, value))

    def start_zap(self, rules):
        """A ZAP handler in a thread of its own."""
        self.zap = zmq.auth.thread.ThreadAuthenticator(self.context)
        self.zap.start()
        if "plain" in rules:
            self.zap.configure_plain(domain="*", passwords=rules["plain"])
        if "curve" in rules:
            allowed = {key.encode() for key in rules["curve"]}

            class Keys:
                """Asked for each client's public key, in Z85."""

                def callback(self, domain, key):
                    return key in allowed

            self.zap.configure_curve_callback(domain="*", credentials_provider=Keys())

    def do_bind(self, action):
        endpoint = action["endpoint"]
        if endpoint.endswith(":0"):
            endpoint = endpoint[:-1] + "*"
        self.socket.bind(endpoint)
        return self.do_get({"option": "last_endpoint"}, "endpoint")

    def do_connect(self, action):
        self.socket.connect(action["endpoint"])
        return {"endpoint": action["endpoint"]}

    def do_disconnect(self, action):
        self.socket.disconnect(action["endpoint"])
        return {"endpoint": action["endpoint"]}

    def do_unbind(self, action):
        self.socket.unbind(action["endpoint"])
        return {"endpoint": action["endpoint"]}

    def do_set(self, action):
        name = action["option"]
        self.socket.set(getattr(zmq, name.upper()), option_value(name, action["value"]))
        return {}

    def do_get(self, action, key="value"):
        value = self.socket.get(getattr(zmq, action["option"].upper()))
        return {key: value.decode().rstrip("\0") if isinstance(value, bytes) else value}

    def do_send(self, action):
        frames = [frame_bytes(frame) for frame in action["frames"]]
        clock, count = Clock(action), action.get("count", 1)
        for sent in range(count):
            clock.wait(self.socket, zmq.POLLOUT, f"sent {sent} of {count} messages")
            self.socket.send_multipart(frames, zmq.DONTWAIT)
        return {"count": count}

    def do_recv(self, action):
        clock, count = Clock(action), action.get("count", 1)
        digest = hashlib.sha256() if action.get("digest") else None
        messages, size = [], 0
        for received in range(count):
            clock.wait(self.socket, zmq.POLLIN, f"received {received} of {count} messages")
            frames = self.socket.recv_multipart(zmq.DONTWAIT)
            if digest is None:
                messages.append([frame.hex() for frame in frames])
            else:
                for frame in frames:
                    digest.update(frame)
                    size += len(frame)
        if digest is None:
            return {"messages": messages}
        return {"count": count, "bytes": size, "sha256": digest.hexdigest()}

    def do_echo(self, action):
        clock, count = Clock(action), action.get("count", 1)
        for echoed in range(count):
            clock.wait(self.socket, zmq.POLLIN, f"echoed {echoed} of {count} messages")
            frames = self.socket.recv_multipart(zmq.DONTWAIT)
            clock.wait(self.socket, zmq.POLLOUT, f"echoed {echoed} of {count} messages")
            self.socket.send_multipart(frames, zmq.DONTWAIT)
        return {"count": count}

    def do_await(self, action):
        clock = Clock(action)
        wanted = {int(getattr(zmq, "EVENT_" + name)): name for name in action["events"]}
        while True:
            clock.wait(self.monitor, zmq.POLLIN, f"none of {', '.join(wanted.values())} happened")
            event = zmq.utils.monitor.recv_monitor_message(self.monitor, zmq.DONTWAIT)
            if int(event["event"]) in wanted:
                return {
                    "name": wanted[int(event["event"])],
                    "endpoint": event["endpoint"].decode(),
                    "value": event["value"],
                }

    def do_curve_keypair(self, action):
        public, secret = zmq.curve_keypair()
        return {"public": public.decode(), "secret": secret.decode()}

    def close(self, linger_ms):
        """Closes everything; what was sent leaves within `linger_ms`."""
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=linger_ms)
        if hasattr(self, "zap"):
            self.zap.stop()
        self.context.term()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role")
    parser.add_argument("--identity")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--zap", metavar="JSON")
    parser.add_argument("--bind", metavar="ENDPOINT")
    parser.add_argument("--connect", metavar="ENDPOINT")
    parser.add_argument("--deadline-s", type=float, default=60)
    options = parser.parse_args()
    wire.watchdog(options.deadline_s)
    try:
        peer = Peer(options)
        where = {}
        if options.bind:
            where = peer.do_bind({"endpoint": options.bind})
        if options.connect:
            where = peer.do_connect({"endpoint": options.connect})
    except (zmq.ZMQError, AttributeError, TypeError, ValueError) as error:
        wire.fail(f"can't start: {error}")
    wire.emit("ready", **where)
    linger_ms = TIMEOUT_MS
    for line in sys.stdin:
        try:
            action = json.loads(line)
            name = action["do"]
            if name == "close":
                linger_ms = action.get("linger_ms", TIMEOUT_MS)
                break
            perform = getattr(peer, f"do_{name}", None)
            if perform is None:
                raise ValueError(f"no action {name}")
            wire.emit(name, **perform(action))
        except Expired as error:
            wire.emit("error", message=f"time is up: {error}")
        except (zmq.ZMQError, AttributeError, KeyError, TypeError, ValueError) as error:
            wire.emit("error", message=f"{type(error).__name__}: {error}")
    peer.close(linger_ms)
    wire.emit("close")


if __name__ == "__main__":
    main()
