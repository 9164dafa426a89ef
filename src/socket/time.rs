//! Time passes: heartbeats, deadlines, reconnects, resting listeners, idle memory.

use std::time::Instant;

use super::core::TIMER_STEP;
use super::peers::Link;
use super::{DisconnectReason, PeerId, Socket};
use crate::limits;

impl Socket {
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
        self.now = now;
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

    /// Tries to write to a blocked peer whose timer is due: the kernel tells of room only when
    /// much of its buffer is free again, so a slow reader would look like a dead one.
    fn try_blocked(&mut self, id: PeerId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(id)
            && let Link::Up(_, connection) = &peer.link
            && connection.poll_timeout().is_some_and(|at| at <= now)
            && !peer.writable
            && connection.wants_write(&peer.queue)
        {
            peer.writable = true;
            self.flush_peer(id);
        }
    }

    /// True when the peer holds buffers that may be given back later.
    pub(super) fn peer_timeout(&mut self, id: PeerId, now: Instant) -> bool {
        self.try_blocked(id, now);
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
            Link::Resolving(_, deadline) | Link::Connecting(_, deadline) => {
                if *deadline <= now {
                    let what = match &peer.link {
                        Link::Resolving(..) => "the lookup of the host timed out",
                        _ => "connect timed out",
                    };
                    let reason = DisconnectReason::Io(what.to_owned());
                    self.lose(id, reason, now);
                } else {
                    let at = *deadline;
                    self.note_timeout(Some(at));
                }
                false
            }
            Link::Up(_, connection) => {
                // The silence may be our own: we looked away, or there were more events than one
                // wait gives. So one more read comes before the end.
                if !peer.readable && !peer.probed && connection.is_overdue(now) {
                    peer.probed = true;
                    peer.readable = true;
                    if !peer.in_ready {
                        peer.in_ready = true;
                        self.ready.push_back(id);
                    }
                }
                let is_unread = peer.readable;
                let before = connection.receive_capacity();
                if let Err(error) = connection.handle_timeout(now, is_unread) {
                    self.lose(id, DisconnectReason::Protocol(error), now);
                    return false;
                }
                let idle = now.saturating_duration_since(connection.received_at())
                    >= limits::IDLE_MEMORY_AFTER;
                if idle {
                    connection.release_idle();
                    peer.queue.release_idle();
                }
                self.received_octets -= (before - connection.receive_capacity()) as u64;
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
