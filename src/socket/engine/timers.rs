//! Timers: heartbeats, deadlines, reconnects, paused listeners, memory of idle connections.

use std::time::{Duration, Instant};

use super::peer::{Input, Output, Phase, Probe, State};
use super::{DisconnectReason, Engine, PeerId};
use crate::limits;
use crate::socket::TransportError;
use crate::zmtp::Error;

/// Interval of checks of an overdue peer whose received bytes may still be unread.
const OVERDUE_INTERVAL: Duration = Duration::from_millis(10);
/// The interval while a message of the peer waits for the owner.
pub(super) const OVERDUE_INTERVAL_HELD: Duration = Duration::from_millis(100);

impl Engine {
    /// The time at which `handle_timeout` is due. It may be called earlier.
    #[inline]
    pub(in crate::socket) fn poll_timeout(&self) -> Option<Instant> {
        let peers = self.timers.first().map(|(at, _)| *at);
        let listeners = self.listeners.iter().flatten();
        let rests = listeners.filter_map(|bound| bound.rest_until);
        rests.chain(peers).min()
    }

    /// Sets a peer's timer to `at`, unless it is already set to an earlier time. When a deadline
    /// moves to a later time, the timer stays; the timeout then sets it again.
    #[inline]
    pub(super) fn set_timer(&mut self, id: PeerId, at: Option<Instant>) {
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

    /// Processes due timers. Afterwards writes may be due.
    pub(in crate::socket) fn handle_timeout(&mut self, now: Instant) {
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

    /// A blocked peer whose timer is due, to which the driver should try to write before
    /// `handle_timeout`. The kernel reports a socket as writable only when much of its buffer is
    /// free, so without this a slow reader would time out.
    pub(in crate::socket) fn retry_blocked(&mut self, now: Instant) -> bool {
        let mut found = false;
        let due: Vec<PeerId> = self
            .timers
            .iter()
            .take_while(|(at, _)| *at <= now)
            .map(|(_, id)| *id)
            .collect();
        for id in due {
            if let Some(peer) = self.peers.get_mut(id)
                && let State::Up(up) = &mut peer.state
                && up.output == Output::Blocked
                && up.connection.poll_timeout().is_some_and(|at| at <= now)
                && up.connection.wants_write(&peer.queue)
            {
                up.output = Output::Writable;
                found = true;
                self.mark_dirty(id);
            }
        }
        found
    }

    fn peer_timeout(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        match &mut peer.state {
            State::Waiting(at) if *at <= now => self.start_connect(id, now),
            State::Waiting(at) => {
                let at = *at;
                self.set_timer(id, Some(at));
            }
            State::Resolving(deadline) if *deadline > now => {
                let at = *deadline;
                self.set_timer(id, Some(at));
            }
            State::Resolving(_) => {
                let endpoint = peer.target().map(|target| target.endpoint.to_string());
                let endpoint = endpoint.unwrap_or_default();
                let what = format!("{endpoint}: the lookup of the host timed out");
                let error = TransportError::timed_out(what);
                self.lose(id, DisconnectReason::Io(error), now);
            }
            State::Connecting(attempts) if attempts.deadline > now => {
                let (deadline, next_at) = (attempts.deadline, attempts.next_at);
                self.set_timer(id, Some(deadline));
                match next_at {
                    Some(at) if at <= now => self.next_attempt(id, now),
                    later => self.set_timer(id, later),
                }
            }
            State::Connecting(attempts) => {
                let what = match &attempts.failure {
                    Some(failure) => format!("connect timed out; {}", failure.error),
                    None => "connect timed out".to_owned(),
                };
                let error = TransportError::timed_out(what);
                self.lose(id, DisconnectReason::Io(error), now);
            }
            State::Up(up) => match &up.phase {
                Phase::Draining(drain) if drain.deadline.is_some_and(|at| at <= now) => {
                    self.drain_timeout(id, now);
                }
                _ => self.connection_timeout(id, now),
            },
        }
    }

    fn connection_timeout(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let is_accepted = peer.is_accepted();
        let State::Up(up) = &mut peer.state else {
            return;
        };
        // The peer's bytes may be unread because the owner did not poll, or because there were more
        // events than one wait returns. So one more read is done before the peer is disconnected.
        let is_draining = matches!(up.phase, Phase::Draining(_));
        let is_overdue = up.connection.is_overdue(now) && !is_draining;
        let mut reads = false;
        if is_overdue && up.probe == Probe::None {
            up.probe = Probe::Wanted;
            if up.input == Input::Blocked {
                up.input = Input::Readable;
            }
            reads = true;
        }
        let is_unread = match up.connection.is_open() {
            true => up.input != Input::Blocked,
            false => up.probe == Probe::Wanted,
        };
        if is_overdue && !is_unread && up.is_held {
            // An accepted peer is kept until the owner has taken its message, but nothing more is
            // sent to it. A connecting peer is disconnected now, so that it can reconnect.
            return match is_accepted {
                true => self.stop_sending(id, Output::Silent),
                false => {
                    let reason = DisconnectReason::Protocol(Error::HeartbeatTimeout);
                    self.lose(id, reason, now);
                }
            };
        }
        if let Err(error) = up.connection.handle_timeout(now, is_unread || is_draining) {
            return self.lose(id, DisconnectReason::Protocol(error), now);
        }
        let idle_at = limits::after(up.connection.received_at(), limits::IDLE_MEMORY_AFTER);
        let is_idle = idle_at <= now;
        if is_idle {
            up.connection.release_idle();
        }
        peer.queue.release_idle();
        up.count_memory(&mut self.received_bytes);
        let at = up.connection.poll_timeout();
        let wants_write = !up.output.has_ended() && up.connection.wants_write(&peer.queue);
        // A deadline that has passed takes effect only after our next read, so the peer is checked
        // again after an interval.
        let holds_memory = up.counted > 0;
        let interval = match up.is_held {
            true => OVERDUE_INTERVAL_HELD,
            false => OVERDUE_INTERVAL,
        };
        let drain_deadline = match &up.phase {
            Phase::Draining(drain) => drain.deadline,
            _ => None,
        };
        if wants_write {
            self.mark_dirty(id);
        }
        if reads {
            self.mark_ready(id);
        }
        self.set_timer(id, at.map(|at| at.max(now + interval)));
        self.set_timer(id, drain_deadline);
        let again = idle_at.max(now + limits::IDLE_MEMORY_AFTER / 2);
        self.set_timer(id, (!is_idle || holds_memory).then_some(again));
    }
}
