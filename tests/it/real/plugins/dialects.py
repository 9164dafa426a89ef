"""CSV files of many sources: each has options of its own, and a topic of its own."""

import csv
from pathlib import Path

import pandas as pd

OPTIONS = {
    "AIRPORTS 2013; semicolons.CSV": {"sep": ";", "decimal": ","},
    "Datagov_FY10_EDU_recp_by_State.csv": {"skiprows": 2, "thousands": ","},
    "FY09_EDU_Recipients_by_State.csv": {"thousands": ","},
    "dummy.tsv": {"sep": "\t"},
    "event-notification-rpt-lastmonth.txt": {"sep": "|", "quoting": csv.QUOTE_NONE},
    "ks_1033_data.csv": {
        "dtype": {"fips": "string", "quantity": "Int32", "federal_supply_category_name": "category"},
        "parse_dates": ["ship_date"],
    },
    "no_header_row3.csv": {"header": None},
    "optional_quote_characters.csv": {"dtype": str},
    "test_date_format.csv": {"parse_dates": ["a"], "date_format": "%d/%m/%Y"},
    "test_latin1.csv": {"encoding": "latin-1"},
    "test_locale.csv": {"decimal": ",", "thousands": "."},
    "test_utf16_big.csv": {"encoding": "utf-16"},
    "test_utf16_little.csv": {"encoding": "utf-16"},
    "zone.tab": {
        "sep": "\t", "comment": "#", "keep_default_na": False,
        "names": ["country", "coordinates", "zone", "comments"],
    },
}


class Handler:
    def configure(self, ctx, config):
        self.ctx = ctx

    def execute(self, path):
        path = Path(path)
        topic = self.ctx.register_topic(path.stem)
        self.ctx.publish(topic, pd.read_csv(path, **OPTIONS.get(path.name, {})))
