//! Reads what the rows of the queue contain about output, in parts, for `casparian fsck`. Also has the
//! changes by which fsck repairs rows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::claim::{history, published};
use super::value::{cell, count, number, shown};
use super::{Error, Inspector, Now, Transaction, attempts, format_time, identity, schema};
use crate::job::{ARTIFACTS_TRUNCATED, Attempt, History, Past, PastEnd, Receipt};
use crate::limits;

/// Rows with IDs in a range, in ascending order.
pub(super) const AUDIT_QUERY: &str = "SELECT q.id, q.status, q.attempt, q.worker_id, q.unsettled, \
     q.next_run, q.file_version_id, q.published, q.receipt, \
     (SELECT max(attempt) FROM cf_job_attempt WHERE job_id = q.id), \
     q.published_version_id IS NOT NULL AND q.published_version_id IS NOT q.file_version_id \
     AND (SELECT content_hash FROM cf_file_version WHERE id = q.published_version_id) IS NOT \
     (SELECT content_hash FROM cf_file_version WHERE id = q.file_version_id), q.attempt_key, \
     q.published_version_id IS 0 FROM cf_processing_queue q WHERE q.id BETWEEN ?1 AND ?2 ORDER BY q.id";

/// The last attempt of a job with a receipt for its output.
pub(super) const PUBLISHER_QUERY: &str = "SELECT attempt, attempt_key FROM cf_job_attempt \
     WHERE job_id = ?1 AND status = 'COMPLETED' ORDER BY attempt DESC LIMIT 1";

/// The lowest ID that is at least ?1.
pub(super) const NEXT_QUERY: &str = "SELECT min(id) FROM cf_processing_queue WHERE id >= ?1";

/// RUNNING rows above an ID, each with status and last-seen time of its worker.
pub(super) const HELD_QUERY: &str = "SELECT q.id, q.worker_id, s.status, s.last_seen_ms \
     FROM cf_processing_queue q INDEXED BY ix_casparian_running \
     LEFT JOIN cf_worker_session s ON s.worker_id = q.worker_id \
     WHERE q.status = 'RUNNING' AND q.id > ?1 ORDER BY q.id LIMIT ?2";

/// Writes the receipt of an adopted attempt ?4, unless a later one has a receipt.
const PUBLISH_ADOPTED: &str = "UPDATE cf_processing_queue SET receipt = ?2, published = ?3 \
     WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM cf_job_attempt \
     WHERE job_id = ?1 AND status = 'COMPLETED' AND attempt > ?4)";

/// Forgets what the output of an adopted attempt ?2 was made with, which the database does not have, unless a
/// later attempt has a receipt. The hashes of a row that is not COMPLETED are of its last attempt.
const FORGET_ORIGIN: &str = "UPDATE cf_processing_queue SET published_version_id = 0, \
     artifact_hash = iif(status IS 'COMPLETED', NULL, artifact_hash), \
     sinks_hash = iif(status IS 'COMPLETED', NULL, sinks_hash) \
     WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM cf_job_attempt \
     WHERE job_id = ?1 AND status = 'COMPLETED' AND attempt > ?2)";

/// Adds an adopted attempt of which nothing but its end is known.
const NOTE_UNKNOWN: &str = "INSERT INTO cf_job_attempt (job_id, attempt, ended, status, attempt_key, \
     dispatched) VALUES (?1, ?2, ?3, ?4, ?5, '') ON CONFLICT (job_id, attempt) DO UPDATE \
     SET status = ?4, attempt_key = ?5, cause = NULL, error_message = NULL, \
     dispatched = '', artifact_hash = NULL, sinks_hash = NULL";

/// Adds an attempt that is the row's own. What it was dispatched with is kept where the history has it.
const NOTE_KNOWN: &str = "INSERT INTO cf_job_attempt (job_id, attempt, ended, status, attempt_key, \
     dispatched) VALUES (?1, ?2, ?3, ?4, ?5, '') ON CONFLICT (job_id, attempt) DO UPDATE \
     SET status = ?4, attempt_key = ?5, cause = NULL, error_message = NULL";

/// Queues a job again that failed as lost, or for a cause that is the operator's, such as the refusal of a
/// restored database.
const QUEUE_ADOPTED: &str = "UPDATE cf_processing_queue SET status = 'QUEUED', end_time = NULL, \
     error_message = NULL, failure_cause = NULL, result_summary = NULL, claim_time = NULL, \
     worker_id = NULL, worker_host = NULL, worker_pid = NULL \
     WHERE id = ?1 AND status = 'FAILED' AND failure_cause IN ('lost', 'operator')";

/// An output that a row's receipt names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Where it is.
    pub uri: String,
    /// Number of its rows, where the receipt has it.
    pub rows: Option<u64>,
    /// Size of a file in bytes, where the receipt has it.
    pub size_bytes: Option<u64>,
    /// Hash of the file's content in lower-case hex digits, where the receipt has it.
    pub sha256: Option<String>,
}

/// The values of a row that concern output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audited {
    /// The job.
    pub job_id: i64,
    /// Its status.
    pub status: String,
    /// The number of its last attempt.
    pub last: Attempt,
    /// The worker that has or had it.
    pub worker_id: Option<String>,
    /// An attempt may have left output without a receipt.
    pub is_unsettled: bool,
    /// The sentinel will queue it again (`next_run`).
    pub has_next_run: bool,
    /// The version of its input.
    pub file_version_id: i64,
    /// Its output was made from another content than that of its file version.
    pub is_of_other_content: bool,
    /// It is not known what its output was made with, as after an adoption.
    pub is_of_unknown_content: bool,
    /// The outputs that its receipts name.
    pub outputs: Vec<Output>,
    /// The row has neither `published` nor a receipt. Where an attempt had a receipt, another program has
    /// erased them.
    pub is_list_missing: bool,
    /// The receipt lacks files, because it was too large.
    pub is_truncated: bool,
    /// The last attempt with a receipt for its output.
    pub publisher: Attempt,
    /// Its key, 0 where it is unknown.
    pub publisher_key: i64,
    /// Its attempts.
    pub history: History,
}

impl Audited {
    /// True when the job runs or will run, so that another attempt replaces what an earlier one has left.
    pub fn runs_again(&self) -> bool {
        matches!(self.status.as_str(), "QUEUED" | "RUNNING")
            || (self.status == "PENDING" && self.has_next_run)
    }
}

/// A RUNNING row and its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// The job.
    pub job_id: i64,
    /// The worker's ID. Empty where the row has none.
    pub worker_id: String,
    /// The worker is connected to the sentinel of the database.
    pub is_connected: bool,
    /// When the worker was last seen, milliseconds since the epoch.
    pub last_seen_ms: Option<i64>,
}

impl Transaction<'_> {
    /// The attempt that ended last among the COMPLETED attempts of COMPLETED jobs for which `is_wanted`
    /// returns true.
    pub fn latest_completed(
        &self,
        is_wanted: &mut dyn FnMut(Attempt) -> bool,
    ) -> Result<Option<Attempt>, Error> {
        let query = "SELECT a.job_id, a.attempt FROM cf_job_attempt a \
             JOIN cf_processing_queue q ON q.id = a.job_id AND q.status = 'COMPLETED' \
             WHERE a.status = 'COMPLETED' ORDER BY a.ended DESC, a.attempt DESC";
        let mut statement = self.inner.prepare_cached(query)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let attempt = Attempt::new(row.get(0)?, count(cell(row, 1)));
            if is_wanted(attempt) {
                return Ok(Some(attempt));
            }
        }
        Ok(None)
    }

    /// True when one attempt ended after another, by [`Transaction::latest_completed`]'s order.
    pub fn ended_after(&self, one: Attempt, other: Attempt) -> Result<bool, Error> {
        let query = "SELECT (SELECT (ended, attempt) > (?3, ?4) FROM cf_job_attempt \
             WHERE job_id = ?1 AND attempt = ?2)";
        let ended = "SELECT ended FROM cf_job_attempt WHERE job_id = ?1 AND attempt = ?2";
        let mut statement = self.inner.prepare_cached(ended)?;
        let ended: Option<rusqlite::types::Value> = statement
            .query_row([other.job_id, other.number], |row| row.get(0))
            .optional()?;
        let mut statement = self.inner.prepare_cached(query)?;
        let parameters = params![one.job_id, one.number, ended, other.number];
        let is_after: Option<bool> = statement.query_row(parameters, |row| row.get(0))?;
        Ok(is_after.unwrap_or(false))
    }
}

impl Inspector {
    /// The database's UUID. None where it has no valid one.
    pub fn database_id(&self) -> Result<Option<Arc<str>>, Error> {
        identity::database_id(&self.connection)
    }

    /// Whether a sentinel works on the database, by the last call of [`Inspector::find_sentinel`].
    pub fn has_sentinel(&self) -> bool {
        self.has_sentinel
    }

    /// The job with the lowest ID that is at least `from`.
    pub fn next_job(&self, from: i64) -> Result<Option<i64>, Error> {
        let mut statement = self.connection.prepare_cached(NEXT_QUERY)?;
        Ok(statement.query_row([from], |row| row.get(0))?)
    }

    /// Rows with IDs from `first` to `last`, in ascending order.
    pub fn audited(&self, first: i64, last: i64) -> Result<Vec<Audited>, Error> {
        audited(&self.connection, first, last)
    }

    /// The job's last attempt, and the URIs that its last receipt names, also where a new identity of the
    /// database has disclaimed them ([`Store::new_identity`](super::Store::new_identity)). None when there is
    /// no such row.
    pub fn received(&self, job_id: i64) -> Result<Option<(Attempt, Vec<String>)>, Error> {
        let query = "SELECT attempt, receipt FROM cf_processing_queue WHERE id = ?1";
        let mut statement = self.connection.prepare_cached(query)?;
        let found = statement.query_row([job_id], |row| {
            let attempt = Attempt::new(job_id, count(cell(row, 0)));
            Ok((attempt, published(cell(row, 1))))
        });
        Ok(found.optional()?)
    }

    /// RUNNING rows with IDs above `after`, in ascending order, at most `limit`.
    pub fn claimants(&self, after: i64, limit: usize) -> Result<Vec<Claimant>, Error> {
        let mut statement = schema::prepare_for_reading(&self.connection, HELD_QUERY)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map([after, limit], |row| {
            let is_online = shown(cell(row, 2)).as_deref() == Some("ONLINE");
            Ok(Claimant {
                job_id: row.get(0)?,
                worker_id: shown(cell(row, 1)).unwrap_or_default(),
                is_connected: self.has_sentinel && is_online,
                last_seen_ms: number(cell(row, 3)),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn audited(connection: &Connection, first: i64, last: i64) -> Result<Vec<Audited>, Error> {
    let mut statement = connection.prepare_cached(AUDIT_QUERY)?;
    let rows = statement.query_map([first, last], read)?;
    let mut found: Vec<Audited> = rows.collect::<Result<_, _>>()?;
    let mut publisher = connection.prepare_cached(PUBLISHER_QUERY)?;
    for row in &mut found {
        // The row's own attempt and key, where another program has deleted the history.
        let own = Past {
            number: row.publisher.number,
            key: row.publisher_key,
            end: match row.outputs.is_empty() {
                true => PastEnd::Unknown,
                false => PastEnd::Completed,
            },
        };
        row.publisher_key = 0;
        let mut known = publisher.query([row.job_id])?;
        let mut next = row.last;
        next.number = next.number.saturating_add(1);
        row.history = history(connection, 0, next)?;
        let past = &mut row.history.past;
        let at = past.partition_point(|past| past.number < own.number);
        let is_known = past.get(at).is_some_and(|past| past.number == own.number);
        if own.key != 0 && !is_known {
            past.insert(at, own);
        }
        if let Some(known) = known.next()? {
            row.publisher.number = count(cell(known, 0));
            row.publisher_key = number(cell(known, 1)).unwrap_or(0);
        } else if !is_known && own.end == PastEnd::Completed {
            row.publisher_key = own.key;
        }
    }
    Ok(found)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Audited> {
    let job_id = row.get(0)?;
    let text = |index| shown(cell(row, index));
    let attempt = count(cell(row, 2));
    let last = attempt.max(count(cell(row, 9)));
    let mut described = described(cell(row, 8));
    let receipt = cell(row, 8);
    let named = match cell(row, 7) {
        ValueRef::Null => published(receipt),
        named => published(named),
    };
    let mut seen = HashSet::new();
    let named = named.into_iter().filter(|uri| seen.insert(uri.clone()));
    let outputs = named.map(|uri| {
        let known = described.outputs.remove(&uri);
        known.unwrap_or(Output {
            uri,
            ..Output::default()
        })
    });
    Ok(Audited {
        job_id,
        status: text(1).unwrap_or_default(),
        last: Attempt::new(job_id, last),
        worker_id: text(3),
        is_unsettled: number(cell(row, 4)) == Some(1),
        has_next_run: cell(row, 5) != ValueRef::Null,
        file_version_id: number(cell(row, 6)).unwrap_or(0),
        is_of_other_content: number(cell(row, 10)) == Some(1),
        is_of_unknown_content: number(cell(row, 12)) == Some(1),
        outputs: outputs.collect(),
        is_list_missing: cell(row, 7) == ValueRef::Null && cell(row, 8) == ValueRef::Null,
        is_truncated: described.is_truncated,
        publisher: Attempt::new(job_id, attempt),
        publisher_key: number(cell(row, 11)).unwrap_or(0),
        history: History::default(),
    })
}

/// The artifacts of a receipt.
#[derive(Default)]
struct Described {
    /// By URI. Where several topics are written into one table, their rows are added.
    outputs: HashMap<String, Output>,
    is_truncated: bool,
}

fn described(receipt: ValueRef<'_>) -> Described {
    use serde_json::Value;
    let mut described = Described::default();
    let ValueRef::Text(bytes) = receipt else {
        return described;
    };
    if bytes.len() > limits::PUBLISHED_SIZE_MAX {
        return described;
    }
    let Ok(receipt) = serde_json::from_slice::<Value>(bytes) else {
        return described;
    };
    let metrics = receipt.get("metrics");
    described.is_truncated =
        metrics.is_some_and(|metrics| metrics.get(ARTIFACTS_TRUNCATED).is_some());
    let artifacts = receipt.get("artifacts").and_then(Value::as_array);
    for artifact in artifacts.into_iter().flatten() {
        let text = |name: &str| artifact.get(name).and_then(Value::as_str);
        let Some(uri) = text("uri") else { continue };
        let counted = |name: &str| text(name).and_then(|text| text.parse::<u64>().ok());
        let output = described.outputs.entry(uri.to_owned()).or_insert(Output {
            uri: uri.to_owned(),
            rows: Some(0),
            size_bytes: counted("size_bytes"),
            sha256: text("sha256").map(str::to_ascii_lowercase),
        });
        output.rows = match (output.rows, counted("rows")) {
            (Some(before), Some(rows)) => Some(before.saturating_add(rows)),
            _ => None,
        };
    }
    described
}

impl Transaction<'_> {
    /// Marks a job for a settlement, because its output may differ from its row. False when the job runs,
    /// will run again, or does not exist.
    pub fn unsettle(&mut self, job_id: i64) -> Result<bool, Error> {
        let unsettle = "UPDATE cf_processing_queue SET unsettled = 1 WHERE id = ?1 \
             AND coalesce(status, '') NOT IN ('RUNNING', 'QUEUED') \
             AND (status IS NOT 'PENDING' OR next_run IS NULL)";
        Ok(self.change_job(job_id, unsettle, params![job_id])? == Some(1))
    }

    /// Adds an attempt that has published and that the database does not contain: as COMPLETED with a receipt
    /// for its output, or else as INTERRUPTED, which has left nothing complete. `key` = the attempt's key.
    /// `is_as_received` = the output is the one that the row's receipt names.
    ///
    /// Nothing removes output with a receipt before another attempt has published. What the output was made
    /// with is not known, so it completes no job, and a COMPLETED job counts as stale, unless
    /// `is_as_received` is set. A job that was refused because of this output, or was lost, is QUEUED again;
    /// others keep their status. Returns whether the job was QUEUED again.
    pub fn adopt(
        &mut self,
        attempt: Attempt,
        key: i64,
        receipt: Option<&Receipt>,
        is_as_received: bool,
        now: &Now,
    ) -> Result<bool, Error> {
        let status = match receipt {
            Some(_) => "COMPLETED",
            None => "INTERRUPTED",
        };
        self.note_adopted(NOTE_UNKNOWN, attempt, key, status, now)?;
        let job_id = attempt.job_id;
        let Some(receipt) = receipt else {
            self.unsettle(job_id)?;
            return Ok(false);
        };
        self.publish_adopted(attempt, receipt)?;
        if !is_as_received {
            self.change_job(job_id, FORGET_ORIGIN, [job_id, attempt.number])?;
        }
        Ok(self.change_job(job_id, QUEUE_ADOPTED, [job_id])? == Some(1))
    }

    /// Gives a row the receipt for the present files of its own last attempt with a receipt, because they
    /// were moved or copied. They are still made with what the row has.
    pub fn adopt_own(
        &mut self,
        attempt: Attempt,
        key: i64,
        receipt: &Receipt,
        now: &Now,
    ) -> Result<(), Error> {
        self.note_adopted(NOTE_KNOWN, attempt, key, "COMPLETED", now)?;
        self.publish_adopted(attempt, receipt)
    }

    fn note_adopted(
        &mut self,
        note: &'static str,
        attempt: Attempt,
        key: i64,
        status: &str,
        now: &Now,
    ) -> Result<(), Error> {
        let ended = format_time(now.unix_ms);
        let parameters = params![attempt.job_id, attempt.number, ended, status, key];
        self.change_job(attempt.job_id, note, parameters)?;
        self.raise_attempt(attempt, Some(key))
    }

    fn publish_adopted(&mut self, attempt: Attempt, receipt: &Receipt) -> Result<(), Error> {
        let json = serde_json::json!({
            "status": receipt.status,
            "metrics": receipt.metrics,
            "artifacts": receipt.artifacts,
        });
        let parameters = params![
            attempt.job_id,
            json.to_string(),
            attempts::uris(receipt),
            attempt.number
        ];
        self.change_job(attempt.job_id, PUBLISH_ADOPTED, parameters)?;
        Ok(())
    }

    /// Sets the URIs of output that a job published before it failed.
    pub fn set_published(&mut self, job_id: i64, uris: Vec<String>) -> Result<(), Error> {
        let name = "UPDATE cf_processing_queue SET published = ?2 WHERE id = ?1";
        let uris = serde_json::Value::from(uris).to_string();
        self.change_job(job_id, name, params![job_id, uris])?;
        Ok(())
    }

    /// Sets the last attempt of a job and its key, so that its next attempt gets a higher number.
    pub fn raise_attempt(&mut self, attempt: Attempt, key: Option<i64>) -> Result<(), Error> {
        let raise_attempt = "UPDATE cf_processing_queue SET attempt = ?2, attempt_key = ?3 \
             WHERE id = ?1 AND (typeof(attempt) IS NOT 'integer' OR attempt <= ?2)";
        let parameters = params![attempt.job_id, attempt.number, key];
        self.change_job(attempt.job_id, raise_attempt, parameters)?;
        Ok(())
    }
}
