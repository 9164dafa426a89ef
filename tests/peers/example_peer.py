"""The other sides of the examples (tests/examples): roles as their first argument, then endpoints.

Each role checks what it receives, and exits with 0 if all was right.
"""

import struct
import sys
import time

import zmq

CONTEXT = zmq.Context()
TIMEOUT_MS = 30_000


def socket(kind, endpoint, bind=False, identity=None):
    made = CONTEXT.socket(kind)
    made.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
    made.setsockopt(zmq.LINGER, 5000)
    if identity:
        made.setsockopt(zmq.IDENTITY, identity)
    made.bind(endpoint) if bind else made.connect(endpoint)
    return made


def broker_client(endpoint, count):
    """A REQ socket, so that one request waits for its reply."""
    client = socket(zmq.REQ, endpoint)
    for number in range(int(count)):
        client.send_multipart([b"request", b"number %d" % number])
        assert client.recv_multipart() == [b"REQUEST", b"NUMBER %d" % number]


def broker_worker(endpoint):
    worker = socket(zmq.DEALER, endpoint, identity=b"theirs")
    worker.setsockopt(zmq.RCVTIMEO, -1)
    worker.send(b"READY")
    while True:
        client, *request = worker.recv_multipart()
        worker.send_multipart([client] + [frame.upper() for frame in request])


def broker_lost_worker(endpoint):
    worker = socket(zmq.DEALER, endpoint)
    worker.send(b"READY")
    _client, *request = worker.recv_multipart()
    assert request == [b"", b"request", b"number 0"], request


def request_client(endpoint):
    client = socket(zmq.DEALER, endpoint)
    for number in range(100):
        client.send_multipart([struct.pack(">Q", number), b"reverse", b"a%d" % number])
    client.send(b"not a request")
    client.send_multipart([struct.pack(">Q", 100), b"other", b""])
    replies = dict(client.recv_multipart() for _ in range(101))
    for number in range(100):
        assert replies[struct.pack(">Q", number)] == (b"a%d" % number)[::-1], number
    assert replies[struct.pack(">Q", 100)] == b"unknown operation"


def request_server(endpoint):
    server = socket(zmq.ROUTER, endpoint, bind=True)
    server.setsockopt(zmq.RCVTIMEO, -1)
    seen = set()
    while True:
        client, number, operation, body = server.recv_multipart()
        if operation != b"reverse" or number not in seen:
            seen.add(number)
            continue
        # Also a reply to a request that was never sent, and a second one.
        for answered in (struct.pack(">Q", 1 << 40), number, number):
            server.send_multipart([client, answered, body[::-1]])


def queue_workers(endpoint, count):
    workers = [
        socket(zmq.DEALER, endpoint, identity=b"theirs-%d" % number)
        for number in range(int(count))
    ]
    poller = zmq.Poller()
    for worker in workers:
        poller.register(worker, zmq.POLLIN)
        worker.send(b"more")
    left, idle = len(workers), set(workers)
    while left:
        ready = poller.poll(TIMEOUT_MS)
        assert ready, f"nothing for {TIMEOUT_MS} ms, {left} workers left"
        for worker, _ in ready:
            message = worker.recv_multipart()
            if message[0] == b"end":
                left -= 1
                poller.unregister(worker)
                worker.close()
                continue
            word, number, data = message
            assert word == b"task"
            if worker in idle:
                idle.remove(worker)
                if not idle:
                    print("all work", flush=True)
            worker.send_multipart([b"done", number, b"%d" % sum(data)])
            worker.send(b"more")


def queue_thief(endpoint):
    thief = socket(zmq.DEALER, endpoint, identity=b"thief")
    for _ in range(3):
        thief.send(b"more")
    for _ in range(3):
        assert thief.recv_multipart()[0] == b"task"


def queue(endpoint, count):
    router = socket(zmq.ROUTER, endpoint, bind=True)
    tasks = [bytes([number % 256]) * (number % 50) for number in range(int(count))]
    results, given, workers = {}, 0, set()
    while len(results) < len(tasks):
        worker, word, *rest = router.recv_multipart()
        if word == b"done":
            results[struct.unpack(">Q", rest[0])[0]] = int(rest[1])
            continue
        assert word == b"more"
        workers.add(worker)
        if given < len(tasks):
            router.send_multipart([worker, b"task", struct.pack(">Q", given), tasks[given]])
            given += 1
    assert all(results[number] == sum(task) for number, task in enumerate(tasks))
    # Workers whose `more` is not yet here get their end as well.
    deadline = time.monotonic() + 20
    while len(workers) < 50 and time.monotonic() < deadline:
        if router.poll(100):
            workers.add(router.recv_multipart()[0])
    for worker in workers:
        router.send_multipart([worker, b"end"])


ROLES = {
    "broker-client": broker_client,
    "broker-worker": broker_worker,
    "broker-lost-worker": broker_lost_worker,
    "request-client": request_client,
    "request-server": request_server,
    "queue-workers": queue_workers,
    "queue-thief": queue_thief,
    "queue": queue,
}

ROLES[sys.argv[1]](*sys.argv[2:])
