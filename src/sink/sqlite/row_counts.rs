//! The rows of jobs in the tables of a database, counted once for many jobs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::{
    Access, Marks, attempt_in, column_names, is_by, key, open_as, own_rows, owner_of, quoted, wait,
};
use crate::sink::Error;
use crate::sink::error::DatabaseState;
use crate::sink::folder::Name;

/// Identifies a job's rows: the job's ID and the values of [`Marks`].
type Mark = (i64, Option<String>, Option<i64>);

/// An opened database of sinks.
pub(in crate::sink) struct Tables {
    path: PathBuf,
    connection: Connection,
    /// The damage that a check of the whole database has found; `None` before the check.
    damage: Option<Option<String>>,
    /// Numbers of rows, by table and mark.
    counts: HashMap<String, HashMap<Mark, u64>>,
    /// First and last ID of the jobs whose rows are counted; `None` for all jobs.
    jobs: Option<(i64, i64)>,
}

/// True when the database and the files beside it are regular files, so that opening it waits for locks
/// at most.
pub(in crate::sink) fn is_usable(path: &Path) -> bool {
    let is_regular = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_file());
    is_regular(path)
        && ["-journal", "-wal", "-shm"].iter().all(|suffix| {
            let mut beside = path.as_os_str().to_owned();
            beside.push(suffix);
            let beside = Path::new(&beside);
            beside.symlink_metadata().is_err() || is_regular(beside)
        })
}

impl Tables {
    /// Opens a database. `None` where there is no database with side tables.
    pub(in crate::sink) fn open(path: &Path, access: Access) -> Result<Option<Self>, Error> {
        if !is_usable(path) {
            return Ok(None);
        }
        let connection = open_as(path, wait::end(), access)?;
        Ok(connection.map(|connection| Tables {
            path: path.to_owned(),
            connection,
            damage: None,
            counts: HashMap::new(),
            jobs: None,
        }))
    }

    /// Limits counting to the rows of jobs with these IDs, which bounds memory. Drops counts of another
    /// range.
    pub(in crate::sink) fn count_jobs(&mut self, first: i64, last: i64) {
        if self.jobs != Some((first, last)) {
            self.jobs = Some((first, last));
            self.counts.clear();
        }
    }

    /// The number of a job's rows in a table; `None` where no attempt of the job has published there.
    pub(in crate::sink) fn rows(&mut self, table: &str, name: &Name) -> Result<Option<u64>, Error> {
        let found = self.rows_of(table, name);
        found.map_err(|error| super::failure(&self.path, &error))
    }

    /// The damage of the database, if a check of all its pages finds any. It is checked once.
    pub(in crate::sink) fn damage(&mut self) -> Option<String> {
        let connection = &self.connection;
        let damage = self.damage.get_or_insert_with(|| {
            let found: rusqlite::Result<String> =
                connection.query_row("PRAGMA main.quick_check(1)", [], |row| row.get(0));
            match found {
                Ok(found) => (found != "ok").then_some(found),
                Err(error) => {
                    (super::state_of(&error) == DatabaseState::Damaged).then(|| error.to_string())
                }
            }
        });
        damage.clone()
    }

    fn rows_of(&mut self, table: &str, name: &Name) -> rusqlite::Result<Option<u64>> {
        match attempt_in(&self.connection, table, name)? {
            Some(_) => self.count_of(table, name).map(Some),
            None => Ok(None),
        }
    }

    /// The database that a table belongs to, if it is recorded.
    pub(in crate::sink) fn owner(&self, table: &str) -> Option<String> {
        owner_of(&self.connection, table).ok().flatten()
    }

    /// True when the job has this number of rows in a table, written by the attempt with this key. With
    /// key 0 (unknown) rows of an earlier attempt are accepted, too. False when the table cannot be read.
    pub(in crate::sink) fn has(&mut self, table: &str, name: &Name, key: i64, rows: u64) -> bool {
        self.has_rows(table, name, key, rows)
            .unwrap_or_else(|error| {
                log::warn!("table {table}: {error}");
                false
            })
    }

    /// Jobs of a database whose rows are in a table, each as job ID and incarnation.
    pub(in crate::sink) fn jobs(&self, table: &str, database: &str) -> Vec<(i64, i64)> {
        jobs(&self.connection, table, database).unwrap_or_else(|error| {
            log::warn!("table {table}: {error}");
            Vec::new()
        })
    }

    /// True when the database records that a later publish removed the rows of the attempt. A database
    /// that was restored from an older copy has no such record.
    pub(in crate::sink) fn is_removed(&self, table: &str, name: &Name) -> bool {
        let query = "SELECT max(attempt) = ?5 AND max(present) = 0 FROM main._casparian_output
             WHERE sink_table = ?1 AND database = ?2 AND job = ?3 AND incarnation = ?4";
        let attempt = name.attempt;
        let job = (attempt.job_id, attempt.incarnation());
        let parameters = (key(table), &name.database, job.0, job.1, name.stamp());
        let found: rusqlite::Result<Option<bool>> =
            self.connection
                .query_row(query, parameters, |row| row.get(0));
        found.ok().flatten().unwrap_or(false)
    }

    /// True when the rows of a job in a table were written by the attempt with this key, or when that is
    /// unknown.
    pub(in crate::sink) fn is_of(&self, table: &str, name: &Name, attempt_key: i64) -> bool {
        let found = match attempt_key {
            0 => attempt_in(&self.connection, table, name)
                .map(|found| found.is_none_or(|found| found <= name.attempt.number)),
            attempt_key => is_by(&self.connection, table, name, attempt_key),
        };
        found.unwrap_or(true)
    }

    /// True when rows of the job are in a table, or when the table cannot be read.
    pub(in crate::sink) fn has_any(&mut self, table: &str, name: &Name) -> bool {
        self.count_of(table, name).map_or_else(
            |error| {
                log::warn!("table {table}: {error}");
                true
            },
            |count| count > 0,
        )
    }

    fn has_rows(
        &mut self,
        table: &str,
        name: &Name,
        attempt_key: i64,
        rows: u64,
    ) -> rusqlite::Result<bool> {
        let is_there = match attempt_key {
            0 => attempt_in(&self.connection, table, name)?
                .is_some_and(|found| found <= name.attempt.number),
            attempt_key => is_by(&self.connection, table, name, attempt_key)?,
        };
        if !is_there {
            return Ok(false);
        }
        Ok(self.count_of(table, name)? == rows)
    }

    /// The number of the job's rows in a table.
    fn count_of(&mut self, table: &str, name: &Name) -> rusqlite::Result<u64> {
        let marks = Marks::new(&self.owner(table).unwrap_or_default(), name);
        let job_id = name.attempt.job_id;
        if let Some((first, last)) = self.jobs
            && !(first..=last).contains(&job_id)
        {
            let columns = column_names(&self.connection, "main", table)?;
            let query = format!("SELECT count(*) FROM {}", own_rows(table, &columns));
            let own = (job_id, marks.database, marks.incarnation);
            let found: i64 = self.connection.query_row(&query, own, |row| row.get(0))?;
            return Ok(u64::try_from(found).unwrap_or(0));
        }
        if !self.counts.contains_key(&key(table)) {
            let counts = count(&self.connection, table, self.jobs)?;
            self.counts.insert(key(table), counts);
        }
        let mark = (job_id, marks.database, marks.incarnation);
        let counts = self.counts.get(&key(table));
        let found = counts.and_then(|counts| counts.get(&mark)).copied();
        Ok(found.unwrap_or(0))
    }
}

fn jobs(connection: &Connection, table: &str, database: &str) -> rusqlite::Result<Vec<(i64, i64)>> {
    let mut statement = connection.prepare(
        "SELECT DISTINCT job, incarnation FROM main._casparian_output WHERE sink_table = ?1
         AND database = ?2 AND present",
    )?;
    let rows = statement.query_map((key(table), database), |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

/// Counts the rows of a table by their marks, in one pass for many jobs.
fn count(
    connection: &Connection,
    table: &str,
    jobs: Option<(i64, i64)>,
) -> rusqlite::Result<HashMap<Mark, u64>> {
    let columns = column_names(connection, "main", table)?;
    let has = |name: &str| columns.iter().any(|column| column == name);
    let mut counts = HashMap::new();
    if !has("_job_id") {
        return Ok(counts);
    }
    let column = |name| if has(name) { name } else { "NULL" };
    let range = jobs.map_or("", |_| "WHERE _job_id BETWEEN ?1 AND ?2");
    let mut statement = connection.prepare(&format!(
        "SELECT _job_id, {}, {} FROM main.{} {range}",
        column(Marks::DATABASE),
        column(Marks::INCARNATION),
        quoted(table)
    ))?;
    let mut rows = match jobs {
        Some(jobs) => statement.query(<[i64; 2]>::from(jobs))?,
        None => statement.query([])?,
    };
    while let Some(row) = rows.next()? {
        // Rows of other programs may have values of any type.
        let mark = (row.get(0), row.get(1), row.get(2));
        if let (Ok(job), Ok(database), Ok(incarnation)) = mark {
            *counts.entry((job, database, incarnation)).or_insert(0) += 1;
        }
    }
    Ok(counts)
}
