import pyarrow as pa


class Handler:
    def execute(self, path):
        yield pa.table({'x': pa.array([], pa.int64())})
