//! The table of peers: dense slots addressed by generation-checked ids.

use std::time::Instant;

use crate::reactor::{Endpoint, Lookup, Stream};
use crate::zmtp::{Connection, SendQueue};

/// A peer of one socket. Ids of gone peers are never taken for new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl PeerId {
    /// The id as a number, unique within its socket.
    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The id of such a number; one that was never given out has no peer.
    pub fn from_u64(number: u64) -> Self {
        PeerId {
            index: number as u32,
            generation: (number >> 32) as u32,
        }
    }
}

/// Where a peer's transport stands.
///
/// ```text
///            ┌───────────────── retry due ─────────────────┐
///            ▼                                             │
///  (connect) Resolving ──▶ Connecting ──up──▶ Up ──lost──▶ Waiting    (connecting peers)
///  (accept)                                   Up ──lost──▶ gone       (accepted peers)
/// ```
#[derive(Debug)]
pub(super) enum Link {
    /// The next attempt is due at the instant.
    Waiting(Instant),
    /// The host of the endpoint is resolved until the deadline; addresses skip this.
    Resolving(Lookup, Instant),
    /// A connect is under way until the deadline.
    Connecting(Stream, Instant),
    /// Bytes flow.
    Up(Stream, Box<Connection>),
}

/// A read that an overdue peer gets before it is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// Not asked for.
    None,
    /// To be made.
    Asked,
    /// Made.
    Made,
}

impl Probe {
    /// A read has been made.
    pub(super) fn made(self) -> Self {
        match self {
            Probe::None => Probe::None,
            Probe::Asked | Probe::Made => Probe::Made,
        }
    }
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) link: Link,
    pub(super) queue: SendQueue,
    /// May be read from without waiting.
    pub(super) readable: bool,
    /// May be written to without waiting.
    pub(super) writable: bool,
    /// The peer's end of the stream is closed: a short read is not the last.
    pub(super) read_closed: bool,
    /// Whether it was overdue and has been read from once more since bytes came last; during
    /// the handshake: at all, so that trickling bytes do not put its end off.
    pub(super) probe: Probe,
    /// It was silent for too long, though its connection stays for a message of its that waits.
    pub(super) is_silent: bool,
    /// Bytes of its receive memory that the socket has counted.
    pub(super) counted: usize,
    /// A write has failed: nothing more can be sent on this connection.
    pub(super) is_broken: bool,
    /// Something of its queue has been written on this connection.
    pub(super) has_sent: bool,
    /// Its last connection ended within a message to it.
    pub(super) is_cut: bool,
    /// It stands in the ready ring.
    pub(super) in_ready: bool,
    /// A message of it has been found and not been given to the owner yet.
    pub(super) held: bool,
    /// It stands in the list of peers to flush.
    pub(super) in_dirty: bool,
    pub(super) established: bool,
    /// Routing id since the last handshake; a connecting peer keeps it while it is away.
    pub(super) identity: Vec<u8>,
    /// The owner chose the routing ID; the peer's own identity does not count.
    pub(super) identity_is_assigned: bool,
    /// A listener took it, rather than that we connected.
    pub(super) accepted: bool,
    /// Where to connect again; none for accepted peers.
    pub(super) connect_to: Option<Endpoint>,
    /// Its place in the timers of the socket.
    pub(super) timer: Option<Instant>,
    /// A lookup that took longer than an attempt to connect may, and goes on.
    pub(super) lookup: Option<Lookup>,
    /// Failed attempts since the last established connection.
    pub(super) failures: u32,
    pub(super) address: String,
    /// Whose its end of the connection is.
    #[cfg(feature = "process")]
    pub(super) owner: super::owners::Owner,
}

impl Peer {
    pub(super) fn new(link: Link, connect_to: Option<Endpoint>, address: String) -> Self {
        Peer {
            link,
            queue: SendQueue::new(),
            readable: false,
            writable: false,
            read_closed: false,
            probe: Probe::None,
            is_silent: false,
            counted: 0,
            is_broken: false,
            has_sent: false,
            is_cut: false,
            in_ready: false,
            held: false,
            in_dirty: false,
            established: false,
            identity: Vec::new(),
            identity_is_assigned: false,
            accepted: connect_to.is_none(),
            connect_to,
            timer: None,
            lookup: None,
            failures: 0,
            address,
            #[cfg(feature = "process")]
            owner: super::owners::Owner::NotAsked,
        }
    }
}

/// Counts in `total` what the receive memory of a connection has become since `counted`.
#[inline]
pub(super) fn count_memory(connection: &Connection, counted: &mut usize, total: &mut u64) {
    let bytes = connection.receive_capacity();
    *total += bytes as u64;
    *total -= *counted as u64;
    *counted = bytes;
}

#[derive(Debug, Default)]
pub(super) struct Peers {
    slots: Vec<(u32, Option<Peer>)>,
    free: Vec<u32>,
}

impl Peers {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, peer: Peer) -> PeerId {
        if let Some(index) = self.free.pop()
            && let Some((generation, slot)) = self.slots.get_mut(index as usize)
        {
            *slot = Some(peer);
            return PeerId {
                index,
                generation: *generation,
            };
        }
        // Bounded by `Options::connections_max`, far below u32::MAX.
        let index = self.slots.len() as u32;
        self.slots.push((0, Some(peer)));
        PeerId {
            index,
            generation: 0,
        }
    }

    pub(super) fn remove(&mut self, id: PeerId) -> Option<Peer> {
        let (generation, slot) = self.slots.get_mut(id.index as usize)?;
        if *generation != id.generation {
            return None;
        }
        let peer = slot.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(id.index);
        Some(peer)
    }

    #[inline]
    pub(super) fn get(&self, id: PeerId) -> Option<&Peer> {
        match self.slots.get(id.index as usize) {
            Some((generation, Some(peer))) if *generation == id.generation => Some(peer),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        match self.slots.get_mut(id.index as usize) {
            Some((generation, Some(peer))) if *generation == id.generation => Some(peer),
            _ => None,
        }
    }

    /// The ID of the peer in slot `index`.
    pub(super) fn at(&self, index: usize) -> Option<PeerId> {
        match self.slots.get(index) {
            Some((generation, Some(_))) => Some(PeerId {
                index: u32::try_from(index).ok()?,
                generation: *generation,
            }),
            _ => None,
        }
    }

    pub(super) fn slot_count(&self) -> usize {
        self.slots.len()
    }
}
