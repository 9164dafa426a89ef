//! What threads of a worker report to its loop.

use super::meter::Usage;
use super::settling::Standing;
use super::slot::Failure;
use super::writer::Report;
use crate::job::Attempt;
use crate::plugin::cache::InUse;
use crate::plugin::environment::Environment;

/// Sent over one channel, followed by a wake-up.
pub(super) enum ThreadEvent {
    /// The writer of the job with that number in this worker's life.
    Writer { serial: u64, report: Report },
    /// An environment is made, or could not be.
    Environment {
        hash: String,
        result: Result<Environment, Failure>,
        /// Keeps it from being evicted before it is used.
        lock: Option<InUse>,
    },
    /// A job's output is settled, or could not be.
    Settled {
        attempt: Attempt,
        result: Result<Standing, Failure>,
    },
    /// What running jobs use.
    Usage(Vec<Usage>),
    /// The worker has tested itself.
    SelfTest(Result<(), String>),
}
