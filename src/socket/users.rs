//! The users of this host that own the other ends of connections.

use std::fmt;

/// The user that owns the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocalUser {
    /// The peer is on another host, or the system does not show users.
    Unchecked,
    /// The user with this user ID.
    Uid(u32),
    /// The peer is on this host, but the system does not show its user.
    Unknown,
}

/// Why a connection with a peer on this host is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAdmitted {
    /// The peer's user ID, if known.
    pub uid: Option<u32>,
    /// The peer is a listener to which we have connected.
    pub listens: bool,
}

impl fmt::Display for NotAdmitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uid {
            Some(uid) if self.listens => write!(
                f,
                "user {uid} of this host listens there, who is neither our own user nor root nor \
                 named by --allow-uid; use --allow-uid {uid} if that is whom to trust, or CURVE"
            ),
            None if self.listens => f.write_str(
                "the user who listens there cannot be determined (it is in another network \
                 namespace, or has closed the connection); use CURVE",
            ),
            Some(uid) => write!(
                f,
                "user {uid} of this host may not connect: it is neither the sentinel's own user \
                 nor named by --allow-uid; use --allow-uid {uid}, or CURVE"
            ),
            None => f.write_str(
                "the user of this connection cannot be determined (its process has closed it, or \
                 it is in another network namespace); use CURVE",
            ),
        }
    }
}
