import os
import pyarrow as pa


class Handler:
    def execute(self, path):
        assert 'SECRET_TOKEN' not in os.environ, 'the environment leaks'
        assert os.getcwd() == os.environ['HOME'] and not os.listdir('.') == None
        yield pa.table({'x': [1]})
