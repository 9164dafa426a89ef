//! Checks the texts of columns of extension type `arrow.json`. Their Parquet type is JSON, and DuckDB does not
//! read a file in which such a text is not JSON.

use std::fmt;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::Error;
use super::types::EXTENSION;
use crate::job::text::prefix;

/// Refuses a batch with a text that is not JSON where its column has that type.
pub(super) fn check(batch: &RecordBatch) -> Result<(), Error> {
    let columns = batch.schema_ref().fields().iter().zip(batch.columns());
    for (field, column) in columns.filter(|(field, _)| has_json(field)) {
        check_field(field, column).map_err(|reason| Error::Column {
            column: prefix(field.name(), 200).to_owned(),
            reason,
        })?;
    }
    Ok(())
}

fn is_json(field: &Field) -> bool {
    field
        .metadata()
        .get(EXTENSION)
        .is_some_and(|name| name == "arrow.json")
}

fn has_json(field: &Field) -> bool {
    use DataType as T;
    is_json(field)
        || match field.data_type() {
            T::List(item) | T::LargeList(item) | T::FixedSizeList(item, _) | T::Map(item, _) => {
                has_json(item)
            }
            T::Struct(fields) => fields.iter().any(|field| has_json(field)),
            _ => false,
        }
}

fn check_field(field: &Field, column: &ArrayRef) -> Result<(), String> {
    use DataType as T;
    if !has_json(field) {
        return Ok(());
    }
    match field.data_type() {
        T::Utf8 if is_json(field) => check_texts(column.as_string::<i32>().iter()),
        T::LargeUtf8 if is_json(field) => check_texts(column.as_string::<i64>().iter()),
        T::Struct(fields) => {
            let mut columns = fields.iter().zip(column.as_struct().columns());
            columns.try_for_each(|(field, column)| check_field(field, column))
        }
        T::List(item) => check_field(item, column.as_list::<i32>().values()),
        T::LargeList(item) => check_field(item, column.as_list::<i64>().values()),
        T::FixedSizeList(item, _) => check_field(item, column.as_fixed_size_list().values()),
        T::Map(entries, _) => {
            let found: ArrayRef = std::sync::Arc::new(column.as_map().entries().clone());
            check_field(entries, &found)
        }
        _ => Ok(()),
    }
}

fn check_texts<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> Result<(), String> {
    for text in texts.flatten() {
        let checked = match serde_json::from_str::<Valid>(text) {
            Err(_) if NAMES.iter().any(|name| text.contains(name)) => {
                serde_json::from_str(&without_names(text))
            }
            checked => checked,
        };
        if let Err(error) = checked {
            return Err(format!(
                "it has the extension type arrow.json, and the text {:?} is not JSON ({error}): give JSON, or \
                 a column of plain text",
                prefix(text, 100)
            ));
        }
    }
    Ok(())
}

/// Numbers that JSON does not have. Python writes them, and DuckDB reads them.
const NAMES: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

/// The text with empty objects instead of these numbers.
fn without_names(text: &str) -> String {
    let mut found = String::with_capacity(text.len());
    // Every second part is within a JSON text, except after an escaped quote.
    let mut is_text = false;
    for part in text.split_inclusive('"') {
        if is_text {
            found.push_str(part);
        } else {
            let replaced = NAMES
                .iter()
                .fold(part.to_owned(), |part, name| part.replace(name, "{}"));
            found.push_str(&replaced);
        }
        let before = part.strip_suffix('"').unwrap_or(part);
        let escapes = before.bytes().rev().take_while(|byte| *byte == b'\\');
        is_text ^= !is_text || escapes.count() % 2 == 0;
    }
    found
}

/// A JSON value. Its texts are decoded, because a text with half of a surrogate pair is not JSON.
struct Valid;

impl<'de> Deserialize<'de> for Valid {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Valid;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Valid, E> {
        Ok(Valid)
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Valid, E> {
        Ok(Valid)
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Valid, E> {
        Ok(Valid)
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Valid, E> {
        Ok(Valid)
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Valid, E> {
        Ok(Valid)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Valid, E> {
        Ok(Valid)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Valid, A::Error> {
        while items.next_element::<Valid>()?.is_some() {}
        Ok(Valid)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Valid, A::Error> {
        while let Some(Valid) = fields.next_key::<Valid>()? {
            fields.next_value::<Valid>()?;
        }
        Ok(Valid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_are_not_json_are_refused() {
        for (text, is_valid) in [
            ("{}", true),
            (r#"{"a": [1, -2.5, 1e3, null, true, "x\n", {}]}"#, true),
            (r#""\ud83d\ude00""#, true),
            ("18446744073709551616", true),
            ("[NaN, -Infinity]", true),
            (r#"{"a\\": NaN, "\"": [Infinity]}"#, true),
            (r#"{"NaN": NaN}"#, true),
            ("NaN", true),
            ("[NaN", false),
            ("{'a': NaN}", false),
            ("[1NaN, 2]", false),
            ("[NaNNaN]", false),
            ("[Infinity0]", false),
            (r#"{"a": NaN, "b": 'x'}"#, false),
            ("", false),
            (" ", false),
            ("{'a': 1}", false),
            (r#""\ud83d""#, false),
            (r#"{"\udc00": 1}"#, false),
            ("{} {}", false),
            ("{", false),
        ] {
            let checked = check_texts([None, Some(text)].into_iter());
            assert_eq!(checked.is_ok(), is_valid, "{text}: {checked:?}");
        }
    }
}
