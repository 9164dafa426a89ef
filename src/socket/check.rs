//! The accounts of a socket against its peers, for tests.

use super::Socket;
use super::core::TIMER_STEP;
use super::peers::{Link, Peer};

impl Socket {
    /// Whether the accounts agree with the peers; panics where they do not.
    pub(crate) fn check(&self) {
        let ids = (0..self.peers.slot_count()).filter_map(|index| self.peers.at(index));
        let peers: Vec<_> = ids
            .filter_map(|id| self.peers.get(id).map(|peer| (id, peer)))
            .collect();
        let capacity = |peer: &Peer| match &peer.link {
            Link::Up(_, connection) => connection.receive_capacity() as u64,
            _ => 0,
        };
        let received: u64 = peers.iter().map(|(_, peer)| capacity(peer)).sum();
        assert_eq!(self.received_octets, received, "memory of receive buffers");
        let queued: u64 = peers.iter().map(|(_, peer)| peer.queue.octets()).sum();
        assert_eq!(self.queued_octets, queued, "octets queued");
        let pending = |peer: &Peer| peer.accepted && !peer.established;
        let handshakes = peers.iter().filter(|(_, peer)| pending(peer)).count();
        assert_eq!(self.handshakes, handshakes, "pending handshakes");
        for (id, peer) in &peers {
            let places = self.ready.iter().filter(|other| *other == id).count();
            assert_eq!(
                places,
                usize::from(peer.in_ready),
                "places in the ready ring"
            );
            let places = self.dirty.iter().filter(|other| *other == id).count();
            assert_eq!(places, usize::from(peer.in_dirty), "places among the dirty");
            if self.is_router() && peer.established {
                assert_eq!(
                    self.routes.get(&peer.identity),
                    Some(id),
                    "an unroutable peer"
                );
            }
            let places = self.round_robin.iter().filter(|other| *other == id).count();
            let is_dealt_to = !self.is_router() && peer.established;
            assert!(places <= 1 && (places == 1 || !is_dealt_to), "its turns");
            let due = match &peer.link {
                Link::Waiting(at) | Link::Resolving(_, at) | Link::Connecting(_, at) => Some(*at),
                Link::Up(_, connection) => connection.poll_timeout(),
            };
            if let Some(due) = due {
                let latest = due.max(self.now + TIMER_STEP);
                assert!(
                    self.next_timeout.is_some_and(|next| next <= latest),
                    "forgotten"
                );
            }
        }
        for (identity, id) in &self.routes {
            let peer = self.peers.get(*id).expect("a route to a living peer");
            assert_eq!(*identity, peer.identity);
        }
        for id in &self.round_robin {
            assert!(self.peers.get(*id).is_some(), "turns of the dead");
        }
    }
}
