//! What the control state and the loop around it pass to each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Capabilities, caps};
use crate::job::{Attempt, Cause, Loss, Receipt, User};
use crate::protocol::{self, HEADER_SIZE, Header, OpCode, Payload};
use crate::socket::PeerId;
use crate::store::Upload;

/// The sender of a message.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// Its connection.
    pub peer: PeerId,
    /// Its routing ID.
    pub routing_id: &'a [u8],
    /// Who it has proved to be, where that is asked for.
    pub user: Option<&'a User>,
}

/// One change of the iteration's transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A worker is connected, or what it reports of itself has changed.
    WorkerOnline {
        /// Its ID.
        worker_id: String,
        /// Who it proved to be.
        user: Option<User>,
        /// Its host.
        hostname: String,
        /// Its process.
        pid: Option<i64>,
        /// What it may run.
        capabilities: Vec<String>,
        /// Jobs at a time.
        slots: usize,
        /// Why it takes no jobs for now.
        trouble: Option<String>,
        /// Environments whose jobs fail there for now, with the reason.
        environments: BTreeMap<String, String>,
        /// What an old worker is known by after a restart.
        routing_id: Option<String>,
    },
    /// A worker is disconnected.
    WorkerOffline {
        /// Its ID.
        worker_id: String,
    },
    /// A worker reports an environment as ready.
    EnvironmentReady {
        /// The worker's ID.
        worker_id: String,
        /// The lockfile's hash.
        env_hash: String,
        /// Its `bin/python` there.
        interpreter_path: String,
        /// It was there already.
        cached: bool,
    },
    /// A worker has not got an environment.
    EnvironmentFailed {
        /// The worker's ID.
        worker_id: String,
        /// The lockfile's hash.
        env_hash: String,
    },
    /// A process has connected as this worker: what was reported as ready before does not count.
    EnvironmentsUnknown {
        /// The worker's ID.
        worker_id: String,
    },
    /// Workers are still connected.
    Seen {
        /// Their IDs.
        workers: Vec<String>,
    },
    /// A worker reports the end of an attempt. The database compares attempt and worker; with an
    /// attempt that is not numbered the worker alone.
    End {
        /// The worker's routing ID.
        routing_id: Vec<u8>,
        /// Its ID.
        worker_id: String,
        /// The attempt.
        attempt: Attempt,
        /// How it ended.
        receipt: Box<Receipt>,
    },
    /// A worker reports on a settlement.
    Settled {
        /// The worker's routing ID.
        routing_id: Vec<u8>,
        /// The settlement's attempt.
        attempt: Attempt,
        /// What it found, or why it could not.
        receipt: Box<Receipt>,
    },
    /// An attempt has no holder any more.
    Release {
        /// The attempt.
        attempt: Attempt,
        /// [`Cause::Lost`], or [`Cause::Operator`] when it cannot be dispatched.
        cause: Cause,
        /// How its worker was lost.
        loss: Loss,
        /// In words.
        reason: String,
    },
    /// A client deploys a plugin.
    Deploy {
        /// Its connection.
        peer: PeerId,
        /// The job ID of its message, which the answer repeats.
        job_id: u64,
        /// Who it is, for the log.
        from: String,
        /// What is deployed.
        upload: Arc<Upload>,
    },
    /// An attempt was never started by its worker: it is queued again, and nothing is counted.
    GiveBack {
        /// The attempt.
        attempt: Attempt,
        /// In words.
        reason: String,
    },
}

impl Change {
    /// Bytes of the receipt in it, roughly.
    pub(super) fn receipt_size(&self) -> usize {
        match self {
            Change::End { receipt, .. } | Change::Settled { receipt, .. } => caps::size(receipt),
            _ => 0,
        }
    }
}

/// A message that may leave once the transaction is committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// To which connection.
    pub peer: PeerId,
    /// The header's job ID.
    pub job_id: u64,
    /// What is sent.
    pub body: Body,
}

/// The payload of a message.
// A message lives for one iteration; a box would cost an allocation each.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// DISPATCH, serialised.
    Dispatch {
        /// The attempt that is dispatched.
        attempt: Attempt,
        /// The JSON.
        json: Vec<u8>,
    },
    /// Any other.
    Payload(Payload<'static>),
}

impl Outgoing {
    /// Header and payload.
    pub fn encode(&self) -> Result<([u8; HEADER_SIZE], Vec<u8>), protocol::Error> {
        match &self.body {
            Body::Payload(payload) => payload.encode(self.job_id),
            Body::Dispatch { json, .. } => {
                let payload_size = u32::try_from(json.len())
                    .map_err(|_| protocol::Error::PayloadTooLarge { got: json.len() })?;
                let header = Header {
                    opcode: OpCode::Dispatch,
                    job_id: self.job_id,
                    payload_size,
                };
                Ok((header.encode(), json.clone()))
            }
        }
    }
}

/// What a worker may run now.
#[derive(Clone, Debug)]
pub struct Able {
    /// Its plugins.
    pub capabilities: Capabilities,
    /// Environments whose jobs it does not take now.
    pub avoids: Vec<String>,
}

impl Able {
    /// True for jobs of a plugin with this environment.
    pub fn runs(&self, plugin: &str, env_hash: &str) -> bool {
        let avoids = || self.avoids.iter().any(|avoided| avoided == env_hash);
        self.capabilities.allows(plugin) && !avoids()
    }
}

/// A worker with free slots.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Routing ID.
    pub routing_id: Vec<u8>,
    /// Its ID.
    pub worker_id: String,
    /// Its host.
    pub hostname: String,
    /// Its process.
    pub pid: Option<i64>,
    /// What it may run.
    pub able: Able,
    /// Free slots.
    pub free: usize,
    /// It holds no job, but such as wait for their environments.
    pub is_idle: bool,
    /// It is of the old system.
    pub is_old: bool,
}
