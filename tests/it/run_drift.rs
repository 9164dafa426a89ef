//! What the summary of `casparian run` points out of files that are done: schemas that differ, and no rows.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::common::*;
use crate::run::run_json;

const PLUGIN: &str = "import pyarrow.csv
class Handler:
    def execute(self, path):
        yield pyarrow.csv.read_csv(path)
";

fn folder(dir: &Path, files: &[(&str, &str)]) -> (PathBuf, PathBuf) {
    let (plugin, inputs) = (dir.join("p.py"), dir.join("in"));
    std::fs::write(&plugin, PLUGIN).unwrap();
    std::fs::create_dir(&inputs).unwrap();
    for (name, text) in files {
        std::fs::write(inputs.join(name), text).unwrap();
    }
    (plugin, inputs)
}

/// The summary of the same run for people.
fn text(plugin: &Path, inputs: &Path, out: &Path) -> String {
    let run = [plugin, inputs].map(|path| path.to_str().unwrap());
    casparian_ok(&["run", run[0], run[1], "--output", out.to_str().unwrap()])
}

#[test]
fn files_of_one_run_whose_schemas_differ_are_pointed_out_with_column_types_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let files = [
        ("a.csv", "id,x\n1,5\n"),
        ("b.csv", "id,x\n1,1.5\n"),
        ("c.csv", "id,x,y\n1,2.5,text\n"),
    ];
    let (plugin, inputs) = folder(dir.path(), &files);
    let out = dir.path().join("out");
    let places = [inputs.to_str().unwrap()];
    // Of files that are skipped, too.
    for status in ["DONE", "SKIPPED"] {
        let (summary, code) = run_json(plugin.to_str().unwrap(), &places, &out, &[]);
        assert_eq!(code, Some(0), "{summary}");
        let output = |index: usize| {
            let file = &summary["files"][index];
            assert_eq!(file["status"], status, "{summary}");
            file["outputs"][0]
                .as_str()
                .unwrap()
                .strip_prefix("file://")
                .unwrap()
                .to_owned()
        };
        let expected = json!([
            {"topic": "output", "column": "x", "types": [
                {"type": "int64", "files": 1, "example": output(0)},
                {"type": "double", "files": 2, "example": output(1)},
            ]},
            {"topic": "output", "column": "y", "types": [
                {"type": "string", "files": 1, "example": output(2)},
                {"type": null, "files": 2, "example": output(0)},
            ]},
        ]);
        assert_eq!(summary["drift"], expected, "{summary}");
        let text = text(&plugin, &inputs, &out);
        for line in [
            "Column x of topic output differs: int64 in 1 file (",
            "double in 2 files (",
            "Column y of topic output differs: string in 1 file (",
            "missing in 2 files (",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}

/// A plugin whose input has a coordinate system, an extension type and a zone.
const MEANINGS: &str = "import json
import pyarrow as pa
class Handler:
    def execute(self, path):
        code, extension, *zone = open(path).read().split()
        crs = {'id': {'authority': 'EPSG', 'code': int(code)}}
        geo = {'version': '1.1.0', 'primary_column': 'g', 'columns': {'g': {'encoding': 'WKB', 'crs': crs}}}
        fields = [
            pa.field('g', pa.binary()),
            pa.field('e', pa.int64(), metadata={'ARROW:extension:name': extension}),
            pa.field('t', pa.timestamp('us', *zone))]
        schema = pa.schema(fields, {'geo': json.dumps(geo)})
        yield pa.table([[b'x'], [1], [0]], schema=schema)
";

#[test]
fn columns_of_one_type_with_other_meanings_are_pointed_out() {
    let dir = tempfile::tempdir().unwrap();
    let files = [("a", "4326 own.a UTC"), ("b", "3857 own.b")];
    let (plugin, inputs) = folder(dir.path(), &files);
    std::fs::write(&plugin, MEANINGS).unwrap();
    let out = dir.path().join("out");
    let (plugin, inputs) = (plugin.to_str().unwrap(), inputs.to_str().unwrap());
    let (summary, code) = run_json(plugin, &[inputs], &out, &[]);
    assert_eq!(code, Some(0), "{summary}");
    let columns = summary["drift"].as_array().unwrap().iter();
    let types = |column: &serde_json::Value| -> Vec<String> {
        let types = column["types"].as_array().unwrap().iter();
        let texts = types.map(|seen| seen["type"].as_str().unwrap().to_owned());
        let mut texts: Vec<String> = texts.collect();
        texts.sort_unstable();
        texts
    };
    let found: Vec<(String, Vec<String>)> = columns
        .map(|column| (column["column"].as_str().unwrap().to_owned(), types(column)))
        .collect();
    for (column, want) in [
        ("g", ["binary (EPSG:3857)", "binary (EPSG:4326)"]),
        ("e", ["int64 (own.a)", "int64 (own.b)"]),
        ("t", ["timestamp(µs)", "timestamp(µs, UTC)"]),
    ] {
        let want = (column.to_owned(), want.map(str::to_owned).to_vec());
        assert!(found.contains(&want), "{want:?}: {found:?}");
    }
}

#[test]
fn files_of_one_schema_give_no_such_lines() {
    let dir = tempfile::tempdir().unwrap();
    let files = [("a.csv", "id,x\n1,5\n"), ("b.csv", "x,id\n2,3\n")];
    let (plugin, inputs) = folder(dir.path(), &files);
    let out = dir.path().join("out");
    let (summary, code) = run_json(
        plugin.to_str().unwrap(),
        &[inputs.to_str().unwrap()],
        &out,
        &[],
    );
    assert_eq!(code, Some(0), "{summary}");
    assert_eq!(summary.get("drift"), None, "{summary}");
    assert_eq!(summary["totals"]["empty"], 0, "{summary}");
    let text = text(&plugin, &inputs, &out);
    assert!(
        !text.contains("differs") && !text.contains("0 rows"),
        "{text}"
    );
}

#[test]
fn files_that_are_done_with_0_rows_are_pointed_out() {
    let dir = tempfile::tempdir().unwrap();
    let (plugin, inputs) = folder(dir.path(), &[("a.csv", "id\n1\n"), ("b.csv", "id\n")]);
    let out = dir.path().join("out");
    let (summary, code) = run_json(
        plugin.to_str().unwrap(),
        &[inputs.to_str().unwrap()],
        &out,
        &[],
    );
    assert_eq!(code, Some(0), "{summary}");
    assert_eq!(summary["totals"]["empty"], 1, "{summary}");
    let text = text(&plugin, &inputs, &out);
    let line = format!(
        "1 file is done with 0 rows: {}",
        inputs.join("b.csv").display()
    );
    assert!(text.contains(&line), "{text}");
}
