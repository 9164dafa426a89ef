//! Tests of leases, receipts and exclusive sinks.

use super::*;

#[test]
fn an_answer_renews_the_leases_of_all_that_a_worker_holds() {
    let mut control = with_process(at(0));
    let (first, second) = (Attempt::new(5, 1), Attempt::new(6, 3));
    let seen = answers(&mut control, at(0));
    assert_eq!((seen.len(), seen[0].1.sequence), (1, 1));
    control.handle_claimed(
        b"w.a",
        vec![assignment(5, 1, ""), assignment(6, 3, "")],
        at(1),
    );
    let dispatched = control.take_outgoing();
    for message in &dispatched {
        let (header, json) = message.encode().unwrap();
        let view = View::decode([&header[..], &json].into_iter()).unwrap();
        let Payload::Dispatch(dispatch) = Payload::decode(&view).unwrap() else {
            panic!("{message:?}")
        };
        assert_eq!(
            (&*dispatch.source_code, &*dispatch.file_path),
            ("code", "/in")
        );
        assert_eq!(
            (dispatch.lease_of, dispatch.lease_ms),
            (Some(1), Some(10_000))
        );
    }
    // The first lease counts from the last request before DISPATCH, received at 0 s.
    control.handle_timeout(at(11));
    assert!(released(&mut control).is_empty());
    control.handle_message(
        &from(1, b"w.a"),
        0,
        request(2, Some(1), &[first, second]),
        at(11),
    );
    let seen = answers(&mut control, at(11));
    assert_eq!(seen[0].1.leases, [first, second]);
    assert!(
        answers(&mut control, at(11)).is_empty(),
        "one answer a request"
    );
    for (seconds, want) in [(12, 0), (22, 0), (23, 2)] {
        control.handle_timeout(at(seconds));
        let released = released(&mut control);
        assert_eq!(released.len(), want, "{seconds}");
        assert!(released.iter().all(|(_, lost)| *lost));
    }
}

#[test]
fn no_connection_and_no_ping_is_evidence_of_a_holder() {
    let job = Attempt::new(5, 1);
    // (what happens after the dispatch at 0 s, the second at which the job is released).
    type Step = fn(&mut Control, Attempt);
    let cases: [(&str, Step, u64); 5] = [
        ("silent, connected", |_, _| {}, 12),
        (
            "disconnected",
            |control, _| control.handle_disconnected(peer(1), b"w.a", at(1)),
            12,
        ),
        (
            "cut, back after 4 s with the job",
            |control, job| {
                control.handle_disconnected(peer(1), b"w.a", at(1));
                control.handle_timeout(at(4));
                control.handle_message(&from(2, b"w.a"), 0, introduce("a", 5, &[job]), at(5));
                assert_eq!(answers(control, at(5))[0].1.leases, [job]);
            },
            17,
        ),
        (
            "other messages without a request",
            |control, _| {
                let ready = EnvReady {
                    env_hash: "e".into(),
                    interpreter_path: "/p".into(),
                    cached: true,
                };
                control.handle_message(&from(1, b"w.a"), 0, Payload::EnvReady(ready), at(9));
            },
            12,
        ),
        (
            "an old request again",
            |control, job| {
                control.handle_message(&from(1, b"w.a"), 0, request(1, None, &[job]), at(9));
                assert!(answers(control, at(9)).is_empty());
            },
            12,
        ),
    ];
    for (name, step, want) in cases {
        let mut control = with_process(at(0));
        answers(&mut control, at(0));
        control.handle_claimed(b"w.a", vec![assignment(5, 1, "")], at(0));
        control.take_outgoing();
        step(&mut control, job);
        control.take_changes();
        control.handle_timeout(at(want - 1));
        assert!(released(&mut control).is_empty(), "{name}: too early");
        control.handle_timeout(at(want));
        assert_eq!(released(&mut control), [(job, true)], "{name}");
    }
}

#[test]
fn a_holder_that_reports_that_it_does_not_have_a_job_gives_it_back_at_once() {
    let job = Attempt::new(5, 1);
    type Step = fn(&mut Control);
    let cases: [(&str, Step, bool); 5] = [
        (
            "a request sent before DISPATCH arrived",
            |control| {
                control.handle_message(&from(1, b"w.a"), 0, request(2, Some(1), &[]), at(1));
            },
            false,
        ),
        (
            "a request after a later answer arrived",
            |control| {
                control.handle_message(&from(1, b"w.a"), 0, request(2, Some(1), &[]), at(1));
                answers(control, at(1));
                control.handle_message(&from(1, b"w.a"), 0, request(3, Some(2), &[]), at(2));
            },
            true,
        ),
        (
            "the same process on a new connection",
            |control| {
                control.handle_disconnected(peer(1), b"w.a", at(1));
                control.handle_message(&from(2, b"w.a"), 0, introduce("a", 2, &[]), at(2));
            },
            true,
        ),
        (
            "the same process after it was reported offline",
            |control| {
                control.handle_disconnected(peer(1), b"w.a", at(1));
                control.handle_timeout(at(5));
                control.handle_message(&from(2, b"w.a"), 0, introduce("a", 2, &[]), at(6));
            },
            true,
        ),
        (
            "another process of the ID",
            |control| {
                control.handle_disconnected(peer(1), b"w.a", at(1));
                control.handle_message(&from(2, b"w.b"), 0, introduce("b", 2, &[]), at(2));
            },
            false,
        ),
    ];
    for (name, step, given_back) in cases {
        let mut control = with_process(at(0));
        answers(&mut control, at(0));
        control.handle_claimed(b"w.a", vec![assignment(5, 1, "")], at(0));
        control.take_outgoing();
        step(&mut control);
        let want: &[(Attempt, bool)] = if given_back { &[(job, false)] } else { &[] };
        assert_eq!(released(&mut control), want, "{name}");
    }
}

#[test]
fn a_receipt_is_acknowledged_after_its_commit_and_once() {
    let job = Attempt::new(5, 1);
    let mut control = with_process(at(0));
    answers(&mut control, at(0));
    control.handle_claimed(b"w.a", vec![assignment(5, 1, "")], at(0));
    control.take_outgoing();
    for _ in 0..3 {
        control.handle_message(&from(1, b"w.a"), 5, conclude(Some(1)), at(1));
        // The receipt waits for its transaction, so the worker still lists the attempt.
        control.handle_message(&from(1, b"w.a"), 0, request(2, Some(1), &[job]), at(1));
    }
    let seen = answers(&mut control, at(1));
    assert!(
        seen[0].1.acknowledged.is_empty() && seen[0].1.abort.is_empty(),
        "{seen:?}"
    );
    let changes = control.take_changes();
    control.restore_changes(changes);
    let ends = commit(&mut control);
    let ends = ends
        .iter()
        .filter(|change| matches!(change, Change::End { .. }));
    assert_eq!(ends.count(), 1);
    assert_eq!(answers(&mut control, at(1))[0].1.acknowledged, [job]);
    // The receipt is sent again after the commit, because the acknowledgement was lost. The database decides,
    // and it is acknowledged again.
    control.handle_message(&from(1, b"w.a"), 5, conclude(Some(1)), at(2));
    commit(&mut control);
    assert_eq!(answers(&mut control, at(2))[0].1.acknowledged, [job]);
}

#[test]
fn a_worker_that_lists_what_is_not_its_own_is_asked_to_stop_it() {
    let (mine, other) = (Attempt::new(5, 1), Attempt::new(9, 4));
    let mut control = with_process(at(0));
    control.inherit(mine, "w", None, at(0));
    control.inherit(other, "v", None, at(0));
    control.handle_message(&from(1, b"w.a"), 0, request(2, None, &[mine, other]), at(1));
    let seen = answers(&mut control, at(1));
    assert_eq!(
        (&seen[0].1.leases[..], &seen[0].1.abort[..]),
        (&[mine][..], &[other][..])
    );
    // The attempt of a row that another program has changed is revoked.
    control.handle_revoked(mine);
    let seen = answers(&mut control, at(2));
    assert_eq!(
        (seen[0].1.leases.len(), &seen[0].1.abort[..]),
        (0, &[mine][..])
    );
    control.handle_timeout(at(12));
    assert_eq!(
        released(&mut control),
        [(other, true)],
        "a whole lease from the start"
    );
}

#[test]
fn a_failing_database_bounds_what_is_kept_and_keeps_leases_alive() {
    let job = Attempt::new(5, 1);
    let mut control = with_process(at(0));
    control.handle_claimed(b"w.a", vec![assignment(5, 1, "")], at(0));
    for second in 0..1000 {
        let now = at(second);
        control.handle_message(&from(1, b"w.a"), 0, introduce("a", second + 2, &[job]), now);
        let payload = request(second + 3, None, &[job, Attempt::new(8, 1)]);
        control.handle_message(&from(1, b"w.a"), 0, payload, now);
        control.handle_timeout(now);
        assert!(answers(&mut control, now)[0].1.leases.contains(&job));
    }
    let changes = control.take_changes();
    assert!(changes.len() < 200, "{}", changes.len());
}

#[test]
fn one_attempt_at_a_time_publishes_into_an_exclusive_sink() {
    let (first, second) = (Attempt::new(5, 1), Attempt::new(6, 1));
    let ask = |sequence, attempt| {
        Payload::Heartbeat(Heartbeat {
            running: Some(vec![first, second]),
            sequence: Some(sequence),
            publish: vec![PublishRequest {
                attempt,
                exclusive: vec!["parquet://o".into()],
            }],
            ..Heartbeat::default()
        })
    };
    for ends in ["receipt", "lost", "lease"] {
        let mut control = with_process(at(0));
        let jobs = vec![assignment(5, 1, ""), assignment(6, 1, "")];
        control.handle_claimed(b"w.a", jobs, at(0));
        control.handle_message(&from(1, b"w.a"), 0, ask(2, first), at(1));
        assert_eq!(answers(&mut control, at(1))[0].1.publish, [first]);
        assert!(!control.has_openings(at(1)), "both slots run");
        control.handle_message(&from(1, b"w.a"), 0, ask(3, second), at(2));
        assert!(answers(&mut control, at(2))[0].1.publish.is_empty());
        assert_eq!(
            control.openings(at(2))[0].free,
            1,
            "what waits has left its slot"
        );
        control.take_changes();
        if ends == "receipt" {
            control.handle_message(&from(1, b"w.a"), 5, conclude(Some(1)), at(3));
            let given = answers(&mut control, at(3));
            assert_eq!(
                (&given[0].1.publish[..], given[0].1.bar.len()),
                (&[second][..], 0)
            );
            continue;
        }
        if ends == "lost" {
            // The worker has given up its publish, because the storage did not respond.
            let lost = Payload::Conclude(Receipt::failed(first, Cause::Lost, "no answer"));
            control.handle_message(&from(1, b"w.a"), 5, lost, at(3));
            let given = answers(&mut control, at(3));
            assert_eq!(given[0].1.publish, [second]);
            assert_eq!(given[0].1.bar, [first]);
            continue;
        }
        // The holder's worker is paused. The other attempt's job asks again from another worker.
        control.handle_timeout(at(14));
        assert_eq!(released(&mut control).len(), 2);
        control.handle_message(&from(2, b"v.x"), 0, introduce_as("v", "x"), at(14));
        control.handle_claimed(b"v.x", vec![assignment(6, 2, "")], at(14));
        let third = Attempt::new(6, 2);
        control.handle_message(&from(2, b"v.x"), 0, ask(2, third), at(14));
        let given = answers(&mut control, at(14));
        let given = given.iter().find(|(to, _)| *to == peer(2)).unwrap();
        assert_eq!(
            (&given.1.publish[..], &given.1.bar[..]),
            (&[third][..], &[first][..])
        );
    }
}

/// A publish that began under an earlier sentinel and is given up under this one is barred, too.
#[test]
fn an_inherited_attempt_that_is_lost_is_barred() {
    let (first, second) = (Attempt::new(5, 1), Attempt::new(6, 1));
    let mut control = control();
    control.inherit(first, "w", None, at(0));
    control.handle_message(&from(1, b"w.a"), 0, introduce("a", 1, &[first]), at(1));
    control.handle_claimed(b"w.a", vec![assignment(6, 1, "")], at(1));
    let lost = Payload::Conclude(Receipt::failed(first, Cause::Lost, "no answer"));
    control.handle_message(&from(1, b"w.a"), 5, lost, at(2));
    let ask = Payload::Heartbeat(Heartbeat {
        running: Some(vec![second]),
        sequence: Some(2),
        publish: vec![PublishRequest {
            attempt: second,
            exclusive: vec!["parquet://o".into()],
        }],
        ..Heartbeat::default()
    });
    control.handle_message(&from(1, b"w.a"), 0, ask, at(20));
    let given = answers(&mut control, at(20));
    assert_eq!(given[0].1.publish, [second]);
    assert_eq!(given[0].1.bar, [first]);
}

/// Another program cancelled a job while no sentinel ran. Its worker may still publish.
#[test]
fn an_attempt_of_a_cancelled_row_is_waited_for_and_barred() {
    let (first, second) = (Attempt::new(5, 1), Attempt::new(6, 1));
    let mut control = control();
    control.inherit_unreported(first, at(0));
    control.handle_message(&from(1, b"w.a"), 0, introduce("a", 1, &[]), at(1));
    control.handle_claimed(b"w.a", vec![assignment(6, 1, "")], at(1));
    for (sequence, when, is_given) in [(2, 2, false), (3, 20, true)] {
        let ask = Payload::Heartbeat(Heartbeat {
            running: Some(vec![second]),
            sequence: Some(sequence),
            publish: vec![PublishRequest {
                attempt: second,
                exclusive: vec!["parquet://o".into()],
            }],
            ..Heartbeat::default()
        });
        control.handle_message(&from(1, b"w.a"), 0, ask, at(when));
        let given = answers(&mut control, at(when));
        let (publish, bar) = (&given[0].1.publish, &given[0].1.bar);
        let want: (&[Attempt], &[Attempt]) = match is_given {
            true => (&[second], &[first]),
            false => (&[], &[]),
        };
        assert_eq!((&publish[..], &bar[..]), want, "{when}");
    }
}

#[test]
fn the_absence_of_the_sentinel_itself_costs_no_lease() {
    let job = Attempt::new(5, 1);
    let mut control = with_process(at(0));
    answers(&mut control, at(0));
    control.handle_claimed(b"w.a", vec![assignment(5, 1, "")], at(0));
    control.inherit(Attempt::new(6, 1), "v", None, at(0));
    // The sentinel was stopped for 100 s. Messages that the worker sent meanwhile have not been received yet.
    control.handle_suspension(Duration::from_secs(100), at(100));
    control.handle_timeout(at(100));
    assert_eq!(released(&mut control), []);
    control.handle_message(&from(1, b"w.a"), 0, request(2, Some(1), &[job]), at(101));
    answers(&mut control, at(101));
    control.handle_timeout(at(112));
    assert_eq!(released(&mut control), [(Attempt::new(6, 1), true)]);
    control.handle_timeout(at(113));
    assert_eq!(released(&mut control), [(job, true)]);
}

#[test]
fn an_earlier_sentinel_may_have_given_longer_leases() {
    let job = Attempt::new(5, 1);
    let mut control = control();
    control.set_earlier_lease(at(60));
    control.inherit(job, "w", None, at(0));
    control.handle_timeout(at(61));
    assert!(control.is_known(job));
    control.handle_timeout(at(62));
    assert_eq!(released(&mut control), [(job, true)]);
}

#[test]
fn a_job_that_runs_alone_stays_alone_under_another_sentinel() {
    let job = Attempt::new(5, 1);
    for is_alone in [false, true] {
        let mut control = control();
        control.inherit(job, "w", None, at(0));
        if is_alone {
            control.inherit_alone(job);
        }
        control.handle_message(&from(1, b"w.a"), 0, introduce("a", 1, &[job]), at(1));
        assert_eq!(control.claim_count(), 1);
        assert_eq!(control.has_openings(at(1)), !is_alone);
    }
}

/// Two workers. The order of their names must not decide.
#[test]
fn exclusive_sinks_are_given_in_the_order_in_which_they_were_asked_for() {
    let mut control = control();
    let ids: [&[u8]; 2] = [b"a.1", b"z.1"];
    for (peer, id, name) in [(1, ids[0], "a"), (2, ids[1], "z")] {
        control.handle_message(&from(peer, id), 0, introduce_as(name, "1"), at(1));
    }
    // (worker, job) in the order in which they ask. Job 20 needs both sinks.
    let asked = [(1, 10), (1, 20), (0, 1), (1, 11), (0, 2)];
    let sinks = |job: i64| -> Vec<String> {
        match job {
            20 => vec!["parquet://o".to_owned(), "parquet://other".to_owned()],
            _ => vec!["parquet://o".to_owned()],
        }
    };
    for (worker, job) in asked {
        control.handle_claimed(ids[worker], vec![assignment(job, 1, "")], at(1));
    }
    let mut given = Vec::new();
    let mut sequence = 2;
    for round in 0..20 {
        let (worker, job) = asked[round % asked.len()];
        let attempt = Attempt::new(job, 1);
        if !given.contains(&job) {
            let request = Payload::Heartbeat(Heartbeat {
                running: None,
                sequence: Some(sequence),
                publish: vec![PublishRequest {
                    attempt,
                    exclusive: sinks(job),
                }],
                ..Heartbeat::default()
            });
            let sender = from(worker as u64 + 1, ids[worker]);
            control.handle_message(&sender, 0, request, at(2));
            sequence += 1;
        }
        // All have asked before the first one is done.
        if round + 1 < asked.len() {
            continue;
        }
        for (_, answer) in answers(&mut control, at(2)) {
            for attempt in answer.publish {
                given.push(attempt.job_id);
                let worker = asked
                    .iter()
                    .find(|(_, job)| *job == attempt.job_id)
                    .unwrap()
                    .0;
                let done = Payload::Conclude(Receipt {
                    status: JobStatus::Success,
                    attempt: Some(1),
                    ..Receipt::default()
                });
                let job_id = attempt.job_id.unsigned_abs();
                let sender = from(worker as u64 + 1, ids[worker]);
                control.handle_message(&sender, job_id, done, at(2));
                control.handle_ended(ids[worker], attempt);
            }
        }
    }
    assert_eq!(given, asked.map(|(_, job)| job));
}

/// The connection is cut before the answer that gives the attempt its sinks arrives.
#[test]
fn an_attempt_that_was_given_its_sinks_is_not_behind_those_that_wait() {
    let mut control = control();
    let ask = |control: &mut Control, sequence, job| {
        let request = Payload::Heartbeat(Heartbeat {
            running: None,
            sequence: Some(sequence),
            publish: vec![PublishRequest {
                attempt: Attempt::new(job, 1),
                exclusive: vec!["parquet://o".into()],
            }],
            ..Heartbeat::default()
        });
        control.handle_message(&from(1, b"w.a"), 0, request, at(2));
        let mut given = Vec::new();
        for (_, answer) in answers(control, at(2)) {
            given.extend(answer.publish);
        }
        given
    };
    control.handle_message(&from(1, b"w.a"), 0, introduce("a", 1, &[]), at(1));
    let jobs = vec![assignment(5, 1, ""), assignment(6, 1, "")];
    control.handle_claimed(b"w.a", jobs, at(1));
    let first = [Attempt::new(5, 1)];
    assert_eq!(ask(&mut control, 2, 5), first);
    assert_eq!(ask(&mut control, 3, 6), []);
    assert_eq!(ask(&mut control, 4, 5), first, "it asks again");
}

#[test]
fn what_waits_for_its_environment_occupies_no_slot_within_a_bound() {
    let mut control = with_process(at(0));
    answers(&mut control, at(0));
    let free = |control: &Control| control.openings(at(1)).first().map_or(0, |one| one.free);
    let slots = free(&control);
    let mut waiting = Vec::new();
    let mut given = 0;
    while free(&control) > 0 {
        let jobs = (0..free(&control)).map(|_| {
            given += 1;
            assignment(given, 1, "slow")
        });
        control.handle_claimed(b"w.a", jobs.collect(), at(1));
        assert_eq!(free(&control), 0);
        waiting = (1..=given).map(|id| Attempt::new(id, 1)).collect();
        control.take_freed();
        let sequence = 1 + given as u64;
        let Payload::Heartbeat(heartbeat) = request(sequence, None, &waiting) else {
            panic!()
        };
        let heartbeat = Heartbeat {
            waiting: waiting.clone(),
            ..heartbeat
        };
        control.handle_message(&from(1, b"w.a"), 0, Payload::Heartbeat(heartbeat), at(1));
        assert!(control.take_freed());
    }
    assert!(waiting.len() >= limits::WAITING_MAX, "{}", waiting.len());
    assert!(waiting.len() < limits::WAITING_MAX + slots);
    // The environment is ready, so they occupy slots: more than there are.
    control.handle_message(&from(1, b"w.a"), 0, request(900, None, &waiting), at(1));
    assert_eq!((free(&control), control.take_freed()), (0, false));
}

/// An attempt that its worker has not started, by its last report, is not counted as lost. It counts as
/// another job of the worker for the other attempts.
#[test]
fn a_lost_worker_costs_what_waits_for_its_environment_nothing() {
    let (runs, waits) = (Attempt::new(5, 1), Attempt::new(6, 1));
    let mut control = with_process(at(0));
    answers(&mut control, at(0));
    let jobs = vec![assignment(5, 1, ""), assignment(6, 1, "slow")];
    control.handle_claimed(b"w.a", jobs, at(0));
    let Payload::Heartbeat(heartbeat) = request(2, Some(1), &[runs, waits]) else {
        panic!()
    };
    let heartbeat = Heartbeat {
        waiting: vec![waits],
        ..heartbeat
    };
    control.handle_message(&from(1, b"w.a"), 0, Payload::Heartbeat(heartbeat), at(1));
    answers(&mut control, at(1));
    control.take_changes();
    control.handle_timeout(at(13));
    let mut lost = lost(&mut control);
    lost.sort_by_key(|(attempt, _)| *attempt);
    assert_eq!(lost, [(runs, Loss::Shared), (waits, Loss::Waiting)]);
}

/// A worker that creates an environment is idle for a job that runs alone. A job that runs alone and waits
/// for its own environment does not keep slots from others.
#[test]
fn environments_that_are_created_and_jobs_that_run_alone_do_not_wait_for_each_other() {
    let mut control = with_process(at(0));
    answers(&mut control, at(0));
    let (alone, other) = (Attempt::new(5, 1), Attempt::new(6, 1));
    control.handle_claimed(b"w.a", vec![assignment(5, 1, "slow")], at(0));
    control.keep_alone(b"w.a", alone);
    assert!(control.openings(at(0)).is_empty());
    let waiting = |sequence: u64, waiting: &[Attempt], running: &[Attempt]| {
        let Payload::Heartbeat(heartbeat) = request(sequence, Some(1), running) else {
            panic!()
        };
        Payload::Heartbeat(Heartbeat {
            waiting: waiting.to_vec(),
            ..heartbeat
        })
    };
    control.handle_message(&from(1, b"w.a"), 0, waiting(2, &[alone], &[alone]), at(1));
    let open = control.openings(at(1));
    assert!(open[0].is_idle && open[0].free == 2, "{open:?}");
    control.handle_claimed(b"w.a", vec![assignment(6, 1, "")], at(1));
    assert!(!control.openings(at(1))[0].is_idle);
    // The environment is ready.
    control.handle_message(&from(1, b"w.a"), 0, waiting(3, &[], &[alone, other]), at(2));
    assert!(control.openings(at(2)).is_empty());
}

#[test]
fn the_loss_of_a_row_without_a_worker_has_a_reason_of_its_own() {
    let mut control = control();
    control.inherit(Attempt::new(3, 0), "", None, at(0));
    control.inherit(Attempt::new(4, 1), "w", None, at(0));
    control.handle_timeout(at(13));
    let changes = control.take_changes().into_iter();
    let reasons: Vec<String> = changes
        .filter_map(|change| match change {
            Change::Release { reason, .. } => Some(reason),
            _ => None,
        })
        .collect();
    assert_eq!(
        reasons,
        [
            "its worker, which the row does not name, was lost: its lease ran out",
            "worker w was lost: its lease ran out",
        ]
    );
}

#[test]
fn an_old_worker_loses_its_job_after_a_lease_of_idleness() {
    let status = |status, current_job_id| {
        Payload::Heartbeat(Heartbeat {
            status,
            current_job_id,
            ..Heartbeat::default()
        })
    };
    let idle = || status(HeartbeatStatus::Idle, None);
    let busy = || status(HeartbeatStatus::Busy, Some(5));
    // (the heartbeats, the second of the one that ends the attempt). The lease is 10 s, the margin 2 s.
    type Heartbeats = [(u64, bool)];
    let cases: [(&Heartbeats, Option<u64>); 5] = [
        (&[(1, true), (7, true), (12, true), (13, true)], Some(13)),
        (&[(1, true), (40, true)], Some(40)),
        // Busy in between: counted anew.
        (&[(1, true), (7, false), (13, true), (24, true)], None),
        (&[(1, false), (40, false), (80, true), (91, true)], None),
        // The dispatch came after heartbeats of an idle worker.
        (&[(1, true), (11, true)], None),
    ];
    for (heartbeats, ends_at) in cases {
        let mut control = with_worker(1, at(0));
        control.handle_message(&from(1, b"w"), 0, idle(), at(0));
        control.handle_claimed(b"w", vec![assignment(5, 1, "")], at(0));
        let mut ended_at = None;
        for &(second, is_idle) in heartbeats {
            let payload = if is_idle { idle() } else { busy() };
            control.handle_timeout(at(second));
            control.handle_message(&from(1, b"w"), 0, payload, at(second));
            let lost = released(&mut control);
            if !lost.is_empty() {
                assert_eq!(lost, [(Attempt::new(5, 1), true)]);
                ended_at = Some(second);
            }
        }
        assert_eq!(ended_at, ends_at, "{heartbeats:?}");
        let free: usize = control.openings(at(100)).iter().map(|it| it.free).sum();
        assert_eq!(usize::from(ends_at.is_some()), free, "{heartbeats:?}");
    }
}
