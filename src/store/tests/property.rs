//! A seeded property test: with any value in any column, no function fails.
//! `CASPARIAN_SEEDS=10000` runs more seeds.

use super::malformed::two_plugins;
use super::*;
use rusqlite::types::Value;

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

/// With any values in any columns of any tables, several at once, no function fails.
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
                // Constraints refuse some changes.
                if connection.execute(&change, []).is_ok() {
                    changes.push(change);
                }
            }
        }
        let checked = std::panic::catch_unwind(|| exercise(&copy, &held));
        assert!(checked.is_ok(), "seed {seed}: {changes:#?}");
    }
}

/// Calls every function of the store and of the inspector, with a database that may contain any values.
fn exercise(path: &Path, held: &[Attempt]) {
    let mut store = Store::open(path, Open::Existing).unwrap();
    store.changed().unwrap();
    store.check_identity().unwrap();
    store.workers().unwrap();
    let running = store.running().unwrap();
    let waiting = store.queued_plugins(100, DAY_MS).unwrap().names;
    store.next_due_boot_ms(&now(0)).unwrap();
    let mut transaction = store.begin().unwrap();
    transaction.all_workers_offline(DAY_MS).unwrap();
    let file = transaction
        .register_file("/data", "c.csv", 1, 0.0, "c", DAY_MS)
        .unwrap();
    transaction.root_of(Path::new("/data/c.csv")).unwrap();
    transaction.jobs_of_file("p", file.location_id).unwrap();
    transaction
        .enqueue("p", file.version_id, 0, DAY_MS)
        .unwrap();
    transaction.wake_due(&now(1_000_000)).unwrap();
    for plugin in &waiting {
        transaction.plugin_code(plugin).unwrap();
    }
    let claim = ClaimRequest {
        worker_id: "w",
        hostname: "h",
        pid: None,
        plugins: &waiting,
        limit: 10,
        is_idle: true,
        is_old: false,
        lease_until_ms: 1,
    };
    let claimed = transaction.claim(&claim, DAY_MS).unwrap();
    transaction.commit().unwrap();
    let attempts = claimed
        .jobs
        .iter()
        .map(|job| job.attempt)
        .chain(held.iter().copied());
    let attempts: Vec<Attempt> = attempts
        .chain(running.iter().map(|row| row.attempt))
        .collect();
    let held: Vec<_> = attempts.iter().map(|attempt| (*attempt, None)).collect();
    store.not_running(&held).unwrap();
    let mut transaction = store.begin().unwrap();
    for (index, attempt) in attempts.iter().enumerate() {
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
            transaction.complete(&completion, &now(0)).unwrap();
        }
        transaction
            .release(*attempt, cause, Loss::Alone, "lost", 3, &now(0))
            .unwrap();
        transaction
            .requeue(attempt.job_id, file.version_id)
            .unwrap();
    }
    transaction.requeue_running("x", 10, &now(0)).unwrap();
    let worker = WorkerSession {
        worker_id: "w".into(),
        user_id: None,
        hostname: "h".into(),
        pid: None,
        capabilities: Vec::new(),
        slots: 1,
        trouble: None,
        environments: Default::default(),
        routing_id: None,
    };
    transaction.save_worker(&worker, DAY_MS).unwrap();
    transaction
        .touch_workers(&["w".to_owned()], DAY_MS)
        .unwrap();
    transaction.worker_offline("w", DAY_MS).unwrap();
    transaction.forget_old_workers(DAY_MS).unwrap();
    for source in ["class Handler: name = \"p\"", "class Handler: new = 1"] {
        let deploy = Deploy {
            plugin_name: "p",
            version: None,
            source_code: source,
            lockfile_content: "six==1",
            sinks: &[],
        };
        transaction.deploy(&deploy, DAY_MS).unwrap();
        transaction.plugin_code("p").unwrap();
    }
    transaction.park_queued().unwrap();
    transaction.commit().unwrap();
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
