//! The table of peers: an array of slots, addressed by index and generation.

use std::time::Instant;

use crate::reactor::{Endpoint, Lookup, Stream};
use crate::zmtp::{Connection, SendQueue};

/// The ID of a peer of one socket. The ID of a removed peer never refers to a later peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl PeerId {
    /// The ID as a number, unique within its socket.
    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The ID of a number of [`PeerId::to_u64`]. Other numbers give an ID without a peer.
    pub fn from_u64(number: u64) -> Self {
        PeerId {
            index: number as u32,
            generation: (number >> 32) as u32,
        }
    }
}

/// State of a peer's transport.
///
/// ```text
///            ┌───────────────── retry due ─────────────────┐
///            ▼                                             │
///  (connect) Resolving ──▶ Connecting ──up──▶ Up ──lost──▶ Waiting    (connecting peers)
///  (accept)                                   Up ──lost──▶ removed    (accepted peers)
/// ```
#[derive(Debug)]
pub(super) enum Link {
    /// The next attempt to connect is due at this time.
    Waiting(Instant),
    /// The host name of the endpoint is being resolved, until the deadline. Endpoints with an
    /// address skip this state.
    Resolving(Lookup, Instant),
    /// The transport is being connected, until the deadline.
    Connecting(Stream, Instant),
    /// The transport is connected.
    Up(Stream, Box<Connection>),
}

/// State of the last read from an overdue peer before it is disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// The peer is not overdue.
    None,
    /// The read is still to be done.
    Asked,
    /// The read was done.
    Made,
}

impl Probe {
    /// The state after a read.
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
    /// A read may succeed without waiting.
    pub(super) readable: bool,
    /// A write may succeed without waiting.
    pub(super) writable: bool,
    /// The peer has closed its end, so a further read must follow a short read, to find the end of
    /// the stream.
    pub(super) read_closed: bool,
    /// Whether the peer is overdue and has been read from once more. Received bytes reset it on an
    /// established connection, but not during the handshake, so that a peer that sends single bytes
    /// cannot postpone the deadline.
    pub(super) probe: Probe,
    /// The heartbeat timed out, but the connection is kept until the owner has taken a received
    /// message.
    pub(super) is_silent: bool,
    /// Its part of `Socket::received_bytes`.
    pub(super) counted: usize,
    /// A write or a heartbeat has failed: nothing more is sent on this connection. Received bytes
    /// are still read.
    pub(super) is_broken: bool,
    /// Bytes of its queue have been written on this connection.
    pub(super) has_sent: bool,
    /// Its last connection ended while a message to it was partly written.
    pub(super) is_cut: bool,
    /// It is in `Socket::ready`.
    pub(super) in_ready: bool,
    /// A complete message was parsed by [`Socket::drive`](super::Socket::drive) and waits for the
    /// owner's next receive.
    pub(super) held: bool,
    /// It is in `Socket::dirty`.
    pub(super) in_dirty: bool,
    pub(super) established: bool,
    /// Its routing ID from the last handshake. A connecting peer keeps it while it is reconnecting.
    pub(super) identity: Vec<u8>,
    /// The owner chose the routing ID by `connect_as`; the peer's own routing ID is ignored.
    pub(super) identity_is_assigned: bool,
    /// The connection was accepted by a listener.
    pub(super) accepted: bool,
    /// The endpoint to connect to; `None` for accepted peers.
    pub(super) connect_to: Option<Endpoint>,
    /// Its time in `Socket::timers`.
    pub(super) timer: Option<Instant>,
    /// A lookup that exceeded the connect timeout and is still running; the next attempt continues
    /// it.
    pub(super) lookup: Option<Lookup>,
    /// Failed attempts since the last established connection.
    pub(super) failures: u32,
    pub(super) address: String,
    /// The user that owns the peer's end of the connection.
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

/// Updates `counted` and `total` to the current receive memory of a connection.
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
        // The number of peers is far below u32::MAX.
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
