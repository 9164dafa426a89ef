//! The decisions of a socket, without I/O: peers, routing, fair queueing, high-water marks, handover,
//! reconnects, timers and memory accounts. It reads no clock and opens nothing; `now` is an argument.
//!
//! A driver ([`Socket`](super::Socket), or a test in virtual time) owns the transports. It names each
//! transport by a [`LinkId`] of its choice.
//!
//! Inputs are the `handle_*` methods and the methods of the owner (`connect`, `send_to`, …). Outputs
//! are drained in this order:
//! 1. after every input: [`Engine::poll_action`] until it returns `None`;
//! 2. to receive: [`Engine::poll_receive`] (or [`Engine::poll_drive`]), which returns a message, or
//!    asks for a read ([`Engine::read_space`], [`Engine::handle_read`]);
//! 3. to send: [`Engine::poll_write`], then [`Engine::gather`] and [`Engine::handle_written`] until
//!    it returns false;
//! 4. [`Engine::poll_timeout`] and [`Engine::handle_timeout`], [`Engine::poll_event`].
//!
//! Invariants, checked by `check` after every step of the simulation and of the fuzz targets:
//! - Every established ROUTER peer that is not draining has the route of its routing ID, and every
//!   route belongs to an existing peer.
//! - The totals of queued and received bytes are the sums over all peers.
//! - Every peer with a deadline has a timer that is due no later.
//! - A peer is in the ring of ready peers or in the list of peers to write to at most once, and
//!   exactly if its flag is set.

mod accept;
mod action;
#[cfg(any(test, fuzzing))]
mod check;
mod close;
mod connect;
mod establish;
mod events;
mod peer;
mod receive;
mod send;
#[cfg(any(test, fuzzing))]
pub(crate) mod simulation;
mod table;
mod timers;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

pub(super) use action::{Action, Failure, LinkId, Read, Readiness, Step, Written};
use events::Events;
use peer::{Peer, State};
pub(super) use receive::Budget;
pub(super) use send::Size;
use table::Peers;

use super::log_limit::LogLimit;
use super::{Counters, DisconnectReason, Event, Options, PeerId};
use crate::reactor::Endpoint;
use crate::zmtp::{Config, PeerInfo, Security, SocketType};

/// The state of one ROUTER or DEALER.
pub(super) struct Engine {
    config: Arc<Config>,
    options: Options,
    peers: Peers,
    listeners: Vec<Option<Bound>>,
    /// The peer of each routing ID: of established peers, and of connecting peers that keep theirs
    /// (ROUTER only).
    routes: HashMap<Vec<u8>, PeerId>,
    /// Ring of peers that may have input, for fair queueing. IDs of removed peers may be among them.
    ready: VecDeque<PeerId>,
    /// The peer whose message was returned last, if it is not in `ready`.
    taken: Option<PeerId>,
    /// The peer that was read from by the last step.
    was_read: Option<PeerId>,
    /// Number of held messages.
    held: usize,
    /// Peers to which the next flush tries to write, as in `ready`.
    dirty: Vec<PeerId>,
    /// DEALER: the peers to which messages may be sent, in round-robin order. `next_peer` is the
    /// index of the next one.
    round_robin: Vec<PeerId>,
    next_peer: usize,
    actions: VecDeque<Action>,
    events: Events,
    counters: Counters,
    log_limit: LogLimit,
    /// Accepted peers whose handshake is not done, oldest first. Peers that are established or
    /// removed may still be listed; they are dropped when they reach the front.
    pending: VecDeque<PeerId>,
    /// The number of accepted peers whose handshake is not done.
    handshakes: usize,
    /// Draining peers, oldest first, as in `pending`.
    draining: VecDeque<PeerId>,
    /// Number of unsent bytes in the queues of all peers.
    queued_bytes: u64,
    /// Memory of the receive buffers of all peers, in bytes.
    received_bytes: u64,
    /// The time of each peer's next timeout, as in `Peer::timer`.
    timers: BTreeSet<(Instant, PeerId)>,
    /// Timers that are due; empty between calls.
    due: Vec<(Instant, PeerId)>,
    /// State of the generator of pseudo-random pauses.
    random: u64,
    routing_id_next: u32,
    /// All connections are being shut down; none is opened again.
    is_closing: bool,
}

/// A listener, without its transport.
struct Bound {
    /// The endpoint that the owner passed to `bind`.
    asked: Endpoint,
    endpoint: Endpoint,
    /// An accept may succeed.
    acceptable: bool,
    /// After an error such as EMFILE, no connection is accepted before this time.
    rest_until: Option<Instant>,
}

impl Engine {
    /// `seed` is the start of the generator of pseudo-random pauses and routing IDs.
    pub(super) fn new(socket_type: SocketType, options: Options, seed: u64) -> Self {
        let config = Config {
            socket_type,
            routing_id: options.routing_id.clone(),
            limits: options.limits,
            read_ahead: options.rcvhwm_bytes,
            rcvhwm: options.rcvhwm,
            handshake_timeout: options.handshake_ivl,
            heartbeat: options.heartbeat(),
            security: options.security.clone(),
            metadata: options.metadata.clone(),
        };
        Engine {
            config: Arc::new(config),
            options,
            peers: Peers::default(),
            listeners: Vec::new(),
            routes: HashMap::new(),
            ready: VecDeque::new(),
            taken: None,
            was_read: None,
            held: 0,
            dirty: Vec::new(),
            round_robin: Vec::new(),
            next_peer: 0,
            actions: VecDeque::new(),
            events: Events::default(),
            counters: Counters::default(),
            log_limit: LogLimit::default(),
            pending: VecDeque::new(),
            handshakes: 0,
            draining: VecDeque::new(),
            queued_bytes: 0,
            received_bytes: 0,
            timers: BTreeSet::new(),
            due: Vec::new(),
            random: seed,
            routing_id_next: (seed >> 32) as u32,
            is_closing: false,
        }
    }

    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    fn is_router(&self) -> bool {
        self.config.socket_type == SocketType::Router
    }

    /// The next thing that the driver must do.
    #[inline]
    pub(super) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next lifecycle event.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop()
    }

    pub(super) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            events_dropped: self.events.dropped(),
            ..self.counters
        }
    }

    pub(super) fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// See [`Socket::set_security`](super::Socket::set_security).
    pub(super) fn set_security(&mut self, security: Security, now: Instant) {
        let old = std::mem::replace(&mut self.options.security, security);
        let mut config = Config::clone(&self.config);
        config.security = self.options.security.clone();
        self.config = Arc::new(config);
        for id in self.peers.ids() {
            let Some(connection) = self.peers.get(id).and_then(Peer::connection) else {
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
    }

    pub(super) fn set_sndhwm(&mut self, messages: usize) {
        self.options.sndhwm = messages;
    }

    /// The properties of an established peer from its handshake.
    pub(super) fn peer_info(&self, id: PeerId) -> Option<&PeerInfo> {
        let connection = self.peers.get(id)?.connection()?;
        connection.is_open().then(|| connection.peer())
    }

    /// See [`Socket::user`](super::Socket::user).
    pub(super) fn user(&self, id: PeerId) -> Option<String> {
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

    pub(super) fn address(&self, id: PeerId) -> Option<&str> {
        self.peers.get(id).map(|peer| peer.address.as_str())
    }

    /// The routing ID of an established peer.
    #[inline]
    pub(super) fn routing_id(&self, id: PeerId) -> Option<&[u8]> {
        let peer = self.peers.get(id)?;
        peer.is_established().then_some(peer.routing_id.as_slice())
    }

    /// When bytes of an established peer were last received.
    pub(super) fn received_at(&self, id: PeerId) -> Option<Instant> {
        let connection = self.peers.get(id)?.connection()?;
        connection.is_open().then(|| connection.received_at())
    }

    /// The peer with a routing ID (ROUTER).
    #[inline]
    pub(super) fn route(&self, routing_id: &[u8]) -> Option<PeerId> {
        self.routes.get(routing_id).copied()
    }

    /// Established peers to which messages were written on their present connections.
    pub(super) fn peers_sent_to(&self) -> Vec<PeerId> {
        let mut ids = self.peers.ids();
        ids.retain(|id| match self.peers.get(*id).map(|peer| &peer.state) {
            Some(State::Up(up)) => up.has_sent && up.connection.is_open(),
            _ => false,
        });
        ids
    }

    fn report(&mut self, event: Event) {
        self.counters.count(&event);
        self.events.push(event);
    }

    /// Logs a line about a bad connection, within the limit of lines per second.
    pub(super) fn warn(&mut self, text: std::fmt::Arguments<'_>, now: Instant) {
        match self.log_limit.allow(now) {
            Some(0) => log::warn!("{text}"),
            Some(left_out) => log::warn!("{text} ({left_out} lines like this left out before)"),
            None => self.counters.log_lines_dropped += 1,
        }
    }

    /// The next pseudo-random number (SplitMix64).
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("type", &self.config.socket_type)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}
