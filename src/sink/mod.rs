//! Arrow batches → files: the Parquet writer, the SQLite sink, staging, publishing, recovery.
//!
//! Everything here blocks and runs on a writer thread that the worker owns, one a job.
//! [`JobOutput`] takes the batches, [`Staged`] is complete and synced output that is not visible,
//! [`Staged::publish`] makes it visible. A [`Root`] is a folder that several workers of several
//! databases may share.
//!
//! Invariants:
//! - An output belongs to (database, job, incarnation, topic). At most one is visible, and a
//!   further attempt replaces it.
//! - No reader sees a part of a file: it becomes visible by a rename (Parquet) or one transaction
//!   (SQLite), after it is synced.
//! - An attempt that is barred cannot change what is visible, whatever state its process is in.
//! - Only what a record of the database or a receipt of the job names is replaced or removed.
//! - What a process leaves unfinished is finished or undone by the next that opens the root.
//! - No path leaves the output root, whatever the URI or a symbolic link says.
//! - Memory is bounded whatever the size of the output: row groups are written out by size.
//!
//! Files: `anchor` (which folder the root is), `fault` (what a failure says about it), `folder` (the fence), `bar`, `claims` (modes `replace` and `error`), `record` (the
//! journal), `plan`, `publish`, `recover`, `settle`, `standing`, `check`, `adopt`; `location` (one file under several paths);
//! `siblings` (what is in the way of mode `error`); `datasets` (folders of topics), `relocate` (their files' move there); `output`, `columns`, `parquet`, `segments`, `sqlite` (writing),
//! `types` (what is stored of a type), `merge` (one type of several), `metadata` (one metadata of several; `pandas`, `geo`), `convert` (values), `logical` and `budget` (what it
//! takes of memory); `schema` (the types that readers of a file find).
//!
//! What it does not do: it has no part in leases, plugin processes, frames or the control
//! protocol.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

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
mod geo;
mod location;
mod logical;
mod merge;
mod metadata;
mod mounts;
mod moving;
mod names;
mod old_peers;
mod output;
mod pandas;
mod panics;
mod parquet;
mod plan;
mod publish;
mod record;
mod recover;
mod relocate;
mod root;
mod schema;
mod segments;
mod settle;
mod siblings;
mod sqlite;
mod standing;
mod types;
mod withdraw;

pub use adopt::Adopted;
pub use budget::Bounds;
pub use check::{Check, Expected, Found, Kind, Named, Problem};
pub use error::{Error, Refused, raise_descriptor_limit};
pub use fault::Fault;
pub use output::JobOutput;
pub use panics::quiet_panics;
pub use publish::{Artifact, Published, Staged};
pub use relocate::{Placed, Relocation};
pub use root::{Root, RootOptions, create_folder, create_own_folder, owner};
pub use schema::{columns_of_file, columns_of_receipt};
pub use standing::{Publisher, Receipted, Standing};
pub use withdraw::Withdrawn;

#[cfg(test)]
mod tests;
