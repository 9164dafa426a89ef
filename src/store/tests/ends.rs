use super::*;

/// Another program sets a row back to an attempt that is in the history.
#[test]
fn attempts_count_on_from_the_last_one_that_is_known() {
    let history = "INSERT INTO cf_job_attempt (job_id, attempt, status) VALUES (1, ";
    for (set_back, want) in [
        ("SELECT 1".to_owned(), 4),
        (format!("{history} 9, 'FAILED')"), 10),
        // Invalid numbers do not count.
        (format!("{history} 'x', 'FAILED')"), 4),
        (format!("{history} 9 << 32, 'FAILED')"), 4),
        (format!("{history} {}, 'FAILED')", i64::MAX), 4),
        (format!("{history} -5, 'FAILED')"), 4),
        ("DELETE FROM cf_job_attempt".to_owned(), 1),
    ] {
        let mut scene = Scene::new();
        scene.enqueue("p", 0);
        for _ in 0..3 {
            let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
            scene.report("w", attempt, &success(&["file:///a"]), 0);
            scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
        }
        scene.sql(&format!(
            "{set_back}; UPDATE cf_processing_queue SET attempt = 0"
        ));
        let job = scene.claim(&["p"], 1).jobs.remove(0);
        assert_eq!(job.attempt, Attempt::new(1, want), "{set_back}");
        if want > 1 {
            let numbers: Vec<i64> = job.history.past.iter().map(|past| past.number).collect();
            assert!(numbers.ends_with(&[3]) || want == 10, "{numbers:?}");
            assert!(!numbers.contains(&0), "{numbers:?}");
        }
    }
}

/// Another program changes the row of a running attempt.
#[test]
fn the_attempt_that_runs_is_known_whatever_is_written_over_it() {
    for change in [
        "attempt = 0",
        "attempt = 7",
        "attempt = -1",
        "attempt = 'abc'",
        "attempt = (9 << 32) + 1",
        "attempt_key = 99",
        "attempt = 0, attempt_key = 99, worker_id = 'other'",
        "attempt = 0, status = 'QUEUED'",
        "attempt_key = NULL, unsettled = 1, status = 'QUEUED'",
    ] {
        let mut scene = Scene::new();
        let id = scene.enqueue("p", 0);
        let first = scene.claim(&["p"], 1).jobs.remove(0);
        let (first, key) = (first.attempt, first.history.key);
        scene.sql(&format!("UPDATE cf_processing_queue SET {change}"));
        for running in scene.store.running().unwrap() {
            scene.release(running.attempt, 0);
        }
        scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
        let job = scene.claim(&["p"], 1).jobs.remove(0);
        assert!(job.attempt > first, "{change}: {:?}", job.attempt);
        let known = |past: &&crate::job::Past| (past.number, past.key) == (first.number, key);
        let past = &job.history.past;
        assert!(past.iter().any(|past| known(&past)), "{change}: {past:?}");
        assert_eq!(scene.status(id), "RUNNING");
    }
}

#[test]
fn a_row_that_gets_another_id_while_it_runs_takes_no_attempt_along() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    scene.claim(&["p"], 1);
    scene.sql("UPDATE cf_processing_queue SET id = 50");
    assert_eq!(
        scene.text("SELECT count(*) FROM cf_job_attempt"),
        "Integer(0)"
    );
    scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
    let job = scene.claim(&["p"], 1).jobs.remove(0);
    assert_eq!(job.attempt.job_id, 50);
    assert!(job.history.past.is_empty(), "{:?}", job.history);
}

#[test]
fn an_attempt_that_has_ended_stays_as_it_ended_when_its_number_is_set_again() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    let first = scene.claim(&["p"], 1).jobs.remove(0);
    let (first, first_key) = (first.attempt, first.history.key);
    scene.report("w", first, &success(&["file:///a"]), 0);
    scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
    let second = scene.claim(&["p"], 1).jobs.remove(0);
    let second_key = second.history.key;
    assert_eq!(second.attempt.number, 2);
    scene.sql("UPDATE cf_processing_queue SET attempt = 1");
    assert_eq!(scene.release(first, 0), Ended::Queued);
    let job = scene.claim(&["p"], 1).jobs.remove(0);
    assert_eq!(job.attempt.number, 3);
    let past = job.history.past.iter();
    let past: Vec<_> = past.map(|past| (past.number, past.key, past.end)).collect();
    let want = [
        (1, first_key, crate::job::PastEnd::Completed),
        (2, second_key, crate::job::PastEnd::Unknown),
    ];
    assert_eq!(past, want);
}

#[test]
fn only_the_holder_of_the_attempt_ends_a_job() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let first = scene.claim(&["p"], 1).jobs[0].attempt;
    assert_eq!(first, Attempt::new(id, 1));
    let done = success(&[]);
    for (worker_id, attempt) in [
        ("other", first),
        ("w", Attempt::new(id, 2)),
        ("w", Attempt::new(id + 1, 1)),
        ("other", Attempt::new(id, 0)),
    ] {
        assert_eq!(scene.report(worker_id, attempt, &done, 0), Ended::Stale);
    }
    assert_eq!(scene.status(id), "RUNNING");
    let second = Attempt::new(id, 2);
    let changed = scene.store.not_running(&[
        (first, Some("w".to_owned())),
        (first, None),
        (second, None),
        (first, Some("other".to_owned())),
    ]);
    assert_eq!(changed.unwrap(), [second, first]);
    assert_eq!(scene.release(first, 0), Ended::Queued);
    assert_eq!(scene.release(first, 0), Ended::Stale);
    let second = scene.claim(&["p"], 1).jobs[0].attempt;
    assert_eq!(second.number, 2);
    assert_eq!(scene.report("w", first, &done, 0), Ended::Stale, "too late");
    assert_eq!(scene.report("w", second, &done, 0), Ended::Completed);
    assert_eq!(scene.report("w", second, &done, 0), Ended::Stale, "once");
    assert_eq!(scene.status(id), "COMPLETED");
    // A worker of the reference system does not send the number.
    let id = scene.enqueue("p", 0);
    scene.claim(&["p"], 1);
    let unnumbered = Attempt::new(id, 0);
    assert_eq!(scene.report("w", unnumbered, &done, 0), Ended::Completed);
}

#[test]
fn the_cause_decides_what_becomes_of_a_job() {
    let cases = [
        (None, "FAILED", (0, 0)),
        (Some(Cause::Plugin), "FAILED", (0, 0)),
        (Some(Cause::Input), "FAILED", (0, 0)),
        (Some(Cause::Operator), "FAILED", (0, 0)),
        (Some(Cause::Environment), "PENDING", (0, 1)),
        (Some(Cause::Worker), "PENDING", (0, 1)),
        (Some(Cause::Lost), "QUEUED", (1, 0)),
    ];
    for (cause, status, counts) in cases {
        let mut scene = Scene::new();
        let id = scene.enqueue("p", 0);
        let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
        let ended = scene.report("w", attempt, &failure(cause, "because"), 0);
        let detail = scene.inspect(id);
        assert_eq!(detail.row.status, status, "{cause:?}");
        assert_eq!(
            (detail.retry_count, detail.infra_count),
            counts,
            "{cause:?}"
        );
        assert_eq!(detail.row.error_message.as_deref(), Some("because"));
        assert_eq!(detail.row.cause.as_deref(), cause.map(Cause::as_str));
        assert_eq!(detail.row.next_run.is_some(), status == "PENDING");
        assert_eq!(detail.attempts.len(), 1);
        assert_eq!(detail.attempts[0].status, "FAILED");
        assert_eq!(detail.attempts[0].worker_id.as_deref(), Some("w"));
        let due = scene.store.next_due_boot_ms(&now(0)).unwrap();
        match ended {
            Ended::Waits { until_boot_ms } => assert_eq!(due, Some(until_boot_ms)),
            _ => assert_eq!(due, None),
        }
    }
}

/// Another job of the worker may have used up the memory.
#[test]
fn a_process_that_was_killed_beside_others_is_tried_again_alone() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let mut at = 0;
    for (beside_others, counts) in [
        (true, (0, 1)),
        (true, (0, 2)),
        (false, (1, 2)),
        (false, (2, 2)),
        (false, (3, 2)),
    ] {
        let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
        let receipt = Receipt {
            beside_others,
            ..failure(Some(Cause::Lost), "killed")
        };
        let ended = scene.report("w", attempt, &receipt, at);
        let shared = scene.text("SELECT '' || shared_count FROM cf_processing_queue");
        let found = (scene.inspect(id).retry_count, shared.parse().unwrap());
        assert_eq!(found, counts);
        if let Ended::Waits { until_boot_ms } = ended {
            at = until_boot_ms - now(0).boot_ms;
            scene.wake(&now(at));
        }
    }
    assert_eq!(scene.inspect(id).row.status, "FAILED");
}

#[test]
fn a_failure_without_a_word_has_a_reason() {
    for message in [None, Some(""), Some(" \n\t")] {
        let mut scene = Scene::new();
        scene.enqueue("p", 0);
        let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
        let receipt = Receipt {
            error_message: message.map(str::to_owned),
            ..failure(Some(Cause::Plugin), "")
        };
        assert_eq!(scene.report("w", attempt, &receipt, 0), Ended::Failed);
        let reason = scene.text("SELECT error_message FROM cf_processing_queue");
        assert_eq!(reason, "the worker gave no reason", "{message:?}");
    }
}

#[test]
fn a_job_that_loses_its_worker_too_often_fails_and_infrastructure_counts_apart() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let mut at = 0;
    let mut seen = Vec::new();
    // Failures of the worker between the losses do not count as losses.
    for lost in [true, false, true, false, true, false, true] {
        let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
        let ended = match lost {
            true => scene.release(attempt, at),
            false => scene.report("w", attempt, &failure(Some(Cause::Worker), "disk"), at),
        };
        seen.push(ended);
        if let Ended::Waits { until_boot_ms } = ended {
            at = until_boot_ms - now(0).boot_ms;
            assert_eq!(scene.wake(&now(at - 1)), 0);
            assert_eq!(scene.status(id), "PENDING");
            assert_eq!(scene.wake(&now(at)), 1);
            assert_eq!(scene.status(id), "QUEUED");
        }
    }
    assert_eq!(seen[0], Ended::Queued, "the first loss is retried at once");
    assert_eq!(seen.last(), Some(&Ended::Failed));
    let detail = scene.inspect(id);
    assert_eq!(detail.row.status, "FAILED");
    assert_eq!(detail.row.cause.as_deref(), Some("lost"));
    let error = detail.row.error_message.unwrap();
    assert_eq!(error, "worker w was lost; it was tried 7 times");
    assert_eq!((detail.retry_count, detail.infra_count), (4, 3));
    let ordinals: Vec<i64> = detail
        .attempts
        .iter()
        .map(|row| row.attempt.ordinal())
        .collect();
    assert_eq!(ordinals, [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn a_plugin_may_have_its_own_number_of_retries() {
    for (retries, want) in [
        ("0", Ended::Failed),
        ("'many'", Ended::Queued),
        ("-1", Ended::Queued),
    ] {
        let mut scene = Scene::new();
        scene.enqueue("p", 0);
        scene.sql(&format!("UPDATE cf_plugin_config SET retries = {retries}"));
        let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
        assert_eq!(scene.release(attempt, 0), want, "{retries}");
    }
}

#[test]
fn a_returned_job_is_queued_at_once_and_not_counted() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    for round in 1..=9 {
        let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
        assert_eq!(attempt.number, round);
        let returned = Receipt {
            returned: true,
            // Workers of earlier releases send a cause.
            cause: Some(Cause::Operator),
            ..Receipt::default()
        };
        assert_eq!(scene.report("w", attempt, &returned, 0), Ended::Queued);
    }
    let detail = scene.inspect(id);
    // No cause is stored.
    let causes = detail.attempts.iter().map(|attempt| &attempt.cause);
    assert!(causes.chain([&detail.row.cause]).all(Option::is_none));
    assert_eq!((detail.retry_count, detail.infra_count), (0, 0));
    assert_eq!(detail.attempts[8].status, "RETURNED");
}

/// The receipt is for another file or plugin than the row has now.
#[test]
fn a_row_that_means_another_job_meanwhile_is_queued_uncounted_within_a_bound() {
    for change in ["file_version_id = file_version_id + 1", "plugin_name = 'q'"] {
        for receipt in [success(&["file:///a"]), failure(Some(Cause::Plugin), "no")] {
            let mut scene = Scene::new();
            let id = scene.enqueue("p", 0);
            let other = Connection::open(scene.path()).unwrap();
            other.pragma_update(None, "foreign_keys", false).unwrap();
            let set = |change: &str| {
                let update = format!("UPDATE cf_processing_queue SET {change}");
                other.execute(&update, []).unwrap();
            };
            for round in 0..=limits::GIVEN_BACK_MAX {
                let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
                let number = |column: &str| -> i64 {
                    let query = format!("SELECT {column} FROM cf_processing_queue");
                    other.query_row(&query, [], |row| row.get(0)).unwrap()
                };
                let file = number("file_version_id");
                set(change);
                let ended = scene.report("w", attempt, &receipt, 0);
                let is_counted = round == limits::GIVEN_BACK_MAX;
                assert_eq!(ended == Ended::Queued, !is_counted, "{change}: {ended:?}");
                assert_eq!(number("unsettled"), 1);
                let detail = scene.inspect(id);
                let reason = detail.attempts.last().unwrap().error_message.as_deref();
                assert!(reason.unwrap().contains("another program"), "{reason:?}");
                set(&format!("file_version_id = {file}, plugin_name = 'p'"));
            }
            set("status = 'QUEUED'");
            let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
            let done = scene.report("w", attempt, &success(&["file:///a"]), 0);
            assert_eq!(done, Ended::Completed);
        }
    }
}

/// Its output, if any, is settled. The job may have caused the stop of its worker.
#[test]
fn a_job_whose_worker_loses_its_id_is_queued_uncounted_within_a_bound() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let other = Connection::open(scene.path()).unwrap();
    for _ in 0..limits::GIVEN_BACK_MAX {
        let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
        assert_eq!(scene.lose(attempt, Loss::Displaced, 0), Ended::Queued);
        let query = "SELECT unsettled FROM cf_processing_queue";
        let unsettled: i64 = other.query_row(query, [], |row| row.get(0)).unwrap();
        assert_eq!(unsettled, 1);
    }
    let detail = scene.inspect(id);
    assert_eq!((detail.retry_count, detail.infra_count), (0, 0));
    assert_eq!(detail.attempts[0].status, "INTERRUPTED");
    let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
    let ended = scene.lose(attempt, Loss::Displaced, 0);
    assert!(matches!(ended, Ended::Waits { .. }), "{ended:?}");
}

#[test]
fn a_job_whose_workers_are_stopped_while_it_runs_is_given_up_alone_in_the_end() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let mut at = 0;
    let mut stop = |scene: &mut Scene, was_running: bool| {
        let claimed = scene.claim(&["p"], 1);
        let returned = Receipt {
            returned: true,
            was_running,
            ..failure(Some(Cause::Operator), "its worker was stopped")
        };
        let ended = scene.report("w", claimed.jobs[0].attempt, &returned, at);
        if let Ended::Waits { until_boot_ms } = ended {
            at = until_boot_ms - now(0).boot_ms;
            assert_eq!(scene.wake(&now(at)), 1);
        }
        (claimed.alone, ended)
    };
    let mut is_free = |scene: &mut Scene| {
        for _ in 0..limits::GIVEN_BACK_MAX {
            assert_eq!(stop(scene, true), (false, Ended::Queued));
            // The job had not started, so it has not caused the stop. That does not end the row of attempts
            // either.
            assert_eq!(stop(scene, false), (false, Ended::Queued));
        }
    };
    is_free(&mut scene);
    let detail = scene.inspect(id);
    assert_eq!((detail.retry_count, detail.infra_count), (0, 0));
    let query = "SELECT unsettled FROM cf_processing_queue";
    let other = Connection::open(scene.path()).unwrap();
    let unsettled: i64 = other.query_row(query, [], |row| row.get(0)).unwrap();
    assert_eq!(unsettled, 0, "its workers have no output of it");
    // After an attempt that ends in another way, the count begins from zero.
    let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
    assert_eq!(scene.release(attempt, 0), Ended::Queued);
    is_free(&mut scene);
    let mut alone = Vec::new();
    loop {
        let (is_alone, ended) = stop(&mut scene, true);
        alone.push(is_alone);
        if ended == Ended::Failed {
            break;
        }
    }
    // Two losses with other jobs, then the remaining ones of three retries.
    assert_eq!(alone, [false, false, true, true, true]);
    let last = scene.inspect(id);
    assert_eq!(last.row.status, "FAILED");
    assert_eq!(last.row.cause.as_deref(), Some("lost"));
    let error = last.row.error_message.unwrap();
    let want = "its worker was stopped while it ran, 15 times in a row";
    assert_eq!(error, want);
    // After an operator has queued it again, all counts begin from zero.
    let mut transaction = scene.store.begin().unwrap();
    assert!(transaction.requeue(id, 1).unwrap());
    transaction.commit().unwrap();
    let (is_alone, ended) = stop(&mut scene, true);
    assert_eq!((is_alone, ended), (false, Ended::Queued));
}

#[test]
fn earlier_outputs_are_known_until_an_attempt_replaces_them() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let job = scene.claim(&["p"], 1).jobs.remove(0);
    assert_eq!(job.previous, Vec::<String>::new());
    assert_eq!(job.database, Some(scene.store.database_id()));
    scene.report("w", job.attempt, &success(&["file:///a", "file:///b"]), 0);
    let requeue = |scene: &mut Scene| {
        let mut transaction = scene.store.begin().unwrap();
        assert!(transaction.requeue(id, 1).unwrap());
        transaction.commit().unwrap();
        scene.claim(&["p"], 1).jobs.remove(0)
    };
    for receipt in [
        Some(failure(Some(Cause::Plugin), "no")),
        Some(failure(None, "no")),
        None,
    ] {
        let job = requeue(&mut scene);
        assert_eq!(job.previous, ["file:///a", "file:///b"]);
        match receipt {
            Some(receipt) => scene.report("w", job.attempt, &receipt, 0),
            None => scene.release(job.attempt, 0),
        };
    }
    let job = requeue(&mut scene);
    assert_eq!(job.previous, ["file:///a", "file:///b"]);
    scene.report("w", job.attempt, &success(&["file:///c"]), 0);
    let job = requeue(&mut scene);
    assert_eq!(job.previous, ["file:///c"]);
    // A row of an earlier release has only a receipt, which a failure overwrites.
    scene.report("w", job.attempt, &success(&[]), 0);
    scene.sql(
        "UPDATE cf_processing_queue SET published = NULL, \
         receipt = '{\"artifacts\":[{\"uri\":\"file:///old\"},{\"topic\":\"x\"},7]}'",
    );
    for _ in 0..2 {
        let job = requeue(&mut scene);
        assert_eq!(job.previous, ["file:///old"]);
        scene.report("w", job.attempt, &failure(None, "no"), 0);
    }
}

#[test]
fn attempts_record_how_they_ended_and_only_the_last_are_kept() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
    let lines: Vec<String> = (0..80).map(|line| format!("line {line}")).collect();
    let receipt = Receipt {
        metrics: [
            ("signal".to_owned(), 9),
            ("exit_code".to_owned(), 1),
            ("rss_max_bytes".to_owned(), 12_345),
        ]
        .into(),
        log_tail: Some(lines.join("\n")),
        ..failure(Some(Cause::Plugin), "killed")
    };
    scene.report("w", attempt, &receipt, 5000);
    let row = scene.inspect(id).attempts.remove(0);
    assert_eq!((row.signal, row.exit_code), (Some(9), Some(1)));
    assert_eq!(row.rss_max_bytes, Some(12_345));
    assert_eq!(row.started, Some(format_time(DAY_MS)));
    assert_eq!(row.ended, Some(format_time(DAY_MS + 5000)));
    assert_eq!(row.hostname.as_deref(), Some("host"));
    let log = row.log_tail.unwrap();
    assert_eq!(log.lines().count(), 50);
    assert!(log.starts_with("line 30\n") && log.ends_with("line 79"));
    for _ in 0..120 {
        scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
        let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
        scene.report("w", attempt, &success(&[]), 0);
    }
    let attempts = scene.inspect(id).attempts;
    assert_eq!(attempts.len() as i64, crate::limits::ATTEMPTS_KEPT);
    assert_eq!(attempts.last().unwrap().attempt.number, 121);
    // They are deleted with their job.
    scene.sql("DELETE FROM cf_processing_queue");
    assert_eq!(
        scene.text("SELECT count(*) FROM cf_job_attempt"),
        "Integer(0)"
    );
}

#[test]
fn all_running_jobs_can_be_put_back_in_batches() {
    let mut scene = Scene::new();
    for _ in 0..5 {
        scene.enqueue("p", 0);
    }
    assert_eq!(scene.claim(&["p"], 5).jobs.len(), 5);
    let mut counts = Vec::new();
    for _ in 0..4 {
        let mut transaction = scene.store.begin().unwrap();
        counts.push(
            transaction
                .requeue_running("the run ended", 2, &now(0))
                .unwrap(),
        );
        transaction.commit().unwrap();
    }
    assert_eq!(counts, [2, 2, 1, 0]);
    assert_eq!(scene.claim(&["p"], 9).jobs.len(), 5);
    assert_eq!(scene.inspect(1).retry_count, 0);
}

#[test]
fn retries_survive_a_restart_of_the_machine_and_jumps_of_the_clock() {
    let other_start = |unix_ms: i64| Now {
        unix_ms,
        boot_ms: 5,
        boot_id: "other-start".into(),
    };
    // (time of day after the reboot, the job is due at once)
    for (unix_ms, due) in [
        (DAY_MS + 3_600_000, true),
        (DAY_MS - 3_600_000, true),
        (DAY_MS, false),
    ] {
        let mut scene = Scene::new();
        let id = scene.enqueue("p", 0);
        let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
        scene.report("w", attempt, &failure(Some(Cause::Worker), "x"), 0);
        let start = other_start(unix_ms);
        assert_eq!(scene.store.next_due_boot_ms(&start).unwrap(), Some(5));
        scene.wake(&start);
        assert_eq!(scene.status(id) == "QUEUED", due, "{unix_ms}");
        if !due {
            let next = scene.store.next_due_boot_ms(&start).unwrap().unwrap();
            assert!((805..=1205).contains(&next), "{next}");
            let later = Now {
                boot_ms: next,
                // The wall clock is set back meanwhile.
                unix_ms: 0,
                ..start
            };
            assert_eq!(scene.wake(&later), 1);
        }
        assert_eq!(scene.status(id), "QUEUED");
    }
}

#[test]
fn pending_rows_without_next_run_wait_and_those_with_a_bad_one_do_not() {
    let mut scene = Scene::new();
    let ids: Vec<i64> = (0..6).map(|_| scene.enqueue("p", 0)).collect();
    scene.sql("UPDATE cf_processing_queue SET status = 'PENDING'");
    for (id, values) in [
        (ids[1], "next_run = 'soon'"),
        (
            ids[2],
            "next_run = x'ff', next_run_boot_ms = 'x', next_run_boot_id = 'this-start'",
        ),
        (
            ids[3],
            "next_run = 7, next_run_boot_ms = NULL, next_run_boot_id = x'00'",
        ),
        (
            ids[4],
            "next_run = '', next_run_boot_ms = 1e300, next_run_boot_id = 'this-start'",
        ),
        (
            ids[5],
            "next_run = '2025-12-20', next_run_boot_ms = -5, next_run_boot_id = 'zzz'",
        ),
    ] {
        scene.sql(&format!(
            "UPDATE cf_processing_queue SET {values} WHERE id = {id}"
        ));
    }
    while scene.wake(&now(0)) > 0 {}
    assert_eq!(scene.status(ids[0]), "PENDING");
    for id in &ids[1..] {
        assert_eq!(scene.status(*id), "QUEUED", "{id}");
    }
    assert_eq!(scene.store.next_due_boot_ms(&now(0)).unwrap(), None);
    // Parked rows are not retried.
    let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
    scene.report("w", attempt, &failure(Some(Cause::Worker), "x"), 0);
    let mut transaction = scene.store.begin().unwrap();
    transaction.park_queued().unwrap();
    transaction.commit().unwrap();
    assert_eq!(scene.wake(&now(1_000_000)), 0);
}
