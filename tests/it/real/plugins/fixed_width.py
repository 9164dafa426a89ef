"""Files of fixed width, by the schema that lies beside each."""

from pathlib import Path

import pandas as pd

SCHEMAS = {
    "VROUTFSJ.TXt": ("determination_schema.csv", 1),
    "ilgeo2010_excerpt.pl": ("census2010_geo_schema.csv", 0),
    "testfixed": ("testfixed_schema.csv", 0),
    "usgeo_excerpt.upl": ("census2000_geo_schema.csv", 1),
}


class Handler:
    def configure(self, ctx, config):
        self.ctx = ctx

    def execute(self, path):
        path = Path(path)
        if path.name not in SCHEMAS:
            return
        name, first = SCHEMAS[path.name]
        schema = pd.read_csv(path.with_name(name))
        starts = schema["start"] - first
        pieces = pd.read_fwf(
            path,
            colspecs=list(zip(starts, starts + schema["length"])),
            names=list(schema["column"]),
            dtype={"POP100": "Int64", "HU100": "Int64", "POP": "Int64"},
            encoding="latin-1",
            chunksize=500,
        )
        topic = self.ctx.register_topic(path.stem)
        for piece in pieces:
            for column in ("date", "datetime"):
                if column in piece:
                    piece[column] = pd.to_datetime(piece[column])
            self.ctx.publish(topic, piece)
