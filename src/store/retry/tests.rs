//! Unit tests of `retry.rs`.

use super::*;

const THREE: Retries = Retries { lost: 3, infra: 3 };

#[test]
fn each_kind_of_failure_has_its_count_and_its_pauses() {
    let attempt = Attempt::new(7, 1);
    let mut failures = Failures::default();
    assert_eq!(
        decide(
            Some(Cause::Lost),
            &mut failures,
            THREE,
            attempt,
            Detail::None
        ),
        Next::Queued
    );
    for want in [1000, 2000] {
        let Next::After(pause) = decide(
            Some(Cause::Lost),
            &mut failures,
            THREE,
            attempt,
            Detail::None,
        ) else {
            panic!()
        };
        assert!((want * 8 / 10..=want * 12 / 10).contains(&pause), "{pause}");
    }
    for want in [1000, 2000, 4000] {
        let Next::After(pause) = decide(
            Some(Cause::Worker),
            &mut failures,
            THREE,
            attempt,
            Detail::None,
        ) else {
            panic!()
        };
        assert!((want * 8 / 10..=want * 12 / 10).contains(&pause), "{pause}");
    }
    for cause in [
        Some(Cause::Lost),
        Some(Cause::Environment),
        Some(Cause::Plugin),
        None,
    ] {
        assert_eq!(
            decide(cause, &mut failures, THREE, attempt, Detail::None),
            Next::Failed
        );
    }
    assert_eq!(
        failures,
        Failures {
            lost: 4,
            infra: 4,
            ..Failures::default()
        }
    );
}

/// A job that has used up the retries of one kind of failure still has all retries of each other kind.
#[test]
fn no_kind_of_failure_uses_up_the_retries_of_another() {
    let kinds = [
        (Cause::Lost, Detail::None),
        (Cause::Lost, Detail::Killed),
        (Cause::Lost, Detail::Shared),
        (Cause::Worker, Detail::None),
        (Cause::Worker, Detail::SinkLocked),
        (Cause::Input, Detail::InputChanged),
    ];
    let attempt = Attempt::new(7, 1);
    let until_failed = |failures: &mut Failures, (cause, detail)| {
        let mut next = || decide(Some(cause), failures, THREE, attempt, detail);
        let mut count = 0;
        while next() != Next::Failed {
            count += 1;
        }
        count
    };
    for first in kinds {
        for second in kinds.into_iter().filter(|second| *second != first) {
            let alone = until_failed(&mut Failures::default(), second);
            let mut failures = Failures::default();
            until_failed(&mut failures, first);
            let after = until_failed(&mut failures, second);
            assert_eq!(after, alone, "{second:?} after {first:?}");
        }
    }
}

#[test]
fn a_sink_that_others_lock_outlasts_a_job_of_the_default_time_out_whatever_the_retries() {
    let cases = [
        (Detail::SinkLocked, 3, limits::LOCKED_RETRIES_MAX),
        (Detail::SinkLocked, 100, 100),
        (Detail::SinkLocked, 0, 0),
        (Detail::None, 3, 3),
    ];
    for (detail, infra, expected) in cases {
        let retries = Retries { lost: 3, infra };
        let mut failures = Failures::default();
        let (mut count, mut pauses) = (0, 0);
        let attempt = Attempt::new(7, 1);
        while let Next::After(pause) =
            decide(Some(Cause::Worker), &mut failures, retries, attempt, detail)
        {
            count += 1;
            pauses += pause;
        }
        assert_eq!(count, expected, "{detail:?} {infra}");
        let lasts = std::time::Duration::from_millis(pauses);
        let is_long = lasts > limits::JOB_TIMEOUT;
        assert_eq!(is_long, expected > 20, "{detail:?} {infra}: {lasts:?}");
    }
}

#[test]
fn a_loss_with_neighbours_is_counted_apart_and_drawn_from_a_growing_range() {
    let mut failures = Failures::default();
    for number in 1..=limits::SHARED_LOSSES_MAX {
        let attempt = Attempt::new(7, number);
        let next = decide(
            Some(Cause::Lost),
            &mut failures,
            THREE,
            attempt,
            Detail::Shared,
        );
        let Next::After(pause) = next else {
            panic!("{next:?}")
        };
        assert!(pause < pause_range_ms(number - 1), "{pause}");
    }
    let attempt = Attempt::new(7, 30);
    let last = decide(
        Some(Cause::Lost),
        &mut failures,
        THREE,
        attempt,
        Detail::Shared,
    );
    assert_eq!(last, Next::Failed);
    assert_eq!(failures.lost, 0, "it may still lose its worker alone");
}

#[test]
fn faults_of_the_infrastructure_have_more_retries_unless_a_number_is_configured() {
    for (retries_max, own, want) in [
        (3, None, (3, 10)),
        (20, None, (20, 20)),
        (0, None, (0, 0)),
        (3, Some(1), (1, 1)),
    ] {
        let retries = Retries::new(retries_max, own);
        assert_eq!((retries.lost, retries.infra), want, "{retries_max} {own:?}");
    }
}

#[test]
fn pauses_are_bounded_and_spread() {
    let pauses: Vec<u64> = (0..100)
        .map(|job| pause_ms(i64::MAX, Attempt::new(job, 1)))
        .collect();
    let (min, max) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
    assert!(*min >= 240_000 && *max <= pause_max_ms());
    assert!(max - min > 60_000, "{min} {max}");
}
