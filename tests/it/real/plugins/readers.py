"""The same CSV files through four libraries, each with a topic of its own."""

import csv
import os

import duckdb
import polars as pl
import pyarrow.csv


class Handler:
    def configure(self, ctx, config):
        self.publish = lambda topic, data: ctx.publish(ctx.register_topic(topic), data)

    def execute(self, path):
        name = os.path.splitext(os.path.basename(path))[0]
        self.publish(f"{name} by polars", pl.scan_csv(path, infer_schema_length=None, null_values="NA"))
        self.publish(f"{name} by pyarrow", pyarrow.csv.open_csv(path))
        self.publish(f"{name} by duckdb", duckdb.read_csv(path, na_values="NA", sample_size=-1))
        with open(path, newline="", encoding="utf-8") as file:
            self.publish(f"{name} by csv", list(csv.DictReader(file)))
