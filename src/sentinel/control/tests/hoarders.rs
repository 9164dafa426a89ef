//! Tests of workers that accept jobs and do not end them.

use super::*;

const TIMEOUT: Duration = Duration::from_secs(60);

fn lost(control: &mut Control) -> Vec<(Attempt, Loss)> {
    let changes = commit(control).into_iter();
    changes
        .filter_map(|change| match change {
            Change::Release {
                attempt,
                cause: Cause::Lost,
                loss,
                reason,
            } => {
                assert!(reason.contains("--attempt-timeout"), "{reason}");
                Some((attempt, loss))
            }
            _ => None,
        })
        .collect()
}

#[test]
fn a_worker_that_only_asks_for_leases_loses_what_it_does_not_end() {
    let mut control = with_process(at(0));
    control.settings.attempt_timeout = TIMEOUT;
    let (early, late) = (Attempt::new(5, 1), Attempt::new(6, 1));
    control.handle_claimed(b"w.a", vec![assignment(5, 1, "")], at(0));
    let mut renewed = Vec::new();
    let mut ends = Vec::new();
    for seconds in 1..=80 {
        let now = at(seconds);
        if seconds == 30 {
            control.handle_claimed(b"w.a", vec![assignment(6, 1, "")], now);
        }
        let held: Vec<Attempt> = [early, late]
            .into_iter()
            .filter(|attempt| attempt.job_id == 5 || seconds >= 30)
            .collect();
        let message = request(1 + seconds, Some(seconds), &held);
        control.handle_message(&from(1, b"w.a"), 0, message, now);
        control.handle_timeout(now);
        for (_, answer) in answers(&mut control, now) {
            renewed.push((seconds, answer.leases.contains(&early)));
            assert_eq!(answer.abort.contains(&early), seconds >= 60, "{seconds}");
            assert!(seconds < 31 || answer.leases.contains(&late), "{seconds}");
        }
        ends.extend(lost(&mut control).into_iter().map(|end| (seconds, end)));
    }
    assert!(renewed.iter().all(|(at, renewed)| *renewed == (*at < 60)));
    // It is lost after its last lease and the margin. The loss counts only for this job, not for the worker's
    // other one.
    assert_eq!(ends, [(71, (early, Loss::Alone))]);
    // It still runs the attempt that it has lost.
    assert!(control.openings(at(80)).is_empty());
    let message = request(100, Some(99), &[late]);
    control.handle_message(&from(1, b"w.a"), 0, message, at(80));
    assert_eq!(control.openings(at(80))[0].free, 1, "it has stopped it");
}

#[test]
fn a_worker_that_stops_an_overdue_attempt_when_asked_has_lost_it_at_once() {
    let mut control = with_process(at(0));
    control.settings.attempt_timeout = TIMEOUT;
    let attempt = Attempt::new(5, 1);
    control.handle_claimed(b"w.a", vec![assignment(5, 1, "")], at(0));
    for seconds in 1..=62 {
        let running = if seconds < 62 { &[attempt][..] } else { &[] };
        let message = request(1 + seconds, Some(seconds), running);
        control.handle_message(&from(1, b"w.a"), 0, message, at(seconds));
        control.handle_timeout(at(seconds));
        answers(&mut control, at(seconds));
        // The worker has two slots.
        let is_free = !control.openings(at(seconds)).is_empty();
        assert_eq!(is_free, !(60..62).contains(&seconds), "{seconds}");
    }
    assert_eq!(lost(&mut control), [(attempt, Loss::Alone)]);
    assert_eq!(control.openings(at(62))[0].free, 2);
}

#[test]
fn an_old_worker_loses_what_it_does_not_end_and_gets_no_more_until_it_reports() {
    let mut control = with_worker(1, at(0));
    control.settings.attempt_timeout = TIMEOUT;
    let attempt = Attempt::new(5, 1);
    control.handle_claimed(b"w", vec![assignment(5, 1, "")], at(0));
    control.take_outgoing();
    let mut ends = Vec::new();
    for seconds in 1..=200 {
        let now = at(seconds);
        let busy = Heartbeat {
            status: HeartbeatStatus::Busy,
            ..Heartbeat::default()
        };
        control.handle_message(&from(1, b"w"), 0, Payload::Heartbeat(busy), now);
        control.handle_timeout(now);
        ends.extend(lost(&mut control).into_iter().map(|(end, _)| end));
        let aborted = control.take_outgoing().iter().any(|message| {
            matches!(message.body, Body::Payload(Payload::Abort)) && message.job_id == 5
        });
        assert!(!aborted || seconds >= 60, "{seconds}");
        assert!(control.openings(now).is_empty(), "{seconds}");
    }
    assert_eq!(ends, [attempt]);
    control.handle_message(&from(1, b"w"), 5, conclude(None), at(201));
    assert_eq!(control.openings(at(201)).len(), 1);
}

#[test]
fn what_an_old_worker_reports_of_an_aborted_attempt_is_a_loss_and_its_output_counts() {
    for (status, want) in [
        (JobStatus::Failed, Some(Cause::Lost)),
        (JobStatus::Success, None),
    ] {
        let mut control = with_worker(1, at(0));
        control.settings.attempt_timeout = TIMEOUT;
        control.handle_claimed(b"w", vec![assignment(5, 1, "")], at(0));
        for seconds in 1..=61 {
            control.handle_timeout(at(seconds));
        }
        let receipt = Receipt {
            status,
            ..Receipt::default()
        };
        control.handle_message(&from(1, b"w"), 5, Payload::Conclude(receipt), at(62));
        let ends: Vec<Option<Cause>> = commit(&mut control)
            .into_iter()
            .filter_map(|change| match change {
                Change::End { receipt, .. } => Some(receipt.cause),
                _ => None,
            })
            .collect();
        assert_eq!(ends, [want]);
    }
}
