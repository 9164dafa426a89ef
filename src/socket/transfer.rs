//! Messages in and out: fair-queued receive, routed and dealt sends, flushing.

use std::io::{self, Read, Write};
use std::time::Instant;

use super::peers::{Link, Peer};
use super::{DisconnectReason, Options, PeerId, SendError, Socket};
use crate::limits;
use crate::zmtp::{Message, Progress, SocketType};

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

impl Socket {
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

    pub(super) fn flush_peer(&mut self, id: PeerId) {
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
