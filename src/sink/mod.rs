//! Writing Arrow batches to sinks: the Parquet writer, the SQLite sink, staging, publishing, recovery.
//!
//! Everything here blocks. It runs on writer threads of the worker, one for each job. [`JobOutput`] takes
//! the batches. [`Staged`] is complete and synced output that is not visible. [`Staged::publish`] makes
//! it visible. A [`Root`] is an output root, which several workers of several databases may share.
//!
//! Invariants:
//! - An output belongs to (database, job, incarnation, topic). At most one is visible, and a later
//!   attempt replaces it.
//! - No reader sees a part of a file. Output becomes visible by a rename (Parquet) or one transaction
//!   (SQLite), after it is synced.
//! - A barred attempt cannot change visible output, in whatever state its process is.
//! - Only output that a record of the database or a receipt of the job names is replaced or removed.
//! - What a process leaves unfinished is finished or undone by the next process that opens the root.
//! - No path below the root leads out of it, whatever a URI or a symbolic link contains.
//! - Memory is bounded for outputs of any size: row groups are written out by size.
//!
//! Files:
//! - the root: `root`, `anchor` (identity of the root's folder), `mounts` (mount points of sinks),
//!   `fault` (whether a failure is the worker's fault), `folder` (folders of attempts, the fence), `bar`,
//!   `claims` (modes `replace` and `error`), `files` and `names` (operations on files, their names),
//!   `location` (one file under several paths);
//! - publishing: `plan`, `publish`, `record` (the journal), `recover`, `siblings` (output that prevents
//!   mode `error` from publishing), `old_peers` (output of the reference system), `settle`, `withdraw`
//!   (removal);
//! - checks: `published` (whether output is unchanged), `check`, `adopt`;
//! - layouts: `datasets` (folders of topics), `relocate` and `moving` (moves between layouts);
//! - writing: `output`, `columns`, `parquet`, `segments`, `sqlite`;
//! - types: `types` (how a type is stored), `merge` (the common type of several), `metadata` (the common
//!   metadata of several schemas; `pandas`, `geo`), `convert` (values), `schema` (the types that readers
//!   of a file find);
//! - memory: `logical` and `budget`; `panics` (panics of libraries as errors).
//!
//! This module does not handle leases, plugin processes, frames or the control protocol.

mod adopt;
mod anchor;
mod bar;
mod budget;
mod check;
mod claims;
mod columns;
mod convert;
mod datasets;
mod error;
mod fault;
mod files;
mod folder;
mod footer;
mod geo;
mod json;
mod location;
mod logical;
mod merge;
mod metadata;
mod mounts;
mod moving;
mod named;
mod names;
mod old_peers;
mod output;
mod pandas;
mod panics;
mod parquet;
mod plan;
mod problem;
mod publish;
mod published;
mod record;
mod recover;
mod relocate;
mod root;
mod schema;
mod segments;
mod settle;
mod siblings;
mod sqlite;
mod staged;
mod table_output;
mod types;
mod withdraw;
mod wkb;

pub use adopt::Adopted;
pub use budget::Bounds;
pub use check::{Check, Expected, Found, Named};
pub use error::{DatabaseState, Error, raise_descriptor_limit};
pub use fault::Fault;
pub use output::JobOutput;
pub use panics::quiet_panics;
pub use problem::{Kind, Problem};
pub use publish::{Published, Refused};
pub use published::{PublishedOutput, Publisher, Receipted};
pub use record::MadeWith;
pub use relocate::{PublishedJob, Relocation};
pub use root::{Root, RootOptions, create_folder, create_own_folder, owner};
pub use schema::{columns_of_file, columns_of_receipt};
pub use staged::{Artifact, Staged};
pub use withdraw::Withdrawn;

#[cfg(test)]
mod tests;
