use super::*;
use crate::job::{BARRED_BY, Parameters, SETTLED_ATTEMPT, Settlement};

impl Scene {
    fn unsettled(&self) -> Vec<i64> {
        self.store.unsettled(0).unwrap()
    }

    fn take_settlement(&mut self, job_id: i64) -> Option<(Settlement, Option<String>)> {
        let mut transaction = self.store.begin().unwrap();
        let taken = transaction.take_settlement(job_id).unwrap();
        transaction.commit().unwrap();
        taken
    }

    fn settle(&mut self, attempt: Attempt, receipt: &Receipt) -> bool {
        let mut transaction = self.store.begin().unwrap();
        let became = transaction.settle(attempt, receipt, &now(9)).unwrap();
        transaction.commit().unwrap();
        became == Settled::Completed
    }

    fn set_status(&self, job_id: i64, status: &str) {
        self.sql(&format!(
            "UPDATE cf_processing_queue SET status = '{status}' WHERE id = {job_id}"
        ));
    }

    fn no_retries(&self) {
        self.sql(
            "INSERT INTO cf_plugin_config (plugin_name, retries) VALUES ('p', 0) \
             ON CONFLICT DO UPDATE SET retries = 0",
        );
    }
}

fn settled_receipt(uris: &[&str], attempt: i64) -> Receipt {
    let mut receipt = success(uris);
    receipt.metrics.insert(SETTLED_ATTEMPT.to_owned(), attempt);
    receipt
}

/// What ends a job of which attempt 1 was claimed.
#[derive(Clone, Copy, Debug)]
enum End {
    Success,
    Failure(Option<Cause>),
    Loss,
    Sql(&'static str),
    /// The text after `SET status =`.
    SqlValue(&'static str),
    /// Lost, and set to PENDING without a retry while it waits.
    LossThenPending,
    /// The second attempt fails. The first one was lost, given back or reported.
    After(Option<Cause>, bool),
    /// The second attempt fails. Another program had queued the job again during the first one.
    AfterSql,
    /// Lost, and cancelled while it waits.
    LossThenSql,
    /// Its program was killed, another one queued the job again, and the second attempt fails.
    Interrupted,
    /// The same, and the job is cancelled while it waits.
    InterruptedThenSql,
}

#[test]
fn a_job_is_settled_unless_its_workers_reported_that_it_has_no_output() {
    use End::*;
    let cases = [
        (Success, false),
        (Failure(Some(Cause::Plugin)), false),
        (Failure(None), false),
        (Failure(Some(Cause::Operator)), false),
        (Failure(Some(Cause::Environment)), false),
        (Failure(Some(Cause::Worker)), true),
        (Loss, true),
        (Sql("SKIPPED"), true),
        (Sql("FAILED"), true),
        (Sql("COMPLETED"), true),
        (Sql("QUEUED"), false),
        (Sql("PENDING"), true),
        (Sql("DONE"), true),
        (Sql("running"), true),
        (Sql("5"), true),
        (Sql(""), true),
        (SqlValue("NULL"), true),
        (SqlValue("7"), true),
        (SqlValue("x'ff'"), true),
        (SqlValue("'PENDING', next_run = '2099-01-01'"), false),
        (LossThenPending, true),
        (After(Some(Cause::Lost), false), true),
        (After(Some(Cause::Worker), false), true),
        (After(Some(Cause::Environment), false), false),
        (After(None, true), false),
        (AfterSql, true),
        (LossThenSql, true),
        (Interrupted, true),
        (InterruptedThenSql, true),
    ];
    for (end, want) in cases {
        let mut scene = Scene::new();
        let id = scene.enqueue("p", 0);
        let again = matches!(
            end,
            After(..) | AfterSql | LossThenSql | LossThenPending | Interrupted | InterruptedThenSql
        );
        let set_value = |scene: &Scene, value: &str| {
            let set = format!("UPDATE cf_processing_queue SET status = {value} WHERE id = {id}");
            scene.sql(&set);
        };
        if !again {
            scene.no_retries();
        }
        let first = scene.claim(&["p"], 1).jobs[0].attempt;
        assert_eq!(scene.unsettled(), [0; 0]);
        match end {
            Success => drop(scene.report("w", first, &success(&[]), 0)),
            Failure(cause) => drop(scene.report("w", first, &failure(cause, "x"), 0)),
            Loss | LossThenSql | LossThenPending => drop(scene.release(first, 0)),
            Sql(status) => scene.set_status(id, status),
            SqlValue(value) => set_value(&scene, value),
            AfterSql => scene.set_status(id, "QUEUED"),
            Interrupted | InterruptedThenSql => {
                let mut transaction = scene.store.begin().unwrap();
                assert_eq!(
                    transaction.requeue_running("killed", 9, &now(0)).unwrap(),
                    1
                );
                transaction.commit().unwrap();
            }
            After(Some(Cause::Lost), _) => drop(scene.release(first, 0)),
            After(cause, returned) => {
                let mut receipt = failure(cause, "x");
                receipt.returned = returned;
                scene.report("w", first, &receipt, 0);
                scene.set_status(id, "QUEUED");
            }
        }
        match end {
            LossThenPending => set_value(&scene, "'PENDING', next_run = NULL"),
            LossThenSql | InterruptedThenSql => scene.set_status(id, "SKIPPED"),
            _ if again => {
                let second = scene.claim(&["p"], 1).jobs[0].attempt;
                let failed = failure(Some(Cause::Plugin), "y");
                assert_eq!(scene.report("w", second, &failed, 1), Ended::Failed);
            }
            _ => {}
        }
        let want: &[i64] = if want { &[id] } else { &[] };
        assert_eq!(scene.unsettled(), want, "{end:?}");
        // Attempts of jobs that wait for another attempt may still publish.
        let silent = scene.store.silent().unwrap();
        let waits = matches!(end, Sql("QUEUED"))
            || matches!(end, SqlValue(value) if value.contains("next_run"));
        assert_eq!(silent.len(), want.len() + usize::from(waits), "{end:?}");
    }
}

#[test]
fn a_lost_job_whose_output_stands_is_completed_by_its_settlement() {
    let mut scene = Scene::new();
    scene.no_retries();
    let id = scene.enqueue("p", 0);
    let first = scene.claim(&["p"], 1).jobs[0].attempt;
    assert_eq!(scene.release(first, 0), Ended::Failed);
    assert!(scene.inspect(id).waiting_for.unwrap().contains("output"));
    let (settlement, worker) = scene.take_settlement(id).unwrap();
    assert_eq!(worker.as_deref(), Some("w"));
    assert_eq!(settlement.attempt, Attempt::new(id, 2));
    assert_eq!((settlement.history.completed(), settlement.keep), (0, true));
    assert_eq!(settlement.database.len(), 32);
    // A late report, a failed settlement, and a report on an earlier settlement are ignored.
    assert_eq!(
        scene.report("w", first, &success(&["file:///x"]), 1),
        Ended::Stale
    );
    assert!(!scene.settle(settlement.attempt, &failure(Some(Cause::Worker), "disk")));
    let (again, _) = scene.take_settlement(id).unwrap();
    assert_eq!(again.attempt.number, 3);
    assert!(!scene.settle(settlement.attempt, &settled_receipt(&["file:///x"], 1)));
    assert_eq!(
        (scene.status(id).as_str(), scene.unsettled()),
        ("FAILED", vec![id])
    );
    assert!(scene.settle(again.attempt, &settled_receipt(&["file:///o_1.parquet"], 1)));
    let detail = scene.inspect(id);
    assert_eq!(detail.row.status, "COMPLETED");
    assert_eq!((detail.row.error_message, detail.row.cause), (None, None));
    assert_eq!(detail.waiting_for, None);
    assert!(detail.row.receipt.unwrap().contains("o_1.parquet"));
    assert_eq!(detail.attempts[0].status, "COMPLETED");
    assert_eq!(
        (scene.unsettled(), scene.take_settlement(id)),
        (vec![], None)
    );
    assert!(
        !scene.settle(again.attempt, &settled_receipt(&[], 1)),
        "once"
    );
    // Its next attempt has a higher number than the settlements, and replaces what the receipt names.
    scene.set_status(id, "QUEUED");
    let next = &scene.claim(&["p"], 1).jobs[0];
    assert_eq!(next.attempt.number, 4);
    assert_eq!(next.previous, ["file:///o_1.parquet"]);
}

#[test]
fn a_job_without_output_stays_as_it_ended() {
    for (status, cause) in [
        ("FAILED", "lost"),
        ("FAILED", "plugin"),
        ("SKIPPED", "lost"),
    ] {
        let mut scene = Scene::new();
        scene.no_retries();
        let id = scene.enqueue("p", 0);
        let first = scene.claim(&["p"], 1).jobs[0].attempt;
        scene.release(first, 0);
        scene.sql(&format!(
            "UPDATE cf_processing_queue SET status = '{status}', failure_cause = '{cause}'"
        ));
        let (settlement, _) = scene.take_settlement(id).unwrap();
        assert_eq!(settlement.keep, (status, cause) == ("FAILED", "lost"));
        assert!(!scene.settle(settlement.attempt, &success(&[])));
        assert_eq!(scene.status(id), status);
        assert_eq!(scene.unsettled(), [0; 0]);
    }
    // A job that runs again is settled by its next attempt.
    let mut scene = Scene::new();
    scene.no_retries();
    let id = scene.enqueue("p", 0);
    let first = scene.claim(&["p"], 1).jobs[0].attempt;
    scene.release(first, 0);
    scene.set_status(id, "QUEUED");
    assert_eq!(scene.take_settlement(id), None);
    scene.claim(&["p"], 1);
    assert_eq!(scene.unsettled(), [0; 0]);
}

#[test]
fn output_that_replaced_a_receipts_output_gets_a_receipt() {
    let mut scene = Scene::new();
    scene.no_retries();
    let id = scene.enqueue("p", 0);
    let first = scene.claim(&["p"], 1).jobs[0].attempt;
    scene.report("w", first, &success(&["file:///o_1.parquet"]), 0);
    scene.set_status(id, "QUEUED");
    scene.claim(&["p"], 1);
    scene.set_status(id, "SKIPPED");
    let (settlement, _) = scene.take_settlement(id).unwrap();
    assert_eq!(
        (settlement.history.completed(), settlement.keep),
        (1, false)
    );
    assert_eq!(settlement.previous, ["file:///o_1.parquet"]);
    let mut receipt = settled_receipt(&["file:///o_1.parquet"], 2);
    receipt.metrics.insert("rows".to_owned(), 77);
    assert!(
        !scene.settle(settlement.attempt, &receipt),
        "it stays cancelled"
    );
    let detail = scene.inspect(id);
    assert_eq!(detail.row.status, "SKIPPED");
    assert!(detail.row.receipt.unwrap().contains("77"));
    assert_eq!(detail.attempts[1].status, "COMPLETED");
    assert_eq!(scene.unsettled(), [0; 0]);
}

#[test]
fn attempts_are_distinguished_by_keys_that_no_other_claim_gets() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let first = scene.claim(&["p"], 1).jobs.remove(0);
    assert_ne!(first.history.key, 0);
    assert_eq!(first.history.past, []);
    // Another program queues it again. A worker of another sentinel gets it and is lost.
    scene.set_status(id, "QUEUED");
    let path = scene.path();
    scene.store = Store::open(&path, Open::Existing).unwrap();
    let second = scene.claim(&["p"], 1).jobs.remove(0);
    assert_ne!(second.history.key, first.history.key);
    scene.report("w", second.attempt, &success(&["file:///o"]), 0);
    scene.set_status(id, "QUEUED");
    let third = scene.claim(&["p"], 1).jobs.remove(0);
    scene.report("w", third.attempt, &failure(None, "no"), 0);
    scene.set_status(id, "QUEUED");
    let last = scene.claim(&["p"], 1).jobs.remove(0);
    let past: Vec<_> = last
        .history
        .past
        .iter()
        .map(|past| (past.number, past.key, past.end))
        .collect();
    use crate::job::PastEnd::*;
    let keys = [&first, &second, &third, &last].map(|job| job.history.key);
    let [one, two, three, _] = keys;
    assert_eq!(
        past,
        [(1, one, Unknown), (2, two, Completed), (3, three, Unknown)]
    );
    assert_eq!(last.history.completed(), 2);
    // The content of the database is restored while the sentinel works.
    scene.sql(
        "UPDATE cf_processing_queue SET status = 'QUEUED', attempt = 0, attempt_key = NULL, \
         receipt = NULL, published = NULL, unsettled = NULL; DELETE FROM cf_job_attempt",
    );
    let again = scene.claim(&["p"], 1).jobs.remove(0);
    assert_eq!(again.attempt, first.attempt);
    assert!(!keys.contains(&again.history.key), "{keys:?}");
    for key in keys {
        assert!(again.history.is_foreign(1, key, again.attempt), "{key}");
    }
    // A settlement has a key of its own, too.
    scene.release(again.attempt, 0);
    scene.sql("UPDATE cf_processing_queue SET status = 'SKIPPED', unsettled = 1");
    let mut transaction = scene.store.begin().unwrap();
    let (settlement, _) = transaction.take_settlement(id).unwrap().unwrap();
    assert_ne!(settlement.history.key, again.history.key);
    assert_eq!(settlement.history.past[0].key, again.history.key);
}

/// The keys of a process have its random number in common, so attempts that are left out of a long history are
/// recognized.
#[test]
fn a_long_history_recognizes_the_attempts_of_known_sentinels() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let mut keys = Vec::new();
    for _ in 0..3 {
        scene.set_status(id, "QUEUED");
        keys.push(scene.claim(&["p"], 1).jobs.remove(0).history.key);
    }
    scene.set_status(id, "QUEUED");
    let mut last = scene.claim(&["p"], 1).jobs.remove(0);
    last.history.past.remove(0);
    assert!(!last.history.is_foreign(1, keys[0], last.attempt));
    let other = Scene::new().store.begin().unwrap().next_key();
    assert!(last.history.is_foreign(1, other, last.attempt));
}

#[test]
fn a_number_that_is_barred_by_a_copy_is_passed_over() {
    let last = i64::from(u32::MAX);
    // (number of the bar, number of the next attempt)
    for (by, next) in [
        (1, 2),
        (5, 6),
        (last - 1, last),
        // Numbers that this job cannot have.
        (0, 2),
        (-3, 2),
        (last, 2),
        (last + 2, 2),
        (i64::MAX, 2),
    ] {
        let mut scene = Scene::new();
        let id = scene.enqueue("p", 0);
        let first = scene.claim(&["p"], 1).jobs.remove(0);
        let mut receipt = failure(Some(Cause::Lost), "barred");
        receipt.metrics.insert(BARRED_BY.to_owned(), by);
        assert_eq!(scene.report("w", first.attempt, &receipt, 0), Ended::Queued);
        let message = scene.inspect(id).attempts[0].error_message.clone();
        let is_passed = message.is_some_and(|message| message.contains("another copy"));
        assert_eq!(is_passed, next > 2 || by == 1, "{by}");
        // The key of the barred attempt must not be used for the skipped number, even without its row.
        scene.sql("DELETE FROM cf_job_attempt");
        let second = scene.claim(&["p"], 1).jobs.remove(0);
        assert_eq!(second.attempt, Attempt::new(id, next), "{by}");
        let keys = second.history.past.iter().map(|past| past.number);
        assert_eq!(
            keys.collect::<Vec<_>>(),
            if is_passed { vec![] } else { vec![1] }
        );
    }
}

#[test]
fn a_settlement_that_a_copy_has_barred_is_followed_by_one_that_is_not() {
    let mut scene = Scene::new();
    scene.no_retries();
    let id = scene.enqueue("p", 0);
    let first = scene.claim(&["p"], 1).jobs[0].attempt;
    scene.release(first, 0);
    let (settlement, _) = scene.take_settlement(id).unwrap();
    let mut receipt = failure(Some(Cause::Worker), "barred");
    receipt.metrics.insert(BARRED_BY.to_owned(), 9);
    assert!(!scene.settle(settlement.attempt, &receipt));
    let (again, _) = scene.take_settlement(id).unwrap();
    assert_eq!(again.attempt.number, 10);
    // A settlement that is no longer the last one changes nothing.
    receipt.metrics.insert(BARRED_BY.to_owned(), 70);
    assert!(!scene.settle(settlement.attempt, &receipt));
    assert_eq!(scene.take_settlement(id).unwrap().0.attempt.number, 11);
}

#[test]
fn the_last_attempt_is_known_without_the_history() {
    for settled in [false, true] {
        let mut scene = Scene::new();
        scene.no_retries();
        let id = scene.enqueue("p", 0);
        let first = scene.claim(&["p"], 1).jobs.remove(0);
        let mut last = (1, first.history.key);
        if settled {
            scene.release(first.attempt, 0);
            let (settlement, _) = scene.take_settlement(id).unwrap();
            last = (2, settlement.history.key);
            scene.settle(settlement.attempt, &success(&[]));
        } else {
            scene.report("w", first.attempt, &success(&["file:///o"]), 0);
        }
        let path = scene.path();
        scene.store = Store::open(&path, Open::Existing).unwrap();
        for number in [last.0 + 1, last.0 + 2] {
            scene.set_status(id, "QUEUED");
            if number == last.0 + 1 {
                scene.sql("DELETE FROM cf_job_attempt");
            }
            let next = scene.claim(&["p"], 1).jobs.remove(0);
            assert_eq!(next.attempt.number, number);
            let known = next
                .history
                .past
                .first()
                .map(|past| (past.number, past.key));
            assert_eq!(known, Some(last), "{settled}");
        }
    }
}

#[test]
fn neither_failed_settlements_nor_rows_of_others_make_the_history_grow() {
    let mut scene = Scene::new();
    scene.no_retries();
    let id = scene.enqueue("p", 0);
    let first = scene.claim(&["p"], 1).jobs[0].attempt;
    scene.release(first, 0);
    for _ in 0..250 {
        let (settlement, _) = scene.take_settlement(id).unwrap();
        // The history always contains the attempt that may have left output.
        assert_eq!(settlement.history.past[0].number, 1);
    }
    let (settlement, _) = scene.take_settlement(id).unwrap();
    assert_eq!(settlement.attempt.number, 252);
    assert!(settlement.history.past.len() <= 101);
    scene.sql(
        "WITH RECURSIVE n(i) AS (SELECT 252 UNION ALL SELECT i + 1 FROM n WHERE i < 9000) \
         INSERT OR REPLACE INTO cf_job_attempt (job_id, attempt, status) SELECT 1, i, 'x' FROM n; \
         UPDATE cf_processing_queue SET attempt = 9000, status = 'QUEUED'",
    );
    let past = scene.claim(&["p"], 1).jobs.remove(0).history.past;
    assert_eq!(past.len(), limits::HISTORY_MAX);
    assert_eq!(past.last().unwrap().number, 9000);
    assert!(past.is_sorted_by_key(|past| past.number));
}

impl Scene {
    /// Registers a file version with this path and hash.
    fn version(&mut self, path: &str, hash: &str) -> i64 {
        let mut transaction = self.store.begin().unwrap();
        let file = transaction.register_file("/data", path, 5, 2.5, hash, DAY_MS);
        transaction.commit().unwrap();
        file.unwrap().version_id
    }

    /// Attempt 1 has published without a report, and another program queues its job again.
    fn silent(&mut self) -> i64 {
        self.no_retries();
        let id = self.enqueue("p", 0);
        self.claim(&["p"], 1);
        self.set_status(id, "QUEUED");
        id
    }

    /// The last claimed attempt of the only job is lost, and attempt `kept_attempt` has left output.
    fn lost_and_settled(&mut self, attempt: Attempt, kept_attempt: i64) -> bool {
        assert_eq!(self.release(attempt, 0), Ended::Failed);
        let (settlement, _) = self.take_settlement(attempt.job_id).unwrap();
        self.settle(
            settlement.attempt,
            &settled_receipt(&["file:///o"], kept_attempt),
        )
    }

    /// Status, file version and the version of the output of the only job.
    fn outcome(&self) -> String {
        self.text(
            "SELECT status || ' ' || file_version_id || ' ' || coalesce(published_version_id, '-') \
             FROM cf_processing_queue",
        )
    }
}

/// How the row gets another file version or plugin than the attempt that has left output.
#[derive(Clone, Copy, Debug)]
enum Moves {
    /// The worker of the next attempt finds other content.
    Content,
    /// Another program gives the row another file, while the attempt runs.
    File,
    /// The same, while no attempt runs.
    FileBetween,
    /// The same, after the last attempt was lost.
    FileAtEnd,
    /// Another program gives the row another plugin.
    Plugin,
}

#[test]
fn output_of_another_version_completes_no_job() {
    use Moves::*;
    for moves in [Content, File, FileBetween, FileAtEnd, Plugin] {
        let mut scene = Scene::new();
        scene.deploy("z", "class Handler: pass\n");
        let version = match moves {
            Content => 2,
            _ => scene.version("other", "h2"),
        };
        let repoint = format!("UPDATE cf_processing_queue SET file_version_id = {version}");
        scene.no_retries();
        scene.sql("UPDATE cf_plugin_config SET retries = 0");
        let id = scene.enqueue("p", 0);
        let first = scene.claim(&["p"], 1).jobs.remove(0);
        let own = first.file_version_id;
        let mut last = first.attempt;
        let mut plugin = "p";
        match moves {
            Content => {
                scene.set_status(id, "QUEUED");
                let second = scene.claim(&["p"], 1).jobs[0].attempt;
                let refused = Receipt {
                    input_changed: true,
                    input: Some(crate::job::Content {
                        size_bytes: Some(7),
                        mtime_ns: Some(1),
                        hash: Some("a".repeat(64)),
                    }),
                    ..failure(Some(Cause::Input), "other content")
                };
                assert_eq!(scene.report("w", second, &refused, 0), Ended::Queued);
                last = scene.claim(&["p"], 1).jobs[0].attempt;
            }
            File => scene.sql(&repoint),
            FileBetween => {
                scene.set_status(id, "QUEUED");
                scene.sql(&repoint);
                last = scene.claim(&["p"], 1).jobs[0].attempt;
            }
            FileAtEnd => {}
            Plugin => {
                scene.set_status(id, "QUEUED");
                scene.sql("UPDATE cf_processing_queue SET plugin_name = 'z'");
                plugin = "z";
                last = scene.claim(&["z"], 1).jobs[0].attempt;
            }
        }
        if matches!(moves, FileAtEnd) {
            assert_eq!(scene.release(last, 0), Ended::Failed);
            scene.sql(&repoint);
            let (settlement, _) = scene.take_settlement(id).unwrap();
            assert!(!scene.settle(settlement.attempt, &settled_receipt(&["file:///o"], 1)));
        } else {
            assert!(!scene.lost_and_settled(last, 1), "{moves:?}");
        }
        let row = if plugin == "z" { own } else { version };
        let want = format!("QUEUED {row} {own}");
        assert_eq!(scene.outcome(), want, "{moves:?}");
        let detail = scene.inspect(id);
        let ends = (detail.row.error_message, detail.row.cause);
        assert_eq!(ends, (None, None), "{moves:?}");
        assert_eq!(detail.attempts[0].status, "COMPLETED", "{moves:?}");
        assert_eq!(scene.unsettled(), [0; 0]);
        // The output has a receipt now, so the next loss is not followed by another attempt.
        let next = scene.claim(&[plugin], 1).jobs.remove(0);
        assert_eq!(next.file_version_id, row, "{moves:?}");
        assert_eq!(next.previous, ["file:///o"], "{moves:?}");
        assert_eq!(next.history.completed(), 1, "{moves:?}");
        assert_eq!(scene.release(next.attempt, 0), Ended::Failed, "{moves:?}");
        let (settlement, _) = scene.take_settlement(id).unwrap();
        assert!(!scene.settle(settlement.attempt, &success(&[])));
        assert_eq!(scene.outcome(), format!("FAILED {row} {own}"), "{moves:?}");
    }
}

#[test]
fn a_job_that_stays_as_it_ended_shows_which_version_its_output_is_of() {
    for status in ["FAILED", "SKIPPED"] {
        let mut scene = Scene::new();
        let id = scene.silent();
        let version = scene.version("a/b.csv", "h2");
        let move_to = format!("UPDATE cf_processing_queue SET file_version_id = {version}");
        scene.sql(&move_to);
        let second = scene.claim(&["p"], 1).jobs[0].attempt;
        match status {
            "FAILED" => drop(scene.report("w", second, &failure(Some(Cause::Plugin), "x"), 0)),
            _ => scene.set_status(id, status),
        }
        let (settlement, _) = scene.take_settlement(id).unwrap();
        assert!(!scene.settle(settlement.attempt, &settled_receipt(&["file:///o"], 1)));
        assert_eq!(scene.outcome(), format!("{status} {version} 1"));
        // It does not count as done for the row's version, although another program sets COMPLETED.
        scene.set_status(id, "COMPLETED");
        let mut transaction = scene.store.begin().unwrap();
        let code = transaction.plugin_code("p").unwrap().runs().unwrap();
        let artifact = code.plugin.artifact_hash.clone();
        assert!(
            !transaction
                .is_done(id, "p", &artifact, &code, &Parameters::default())
                .unwrap()
        );
        let published = transaction.publication(id).unwrap().unwrap();
        assert_eq!(published.content_hash.as_deref(), Some("hash"));
    }
}

#[test]
fn a_settled_job_has_the_code_and_the_sinks_of_its_output() {
    let ran = "SELECT artifact_hash || sinks_hash FROM cf_processing_queue";
    let mut scene = Scene::new();
    scene.no_retries();
    let id = scene.enqueue("p", 0);
    scene.claim(&["p"], 1);
    let first = scene.text(ran);
    scene.set_status(id, "QUEUED");
    scene.deploy("p", "class Handler: 'newer'\n");
    scene.sql(
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
         VALUES ('p', 'output', 'parquet://y.parquet', 'append')",
    );
    let second = scene.claim(&["p"], 1).jobs[0].attempt;
    assert_ne!(scene.text(ran), first);
    assert!(scene.lost_and_settled(second, 1));
    assert_eq!(scene.outcome(), "COMPLETED 1 1");
    assert_eq!(scene.text(ran), first);
}

#[test]
fn output_of_an_attempt_of_an_earlier_release_counts_while_nothing_shows_that_the_row_moved() {
    let forget = "UPDATE cf_job_attempt SET dispatched = NULL, artifact_hash = NULL, \
         sinks_hash = NULL WHERE attempt = 1; ";
    for (shown, completes) in [
        ("", true),
        // Values of a later attempt.
        (
            "UPDATE cf_job_attempt SET dispatched = '7 p' WHERE attempt = 2",
            false,
        ),
        (
            "UPDATE cf_job_attempt SET dispatched = NULL, cause = 'input' WHERE attempt = 2",
            false,
        ),
        (
            "UPDATE cf_job_attempt SET error_message = 'another program gave the row another \
             file version or plugin' WHERE attempt = 1",
            false,
        ),
        // The attempt's row is missing.
        ("DELETE FROM cf_job_attempt WHERE attempt = 1", false),
    ] {
        let mut scene = Scene::new();
        let id = scene.silent();
        let second = scene.claim(&["p"], 1).jobs[0].attempt;
        assert_eq!(scene.release(second, 0), Ended::Failed);
        scene.sql(&format!("{forget}{shown}"));
        let (settlement, _) = scene.take_settlement(id).unwrap();
        let receipt = settled_receipt(&["file:///o"], 1);
        assert_eq!(
            scene.settle(settlement.attempt, &receipt),
            completes,
            "{shown}"
        );
        let want = match completes {
            true => "COMPLETED 1 1",
            false => "QUEUED 1 0",
        };
        assert_eq!(scene.outcome(), want, "{shown}");
    }
}

#[test]
fn what_an_attempt_was_dispatched_for_is_known_however_its_row_is_taken() {
    for taken in [
        "status = 'QUEUED'",
        "status = 'QUEUED', file_version_id = 9, plugin_name = 'z'",
        "attempt = 7, attempt_key = 7",
        "attempt = 7, file_version_id = 9",
    ] {
        let mut scene = Scene::new();
        scene.enqueue("p", 0);
        scene.claim(&["p"], 1);
        scene.sql(&format!("UPDATE cf_processing_queue SET {taken}"));
        let known = "SELECT dispatched || (artifact_hash IS NOT NULL) || (sinks_hash IS NOT NULL) \
             FROM cf_job_attempt WHERE attempt = 1";
        assert_eq!(scene.text(known), "1 p11", "{taken}");
    }
}
