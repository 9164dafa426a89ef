//! ROUTER and DEALER with a reactor of their own.

use std::cell::Cell;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use mio::Waker;

use super::{Counters, DisconnectReason, Event, Options, PeerId, SendError, Socket};
use crate::limits::{MESSAGES_PER_TURN, after};
use crate::reactor::{Endpoint, Reactor, token};
use crate::zmtp::{Message, SocketType};

#[derive(Debug)]
struct Driven {
    reactor: Reactor,
    socket: Socket,
    /// Taken anew after every wait, not for every message.
    now: Instant,
    /// Messages given out since the clock was read.
    given: u32,
    /// Messages after which the clock is read again: few for an owner that takes its time.
    clock_every: u32,
    /// Messages that may be sent before the clock is read again.
    until_poll: u32,
    /// Another loop waits for the descriptor.
    is_watched: Cell<bool>,
    waker: Option<Waker>,
}

/// Whose sources are whose in the reactor.
const SOCKET: u8 = 0;
const WAKER: u8 = 1;

/// While messages are at hand the clock is read once for so many of them at most.
const MESSAGES_PER_CLOCK: u32 = 32;
/// While messages are at hand readiness, timers and the queues get a turn this often.
const TURN_INTERVAL: Duration = Duration::from_millis(1);

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
            clock_every: 1,
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

    fn turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
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
        // The owner may have been away since the clock was read.
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

    /// Before an owner that was away writes: takes notice of what has come meanwhile, ends of
    /// connections above all. What is written to a connection that has ended is lost.
    fn poll_readiness(&mut self) -> io::Result<()> {
        if self.now.elapsed() < TURN_INTERVAL {
            return Ok(());
        }
        self.wait(Some(self.now))?;
        self.socket.drive(self.now);
        Ok(())
    }

    /// [`Driven::poll_readiness`] before the first of some messages that may be written at once.
    #[inline]
    fn poll_before_sending(&mut self) {
        match self.until_poll.checked_sub(1) {
            Some(left) => self.until_poll = left,
            None => {
                // A later call returns an error of the reactor.
                if let Err(error) = self.poll_readiness() {
                    log::debug!("before a send: {error}");
                }
                self.until_poll = MESSAGES_PER_CLOCK;
            }
        }
    }

    /// Makes the descriptor readable when there is work that no readiness reports.
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
        self.turn(Some(self.now))?;
        self.drive();
        self.wake_watcher()
    }

    fn receive(&mut self, timeout: Option<Duration>) -> io::Result<Option<PeerId>> {
        let mut deadline = None;
        let mut has_polled = false;
        // A peer that floods leaves its turn to the others, to timers and to answers.
        if self.given >= self.clock_every {
            self.given = 0;
            if self.now.elapsed() >= TURN_INTERVAL {
                self.clock_every = 1;
                self.socket.flush();
                self.wait(Some(self.now))?;
            } else {
                self.clock_every = MESSAGES_PER_CLOCK.min(self.clock_every * 2);
            }
        }
        loop {
            if let Some(id) = self.socket.receive(self.now) {
                self.given += 1;
                return Ok(Some(id));
            }
            if !has_polled {
                has_polled = true;
                if self.now.elapsed() >= TURN_INTERVAL {
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
            self.turn(deadline)?;
        }
    }

    fn drive(&mut self) {
        self.socket.drive(self.now);
        self.socket.flush();
    }

    /// After [`Driven::drive`] has changed nothing: waits until something may have changed for
    /// sending, not for messages.
    fn wait_to_send(&mut self, deadline: Instant) -> io::Result<()> {
        // Readiness is reported once: do not wait for what has been reported.
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

    /// Repeats a send until it has an answer other than to try again later.
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

    /// Says that nothing more comes, and reads until the peers have said so as well; false when
    /// a connection on which something was sent ended otherwise.
    fn finish(&mut self, linger: Duration) -> io::Result<bool> {
        let deadline = after(Instant::now(), linger);
        let was_sent_to: HashSet<PeerId> = self.socket.peers_sent_to().collect();
        while self.socket.poll_event().is_some() {}
        let mut is_whole = true;
        self.socket.shut_down(self.now);
        loop {
            for _ in 0..MESSAGES_PER_TURN {
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
            self.turn(Some(deadline))?;
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

/// What ROUTER and DEALER have in common.
macro_rules! common_methods {
    ($name:ident, $socket_type:expr) => {
        impl $name {
            /// A socket without peers. Fails when the options contradict the protocol, or the
            /// system has no more descriptors.
            pub fn new(options: Options) -> io::Result<Self> {
                Ok($name {
                    inner: Driven::new($socket_type, options)?,
                })
            }

            /// Listens; gives the endpoint with the port (or file) the system chose.
            pub fn bind(&mut self, endpoint: &str) -> io::Result<Endpoint> {
                self.inner.socket.bind(&parse(endpoint)?)
            }

            /// Stops listening on an endpoint that `bind` gave; accepted peers stay. False when
            /// there is no such listener.
            pub fn unbind(&mut self, endpoint: &str) -> io::Result<bool> {
                Ok(self.inner.socket.unbind(&parse(endpoint)?))
            }

            /// Connects in the background and goes on trying; see [`Socket::connect`]. Fails when
            /// the endpoint is of no one place (port `*` or 0, `ipc://*`).
            pub fn connect(&mut self, endpoint: &str) -> io::Result<PeerId> {
                self.inner.connect(endpoint)
            }

            /// Ends the connections to an endpoint that `connect` was given; what is queued for
            /// them is dropped. False when there is none.
            pub fn disconnect(&mut self, endpoint: &str) -> io::Result<bool> {
                let endpoint = parse(endpoint)?;
                let now = Instant::now();
                Ok(self.inner.socket.disconnect_endpoint(&endpoint, now))
            }

            /// Writes what is queued as far as the system takes it, brings handshakes forward,
            /// answers PINGs and notices ends; never blocks. What comes meanwhile is held for
            /// `receive`.
            pub fn flush(&mut self) -> io::Result<()> {
                self.inner.flush()
            }

            /// After [`SendError::Full`]: writes, and waits until some bytes have left (true; at
            /// once when none are queued) or `timeout` is over (false).
            pub fn wait_writable(&mut self, timeout: Duration) -> io::Result<bool> {
                self.inner.wait_writable(timeout)
            }

            /// Waits until everything queued has left, for `linger` at most. True when all has
            /// left; dropping the socket drops the rest. See also `close`.
            pub fn drain(&mut self, linger: Duration) -> io::Result<bool> {
                self.inner.drain(linger)
            }

            /// Drains the socket and ends it (`ZMQ_LINGER`). Then waits until the peers have
            /// read what was sent and closed their ends as well, for `linger` in all: a
            /// connection that is dropped with bytes unread takes with it what the system has
            /// not delivered yet. True when everything has left and every connection ended so;
            /// false when one was reset, or when a peer is not at home to close its end: one of
            /// these blocking sockets is only within its calls.
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

            /// Counts of what has happened so far.
            pub fn counters(&self) -> Counters {
                self.inner.socket.counters()
            }

            /// The socket inside, for what has no method here.
            pub fn socket(&mut self) -> &mut Socket {
                &mut self.inner.socket
            }
        }

        /// Readable when the socket may have something to do: then call `receive` with a
        /// timeout of zero until it gives nothing. For other event loops. The socket's own
        /// timers (heartbeats, reconnects) run only in its calls: make one by
        /// [`Socket::poll_timeout`] as well.
        impl AsRawFd for $name {
            fn as_raw_fd(&self) -> RawFd {
                self.inner.is_watched.set(true);
                self.inner.reactor.as_raw_fd()
            }
        }
    };
}

/// A ROUTER socket with a reactor of its own.
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

    /// The next message and the routing ID it came from, or none when `timeout` (none = wait
    /// for ever) is over. What is queued for sending leaves meanwhile.
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

    /// Queues a message for the peer with a routing ID; never blocks. It leaves on the next
    /// `flush` or `receive` that has to wait, or when much has gathered.
    #[inline]
    pub fn send(&mut self, routing_id: &[u8], parts: &[&[u8]]) -> Result<(), SendError> {
        self.inner.poll_before_sending();
        self.inner.socket.send_routed(routing_id, parts)
    }

    /// [`Router::send`] that waits while the peer's queue is full, for `timeout` at most (none =
    /// for ever; `ZMQ_SNDTIMEO`). What comes meanwhile is held for `receive`.
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

/// A DEALER socket with a reactor of its own.
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
    /// The next message, or none when `timeout` (none = wait for ever) is over. What is queued
    /// for sending leaves meanwhile.
    pub fn receive(&mut self, timeout: Option<Duration>) -> io::Result<Option<Message<'_>>> {
        match self.inner.receive(timeout)? {
            Some(id) => Ok(self.inner.socket.message(id)),
            None => Ok(None),
        }
    }

    /// Queues a message for the next peer in turn that is not full; never blocks. It leaves on
    /// the next `flush` or `receive` that has to wait, or when much has gathered.
    #[inline]
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), SendError> {
        self.inner.poll_before_sending();
        self.inner.socket.send(parts)
    }

    /// [`Dealer::send`] that waits for a peer that is not full, for `timeout` at most (none =
    /// for ever; `ZMQ_SNDTIMEO`). What comes meanwhile is held for `receive`.
    pub fn send_timeout(
        &mut self,
        parts: &[&[u8]],
        timeout: Option<Duration>,
    ) -> io::Result<Result<(), SendError>> {
        self.inner.send(timeout, |socket| socket.send(parts))
    }
}
