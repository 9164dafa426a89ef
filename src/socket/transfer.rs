//! Receiving and sending messages: fair-queued receive, routed and round-robin sends, flushing.

use std::io::{self, Read, Write};
use std::time::Instant;

use super::peers::{Link, Peer, Probe, count_memory};
use super::{DisconnectReason, Options, PeerId, SendError, Socket};
use crate::limits;
use crate::zmtp::{Error, Message, Progress, SocketType};

/// Result of [`Socket::step`].
enum Step {
    /// A complete message is available; the peer stays in the ready ring.
    Message,
    /// The handshake is done; continue with this peer.
    Established,
    /// The peer was read from and has no complete message yet; other peers come first.
    Rotate,
    /// The peer has no more input now or is removed; it is not in the ready ring any more.
    Idle,
    /// The peer may have more input, but the limit of reads in this call is reached.
    Budget,
}

impl Socket {
    /// Receives a message: returns its peer. The message is available by [`Socket::message`] until
    /// the next call. Peers are fair-queued, one message each.
    #[inline]
    pub fn receive(&mut self, now: Instant) -> Option<PeerId> {
        self.now = now;
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
                Step::Established => self.ready.push_front(id),
                Step::Rotate => self.ready.push_back(id),
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

    /// Does the work of [`Socket::receive`] without returning a message: accepts connections,
    /// continues handshakes, answers PINGs, detects closed connections. It is for owners that only
    /// send. One received message of each peer is kept for the next receive.
    pub fn drive(&mut self, now: Instant) {
        self.now = now;
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
                match self.peers.get(id) {
                    // The connection has ended. Keeping it until the owner takes the message would
                    // delay the reconnect, so the message is lost.
                    Some(peer) if peer.held && peer.is_broken && !peer.accepted => {
                        self.lose(id, DisconnectReason::Closed, now);
                        break;
                    }
                    Some(peer) if peer.held => {
                        self.probe_held(id, now);
                        self.ready.push_back(id);
                        break;
                    }
                    _ => {}
                }
                match self.step(id, &mut reads, now) {
                    Step::Established => {}
                    Step::Idle => break,
                    Step::Message => {
                        if let Some(peer) = self.peers.get_mut(id)
                            && let Link::Up(_, connection) = &peer.link
                        {
                            peer.held = true;
                            // A PING before the message may have set an earlier deadline by its
                            // TTL.
                            let timeout = connection.poll_timeout();
                            self.note_timeout(id, timeout);
                        }
                    }
                    Step::Rotate | Step::Budget => {
                        self.ready.push_back(id);
                        break;
                    }
                }
            }
        }
    }

    /// Reads from an overdue peer whose message waits for the owner. Any byte counts as a sign of
    /// life. Bytes are buffered behind the message, within the read-ahead limit. At the end of the
    /// stream nothing more is sent to the peer.
    fn probe_held(&mut self, id: PeerId, now: Instant) {
        let total = self.options.rcvhwm_total_bytes;
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let Link::Up(stream, connection) = &mut peer.link else {
            return;
        };
        if peer.probe != Probe::Asked || !peer.readable || peer.is_broken {
            return;
        }
        let may_grow = (total == 0 || self.received_bytes < total)
            && connection.receive_capacity() < self.options.rcvhwm_bytes;
        let space = connection.receive_space(may_grow);
        let room = space.len();
        if room == 0 {
            return;
        }
        let result = stream.read(space);
        count_memory(connection, &mut peer.counted, &mut self.received_bytes);
        match result {
            Ok(count @ 1..) => {
                connection.handle_received(count, now);
                peer.probe = Probe::None;
                peer.readable = count == room || peer.read_closed;
                let timeout = connection.poll_timeout();
                self.note_timeout(id, timeout);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                peer.probe = Probe::Made;
                peer.readable = peer.read_closed;
            }
            Ok(_) | Err(_) => self.break_link(id),
        }
    }

    /// Stops sending on a peer's connection, after a failed write or a timeout. Bytes that the peer
    /// sent before are still read. The connection is closed at the end of the stream or when no
    /// more bytes are waiting.
    pub(super) fn break_link(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        peer.is_broken = true;
        peer.writable = false;
        peer.readable = true;
        peer.read_closed = true;
        if !peer.in_ready {
            peer.in_ready = true;
            self.ready.push_back(id);
        }
    }

    /// Processes input of a peer that has been popped from the ready ring, with at most one read.
    #[inline]
    fn step(&mut self, id: PeerId, reads: &mut usize, now: Instant) -> Step {
        let mut was_read = false;
        loop {
            let Some(peer) = self.peers.get_mut(id) else {
                return Step::Idle;
            };
            let Link::Up(stream, connection) = &mut peer.link else {
                peer.in_ready = false;
                return Step::Idle;
            };
            if std::mem::take(&mut peer.held) {
                return Step::Message;
            }
            match connection.poll(now) {
                Ok(Progress::Message) => {
                    if connection.has_many_spans() {
                        count_memory(connection, &mut peer.counted, &mut self.received_bytes);
                    }
                    return Step::Message;
                }
                Ok(Progress::Established) => {
                    return if self.establish(id, now) {
                        Step::Established
                    } else {
                        Step::Idle
                    };
                }
                Ok(Progress::NeedInput) => {}
                Err(error) => {
                    // ERROR to the peer may be queued.
                    self.flush_peer(id);
                    self.lose(id, DisconnectReason::Protocol(error), now);
                    return Step::Idle;
                }
            }
            count_memory(connection, &mut peer.counted, &mut self.received_bytes);
            if connection.wants_write(&peer.queue) && !peer.in_dirty {
                peer.in_dirty = true;
                self.dirty.push(id);
            }
            if !peer.readable {
                peer.in_ready = false;
                let timeout = connection.poll_timeout();
                self.note_timeout(id, timeout);
                return Step::Idle;
            }
            if was_read {
                return Step::Rotate;
            }
            if *reads == 0 {
                return Step::Budget;
            }
            *reads -= 1;
            was_read = true;
            let total = self.options.rcvhwm_total_bytes;
            let may_grow = total == 0 || self.received_bytes < total;
            let space = connection.receive_space(may_grow);
            let room = space.len();
            if room == 0 {
                // At the memory limit, the peer that uses most memory is disconnected, so that
                // others can continue.
                let largest = self.largest_receiver().unwrap_or(id);
                self.lose(largest, DisconnectReason::OutOfMemory, now);
                if largest == id {
                    return Step::Idle;
                }
                was_read = false;
                continue;
            }
            let result = stream.read(space);
            if matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                // No bytes were waiting, so the buffer can be freed.
                connection.release_idle();
            }
            count_memory(connection, &mut peer.counted, &mut self.received_bytes);
            match result {
                Ok(0) if connection.is_unanswered() => {
                    self.lose(id, DisconnectReason::Unanswered, now);
                }
                Ok(0) => self.lose(id, DisconnectReason::Closed, now),
                Ok(count) => {
                    // The time that the owner passed may be long ago.
                    connection.handle_received(count, now.max(Instant::now()));
                    peer.probe = match connection.is_open() {
                        true => Probe::None,
                        false => peer.probe.made(),
                    };
                    // epoll(7): after a short read the stream has no more bytes, except for its
                    // end.
                    peer.readable = count == room || peer.read_closed;
                    self.note_timeout(id, Some(now + limits::IDLE_MEMORY_AFTER));
                    continue;
                }
                // Sending has stopped before (`break_link`), and all bytes that the peer sent have
                // been read.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && peer.read_closed => {
                    let reason = match peer.is_silent {
                        true => DisconnectReason::Protocol(Error::HeartbeatTimeout),
                        false => DisconnectReason::Closed,
                    };
                    self.lose(id, reason, now);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    peer.probe = peer.probe.made();
                    peer.readable = false;
                    peer.in_ready = false;
                    let timeout = connection.poll_timeout();
                    self.note_timeout(id, timeout);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Step::Rotate,
                Err(error) => self.lose(id, DisconnectReason::Io(error.to_string()), now),
            }
            return Step::Idle;
        }
    }

    /// The peer with the most receive memory.
    fn largest_receiver(&self) -> Option<PeerId> {
        (0..self.peers.slot_count())
            .filter_map(|index| self.peers.at(index))
            .max_by_key(|id| self.peers.get(*id).map(|peer| peer.counted))
    }

    /// The message that [`Socket::receive`] reported. It has no frames if the peer has no message.
    #[inline]
    pub fn message(&self, id: PeerId) -> Option<Message<'_>> {
        match &self.peers.get(id)?.link {
            Link::Up(_, connection) => Some(connection.message()),
            _ => None,
        }
    }

    /// The routing ID of an established peer.
    pub fn identity(&self, id: PeerId) -> Option<&[u8]> {
        self.peers
            .get(id)
            .filter(|peer| peer.established)
            .map(|peer| peer.identity.as_slice())
    }

    /// When bytes of an established peer were last received.
    pub fn received_at(&self, id: PeerId) -> Option<Instant> {
        match &self.peers.get(id)?.link {
            Link::Up(_, connection) if connection.is_open() => Some(connection.received_at()),
            _ => None,
        }
    }

    /// The peer with a routing ID (ROUTER).
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
        let limits = &self.options.limits;
        if size as u64 > limits.message_size_max || parts.len() > limits.frames_max {
            return Err(SendError::Invalid);
        }
        let Some(peer) = self.peers.get_mut(id) else {
            return Err(SendError::Unroutable);
        };
        if self.config.socket_type == SocketType::Router && peer.identity.is_empty() {
            return Err(SendError::Unroutable);
        }
        // Messages to an accepted peer would be lost with its broken connection.
        if peer.is_broken && (peer.accepted || self.options.immediate) {
            return Err(SendError::Unroutable);
        }
        let total = self.queued_bytes;
        if is_full(peer, &self.options, size, total) {
            if !peer.writable {
                return Err(SendError::Full);
            }
            self.flush_peer(id);
            let total = self.queued_bytes;
            match self.peers.get(id) {
                Some(peer) if !is_full(peer, &self.options, size, total) => {}
                Some(_) => return Err(SendError::Full),
                None => return Err(SendError::Unroutable),
            }
        }
        let Some(peer) = self.peers.get_mut(id) else {
            return Err(SendError::Unroutable);
        };
        let before = peer.queue.bytes();
        peer.queue.push(parts);
        self.queued_bytes += peer.queue.bytes() - before;
        if !peer.in_dirty {
            peer.in_dirty = true;
            self.dirty.push(id);
        }
        if peer.queue.bytes() >= limits::FLUSH_BYTES && peer.writable {
            self.flush_peer(id);
        }
        Ok(())
    }

    /// ROUTER: queues a message for the peer with a routing ID.
    #[inline]
    pub fn send_routed(&mut self, routing_id: &[u8], parts: &[&[u8]]) -> Result<(), SendError> {
        let sent = match self.route(routing_id) {
            Some(id) => self.send_to(id, parts),
            None => Err(SendError::Unroutable),
        };
        match sent {
            Err(SendError::Unroutable) if !self.options.router_mandatory => Ok(()),
            sent => sent,
        }
    }

    /// DEALER: queues a message for the next peer, in round-robin order, whose queue is not full.
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

    /// Writes queued messages, as far as the kernel accepts them.
    pub fn flush(&mut self) {
        if self.dirty.is_empty() {
            return;
        }
        // The PONG deadline counts from when PING is written, and the time that the owner passed
        // may be long ago.
        self.now = self.now.max(Instant::now());
        while let Some(id) = self.dirty.pop() {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.in_dirty = false;
                self.flush_peer(id);
            }
        }
    }

    /// Number of unsent bytes in the queues of all peers.
    pub fn pending_bytes(&self) -> u64 {
        self.queued_bytes
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
            if let Err(error) = connection.seal(&peer.queue) {
                return self.lose(id, DisconnectReason::Protocol(error), self.now);
            }
            let mut slices = Vec::with_capacity(limits::SLICES_PER_WRITE);
            connection.gather(&peer.queue, limits::SLICES_PER_WRITE, &mut slices);
            let size: usize = slices.iter().map(|slice| slice.len()).sum();
            if size == 0 {
                return;
            }
            match stream.write_vectored(&slices) {
                Ok(count) => {
                    drop(slices);
                    let before = peer.queue.bytes();
                    connection.handle_written(&mut peer.queue, count, self.now);
                    self.queued_bytes -= before - peer.queue.bytes();
                    peer.has_sent |= peer.queue.bytes() < before;
                    // epoll(7): after a short write the kernel's buffer is full.
                    if count < size {
                        peer.writable = false;
                    }
                    if peer.queue.is_empty() {
                        let idle_at = self.now + limits::IDLE_MEMORY_AFTER;
                        self.note_timeout(id, Some(idle_at));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    peer.writable = false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::debug!("{}: {error}", peer.address);
                    return self.break_link(id);
                }
            }
        }
    }
}

/// Whether a message of `size` bytes exceeds a limit of this peer's queue, or of all queues
/// together.
fn is_full(peer: &Peer, options: &Options, size: usize, total: u64) -> bool {
    let queue = &peer.queue;
    let size = size as u64;
    let messages = options.sndhwm > 0 && queue.message_count() >= options.sndhwm;
    let bytes = options.sndhwm_bytes > 0
        && !queue.is_empty()
        && queue.bytes() + size > options.sndhwm_bytes;
    // Each peer may queue 64 KiB beyond the total limit, so that stalled peers cannot starve
    // others.
    let is_little = queue.bytes() + size <= limits::FLUSH_BYTES;
    let all = options.sndhwm_total_bytes > 0
        && total > 0
        && total + size > options.sndhwm_total_bytes
        && !is_little;
    messages || bytes || all
}
