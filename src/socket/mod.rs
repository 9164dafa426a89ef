//! ROUTER and DEALER over [`crate::zmtp`] and [`crate::reactor`]: peers, routing, high-water
//! marks, reconnecting, heartbeats (RFC 28/REQREP for the patterns).
//!
//! Two ways to use it:
//! - [`Router`] and [`Dealer`] own a reactor and block with a timeout (`receive`,
//!   `send_timeout`, `drain`, `close`); enough for a program that does nothing else on that
//!   thread. Nothing happens between calls: while the owner is busy no PING is answered, so
//!   heartbeat timeouts of its peers must be longer than that, and events wait
//!   ([`Router::poll_event`]). End them by `close`, or what they have sent may go with them.
//! - [`Socket`] is driven by a loop of the caller's that has other sources too, as the sentinel
//!   and the worker do.
//!
//! No thread is started except to resolve a host name, and nothing is locked. Messages are borrowed
//! from the receive buffer of the peer they came from and are valid until the next receive; sends
//! are encoded at once into the peer's queue and leave on [`Socket::flush`] (or when much has
//! gathered).
//!
//! [`differences`] lists where they differ from libzmq's sockets.
//!
//! Invariants:
//! - A peer is invisible to routing until its handshake is done.
//! - A message is delivered at most once and never in part; what the system had not taken whole
//!   when a connection was lost stays queued for a connecting peer, and dies with an accepted
//!   one. What it had taken may be lost with the connection: acknowledge what matters.
//! - Queues are bounded in messages and bytes; at the bound a send is refused, never dropped
//!   silently. Messages that will not be sent are reported ([`Event::Unsent`]).
//!
//! ```
//! use std::time::Duration;
//! use casparian::socket::{Dealer, Options, Router};
//!
//! let mut router = Router::new(Options::new())?;
//! let bound = router.bind("tcp://127.0.0.1:*")?;
//! let mut dealer = Dealer::new(Options::new().routing_id("w-1"))?;
//! dealer.connect(&bound.to_string())?;
//! dealer.send(&[b"hello", b"world"])?;
//! dealer.flush()?;
//! let timeout = Some(Duration::from_millis(1));
//! let reply_to = loop {
//!     dealer.flush()?; // also drives the handshake
//!     if let Some((from, message)) = router.receive(timeout)? {
//!         assert_eq!(message.get(1), Some(&b"world"[..]));
//!         break from.to_vec();
//!     }
//! };
//! assert_eq!(reply_to, b"w-1");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod blocking;
#[cfg(any(test, fuzzing))]
mod check;
mod core;
pub mod differences;
#[cfg(feature = "curve")]
pub mod keyfile;
mod links;
mod log_limit;
mod monitor;
mod options;
#[cfg(feature = "process")]
mod owners;
mod peers;
#[cfg(any(feature = "curve", feature = "sentinel"))]
pub mod secured;
mod time;
mod transfer;

pub use self::core::Socket;
pub use blocking::{Dealer, Router};
pub use monitor::{Counters, DisconnectReason, Event};
pub use options::{Options, ReconnectStop};
#[cfg(feature = "process")]
pub use owners::{LocalUsers, NotAdmitted};
pub use peers::PeerId;

pub use crate::reactor::Endpoint;
pub use crate::zmtp::Error as ProtocolError;
#[cfg(feature = "curve")]
pub use crate::zmtp::curve;
pub use crate::zmtp::{Message, PeerInfo, PlainClient, PlainServer, Security, SocketType};

use std::fmt;

/// Why a message was not queued. Nothing of it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// No peer has that routing ID.
    Unroutable,
    /// The peer's queue is at its high-water mark (DEALER: every peer's).
    Full,
    /// There is no peer at all to send to.
    NoPeer,
    /// The message has no frame or is larger than the limits of [`Options`].
    Invalid,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Unroutable => "no peer has that routing ID",
            SendError::Full => "the peer's queue is at its high-water mark",
            SendError::NoPeer => "there is no peer to send to",
            SendError::Invalid => "the message is empty or larger than the limits",
        })
    }
}

impl std::error::Error for SendError {}

#[cfg(test)]
mod tests;
