//! Leases of a worker's attempts, and receipts that are not acknowledged: a state machine without I/O.
//!
//! It has no socket and no clock. The event loop numbers its requests here, passes answers in, and checks
//! here before it publishes. If the sentinel does not answer requests (one of the reference system),
//! everything may be published, and receipts are sent once.
//!
//! Invariants:
//! - A lease counts from the time at which the answered request was sent, and ends with its connection.
//! - A receipt is kept until it is acknowledged. Until then its attempt is listed in `running`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::job::{Attempt, Lease, Receipt};
use crate::limits;
use crate::protocol::{Answer, PublishRequest};
use crate::reactor::BootTime;

/// A request that may still be answered.
#[derive(Clone, Copy, Debug)]
struct Sent {
    sequence: u64,
    at: BootTime,
}

/// An attempt that waits for the permission to publish into its exclusive sinks.
#[derive(Clone, Debug)]
struct Ask {
    sinks: Vec<String>,
    /// Permitted, after these attempts of other jobs have been barred.
    bar: Option<Vec<Attempt>>,
}

/// Leases and receipts, see the module's documentation.
#[derive(Debug, Default)]
pub struct Leases {
    next_sequence: u64,
    sent: VecDeque<Sent>,
    answered: Option<u64>,
    /// Until when each attempt may be published.
    until: BTreeMap<Attempt, BootTime>,
    asks: BTreeMap<Attempt, Ask>,
    /// Unacknowledged receipts, each with the time at which it was last sent.
    receipts: BTreeMap<Attempt, (Receipt, Option<BootTime>)>,
    /// Bound of a lease, as the sentinel last sent it.
    bound: Option<Duration>,
}

impl Leases {
    /// A connection began or ended. Leases of the earlier connection are void, and every receipt is due
    /// again.
    pub fn handle_connected(&mut self) {
        self.sent.clear();
        self.answered = None;
        self.until.clear();
        for ask in self.asks.values_mut() {
            ask.bar = None;
        }
        for (_, sent_at) in self.receipts.values_mut() {
            *sent_at = None;
        }
    }

    /// Numbers a request that is sent now.
    pub fn request(&mut self, now: BootTime) -> u64 {
        self.next_sequence += 1;
        if self.sent.len() >= limits::UNANSWERED_REQUESTS_MAX {
            self.sent.pop_front();
        }
        self.sent.push_back(Sent {
            sequence: self.next_sequence,
            at: now,
        });
        self.next_sequence
    }

    /// Number of the last request that was answered on this connection.
    pub fn answered(&self) -> Option<u64> {
        self.answered
    }

    /// Interval of requests: a quarter of a lease.
    pub fn interval(&self) -> Duration {
        let default = limits::WORKER_HEARTBEAT_INTERVAL;
        self.bound.map_or(default, |bound| {
            (bound / 4).clamp(limits::WORKER_HEARTBEAT_INTERVAL_MIN, default)
        })
    }

    fn sent_at(&self, sequence: u64) -> Option<BootTime> {
        let found = self.sent.iter().find(|sent| sent.sequence == sequence);
        found.map(|sent| sent.at)
    }

    /// A DISPATCH carried a first lease.
    pub fn handle_dispatch(&mut self, attempt: Attempt, lease: Lease) {
        self.bound = Some(lease.bound);
        if let Some(at) = self.sent_at(lease.request) {
            self.until.insert(attempt, at + lease.bound);
        }
    }

    /// An answer renews the leases that it lists. Returns the attempts that must stop.
    pub fn handle_answer(&mut self, answer: &Answer) -> Vec<Attempt> {
        let bound = Duration::from_millis(answer.lease_ms);
        self.bound = Some(bound);
        self.answered = self.answered.max(Some(answer.sequence));
        if let Some(at) = self.sent_at(answer.sequence) {
            for attempt in &answer.leases {
                let until = self.until.entry(*attempt).or_insert(at + bound);
                *until = (*until).max(at + bound);
            }
            for attempt in &answer.publish {
                if let Some(ask) = self.asks.get_mut(attempt) {
                    ask.bar = Some(answer.bar.clone());
                }
            }
        }
        // The answered request is kept, because a DISPATCH may count from it.
        self.sent.retain(|sent| sent.sequence >= answer.sequence);
        for attempt in answer.acknowledged.iter().chain(&answer.abort) {
            self.receipts.remove(attempt);
        }
        for attempt in &answer.abort {
            self.forget(*attempt);
        }
        answer.abort.clone()
    }

    /// Until when an attempt may be published. None without a lease, or while its exclusive sinks are not
    /// permitted.
    pub fn may_publish_until(&self, attempt: Attempt) -> Option<BootTime> {
        let is_given = self.asks.get(&attempt).is_none_or(|ask| ask.bar.is_some());
        self.until.get(&attempt).copied().filter(|_| is_given)
    }

    /// True if an attempt has no lease now and no request is unanswered that could give one.
    pub fn must_ask(&self, attempt: Attempt, now: BootTime) -> bool {
        let has_lease = self.until.get(&attempt).is_some_and(|until| *until > now);
        !has_lease && self.answered == Some(self.next_sequence)
    }

    /// Attempts of other jobs to bar before this one is published.
    pub fn to_bar(&self, attempt: Attempt) -> Vec<Attempt> {
        let ask = self.asks.get(&attempt);
        ask.and_then(|ask| ask.bar.clone()).unwrap_or_default()
    }

    /// An attempt is ready to publish into exclusive sinks. Returns true if that was not known before, so
    /// that a request is due at once.
    pub fn ask_exclusive(&mut self, attempt: Attempt, sinks: Vec<String>) -> bool {
        if sinks.is_empty() || self.asks.contains_key(&attempt) {
            return false;
        }
        self.asks.insert(attempt, Ask { sinks, bar: None });
        true
    }

    /// Attempts whose exclusive sinks are not permitted yet.
    pub fn publish_requests(&self) -> Vec<PublishRequest> {
        let waiting = self.asks.iter().filter(|(_, ask)| ask.bar.is_none());
        waiting
            .map(|(attempt, ask)| PublishRequest {
                attempt: *attempt,
                exclusive: ask.sinks.clone(),
            })
            .collect()
    }

    /// Removes the lease of an attempt that has ended here. Its receipt is kept.
    pub fn forget(&mut self, attempt: Attempt) {
        self.until.remove(&attempt);
        self.asks.remove(&attempt);
    }

    /// Keeps a receipt until it is acknowledged.
    pub fn owe(&mut self, attempt: Attempt, receipt: Receipt) {
        self.forget(attempt);
        self.receipts.insert(attempt, (receipt, None));
    }

    /// Attempts whose receipts are not acknowledged.
    pub fn owed(&self) -> impl Iterator<Item = Attempt> {
        self.receipts.keys().copied()
    }

    /// Receipts that are due: new ones, and those not acknowledged for `RECEIPT_RESEND_AFTER`.
    pub fn due_receipts(&mut self, now: BootTime) -> Vec<(Attempt, Receipt)> {
        let mut due = Vec::new();
        for (attempt, (receipt, sent_at)) in &mut self.receipts {
            if sent_at.is_none_or(|at| at + limits::RECEIPT_RESEND_AFTER <= now) {
                *sent_at = Some(now);
                due.push((*attempt, receipt.clone()));
            }
        }
        due
    }

    /// A receipt could not be queued, so it is due again.
    pub fn handle_unsent(&mut self, attempt: Attempt) {
        if let Some((_, sent_at)) = self.receipts.get_mut(&attempt) {
            *sent_at = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> BootTime {
        BootTime::after_boot(Duration::from_secs(1000 + seconds))
    }

    fn answer(sequence: u64, leases: &[Attempt]) -> Answer {
        Answer {
            sequence,
            lease_ms: 10_000,
            leases: leases.to_vec(),
            ..Answer::default()
        }
    }

    #[test]
    fn a_lease_counts_from_the_sending_of_the_answered_request() {
        let job = Attempt::new(5, 1);
        let mut leases = Leases::default();
        let first = leases.request(at(0));
        leases.handle_dispatch(
            job,
            Lease {
                bound: BOUND,
                request: first,
            },
        );
        assert_eq!(leases.may_publish_until(job), Some(at(10)));
        let second = leases.request(at(3));
        let third = leases.request(at(6));
        // An answer to an earlier request that arrives late does not extend the lease beyond its own bound.
        leases.handle_answer(&answer(second, &[job]));
        assert_eq!(leases.may_publish_until(job), Some(at(13)));
        leases.handle_answer(&answer(third, &[]));
        assert_eq!(
            leases.may_publish_until(job),
            Some(at(13)),
            "not listed: not renewed"
        );
        // A lease that counts from an unknown request is void.
        let other = Attempt::new(6, 1);
        leases.handle_dispatch(
            other,
            Lease {
                bound: BOUND,
                request: 99,
            },
        );
        assert_eq!(leases.may_publish_until(other), None);
        assert_eq!(leases.interval(), Duration::from_millis(2500));
    }

    #[test]
    fn a_reconnect_voids_leases_and_makes_receipts_due_again() {
        let (job, done) = (Attempt::new(5, 1), Attempt::new(6, 2));
        let mut leases = Leases::default();
        let first = leases.request(at(0));
        leases.handle_answer(&answer(first, &[job, done]));
        leases.owe(done, Receipt::default());
        assert_eq!(leases.due_receipts(at(0)).len(), 1);
        assert!(leases.due_receipts(at(1)).is_empty());
        leases.handle_connected();
        assert_eq!(leases.answered(), None);
        assert_eq!(leases.may_publish_until(job), None);
        assert_eq!(leases.due_receipts(at(1)).len(), 1);
        // An answer to a request of the earlier connection gives no lease.
        leases.handle_answer(&answer(first, &[job]));
        assert_eq!(leases.may_publish_until(job), None);
        let mut acknowledges = answer(first, &[]);
        acknowledges.acknowledged.push(done);
        leases.handle_answer(&acknowledges);
        assert_eq!(leases.owed().count(), 0);
    }

    #[test]
    fn exclusive_sinks_are_asked_for_until_they_are_given() {
        let job = Attempt::new(5, 1);
        let mut leases = Leases::default();
        let first = leases.request(at(0));
        leases.handle_answer(&answer(first, &[job]));
        assert!(leases.ask_exclusive(job, vec!["parquet://o".into()]));
        assert!(!leases.ask_exclusive(job, vec!["parquet://o".into()]));
        assert_eq!(leases.may_publish_until(job), None);
        assert_eq!(leases.publish_requests().len(), 1);
        let second = leases.request(at(1));
        let mut given = answer(second, &[job]);
        given.publish.push(job);
        given.bar.push(Attempt::new(4, 7));
        leases.handle_answer(&given);
        assert_eq!(leases.may_publish_until(job), Some(at(11)));
        assert_eq!(leases.to_bar(job), [Attempt::new(4, 7)]);
        assert!(leases.publish_requests().is_empty());
        leases.handle_connected();
        assert_eq!(
            leases.publish_requests().len(),
            1,
            "asked again on the next connection"
        );
    }

    #[test]
    fn an_abort_drops_what_is_owed() {
        let job = Attempt::new(5, 1);
        let mut leases = Leases::default();
        let first = leases.request(at(0));
        leases.owe(job, Receipt::default());
        let mut stop = answer(first, &[]);
        stop.abort.push(job);
        assert_eq!(leases.handle_answer(&stop), [job]);
        assert_eq!(leases.owed().count(), 0);
    }
}
