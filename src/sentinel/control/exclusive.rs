//! Exclusive sinks: only one attempt at a time may publish into them (modes `replace` and `error`).
//!
//! An attempt keeps its sinks until it ends. When it ends without a report of its worker, the
//! worker may be paused during its publish. So the next attempts that get one of the sinks
//! must bar it on the storage first. The same applies to a report with the cause `lost`: the
//! worker has given up a publish because its storage did not respond.

use std::collections::{BTreeMap, BTreeSet};

use super::Control;
use crate::job::Attempt;
use crate::limits;
use crate::protocol::PublishRequest;
use crate::reactor::BootTime;

/// The holders of exclusive sinks, as the head of the module describes.
#[derive(Debug, Default)]
pub(super) struct Exclusive {
    holders: BTreeMap<String, Attempt>,
    /// Attempts that ended without a report, by sink.
    unreported: BTreeMap<String, Vec<Attempt>>,
    /// No sink is given before this time, because the holders under an earlier sentinel are unknown.
    not_before: Option<BootTime>,
    /// Attempts that an earlier sentinel may have permitted to publish, into any sink.
    inherited: Vec<Attempt>,
    /// Attempts that were inherited, and whose workers are connected now.
    adopted: Vec<Attempt>,
    /// The number of times that an attempt has begun to wait.
    asked: u64,
}

impl Exclusive {
    /// True for an attempt that has all of these sinks.
    fn has(&self, attempt: Attempt, sinks: &[String]) -> bool {
        let mut sinks = sinks.iter();
        sinks.all(|sink| self.holders.get(sink) == Some(&attempt))
    }

    /// Adds an attempt that an earlier sentinel dispatched. It may publish into any sink before `until`.
    pub(super) fn inherit(&mut self, attempt: Attempt, until: BootTime) {
        self.not_before = self.not_before.max(Some(until));
        self.inherited.push(attempt);
    }

    /// Gives an attempt all these sinks, or none while another attempt has one of them.
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

    /// The attempts that must be barred before a publish into these sinks.
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

    /// Notes that the worker of an inherited attempt is connected. It asks again for the sinks that it needs.
    pub(super) fn disinherit(&mut self, attempt: Attempt) {
        let before = self.inherited.len();
        self.inherited.retain(|other| *other != attempt);
        if self.inherited.len() < before {
            self.adopted.push(attempt);
        }
    }

    /// Frees the sinks of an attempt whose worker has reported its end.
    pub(super) fn release(&mut self, attempt: Attempt) {
        self.holders.retain(|_, holder| *holder != attempt);
        // It has barred earlier attempts of its job.
        let is_barred =
            |other: &Attempt| other.job_id == attempt.job_id && other.number <= attempt.number;
        self.inherited.retain(|other| !is_barred(other));
        self.adopted.retain(|other| *other != attempt);
    }

    /// Frees the sinks of an attempt that has ended without a report, or whose worker has reported that it
    /// may still publish. The next holders must bar it.
    pub(super) fn abandon(&mut self, attempt: Attempt) {
        // The sinks that an earlier sentinel gave it are unknown.
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
            // The oldest sinks are unknown, so all are forgotten. An attempt that is still paused also loses
            // its folder to the next attempt of its own job.
            self.unreported.clear();
        }
    }
}

impl Control {
    /// Notes for which exclusive sinks a worker's attempts wait.
    pub(super) fn ask_exclusive(&mut self, routing_id: &[u8], requests: &[PublishRequest]) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        for request in requests.iter().take(limits::WORKER_SLOTS_MAX) {
            let claim = worker.claims.iter_mut();
            if let Some(claim) = claim
                .into_iter()
                .find(|claim| claim.attempt == request.attempt)
            {
                let sinks = request.exclusive.iter().take(limits::EXCLUSIVE_SINKS_MAX);
                let occupied = claim.wants.is_empty();
                claim.wants = sinks.cloned().collect();
                if occupied && !claim.wants.is_empty() {
                    self.has_freed = true;
                    self.exclusive.asked += 1;
                    claim.wants_since = self.exclusive.asked;
                }
            }
        }
    }

    /// Gives free sinks to the attempts that wait for them, in the order in which they asked, and marks their
    /// workers for an answer. A sink for which an attempt waits is not given to later ones. The exception is
    /// an attempt that already has the sink and asks again, because the answer was lost.
    pub(super) fn assign_exclusive(&mut self, now: BootTime) {
        let mut waiting: Vec<(bool, u64, Vec<u8>, Attempt)> = Vec::new();
        for (routing_id, worker) in &self.workers {
            if worker.request.is_some() && worker.peer.is_some() {
                let claims = worker.claims.iter().filter(|claim| !claim.wants.is_empty());
                waiting.extend(claims.map(|claim| {
                    let is_new = !self.exclusive.has(claim.attempt, &claim.wants);
                    let routing_id = routing_id.clone();
                    (is_new, claim.wants_since, routing_id, claim.attempt)
                }));
            }
        }
        waiting.sort_unstable();
        let mut reserved: BTreeSet<String> = BTreeSet::new();
        for (_, _, routing_id, attempt) in waiting {
            let Some(worker) = self.workers.get_mut(&routing_id) else {
                continue;
            };
            let mut claims = worker.claims.iter_mut();
            let Some(claim) = claims.find(|claim| claim.attempt == attempt) else {
                continue;
            };
            let is_behind = claim.wants.iter().any(|sink| reserved.contains(sink));
            if is_behind || !self.exclusive.take(attempt, &claim.wants, now) {
                reserved.extend(claim.wants.iter().cloned());
                continue;
            }
            let bar = self.exclusive.to_bar(attempt, &claim.wants);
            claim.wants.clear();
            worker.publish.push(attempt);
            worker.bar.extend(bar);
            worker.answer_due = true;
        }
    }
}
