//! `casparian run` over inputs that are replaced meanwhile: it reports what is in its queue, and what readers
//! of the output see.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::common::*;
use crate::faults::{At, Faults};
use crate::run::{Folder, run_json};

/// What may be at the path of an input that was a file. `unreadable` is a regular file whose content nobody,
/// not even root, can read.
const KINDS: [&str; 8] = [
    "deleted",
    "device",
    "fifo",
    "folder",
    "link",
    "other",
    "socket",
    "unreadable",
];

/// Replaces inputs at the moment that its first line names.
const REPLACES: &str = "
import os, socket
import pyarrow as pa
from casparian_flow.sdk import PluginMetadata
MANIFEST = PluginMetadata(pattern='*', topic='output', sinks=SINKS)

def replace(path, kind):
    os.remove(path)
    if kind == 'device': os.symlink('/dev/null', path)
    if kind == 'fifo': os.mkfifo(path)
    if kind == 'folder': os.mkdir(path)
    if kind == 'link': os.symlink(os.path.dirname(path), path)
    if kind == 'other': open(path, 'w').write('new\\nnew\\n')
    if kind == 'socket': socket.socket(socket.AF_UNIX).bind(path)
    if kind == 'unreadable': os.symlink('/proc/self/mem', path)

class Handler:
    def execute(self, path):
        folder, name = os.path.split(path)
        lines = open(path).read().splitlines()
        if name == {'before': 'a', 'after': 'z'}.get(MOMENT):
            for kind in KINDS:
                replace(os.path.join(folder, kind), kind)
        if name in KINDS and MOMENT in ('while', 'fails'):
            if lines == ['old']:
                replace(path, name)
            if MOMENT == 'fails':
                raise ValueError('told to fail')
        yield pa.table({'line': lines})
";

/// Rows of the output by job, as readers see them.
fn rows_by_job(out: &Path) -> BTreeMap<u64, u64> {
    let script = "
import collections, glob, json, os, sqlite3, sys
import pyarrow.parquet as pq
jobs = [job for f in glob.glob(sys.argv[1] + '/count/*.parquet') for job in pq.read_table(f)['_job_id'].to_pylist()]
table = sys.argv[1] + '/x.db'
if os.path.exists(table):
    jobs += [job for job, in sqlite3.connect(table).execute('SELECT _job_id FROM rows')]
print(json.dumps(collections.Counter(jobs)))";
    let found = output(Command::new(python()).args(["-c", script]).arg(out));
    assert!(found.status.success(), "{}", stderr(&found));
    serde_json::from_str(&stdout(&found)).unwrap()
}

/// Summary and exit code are those of the rows in the queue and of the visible output.
fn check_agreement(folder: &Folder, summary: &Value, code: Option<i32>, case: &str) {
    let queue = folder.path("out/.casparian/queue.sqlite");
    let mut rows = BTreeMap::new();
    let mut failed = 0;
    for file in summary["files"].as_array().unwrap() {
        let id = file["job"].as_i64().unwrap();
        let row = job(Path::new(&queue), id);
        let status = match file["status"].as_str().unwrap() {
            "DONE" => "COMPLETED",
            other => other,
        };
        assert_eq!(row["status"], status, "{case}: {file} {row}");
        if status == "FAILED" {
            failed += 1;
            assert_eq!(row["error"], file["error"], "{case}: {file} {row}");
        } else {
            rows.insert(id.unsigned_abs(), file["rows"].as_u64().unwrap());
        }
    }
    let totals = &summary["totals"];
    assert_eq!(totals["failed"], failed, "{case}: {summary}");
    assert_eq!(
        totals["rows"],
        rows.values().sum::<u64>(),
        "{case}: {summary}"
    );
    assert_eq!(code, Some(i32::from(failed > 0)), "{case}: {summary}");
    let found = rows_by_job(Path::new(&folder.path("out")));
    assert_eq!(found, rows, "{case}: {summary}");
    folder.check();
}

/// Names of the files with this status.
fn names<'a>(summary: &'a Value, status: &str) -> Vec<&'a str> {
    let files = summary["files"].as_array().unwrap().iter();
    let name = |file: &'a Value| file["file"].as_str().unwrap().rsplit('/').next().unwrap();
    let of_status = files.filter(|file| file["status"] == status);
    of_status.map(name).collect()
}

#[test]
fn a_run_over_inputs_that_are_replaced_reports_the_ends_of_its_jobs() {
    // Kinds that fail, and the beginning of the reason for those that are no files.
    let all_but = |kind: &str| KINDS.into_iter().filter(|it| *it != kind).collect();
    let cases: [(&str, Vec<&str>, &str); 4] = [
        // The plugin never gets them.
        ("before", all_but("other"), "input: "),
        // The plugin has read the old file. A regular file is run over instead.
        ("while", vec!["unreadable"], ""),
        ("fails", KINDS.to_vec(), "ValueError: told to fail"),
        ("after", Vec::new(), ""),
    ];
    for (moment, fail, reason) in cases {
        for sinks in ["{}", "{'output': 'sqlite://x.db/rows'}"] {
            let case = format!("{moment} {sinks}");
            let files = KINDS.map(|kind| (kind, "old\n"));
            let folder = Folder::new(&files);
            folder.write("in/a", "a\n");
            folder.write("in/z", "z\n");
            let source = REPLACES.replace("SINKS", sinks);
            let source = format!("MOMENT, KINDS = {moment:?}, {KINDS:?}\n{source}");
            folder.write("count.py", &source);
            let more = ["--slots", "1", "--sandbox", "off"];
            let (summary, code) = folder.run(&more);
            assert_eq!(names(&summary, "FAILED"), fail, "{case}: {summary}");
            assert_eq!(summary["totals"]["done"], 10 - fail.len(), "{case}");
            for file in summary["files"].as_array().unwrap() {
                let is_file = ["other", "unreadable"];
                let is_file = is_file
                    .iter()
                    .any(|kind| file["file"].as_str().unwrap().ends_with(kind));
                if let Some(error) = file["error"].as_str().filter(|_| !is_file) {
                    // A plugin may fail at a folder before the worker has seen what it is.
                    let is_first = moment == "before" && error.starts_with("IsADirectoryError");
                    assert!(error.starts_with(reason) || is_first, "{case}: {file}");
                }
                if !is_file && file["status"] == "DONE" {
                    assert_eq!(file["rows"], 1, "{case}: {file}");
                    assert!(file["stale"].is_null(), "{case}: {file}");
                }
            }
            check_agreement(&folder, &summary, code, &case);
        }
    }
}

/// Puts something else at the path of a file.
fn replace(path: &str, kind: &str) {
    let path = Path::new(path);
    fs::remove_file(path).unwrap();
    match kind {
        "deleted" => {}
        "device" => symlink("/dev/null", path).unwrap(),
        "fifo" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "folder" => fs::create_dir(path).unwrap(),
        "link" => symlink(path.parent().unwrap(), path).unwrap(),
        "socket" => drop(UnixListener::bind(path).unwrap()),
        "unreadable" => symlink("/proc/self/mem", path).unwrap(),
        other => fs::write(path, other).unwrap(),
    }
}

/// Waits until the program stops before it publishes the file of `in/a`. False if it ends instead.
fn stops_at_publish(run: &mut Background, faults: &Faults) -> bool {
    loop {
        let state = format!("/proc/{}/stat", run.pid());
        let is_stopped = until("the run stops or ends", || {
            let is_stopped = fs::read_to_string(&state).is_ok_and(|text| text.contains(") T "));
            (is_stopped || run.has_exited()).then_some(is_stopped)
        });
        if !is_stopped {
            return false;
        }
        let call = faults.stopped_at();
        faults.stop_at(faults.calls() + 1, At::Stop);
        if call.ends_with("/count/a_1.parquet") {
            return true;
        }
        run.signal("-CONT");
    }
}

/// The input was read, and compared with what it was at the start, when something else comes to its path.
#[test]
fn output_of_an_input_that_is_replaced_while_it_is_published_counts_as_done() {
    for (kind, times, rows, is_stale) in [
        ("deleted", 1, 1, false),
        ("device", 1, 1, false),
        ("fifo", 1, 1, false),
        ("folder", 1, 1, false),
        ("link", 1, 1, false),
        ("socket", 1, 1, false),
        // It is run over again.
        ("new\nnew\n", 1, 2, false),
        ("new\nnew\nnew\n", 2, 3, false),
        // What is in it is not known, but it is not the file that was read.
        ("unreadable", 1, 1, true),
        // Once more than it is run over.
        ("new\n", 99, 4, true),
    ] {
        let folder = Folder::new(&[("a", "old\n")]);
        let out = folder.path("out");
        let faults = Faults::new(&folder.dir.path().join("faults"), Path::new(&out));
        faults.stop_at(1, At::Stop);
        let mut command = program("casparian");
        command.args([
            "run",
            &folder.path("count.py"),
            &folder.path("in"),
            "-o",
            &out,
        ]);
        command.args(["--json", "--sandbox", "off"]);
        faults.load(&mut command);
        let mut run = Background::start(&mut command);
        let mut publishes = 0;
        while stops_at_publish(&mut run, &faults) {
            publishes += 1;
            if publishes <= times {
                let lines = publishes + 1;
                let text = kind.repeat(if times == 99 { lines } else { 1 });
                replace(&folder.path("in/a"), &text);
            }
            run.signal("-CONT");
        }
        let code = run.wait();
        let line = run.seen.iter().find(|line| line.starts_with('{'));
        let line = line.unwrap_or_else(|| panic!("{kind:?}: {:#?}", run.seen));
        let summary: Value = serde_json::from_str(line).unwrap();
        let file = &summary["files"][0];
        assert_eq!(file["status"], "DONE", "{kind:?}: {summary}");
        assert_eq!(file["rows"], rows, "{kind:?}: {summary}");
        let stale = is_stale.then_some(&json!(true));
        assert_eq!(file.get("stale"), stale, "{kind:?}: {summary}");
        assert_eq!(
            summary["totals"]["stale"],
            u32::from(is_stale),
            "{kind:?}: {summary}"
        );
        check_agreement(&folder, &summary, code, kind);
        if times == 99 {
            // The next run is over what is there now.
            let inputs = [folder.path("in")];
            let inputs = inputs.each_ref().map(String::as_str);
            let (summary, code) = run_json(&folder.path("count.py"), &inputs, Path::new(&out), &[]);
            assert_eq!(summary["files"][0]["rows"], 5, "{summary}");
            check_agreement(&folder, &summary, code, kind);
        }
    }
}
