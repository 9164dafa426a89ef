//! Tests of workers that exceed the bounds of messages.

use super::*;
use crate::job::ARTIFACTS_TRUNCATED;

fn identify_with(capabilities: Vec<String>) -> Payload<'static> {
    Payload::Identify(Identify {
        capabilities,
        ..Identify::default()
    })
}

#[test]
fn a_worker_with_too_many_plugins_is_refused_with_the_reason() {
    for (count, size, is_taken) in [
        (limits::CAPABILITIES_MAX, 10, true),
        (limits::CAPABILITIES_MAX + 1, 10, false),
        (2, limits::CAPABILITIES_SIZE_MAX / 2, true),
        (2, limits::CAPABILITIES_SIZE_MAX / 2 + 1, false),
    ] {
        let mut control = control();
        let message = identify_with(vec!["x".repeat(size); count]);
        assert_eq!(
            control.handle_message(&from(1, b"w"), 0, message, at(0)),
            None
        );
        assert_eq!(
            control.online_count(),
            usize::from(is_taken),
            "{count} {size}"
        );
        let refused = control.take_outgoing().into_iter().any(
            |message| matches!(message.body, Body::Payload(Payload::Err(error)) if error.refused),
        );
        assert_eq!(refused, !is_taken);
    }
}

/// A peer may connect under many worker IDs: what their lists need together is bounded.
#[test]
fn the_lists_of_many_workers_are_bounded_together() {
    let mut control = control();
    let names = |worker: u64| -> Vec<String> {
        (0..5_000)
            .map(|number| format!("{worker:04}-{number:04}"))
            .collect()
    };
    let mut size = 0;
    for worker in 0..1_000 {
        let id = format!("w{worker}");
        control.handle_message(
            &from(worker, id.as_bytes()),
            0,
            identify_with(names(worker)),
            at(0),
        );
        let online = control.online_count();
        size = online * 5_000 * (9 + limits::CAPABILITY_OVERHEAD);
    }
    assert!(size <= 2 * limits::CAPABILITIES_TOTAL_SIZE_MAX, "{size}");
    // A short list is accepted all the same.
    let before = control.online_count();
    control.handle_message(
        &from(5_000, b"short"),
        0,
        identify_with(vec!["p".to_owned()]),
        at(0),
    );
    assert_eq!(control.online_count(), before + 1);
}

#[test]
fn lists_longer_than_a_workers_can_be_are_refused() {
    let long: Vec<Attempt> = (0..=limits::LISTED_ATTEMPTS_MAX as i64)
        .map(|job| Attempt::new(job, 1))
        .collect();
    let mut control = with_process(at(0));
    let waiting = Heartbeat {
        sequence: Some(2),
        waiting: long.clone(),
        ..Heartbeat::default()
    };
    for message in [request(2, None, &long), Payload::Heartbeat(waiting)] {
        let refused = control.handle_message(&from(1, b"w.a"), 0, message, at(0));
        assert!(refused.is_some_and(|why| why.contains("attempts")));
    }
    let message = request(3, None, &long[1..]);
    assert_eq!(
        control.handle_message(&from(1, b"w.a"), 0, message, at(0)),
        None
    );
}

#[test]
fn what_a_worker_makes_up_costs_a_bounded_answer() {
    let made_up: Vec<Attempt> = (1..10_000).map(|job| Attempt::new(job, 1)).collect();
    let mut control = with_process(at(0));
    for sequence in 2..50 {
        let message = request(sequence, None, &made_up);
        control.handle_message(&from(1, b"w.a"), 0, message, at(0));
    }
    assert!(answers(&mut control, at(0))[0].1.abort.len() <= limits::ABORTS_MAX);
    let mut control = with_worker(2, at(0));
    control.take_outgoing();
    control.handle_message(&from(1, b"w"), 0, heartbeat(None, Some(made_up)), at(0));
    assert_eq!(control.take_outgoing().len(), 2, "an ABORT a slot");
}

#[test]
fn receipts_are_cut_and_what_waits_for_the_database_is_bounded_in_bytes() {
    let artifact = |size: usize| {
        [("uri".to_owned(), "u".repeat(size))]
            .into_iter()
            .collect::<BTreeMap<_, _>>()
    };
    let receipt = Receipt {
        metrics: (0..10_000)
            .map(|number| (format!("m{number}"), 1))
            .chain([("n".repeat(1 << 20), 1)])
            .collect(),
        artifacts: vec![artifact(100), artifact(1 << 20), artifact(200)],
        error_message: Some("e".repeat(1 << 20)),
        sandbox: Some("s".repeat(1 << 20)),
        ..Receipt::default()
    };
    let mut control = with_worker(1, at(0));
    control.take_changes();
    control.handle_message(&from(1, b"w"), 5, Payload::Conclude(receipt.clone()), at(0));
    let changes = control.take_changes();
    let [Change::End { receipt: cut, .. }] = changes.as_slice() else {
        panic!("{changes:?}")
    };
    assert!(cut.metrics.len() <= limits::METRICS_MAX + 1);
    assert_eq!(cut.metrics[ARTIFACTS_TRUNCATED], 1);
    assert_eq!(cut.artifacts, [artifact(100), artifact(200)]);
    assert!(cut.error_message.as_ref().unwrap().len() <= limits::ERROR_TEXT_SIZE_MAX);
    assert!(cut.sandbox.as_ref().unwrap().len() <= limits::NAME_SIZE_MAX);
    let large = Receipt {
        artifacts: vec![artifact(10_000); 700],
        ..Receipt::default()
    };
    let mut count = 0;
    while !control.is_full() {
        count += 1;
        assert!(count < 20, "7 MB each");
        let message = Payload::Conclude(large.clone());
        control.handle_message(&from(1, b"w"), 5, message, at(0));
    }
    let changes = control.take_changes();
    assert!(!control.is_full());
    control.restore_changes(changes);
    assert!(control.is_full(), "the transaction failed");
}
