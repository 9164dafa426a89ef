"""Python values as Arrow arrays, exactly.

Concatenated with `shim.py` into one program. pyarrow takes the type of a column from its values, and
converts without an error what that type does not hold: a number among dates is days, a boolean among
numbers is 1, a text among bytes is bytes; the time of a date-time among dates, nanoseconds of pandas'
values and the zone of a time are dropped. `Exact` finds such columns by the classes of their values, before
they are converted: the values of a column are of one family. The classes of most columns show that there
is nothing else to find.
"""

import datetime
import decimal
import functools
import itertools
import sys

LISTS = (list, tuple, set, frozenset)
MISSING = ("NoneType", "NaTType", "NAType", "MaskedConstant")
NUMBERS, BOOLEANS, TEXTS, BYTES = "numbers", "booleans", "texts", "bytes"
DATES, MOMENTS, TIMES, SPANS = "dates", "date-times", "times of day", "durations"
DICTS, SEQUENCES, OTHERS = "dicts", "lists", "other objects"
# Families of classes, the first that fits: a boolean is an int, and a date-time is a date.
FAMILIES = (
    (bool, BOOLEANS),
    ((int, float, complex, decimal.Decimal), NUMBERS),
    (str, TEXTS),
    ((bytes, bytearray, memoryview), BYTES),
    (datetime.datetime, MOMENTS),
    (datetime.date, DATES),
    (datetime.time, TIMES),
    (datetime.timedelta, SPANS),
    (dict, DICTS),
    (LISTS, SEQUENCES),
)
NUMPY_FAMILIES = (
    ("bool_", BOOLEANS),
    ("str_", TEXTS),
    ("bytes_", BYTES),
    ("datetime64", "date-times of numpy"),
    # A class of numpy's integers.
    ("timedelta64", "durations of numpy"),
    ("number", NUMBERS),
    ("ndarray", SEQUENCES),
)
# Classes of a column's values, beside None, of which nothing more has to be known.
PLAIN_KINDS = tuple(map(frozenset, ((int, float), (bool,), (str,), (bytes,))))
# What to do with values of two families.
ONE_FAMILY = {
    frozenset((NUMBERS, BOOLEANS)): "make all of them numbers",
    frozenset((BYTES, TEXTS)): "make all of them texts (`.decode()`) or bytes (`.encode()`)",
}
# In which nothing is lost where all values are of the family.
EXACT_FAMILIES = ({NUMBERS}, {BOOLEANS}, {TEXTS}, {BYTES}, set())
# Rows of a numpy array of texts that are looked at in one go.
TEXT_ROWS = 1 << 16


def array_of_values(values, pa, from_pandas=None):
    """An array of Python's values, which `values` has in a list, a tuple, a series or a numpy array."""
    exact = Exact(values, from_pandas)
    if exact.has_masks or exact.has_nat and not from_pandas:
        values = [with_none(value) for value in values]
    if not exact.paths:
        return pa.array(values, from_pandas=from_pandas)
    kind = exact.type_of(pa.infer_type(values, from_pandas=bool(from_pandas)), pa)
    return pa.array(values, kind, from_pandas=from_pandas)


def is_object(values):
    """True for arrays and series whose values are objects of Python."""
    return getattr(getattr(values, "dtype", None), "kind", None) == "O" and hasattr(values.dtype, "itemsize")


def with_none(value):
    """A value with None where it is NaT or masked, which pyarrow does not see in values of values."""
    if type(value).__name__ in ("NaTType", "MaskedConstant"):
        return None
    if isinstance(value, dict):
        return {key: with_none(item) for key, item in value.items()}
    if is_masked(type(value)):
        if value.ndim != 1:
            raise TypeError("a masked array must have one dimension")
        mask = sys.modules["numpy"].ma.getmaskarray(value)
        return [None if hidden else with_none(item) for item, hidden in zip(value.data, mask)]
    if isinstance(value, LISTS) or is_object(value):
        return [with_none(item) for item in value]
    return value


def is_masked(kind):
    return issubclass(kind, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))


@functools.lru_cache(maxsize=1024)
def family_of(kind):
    """What values of a class are; None where they are missing values."""
    if kind.__name__ in MISSING:
        return None
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, (numpy.generic, numpy.ndarray)):
        of_numpy = (family for name, family in NUMPY_FAMILIES if issubclass(kind, getattr(numpy, name)))
        return next(of_numpy, OTHERS)
    return next((family for base, family in FAMILIES if issubclass(kind, base)), OTHERS)


def is_plain(kinds):
    return any(kinds - {type(None)} <= plain for plain in PLAIN_KINDS)


class Exact:
    """What has to be known of values before pyarrow converts them. Raises where no type holds them."""

    def __init__(self, values, from_pandas=False):
        # Then NaN is a value that is missing.
        self.from_pandas = from_pandas
        # Where values with nanoseconds are: keys of dicts, and None for the items of lists.
        self.paths = set()
        self.has_nat = False
        self.has_masks = False
        # Iterating over a series is slow.
        self.look(values.to_numpy() if hasattr(values, "to_numpy") else values, ())

    def look(self, values, path, kinds=None):
        kinds = set(map(type, values)) if kinds is None else kinds
        if is_plain(kinds):
            return
        families = {family_of(kind) for kind in kinds} - {None}
        if len(families) > 1:
            families = self.check_families(values, families, path)
        if NUMBERS in families:
            self.look_at_numbers(values, kinds, path)
        self.has_nat = self.has_nat or any(kind.__name__ == "NaTType" for kind in kinds)
        self.has_masks = self.has_masks or any(is_masked(kind) for kind in kinds)
        if families in EXACT_FAMILIES:
            return
        if DICTS in families:
            self.look_into_dicts(values if kinds == {dict} else [
                value for value in values if isinstance(value, dict)], path)
        elif SEQUENCES in families:
            self.look_into_lists(values if kinds == {list} else [
                value for value in values if family_of(type(value)) == SEQUENCES], path)
        elif MOMENTS in families:
            self.look_at_moments([value for value in values if family_of(type(value)) == MOMENTS], path)
        elif TIMES in families:
            if any(getattr(value, "tzinfo", None) is not None for value in values):
                self.refuse(
                    path, "times of day with a time zone, which Arrow does not have",
                    "give date-times, texts (`.isoformat()`), or times without zone (`.replace(tzinfo=None)`)")
        elif SPANS in families:
            if any(getattr(value, "nanoseconds", 0) for value in values):
                self.paths.add(path)

    def check_families(self, values, families, path):
        """The families without that of NaN, where NaN is a missing value; refuses more than one."""
        if self.from_pandas and not any(
                family_of(type(value)) == NUMBERS and not (isinstance(value, float) and value != value)
                for value in values):
            families = families - {NUMBERS}
        if families <= {DATES, MOMENTS} and len(families) > 1:
            self.refuse(path, "dates and date-times",
                        "make all of them date-times (`datetime.combine(date, time.min)`) or dates (`.date()`)")
        if len(families) > 1:
            # Booleans last, then by name.
            what = " and ".join(sorted(families, key=lambda family: (family == BOOLEANS, family)))
            self.refuse(path, what, ONE_FAMILY.get(
                frozenset(families), "give all values of a column one type, such as text (`str(value)`)"))
        return families

    def look_at_numbers(self, values, kinds, path):
        names = {kind.__name__ for kind in kinds}
        if "float16" in names and any(issubclass(kind, int) for kind in kinds):
            self.refuse(path, "half floats and integers", "make all of them `float`")
        decimals = tuple(kind for kind in kinds if issubclass(kind, decimal.Decimal))
        if decimals and not all(
                value.is_finite() or self.from_pandas and value.is_nan()
                for value in values if isinstance(value, decimals)):
            self.refuse(path, "a Decimal that is not finite, which Arrow does not have",
                        "give None, or make all of them `float`")

    def look_at_moments(self, values, path):
        zones = {value.tzinfo is None for value in values}
        if len(zones) > 1:
            self.refuse(path, "date-times with and without a time zone",
                        "give all of them a zone (`.replace(tzinfo=...)`) or none")
        if any(getattr(value, "nanosecond", 0) for value in values):
            self.paths.add(path)

    def look_into_dicts(self, dicts, path):
        for key in dict.fromkeys(itertools.chain.from_iterable(dicts)):
            if not isinstance(key, str):
                self.refuse(path, f"dicts with the key {key!r}", "make all keys of dicts texts (`str(key)`)")
            self.look([value.get(key) for value in dicts], (*path, key))

    def look_into_lists(self, lists, path):
        # Arrays of numpy have a value of each of their types instead of all of theirs.
        arrays = {value.dtype.type for value in lists if hasattr(value, "dtype") and not is_object(value)}
        if arrays:
            lists = [value for value in lists if not hasattr(value, "dtype") or is_object(value)]
            lists.append([kind() for kind in arrays if kind.__name__ != "void"])
        kinds = set(map(type, itertools.chain.from_iterable(lists)))
        if not is_plain(kinds):
            self.look(list(itertools.chain.from_iterable(lists)), (*path, None), kinds)

    def refuse(self, path, what, what_to_do):
        names = [repr(key) for key in path if key is not None]
        raise ValueError(f"{''.join(f'in {name}: ' for name in names)}it has {what}: {what_to_do}")

    def type_of(self, kind, pa, path=()):
        """The inferred type with nanoseconds where values have them."""
        if pa.types.is_timestamp(kind) and path in self.paths:
            return pa.timestamp("ns", kind.tz)
        if pa.types.is_duration(kind) and path in self.paths:
            return pa.duration("ns")
        if pa.types.is_struct(kind):
            fields = [kind.field(place) for place in range(kind.num_fields)]
            return pa.struct([field.with_type(self.type_of(field.type, pa, (*path, field.name)))
                              for field in fields])
        if pa.types.is_list(kind):
            return pa.list_(kind.value_field.with_type(self.type_of(kind.value_type, pa, (*path, None))))
        return kind


def of_texts(array, pa):
    """An array of numpy's texts or bytes of one length. Only NULs at the end are padding; pyarrow ends
    at the first one."""
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
