//! What readers get of each Arrow type, and of columns whose type differs between batches.

use std::path::Path;

use crate::common::*;
use crate::run::Folder;

const CASES: &str = include_str!("../peers/arrow_types.py");

/// Types, nested and encoded in each way, in Parquet files and in a table of a database: pyarrow,
/// DuckDB, Polars and SQLite give back the values that the plugin published.
#[test]
fn every_type_is_read_back_as_it_was_published() {
    let folder = Folder::new(&[
        ("types", "types"),
        ("merged", "merged"),
        ("table", "table"),
        ("metadata", "metadata"),
    ]);
    let sinks = "from casparian_flow.sdk import PluginMetadata\nMANIFEST = PluginMetadata(pattern='*', topic='table', sinks={'table': {'uri': 'sqlite://edges.db/rows'}})\n";
    let (doc, code) = CASES.split_at(CASES.find("\nimport ").unwrap());
    folder.write("arrow_types.py", &format!("{doc}\n{sinks}{code}"));
    let out = folder.path("out");
    let plugin = folder.path("arrow_types.py");
    let (summary, code) =
        crate::run::run_json(&plugin, &[&folder.path("in")], Path::new(&out), &[]);
    assert_eq!(code, Some(0), "{summary}");
    let database = Path::new(&out).join("edges.db");
    let check = output(peer("arrow_types.py").arg(&out).arg(&database));
    assert!(
        check.status.success(),
        "{}{}",
        stdout(&check),
        stderr(&check)
    );
}
