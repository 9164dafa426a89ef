//! Listeners and accepted connections.

use std::time::Instant;

use super::action::{Action, LinkId};
use super::peer::{Origin, Peer, State, Up};
use super::{Bound, DisconnectReason, Engine, Event, PeerId};
use crate::limits;
use crate::reactor::Endpoint;
use crate::socket::TransportError;
use crate::zmtp::Connection;

impl Engine {
    /// The index of the next listener.
    pub(in crate::socket) fn free_listener(&self) -> usize {
        let free = self.listeners.iter().position(Option::is_none);
        free.unwrap_or(self.listeners.len())
    }

    /// The driver has bound a listener with the index of `free_listener`. `is_first`: it is not a
    /// further address of the endpoint of the listener before.
    pub(in crate::socket) fn handle_bound(
        &mut self,
        index: usize,
        asked: &Endpoint,
        endpoint: &Endpoint,
        is_first: bool,
    ) {
        let bound = Bound {
            asked: asked.clone(),
            endpoint: endpoint.clone(),
            acceptable: true,
            rest_until: None,
        };
        if index >= self.listeners.len() {
            self.listeners.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.listeners.get_mut(index) {
            *slot = Some(bound);
        }
        if is_first {
            self.report(Event::Listening {
                endpoint: endpoint.clone(),
            });
        }
    }

    /// See [`Socket::unbind`](crate::socket::Socket::unbind).
    pub(in crate::socket) fn unbind(&mut self, endpoint: &Endpoint) -> bool {
        let found = self.listeners.iter().flatten().find_map(|bound| {
            let is_it = &bound.endpoint == endpoint || &bound.asked == endpoint;
            is_it.then(|| bound.endpoint.clone())
        });
        let Some(endpoint) = found else {
            return false;
        };
        self.close_listeners(|bound| bound.endpoint == endpoint);
        self.report(Event::Closed { endpoint });
        true
    }

    pub(super) fn close_listeners(&mut self, closes: impl Fn(&Bound) -> bool) {
        for (index, slot) in self.listeners.iter_mut().enumerate() {
            if slot.as_ref().is_some_and(&closes) {
                *slot = None;
                self.actions.push_back(Action::CloseListener { index });
            }
        }
    }

    /// A readiness event of a listener.
    pub(in crate::socket) fn handle_acceptable(&mut self, index: usize) {
        if let Some(Some(bound)) = self.listeners.get_mut(index) {
            bound.acceptable = true;
        }
    }

    /// True if a listener may have connections for which no further readiness event comes.
    pub(in crate::socket) fn may_accept(&self) -> bool {
        let mut bound = self.listeners.iter().flatten();
        bound.any(|bound| bound.acceptable && bound.rest_until.is_none())
    }

    /// Whether the driver should accept from a listener now.
    pub(in crate::socket) fn accepts(&mut self, index: usize, now: Instant) -> bool {
        match self.listeners.get(index) {
            Some(Some(bound))
                if bound.acceptable && bound.rest_until.is_none_or(|until| until <= now) =>
            {
                !matches!(self.room(), Room::Soon)
            }
            _ => false,
        }
    }

    fn room(&mut self) -> Room {
        let is_full = self.peers.len() >= self.options.connections_max
            || self.handshakes >= self.options.handshakes_max;
        match is_full {
            false => Room::Free,
            true => self.find_room(),
        }
    }

    /// A connection was accepted. Returns `None` if there is no room for it: the driver must close
    /// the link.
    pub(in crate::socket) fn handle_accepted(
        &mut self,
        link: LinkId,
        address: String,
        now: Instant,
    ) -> Option<PeerId> {
        match self.room() {
            Room::Free => {}
            Room::Instead(oldest) => self.lose(oldest, DisconnectReason::TooMany, now),
            Room::Soon | Room::None => {
                self.counters.too_many += 1;
                let reason = DisconnectReason::TooMany;
                self.warn(format_args!("{address}: connection closed: {reason}"), now);
                return None;
            }
        }
        let connection = Box::new(Connection::new(self.config.clone(), now));
        let timeout = connection.poll_timeout();
        let id = self.peers.insert(Peer::new(
            State::Up(Up::new(link, connection)),
            Origin::Accepted,
            address.clone(),
        ));
        self.mark_ready(id);
        self.mark_dirty(id);
        self.handshakes += 1;
        self.pending.push_back(id);
        if self.pending.len() > 2 * self.handshakes + 64 {
            let peers = &self.peers;
            self.pending
                .retain(|id| peers.get(*id).is_some_and(|peer| !peer.is_established()));
        }
        self.set_timer(id, timeout);
        self.report(Event::Accepted { peer: id, address });
        Some(id)
    }

    /// No connection is waiting.
    pub(in crate::socket) fn handle_accept_blocked(&mut self, index: usize) {
        if let Some(Some(bound)) = self.listeners.get_mut(index) {
            bound.acceptable = false;
        }
    }

    /// Accepting failed with an error such as EMFILE. If descriptors are used up, a connection whose
    /// handshake is not done is closed, so that its descriptor is free for the waiting one. If there
    /// is none, the listener pauses. True if the driver should try again now.
    pub(in crate::socket) fn handle_accept_failed(
        &mut self,
        index: usize,
        error: TransportError,
        is_out_of_files: bool,
        now: Instant,
    ) -> bool {
        if is_out_of_files {
            match self.find_room() {
                Room::Instead(oldest) => {
                    self.lose(oldest, DisconnectReason::TooMany, now);
                    return true;
                }
                Room::Soon => return false,
                Room::Free | Room::None => {}
            }
        }
        let Some(Some(bound)) = self.listeners.get_mut(index) else {
            return false;
        };
        bound.rest_until = Some(now + limits::ACCEPT_REST);
        let endpoint = bound.endpoint.clone();
        self.warn(format_args!("cannot accept on {endpoint}: {error}"), now);
        self.report(Event::AcceptFailed { endpoint, error });
        false
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
                Some(peer) if peer.is_established() => {}
                // A refused peer has had its answer.
                Some(peer) if peer.is_ready && !peer.is_draining() => {
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
