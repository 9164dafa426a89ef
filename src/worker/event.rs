//! What threads of a worker tell its loop.

use super::slot::Failure;
use super::writer::Report;
use crate::guest::environment::Environment;

/// Sent over one channel, followed by a wake-up.
pub(super) enum ThreadEvent {
    /// The writer of the job with that number in this worker's life.
    Writer { serial: u64, report: Report },
    /// An environment is made, or could not be.
    Environment {
        hash: String,
        result: Result<Environment, Failure>,
    },
    /// The worker has tested itself.
    SelfTest(Result<(), String>),
}
