//! Endpoints: `tcp://host:port`, `ipc:///path`, `ipc://@abstract`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

/// An address to bind or connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A host (address or name) and a port. Host `*` binds all IPv4 addresses. With port `*` or 0
    /// the system chooses the port.
    Tcp {
        /// An address, a name, or `*`; an IPv6 address without brackets.
        host: String,
        /// The port; 0 = chosen by the system.
        port: u16,
    },
    /// A Unix socket in the file system. A listener at `*` creates its socket file in a new private
    /// folder.
    Ipc(PathBuf),
    /// A Unix socket in Linux's abstract namespace; the name without its `@`.
    IpcAbstract(String),
}

/// Why a text is not an endpoint, or why an endpoint's host cannot be resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointError {
    endpoint: String,
    reason: String,
    /// The text is not an endpoint.
    is_text: bool,
}

impl fmt::Display for EndpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "endpoint {:?}: {}", self.endpoint, self.reason)?;
        match self.is_text {
            true => f.write_str("; expected tcp://host:port, ipc:///path or ipc://@name"),
            false => Ok(()),
        }
    }
}

impl std::error::Error for EndpointError {}

/// Size of the path in `sockaddr_un`, including its terminating zero.
const UNIX_PATH_SIZE_MAX: usize = 108;

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |reason: &str| EndpointError {
            endpoint: text.chars().take(200).collect(),
            reason: reason.to_owned(),
            is_text: true,
        };
        if let Some(address) = text.strip_prefix("tcp://") {
            let (host, port) = address.rsplit_once(':').ok_or_else(|| fail("no port"))?;
            let host = match host.strip_prefix('[') {
                Some(inner) => {
                    let inner = inner
                        .strip_suffix(']')
                        .ok_or_else(|| fail("unclosed bracket"))?;
                    inner
                        .split('%')
                        .next()
                        .filter(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
                        .ok_or_else(|| fail("not an IPv6 address"))?;
                    inner
                }
                None if host.contains(':') => return Err(fail("IPv6 addresses need brackets")),
                None => host,
            };
            if host.is_empty() {
                return Err(fail("no host"));
            }
            if host.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
                return Err(fail("not a host name"));
            }
            let port = match port {
                "*" => 0,
                digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits
                    .parse()
                    .map_err(|_| fail("port is not between 0 and 65535"))?,
                _ => return Err(fail("port is no number")),
            };
            return Ok(Endpoint::Tcp {
                host: host.to_owned(),
                port,
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

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { host, port } if host.contains(':') => {
                write!(f, "tcp://[{host}]:{port}")
            }
            Endpoint::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
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

    /// This endpoint with the host of `asked`.
    pub(crate) fn with_host_of(self, asked: &Endpoint) -> Self {
        match (self, asked) {
            (Endpoint::Tcp { port, .. }, Endpoint::Tcp { host, .. }) => Endpoint::Tcp {
                host: host.clone(),
                port,
            },
            (this, _) => this,
        }
    }

    /// The socket addresses of an endpoint, if they are known without a lookup. ipc endpoints have
    /// none.
    pub(crate) fn literal_addresses(&self) -> Option<Vec<SocketAddr>> {
        let Endpoint::Tcp { host, port } = self else {
            return Some(Vec::new());
        };
        let address = match host.as_str() {
            "*" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            host => host.parse().ok()?,
        };
        Some(vec![SocketAddr::new(address, *port)])
    }

    /// The socket addresses of an endpoint, in the resolver's order. With a host name, this blocks
    /// until the resolver returns.
    pub(crate) fn addresses(&self) -> Result<Vec<SocketAddr>, EndpointError> {
        let fail = |reason: String| EndpointError {
            endpoint: self.to_string(),
            reason,
            is_text: false,
        };
        if let Some(addresses) = self.literal_addresses() {
            return Ok(addresses);
        }
        let Endpoint::Tcp { host, port } = self else {
            return Ok(Vec::new());
        };
        let found: Vec<_> = (host.as_str(), *port)
            .to_socket_addrs()
            .map_err(|error| fail(format!("cannot resolve the host: {error}")))?
            .collect();
        if found.is_empty() {
            return Err(fail("the host has no address".to_owned()));
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
