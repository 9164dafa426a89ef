//! The columns of a published Parquet file with the types that every reader finds in it. Types that only
//! Arrow tells apart, such as dictionaries and large strings, are the same here.

use std::path::Path;

use ::parquet::arrow::parquet_to_arrow_schema;
use arrow::datatypes::{DataType, Field};

use super::check::footer_of;
use super::quiet_panics;

/// Names and types of a file's columns; none when it is no Parquet file that can be read.
pub fn columns_of_file(path: &Path) -> Option<Vec<(String, String)>> {
    let size = path.metadata().ok()?.len();
    let footer = footer_of(path, size).ok()?;
    let columns = quiet_panics(|| {
        // Without its metadata, which has the Arrow schema that the file was written from.
        let schema = parquet_to_arrow_schema(footer.file_metadata().schema_descr(), None).ok()?;
        let columns = schema.fields().iter();
        let columns = columns.map(|field| (field.name().clone(), shown(field.data_type())));
        Some(columns.collect())
    });
    columns.ok().flatten()
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
            (DataType::Decimal128(10, 2), "decimal128(10, 2)"),
        ];
        for (kind, text) in cases {
            assert_eq!(shown(&kind), text);
        }
    }
}
