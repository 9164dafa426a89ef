//! Parts of an event loop: readiness, wake-ups, signals, tcp and ipc listeners and streams, lookups
//! of host names.
//!
//! It is a thin layer over mio (epoll, kqueue) for one thread. An event loop owns one [`Reactor`],
//! registers its sources with its own tokens ([`token`]), computes the earliest deadline of all its
//! parts, and waits.
//!
//! It implements no protocol and has no callbacks.
//!
//! Readiness is edge-triggered: the owner of a source must read or write until the operating system
//! returns `WouldBlock`, or remember that it has not done so.

#[cfg(feature = "process")]
mod boot_time;
mod coarse_time;
mod endpoint;
mod interface;
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
pub(crate) use coarse_time::CoarseTime;
pub use endpoint::{Endpoint, EndpointError, Source};
pub use lookup::Lookup;
/// Its `Registry`, `Token` and events are part of this crate's interface.
pub use mio;
#[cfg(feature = "process")]
pub use signals::{Requests, Signals, reset as reset_signals};
pub use stopper::Stopper;
pub use stream::{Buffers, Keepalive, Listener, Stream, StreamOptions, bind_private};

/// A mio poll and the events of the last wait.
#[derive(Debug)]
pub struct Reactor {
    poll: mio::Poll,
    events: mio::Events,
}

impl Reactor {
    /// Creates a reactor with its own epoll or kqueue descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Reactor {
            poll: mio::Poll::new()?,
            events: mio::Events::with_capacity(crate::limits::EVENTS_PER_WAIT),
        })
    }

    /// The registry in which sources are registered.
    pub fn registry(&self) -> &mio::Registry {
        self.poll.registry()
    }

    /// A handle by which any thread can end the current or the next wait.
    pub fn waker(&self, token: mio::Token) -> io::Result<mio::Waker> {
        mio::Waker::new(self.registry(), token)
    }

    /// Waits for readiness until `deadline`; `None` waits without a limit. A signal ends the wait
    /// early.
    pub fn wait(&mut self, deadline: Option<Instant>, now: Instant) -> io::Result<()> {
        // epoll's timeout is in milliseconds. Without rounding up, the loop would poll repeatedly
        // just before a deadline.
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

    /// The events of the last wait.
    pub fn events(&self) -> impl Iterator<Item = &mio::event::Event> {
        self.events.iter()
    }
}

impl AsRawFd for Reactor {
    fn as_raw_fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}

/// Tokens: each has the part of a loop that owns a source, and the source's index in that part.
///
/// A wait may still return the token of a source that has been closed since. So owners must treat
/// readiness as a hint: they try to read or write, and accept `WouldBlock`.
pub mod token {
    use mio::Token;

    const INDEX_BITS: u32 = 28;

    /// The token of source `index` (below 2^28) of part `owner` (0 to 15).
    pub fn new(owner: u8, index: usize) -> Token {
        Token((usize::from(owner & 0xF) << INDEX_BITS) | (index & ((1 << INDEX_BITS) - 1)))
    }

    /// The part that owns the token's source.
    pub fn owner(token: Token) -> u8 {
        ((token.0 >> INDEX_BITS) & 0xF) as u8
    }

    /// The source's index in its part.
    pub fn index(token: Token) -> usize {
        token.0 & ((1 << INDEX_BITS) - 1)
    }
}
