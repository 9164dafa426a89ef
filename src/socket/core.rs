//! The socket that a loop drives.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Registry;

use super::peers::{Link, Peer, Peers};
use super::{DisconnectReason, Event, Options, PeerId};
use crate::limits;
use crate::reactor::{Endpoint, Listener, token};
use crate::zmtp::{Config, SocketType};

/// A ROUTER or DEALER without a loop of its own.
///
/// A turn of the owner's loop: hand readiness to [`Socket::handle_ready`] and time to
/// [`Socket::handle_timeout`]; take messages with [`Socket::receive`] until it gives none (or a
/// budget of the owner's is used up); send; [`Socket::flush`]; then wait until
/// [`Socket::poll_timeout`], or not at all while [`Socket::has_ready`].
pub struct Socket {
    pub(super) config: Arc<Config>,
    pub(super) options: Options,
    pub(super) registry: Registry,
    pub(super) owner: u8,
    pub(super) peers: Peers,
    pub(super) listeners: Vec<Option<Bound>>,
    /// Routing ids of established peers (ROUTER only).
    pub(super) routes: HashMap<Vec<u8>, PeerId>,
    /// Peers that may have input, in turn (fair queuing).
    pub(super) ready: VecDeque<PeerId>,
    /// Peers with unsent octets that are not known to be blocked.
    pub(super) dirty: Vec<PeerId>,
    /// DEALER: peers that may be sent to, and whose turn it is.
    pub(super) round_robin: Vec<PeerId>,
    pub(super) next_peer: usize,
    pub(super) events: VecDeque<Event>,
    pub(super) handshakes: usize,
    /// No deadline lies before this instant; it may be earlier than the earliest.
    pub(super) next_timeout: Option<Instant>,
    pub(super) random: RandomState,
    pub(super) random_count: u64,
    pub(super) identity_next: u32,
}

pub(super) struct Bound {
    pub(super) listener: Listener,
    pub(super) endpoint: Endpoint,
    pub(super) acceptable: bool,
    /// After an error such as EMFILE no accept is tried before this instant.
    pub(super) rest_until: Option<Instant>,
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

    pub(super) fn is_router(&self) -> bool {
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

    pub(super) fn tell(&mut self, event: Event) {
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

    pub(super) fn note_timeout(&mut self, at: Option<Instant>) {
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
    pub(super) fn peer_timeout(&mut self, id: PeerId, now: Instant) -> bool {
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
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("type", &self.config.socket_type)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}
