//! What a run cannot go on without: its queue, its output folder, and a worker that takes jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queue;
use crate::limits;
use crate::sink::{self, Root};
use crate::store::{Error, Store};

/// What to do about an end that is no file's fault.
pub(super) const GO_ON: &str = "the same command goes on with the rest";

/// A worker that was not in trouble for so long has recovered.
const RECOVERED_AFTER: Duration = Duration::from_secs(60);

/// The output folder and the queue as they were at the start.
pub(super) struct Watch {
    root: Arc<Root>,
    database: PathBuf,
    queue: Store,
    /// The plugin of the run's jobs.
    plugin: String,
    /// Jobs that could not end at the last poll.
    suspects: BTreeSet<i64>,
    /// The last job that was checked.
    looked_up_to: i64,
    /// How long queue and worker may fail.
    longest: Duration,
    /// Since when the worker takes no jobs, but for those that it tries after its tests.
    trouble_since: Option<Instant>,
    /// When it was last seen to take none.
    trouble_seen: Option<Instant>,
}

impl Watch {
    pub(super) fn new(
        root: Arc<Root>,
        database: &Path,
        queue: Store,
        plugin: &str,
        longest: Duration,
    ) -> Self {
        Watch {
            root,
            database: database.to_owned(),
            queue,
            plugin: plugin.to_owned(),
            suspects: BTreeSet::new(),
            looked_up_to: i64::MIN,
            longest,
            trouble_since: None,
            trouble_seen: None,
        }
    }

    /// Fails when folder or queue are not any more what they were, so that waiting is in vain.
    /// Other failures may pass.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Err(sink::Error::RootGone { path }) = self.root.check() {
            return Err(format!(
                "output {}: it was removed, renamed or unmounted, or another folder is in its \
                 place; put it back, and {GO_ON}",
                path.display()
            ));
        }
        match self.queue.check_identity() {
            Err(error @ Error::Replaced { .. }) => Err(queue::replaced(&error)),
            _ => Ok(()),
        }
    }

    /// Why a queue that failed for too long is given up.
    pub(super) fn given_up(&self, error: &Error) -> String {
        queue::given_up(&queue::shown(&self.database, error), self.longest)
    }

    /// Which of the jobs of the run's plugin cannot end, because another program has changed their
    /// rows, and why: jobs of which that was so at two polls, for the sentinel may be about to report
    /// the end. A poll reads a bounded number of rows; the next one continues after them.
    pub(super) fn stuck(&mut self, waiting: &BTreeMap<i64, usize>) -> Vec<(i64, String)> {
        let before = std::mem::take(&mut self.suspects);
        let from = (Bound::Excluded(self.looked_up_to), Bound::Unbounded);
        let part = waiting.range(from).take(limits::WAITING_PER_LOOK);
        let part: Vec<i64> = part.map(|(job_id, _)| *job_id).collect();
        self.looked_up_to = match part.len() < limits::WAITING_PER_LOOK {
            true => i64::MIN,
            false => part.last().copied().unwrap_or(i64::MIN),
        };
        let mut stuck = Vec::new();
        let waits = self.queue.waits(&self.plugin).ok().flatten();
        let again = before.iter().filter(|job_id| waiting.contains_key(job_id));
        for job_id in again.chain(&part) {
            // Other failures of the queue are handled where it is written.
            let Ok(Some(reason)) = self.queue.is_stuck(*job_id, &self.plugin, waits.as_deref())
            else {
                continue;
            };
            match before.contains(job_id) {
                true => stuck.push((*job_id, reason)),
                false => drop(self.suspects.insert(*job_id)),
            }
        }
        stuck
    }

    /// A file is done.
    pub(super) fn note_success(&mut self) {
        self.trouble_since = None;
    }

    /// What is to be said of a worker that takes no jobs any more. Fails when it has taken none for
    /// too long: in between it may seem to work until it tries a job.
    pub(super) fn poll_worker(&mut self, now: Instant) -> Result<Option<String>, String> {
        let Some(trouble) = self.trouble() else {
            let is_over = |seen: Instant| now.saturating_duration_since(seen) >= RECOVERED_AFTER;
            if self.trouble_seen.is_none_or(is_over) {
                self.trouble_since = None;
            }
            return Ok(None);
        };
        self.trouble_seen = Some(now);
        let seconds = self.longest.as_secs();
        match self.trouble_since {
            None => {
                self.trouble_since = Some(now);
                Ok(Some(format!(
                    "no jobs are taken: {trouble}; waiting for at most {seconds} s"
                )))
            }
            Some(since) if now.saturating_duration_since(since) >= self.longest => Err(format!(
                "no jobs were taken for {seconds} s (--outage-timeout): {trouble}; once that is \
                 repaired, {GO_ON}"
            )),
            Some(_) => Ok(None),
        }
    }

    /// Why this process's worker takes no jobs, if it does not.
    fn trouble(&self) -> Option<String> {
        let own = Some(i64::from(std::process::id()));
        let mut workers = self.queue.workers().ok()?.into_iter();
        workers.find(|worker| worker.pid == own)?.trouble
    }
}
