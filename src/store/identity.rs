//! Which database it is: a random UUID inside, and the file that was opened.
//!
//! Outputs belong to (database UUID, job, incarnation, topic), so two databases with one UUID
//! would replace each other's files. A copy gets its own by [`Store::new_identity`].

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::value::{cell, shown};
use super::{Error, Store};

/// A database as it was when it was opened.
pub(super) struct Identity {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
    database: Arc<str>,
}

impl Identity {
    /// Reads it; gives the database a UUID where it has none that can be used.
    pub(super) fn read(connection: &mut Connection, path: &Path) -> Result<Self, Error> {
        let fail = |error: std::io::Error| Error::Open {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        // Absolute, so that a change of the working directory does not matter.
        let path = std::path::absolute(path).map_err(fail)?;
        let metadata = std::fs::metadata(&path).map_err(fail)?;
        let database = match database_id(connection)? {
            Some(id) => id,
            None => replace_id(connection, false)?,
        };
        Ok(Identity {
            path,
            file: (metadata.dev(), metadata.ino()),
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

    /// Gives the database another UUID, for a copied or restored one; gives the new UUID. Files
    /// that its jobs published so far belong to the old UUID: jobs that run again do not replace
    /// them.
    pub fn new_identity(&mut self) -> Result<Arc<str>, Error> {
        self.identity.database = replace_id(&mut self.connection, true)?;
        Ok(self.identity.database.clone())
    }

    /// Checks that the path still names the file that was opened, and that the UUID in it is the
    /// same. Cheap: a `stat` and a lookup.
    ///
    /// # Errors
    /// [`Error::Replaced`] where not. What is written from then on is lost or goes to another
    /// database, so the program should end.
    pub fn check_identity(&self) -> Result<(), Error> {
        let replaced = |reason| Error::Replaced {
            path: self.identity.path.clone(),
            reason,
        };
        match std::fs::metadata(&self.identity.path) {
            Ok(found) if (found.dev(), found.ino()) == self.identity.file => {}
            Ok(_) => return Err(replaced("it was replaced by another file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(replaced("it was removed"));
            }
            Err(error) => {
                return Err(Error::Open {
                    path: self.identity.path.clone(),
                    reason: error.to_string(),
                });
            }
        }
        if database_id(&self.connection)?.as_ref() != Some(&self.identity.database) {
            return Err(replaced("its content was replaced (it has another UUID)"));
        }
        Ok(())
    }
}

fn database_id(connection: &Connection) -> Result<Option<Arc<str>>, Error> {
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
        // Another program was faster.
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
    }
    let id = database_id(&transaction)?
        .ok_or_else(|| Error::Row("cf_casparian has no usable key 'database'".to_owned()))?;
    transaction.commit()?;
    Ok(id)
}
