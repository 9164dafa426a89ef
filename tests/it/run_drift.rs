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
        yield pa.table([[bytes.fromhex('010200000000000000')], [1], [0]], schema=schema)
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

/// A plugin that publishes to the topic in its input's name a column that the input describes.
const COLUMNS: &str = "import datetime, os
import pyarrow as pa
from casparian_flow.sdk import PluginMetadata
MANIFEST = PluginMetadata(pattern='*', topic='output', sinks={
    'kinds': 'sqlite://s.db/kinds', 'times': 'sqlite://s.db/times', 'same': 'sqlite://s.db/same', 'wide': 'sqlite://s.db/wide'})
class Handler:
    def configure(self, ctx, config):
        self.ctx = ctx
    def execute(self, path):
        topic = os.path.basename(path).split('.')[0]
        table = eval(open(path).read())
        self.ctx.publish(topic, table if isinstance(table, pa.Table) else pa.table({'a': table}))
";

/// Durations, sizes of lists, and values in a table of a database: what readers take for one column or fail at.
#[test]
fn types_that_no_parquet_schema_shows_and_those_of_tables_are_pointed_out() {
    let dir = tempfile::tempdir().unwrap();
    let extension = "pa.table([pa.array([{'x': 5}])], schema=pa.schema([pa.field('a', pa.struct([pa.field('x', pa.int64(), metadata={'ARROW:extension:name': 'own.NAME'})]))]))";
    let (own_a, own_b) = (
        extension.replace("NAME", "a"),
        extension.replace("NAME", "b"),
    );
    let files = [
        ("durations.1", "pa.array([3600], pa.duration('s'))"),
        ("durations.2", "pa.array([3600000], pa.duration('ms'))"),
        (
            "nested.1",
            "pa.array([{'x': [5]}], pa.struct([('x', pa.list_(pa.duration('s')))]))",
        ),
        (
            "nested.2",
            "pa.array([{'x': [5]}], pa.struct([('x', pa.list_(pa.duration('ns')))]))",
        ),
        ("sizes.1", "pa.array([[1, 2]], pa.list_(pa.int64(), 2))"),
        ("sizes.2", "pa.array([[1, 2, 3]], pa.list_(pa.int64(), 3))"),
        ("extensions.1", &own_a),
        ("extensions.2", &own_b),
        ("kinds.1", "pa.array([5], pa.int8())"),
        ("kinds.2", "pa.array([1.5])"),
        ("kinds.3", "pa.array([True])"),
        ("kinds.4", "pa.array([5])"),
        ("times.1", "pa.array([datetime.datetime(2020, 1, 1)])"),
        (
            "times.2",
            "pa.array([0], pa.timestamp('us', 'Europe/Berlin'))",
        ),
        ("times.3", "pa.array(['last week'])"),
        // Readers of files and of tables do not tell these apart.
        ("same.1", "pa.array([1], pa.int8())"),
        ("same.2", "pa.array([1], pa.uint32())"),
        ("texts.1", "pa.array(['x'], pa.large_string())"),
        ("texts.2", "pa.array(['x']).dictionary_encode()"),
        // Too many columns for a receipt: they are not compared.
        (
            "wide.1",
            "pa.table({f'a column {n}': [1] for n in range(1000)})",
        ),
        (
            "wide.2",
            "pa.table({f'a column {n}': [1] for n in range(1000)})",
        ),
    ];
    let (plugin, inputs) = folder(dir.path(), &files);
    std::fs::write(&plugin, COLUMNS).unwrap();
    let out = dir.path().join("out");
    let places = [inputs.to_str().unwrap()];
    for status in ["DONE", "SKIPPED"] {
        let (summary, code) = run_json(plugin.to_str().unwrap(), &places, &out, &[]);
        assert_eq!(code, Some(0), "{summary}");
        assert_eq!(summary["files"][0]["status"], status, "{summary}");
        let types = |column: &serde_json::Value| -> Vec<String> {
            let types = column["types"].as_array().unwrap().iter();
            types
                .map(|seen| format!("{} in {}", seen["type"].as_str().unwrap(), seen["files"]))
                .collect()
        };
        let columns = summary["drift"].as_array().unwrap().iter();
        let found: Vec<(String, Vec<String>)> = columns
            .map(|column| (column["topic"].as_str().unwrap().to_owned(), types(column)))
            .collect();
        let want: [(&str, &[&str]); 6] = [
            ("durations", &["duration(s) in 1", "duration(ms) in 1"]),
            (
                "extensions",
                &[
                    "struct<x: int64 (own.a)> in 1",
                    "struct<x: int64 (own.b)> in 1",
                ],
            ),
            ("kinds", &["int64 in 2", "double in 1", "bool in 1"]),
            (
                "nested",
                &[
                    "struct<x: list<duration(s)>> in 1",
                    "struct<x: list<duration(ns)>> in 1",
                ],
            ),
            ("sizes", &["list<int64>[2] in 1", "list<int64>[3] in 1"]),
            (
                "times",
                &["timestamp in 1", "timestamp (UTC) in 1", "string in 1"],
            ),
        ];
        let want = want.map(|(topic, types)| {
            let types = types.iter().map(|kind| (*kind).to_owned());
            (topic.to_owned(), types.collect::<Vec<String>>())
        });
        assert_eq!(found, want, "{summary}");
        // Rows in a table are named by their input.
        let example = &summary["drift"][2]["types"][1]["example"];
        assert!(
            example.as_str().unwrap().ends_with("/in/kinds.2"),
            "{summary}"
        );
        assert_eq!(
            summary["schemas"],
            json!({"compared": 19, "files": 21}),
            "{summary}"
        );
    }
    let text = text(&plugin, &inputs, &out);
    for line in [
        "Column a of topic kinds differs: int64 in 2 files (kinds.1), double in 1 file (kinds.2), bool in 1 file (kinds.3).",
        "The schemas of 19 of 21 outputs were compared.",
    ] {
        assert!(text.contains(line), "{line}: {text}");
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

/// Readers of the folder read them: of failed files, and of earlier runs with other inputs.
#[test]
fn files_that_stand_beside_the_runs_own_are_compared_too() {
    let dir = tempfile::tempdir().unwrap();
    let (plugin, inputs) = folder(dir.path(), &[("a.csv", "id,x\n1,5\n")]);
    let out = dir.path().join("out");
    let run = |input: &Path| {
        let inputs = [input.to_str().unwrap()];
        run_json(plugin.to_str().unwrap(), &inputs, &out, &[]).0
    };
    assert_eq!(run(&inputs).get("drift"), None);
    let other = dir.path().join("other.csv");
    std::fs::write(&other, "id,x\n1,1.5\n").unwrap();
    let types = |summary: &serde_json::Value| {
        let types = summary["drift"][0]["types"].as_array();
        types.map(|types| types.iter().map(|seen| seen["type"].clone()).collect())
    };
    let want: Option<Vec<serde_json::Value>> = Some(vec!["double".into(), "int64".into()]);
    let summary = run(&other);
    assert_eq!(types(&summary), want, "{summary}");
    // The file of `a` fails now, and keeps its output.
    std::fs::remove_file(&other).unwrap();
    std::fs::write(inputs.join("a.csv"), "").unwrap();
    std::fs::write(inputs.join("b.csv"), "id,x\n1,2.5\n").unwrap();
    let summary = run(&inputs);
    assert_eq!(summary["files"][0]["status"], "FAILED", "{summary}");
    assert_eq!(types(&summary), want, "{summary}");
}

/// Two sinks that are files of one folder are two datasets, and the flat layout has one for each topic.
#[test]
fn files_of_other_datasets_in_a_folder_are_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (plugin, inputs) = folder(dir.path(), &[("a.csv", "id,x\n1,5\n")]);
    let manifest = |name: &str| {
        format!(
            "from casparian_flow.sdk import PluginMetadata\nMANIFEST = PluginMetadata(pattern='*', topic='t', \
             sinks={{'output': 'parquet://data/{name}.parquet'}})\n{PLUGIN}"
        )
    };
    let out = dir.path().join("out");
    let run = |out: &Path, more: &[&str]| {
        let inputs = [inputs.to_str().unwrap()];
        run_json(plugin.to_str().unwrap(), &inputs, out, more).0
    };
    std::fs::write(&plugin, manifest("orders")).unwrap();
    assert_eq!(run(&out, &[]).get("drift"), None);
    let other = dir.path().join("q.py");
    std::fs::write(&other, manifest("customers")).unwrap();
    std::fs::write(inputs.join("a.csv"), "name\ntext\n").unwrap();
    let (summary, code) = run_json(
        other.to_str().unwrap(),
        &[inputs.to_str().unwrap()],
        &out,
        &[],
    );
    assert_eq!(code, Some(0), "{summary}");
    assert_eq!(summary.get("drift"), None, "{summary}");

    // The file of `b` fails at the second run, and keeps its output.
    std::fs::write(&plugin, PLUGIN).unwrap();
    let flat = dir.path().join("flat");
    std::fs::write(inputs.join("a.csv"), "id,x\n1,5\n").unwrap();
    std::fs::write(inputs.join("b.csv"), "id,x\n1,5\n").unwrap();
    assert_eq!(run(&flat, &["--layout", "flat"]).get("drift"), None);
    std::fs::write(inputs.join("a.csv"), "id,x\n1,1.5\n").unwrap();
    std::fs::write(inputs.join("b.csv"), "").unwrap();
    let summary = run(&flat, &["--layout", "flat"]);
    assert_eq!(summary["drift"][0]["column"], "x", "{summary}");
}

#[test]
fn more_files_than_are_compared_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let (plugin, inputs) = folder(dir.path(), &[("a.csv", "id,x\n1,5\n")]);
    let out = dir.path().join("out");
    let run = || {
        run_json(
            plugin.to_str().unwrap(),
            &[inputs.to_str().unwrap()],
            &out,
            &[],
        )
        .0
    };
    let summary = run();
    assert_eq!(summary.get("schemas"), None, "{summary}");
    let uri = summary["files"][0]["outputs"][0]
        .as_str()
        .unwrap()
        .to_owned();
    let file = PathBuf::from(uri.strip_prefix("file://").unwrap());
    for number in 0..1_100 {
        let copy = file.with_file_name(format!("copy{number}_9.parquet"));
        std::fs::copy(&file, copy).unwrap();
    }
    let summary = run();
    assert_eq!(
        summary["schemas"],
        json!({"compared": 1_001, "files": 1_101}),
        "{summary}"
    );
}
