//! The event loop's parts: readiness, wake-ups, signals; tcp and ipc listeners and streams;
//! lookups of host names.
//!
//! What it is: a thin layer over mio (epoll, kqueue) that one thread drives. A loop owns one
//! [`Reactor`], registers its sources under tokens of its own ([`token`]), computes the
//! earliest deadline of everything it drives, and waits.
//!
//! What it is not: it knows no protocol and has no callbacks.
//!
//! Readiness is edge-triggered: the owner of a token must continue until the operating system
//! says `WouldBlock`, or remember that it has not.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

#[cfg(feature = "process")]
mod boot_time;
mod endpoint;
mod lookup;
pub(crate) mod rights;
#[cfg(feature = "process")]
mod signals;
mod stopper;
mod stream;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

#[cfg(feature = "process")]
pub use boot_time::{BootTime, thread_time};
pub use endpoint::{Endpoint, EndpointError};
pub use lookup::Lookup;
#[cfg(test)]
pub(crate) use lookup::PLACES;
#[cfg(feature = "process")]
pub use signals::{Requests, Signals, reset as reset_signals};
pub use stopper::Stopper;
pub use stream::{Buffers, Listener, Stream, bind_private};

/// mio's poll and the events of its last wait.
#[derive(Debug)]
pub struct Reactor {
    poll: mio::Poll,
    events: mio::Events,
}

impl Reactor {
    /// A reactor of its own epoll or kqueue descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Reactor {
            poll: mio::Poll::new()?,
            events: mio::Events::with_capacity(crate::limits::EVENTS_PER_WAIT),
        })
    }

    /// Where sources are registered.
    pub fn registry(&self) -> &mio::Registry {
        self.poll.registry()
    }

    /// A handle from which any thread ends the current or next wait.
    pub fn waker(&self, token: mio::Token) -> io::Result<mio::Waker> {
        mio::Waker::new(self.registry(), token)
    }

    /// Waits for readiness until `deadline`; none waits for ever. A signal ends the wait early.
    pub fn wait(&mut self, deadline: Option<Instant>, now: Instant) -> io::Result<()> {
        // epoll counts in milliseconds; rounding up keeps a deadline from being polled for.
        let timeout = deadline.map(|at| {
            let left = at.saturating_duration_since(now);
            if left.is_zero() {
                left
            } else {
                left + Duration::from_micros(999)
            }
        });
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            result => result,
        }
    }

    /// What the last wait found.
    pub fn events(&self) -> impl Iterator<Item = &mio::event::Event> {
        self.events.iter()
    }
}

impl AsRawFd for Reactor {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}

/// Tokens: which part of a loop a source belongs to, and its place there.
///
/// A token of a source that has gone may still come out of the same wait; a spurious readiness
/// must do no harm, so owners treat it as a hint and try.
pub mod token {
    use mio::Token;

    const INDEX_BITS: u32 = 28;

    /// The token of place `index` (below 2^28) of part `owner` (0 to 15).
    pub fn new(owner: u8, index: usize) -> Token {
        Token((usize::from(owner & 0xF) << INDEX_BITS) | (index & ((1 << INDEX_BITS) - 1)))
    }

    /// The part a token belongs to.
    pub fn owner(token: Token) -> u8 {
        ((token.0 >> INDEX_BITS) & 0xF) as u8
    }

    /// The place within its part.
    pub fn index(token: Token) -> usize {
        token.0 & ((1 << INDEX_BITS) - 1)
    }
}
