//! Timers of a socket: heartbeats, deadlines, reconnects, paused listeners, memory of idle
//! connections.

use std::time::{Duration, Instant};

use super::peers::{Link, Probe, count_memory};
use super::{DisconnectReason, PeerId, Socket};
use crate::limits;
use crate::reactor::Endpoint;
use crate::zmtp::Error;

/// Interval of checks of an overdue peer whose received bytes may still be unread.
pub(super) const OVERDUE_STEP: Duration = Duration::from_millis(10);
/// The interval while a message of the peer waits for the owner.
pub(super) const OVERDUE_STEP_WAITING: Duration = Duration::from_millis(100);

impl Socket {
    /// The time at which [`Socket::handle_timeout`] is due. It may be called earlier.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let peers = self.timers.first().map(|(at, _)| *at);
        let listeners = self.listeners.iter().flatten();
        let rests = listeners.filter_map(|bound| bound.rest_until);
        rests.chain(peers).min()
    }

    /// Sets a peer's timer to `at`, unless it is already set to an earlier time. When a deadline
    /// moves to a later time, the timer stays; the timeout then sets it again.
    #[inline]
    pub(super) fn note_timeout(&mut self, id: PeerId, at: Option<Instant>) {
        if let Some(at) = at
            && let Some(peer) = self.peers.get_mut(id)
            && peer.timer.is_none_or(|timer| at < timer)
        {
            if let Some(timer) = peer.timer.replace(at) {
                self.timers.remove(&(timer, id));
            }
            self.timers.insert((at, id));
        }
    }

    /// Processes due timers: heartbeats, deadlines, reconnects, paused listeners.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        for bound in self.listeners.iter_mut().flatten() {
            if bound.rest_until.is_some_and(|until| until <= now) {
                bound.rest_until = None;
            }
        }
        // Timers that are set during this call are for the next call, so that this one ends.
        while self.timers.first().is_some_and(|(at, _)| *at <= now)
            && let Some((at, id)) = self.timers.pop_first()
        {
            self.due.push((at, id));
        }
        while let Some((_, id)) = self.due.pop() {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.timer = None;
                self.peer_timeout(id, now);
            }
        }
    }

    /// Tries to write to a blocked peer whose timer is due. The kernel reports a socket as writable
    /// only when much of its buffer is free, so without this a slow reader would time out.
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

    fn peer_timeout(&mut self, id: PeerId, now: Instant) {
        self.try_blocked(id, now);
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        match &mut peer.link {
            Link::Waiting(at) if *at <= now => self.start_connect(id, now),
            Link::Waiting(at) => {
                let at = *at;
                self.note_timeout(id, Some(at));
            }
            Link::Resolving(_, deadline) | Link::Connecting(_, deadline) if *deadline > now => {
                let at = *deadline;
                self.note_timeout(id, Some(at));
            }
            Link::Resolving(..) => {
                let endpoint = peer.connect_to.as_ref().map(Endpoint::to_string);
                let endpoint = endpoint.unwrap_or_default();
                let reason = format!("{endpoint}: the lookup of the host timed out");
                self.lose(id, DisconnectReason::Io(reason), now);
            }
            Link::Connecting(..) => {
                let reason = "connect timed out".to_owned();
                self.lose(id, DisconnectReason::Io(reason), now);
            }
            Link::Up(_, connection) => {
                // The peer's bytes may be unread because the owner did not poll, or because there
                // were more events than one wait returns. So one more read is done before the peer
                // is disconnected.
                let is_overdue = connection.is_overdue(now);
                if is_overdue && peer.probe == Probe::None {
                    peer.probe = Probe::Asked;
                    peer.readable = true;
                    if !peer.in_ready {
                        peer.in_ready = true;
                        self.ready.push_back(id);
                    }
                }
                let is_unread = match connection.is_open() {
                    true => peer.readable,
                    false => peer.probe == Probe::Asked,
                };
                if is_overdue && !is_unread && peer.held {
                    // An accepted peer is kept until the owner has taken its message, but nothing
                    // more is sent to it. A connecting peer is disconnected now, so that it can
                    // reconnect.
                    peer.is_silent = true;
                    let reason = DisconnectReason::Protocol(Error::HeartbeatTimeout);
                    return match peer.accepted {
                        true => self.break_link(id),
                        false => self.lose(id, reason, now),
                    };
                }
                if let Err(error) = connection.handle_timeout(now, is_unread) {
                    return self.lose(id, DisconnectReason::Protocol(error), now);
                }
                let idle_at = limits::after(connection.received_at(), limits::IDLE_MEMORY_AFTER);
                let is_idle = idle_at <= now;
                if is_idle {
                    connection.release_idle();
                }
                peer.queue.release_idle();
                count_memory(connection, &mut peer.counted, &mut self.received_bytes);
                let at = connection.poll_timeout();
                if connection.wants_write(&peer.queue) && !peer.in_dirty {
                    peer.in_dirty = true;
                    self.dirty.push(id);
                }
                // A deadline that has passed takes effect only after our next read, so the peer is
                // checked again after `step`.
                let holds_memory = peer.counted > 0;
                let step = match peer.held {
                    true => OVERDUE_STEP_WAITING,
                    false => OVERDUE_STEP,
                };
                self.note_timeout(id, at.map(|at| at.max(now + step)));
                let again = idle_at.max(now + limits::IDLE_MEMORY_AFTER / 2);
                self.note_timeout(id, (!is_idle || holds_memory).then_some(again));
            }
        }
    }
}
