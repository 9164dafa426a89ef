//! Values of any type in any column affect only their own row.

use super::*;

/// Claims until nothing is left to end as FAILED. Returns the claims together, and the number of calls.
fn claim_all(scene: &mut Scene) -> (Claimed, usize) {
    let mut all = Claimed::default();
    for calls in 1.. {
        let plugins = scene.store.queued_plugins(100, DAY_MS).unwrap().names;
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

/// (change of one row of job 1, its file or its plugin; resulting status of job 1: FAILED, QUEUED = waits,
/// RUNNING = claimed; a text in its reason).
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
        "cf_processing_queue SET published = printf('[\"%.*c\"]', 9000000, 'x') WHERE id = 1",
        "FAILED",
        "cf_processing_queue.published of row 1",
    ),
    (
        "cf_processing_queue SET receipt = printf('{\"%.*c\": 1}', 9000000, 'x') WHERE id = 1",
        "FAILED",
        "cf_processing_queue.receipt of row 1",
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
        "cf_plugin_environment SET hash = 'h1'; \
         UPDATE cf_plugin_manifest SET env_hash = 'h1' WHERE plugin_name = 'p'",
        "QUEUED",
        "cf_plugin_manifest.env_hash of row 2 is \"h1\", expected the SHA-256",
    ),
    (
        "cf_plugin_environment SET hash = '../../x'; \
         UPDATE cf_plugin_manifest SET env_hash = '../../x' WHERE plugin_name = 'p'",
        "QUEUED",
        "cf_plugin_manifest.env_hash of row 2 is \"../../x\"",
    ),
    (
        "cf_plugin_environment SET hash = upper(hash); \
         UPDATE cf_plugin_manifest SET env_hash = upper(env_hash) WHERE plugin_name = 'p'",
        "QUEUED",
        "cf_plugin_manifest.env_hash",
    ),
    (
        "cf_plugin_environment SET lockfile_content = lockfile_content || '2'",
        "QUEUED",
        "cf_plugin_manifest.env_hash",
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

/// Plugin p with an environment and a sink, plugin q, and a job of each with a file of its own.
pub(super) fn two_plugins() -> Scene {
    let mut scene = Scene::new();
    let mut transaction = scene.store.begin().unwrap();
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
        transaction.deploy(&deploy, DAY_MS).unwrap();
    }
    let worker = WorkerSession {
        worker_id: "w".into(),
        user_id: None,
        hostname: "h".into(),
        pid: Some(1),
        capabilities: vec!["*".into()],
        slots: 1,
        trouble: None,
        environments: Default::default(),
        routing_id: None,
    };
    transaction.save_worker(&worker, DAY_MS).unwrap();
    let first = transaction
        .register_file("/data", "a.csv", 1, 0.0, "a", DAY_MS)
        .unwrap();
    transaction
        .enqueue("p", first.version_id, 0, DAY_MS)
        .unwrap();
    transaction.commit().unwrap();
    scene
}

/// A claim of at most two jobs.
fn claim_of_two(plugins: &[String]) -> ClaimRequest<'_> {
    ClaimRequest {
        is_old: false,
        worker_id: "w",
        hostname: "host",
        pid: None,
        plugins,
        limit: 2,
        is_idle: true,
        lease_until_ms: 0,
    }
}

#[test]
fn a_malformed_row_fails_or_waits_alone_with_a_reason_that_names_it() {
    for (change, status, names) in CASES {
        let mut scene = two_plugins();
        scene.sql(&format!("UPDATE {change}"));
        // The other plugin's job with another file, behind it in the queue.
        let mut transaction = scene.store.begin().unwrap();
        let other = transaction
            .register_file("/other", "b.csv", 1, 0.0, "b", DAY_MS)
            .unwrap();
        let healthy = transaction
            .enqueue("q", other.version_id, -1, DAY_MS)
            .unwrap();
        transaction.commit().unwrap();
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
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600) \
         INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, priority) \
         SELECT 999, 'p', 'QUEUED', 5 FROM n",
    );
    let max = limits::UNUSABLE_ROWS_PER_TRANSACTION;
    for (unresolved, more, jobs) in [
        (max, true, vec![]),
        (max, true, vec![]),
        (100, false, vec![good]),
    ] {
        let claimed = scene.claim(&["p"], 2);
        assert_eq!(claimed.unresolved.len(), unresolved);
        assert_eq!((claimed.more, ids(&claimed)), (more, jobs));
    }
    // The work for rows that belong to no plugin is bounded, too.
    scene.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400) \
         INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
         SELECT 1, CASE i % 2 WHEN 0 THEN x'00' ELSE CAST(x'ff' AS TEXT) END, 'QUEUED' FROM n",
    );
    let queued = "SELECT count(*) FROM cf_processing_queue WHERE status = 'QUEUED'";
    for want in [150, 0] {
        let found = scene.store.queued_plugins(9, DAY_MS).unwrap();
        assert_eq!((found.names.len(), found.is_end), (0, want == 0));
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
    // Ending a protected job changes nothing.
    scene.sql(&format!(
        "DROP TRIGGER theirs; CREATE TRIGGER theirs BEFORE UPDATE ON cf_processing_queue \
         WHEN OLD.id = {good} BEGIN SELECT RAISE(ABORT, 'no'); END"
    ));
    let attempt = claimed.jobs[0].attempt;
    assert_eq!(scene.report("w", attempt, &success(&[]), 0), Ended::Refused);
    assert_eq!(scene.release(attempt, 0), Ended::Refused);
    let reason = scene.inspect(good).waiting_for.unwrap();
    assert!(reason.contains("(theirs) refuses it"), "{reason}");
    let mut transaction = scene.store.begin().unwrap();
    assert_eq!(transaction.requeue_running("x", 9, &now(0)).unwrap(), 0);
}

#[test]
fn running_rows_with_an_attempt_of_any_type_can_be_released_and_ids_must_be_positive() {
    for attempt in ["'x'", "-7", "1e300", "x'00'"] {
        let mut scene = Scene::new();
        let id = scene.enqueue("p", 0);
        scene.claim(&["p"], 1);
        scene.sql(&format!(
            "UPDATE cf_processing_queue SET attempt = {attempt}"
        ));
        let running = scene.store.running().unwrap();
        assert_eq!(running[0].attempt, Attempt::new(id, 0));
        assert_eq!(
            scene.release(running[0].attempt, 0),
            Ended::Queued,
            "{attempt}"
        );
        // The history has the attempt that ran.
        let again = scene.claim(&["p"], 1);
        assert_eq!(again.jobs[0].attempt, Attempt::new(id, 2), "{attempt}");
    }
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    scene.sql(
        "INSERT INTO cf_processing_queue (id, file_version_id, plugin_name, status) \
         VALUES (-1, 1, 'p', 'QUEUED'), (0, 1, 'p', 'QUEUED')",
    );
    // A plugin that is named twice counts once.
    let claimed = scene.claim(&["p", "p"], 9);
    assert_eq!(ids(&claimed), [1]);
    assert_eq!(claimed.unresolved.len(), 2);
    assert_eq!(scene.status(0), "FAILED");
}

#[test]
fn a_protected_row_does_not_keep_others_from_their_retry() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        scene.enqueue("p", 0);
    }
    for job in scene.claim(&["p"], 3).jobs {
        scene.report("w", job.attempt, &failure(Some(Cause::Worker), "disk"), 0);
    }
    scene.sql(
        "CREATE TRIGGER theirs BEFORE UPDATE ON cf_processing_queue WHEN OLD.id = 2 \
         BEGIN SELECT RAISE(ABORT, 'no'); END; \
         CREATE TRIGGER undone AFTER UPDATE OF status ON cf_processing_queue WHEN OLD.id = 1 \
         BEGIN UPDATE cf_processing_queue SET status = OLD.status WHERE id = 1; END",
    );
    assert_eq!(scene.wake(&now(60_000)), 1);
    let statuses = [1, 2, 3].map(|id| scene.status(id));
    assert_eq!(statuses, ["PENDING", "PENDING", "QUEUED"]);
}

/// A text in UTF-16 may contain half of a surrogate pair, which UTF-8 cannot represent.
#[test]
fn a_name_that_is_not_utf_8_does_not_stall_those_behind_it() {
    for (encoding, halves) in [
        ("UTF-16le", ["00d8", "00d86100", "ffdf", "61"]),
        ("UTF-16be", ["d800", "d8000061", "dfff", "61"]),
        ("UTF-8", ["eda080", "eda08061", "edbfbf", "00ff"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q.db");
        let other = Connection::open(&path).unwrap();
        let empty = format!("PRAGMA encoding = '{encoding}'; CREATE TABLE t (x); DROP TABLE t");
        other.execute_batch(&empty).unwrap();
        drop(other);
        let store = Store::open(&path, Open::Existing).unwrap();
        let mut scene = Scene { dir, store };
        let names = ["\u{1}", "p", "z", "\u{fffd}", "\u{ffff}"];
        for name in names {
            scene.deploy(name, &format!("class Handler: name = {name:?}"));
            scene.enqueue(name, 0);
        }
        for half in halves {
            scene.sql(&format!(
                "INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
                 VALUES (1, CAST(x'{half}' AS TEXT), 'QUEUED')"
            ));
        }
        for limit in [100, 1] {
            let mut found = Vec::new();
            for calls in 0.. {
                let next = scene.store.queued_plugins(limit, DAY_MS).unwrap();
                found.extend(next.names);
                assert!(calls < 20, "{encoding}: {found:?}");
                if next.is_end {
                    break;
                }
            }
            for name in names {
                let count = found.iter().filter(|found| *found == name).count();
                assert_eq!(count, 1, "{encoding}: {name:?} in {found:?}");
            }
        }
        let (claimed, _) = claim_all(&mut scene);
        assert_eq!(claimed.jobs.len(), names.len(), "{encoding}");
    }
}

/// Code of other programs in the schema that fails when row 1 is changed.
const CODE: [&str; 10] = [
    "TRIGGER t BEFORE UPDATE ON {q} WHEN OLD.id = 1 BEGIN SELECT RAISE(ABORT, 'no'); END",
    "TRIGGER t AFTER UPDATE ON {q} WHEN OLD.id = 1 BEGIN SELECT RAISE(FAIL, 'no'); END",
    "TRIGGER t AFTER UPDATE ON {q} WHEN OLD.id = 1 BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
    "TRIGGER t AFTER UPDATE ON {q} WHEN OLD.id = 1 BEGIN SELECT abs(-9223372036854775808); END",
    "TRIGGER t AFTER UPDATE ON {q} WHEN OLD.id = 1 BEGIN SELECT json_extract('hello', '$.x'); END",
    "TRIGGER t AFTER UPDATE ON {q} WHEN OLD.id = 1 BEGIN SELECT length(zeroblob(2000000000)); END",
    "TRIGGER t AFTER UPDATE ON {q} WHEN OLD.id = 1 BEGIN INSERT INTO cf_job_attempt (job_id, attempt) VALUES (1 / 0, 1); END",
    "TRIGGER t AFTER UPDATE ON {q} WHEN OLD.id = 1 BEGIN INSERT INTO cf_source_root (id, path) VALUES ('x', 'y'); END",
    "INDEX t ON {q} (abs(iif(status = 'QUEUED', 1, -9223372036854775808))) WHERE id = 1",
    "UNIQUE INDEX t ON {q} (status) WHERE id = 1 OR id = 3 AND status <> 'QUEUED'",
];

#[test]
fn code_in_the_schema_that_fails_costs_the_row_that_it_fails_for() {
    for code in CODE {
        let mut scene = Scene::new();
        for _ in 0..3 {
            scene.enqueue("p", 0);
        }
        // The unique index conflicts with row 3, which has already been changed.
        if code.starts_with("UNIQUE") {
            scene.sql("UPDATE cf_processing_queue SET status = 'RUNNING' WHERE id = 3");
        }
        scene.sql(&format!(
            "CREATE {}",
            code.replace("{q}", "cf_processing_queue")
        ));
        let mut jobs = Vec::new();
        for _ in 0..3 {
            jobs.extend(ids(&scene.try_claim("p")));
        }
        assert!(jobs.contains(&2) && !jobs.contains(&1), "{code}: {jobs:?}");
        let status = scene.status(1);
        assert!(["QUEUED", "FAILED"].contains(&status.as_str()), "{code}");
        let attempt = scene.text("SELECT attempt FROM cf_processing_queue WHERE id = 1");
        assert_eq!(attempt, "Integer(0)", "{code}: it was changed");
    }
}

/// What code in the schema does with the row of job 1 immediately after its claim.
const UNDONE: [&str; 6] = [
    "UPDATE cf_processing_queue SET status = 'QUEUED' WHERE id = 1",
    "UPDATE cf_processing_queue SET attempt = attempt + 5 WHERE id = 1",
    "UPDATE cf_processing_queue SET worker_id = 'none' WHERE id = 1",
    "UPDATE cf_processing_queue SET attempt_key = 1 WHERE id = 1",
    "UPDATE cf_processing_queue SET file_version_id = 77 WHERE id = 1",
    "DELETE FROM cf_processing_queue WHERE id = 1",
];

#[test]
fn a_claim_that_the_schema_undoes_costs_its_row_alone() {
    for code in UNDONE {
        for (when, status) in [("NEW.status = 'RUNNING'", "FAILED"), ("true", "QUEUED")] {
            let mut scene = Scene::new();
            for _ in 0..3 {
                scene.enqueue("p", 0);
            }
            scene.sql(&format!(
                "CREATE TRIGGER t AFTER UPDATE OF status ON cf_processing_queue \
                 WHEN NEW.id = 1 AND NEW.status <> 'QUEUED' AND {when} BEGIN {code}; END"
            ));
            let claimed = scene.claim(&["p"], 9);
            assert_eq!(ids(&claimed), [2, 3], "{code}");
            // Code that does not undo the end as FAILED does not prevent it.
            let undoes_the_end = code.contains("status") || code.contains("DELETE");
            let status = if undoes_the_end { status } else { "FAILED" };
            let [unresolved] = claimed.unresolved.as_slice() else {
                panic!("{code}: {claimed:?}");
            };
            assert_eq!(unresolved.is_ended, status == "FAILED", "{code}");
            assert_eq!(scene.status(1), status, "{code}");
            if when.contains("RUNNING") {
                let reason = scene.inspect(1).row.error_message.unwrap();
                assert!(reason.contains("undoes the claim"), "{code}: {reason}");
                let attempts = scene.inspect(1).attempts;
                assert!(attempts.is_empty(), "{code}: {attempts:?}");
            }
            // It is not tried again at once.
            let again = scene.claim(&["p"], 9);
            assert!(again.jobs.is_empty() && again.unresolved.is_empty());
        }
    }
}

#[test]
fn code_in_the_schema_that_fails_keeps_no_other_end_and_no_worker_from_the_database() {
    for code in CODE {
        let mut scene = Scene::new();
        for _ in 0..3 {
            scene.enqueue("p", 0);
        }
        let claimed = scene.claim(&["p"], 3);
        if code.starts_with("UNIQUE") {
            continue;
        }
        let code = code.replace("'QUEUED'", "'RUNNING'");
        scene.sql(&format!(
            "CREATE {}; CREATE TRIGGER w BEFORE INSERT ON cf_worker_session \
             WHEN NEW.worker_id = 'w1' BEGIN SELECT {}; END",
            code.replace("{q}", "cf_processing_queue"),
            match code.contains("ROLLBACK") {
                true => "RAISE(ROLLBACK, 'no')",
                false => "abs(-9223372036854775808)",
            }
        ));
        let mut tries = 0;
        let ends = loop {
            tries += 1;
            match scene.try_end(&claimed) {
                Err(Error::RolledBack { .. }) if tries < 9 => {}
                ends => break ends.unwrap(),
            }
        };
        let want = [Ended::Refused, Ended::Completed, Ended::Completed];
        assert_eq!(ends, want, "{code}");
        assert_eq!(scene.status(1), "RUNNING", "{code}");
        let workers = scene.store.workers().unwrap();
        let workers: Vec<&str> = workers.iter().map(|one| one.worker_id.as_str()).collect();
        assert_eq!(workers, ["w2"], "{code}");
    }
}

impl Scene {
    /// Repeats a claim until no row rolls it back.
    fn try_claim(&mut self, plugin: &str) -> Claimed {
        for _ in 0..9 {
            let plugins = [plugin.to_owned()];
            let claim = ClaimRequest {
                worker_id: "w",
                hostname: "host",
                pid: None,
                plugins: &plugins,
                limit: 9,
                is_idle: true,
                is_old: false,
                lease_until_ms: 0,
            };
            let mut transaction = self.store.begin().unwrap();
            match transaction.claim(&claim, DAY_MS) {
                Err(Error::RolledBack { .. }) => continue,
                claimed => {
                    transaction.commit().unwrap();
                    return claimed.unwrap();
                }
            }
        }
        panic!("it is rolled back again and again");
    }

    /// Two workers connect, and all claimed jobs are completed.
    fn try_end(&mut self, claimed: &Claimed) -> Result<Vec<Ended>, Error> {
        let mut transaction = self.store.begin()?;
        for worker_id in ["w1", "w2"] {
            let worker = WorkerSession {
                worker_id: worker_id.into(),
                user_id: None,
                hostname: worker_id.into(),
                pid: Some(1),
                capabilities: vec![],
                slots: 1,
                trouble: None,
                environments: Default::default(),
                routing_id: None,
            };
            transaction.save_worker(&worker, DAY_MS)?;
        }
        let receipt = success(&[]);
        let mut ends = Vec::new();
        for job in &claimed.jobs {
            let completion = Completion {
                attempt: job.attempt,
                worker_id: "w",
                receipt: &receipt,
                retries_max: 3,
            };
            ends.push(transaction.complete(&completion, &now(0))?);
        }
        transaction.commit()?;
        Ok(ends)
    }
}

#[test]
fn rows_that_cannot_even_be_ended_do_not_stall_those_behind_them() {
    let mut scene = Scene::new();
    let good = scene.enqueue("p", 0);
    scene.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600) \
         INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, priority) \
         SELECT 1, 'p', 'QUEUED', 5 FROM n; \
         CREATE TRIGGER theirs BEFORE UPDATE ON cf_processing_queue WHEN OLD.priority = 5 \
         BEGIN SELECT RAISE(ABORT, 'no'); END",
    );
    let claimed: Vec<_> = (0..4).map(|_| scene.claim(&["p"], 2)).collect();
    let jobs: Vec<i64> = claimed.iter().flat_map(ids).collect();
    assert_eq!(jobs, [good]);
    let mut passed_over = claimed.iter().flat_map(|claimed| &claimed.unresolved);
    assert!(passed_over.all(|one| !one.is_ended), "they are QUEUED");
    scene.sql(
        "INSERT INTO cf_worker_session (worker_id, hostname, status, capabilities, last_seen_ms, slots) \
         VALUES ('w', 'host', 'ONLINE', '[\"*\"]', 0, 1)",
    );
    let waits = scene.inspect(good + 1).waiting_for;
    assert!(waits.is_some_and(|reason| reason.contains("theirs")));
    // They are tried again on request.
    scene.sql("DROP TRIGGER theirs");
    assert_eq!(ids(&scene.claim(&["p"], 2)), [0i64; 0]);
    assert!(scene.store.retry_refused().any);
    assert_eq!(scene.claim(&["p"], 2).jobs.len(), 2);
}

/// Claims until one gets a job. Returns the number of claims, and SQLite's steps for reading the ranges.
fn claims_until_a_job(scene: &mut Scene, code: &str, rows: usize) -> (usize, i32) {
    let good = scene.enqueue("p", -5);
    scene.sql(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
         INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, priority) \
         SELECT 1, 'p', 'QUEUED', CASE i % 4 WHEN 0 THEN 'x' WHEN 1 THEN 7 ELSE i % 2 END FROM n; \
         CREATE TRIGGER theirs AFTER UPDATE ON cf_processing_queue WHEN OLD.id <> {good} \
         BEGIN SELECT {code}; END"
    ));
    let mut claims = 0;
    let jobs = loop {
        claims += 1;
        assert!(claims < 2 * rows + 9, "{code}");
        let plugins = ["p".to_owned()];
        let claim = claim_of_two(&plugins);
        let mut transaction = scene.store.begin().unwrap();
        match transaction.claim(&claim, DAY_MS) {
            Err(Error::RolledBack { .. }) => continue,
            claimed => transaction.commit().map(|()| claimed).unwrap().unwrap(),
        };
        if scene.status(good) == "RUNNING" {
            break claims;
        }
    };
    let steps = [
        claim::CLAIM_QUERY,
        claim::CLAIM_FROM_QUERY,
        claim::CLAIM_BELOW_QUERY,
    ]
    .map(|sql| {
        let statement = scene.store.connection.prepare_cached(sql).unwrap();
        statement.get_status(rusqlite::StatementStatus::VmStep)
    });
    (jobs, steps.iter().sum())
}

#[test]
fn rows_that_are_given_up_are_not_read_again_by_each_claim() {
    for code in [
        "RAISE(ABORT, 'no')",
        "RAISE(ROLLBACK, 'no')",
        "abs(-9223372036854775808)",
    ] {
        let [(_, few), (claims, many)] =
            [500, 2000].map(|rows| claims_until_a_job(&mut Scene::new(), code, rows));
        assert!(many < 6 * few, "{code}: {few} steps, then {many}");
        let max = limits::UNUSABLE_ROWS_PER_TRANSACTION;
        assert!(
            code.contains("ROLLBACK") || claims <= 2000 / max + 1,
            "{code}: {claims}"
        );
    }
}

/// Rows that are given up at the head of the queue do not hide rows that are queued before them later.
#[test]
fn rows_that_come_before_those_that_are_given_up_are_claimed_first() {
    let mut scene = Scene::new();
    let bad: Vec<i64> = (0..9)
        .map(|number| scene.enqueue("p", number % 3))
        .collect();
    scene.sql(
        "UPDATE cf_processing_queue SET status = 'PENDING' WHERE id = 5; \
         CREATE TRIGGER theirs BEFORE UPDATE ON cf_processing_queue WHEN OLD.id < 10 AND OLD.id <> 5 \
         BEGIN SELECT RAISE(ABORT, 'no'); END",
    );
    assert_eq!(scene.claim(&["p"], 2).unresolved.len(), bad.len() - 1);
    // Rows queued by another program: between them, before them, and without a priority.
    scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED' WHERE id = 5");
    assert_eq!(ids(&scene.claim(&["p"], 2)), [5]);
    let last = scene.enqueue("p", -1);
    scene.sql(&format!(
        "UPDATE cf_processing_queue SET priority = NULL WHERE id = {last}"
    ));
    assert_eq!(ids(&scene.claim(&["p"], 1)), [last]);
    // Rows queued by this store: before the claim, and in its transaction.
    let first = scene.enqueue("p", 9);
    assert_eq!(ids(&scene.claim(&["p"], 1)), [first]);
    for retries in 0..2 {
        let mut transaction = scene.store.begin().unwrap();
        let version = 1;
        let job = transaction.enqueue("p", version, 1, DAY_MS).unwrap();
        let plugins = ["p".to_owned()];
        let claim = claim_of_two(&plugins);
        assert_eq!(
            ids(&transaction.claim(&claim, DAY_MS).unwrap()),
            [job],
            "{retries}"
        );
        // The transaction is rolled back, so the job does not exist.
        drop(transaction);
        assert_eq!(ids(&scene.claim(&["p"], 2)), [0i64; 0], "{retries}");
    }
    // After a claim is rolled back, its row is QUEUED again.
    let job = scene.enqueue("p", 1);
    let mut transaction = scene.store.begin().unwrap();
    let plugins = ["p".to_owned()];
    let claim = claim_of_two(&plugins);
    assert_eq!(ids(&transaction.claim(&claim, DAY_MS).unwrap()), [job]);
    assert_eq!(ids(&transaction.claim(&claim, DAY_MS).unwrap()), [0i64; 0]);
    drop(transaction);
    assert_eq!(ids(&scene.claim(&["p"], 2)), [job]);
}

#[test]
fn rows_that_are_given_up_are_tried_again_in_parts() {
    let mut scene = Scene::new();
    let rows = 2 * limits::RETRIED_PER_TRANSACTION + 100;
    claims_until_a_job(&mut scene, "RAISE(ABORT, 'no')", rows);
    let mut tried = Vec::new();
    for more in [true, true, false] {
        assert_eq!(scene.store.retry_refused(), RetriedRows { any: true, more });
        let count = loop {
            let claimed = scene.claim(&["p"], 1);
            tried.extend(claimed.unresolved.iter().map(|one| one.job_id));
            if !claimed.more {
                break tried.len();
            }
        };
        assert!(
            count % limits::RETRIED_PER_TRANSACTION == 0 || !more,
            "{count}"
        );
    }
    tried.sort_unstable();
    tried.dedup();
    assert_eq!(tried.len(), rows, "each of them once");
}
