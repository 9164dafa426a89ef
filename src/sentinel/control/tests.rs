use std::sync::Arc;

use super::*;
use crate::job::{Job, Plugin};
use crate::protocol::{Deploy, EnvReady, Heartbeat, HeartbeatStatus};

const LEASE: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(3);

fn control() -> Control {
    Control::new(Settings {
        lease: LEASE,
        grace: GRACE,
    })
}

fn peer(number: u64) -> PeerId {
    PeerId::from_u64(number)
}

/// A sender whose user nobody has asked for.
fn from(number: u64, identity: &[u8]) -> Sender<'_> {
    Sender {
        peer: peer(number),
        identity,
        user: None,
    }
}

fn identify(slots: u32, running: Option<Vec<Attempt>>) -> Payload<'static> {
    Payload::Identify(Identify {
        capabilities: vec!["*".into()],
        slots: Some(slots),
        running,
        ..Identify::default()
    })
}

fn assignment(job_id: i64, attempt: i64, env_hash: &str) -> Job {
    Job {
        attempt: Attempt::new(job_id, attempt),
        file_path: "/in".into(),
        file_version_id: 1,
        sinks: [].into(),
        plugin: Arc::new(Plugin {
            name: "p".into(),
            source_code: "code".into(),
            env_hash: env_hash.into(),
            lockfile_content: "lock".into(),
            artifact_hash: "hash".into(),
        }),
        database: None,
        previous: Vec::new(),
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

fn kinds(control: &mut Control) -> Vec<String> {
    let outgoing = control.take_outgoing();
    outgoing
        .iter()
        .map(|message| {
            let name = format!("{:?}", message.payload);
            format!("{} {}", name.split('(').next().unwrap(), message.job_id)
        })
        .collect()
}

/// A control state with one worker `w` at peer 1.
fn with_worker(slots: u32, now: Instant) -> Control {
    let mut control = control();
    control.handle_message(&from(1, b"w"), 0, identify(slots, Some(vec![])), now);
    control.take_changes();
    control
}

#[test]
fn a_worker_gets_jobs_up_to_its_slots_and_each_environment_once() {
    let now = Instant::now();
    let mut control = with_worker(2, now);
    assert_eq!(control.openings()[0].free, 2);
    control.handle_claimed(b"w", vec![assignment(5, 1, "e"), assignment(6, 1, "e")]);
    assert_eq!(
        kinds(&mut control),
        ["PrepareEnv 0", "Dispatch 5", "Dispatch 6"]
    );
    assert!(!control.has_openings());
    control.handle_message(&from(1, b"w"), 5, conclude(Some(1)), now);
    let changes = control.take_changes();
    assert!(
        matches!(&changes[..], [Change::Complete { job_id: 5, attempt: Some(1), worker_id, .. }] if worker_id == "w"),
        "{changes:?}"
    );
    assert_eq!(control.openings()[0].free, 1);
    control.handle_claimed(b"w", vec![assignment(7, 1, "e"), assignment(8, 1, "")]);
    assert_eq!(kinds(&mut control), ["Dispatch 7", "Dispatch 8"]);
}

#[test]
fn a_stale_receipt_frees_nothing_and_leaves_the_decision_to_the_database() {
    let now = Instant::now();
    let mut control = with_worker(1, now);
    control.handle_claimed(b"w", vec![assignment(5, 2, "")]);
    control.handle_message(&from(1, b"w"), 5, conclude(Some(1)), now);
    assert_eq!(control.held_count(), 1);
    assert!(matches!(
        control.take_changes()[..],
        [Change::Complete {
            attempt: Some(1),
            ..
        }]
    ));
    // A worker that does not know attempts ends the one it holds.
    control.handle_message(&from(1, b"w"), 5, conclude(None), now);
    assert_eq!(control.held_count(), 0);
    assert!(matches!(
        control.take_changes()[..],
        [Change::Complete {
            attempt: Some(2),
            ..
        }]
    ));
    control.handle_message(&from(9, b"stranger"), 5, conclude(None), now);
    assert!(matches!(
        control.take_changes()[..],
        [Change::Complete { attempt: None, .. }]
    ));
    control.handle_message(&from(1, b"w"), u64::MAX, conclude(None), now);
    assert!(control.take_changes().is_empty(), "an impossible job id");
}

#[test]
fn a_worker_that_stays_away_loses_its_jobs_and_one_that_returns_does_not() {
    let now = Instant::now();
    for returns in [false, true] {
        let mut control = with_worker(1, now);
        control.handle_claimed(b"w", vec![assignment(5, 1, "")]);
        control.handle_disconnected(peer(1), b"w", now);
        assert!(!control.has_openings() && control.online_count() == 0);
        assert!(control.poll_timeout().unwrap() <= now + GRACE);
        if returns {
            let running = Some(vec![Attempt::new(5, 1)]);
            control.handle_message(&from(2, b"w"), 0, identify(1, running), now);
        }
        control.take_changes();
        control.handle_timeout(now + GRACE);
        let changes = control.take_changes();
        if returns {
            assert!(changes.is_empty(), "{changes:?}");
            assert_eq!(control.held_count(), 1);
        } else {
            assert!(
                matches!(
                    &changes[..],
                    [
                        Change::Release {
                            hold: Attempt { job_id: 5, .. },
                            ..
                        },
                        Change::WorkerOffline { .. }
                    ]
                ),
                "{changes:?}"
            );
            // A claim that was on its way goes back too.
            control.handle_claimed(b"w", vec![assignment(6, 1, "")]);
            assert!(matches!(
                control.take_changes()[..],
                [Change::Release { .. }]
            ));
        }
    }
}

#[test]
fn an_old_connections_end_does_not_touch_the_new_one() {
    let now = Instant::now();
    let mut control = with_worker(1, now);
    control.handle_message(&from(2, b"w"), 0, identify(1, Some(vec![])), now);
    control.handle_disconnected(peer(1), b"w", now);
    assert_eq!(control.online_count(), 1);
}

#[test]
fn identify_reconciles_what_the_worker_holds_with_what_we_think() {
    let now = Instant::now();
    let mut control = with_worker(2, now);
    control.handle_claimed(b"w", vec![assignment(5, 1, ""), assignment(6, 1, "")]);
    control.take_outgoing();
    let running = vec![Attempt::new(6, 1), Attempt::new(7, 3)];
    control.handle_message(&from(1, b"w"), 0, identify(2, Some(running.clone())), now);
    assert_eq!(control.held_count(), 1);
    let changes = control.take_changes();
    assert!(changes.contains(&Change::Reconcile {
        worker_id: "w".into(),
        running
    }));
    assert!(matches!(
        changes.last(),
        Some(Change::Adopt {
            job_id: 7,
            attempt: Some(3),
            ..
        })
    ));
    control.handle_adopted(b"w", 7, Some(3));
    assert_eq!(control.held_count(), 2);
    control.handle_adopted(b"w", 8, None);
    assert_eq!(kinds(&mut control), ["Abort 8"]);
}

#[test]
fn a_worker_of_an_earlier_life_is_remembered_or_asked() {
    let now = Instant::now();
    let mut control = control();
    control.remember_worker(
        "old",
        Identify {
            capabilities: vec!["p".into()],
            slots: Some(1),
            ..Identify::default()
        },
    );
    control.handle_message(&from(1, b"old"), 0, heartbeat(Some(9), None), now);
    assert_eq!(
        control.openings()[0].capabilities,
        Capabilities::Plugins(vec!["p".into()])
    );
    let changes = control.take_changes();
    assert!(
        matches!(
            changes.last(),
            Some(Change::Adopt {
                job_id: 9,
                attempt: None,
                ..
            })
        ),
        "{changes:?}"
    );
    control.handle_message(&from(2, b"new"), 0, heartbeat(None, None), now);
    assert_eq!(kinds(&mut control), ["Reload 0"]);
}

const ANN: &str = "0123456789012345678901234567890123456789 ann";
const ANN_RENAMED: &str = "0123456789012345678901234567890123456789 anne";
const ANN_REKEYED: &str = "3333333333333333333333333333333333333333 ann";
const BOB: &str = "2222222222222222222222222222222222222222 bob";

#[test]
fn users_are_the_same_by_key_or_by_name() {
    for (one, other, different) in [
        (Some(ANN), Some(ANN_RENAMED), false),
        (Some(ANN), Some(ANN_REKEYED), false),
        (Some(ANN), Some(BOB), true),
        (Some(ANN), None, false),
        // Names of PLAIN, which have no key before them.
        (Some("bob ops"), Some("eve ops"), true),
        (Some("bob ops"), Some("bob dev"), true),
        (Some("bob ops"), Some("bob ops"), false),
    ] {
        assert_eq!(are_different(one, other), different, "{one:?} {other:?}");
    }
}

#[test]
fn the_last_of_two_connections_with_one_id_keeps_it() {
    let now = Instant::now();
    let mut control = control();
    let named = || {
        Payload::Identify(Identify {
            worker_id: Some("w".into()),
            ..Identify::default()
        })
    };
    for (number, identity) in [(1, &b"a"[..]), (2, b"b")] {
        let ann = Sender {
            user: Some(ANN),
            ..from(number, identity)
        };
        assert_eq!(control.handle_message(&ann, 0, named(), now), None);
    }
    control.take_changes();
    control.handle_disconnected(peer(2), b"b", now);
    control.handle_timeout(now + GRACE);
    let is_offline = |change: &Change| matches!(change, Change::WorkerOffline { .. });
    assert!(!control.take_changes().iter().any(is_offline));
    let bob = Sender {
        user: Some(BOB),
        ..from(3, b"c")
    };
    let said = control.handle_message(&bob, 0, named(), now + GRACE);
    assert_eq!(said, Some(ANOTHERS));
}

#[test]
fn nobody_speaks_for_the_worker_of_another_user() {
    let now = Instant::now();
    let by = |user: &'static str, identity: &'static [u8]| Sender {
        user: Some(user),
        ..from(2, identity)
    };
    let named = |worker_id: &str| {
        Payload::Identify(Identify {
            worker_id: Some(worker_id.to_owned().into()),
            ..Identify::default()
        })
    };
    let mut control = control();
    control.remember_claimant("w-0".into(), ANN.into(), now + LEASE);
    let ann = Sender {
        peer: peer(1),
        ..by(ANN, b"w-1")
    };
    assert_eq!(control.handle_message(&ann, 0, named("w-1"), now), None);
    control.handle_claimed(b"w-1", vec![assignment(5, 1, "")]);
    control.take_changes();
    // Neither while it is here, nor away, by its routing id or by its name; nor for one that an
    // earlier sentinel gave jobs to.
    for away in [false, true] {
        if away {
            control.handle_disconnected(peer(1), b"w-1", now);
        }
        for (identity, payload) in [
            (&b"w-1"[..], identify(1, Some(vec![]))),
            (b"w-1", conclude(Some(1))),
            (b"w-1", heartbeat(Some(5), None)),
            (b"other", named("w-1")),
            (b"other", named("w-0")),
            (b"w-0", conclude(None)),
            (b"w-0", heartbeat(Some(5), None)),
        ] {
            let said = control.handle_message(&by(BOB, identity), 5, payload, now);
            assert_eq!(said, Some(ANOTHERS), "{}", printable(identity));
        }
        assert!(control.take_changes().is_empty());
    }
    assert_eq!(control.held_count(), 1);
    // Nor does another keep its name by silence.
    assert!(control.is_anothers(&by(BOB, b"w-1")) && control.is_anothers(&by(BOB, b"w-0")));
    assert!(!control.is_anothers(&by(ANN, b"w-1")) && !control.is_anothers(&by(BOB, b"x")));
    // Its own user comes back to it, by the key or by the name; another has it when it is gone
    // for good.
    for user in [ANN_RENAMED, ANN_REKEYED] {
        let back = control.handle_message(&by(user, b"w-1"), 0, heartbeat(Some(5), None), now);
        assert_eq!(back, None);
    }
    control.take_changes();
    control.handle_disconnected(peer(2), b"w-1", now);
    let back = control.handle_message(&by(ANN, b"w-1"), 5, conclude(Some(1)), now);
    assert_eq!(back, None);
    let later = now + GRACE;
    control.handle_timeout(later);
    let taken = control.handle_message(&by(BOB, b"w-1"), 0, named("w-1"), later);
    assert_eq!(taken, None);
    // A claim counts until what ran by it is nobody's.
    let much_later = now + LEASE;
    for (forgets_at, want) in [
        (now + LEASE / 2, Some(ANOTHERS)),
        (much_later + GRACE, None),
    ] {
        control.forget_claimants(forgets_at);
        let taken = control.handle_message(&by(BOB, b"w-0"), 0, named("w-0"), much_later);
        assert_eq!(taken, want);
    }
}

#[test]
fn leases_of_connected_workers_are_renewed_and_revoked_jobs_are_aborted() {
    let now = Instant::now();
    let mut control = with_worker(1, now);
    control.handle_claimed(b"w", vec![assignment(5, 1, "")]);
    control.take_outgoing();
    control.handle_timeout(now + LEASE / 3);
    assert!(
        matches!(&control.take_changes()[..], [Change::Renew { holds, .. }] if holds.len() == 1)
    );
    control.handle_revoked(5);
    assert_eq!(kinds(&mut control), ["Abort 5"]);
    assert!(control.has_openings());
}

#[test]
fn errors_end_jobs_and_odd_messages_change_nothing() {
    let now = Instant::now();
    let mut control = with_worker(1, now);
    control.handle_claimed(b"w", vec![assignment(5, 1, "")]);
    control.take_outgoing();
    let error = || {
        Payload::Err(ErrPayload {
            message: "boom".into(),
            traceback: Some("tb".into()),
        })
    };
    control.handle_message(&from(1, b"w"), 0, error(), now);
    assert!(control.take_changes().is_empty(), "no job is meant");
    control.handle_message(&from(1, b"w"), 5, error(), now);
    match &control.take_changes()[..] {
        [Change::Complete { receipt, .. }] => {
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
fn draining_and_failed_commits_keep_what_is_owed() {
    let now = Instant::now();
    let mut control = with_worker(1, now);
    control.handle_claimed(b"w", vec![assignment(5, 1, "")]);
    control.handle_message(&from(1, b"w"), 5, conclude(Some(1)), now);
    let changes = control.take_changes();
    control.handle_disconnected(peer(1), b"w", now);
    control.handle_timeout(now + GRACE);
    control.restore_changes(changes.clone());
    let again = control.take_changes();
    assert_eq!(again[..changes.len()], changes, "the receipt comes first");
    control.drain();
    control.handle_message(&from(1, b"w"), 0, identify(4, Some(vec![])), now);
    assert!(!control.has_openings() && control.openings().is_empty());
}

#[test]
fn capabilities_and_names_are_bounded() {
    let some = Capabilities::new(&["b".into(), "a".into(), "b".into()]);
    assert!(some.allows("a") && !some.allows("c"));
    assert_eq!(some.names(), ["a", "b"]);
    assert!(Capabilities::new(&["a".into(), "*".into()]).allows("anything"));
    assert_eq!(cut("aé", 2), "a");
    assert_eq!(printable(b"w-1"), "w-1");
    assert_eq!(printable(&[0, 255]), "00ff");
}

#[test]
fn ends_of_connections_that_were_not_told_are_found() {
    let now = Instant::now();
    let mut control = with_worker(2, now);
    control.handle_claimed(b"w", vec![assignment(5, 1, "")]);
    control.check_connections(|_| true, now);
    assert_eq!(control.online_count(), 1);
    control.check_connections(|_| false, now);
    assert_eq!((control.online_count(), control.held_count()), (0, 1));
    control.take_changes();
    control.handle_timeout(now + GRACE);
    let released = control.take_changes();
    let is_release = |change: &Change| matches!(change, Change::Release { .. });
    assert!(released.iter().any(is_release), "{released:?}");
}

#[test]
fn a_worker_that_takes_another_id_leaves_its_old_one() {
    let now = Instant::now();
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
