# /// script
# requires-python = ">=3.10"
# dependencies = ["pyarrow"]
# ///
"""Flights: one CSV file in (plain or gzipped), one typed Parquet dataset out.

The plugin to copy first. It shows the three habits that keep a pipeline dull:

* Every column has a type, so each file gives the same schema whatever its rows
  look like. A value that does not fit fails the job with its row and column.
* `NA` is null in text columns too, never the text "NA".
* The file is read block by block and each block is handed on as it is read, so
  memory stays the same for a file of any size.

Output columns are those of `SCHEMA`, in that order. Columns of the input that
are not named there are left out; a named column that is missing is an error.
"""

import pyarrow as pa
import pyarrow.csv
from casparian_flow.sdk import PluginMetadata

MANIFEST = PluginMetadata(
    pattern="flights-*.csv*",
    topic="flights",
    sinks={"output": "parquet://flights/?compression=zstd"},
    version="1.0.0",
    description="Flights as typed Parquet, NA as null",
)

SCHEMA = pa.schema(
    [
        ("year", pa.int32()),
        ("month", pa.int32()),
        ("day", pa.int32()),
        ("dep_time", pa.int32()),  # hhmm, local; null: the flight was cancelled
        ("sched_dep_time", pa.int32()),  # hhmm, local
        ("dep_delay", pa.int32()),  # minutes, negative: early
        ("arr_time", pa.int32()),
        ("sched_arr_time", pa.int32()),
        ("arr_delay", pa.int32()),
        ("carrier", pa.string()),
        ("flight", pa.int32()),
        ("tailnum", pa.string()),
        ("origin", pa.string()),
        ("dest", pa.string()),
        ("air_time", pa.int32()),  # minutes
        ("distance", pa.int32()),  # miles
        ("hour", pa.int32()),
        ("minute", pa.int32()),
        ("time_hour", pa.timestamp("us", tz="UTC")),
    ]
)

# Bytes of CSV that become one batch: large enough to be quick, small enough to forget.
BLOCK_SIZE = 1 << 20


def read_flights(path):
    """Yields the file as Arrow record batches of SCHEMA; `.gz` is unpacked on the way."""
    reader = pyarrow.csv.open_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_SIZE),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=SCHEMA,
            include_columns=SCHEMA.names,
            null_values=["NA"],
            strings_can_be_null=True,
        ),
    )
    with reader:
        yield from reader


class Handler:
    """Turns one flights file into batches; what `consume` yields is the output."""

    def consume(self, event):
        """`event.path` is the file, `event.file_id` its id in the catalogue."""
        yield from read_flights(event.path)
