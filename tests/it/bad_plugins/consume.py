import pyarrow as pa
from casparian_flow.sdk import BasePlugin, PluginMetadata

MANIFEST = PluginMetadata(pattern='*', topic='t')


class Handler(BasePlugin):
    def consume(self, event):
        yield None
        yield pa.table({'p': [event.path], 'f': [event.file_id]}).to_batches()[0]
