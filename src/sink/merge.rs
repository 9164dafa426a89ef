//! Merges the types of a column in different batches to one type, at any depth.
//!
//! The *evidence* of a column is its stored type, in which each node without values (only nulls, or no
//! items) is `Null`. A type that a batch declares for a node without values is ignored if another batch
//! has values there. For example, pandas chooses an arbitrary type for columns without values.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StructArray};
use arrow::datatypes::{
    ArrowNativeType, DECIMAL128_MAX_PRECISION, DataType, Field, FieldRef, Fields, TimeUnit,
};

use super::metadata::{self, Clash};
use super::types::{stored, stored_field, wide_decimal};

/// The evidence of an array: its stored type, with `Null` for nodes without values.
fn evidence(array: &dyn Array) -> DataType {
    use DataType as T;
    if array.null_count() == array.len() {
        return T::Null;
    }
    match array.data_type() {
        T::List(item) => {
            let list = array.as_list::<i32>();
            T::List(of_items(item, list.values(), list.value_offsets()))
        }
        T::LargeList(item) => {
            let list = array.as_list::<i64>();
            T::LargeList(of_items(item, list.values(), list.value_offsets()))
        }
        T::ListView(item) => {
            let list = array.as_list_view::<i32>();
            T::List(of_views(item, list.values(), list.value_sizes()))
        }
        T::LargeListView(item) => {
            let list = array.as_list_view::<i64>();
            T::LargeList(of_views(item, list.values(), list.value_sizes()))
        }
        T::FixedSizeList(item, size) => {
            let values = evidence(array.as_fixed_size_list().values());
            T::FixedSizeList(with_type(item, values), *size)
        }
        T::Map(entries, is_sorted) => {
            let map = array.as_map();
            let (start, count) = span(map.value_offsets());
            let inner = of_struct(&map.entries().slice(start, count));
            T::Map(with_type(entries, inner), *is_sorted)
        }
        T::Struct(_) => of_struct(array.as_struct()),
        T::Dictionary(..) => evidence(array.as_any_dictionary().values()),
        T::RunEndEncoded(..) => match array.logical_null_count() == array.len() {
            true => T::Null,
            false => stored(array.data_type()),
        },
        other => stored(other),
    }
}

/// The field of a column with its evidence as the type.
pub(super) fn known(field: &FieldRef, column: &dyn Array) -> FieldRef {
    with_type(field, evidence(column))
}

/// True when a node of a type is `Null` or a struct without fields.
pub(super) fn is_unknown(data_type: &DataType) -> bool {
    use DataType as T;
    match data_type {
        T::Null => true,
        T::List(item) | T::LargeList(item) | T::FixedSizeList(item, _) | T::Map(item, _) => {
            is_unknown(item.data_type())
        }
        T::Struct(fields) => {
            fields.is_empty() || fields.iter().any(|field| is_unknown(field.data_type()))
        }
        _ => false,
    }
}

fn with_type(field: &FieldRef, data_type: DataType) -> FieldRef {
    let field = stored_field(field);
    match *field.data_type() == data_type {
        true => field,
        false => Arc::new(field.as_ref().clone().with_data_type(data_type)),
    }
}

fn span<O: ArrowNativeType>(offsets: &[O]) -> (usize, usize) {
    let start = offsets.first().map_or(0, |offset| offset.as_usize());
    let end = offsets.last().map_or(start, |offset| offset.as_usize());
    (start, end.saturating_sub(start))
}

fn of_items<O: ArrowNativeType>(item: &FieldRef, values: &ArrayRef, offsets: &[O]) -> FieldRef {
    let (start, count) = span(offsets);
    with_type(item, evidence(&values.slice(start, count)))
}

fn of_views<O: ArrowNativeType>(item: &FieldRef, values: &ArrayRef, sizes: &[O]) -> FieldRef {
    let has_values = sizes.iter().any(|size| size.as_usize() > 0);
    let values = has_values.then(|| evidence(values));
    with_type(item, values.unwrap_or(DataType::Null))
}

fn of_struct(array: &StructArray) -> DataType {
    let fields = array.fields().iter().zip(array.columns());
    let fields = fields.map(|(field, column)| with_type(field, evidence(column)));
    DataType::Struct(fields.collect())
}

/// The type that can store the values of both, by their evidence. It is not certain for all types: for
/// integers and floats the conversion checks each value.
fn merge(first: &DataType, second: &DataType) -> Result<DataType, Clash> {
    use DataType as T;
    if first == second {
        return Ok(first.clone());
    }
    Ok(match (first, second) {
        (T::Null, other) | (other, T::Null) => other.clone(),
        (T::Utf8 | T::LargeUtf8, T::Utf8 | T::LargeUtf8) => T::LargeUtf8,
        (T::Binary | T::FixedSizeBinary(_), T::Binary | T::FixedSizeBinary(_)) => T::Binary,
        (
            T::Binary | T::LargeBinary | T::FixedSizeBinary(_),
            T::Binary | T::LargeBinary | T::FixedSizeBinary(_),
        ) => T::LargeBinary,
        (T::FixedSizeList(first, size), T::FixedSizeList(second, other)) if size == other => {
            T::FixedSizeList(merge_fields(first, second)?, *size)
        }
        (
            T::List(first) | T::FixedSizeList(first, _),
            T::List(second) | T::FixedSizeList(second, _),
        ) => T::List(merge_fields(first, second)?),
        (
            T::List(first) | T::LargeList(first) | T::FixedSizeList(first, _),
            T::List(second) | T::LargeList(second) | T::FixedSizeList(second, _),
        ) => T::LargeList(merge_fields(first, second)?),
        (T::Map(first, is_sorted), T::Map(second, other)) => {
            T::Map(merge_entries(first, second)?, *is_sorted && *other)
        }
        (T::Struct(first), T::Struct(second)) => T::Struct(merge_structs(first, second)?),
        (T::Timestamp(unit, zone), T::Timestamp(other, other_zone)) if zone == other_zone => {
            T::Timestamp(finer(*unit, *other), zone.clone())
        }
        (T::Duration(unit), T::Duration(other)) => T::Duration(finer(*unit, *other)),
        (T::Time32(unit) | T::Time64(unit), T::Time32(other) | T::Time64(other)) => {
            match finer(*unit, *other) {
                unit @ (TimeUnit::Second | TimeUnit::Millisecond) => T::Time32(unit),
                unit => T::Time64(unit),
            }
        }
        _ if first.is_decimal() && second.is_decimal() => {
            merge_decimals(first, second).ok_or(Clash::Types)?
        }
        _ if first.is_decimal() || second.is_decimal() => return Err(Clash::Types),
        _ if first.is_numeric() && second.is_numeric() => merge_numbers(first, second),
        _ => return Err(Clash::Types),
    })
}

fn finer(unit: TimeUnit, other: TimeUnit) -> TimeUnit {
    unit.max(other)
}

fn merge_numbers(first: &DataType, second: &DataType) -> DataType {
    use DataType as T;
    let width = |data_type: &T| data_type.primitive_width().unwrap_or(0);
    let wider = match width(second) > width(first) {
        true => second,
        false => first,
    };
    if first.is_floating() != second.is_floating() {
        return T::Float64;
    }
    if first.is_floating() || first.is_signed_integer() == second.is_signed_integer() {
        return wider.clone();
    }
    // A signed type needs one bit more than an unsigned one, so the next larger size.
    let signed = |data_type: &T| match data_type.is_signed_integer() {
        true => width(data_type),
        false => width(data_type) * 2,
    };
    match signed(first).max(signed(second)) {
        2 => T::Int16,
        4 => T::Int32,
        _ => T::Int64,
    }
}

/// The merged type of two decimals. If neither has more than 38 digits, the merged type has not either,
/// because some readers read wrong values of larger types.
fn merge_decimals(first: &DataType, second: &DataType) -> Option<DataType> {
    let (precision, scale) = digits(first)?;
    let (other_precision, other_scale) = digits(second)?;
    let before = |precision: u8, scale: i8| i16::from(precision) - i16::from(scale);
    let before = before(precision, scale).max(before(other_precision, other_scale));
    let scale = scale.max(other_scale);
    let merged = u8::try_from(before + i16::from(scale)).ok()?;
    let widest = precision.max(other_precision).max(DECIMAL128_MAX_PRECISION);
    match widest {
        DECIMAL128_MAX_PRECISION => wide_decimal(merged.min(widest), scale),
        _ => wide_decimal(merged, scale),
    }
}

fn digits(data_type: &DataType) -> Option<(u8, i8)> {
    use DataType as T;
    match data_type {
        T::Decimal32(precision, scale)
        | T::Decimal64(precision, scale)
        | T::Decimal128(precision, scale)
        | T::Decimal256(precision, scale) => Some((*precision, *scale)),
        _ => None,
    }
}

/// Merges two fields. The result has the name of the first.
pub(super) fn merge_fields(first: &FieldRef, second: &FieldRef) -> Result<FieldRef, Clash> {
    if first == second {
        return Ok(first.clone());
    }
    let in_field = |clash: Clash| match clash {
        Clash::Metadata {
            mut path,
            key,
            first: one,
            second: other,
        } => {
            path.push(first.name().clone());
            Clash::Metadata {
                path,
                key,
                first: one,
                second: other,
            }
        }
        Clash::Types => Clash::Types,
    };
    let data_type = merge(first.data_type(), second.data_type()).map_err(in_field)?;
    let is_nullable = first.is_nullable() || second.is_nullable();
    let field = Field::new(first.name(), data_type, is_nullable);
    let metadata = metadata::merge_fields(first, second).map_err(in_field)?;
    Ok(Arc::new(field.with_metadata(metadata)))
}

/// Merges the entries of two maps. Keys and values are matched by position.
fn merge_entries(first: &FieldRef, second: &FieldRef) -> Result<FieldRef, Clash> {
    let (DataType::Struct(fields), DataType::Struct(others)) =
        (first.data_type(), second.data_type())
    else {
        return Err(Clash::Types);
    };
    let pairs = fields.iter().zip(others);
    let fields: Result<Fields, Clash> = pairs
        .map(|(field, other)| merge_fields(field, other))
        .collect();
    let entries = first
        .as_ref()
        .clone()
        .with_data_type(DataType::Struct(fields?));
    Ok(Arc::new(entries))
}

/// Fields by their names.
fn by_name(fields: &Fields) -> HashMap<&str, &FieldRef> {
    let named = fields.iter().map(|field| (field.name().as_str(), field));
    named.collect()
}

/// Merges the fields of two structs by name. A field that one struct lacks becomes nullable.
fn merge_structs(first: &Fields, second: &Fields) -> Result<Fields, Clash> {
    let (mine, others) = (by_name(first), by_name(second));
    if mine.len() < first.len() || others.len() < second.len() {
        // With duplicate names, fields are matched by position.
        let names = first.iter().map(|field| field.name());
        let is_same = names.eq(second.iter().map(|field| field.name()));
        let pairs = first.iter().zip(second);
        return match is_same {
            true => pairs
                .map(|(field, other)| merge_fields(field, other))
                .collect(),
            false => Err(Clash::Types),
        };
    }
    let nullable = |field: &FieldRef| match field.is_nullable() {
        true => field.clone(),
        false => Arc::new(field.as_ref().clone().with_nullable(true)),
    };
    let merged = first
        .iter()
        .map(|field| match others.get(field.name().as_str()) {
            Some(other) => merge_fields(field, other),
            None => Ok(nullable(field)),
        });
    let is_new = |field: &&FieldRef| !mine.contains_key(field.name().as_str());
    let new = second.iter().filter(is_new);
    merged.chain(new.map(|field| Ok(nullable(field)))).collect()
}

/// The evidence of a field, in which nodes without evidence get the declared type.
pub(super) fn fill_field(evidence: &FieldRef, declared: &FieldRef) -> FieldRef {
    if !is_unknown(evidence.data_type()) {
        return evidence.clone();
    }
    let data_type = fill(evidence.data_type(), declared.data_type());
    let mut field = evidence.as_ref().clone().with_data_type(data_type);
    if evidence.data_type() == &DataType::Null {
        field.set_metadata(declared.metadata().clone());
    }
    Arc::new(field)
}

/// The evidence, in which nodes without evidence get the declared type.
fn fill(evidence: &DataType, declared: &DataType) -> DataType {
    use DataType as T;
    if !is_unknown(evidence) {
        return evidence.clone();
    }
    match (evidence, declared) {
        (T::Null, declared) => declared.clone(),
        (T::List(item), T::List(other) | T::LargeList(other) | T::FixedSizeList(other, _)) => {
            T::List(fill_field(item, other))
        }
        (T::LargeList(item), T::List(other) | T::LargeList(other) | T::FixedSizeList(other, _)) => {
            T::LargeList(fill_field(item, other))
        }
        (
            T::FixedSizeList(item, size),
            T::List(other) | T::LargeList(other) | T::FixedSizeList(other, _),
        ) => T::FixedSizeList(fill_field(item, other), *size),
        (T::Map(entries, is_sorted), T::Map(other, _)) => {
            let data_type = match (entries.data_type(), other.data_type()) {
                (T::Struct(fields), T::Struct(others)) => {
                    let pairs = fields.iter().zip(others);
                    T::Struct(
                        pairs
                            .map(|(field, other)| fill_field(field, other))
                            .collect(),
                    )
                }
                (data_type, _) => data_type.clone(),
            };
            let entries = entries.as_ref().clone().with_data_type(data_type);
            T::Map(Arc::new(entries), *is_sorted)
        }
        (T::Struct(fields), T::Struct(others)) if fields.is_empty() => T::Struct(others.clone()),
        (T::Struct(fields), T::Struct(others)) => {
            let names = by_name(others);
            let filled = fields.iter().enumerate().map(|(index, field)| {
                let at_index = others
                    .get(index)
                    .filter(|other| other.name() == field.name());
                match at_index.or_else(|| names.get(field.name().as_str()).copied()) {
                    Some(other) => fill_field(field, other),
                    None => field.clone(),
                }
            });
            T::Struct(filled.collect())
        }
        (evidence, _) => evidence.clone(),
    }
}
