//! Arrow batches → files: sink URIs, the Parquet writer, the SQLite sink, staging, publishing.
//!
//! Everything here blocks and runs on a writer thread that the worker owns, one a job.
//!
//! Invariants:
//! - Output is written under `<root>/.casparian/staging`, synced, and only then made visible by
//!   a rename (Parquet) or one transaction (SQLite): no reader sees a part of it.
//! - The job's id is in the file's name, so for a job and a sink at most one file is visible,
//!   and a further attempt replaces it.
//! - No path leaves the output root, whatever the URI or a symbolic link says.
//! - Memory is bounded whatever the size of the output: row groups are written out by size.
//!
//! What it does not do: it knows nothing of guests, frames or the control protocol.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod output;
mod parquet;
mod sqlite;
mod staging;

use std::fmt;
use std::path::PathBuf;

use crate::job::SinkError;

pub use output::{Artifact, JobOutput, Staged};
pub use staging::Staging;

/// Why output could not be written.
#[derive(Debug)]
pub enum Error {
    /// A sink's text is refused.
    Sink(SinkError),
    /// A symbolic link leads out of the root.
    Outside {
        /// The file.
        path: PathBuf,
    },
    /// Two sinks of the job mean the same file.
    SameFile {
        /// The file.
        path: PathBuf,
    },
    /// The sink has output already, and its mode is `error`.
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// The plugin's batches do not all have the same schema.
    SchemaChanged {
        /// The sink's topic.
        topic: String,
        /// What the first batch had.
        expected: String,
        /// What a later one has.
        got: String,
    },
    /// A column that the sink cannot store.
    Column {
        /// Its name.
        column: String,
        /// Why.
        reason: String,
    },
    /// The Parquet writer failed.
    Parquet(String),
    /// SQLite failed.
    Sqlite {
        /// The database.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file could not be written.
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Sink(error) => error.fmt(f),
            Error::Outside { path } => write!(
                f,
                "{}: a symbolic link leads out of the output folder",
                path.display()
            ),
            Error::SameFile { path } => {
                write!(
                    f,
                    "two sinks of the job write the same file {}",
                    path.display()
                )
            }
            Error::Exists { path } => write!(
                f,
                "{} is there already and the sink's mode is error",
                path.display()
            ),
            Error::SchemaChanged {
                topic,
                expected,
                got,
            } => write!(
                f,
                "the schema of topic {topic} changed half-way: expected {expected}, got {got}"
            ),
            Error::Column { column, reason } => write!(f, "column {column:?}: {reason}"),
            Error::Parquet(reason) => write!(f, "writing Parquet: {reason}"),
            Error::Sqlite { path, reason } => write!(f, "database {}: {reason}", path.display()),
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {}

impl From<SinkError> for Error {
    fn from(error: SinkError) -> Self {
        Error::Sink(error)
    }
}

impl Error {
    fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Error::Io {
            path: path.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests;
