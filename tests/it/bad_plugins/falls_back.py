import pyarrow as pa
from casparian_flow.sdk import BasePlugin


class Handler(BasePlugin):
    def execute(self, path):
        return pa.table({'p': [path]})
