# /// script
# requires-python = ">=3.11"
# dependencies = ["pandas>=3", "pyarrow"]
#
# [tool.casparian]
# preload = ["pandas"]
# ///
"""Carrier delays: how late each carrier was on each day of one flights file.

Shows a plugin in pandas. `preload` above has pandas imported before the job
arrives, so that a small job costs milliseconds instead of the import.

Output, one row a day and carrier: `date`, `carrier`, `flights`, `cancelled`
(never departed), `dep_delay_mean`, `dep_delay_median`, `arr_delay_mean` (minutes,
over the flights that have one; null when none has) and `late_15` (departures
15 minutes late or more). One row out for some 60 in, so one frame a file is fine.
"""

import pandas as pd
from casparian_flow.sdk import PluginMetadata

MANIFEST = PluginMetadata(
    pattern="flights-*.csv*",
    topic="carrier_delays",
    sinks={"output": "parquet://carrier_delays/?compression=zstd"},
    version="1.0.0",
    description="Delays per day and carrier",
)

INPUT_TYPES = {
    "year": "int32",
    "month": "int32",
    "day": "int32",
    "dep_time": "float64",  # float: the plain NumPy integer has no null
    "dep_delay": "float64",
    "arr_delay": "float64",
    "carrier": "str",
}

# Written out, so that the Parquet schema does not depend on what is in the file.
OUTPUT_TYPES = {
    "date": "datetime64[us]",
    "carrier": "str",
    "flights": "int64",
    "cancelled": "int64",
    "dep_delay_mean": "float64",
    "dep_delay_median": "float64",
    "arr_delay_mean": "float64",
    "late_15": "int64",
}


class Handler:
    """Summarises one flights file."""

    def consume(self, event):
        """`NA` is the only null: an empty field in a numeric column is an error."""
        flights = pd.read_csv(
            event.path,
            usecols=list(INPUT_TYPES),
            dtype=INPUT_TYPES,
            na_values=["NA"],
            keep_default_na=False,
        )
        flights["date"] = pd.to_datetime(flights[["year", "month", "day"]])
        flights["cancelled"] = flights["dep_time"].isna()
        flights["late_15"] = flights["dep_delay"] >= 15
        daily = flights.groupby(["date", "carrier"], as_index=False).agg(
            flights=("carrier", "size"),
            cancelled=("cancelled", "sum"),
            dep_delay_mean=("dep_delay", "mean"),
            dep_delay_median=("dep_delay", "median"),
            arr_delay_mean=("arr_delay", "mean"),
            late_15=("late_15", "sum"),
        )
        yield daily[list(OUTPUT_TYPES)].astype(OUTPUT_TYPES)
