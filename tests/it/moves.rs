//! Moves between layouts and removals of output that stop, and who goes on then.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::*;
use crate::faults::{At, Faults, LINK, RENAME};
use crate::layout::{check_receipts, files, read_folder, receipts, topics};
use crate::run::{Folder, totals};

const EPERM: i32 = 1;
const ENOSPC: i32 = 28;

/// A run of the folder's plugin that meets faults.
fn run_with(folder: &Folder, faults: &Faults, more: &[&str]) -> Command {
    let mut command = program("casparian");
    command
        .args(["run", &folder.path("count.py"), &folder.path("in")])
        .args(["-o", &folder.path("out")])
        .args(more);
    faults.load(&mut command);
    command
}

fn faults(folder: &Folder) -> Faults {
    Faults::new(
        &folder.dir.path().join("faults"),
        Path::new(&folder.path("out")),
    )
}

/// The number of the first call of a move, and of the first after it, by a move that was not stopped.
fn calls_of_a_run(folder: &Folder, more: &[&str]) -> i64 {
    let faults = faults(folder);
    let ended = output(&mut run_with(folder, &faults, more));
    assert!(ended.status.success(), "{}", stderr(&ended));
    faults.calls()
}

/// A sentinel and a worker run the folder's queued jobs.
fn serve(folder: &Folder) {
    let (queue, out) = (
        folder.path("out/.casparian/queue.sqlite"),
        folder.path("out"),
    );
    let (mut sentinel, endpoint) = sentinel(Path::new(&queue), &[]);
    let mut worker = worker(&endpoint, Path::new(&out), &["--slots", "1"]);
    let jobs = "SELECT count(*) FROM cf_processing_queue WHERE status IN ('QUEUED', 'RUNNING')";
    until("jobs", || {
        (sql(Path::new(&queue), jobs).trim() == "0").then_some(())
    });
    for program in [&mut worker, &mut sentinel] {
        program.signal("-TERM");
        program.wait();
    }
}

fn fsck(folder: &Folder, more: &[&str]) -> (String, Option<i32>) {
    let (queue, out) = (
        folder.path("out/.casparian/queue.sqlite"),
        folder.path("out"),
    );
    let words = ["fsck", "--database", &queue, "--output", &out];
    let ended = casparian(&[&words[..], more].concat());
    (stdout(&ended) + &stderr(&ended), ended.status.code())
}

/// Sentinel and worker go on where a move was killed: no name of output that was replaced stays.
#[test]
fn workers_go_on_after_a_killed_move() {
    let folder = topics(&[("a.csv", "-\t1\nsales\t1"), ("b.csv", "-\t1")]);
    folder.run(&["--layout", "flat"]);
    let queue = folder.path("out/.casparian/queue.sqlite");
    let mut killed = 0;
    let mut value = 10;
    for at in (24..).step_by(4) {
        let faults = faults(&folder);
        faults.stop_at(at, At::Kill);
        let ended = output(&mut run_with(&folder, &faults, &["--layout", "datasets"]));
        let why = format!("call {at}: {}", faults.stopped_at());
        let is_killed = ended.status.code().is_none();
        killed += usize::from(is_killed);
        value += 1;
        folder.write("in/a.csv", &format!("-\t{value}\nsales\t{value}"));
        let again = "UPDATE cf_processing_queue SET status = 'QUEUED' WHERE id = 1";
        sql(Path::new(&queue), again);
        serve(&folder);
        // The file of the other job may have both names where only the queue says which one counts.
        let found = files(&folder);
        let named = receipts(&folder);
        let missing = named.iter().find(|name| !found.contains(name));
        assert_eq!((named.len(), missing), (3, None), "{why}: {found:?}");
        let own = fs::read_dir(folder.path("out/.casparian")).unwrap();
        let mut own = own.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        if own.any(|name| name.starts_with("deciding.")) {
            let both = ["count/b_2.parquet", "count_output_2.parquet"];
            assert!(
                both.iter().all(|name| found.contains(&(*name).to_owned())),
                "{why}"
            );
            assert_eq!(found.len(), 4, "{why}: {found:?}");
        } else {
            assert_eq!(named, found, "{why}");
        }
        let (summary, code) = folder.run(&["--layout", "datasets"]);
        assert_eq!(code, Some(0), "{why}: {summary}");
        let found = [
            "count/a_1.parquet",
            "count/b_2.parquet",
            "count_sales/a_1.parquet",
        ];
        assert_eq!(files(&folder), found, "{why}");
        let rows = read_folder(Path::new(&folder.path("out/count")));
        assert_eq!(rows, json!(["1", value.to_string()]), "{why}");
        folder.check();
        folder.run(&["--layout", "flat"]);
        if !is_killed {
            break;
        }
    }
    assert!(killed > 5, "{killed}");
}

/// `fsck` says that a move has stopped, and ends it with `--repair`; nothing is left for a run to do.
#[test]
fn fsck_ends_a_killed_move() {
    let folder = topics(&[("a.csv", "-\t1\nsales\t1"), ("b.csv", "-\t2")]);
    folder.run(&["--layout", "flat"]);
    let mut found = 0;
    for at in (20..).step_by(2) {
        let faults = faults(&folder);
        faults.stop_at(at, At::Kill);
        let ended = output(&mut run_with(&folder, &faults, &["--layout", "datasets"]));
        let why = format!("call {at}: {}", faults.stopped_at());
        let is_doubled = files(&folder).len() > 3;
        let (text, code) = fsck(&folder, &[]);
        let is_found = text.contains("moving: ");
        assert!(is_found || !is_doubled, "{why}: {text}");
        assert!(!is_found || code == Some(1), "{why}: {text}");
        found += usize::from(is_found);
        let (text, _) = fsck(&folder, &["--repair"]);
        assert_eq!(text.contains("moving: "), is_found, "{why}: {text}");
        check_receipts(&folder, &format!("{why}: {text}"));
        folder.check();
        let (summary, code) = folder.run(&["--layout", "flat"]);
        assert_eq!((totals(&summary).1, code), (2, Some(0)), "{why}: {summary}");
        if ended.status.code().is_some() {
            break;
        }
    }
    assert!(found > 5, "{found}");
}

/// Where the file system has no hard links, files are renamed, and a killed run loses no record.
#[test]
fn a_killed_move_without_hard_links_is_ended_too() {
    let folder = topics(&[("a.csv", "-\t1"), ("b.csv", "-\t2\nsales\t2")]);
    folder.run(&["--layout", "flat"]);
    let mut killed = 0;
    for at in (15..).step_by(3) {
        let layouts = ["flat", "datasets"];
        let layout = ["--layout", layouts[usize::from(at % 2 == 0)]];
        let faults = faults(&folder);
        faults.fail(EPERM, LINK, 1000);
        faults.stop_at(at, At::Kill);
        let ended = output(&mut run_with(&folder, &faults, &layout));
        let why = format!("call {at}, {layout:?}: {}", faults.stopped_at());
        killed += usize::from(ended.status.code().is_none());
        faults.stop_at(0, At::Kill);
        let next = ["--layout", layouts[usize::from(at / 2 % 2 == 0)], "--json"];
        let again = output(&mut run_with(&folder, &faults, &next));
        let text = stdout(&again) + &stderr(&again);
        let summary: Value = serde_json::from_str(&stdout(&again)).unwrap();
        assert_eq!(again.status.code(), Some(0), "{why}: {text}");
        assert_eq!(totals(&summary).1, 2, "{why}: {text}");
        check_receipts(&folder, &why);
        folder.check();
        if ended.status.code().is_some() {
            break;
        }
        // The records of a new attempt's output are those of a publish.
        folder.run(&[&layout[..], &["--force"]].concat());
    }
    assert!(killed > 5, "{killed}");
}

/// A disk that is full while files are moved is waited for.
#[test]
fn a_full_disk_during_a_move_is_waited_for() {
    for calls in [LINK, RENAME] {
        let folder = topics(&[("a.csv", "-\t1"), ("b.csv", "-\t2\nsales\t2")]);
        folder.run(&["--layout", "flat"]);
        let faults = faults(&folder);
        faults.fail(ENOSPC, calls, 1000);
        let mut run =
            Background::start(run_with(&folder, &faults, &[]).args(["--outage-timeout", "600"]));
        let line = run.line_with("waiting for at most");
        assert!(line.contains("output folder: "), "{line}");
        faults.heal_disk();
        assert_eq!(run.wait(), Some(0), "{calls}");
        let found = [
            "count/a_1.parquet",
            "count/b_2.parquet",
            "count_sales/b_2.parquet",
        ];
        assert_eq!(files(&folder), found, "{calls}");
        check_receipts(&folder, "full");
        folder.check();
    }
}

/// A run that is killed while it removes output of inputs that are gone leaves nothing that later runs
/// do not put right.
#[test]
fn a_killed_prune_is_ended_by_the_next_one() {
    let folder = topics(&[("a.csv", "-\t1\nsales\t1"), ("b.csv", "-\t2")]);
    folder.run(&[]);
    let from = calls_of_a_run(&folder, &[]);
    let mut killed = 0;
    for at in from - 8.. {
        let faults = faults(&folder);
        fs::remove_file(folder.path("in/a.csv")).unwrap();
        faults.stop_at(at, At::Kill);
        let ended = output(&mut run_with(&folder, &faults, &["--prune"]));
        let why = format!("call {at}: {}", faults.stopped_at());
        killed += usize::from(ended.status.code().is_none());
        let (summary, code) = folder.run(&["--prune"]);
        assert_eq!(code, Some(0), "{why}: {summary}");
        assert_eq!(files(&folder), ["count/b_2.parquet"], "{why}");
        check_receipts(&folder, &why);
        folder.check();
        let (summary, _) = folder.run(&["--prune"]);
        assert_eq!(summary["gone"], json!([]), "{why}: {summary}");
        if ended.status.code().is_some() {
            break;
        }
        folder.write("in/a.csv", "-\t1\nsales\t1");
        folder.run(&[]);
        assert_eq!(files(&folder).len(), 3, "{why}");
    }
    assert!(killed > 8, "{killed}");
    // Killed after the removal and before the change of the row.
    let queue = folder.path("out/.casparian/queue.sqlite");
    folder.write("in/a.csv", "-\t1");
    folder.run(&[]);
    let published = "SELECT published FROM cf_processing_queue WHERE id = 1";
    let published = sql(Path::new(&queue), published);
    fs::remove_file(folder.path("in/a.csv")).unwrap();
    folder.run(&["--prune"]);
    let change = format!(
        "UPDATE cf_processing_queue SET published = '{}' WHERE id = 1",
        published.trim()
    );
    sql(Path::new(&queue), &change);
    folder.run(&[]);
    check_receipts(&folder, "before the change of the row");
    folder.check();
}

/// Output that a row does not name any more, as after a removal that was not durable, goes by a repair.
#[test]
fn output_that_was_removed_and_is_there_again_goes_by_a_repair() {
    let folder = topics(&[("a.csv", "-\t1\nsales\t1"), ("b.csv", "-\t2")]);
    folder.run(&[]);
    let queue = folder.path("out/.casparian/queue.sqlite");
    let forget = "UPDATE cf_processing_queue SET published = '[]' WHERE id = 1";
    sql(Path::new(&queue), forget);
    let (text, code) = fsck(&folder, &["--repair"]);
    assert!(text.contains("the output was removed"), "{text}");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(files(&folder), ["count/b_2.parquet"]);
}

/// What is in the place of output and is not that output is nobody's to remove.
#[test]
fn a_file_of_another_hand_is_not_removed_with_output() {
    let folder = topics(&[("a.csv", "-\t1\nsales\t1"), ("b.csv", "-\t2")]);
    folder.run(&[]);
    let mine = folder.path("out/count/a_1.parquet");
    fs::remove_file(&mine).unwrap();
    fs::write(&mine, "mine").unwrap();
    fs::remove_file(folder.path("in/a.csv")).unwrap();
    let run = program("casparian")
        .args(["run", &folder.path("count.py"), &folder.path("in")])
        .args(["-o", &folder.path("out"), "--prune"])
        .output()
        .unwrap();
    let text = stdout(&run) + &stderr(&run);
    assert_eq!(run.status.code(), Some(0), "{text}");
    assert!(
        text.contains("another file at its path is kept: "),
        "{text}"
    );
    assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
    assert_eq!(files(&folder), ["count/a_1.parquet", "count/b_2.parquet"]);
    // It is said once.
    let (summary, _) = folder.run(&["--prune"]);
    assert_eq!(summary["gone"], json!([]), "{summary}");
    folder.check();
}
