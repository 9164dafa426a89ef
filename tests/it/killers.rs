//! Jobs that end their worker: found out among the jobs beside them, and given up alone.

use std::path::Path;
use std::time::Duration;

use crate::common::*;

/// Kills its worker, whose process ID stands in a file.
fn killer(pid: &Path) -> String {
    format!(
        "import os, time\nclass Handler:\n    def execute(self, path):\n        os.kill(int(open({pid:?}).read()), 9)\n        time.sleep(1000)\n"
    )
}

const SHORT: &str = "import time\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        time.sleep(0.4)\n        return pa.table({'x': [1]})\n";

fn deploy(database: &Path, plugin: &str, source: &str) {
    let file = database.with_file_name(format!("{plugin}.py"));
    std::fs::write(&file, source).unwrap();
    let file = file.to_str().unwrap();
    casparian_ok(&["deploy", file, "-d", database.to_str().unwrap()]);
}

#[test]
fn a_job_that_kills_a_worker_which_is_always_full_is_given_up_alone() {
    for start in ["warm", "spawn"] {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let database = database_with(dir.path(), "killer", &killer(&pid));
        deploy(&database, "short", SHORT);
        let input = dir.path().join("in");
        std::fs::write(&input, "in").unwrap();
        let killer = submit(&database, "killer", std::slice::from_ref(&input))[0];
        let queue = |count: usize| {
            let store = rusqlite::Connection::open(&database).unwrap();
            let insert = "INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
                 SELECT file_version_id, 'short', 'QUEUED' FROM cf_processing_queue WHERE id = ?1";
            for _ in 0..count {
                store.busy_timeout(DEADLINE).unwrap();
                store.execute(insert, [killer]).unwrap();
            }
        };
        let count = |what: &str| -> usize {
            let store = rusqlite::Connection::open(&database).unwrap();
            store.busy_timeout(DEADLINE).unwrap();
            let query = format!("SELECT count(*) FROM cf_processing_queue WHERE {what}");
            let count: u32 = store.query_row(&query, [], |row| row.get(0)).unwrap();
            count as usize
        };
        let more = ["--lease", "1", "--retries", "1"];
        let (_sentinel, endpoint) = sentinel(&database, &more);
        let start_worker = || {
            let more = ["--slots", "3", "--worker-id", "w", "--plugin-start", start];
            let more = [more.as_slice(), &["--sandbox", "off"]].concat();
            let worker = worker(&endpoint, &dir.path().join("out"), &more);
            std::fs::write(dir.path().join("pid.new"), worker.pid().to_string()).unwrap();
            std::fs::rename(dir.path().join("pid.new"), &pid).unwrap();
            worker
        };
        let (mut worker, mut deaths) = (start_worker(), 0);
        until("the killer is given up", || {
            // There is always more to do than the worker has slots.
            queue(6usize.saturating_sub(count("status = 'QUEUED'")));
            if worker.has_exited() {
                deaths += 1;
                worker = start_worker();
            }
            std::thread::sleep(Duration::from_millis(50));
            (job(&database, killer)["status"] == "FAILED").then_some(())
        });
        let given_up = job(&database, killer);
        assert_eq!(given_up["cause"], "lost", "{given_up}");
        // Two beside others, and two alone.
        assert!((2..=6).contains(&deaths), "{deaths}");
        until("its neighbours complete", || {
            let left = count("plugin_name = 'short' AND status <> 'COMPLETED'");
            assert_eq!(count("plugin_name = 'short' AND status = 'FAILED'"), 0);
            (left == 0).then_some(())
        });
        assert!(!worker.has_exited());
    }
}

/// Tells its worker, the parent of its fork server, to stop at once.
const STOPPER: &str = "import os, time\nclass Handler:\n    def execute(self, path):\n        pid = int(open(f'/proc/{os.getppid()}/stat').read().rpartition(')')[2].split()[1])\n        while True:\n            os.kill(pid, 15)\n            time.sleep(0.05)\n";

#[test]
fn a_job_that_stops_its_workers_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "stopper", STOPPER);
    let input = dir.path().join("in");
    std::fs::write(&input, "in").unwrap();
    let id = submit(&database, "stopper", &[input])[0];
    let (_sentinel, endpoint) = sentinel(&database, &["--retries", "0"]);
    // Ten times it costs nothing, twice it counts as a loss with others, once as one alone.
    for _ in 0..13 {
        let mut command = program("casparian-worker");
        command
            .args(["--connect", &endpoint, "--slots", "2", "--plugin-start"])
            .args(["spawn", "--sandbox", "off", "--output"])
            .arg(dir.path().join("out"));
        assert_eq!(Background::start(&mut command).wait(), Some(0));
    }
    let given_up = job(&database, id);
    assert_eq!(given_up["status"], "FAILED", "{given_up}");
    assert_eq!(given_up["cause"], "lost", "{given_up}");
    let error = given_up["error"].as_str().unwrap();
    assert!(error.contains("stopped while it ran, 13 times"), "{error}");
}
