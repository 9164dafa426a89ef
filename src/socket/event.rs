//! What a socket tells its owner about connections.

use std::fmt;
use std::time::Duration;

use super::PeerId;
use crate::reactor::Endpoint;
use crate::zmtp;

/// A change in the life of a connection, in order per peer. Unread events are bounded: the
/// oldest go first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A listener took a connection; it has no routing id yet.
    Accepted {
        /// The peer.
        peer: PeerId,
        /// Its address, for people.
        address: String,
    },
    /// A connecting socket's transport is up.
    Connected {
        /// The peer.
        peer: PeerId,
        /// Where to.
        endpoint: Endpoint,
    },
    /// The handshake is done: the peer can be sent to.
    Established {
        /// The peer.
        peer: PeerId,
        /// Its routing id, given or made up.
        identity: Vec<u8>,
    },
    /// The connection is gone.
    Disconnected {
        /// The peer; its id is dead now unless a retry follows.
        peer: PeerId,
        /// Its routing id; empty when the handshake was not done.
        identity: Vec<u8>,
        /// Why.
        reason: DisconnectReason,
    },
    /// A connecting socket will try again.
    RetryIn {
        /// The peer.
        peer: PeerId,
        /// The pause.
        pause: Duration,
    },
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DisconnectReason {
    /// The peer closed it.
    Closed,
    /// The transport failed.
    Io(String),
    /// The peer broke the protocol, refused us, or went silent.
    Protocol(zmtp::Error),
    /// A newcomer with the same identity took its place.
    Handover,
    /// The identity belongs to a living peer, and handover is off.
    IdentityInUse,
    /// A bound on connections or pending handshakes was reached.
    TooMany,
    /// The owner closed it.
    Owner,
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DisconnectReason::Closed => f.write_str("closed by the peer"),
            DisconnectReason::Io(error) => f.write_str(error),
            DisconnectReason::Protocol(error) => error.fmt(f),
            DisconnectReason::Handover => f.write_str("its identity was taken over"),
            DisconnectReason::IdentityInUse => f.write_str("its identity is in use"),
            DisconnectReason::TooMany => f.write_str("too many connections"),
            DisconnectReason::Owner => f.write_str("closed by us"),
        }
    }
}
