//! `casparian run` over an output folder that was used before: what is skipped, what goes.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::*;
use crate::run::{Folder, run_json, totals};

impl Folder {
    /// Runs SQL on the queue of the output folder, or on another database there.
    fn sql(&self, database: &str, sql: &str) {
        let database = rusqlite::Connection::open(self.path(&format!("out/{database}"))).unwrap();
        database.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        database.execute_batch(sql).unwrap();
    }

    fn sink(&self, uri: &str, mode: &str) {
        self.sql(
            ".casparian/queue.sqlite",
            &format!(
                "DELETE FROM cf_topic_config; INSERT INTO cf_topic_config \
                 (plugin_name, topic_name, uri, mode) VALUES ('count', 'output', '{uri}', '{mode}')"
            ),
        );
    }

    /// The lines in the table `rows` of `x.db`, in order.
    fn rows(&self) -> Vec<String> {
        let database = rusqlite::Connection::open(self.path("out/x.db")).unwrap();
        let mut statement = database
            .prepare("SELECT line FROM rows ORDER BY line")
            .unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// A folder whose two files went into a table.
    fn with_table() -> Self {
        let folder = Folder::new(&[("a", "1\n2\n"), ("b", "3\n")]);
        fs::create_dir(folder.path("out")).unwrap();
        fs::create_dir(folder.path("out/.casparian")).unwrap();
        casparian_ok(&["init", &folder.path("out/.casparian/queue.sqlite")]);
        folder.sink("sqlite://x.db/rows", "append");
        let (summary, code) = folder.run(&[]);
        assert_eq!(
            (totals(&summary), code),
            ((2, 0, 0, 3), Some(0)),
            "{summary}"
        );
        assert_eq!(folder.rows(), ["1", "2", "3"]);
        assert_eq!(totals(&folder.run(&[]).0).1, 2);
        folder
    }
}

#[test]
fn an_output_folder_of_another_database_is_refused_at_the_start() {
    // The queue is another one, or there is none.
    for is_removed in [false, true] {
        let folder = Folder::new(&[("a", "1\n")]);
        assert_eq!(folder.run(&[]).1, Some(0));
        let queue = folder.path("out/.casparian/queue.sqlite");
        match is_removed {
            true => {
                for name in ["", "-wal", "-shm"] {
                    drop(fs::remove_file(format!("{queue}{name}")));
                }
            }
            false => drop(casparian_ok(&["init", "--new-identity", &queue])),
        }
        folder.write("in/a", "1\n2\n");
        let (plugin, input, out) = (
            folder.path("count.py"),
            folder.path("in"),
            folder.path("out"),
        );
        let refused = casparian(&["run", &plugin, &input, "-o", &out]);
        let text = stderr(&refused);
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(
            text.contains("another database") && text.contains("--share-output"),
            "{text}"
        );
        assert_eq!(stdout(&refused), "", "no job has run");
        assert_eq!(Path::new(&queue).exists(), !is_removed);
        assert_eq!(visible_files(Path::new(&out)).len(), 1);
        let (summary, code) = folder.run(&["--share-output"]);
        assert_eq!(
            (totals(&summary), code),
            ((1, 0, 0, 2), Some(0)),
            "{summary}"
        );
    }
}

/// The table of a sink belongs to another database, whether that is known at the start or not.
#[test]
fn a_table_of_another_database_is_refused_without_retries() {
    for by_job in [false, true] {
        let folder = Folder::with_table();
        folder.sql("x.db", "UPDATE _casparian_table SET database = 'another'");
        folder.write("in/a", "4\n");
        if by_job {
            folder.sql(
                ".casparian/queue.sqlite",
                "DELETE FROM cf_topic_config; UPDATE cf_processing_queue \
                 SET config_overrides = '{\"output\": \"sqlite://x.db/rows\"}'",
            );
        }
        let (plugin, input, out) = (
            folder.path("count.py"),
            folder.path("in"),
            folder.path("out"),
        );
        let refused = casparian(&["run", &plugin, &input, "-o", &out]);
        let text = stderr(&refused) + &stdout(&refused);
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(
            text.contains("another database") && text.contains("--share-output"),
            "{text}"
        );
        assert!(!text.contains("tried"), "{text}");
        assert_eq!(stdout(&refused).is_empty(), !by_job, "{text}");
        assert_eq!(folder.rows(), ["1", "2", "3"]);
    }
}

fn of_file<'a>(summary: &'a Value, name: &str) -> &'a Value {
    let files = summary["files"].as_array().unwrap();
    let is_it = |file: &&Value| file["file"].as_str().unwrap().ends_with(name);
    files.iter().find(is_it).unwrap()
}

#[test]
fn rows_of_a_file_that_fails_now_go_as_its_files_do() {
    let tables = Folder::with_table();
    let files = Folder::new(&[("a", "1\n2\n"), ("b", "3\n")]);
    files.run(&[]);
    for folder in [&tables, &files] {
        folder.write("in/a", "fail\n");
        let (summary, code) = folder.run(&["--failed-output", "remove"]);
        assert_eq!(
            (totals(&summary), code),
            ((0, 1, 1, 1), Some(1)),
            "{summary}"
        );
        assert_eq!(
            of_file(&summary, "/a")["removed"].as_array().unwrap().len(),
            1,
            "{summary}"
        );
        let words = ["run", &folder.path("count.py"), &folder.path("in")];
        folder.write("in/a", "5\n");
        folder.run(&[]);
        folder.write("in/a", "fail\n");
        let more = ["-o", &folder.path("out"), "--failed-output", "remove"];
        let output = casparian(&[&words[..], &more].concat());
        let text = stdout(&output);
        assert!(
            text.contains("earlier output of 1 failed file was removed"),
            "{text}"
        );
        // There is nothing left to remove.
        let (summary, _) = folder.run(&[]);
        assert!(of_file(&summary, "/a")["removed"].is_null(), "{summary}");
    }
    assert_eq!(tables.rows(), ["3"]);
    assert_eq!(visible_files(Path::new(&files.path("out"))).len(), 1);
    // It comes back with the next good content.
    tables.write("in/a", "4\n");
    assert_eq!(tables.run(&[]).1, Some(0));
    assert_eq!(tables.rows(), ["3", "4"]);
}

#[test]
fn rows_that_a_constraint_of_the_table_refuses_cost_no_output() {
    let folder = Folder::with_table();
    folder.sql(
        "x.db",
        "CREATE UNIQUE INDEX one ON rows (line); CREATE TRIGGER small BEFORE INSERT ON rows \
         WHEN new.line = '9' BEGIN SELECT RAISE(ABORT, 'too large'); END",
    );
    for (text, reason) in [("3\n", "UNIQUE"), ("9\n", "too large")] {
        folder.write("in/a", text);
        let (summary, code) = folder.run(&[]);
        assert_eq!((totals(&summary).2, code), (1, Some(1)), "{summary}");
        let file = of_file(&summary, "/a");
        let error = file["error"].as_str().unwrap();
        assert!(error.contains(reason) && error.contains("x.db"), "{file}");
        assert!(file["removed"].is_null(), "{file}");
        assert_eq!(file["kept"].as_array().unwrap().len(), 1, "{file}");
        assert_eq!(folder.rows(), ["1", "2", "3"]);
        let queue = folder.path("out/.casparian/queue.sqlite");
        let cause = "SELECT failure_cause FROM cf_processing_queue WHERE id = 1";
        assert_eq!(sql(Path::new(&queue), cause), "operator");
    }
}

/// The fault of a machine costs no output; what is left of before goes when the plugin fails.
#[test]
fn output_goes_with_a_later_failure_of_the_plugin_too() {
    for folder in [
        Folder::with_table(),
        Folder::new(&[("a", "1\n"), ("b", "3\n")]),
    ] {
        folder.run(&[]);
        // A receipt of a failure, as one by the machine leaves it.
        folder.sql(
            ".casparian/queue.sqlite",
            "UPDATE cf_processing_queue SET status = 'FAILED', failure_cause = 'worker', receipt = \
             '{\"status\": \"FAILED\", \"metrics\": {}, \"artifacts\": []}' WHERE id = 1",
        );
        folder.write("in/a", "fail\n");
        folder.write("in/b", "fail\n");
        let (summary, _) = folder.run(&["--failed-output", "remove"]);
        assert_eq!(totals(&summary), (0, 0, 2, 0), "{summary}");
        assert_eq!(
            of_file(&summary, "/a")["removed"].as_array().unwrap().len(),
            1
        );
        match Path::new(&folder.path("out/x.db")).exists() {
            true => assert_eq!(folder.rows().len(), 0),
            false => assert_eq!(visible_files(Path::new(&folder.path("out"))).len(), 0),
        }
    }
}

/// What a command line does not name keeps its output, in files and in tables.
#[test]
fn output_of_files_that_are_no_longer_among_the_inputs_stays() {
    let tables = Folder::with_table();
    let files = Folder::new(&[("a", "1\n2\n"), ("b", "3\n")]);
    files.run(&[]);
    for folder in [&tables, &files] {
        fs::remove_file(folder.path("in/a")).unwrap();
        let (summary, code) = folder.run(&["--force"]);
        assert_eq!(
            (totals(&summary), code),
            ((1, 0, 0, 1), Some(0)),
            "{summary}"
        );
    }
    assert_eq!(tables.rows(), ["1", "2", "3"]);
    assert_eq!(visible_files(Path::new(&files.path("out"))).len(), 2);
}

#[test]
fn a_file_whose_output_was_changed_is_run_again() {
    let folder = Folder::new(&[("a", "1\n2\n"), ("b", "3\n")]);
    folder.run(&[]);
    let out = folder.path("out");
    let first = visible_files(Path::new(&out)).remove(0);
    let good = fs::read(&first).unwrap();
    for change in ["cut", "rewritten", "folder"] {
        match change {
            "cut" => fs::write(&first, &good[..good.len() / 2]).unwrap(),
            "rewritten" => {
                let file = fs::File::options().write(true).open(&first).unwrap();
                file.set_modified(std::time::SystemTime::UNIX_EPOCH)
                    .unwrap();
            }
            _ => {
                fs::remove_file(&first).unwrap();
                fs::create_dir(&first).unwrap();
                let (summary, code) = folder.run(&[]);
                assert_eq!((totals(&summary).2, code), (1, Some(1)), "{summary}");
                fs::remove_dir(&first).unwrap();
            }
        }
        let (summary, code) = folder.run(&[]);
        assert_eq!(
            (totals(&summary), code),
            ((1, 1, 0, 3), Some(0)),
            "{change}: {summary}"
        );
        assert_eq!(totals(&folder.run(&[]).0).1, 2, "{change}");
        for engine in read_parquet(Path::new(&out)) {
            assert_eq!(engine["rows"], 3, "{change}: {engine}");
        }
    }
    // The records are not needed: sizes are in the receipts.
    fs::remove_dir_all(folder.path("out/.casparian/outputs")).unwrap();
    assert_eq!(totals(&folder.run(&[]).0).1, 2);
    let first = visible_files(Path::new(&out)).remove(0);
    fs::write(&first, "x").unwrap();
    let (summary, _) = folder.run(&[]);
    assert_eq!(totals(&summary), (1, 1, 0, 3), "{summary}");
}

/// A backup that keeps times is as good as the files were.
#[test]
fn a_file_whose_output_is_another_file_of_that_size_and_time_is_skipped() {
    let folder = Folder::new(&[("a", "1\n2\n")]);
    folder.run(&[]);
    let file = visible_files(Path::new(&folder.path("out"))).remove(0);
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    fs::copy(&file, folder.path("copy")).unwrap();
    let copy = fs::File::options()
        .write(true)
        .open(folder.path("copy"))
        .unwrap();
    copy.set_modified(modified).unwrap();
    fs::rename(folder.path("copy"), &file).unwrap();
    assert_eq!(totals(&folder.run(&[]).0), (0, 1, 0, 2));
}

#[test]
fn a_file_whose_rows_are_not_there_is_run_again() {
    let folder = Folder::with_table();
    let gone = [
        "DELETE FROM rows WHERE line = '1'",
        "DELETE FROM rows WHERE _job_id = 1; DELETE FROM _casparian_output WHERE job = 1",
        "DELETE FROM rows WHERE _job_id = 1; UPDATE _casparian_output SET present = 0 WHERE job = 1",
    ];
    for change in gone {
        folder.sql("x.db", change);
        let (summary, code) = folder.run(&[]);
        assert_eq!(
            (totals(&summary), code),
            ((1, 1, 0, 3), Some(0)),
            "{change}: {summary}"
        );
        assert_eq!(folder.rows(), ["1", "2", "3"], "{change}");
    }
    for change in [
        "DROP TABLE rows",
        "DROP TABLE _casparian_output; DROP TABLE rows",
    ] {
        folder.sql("x.db", change);
        let (summary, code) = folder.run(&[]);
        assert_eq!(
            (totals(&summary), code),
            ((2, 0, 0, 3), Some(0)),
            "{change}: {summary}"
        );
        assert_eq!(folder.rows(), ["1", "2", "3"], "{change}");
    }
    fs::remove_file(folder.path("out/x.db")).unwrap();
    assert_eq!(totals(&folder.run(&[]).0), (2, 0, 0, 3));
    fs::write(folder.path("out/x.db"), "no database ".repeat(1000)).unwrap();
    assert_eq!(totals(&folder.run(&[]).0).2, 2);
}

#[test]
fn files_are_run_again_when_their_sinks_have_changed() {
    let folder = Folder::new(&[("a", "1\n2\n"), ("b", "3\n")]);
    folder.run(&[]);
    assert_eq!(totals(&folder.run(&[]).0).1, 2);
    for (uri, mode) in [
        ("parquet://other.parquet", "append"),
        ("parquet://other.parquet", "replace"),
        ("parquet://other.parquet?compression=zstd", "replace"),
        ("sqlite://x.db/rows", "append"),
    ] {
        folder.sink(uri, mode);
        let (summary, code) = folder.run(&["--slots", "1"]);
        assert_eq!(
            (totals(&summary).0, code),
            (2, Some(0)),
            "{uri} {mode}: {summary}"
        );
        if mode == "append" {
            assert_eq!(totals(&folder.run(&[]).0).1, 2, "{uri} {mode}");
        }
    }
    assert_eq!(folder.rows(), ["1", "2", "3"]);
    assert_eq!(
        visible_files(Path::new(&folder.path("out"))),
        [Path::new(&folder.path("out/x.db"))]
    );
    // A job's own sinks, and the ones by default.
    let queue = ".casparian/queue.sqlite";
    folder.sql(queue, "UPDATE cf_processing_queue SET config_overrides = '{\"output\": \"parquet://own.parquet\"}' WHERE id = 1");
    assert_eq!(totals(&folder.run(&[]).0), (1, 1, 0, 3));
    folder.sql(
        queue,
        "UPDATE cf_processing_queue SET config_overrides = NULL; DELETE FROM cf_topic_config",
    );
    assert_eq!(totals(&folder.run(&[]).0), (2, 0, 0, 3));
    // An earlier release did not note them.
    folder.sql(queue, "UPDATE cf_processing_queue SET sinks_hash = NULL");
    assert_eq!(totals(&folder.run(&[]).0), (0, 2, 0, 3));
    let (plugin, input) = (folder.path("count.py"), folder.path("in"));
    let (summary, _) = run_json(
        &plugin,
        &[&input],
        Path::new(&folder.path("out")),
        &["--force"],
    );
    assert_eq!(totals(&summary), (2, 0, 0, 3), "{summary}");
}

/// A plugin that does something to its input the first time, and then fails or goes on.
fn plugin_that(first: &str) -> String {
    format!(
        "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        rows = open(path).read().split()\n        folder = os.path.dirname(path)\n        mark = folder + '-' + os.path.basename(path)\n        if not os.path.exists(mark):\n            open(mark, 'w').close()\n            {first}\n        yield pa.table({{'line': rows}})\n"
    )
}

/// The earlier output is of the content that is there, or nobody knows what is there now.
#[test]
fn a_failure_over_the_same_content_costs_no_output() {
    for (plugin, reason) in [
        (
            "class Handler:\n    def execute(self, path): raise ValueError('a typo')\n".to_owned(),
            "a typo",
        ),
        (
            "import nothing_of_that_name\n".to_owned(),
            "nothing_of_that_name",
        ),
        (
            "import os\nclass Handler:\n    def execute(self, path): os.kill(os.getpid(), 9)\n"
                .to_owned(),
            "signal 9",
        ),
        (
            plugin_that(
                "os.rename(folder, folder + '-away')\n            raise ValueError('gone')",
            ),
            "gone",
        ),
    ] {
        let tables = Folder::with_table();
        let files = Folder::new(&[("a", "1\n2\n"), ("b", "3\n")]);
        files.run(&[]);
        for folder in [&tables, &files] {
            folder.write("count.py", &plugin);
            let (summary, code) = folder.run(&["--slots", "1"]);
            assert_eq!((totals(&summary).2, code), (2, Some(1)), "{summary}");
            for name in ["/a", "/b"] {
                let file = of_file(&summary, name);
                assert!(file["removed"].is_null(), "{file}");
                assert_eq!(file["kept"].as_array().unwrap().len(), 1, "{file}");
            }
            assert!(summary.to_string().contains(reason), "{summary}");
        }
        assert_eq!(tables.rows(), ["1", "2", "3"]);
        assert_eq!(visible_files(Path::new(&files.path("out"))).len(), 2);
    }
    // It is told, and the next run that succeeds replaces it.
    let folder = Folder::new(&[("a", "1\n2\n")]);
    folder.run(&[]);
    let good = fs::read_to_string(folder.path("count.py")).unwrap();
    folder.write("count.py", "x = (\n");
    folder.write(
        "count.py",
        "class Handler:\n    def execute(self, path): raise ValueError('x')\n",
    );
    let words = ["run", &folder.path("count.py"), &folder.path("in"), "-o"];
    let output = casparian(&[&words[..], &[&folder.path("out")]].concat());
    let text = stdout(&output);
    assert!(
        text.contains("The earlier output of 1 failed file was kept"),
        "{text}"
    );
    folder.write("count.py", &good);
    assert_eq!(totals(&folder.run(&[]).0), (1, 0, 0, 2));
    assert_eq!(visible_files(Path::new(&folder.path("out"))).len(), 1);
}

/// The plugin fails because of content that is other a moment later.
#[test]
fn a_file_that_changes_while_its_job_fails_is_run_again() {
    let folder = Folder::new(&[("a", "1\n")]);
    folder.run(&[]);
    folder.write("in/a", "half");
    folder.write(
        "count.py",
        &plugin_that(
            "open(mark + '.new', 'w').write('5\\n6\\n')\n            os.replace(mark + '.new', path)\n            raise ValueError('half a file')",
        ),
    );
    let (summary, code) = folder.run(&[]);
    assert_eq!(
        (totals(&summary), code),
        ((1, 0, 0, 2), Some(0)),
        "{summary}"
    );
    // Now the one that it was before is the newest, and it is not there any more.
    fs::remove_file(folder.path("in-a")).unwrap();
    folder.write(
        "count.py",
        // It may be ended at any point, as soon as its input is seen to have changed.
        &plugin_that("open(mark + '.new', 'w').write(str(os.times()))\n            os.remove(mark)\n            os.replace(mark + '.new', path)\n            raise ValueError('never whole')"),
    );
    let (summary, code) = folder.run(&[]);
    assert_eq!((totals(&summary).2, code), (1, Some(1)), "{summary}");
    assert!(
        summary.to_string().contains("it changed each time"),
        "{summary}"
    );
    assert_eq!(of_file(&summary, "/a")["kept"].as_array().unwrap().len(), 1);
}

/// What stands in a table that another program locks is not known: nothing is done over again.
#[test]
fn a_table_that_others_lock_at_the_start_ends_the_run() {
    let folder = Folder::with_table();
    let other = rusqlite::Connection::open(folder.path("out/x.db")).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let words = ["run", &folder.path("count.py"), &folder.path("in"), "-o"];
    let output = casparian(&[&words[..], &[&folder.path("out")]].concat());
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("x.db") && text.contains("lock"), "{text}");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(totals(&folder.run(&[]).0).1, 2, "both are skipped");
}

/// The old name of an output leads to the new one, by a link.
#[test]
fn a_folder_that_was_moved_and_linked_keeps_what_is_run_again() {
    let folder = Folder::new(&[("a", "1\n2\n"), ("b", "3\n")]);
    folder.run(&[]);
    fs::rename(folder.path("out"), folder.path("moved")).unwrap();
    std::os::unix::fs::symlink("moved", folder.path("out")).unwrap();
    folder.write("in/a", "7\n");
    for more in [&[][..], &["--force"]] {
        let (summary, code) = folder.run(more);
        assert_eq!((totals(&summary).2, code), (0, Some(0)), "{summary}");
        assert_eq!(visible_files(Path::new(&folder.path("moved"))).len(), 2);
    }
}
