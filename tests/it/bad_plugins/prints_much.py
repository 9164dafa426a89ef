import pyarrow as pa


class Handler:
    def execute(self, path):
        for n in range(200_000):
            print('line', n)
        yield pa.table({'x': [1]})
