//! The rolling receive buffer of one connection.

use crate::limits::{RECEIVE_BUFFER_SIZE_MAX, RECEIVE_BUFFER_SIZE_MIN};

/// Octets that arrived and are not consumed yet.
///
/// `start <= end <= octets.len()`; `octets[start..end]` is what arrived, the rest is room for
/// the next read. It grows only when it is full: by doubling, so the memory is at most twice
/// what has arrived (and at least [`RECEIVE_BUFFER_SIZE_MIN`] while in use).
#[derive(Debug, Default)]
pub struct ReceiveBuffer {
    octets: Vec<u8>,
    start: usize,
    end: usize,
}

impl ReceiveBuffer {
    /// Octets that arrived and are not consumed.
    #[inline]
    pub fn filled(&self) -> &[u8] {
        self.octets.get(self.start..self.end).unwrap_or(&[])
    }

    /// Room for the next read; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        let size = self.octets.len();
        // Moving what is left to the front is cheap while it is small against the buffer.
        if self.start > 0 && size - self.end < size / 2 {
            self.octets.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == size {
            let grown = (size * 2).max(RECEIVE_BUFFER_SIZE_MIN);
            self.octets.resize(grown, 0);
        }
        self.octets.get_mut(self.end..).unwrap_or(&mut [])
    }

    /// Takes over `count` octets that were written into [`ReceiveBuffer::space`].
    ///
    /// A read that filled all the room lets the buffer grow, so a busy peer costs fewer reads.
    pub fn fill(&mut self, count: usize) {
        self.end = self.octets.len().min(self.end + count);
        let size = self.octets.len();
        if self.end == size && self.start == 0 && size < RECEIVE_BUFFER_SIZE_MAX {
            self.octets
                .resize((size * 4).min(RECEIVE_BUFFER_SIZE_MAX), 0);
        }
    }

    /// Drops `count` octets from the front.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// Gives the memory back when nothing is held.
    pub fn release_if_empty(&mut self) {
        if self.start == self.end {
            *self = ReceiveBuffer::default();
        }
    }

    /// Octets of memory held.
    pub fn capacity(&self) -> usize {
        self.octets.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_come_out_as_they_went_in_whatever_the_steps() {
        let mut buffer = ReceiveBuffer::default();
        let mut sent = 0u32;
        let mut seen = 0u32;
        for step in 1..2_000usize {
            let count = (step * 7919) % 5_000;
            let mut left = count;
            while left > 0 {
                let space = buffer.space();
                assert!(!space.is_empty());
                let now = left.min(space.len());
                for octet in &mut space[..now] {
                    *octet = (sent % 251) as u8;
                    sent += 1;
                }
                buffer.fill(now);
                left -= now;
            }
            let take = ((step * 104_729) % 6_000).min(buffer.filled().len());
            for octet in &buffer.filled()[..take] {
                assert_eq!(*octet, (seen % 251) as u8);
                seen += 1;
            }
            buffer.consume(take);
        }
        let rest = buffer.filled().len();
        buffer.consume(rest);
        buffer.release_if_empty();
        assert_eq!(buffer.capacity(), 0);
    }
}
