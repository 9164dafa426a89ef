//! Consistency checks of an engine's counters and lists against its peers, for tests and fuzzing.

#![allow(clippy::expect_used)]

use std::time::Instant;

use super::Engine;
use super::peer::{Output, Peer, State};
use super::timers::OVERDUE_INTERVAL_HELD;

impl Engine {
    /// Panics if the counters, lists or timers do not match the peers. `now` is the latest time that
    /// the engine was given.
    pub(in crate::socket) fn check(&self, now: Instant) {
        let received: u64 = self
            .peers
            .iter()
            .filter_map(|(_, peer)| peer.up())
            .map(|up| up.counted as u64)
            .sum();
        for up in self.peers.iter().filter_map(|(_, peer)| peer.up()) {
            let holds = up.connection.receive_capacity();
            // The frame table of a message that the owner is reading is counted only after the next
            // step.
            assert!(holds <= up.counted + (128 << 10), "uncounted memory");
            assert!(up.counted <= holds + (128 << 10), "memory counted twice");
        }
        assert_eq!(self.received_bytes, received, "memory of receive buffers");
        let queued: u64 = self.peers.iter().map(|(_, peer)| peer.queue.bytes()).sum();
        assert_eq!(self.queued_bytes, queued, "bytes queued");
        let is_pending = |peer: &Peer| peer.is_accepted() && !peer.is_established();
        let handshakes = self.peers.iter().filter(|(_, peer)| is_pending(peer));
        assert_eq!(self.handshakes, handshakes.count(), "pending handshakes");
        let held = self.peers.iter().filter(|(_, peer)| peer.is_held());
        assert_eq!(self.held, held.count(), "held messages");
        for (id, peer) in self.peers.iter() {
            let count = self.ready.iter().filter(|other| **other == id).count();
            assert_eq!(count, usize::from(peer.is_ready), "count in the ready ring");
            let count = self.dirty.iter().filter(|other| **other == id).count();
            assert_eq!(count, usize::from(peer.is_dirty), "count among the dirty");
            assert!(peer.is_ready || !peer.is_held(), "a held message is ready");
            if self.is_router() && peer.is_established() && !peer.is_draining() {
                let route = self.routes.get(&peer.routing_id);
                assert_eq!(route, Some(&id), "an unroutable peer");
            }
            let count = self.round_robin.iter().filter(|other| **other == id);
            let count = count.count();
            let is_dealt_to = !self.is_router() && peer.is_established();
            assert!(
                count <= 1 && (count == 1 || !is_dealt_to),
                "its round robin"
            );
            let due = match &peer.state {
                State::Waiting(at) | State::Resolving(at) => Some(*at),
                State::Connecting(attempts) => Some(attempts.deadline),
                State::Up(up) => up.connection.poll_timeout(),
            };
            let latest = |due: Instant| due.max(now + OVERDUE_INTERVAL_HELD);
            let in_time = |due| peer.timer.is_some_and(|at| at <= latest(due));
            let waits = peer.is_held() && peer.up().is_some_and(|up| up.output.has_ended());
            assert!(waits || due.is_none_or(in_time), "no timer for a deadline");
            let is_listed = |timer| self.timers.contains(&(timer, id));
            assert!(peer.timer.is_none_or(is_listed), "its timer");
        }
        for (routing_id, id) in &self.routes {
            let peer = self.peers.get(*id).expect("a route to an existing peer");
            assert_eq!(*routing_id, peer.routing_id);
        }
        for (id, peer) in self.peers.iter() {
            let waits = peer.up().is_some_and(|up| {
                up.output == Output::Writable && up.connection.wants_write(&peer.queue)
            });
            // What is written in a handshake follows from what is read.
            let is_due = peer.timer.is_some_and(|at| at <= now);
            let is_listed = peer.is_dirty || peer.is_ready || is_due || !peer.is_established();
            assert!(!waits || is_listed, "{id}: no write is due");
        }
        let timers = self.peers.iter().filter(|(_, peer)| peer.timer.is_some());
        assert_eq!(self.timers.len(), timers.count(), "timers of removed peers");
        for id in &self.round_robin {
            assert!(
                self.peers.get(*id).is_some(),
                "removed peers in the round robin"
            );
        }
    }
}
