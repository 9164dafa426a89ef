//! Traffic of an established CURVE connection: every frame is a MESSAGE (RFC 26 §5.4).

use std::collections::VecDeque;
use std::fmt;

use crypto_secretbox::XSalsa20Poly1305;

use super::{TAG_SIZE, bad, open_in_place, seal_in_place, short_nonce};
use crate::limits::SEALED_BYTES_MAX;
use crate::zmtp::cursor::{Cursor, append_u64};
use crate::zmtp::frame::{Head, HeadResult, encode_head};
use crate::zmtp::{Error, SendQueue};

/// Number of bytes that MESSAGE adds to a frame's body: name 8, nonce 8, tag 16, flags 1.
pub(in crate::zmtp) const MESSAGE_OVERHEAD: usize = 33;
/// Offset of the box in a MESSAGE body.
const BOX_START: usize = 16;

const INNER_MORE: u8 = 0b01;
const INNER_COMMAND: u8 = 0b10;

/// Flags of a decrypted MESSAGE. The frame's body follows the first [`MESSAGE_OVERHEAD`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::zmtp) struct Inner {
    pub(in crate::zmtp) more: bool,
    pub(in crate::zmtp) command: bool,
}

/// The cipher, the two nonces, and frames that are sealed but not yet written.
///
/// Nonces must increase on the wire. So frames are written in the order in which they were sealed,
/// and everything else waits behind them.
pub(in crate::zmtp) struct Sealed {
    cipher: Box<XSalsa20Poly1305>,
    send_prefix: &'static [u8; 16],
    send_nonce: u64,
    receive_prefix: &'static [u8; 16],
    receive_nonce: u64,
    wire: Vec<u8>,
    wire_written: usize,
    /// Number of bytes written before the first byte of `wire`.
    wire_start: u64,
    /// For each sealed message: the position of its end, counted like `wire_start`, and its size in
    /// the queue in bytes.
    marks: VecDeque<(u64, u64)>,
    /// Bytes of the queue that are sealed and belong to messages that are not completely written.
    taken: u64,
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
        cipher: Box<XSalsa20Poly1305>,
        send_prefix: &'static [u8; 16],
        send_nonce: u64,
        receive_prefix: &'static [u8; 16],
        receive_nonce: u64,
    ) -> Self {
        Sealed {
            cipher,
            send_prefix,
            send_nonce,
            receive_prefix,
            receive_nonce,
            wire: Vec::new(),
            wire_written: 0,
            wire_start: 0,
            marks: VecDeque::new(),
            taken: 0,
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
        self.wire.get(self.wire_written..).unwrap_or(&[])
    }

    /// Adds unwritten plaintext bytes of the handshake, which must be written before sealed frames.
    pub(in crate::zmtp) fn carry(&mut self, bytes: &[u8]) {
        self.wire.extend_from_slice(bytes);
    }

    /// Seals the command frames in `control`, then queued messages, until `SEALED_BYTES_MAX` bytes
    /// are unwritten. While so many bytes are unwritten already, `control` stays unchanged;
    /// otherwise all of it is consumed. So a peer that sends PINGs and never reads cannot make
    /// `wire` grow.
    pub(in crate::zmtp) fn seal(
        &mut self,
        control: &mut Vec<u8>,
        queue: &SendQueue,
    ) -> Result<(), Error> {
        if self.pending().len() >= SEALED_BYTES_MAX {
            return Ok(());
        }
        let mut rest = std::mem::take(control);
        let mut commands = rest.as_mut_slice();
        while let Ok(HeadResult::Head(head)) = Head::decode(commands) {
            let size = head.head_size.saturating_add(head.body_len());
            let Some((frame, others)) = commands.split_at_mut_checked(size) else {
                break;
            };
            self.frame(INNER_COMMAND, frame.get(head.head_size..).unwrap_or(&[]))?;
            commands = others;
        }
        if self.wire_written >= SEALED_BYTES_MAX {
            self.wire.drain(..self.wire_written);
            self.wire_start += self.wire_written as u64;
            self.wire_written = 0;
        }
        let mut message_bytes = 0u64;
        let mut sealed_bytes = 0u64;
        for (head, body) in queue.frames(self.taken) {
            self.frame(if head.more { INNER_MORE } else { 0 }, body)?;
            message_bytes += (head.head_size + body.len()) as u64;
            if !head.more {
                let end = self.wire_start + self.wire.len() as u64;
                self.marks.push_back((end, message_bytes));
                sealed_bytes += message_bytes;
                message_bytes = 0;
                if self.pending().len() >= SEALED_BYTES_MAX {
                    break;
                }
            }
        }
        self.taken += sealed_bytes;
        Ok(())
    }

    fn frame(&mut self, flags: u8, body: &[u8]) -> Result<(), Error> {
        let nonce = self
            .send_nonce
            .checked_add(1)
            .ok_or(bad("nonces used up"))?;
        self.send_nonce = nonce;
        // libzmq sends MESSAGE as a message frame, although RFC 25 requires a command.
        encode_head(&mut self.wire, MESSAGE_OVERHEAD + body.len(), false, false);
        self.wire.extend_from_slice(b"\x07MESSAGE");
        append_u64(&mut self.wire, nonce);
        let start = self.wire.len();
        self.wire.extend_from_slice(&[0; TAG_SIZE]);
        self.wire.push(flags);
        self.wire.extend_from_slice(body);
        let sealed = self.wire.get_mut(start..).unwrap_or(&mut []);
        seal_in_place(&self.cipher, short_nonce(self.send_prefix, nonce), sealed)
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

    /// Decrypts a MESSAGE body in place.
    pub(in crate::zmtp) fn open(&mut self, body: &mut [u8]) -> Result<Inner, Error> {
        if body.len() < MESSAGE_OVERHEAD {
            return Err(bad("MESSAGE of fewer than 33 bytes"));
        }
        let (head, sealed) = body
            .split_at_mut_checked(BOX_START)
            .ok_or(bad("MESSAGE cut short"))?;
        let Some((b"\x07MESSAGE", nonce)) = head.split_first_chunk() else {
            return Err(bad("MESSAGE expected"));
        };
        let nonce = Cursor::new(nonce).u64().ok_or(bad("MESSAGE cut short"))?;
        if nonce <= self.receive_nonce {
            return Err(bad("MESSAGE with a nonce that was used"));
        }
        let plain = open_in_place(
            &self.cipher,
            short_nonce(self.receive_prefix, nonce),
            sealed,
        )
        .ok_or(bad("MESSAGE does not open"))?;
        self.receive_nonce = nonce;
        let flags = plain.first().copied().unwrap_or(0);
        if flags & !(INNER_MORE | INNER_COMMAND) != 0 || flags == INNER_MORE | INNER_COMMAND {
            return Err(Error::ReservedFlags { flags });
        }
        Ok(Inner {
            more: flags & INNER_MORE != 0,
            command: flags & INNER_COMMAND != 0,
        })
    }
}
