import pyarrow as pa


class Handler:
    def execute(self, path):
        yield pa.table({'id': [1]})
        yield pa.table({'id': ['now text']})
