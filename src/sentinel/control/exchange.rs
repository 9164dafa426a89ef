//! What the control state and the loop around it give each other.

use super::Capabilities;
use crate::job::{Attempt, Receipt};
use crate::protocol::Payload;
use crate::socket::PeerId;

/// Who a message is from.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// Its connection.
    pub peer: PeerId,
    /// Its routing id.
    pub identity: &'a [u8],
    /// Who it has proved to be, where that is asked for.
    pub user: Option<&'a str>,
}

/// One change of the turn's transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The worker is there, with what it said of itself.
    WorkerOnline {
        /// Its id.
        worker_id: String,
        /// Who it proved to be.
        user: Option<String>,
        /// Its host.
        hostname: String,
        /// Its process.
        pid: Option<i64>,
        /// What it may run.
        capabilities: Vec<String>,
        /// Jobs at a time.
        slots: usize,
    },
    /// The worker is gone.
    WorkerOffline {
        /// Its id.
        worker_id: String,
    },
    /// A job has ended; only the holder of the attempt ends it. Without an attempt the worker's
    /// id decides.
    Complete {
        /// Its worker.
        worker_id: String,
        /// The job.
        job_id: i64,
        /// The attempt the worker ran.
        attempt: Option<i64>,
        /// How it ended.
        receipt: Box<Receipt>,
    },
    /// The holder is gone or does not have the job: back to the queue.
    Release {
        /// The job and attempt.
        hold: Attempt,
        /// For people.
        reason: String,
    },
    /// A worker says it holds a job that this sentinel did not give it: true when the database
    /// says so too; otherwise the worker is told to stop.
    Adopt {
        /// Routing id.
        identity: Vec<u8>,
        /// Its id.
        worker_id: String,
        /// The job.
        job_id: i64,
        /// The attempt, where the worker says.
        attempt: Option<i64>,
    },
    /// A worker has said all that it holds: what the database has RUNNING with it besides goes
    /// back to the queue.
    Reconcile {
        /// Its id.
        worker_id: String,
        /// What it holds; a negative attempt is one it cannot tell.
        running: Vec<Attempt>,
    },
    /// Leases to extend.
    Renew {
        /// Jobs and attempts.
        holds: Vec<Attempt>,
        /// Connected workers, to be noted as seen.
        workers: Vec<String>,
    },
}

/// A message that may leave once the turn is committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// To whom.
    pub peer: PeerId,
    /// The job of the header.
    pub job_id: u64,
    /// What.
    pub payload: Payload<'static>,
}

/// A worker with free slots.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Routing id.
    pub identity: Vec<u8>,
    /// Its id.
    pub worker_id: String,
    /// Its host.
    pub hostname: String,
    /// Its process.
    pub pid: Option<i64>,
    /// What it may run.
    pub capabilities: Capabilities,
    /// Free slots.
    pub free: usize,
}
