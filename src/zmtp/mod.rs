//! ZMTP 3.1 without I/O: received bytes become events, calls become bytes to send.
//!
//! Follows RFC 37/ZMTP (3.1) and accepts 3.0 peers (RFC 23). This module owns no socket, thread or
//! clock. `now` is an argument, and every wait is reported as a deadline.
//!
//! It contains the greeting, the frame codec, commands and metadata, the mechanisms NULL, PLAIN
//! (RFC 24) and CURVE (RFC 25 and 26, feature `curve`), the heartbeat, and the per-connection state
//! machine [`Connection`] that uses all of these. [`SendQueue`] has the encoded messages that wait
//! to be sent to one peer.
//!
//! It does not contain routing, reconnecting or high-water marks; they are in [`crate::socket`].
//!
//! Invariants:
//! - A message is delivered completely or not at all, in order, never twice.
//! - Nothing is delivered before the handshake is done.
//! - No memory is reserved for bytes that have not arrived; every length is checked against
//!   [`Limits`] when its header is seen.
//! - Input is parsed by bounds-checked reads only; a malformed byte is an [`Error`], never a
//!   panic.

#![cfg_attr(
    not(test),
    deny(clippy::cast_possible_truncation, clippy::cast_sign_loss)
)]

mod command;
mod config;
mod connection;
mod cursor;
#[cfg(feature = "curve")]
pub mod curve;
mod error;
mod frame;
mod greeting;
mod mechanism;
mod message;
mod plain;
mod receive;
mod send;

pub use command::{Command, Metadata};
pub use config::{Config, Heartbeat, PeerInfo, Security, SocketType};
pub(crate) use config::{is_generated, may_be_chosen};
pub use connection::{Connection, Progress};
pub use error::Error;
pub use frame::{Head, HeadResult, encode_head};
pub use greeting::{GREETING_SIZE, Greeting};
pub use message::{Bodies, Message};
pub use plain::{PlainClient, PlainServer};
pub use receive::{Growth, ReceiveBuffer};
pub use send::{SendQueue, Slices};

/// Limits on what a peer may send; exceeding one closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of one frame's body, in bytes.
    pub frame_size_max: u64,
    /// Maximum total size of all frame bodies of one message, in bytes.
    pub message_size_max: u64,
    /// Maximum number of frames of one message, empty ones included.
    pub frames_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            frame_size_max: crate::limits::ZMTP_FRAME_SIZE_MAX,
            message_size_max: crate::limits::ZMTP_MESSAGE_SIZE_MAX,
            frames_max: crate::limits::ZMTP_FRAMES_MAX,
        }
    }
}
