//! The descriptor of a blocking socket, for another event loop.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};

use crate::reactor::Reactor;

/// A descriptor that is readable while the socket's reactor has events, or a signal is set.
///
/// It is a poll of two sources: the reactor's descriptor, and one end of a pair of streams, in which
/// a byte waits while the signal is set.
#[derive(Debug)]
pub(super) struct Watched {
    poll: Poll,
    signal: UnixStream,
    other: UnixStream,
    is_set: bool,
}

impl Watched {
    pub(super) fn new(reactor: &Reactor) -> io::Result<Self> {
        let poll = Poll::new()?;
        let (signal, other) = UnixStream::pair()?;
        signal.set_nonblocking(true)?;
        other.set_nonblocking(true)?;
        let registry = poll.registry();
        for (index, descriptor) in [reactor.as_raw_fd(), signal.as_raw_fd()].iter().enumerate() {
            registry.register(&mut SourceFd(descriptor), Token(index), Interest::READABLE)?;
        }
        Ok(Watched {
            poll,
            signal,
            other,
            is_set: false,
        })
    }

    /// Sets or clears the signal.
    #[inline]
    pub(super) fn set(&mut self, is_set: bool) {
        if is_set != self.is_set {
            self.change(is_set);
        }
    }

    #[cold]
    fn change(&mut self, is_set: bool) {
        let result = match is_set {
            true => self.other.write(&[1]),
            false => self.signal.read(&mut [0]),
        };
        match result {
            Ok(_) => self.is_set = is_set,
            Err(error) => log::debug!("the signal of a descriptor: {error}"),
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }
}
