use std::sync::Arc;

use super::*;
use crate::job::{Job, Loss, Plugin};
use crate::protocol::{Answer, Deploy, EnvReady, HeartbeatStatus, PublishRequest, View};

mod caps;
mod hoarders;
mod leases;
mod old_workers;
mod settling;
mod user_limits;

const LEASE: Duration = Duration::from_secs(10);
const MARGIN: Duration = Duration::from_secs(2);

fn control() -> Control {
    Control::new(Settings {
        lease: LEASE,
        margin: MARGIN,
        attempt_timeout: limits::ATTEMPT_TIMEOUT,
    })
}

/// A time this many seconds after the start of the test.
fn at(seconds: u64) -> BootTime {
    BootTime::after_boot(Duration::from_secs(1000 + seconds))
}

fn peer(number: u64) -> PeerId {
    PeerId::from_u64(number)
}

/// A sender without an authenticated user.
fn from(number: u64, routing_id: &[u8]) -> Sender<'_> {
    Sender {
        peer: peer(number),
        routing_id,
        user: None,
    }
}

fn user(text: &str) -> &'static User {
    Box::leak(Box::new(User::parse(text)))
}

/// IDENTIFY of a worker of the reference system.
fn identify(slots: u32, running: Option<Vec<Attempt>>) -> Payload<'static> {
    Payload::Identify(Identify {
        capabilities: vec!["*".into()],
        slots: Some(slots),
        running,
        ..Identify::default()
    })
}

/// IDENTIFY of worker `w`, sent by the process `instance`.
fn introduce(instance: &'static str, sequence: u64, running: &[Attempt]) -> Payload<'static> {
    Payload::Identify(Identify {
        capabilities: vec!["*".into()],
        worker_id: Some("w".into()),
        slots: Some(2),
        running: Some(running.to_vec()),
        instance: Some(instance.into()),
        sequence: Some(sequence),
        pid: Some(77),
        ..Identify::default()
    })
}

/// A numbered HEARTBEAT.
fn request(sequence: u64, answered: Option<u64>, running: &[Attempt]) -> Payload<'static> {
    Payload::Heartbeat(Heartbeat {
        running: Some(running.to_vec()),
        sequence: Some(sequence),
        answered,
        ..Heartbeat::default()
    })
}

fn assignment(job_id: i64, attempt: i64, env_hash: &str) -> Job {
    Job {
        attempt: Attempt::new(job_id, attempt),
        file_path: "/in".into(),
        file_version_id: 1,
        content: None,
        sinks: [].into(),
        parameters: Default::default(),
        plugin: Arc::new(Plugin {
            name: "p".into(),
            source_code: "code".into(),
            env_hash: env_hash.into(),
            lockfile_content: "lock".into(),
            artifact_hash: "hash".into(),
        }),
        database: None,
        previous: Vec::new(),
        history: Default::default(),
    }
}

fn conclude(attempt: Option<i64>) -> Payload<'static> {
    Payload::Conclude(Receipt {
        status: JobStatus::Success,
        attempt,
        ..Receipt::default()
    })
}

fn heartbeat(current_job_id: Option<i64>, running: Option<Vec<Attempt>>) -> Payload<'static> {
    Payload::Heartbeat(Heartbeat {
        status: HeartbeatStatus::Idle,
        current_job_id,
        running,
        ..Heartbeat::default()
    })
}

/// The answers that are due, with their peers.
fn answers(control: &mut Control, now: BootTime) -> Vec<(PeerId, Answer)> {
    let messages = control.poll_answers(now).into_iter();
    messages
        .filter_map(|message| match message.body {
            Body::Payload(Payload::Heartbeat(heartbeat)) => Some((message.peer, heartbeat.answer?)),
            _ => None,
        })
        .collect()
}

/// The released attempts, each with whether it counts as lost.
fn released(control: &mut Control) -> Vec<(Attempt, bool)> {
    let changes = control.take_changes().into_iter();
    changes
        .filter_map(|change| match change {
            Change::Release { attempt, cause, .. } => Some((attempt, cause == Cause::Lost)),
            Change::GiveBack { attempt, .. } => Some((attempt, false)),
            _ => None,
        })
        .collect()
}

/// Commits everything that waits for a transaction.
fn commit(control: &mut Control) -> Vec<Change> {
    let changes = control.take_changes();
    for change in &changes {
        match change {
            Change::End {
                routing_id,
                attempt,
                ..
            } => control.handle_ended(routing_id, *attempt),
            Change::Release { attempt, .. } | Change::GiveBack { attempt, .. } => {
                control.handle_released(*attempt);
            }
            _ => {}
        }
    }
    changes
}

/// A control state with the process `a` as worker `w` at peer 1, routing ID `w.a`.
fn with_process(now: BootTime) -> Control {
    let mut control = control();
    control.handle_message(&from(1, b"w.a"), 0, introduce("a", 1, &[]), now);
    control.take_changes();
    control
}

fn kinds(control: &mut Control) -> Vec<String> {
    let outgoing = control.take_outgoing();
    outgoing
        .iter()
        .map(|message| {
            let name = match &message.body {
                Body::Dispatch { .. } => "Dispatch".to_owned(),
                Body::Payload(payload) => format!("{payload:?}"),
            };
            format!("{} {}", name.split('(').next().unwrap(), message.job_id)
        })
        .collect()
}

/// A control state with one worker `w` at peer 1.
fn with_worker(slots: u32, now: BootTime) -> Control {
    let mut control = control();
    control.handle_message(&from(1, b"w"), 0, identify(slots, Some(vec![])), now);
    control.take_changes();
    control
}

#[test]
fn a_worker_gets_jobs_up_to_its_slots_and_each_environment_once() {
    let now = at(0);
    let mut control = with_worker(2, now);
    assert_eq!(control.openings(now)[0].free, 2);
    control.handle_claimed(
        b"w",
        vec![assignment(5, 1, "e"), assignment(6, 1, "e")],
        now,
    );
    assert_eq!(
        kinds(&mut control),
        ["PrepareEnv 0", "Dispatch 5", "Dispatch 6"]
    );
    assert!(!control.has_openings(now));
    control.handle_message(&from(1, b"w"), 5, conclude(Some(1)), now);
    let changes = control.take_changes();
    assert!(
        matches!(&changes[..], [Change::End { attempt, worker_id, .. }] if worker_id == "w" && *attempt == Attempt::new(5, 1)),
        "{changes:?}"
    );
    assert_eq!(control.openings(now)[0].free, 1);
    control.handle_claimed(b"w", vec![assignment(7, 1, "e"), assignment(8, 1, "")], now);
    assert_eq!(kinds(&mut control), ["Dispatch 7", "Dispatch 8"]);
}

#[test]
fn an_old_connections_end_does_not_touch_the_new_one() {
    let now = at(0);
    let mut control = with_worker(1, now);
    control.handle_message(&from(2, b"w"), 0, identify(1, Some(vec![])), now);
    control.handle_disconnected(peer(1), b"w", now);
    assert_eq!(control.online_count(), 1);
}

const ANN: &str = "0123456789012345678901234567890123456789 ann";
const ANN_RENAMED: &str = "0123456789012345678901234567890123456789 anne";
const ANN_REKEYED: &str = "3333333333333333333333333333333333333333 ann";
const BOB: &str = "2222222222222222222222222222222222222222 bob";

#[test]
fn errors_end_jobs_and_odd_messages_change_nothing() {
    let now = at(0);
    let mut control = with_worker(1, now);
    control.handle_claimed(b"w", vec![assignment(5, 1, "")], now);
    control.take_outgoing();
    let error = || {
        Payload::Err(ErrorMessage {
            message: "boom".into(),
            traceback: Some("tb".into()),
            refused: false,
            env_hash: None,
        })
    };
    control.handle_message(&from(1, b"w"), 0, error(), now);
    assert!(control.take_changes().is_empty(), "no job is meant");
    control.handle_message(&from(1, b"w"), 5, error(), now);
    match &control.take_changes()[..] {
        [Change::End { receipt, .. }] => {
            assert_eq!(receipt.status, JobStatus::Failed);
            assert_eq!(receipt.error_message.as_deref(), Some("boom\ntb"));
        }
        other => panic!("{other:?}"),
    }
    let ready = EnvReady {
        env_hash: "e".into(),
        interpreter_path: "/p".into(),
        cached: true,
    };
    for payload in [
        Payload::Abort,
        Payload::Unknown,
        Payload::Reload,
        Payload::EnvReady(ready),
    ] {
        control.handle_message(&from(1, b"w"), 1, payload, now);
    }
    assert!(control.take_changes().is_empty() && control.take_outgoing().is_empty());
    let deploy = Deploy {
        plugin_name: "p".into(),
        version: "1".into(),
        source_code: "".into(),
        lockfile_content: "".into(),
        env_hash: "".into(),
        artifact_hash: "".into(),
        signature: "".into(),
        publisher_name: "".into(),
        publisher_email: None,
        azure_oid: None,
        system_requirements: None,
    };
    control.handle_message(
        &from(7, b"client"),
        3,
        Payload::Deploy(Box::new(deploy)),
        now,
    );
    assert_eq!(kinds(&mut control), ["Err 3"]);
}

#[test]
fn capabilities_and_names_are_bounded() {
    let some = Capabilities::new(&["b".into(), "a".into(), "b".into()]);
    assert!(some.allows("a") && !some.allows("c"));
    assert_eq!(some.names(), ["a", "b"]);
    assert!(Capabilities::new(&["a".into(), "*".into()]).allows("anything"));
    assert_eq!(printable(b"w-1"), "w-1");
    assert_eq!(printable(&[0, 255]), "00ff");
}

#[test]
fn a_worker_that_takes_another_id_leaves_its_old_one() {
    let now = at(0);
    let mut control = with_worker(1, now);
    let renamed = Payload::Identify(Identify {
        worker_id: Some("new".into()),
        ..Identify::default()
    });
    control.handle_message(&from(1, b"w"), 0, renamed, now);
    let gone = Change::WorkerOffline {
        worker_id: "w".into(),
    };
    assert!(control.take_changes().contains(&gone));
}

#[test]
fn of_two_processes_with_one_id_the_live_one_stays() {
    let job = Attempt::new(5, 1);
    for answers_reload in [true, false] {
        let mut control = with_process(at(0));
        answers(&mut control, at(0));
        control.handle_claimed(b"w.a", vec![assignment(5, 1, "")], at(0));
        control.take_outgoing();
        control.handle_message(&from(2, b"w.b"), 0, introduce("b", 1, &[]), at(1));
        let asked = control.take_outgoing();
        assert!(
            matches!(asked[..], [Outgoing { peer: to, body: Body::Payload(Payload::Reload), .. }] if to == peer(1))
        );
        // Messages of the second process are ignored meanwhile.
        control.handle_message(&from(2, b"w.b"), 0, request(2, None, &[]), at(1));
        control.handle_message(&from(2, b"w.b"), 5, conclude(Some(1)), at(1));
        assert!(control.take_outgoing().is_empty());
        if answers_reload {
            control.handle_message(&from(1, b"w.a"), 0, introduce("a", 2, &[job]), at(2));
            control.handle_timeout(at(2));
            let refused = control.take_outgoing();
            let Body::Payload(Payload::Err(error)) = &refused[0].body else {
                panic!("{refused:?}")
            };
            assert!(
                error.refused && error.message.contains("--worker-id"),
                "{error:?}"
            );
            assert_eq!(refused[0].peer, peer(2));
            control.handle_timeout(at(4));
            answers(&mut control, at(4));
            assert_eq!(control.openings(at(4)).len(), 1);
        } else {
            assert_eq!(control.poll_timeout(), Some(at(3)));
            control.handle_timeout(at(3));
            assert_eq!(answers(&mut control, at(3))[0].0, peer(2));
        }
        assert!(released(&mut control).is_empty(), "it costs no attempt");
        control.handle_timeout(at(12));
        let want: &[(Attempt, Loss)] = match answers_reload {
            true => &[],
            false => &[(job, Loss::Displaced)],
        };
        assert_eq!(
            lost(&mut control),
            want,
            "the first one's lease runs out first"
        );
    }
}

fn lost(control: &mut Control) -> Vec<(Attempt, Loss)> {
    let changes = control.take_changes().into_iter();
    let lost = changes.filter_map(|change| match change {
        Change::Release { attempt, loss, .. } => Some((attempt, loss)),
        _ => None,
    });
    lost.collect()
}

/// A process with two jobs is silent or disconnected while another process takes over its ID. Then it sends
/// messages again.
#[test]
fn a_process_that_has_lost_its_id_and_comes_back_costs_its_jobs_no_attempt() {
    let (first, second) = (Attempt::new(5, 1), Attempt::new(6, 1));
    for is_cut in [false, true] {
        let mut control = with_process(at(0));
        answers(&mut control, at(0));
        let jobs = vec![assignment(5, 1, ""), assignment(6, 1, "")];
        control.handle_claimed(b"w.a", jobs, at(0));
        if is_cut {
            control.handle_disconnected(peer(1), b"w.a", at(1));
        }
        control.handle_message(&from(2, b"w.b"), 0, introduce("b", 1, &[]), at(1));
        control.handle_timeout(at(3));
        assert_eq!(control.openings(at(3)).len(), 1, "the second one is in");
        control.take_outgoing();
        let back = || introduce("a", 5, &[first, second]);
        control.handle_message(&from(3, b"w.a"), 0, back(), at(4));
        control.handle_message(&from(2, b"w.b"), 0, introduce("b", 2, &[]), at(5));
        control.handle_timeout(at(5));
        let refused = control.take_outgoing();
        let is_refusal = |message: &Outgoing| match &message.body {
            Body::Payload(Payload::Err(error)) => error.refused && message.peer == peer(3),
            _ => false,
        };
        assert!(refused.iter().any(is_refusal), "{refused:?}");
        // Its reports on its own jobs count, not those on jobs of others.
        let mut returned = Receipt::failed(first, Cause::Operator, "its worker was stopped");
        returned.returned = true;
        control.take_changes();
        control.handle_message(
            &from(4, b"w.c"),
            5,
            Payload::Conclude(returned.clone()),
            at(4),
        );
        assert!(control.take_changes().is_empty());
        control.handle_message(&from(3, b"w.a"), 5, Payload::Conclude(returned), at(4));
        let changes = commit(&mut control);
        let is_end = |change: &Change| {
            matches!(change, Change::End { attempt, worker_id, .. }
                if *attempt == first && worker_id == "w")
        };
        assert!(changes.iter().any(is_end), "{changes:?}");
        // The lease of the other job ends.
        control.handle_timeout(at(11));
        assert!(lost(&mut control).is_empty());
        control.handle_timeout(at(12));
        assert_eq!(lost(&mut control), [(second, Loss::Displaced)]);
    }
}

/// The same after a restart of the sentinel, which then has no processes.
#[test]
fn a_process_whose_id_was_taken_while_the_sentinel_restarted_costs_its_jobs_no_attempt() {
    let (first, second) = (Attempt::new(5, 1), Attempt::new(6, 1));
    let mut control = control();
    for attempt in [first, second] {
        control.inherit(attempt, "w", None, at(0));
    }
    control.handle_message(&from(2, b"w.b"), 0, introduce("b", 1, &[]), at(1));
    control.handle_message(
        &from(1, b"w.a"),
        0,
        introduce("a", 5, &[first, second]),
        at(2),
    );
    control.handle_message(&from(2, b"w.b"), 0, introduce("b", 2, &[]), at(3));
    control.handle_timeout(at(3));
    let mut returned = Receipt::failed(first, Cause::Operator, "its worker was stopped");
    returned.returned = true;
    control.handle_message(&from(1, b"w.a"), 5, Payload::Conclude(returned), at(3));
    let changes = commit(&mut control);
    let is_end =
        |change: &Change| matches!(change, Change::End { attempt, .. } if *attempt == first);
    assert!(changes.iter().any(is_end), "{changes:?}");
    control.handle_timeout(at(100));
    assert_eq!(lost(&mut control), [(second, Loss::Displaced)]);
}

fn introduce_as(worker_id: &'static str, instance: &'static str) -> Payload<'static> {
    Payload::Identify(Identify {
        capabilities: vec!["*".into()],
        worker_id: Some(worker_id.into()),
        slots: Some(2),
        running: Some(Vec::new()),
        instance: Some(instance.into()),
        sequence: Some(1),
        ..Identify::default()
    })
}

#[test]
fn workers_that_drain_or_are_in_trouble_get_no_jobs() {
    for (draining, trouble) in [(true, None), (false, Some("disk full".to_owned()))] {
        let mut control = with_process(at(0));
        assert!(control.has_openings(at(0)));
        let payload = Payload::Heartbeat(Heartbeat {
            running: Some(Vec::new()),
            sequence: Some(2),
            draining,
            trouble: trouble.clone(),
            ..Heartbeat::default()
        });
        control.handle_message(&from(1, b"w.a"), 0, payload, at(1));
        assert!(!control.has_openings(at(1)) && control.openings(at(1)).is_empty());
        let reports = control.take_changes();
        let reported = reports.iter().find_map(|change| match change {
            Change::WorkerOnline { trouble, .. } => Some(trouble.clone()),
            _ => None,
        });
        assert_eq!(reported, trouble.map(Some), "{reports:?}");
        control.handle_message(&from(1, b"w.a"), 0, request(3, None, &[]), at(2));
        assert!(control.has_openings(at(2)));
        // A worker that has not sent a message for half a lease has no openings.
        assert!(!control.has_openings(at(8)));
    }
}

#[test]
fn a_worker_gets_no_more_jobs_than_it_takes_beyond_what_it_lists() {
    let free = |control: &Control| control.open_slots(at(1)).get(&b"w.a"[..]).copied();
    let mut control = with_process(at(0));
    assert_eq!(free(&control), Some(2));
    let report = |control: &mut Control, sequence, takes, running: &[Attempt]| {
        let payload = Payload::Heartbeat(Heartbeat {
            running: Some(running.to_vec()),
            sequence: Some(sequence),
            takes,
            ..Heartbeat::default()
        });
        control.handle_message(&from(1, b"w.a"), 0, payload, at(1));
    };
    report(&mut control, 2, Some(0), &[]);
    assert_eq!(free(&control), None);
    report(&mut control, 3, Some(1), &[]);
    assert_eq!(free(&control), Some(1));
    control.handle_claimed(b"w.a", vec![assignment(5, 1, "")], at(1));
    assert_eq!(free(&control), None);
    // The dispatched job has not arrived yet. It is the one that the worker accepts.
    report(&mut control, 4, Some(1), &[]);
    assert_eq!(free(&control), None);
    report(&mut control, 5, Some(0), &[Attempt::new(5, 1)]);
    assert_eq!(free(&control), None);
    report(&mut control, 6, Some(1), &[Attempt::new(5, 1)]);
    assert_eq!(free(&control), Some(1));
    report(&mut control, 7, None, &[Attempt::new(5, 1)]);
    assert_eq!(free(&control), Some(1));
}

#[test]
fn a_dispatch_that_cannot_be_sent_fails_alone() {
    let mut control = with_process(at(0));
    let jobs = vec![assignment(5, 1, ""), assignment(6, 1, "")];
    control.handle_claimed(b"w.a", jobs, at(0));
    control.handle_unsent(Attempt::new(5, 1), "too large", true);
    control.handle_unsent(Attempt::new(6, 1), "full", false);
    let changes = control.take_changes();
    assert!(
        matches!(
            &changes[..],
            [
                Change::Release {
                    cause: Cause::Operator,
                    ..
                },
                Change::GiveBack { .. }
            ]
        ),
        "{changes:?}"
    );
    assert_eq!(control.claim_count(), 0);
    // The worker gets no more jobs before its send queue is sent.
    assert!(!control.has_openings(at(1)));
    control.handle_message(&from(1, b"w.a"), 0, request(3, None, &[]), at(1));
    assert!(control.has_openings(at(1)));
}

#[test]
fn no_user_speaks_for_the_worker_of_another() {
    let now = at(0);
    let by = |text: &str, routing_id: &'static [u8]| Sender {
        user: Some(user(text)),
        ..from(2, routing_id)
    };
    let named = |worker_id: &str| {
        Payload::Identify(Identify {
            worker_id: Some(worker_id.to_owned().into()),
            ..Identify::default()
        })
    };
    let mut control = control();
    let inherited = Attempt::new(3, 1);
    control.inherit(inherited, "w-0", Some(User::parse(ANN)), now);
    let ann = Sender {
        peer: peer(1),
        ..by(ANN, b"w-1")
    };
    assert_eq!(control.handle_message(&ann, 0, named("w-1"), now), None);
    control.handle_claimed(b"w-1", vec![assignment(5, 1, "")], now);
    control.take_changes();
    // Refused while the worker is connected or disconnected, by its routing ID or its worker ID; also for a
    // worker that has jobs of an earlier sentinel.
    for is_disconnected in [false, true] {
        if is_disconnected {
            control.handle_disconnected(peer(1), b"w-1", now);
        }
        for (routing_id, payload) in [
            (&b"w-1"[..], identify(1, Some(vec![]))),
            (b"w-1", conclude(Some(1))),
            (b"w-1", heartbeat(Some(5), None)),
            (b"other", named("w-1")),
            (b"other", named("w-0")),
            (b"w-0", conclude(None)),
            (b"w-0", heartbeat(Some(5), None)),
        ] {
            let sent = control.handle_message(&by(BOB, routing_id), 5, payload, now);
            assert_eq!(sent, Some(ANOTHERS), "{}", printable(routing_id));
        }
        assert!(control.take_changes().is_empty());
    }
    // A silent connection of another user does not keep the ID either.
    assert!(control.is_anothers(&by(BOB, b"w-1")) && control.is_anothers(&by(BOB, b"w-0")));
    assert!(!control.is_anothers(&by(ANN, b"w-1")) && !control.is_anothers(&by(BOB, b"x")));
    // Its own user is admitted again, by the key or by the name.
    for text in [ANN_RENAMED, ANN_REKEYED] {
        let back = control.handle_message(&by(text, b"w-1"), 0, heartbeat(Some(5), None), now);
        assert_eq!(back, None);
    }
    control.handle_disconnected(peer(2), b"w-1", now);
    // When its leases have ended, the ID is free.
    let later = at(13);
    control.handle_timeout(at(4));
    control.handle_timeout(later);
    for worker_id in ["w-1", "w-0"] {
        let taken = control.handle_message(&by(BOB, b"x"), 0, named(worker_id), later);
        assert_eq!(taken, None, "{worker_id}");
    }
}

#[test]
fn draining_gives_out_nothing_and_unreported_disconnects_are_found() {
    let now = at(0);
    let mut control = with_worker(2, now);
    control.check_connections(|_| true, now);
    assert_eq!(control.online_count(), 1);
    control.check_connections(|_| false, now);
    assert_eq!(control.online_count(), 0);
    control.handle_message(&from(1, b"w"), 0, identify(4, Some(vec![])), now);
    assert!(control.has_openings(now));
    control.drain();
    assert!(!control.has_openings(now) && control.openings(now).is_empty());
}

/// The scheduler polls the queue again when these change.
#[test]
fn slots_that_are_freed_without_a_change_are_reported() {
    let mut control = with_process(at(0));
    let free = |control: &Control, when| {
        let open = control.open_slots(at(when));
        open.get(&b"w.a"[..]).copied()
    };
    let all = free(&control, 0).unwrap();
    assert!(!control.take_freed());
    control.handle_claimed(b"w.a", vec![assignment(5, 1, "")], at(0));
    assert_eq!(free(&control, 0), Some(all - 1));
    control.handle_revoked(Attempt::new(5, 1));
    assert!(control.take_freed() && !control.take_freed());
    assert_eq!(free(&control, 0), Some(all));
    // No message for half a lease, then a message.
    assert_eq!(free(&control, 8), None);
    control.handle_message(&from(1, b"w.a"), 0, request(9, Some(1), &[]), at(8));
    assert_eq!(free(&control, 8), Some(all));
}

#[test]
fn a_worker_that_asks_for_another_users_id_is_refused_and_changes_nothing() {
    let now = at(0);
    let mut control = control();
    let by = |text: &str, number: u64, routing_id: &'static [u8]| Sender {
        user: Some(user(text)),
        ..from(number, routing_id)
    };
    control.handle_message(&by(ANN, 1, b"w/a"), 0, introduce("a", 1, &[]), now);
    commit(&mut control);
    for number in 1..=3 {
        let bob = by(BOB, 2, b"w/b");
        let job = Attempt::new(5, 1);
        let sent = control.handle_message(&bob, 0, introduce("b", number, &[job]), now);
        assert_eq!(sent, None);
        let messages = control.take_outgoing();
        let [refusal] = messages.as_slice() else {
            panic!("{messages:?}");
        };
        assert_eq!(refusal.peer, peer(2));
        let Body::Payload(Payload::Err(error)) = &refusal.body else {
            panic!("{refusal:?}");
        };
        assert!(error.refused && error.message.contains("--worker-id"));
        // The message does not contain who or where the other worker is.
        assert!(!error.message.contains("77") && !error.message.contains("ann"));
    }
    assert!(control.take_changes().is_empty());
    assert_eq!(control.online_count(), 1);
}
