//! Messages that wait to be sent to one peer, encoded as ZMTP frames.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use super::frame::encode_head;
#[cfg(feature = "curve")]
use super::frame::{Head, HeadResult};
use crate::limits::{SEND_CHUNK_SIZE_MAX, SEND_CHUNK_SIZE_MIN, SLICES_PER_WRITE};

/// A queue of encoded messages that outlives a connection.
///
/// Positions count bytes since the queue was created, and never decrease: `released <=
/// message_start <= written <= end`.
/// - `released`: the first byte that is still in memory.
/// - `message_start`: the start of the first message that is not completely written.
/// - `written`: the end of what the kernel has accepted.
/// - `end`: the end of what has been queued.
///
/// When a connection is lost, [`SendQueue::rewind`] sets `written` back to `message_start`, so a
/// partly written message is sent again from its first byte. It is still delivered at most once,
/// because a peer does not deliver an incomplete message.
#[derive(Debug, Default)]
pub struct SendQueue {
    /// Full chunks and shared payloads, older than `tail`.
    segments: VecDeque<Segment>,
    /// The chunk to which frames are appended.
    tail: Vec<u8>,
    released: u64,
    message_start: u64,
    written: u64,
    end: u64,
    /// Ends of the messages that are not completely written, in order.
    message_ends: VecDeque<u64>,
    /// Number of connections that were lost while the first of these messages was partly written.
    cuts: u32,
}

// One for each peer.
const _: () = assert!(size_of::<SendQueue>() <= 128);

/// The slices of one vectored write, on the stack: at most [`SLICES_PER_WRITE`], none of them empty.
#[derive(Debug)]
pub struct Slices<'a> {
    slices: [IoSlice<'a>; SLICES_PER_WRITE],
    count: usize,
    size: u64,
}

impl<'a> Slices<'a> {
    /// No slices.
    #[inline]
    pub fn new() -> Self {
        Slices {
            slices: [IoSlice::new(&[]); SLICES_PER_WRITE],
            count: 0,
            size: 0,
        }
    }

    /// Adds a slice, if it is not empty and there is room for it.
    #[inline]
    pub fn push(&mut self, bytes: &'a [u8]) {
        if bytes.is_empty() {
            return;
        }
        if let Some(slot) = self.slices.get_mut(self.count) {
            *slot = IoSlice::new(bytes);
            self.count += 1;
            self.size += bytes.len() as u64;
        }
    }

    /// Whether no further slice can be added.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.count == SLICES_PER_WRITE
    }

    /// Total size of the slices, in bytes.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The slices, for a vectored write.
    #[inline]
    pub fn as_slices(&self) -> &[IoSlice<'a>] {
        self.slices.get(..self.count).unwrap_or(&[])
    }

    /// The slices' bytes.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.as_slices().iter().map(|slice| &**slice)
    }
}

impl Default for Slices<'_> {
    fn default() -> Self {
        Slices::new()
    }
}

#[derive(Debug)]
enum Segment {
    Buffer(Vec<u8>),
    Shared(Arc<[u8]>),
}

// One for each chunk of a queue.
const _: () = assert!(size_of::<Segment>() <= 24);

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Segment::Buffer(bytes) => bytes,
            Segment::Shared(bytes) => bytes,
        }
    }
}

impl SendQueue {
    /// An empty queue, without allocated memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of messages that are not completely written.
    #[inline]
    pub fn message_count(&self) -> usize {
        self.message_ends.len()
    }

    /// Number of unwritten bytes, frame heads included.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.end - self.written
    }

    /// True when everything queued has been written.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.written == self.end
    }

    /// Queues one message. Every part is copied behind its frame head. Without parts nothing is
    /// queued.
    #[inline]
    pub fn push(&mut self, parts: &[&[u8]]) {
        let Some((last, others)) = parts.split_last() else {
            return;
        };
        for part in others {
            self.frame(part, true);
        }
        self.frame(last, false);
        self.message_ends.push_back(self.end);
    }

    /// Queues one message of any parts.
    #[inline]
    pub fn push_parts<P>(&mut self, parts: P)
    where
        P: IntoIterator<Item: AsRef<[u8]>>,
    {
        let mut parts = parts.into_iter();
        let Some(mut part) = parts.next() else {
            return;
        };
        for next in parts {
            self.frame(part.as_ref(), true);
            part = next;
        }
        self.frame(part.as_ref(), false);
        self.message_ends.push_back(self.end);
    }

    /// Queues one message whose last part is kept by reference instead of copied.
    pub fn push_shared(&mut self, parts: &[&[u8]], last: Arc<[u8]>) {
        for part in parts {
            self.frame(part, true);
        }
        let size = last.len();
        self.reserve(9);
        let before = self.tail.len();
        encode_head(&mut self.tail, size, false, false);
        self.end += (self.tail.len() - before + size) as u64;
        if size > 0 {
            let tail = std::mem::take(&mut self.tail);
            self.segments.push_back(Segment::Buffer(tail));
            self.segments.push_back(Segment::Shared(last));
        }
        self.message_ends.push_back(self.end);
    }

    #[inline]
    fn frame(&mut self, body: &[u8], more: bool) {
        self.reserve(9 + body.len());
        let before = self.tail.len();
        encode_head(&mut self.tail, body.len(), more, false);
        self.tail.extend_from_slice(body);
        self.end += (self.tail.len() - before) as u64;
    }

    /// Makes room for `size` bytes in `tail`, without moving bytes that are already queued.
    #[inline]
    fn reserve(&mut self, size: usize) {
        if self.tail.capacity() - self.tail.len() >= size {
            return;
        }
        let chunk = if self.tail.capacity() == 0 {
            SEND_CHUNK_SIZE_MIN
        } else {
            SEND_CHUNK_SIZE_MAX
        };
        let full = std::mem::replace(&mut self.tail, Vec::with_capacity(size.max(chunk)));
        if !full.is_empty() {
            self.segments.push_back(Segment::Buffer(full));
        }
    }

    /// Number of unwritten bytes of a partly written message. They must be written before anything
    /// else, such as a heartbeat. 0 if no message is partly written.
    pub fn unfinished(&self) -> u64 {
        match self.message_ends.front() {
            Some(end) if self.written > self.message_start => end - self.written,
            _ => 0,
        }
    }

    /// Adds slices of unwritten bytes to `out`, as far as it has room. They begin `skip` bytes behind
    /// `written` and have at most `bytes_max` bytes.
    #[inline]
    pub fn gather<'a>(&'a self, skip: u64, mut bytes_max: u64, out: &mut Slices<'a>) {
        let mut position = self.released;
        let from = self.written + skip;
        let chunks = self.segments.iter().map(Segment::bytes);
        for bytes in chunks.chain([self.tail.as_slice()]) {
            if out.is_full() || bytes_max == 0 {
                return;
            }
            let next = position + bytes.len() as u64;
            if next > from {
                let offset = usize::try_from(from.saturating_sub(position)).unwrap_or(usize::MAX);
                let rest = bytes.get(offset..).unwrap_or(&[]);
                let take = usize::try_from(bytes_max)
                    .unwrap_or(usize::MAX)
                    .min(rest.len());
                out.push(rest.get(..take).unwrap_or(&[]));
                bytes_max -= take as u64;
            }
            position = next;
        }
    }

    /// The frames behind the first `skip` unwritten bytes. That position must be the end of a
    /// frame.
    #[cfg(feature = "curve")]
    pub(super) fn frames(&self, skip: u64) -> impl Iterator<Item = (Head, &[u8])> {
        let mut left = self.written + skip - self.released;
        let chunks = self.segments.iter().map(Segment::bytes);
        let mut chunks = chunks
            .chain([self.tail.as_slice()])
            .filter_map(move |bytes| {
                let skipped = left.min(bytes.len() as u64);
                left -= skipped;
                let rest = bytes.get(usize::try_from(skipped).ok()?..)?;
                (!rest.is_empty()).then_some(rest)
            });
        let mut rest: &[u8] = &[];
        std::iter::from_fn(move || {
            if rest.is_empty() {
                rest = chunks.next()?;
            }
            // A head is never split. Its body follows it in the same chunk, or is the next chunk if
            // it is shared.
            let Ok(HeadResult::Head(head)) = Head::decode(rest) else {
                return None;
            };
            let behind = rest.get(head.head_size..)?;
            let size = usize::try_from(head.body_size).ok()?;
            if behind.is_empty() && size > 0 {
                rest = &[];
                return Some((head, chunks.next()?));
            }
            let (body, others) = behind.split_at_checked(size)?;
            rest = others;
            Some((head, body))
        })
    }

    /// Reports that the kernel accepted `count` bytes.
    pub fn advance(&mut self, count: u64) {
        self.written = self.end.min(self.written + count);
        while let Some(&end) = self.message_ends.front() {
            if end > self.written {
                break;
            }
            self.message_start = end;
            self.message_ends.pop_front();
            self.cuts = 0;
        }
        while let Some(segment) = self.segments.front() {
            let size = segment.bytes().len() as u64;
            if self.released + size > self.message_start {
                return;
            }
            self.released += size;
            self.segments.pop_front();
        }
        if self.message_start == self.end {
            self.released = self.end;
            // The memory of a large message is not kept.
            match self.tail.capacity() > SEND_CHUNK_SIZE_MAX {
                true => self.tail = Vec::new(),
                false => self.tail.clear(),
            }
        }
    }

    /// Reports that the connection is lost: the first unfinished message will be sent again from
    /// its first byte. `is_cut`: that message was partly written. Returns how many connections have
    /// been lost while this message was partly written.
    pub fn rewind(&mut self, is_cut: bool) -> u32 {
        self.cuts += u32::from(is_cut && !self.message_ends.is_empty());
        self.written = self.message_start;
        self.cuts
    }

    /// Drops the first message. It does nothing if a part of the message is already written.
    pub fn drop_first(&mut self) {
        if let Some(end) = self.message_ends.front()
            && self.written == self.message_start
        {
            self.advance(end - self.message_start);
        }
    }

    /// Frees unused memory.
    pub fn release_idle(&mut self) {
        if self.message_ends.is_empty() && self.tail.is_empty() {
            self.tail = Vec::new();
            self.message_ends = VecDeque::new();
            self.segments = VecDeque::new();
        }
    }

    /// Drops all messages.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(queue: &SendQueue) -> Vec<u8> {
        let mut slices = Slices::new();
        queue.gather(0, u64::MAX, &mut slices);
        slices.iter().flatten().copied().collect()
    }

    fn encoded(parts: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            encode_head(&mut out, part.len(), index + 1 < parts.len(), false);
            out.extend_from_slice(part);
        }
        out
    }

    #[test]
    fn what_is_queued_leaves_once_and_in_order_at_every_step_size() {
        let big: Arc<[u8]> = vec![9u8; 100_000].into();
        for step in [1usize, 7, 300, 4_096, 70_000, 1 << 20] {
            let mut queue = SendQueue::new();
            let mut want = Vec::new();
            for count in 0..40usize {
                let body = vec![count as u8; count * 97];
                queue.push(&[b"head", &body]);
                want.extend(encoded(&[b"head", &body]));
                if count % 10 == 0 {
                    queue.push_shared(&[b"h"], big.clone());
                    want.extend(encoded(&[b"h", &big]));
                }
            }
            assert_eq!(queue.message_count(), 44);
            let mut got = Vec::new();
            while !queue.is_empty() {
                let mut slices = Slices::new();
                queue.gather(0, step as u64, &mut slices);
                let taken: Vec<u8> = slices.iter().flatten().copied().collect();
                queue.advance(taken.len() as u64);
                got.extend(taken);
            }
            assert!(got == want, "step {step}");
            assert_eq!(queue.message_count(), 0);
            assert!(queue.segments.is_empty());
        }
    }

    #[test]
    fn a_lost_connection_sends_the_unfinished_message_again_and_no_other() {
        let mut queue = SendQueue::new();
        queue.push(&[b"first"]);
        queue.push(&[b"second", b"part"]);
        queue.push(&[b"third"]);
        queue.advance(7 + 5);
        assert_eq!(queue.unfinished(), 14 - 5);
        assert_eq!(queue.rewind(true), 1);
        assert_eq!(queue.rewind(false), 1);
        let mut want = encoded(&[b"second", b"part"]);
        want.extend(encoded(&[b"third"]));
        assert_eq!(bytes(&queue), want);
        assert_eq!(queue.message_count(), 2);
        queue.drop_first();
        assert_eq!(bytes(&queue), encoded(&[b"third"]));
        assert_eq!(queue.rewind(true), 1, "another message");
        queue.drop_first();
        assert!(queue.is_empty());
        assert_eq!(queue.rewind(true), 0);
    }

    #[test]
    fn a_large_message_leaves_no_large_memory() {
        let mut queue = SendQueue::new();
        queue.push(&[&vec![1; 10 << 20]]);
        queue.advance(queue.bytes());
        assert!(queue.is_empty() && queue.segments.is_empty());
        assert!(queue.tail.capacity() <= SEND_CHUNK_SIZE_MAX);
        queue.push(&[b"small"]);
        queue.advance(queue.bytes());
        queue.release_idle();
        assert_eq!(queue.tail.capacity(), 0);
    }
}
