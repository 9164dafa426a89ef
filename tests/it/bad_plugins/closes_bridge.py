class Handler:
    def configure(self, ctx, config):
        ctx._bridge.socket.close()

    def execute(self, path):
        import os

        os._exit(0)
