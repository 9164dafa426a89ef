//! Sending: routed and round-robin sends, high-water marks, writes.

use std::time::Instant;

use super::action::{LinkId, Readiness, Written};
use super::peer::{Input, Output, Peer, State};
use super::{DisconnectReason, Engine, PeerId};
use crate::limits;
use crate::socket::{Error, Options};
use crate::zmtp::{SendQueue, Slices};

/// The size of a message that is to be queued.
#[derive(Clone, Copy, Debug)]
pub(in crate::socket) struct Size {
    pub(in crate::socket) frames: usize,
    /// Total size of the frames' bodies.
    pub(in crate::socket) bytes: usize,
}

impl Engine {
    /// Queues a message for one peer by `push`. `Ok(true)` if the driver should write now.
    #[inline]
    pub(in crate::socket) fn send_to(
        &mut self,
        id: PeerId,
        size: Size,
        push: impl FnOnce(&mut SendQueue),
    ) -> Result<bool, Error> {
        let limits = &self.options.limits;
        if size.frames == 0
            || size.bytes as u64 > limits.message_size_max
            || size.frames > limits.frames_max
        {
            return Err(Error::InvalidMessage);
        }
        let Some(peer) = self.peers.get_mut(id) else {
            return Err(Error::Unroutable);
        };
        if self.config.socket_type == crate::zmtp::SocketType::Router && peer.routing_id.is_empty()
        {
            return Err(Error::Unroutable);
        }
        let is_writable = match &peer.state {
            // Messages to an accepted peer would be lost with its connection.
            State::Up(up)
                if up.output.has_ended()
                    && (peer.is_accepted() || self.options.immediate || peer.is_draining()) =>
            {
                return Err(Error::Unroutable);
            }
            State::Up(up) => up.output == Output::Writable,
            _ if peer
                .target()
                .is_some_and(|target| target.stands_by_for.is_some()) =>
            {
                return Err(Error::Unroutable);
            }
            _ => false,
        };
        if is_full(peer, &self.options, size.bytes, self.queued_bytes) {
            return Err(Error::Full);
        }
        let before = peer.queue.bytes();
        push(&mut peer.queue);
        self.queued_bytes += peer.queue.bytes() - before;
        if is_writable && !peer.is_dirty {
            peer.is_dirty = true;
            self.dirty.push(id);
        }
        Ok(is_writable && peer.queue.bytes() >= limits::FLUSH_BYTES)
    }

    /// Whether a write to a peer may make room in its queue.
    pub(in crate::socket) fn is_writable(&self, id: PeerId) -> bool {
        let up = self.peers.get(id).and_then(Peer::up);
        up.is_some_and(|up| up.output == Output::Writable)
    }

    /// DEALER: the next peer in round-robin order.
    #[inline]
    pub(in crate::socket) fn next_dealt(&mut self) -> Option<PeerId> {
        if self.next_peer >= self.round_robin.len() {
            self.next_peer = 0;
        }
        let id = self.round_robin.get(self.next_peer).copied();
        self.next_peer += 1;
        id
    }

    /// DEALER: the number of peers to which messages may be sent.
    #[inline]
    pub(in crate::socket) fn round_robin_count(&self) -> usize {
        self.round_robin.len()
    }

    /// Number of unsent bytes in the queues of all peers.
    #[inline]
    pub(in crate::socket) fn pending_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// True while peers wait for the next flush.
    #[inline]
    pub(in crate::socket) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The next peer to which a flush writes.
    pub(in crate::socket) fn next_dirty(&mut self) -> Option<PeerId> {
        while let Some(id) = self.dirty.pop() {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.is_dirty = false;
                return Some(id);
            }
        }
        None
    }

    /// Puts a peer into the list of those to which the next flush writes.
    pub(super) fn mark_dirty(&mut self, id: PeerId) {
        if let Some(peer) = self.peers.get_mut(id)
            && !peer.is_dirty
        {
            peer.is_dirty = true;
            self.dirty.push(id);
        }
    }

    /// Prepares the next write to a peer. `None` if there is nothing to write now. `seal_bytes` is
    /// how many bytes may still be encrypted for the peer in this iteration
    /// ([`limits::SEAL_BYTES_PER_ITERATION`]); then other peers come first, and `handle_timeout` is due at
    /// once.
    #[inline]
    pub(in crate::socket) fn poll_write(
        &mut self,
        id: PeerId,
        seal_bytes: &mut usize,
        now: Instant,
    ) -> Option<LinkId> {
        let peer = self.peers.get_mut(id)?;
        let State::Up(up) = &mut peer.state else {
            return None;
        };
        if up.output != Output::Writable || !up.connection.wants_write(&peer.queue) {
            return None;
        }
        let link = up.link;
        match up.connection.seal(&peer.queue, *seal_bytes) {
            Ok(sealed) => *seal_bytes = seal_bytes.saturating_sub(sealed),
            Err(error) => {
                self.lose(id, DisconnectReason::Protocol(error), now);
                return None;
            }
        }
        if up.connection.needs_seal() {
            self.set_timer(id, Some(now));
            return None;
        }
        Some(link)
    }

    /// The bytes of the write that `poll_write` has prepared.
    #[inline]
    pub(in crate::socket) fn gather<'a>(&'a self, id: PeerId, out: &mut Slices<'a>) {
        if let Some(peer) = self.peers.get(id)
            && let State::Up(up) = &peer.state
        {
            up.connection.gather(&peer.queue, out);
        }
    }

    /// The result of a write of `size` bytes. True if `poll_write` should be asked again.
    #[inline]
    pub(in crate::socket) fn handle_written(
        &mut self,
        id: PeerId,
        size: u64,
        result: Written,
        now: Instant,
    ) -> bool {
        let Some(peer) = self.peers.get_mut(id) else {
            return false;
        };
        let State::Up(up) = &mut peer.state else {
            return false;
        };
        match result {
            Written::Bytes(count) => {
                let before = peer.queue.bytes();
                up.connection
                    .handle_written(&mut peer.queue, count as usize, now);
                let after = peer.queue.bytes();
                self.queued_bytes -= before - after;
                up.has_sent |= after < before;
                // epoll(7): after a short write the kernel's buffer is full.
                if count < size {
                    up.output = Output::Blocked;
                }
                if after == 0 {
                    self.set_timer(id, Some(now + limits::IDLE_MEMORY_AFTER));
                }
                count == size
            }
            Written::Blocked => {
                up.output = Output::Blocked;
                false
            }
            Written::Failed(error) => {
                log::debug!("{}: {error}", peer.address);
                self.stop_sending(id, Output::Failed);
                false
            }
        }
    }

    /// A readiness event of a connected transport. It is a hint: it may be of an earlier transport.
    pub(in crate::socket) fn handle_ready(&mut self, id: PeerId, readiness: Readiness) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let Some(up) = peer.up_mut() else { return };
        if readiness.is_writable && !up.output.has_ended() {
            up.output = Output::Writable;
            self.mark_dirty(id);
        }
        if let Some(up) = self.peers.get_mut(id).and_then(Peer::up_mut)
            && (readiness.is_readable || readiness.is_ended)
        {
            up.input = match readiness.is_ended || up.input == Input::Ending {
                true => Input::Ending,
                false => Input::Readable,
            };
            self.mark_ready(id);
        }
    }
}

/// Whether a message of `size` bytes exceeds a limit of this peer's queue, or of all queues
/// together.
#[inline]
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
