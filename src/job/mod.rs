//! The types that describe a job, from the queue's row to the published file: what runs ([`Job`],
//! [`Plugin`]), an execution of it ([`Attempt`]), where its output goes ([`Sink`]), how it ended
//! ([`Receipt`], [`Cause`]), and the authenticated user of a peer ([`User`]).
//!
//! The store fills a [`Job`] from rows. The sentinel sends it as DISPATCH. The worker reads it from
//! DISPATCH. The sinks write output for it. Nothing here does I/O.

mod attempt;
mod content;
mod history;
#[cfg(feature = "worker")]
mod limit_of;
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
pub use history::{History, KEY_COUNT_BITS, Past, PastEnd};
#[cfg(feature = "worker")]
pub use limit_of::LimitOf;
pub use parameters::{Parameters, ParametersError};
pub use receipt::{ARTIFACTS_TRUNCATED, BARRED_BY, Cause, JobStatus, Receipt};
pub use settlement::{SETTLED_ATTEMPT, Settlement};
pub use sink::{Compression, Mode, QUEUE_TABLE, Sink, SinkError, Target, default_uri, parse_uri};
#[cfg(feature = "worker")]
pub(crate) use sink::{hash, name_parts};
pub use user::User;

/// A version of a plugin: what a job executes, and in which environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plugin {
    /// Its name.
    pub name: String,
    /// Its source.
    pub source_code: String,
    /// SHA-256 hex of the lockfile; empty = the default environment.
    pub env_hash: String,
    /// The lockfile. It is empty if the hash is empty, and in workers, which receive it by
    /// PREPARE_ENV.
    pub lockfile_content: String,
    /// SHA-256 hex of source and lockfile; empty if the sentinel did not send it.
    pub artifact_hash: String,
}

/// One attempt of a job, with everything that a worker needs to run it.
#[derive(Clone, Debug)]
pub struct Job {
    /// The job's ID and the attempt's number.
    pub attempt: Attempt,
    /// The input file.
    pub file_path: String,
    /// ID of the input's file version; a column of every output row.
    pub file_version_id: i64,
    /// The input's content, according to the file version; `None` from an old sentinel.
    pub content: Option<Content>,
    /// The sinks of its topics.
    pub sinks: Arc<[Sink]>,
    /// The parameters of the plugin.
    pub parameters: Parameters,
    /// The plugin that runs.
    pub plugin: Arc<Plugin>,
    /// UUID of the job's database, 32 hex digits; `None` from an old sentinel.
    pub database: Option<Arc<str>>,
    /// URIs of the output in earlier receipts of the job: this attempt replaces or removes it.
    pub previous: Vec<String>,
    /// The earlier attempts of the job, and the key of this one.
    pub history: History,
}

// Moved from the row to the message; its large parts are shared.
const _: () = assert!(size_of::<Job>() <= 240);

/// How long a worker may publish an attempt without a further answer from the sentinel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Length of the lease, counted from when the worker sent the request that the lease answers.
    pub bound: Duration,
    /// The number of that request (`sequence`).
    pub request: u64,
}
