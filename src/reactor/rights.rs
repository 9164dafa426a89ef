//! File descriptors in messages of Unix sockets (SCM_RIGHTS, unix(7)).
//!
//! No socket of Casparian uses them. A received descriptor is closed in the process that reads the
//! message or closes the socket. Its sender can make this close block for any time: with a TCP
//! socket that has SO_LINGER, or a file on a network file system whose server does not respond.
//! From Linux 6.16 on, a socket can refuse descriptors: then the sender gets EPERM.

use std::os::fd::AsFd;

/// Makes a Unix socket, and the connections that it accepts from then on, refuse descriptors, if
/// the kernel supports it.
#[cfg(all(
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64"
    )
))]
#[allow(unsafe_code)]
pub(crate) fn refuse(socket: &impl AsFd) {
    use std::os::fd::AsRawFd;
    /// From asm-generic/socket.h; it is not in the `libc` crate.
    const SO_PASSRIGHTS: libc::c_int = 83;
    let off: libc::c_int = 0;
    let size = size_of_val(&off) as libc::socklen_t;
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel reads `size` bytes at the
    // address of `off`, which lives until the call returns.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const off).cast(),
            size,
        )
    };
    if set != 0 {
        let error = std::io::Error::last_os_error();
        log::debug!("descriptors over a Unix socket are not refused: {error}");
    }
}

/// Does nothing: this system does not support it.
#[cfg(not(all(
    target_os = "linux",
    any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64"
    )
)))]
pub(crate) fn refuse(_: &impl AsFd) {}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read};
    use std::mem::MaybeUninit;
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

    use super::*;

    fn send_descriptor(stream: &UnixStream) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let own = [stream.as_fd()];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&own)));
        let data = [IoSlice::new(b"x")];
        rustix::net::sendmsg(stream, &data, &mut ancillary, SendFlags::empty())
    }

    #[test]
    fn a_listener_and_its_connections_refuse_descriptors_and_take_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let before = UnixStream::connect(&path).unwrap();
        if send_descriptor(&before).is_ok() {
            refuse(&listener);
            let waiting = UnixStream::connect(&path).unwrap();
            let refused = send_descriptor(&waiting);
            if refused.is_ok() {
                // A kernel before Linux 6.16.
                return;
            }
            assert_eq!(refused, Err(rustix::io::Errno::PERM));
            let _first = listener.accept().unwrap();
            let (mut taken, _) = listener.accept().unwrap();
            assert_eq!(send_descriptor(&waiting), Err(rustix::io::Errno::PERM));
            std::io::Write::write_all(&mut &waiting, b"y").unwrap();
            let mut byte = [0];
            taken.read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"y");
        }
    }
}
