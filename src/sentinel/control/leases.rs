//! Leases: which attempts a worker holds, until when, and the answers that renew them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{Body, Change, Control, Orphan, Outgoing};
use crate::job::{Attempt, Cause, Loss, User};
use crate::limits;
use crate::protocol::{Answer, Heartbeat, Payload};
use crate::reactor::BootTime;
use crate::socket::PeerId;

/// An attempt that a worker holds.
#[derive(Clone, Debug)]
pub(super) struct Hold {
    pub(super) attempt: Attempt,
    /// Its worker may publish until this moment at the latest, by any clock; the margin included.
    pub(super) until: BootTime,
    /// The worker's last answered request when DISPATCH was sent: once a later one is answered,
    /// DISPATCH has arrived.
    pub(super) sent_after: Option<u64>,
    /// Its worker must have ended it by then.
    pub(super) due: BootTime,
    /// It was not: its lease is not renewed, and its worker is asked to stop it.
    pub(super) is_overdue: bool,
    /// Exclusive sinks that it waits for.
    pub(super) wants: Vec<String>,
    /// Order among the attempts that wait: the first to ask has the lowest number.
    pub(super) wants_since: u64,
    /// Its worker gets no other job.
    pub(super) is_alone: bool,
    /// Its environment is being created, by its worker's last word.
    pub(super) is_waiting: bool,
}

/// The last numbered request of a worker on its connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) sequence: u64,
    pub(super) received_at: BootTime,
}

impl Control {
    /// A RUNNING row that was found at the start. The worker that holds it may publish for a
    /// whole lease yet.
    pub fn inherit(
        &mut self,
        attempt: Attempt,
        worker_id: &str,
        user: Option<User>,
        now: BootTime,
    ) {
        let until = self.inherited_until(now);
        self.exclusive.inherit(attempt, until);
        let hold = Hold {
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
                hold,
                worker_id,
                user,
                instance: None,
                routing_id: None,
                is_displaced: false,
            },
        );
        self.expect_expiry(until);
    }

    /// An inherited attempt was given to its worker as the only one.
    pub fn inherit_alone(&mut self, attempt: Attempt) {
        if let Some(orphan) = self.orphans.get_mut(&attempt) {
            orphan.hold.is_alone = true;
        }
    }

    /// An attempt of a row that did not run at the start, of whose worker the last word is missing.
    pub fn inherit_silent(&mut self, attempt: Attempt, now: BootTime) {
        self.exclusive.inherit(attempt, self.inherited_until(now));
    }

    /// When leases of earlier sentinels have ended: then attempts that this one has not dispatched may not publish.
    fn inherited_until(&self, now: BootTime) -> BootTime {
        let until = now + self.settings.lease;
        self.earlier_until.map_or(until, |at| at.max(until)) + self.settings.margin
    }

    /// Bound of the leases that this sentinel gives, in milliseconds.
    pub fn lease_ms(&self) -> u64 {
        u64::try_from(self.settings.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// When all leases are over that earlier sentinels on this database may have given.
    pub fn set_earlier_lease(&mut self, until: BootTime) {
        self.earlier_until = Some(until);
    }

    pub(super) fn expect_expiry(&mut self, until: BootTime) {
        self.next_expiry = Some(self.next_expiry.map_or(until, |at| at.min(until)));
    }

    /// A numbered request: its answer renews the worker's leases.
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

    /// Attempts that the worker would list if it had them: DISPATCH has arrived, or was lost with
    /// an earlier connection.
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
        worker.holds.retain(|hold| {
            let has_arrived = answered.is_some_and(|answered| {
                hold.sent_after
                    .is_none_or(|sent_after| answered > sent_after)
            });
            let keep = !has_arrived || running.contains(&hold.attempt);
            if !keep {
                missing.push((hold.attempt, hold.is_overdue));
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

    /// A worker lists what it holds. What an earlier connection or an earlier sentinel gave it is
    /// its own again; what is not held here at all it must stop.
    pub(super) fn adopt(&mut self, routing_id: &[u8], running: &[Attempt], now: BootTime) {
        let bound = self.settings.lease + self.settings.margin;
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        // One of the old system runs one job a slot and is sent a message for each.
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
            if worker.holds.iter().any(|hold| is_same(&hold.attempt)) {
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
                    orphan.hold.attempt
                );
                let mut hold = orphan.hold;
                self.exclusive.disinherit(hold.attempt);
                if worker.instance.is_none() {
                    hold.until = now + bound;
                }
                hold.sent_after = None;
                worker.holds.push(hold);
            } else if self.ending.range(of_job).any(is_same) || self.settling.has(*listed) {
                // Its receipt is on its way, or waits for the transaction.
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

    /// Answers to the requests since the last call. Leases do not depend on the transaction:
    /// while the database fails, no other worker can be given the attempts.
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
            for hold in worker.holds.iter_mut().filter(|hold| !hold.is_overdue) {
                hold.until = hold.until.max(request.received_at + bound);
            }
            worker.answered = Some(request.sequence);
            let mut abort = std::mem::take(&mut worker.abort);
            let overdue = worker.holds.iter().filter(|hold| hold.is_overdue);
            abort.extend(overdue.map(|hold| hold.attempt));
            let leases = worker.holds.iter().filter(|hold| !hold.is_overdue);
            let answer = Answer {
                sequence: request.sequence,
                lease_ms,
                leases: leases.map(|hold| hold.attempt).collect(),
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

    /// Releases jobs that no worker may publish now. Old workers do not ask for leases: theirs are
    /// renewed while they are connected.
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
            worker.holds.retain_mut(|hold| {
                if !hold.is_overdue {
                    note(hold.due);
                }
                if renew && !hold.is_overdue {
                    hold.until = now + bound;
                    note(now + self.settings.lease / 3);
                    return true;
                }
                if hold.until > now {
                    note(hold.until);
                    return true;
                }
                if hold.is_overdue {
                    kept.push(hold.attempt);
                    overdue.insert(hold.attempt);
                }
                expired.push((hold.attempt, worker_id.clone(), own_loss(hold, false)));
                match peer {
                    Some(_) if has_instance => abort.push(hold.attempt),
                    Some(peer) => outgoing.push(abort_message(peer, hold.attempt)),
                    None => {}
                }
                false
            });
        }
        self.orphans.retain(|attempt, orphan| {
            if orphan.hold.until > now {
                note(orphan.hold.until);
                return true;
            }
            let loss = own_loss(&orphan.hold, orphan.is_displaced);
            if orphan.hold.is_overdue {
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
        // What creates an environment may be what ends the worker.
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
                "{} attempts of {} workers: they were not heard until their leases ran out",
                expired.len(),
                counts.len()
            );
        } else {
            for (attempt, worker_id, _) in &expired {
                let worker = shown(worker_id);
                log::warn!("{attempt}: {worker} was not heard until its lease ran out");
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

    /// Attempts that their workers have not ended in time: their leases are not renewed any more.
    fn note_overdue(&mut self, now: BootTime) {
        let timeout = self.settings.attempt_timeout.as_secs();
        for worker in self.workers.values_mut() {
            let holds = worker.holds.iter_mut();
            for hold in holds.filter(|hold| !hold.is_overdue && hold.due <= now) {
                hold.is_overdue = true;
                log::warn!(
                    "{}: worker {} has not ended it within {timeout} s (--attempt-timeout)",
                    hold.attempt,
                    worker.worker_id
                );
                match (&worker.instance, worker.peer) {
                    (Some(_), _) => worker.answer_due = true,
                    (None, Some(peer)) => self.outgoing.push(abort_message(peer, hold.attempt)),
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

    /// Passes what has expired on to the next transaction, as much as one may take.
    pub(super) fn release_expired(&mut self) {
        let room = limits::EXPIRED_PER_TURN.saturating_sub(self.changes.len());
        let count = room.min(self.expired.len());
        self.changes.extend(self.expired.drain(..count));
    }

    /// At once, while there is more for further transactions and the last one was done.
    pub(super) fn release_at(&self) -> Option<BootTime> {
        let is_due = !self.expired.is_empty() && self.changes.len() < limits::EXPIRED_PER_TURN;
        is_due.then_some(BootTime::default())
    }

    /// The database says that an attempt is not RUNNING any more (another program changed the
    /// row): its worker must stop.
    pub fn handle_revoked(&mut self, attempt: Attempt) {
        self.orphans.remove(&attempt);
        self.exclusive.abandon(attempt);
        for worker in self.workers.values_mut() {
            let before = worker.holds.len();
            worker.holds.retain(|hold| hold.attempt != attempt);
            if worker.holds.len() == before {
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

    /// Ends are committed: their receipts are acknowledged to new workers.
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

    /// Releases are committed.
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

/// A worker in a reason. Rows of the old system name none.
fn shown(worker_id: &str) -> String {
    match worker_id {
        "" => "its worker, which the row does not name,".to_owned(),
        _ => format!("worker {worker_id}"),
    }
}

/// How an attempt is lost whatever else its worker held.
fn own_loss(hold: &Hold, is_displaced: bool) -> Option<Loss> {
    match (is_displaced, hold.is_overdue, hold.is_waiting) {
        (true, ..) => Some(Loss::Displaced),
        // It took its time whatever else its worker held.
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
