//! The columns of a published Parquet file with the types that every reader finds in it. Types that only
//! Arrow tells apart, such as dictionaries and large strings, are the same here.

use std::path::Path;

use ::parquet::arrow::parquet_to_arrow_schema;
use arrow::datatypes::{DataType, Field, Schema};

use super::check::footer_of;
use super::types::{EXTENSION, EXTENSION_METADATA};
use super::{geo, quiet_panics};
use crate::job::text::prefix;

/// Names and types of a file's columns; none when it is no Parquet file that can be read.
pub fn columns_of_file(path: &Path) -> Option<Vec<(String, String)>> {
    let size = path.metadata().ok()?.len();
    let footer = footer_of(path, size).ok()?;
    let columns = quiet_panics(|| {
        let file = footer.file_metadata();
        // Without its metadata, which has the Arrow schema that the file was written from.
        let schema = parquet_to_arrow_schema(file.schema_descr(), None).ok()?;
        let declared = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata()).ok();
        let columns = schema.fields().iter().map(|field| {
            let name = field.name();
            let mut kind = shown(field.data_type());
            let meaning = declared.as_ref().and_then(|schema| meaning(schema, name));
            if let Some(meaning) = meaning {
                kind.push_str(&format!(" ({meaning})"));
            }
            (name.clone(), kind)
        });
        Some(columns.collect())
    });
    columns.ok().flatten()
}

/// What values of a column mean beyond their type: an extension type, a coordinate system.
fn meaning(schema: &Schema, column: &str) -> Option<String> {
    let geo = schema.metadata().get("geo");
    if let Some(crs) = geo.and_then(|text| geo::crs_of(text, column)) {
        return Some(crs);
    }
    let field = schema.field_with_name(column).ok()?;
    let name = field.metadata().get(EXTENSION)?;
    let parameters = field.metadata().get(EXTENSION_METADATA);
    match parameters.map_or("", |text| prefix(text, 80)) {
        "" => Some(name.clone()),
        parameters => Some(format!("{name} {parameters}")),
    }
}

/// A type as SQL and Arrow users write it, without the names of list items and without nullability.
fn shown(kind: &DataType) -> String {
    let fields = |fields: &[std::sync::Arc<Field>]| {
        let fields = fields.iter();
        let fields = fields.map(|field| format!("{}: {}", field.name(), shown(field.data_type())));
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
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            format!("list<{}>", shown(item.data_type()))
        }
        DataType::Map(entry, _) => format!("map<{}>", shown(entry.data_type())),
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
                DataType::Timestamp(TimeUnit::Microsecond, None),
                "timestamp(µs)",
            ),
            (
                DataType::Timestamp(TimeUnit::Millisecond, Some("Europe/Berlin".into())),
                "timestamp(ms, Europe/Berlin)",
            ),
            (DataType::Decimal128(10, 2), "decimal128(10, 2)"),
        ];
        for (kind, text) in cases {
            assert_eq!(shown(&kind), text);
        }
    }
}
