//! Output in a table, as records list it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::location::{self, FileId};
use super::{Root, files};

/// Rows in a table, published or to be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TableOutput {
    pub(super) topic: String,
    /// Absolute path of the SQLite database, for the worker that reads or writes the record.
    pub(super) database: String,
    /// Its path relative to the root, which is the same for every worker. `None` outside the root, and in
    /// records of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) below: Option<String>,
    pub(super) table: String,
    pub(super) rows: u64,
    pub(super) mode: String,
    /// Names and types of the columns, as JSON; see [`Artifact::columns`](super::Artifact).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) columns: Option<String>,
}

impl TableOutput {
    /// A table of which only database and name are known.
    pub(super) fn named(database: String, below: Option<String>, table: &str) -> Self {
        TableOutput {
            topic: String::new(),
            database,
            below,
            table: table.to_owned(),
            rows: 0,
            mode: String::new(),
            columns: None,
        }
    }

    /// Identifies the table, independent of the path that leads to its database.
    pub(super) fn identity(&self) -> (FileId, String) {
        let id = FileId::of(Path::new(&self.database));
        (id, self.table.to_ascii_lowercase())
    }

    /// Sets the database's path for this worker. Another worker may have written the record.
    pub(super) fn locate(&mut self, root: &Root) {
        if let Some(below) = self.below.as_deref().filter(|below| files::is_below(below)) {
            self.database = root.path().join(below).to_string_lossy().into_owned();
        }
        (self.database, self.below) = location::database(root.path(), &self.database);
    }
}
