//! Where `casparian run` puts output: sinks of a MANIFEST, sinks of mode `replace`.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::common::*;
use crate::run::{Folder, run_json, totals};

const COUNT: &str = r#"
import pyarrow as pa
class Handler:
    def execute(self, path):
        yield pa.table({"line": open(path).read().splitlines()})
"#;

fn plugin(sink: &str) -> String {
    format!(
        "from casparian_flow.sdk import PluginMetadata\nMANIFEST = PluginMetadata(pattern='*', topic='output', sinks={sink})\n{COUNT}"
    )
}

fn names(folder: &Folder) -> Vec<String> {
    let out = folder.path("out");
    let below = |path: std::path::PathBuf| {
        let below = path.strip_prefix(&out).unwrap().to_owned();
        below.to_string_lossy().into_owned()
    };
    visible_files(Path::new(&out))
        .into_iter()
        .map(below)
        .collect()
}

#[test]
fn sinks_of_the_manifest_count_as_for_deploy() {
    let folder = Folder::new(&[("a", "1\n2\n")]);
    folder.write(
        "count.py",
        &plugin("{'output': 'parquet://lines/all.parquet'}"),
    );
    assert_eq!(folder.run(&[]).1, Some(0));
    assert_eq!(names(&folder), ["lines/all_1.parquet"]);
    // What `deploy` configures is what `run` does.
    let queue = folder.path("out/.casparian/queue.sqlite");
    casparian_ok(&["deploy", &folder.path("count.py"), "--database", &queue]);
    let (summary, _) = folder.run(&[]);
    assert_eq!(totals(&summary), (0, 1, 0, 2), "{summary}");
    let sinks = "SELECT topic_name, uri FROM cf_topic_config WHERE plugin_name = 'count'";
    let sinks = sql(Path::new(&queue), sinks);
    assert_eq!(sinks, "output parquet://lines/all.parquet");
    // Sinks that another version declares are others; those of an operator come first.
    folder.write("count.py", &plugin("{'output': 'parquet://other.parquet'}"));
    assert_eq!(totals(&folder.run(&[]).0), (1, 0, 0, 2));
    assert_eq!(names(&folder), ["other_1.parquet"]);
    sql(
        Path::new(&queue),
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
         VALUES ('count', 'output', 'parquet://mine.parquet', 'append')",
    );
    assert_eq!(totals(&folder.run(&[]).0), (1, 0, 0, 2));
    assert_eq!(names(&folder), ["mine_1.parquet"]);
    // One that cannot be read is refused as by `deploy`.
    folder.write("count.py", &plugin("{'output': 'nowhere://x'}"));
    let words = ["run", &folder.path("count.py"), &folder.path("in"), "-o"];
    let refused = casparian(&[&words[..], &[&folder.path("out")]].concat());
    let text = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(
        text.contains("MANIFEST") && text.contains("nowhere"),
        "{text}"
    );
}

/// The output of each but one was replaced by another's, and nothing is to be done.
#[test]
fn files_of_one_sink_of_mode_replace_are_skipped_while_one_output_stands() {
    for sink in [
        "parquet://all.parquet",
        "parquet://all/",
        "sqlite://x.db/rows",
    ] {
        let folder = Folder::new(&[("a", "1\n"), ("b", "2\n3\n"), ("c", "4\n")]);
        let sinks = format!("{{'output': {{'uri': '{sink}', 'mode': 'replace'}}}}");
        folder.write("count.py", &plugin(&sinks));
        let run = |want: (u64, u64), why: &str| {
            let (summary, code) = folder.run(&["--slots", "1"]);
            let (done, skipped, failed, _) = totals(&summary);
            let got = ((done, skipped), failed, code);
            assert_eq!(got, (want, 0, Some(0)), "{sink} {why}: {summary}");
            let replaced = json!([{"topic": "output", "sink": sink, "files": 3}]);
            assert_eq!(summary["replaced"], replaced, "{sink} {why}: {summary}");
            assert_eq!(names(&folder).len(), 1, "{sink} {why}");
        };
        run((3, 0), "first");
        run((0, 3), "unchanged");
        folder.write("in/a", "5\n6\n");
        run((1, 2), "one has changed");
        if sink.starts_with("sqlite") {
            let rows = sql(Path::new(&folder.path("out/x.db")), "SELECT line FROM rows");
            assert_eq!(rows, "5\n6");
        } else {
            assert!(names(&folder)[0].ends_with("_1.parquet"), "{sink}");
        }
        run((0, 3), "unchanged again");
        fs::remove_file(Path::new(&folder.path("out")).join(&names(&folder)[0])).unwrap();
        run((3, 0), "nothing stands");
        run((0, 3), "unchanged at last");
        let words = ["run", &folder.path("count.py"), &folder.path("in"), "-o"];
        let text = casparian_ok(&[&words[..], &[&folder.path("out")]].concat());
        assert_eq!(text.matches("mode replace").count(), 1, "{text}");
    }
}

/// A plugin whose sink all files share. Files with the line `fail` fail.
fn shared(sink: &str, mode: &str) -> String {
    let sinks = format!("{{'output': {{'uri': '{sink}', 'mode': '{mode}'}}}}");
    plugin(&sinks).replace(
        "        yield",
        "        if 'fail' in open(path).read(): raise ValueError('told to fail')\n        yield",
    )
}

/// The lines that stand in the sink.
fn lines(folder: &Folder) -> String {
    let query = "SELECT group_concat(line, ' ') FROM (SELECT line FROM rows ORDER BY line)";
    sql(Path::new(&folder.path("out/x.db")), query)
}

/// Jobs of the files whose output stands in a sink of Parquet files.
fn present(folder: &Folder) -> Vec<String> {
    let names = names(folder).into_iter();
    names.filter(|name| name.ends_with(".parquet")).collect()
}

#[test]
fn rows_of_an_earlier_attempt_do_not_stand_for_other_files() {
    let folder = Folder::new(&[("a", "1\n"), ("b", "2\n")]);
    folder.write("count.py", &shared("sqlite://x.db/rows", "replace"));
    let run = || totals(&folder.run(&["--slots", "1"]).0);
    assert_eq!(run(), (2, 0, 0, 2));
    fs::copy(folder.path("out/x.db"), folder.path("backup")).unwrap();
    folder.write("in/b", "3\n");
    assert_eq!(run(), (1, 1, 0, 2));
    assert_eq!(lines(&folder), "3");
    fs::copy(folder.path("backup"), folder.path("out/x.db")).unwrap();
    assert_eq!(lines(&folder), "2");
    assert_eq!(run(), (2, 0, 0, 2));
    assert_eq!(lines(&folder), "3");
    assert_eq!(run(), (0, 2, 0, 2));
}

/// What stands in a sink of mode `replace` counts for other files only if the same plugin, code and
/// sinks have made it.
#[test]
fn output_of_another_plugin_or_of_other_code_does_not_stand_for_a_files_own() {
    for sink in ["parquet://all.parquet", "sqlite://x.db/rows"] {
        let folder = Folder::new(&[("a", "1\n"), ("b", "2\n")]);
        let ours = shared(sink, "replace");
        let other = ours.replace("splitlines()", "upper().split() + ['Q']");
        folder.write("count.py", &ours);
        folder.write("other.py", &other);
        let run = |plugin: &str| {
            let (plugin, out) = (folder.path(plugin), folder.path("out"));
            let more = ["--slots", "1"];
            run_json(&plugin, &[&folder.path("in")], Path::new(&out), &more).0
        };
        assert_eq!(totals(&run("count.py")), (2, 0, 0, 2), "{sink}");
        assert_eq!(totals(&run("other.py")), (2, 0, 0, 4), "{sink}");
        assert_eq!(totals(&run("count.py")), (2, 0, 0, 2), "{sink}");
        let summary = run("count.py");
        assert_eq!(totals(&summary), (0, 2, 0, 2), "{sink}");
        assert_named_files_exist(&summary);
        // Another job of a file, which other code of the plugin has run.
        fs::create_dir(folder.path("earlier")).unwrap();
        folder.write("earlier/count.py", &other);
        let queue = folder.path("out/.casparian/queue.sqlite");
        let queue = Path::new(&queue);
        let earlier = folder.path("earlier/count.py");
        casparian_ok(&["deploy", &earlier, "--database", queue.to_str().unwrap()]);
        let file = Path::new(&folder.path("in/a")).to_owned();
        let submitted = submit(queue, "count", &[file])[0];
        {
            let (mut sentinel, endpoint) = sentinel(queue, &[]);
            let out = folder.path("out");
            let mut worker = worker(&endpoint, Path::new(&out), &["--slots", "1"]);
            assert_eq!(ended(queue, submitted)["status"], "COMPLETED");
            for program in [&mut worker, &mut sentinel] {
                program.signal("-TERM");
                program.wait();
            }
        }
        assert_eq!(totals(&run("count.py")), (2, 0, 0, 2), "{sink}");
        assert_eq!(totals(&run("count.py")), (0, 2, 0, 2), "{sink}");
    }
}

/// A summary names no files that have gone meanwhile.
fn assert_named_files_exist(summary: &serde_json::Value) {
    for file in summary["files"].as_array().unwrap() {
        for list in ["outputs", "kept"] {
            for uri in file[list].as_array().into_iter().flatten() {
                let path = uri.as_str().unwrap().strip_prefix("file://");
                let is_there = path.is_none_or(|path| Path::new(path).exists());
                assert!(is_there, "{list} {uri}: {summary}");
            }
        }
    }
}

/// Output that a failure removes leaves its sink to the other files.
#[test]
fn files_that_output_kept_from_a_sink_are_run_when_it_is_removed() {
    for sink in ["parquet://all.parquet", "sqlite://x.db/rows"] {
        for mode in ["replace", "error"] {
            let folder = Folder::new(&[("a", "1\n"), ("b", "2\n"), ("c", "3\n")]);
            folder.write("count.py", &shared(sink, mode));
            let (summary, _) = folder.run(&["--slots", "1"]);
            assert_named_files_exist(&summary);
            let (winner, others) = match mode {
                "replace" => ("in/c", (2, 0, 1)),
                _ => ("in/a", (1, 0, 2)),
            };
            folder.write(winner, "fail\n");
            let remove = ["--slots", "1", "--failed-output", "remove"];
            let (summary, code) = folder.run(&remove);
            let (done, skipped, failed, _) = totals(&summary);
            let why = format!("{sink} {mode}: {summary}");
            assert_eq!((done, skipped, failed), others, "{why}");
            assert_eq!(code, Some(1), "{why}");
            assert_named_files_exist(&summary);
            let files = summary["files"].as_array().unwrap();
            let removed = files.iter().filter(|file| !file["removed"].is_null());
            assert_eq!(removed.count(), 1, "{why}");
            match sink.starts_with("sqlite") {
                true => assert_eq!(lines(&folder), "2", "{why}"),
                false => assert_eq!(present(&folder), ["all_2.parquet"], "{why}"),
            }
        }
    }
}

/// Output of a failed file counts as kept only where it is there.
#[test]
fn only_output_that_is_there_is_called_kept() {
    for sink in ["parquet://all.parquet", "sqlite://x.db/rows"] {
        let folder = Folder::new(&[("a", "1\n"), ("b", "2\n")]);
        let good = shared(sink, "replace");
        folder.write("count.py", &good);
        assert_eq!(totals(&folder.run(&["--slots", "1"]).0), (2, 0, 0, 2));
        folder.write(
            "count.py",
            &good.replace("if 'fail' in", "if 'fail' not in"),
        );
        let (summary, _) = folder.run(&["--slots", "1"]);
        assert_eq!(totals(&summary), (0, 0, 2, 0), "{sink}: {summary}");
        let kept: Vec<bool> = summary["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| file["kept"].is_array())
            .collect();
        assert_eq!(kept, [false, true], "{sink}: {summary}");
        assert_named_files_exist(&summary);
    }
}

#[test]
fn topics_of_one_table_under_several_names_are_compared_together() {
    let folder = Folder::new(&[("a", "1\n")]);
    let plugin = r#"
from casparian_flow.sdk import PluginMetadata
MANIFEST = PluginMetadata(pattern='*', topic='x', sinks={'x': 'sqlite://x.db/ROWS', 'y': 'sqlite://x.db/rows'})
import pyarrow as pa
class Handler:
    def configure(self, context, config):
        self.context = context
        self.topics = [context.register_topic(name) for name in 'xy']
    def execute(self, path):
        for topic in self.topics:
            self.context.publish(topic, pa.table({"line": [path]}))
"#;
    folder.write("count.py", plugin);
    assert_eq!(totals(&folder.run(&[]).0), (1, 0, 0, 2));
    assert_eq!(totals(&folder.run(&[]).0), (0, 1, 0, 2));
}
