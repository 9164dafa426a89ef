//! Bytes on their way out: a message that is cut, control bytes, further messages.

use std::io::IoSlice;
use std::time::Instant;

use zeroize::Zeroize;

use super::{Connection, State};
use crate::limits::after;
use crate::zmtp::{Error, SendQueue};

impl Connection {
    /// True when there is something to write now.
    #[inline]
    pub fn wants_write(&self, queue: &SendQueue) -> bool {
        let open = self.state == State::Open;
        let control = self.control_written < self.control.len();
        #[cfg(feature = "curve")]
        if let Some(sealed) = &self.sealed {
            // What is not sealed when the connection fails never will be.
            return !sealed.pending().is_empty() || (open && (control || !queue.is_empty()));
        }
        match open {
            true => control || !queue.is_empty(),
            // Nothing can follow a message that was cut.
            false => control && queue.unfinished() == 0,
        }
    }

    /// Makes what is to be written ready for [`Connection::gather`]; must come before it.
    ///
    /// With CURVE, control bytes and queued messages are sealed here, a bounded amount ahead
    /// of the kernel; otherwise nothing happens.
    #[inline]
    pub fn seal(&mut self, queue: &SendQueue) -> Result<(), Error> {
        #[cfg(feature = "curve")]
        if self.state == State::Open
            && let Some(sealed) = &mut self.sealed
        {
            return sealed.seal(&mut self.control, queue);
        }
        let _ = queue;
        Ok(())
    }

    /// Adds the next bytes to write to `out`, at most `slices_max` slices in all.
    ///
    /// A message that is partly on the wire is finished first, then control bytes go, then
    /// further messages; before the handshake is done only control bytes.
    pub fn gather<'a>(
        &'a self,
        queue: &'a SendQueue,
        slices_max: usize,
        out: &mut Vec<IoSlice<'a>>,
    ) {
        #[cfg(feature = "curve")]
        if let Some(sealed) = &self.sealed {
            if out.len() < slices_max && !sealed.pending().is_empty() {
                out.push(IoSlice::new(sealed.pending()));
            }
            return;
        }
        if !self.wants_write(queue) {
            return;
        }
        let open = self.state == State::Open;
        let unfinished = if open { queue.unfinished() } else { 0 };
        if unfinished > 0 {
            queue.gather(0, unfinished, slices_max, out);
            let gathered: u64 = out.iter().map(|slice| slice.len() as u64).sum();
            if gathered < unfinished {
                return;
            }
        }
        let control = self.control.get(self.control_written..).unwrap_or(&[]);
        if !control.is_empty() && out.len() < slices_max {
            out.push(IoSlice::new(control));
        }
        if open && out.len() < slices_max {
            queue.gather(unfinished, u64::MAX, slices_max, out);
        }
    }

    /// The kernel took the first `count` bytes of what [`Connection::gather`] gave.
    ///
    /// A PONG can be missed only from when its PING has left: it may have waited behind a large
    /// message, and a connection that takes bytes is alive.
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

    /// Whether the connection, if it ended now, would cut a message of the queue.
    pub(crate) fn is_within_message(&self, queue: &SendQueue) -> bool {
        #[cfg(feature = "curve")]
        if let Some(sealed) = &self.sealed {
            return sealed.is_within_message();
        }
        self.state == State::Open && queue.unfinished() > 0
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
        let pending = (self.control.len() - self.control_written) as u64;
        let control = pending.min(count);
        self.control_written += control as usize;
        if self.control_written == self.control.len() {
            // PLAIN's HELLO holds a password.
            self.control.zeroize();
            self.control = Vec::new();
            self.control_written = 0;
        }
        queue.advance(count - control);
    }
}
