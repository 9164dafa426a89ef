"""What other readers see in Parquet files: rows, columns, nulls and sums, as one JSON line an engine.

  read_parquet.py [--engine pyarrow|duckdb|polars]… PATH…

A PATH is a file or a folder; of a folder, every `*.parquet` below it, except names (of files or
folders) that begin with `.` or `_`, as the engines themselves skip them. Without --engine all three
read. Sums are over numeric columns: exact for integers; floats that are not finite come as text.
Exit codes: 0, 1 when an engine can't read or nothing is there, 3 after --deadline-s.
"""

import argparse
import json
import math
import pathlib

import wire


def files_below(paths):
    """The Parquet files meant by the command line, sorted."""
    found = []
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        for file in path.rglob("*.parquet"):
            if not any(part[0] in "._" for part in file.relative_to(path).parts):
                found.append(file)
    missing = [str(file) for file in found if not file.is_file()]
    if missing:
        wire.fail(f"no such file: {missing[0]}")
    if not found:
        wire.fail(f"no Parquet file under {' '.join(paths)}")
    return sorted(map(str, found))


def plain(value):
    """A sum as JSON can say it."""
    if value is None or isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else str(float(value))


def read_pyarrow(files):
    """pyarrow: each file by itself, so that a difference in schema is seen and not unified away."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet

    table = pa.concat_tables([pyarrow.parquet.ParquetFile(file).read() for file in files])
    # Summed as decimals: pyarrow adds integers in 64 bits and wraps.
    exact = {
        field.name: pc.cast(table[field.name], pa.decimal128(38, 0))
        for field in table.schema
        if pa.types.is_integer(field.type)
    }
    sums = {name: pc.sum(column).as_py() for name, column in exact.items()}
    sums = {name: None if value is None else int(value) for name, value in sums.items()}
    sums |= {
        field.name: pc.sum(table[field.name]).as_py()
        for field in table.schema
        if pa.types.is_floating(field.type)
    }
    return {
        "rows": table.num_rows,
        "types": {field.name: str(field.type) for field in table.schema},
        "nulls": {name: table[name].null_count for name in table.column_names},
        "sums": sums,
    }


def read_duckdb(files):
    """DuckDB, through SQL."""
    import duckdb

    source = duckdb.read_parquet(files, hive_partitioning=False)
    types = dict(zip(source.columns, map(str, source.types)))
    quoted = {name: '"' + name.replace('"', '""') + '"' for name in types}
    numeric = [name for name in types if types[name].endswith(("INT", "INTEGER", "FLOAT", "DOUBLE"))]
    wanted = ["count(*)"]
    wanted += [f"count(*) - count({quoted[name]})" for name in types]
    wanted += [f"sum({quoted[name]})" for name in numeric]
    row = source.aggregate(", ".join(wanted)).fetchall()[0]
    return {
        "rows": row[0],
        "types": types,
        "nulls": dict(zip(types, row[1:])),
        "sums": dict(zip(numeric, row[1 + len(types) :])),
    }


def read_polars(files):
    """Polars, lazily."""
    import polars as pl

    source = pl.scan_parquet(files, hive_partitioning=False)
    schema = source.collect_schema()
    # Widened first: polars sums an Int32 column in 32 bits.
    sums = {
        name: pl.col(name).cast(pl.Int128 if kind.is_integer() else pl.Float64).sum().alias(f"sum {name}")
        for name, kind in schema.items()
        if kind.is_numeric() and not kind.is_decimal()
    }
    nulls = {name: pl.col(name).null_count().alias(f"null {name}") for name in schema.names()}
    row = source.select(pl.len().alias("rows"), *nulls.values(), *sums.values()).collect().row(0, named=True)
    return {
        "rows": row["rows"],
        "types": {name: str(kind) for name, kind in schema.items()},
        "nulls": {name: row[f"null {name}"] for name in nulls},
        # As the others say it: the sum of no values at all is null.
        "sums": {name: row[f"sum {name}"] if row[f"null {name}"] < row["rows"] else None for name in sums},
    }


ENGINES = {"pyarrow": read_pyarrow, "duckdb": read_duckdb, "polars": read_polars}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--engine", action="append", choices=list(ENGINES))
    parser.add_argument("--deadline-s", type=float, default=120)
    options = parser.parse_args()
    wire.watchdog(options.deadline_s)
    files = files_below(options.paths)
    for engine in options.engine or ENGINES:
        try:
            seen = ENGINES[engine](files)
        except Exception as error:  # every engine has errors of its own
            wire.fail(f"{engine} can't read {len(files)} file(s): {type(error).__name__}: {error}")
        seen["sums"] = {name: plain(value) for name, value in seen["sums"].items()}
        columns = list(seen["types"])
        print(json.dumps({"engine": engine, "files": len(files), "columns": columns, **seen}), flush=True)


if __name__ == "__main__":
    main()
