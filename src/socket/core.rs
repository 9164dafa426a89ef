//! The socket that is driven by an event loop.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use mio::Registry;

use super::log_limit::LogLimit;
use super::options::{ROUTING_ID_RULE, check_options, check_security, is_routing_id};
use super::peers::{Link, Peer, Peers};
use super::{Counters, DisconnectReason, Event, Options, PeerId};
use crate::limits;
use crate::reactor::{Endpoint, Listener, token};
use crate::zmtp::{Config, PeerInfo, Security, SocketType};

/// A ROUTER or DEALER without an event loop of its own.
///
/// In each iteration of its event loop, the owner passes readiness events to
/// [`Socket::handle_ready`] and the time to [`Socket::handle_timeout`]. It takes messages with
/// [`Socket::receive`] until that returns `None` or the owner's budget is used up. It sends, and
/// calls [`Socket::flush`]. Then it waits until [`Socket::poll_timeout`]; while
/// [`Socket::has_ready`] is true, it does not wait.
///
/// An event loop with several sockets or other sources distinguishes them by the owner number in
/// their tokens:
///
/// ```
/// use std::time::Instant;
/// use casparian::reactor::{Reactor, token};
/// use casparian::socket::{Options, Socket, SocketType};
///
/// let mut reactor = Reactor::new()?;
/// let options = Options::new().routing_id("client");
/// let mut router = Socket::new(SocketType::Router, Options::new(), reactor.registry(), 1)?;
/// let mut dealer = Socket::new(SocketType::Dealer, options, reactor.registry(), 2)?;
/// let bound = router.bind(&"ipc://*".parse()?)?;
/// dealer.connect(&bound, Instant::now());
/// dealer.send(&[b"hello"])?;
///
/// let mut answered = false;
/// while !answered {
///     let now = Instant::now();
///     while let Some(peer) = router.receive(now) {
///         let hello = router.message(peer).map(|message| message.to_vecs());
///         assert_eq!(hello, Some(vec![b"hello".to_vec()]));
///         assert_eq!(router.identity(peer), Some(&b"client"[..]));
///         router.send_to(peer, &[b"world"])?;
///     }
///     while let Some(peer) = dealer.receive(now) {
///         answered = dealer.message(peer).is_some_and(|message| message.len() == 1);
///     }
///     for socket in [&mut router, &mut dealer] {
///         socket.handle_timeout(now);
///         socket.flush();
///     }
///     let timeouts = [router.poll_timeout(), dealer.poll_timeout()];
///     let busy = router.has_ready() || dealer.has_ready() || answered;
///     let until = if busy { Some(now) } else { timeouts.into_iter().flatten().min() };
///     reactor.wait(until, now)?;
///     let now = Instant::now();
///     for event in reactor.events() {
///         match token::owner(event.token()) {
///             1 => router.handle_ready(event, now),
///             2 => dealer.handle_ready(event, now),
///             _ => {}
///         }
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Socket {
    pub(super) config: Arc<Config>,
    pub(super) options: Options,
    pub(super) registry: Registry,
    pub(super) owner: u8,
    pub(super) peers: Peers,
    pub(super) listeners: Vec<Option<Bound>>,
    /// The peer of each routing ID: of established peers, and of connecting peers that keep theirs
    /// (ROUTER only).
    pub(super) routes: HashMap<Vec<u8>, PeerId>,
    /// Ring of peers that may have input, for fair queuing.
    pub(super) ready: VecDeque<PeerId>,
    /// Peers to which the next flush tries to write.
    pub(super) dirty: Vec<PeerId>,
    /// DEALER: the peers to which messages may be sent, in round-robin order. `next_peer` is the
    /// index of the next one.
    pub(super) round_robin: Vec<PeerId>,
    pub(super) next_peer: usize,
    pub(super) events: VecDeque<Event>,
    pub(super) counters: Counters,
    pub(super) log_limit: LogLimit,
    /// Accepted peers whose handshake is not done, oldest first. Peers that are established or
    /// removed may still be listed; they are dropped when they reach the front.
    pub(super) pending: VecDeque<PeerId>,
    /// The number of accepted peers whose handshake is not done.
    pub(super) handshakes: usize,
    /// Number of unsent bytes in the queues of all peers.
    pub(super) queued_bytes: u64,
    /// Memory of the receive buffers of all peers, in bytes.
    pub(super) received_bytes: u64,
    /// The time that the owner passed last.
    pub(super) now: Instant,
    /// The time of each peer's next timeout, as in `Peer::timer`.
    pub(super) timers: BTreeSet<(Instant, PeerId)>,
    /// Timers that are due; empty between calls.
    pub(super) due: Vec<(Instant, PeerId)>,
    pub(super) random: RandomState,
    pub(super) random_count: u64,
    pub(super) identity_next: u32,
    /// Peers whose user is to be determined; empty between calls.
    #[cfg(feature = "process")]
    pub(super) unasked: Vec<PeerId>,
}

pub(super) struct Bound {
    pub(super) listener: Listener,
    /// The endpoint that the owner passed to `bind`.
    pub(super) asked: Endpoint,
    pub(super) endpoint: Endpoint,
    pub(super) acceptable: bool,
    /// After an error such as EMFILE, no connection is accepted before this time.
    pub(super) rest_until: Option<Instant>,
}

/// Token indexes of listeners begin here; smaller ones are peers.
const LISTENER_INDEX_BASE: usize = 1 << 27;

impl Socket {
    /// Creates a socket. Its sources are registered in `registry` (of a
    /// [`crate::reactor::Reactor`], or of any `mio::Poll` of mio 1) with tokens of the owner number
    /// `owner`, 0 to 15. Other sources in that registry need tokens of other owner numbers
    /// ([`token::new`]).
    pub fn new(
        socket_type: SocketType,
        options: Options,
        registry: &Registry,
        owner: u8,
    ) -> io::Result<Self> {
        check_options(&options)?;
        if owner > 15 {
            let what = "the owner of a socket's tokens is a number from 0 to 15";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let config = Config {
            socket_type,
            identity: options.routing_id.clone(),
            limits: options.limits,
            read_ahead: options.rcvhwm_bytes,
            rcvhwm: options.rcvhwm,
            handshake_timeout: options.handshake_ivl,
            heartbeat: options.heartbeat(),
            security: options.security.clone(),
            metadata: options.metadata.clone(),
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
            counters: Counters::default(),
            log_limit: LogLimit::default(),
            pending: VecDeque::new(),
            handshakes: 0,
            queued_bytes: 0,
            received_bytes: 0,
            now: Instant::now(),
            timers: BTreeSet::new(),
            due: Vec::new(),
            random,
            random_count: 0,
            identity_next,
            #[cfg(feature = "process")]
            unasked: Vec::new(),
        })
    }

    pub(super) fn is_router(&self) -> bool {
        self.config.socket_type == SocketType::Router
    }

    /// Binds a listener. Returns its endpoint, with the port that the system chose.
    pub fn bind(&mut self, endpoint: &Endpoint) -> io::Result<Endpoint> {
        #[cfg(feature = "process")]
        let is_private = {
            let users = self.options.local_users.as_ref();
            users.is_some_and(super::LocalUsers::is_default_users)
        };
        #[cfg(not(feature = "process"))]
        let is_private = false;
        let mut listener = Listener::bind(endpoint, self.options.buffers, is_private)?;
        #[cfg(feature = "process")]
        if let Some(users) = &self.options.local_users
            && let Listener::Unix(_, Some(file)) = &listener
        {
            users.open_socket_file(file.path())?;
        }
        let bound = listener.endpoint(endpoint);
        let free = self.listeners.iter().position(Option::is_none);
        let index = free.unwrap_or(self.listeners.len());
        listener.register(
            &self.registry,
            token::new(self.owner, LISTENER_INDEX_BASE + index),
        )?;
        let bound_there = Some(Bound {
            listener,
            asked: endpoint.clone(),
            endpoint: bound.clone(),
            acceptable: true,
            rest_until: None,
        });
        match self.listeners.get_mut(index) {
            Some(free) => *free = bound_there,
            None => self.listeners.push(bound_there),
        }
        self.report(Event::Listening {
            endpoint: bound.clone(),
        });
        Ok(bound)
    }

    /// Closes the listener of an endpoint, which is one that [`Socket::bind`] returned or was
    /// called with. Accepted peers stay connected. Returns false if there is no such listener.
    pub fn unbind(&mut self, endpoint: &Endpoint) -> bool {
        let found = self.listeners.iter_mut().find(|bound| {
            bound
                .as_ref()
                .is_some_and(|bound| &bound.endpoint == endpoint || &bound.asked == endpoint)
        });
        let Some(bound) = found.and_then(Option::take) else {
            return false;
        };
        self.report(Event::Closed {
            endpoint: bound.endpoint,
        });
        true
    }

    /// Connects in the background, and retries after failures. A DEALER can queue messages at once
    /// (unless [`Options::immediate`] is set), a ROUTER only after the handshake.
    ///
    /// A DEALER has one connection to an endpoint: a second call returns the peer of the first, as
    /// in libzmq.
    pub fn connect(&mut self, endpoint: &Endpoint, now: Instant) -> PeerId {
        if !self.is_router() {
            let at_endpoint = |id: &PeerId| {
                let peer = self.peers.get(*id);
                peer.is_some_and(|peer| peer.connect_to.as_ref() == Some(endpoint))
            };
            let slots = 0..self.peers.slot_count();
            let known = slots.filter_map(|index| self.peers.at(index));
            if let Some(id) = known.into_iter().find(at_endpoint) {
                return id;
            }
        }
        let peer = Peer::new(
            Link::Waiting(now),
            Some(endpoint.clone()),
            endpoint.to_string(),
        );
        let id = self.peers.insert(peer);
        if !self.is_router() && !self.options.immediate {
            self.round_robin.push(id);
        }
        self.start_connect(id, now);
        id
    }

    /// ROUTER: connects to a peer that is addressed by `routing_id` from now on, whatever its own
    /// routing ID is. Messages can be queued at once. (`ZMQ_CONNECT_ROUTING_ID`)
    ///
    /// Fails if the routing ID is empty, longer than 255 bytes, begins with a zero byte, or belongs
    /// to another peer.
    pub fn connect_as(
        &mut self,
        endpoint: &Endpoint,
        routing_id: &[u8],
        now: Instant,
    ) -> io::Result<PeerId> {
        let refused = |kind, text| Err(io::Error::new(kind, text));
        if !self.is_router() {
            return refused(
                io::ErrorKind::InvalidInput,
                "only a ROUTER addresses its peers",
            );
        }
        if routing_id.is_empty() || !is_routing_id(routing_id) {
            return refused(io::ErrorKind::InvalidInput, ROUTING_ID_RULE);
        }
        if self.routes.contains_key(routing_id) {
            return refused(io::ErrorKind::AddrInUse, "another peer has that routing ID");
        }
        let mut peer = Peer::new(
            Link::Waiting(now),
            Some(endpoint.clone()),
            endpoint.to_string(),
        );
        peer.identity = routing_id.to_vec();
        peer.identity_is_assigned = true;
        let id = self.peers.insert(peer);
        self.routes.insert(routing_id.to_vec(), id);
        self.start_connect(id, now);
        Ok(id)
    }

    /// Closes the connection of a peer and removes the peer; a connecting one is not connected
    /// again. Messages that are queued for it are dropped ([`Event::Unsent`]). Returns false if the
    /// peer does not exist any more.
    pub fn disconnect(&mut self, id: PeerId, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(id) else {
            return false;
        };
        peer.connect_to = None;
        self.lose(id, DisconnectReason::Owner, now);
        true
    }

    /// Closes the connection of a peer that sent an invalid message, as after a violation of the
    /// protocol: it is logged (a limited number of lines) and counted, and a connecting peer is
    /// connected again only after the longest pause. Returns false if the peer does not exist any
    /// more.
    pub fn reject(&mut self, id: PeerId, why: &str, now: Instant) -> bool {
        if self.peers.get(id).is_none() {
            return false;
        }
        self.lose(id, DisconnectReason::Rejected(why.to_owned()), now);
        true
    }

    /// Closes all listeners, stops all attempts to connect, and shuts down the sending direction of
    /// every connection. Each peer is removed when it closes its end; drive the socket until no
    /// peer is left.
    pub(super) fn shut_down(&mut self, now: Instant) {
        for bound in self.listeners.iter_mut() {
            *bound = None;
        }
        for index in 0..self.peers.slot_count() {
            let Some(id) = self.peers.at(index) else {
                continue;
            };
            let Some(peer) = self.peers.get_mut(id) else {
                continue;
            };
            peer.connect_to = None;
            let has_ended = match &peer.link {
                Link::Up(stream, connection) if connection.is_open() => stream.shut_down().is_ok(),
                _ => false,
            };
            if !has_ended {
                self.lose(id, DisconnectReason::Owner, now);
            }
        }
    }

    /// Established peers to which messages were written.
    pub(super) fn peers_sent_to(&self) -> impl Iterator<Item = PeerId> {
        let slots = 0..self.peers.slot_count();
        let ids = slots.filter_map(|index| self.peers.at(index));
        ids.filter(|id| {
            let peer = self.peers.get(*id);
            peer.is_some_and(|peer| peer.established && peer.has_sent)
        })
    }

    /// [`Socket::disconnect`] for all peers that were connected to an endpoint. Returns false if
    /// there is none.
    pub fn disconnect_endpoint(&mut self, endpoint: &Endpoint, now: Instant) -> bool {
        let mut found = false;
        for index in 0..self.peers.slot_count() {
            if let Some(id) = self.peers.at(index)
                && self
                    .peers
                    .get(id)
                    .is_some_and(|peer| peer.connect_to.as_ref() == Some(endpoint))
            {
                found |= self.disconnect(id, now);
            }
        }
        found
    }

    /// Changes the credentials for all connections. Connections in their handshake are closed, and
    /// connecting peers connect again. Established peers stay connected only if the new credentials
    /// would admit them with the same key or password. Fails, without a change, if [`Socket::new`]
    /// would fail with these credentials.
    pub fn set_security(&mut self, security: Security, now: Instant) -> io::Result<()> {
        check_security(&security)?;
        let old = std::mem::replace(&mut self.options.security, security);
        let mut config = Config::clone(&self.config);
        config.security = self.options.security.clone();
        self.config = Arc::new(config);
        for index in 0..self.peers.slot_count() {
            let Some(id) = self.peers.at(index) else {
                continue;
            };
            let Some(peer) = self.peers.get(id) else {
                continue;
            };
            let Link::Up(_, connection) = &peer.link else {
                continue;
            };
            if !connection.is_open() {
                self.lose(id, DisconnectReason::CredentialsChanged, now);
            } else if !self
                .options
                .security
                .would_admit_again(&old, connection.peer())
            {
                self.lose(id, DisconnectReason::Revoked, now);
            }
        }
        Ok(())
    }

    /// Changes the maximum number of queued messages for each peer. Messages that are already
    /// queued stay, even above it. (`ZMQ_SNDHWM`)
    pub fn set_sndhwm(&mut self, messages: usize) {
        self.options.sndhwm = messages;
    }

    /// The properties of an established peer from its handshake.
    pub fn peer_info(&self, id: PeerId) -> Option<&PeerInfo> {
        match &self.peers.get(id)?.link {
            Link::Up(_, connection) if connection.is_open() => Some(connection.peer()),
            _ => None,
        }
    }

    /// The authenticated user of an established peer: the user name of PLAIN, or the CURVE key and
    /// its name as in a line of the list of keys. `None` if users are not authenticated.
    pub fn user(&self, id: PeerId) -> Option<String> {
        if !self.options.security.proves_users() {
            return None;
        }
        let info = self.peer_info(id)?;
        #[cfg(feature = "curve")]
        if let (Some(key), Some(name)) = (&info.public_key, &info.user_id) {
            return Some(format!("{key} {name}"));
        }
        info.user_id.clone()
    }

    /// The address of a peer, for messages to people.
    pub fn address(&self, id: PeerId) -> Option<&str> {
        self.peers.get(id).map(|peer| peer.address.as_str())
    }

    /// The next lifecycle event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The counters of the socket.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The number of peers: established, in their handshake, connecting, and waiting to reconnect.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    pub(super) fn report(&mut self, event: Event) {
        self.counters.count(&event);
        if self.events.len() >= limits::SOCKET_EVENTS_MAX {
            self.events.pop_front();
            self.counters.events_dropped += 1;
        }
        self.events.push_back(event);
    }

    /// Logs a line about a bad connection, within the limit of lines per second.
    pub(super) fn warn(&mut self, text: std::fmt::Arguments<'_>, now: Instant) {
        match self.log_limit.allow(now) {
            Some(0) => log::warn!("{text}"),
            Some(left_out) => log::warn!("{text} ({left_out} lines like this left out before)"),
            None => self.counters.log_lines_dropped += 1,
        }
    }

    // ---- readiness and time ----

    /// True while peers may have input, or listeners connections, for which no further readiness
    /// event comes.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty() || self.may_accept()
    }

    /// Like [`Socket::has_ready`], for [`Socket::drive`], which does not take messages that wait
    /// for the owner.
    pub(super) fn has_ready_to_drive(&self) -> bool {
        let is_held = |id: &PeerId| self.peers.get(*id).is_some_and(|peer| peer.held);
        self.may_accept() || !self.ready.iter().all(is_held)
    }

    fn may_accept(&self) -> bool {
        self.listeners
            .iter()
            .flatten()
            .any(|bound| bound.acceptable && bound.rest_until.is_none())
    }

    /// Processes a readiness event of one of the socket's sources.
    pub fn handle_ready(&mut self, event: &mio::event::Event, now: Instant) {
        self.now = now;
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
        if let Link::Resolving(lookup, _) = &peer.link {
            let Some(found) = lookup.poll() else {
                return;
            };
            // Replacing the link closes the lookup's source, which also removes it from the
            // reactor.
            peer.link = Link::Waiting(now);
            return match found {
                Ok(addresses) => self.connect_to(id, addresses, now),
                Err(error) => self.lose(id, connect_error(&error), now),
            };
        }
        if let Link::Connecting(stream, _) = &peer.link {
            match stream.connect_result() {
                Ok(false) => return,
                Ok(true) => self.connected(id, now),
                Err(error) => return self.lose(id, connect_error(&error), now),
            }
        }
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        if event.is_writable() && !peer.is_broken {
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
}

/// The reason of a failed attempt to connect a transport.
pub(super) fn connect_error(error: &io::Error) -> DisconnectReason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            DisconnectReason::ConnRefused(error.to_string())
        }
        _ => DisconnectReason::Io(error.to_string()),
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("type", &self.config.socket_type)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}
