//! Lifecycle of connections: connect, accept, handshake, loss, reconnect.

use std::hash::BuildHasher;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::core::connect_error;
use super::peers::{Link, Peer, Probe};
use super::{DisconnectReason, Event, PeerId, Socket};
use crate::limits;
use crate::reactor::{Lookup, Stream, token};
use crate::zmtp::{Connection, PeerInfo, SocketType};

impl Socket {
    /// Connects to a peer's endpoint. A host name is resolved first.
    pub(super) fn start_connect(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let Some(endpoint) = &peer.connect_to else {
            return;
        };
        if let Some(addresses) = endpoint.literal_addresses() {
            return self.connect_to(id, addresses, now);
        }
        let lookup = match peer.lookup.take() {
            Some(lookup) => Ok(lookup),
            None => Lookup::start(endpoint),
        };
        // Too many lookups are running: try again later.
        if matches!(&lookup, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            let at = now + limits::LOOKUP_PAUSE;
            peer.link = Link::Waiting(at);
            return self.note_timeout(id, Some(at));
        }
        let started = lookup.and_then(|mut lookup| {
            let token = token::new(self.owner, id.index as usize);
            lookup.register(&self.registry, token)?;
            Ok(lookup)
        });
        match started {
            Ok(lookup) => {
                let deadline = limits::after(now, self.options.connect_timeout);
                peer.link = Link::Resolving(lookup, deadline);
                self.note_timeout(id, Some(deadline));
            }
            Err(error) => self.lose(id, connect_error(&error), now),
        }
    }

    /// Connects to one of the addresses of a peer's endpoint. After each failed attempt another
    /// address is tried first, because some may be unreachable.
    pub(super) fn connect_to(&mut self, id: PeerId, mut addresses: Vec<SocketAddr>, now: Instant) {
        let deadline = limits::after(now, self.options.connect_timeout);
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let Some(endpoint) = &peer.connect_to else {
            return;
        };
        let count = addresses.len().max(1);
        addresses.rotate_left(peer.failures as usize % count);
        let token = token::new(self.owner, id.index as usize);
        let made =
            Stream::connect(endpoint, &addresses, self.options.buffers).and_then(|mut stream| {
                stream.register(&self.registry, token)?;
                Ok(stream)
            });
        match made {
            Ok(stream) => {
                peer.link = Link::Connecting(stream, deadline);
                peer.readable = false;
                peer.writable = false;
                peer.read_closed = false;
                peer.is_broken = false;
                self.note_timeout(id, Some(deadline));
            }
            Err(error) => self.lose(id, connect_error(&error), now),
        }
    }

    pub(super) fn connected(&mut self, id: PeerId, now: Instant) {
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
        peer.probe = Probe::None;
        peer.is_silent = false;
        peer.has_sent = false;
        if !peer.in_ready {
            peer.in_ready = true;
            self.ready.push_back(id);
        }
        if !peer.in_dirty {
            peer.in_dirty = true;
            self.dirty.push(id);
        }
        if let Some(endpoint) = peer.connect_to.clone() {
            self.report(Event::Connected { peer: id, endpoint });
        }
        self.note_timeout(id, timeout);
    }

    pub(super) fn accept(&mut self, now: Instant) {
        self.accept_all(now);
        #[cfg(feature = "process")]
        self.find_owners();
    }

    fn accept_all(&mut self, now: Instant) {
        for index in 0..self.listeners.len() {
            for _ in 0..limits::ACCEPTS_PER_ITERATION {
                let Some(Some(bound)) = self.listeners.get_mut(index) else {
                    break;
                };
                if !bound.acceptable || bound.rest_until.is_some_and(|until| until > now) {
                    break;
                }
                let full = self.peers.len() >= self.options.connections_max
                    || self.handshakes >= self.options.handshakes_max;
                let room = match full {
                    false => Room::Free,
                    true => self.find_room(),
                };
                if matches!(room, Room::Soon) {
                    break;
                }
                let Some(Some(bound)) = self.listeners.get_mut(index) else {
                    break;
                };
                match bound.listener.accept(self.options.buffers) {
                    Ok(stream) if !matches!(room, Room::None) => {
                        if let Room::Instead(oldest) = room {
                            self.lose(oldest, DisconnectReason::TooMany, now);
                        }
                        self.accepted(stream, now);
                    }
                    Ok(stream) => {
                        self.counters.too_many += 1;
                        let reason = DisconnectReason::TooMany;
                        let address = stream.peer();
                        self.warn(format_args!("{address}: connection closed: {reason}"), now);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        bound.acceptable = false;
                    }
                    // The connection was closed before it was accepted.
                    Err(error)
                        if matches!(
                            error.kind(),
                            io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                        ) => {}
                    // An error such as EMFILE. A connection whose handshake is not done is closed,
                    // so that its descriptor is free for the waiting one. If there is none, the
                    // listener pauses.
                    Err(error) => {
                        let endpoint = bound.endpoint.clone();
                        let reason = error.to_string();
                        if is_out_of_files(&error) {
                            match self.find_room() {
                                Room::Instead(oldest) => {
                                    self.lose(oldest, DisconnectReason::TooMany, now);
                                    continue;
                                }
                                Room::Soon => break,
                                Room::Free | Room::None => {}
                            }
                        }
                        if let Some(Some(bound)) = self.listeners.get_mut(index) {
                            bound.rest_until = Some(now + limits::ACCEPT_REST);
                        }
                        self.warn(format_args!("cannot accept on {endpoint}: {reason}"), now);
                        self.report(Event::AcceptFailed { endpoint, reason });
                    }
                }
            }
        }
    }

    pub(super) fn accepted(&mut self, mut stream: Stream, now: Instant) {
        let address = stream.peer();
        let connection = Box::new(Connection::new(self.config.clone(), now));
        let timeout = connection.poll_timeout();
        // The token contains the slot's index, so the slot is allocated before the stream is
        // registered.
        let id = self
            .peers
            .insert(Peer::new(Link::Waiting(now), None, address.clone()));
        if let Err(error) =
            stream.register(&self.registry, token::new(self.owner, id.index as usize))
        {
            self.peers.remove(id);
            return self.warn(
                format_args!("{address}: cannot watch the connection: {error}"),
                now,
            );
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
        #[cfg(feature = "process")]
        if self.options.local_users.is_some() {
            self.unasked.push(id);
        }
        self.handshakes += 1;
        self.pending.push_back(id);
        if self.pending.len() > 2 * self.handshakes + 64 {
            let peers = &self.peers;
            self.pending
                .retain(|id| peers.get(*id).is_some_and(|peer| !peer.established));
        }
        self.note_timeout(id, timeout);
        self.report(Event::Accepted { peer: id, address });
    }

    /// Finds an accepted connection that can be closed to make room: the one that has been in its
    /// handshake for longest and has no unread input. (A correct peer completes its handshake
    /// within milliseconds, and its received bytes are processed first.)
    fn find_room(&mut self) -> Room {
        let mut room = Room::None;
        for _ in 0..self.pending.len() {
            let Some(id) = self.pending.pop_front() else {
                break;
            };
            match self.peers.get(id) {
                Some(peer) if peer.established => {}
                Some(peer) if peer.in_ready => {
                    self.pending.push_back(id);
                    room = Room::Soon;
                }
                Some(_) => {
                    self.pending.push_front(id);
                    return Room::Instead(id);
                }
                None => {}
            }
        }
        room
    }

    /// Processes the end of a peer's handshake. Returns false if the peer was refused.
    pub(super) fn establish(&mut self, id: PeerId, now: Instant) -> bool {
        // The listener's user is determined only after it has answered: before that, no process may
        // have accepted the connection.
        #[cfg(feature = "process")]
        if self.options.local_users.is_some() && self.connects(id) {
            self.unasked.push(id);
            self.find_owners();
        }
        #[cfg(feature = "process")]
        if let Some(why) = self.not_admitted(id) {
            self.refuse(id, DisconnectReason::NotAdmitted(why), now);
            return false;
        }
        let Some(peer) = self.peers.get_mut(id) else {
            return false;
        };
        let Link::Up(_, connection) = &mut peer.link else {
            return false;
        };
        let timeout = connection.poll_timeout();
        let mut identity = connection.peer().identity.clone();
        if peer.identity_is_assigned {
            identity.clone_from(&peer.identity);
        } else if identity.is_empty() {
            // A connecting peer without a routing ID keeps the one that was generated for it
            // earlier.
            if peer.identity.first() == Some(&0) {
                identity.clone_from(&peer.identity);
            } else {
                identity = vec![0];
                identity.extend_from_slice(&self.identity_next.to_be_bytes());
                self.identity_next = self.identity_next.wrapping_add(1);
            }
        }
        if self.config.socket_type == SocketType::Router {
            let newcomer = connection.peer().clone();
            if let Some(&old) = self.routes.get(&identity)
                && old != id
            {
                if !self.may_take_over(old, &newcomer) {
                    self.refuse(id, DisconnectReason::IdentityInUse, now);
                    return false;
                }
                self.routes.remove(&identity);
                self.lose(old, DisconnectReason::Handover, now);
                // A connecting peer is not removed, because it will reconnect. It loses the routing
                // ID and its queued messages.
                self.clear_routing_id(old);
            }
            self.rename(id, &identity, now);
            self.routes.insert(identity.clone(), id);
        } else if !self.round_robin.contains(&id) {
            self.round_robin.push(id);
        }
        if let Some(peer) = self.peers.get_mut(id) {
            peer.identity.clone_from(&identity);
            peer.established = true;
            peer.probe = Probe::None;
            peer.failures = 0;
            if peer.accepted {
                self.handshakes -= 1;
            }
            if self.options.probe_router {
                let before = peer.queue.bytes();
                peer.queue.push(&[b""]);
                self.queued_bytes += peer.queue.bytes() - before;
            }
            if !peer.in_dirty {
                peer.in_dirty = true;
                self.dirty.push(id);
            }
        }
        self.note_timeout(id, timeout);
        self.report(Event::Established { peer: id, identity });
        true
    }

    #[cfg(feature = "process")]
    fn connects(&self, id: PeerId) -> bool {
        let peer = self.peers.get(id);
        peer.is_some_and(|peer| peer.connect_to.is_some())
    }

    /// Refuses a peer after its handshake: sends ERROR with the reason, if still allowed, and
    /// closes the connection.
    fn refuse(&mut self, id: PeerId, reason: DisconnectReason, now: Instant) {
        if let Some(Link::Up(_, connection)) = self.peers.get_mut(id).map(|peer| &mut peer.link) {
            connection.refuse(&reason.to_string());
            self.flush_peer(id);
        }
        self.lose(id, reason, now);
    }

    /// Whether a new peer may take the routing ID of another: if the option allows it, or if the
    /// other has timed out. If users are authenticated, both must be the same user.
    fn may_take_over(&self, old: PeerId, newcomer: &PeerInfo) -> bool {
        let security = &self.options.security;
        let peer = self.peers.get(old);
        // A peer that has timed out is kept only until the owner has taken its message.
        let is_silent = peer.is_some_and(|peer| peer.is_silent);
        (self.options.router_handover || is_silent)
            && match peer {
                // The owner assigned this routing ID by `connect_as`.
                Some(peer) if peer.identity_is_assigned => false,
                Some(peer) => match &peer.link {
                    Link::Up(_, connection) if connection.is_open() => {
                        security.is_same_user(connection.peer(), newcomer)
                    }
                    // This peer is reconnecting, so its user cannot be compared.
                    _ => !security.proves_users(),
                },
                None => true,
            }
    }

    /// Removes a peer's routing ID and drops the messages queued for it; returns their number.
    fn clear_routing_id(&mut self, id: PeerId) -> usize {
        let Some(peer) = self.peers.get_mut(id) else {
            return 0;
        };
        peer.identity_is_assigned = false;
        let identity = std::mem::take(&mut peer.identity);
        let messages = peer.queue.message_count();
        self.queued_bytes -= peer.queue.bytes();
        peer.queue.clear();
        if self.routes.get(&identity) == Some(&id) {
            self.routes.remove(&identity);
        }
        if messages > 0 {
            self.report(Event::Unsent {
                peer: id,
                identity,
                messages,
            });
        }
        messages
    }

    /// If a reconnected peer has another routing ID than before, it is a different peer, so the
    /// messages queued for the earlier one are dropped.
    fn rename(&mut self, id: PeerId, identity: &[u8], now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        if peer.identity.is_empty() || peer.identity == identity {
            return;
        }
        let address = peer.address.clone();
        let messages = self.clear_routing_id(id);
        if messages > 0 {
            self.warn(
                format_args!("{address}: another peer answers; {messages} messages dropped"),
                now,
            );
        }
    }

    /// Processes the end of a connection or attempt. A connecting peer then waits for its next
    /// attempt, unless the options stop it; other peers are removed.
    pub(super) fn lose(&mut self, id: PeerId, reason: DisconnectReason, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let was_established = std::mem::take(&mut peer.established);
        if std::mem::take(&mut peer.held) {
            self.counters.unreceived += 1;
        }
        let identity = peer.identity.clone();
        let address = peer.address.clone();
        let connects = peer.connect_to.is_some();
        let accepted = peer.accepted;
        let (stream, was_up) = match std::mem::replace(&mut peer.link, Link::Waiting(now)) {
            Link::Up(stream, connection) => {
                peer.is_cut = connection.is_within_message(&peer.queue);
                drop(connection);
                self.received_bytes -= std::mem::take(&mut peer.counted) as u64;
                (Some(stream), true)
            }
            Link::Connecting(stream, _) => (Some(stream), false),
            Link::Resolving(mut lookup, _) => {
                // The lookup is kept: the host is not looked up again before the running lookup
                // ends.
                match lookup.deregister(&self.registry) {
                    Ok(()) => peer.lookup = Some(lookup),
                    Err(error) => log::debug!("{address}: {error}"),
                }
                (None, false)
            }
            Link::Waiting(_) => (None, false),
        };
        if let Some(mut stream) = stream
            && let Err(error) = stream.deregister(&self.registry)
        {
            log::debug!("{address}: {error}");
        }
        let quiet = match &reason {
            DisconnectReason::Owner => true,
            // If connections that we open end before they are established, the cause may be our
            // configuration, so it is a warning.
            DisconnectReason::Closed | DisconnectReason::Io(_) => {
                was_established || !was_up || !connects
            }
            DisconnectReason::ConnRefused(_) => true,
            _ => false,
        };
        let stage = if was_established {
            "connection closed"
        } else {
            "handshake failed"
        };
        if quiet {
            log::debug!("{address}: {stage}: {reason}");
        } else {
            self.warn(format_args!("{address}: {stage}: {reason}"), now);
        }
        self.report(if was_established || reason == DisconnectReason::Owner {
            Event::Disconnected {
                peer: id,
                identity: identity.clone(),
                reason: reason.clone(),
            }
        } else if was_up {
            Event::HandshakeFailed {
                peer: id,
                address,
                reason: reason.clone(),
            }
        } else {
            Event::ConnectFailed {
                peer: id,
                reason: reason.clone(),
            }
        });
        if connects && !self.stops(&reason, was_established) {
            return self.wait_to_connect(id, &reason, now);
        }
        if connects {
            self.report(Event::Stopped { peer: id });
        } else if accepted && !was_established {
            self.handshakes -= 1;
        }
        self.remove(id, identity);
    }

    /// Removes a peer from all tables.
    fn remove(&mut self, id: PeerId, identity: Vec<u8>) {
        let Some(peer) = self.peers.remove(id) else {
            return;
        };
        if let Some(timer) = peer.timer {
            self.timers.remove(&(timer, id));
        }
        if self.routes.get(&peer.identity) == Some(&id) {
            self.routes.remove(&peer.identity);
        }
        self.round_robin.retain(|other| *other != id);
        self.queued_bytes -= peer.queue.bytes();
        let messages = peer.queue.message_count();
        if messages > 0 {
            self.report(Event::Unsent {
                peer: id,
                identity,
                messages,
            });
        }
    }

    /// Whether the options forbid another attempt to connect.
    fn stops(&self, reason: &DisconnectReason, was_established: bool) -> bool {
        let stop = self.options.reconnect_stop;
        self.options.reconnect_ivl.is_none()
            || (stop.after_disconnect && was_established)
            || (stop.conn_refused && matches!(reason, DisconnectReason::ConnRefused(_)))
            || (stop.handshake_failed
                && !was_established
                && matches!(reason, DisconnectReason::Protocol(_)))
    }

    fn wait_to_connect(&mut self, id: PeerId, reason: &DisconnectReason, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let failures = peer.failures;
        peer.failures = failures.saturating_add(1);
        self.queued_bytes -= peer.queue.bytes();
        let was_cut = std::mem::take(&mut peer.is_cut);
        let is_cut = peer.queue.rewind(was_cut) >= limits::MESSAGE_CUTS_MAX;
        if is_cut {
            peer.queue.drop_first();
        }
        self.queued_bytes += peer.queue.bytes();
        let (identity, address) = (peer.identity.clone(), peer.address.clone());
        peer.readable = false;
        peer.writable = false;
        if std::mem::take(&mut peer.in_ready) {
            self.ready.retain(|other| *other != id);
        }
        if is_cut {
            // The peer does not accept this message, and the messages behind it could never be
            // sent.
            let cuts = limits::MESSAGE_CUTS_MAX;
            self.warn(
                format_args!("{address}: {cuts} connections ended within a message; it is dropped"),
                now,
            );
            self.report(Event::Unsent {
                peer: id,
                identity,
                messages: 1,
            });
        }
        if self.options.immediate {
            self.round_robin.retain(|other| *other != id);
        }
        let refused = match reason {
            DisconnectReason::Protocol(error) => error.is_fatal(),
            DisconnectReason::Rejected(_) => true,
            #[cfg(feature = "process")]
            DisconnectReason::NotAdmitted(_) => true,
            _ => false,
        };
        let pause = match (refused, self.options.reconnect_ivl_max) {
            (false, _) => self.backoff(failures),
            (true, Duration::ZERO) => limits::RECONNECT_INTERVAL_MAX.max(self.backoff(failures)),
            (true, longest) => longest.max(self.backoff(failures)),
        };
        let pause = self.jitter(pause).max(limits::RECONNECT_INTERVAL_MIN);
        let at = limits::after(now, pause);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.link = Link::Waiting(at);
        }
        self.report(Event::RetryIn { peer: id, pause });
        self.note_timeout(id, Some(at));
    }

    /// Pause before the next attempt: it doubles with each failure, up to the maximum.
    pub(super) fn backoff(&self, failures: u32) -> Duration {
        let first = self.options.reconnect_ivl.unwrap_or_default();
        first
            .saturating_mul(1 << failures.min(16))
            .min(self.options.reconnect_ivl_max.max(first))
    }

    /// Varies a pause by ±25 %, so that many clients that lost their server do not reconnect at the
    /// same time.
    pub(super) fn jitter(&mut self, pause: Duration) -> Duration {
        self.random_count += 1;
        let percent = 75 + self.random.hash_one(self.random_count) % 51;
        (pause / 100).saturating_mul(percent as u32)
    }
}

/// Whether one more connection can be accepted.
enum Room {
    /// Yes, it is below the limits.
    Free,
    /// Yes, if this connection is closed.
    Instead(PeerId),
    /// Not yet: received bytes of connections in their handshake must be processed first.
    Soon,
    /// No: all other connections are established.
    None,
}

/// EMFILE or ENFILE.
fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}
