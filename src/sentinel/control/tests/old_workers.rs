//! Tests of workers of the reference system.

use super::*;

#[test]
fn old_workers_keep_their_jobs_while_they_are_connected() {
    let now = at(0);
    let job = Attempt::new(5, 1);
    let mut control = with_worker(1, now);
    control.handle_claimed(b"w", vec![assignment(5, 1, "")], now);
    for seconds in 1..100 {
        control.handle_timeout(at(seconds));
    }
    assert!(released(&mut control).is_empty());
    control.handle_disconnected(peer(1), b"w", at(100));
    control.handle_timeout(at(105));
    assert!(
        released(&mut control).is_empty(),
        "a connection is no evidence"
    );
    control.handle_timeout(at(113));
    assert_eq!(released(&mut control), [(job, true)]);
}

#[test]
fn receipts_of_old_workers_end_what_they_hold_by_the_job_alone() {
    let now = at(0);
    let mut control = with_worker(1, now);
    control.handle_claimed(b"w", vec![assignment(5, 2, "")], now);
    // The receipt of an earlier attempt frees no slot. The database decides whether it counts.
    control.handle_message(&from(1, b"w"), 5, conclude(Some(1)), now);
    assert_eq!(control.claim_count(), 1);
    control.handle_message(&from(1, b"w"), 5, conclude(None), now);
    assert_eq!(control.claim_count(), 0);
    // A receipt for an attempt of an earlier sentinel ends that attempt.
    control.inherit(Attempt::new(7, 4), "stranger", None, now);
    control.handle_message(&from(9, b"stranger"), 7, conclude(None), now);
    let ends: Vec<Attempt> = commit(&mut control)
        .iter()
        .filter_map(|change| match change {
            Change::End { attempt, .. } => Some(*attempt),
            _ => None,
        })
        .collect();
    assert_eq!(
        ends,
        [Attempt::new(5, 1), Attempt::new(5, 2), Attempt::new(7, 4)]
    );
    control.handle_message(&from(1, b"w"), u64::MAX, conclude(None), now);
    assert!(control.take_changes().is_empty(), "an impossible job ID");
}

#[test]
fn an_old_worker_of_an_earlier_sentinel_is_remembered_or_asked() {
    let now = at(0);
    let mut control = control();
    control.remember_worker(
        "old",
        None,
        None,
        Identify {
            capabilities: vec!["p".into()],
            slots: Some(2),
            ..Identify::default()
        },
    );
    control.inherit(Attempt::new(9, 2), "old", None, now);
    control.handle_message(&from(1, b"old"), 0, heartbeat(Some(9), None), now);
    assert_eq!(
        control.openings(now)[0].able.capabilities,
        Capabilities::Plugins(vec!["p".into()])
    );
    assert_eq!(control.claim_count(), 1);
    control.handle_message(&from(2, b"new"), 0, heartbeat(None, None), now);
    assert_eq!(kinds(&mut control), ["Reload 0"]);
}

/// Workers of the reference system may choose any routing ID in addition to the worker ID.
#[test]
fn an_old_worker_with_a_routing_id_of_its_own_is_remembered_by_that() {
    let now = at(0);
    let named = || Identify {
        worker_id: Some("w-1".into()),
        capabilities: vec!["p".into()],
        ..Identify::default()
    };
    let known_by = |routing_id: &[u8]| {
        let mut control = control();
        control.handle_message(&from(1, routing_id), 0, Payload::Identify(named()), now);
        let online = control.take_changes().into_iter();
        let mut online = online.filter_map(|change| match change {
            Change::WorkerOnline { routing_id, .. } => Some(routing_id),
            _ => None,
        });
        online.next().unwrap()
    };
    assert_eq!(known_by(b"r-1").as_deref(), Some("r-1"));
    assert_eq!(known_by(b"w-1").as_deref(), Some("w-1"));
    assert_eq!(known_by(b"\0\x01\x02\x03\x04"), None, "made up by a socket");
    let restarted = || {
        let mut control = control();
        control.remember_worker(
            "w-1",
            Some(User::parse(ANN)),
            Some("r-1".to_owned()),
            named(),
        );
        control.inherit(Attempt::new(9, 2), "w-1", Some(User::parse(ANN)), now);
        control
    };
    // Its first message is a HEARTBEAT while idle, one while busy, or a receipt.
    let mut idle = restarted();
    idle.handle_message(&from(1, b"r-1"), 0, heartbeat(None, None), now);
    assert_eq!(idle.openings(now)[0].worker_id, "w-1");
    let mut busy = restarted();
    busy.handle_message(&from(1, b"r-1"), 0, heartbeat(Some(9), None), now);
    assert_eq!(busy.claim_count(), 1);
    let mut done = restarted();
    done.handle_message(&from(1, b"r-1"), 9, conclude(None), now);
    let changes = done.take_changes();
    let [
        Change::End {
            attempt, worker_id, ..
        },
    ] = changes.as_slice()
    else {
        panic!("{changes:?}");
    };
    assert_eq!((*attempt, worker_id.as_str()), (Attempt::new(9, 2), "w-1"));
    // Another user who uses the routing ID is not recognized as the worker.
    for payload in [heartbeat(Some(9), None), conclude(None)] {
        let mut control = restarted();
        let bob = Sender {
            user: Some(user(BOB)),
            ..from(2, b"r-1")
        };
        assert!(control.is_anothers(&bob));
        assert_eq!(
            control.handle_message(&bob, 9, payload, now),
            Some(ANOTHERS)
        );
        assert!(control.take_changes().is_empty());
    }
}

/// A worker of another user had the routing ID before.
#[test]
fn a_routing_id_makes_no_worker_one_of_another_user() {
    let now = at(0);
    let named = |id: &'static str| Identify {
        worker_id: Some(id.into()),
        ..Identify::default()
    };
    let restarted = || {
        let mut control = control();
        for (id, user) in [("b-1", BOB), ("a-1", ANN)] {
            let (user, routing_id) = (Some(User::parse(user)), Some("r".to_owned()));
            control.remember_worker(id, user, routing_id, named(id));
        }
        control
    };
    for (text, want) in [(ANN, "a-1"), (BOB, "b-1")] {
        let mut control = restarted();
        let from = Sender {
            user: Some(user(text)),
            ..from(1, b"r")
        };
        assert!(!control.is_anothers(&from));
        control.handle_message(&from, 0, heartbeat(None, None), now);
        assert_eq!(control.openings(now)[0].worker_id, want);
    }
    // A third user is asked for IDENTIFY.
    let mut control = restarted();
    let carl = User::parse("4444444444444444444444444444444444444444 carl");
    let third = Sender {
        user: Some(&carl),
        ..from(1, b"r")
    };
    control.handle_message(&third, 0, heartbeat(None, None), now);
    assert_eq!(kinds(&mut control), ["Reload 0"]);
    // While the last worker with the routing ID holds a job, the routing ID belongs to its user.
    let mut control = restarted();
    control.inherit(Attempt::new(9, 2), "b-1", Some(User::parse(BOB)), now);
    for (text, is_anothers) in [(ANN, true), (BOB, false)] {
        let from = Sender {
            user: Some(user(text)),
            ..from(1, b"r")
        };
        assert_eq!(control.is_anothers(&from), is_anothers, "{text}");
    }
}

#[test]
fn the_last_of_two_old_connections_with_one_id_keeps_it() {
    let now = at(0);
    let mut control = control();
    let named = || {
        Payload::Identify(Identify {
            worker_id: Some("w".into()),
            ..Identify::default()
        })
    };
    for (number, routing_id) in [(1, &b"a"[..]), (2, b"b")] {
        let ann = Sender {
            user: Some(user(ANN)),
            ..from(number, routing_id)
        };
        assert_eq!(control.handle_message(&ann, 0, named(), now), None);
    }
    control.take_changes();
    control.handle_disconnected(peer(2), b"b", now);
    control.handle_timeout(at(4));
    let is_offline = |change: &Change| matches!(change, Change::WorkerOffline { .. });
    assert!(!control.take_changes().iter().any(is_offline));
    let bob = Sender {
        user: Some(user(BOB)),
        ..from(3, b"c")
    };
    let sent = control.handle_message(&bob, 0, named(), at(4));
    assert_eq!(sent, Some(ANOTHERS));
}

/// A network switch that restarts cuts all connections for longer than a lease.
#[test]
fn an_old_worker_that_was_disconnected_is_known_when_it_sends_again() {
    let mut control = control();
    let identify = Identify {
        worker_id: Some("w-1".into()),
        capabilities: vec!["p".into()],
        slots: Some(2),
        ..Identify::default()
    };
    control.handle_message(&from(1, b"r-1"), 0, Payload::Identify(identify), at(0));
    for round in 1..4 {
        let now = at(round * 1000);
        control.handle_disconnected(peer(round), b"r-1", now);
        control.handle_timeout(at(round * 1000 + 500));
        assert!(control.openings(now).is_empty(), "it is offline");
        control.handle_message(&from(round + 1, b"r-1"), 0, heartbeat(None, None), now);
        let opening = &control.openings(now)[0];
        assert_eq!((opening.worker_id.as_str(), opening.free), ("w-1", 2));
    }
}
