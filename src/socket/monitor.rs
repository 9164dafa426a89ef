//! Events and counters of a socket's connections.

use std::fmt;
use std::time::Duration;

use super::{PeerId, TransportError};
use crate::reactor::Endpoint;
use crate::zmtp;

/// A change of a connection's state. The events of one peer are in order.
///
/// The number of unread events is limited: the oldest ones are dropped and counted in
/// [`Counters::events_dropped`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A listener is bound.
    Listening {
        /// Its endpoint, with the port that the system chose.
        endpoint: Endpoint,
    },
    /// A listener is closed.
    Closed {
        /// Its endpoint.
        endpoint: Endpoint,
    },
    /// Accepting a connection failed; the listener pauses for 200 ms.
    AcceptFailed {
        /// The listener's endpoint.
        endpoint: Endpoint,
        /// The system's error.
        error: TransportError,
    },
    /// A listener accepted a connection; its handshake is not done yet.
    Accepted {
        /// The peer.
        peer: PeerId,
        /// Its address, for messages to people.
        address: String,
    },
    /// The transport of a connecting peer is connected.
    Connected {
        /// The peer.
        peer: PeerId,
        /// The endpoint it is connected to.
        endpoint: Endpoint,
    },
    /// The transport of a connecting peer could not be connected.
    ConnectFailed {
        /// The peer.
        peer: PeerId,
        /// The reason.
        reason: DisconnectReason,
    },
    /// The handshake is done: messages can be sent to the peer.
    Established {
        /// The peer.
        peer: PeerId,
        /// Its routing ID: chosen by the peer or the owner, or generated.
        routing_id: Vec<u8>,
    },
    /// The connection ended before its handshake was done.
    HandshakeFailed {
        /// The peer.
        peer: PeerId,
        /// Its address, for messages to people.
        address: String,
        /// The reason.
        reason: DisconnectReason,
    },
    /// An established connection has ended.
    Disconnected {
        /// The peer. Its ID is invalid from now on, unless a retry follows.
        peer: PeerId,
        /// Its routing ID.
        routing_id: Vec<u8>,
        /// The reason.
        reason: DisconnectReason,
    },
    /// Queued messages will not be sent: their peer was removed or its routing ID changed, or too
    /// many connections ended while one of them was partly written.
    Unsent {
        /// The peer.
        peer: PeerId,
        /// The routing ID of the messages' peer.
        routing_id: Vec<u8>,
        /// The number of messages.
        messages: usize,
    },
    /// The socket will connect to the peer again.
    RetryIn {
        /// The peer.
        peer: PeerId,
        /// The pause before the attempt.
        pause: Duration,
    },
    /// The socket will not connect to the peer again, by its options.
    Stopped {
        /// The peer.
        peer: PeerId,
    },
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The peer closed it.
    Closed,
    /// The server closed it after HELLO of CURVE, without ERROR. The most likely cause is that the
    /// server's key is not the one configured here.
    Unanswered,
    /// The transport failed.
    Io(TransportError),
    /// Connection refused.
    ConnRefused(TransportError),
    /// The peer violated the protocol, refused the connection, or sent nothing for too long.
    Protocol(zmtp::Error),
    /// A new connection with the same routing ID replaced it.
    Handover,
    /// Another peer has the same routing ID, and may not be replaced.
    RoutingIdInUse,
    /// It belongs to a user of this host who is not admitted
    /// ([`Options::local_users`](super::Options::local_users)).
    #[cfg(feature = "process")]
    NotAdmitted(super::NotAdmitted),
    /// A limit on connections, pending handshakes or file descriptors was reached.
    TooMany,
    /// The limit on receive memory of all peers was reached, and this peer used most of it.
    OutOfMemory,
    /// Its credentials are no longer accepted: the key or user was removed or changed.
    Revoked,
    /// The credentials were changed during the handshake.
    CredentialsChanged,
    /// The owner closed it.
    Owner,
    /// The owner rejected its message ([`Socket::reject`](super::Socket::reject)).
    Rejected(String),
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DisconnectReason::Closed => f.write_str("closed by the peer"),
            DisconnectReason::Unanswered => f.write_str(
                "closed by the peer after HELLO of CURVE: most likely it has another key than the \
                 server key configured here",
            ),
            DisconnectReason::Io(error) | DisconnectReason::ConnRefused(error) => error.fmt(f),
            DisconnectReason::Protocol(error) => error.fmt(f),
            DisconnectReason::Handover => f.write_str("a new connection took its routing ID"),
            DisconnectReason::RoutingIdInUse => f.write_str("its routing ID is in use"),
            #[cfg(feature = "process")]
            DisconnectReason::NotAdmitted(why) => why.fmt(f),
            DisconnectReason::TooMany => f.write_str("too many connections"),
            DisconnectReason::OutOfMemory => {
                f.write_str("no memory left for the messages of all peers")
            }
            DisconnectReason::Revoked => f.write_str("its key is no longer authorized"),
            DisconnectReason::CredentialsChanged => f.write_str("the credentials were changed"),
            DisconnectReason::Owner => f.write_str("closed by us"),
            DisconnectReason::Rejected(why) => f.write_str(why),
        }
    }
}

/// The errors that it holds are shown as its text, so `source` is the source of those.
impl std::error::Error for DisconnectReason {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DisconnectReason::Io(error) | DisconnectReason::ConnRefused(error) => error.source(),
            DisconnectReason::Protocol(error) => error.source(),
            _ => None,
        }
    }
}

/// Counters since the socket was created. None decreases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Connections accepted by listeners.
    pub accepted: u64,
    /// Transports connected to peers.
    pub connected: u64,
    /// Failed attempts to connect a transport.
    pub connect_failed: u64,
    /// Completed handshakes.
    pub established: u64,
    /// Connections that ended before their handshake was done, for any reason.
    pub handshake_failed: u64,
    /// Connections, established or not, that ended because the peer violated the protocol or the
    /// owner rejected its message.
    pub protocol_errors: u64,
    /// Handshakes that timed out.
    pub handshake_timeouts: u64,
    /// Established connections that ended by a heartbeat timeout.
    pub heartbeat_timeouts: u64,
    /// Connections that ended because the peer may not connect: unauthorized or revoked
    /// credentials, or a local user who is not admitted.
    pub unauthorized: u64,
    /// Connections closed because of a limit on connections, handshakes, file descriptors or
    /// memory.
    pub too_many: u64,
    /// Established connections that ended.
    pub disconnected: u64,
    /// Queued messages that will not be sent.
    pub unsent: u64,
    /// Received messages that were lost with their connection before the owner took them.
    pub unreceived: u64,
    /// Pauses before another attempt to connect.
    pub retries: u64,
    /// Failed calls of accept.
    pub accept_failed: u64,
    /// Events dropped because too many were unread.
    pub events_dropped: u64,
    /// Log lines omitted because there were too many.
    pub log_lines_dropped: u64,
}

impl Counters {
    pub(super) fn count(&mut self, event: &Event) {
        match event {
            Event::Accepted { .. } => self.accepted += 1,
            Event::Connected { .. } => self.connected += 1,
            Event::Established { .. } => self.established += 1,
            Event::RetryIn { .. } => self.retries += 1,
            Event::AcceptFailed { .. } => self.accept_failed += 1,
            Event::Unsent { messages, .. } => self.unsent += *messages as u64,
            Event::ConnectFailed { .. } => self.connect_failed += 1,
            Event::HandshakeFailed { reason, .. } => {
                self.handshake_failed += 1;
                self.count_reason(reason);
            }
            Event::Disconnected { reason, .. } => {
                self.disconnected += 1;
                self.count_reason(reason);
            }
            Event::Listening { .. } | Event::Closed { .. } | Event::Stopped { .. } => {}
        }
    }

    fn count_reason(&mut self, reason: &DisconnectReason) {
        match reason {
            DisconnectReason::Protocol(zmtp::Error::HandshakeTimeout) => {
                self.handshake_timeouts += 1;
            }
            DisconnectReason::Protocol(zmtp::Error::HeartbeatTimeout) => {
                self.heartbeat_timeouts += 1;
            }
            DisconnectReason::Protocol(zmtp::Error::Unauthorized { .. })
            | DisconnectReason::Revoked => self.unauthorized += 1,
            #[cfg(feature = "process")]
            DisconnectReason::NotAdmitted(_) => self.unauthorized += 1,
            DisconnectReason::Protocol(_) | DisconnectReason::Rejected(_) => {
                self.protocol_errors += 1;
            }
            DisconnectReason::TooMany | DisconnectReason::OutOfMemory => self.too_many += 1,
            _ => {}
        }
    }
}
