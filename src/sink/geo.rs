//! The metadata of GeoParquet: <https://geoparquet.org/releases/v1.1.0/>.

use arrow::datatypes::{DataType, Field, FieldRef};
use serde_json::{Map, Value, json};

use super::Error;
use super::types::{EXTENSION, EXTENSION_METADATA, shown};
use crate::job::text::prefix;

type Object = Map<String, Value>;

const VERSION: &str = "version";
const COLUMNS: &str = "columns";
const PRIMARY: &str = "primary_column";
const BOUNDS: &str = "bbox";
const TYPES: &str = "geometry_types";
const COVERING: &str = "covering";
/// Encodings of version 1.1 besides well-known binary, and the number of lists around their coordinates.
const NATIVE: [(&str, usize); 6] = [
    ("point", 0),
    ("linestring", 1),
    ("multipoint", 1),
    ("polygon", 2),
    ("multilinestring", 2),
    ("multipolygon", 3),
];
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
    geo.get(COLUMNS)
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
}

fn columns_mut(geo: &mut Object) -> Option<&mut Object> {
    geo.get_mut(COLUMNS).and_then(Value::as_object_mut)
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
        if meaning(mine, key) != meaning(other, key) {
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

/// The value of a key. The specification's default, where an entry has it, counts as absent.
fn meaning<'a>(column: &'a Object, key: &str) -> Option<&'a Value> {
    column.get(key).filter(|value| match key {
        "edges" => *value != "planar",
        "crs" => {
            let id = value.get("id");
            let has =
                |part: &str, text: &str| id.and_then(|id| id.get(part)?.as_str()) == Some(text);
            !(has("authority", "OGC") && has("code", "CRS84"))
        }
        _ => true,
    })
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

/// Metadata for a file with these columns. What contradicts them or the specification is left out, because
/// readers do not open such a file: DuckDB fails at a column of text whose entry has an encoding of bytes.
/// `None` when nothing is left. `notes` gets a line for each change.
pub(super) fn of_file(text: &str, fields: &[FieldRef], notes: &mut Vec<String>) -> Option<String> {
    let reason = match parse(text) {
        None => "it is no JSON object",
        Some(geo) if !geo.get(VERSION).is_some_and(Value::is_string) => "it has no version",
        Some(geo) if geo.get(COLUMNS).is_some_and(|columns| !columns.is_object()) => {
            "its columns are no JSON object"
        }
        Some(geo) => return adapted(text, geo, fields, notes),
    };
    notes.push(format!(
        "the metadata of GeoParquet (\"geo\") was left out: {reason}"
    ));
    None
}

fn adapted(
    text: &str,
    mut geo: Object,
    fields: &[FieldRef],
    notes: &mut Vec<String>,
) -> Option<String> {
    let before = notes.len();
    let primary = geo.get(PRIMARY).cloned();
    let Some(columns) = columns_mut(&mut geo) else {
        notes.push("the metadata of GeoParquet has no columns; none were added".to_owned());
        geo.insert(COLUMNS.to_owned(), json!({}));
        return Some(Value::Object(geo).to_string());
    };
    let had_columns = !columns.is_empty();
    columns.retain(|name, column| {
        let fault = match column.as_object_mut() {
            None => Err("it is no JSON object".to_owned()),
            Some(column) => {
                let field = fields.iter().find(|field| field.name() == name);
                check_column(field, column).map(|()| complete(name, column, fields, notes))
            }
        };
        if let Err(reason) = &fault {
            let name = prefix(name, 200);
            notes.push(format!(
                "column {name:?}: its entry in the metadata of GeoParquet was left out: {reason}"
            ));
        }
        fault.is_ok()
    });
    if had_columns && columns.is_empty() {
        return None;
    }
    let mut names = fields.iter().map(|field| field.name());
    let first = names.find(|name| columns.contains_key(*name));
    let has_primary = matches!(&primary, Some(Value::String(name)) if columns.contains_key(name));
    if let Some(first) = first.filter(|_| !has_primary) {
        let name = prefix(first, 200);
        notes.push(format!(
            "column {name:?}: it is the primary column in the metadata of GeoParquet, which named \
             none of its columns"
        ));
        geo.insert(PRIMARY.to_owned(), json!(first));
    }
    Some(match notes.len() == before {
        true => text.to_owned(),
        false => Value::Object(geo).to_string(),
    })
}

/// Checks what readers need of a column's entry. The error is the reason why it cannot be used.
fn check_column(field: Option<&FieldRef>, column: &Object) -> Result<(), String> {
    let Some(field) = field else {
        return Err("the file has no such column".to_owned());
    };
    let Some(encoding) = column.get("encoding").and_then(Value::as_str) else {
        return Err("it has no encoding".to_owned());
    };
    let native = NATIVE.iter().find(|(name, _)| *name == encoding);
    let (is_right, wanted) = match (encoding, native) {
        ("WKB", _) => {
            let is_bytes = matches!(field.data_type(), DataType::Binary | DataType::LargeBinary);
            (is_bytes, "bytes")
        }
        (_, Some((_, lists))) => {
            let is_right = has_coordinates(field.data_type(), *lists);
            (is_right, "structs of doubles x and y, or lists of these")
        }
        _ => {
            let shown = prefix(encoding, 80);
            return Err(format!("GeoParquet has no encoding {shown:?}"));
        }
    };
    if !is_right {
        let shown = shown(field.data_type());
        return Err(format!(
            "the encoding {encoding} needs {wanted}, and the column has the type {shown}"
        ));
    }
    match column.get("crs") {
        None | Some(Value::Null | Value::Object(_)) => Ok(()),
        Some(_) => Err("its crs is neither a PROJJSON object nor null".to_owned()),
    }
}

/// True for structs of coordinates within this number of lists.
fn has_coordinates(data_type: &DataType, lists: usize) -> bool {
    match (data_type, lists.checked_sub(1)) {
        (
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _),
            Some(lists),
        ) => has_coordinates(item.data_type(), lists),
        (DataType::Struct(fields), None) => {
            let has = |name: &str| fields.iter().any(|field| field.name() == name);
            let is_coordinate = |field: &FieldRef| {
                let name = field.name().as_str();
                ["x", "y", "z", "m"].contains(&name) && *field.data_type() == DataType::Float64
            };
            has("x") && has("y") && fields.iter().all(is_coordinate)
        }
        _ => false,
    }
}

/// Replaces what is missing or wrong in a valid column's entry and is not needed to read its values.
fn complete(name: &str, column: &mut Object, fields: &[FieldRef], notes: &mut Vec<String>) {
    let mut note = |what: &str| {
        let name = prefix(name, 200);
        notes.push(format!(
            "column {name:?}: in the metadata of GeoParquet, {what}"
        ));
    };
    let are = |value: Option<&Value>, is: fn(&Value) -> bool| {
        value
            .and_then(Value::as_array)
            .is_some_and(|all| all.iter().all(is))
    };
    if !are(column.get(TYPES), Value::is_string) {
        note("its geometry_types are no list of names; they are stored as unknown");
        column.insert(TYPES.to_owned(), json!([]));
    }
    let numbers = column.get(BOUNDS).and_then(Value::as_array).map(Vec::len);
    let is_bounds = are(column.get(BOUNDS), Value::is_number) && matches!(numbers, Some(4 | 6 | 8));
    if column.contains_key(BOUNDS) && !is_bounds {
        note("its bbox has no 4, 6 or 8 numbers and was left out");
        column.remove(BOUNDS);
    }
    if let Some(covering) = column.get(COVERING)
        && !is_covering(covering, fields)
    {
        note("its covering names columns that the file does not have and was left out");
        column.remove(COVERING);
    }
}

/// True for a covering of which each path leads to a field of a struct of the file. Those of z and m may be
/// absent.
fn is_covering(covering: &Value, fields: &[FieldRef]) -> bool {
    let bounds = covering.get(BOUNDS);
    let leads = |side: &str| {
        let path = bounds.and_then(|bounds| bounds.get(side)?.as_array());
        let [column, inner] = path?.as_slice() else {
            return None;
        };
        let (column, inner) = (column.as_str()?, inner.as_str()?);
        let field = fields.iter().find(|field| field.name() == column)?;
        let DataType::Struct(fields) = field.data_type() else {
            return None;
        };
        let inner: &Field = fields.iter().find(|field| field.name() == inner)?;
        Some(inner.data_type().is_floating())
    };
    let is_absent = |side: &str| bounds.is_none_or(|bounds| bounds.get(side).is_none());
    let mut required = ["xmin", "ymin", "xmax", "ymax"].into_iter();
    let mut optional = ["zmin", "zmax", "mmin", "mmax"].into_iter();
    required.all(|side| leads(side) == Some(true))
        && optional.all(|side| is_absent(side) || leads(side) == Some(true))
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

/// The columns of geometries in well-known binary.
pub(super) fn binary_columns(text: &str) -> Vec<String> {
    let geo = parse(text).unwrap_or_default();
    let is_binary = |column: &Value| column.get("encoding").is_some_and(|it| it == "WKB");
    let found = columns(&geo).filter(|(_, column)| is_binary(column));
    found.map(|(name, _)| name.clone()).collect()
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

#[cfg(test)]
mod tests;
