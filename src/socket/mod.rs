//! ROUTER and DEALER sockets on [`crate::zmtp`] and [`crate::reactor`]: peers, routing, high-water
//! marks, reconnecting, heartbeats (RFC 28/REQREP for the patterns).
//!
//! There are two ways to use them:
//! - [`Router`] and [`Dealer`] own a reactor and block with a timeout (`receive`, `send_timeout`,
//!   `drain`, `close`). They are for programs that do nothing else on that thread. Between calls
//!   nothing is processed: no PING is answered, so the heartbeat timeouts of peers must be longer
//!   than the longest time between calls, or [`Background`] starts a thread that answers them. Events
//!   stay queued ([`Router::poll_event`]). End these sockets by `close`, or set [`Options::linger`];
//!   otherwise messages that were sent may be lost.
//! - [`Socket`] is driven by an event loop of the caller, which may have other sources too. The
//!   sentinel and the worker use it.
//!
//! In this documentation the *owner* of a socket is the code that calls it. Except for [`Background`],
//! no thread is started but to resolve a host name, and there are no locks. A received message is borrowed from its
//! peer's receive buffer and valid until the next receive. A sent message is encoded into the
//! peer's queue at once, and written by [`Socket::flush`], or earlier when 64 KiB are queued.
//!
//! [`differences`] lists the differences from libzmq's sockets.
//!
//! Invariants:
//! - A peer can be routed to only after its handshake.
//! - A message is delivered at most once and never partially. When a connection is lost, a message
//!   that the kernel has not accepted completely stays queued for a connecting peer, and is dropped
//!   for an accepted one. A message that the kernel has accepted may be lost with the connection,
//!   so applications must acknowledge important messages.
//! - Queues are bounded in messages and bytes. At the limit a send fails; no message is dropped
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

mod background;
mod blocking;
pub mod differences;
mod driven;
mod driver;
mod engine;
mod error;
#[cfg(feature = "curve")]
pub mod keyfile;
mod log_limit;
mod monitor;
mod options;
#[cfg(feature = "process")]
mod owners;
mod peer_id;
#[cfg(any(feature = "curve", feature = "sentinel"))]
pub mod secured;
#[cfg(feature = "process")]
mod users;
mod watched;

pub use background::{Background, Guard};
pub use blocking::{Blocking, Dealer, Next, Routed, Router, Waker};
pub use driver::Socket;
pub use error::{Error, InvalidOption, TransportError};
pub use monitor::{Counters, DisconnectReason, Event};
pub use options::{Options, ReconnectStop};
#[cfg(feature = "process")]
pub use owners::LocalUsers;
pub use peer_id::PeerId;
#[cfg(feature = "process")]
pub use users::NotAdmitted;

pub use crate::reactor::{Endpoint, EndpointError};
pub use crate::zmtp::Error as ProtocolError;
#[cfg(feature = "curve")]
pub use crate::zmtp::curve;
pub use crate::zmtp::{Message, PeerInfo, PlainClient, PlainServer, Security, SocketType};

/// See [`crate::fuzzing::sockets_in_virtual_time`].
#[cfg(fuzzing)]
pub(crate) fn storm(bytes: &[u8]) {
    use engine::simulation::{Choices, World, storm};
    storm::run(World::new(
        Choices::of_bytes(bytes),
        std::time::Instant::now(),
    ));
}

#[cfg(test)]
mod tests;
