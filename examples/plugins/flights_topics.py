# /// script
# requires-python = ">=3.10"
# dependencies = ["pyarrow"]
# ///
"""Flights by topic: departed flights to `flights`, the others to `cancelled`.

Shows a plugin with more than one output. Each topic is registered once in
`configure`; `publish` sends rows to that topic's sinks only. `publish` waits
while the disk is behind, so nothing piles up in the plugin.
"""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from casparian_flow.sdk import PluginMetadata

MANIFEST = PluginMetadata(
    pattern="flights-*.csv*",
    topic="flights_topics",
    sinks={
        "flights": "parquet://departed/?compression=zstd",
        "cancelled": "parquet://cancelled/?compression=zstd",
    },
    version="1.0.0",
    description="Departed and cancelled flights, apart",
)

SCHEMA = pa.schema(
    [
        ("year", pa.int32()),
        ("month", pa.int32()),
        ("day", pa.int32()),
        ("dep_time", pa.int32()),
        ("sched_dep_time", pa.int32()),
        ("dep_delay", pa.int32()),
        ("arr_time", pa.int32()),
        ("sched_arr_time", pa.int32()),
        ("arr_delay", pa.int32()),
        ("carrier", pa.string()),
        ("flight", pa.int32()),
        ("tailnum", pa.string()),
        ("origin", pa.string()),
        ("dest", pa.string()),
        ("air_time", pa.int32()),
        ("distance", pa.int32()),
        ("hour", pa.int32()),
        ("minute", pa.int32()),
        ("time_hour", pa.timestamp("us", tz="UTC")),
    ]
)

# What a flight that never left has no value for.
DEPARTED_ONLY = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]


class Handler:
    """Splits one flights file by whether the flight departed."""

    def configure(self, ctx, config):
        """Called once, before the file: keep the context, register the topics."""
        self.ctx = ctx
        self.flights = ctx.register_topic("flights")
        self.cancelled = ctx.register_topic("cancelled")

    def consume(self, event):
        """Publishes as it reads; there is nothing left to return."""
        reader = pyarrow.csv.open_csv(
            event.path,
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=SCHEMA,
                include_columns=SCHEMA.names,
                null_values=["NA"],
                strings_can_be_null=True,
            ),
        )
        with reader:
            for batch in reader:
                departed = pc.is_valid(batch.column("dep_time"))
                self.send(self.flights, batch.filter(departed))
                cancelled = batch.filter(pc.invert(departed))
                self.send(self.cancelled, cancelled.drop_columns(DEPARTED_ONLY))

    def send(self, topic, batch):
        """Publishes a batch that has rows."""
        if batch.num_rows:
            self.ctx.publish(topic, batch)
