//! The vocabulary of a job, from the queue's row to the published file: what runs ([`Job`],
//! [`Plugin`]), which try it is ([`Attempt`]), where its output goes ([`Sink`]), how it ended
//! ([`Receipt`], [`Cause`]), and who a peer has proved to be ([`User`]).
//!
//! Each is defined here once. The store fills a [`Job`] from rows, the sentinel sends it as
//! DISPATCH, the worker reads it back from there, and the sinks write for it. Nothing here does
//! I/O.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod attempt;
mod content;
mod history;
mod parameters;
mod receipt;
mod settlement;
mod sink;
#[cfg(any(feature = "sentinel", feature = "worker"))]
pub(crate) mod text;
mod user;

use std::sync::Arc;
use std::time::Duration;

pub use attempt::{Attempt, Loss};
pub use content::{Content, mtime_ns, mtime_s};
pub use history::{History, Past, PastEnd};
pub use parameters::{Parameters, ParametersError};
pub use receipt::{ARTIFACTS_TRUNCATED, BARRED_BY, Cause, JobStatus, Receipt};
pub use settlement::{SETTLED_ATTEMPT, Settlement};
pub use sink::{Compression, Mode, QUEUE_TABLE, Sink, SinkError, Target, default_uri, parse_uri};
#[cfg(feature = "worker")]
pub(crate) use sink::{hash, name_parts};
pub use user::User;

/// A version of a plugin: what a job executes, and in which environment. Shared by reference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plugin {
    /// Its name.
    pub name: String,
    /// Its source.
    pub source_code: String,
    /// SHA-256 hex of the lockfile; empty = the default environment.
    pub env_hash: String,
    /// The lockfile; empty with an empty hash, and at a worker, which gets it by PREPARE_ENV.
    pub lockfile_content: String,
    /// SHA-256 hex of source and lockfile; empty when the sentinel did not send it.
    pub artifact_hash: String,
}

/// One attempt of a job, with everything a worker needs to run it.
#[derive(Clone, Debug)]
pub struct Job {
    /// The job and which of its attempts.
    pub attempt: Attempt,
    /// The input file.
    pub file_path: String,
    /// The input's version; goes into every row.
    pub file_version_id: i64,
    /// What that version says of the input's content; none from an old sentinel.
    pub content: Option<Content>,
    /// Where the topics go.
    pub sinks: Arc<[Sink]>,
    /// What the plugin is configured with.
    pub parameters: Parameters,
    /// What runs.
    pub plugin: Arc<Plugin>,
    /// UUID of the database that the job is from, 32 hex digits; none from an old sentinel.
    pub database: Option<Arc<str>>,
    /// URIs of what earlier receipts of the job named: this attempt replaces or removes them.
    pub previous: Vec<String>,
    /// The attempts before.
    pub history: History,
}

/// How long a worker may publish without asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Counted from when the worker sent the request that the lease answers.
    pub bound: Duration,
    /// The number of that request (`sequence`).
    pub request: u64,
}
