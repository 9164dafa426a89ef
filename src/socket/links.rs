//! Connections come and go: connect, accept, handshake, loss, reconnect.

use std::hash::BuildHasher;
use std::io;
use std::time::{Duration, Instant};

use super::peers::{Link, Peer};
use super::{DisconnectReason, Event, PeerId, Socket};
use crate::limits;
use crate::reactor::{Stream, token};
use crate::zmtp::{Connection, SocketType};

impl Socket {
    pub(super) fn start_connect(&mut self, id: PeerId, now: Instant) {
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

    pub(super) fn accept(&mut self, now: Instant) {
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

    pub(super) fn accepted(&mut self, mut stream: Stream, now: Instant) {
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
    pub(super) fn establish(&mut self, id: PeerId, now: Instant) -> bool {
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
    pub(super) fn lose(&mut self, id: PeerId, reason: DisconnectReason, now: Instant) {
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
    pub(super) fn backoff(&mut self, failures: u32) -> Duration {
        let base = self
            .options
            .reconnect_interval
            .saturating_mul(1 << failures.min(16))
            .min(self.options.reconnect_interval_max);
        self.random_count += 1;
        let percent = 75 + self.random.hash_one(self.random_count) % 51;
        base.mul_f64(percent as f64 / 100.0)
    }
}
