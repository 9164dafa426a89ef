//! tcp and ipc streams and listeners with one interface.

use std::fs;
use std::io::{self, IoSlice, Read};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
#[cfg(target_os = "linux")]
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use socket2::SockRef;

use super::{Endpoint, rights};
use crate::limits;

/// Sizes of a socket's kernel buffers, in bytes; `None` = the system's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    /// `SO_SNDBUF`.
    pub send: Option<usize>,
    /// `SO_RCVBUF`.
    pub receive: Option<usize>,
}

impl Buffers {
    fn set<T: AsFd>(self, socket: &T) -> io::Result<()> {
        let socket = SockRef::from(socket);
        if let Some(size) = self.send {
            socket.set_send_buffer_size(size)?;
        }
        if let Some(size) = self.receive {
            socket.set_recv_buffer_size(size)?;
        }
        Ok(())
    }
}

/// Options of streams and listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Sizes of the kernel's buffers.
    pub buffers: Buffers,
    /// Number of connections of a listener that wait to be accepted; the system may allow fewer.
    pub backlog: i32,
    /// tcp keepalive: the time without traffic before the first probe; `None` = the system's
    /// default, which is usually no probe.
    pub keepalive: Option<Keepalive>,
    /// tcp: the connection fails if sent bytes are not acknowledged within this time
    /// (`TCP_USER_TIMEOUT`, Linux); `None` = the system's default.
    pub user_timeout: Option<Duration>,
}

/// tcp keepalive (`SO_KEEPALIVE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Time without traffic before the first probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// The connection fails after this number of probes without an answer.
    pub probes: u32,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions {
            buffers: Buffers::default(),
            backlog: limits::LISTEN_BACKLOG,
            keepalive: None,
            user_timeout: None,
        }
    }
}

impl StreamOptions {
    /// Sets the options of a tcp connection. Unsent bytes in the kernel are limited, because a PING
    /// must wait behind them. Bytes that are sent and not yet acknowledged do not count.
    fn set_tcp(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        #[cfg(any(target_os = "linux", target_os = "android"))]
        socket.set_tcp_notsent_lowat(limits::UNSENT_BYTES)?;
        if let Some(keepalive) = self.keepalive {
            let values = socket2::TcpKeepalive::new()
                .with_time(keepalive.idle)
                .with_interval(keepalive.interval)
                .with_retries(keepalive.probes);
            socket.set_tcp_keepalive(&values)?;
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if self.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.user_timeout)?;
        }
        Ok(())
    }
}

/// A non-blocking connected (or connecting) stream.
#[derive(Debug)]
pub enum Stream {
    /// tcp, without Nagle's algorithm and with a limit on unsent bytes in the kernel.
    Tcp(TcpStream),
    /// ipc.
    Unix(UnixStream),
}

impl Stream {
    /// Starts to connect. On completion the stream becomes writable; then call
    /// [`Stream::connect_result`].
    ///
    /// `address` is an address of a tcp endpoint.
    pub fn connect(
        endpoint: &Endpoint,
        address: Option<SocketAddr>,
        options: &StreamOptions,
    ) -> io::Result<Stream> {
        let stream = match (endpoint, address) {
            (Endpoint::Tcp { .. }, Some(address)) => {
                let source = endpoint.source_for(address).map_err(io::Error::other)?;
                Stream::Tcp(connect_tcp(address, source)?)
            }
            (Endpoint::Tcp { .. }, None) => {
                return Err(io::Error::from(io::ErrorKind::AddrNotAvailable));
            }
            (Endpoint::Ipc(path), _) => Stream::Unix(UnixStream::connect(path)?),
            (Endpoint::IpcAbstract(name), _) => {
                Stream::Unix(UnixStream::connect_addr(&abstract_address(name)?)?)
            }
        };
        match &stream {
            Stream::Tcp(stream) => options.buffers.set(stream)?,
            Stream::Unix(stream) => {
                rights::refuse(stream);
                options.buffers.set(stream)?;
            }
        }
        Ok(stream)
    }

    /// The result of connecting: `Ok(true)` when connected, `Ok(false)` while it continues.
    ///
    /// A tcp connection of a socket to itself is a refusal: the system may choose the port of the
    /// endpoint as the local port when no process listens on it.
    pub fn connect_result(&self, options: &StreamOptions) -> io::Result<bool> {
        let (error, peer) = match self {
            Stream::Tcp(stream) => (stream.take_error()?, stream.peer_addr().map(drop)),
            Stream::Unix(stream) => (stream.take_error()?, stream.peer_addr().map(drop)),
        };
        if let Some(error) = error {
            return Err(error);
        }
        match peer {
            Ok(()) => {
                if let Stream::Tcp(stream) = self {
                    if stream.local_addr()? == stream.peer_addr()? {
                        let what = "no process listens there (the connection was to itself)";
                        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, what));
                    }
                    options.set_tcp(stream)?;
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The peer's address, for messages to people.
    pub fn peer(&self) -> String {
        match self {
            Stream::Tcp(stream) => match stream.peer_addr() {
                Ok(address) => format!("tcp://{address}"),
                Err(_) => "tcp://?".to_owned(),
            },
            Stream::Unix(stream) => ipc_peer(stream),
        }
    }

    /// Writes as many bytes of the slices as the system accepts. SIGPIPE is never raised.
    #[inline]
    pub fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => send(&SockRef::from(stream), slices),
            Stream::Unix(stream) => send(&SockRef::from(stream), slices),
        }
    }

    /// Shuts down the sending direction.
    pub fn shut_down(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    /// Registers the stream for readiness events.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self {
            Stream::Tcp(stream) => stream.register(registry, token, interest),
            Stream::Unix(stream) => stream.register(registry, token, interest),
        }
    }

    /// Removes the stream from the registry.
    pub fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.deregister(registry),
            Stream::Unix(stream) => stream.deregister(registry),
        }
    }
}

impl Read for Stream {
    #[inline]
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(into),
            Stream::Unix(stream) => stream.read(into),
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
#[inline]
fn send(socket: &SockRef<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    match slices {
        // A call without a vector costs less.
        [slice] => socket.send_with_flags(slice, libc::MSG_NOSIGNAL),
        slices => socket.send_vectored_with_flags(slices, libc::MSG_NOSIGNAL),
    }
}

/// Systems without `MSG_NOSIGNAL` have a socket option, which mio sets.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
#[inline]
fn send(socket: &SockRef<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    socket.send_vectored(slices)
}

/// A bound, non-blocking listener. The socket file that it created is removed when it is dropped.
#[derive(Debug)]
pub enum Listener {
    /// tcp.
    Tcp(TcpListener),
    /// ipc; abstract names have no file.
    Unix(UnixListener, Option<SocketFile>),
}

/// The file of a bound Unix socket. It is removed only if device and inode are still those of our
/// file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// The private folder that was created for the file, if any.
    folder: Option<PathBuf>,
    /// The process that has bound it. Its forked children do not remove the file.
    process: u32,
}

impl SocketFile {
    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| file.dev() == self.device && file.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::debug!("cannot remove socket file {}: {error}", self.path.display());
        }
        if let Some(folder) = &self.folder
            && let Err(error) = fs::remove_dir(folder)
        {
            log::debug!("cannot remove folder {}: {error}", folder.display());
        }
    }
}

impl Listener {
    /// Binds a listener for each address of the endpoint. A socket file without a listener is
    /// replaced. With a host name, this blocks until the resolver returns. The file of a private ipc
    /// socket has mode 0600 whatever the umask is; the mode of other socket files depends on the
    /// umask.
    pub fn bind(
        endpoint: &Endpoint,
        options: &StreamOptions,
        is_private: bool,
    ) -> io::Result<Vec<Listener>> {
        match endpoint {
            Endpoint::Tcp { .. } => bind_tcp(endpoint, options),
            Endpoint::Ipc(path) if path.as_os_str() == "*" => {
                let folder = private_folder()?;
                let bound = bind_file(
                    folder.join("socket"),
                    Some(folder.clone()),
                    options,
                    is_private,
                );
                if bound.is_err() {
                    // Without this, a folder without a socket would be left.
                    let _ = fs::remove_dir(&folder);
                }
                Ok(vec![bound?])
            }
            Endpoint::Ipc(path) => Ok(vec![bind_file(path.clone(), None, options, is_private)?]),
            Endpoint::IpcAbstract(name) => {
                let listener = UnixListener::bind_addr(&abstract_address(name)?)?;
                rights::refuse(&listener);
                Ok(vec![Listener::Unix(listener, None)])
            }
        }
    }

    /// The endpoint that is bound, with the port or file that the system chose.
    pub fn endpoint(&self, asked: &Endpoint) -> Endpoint {
        match (self, asked) {
            (Listener::Tcp(listener), Endpoint::Tcp { .. }) => match listener.local_addr() {
                Ok(address) => Endpoint::Tcp {
                    host: address.ip().to_string(),
                    port: address.port(),
                    source: None,
                },
                Err(_) => asked.clone(),
            },
            (Listener::Unix(_, Some(file)), _) => Endpoint::Ipc(file.path.clone()),
            _ => asked.clone(),
        }
    }

    /// Accepts the next waiting connection; `WouldBlock` if there is none.
    pub fn accept(&self, options: &StreamOptions) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                options.set_tcp(&stream)?;
                Ok(Stream::Tcp(stream))
            }
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                // Accepted Unix sockets do not inherit the sizes.
                options.buffers.set(&stream)?;
                Ok(Stream::Unix(stream))
            }
        }
    }

    /// Registers the listener for readiness events.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
            Listener::Unix(listener, _) => listener.register(registry, token, Interest::READABLE),
        }
    }
}

/// Describes the peer of a Unix socket by the listener's path, because a connecting Unix socket has
/// no address.
fn ipc_peer(stream: &UnixStream) -> String {
    let ends = [stream.local_addr(), stream.peer_addr()];
    let path = ends.iter().flatten().find_map(|end| end.as_pathname());
    match path {
        Some(path) => format!("ipc peer at {}", path.display()),
        None => "ipc peer".to_owned(),
    }
}

/// Binds a listener for each address of a host. Addresses that this machine does not have are left
/// out, if it has another one. All listeners have the same port.
fn bind_tcp(endpoint: &Endpoint, options: &StreamOptions) -> io::Result<Vec<Listener>> {
    let addresses = endpoint.addresses_to_bind().map_err(io::Error::other)?;
    let mut attempts = limits::SHARED_PORT_ATTEMPTS_MAX;
    loop {
        match bind_addresses(&addresses, options) {
            // The port that the system chose for the first address is in use at another one.
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && addresses.iter().all(|address| address.port() == 0)
                    && attempts > 0 =>
            {
                attempts -= 1;
            }
            bound => return bound,
        }
    }
}

fn bind_addresses(addresses: &[SocketAddr], options: &StreamOptions) -> io::Result<Vec<Listener>> {
    let mut bound: Vec<Listener> = Vec::new();
    let mut port = None;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for (index, address) in addresses.iter().enumerate() {
        if addresses
            .get(..index)
            .is_some_and(|earlier| earlier.contains(address))
        {
            continue;
        }
        let mut address = *address;
        address.set_port(port.unwrap_or(address.port()));
        match listen(address, options) {
            Ok(listener) => {
                port = Some(listener.local_addr()?.port());
                bound.push(Listener::Tcp(listener));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => last = error,
        }
    }
    match bound.is_empty() {
        true => Err(last),
        false => Ok(bound),
    }
}

/// Starts to connect, from the local address `source` if there is one.
fn connect_tcp(address: SocketAddr, source: Option<SocketAddr>) -> io::Result<TcpStream> {
    let Some(source) = source else {
        return TcpStream::connect(address);
    };
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // The port of an earlier connection can be used again at once.
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

fn listen(address: SocketAddr, options: &StreamOptions) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    options.buffers.set(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(options.backlog)?;
    Ok(TcpListener::from_std(socket.into()))
}

fn bind_file(
    path: PathBuf,
    folder: Option<PathBuf>,
    options: &StreamOptions,
    is_private: bool,
) -> io::Result<Listener> {
    let listener = bind_path(&path, |path| bind_unix(path, options.backlog, is_private))?;
    rights::refuse(&listener);
    let file = fs::symlink_metadata(&path)?;
    let file = SocketFile {
        device: file.dev(),
        inode: file.ino(),
        path,
        folder,
        process: std::process::id(),
    };
    Ok(Listener::Unix(listener, Some(file)))
}

/// Creates a folder that only this user can enter.
fn private_folder() -> io::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let base = std::env::temp_dir();
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = base.join(format!("casparian-ipc-{}-{count}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result.map(|()| folder),
        }
    }
}

/// Binds a Unix socket that refuses descriptors. Its file has mode 0600 from its creation on,
/// whatever the umask is. On systems other than Linux the mode depends on the umask.
pub fn bind_private(path: &Path) -> io::Result<UnixListener> {
    bind_unix(path, limits::LISTEN_BACKLOG, true)
}

fn bind_unix(path: &Path, backlog: i32, is_private: bool) -> io::Result<UnixListener> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    #[cfg(target_os = "linux")]
    let socket = match is_private {
        true => {
            // The file gets the mode of the socket, minus the umask.
            let socket = fs::File::from(OwnedFd::from(socket));
            socket.set_permissions(fs::Permissions::from_mode(0o600))?;
            socket2::Socket::from(OwnedFd::from(socket))
        }
        false => socket,
    };
    #[cfg(not(target_os = "linux"))]
    let _ = is_private;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    rights::refuse(&socket);
    socket.listen(backlog)?;
    socket.set_nonblocking(true)?;
    let listener = std::os::unix::net::UnixListener::from(OwnedFd::from(socket));
    Ok(UnixListener::from_std(listener))
}

fn bind_path(
    path: &Path,
    bind: impl Fn(&Path) -> io::Result<UnixListener>,
) -> io::Result<UnixListener> {
    match bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = fs::symlink_metadata(path)?.file_type().is_socket();
            // The connect does not block. Only `ConnectionRefused` proves that no process listens:
            // a listener that is stopped or whose backlog is full gives another result.
            let refused = UnixStream::connect(path)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if !(is_socket && refused) {
                return Err(error);
            }
            fs::remove_file(path)?;
            bind(path)
        }
        result => result,
    }
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &str) -> io::Result<std::os::unix::net::SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    std::os::unix::net::SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_name: &str) -> io::Result<std::os::unix::net::SocketAddr> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "abstract ipc names exist on Linux only",
    ))
}

#[cfg(test)]
mod tests;
