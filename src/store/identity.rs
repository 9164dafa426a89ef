//! The identity of a database: a random UUID in it, and the file that was opened.
//!
//! Outputs belong to (database UUID, job, incarnation, topic). So two databases with the same UUID would
//! replace each other's files. [`Store::new_identity`] gives a copy its own UUID.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use rusqlite::types::ValueRef;

use super::value::{Malformed, cell, integer, malformed, number, shown};
use super::{Error, Store, io_passes};
use crate::job::Attempt;

/// The highest incarnation of the triggers. Several jobs with the same ID may have got it.
const INCARNATION_MAX: i64 = 2_147_483_647;

/// The last attempt of a job, where another one can follow: the attempt of the row, or a later one in the
/// history, when another program has set the row back. `given` = the last incarnation that was given. A
/// number of a higher incarnation was set by another program, and is invalid.
pub(super) fn last_attempt(
    [row, history]: [ValueRef<'_>; 2],
    given: ValueRef<'_>,
    job_id: i64,
) -> Result<Attempt, Malformed> {
    let last = usable_attempt(row, given, job_id);
    let known = match history {
        ValueRef::Null => None,
        history => usable_attempt(history, given, job_id).ok(),
    };
    match (last, known) {
        (Ok(last), known) => Ok(known.map_or(last, |known| known.max(last))),
        // Another program has overwritten the row's number, so the history decides.
        (Err(_), Some(known)) => Ok(known),
        (Err(error), None) => Err(error),
    }
}

fn usable_attempt(
    value: ValueRef<'_>,
    given: ValueRef<'_>,
    job_id: i64,
) -> Result<Attempt, Malformed> {
    let column = "cf_processing_queue.attempt";
    let attempt = Attempt::new(job_id, integer(value, column, job_id)?.unwrap_or(0));
    let given = number(given).map_or(INCARNATION_MAX, |given| given.max(1));
    if attempt.incarnation() >= INCARNATION_MAX && given >= INCARNATION_MAX {
        let expected = "a lower number: IDs of deleted jobs are not used again until \
             `casparian init --new-identity` has been run on the database";
        return Err(malformed(column, job_id, value, expected));
    }
    let is_used_up = attempt.ordinal() >= i64::from(u32::MAX);
    if attempt.number < 0 || is_used_up || attempt.incarnation() > given {
        return Err(malformed(column, job_id, value, "the number of an attempt"));
    }
    Ok(attempt)
}

const WAL_REPLACED: &str = "its -wal file was removed or replaced";
const SHM_REPLACED: &str = "its -shm file was removed or replaced";

fn inode(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// A database as it was when it was opened.
pub(super) struct Identity {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
    /// Path, device and inode of each file that SQLite keeps beside it, and the reason that is reported when
    /// the file is missing. SQLite does not remove these files while a connection has them open. Empty where
    /// the journal mode is not WAL.
    beside: Vec<(PathBuf, (u64, u64), &'static str)>,
    database: Arc<str>,
}

impl Identity {
    /// Reads the identity. Gives the database a UUID where it has no valid one.
    pub(super) fn read(connection: &mut Connection, path: &Path) -> Result<Self, Error> {
        let fail = |error: std::io::Error| Error::Open {
            path: path.to_owned(),
            passes: io_passes(&error),
            reason: error.to_string(),
        };
        // Absolute, so that it stays valid when the working directory changes.
        let path = std::path::absolute(path).map_err(fail)?;
        let metadata = std::fs::metadata(&path).map_err(fail)?;
        let database = match database_id(connection)? {
            Some(id) => id,
            None => replace_id(connection, false)?,
        };
        let beside = match is_wal(connection)? {
            true => [("-wal", WAL_REPLACED), ("-shm", SHM_REPLACED)]
                .into_iter()
                .filter_map(|(suffix, reason)| {
                    let file = crate::beside::path(&path, suffix);
                    let inode = inode(&std::fs::symlink_metadata(&file).ok()?);
                    Some((file, inode, reason))
                })
                .collect(),
            false => Vec::new(),
        };
        Ok(Identity {
            path,
            beside,
            file: inode(&metadata),
            database,
        })
    }

    pub(super) fn database(&self) -> &Arc<str> {
        &self.database
    }
}

impl Store {
    /// The database's UUID, 32 lower-case hex digits.
    pub fn database_id(&self) -> Arc<str> {
        self.identity.database.clone()
    }

    /// Gives a copied or restored database a new UUID, and returns it. Files that its jobs have published
    /// belong to the old UUID, so jobs that run again do not replace them.
    pub fn new_identity(&mut self) -> Result<Arc<str>, Error> {
        self.identity.database = replace_id(&mut self.connection, true)?;
        Ok(self.identity.database.clone())
    }

    /// Gives a copy the UUID of the original database. Also reverts that it disclaimed the output that its
    /// receipts name ([`Store::new_identity`]).
    pub fn take_identity(&mut self, id: &str) -> Result<(), Error> {
        let transaction = Transaction::new(&mut self.connection, TransactionBehavior::Immediate)?;
        transaction.execute(
            "UPDATE cf_casparian SET value = ?1 WHERE key = 'database'",
            [id],
        )?;
        transaction.execute(
            "UPDATE cf_processing_queue SET published = NULL \
             WHERE status = 'COMPLETED' AND published = '[]' AND receipt IS NOT NULL",
            [],
        )?;
        let taken = database_id(&transaction)?;
        let taken = taken
            .filter(|taken| **taken == *id)
            .ok_or_else(|| Error::Row(format!("{id:?} is no identity of a database")))?;
        transaction.commit()?;
        self.identity.database = taken;
        Ok(())
    }

    /// Checks that the file at the path is still the one that was opened, that its WAL is the one that this
    /// connection writes to, and that its UUID is the same. Costs some `stat`s and a query.
    ///
    /// # Errors
    /// [`Error::Replaced`] when one of these has changed. Later writes would be lost or change another
    /// database, so the program should end.
    pub fn check_identity(&self) -> Result<(), Error> {
        let replaced = |reason| Error::Replaced {
            path: self.identity.path.clone(),
            reason,
        };
        match std::fs::metadata(&self.identity.path) {
            // This is checked first, because SQLite removes the WAL of an empty file.
            Ok(found) if inode(&found) == self.identity.file && found.len() == 0 => {
                return Err(replaced("it was truncated"));
            }
            Ok(found) if inode(&found) == self.identity.file => {}
            Ok(_) => return Err(replaced("it was replaced by another file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(replaced("it was removed"));
            }
            Err(error) => {
                return Err(Error::Open {
                    path: self.identity.path.clone(),
                    passes: io_passes(&error),
                    reason: error.to_string(),
                });
            }
        }
        for (file, opened, reason) in &self.identity.beside {
            let found = std::fs::symlink_metadata(file);
            if found.ok().map(|found| inode(&found)) != Some(*opened) {
                return Err(replaced(reason));
            }
        }
        if database_id(&self.connection)?.as_ref() != Some(&self.identity.database) {
            return Err(replaced("its content was replaced (it has another UUID)"));
        }
        Ok(())
    }
}

fn is_wal(connection: &Connection) -> Result<bool, Error> {
    let mode = connection.query_row("PRAGMA journal_mode", [], |row| Ok(shown(cell(row, 0))))?;
    Ok(mode.as_deref() == Some("wal"))
}

pub(super) fn database_id(connection: &Connection) -> Result<Option<Arc<str>>, Error> {
    let id = connection
        .prepare_cached("SELECT value FROM cf_casparian WHERE key = 'database'")?
        .query_row([], |row| Ok(shown(cell(row, 0))))
        .optional()?
        .flatten();
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    Ok(id
        .filter(|id| id.len() == 32 && id.chars().all(hex))
        .map(Arc::from))
}

fn replace_id(connection: &mut Connection, forget_outputs: bool) -> Result<Arc<str>, Error> {
    let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
    if !forget_outputs && let Some(id) = database_id(&transaction)? {
        // Another program has already set it.
        return Ok(id);
    }
    transaction.execute(
        "INSERT INTO cf_casparian (key, value) VALUES ('database', lower(hex(randomblob(16)))) \
         ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        [],
    )?;
    if forget_outputs {
        transaction.execute(
            "UPDATE cf_processing_queue SET published = '[]' \
             WHERE receipt IS NOT NULL OR published IS NOT NULL",
            [],
        )?;
        // Where the incarnations are used up, they begin again above those of existing rows.
        transaction.execute(
            "UPDATE cf_casparian SET value = 1 + coalesce((SELECT max(attempt >> 32) \
             FROM cf_processing_queue WHERE typeof(attempt) = 'integer' \
             AND attempt >> 32 < 1 << 30), 0) WHERE key = 'incarnation' AND value >= ?1",
            [INCARNATION_MAX],
        )?;
    }
    let id = database_id(&transaction)?
        .ok_or_else(|| Error::Row("cf_casparian has no usable key 'database'".to_owned()))?;
    transaction.commit()?;
    Ok(id)
}
