//! What the engine and its driver exchange.

use core::net::SocketAddr;

use super::super::{PeerId, TransportError};
use crate::reactor::Endpoint;

/// A transport, named by the driver. The driver may use a number again after [`Action::Close`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::socket) struct LinkId(pub(in crate::socket) u32);

/// What the driver must do.
#[derive(Clone, Debug)]
pub(in crate::socket) enum Action {
    /// Resolve the host of an endpoint; answer by `handle_resolved`.
    Resolve { peer: PeerId, endpoint: Endpoint },
    /// The result of a lookup is not wanted any more.
    AbandonLookup { peer: PeerId },
    /// Start to connect; answer by `handle_connecting`, or by `handle_connect_failed` without a link.
    Connect {
        peer: PeerId,
        endpoint: Endpoint,
        /// The address of a tcp endpoint.
        address: Option<SocketAddr>,
    },
    /// Close a transport, after an attempt to write its last bytes.
    Close { link: LinkId, last: Vec<u8> },
    /// Write the last bytes if possible, and shut down the sending direction.
    ShutDown { link: LinkId, last: Vec<u8> },
    /// Close the listener with this index.
    CloseListener { index: usize },
}

/// Why a transport could not be connected, or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::socket) struct Failure {
    /// No process listens there.
    pub(in crate::socket) is_refused: bool,
    pub(in crate::socket) error: TransportError,
}

/// What `poll_receive` or `poll_drive` returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::socket) enum Step {
    /// A message of this peer is available.
    Message(PeerId),
    /// Read into `read_space`, and report the result by `handle_read`.
    Read(PeerId, LinkId),
    /// Determine which user of this host owns the other end; answer by `handle_user`.
    #[cfg(feature = "process")]
    FindUser(PeerId, LinkId),
    /// Nothing to do now.
    Idle,
}

/// Result of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::socket) enum Read {
    /// So many bytes, at least one.
    Bytes(usize),
    /// The end of the stream.
    End,
    /// Nothing is waiting.
    Blocked,
    Failed(TransportError),
}

/// Result of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::socket) enum Written {
    /// So many bytes were accepted.
    Bytes(u64),
    /// No byte can be accepted now.
    Blocked,
    Failed(TransportError),
}

/// A readiness event of a transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::socket) struct Readiness {
    pub(in crate::socket) is_readable: bool,
    pub(in crate::socket) is_writable: bool,
    /// The peer has shut down its sending direction, or the transport has failed.
    pub(in crate::socket) is_ended: bool,
}
