//! Names of columns that a sink cannot store: the message names the column and what to do.

use arrow::array::StructArray;
use arrow::datatypes::{DataType, Field, Schema};

use super::*;
use crate::job::Cause;

/// One row of numbers in columns of these names.
fn named(names: &[&str]) -> RecordBatch {
    let fields: Vec<Field> = names
        .iter()
        .map(|name| Field::new(*name, DataType::Int64, true))
        .collect();
    let column: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let columns = vec![column; names.len()];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// The same as the fields of a column `s`.
fn nested(names: &[&str]) -> RecordBatch {
    batch(vec![("s", Arc::new(StructArray::from(named(names))))])
}

fn error(uri: &str, batch: &RecordBatch) -> Result<Vec<Artifact>, Error> {
    let fixture = Fixture::new();
    let mut output = fixture.output(1, &[("output", uri, "append")])?;
    output.write(None, batch)?;
    finish(output)
}

#[test]
fn names_that_a_sink_cannot_store_are_the_plugins_fault_and_named() {
    let many: Vec<String> = (0..1999).map(|number| format!("c{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let both: &[&str] = &["parquet://o.parquet", "sqlite://o.db/rows"];
    let (parquet, sqlite) = (&both[..1], &both[1..]);
    let same = "there is more than one column of this name; give each a name of its own";
    let nul = "its name has a NUL; rename it";
    let cases = [
        (both, named(&["x", "y", "x"]), "\"x\"", same),
        (
            sqlite,
            named(&["A", "a"]),
            "\"a\"",
            "without regard to case",
        ),
        (sqlite, named(&["_JOB_ID"]), "\"_JOB_ID\"", "rename yours"),
        (both, named(&["_job_id"]), "\"_job_id\"", "rename yours"),
        (sqlite, named(&["a\0b"]), "\"a\\0b\"", nul),
        (sqlite, named(&many), "\"c1998\"", "at most 2000 columns"),
    ];
    for (uris, batch, column, words) in cases {
        for uri in uris {
            let error = error(uri, &batch).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with(&format!("column {column}: ")),
                "{uri}: {text}"
            );
            assert!(text.contains(words), "{uri} {column}: {text}");
            assert_eq!(error.cause(), Cause::Plugin, "{uri} {column}");
        }
    }
    for (uris, batch) in [
        (parquet, named(&["A", "a", "_JOB_ID", "a\0b"])),
        (parquet, nested(&["a", "a"])),
        (parquet, named(&many)),
        (sqlite, named(&many[1..])),
        (both, named(&["", "a.b", "a\"b", "ä"])),
    ] {
        for uri in uris {
            assert_eq!(error(uri, &batch).unwrap().len(), 1, "{uri}");
        }
    }
}
