//! Differences between a root and a database, as checks report them.

use std::fs;
use std::path::{Path, PathBuf};

use super::Error;
use super::error::DatabaseState;
use super::location;

/// The kind of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A folder of `.casparian` cannot be used.
    Folder,
    /// Other users may change one of Casparian's own folders or files.
    Permissions,
    /// The root belongs to another database, or its owner cannot be read.
    Owner,
    /// An attempt whose worker has ended left a folder in staging.
    DeadAttempt,
    /// A record cannot be read.
    Record,
    /// Output of a job was published by an attempt that the database does not have.
    Foreign,
    /// An attempt ended between its renames or commits.
    Unfinished,
    /// A record names output that no receipt names.
    NoReceipt,
    /// Output of a job whose row was deleted.
    NoRow,
    /// A move of files to another layout has stopped.
    Moving,
    /// Output of a job whose receipt names output in another root.
    Duplicate,
    /// Attempts are barred that the database does not have.
    Barred,
    /// A file, a database or rows that a receipt names do not exist.
    Missing,
    /// The size or content of a file is not that of its receipt.
    Changed,
    /// Something other than a regular file is at the path of a file or database in the root, or a link on
    /// this path leads out of the root.
    Obstructed,
    /// The same for a database outside the root.
    ObstructedOutside,
    /// The number of rows of a file or table is not that of its receipt.
    Rows,
    /// A file cannot be read as Parquet.
    Damaged,
    /// A SQLite database is damaged, or no database. No attempt of a job can write into it.
    DamagedDatabase,
    /// A program ended while it wrote into a SQLite database, which must be opened for writing first.
    UnfinishedDatabase,
    /// Another program has written a file again, with the same size and number of rows.
    Touched,
    /// Something in one of Casparian's own folders that no program of Casparian creates there.
    Stranger,
    /// It could not be compared.
    Unchecked,
}

/// A difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its kind.
    pub kind: Kind,
    /// The file, folder or table.
    pub subject: String,
    /// The difference, for messages.
    pub what: String,
}

impl Problem {
    pub(super) fn new(
        kind: Kind,
        subject: impl std::fmt::Display,
        what: impl Into<String>,
    ) -> Self {
        Problem {
            kind,
            subject: subject.to_string(),
            what: what.into(),
        }
    }

    pub(super) fn at(kind: Kind, path: &Path, what: impl Into<String>) -> Self {
        Problem::new(kind, path.display(), what)
    }

    /// The problem that an error prevents a comparison.
    pub(super) fn unchecked(subject: impl std::fmt::Display, error: &Error) -> Self {
        let kind = match error.database_state() {
            DatabaseState::Damaged => Kind::DamagedDatabase,
            DatabaseState::Unfinished => Kind::UnfinishedDatabase,
            DatabaseState::Other => Kind::Unchecked,
        };
        let what = match error {
            Error::Sqlite { path, reason, .. } => format!("database {}: {reason}", path.display()),
            error => error.to_string(),
        };
        Problem::new(kind, subject, what)
    }
}

/// The type of a directory entry, for messages. Links are not followed. `None` when it cannot be read.
pub(super) fn kind_of(path: &Path) -> Option<&'static str> {
    Some(match fs::symlink_metadata(path).ok()?.file_type() {
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_dir() => "a folder",
        kind if kind.is_file() => "a file",
        _ => "a FIFO, socket or device",
    })
}

/// The problem that something at a path must be removed before a job can publish there.
pub(super) fn obstruction(path: &Path, expected: &str) -> Problem {
    let kind = kind_of(path).unwrap_or("something else");
    let what = format!("{kind} is at its path, not a {expected}");
    Problem::at(Kind::Obstructed, path, what)
}

/// The problem that something other than a regular file is at the path of a database, or of a file that
/// SQLite keeps beside it. `given` is the database's path in a receipt, which links may have replaced
/// since: their targets are not named.
pub(super) fn no_database(root: &Path, database: &Path, given: &Path) -> Option<Problem> {
    let with = |path: &Path, suffix: &str| {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        PathBuf::from(file)
    };
    let is_other = |suffix: &&str| {
        let found = with(database, suffix).symlink_metadata();
        found.is_ok_and(|found| !found.is_file())
    };
    let mut suffixes = ["", "-journal", "-wal", "-shm"].into_iter();
    let suffix = suffixes.find(is_other)?;
    if location::is_inside(root, database) {
        return Some(obstruction(&with(database, suffix), "regular file"));
    }
    let mut problem = obstruction(&with(given, suffix), "regular file");
    problem.kind = Kind::ObstructedOutside;
    Some(problem)
}
