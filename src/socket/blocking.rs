//! Blocking ROUTER and DEALER sockets, each with its own reactor.

use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use mio::Waker;

use super::{Counters, DisconnectReason, Event, Options, PeerId, SendError, Socket};
use crate::limits::{MESSAGES_PER_ITERATION, after};
use crate::reactor::{Endpoint, Reactor, token};
use crate::zmtp::{Message, SocketType};

#[derive(Debug)]
struct Driven {
    reactor: Reactor,
    socket: Socket,
    /// The time, read after every wait, not for every message.
    now: Instant,
    /// Number of messages returned since the clock was last checked.
    given: u32,
    /// Number of messages after which the clock is checked again. It is small while the owner is
    /// slow.
    clock_interval: u32,
    /// Number of messages that may be sent before the clock is checked again.
    until_poll: u32,
    /// Another event loop may be waiting for the descriptor.
    is_watched: Cell<bool>,
    waker: Option<Waker>,
}

/// Owner numbers of tokens in the reactor.
const SOCKET: u8 = 0;
const WAKER: u8 = 1;

/// While messages are available, the clock is checked at least once per this number of messages.
const MESSAGES_PER_CLOCK: u32 = 32;
/// While messages are available, readiness, timers and queues are processed at this interval.
const ITERATION_INTERVAL: Duration = Duration::from_millis(1);

fn parse(endpoint: &str) -> io::Result<Endpoint> {
    endpoint
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

impl Driven {
    fn new(socket_type: SocketType, options: Options) -> io::Result<Self> {
        let reactor = Reactor::new()?;
        let socket = Socket::new(socket_type, options, reactor.registry(), SOCKET)?;
        Ok(Driven {
            reactor,
            socket,
            now: Instant::now(),
            given: 0,
            clock_interval: 1,
            until_poll: 0,
            is_watched: Cell::new(false),
            waker: None,
        })
    }

    fn connect(&mut self, endpoint: &str) -> io::Result<PeerId> {
        let endpoint = parse(endpoint)?;
        if !endpoint.is_definite() {
            let what = format!("{endpoint}: a connection needs an endpoint of one place");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        self.now = Instant::now();
        Ok(self.socket.connect(&endpoint, self.now))
    }

    fn iterate(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let deadline = if self.socket.has_ready() {
            Some(self.now)
        } else {
            [deadline, self.socket.poll_timeout()]
                .into_iter()
                .flatten()
                .min()
        };
        self.wait(deadline)
    }

    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        // `self.now` may be long ago.
        self.reactor.wait(deadline, Instant::now())?;
        self.now = Instant::now();
        self.until_poll = 0;
        for event in self.reactor.events() {
            if token::owner(event.token()) == SOCKET {
                self.socket.handle_ready(event, self.now);
            }
        }
        self.socket.handle_timeout(self.now);
        Ok(())
    }

    /// Called before a write: if the socket was not called for a millisecond, polls and processes
    /// events, because messages that are written to a closed connection are lost.
    fn poll_readiness(&mut self) -> io::Result<()> {
        if self.now.elapsed() < ITERATION_INTERVAL {
            return Ok(());
        }
        self.wait(Some(self.now))?;
        self.socket.drive(self.now);
        Ok(())
    }

    /// Calls [`Driven::poll_readiness`] once for a number of sends.
    #[inline]
    fn poll_before_sending(&mut self) {
        match self.until_poll.checked_sub(1) {
            Some(left) => self.until_poll = left,
            None => {
                // If the reactor has failed, a later call returns the error.
                if let Err(error) = self.poll_readiness() {
                    log::debug!("before a send: {error}");
                }
                self.until_poll = MESSAGES_PER_CLOCK;
            }
        }
    }

    /// Makes the descriptor readable if there is work for which no readiness event comes.
    fn wake_watcher(&mut self) -> io::Result<()> {
        if !self.is_watched.get() || !self.socket.has_ready() {
            return Ok(());
        }
        let waker = match self.waker.take() {
            Some(waker) => waker,
            None => self.reactor.waker(token::new(WAKER, 0))?,
        };
        waker.wake()?;
        self.waker = Some(waker);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.now = Instant::now();
        self.iterate(Some(self.now))?;
        self.drive();
        self.wake_watcher()
    }

    fn receive(&mut self, timeout: Option<Duration>) -> io::Result<Option<PeerId>> {
        let mut deadline = None;
        let mut has_polled = false;
        // If messages are always available, readiness, timers and queues must still be processed.
        if self.given >= self.clock_interval {
            self.given = 0;
            if self.now.elapsed() >= ITERATION_INTERVAL {
                self.clock_interval = 1;
                self.socket.flush();
                self.wait(Some(self.now))?;
            } else {
                self.clock_interval = MESSAGES_PER_CLOCK.min(self.clock_interval * 2);
            }
        }
        loop {
            if let Some(id) = self.socket.receive(self.now) {
                self.given += 1;
                return Ok(Some(id));
            }
            if !has_polled {
                has_polled = true;
                if self.now.elapsed() >= ITERATION_INTERVAL {
                    self.wait(Some(self.now))?;
                    continue;
                }
            }
            self.socket.flush();
            if let Some(timeout) = timeout {
                let at = *deadline.get_or_insert_with(|| after(Instant::now(), timeout));
                if self.now >= at {
                    self.wake_watcher()?;
                    return Ok(None);
                }
            }
            self.iterate(deadline)?;
        }
    }

    fn drive(&mut self) {
        self.socket.drive(self.now);
        self.socket.flush();
    }

    /// Waits until an event may allow sending. To be called after [`Driven::drive`]. Messages that
    /// wait for the owner do not end the wait.
    fn wait_to_send(&mut self, deadline: Instant) -> io::Result<()> {
        // Readiness is reported only once, so there is no wait while reported readiness is
        // unprocessed.
        let wait = match self.socket.has_ready_to_drive() {
            true => Some(self.now),
            false => [Some(deadline), self.socket.poll_timeout()]
                .into_iter()
                .flatten()
                .min(),
        };
        self.wait(wait)
    }

    fn wait_writable(&mut self, timeout: Duration) -> io::Result<bool> {
        let before = self.socket.pending_bytes();
        let deadline = after(Instant::now(), timeout);
        self.poll_readiness()?;
        loop {
            self.drive();
            if before == 0 || self.socket.pending_bytes() < before {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            self.wait_to_send(deadline)?;
        }
    }

    /// Repeats a send until it succeeds, fails for good, or `timeout` is over.
    fn send(
        &mut self,
        timeout: Option<Duration>,
        mut send: impl FnMut(&mut Socket) -> Result<(), SendError>,
    ) -> io::Result<Result<(), SendError>> {
        self.poll_readiness()?;
        let result = send(&mut self.socket);
        if !matches!(result, Err(SendError::Full | SendError::NoPeer)) {
            return Ok(result);
        }
        let deadline = after(Instant::now(), timeout.unwrap_or(Duration::MAX));
        loop {
            self.drive();
            let result = send(&mut self.socket);
            let is_final = !matches!(result, Err(SendError::Full | SendError::NoPeer));
            if is_final || Instant::now() >= deadline {
                return Ok(result);
            }
            self.wait_to_send(deadline)?;
        }
    }

    /// Shuts down sending on all connections, and reads until the peers have closed them. Returns
    /// false if a connection on which messages were sent ended in another way, or `linger` is over.
    fn finish(&mut self, linger: Duration) -> io::Result<bool> {
        let deadline = after(Instant::now(), linger);
        let was_sent_to: HashSet<PeerId> = self.socket.peers_sent_to().collect();
        while self.socket.poll_event().is_some() {}
        let mut is_whole = true;
        self.socket.shut_down(self.now);
        loop {
            for _ in 0..MESSAGES_PER_ITERATION {
                if self.socket.receive(self.now).is_none() {
                    break;
                }
            }
            while let Some(event) = self.socket.poll_event() {
                if let Event::Disconnected { peer, reason, .. } = event {
                    is_whole &= reason == DisconnectReason::Closed || !was_sent_to.contains(&peer);
                }
            }
            if self.socket.peer_count() == 0 {
                return Ok(is_whole);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            self.iterate(Some(deadline))?;
        }
    }

    fn drain(&mut self, linger: Duration) -> io::Result<bool> {
        let deadline = after(Instant::now(), linger);
        self.poll_readiness()?;
        loop {
            self.drive();
            if self.socket.pending_bytes() == 0 {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            self.wait_to_send(deadline)?;
        }
    }
}

/// The methods that [`Router`] and [`Dealer`] have in common.
macro_rules! common_methods {
    ($name:ident, $socket_type:expr) => {
        impl $name {
            /// Creates a socket without peers. Fails if the options are invalid or the system has
            /// no more descriptors.
            pub fn new(options: Options) -> io::Result<Self> {
                Ok($name {
                    inner: Driven::new($socket_type, options)?,
                })
            }

            /// Binds a listener. Returns its endpoint, with the port or file that the system chose.
            pub fn bind(&mut self, endpoint: &str) -> io::Result<Endpoint> {
                self.inner.socket.bind(&parse(endpoint)?)
            }

            /// Closes the listener of an endpoint that `bind` returned. Accepted peers stay
            /// connected. Returns false if there is no such listener.
            pub fn unbind(&mut self, endpoint: &str) -> io::Result<bool> {
                Ok(self.inner.socket.unbind(&parse(endpoint)?))
            }

            /// Connects in the background, and retries after failures; see [`Socket::connect`].
            /// Fails if the endpoint is a wildcard (port `*` or 0, `ipc://*`).
            pub fn connect(&mut self, endpoint: &str) -> io::Result<PeerId> {
                self.inner.connect(endpoint)
            }

            /// Closes the connections to an endpoint that was passed to `connect`, and drops the
            /// messages queued for them. Returns false if there is none.
            pub fn disconnect(&mut self, endpoint: &str) -> io::Result<bool> {
                let endpoint = parse(endpoint)?;
                let now = Instant::now();
                Ok(self.inner.socket.disconnect_endpoint(&endpoint, now))
            }

            /// Writes queued messages as far as the kernel accepts them, continues handshakes,
            /// answers PINGs and detects closed connections; never blocks. Received messages are
            /// kept for `receive`.
            pub fn flush(&mut self) -> io::Result<()> {
                self.inner.flush()
            }

            /// For use after [`SendError::Full`]: writes, and waits until the number of queued
            /// bytes has decreased (returns true; at once if none are queued) or `timeout` is over
            /// (returns false).
            pub fn wait_writable(&mut self, timeout: Duration) -> io::Result<bool> {
                self.inner.wait_writable(timeout)
            }

            /// Waits until all queued messages are written, for `linger` at most. Returns true if
            /// all are written. If the socket is dropped then, the others are lost. See also
            /// `close`.
            pub fn drain(&mut self, linger: Duration) -> io::Result<bool> {
                self.inner.drain(linger)
            }

            /// Drains the socket and closes it (`ZMQ_LINGER`). Then waits until the peers have read
            /// the messages and closed their ends, for `linger` in total. (The system may discard
            /// undelivered bytes when a connection with unread input is closed.) Returns true if
            /// all messages were written and every connection ended in this way. Returns false if a
            /// connection was reset or a peer did not close in time; a peer with a blocking socket
            /// of this module closes only during its calls.
            pub fn close(mut self, linger: Duration) -> io::Result<bool> {
                let began = Instant::now();
                let has_left = self.inner.drain(linger)?;
                let left = linger.saturating_sub(began.elapsed());
                Ok(self.inner.finish(left)? && has_left)
            }

            /// The next lifecycle event (`zmq_socket_monitor`).
            pub fn poll_event(&mut self) -> Option<Event> {
                self.inner.socket.poll_event()
            }

            /// The counters of the socket.
            pub fn counters(&self) -> Counters {
                self.inner.socket.counters()
            }

            /// The inner socket, for operations that have no method here.
            pub fn socket(&mut self) -> &mut Socket {
                &mut self.inner.socket
            }
        }

        /// For use in another event loop. The descriptor is readable if the socket may have work:
        /// then call `receive` with a timeout of zero until it returns `None`. Timers (heartbeats,
        /// reconnects) are processed only in calls, so also make a call when
        /// [`Socket::poll_timeout`] is due.
        impl AsRawFd for $name {
            fn as_raw_fd(&self) -> RawFd {
                self.inner.is_watched.set(true);
                self.inner.reactor.as_raw_fd()
            }
        }
    };
}

/// A blocking ROUTER socket with its own reactor.
///
/// ```
/// use std::time::Duration;
/// use casparian::socket::{Options, Router, SendError};
///
/// let mut router = Router::new(Options::new().router_handover(true))?;
/// let bound = router.bind("tcp://127.0.0.1:*")?;
/// assert!(bound.to_string().starts_with("tcp://127.0.0.1:"));
/// assert_eq!(router.send(b"nobody", &[b"hello"]), Err(SendError::Unroutable));
/// assert!(router.receive(Some(Duration::ZERO))?.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Router {
    inner: Driven,
}

common_methods!(Router, SocketType::Router);

impl Router {
    /// Connects to a peer that is addressed by `routing_id` from now on; see
    /// [`Socket::connect_as`].
    pub fn connect_as(&mut self, endpoint: &str, routing_id: &[u8]) -> io::Result<PeerId> {
        let endpoint = parse(endpoint)?;
        self.inner.now = Instant::now();
        self.inner
            .socket
            .connect_as(&endpoint, routing_id, self.inner.now)
    }

    /// Receives the next message, with the routing ID of its peer. Returns `None` if `timeout` is
    /// over (`None` = no limit). Queued messages are written during the wait.
    pub fn receive(
        &mut self,
        timeout: Option<Duration>,
    ) -> io::Result<Option<(&[u8], Message<'_>)>> {
        let Some(id) = self.inner.receive(timeout)? else {
            return Ok(None);
        };
        let socket = &self.inner.socket;
        Ok(socket.identity(id).zip(socket.message(id)))
    }

    /// Queues a message for the peer with a routing ID; never blocks. It is written by the next
    /// `flush` or by a `receive` that has to wait, or at once when 64 KiB are queued.
    #[inline]
    pub fn send(&mut self, routing_id: &[u8], parts: &[&[u8]]) -> Result<(), SendError> {
        self.inner.poll_before_sending();
        self.inner.socket.send_routed(routing_id, parts)
    }

    /// Like [`Router::send`], but waits while the peer's queue is full, for `timeout` at most
    /// (`None` = no limit; `ZMQ_SNDTIMEO`). Received messages are kept for `receive`.
    pub fn send_timeout(
        &mut self,
        routing_id: &[u8],
        parts: &[&[u8]],
        timeout: Option<Duration>,
    ) -> io::Result<Result<(), SendError>> {
        self.inner
            .send(timeout, |socket| socket.send_routed(routing_id, parts))
    }
}

/// A blocking DEALER socket with its own reactor.
///
/// ```
/// use casparian::socket::{Dealer, Options, SendError};
///
/// let mut dealer = Dealer::new(Options::new().routing_id("w-1").sndhwm(1))?;
/// assert_eq!(dealer.send(&[b"hello"]), Err(SendError::NoPeer));
/// dealer.connect("ipc://@casparian-doc-example")?;
/// dealer.send(&[b"queued until a peer listens"])?;
/// assert_eq!(dealer.send(&[b"one too many"]), Err(SendError::Full));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Dealer {
    inner: Driven,
}

common_methods!(Dealer, SocketType::Dealer);

impl Dealer {
    /// Receives the next message. Returns `None` if `timeout` is over (`None` = no limit). Queued
    /// messages are written during the wait.
    pub fn receive(&mut self, timeout: Option<Duration>) -> io::Result<Option<Message<'_>>> {
        match self.inner.receive(timeout)? {
            Some(id) => Ok(self.inner.socket.message(id)),
            None => Ok(None),
        }
    }

    /// Queues a message for the next peer, in round-robin order, whose queue is not full; never
    /// blocks. It is written by the next `flush` or by a `receive` that has to wait, or at once
    /// when 64 KiB are queued.
    #[inline]
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), SendError> {
        self.inner.poll_before_sending();
        self.inner.socket.send(parts)
    }

    /// Like [`Dealer::send`], but waits for a peer whose queue is not full, for `timeout` at most
    /// (`None` = no limit; `ZMQ_SNDTIMEO`). Received messages are kept for `receive`.
    pub fn send_timeout(
        &mut self,
        parts: &[&[u8]],
        timeout: Option<Duration>,
    ) -> io::Result<Result<(), SendError>> {
        self.inner.send(timeout, |socket| socket.send(parts))
    }
}
