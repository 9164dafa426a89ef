//! Deadlines and heartbeats (RFC 37 §3.6).

use std::time::Instant;

use super::super::command::encode_ping;
use super::{CONTROL_PENDING_MAX, Connection, State};
use crate::limits::after;
use crate::zmtp::Error;

impl Connection {
    /// The earliest time at which [`Connection::handle_timeout`] must be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Greeting | State::Handshake => Some(self.handshake_deadline),
            State::Open => [
                self.ping_at,
                self.pong_deadline,
                self.peer_ttl.map(|ttl| after(self.received_at, ttl)),
            ]
            .into_iter()
            .flatten()
            .min(),
            State::Refused | State::Failed => None,
        }
    }

    /// Whether a deadline has passed, so that [`Connection::handle_timeout`] fails unless bytes are
    /// unread.
    pub fn is_overdue(&self, now: Instant) -> bool {
        let due = |deadline: Option<Instant>| deadline.is_some_and(|at| at <= now);
        match self.state {
            State::Refused | State::Failed => false,
            State::Greeting | State::Handshake => now >= self.handshake_deadline,
            State::Open => {
                due(self.pong_deadline)
                    || due(self.peer_ttl.map(|ttl| after(self.received_at, ttl)))
            }
        }
    }

    /// Queues a PING that is due, and fails when a deadline has passed.
    ///
    /// `is_unread`: bytes from the peer may be waiting unread. Then deadlines are ignored, because
    /// the delay may be ours.
    pub fn handle_timeout(&mut self, now: Instant, is_unread: bool) -> Result<(), Error> {
        let is_open = self.state == State::Open;
        if !is_unread && self.is_overdue(now) {
            self.state = State::Failed;
            return Err(match is_open {
                true => Error::HeartbeatTimeout,
                false => Error::HandshakeTimeout,
            });
        }
        if is_open
            && self.ping_at.is_some_and(|at| at <= now)
            && let Some(heartbeat) = self.config.heartbeat
        {
            let ttl = u16::try_from(heartbeat.ttl.as_millis() / 100).unwrap_or(u16::MAX);
            // While a PING waits behind a large message, no second one is queued.
            if !self.ping_unwritten
                && self.control.len() - self.control_written < CONTROL_PENDING_MAX
            {
                encode_ping(&mut self.control, ttl);
            }
            self.ping_at = Some(after(now, heartbeat.interval));
            if self.pong_deadline.is_none() && self.answers_pings {
                self.pong_deadline = Some(after(now, heartbeat.timeout));
                self.ping_unwritten = true;
            }
            self.received.release_if_empty();
            #[cfg(feature = "curve")]
            if let Some(sealed) = &mut self.sealed {
                sealed.release_idle();
            }
        }
        Ok(())
    }
}
