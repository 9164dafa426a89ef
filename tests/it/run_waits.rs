//! `casparian run` whose queue is locked or cannot be written before its first job and after its
//! last one.

use std::path::Path;

use crate::common::*;
use crate::run::{Folder, totals};
use crate::run_ends::{Scene, lock};

fn start(folder: &Folder, more: &[&str]) -> Background {
    let mut command = program("casparian");
    command
        .args(["run", &folder.path("count.py"), &folder.path("in")])
        .args(["--output", &folder.path("out")])
        .args(more);
    Background::start(&mut command)
}

/// A folder with a queue, whose one file is done and has changed since.
fn used() -> (Folder, String) {
    let folder = Folder::new(&[("a", "1\n")]);
    assert_eq!(folder.run(&[]).1, Some(0));
    folder.write("in/a", "1\n2\n");
    let queue = folder.path("out/.casparian/queue.sqlite");
    (folder, queue)
}

#[test]
fn a_queue_that_is_locked_at_the_start_is_waited_for() {
    for more in [&[][..], &["--json"]] {
        let (folder, queue) = used();
        let lock = lock(&queue);
        let mut run = start(&folder, more);
        let line = run.line_with("waiting for at most 300 s");
        assert!(line.contains(&queue) && line.contains("lock"), "{line}");
        drop(lock);
        assert_eq!(run.wait(), Some(0), "{:#?}", run.seen);
        let said = run.seen.iter().filter(|line| line.contains("waiting for"));
        assert_eq!(said.count(), 1, "{:#?}", run.seen);
        assert_eq!(totals(&folder.run(&[]).0), (0, 1, 0, 2));
    }
}

#[test]
fn a_queue_that_is_locked_at_the_start_for_too_long_is_given_up() {
    let (folder, queue) = used();
    let lock = lock(&queue);
    let mut run = start(&folder, &["--outage-timeout", "1"]);
    assert_eq!(run.wait(), Some(1), "{:#?}", run.seen);
    let last = run.seen.last().unwrap();
    for want in [&queue, "lock", "1 s (--outage-timeout)", "the same command"] {
        assert!(last.contains(want), "{:#?}", run.seen);
    }
    let words = ["run", &folder.path("count.py"), &folder.path("in"), "-o"];
    let more = [&folder.path("out"), "--json", "--outage-timeout", "1"];
    let output = casparian(&[&words[..], &more[..]].concat());
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(1), "")
    );
    assert!(stderr(&output).contains("--outage-timeout"));
    drop(lock);
    assert_eq!(totals(&folder.run(&[]).0), (1, 0, 0, 2));
}

#[test]
fn a_wait_for_the_queue_can_be_interrupted() {
    let (folder, queue) = used();
    let lock = lock(&queue);
    let mut run = start(&folder, &["--outage-timeout", "86400"]);
    run.line_with("waiting for at most");
    run.signal("-INT");
    assert_eq!(run.wait(), Some(130), "{:#?}", run.seen);
    drop(lock);
    assert_eq!(totals(&folder.run(&[]).0), (1, 0, 0, 2));
}

/// What still runs is put back where that can be written; else the next run does it.
#[test]
fn an_interrupted_run_whose_queue_is_locked_ends_with_its_summary() {
    let scene = Scene::new();
    let mut run = scene.start(&["--outage-timeout", "86400"]);
    let lock = lock(&scene.at("out/.casparian/queue.sqlite"));
    run.signal("-INT");
    assert_eq!(run.wait(), Some(130), "{:#?}", run.seen);
    let text = run.seen.join("\n");
    assert!(text.contains("FILES  DONE  SKIPPED"), "{text}");
    drop(lock);
    scene.assert_next_run_is_right("interrupted");
}

/// What cannot become better is not waited for.
#[test]
fn a_queue_that_is_no_database_is_refused_at_once() {
    let (folder, queue) = used();
    for name in ["-wal", "-shm"] {
        drop(std::fs::remove_file(format!("{queue}{name}")));
    }
    std::fs::write(&queue, "no database ".repeat(1000)).unwrap();
    let mut run = start(&folder, &["--outage-timeout", "86400"]);
    assert_eq!(run.wait(), Some(1), "{:#?}", run.seen);
    let last = run.seen.last().unwrap();
    assert!(
        last.contains(&queue) && last.contains("no SQLite database"),
        "{last}"
    );
    assert_eq!(visible_files(Path::new(&folder.path("out"))).len(), 1);
}

/// As the kernel's OOM killer does: pauses and further attempts, and nothing else to print meanwhile. It kills
/// twice, because a job whose worker runs no other one is queued at once after its first loss.
#[test]
fn a_file_that_is_tried_again_after_a_pause_is_reported() {
    let folder = Folder::new(&[("a", "1\n"), ("b", "2\n")]);
    let plugin = format!(
        "import os, signal\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        \
         marks = [f'{}-{{n}}' for n in (1, 2)]\n        \
         left = [mark for mark in marks if not os.path.exists(mark)]\n        \
         if path.endswith('b') and left:\n            \
         open(left[0], 'w').close()\n            os.kill(os.getpid(), signal.SIGKILL)\n        \
         yield pa.table({{'x': [1]}})\n",
        folder.path("killed")
    );
    folder.write("count.py", &plugin);
    let mut run = start(&folder, &[]);
    let line = run.line_with("tried again later");
    assert!(
        line.starts_with("casparian: b: tried again later: "),
        "{line}"
    );
    assert_eq!(run.wait(), Some(0), "{:#?}", run.seen);
}
