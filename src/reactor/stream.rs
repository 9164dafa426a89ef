//! tcp and ipc streams and listeners with one interface.

use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
#[cfg(target_os = "linux")]
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

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
    /// `addresses` are the addresses of a tcp endpoint. The first one for which connecting can be
    /// started is used.
    pub fn connect(
        endpoint: &Endpoint,
        addresses: &[SocketAddr],
        buffers: Buffers,
    ) -> io::Result<Stream> {
        let stream = match endpoint {
            Endpoint::Tcp { .. } => Stream::Tcp(first_of(addresses, TcpStream::connect)?),
            Endpoint::Ipc(path) => Stream::Unix(UnixStream::connect(path)?),
            Endpoint::IpcAbstract(name) => {
                Stream::Unix(UnixStream::connect_addr(&abstract_address(name)?)?)
            }
        };
        match &stream {
            Stream::Tcp(stream) => buffers.set(stream)?,
            Stream::Unix(stream) => {
                rights::refuse(stream);
                buffers.set(stream)?;
            }
        }
        Ok(stream)
    }

    /// The result of connecting: `Ok(true)` when connected, `Ok(false)` while it continues.
    pub fn connect_result(&self) -> io::Result<bool> {
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
                    set_tcp_options(stream)?;
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

impl Write for Stream {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    #[inline]
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write_vectored(slices),
            Stream::Unix(stream) => stream.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
}

impl SocketFile {
    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
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
    /// Binds a listener. A socket file without a listener is replaced. Accepted connections have
    /// the sizes of `buffers`. With a host name, this blocks until the resolver returns. The file
    /// of a private ipc socket has mode 0600 whatever the umask is; the mode of other socket files
    /// depends on the umask.
    pub fn bind(endpoint: &Endpoint, buffers: Buffers, is_private: bool) -> io::Result<Listener> {
        let listener = Self::bind_any(endpoint, is_private)?;
        match &listener {
            Listener::Tcp(listener) => buffers.set(listener)?,
            // Accepted Unix sockets do not inherit the sizes; [`Listener::accept`] sets them.
            Listener::Unix(..) => {}
        }
        Ok(listener)
    }

    fn bind_any(endpoint: &Endpoint, is_private: bool) -> io::Result<Listener> {
        match endpoint {
            Endpoint::Tcp { .. } => {
                let addresses = endpoint.addresses().map_err(io::Error::other)?;
                first_of(&addresses, TcpListener::bind).map(Listener::Tcp)
            }
            Endpoint::Ipc(path) if path.as_os_str() == "*" => {
                let folder = private_folder()?;
                bind_file(folder.join("socket"), Some(folder), is_private)
            }
            Endpoint::Ipc(path) => bind_file(path.clone(), None, is_private),
            Endpoint::IpcAbstract(name) => {
                let listener = UnixListener::bind_addr(&abstract_address(name)?)?;
                rights::refuse(&listener);
                Ok(Listener::Unix(listener, None))
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
                },
                Err(_) => asked.clone(),
            },
            (Listener::Unix(_, Some(file)), _) => Endpoint::Ipc(file.path.clone()),
            _ => asked.clone(),
        }
    }

    /// Accepts the next waiting connection; `WouldBlock` if there is none.
    pub fn accept(&self, buffers: Buffers) -> io::Result<Stream> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                set_tcp_options(&stream)?;
                Ok(Stream::Tcp(stream))
            }
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept()?;
                buffers.set(&stream)?;
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

/// The result of `attempt` for the first address for which it succeeds, or the last error.
fn first_of<T>(
    addresses: &[SocketAddr],
    attempt: impl Fn(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match attempt(*address) {
            Ok(made) => return Ok(made),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Limits the unsent bytes in the kernel, because a PING must wait behind them. Bytes that are sent
/// and not yet acknowledged do not count.
fn set_tcp_options(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    SockRef::from(stream).set_tcp_notsent_lowat(limits::UNSENT_BYTES)?;
    Ok(())
}

fn bind_file(path: PathBuf, folder: Option<PathBuf>, is_private: bool) -> io::Result<Listener> {
    let bind: fn(&Path) -> io::Result<UnixListener> = match is_private {
        true => bind_private,
        false => |path| UnixListener::bind(path),
    };
    let listener = bind_path(&path, bind)?;
    rights::refuse(&listener);
    let file = fs::symlink_metadata(&path)?;
    let file = SocketFile {
        device: file.dev(),
        inode: file.ino(),
        path,
        folder,
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
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    #[cfg(target_os = "linux")]
    let socket = {
        // The file gets the mode of the socket, minus the umask.
        let socket = fs::File::from(OwnedFd::from(socket));
        socket.set_permissions(fs::Permissions::from_mode(0o600))?;
        socket2::Socket::from(OwnedFd::from(socket))
    };
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    rights::refuse(&socket);
    socket.listen(limits::LISTEN_BACKLOG)?;
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
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_file_is_replaced_a_live_one_and_a_plain_file_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let endpoint = Endpoint::Ipc(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let live =
            Listener::bind(&endpoint, Buffers::default(), false).expect("stale file replaced");
        let error =
            Listener::bind(&endpoint, Buffers::default(), false).expect_err("live socket kept");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(live);
        assert!(!path.exists(), "our socket file goes with us");
        fs::write(&path, "data").unwrap();
        assert!(Listener::bind(&endpoint, Buffers::default(), false).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }
}
