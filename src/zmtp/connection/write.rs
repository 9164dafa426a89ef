//! Output of a connection: the rest of a partly written message, control bytes, further messages.

use std::time::Instant;

use zeroize::Zeroize;

use super::{Connection, State};
use crate::limits::after;
use crate::zmtp::{Error, SendQueue, Slices};

impl Connection {
    /// True when there is something to write now.
    #[inline]
    pub fn wants_write(&self, queue: &SendQueue) -> bool {
        let open = self.state == State::Open;
        let control = self.control_written < self.control.len();
        #[cfg(feature = "curve")]
        if let Some(sealed) = &self.sealed {
            // After a failure only bytes that are already sealed are written, after a refusal none.
            return self.state != State::Refused
                && (!sealed.pending().is_empty() || (open && (control || !queue.is_empty())));
        }
        match open {
            true => control || !queue.is_empty(),
            // Control bytes cannot follow a partly written message.
            false => control && queue.unfinished() == 0,
        }
    }

    /// Prepares output for [`Connection::gather`]; must be called before it.
    ///
    /// With CURVE, control bytes and queued messages are sealed here, until `bytes_max` bytes are
    /// sealed or a limit of unwritten sealed bytes is reached. Returns how many were sealed. A frame
    /// is written only when all of it is sealed. Without CURVE this does nothing.
    #[inline]
    pub fn seal(&mut self, queue: &SendQueue, bytes_max: usize) -> Result<usize, Error> {
        #[cfg(feature = "curve")]
        if self.state == State::Open
            && let Some(sealed) = &mut self.sealed
        {
            return sealed.seal(&mut self.control, queue, bytes_max);
        }
        let _ = (queue, bytes_max);
        Ok(0)
    }

    /// Whether [`Connection::seal`] must be called again before there are bytes to write.
    #[inline]
    pub fn needs_seal(&self) -> bool {
        #[cfg(feature = "curve")]
        if let Some(sealed) = &self.sealed {
            return self.state == State::Open && sealed.pending().is_empty();
        }
        false
    }

    /// Adds the next bytes to write to `out`, as far as it has room.
    ///
    /// A partly written message is finished first. Control bytes follow, then further messages.
    /// Before the handshake is done, there are only control bytes.
    #[inline]
    pub fn gather<'a>(&'a self, queue: &'a SendQueue, out: &mut Slices<'a>) {
        #[cfg(feature = "curve")]
        if let Some(sealed) = &self.sealed {
            if self.state != State::Refused {
                out.push(sealed.pending());
            }
            return;
        }
        if !self.wants_write(queue) {
            return;
        }
        let open = self.state == State::Open;
        let unfinished = if open { queue.unfinished() } else { 0 };
        if unfinished > 0 {
            queue.gather(0, unfinished, out);
            if out.size() < unfinished {
                return;
            }
        }
        out.push(self.control.get(self.control_written..).unwrap_or(&[]));
        if open {
            queue.gather(unfinished, u64::MAX, out);
        }
    }

    /// Reports that the kernel accepted the first `count` bytes of [`Connection::gather`].
    ///
    /// Until a PING is written completely, each write postpones the deadline of its PONG: the PING
    /// may wait behind a large message, and a connection that accepts bytes is alive.
    pub fn handle_written(&mut self, queue: &mut SendQueue, count: usize, now: Instant) {
        if self.ping_unwritten
            && count > 0
            && let Some(heartbeat) = self.config.heartbeat
        {
            let deadline = after(now, heartbeat.timeout);
            self.pong_deadline = self.pong_deadline.map(|_| deadline);
        }
        self.advance(queue, count);
        self.ping_unwritten &= !self.control_is_written();
    }

    /// Whether a message of the queue is partly written on this connection.
    pub(crate) fn is_within_message(&self, queue: &SendQueue) -> bool {
        #[cfg(feature = "curve")]
        if let Some(sealed) = &self.sealed {
            return sealed.is_within_message();
        }
        self.state == State::Open && queue.unfinished() > 0
    }

    /// A copy of the bytes that may still be written on a connection that has failed or was refused:
    /// unwritten control bytes, unless a message is partly written before them.
    pub fn last_bytes(&self, queue: &SendQueue) -> Vec<u8> {
        let mut slices = Slices::new();
        if self.state != State::Open && self.wants_write(queue) {
            self.gather(queue, &mut slices);
        }
        slices.iter().flatten().copied().collect()
    }

    fn control_is_written(&self) -> bool {
        #[cfg(feature = "curve")]
        if let Some(sealed) = &self.sealed
            && !sealed.pending().is_empty()
        {
            return false;
        }
        self.control_written >= self.control.len()
    }

    fn advance(&mut self, queue: &mut SendQueue, count: usize) {
        #[cfg(feature = "curve")]
        if let Some(sealed) = &mut self.sealed {
            queue.advance(sealed.handle_written(count));
            return;
        }
        let mut count = count as u64;
        let open = self.state == State::Open;
        let unfinished = if open {
            queue.unfinished().min(count)
        } else {
            0
        };
        queue.advance(unfinished);
        count -= unfinished;
        let pending = self.control.len() - self.control_written;
        let control = pending.min(usize::try_from(count).unwrap_or(usize::MAX));
        self.control_written += control;
        if self.control_written == self.control.len() {
            // PLAIN's HELLO contains a password.
            self.control.zeroize();
            self.control = Vec::new();
            self.control_written = 0;
        }
        queue.advance(count - control as u64);
    }
}
