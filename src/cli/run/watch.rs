//! Checks what a run needs to continue: its queue, its output folder, and a worker that takes jobs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::queue::{self, GO_ON};
use crate::limits;
use crate::sink::{self, Root};
use crate::store::{Error, Store};
use crate::worker::BEING_CREATED;

/// After this time without trouble a worker counts as recovered.
const RECOVERED_AFTER: Duration = Duration::from_secs(60);

/// The output folder and the queue of the start of the run.
pub(super) struct Watch {
    root: Arc<Root>,
    database: PathBuf,
    queue: Store,
    /// The plugin of the run's jobs.
    plugin: String,
    /// Jobs that could not end by themselves at the last poll.
    suspects: BTreeSet<i64>,
    /// The last job that was checked.
    checked_up_to: i64,
    /// Longest time for which queue and worker may fail.
    longest: Duration,
    /// Since when the worker is in trouble. Jobs that it tries after self-tests do not end this.
    trouble_since: Option<Instant>,
    /// When the worker was last seen in trouble.
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
            checked_up_to: i64::MIN,
            longest,
            trouble_since: None,
            trouble_seen: None,
        }
    }

    /// Fails if folder or queue are not those of the start, so that waiting is useless. Other failures may be
    /// temporary.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Err(sink::Error::RootMissing { path }) = self.root.check() {
            return Err(format!(
                "output {}: it was removed, renamed or unmounted, or another folder is at its \
                 path; restore it, and {GO_ON}",
                path.display()
            ));
        }
        match self.queue.check_identity() {
            Err(error @ Error::Replaced { .. }) => Err(queue::replaced(&error)),
            _ => Ok(()),
        }
    }

    /// The reason when a queue that failed for too long is given up.
    pub(super) fn given_up(&self, error: &Error) -> String {
        queue::given_up(&queue::shown(&self.database, error), self.longest)
    }

    /// Jobs of the run's plugin that cannot end by themselves, because another program has changed their
    /// rows, with the reasons. A job is returned if that was so at two polls, because the sentinel may be
    /// about to report its end. A poll reads a bounded number of rows. The next one continues after them.
    pub(super) fn stuck(&mut self, waiting: &BTreeMap<i64, usize>) -> Vec<(i64, String)> {
        let before = std::mem::take(&mut self.suspects);
        let from = (Bound::Excluded(self.checked_up_to), Bound::Unbounded);
        let part = waiting.range(from).take(limits::WAITING_PER_POLL);
        let part: Vec<i64> = part.map(|(job_id, _)| *job_id).collect();
        self.checked_up_to = match part.len() < limits::WAITING_PER_POLL {
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

    /// A file has been done.
    pub(super) fn note_success(&mut self) {
        self.trouble_since = None;
    }

    /// Returns a message when the worker has come into trouble. Fails if it was in trouble for too long.
    /// Between failures it may seem to work until it tries a job.
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

    /// Why this process's worker takes no jobs; none if it takes jobs. All jobs of a run have one environment, so
    /// the worker also takes none after failures of an environment.
    fn trouble(&self) -> Option<String> {
        let own = Some(i64::from(std::process::id()));
        let mut workers = self.queue.workers().ok()?.into_iter();
        let worker = workers.find(|worker| worker.pid == own)?;
        let mut reasons = worker.environments.into_values();
        let failed = || reasons.find(|reason| !reason.starts_with(BEING_CREATED));
        worker.trouble.or_else(failed)
    }
}
