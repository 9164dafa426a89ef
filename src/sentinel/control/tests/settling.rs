//! Tests of settlements.

use super::*;
use crate::job::Settlement;

fn settlement(job_id: i64, number: i64) -> Settlement {
    Settlement {
        attempt: Attempt::new(job_id, number),
        database: "d".into(),
        previous: Vec::new(),
        history: Default::default(),
        keep: true,
    }
}

fn receipt(number: i64, status: JobStatus) -> Payload<'static> {
    Payload::Conclude(Receipt {
        status,
        attempt: Some(number),
        ..Receipt::default()
    })
}

/// The settlements that each peer is asked for.
fn asked(control: &mut Control, now: BootTime) -> Vec<(PeerId, Vec<Attempt>)> {
    let answers = answers(control, now).into_iter();
    let attempts = |answer: Answer| answer.settle.iter().map(|one| one.attempt).collect();
    answers
        .map(|(peer, answer)| (peer, attempts(answer)))
        .filter(|(_, attempts): &(_, Vec<Attempt>)| !attempts.is_empty())
        .collect()
}

fn settled(control: &mut Control) -> Vec<Attempt> {
    let changes = control.take_changes().into_iter();
    changes
        .filter_map(|change| match change {
            Change::Settled { attempt, .. } => Some(attempt),
            Change::End { attempt, .. } => panic!("{attempt} is no job"),
            _ => None,
        })
        .collect()
}

#[test]
fn the_worker_that_had_the_job_settles_it_or_any_that_works() {
    let mut control = with_process(at(0));
    let other = introduce_as("v", "b");
    control.handle_message(&from(2, b"v.b"), 0, other, at(0));
    answers(&mut control, at(0));
    for (last, want) in [(Some("w"), peer(1)), (Some("v"), peer(2))] {
        let jobs = vec![(settlement(want.to_u64() as i64, 2), last.map(str::to_owned))];
        control.handle_unsettled(jobs, at(1));
        let asked = asked(&mut control, at(1));
        assert_eq!(asked.len(), 1);
        assert_eq!(asked[0].0, want);
    }
    // When the last worker is not connected or unknown, each try asks another worker.
    let mut seen = Vec::new();
    for number in [2, 3] {
        let last = (number == 2).then(|| "gone".to_owned());
        control.handle_unsettled(vec![(settlement(9, number), last)], at(1));
        seen.extend(asked(&mut control, at(1)).into_iter().map(|(peer, _)| peer));
    }
    seen.sort_unstable();
    assert_eq!(seen, [peer(1), peer(2)]);
}

#[test]
fn a_settlement_is_reported_acknowledged_and_asked_for_once() {
    let mut control = with_process(at(0));
    answers(&mut control, at(0));
    assert_eq!(control.settles_after(at(0)), Some(0));
    assert_eq!(control.to_settle(vec![5, 6]), [5, 6]);
    let (job, late) = (Attempt::new(5, 2), Attempt::new(6, 3));
    let jobs = vec![(settlement(5, 2), None), (settlement(6, 3), None)];
    control.handle_unsettled(jobs, at(0));
    assert_eq!(asked(&mut control, at(0)), [(peer(1), vec![job, late])]);
    assert_eq!(control.to_settle(vec![5, 6]), [0; 0], "they are asked for");
    // A settlement that the worker lists is not a job that it must stop.
    let running = request(2, Some(1), &[job]);
    control.handle_message(&from(1, b"w.a"), 0, running, at(1));
    assert_eq!(answers(&mut control, at(1))[0].1.abort, []);
    for status in [JobStatus::Failed, JobStatus::Success] {
        let is_done = status == JobStatus::Success;
        control.handle_message(&from(1, b"w.a"), 5, receipt(2, status), at(1));
        assert_eq!(settled(&mut control), [job]);
        control.handle_settled(b"w.a", job, is_done);
        control.handle_message(&from(1, b"w.a"), 0, request(3, Some(2), &[]), at(1));
        assert_eq!(answers(&mut control, at(1))[0].1.acknowledged, [job]);
        // After a failure the job waits.
        let again: &[i64] = if is_done { &[5] } else { &[] };
        assert_eq!(control.to_settle(vec![5, 6]), again);
    }
    // Without a report the job is asked for again. A late report is acknowledged.
    assert_eq!(control.settles_after(at(61)), Some(0));
    assert_eq!(control.to_settle(vec![6]), [6]);
    control.handle_message(&from(1, b"w.a"), 6, receipt(3, JobStatus::Success), at(62));
    let changes = commit(&mut control);
    assert!(matches!(changes[0], Change::End { attempt, .. } if attempt == late));
    assert_eq!(answers(&mut control, at(62))[0].1.acknowledged, [late]);
}

#[test]
fn jobs_are_searched_in_turn_and_only_while_a_worker_can_settle_them() {
    let mut control = with_process(at(0));
    let full: Vec<i64> = (1..=limits::SETTLED_PER_ITERATION as i64).collect();
    assert_eq!(control.to_settle(full.clone()), full);
    assert_eq!(control.settles_after(at(0)), full.last().copied());
    assert_eq!(control.to_settle(vec![100]), [100]);
    assert_eq!(
        control.settles_after(at(0)),
        Some(0),
        "from the start again"
    );
    // Workers that are stopping, in trouble or disconnected settle nothing, and neither do workers of the
    // reference system.
    for (draining, trouble) in [(true, None), (false, Some("disk".to_owned()))] {
        let mut control = with_process(at(0));
        let state = Payload::Heartbeat(Heartbeat {
            running: Some(vec![]),
            sequence: Some(2),
            draining,
            trouble,
            ..Heartbeat::default()
        });
        control.handle_message(&from(1, b"w.a"), 0, state, at(0));
        assert_eq!(control.settles_after(at(0)), None);
        control.handle_unsettled(vec![(settlement(5, 2), Some("w".into()))], at(0));
        assert_eq!(asked(&mut control, at(0)), []);
        assert_eq!(control.to_settle(vec![5]), [5]);
    }
    control.handle_disconnected(peer(1), b"w.a", at(0));
    assert_eq!(control.settles_after(at(0)), None);
    assert_eq!(with_worker(1, at(0)).settles_after(at(0)), None);
}
