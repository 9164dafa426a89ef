//! Leases: which attempts a worker holds and until when, and the answers that renew the leases.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{Body, Change, Control, Orphan, Outgoing};
use crate::job::{Attempt, Cause, Loss, Receipt, User};
use crate::limits;
use crate::protocol::{Answer, Heartbeat, Payload};
use crate::reactor::BootTime;
use crate::socket::PeerId;
use crate::zmtp;

/// An attempt that a worker holds.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) attempt: Attempt,
    /// The latest time at which its worker may publish, including the margin for its clock.
    pub(super) until: BootTime,
    /// The worker's last answered request when DISPATCH was sent. When the worker has received a later
    /// answer, DISPATCH has arrived.
    pub(super) sent_after: Option<u64>,
    /// The time by which its worker must have ended it.
    pub(super) due: BootTime,
    /// It was not ended in time: its lease is not renewed, and its worker is asked to stop it.
    pub(super) is_overdue: bool,
    /// Exclusive sinks that it waits for.
    pub(super) wants: Vec<String>,
    /// Its order among the attempts that wait. The first one to ask has the lowest number.
    pub(super) wants_since: u64,
    /// Its worker gets no other job.
    pub(super) is_alone: bool,
    /// It waits for the creation of its environment, by its worker's last report.
    pub(super) is_waiting: bool,
}

// One for each claimed attempt; all are read in each renewal.
const _: () = assert!(size_of::<Claim>() <= 104);

/// The last numbered request of a worker on its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) sequence: u64,
    pub(super) received_at: BootTime,
}

impl Control {
    /// Adds a RUNNING row that this sentinel has not dispatched. Its worker may still publish for a whole
    /// lease.
    pub fn inherit(
        &mut self,
        attempt: Attempt,
        worker_id: &str,
        user: Option<User>,
        now: BootTime,
    ) {
        let until = self.inherited_until(now);
        self.exclusive.inherit(attempt, until);
        let claim = Claim {
            attempt,
            until,
            due: now + self.settings.attempt_timeout,
            is_overdue: false,
            sent_after: None,
            wants: Vec::new(),
            wants_since: 0,
            is_alone: false,
            is_waiting: false,
        };
        let worker_id = worker_id.to_owned();
        self.orphans.insert(
            attempt,
            Orphan {
                claim,
                worker_id,
                user,
                instance: None,
                routing_id: None,
                is_displaced: false,
            },
        );
        self.expect_expiry(until);
    }

    /// Notes that an inherited attempt runs alone on its worker.
    pub fn inherit_alone(&mut self, attempt: Attempt) {
        if let Some(orphan) = self.orphans.get_mut(&attempt) {
            orphan.claim.is_alone = true;
        }
    }

    /// Adds the last attempt of a row that was not RUNNING at the start, if its worker has not reported its
    /// end.
    pub fn inherit_unreported(&mut self, attempt: Attempt, now: BootTime) {
        self.exclusive.inherit(attempt, self.inherited_until(now));
    }

    /// When leases of earlier sentinels have ended. After this time, attempts that this sentinel has not
    /// dispatched may not publish.
    fn inherited_until(&self, now: BootTime) -> BootTime {
        let until = now + self.settings.lease;
        self.earlier_until.map_or(until, |at| at.max(until)) + self.settings.margin
    }

    /// Length of the leases that this sentinel gives, in milliseconds.
    pub fn lease_ms(&self) -> u64 {
        u64::try_from(self.settings.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// Sets when all leases that earlier sentinels of this database may have given have ended.
    pub fn set_earlier_lease(&mut self, until: BootTime) {
        self.earlier_until = Some(until);
    }

    pub(super) fn expect_expiry(&mut self, until: BootTime) {
        self.next_expiry = Some(self.next_expiry.map_or(until, |at| at.min(until)));
    }

    /// Notes a numbered request. Its answer renews the worker's leases.
    pub(super) fn handle_request(&mut self, routing_id: &[u8], sequence: u64, now: BootTime) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        if worker
            .request
            .is_some_and(|request| request.sequence >= sequence)
        {
            return;
        }
        worker.request = Some(Request {
            sequence,
            received_at: now,
        });
        worker.answer_due = true;
    }

    /// Gives back attempts that a worker does not list, although it would if it had them: it has received
    /// everything that was sent after DISPATCH, or DISPATCH was lost with an earlier connection.
    pub(super) fn give_up_missing(
        &mut self,
        routing_id: &[u8],
        running: &[Attempt],
        answered: Option<u64>,
    ) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        let mut missing = Vec::new();
        let running: HashSet<&Attempt> = running.iter().collect();
        worker.claims.retain(|claim| {
            let has_arrived = answered.is_some_and(|answered| {
                claim
                    .sent_after
                    .is_none_or(|sent_after| answered > sent_after)
            });
            let keep = !has_arrived || running.contains(&claim.attempt);
            if !keep {
                missing.push((claim.attempt, claim.is_overdue));
            }
            keep
        });
        worker.overdue.retain(|attempt| running.contains(attempt));
        let worker_id = worker.worker_id.clone();
        for (attempt, is_overdue) in missing {
            if is_overdue {
                self.exclusive.release(attempt);
                let reason = self.overdue_reason(&worker_id);
                self.release(attempt, Cause::Lost, Loss::Alone, reason);
            } else {
                self.give_back(attempt, format!("worker {worker_id} does not have it"));
            }
        }
    }

    /// Processes what a worker of the reference system reports about itself. Its receipt may be lost with a
    /// connection, and it sends it only once: when it reports for a whole lease and the margin that it is
    /// idle, it has none of the attempts that were dispatched to it before.
    pub(super) fn handle_status(&mut self, routing_id: &[u8], is_idle: bool, now: BootTime) {
        let bound = self.settings.lease + self.settings.margin;
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        if worker.instance.is_some() || !is_idle {
            worker.idle_since = None;
            return;
        }
        let since = *worker.idle_since.get_or_insert(now);
        if since + bound > now {
            return;
        }
        worker.overdue.clear();
        let claims = std::mem::take(&mut worker.claims);
        let worker_id = worker.worker_id.clone();
        for claim in claims {
            self.exclusive.release(claim.attempt);
            let reason = format!(
                "worker {worker_id} has reported that it is idle for {} s, without a receipt",
                bound.as_secs()
            );
            self.release(claim.attempt, Cause::Lost, Loss::Alone, reason);
        }
    }

    /// Ends the attempts of a worker of the reference system whose connection was closed because of the size
    /// of a message: only receipts are that large, and it sends them only once.
    pub fn handle_oversized(&mut self, peer: PeerId, routing_id: &[u8], error: &zmtp::Error) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        if worker.instance.is_some() || worker.peer != Some(peer) {
            return;
        }
        let worker_id = worker.worker_id.clone();
        for claim in std::mem::take(&mut worker.claims) {
            let receipt = Receipt::unreadable(error);
            self.end_claim(routing_id, worker_id.clone(), claim.attempt, receipt);
        }
    }

    /// Processes the attempts that a worker lists. Those that it got on an earlier connection or from an
    /// earlier sentinel become its claims again. It must stop those that are not its claims.
    pub(super) fn adopt(&mut self, routing_id: &[u8], running: &[Attempt], now: BootTime) {
        let bound = self.settings.lease + self.settings.margin;
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        // A worker of the reference system runs one job for each slot, and is sent an ABORT for each.
        let listed_max = match worker.instance {
            Some(_) => limits::WORKER_SLOTS_MAX * 2,
            None => worker.asked.slots,
        };
        for listed in running.iter().take(listed_max) {
            let of_job =
                Attempt::new(listed.job_id, i64::MIN)..=Attempt::new(listed.job_id, i64::MAX);
            let is_same = |attempt: &Attempt| {
                attempt.job_id == listed.job_id
                    && (!listed.is_numbered() || attempt.number == listed.number)
            };
            if worker.claims.iter().any(|claim| is_same(&claim.attempt)) {
                continue;
            }
            let orphan = self
                .orphans
                .range(of_job.clone())
                .find(|(attempt, orphan)| is_same(attempt) && orphan.worker_id == worker.worker_id);
            let orphan = orphan.map(|(attempt, _)| *attempt);
            if let Some(orphan) = orphan.and_then(|attempt| self.orphans.remove(&attempt)) {
                log::info!(
                    "worker {} goes on with {}",
                    worker.worker_id,
                    orphan.claim.attempt
                );
                let mut claim = orphan.claim;
                self.exclusive.disinherit(claim.attempt);
                if worker.instance.is_none() {
                    claim.until = now + bound;
                }
                claim.sent_after = None;
                worker.claims.push(claim);
            } else if self.ending.range(of_job).any(is_same) || self.settling.has(*listed) {
                // Its end waits for the transaction, or it is a settlement.
            } else if worker.instance.is_some() {
                if worker.abort.len() < limits::ABORTS_MAX {
                    worker.abort.push(*listed);
                }
                worker.answer_due = true;
            } else if let Some(peer) = worker.peer {
                self.outgoing.push(Outgoing {
                    peer,
                    job_id: listed.job_id.unsigned_abs(),
                    body: Body::Payload(Payload::Abort),
                });
            }
        }
    }

    /// Answers to the requests since the last call. Leases do not depend on the transaction, because while
    /// the database fails, the attempts cannot be given to another worker.
    pub fn poll_answers(&mut self, now: BootTime) -> Vec<Outgoing> {
        self.assign_exclusive(now);
        let bound = self.settings.lease + self.settings.margin;
        let lease_ms = u64::try_from(self.settings.lease.as_millis()).unwrap_or(u64::MAX);
        let mut answers = Vec::new();
        for worker in self.workers.values_mut() {
            if !std::mem::take(&mut worker.answer_due) {
                continue;
            }
            let Some((request, peer)) = worker.request.zip(worker.peer) else {
                continue;
            };
            for claim in worker.claims.iter_mut().filter(|claim| !claim.is_overdue) {
                claim.until = claim.until.max(request.received_at + bound);
            }
            worker.answered = Some(request.sequence);
            let mut abort = std::mem::take(&mut worker.abort);
            let overdue = worker.claims.iter().filter(|claim| claim.is_overdue);
            abort.extend(overdue.map(|claim| claim.attempt));
            let leases = worker.claims.iter().filter(|claim| !claim.is_overdue);
            let answer = Answer {
                sequence: request.sequence,
                lease_ms,
                leases: leases.map(|claim| claim.attempt).collect(),
                acknowledged: std::mem::take(&mut worker.acknowledged),
                publish: std::mem::take(&mut worker.publish),
                bar: std::mem::take(&mut worker.bar),
                abort,
                settle: std::mem::take(&mut worker.settle),
            };
            answers.push(Outgoing {
                peer,
                job_id: 0,
                body: Body::Payload(Payload::Heartbeat(Heartbeat {
                    answer: Some(answer),
                    ..Heartbeat::default()
                })),
            });
        }
        answers
    }

    /// Releases attempts with expired leases, which no worker may publish. Workers of the reference system do
    /// not ask for leases. Theirs are renewed while they are connected.
    pub(super) fn expire(&mut self, now: BootTime) {
        let bound = self.settings.lease + self.settings.margin;
        self.note_overdue(now);
        let mut expired: Vec<(Attempt, String, Option<Loss>)> = Vec::new();
        let mut overdue = BTreeSet::new();
        let mut next: Option<BootTime> = None;
        let mut note = |until: BootTime| next = Some(next.map_or(until, |at| at.min(until)));
        for worker in self.workers.values_mut() {
            let renew = worker.instance.is_none() && worker.peer.is_some();
            let (worker_id, peer) = (&worker.worker_id, worker.peer);
            let (abort, outgoing) = (&mut worker.abort, &mut self.outgoing);
            let kept = &mut worker.overdue;
            let has_instance = worker.instance.is_some();
            worker.claims.retain_mut(|claim| {
                if !claim.is_overdue {
                    note(claim.due);
                }
                if renew && !claim.is_overdue {
                    claim.until = now + bound;
                    note(now + self.settings.lease / 3);
                    return true;
                }
                if claim.until > now {
                    note(claim.until);
                    return true;
                }
                if claim.is_overdue {
                    kept.push(claim.attempt);
                    overdue.insert(claim.attempt);
                }
                expired.push((claim.attempt, worker_id.clone(), own_loss(claim, false)));
                match peer {
                    Some(_) if has_instance => abort.push(claim.attempt),
                    Some(peer) => outgoing.push(abort_message(peer, claim.attempt)),
                    None => {}
                }
                false
            });
        }
        self.orphans.retain(|attempt, orphan| {
            if orphan.claim.until > now {
                note(orphan.claim.until);
                return true;
            }
            let loss = own_loss(&orphan.claim, orphan.is_displaced);
            if orphan.claim.is_overdue {
                overdue.insert(*attempt);
            }
            expired.push((*attempt, orphan.worker_id.clone(), loss));
            false
        });
        self.next_expiry = next;
        if !expired.is_empty() {
            self.apply_user_limits();
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        // A job that waits for its environment counts, because its creation may have ended the worker.
        let is_neighbour = |loss: &Option<Loss>| *loss != Some(Loss::Displaced);
        for (_, worker_id, _) in expired.iter().filter(|(_, _, loss)| is_neighbour(loss)) {
            *counts.entry(worker_id).or_default() += 1;
        }
        let losses = expired.iter().map(|(_, worker_id, loss)| {
            let count = counts.get(worker_id.as_str()).copied();
            let shared = match count {
                Some(2..) => Loss::Shared,
                _ => Loss::Alone,
            };
            loss.unwrap_or(shared)
        });
        let losses: Vec<Loss> = losses.collect();
        if expired.len() > limits::ENDS_LOGGED_MAX {
            log::warn!(
                "{} attempts of {} workers: their leases were not renewed in time",
                expired.len(),
                counts.len()
            );
        } else {
            for (attempt, worker_id, _) in &expired {
                let worker = shown(worker_id);
                log::warn!("{attempt}: {worker} did not renew its lease in time");
            }
        }
        for ((attempt, worker_id, _), loss) in expired.into_iter().zip(losses) {
            let worker = shown(&worker_id);
            self.exclusive.abandon(attempt);
            let was_overdue = overdue.contains(&attempt);
            if self.ending.insert(attempt) {
                self.expired.push_back(Change::Release {
                    attempt,
                    cause: Cause::Lost,
                    loss,
                    reason: match loss {
                        _ if was_overdue => self.overdue_reason(&worker_id),
                        Loss::Displaced => {
                            format!("its worker lost the ID {worker_id} to another process")
                        }
                        Loss::Waiting => {
                            format!("{worker} was lost while it created the job's environment")
                        }
                        _ => format!("{worker} was lost: its lease ran out"),
                    },
                });
            }
        }
    }

    /// Marks attempts that their workers have not ended in time. Their leases are not renewed any more.
    fn note_overdue(&mut self, now: BootTime) {
        let timeout = self.settings.attempt_timeout.as_secs();
        for worker in self.workers.values_mut() {
            let claims = worker.claims.iter_mut();
            for claim in claims.filter(|claim| !claim.is_overdue && claim.due <= now) {
                claim.is_overdue = true;
                log::warn!(
                    "{}: worker {} has not ended it within {timeout} s (--attempt-timeout)",
                    claim.attempt,
                    worker.worker_id
                );
                match (&worker.instance, worker.peer) {
                    (Some(_), _) => worker.answer_due = true,
                    (None, Some(peer)) => self.outgoing.push(abort_message(peer, claim.attempt)),
                    (None, None) => {}
                }
            }
        }
    }

    fn overdue_reason(&self, worker_id: &str) -> String {
        format!(
            "worker {worker_id} did not end it within {} s (--attempt-timeout of the sentinel)",
            self.settings.attempt_timeout.as_secs()
        )
    }

    /// Adds releases of expired attempts to the next transaction, up to its limit.
    pub(super) fn release_expired(&mut self) {
        let room = limits::EXPIRED_PER_ITERATION.saturating_sub(self.changes.len());
        let count = room.min(self.expired.len());
        self.changes.extend(self.expired.drain(..count));
    }

    /// When the next releases of expired attempts are due: at once while there are any and the changes have
    /// room for them.
    pub(super) fn release_at(&self) -> Option<BootTime> {
        let is_due = !self.expired.is_empty() && self.changes.len() < limits::EXPIRED_PER_ITERATION;
        is_due.then_some(BootTime::default())
    }

    /// Stops an attempt at its worker, because another program has changed its row: it is no longer RUNNING.
    pub fn handle_revoked(&mut self, attempt: Attempt) {
        self.orphans.remove(&attempt);
        self.exclusive.abandon(attempt);
        for worker in self.workers.values_mut() {
            let before = worker.claims.len();
            worker.claims.retain(|claim| claim.attempt != attempt);
            if worker.claims.len() == before {
                continue;
            }
            self.has_freed = true;
            match worker.peer {
                Some(_) if worker.instance.is_some() => {
                    worker.abort.push(attempt);
                    worker.answer_due = true;
                }
                Some(peer) => self.outgoing.push(abort_message(peer, attempt)),
                None => {}
            }
            return;
        }
    }

    /// Called after the end of an attempt is committed. Its receipt is acknowledged, except to workers of the
    /// reference system.
    pub fn handle_ended(&mut self, routing_id: &[u8], attempt: Attempt) {
        self.ending.remove(&attempt);
        self.acknowledge(routing_id, attempt);
    }

    pub(super) fn acknowledge(&mut self, routing_id: &[u8], attempt: Attempt) {
        if let Some(worker) = self.workers.get_mut(routing_id)
            && worker.instance.is_some()
        {
            worker.acknowledged.push(attempt);
            worker.answer_due = true;
        }
    }

    /// Called after the release of an attempt is committed.
    pub fn handle_released(&mut self, attempt: Attempt) {
        self.ending.remove(&attempt);
    }

    pub(super) fn give_back(&mut self, attempt: Attempt, reason: String) {
        self.exclusive.release(attempt);
        if self.ending.insert(attempt) {
            self.changes.push(Change::GiveBack { attempt, reason });
        }
    }
}

/// A worker in the text of a reason. Rows of the reference system have no worker ID.
fn shown(worker_id: &str) -> String {
    match worker_id {
        "" => "its worker, which the row does not name,".to_owned(),
        _ => format!("worker {worker_id}"),
    }
}

/// How an attempt is lost, if that does not depend on the other attempts of its worker.
fn own_loss(claim: &Claim, is_displaced: bool) -> Option<Loss> {
    match (is_displaced, claim.is_overdue, claim.is_waiting) {
        (true, ..) => Some(Loss::Displaced),
        // It was too slow, independent of other jobs.
        (false, true, _) => Some(Loss::Alone),
        (false, false, true) => Some(Loss::Waiting),
        (false, false, false) => None,
    }
}

fn abort_message(peer: PeerId, attempt: Attempt) -> Outgoing {
    Outgoing {
        peer,
        job_id: attempt.job_id.unsigned_abs(),
        body: Body::Payload(Payload::Abort),
    }
}
