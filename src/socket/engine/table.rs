//! The table of peers: an array of slots, addressed by index and generation.

use super::peer::Peer;
use crate::socket::PeerId;

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

    /// All peers with their IDs.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(index, (generation, slot))| {
            let id = PeerId {
                index: u32::try_from(index).ok()?,
                generation: *generation,
            };
            Some((id, slot.as_ref()?))
        })
    }

    /// The IDs of all peers.
    pub(super) fn ids(&self) -> Vec<PeerId> {
        self.iter().map(|(id, _)| id).collect()
    }
}
