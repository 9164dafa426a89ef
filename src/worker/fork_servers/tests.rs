//! Unit tests of `fork_servers.rs`.

use super::*;

#[test]
fn only_the_death_of_a_jobs_own_fork_server_is_counted() {
    let mut servers = ForkServers::new(Duration::from_secs(1));
    let mut blame = |only, jobs: &[i64]| {
        let failure = servers.blame(only, jobs, "died");
        (failure.cause, failure.is_uncounted)
    };
    for jobs in [[1, 2, 3].as_slice(), &[1, 2], &[2], &[2], &[]] {
        assert_eq!(blame(None, jobs), (Cause::Worker, true), "{jobs:?}");
    }
    assert_eq!(blame(Some(2), &[]), (Cause::Worker, false), "not in it");
    for job in [2, 3] {
        let first = blame(Some(job), &[job]);
        assert_eq!(first, (Cause::Worker, false), "an outside fault can be");
        assert_eq!(blame(Some(job), &[job]), (Cause::Plugin, false));
    }
    for job in 0..2 * limits::SUSPECTS_MAX {
        blame(None, &[i64::try_from(job).unwrap()]);
    }
    assert_eq!(servers.suspects.len(), limits::SUSPECTS_MAX);
}

#[test]
fn a_job_that_comes_while_no_fork_server_is_started_is_innocent() {
    let environment = Environment {
        interpreter: "/nonexistent".into(),
        cached: true,
        preload: Vec::new(),
    };
    let poll = mio::Poll::new().unwrap();
    let now = BootTime::default();
    for cause in [Cause::Worker, Cause::Plugin, Cause::Environment] {
        let mut servers = ForkServers::new(Duration::from_secs(1));
        let start = |servers: &mut ForkServers, now| {
            let start = Start {
                job_id: 1,
                kind: Kind::Warm,
                interpreter: &environment.interpreter,
                hash: "hash",
                outside: &Outside::default(),
                mount_changes: 0,
                folder: Path::new("/nonexistent"),
                environment: &environment,
                shim: Path::new("/nonexistent"),
                launcher: None,
            };
            let started = servers.start(&start, poll.registry(), now);
            started.unwrap_err()
        };
        for _ in 0..2 {
            servers.count_loss("hash", Failure::new(cause, "died"), now);
        }
        let failure = start(&mut servers, now);
        assert_eq!(failure.message, "died");
        assert!(failure.is_uncounted, "{cause:?}");
        let until = servers.paused_until("hash").unwrap();
        assert_eq!(until, now + limits::FORK_SERVER_RESTART_PAUSE);
        // After the pause the start is tried again.
        let failure = start(&mut servers, until);
        assert!(failure.message.contains("cannot start"), "{failure:?}");
        assert!(!failure.is_uncounted);
    }
}

#[test]
fn restarts_pause_longer_and_longer() {
    let mut servers = ForkServers::new(Duration::from_secs(1));
    let now = BootTime::default();
    let pauses: Vec<u64> = (0..9)
        .map(|_| {
            servers.count_loss("hash", Failure::new(Cause::Plugin, "died"), now);
            let losses = &servers.losses["hash"];
            assert_eq!(losses.reason.cause, Cause::Worker, "others are innocent");
            losses.start_at.saturating_duration_since(now).as_secs()
        })
        .collect();
    assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
}
