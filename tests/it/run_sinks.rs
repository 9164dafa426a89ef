//! Where `casparian run` puts output: sinks of a MANIFEST, sinks of mode `replace`.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::common::*;
use crate::run::{Folder, totals};

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
