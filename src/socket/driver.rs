//! The driver of an engine: its transports, listeners and lookups, registered in the caller's event
//! loop. It decides nothing.

mod links;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use mio::{Registry, Token};

use super::engine::{Budget, Engine, Size, Step};
use super::options::{check_options, check_security};
use super::{Counters, Error, Event, InvalidOption, Options, PeerId};
use crate::reactor::{Endpoint, Listener, Lookup, Stream};
use crate::zmtp::{Message, PeerInfo, Security, SendQueue, SocketType};

/// A ROUTER or DEALER without an event loop of its own.
///
/// In each iteration of its event loop, the owner passes readiness events to
/// [`Socket::handle_ready`] and the time to [`Socket::handle_timeout`]. It takes messages with
/// [`Socket::receive`] until that returns `None` or the owner's budget is used up. It sends, and
/// calls [`Socket::flush`]. Then it waits until [`Socket::poll_timeout`]; while
/// [`Socket::has_ready`] is true, it does not wait.
///
/// An event loop with several sockets or other sources gives each socket a range of tokens of its
/// own ([`Socket::TOKENS`]):
///
/// ```
/// use std::time::Instant;
/// use casparian::reactor::Reactor;
/// use casparian::reactor::mio::Token;
/// use casparian::socket::{Options, Socket, SocketType};
///
/// let mut reactor = Reactor::new()?;
/// let now = Instant::now();
/// let first = Token(0);
/// let mut router = Socket::new(SocketType::Router, Options::new(), reactor.registry(), first, now)?;
/// let options = Options::new().routing_id("client");
/// let second = Token(Socket::TOKENS);
/// let mut dealer = Socket::new(SocketType::Dealer, options, reactor.registry(), second, now)?;
/// let bound = router.bind(&"ipc://*".parse()?)?;
/// dealer.connect(&bound, now);
/// dealer.send(&[b"hello"])?;
///
/// let mut answered = false;
/// while !answered {
///     let now = Instant::now();
///     while let Some(peer) = router.receive(now) {
///         let hello = router.message(peer).map(|message| message.to_vecs());
///         assert_eq!(hello, Some(vec![b"hello".to_vec()]));
///         assert_eq!(router.routing_id(peer), Some(&b"client"[..]));
///         router.send_to(peer, &[b"world"])?;
///     }
///     while let Some(peer) = dealer.receive(now) {
///         answered = dealer.message(peer).is_some_and(|message| message.len() == 1);
///     }
///     for socket in [&mut router, &mut dealer] {
///         socket.handle_timeout(now);
///         socket.flush(now);
///     }
///     let timeouts = [router.poll_timeout(), dealer.poll_timeout()];
///     let busy = router.has_ready() || dealer.has_ready() || answered;
///     let until = if busy { Some(now) } else { timeouts.into_iter().flatten().min() };
///     reactor.wait(until, now)?;
///     let now = Instant::now();
///     for event in reactor.events() {
///         for socket in [&mut router, &mut dealer] {
///             if socket.owns(event.token()) {
///                 socket.handle_ready(event, now);
///             }
///         }
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Socket {
    engine: Engine,
    registry: Registry,
    first_token: usize,
    links: Vec<Option<Link>>,
    free_links: Vec<u32>,
    listeners: Vec<Option<Listener>>,
    lookups: Vec<Option<(PeerId, Lookup)>>,
    /// The index in `lookups` of each peer's lookup.
    lookup_of: HashMap<PeerId, usize>,
    /// The latest time that the owner has passed.
    now: Instant,
}

/// The transport of a peer.
#[derive(Debug)]
struct Link {
    stream: Stream,
    peer: PeerId,
    is_connecting: bool,
}

/// Indexes of tokens: links begin at 0, lookups and listeners here.
const LOOKUP_TOKENS: usize = 1 << 26;
const LISTENER_TOKENS: usize = 1 << 27;

impl Socket {
    /// Number of consecutive tokens that belong to a socket.
    pub const TOKENS: usize = 1 << 28;

    /// Creates a socket. Its sources are registered in `registry` (of a
    /// [`crate::reactor::Reactor`], or of any `mio::Poll` of mio 1) with tokens from `first_token`
    /// up to `first_token + TOKENS`. Other sources in that registry need other tokens.
    pub fn new(
        socket_type: SocketType,
        options: Options,
        registry: &Registry,
        first_token: Token,
        now: Instant,
    ) -> Result<Self, Error> {
        check_options(&options)?;
        if first_token.0.checked_add(Self::TOKENS).is_none() {
            return Err(InvalidOption::Tokens.into());
        }
        Ok(Socket {
            engine: Engine::new(socket_type, options, RandomState::new().hash_one(0u64)),
            registry: registry.try_clone()?,
            first_token: first_token.0,
            links: Vec::new(),
            free_links: Vec::new(),
            listeners: Vec::new(),
            lookups: Vec::new(),
            lookup_of: HashMap::new(),
            now,
        })
    }

    /// Whether a token of a readiness event belongs to one of this socket's sources.
    pub fn owns(&self, token: Token) -> bool {
        token
            .0
            .checked_sub(self.first_token)
            .is_some_and(|index| index < Self::TOKENS)
    }

    fn token(&self, index: usize) -> Token {
        Token(self.first_token + index)
    }

    /// Binds a listener for each address of an endpoint. Returns the endpoint, with the port that the
    /// system chose.
    pub fn bind(&mut self, endpoint: &Endpoint) -> Result<Endpoint, Error> {
        let options = self.engine.options();
        #[cfg(feature = "process")]
        let is_private = {
            let users = options.local_users.as_ref();
            users.is_some_and(super::LocalUsers::is_default_users)
        };
        #[cfg(not(feature = "process"))]
        let is_private = false;
        let listeners = Listener::bind(endpoint, &options.stream, is_private)?;
        #[cfg(feature = "process")]
        if let Some(users) = &options.local_users {
            for listener in &listeners {
                if let Listener::Unix(_, Some(file)) = listener {
                    users.open_socket_file(file.path())?;
                }
            }
        }
        let bound = match listeners.as_slice() {
            [listener] => listener.endpoint(endpoint),
            several => several
                .first()
                .map(|first| first.endpoint(endpoint).with_host_of(endpoint))
                .unwrap_or_else(|| endpoint.clone()),
        };
        for (position, mut listener) in listeners.into_iter().enumerate() {
            let index = self.engine.free_listener();
            let token = self.token(LISTENER_TOKENS + index);
            if let Err(error) = listener.register(&self.registry, token) {
                self.unbind(&bound);
                return Err(error.into());
            }
            if index >= self.listeners.len() {
                self.listeners.resize_with(index + 1, || None);
            }
            if let Some(slot) = self.listeners.get_mut(index) {
                *slot = Some(listener);
            }
            self.engine
                .handle_bound(index, endpoint, &bound, position == 0);
        }
        Ok(bound)
    }

    /// Closes the listener of an endpoint, which is one that [`Socket::bind`] returned or was
    /// called with. Accepted peers stay connected. Returns false if there is no such listener.
    pub fn unbind(&mut self, endpoint: &Endpoint) -> bool {
        let is_bound = self.engine.unbind(endpoint);
        self.perform();
        is_bound
    }

    /// Connects in the background, and retries after failures. A DEALER can queue messages at once
    /// (unless [`Options::immediate`] is set), a ROUTER only after the handshake.
    ///
    /// A DEALER has one connection to an endpoint: a second call returns the peer of the first, as
    /// in libzmq.
    pub fn connect(&mut self, endpoint: &Endpoint, now: Instant) -> PeerId {
        self.now = now;
        let id = self.engine.connect(endpoint, now);
        self.perform();
        id
    }

    /// ROUTER: connects to a peer that is addressed by `routing_id` from now on, whatever its own
    /// routing ID is. Messages can be queued at once. (`ZMQ_CONNECT_ROUTING_ID`)
    ///
    /// Fails if the routing ID is empty, longer than 255 bytes, a zero byte and four others (as those
    /// that a ROUTER generates), or belongs to another peer.
    pub fn connect_as(
        &mut self,
        endpoint: &Endpoint,
        routing_id: &[u8],
        now: Instant,
    ) -> Result<PeerId, Error> {
        self.now = now;
        let connected = self.engine.connect_as(endpoint, routing_id, now);
        self.perform();
        connected
    }

    /// Closes the connection of a peer and removes the peer; a connecting one is not connected
    /// again. Messages that are queued for it are dropped ([`Event::Unsent`]). Returns false if the
    /// peer does not exist any more.
    pub fn disconnect(&mut self, id: PeerId, now: Instant) -> bool {
        self.now = now;
        let existed = self.engine.disconnect(id, now);
        self.perform();
        existed
    }

    /// [`Socket::disconnect`] for all peers that were connected to an endpoint. Returns false if
    /// there is none.
    pub fn disconnect_endpoint(&mut self, endpoint: &Endpoint, now: Instant) -> bool {
        let peers = self.engine.peers_at(endpoint);
        for id in &peers {
            self.disconnect(*id, now);
        }
        !peers.is_empty()
    }

    /// Closes the connection of a peer that sent an invalid message, as after a violation of the
    /// protocol: it is logged (a limited number of lines) and counted, and a connecting peer is
    /// connected again only after the longest pause. Returns false if the peer does not exist any
    /// more.
    pub fn reject(&mut self, id: PeerId, why: &str, now: Instant) -> bool {
        self.now = now;
        let existed = self.engine.reject(id, why, now);
        self.perform();
        existed
    }

    /// Closes all listeners, stops all attempts to connect, and shuts down the sending direction of
    /// every connection. Each peer is removed when it closes its end; drive the socket until no
    /// peer is left.
    pub(super) fn shut_down(&mut self, now: Instant) {
        self.now = now;
        self.engine.shut_down(now);
        self.perform();
    }

    /// Established peers to which messages were written on their present connections.
    pub(super) fn peers_sent_to(&self) -> Vec<PeerId> {
        self.engine.peers_sent_to()
    }

    /// Replaces the credentials. Connections in their handshake are closed, and established ones
    /// whose handshake would fail with these credentials.
    pub fn set_security(&mut self, security: Security, now: Instant) -> Result<(), Error> {
        check_security(&security)?;
        self.now = now;
        self.engine.set_security(security, now);
        self.perform();
        Ok(())
    }

    /// Changes the maximum number of queued messages for each peer. Messages that are already
    /// queued stay, even above it. (`ZMQ_SNDHWM`)
    pub fn set_sndhwm(&mut self, messages: usize) {
        self.engine.set_sndhwm(messages);
    }

    /// The properties of an established peer from its handshake.
    pub fn peer_info(&self, id: PeerId) -> Option<&PeerInfo> {
        self.engine.peer_info(id)
    }

    /// The authenticated user of an established peer: the user name of PLAIN, or the CURVE key and
    /// its name as in a line of the list of keys. `None` if users are not authenticated.
    pub fn user(&self, id: PeerId) -> Option<String> {
        self.engine.user(id)
    }

    /// The address of a peer, for messages to people.
    pub fn address(&self, id: PeerId) -> Option<&str> {
        self.engine.address(id)
    }

    /// The routing ID of an established peer.
    pub fn routing_id(&self, id: PeerId) -> Option<&[u8]> {
        self.engine.routing_id(id)
    }

    /// When bytes of an established peer were last received.
    pub fn received_at(&self, id: PeerId) -> Option<Instant> {
        self.engine.received_at(id)
    }

    /// The peer with a routing ID (ROUTER).
    pub fn route(&self, routing_id: &[u8]) -> Option<PeerId> {
        self.engine.route(routing_id)
    }

    /// The next lifecycle event.
    #[must_use]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.engine.poll_event()
    }

    /// The counters of the socket.
    pub fn counters(&self) -> Counters {
        self.engine.counters()
    }

    /// The number of peers: established, in their handshake, connecting, and waiting to reconnect.
    pub fn peer_count(&self) -> usize {
        self.engine.peer_count()
    }

    // ---- readiness and time ----

    /// True while peers may have input, or listeners connections, for which no further readiness
    /// event comes.
    #[inline]
    pub fn has_ready(&self) -> bool {
        self.engine.has_ready() || self.engine.may_accept()
    }

    /// Like [`Socket::has_ready`], for [`Socket::drive`], which does not take messages that wait
    /// for the owner.
    pub(super) fn has_ready_to_drive(&self) -> bool {
        self.engine.has_ready_to_drive() || self.engine.may_accept()
    }

    /// True while [`Socket::poll_event`] has an event.
    pub(super) fn has_events(&self) -> bool {
        self.engine.has_events()
    }

    /// True while messages wait for the next flush.
    #[inline]
    pub(super) fn has_unflushed(&self) -> bool {
        self.engine.has_dirty()
    }

    /// Processes a readiness event of one of the socket's sources.
    pub fn handle_ready(&mut self, event: &mio::event::Event, now: Instant) {
        self.now = now;
        let Some(index) = event.token().0.checked_sub(self.first_token) else {
            return;
        };
        if index >= LISTENER_TOKENS {
            self.engine.handle_acceptable(index - LISTENER_TOKENS);
        } else if index >= LOOKUP_TOKENS {
            self.lookup_ready(index - LOOKUP_TOKENS);
        } else {
            self.link_ready(index, event);
        }
        self.perform();
    }

    /// The time at which [`Socket::handle_timeout`] is due. It may be called earlier.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.engine.poll_timeout()
    }

    /// Processes due timers: heartbeats, deadlines, reconnects, paused listeners.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        if self.engine.retry_blocked(now) {
            self.write_all();
        }
        self.engine.handle_timeout(now);
        self.perform();
    }

    // ---- receiving ----

    /// Receives a message: returns its peer. The message is available by [`Socket::message`] until
    /// the next call. Peers are fair-queued, one message each.
    #[inline]
    pub fn receive(&mut self, now: Instant) -> Option<PeerId> {
        self.now = now;
        if self.engine.may_accept() {
            self.accept();
        }
        let mut budget = self.engine.budget();
        loop {
            let step = self.engine.poll_receive(&mut budget, now);
            self.perform();
            match step {
                Step::Message(id) => return Some(id),
                Step::Idle => return None,
                step => self.take_step(step),
            }
        }
    }

    /// Does the work of [`Socket::receive`] without returning a message: accepts connections,
    /// continues handshakes, answers PINGs, detects closed connections. It is for owners that only
    /// send. One received message of each peer is kept for the next receive.
    pub fn drive(&mut self, now: Instant) {
        self.now = now;
        if self.engine.may_accept() {
            self.accept();
        }
        let mut budget: Budget = self.engine.budget();
        loop {
            let step = self.engine.poll_drive(&mut budget, now);
            self.perform();
            match step {
                Step::Message(_) | Step::Idle => return,
                step => self.take_step(step),
            }
        }
    }

    /// The message that [`Socket::receive`] reported. It has no frames if the peer has no message.
    #[inline]
    pub fn message(&self, id: PeerId) -> Option<Message<'_>> {
        self.engine.message(id)
    }

    /// The message that [`Socket::receive`] reported, with the routing ID of its peer.
    #[inline]
    pub fn received(&self, id: PeerId) -> Option<(&[u8], Message<'_>)> {
        self.engine.received(id)
    }

    // ---- sending ----

    /// Queues a message for one peer.
    #[inline]
    pub fn send_to(&mut self, id: PeerId, parts: &[&[u8]]) -> Result<(), Error> {
        self.queue(id, size_of_parts(parts), |queue| queue.push(parts))
    }

    /// Queues a message for one peer by `push`.
    #[inline]
    fn queue(
        &mut self,
        id: PeerId,
        size: Size,
        push: impl Fn(&mut SendQueue),
    ) -> Result<(), Error> {
        let mut sent = self.engine.send_to(id, size, &push);
        if sent == Err(Error::Full) && self.engine.is_writable(id) {
            self.write(id);
            self.perform();
            sent = self.engine.send_to(id, size, &push);
        }
        if sent? {
            self.write(id);
            self.perform();
        }
        Ok(())
    }

    /// ROUTER: queues a message for the peer with a routing ID.
    #[inline]
    pub fn send_routed(&mut self, routing_id: &[u8], parts: &[&[u8]]) -> Result<(), Error> {
        self.queue_routed(routing_id, size_of_parts(parts), |queue| queue.push(parts))
    }

    #[inline]
    pub(super) fn queue_routed(
        &mut self,
        routing_id: &[u8],
        size: Size,
        push: impl Fn(&mut SendQueue),
    ) -> Result<(), Error> {
        let sent = match self.engine.route(routing_id) {
            Some(id) => self.queue(id, size, push),
            None => Err(Error::Unroutable),
        };
        match sent {
            Err(Error::Unroutable) if !self.engine.options().router_mandatory => Ok(()),
            sent => sent,
        }
    }

    /// DEALER: queues a message for the next peer, in round-robin order, whose queue is not full.
    #[inline]
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), Error> {
        self.queue_dealt(size_of_parts(parts), |queue| queue.push(parts))
    }

    #[inline]
    pub(super) fn queue_dealt(
        &mut self,
        size: Size,
        push: impl Fn(&mut SendQueue),
    ) -> Result<(), Error> {
        let mut result = Err(Error::NoPeer);
        for _ in 0..self.engine.round_robin_count() {
            let Some(id) = self.engine.next_dealt() else {
                break;
            };
            match self.queue(id, size, &push) {
                Ok(()) => return Ok(()),
                Err(Error::Unroutable) => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Writes queued messages, as far as the kernel accepts them. The deadline of a PONG counts from
    /// `now` if its PING is written now.
    pub fn flush(&mut self, now: Instant) {
        if !self.engine.has_dirty() {
            return;
        }
        self.now = self.now.max(now);
        self.write_all();
        self.perform();
    }

    /// Number of unsent bytes in the queues of all peers.
    pub fn pending_bytes(&self) -> u64 {
        self.engine.pending_bytes()
    }

    #[cfg(test)]
    pub(super) fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Panics if the state is inconsistent.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn check(&self) {
        self.engine.check(self.now);
        let links = self.links.iter().flatten().count();
        assert_eq!(links + self.free_links.len(), self.links.len());
    }
}

#[inline]
fn size_of_parts(parts: &[&[u8]]) -> Size {
    Size {
        frames: parts.len(),
        bytes: parts.iter().map(|part| part.len()).sum(),
    }
}
