//! Ends attempts: by the report of the holder ([`Transaction::complete`]), or when the holder is lost
//! ([`Transaction::release`]). Each end is a compare-and-set on job, attempt and RUNNING, and writes a row to
//! `cf_job_attempt`. The policy in `retry.rs` decides what follows a failure.

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Row, params};

use super::claim::published;
use super::retry::{
    Detail, Failures, Next, Retries, decide, decide_stopped, decide_version_change, pause_ms,
};
use super::value::{cell, count, number, shown};
use super::{Error, Now, Transaction, format_time};
use crate::job::{Attempt, Cause, JobStatus, Loss, Receipt, text};
use crate::limits;

/// The reason why a receipt does not count: the row has another file version or plugin now.
pub(crate) const ROW_CHANGED: &str = "another program gave the row another file version or plugin";

/// The end of an attempt, as its holder reports it.
#[derive(Clone, Copy, Debug)]
pub struct Completion<'a> {
    /// The attempt. Where a worker of the reference system did not send the number, `worker_id` identifies
    /// it.
    pub attempt: Attempt,
    /// The holder.
    pub worker_id: &'a str,
    /// Its receipt.
    pub receipt: &'a Receipt,
    /// Retries of a job, unless `cf_plugin_config` has a number for its plugin.
    pub retries_max: u32,
}

/// What became of a job when its attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is COMPLETED.
    Completed,
    /// It is FAILED.
    Failed,
    /// It is QUEUED again.
    Queued,
    /// It is PENDING until a retry.
    Waits {
        /// When [`Transaction::wake_due`] queues it ([`Now::boot_ms`]).
        until_boot_ms: u64,
    },
    /// The attempt was not current. Nothing was changed.
    Stale,
    /// Code in the schema refused the end. Nothing was changed.
    Refused,
}

/// A RUNNING job of a worker. ?3 = its attempt, 0 where a worker of the reference system did not send it. An
/// attempt in the row that is no integer or is negative counts as 0.
pub(super) const HELD_QUERY: &str = "SELECT attempt, retry_count, infra_count, plugin_name, \
     worker_id, worker_host, worker_pid, claim_time, \
     CASE WHEN published IS NULL THEN receipt END, shared_count, attempt_key, \
     dispatched IS NOT NULL AND dispatched IS NOT file_version_id || ' ' || plugin_name, \
     dispatched, artifact_hash, sinks_hash, locked_count, changed_count, killed_count \
     FROM cf_processing_queue \
     WHERE id = ?1 AND status = 'RUNNING' AND (?2 IS NULL OR worker_id = ?2) \
     AND (?3 <= 0 AND ?2 IS NOT NULL \
     OR ?3 = iif(typeof(attempt) = 'integer', max(attempt, 0), 0))";

/// The end itself. ?18 = a worker that keeps records has completed the job. NULL in ?7 keeps `published`.
/// NULL in ?17 keeps the attempt.
pub(super) const END: &str = "UPDATE cf_processing_queue SET status = ?2, \
     end_time = iif(?2 IN ('COMPLETED', 'FAILED'), ?3, NULL), error_message = ?4, \
     result_summary = ?5, receipt = coalesce(?6, receipt), published = coalesce(?7, published), \
     log_tail = coalesce(?8, log_tail), failure_cause = ?9, retry_count = ?10, infra_count = ?11, \
     shared_count = ?15, locked_count = ?19, changed_count = ?20, killed_count = ?21, unsettled = ?16, \
     next_run = ?12, next_run_boot_ms = ?13, next_run_boot_id = ?14, lease_until_ms = NULL, \
     worker_id = iif(?2 IN ('COMPLETED', 'FAILED'), worker_id, NULL), \
     worker_host = iif(?2 IN ('COMPLETED', 'FAILED'), worker_host, NULL), \
     worker_pid = iif(?2 IN ('COMPLETED', 'FAILED'), worker_pid, NULL), \
     claim_time = iif(?2 IN ('COMPLETED', 'FAILED'), claim_time, NULL), \
     published_version_id = iif(?2 = 'COMPLETED', file_version_id, published_version_id), \
     attempt = coalesce(?17, attempt), attempt_key = iif(?17 IS NULL, attempt_key, NULL), \
     old_since_ms = iif(?18, NULL, old_since_ms), \
     dispatched = NULL \
     WHERE id = ?1 AND status = 'RUNNING'";

/// Writes the row of an ended attempt. An existing row stays unchanged when that attempt has already ended
/// (another program has set its number again). Of an attempt with the status TAKEN the key stays, and what it
/// was dispatched with.
pub(super) const RECORD: &str = "INSERT INTO cf_job_attempt (job_id, attempt, \
     worker_id, hostname, pid, started, ended, status, cause, exit_code, signal, rss_max_bytes, \
     error_message, log_tail, attempt_key, sandbox, dispatched, artifact_hash, sinks_hash) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19) \
     ON CONFLICT (job_id, attempt) DO UPDATE SET worker_id = ?3, hostname = ?4, pid = ?5, \
     started = ?6, ended = ?7, status = ?8, cause = ?9, exit_code = ?10, signal = ?11, \
     rss_max_bytes = ?12, error_message = ?13, log_tail = ?14, \
     attempt_key = coalesce(attempt_key, ?15), sandbox = ?16, \
     artifact_hash = iif(dispatched IS NULL, ?18, artifact_hash), \
     sinks_hash = iif(dispatched IS NULL, ?19, sinks_hash), \
     dispatched = coalesce(dispatched, ?17) \
     WHERE status = 'TAKEN' OR attempt & 4294967295 = 0";

/// How many consecutive attempts before ?2, and above ?3, were given back by workers that were stopped
/// while the job ran. Attempts that were given back for another reason are ignored.
pub(super) const STOPPED_QUERY: &str = "SELECT count(*) FROM cf_job_attempt \
     WHERE job_id = ?1 AND attempt < ?2 AND status IN ('RETURNED', 'INTERRUPTED') \
     AND cause = 'lost' AND attempt > coalesce((SELECT max(attempt) FROM cf_job_attempt \
     WHERE job_id = ?1 AND attempt < ?2 AND coalesce(status, '') \
     NOT IN ('RETURNED', 'INTERRUPTED')), ?3)";

/// Values of a RUNNING row before its attempt ends.
struct Held {
    attempt: i64,
    key: Option<i64>,
    failures: Failures,
    plugin: String,
    worker_id: Option<String>,
    hostname: Option<String>,
    pid: Option<i64>,
    started: Option<String>,
    /// The value for `published` where the row has none yet: the URIs of its receipt.
    published: Option<String>,
    /// Another program has changed the row's file version or plugin since it was claimed.
    is_other: bool,
    /// What it was dispatched with: file version and plugin, hash of the code, hash of the sinks.
    dispatched: [Option<String>; 3],
}

/// How an attempt ended.
struct End<'a> {
    success: bool,
    detail: Detail,
    cause: Option<Cause>,
    reason: Option<&'a str>,
    receipt: Option<&'a Receipt>,
    retries_max: u32,
}

impl Transaction<'_> {
    /// Ends an attempt by its holder's receipt. A job that failed with a cause that is not final is tried
    /// again. A job that was returned is QUEUED again, uncounted.
    pub fn complete(&mut self, completion: &Completion<'_>, now: &Now) -> Result<Ended, Error> {
        let Completion {
            attempt,
            worker_id,
            receipt,
            retries_max,
        } = *completion;
        let success = receipt.status == JobStatus::Success;
        let returned = !success && receipt.returned;
        let stopped = returned && receipt.was_running;
        let end = End {
            success,
            detail: match receipt.input_changed {
                _ if stopped => Detail::Stopped,
                _ if returned => Detail::NotStarted,
                true => Detail::InputChanged,
                false if receipt.sink_locked => Detail::SinkLocked,
                false if receipt.beside_others => Detail::Shared,
                false if receipt.cause == Some(Cause::Lost) => Detail::Killed,
                false => Detail::None,
            },
            cause: match stopped {
                true => Some(Cause::Lost),
                false => receipt.cause.filter(|_| !success && !returned),
            },
            reason: match &receipt.error_message {
                _ if success => None,
                Some(message) if !message.trim().is_empty() => Some(message.as_str()),
                _ if receipt.returned => Some("the worker stopped"),
                _ => Some("the worker gave no reason"),
            },
            receipt: Some(receipt),
            retries_max,
        };
        self.end(attempt, Some(worker_id), &end, now)
    }

    /// Ends an attempt without a report of its holder, by the policy for the cause (mostly [`Cause::Lost`]).
    /// The attempt's number must be known. Number 0 is the attempt of a row of the reference system.
    pub fn release(
        &mut self,
        attempt: Attempt,
        cause: Cause,
        loss: Loss,
        reason: &str,
        retries_max: u32,
        now: &Now,
    ) -> Result<Ended, Error> {
        let end = End {
            success: false,
            detail: match loss {
                Loss::Alone => Detail::None,
                Loss::Shared => Detail::Shared,
                Loss::Displaced | Loss::Waiting => Detail::Displaced,
            },
            cause: Some(cause),
            reason: Some(reason),
            receipt: None,
            retries_max,
        };
        self.end(attempt, None, &end, now)
    }

    /// Ends an attempt that its worker never started. Its job is QUEUED again, uncounted.
    pub fn give_back(&mut self, attempt: Attempt, reason: &str, now: &Now) -> Result<Ended, Error> {
        let end = End {
            success: false,
            detail: Detail::NotStarted,
            cause: None,
            reason: Some(reason),
            receipt: None,
            retries_max: 0,
        };
        self.end(attempt, None, &end, now)
    }

    /// Queues RUNNING jobs of all workers again, uncounted, at most `limit`. Only for a program that is alone
    /// on the database. Their attempts may have left output. Returns how many jobs were queued. Call it again
    /// until it returns fewer than `limit`.
    pub fn requeue_running(
        &mut self,
        reason: &str,
        limit: usize,
        now: &Now,
    ) -> Result<usize, Error> {
        let mut released = 0;
        for running in super::queue::running(&self.inner, i64::MIN, limit)? {
            let end = End {
                success: false,
                detail: Detail::Interrupted,
                cause: None,
                reason: Some(reason),
                receipt: None,
                retries_max: 0,
            };
            let ended = self.end(running.attempt, None, &end, now)?;
            released += usize::from(!matches!(ended, Ended::Stale | Ended::Refused));
        }
        Ok(released)
    }

    fn end(
        &mut self,
        attempt: Attempt,
        worker_id: Option<&str>,
        end: &End<'_>,
        now: &Now,
    ) -> Result<Ended, Error> {
        let number = attempt.number.max(0);
        let held = self
            .inner
            .prepare_cached(HELD_QUERY)?
            .query_row(params![attempt.job_id, worker_id, number], |row| {
                Ok(held(row))
            })
            .optional()?;
        let Some(held) = held else {
            return Ok(Ended::Stale);
        };
        // The receipt is for another file version or plugin than the row has now.
        let other = End {
            success: false,
            detail: Detail::Displaced,
            cause: Some(Cause::Lost),
            reason: Some(ROW_CHANGED),
            receipt: None,
            retries_max: end.retries_max,
        };
        let is_other = held.is_other && end.receipt.is_some() && !end.detail.is_returned();
        let end = if is_other { &other } else { end };
        let mut failures = held.failures;
        let full = Attempt::new(attempt.job_id, held.attempt);
        let (is_returned, is_stopped) = (end.detail.is_returned(), end.detail.was_stopped());
        let stopped = match is_stopped {
            true => self.stopped_before(full)?,
            false => 0,
        };
        let wait = match end.receipt {
            Some(receipt) => self.waits_for(full, receipt)?,
            None => None,
        };
        let found = end.receipt.and_then(|receipt| receipt.input.as_ref());
        let registered = match (end.detail, found) {
            (Detail::InputChanged, Some(found)) => self.register_found(full, found, now)?,
            _ => Ok(None),
        };
        let (moved, refused) = match registered {
            Ok(moved) => (moved, None),
            Err(refused) => (None, Some(refused)),
        };
        let next = if let Some(moved) = &moved {
            decide_version_change(moved.before, full)
        } else if let Some(wait) = &wait {
            Next::After(pause_ms(wait.before.min(limits::WAIT_DOUBLINGS_MAX), full))
        } else if end.success || (is_returned && !is_stopped) {
            Next::Queued
        } else {
            let retries = Retries::new(end.retries_max, self.own_retries(&held.plugin)?);
            match is_stopped {
                true => decide_stopped(stopped, &mut failures, retries, full),
                false => decide(end.cause, &mut failures, retries, full, end.detail),
            }
        };
        let (status, ended, pause_ms) = match next {
            _ if end.success => ("COMPLETED", Ended::Completed, None),
            Next::Failed => ("FAILED", Ended::Failed, None),
            Next::Queued => ("QUEUED", Ended::Queued, None),
            Next::After(pause_ms) => {
                let until_boot_ms = now.boot_ms.saturating_add(pause_ms);
                ("PENDING", Ended::Waits { until_boot_ms }, Some(pause_ms))
            }
        };
        let retried = failures.all();
        let given_up = ended == Ended::Failed && failures != held.failures && retried > 1;
        let barred_by = end.receipt.and_then(|receipt| receipt.barred_by(full));
        let foreign = barred_by.map(|by| {
            format!(
                "attempt {} of another copy of this database has barred {full}; the next one \
                 counts from there",
                Attempt::new(attempt.job_id, by).ordinal()
            )
        });
        let reason = match foreign.as_deref().or(end.reason) {
            Some(reason) if is_stopped && failures != held.failures => {
                let times = stopped.saturating_add(1);
                Some(format!("{reason} while it ran, {times} times in a row"))
            }
            Some(reason) if given_up => Some(format!("{reason}; it was tried {retried} times")),
            reason => reason.map(str::to_owned),
        };
        let reason = match (&moved, reason) {
            (None, Some(reason)) => Some(match &refused {
                Some(why) => {
                    let more = format!("what it is now cannot be registered: {why}");
                    text::with_first_line(&reason, &more)
                }
                None => reason,
            }),
            (Some(moved), Some(reason)) => {
                let more = match next {
                    Next::Failed => text::CHANGED_EACH_TIME.to_owned(),
                    _ => format!("the job runs over it as file version {}", moved.to),
                };
                Some(text::with_first_line(&reason, &more))
            }
            (_, reason) => reason,
        };
        let reason = match &wait {
            Some(wait) => Some(wait.reason(reason.as_deref().unwrap_or_default())),
            None => reason,
        };
        let receipt = end.receipt.filter(|_| !is_returned);
        let json = receipt.map(|receipt| {
            let mut metrics = receipt.metrics.clone();
            for (name, value) in wait.iter().flat_map(|wait| &wait.counts) {
                metrics.insert((*name).to_owned(), *value);
            }
            serde_json::json!({
                "status": receipt.status,
                "metrics": metrics,
                "artifacts": receipt.artifacts,
            })
            .to_string()
        });
        let now_published = match receipt {
            Some(receipt) if end.success => Some(uris(receipt)),
            _ => held.published.clone(),
        };
        let summary = match ended {
            Ended::Completed => Some("Success"),
            Ended::Failed => Some("Failed"),
            _ => None,
        };
        let next_run = pause_ms.map(|pause| {
            let pause = i64::try_from(pause).unwrap_or(i64::MAX);
            format_time(now.unix_ms.saturating_add(pause))
        });
        let boot_ms = match ended {
            Ended::Waits { until_boot_ms } => i64::try_from(until_boot_ms).ok(),
            _ => None,
        };
        let boot_id = boot_ms.map(|_| &*now.boot_id);
        let unsettled = match ended {
            Ended::Completed => false,
            _ if end.detail.may_have_output() => true,
            // A worker that gives a job back has left no output of it.
            _ => self.is_unsettled(full, end.cause.filter(|_| !is_returned))?,
        };
        let parameters = params![
            attempt.job_id,
            status,
            format_time(now.unix_ms),
            reason,
            summary,
            json,
            now_published,
            receipt.and_then(|receipt| receipt.log_tail.as_deref()),
            end.cause.filter(|_| wait.is_none()).map(Cause::as_str),
            failures.lost,
            failures.infra,
            next_run,
            boot_ms,
            boot_id,
            failures.shared,
            unsettled,
            barred_by,
            end.success && receipt.is_some_and(|receipt| receipt.attempt.is_some()),
            failures.locked,
            failures.changed,
            failures.killed,
        ];
        if self.change_job(attempt.job_id, END, parameters)? != Some(1) {
            return Ok(Ended::Refused);
        }
        if let Some(moved) = moved {
            self.move_to(full, moved)?;
        }
        let status = match ended {
            Ended::Completed => "COMPLETED",
            Ended::Queued | Ended::Waits { .. } if end.detail.may_have_output() => "INTERRUPTED",
            Ended::Queued | Ended::Waits { .. } if is_returned || moved.is_some() => "RETURNED",
            _ => "FAILED",
        };
        self.record(attempt.job_id, &held, end, status, reason.as_deref(), now)?;
        Ok(ended)
    }

    /// True when code in the schema has undone the end of a job: its row is QUEUED at once.
    pub fn is_end_undone(&self, job_id: i64, ended: Ended) -> Result<bool, Error> {
        if !matches!(ended, Ended::Completed | Ended::Failed) {
            return Ok(false);
        }
        let query = "SELECT status = 'QUEUED' FROM cf_processing_queue WHERE id = ?1";
        let mut statement = self.inner.prepare_cached(query)?;
        let found = statement.query_row([job_id], |row| Ok(number(cell(row, 0)) == Some(1)));
        Ok(found.optional()?.unwrap_or(false))
    }

    fn stopped_before(&self, attempt: Attempt) -> Result<i64, Error> {
        let mut statement = self.inner.prepare_cached(STOPPED_QUERY)?;
        let first = attempt.incarnation() << 32;
        let parameters = params![attempt.job_id, attempt.number, first];
        Ok(statement.query_row(parameters, |row| Ok(count(cell(row, 0))))?)
    }

    fn record(
        &mut self,
        job_id: i64,
        held: &Held,
        end: &End<'_>,
        status: &str,
        reason: Option<&str>,
        now: &Now,
    ) -> Result<(), Error> {
        let metric = |name: &str| {
            let metrics = end.receipt.map(|receipt| &receipt.metrics);
            metrics.and_then(|metrics| metrics.get(name).copied())
        };
        let log_tail = end
            .receipt
            .and_then(|receipt| receipt.log_tail.as_deref())
            .map(|text| last_lines(text, limits::ATTEMPT_LOG_LINES));
        let [dispatched, artifact_hash, sinks_hash] = &held.dispatched;
        let parameters = params![
            job_id,
            held.attempt,
            held.worker_id,
            held.hostname,
            held.pid,
            held.started,
            format_time(now.unix_ms),
            status,
            end.cause.map(Cause::as_str),
            metric("exit_code"),
            metric("signal"),
            metric("rss_max_bytes").or_else(|| metric("guest_rss_max_bytes")),
            reason,
            log_tail,
            held.key,
            end.receipt.and_then(|receipt| receipt.sandbox.as_deref()),
            dispatched,
            artifact_hash,
            sinks_hash,
        ];
        self.change_job(job_id, RECORD, parameters)?;
        let oldest = held.attempt.saturating_sub(limits::ATTEMPTS_KEPT);
        if Attempt::new(job_id, held.attempt).ordinal() > limits::ATTEMPTS_KEPT {
            let forget = "DELETE FROM cf_job_attempt WHERE job_id = ?1 AND attempt <= ?2 \
                 AND attempt <> coalesce((SELECT max(attempt) FROM cf_job_attempt \
                 WHERE job_id = ?1 AND status = 'COMPLETED'), 0)";
            self.change_job(job_id, forget, params![job_id, oldest])?;
        }
        Ok(())
    }

    /// `cf_plugin_config.retries`, where it is a valid number.
    fn own_retries(&self, plugin: &str) -> Result<Option<u32>, Error> {
        let mut statement = self
            .inner
            .prepare_cached("SELECT retries FROM cf_plugin_config WHERE plugin_name = ?1")?;
        let retries = statement
            .query_row([plugin], |row| Ok(number(cell(row, 0))))
            .optional()?
            .flatten();
        Ok(retries.and_then(|retries| u32::try_from(retries).ok()))
    }
}

fn held(row: &Row<'_>) -> Held {
    let receipt = cell(row, 8);
    Held {
        attempt: count(cell(row, 0)),
        key: number(cell(row, 10)),
        failures: Failures {
            lost: count(cell(row, 1)),
            infra: count(cell(row, 2)),
            shared: count(cell(row, 9)),
            locked: count(cell(row, 15)),
            changed: count(cell(row, 16)),
            killed: count(cell(row, 17)),
        },
        plugin: shown(cell(row, 3)).unwrap_or_default(),
        worker_id: shown(cell(row, 4)),
        hostname: shown(cell(row, 5)),
        pid: number(cell(row, 6)),
        started: shown(cell(row, 7)),
        published: (receipt != ValueRef::Null)
            .then(|| serde_json::Value::from(published(receipt)).to_string()),
        is_other: cell(row, 11) == ValueRef::Integer(1),
        dispatched: [12, 13, 14].map(|index| shown(cell(row, index))),
    }
}

/// The URIs of a receipt's artifacts, as a JSON array.
pub(super) fn uris(receipt: &Receipt) -> String {
    let uris: Vec<&str> = receipt
        .artifacts
        .iter()
        .filter_map(|artifact| artifact.get("uri").map(String::as_str))
        .collect();
    serde_json::Value::from(uris).to_string()
}

/// The last `count` lines of a text.
fn last_lines(text: &str, count: usize) -> &str {
    let end = text.strip_suffix('\n').unwrap_or(text);
    match end.rmatch_indices('\n').nth(count.saturating_sub(1)) {
        Some((index, _)) => text.get(index + 1..).unwrap_or(text),
        None => text,
    }
}

#[cfg(test)]
mod tests;
