//! Processes that were killed and have not ended yet, apart from the slots and never waited for:
//! one that hangs in the kernel may take its time.

use std::collections::VecDeque;

use crate::guest::process::Process;
use crate::limits;

/// See the module's head. At most [`limits::LEFTOVERS_MAX`] are watched.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    processes: VecDeque<Process>,
}

impl Leftovers {
    /// Kills a process and watches it.
    pub(super) fn add(&mut self, process: Process) {
        process.kill();
        if self.processes.len() >= limits::LEFTOVERS_MAX {
            self.processes.pop_front();
        }
        self.processes.push_back(process);
        self.reap();
    }

    /// Reaps those that have ended.
    pub(super) fn reap(&mut self) {
        self.processes.retain_mut(|process| {
            if !process.has_exited() {
                return true;
            }
            if let Err(error) = process.try_exit() {
                log::warn!("cannot reap process {}: {error}", process.id());
            }
            false
        });
    }
}
