"""Python values as Arrow arrays, exactly.

Concatenated with `shim.py` into one program. pyarrow takes the type of a column from its values, and
drops without an error what that type does not hold: the time of a date-time among dates, nanoseconds of
pandas' values, the zone of a time. `Exact` finds such columns by the classes of their values, before they
are converted; the classes of most columns show that there is nothing to find.
"""

import datetime
import decimal
import itertools
import sys

EXACT_KINDS = frozenset((type(None), bool, int, str, bytes, decimal.Decimal))
FLOATS = frozenset((type(None), int, float))
LISTS = (list, tuple, set, frozenset)
# Rows of a numpy array of texts that are looked at in one go.
TEXT_ROWS = 1 << 16


def array_of_values(values, pa, from_pandas=None):
    """An array of Python's values, which `values` has in a list, a tuple, a series or a numpy array."""
    exact = Exact(values, from_pandas)
    if exact.has_nat and not from_pandas:
        values = [without_nat(value) for value in values]
    if not exact.paths:
        return pa.array(values, from_pandas=from_pandas)
    kind = exact.type_of(pa.infer_type(values, from_pandas=bool(from_pandas)), pa)
    return pa.array(values, kind, from_pandas=from_pandas)


def is_object(values):
    """True for arrays and series whose values are objects of Python."""
    return getattr(getattr(values, "dtype", None), "kind", None) == "O" and hasattr(values.dtype, "itemsize")


def without_nat(value):
    kind = type(value)
    if kind.__name__ == "NaTType":
        return None
    if kind is dict:
        return {key: without_nat(item) for key, item in value.items()}
    if kind in LISTS or is_object(value):
        return [without_nat(item) for item in value]
    return value


class Exact:
    """What has to be known of values before pyarrow converts them. Raises where no type holds them."""

    def __init__(self, values, from_pandas=False):
        # Then NaN is a value that is missing.
        self.from_pandas = from_pandas
        # Where values with nanoseconds are: keys of dicts, and None for the items of lists.
        self.paths = set()
        self.has_nat = False
        # Iterating over a series is slow.
        self.look(values.to_numpy() if hasattr(values, "to_numpy") else values, ())

    def look(self, values, path, kinds=None):
        kinds = set(map(type, values)) if kinds is None else kinds
        if kinds <= EXACT_KINDS or kinds <= FLOATS:
            return
        if bool in kinds and float in kinds and any(
                type(value) is float and not (self.from_pandas and value != value) for value in values):
            self.refuse(path, "numbers and booleans", "make all of them numbers")
        dates, moments, spans, times = False, [], False, False
        for kind in kinds:
            if kind.__name__ == "NaTType":
                self.has_nat = True
            elif issubclass(kind, datetime.datetime):
                moments.append(kind)
            elif issubclass(kind, datetime.date):
                dates = True
            elif issubclass(kind, datetime.time):
                times = True
            elif issubclass(kind, datetime.timedelta):
                spans = spans or hasattr(kind, "nanoseconds")
            elif issubclass(kind, dict):
                self.look_into_dicts(values if kinds == {dict} else [
                    value for value in values if isinstance(value, dict)], path)
            elif issubclass(kind, LISTS) or kind.__name__ == "ndarray":
                self.look_into_lists(values if kinds == {list} else [
                    value for value in values if isinstance(value, LISTS) or is_object(value)], path)
        if dates and moments:
            self.refuse(path, "dates and date-times",
                        "make all of them date-times (`datetime.combine(date, time.min)`) or dates (`.date()`)")
        if moments:
            self.look_at_moments([value for value in values if isinstance(value, tuple(moments))], path)
        if times and any(isinstance(value, datetime.time) and value.tzinfo is not None for value in values):
            self.refuse(path, "times of day with a time zone, which Arrow does not have",
                        "give date-times, texts (`.isoformat()`), or times without zone (`.replace(tzinfo=None)`)")
        if spans and any(getattr(value, "nanoseconds", 0) for value in values):
            self.paths.add(path)

    def look_at_moments(self, values, path):
        zones = {value.tzinfo is None for value in values}
        if len(zones) > 1:
            self.refuse(path, "date-times with and without a time zone",
                        "give all of them a zone (`.replace(tzinfo=...)`) or none")
        if any(getattr(value, "nanosecond", 0) for value in values):
            self.paths.add(path)

    def look_into_dicts(self, dicts, path):
        for key in dict.fromkeys(itertools.chain.from_iterable(dicts)):
            self.look([value.get(key) for value in dicts], (*path, key))

    def look_into_lists(self, lists, path):
        kinds = set(map(type, itertools.chain.from_iterable(lists)))
        if not (kinds <= EXACT_KINDS or kinds <= FLOATS):
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
