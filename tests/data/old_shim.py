"""The old system's shim, as far as its worker can tell.

Re-created from the bridge's description and the captures in `bridge/`, apart from our own shim:
it proves that a plugin process of the old kind works under our worker. Environment: BRIDGE_SOCKET,
BRIDGE_PLUGIN_CODE (base64 source), BRIDGE_FILE_PATH, BRIDGE_JOB_ID, BRIDGE_FILE_VERSION_ID.

On the socket: for each published batch a u32 big-endian length and one complete Arrow IPC
stream; 0 at the end; on failure 0xFFFFFFFF, a u32 length, the text, then the 0. Topics are
lost, as they were. The last line of stdout is the summary; exit code 0 or 1.
"""

import base64
import collections
import json
import os
import socket
import struct
import sys
import traceback
import types

import pyarrow as pa

END = struct.pack("!I", 0)
ERROR = struct.pack("!I", 0xFFFFFFFF)

FileEvent = collections.namedtuple("FileEvent", "path file_id")


class Context:
    """What a plugin gets in `configure`: publishes to the bridge, whatever the topic."""

    def __init__(self, bridge):
        self.bridge = bridge
        self.topics = []
        self.rows_published = 0

    def register_topic(self, name, default_uri=None):
        """A handle for `publish`."""
        self.topics.append(name)
        return len(self.topics) - 1

    def publish(self, handle, data):
        """Writes one batch as one frame."""
        if type(data).__module__.split(".")[0] == "pandas":
            data = pa.Table.from_pandas(data)
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, data.schema) as writer:
            writer.write(data)
        payload = buffer.getvalue().to_pybytes()
        self.bridge.sendall(struct.pack("!I", len(payload)) + payload)
        self.rows_published += data.num_rows


def provide_sdk():
    """`casparian_flow.sdk` for plugins that import it where it is not installed."""
    try:
        import casparian_flow.sdk
    except ImportError:
        sdk = types.ModuleType("casparian_flow.sdk")
        sdk.FileEvent = FileEvent
        sdk.PluginMetadata = type("PluginMetadata", (types.SimpleNamespace,), {})
        sdk.BasePlugin = type("BasePlugin", (), {})
        package = types.ModuleType("casparian_flow")
        package.sdk = sdk
        sys.modules["casparian_flow"] = package
        sys.modules["casparian_flow.sdk"] = sdk


def run(context):
    """Loads the plugin, runs it over the file, publishes what it returns."""
    source = base64.b64decode(os.environ["BRIDGE_PLUGIN_CODE"]).decode("utf-8")
    path = os.environ["BRIDGE_FILE_PATH"]
    namespace = {"__name__": "plugin"}
    exec(compile(source, "<plugin>", "exec"), namespace)
    if "Handler" not in namespace:
        raise RuntimeError("plugin defines no class Handler")
    handler = namespace["Handler"]()
    if hasattr(handler, "configure"):
        handler.configure(context, {})
    if hasattr(handler, "consume"):
        try:
            result = handler.consume(FileEvent(path, int(os.environ["BRIDGE_FILE_VERSION_ID"])))
        except NotImplementedError:
            result = handler.execute(path)
    else:
        result = handler.execute(path)
    for data in result or ():
        if data is not None:
            context.publish(0, data)


def main():
    provide_sdk()
    bridge = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bridge.connect(os.environ["BRIDGE_SOCKET"])
    context = Context(bridge)
    try:
        run(context)
    except Exception as error:
        traceback.print_exc()
        text = str(error).encode("utf-8")
        bridge.sendall(ERROR + struct.pack("!I", len(text)) + text + END)
        bridge.close()
        print(json.dumps({"status": "FAILED", "error": str(error)}), flush=True)
        return 1
    bridge.sendall(END)
    bridge.close()
    print(json.dumps({"rows_published": context.rows_published, "status": "SUCCESS"}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
