//! Output that is complete in staging, and how published output is described.

use std::sync::Arc;

use super::Root;
use super::folder::Folder;
use crate::job::{Job, Mode, Target};

/// Name of the SQLite file with the staged rows of tables, in the attempt's folder.
pub(super) const STAGE: &str = "stage";

/// What a job published to one sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// The sink's topic; at most 255 bytes.
    pub topic: String,
    /// `file:///…` or `sqlite:///…/table`.
    pub uri: String,
    /// Number of rows.
    pub rows: u64,
    /// Bytes of the file; 0 for a table.
    pub size_bytes: u64,
    /// SHA-256 of the file in hex digits. `None` for a table, and for a file of an earlier release.
    pub sha256: Option<String>,
    /// Names and types of a table's columns, as JSON. `None` for a file, and where the text would be too
    /// long.
    pub columns: Option<String>,
}

/// A sink's output, complete in staging.
pub(super) struct StagedSink {
    pub(super) topic: String,
    pub(super) target: Target,
    pub(super) mode: Mode,
    pub(super) bay: Option<String>,
    /// Name of its staged file, or of its table in the stage, is `s<index>`.
    pub(super) index: usize,
    pub(super) rows: u64,
    /// SHA-256 of the file in hex digits; `None` for a table.
    pub(super) sha256: Option<String>,
    /// Names and types of a table's columns, as JSON; see [`Artifact::columns`].
    pub(super) columns: Option<String>,
}

/// Output that is complete on disk and not visible. Dropping it removes the output.
pub struct Staged {
    pub(super) root: Arc<Root>,
    pub(super) job: Arc<Job>,
    pub(super) folder: Folder,
    pub(super) sinks: Vec<StagedSink>,
    pub(super) notes: Vec<String>,
}
