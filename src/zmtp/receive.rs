//! The receive buffer of one connection.

use zeroize::Zeroize;

use crate::limits::RECEIVE_BUFFER_SIZE_MIN;

/// How much a [`ReceiveBuffer`] may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Growth {
    /// Not at all.
    None,
    /// Only if the current message does not fit.
    Message,
    /// Also to read ahead.
    ReadAhead,
}

/// Bytes that were received and are not yet consumed.
///
/// `start <= end <= bytes.len()`; `bytes[start..end]` are the received bytes; the bytes behind them
/// are space for the next read. The buffer grows only after a read has filled it: by a factor of
/// four up to the read-ahead, then by doubling for a larger message. So its size is at most the
/// read-ahead or twice the bytes received, whichever is larger.
#[derive(Debug, Default)]
pub struct ReceiveBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read filled the buffer, so more bytes may be waiting in the kernel.
    was_full: bool,
    is_secret: bool,
}

impl ReceiveBuffer {
    /// The bytes that were received and are not consumed.
    #[inline]
    pub fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or(&[])
    }

    /// The same bytes, mutable for decryption in place.
    #[cfg(feature = "curve")]
    pub(super) fn filled_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.end).unwrap_or(&mut [])
    }

    /// Space for the next read. It is empty only if the buffer is full and may not grow.
    pub fn space(&mut self, read_ahead: usize, growth: Growth) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        let size = self.bytes.len();
        // Moves the unconsumed bytes to the front when less than half of the buffer is free behind
        // them.
        if self.start > 0 && size - self.end < size / 2 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let was_full = std::mem::take(&mut self.was_full);
        if size == 0 {
            self.bytes.resize(RECEIVE_BUFFER_SIZE_MIN, 0);
        } else if growth == Growth::ReadAhead && was_full && size < read_ahead {
            self.grow(size.saturating_mul(4).min(read_ahead));
        } else if growth >= Growth::Message && self.end == size {
            self.grow(size * 2);
        }
        self.bytes.get_mut(self.end..).unwrap_or(&mut [])
    }

    /// True if [`ReceiveBuffer::space`] is not empty without growth.
    pub fn has_room(&self) -> bool {
        self.bytes.is_empty() || self.end - self.start < self.bytes.len()
    }

    /// Adds `count` bytes that were written into [`ReceiveBuffer::space`].
    pub fn fill(&mut self, count: usize) {
        self.end = self.bytes.len().min(self.end + count);
        self.was_full = self.end == self.bytes.len();
    }

    /// Removes `count` bytes from the front.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }

    /// Removes `count` bytes, and wipes all bytes outside `start..end`: a command of the handshake
    /// may contain a password.
    pub(super) fn consume_secret(&mut self, count: usize) {
        self.consume(count);
        let (start, end) = (self.start, self.end);
        for unread in [0..start, end..self.bytes.len()] {
            if let Some(bytes) = self.bytes.get_mut(unread) {
                bytes.zeroize();
            }
        }
    }

    /// Wipes the buffer if it may contain secrets of an unfinished handshake.
    pub(super) fn wipe_secret(&mut self) {
        if self.is_secret {
            self.bytes.zeroize();
        }
    }

    /// Sets whether the buffer may contain secrets: then the old memory is wiped when the buffer
    /// grows or is dropped.
    pub(super) fn set_secret(&mut self, is_secret: bool) {
        self.is_secret = is_secret;
    }

    fn grow(&mut self, size: usize) {
        if !self.is_secret {
            return self.bytes.resize(size, 0);
        }
        let mut bytes = vec![0; size];
        for (to, from) in bytes.iter_mut().zip(&self.bytes) {
            *to = *from;
        }
        self.bytes.zeroize();
        self.bytes = bytes;
    }

    /// Frees the memory if the buffer is empty.
    pub fn release_if_empty(&mut self) {
        if self.start == self.end {
            *self = ReceiveBuffer {
                is_secret: self.is_secret,
                ..ReceiveBuffer::default()
            };
        }
    }

    /// Allocated memory, in bytes.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_whatever_the_steps() {
        let mut buffer = ReceiveBuffer::default();
        let mut sent = 0u32;
        let mut seen = 0u32;
        for step in 1..2_000usize {
            let count = (step * 7919) % 5_000;
            let mut left = count;
            while left > 0 {
                let space = buffer.space(64 << 10, Growth::ReadAhead);
                assert!(!space.is_empty());
                let now = left.min(space.len());
                for byte in &mut space[..now] {
                    *byte = (sent % 251) as u8;
                    sent += 1;
                }
                buffer.fill(now);
                left -= now;
            }
            let take = ((step * 104_729) % 6_000).min(buffer.filled().len());
            for byte in &buffer.filled()[..take] {
                assert_eq!(*byte, (seen % 251) as u8);
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
