import os
import socket


class Handler:
    def configure(self, ctx, config):
        ctx._bridge.socket.sendall(b'\x00\x00\x00\x08garbage!')

    def execute(self, path):
        pass
