//! Converts columns of batches to the types that a sink stores. Every value is converted exactly, or the
//! result is an error. Data below a null is not a value: children are converted without it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, FixedSizeListArray, GenericListArray, MapArray,
    OffsetSizeTrait, StructArray, UInt64Array, new_null_array,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::{CastOptions, cast_with_options, nullif, take};
use arrow::datatypes::{
    ArrowNativeType, DataType, Date32Type, Date64Type, Decimal32Type, Decimal64Type,
    Decimal128Type, Decimal256Type, FieldRef, Fields, Int64Type, IntervalDayTimeType, IntervalUnit,
    IntervalYearMonthType, TimeUnit,
};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use arrow::util::display::array_value_to_string;

use super::types::shown;
use crate::job::text::prefix;

/// Milliseconds of a day.
const DAY: i64 = 86_400_000;

/// Why a column cannot be converted.
#[derive(Debug)]
pub(super) enum Failure {
    /// A value cannot be stored: the path of its field below the column (innermost name first), and the
    /// reason.
    Value(Vec<String>, String),
    /// The type cannot be converted. If a value that the new type cannot store is the reason, a text
    /// about it.
    Type(Option<String>),
}

impl Failure {
    fn in_field(mut self, name: &str) -> Self {
        if let Failure::Value(path, _) = &mut self {
            path.push(name.to_owned());
        }
        self
    }
}

impl From<ArrowError> for Failure {
    fn from(error: ArrowError) -> Self {
        Failure::Value(Vec::new(), error.to_string())
    }
}

/// Converts an array to a stored type. Conversions to the stored type of the array's type, and to types
/// that it was merged with, are supported. Values that the new type cannot store are an error.
pub(super) fn convert(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, Failure> {
    use DataType as T;
    let from = array.data_type();
    if from == to && !has_checks(to) {
        return Ok(array.clone());
    }
    if array.logical_null_count() == array.len() {
        return Ok(new_null_array(to, array.len()));
    }
    match (from, to) {
        (T::RunEndEncoded(_, values), _) => convert(&cast(array, values.data_type())?, to),
        (T::Dictionary(..), _) => {
            let dictionary = array.as_any_dictionary();
            convert(&take(dictionary.values(), dictionary.keys(), None)?, to)
        }
        (T::ListView(item), _) => convert(&cast(array, &T::List(item.clone()))?, to),
        (T::LargeListView(item), _) => convert(&cast(array, &T::LargeList(item.clone()))?, to),
        (T::List(_), T::List(item)) => list::<i32, i32>(array, item),
        (T::List(_), T::LargeList(item)) => list::<i32, i64>(array, item),
        (T::LargeList(_), T::List(item)) => list::<i64, i32>(array, item),
        (T::LargeList(_), T::LargeList(item)) => list::<i64, i64>(array, item),
        (T::FixedSizeList(_, size), T::FixedSizeList(item, want)) if size == want => {
            let list = array.as_fixed_size_list();
            let nulls = list
                .nulls()
                .map(|nulls| nulls.expand(list.value_length().as_usize()));
            let values = masked(list.values(), nulls.as_ref())?;
            let values = convert(&values, item.data_type());
            let values = values.map_err(|failure| failure.in_field(item.name()))?;
            let (nulls, length) = (list.nulls().cloned(), list.len());
            let list =
                FixedSizeListArray::try_new_with_length(item.clone(), *size, values, nulls, length);
            Ok(Arc::new(list?))
        }
        (T::FixedSizeList(field, _), T::List(_)) => {
            convert(&cast(array, &T::List(field.clone()))?, to)
        }
        (T::FixedSizeList(field, _), T::LargeList(_)) => {
            convert(&cast(array, &T::LargeList(field.clone()))?, to)
        }
        (T::Map(..), T::Map(entries, is_sorted)) => map(array, entries, *is_sorted),
        (T::Struct(_), T::Struct(fields)) => {
            let array = &without_hidden(array.as_struct())?;
            let columns = by_name(array, fields)?;
            let structure = StructArray::try_new_with_length(
                fields.clone(),
                columns,
                array.nulls().cloned(),
                array.len(),
            );
            Ok(Arc::new(structure?))
        }
        (T::Date64, T::Date32) => dates(array),
        (T::Interval(_), T::Interval(_)) if from == to => checked_interval(array),
        (T::Time32(_) | T::Time64(_), T::Time32(_) | T::Time64(_)) => times(array, to),
        (T::Timestamp(_, zone), T::Timestamp(_, other)) if zone == other => finer(array, to),
        (T::Duration(_), T::Duration(_)) => finer(array, to),
        _ if is_decimal(from) && is_decimal(to) => decimals(array, to),
        _ if from.is_numeric() && to.is_numeric() && !is_decimal(from) && !is_decimal(to) => {
            numbers(array, to)
        }
        _ if is_exact(from, to) => Ok(cast(array, to)?),
        _ => Err(Failure::Type(None)),
    }
}

/// True when values of a type must be checked even without a conversion.
fn has_checks(data_type: &DataType) -> bool {
    use DataType as T;
    match data_type {
        T::List(item) | T::LargeList(item) | T::FixedSizeList(item, _) => {
            has_checks(item.data_type())
        }
        T::Struct(fields) => fields.iter().any(|field| has_checks(field.data_type())),
        T::Interval(_) | T::Time32(_) | T::Time64(_) | T::Map(..) => true,
        other => is_decimal(other),
    }
}

fn is_decimal(data_type: &DataType) -> bool {
    data_type.is_decimal()
}

/// True when arrow's cast either keeps every value or fails.
fn is_exact(from: &DataType, to: &DataType) -> bool {
    use DataType as T;
    let is_text = |data_type: &T| matches!(data_type, T::Utf8 | T::LargeUtf8 | T::Utf8View);
    let is_bytes = |data_type: &T| matches!(data_type, T::Binary | T::LargeBinary | T::BinaryView);
    let is_from_bytes = is_bytes(from) || matches!(from, T::FixedSizeBinary(_));
    is_text(from) && is_text(to) || is_from_bytes && is_bytes(to)
}

/// Arrow's cast, in which a value that the type cannot store is an error and not a null.
pub(super) fn cast(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    let exact = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    cast_with_options(array, to, &exact)
}

/// An array with additional nulls.
fn masked(array: &ArrayRef, nulls: Option<&NullBuffer>) -> Result<ArrayRef, Failure> {
    use DataType as T;
    let has_own = !matches!(
        array.data_type(),
        T::Null | T::Union(..) | T::RunEndEncoded(..)
    );
    match nulls {
        Some(nulls) if nulls.null_count() > 0 && has_own => {
            let is_null = BooleanArray::new(!nulls.inner(), None);
            Ok(nullif(array, &is_null)?)
        }
        _ => Ok(array.clone()),
    }
}

/// A struct in which fields are null where the struct is null.
fn without_hidden(array: &StructArray) -> Result<StructArray, Failure> {
    if array.null_count() == 0 {
        return Ok(array.clone());
    }
    let columns = array.columns().iter();
    let columns: Result<_, _> = columns
        .map(|column| masked(column, array.nulls()))
        .collect();
    let (fields, nulls) = (array.fields().clone(), array.nulls().cloned());
    let array = StructArray::try_new_with_length(fields, columns?, nulls, array.len());
    Ok(array?)
}

/// The values of lists or maps without the values of null rows, and their offsets.
fn items<From: OffsetSizeTrait, To: OffsetSizeTrait>(
    offsets: &[From],
    nulls: Option<&NullBuffer>,
    values: &ArrayRef,
) -> Result<(OffsetBuffer<To>, ArrayRef), Failure> {
    let bounds = || offsets.iter().zip(offsets.iter().skip(1));
    let rows = || {
        let rows = bounds().enumerate();
        rows.map(|(row, (start, end))| {
            let is_valid = nulls.is_none_or(|nulls| nulls.is_valid(row));
            (is_valid, start.as_usize()..end.as_usize())
        })
    };
    let start = offsets.first().map_or(0, |offset| offset.as_usize());
    let end = offsets.last().map_or(start, |offset| offset.as_usize());
    let values = match rows().any(|(is_valid, range)| !is_valid && !range.is_empty()) {
        false => values.slice(start, end - start),
        true => {
            let valid = rows().filter(|(is_valid, _)| *is_valid);
            let indices = valid.flat_map(|(_, range)| range).map(|index| index as u64);
            take(values, &UInt64Array::from_iter_values(indices), None)?
        }
    };
    let mut total = 0;
    let ends = rows().map(|(is_valid, range)| {
        total += if is_valid { range.len() } else { 0 };
        To::from_usize(total)
    });
    let offsets: Option<Vec<To>> = std::iter::once(Some(To::zero())).chain(ends).collect();
    let too_long = || ArrowError::ComputeError("it has too many values for one list".to_owned());
    Ok((
        OffsetBuffer::new(offsets.ok_or_else(too_long)?.into()),
        values,
    ))
}

fn list<From: OffsetSizeTrait, To: OffsetSizeTrait>(
    array: &ArrayRef,
    item: &FieldRef,
) -> Result<ArrayRef, Failure> {
    let list = array.as_list::<From>();
    let (offsets, values) = items::<From, To>(list.value_offsets(), list.nulls(), list.values())?;
    let values = convert(&values, item.data_type());
    let values = values.map_err(|failure| failure.in_field(item.name()))?;
    let list =
        GenericListArray::<To>::try_new(item.clone(), offsets, values, list.nulls().cloned());
    Ok(Arc::new(list?))
}

fn map(array: &ArrayRef, to: &FieldRef, is_sorted: bool) -> Result<ArrayRef, Failure> {
    let map = array.as_map();
    let DataType::Struct(fields) = to.data_type() else {
        return Err(Failure::Type(None));
    };
    let entries: ArrayRef = Arc::new(map.entries().clone());
    let (offsets, entries) = items::<i32, i32>(map.value_offsets(), map.nulls(), &entries)?;
    let entries = entries.as_struct();
    let columns = by_position(entries, fields).map_err(|failure| failure.in_field(to.name()))?;
    if let Some(keys) = columns.first() {
        check_keys(keys, &offsets)?;
    }
    let entries = StructArray::try_new_with_length(
        fields.clone(),
        columns,
        entries.nulls().cloned(),
        entries.len(),
    )?;
    let map = MapArray::try_new(
        to.clone(),
        offsets,
        entries,
        map.nulls().cloned(),
        is_sorted,
    );
    Ok(Arc::new(map?))
}

/// Refuses maps with duplicate keys: some readers fail, others keep one of the values.
fn check_keys(keys: &ArrayRef, offsets: &OffsetBuffer<i32>) -> Result<(), Failure> {
    if offsets.lengths().all(|length| length < 2) {
        return Ok(());
    }
    let converter = RowConverter::new(vec![SortField::new(keys.data_type().clone())])?;
    let rows = converter.convert_columns(std::slice::from_ref(keys))?;
    let mut found = HashSet::new();
    for bounds in offsets.windows(2) {
        let [start, end] = bounds else { continue };
        found.clear();
        for index in start.as_usize()..end.as_usize() {
            if !found.insert(rows.row(index)) {
                let key = array_value_to_string(keys, index)?;
                return Err(Failure::Value(
                    Vec::new(),
                    format!(
                        "it has a map with the key {:?} twice, and readers take one of them or \
                         fail; publish a list of structs with key and value",
                        prefix(&key, 200)
                    ),
                ));
            }
        }
    }
    Ok(())
}

fn by_position(array: &StructArray, to: &Fields) -> Result<Vec<ArrayRef>, Failure> {
    let columns = array.columns().iter().zip(to);
    let converted = columns.map(|(column, field)| {
        let converted = convert(column, field.data_type());
        converted.map_err(|failure| failure.in_field(field.name()))
    });
    converted.collect()
}

/// Converts the fields of a struct by their names. Missing fields become null. Additional fields are
/// refused if they have values.
fn by_name(array: &StructArray, to: &Fields) -> Result<Vec<ArrayRef>, Failure> {
    let names = array.fields().iter().map(|field| field.name());
    if names.eq(to.iter().map(|field| field.name())) {
        return by_position(array, to);
    }
    let named = array.fields().iter().zip(array.columns());
    let named: HashMap<&str, &ArrayRef> = named
        .map(|(field, column)| (field.name().as_str(), column))
        .collect();
    let wanted: HashSet<&str> = to.iter().map(|field| field.name().as_str()).collect();
    let mut more = named.iter().filter(|(name, _)| !wanted.contains(*name));
    if more.any(|(_, column)| column.logical_null_count() < column.len()) {
        return Err(Failure::Type(None));
    }
    let converted = to
        .iter()
        .map(|field| match named.get(field.name().as_str()) {
            Some(column) => {
                let converted = convert(column, field.data_type());
                converted.map_err(|failure| failure.in_field(field.name()))
            }
            None => Ok(new_null_array(field.data_type(), array.len())),
        });
    converted.collect()
}

fn dates(array: &ArrayRef) -> Result<ArrayRef, Failure> {
    let dates = array.as_primitive::<Date64Type>();
    let days = dates.try_unary::<_, Date32Type, _>(|value| {
        let day = i32::try_from(value.div_euclid(DAY)).ok();
        day.filter(|_| value.rem_euclid(DAY) == 0).ok_or(value)
    });
    let days = days.map_err(|value: i64| {
        let reason = format!(
            "{value} ms of type Date64 are no whole day between the years -5,877,641 and \
             5,881,580; publish a timestamp"
        );
        Failure::Value(Vec::new(), reason)
    })?;
    Ok(Arc::new(days))
}

/// Refuses negative intervals, because Parquet's intervals have no sign.
fn checked_interval(array: &ArrayRef) -> Result<ArrayRef, Failure> {
    let valid = |row: &usize| array.is_valid(*row);
    let mut rows = (0..array.len()).filter(valid);
    let is_negative = match array.data_type() {
        DataType::Interval(IntervalUnit::YearMonth) => {
            let values = array.as_primitive::<IntervalYearMonthType>();
            rows.any(|row| values.value(row) < 0)
        }
        DataType::Interval(IntervalUnit::DayTime) => {
            let values = array.as_primitive::<IntervalDayTimeType>();
            rows.any(|row| values.value(row).days < 0 || values.value(row).milliseconds < 0)
        }
        _ => false,
    };
    match is_negative {
        true => Err(Failure::Value(
            Vec::new(),
            "it has a negative interval, and those of Parquet have no sign; publish a number of \
             months, days or milliseconds"
                .to_owned(),
        )),
        false => Ok(array.clone()),
    }
}

/// Converts timestamps and durations to a finer unit, which has a smaller range.
fn finer(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, Failure> {
    if unit_of(to) < unit_of(array.data_type()) {
        return Err(Failure::Type(None));
    }
    cast(array, to).map_err(|error| {
        let reason = format!(
            "{error}: a value of type {} is out of the range of {}, the type of all batches; \
             publish all batches with one unit",
            shown(array.data_type()),
            shown(to)
        );
        Failure::Value(Vec::new(), reason)
    })
}

/// The unit of a type, from seconds to nanoseconds.
fn unit_of(data_type: &DataType) -> Option<TimeUnit> {
    use DataType as T;
    match data_type {
        T::Timestamp(unit, _) | T::Duration(unit) | T::Time32(unit) | T::Time64(unit) => {
            Some(*unit)
        }
        _ => None,
    }
}

/// Converts times of a day, which must be at least 0 and less than 24 hours.
fn times(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, Failure> {
    let per_second = match array.data_type() {
        DataType::Time32(unit) | DataType::Time64(unit) => match unit {
            TimeUnit::Second => 1,
            TimeUnit::Millisecond => 1_000,
            TimeUnit::Microsecond => 1_000_000,
            TimeUnit::Nanosecond => 1_000_000_000,
        },
        _ => return Err(Failure::Type(None)),
    };
    let day = 86_400 * per_second;
    let numbers = match array.data_type() {
        DataType::Time32(_) => cast(&cast(array, &DataType::Int32)?, &DataType::Int64)?,
        _ => cast(array, &DataType::Int64)?,
    };
    let numbers = numbers.as_primitive::<Int64Type>();
    match numbers
        .iter()
        .flatten()
        .find(|value| !(0..day).contains(value))
    {
        Some(value) => Err(Failure::Value(
            Vec::new(),
            format!(
                "{value} of type {} is no time of a day; publish a duration or a number",
                shown(array.data_type())
            ),
        )),
        None if array.data_type() == to => Ok(array.clone()),
        None if unit_of(to) < unit_of(array.data_type()) => Err(Failure::Type(None)),
        None => Ok(cast(array, to)?),
    }
}

/// Converts decimals to a type that stores them exactly.
fn decimals(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, Failure> {
    if array.data_type() == to {
        return within_precision(array.clone(), to);
    }
    // To a smaller scale, arrow's cast rounds.
    if scale_of(to) < scale_of(array.data_type()) {
        return Err(Failure::Type(None));
    }
    let converted = cast(array, to).map_err(Failure::from);
    let converted = converted.and_then(|array| within_precision(array, to));
    converted.map_err(|failure| match failure {
        Failure::Value(path, reason) => {
            let advice = format!(
                "{reason}: the batches have decimals of which {} does not hold all; publish all \
                 with one precision and scale, or text",
                shown(to)
            );
            Failure::Value(path, advice)
        }
        failure => failure,
    })
}

fn scale_of(data_type: &DataType) -> Option<i8> {
    use DataType as T;
    match data_type {
        T::Decimal32(_, scale)
        | T::Decimal64(_, scale)
        | T::Decimal128(_, scale)
        | T::Decimal256(_, scale) => Some(*scale),
        _ => None,
    }
}

fn within_precision(array: ArrayRef, to: &DataType) -> Result<ArrayRef, Failure> {
    // Digits above the declared precision would be cut off.
    match to {
        DataType::Decimal32(precision, _) => {
            let values = array.as_primitive::<Decimal32Type>();
            values.validate_decimal_precision(*precision)?;
        }
        DataType::Decimal64(precision, _) => {
            let values = array.as_primitive::<Decimal64Type>();
            values.validate_decimal_precision(*precision)?;
        }
        DataType::Decimal128(precision, _) => {
            let values = array.as_primitive::<Decimal128Type>();
            values.validate_decimal_precision(*precision)?;
        }
        DataType::Decimal256(precision, _) => {
            let values = array.as_primitive::<Decimal256Type>();
            values.validate_decimal_precision(*precision)?;
        }
        _ => {}
    }
    Ok(array)
}

/// Converts numbers to a type in which all of them have the same value.
fn numbers(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, Failure> {
    let converted = cast(array, to).map_err(|error| Failure::Type(Some(error.to_string())))?;
    let back = cast(&converted, array.data_type());
    let is_same = back
        .as_ref()
        .is_ok_and(|back| back.as_ref() == array.as_ref());
    match is_same {
        true => Ok(converted),
        false => Err(Failure::Type(Some(format!(
            "a value that {} cannot hold exactly",
            shown(to)
        )))),
    }
}
