//! How sinks store Arrow types, and which types a Parquet file cannot have. The latter are refused before
//! a file is created: the writer panics for some, and fails for others at the first row only.
//!
//! Dictionaries are stored as their values. The Parquet writer orders a dictionary page by first
//! appearance, and readers use this order as the order of categories. So pandas would sort and compare by
//! an order that the plugin has not declared.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{
    DECIMAL128_MAX_PRECISION, DECIMAL256_MAX_PRECISION, DataType, Field, FieldRef, Fields,
    IntervalUnit, Metadata, Schema, SchemaRef, TimeUnit,
};

use super::Error;
use crate::job::text::prefix;
use crate::limits;

/// A type as messages show it. The text is cut, because unions and structs name all their fields.
pub(super) fn shown(data_type: &DataType) -> String {
    let text = data_type.to_string();
    match prefix(&text, 200) {
        cut if cut.len() < text.len() => format!("{cut}..."),
        _ => text,
    }
}

/// The type of a field as messages show it, with its extension type.
pub(super) fn shown_field(field: &Field) -> String {
    let data_type = shown(field.data_type());
    let Some(name) = field.metadata().get(EXTENSION) else {
        return data_type;
    };
    let parameters = field.metadata().get(EXTENSION_METADATA);
    let parameters = parameters.map_or("", |text| prefix(text, 200));
    match parameters {
        "" => format!("{data_type} (extension {name})"),
        parameters => format!("{data_type} (extension {name} {parameters})"),
    }
}

/// The type as which sinks store values of a type. Types that have no equivalent in Parquet (a date in
/// milliseconds, a time in seconds) are replaced, because most readers would read them as integers.
/// Views, runs, dictionaries and list views are replaced by types that every reader supports.
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
        T::Dictionary(_, values) => stored(values),
        T::RunEndEncoded(_, values) => stored(values.data_type()),
        other => other.clone(),
    }
}

/// Keys of a field's metadata with the name of an extension type and its parameters.
pub(super) const EXTENSION: &str = "ARROW:extension:name";
pub(super) const EXTENSION_METADATA: &str = "ARROW:extension:metadata";

/// Prefix of metadata keys with which Polars marks a dictionary as one of its own types.
const POLARS_KEYS: &str = "_PL_";

/// A field as sinks store it.
pub(super) fn stored_field(field: &FieldRef) -> FieldRef {
    let runs = match field.data_type() {
        DataType::RunEndEncoded(_, values) => Some(values),
        _ => None,
    };
    let is_nullable = field.is_nullable() || runs.is_some_and(|values| values.is_nullable());
    let mut data_type = stored(field.data_type());
    if is_nullable && let DataType::Struct(fields) = &data_type {
        data_type = DataType::Struct(below_nulls(fields));
    }
    let is_foreign = |key: &String| key.starts_with(POLARS_KEYS);
    if data_type == *field.data_type()
        && is_nullable == field.is_nullable()
        && !field.metadata().keys().any(is_foreign)
    {
        return field.clone();
    }
    // The extension type of run-end encoded values is in the metadata of their values field.
    let mut metadata = runs.map_or_else(Metadata::new, |values| values.metadata().clone());
    metadata.extend(field.metadata().clone());
    metadata.retain(|key, _| !is_foreign(key));
    let field = Field::new(field.name(), data_type, is_nullable);
    Arc::new(field.with_metadata(metadata))
}

/// The fields of a nullable struct. Lists of a fixed size become nullable in it: pyarrow does not read those
/// that are not where the struct is null.
fn below_nulls(fields: &Fields) -> Fields {
    let fields = fields.iter().map(|field| match field.data_type() {
        DataType::FixedSizeList(..) if !field.is_nullable() => {
            Arc::new(field.as_ref().clone().with_nullable(true))
        }
        DataType::Struct(inner) if !field.is_nullable() => {
            let inner = DataType::Struct(below_nulls(inner));
            Arc::new(field.as_ref().clone().with_data_type(inner))
        }
        _ => field.clone(),
    });
    fields.collect()
}

/// The decimal type that stores the values of another exactly and whose scale Parquet supports: 0 to the
/// precision. It has 128 bits if possible, because some readers read wrong values of other types.
fn decimal(precision: u8, scale: i8) -> Option<DataType> {
    match u8::try_from(scale) {
        Ok(digits) => wide_decimal(precision.max(digits), scale),
        Err(_) => wide_decimal(precision.checked_add(scale.unsigned_abs())?, 0),
    }
}

/// A decimal type with this number of digits; `None` when there are too many.
pub(super) fn wide_decimal(precision: u8, scale: i8) -> Option<DataType> {
    if precision <= DECIMAL128_MAX_PRECISION {
        return Some(DataType::Decimal128(precision, scale));
    }
    (precision <= DECIMAL256_MAX_PRECISION).then_some(DataType::Decimal256(precision, scale))
}

/// Advice for messages: what to publish instead of a type that Parquet does not have.
fn parquet_advice(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Union(..) => "publish a column for each of its types, or text",
        DataType::Interval(_) => {
            "publish its months, days and nanoseconds as numbers, or a duration"
        }
        _ => "publish it as another type",
    }
}

/// Refuses columns, and fields in columns, that a Parquet file cannot have.
pub(super) fn check_parquet(schema: &SchemaRef) -> Result<(), Error> {
    for field in schema.fields() {
        check_shape(field.name(), field.data_type(), 0, 0)?;
    }
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

/// Refuses types that readers do not open: structs with duplicate field names, and types that are nested
/// too deeply. `levels` and `lists` are the numbers of levels and of lists above this type.
fn check_shape(path: &str, data_type: &DataType, levels: usize, lists: usize) -> Result<(), Error> {
    use DataType as T;
    let refusal = |path: &str, reason: String| {
        Err(Error::Column {
            column: prefix(path, 200).to_owned(),
            reason,
        })
    };
    let mut path = Cow::from(path);
    let (fields, lists) = match data_type {
        T::List(item)
        | T::LargeList(item)
        | T::ListView(item)
        | T::LargeListView(item)
        | T::FixedSizeList(item, _) => (std::slice::from_ref(item), lists + 1),
        T::Map(entries, _) => match entries.data_type() {
            T::Struct(fields) => {
                path.to_mut().push_str(&format!(".{}", entries.name()));
                (&**fields, lists + 1)
            }
            _ => return Ok(()),
        },
        T::Struct(fields) => (&**fields, lists),
        T::Dictionary(_, values) => return check_shape(&path, values, levels, lists),
        T::RunEndEncoded(_, values) => {
            return check_shape(&path, values.data_type(), levels, lists);
        }
        _ => return Ok(()),
    };
    if levels == limits::TYPE_LEVELS_MAX || lists > limits::LIST_LEVELS_MAX {
        return refusal(
            &path,
            format!(
                "its type has more than {} lists and maps or {} levels within each other, and readers do \
             not open such files; publish inner ones as JSON text",
                limits::LIST_LEVELS_MAX,
                limits::TYPE_LEVELS_MAX
            ),
        );
    }
    let mut names = BTreeSet::new();
    for field in fields {
        if field.name().is_empty() && matches!(data_type, T::Struct(_)) {
            return refusal(
                &path,
                "it is a struct with a field whose name is empty, and DuckDB does not open such files; \
                 give it a name"
                    .to_owned(),
            );
        }
        if !names.insert(field.name()) {
            return refusal(
                &path,
                format!(
                    "it is a struct with more than one field named {:?}; give each a name of its own",
                    prefix(field.name(), 200)
                ),
            );
        }
    }
    fields.iter().try_for_each(|field| {
        let path = format!("{path}.{}", field.name());
        check_shape(&path, field.data_type(), levels + 1, lists)
    })
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
        T::Struct(fields) => return fields.iter().find_map(|field| inner(field)),
        T::Dictionary(_, values) => return unsupported(path, values),
        T::RunEndEncoded(_, values) => return unsupported(path, values.data_type()),
        T::Union(..) | T::Interval(IntervalUnit::MonthDayNano) => false,
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

/// A schema in which structs without fields get a field with an empty name and only nulls. Their rows are
/// stored in this form until a later batch has fields for them.
pub(super) fn padded_schema(schema: &SchemaRef) -> SchemaRef {
    let is_complete = |field: &FieldRef| without_fields("", field).is_none();
    if schema.fields().iter().all(is_complete) {
        return schema.clone();
    }
    let fields: Fields = schema.fields().iter().map(padded_field).collect();
    Arc::new(Schema::new(fields))
}

fn padded_field(field: &FieldRef) -> FieldRef {
    use DataType as T;
    let data_type = match field.data_type() {
        T::Struct(fields) if fields.is_empty() => {
            T::Struct(vec![Field::new("", T::Null, true)].into())
        }
        T::Struct(fields) => T::Struct(fields.iter().map(padded_field).collect()),
        T::List(item) => T::List(padded_field(item)),
        T::LargeList(item) => T::LargeList(padded_field(item)),
        T::FixedSizeList(item, size) => T::FixedSizeList(padded_field(item), *size),
        T::Map(entries, is_sorted) => T::Map(padded_field(entries), *is_sorted),
        other => other.clone(),
    };
    Arc::new(field.as_ref().clone().with_data_type(data_type))
}

/// Path of the first struct without fields, at or below a field.
fn without_fields(above: &str, field: &Field) -> Option<String> {
    use DataType as T;
    let path = match above {
        "" => field.name().clone(),
        above => format!("{above}.{}", field.name()),
    };
    match field.data_type() {
        T::Struct(fields) if fields.is_empty() => Some(path),
        T::Struct(fields) => fields.iter().find_map(|field| without_fields(&path, field)),
        T::List(item) | T::LargeList(item) | T::FixedSizeList(item, _) | T::Map(item, _) => {
            without_fields(&path, item)
        }
        _ => None,
    }
}

/// Refuses structs that have no field in any batch.
pub(super) fn check_complete(schema: &SchemaRef) -> Result<(), Error> {
    let mut fields = schema.fields().iter();
    match fields.find_map(|field| without_fields("", field)) {
        Some(column) => Err(Error::Column {
            column,
            reason:
                "a Parquet sink cannot store type Struct(), and no batch has given it a field; \
                     publish null, text, or a struct with fields"
                    .to_owned(),
        }),
        None => Ok(()),
    }
}
