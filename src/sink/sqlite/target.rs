//! What a publish does to a target database.

use std::path::PathBuf;

use crate::job::{History, Mode};
use crate::sink::folder::Name;

/// The rows of one sink.
pub(in crate::sink) struct Table {
    pub(in crate::sink) name: String,
    pub(in crate::sink) topic: String,
    pub(in crate::sink) mode: Mode,
    /// Its table in the stage is `s<index>`.
    pub(in crate::sink) index: usize,
    pub(in crate::sink) rows: u64,
    /// Names and types of the columns, as JSON; see [`Artifact::columns`](crate::sink::Artifact).
    pub(in crate::sink) columns: Option<String>,
}

/// A target database, and the tables that a publish fills in it.
pub(in crate::sink) struct Target {
    pub(in crate::sink) database: PathBuf,
    pub(in crate::sink) tables: Vec<Table>,
    /// The attempt.
    pub(in crate::sink) run: Name,
    /// URIs that receipts of the job name.
    pub(in crate::sink) previous: Vec<String>,
    /// The file version of the job.
    pub(in crate::sink) file_version_id: i64,
    /// The earlier attempts, and this attempt's key.
    pub(in crate::sink) history: History,
    /// Tables that belong to other databases may be used.
    pub(in crate::sink) share: bool,
}
