//! Types that the control state and the event loop exchange.

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
    /// Its user, where peers are authenticated.
    pub user: Option<&'a User>,
}

/// One change of the iteration's transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A worker is connected, or its own report about itself has changed.
    WorkerOnline {
        /// Its ID.
        worker_id: String,
        /// Its authenticated user.
        user: Option<User>,
        /// Its host.
        hostname: String,
        /// Its process.
        pid: Option<i64>,
        /// What it may run.
        capabilities: Vec<String>,
        /// Jobs at a time.
        slots: usize,
        /// Why it accepts no jobs for now.
        trouble: Option<String>,
        /// Environments that it reports as unusable for now, with the reason.
        environments: BTreeMap<String, String>,
        /// The routing ID by which a worker of the reference system is recognized after a restart of the
        /// sentinel.
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
        /// The path of its `bin/python` on the worker's host.
        interpreter_path: String,
        /// It already existed.
        cached: bool,
    },
    /// A worker does not have an environment.
    EnvironmentFailed {
        /// The worker's ID.
        worker_id: String,
        /// The lockfile's hash.
        env_hash: String,
    },
    /// Another process has connected as this worker. Environments that were reported before do not count.
    EnvironmentsUnknown {
        /// The worker's ID.
        worker_id: String,
    },
    /// Workers are still connected.
    Seen {
        /// Their IDs.
        workers: Vec<String>,
    },
    /// A worker reports the end of an attempt. It counts when attempt and worker match the row. Without an
    /// attempt number, only the worker is compared.
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
        /// What it found, or why it failed.
        receipt: Box<Receipt>,
    },
    /// An attempt no longer has a holder.
    Release {
        /// The attempt.
        attempt: Attempt,
        /// [`Cause::Lost`], or [`Cause::Operator`] when it cannot be dispatched.
        cause: Cause,
        /// How its worker was lost.
        loss: Loss,
        /// The reason as text.
        reason: String,
    },
    /// A client deploys a plugin.
    Deploy {
        /// Its connection.
        peer: PeerId,
        /// The job ID of its message, which the answer repeats.
        job_id: u64,
        /// The client, for the log.
        from: String,
        /// The deployment.
        upload: Arc<Upload>,
    },
    /// An attempt was never started by its worker. Its job is queued again, uncounted.
    GiveBack {
        /// The attempt.
        attempt: Attempt,
        /// The reason as text.
        reason: String,
    },
}

impl Change {
    /// Approximate bytes of the receipt in it.
    pub(super) fn receipt_size(&self) -> usize {
        match self {
            Change::End { receipt, .. } | Change::Settled { receipt, .. } => caps::size(receipt),
            _ => 0,
        }
    }
}

/// A message that may be sent after the transaction is committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// The connection to which it is sent.
    pub peer: PeerId,
    /// The header's job ID.
    pub job_id: u64,
    /// The payload.
    pub body: Body,
}

/// The payload of a message.
// Messages exist for one iteration only. Boxing would cost an allocation for each.
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
    /// Any other payload.
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

/// The jobs that a worker may run now.
#[derive(Clone, Debug)]
pub struct Able {
    /// Its plugins.
    pub capabilities: Capabilities,
    /// Environments of which it gets no jobs now.
    pub avoids: Vec<String>,
}

impl Able {
    /// True when it may run jobs of a plugin with this environment.
    pub fn runs(&self, plugin: &str, env_hash: &str) -> bool {
        let avoids = || self.avoids.iter().any(|avoided| avoided == env_hash);
        self.capabilities.allows(plugin) && !avoids()
    }
}

/// A worker with free slots.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Its routing ID.
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
    /// It holds no jobs except those that wait for their environments.
    pub is_idle: bool,
    /// It is a worker of the reference system.
    pub is_old: bool,
}
