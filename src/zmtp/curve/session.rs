//! Traffic of an established CURVE connection: every frame is a MESSAGE (RFC 26 §5.4).

use std::collections::VecDeque;
use std::fmt;

use super::{BoxKey, BoxStream, TAG_SIZE, bad, short_nonce};
use crate::limits::SEALED_BYTES_MAX;
use crate::zmtp::cursor::{Cursor, append_u64};
use crate::zmtp::frame::{Head, HeadResult, encode_head};
use crate::zmtp::{Error, SendQueue};

/// Number of bytes that MESSAGE adds to a frame's body: name 8, nonce 8, tag 16, flags 1.
pub(in crate::zmtp) const MESSAGE_OVERHEAD: usize = 33;
/// Offset of the box in a MESSAGE body.
const BOX_START: usize = 16;
/// A part of an incomplete frame is decrypted once it has this size, in bytes. Smaller frames are
/// decrypted when they are complete.
const OPEN_SIZE_MIN: usize = 64 << 10;
const FRAME_HEAD_SIZE_MAX: usize = 9;

const INNER_MORE: u8 = 0b01;
const INNER_COMMAND: u8 = 0b10;

/// Flags of a decrypted MESSAGE. The frame's body follows the first [`MESSAGE_OVERHEAD`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::zmtp) struct Inner {
    pub(in crate::zmtp) more: bool,
    pub(in crate::zmtp) command: bool,
}

/// The key, the two nonces, and frames that are sealed but not yet written.
///
/// Nonces must increase on the wire. So frames are written in the order in which they were sealed,
/// and everything else waits behind them.
///
/// Large frames are sealed and opened in parts, so that one message does not delay other peers. The
/// tag precedes the ciphertext, so no byte of a frame is written before all of it is sealed.
pub(in crate::zmtp) struct Sealed {
    key: Box<BoxKey>,
    send_prefix: &'static [u8; 16],
    send_nonce: u64,
    receive_prefix: &'static [u8; 16],
    receive_nonce: u64,
    /// Sealed frames; the last one may be incomplete.
    wire: Vec<u8>,
    /// The last frame of `wire`, if it is not completely sealed.
    sealing: Option<Sealing>,
    wire_written: usize,
    /// Number of bytes written before the first byte of `wire`.
    wire_start: u64,
    /// For each sealed message: the position of its end, counted like `wire_start`, and its size in
    /// the queue in bytes.
    marks: VecDeque<(u64, u64)>,
    /// Bytes of the queue whose frames are sealed and belong to messages that are not completely
    /// written.
    taken: u64,
    /// The part of `taken` that belongs to a message of which frames are not sealed yet.
    message_taken: u64,
    /// The received frame of which a part has been decrypted.
    opening: Option<Opening>,
}

/// A frame that is partly sealed. Its positions are indexes of `wire`.
struct Sealing {
    stream: BoxStream,
    /// The frame's first byte, its tag, and the first byte that is not encrypted.
    frame: usize,
    tag: usize,
    sealed: usize,
    /// Number of bytes of the body that are in `wire`.
    copied: usize,
}

/// A received frame that is partly decrypted.
struct Opening {
    stream: BoxStream,
    nonce: u64,
    /// Number of decrypted bytes behind the tag.
    opened: usize,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed")
            .field("pending", &self.pending().len())
            .finish_non_exhaustive()
    }
}

impl Sealed {
    /// `send_nonce` and `receive_nonce` are the last ones that were used.
    pub(super) fn new(
        key: Box<BoxKey>,
        send_prefix: &'static [u8; 16],
        send_nonce: u64,
        receive_prefix: &'static [u8; 16],
        receive_nonce: u64,
    ) -> Self {
        Sealed {
            key,
            send_prefix,
            send_nonce,
            receive_prefix,
            receive_nonce,
            wire: Vec::new(),
            sealing: None,
            wire_written: 0,
            wire_start: 0,
            marks: VecDeque::new(),
            taken: 0,
            message_taken: 0,
            opening: None,
        }
    }

    /// `wire` has only bytes of the handshake, and none of them is written.
    pub(in crate::zmtp) fn is_untouched(&self) -> bool {
        !self.wire.is_empty() && self.wire_written == 0 && self.wire_start == 0 && self.taken == 0
    }

    /// A message has been sealed and is not completely written.
    pub(in crate::zmtp) fn is_within_message(&self) -> bool {
        self.taken > 0
    }

    /// The bytes to write next.
    pub(in crate::zmtp) fn pending(&self) -> &[u8] {
        let end = match &self.sealing {
            Some(sealing) => sealing.frame,
            None => self.wire.len(),
        };
        self.wire.get(self.wire_written..end).unwrap_or(&[])
    }

    /// Adds unwritten plaintext bytes of the handshake, which must be written before sealed frames.
    pub(in crate::zmtp) fn carry(&mut self, bytes: &[u8]) {
        self.wire.extend_from_slice(bytes);
    }

    /// Seals the command frames in `control`, then queued messages, until `SEALED_BYTES_MAX` bytes
    /// are unwritten or `bytes_max` bytes have been sealed. Returns how many were.
    ///
    /// `control` is consumed completely or not at all: not within a message, and not while
    /// `SEALED_BYTES_MAX` bytes are unwritten, so a peer that sends PINGs and never reads cannot make
    /// `wire` grow.
    pub(in crate::zmtp) fn seal(
        &mut self,
        control: &mut Vec<u8>,
        queue: &SendQueue,
        bytes_max: usize,
    ) -> Result<usize, Error> {
        if self.pending().len() >= SEALED_BYTES_MAX || bytes_max == 0 {
            return Ok(0);
        }
        self.drop_written();
        if self.sealing.is_none() && self.message_taken == 0 {
            self.seal_commands(std::mem::take(control))?;
        }
        let mut left = bytes_max;
        for (head, body) in queue.frames(self.taken) {
            let flags = if head.more { INNER_MORE } else { 0 };
            if !self.seal_frame(flags, body, &mut left)? {
                break;
            }
            let size = (head.head_size + body.len()) as u64;
            self.taken += size;
            self.message_taken += size;
            if !head.more {
                let end = self.wire_start + self.wire.len() as u64;
                let size = std::mem::take(&mut self.message_taken);
                self.marks.push_back((end, size));
            }
            if left == 0 || self.pending().len() >= SEALED_BYTES_MAX {
                break;
            }
        }
        Ok(bytes_max - left)
    }

    fn seal_commands(&mut self, mut control: Vec<u8>) -> Result<(), Error> {
        let mut commands = control.as_mut_slice();
        while let Ok(HeadResult::Head(head)) = Head::decode(commands) {
            let size = head.head_size.saturating_add(head.body_len());
            let Some((frame, others)) = commands.split_at_mut_checked(size) else {
                break;
            };
            let body = frame.get(head.head_size..).unwrap_or(&[]);
            self.seal_frame(INNER_COMMAND, body, &mut usize::MAX.clone())?;
            commands = others;
        }
        Ok(())
    }

    /// Continues a frame, or begins it: seals at most `left` bytes of it, which it subtracts. Returns
    /// whether the frame is complete.
    fn seal_frame(&mut self, flags: u8, body: &[u8], left: &mut usize) -> Result<bool, Error> {
        let mut sealing = match self.sealing.take() {
            Some(sealing) => sealing,
            None => self.begin_frame(flags, body.len())?,
        };
        let rest = body.get(sealing.copied..).unwrap_or(&[]);
        let part = rest.get(..*left).unwrap_or(rest);
        self.wire.extend_from_slice(part);
        sealing.copied += part.len();
        *left = left.saturating_sub(part.len() + MESSAGE_OVERHEAD);
        let unsealed = self.wire.get_mut(sealing.sealed..).unwrap_or(&mut []);
        if sealing.copied < body.len() {
            sealing.sealed += sealing.stream.seal(unsealed);
            self.sealing = Some(sealing);
            return Ok(false);
        }
        #[cfg(fuzzing)]
        super::repeatable::tamper(unsealed);
        let tag = sealing.stream.finish_seal(unsealed);
        if let Some(space) = self.wire.get_mut(sealing.tag..)
            && let Some(space) = space.first_chunk_mut()
        {
            *space = tag;
        }
        Ok(true)
    }

    /// Appends everything before the body of a frame.
    fn begin_frame(&mut self, flags: u8, body_size: usize) -> Result<Sealing, Error> {
        let nonce = self
            .send_nonce
            .checked_add(1)
            .ok_or(bad("nonces used up"))?;
        self.send_nonce = nonce;
        let frame = self.wire.len();
        if body_size >= SEALED_BYTES_MAX {
            self.wire
                .reserve_exact(FRAME_HEAD_SIZE_MAX + MESSAGE_OVERHEAD + body_size);
        }
        // libzmq sends MESSAGE as a message frame, although RFC 25 requires a command.
        encode_head(&mut self.wire, MESSAGE_OVERHEAD + body_size, false, false);
        self.wire.extend_from_slice(b"\x07MESSAGE");
        append_u64(&mut self.wire, nonce);
        let tag = self.wire.len();
        self.wire.extend_from_slice(&[0; TAG_SIZE]);
        self.wire.push(flags);
        Ok(Sealing {
            stream: BoxStream::new(&self.key, &short_nonce(self.send_prefix, nonce)),
            frame,
            tag,
            sealed: tag + TAG_SIZE,
            copied: 0,
        })
    }

    /// Moves `wire` to its start when enough of it is written.
    fn drop_written(&mut self) {
        if self.wire_written < SEALED_BYTES_MAX {
            return;
        }
        let written = std::mem::take(&mut self.wire_written);
        self.wire.drain(..written);
        self.wire_start += written as u64;
        if let Some(sealing) = &mut self.sealing {
            sealing.frame -= written;
            sealing.tag -= written;
            sealing.sealed -= written;
        }
    }

    /// Reports that the kernel accepted `count` bytes. Returns the size in the queue of the
    /// messages that are now completely written.
    pub(in crate::zmtp) fn handle_written(&mut self, count: usize) -> u64 {
        self.wire_written = self.wire.len().min(self.wire_written + count);
        let written = self.wire_start + self.wire_written as u64;
        let mut done = 0;
        while let Some(&(end, bytes)) = self.marks.front() {
            if end > written {
                break;
            }
            done += bytes;
            self.marks.pop_front();
        }
        self.taken -= done;
        if self.wire_written == self.wire.len() {
            self.wire_start = written;
            self.wire_written = 0;
            if self.wire.capacity() > 2 * SEALED_BYTES_MAX {
                self.wire = Vec::new();
            }
            self.wire.clear();
        }
        done
    }

    /// Frees unused memory.
    pub(in crate::zmtp) fn release_idle(&mut self) {
        if self.wire.is_empty() {
            self.wire = Vec::new();
            self.marks = VecDeque::new();
        }
    }

    /// Decrypts the body of a MESSAGE in place, of which `body` is the received part and `size` the
    /// complete size. `None` if bytes are missing: a large part is decrypted now, and the next call,
    /// with the same frame, continues behind it.
    pub(in crate::zmtp) fn open(
        &mut self,
        body: &mut [u8],
        size: usize,
    ) -> Result<Option<Inner>, Error> {
        if size < MESSAGE_OVERHEAD {
            return Err(bad("MESSAGE of fewer than 33 bytes"));
        }
        let is_complete = body.len() >= size;
        let opened = self.opening.as_ref().map_or(0, |opening| opening.opened);
        if !is_complete && body.len() < opened + OPEN_SIZE_MIN {
            return Ok(None);
        }
        let Some((head, rest)) = body.split_at_mut_checked(BOX_START) else {
            return Ok(None);
        };
        let Some((tag, sealed)) = rest.split_first_chunk_mut::<TAG_SIZE>() else {
            return Ok(None);
        };
        let mut opening = match self.opening.take() {
            Some(opening) => opening,
            None => self.begin_open(head)?,
        };
        let unopened = sealed.get_mut(opening.opened..).unwrap_or(&mut []);
        if !is_complete {
            opening.opened += opening.stream.open(unopened);
            self.opening = Some(opening);
            return Ok(None);
        }
        if !opening.stream.finish_open(unopened, tag) {
            return Err(bad("MESSAGE does not open"));
        }
        self.receive_nonce = opening.nonce;
        let flags = sealed.first().copied().unwrap_or(0);
        if flags & !(INNER_MORE | INNER_COMMAND) != 0 || flags == INNER_MORE | INNER_COMMAND {
            return Err(Error::ReservedFlags { flags });
        }
        Ok(Some(Inner {
            more: flags & INNER_MORE != 0,
            command: flags & INNER_COMMAND != 0,
        }))
    }

    fn begin_open(&self, head: &[u8]) -> Result<Opening, Error> {
        let Some((b"\x07MESSAGE", nonce)) = head.split_first_chunk() else {
            return Err(bad("MESSAGE expected"));
        };
        let nonce = Cursor::new(nonce).u64().ok_or(bad("MESSAGE cut short"))?;
        if nonce <= self.receive_nonce {
            return Err(bad("MESSAGE with a nonce that was used"));
        }
        Ok(Opening {
            stream: BoxStream::new(&self.key, &short_nonce(self.receive_prefix, nonce)),
            nonce,
            opened: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> [Sealed; 2] {
        let key = || Box::new(BoxKey::new(&[5; 32]));
        let (ours, theirs) = (b"CurveZMQMESSAGEC", b"CurveZMQMESSAGES");
        [
            Sealed::new(key(), ours, 2, theirs, 1),
            Sealed::new(key(), theirs, 1, ours, 2),
        ]
    }

    /// A PING that is queued while a message is sealed in parts is sealed behind the message.
    #[test]
    fn a_large_frame_is_sealed_and_opened_in_parts() {
        const SIZE: usize = 1 << 20;
        const PART: usize = 100_000;
        let [mut sender, mut receiver] = pair();
        let body: Vec<u8> = (0..SIZE).map(|index| (index % 251) as u8).collect();
        let mut queue = SendQueue::new();
        queue.push(&[b"first", &body]);
        queue.push(&[b"next"]);
        let mut control = Vec::new();
        let mut calls = 0;
        let first = 9 - 7 + MESSAGE_OVERHEAD + 5;
        while sender.pending().len() < SIZE {
            assert_eq!(sender.pending().len(), if calls == 0 { 0 } else { first });
            let sealed = sender.seal(&mut control, &queue, PART).unwrap();
            assert!(sealed <= PART, "{sealed}");
            if calls == 1 {
                encode_head(&mut control, 7, false, true);
                control.extend_from_slice(b"\x04PING\0\0");
            }
            calls += 1;
        }
        assert_eq!(calls, SIZE.div_ceil(PART - MESSAGE_OVERHEAD));
        let mut wire = sender.pending().to_vec();
        queue.advance(sender.handle_written(wire.len()));
        assert_eq!(queue.message_count(), 1);
        sender.seal(&mut control, &queue, PART).unwrap();
        wire.extend_from_slice(sender.pending());
        assert!(control.is_empty());

        let mut frames = Vec::new();
        let mut at = 0;
        while at < wire.len() {
            let Ok(HeadResult::Head(head)) = Head::decode(&wire[at..]) else {
                panic!("no head at {at}");
            };
            let frame = &mut wire[at + head.head_size..][..head.body_len()];
            let size = frame.len();
            let mut inner = None;
            for end in (PART..size).step_by(PART).chain([size]) {
                assert_eq!(inner, None);
                inner = receiver.open(&mut frame[..end], size).unwrap();
                // What has arrived is decrypted, except for what is not a whole block.
                let opened = receiver.opening.as_ref().map_or(end, |part| part.opened);
                assert!(opened + MESSAGE_OVERHEAD + 64 > end, "{opened} of {end}");
            }
            frames.push((inner.unwrap(), frame[MESSAGE_OVERHEAD..].to_vec()));
            at += head.head_size + size;
        }
        let inner = |more, command| Inner { more, command };
        assert_eq!(frames[0], (inner(true, false), b"first".to_vec()));
        assert!(frames[1] == (inner(false, false), body));
        assert_eq!(frames[2], (inner(false, true), b"\x04PING\0\0".to_vec()));
        assert_eq!(frames[3], (inner(false, false), b"next".to_vec()));
    }

    /// Neither a changed byte that was decrypted before the frame was complete nor a wrong nonce or
    /// name passes.
    #[test]
    fn a_frame_that_is_opened_in_parts_is_authenticated() {
        let body = vec![1; 300_000];
        for (position, expected) in [
            (0, "MESSAGE expected"),
            (15, "MESSAGE with a nonce that was used"),
            (20, "MESSAGE does not open"),
            (100, "MESSAGE does not open"),
            (299_999, "MESSAGE does not open"),
        ] {
            let [mut sender, mut receiver] = pair();
            let mut queue = SendQueue::new();
            queue.push(&[&body]);
            sender
                .seal(&mut Vec::new(), &queue, usize::MAX)
                .map(drop)
                .unwrap();
            let mut frame = sender.pending()[9..].to_vec();
            frame[position] ^= 3;
            let size = frame.len();
            let result = receiver.open(&mut frame[..200_000], size);
            let result = result.and_then(|inner| {
                assert_eq!(inner, None);
                receiver.open(&mut frame, size)
            });
            assert_eq!(result, Err(bad(expected)), "{position}");
        }
    }
}
