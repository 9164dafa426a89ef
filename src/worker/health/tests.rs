//! Unit tests of `health.rs`.

use super::*;

const NOW: BootTime = BootTime::after_boot(Duration::from_secs(1000));
const WORKER: Option<(Cause, &str)> = Some((Cause::Worker, "no space\nmore"));
const ENVIRONMENT: Option<(Cause, &str)> = Some((Cause::Environment, "uv failed"));

fn after(ends: &[(&str, Option<(Cause, &str)>)]) -> Health {
    let mut health = Health::new();
    for (environment, failure) in ends {
        health.handle_end(1, environment, *failure, NOW);
    }
    health
}

#[test]
fn a_healed_worker_is_on_probation_until_a_job_shows_that_it_works() {
    let mut health = after(&[("a", WORKER), ("a", WORKER), ("a", WORKER)]);
    let mut now = NOW;
    for pause in [1, 2, 4, 8] {
        let due = health.poll_timeout().unwrap();
        assert_eq!(due, now + Duration::from_secs(pause));
        now = due;
        assert!(health.poll_test(now) && health.handle_test(Ok(()), 0, now));
        assert_eq!(health.trouble(), None);
        health.handle_end(1, "a", WORKER, now);
        assert_eq!(health.trouble(), Some("no space"), "one failure is enough");
    }
    now = health.poll_timeout().unwrap();
    assert!(health.poll_test(now) && health.handle_test(Ok(()), 0, now));
    health.handle_end(1, "a", None, now);
    health.handle_end(1, "a", WORKER, now);
    assert_eq!(health.trouble(), None, "a job has ended well");
}

#[test]
fn what_no_job_can_run_without_is_trouble_until_a_test_finds_it() {
    let mut health = Health::new();
    health.handle_trouble("the output folder is missing\nmore", NOW);
    assert_eq!(health.trouble(), Some("the output folder is missing"));
    let due = health.poll_timeout().unwrap();
    assert!(health.poll_test(due));
    health.handle_end(1, "a", None, due);
    assert!(health.trouble().is_some(), "it may have published before");
    health.handle_trouble("the output folder is missing", due);
    assert_eq!(health.poll_timeout(), None, "one test at a time");
    assert!(health.handle_test(Ok(()), 1, due));
    assert_eq!(health.trouble(), None);
}

#[test]
fn only_a_job_of_after_the_test_ends_a_probation() {
    let mut health = after(&[("a", WORKER), ("a", WORKER), ("a", WORKER)]);
    assert_eq!(health.tries_after(), None);
    let due = health.poll_timeout().unwrap();
    assert!(health.poll_test(due) && health.handle_test(Ok(()), 7, due));
    assert_eq!(health.tries_after(), Some(7));
    let operator = Some((Cause::Operator, "aborted"));
    for (serial, end) in [(7, None), (8, operator), (8, ENVIRONMENT)] {
        health.handle_end(serial, "a", end, due);
        assert_eq!(health.tries_after(), Some(7), "{serial} {end:?}");
    }
    health.handle_end(8, "a", None, due);
    assert_eq!(health.tries_after(), None);
}

#[test]
fn long_jobs_of_a_probation_let_others_in() {
    let started = |seconds: &[u64]| -> Vec<BootTime> {
        let at = |seconds: &u64| NOW + Duration::from_secs(*seconds);
        seconds.iter().map(at).collect()
    };
    let now = NOW + Duration::from_secs(20);
    for (seconds, want) in [
        (&[][..], 1),
        (&[19], 0),
        (&[11], 0),
        (&[10], 1),
        (&[0, 10], 2),
        (&[0, 10, 10, 15], 0),
        (&[0, 1, 2, 3], 4),
    ] {
        assert_eq!(tries(&started(seconds), now), want, "{seconds:?}");
    }
}

#[test]
fn only_failures_in_a_row_are_trouble() {
    let plugin = Some((Cause::Plugin, "ValueError"));
    let operator = Some((Cause::Operator, "aborted"));
    type Ends<'a> = &'a [(&'a str, Option<(Cause, &'a str)>)];
    let cases: [(Ends<'_>, Option<&str>, usize); 7] = [
        (&[("a", WORKER), ("a", WORKER)], None, 0),
        (
            &[("a", WORKER), ("b", WORKER), ("c", WORKER)],
            Some("no space"),
            0,
        ),
        (
            &[("a", WORKER), ("a", WORKER), ("a", None), ("a", WORKER)],
            None,
            0,
        ),
        (
            &[("a", WORKER), ("a", WORKER), ("a", plugin), ("a", WORKER)],
            None,
            0,
        ),
        (
            &[("a", WORKER), ("a", WORKER), ("a", operator), ("a", WORKER)],
            Some("no space"),
            0,
        ),
        (
            &[("a", ENVIRONMENT), ("a", ENVIRONMENT), ("a", ENVIRONMENT)],
            None,
            1,
        ),
        (
            &[
                ("a", ENVIRONMENT),
                ("a", ENVIRONMENT),
                ("b", ENVIRONMENT),
                ("b", None),
            ],
            None,
            1,
        ),
    ];
    for (ends, trouble, environments) in cases {
        let health = after(ends);
        assert_eq!(health.trouble(), trouble, "{ends:?}");
        assert_eq!(health.avoided(NOW).count(), environments, "{ends:?}");
    }
}

#[test]
fn trouble_is_tested_with_growing_pauses_and_heals() {
    let mut health = after(&[("a", WORKER), ("a", WORKER), ("a", WORKER)]);
    let mut now = NOW;
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let at = health.poll_timeout().unwrap();
        pauses.push(at.saturating_duration_since(now).as_secs());
        assert!(!health.poll_test(now));
        now = at;
        assert!(health.poll_test(now));
        assert!(!health.poll_test(now), "one at a time");
        assert_eq!(health.poll_timeout(), None);
        // A job that ends well in the meantime does not end the trouble.
        health.handle_end(1, "a", None, now);
        assert!(!health.handle_test(Err("still full".to_owned()), 0, now));
        assert_eq!(health.trouble(), Some("still full"));
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    let at = health.poll_timeout().unwrap();
    assert!(health.poll_test(at));
    assert!(health.handle_test(Ok(()), 0, at));
    assert_eq!((health.trouble(), health.poll_timeout()), (None, None));
}

#[test]
fn an_environment_that_fails_is_avoided_for_a_pause_that_grows() {
    let mut health = Health::new();
    let mut now = NOW;
    let mut pauses = Vec::new();
    for _ in 0..7 {
        health.handle_end(1, "a", ENVIRONMENT, now);
        // Other jobs of the environment fail in the same pause.
        health.handle_end(1, "a", ENVIRONMENT, now);
        let until = health.environments["a"].until;
        assert_eq!(
            health.avoided(now).collect::<Vec<_>>(),
            [("a", "uv failed")]
        );
        assert_eq!(health.avoided(until).count(), 0, "one may try");
        pauses.push(until.saturating_duration_since(now).as_secs());
        now = until;
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
    health.handle_end(1, "a", None, now);
    health.handle_end(1, "a", ENVIRONMENT, now);
    let until = health.environments["a"].until;
    assert_eq!(until.saturating_duration_since(now).as_secs(), 10);
}

#[test]
fn an_environment_that_is_to_be_avoided_has_not_failed() {
    let mut health = Health::new();
    let until = NOW + Duration::from_secs(4);
    health.avoid("a", "a fork server died\nmore", until);
    // A shorter pause does not end the longer one.
    health.avoid("a", "a fork server died", NOW + Duration::from_secs(1));
    let avoided: Vec<_> = health.avoided(NOW).collect();
    assert_eq!(avoided, [("a", "a fork server died")]);
    assert_eq!(health.avoided(until).count(), 0);
    assert_eq!(health.trouble(), None);
    // The first failure has the first pause.
    health.handle_end(1, "a", ENVIRONMENT, until);
    let broken = health.environments["a"].until;
    assert_eq!(broken, until + environments::pause_after(0));
    // A job that ends well ends the pause.
    health.avoid("b", "a fork server died", until);
    health.handle_end(1, "b", None, NOW);
    assert_eq!(health.avoided(NOW).count(), 1);
    for number in 0..3 * limits::WORKER_ENVIRONMENTS_MAX {
        health.avoid(&number.to_string(), "died", until);
    }
    assert_eq!(health.environments.len(), limits::WORKER_ENVIRONMENTS_MAX);
}

#[test]
fn a_silent_writer_is_trouble_until_its_thread_has_ended() {
    let mut health = Health::new();
    health.handle_silent_writer(7, "no answer", NOW);
    health.handle_silent_writer(8, "no answer", NOW);
    assert_eq!(health.trouble(), Some("no answer"));
    let mut now = NOW;
    for _ in 0..3 {
        now = health.poll_timeout().unwrap();
        assert!(health.poll_test(now));
        assert!(!health.poll_test(now), "one at a time");
        assert!(
            !health.handle_test(Ok(()), 0, now),
            "the disk of others works"
        );
        assert_eq!(health.trouble(), Some("no answer"));
    }
    health.handle_writer_end(7, now);
    assert!(health.poll_timeout() > Some(now) && health.is_silent(8));
    health.handle_writer_end(8, now);
    assert_eq!(health.poll_timeout(), Some(now), "at once");
    assert!(!health.is_silent(8) && health.trouble().is_some());
    assert!(health.poll_test(now) && health.handle_test(Ok(()), 0, now));
    assert_eq!(health.trouble(), None);
}

#[test]
fn environments_that_fail_are_remembered_up_to_a_bound() {
    let mut health = Health::new();
    for number in 0..3 * limits::WORKER_ENVIRONMENTS_MAX {
        health.handle_end(1, &number.to_string(), ENVIRONMENT, NOW);
    }
    assert_eq!(health.environments.len(), limits::WORKER_ENVIRONMENTS_MAX);
}
