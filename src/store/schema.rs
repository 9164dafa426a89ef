//! Schema and migrations, versioned by `PRAGMA user_version`.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::Error;

/// One script a version: script `n` brings version `n` to `n + 1`. The reference system leaves
/// `user_version` at 0, so the first script must find its tables in place or make them.
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
];

/// Indexes that statements name (`INDEXED BY`), so that they fail without them. Another program may
/// have dropped one.
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

/// The version after all migrations.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

pub(super) fn version(connection: &Connection) -> Result<i64, Error> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Runs what is missing, each migration in one transaction with its version number; safe when
/// several programs do it at once.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), Error> {
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
            connection.execute_batch(INDEXES)?;
            return Ok(());
        }
        let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
        // Another program may have migrated while we waited for the lock.
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

/// Whether a database is another program's: it has tables or views, and none of the reference
/// system, which every database of ours has.
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

/// Names of triggers and views that the migrations do not make, or make otherwise.
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

/// Name and text of each trigger and view.
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
