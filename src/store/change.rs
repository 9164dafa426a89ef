//! Statements that change rows. Code that another program has put into the schema (triggers,
//! constraints, expressions of indexes) may refuse such a change, or fail at it: that costs the
//! row alone. Failures of the database itself (locked, full, damaged, I/O) are errors.
//!
//! Each statement runs in a savepoint, because `RAISE(FAIL)` keeps what was changed before it. What
//! has rolled the whole transaction back ends the [`Transaction`] with [`Error::RolledBack`]; when it is
//! done again the row is passed over, until [`Store::forgive`].

use std::collections::{HashMap, HashSet};

use rusqlite::{ErrorCode, Params, ToSql, ffi};

use super::passed::Passed;
use super::strays::Strays;
use super::{Error, Store, Transaction};
use crate::limits;

/// Rows that are not tried again for now.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// How often changes of a job's row were refused.
    jobs: HashMap<i64, u32>,
    workers: HashSet<String>,
    /// Changes of several rows, by name: a deployment by plugin and artifact hash.
    groups: HashSet<String>,
    /// Jobs that were refused, and are tried again.
    forgiven: HashSet<i64>,
    /// Jobs that are to be tried again next.
    left: Vec<i64>,
    pub(super) passed: Passed,
    pub(super) strays: Strays,
}

impl Refused {
    /// Jobs that are counted.
    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// The claim of a job was refused: at most its end is tried.
    pub(super) fn is_noted(&self, job_id: i64) -> bool {
        self.jobs.contains_key(&job_id)
    }

    /// A change of a job's row was refused, until it was last forgiven.
    pub(super) fn was_refused(&self, job_id: i64) -> bool {
        self.forgiven.contains(&job_id)
    }

    /// No change of a job's row is tried.
    pub(super) fn is_given_up(&self, job_id: i64) -> bool {
        self.jobs.get(&job_id).is_some_and(|times| *times > 1)
    }

    /// A claim does not consider the job.
    pub(super) fn is_passed_over(&self, job_id: i64) -> bool {
        self.is_given_up(job_id) || self.strays.is_paused(job_id)
    }

    /// Neither the claim nor the end of a job is possible.
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

/// What [`Store::forgive`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgiven {
    /// Rows are tried again.
    pub any: bool,
    /// Others are left for the next call.
    pub more: bool,
}

/// A query that gives a row when a change stands, and its parameters.
pub(super) type Check<'a> = (&'a str, &'a [&'a dyn ToSql]);

/// What became of a statement.
enum Done {
    Changed(usize),
    Refused,
    RolledBack,
}

impl Store {
    /// Rows whose changes were refused are tried again, the first of them at most
    /// [`limits::FORGIVEN_PER_TURN`]; the next call goes on with those that are left.
    pub fn forgive(&mut self) -> Forgiven {
        let refused = &mut self.refused;
        let workers = std::mem::take(&mut refused.workers);
        refused.groups.clear();
        if refused.left.is_empty() {
            refused.left = refused.jobs.keys().copied().collect();
            refused.forgiven.clear();
        }
        let keep = refused.left.len().saturating_sub(limits::FORGIVEN_PER_TURN);
        let forgiven = refused.left.split_off(keep);
        for job_id in &forgiven {
            refused.jobs.remove(job_id);
        }
        let any = !forgiven.is_empty() || !workers.is_empty();
        refused.forgiven.extend(forgiven);
        refused.passed.clear();
        Forgiven {
            any,
            more: !refused.left.is_empty(),
        }
    }

    /// How many rows are passed over.
    pub fn refused_rows(&self) -> usize {
        self.refused.jobs.len() + self.refused.workers.len()
    }
}

impl Transaction<'_> {
    /// Changes a job's row, or one that belongs to it; gives how many rows, and none when code in
    /// the schema refused it.
    pub(super) fn change_job(
        &mut self,
        job_id: i64,
        sql: &str,
        parameters: impl Params,
    ) -> Result<Option<usize>, Error> {
        self.change_job_if(job_id, sql, parameters, None)
    }

    /// Changes a job's row; true when `check` finds it changed afterwards. Code in the schema that
    /// runs after the change may undo it, change the row further or delete it. Then all of it is
    /// undone, as when that code refuses the change.
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

    /// Changes rows of a worker. What is refused is logged.
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

    /// Runs statements that belong together, of a deployment for instance: all of them, or none where
    /// the database refuses one. An error is one of the database itself, which the next try may not have.
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

    /// True when a statement failed because of code in the schema that it ran. A statement that
    /// cannot be prepared any more fails for every row.
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

/// True when what is written, or its size, is why a statement failed: others may not fail.
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
        // A table that has been changed by others: no such column, a value of another type.
        _ => true,
    }
}
