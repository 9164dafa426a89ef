//! Sinks that one attempt at a time may publish into (modes `replace` and `error`).
//!
//! An attempt keeps its sinks until it ends. When it ends without a report of its worker, the
//! worker may be paused within its publishing, so the next attempts that get one of the sinks
//! must bar it on the storage first. The same holds for a report with the cause `lost`: the
//! worker has given up a publish that its storage did not let end.

use std::collections::{BTreeMap, BTreeSet};

use super::Control;
use crate::job::Attempt;
use crate::limits;
use crate::protocol::PublishRequest;
use crate::reactor::BootTime;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Exclusive {
    holders: BTreeMap<String, Attempt>,
    /// Attempts that ended without a report, by sink.
    unreported: BTreeMap<String, Vec<Attempt>>,
    /// The holders of an earlier sentinel are not known: nothing is given before.
    not_before: Option<BootTime>,
    /// Attempts that may still publish by the word of an earlier sentinel, into any sink.
    inherited: Vec<Attempt>,
    /// Attempts that were such, and whose workers are connected.
    adopted: Vec<Attempt>,
    /// How often an attempt has begun to wait.
    asked: u64,
}

impl Exclusive {
    /// True for an attempt that was given all of these sinks.
    fn has(&self, attempt: Attempt, sinks: &[String]) -> bool {
        let mut sinks = sinks.iter();
        sinks.all(|sink| self.holders.get(sink) == Some(&attempt))
    }

    /// An attempt that an earlier sentinel dispatched may hold any sink until then.
    pub(super) fn inherit(&mut self, attempt: Attempt, until: BootTime) {
        self.not_before = self.not_before.max(Some(until));
        self.inherited.push(attempt);
    }

    /// Gives an attempt all the sinks, or none while another has one of them.
    fn take(&mut self, attempt: Attempt, sinks: &[String], now: BootTime) -> bool {
        if self.not_before.is_some_and(|at| now < at) {
            return false;
        }
        let is_free = |sink: &String| {
            let holder = self.holders.get(sink);
            holder.is_none_or(|holder| *holder == attempt)
        };
        if !sinks.iter().all(is_free) {
            return false;
        }
        for sink in sinks {
            self.holders.insert(sink.clone(), attempt);
        }
        true
    }

    /// The attempts to bar before publishing into these sinks.
    fn to_bar(&self, attempt: Attempt, sinks: &[String]) -> Vec<Attempt> {
        let mut bar = self.inherited.clone();
        for sink in sinks {
            bar.extend(self.unreported.get(sink).into_iter().flatten());
        }
        bar.retain(|other| other.job_id != attempt.job_id);
        bar.sort_unstable();
        bar.dedup();
        bar
    }

    /// The worker of an inherited attempt is connected: it asks again for what it needs.
    pub(super) fn disinherit(&mut self, attempt: Attempt) {
        let before = self.inherited.len();
        self.inherited.retain(|other| *other != attempt);
        if self.inherited.len() < before {
            self.adopted.push(attempt);
        }
    }

    /// The attempt's worker has reported its end.
    pub(super) fn release(&mut self, attempt: Attempt) {
        self.holders.retain(|_, holder| *holder != attempt);
        // It has barred those before it.
        let is_barred =
            |other: &Attempt| other.job_id == attempt.job_id && other.number <= attempt.number;
        self.inherited.retain(|other| !is_barred(other));
        self.adopted.retain(|other| *other != attempt);
    }

    /// The attempt has ended without a report, or its worker has reported that it may still
    /// publish.
    pub(super) fn abandon(&mut self, attempt: Attempt) {
        // What an earlier sentinel gave it is not known.
        if self.adopted.contains(&attempt) {
            self.adopted.retain(|other| *other != attempt);
            self.inherited.push(attempt);
        }
        for (sink, holder) in &self.holders {
            if *holder == attempt {
                let unreported = self.unreported.entry(sink.clone()).or_default();
                unreported.push(attempt);
                if unreported.len() > limits::UNREPORTED_MAX {
                    unreported.remove(0);
                }
            }
        }
        self.holders.retain(|_, holder| *holder != attempt);
        if self.unreported.len() > limits::UNREPORTED_MAX {
            // Which is the oldest is not known; a barred attempt that is still paused loses its folder
            // to its own job's next attempt as well.
            self.unreported.clear();
        }
    }
}

impl Control {
    /// A worker's attempts that are ready to publish into exclusive sinks.
    pub(super) fn ask_exclusive(&mut self, routing_id: &[u8], requests: &[PublishRequest]) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        for request in requests.iter().take(limits::WORKER_SLOTS_MAX) {
            let hold = worker.holds.iter_mut();
            if let Some(hold) = hold
                .into_iter()
                .find(|hold| hold.attempt == request.attempt)
            {
                let sinks = request.exclusive.iter().take(limits::EXCLUSIVE_SINKS_MAX);
                let occupied = hold.wants.is_empty();
                hold.wants = sinks.cloned().collect();
                if occupied && !hold.wants.is_empty() {
                    self.has_freed = true;
                    self.exclusive.asked += 1;
                    hold.wants_since = self.exclusive.asked;
                }
            }
        }
    }

    /// Gives free sinks to the attempts that wait for them, in the order in which they asked, and
    /// marks their workers for an answer. What an attempt waits for goes to none behind it, but to
    /// one that has it already and asks again, because the answer was lost.
    pub(super) fn assign_exclusive(&mut self, now: BootTime) {
        let mut waiting: Vec<(bool, u64, Vec<u8>, Attempt)> = Vec::new();
        for (routing_id, worker) in &self.workers {
            if worker.request.is_some() && worker.peer.is_some() {
                let holds = worker.holds.iter().filter(|hold| !hold.wants.is_empty());
                waiting.extend(holds.map(|hold| {
                    let is_new = !self.exclusive.has(hold.attempt, &hold.wants);
                    let routing_id = routing_id.clone();
                    (is_new, hold.wants_since, routing_id, hold.attempt)
                }));
            }
        }
        waiting.sort_unstable();
        let mut reserved: BTreeSet<String> = BTreeSet::new();
        for (_, _, routing_id, attempt) in waiting {
            let Some(worker) = self.workers.get_mut(&routing_id) else {
                continue;
            };
            let mut holds = worker.holds.iter_mut();
            let Some(hold) = holds.find(|hold| hold.attempt == attempt) else {
                continue;
            };
            let is_behind = hold.wants.iter().any(|sink| reserved.contains(sink));
            if is_behind || !self.exclusive.take(attempt, &hold.wants, now) {
                reserved.extend(hold.wants.iter().cloned());
                continue;
            }
            let bar = self.exclusive.to_bar(attempt, &hold.wants);
            hold.wants.clear();
            worker.publish.push(attempt);
            worker.bar.extend(bar);
            worker.answer_due = true;
        }
    }
}
