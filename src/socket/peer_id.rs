//! IDs of peers.

use std::fmt;

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

/// Index and generation, for logs.
impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}
