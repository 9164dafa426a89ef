"""Converts what a plugin may return, yield and publish to Arrow record batches of bounded size.

Concatenated with `shim.py` into one program. Nothing here uses the bridge. pyarrow is passed as an argument,
because the shim imports it only when there is output.

`parts` splits generators, iterators, lists and tuples into tables. `batches` converts one table, a piece at a
time. `Frames` converts batches to the types and metadata that the engine reads: view arrays become plain
arrays, because slices of views have whole buffers. `Frames.cut` splits batches by size.
"""

import collections.abc
import re
import sys

# Bytes of Arrow data that a frame should have, and limit above which it is split further.
FRAME_BYTES = 2 << 20
FRAME_BYTES_MAX = 2 * FRAME_BYTES
# Limit of rows in a frame. The worker refuses small batches with more than twice as many rows.
FRAME_ROWS_MAX = 8 << 20
# Bytes of a data frame that are converted to Arrow in one step.
CONVERT_BYTES = 32 << 20
# Rows of a DuckDB result that are fetched in one step: eight of its vectors.
FETCH_ROWS = 16_384
# Fewest and most rows of view arrays that are copied in one step.
VIEW_ROWS = (1024, 65_536)
# Types of DuckDB whose values Arrow represents exactly. Sinks refuse or convert those that files do not have.
DUCKDB_EXACT = frozenset((
    "null", "boolean", "tinyint", "smallint", "integer", "bigint", "hugeint", "utinyint", "usmallint", "uinteger",
    "ubigint", "float", "double", "decimal", "varchar", "blob", "uuid", "enum", "date", "time", "time_ns",
    "timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "timestamp with time zone", "timestamptz_ns",
    "interval", "geometry", "list", "array", "map", "struct", "tuple", "union"))
# Types of Arrow to which several types of DuckDB are converted, some of them with loss.
DUCKDB_AMBIGUOUS = re.compile(r"decimal128\(38, 0\)|time64\[us\]|binary")
# Integer types of Polars that Arrow does not have.
INT128 = ("Int128", "UInt128")
# Key in the metadata of a frame's schema. Its value is the topic to which the data was published.
TOPIC_KEY = b"casparian.topic"
# Limit of the nesting of lists and generators.
NESTING_MAX = 32
ACCEPTED = (
    "a plugin's output must be a pandas DataFrame, a Polars DataFrame or LazyFrame, a pyarrow Table,"
    " RecordBatch or RecordBatchReader, a DuckDB relation, a dict of columns, a list of dicts (rows), a"
    " numpy structured array, a Series or Arrow array of structs, another object with __arrow_c_stream__ or"
    " __arrow_c_array__, None, or a generator, iterator, list or tuple of these"
)


class Rows(list):
    """A list of dicts, of which each is a row."""


def is_of(value, module, *names):
    """True for an instance of one of these classes of a module. The module is not imported for that."""
    module = sys.modules.get(module)
    kinds = [getattr(module, name, None) for name in names]
    return isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type)))


def has_batches(value):
    """True for results that return their batches one at a time: relations of DuckDB, cursors of ADBC,
    datasets and scanners of pyarrow."""
    names = ("to_arrow_reader", "fetch_record_batch", "fetch_arrow_reader")
    return (any(callable(getattr(value, name, None)) for name in names)
            or is_of(value, "pyarrow.dataset", "Dataset", "Scanner"))


def is_table(value):
    """True for a value that is one table, even if it can be iterated."""
    if isinstance(value, type):
        return False
    return (
        isinstance(value, (collections.abc.Mapping, Rows))
        or is_of(value, "pyarrow", "Table", "RecordBatch", "RecordBatchReader")
        or is_of(value, "pandas", "DataFrame")
        or is_of(value, "polars", "DataFrame", "LazyFrame")
        or is_of(value, "numpy", "ndarray", "void") and value.dtype.names is not None
        or has_batches(value)
        or is_series(value)
        or hasattr(value, "__arrow_c_stream__")
        or hasattr(value, "__arrow_c_array__")
    )


def parts(value, depth=0):
    """The tables in a plugin's output, each as soon as it is produced."""
    if value is None:
        return
    if is_table(value):
        yield value
        return
    is_rows = isinstance(value, list) and any(
        isinstance(item, collections.abc.Mapping) for item in value)
    if is_rows:
        rows = Rows(item for item in value if item is not None)
        other = next((row for row in rows if not isinstance(row, collections.abc.Mapping)), None)
        if other is not None:
            raise TypeError(
                "a list of dicts is one table with a row for each; this one also has a"
                f" {kind_of(other)}: return or yield tables apart from rows")
        yield rows
        return
    single = (str, bytes, bytearray, memoryview)
    if (isinstance(value, single) or is_of(value, "pandas", "Index")
            or is_of(value, "polars", "Expr") or is_of(value, "numpy", "ndarray", "generic")
            or isinstance(value, type) or not hasattr(value, "__iter__")):
        raise not_accepted(value)
    if depth == NESTING_MAX:
        raise TypeError(f"a plugin's output has lists or generators within each other more than {depth} deep")
    values = iter(value)
    while True:
        try:
            item = next(values)
        except StopIteration as end:
            # The value of `return` in a generator. Values that are not output, as a count or status, are
            # ignored.
            if is_output(end.value):
                yield from parts(end.value, depth + 1)
            return
        yield from parts(item, depth + 1)


def is_output(value):
    """True for a table, and for a list or iterator of tables."""
    if isinstance(value, (list, tuple)):
        return any(isinstance(item, collections.abc.Mapping) or is_output(item) for item in value)
    if type(value) is dict:
        return all(hasattr(column, "__len__") and not isinstance(column, (str, bytes)) for column in value.values())
    return is_table(value) or hasattr(value, "__next__")


def not_accepted(value, error=None):
    reason = "" if error is None else f" ({error})"
    return TypeError(f"{kind_of(value)} is not accepted{reason}: {ACCEPTED}")


def kind_of(value):
    kind = type(value)
    return in_module(module_of(kind), kind.__name__)


def module_of(kind):
    """The name of a class's module, read without the class's metaclass. Empty where the class has none, as in
    code that is run without `__name__`."""
    try:
        module = type.__dict__["__module__"].__get__(kind)
    except AttributeError:
        return ""
    return module if isinstance(module, str) else ""


def in_module(module, name):
    return name if module in ("", "builtins") else f"{module}.{name}"


def batches(value, pa):
    """The record batches of a table, at least one if the table has columns."""
    has_rows = False
    last = None
    for last in raw_batches(value, pa):
        if last.num_rows > 0 and last.num_columns > 0:
            has_rows = True
            yield last
    if not has_rows and last.num_columns > 0:
        yield last


def raw_batches(value, pa):
    """The batches of a table as they are, and at the end an empty one with its schema."""
    if isinstance(value, pa.RecordBatch):
        yield value
        yield value.slice(0, 0)
    elif isinstance(value, (pa.Table, pa.RecordBatchReader)):
        last = None
        for last in value.to_batches() if isinstance(value, pa.Table) else value:
            yield last
        # The empty batch is created only if there is no other: pyarrow cannot create it for all types.
        yield empty_batch(value.schema, pa) if last is None else last.slice(0, 0)
    elif is_of(value, "pandas", "DataFrame"):
        yield from raw_batches(of_pandas(value, pa), pa)
    elif is_of(value, "polars", "LazyFrame"):
        yield from of_lazy(value, pa)
    elif is_of(value, "polars", "DataFrame"):
        yield from of_polars(value, pa)
        yield from of_polars(value.clear(), pa)
    elif isinstance(value, Rows):
        yield from raw_batches(of_rows(value, pa), pa)
    elif isinstance(value, collections.abc.Mapping):
        yield from raw_batches(of_columns(value, pa), pa)
    elif is_of(value, "numpy", "ndarray", "void"):
        yield from of_numpy(value, pa)
    elif has_batches(value):
        yield from raw_batches(reader_of(value), pa)
    elif is_series(value):
        yield from raw_batches(of_structs(value, pa), pa)
    else:
        yield from of_capsule(value, pa)


def compute():
    """Imported only where it is needed: the import takes as long as that of pyarrow itself."""
    import pyarrow.compute

    return pyarrow.compute


def empty_batch(schema, pa):
    arrays = [pa.nulls(0, field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def reader_of(value):
    """A reader of a result that returns its batches one at a time. The Arrow stream of a relation would
    collect its whole result."""
    if is_of(value, "pyarrow.dataset", "Dataset"):
        value = value.scanner()
    if is_of(value, "pyarrow.dataset", "Scanner"):
        return value.to_reader()
    if is_of(value, "duckdb", "DuckDBPyRelation", "DuckDBPyConnection"):
        return duckdb_reader(value)
    fetch = getattr(value, "to_arrow_reader", None)
    if callable(fetch):
        return fetch(FETCH_ROWS)
    fetch = getattr(value, "fetch_record_batch", None) or value.fetch_arrow_reader
    return fetch()


def duckdb_reader(result):
    columns = duckdb_columns(result)
    for name, kind in columns:
        if kind is not None:
            check_duckdb(name, kind)
    names = ("to_arrow_reader", "fetch_record_batch", "fetch_arrow_reader")
    fetch = next(filter(callable, (getattr(result, name, None) for name in names)))
    without_result = TypeError(
        "a DuckDB connection without a result: it has one for the last `execute` alone, until that is fetched;"
        " return relations (`connection.sql(query)`)")
    try:
        reader = fetch(FETCH_ROWS)
    except Exception as error:
        if "No open result set" in str(error):
            raise without_result from error
        raise
    if reader is None:
        raise without_result
    for (name, kind), field in zip(columns, reader.schema):
        if kind is None and DUCKDB_AMBIGUOUS.search(str(field.type)):
            raise TypeError(
                f"column {name!r}: this version of DuckDB does not give the types of a connection's result, and"
                f" not all types that become {field.type} keep their values: return a relation"
                " (`connection.sql(query)`)")
    return reader


def duckdb_columns(result):
    """Names and types of a result's columns. Releases before 1.4 have only the types of relations."""
    if is_of(result, "duckdb", "DuckDBPyRelation"):
        return list(zip(result.columns, result.types))
    return [(name, kind if hasattr(kind, "id") else None) for name, kind, *_ in result.description or ()]


def check_duckdb(name, kind):
    """Refuses types of DuckDB that Arrow may not represent exactly: some are converted without their time
    zones, to integers that wrap around, or to raw bytes."""
    kinds = [kind]
    while kinds:
        kind = kinds.pop()
        # In earlier releases GEOMETRY is an alias of BLOB, with a format of DuckDB's own.
        if kind.id not in DUCKDB_EXACT or kind.id == "blob" and str(kind) == "GEOMETRY":
            raise duckdb_error(name, str(kind))
        if kind.id == "map" and kind.children[0][1].id == "null":
            # Keys of maps cannot be null.
            raise duckdb_error(name, str(kind))
        if kind.id in ("list", "array", "map", "struct", "tuple", "union"):
            kinds.extend(child for _, child in kind.children if hasattr(child, "id"))


def duckdb_error(name, kind):
    identifier = '"{}"'.format(name.replace('"', '""'))
    return TypeError(
        f"column {name!r}: Arrow does not have DuckDB's type {kind}: cast it in the query, as with"
        f" CAST({identifier} AS VARCHAR)")


def is_series(value):
    """True for an array or a series. It is a table if its values are structs."""
    return (is_of(value, "pyarrow", "Array", "ChunkedArray") or is_of(value, "pandas", "Series")
            or is_of(value, "polars", "Series"))


def of_structs(value, pa):
    """The table of the fields of structs, and of the named levels of a pandas index. A null struct becomes a
    row of nulls, as in `pyarrow.Table.from_struct_array`."""
    try:
        if is_of(value, "pandas", "Series"):
            table = of_pandas(value.to_frame("structs"), pa)
        else:
            table = pa.table([array_of("structs", value, pa)], names=["structs"])
    except Exception as error:
        raise not_accepted(value, error) from error
    structs, levels = table.column(0), table.columns[1:]
    if not pa.types.is_struct(structs.type):
        raise not_accepted(value)
    fields = [structs.type.field(index) for index in range(structs.type.num_fields)]
    if structs.null_count:
        fields = [field.with_nullable(True) for field in fields]
    schema = pa.schema(fields + list(table.schema)[1:])
    return pa.Table.from_arrays(structs.flatten() + levels, schema=schema)


def of_capsule(value, pa):
    """The batches of an object with Arrow's C data interface."""
    table = None
    try:
        if not hasattr(value, "__arrow_c_stream__"):
            table = pa.record_batch(value)
        elif hasattr(pa.RecordBatchReader, "from_stream"):
            table = pa.RecordBatchReader.from_stream(value)
        else:
            table = pa.table(value)
        yield from raw_batches(table, pa)
    except (TypeError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        if "null count" in str(error):
            # A batch has no null rows.
            raise not_accepted(value, "a row of its structs is null") from error
        if table is not None:
            raise
        raise not_accepted(value, error) from error


def of_polars(frame, pa):
    """Converts a Polars frame. Polars' strings are views; Polars itself converts them to plain strings."""
    size = max(1, frame.estimated_size())
    rows = max(1024, CONVERT_BYTES * frame.height // size)
    for piece in frame.iter_slices(rows) if frame.height else [frame]:
        try:
            table = polars_table(piece)
        except Exception as error:
            for name in piece.columns:
                try:
                    polars_table(piece.select(name))
                except Exception as cause:
                    raise column_error(name, cause) from cause
            raise error
        yield from table.to_batches() if piece.height else [empty_batch(table.schema, pa)]


def has_int128(kind):
    """True if a type of Polars, or one nested in it, is a 128-bit integer."""
    kinds = [kind]
    while kinds:
        kind = kinds.pop()
        if str(kind) in INT128:
            return True
        kinds.extend(field.dtype for field in getattr(kind, "fields", ()))
        inner = getattr(kind, "inner", None)
        kinds.extend([] if inner is None else [inner])
    return False


def polars_table(frame):
    polars = sys.modules["polars"]
    if polars.Object in frame.dtypes:
        # Polars would convert them to memory addresses.
        raise TypeError("it has Python objects, which Arrow does not have")
    frame = frame.with_columns(
        polars.col(name).cast(polars.Decimal(38, 0)) for name, kind in frame.schema.items()
        if str(kind) in INT128)
    if any(has_int128(kind) for kind in frame.dtypes):
        raise TypeError("it has integers of 128 bits in lists or structs: cast them, as to pl.Decimal(38, 0)")
    level = getattr(polars, "CompatLevel", None)
    return frame.to_arrow() if level is None else frame.to_arrow(compat_level=level.oldest())


def of_lazy(frame, pa):
    """Converts a LazyFrame, batch by batch where Polars supports that."""
    if hasattr(frame, "collect_batches"):
        for piece in frame.collect_batches(maintain_order=True):
            yield from of_polars(piece, pa)
        yield from of_polars(frame.limit(0).collect(), pa)
    else:
        yield from raw_batches(frame.collect(), pa)


def of_pandas(frame, pa):
    """Converts a pandas frame. Levels of the index become columns only if they have names."""
    names = list(frame.index.names)
    unnamed = [level for level, name in enumerate(names) if name is None]
    if unnamed and len(unnamed) < len(names):
        frame = frame.droplevel(unnamed)
    keeps = len(unnamed) < len(names)
    if keeps:
        frame = without_copies(frame)
        keeps = any(name is not None for name in frame.index.names)
    try:
        frame = dense(frame)
        exact = exact_columns(frame, pa)
        frame = without_values(frame, exact)
        # geopandas has its own conversion, which keeps the coordinate system.
        if is_of(frame, "geopandas", "GeoDataFrame") and hasattr(frame, "to_arrow"):
            table = pa.table(frame.to_arrow(index=keeps))
        else:
            table = pa.Table.from_pandas(frame, preserve_index=keeps)
        for index, array in exact.items():
            table = table.set_column(index, table.schema.field(index).with_type(array.type), array)
        for index, field in enumerate(table.schema):
            if is_grouped(field.type, pa):
                array = plain_groups(table.column(index), pa)
                table = table.set_column(index, field.with_type(array.type), array)
        return table
    except Exception as error:
        for index, name in enumerate(frame.columns):
            check_text(name)
            array_of(name, frame.iloc[:, index], pa)
        for name in frame.index.names if keeps else ():
            array_of(name, frame.index.get_level_values(name), pa)
        raise error


def exact_columns(frame, pa):
    """The columns that pandas would convert with loss, or not at all, as arrays by their positions."""
    exact = {}
    for index, name in enumerate(frame.columns):
        array = named(name, exact_array, frame.iloc[:, index], pa)
        if array is not None:
            exact[index] = array
    for name in frame.index.names:
        level = None if name is None else frame.index.get_level_values(name)
        if level is not None and named(name, exact_array, level, pa) is not None:
            what = (f"the pandas type {level.dtype}, which has no conversion to Arrow (`__arrow_array__`)"
                    if is_unconverted(level.dtype) else "nanoseconds, masked values, or NaN that is no `float`")
            raise ValueError(f"level {name!r} of the index has {what}: make it a column (`reset_index`)")
    return exact


def exact_array(values, pa):
    """The array of a series or an index whose values pandas would convert with loss, or not at all."""
    if is_unconverted(values.dtype):
        return array_of_values(list(values), pa, True)
    # Categories are checked as values are.
    categories = getattr(values.dtype, "categories", None)
    checked = values if categories is None else categories
    if not is_object(checked):
        check_dtype(checked.dtype)
        return None
    exact = Exact(checked, True)
    return array_of_values(values.astype(object), pa, True) if exact.paths or exact.rewrites else None


def is_grouped(kind, pa):
    """True for categories that are intervals of integers."""
    values = kind.value_type if pa.types.is_dictionary(kind) else None
    return (getattr(values, "extension_name", None) == "pandas.interval"
            and pa.types.is_integer(values.storage_type.field(0).type))


def plain_groups(array, pa):
    """Categories that are intervals of integers, as structs if values are missing. pandas would read missing
    intervals of integers as other intervals."""
    if array.null_count == 0:
        return array
    plain = [pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.storage, ordered=chunk.type.ordered)
             for chunk in (array.chunks if isinstance(array, pa.ChunkedArray) else [array])]
    return pa.chunked_array(plain)


def is_unconverted(dtype):
    """True for a type of pandas that neither pyarrow nor its own arrays convert to Arrow."""
    if (not is_of(dtype, "pandas.api.extensions", "ExtensionDtype")
            or is_of(dtype, "pandas", "CategoricalDtype", "DatetimeTZDtype", "SparseDtype")):
        return False
    return not hasattr(dtype.construct_array_type(), "__arrow_array__")


def check_dtype(dtype):
    """Refuses types of numpy that Arrow does not have."""
    if is_of(dtype, "numpy", "dtype") and dtype.kind == "c":
        Exact([sample_of(dtype)])


def is_sparse(dtype):
    return is_of(dtype, "pandas", "SparseDtype")


def dense(frame):
    """A frame without what pyarrow does not accept: sparse values, and values in the other byte order."""
    index = frame.index
    if index.nlevels == 1:
        index = plain_values(index)
    elif any(map(is_foreign, index.dtypes)):
        index = index.set_levels(list(map(plain_values, index.levels)))
    positions = [position for position, dtype in enumerate(frame.dtypes) if is_foreign(dtype)]
    if positions or index is not frame.index:
        frame = frame.copy(deep=False)
        for position in positions:
            frame.isetitem(position, plain_values(frame.iloc[:, position]))
        frame.index = index
    return frame


def is_foreign(dtype):
    return is_sparse(dtype) or is_swapped(dtype)


def plain_values(values):
    """A series or an index that is neither sparse nor in the other byte order."""
    if is_sparse(values.dtype):
        pandas = sys.modules["pandas"]
        plain = values.array.to_dense()
        if is_of(values, "pandas", "Index"):
            values = pandas.Index(plain, dtype=plain.dtype, name=values.name)
        else:
            values = pandas.Series(plain, values.index, plain.dtype, values.name)
    return native(values)


def native(values):
    return values.astype(values.dtype.newbyteorder("=")) if is_swapped(values.dtype) else values


def is_swapped(dtype):
    """True for a numpy type whose byte order is not that of this machine."""
    return module_of(type(dtype)).split(".")[0] == "numpy" and not dtype.isnative


def without_values(frame, indexes):
    """A frame with None in the columns at these positions, so that pandas does not convert them."""
    frame = frame.copy(deep=False) if indexes else frame
    for index in indexes:
        frame.isetitem(index, None)
    return frame


def without_copies(frame):
    """Removes levels of the index that repeat the column with their name, because pyarrow would rename
    them."""
    for name in list(frame.index.names):
        if name not in list(frame.columns):
            continue
        column = frame[name]
        level = frame.index.get_level_values(name)
        if getattr(column, "ndim", 2) != 1 or not level.equals(sys.modules["pandas"].Index(column)):
            raise ValueError(
                f"a level of the index is named {name!r}, and so is a column with other values: rename one")
        is_single = frame.index.nlevels == 1
        frame = frame.reset_index(drop=True) if is_single else frame.droplevel(name)
    return frame


def of_columns(columns, pa):
    """Converts a dict of columns to a table."""
    arrays, names = [], []
    for name, values in columns.items():
        check_name(name)
        if not is_column(values):
            raise TypeError(
                f"column {name!r} is a {kind_of(values)}, not a list or an array: a dict is a table of"
                " columns; for rows return a list of dicts, for several tables use ctx.publish")
        arrays.append(array_of(name, values, pa))
        names.append(name)
    lengths = {name: len(array) for name, array in zip(names, arrays)}
    if len(set(lengths.values())) > 1:
        listed = list(lengths.items())
        name, length = listed[0]
        other, size = next(item for item in listed if item[1] != length)
        raise ValueError(
            f"the columns of a dict must have equal lengths: column {name!r} has {length} values, column"
            f" {other!r} has {size}")
    return pa.table(arrays, names=names)


def is_column(values):
    frames = (
        is_of(values, "pandas", "DataFrame") or is_of(values, "polars", "DataFrame", "LazyFrame")
        or is_of(values, "pyarrow", "Table", "RecordBatch", "RecordBatchReader"))
    # Sets are refused because they have no order.
    single = (str, bytes, collections.abc.Mapping, collections.abc.Set)
    return not frames and not isinstance(values, single) and hasattr(values, "__iter__")


def of_rows(rows, pa):
    """Converts a list of dicts to a table. It has the keys of all dicts, in order of first occurrence."""
    names = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    for name in names:
        check_name(name)
    arrays = [array_of(name, [row.get(name) for row in rows], pa) for name in names]
    return pa.table(arrays, names=list(names))


def check_name(name):
    if not isinstance(name, str):
        raise TypeError(f"the name of a column must be a string, not {name!r} ({kind_of(name)})")
    check_text(name)


def check_text(name):
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"column {name!r}: its name has characters that UTF-8 does not have ({error.reason}); rename it"
        ) from error


def array_of(name, values, pa):
    try:
        if is_of(values, "polars", "Series"):
            return polars_table(values.alias(name).to_frame()).column(0)
        if isinstance(values, (pa.Array, pa.ChunkedArray)):
            return values
        if is_of(values, "numpy", "ndarray"):
            return of_ndarray(values, pa)
        if is_of(values, "pandas.api.extensions", "ExtensionArray"):
            values = sys.modules["pandas"].Series(values)
        if is_of(values, "pandas", "Series", "Index"):
            values = plain_values(values)
            array = exact_array(values, pa)
            return of_series(values, pa) if array is None else array
        if hasattr(values, "__arrow_array__"):
            return pa.array(values, from_pandas=True)
        return array_of_values(values if isinstance(values, (list, tuple)) else list(values), pa)
    except Exception as error:
        raise column_error(name, error) from error


def of_series(values, pa):
    try:
        array = pa.array(values, from_pandas=True)
        return plain_groups(array, pa) if is_grouped(array.type, pa) else array
    except Exception as error:
        if isinstance(error, UnicodeError) or not is_of(values.dtype, "pandas.api.extensions", "ExtensionDtype"):
            raise
        raise TypeError(
            f"pandas does not convert its type {values.dtype} to Arrow ({error}): give it as another type") from error


def named(name, function, *arguments):
    """Returns the result of a function for a column. An error is raised with the column's name."""
    try:
        return function(*arguments)
    except Exception as error:
        raise column_error(name, error) from error


def column_error(name, error):
    """An error that names the column. What pyarrow adds about the column is left out."""
    if isinstance(error, UnicodeError):
        return ValueError(f"column {name!r}: a text that UTF-8 does not have ({error}): replace its surrogates,"
                          " as with `text.encode('utf-8', 'replace').decode()`")
    if isinstance(error, OverflowError) and "int too large" in str(error):
        return ValueError(f"column {name!r}: it has an integer that is out of the range of 64 bits with a sign"
                          " (int64): give decimal.Decimal, text, or a numpy array of uint64")
    text = error.args[0] if error.args else error
    if type(error).__module__ == "pyarrow.lib":
        return ValueError(f"column {name!r}: pyarrow does not convert its values ({text}): give a pyarrow array of the"
                          " type that they should have (`pa.array(values, type)`), or text (`str(value)`)")
    return ValueError(f"column {name!r}: {text}")


def of_numpy(array, pa):
    """The batches of a structured array. Large arrays may be memory-mapped files, so it is converted in
    pieces."""
    array = array.reshape(1) if array.ndim == 0 else array
    if array.ndim != 1:
        raise TypeError(f"a structured array must have one dimension, not {array.ndim}")
    rows = len(array) or 1
    if not array.dtype.hasobject:
        rows = max(1, CONVERT_BYTES // max(1, array.dtype.itemsize))
    for start in range(0, len(array), rows):
        yield of_fields(array[start:start + rows], pa)
    yield of_fields(array[:0], pa)


def of_fields(array, pa):
    arrays = [of_field(name, array, pa) for name in array.dtype.names]
    return pa.RecordBatch.from_arrays(arrays, names=list(array.dtype.names))


def of_field(name, array, pa):
    try:
        return of_ndarray(array[name], pa)
    except Exception as error:
        raise column_error(name, error) from error


def of_ndarray(array, pa):
    """Converts a numpy array to an Arrow array. Further dimensions become lists of a fixed size."""
    if array.ndim > 1:
        if module_of(type(array)) == "numpy.ma":
            raise TypeError("a masked array must have one dimension")
        inner = 1
        for length in array.shape[1:]:
            inner *= length
        if inner == 0:
            raise TypeError(f"an array of the shape {array.shape} has no values")
        values = of_ndarray(array.reshape(len(array) * inner), pa)
        for length in reversed(array.shape[1:]):
            values = pa.FixedSizeListArray.from_arrays(values, length)
        return values
    if array.dtype.names is not None:
        fields = [of_ndarray(array[name], pa) for name in array.dtype.names]
        return pa.StructArray.from_arrays(fields, names=list(array.dtype.names))
    array = native(array)
    if array.dtype.kind in "SU":
        return of_texts(array, pa)
    if array.dtype.kind == "O":
        return array_of_values(with_none(array) if is_masked(type(array)) else array, pa)
    # Days are supported in an array, and are refused as single values (`Exact`).
    if array.dtype.str[1:] != "M8[D]":
        Exact([sample_of(array.dtype)])
    return pa.array(array)


class Frames:
    """Converts batches of one schema to batches that the engine reads."""

    def __init__(self, schema, pa, topic, warn):
        self.pa = pa
        self.warn = warn
        fields = [self.named(field.name, self.plain_field, field, field.name) for field in schema]
        metadata = self.metadata(schema.metadata, "the schema")
        # Data that was read from a file may have this key in its metadata.
        if metadata.pop(TOPIC_KEY, None) is not None:
            self.warn(f"metadata {TOPIC_KEY!r} of the schema was left out: `ctx.publish` chooses the topic")
        if topic is not None:
            metadata[TOPIC_KEY] = topic.encode()
        self.schema = pa.schema(fields, metadata=metadata or None)
        self.views = [self.has(field.type, self.is_view) for field in schema]
        self.dictionaries = [self.has(field.type, pa.types.is_dictionary) for field in schema]
        self.below = [has and not pa.types.is_dictionary(field.type)
                      for has, field in zip(self.dictionaries, schema)]
        self.changed = [new.type != old.type for new, old in zip(fields, schema)]
        self.is_same = all(new.equals(old, check_metadata=True) for new, old in zip(fields, schema))

    def of(self, batch):
        """The pieces of a batch, each of which is sent as one frame."""
        if any(self.views):
            least, most = VIEW_ROWS
            rows = FRAME_BYTES * batch.num_rows // max(1, batch.nbytes)
            rows = min(max(least, rows), most)
        else:
            rows = min(max(1, batch.num_rows), FRAME_ROWS_MAX)
        for start in range(0, max(1, batch.num_rows), rows):
            piece = batch.slice(start, rows)
            if any(self.below):
                columns = piece.columns
                arrays = [self.named(field.name, self.checked, array) if below else array
                          for field, array, below in zip(piece.schema, columns, self.below)]
                if any(new is not old for new, old in zip(arrays, columns)):
                    piece = self.pa.RecordBatch.from_arrays(arrays, schema=piece.schema)
            if self.is_same:
                # The batch is not rebuilt, because that refuses some arrays that pyarrow itself has created.
                yield from self.cut(piece.replace_schema_metadata(self.schema.metadata))
                continue
            arrays = [
                self.named(field.name, self.plain, array, field.type, array.type) if changed else array
                for array, field, changed in zip(piece.columns, self.schema, self.changed)]
            yield from self.cut(self.pa.RecordBatch.from_arrays(arrays, schema=self.schema))

    def checked(self, array):
        """The array. If it is invalid, dictionary indices in rows below a null are set to null: pyarrow
        writes indices 0 of empty dictionaries there."""
        try:
            array.validate(full=True)
            return array
        except self.pa.ArrowInvalid:
            return self.plain(array, array.type, array.type)

    def cut(self, batch):
        """Splits a batch into pieces that are small or have one row."""
        rows, size = batch.num_rows, batch.nbytes
        if rows <= 1 or size <= FRAME_BYTES_MAX:
            yield batch
            return
        step = max(1, min((rows + 1) // 2, FRAME_BYTES * rows // size))
        for start in range(0, rows, step):
            piece = batch.slice(start, step)
            if any(self.dictionaries):
                # Each frame contains its dictionaries, so they are reduced to the values that its rows use.
                arrays = [
                    self.named(field.name, self.plain, array, array.type, array.type, True) if has else array
                    for array, field, has in zip(piece.columns, self.schema, self.dictionaries)]
                piece = self.pa.RecordBatch.from_arrays(arrays, schema=self.schema)
            yield from self.cut(piece)

    def named(self, column, function, *arguments):
        """Returns the result of a function for a column. An error is raised with the column's name."""
        try:
            return function(*arguments)
        except Exception as error:
            if isinstance(error, MemoryError) or str(error).startswith("column "):
                raise
            reason = str(error).rstrip(".")
            raise ValueError(f"column {column!r}: {reason}; give it as another type") from error

    def metadata(self, metadata, of):
        """The entries that the engine can read: those in UTF-8."""
        kept = {}
        for key, value in (metadata or {}).items():
            try:
                key.decode()
                value.decode()
                kept[key] = value
            except UnicodeDecodeError:
                self.warn(f"metadata {key!r} of {of} is not UTF-8 and was left out")
        return kept

    def plain_field(self, field, column):
        kept = self.metadata(field.metadata, f"column {column!r}")
        storage, extension = self.plain_extension(field.type, column)
        kept.update(extension)
        return self.pa.field(field.name, storage, field.nullable, kept or None)

    def plain_extension(self, kind, column):
        """The type as it is sent, and metadata for its field. An extension type whose storage type changes is
        sent as its storage, with the metadata that names it. Opaque types of DuckDB are refused, because
        DuckDB itself does not read their bytes as that type."""
        pa = self.pa
        if not isinstance(kind, pa.BaseExtensionType):
            return self.plain_type(kind, column), {}
        if kind.extension_name == "arrow.opaque" and getattr(kind, "vendor_name", None) == "DuckDB":
            raise duckdb_error(column, kind.type_name.upper())
        storage = self.plain_type(kind.storage_type, column)
        try:
            data = kind.__arrow_ext_serialize__()
        except (AttributeError, NotImplementedError):
            data = b""
        try:
            data.decode()
        except UnicodeDecodeError:
            self.warn(f"the extension type of column {column!r} has metadata that is not UTF-8 and was left out")
            return storage, {}
        if storage == kind.storage_type:
            return kind, {}
        return storage, {
            b"ARROW:extension:name": kind.extension_name.encode(), b"ARROW:extension:metadata": data}

    def plain_type(self, kind, column):
        pa, types = self.pa, self.pa.types
        inner = lambda field: self.plain_field(field, column)
        if self.is_of(kind, "is_string_view"):
            return pa.large_string()
        if self.is_of(kind, "is_binary_view"):
            return pa.large_binary()
        if types.is_dictionary(kind):
            values = self.plain_type(kind.value_type, column)
            if types.is_dictionary(values):
                # Arrow's stream format does not support dictionaries of dictionaries.
                values = values.value_type
            return pa.dictionary(kind.index_type, values, kind.ordered)
        if types.is_struct(kind):
            return pa.struct([inner(kind.field(index)) for index in range(kind.num_fields)])
        if types.is_map(kind):
            return pa.map_(inner(kind.key_field), inner(kind.item_field), kind.keys_sorted)
        if types.is_list(kind) or self.is_of(kind, "is_list_view"):
            return pa.list_(inner(kind.value_field))
        if types.is_large_list(kind) or self.is_of(kind, "is_large_list_view"):
            return pa.large_list(inner(kind.value_field))
        if types.is_fixed_size_list(kind):
            return pa.list_(inner(kind.value_field), kind.list_size)
        if self.is_of(kind, "is_run_end_encoded") and self.has(kind, self.is_view):
            return self.plain_type(kind.value_type, column)
        return kind

    def is_of(self, kind, name):
        """Calls a predicate of pyarrow.types that older releases may lack."""
        asks = getattr(self.pa.types, name, None)
        return asks is not None and asks(kind)

    def is_view(self, kind):
        names = ("is_string_view", "is_binary_view", "is_list_view", "is_large_list_view")
        return any(self.is_of(kind, name) for name in names)

    def has(self, kind, asks):
        """True if a type, or one nested in it, satisfies `asks`."""
        if asks(kind):
            return True
        if isinstance(kind, self.pa.BaseExtensionType):
            return self.has(kind.storage_type, asks)
        if self.pa.types.is_dictionary(kind) or self.is_of(kind, "is_run_end_encoded"):
            return self.has(kind.value_type, asks)
        if self.pa.types.is_map(kind):
            return self.has(kind.key_type, asks) or self.has(kind.item_type, asks)
        if hasattr(kind, "value_type"):
            return self.has(kind.value_type, asks)
        if not self.pa.types.is_struct(kind):
            return False
        return any(self.has(kind.field(index).type, asks) for index in range(kind.num_fields))

    def plain(self, array, target, kind, shrinks=False, hidden=None):
        """Converts an array to the target type, with only the values of its own rows. `shrinks`: dictionaries
        keep only the values that are used. `hidden`: a mask of the rows below a null."""
        pa, types = self.pa, self.pa.types
        if isinstance(kind, pa.BaseExtensionType):
            is_same = isinstance(target, pa.BaseExtensionType)
            storage = self.plain(
                array.storage, target.storage_type if is_same else target, kind.storage_type, shrinks, hidden)
            return pa.ExtensionArray.from_storage(target, storage) if is_same else storage
        if self.is_of(kind, "is_string_view") or self.is_of(kind, "is_binary_view"):
            return self.cast_view(array, target)
        if types.is_dictionary(kind):
            return self.dictionary(array, target, shrinks, hidden)
        if types.is_struct(kind):
            below = self.either(hidden, self.mask(array))
            children = [
                self.plain(array.field(index), target.field(index).type, kind.field(index).type, shrinks, below)
                for index in range(kind.num_fields)]
            if not children:
                return array.cast(target) if array.type != target else array
            fields = [target.field(index) for index in range(target.num_fields)]
            return pa.StructArray.from_arrays(children, fields=fields, mask=self.mask(array))
        if self.is_of(kind, "is_run_end_encoded") and kind != target:
            # There is no kernel that decodes views.
            return pa.array(array.to_pylist(), target)
        if types.is_fixed_size_list(kind):
            size = kind.list_size
            values = array.values.slice(array.offset * size, len(array) * size)
            below = self.either(hidden, self.mask(array))
            if below is not None and self.has(kind.value_type, types.is_dictionary):
                below = below.take(pa.array([row for row in range(len(array)) for _ in range(size)], pa.int64()))
            else:
                below = None
            values = self.plain(values, target.value_type, kind.value_type, shrinks, below)
            return pa.FixedSizeListArray.from_arrays(values, type=target, mask=self.mask(array))
        is_view = self.is_of(kind, "is_list_view") or self.is_of(kind, "is_large_list_view")
        if is_view or types.is_map(kind) or types.is_list(kind) or types.is_large_list(kind):
            if kind == target and self.has(kind, lambda one: self.is_of(one, "is_run_end_encoded")):
                # Arrow cannot rebuild an array of slices of a run-end encoded one.
                return array
            return self.lists(array, target, kind, is_view, shrinks)
        return array

    def lists(self, array, target, kind, is_view, shrinks):
        """Converts lists and maps, with only the values of the array's own rows."""
        pa = self.pa
        is_large = pa.types.is_large_list(target)
        lengths = compute().list_value_length(
            array if not pa.types.is_map(kind) else self.map_as_list(array, kind))
        lengths = compute().fill_null(lengths, 0)
        ends = compute().cumulative_sum(lengths.cast(pa.int64()))
        offset_type = pa.int64() if is_large else pa.int32()
        offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends]).cast(offset_type)
        mask = self.mask(array)
        if pa.types.is_map(kind):
            def entries_of(values):
                keys = self.plain(values.field(0), target.key_type, kind.key_type, shrinks)
                items = self.plain(values.field(1), target.item_type, kind.item_type, shrinks)
                return pa.StructArray.from_arrays([keys, items], fields=[target.key_field, target.item_field])

            entries = self.own_values(self.map_as_list(array, kind), entries_of)
            return pa.Array.from_buffers(
                target, len(array), [self.validity(mask), offsets.buffers()[1]], children=[entries])
        values = self.own_values(
            array, lambda values: self.plain(values, target.value_type, kind.value_type, shrinks))
        return pa.Array.from_buffers(
            target, len(array), [self.validity(mask), offsets.buffers()[1]], children=[values])

    def own_values(self, array, convert):
        """Applies `convert` to the values of a list's own rows. Where rows are null, pyarrow's `flatten`
        concatenates values, which corrupts dictionaries of half floats: these are taken by index. Where all
        are, it builds an array, which it cannot for extension types."""
        pa, types = self.pa, self.pa.types
        kind = array.type
        if array.null_count == len(array):
            return convert(array.values[:0])
        if not self.has(kind.value_type, lambda one: types.is_dictionary(one) and types.is_float16(one.value_type)):
            return convert(array.flatten())
        if types.is_list(kind):
            like = pa.list_(pa.int64())
        elif types.is_large_list(kind):
            like = pa.large_list(pa.int64())
        else:
            like = pa.list_view(pa.int64()) if self.is_of(kind, "is_list_view") else pa.large_list_view(pa.int64())
        indices = pa.Array.from_buffers(
            like, len(array), array.buffers()[:like.num_buffers], offset=array.offset,
            children=[pa.array(range(len(array.values)), pa.int64())])
        return convert(array.values).take(indices.flatten())

    def map_as_list(self, array, kind):
        pa = self.pa
        entry = pa.struct([kind.key_field, kind.item_field])
        entries = pa.StructArray.from_arrays(
            [array.keys, array.items], fields=[kind.key_field, kind.item_field])
        return pa.Array.from_buffers(
            pa.list_(pa.field("entries", entry, False)), len(array), array.buffers()[:2],
            offset=array.offset, children=[entries])

    def validity(self, mask):
        """The validity buffer: a bit for each row that is not null."""
        if mask is None:
            return None
        return compute().invert(mask).buffers()[1]

    def mask(self, array):
        return array.is_null() if array.null_count else None

    def either(self, one, other):
        if one is None or other is None:
            return other if one is None else one
        return compute().or_(one, other)

    def cast_view(self, array, target):
        try:
            return array.cast(target)
        except self.pa.ArrowNotImplementedError:
            return self.pa.array(array.to_pylist(), target)

    def dictionary(self, array, target, shrinks, hidden):
        pa = self.pa
        indices, values = array.indices, array.dictionary
        if hidden is not None:
            indices = compute().if_else(hidden, pa.scalar(None, indices.type), indices)
        if shrinks and len(values) > len(array) or self.has(values.type, self.is_view):
            used = compute().unique(indices).drop_null()
            used = used.take(compute().sort_indices(used))
            indices = compute().index_in(indices, value_set=used).cast(target.index_type)
            values = self.take(values, used)
        values = self.plain(values, self.plain_type(values.type, ""), values.type, shrinks)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        return pa.DictionaryArray.from_arrays(indices, values, ordered=target.ordered)

    def take(self, values, used):
        try:
            return values.take(used)
        except self.pa.ArrowNotImplementedError:
            return self.pa.array([values[index].as_py() for index in used.to_pylist()], values.type)
