//! Names and types of the columns of published output. `casparian run` compares the schemas of its
//! outputs by them. Types that readers do not distinguish, such as dictionaries and large strings, are
//! equal here. The columns of a Parquet file are read from its footer, those of rows in a table from the
//! job's receipt.

use std::path::Path;

use ::parquet::arrow::parquet_to_arrow_schema;
use arrow::datatypes::{DataType, Field, Schema};
use serde_json::Value;

use super::footer::footer_of;
use super::types::{EXTENSION, EXTENSION_METADATA};
use super::{geo, quiet_panics};
use crate::job::text::prefix;

/// Names and types of a file's columns; `None` when it cannot be read as Parquet.
pub fn columns_of_file(path: &Path) -> Option<Vec<(String, String)>> {
    let size = path.metadata().ok()?.len();
    let footer = footer_of(path, size).ok()?;
    let columns = quiet_panics(|| {
        let file = footer.file_metadata();
        // Uses the Arrow schema in the footer if possible, because Parquet has neither durations nor
        // sizes of lists.
        let declared = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata());
        let schema = declared.or_else(|_| parquet_to_arrow_schema(file.schema_descr(), None));
        let schema = schema.ok()?;
        let columns = schema.fields().iter().map(|field| {
            let kind = match crs(&schema, field.name()) {
                Some(crs) => format!("{} ({crs})", shown(field.data_type())),
                None => shown_field(field),
            };
            (field.name().clone(), kind)
        });
        Some(columns.collect())
    });
    columns.ok().flatten()
}

/// Names and types of a table's columns as JSON text for a receipt; `None` when it has more than
/// `size_max` bytes.
pub(super) fn columns_of_table(schema: &Schema, size_max: usize) -> Option<String> {
    let fields = schema.fields().iter();
    let columns = fields.map(|field| (field.name(), kept(field.data_type())));
    let columns: Vec<(&String, String)> = columns.collect();
    let text = serde_json::to_string(&columns).ok()?;
    (text.len() <= size_max).then_some(text)
}

/// Names and types of the columns of a table, by the artifact with this URI in a receipt. `None` when the
/// receipt does not have them.
pub fn columns_of_receipt(receipt: &str, uri: &str) -> Option<Vec<(String, String)>> {
    let receipt: Value = serde_json::from_str(receipt).ok()?;
    let mut artifacts = receipt.get("artifacts")?.as_array()?.iter();
    let artifact = artifacts.find(|artifact| artifact.get("uri").is_some_and(|it| it == uri))?;
    serde_json::from_str(artifact.get("columns")?.as_str()?).ok()
}

/// The type that is left of a type in a SQLite table: numbers have one size, dates and times are text,
/// timestamps with a zone are UTC.
fn kept(kind: &DataType) -> String {
    use DataType as T;
    match kind {
        T::Int8 | T::Int16 | T::Int32 | T::UInt8 | T::UInt16 | T::UInt32 => "int64".to_owned(),
        T::Float16 | T::Float32 => "double".to_owned(),
        T::FixedSizeBinary(_) => "binary".to_owned(),
        T::Date64 => kept(&T::Date32),
        T::Time32(_) | T::Time64(_) => "time".to_owned(),
        T::Timestamp(_, Some(_)) => "timestamp (UTC)".to_owned(),
        T::Timestamp(_, None) => "timestamp".to_owned(),
        T::Dictionary(_, values) => kept(values),
        other => shown(other),
    }
}

/// The coordinate reference system of a column, by GeoParquet's metadata.
fn crs(schema: &Schema, column: &str) -> Option<String> {
    geo::crs_of(schema.metadata().get("geo")?, column)
}

/// The type of a field, with its extension type.
fn shown_field(field: &Field) -> String {
    let kind = shown(field.data_type());
    let Some(name) = field.metadata().get(EXTENSION) else {
        return kind;
    };
    let parameters = field.metadata().get(EXTENSION_METADATA);
    match parameters.map_or("", |text| prefix(text, 80)) {
        "" => format!("{kind} ({name})"),
        parameters => format!("{kind} ({name} {parameters})"),
    }
}

/// The type of a field of a struct or of the items of a list. Readers of several files fail if one of them has
/// nulls there and another one may not.
fn shown_inner(field: &Field) -> String {
    let not_null = if field.is_nullable() { "" } else { " not null" };
    format!("{}{not_null}", shown_field(field))
}

/// A type in the notation of SQL and Arrow users, without the names of list items.
fn shown(kind: &DataType) -> String {
    let fields = |fields: &[std::sync::Arc<Field>]| {
        let fields = fields.iter();
        let fields = fields.map(|field| format!("{}: {}", field.name(), shown_inner(field)));
        fields.collect::<Vec<_>>().join(", ")
    };
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "binary".to_owned(),
        DataType::Float16 => "half".to_owned(),
        DataType::Float32 => "float".to_owned(),
        DataType::Float64 => "double".to_owned(),
        DataType::Boolean => "bool".to_owned(),
        DataType::Timestamp(unit, zone) => {
            let unit = DataType::Timestamp(*unit, None).to_string().to_lowercase();
            match zone {
                Some(zone) => format!("{}, {zone})", unit.trim_end_matches(')')),
                None => unit,
            }
        }
        DataType::List(item) | DataType::LargeList(item) => format!("list<{}>", shown_inner(item)),
        DataType::FixedSizeList(item, size) => format!("list<{}>[{size}]", shown_inner(item)),
        DataType::Dictionary(_, values) => shown(values),
        DataType::Map(entry, _) => match entry.data_type() {
            DataType::Struct(inner) => {
                let inner: Vec<String> = inner.iter().map(|field| shown_field(field)).collect();
                format!("map<{}>", inner.join(", "))
            }
            other => format!("map<{}>", shown(other)),
        },
        DataType::Struct(inner) => format!("struct<{}>", fields(inner)),
        other => other.to_string().to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Fields, TimeUnit};

    use super::*;

    #[test]
    fn types_are_shown_without_what_readers_do_not_see() {
        let field = |name: &str, kind| Field::new(name, kind, true);
        let list = |name: &str| DataType::List(field(name, DataType::Int64).into());
        let pair = Fields::from(vec![field("a", DataType::Float64), field("b", list("x"))]);
        let cases = [
            (DataType::Int64, "int64"),
            (DataType::LargeUtf8, "string"),
            (list("item"), "list<int64>"),
            (DataType::Struct(pair), "struct<a: double, b: list<int64>>"),
            (
                DataType::Struct(vec![Field::new("a", DataType::Int64, false)].into()),
                "struct<a: int64 not null>",
            ),
            (
                DataType::Timestamp(TimeUnit::Microsecond, None),
                "timestamp(µs)",
            ),
            (
                DataType::Timestamp(TimeUnit::Millisecond, Some("Europe/Berlin".into())),
                "timestamp(ms, Europe/Berlin)",
            ),
            (DataType::Decimal128(10, 2), "decimal128(10, 2)"),
            (DataType::Duration(TimeUnit::Second), "duration(s)"),
            (
                DataType::FixedSizeList(
                    field("item", DataType::Duration(TimeUnit::Nanosecond)).into(),
                    2,
                ),
                "list<duration(ns)>[2]",
            ),
            (
                DataType::Dictionary(DataType::Int8.into(), DataType::Utf8.into()),
                "string",
            ),
        ];
        for (kind, text) in cases {
            assert_eq!(shown(&kind), text);
        }
    }

    #[test]
    fn columns_of_a_table_are_in_its_receipt() {
        let zone = Some("Europe/Berlin".into());
        let fields = vec![
            Field::new("n", DataType::Int8, true),
            Field::new("b", DataType::Boolean, true),
            Field::new("t", DataType::Timestamp(TimeUnit::Second, zone), true),
        ];
        let schema = Schema::new(fields);
        let text = columns_of_table(&schema, 1000).unwrap();
        assert_eq!(columns_of_table(&schema, text.len() - 1), None);
        let table = serde_json::json!({"uri": "sqlite:///a.db/t", "columns": text});
        let other = serde_json::json!({"uri": "sqlite:///a.db/u"});
        let receipt = serde_json::json!({"artifacts": [other, table]}).to_string();
        let columns = columns_of_receipt(&receipt, "sqlite:///a.db/t").unwrap();
        let columns: Vec<(&str, &str)> = columns
            .iter()
            .map(|(name, kind)| (name.as_str(), kind.as_str()))
            .collect();
        let want = [("n", "int64"), ("b", "bool"), ("t", "timestamp (UTC)")];
        assert_eq!(columns, want);
        assert_eq!(columns_of_receipt(&receipt, "sqlite:///a.db/u"), None);
        assert_eq!(columns_of_receipt("{", "sqlite:///a.db/t"), None);
    }
}
