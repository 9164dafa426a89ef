//! Decides when a fork server is given up: a state machine without I/O.
//!
//! A fork server must finish its imports, and then answer every request and ping, within deadlines. It is
//! pinged while jobs need it. When a deadline has passed, a short extension follows: after a pause of the
//! worker itself or of the machine, an answer may already have been sent.

use std::time::Duration;

use crate::limits;
use crate::reactor::BootTime;

/// Deadlines of one fork server, see the module's documentation.
#[derive(Debug)]
pub(super) struct Watchdog {
    ready: bool,
    /// Number of messages without an answer.
    unanswered: u32,
    /// When an answer, or the end of the imports, is due.
    deadline: Option<BootTime>,
    reprieved: bool,
    ping_at: BootTime,
}

/// An action for the event loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Send a ping, and report it by [`Watchdog::handle_sent`].
    Ping,
    /// Kill the fork server.
    GiveUp,
}

impl Watchdog {
    /// A fork server that was just started.
    pub(super) fn new(start_timeout: Duration, now: BootTime) -> Self {
        Watchdog {
            ready: false,
            unanswered: 0,
            deadline: Some(now + start_timeout),
            reprieved: false,
            ping_at: now + limits::FORK_SERVER_PING_INTERVAL,
        }
    }

    /// True once its imports are done.
    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// A request or a ping was sent.
    pub(super) fn handle_sent(&mut self, now: BootTime) {
        self.unanswered = self.unanswered.saturating_add(1);
        if self.deadline.is_none() {
            self.deadline = Some(now + limits::FORK_SERVER_ANSWER_TIMEOUT);
        }
    }

    /// Its imports are done.
    pub(super) fn handle_ready(&mut self, now: BootTime) {
        self.ready = true;
        self.note_message(now);
    }

    /// A message was received. `answers` = it answers a request or a ping.
    pub(super) fn handle_message(&mut self, answers: bool, now: BootTime) {
        self.unanswered = self.unanswered.saturating_sub(u32::from(answers));
        if self.ready {
            self.note_message(now);
        }
    }

    /// The socket was closed. The process is exiting, which takes a short time.
    pub(super) fn handle_closed(&mut self, now: BootTime) {
        if !std::mem::replace(&mut self.reprieved, true) {
            self.deadline = Some(now + limits::FORK_SERVER_REPRIEVE);
        }
    }

    fn note_message(&mut self, now: BootTime) {
        self.reprieved = false;
        self.deadline = (self.unanswered > 0).then(|| now + limits::FORK_SERVER_ANSWER_TIMEOUT);
    }

    fn pings(&self, busy: bool) -> bool {
        self.ready && busy && self.unanswered == 0
    }

    /// When [`Watchdog::poll`] is due. `busy` = jobs need the fork server.
    pub(super) fn poll_timeout(&self, busy: bool) -> Option<BootTime> {
        let ping = self.pings(busy).then_some(self.ping_at);
        self.deadline.into_iter().chain(ping).min()
    }

    /// The action that is due.
    pub(super) fn poll(&mut self, busy: bool, now: BootTime) -> Option<Action> {
        if self.deadline.is_some_and(|at| at <= now) {
            if self.reprieved {
                return Some(Action::GiveUp);
            }
            self.reprieved = true;
            self.deadline = Some(now + limits::FORK_SERVER_REPRIEVE);
            return None;
        }
        if self.pings(busy) && self.ping_at <= now {
            self.ping_at = now + limits::FORK_SERVER_PING_INTERVAL;
            return Some(Action::Ping);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(60);

    /// Polls once a second. Returns the seconds after which the fork server is given up.
    fn given_up_after(watchdog: &mut Watchdog, from: BootTime, busy: bool) -> Option<u64> {
        (0..200).find(|seconds| {
            let now = from + Duration::from_secs(*seconds);
            match watchdog.poll(busy, now) {
                Some(Action::Ping) => {
                    watchdog.handle_sent(now);
                    false
                }
                Some(Action::GiveUp) => true,
                None => false,
            }
        })
    }

    #[test]
    fn imports_that_do_not_end_have_a_deadline() {
        let now = BootTime::default();
        let mut watchdog = Watchdog::new(START, now);
        // A request does not lengthen or shorten it.
        watchdog.handle_sent(now);
        assert_eq!(given_up_after(&mut watchdog, now, true), Some(62));
    }

    #[test]
    fn a_request_or_ping_without_an_answer_has_a_deadline() {
        let now = BootTime::default();
        let mut silent = Watchdog::new(START, now);
        silent.handle_ready(now);
        silent.handle_sent(now);
        assert_eq!(given_up_after(&mut silent, now, true), Some(12));
        let mut pinged = Watchdog::new(START, now);
        pinged.handle_ready(now);
        assert_eq!(given_up_after(&mut pinged, now, true), Some(17));
        let mut idle = Watchdog::new(START, now);
        idle.handle_ready(now);
        assert_eq!(given_up_after(&mut idle, now, false), None);
        assert_eq!(idle.poll_timeout(false), None);
    }

    #[test]
    fn one_that_is_closed_gets_a_moment_to_exit() {
        let now = BootTime::default();
        for is_ready in [false, true] {
            let mut watchdog = Watchdog::new(START, now);
            if is_ready {
                watchdog.handle_ready(now);
            }
            watchdog.handle_closed(now);
            // A second call does not extend the deadline.
            watchdog.handle_closed(now + Duration::from_secs(1));
            assert_eq!(given_up_after(&mut watchdog, now, true), Some(2));
        }
    }

    #[test]
    fn answers_keep_it_alive_also_after_a_pause_of_the_worker() {
        let mut now = BootTime::default();
        let mut watchdog = Watchdog::new(START, now);
        watchdog.handle_ready(now);
        for _ in 0..100 {
            now = now + limits::FORK_SERVER_PING_INTERVAL;
            assert_eq!(watchdog.poll(true, now), Some(Action::Ping));
            watchdog.handle_sent(now);
            // The machine was suspended: the answer is read only after the deadline has passed.
            now = now + Duration::from_secs(3600);
            assert_eq!(watchdog.poll(true, now), None);
            watchdog.handle_message(true, now);
            assert_eq!(watchdog.poll_timeout(true).map(|at| at < now), Some(true));
        }
    }
}
