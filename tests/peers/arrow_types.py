"""Every Arrow type, written by a plugin and read back by pyarrow, DuckDB and Polars.

It is a plugin and its check. As a plugin it publishes the cases of the group that its input names,
each to a topic of its own. `arrow_types.py FOLDER DATABASE` reads what is there and prints what
differs; exit code 0 when nothing does.
"""

import datetime as dt
import decimal
import json
import sys

import pyarrow as pa

UTC = dt.timezone.utc
D = decimal.Decimal


def at(*parts, zone=None):
    return dt.datetime(*parts, tzinfo=zone)


DECIMALS = [D("0.00"), D("-1234567.89"), D("1234567.89"), None]

# name: (type, values, stored type or None when it stays, DuckDB's type)
TYPES = {
    "null": (pa.null(), [None, None], None, '"NULL"'),
    "bool": (pa.bool_(), [True, False, None], None, "BOOLEAN"),
    "int8": (pa.int8(), [-128, 127, None], None, "TINYINT"),
    "int16": (pa.int16(), [-(2**15), 2**15 - 1, None], None, "SMALLINT"),
    "int32": (pa.int32(), [-(2**31), 2**31 - 1, None], None, "INTEGER"),
    "int64": (pa.int64(), [-(2**63), 2**63 - 1, None], None, "BIGINT"),
    "uint8": (pa.uint8(), [0, 255, None], None, "UTINYINT"),
    "uint16": (pa.uint16(), [0, 2**16 - 1, None], None, "USMALLINT"),
    "uint32": (pa.uint32(), [0, 2**32 - 1, None], None, "UINTEGER"),
    "uint64": (pa.uint64(), [0, 2**63, 2**64 - 1, None], None, "UBIGINT"),
    "float16": (pa.float16(), [1.5, -65504.0, None], None, "FLOAT"),
    "float32": (pa.float32(), [1.5, float("inf"), None], None, "FLOAT"),
    "float64": (pa.float64(), [0.1, float("-inf"), 5e-324, None], None, "DOUBLE"),
    "string": (pa.string(), ["", "ä", "x" * 50, None], None, "VARCHAR"),
    "large_string": (pa.large_string(), ["", "ä", "x" * 50, None], None, "VARCHAR"),
    "string_view": (pa.string_view(), ["", "ä", "x" * 50, None], pa.large_string(), "VARCHAR"),
    "binary": (pa.binary(), [b"", b"\0\xff", None], None, "BLOB"),
    "large_binary": (pa.large_binary(), [b"", b"\0\xff", None], None, "BLOB"),
    "binary_view": (pa.binary_view(), [b"", b"\xff" * 50, None], pa.large_binary(), "BLOB"),
    "fixed_binary": (pa.binary(3), [b"\0\0\0", b"abc", None], None, "BLOB"),
    "date32": (pa.date32(), [dt.date(1, 1, 1), dt.date(9999, 12, 31), None], None, "DATE"),
    "date64": (pa.date64(), [dt.date(1969, 12, 31), dt.date(1970, 1, 2), None], pa.date32(), "DATE"),
    "time32_s": (pa.time32("s"), [dt.time(0), dt.time(23, 59, 59), None], pa.time32("ms"), "TIME"),
    "time32_ms": (pa.time32("ms"), [dt.time(0), dt.time(23, 59, 59, 999000), None], None, "TIME"),
    "time64_us": (pa.time64("us"), [dt.time(0), dt.time(23, 59, 59, 999999), None], None, "TIME"),
    "time64_ns": (pa.time64("ns"), [dt.time(0), dt.time(23, 59, 59, 999999), None], None, "TIME_NS"),
    "timestamp_s": (pa.timestamp("s"), [at(1, 1, 1), at(1969, 12, 31, 23), None],
                    pa.timestamp("ms"), "TIMESTAMP"),
    "timestamp_ms": (pa.timestamp("ms"), [at(1, 1, 1), at(9999, 12, 31), None], None, "TIMESTAMP"),
    "timestamp_us": (pa.timestamp("us"), [at(1, 1, 1), at(9999, 12, 31), None], None, "TIMESTAMP"),
    "timestamp_ns": (pa.timestamp("ns"), [at(1970, 1, 1, 0, 0, 0, 1), None], None, "TIMESTAMP_NS"),
    "utc_s": (pa.timestamp("s", "UTC"), [at(1969, 12, 31, zone=UTC), None],
              pa.timestamp("ms", "UTC"), "TIMESTAMP WITH TIME ZONE"),
    "utc_us": (pa.timestamp("us", "UTC"), [at(2020, 1, 1, zone=UTC), None], None,
               "TIMESTAMP WITH TIME ZONE"),
    "berlin": (pa.timestamp("us", "Europe/Berlin"), [at(2020, 7, 1, zone=UTC), None], None,
               "TIMESTAMP WITH TIME ZONE"),
    "offset": (pa.timestamp("ms", "+05:30"), [at(2020, 7, 1, zone=UTC), None], None,
               "TIMESTAMP WITH TIME ZONE"),
    "duration_s": (pa.duration("s"), [dt.timedelta(days=-1), dt.timedelta(seconds=1), None], None, "BIGINT"),
    "duration_ms": (pa.duration("ms"), [dt.timedelta(milliseconds=-1), None], None, "BIGINT"),
    "duration_us": (pa.duration("us"), [dt.timedelta(microseconds=-1), None], None, "BIGINT"),
    "duration_ns": (pa.duration("ns"), [dt.timedelta(microseconds=1), None], None, "BIGINT"),
    "decimal32": (pa.decimal32(9, 2), DECIMALS, pa.decimal128(9, 2), "DECIMAL(9,2)"),
    "decimal64": (pa.decimal64(18, 2), DECIMALS, pa.decimal128(18, 2), "DECIMAL(18,2)"),
    "decimal128": (pa.decimal128(38, 2), DECIMALS, None, "DECIMAL(38,2)"),
    "decimal_small": (pa.decimal128(9, 2), DECIMALS, None, "DECIMAL(9,2)"),
    "decimal256": (pa.decimal256(76, 2), DECIMALS, None, "DOUBLE"),
    "decimal256_small": (pa.decimal256(18, 2), DECIMALS, pa.decimal128(18, 2), "DECIMAL(18,2)"),
    "decimal_negative": (pa.decimal128(5, -2), [D("1.23E+4"), None], pa.decimal128(7, 0), "DECIMAL(7,0)"),
}


def stored(name):
    kind, _, other, _ = TYPES[name]
    return other or kind


def column(name):
    kind, values, _, _ = TYPES[name]
    return pa.array(values, kind)


def offsets(array):
    return pa.array([0, 1, 1, len(array)], pa.int32())


def shapes(array):
    """An array in each nested type, and in slices of them."""
    none = pa.nulls(1, array.type)
    struct = pa.StructArray.from_arrays([array], fields=[pa.field("a", array.type)])
    lists = pa.ListArray.from_arrays(offsets(array), array)
    keys = pa.array([str(index) for index in range(len(array))])
    padded = array if len(array) % 2 == 0 else pa.concat_arrays([array, none])
    yield "plain", array
    yield "slice", pa.concat_arrays([none, array, none]).slice(1, len(array))
    yield "list", lists
    yield "list_slice", lists.slice(1)
    yield "large_list", pa.LargeListArray.from_arrays(offsets(array).cast(pa.int64()), array)
    yield "fixed_list", pa.FixedSizeListArray.from_arrays(padded, 2)
    yield "map", pa.MapArray.from_arrays(offsets(array), keys, array)
    yield "struct", struct
    yield "deep", pa.ListArray.from_arrays(offsets(struct), struct)
    yield "list_view", pa.ListViewArray.from_arrays(
        pa.array([1, 0], pa.int32()), pa.array([len(array) - 1, 1], pa.int32()), array)
    yield "empty", array.slice(0, 0)
    yield "nulls", pa.nulls(2, array.type)


def encoded(name):
    """Dictionaries and runs of a type."""
    kind, values, _, _ = TYPES[name]
    array = pa.array(values, kind)
    if name != "null":
        for index in (pa.int8(), pa.uint32(), pa.int64()):
            keys = pa.array([None, *range(len(array))], index)
            yield f"dictionary_{index}", pa.DictionaryArray.from_arrays(keys, array, safe=False)
    ends = pa.array([2 * number + 2 for number in range(len(array))], pa.int32())
    yield "runs", pa.RunEndEncodedArray.from_arrays(ends, array)


def cases():
    for name in TYPES:
        for shape, array in shapes(column(name)):
            yield f"{name}__{shape}", array
        for shape, array in encoded(name):
            yield f"{name}__{shape}", array


def array(kind, *values):
    return pa.array(values, kind)


def categories(keys, values, index=pa.int8()):
    return pa.DictionaryArray.from_arrays(pa.array(keys, index), values)


def struct(**fields):
    return pa.StructArray.from_arrays(
        list(fields.values()), fields=[pa.field(name, value.type) for name, value in fields.items()])


def extension(kind, storage):
    return pa.ExtensionArray.from_storage(kind, storage)


TEXT, LARGE, INT = pa.string(), pa.large_string(), pa.int64()
NAMED = pa.struct([("d", pa.dictionary(pa.int8(), TEXT))])

# name: (batches, the column's type)
MERGED = {
    "null_text": ([array(pa.null(), None), array(TEXT, "x")], TEXT),
    "float_text": ([array(pa.float64(), None), array(TEXT, "x")], TEXT),
    "text_kinds": ([array(TEXT, "a"), array(LARGE, "b"), array(pa.string_view(), "c")], LARGE),
    "empty_list": ([array(pa.list_(INT), [1]), array(pa.list_(pa.null()), [])], pa.list_(INT)),
    "null_list": ([array(pa.list_(pa.null()), [None], None), array(pa.list_(TEXT), ["x"])], pa.list_(TEXT)),
    "null_field": ([struct(q=array(TEXT, "x")), struct(q=array(pa.null(), None))], pa.struct([("q", TEXT)])),
    "lacking_field": (
        [struct(q=array(TEXT, "x")), struct(q=array(TEXT, "y"), r=array(INT, 1))],
        {"q", "r"}),
    "null_deep": (
        [array(pa.list_(pa.struct([("a", pa.list_(pa.null()))])), [{"a": []}]),
         array(pa.list_(pa.struct([("a", pa.list_(INT))])), [{"a": [1, None]}])],
        pa.list_(pa.struct([("a", pa.list_(INT))]))),
    "null_map": (
        [array(pa.map_(TEXT, pa.null()), [("k", None)]), array(pa.map_(TEXT, INT), [("l", 1)])],
        pa.map_(TEXT, INT)),
    "many_categories": (
        [categories([0, 99], pa.array([str(n) for n in range(100)])),
         categories([0, 299], pa.array([str(n) for n in range(300)]), pa.int16())],
        TEXT),
    "other_categories": (
        [categories([0], array(TEXT, "a")), categories([0], array(TEXT, "b"))], TEXT),
    "categories_text": ([categories([0], array(TEXT, "a")), array(TEXT, "b")], TEXT),
    "no_categories": ([categories([None], array(TEXT)), array(TEXT, "b")], TEXT),
    # pyarrow puts index 0 of an empty dictionary below the null.
    "below_null": ([array(NAMED, {"d": "x"}), array(NAMED, None)], {"d"}),
    "below_null_deep": ([array(pa.list_(NAMED), [{"d": "x"}], [None]), array(pa.list_(NAMED), [None], None)], {"d"}),
    "below_null_fixed": (
        [array(pa.list_(NAMED.field(0).type, 2), ["x", "y"]), array(pa.list_(NAMED.field(0).type, 2), None)], {"d"}),
    "int_float": ([array(INT, 1), array(pa.float64(), 2.0, None)], pa.float64()),
    "int_half": ([array(INT, 1), array(pa.float64(), 1.5)], pa.float64()),
    "int_float32": ([array(INT, 16777217), array(pa.float32(), 1.5)], pa.float64()),
    "fixed_bytes": ([array(pa.binary(4), b"abcd", None), array(pa.binary(), b"ab")], pa.binary()),
    "fixed_sizes": ([array(pa.binary(3), b"abc"), array(pa.binary(2), b"ab")], pa.binary()),
    "large_fixed": ([array(pa.binary(3), b"abc"), array(pa.large_binary(), b"a")], pa.large_binary()),
    "empty_struct": ([array(pa.struct([]), {}, None), struct(a=array(INT, 1))], pa.struct([("a", INT)])),
    "empty_struct_deep": (
        [array(pa.list_(pa.struct([])), [{}, {}]), array(pa.list_(pa.struct([("a", TEXT)])), [{"a": "x"}])],
        pa.list_(pa.struct([("a", TEXT)]))),
    "empty_struct_null": (
        [array(pa.struct([])), array(pa.struct([("a", INT)])), pa.nulls(1)], pa.struct([("a", INT)])),
    "empty_struct_all_null": (
        [array(pa.struct([]), {}), array(pa.struct([("a", INT)]), None)], pa.struct([("a", INT)])),
    "json_text": ([extension(pa.json_(), array(TEXT, "{}")), array(TEXT, "no json")], TEXT),
    "bool8_int": ([extension(pa.bool8(), array(pa.int8(), 1)), array(pa.int16(), 300)], pa.int16()),
    "wide_decimals": ([array(pa.decimal128(38, 0), D(5)), array(pa.decimal128(38, 2), D("0.50"))],
                      pa.decimal128(38, 2)),
    "units": (
        [array(pa.timestamp("s", "UTC"), at(2020, 1, 1, zone=UTC)),
         array(pa.timestamp("us", "UTC"), at(2020, 1, 1, 0, 0, 0, 1, zone=UTC))],
        pa.timestamp("us", "UTC")),
    "decimals": ([array(pa.decimal128(5, 2), D("1.25")), array(pa.decimal128(4, 3), D("0.125"))],
                 pa.decimal128(6, 3)),
}


def below_null(values):
    """Lists of dictionaries beside views, of which a null one has values that are not its own."""
    texts = array(pa.string_view(), *(str(index) for index in range(len(values))))
    return pa.ListArray.from_arrays(
        pa.array([0, 1, 2, 3], pa.int32()), struct(a=values.dictionary_encode(), b=texts),
        mask=pa.array([False, True, False]))


# pyarrow corrupts dictionaries of half floats with NaN where it concatenates them.
MERGED["nan_below_null"] = ([below_null(array(pa.float16(), float("nan"), 1.5, 65504.0))], {"a"})


def below_nulls(inner):
    """A struct that may be null and has a field that may not."""
    return pa.struct([pa.field("a", inner, nullable=False)])


PAIR = pa.list_(pa.field("item", INT, nullable=False), 2)
# pyarrow cannot build arrays of extension types.
MARKS = pa.StructArray.from_arrays(
    [extension(pa.json_(), array(TEXT, "1", "2")), array(pa.string_view(), "a", "b")], names=["a", "b"])


def null_marks(*nulls):
    return pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), MARKS, mask=pa.array(nulls))


MERGED["fixed_list_below_null"] = ([array(below_nulls(PAIR), {"a": [1, 2]}, None)], None)
MERGED["fixed_list_two_below_null"] = (
    [array(below_nulls(below_nulls(PAIR)), {"a": {"a": [1, 2]}}, None)], None)
MERGED["null_lists_of_extensions"] = ([null_marks(True, True), null_marks(False, True)], None)


def merged():
    for name, (batches, kind) in MERGED.items():
        yield f"{name}__forth", batches, kind
        yield f"{name}__back", batches[::-1], kind


def ordered(keys, values, index=pa.int8()):
    return pa.DictionaryArray.from_arrays(pa.array(keys, index), values, ordered=True)


def marked(kind, array, **metadata):
    """A table of an array whose innermost dictionaries have metadata of Polars."""
    return pa.table([array], schema=pa.schema([pa.field("v", kind, metadata=metadata or None)]))


def categorical():
    """Tables with categories, of which readers must not get another order than the declared one."""
    sizes = array(TEXT, "low", "mid", "high")
    enum = pa.dictionary(pa.uint8(), LARGE, True)
    inner = pa.field("item", enum, metadata={"_PL_ENUM_VALUES2": "1;a1;b"})
    letters = ordered([1, 0], array(LARGE, "a", "b"), pa.uint8())
    yield "ordered", [marked(ordered([2, 0, 1], sizes).type, ordered([2, 0, 1], sizes))]
    yield "unordered", [pa.table({"v": categories([2, None, 0, 1], sizes)})]
    yield "numbers", [pa.table({"v": ordered([0, 1], array(INT, 3, 1, 2))})]
    yield "enum_grows", [
        marked(enum, ordered([0], array(LARGE, "a"), pa.uint8()), _PL_ENUM_VALUES2="1;a"),
        marked(enum, letters, _PL_ENUM_VALUES2="1;a1;b")]
    yield "enum_then_categories", [
        marked(enum, ordered([0], array(LARGE, "a"), pa.uint8()), _PL_ENUM_VALUES2="1;a"),
        marked(pa.dictionary(pa.uint32(), LARGE), categories([0], array(LARGE, "zzz"), pa.uint32()),
               _PL_CATEGORICAL2="0;0;u32;")]
    yield "enums_in_lists", [
        pa.table({"v": pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), letters, type=pa.list_(inner))})]
    yield "enums_in_structs", [pa.table({"v": pa.StructArray.from_arrays([letters], fields=[inner])})]
    yield "dictionaries_of_dictionaries", [
        pa.table({"v": categories([1, 0, 1], array(TEXT, "x", "y").dictionary_encode())})]


def frame(columns, index=(), levels=()):
    """A table of a data frame, as pandas gives it: {column: (array, pandas_type, numpy_type)}."""
    def entry(name, kind, numpy_kind):
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
    metadata = {
        "index_columns": list(index), "column_indexes": [entry(None, kind, kind) for kind in levels],
        "columns": [entry(name, *kinds) for name, (_, *kinds) in columns.items()],
        "creator": {"library": "pyarrow", "version": "26.0.0"}, "pandas_version": "3.0.0"}
    arrays = {name: values for name, (values, *_) in columns.items()}
    return pa.table(arrays, metadata={"pandas": json.dumps(metadata)})


IDS = ["_job_id", "_file_version_id"]
DOUBLE, KEY = ("float64", "float64"), (array(TEXT, "a", "b"), "unicode", "object")

# name: (tables, columns that pandas finds, index, values of the first column)
FRAMES = {
    "pivot": ([frame({"1": (array(pa.float64(), 1.5, 2.5), *DOUBLE), "k": KEY}, ["k"], ["int64"])],
              ["1", *IDS], ["a", "b"], [1.5, 2.5]),
    "levels": (
        [frame({"('v', 'sum')": (array(INT, 1, 2), "int64", "int64"), "k": KEY}, ["k"], ["unicode", "unicode"])],
        [("v", "sum"), *((name, "") for name in IDS)], ["a", "b"], [1, 2]),
    "category_index": (
        [frame({"v": (array(INT, 1, 2), "int64", "int64"),
                "k": (ordered([1, 0], array(TEXT, "a", "b")), "categorical", "int8")}, ["k"], ["unicode"])],
        ["v", *IDS], ["b", "a"], [1, 2]),
    "nullable": (
        [frame({"v": (array(INT, 1), "int64", "Int64")}), frame({"v": (array(pa.float64(), 1.5), *DOUBLE)})],
        ["v", *IDS], [0, 1], [1.0, 1.5]),
    "nullable_then_plain": (
        [frame({"v": (array(INT, 1), "int64", "Int64")}), pa.table({"v": [1.5]})],
        ["v", *IDS], [0, 1], [1.0, 1.5]),
    "no_json": ([pa.table({"v": [1]}, metadata={"pandas": "x"})], ["v", *IDS], [0], [1]),
}


def geo(crs, bounds):
    column = {"encoding": "WKB", "geometry_types": ["Point"], "bbox": bounds, "crs": crs}
    metadata = {"version": "1.1.0", "primary_column": "v", "columns": {"v": column}}
    return pa.table({"v": geometry()["v"]}, metadata={"geo": json.dumps(metadata)})


def with_field(kind, value, metadata):
    return pa.table([pa.array([value], kind)], schema=pa.schema([pa.field("v", kind, metadata=metadata)]))


def period(unit):
    return {"ARROW:extension:name": "pandas.period", "ARROW:extension:metadata": json.dumps({"freq": unit})}


def kept():
    """Tables whose metadata differs, and is merged."""
    yield "more_metadata", [pa.table({"v": [1]}, metadata={"k": "1", "l": "1"}),
                            pa.table({"v": [1]}, metadata={"k": "2", "m": "3"})]
    yield "bounds", [geo(None, [0, 0, 1, 1]), geo(None, [1, 2, 1, 2])]
    yield "field_metadata", [with_field(INT, 1, {"unit": "m", "PARQUET:field_id": "1"}),
                             with_field(INT, 1, {"note": "n", "PARQUET:field_id": "2"})]
    uuid = extension(pa.uuid(), array(pa.binary(16), b"0123456789abcdef"))
    yield "uuid_runs", [pa.table({"v": pa.RunEndEncodedArray.from_arrays([2], uuid)})]
    yield "geoarrow", [with_field(pa.binary(), geometry()["v"][0].as_py(), {
        "ARROW:extension:name": "geoarrow.wkb", "ARROW:extension:metadata": "{}"})]
    tensor = extension(pa.fixed_shape_tensor(INT, [2]), array(pa.list_(INT, 2), [1, 2]))
    yield "tensor", [pa.table({"v": tensor}), pa.table({"v": array(pa.list_(INT), [1, 2, 3])})]


POINT = b"\x01\x01\0\0\0" + b"\0" * 6 + b"\xf0\x3f" + b"\0" * 7 + b"\x40"
WKB = {"encoding": "WKB", "geometry_types": ["Point"]}
GEO = {"version": "1.1.0", "primary_column": "v", "columns": {"v": WKB}}
POINTS = pa.array([{"x": 1.0, "y": 2.0}])

# name: (column, metadata, DuckDB's type, whether the file has metadata of GeoParquet)
GEOS = {
    "valid": (array(pa.binary(), POINT), GEO, "GEOMETRY", True),
    "large": (array(pa.large_binary(), POINT), GEO, "GEOMETRY", True),
    "view": (array(pa.binary_view(), POINT), GEO, "GEOMETRY", True),
    "categories": (categories([0, 0], array(pa.binary(), POINT)), GEO, "GEOMETRY", True),
    "coordinates": (POINTS, {**GEO, "columns": {"v": {**WKB, "encoding": "point"}}}, "STRUCT", True),
    "no_geometry_types": (array(pa.binary(), POINT), {**GEO, "columns": {"v": {"encoding": "WKB"}}}, "GEOMETRY", True),
    "no_columns": (array(INT, 1), {"version": "1.0.0"}, "BIGINT", True),
    "text": (array(TEXT, "POINT (1 2)"), GEO, "VARCHAR", False),
    "text_view": (array(pa.string_view(), "POINT (1 2)"), GEO, "VARCHAR", False),
    "number": (array(INT, 1), GEO, "BIGINT", False),
    "fixed": (array(pa.binary(21), POINT), GEO, "BLOB", False),
    "struct": (POINTS, GEO, "STRUCT", False),
    "another_column": (
        array(pa.binary(), POINT), {**GEO, "primary_column": "w", "columns": {"w": WKB}}, "BLOB", False),
    "another_encoding": (array(TEXT, "POINT (1 2)"), {**GEO, "columns": {"v": {**WKB, "encoding": "WKT"}}}, "VARCHAR", False),
    "point_of_text": (array(TEXT, "POINT (1 2)"), {**GEO, "columns": {"v": {**WKB, "encoding": "point"}}}, "VARCHAR", False),
    "no_encoding": (array(pa.binary(), POINT), {**GEO, "columns": {"v": {"geometry_types": []}}}, "BLOB", False),
    "crs_of_text": (array(pa.binary(), POINT), {**GEO, "columns": {"v": {**WKB, "crs": "EPSG:4326"}}}, "BLOB", False),
    "null_entry": (array(pa.binary(), POINT), {**GEO, "columns": {"v": None}}, "BLOB", False),
    "no_version": (array(pa.binary(), POINT), {"columns": {"v": WKB}}, "BLOB", False),
    "list": (array(pa.binary(), POINT), [], "BLOB", False),
}


def refused(name):
    """Tables that fail the job, which names the column."""
    times = pa.array([86_400], pa.int32())
    invalid = pa.py_buffer(bytes([0, 0, 0, 0, 1, 0, 0, 0]))
    return {
        "unit": lambda: [with_field(INT, 1, {"unit": "m"}), with_field(INT, 1, {"unit": "km"})],
        "crs": lambda: [geo(None, [0, 0, 1, 1]), geo("EPSG:4326", [0, 0, 1, 1])],
        "period": lambda: [with_field(INT, 1, period("M")), with_field(INT, 1, period("D"))],
        "time": lambda: [pa.table({"v": times.view(pa.time32("s"))})],
        "nested_time": lambda: [pa.table({"v": struct(t=times.view(pa.time32("ms")).view(pa.time32("s")))})],
        "unnamed": lambda: [pa.table({"v": array(pa.struct([("a", pa.struct([("", INT)]))]), {"a": {"": 1}})})],
        "no_fields": lambda: [pa.table({"w": [1], "v": array(pa.struct([]), {})})] * 2,
        "utf8": lambda: [pa.table({"w": ["x"], "v": pa.Array.from_buffers(
            TEXT, 1, [None, invalid, pa.py_buffer(b"\xff")])})],
        "surrogate": lambda: [{"v\ud800": [1]}],
        "digits": lambda: [pa.table({"v": array(pa.decimal128(38, 0), D("1" * 38))}),
                           pa.table({"v": array(pa.decimal128(38, 2), D("0.50"))})],
        "far": lambda: [pa.table({"v": array(pa.timestamp("us"), dt.datetime(9999, 1, 1))}),
                        pa.table({"v": array(pa.timestamp("ns"), dt.datetime(2000, 1, 1))})],
        "extension": lambda: [with_field(TEXT, "x", {"ARROW:extension:name": "arrow.uuid"})],
        "extension_deep": lambda: [pa.table({"v": pa.ListArray.from_arrays(
            pa.array([0, 1], pa.int32()), pa.array([1]), type=pa.list_(pa.field(
                "item", INT, metadata={"ARROW:extension:name": "arrow.json"})))})],
        "dictionary": lambda: [pa.table({"w": ["x"], "v": categories([0], pa.Array.from_buffers(
            TEXT, 1, [None, invalid, pa.py_buffer(b"\xff")]))})],
        "large": lambda: [pa.table({"v": [2**53 + 1]}), pa.table({"v": [1.5]})],
        "large_back": lambda: [pa.table({"v": [1.5]}), pa.table({"v": [2**53 + 1]})],
    }[name]()


def geometry():
    """A point, as GeoParquet describes it."""
    geo = {"version": "1.1.0", "primary_column": "v",
           "columns": {"v": {"encoding": "WKB", "geometry_types": ["Point"]}}}
    point = b"\x01\x01\0\0\0" + b"\0" * 6 + b"\xf0\x3f" + b"\0" * 7 + b"\x40"
    return pa.table({"v": [point]}, metadata={"geo": json.dumps(geo)})


def extensions():
    name, metadata = "ARROW:extension:name", "ARROW:extension:metadata"
    fields = [
        pa.field("u", pa.binary(16), metadata={name: "arrow.uuid", metadata: ""}),
        pa.field("j", pa.string_view(), metadata={name: "arrow.json", metadata: ""}),
        pa.field("own", pa.int64(), metadata={name: "example.celsius", metadata: "x", "unit": "C"}),
    ]
    return pa.table([[bytes(range(16))], ['{"a": 1}'], [5]], schema=pa.schema(fields, {"by": "us"}))


def edges():
    """All types side by side, for a table of a database."""
    rows = max(len(values) for _, values, _, _ in TYPES.values())
    columns = {}
    for name, (kind, values, _, _) in TYPES.items():
        if not name.startswith("duration"):
            columns[name] = pa.array(values + [None] * (rows - len(values)), kind)
    return pa.table(columns)


class Handler:
    def configure(self, ctx, config):
        self.ctx = ctx

    def execute(self, path):
        group = open(path).read()
        if group == "types":
            for name, array in cases():
                self.ctx.publish(name, pa.table({"v": array}))
        elif group == "merged":
            for name, batches, _ in merged():
                for array in batches:
                    self.ctx.publish(name, pa.table({"v": array}))
        elif group == "readers":
            frames = ((name, tables) for name, (tables, *_) in FRAMES.items())
            for name, tables in [*categorical(), *frames, *kept()]:
                for table in tables:
                    self.ctx.publish(name, table)
        elif group.startswith("refused "):
            for table in refused(group.removeprefix("refused ")):
                self.ctx.publish("refused", table)
        elif group == "geo":
            for name, (column, metadata, *_) in GEOS.items():
                self.ctx.publish(f"geo_{name}", pa.table({"v": column}, metadata={"geo": json.dumps(metadata)}))
        elif group == "table":
            self.ctx.publish("table", edges())
        else:
            self.ctx.publish("geometry", geometry())
            self.ctx.publish("extensions", extensions())


def normal(value):
    """A value so that those of all readers are compared."""
    if isinstance(value, dict):
        return {key: normal(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [normal(inner) for inner in value]
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, dt.timedelta):
        return f"{value // dt.timedelta(microseconds=1)} us"
    if isinstance(value, decimal.Decimal):
        return str(value.normalize() if value else D(0))
    if isinstance(value, float) and value != value:
        return "nan"
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)


def read(reader, path):
    """Type and values of the column `v`."""
    if reader == "pyarrow":
        import pyarrow.parquet as pq
        table = pq.read_table(path, columns=["v"])
        return table.schema.field("v").type, table["v"].to_pylist()
    if reader == "duckdb":
        import duckdb
        found = duckdb.sql(f"SELECT v FROM read_parquet('{path}')")
        return str(found.types[0]), found.to_arrow_table()["v"].to_pylist()
    import polars as pl
    found = pl.read_parquet(path, columns=["v"])["v"]
    return found.dtype, found.to_list()


def nested(shape, kind):
    """The type of a shape, as it is stored."""
    item = pa.list_(kind)
    return {
        "list": item, "list_slice": item, "list_view": item,
        "large_list": pa.large_list(kind),
        "fixed_list": pa.list_(kind, 2),
        "map": pa.map_(pa.string(), kind),
        "struct": pa.struct([("a", kind)]),
        "deep": pa.list_(pa.struct([("a", kind)])),
    }.get(shape, kind)


class Report:
    def __init__(self):
        self.faults = 0

    def same(self, what, got, want):
        if got != want:
            self.faults += 1
            print(f"{what}: {got!r}, not {want!r}")


def expected(reader, name, values):
    """What a reader makes of values that Parquet has no type for, or no reader in full."""
    def each(value):
        if isinstance(value, list):
            return [each(inner) for inner in value]
        if isinstance(value, tuple):
            return tuple(each(inner) for inner in value)
        if isinstance(value, dict):
            return {key: each(inner) for key, inner in value.items()}
        if reader == "duckdb" and isinstance(value, dt.timedelta):
            unit = {"s": 10**6, "ms": 1000, "us": 1, "ns": 1}[name.split("_")[1]]
            number = value // dt.timedelta(microseconds=unit)
            return number * 1000 if name.startswith("duration_ns") else number
        if reader == "duckdb" and name == "decimal256" and isinstance(value, D):
            return float(value)
        return value
    return each(values)


def check_types(report, file):
    for case, array in cases():
        name, shape = case.split("__")
        for reader in ("pyarrow", "duckdb", "polars"):
            if reader == "polars" and name in ("offset", "decimal256"):
                # It has neither zones without a name nor decimals of more than 38 digits.
                continue
            kind, got = read(reader, file(case))
            want = normal(expected(reader, name, array.to_pylist()))
            if reader == "polars" and shape == "map":
                want = [None if value is None else dict(value) for value in want]
            report.same(f"{case}, {reader}", normal(got), want)
            if reader == "pyarrow":
                want = str(nested(shape, stored(name)))
                # pyarrow gives the entries of a map the column's name.
                report.same(f"{case}, type", str(kind).replace(" ('v')", ""), want)
            if reader == "duckdb" and shape == "plain":
                report.same(f"{case}, duckdb", kind, TYPES[name][3])


def check_merged(report, file):
    for name, batches, want in merged():
        values = [value for array in batches for value in array.to_pylist()]
        for reader in ("pyarrow", "duckdb", "polars"):
            kind, got = read(reader, file(name))
            expected = values
            if name.startswith("lacking_field"):
                expected = [{"q": value["q"], "r": value.get("r")} for value in values]
            if name.startswith(("empty_struct__", "empty_struct_all_null")):
                expected = [value if value is None else {"a": value.get("a")} for value in values]
            if name.startswith("empty_struct_deep"):
                expected = [[{"a": item.get("a")} for item in value] for value in values]
            if reader == "polars" and name.startswith("null_map"):
                expected = [dict(value) for value in values]
            report.same(f"{name}, {reader}", normal(got), normal(expected))
            if reader == "pyarrow" and isinstance(want, pa.DataType):
                report.same(f"{name}, type", str(kind).replace(" ('v')", ""), str(want))


def check_readers(report, file):
    import pandas as pd
    for name, tables in categorical():
        want = [value for table in tables for value in table["v"].to_pylist()]
        for reader in ("pyarrow", "duckdb", "polars"):
            report.same(f"{name}, {reader}", normal(read(reader, file(name))[1]), normal(want))
        found = pd.read_parquet(file(name))["v"]
        report.same(f"{name}, pandas", str(found.dtype) == "category", False)
        if not isinstance(want[0], (list, dict)):
            got = [value for value in found.sort_values() if value is not None and value == value]
            report.same(f"{name}, sorted", got, sorted(value for value in want if value is not None))
    for name, (_, columns, index, values) in FRAMES.items():
        found = pd.read_parquet(file(name))
        report.same(f"{name}, columns", list(found.columns), columns)
        report.same(f"{name}, index", list(found.index), index)
        report.same(f"{name}, values", list(found.iloc[:, 0]), values)


def check_kept(report, file):
    import pyarrow.parquet as pq
    metadata = pq.read_schema(file("more_metadata")).metadata
    report.same("metadata of all batches", {key: metadata.get(key) for key in (b"k", b"l", b"m")},
                {b"k": None, b"l": b"1", b"m": b"3"})
    column = json.loads(pq.read_schema(file("bounds")).metadata[b"geo"])["columns"]["v"]
    report.same("bounds that differ", column, {"encoding": "WKB", "geometry_types": ["Point"], "crs": None})
    field = pq.read_schema(file("field_metadata")).field("v").metadata
    report.same("metadata of a field", [field.get(b"unit"), field.get(b"note")], [b"m", b"n"])
    report.same("runs of a uuid", read("duckdb", file("uuid_runs"))[0], "UUID")
    report.same("geometry of GeoArrow", read("duckdb", file("geoarrow"))[0].split("(")[0], "GEOMETRY")
    report.same("a tensor and a list", read("pyarrow", file("tensor"))[1], [[1, 2], [1, 2, 3]])


def check_geo(report, file):
    import pyarrow.parquet as pq
    for name, (column, _, kind, has_geo) in GEOS.items():
        path = file(f"geo_{name}")
        report.same(f"geo of {name}", b"geo" in pq.read_metadata(path).metadata, has_geo)
        found, values = read("duckdb", path)
        report.same(f"{name}, duckdb", found.split("(")[0], kind)
        report.same(f"{name}, rows", len(values), len(column))
        for reader in ("pyarrow", "polars"):
            report.same(f"{name}, {reader}", normal(read(reader, path)[1]), normal(column.to_pylist()))


def check_metadata(report, file):
    import duckdb
    import pyarrow.parquet as pq
    footer = pq.read_metadata(file("geometry")).metadata
    report.same("geo in the footer", json.loads(footer[b"geo"])["primary_column"], "v")
    report.same("geometry", read("duckdb", file("geometry"))[0].startswith("GEOMETRY"), True)
    schema = pq.read_schema(file("extensions"))
    report.same("schema metadata", schema.metadata.get(b"by"), b"us")
    report.same("a uuid", str(schema.field("u").type), "extension<arrow.uuid>")
    report.same("json", str(schema.field("j").type), "extension<arrow.json>")
    own = schema.field("own").metadata or {}
    report.same("other field metadata", own.get(b"unit"), b"C")
    report.same("an unknown extension", own.get(b"ARROW:extension:name"), b"example.celsius")
    found = duckdb.sql(f"SELECT u, j FROM read_parquet('{file('extensions')}')")
    report.same("extensions, duckdb", [str(kind) for kind in found.types], ["UUID", "JSON"])
    report.same("the uuid", str(found.fetchall()[0][0]), "00010203-0405-0607-0809-0a0b0c0d0e0f")


def as_text(value):
    """A value as it is in a database."""
    if isinstance(value, dt.datetime):
        text = value.astimezone(UTC) if value.tzinfo else value
        return text.replace(tzinfo=None).isoformat() + ("+00:00" if value.tzinfo else "")
    if isinstance(value, dt.time):
        return value.isoformat().removesuffix("000")
    if isinstance(value, D):
        return format(value, "f")
    if isinstance(value, int) and value > 2**63 - 1:
        return str(value)
    return value.isoformat() if isinstance(value, dt.date) else value


def check_table(report, database):
    import sqlite3
    table, found = edges(), sqlite3.connect(database)
    for name in table.column_names:
        want = [as_text(value) for value in table[name].to_pylist()]
        got = [row[0] for row in found.execute(f"SELECT {name} FROM rows ORDER BY rowid")]
        report.same(f"{name}, sqlite", normal(got), normal(want))


def main(folder, database):
    import pathlib
    files = {}
    for path in pathlib.Path(folder).rglob("*.parquet"):
        if ".casparian" not in path.parts:
            files[path.parent.name.removeprefix("arrow_types_")] = str(path)
    report = Report()
    check_types(report, files.__getitem__)
    check_merged(report, files.__getitem__)
    check_readers(report, files.__getitem__)
    check_kept(report, files.__getitem__)
    check_geo(report, files.__getitem__)
    check_metadata(report, files.__getitem__)
    check_table(report, database)
    return report.faults


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)
