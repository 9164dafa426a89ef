//! Errors that close a connection.

use std::fmt;

/// The peer violated the protocol, sent nothing for too long, or refused the connection; or the
/// system has no randomness. Each error closes the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The first bytes are not a ZMTP signature (RFC 37 §3.2).
    NotZmtp {
        /// Byte 0 of the greeting.
        first: u8,
    },
    /// A ZMTP 1.0 or 2.0 peer; downgrades are refused.
    OldVersion {
        /// Major version of the peer.
        major: u8,
    },
    /// The peer's greeting names another security mechanism.
    MechanismMismatch {
        /// The mechanism that is configured on this side.
        expected: &'static str,
        /// The mechanism of the peer, printable.
        got: String,
    },
    /// A frame has flag bits 3-7 set (RFC 37 §3.3: must be zero).
    ReservedFlags {
        /// The flags byte.
        flags: u8,
    },
    /// A command frame has the MORE bit.
    CommandWithMore,
    /// A frame declares a size above the limit.
    FrameTooLarge {
        /// Declared size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A message is larger than the limit.
    MessageTooLarge {
        /// Size so far in bytes, including the refused frame.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A message has more frames than the limit.
    TooManyFrames {
        /// The limit.
        limit: usize,
    },
    /// The commands between the frames of one message are larger, in total, than the limit.
    TooManyCommands {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A command body is malformed.
    MalformedCommand {
        /// The command and what is wrong with it.
        what: &'static str,
    },
    /// A message or an unexpected command arrived before the handshake was done.
    UnexpectedInHandshake {
        /// What arrived.
        what: &'static str,
    },
    /// A command that is allowed once was sent again (READY).
    Repeated {
        /// The command's name.
        command: &'static str,
    },
    /// The peer's `Socket-Type` is not compatible with ours, or is missing.
    SocketTypeMismatch {
        /// Our type.
        ours: &'static str,
        /// The peer's type, printable; empty if missing.
        theirs: String,
    },
    /// `Identity` is over 255 bytes, or is a zero byte and four others, as routing IDs that a ROUTER
    /// generates.
    BadIdentity {
        /// Its length.
        size: usize,
    },
    /// The peer sent ERROR: it refuses the connection.
    Refused {
        /// The peer's reason, printable.
        reason: String,
    },
    /// The CURVE handshake or a CURVE box violates RFC 26 or is forged.
    Curve {
        /// What was wrong.
        what: &'static str,
    },
    /// The peer's credentials are wrong, or its key is not authorized.
    Unauthorized {
        /// Its key or user name, printable.
        who: String,
    },
    /// The system returned no random bytes for keys.
    NoRandomness,
    /// The handshake took longer than its deadline.
    HandshakeTimeout,
    /// No byte was received within the heartbeat timeout or the peer's TTL.
    HeartbeatTimeout,
}

/// The reason in ERROR for wrong credentials: a ZAP status code (RFC 27 §8), which libzmq's servers
/// send and its clients expect.
pub(crate) const STATUS_UNAUTHORIZED: &str = "400";

impl Error {
    /// True if reconnecting at once with the same configuration cannot succeed.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Error::Refused { .. }
                | Error::MechanismMismatch { .. }
                | Error::SocketTypeMismatch { .. }
                | Error::NotZmtp { .. }
                | Error::OldVersion { .. }
                | Error::Curve { .. }
                | Error::Unauthorized { .. }
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotZmtp { first } => {
                write!(f, "not a ZMTP greeting: expected byte ff, got {first:02x}")
            }
            Error::OldVersion { major } => {
                write!(f, "peer speaks ZMTP {major}.0, 3.0 or later is needed")
            }
            Error::MechanismMismatch { expected, got } => write!(
                f,
                "security mechanism mismatch: expected {expected}, peer uses {got:?}"
            ),
            Error::ReservedFlags { flags } => {
                write!(f, "frame with reserved flag bits set: {flags:02x}")
            }
            Error::CommandWithMore => f.write_str("command frame with the MORE bit set"),
            Error::FrameTooLarge { size, limit } => {
                write!(f, "frame of {size} bytes, the limit is {limit}")
            }
            Error::MessageTooLarge { size, limit } => {
                write!(f, "message of at least {size} bytes, the limit is {limit}")
            }
            Error::TooManyFrames { limit } => {
                write!(f, "message of more than {limit} frames")
            }
            Error::TooManyCommands { limit } => {
                write!(f, "more than {limit} bytes of commands within one message")
            }
            Error::MalformedCommand { what } => write!(f, "malformed command: {what}"),
            Error::UnexpectedInHandshake { what } => {
                write!(f, "{what} before the handshake was done")
            }
            Error::Repeated { command } => write!(f, "{command} sent twice"),
            Error::SocketTypeMismatch { ours, theirs } => {
                write!(f, "a {ours} does not talk to a peer of type {theirs:?}")
            }
            Error::BadIdentity { size } => write!(
                f,
                "routing ID of {size} bytes refused: at most 255 bytes, and not a zero byte and four others"
            ),
            // The status code of ZAP handlers (RFC 27 §8).
            Error::Refused { reason } if reason == STATUS_UNAUTHORIZED => {
                f.write_str("peer refused the connection: not authorized (400)")
            }
            Error::Refused { reason } => write!(f, "peer refused the connection: {reason:?}"),
            Error::Curve { what } => write!(f, "CURVE: {what}"),
            Error::Unauthorized { who } => write!(f, "{who} is not authorized"),
            Error::NoRandomness => f.write_str("the system gave no randomness for keys"),
            Error::HandshakeTimeout => f.write_str("handshake not done within its deadline"),
            Error::HeartbeatTimeout => {
                f.write_str("nothing received from the peer, heartbeat lost")
            }
        }
    }
}

impl std::error::Error for Error {}
