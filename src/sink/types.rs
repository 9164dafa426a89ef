//! Types of columns that a Parquet file cannot have. They are refused before a file is created: the
//! writer panics for some, and finds others at the first row only.

use arrow::datatypes::{DataType, Field, IntervalUnit, SchemaRef};

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

/// Refuses columns, and fields in columns, that a Parquet file cannot have.
pub(super) fn check_parquet(schema: &SchemaRef) -> Result<(), Error> {
    let mut fields = schema.fields().iter();
    match fields.find_map(|field| unsupported(field.name(), field.data_type())) {
        Some((column, data_type)) => Err(Error::Column {
            column,
            reason: format!(
                "a Parquet sink cannot store type {}; publish it as another type",
                shown(&data_type)
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
