//! Settlements: for ended jobs whose output may differ from their rows. A worker was lost after it had
//! published and before its receipt arrived, or another program ended the job meanwhile.
//!
//! Such a row has `unsettled = 1` from the end of the attempt without a report of its worker. When no attempt
//! follows, a worker settles the output by a [`Settlement`]. It has an attempt number of its own, so that it
//! bars the earlier attempts. A row that is QUEUED again, or will be (PENDING with `next_run`), needs no
//! settlement: its next attempt replaces what an earlier one left. Every other status except RUNNING counts
//! as ended, including those that other programs write. A row for which no settlement can be created has
//! `unsettled = 2`, so that it is not considered again.
//!
//! Output that stays was made with the file version, the code and the sinks with which its attempt was
//! dispatched. The row may have others by now. Then the output does not complete the job.

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, params};

use super::attempts::{ROW_CHANGED, uris};
use super::claim::{history, previous};
use super::identity::last_attempt;
use super::value::{Malformed, cell, count, number, shown};
use super::{Error, Now, Store, Transaction, format_time};
use crate::job::{Attempt, Cause, JobStatus, Receipt, SETTLED_ATTEMPT, Settlement};
use crate::limits;

/// Rows to settle above an ID.
pub(super) const UNSETTLED_QUERY: &str = "SELECT id FROM cf_processing_queue \
     INDEXED BY ix_casparian_unsettled WHERE unsettled = 1 AND id > ?1 \
     AND coalesce(status, '') NOT IN ('RUNNING', 'QUEUED') \
     AND (status IS NOT 'PENDING' OR next_run IS NULL) ORDER BY id LIMIT ?2";

/// The last attempts of rows that may have to be settled.
pub(super) const SILENT_QUERY: &str = "SELECT id, attempt FROM cf_processing_queue \
     INDEXED BY ix_casparian_unsettled WHERE unsettled = 1 AND id > 0 LIMIT ?1";

/// A row to settle. Empty for a row that runs or will run again.
pub(super) const SETTLE_QUERY: &str = "SELECT attempt, status, failure_cause, worker_id, \
     coalesce(published, receipt), published IS NULL, \
     (SELECT value FROM cf_casparian WHERE key = 'incarnation'), \
     (SELECT max(a.attempt) FROM cf_job_attempt a WHERE a.job_id = ?1 AND a.attempt <= \
     (SELECT (max(1, min(2147483647, CAST(value AS INTEGER))) << 32) + 4294967293 \
     FROM cf_casparian WHERE key = 'incarnation')) \
     FROM cf_processing_queue WHERE id = ?1 AND unsettled = 1 \
     AND coalesce(status, '') NOT IN ('RUNNING', 'QUEUED') \
     AND (status IS NOT 'PENDING' OR next_run IS NULL)";

/// The last attempt up to which nothing is left to settle.
const SETTLED_QUERY: &str = "SELECT max(attempt) FROM cf_job_attempt \
     WHERE job_id = ?1 AND status IN ('COMPLETED', 'SETTLED')";

/// How many attempts above ?2 ended without output, as their workers reported.
pub(super) const WITHOUT_OUTPUT_QUERY: &str = "SELECT count(*) FROM cf_job_attempt \
     WHERE job_id = ?1 AND attempt > ?2 AND (status = 'RETURNED' OR \
     status = 'FAILED' AND (cause IS NULL OR cause NOT IN ('lost', 'worker')))";

/// Whether the row still has the file version and plugin with which attempt ?2 was dispatched (1 or 0), and
/// what that attempt was dispatched with. For an attempt of an earlier release this is unknown. It then
/// counts as the same, unless this or a later attempt shows that it has changed (?3 = [`ROW_CHANGED`], the
/// start of such a message). The version is 0 where it is unknown.
pub(super) const STANDING_QUERY: &str = "SELECT own, iif(dispatched IS NOT NULL, \
     CAST(dispatched AS INTEGER), iif(own, file_version_id, 0)), artifact_hash, sinks_hash \
     FROM (SELECT q.file_version_id, a.dispatched, a.artifact_hash, a.sinks_hash, \
     CASE WHEN a.attempt IS NULL THEN 0 WHEN a.dispatched IS NOT NULL \
     THEN a.dispatched IS q.file_version_id || ' ' || q.plugin_name \
     ELSE NOT EXISTS (SELECT 1 FROM cf_job_attempt b WHERE b.job_id = q.id AND b.attempt >= ?2 \
     AND (b.dispatched IS NOT NULL \
     AND b.dispatched IS NOT q.file_version_id || ' ' || q.plugin_name \
     OR b.cause IS 'input' OR instr(coalesce(b.error_message, ''), ?3) = 1)) END AS own \
     FROM cf_processing_queue q LEFT JOIN cf_job_attempt a ON a.job_id = q.id AND a.attempt = ?2 \
     WHERE q.id = ?1)";

/// Completes a lost job that has output of the row's file version and plugin.
const COMPLETE: &str = "UPDATE cf_processing_queue SET status = 'COMPLETED', \
     error_message = NULL, failure_cause = NULL, result_summary = 'Success' \
     WHERE id = ?1 AND status = 'FAILED' AND failure_cause = 'lost'";

/// Queues a lost job again that has output of another file version or plugin. Its count of losses stays.
const QUEUE_AGAIN: &str = "UPDATE cf_processing_queue SET status = 'QUEUED', end_time = NULL, \
     error_message = NULL, failure_cause = NULL, result_summary = NULL, claim_time = NULL, \
     worker_id = NULL, worker_host = NULL, worker_pid = NULL \
     WHERE id = ?1 AND status = 'FAILED' AND failure_cause = 'lost'";

/// Sets the hashes of code and sinks of a COMPLETED row.
const RAN_WITH: &str = "UPDATE cf_processing_queue SET artifact_hash = coalesce(?2, artifact_hash), \
     sinks_hash = coalesce(?3, sinks_hash) WHERE id = ?1 AND status = 'COMPLETED'";

/// How a settlement has changed a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Its status has not changed.
    Unchanged,
    /// The job was lost and is COMPLETED.
    Completed,
    /// The job was lost and is QUEUED again, because the output is of another file version or plugin.
    QueuedAgain,
}

/// What the output of an attempt was made with.
struct Origin {
    /// File version and plugin are those of the row.
    is_own: bool,
    version_id: i64,
    artifact_hash: Option<String>,
    sinks_hash: Option<String>,
}

/// Jobs that may have output which no receipt names, because they run or must be settled.
const UNREPORTED_OUTPUT_QUERY: &str =
    "SELECT id FROM cf_processing_queue WHERE status = 'RUNNING' OR unsettled = 1 ORDER BY id";

impl Store {
    /// The number of jobs that may have output which no receipt names, and the IDs of the first `limit`.
    /// These are jobs that run or must be settled.
    pub fn unreported_output(&self, limit: usize) -> Result<(usize, Vec<i64>), Error> {
        let mut statement = self.connection.prepare(UNREPORTED_OUTPUT_QUERY)?;
        let (mut found, mut first) = (0, Vec::new());
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            found += 1;
            if first.len() < limit {
                first.push(row.get(0)?);
            }
        }
        Ok((found, first))
    }

    /// IDs above `after` of jobs to settle, in ascending order, at most [`limits::SETTLED_PER_ITERATION`].
    pub fn unsettled(&self, after: i64) -> Result<Vec<i64>, Error> {
        let mut statement = self.connection.prepare_cached(UNSETTLED_QUERY)?;
        let limit = i64::try_from(limits::SETTLED_PER_ITERATION).unwrap_or(i64::MAX);
        let ids = statement.query_map(params![after, limit], |row| row.get(0))?;
        Ok(ids.collect::<Result<_, _>>()?)
    }

    /// The last attempts of rows with `unsettled = 1`, at most [`limits::SETTLED_PER_ITERATION`]. Their
    /// workers have not reported how they ended. Such a worker may be paused while it publishes.
    pub fn silent(&self) -> Result<Vec<Attempt>, Error> {
        let mut statement = self.connection.prepare_cached(SILENT_QUERY)?;
        let limit = i64::try_from(limits::SETTLED_PER_ITERATION).unwrap_or(i64::MAX);
        let rows = statement.query_map([limit], |row| {
            Ok(Attempt::new(row.get(0)?, count(cell(row, 1))))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Transaction<'_> {
    /// Sets QUEUED and PENDING jobs that must be settled to FAILED with the cause `lost`, so that they can be
    /// settled without another attempt. Returns how many. Only for a program that is alone on the database,
    /// and that queues by itself the jobs that are to run again.
    pub fn fail_unsettled(&mut self, reason: &str, now: &Now) -> Result<usize, Error> {
        let fail = "UPDATE cf_processing_queue INDEXED BY ix_casparian_unsettled SET status = 'FAILED', \
             failure_cause = 'lost', error_message = ?1, result_summary = 'Failed', \
             end_time = ?2, next_run = NULL, next_run_boot_ms = NULL, next_run_boot_id = NULL \
             WHERE unsettled = 1 AND status IN ('QUEUED', 'PENDING')";
        let parameters = params![reason, format_time(now.unix_ms)];
        Ok(self.change_rows(fail, parameters)?.unwrap_or(0))
    }

    /// Creates a settlement of a job, with the number of its next attempt. Also returns the worker that had
    /// the job last, which certainly has the output root. None when there is nothing to settle (any more), or
    /// the row cannot be used.
    pub fn take_settlement(
        &mut self,
        job_id: i64,
    ) -> Result<Option<(Settlement, Option<String>)>, Error> {
        let found = self
            .inner
            .prepare_cached(SETTLE_QUERY)?
            .query_row([job_id], |row| {
                let lost = shown(cell(row, 2)).as_deref() == Some(Cause::Lost.as_str());
                let keep = lost && shown(cell(row, 1)).as_deref() == Some("FAILED");
                let worker = shown(cell(row, 3));
                let is_receipt = cell(row, 5) != ValueRef::Integer(0);
                let last = last_attempt([cell(row, 0), cell(row, 7)], cell(row, 6), job_id);
                let previous = previous(cell(row, 4), is_receipt, job_id);
                Ok(last.and_then(|last| Ok((last, keep, worker, previous?))))
            })
            .optional()?;
        let (last, keep, worker, previous) = match found {
            None => return Ok(None),
            Some(Err(malformed)) => return self.give_up_settling(job_id, &malformed),
            Some(Ok(found)) => found,
        };
        let attempt = Attempt::new(job_id, last.number.saturating_add(1));
        let key = self.next_key();
        let parameters = [job_id, attempt.number, key];
        let take = "UPDATE cf_processing_queue SET attempt = ?2, attempt_key = ?3 \
             WHERE id = ?1 AND unsettled = 1";
        if self.change_job(job_id, take, parameters)? != Some(1) {
            return Ok(None);
        }
        let note = "INSERT OR REPLACE INTO cf_job_attempt (job_id, attempt, status, attempt_key) \
             VALUES (?1, ?2, 'SETTLING', ?3)";
        self.change_job(job_id, note, parameters)?;
        // Settlements that fail are repeated without end, so old ones are deleted.
        let oldest = attempt.number.saturating_sub(limits::ATTEMPTS_KEPT);
        let forget = "DELETE FROM cf_job_attempt WHERE job_id = ?1 AND attempt <= ?2 \
             AND status = 'SETTLING'";
        self.change_job(job_id, forget, [job_id, oldest])?;
        let settlement = Settlement {
            attempt,
            database: self.database.to_string(),
            previous,
            history: history(&self.inner, key, attempt)?,
            keep,
        };
        Ok(Some((settlement, worker)))
    }

    /// Sets `unsettled = 2` for a row that cannot be used. The job's output stays as it is.
    fn give_up_settling<T>(
        &mut self,
        job_id: i64,
        malformed: &Malformed,
    ) -> Result<Option<T>, Error> {
        log::error!("job {job_id}: its output cannot be settled: {malformed}");
        let give_up =
            "UPDATE cf_processing_queue SET unsettled = 2 WHERE id = ?1 AND unsettled = 1";
        self.change_job(job_id, give_up, [job_id])?;
        Ok(None)
    }

    /// Applies a worker's report on a settlement. Output that stays without a receipt gets one. Its attempt
    /// was the last one that published. A job that failed as lost is then COMPLETED, or QUEUED again where
    /// the output is not of the row's file version and plugin. A settlement that failed, or is not the last
    /// one, changes nothing, with one exception: after one that failed because a higher attempt number has
    /// barred it, the next number is above that.
    pub fn settle(
        &mut self,
        attempt: Attempt,
        receipt: &Receipt,
        now: &Now,
    ) -> Result<Settled, Error> {
        let job_id = attempt.job_id;
        if receipt.status != JobStatus::Success {
            if let Some(by) = receipt.barred_by(attempt) {
                let raise_attempt = "UPDATE cf_processing_queue SET attempt = ?3, attempt_key = NULL \
                     WHERE id = ?1 AND attempt = ?2 AND unsettled = 1";
                self.change_job(job_id, raise_attempt, [job_id, attempt.number, by])?;
            }
            return Ok(Settled::Unchanged);
        }
        let end = "UPDATE cf_processing_queue SET unsettled = 0 \
             WHERE id = ?1 AND attempt = ?2 AND unsettled = 1";
        let settled = self.change_job(job_id, end, [job_id, attempt.number])?;
        let ended = format_time(now.unix_ms);
        if settled == Some(1) {
            let note = "UPDATE cf_job_attempt SET status = 'SETTLED', ended = ?3 \
                 WHERE job_id = ?1 AND attempt = ?2 AND status = 'SETTLING'";
            self.change_job(job_id, note, params![job_id, attempt.number, ended])?;
        }
        let kept = receipt.metrics.get(SETTLED_ATTEMPT).copied();
        let Some(kept) = kept.filter(|_| settled == Some(1)) else {
            return Ok(Settled::Unchanged);
        };
        let origin = self.origin(job_id, kept)?;
        let json = serde_json::json!({
            "status": receipt.status,
            "metrics": receipt.metrics,
            "artifacts": receipt.artifacts,
        });
        let publish = "UPDATE cf_processing_queue SET receipt = ?2, published = ?3, \
             published_version_id = ?4 WHERE id = ?1";
        let version_id = origin.version_id;
        let parameters = params![job_id, json.to_string(), uris(receipt), version_id];
        self.change_job(job_id, publish, parameters)?;
        let (change, changed) = match origin.is_own {
            true => (COMPLETE, Settled::Completed),
            false => (QUEUE_AGAIN, Settled::QueuedAgain),
        };
        let became = match self.change_job(job_id, change, [job_id])? {
            Some(1) => changed,
            _ => Settled::Unchanged,
        };
        let parameters = params![job_id, origin.artifact_hash, origin.sinks_hash];
        self.change_job(job_id, RAN_WITH, parameters)?;
        let record = "INSERT INTO cf_job_attempt (job_id, attempt, ended, status) \
             VALUES (?1, ?2, ?3, 'COMPLETED') ON CONFLICT (job_id, attempt) DO UPDATE \
             SET status = 'COMPLETED', cause = NULL, error_message = NULL, ended = ?3";
        self.change_job(job_id, record, params![job_id, kept, ended])?;
        Ok(became)
    }

    /// What the output of an attempt of a job was made with.
    fn origin(&self, job_id: i64, attempt: i64) -> Result<Origin, Error> {
        let mut statement = self.inner.prepare_cached(STANDING_QUERY)?;
        Ok(
            statement.query_row(params![job_id, attempt, ROW_CHANGED], |row| {
                Ok(Origin {
                    is_own: cell(row, 0) == ValueRef::Integer(1),
                    version_id: number(cell(row, 1)).unwrap_or(0),
                    artifact_hash: shown(cell(row, 2)),
                    sinks_hash: shown(cell(row, 3)),
                })
            })?,
        )
    }

    fn last_settled(&self, job_id: i64) -> Result<i64, Error> {
        let mut statement = self.inner.prepare_cached(SETTLED_QUERY)?;
        Ok(statement.query_row([job_id], |row| Ok(count(cell(row, 0))))?)
    }

    /// The value of `unsettled` for a job whose attempt fails. True unless workers have reported for this and
    /// all earlier attempts since the last settled one that there is no output.
    pub(super) fn is_unsettled(
        &self,
        attempt: Attempt,
        cause: Option<Cause>,
    ) -> Result<bool, Error> {
        if matches!(cause, Some(Cause::Lost | Cause::Worker)) {
            return Ok(true);
        }
        let first = attempt.incarnation() << 32;
        let settled = self.last_settled(attempt.job_id)?.max(first);
        let mut statement = self.inner.prepare_cached(WITHOUT_OUTPUT_QUERY)?;
        let parameters = params![attempt.job_id, settled];
        let found = statement.query_row(parameters, |row| Ok(count(cell(row, 0))))?;
        let before = attempt.number.saturating_sub(settled).saturating_sub(1);
        Ok(found < before)
    }
}
