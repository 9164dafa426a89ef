//! What the connections of a socket share, and what they learn about their peers.

use std::time::Duration;

#[cfg(feature = "curve")]
use super::curve;
use super::{Limits, Security};

/// The socket types this stack speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketType {
    /// Round-robin out, fair-queued in.
    Dealer,
    /// Addresses its peers by routing ID.
    Router,
}

impl SocketType {
    /// The value of the `Socket-Type` property.
    pub fn name(self) -> &'static str {
        match self {
            SocketType::Dealer => "DEALER",
            SocketType::Router => "ROUTER",
        }
    }

    /// RFC 37 §3.6.1: which types may talk to each other.
    pub fn talks_to(self, peer: &[u8]) -> bool {
        match self {
            SocketType::Dealer => matches!(peer, b"REP" | b"DEALER" | b"ROUTER"),
            SocketType::Router => matches!(peer, b"REQ" | b"DEALER" | b"ROUTER"),
        }
    }
}

/// PING and the patience that goes with it (RFC 37 §3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Time between our PINGs.
    pub interval: Duration,
    /// Silence after a PING that closes the connection.
    pub timeout: Duration,
    /// What we ask the peer to wait for us at most; sent in tenths of a second, at most
    /// 6553.5 s. Zero = none.
    pub ttl: Duration,
}

/// What all connections of a socket share.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our socket type.
    pub socket_type: SocketType,
    /// Our routing ID, 0 to 255 bytes; empty lets the peer make one up.
    pub identity: Vec<u8>,
    /// Bounds on what the peer may send.
    pub limits: Limits,
    /// Bytes a busy connection reads ahead of what its owner has taken.
    pub read_ahead: usize,
    /// Whole messages it holds at most that its owner has not taken; 0 = as many as there are in
    /// the bytes read ahead.
    pub rcvhwm: usize,
    /// Time from the start of the connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Heartbeats, or none.
    pub heartbeat: Option<Heartbeat>,
    /// The security mechanism, our role in it and our credentials.
    pub security: Security,
    /// Properties of the application's own; names begin with `X-` (RFC 37 §3.4).
    pub metadata: Vec<(String, Vec<u8>)>,
}

/// What the handshake reported about the peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerInfo {
    /// Its `Socket-Type`.
    pub socket_type: String,
    /// Its `Identity`; empty when it has none.
    pub identity: Vec<u8>,
    /// Minor version of ZMTP 3 in its greeting.
    pub minor: u8,
    /// Who it proved to be: the user name of PLAIN, the name of a listed CURVE key. Servers
    /// only.
    pub user_id: Option<String>,
    /// Its long-term key, proved by CURVE. Servers only.
    #[cfg(feature = "curve")]
    pub public_key: Option<curve::PublicKey>,
    /// Its properties with names that begin with `X-`.
    pub metadata: Vec<(String, Vec<u8>)>,
}
