//! `casparian run` on a queue into which others deploy or submit.

use std::fs;
use std::path::Path;

use crate::common::*;
use crate::run::{Folder, totals};
use crate::run_ends::Scene;

/// No file counts as done that another version of the plugin ran over.
#[test]
fn a_version_that_is_deployed_meanwhile_ends_the_run() {
    let scene = Scene::new();
    let queue = scene.at("out/.casparian/queue.sqlite");
    let mut run = scene.start(&["--slots", "1"]);
    fs::create_dir(scene.at("other")).unwrap();
    let other = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [2, 3]})\n";
    fs::write(scene.at("other/count.py"), other).unwrap();
    casparian_ok(&["deploy", &scene.at("other/count.py"), "--database", &queue]);
    scene.open_gate();
    assert_eq!(run.wait(), Some(1), "{:#?}", run.seen);
    let text = run.seen.join("\n");
    assert!(text.contains("3     2        0       0        1"), "{text}");
    let last = run
        .seen
        .iter()
        .rfind(|line| line.starts_with("casparian: "));
    let last = last.unwrap();
    for want in ["count", &queue, "deploy", "f2", "the same command"] {
        assert!(last.contains(want), "{want}: {text}");
    }
    scene.assert_next_run_is_right("deployed");
}

#[test]
fn a_second_run_on_a_queue_is_refused() {
    let scene = Scene::new();
    let mut run = scene.start(&[]);
    let plugin = fs::read_to_string(scene.at("count.py")).unwrap() + "# another version\n";
    fs::write(scene.at("count.py"), plugin).unwrap();
    let words = ["run", &scene.at("count.py"), &scene.at("in"), "-o"];
    let second = casparian(&[&words[..], &[&scene.at("out")]].concat());
    let text = stderr(&second);
    assert_eq!(second.status.code(), Some(1), "{text}");
    assert!(text.contains("another casparian run works on it"), "{text}");
    scene.open_gate();
    assert_eq!(run.wait(), Some(0), "{:#?}", run.seen);
}

/// A job that `submit` adds has output of its own; the run keeps to its own job, and removes what is
/// of content that the file has no more.
#[test]
fn a_file_that_was_submitted_too_stays_with_the_first_job() {
    let folder = Folder::new(&[("a", "1\n2\n")]);
    assert_eq!(folder.run(&[]).1, Some(0));
    let (queue, out) = (
        folder.path("out/.casparian/queue.sqlite"),
        folder.path("out"),
    );
    let (queue, out) = (Path::new(&queue), Path::new(&out));
    let file = Path::new(&folder.path("in/a")).to_owned();
    let waiting = submit(queue, "count", std::slice::from_ref(&file))[0];
    let run = |want, count: usize| {
        let (summary, code) = folder.run(&[]);
        assert_eq!((totals(&summary), code), (want, Some(0)), "{summary}");
        assert_eq!(visible_files(out).len(), count, "{summary}");
    };
    run((0, 1, 0, 2), 1);
    assert_eq!(job(queue, waiting)["status"], "PENDING");
    // A sentinel and a worker run another one.
    let submitted = submit(queue, "count", &[file])[0];
    {
        let (mut sentinel, endpoint) = sentinel(queue, &[]);
        let mut worker = worker(&endpoint, out, &["--slots", "1"]);
        assert_eq!(ended(queue, submitted)["status"], "COMPLETED");
        for program in [&mut worker, &mut sentinel] {
            program.signal("-TERM");
            program.wait();
        }
    }
    run((0, 1, 0, 2), 2);
    folder.write("in/a", "3\n");
    run((1, 0, 0, 1), 1);
    run((0, 1, 0, 1), 1);
}

/// A run ends though its own rows do not: another program has changed them.
#[test]
fn jobs_that_others_remove_or_end_do_not_keep_a_run_from_its_end() {
    for (change, reason) in [
        ("DELETE FROM cf_processing_queue WHERE id = 3", "removed"),
        (
            "UPDATE cf_processing_queue SET id = 77 WHERE id = 3",
            "removed",
        ),
        (
            "UPDATE cf_processing_queue SET status = 'SKIPPED' WHERE id = 3",
            "SKIPPED",
        ),
        (
            "UPDATE cf_processing_queue SET status = 'PENDING' WHERE id = 3",
            "PENDING",
        ),
        (
            "UPDATE cf_processing_queue SET status = 'COMPLETED' WHERE id = 3",
            "COMPLETED",
        ),
        (
            "UPDATE cf_processing_queue SET status = 'nonsense' WHERE id = 3",
            "nonsense",
        ),
        (
            "UPDATE cf_processing_queue SET plugin_name = 'zz' WHERE id = 3",
            "zz",
        ),
        (
            "UPDATE cf_processing_queue SET file_version_id = 2 WHERE id = 3",
            "another file",
        ),
        (
            "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
             VALUES ('count', 'output', 5, 'append')",
            "cf_topic_config",
        ),
    ] {
        let scene = Scene::new();
        let queue = scene.at("out/.casparian/queue.sqlite");
        let mut run = scene.start(&["--slots", "1"]);
        let database = rusqlite::Connection::open(&queue).unwrap();
        database.busy_timeout(DEADLINE).unwrap();
        database.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        database.execute_batch(change).unwrap();
        scene.open_gate();
        assert_eq!(run.wait(), Some(1), "{change}: {:#?}", run.seen);
        let text = run.seen.join("\n");
        let row = "3     2        0       1";
        assert!(text.contains(row), "{change}: {text}");
        let told = run
            .seen
            .iter()
            .any(|line| line.contains("/f2 ") && line.contains(reason));
        assert!(told, "{change}: {text}");
        database
            .execute_batch("DELETE FROM cf_topic_config")
            .unwrap();
        // A row that belongs to another file now is a second job of that file, with output of its own.
        if reason != "another file" {
            scene.assert_next_run_is_right(change);
        }
    }
}

/// A RUNNING job, too.
#[test]
fn a_running_job_that_another_program_removes_does_not_keep_a_run_from_its_end() {
    let scene = Scene::new();
    let mut run = scene.start(&["--slots", "1"]);
    let queue = scene.at("out/.casparian/queue.sqlite");
    let is_running = || {
        sql(
            Path::new(&queue),
            "SELECT status FROM cf_processing_queue WHERE id = 2",
        )
    };
    until("f1 runs", || (is_running() == "RUNNING").then_some(()));
    sql(
        Path::new(&queue),
        "DELETE FROM cf_processing_queue WHERE id = 2",
    );
    run.line_with("f1");
    scene.open_gate();
    assert_eq!(run.wait(), Some(1), "{:#?}", run.seen);
    scene.assert_next_run_is_right("removed");
}
