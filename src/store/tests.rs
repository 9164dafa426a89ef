//! Tests of the store by its public functions. A [`Scene`] is a database with one plugin.

use super::*;
use crate::job::{Attempt, Cause, JobStatus, Loss, Mode, Receipt};

mod catalogue;
mod claims;
mod content;
mod ends;
mod identity;
mod malformed;
mod old_peers;
mod plans;
mod property;
mod registry;
mod schema;
mod settle;
mod upload;
mod waits;
mod workers;

const DAY_MS: i64 = 1_766_232_000_000;

struct Scene {
    dir: tempfile::TempDir,
    store: Store,
}

impl Scene {
    /// A new database with the plugin `p` deployed.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("q.db"), Open::Create).unwrap();
        let mut scene = Scene { dir, store };
        scene.deploy("p", "class Handler: pass\n");
        scene
    }

    fn legacy() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("legacy.sqlite");
        std::fs::copy(legacy_path(), &path).unwrap();
        let store = Store::open(&path, Open::Existing).unwrap();
        Scene { dir, store }
    }

    fn deploy(&mut self, plugin: &str, source: &str) -> Deployed {
        let mut transaction = self.store.begin().unwrap();
        let deploy = Deploy {
            plugin_name: plugin,
            version: None,
            source_code: source,
            lockfile_content: "",
            sinks: &[],
        };
        let deployed = transaction.deploy(&deploy, DAY_MS).unwrap();
        transaction.commit().unwrap();
        deployed
    }

    fn enqueue(&mut self, plugin: &str, priority: i64) -> i64 {
        let mut transaction = self.store.begin().unwrap();
        let file = transaction
            .register_file("/data", "a/b.csv", 3, 1.5, "hash", DAY_MS)
            .unwrap();
        let id = transaction
            .enqueue(plugin, file.version_id, priority, DAY_MS)
            .unwrap();
        transaction.commit().unwrap();
        id
    }

    fn claim(&mut self, plugins: &[&str], limit: usize) -> Claimed {
        self.claim_for("w", plugins, limit, false)
    }

    fn claim_for(
        &mut self,
        worker_id: &str,
        plugins: &[&str],
        limit: usize,
        is_old: bool,
    ) -> Claimed {
        let plugins: Vec<String> = plugins.iter().map(|name| (*name).to_owned()).collect();
        let mut transaction = self.store.begin().unwrap();
        let claimed = transaction
            .claim(
                &ClaimRequest {
                    worker_id,
                    hostname: "host",
                    pid: Some(1),
                    plugins: &plugins,
                    limit,
                    is_idle: true,
                    is_old,
                    lease_until_ms: DAY_MS + 1000,
                },
                DAY_MS,
            )
            .unwrap();
        transaction.commit().unwrap();
        claimed
    }

    /// A worker's report of the end of an attempt, `at` milliseconds after [`DAY_MS`].
    fn report(&mut self, worker_id: &str, attempt: Attempt, receipt: &Receipt, at: u64) -> Ended {
        let mut transaction = self.store.begin().unwrap();
        let completion = Completion {
            attempt,
            worker_id,
            receipt,
            retries_max: 3,
        };
        let ended = transaction.complete(&completion, &now(at)).unwrap();
        transaction.commit().unwrap();
        ended
    }

    fn release(&mut self, attempt: Attempt, at: u64) -> Ended {
        self.lose(attempt, Loss::Alone, at)
    }

    fn lose(&mut self, attempt: Attempt, loss: Loss, at: u64) -> Ended {
        let mut transaction = self.store.begin().unwrap();
        let ended = transaction
            .release(attempt, Cause::Lost, loss, "worker w was lost", 3, &now(at))
            .unwrap();
        transaction.commit().unwrap();
        ended
    }

    fn wake(&mut self, now: &Now) -> usize {
        let mut transaction = self.store.begin().unwrap();
        let woken = transaction.wake_due(now).unwrap();
        transaction.commit().unwrap();
        woken
    }

    fn inspect(&self, job_id: i64) -> JobDetail {
        let inspector = Inspector::open(&self.path()).unwrap();
        inspector.job(job_id).unwrap().unwrap()
    }

    fn sql(&self, sql: &str) {
        let other = Connection::open(self.path()).unwrap();
        other.pragma_update(None, "foreign_keys", false).unwrap();
        other.execute_batch(sql).unwrap();
    }

    fn path(&self) -> PathBuf {
        std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|e| e == "db" || e == "sqlite"))
            .unwrap()
    }

    fn text(&self, sql: &str) -> String {
        self.store
            .connection
            .query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0))
            .map(|value| match value {
                rusqlite::types::Value::Text(text) => text,
                other => format!("{other:?}"),
            })
            .unwrap()
    }

    fn status(&self, job_id: i64) -> String {
        self.text(&format!(
            "SELECT status FROM cf_processing_queue WHERE id = {job_id}"
        ))
    }
}

fn now(at_ms: u64) -> Now {
    Now {
        unix_ms: DAY_MS + at_ms as i64,
        boot_ms: 1_000_000 + at_ms,
        boot_id: "this-start".into(),
    }
}

fn success(uris: &[&str]) -> Receipt {
    let artifact = |uri: &&str| [("uri".to_owned(), (*uri).to_owned())].into();
    Receipt {
        status: JobStatus::Success,
        artifacts: uris.iter().map(artifact).collect(),
        ..Receipt::default()
    }
}

fn failure(cause: Option<Cause>, message: &str) -> Receipt {
    Receipt {
        cause,
        error_message: Some(message.to_owned()),
        ..Receipt::default()
    }
}

fn legacy_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/db/legacy_v5.sqlite")
}

fn ids(claimed: &Claimed) -> Vec<i64> {
    claimed.jobs.iter().map(|job| job.attempt.job_id).collect()
}
