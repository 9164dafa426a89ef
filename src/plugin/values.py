"""Converts Python values to Arrow arrays exactly.

Concatenated with `shim.py` into one program. pyarrow infers the type of a column from its values. It converts
values that this type cannot represent without an error: a number among dates becomes days, a boolean among
numbers 1, a text among bytes bytes; the time of a date-time among dates, nanoseconds of pandas' values and
the zone of a time are dropped. `Exact` finds such columns by the classes of their values, before they are
converted. All values of a column must be of one family. For most columns their classes show that nothing more
has to be checked.
"""

import datetime
import decimal
import functools
import itertools
import sys

# Also values views of dicts, which pyarrow converts to lists.
LISTS = (list, tuple, set, frozenset, type({}.values()))
MISSING = ("NoneType", "NaTType", "NAType", "MaskedConstant")
NUMBERS, BOOLEANS, TEXTS, BYTES = "numbers", "booleans", "texts", "bytes"
DATES, MOMENTS, TIMES, SPANS = "dates", "date-times", "times of day", "durations"
NUMPY_MOMENTS, NUMPY_SPANS = "date-times of numpy", "durations of numpy"
DICTS, SEQUENCES, UUIDS = "dicts", "lists", "UUIDs"
# The classes whose values pyarrow converts exactly if a column has only one family. The first match counts.
# Values of other classes are refused: pyarrow calls `int` on them, or drops a part of them.
FAMILIES_OF_LIBRARIES = (
    ("numpy", "bool_", BOOLEANS),
    ("numpy", "str_", TEXTS),
    ("numpy", "bytes_", BYTES),
    ("numpy", "datetime64", NUMPY_MOMENTS),
    # Before "integer", because it is a subclass of that class.
    ("numpy", "timedelta64", NUMPY_SPANS),
    ("numpy", "integer", NUMBERS),
    ("numpy", "float16", NUMBERS),
    ("numpy", "float32", NUMBERS),
    ("numpy", "float64", NUMBERS),
    ("numpy", "ndarray", SEQUENCES),
    ("uuid", "UUID", UUIDS),
    ("pyarrow", "Scalar", "scalars of pyarrow"),
    # It is a subclass of tuple.
    ("pyarrow", "MonthDayNano", "intervals"),
)
# bool is before int and datetime before date, because they are subclasses.
FAMILIES = (
    (bool, BOOLEANS),
    ((int, float, decimal.Decimal), NUMBERS),
    (str, TEXTS),
    ((bytes, bytearray, memoryview), BYTES),
    (datetime.datetime, MOMENTS),
    (datetime.date, DATES),
    (datetime.time, TIMES),
    (datetime.timedelta, SPANS),
    (dict, DICTS),
    (LISTS, SEQUENCES),
)
# Advice for values of other classes. The first match counts.
ADVICE_OF_CLASSES = (
    ("numpy", "complexfloating", "give `value.real` and `value.imag` apart"),
    ("builtins", "complex", "give `value.real` and `value.imag` apart"),
    ("numpy", "floating", "give `float(value)`, or text (`str(value)`)"),
    ("numpy", "void", "give a dict of its fields, or bytes (`value.tobytes()`) where it has none"),
    ("enum", "Enum", "give `value.value`"),
    ("pandas", "DataFrame", "give `value.to_dict('records')`"),
    ("pandas", "Series", "give `value.to_list()`"),
    ("pandas", "Index", "give `value.to_list()`"),
    ("pandas.api.extensions", "ExtensionArray", "give `list(value)`"),
    ("pyarrow", "Array", "give `value.to_pylist()`"),
    ("pandas", "Period", "give them as a pandas Series of periods of one frequency (`pd.Series(values)`), or text (`str(value)`)"),
    ("pandas", "Interval", "give them as a pandas Series of intervals of one type (`pd.Series(values)`), or text (`str(value)`)"),
    ("collections.abc", "Mapping", "give `dict(value)`"),
    ("collections.abc", "Sequence", "give `list(value)`"),
    ("builtins", "object", "give values of Python or numpy that Arrow has, such as text (`str(value)`)"),
)
# The units of numpy that Arrow has.
UNITS = frozenset((("s", 1), ("ms", 1), ("us", 1), ("ns", 1)))
# Sets of classes, besides None, that need no further check of a column.
PLAIN_KINDS = tuple(map(frozenset, ((int, float), (bool,), (str,), (bytes,))))
# Advice for columns with two families.
ONE_FAMILY = {
    frozenset((NUMBERS, BOOLEANS)): "make all of them numbers",
    frozenset((BYTES, TEXTS)): "make all of them texts (`.decode()`) or bytes (`.encode()`)",
}
# Families that are converted exactly if all values of a column belong to one of them.
EXACT_FAMILIES = ({NUMBERS}, {BOOLEANS}, {TEXTS}, {BYTES}, set())
# Rows of a numpy array of texts that are checked in one step.
TEXT_ROWS = 1 << 16


def array_of_values(values, pa, from_pandas=None):
    """Converts Python values to an array. `values` is a list, a tuple, a series or a numpy array."""
    exact = Exact(values, from_pandas)
    if exact.rewrites:
        values = [with_none(value, exact.gaps) for value in values]
    if not exact.paths:
        return pa.array(values, from_pandas=from_pandas)
    kind = exact.type_of(pa.infer_type(values, from_pandas=bool(from_pandas)), pa)
    return pa.array(values, kind, from_pandas=from_pandas)


def is_object(values):
    """True for arrays and series whose values are Python objects. Types of pandas are none of numpy's, whatever
    their kind."""
    dtype = getattr(values, "dtype", None)
    return getattr(dtype, "kind", None) == "O" and is_kind(type(dtype), "numpy", "dtype")


def with_none(value, gaps=frozenset(), path=()):
    """A value with None for missing values, which pyarrow does not detect everywhere. At the paths of `gaps`,
    NaN also is a missing value, empty arrays have no type, and integers become decimals."""
    if type(value).__name__ in MISSING or path in gaps and (is_nan(value) or is_nat(value)):
        return None
    if isinstance(value, dict):
        return {key: with_none(item, gaps, (*path, key)) for key, item in value.items()}
    inner = (*path, None)
    if is_masked(type(value)):
        if value.ndim != 1:
            raise TypeError("a masked array must have one dimension")
        mask = sys.modules["numpy"].ma.getmaskarray(value)
        return [None if hidden else with_none(item, gaps, inner) for item, hidden in zip(value.data, mask)]
    is_list = isinstance(value, LISTS) and family_of(type(value)) == SEQUENCES
    if is_list or is_object(value) or inner in gaps and is_flat_array(value):
        return [with_none(item, gaps, inner) for item in value]
    if path in gaps and is_integer(type(value)):
        return decimal.Decimal(int(value))
    return [] if path in gaps and is_flat_array(value) and len(value) == 0 else value


def is_integer(kind):
    return family_of(kind) == NUMBERS and not is_float(kind) and not issubclass(kind, decimal.Decimal)


def is_nan(value):
    return is_float(type(value)) and value != value


def is_nat(value):
    """True for numpy's NaT, which has a unit."""
    return family_of(type(value)) in (NUMPY_MOMENTS, NUMPY_SPANS) and value != value


def is_flat_array(value):
    return is_kind(type(value), "numpy", "ndarray") and value.ndim == 1


def is_masked(kind):
    return issubclass(kind, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))


def is_kind(kind, module, name):
    """True for a class of a module, and for its subclasses. The module is not imported for that."""
    base = getattr(sys.modules.get(module), name, None)
    return isinstance(base, type) and issubclass(kind, base)


@functools.lru_cache(maxsize=1024)
def is_float(kind):
    return issubclass(kind, float) or is_kind(kind, "numpy", "floating")


@functools.lru_cache(maxsize=1024)
def family_of(kind):
    """The family of a class: None for missing values, "" for an unknown class."""
    if kind.__name__ in MISSING:
        return None
    for module, name, family in FAMILIES_OF_LIBRARIES:
        if is_kind(kind, module, name):
            return family
    return next((family for base, family in FAMILIES if issubclass(kind, base)), "")


def is_plain(kinds):
    return any(kinds - {type(None)} <= plain for plain in PLAIN_KINDS)


class Exact:
    """Checks values before pyarrow converts them. Raises if no type can represent them exactly."""

    def __init__(self, values, from_pandas=False):
        # If true, NaN is a missing value.
        self.from_pandas = from_pandas
        # Paths of values with nanoseconds. A path has keys of dicts, and None for the items of lists.
        self.paths = set()
        # Paths where NaN is missing although pyarrow would convert it, where empty arrays have another type,
        # or where integers are mixed with decimals.
        self.gaps = set()
        self.has_missing = False
        self.has_masks = False
        # Iterating over a series is slow.
        self.examine(values.to_numpy() if hasattr(values, "to_numpy") else values, ())

    @property
    def rewrites(self):
        """Whether the values have to be rewritten by `with_none`."""
        return bool(self.gaps) or self.has_masks or self.has_missing and not self.from_pandas

    def examine(self, values, path, kinds=None):
        kinds = set(map(type, values)) if kinds is None else kinds
        if is_plain(kinds):
            return
        families = {family_of(kind) for kind in kinds} - {None}
        if "" in families:
            self.refuse_classes([kind for kind in kinds if family_of(kind) == ""], path)
        if len(families) > 1:
            families = self.check_families(values, families, path)
        if NUMBERS in families:
            self.examine_numbers(values, kinds, path)
        self.has_missing = self.has_missing or any(kind.__name__ in ("NaTType", "NAType") for kind in kinds)
        self.has_masks = self.has_masks or any(is_masked(kind) for kind in kinds)
        if families in EXACT_FAMILIES:
            return
        if UUIDS in families and path:
            self.refuse(path, "UUIDs, which pyarrow does not convert within lists and dicts",
                        "give texts (`str(value)`) or bytes (`value.bytes`)")
        if DICTS in families:
            self.examine_dicts(values if kinds == {dict} else [
                value for value in values if isinstance(value, dict)], path)
        elif SEQUENCES in families:
            self.examine_lists(values if kinds == {list} else [
                value for value in values if family_of(type(value)) == SEQUENCES], path)
        elif MOMENTS in families:
            self.examine_moments([value for value in values if family_of(type(value)) == MOMENTS], path)
        elif TIMES in families:
            if any(getattr(value, "tzinfo", None) is not None for value in values):
                self.refuse(
                    path, "times of day with a time zone, which Arrow does not have",
                    "give date-times, texts (`.isoformat()`), or times without zone (`.replace(tzinfo=None)`)")
        elif SPANS in families:
            if any(getattr(value, "nanoseconds", 0) for value in values):
                self.paths.add(path)
        elif families & {NUMPY_MOMENTS, NUMPY_SPANS}:
            self.examine_units([value for value in values if family_of(type(value)) in families], path)

    def refuse_classes(self, kinds, path):
        kind = min(kinds, key=lambda kind: kind.__name__)
        advice = next(advice for module, name, advice in ADVICE_OF_CLASSES if is_kind(kind, module, name))
        name = in_module(module_of(kind), kind.__qualname__)
        self.refuse(path, f"values of the class {name}", advice)

    def check_families(self, values, families, path):
        """The families without that of NaN and NaT where these are missing values. Refuses several
        families."""
        for family in families & {NUMBERS, NUMPY_MOMENTS, NUMPY_SPANS}:
            if self.are_missing([value for value in values if family_of(type(value)) == family], path):
                families = families - {family}
        if families <= {DATES, MOMENTS} and len(families) > 1:
            self.refuse(path, "dates and date-times",
                        "make all of them date-times (`datetime.combine(date, time.min)`) or dates (`.date()`)")
        if len(families) > 1:
            # Booleans last, the others by name.
            what = " and ".join(sorted(families, key=lambda family: (family == BOOLEANS, family)))
            self.refuse(path, what, ONE_FAMILY.get(
                frozenset(families), "give all values of a column one type, such as text (`str(value)`), and None for those that are missing"))
        return families

    def are_missing(self, values, path):
        """True if each of the values is NaN or NaT, so that it counts as missing."""
        if not all(is_nan(value) or is_nat(value) for value in values):
            return False
        # pandas' missing value is a float, which pyarrow detects.
        if not self.from_pandas or not all(isinstance(value, float) for value in values):
            self.gaps.add(path)
        return True

    def examine_numbers(self, values, kinds, path):
        of_numpy = tuple(kind for kind in kinds if is_kind(kind, "numpy", "integer"))
        decimals = tuple(kind for kind in kinds if issubclass(kind, decimal.Decimal))
        floats = [value for value in values if is_float(type(value))] if of_numpy or decimals else ()
        if any(kind.__name__ == "float16" for kind in kinds) and (
                of_numpy or any(issubclass(kind, int) for kind in kinds)):
            self.refuse(path, "half floats and integers", "make all of them `float`")
        has_floats = not all(self.from_pandas and isinstance(value, float) and value != value for value in floats)
        # pyarrow would read them as signed integers.
        if has_floats and any(int(value) >= 1 << 63 for value in values if isinstance(value, of_numpy)):
            self.refuse(path, "unsigned integers from 2**63 and floats",
                        "make all of them texts or Decimal (`Decimal(str(value))`), and None those that are missing")
        if not decimals:
            return
        if of_numpy or any(issubclass(kind, int) for kind in kinds):
            # pyarrow does not count the digits of integers.
            self.gaps.add(path)
        if floats and not self.are_missing(floats, path):
            self.refuse(path, "decimals and floats", "make all of them `float`, or Decimal (`Decimal(str(value))`)")
        if not all(
                value.is_finite() or self.from_pandas and value.is_nan()
                for value in values if isinstance(value, decimals)):
            self.refuse(path, "a Decimal that is not finite, which Arrow does not have",
                        "give None, or make all of them `float`")

    def examine_units(self, values, path):
        """Refuses several units or multiples of units: pyarrow would count all values in the first one."""
        data = sys.modules["numpy"].datetime_data
        units = {data(value.dtype) for value in values if not is_nat(value)}
        others = {data(value.dtype) for value in values} - units
        if others and (units or len(others) > 1 or not others <= UNITS):
            # A NaT of another unit.
            self.gaps.add(path)
        if len(units) > 1 or not units <= UNITS:
            kind = values[0].dtype.kind
            listed = " and ".join(sorted(f"{count if count > 1 else ''}{unit}" for unit, count in units))
            what = "date-times" if kind == "M" else "durations"
            self.refuse(path, f"{what} of numpy in the units {listed}" if len(units) > 1 else
                        f"{what} of numpy in the unit {listed}, which Arrow does not have",
                        f"give all of them one of the units s, ms, us, ns, as with `.astype('{kind}8[us]')`"
                        + (", or dates (`.astype(object)`)" if units == {("D", 1)} and kind == "M" else ""))

    def examine_moments(self, values, path):
        zones = {value.tzinfo is None for value in values}
        if len(zones) > 1:
            self.refuse(path, "date-times with and without a time zone",
                        "give all of them a zone (`.replace(tzinfo=...)`) or none")
        if any(getattr(value, "nanosecond", 0) for value in values):
            self.paths.add(path)

    def examine_dicts(self, dicts, path):
        for key in dict.fromkeys(itertools.chain.from_iterable(dicts)):
            if not isinstance(key, str):
                self.refuse(path, f"dicts with the key {key!r}", "make all keys of dicts texts (`str(key)`)")
            self.examine([value.get(key) for value in dicts], (*path, key))

    def examine_lists(self, lists, path):
        # Of a numpy array, one sample for each type is checked instead of all values.
        arrays = [value for value in lists if hasattr(value, "dtype") and not is_object(value)]
        if arrays:
            lists = [value for value in lists if not hasattr(value, "dtype") or is_object(value)]
            filled = [array for array in arrays if array.size]
            types = {array.dtype for array in filled}
            others = {array.dtype for array in arrays} - types
            if others and (filled or any(map(len, lists))):
                self.gaps.add(path)
            else:
                types |= others
            lists.append(list(map(sample_of, types)))
            # Whether unsigned integers fit depends on the values, so their maximum is checked.
            lists.append([array.max() for array in filled if array.dtype.kind == "u"])
        kinds = set(map(type, itertools.chain.from_iterable(lists)))
        if not is_plain(kinds):
            self.examine(list(itertools.chain.from_iterable(lists)), (*path, None), kinds)

    def refuse(self, path, what, what_to_do):
        names = [repr(key) for key in path if key is not None]
        raise ValueError(f"{''.join(f'in {name}: ' for name in names)}it has {what}: {what_to_do}")

    def type_of(self, kind, pa, path=()):
        """The inferred type, with nanoseconds at `paths`."""
        if pa.types.is_timestamp(kind) and path in self.paths:
            return pa.timestamp("ns", kind.tz)
        if pa.types.is_duration(kind) and path in self.paths:
            return pa.duration("ns")
        if pa.types.is_struct(kind):
            fields = [kind.field(index) for index in range(kind.num_fields)]
            return pa.struct([field.with_type(self.type_of(field.type, pa, (*path, field.name)))
                              for field in fields])
        if pa.types.is_list(kind):
            return pa.list_(kind.value_field.with_type(self.type_of(kind.value_type, pa, (*path, None))))
        return kind


def sample_of(dtype):
    """A value of a numpy type."""
    return dtype.type() if dtype.kind in "SU" else sys.modules["numpy"].zeros(1, dtype)[0]


def of_texts(array, pa):
    """Converts numpy's texts or bytes of a fixed length. Only NULs at the end are padding, but pyarrow ends a
    value at the first NUL."""
    if not any(has_inner_nul(array[start:start + TEXT_ROWS]) for start in range(0, len(array), TEXT_ROWS)):
        return pa.array(array)
    kind = pa.binary() if array.dtype.kind == "S" else pa.string()
    if is_of(array, "numpy.ma", "MaskedArray"):
        mask = sys.modules["numpy"].ma.getmaskarray(array)
        return pa.array(array.data.tolist(), kind, mask=mask)
    return pa.array(array.tolist(), kind)


def has_inner_nul(array):
    if array.dtype.itemsize == 0:
        return False
    numpy = sys.modules["numpy"]
    unit = numpy.uint8 if array.dtype.kind == "S" else numpy.uint32
    units = numpy.ascontiguousarray(numpy.asarray(array)).view(unit).reshape(len(array), -1)
    return bool(((units[:, :-1] == 0) & (units[:, 1:] != 0)).any())
