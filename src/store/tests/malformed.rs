//! Values of any type in any column: they cost their own row only.

use super::*;
use rusqlite::types::Value;

/// Fails jobs in a transaction until nothing is claimed; the claims and how many calls it took.
fn claim_all(scene: &mut Scene) -> (Claimed, usize) {
    let mut all = Claimed::default();
    for calls in 1.. {
        let plugins = scene.store.queued_plugins(100, DAY_MS).unwrap();
        let names: Vec<&str> = plugins.iter().map(String::as_str).collect();
        let claimed = scene.claim(&names, 100);
        let is_done = claimed.jobs.is_empty() && !claimed.more;
        all.jobs.extend(claimed.jobs);
        all.unresolved.extend(claimed.unresolved);
        if is_done {
            return (all, calls);
        }
    }
    unreachable!()
}

/// A change of one row of job 1, its file or its plugin's rows; what becomes of job 1 (FAILED,
/// QUEUED = waits, RUNNING = claimed) and what its reason names.
const CASES: &[(&str, &str, &str)] = &[
    (
        "cf_processing_queue SET priority = 'high' WHERE id = 1",
        "FAILED",
        "cf_processing_queue.priority of row 1 is \"high\"",
    ),
    (
        "cf_processing_queue SET priority = x'00' WHERE id = 1",
        "FAILED",
        "priority",
    ),
    (
        "cf_processing_queue SET priority = 1.5 WHERE id = 1",
        "RUNNING",
        "",
    ),
    (
        "cf_processing_queue SET priority = NULL WHERE id = 1",
        "RUNNING",
        "",
    ),
    (
        "cf_processing_queue SET attempt = 'first' WHERE id = 1",
        "FAILED",
        "cf_processing_queue.attempt",
    ),
    (
        "cf_processing_queue SET attempt = 9223372036854775807 WHERE id = 1",
        "FAILED",
        "attempt",
    ),
    (
        "cf_processing_queue SET attempt = -7 WHERE id = 1",
        "FAILED",
        "attempt",
    ),
    (
        "cf_processing_queue SET file_version_id = 'one' WHERE id = 1",
        "FAILED",
        "file_version_id of row 1 is \"one\"",
    ),
    (
        "cf_processing_queue SET file_version_id = 99 WHERE id = 1",
        "FAILED",
        "file version 99 has no file: cf_file_version has no row 99",
    ),
    (
        "cf_processing_queue SET config_overrides = x'7b7d' WHERE id = 1",
        "FAILED",
        "config_overrides",
    ),
    (
        "cf_processing_queue SET config_overrides = CAST(x'7bff' AS TEXT) WHERE id = 1",
        "FAILED",
        "not UTF-8",
    ),
    (
        "cf_processing_queue SET config_overrides = '[1' WHERE id = 1",
        "FAILED",
        "config_overrides",
    ),
    (
        "cf_processing_queue SET config_overrides = printf('%.*c', 2000000, '[') WHERE id = 1",
        "FAILED",
        "2000000",
    ),
    (
        "cf_processing_queue SET config_overrides = '{\"a\": \"ftp://x\"}' WHERE id = 1",
        "FAILED",
        "ftp://x",
    ),
    (
        "cf_processing_queue SET plugin_name = x'70' WHERE id = 1",
        "FAILED",
        "plugin_name of row 1 is a BLOB",
    ),
    (
        "cf_processing_queue SET plugin_name = CAST(x'70ff' AS TEXT) WHERE id = 1",
        "FAILED",
        "plugin_name",
    ),
    (
        "cf_processing_queue SET retry_count = 'x', infra_count = x'', receipt = x'00', published = '{' WHERE id = 1",
        "RUNNING",
        "",
    ),
    (
        "cf_file_version SET location_id = 'here'",
        "FAILED",
        "cf_file_location has no row \"here\"",
    ),
    (
        "cf_file_location SET source_root_id = 77",
        "FAILED",
        "cf_source_root has no row 77",
    ),
    (
        "cf_file_location SET rel_path = x'ff'",
        "FAILED",
        "cf_file_location.rel_path of row 1",
    ),
    (
        "cf_source_root SET path = CAST(x'2fff' AS TEXT)",
        "FAILED",
        "cf_source_root.path of row 1",
    ),
    (
        "cf_plugin_manifest SET source_code = x'00' WHERE plugin_name = 'p'",
        "QUEUED",
        "cf_plugin_manifest.source_code",
    ),
    (
        "cf_plugin_manifest SET source_code = CAST(x'ff' AS TEXT) WHERE plugin_name = 'p'",
        "QUEUED",
        "not UTF-8",
    ),
    (
        "cf_plugin_manifest SET source_code = printf('%.*c', 9000000, 'x') WHERE plugin_name = 'p'",
        "QUEUED",
        "at most",
    ),
    (
        "cf_plugin_manifest SET env_hash = 'nowhere' WHERE plugin_name = 'p'",
        "QUEUED",
        "cf_plugin_environment",
    ),
    (
        "cf_plugin_manifest SET artifact_hash = x'00' WHERE plugin_name = 'p'",
        "QUEUED",
        "artifact_hash",
    ),
    (
        "cf_plugin_manifest SET version = x'00', deploy_order = 'last' WHERE plugin_name = 'p'",
        "RUNNING",
        "",
    ),
    (
        "cf_plugin_manifest SET status = 7 WHERE plugin_name = 'p'",
        "QUEUED",
        "not deployed",
    ),
    (
        "cf_plugin_environment SET lockfile_content = x'00'",
        "QUEUED",
        "lockfile_content",
    ),
    (
        "cf_topic_config SET uri = 'nonsense' WHERE plugin_name = 'p'",
        "QUEUED",
        "row 1 of cf_topic_config",
    ),
    (
        "cf_topic_config SET uri = x'00' WHERE plugin_name = 'p'",
        "QUEUED",
        "cf_topic_config.uri",
    ),
    (
        "cf_topic_config SET mode = 3.5 WHERE plugin_name = 'p'",
        "QUEUED",
        "3.5",
    ),
    (
        "cf_topic_config SET schema_json = x'00' WHERE plugin_name = 'p'",
        "QUEUED",
        "schema_json",
    ),
    (
        "cf_plugin_config SET retries = 'x', plugin_name = x'00' WHERE plugin_name = 'p'",
        "RUNNING",
        "",
    ),
    (
        "cf_worker_session SET capabilities = x'ff', slots = 'x', pid = 'y', last_seen_ms = 'z', hostname = x'00', user_id = x'00'",
        "RUNNING",
        "",
    ),
];

/// Plugin p with an environment and a sink, plugin q, and a job of each over a file of its own.
fn two_plugins() -> Scene {
    let mut scene = Scene::new();
    let mut turn = scene.store.begin().unwrap();
    let sinks = [ManifestSink {
        topic: "t".into(),
        uri: "parquet://t/".into(),
        mode: None,
    }];
    for (plugin, lockfile, sinks) in [("p", "six==1", &sinks[..]), ("q", "", &[])] {
        let source = format!("class Handler: name = {plugin:?}");
        let deploy = Deploy {
            plugin_name: plugin,
            version: None,
            source_code: &source,
            lockfile_content: lockfile,
            sinks,
        };
        turn.deploy(&deploy, DAY_MS).unwrap();
    }
    let worker = WorkerSession {
        worker_id: "w".into(),
        user_id: None,
        hostname: "h".into(),
        pid: Some(1),
        capabilities: vec!["*".into()],
        slots: 1,
        trouble: None,
    };
    turn.save_worker(&worker, DAY_MS).unwrap();
    let first = turn
        .register_file("/data", "a.csv", 1, 0.0, "a", DAY_MS)
        .unwrap();
    turn.enqueue("p", first.version_id, 0, DAY_MS).unwrap();
    turn.commit().unwrap();
    scene
}

#[test]
fn a_malformed_row_fails_or_waits_alone_with_a_reason_that_names_it() {
    for (change, status, names) in CASES {
        let mut scene = two_plugins();
        scene.sql(&format!("UPDATE {change}"));
        // The other plugin's job over another file, behind it in the queue.
        let mut turn = scene.store.begin().unwrap();
        let other = turn
            .register_file("/other", "b.csv", 1, 0.0, "b", DAY_MS)
            .unwrap();
        let healthy = turn.enqueue("q", other.version_id, -1, DAY_MS).unwrap();
        turn.commit().unwrap();
        let (claimed, calls) = claim_all(&mut scene);
        assert!(ids(&claimed).contains(&healthy), "{change}");
        assert!(calls <= 3, "{change}: {calls}");
        assert_eq!(
            scene.status(1),
            *status,
            "{change}: {:?}",
            claimed.unresolved
        );
        let inspector = Inspector::open(&scene.path()).unwrap();
        assert_eq!(
            inspector
                .jobs(&JobFilter {
                    limit: 9,
                    ..JobFilter::default()
                })
                .unwrap()
                .len(),
            2
        );
        assert_eq!(inspector.workers().unwrap().len(), 1);
        assert_eq!(scene.store.workers().unwrap().len(), 1);
        assert_eq!(
            inspector
                .counts()
                .unwrap()
                .iter()
                .map(|(_, count)| count)
                .sum::<i64>(),
            2
        );
        let detail = inspector.job(1).unwrap().unwrap();
        let reason = match *status {
            "FAILED" => detail.row.error_message,
            "QUEUED" => detail.waiting_for,
            _ => None,
        };
        let reason = reason.unwrap_or_default();
        assert!(reason.contains(names), "{change}: {reason}");
        assert!(
            !reason.contains('\n') && reason.len() < 400,
            "{change}: {reason}"
        );
        let running = scene.store.running().unwrap();
        assert_eq!(running.len(), if *status == "RUNNING" { 2 } else { 1 });
        for running in running {
            assert_eq!(scene.release(running.attempt, 0), Ended::Queued, "{change}");
        }
    }
}

#[test]
fn rows_that_cannot_be_used_do_not_stall_those_behind_them_and_their_work_is_bounded() {
    let mut scene = Scene::new();
    let good = scene.enqueue("p", 0);
    scene.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) \
         INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, priority) \
         SELECT 999, 'p', 'QUEUED', 5 FROM n",
    );
    let max = limits::UNUSABLE_ROWS_PER_TRANSACTION;
    for (unresolved, more, jobs) in [
        (max, true, vec![]),
        (max, true, vec![]),
        (500, false, vec![good]),
    ] {
        let claimed = scene.claim(&["p"], 2);
        assert_eq!(claimed.unresolved.len(), unresolved);
        assert_eq!((claimed.more, ids(&claimed)), (more, jobs));
    }
    // So is that of rows that belong to no plugin.
    scene.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500) \
         INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
         SELECT 1, CASE i % 2 WHEN 0 THEN x'00' ELSE CAST(x'ff' AS TEXT) END, 'QUEUED' FROM n",
    );
    let queued = "SELECT count(*) FROM cf_processing_queue WHERE status = 'QUEUED'";
    for want in [500, 0] {
        assert_eq!(
            scene.store.queued_plugins(9, DAY_MS).unwrap(),
            Vec::<String>::new()
        );
        assert_eq!(scene.text(queued), format!("Integer({want})"));
    }
}

#[test]
fn rows_that_a_trigger_of_another_program_protects_are_passed_over() {
    let mut scene = Scene::new();
    let first = scene.enqueue("p", 5);
    let bad = scene.enqueue("p", 4);
    let good = scene.enqueue("p", 0);
    scene.sql(&format!(
        "UPDATE cf_processing_queue SET file_version_id = 99 WHERE id = {bad}; \
         CREATE TRIGGER theirs BEFORE UPDATE ON cf_processing_queue WHEN OLD.id IN ({first}, {bad}) \
         BEGIN SELECT RAISE(ABORT, 'no'); END"
    ));
    let claimed = scene.claim(&["p"], 9);
    assert_eq!(ids(&claimed), [good]);
    assert_eq!(claimed.unresolved.len(), 2);
    assert_eq!(scene.status(first), "QUEUED");
    // The end of a job that is protected changes nothing.
    scene.sql(&format!(
        "DROP TRIGGER theirs; CREATE TRIGGER theirs BEFORE UPDATE ON cf_processing_queue \
         WHEN OLD.id = {good} BEGIN SELECT RAISE(ABORT, 'no'); END"
    ));
    let attempt = claimed.jobs[0].attempt;
    assert_eq!(scene.report("w", attempt, &success(&[]), 0), Ended::Stale);
    assert_eq!(scene.release(attempt, 0), Ended::Stale);
    let mut turn = scene.store.begin().unwrap();
    assert_eq!(turn.release_all("x", 9, &now(0)).unwrap(), 0);
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    fn of<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }
}

const TABLES: &[&str] = &[
    "cf_processing_queue",
    "cf_processing_queue",
    "cf_processing_queue",
    "cf_plugin_manifest",
    "cf_plugin_environment",
    "cf_plugin_config",
    "cf_topic_config",
    "cf_source_root",
    "cf_file_location",
    "cf_file_version",
    "cf_file_hash_registry",
    "cf_worker_session",
    "cf_worker_node",
    "cf_job_attempt",
    "cf_casparian",
];

const VALUES: &[&str] = &[
    "NULL",
    "0",
    "1",
    "-1",
    "3",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "1.5",
    "9e999",
    "-1e300",
    "''",
    "'high'",
    "'1'",
    "'QUEUED'",
    "'RUNNING'",
    "'PENDING'",
    "'p'",
    "'/'",
    "'2025-12-20 12:00:00'",
    "'2025-12-20T12:00+00:99999999999999999999'",
    "'[]'",
    "'{}'",
    "'{\"artifacts\": 7}'",
    "'{\"output\": []}'",
    "printf('%.*c', 5000, '[')",
    "printf('%.*c', 1100000, 'x')",
    "char(0)",
    "'a' || char(10, 0, 27) || 'b'",
    "CAST(x'ff' AS TEXT)",
    "CAST(x'c328' AS TEXT)",
    "x''",
    "x'00ff'",
    "zeroblob(100000)",
];

/// Any value in any column of any table, several at once: nothing fails for it.
#[test]
fn nothing_fails_for_reasons_of_data() {
    let template = two_plugins();
    let mut scene = template;
    for plugin in ["p", "q", "p", "q", "p"] {
        scene.enqueue(plugin, 1);
    }
    let held: Vec<Attempt> = scene
        .claim(&["p", "q"], 4)
        .jobs
        .iter()
        .map(|job| job.attempt)
        .collect();
    scene.report("w", held[0], &success(&["file:///a"]), 0);
    scene.report("w", held[1], &failure(Some(Cause::Worker), "disk"), 0);
    scene.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let path = scene.path();
    let columns: Vec<Vec<String>> = TABLES
        .iter()
        .map(|table| {
            let connection = Connection::open(&path).unwrap();
            let mut statement = connection
                .prepare(&format!("PRAGMA table_info({table})"))
                .unwrap();
            let names = statement.query_map([], |row| row.get(1)).unwrap();
            names.map(Result::unwrap).collect()
        })
        .collect();
    drop(scene.store);
    let seeds = std::env::var("CASPARIAN_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(150);
    for seed in 0..seeds {
        let mut random = Random(seed);
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("q.db");
        std::fs::copy(&path, &copy).unwrap();
        let mut changes = Vec::new();
        {
            let connection = Connection::open(&copy).unwrap();
            connection
                .pragma_update(None, "foreign_keys", false)
                .unwrap();
            connection
                .pragma_update(None, "synchronous", "OFF")
                .unwrap();
            for _ in 0..1 + random.below(8) {
                let table = random.below(TABLES.len());
                let (column, value) = (random.of(&columns[table]).clone(), random.of(VALUES));
                let (key, name) = (&columns[table][0], TABLES[table]);
                let (count, first) = (1 + random.below(4), random.below(6));
                let change = format!(
                    "UPDATE {name} SET {column} = {value} WHERE {key} IN \
                     (SELECT {key} FROM {name} ORDER BY {key} LIMIT {count} OFFSET {first})"
                );
                // Constraints refuse some.
                if connection.execute(&change, []).is_ok() {
                    changes.push(change);
                }
            }
        }
        let checked = std::panic::catch_unwind(|| exercise(&copy, &held));
        assert!(checked.is_ok(), "seed {seed}: {changes:#?}");
    }
}

/// Every function of the store and of the inspector, over a database that may hold anything.
fn exercise(path: &Path, held: &[Attempt]) {
    let mut store = Store::open(path, Open::Existing).unwrap();
    store.changed().unwrap();
    store.check_identity().unwrap();
    store.workers().unwrap();
    let running = store.running().unwrap();
    let waiting = store.queued_plugins(100, DAY_MS).unwrap();
    store.next_due_boot_ms(&now(0)).unwrap();
    let mut turn = store.begin().unwrap();
    turn.all_workers_offline(DAY_MS).unwrap();
    let file = turn
        .register_file("/data", "c.csv", 1, 0.0, "c", DAY_MS)
        .unwrap();
    turn.root_of(Path::new("/data/c.csv")).unwrap();
    turn.last_job("p", file.location_id).unwrap();
    turn.enqueue("p", file.version_id, 0, DAY_MS).unwrap();
    turn.wake_due(&now(1_000_000)).unwrap();
    for plugin in &waiting {
        turn.plugin_code(plugin).unwrap();
    }
    let claim = Claim {
        worker_id: "w",
        hostname: "h",
        pid: None,
        plugins: &waiting,
        limit: 10,
        lease_until_ms: 1,
    };
    let claimed = turn.claim(&claim, DAY_MS).unwrap();
    turn.commit().unwrap();
    let attempts = claimed
        .jobs
        .iter()
        .map(|job| job.attempt)
        .chain(held.iter().copied());
    let attempts: Vec<Attempt> = attempts
        .chain(running.iter().map(|row| row.attempt))
        .collect();
    let mut turn = store.begin().unwrap();
    for (index, attempt) in attempts.iter().enumerate() {
        turn.is_running(*attempt, "w").unwrap();
        turn.running_attempt(attempt.job_id, "w").unwrap();
        let causes = [
            Cause::Plugin,
            Cause::Environment,
            Cause::Worker,
            Cause::Lost,
        ];
        let cause = causes[index % causes.len()];
        let receipt = match index % 3 {
            0 => success(&["file:///b"]),
            _ => failure(Some(cause), "no"),
        };
        let completion = Completion {
            attempt: *attempt,
            worker_id: "w",
            receipt: &receipt,
            retries_max: 3,
        };
        if index % 2 == 0 {
            turn.complete(&completion, &now(0)).unwrap();
        }
        turn.release(*attempt, cause, "lost", 3, &now(0)).unwrap();
        turn.requeue(attempt.job_id, file.version_id).unwrap();
    }
    turn.running_of("w").unwrap();
    turn.release_all("x", 10, &now(0)).unwrap();
    let worker = WorkerSession {
        worker_id: "w".into(),
        user_id: None,
        hostname: "h".into(),
        pid: None,
        capabilities: Vec::new(),
        slots: 1,
        trouble: None,
    };
    turn.save_worker(&worker, DAY_MS).unwrap();
    turn.touch_workers(&["w".to_owned()], DAY_MS).unwrap();
    turn.set_trouble("w", Some("x")).unwrap();
    turn.worker_offline("w", DAY_MS).unwrap();
    turn.forget_old_workers().unwrap();
    for source in ["class Handler: name = \"p\"", "class Handler: new = 1"] {
        let deploy = Deploy {
            plugin_name: "p",
            version: None,
            source_code: source,
            lockfile_content: "six==1",
            sinks: &[],
        };
        turn.deploy(&deploy, DAY_MS).unwrap();
        turn.plugin_code("p").unwrap();
    }
    turn.park_queued().unwrap();
    turn.commit().unwrap();
    let inspector = Inspector::open(path).unwrap();
    let filter = JobFilter {
        limit: 100,
        ..JobFilter::default()
    };
    for row in inspector.jobs(&filter).unwrap() {
        let id = row.attempt.job_id;
        inspector.job(id).unwrap().unwrap();
        inspector.waiting_for(&row.plugin_name).unwrap();
    }
    inspector.workers().unwrap();
    inspector.counts().unwrap();
    store.new_identity().unwrap();
    let deleted = store
        .connection
        .execute("DELETE FROM cf_processing_queue", []);
    deleted.unwrap();
    let _: Value = store
        .connection
        .query_row("SELECT count(*) FROM cf_job_attempt", [], |row| row.get(0))
        .unwrap();
}
