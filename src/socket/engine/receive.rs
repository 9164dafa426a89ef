//! Receiving: fair queueing of peers, one message each; decisions on reads; the memory limit.

use std::time::Instant;

use super::action::{LinkId, Read, Step};
use super::peer::{Input, Output, Peer, Phase, Probe, State};
use super::{DisconnectReason, Engine, PeerId};
use crate::limits;
use crate::zmtp::{Error, Growth, Message, Progress};

/// What may still be done in one call of the driver.
#[derive(Debug)]
pub(in crate::socket) struct Budget {
    reads: usize,
    /// Peers of the ring that are still to be driven.
    peers: usize,
}

/// Result of a step with one peer, which has been taken from the front of the ring.
enum Outcome {
    Message,
    Read(LinkId),
    #[cfg(feature = "process")]
    FindUser(LinkId),
    /// Continue with this peer.
    Again,
    /// It was read from and has no complete message yet; other peers come first.
    Rotate,
    /// It has no more input now, or was removed.
    Idle,
    /// It may have more input, but no more reads are allowed in this call.
    Budget,
}

impl Engine {
    /// The budget of one call of `receive` or `drive`.
    #[inline]
    pub(in crate::socket) fn budget(&self) -> Budget {
        Budget {
            reads: limits::READS_PER_RECEIVE,
            peers: self.ready.len(),
        }
    }

    /// True while peers may have input for which no further readiness event comes.
    #[inline]
    pub(in crate::socket) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Like `has_ready`, without peers whose parsed message waits for the owner.
    pub(in crate::socket) fn has_ready_to_drive(&self) -> bool {
        self.ready.len() > self.held
    }

    /// The next step to receive a message. Peers are fair-queued, one message each.
    #[inline]
    pub(in crate::socket) fn poll_receive(&mut self, budget: &mut Budget, now: Instant) -> Step {
        self.consume_taken();
        while let Some(id) = self.ready.pop_front() {
            match self.step(id, budget, now) {
                Outcome::Message => {
                    return Step::Message(id);
                }
                Outcome::Read(link) => return Step::Read(id, link),
                #[cfg(feature = "process")]
                Outcome::FindUser(link) => {
                    self.ready.push_front(id);
                    return Step::FindUser(id, link);
                }
                Outcome::Again => self.push_front(id),
                Outcome::Rotate => self.push_back(id),
                Outcome::Idle => {}
                Outcome::Budget => {
                    self.push_back(id);
                    return Step::Idle;
                }
            }
        }
        Step::Idle
    }

    /// The next step of an owner that does not receive: connections are read, handshakes continued,
    /// PINGs answered, closed connections noticed. One message of each peer is held for the next
    /// receive. Never returns [`Step::Message`].
    pub(in crate::socket) fn poll_drive(&mut self, budget: &mut Budget, now: Instant) -> Step {
        self.consume_taken();
        while budget.peers > 0 {
            let Some(id) = self.ready.pop_front() else {
                return Step::Idle;
            };
            if let Some(peer) = self.peers.get(id)
                && let Some(up) = peer.up()
                && up.is_held
            {
                if up.output.has_ended() && !peer.is_accepted() && !peer.is_draining() {
                    // The connection has ended. Keeping it until the owner takes the message would
                    // delay the reconnect, so the message is lost.
                    budget.peers -= 1;
                    self.lose(id, DisconnectReason::Closed, now);
                    continue;
                }
                let probes = up.probe == Probe::Wanted
                    && up.input != Input::Blocked
                    && !up.output.has_ended()
                    && up.connection.receive_capacity() < self.options.rcvhwm_bytes;
                let link = up.link;
                if probes {
                    self.ready.push_front(id);
                    return Step::Read(id, link);
                }
                budget.peers -= 1;
                self.ready.push_back(id);
                continue;
            }
            match self.step(id, budget, now) {
                Outcome::Message => self.hold(id),
                Outcome::Read(link) => return Step::Read(id, link),
                #[cfg(feature = "process")]
                Outcome::FindUser(link) => {
                    self.ready.push_front(id);
                    return Step::FindUser(id, link);
                }
                Outcome::Again => self.push_front(id),
                Outcome::Idle => budget.peers -= 1,
                Outcome::Rotate | Outcome::Budget => {
                    budget.peers -= 1;
                    self.push_back(id);
                }
            }
        }
        Step::Idle
    }

    /// Holds the message that was just parsed: the peer is at the front of the ring again.
    fn hold(&mut self, id: PeerId) {
        self.taken = None;
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let Some(up) = peer.up_mut() else { return };
        up.is_held = true;
        self.held += 1;
        // A PING before the message may have set an earlier deadline by its TTL.
        let timeout = up.connection.poll_timeout();
        if std::mem::replace(&mut peer.is_ready, true) {
            // The step has put it at the end of the ring.
            self.ready.pop_back();
        }
        self.ready.push_front(id);
        self.set_timer(id, timeout);
    }

    /// Drops the message that the owner has read.
    #[inline]
    fn consume_taken(&mut self) {
        if let Some(id) = self.taken.take()
            && let Some(up) = self.peers.get_mut(id).and_then(Peer::up_mut)
            && !up.is_held
        {
            up.connection.consume_message();
        }
    }

    #[inline]
    fn step(&mut self, id: PeerId, budget: &mut Budget, now: Instant) -> Outcome {
        let was_read = self.was_read.take() == Some(id);
        loop {
            let Some(peer) = self.peers.get_mut(id) else {
                return Outcome::Idle;
            };
            let State::Up(up) = &mut peer.state else {
                peer.is_ready = false;
                return Outcome::Idle;
            };
            if up.waits_for.is_some() {
                peer.is_ready = false;
                return Outcome::Idle;
            }
            let is_complete = if std::mem::take(&mut up.is_held) {
                self.held -= 1;
                true
            } else if matches!(up.phase, Phase::Handshake) && up.connection.is_open() {
                #[cfg(feature = "process")]
                {
                    let link = up.link;
                    if self.needs_user(id) {
                        return Outcome::FindUser(link);
                    }
                }
                self.establish(id, now);
                return Outcome::Again;
            } else {
                match up.connection.poll(now) {
                    Ok(Progress::Message) => true,
                    Ok(Progress::Established) => continue,
                    Ok(Progress::NeedInput) => false,
                    Err(error) => {
                        self.lose(id, DisconnectReason::Protocol(error), now);
                        return Outcome::Idle;
                    }
                }
            };
            if is_complete {
                if let Phase::Draining(drain) = &up.phase
                    && !drain.delivers
                {
                    self.counters.unreceived += 1;
                    continue;
                }
                if up.connection.has_many_spans() {
                    up.count_memory(&mut self.received_bytes);
                }
                if !peer.is_dirty
                    && up.output == Output::Writable
                    && up.connection.wants_write(&peer.queue)
                {
                    peer.is_dirty = true;
                    self.dirty.push(id);
                }
                if up.input == Input::Blocked && !up.connection.has_unparsed() {
                    peer.is_ready = false;
                    self.taken = Some(id);
                    let timeout = up.connection.poll_timeout();
                    self.set_timer(id, timeout);
                } else {
                    self.ready.push_back(id);
                }
                return Outcome::Message;
            }
            up.count_memory(&mut self.received_bytes);
            let wants_write = !up.output.has_ended() && up.connection.wants_write(&peer.queue);
            let (link, input) = (up.link, up.input);
            if wants_write && !peer.is_dirty {
                peer.is_dirty = true;
                self.dirty.push(id);
            }
            if input == Input::Blocked {
                peer.is_ready = false;
                let timeout = up.connection.poll_timeout();
                self.set_timer(id, timeout);
                return Outcome::Idle;
            }
            if was_read {
                return Outcome::Rotate;
            }
            if budget.reads == 0 {
                return Outcome::Budget;
            }
            budget.reads -= 1;
            return Outcome::Read(link);
        }
    }

    /// The space for the read that a step has asked for. `None` if there is no memory for it; then
    /// the peer that uses most memory was disconnected, and the driver must ask for the next step.
    #[inline]
    pub(in crate::socket) fn read_space(&mut self, id: PeerId, now: Instant) -> Option<&mut [u8]> {
        let mut growth = self.growth();
        if growth == Growth::None
            && let Some(up) = self.peers.get(id).and_then(Peer::up)
            && !up.connection.has_room()
        {
            if !self.make_memory(id, now) {
                return None;
            }
            growth = Growth::Message;
        }
        let up = self.peers.get_mut(id)?.up_mut()?;
        Some(up.connection.receive_space(growth))
    }

    /// How much receive buffers may grow. Beyond half of the limit nothing is read ahead, so that
    /// messages that peers have begun to send can be completed.
    #[inline]
    fn growth(&self) -> Growth {
        let total = self.options.rcvhwm_total_bytes;
        if total == 0 || self.received_bytes < total / 2 {
            Growth::ReadAhead
        } else if self.received_bytes < total {
            Growth::Message
        } else {
            Growth::None
        }
    }

    /// At the memory limit: frees buffers that are empty. If that is not enough, the peer that uses
    /// most memory is disconnected, so that others can continue. True if a read of the peer `id` may
    /// take memory now.
    fn make_memory(&mut self, id: PeerId, now: Instant) -> bool {
        for other in self.peers.ids() {
            if let Some(up) = self.peers.get_mut(other).and_then(Peer::up_mut) {
                up.connection.release_idle();
                up.count_memory(&mut self.received_bytes);
            }
        }
        if self.growth() != Growth::None {
            return true;
        }
        let counted = |peer: &Peer| peer.up().map(|up| up.counted);
        let largest = self.peers.iter().max_by_key(|(_, peer)| counted(peer));
        let largest = largest.map_or(id, |(largest, _)| largest);
        self.lose(largest, DisconnectReason::OutOfMemory, now);
        if largest != id {
            self.push_front(id);
        }
        false
    }

    /// The result of a read, and whether it filled the space.
    pub(in crate::socket) fn handle_read(
        &mut self,
        id: PeerId,
        result: Read,
        is_full: bool,
        now: Instant,
    ) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let State::Up(up) = &mut peer.state else {
            return;
        };
        if up.is_held {
            return self.handle_probe(id, result, is_full, now);
        }
        match result {
            Read::Bytes(count) => {
                up.connection.handle_received(count, now);
                up.count_memory(&mut self.received_bytes);
                up.probe = match up.connection.is_open() {
                    true => Probe::None,
                    false => up.probe.after_read(),
                };
                // epoll(7): after a short read the stream has no more bytes, except for its end.
                if up.input == Input::Readable && !is_full {
                    up.input = Input::Blocked;
                }
                if let Phase::Draining(drain) = &mut up.phase {
                    drain.bytes_left = drain.bytes_left.saturating_sub(count);
                    if drain.bytes_left == 0 {
                        return self.end_draining(id, now);
                    }
                }
                self.was_read = Some(id);
                self.ready.push_front(id);
                self.set_timer(id, Some(now + limits::IDLE_MEMORY_AFTER));
            }
            Read::End => {
                let reason = match up.connection.is_unanswered() {
                    true => DisconnectReason::Unanswered,
                    false => DisconnectReason::Closed,
                };
                self.lose(id, reason, now);
            }
            Read::Blocked => {
                // No bytes were waiting, so the buffer can be freed.
                up.connection.release_idle();
                up.count_memory(&mut self.received_bytes);
                if up.input == Input::Ending {
                    // Sending has stopped before, and all bytes that the peer sent have been read.
                    let reason = match up.output {
                        Output::Silent => DisconnectReason::Protocol(Error::HeartbeatTimeout),
                        _ => DisconnectReason::Closed,
                    };
                    return self.lose(id, reason, now);
                }
                up.probe = up.probe.after_read();
                up.input = Input::Blocked;
                let timeout = up.connection.poll_timeout();
                peer.is_ready = false;
                self.set_timer(id, timeout);
            }
            Read::Failed(error) => self.lose(id, DisconnectReason::Io(error), now),
        }
    }

    /// The result of a read from an overdue peer whose message waits for the owner. Any byte counts
    /// as a sign of life. Bytes are buffered behind the message, within the read-ahead limit. At the
    /// end of the stream nothing more is sent to the peer.
    fn handle_probe(&mut self, id: PeerId, result: Read, is_full: bool, now: Instant) {
        let Some(up) = self.peers.get_mut(id).and_then(Peer::up_mut) else {
            return;
        };
        match result {
            Read::Bytes(count) => {
                up.connection.handle_received(count, now);
                up.count_memory(&mut self.received_bytes);
                up.probe = Probe::None;
                if up.input == Input::Readable && !is_full {
                    up.input = Input::Blocked;
                }
                let timeout = up.connection.poll_timeout();
                self.set_timer(id, timeout);
            }
            Read::Blocked => {
                up.probe = Probe::Done;
                if up.input == Input::Readable {
                    up.input = Input::Blocked;
                }
            }
            Read::End | Read::Failed(_) => self.stop_sending(id, Output::Failed),
        }
    }

    /// Stops sending on a peer's connection, after a failed write or a timeout. Bytes that the peer
    /// sent before are still read. The connection is closed at the end of the stream or when no
    /// more bytes are waiting.
    pub(super) fn stop_sending(&mut self, id: PeerId, output: Output) {
        if let Some(up) = self.peers.get_mut(id).and_then(Peer::up_mut) {
            up.output = output;
            up.input = Input::Ending;
            self.mark_ready(id);
        }
    }

    /// The message of the last [`Step::Message`], until the next step. It has no frames if the peer
    /// has no message.
    #[inline]
    pub(in crate::socket) fn message(&self, id: PeerId) -> Option<Message<'_>> {
        Some(self.peers.get(id)?.connection()?.message())
    }

    /// The same with the routing ID of the peer.
    #[inline]
    pub(in crate::socket) fn received(&self, id: PeerId) -> Option<(&[u8], Message<'_>)> {
        let peer = self.peers.get(id)?;
        Some((&peer.routing_id, peer.connection()?.message()))
    }

    /// Puts a peer into the ring of ready peers, if it is not there.
    pub(super) fn mark_ready(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(id)
            && !peer.is_ready
        {
            peer.is_ready = true;
            self.ready.push_back(id);
        }
    }

    /// Puts a peer that was taken from the ring to its front, unless it was lost meanwhile.
    fn push_front(&mut self, id: PeerId) {
        if self.peers.get(id).is_some_and(|peer| peer.is_ready) {
            self.ready.push_front(id);
        }
    }

    /// As `push_front`, to the end.
    fn push_back(&mut self, id: PeerId) {
        if self.peers.get(id).is_some_and(|peer| peer.is_ready) {
            self.ready.push_back(id);
        }
    }
}
