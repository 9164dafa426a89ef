//! The SQLite sink. Rows are collected in a database file in staging ([`Stage`]). A publish inserts them
//! into their tables, in one transaction for each target database ([`prepare`]).
//!
//! Three side tables in the target database are the fence and the record:
//! - `_casparian_table` has the database (UUID) that a sink's table belongs to.
//! - `_casparian_output` has the attempt that wrote each job's rows. Its row stays when the job's rows
//!   are deleted (`present = 0`), so that earlier attempts are still refused.
//! - `_casparian_key` has that attempt's key, which distinguishes it from an attempt of the same number
//!   in a copy of the database. It is a separate table because earlier releases insert into
//!   `_casparian_output` by position.
//!
//! The column `_database` distinguishes rows of other databases (`share`), the column `_incarnation` rows
//! of jobs with the ID of a deleted job. Each column is added with the first such rows.
//!
//! A process that is stopped inside its transaction keeps the target database locked. Other attempts wait
//! for a bounded time and then fail with [`Error::Locked`], which is retried.

mod commit;
mod index;
mod insert;
mod row_counts;
mod rows;
mod tables;
mod target;
mod triggers;
mod wait;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, ffi};

use super::Error;
use super::error::DatabaseState;
use super::folder::Name;
use super::table_output::TableOutput;
use super::{columns, files, names};
use crate::beside;
use crate::job::Cause;

pub(super) use commit::Prepared;
pub(super) use row_counts::{Tables, is_usable};
pub(super) use rows::{Rows, Stage};
pub(super) use tables::{check, prepare};
pub(super) use target::{Table, Target};
pub(super) use wait::{Patience, Stuck};

const SIDE_TABLES: &str = "
CREATE TABLE IF NOT EXISTS main._casparian_table (
    sink_table TEXT PRIMARY KEY, database TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS main._casparian_output (
    sink_table TEXT, database TEXT, job INTEGER, incarnation INTEGER, topic TEXT,
    attempt INTEGER NOT NULL, rows INTEGER NOT NULL, present INTEGER NOT NULL,
    PRIMARY KEY (sink_table, database, job, incarnation, topic)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS main._casparian_key (
    sink_table TEXT, database TEXT, job INTEGER, incarnation INTEGER,
    attempt INTEGER NOT NULL, key INTEGER NOT NULL,
    PRIMARY KEY (sink_table, database, job, incarnation)
) WITHOUT ROWID;";

/// The columns of the side tables that statements use.
const SIDE_COLUMNS: [(&str, &[&str]); 3] = [
    ("_casparian_table", &["sink_table", "database"]),
    (
        "_casparian_output",
        &[
            "sink_table",
            "database",
            "job",
            "incarnation",
            "topic",
            "attempt",
            "rows",
            "present",
        ],
    ),
    (
        "_casparian_key",
        &[
            "sink_table",
            "database",
            "job",
            "incarnation",
            "attempt",
            "key",
        ],
    ),
];

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn failure(path: &Path, error: &rusqlite::Error) -> Error {
    if wait::is_busy(error) {
        return Error::Locked {
            path: path.to_owned(),
        };
    }
    if is_moved(error) {
        return Error::Moved {
            path: path.to_owned(),
        };
    }
    if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
        return Error::Io {
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::StorageFull, error.to_string()),
        };
    }
    let cause = match error.sqlite_error_code() {
        Some(
            ErrorCode::SystemIoFailure
            | ErrorCode::OutOfMemory
            | ErrorCode::CannotOpen
            | ErrorCode::OperationInterrupted,
        ) => Cause::Worker,
        // A temporary fault of the folder, or of a file beside the database: `write_refusal` has found no
        // reason in the database file.
        Some(ErrorCode::ReadOnly) if extended_code(error) != Some(ffi::SQLITE_READONLY) => {
            Cause::Worker
        }
        // For example too many columns, or a value above SQLite's limit.
        Some(ErrorCode::TooBig | ErrorCode::Unknown) => Cause::Plugin,
        // Also a failed constraint: the table is another program's, because tables that sinks create have
        // none.
        _ => Cause::Operator,
    };
    let state = state_of(error);
    let reason = match state {
        DatabaseState::Unfinished => {
            "a program ended while it wrote into it, and its journal is to be rolled back"
                .to_owned()
        }
        DatabaseState::Damaged | DatabaseState::Other => error.to_string(),
    };
    Error::Sqlite {
        path: path.to_owned(),
        reason,
        cause,
        state,
    }
}

/// What an error shows about the database's file.
fn state_of(error: &rusqlite::Error) -> DatabaseState {
    match (error.sqlite_error_code(), extended_code(error)) {
        (Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase), _) => DatabaseState::Damaged,
        (_, Some(ffi::SQLITE_READONLY_ROLLBACK | ffi::SQLITE_READONLY_RECOVERY)) => {
            DatabaseState::Unfinished
        }
        _ => DatabaseState::Other,
    }
}

/// True when SQLite reports that the database file is no longer at its path.
fn is_moved(error: &rusqlite::Error) -> bool {
    extended_code(error) == Some(ffi::SQLITE_READONLY_DBMOVED)
}

fn extended_code(error: &rusqlite::Error) -> Option<i32> {
    error.sqlite_error().map(|error| error.extended_code)
}

/// The error for a failure in a sink's target database, with the reason if the file cannot be written. An
/// SQL error there is a fault of the operator: the statements are correct, so the database's content is
/// the reason (a view, a text encoding, a trigger).
fn target_failure(path: &Path, error: &rusqlite::Error) -> Error {
    if error.sqlite_error_code() == Some(ErrorCode::Unknown) {
        let mut reason = error.to_string();
        if reason.contains("must use the same text encoding") {
            reason = "its texts are UTF-16, which sinks do not write; use a database with UTF-8 \
                      (PRAGMA encoding), which SQLite makes by default"
                .to_owned();
        }
        return Error::Sqlite {
            path: path.to_owned(),
            reason,
            cause: Cause::Operator,
            state: DatabaseState::Other,
        };
    }
    let refusal = match error.sqlite_error_code() {
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly) if !is_moved(error) => {
            files::write_refusal(path)
        }
        _ => None,
    };
    refusal.unwrap_or_else(|| failure(path, error))
}

/// Refuses a database that exists and is not a regular file with a single name (hard link), and a
/// database whose folder does not exist.
pub(super) fn check_file(path: &Path) -> Result<(), Error> {
    files::check_parent(path)?;
    let found = path.metadata().ok();
    if found.as_ref().is_some_and(|found| !found.is_file()) {
        return Err(Error::Sqlite {
            path: path.to_owned(),
            reason: "it is not a regular file".to_owned(),
            cause: Cause::Operator,
            state: DatabaseState::Other,
        });
    }
    let names = found.map_or(1, |found| found.nlink());
    if names > 1 {
        return Err(Error::Sqlite {
            path: path.to_owned(),
            reason: format!(
                "the file has {names} names (hard links), and SQLite keeps a journal for each, so \
                 that a crash would damage it; copy it to a file of its own"
            ),
            cause: Cause::Operator,
            state: DatabaseState::Other,
        });
    }
    check_beside(path)
}

/// Refuses a database beside which other programs have put files that SQLite must not open as its
/// journal, WAL or shared memory. Opening a FIFO, for example, could block forever.
fn check_beside(path: &Path) -> Result<(), Error> {
    match beside::refusal(path) {
        Some((beside, reason)) => Err(Error::at_path(&beside, reason)),
        None => Ok(()),
    }
}

/// A table's name in the side tables: in lower case, because SQLite compares names of tables
/// case-insensitively.
fn key(table: &str) -> String {
    table.to_ascii_lowercase()
}

/// Names of a table's columns; empty when there is no such table.
fn column_names(
    connection: &Connection,
    schema: &str,
    table: &str,
) -> rusqlite::Result<Vec<String>> {
    let query = format!("PRAGMA {schema}.table_info({})", quoted(table));
    let mut statement = connection.prepare(&query)?;
    let rows = statement.query_map([], |row| row.get::<_, String>(1))?;
    rows.collect()
}

/// FROM clause (without FROM) for the rows of a job in a table with these columns. Parameters: see
/// [`Marks::condition`].
fn own_rows(table: &str, columns: &[String]) -> String {
    format!("main.{} WHERE {}", quoted(table), Marks::condition(columns))
}

/// Query whether such rows exist.
fn existence(rows: &str) -> String {
    format!("SELECT EXISTS (SELECT 1 FROM {rows})")
}

fn deletion(rows: &str) -> String {
    format!("DELETE FROM {rows}")
}

/// Values that identify a job's rows in addition to the job's ID.
struct Marks {
    /// Set in tables that another database owns: the suffix of the job's database.
    database: Option<String>,
    /// Set for jobs with the ID of a deleted job.
    incarnation: Option<i64>,
}

impl Marks {
    const DATABASE: &str = columns::DATABASE;
    const INCARNATION: &str = columns::INCARNATION;

    /// SQL condition for the job's rows in a table with these columns. Parameters: `?1` is the job's ID,
    /// `?2` the database, `?3` the incarnation.
    fn condition(columns: &[String]) -> String {
        // With statistics of a table in which one job has all rows, SQLite would not use the index.
        let mut condition = "likelihood(_job_id IS ?1, 0.000001)".to_owned();
        for (name, parameter) in [(Self::DATABASE, "?2"), (Self::INCARNATION, "?3")] {
            match columns.iter().any(|column| column == name) {
                true => condition.push_str(&format!(" AND {name} IS {parameter}")),
                // A statement must use all parameters that are bound.
                false => condition.push_str(&format!(" AND ({parameter} IS NULL)")),
            }
        }
        condition
    }

    /// The same condition with its values, for messages to operators.
    fn shown(&self, columns: &[String], job_id: i64) -> String {
        let incarnation = self.incarnation.map(|number| number.to_string());
        let database = self.database.as_ref().map(|suffix| format!("'{suffix}'"));
        let mut shown = format!("_job_id = {job_id}");
        for (name, value) in [(Self::DATABASE, database), (Self::INCARNATION, incarnation)] {
            if columns.iter().any(|column| column == name) {
                let value = value.as_deref().unwrap_or("NULL");
                shown.push_str(&format!(" AND {name} IS {value}"));
            }
        }
        shown
    }

    fn new(owner: &str, name: &Name) -> Self {
        let incarnation = name.attempt.incarnation();
        let is_own = owner == name.database || !name.is_numbered();
        Marks {
            database: (!is_own).then(|| names::suffix(&name.database)),
            incarnation: (incarnation > 0).then_some(incarnation),
        }
    }
}

/// Restricts code in the schema of another program's database (triggers, views) to functions without side
/// effects, and disables foreign keys.
fn harden(connection: &Connection) -> rusqlite::Result<()> {
    use rusqlite::config::DbConfig::{SQLITE_DBCONFIG_ENABLE_FKEY, SQLITE_DBCONFIG_TRUSTED_SCHEMA};
    connection.set_db_config(SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    // Off, as in SQLite's shell. Foreign keys could delete rows of other jobs together with deleted rows.
    connection.set_db_config(SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
    Ok(())
}

/// How a database is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sink) enum Access {
    Read,
    Write,
}

/// Opens a database for recovery. `None` when it does not exist or has no side tables. Statements wait
/// for locks of other connections until `until`.
fn open_existing(path: &Path, until: Instant) -> Result<Option<Connection>, Error> {
    open_as(path, until, Access::Write)
}

/// The same as [`open_existing`] for an access. With [`Access::Read`] a hot journal is not rolled back;
/// opening the database fails instead.
fn open_as(path: &Path, until: Instant, access: Access) -> Result<Option<Connection>, Error> {
    if !path.is_file() {
        return Ok(None);
    }
    check_beside(path)?;
    let open = || -> rusqlite::Result<Option<Connection>> {
        let access = match access {
            Access::Read => OpenFlags::SQLITE_OPEN_READ_ONLY,
            Access::Write => OpenFlags::SQLITE_OPEN_READ_WRITE,
        };
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        harden(&connection)?;
        wait::limit(&connection, until)?;
        let has_side_table = column_names(&connection, "main", "_casparian_output")?;
        wait::limit(&connection, until)?;
        Ok((!has_side_table.is_empty()).then_some(connection))
    };
    open().map_err(|error| failure(path, &error))
}

/// The database that a table belongs to, if it is recorded.
fn owner_of(connection: &Connection, table: &str) -> rusqlite::Result<Option<String>> {
    let query = "SELECT database FROM main._casparian_table WHERE sink_table = ?1";
    let found = connection.query_row(query, [key(table)], |row| row.get(0));
    found.optional()
}

/// The attempt whose rows are in a table.
fn attempt_in(connection: &Connection, table: &str, name: &Name) -> rusqlite::Result<Option<i64>> {
    connection.query_row(
        "SELECT max(attempt) FROM main._casparian_output WHERE sink_table = ?1 AND database = ?2
         AND job = ?3 AND incarnation = ?4 AND present",
        (
            key(table),
            &name.database,
            name.attempt.job_id,
            name.attempt.incarnation(),
        ),
        |row| row.get(0),
    )
}

/// The key of the attempt that wrote the job's rows; 0 if unknown.
fn key_of(
    connection: &Connection,
    table: &str,
    name: &Name,
    attempt: i64,
) -> rusqlite::Result<i64> {
    if column_names(connection, "main", "_casparian_key")?.is_empty() {
        return Ok(0);
    }
    let query = "SELECT key FROM main._casparian_key WHERE sink_table = ?1 AND database = ?2
         AND job = ?3 AND incarnation = ?4 AND attempt = ?5";
    let (job, incarnation) = (name.attempt.job_id, name.attempt.incarnation());
    let parameters = (key(table), &name.database, job, incarnation, attempt);
    let found = connection.query_row(query, parameters, |row| row.get(0));
    Ok(found.optional()?.unwrap_or(0))
}

/// True when exactly this attempt with this key wrote the rows of the job in a table. An unknown key (0)
/// equals every key.
fn is_by(connection: &Connection, table: &str, name: &Name, key: i64) -> rusqlite::Result<bool> {
    if attempt_in(connection, table, name)? != Some(name.stamp()) {
        return Ok(false);
    }
    let found = key_of(connection, table, name, name.stamp())?;
    Ok(found == key || found == 0 || key == 0)
}

/// The same as [`is_by`], for a table of a record.
pub(super) fn is_published(
    output: &TableOutput,
    name: &Name,
    key: i64,
    access: Access,
) -> Result<bool, Error> {
    let path = Path::new(&output.database);
    match open_as(path, wait::end(), access)? {
        None => Ok(false),
        Some(connection) => {
            is_by(&connection, &output.table, name, key).map_err(|error| failure(path, &error))
        }
    }
}

/// Deletes the job's rows if an attempt up to the given one wrote them. False when there are no such
/// rows.
pub(super) fn clear(output: &TableOutput, name: &Name, attempt: i64) -> Result<bool, Error> {
    let (path, table) = (Path::new(&output.database), &output.table);
    let goes = |connection: &Connection| {
        let found = attempt_in(connection, table, name)?;
        Ok(found.is_some_and(|found| found <= attempt))
    };
    let until = wait::end();
    match open_existing(path, until)? {
        Some(mut connection) => clear_where(path, &mut connection, table, name, until, goes),
        None => Ok(false),
    }
}

/// Deletes the job's rows if exactly this attempt with this key wrote them. False when there are no such
/// rows.
pub(super) fn clear_exact(output: &TableOutput, name: &Name, key: i64) -> Result<bool, Error> {
    clear_exact_in(Path::new(&output.database), &output.table, name, key)
}

fn clear_exact_in(path: &Path, table: &str, name: &Name, key: i64) -> Result<bool, Error> {
    let goes = |connection: &Connection| is_by(connection, table, name, key);
    let until = wait::end();
    match open_existing(path, until)? {
        Some(mut connection) => clear_where(path, &mut connection, table, name, until, goes),
        None => Ok(false),
    }
}

/// Deletes the job's rows in a transaction if `goes` returns true. False when nothing was deleted.
fn clear_where(
    path: &Path,
    connection: &mut Connection,
    table: &str,
    name: &Name,
    until: Instant,
    goes: impl Fn(&Connection) -> rusqlite::Result<bool>,
) -> Result<bool, Error> {
    let fail = |error: rusqlite::Error| failure(path, &error);
    wait::limit(connection, until).map_err(fail)?;
    if !goes(connection).map_err(fail)? {
        return Ok(false);
    }
    let immediate = rusqlite::TransactionBehavior::Immediate;
    let transaction = connection
        .transaction_with_behavior(immediate)
        .map_err(fail)?;
    let columns = column_names(&transaction, "main", table).map_err(fail)?;
    if !goes(&transaction).map_err(fail)? || columns.is_empty() {
        return Ok(false);
    }
    let owner = owner_of(&transaction, table).map_err(fail)?;
    let marks = Marks::new(&owner.unwrap_or_default(), name);
    delete_job(path, &transaction, table, &columns, name, &marks)?;
    wait::limit(&transaction, until).map_err(fail)?;
    transaction.commit().map_err(fail)?;
    Ok(true)
}

/// Deletes the rows of the job and sets `present = 0`. An error when some rows remain.
fn delete_job(
    path: &Path,
    connection: &Connection,
    table: &str,
    columns: &[String],
    name: &Name,
    marks: &Marks,
) -> Result<(), Error> {
    let fail = |error: rusqlite::Error| target_failure(path, &error);
    let rows = own_rows(table, columns);
    let own = (name.attempt.job_id, &marks.database, &marks.incarnation);
    connection.execute(&deletion(&rows), own).map_err(fail)?;
    triggers::check(path, connection, table, false, (&rows, own), 0)?;
    connection
        .execute(
            "UPDATE main._casparian_output SET present = 0, rows = 0 WHERE sink_table = ?1
             AND database = ?2 AND job = ?3 AND incarnation = ?4",
            (
                key(table),
                &name.database,
                name.attempt.job_id,
                name.attempt.incarnation(),
            ),
        )
        .map_err(fail)?;
    Ok(())
}
