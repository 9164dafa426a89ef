//! What blocking sockets have in common: a socket with a reactor of its own.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Token;

use super::watched::Watched;
use super::{DisconnectReason, Error, Event, Options, PeerId, Socket};
use crate::limits::{MESSAGES_PER_ITERATION, after};
use crate::reactor::{CoarseTime, Endpoint, Reactor};
use crate::zmtp::SocketType;

/// A socket with its reactor.
#[derive(Debug)]
pub struct Driven {
    reactor: Reactor,
    pub(super) socket: Socket,
    pub(super) watched: Watched,
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
    pub(super) fn new(socket_type: SocketType, options: Options) -> Result<Self, Error> {
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

    pub(super) fn bind(&mut self, endpoint: &str) -> Result<Endpoint, Error> {
        let bound = self.socket.bind(&endpoint.parse()?);
        self.update_watched();
        bound
    }

    pub(super) fn unbind(&mut self, endpoint: &str) -> Result<bool, Error> {
        let found = self.socket.unbind(&endpoint.parse()?);
        self.update_watched();
        Ok(found)
    }

    fn definite(endpoint: &str) -> Result<Endpoint, Error> {
        let endpoint: Endpoint = endpoint.parse()?;
        endpoint.require_definite()?;
        Ok(endpoint)
    }

    pub(super) fn connect(&mut self, endpoint: &str) -> Result<PeerId, Error> {
        let endpoint = Self::definite(endpoint)?;
        self.now = Instant::now();
        let id = self.socket.connect(&endpoint, self.now);
        self.update_watched();
        Ok(id)
    }

    pub(super) fn connect_as(
        &mut self,
        endpoint: &str,
        routing_id: &[u8],
    ) -> Result<PeerId, Error> {
        let endpoint = Self::definite(endpoint)?;
        self.now = Instant::now();
        let id = self.socket.connect_as(&endpoint, routing_id, self.now);
        self.update_watched();
        id
    }

    pub(super) fn disconnect(&mut self, endpoint: &str) -> Result<bool, Error> {
        let endpoint = endpoint.parse()?;
        self.now = Instant::now();
        let found = self.socket.disconnect_endpoint(&endpoint, self.now);
        self.update_watched();
        Ok(found)
    }

    pub(super) fn poll_event(&mut self) -> Option<Event> {
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
    pub(super) fn process_before_sending(&mut self) {
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

    pub(super) fn flush(&mut self) -> Result<(), Error> {
        self.now = Instant::now();
        self.iterate(Some(self.now))?;
        self.drive();
        self.update_watched();
        Ok(())
    }

    /// Receives a message. With `or_event`, returns `None` also when an event waits.
    pub(super) fn receive(
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

    pub(super) fn wait_writable(&mut self, timeout: Duration) -> Result<bool, Error> {
        let before = self.socket.pending_bytes();
        let deadline = after(Instant::now(), timeout);
        self.drive_until(deadline, |socket| {
            before == 0 || socket.pending_bytes() < before
        })
    }

    /// Repeats a send until it succeeds, fails for good, or `timeout` is over.
    pub(super) fn send(
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

    pub(super) fn drain(&mut self, linger: Duration) -> Result<bool, Error> {
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

    pub(super) fn waker(&mut self) -> Result<Arc<mio::Waker>, Error> {
        let waker = match &self.waker {
            Some(waker) => waker.clone(),
            None => Arc::new(self.reactor.waker(WAKER_TOKEN)?),
        };
        self.waker = Some(waker.clone());
        Ok(waker)
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
