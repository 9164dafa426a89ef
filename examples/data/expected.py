"""Prints expected.json: what pyarrow alone reads from the example files.

Independent of the plugins on purpose: they are checked against it.
"""

import json
import pathlib

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

FOLDER = pathlib.Path(__file__).parent / "flights"


def facts(table):
    """Rows, nulls a column, and the sum of each numeric column."""
    numeric = [f.name for f in table.schema if pa.types.is_integer(f.type)]
    departed = table["dep_time"].is_valid()
    return {
        "rows": table.num_rows,
        "sums": {name: pc.sum(table[name]).as_py() for name in numeric},
        "nulls": {name: table[name].null_count for name in table.column_names},
        "rows_departed": pc.sum(departed).as_py(),
        "rows_cancelled": table.num_rows - pc.sum(departed).as_py(),
        "rows_day_carrier": table.group_by(["month", "day", "carrier"]).aggregate([]).num_rows,
    }


def main():
    convert = pyarrow.csv.ConvertOptions(null_values=["NA"], strings_can_be_null=True)
    tables = {p.name: pyarrow.csv.read_csv(p, convert_options=convert) for p in sorted(FOLDER.glob("*.csv"))}
    whole = pa.concat_tables(tables.values())
    print(json.dumps({"total": facts(whole), "files": {n: facts(t) for n, t in tables.items()}}, indent=1))


if __name__ == "__main__":
    main()
