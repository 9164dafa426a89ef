//! Processes that were killed and have not ended yet. They are watched outside the slots and never waited
//! for, because one that hangs in the kernel may take any time. Orphans of lost fork servers and tools are
//! killed here as well.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits;
use crate::plugin::process::Process;
use crate::plugin::strays;
use crate::reactor::BootTime;

/// The killed processes. At most [`limits::LEFTOVERS_MAX`] are watched.
#[derive(Debug)]
pub(super) struct Leftovers {
    processes: VecDeque<Process>,
    /// True if children that this worker has not started are killed.
    kills_strays: bool,
    /// When to poll again.
    due_at: Option<BootTime>,
    pause: Duration,
}

impl Leftovers {
    pub(super) fn new(kills_strays: bool) -> Self {
        Leftovers {
            processes: VecDeque::new(),
            kills_strays,
            due_at: None,
            pause: limits::LEFTOVERS_INTERVAL,
        }
    }

    /// Kills a process and watches it.
    pub(super) fn add(&mut self, process: Process, now: BootTime) {
        process.kill();
        if self.processes.len() >= limits::LEFTOVERS_MAX {
            self.processes.pop_front();
        }
        self.processes.push_back(process);
        self.check_soon(now);
    }

    /// Waits at most [`limits::LEFTOVERS_WAIT`] for processes that end by themselves. Then kills them and
    /// their orphans.
    pub(super) fn end(&mut self, processes: Vec<Process>) {
        let until = BootTime::now() + limits::LEFTOVERS_WAIT;
        for process in processes {
            process.wait_until(until);
            self.add(process, BootTime::now());
        }
        while let Some(due) = self.due_at
            && due < until
        {
            let now = BootTime::now();
            std::thread::sleep(due.saturating_duration_since(now));
            self.reap(BootTime::now());
        }
    }

    /// Polls soon, because a child of the worker has ended and may have left orphans.
    pub(super) fn check_soon(&mut self, now: BootTime) {
        self.pause = limits::LEFTOVERS_INTERVAL;
        self.due_at = Some(now);
    }

    /// When [`Leftovers::reap`] is due.
    pub(super) fn poll_timeout(&self) -> Option<BootTime> {
        self.due_at
    }

    /// Reaps the processes that have ended, and kills their orphans.
    pub(super) fn reap(&mut self, now: BootTime) {
        if self.due_at.is_none_or(|due| now < due) {
            return;
        }
        self.processes.retain_mut(|process| {
            if !process.has_exited() {
                return true;
            }
            if let Err(error) = process.try_exit() {
                log::warn!("cannot reap process {}: {error}", process.id());
            }
            false
        });
        let has_strays = self.kills_strays && strays::kill();
        self.due_at = (has_strays || !self.processes.is_empty()).then(|| now + self.pause);
        self.pause = (self.pause * 2).min(limits::LEFTOVERS_INTERVAL_MAX);
    }
}
