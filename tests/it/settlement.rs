//! A worker dies after it has published and before its receipt arrives, and no attempt follows:
//! what is visible afterwards is what the row says.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::*;

/// Its first run waits for the gate, so that the sentinel is not there when it ends.
fn gated(gate: &Path) -> String {
    format!(
        "import os, time\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        with open(path + '.started', 'w'): pass\n        while not os.path.exists({gate:?}):\n            time.sleep(0.01)\n        yield pa.table({{'x': [1, 2, 3]}})\n"
    )
}

struct Scene {
    dir: tempfile::TempDir,
    database: PathBuf,
    id: i64,
}

impl Scene {
    /// Its job has published, and neither worker nor sentinel live.
    fn published(sink: Option<&str>) -> Self {
        let scene = Self::submitted(sink);
        scene.publish_in_silence(|| scene.rows() == Some(3));
        scene
    }

    /// Its job is queued.
    fn submitted(sink: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let gate = dir.path().join("gate");
        let database = database_with(dir.path(), "gated", &gated(&gate));
        let scene = Scene {
            id: 1,
            database,
            dir,
        };
        if let Some(uri) = sink {
            scene.sql(&format!(
                "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
                 VALUES ('gated', 'output', '{uri}', 'append')"
            ));
        }
        let input = scene.dir.path().join("in");
        std::fs::write(&input, "in").unwrap();
        assert_eq!(
            submit(&scene.database, "gated", std::slice::from_ref(&input)),
            [1]
        );
        scene
    }

    fn gate(&self) -> PathBuf {
        self.dir.path().join("gate")
    }

    /// A worker runs the job and publishes, and no sentinel takes its receipt.
    fn publish_in_silence(&self, is_visible: impl Fn() -> bool) {
        // A lease for the time without the sentinel.
        let (mut sentinel, endpoint) = sentinel(&self.database, &["--lease", "15"]);
        let mut worker = worker(&endpoint, &self.out(), &["--worker-id", "w-1"]);
        until("the plugin runs", || {
            self.dir.path().join("in.started").exists().then_some(())
        });
        sentinel.signal("-STOP");
        std::fs::write(self.gate(), "").unwrap();
        until("the output is visible", || is_visible().then_some(()));
        worker.kill();
        sentinel.kill();
        assert_eq!(job(&self.database, 1)["status"], "RUNNING");
    }

    fn out(&self) -> PathBuf {
        let moved = self.dir.path().join("moved");
        match moved.exists() {
            true => moved,
            false => self.dir.path().join("out"),
        }
    }

    fn sql(&self, sql: &str) {
        let store = rusqlite::Connection::open(&self.database).unwrap();
        store.execute_batch(sql).unwrap();
    }

    /// Visible rows of the job, in a file or a table; none where there is no table.
    fn rows(&self) -> Option<usize> {
        let table = self.out().join("x.db");
        if table.exists() {
            let store = rusqlite::Connection::open(table).ok()?;
            let count = "SELECT count(*) FROM rows WHERE _job_id = 1";
            let rows: Option<u32> = store.query_row(count, [], |row| row.get(0)).ok();
            return rows.map(|rows| rows as usize);
        }
        Some(3 * visible_files(&self.out()).len())
    }

    /// Starts a sentinel that gives the lost job up, and another worker; gives the job once it is
    /// settled.
    fn settled(&self) -> Value {
        let (_sentinel, endpoint) = sentinel(&self.database, &["--lease", "1", "--retries", "0"]);
        let _worker = worker(&endpoint, &self.out(), &["--worker-id", "w-2"]);
        until("the job is settled", || {
            let store = rusqlite::Connection::open(&self.database).unwrap();
            let query = "SELECT 1 FROM cf_processing_queue WHERE unsettled = 0";
            store.query_row(query, [], |_| Ok(())).ok()
        });
        job(&self.database, self.id)
    }
}

#[test]
fn a_job_that_is_given_up_as_lost_is_completed_by_its_output() {
    for sink in [None, Some("sqlite://x.db/rows")] {
        let scene = Scene::published(sink);
        let done = scene.settled();
        assert_eq!(done["status"], "COMPLETED", "{done}");
        assert_eq!(done["error"], Value::Null, "{done}");
        let artifacts = done["receipt"]["artifacts"].as_array().unwrap();
        assert_eq!(artifacts.len(), 1, "{done}");
        assert_eq!(artifacts[0]["rows"], "3", "{done}");
        let uri = artifacts[0]["uri"].as_str().unwrap();
        match sink {
            Some(_) => assert!(uri.ends_with("x.db/rows"), "{uri}"),
            None => {
                let files = visible_files(&scene.out());
                assert_eq!(uri, format!("file://{}", files[0].display()));
            }
        }
        assert_eq!(scene.rows(), Some(3));
    }
}

#[test]
fn a_job_that_was_cancelled_meanwhile_has_no_output() {
    for sink in [None, Some("sqlite://x.db/rows")] {
        let scene = Scene::published(sink);
        scene.sql("UPDATE cf_processing_queue SET status = 'SKIPPED'");
        let done = scene.settled();
        assert_eq!(done["status"], "SKIPPED", "{done}");
        assert_eq!(scene.rows(), Some(0));
    }
}

#[test]
fn output_in_a_root_that_has_another_path_now_is_settled() {
    for (status, rows) in [("COMPLETED", 3), ("SKIPPED", 0)] {
        let scene = Scene::published(Some("sqlite://x.db/rows"));
        std::fs::rename(scene.out(), scene.dir.path().join("moved")).unwrap();
        if status == "SKIPPED" {
            scene.sql("UPDATE cf_processing_queue SET status = 'SKIPPED'");
        }
        let done = scene.settled();
        assert_eq!(done["status"], status, "{done}");
        assert_eq!(scene.rows(), Some(rows));
    }
}

#[test]
fn a_job_whose_table_gets_another_path_keeps_its_rows() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1, 2, 3]})\n";
    let database = database_with(dir.path(), "p", plugin);
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::write(&input, "in").unwrap();
    std::fs::create_dir_all(out.join("a")).unwrap();
    std::os::unix::fs::symlink("a", out.join("b")).unwrap();
    let store = rusqlite::Connection::open(&database).unwrap();
    store
        .execute_batch(
            "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
             VALUES ('p', 'output', 'sqlite://a/x.db/rows', 'append')",
        )
        .unwrap();
    submit(&database, "p", std::slice::from_ref(&input));
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let _worker = worker(&endpoint, &out, &[]);
    assert_eq!(ended(&database, 1)["status"], "COMPLETED");
    store
        .execute_batch(
            "UPDATE cf_topic_config SET uri = 'sqlite://b/x.db/rows'; \
             UPDATE cf_processing_queue SET status = 'QUEUED'",
        )
        .unwrap();
    let done = ended(&database, 1);
    assert_eq!(
        (&done["status"], &done["attempt"]),
        (&"COMPLETED".into(), &2.into())
    );
    let table = rusqlite::Connection::open(out.join("a/x.db")).unwrap();
    let rows = table.query_row("SELECT count(*) FROM rows", [], |row| row.get(0));
    assert_eq!(rows, Ok(3));
}

/// Without a word of any worker: another worker's end of the job is no reason to keep the output.
#[test]
fn a_job_that_runs_again_replaces_its_output() {
    let scene = Scene::published(None);
    scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
    let done = scene.settled();
    assert_eq!(
        (&done["status"], &done["attempt"]),
        (&"COMPLETED".into(), &2.into())
    );
    assert_eq!(scene.rows(), Some(3));
}

#[test]
fn what_a_copy_of_the_database_tried_does_not_keep_the_original_from_publishing() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        if os.path.exists(path + '.bad'):\n            raise ValueError('bad')\n        yield pa.table({'x': [1]})\n";
    let database = database_with(dir.path(), "p", plugin);
    let input = dir.path().join("in");
    std::fs::write(&input, "in").unwrap();
    submit(&database, "p", std::slice::from_ref(&input));
    let copy = dir.path().join("copy.db");
    let original = rusqlite::Connection::open(&database).unwrap();
    let text = copy.to_str().unwrap();
    original.execute("VACUUM INTO ?1", [text]).unwrap();
    let out = dir.path().join("out");
    let bad = dir.path().join("in.bad");
    std::fs::write(&bad, "").unwrap();
    {
        let (_sentinel, endpoint) = sentinel(&copy, &[]);
        let _worker = worker(&endpoint, &out, &[]);
        let copy_sql = rusqlite::Connection::open(&copy).unwrap();
        for _ in 0..8 {
            assert_eq!(ended(&copy, 1)["status"], "FAILED");
            let again = "UPDATE cf_processing_queue SET status = 'QUEUED'";
            copy_sql.execute_batch(again).unwrap();
        }
        assert_eq!(ended(&copy, 1)["status"], "FAILED");
    }
    std::fs::remove_file(&bad).unwrap();
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let _worker = worker(&endpoint, &out, &[]);
    let done = ended(&database, 1);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert_eq!(visible_files(&out).len(), 1);
    let barred = done["attempts"][0]["error"].as_str().unwrap();
    assert!(barred.contains("another copy of this database"), "{done}");
}

/// The row of a completed job is set back, so that an attempt has the number of the one that has
/// published.
#[test]
fn a_row_that_is_set_back_to_its_first_attempt_costs_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    std::fs::write(&gate, "").unwrap();
    let database = database_with(dir.path(), "gated", &gated(&gate));
    let (input, out) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::write(&input, "in").unwrap();
    submit(&database, "gated", std::slice::from_ref(&input));
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let _worker = worker(&endpoint, &out, &["--worker-id", "w-1"]);
    let ended = |status: &str| (job(&database, 1)["status"] == status).then_some(());
    until("the job is done", || ended("COMPLETED"));
    let files = visible_files(&out);
    assert_eq!(files.len(), 1);
    let store = rusqlite::Connection::open(&database).unwrap();
    let set_back = "DELETE FROM cf_job_attempt; UPDATE cf_processing_queue SET status = 'QUEUED', \
         attempt = 0, receipt = NULL, published = NULL";
    store.execute_batch(set_back).unwrap();
    until("the attempt is refused", || ended("FAILED"));
    let reason = job(&database, 1)["error"].to_string();
    assert!(reason.contains("published already"), "{reason}");
    assert_eq!(visible_files(&out), files);
}

/// The worker of a job of mode `error` dies after it has published, and another job finds the output
/// while its plugin has given nothing yet.
#[test]
fn output_that_goes_fails_no_other_job_of_mode_error() {
    for uri in ["parquet://o.parquet", "sqlite://x.db/rows"] {
        let scene = Scene::published(Some(uri));
        let gate = scene.dir.path().join("gate");
        std::fs::remove_file(&gate).unwrap();
        scene.sql("UPDATE cf_topic_config SET mode = 'error'");
        let input = scene.dir.path().join("second");
        std::fs::write(&input, "second").unwrap();
        assert_eq!(submit(&scene.database, "gated", &[input]), [2]);
        let (_sentinel, endpoint) = sentinel(&scene.database, &["--lease", "15"]);
        let _worker = worker(&endpoint, &scene.out(), &["--worker-id", "w-2"]);
        let waiting = until("the second job waits for the first", || {
            let job = job(&scene.database, 2);
            assert_ne!(job["status"], "FAILED", "{job}");
            (job["status"] == "PENDING").then_some(job)
        });
        let reason = waiting["error"].as_str().unwrap();
        let want = "waits for job 1, whose output is not settled: ";
        assert!(reason.starts_with(want), "{reason}");
        std::fs::write(&gate, "").unwrap();
        scene.sql("UPDATE cf_processing_queue SET status = 'SKIPPED' WHERE id = 1");
        let done = ended(&scene.database, 2);
        assert_eq!(done["status"], "COMPLETED", "{done}");
        let files = visible_files(&scene.out());
        match uri.starts_with("sqlite") {
            true => assert_eq!(scene.rows(), Some(0)),
            false => assert_eq!(files, [scene.out().join("o_2.parquet")]),
        }
    }
}

/// File versions that the visible rows of the only job are of, each once.
fn versions(scene: &Scene) -> Vec<i64> {
    if scene.out().join("x.db").exists() {
        let store = rusqlite::Connection::open(scene.out().join("x.db")).unwrap();
        let mut query = store
            .prepare("SELECT DISTINCT _file_version_id FROM rows")
            .unwrap();
        let found = query.query_map([], |row| row.get(0)).unwrap();
        return found.map(Result::unwrap).collect();
    }
    let engines = read_parquet(&scene.out());
    let sums = engines.iter().map(|engine| {
        let sum = engine["sums"]["_file_version_id"].as_i64().unwrap();
        sum / engine["rows"].as_i64().unwrap()
    });
    let mut found: Vec<i64> = sums.collect();
    found.dedup();
    found
}

/// Waits until the job is COMPLETED; gives its file version and that of its receipt.
fn completed(scene: &Scene) -> (i64, i64) {
    until("the job is completed", || {
        let store = rusqlite::Connection::open(&scene.database).unwrap();
        let query = "SELECT file_version_id, published_version_id FROM cf_processing_queue \
             WHERE id = 1 AND status = 'COMPLETED'";
        let row = store.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)));
        row.ok()
    })
}

#[test]
fn a_lost_job_that_has_another_file_meanwhile_runs_over_that() {
    for sink in [None, Some("sqlite://x.db/rows")] {
        let scene = Scene::published(sink);
        let other = scene.dir.path().join("other");
        std::fs::write(&other, "other").unwrap();
        assert_eq!(submit(&scene.database, "gated", &[other]), [2]);
        scene.sql(
            "UPDATE cf_processing_queue SET status = 'SKIPPED' WHERE id = 2; \
             UPDATE cf_processing_queue SET file_version_id = 2 WHERE id = 1",
        );
        let (_sentinel, endpoint) = sentinel(&scene.database, &["--lease", "1", "--retries", "0"]);
        let _worker = worker(&endpoint, &scene.out(), &["--worker-id", "w-2"]);
        assert_eq!(completed(&scene), (2, 2));
        assert_eq!(versions(&scene), [2], "{sink:?}");
        assert_eq!(scene.rows(), Some(3));
    }
}

/// A repaired job publishes in silence, its file changes, and the worker of the attempt over the new
/// content is lost: no program has written into the queue.
#[test]
fn a_lost_job_whose_content_has_changed_meanwhile_runs_over_that() {
    for sink in [None, Some("sqlite://x.db/rows")] {
        let scene = Scene::submitted(sink);
        std::fs::write(scene.gate(), "").unwrap();
        {
            let (_sentinel, endpoint) = sentinel(&scene.database, &[]);
            let _worker = worker(&endpoint, &scene.out(), &[]);
            assert_eq!(ended(&scene.database, 1)["status"], "COMPLETED");
        }
        std::fs::remove_file(scene.gate()).unwrap();
        std::fs::remove_file(scene.dir.path().join("in.started")).unwrap();
        let is_there_again: Box<dyn Fn() -> bool> = match sink {
            Some(_) => {
                let table = rusqlite::Connection::open(scene.out().join("x.db")).unwrap();
                table.execute_batch("DELETE FROM rows WHERE x = 2").unwrap();
                Box::new(|| scene.rows() == Some(3))
            }
            None => {
                use std::os::unix::fs::{FileExt, MetadataExt};
                let file = visible_files(&scene.out()).remove(0);
                let damaged = std::fs::File::options().write(true).open(&file).unwrap();
                damaged.write_all_at(b"ZZ", 10).unwrap();
                let inode = move || std::fs::metadata(&file).map(|found| found.ino()).ok();
                let before = inode();
                Box::new(move || inode().is_some_and(|inode| Some(inode) != before))
            }
        };
        let fsck = program("casparian")
            .args(["fsck", "--repair", "--database"])
            .arg(&scene.database)
            .arg("--output")
            .arg(scene.out())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&fsck.stdout).into_owned();
        assert!(said.contains("queued again"), "{said} {fsck:?}");
        scene.publish_in_silence(is_there_again);
        std::fs::remove_file(scene.gate()).unwrap();
        std::fs::write(scene.dir.path().join("in"), "other").unwrap();
        let (_sentinel, endpoint) = sentinel(&scene.database, &["--lease", "1", "--retries", "1"]);
        let mut lost = worker(&endpoint, &scene.out(), &["--worker-id", "w-2"]);
        until("the job runs over the new content", || {
            let store = rusqlite::Connection::open(&scene.database).unwrap();
            let query = "SELECT 1 FROM cf_processing_queue \
                 WHERE status = 'RUNNING' AND file_version_id = 2";
            store.query_row(query, [], |_| Ok(())).ok()
        });
        lost.kill();
        std::fs::write(scene.gate(), "").unwrap();
        let _worker = worker(&endpoint, &scene.out(), &["--worker-id", "w-3"]);
        assert_eq!(completed(&scene), (2, 2));
        assert_eq!(versions(&scene), [2], "{sink:?}");
        assert_eq!(scene.rows(), Some(3));
    }
}
