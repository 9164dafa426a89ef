//! The metadata of GeoParquet: <https://geoparquet.org/releases/v1.1.0/>.

use arrow::datatypes::{DataType, FieldRef};
use serde_json::{Map, Value, json};

use super::Error;
use super::types::{EXTENSION, EXTENSION_METADATA};
use crate::job::text::prefix;

type Object = Map<String, Value>;

const BOUNDS: &str = "bbox";
const TYPES: &str = "geometry_types";
/// Keys that determine the meaning of a column's values. Columns with different values for one of them
/// cannot be merged.
const MEANING: [&str; 5] = ["crs", "encoding", "edges", "orientation", "epoch"];

fn parse(text: &str) -> Option<Object> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}

fn columns(geo: &Object) -> impl Iterator<Item = (&String, &Value)> {
    geo.get("columns")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

fn columns_mut(geo: &mut Object) -> Option<&mut Object> {
    geo.get_mut("columns").and_then(Value::as_object_mut)
}

/// Merges the metadata of two batches. `None` when one of them does not have the expected form. An error
/// when a column has different meanings.
pub(super) fn merge(first: &str, second: &str) -> Result<Option<String>, Error> {
    let (Some(mut merged), Some(second)) = (parse(first), parse(second)) else {
        return Ok(None);
    };
    for (name, column) in columns(&second) {
        let Some(all) = columns_mut(&mut merged) else {
            return Ok(None);
        };
        match (
            all.get_mut(name).map(Value::as_object_mut),
            column.as_object(),
        ) {
            (Some(Some(mine)), Some(other)) => merge_columns(name, mine, other)?,
            (None, Some(_)) => {
                all.insert(name.clone(), column.clone());
            }
            _ => return Ok(None),
        }
    }
    Ok(Some(Value::Object(merged).to_string()))
}

fn merge_columns(name: &str, mine: &mut Object, other: &Object) -> Result<(), Error> {
    for key in MEANING {
        if mine.get(key) != other.get(key) {
            let shown = |value: Option<&Value>| match value {
                Some(value) => prefix(&value.to_string(), 200).to_owned(),
                None => "its default".to_owned(),
            };
            return Err(Error::Column {
                column: name.to_owned(),
                reason: format!(
                    "its {key} in the metadata of GeoParquet is {} in one batch and {} in a later \
                     one; publish all batches with the same, or the others to a topic of their own",
                    shown(mine.get(key)),
                    shown(other.get(key))
                ),
            });
        }
    }
    let types = types(mine.get(TYPES), other.get(TYPES));
    // Removes keys with different values, such as bounds, which are valid for the rows of one batch only.
    mine.retain(|key, value| other.get(key) == Some(value));
    mine.insert(TYPES.to_owned(), types);
    Ok(())
}

/// The geometry types of both. An empty list means unknown types.
fn types(first: Option<&Value>, second: Option<&Value>) -> Value {
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let (mut all, others) = (list(first), list(second));
    if all.is_empty() || others.is_empty() {
        return json!([]);
    }
    for other in others {
        if !all.contains(&other) {
            all.push(other);
        }
    }
    Value::Array(all)
}

/// Creates metadata for columns with GeoArrow's extension type for well-known binary. Without it, readers
/// would read them as plain bytes. `None` when there is no such column.
pub(super) fn of_fields(fields: &[FieldRef]) -> Option<String> {
    let mut columns = Object::new();
    let mut first = None;
    for field in fields {
        let is_binary = matches!(field.data_type(), DataType::Binary | DataType::LargeBinary);
        let extension = field.metadata().get(EXTENSION).map(String::as_str);
        if !is_binary || extension != Some("geoarrow.wkb") {
            continue;
        }
        let parameters = field.metadata().get(EXTENSION_METADATA);
        let parameters = parameters.and_then(|text| parse(text)).unwrap_or_default();
        let mut column = Object::new();
        column.insert("encoding".to_owned(), json!("WKB"));
        column.insert(TYPES.to_owned(), json!([]));
        // Null means an unknown CRS. GeoParquet accepts only PROJJSON objects, not texts.
        let crs = parameters.get("crs").filter(|crs| crs.is_object());
        column.insert("crs".to_owned(), crs.cloned().unwrap_or(Value::Null));
        match parameters.get("edges").and_then(Value::as_str) {
            None | Some("planar") => {}
            Some("spherical") => {
                column.insert("edges".to_owned(), json!("spherical"));
            }
            Some(_) => continue,
        }
        first = first.or(Some(field.name()));
        columns.insert(field.name().clone(), Value::Object(column));
    }
    let geo = json!({"version": "1.1.0", "primary_column": first?, "columns": columns});
    Some(geo.to_string())
}

/// Removes bounds and geometry types, which may be valid for a part of the rows only.
pub(super) fn without_bounds(text: &str) -> String {
    let Some(mut geo) = parse(text) else {
        return text.to_owned();
    };
    for column in columns_mut(&mut geo)
        .into_iter()
        .flat_map(Object::values_mut)
    {
        if let Some(column) = column.as_object_mut() {
            column.remove(BOUNDS);
            column.insert(TYPES.to_owned(), json!([]));
        }
    }
    Value::Object(geo).to_string()
}

/// The common name of a column's coordinate reference system; `None` when the column has no geometry.
pub(super) fn crs_of(text: &str, column: &str) -> Option<String> {
    let geo = parse(text)?;
    let (_, column) = columns(&geo).find(|(name, _)| *name == column)?;
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Some(match column.get("crs") {
        None => "OGC:CRS84".to_owned(),
        Some(Value::Null) => "no CRS".to_owned(),
        Some(crs) => {
            let id = crs.get("id");
            let part = |key: &str| id.and_then(|id| id.get(key)).map(text);
            match (part("authority"), part("code"), crs.get("name")) {
                (Some(authority), Some(code), _) => format!("{authority}:{code}"),
                (_, _, Some(name)) => text(name),
                _ => prefix(&crs.to_string(), 80).to_owned(),
            }
        }
    })
}
