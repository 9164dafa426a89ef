//! Programs of the old system on the other end.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::common::*;

const ONE_ROW: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1, 2, 3]})\n";

fn inputs(dir: &Path, count: usize) -> Vec<std::path::PathBuf> {
    (0..count)
        .map(|number| {
            let path = dir.join(format!("in{number}"));
            std::fs::write(&path, format!("{number}\n")).unwrap();
            path
        })
        .collect()
}

#[test]
fn an_old_worker_does_the_jobs_of_our_sentinel() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let ids = submit(&database, "one", &inputs(dir.path(), 3));
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let mut worker =
        Background::start(peer("old_worker.py").args(["--connect", &endpoint, "--jobs", "3"]));
    for id in &ids {
        let dispatch = worker.event("dispatch");
        assert_eq!(dispatch["job_id"], *id);
        assert_eq!(dispatch["waiting"], 0, "one job at a time");
        let payload = &dispatch["payload"];
        assert_eq!(payload["plugin_name"], "one");
        assert_eq!(payload["source_code"], ONE_ROW);
        assert_eq!(payload["sinks"][0]["uri"], "parquet://one_output.parquet");
    }
    assert_eq!(worker.wait(), Some(0), "{:#?}", worker.seen);
    for id in ids {
        let done = ended(&database, id);
        assert_eq!(done["status"], "COMPLETED");
        assert_eq!(done["receipt"]["metrics"]["rows"], 3);
    }
}

#[test]
fn an_old_workers_failures_end_the_job_and_its_death_requeues_it() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = inputs(dir.path(), 1);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    for result in ["failed", "err"] {
        let id = submit(&database, "one", &input)[0];
        let mut worker = Background::start(peer("old_worker.py").args([
            "--connect",
            &endpoint,
            "--result",
            result,
        ]));
        let done = ended(&database, id);
        assert_eq!(done["status"], "FAILED");
        assert!(done["error"].as_str().unwrap().contains("boom"), "{done}");
        assert_eq!(worker.wait(), Some(0));
    }
    let id = submit(&database, "one", &input)[0];
    let mut dying = Background::start(peer("old_worker.py").args([
        "--connect",
        &endpoint,
        "--die-on-job",
        "1",
    ]));
    dying.event("died");
    let mut other = Background::start(peer("old_worker.py").args(["--connect", &endpoint]));
    let done = ended(&database, id);
    assert_eq!(done["status"], "COMPLETED");
    assert_eq!(done["attempt"], 2);
    assert_eq!(other.wait(), Some(0));
}

#[test]
fn our_worker_serves_an_old_sentinel() {
    let dir = tempfile::tempdir().unwrap();
    let input = inputs(dir.path(), 1).remove(0);
    let sleeping =
        "import time\nclass Handler:\n    def execute(self, path):\n        time.sleep(1000)\n";
    let dispatch = |id: u64, source: &str| {
        serde_json::json!({"job_id": id, "payload": {
            "plugin_name": "p", "file_path": input, "file_version_id": 42, "env_hash": "",
            "source_code": source, "artifact_hash": null,
            "sinks": [{"topic": "output", "uri": "parquet://o.parquet", "mode": "append", "schema_def": null}],
        }})
    };
    let run = |jobs: Value, more: &[&str]| -> Vec<Value> {
        let file = dir.path().join("jobs.json");
        std::fs::write(&file, jobs.to_string()).unwrap();
        let mut old = Background::start(peer("old_sentinel.py").arg(&file).args(more));
        let endpoint = old.event("bound")["endpoint"].as_str().unwrap().to_owned();
        let _worker = worker(
            &endpoint,
            &dir.path().join("out"),
            &["--worker-id", "w-test"],
        );
        assert_eq!(old.wait(), Some(0), "{:#?}", old.seen);
        old.seen
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    };
    let failing =
        "class Handler:\n    def execute(self, path):\n        raise ValueError('bad row 17')\n";
    let events = run(
        serde_json::json!([dispatch(5, ONE_ROW), dispatch(6, failing)]),
        &["--burst"],
    );
    let identify = events
        .iter()
        .find(|event| event["opcode"] == "IDENTIFY")
        .unwrap();
    assert_eq!(identify["payload"]["worker_id"], "w-test");
    assert_eq!(
        identify["payload"]["capabilities"],
        serde_json::json!(["*"])
    );
    let concluded = |events: &[Value], id: u64| -> Value {
        let found = events
            .iter()
            .find(|event| event["opcode"] == "CONCLUDE" && event["job_id"] == id);
        found.unwrap_or_else(|| panic!("{events:#?}"))["payload"].clone()
    };
    let good = concluded(&events, 5);
    assert_eq!(good["status"], "SUCCESS");
    assert_eq!(good["metrics"]["rows"], 3);
    assert!(dir.path().join("out/o_5.parquet").exists());
    let bad = concluded(&events, 6);
    assert_eq!(bad["status"], "FAILED");
    assert!(
        bad["error_message"]
            .as_str()
            .unwrap()
            .contains("bad row 17"),
        "{bad}"
    );
    let events = run(
        serde_json::json!([dispatch(7, sleeping)]),
        &["--abort-after-ms", "200"],
    );
    let aborted = concluded(&events, 7);
    assert_eq!(aborted["status"], "FAILED");
    assert!(
        aborted["error_message"]
            .as_str()
            .unwrap()
            .contains("aborted"),
        "{aborted}"
    );
}

#[test]
fn the_old_shim_works_under_our_worker() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let failing = dir.path().join("failing.py");
    std::fs::write(&failing, "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'id': [1]})\n        raise ValueError('bad row 17')\n").unwrap();
    casparian_ok(&[
        "deploy",
        failing.to_str().unwrap(),
        "-d",
        database.to_str().unwrap(),
    ]);
    let input = inputs(dir.path(), 1);
    let good = submit(&database, "one", &input)[0];
    let bad = submit(&database, "failing", &input)[0];
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let shim = root().join("tests/data/old_shim.py");
    let _worker = worker(
        &endpoint,
        &out,
        &["--plugin-start", "spawn", "--shim", shim.to_str().unwrap()],
    );
    let done = ended(&database, good);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert_eq!(done["receipt"]["metrics"]["rows"], 3);
    let failed = ended(&database, bad);
    assert!(
        failed["error"].as_str().unwrap().contains("bad row 17"),
        "{failed}"
    );
    assert_eq!(visible_files(&out).len(), 1);
}

/// The plugins of the captures, run by our shim under the old worker's side of the bridge.
#[test]
fn our_shim_works_under_the_old_worker() {
    let index: Value = serde_json::from_str(
        &std::fs::read_to_string(root().join("tests/data/bridge/index.json")).unwrap(),
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let input = inputs(dir.path(), 1).remove(0);
    let shim = dir.path().join("shim.py");
    std::fs::write(&shim, casparian::plugin::SHIM).unwrap();
    for capture in index["captures"].as_array().unwrap() {
        let name = capture["name"].as_str().unwrap();
        let plugin = dir.path().join(format!("{name}.py"));
        std::fs::write(&plugin, capture["plugin"].as_str().unwrap()).unwrap();
        let mut command = peer("old_worker_bridge.py");
        command
            .arg("--shim")
            .arg(&shim)
            .arg("--plugin")
            .arg(&plugin)
            .arg("--file")
            .arg(&input);
        let output = output(&mut command);
        let seen: Value = serde_json::from_str(stdout(&output).trim())
            .unwrap_or_else(|error| panic!("{name}: {error}: {}", stderr(&output)));
        assert_eq!(seen["exit_code"], capture["exit_code"], "{name}: {seen}");
        assert_eq!(seen["ended"], true, "{name}: {seen}");
        let want: Value = serde_json::from_str(capture["stdout"].as_str().unwrap()).unwrap();
        // Ours has more fields; the old ones are as they were.
        for (key, value) in want.as_object().unwrap() {
            assert_eq!(&seen["summary"][key], value, "{name}: {key}");
        }
        if want["status"] == "SUCCESS" {
            assert_eq!(seen["rows"], want["rows_published"], "{name}: {seen}");
            assert_eq!(seen["error"], Value::Null, "{name}");
        } else {
            assert!(
                seen["error"].as_str().unwrap().contains("bad row 17"),
                "{name}: {seen}"
            );
        }
    }
}

#[test]
fn our_encodings_decode_with_a_python_reader() {
    use casparian::job::{Attempt, JobStatus, Receipt};
    use casparian::protocol::{
        Dispatch, EnvReady, ErrorMessage, Heartbeat, HeartbeatStatus, Identify, Payload,
        PrepareEnv, SinkConfig,
    };
    let sink = SinkConfig {
        topic: "output".into(),
        uri: "parquet://ü.parquet".into(),
        mode: "append".into(),
        schema_def: None,
        default: false,
    };
    let hold = Attempt::new(9, 2);
    let payloads: Vec<(u64, Payload<'_>)> = vec![
        (
            0,
            Payload::Identify(Identify {
                capabilities: vec!["*".into()],
                worker_id: Some("w-1".into()),
                slots: Some(4),
                running: Some(vec![hold]),
                ..Identify::default()
            }),
        ),
        (
            u64::MAX,
            Payload::Dispatch(Box::new(Dispatch {
                plugin_name: "p".into(),
                file_path: "/ü \"q\"".into(),
                sinks: vec![sink],
                attempt: Some(1),
                ..Dispatch::default()
            })),
        ),
        (7, Payload::Abort),
        (
            9,
            Payload::Heartbeat(Heartbeat {
                status: HeartbeatStatus::Busy,
                current_job_id: Some(9),
                running: Some(vec![hold]),
                ..Heartbeat::default()
            }),
        ),
        (
            9,
            Payload::Conclude(Receipt {
                status: JobStatus::Failed,
                metrics: [("min".to_owned(), i64::MIN)].into(),
                error_message: Some("a\nb".into()),
                attempt: Some(1),
                ..Receipt::default()
            }),
        ),
        (
            1,
            Payload::Err(ErrorMessage {
                message: "bad".into(),
                traceback: None,
                refused: false,
                env_hash: None,
            }),
        ),
        (0, Payload::Reload),
        (
            0,
            Payload::PrepareEnv(PrepareEnv {
                env_hash: "c".repeat(64).into(),
                lockfile_content: "x\n".into(),
                python_version: None,
            }),
        ),
        (
            0,
            Payload::EnvReady(EnvReady {
                env_hash: "c".into(),
                interpreter_path: "/p".into(),
                cached: true,
            }),
        ),
    ];
    let mut decoder = Background::start(&mut peer("decode_protocol.py"));
    for (job_id, payload) in &payloads {
        let (header, json) = payload.encode(*job_id).unwrap();
        decoder.write(&format!("{},{}", hex(&header), hex(&json)));
    }
    assert_eq!(decoder.wait(), Some(0), "{:#?}", decoder.seen);
    assert_eq!(decoder.seen.len(), payloads.len());
    for (line, (job_id, payload)) in decoder.seen.iter().zip(&payloads) {
        let value: Value = serde_json::from_str(line).unwrap();
        assert_eq!(value["job_id"], *job_id, "{line}");
        let (_, json) = payload.encode(*job_id).unwrap();
        if !json.is_empty() {
            assert_eq!(
                value["payload"],
                serde_json::from_slice::<Value>(&json).unwrap()
            );
        }
    }
}

/// The database of the reference, with its own jobs, worked off in place.
#[test]
fn a_legacy_database_is_served_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("legacy.sqlite");
    std::fs::copy(root().join("tests/data/db/legacy_v5.sqlite"), &database).unwrap();
    let refused = casparian(&["jobs", "-d", database.to_str().unwrap()]);
    assert!(
        stderr(&refused).contains("casparian init"),
        "{}",
        stderr(&refused)
    );
    let data = dir.path().join("data");
    std::fs::create_dir_all(data.join("2025")).unwrap();
    for number in 1..=4 {
        std::fs::write(data.join(format!("2025/f{number}.csv")), "a,b\n1,2\n").unwrap();
    }
    let script = format!(
        "import sqlite3; c = sqlite3.connect({database:?}); c.execute('UPDATE cf_source_root SET path = ?', ({:?},)); c.commit()",
        data.to_str().unwrap()
    );
    assert!(
        output(std::process::Command::new(python()).args(["-c", &script]))
            .status
            .success()
    );
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let _worker = worker(&endpoint, &out, &[]);
    // Two were QUEUED, one was RUNNING without a lease.
    for id in [1, 2, 3] {
        let done = ended(&database, id);
        assert_eq!(done["status"], "COMPLETED", "{done}");
    }
    assert!(out.join("sales_1.parquet").exists());
    assert!(out.join("other_2.parquet").exists(), "the override's sink");
    assert_eq!(job(&database, 4)["status"], "FAILED");
    assert_eq!(job(&database, 6)["status"], "PENDING");
}

/// What a job's rows say of its output, and the files that are there.
fn named_and_visible(database: &Path, id: i64, out: &Path) -> (String, Vec<String>) {
    let named = sql(
        database,
        &format!("SELECT published FROM cf_processing_queue WHERE id = {id}"),
    );
    let files = visible_files(out);
    let files = files.iter().map(|file| file.display().to_string());
    (named, files.collect())
}

#[test]
fn a_job_is_done_again_after_an_upgrade_of_the_sentinel() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = inputs(dir.path(), 1);
    let id = submit(&database, "one", &input)[0];
    let jobs = dir.path().join("jobs.json");
    let dispatch = serde_json::json!([{"job_id": id, "payload": {
        "plugin_name": "one", "file_path": input[0], "file_version_id": 42, "env_hash": "",
        "source_code": ONE_ROW, "artifact_hash": null,
        "sinks": [{"topic": "output", "uri": "parquet://one_output.parquet", "mode": "append", "schema_def": null}],
    }}]);
    std::fs::write(&jobs, dispatch.to_string()).unwrap();
    let mut old = Background::start(peer("old_sentinel.py").arg(&jobs));
    let endpoint = old.event("bound")["endpoint"].as_str().unwrap().to_owned();
    let mut first = worker(&endpoint, &out, &[]);
    assert_eq!(old.wait(), Some(0), "{:#?}", old.seen);
    first.kill();
    // As the old sentinel left it when it did not read the receipt.
    let running = "UPDATE cf_processing_queue SET status = 'RUNNING', \
                   claim_time = datetime('now'), worker_host = 'h', worker_pid = 1";
    sql(&database, running);
    let (_sentinel, endpoint) = sentinel(&database, &["--lease", "2"]);
    let _worker = worker(&endpoint, &out, &[]);
    let done = ended(&database, id);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert_eq!(done["attempt"], 1);
    let (named, files) = named_and_visible(&database, id, &out);
    assert_eq!(named, format!("[\"file://{}\"]", files[0]));
    assert_eq!(files.len(), 1);
}

#[test]
fn what_a_dead_old_worker_has_published_is_replaced() {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let database = database_with(dir.path(), "one", ONE_ROW);
    let id = submit(&database, "one", &inputs(dir.path(), 1))[0];
    let (_sentinel, endpoint) = sentinel(&database, &["--lease", "2"]);
    let old = [
        "--connect",
        &endpoint,
        "--die-on-job",
        "1",
        "--delay-ms",
        "60000",
    ];
    let mut old = Background::start(peer("old_worker.py").args(old));
    let version = old.event("dispatch")["payload"]["file_version_id"]
        .as_i64()
        .unwrap();
    let column = |value: i64| Arc::new(Int64Array::from(vec![value; 3])) as ArrayRef;
    let columns = [("x", 9), ("_job_id", id), ("_file_version_id", version)];
    let batch = RecordBatch::try_from_iter(columns.map(|(name, value)| (name, column(value))));
    let batch = batch.unwrap();
    std::fs::create_dir(&out).unwrap();
    let file = std::fs::File::create(out.join(format!("one_output_{id}.parquet"))).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    old.kill();
    let _worker = worker(&endpoint, &out, &[]);
    let done = ended(&database, id);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert_eq!(done["attempt"], 2);
    let (named, files) = named_and_visible(&database, id, &out);
    assert_eq!(named, format!("[\"file://{}\"]", files[0]));
    assert_eq!(files.len(), 1);
}

/// It has ended the job, and is alive: the job must not wait for the end of its connection.
#[test]
fn a_receipt_that_cannot_be_read_fails_its_attempt_with_the_reason() {
    for raw in [
        r#"{"status": "SUCCESS", "metrics": {"rows": 1180591620717411303424}, "artifacts": []}"#,
        r#"{"status": "SUCCESS""#,
        "[]",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "one", ONE_ROW);
        let id = submit(&database, "one", &inputs(dir.path(), 1))[0];
        let (_sentinel, endpoint) = sentinel(&database, &["--lease", "2"]);
        let old = ["--connect", &endpoint, "--jobs", "0", "--raw", raw];
        let mut old = Background::start(peer("old_worker.py").args(old));
        old.event("concluded");
        let failed = until("the attempt fails", || {
            let job = job(&database, id);
            let first = job["attempts"][0].clone();
            (!first.is_null()).then_some(first)
        });
        assert_eq!(failed["cause"], "worker", "{failed}");
        let reason = failed["error"].as_str().unwrap();
        assert!(reason.contains("receipt cannot be read"), "{reason}");
        old.kill();
        let _worker = worker(&endpoint, &dir.path().join("out"), &[]);
        assert_eq!(ended(&database, id)["status"], "COMPLETED");
    }
}

/// Python writes halves of surrogate pairs and NaN, which JSON parsers refuse. Its connection stays, and it
/// gets the next job.
#[test]
fn an_old_worker_goes_on_after_a_receipt_with_any_text() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let (_sentinel, endpoint) = sentinel(&database, &["--lease", "2"]);
    let success = r#"{"status": "SUCCESS", "metrics": {"rows": 3}, "artifacts": [], "note": NaN}"#;
    let failed = r#"{"status": "FAILED", "metrics": {}, "error_message": "bad \ud83d text"}"#;
    for (result, raw, status, reason) in [
        ("success", success, "COMPLETED", ""),
        ("failed", failed, "FAILED", "bad \u{fffd} text"),
        (
            "err",
            r#"{"message": "bad \udc80 text"}"#,
            "FAILED",
            "bad \u{fffd} text",
        ),
    ] {
        let ids = submit(&database, "one", &inputs(dir.path(), 2));
        let options = ["--connect", &endpoint, "--result", result];
        let more = ["--raw", raw, "--jobs", "2"];
        let mut old = Background::start(peer("old_worker.py").args(options).args(more));
        for id in ids {
            let done = ended(&database, id);
            assert_eq!(done["status"], status, "{raw}: {done}");
            let error = done["error"].as_str().unwrap_or_default();
            assert!(error.contains(reason), "{raw}: {done}");
        }
        assert_eq!(old.wait(), Some(0), "{raw}: {:#?}", old.seen);
    }
}

/// The sender does not send it again. Above the limit of frames, its connection ends, too.
#[test]
fn an_old_workers_receipt_that_is_too_large_fails_its_attempt_with_the_reason() {
    for padding in ["9000000", "70000000"] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "one", ONE_ROW);
        let id = submit(&database, "one", &inputs(dir.path(), 1))[0];
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let old = ["--connect", &endpoint, "--jobs", "0", "--padding", padding];
        let mut old = Background::start(peer("old_worker.py").args(old));
        let failed = until("the attempt fails", || {
            let first = job(&database, id)["attempts"][0].clone();
            (!first.is_null()).then_some(first)
        });
        assert_eq!(failed["cause"], "worker", "{failed}");
        let reason = failed["error"].as_str().unwrap();
        assert!(reason.contains("receipt cannot be read"), "{reason}");
        assert!(reason.contains("limit"), "{reason}");
        old.kill();
        let _worker = worker(&endpoint, &dir.path().join("out"), &[]);
        assert_eq!(ended(&database, id)["status"], "COMPLETED");
    }
}

/// It sends each receipt once, so that one can be lost with a connection.
#[test]
fn an_old_worker_that_reports_to_be_idle_has_lost_its_job() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let id = submit(&database, "one", &inputs(dir.path(), 1))[0];
    let (_sentinel, endpoint) = sentinel(&database, &["--lease", "2"]);
    let options = ["--connect", &endpoint, "--jobs", "2", "--lose-receipt", "1"];
    let mut old = Background::start(peer("old_worker.py").args(options));
    old.event("concluded");
    let done = ended(&database, id);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    let first = &done["attempts"][0];
    assert_eq!(first["cause"], "lost", "{done}");
    let reason = first["error"].as_str().unwrap();
    assert!(reason.contains("reported that it is idle"), "{reason}");
    assert_eq!(old.wait(), Some(0), "{:#?}", old.seen);
}

#[test]
fn an_old_sentinel_learns_of_a_job_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let jobs = dir.path().join("jobs.json");
    std::fs::write(&jobs, r#"[{"job_id": 7, "payload": {"plugin_name": 3}}]"#).unwrap();
    let mut old = Background::start(peer("old_sentinel.py").arg(&jobs));
    let endpoint = old.event("bound")["endpoint"].as_str().unwrap().to_owned();
    let _worker = worker(&endpoint, &dir.path().join("out"), &[]);
    let answer = loop {
        let message = old.event("message");
        if message["opcode"] == "ERR" {
            break message;
        }
    };
    assert_eq!(answer["job_id"], 7);
    let reason = answer["payload"]["message"].as_str().unwrap();
    assert!(reason.contains("the job cannot be read"), "{reason}");
}
