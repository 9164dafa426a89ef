//! Reports of a worker's threads to its event loop.

use super::meter::Usage;
use super::settling::KeptOutput;
use super::slot::Failure;
use super::writer::Report;
use crate::job::Attempt;
use crate::plugin::cache::InUse;
use crate::plugin::environment::Environment;

/// A report. It is sent over one channel, followed by a wake-up.
pub(super) enum ThreadEvent {
    /// From the writer of the job with that serial number.
    Writer { serial: u64, report: Report },
    /// An environment was created, or its creation failed.
    Environment {
        hash: String,
        result: Result<Environment, Failure>,
        /// Keeps the environment from being evicted before it is used.
        lock: Option<InUse>,
    },
    /// A job's output was settled, or its settlement failed.
    Settled {
        attempt: Attempt,
        result: Result<KeptOutput, Failure>,
    },
    /// Resource usage of running jobs.
    Usage(Vec<Usage>),
    /// Result of a self-test.
    SelfTest(Result<(), String>),
}

// Moved through a channel for each report.
const _: () = assert!(size_of::<ThreadEvent>() <= 136);
