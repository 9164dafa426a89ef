//! Determines which user of this host owns the other end of a connection. For ipc by `SO_PEERCRED`,
//! for tcp by the owner of the peer's socket in `/proc/net/tcp` and `tcp6`.
//!
//! In these tables a socket that its process has closed has inode 0 and user 0. Its user counts as
//! unknown, not as root.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::PeerId;
use super::users::{LocalUser, NotAdmitted};
use crate::limits;
use crate::reactor::{Endpoint, Stream};

/// The users of this host whose peers are admitted when the mechanism does not authenticate. This
/// applies to peers that connect to us and to peers that we connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalUsers {
    uids: BTreeSet<u32>,
}

impl LocalUsers {
    /// Our own user, root, and the users `others`.
    pub fn and(others: &[u32]) -> Self {
        let own = rustix::process::geteuid().as_raw();
        LocalUsers {
            uids: others.iter().copied().chain([own, 0]).collect(),
        }
    }

    /// [`LocalUsers::and`] for the peers of an endpoint. `None` if the system does not show the
    /// owners of tcp connections: then every user is admitted. In that case a warning is logged,
    /// which begins with `what`; it is an error if `others` is not empty.
    pub fn of_endpoint(
        endpoint: &Endpoint,
        others: &[u32],
        what: &str,
    ) -> io::Result<Option<Self>> {
        let users = LocalUsers::and(others);
        let Endpoint::Tcp { .. } = endpoint else {
            return Ok(Some(users));
        };
        match LocalUsers::check() {
            Ok(()) => Ok(Some(users)),
            Err(error) if others.is_empty() => {
                log::warn!(
                    "{what}, because /proc/net/tcp does not show whose a connection is ({error}); \
                     use CURVE"
                );
                Ok(None)
            }
            Err(error) => Err(io::Error::new(
                error.kind(),
                format!("--allow-uid needs /proc/net/tcp, which cannot be read: {error}"),
            )),
        }
    }

    /// Why a peer of this user is not admitted; `None` if it is admitted. `listens`: the peer is a
    /// listener to which we have connected.
    pub(super) fn not_admitted(&self, user: LocalUser, listens: bool) -> Option<NotAdmitted> {
        let uid = match user {
            LocalUser::Uid(uid) if !self.uids.contains(&uid) => Some(uid),
            LocalUser::Unknown => None,
            LocalUser::Uid(_) | LocalUser::Unchecked => return None,
        };
        Some(NotAdmitted { uid, listens })
    }

    /// True if they are only our own user and root.
    pub(super) fn is_default_users(&self) -> bool {
        *self == LocalUsers::and(&[])
    }

    /// Sets the mode of a socket's file so that all users can connect to it, whatever the umask is,
    /// if other users are admitted. Then not the mode but the user of each connection decides. Does
    /// nothing on systems that do not show that user.
    pub(super) fn open_socket_file(&self, socket: &Path) -> io::Result<()> {
        if self.is_default_users() {
            return Ok(());
        }
        open_to_all(socket).map_err(|error| {
            let what = format!(
                "cannot let other users connect to {}: {error}",
                socket.display()
            );
            io::Error::new(error.kind(), what)
        })?;
        let folders = std::path::absolute(socket)?;
        for folder in folders.ancestors().skip(1) {
            if let Ok(found) = folder.metadata()
                && found.mode() & 0o011 == 0
                && found.uid() == rustix::process::geteuid().as_raw()
            {
                log::warn!(
                    "no other user can reach {}: folder {} has mode {:03o}",
                    socket.display(),
                    folder.display(),
                    found.mode() & 0o777
                );
            }
        }
        Ok(())
    }

    /// Fails if the system does not show the owners of tcp sockets.
    fn check() -> io::Result<()> {
        let mut table = BufReader::new(File::open(TABLES[0])?);
        let mut line = String::new();
        table.by_ref().take(LINE_SIZE_MAX).read_line(&mut line)?;
        let has = |name: &str| line.split_whitespace().any(|column| column == name);
        match has("uid") && has("inode") {
            true => Ok(()),
            false => Err(io::Error::other("it has no columns `uid` and `inode`")),
        }
    }
}

const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// Maximum size of a line of these tables, in bytes. Real lines have about 150.
const LINE_SIZE_MAX: u64 = 4 << 10;

/// The addresses of a tcp connection: the peer's, then ours.
type Ends = (SocketAddr, SocketAddr);

/// Determines the users of connections, by one read of the tables for all of them. Fails if a table
/// cannot be read; then the users of tcp connections of this host are unknown.
pub(super) fn find_users<'a>(
    streams: impl Iterator<Item = (PeerId, &'a Stream)>,
) -> (Vec<(PeerId, LocalUser)>, io::Result<()>) {
    let mut users: Vec<(PeerId, LocalUser)> = Vec::new();
    let mut wanted: HashMap<Ends, usize> = HashMap::new();
    for (id, stream) in streams {
        let user = match stream {
            Stream::Unix(stream) => user_of(stream),
            Stream::Tcp(stream) => match (stream.peer_addr(), stream.local_addr()) {
                (Ok(theirs), Ok(ours)) if is_on_this_host(theirs, ours) => {
                    wanted.insert((canonical(theirs), canonical(ours)), users.len());
                    LocalUser::Unknown
                }
                (Ok(_), Ok(_)) => LocalUser::Unchecked,
                // It has been closed.
                _ => LocalUser::Unknown,
            },
        };
        users.push((id, user));
    }
    // A read can miss a line that moves in the table at the same time.
    for _ in 0..limits::OWNER_READS_MAX {
        if wanted.is_empty() {
            break;
        }
        for table in TABLES {
            let found = File::open(table)
                .and_then(|file| users_in(BufReader::with_capacity(64 << 10, file), &wanted));
            match found {
                Ok(found) => {
                    for (ends, user) in found {
                        let index = wanted.remove(&ends);
                        if let Some((_, known)) = index.and_then(|index| users.get_mut(index)) {
                            *known = user;
                        }
                    }
                }
                // On a system without IPv6 the second table does not exist.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let error = io::Error::new(error.kind(), format!("{table}: {error}"));
                    return (users, Err(error));
                }
            }
        }
    }
    (users, Ok(()))
}

/// Does nothing: this system does not show the owner of a connection, so the mode of the file
/// decides.
#[cfg(not(target_os = "linux"))]
fn open_to_all(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Sets the mode of a socket's file to 0666. Another user may replace the file at the path, so it
/// is opened, checked, and changed through its descriptor.
#[cfg(target_os = "linux")]
fn open_to_all(path: &Path) -> io::Result<()> {
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let found = file.metadata()?;
    let is_ours = found.uid() == rustix::process::geteuid().as_raw();
    if !found.file_type().is_socket() || !is_ours {
        return Err(io::Error::other("another program has replaced it"));
    }
    let file = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::set_permissions(file, fs::Permissions::from_mode(0o666))
}

#[cfg(target_os = "linux")]
fn user_of(stream: &mio::net::UnixStream) -> LocalUser {
    match rustix::net::sockopt::socket_peercred(stream) {
        Ok(user) => LocalUser::Uid(user.uid.as_raw()),
        Err(_) => LocalUser::Unknown,
    }
}

/// On other systems the mode of the socket's file decides.
#[cfg(not(target_os = "linux"))]
fn user_of(_: &mio::net::UnixStream) -> LocalUser {
    LocalUser::Unchecked
}

/// True if both ends of a connection are on this host: one is a loopback address, or the peer's
/// address belongs to any interface of this host.
fn is_on_this_host(theirs: SocketAddr, ours: SocketAddr) -> bool {
    let (theirs_ip, ours) = (theirs.ip().to_canonical(), ours.ip().to_canonical());
    let is_shown = theirs_ip.is_loopback() || ours.is_loopback() || theirs_ip == ours;
    is_shown || is_own(theirs)
}

/// Whether an address belongs to this host: then the kernel chooses it as the source address for a
/// connection to itself. Also true if the kernel returns no source address.
fn is_own(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    // A link-local address keeps its scope.
    let (any, address): (IpAddr, _) = match ip {
        IpAddr::V4(_) => (
            Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::new(ip, address.port()),
        ),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), address),
    };
    // Connecting a UDP socket sends nothing; it only chooses the source address.
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    source.map_or(true, |source| source.ip() == ip)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The users of those connections in a table that are keys of `wanted`.
fn users_in(
    mut table: impl BufRead,
    wanted: &HashMap<Ends, usize>,
) -> io::Result<Vec<(Ends, LocalUser)>> {
    let mut found = Vec::new();
    let mut line = String::new();
    loop {
        line.clear();
        if table.by_ref().take(LINE_SIZE_MAX).read_line(&mut line)? == 0 {
            return Ok(found);
        }
        if let Some((ends, user)) = row(&line)
            && wanted.contains_key(&ends)
        {
            found.push((ends, user));
        }
    }
}

/// Parses a row: `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`
fn row(line: &str) -> Option<(Ends, LocalUser)> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let ends = (address(columns.next()?)?, address(columns.next()?)?);
    let uid = columns.nth(4)?.parse().ok()?;
    let inode: u64 = columns.nth(1)?.parse().ok()?;
    let user = match inode {
        0 => LocalUser::Unknown,
        _ => LocalUser::Uid(uid),
    };
    Some((ends, user))
}

/// Parses an address of a table: 32-bit words in native byte order, and a port, in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        // The kernel prints the words of an address as native integers.
        #[allow(clippy::host_endian_bytes)]
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn rows_of_the_kernels_tables_are_read() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
        let four = "   1: 0100007F:A2C4 0200007F:15B3 01 00000000:00000000 00:00000000 00000000  1001        0 8391 1 0 20 4 30 10 -1";
        let mapped = "   2: 0000000000000000FFFF00000100007F:A2C4 0000000000000000FFFF00000200007F:15B3 01 00000000:00000000 00:00000000 00000000  1001        0 8391 1 0";
        let six = "   3: 00000000000000000000000001000000:A2C4 00000000000000000000000001000000:15B3 01 00000000:00000000 00:00000000 00000000     0        0 77 1 0";
        let closed = "   4: 0100007F:A2C4 0200007F:15B3 05 00000000:00000000 00:00000000 00000000     0        0 0 1 0";
        let ends = |theirs: &str, ours: &str| (theirs.parse().unwrap(), ours.parse().unwrap());
        let v4 = ends("127.0.0.1:41668", "127.0.0.2:5555");
        let v6 = ends("[::1]:41668", "[::1]:5555");
        for (line, want) in [
            (head, None),
            (four, Some((v4, LocalUser::Uid(1001)))),
            (mapped, Some((v4, LocalUser::Uid(1001)))),
            (six, Some((v6, LocalUser::Uid(0)))),
            (closed, Some((v4, LocalUser::Unknown))),
            ("", None),
            ("1: 0100007F:A2C4", None),
            ("1: 01é0007F:A2C4 0 0 0 0 0 0 0 0", None),
            ("1: 010000:A2C4 0100007F:1 1 1 1 1 1 1 1", None),
        ] {
            assert_eq!(row(line), want, "{line}");
        }
    }

    #[test]
    fn a_peer_is_on_this_host_by_its_address() {
        for (theirs, ours, want) in [
            ("127.0.0.1:1", "127.0.0.1:2", true),
            ("127.8.0.1:1", "127.0.0.1:2", true),
            ("[::1]:1", "[::1]:2", true),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:2", true),
            ("192.0.2.1:1", "192.0.2.1:2", true),
            ("192.0.2.1:1", "127.0.0.1:2", true),
            ("[2001:db8::1]:1", "[::1]:2", true),
        ] {
            let (theirs, ours) = (theirs.parse().unwrap(), ours.parse().unwrap());
            assert_eq!(is_on_this_host(theirs, ours), want, "{theirs} {ours}");
        }
        // Addresses of this host's interfaces, if it has any.
        for far in ["192.0.2.1:1", "[2001:db8::1]:1"] {
            let far: SocketAddr = far.parse().unwrap();
            let any = if far.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let Ok(socket) = UdpSocket::bind(any) else {
                continue;
            };
            if socket.connect(far).is_ok() {
                let near = socket.local_addr().unwrap();
                assert!(is_own(near), "{near}");
                assert_eq!(is_own(far), near.ip() == far.ip(), "{far}");
            }
        }
    }
}
