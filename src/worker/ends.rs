//! The slots' actions, the ends of jobs, and the worker's health.

use std::collections::BTreeMap;
use std::time::Duration;

use super::event::ThreadEvent;
use super::event_loop::Worker;
use super::health::{Health, tries};
use super::job::{Assignment, ProcessState, Run};
use super::slot::{Action, Failure};
use super::writer::Writer;
use super::{runtime, scratch};
use crate::job::{Cause, text};
use crate::limits;
use crate::reactor::BootTime;
use crate::sink::Root;
use crate::thread;

/// Beginning of the reason for which a worker avoids an environment while it creates that.
pub(crate) const BEING_CREATED: &str = "it is being created";

impl Worker {
    /// Carries out the actions of the slots. [`Worker::publish`] does that for staged output.
    pub(super) fn act(&mut self, now: BootTime) {
        for index in 0..self.slots.len() {
            while let Some(Some(run)) = self.slots.get_mut(index) {
                match run.slot.poll(false, now) {
                    None | Some(Action::Publish) => break,
                    Some(Action::Kill) => run.kill(),
                    Some(Action::Stage) => with_writer(run, Writer::stage),
                    Some(Action::Discard) => match &mut run.writer {
                        Some(writer) if run.slot.may_be_for_input() => {
                            writer.discard_and_check(run.slot.refused_input().is_some());
                        }
                        Some(writer) => writer.discard(),
                        None => run.slot.handle_discarded(),
                    },
                    Some(Action::GiveUp(cause)) => {
                        let waited = self.options.writer_timeout;
                        give_up_writer(run, cause, waited, &self.staging, &mut self.health, now);
                        self.heartbeat_at = now;
                    }
                    Some(Action::Conclude(failure)) => {
                        let (folder, work_dir) = (self.runtime.folder(), &run.paths.work_dir);
                        let judged = |failure| scratch::judged(failure, folder, work_dir);
                        let failure = failure.map(judged);
                        let hash = &run.assignment.environment;
                        let failure =
                            failure.map(|failure| self.environments.judged(failure, hash, now));
                        if let Some(mut run) = self.leave_slot(index, failure.is_none(), now) {
                            run.failure = failure;
                            self.conclude(run, now);
                            self.start_jobs(now);
                        }
                    }
                }
            }
        }
    }

    /// Removes a job whose process has ended from its slot, and releases the process's resources.
    pub(super) fn leave_slot(&mut self, index: usize, is_good: bool, now: BootTime) -> Option<Run> {
        let mut run = self.slots.get_mut(index)?.take()?;
        let attempt = run.assignment.job.attempt;
        if let ProcessState::Running(process) =
            std::mem::replace(&mut run.process, ProcessState::None)
        {
            if !process.has_exited() {
                log::error!(
                    "{attempt}: process {} has not ended after SIGKILL; it is watched apart",
                    process.id()
                );
            }
            self.leftovers.add(process, now);
        }
        let registry = self.reactor.registry();
        let unused =
            self.fork_servers
                .handle_job_end(attempt.job_id, run.fork_server, is_good, registry);
        if let Some(process) = unused {
            self.leftovers.add(process, now);
        }
        self.runtime.clear(&run.paths, run.serial);
        Some(run)
    }

    /// Reports trouble: something is missing that every job needs.
    pub(super) fn note_trouble(&mut self, reason: &str, now: BootTime) {
        if self.health.trouble().is_none() {
            log::error!("this worker is in trouble: {reason}");
            self.heartbeat_at = now;
        }
        self.health.handle_trouble(reason, now);
    }

    /// Concludes a job: updates the worker's health and sends the receipt.
    pub(super) fn conclude(&mut self, run: Run, now: BootTime) {
        let attempt = run.assignment.job.attempt;
        let failure = run.failure.as_ref();
        let is_uncounted = failure.is_some_and(|failure| failure.is_uncounted);
        let failed = failure.map(|failure| (failure.cause, failure.message.as_str()));
        let was_in_trouble = self.health.trouble().is_some();
        if self.health.tries_after().is_some() {
            // The heartbeat reports how many jobs the worker takes now.
            self.heartbeat_at = now;
        }
        let avoided = self.health.avoided(now).count();
        let is_neutral_for_worker = failure.is_some_and(|failure| failure.is_neutral_for_worker);
        if !is_uncounted {
            self.mounts.handle_job_end(attempt.job_id);
        }
        if !is_uncounted && !is_neutral_for_worker {
            self.health
                .handle_end(run.serial, &run.assignment.environment, failed, now);
        }
        if let Some(failure) = failure.filter(|failure| failure.is_trouble) {
            self.health.handle_trouble(&failure.message, now);
        }
        if let (false, Some(reason)) = (was_in_trouble, self.health.trouble()) {
            log::error!("this worker is in trouble: {reason}");
            self.heartbeat_at = now;
        }
        if self.health.avoided(now).count() > avoided {
            self.heartbeat_at = now;
        }
        if run.is_unwanted && run.failure.is_some() {
            self.leases.forget(attempt);
            return;
        }
        let mut receipt = run.conclude(run.failure.as_ref(), now);
        receipt.returned = is_uncounted && run.assignment.lease.is_some();
        receipt.beside_others =
            receipt.cause == Some(Cause::Lost) && self.slots.iter().any(Option::is_some);
        match &receipt.error_message {
            None => log::info!("{attempt}: done"),
            Some(message) => {
                let line = message.lines().next().unwrap_or("");
                log::warn!("{attempt}: failed: {line}");
            }
        }
        self.report(attempt, run.assignment.lease.is_some(), receipt);
    }

    /// Why this worker should get no jobs now. None once a self-test has succeeded.
    pub fn trouble(&self) -> Option<String> {
        self.health.trouble().map(str::to_owned)
    }

    /// How many more jobs the worker takes. None = one for each free slot.
    pub(super) fn takes(&self, now: BootTime) -> Option<u32> {
        let after = self.health.tries_after()?;
        let runs = self.slots.iter().flatten().chain(&self.publishing);
        let tried = runs.filter(|run| run.serial > after);
        let started: Vec<BootTime> = tried.map(|run| run.dispatched_at).collect();
        let starts =
            |assignment: &Assignment| !self.environments.is_making(&assignment.environment);
        let is_next = self.backlog.iter().any(starts);
        Some(if is_next { 0 } else { tries(&started, now) })
    }

    /// Environments whose jobs this worker should not get now, by their hashes in DISPATCH, with the reasons.
    pub(super) fn avoided(&self, now: BootTime) -> BTreeMap<String, String> {
        // Jobs name the default environment by its hash or by an empty one.
        let default = self.environments.default_hash();
        let named = |hash: &str, reason: &str| {
            // Cut, so that all of them fit into one message.
            let reason = text::prefix(reason, limits::ENVIRONMENT_REASON_SIZE_MAX).to_owned();
            let other = (hash == default).then(|| (String::new(), reason.clone()));
            other.into_iter().chain([(hash.to_owned(), reason)])
        };
        let slow = self.environments.slow(now).flat_map(|hash| {
            let reason = match self.environments.waits_for(hash) {
                Some(other) => format!("{BEING_CREATED}: {other}"),
                None => BEING_CREATED.to_owned(),
            };
            named(hash, &reason)
        });
        let failed = self.health.avoided(now);
        slow.chain(failed.flat_map(|(hash, reason)| named(hash, reason)))
            .collect()
    }

    /// Starts a self-test if one is due, on a thread, because the disk may not respond.
    pub(super) fn test_health(&mut self, now: BootTime) {
        if !self.health.poll_test(now) {
            return;
        }
        if let Err(error) = self.runtime.ensure() {
            self.health
                .handle_test(Err(error.to_string()), self.next_serial, now);
            return;
        }
        let folder = self.runtime.folder().to_owned();
        let root = self.staging.clone();
        let (events, waker) = (self.report_sender.clone(), self.waker.clone());
        let thread = thread::start("self-test", move || {
            let result = runtime::self_test(&folder, &root);
            let event = ThreadEvent::SelfTest(result.map_err(|error| error.to_string()));
            // The receiver is dropped only when the worker stops.
            if events.send(event).is_ok()
                && let Err(error) = waker.wake()
            {
                log::error!("cannot wake the worker: {error}");
            }
        });
        if let Err(error) = thread {
            let reason = error.to_string();
            self.health.handle_test(Err(reason), self.next_serial, now);
        }
    }
}

/// Gives up the writer of a job, because its storage has not responded for that long.
pub(super) fn give_up_writer(
    run: &mut Run,
    cause: Cause,
    waited: Duration,
    root: &Root,
    health: &mut Health,
    now: BootTime,
) {
    let reason = format!(
        "the output folder {} does not respond: its writer has not answered for {} s",
        root.path().display(),
        waited.as_secs()
    );
    log::error!(
        "{}: {reason}; this worker takes no jobs until it has",
        run.assignment.job.attempt
    );
    health.handle_silent_writer(run.serial, &reason, now);
    run.give_up_writer(Failure::new(cause, reason));
}

fn with_writer(run: &mut Run, assignment: impl FnOnce(&mut Writer)) {
    match &mut run.writer {
        Some(writer) => assignment(writer),
        None => run
            .slot
            .handle_output_failed(Failure::new(Cause::Worker, "the job has no writer")),
    }
}
