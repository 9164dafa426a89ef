//! The queue of lifecycle events that the owner has not read.

use std::collections::VecDeque;

use crate::limits::SOCKET_EVENTS_MAX;
use crate::socket::Event;

/// Events in the order in which they happened, in two bounded queues: connections that come and go
/// without a completed handshake cannot push out the events of others.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// Events of peers and listeners, with their numbers.
    known: VecDeque<(u64, Event)>,
    /// Events of accepted connections whose handshake is not done.
    strangers: VecDeque<(u64, Event)>,
    next: u64,
    dropped: u64,
}

impl Events {
    pub(super) fn push(&mut self, event: Event) {
        let queue = match &event {
            Event::Accepted { .. } | Event::AcceptFailed { .. } | Event::HandshakeFailed { .. } => {
                &mut self.strangers
            }
            _ => &mut self.known,
        };
        if queue.len() >= SOCKET_EVENTS_MAX {
            queue.pop_front();
            self.dropped += 1;
        }
        queue.push_back((self.next, event));
        self.next += 1;
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        let first = |queue: &VecDeque<(u64, Event)>| queue.front().map(|(number, _)| *number);
        let queue = match (first(&self.known), first(&self.strangers)) {
            (Some(known), Some(stranger)) if stranger < known => &mut self.strangers,
            (Some(_), _) => &mut self.known,
            (None, _) => &mut self.strangers,
        };
        queue.pop_front().map(|(_, event)| event)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty() && self.strangers.is_empty()
    }

    /// The number of events dropped because too many were unread.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}
