//! `casparian run` while its queue or its output folder goes away or fails.

use std::fs;
use std::path::Path;

use crate::common::*;
use crate::run::{Folder, run_json, totals};

/// A run over three files, of which the first is done and the others wait for a gate.
pub(crate) struct Scene {
    folder: Folder,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let folder = Folder::new(&[("f0", "1\n"), ("f1", "1\n"), ("f2", "1\n")]);
        let gate = folder.path("gate");
        folder.write(
            "count.py",
            &format!(
                "import os, time\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        while not path.endswith('f0') and not os.path.exists({gate:?}):\n            time.sleep(0.01)\n        yield pa.table({{'x': [1]}})\n"
            ),
        );
        Scene { folder }
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.folder.path(name)
    }

    /// A run of which the first file is done.
    pub(crate) fn start(&self, more: &[&str]) -> Background {
        let mut command = program("casparian");
        command
            .args(["run", &self.at("count.py"), &self.at("in")])
            .args(["--output", &self.at("out"), "--slots", "2"])
            .args(more);
        let mut run = Background::start(&mut command);
        run.line_with("f0: 1 rows");
        run
    }

    pub(crate) fn open_gate(&self) {
        fs::write(self.at("gate"), "").unwrap();
    }

    /// The next run does the rest.
    pub(crate) fn assert_next_run_is_right(&self, why: &str) {
        self.open_gate();
        let (summary, code) = self.folder.run(&[]);
        let (done, skipped, failed, rows) = totals(&summary);
        assert_eq!(
            (done + skipped, failed, rows, code),
            (3, 0, 3, Some(0)),
            "{why}: {summary}"
        );
        let out = self.at("out");
        assert_eq!(visible_files(Path::new(&out)).len(), 3);
    }
}

/// The run ended with its summary: one file is done, the others are not.
fn assert_ended(run: &mut Background, why: &str, reason: &str) {
    assert_eq!(run.wait(), Some(1), "{why}: {:#?}", run.seen);
    let text = run.seen.join("\n");
    assert!(
        text.contains("FILES  DONE  SKIPPED  FAILED  WAITING"),
        "{text}"
    );
    let row = "3     1        0       0        2";
    assert!(text.contains(row), "{why}: {text}");
    let last = run
        .seen
        .iter()
        .rfind(|line| line.starts_with("casparian: "));
    let last = last.unwrap_or_else(|| panic!("{why}: {text}"));
    assert!(last.contains(reason), "{why}: {text}");
    assert!(last.contains("the same command"), "{why}: {text}");
}

#[test]
fn a_queue_that_is_removed_or_replaced_ends_the_run() {
    for (why, reason) in [
        ("removed", "queue.sqlite: it was removed"),
        ("replaced", "queue.sqlite: it was replaced"),
        ("wal", "its -wal file was removed"),
    ] {
        let scene = Scene::new();
        let database = scene.at("out/.casparian/queue.sqlite");
        let mut run = scene.start(&[]);
        let saved = scene.at("saved");
        fs::hard_link(&database, &saved).unwrap();
        match why {
            "removed" => fs::remove_file(&database).unwrap(),
            "replaced" => {
                fs::copy(&database, scene.at("copy")).unwrap();
                fs::rename(scene.at("copy"), &database).unwrap();
            }
            _ => fs::remove_file(format!("{database}-wal")).unwrap(),
        }
        assert_ended(&mut run, why, reason);
        let out = scene.at("out");
        assert_eq!(visible_files(Path::new(&out)).len(), 1, "{why}");
        fs::rename(&saved, &database).unwrap();
        scene.assert_next_run_is_right(why);
    }
}

#[test]
fn an_output_folder_that_goes_ends_the_run() {
    for (why, reason) in [
        ("gone", "it was removed, renamed or unmounted"),
        ("another", "another folder is at its path"),
        ("file", "another folder is at its path"),
    ] {
        let scene = Scene::new();
        let (out, away) = (scene.at("out"), scene.at("away"));
        let mut run = scene.start(&[]);
        fs::rename(&out, &away).unwrap();
        match why {
            "gone" => {}
            "another" => fs::create_dir(&out).unwrap(),
            _ => fs::write(&out, "").unwrap(),
        }
        assert_ended(&mut run, why, reason);
        assert_eq!(visible_files(Path::new(&away)).len(), 1, "{why}");
        match why {
            "gone" => assert!(!Path::new(&out).exists(), "nothing is made again"),
            "another" => fs::remove_dir(&out).unwrap(),
            _ => fs::remove_file(&out).unwrap(),
        }
        fs::rename(&away, &out).unwrap();
        scene.assert_next_run_is_right(why);
    }
}

pub(crate) fn lock(database: &str) -> rusqlite::Connection {
    let lock = rusqlite::Connection::open(database).unwrap();
    lock.busy_timeout(DEADLINE).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    lock
}

#[test]
fn a_queue_that_fails_for_too_long_ends_the_run() {
    let scene = Scene::new();
    let mut run = scene.start(&["--outage-timeout", "1"]);
    let lock = lock(&scene.at("out/.casparian/queue.sqlite"));
    scene.open_gate();
    assert_ended(&mut run, "locked", "database is locked");
    drop(lock);
    scene.assert_next_run_is_right("");
}

#[test]
fn a_queue_that_fails_for_a_while_is_waited_for() {
    let scene = Scene::new();
    let mut run = scene.start(&[]);
    let lock = lock(&scene.at("out/.casparian/queue.sqlite"));
    scene.open_gate();
    run.line_with("database is locked");
    drop(lock);
    assert_eq!(run.wait(), Some(0), "{:#?}", run.seen);
    scene.assert_next_run_is_right("");
}

/// The folders of ours in the output folder cannot be used any more, though the queue can.
#[test]
fn an_output_folder_that_cannot_be_written_for_too_long_ends_the_run() {
    let scene = Scene::new();
    let mut run = scene.start(&["--outage-timeout", "1"]);
    let staging = scene.at("out/.casparian/staging");
    fs::rename(&staging, scene.at("away")).unwrap();
    fs::write(&staging, "").unwrap();
    scene.open_gate();
    assert_eq!(run.wait(), Some(1), "{:#?}", run.seen);
    let text = run.seen.join("\n");
    assert!(text.contains("staging"), "{text}");
    assert!(text.contains("FILES  DONE"), "{text}");
    fs::remove_file(&staging).unwrap();
    scene.assert_next_run_is_right("");
    let summary = run_json(
        &scene.at("count.py"),
        &[&scene.at("in")],
        Path::new(&scene.at("out")),
        &[],
    )
    .0;
    assert_eq!(totals(&summary).1, 3, "{summary}");
}

/// It settles outputs after its last job, and another sentinel must not begin jobs meanwhile.
#[test]
fn the_queue_is_the_runs_until_the_run_is_over() {
    let name = |n: u32| format!("{n}{}", "x".repeat(220));
    let names: Vec<String> = (0..200).map(name).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    let folder = Folder::new(&files);
    // It cannot end: what it prints is more than a pipe takes, and nobody reads.
    let mut command = program("casparian");
    command
        .args(["run", &folder.path("count.py"), &folder.path("in"), "-o"])
        .args([&folder.path("out"), "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null());
    let mut run = command.spawn().unwrap();
    let queue = folder.path("out/.casparian/queue.sqlite");
    until("all jobs have output", || {
        let out = fs::read_dir(folder.path("out/count")).ok()?.flatten();
        let is_output = |name: &std::ffi::OsStr| name.as_encoded_bytes().ends_with(b".parquet");
        (out.filter(|entry| is_output(&entry.file_name())).count() == 200).then_some(())
    });
    let threads = format!("/proc/{}/task", run.id());
    let is_sentinel = |thread: std::io::Result<fs::DirEntry>| {
        let name = fs::read_to_string(thread.unwrap().path().join("comm"));
        name.is_ok_and(|name| name.trim() == "sentinel")
    };
    until("its sentinel has ended", || {
        (!fs::read_dir(&threads).unwrap().any(is_sentinel)).then_some(())
    });
    let mut second = program("casparian");
    second.args([
        "sentinel",
        "--bind",
        "tcp://127.0.0.1:*",
        "--database",
        &queue,
    ]);
    let mut second = Background::start(&mut second);
    second.line_with("another sentinel");
    assert_eq!(second.wait(), Some(1), "{:?}", second.seen);
    run.kill().unwrap();
    run.wait().unwrap();
}
