//! `casparian run`: where output is, under which names, and the move of output of earlier runs there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::*;
use crate::faults::{At, Faults};
use crate::run::{Folder, totals};

/// Publishes each line of its input, `topic value`, and yields the lines of the topic `-`.
const TOPICS: &str = r#"
import pyarrow as pa
class Handler:
    def configure(self, ctx, config):
        self.ctx = ctx
    def execute(self, path):
        for line in open(path).read().splitlines():
            topic, value = line.split("\t")
            table = pa.table({"value": [value]})
            if topic == "-":
                yield table
            else:
                self.ctx.publish(self.ctx.register_topic(topic), table)
"#;

pub(crate) fn topics(files: &[(&str, &str)]) -> Folder {
    let folder = Folder::new(files);
    folder.write("count.py", TOPICS);
    folder
}

/// What each engine reads of a folder by its own means, as one sorted list of values.
pub(crate) fn read_folder(folder: &Path) -> Value {
    let script = "
import sys, json, glob
import pyarrow.parquet as pq, polars as pl, duckdb
folder = sys.argv[1]
found = [
    pq.read_table(folder)['value'].to_pylist(),
    pl.read_parquet(folder)['value'].to_list(),
    [row[0] for row in duckdb.sql(f\"select value from '{folder}/*.parquet'\").fetchall()],
]
found = [sorted(values) for values in found]
assert found[0] == found[1] == found[2], found
print(json.dumps(found[0]))
";
    let output = output(Command::new(python()).args(["-c", script]).arg(folder));
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

/// Files below the output folder, with their folders.
pub(crate) fn files(folder: &Folder) -> Vec<String> {
    let out = folder.path("out");
    let below = |path: std::path::PathBuf| {
        let below = path.strip_prefix(&out).unwrap().to_owned();
        below.to_string_lossy().into_owned()
    };
    let files = visible_files(Path::new(&out)).into_iter();
    files.map(below).collect()
}

/// Every output that receipts name is there, and nothing else.
pub(crate) fn check_receipts(folder: &Folder, why: &str) {
    assert_eq!(receipts(folder), files(folder), "{why}");
}

/// Outputs that receipts name.
pub(crate) fn receipts(folder: &Folder) -> Vec<String> {
    let queue = rusqlite::Connection::open(folder.path("out/.casparian/queue.sqlite")).unwrap();
    let query = "SELECT coalesce(published, receipt) FROM cf_processing_queue";
    let mut statement = queue.prepare(query).unwrap();
    let rows = statement
        .query_map([], |row| row.get::<_, String>(0))
        .unwrap();
    let mut named = Vec::new();
    for row in rows {
        let value: Value = serde_json::from_str(&row.unwrap()).unwrap();
        let uris: Vec<Value> = match &value {
            Value::Array(uris) => uris.clone(),
            value => {
                let artifacts = value["artifacts"].as_array().unwrap().iter();
                artifacts.map(|artifact| artifact["uri"].clone()).collect()
            }
        };
        let start = format!("file://{}/", folder.path("out"));
        let below = |uri: &Value| {
            uri.as_str()
                .unwrap()
                .strip_prefix(&start)
                .unwrap()
                .to_owned()
        };
        named.extend(uris.iter().map(below));
    }
    named.sort();
    named
}

#[test]
fn a_topic_has_a_folder_that_every_engine_reads() {
    let folder = topics(&[
        ("a.csv", "-\t1\nsales\t2"),
        ("b.tar.gz", "-\t3"),
        ("ü ö=.csv", "sales\t4"),
    ]);
    let (summary, code) = folder.run(&["--slots", "1"]);
    assert_eq!(code, Some(0), "{summary}");
    let want = [
        "count/a_1.parquet",
        "count/b.tar_2.parquet",
        "count_sales/a_1.parquet",
        "count_sales/ü_ö__3.parquet",
    ];
    assert_eq!(files(&folder), want);
    let out = folder.path("out");
    let out = Path::new(&out);
    assert_eq!(read_folder(&out.join("count")), json!(["1", "3"]));
    assert_eq!(read_folder(&out.join("count_sales")), json!(["2", "4"]));
    let mut entries: Vec<_> = fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    entries.sort();
    assert_eq!(entries, [".casparian", "count", "count_sales"]);
    folder.check();
    assert_eq!(totals(&folder.run(&[]).0).1, 3);
}

#[test]
fn topics_of_any_name_have_files_of_their_own() {
    let long = "長".repeat(200);
    let longer = format!("{long}x");
    let names = [
        "東京", "大阪", "a/b", "a_b", "a b", "A_B", "_", "__", ".", "..", "x=1", "é", "e\u{301}",
        &long, &longer, "output",
    ];
    let lines = names.map(|name| format!("{name}\t{name}"));
    let folder = topics(&[("a.csv", &lines.join("\n"))]);
    let (summary, code) = folder.run(&[]);
    assert_eq!(code, Some(0), "{summary}");
    let found = files(&folder);
    let folders: BTreeMap<&str, &str> = found
        .iter()
        .map(|file| file.split_once('/').unwrap())
        .collect();
    assert_eq!(folders.len(), names.len(), "{found:?}");
    for (name, file) in &folders {
        assert_eq!(*file, "a_1.parquet");
        assert!(!name.starts_with(['.', '_']) && name.len() < 200, "{name}");
    }
    for name in [
        "count_東京",
        "count_大阪",
        "count_a_b",
        "count_A_B",
        "count",
    ] {
        let file = Path::new(&folder.path("out")).join(name);
        let topic = name.strip_prefix("count_").unwrap_or("output");
        assert_eq!(read_folder(&file), json!([topic]), "{name}");
    }
    folder.check();
    // Plugins whose names with a topic are those of others.
    let folder = topics(&[("a.csv", "b_c\t1")]);
    folder.run(&[]);
    for (plugin, line) in [("count_b.py", "c\t2"), ("count_b_c.py", "-\t3")] {
        folder.write(plugin, TOPICS);
        folder.write("in/a.csv", line);
        let out = folder.path("out");
        let input = folder.path("in");
        let run = || casparian_ok(&["run", &folder.path(plugin), &input, "-o", &out]);
        run();
        run();
    }
    let found = files(&folder);
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found[0], "count_b_c/a_1.parquet", "{found:?}");
    let mut values: Vec<Value> = Vec::new();
    for file in &found {
        let path = Path::new(&folder.path("out")).join(file);
        values.push(read_folder(path.parent().unwrap()));
    }
    values.sort_by_key(Value::to_string);
    assert_eq!(values, [json!(["1"]), json!(["2"]), json!(["3"])]);
}

#[test]
fn sinks_by_uri_and_the_flat_layout_keep_their_names() {
    let folder = topics(&[("a.csv", "-\t1\nsales\t2\nother\t3")]);
    folder.run(&["--layout", "flat"]);
    let flat = [
        "count_other_1.parquet",
        "count_output_1.parquet",
        "count_sales_1.parquet",
    ];
    assert_eq!(files(&folder), flat);
    let folder = topics(&[("a.csv", "-\t1\nsales\t2\nother\t3")]);
    let sinks = "{'output': 'parquet://count_output.parquet', 'sales': 'parquet://s/'}";
    folder.write(
        "count.py",
        &format!(
            "from casparian_flow.sdk import PluginMetadata\n\
             MANIFEST = PluginMetadata(pattern='*', topic='x', sinks={sinks})\n{TOPICS}"
        ),
    );
    for _ in 0..2 {
        folder.run(&[]);
        let want = [
            "count_other/a_1.parquet",
            "count_output_1.parquet",
            "s/data_1.parquet",
        ];
        assert_eq!(files(&folder), want);
    }
}

#[test]
fn files_of_the_flat_layout_are_moved_on_first_use_and_back() {
    let folder = topics(&[
        ("a.csv", "-\t1\nsales\t2"),
        ("b.csv", "-\t3"),
        ("c.csv", "-\t4"),
    ]);
    folder.run(&["--layout", "flat", "--slots", "1"]);
    // One is gone, and one file is not as it was published.
    fs::remove_file(folder.path("in/b.csv")).unwrap();
    fs::write(folder.path("out/notes.parquet"), "mine").unwrap();
    fs::write(folder.path("out/count_output_3.parquet"), "changed").unwrap();
    let (summary, code) = folder.run(&[]);
    assert_eq!(code, Some(0), "{summary}");
    assert_eq!(summary["totals"]["moved"], 3, "{summary}");
    assert_eq!(
        (totals(&summary).0, totals(&summary).1),
        (1, 1),
        "{summary}"
    );
    let want = [
        "count/a_1.parquet",
        "count/b_2.parquet",
        "count/c_3.parquet",
        "count_sales/a_1.parquet",
        "notes.parquet",
    ];
    assert_eq!(files(&folder), want);
    let out = folder.path("out");
    assert_eq!(
        read_folder(&Path::new(&out).join("count")),
        json!(["1", "3", "4"])
    );
    folder.check();
    // What stands is skipped, and replaced by its own job.
    let (summary, _) = folder.run(&[]);
    assert_eq!(
        (totals(&summary).1, &summary["totals"]["moved"]),
        (2, &json!(0))
    );
    folder.write("in/a.csv", "-\t5");
    folder.run(&[]);
    assert_eq!(
        read_folder(&Path::new(&out).join("count")),
        json!(["3", "4", "5"])
    );
    let words = [
        "run",
        &folder.path("count.py"),
        &folder.path("in"),
        "-o",
        &out,
    ];
    let flat = casparian(&[&words[..], &["--layout", "flat"]].concat());
    assert!(
        stdout(&flat).contains("Moved: 3 files"),
        "{}",
        stdout(&flat)
    );
    fs::remove_file(folder.path("out/notes.parquet")).unwrap();
    let flat = [1, 2, 3].map(|job| format!("count_output_{job}.parquet"));
    assert_eq!(files(&folder), flat);
    check_receipts(&folder, "flat");
    folder.check();
}

/// A move that is killed at any of its calls is done by the next run, in either direction.
#[test]
fn a_move_that_is_killed_at_any_point_leaves_each_output_at_one_path() {
    let folder = topics(&[("a.csv", "-\t1\nsales\t2"), ("b.csv", "-\t3")]);
    folder.run(&["--layout", "flat"]);
    let out = folder.path("out");
    let mut killed = 0;
    // Those before are not of the move.
    for at in 15.. {
        let layout = ["flat", "datasets"][at % 2];
        let layout = ["--layout", layout];
        let faults = Faults::new(&folder.dir.path().join("faults"), Path::new(&out));
        faults.stop_at(i64::try_from(at).unwrap(), At::Kill);
        let mut command = program("casparian");
        let input = folder.path("in");
        command
            .args(["run", &folder.path("count.py"), &input, "-o", &out])
            .args(layout);
        faults.load(&mut command);
        let ended = output(&mut command);
        let why = format!("call {at}, {layout:?}: {}", faults.stopped_at());
        let is_killed = ended.status.code().is_none();
        killed += usize::from(is_killed);
        // Whichever layout the next run has.
        let next = ["datasets", "flat"][at / 2 % 2];
        let (summary, code) = folder.run(&["--layout", next]);
        assert_eq!((totals(&summary).1, code), (2, Some(0)), "{why}: {summary}");
        check_receipts(&folder, &why);
        assert_eq!(files(&folder).len(), 3, "{why}");
        folder.check();
        folder.run(&layout);
        if !is_killed {
            break;
        }
    }
    assert!(killed > 20, "{killed}");
}

#[test]
fn a_job_of_2000_topics_needs_few_descriptors() {
    let lines: Vec<String> = (0..2000)
        .map(|topic| format!("t{topic}\t{topic}"))
        .collect();
    let twice = [lines.join("\n"), lines.join("\n")].join("\n");
    let folder = topics(&[("a.csv", &twice)]);
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 1024 && exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_casparian"))
        .args(["run", &folder.path("count.py"), &folder.path("in")])
        .args(["-o", &folder.path("out")])
        .env("HOME", home());
    let ended = output(&mut command);
    let text = stdout(&ended) + &stderr(&ended);
    assert_eq!(ended.status.code(), Some(0), "{text}");
    assert_eq!(files(&folder).len(), 2000);
    let last = Path::new(&folder.path("out")).join("count_t1999");
    assert_eq!(read_folder(&last), json!(["1999", "1999"]));
    assert_eq!(totals(&folder.run(&[]).0).1, 1);
}

#[test]
fn a_long_tmpdir_is_no_obstacle() {
    let folder = topics(&[("a.csv", "-\t1")]);
    let long = folder.dir.path().join("x".repeat(117));
    fs::create_dir(&long).unwrap();
    let mut command = program("casparian");
    command
        .args(["run", &folder.path("count.py"), &folder.path("in")])
        .args(["-o", &folder.path("out")])
        .env("TMPDIR", &long);
    let ended = output(&mut command);
    assert_eq!(ended.status.code(), Some(0), "{}", stderr(&ended));
    assert_eq!(files(&folder), ["count/a_1.parquet"]);
}

/// The folder of a topic is on another file system than the output folder.
#[test]
fn a_topics_folder_may_be_a_mount() {
    let folder = topics(&[("a.csv", "-\t1\nsales\t2")]);
    let out = folder.path("out");
    fs::create_dir_all(format!("{out}/count")).unwrap();
    let script = "mount -t tmpfs none \"$1\" && shift && \"$@\" && find \"$0\" -name '*.parquet'";
    let mut command = Command::new("unshare");
    command
        .args([
            "-rm",
            "sh",
            "-c",
            script,
            &format!("{out}/count"),
            &format!("{out}/count"),
        ])
        .arg(env!("CARGO_BIN_EXE_casparian"))
        .args(["run", &folder.path("count.py"), &folder.path("in")])
        .args(["-o", &out])
        .env("HOME", home());
    let ended = output(&mut command);
    let text = stdout(&ended) + &stderr(&ended);
    if text.contains("unshare:") || text.contains("mount:") {
        eprintln!("no mounts here: {text}");
        return;
    }
    assert_eq!(ended.status.code(), Some(0), "{text}");
    assert!(text.contains("/out/count/a_1.parquet"), "{text}");
    assert_eq!(files(&folder), ["count_sales/a_1.parquet"]);
}
