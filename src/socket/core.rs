//! The socket that a loop drives.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Registry;

use super::peers::{Link, Peer, Peers};
use super::{DisconnectReason, Event, Options, PeerId, SendError};
use crate::limits;
use crate::reactor::{Endpoint, Listener, Stream, token};
use crate::zmtp::{Config, Connection, Message, Progress, SocketType};

/// A ROUTER or DEALER without a loop of its own.
///
/// A turn of the owner's loop: hand readiness to [`Socket::handle_ready`] and time to
/// [`Socket::handle_timeout`]; take messages with [`Socket::receive`] until it gives none (or a
/// budget of the owner's is used up); send; [`Socket::flush`]; then wait until
/// [`Socket::poll_timeout`], or not at all while [`Socket::has_ready`].
pub struct Socket {
    config: Arc<Config>,
    options: Options,
    registry: Registry,
    owner: u8,
    peers: Peers,
    listeners: Vec<Option<Bound>>,
    /// Routing ids of established peers (ROUTER only).
    routes: HashMap<Vec<u8>, PeerId>,
    /// Peers that may have input, in turn (fair queuing).
    ready: VecDeque<PeerId>,
    /// Peers with unsent octets that are not known to be blocked.
    dirty: Vec<PeerId>,
    /// DEALER: peers that may be sent to, and whose turn it is.
    round_robin: Vec<PeerId>,
    next_peer: usize,
    events: VecDeque<Event>,
    handshakes: usize,
    /// No deadline lies before this instant; it may be earlier than the earliest.
    next_timeout: Option<Instant>,
    random: RandomState,
    random_count: u64,
    identity_next: u32,
}

/// What one step of a peer came to.
enum Step {
    /// A message is there; the peer stays in the ring.
    Message,
    /// Go on with this peer.
    Again,
    /// It has nothing more now, or is gone; it is out of the ring.
    Idle,
    /// It may have more, but the reads of this call are used up.
    Budget,
}

struct Bound {
    listener: Listener,
    endpoint: Endpoint,
    acceptable: bool,
    /// After an error such as EMFILE no accept is tried before this instant.
    rest_until: Option<Instant>,
}

/// Sources of a listener stand behind those of peers.
const LISTENER_INDEX_BASE: usize = 1 << 27;
/// Deadlines are looked at in steps of this size at least.
const TIMER_STEP: Duration = Duration::from_millis(10);

impl Socket {
    /// A socket whose sources are registered with `registry` under tokens of `owner`.
    pub fn new(
        socket_type: SocketType,
        options: Options,
        registry: &Registry,
        owner: u8,
    ) -> io::Result<Self> {
        if options.identity.len() > 255 || options.identity.first() == Some(&0) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "identity must be at most 255 octets and must not begin with a zero octet",
            ));
        }
        let config = Config {
            socket_type,
            identity: options.identity.clone(),
            limits: options.limits,
            handshake_timeout: options.handshake_timeout,
            heartbeat: options.heartbeat,
        };
        let random = RandomState::new();
        let identity_next = (random.hash_one(0u64) & u64::from(u32::MAX)) as u32;
        Ok(Socket {
            config: Arc::new(config),
            options,
            registry: registry.try_clone()?,
            owner,
            peers: Peers::default(),
            listeners: Vec::new(),
            routes: HashMap::new(),
            ready: VecDeque::new(),
            dirty: Vec::new(),
            round_robin: Vec::new(),
            next_peer: 0,
            events: VecDeque::new(),
            handshakes: 0,
            next_timeout: None,
            random,
            random_count: 0,
            identity_next,
        })
    }

    fn is_router(&self) -> bool {
        self.config.socket_type == SocketType::Router
    }

    /// Listens; gives the endpoint with the port the system chose.
    pub fn bind(&mut self, endpoint: &Endpoint) -> io::Result<Endpoint> {
        let mut listener = Listener::bind(endpoint)?;
        let bound = listener.endpoint(endpoint);
        let place = self.listeners.len();
        listener.register(
            &self.registry,
            token::new(self.owner, LISTENER_INDEX_BASE + place),
        )?;
        self.listeners.push(Some(Bound {
            listener,
            endpoint: bound.clone(),
            acceptable: true,
            rest_until: None,
        }));
        Ok(bound)
    }

    /// Stops listening on an endpoint that [`Socket::bind`] gave; accepted peers stay. False
    /// when there is no such listener.
    pub fn unbind(&mut self, endpoint: &Endpoint) -> bool {
        let found = self.listeners.iter_mut().find(|bound| {
            bound
                .as_ref()
                .is_some_and(|bound| &bound.endpoint == endpoint)
        });
        match found {
            Some(bound) => {
                *bound = None;
                true
            }
            None => false,
        }
    }

    /// Connects in the background and goes on trying; messages may be queued at once.
    pub fn connect(&mut self, endpoint: &Endpoint, now: Instant) -> PeerId {
        let peer = Peer::new(
            Link::Waiting(now),
            Some(endpoint.clone()),
            endpoint.to_string(),
        );
        let id = self.peers.insert(peer);
        self.handshakes += 1;
        if !self.is_router() {
            self.round_robin.push(id);
        }
        self.start_connect(id, now);
        id
    }

    /// Ends a peer; a connecting one is not connected again. False when it is gone already.
    pub fn disconnect(&mut self, id: PeerId, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(id) else {
            return false;
        };
        peer.connect_to = None;
        self.lose(id, DisconnectReason::Owner, now);
        true
    }

    /// The next lifecycle event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn tell(&mut self, event: Event) {
        if self.events.len() >= limits::SOCKET_EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    // ---- readiness and time ----

    /// True while input or connections are waiting that need no further readiness.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
            || self
                .listeners
                .iter()
                .flatten()
                .any(|bound| bound.acceptable && bound.rest_until.is_none())
    }

    /// A source of ours is ready.
    pub fn handle_ready(&mut self, event: &mio::event::Event, now: Instant) {
        let index = token::index(event.token());
        if index >= LISTENER_INDEX_BASE {
            if let Some(Some(bound)) = self.listeners.get_mut(index - LISTENER_INDEX_BASE) {
                bound.acceptable = true;
            }
            return;
        }
        let Some(id) = self.peers.at(index) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        if let Link::Connecting(stream, _) = &peer.link {
            match stream.connect_result() {
                Ok(false) => return,
                Ok(true) => self.connected(id, now),
                Err(error) => {
                    return self.lose(id, DisconnectReason::Io(error.to_string()), now);
                }
            }
        }
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        if event.is_writable() {
            peer.writable = true;
            if !peer.in_dirty {
                peer.in_dirty = true;
                self.dirty.push(id);
            }
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            peer.readable = true;
            peer.read_closed |= event.is_read_closed() || event.is_error();
            if !peer.in_ready {
                peer.in_ready = true;
                self.ready.push_back(id);
            }
        }
    }

    /// When [`Socket::handle_timeout`] is due; it may be called at any time.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_timeout
    }

    fn note_timeout(&mut self, at: Option<Instant>) {
        if let Some(at) = at
            && self.next_timeout.is_none_or(|next| at < next)
        {
            self.next_timeout = Some(at);
        }
    }

    /// Lets time pass: heartbeats, deadlines, reconnects, resting listeners.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_timeout.is_none_or(|next| now < next) {
            return;
        }
        self.next_timeout = None;
        for bound in self.listeners.iter_mut().flatten() {
            match bound.rest_until {
                Some(until) if until <= now => bound.rest_until = None,
                until => {
                    if let Some(until) = until
                        && self.next_timeout.is_none_or(|next| until < next)
                    {
                        self.next_timeout = Some(until);
                    }
                }
            }
        }
        let mut active = false;
        for index in 0..self.peers.slot_count() {
            if let Some(id) = self.peers.at(index) {
                active |= self.peer_timeout(id, now);
            }
        }
        if active {
            self.note_timeout(Some(now + limits::IDLE_MEMORY_AFTER));
        }
        if let Some(next) = &mut self.next_timeout {
            *next = (*next).max(now + TIMER_STEP);
        }
    }

    /// True when the peer holds buffers that may be given back later.
    fn peer_timeout(&mut self, id: PeerId, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(id) else {
            return false;
        };
        match &mut peer.link {
            Link::Waiting(at) => {
                if *at <= now {
                    self.start_connect(id, now);
                } else {
                    let at = *at;
                    self.note_timeout(Some(at));
                }
                false
            }
            Link::Connecting(_, deadline) => {
                if *deadline <= now {
                    let reason = DisconnectReason::Io("connect timed out".to_owned());
                    self.lose(id, reason, now);
                } else {
                    let at = *deadline;
                    self.note_timeout(Some(at));
                }
                false
            }
            Link::Up(_, connection) => {
                if let Err(error) = connection.handle_timeout(now) {
                    self.lose(id, DisconnectReason::Protocol(error), now);
                    return false;
                }
                let idle = now.saturating_duration_since(connection.received_at())
                    >= limits::IDLE_MEMORY_AFTER;
                if idle {
                    connection.release_idle();
                    peer.queue.release_idle();
                }
                let at = connection.poll_timeout();
                if connection.wants_write(&peer.queue) && !peer.in_dirty {
                    peer.in_dirty = true;
                    self.dirty.push(id);
                }
                self.note_timeout(at);
                !idle
            }
        }
    }

    // ---- connections come and go ----

    fn start_connect(&mut self, id: PeerId, now: Instant) {
        let deadline = now + self.options.handshake_timeout;
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let Some(endpoint) = &peer.connect_to else {
            return;
        };
        let made = Stream::connect(endpoint).and_then(|mut stream| {
            let place = token::new(self.owner, id.index as usize);
            stream.register(&self.registry, place)?;
            Ok(stream)
        });
        match made {
            Ok(stream) => {
                peer.link = Link::Connecting(stream, deadline);
                peer.readable = false;
                peer.writable = false;
                peer.read_closed = false;
                self.note_timeout(Some(deadline));
            }
            Err(error) => self.lose(id, DisconnectReason::Io(error.to_string()), now),
        }
    }

    fn connected(&mut self, id: PeerId, now: Instant) {
        let config = self.config.clone();
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let Link::Connecting(stream, _) = std::mem::replace(&mut peer.link, Link::Waiting(now))
        else {
            return;
        };
        let connection = Box::new(Connection::new(config, now));
        let timeout = connection.poll_timeout();
        peer.link = Link::Up(stream, connection);
        peer.writable = true;
        peer.readable = true;
        if !peer.in_ready {
            peer.in_ready = true;
            self.ready.push_back(id);
        }
        if !peer.in_dirty {
            peer.in_dirty = true;
            self.dirty.push(id);
        }
        if let Some(endpoint) = peer.connect_to.clone() {
            self.tell(Event::Connected { peer: id, endpoint });
        }
        self.note_timeout(timeout);
    }

    fn accept(&mut self, now: Instant) {
        for place in 0..self.listeners.len() {
            for _ in 0..limits::ACCEPTS_PER_TURN {
                let Some(Some(bound)) = self.listeners.get_mut(place) else {
                    break;
                };
                if !bound.acceptable || bound.rest_until.is_some_and(|until| until > now) {
                    break;
                }
                match bound.listener.accept() {
                    Ok(stream) => self.accepted(stream, now),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        bound.acceptable = false;
                    }
                    // The connection was gone before it was taken.
                    Err(error)
                        if matches!(
                            error.kind(),
                            io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                        ) => {}
                    Err(error) => {
                        log::warn!("cannot accept on {}: {error}; resting", bound.endpoint);
                        let until = now + limits::ACCEPT_REST;
                        bound.rest_until = Some(until);
                        self.note_timeout(Some(until));
                    }
                }
            }
        }
    }

    fn accepted(&mut self, mut stream: Stream, now: Instant) {
        let address = stream.peer();
        if self.peers.len() >= self.options.connections_max
            || self.handshakes >= self.options.handshakes_max
        {
            log::warn!("{address}: {}", DisconnectReason::TooMany);
            return;
        }
        let connection = Box::new(Connection::new(self.config.clone(), now));
        let timeout = connection.poll_timeout();
        // The token needs the slot, so the slot is taken before the stream is registered.
        let id = self
            .peers
            .insert(Peer::new(Link::Waiting(now), None, address.clone()));
        if let Err(error) =
            stream.register(&self.registry, token::new(self.owner, id.index as usize))
        {
            log::warn!("{address}: cannot watch the connection: {error}");
            self.peers.remove(id);
            return;
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.link = Link::Up(stream, connection);
            peer.readable = true;
            peer.writable = true;
            peer.in_ready = true;
            peer.in_dirty = true;
        }
        self.ready.push_back(id);
        self.dirty.push(id);
        self.handshakes += 1;
        self.note_timeout(timeout);
        self.tell(Event::Accepted { peer: id, address });
    }

    /// The handshake of `id` is done. False when the peer was refused.
    fn establish(&mut self, id: PeerId, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(id) else {
            return false;
        };
        let Link::Up(_, connection) = &mut peer.link else {
            return false;
        };
        let timeout = connection.poll_timeout();
        let mut identity = connection.peer().identity.clone();
        if identity.is_empty() {
            identity = vec![0];
            identity.extend_from_slice(&self.identity_next.to_be_bytes());
            self.identity_next = self.identity_next.wrapping_add(1);
        }
        if self.config.socket_type == SocketType::Router {
            if let Some(&old) = self.routes.get(&identity)
                && old != id
            {
                if !self.options.handover {
                    connection.refuse(&DisconnectReason::IdentityInUse.to_string());
                    self.flush_peer(id);
                    self.lose(id, DisconnectReason::IdentityInUse, now);
                    return false;
                }
                if let Some(old_peer) = self.peers.get_mut(old) {
                    // A connecting peer stays to be connected again, without the identity.
                    old_peer.identity.clear();
                }
                self.routes.remove(&identity);
                self.lose(old, DisconnectReason::Handover, now);
            }
            if let Some(peer) = self.peers.get(id)
                && !peer.identity.is_empty()
                && peer.identity != identity
            {
                self.routes.remove(&peer.identity);
            }
            self.routes.insert(identity.clone(), id);
        } else if !self.round_robin.contains(&id) {
            self.round_robin.push(id);
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.identity.clone_from(&identity);
            peer.established = true;
            peer.failures = 0;
            if !peer.in_dirty {
                peer.in_dirty = true;
                self.dirty.push(id);
            }
        }
        self.handshakes -= 1;
        self.note_timeout(timeout);
        self.tell(Event::Established { peer: id, identity });
        true
    }

    /// The connection of `id` has ended; a connecting peer waits for its next attempt.
    fn lose(&mut self, id: PeerId, reason: DisconnectReason, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let was_established = std::mem::take(&mut peer.established);
        let identity = if was_established {
            peer.identity.clone()
        } else {
            Vec::new()
        };
        match std::mem::replace(&mut peer.link, Link::Waiting(now)) {
            Link::Up(mut stream, _) | Link::Connecting(mut stream, _) => {
                if let Err(error) = stream.deregister(&self.registry) {
                    log::debug!("{}: {error}", peer.address);
                }
            }
            Link::Waiting(_) => {}
        }
        match &reason {
            DisconnectReason::Closed | DisconnectReason::Owner | DisconnectReason::Io(_) => {
                log::debug!("{}: {reason}", peer.address);
            }
            _ => log::warn!("{}: connection closed: {reason}", peer.address),
        }
        if peer.connect_to.is_some() {
            if was_established {
                self.handshakes += 1;
            }
            let refused = matches!(&reason, DisconnectReason::Protocol(error) if error.is_fatal());
            let failures = peer.failures;
            peer.failures = failures.saturating_add(1);
            peer.queue.rewind();
            peer.readable = false;
            peer.writable = false;
            peer.in_ready = false;
            let pause = if refused {
                self.options.reconnect_interval_max
            } else {
                self.backoff(failures)
            };
            if let Some(peer) = self.peers.get_mut(id) {
                peer.link = Link::Waiting(now + pause);
            }
            self.tell(Event::Disconnected {
                peer: id,
                identity,
                reason,
            });
            self.tell(Event::RetryIn { peer: id, pause });
            self.note_timeout(Some(now + pause));
            return;
        }
        if !was_established {
            self.handshakes -= 1;
        }
        if let Some(peer) = self.peers.remove(id)
            && self.routes.get(&peer.identity) == Some(&id)
        {
            self.routes.remove(&peer.identity);
        }
        self.round_robin.retain(|other| *other != id);
        self.tell(Event::Disconnected {
            peer: id,
            identity,
            reason,
        });
    }

    /// Pause before attempt `failures + 1`: doubling, capped, ±25 % so that a fleet that lost
    /// its server does not come back in one instant.
    fn backoff(&mut self, failures: u32) -> Duration {
        let base = self
            .options
            .reconnect_interval
            .saturating_mul(1 << failures.min(16))
            .min(self.options.reconnect_interval_max);
        self.random_count += 1;
        let percent = 75 + self.random.hash_one(self.random_count) % 51;
        base.mul_f64(percent as f64 / 100.0)
    }

    // ---- in ----

    /// The peer whose next message is there: read it with [`Socket::message`] before the next
    /// call. Peers take turns, one message each.
    #[inline]
    pub fn receive(&mut self, now: Instant) -> Option<PeerId> {
        if self
            .listeners
            .iter()
            .flatten()
            .any(|bound| bound.acceptable)
        {
            self.accept(now);
        }
        let mut reads = limits::READS_PER_RECEIVE;
        while let Some(id) = self.ready.pop_front() {
            match self.step(id, &mut reads, now) {
                Step::Again => self.ready.push_front(id),
                Step::Idle => {}
                Step::Budget => {
                    self.ready.push_back(id);
                    return None;
                }
                Step::Message => {
                    self.ready.push_back(id);
                    return Some(id);
                }
            }
        }
        None
    }

    /// Takes waiting connections and brings handshakes forward without touching a message; for
    /// owners that only send.
    pub fn drive_handshakes(&mut self, now: Instant) {
        if self
            .listeners
            .iter()
            .flatten()
            .any(|bound| bound.acceptable)
        {
            self.accept(now);
        }
        let mut reads = limits::READS_PER_RECEIVE;
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else {
                return;
            };
            loop {
                if self.peers.get(id).is_some_and(|peer| peer.established) {
                    self.ready.push_back(id);
                    break;
                }
                match self.step(id, &mut reads, now) {
                    Step::Again => {}
                    Step::Idle => break,
                    Step::Budget | Step::Message => {
                        self.ready.push_back(id);
                        break;
                    }
                }
            }
        }
    }

    /// One step of a peer that has been taken out of the ready ring.
    #[inline]
    fn step(&mut self, id: PeerId, reads: &mut usize, now: Instant) -> Step {
        let Some(peer) = self.peers.get_mut(id) else {
            return Step::Idle;
        };
        let Link::Up(stream, connection) = &mut peer.link else {
            peer.in_ready = false;
            return Step::Idle;
        };
        match connection.poll(now) {
            Ok(Progress::Message) => return Step::Message,
            Ok(Progress::Established) => {
                return if self.establish(id, now) {
                    Step::Again
                } else {
                    Step::Idle
                };
            }
            Ok(Progress::NeedInput) => {}
            Err(error) => {
                // ERROR may have been queued for the peer.
                self.flush_peer(id);
                self.lose(id, DisconnectReason::Protocol(error), now);
                return Step::Idle;
            }
        }
        if connection.wants_write(&peer.queue) && !peer.in_dirty {
            peer.in_dirty = true;
            self.dirty.push(id);
        }
        if !peer.readable {
            peer.in_ready = false;
            let timeout = connection.poll_timeout();
            self.note_timeout(timeout);
            return Step::Idle;
        }
        if *reads == 0 {
            return Step::Budget;
        }
        *reads -= 1;
        let space = connection.receive_space();
        let room = space.len();
        match stream.read(space) {
            Ok(0) => self.lose(id, DisconnectReason::Closed, now),
            Ok(count) => {
                connection.handle_received(count, now);
                // epoll(7): a short read means that the stream is drained, unless its end is
                // still to be read.
                peer.readable = count == room || peer.read_closed;
                self.note_timeout(Some(now + limits::IDLE_MEMORY_AFTER));
                return Step::Again;
            }
            // A write has failed before, and what the peer sent until then is read.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && peer.read_closed => {
                self.lose(id, DisconnectReason::Closed, now);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                peer.readable = false;
                peer.in_ready = false;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Step::Again,
            Err(error) => self.lose(id, DisconnectReason::Io(error.to_string()), now),
        }
        Step::Idle
    }

    /// The message that [`Socket::receive`] announced; a view of no frames otherwise.
    #[inline]
    pub fn message(&self, id: PeerId) -> Option<Message<'_>> {
        match &self.peers.get(id)?.link {
            Link::Up(_, connection) => Some(connection.message()),
            _ => None,
        }
    }

    /// The routing id of an established peer.
    pub fn identity(&self, id: PeerId) -> Option<&[u8]> {
        self.peers
            .get(id)
            .filter(|peer| peer.established)
            .map(|peer| peer.identity.as_slice())
    }

    /// When octets last came from an established peer.
    pub fn heard_at(&self, id: PeerId) -> Option<Instant> {
        match &self.peers.get(id)?.link {
            Link::Up(_, connection) if connection.is_open() => Some(connection.received_at()),
            _ => None,
        }
    }

    // ---- out ----

    /// The peer with a routing id (ROUTER).
    pub fn route(&self, identity: &[u8]) -> Option<PeerId> {
        self.routes.get(identity).copied()
    }

    /// Queues a message for one peer.
    #[inline]
    pub fn send_to(&mut self, id: PeerId, parts: &[&[u8]]) -> Result<(), SendError> {
        if parts.is_empty() {
            return Err(SendError::Invalid);
        }
        let size: usize = parts.iter().map(|part| part.len()).sum();
        if size as u64 > self.options.limits.message_size_max {
            return Err(SendError::Invalid);
        }
        let Some(peer) = self.peers.get_mut(id) else {
            return Err(SendError::Unroutable);
        };
        if self.config.socket_type == SocketType::Router && peer.identity.is_empty() {
            return Err(SendError::Unroutable);
        }
        if is_full(peer, &self.options, size) {
            if !peer.writable {
                return Err(SendError::Full);
            }
            self.flush_peer(id);
            match self.peers.get(id) {
                Some(peer) if !is_full(peer, &self.options, size) => {}
                Some(_) => return Err(SendError::Full),
                None => return Err(SendError::Unroutable),
            }
        }
        let Some(peer) = self.peers.get_mut(id) else {
            return Err(SendError::Unroutable);
        };
        peer.queue.push(parts);
        if !peer.in_dirty {
            peer.in_dirty = true;
            self.dirty.push(id);
        }
        if peer.queue.octets() >= limits::FLUSH_OCTETS && peer.writable {
            self.flush_peer(id);
        }
        Ok(())
    }

    /// DEALER: queues a message for the next peer in turn that is not full.
    #[inline]
    pub fn send(&mut self, parts: &[&[u8]]) -> Result<(), SendError> {
        let count = self.round_robin.len();
        let mut result = Err(SendError::NoPeer);
        for _ in 0..count {
            if self.next_peer >= self.round_robin.len() {
                self.next_peer = 0;
            }
            let Some(&id) = self.round_robin.get(self.next_peer) else {
                break;
            };
            self.next_peer += 1;
            match self.send_to(id, parts) {
                Ok(()) => return Ok(()),
                Err(SendError::Unroutable) => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Writes what is queued, as far as the system takes it.
    pub fn flush(&mut self) {
        while let Some(id) = self.dirty.pop() {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.in_dirty = false;
                self.flush_peer(id);
            }
        }
    }

    /// Octets queued for all peers.
    pub fn pending_octets(&self) -> u64 {
        (0..self.peers.slot_count())
            .filter_map(|index| self.peers.get(self.peers.at(index)?))
            .map(|peer| peer.queue.octets())
            .sum()
    }

    fn flush_peer(&mut self, id: PeerId) {
        loop {
            let Some(peer) = self.peers.get_mut(id) else {
                return;
            };
            let Link::Up(stream, connection) = &mut peer.link else {
                return;
            };
            if !peer.writable || !connection.wants_write(&peer.queue) {
                return;
            }
            let mut slices = Vec::with_capacity(limits::SLICES_PER_WRITE);
            connection.gather(&peer.queue, limits::SLICES_PER_WRITE, &mut slices);
            let size: usize = slices.iter().map(|slice| slice.len()).sum();
            match stream.write_vectored(&slices) {
                Ok(count) => {
                    drop(slices);
                    connection.handle_written(&mut peer.queue, count);
                    // epoll(7): a short write means that the buffer is full.
                    if count < size {
                        peer.writable = false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    peer.writable = false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // What the peer sent before it went is still to be read; the end of the
                    // stream is found there.
                    log::debug!("{}: {error}", peer.address);
                    peer.writable = false;
                    peer.readable = true;
                    peer.read_closed = true;
                    if !peer.in_ready {
                        peer.in_ready = true;
                        self.ready.push_back(id);
                    }
                    return;
                }
            }
        }
    }
}

/// At its high-water mark, or would be with `size` octets more.
fn is_full(peer: &Peer, options: &Options, size: usize) -> bool {
    let queue = &peer.queue;
    let messages = options.send_hwm > 0 && queue.message_count() >= options.send_hwm;
    let octets = options.send_hwm_octets > 0
        && !queue.is_empty()
        && queue.octets() + size as u64 > options.send_hwm_octets;
    messages || octets
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("type", &self.config.socket_type)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}
