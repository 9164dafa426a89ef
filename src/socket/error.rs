//! Errors of a socket's functions, and of the transports of its connections.

use std::sync::Arc;
use std::{fmt, io};

use crate::reactor::EndpointError;

/// Why a function of a socket failed. The socket can be used further.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// Nothing was queued: no peer has that routing ID.
    Unroutable,
    /// Nothing was queued: the peer's queue is at its high-water mark (DEALER: the queues of all peers are).
    Full,
    /// Nothing was queued: there is no peer to send to.
    NoPeer,
    /// Nothing was queued: the message has no frames or exceeds the limits of
    /// [`Options`](super::Options).
    InvalidMessage,
    /// An option or an argument is invalid.
    InvalidOption(InvalidOption),
    /// A text is not an endpoint, or an endpoint cannot be connected to.
    Endpoint(EndpointError),
    /// Another peer has that routing ID.
    RoutingIdInUse,
    /// The operating system refused.
    Io(io::Error),
}

/// What is wrong with an option or an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidOption {
    /// A routing ID has more than 255 bytes, or is a zero byte and four others, as those that a ROUTER
    /// generates; or it is empty where one is required.
    RoutingId,
    /// Only a ROUTER addresses its peers by routing IDs.
    NotRouter,
    /// The name of a property does not begin with `X-` or has more than 255 bytes.
    PropertyName,
    /// All properties together take more than 4,096 bytes.
    PropertiesTooLarge,
    /// The server's CURVE key is a point of low order, which no secret key has.
    ServerKey,
    /// The socket's tokens would exceed the largest token.
    Tokens,
}

impl fmt::Display for InvalidOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InvalidOption::RoutingId => {
                "a routing ID has at most 255 bytes, and is not a zero byte and four others"
            }
            InvalidOption::NotRouter => "only a ROUTER addresses its peers",
            InvalidOption::PropertyName => {
                "the name of a property begins with X- and has at most 255 bytes"
            }
            InvalidOption::PropertiesTooLarge => "the properties take more than 4096 bytes",
            InvalidOption::ServerKey => "the server's key is no usable key: its order is low",
            InvalidOption::Tokens => "a socket's tokens must not exceed the largest token",
        })
    }
}

/// I/O errors are equal if their kinds are.
impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Error::Io(one), Error::Io(other)) => one.kind() == other.kind(),
            (Error::InvalidOption(one), Error::InvalidOption(other)) => one == other,
            (Error::Endpoint(one), Error::Endpoint(other)) => one == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unroutable => f.write_str("no peer has that routing ID"),
            Error::Full => f.write_str("the peer's queue is at its high-water mark"),
            Error::NoPeer => f.write_str("there is no peer to send to"),
            Error::InvalidMessage => f.write_str("the message is empty or larger than the limits"),
            Error::InvalidOption(what) => what.fmt(f),
            Error::Endpoint(error) => error.fmt(f),
            Error::RoutingIdInUse => f.write_str("another peer has that routing ID"),
            Error::Io(error) => error.fmt(f),
        }
    }
}

/// [`Error::Endpoint`] and [`Error::Io`] are shown as the errors that they hold, so `source` is the
/// source of those.
impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Endpoint(error) => error.source(),
            Error::Io(error) => error.source(),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Io(error)
    }
}

impl From<EndpointError> for Error {
    fn from(error: EndpointError) -> Self {
        Error::Endpoint(error)
    }
}

impl From<InvalidOption> for Error {
    fn from(what: InvalidOption) -> Self {
        Error::InvalidOption(what)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Unroutable | Error::NoPeer => io::ErrorKind::NotConnected,
            Error::Full => io::ErrorKind::WouldBlock,
            Error::InvalidMessage | Error::InvalidOption(_) | Error::Endpoint(_) => {
                io::ErrorKind::InvalidInput
            }
            Error::RoutingIdInUse => io::ErrorKind::AddrInUse,
            Error::Io(_) => {
                let Error::Io(error) = error else {
                    return io::ErrorKind::Other.into();
                };
                return error;
            }
        };
        io::Error::new(kind, error)
    }
}

/// Why a connection's transport failed, or could not be connected or accepted: an error of the operating
/// system, or a time limit of the socket.
#[derive(Clone, Debug)]
pub struct TransportError(Arc<io::Error>);

impl TransportError {
    /// The error's kind. A time limit of the socket is [`io::ErrorKind::TimedOut`].
    pub fn kind(&self) -> io::ErrorKind {
        self.0.kind()
    }

    /// The number of the operating system's error, if it is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.0.raw_os_error()
    }

    pub(super) fn timed_out(what: String) -> Self {
        io::Error::new(io::ErrorKind::TimedOut, what).into()
    }

    /// This error after an earlier one, which its text names too.
    pub(super) fn after(&self, earlier: &TransportError) -> Self {
        io::Error::new(self.kind(), format!("{earlier}; {self}")).into()
    }
}

impl From<io::Error> for TransportError {
    fn from(error: io::Error) -> Self {
        TransportError(Arc::new(error))
    }
}

/// Errors are equal if their kinds and texts are.
impl PartialEq for TransportError {
    fn eq(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.to_string() == other.to_string()
    }
}

impl Eq for TransportError {}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for TransportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_their_kind_as_errors_of_the_operating_system() {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let text: Result<crate::reactor::Endpoint, _> = "tcp:/x".parse();
        for (error, kind) in [
            (Error::Unroutable, io::ErrorKind::NotConnected),
            (Error::NoPeer, io::ErrorKind::NotConnected),
            (Error::Full, io::ErrorKind::WouldBlock),
            (Error::InvalidMessage, io::ErrorKind::InvalidInput),
            (InvalidOption::Tokens.into(), io::ErrorKind::InvalidInput),
            (text.unwrap_err().into(), io::ErrorKind::InvalidInput),
            (Error::RoutingIdInUse, io::ErrorKind::AddrInUse),
            (Error::Io(refused()), io::ErrorKind::ConnectionRefused),
        ] {
            let shown = error.to_string();
            let converted = io::Error::from(error);
            assert_eq!((converted.kind(), converted.to_string()), (kind, shown));
        }
    }

    #[test]
    fn an_error_after_an_earlier_one_names_both() {
        let first = TransportError::timed_out("no answer".to_owned());
        let second: TransportError = io::Error::new(io::ErrorKind::AddrInUse, "taken").into();
        let both = second.after(&first);
        assert_eq!(both.to_string(), "no answer; taken");
        assert_eq!(both.kind(), io::ErrorKind::AddrInUse);
        assert_ne!(both, second);
        assert_eq!(both, both.clone());
    }
}
