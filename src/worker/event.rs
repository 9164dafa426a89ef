//! Reports of a worker's threads to its event loop.

use std::time::Duration;

use super::slot::Failure;
use crate::job::Attempt;
use crate::plugin::cache::InUse;
use crate::plugin::environment::Environment;
use crate::sink::Artifact;

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

/// Reports of a writer.
#[derive(Debug)]
pub(super) enum Report {
    /// It can accept a frame again.
    Room,
    /// The thread ends: the output could not be written and was removed.
    Failed(Failure),
    /// All output is complete on disk. The notes are for the job's log.
    Staged { notes: Vec<String> },
    /// Nothing was published, because the lease had ended. The output is staged as before.
    NotGranted,
    /// The thread ends: the output is visible.
    Published(Vec<Artifact>),
    /// The thread ends: the output was removed.
    Discarded,
}

impl Report {
    /// True if the thread ends after this report.
    pub(super) fn is_last(&self) -> bool {
        match self {
            Report::Room | Report::Staged { .. } | Report::NotGranted => false,
            Report::Failed(_) | Report::Published(_) | Report::Discarded => true,
        }
    }
}

/// Resource usage of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) serial: u64,
    /// CPU time of its processes, and of children that they have waited for.
    pub(super) cpu: Duration,
    /// Resident bytes of its processes. Pages that several processes share count in each, unless the sum
    /// exceeds the limit. Then each page counts once in total, but the result is at least the memory of the
    /// first process.
    pub(super) memory: u64,
    pub(super) processes: u64,
    /// Bytes in its working directory, without the plugin's own files. A lower bound if the walk was cut
    /// short.
    pub(super) scratch: u64,
}

/// A lost attempt whose complete output stays without a receipt, with that output. None if there is none.
pub(crate) type KeptOutput = Option<(i64, Vec<Artifact>)>;
