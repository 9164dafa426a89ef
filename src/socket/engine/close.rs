//! The end of connections and peers.

use std::time::Instant;

use super::action::Action;
use super::peer::{Lookup, Peer, Phase, State, Up};
use super::{DisconnectReason, Engine, Event, PeerId};
use crate::limits;
use crate::zmtp::Progress;

impl Engine {
    /// See [`Socket::disconnect`](crate::socket::Socket::disconnect).
    pub(in crate::socket) fn disconnect(&mut self, id: PeerId, now: Instant) -> bool {
        let exists = self.peers.get(id).is_some();
        self.end(id, DisconnectReason::Owner, false, now);
        exists
    }

    /// See [`Socket::reject`](crate::socket::Socket::reject).
    pub(in crate::socket) fn reject(&mut self, id: PeerId, why: &str, now: Instant) -> bool {
        let exists = self.peers.get(id).is_some();
        self.lose(id, DisconnectReason::Rejected(why.to_owned()), now);
        exists
    }

    /// Closes all listeners, stops all attempts to connect, and shuts down the sending direction of
    /// every connection. Each peer is removed when it closes its end.
    pub(in crate::socket) fn shut_down(&mut self, now: Instant) {
        self.is_closing = true;
        self.close_listeners(|_| true);
        for id in self.peers.ids() {
            match self.peers.get(id).and_then(Peer::up) {
                Some(up) if up.connection.is_open() => self.actions.push_back(Action::ShutDown {
                    link: up.link,
                    last: Vec::new(),
                }),
                _ => self.lose(id, DisconnectReason::Owner, now),
            }
        }
    }

    /// Processes the end of a connection or attempt. A connecting peer then waits for its next
    /// attempt, unless the options stop it; other peers are removed.
    pub(super) fn lose(&mut self, id: PeerId, reason: DisconnectReason, now: Instant) {
        self.end(id, reason, true, now);
    }

    /// [`Engine::lose`]; `again`: a connecting peer may be connected again.
    fn end(&mut self, id: PeerId, reason: DisconnectReason, again: bool, now: Instant) {
        let Some(peer) = self.peers.get_mut(id) else {
            return;
        };
        let was_established = peer.is_established();
        let routing_id = peer.routing_id.clone();
        let address = peer.address.clone();
        let (is_accepted, connects) = (peer.is_accepted(), peer.target().is_some());
        let state = std::mem::replace(&mut peer.state, State::Waiting(now));
        let was_up = matches!(state, State::Up(_));
        // IDs of removed peers in the ring are ignored when they reach the front.
        if std::mem::take(&mut peer.is_ready) && connects {
            self.ready.retain(|other| *other != id);
        }
        let reason = match state {
            State::Up(up) => self.close_up(id, up, reason, now),
            State::Connecting(attempts) => {
                for link in attempts.links {
                    let last = Vec::new();
                    self.actions.push_back(Action::Close { link, last });
                }
                reason
            }
            // A running lookup is kept: the host is not looked up again before it ends.
            State::Resolving(_) | State::Waiting(_) => reason,
        };
        self.log_end(&address, &reason, was_established, was_up, connects, now);
        self.report(if was_established || reason == DisconnectReason::Owner {
            Event::Disconnected {
                peer: id,
                routing_id,
                reason: reason.clone(),
            }
        } else if was_up {
            Event::HandshakeFailed {
                peer: id,
                address,
                reason: reason.clone(),
            }
        } else {
            Event::ConnectFailed {
                peer: id,
                reason: reason.clone(),
            }
        });
        if connects && again && !self.stops(&reason, was_established) {
            return self.wait_to_connect(id, &reason, now);
        }
        if connects {
            if again && !self.is_closing {
                self.report(Event::Stopped { peer: id });
            }
        } else if is_accepted && !was_established {
            self.handshakes -= 1;
        }
        self.remove(id);
    }

    /// Ends a connected transport: counts the messages that the owner has not taken, and prepares the
    /// queue for the next connection. Returns the reason of the end.
    fn close_up(
        &mut self,
        id: PeerId,
        mut up: Up,
        reason: DisconnectReason,
        now: Instant,
    ) -> DisconnectReason {
        self.received_bytes -= up.counted as u64;
        if up.is_held {
            self.held -= 1;
            self.counters.unreceived += 1;
        }
        while !matches!(up.phase, Phase::Handshake)
            && matches!(up.connection.poll(now), Ok(Progress::Message))
        {
            self.counters.unreceived += 1;
        }
        let mut dropped = None;
        if let Some(peer) = self.peers.get_mut(id) {
            let last = up.connection.last_bytes(&peer.queue);
            let is_cut = up.connection.is_within_message(&peer.queue);
            self.queued_bytes -= peer.queue.bytes();
            if peer.queue.rewind(is_cut) >= limits::MESSAGE_CUTS_MAX {
                peer.queue.drop_first();
                dropped = Some((peer.routing_id.clone(), peer.address.clone()));
            }
            self.queued_bytes += peer.queue.bytes();
            self.actions.push_back(Action::Close {
                link: up.link,
                last,
            });
        }
        if let Some((routing_id, address)) = dropped {
            // The peer does not accept this message, and the messages behind it could never be
            // sent.
            let cuts = limits::MESSAGE_CUTS_MAX;
            self.warn(
                format_args!("{address}: {cuts} connections ended within a message; it is dropped"),
                now,
            );
            self.report(Event::Unsent {
                peer: id,
                routing_id,
                messages: 1,
            });
        }
        if let Phase::Draining(drain) = &up.phase
            && let Some(successor) = drain.successor
            && let Some(next) = self.peers.get_mut(successor).and_then(Peer::up_mut)
            && next.waits_for.take_if(|old| *old == id).is_some()
        {
            match up.waits_for {
                Some(earlier) if self.peers.get(earlier).is_some_and(Peer::is_draining) => {
                    self.succeed(earlier, successor);
                }
                _ => self.mark_ready(successor),
            }
        }
        match up.phase {
            Phase::Draining(drain) if reason != DisconnectReason::Owner => drain.reason,
            _ => reason,
        }
    }

    fn log_end(
        &mut self,
        address: &str,
        reason: &DisconnectReason,
        was_established: bool,
        was_up: bool,
        connects: bool,
        now: Instant,
    ) {
        let is_quiet = match reason {
            DisconnectReason::Owner | DisconnectReason::ConnRefused(_) => true,
            // If connections that we open end before they are established, the cause may be our
            // configuration, so it is a warning.
            DisconnectReason::Closed | DisconnectReason::Io(_) => {
                was_established || !was_up || !connects
            }
            _ => false,
        };
        let stage = match was_established {
            true => "connection closed",
            false => "handshake failed",
        };
        match is_quiet {
            true => log::debug!("{address}: {stage}: {reason}"),
            false => self.warn(format_args!("{address}: {stage}: {reason}"), now),
        }
    }

    /// Removes a peer from all tables.
    fn remove(&mut self, id: PeerId) {
        self.drop_queue(id);
        let Some(peer) = self.peers.remove(id) else {
            return;
        };
        if let Some(timer) = peer.timer {
            self.timers.remove(&(timer, id));
        }
        if self.routes.get(&peer.routing_id) == Some(&id) {
            self.routes.remove(&peer.routing_id);
        }
        self.round_robin.retain(|other| *other != id);
        if peer
            .target()
            .is_some_and(|target| target.lookup == Lookup::Running)
        {
            self.actions.push_back(Action::AbandonLookup { peer: id });
        }
    }

    /// Whether the options forbid another attempt to connect.
    fn stops(&self, reason: &DisconnectReason, was_established: bool) -> bool {
        let stop = self.options.reconnect_stop;
        self.is_closing
            || self.options.reconnect_ivl.is_none()
            || (stop.after_disconnect && was_established)
            || (stop.conn_refused && matches!(reason, DisconnectReason::ConnRefused(_)))
            || (stop.handshake_failed
                && !was_established
                && matches!(reason, DisconnectReason::Protocol(_)))
    }
}
