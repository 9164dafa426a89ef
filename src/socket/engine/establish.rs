//! The end of a handshake: routing IDs, handover, refusals.

use std::time::Instant;

use super::action::Action;
use super::peer::{Drain, Input, Output, Peer, Phase, Probe, State, Up};
use super::{DisconnectReason, Engine, Event, PeerId};
use crate::limits;
use crate::zmtp::{PeerInfo, is_generated};

/// What happens to a connection whose routing ID another peer has.
enum Claim {
    /// It gets the routing ID. The other connection is drained.
    Replaces {
        /// The other connection is of the same peer, and both ends close it in favour of this one:
        /// messages queued for the peer move to this connection, and none is lost.
        is_crossing: bool,
    },
    /// It is drained: the other connection of the same peer is used.
    Yields,
    /// It is refused.
    Refused,
}

impl Engine {
    /// The driver has determined the user that owns the other end of a connection.
    #[cfg(feature = "process")]
    pub(in crate::socket) fn handle_user(
        &mut self,
        id: PeerId,
        user: crate::socket::users::LocalUser,
    ) {
        if let Some(up) = self.peers.get_mut(id).and_then(Peer::up_mut) {
            up.user = Some(user);
        }
    }

    /// Whether the driver must determine a peer's user before the peer can be established.
    #[cfg(feature = "process")]
    pub(super) fn needs_user(&self, id: PeerId) -> bool {
        let up = self.peers.get(id).and_then(Peer::up);
        self.options.local_users.is_some() && up.is_some_and(|up| up.user.is_none())
    }

    #[cfg(feature = "process")]
    fn not_admitted(&self, id: PeerId) -> Option<crate::socket::NotAdmitted> {
        let users = self.options.local_users.as_ref()?;
        let peer = self.peers.get(id)?;
        users.not_admitted(peer.up()?.user?, !peer.is_accepted())
    }

    /// Processes the end of a peer's handshake. The peer may be refused.
    pub(super) fn establish(&mut self, id: PeerId, now: Instant) {
        #[cfg(feature = "process")]
        if let Some(why) = self.not_admitted(id) {
            return self.refuse(id, DisconnectReason::NotAdmitted(why), now);
        }
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        let Some(connection) = peer.connection() else {
            return;
        };
        let timeout = connection.poll_timeout();
        let newcomer = connection.peer().clone();
        let has_assigned_id = peer.target().is_some_and(|target| target.has_assigned_id);
        let routing_id = if has_assigned_id {
            peer.routing_id.clone()
        } else if !newcomer.routing_id.is_empty() {
            newcomer.routing_id.clone()
        } else if is_generated(&peer.routing_id) {
            // A connecting peer without a routing ID keeps the one that was generated for it
            // earlier.
            peer.routing_id.clone()
        } else {
            self.generate_routing_id()
        };
        let mut yields = false;
        if self.is_router() {
            if let Some(&old) = self.routes.get(&routing_id)
                && old != id
            {
                match self.claim(id, old, &newcomer) {
                    Claim::Refused => {
                        return self.refuse(id, DisconnectReason::RoutingIdInUse, now);
                    }
                    Claim::Replaces { is_crossing } => {
                        self.routes.remove(&routing_id);
                        self.hand_over(old, id, is_crossing, now);
                    }
                    Claim::Yields => yields = true,
                }
            }
            self.rename(id, &routing_id, now);
            if !yields {
                self.routes.insert(routing_id.clone(), id);
                self.wait_for_drained(id, &routing_id);
            }
        } else if !self.round_robin.contains(&id) {
            self.round_robin.push(id);
        }
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        peer.routing_id.clone_from(&routing_id);
        if let Some(target) = peer.target_mut() {
            target.failures = 0;
        }
        let is_accepted = peer.is_accepted();
        if let Some(up) = peer.up_mut() {
            up.phase = Phase::Open;
            up.probe = Probe::None;
        }
        if self.options.probe_router && !yields {
            let before = peer.queue.bytes();
            peer.queue.push(&[b""]);
            self.queued_bytes += peer.queue.bytes() - before;
        }
        if is_accepted {
            self.handshakes -= 1;
        }
        self.mark_dirty(id);
        self.set_timer(id, timeout);
        self.report(Event::Established {
            peer: id,
            routing_id: routing_id.clone(),
        });
        if yields {
            self.stand_by(id, &routing_id);
            self.drain(id, DisconnectReason::Handover, false, now);
        }
    }

    /// A routing ID that no peer has.
    fn generate_routing_id(&mut self) -> Vec<u8> {
        loop {
            let mut routing_id = vec![0];
            routing_id.extend_from_slice(&self.routing_id_next.to_be_bytes());
            self.routing_id_next = self.routing_id_next.wrapping_add(1);
            if !self.routes.contains_key(&routing_id) {
                return routing_id;
            }
        }
    }

    /// Decides between a new connection and the peer that has its routing ID.
    ///
    /// Two ROUTERs that connect to each other have two connections. Each end keeps the one that was
    /// opened by the side with the smaller routing ID, so that both keep the same one.
    fn claim(&self, id: PeerId, old: PeerId, newcomer: &PeerInfo) -> Claim {
        let security = &self.options.security;
        let (Some(new), Some(peer)) = (self.peers.get(id), self.peers.get(old)) else {
            return Claim::Replaces { is_crossing: false };
        };
        let own = &self.config.routing_id;
        let is_crossing = new.is_accepted() != peer.is_accepted()
            && !own.is_empty()
            && *own != newcomer.routing_id
            && !newcomer.routing_id.is_empty()
            && !security.proves_users();
        if is_crossing {
            let ours_wins = own < &newcomer.routing_id;
            return match new.is_accepted() == ours_wins {
                true => Claim::Yields,
                false => Claim::Replaces { is_crossing: true },
            };
        }
        // The owner assigned this routing ID by `connect_as`.
        if peer.target().is_some_and(|target| target.has_assigned_id) {
            return Claim::Refused;
        }
        // The peer has closed its end, or timed out and is kept only until the owner has taken its
        // messages.
        let has_ended = peer
            .up()
            .is_some_and(|up| up.input == Input::Ending || up.output == Output::Silent);
        let is_same_user = match peer.connection() {
            Some(connection) if connection.is_open() => {
                security.is_same_user(connection.peer(), newcomer)
            }
            // This peer is reconnecting, so its user cannot be compared.
            _ => !security.proves_users(),
        };
        #[cfg(feature = "process")]
        let is_same_user = is_same_user && !are_other_local_users(new, peer);
        match (self.options.router_handover || has_ended) && is_same_user {
            true => Claim::Replaces { is_crossing: false },
            false => Claim::Refused,
        }
    }

    /// Takes the routing ID from a peer, and ends its connection once what it sent is received.
    fn hand_over(&mut self, old: PeerId, new: PeerId, is_crossing: bool, now: Instant) {
        if is_crossing {
            self.move_queue(old, new);
            if let Some(peer) = self.peers.get(new)
                && peer.is_accepted()
            {
                let routing_id = self.peers.get(old).map(|peer| peer.routing_id.clone());
                self.stand_by(old, &routing_id.unwrap_or_default());
            }
        } else {
            self.drop_queue(old);
        }
        let Some(peer) = self.peers.get_mut(old) else {
            return;
        };
        match &peer.state {
            // A connecting peer is not removed, because it will reconnect. It loses the routing ID.
            State::Up(up) if up.connection.is_open() && up.is_established() => {
                self.drain(old, DisconnectReason::Handover, !is_crossing, now);
            }
            State::Up(_) => self.lose(old, DisconnectReason::Handover, now),
            State::Waiting(_) | State::Resolving(_) | State::Connecting(_) => {
                let has_assigned_id = peer.target().is_some_and(|target| target.has_assigned_id);
                if !has_assigned_id {
                    peer.routing_id.clear();
                }
            }
        }
    }

    /// A new connection is received from when the last connection that drains under its routing ID
    /// has ended.
    fn wait_for_drained(&mut self, id: PeerId, routing_id: &[u8]) {
        let is_it = |old: &&PeerId| {
            let peer = self.peers.get(**old);
            let is_named = peer.is_some_and(|peer| peer.routing_id == routing_id);
            is_named && **old != id && peer.and_then(Peer::up).is_some_and(ends_when_blocked)
        };
        if let Some(&old) = self.draining.iter().rev().find(is_it) {
            self.succeed(old, id);
        }
    }

    /// The new connection is received from when the old one has ended.
    pub(super) fn succeed(&mut self, old: PeerId, new: PeerId) {
        let up = self.peers.get_mut(old).and_then(Peer::up_mut);
        if let Some(Phase::Draining(drain)) = up.map(|up| &mut up.phase) {
            drain.successor = Some(new);
            if let Some(up) = self.peers.get_mut(new).and_then(Peer::up_mut) {
                up.waits_for = Some(old);
            }
        }
    }

    /// A connecting peer is not connected again while another peer has its routing ID.
    fn stand_by(&mut self, id: PeerId, routing_id: &[u8]) {
        if let Some(target) = self.peers.get_mut(id).and_then(Peer::target_mut) {
            target.stands_by_for = Some(routing_id.to_vec());
        }
    }

    /// Moves the messages queued for a peer to another connection of that peer. A partly written
    /// message is sent again from its first byte: the peer drops the incomplete one.
    fn move_queue(&mut self, from: PeerId, to: PeerId) {
        let Some(peer) = self.peers.get_mut(from) else {
            return;
        };
        self.queued_bytes -= peer.queue.bytes();
        let mut queue = std::mem::take(&mut peer.queue);
        queue.rewind(false);
        self.queued_bytes += queue.bytes();
        if let Some(peer) = self.peers.get_mut(to) {
            self.queued_bytes -= peer.queue.bytes();
            peer.queue = queue;
        }
    }

    /// Stops sending on an established connection. What the peer sent is delivered; then the
    /// connection is lost for `reason`.
    fn drain(
        &mut self,
        id: PeerId,
        reason: DisconnectReason,
        ends_when_blocked: bool,
        now: Instant,
    ) {
        let deadline = (!ends_when_blocked).then(|| now + limits::CONNECTION_DRAIN_TIMEOUT);
        let Some(up) = self.peers.get_mut(id).and_then(Peer::up_mut) else {
            return;
        };
        up.phase = Phase::Draining(Drain {
            reason,
            delivers: true,
            successor: None,
            deadline,
            bytes_left: limits::DRAIN_BYTES_MAX,
        });
        up.output = Output::ShutDown;
        up.input = match ends_when_blocked {
            true => Input::Ending,
            false => up.input.max_readable(),
        };
        let link = up.link;
        self.actions.push_back(Action::ShutDown {
            link,
            last: Vec::new(),
        });
        self.mark_ready(id);
        self.set_timer(id, deadline);
        self.draining.push_back(id);
        self.bound_draining(now);
    }

    /// Ends the oldest draining connections if there are too many.
    fn bound_draining(&mut self, now: Instant) {
        if self.draining.len() <= limits::DRAINING_MAX {
            return;
        }
        let peers = &self.peers;
        self.draining
            .retain(|id| peers.get(*id).is_some_and(Peer::is_draining));
        while self.draining.len() > limits::DRAINING_MAX
            && let Some(oldest) = self.draining.pop_front()
        {
            self.end_draining(oldest, now);
        }
    }

    /// The deadline of a draining connection has passed: it ends once what has arrived is received,
    /// or now if it was refused.
    pub(super) fn drain_timeout(&mut self, id: PeerId, now: Instant) {
        let Some(up) = self.peers.get_mut(id).and_then(Peer::up_mut) else {
            return;
        };
        match &mut up.phase {
            Phase::Draining(drain) if drain.delivers => {
                drain.deadline = None;
                up.input = Input::Ending;
                self.mark_ready(id);
            }
            _ => self.end_draining(id, now),
        }
    }

    /// Ends a draining connection.
    pub(super) fn end_draining(&mut self, id: PeerId, now: Instant) {
        let Some(up) = self.peers.get_mut(id).and_then(Peer::up_mut) else {
            return;
        };
        if let Phase::Draining(drain) = &mut up.phase {
            let reason = drain.reason.clone();
            self.lose(id, reason, now);
        }
    }

    /// Refuses a peer after its handshake: sends ERROR with the reason, if still allowed, and shuts
    /// down the sending direction. The messages that the peer had sent are counted.
    fn refuse(&mut self, id: PeerId, reason: DisconnectReason, now: Instant) {
        let deadline = Some(now + limits::REFUSED_TIMEOUT);
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let State::Up(up) = &mut peer.state else {
            return;
        };
        up.connection.refuse(&reason.to_string());
        let last = up.connection.last_bytes(&peer.queue);
        self.queued_bytes -= peer.queue.bytes();
        up.connection
            .handle_written(&mut peer.queue, last.len(), now);
        self.queued_bytes += peer.queue.bytes();
        up.phase = Phase::Draining(Drain {
            reason,
            delivers: false,
            successor: None,
            deadline,
            bytes_left: limits::REFUSED_BYTES_MAX,
        });
        up.output = Output::ShutDown;
        up.input = up.input.max_readable();
        let link = up.link;
        self.actions.push_back(Action::ShutDown { link, last });
        self.mark_ready(id);
        self.set_timer(id, deadline);
    }

    /// Drops the messages queued for a peer; returns their number.
    pub(super) fn drop_queue(&mut self, id: PeerId) -> usize {
        let Some(peer) = self.peers.get_mut(id) else {
            return 0;
        };
        let messages = peer.queue.message_count();
        self.queued_bytes -= peer.queue.bytes();
        peer.queue.clear();
        let routing_id = peer.routing_id.clone();
        if messages > 0 {
            self.report(Event::Unsent {
                peer: id,
                routing_id,
                messages,
            });
        }
        messages
    }

    /// If a reconnected peer has another routing ID than before, it is a different peer, so the
    /// messages queued for the earlier one are dropped.
    fn rename(&mut self, id: PeerId, routing_id: &[u8], now: Instant) {
        let Some(peer) = self.peers.get(id) else {
            return;
        };
        if peer.routing_id.is_empty() || peer.routing_id == routing_id {
            return;
        }
        let (old, address) = (peer.routing_id.clone(), peer.address.clone());
        if self.routes.get(&old) == Some(&id) {
            self.routes.remove(&old);
        }
        let messages = self.drop_queue(id);
        if messages > 0 {
            self.warn(
                format_args!("{address}: another peer answers; {messages} messages dropped"),
                now,
            );
        }
    }
}

/// It drains until no more bytes are waiting, whatever its peer does.
fn ends_when_blocked(up: &Up) -> bool {
    matches!(&up.phase, Phase::Draining(drain) if drain.deadline.is_none())
}

impl Input {
    /// `Ending` stays; otherwise a read may succeed.
    fn max_readable(self) -> Self {
        match self {
            Input::Ending => Input::Ending,
            Input::Blocked | Input::Readable => Input::Readable,
        }
    }
}

/// Whether two peers are known to be of different users of this host.
#[cfg(feature = "process")]
fn are_other_local_users(new: &Peer, old: &Peer) -> bool {
    let user = |peer: &Peer| peer.up().and_then(|up| up.user);
    matches!((user(new), user(old)), (Some(new), Some(old)) if new != old)
}
