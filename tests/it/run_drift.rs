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
