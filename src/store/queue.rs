//! The job queue without claims and ends: QUEUED rows, RUNNING rows, adding rows.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};

use super::value::{abridged, cell, count, number, shown};
use super::{Code, Error, Store, Transaction, code, format_time};
use crate::job::{Attempt, User};
use crate::limits;

/// A RUNNING row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The job and its attempt. The number is 0 where the row has no valid one.
    pub attempt: Attempt,
    /// The worker that holds it. Empty for a worker of the reference system.
    pub worker_id: String,
    /// The authenticated user of that worker when it last sent IDENTIFY.
    pub user: Option<User>,
    /// It was claimed as the only job of its worker.
    pub runs_alone: bool,
}

// One for each RUNNING row at the start of a sentinel.
const _: () = assert!(size_of::<Running>() <= 96);

/// Names of plugins with QUEUED rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuedPlugins {
    /// The names.
    pub names: Vec<String>,
    /// There are no names behind these. The next call begins with the first name.
    pub is_end: bool,
}

/// A name that no plugin can have, with its bytes in the index.
#[derive(Debug)]
enum Unusable {
    Text(Vec<u8>),
    Other,
}

/// The next plugin name in the claim's index, also as bytes in the database's encoding. A text that is not
/// valid Unicode would change when it is converted to UTF-8 and back.
pub(super) const NEXT_PLUGIN_QUERY: &str = "SELECT plugin_name, CAST(plugin_name AS BLOB) \
     FROM cf_processing_queue INDEXED BY ix_casparian_claim \
     WHERE status = 'QUEUED' AND plugin_name > CAST(?1 AS TEXT) ORDER BY plugin_name LIMIT 1";

/// RUNNING rows with the user of their worker.
pub(super) const RUNNING_QUERY: &str = "SELECT q.id, q.attempt, q.worker_id, w.user_id, q.shared_count \
     FROM cf_processing_queue AS q INDEXED BY ix_casparian_running \
     LEFT JOIN cf_worker_session AS w ON w.worker_id = q.worker_id \
     WHERE q.status = 'RUNNING' AND q.id > ?1 ORDER BY q.id LIMIT ?2";

impl Store {
    /// Names of plugins with QUEUED rows, at most `limit`. Each costs one search in the claim's index.
    /// Continues behind the last name of the previous call, and begins again after the last of all names.
    /// Rows with a name that is no UTF-8 text belong to no plugin. They end as FAILED, in a transaction of
    /// their own, at most [`limits::UNUSABLE_ROWS_PER_TRANSACTION`] at a time.
    pub fn queued_plugins(&mut self, limit: usize, now_ms: i64) -> Result<QueuedPlugins, Error> {
        let mut found = QueuedPlugins::default();
        let mut unusable: Vec<Unusable> = Vec::new();
        // The column cannot have NULL or numbers, and no plugin has an empty name.
        let mut last = self.names_after.clone();
        self.names_before.clone_from(&last);
        {
            let mut statement = self.connection.prepare_cached(NEXT_PLUGIN_QUERY)?;
            while !found.is_end && found.names.len() + unusable.len() < limit {
                let next = statement
                    .query_row([&last], |row| {
                        let bytes = cell(row, 1).as_blob().unwrap_or_default().to_vec();
                        Ok(match cell(row, 0) {
                            ValueRef::Text(name) => Some((String::from_utf8(name.to_vec()), bytes)),
                            _ => None,
                        })
                    })
                    .optional()?;
                match next {
                    None => found.is_end = true,
                    // SQLite sorts BLOBs last.
                    Some(None) => {
                        unusable.push(Unusable::Other);
                        found.is_end = true;
                    }
                    // A damaged text, which does not compare as equal to itself, would be found again and
                    // again.
                    Some(Some((_, bytes))) if bytes == last => found.is_end = true,
                    Some(Some((name, bytes))) => {
                        last.clone_from(&bytes);
                        match name {
                            Ok(name) => found.names.push(name),
                            Err(_) => unusable.push(Unusable::Text(bytes)),
                        }
                    }
                }
            }
        }
        if !unusable.is_empty() && self.fail_unnamed(&unusable, now_ms)? {
            // More unusable rows are left.
            found.is_end = false;
            return Ok(found);
        }
        match found.is_end {
            true => self.names_after.clear(),
            false => self.names_after = last,
        }
        Ok(found)
    }

    /// Makes the next call of [`Store::queued_plugins`] begin where the last one began.
    pub fn poll_again(&mut self) {
        self.names_after.clone_from(&self.names_before);
    }

    /// Ends rows with unusable plugin names. True when it has ended rows and more are left.
    fn fail_unnamed(&mut self, names: &[Unusable], now_ms: i64) -> Result<bool, Error> {
        let mut transaction = self.begin()?;
        let mut found: Vec<(i64, String)> = Vec::new();
        for name in names {
            let left = limits::UNUSABLE_ROWS_PER_TRANSACTION.saturating_sub(found.len());
            let left = i64::try_from(left).unwrap_or(0);
            let (range, bytes) = match name {
                Unusable::Text(bytes) => ("= CAST(?1 AS TEXT)", bytes.as_slice()),
                Unusable::Other => (">= ?1", &[][..]),
            };
            let mut statement = transaction.inner.prepare_cached(&format!(
                "SELECT id, plugin_name FROM cf_processing_queue INDEXED BY ix_casparian_claim \
                 WHERE status = 'QUEUED' AND plugin_name {range} LIMIT ?2"
            ))?;
            let mut rows = statement.query(params![bytes, left])?;
            while let Some(row) = rows.next()? {
                found.push((row.get(0)?, abridged(cell(row, 1))));
            }
        }
        let is_full = found.len() >= limits::UNUSABLE_ROWS_PER_TRANSACTION;
        let mut failed = 0;
        for (job_id, name) in found {
            let reason = format!(
                "cf_processing_queue.plugin_name of row {job_id} is {name}, expected UTF-8 text"
            );
            if transaction.fail(job_id, &reason, now_ms)? {
                log::warn!("job {job_id} failed: {reason}");
                failed += 1;
            }
        }
        transaction.commit()?;
        Ok(is_full && failed > 0)
    }

    /// Hash of the code that a job's last attempt ran. None where that is unknown.
    pub fn ran_with(&self, job_id: i64) -> Result<Option<String>, Error> {
        let query = "SELECT artifact_hash FROM cf_processing_queue WHERE id = ?1";
        let mut statement = self.connection.prepare_cached(query)?;
        let found = statement.query_row([job_id], |row| Ok(shown(cell(row, 0))));
        Ok(found.optional()?.flatten())
    }

    /// The file version of a job's last or next attempt. None where that is unknown.
    pub fn file_version(&self, job_id: i64) -> Result<Option<i64>, Error> {
        let query = "SELECT file_version_id FROM cf_processing_queue WHERE id = ?1";
        let mut statement = self.connection.prepare_cached(query)?;
        let found = statement.query_row([job_id], |row| Ok(number(cell(row, 0))));
        Ok(found.optional()?.flatten())
    }

    /// Why jobs of a plugin wait. None when its code can run.
    pub fn waits(&self, plugin: &str) -> Result<Option<String>, Error> {
        Ok(match code::read(&self.connection, plugin)? {
            Code::Waits(reason) => Some(reason),
            Code::Runs(_) => None,
        })
    }

    /// Why a job of a plugin will not end by itself: another program has removed or changed its row, or the
    /// plugin cannot run. None while the job runs or will run. `waits` = the result of [`Store::waits`] for
    /// the plugin.
    pub fn is_stuck(
        &self,
        job_id: i64,
        plugin: &str,
        waits: Option<&str>,
    ) -> Result<Option<String>, Error> {
        let query = "SELECT status, plugin_name, next_run IS NOT NULL FROM cf_processing_queue \
             WHERE id = ?1";
        let mut statement = self.connection.prepare_cached(query)?;
        let found = statement.query_row([job_id], |row| {
            let text = |index| shown(cell(row, index)).unwrap_or_default();
            Ok((text(0), text(1), row.get(2)?))
        });
        let Some((status, name, has_next_run)) = found.optional()? else {
            let reason = "its row was removed from the queue by another program";
            return Ok(Some(reason.to_owned()));
        };
        match (status.as_str(), has_next_run) {
            ("RUNNING", _) | ("PENDING", true) => Ok(None),
            ("QUEUED", _) if name == plugin => Ok(waits.map(str::to_owned)),
            ("QUEUED", _) => Ok(Some(format!(
                "another program has given its row in the queue to plugin {name}"
            ))),
            _ => Ok(Some(format!(
                "another program has set its row in the queue to status {status}"
            ))),
        }
    }

    /// All RUNNING rows.
    pub fn running(&self) -> Result<Vec<Running>, Error> {
        self.running_after(i64::MIN, usize::MAX)
    }

    /// RUNNING rows with IDs above `after`, in ascending order, at most `limit`.
    pub fn running_after(&self, after: i64, limit: usize) -> Result<Vec<Running>, Error> {
        running(&self.connection, after, limit)
    }
}

/// RUNNING rows with IDs above `after`, in ascending order, at most `limit`.
pub(super) fn running(
    connection: &Connection,
    after: i64,
    limit: usize,
) -> Result<Vec<Running>, Error> {
    let mut statement = connection.prepare_cached(RUNNING_QUERY)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query([after, limit])?;
    let mut running = Vec::new();
    while let Some(row) = rows.next()? {
        running.push(Running {
            attempt: Attempt::new(row.get(0)?, count(cell(row, 1))),
            worker_id: shown(cell(row, 2)).unwrap_or_default(),
            user: shown(cell(row, 3)).map(|text| User::parse(&text)),
            runs_alone: count(cell(row, 4)) >= limits::SHARED_LOSSES_TOGETHER,
        });
    }
    Ok(running)
}

impl Transaction<'_> {
    /// Adds a job and returns its ID.
    pub fn enqueue(
        &mut self,
        plugin: &str,
        file_version_id: i64,
        priority: i64,
        now_ms: i64,
    ) -> Result<i64, Error> {
        let mut statement = self.inner.prepare_cached(
            "INSERT INTO cf_processing_queue \
             (file_version_id, plugin_name, status, priority, retry_count, created_at) \
             VALUES (?1, ?2, 'QUEUED', ?3, 0, ?4)",
        )?;
        statement.execute(params![
            file_version_id,
            plugin,
            priority,
            format_time(now_ms)
        ])?;
        Ok(self.inner.last_insert_rowid())
    }

    /// Makes QUEUED rows PENDING, and cancels the retries of PENDING rows, so that no worker gets them.
    /// [`Transaction::requeue`] queues one again. Returns how many were QUEUED.
    pub fn park_queued(&mut self) -> Result<usize, Error> {
        self.inner.execute(
            "UPDATE cf_processing_queue SET next_run = NULL, next_run_boot_ms = NULL, \
             next_run_boot_id = NULL WHERE status = 'PENDING' AND next_run IS NOT NULL",
            [],
        )?;
        Ok(self.inner.execute(
            "UPDATE cf_processing_queue SET status = 'PENDING' WHERE status = 'QUEUED'",
            [],
        )?)
    }

    /// Queues a job again that is not RUNNING, for the same or another version of its file. Attempt numbers
    /// continue. Failures are counted from zero. For another version the hash of the code is cleared, because
    /// no code has run over it yet. False when the job is RUNNING or does not exist.
    pub fn requeue(&mut self, job_id: i64, file_version_id: i64) -> Result<bool, Error> {
        let mut statement = self.inner.prepare_cached(
            "UPDATE cf_processing_queue SET status = 'QUEUED', file_version_id = ?2, \
             end_time = NULL, error_message = NULL, result_summary = NULL, retry_count = 0, \
             infra_count = 0, shared_count = 0, locked_count = 0, changed_count = 0, killed_count = 0, failure_cause = NULL, next_run = NULL, next_run_boot_ms = NULL, \
             next_run_boot_id = NULL, claim_time = NULL, worker_id = NULL, \
             lease_until_ms = NULL, log_tail = NULL, \
             artifact_hash = iif(file_version_id IS ?2, artifact_hash, NULL) \
             WHERE id = ?1 AND status IS NOT 'RUNNING'",
        )?;
        Ok(statement.execute(params![job_id, file_version_id])? == 1)
    }
}
