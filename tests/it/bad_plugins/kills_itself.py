import os
import signal


class Handler:
    def execute(self, path):
        os.kill(os.getpid(), signal.SIGKILL)
