//! What a socket reports about connections: events and counters.

use std::fmt;
use std::time::Duration;

use super::PeerId;
use crate::reactor::Endpoint;
use crate::zmtp;

/// A change in the life of a connection, in order per peer.
///
/// Unread events are bounded: the oldest go first, and [`Counters::events_dropped`] says how
/// many did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A listener is bound.
    Listening {
        /// Where, with the port the system chose.
        endpoint: Endpoint,
    },
    /// A listener is closed.
    Closed {
        /// Where.
        endpoint: Endpoint,
    },
    /// A connection could not be taken; the listener rests a little.
    AcceptFailed {
        /// Where.
        endpoint: Endpoint,
        /// The system's reason.
        reason: String,
    },
    /// A listener took a connection; it has no routing ID yet.
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
    /// A connecting socket's transport did not come up.
    ConnectFailed {
        /// The peer.
        peer: PeerId,
        /// Why.
        reason: DisconnectReason,
    },
    /// The handshake is done: the peer can be sent to.
    Established {
        /// The peer.
        peer: PeerId,
        /// Its routing ID, given or made up.
        identity: Vec<u8>,
    },
    /// The connection ended before its handshake was done.
    HandshakeFailed {
        /// The peer.
        peer: PeerId,
        /// Its address, for people.
        address: String,
        /// Why.
        reason: DisconnectReason,
    },
    /// An established connection is gone.
    Disconnected {
        /// The peer; its id is dead now unless a retry follows.
        peer: PeerId,
        /// Its routing ID.
        identity: Vec<u8>,
        /// Why.
        reason: DisconnectReason,
    },
    /// Messages that were queued will not be sent: the peer they were for is gone.
    Unsent {
        /// The peer.
        peer: PeerId,
        /// The routing ID they were for.
        identity: Vec<u8>,
        /// How many.
        messages: usize,
    },
    /// A connecting socket will try again.
    RetryIn {
        /// The peer.
        peer: PeerId,
        /// The pause.
        pause: Duration,
    },
    /// A connecting socket will not try again, as its options say.
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
    /// The peer closed it after HELLO of CURVE, without a word: most likely the server has
    /// another key than the one configured here.
    Unanswered,
    /// The transport failed.
    Io(String),
    /// Connection refused.
    ConnRefused(String),
    /// The peer broke the protocol, refused us, or went silent.
    Protocol(zmtp::Error),
    /// A newcomer with the same identity took its place.
    Handover,
    /// The identity belongs to a living peer, and handover is off.
    IdentityInUse,
    /// It is of a user of this host who is not admitted ([`Options::local_users`](super::Options::local_users)).
    #[cfg(feature = "process")]
    NotAdmitted(super::NotAdmitted),
    /// A bound on connections or pending handshakes was reached.
    TooMany,
    /// Its message needs more memory than is left for all peers' together.
    OutOfMemory,
    /// Its key is no longer among the authorized ones.
    Revoked,
    /// The credentials were changed during the handshake.
    CredentialsChanged,
    /// The owner closed it.
    Owner,
    /// The owner could not take what it sent.
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
            DisconnectReason::Io(error) | DisconnectReason::ConnRefused(error) => {
                f.write_str(error)
            }
            DisconnectReason::Protocol(error) => error.fmt(f),
            DisconnectReason::Handover => f.write_str("its identity was taken over"),
            DisconnectReason::IdentityInUse => f.write_str("its identity is in use"),
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

/// Counts since the socket was made; each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Connections taken by listeners.
    pub accepted: u64,
    /// Transports opened by connecting.
    pub connected: u64,
    /// Attempts to connect that came to nothing.
    pub connect_failed: u64,
    /// Handshakes done.
    pub established: u64,
    /// Handshakes not done, for whatever reason.
    pub handshake_failed: u64,
    /// Of those, and of established connections: ended because the peer broke the protocol.
    pub protocol_errors: u64,
    /// Handshakes that ran out of time.
    pub handshake_timeouts: u64,
    /// Established connections that fell silent.
    pub heartbeat_timeouts: u64,
    /// Peers that authenticated as a user that may not connect.
    pub unauthorized: u64,
    /// Connections closed for a bound on connections, handshakes or memory.
    pub too_many: u64,
    /// Established connections that ended.
    pub disconnected: u64,
    /// Messages that were queued and will not be sent.
    pub unsent: u64,
    /// Messages that had come and went with their connection before the owner received them.
    pub unreceived: u64,
    /// Pauses after which a connection is tried again.
    pub retries: u64,
    /// Failures of the system to take a connection.
    pub accept_failed: u64,
    /// Events that were not read.
    pub events_dropped: u64,
    /// Log lines left out because there were too many.
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
