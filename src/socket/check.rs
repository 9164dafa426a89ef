//! Consistency checks of a socket's counters and lists against its peers, for tests and fuzzing.

use std::time::Instant;

use super::Socket;
use super::peers::{Link, Peer};
use super::time::OVERDUE_STEP_WAITING;

impl Socket {
    /// Panics if the socket's counters, lists or timers do not match its peers.
    pub(crate) fn check(&self) {
        let ids = (0..self.peers.slot_count()).filter_map(|index| self.peers.at(index));
        let peers: Vec<_> = ids
            .filter_map(|id| self.peers.get(id).map(|peer| (id, peer)))
            .collect();
        let received: u64 = peers.iter().map(|(_, peer)| peer.counted as u64).sum();
        for (_, peer) in &peers {
            let holds = match &peer.link {
                Link::Up(_, connection) => connection.receive_capacity(),
                _ => 0,
            };
            // The frame table of a message that the owner is reading is counted only after the next
            // poll.
            assert!(holds <= peer.counted + (128 << 10), "uncounted memory");
            assert!(peer.counted <= holds + (128 << 10), "memory counted twice");
        }
        assert_eq!(self.received_bytes, received, "memory of receive buffers");
        let queued: u64 = peers.iter().map(|(_, peer)| peer.queue.bytes()).sum();
        assert_eq!(self.queued_bytes, queued, "bytes queued");
        let pending = |peer: &Peer| peer.accepted && !peer.established;
        let handshakes = peers.iter().filter(|(_, peer)| pending(peer)).count();
        assert_eq!(self.handshakes, handshakes, "pending handshakes");
        for (id, peer) in &peers {
            let count = self.ready.iter().filter(|other| *other == id).count();
            assert_eq!(count, usize::from(peer.in_ready), "count in the ready ring");
            let count = self.dirty.iter().filter(|other| *other == id).count();
            assert_eq!(count, usize::from(peer.in_dirty), "count among the dirty");
            if self.is_router() && peer.established {
                assert_eq!(
                    self.routes.get(&peer.identity),
                    Some(id),
                    "an unroutable peer"
                );
            }
            let count = self.round_robin.iter().filter(|other| *other == id).count();
            let is_dealt_to = !self.is_router() && peer.established;
            assert!(count <= 1 && (count == 1 || !is_dealt_to), "its turns");
            let due = match &peer.link {
                Link::Waiting(at) | Link::Resolving(_, at) | Link::Connecting(_, at) => Some(*at),
                Link::Up(_, connection) => connection.poll_timeout(),
            };
            let latest = |due: Instant| due.max(self.now + OVERDUE_STEP_WAITING);
            let in_time = |due| peer.timer.is_some_and(|at| at <= latest(due));
            let waits = peer.held && peer.is_broken;
            assert!(waits || due.is_none_or(in_time), "forgotten");
            let is_listed = |timer| self.timers.contains(&(timer, *id));
            assert!(peer.timer.is_none_or(is_listed), "its timer");
        }
        for (identity, id) in &self.routes {
            let peer = self.peers.get(*id).expect("a route to a living peer");
            assert_eq!(*identity, peer.identity);
        }
        let timers = peers.iter().filter(|(_, peer)| peer.timer.is_some());
        assert_eq!(self.timers.len(), timers.count(), "timers of the dead");
        for id in &self.round_robin {
            assert!(self.peers.get(*id).is_some(), "turns of the dead");
        }
    }
}
