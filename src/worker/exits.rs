//! Exits of plugin processes, and messages of the fork servers whose children they are.

use std::io;

use super::descriptors::worker_failure;
use super::environments::State;
use super::event_loop::Worker;
use super::job::{ProcessState, Run};
use super::slot::Failure;
use crate::job::Cause;
use crate::limits;
use crate::plugin::Exit;
use crate::plugin::fork_server::{self, Started};
use crate::reactor::BootTime;

/// Why a fork server is given up that sends more messages than its jobs explain.
const FLOOD: &str = "the fork server sends more than its requests can cause";

impl Worker {
    /// The pidfd of a slot's process is readable.
    pub(super) fn process_exit(&mut self, slot_index: usize, now: BootTime) {
        let Some(Some(run)) = self.slots.get_mut(slot_index) else {
            return;
        };
        let ProcessState::Running(process) = &run.process else {
            return;
        };
        let registry = self.reactor.registry();
        // The event may belong to the previous process of the slot.
        if !process.has_exited() {
            return;
        }
        run.handle_exit_seen(slot_index, registry, now);
    }

    /// A fork server has sent something, or has exited.
    pub(super) fn fork_server_events(&mut self, index: usize, now: BootTime) {
        // Checked first, so that all messages are read before the exit is handled.
        let has_exited = self.fork_servers.has_exited(index);
        for _ in 0..limits::FORK_SERVER_MESSAGES_MAX {
            let event = match self.fork_servers.next_event(index, now) {
                Ok(Some(event)) => event,
                Ok(None) if has_exited => {
                    self.fork_server_ended(index, now);
                    return;
                }
                Ok(None) => return,
                // A process closes its descriptors before it exits. The exit is detected by its pidfd.
                Err(fork_server::Error::Ended) if !self.fork_servers.has_exited(index) => {
                    self.fork_servers.handle_closed(index, now);
                    return;
                }
                Err(fork_server::Error::Ended) => {
                    self.fork_server_ended(index, now);
                    return;
                }
                Err(error) => {
                    self.fork_server_lost(index, &error.to_string(), now);
                    return;
                }
            };
            self.fork_server_event(index, event, now);
        }
        self.fork_server_lost(index, FLOOD, now);
    }

    fn fork_server_event(&mut self, index: usize, event: fork_server::Event, now: BootTime) {
        match event {
            fork_server::Event::Ready | fork_server::Event::Pong => {}
            fork_server::Event::Started { key, process } => {
                self.fork_server_started(index, key, process, now);
            }
            fork_server::Event::Failed { key, message } => {
                if let Some((_, run)) = self.fork_server_run(index, key) {
                    run.process = ProcessState::None;
                    // Only the fork server's report, and code of its environment may have sent it.
                    let message = format!("the fork server cannot fork: {message}");
                    let failure = Failure::new(Cause::Environment, message);
                    run.slot.handle_start_failed(failure);
                }
            }
            fork_server::Event::Exited { key, exit } => {
                if let Some((slot_index, _)) = self.fork_server_run(index, key)
                    && let Some(Some(run)) = self.slots.get_mut(slot_index)
                {
                    run.handle_exit(exit, slot_index, self.reactor.registry(), now);
                }
            }
        }
    }

    fn fork_server_started(
        &mut self,
        index: usize,
        key: u64,
        process: io::Result<Started>,
        now: BootTime,
    ) {
        let Some((slot_index, _)) = self.fork_server_run(index, key) else {
            // Its job was given up before it started.
            if let Ok(Started::Running(process)) = process {
                self.leftovers.add(process, now);
            }
            return;
        };
        let Some(Some(run)) = self.slots.get_mut(slot_index) else {
            return;
        };
        let registry = self.reactor.registry();
        let process = match process {
            Ok(Started::Running(process)) => process,
            Ok(Started::Ended(number)) => {
                run.process = ProcessState::Ended(number);
                run.slot.handle_started(now);
                run.slot.handle_exit_seen(Exit::UNKNOWN, now);
                run.accept(slot_index, registry, now);
                return;
            }
            Err(error) => {
                let message = format!("the fork server names no process of its own: {error}");
                run.process = ProcessState::None;
                let failure = Failure::new(Cause::Environment, message.clone());
                run.slot.handle_start_failed(failure);
                // The process cannot be watched, so it is ended with the fork server.
                self.fork_server_lost(index, &message, now);
                return;
            }
        };
        let killed = matches!(run.process, ProcessState::Requested { kill: true });
        // Without a pidfd its exit could be missed. It may also have ended already.
        if let Err(error) = run.watch_process(process, slot_index, registry) {
            let failure = worker_failure("cannot watch the plugin's process", &error);
            run.slot.handle_start_failed(failure);
            return;
        }
        run.note_start();
        run.slot.handle_started(now);
        if killed {
            run.kill();
        }
        // It may have connected or exited before its start was reported.
        run.accept(slot_index, registry, now);
    }

    /// The slot whose process was requested from the fork server with that key.
    fn fork_server_run(&mut self, index: usize, key: u64) -> Option<(usize, &mut Run)> {
        self.slots
            .iter_mut()
            .enumerate()
            .find_map(|(slot_index, slot)| {
                let run = slot.as_mut()?;
                let has_process = !matches!(run.process, ProcessState::None);
                (has_process && run.fork_server == Some(index) && run.serial == key)
                    .then_some((slot_index, run))
            })
    }

    /// Indexes of the fork servers that jobs need.
    pub(super) fn fork_servers_in_use(&self) -> Vec<usize> {
        let runs = self.slots.iter().flatten();
        runs.filter(|run| !matches!(run.process, ProcessState::None))
            .filter_map(|run| run.fork_server)
            .collect()
    }

    /// A fork server has ended. Its messages are read first, because they may contain the reason.
    pub(super) fn fork_server_ended(&mut self, index: usize, now: BootTime) -> Failure {
        for _ in 0..limits::FORK_SERVER_MESSAGES_MAX {
            match self.fork_servers.next_event(index, now) {
                Ok(Some(event)) => self.fork_server_event(index, event, now),
                Ok(None) | Err(fork_server::Error::Ended) => break,
                Err(error) => return self.fork_server_lost(index, &error.to_string(), now),
            }
        }
        let reason = match self.fork_servers.exit(index) {
            Some(exit) => format!("{}: {exit}", fork_server::Error::Ended),
            None => fork_server::Error::Ended.to_string(),
        };
        self.fork_server_lost(index, &reason, now)
    }

    /// A fork server has exited or does not respond. Its children end with it. Jobs whose process's own exit
    /// is known are decided by that. Returns the failure of the others.
    pub(super) fn fork_server_lost(
        &mut self,
        index: usize,
        reason: &str,
        now: BootTime,
    ) -> Failure {
        log::error!("{reason}");
        let concerned = |run: &Run| run.fork_server == Some(index);
        // The kernel kills the children when their fork server ends. That may be detected before its end.
        let killed = |exit: Option<Exit>| {
            exit.is_none_or(|exit| exit.signal == Some(9) || exit == Exit::UNKNOWN)
        };
        // A process that is lost a second time before its start was reported may have caused the loss.
        let alive = |run: &Run| match &run.process {
            ProcessState::Running(_) => {
                !run.slot.has_process_ended() && killed(run.slot.exit_seen())
            }
            ProcessState::Requested { .. } => run.asked_again,
            ProcessState::None | ProcessState::Ended(_) => false,
        };
        let runs = self.slots.iter().flatten();
        let jobs: Vec<i64> = runs
            .filter(|run| concerned(run) && alive(run))
            .map(|run| run.assignment.job.attempt.job_id)
            .collect();
        let failure = self.fork_servers.handle_lost(index, &jobs, reason, now);
        let registry = self.reactor.registry();
        let mut again = Vec::new();
        for (slot_index, slot) in self.slots.iter_mut().enumerate() {
            let Some(run) = slot.as_mut().filter(|run| concerned(run)) else {
                continue;
            };
            run.fork_server = None;
            let requested = matches!(run.process, ProcessState::Requested { kill: false });
            if requested && failure.cause == Cause::Worker && !run.asked_again {
                run.process = ProcessState::None;
                run.asked_again = true;
                again.push(slot_index);
            } else if let Some(process) =
                run.handle_lost(failure.clone(), slot_index, registry, now)
            {
                self.leftovers.add(process, now);
            }
        }
        // Last, because the kernel keeps the children's exit statuses until the fork server is reaped.
        if let Some(process) = self.fork_servers.remove(index, registry) {
            self.leftovers.add(process, now);
        }
        for slot_index in again {
            self.ask_again(slot_index, now);
        }
        failure
    }

    /// Starts the process of a job again, whose fork server was lost before the process started.
    fn ask_again(&mut self, slot_index: usize, now: BootTime) {
        let Some(Some(run)) = self.slots.get(slot_index) else {
            return;
        };
        let hash = run.assignment.environment.clone();
        let started = match self.environments.state(&hash) {
            State::Ready(environment) => self.start_process(slot_index, &environment, now),
            State::Failed(failure) => Err(failure),
            State::Making => Err(Failure::new(
                Cause::Environment,
                "the environment was removed while the job started",
            )),
        };
        if let Err(failure) = started
            && let Some(Some(run)) = self.slots.get_mut(slot_index)
        {
            run.slot.handle_start_failed(failure);
        }
    }

    /// Checks conditions without readiness events: fork servers that do not respond, processes that were
    /// killed, the worker's own health.
    pub(super) fn tend(&mut self, now: BootTime) {
        self.leftovers.reap(now);
        let used = self.fork_servers_in_use();
        let silent = self.fork_servers.check(&|index| used.contains(&index), now);
        for index in silent {
            self.fork_server_lost(index, "the fork server does not answer", now);
        }
        self.end_unmounted(now);
        self.measure(now);
        self.test_health(now);
        self.release_environments(now);
    }

    /// Ends idle fork servers that have file systems which are unmounted. Those in use follow when their jobs
    /// have ended.
    fn end_unmounted(&mut self, now: BootTime) {
        if !self.may_be_unmounted {
            return;
        }
        let used = self.fork_servers_in_use();
        let is_used = |index| used.contains(&index);
        loop {
            let (mounts, registry) = (self.mounts.current(), self.reactor.registry());
            let found = self
                .fork_servers
                .remove_unmounted(mounts, &is_used, registry);
            let (Some(process), _) = found else {
                self.may_be_unmounted = found.1;
                return;
            };
            self.leftovers.add(process, now);
        }
    }

    /// Requests a measurement of the running jobs if one is due.
    fn measure(&mut self, now: BootTime) {
        let is_busy = self.slots.iter().any(Option::is_some);
        let slots = &self.slots;
        let subjects = || slots.iter().flatten().filter_map(Run::subject).collect();
        self.meter.poll(is_busy, subjects, now);
    }

    /// Lets go of environments that are to be replaced: ends their idle fork servers, and releases the locks of
    /// those in which nothing runs.
    pub(super) fn release_replaced(&mut self, now: BootTime) {
        for hash in self.environments.replaced() {
            let used = self.fork_servers_in_use();
            let (is_used, registry) = (|index| used.contains(&index), self.reactor.registry());
            while let Some(idle) = self.fork_servers.remove_idle(&hash, &is_used, registry) {
                self.leftovers.add(idle, now);
            }
            let running = self.slots.iter().flatten();
            let mut running = running.filter(|run| !matches!(run.process, ProcessState::None));
            let runs = running.any(|run| run.assignment.environment == hash);
            if !runs && !self.fork_servers.environments().any(|other| other == hash) {
                self.environments.unlock(&hash);
            }
        }
    }

    /// Releases the locks of environments in which nothing runs.
    fn release_environments(&mut self, now: BootTime) {
        if !self.environments.has_idle(now) {
            return;
        }
        let running = self.slots.iter().flatten().map(|run| &run.assignment);
        let assignments = running.chain(&self.backlog);
        let assignments = assignments.map(|assignment| assignment.environment.as_str());
        let in_use = assignments
            .chain(self.fork_servers.environments())
            .collect();
        self.environments.release(&in_use, now);
    }

    /// When [`Worker::tend`] is due.
    pub(super) fn tend_timeout(&self) -> Option<BootTime> {
        let used = self.fork_servers_in_use();
        self.fork_servers
            .poll_timeout(&|index| used.contains(&index))
            .into_iter()
            .chain(self.health.poll_timeout())
            .chain(self.leftovers.poll_timeout())
            .chain(self.meter.poll_timeout())
            .min()
    }
}
