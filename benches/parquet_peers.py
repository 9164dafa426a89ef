"""The table of benches/parquet.rs written by pyarrow, Polars and DuckDB; medians of 9.

Needs pyarrow, numpy, polars and duckdb (`pip install pyarrow numpy polars duckdb`).
"""

import os
import tempfile
import time

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 1_000_000
ROUNDS = 9


def table():
    n = np.arange(ROWS, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mix = n * np.uint64(0x9E3779B97F4A7C15)
    carriers = np.array(["UA", "AA", "DL", "B6", "EV", "WN", "9E", "US"])
    tails = np.array([f"N{k:05}" for k in range(4000)])
    return pa.table({
        "id": n.astype(np.int64),
        "value": (mix >> np.uint64(11)).astype(np.float64) / float(1 << 53),
        "carrier": carriers[(mix >> np.uint64(61)).astype(np.int64)],
        "tail": tails[((mix >> np.uint64(40)) % np.uint64(4000)).astype(np.int64)],
        "at": pa.array(1_356_998_400_000_000 + n.astype(np.int64) * 60_000_000, pa.timestamp("us")),
        "late": (mix >> np.uint64(62)) == 0,
    })


def main():
    data = table()
    frame = pl.from_arrow(data)
    connection = duckdb.connect()
    connection.register("data", data)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x.parquet")
        writers = {
            "pyarrow": lambda: pq.write_table(data, path, compression="snappy"),
            "polars": lambda: frame.write_parquet(path, compression="snappy"),
            "duckdb": lambda: connection.execute(f"copy data to '{path}' (format parquet, compression snappy)"),
        }
        times = {name: [] for name in writers}
        for _ in range(ROUNDS + 1):
            for name, write in writers.items():
                start = time.perf_counter()
                write()
                times[name].append(time.perf_counter() - start)
        for name, values in times.items():
            values = sorted(values[1:])
            print(f"{name:10} {ROWS} rows: median {values[len(values) // 2] * 1e3:.1f} ms (min {values[0] * 1e3:.1f})")


if __name__ == "__main__":
    main()
