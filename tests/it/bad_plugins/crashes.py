import ctypes


class Handler:
    def execute(self, path):
        ctypes.string_at(0)
