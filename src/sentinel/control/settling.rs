//! Jobs that have ended, whose output workers bring in line with their rows
//! ([`Settlement`]). Which jobs these are stands in the database; here is only who was asked.

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
    /// When another may be asked.
    until: BootTime,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// The settlement of each job that a worker was asked for, and when another may be asked.
    asked: BTreeMap<i64, Asked>,
    /// The jobs up to this one have been checked.
    after: i64,
}

impl Settling {
    /// True for the last settlement of a job.
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
    /// The ID above which jobs to settle are to be searched; none while no worker can settle
    /// them.
    pub fn settles_after(&mut self, now: BootTime) -> Option<i64> {
        let workers = &self.workers;
        let is_connected = |route: &Vec<u8>| {
            let worker = workers.get(route);
            worker.is_some_and(|worker| worker.peer.is_some())
        };
        self.settling
            .asked
            .retain(|_, asked| asked.until > now && is_connected(&asked.route));
        let has_place = self.settling.asked.len() < limits::SETTLING_MAX;
        let can_settle = self.workers.values().any(Worker::can_settle);
        (has_place && self.settling_room() > 0 && can_settle).then_some(self.settling.after)
    }

    /// How many bytes of settlements workers may be asked for now.
    pub fn settling_room(&self) -> usize {
        let sizes = self.settling.asked.values().map(|asked| asked.size);
        limits::SETTLING_SIZE_MAX.saturating_sub(sizes.sum())
    }

    /// Of the jobs that were found above that ID the ones that no worker was asked for.
    pub fn to_settle(&mut self, found: Vec<i64>) -> Vec<i64> {
        let is_last = found.len() < limits::SETTLED_PER_TURN;
        self.settling.after = found.last().copied().filter(|_| !is_last).unwrap_or(0);
        let is_new = |job_id: &i64| !self.settling.asked.contains_key(job_id);
        found.into_iter().filter(is_new).collect()
    }

    /// Settlements are committed: each goes to the worker that had the job last, or to any when
    /// that is not connected.
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
            let Some(route) = route.or_else(|| self.any_settler(attempt)) else {
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

    /// Another with each try, in case one cannot reach the output.
    fn any_settler(&self, attempt: Attempt) -> Option<Vec<u8>> {
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

    /// A worker's report on a settlement; false when the attempt is none.
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

    /// Reports are committed. After a failure the next try waits for its time.
    pub fn handle_settled(&mut self, routing_id: &[u8], attempt: Attempt, is_done: bool) {
        if is_done && self.settling.has(attempt) {
            self.settling.asked.remove(&attempt.job_id);
            self.exclusive.release(attempt);
        }
        self.acknowledge(routing_id, attempt);
    }
}
