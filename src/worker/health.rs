//! Decides whether a worker should take jobs: a state machine without I/O.
//!
//! Failures that are the worker's own (its folders, processes, memory) are counted while they come in a row.
//! At [`limits::TROUBLE_FAILURES`] the worker is in trouble and should take no jobs. It then tests itself
//! with growing pauses until a test succeeds.
//!
//! After that the worker is on probation, until a job that was started after the test shows that the worker
//! works. On probation it takes one job at a time (more beside long jobs, see [`tries`]), one more failure of
//! its own is trouble again, and the pauses continue to grow.
//!
//! An environment that failed is avoided for a pause. Its jobs wait or are run by other workers, and other
//! environments stay usable. The pause grows with each further failure and ends with the first success.
//!
//! A writer thread that does not respond is trouble at once, and no self-test ends this trouble before the
//! thread has ended: its storage hangs, and each further job could cost a thread.
//!
//! An output folder that is missing or belongs to another database is trouble at once, too. Failures that
//! concern only a job or its sink are not reported here.
//!
//! The event loop reports ends of jobs by [`Health::handle_end`], starts a self-test when
//! [`Health::poll_test`] returns true, and reports its result by [`Health::handle_test`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::environments;
use crate::job::Cause;
use crate::limits;
use crate::reactor::BootTime;

/// Failures in a row, and the last one's reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    count: u32,
    reason: String,
}

impl Row {
    fn add(&mut self, reason: &str) {
        self.count = self.count.saturating_add(1);
        self.reason = reason.lines().next().unwrap_or("").to_owned();
    }

    fn trouble(&self) -> Option<&str> {
        (self.count >= limits::TROUBLE_FAILURES).then_some(self.reason.as_str())
    }
}

/// The next self-test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    None,
    Due { at: BootTime, pause: Duration },
    Running { pause: Duration },
}

/// An environment that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Broken {
    /// Number of failures, each after the end of the previous pause.
    failures: u32,
    /// Until then jobs that need it should wait or be run by other workers.
    until: BootTime,
    reason: String,
}

/// State after a successful self-test, see the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Probation {
    /// The pause before the successful self-test.
    pause: Duration,
    /// Serial number of the last job that was started before the test succeeded.
    after: u64,
}

/// Health of a worker, see the module's documentation.
#[derive(Debug)]
pub(super) struct Health {
    worker: Row,
    environments: BTreeMap<String, Broken>,
    test: Test,
    /// Serial numbers of jobs whose writers were given up and have not ended.
    silent: BTreeSet<u64>,
    /// None if the worker is not on probation.
    probation: Option<Probation>,
}

impl Health {
    /// A worker that has not failed.
    pub(super) fn new() -> Self {
        Health {
            worker: Row::default(),
            environments: BTreeMap::new(),
            test: Test::None,
            silent: BTreeSet::new(),
            probation: None,
        }
    }

    /// A job has ended, with a failure or successfully. Failures of other causes show that worker and
    /// environment work, except those caused by an operator, which show nothing. `serial` = the job's serial
    /// number in this worker process.
    pub(super) fn handle_end(
        &mut self,
        serial: u64,
        environment: &str,
        failure: Option<(Cause, &str)>,
        now: BootTime,
    ) {
        match failure {
            Some((Cause::Worker | Cause::Lost, reason)) => {
                self.worker.add(reason);
                if self.probation.is_some() {
                    self.worker.count = self.worker.count.max(limits::TROUBLE_FAILURES);
                }
                self.expect_test(now);
            }
            Some((Cause::Environment, reason)) => {
                let broken = self.broken(environment, reason, now);
                // Other jobs that were already running fail in the same pause.
                if broken.until <= now {
                    broken.until = now + environments::pause_after(broken.failures);
                    broken.failures = broken.failures.saturating_add(1);
                }
            }
            Some((Cause::Operator, _)) => {}
            Some((Cause::Plugin | Cause::Input, _)) | None => {
                self.environments.remove(environment);
                // While a self-test is due or runs, only it ends the trouble: jobs that were started before
                // may still end.
                // still end.
                let is_old = self.tries_after().is_some_and(|after| serial <= after);
                if self.test == Test::None && !is_old {
                    self.worker = Row::default();
                    self.probation = None;
                }
            }
        }
    }

    /// Reports trouble at once: something is missing that every job needs.
    pub(super) fn handle_trouble(&mut self, reason: &str, now: BootTime) {
        self.worker.add(reason);
        self.worker.count = self.worker.count.max(limits::TROUBLE_FAILURES);
        self.expect_test(now);
    }

    /// Schedules the first self-test if the worker is in trouble.
    fn expect_test(&mut self, now: BootTime) {
        if self.worker.trouble().is_some() && self.test == Test::None {
            let pause = match self.probation {
                Some(tried) => (tried.pause * 2).min(limits::SELF_TEST_PAUSE_MAX),
                None => limits::SELF_TEST_PAUSE_MIN,
            };
            let at = now + pause;
            self.test = Test::Due { at, pause };
        }
    }

    /// A job's writer was given up, because its thread has not responded.
    pub(super) fn handle_silent_writer(&mut self, serial: u64, reason: &str, now: BootTime) {
        self.silent.insert(serial);
        self.handle_trouble(reason, now);
    }

    /// True while a writer that was given up has not ended.
    pub(super) fn has_silent_writers(&self) -> bool {
        !self.silent.is_empty()
    }

    /// True for a job whose writer was given up and has not ended.
    pub(super) fn is_silent(&self, serial: u64) -> bool {
        self.silent.contains(&serial)
    }

    /// The thread of such a writer has ended. After the last one a self-test is due at once.
    pub(super) fn handle_writer_end(&mut self, serial: u64, now: BootTime) {
        let was_silent = self.silent.remove(&serial);
        if let Test::Due { at, .. } = &mut self.test
            && was_silent
            && self.silent.is_empty()
        {
            *at = now;
        }
    }

    /// Avoids jobs of an environment until then, without counting a failure of the environment.
    pub(super) fn avoid(&mut self, environment: &str, reason: &str, until: BootTime) {
        let broken = self.broken(environment, reason, until);
        broken.until = broken.until.max(until);
    }

    fn broken(&mut self, environment: &str, reason: &str, until: BootTime) -> &mut Broken {
        let full = self.environments.len() >= limits::WORKER_ENVIRONMENTS_MAX;
        if full && !self.environments.contains_key(environment) {
            self.environments.pop_first();
        }
        let broken = self.environments.entry(environment.to_owned());
        let broken = broken.or_insert(Broken {
            failures: 0,
            until,
            reason: String::new(),
        });
        reason
            .lines()
            .next()
            .unwrap_or("")
            .clone_into(&mut broken.reason);
        broken
    }

    /// Why the worker should take no jobs.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.worker.trouble()
    }

    /// On probation: the serial number of the last job before it. Later jobs are tried, see [`tries`].
    pub(super) fn tries_after(&self) -> Option<u64> {
        self.probation.map(|probation| probation.after)
    }

    /// Environments whose jobs the worker should not take now, and why.
    pub(super) fn avoided(&self, now: BootTime) -> impl Iterator<Item = (&str, &str)> {
        self.environments
            .iter()
            .filter(move |(_, broken)| now < broken.until)
            .map(|(hash, broken)| (hash.as_str(), broken.reason.as_str()))
    }

    /// When [`Health::poll_test`] is due.
    pub(super) fn poll_timeout(&self) -> Option<BootTime> {
        match self.test {
            Test::Due { at, .. } => Some(at),
            Test::None | Test::Running { .. } => None,
        }
    }

    /// True if a self-test must be started now. Only one runs at a time.
    pub(super) fn poll_test(&mut self, now: BootTime) -> bool {
        match self.test {
            Test::Due { at, pause } if at <= now => {
                self.test = Test::Running { pause };
                true
            }
            _ => false,
        }
    }

    /// A self-test has ended. Returns true if it ended the trouble. `last` = the serial number of the last
    /// job that was started.
    pub(super) fn handle_test(
        &mut self,
        result: Result<(), String>,
        last: u64,
        now: BootTime,
    ) -> bool {
        let Test::Running { pause } = self.test else {
            return false;
        };
        match result {
            Ok(()) if !self.has_silent_writers() => {
                self.probation = Some(Probation { pause, after: last });
                self.test = Test::None;
                self.worker = Row::default();
                return true;
            }
            Ok(()) => {}
            Err(reason) => self.worker.add(&reason),
        }
        let pause = (pause * 2).min(limits::SELF_TEST_PAUSE_MAX);
        let at = now + pause;
        self.test = Test::Due { at, pause };
        false
    }
}

/// How many further jobs a worker on probation takes. `started` has the times at which it started the jobs
/// that are tried now. While one of them is younger than `TRIAL_TIME`, the result is 0. Otherwise it is the
/// number of these jobs, at least one.
pub(super) fn tries(started: &[BootTime], now: BootTime) -> u32 {
    let is_young = |at: &BootTime| now < *at + limits::TRIAL_TIME;
    match started.iter().any(is_young) {
        true => 0,
        false => u32::try_from(started.len().max(1)).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
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
}
