//! The configuration that all connections of a socket share, and the properties of a peer.

use std::time::Duration;

use super::Limits;
#[cfg(feature = "curve")]
use super::curve;
#[cfg(feature = "curve")]
use super::curve::{CurveClient, CurveServer};
use super::plain::{PlainClient, PlainServer};

/// The socket types that this crate implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketType {
    /// Sends round-robin, receives fair-queued.
    Dealer,
    /// Addresses peers by routing ID.
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

    /// Whether this type may connect to a peer of that type (RFC 37 §3.6.1).
    pub fn is_compatible(self, peer: &[u8]) -> bool {
        match self {
            SocketType::Dealer => matches!(peer, b"REP" | b"DEALER" | b"ROUTER"),
            SocketType::Router => matches!(peer, b"REQ" | b"DEALER" | b"ROUTER"),
        }
    }
}

/// Intervals and timeouts of heartbeats (RFC 37 §3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Time between our PINGs.
    pub interval: Duration,
    /// The connection is closed if no byte arrives within this time after a PING.
    pub timeout: Duration,
    /// TTL in our PINGs: the peer closes the connection if it receives nothing from us for this
    /// long. Sent in tenths of a second, at most 6553.5 s. Zero = none.
    pub ttl: Duration,
}

/// The configuration that all connections of a socket share.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our socket type.
    pub socket_type: SocketType,
    /// Our routing ID, 0 to 255 bytes. If it is empty, the peer generates one.
    pub routing_id: Vec<u8>,
    /// Bounds on what the peer may send.
    pub limits: Limits,
    /// Size, in bytes, to which the receive buffer grows while reads fill it. Only a larger message
    /// grows it further.
    pub read_ahead: usize,
    /// Maximum number of complete messages that are buffered and not yet polled; 0 = limited by
    /// `read_ahead` only.
    pub rcvhwm: usize,
    /// Time from the start of the connection to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Heartbeats, or none.
    pub heartbeat: Option<Heartbeat>,
    /// The security mechanism, our role in it and our credentials.
    pub security: Security,
    /// Application properties; their names begin with `X-` (RFC 37 §3.4).
    pub metadata: Vec<(String, Vec<u8>)>,
}

/// What the handshake reported about the peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerInfo {
    /// Its `Socket-Type`.
    pub socket_type: String,
    /// Its `Identity`; empty when it has none.
    pub routing_id: Vec<u8>,
    /// Minor version in its greeting.
    pub minor: u8,
    /// Its authenticated user: the user name of PLAIN, or the name of its listed CURVE key. The
    /// text of its key if the server accepts any key. Set on servers only.
    pub user_id: Option<String>,
    /// Its long-term key, authenticated by CURVE. Set on servers only.
    #[cfg(feature = "curve")]
    pub public_key: Option<curve::PublicKey>,
    /// Its application properties, whose names begin with `X-`.
    pub metadata: Vec<(String, Vec<u8>)>,
}

/// Size of the routing IDs that a ROUTER generates for peers without one, as libzmq does: a zero byte and a
/// number.
pub(crate) const GENERATED_ROUTING_ID_SIZE: usize = 5;

/// True for a routing ID that a ROUTER may have generated.
pub(crate) fn is_generated(routing_id: &[u8]) -> bool {
    routing_id.len() == GENERATED_ROUTING_ID_SIZE && routing_id.first() == Some(&0)
}

/// Whether a peer may choose a routing ID: it has at most 255 bytes. RFC 28 refuses those that begin with
/// a zero byte. libzmq takes all; here only those that a ROUTER may have generated are refused, so that no
/// peer can take one of another.
pub(crate) fn may_be_chosen(routing_id: &[u8]) -> bool {
    routing_id.len() <= 255 && !is_generated(routing_id)
}

/// The mechanism of a socket and its credentials. The role (client or server) is configured here.
/// It does not depend on which side binds, and the as-server bit of greetings is ignored.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Security {
    /// No authentication, no encryption (RFC 37 §3.5).
    #[default]
    Null,
    /// PLAIN client, with its credentials.
    PlainClient(PlainClient),
    /// PLAIN server, with the users that may connect.
    PlainServer(PlainServer),
    /// CURVE client, with the server's public key.
    #[cfg(feature = "curve")]
    CurveClient(CurveClient),
    /// CURVE server, with the clients that may connect.
    #[cfg(feature = "curve")]
    CurveServer(CurveServer),
}

impl Security {
    /// The mechanism's name in the greeting.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Security::Null => "NULL",
            Security::PlainClient(_) | Security::PlainServer(_) => "PLAIN",
            #[cfg(feature = "curve")]
            Security::CurveClient(_) | Security::CurveServer(_) => "CURVE",
        }
    }

    /// Whether a peer that was admitted under `old` would also be admitted under `self`, with the
    /// same credentials and the same server key.
    pub(crate) fn would_admit_again(&self, old: &Security, peer: &PeerInfo) -> bool {
        match (self, old) {
            (Security::Null, Security::Null)
            | (Security::PlainClient(_), Security::PlainClient(_)) => true,
            (Security::PlainServer(new), Security::PlainServer(old)) => peer
                .user_id
                .as_ref()
                .is_some_and(|user| new.has_same(old, user)),
            #[cfg(feature = "curve")]
            (Security::CurveServer(new), Security::CurveServer(old)) => {
                let name = peer.public_key.and_then(|key| new.clients.name_of(&key));
                name.is_some() && new.secret.public() == old.secret.public()
            }
            #[cfg(feature = "curve")]
            (Security::CurveClient(new), Security::CurveClient(old)) => {
                new.server == old.server && new.secret.public() == old.secret.public()
            }
            _ => false,
        }
    }

    /// Whether peers are authenticated as listed users: PLAIN, or CURVE with a list.
    pub(crate) fn proves_users(&self) -> bool {
        match self {
            Security::PlainServer(_) => true,
            #[cfg(feature = "curve")]
            Security::CurveServer(server) => matches!(server.clients, curve::Clients::Listed(_)),
            _ => false,
        }
    }

    /// Whether two authenticated peers are the same user. If users are not authenticated, all peers
    /// are the same user.
    pub(crate) fn is_same_user(&self, one: &PeerInfo, other: &PeerInfo) -> bool {
        // The name of a listed key may have changed between the two handshakes.
        #[cfg(feature = "curve")]
        let has_same_key = one.public_key.is_some() && one.public_key == other.public_key;
        #[cfg(not(feature = "curve"))]
        let has_same_key = false;
        !self.proves_users() || has_same_key || one.user_id == other.user_id
    }

    /// True if traffic is encrypted and authenticated.
    pub fn is_encrypted(&self) -> bool {
        self.mechanism() == "CURVE"
    }
}
