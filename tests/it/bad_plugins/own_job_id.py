import pyarrow as pa


class Handler:
    def execute(self, path):
        yield pa.table({'_job_id': [1]})
