//! Schema and migrations, versioned by `PRAGMA user_version`.

use std::path::Path;

use rusqlite::{CachedStatement, Connection, Transaction, TransactionBehavior};

use super::Error;

/// One script for each version: script `n` migrates version `n` to `n + 1`. The reference system leaves
/// `user_version` at 0, so the first script creates its tables only where they do not exist.
const MIGRATIONS: &[&str] = &[
    include_str!("legacy.sql"),
    include_str!("queue.sql"),
    include_str!("sinks.sql"),
    include_str!("users.sql"),
    include_str!("attempts.sql"),
    include_str!("settle.sql"),
    include_str!("environments.sql"),
    include_str!("incarnations.sql"),
    include_str!("running.sql"),
    include_str!("ran_with.sql"),
    include_str!("old_peers.sql"),
    include_str!("dispatched.sql"),
    include_str!("overwritten.sql"),
    include_str!("worker_environments.sql"),
    include_str!("job_sandbox.sql"),
    include_str!("attempt_dispatched.sql"),
    include_str!("listed.sql"),
    include_str!("parameters.sql"),
    include_str!("counts.sql"),
];

/// Indexes that statements name (`INDEXED BY`). Without its index a statement fails. Another program may have
/// dropped one.
const INDEXES: &str = "
CREATE INDEX IF NOT EXISTS ix_casparian_claim
    ON cf_processing_queue (plugin_name, (coalesce(shared_count, 0) >= 2), priority DESC, id)
    WHERE status = 'QUEUED';
CREATE INDEX IF NOT EXISTS ix_casparian_running
    ON cf_processing_queue (id) WHERE status = 'RUNNING';
CREATE INDEX IF NOT EXISTS ix_casparian_retry
    ON cf_processing_queue (next_run_boot_id, next_run_boot_ms)
    WHERE status = 'PENDING' AND next_run IS NOT NULL;
CREATE INDEX IF NOT EXISTS ix_casparian_unsettled
    ON cf_processing_queue (id) WHERE unsettled = 1;
";

/// Creates the indexes that statements name and another program has dropped.
pub(super) fn restore_indexes(connection: &Connection) -> Result<(), Error> {
    Ok(connection.execute_batch(INDEXES)?)
}

/// Prepares a statement, without its `INDEXED BY` where another program has dropped the index. For programs
/// that only read, which cannot create the index again.
pub(super) fn prepare_for_reading<'c>(
    connection: &'c Connection,
    query: &str,
) -> Result<CachedStatement<'c>, Error> {
    let prepared = connection.prepare_cached(query);
    let Some((before, after)) = query.split_once(" INDEXED BY ") else {
        return Ok(prepared?);
    };
    match prepared {
        Err(error) if is_index_missing(&error) => {
            let rest = after.split_once(' ').map_or("", |(_, rest)| rest);
            Ok(connection.prepare_cached(&format!("{before} {rest}"))?)
        }
        prepared => Ok(prepared?),
    }
}

pub(super) fn is_index_missing(error: &rusqlite::Error) -> bool {
    error.to_string().contains("no such index")
}

/// The version after all migrations.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

pub(super) fn version(connection: &Connection) -> Result<i64, Error> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Runs the missing migrations, each in one transaction with its version number. Safe when several programs
/// do it at once.
///
/// # Errors
/// [`Error::Columns`] names a table that lacks required columns.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), Error> {
    let columns = |missing: Vec<(String, Vec<String>)>| {
        missing
            .into_iter()
            .next()
            .map(|(table, columns)| Error::Columns {
                path: path.to_owned(),
                table,
                columns,
            })
    };
    if version(connection)? == 0 {
        let missing = missing_columns(connection, 0)?.into_iter();
        let queue = missing.filter(|(table, _)| table == "cf_processing_queue");
        if let Some(error) = columns(queue.collect()) {
            return Err(error);
        }
    }
    match run_migrations(connection, path) {
        Err(Error::Sqlite(error)) => {
            let version = version(connection)?;
            Err(columns(missing_columns(connection, version)?).unwrap_or(error.into()))
        }
        done => done,
    }
}

/// Tables that lack columns of a version, with these columns. Missing tables are not reported.
fn missing_columns(
    connection: &Connection,
    version: i64,
) -> Result<Vec<(String, Vec<String>)>, Error> {
    let own = Connection::open_in_memory()?;
    let count = usize::try_from(version).unwrap_or(0).max(1);
    for script in MIGRATIONS.iter().take(count) {
        own.execute_batch(script)?;
    }
    let columns = |connection: &Connection, table: &str| -> Result<Vec<String>, Error> {
        let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
        let names = statement.query_map([table], |row| row.get(0))?;
        Ok(names.collect::<Result<_, _>>()?)
    };
    let mut tables = own.prepare("SELECT name FROM sqlite_master WHERE type = 'table'")?;
    let mut missing = Vec::new();
    for table in tables.query_map([], |row| row.get::<_, String>(0))? {
        let table = table?;
        let found = columns(connection, &table)?;
        let lacks = |name: &String| !found.iter().any(|other| other.eq_ignore_ascii_case(name));
        let lacking: Vec<String> = columns(&own, &table)?.into_iter().filter(lacks).collect();
        if !found.is_empty() && !lacking.is_empty() {
            missing.push((table, lacking));
        }
    }
    Ok(missing)
}

fn run_migrations(connection: &mut Connection, path: &Path) -> Result<(), Error> {
    loop {
        let found = version(connection)?;
        if found > VERSION {
            return Err(Error::Newer {
                path: path.to_owned(),
                version: found,
                known: VERSION,
            });
        }
        if found == VERSION {
            return restore_indexes(connection);
        }
        let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
        // Another program may have migrated while this one waited for the lock.
        let locked = version(&transaction)?;
        if locked != found {
            continue;
        }
        let script = usize::try_from(found)
            .ok()
            .and_then(|index| MIGRATIONS.get(index));
        let Some(script) = script else {
            return Err(Error::Newer {
                path: path.to_owned(),
                version: found,
                known: VERSION,
            });
        };
        transaction.execute_batch(script)?;
        transaction.pragma_update(None, "user_version", found + 1)?;
        transaction.commit()?;
    }
}

/// Whether a database is another program's: it has tables or views, but none of the reference system's
/// tables, which every database of Casparian has.
pub(super) fn is_foreign(connection: &Connection) -> Result<bool, Error> {
    let legacy = MIGRATIONS.first().copied().unwrap_or_default();
    let mut statement = connection.prepare(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') \
         AND name NOT LIKE 'sqlite!_%' ESCAPE '!'",
    )?;
    let mut rows = statement.query([])?;
    let mut is_empty = true;
    while let Some(row) = rows.next()? {
        is_empty = false;
        let name = super::value::shown(super::value::cell(row, 0)).unwrap_or_default();
        if legacy.contains(&format!("CREATE TABLE IF NOT EXISTS {name} (")) {
            return Ok(false);
        }
    }
    Ok(!is_empty)
}

/// Names of triggers and views that the migrations do not create, or create with another text.
pub(super) fn foreign_code(connection: &Connection) -> Result<Vec<String>, Error> {
    let own = Connection::open_in_memory()?;
    for script in MIGRATIONS {
        own.execute_batch(script)?;
    }
    let own = code(&own)?;
    let found = code(connection)?.into_iter();
    Ok(found
        .filter(|one| !own.contains(one))
        .map(|(name, _)| name)
        .collect())
}

/// Name and SQL text of each trigger and view.
fn code(connection: &Connection) -> Result<Vec<(String, String)>, Error> {
    let mut statement = connection.prepare(
        "SELECT name, coalesce(sql, '') FROM sqlite_master WHERE type IN ('trigger', 'view')",
    )?;
    let rows = statement.query_map([], |row| {
        let text = |index| super::value::shown(super::value::cell(row, index));
        Ok((text(0).unwrap_or_default(), text(1).unwrap_or_default()))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
