import time


class Handler:
    def execute(self, path):
        time.sleep(1000)
