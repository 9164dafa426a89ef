//! Settlements of ended jobs ([`Settlement`]). The database has the jobs to settle. This state only has the
//! settlements that workers were asked for.

use std::collections::BTreeMap;

use super::members::Worker;
use super::{Change, Control, caps};
use crate::job::{Attempt, Receipt, Settlement};
use crate::limits;
use crate::reactor::BootTime;

/// A settlement that a worker was asked for.
#[derive(Debug)]
struct Asked {
    attempt: Attempt,
    /// Its bytes on the wire.
    size: usize,
    /// The worker's routing ID.
    route: Vec<u8>,
    /// When another worker may be asked.
    until: BootTime,
}

/// The settlements that workers were asked for.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// By job.
    asked: BTreeMap<i64, Asked>,
    /// The search for jobs continues above this ID.
    after: i64,
}

impl Settling {
    /// True for the settlement of a job that a worker was asked for.
    pub(super) fn has(&self, attempt: Attempt) -> bool {
        let asked = self.asked.get(&attempt.job_id);
        asked.is_some_and(|asked| asked.attempt == attempt)
    }
}

impl Worker {
    fn can_settle(&self) -> bool {
        let is_asking = self.request.is_some() && self.peer.is_some() && self.instance.is_some();
        is_asking && !self.draining && self.trouble.is_none()
    }
}

impl Control {
    /// The ID above which to search for jobs to settle. None while no worker can settle them, or a bound is
    /// reached.
    pub fn settles_after(&mut self, now: BootTime) -> Option<i64> {
        let workers = &self.workers;
        let is_connected = |route: &Vec<u8>| {
            let worker = workers.get(route);
            worker.is_some_and(|worker| worker.peer.is_some())
        };
        self.settling
            .asked
            .retain(|_, asked| asked.until > now && is_connected(&asked.route));
        let has_room = self.settling.asked.len() < limits::SETTLING_MAX;
        let can_settle = self.workers.values().any(Worker::can_settle);
        (has_room && self.settling_room() > 0 && can_settle).then_some(self.settling.after)
    }

    /// How many bytes of settlements workers may be asked for now.
    pub fn settling_room(&self) -> usize {
        let sizes = self.settling.asked.values().map(|asked| asked.size);
        limits::SETTLING_SIZE_MAX.saturating_sub(sizes.sum())
    }

    /// Those of the found jobs for which no worker was asked. `found` = the jobs above that ID.
    pub fn to_settle(&mut self, found: Vec<i64>) -> Vec<i64> {
        let is_last = found.len() < limits::SETTLED_PER_ITERATION;
        self.settling.after = found.last().copied().filter(|_| !is_last).unwrap_or(0);
        let is_new = |job_id: &i64| !self.settling.asked.contains_key(job_id);
        found.into_iter().filter(is_new).collect()
    }

    /// Sends settlements after they are committed: each to the worker that had the job last, or to any other
    /// when that one cannot settle it.
    pub fn handle_unsettled(
        &mut self,
        settlements: Vec<(Settlement, Option<String>)>,
        now: BootTime,
    ) {
        for (settlement, last) in settlements {
            let attempt = settlement.attempt;
            let route = last.and_then(|worker_id| self.routes.get(&worker_id));
            let able = |route: &&Vec<u8>| self.workers.get(*route).is_some_and(Worker::can_settle);
            let route = route.filter(able).cloned();
            let Some(route) = route.or_else(|| self.next_settler(attempt)) else {
                continue;
            };
            if let Some(worker) = self.workers.get_mut(&route) {
                let size = settlement.size();
                worker.settle.push(settlement);
                worker.answer_due = true;
                let until = now + limits::SETTLE_WAIT;
                let asked = Asked {
                    attempt,
                    size,
                    route,
                    until,
                };
                self.settling.asked.insert(attempt.job_id, asked);
            }
        }
    }

    /// A worker that can settle. Each try chooses another one, in case one cannot access the output.
    fn next_settler(&self, attempt: Attempt) -> Option<Vec<u8>> {
        let able = self.workers.iter();
        let mut able: Vec<&Vec<u8>> = able
            .filter(|(_, worker)| worker.can_settle())
            .map(|(route, _)| route)
            .collect();
        able.sort_unstable();
        let transaction = usize::try_from(attempt.ordinal()).unwrap_or(0);
        able.get(transaction.checked_rem(able.len())?)
            .map(|route| (*route).clone())
    }

    /// Processes a worker's report on a settlement. False when the attempt is no settlement.
    pub(super) fn settled(&mut self, routing_id: &[u8], job_id: i64, receipt: &Receipt) -> bool {
        let attempt = Attempt::new(job_id, receipt.attempt.unwrap_or(0));
        if !self.settling.has(attempt) {
            return false;
        }
        self.receipts_size += caps::size(receipt);
        self.changes.push(Change::Settled {
            routing_id: routing_id.to_vec(),
            attempt,
            receipt: Box::new(receipt.clone()),
        });
        true
    }

    /// Called after a report on a settlement is committed. After a failure the next try waits until
    /// [`limits::SETTLE_WAIT`] is over.
    pub fn handle_settled(&mut self, routing_id: &[u8], attempt: Attempt, is_done: bool) {
        if is_done && self.settling.has(attempt) {
            self.settling.asked.remove(&attempt.job_id);
            self.exclusive.release(attempt);
        }
        self.acknowledge(routing_id, attempt);
    }
}
