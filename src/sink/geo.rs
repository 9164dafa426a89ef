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
mod tests {
    use super::*;

    fn fields(columns: &[(&str, DataType)]) -> Vec<FieldRef> {
        let field = |(name, data_type): &(&str, DataType)| {
            FieldRef::new(Field::new(*name, data_type.clone(), true))
        };
        columns.iter().map(field).collect()
    }

    fn point() -> DataType {
        let number = |name: &str| Field::new(name, DataType::Float64, true);
        DataType::Struct(vec![number("x"), number("y")].into())
    }

    fn list(item: DataType) -> DataType {
        DataType::new_list(item, true)
    }

    /// Metadata with one column `g`.
    fn geo(column: Value) -> Value {
        json!({"version": "1.1.0", "primary_column": "g", "columns": {"g": column}})
    }

    fn wkb() -> Value {
        json!({"encoding": "WKB", "geometry_types": ["Point"]})
    }

    fn with(mut object: Value, more: Value) -> Value {
        let object = object.as_object_mut().unwrap();
        for (key, value) in more.as_object().unwrap() {
            match value {
                Value::String(text) if text == "absent" => object.remove(key),
                value => object.insert(key.clone(), value.clone()),
            };
        }
        Value::Object(object.clone())
    }

    #[test]
    fn valid_metadata_stays_as_it_is() {
        use DataType as T;
        let covering = json!({"bbox": {
            "xmin": ["b", "xmin"], "ymin": ["b", "ymin"], "xmax": ["b", "xmax"], "ymax": ["b", "ymax"],
        }});
        let deep = with(
            covering["bbox"].clone(),
            json!({"zmin": ["b", "zmin"], "zmax": ["b", "zmax"]}),
        );
        let sides = ["xmin", "ymin", "zmin", "xmax", "ymax", "zmax"];
        let sides = sides.map(|name| Field::new(name, T::Float32, true));
        let bounds = T::Struct(sides.to_vec().into());
        for (data_type, more) in [
            (T::Binary, json!({})),
            (
                T::LargeBinary,
                json!({"geometry_types": [], "edges": "spherical"}),
            ),
            (T::Binary, json!({"crs": null, "bbox": [0, 0, 1.25, 1]})),
            (
                T::Binary,
                json!({"crs": {"name": "x"}, "bbox": [0, 0, 0, 1, 1, 1]}),
            ),
            (T::Binary, json!({"covering": covering})),
            (T::Binary, json!({"covering": {"bbox": deep}})),
            (point(), json!({"encoding": "point"})),
            (list(point()), json!({"encoding": "linestring"})),
            (list(point()), json!({"encoding": "multipoint"})),
            (list(list(point())), json!({"encoding": "polygon"})),
            (
                list(list(list(point()))),
                json!({"encoding": "multipolygon"}),
            ),
        ] {
            let mut notes = Vec::new();
            let fields = fields(&[("a", T::Int64), ("g", data_type), ("b", bounds.clone())]);
            let text = format!(" {} ", geo(with(wkb(), more)));
            assert_eq!(of_file(&text, &fields, &mut notes), Some(text));
            assert_eq!(notes, [""; 0]);
        }
    }

    #[test]
    fn a_covering_is_left_out_if_the_file_lacks_one_of_its_columns() {
        let number = |name: &str| Field::new(name, DataType::Float64, true);
        let sides = ["xmin", "ymin", "xmax", "ymax", "mmin", "mmax"].map(number);
        let bounds = DataType::Struct(sides.to_vec().into());
        let fields = fields(&[("g", DataType::Binary), ("b", bounds)]);
        let sides =
            ["xmin", "ymin", "xmax", "ymax"].map(|side| (side.to_owned(), json!(["b", side])));
        let flat = Value::Object(sides.into_iter().collect());
        for (more, stays) in [
            (json!({}), true),
            (json!({"mmin": ["b", "mmin"], "mmax": ["b", "mmax"]}), true),
            (json!({"zmin": ["b", "zmin"], "zmax": ["b", "zmax"]}), false),
            (json!({"zmax": ["q", "z"]}), false),
            (json!({"mmax": ["b", "z"]}), false),
            (json!({"zmin": null}), false),
            (json!({"xmin": ["b", "zmin"]}), false),
        ] {
            let given = geo(with(
                wkb(),
                json!({"covering": {"bbox": with(flat.clone(), more.clone())}}),
            ));
            let mut notes = Vec::new();
            let found = of_file(&given.to_string(), &fields, &mut notes).unwrap();
            let found: Value = serde_json::from_str(&found).unwrap();
            match stays {
                true => assert_eq!((found, notes.len()), (given, 0), "{more}"),
                false => {
                    assert_eq!(found, geo(wkb()), "{more}");
                    let note =
                        r#"column "g": in the metadata of GeoParquet, its covering names columns"#;
                    assert!(
                        notes.iter().any(|it| it.starts_with(note)),
                        "{more}: {notes:?}"
                    );
                }
            }
        }
    }

    /// <https://geoparquet.org/releases/v1.1.0/>: `crs` is OGC:CRS84 and `edges` are planar by default.
    #[test]
    fn a_default_that_one_batch_spells_out_is_the_same() {
        let crs84 = json!({"type": "GeographicCRS", "id": {"authority": "OGC", "code": "CRS84"}});
        let merged = |first: &Value, second: &Value| {
            let of = |more: &Value| geo(with(wkb(), more.clone())).to_string();
            let found = merge(&of(first), &of(second)).map_err(|error| error.to_string())?;
            Ok::<Value, String>(serde_json::from_str(&found.unwrap()).unwrap())
        };
        let spelled_out = json!({"edges": "planar", "crs": crs84});
        let in_other_words = json!({"crs": with(crs84.clone(), json!({"name": "WGS 84 (CRS84)"}))});
        for (first, second, want) in [
            (json!({}), json!({"edges": "planar"}), json!({})),
            (json!({}), json!({"crs": crs84}), json!({})),
            (json!({}), spelled_out.clone(), json!({})),
            (
                spelled_out.clone(),
                spelled_out.clone(),
                spelled_out.clone(),
            ),
            (spelled_out.clone(), in_other_words, json!({})),
        ] {
            let want = Ok(geo(with(wkb(), want)));
            assert_eq!(merged(&first, &second), want, "{first} {second}");
            assert_eq!(merged(&second, &first), want, "{second} {first}");
        }
        for (first, second, words) in [
            (json!({}), json!({"edges": "spherical"}), "its edges in"),
            (
                json!({"edges": "planar"}),
                json!({"edges": "spherical"}),
                "its edges in",
            ),
            (json!({}), json!({"edges": null}), "its edges in"),
            (json!({}), json!({"crs": null}), "its crs in"),
            (json!({"crs": crs84}), json!({"crs": null}), "its crs in"),
            (
                json!({}),
                json!({"crs": {"id": {"authority": "EPSG", "code": 4326}}}),
                "its crs in",
            ),
            (
                json!({}),
                json!({"crs": {"id": {"authority": "OGC", "code": "CRS84h"}}}),
                "its crs in",
            ),
            (json!({}), json!({"crs": {"name": "x"}}), "its crs in"),
            (
                json!({}),
                json!({"orientation": "counterclockwise"}),
                "its orientation in",
            ),
            (json!({}), json!({"epoch": 2020}), "its epoch in"),
        ] {
            for (first, second) in [(&first, &second), (&second, &first)] {
                let error = merged(first, second).unwrap_err();
                assert!(error.contains(words), "{first} {second}: {error}");
            }
        }
    }

    #[test]
    fn what_contradicts_the_file_or_the_specification_is_left_out_and_noted() {
        use DataType as T;
        let left_out = r#"column "g": its entry in the metadata of GeoParquet was left out: "#;
        let entry = |reason: &str| format!("{left_out}{reason}");
        let whole =
            |reason: &str| format!(r#"the metadata of GeoParquet ("geo") was left out: {reason}"#);
        let of = |data_type: &T| format!("and the column has the type {data_type}");
        let half = Field::new("x", T::Float64, true);
        let half = T::Struct(vec![half].into());
        let second = json!({"g": wkb(), "h": wkb()});
        let unknown = with(wkb(), json!({"geometry_types": []}));
        let plain = || geo(wkb());
        let cases: Vec<(T, Value, Option<Value>, String)> = vec![
            (T::Utf8, plain(), None, entry("the encoding WKB needs bytes, ") + &of(&T::Utf8)),
            (T::LargeUtf8, plain(), None, of(&T::LargeUtf8)),
            (T::Int64, plain(), None, of(&T::Int64)),
            (T::Null, plain(), None, of(&T::Null)),
            (T::FixedSizeBinary(21), plain(), None, of(&T::FixedSizeBinary(21))),
            (list(T::Binary), plain(), None, of(&list(T::Binary))),
            (T::Binary, geo(with(wkb(), json!({"encoding": "WKT"}))), None,
                entry(r#"GeoParquet has no encoding "WKT""#)),
            (T::Binary, geo(with(wkb(), json!({"encoding": "wkb"}))), None,
                entry(r#"GeoParquet has no encoding "wkb""#)),
            (T::Binary, geo(with(wkb(), json!({"encoding": "absent"}))), None, entry("it has no encoding")),
            (T::Binary, geo(with(wkb(), json!({"encoding": 1}))), None, entry("it has no encoding")),
            (T::Binary, geo(with(wkb(), json!({"encoding": "point"}))), None,
                entry("the encoding point needs structs of doubles x and y, or lists of these, ")
                    + &of(&T::Binary)),
            (list(point()), geo(with(wkb(), json!({"encoding": "point"}))), None, entry("the encoding point")),
            (point(), geo(with(wkb(), json!({"encoding": "polygon"}))), None, entry("the encoding polygon")),
            (half.clone(), geo(with(wkb(), json!({"encoding": "point"}))), None, entry("the encoding point")),
            (T::Binary, geo(with(wkb(), json!({"crs": "EPSG:4326"}))), None,
                entry("its crs is neither a PROJJSON object nor null")),
            (T::Binary, geo(json!([])), None, entry("it is no JSON object")),
            (T::Binary, json!([]), None, whole("it is no JSON object")),
            (T::Binary, json!({}), None, whole("it has no version")),
            (T::Binary, with(plain(), json!({"version": 1})), None, whole("it has no version")),
            (T::Binary, with(plain(), json!({"columns": []})), None, whole("its columns are no JSON object")),
            (T::Binary, json!({"version": "1.0.0"}), Some(json!({"version": "1.0.0", "columns": {}})),
                "the metadata of GeoParquet has no columns".to_owned()),
            (T::Binary, with(plain(), json!({"columns": second})), Some(plain()),
                r#"column "h": its entry in the metadata of GeoParquet was left out: the file has no such column"#
                    .to_owned()),
            (T::Binary, with(plain(), json!({"columns": second, "primary_column": "h"})), Some(plain()),
                r#"column "g": it is the primary column"#.to_owned()),
            (T::Binary, with(plain(), json!({"primary_column": "absent"})), Some(plain()),
                r#"column "g": it is the primary column"#.to_owned()),
            (T::Binary, geo(with(wkb(), json!({"geometry_types": "Point"}))), Some(geo(unknown.clone())),
                r#"column "g": in the metadata of GeoParquet, its geometry_types are no list"#.to_owned()),
            (T::Binary, geo(with(wkb(), json!({"geometry_types": "absent"}))), Some(geo(unknown)),
                "its geometry_types are no list".to_owned()),
            (T::Binary, geo(with(wkb(), json!({"bbox": [1, 2, 3]}))), Some(plain()), "its bbox".to_owned()),
            (T::Binary, geo(with(wkb(), json!({"bbox": ["1", 2, 3, 4]}))), Some(plain()), "its bbox".to_owned()),
            (T::Binary, geo(with(wkb(), json!({"covering": {"bbox": {"xmin": ["b", "xmin"]}}}))), Some(plain()),
                "its covering".to_owned()),
        ];
        for (data_type, given, want, note) in cases {
            let mut notes = Vec::new();
            let fields = fields(&[("g", data_type.clone())]);
            let found = of_file(&given.to_string(), &fields, &mut notes);
            let found = found.map(|text| serde_json::from_str::<Value>(&text).unwrap());
            assert_eq!(found, want, "{data_type} {given}");
            assert!(
                notes.iter().any(|it| it.contains(&note)),
                "{given}: {notes:?}"
            );
        }
        let mut notes = Vec::new();
        assert_eq!(of_file("{", &fields(&[]), &mut notes), None);
        assert_eq!(notes, [whole("it is no JSON object")]);
    }
}
