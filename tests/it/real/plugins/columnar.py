"""Parquet, ORC and Arrow files, by the library that their folder is named after; a topic for each file."""

from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset
import pyarrow.feather
import pyarrow.orc

# Not that of the host: it becomes part of the type of columns.
duckdb.sql("set TimeZone = 'UTC'")

READERS = {
    ("pandas", ".parquet"): pd.read_parquet,
    ("pandas", ".feather"): pd.read_feather,
    ("polars", ".parquet"): pl.scan_parquet,
    ("polars", ".arrow"): pl.read_ipc,
    ("duckdb", ".parquet"): duckdb.read_parquet,
    ("pyarrow", ".parquet"): pyarrow.dataset.dataset,
    ("pyarrow", ".arrow"): pyarrow.feather.read_table,
    ("pyarrow", ".feather"): pyarrow.feather.read_table,
    ("pyarrow", ".orc"): lambda path: pyarrow.orc.ORCFile(path).read(),
}


class Handler:
    def configure(self, ctx, config):
        self.ctx = ctx

    def execute(self, path):
        path = Path(path)
        library = path.parent.name
        topic = self.ctx.register_topic(f"{path.name} by {library}")
        self.ctx.publish(topic, READERS[library, path.suffix.lower()](str(path)))
