//! Limits of open files (RLIMIT_NOFILE): a worker runs as many jobs as they allow, and says so.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::common::*;
use crate::dispatcher::*;

/// The command, run by a shell that sets a limit before.
fn limited(command: &Command, limit: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

const SLOW: &str = "import time\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        time.sleep(0.2)\n        yield pa.table({'x': [1]})\n";

#[test]
fn a_worker_takes_no_more_jobs_than_its_descriptors_allow() {
    for start in ["warm", "spawn"] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "slow", SLOW);
        let inputs: Vec<_> = (0..40)
            .map(|number| {
                let path = dir.path().join(format!("in{number}"));
                std::fs::write(&path, number.to_string()).unwrap();
                path
            })
            .collect();
        sql(
            &database,
            "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) VALUES ('slow', 'rows', 'sqlite://rows.db/rows', 'append'), ('slow', 'files', 'parquet://files.parquet', 'append')",
        );
        let jobs = submit(&database, "slow", &inputs);
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let mut command = program("casparian-worker");
        command
            .args(["--connect", &endpoint, "--slots", "64"])
            .args(["--plugin-start", start, "--output"])
            .arg(dir.path().join("out"));
        let mut worker = Background::start(&mut limited(&command, "-n 120"));
        let line = worker.line_with("ulimit -n");
        assert!(line.contains("64 slots need "), "{line}");
        assert!(line.contains("the limit is 120"), "{line}");
        for id in jobs {
            let job = ended(&database, id);
            let shown = (job["status"].as_str(), job["attempt"].as_i64());
            assert_eq!(shown, (Some("COMPLETED"), Some(1)), "{start}: {job}");
        }
    }
}

#[test]
fn a_worker_without_descriptors_for_one_slot_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = program("casparian-worker");
    command
        .args(["--connect", "tcp://127.0.0.1:1", "--output"])
        .arg(dir.path().join("out"));
    let mut worker = Background::start(&mut limited(&command, "-n 24"));
    assert_eq!(worker.wait(), Some(1), "{:#?}", worker.seen);
    let text = worker.seen.join("\n");
    assert!(text.contains("the limit is 24"), "{text}");
    assert!(text.contains("ulimit -n"), "{text}");
}

#[test]
fn a_plugin_process_has_the_limit_that_the_worker_was_started_with() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::with(&["--slots", "2", "--plugin-start", start], |command, _| {
            *command = limited(command, "-S -n 300");
        });
        let job = rig.run(
            "import resource\nraise ValueError(resource.getrlimit(resource.RLIMIT_NOFILE)[0])",
        );
        assert_eq!(first_line(&job), "ValueError: 300", "{start}");
    }
}

/// Holds more descriptors of the user between sockets than a program may that has a lower limit of
/// open files (unix(7), ETOOMANYREFS).
const HOARDER: &str = "
import socket, time
here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
for _ in range(8):
    socket.send_fds(here, [b'x'], [0] * 250)
print('ready', flush=True)
time.sleep(1000)
";

#[test]
fn descriptors_of_the_user_that_are_on_their_way_cost_no_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "slow", SLOW);
    let input = dir.path().join("in");
    std::fs::write(&input, "").unwrap();
    let mut python = Command::new(python());
    let mut hoarder = Background::start(python.args(["-c", HOARDER]));
    hoarder.line_with("ready");
    let jobs = submit(&database, "slow", &[input]);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let mut command = program("casparian-worker");
    command
        .args(["--connect", &endpoint, "--slots", "1", "--output"])
        .arg(dir.path().join("out"));
    let _worker = Background::start(&mut limited(&command, "-Sn 256"));
    let job = ended(&database, jobs[0]);
    let shown = (job["status"].as_str(), job["attempt"].as_i64());
    assert_eq!(shown, (Some("COMPLETED"), Some(1)), "{job}");
}

/// Runs until the file beside its input exists.
const HOLD: &str = "import os, time\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        open(path + '.begun', 'w').close()\n        while not os.path.exists(path + '.free'):\n            time.sleep(0.01)\n        yield pa.table({'x': [1]})\n";

#[test]
fn a_job_that_cannot_start_beside_others_is_given_back() {
    for start in ["warm", "spawn"] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "hold", HOLD);
        let inputs = ["first", "second"].map(|name| {
            let path = dir.path().join(name);
            std::fs::write(&path, name).unwrap();
            path
        });
        let beside =
            |input: &Path, what: &str| PathBuf::from(format!("{}.{what}", input.display()));
        let [first, second] = &inputs;
        std::fs::write(beside(second, "free"), "").unwrap();
        let first_job = submit(&database, "hold", std::slice::from_ref(first))[0];
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let more = ["--slots", "2", "--plugin-start", start];
        let mut worker = worker(&endpoint, &dir.path().join("out"), &more);
        until("the first job runs", || {
            beside(first, "begun").exists().then_some(())
        });
        let descriptors = format!("/proc/{}/fd", worker.pid());
        let open = std::fs::read_dir(descriptors).unwrap().count();
        set_limit(worker.pid(), open);
        let second_job = submit(&database, "hold", std::slice::from_ref(second))[0];
        worker.line_with("this worker is in trouble");
        set_limit(worker.pid(), 1024);
        let job = ended(&database, second_job);
        let shown = (job["status"].as_str(), &job["infrastructure_retries"]);
        assert_eq!(shown, (Some("COMPLETED"), &json!(0)), "{start}: {job}");
        std::fs::write(beside(first, "free"), "").unwrap();
        let job = ended(&database, first_job);
        let shown = (job["status"].as_str(), job["attempt"].as_i64());
        assert_eq!(shown, (Some("COMPLETED"), Some(1)), "{start}: {job}");
    }
}

/// Sets how many files a running process may have open.
fn set_limit(pid: u32, open: usize) {
    let limit = format!("--nofile={open}:");
    output(Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]));
}
