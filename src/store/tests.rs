use super::*;
use crate::job::{Attempt, Mode};
use rusqlite::params;

const DAY_MS: i64 = 1_766_232_000_000;

struct Scene {
    dir: tempfile::TempDir,
    store: Store,
}

impl Scene {
    /// A fresh database with plugin `p` deployed.
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
        let mut turn = self.store.begin().unwrap();
        let deploy = Deploy {
            plugin_name: plugin,
            version: None,
            source_code: source,
            lockfile_content: "",
            sinks: &[],
        };
        let deployed = turn.deploy(&deploy, DAY_MS).unwrap();
        turn.commit().unwrap();
        deployed
    }

    fn enqueue(&mut self, plugin: &str, priority: i64) -> i64 {
        let mut turn = self.store.begin().unwrap();
        let file = turn
            .register_file("/data", "a/b.csv", 3, 1.5, "hash", DAY_MS)
            .unwrap();
        let id = turn
            .enqueue(plugin, file.version_id, priority, DAY_MS)
            .unwrap();
        turn.commit().unwrap();
        id
    }

    fn claim(&mut self, plugins: &[&str], limit: usize) -> Claimed {
        let plugins: Vec<String> = plugins.iter().map(|name| (*name).to_owned()).collect();
        let mut turn = self.store.begin().unwrap();
        let claimed = turn
            .claim(
                &Claim {
                    worker_id: "w",
                    hostname: "host",
                    pid: Some(1),
                    plugins: &plugins,
                    limit,
                    lease_until_ms: DAY_MS + 1000,
                },
                DAY_MS,
            )
            .unwrap();
        turn.commit().unwrap();
        claimed
    }

    fn complete(&mut self, worker_id: &str, job_id: i64, attempt: Option<i64>) -> bool {
        let mut turn = self.store.begin().unwrap();
        let done = turn
            .complete(
                &Completion {
                    job_id,
                    attempt,
                    worker_id,
                    end: End::Completed,
                    summary: "Success",
                    error_message: None,
                    receipt: Some("{}"),
                    log_tail: None,
                },
                DAY_MS,
            )
            .unwrap();
        turn.commit().unwrap();
        done
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

fn legacy_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/db/legacy_v5.sqlite")
}

fn ids(claimed: &Claimed) -> Vec<i64> {
    claimed.jobs.iter().map(|job| job.attempt.job_id).collect()
}

#[test]
fn a_legacy_database_opens_in_place_and_works() {
    let mut scene = Scene::legacy();
    let claimed = scene.claim(&["sales"], 10);
    assert_eq!(ids(&claimed), [2, 1], "priority 10 before 0");
    let first = &claimed.jobs[0];
    assert_eq!(first.file_path, "/data/in/2025/f2.csv");
    assert_eq!(first.sinks.len(), 1);
    assert_eq!(first.sinks[0].uri, "parquet://other.parquet");
    assert_eq!(first.sinks[0].mode, Mode::Replace);
    assert_eq!(
        claimed.jobs[1].sinks[0].uri,
        "parquet://sales.parquet?compression=zstd"
    );
    assert!(first.plugin.source_code.contains("class Handler"));
    assert_eq!(
        first.plugin.env_hash,
        sha256_hex(&[first.plugin.lockfile_content.as_bytes()])
    );
    // The reference wrote no leases: its RUNNING job is nobody's.
    assert!(scene.store.has_expired(DAY_MS).unwrap());
    let mut turn = scene.store.begin().unwrap();
    let expired = turn.requeue_expired(DAY_MS, 3, 10).unwrap();
    turn.commit().unwrap();
    assert_eq!(
        expired,
        [Expired {
            job_id: 3,
            released: Released::Requeued
        }]
    );
    assert_eq!(scene.status(3), "QUEUED");
    // Others go on inserting what they always did.
    scene.sql(
        "INSERT INTO cf_processing_queue (file_version_id, plugin_name, config_overrides, status, \
         priority, retry_count) VALUES (4, 'sales', NULL, 'QUEUED', 99, 0)",
    );
    assert!(scene.store.changed().unwrap());
    assert_eq!(ids(&scene.claim(&["sales"], 1)), [8]);
}

#[test]
fn every_table_and_column_of_the_reference_is_in_a_new_database_too() {
    let legacy = Connection::open(legacy_path()).unwrap();
    let ours = Scene::new();
    let columns = |connection: &Connection, table: &str| -> Vec<String> {
        let mut statement = connection
            .prepare(&format!("PRAGMA table_info({table})"))
            .unwrap();
        let rows = statement
            .query_map([], |row| {
                Ok(format!(
                    "{} {} {} {:?} {}",
                    row.get::<_, String>(1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, i64>(3)?,
                    row.get::<_, Option<String>>(4)?,
                    row.get::<_, i64>(5)?
                ))
            })
            .unwrap();
        rows.map(Result::unwrap).collect()
    };
    let mut statement = legacy
        .prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'cf_%'")
        .unwrap();
    let tables: Vec<String> = statement
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert!(tables.len() >= 16);
    for table in tables {
        let theirs = columns(&legacy, &table);
        let mine = columns(&ours.store.connection, &table);
        assert_eq!(mine[..theirs.len()], theirs, "{table}");
    }
    assert_eq!(ours.text("PRAGMA journal_mode"), "wal");
    assert_eq!(ours.text("PRAGMA synchronous"), "Integer(2)");
}

#[test]
fn the_claim_is_served_by_the_partial_index_without_a_sort() {
    let scene = Scene::new();
    let mut statement = scene
        .store
        .connection
        .prepare(&format!("EXPLAIN QUERY PLAN {}", queue::CLAIM_QUERY))
        .unwrap();
    let plan: Vec<String> = statement
        .query_map(params!["p", 1], |row| row.get(3))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert!(
        plan.iter().any(|line| line.contains("ix_casparian_claim")),
        "{plan:?}"
    );
    assert!(
        !plan.iter().any(|line| line.contains("TEMP B-TREE")),
        "{plan:?}"
    );
}

#[test]
fn jobs_come_by_priority_then_id_over_all_plugins_and_only_capable_ones() {
    let mut scene = Scene::new();
    scene.deploy("q", "class Handler: x = 1\n");
    let a = scene.enqueue("p", 0);
    let b = scene.enqueue("q", 5);
    let c = scene.enqueue("p", 5);
    let d = scene.enqueue("other", 100);
    assert_eq!(scene.store.queued_plugins(10).unwrap(), ["other", "p", "q"]);
    assert_eq!(scene.store.queued_plugins(2).unwrap().len(), 2);
    assert_eq!(ids(&scene.claim(&["p", "q", "other"], 2)), [b, c]);
    assert_eq!(ids(&scene.claim(&["p", "q"], 10)), [a]);
    assert_eq!(scene.status(d), "QUEUED", "not deployed: it waits");
}

#[test]
fn only_the_holder_of_the_attempt_ends_a_job() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let hold = scene.claim(&["p"], 1).jobs[0].attempt;
    assert_eq!(
        hold,
        Attempt {
            job_id: id,
            number: 1
        }
    );
    assert!(!scene.complete("other", id, Some(1)));
    assert!(!scene.complete("w", id, Some(2)));
    assert!(!scene.complete("w", id + 1, None));
    assert_eq!(scene.status(id), "RUNNING");
    let mut turn = scene.store.begin().unwrap();
    assert_eq!(turn.held_by("w", id, None).unwrap(), Some(1));
    assert_eq!(turn.held_by("other", id, None).unwrap(), None);
    assert_eq!(
        turn.release(hold, "lost", 3, DAY_MS).unwrap(),
        Released::Requeued
    );
    assert_eq!(
        turn.release(hold, "lost", 3, DAY_MS).unwrap(),
        Released::Stale
    );
    turn.commit().unwrap();
    assert_eq!(scene.claim(&["p"], 1).jobs[0].attempt.number, 2);
    assert!(
        !scene.complete("w", id, Some(1)),
        "the first attempt comes too late"
    );
    assert!(scene.complete("w", id, Some(2)));
    assert!(!scene.complete("w", id, Some(2)), "once");
    assert_eq!(scene.status(id), "COMPLETED");
}

#[test]
fn a_job_that_loses_its_worker_too_often_fails() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    for round in 0..3 {
        let hold = scene.claim(&["p"], 1).jobs[0].attempt;
        let mut turn = scene.store.begin().unwrap();
        let released = turn.release(hold, "worker w was lost", 2, DAY_MS).unwrap();
        turn.commit().unwrap();
        assert_eq!(
            released,
            if round < 2 {
                Released::Requeued
            } else {
                Released::Failed
            }
        );
    }
    assert_eq!(scene.status(id), "FAILED");
    let error = scene.text("SELECT error_message FROM cf_processing_queue");
    assert_eq!(error, "worker w was lost; it was tried 3 times");
}

#[test]
fn leases_are_renewed_and_end() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    let hold = scene.claim(&["p"], 1).jobs[0].attempt;
    assert!(!scene.store.has_expired(DAY_MS + 999).unwrap());
    let mut turn = scene.store.begin().unwrap();
    turn.renew(&[hold, Attempt { number: 9, ..hold }], DAY_MS + 5000)
        .unwrap();
    turn.commit().unwrap();
    assert!(!scene.store.has_expired(DAY_MS + 4999).unwrap());
    assert!(scene.store.has_expired(DAY_MS + 5000).unwrap());
}

#[test]
fn a_dropped_turn_changes_nothing() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let mut turn = scene.store.begin().unwrap();
    turn.enqueue("p", 1, 0, DAY_MS).unwrap();
    turn.park_queued().unwrap();
    drop(turn);
    assert_eq!(scene.status(id), "QUEUED");
    assert_eq!(
        scene.text("SELECT count(*) FROM cf_processing_queue"),
        "Integer(1)"
    );
}

#[test]
fn jobs_that_cannot_be_resolved_fail_with_a_reason() {
    let mut scene = Scene::new();
    let bad = scene.enqueue("p", 0);
    scene.sql(&format!(
        "UPDATE cf_processing_queue SET config_overrides = '[1' WHERE id = {bad}; \
         INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
         VALUES (999, 'p', 'QUEUED')"
    ));
    let good = scene.enqueue("p", 0);
    let claimed = scene.claim(&["p"], 10);
    assert_eq!(ids(&claimed), [good]);
    let reasons: Vec<&str> = claimed
        .unresolved
        .iter()
        .map(|job| job.reason.as_str())
        .collect();
    assert_eq!(reasons.len(), 2);
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("config_overrides")),
        "{reasons:?}"
    );
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("file version 999")),
        "{reasons:?}"
    );
    assert_eq!(scene.status(bad), "FAILED");
}

#[test]
fn sinks_have_a_default_and_overrides_take_lists_and_bare_uris() {
    let mut scene = Scene::new();
    scene.sql(
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) VALUES \
         ('p', 'rejects', 'parquet://r.parquet', NULL)",
    );
    let id = scene.enqueue("p", 0);
    let default = scene.enqueue("p", 0);
    scene.sql(&format!(
        "UPDATE cf_processing_queue SET config_overrides = \
         '{{\"output\": [\"parquet://a.parquet\", {{\"uri\": \"parquet://b.parquet\", \"mode\": \"error\"}}]}}' \
         WHERE id = {id}"
    ));
    let claimed = scene.claim(&["p"], 2);
    let sinks = |index: usize| -> Vec<(String, String, String)> {
        let sinks = claimed.jobs[index].sinks.iter();
        sinks
            .map(|s| (s.topic.clone(), s.uri.clone(), s.mode.as_str().to_owned()))
            .collect()
    };
    let sink = |topic: &str, uri: &str, mode: &str| (topic.into(), uri.into(), mode.into());
    assert_eq!(
        sinks(0),
        [
            sink("rejects", "parquet://r.parquet", "append"),
            sink("output", "parquet://a.parquet", "append"),
            sink("output", "parquet://b.parquet", "error"),
        ]
    );
    assert_eq!(claimed.jobs[1].attempt.job_id, default);
    assert_eq!(
        sinks(1)[1],
        sink("output", "parquet://p_output.parquet", "append")
    );
}

#[test]
fn the_newest_deployment_runs_even_when_its_source_is_an_old_one() {
    let mut scene = Scene::new();
    let first = scene.deploy("p", "v1");
    let second = scene.deploy("p", "v2");
    assert!(second.new && second.version != first.version);
    let again = scene.deploy("p", "v1");
    assert_eq!((again.manifest_id, again.new), (first.manifest_id, false));
    // Deployed in the same millisecond the higher row wins; a later time decides otherwise.
    let mut turn = scene.store.begin().unwrap();
    let deploy = Deploy {
        plugin_name: "p",
        version: Some("9"),
        source_code: "v1",
        lockfile_content: "lock",
        sinks: &[],
    };
    turn.deploy(&deploy, DAY_MS + 1000).unwrap();
    let code = turn.plugin_code("p").unwrap().unwrap();
    assert_eq!(
        (code.plugin.source_code.as_str(), code.version.as_str()),
        ("v1", "9")
    );
    assert_eq!(code.plugin.env_hash, sha256_hex(&[b"lock"]));
    turn.commit().unwrap();
    // The same source under another name is another manifest.
    assert!(scene.deploy("q", "v1").new);
    // Another program's deployment is noticed.
    let mut other = Store::open(&scene.path(), Open::Existing).unwrap();
    let mut turn = other.begin().unwrap();
    let deploy = Deploy {
        plugin_name: "p",
        version: None,
        source_code: "v3",
        lockfile_content: "",
        sinks: &[],
    };
    turn.deploy(&deploy, DAY_MS + 2000).unwrap();
    turn.commit().unwrap();
    assert!(scene.store.changed().unwrap());
    assert!(!scene.store.changed().unwrap());
    let mut turn = scene.store.begin().unwrap();
    assert_eq!(
        turn.plugin_code("p").unwrap().unwrap().plugin.source_code,
        "v3"
    );
}

#[test]
fn sinks_of_a_manifest_follow_its_version_and_leave_those_of_operators() {
    let mut scene = Scene::new();
    scene.sql(
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) VALUES \
         ('p', 'mine', 'parquet://mine.parquet', 'append')",
    );
    let sink = |topic: &str, uri: &str| ManifestSink {
        topic: topic.to_owned(),
        uri: uri.to_owned(),
        mode: None,
    };
    let versions = [
        (
            vec![sink("mine", "parquet://no/"), sink("a", "parquet://1/")],
            "mine,a",
        ),
        (
            vec![sink("b", "parquet://2/"), sink("a", "parquet://3/")],
            "mine,b,a",
        ),
        (vec![], "mine,a,b"),
    ];
    for (count, (sinks, want)) in versions.iter().enumerate() {
        let source = format!("source {count}");
        let mut turn = scene.store.begin().unwrap();
        let deploy = Deploy {
            plugin_name: "p",
            version: None,
            source_code: &source,
            lockfile_content: "",
            sinks,
        };
        turn.deploy(&deploy, DAY_MS).unwrap();
        turn.commit().unwrap();
        let topics = scene.text("SELECT group_concat(topic_name) FROM (SELECT topic_name FROM cf_topic_config ORDER BY id)");
        assert_eq!(topics, *want);
        let uri = scene.text("SELECT uri FROM cf_topic_config WHERE topic_name = 'mine'");
        assert_eq!(uri, "parquet://mine.parquet");
        if count == 1 {
            // An operator's row beside, and an operator's change.
            scene.sql(
                "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) VALUES \
                 ('p', 'b', 'parquet://theirs/', 'append'); \
                 UPDATE cf_topic_config SET uri = 'parquet://changed/' WHERE topic_name = 'a'",
            );
            scene.enqueue("p", 0);
            let claimed = scene.claim(&["p"], 1);
            let sinks = &claimed.jobs[0].sinks;
            let uris: Vec<&str> = sinks.iter().map(|sink| sink.uri.as_str()).collect();
            let want = [
                "parquet://mine.parquet",
                "parquet://changed/",
                "parquet://theirs/",
            ];
            assert_eq!(uris[..3], want);
            assert_eq!(uris.len(), 4, "and that of output: {uris:?}");
        }
    }
}

#[test]
fn a_file_keeps_its_location_and_gets_versions_and_its_last_job_is_found() {
    let mut scene = Scene::new();
    let mut turn = scene.store.begin().unwrap();
    let one = turn
        .register_file("/data", "x.csv", 1, 0.0, "h1", DAY_MS)
        .unwrap();
    let same = turn
        .register_file("/data", "x.csv", 1, 0.0, "h1", DAY_MS)
        .unwrap();
    let two = turn
        .register_file("/data", "x.csv", 2, 0.0, "h2", DAY_MS)
        .unwrap();
    assert_eq!(
        (same.location_id, same.version_id, same.new),
        (one.location_id, one.version_id, false)
    );
    assert!(two.location_id == one.location_id && two.version_id != one.version_id);
    let job = turn.enqueue("p", one.version_id, 0, DAY_MS).unwrap();
    let last = turn.last_job("p", one.location_id).unwrap().unwrap();
    assert_eq!((last.job_id, last.content_hash.as_str()), (job, "h1"));
    assert!(turn.last_job("q", one.location_id).unwrap().is_none());
    assert!(turn.requeue(job, two.version_id).unwrap());
    assert_eq!(
        turn.last_job("p", one.location_id)
            .unwrap()
            .unwrap()
            .content_hash,
        "h2"
    );
    assert_eq!(
        turn.root_of(Path::new("/data/y")).unwrap(),
        Some("/data".into())
    );
    assert_eq!(turn.root_of(Path::new("/database")).unwrap(), None);
    turn.commit().unwrap();
    scene.claim(&["p"], 1);
    let mut turn = scene.store.begin().unwrap();
    assert!(!turn.requeue(job, one.version_id).unwrap(), "it is RUNNING");
}

#[test]
fn what_is_no_database_of_ours_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text");
    std::fs::write(&file, "text ".repeat(1000)).unwrap();
    let newer = dir.path().join("newer.db");
    Connection::open(&newer)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let missing = dir.path().join("missing.db");
    for (path, open, want) in [
        (&file, Open::Create, "no SQLite database"),
        (&dir.path().to_path_buf(), Open::Create, "directory"),
        (&missing, Open::Existing, "no such file"),
        (&missing.join("x"), Open::Create, "cannot open or make"),
        (&newer, Open::Create, "newer"),
    ] {
        let error = Store::open(path, open).unwrap_err().to_string();
        assert!(error.contains(want) && !error.contains('\n'), "{error}");
    }
    let legacy = dir.path().join("legacy.sqlite");
    std::fs::copy(legacy_path(), &legacy).unwrap();
    let error = Inspector::open(&legacy).unwrap_err().to_string();
    assert!(error.contains("casparian init"), "{error}");
}

#[test]
fn programs_that_migrate_at_once_do_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("legacy.sqlite");
    std::fs::copy(legacy_path(), &path).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| Store::open(&path, Open::Existing).map(drop)))
            .collect();
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
    });
}

#[test]
fn the_reason_of_waiting_is_told() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let other = scene.enqueue("nope", 0);
    let reason = |scene: &Scene, id: i64| {
        Inspector::open(&scene.path())
            .unwrap()
            .job(id)
            .unwrap()
            .unwrap()
            .waiting_for
    };
    assert!(reason(&scene, other).unwrap().contains("not deployed"));
    assert!(reason(&scene, id).unwrap().contains("no worker"));
    let session = |capability: &str| WorkerSession {
        worker_id: format!("w-{capability}"),
        user_id: None,
        hostname: "h".into(),
        pid: None,
        capabilities: vec![capability.to_owned()],
        slots: 1,
    };
    let mut turn = scene.store.begin().unwrap();
    turn.save_worker(&session("x"), DAY_MS).unwrap();
    turn.commit().unwrap();
    assert!(reason(&scene, id).unwrap().contains("none of the 1"));
    let mut turn = scene.store.begin().unwrap();
    turn.save_worker(&session("*"), DAY_MS).unwrap();
    turn.commit().unwrap();
    assert_eq!(reason(&scene, id), None);
    assert_eq!(scene.store.workers().unwrap().len(), 2);
    let mut turn = scene.store.begin().unwrap();
    turn.all_workers_offline(DAY_MS).unwrap();
    turn.commit().unwrap();
    assert!(reason(&scene, id).unwrap().contains("no worker"));
    let inspector = Inspector::open(&scene.path()).unwrap();
    let filter = JobFilter {
        status: Some("QUEUED".into()),
        plugin: Some("p".into()),
        limit: 9,
    };
    assert_eq!(inspector.jobs(&filter).unwrap().len(), 1);
    assert_eq!(inspector.counts().unwrap(), [("QUEUED".to_owned(), 2)]);
}

#[test]
fn claims_are_their_workers_users_affair_and_old_workers_are_forgotten() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    let session = |worker_id: &str, user_id: Option<&str>| WorkerSession {
        worker_id: worker_id.to_owned(),
        user_id: user_id.map(str::to_owned),
        hostname: worker_id.to_owned(),
        pid: None,
        capabilities: Vec::new(),
        slots: 1,
    };
    let mut turn = scene.store.begin().unwrap();
    turn.save_worker(&session("w", None), DAY_MS).unwrap();
    turn.save_worker(&session("idle", Some("bob")), DAY_MS)
        .unwrap();
    turn.commit().unwrap();
    assert_eq!(scene.claim(&["p"], 1).jobs.len(), 1);
    assert_eq!(scene.store.claimants().unwrap(), []);
    let mut turn = scene.store.begin().unwrap();
    turn.save_worker(&session("w", Some("ann")), DAY_MS)
        .unwrap();
    turn.commit().unwrap();
    let claimant = Claimant {
        worker_id: "w".into(),
        user_id: "ann".into(),
        lease_until_ms: DAY_MS + 1000,
    };
    assert_eq!(scene.store.claimants().unwrap(), [claimant]);

    // Whoever is here stays, however many come and go.
    let mut turn = scene.store.begin().unwrap();
    for count in 0..crate::limits::WORKER_SESSIONS_MAX + 50 {
        let worker_id = format!("x-{count}");
        turn.save_worker(&session(&worker_id, None), DAY_MS + count)
            .unwrap();
        turn.worker_offline(&worker_id, DAY_MS + count).unwrap();
    }
    turn.worker_offline("w", DAY_MS - 1).unwrap();
    turn.forget_old_workers().unwrap();
    turn.commit().unwrap();
    let known = scene.store.workers().unwrap();
    let kept = crate::limits::WORKER_SESSIONS_MAX * 9 / 10;
    assert_eq!(known.len() as i64, kept);
    let is_known = |id: &str| known.iter().any(|worker| worker.worker_id == id);
    assert!(is_known("idle") && is_known("x-10049") && !is_known("x-0"));
    assert!(is_known("w"), "its job runs");
    let count = "SELECT count(*) FROM cf_worker_node WHERE status = ?1";
    let path = scene.path();
    let nodes = |status: &str| -> i64 {
        let connection = Connection::open(&path).unwrap();
        connection
            .query_row(count, [status], |row| row.get(0))
            .unwrap()
    };
    assert_eq!(nodes("OFFLINE") + nodes("ONLINE"), kept);

    // A worker that comes with another process leaves the one it was.
    let online = nodes("ONLINE");
    for pid in 1..5 {
        let mut turn = scene.store.begin().unwrap();
        let again = WorkerSession {
            pid: Some(pid),
            ..session("idle", None)
        };
        turn.save_worker(&again, DAY_MS).unwrap();
        turn.commit().unwrap();
        assert_eq!(nodes("ONLINE"), online);
    }
}
