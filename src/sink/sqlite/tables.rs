//! Moves staged rows into the tables of a target database.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension};

use super::commit::{self, Prepared};
use super::insert::insert;
use super::target::{Table, Target};
use super::target_failure as failure;
use super::wait::{self, Patience};
use super::{
    Marks, SIDE_COLUMNS, SIDE_TABLES, attempt_in, column_names, delete_job, deletion, existence,
    index, key, key_of, open_existing, own_rows, owner_of, quoted, triggers,
};
use crate::job::{Attempt, Cause, Mode, QUEUE_TABLE};
use crate::sink::columns::{FILE_VERSION_ID, JOB_ID};
use crate::sink::error::DatabaseState;
use crate::sink::folder::{Name, OLD};
use crate::sink::{Error, names};

/// How long SQLite waits for readers before the lease is checked again.
const READER_WAIT: Duration = Duration::from_secs(1);

/// Inserts staged rows into their tables, in a transaction that stays open. With `excludes_readers` no
/// reader can delay the commit. `None` when the lease ended while the database was locked.
pub(in crate::sink) fn prepare(
    target: &Target,
    stage: &Path,
    excludes_readers: bool,
    patience: &Patience<'_>,
) -> Result<Option<Prepared>, Error> {
    let path = &target.database;
    let fail = |error: rusqlite::Error| failure(path, &error);
    let (connection, file) = commit::open(path)?;
    if !begin(&connection, stage, excludes_readers, patience).map_err(fail)? {
        return Ok(None);
    }
    // Rows that exceed the cache are written to the database before the commit, if no reader has a lock.
    // Waiting for readers at each page could take longer than any lease.
    connection.busy_timeout(Duration::ZERO).map_err(fail)?;
    if !column_names(&connection, "main", QUEUE_TABLE)
        .map_err(fail)?
        .is_empty()
    {
        let reason =
            format!("it is a job queue (it has a table {QUEUE_TABLE}), which takes no output");
        return Err(Error::at_path(path, reason));
    }
    connection.execute_batch(SIDE_TABLES).map_err(fail)?;
    check_side_tables(path, &connection)?;
    let mut tables: BTreeMap<String, Vec<&Table>> = BTreeMap::new();
    for table in &target.tables {
        tables.entry(key(&table.name)).or_default().push(table);
    }
    for sinks in tables.values() {
        fill(target, &connection, sinks)?;
    }
    connection.busy_timeout(wait::STEP).map_err(fail)?;
    Ok(Some(Prepared {
        path: path.clone(),
        connection,
        file,
        tables: target
            .tables
            .iter()
            .map(|table| table.name.clone())
            .collect(),
        run: target.run.clone(),
        key: target.history.key,
    }))
}

/// Refuses a database in which another program has created tables with the names of the side tables.
fn check_side_tables(path: &Path, connection: &Connection) -> Result<(), Error> {
    for (table, wanted) in SIDE_COLUMNS {
        let found =
            column_names(connection, "main", table).map_err(|error| failure(path, &error))?;
        let mut wanted = wanted.iter();
        if let Some(column) = wanted.find(|name| !found.iter().any(|found| found == *name)) {
            return Err(Error::Sqlite {
                path: path.to_owned(),
                reason: format!(
                    "its table {table} is another program's: it lacks the column {column}; rename \
                     it, or use another database"
                ),
                cause: Cause::Operator,
                state: DatabaseState::Other,
            });
        }
    }
    Ok(())
}

/// Starts a transaction. False when the lease ended while the database was locked.
fn begin(
    connection: &Connection,
    stage: &Path,
    excludes_readers: bool,
    patience: &Patience<'_>,
) -> rusqlite::Result<bool> {
    super::harden(connection)?;
    connection.busy_timeout(wait::STEP)?;
    let stage = read_only(stage);
    // ATTACH reads the schema of the target database, so it may find the database locked.
    let attach = || connection.execute("ATTACH DATABASE ?1 AS staging", [&stage]);
    if patience.run(attach)?.is_none() {
        return Ok(false);
    }
    let begin = match excludes_readers {
        true => {
            // SQLite excludes new readers only while it waits in its busy handler.
            connection.busy_timeout(READER_WAIT)?;
            "BEGIN EXCLUSIVE"
        }
        false => "BEGIN IMMEDIATE",
    };
    patience.execute(connection, begin)
}

/// URI that opens a database read-only. Otherwise the transaction for one target database would lock the
/// stage for the next.
fn read_only(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => {
                uri.push(char::from(byte));
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri + "?mode=ro"
}

/// Inserts the rows of all sinks of the job that write to one table.
fn fill(target: &Target, connection: &Connection, sinks: &[&Table]) -> Result<(), Error> {
    let fail = |error: rusqlite::Error| failure(&target.database, &error);
    let Some(first) = sinks.first() else {
        return Ok(());
    };
    let owner = owner(target, connection, &first.name)?;
    let marks = Marks::new(&owner, &target.run);
    let staged = column_names(connection, "staging", &format!("s{}", first.index)).map_err(fail)?;
    let columns = make_table(target, connection, first, &staged, &marks)?;
    make_room(target, connection, sinks, &columns, &marks)?;
    let mut is_plain = true;
    for sink in sinks {
        is_plain &= insert(target, connection, sink, &columns, &staged, &marks)?;
        connection
            .execute(
                "INSERT OR REPLACE INTO main._casparian_output VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1)",
                (
                    key(&sink.name),
                    &target.run.database,
                    target.run.attempt.job_id,
                    target.run.attempt.incarnation(),
                    &sink.topic,
                    target.run.stamp(),
                    i64::try_from(sink.rows).unwrap_or(i64::MAX),
                ),
            )
            .map_err(fail)?;
    }
    let rows = own_rows(&first.name, &columns);
    let job_id = target.run.attempt.job_id;
    triggers::check(
        &target.database,
        connection,
        &first.name,
        !is_plain,
        (&rows, (job_id, &marks.database, &marks.incarnation)),
        sinks.iter().map(|sink| sink.rows).sum(),
    )?;
    connection
        .execute(
            "INSERT OR REPLACE INTO main._casparian_key VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            (
                key(&first.name),
                &target.run.database,
                target.run.attempt.job_id,
                target.run.attempt.incarnation(),
                target.run.stamp(),
                target.history.key,
            ),
        )
        .map_err(fail)?;
    Ok(())
}

/// The database that a table belongs to. The first database that publishes into a table becomes its
/// owner.
fn owner(target: &Target, connection: &Connection, table: &str) -> Result<String, Error> {
    let fail = |error: rusqlite::Error| failure(&target.database, &error);
    let ours = &target.run.database;
    match owner_of(connection, table).map_err(fail)? {
        Some(owner) if &owner == ours || !target.run.is_numbered() || target.share => Ok(owner),
        Some(owner) => Err(Error::OtherDatabase {
            path: target.database.join(table),
            owner,
            database: ours.clone(),
            is_final: false,
        }),
        // Attempts of an old sentinel do not become owners.
        None if !target.run.is_numbered() => Ok(ours.clone()),
        None => {
            connection
                .execute(
                    "INSERT INTO main._casparian_table VALUES (?1, ?2)",
                    (key(table), ours),
                )
                .map_err(fail)?;
            Ok(ours.clone())
        }
    }
}

/// Creates the table if it is missing, adds the columns of the marks, and creates the index. Returns the
/// table's columns.
fn make_table(
    target: &Target,
    connection: &Connection,
    sink: &Table,
    staged: &[String],
    marks: &Marks,
) -> Result<Vec<String>, Error> {
    let fail = |error: rusqlite::Error| failure(&target.database, &error);
    let table = quoted(&sink.name);
    let mut columns = column_names(connection, "main", &sink.name).map_err(fail)?;
    let is_new = columns.is_empty();
    if is_new {
        let definition: String = connection
            .query_row(
                "SELECT sql FROM staging.sqlite_master WHERE name = ?1",
                [format!("d{}", sink.index)],
                |row| row.get(0),
            )
            .map_err(fail)?;
        let definition = definition
            .split_once('(')
            .map_or("", |(_, columns)| columns);
        connection
            .execute_batch(&format!("CREATE TABLE main.{table} ({definition}"))
            .map_err(fail)?;
        columns = staged.to_vec();
    }
    for (name, sql, is_needed) in [
        (Marks::DATABASE, "TEXT", marks.database.is_some()),
        (Marks::INCARNATION, "INTEGER", marks.incarnation.is_some()),
    ] {
        if !is_needed {
            continue;
        }
        if !columns.iter().any(|column| column == name) {
            connection
                .execute_batch(&format!("ALTER TABLE main.{table} ADD COLUMN {name} {sql}"))
                .map_err(fail)?;
            columns.push(name.to_owned());
        }
    }
    if !columns.iter().any(|column| column == JOB_ID) {
        let differ = |some: &[String], other: &[String]| {
            let names = some.iter().filter(|name| !other.contains(name));
            names.cloned().collect()
        };
        return Err(Error::TableColumns {
            path: target.database.join(&sink.name),
            missing: differ(staged, &columns),
            extra: differ(&columns, staged),
        });
    }
    index::ensure(connection, &target.database, &sink.name, is_new).map_err(fail)?;
    Ok(columns)
}

/// Checks whether the job may publish into the table, and deletes the rows that the publish replaces.
fn make_room(
    target: &Target,
    connection: &Connection,
    sinks: &[&Table],
    columns: &[String],
    marks: &Marks,
) -> Result<(), Error> {
    let fail = |error: rusqlite::Error| failure(&target.database, &error);
    let Some(first) = sinks.first() else {
        return Ok(());
    };
    let run = &target.run;
    let attempt = run.attempt;
    let last = last_attempt(connection, &first.name, run).map_err(fail)?;
    match last {
        Some(last) if run.is_numbered() && last > attempt.number => {
            return Err(Error::Barred { attempt, by: last });
        }
        Some(recorded) if run.is_numbered() && recorded == attempt.number => {
            return Err(Error::Copied { attempt, recorded });
        }
        _ => {}
    }
    let path = target.database.join(&first.name);
    let own = (attempt.job_id, &marks.database, &marks.incarnation);
    let exists = |rows: &str| -> Result<bool, Error> {
        let found = connection.query_row(&existence(rows), own, |row| row.get(0));
        found.map_err(fail)
    };
    let recorded_by = attempt_in(connection, &first.name, run).map_err(fail)?;
    if let Some(recorded) = recorded_by.filter(|_| run.is_numbered()) {
        let key = key_of(connection, &first.name, run, recorded).map_err(fail)?;
        if target.history.is_foreign(recorded, key, attempt) {
            return Err(Error::Copied { attempt, recorded });
        }
    }
    let is_recorded = recorded_by.is_some();
    let uri = names::table_uri(&target.database, &first.name);
    let mut is_ours = is_recorded || !run.is_numbered() || target.previous.contains(&uri);
    let rows = own_rows(&first.name, columns);
    if !is_ours && exists(&rows)? {
        let noted = || has_noted_rows(connection, &first.name, &rows, own).map_err(fail);
        is_ours = is_of_old_peer(target, columns, &exists, &rows, &noted)?;
        if !is_ours {
            let rows = Some(marks.shown(columns, attempt.job_id));
            return Err(Error::NotOurs { path, rows });
        }
    }
    let is_exclusive = sinks.iter().any(|sink| sink.mode == Mode::Error);
    if is_exclusive
        && let Some(by) = taken(connection, &first.name, run, columns, marks).map_err(fail)?
    {
        return Err(Error::Exists { path, by });
    }
    if is_ours {
        let path = &target.database;
        delete_job(path, connection, &first.name, columns, run, marks)?;
    }
    if sinks.iter().any(|sink| sink.mode == Mode::Replace) {
        replace(target, connection, &first.name, columns, marks)?;
    }
    Ok(())
}

/// Whether output of other jobs prevents a sink of mode `error` from publishing into a table: rows, or
/// output without rows. Returns `Some` with the attempt that published it, if known.
fn taken(
    connection: &Connection,
    table: &str,
    run: &Name,
    columns: &[String],
    marks: &Marks,
) -> rusqlite::Result<Option<Option<Attempt>>> {
    // The query ends at the first row that it finds.
    let rows = existence(&rows_of_others(table, columns));
    let own = (run.attempt.job_id, &marks.database, &marks.incarnation);
    let has_rows: bool = connection.query_row(&rows, own, |row| row.get(0))?;
    match has_rows || has_empty(connection, table, run)? {
        true => other_writer(connection, table, run).map(Some),
        false => Ok(None),
    }
}

/// The same as [`taken`], as a check before the job runs. It does not wait for locks. What it does not
/// detect is detected when the job publishes.
pub(in crate::sink) fn check(
    path: &Path,
    table: &str,
    run: &Name,
    share: bool,
) -> Result<Option<Option<Attempt>>, Error> {
    let Some(connection) = open_existing(path, Instant::now())? else {
        return Ok(None);
    };
    let found = || {
        let columns = column_names(&connection, "main", table)?;
        let owner = owner_of(&connection, table)?.unwrap_or_else(|| run.database.clone());
        let is_usable = share || owner == run.database;
        // A job that has published here before may be of a copied database, which is reported when it
        // publishes.
        let has_jobs = columns.iter().any(|column| column == JOB_ID);
        if !has_jobs || !is_usable || last_attempt(&connection, table, run)?.is_some() {
            return Ok(None);
        }
        let marks = Marks::new(&owner, run);
        taken(&connection, table, run, &columns, &marks)
    };
    found().map_err(|error| failure(path, &error))
}

/// The last attempt of the job that has published into a table, whether or not its rows are there.
fn last_attempt(connection: &Connection, table: &str, run: &Name) -> rusqlite::Result<Option<i64>> {
    let attempt = run.attempt;
    connection.query_row(
        "SELECT max(attempt) FROM main._casparian_output WHERE sink_table = ?1
         AND database = ?2 AND job = ?3 AND incarnation = ?4",
        (
            key(table),
            &run.database,
            attempt.job_id,
            attempt.incarnation(),
        ),
        |row| row.get(0),
    )
}

/// True when the reference system may have run the job and the rows with its ID are output of it: a
/// worker of Casparian that served an old sentinel recorded their number, or all of them have the job's
/// file version. Workers of the reference system record nothing.
fn is_of_old_peer(
    target: &Target,
    columns: &[String],
    exists: &dyn Fn(&str) -> Result<bool, Error>,
    rows: &str,
    are_noted: &dyn Fn() -> Result<bool, Error>,
) -> Result<bool, Error> {
    let is_theirs = target.history.old_since_ms.is_some() && target.run.attempt.incarnation() == 0;
    if !is_theirs {
        return Ok(false);
    }
    if are_noted()? {
        return Ok(true);
    }
    if !columns.iter().any(|column| column == FILE_VERSION_ID) {
        return Ok(false);
    }
    let version = target.file_version_id;
    let other = format!("{rows} AND {FILE_VERSION_ID} IS NOT {version}");
    Ok(!exists(&other)?)
}

/// True when the number of a job's rows in a table is the number that workers of Casparian recorded for
/// an old sentinel.
fn has_noted_rows(
    connection: &Connection,
    table: &str,
    own_rows: &str,
    own: (i64, &Option<String>, &Option<i64>),
) -> rusqlite::Result<bool> {
    let query = format!(
        "SELECT (SELECT sum(rows) FROM main._casparian_output WHERE sink_table = ?4
         AND database = ?5 AND job = ?1 AND present)
         IS (SELECT count(*) FROM {own_rows})"
    );
    let parameters = (own.0, own.1, own.2, key(table), OLD);
    connection.query_row(&query, parameters, |row| row.get(0))
}

/// True when another job has published output without rows into a table.
fn has_empty(connection: &Connection, table: &str, run: &Name) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT EXISTS (SELECT 1 FROM main._casparian_output WHERE sink_table = ?1 AND present
         AND rows = 0 AND (database, job, incarnation) != (?2, ?3, ?4))",
        (
            key(table),
            &run.database,
            run.attempt.job_id,
            run.attempt.incarnation(),
        ),
        |row| row.get(0),
    )
}

/// An attempt of another job of the same database that has published into a table. `None` when another
/// database or an unknown publisher has.
fn other_writer(
    connection: &Connection,
    table: &str,
    run: &Name,
) -> rusqlite::Result<Option<Attempt>> {
    let found: Option<(bool, i64, i64)> = connection
        .query_row(
            "SELECT database = ?2, job, max(attempt) FROM main._casparian_output
             WHERE sink_table = ?1 AND present AND (database, job, incarnation) != (?2, ?3, ?4)
             GROUP BY database, job, incarnation ORDER BY 1 LIMIT 1",
            (
                key(table),
                &run.database,
                run.attempt.job_id,
                run.attempt.incarnation(),
            ),
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    Ok(found.and_then(|(is_ours, job, number)| is_ours.then(|| Attempt::new(job, number))))
}

/// FROM clause (without FROM) for the rows that are not the job's, in a table with these columns.
/// Parameters as in [`own_rows`].
fn rows_of_others(table: &str, columns: &[String]) -> String {
    let condition = Marks::condition(columns);
    format!("main.{} WHERE NOT ({condition})", quoted(table))
}

/// FROM clause (without FROM) for the recorded rows of all jobs of a database, in a table with these
/// columns. Parameters: `?1` is the table's key, `?2` the database, `?3` its suffix in the column
/// `_database`.
pub(super) fn replaced_rows(table: &str, columns: &[String]) -> String {
    let has = |name: &str| columns.iter().any(|column| column == name);
    let mut condition = String::new();
    if has(Marks::INCARNATION) {
        condition.push_str(" AND NULLIF(o.incarnation, 0) IS t._incarnation");
    }
    condition.push_str(match has(Marks::DATABASE) {
        true => " AND t._database IS ?3",
        false => " AND ?3 IS NULL",
    });
    // SQLite uses the index for the IN list.
    let recorded = "FROM main._casparian_output AS o
         WHERE o.sink_table = ?1 AND o.database = ?2 AND o.present";
    format!(
        "main.{} AS t WHERE t._job_id IN (SELECT o.job {recorded})
         AND EXISTS (SELECT 1 {recorded} AND o.job = t._job_id {condition})",
        quoted(table)
    )
}

/// Deletes the recorded rows of all jobs of the same database.
fn replace(
    target: &Target,
    connection: &Connection,
    name: &str,
    columns: &[String],
    marks: &Marks,
) -> Result<(), Error> {
    let path = &target.database;
    let fail = |error: rusqlite::Error| failure(path, &error);
    let run = &target.run;
    let rows = replaced_rows(name, columns);
    let table = key(name);
    let parameters = (&table, &run.database, &marks.database);
    connection
        .execute(&deletion(&rows), parameters)
        .map_err(fail)?;
    triggers::check(path, connection, name, false, (&rows, parameters), 0)?;
    connection
        .execute(
            "UPDATE main._casparian_output SET present = 0, rows = 0
             WHERE sink_table = ?1 AND database = ?2 AND present",
            (&table, &run.database),
        )
        .map_err(fail)?;
    Ok(())
}
