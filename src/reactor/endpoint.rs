//! Endpoints: `tcp://host:port`, `tcp://source:port;host:port`, `ipc:///path`, `ipc://@abstract`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::{fmt, io};

use super::interface;

/// An address to bind or connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A host (address or name) and a port. Host `*` binds all IPv4 addresses, the name of a network
    /// interface its first address, preferably of IPv4. With port `*` or 0 the system chooses the port.
    Tcp {
        /// An address, a name, or `*`; an IPv6 address without brackets.
        host: String,
        /// The port; 0 = chosen by the system.
        port: u16,
        /// The local end of a connection, for connecting only; `None` = chosen by the system.
        source: Option<Box<Source>>,
    },
    /// A Unix socket in the file system. A listener at `*` creates its socket file in a new private
    /// folder.
    Ipc(PathBuf),
    /// A Unix socket in Linux's abstract namespace; the name without its `@`.
    IpcAbstract(String),
}

/// The local address and port from which a connection is opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// An address, the name of a network interface, or `*`; an IPv6 address without brackets.
    pub host: String,
    /// The port; 0 = chosen by the system.
    pub port: u16,
}

/// Why a text is not an endpoint, or why an endpoint cannot be used.
#[derive(Clone, Debug)]
pub struct EndpointError(Box<(String, Reason)>);

#[derive(Clone, Debug)]
enum Reason {
    /// The text is not an endpoint.
    Text(&'static str),
    /// Nothing can connect to an endpoint whose port or file the system chooses.
    Wildcard,
    /// The lookup of the host failed.
    Lookup(Arc<io::Error>),
    /// The host has no address.
    NoAddress,
    /// A source is neither an address nor an interface, or has no address of the target's family.
    NoSource,
    /// An endpoint with a source was bound.
    BoundSource,
}

impl EndpointError {
    fn text(text: &str, reason: &'static str) -> Self {
        let shown = text.chars().take(200).collect();
        EndpointError(Box::new((shown, Reason::Text(reason))))
    }

    fn of(endpoint: &Endpoint, reason: Reason) -> Self {
        EndpointError(Box::new((endpoint.to_string(), reason)))
    }
}

/// Errors are equal if their texts are.
impl PartialEq for EndpointError {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for EndpointError {}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (endpoint, reason) = self.0.as_ref();
        write!(f, "endpoint {endpoint:?}: ")?;
        match reason {
            Reason::Text(what) => write!(
                f,
                "{what}; expected tcp://host:port, ipc:///path or ipc://@name"
            ),
            Reason::Wildcard => f.write_str("cannot connect to a wildcard"),
            Reason::Lookup(error) => write!(f, "cannot resolve the host: {error}"),
            Reason::NoAddress => f.write_str("the host has no address"),
            Reason::NoSource => f.write_str(
                "before `;` there must be an address or a network interface of this host, of the \
                 same family as the address after it",
            ),
            Reason::BoundSource => {
                f.write_str("an address before `;` is for connecting, and cannot be bound")
            }
        }
    }
}

impl std::error::Error for EndpointError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.1 {
            Reason::Lookup(error) => Some(error.as_ref()),
            _ => None,
        }
    }
}

/// Size of the path in `sockaddr_un`, including its terminating zero.
const UNIX_PATH_SIZE_MAX: usize = 108;

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason| EndpointError::text(text, reason);
        if let Some(address) = text.strip_prefix("tcp://") {
            let (source, target) = match address.split_once(';') {
                Some((source, target)) => (Some(source), target),
                None => (None, address),
            };
            let (host, port) = host_and_port(target).map_err(fail)?;
            let source = source.map(host_and_port).transpose().map_err(fail)?;
            return Ok(Endpoint::Tcp {
                host,
                port,
                source: source.map(|(host, port)| Box::new(Source { host, port })),
            });
        }
        if let Some(path) = text.strip_prefix("ipc://") {
            if path.is_empty() {
                return Err(fail("no path"));
            }
            if path.contains('\0') {
                return Err(fail("path with a NUL"));
            }
            if path.len() >= UNIX_PATH_SIZE_MAX {
                return Err(fail("path longer than 107 bytes"));
            }
            return Ok(match path.strip_prefix('@') {
                Some("") => return Err(fail("no abstract name")),
                Some(name) => Endpoint::IpcAbstract(name.to_owned()),
                None => Endpoint::Ipc(PathBuf::from(path)),
            });
        }
        Err(fail("unknown transport"))
    }
}

/// Parses `host:port`; an IPv6 address is in brackets. The error is the reason.
fn host_and_port(address: &str) -> Result<(String, u16), &'static str> {
    let (host, port) = address.rsplit_once(':').ok_or("no port")?;
    let host = match host.strip_prefix('[') {
        Some(inner) => {
            let inner = inner.strip_suffix(']').ok_or("unclosed bracket")?;
            let address = inner.split('%').next().unwrap_or_default();
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return Err("not an IPv6 address");
            }
            inner
        }
        None if host.contains(':') => return Err("IPv6 addresses need brackets"),
        None => host,
    };
    if host.is_empty() {
        return Err("no host");
    }
    if host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ';') {
        return Err("not a host name");
    }
    let port = match port {
        "*" => 0,
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
            .parse()
            .map_err(|_| "port is not between 0 and 65535")?,
        _ => return Err("port is no number"),
    };
    Ok((host.to_owned(), port))
}

struct HostAndPort<'a>(&'a str, u16);

impl fmt::Display for HostAndPort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.contains(':') {
            true => write!(f, "[{}]:{}", self.0, self.1),
            false => write!(f, "{}:{}", self.0, self.1),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { host, port, source } => {
                f.write_str("tcp://")?;
                if let Some(source) = source {
                    write!(f, "{};", HostAndPort(&source.host, source.port))?;
                }
                HostAndPort(host, *port).fmt(f)
            }
            Endpoint::Ipc(path) => write!(f, "ipc://{}", path.display()),
            Endpoint::IpcAbstract(name) => write!(f, "ipc://@{name}"),
        }
    }
}

impl Endpoint {
    /// True if only this machine can reach the endpoint. Host names other than `localhost` count as
    /// remote.
    pub fn is_local(&self) -> bool {
        match self {
            Endpoint::Tcp { host, .. } => {
                host == "localhost"
                    || host
                        .parse::<IpAddr>()
                        .is_ok_and(|address| address.is_loopback())
            }
            Endpoint::Ipc(_) | Endpoint::IpcAbstract(_) => true,
        }
    }

    /// True if a socket can connect to the endpoint: neither its port nor its file is chosen by the
    /// system. Connecting to host `*` connects to this machine.
    pub fn is_definite(&self) -> bool {
        match self {
            Endpoint::Tcp { port, .. } => *port != 0,
            Endpoint::Ipc(path) => path.as_os_str() != "*",
            Endpoint::IpcAbstract(_) => true,
        }
    }

    /// Fails unless the endpoint is definite ([`Endpoint::is_definite`]).
    pub fn require_definite(&self) -> Result<(), EndpointError> {
        match self.is_definite() {
            true => Ok(()),
            false => Err(EndpointError::of(self, Reason::Wildcard)),
        }
    }

    /// This endpoint with the host of `asked`.
    pub(crate) fn with_host_of(self, asked: &Endpoint) -> Self {
        match (self, asked) {
            (Endpoint::Tcp { port, .. }, Endpoint::Tcp { host, .. }) => Endpoint::Tcp {
                host: host.clone(),
                port,
                source: None,
            },
            (this, _) => this,
        }
    }

    /// The socket addresses of an endpoint, if they are known without a lookup. ipc endpoints have
    /// none.
    pub(crate) fn literal_addresses(&self) -> Option<Vec<SocketAddr>> {
        let Endpoint::Tcp { host, port, .. } = self else {
            return Some(Vec::new());
        };
        let address = match host.as_str() {
            "*" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            host => host.parse().ok()?,
        };
        Some(vec![SocketAddr::new(address, *port)])
    }

    /// The addresses to bind. With a host name that is no network interface, this blocks until the
    /// resolver returns.
    pub(crate) fn addresses_to_bind(&self) -> Result<Vec<SocketAddr>, EndpointError> {
        let Endpoint::Tcp { host, port, source } = self else {
            return Ok(Vec::new());
        };
        if source.is_some() {
            return Err(EndpointError::of(self, Reason::BoundSource));
        }
        if self.literal_addresses().is_none()
            && let Ok(found) = interface::addresses(host)
            && let Some(mut address) = found.into_iter().next()
        {
            address.set_port(*port);
            return Ok(vec![address]);
        }
        self.addresses()
    }

    /// The local address from which a connection to `target` is opened; `None` if the system chooses it.
    pub(crate) fn source_for(
        &self,
        target: SocketAddr,
    ) -> Result<Option<SocketAddr>, EndpointError> {
        let Endpoint::Tcp {
            source: Some(source),
            ..
        } = self
        else {
            return Ok(None);
        };
        let found = interface::local_addresses(&source.host)
            .map_err(|error| EndpointError::of(self, Reason::Lookup(Arc::new(error))))?;
        let mut found = found
            .into_iter()
            .filter(|address| address.is_ipv4() == target.is_ipv4());
        let Some(mut address) = found.next() else {
            return Err(EndpointError::of(self, Reason::NoSource));
        };
        address.set_port(source.port);
        Ok(Some(address))
    }

    /// The socket addresses of an endpoint, in the resolver's order. With a host name, this blocks
    /// until the resolver returns.
    pub(crate) fn addresses(&self) -> Result<Vec<SocketAddr>, EndpointError> {
        if let Some(addresses) = self.literal_addresses() {
            return Ok(addresses);
        }
        let Endpoint::Tcp { host, port, .. } = self else {
            return Ok(Vec::new());
        };
        let found: Vec<_> = (host.as_str(), *port)
            .to_socket_addrs()
            .map_err(|error| EndpointError::of(self, Reason::Lookup(Arc::new(error))))?
            .collect();
        if found.is_empty() {
            return Err(EndpointError::of(self, Reason::NoAddress));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_round_trip() {
        for text in [
            "tcp://127.0.0.1:5555",
            "tcp://[::1]:5555",
            "tcp://*:5555",
            "tcp://example.org:1",
            "tcp://eth0:0;10.0.0.1:5555",
            "tcp://[::1]:7;[fe80::1%eth0]:5555",
            "ipc:///tmp/x.sock",
            "ipc://rel/x.sock",
            "ipc://@name",
        ] {
            assert_eq!(text.parse::<Endpoint>().expect(text).to_string(), text);
        }
        let any: Endpoint = "tcp://127.0.0.1:*".parse().unwrap();
        assert_eq!(any.to_string(), "tcp://127.0.0.1:0");
    }

    #[test]
    fn texts_that_are_no_endpoints_are_refused_with_the_reason() {
        let long = format!("ipc:///{}", "x".repeat(107));
        for (text, want) in [
            ("", "unknown transport"),
            ("udp://1.2.3.4:5", "unknown transport"),
            ("tcp://", "no port"),
            ("tcp://host", "no port"),
            ("tcp://:5", "no host"),
            ("tcp://h:65536", "between"),
            ("tcp://h:-1", "no number"),
            ("tcp://h:+1", "no number"),
            ("tcp://::1:5", "brackets"),
            ("tcp://[::1:5", "bracket"),
            ("tcp://[x]:5", "IPv6"),
            ("tcp://a b:5", "host name"),
            ("tcp://a:1;b:2;c:3", "brackets"),
            ("tcp://;b:2", "no port"),
            ("tcp://a:1;", "no port"),
            ("ipc://", "no path"),
            ("ipc://@", "no abstract name"),
            ("ipc://a\0b", "NUL"),
            (&long, "107"),
        ] {
            let error = text.parse::<Endpoint>().expect_err(text).to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
