# /// script
# dependencies = ["pyarrow", "pandas", "polars", "duckdb", "numpy", "joblib"]
# ///
"""Types of pandas, written by a plugin and read back by pandas, DuckDB and Polars.

It is a plugin and its check. As a plugin it publishes each frame of `FRAMES` to a topic of its own.
`pandas_types.py FOLDER` reads what is there and prints what differs; exit code 0 when nothing does.
"""

import sys

import pandas as pd

T = pd.Timestamp


def times(unit, zone=None):
    return pd.IntervalIndex.from_breaks(pd.DatetimeIndex(["2024-01-01", "2024-01-02", "2024-01-03"], tz=zone).as_unit(unit))


def totals():
    df = pd.DataFrame({"v": [1, 2, 4]})
    return df.groupby(pd.cut(df.v, [0, 2, 4]).rename("g"), observed=True).sum()


def categorical(values):
    return pd.DataFrame({"v": pd.Categorical(values)})


# name: (frame, the type that pandas reads in the column `v`)
FRAMES = {
    "months": (pd.DataFrame({"v": pd.PeriodIndex(["2024-01", None], freq="M")}), "period[M]"),
    "weeks": (pd.DataFrame({"v": pd.period_range("2024-01-01", periods=2, freq="W-SUN")}), "period[W-SUN]"),
    "period_index": (pd.DataFrame({"v": [1, 2]}, index=pd.period_range("2024", periods=2, freq="Y", name="i")), "int64"),
    "integers": (pd.DataFrame({"v": pd.IntervalIndex.from_tuples([(0, 1), (2, 5)], closed="left")}), "interval[int64, left]"),
    "floats": (pd.DataFrame({"v": pd.IntervalIndex.from_tuples([(0.5, 1), None], closed="both")}), "interval[float64, both]"),
    "seconds": (pd.DataFrame({"v": times("s")}), None),
    "zone": (pd.DataFrame({"v": times("ns", "Europe/Berlin")}), "interval[datetime64[ns, Europe/Berlin], right]"),
    "spans": (pd.DataFrame({"v": pd.IntervalIndex.from_breaks(pd.to_timedelta([1, 2], unit="s").as_unit("us"))}), None),
    "interval_index": (pd.DataFrame({"v": [1, 2]}, index=pd.interval_range(0, 2, name="i")), "int64"),
    "groups": (pd.DataFrame({"v": pd.cut([1, 2], [0, 1, 2])}), "interval[int64, right]"),
    "groups_of_floats": (pd.DataFrame({"v": pd.cut([1, 2, 99], [0, 1.5, 2])}), "interval[float64, right]"),
    # pandas would read other integers in the place of missing ones.
    "missing_groups": (pd.DataFrame({"v": pd.cut([1, 2, 99], [0, 1, 2])}), "object"),
    "missing_categories": (categorical(pd.PeriodIndex(["2024-01", None], freq="M")), "period[M]"),
    "many_groups": (pd.DataFrame({"v": pd.cut(range(300_000), range(0, 300_001, 3), right=False)}), "interval[int64, left]"),
    "totals": (totals(), "int64"),
    "categories": (categorical(pd.period_range("2024-01", periods=2, freq="D")), "period[D]"),
}


class Handler:
    def configure(self, ctx, config):
        self.ctx = ctx

    def execute(self, path):
        for name, (frame, _) in FRAMES.items():
            self.ctx.publish(name, frame)


def same(values):
    """Values that are comparable, whether they are intervals, categories or structs."""
    def plain(value):
        if isinstance(value, dict):
            return value["left"], value["right"]
        if isinstance(value, pd.Interval):
            return value.left, value.right
        return "missing" if value is None or value is pd.NaT or value != value else value
    return list(map(plain, values))


def main(folder):
    import pathlib

    import duckdb
    import polars as pl
    import pyarrow.parquet
    faults = 0
    for name, (frame, kind) in FRAMES.items():
        (path,) = pathlib.Path(folder).glob(f"pandas_types_{name}/*.parquet")
        found = pd.read_parquet(path)
        for what, got, want in [
            ("type", kind or str(found["v"].dtype), str(found["v"].dtype)),
            ("values", same(found["v"]), same(frame["v"])),
            ("index", same(found.index), same(frame.index)),
            ("rows, DuckDB", duckdb.read_parquet(str(path)).aggregate("count(*)").fetchall(), [(len(frame),)]),
            ("rows, Polars", pl.read_parquet(path).height, len(frame)),
        ]:
            if got != want:
                faults += 1
                print(f"{name}, {what}: {got!r:.200}, not {want!r:.200}")
    return faults


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)
