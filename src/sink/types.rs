//! What sinks store of an Arrow type, and which types a Parquet file cannot have. These are refused
//! before a file is created: the writer panics for some, and finds others at the first row only.

use std::sync::Arc;

use arrow::datatypes::{
    DECIMAL128_MAX_PRECISION, DECIMAL256_MAX_PRECISION, DataType, Field, FieldRef, IntervalUnit,
    SchemaRef, TimeUnit,
};

use super::Error;
use crate::job::text::prefix;

/// A type in a message: unions and structs name all their fields.
pub(super) fn shown(data_type: &DataType) -> String {
    let text = data_type.to_string();
    match prefix(&text, 200) {
        cut if cut.len() < text.len() => format!("{cut}..."),
        _ => text,
    }
}

/// The type that sinks store of a type. It has a meaning of its own in Parquet: a column of one
/// without (a date in milliseconds, a time in seconds) would be one of integers for most readers.
/// Views, runs and list views become what every reader takes.
pub(super) fn stored(data_type: &DataType) -> DataType {
    use DataType as T;
    match data_type {
        T::Date64 => T::Date32,
        T::Time32(TimeUnit::Second) => T::Time32(TimeUnit::Millisecond),
        T::Timestamp(TimeUnit::Second, zone) => T::Timestamp(TimeUnit::Millisecond, zone.clone()),
        T::Utf8View => T::LargeUtf8,
        T::BinaryView => T::LargeBinary,
        T::Decimal32(precision, scale)
        | T::Decimal64(precision, scale)
        | T::Decimal128(precision, scale)
        | T::Decimal256(precision, scale) => {
            decimal(*precision, *scale).unwrap_or_else(|| data_type.clone())
        }
        T::List(item) | T::ListView(item) => T::List(stored_field(item)),
        T::LargeList(item) | T::LargeListView(item) => T::LargeList(stored_field(item)),
        T::FixedSizeList(item, size) => T::FixedSizeList(stored_field(item), *size),
        T::Map(entries, is_sorted) => T::Map(stored_field(entries), *is_sorted),
        T::Struct(fields) => T::Struct(fields.iter().map(stored_field).collect()),
        T::Dictionary(_, values) => match stored(values) {
            // Readers take dictionaries of texts and bytes only.
            values @ (T::Utf8 | T::LargeUtf8 | T::Binary | T::LargeBinary) => dictionary(values),
            T::Dictionary(_, values) => dictionary(*values),
            values => values,
        },
        T::RunEndEncoded(_, values) => stored(values.data_type()),
        other => other.clone(),
    }
}

/// A dictionary as sinks store it.
pub(super) fn dictionary(values: DataType) -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(values))
}

/// A field as sinks store it.
pub(super) fn stored_field(field: &FieldRef) -> FieldRef {
    let is_nullable = field.is_nullable()
        || matches!(field.data_type(), DataType::RunEndEncoded(_, values) if values.is_nullable());
    let data_type = stored(field.data_type());
    if data_type == *field.data_type() && is_nullable == field.is_nullable() {
        return field.clone();
    }
    let field = field.as_ref().clone().with_data_type(data_type);
    Arc::new(field.with_nullable(is_nullable))
}

/// The decimal that holds the values of another exactly, with a scale that Parquet has: 0 to the
/// precision. Readers take those of 128 bits; of others some read wrong values.
fn decimal(precision: u8, scale: i8) -> Option<DataType> {
    match u8::try_from(scale) {
        Ok(digits) => wide_decimal(precision.max(digits), scale),
        Err(_) => wide_decimal(precision.checked_add(scale.unsigned_abs())?, 0),
    }
}

/// A decimal with that many digits; none when there are too many.
pub(super) fn wide_decimal(precision: u8, scale: i8) -> Option<DataType> {
    if precision <= DECIMAL128_MAX_PRECISION {
        return Some(DataType::Decimal128(precision, scale));
    }
    (precision <= DECIMAL256_MAX_PRECISION).then_some(DataType::Decimal256(precision, scale))
}

/// What a plugin may publish instead of a type that Parquet has not.
fn parquet_advice(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Union(..) => "publish a column for each of its types, or text",
        DataType::Interval(_) => {
            "publish its months, days and nanoseconds as numbers, or a duration"
        }
        DataType::Struct(_) => "publish null, or a struct with fields",
        _ => "publish it as another type",
    }
}

/// Refuses columns, and fields in columns, that a Parquet file cannot have.
pub(super) fn check_parquet(schema: &SchemaRef) -> Result<(), Error> {
    let mut fields = schema.fields().iter();
    match fields.find_map(|field| unsupported(field.name(), field.data_type())) {
        Some((column, data_type)) => Err(Error::Column {
            column,
            reason: format!(
                "a Parquet sink cannot store type {}; {}",
                shown(&data_type),
                parquet_advice(&data_type)
            ),
        }),
        None => Ok(()),
    }
}

/// Path and type of the first field, below a column, that a Parquet file cannot have.
fn unsupported(path: &str, data_type: &DataType) -> Option<(String, DataType)> {
    use DataType as T;
    let inner = |field: &Field| {
        let path = format!("{path}.{}", field.name());
        unsupported(&path, field.data_type())
    };
    let is_stored = match data_type {
        T::List(item)
        | T::LargeList(item)
        | T::ListView(item)
        | T::LargeListView(item)
        | T::FixedSizeList(item, _)
        | T::Map(item, _) => return inner(item),
        T::Struct(fields) if !fields.is_empty() => {
            return fields.iter().find_map(|field| inner(field));
        }
        T::Dictionary(_, values) => return unsupported(path, values),
        T::RunEndEncoded(_, values) => return unsupported(path, values.data_type()),
        T::Struct(_) | T::Union(..) | T::Interval(IntervalUnit::MonthDayNano) => false,
        T::FixedSizeBinary(size) => *size > 0,
        T::Decimal32(precision, scale)
        | T::Decimal64(precision, scale)
        | T::Decimal128(precision, scale)
        | T::Decimal256(precision, scale) => {
            u8::try_from(*scale).is_ok_and(|scale| scale <= *precision)
        }
        T::Interval(IntervalUnit::YearMonth | IntervalUnit::DayTime)
        | T::Null
        | T::Boolean
        | T::Int8
        | T::Int16
        | T::Int32
        | T::Int64
        | T::UInt8
        | T::UInt16
        | T::UInt32
        | T::UInt64
        | T::Float16
        | T::Float32
        | T::Float64
        | T::Timestamp(..)
        | T::Date32
        | T::Date64
        | T::Time32(_)
        | T::Time64(_)
        | T::Duration(_)
        | T::Binary
        | T::LargeBinary
        | T::BinaryView
        | T::Utf8
        | T::LargeUtf8
        | T::Utf8View => true,
    };
    (!is_stored).then(|| (path.to_owned(), data_type.clone()))
}
