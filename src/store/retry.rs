//! Decides whether and when a failed job is tried again.
//!
//! Policy:
//! - A final cause (`plugin`, `input`, `operator`), or no cause (as from workers of the reference system):
//!   FAILED.
//! - `lost`: counted in `retry_count`. The job itself may have caused the loss of its worker (for example by
//!   using up the memory). So a job is FAILED after more than `retries_max` losses. The first retry is at
//!   once, because most often the worker was only restarted.
//! - `lost` together with other jobs of the same worker: counted in `shared_count`, because most of these
//!   jobs have not caused the loss. The pause is random, from a range that doubles from 1 s to 5 min, so that
//!   the jobs are retried at different times. After [`limits::SHARED_LOSSES_TOGETHER`] such losses a job is
//!   claimed alone (`claim.rs`). So a job that kills its worker then loses it alone, which counts in
//!   `retry_count`. After more than [`limits::SHARED_LOSSES_MAX`] such losses a job is FAILED, too.
//! - `lost` where only the plugin process was killed and its worker continues: counted in
//!   `killed_count`, with at most [`limits::KILLED_RETRIES_MAX`] retries.
//! - `environment` and `worker`: counted in `infra_count`. Unless `retries_max` is 0, or the plugin has
//!   a number of its own, there are 10 retries, or `retries_max` if that is more. With their pauses
//!   they outlast a quarter of an hour of a full disk or a missing network.
//! - `worker` where another program has the database of a sink locked, which a plugin can do while its job
//!   runs: counted in `locked_count`. There are at least [`limits::LOCKED_RETRIES_MAX`] retries, unless
//!   retries are disabled.
//! - `input` where the input changed while the job ran: counted in `changed_count`, with at most
//!   [`limits::INPUT_RETRIES_MAX`] retries.
//! - Each of these limits has a count of its own, so that one kind of failure does not use up the retries of
//!   another.
//! - A job that a worker gives back (`returned`), or whose worker lost its ID to another process, is not
//!   counted. The exception is a job whose workers were stopped while it ran more than
//!   [`limits::GIVEN_BACK_MAX`] times in a row, by `cf_job_attempt`, because the job may be what stops them.
//!   Each further time counts as a loss: together with other jobs until the job runs alone, then as a loss
//!   alone.
//! - An attempt that is refused because of output of another job that may still be removed (`waits.rs`) is
//!   not counted. Its pause doubles up to 32 s.
//! - `cf_plugin_config.retries` replaces `retries_max` for the plugin's jobs.
//! - [`Transaction::requeue`] resets all counts.
//!
//! The pause is 1 s and doubles with each failure of the kind, up to 5 min. Up to a fifth is added or
//! subtracted, depending on job and attempt, so that jobs that failed together are not retried together.
//! During the pause the row is PENDING with `next_run`. A PENDING row without `next_run` is never changed.
//! The end of the pause is in milliseconds since boot (`next_run_boot_ms`). After a reboot, or on another
//! host, the time of day in `next_run` decides. If that is further away than the longest pause, the pause is
//! over.

use rusqlite::{OptionalExtension, params};

use super::value::{cell, number, shown};
use super::{Error, Now, Store, Transaction, parse_time};
use crate::job::{Attempt, Cause};
use crate::limits;

/// Failures of a job since it was queued, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    /// Lost workers: `retry_count`.
    pub(super) lost: i64,
    /// Environments and workers: `infra_count`.
    pub(super) infra: i64,
    /// Lost workers that ran other jobs too: `shared_count`.
    pub(super) shared: i64,
    /// Databases of sinks that other programs had locked: `locked_count`.
    pub(super) locked: i64,
    /// Inputs that changed while the job ran: `changed_count`.
    pub(super) changed: i64,
    /// Killed plugin processes: `killed_count`.
    pub(super) killed: i64,
}

impl Failures {
    /// The sum of all kinds.
    pub(super) fn all(&self) -> i64 {
        let kinds = [
            self.lost,
            self.infra,
            self.shared,
            self.locked,
            self.changed,
            self.killed,
        ];
        kinds.into_iter().fold(0, i64::saturating_add)
    }
}

/// How often a job is retried, by kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retries {
    lost: u32,
    infra: u32,
}

impl Retries {
    /// The sentinel's numbers, unless the plugin has a number of its own.
    pub(super) fn new(retries_max: u32, own: Option<u32>) -> Self {
        match own {
            Some(own) => Retries {
                lost: own,
                infra: own,
            },
            None if retries_max == 0 => Retries { lost: 0, infra: 0 },
            None => Retries {
                lost: retries_max,
                infra: retries_max.max(limits::INFRA_RETRIES_MAX),
            },
        }
    }
}

/// The next state of a job after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// QUEUED at once.
    Queued,
    /// PENDING for this number of milliseconds.
    After(u64),
    /// FAILED.
    Failed,
}

/// What the policy needs of a failure in addition to its cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    None,
    /// The lost worker ran other jobs too.
    Shared,
    /// The input changed while the job ran.
    InputChanged,
    /// Another program had the database of a sink locked for as long as the worker waits.
    SinkLocked,
    /// Its worker never started it, and gave it back.
    NotStarted,
    /// A worker that was stopped while the job ran gave it back.
    Stopped,
    /// Another process has taken over the ID of its worker, or the worker was lost while it created the
    /// environment. The attempt may have left output.
    Displaced,
    /// Its plugin process was killed from outside, while its worker ran no other job.
    Killed,
    /// Its `casparian run` was interrupted. The attempt may have left output.
    Interrupted,
}

impl Detail {
    /// True when the job is queued again at once, uncounted, unless its workers were stopped too often.
    pub(super) fn is_returned(self) -> bool {
        matches!(self, Detail::NotStarted) || self.was_stopped() || self == Detail::Interrupted
    }

    /// True when the worker stopped running the job. The job may be the reason.
    pub(super) fn was_stopped(self) -> bool {
        matches!(self, Detail::Stopped | Detail::Displaced)
    }

    /// True when the attempt may have left output.
    pub(super) fn may_have_output(self) -> bool {
        matches!(self, Detail::Displaced | Detail::Interrupted)
    }
}

/// Counts a failure and decides what follows.
pub(super) fn decide(
    cause: Option<Cause>,
    failures: &mut Failures,
    retries: Retries,
    attempt: Attempt,
    detail: Detail,
) -> Next {
    if detail == Detail::Shared && cause == Some(Cause::Lost) {
        let before = failures.shared;
        failures.shared = before.saturating_add(1);
        return match before < limits::SHARED_LOSSES_MAX {
            true => Next::After(scramble(attempt) % pause_range_ms(before)),
            false => Next::Failed,
        };
    }
    let (count, free, retries_max) = match cause {
        Some(Cause::Lost) if detail == Detail::Killed => {
            let retries = retries.lost.min(limits::KILLED_RETRIES_MAX);
            (&mut failures.killed, 1, retries)
        }
        Some(Cause::Lost) => (&mut failures.lost, 1, retries.lost),
        Some(Cause::Worker) if detail == Detail::SinkLocked && retries.infra > 0 => {
            let retries = retries.infra.max(limits::LOCKED_RETRIES_MAX);
            (&mut failures.locked, 0, retries)
        }
        Some(Cause::Environment | Cause::Worker) => (&mut failures.infra, 0, retries.infra),
        Some(Cause::Input) if detail == Detail::InputChanged => {
            let retries = retries.infra.min(limits::INPUT_RETRIES_MAX);
            (&mut failures.changed, 0, retries)
        }
        Some(Cause::Plugin | Cause::Input | Cause::Operator) | None => return Next::Failed,
    };
    let before = *count;
    *count = before.saturating_add(1);
    if before >= i64::from(retries_max) {
        Next::Failed
    } else if before < free {
        Next::Queued
    } else {
        Next::After(pause_ms(before - free, attempt))
    }
}

/// Decides about a job whose worker was stopped while the job ran, after `before` such attempts in a row.
pub(super) fn decide_stopped(
    before: i64,
    failures: &mut Failures,
    retries: Retries,
    attempt: Attempt,
) -> Next {
    if before < limits::GIVEN_BACK_MAX {
        return Next::Queued;
    }
    let detail = match failures.shared < limits::SHARED_LOSSES_TOGETHER {
        true => Detail::Shared,
        false => Detail::None,
    };
    decide(Some(Cause::Lost), failures, retries, attempt, detail)
}

/// Decides about a job whose input has other content than its file version, after `before` such
/// attempts in a row. Most often the file was replaced once, long ago, so the first retry is at once. A file
/// that keeps changing, for example while it is copied, gets time by the pauses.
pub(super) fn decide_version_change(before: i64, attempt: Attempt) -> Next {
    match before {
        0 => Next::Queued,
        limits::VERSION_CHANGES_MAX.. => Next::Failed,
        _ => Next::After(pause_ms(before - 1, attempt)),
    }
}

/// The pause in milliseconds after `before` earlier ones, without its jitter.
fn pause_range_ms(before: i64) -> u64 {
    let ms = |wait: std::time::Duration| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let doublings = u32::try_from(before.clamp(0, 32)).unwrap_or(32);
    ms(limits::RETRY_PAUSE_MIN)
        .saturating_mul(1 << doublings)
        .min(ms(limits::RETRY_PAUSE_MAX))
        .max(1)
}

/// The pause in milliseconds after `before` earlier ones.
pub(super) fn pause_ms(before: i64, attempt: Attempt) -> u64 {
    let pause = pause_range_ms(before);
    // 80 to 120 percent, in thousandths.
    let share = 800 + scramble(attempt) % 401;
    pause.saturating_mul(share) / 1000
}

/// The longest pause with its jitter.
fn pause_max_ms() -> u64 {
    let max = u64::try_from(limits::RETRY_PAUSE_MAX.as_millis()).unwrap_or(u64::MAX);
    max.saturating_mul(12) / 10
}

/// A pseudo-random number, always the same for an attempt (SplitMix64).
fn scramble(attempt: Attempt) -> u64 {
    let mut x = attempt.job_id.unsigned_abs() ^ attempt.number.unsigned_abs().rotate_left(32);
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// PENDING rows whose pause is over by the clock since boot. ?1 = the boot ID, ?2 = now.
pub(super) const DUE_QUERY: &str = "SELECT id FROM cf_processing_queue \
     INDEXED BY ix_casparian_retry WHERE status = 'PENDING' AND next_run IS NOT NULL \
     AND next_run_boot_id = ?1 AND next_run_boot_ms <= ?2 LIMIT ?3";

/// Ends a row's pause.
pub(super) const WAKE: &str = "UPDATE cf_processing_queue SET status = 'QUEUED', next_run = NULL, \
     next_run_boot_ms = NULL, next_run_boot_id = NULL WHERE id = ?1";

/// Checks that a row is as [`WAKE`] left it.
pub(super) const IS_QUEUED: &str =
    "SELECT 1 FROM cf_processing_queue WHERE id = ?1 AND status = 'QUEUED'";

/// Sets the end of a row's pause in milliseconds since this boot.
const ADOPT: &str = "UPDATE cf_processing_queue SET next_run_boot_ms = ?2, next_run_boot_id = ?3 \
     WHERE id = ?1";

/// A range of PENDING rows with `next_run`. The parameters are those of `other_boot_parameters`.
macro_rules! foreign {
    ($range:literal) => {
        concat!(
            "SELECT id, next_run FROM cf_processing_queue INDEXED BY ix_casparian_retry \
             WHERE status = 'PENDING' AND next_run IS NOT NULL AND ",
            $range,
            " LIMIT ?3"
        )
    };
}

/// PENDING rows with an end of the pause that is not valid for this boot: it is of another boot, further away
/// than the longest pause, or no number. Each query searches a range of the index, so it costs almost nothing
/// when there are no such rows.
pub(super) const OTHER_BOOT_QUERIES: [&str; 5] = [
    foreign!("next_run_boot_id IS NULL AND ?1 IS ?1 AND ?2 IS ?2"),
    foreign!("next_run_boot_id < ?1 AND ?2 IS ?2"),
    foreign!("next_run_boot_id > ?1 AND ?2 IS ?2"),
    foreign!("next_run_boot_id = ?1 AND next_run_boot_ms IS NULL AND ?2 IS ?2"),
    foreign!("next_run_boot_id = ?1 AND next_run_boot_ms > ?2"),
];

/// The next end of a pause, in milliseconds since this boot.
pub(super) const NEXT_DUE_QUERY: &str = "SELECT next_run_boot_ms FROM cf_processing_queue \
     INDEXED BY ix_casparian_retry WHERE status = 'PENDING' AND next_run IS NOT NULL \
     AND next_run_boot_id = ?1 AND next_run_boot_ms IS NOT NULL ORDER BY next_run_boot_ms LIMIT 1";

impl Store {
    /// When [`Transaction::wake_due`] must be called next, in milliseconds since boot ([`Now::boot_ms`]).
    /// None when no job waits for a retry.
    pub fn next_due_boot_ms(&self, now: &Now) -> Result<Option<u64>, Error> {
        for query in OTHER_BOOT_QUERIES {
            let mut statement = self.connection.prepare_cached(query)?;
            if statement.exists(other_boot_parameters(now, 1))? {
                return Ok(Some(now.boot_ms));
            }
        }
        let mut statement = self.connection.prepare_cached(NEXT_DUE_QUERY)?;
        let next = statement
            .query_row([&*now.boot_id], |row| Ok(number(cell(row, 0))))
            .optional()?
            .flatten();
        Ok(next.map(|ms| u64::try_from(ms).unwrap_or(0)))
    }
}

impl Transaction<'_> {
    /// Queues PENDING jobs whose pause is over. Changes at most [`limits::WOKEN_PER_TRANSACTION`] rows and
    /// returns how many. Call it again while the result is that number.
    pub fn wake_due(&mut self, now: &Now) -> Result<usize, Error> {
        let limit = limits::WOKEN_PER_TRANSACTION;
        let mut changed = self.adopt_other_boot(now, limit)?;
        // Skipped rows stay due, so more rows are read.
        let read = i64::try_from(limit.saturating_add(self.refused.len())).unwrap_or(i64::MAX);
        let boot_ms = i64::try_from(now.boot_ms).unwrap_or(i64::MAX);
        let due: Vec<i64> = self
            .inner
            .prepare_cached(DUE_QUERY)?
            .query_map(params![&*now.boot_id, boot_ms, read], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let mut left = limit.saturating_sub(changed);
        for job_id in due {
            if left == 0 {
                break;
            }
            if self.refused.is_given_up(job_id) {
                continue;
            }
            left -= 1;
            match self.change_job_to(job_id, WAKE, [job_id], (IS_QUEUED, &[&job_id]))? {
                true => changed += 1,
                false => self.refused.give_up(job_id),
            }
        }
        Ok(changed)
    }

    /// Gives rows of another boot an end of the pause for this boot, by their time of day. They are due at
    /// once where that time has passed, cannot be read, or is further away than the longest pause.
    fn adopt_other_boot(&mut self, now: &Now, limit: usize) -> Result<usize, Error> {
        let mut found: Vec<(i64, u64)> = Vec::new();
        let read = limit.saturating_add(self.refused.len());
        for query in OTHER_BOOT_QUERIES {
            let mut statement = self.inner.prepare_cached(query)?;
            let mut rows = statement.query(other_boot_parameters(now, read))?;
            while let Some(row) = rows.next()? {
                let left_ms = shown(cell(row, 1))
                    .and_then(|text| parse_time(&text))
                    .and_then(|at_ms| u64::try_from(at_ms.saturating_sub(now.unix_ms)).ok())
                    .filter(|left| *left <= pause_max_ms())
                    .unwrap_or(0);
                found.push((row.get(0)?, left_ms));
            }
        }
        found.retain(|(job_id, _)| !self.refused.is_given_up(*job_id));
        found.truncate(limit);
        let mut changed = 0;
        for (job_id, left_ms) in found {
            let at_ms = i64::try_from(now.boot_ms.saturating_add(left_ms)).unwrap_or(i64::MAX);
            let parameters = params![job_id, at_ms, &*now.boot_id];
            match self.change_job(job_id, ADOPT, parameters)? {
                Some(rows) => changed += rows,
                None => self.refused.give_up(job_id),
            }
        }
        Ok(changed)
    }
}

/// The boot ID, the latest possible end of a pause, and the number of rows.
fn other_boot_parameters(now: &Now, limit: usize) -> (String, i64, i64) {
    let reach = now.boot_ms.saturating_add(pause_max_ms());
    (
        now.boot_id.to_string(),
        i64::try_from(reach).unwrap_or(i64::MAX),
        i64::try_from(limit).unwrap_or(i64::MAX),
    )
}

#[cfg(test)]
mod tests;
