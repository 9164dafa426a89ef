//! Runs statements that change rows. Code that another program has put into the schema (triggers,
//! constraints, expressions of indexes) may refuse such a change, or fail. That affects only the row of the
//! change. Failures of the database itself (locked, full, damaged, I/O) are errors.
//!
//! Each statement runs in a savepoint, because `RAISE(FAIL)` keeps earlier changes of the statement. Code
//! that rolls the whole transaction back ends the [`Transaction`] with [`Error::RolledBack`]. When the
//! transaction is repeated, the row is skipped, until [`Store::retry_refused`].

use std::collections::{HashMap, HashSet};

use rusqlite::{ErrorCode, Params, ToSql, ffi};

use super::changed_rows::ChangedRows;
use super::passed::Passed;
use super::{Error, Store, Transaction};
use crate::limits;

/// Rows whose changes were refused, and which are skipped for now.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// How often changes of a job's row were refused.
    jobs: HashMap<i64, u32>,
    workers: HashSet<String>,
    /// Changes of several rows, by name: a deployment by plugin and artifact hash.
    groups: HashSet<String>,
    /// Jobs that were refused and may be tried again.
    forgiven: HashSet<i64>,
    /// Refused jobs that the next calls of [`Store::retry_refused`] release.
    left: Vec<i64>,
    pub(super) passed: Passed,
    pub(super) changed_rows: ChangedRows,
}

impl Refused {
    /// Number of refused jobs.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// True when a change of the job was refused. Then its claim is not tried, only its end as FAILED.
    pub(super) fn is_noted(&self, job_id: i64) -> bool {
        self.jobs.contains_key(&job_id)
    }

    /// True when a change of the job was refused before the last [`Store::retry_refused`].
    pub(super) fn was_refused(&self, job_id: i64) -> bool {
        self.forgiven.contains(&job_id)
    }

    /// True when no change of the job's row is tried.
    pub(super) fn is_given_up(&self, job_id: i64) -> bool {
        self.jobs.get(&job_id).is_some_and(|times| *times > 1)
    }

    /// True when a claim skips the job.
    pub(super) fn is_passed_over(&self, job_id: i64) -> bool {
        self.is_given_up(job_id) || self.changed_rows.is_paused(job_id)
    }

    /// Notes that neither the claim nor the end of a job is possible.
    pub(super) fn give_up(&mut self, job_id: i64) {
        self.make_room();
        self.jobs.insert(job_id, 2);
    }

    fn make_room(&mut self) {
        let count = self.jobs.len() + self.workers.len() + self.groups.len();
        if count >= limits::REFUSED_ROWS_MAX {
            self.jobs.clear();
            self.workers.clear();
            self.groups.clear();
            self.forgiven.clear();
            self.left.clear();
            self.passed.clear();
        }
    }
}

/// The result of [`Store::retry_refused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetriedRows {
    /// There are rows that may be tried again now.
    pub any: bool,
    /// More rows are left for the next call.
    pub more: bool,
}

/// A query, with its parameters, that returns a row when a change was not undone.
pub(super) type Check<'a> = (&'a str, &'a [&'a dyn ToSql]);

/// The result of a statement.
enum Done {
    Changed(usize),
    Refused,
    RolledBack,
}

impl Store {
    /// Permits further tries for rows whose changes were refused, for at most
    /// [`limits::RETRIED_PER_TRANSACTION`] jobs. The next call continues with the rest.
    pub fn retry_refused(&mut self) -> RetriedRows {
        let refused = &mut self.refused;
        let workers = std::mem::take(&mut refused.workers);
        refused.groups.clear();
        if refused.left.is_empty() {
            refused.left = refused.jobs.keys().copied().collect();
            refused.forgiven.clear();
        }
        let keep = refused
            .left
            .len()
            .saturating_sub(limits::RETRIED_PER_TRANSACTION);
        let forgiven = refused.left.split_off(keep);
        for job_id in &forgiven {
            refused.jobs.remove(job_id);
        }
        let any = !forgiven.is_empty() || !workers.is_empty();
        refused.forgiven.extend(forgiven);
        refused.passed.clear();
        RetriedRows {
            any,
            more: !refused.left.is_empty(),
        }
    }

    /// How many rows are skipped because their changes were refused.
    pub fn refused_rows(&self) -> usize {
        self.refused.jobs.len() + self.refused.workers.len()
    }
}

impl Transaction<'_> {
    /// Changes a job's row, or a row that belongs to it. Returns the number of changed rows. None when code
    /// in the schema refused the change.
    pub(super) fn change_job(
        &mut self,
        job_id: i64,
        sql: &str,
        parameters: impl Params,
    ) -> Result<Option<usize>, Error> {
        self.change_job_if(job_id, sql, parameters, None)
    }

    /// Changes a job's row. True when `check` finds the change afterwards. Code in the schema that runs after
    /// the change may undo it, change the row further or delete it. Then everything is rolled back, as when
    /// that code refuses the change.
    pub(super) fn change_job_to(
        &mut self,
        job_id: i64,
        sql: &str,
        parameters: impl Params,
        check: Check<'_>,
    ) -> Result<bool, Error> {
        let changed = self.change_job_if(job_id, sql, parameters, Some(check))?;
        Ok(changed.is_some())
    }

    fn change_job_if(
        &mut self,
        job_id: i64,
        sql: &str,
        parameters: impl Params,
        check: Option<Check<'_>>,
    ) -> Result<Option<usize>, Error> {
        if self.refused.is_given_up(job_id) {
            return Ok(None);
        }
        match self.change(sql, parameters, check)? {
            Done::Changed(rows) => Ok(Some(rows)),
            Done::Refused => Ok(None),
            Done::RolledBack => {
                self.refused.make_room();
                *self.refused.jobs.entry(job_id).or_default() += 1;
                Err(Error::RolledBack {
                    row: format!("job {job_id}"),
                })
            }
        }
    }

    /// Changes rows of a worker. A refusal is logged.
    pub(super) fn change_worker(
        &mut self,
        worker_id: &str,
        sql: &str,
        parameters: impl Params,
    ) -> Result<(), Error> {
        if self.refused.workers.contains(worker_id) {
            return Ok(());
        }
        match self.change(sql, parameters, None)? {
            Done::Changed(_) => {}
            Done::Refused => {
                log::warn!("worker {worker_id}: code in the database refuses to record it");
            }
            Done::RolledBack => {
                self.refused.make_room();
                self.refused.workers.insert(worker_id.to_owned());
                return Err(Error::RolledBack {
                    row: format!("worker {worker_id}"),
                });
            }
        }
        Ok(())
    }

    /// Changes several rows, or none where code in the schema refuses one of them.
    pub(super) fn change_rows(
        &mut self,
        sql: &str,
        parameters: impl Params,
    ) -> Result<Option<usize>, Error> {
        match self.change(sql, parameters, None)? {
            Done::Changed(rows) => Ok(Some(rows)),
            Done::Refused => Ok(None),
            Done::RolledBack => Err(Error::RolledBack {
                row: "several rows".to_owned(),
            }),
        }
    }

    /// Runs statements that belong together, for example those of a deployment: all of them, or none where
    /// the database refuses one (inner error). The outer error is one of the database itself. The next try
    /// may succeed.
    pub(super) fn change_all<T>(
        &mut self,
        name: &str,
        run: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<Result<T, String>, Error> {
        let again =
            "the database has rolled it back: a trigger does so, or its disk is full".to_owned();
        if self.refused.groups.contains(name) {
            return Ok(Err(again));
        }
        self.inner.execute_batch("SAVEPOINT all_rows")?;
        let error = match run(self) {
            Ok(done) => {
                self.inner.execute_batch("RELEASE all_rows")?;
                return Ok(Ok(done));
            }
            Err(error) => error,
        };
        if self.inner.is_autocommit() {
            self.refused.make_room();
            self.refused.groups.insert(name.to_owned());
            return Err(Error::RolledBack {
                row: "several rows".to_owned(),
            });
        }
        match error {
            Error::Sqlite(error) if is_of_statement(&error) => {
                self.inner
                    .execute_batch("ROLLBACK TO all_rows; RELEASE all_rows")?;
                self.cache.uncommitted = true;
                Ok(Err(format!("the database refuses it: {error}")))
            }
            other => Err(other),
        }
    }

    fn change(
        &self,
        sql: &str,
        parameters: impl Params,
        check: Option<Check<'_>>,
    ) -> Result<Done, Error> {
        let run = |sql| -> Result<(), Error> {
            self.inner.prepare_cached(sql)?.execute([])?;
            Ok(())
        };
        let mut statement = self.inner.prepare_cached(sql)?;
        run("SAVEPOINT one_row")?;
        match statement.execute(parameters) {
            Ok(rows) => {
                let stands = match check {
                    Some((query, values)) => self.inner.prepare_cached(query)?.exists(values)?,
                    None => true,
                };
                if !stands {
                    run("ROLLBACK TO one_row")?;
                }
                run("RELEASE one_row")?;
                Ok(match stands {
                    true => Done::Changed(rows),
                    false => Done::Refused,
                })
            }
            Err(error) if !self.is_of_schema(&error, sql) => Err(error.into()),
            Err(_) if self.inner.is_autocommit() => Ok(Done::RolledBack),
            Err(_) => {
                run("ROLLBACK TO one_row")?;
                run("RELEASE one_row")?;
                Ok(Done::Refused)
            }
        }
    }

    /// True when a statement failed because of code in the schema that it ran. False for a statement that
    /// cannot be prepared any more, which fails for every row.
    fn is_of_schema(&self, error: &rusqlite::Error, sql: &str) -> bool {
        let rusqlite::Error::SqliteFailure(failure, _) = error else {
            return false;
        };
        match failure.code {
            ErrorCode::ConstraintViolation => true,
            ErrorCode::TooBig | ErrorCode::TypeMismatch => true,
            _ => {
                failure.extended_code & 0xff == ffi::SQLITE_ERROR && self.inner.prepare(sql).is_ok()
            }
        }
    }
}

/// True when a statement failed because of the values that it writes, or their size. Statements with other
/// values may succeed.
fn is_of_statement(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => matches!(
            failure.extended_code & 0xff,
            ffi::SQLITE_ERROR
                | ffi::SQLITE_CONSTRAINT
                | ffi::SQLITE_TOOBIG
                | ffi::SQLITE_MISMATCH
                | ffi::SQLITE_FULL
        ),
        // Another program has changed a table: no such column, or a value of another type.
        _ => true,
    }
}
