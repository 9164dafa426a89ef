//! `init`, `deploy`, `submit`, `jobs`, `job`, with a sentinel and workers.

use std::process::Command;

use casparian::socket::{Dealer, Options};

use crate::common::*;

const ONE_ROW: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        print('reading', path)\n        yield pa.table({'x': [1]})\n";

#[test]
fn a_submitted_job_runs_and_shows_its_receipt() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    // Before anybody can run it, the reason is visible.
    let ids = submit(&database, "one", std::slice::from_ref(&input));
    let waiting = job(&database, ids[0]);
    assert_eq!(waiting["status"], "QUEUED");
    assert!(
        waiting["waiting_for"]
            .as_str()
            .unwrap()
            .contains("no worker"),
        "{waiting}"
    );
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let mut incapable = worker(&endpoint, &out, &["--plugins", "other"]);
    incapable.line_with("connected");
    until("the incapable worker is known", || {
        let job = job(&database, ids[0]);
        assert_eq!(job["status"], "QUEUED");
        job["waiting_for"]
            .as_str()
            .filter(|text| text.contains("none of the 1"))
            .map(drop)
    });
    let mut able = worker(&endpoint, &out, &["--slots", "1"]);
    let done = ended(&database, ids[0]);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert_eq!(done["receipt"]["metrics"]["rows"], 1);
    assert!(done["log"].as_str().unwrap().contains("reading"), "{done}");
    let uri = done["receipt"]["artifacts"][0]["uri"].as_str().unwrap();
    assert!(std::path::Path::new(uri.strip_prefix("file://").unwrap()).exists());
    assert!(
        uri.ends_with(&format!("one_output_{}.parquet", ids[0])),
        "{uri}"
    );
    // A row that another program inserts with plain SQL is noticed.
    let script = format!(
        "import sqlite3; c = sqlite3.connect({:?}); c.execute(\"INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, priority, retry_count) VALUES (1, 'one', 'QUEUED', 5, 0)\"); c.commit()",
        database
    );
    assert!(
        output(std::process::Command::new(python()).args(["-c", &script]))
            .status
            .success()
    );
    assert_eq!(ended(&database, ids[0] + 1)["status"], "COMPLETED");
    // A new version of the plugin runs without a restart.
    let plugin = dir.path().join("one.py");
    std::fs::write(&plugin, ONE_ROW.replace("[1]", "[1, 2]")).unwrap();
    let database_text = database.to_str().unwrap();
    casparian_ok(&["deploy", plugin.to_str().unwrap(), "-d", database_text]);
    let ids = submit(&database, "one", &[input]);
    assert_eq!(ended(&database, ids[0])["receipt"]["metrics"]["rows"], 2);
    let table = casparian_ok(&["jobs", "-d", database_text]);
    assert!(
        table.starts_with("ID  STATUS") && table.contains("COMPLETED"),
        "{table}"
    );
    let shown = casparian_ok(&["job", &ids[0].to_string(), "-d", database_text]);
    assert!(shown.contains("status               COMPLETED"), "{shown}");
    for program in [&mut able, &mut incapable, &mut sentinel] {
        program.signal("-TERM");
        assert_eq!(program.wait(), Some(0), "{:#?}", program.seen);
    }
}

#[test]
fn jobs_of_a_plugin_that_is_not_deployed_wait_and_submit_refuses_it() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let refused = casparian(&[
        "submit",
        "--plugin",
        "nope",
        input.to_str().unwrap(),
        "-d",
        database.to_str().unwrap(),
    ]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("not deployed"),
        "{}",
        stderr(&refused)
    );
    let missing = casparian(&["job", "99", "-d", database.to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("no job 99"));
}

#[test]
fn sinks_of_a_topic_and_overrides_decide_where_output_goes() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let ids = submit(&database, "one", &[input.clone(), input]);
    let table = dir.path().join("rows.db");
    let script = format!(
        "import sqlite3, json; c = sqlite3.connect({database:?}); c.execute(\"INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) VALUES ('one', 'output', 'parquet://set/?compression=zstd', 'append')\"); c.execute('UPDATE cf_processing_queue SET config_overrides = ? WHERE id = ?', (json.dumps({{'output': [{{'uri': 'sqlite://{}/rows'}}, {{'uri': 'parquet://extra.parquet', 'mode': 'replace'}}]}}), {})); c.commit()",
        table.display(),
        ids[0],
    );
    let inserted = output(std::process::Command::new(python()).args(["-c", &script]));
    assert!(inserted.status.success(), "{}", stderr(&inserted));
    let second = submit(&database, "one", &[dir.path().join("in.csv")]);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let _worker = worker(&endpoint, &out, &[]);
    assert_eq!(ended(&database, ids[0])["status"], "COMPLETED");
    assert_eq!(ended(&database, second[0])["status"], "COMPLETED");
    assert!(out.join(format!("extra_{}.parquet", ids[0])).exists());
    assert!(out.join(format!("set/data_{}.parquet", second[0])).exists());
    let count = format!(
        "import sqlite3; print(sqlite3.connect({table:?}).execute('select x, _job_id from rows').fetchall())"
    );
    let rows = stdout(&output(
        std::process::Command::new(python()).args(["-c", &count]),
    ));
    assert_eq!(rows.trim(), format!("[(1, {})]", ids[0]));
}

/// A free worker that may not run the waiting plugin must not make the sentinel forget that
/// jobs wait for the busy one that may.
#[test]
fn an_idle_worker_that_cannot_help_does_not_stall_the_one_that_can() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let mut idle = worker(&endpoint, &out, &["--plugins", "other", "--slots", "4"]);
    let mut able = worker(&endpoint, &out, &["--plugins", "one", "--slots", "1"]);
    idle.line_with("connected");
    able.line_with("connected");
    let ids: Vec<i64> = (0..5)
        .flat_map(|_| submit(&database, "one", std::slice::from_ref(&input)))
        .collect();
    for id in ids {
        assert_eq!(ended(&database, id)["status"], "COMPLETED");
    }
}

/// A descriptor a worker, under the soft limit of most shells.
#[test]
fn a_sentinel_may_open_as_many_files_as_the_system_allows() {
    let dir = tempfile::tempdir().unwrap();
    let mut sentinel = Background::start(
        Command::new("sh")
            .args(["-c", "ulimit -Sn 256; exec \"$0\" \"$@\""])
            .arg(program("casparian-sentinel").get_program())
            .args(["--bind", "tcp://127.0.0.1:0", "--database"])
            .arg(dir.path().join("queue.sqlite")),
    );
    sentinel.line_with("listens on ");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", sentinel.pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line:?}");
}

/// Who sends what is no message of the protocol is closed, and does not fill the log.
#[test]
fn messages_that_are_none_close_their_connection_alone() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    let mut good = worker(&endpoint, &dir.path().join("out"), &[]);
    good.line_with("connected");
    let header = |version: u8, opcode: u8, size: u8| {
        let mut header = [0; 16];
        (header[0], header[1], header[15]) = (version, opcode, size);
        header
    };
    let messages: [&[&[u8]]; 6] = [
        &[b"garbage"],
        &[b"", b""],
        &[&header(3, 4, 0), b""],
        &[&header(4, 99, 0), b""],
        &[&header(4, 4, 3), b"{}"],
        &[&header(4, 2, 2), b"{}"],
    ];
    for round in 0..200 {
        let mut bad = Dealer::new(Options::new().routing_id("bad").no_reconnect()).unwrap();
        bad.connect(&endpoint).unwrap();
        for _ in 0..10 {
            bad.send(messages[round % messages.len()]).unwrap();
        }
        until("it is closed", || {
            bad.flush().unwrap();
            (bad.counters().disconnected == 1).then_some(())
        });
    }
    let id = submit(&database, "one", std::slice::from_ref(&input))[0];
    assert_eq!(ended(&database, id)["status"], "COMPLETED");
    sentinel.signal("-TERM");
    sentinel.wait();
    let refused = |line: &&String| line.contains("message refused");
    let lines = sentinel.seen.iter().filter(refused).count();
    assert!((1..150).contains(&lines), "{lines} lines");
    assert!(
        !good.seen.iter().any(|line| line.contains("lost")),
        "{:?}",
        good.seen
    );
}
