class Handler:
    def configure(self, ctx, config):
        ctx._bridge.socket.sendall(b'\xf0\x00\x00\x00')

    def execute(self, path):
        pass
