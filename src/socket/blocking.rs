//! Blocking ROUTER and DEALER sockets, each with its own reactor.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Token;

use super::engine::Size;
use super::watched::Watched;
use super::{Counters, DisconnectReason, Error, Event, Options, PeerId, Socket};
use crate::limits::{MESSAGES_PER_ITERATION, after};
use crate::reactor::{CoarseTime, Endpoint, Reactor};
use crate::zmtp::{Message, SendQueue, SocketType};

/// A socket with its reactor.
#[derive(Debug)]
pub struct Driven {
    reactor: Reactor,
    socket: Socket,
    watched: Watched,
    /// The time, read after every wait, not for every message.
    now: Instant,
    /// The coarse time when readiness, timers and queues were last processed.
    processed: CoarseTime,
    /// A call was due to process them, and returned a message instead.
    must_process: bool,
    /// Number of calls since then.
    calls: u32,
    waker: Option<Arc<mio::Waker>>,
    /// Another thread has asked to end the wait.
    is_woken: bool,
    /// Linger time of a drop.
    linger: Duration,
}

/// Tokens in the reactor: the socket's come first.
const FIRST_TOKEN: Token = Token(0);
const WAKER_TOKEN: Token = Token(Socket::TOKENS);

/// While messages are available, the time is compared once in this number of calls.
const CALLS_PER_CLOCK: u32 = 2;
/// An owner that made no calls for this long may have missed events.
const ITERATION_INTERVAL: Duration = Duration::from_millis(1);

impl Driven {
    fn new(socket_type: SocketType, options: Options) -> Result<Self, Error> {
        let reactor = Reactor::new()?;
        let watched = Watched::new(&reactor)?;
        let now = Instant::now();
        let linger = options.linger;
        let socket = Socket::new(socket_type, options, reactor.registry(), FIRST_TOKEN, now)?;
        Ok(Driven {
            reactor,
            socket,
            watched,
            now,
            processed: CoarseTime::now(),
            must_process: false,
            calls: 0,
            waker: None,
            is_woken: false,
            linger,
        })
    }

    fn bind(&mut self, endpoint: &str) -> Result<Endpoint, Error> {
        let bound = self.socket.bind(&endpoint.parse()?);
        self.update_watched();
        bound
    }

    fn unbind(&mut self, endpoint: &str) -> Result<bool, Error> {
        let found = self.socket.unbind(&endpoint.parse()?);
        self.update_watched();
        Ok(found)
    }

    fn definite(endpoint: &str) -> Result<Endpoint, Error> {
        let endpoint: Endpoint = endpoint.parse()?;
        endpoint.require_definite()?;
        Ok(endpoint)
    }

    fn connect(&mut self, endpoint: &str) -> Result<PeerId, Error> {
        let endpoint = Self::definite(endpoint)?;
        self.now = Instant::now();
        let id = self.socket.connect(&endpoint, self.now);
        self.update_watched();
        Ok(id)
    }

    fn connect_as(&mut self, endpoint: &str, routing_id: &[u8]) -> Result<PeerId, Error> {
        let endpoint = Self::definite(endpoint)?;
        self.now = Instant::now();
        let id = self.socket.connect_as(&endpoint, routing_id, self.now);
        self.update_watched();
        id
    }

    fn disconnect(&mut self, endpoint: &str) -> Result<bool, Error> {
        let endpoint = endpoint.parse()?;
        self.now = Instant::now();
        let found = self.socket.disconnect_endpoint(&endpoint, self.now);
        self.update_watched();
        Ok(found)
    }

    fn poll_event(&mut self) -> Option<Event> {
        let event = self.socket.poll_event();
        self.update_watched();
        event
    }

    fn iterate(&mut self, deadline: Option<Instant>) -> Result<(), Error> {
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

    fn wait(&mut self, deadline: Option<Instant>) -> Result<(), Error> {
        // `self.now` may be long ago.
        self.reactor.wait(deadline, Instant::now())?;
        self.now = Instant::now();
        self.processed = CoarseTime::now();
        self.calls = 0;
        for event in self.reactor.events() {
            match event.token() {
                WAKER_TOKEN => self.is_woken = true,
                _ => self.socket.handle_ready(event, self.now),
            }
        }
        self.socket.handle_timeout(self.now);
        Ok(())
    }

    /// Whether readiness, timers and queues must be processed although messages are available: some
    /// milliseconds have passed. The time is compared in every call while messages wait for a flush.
    #[inline]
    fn is_due(&mut self) -> bool {
        self.calls = self.calls.wrapping_add(1);
        match self.calls {
            // The owner may have made no calls for some time.
            1 => self.now.elapsed() >= ITERATION_INTERVAL,
            calls if calls % CALLS_PER_CLOCK != 0 && !self.socket.has_unflushed() => false,
            _ => CoarseTime::now() != self.processed,
        }
    }

    /// Processes events, because messages that are written to a closed connection are lost, and
    /// writes what is queued.
    fn process(&mut self) -> Result<(), Error> {
        self.wait(Some(self.now))?;
        self.drive();
        self.update_watched();
        Ok(())
    }

    /// To be called before a message is queued.
    #[inline]
    fn process_before_sending(&mut self) {
        if self.is_due()
            // If the reactor has failed, a later call returns the error.
            && let Err(error) = self.process()
        {
            log::debug!("before a send: {error}");
        }
    }

    /// Makes the descriptor readable exactly while a message or an event may wait for the owner, or
    /// work waits for which no readiness event comes.
    #[inline]
    fn update_watched(&mut self) {
        let is_ready = self.socket.has_ready() || self.socket.has_events();
        self.watched.set(is_ready);
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.now = Instant::now();
        self.iterate(Some(self.now))?;
        self.drive();
        self.update_watched();
        Ok(())
    }

    /// Receives a message. With `or_event`, returns `None` also when an event waits.
    fn receive(
        &mut self,
        timeout: Option<Duration>,
        or_event: bool,
    ) -> Result<Option<PeerId>, Error> {
        let received = self.receive_from(timeout, or_event);
        self.update_watched();
        received
    }

    #[inline]
    fn receive_from(
        &mut self,
        timeout: Option<Duration>,
        or_event: bool,
    ) -> Result<Option<PeerId>, Error> {
        let mut deadline = None;
        let mut has_processed = false;
        if std::mem::take(&mut self.must_process) {
            self.wait(Some(self.now))?;
            has_processed = true;
        }
        loop {
            if or_event && self.socket.has_events() {
                return Ok(None);
            }
            if let Some(id) = self.socket.receive(self.now) {
                // Timers and readiness are processed by the next call, because the owner reads this
                // message now.
                if !has_processed && self.is_due() {
                    self.socket.flush(Instant::now());
                    self.must_process = true;
                }
                return Ok(Some(id));
            }
            if !has_processed {
                has_processed = true;
                if self.now.elapsed() >= ITERATION_INTERVAL {
                    self.wait(Some(self.now))?;
                    continue;
                }
            }
            if self.socket.has_unflushed() {
                self.socket.flush(Instant::now());
            }
            if std::mem::take(&mut self.is_woken) {
                return Ok(None);
            }
            if let Some(timeout) = timeout {
                let at = *deadline.get_or_insert_with(|| after(Instant::now(), timeout));
                if self.now >= at {
                    return Ok(None);
                }
            }
            self.iterate(deadline)?;
        }
    }

    fn drive(&mut self) {
        self.socket.drive(self.now);
        self.socket.flush(self.now);
    }

    /// Waits until an event may allow sending. To be called after [`Driven::drive`]. Messages that
    /// wait for the owner do not end the wait.
    fn wait_to_send(&mut self, deadline: Instant) -> Result<(), Error> {
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

    /// Drives the socket until `is_done`, the deadline, or a wake-up. Returns whether it is done.
    fn drive_until(
        &mut self,
        deadline: Instant,
        mut is_done: impl FnMut(&mut Socket) -> bool,
    ) -> Result<bool, Error> {
        self.process()?;
        let result = loop {
            if is_done(&mut self.socket) {
                break Ok(true);
            }
            if Instant::now() >= deadline || std::mem::take(&mut self.is_woken) {
                break Ok(false);
            }
            if let Err(error) = self.wait_to_send(deadline) {
                break Err(error);
            }
            self.drive();
        };
        self.update_watched();
        result
    }

    fn wait_writable(&mut self, timeout: Duration) -> Result<bool, Error> {
        let before = self.socket.pending_bytes();
        let deadline = after(Instant::now(), timeout);
        self.drive_until(deadline, |socket| {
            before == 0 || socket.pending_bytes() < before
        })
    }

    /// Repeats a send until it succeeds, fails for good, or `timeout` is over.
    fn send(
        &mut self,
        timeout: Option<Duration>,
        mut send: impl FnMut(&mut Socket) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let deadline = after(Instant::now(), timeout.unwrap_or(Duration::MAX));
        let mut result = Err(Error::NoPeer);
        self.drive_until(deadline, |socket| {
            result = send(socket);
            !matches!(result, Err(Error::Full | Error::NoPeer))
        })?;
        result
    }

    /// Shuts down sending on all connections, and reads until the peers have closed them. Returns
    /// false if a connection on which messages were sent ended in another way, or `linger` is over.
    fn finish(&mut self, linger: Duration) -> Result<bool, Error> {
        let deadline = after(Instant::now(), linger);
        let mut unfinished: HashSet<PeerId> = self.socket.peers_sent_to().into_iter().collect();
        while self.socket.poll_event().is_some() {}
        let mut is_whole = true;
        self.socket.shut_down(self.now);
        // Connections on which nothing was sent are not waited for.
        while !unfinished.is_empty() {
            for _ in 0..MESSAGES_PER_ITERATION {
                if self.socket.receive(self.now).is_none() {
                    break;
                }
            }
            while let Some(event) = self.socket.poll_event() {
                if let Event::Disconnected { peer, reason, .. } = event
                    && unfinished.remove(&peer)
                {
                    is_whole &= reason == DisconnectReason::Closed;
                }
            }
            if unfinished.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            self.iterate(Some(deadline))?;
        }
        Ok(is_whole)
    }

    fn drain(&mut self, linger: Duration) -> Result<bool, Error> {
        let deadline = after(Instant::now(), linger);
        self.drive_until(deadline, |socket| socket.pending_bytes() == 0)
    }

    pub(super) fn close(&mut self, linger: Duration) -> Result<bool, Error> {
        self.linger = Duration::ZERO;
        let began = Instant::now();
        let has_drained = self.drain(linger)?;
        let left = linger.saturating_sub(began.elapsed());
        Ok(self.finish(left)? && has_drained)
    }

    /// The descriptor of the reactor. An edge-triggered poll reports it when there are events.
    pub(super) fn events_fd(&self) -> RawFd {
        self.reactor.as_raw_fd()
    }

    /// When [`Driven::drive_now`] is due; a time in the past if at once.
    pub(super) fn drive_at(&self) -> Option<Instant> {
        match self.socket.has_ready_to_drive() || self.socket.has_unflushed() {
            true => Some(self.now),
            false => self.socket.poll_timeout(),
        }
    }

    /// Does the work that waits, without taking messages from the socket; never blocks.
    pub(super) fn drive_now(&mut self) -> io::Result<()> {
        self.now = Instant::now();
        Ok(self.process()?)
    }

    fn waker(&mut self) -> Result<Waker, Error> {
        let waker = match &self.waker {
            Some(waker) => waker.clone(),
            None => Arc::new(self.reactor.waker(WAKER_TOKEN)?),
        };
        self.waker = Some(waker.clone());
        Ok(Waker { waker })
    }
}

/// Waits as [`Driven::close`] does, if there is a linger time.
impl Drop for Driven {
    fn drop(&mut self) {
        if self.linger.is_zero() {
            return;
        }
        match self.close(self.linger) {
            Ok(true) => {}
            Ok(false) => log::warn!("a socket was dropped, and not all its messages are delivered"),
            Err(error) => log::warn!("a socket was dropped: {error}"),
        }
    }
}

/// The blocking sockets of this module: [`Router`] and [`Dealer`].
pub trait Blocking: sealed::Driver + Send + 'static {}

impl Blocking for Router {}
impl Blocking for Dealer {}

mod sealed {
    #[expect(
        unnameable_types,
        reason = "seals a trait, so that other crates cannot implement it"
    )]
    pub trait Driver {
        #[doc(hidden)]
        fn driven(&mut self) -> &mut super::Driven;
    }
}

/// Ends a blocking call of a [`Router`] or [`Dealer`] from another thread.
#[derive(Clone, Debug)]
pub struct Waker {
    waker: Arc<mio::Waker>,
}

impl Waker {
    /// Ends the present blocking call of the socket, or the next one: `receive` returns `None`,
    /// other calls return as if their time were over.
    pub fn wake(&self) -> Result<(), Error> {
        Ok(self.waker.wake()?)
    }
}

/// A received message with the routing ID of its peer.
pub type Routed<'a> = (&'a [u8], Message<'a>);

/// What [`Router::next`] or [`Dealer::next`] returns.
#[derive(Debug)]
pub enum Next<M> {
    /// A message.
    Message(M),
    /// A lifecycle event.
    Event(Event),
}

/// The methods that [`Router`] and [`Dealer`] have in common.
macro_rules! common_methods {
    ($name:ident, $socket_type:expr) => {
        impl $name {
            /// Creates a socket without peers. Fails if the options are invalid or the system has
            /// no more descriptors.
            pub fn new(options: Options) -> Result<Self, Error> {
                Ok($name {
                    inner: Driven::new($socket_type, options)?,
                })
            }

            /// Binds a listener. Returns its endpoint, with the port or file that the system chose.
            pub fn bind(&mut self, endpoint: &str) -> Result<Endpoint, Error> {
                self.inner.bind(endpoint)
            }

            /// Closes the listener of an endpoint that `bind` returned. Accepted peers stay
            /// connected. Returns false if there is no such listener.
            pub fn unbind(&mut self, endpoint: &str) -> Result<bool, Error> {
                self.inner.unbind(endpoint)
            }

            /// Connects in the background, and retries after failures; see [`Socket::connect`].
            /// Fails if the endpoint is a wildcard (port `*` or 0, `ipc://*`).
            pub fn connect(&mut self, endpoint: &str) -> Result<PeerId, Error> {
                self.inner.connect(endpoint)
            }

            /// Closes the connections to an endpoint that was passed to `connect`, and drops the
            /// messages queued for them. Returns false if there is none.
            pub fn disconnect(&mut self, endpoint: &str) -> Result<bool, Error> {
                self.inner.disconnect(endpoint)
            }

            /// Writes queued messages as far as the kernel accepts them, continues handshakes,
            /// answers PINGs and detects closed connections; never blocks. Received messages are
            /// kept for `receive`.
            pub fn flush(&mut self) -> Result<(), Error> {
                self.inner.flush()
            }

            /// For use after [`Error::Full`]: writes, and waits until the number of queued
            /// bytes has decreased (returns true; at once if none are queued) or `timeout` is over
            /// (returns false).
            pub fn wait_writable(&mut self, timeout: Duration) -> Result<bool, Error> {
                self.inner.wait_writable(timeout)
            }

            /// Waits until all queued messages are written, for `linger` at most. Returns true if
            /// all are written. If the socket is dropped then, the others are lost. See also
            /// `close`.
            pub fn drain(&mut self, linger: Duration) -> Result<bool, Error> {
                self.inner.drain(linger)
            }

            /// Drains the socket and closes it (`ZMQ_LINGER`). Then waits until the peers have read
            /// the messages and closed their ends, for `linger` in total. (The system may discard
            /// undelivered bytes when a connection with unread input is closed.) Returns true if
            /// all messages were written and every connection ended in this way. Returns false if a
            /// connection was reset or a peer did not close in time; a peer with a blocking socket
            /// of this module closes only during its calls.
            pub fn close(mut self, linger: Duration) -> Result<bool, Error> {
                self.inner.close(linger)
            }

            /// The next lifecycle event (`zmq_socket_monitor`).
            pub fn poll_event(&mut self) -> Option<Event> {
                self.inner.poll_event()
            }

            /// A handle by which another thread can end a blocking call of this socket.
            pub fn waker(&mut self) -> Result<Waker, Error> {
                self.inner.waker()
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

        /// For use in another event loop. The descriptor is readable while a message or an event waits,
        /// or the socket may have work: then call `receive` with a timeout of zero until it returns
        /// `None`, and `poll_event`. Timers (heartbeats, reconnects) are processed only in calls, so
        /// also make a call when [`Socket::poll_timeout`] is due. Do not read from it.
        impl sealed::Driver for $name {
            fn driven(&mut self) -> &mut Driven {
                &mut self.inner
            }
        }

        impl AsFd for $name {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.inner.watched.as_fd()
            }
        }

        impl AsRawFd for $name {
            fn as_raw_fd(&self) -> RawFd {
                self.as_fd().as_raw_fd()
            }
        }
    };
}

/// A blocking ROUTER socket with its own reactor.
///
/// ```
/// use std::time::Duration;
/// use casparian::socket::{Options, Router, Error};
///
/// let mut router = Router::new(Options::new().router_handover(true))?;
/// let bound = router.bind("tcp://127.0.0.1:*")?;
/// assert!(bound.to_string().starts_with("tcp://127.0.0.1:"));
/// assert_eq!(router.send(b"unknown", &[b"hello"]), Err(Error::Unroutable));
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
    pub fn connect_as(&mut self, endpoint: &str, routing_id: &[u8]) -> Result<PeerId, Error> {
        self.inner.connect_as(endpoint, routing_id)
    }

    /// Receives the next message, with the routing ID of its peer. Returns `None` if `timeout` is
    /// over (`None` = no limit). Queued messages are written during the wait.
    pub fn receive(&mut self, timeout: Option<Duration>) -> Result<Option<Routed<'_>>, Error> {
        let Some(id) = self.inner.receive(timeout, false)? else {
            return Ok(None);
        };
        Ok(self.inner.socket.received(id))
    }

    /// Receives the next message, with the routing ID of its peer, or the next lifecycle event.
    /// Returns `None` if `timeout` is over. Waiting events come before messages.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Next<Routed<'_>>>, Error> {
        match self.inner.receive(timeout, true)? {
            Some(id) => Ok(self.inner.socket.received(id).map(Next::Message)),
            None => Ok(self.inner.poll_event().map(Next::Event)),
        }
    }

    /// Queues a message for the peer with a routing ID; never blocks. It is written by the next
    /// `flush` or by a `receive` that has to wait, or at once when 64 KiB are queued.
    #[inline]
    pub fn send(&mut self, routing_id: &[u8], parts: &[&[u8]]) -> Result<(), Error> {
        self.inner.process_before_sending();
        self.inner.socket.send_routed(routing_id, parts)
    }

    /// Like [`Router::send`], for any parts.
    pub fn send_parts<P>(&mut self, routing_id: &[u8], parts: P) -> Result<(), Error>
    where
        P: IntoIterator<Item: AsRef<[u8]>, IntoIter: Clone>,
    {
        let parts = parts.into_iter();
        self.inner.process_before_sending();
        self.inner
            .socket
            .queue_routed(routing_id, size_of(parts.clone()), pushing(parts))
    }

    /// Like [`Router::send`]. The last part is kept by reference instead of copied.
    pub fn send_shared(
        &mut self,
        routing_id: &[u8],
        parts: &[&[u8]],
        last: &Arc<[u8]>,
    ) -> Result<(), Error> {
        self.inner.process_before_sending();
        let (size, push) = sharing(parts, last);
        self.inner.socket.queue_routed(routing_id, size, push)
    }

    /// Like [`Router::send`], but waits while the peer's queue is full, for `timeout` at most
    /// (`None` = no limit; `ZMQ_SNDTIMEO`). Received messages are kept for `receive`.
    pub fn send_timeout(
        &mut self,
        routing_id: &[u8],
        parts: &[&[u8]],
        timeout: Option<Duration>,
    ) -> Result<(), Error> {
        self.inner
            .send(timeout, |socket| socket.send_routed(routing_id, parts))
    }
}

/// A blocking DEALER socket with its own reactor.
///
/// ```
/// use casparian::socket::{Dealer, Options, Error};
///
/// let mut dealer = Dealer::new(Options::new().routing_id("w-1").sndhwm(1))?;
/// assert_eq!(dealer.send(&[b"hello"]), Err(Error::NoPeer));
/// dealer.connect("ipc://@casparian-doc-example")?;
/// dealer.send(&[b"queued until a peer listens"])?;
/// assert_eq!(dealer.send(&[b"one too many"]), Err(Error::Full));
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
    pub fn receive(&mut self, timeout: Option<Duration>) -> Result<Option<Message<'_>>, Error> {
        match self.inner.receive(timeout, false)? {
            Some(id) => Ok(self.inner.socket.message(id)),
            None => Ok(None),
        }
    }

    /// Receives the next message or lifecycle event. Returns `None` if `timeout` is over. Waiting
    /// events come before messages.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Next<Message<'_>>>, Error> {
        match self.inner.receive(timeout, true)? {
            Some(id) => Ok(self.inner.socket.message(id).map(Next::Message)),
            None => Ok(self.inner.poll_event().map(Next::Event)),
        }
    }

    /// Queues a message for the next peer, in round-robin order, whose queue is not full; never
    /// blocks. It is written by the next `flush` or by a `receive` that has to wait, or at once
    /// when 64 KiB are queued.
    #[inline]
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), Error> {
        self.inner.process_before_sending();
        self.inner.socket.send(parts)
    }

    /// Like [`Dealer::send`], for any parts, such as those of a received [`Message`].
    pub fn send_parts<P>(&mut self, parts: P) -> Result<(), Error>
    where
        P: IntoIterator<Item: AsRef<[u8]>, IntoIter: Clone>,
    {
        let parts = parts.into_iter();
        self.inner.process_before_sending();
        self.inner
            .socket
            .queue_dealt(size_of(parts.clone()), pushing(parts))
    }

    /// Like [`Dealer::send`]. The last part is kept by reference instead of copied.
    pub fn send_shared(&mut self, parts: &[&[u8]], last: &Arc<[u8]>) -> Result<(), Error> {
        self.inner.process_before_sending();
        let (size, push) = sharing(parts, last);
        self.inner.socket.queue_dealt(size, push)
    }

    /// Like [`Dealer::send`], but waits for a peer whose queue is not full, for `timeout` at most
    /// (`None` = no limit; `ZMQ_SNDTIMEO`). Received messages are kept for `receive`.
    pub fn send_timeout(
        &mut self,
        parts: &[&[u8]],
        timeout: Option<Duration>,
    ) -> Result<(), Error> {
        self.inner.send(timeout, |socket| socket.send(parts))
    }
}

fn size_of(parts: impl Iterator<Item: AsRef<[u8]>>) -> Size {
    let none = Size {
        frames: 0,
        bytes: 0,
    };
    parts.fold(none, |size, part| Size {
        frames: size.frames + 1,
        bytes: size.bytes + part.as_ref().len(),
    })
}

fn pushing<P>(parts: P) -> impl Fn(&mut SendQueue)
where
    P: Iterator<Item: AsRef<[u8]>> + Clone,
{
    move |queue| queue.push_parts(parts.clone())
}

fn sharing<'a>(parts: &'a [&'a [u8]], last: &'a Arc<[u8]>) -> (Size, impl Fn(&mut SendQueue)) {
    let size = size_of(parts.iter().copied().chain([&last[..]]));
    (size, move |queue: &mut SendQueue| {
        queue.push_shared(parts, last.clone());
    })
}
