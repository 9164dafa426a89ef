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
mod tests;
