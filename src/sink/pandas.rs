//! pandas' metadata of a data frame, in the metadata of a schema: which columns were its index, and the
//! types of columns and of their names. `pd.read_parquet` fails if it does not match the file.
//! Specification: <https://pandas.pydata.org/docs/development/developer.html>.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

const COLUMNS: &str = "columns";
const INDEX_COLUMNS: &str = "index_columns";
const COLUMN_INDEXES: &str = "column_indexes";

fn parse(text: &str) -> Option<Object> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) if object.get(COLUMNS).is_some_and(Value::is_array) => {
            Some(object)
        }
        _ => None,
    }
}

fn entries(object: &Object) -> &[Value] {
    let columns = object.get(COLUMNS).and_then(Value::as_array);
    columns.map_or(&[], Vec::as_slice)
}

/// The column of an entry. Old versions of pandas have no `field_name`.
fn column_of(entry: &Value) -> Option<&str> {
    let name = entry.get("field_name").or_else(|| entry.get("name"));
    name.and_then(Value::as_str)
}

/// Merges the metadata of two batches. `None` when one of them does not have the form that pandas writes.
/// Adds columns with different entries to `changed`.
pub(super) fn merge(first: &str, second: &str, changed: &mut BTreeSet<String>) -> Option<String> {
    let (mut merged, other) = (parse(first)?, parse(second)?);
    for entry in entries(&merged) {
        let Some(column) = column_of(entry) else {
            continue;
        };
        let mut others = entries(&other).iter();
        let is_same = others
            .find(|other| column_of(other) == Some(column))
            .is_none_or(|other| other == entry);
        if !is_same {
            changed.insert(column.to_owned());
        }
    }
    for key in [INDEX_COLUMNS, COLUMN_INDEXES] {
        if merged.get(key) != other.get(key) {
            merged.insert(key.to_owned(), json!([]));
        }
    }
    Some(Value::Object(merged).to_string())
}

/// The metadata for a file: without the types of columns that are in `changed` or were categories, and
/// with the ID columns (`own`). `None` when the text does not have the form that pandas writes, or when a
/// column of the index is not in the file.
pub(super) fn adapt(
    text: &str,
    columns: &BTreeSet<&str>,
    changed: &BTreeSet<String>,
    own: &[&str],
) -> Option<String> {
    let mut object = parse(text)?;
    let index = object.get(INDEX_COLUMNS).and_then(Value::as_array)?;
    let index: BTreeSet<String> = index
        .iter()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    if !index.iter().all(|name| columns.contains(name.as_str())) {
        return None;
    }
    let levels = object.get_mut(COLUMN_INDEXES).and_then(Value::as_array_mut);
    let mut level_count = 0;
    for level in levels.into_iter().flatten() {
        // The names of the ID columns are text, so the levels of column names become text, whatever type
        // they had.
        let level = level.as_object_mut()?;
        level_count += 1;
        level.insert("pandas_type".to_owned(), json!("unicode"));
        level.insert("numpy_type".to_owned(), json!("object"));
        level.insert("metadata".to_owned(), json!({"encoding": "UTF-8"}));
    }
    let entries = object.get_mut(COLUMNS)?.as_array_mut()?;
    let has_type = |entry: &Value| {
        let is_category = entry.get("pandas_type").and_then(Value::as_str) == Some("categorical");
        !is_category && column_of(entry).is_none_or(|column| !changed.contains(column))
    };
    // pandas needs entries for the columns of the index, and for all columns if their names have several
    // levels.
    let is_needed = |entry: &Value| {
        level_count > 1 || column_of(entry).is_some_and(|column| index.contains(column))
    };
    entries.retain(|entry| has_type(entry) || is_needed(entry));
    for entry in entries.iter_mut() {
        if !has_type(entry) {
            let entry = entry.as_object_mut()?;
            entry.insert("pandas_type".to_owned(), json!("object"));
            entry.insert("numpy_type".to_owned(), json!("object"));
            entry.insert("metadata".to_owned(), Value::Null);
        }
    }
    if level_count > 1 {
        for column in own {
            let empty = ", ''".repeat(level_count - 1);
            entries.push(json!({
                "name": format!("('{column}'{empty})"),
                "field_name": column,
                "pandas_type": "int64",
                "numpy_type": "int64",
                "metadata": null,
            }));
        }
    }
    Some(Value::Object(object).to_string())
}
