"""Compares what `casparian run` left with a direct read of the same files.

  check.py PLUGIN.py [SQL...] < the summary of the run as JSON

Runs with the interpreter of the plugin's environment. The direct read is the plugin's own code, in this
process: its values are taken from the library's objects, without Arrow where the library has values of its
own. They are compared with what pyarrow, DuckDB and Polars read of the output, its types with the library's
own conversion to Arrow. A file that the plugin cannot read here must have failed there, by the same error.

Prints one JSON value: how many files are done, the names of those that failed, rows by folder, the columns
that differ between the files of a folder, and rows of the queries, in which `{}` is the output folder. Exit
code 1 and a line on stderr for a difference.
"""

import collections.abc
import datetime
import json
import math
import os
import pathlib
import re
import sys

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

IDS = ["_job_id", "_file_version_id"]
# Above so many values a table is compared as Arrow, not value by value.
CELLS_MAX = 200_000


class Topics:
    """What the plugin's `ctx` is here: keeps what is published."""

    def __init__(self):
        self.parts = {}

    def register_topic(self, name):
        return name

    def publish(self, topic, data):
        self.take(topic, data)

    def take(self, topic, data):
        if data is None:
            return
        rows = isinstance(data, list) and any(isinstance(item, dict) for item in data)
        lazy = isinstance(data, collections.abc.Iterator) and not isinstance(data, pa.RecordBatchReader)
        if not rows and (lazy or isinstance(data, (list, tuple))):
            for item in data:
                self.take(topic, item)
            return
        table, rows = direct(data)
        if table.num_columns:
            self.parts.setdefault(topic, []).append((table, rows))


def direct(data):
    """A table by Arrow, and its rows as the library's own values; None where it has no others."""
    if isinstance(data, pl.LazyFrame):
        data = data.collect()
    if isinstance(data, pd.DataFrame):
        # Levels of the index become columns where they have names.
        named = [name for name in data.index.names if name is not None]
        if named:
            data = data.reset_index()[[*data.columns, *named]]
        table = pa.Table.from_pandas(data, preserve_index=False)
        columns = [[missing(value) for value in data.iloc[:, place]] for place in range(data.shape[1])]
        return table, list(zip(*columns)) if data.size <= CELLS_MAX else None
    if isinstance(data, pl.DataFrame):
        return data.to_arrow(compat_level=pl.CompatLevel.oldest()), data.rows() if data.height * data.width <= CELLS_MAX else None
    if isinstance(data, duckdb.DuckDBPyRelation):
        table = data.to_arrow_table()
        return table, data.fetchall() if table.num_rows * table.num_columns <= CELLS_MAX else None
    if isinstance(data, list):
        names = list(dict.fromkeys(name for row in data for name in row))
        columns = [pa.array([row.get(name) for row in data]) for name in names]
        return pa.table(columns, names=names), [tuple(row.get(name) for name in names) for row in data]
    if isinstance(data, dict):
        return pa.table({name: pa.array(values) for name, values in data.items()}), list(zip(*data.values()))
    if isinstance(data, pa.RecordBatchReader):
        data = data.read_all()
    if not isinstance(data, pa.Table):
        data = data.to_table()
    return data, None


def missing(value):
    """A value of pandas, which has NaN where others have null."""
    if isinstance(value, (np.ndarray, list)):
        return [missing(item) for item in value]
    if isinstance(value, dict):
        return {key: missing(item) for key, item in value.items()}
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else value


def plain(value):
    """A value as every library may give it: microseconds, UTC, lists and pairs."""
    if isinstance(value, (pd.Timestamp, pd.Timedelta)):
        value = value.to_pydatetime(warn=False) if isinstance(value, pd.Timestamp) else value.to_pytimedelta()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.astimezone(datetime.timezone.utc)
    if isinstance(value, float) and math.isnan(value):
        return "not a number"
    if isinstance(value, dict):
        if list(value) == ["key", "value"]:  # an entry of a map, in Polars
            return [plain(item) for item in value.values()]
        return [[plain(key), plain(item)] for key, item in value.items()]
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, pl.Series):
        return [plain(item) for item in value.to_list()]
    if type(value).__name__ == "UUID":
        return value.bytes
    return value


def normal(kind):
    """A type without what readers do not tell apart, and as sinks store it."""
    types = pa.types
    if types.is_dictionary(kind):
        return normal(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_date64(kind):
        return pa.date32()
    if types.is_time32(kind):
        return pa.time32("ms")
    if types.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    if types.is_fixed_size_list(kind):
        return pa.list_(normal(kind.value_type), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_list_view(kind):
        return pa.large_list(pa.field("item", normal(kind.value_type)))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, normal(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(normal(kind.key_type), normal(kind.item_type))
    return kind


def flat(table):
    """A table of normal types, its not-numbers made equal to themselves."""
    columns = []
    for column in table.columns:
        if pa.types.is_dictionary(column.type):
            # Their values first: not every dictionary can be decoded.
            chunks = [(chunk.indices, chunk.dictionary.cast(normal(column.type))) for chunk in column.chunks]
            chunks = [pa.DictionaryArray.from_arrays(*chunk).dictionary_decode() for chunk in chunks]
            column = pa.chunked_array(chunks, normal(column.type))
        column = column.cast(normal(column.type))
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), pa.scalar(-1.25e300, column.type), column)
        columns.append(column)
    return pa.table(columns, names=table.column_names)


def fail(words):
    sys.exit(f"check.py: {words}")


def same_rows(where, names, got, want):
    got = [[plain(value) for value in row] for row in got]
    want = [[plain(value) for value in row] for row in want]
    if len(got) != len(want):
        fail(f"{where}: {len(got)} rows, not {len(want)}")
    for number, (one, other) in enumerate(zip(got, want)):
        for name, a, b in zip(names, one, other, strict=True):
            if a != b:
                fail(f"{where}: row {number}, column {name}: {a!r:.300}, not {b!r:.300}")


def merged(tables):
    """One table of what was published in pieces. A column without values in a piece has the type that it has
    elsewhere: pandas has no other type for it than float."""
    filled = {name for table in tables for name in table.column_names if table[name].null_count < len(table)}
    for place, table in enumerate(tables):
        for index, name in enumerate(table.column_names):
            if name in filled and table[name].null_count == len(table):
                table = table.set_column(index, name, pa.nulls(len(table)))
        tables[place] = table
    return pa.concat_tables(tables, promote_options="permissive")


def check_file(where, path, parts):
    """One output file against what was published: types and values as Arrow. Gives its job and its rows."""
    table = pq.ParquetFile(path).read()
    jobs = set(table["_job_id"].to_pylist())
    table = table.drop_columns(IDS)
    want = merged([flat(table) for table, _ in parts])
    if table.column_names != want.column_names:
        fail(f"{where}: columns {table.column_names}, not {want.column_names}")
    table = flat(table)
    for name, got, expected in zip(table.column_names, table.columns, want.columns):
        if got.type != expected.type:
            fail(f"{where}: column {name} is {got.type}, not {expected.type}")
        if not got.combine_chunks().equals(expected.combine_chunks()):
            fail(f"{where}: column {name} has other values: {got.slice(0, 3)} {expected.slice(0, 3)}")
    if table.num_rows * table.num_columns > CELLS_MAX:
        others = {"duckdb": duckdb.read_parquet(str(path)).to_arrow_table(), "polars": pl.read_parquet(path).to_arrow(compat_level=pl.CompatLevel.oldest())}
        for engine, other in others.items():
            if not flat(other.select(table.column_names)).cast(table.schema).equals(table):
                fail(f"{where} by {engine}: other values")
        return jobs, table, None
    rows = []
    for part, values in parts:
        names = part.column_names
        values = zip(*(column.to_pylist() for column in part.columns)) if values is None else values
        for row in values:
            row = dict(zip(names, row, strict=True))
            rows.append([row.get(name) for name in table.column_names])
    return jobs, table, rows


def engines(path, names):
    """Rows of a file or a folder by each library, the job's ID before them."""
    below = str(path / "*.parquet") if path.is_dir() else str(path)
    columns = ["_job_id", *names]
    # By path, as users read a folder: no list of files, no options.
    yield "pyarrow", zip(*(column.to_pylist() for column in pq.read_table(path).select(columns).columns))
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
    yield "duckdb", duckdb.sql(f"select {quoted} from read_parquet('{below}')").fetchall()
    yield "polars", pl.read_parquet(path).select(columns).rows()


def check_engines(where, path, names, want):
    """`want`: the rows of each job. Of a folder, the order is that of its files' names."""
    for engine, rows in engines(path, names):
        found = {}
        for job, *row in rows:
            found.setdefault(job, []).append(row)
        if set(found) != {job for job, rows in want.items() if rows}:
            fail(f"{where} by {engine}: rows of the jobs {sorted(found)}, not of {sorted(want)}")
        for job, rows in found.items():
            same_rows(f"{where} by {engine}, job {job}", names, rows, want[job])


def is_of(name, wanted):
    """True for the folder of that name; one that is not usable as it is has a hash behind it."""
    name, wanted = (re.sub(r"\W", "_", text) for text in (name, wanted))
    return re.fullmatch(re.escape(wanted) + r"(_[0-9a-f]{8,})?", name) is not None


def check_drift(plugin, drift, differ):
    """The summary points out the same columns; it lists 100 at most."""
    told = {(entry["topic"], entry["column"]) for entry in drift}
    columns = [(folder, name) for folder, names in differ.items() for name in names]
    for topic, column in told:
        wanted = plugin.stem if topic == "output" else f"{plugin.stem}_{topic}"
        if not any(column == name and is_of(folder, wanted) for folder, name in columns):
            fail(f"the summary says that column {column} of topic {topic} differs")
    if len(told) != min(len(columns), 100):
        fail(f"the summary lists {len(told)} columns that differ, not {columns}")


def main():
    plugin = pathlib.Path(sys.argv[1])
    summary = json.load(sys.stdin)
    files = summary["files"]
    duckdb.sql("set TimeZone = 'UTC'")
    source = {"__name__": "plugin"}
    exec(compile(plugin.read_text(), str(plugin), "exec"), source)
    folders, failed = {}, []
    for file in files:
        topics = Topics()
        try:
            handler = source["Handler"]()
            if hasattr(handler, "configure"):
                handler.configure(topics, {})
            topics.take("output", handler.execute(file["file"]))
        except Exception as error:
            # Values of several kinds are refused before pyarrow meets them.
            is_mixed = isinstance(error, pa.ArrowException) and ": it has " in file.get("error", "")
            if file["status"] != "FAILED" or type(error).__name__ not in file["error"] and not is_mixed:
                fail(f"{file['file']}: {file['status']} {file.get('error')}, not {type(error).__name__}: {error}")
            failed.append(os.path.basename(file["file"]))
            continue
        if file["status"] != "DONE":
            fail(f"{file['file']}: {file['status']}, {file.get('error')}")
        outputs = {}
        for uri in file["outputs"]:
            path = pathlib.Path(uri.removeprefix("file://"))
            outputs[path.parent.name] = path
        for topic, parts in topics.parts.items():
            folder = plugin.stem if topic == "output" else f"{plugin.stem}_{topic}"
            folder = next((name for name in outputs if is_of(name, folder)), None)
            if folder is None:
                fail(f"{file['file']}: no output of topic {topic} in {list(outputs)}")
            path = outputs.pop(folder)
            jobs, table, rows = check_file(f"{folder}/{path.name}", path, parts)
            folders.setdefault(folder, []).append((path, jobs, table, rows))
        if outputs:
            fail(f"{file['file']}: outputs of no topic: {list(outputs)}")
    differ = {}
    for folder, found in folders.items():
        paths = sorted(str(path) for path, *_ in found)
        present = sorted(str(path) for path in found[0][0].parent.iterdir())
        if paths != present:
            fail(f"{folder}: files {present}, not {paths}")
        kinds = [dict(zip(table.column_names, map(str, table.schema.types))) for _, _, table, _ in found]
        names = dict.fromkeys(name for kind in kinds for name in kind)
        differ[folder] = [name for name in names if len({kind.get(name) for kind in kinds}) > 1]
        if any(rows is None for *_, rows in found):
            continue
        if differ[folder]:
            for path, jobs, table, rows in found:
                job = min(jobs, default=None)
                check_engines(f"{folder}/{path.name}", path, table.column_names, {job: rows} if rows else {})
        else:
            want = {min(jobs): rows for _, jobs, _, rows in found if rows}
            check_engines(folder, found[0][0].parent, list(names), want)
    check_drift(plugin, summary.get("drift", []), differ)
    root = next((found[0][0].parent.parent for found in folders.values()), None)
    answers = [duckdb.sql(query.replace("{}", str(root))).fetchall() for query in sys.argv[2:]]
    print(json.dumps({
        "done": len(files) - len(failed),
        "failed": sorted(failed),
        "rows": {folder: sum(table.num_rows for _, _, table, _ in found) for folder, found in folders.items()},
        "differ": {folder: names for folder, names in differ.items() if names},
        "answers": answers,
    }, default=str))


if __name__ == "__main__":
    main()
