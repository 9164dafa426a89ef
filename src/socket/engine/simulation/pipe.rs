//! A simulated connection: two directions with delays, bounded buffers, ends and resets.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::action::{LinkId, Read, Readiness, Written};
use crate::socket::TransportError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    pub(super) fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

/// What one side receives.
#[derive(Debug, Default)]
struct Inbox {
    owner: Option<(usize, LinkId)>,
    in_flight: VecDeque<(Instant, Vec<u8>)>,
    in_flight_bytes: usize,
    unread: VecDeque<u8>,
    /// When the end of the stream arrives.
    ends_at: Option<Instant>,
    has_ended: bool,
    is_reset: bool,
    is_closed: bool,
    /// The owner of this side could not write all it wanted to.
    is_blocked: bool,
    /// No bytes arrive before this time.
    last_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Pipe {
    capacity: usize,
    inboxes: [Inbox; 2],
}

impl Pipe {
    pub(super) fn new(capacity: usize) -> Self {
        Pipe {
            capacity,
            inboxes: [Inbox::default(), Inbox::default()],
        }
    }

    fn inbox(&mut self, side: Side) -> &mut Inbox {
        &mut self.inboxes[side as usize]
    }

    pub(super) fn own(&mut self, side: Side, node: usize, link: LinkId) {
        self.inbox(side).owner = Some((node, link));
    }

    pub(super) fn owner(&self, side: Side) -> Option<(usize, LinkId)> {
        self.inboxes[side as usize].owner
    }

    /// A time not before the last arrival in this direction.
    fn in_order(&mut self, side: Side, at: Instant) -> Instant {
        let inbox = self.inbox(side);
        let at = inbox.last_at.map_or(at, |last| at.max(last));
        inbox.last_at = Some(at);
        at
    }

    /// Something may have arrived at a side.
    pub(super) fn arrive(&mut self, side: Side, now: Instant) -> Readiness {
        let used = {
            let other = &self.inboxes[side.other() as usize];
            other.in_flight_bytes + other.unread.len()
        };
        let capacity = self.capacity;
        let inbox = self.inbox(side);
        let mut readiness = Readiness::default();
        while inbox.in_flight.front().is_some_and(|(at, _)| *at <= now)
            && let Some((_, bytes)) = inbox.in_flight.pop_front()
        {
            inbox.in_flight_bytes -= bytes.len();
            inbox.unread.extend(bytes);
            readiness.is_readable = true;
        }
        if inbox.in_flight.is_empty()
            && inbox.ends_at.is_some_and(|at| at <= now)
            && !inbox.has_ended
        {
            inbox.has_ended = true;
            readiness.is_readable = true;
            readiness.is_ended = true;
        }
        if inbox.is_reset {
            readiness.is_readable = true;
            readiness.is_ended = true;
        }
        if inbox.is_blocked && (used < capacity || inbox.is_reset) {
            inbox.is_blocked = false;
            readiness.is_writable = true;
        }
        readiness
    }

    pub(super) fn read(&mut self, side: Side, into: &mut [u8]) -> Read {
        let inbox = self.inbox(side);
        let count = inbox.unread.len().min(into.len());
        if count > 0 {
            for (to, from) in into.iter_mut().zip(inbox.unread.drain(..count)) {
                *to = from;
            }
            return Read::Bytes(count);
        }
        if inbox.is_reset {
            return Read::Failed(TransportError::timed_out("reset".to_owned()));
        }
        match inbox.has_ended {
            true => Read::End,
            false => Read::Blocked,
        }
    }

    pub(super) fn has_unread(&self, side: Side) -> bool {
        !self.inboxes[side as usize].unread.is_empty()
    }

    /// A side waits for room.
    pub(super) fn note_blocked(&mut self, side: Side) {
        self.inbox(side).is_blocked = true;
    }

    /// Writes by `side`, to arrive at `at` or later. Returns when they arrive.
    pub(super) fn write(&mut self, side: Side, bytes: &[u8], at: Instant) -> (Written, Instant) {
        if self.inbox(side).is_reset {
            return (
                Written::Failed(TransportError::timed_out("reset".to_owned())),
                at,
            );
        }
        let at = self.in_order(side.other(), at);
        let capacity = self.capacity;
        let inbox = self.inbox(side.other());
        if inbox.is_closed {
            // The bytes are lost, and the writer gets a reset.
            self.inbox(side).is_reset = true;
            return (Written::Bytes(bytes.len() as u64), at);
        }
        let room = capacity.saturating_sub(inbox.in_flight_bytes + inbox.unread.len());
        let count = room.min(bytes.len());
        if count == 0 {
            self.inbox(side).is_blocked = true;
            return (Written::Blocked, at);
        }
        inbox.in_flight_bytes += count;
        inbox.in_flight.push_back((at, bytes[..count].to_vec()));
        (Written::Bytes(count as u64), at)
    }

    /// `side` shuts down its sending direction.
    pub(super) fn end(&mut self, side: Side, at: Instant) -> Instant {
        let at = self.in_order(side.other(), at);
        let inbox = self.inbox(side.other());
        inbox.ends_at.get_or_insert(at);
        at
    }

    /// `side` closes the connection. With unread bytes, the other side gets a reset.
    pub(super) fn close(&mut self, side: Side, at: Instant) -> Instant {
        let at = self.end(side, at);
        let inbox = self.inbox(side);
        inbox.is_closed = true;
        inbox.owner = None;
        let resets = !inbox.unread.is_empty() || !inbox.in_flight.is_empty();
        if resets {
            self.inbox(side.other()).is_reset = true;
        }
        at
    }

    /// A side sees a reset; bytes in flight to it are lost.
    pub(super) fn reset(&mut self, side: Side) {
        let inbox = self.inbox(side);
        inbox.is_reset = true;
        inbox.in_flight.clear();
        inbox.in_flight_bytes = 0;
    }
}
