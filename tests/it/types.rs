//! What readers get of each Arrow type, and of columns whose type differs between batches.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::*;
use crate::run::Folder;

const CASES: &str = include_str!("../peers/arrow_types.py");
const PANDAS_CASES: &str = include_str!("../peers/pandas_types.py");

/// Types, nested and encoded in each way, in Parquet files and in a table of a database: pyarrow,
/// DuckDB, Polars and SQLite give back the values that the plugin published.
#[test]
fn every_type_is_read_back_as_it_was_published() {
    let folder = Folder::new(&[
        ("types", "types"),
        ("merged", "merged"),
        ("readers", "readers"),
        ("table", "table"),
        ("metadata", "metadata"),
        ("geo", "geo"),
    ]);
    let sinks = "from casparian_flow.sdk import PluginMetadata\nMANIFEST = PluginMetadata(pattern='*', topic='table', sinks={'table': {'uri': 'sqlite://edges.db/rows'}})\n";
    let (doc, code) = CASES.split_at(CASES.find("\nimport ").unwrap());
    folder.write("arrow_types.py", &format!("{doc}\n{sinks}{code}"));
    let out = folder.path("out");
    let plugin = folder.path("arrow_types.py");
    let (summary, code) =
        crate::run::run_json(&plugin, &[&folder.path("in")], Path::new(&out), &[]);
    assert_eq!(code, Some(0), "{summary}");
    let file = of_file(&summary, "/geo");
    let log = log_of(&out, file["job"].as_i64().unwrap());
    for line in [
        "casparian: topic \"geo_text\": column \"v\": its entry in the metadata of GeoParquet was left out: \
         the encoding WKB needs bytes, and the column has the type Utf8",
        "casparian: topic \"geo_another_column\": column \"w\": its entry",
    ] {
        assert!(log.contains(line), "{log}");
    }
    let database = Path::new(&out).join("edges.db");
    let check = output(peer("arrow_types.py").arg(&out).arg(&database));
    assert!(
        check.status.success(),
        "{}{}",
        stdout(&check),
        stderr(&check)
    );
}

fn of_file<'a>(summary: &'a Value, end: &str) -> &'a Value {
    let mut files = summary["files"].as_array().unwrap().iter();
    files
        .find(|file| file["file"].as_str().unwrap().ends_with(end))
        .unwrap()
}

/// The log of a job of an output folder.
pub(crate) fn log_of(out: &str, job: i64) -> String {
    let queue = format!("{out}/.casparian/queue.sqlite");
    let found = casparian(&["job", &job.to_string(), "--database", &queue, "--json"]);
    let job: Value = serde_json::from_str(&stdout(&found)).unwrap();
    job["log"].as_str().unwrap().to_owned()
}

/// Values and metadata that a file cannot have: the job fails and names the column.
#[test]
fn what_a_file_cannot_keep_fails_the_job_with_the_column() {
    let cases = [
        (
            "unit",
            r#"column "v": its metadata "unit" is "m" in one batch and "km""#,
        ),
        (
            "crs",
            r#"column "v": its crs in the metadata of GeoParquet is null"#,
        ),
        ("period", r#"(extension pandas.period {"freq": "M"})"#),
        (
            "time",
            r#"column "v": 86400 of type Time32(s) is no time of a day"#,
        ),
        (
            "nested_time",
            r#"column "v.t": 86400 of type Time32(s) is no time"#,
        ),
        (
            "unnamed",
            r#"column "v.a": it is a struct with a field whose name is empty"#,
        ),
        (
            "no_fields",
            r#"column "v": a Parquet sink cannot store type Struct()"#,
        ),
        ("utf8", r#"column "v": its values are no valid Arrow data"#),
        (
            "surrogate",
            r#"its name has characters that UTF-8 does not have"#,
        ),
        (
            "dictionary",
            r#"column "v": its values are no valid Arrow data"#,
        ),
        (
            "extension",
            r#"column "v": its metadata names extension type arrow.uuid"#,
        ),
        (
            "extension_deep",
            r#"column "v": its metadata names extension type arrow.json"#,
        ),
        ("digits", r#"column "v": "#),
        ("far", r#"is out of the range of Timestamp(ns)"#),
        ("large", r#"expected column "v" of type Float64"#),
        ("large_back", r#"expected column "v" of type Float64"#),
    ];
    let inputs: Vec<(&str, String)> = cases
        .iter()
        .map(|(name, _)| (*name, format!("refused {name}")))
        .collect();
    let inputs: Vec<(&str, &str)> = inputs
        .iter()
        .map(|(name, text)| (*name, text.as_str()))
        .collect();
    let folder = Folder::new(&inputs);
    folder.write("arrow_types.py", CASES);
    let plugin = folder.path("arrow_types.py");
    let out = folder.path("out");
    let (summary, code) =
        crate::run::run_json(&plugin, &[&folder.path("in")], Path::new(&out), &[]);
    assert_eq!(code, Some(1), "{summary}");
    let items = summary["files"].as_array().unwrap();
    for (name, words) in cases {
        let item = items
            .iter()
            .find(|item| {
                item["file"]
                    .as_str()
                    .unwrap()
                    .ends_with(&format!("/{name}"))
            })
            .unwrap();
        assert_eq!(item["status"], "FAILED", "{item}");
        let text = item["error"].as_str().unwrap_or_default();
        assert!(text.contains(words), "{name}: {item}");
    }
}

/// Periods and intervals, as columns, as levels of an index and as categories: pandas reads them as such.
#[test]
fn types_of_pandas_are_read_back_by_pandas() {
    let folder = Folder::new(&[("a", "x")]);
    folder.write("pandas_types.py", PANDAS_CASES);
    let (plugin, out) = (folder.path("pandas_types.py"), folder.path("out"));
    let (summary, code) =
        crate::run::run_json(&plugin, &[&folder.path("in")], Path::new(&out), &[]);
    assert_eq!(code, Some(0), "{summary}");
    let check = output(peer("pandas_types.py").arg(&out));
    assert!(
        check.status.success(),
        "{}{}",
        stdout(&check),
        stderr(&check)
    );
}

/// Rows that take few bytes are cut by their number.
#[test]
fn a_batch_of_many_small_rows_is_written() {
    let folder = Folder::new(&[("a", "x")]);
    let plugin = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'a': pa.nulls(17_000_000)})\n";
    folder.write("p.py", plugin);
    let (plugin, out) = (folder.path("p.py"), folder.path("out"));
    let (summary, code) =
        crate::run::run_json(&plugin, &[&folder.path("in")], Path::new(&out), &[]);
    assert_eq!(
        (code, &summary["totals"]["rows"]),
        (Some(0), &json!(17_000_000)),
        "{summary}"
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
