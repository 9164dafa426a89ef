//! Schema and migrations, versioned by `PRAGMA user_version`.

use std::collections::HashSet;
use std::path::Path;
use std::sync::OnceLock;

use rusqlite::{CachedStatement, Connection, Transaction, TransactionBehavior};

use super::Error;

/// One script for each version: script `n` migrates version `n` to `n + 1`. The reference system leaves
/// `user_version` at 0, so the first script creates its tables only where they do not exist.
pub(super) const MIGRATIONS: &[&str] = &[
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

/// A number that changes with each change of the schema.
pub(super) fn cookie(connection: &Connection) -> Result<i64, Error> {
    let mut statement = connection.prepare_cached("PRAGMA schema_version")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

/// An index or trigger that the migrations create.
#[derive(Debug)]
struct Object {
    kind: String,
    name: String,
    table: String,
    sql: String,
}

impl Object {
    /// It is of the reference system, whose programs may create it with another text.
    fn is_legacy(&self) -> bool {
        !self.name.starts_with("casparian_") && !self.name.starts_with("ix_casparian_")
    }
}

/// Indexes and triggers of a database, in the order of their creation.
fn objects(connection: &Connection) -> Result<Vec<Object>, Error> {
    let query = "SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master \
         WHERE type IN ('index', 'trigger') ORDER BY rowid";
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map([], |row| {
        let text = |index| super::value::shown(super::value::cell(row, index)).unwrap_or_default();
        Ok(Object {
            kind: text(0),
            name: text(1),
            table: text(2),
            sql: text(3),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The indexes and triggers that the migrations create.
fn own_objects() -> Result<&'static [Object], Error> {
    static OWN: OnceLock<Vec<Object>> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let own = Connection::open_in_memory()?;
    for script in MIGRATIONS {
        own.execute_batch(script)?;
    }
    let mut found = objects(&own)?;
    // SQLite itself creates indexes without a text.
    found.retain(|object| !object.sql.is_empty());
    Ok(OWN.get_or_init(|| found))
}

/// Indexes and triggers of ours that a database lacks, or that have another text there. Those of tables that
/// do not exist are left out.
fn changed_objects(connection: &Connection) -> Result<Vec<&'static Object>, Error> {
    let found = objects(connection)?;
    let find = |own: &Object| {
        let mut found = found.iter();
        found.find(|other| other.kind == own.kind && other.name.eq_ignore_ascii_case(&own.name))
    };
    let mut changed = Vec::new();
    for own in own_objects()? {
        let is_same = find(own).is_some_and(|found| own.is_legacy() || found.sql == own.sql);
        if !is_same && has_table(connection, &own.table)? {
            changed.push(own);
        }
    }
    Ok(changed)
}

fn has_table(connection: &Connection, name: &str) -> Result<bool, Error> {
    let query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1 COLLATE NOCASE";
    Ok(connection.prepare_cached(query)?.exists([name])?)
}

/// The trigger that notes when another program takes a job from its worker.
const TAKEN: &str = "casparian_job_taken";

/// Notes what [`TAKEN`] would have noted while it was missing: Casparian's own ends of an attempt set
/// `unsettled`.
const NOTE_TAKEN: &str = "
INSERT OR IGNORE INTO cf_job_attempt (job_id, attempt, status, attempt_key,
        dispatched, artifact_hash, sinks_hash)
    SELECT id, attempt, 'TAKEN', attempt_key, dispatched, artifact_hash, sinks_hash
    FROM cf_processing_queue WHERE unsettled IS NULL AND status IS NOT 'RUNNING'
        AND attempt_key IS NOT NULL AND typeof(attempt) = 'integer' AND attempt & 4294967295 > 0;
UPDATE cf_processing_queue SET unsettled = 1 WHERE unsettled IS NULL AND status IS NOT 'RUNNING'
    AND attempt_key IS NOT NULL AND typeof(attempt) = 'integer' AND attempt & 4294967295 > 0;
";

/// Creates the indexes and triggers again that other programs have dropped or changed, as tools do that
/// create a table anew to change it. Call it in a transaction that may write. Returns their names.
fn restore_objects(connection: &Connection) -> Result<Vec<&'static str>, Error> {
    let changed = changed_objects(connection)?;
    for object in &changed {
        let Object { kind, name, .. } = object;
        connection.execute_batch(&format!("DROP {kind} IF EXISTS {name}"))?;
    }
    for object in &changed {
        connection.execute_batch(&object.sql)?;
    }
    if changed.iter().any(|object| object.name == TAKEN) {
        connection.execute_batch("SAVEPOINT noted")?;
        match connection.execute_batch(NOTE_TAKEN).map_err(Error::from) {
            Ok(()) => connection.execute_batch("RELEASE noted")?,
            Err(error) if error.may_pass() || connection.is_autocommit() => return Err(error),
            // Code of another program in the schema refuses it.
            Err(error) => {
                connection.execute_batch("ROLLBACK TO noted; RELEASE noted")?;
                log::warn!("jobs that were taken from their workers are not noted: {error}");
            }
        }
    }
    Ok(changed.iter().map(|object| object.name.as_str()).collect())
}

fn log_restored(names: &[&str]) {
    if !names.is_empty() {
        log::warn!(
            "{}: another program has dropped or changed it; it was created again",
            names.join(", ")
        );
    }
}

/// As [`restore_objects`], in a transaction of its own.
pub(super) fn restore(connection: &mut Connection) -> Result<(), Error> {
    if changed_objects(connection)?.is_empty() {
        return Ok(());
    }
    let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
    let restored = restore_objects(&transaction)?;
    transaction.commit()?;
    log_restored(&restored);
    Ok(())
}

/// As [`restore_objects`], within a transaction that continues where that is not possible. True when nothing
/// was changed. A database of another version is left as it is.
pub(super) fn restore_within(connection: &Connection) -> Result<bool, Error> {
    if version(connection)? != VERSION {
        return Ok(true);
    }
    connection.execute_batch("SAVEPOINT restored")?;
    match restore_objects(connection) {
        Ok(restored) => {
            connection.execute_batch("RELEASE restored")?;
            log_restored(&restored);
            Ok(restored.is_empty())
        }
        Err(error) if error.may_pass() || connection.is_autocommit() => Err(error),
        Err(error) => {
            connection.execute_batch("ROLLBACK TO restored; RELEASE restored")?;
            log::warn!(
                "indexes and triggers that another program has dropped cannot be created again: \
                 {error}"
            );
            Ok(true)
        }
    }
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
        // A dump to which no migration applies.
        if has_table(connection, OWN_TABLE)?
            && complete_version(connection)?.is_none()
            && let Some(error) = columns(missing_columns(connection, VERSION)?)
        {
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

/// A table that the reference system does not have.
const OWN_TABLE: &str = "cf_worker_session";

/// The newest version whose tables, columns and keys a database of version 0 has. It was restored from a dump,
/// which does not contain the version. None for a database of the reference system, and for one that also has
/// a part of what later versions have.
fn complete_version(connection: &Connection) -> Result<Option<i64>, Error> {
    if !has_table(connection, OWN_TABLE)? {
        return Ok(None);
    }
    let found = parts(connection)?;
    let own = Connection::open_in_memory()?;
    let (mut complete, mut is_mixed, mut before) = (None, false, HashSet::new());
    for (script, version) in MIGRATIONS.iter().zip(1..) {
        own.execute_batch(script)?;
        let all = parts(&own)?;
        // The first version is that of the reference system. Its script may run again.
        if version > 1 && all.is_subset(&found) {
            (complete, is_mixed) = (Some(version), false);
        } else {
            is_mixed |= all.difference(&before).any(|part| found.contains(part));
        }
        before = all;
    }
    Ok(complete.filter(|_| !is_mixed))
}

/// The version of a database. For one that was restored from a dump, the version that its tables show.
pub(super) fn version_to_read(connection: &Connection) -> Result<i64, Error> {
    match version(connection)? {
        0 => Ok(complete_version(connection)?.unwrap_or(0)),
        version => Ok(version),
    }
}

/// The columns of all tables, and the keys of `cf_casparian`.
fn parts(connection: &Connection) -> Result<HashSet<String>, Error> {
    let columns = "SELECT m.name || ' ' || c.name FROM sqlite_master m, pragma_table_info(m.name) c \
         WHERE m.type = 'table'";
    let keys = "SELECT key FROM cf_casparian";
    let has_keys = has_table(connection, "cf_casparian")?;
    let mut parts = HashSet::new();
    for query in [Some(columns), has_keys.then_some(keys)]
        .into_iter()
        .flatten()
    {
        let mut statement = connection.prepare(query)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let part = super::value::shown(super::value::cell(row, 0)).unwrap_or_default();
            parts.insert(part.to_ascii_lowercase());
        }
    }
    Ok(parts)
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
            return restore(connection);
        }
        let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
        // Another program may have migrated while this one waited for the lock.
        let locked = version(&transaction)?;
        if locked != found {
            continue;
        }
        if found == 0
            && let Some(complete) = complete_version(&transaction)?
        {
            transaction.pragma_update(None, "user_version", complete)?;
            transaction.commit()?;
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
