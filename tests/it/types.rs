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

/// A cell that is larger than a batch may be is named with the option that allows it.
#[test]
fn a_large_cell_is_named_or_taken_where_the_operator_allows_it() {
    let folder = Folder::new(&[("a", "40000000")]);
    let plugin = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        size = int(open(path).read())\n        yield pa.table({'n': [1, 2], 's': ['x' * size, 'y']})\n";
    folder.write("count.py", plugin);
    let small = ["--job-buffer", "64Mi"];
    let (summary, code) = folder.run(&small);
    assert_eq!(code, Some(1), "{summary}");
    let text = summary.to_string();
    for part in ["column \\\"s\\\"", "it has 4000000", "--cell-max"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (summary, code) = folder.run(&["--job-buffer", "64Mi", "--cell-max", "40Mi"]);
    assert_eq!(code, Some(0), "{summary}");
    assert_eq!(summary["totals"]["rows"], 2, "{summary}");
    let (plugin, input, out) = (
        folder.path("count.py"),
        folder.path("in"),
        folder.path("out"),
    );
    let refused = casparian(&[
        "run",
        &plugin,
        &input,
        "--output",
        &out,
        "--cell-max",
        "2Gi",
    ]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("1984Mi at most"),
        "{}",
        stderr(&refused)
    );
}
