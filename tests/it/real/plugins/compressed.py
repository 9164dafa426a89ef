"""CSV files in whatever they were packed with, a piece at a time; the topic is the name to its first dot."""

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv

OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


class Handler:
    def configure(self, ctx, config):
        self.ctx = ctx

    def execute(self, path):
        path = Path(path)
        topic = self.ctx.register_topic(path.name.split(".")[0])
        suffix = path.suffix.lower()
        if suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    with archive.open(name) as stream:
                        self.ctx.publish(topic, pyarrow.csv.open_csv(stream))
        elif suffix == ".zst":
            with pa.input_stream(str(path), compression="zstd") as stream:
                self.ctx.publish(topic, pyarrow.csv.read_csv(stream))
        else:
            with OPEN[suffix](path, "rt", encoding="utf-8") as stream:
                for piece in pd.read_csv(stream, chunksize=10_000):
                    self.ctx.publish(topic, piece)
