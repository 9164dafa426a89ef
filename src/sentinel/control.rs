//! The sentinel's decisions: which workers are connected, which attempts they hold and for how
//! long, and what becomes of a message.
//!
//! No socket, no database, no clock. The loop passes messages and time in and drains, in this
//! order: [`Control::take_changes`] for the iteration's transaction; after its commit the claims
//! and ends go back in through [`Control::handle_claimed`] and [`Control::handle_ended`]; then
//! [`Control::take_outgoing`], whose messages may leave. [`Control::poll_answers`] renews leases
//! and does not depend on the transaction.
//!
//! Invariants:
//! - Every RUNNING row of the database is a hold here: of a worker, or of a worker that is not
//!   known (any more), until its lease has run out.
//! - An attempt is released only after its lease and the margin have passed, or after its holder
//!   reported that it does not have it. Connections are no evidence.
//! - Changes are bounded while the database fails: [`Control::is_full`] stops reading.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use crate::job::{Attempt, Cause, JobStatus, Loss, Plugin, Receipt, User, text};
use crate::limits;
use crate::protocol::{DispatchPart, ErrorMessage, Heartbeat, Identify, Payload};
use crate::reactor::BootTime;
use crate::socket::PeerId;

mod capabilities;
mod caps;
mod claims;
pub mod deploy;
mod environments;
mod exchange;
mod exclusive;
mod leases;
mod members;
mod settling;
mod users;

use super::publishers::Trust;
use exclusive::Exclusive;
use leases::Hold;
use members::{Contender, Worker};
use settling::Settling;
use users::ANOTHERS;

pub use capabilities::Capabilities;
pub use caps::payload_size_max;
pub use environments::Wanted;
pub use exchange::{Able, Body, Change, Opening, Outgoing, Sender};
pub use users::UserLimits;

/// Durations that an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bound of a lease.
    pub lease: Duration,
    /// Added to a lease before its attempt is released: what the clocks of two hosts may drift
    /// apart in that time.
    pub margin: Duration,
    /// Time in which a worker must end an attempt.
    pub attempt_timeout: Duration,
}

/// See the module's head.
#[derive(Debug)]
pub struct Control {
    settings: Settings,
    /// By routing ID.
    workers: BTreeMap<Vec<u8>, Worker>,
    /// The routing IDs of `workers` by worker ID.
    routes: BTreeMap<String, Vec<u8>>,
    /// Connections that ask for the ID of a connected worker, by routing ID.
    contenders: BTreeMap<Vec<u8>, Contender>,
    /// Holds of workers that are not in `workers`, by attempt.
    orphans: BTreeMap<Attempt, Orphan>,
    /// Releases of attempts whose leases ran out, for the next transactions.
    expired: VecDeque<Change>,
    /// Attempts whose end is in `changes` or `expired`.
    ending: BTreeSet<Attempt>,
    exclusive: Exclusive,
    settling: Settling,
    /// A slot was freed without a change for the database.
    has_freed: bool,
    changes: Vec<Change>,
    /// Bytes of receipts in `changes`.
    receipts_size: usize,
    outgoing: Vec<Outgoing>,
    /// No lease runs out before.
    next_expiry: Option<BootTime>,
    seen_at: Option<BootTime>,
    /// When the leases that earlier sentinels may have given are over.
    earlier_until: Option<BootTime>,
    draining: bool,
    /// Serialised parts of DISPATCH by plugin name, each with the version that it is of.
    dispatch_parts: BTreeMap<String, (Arc<Plugin>, DispatchPart)>,
    /// Workers that earlier sentinels on this database knew, and their users, by worker ID.
    remembered: BTreeMap<String, (Option<User>, Identify<'static>)>,
    /// The IDs of those that are known by their routing ID, and their users, by that as text: the one
    /// that had it last comes first.
    remembered_routes: BTreeMap<String, Vec<(Option<User>, String)>>,
    /// Environments that workers are to have, the most urgent first, and how often that has changed.
    wanted: Vec<Wanted>,
    wanted_number: u64,
    /// By the users' keys.
    user_limits: BTreeMap<String, UserLimits>,
    /// When an error that a worker reported was last logged: one a second at most.
    error_logged_at: Option<BootTime>,
    /// When a worker was last logged that asked for the ID of another user's.
    refusal_logged_at: Option<BootTime>,
    /// Whose deployments are taken.
    trust: Trust,
    /// Bytes of the deployments in `changes`.
    deploys_size: usize,
    /// When a deployment that was refused was last logged, and how many were since then.
    deploy_refusal_logged_at: Option<BootTime>,
    refusals_unlogged: u64,
}

/// A hold whose worker is not known (any more).
#[derive(Clone, Debug)]
struct Orphan {
    hold: Hold,
    worker_id: String,
    user: Option<User>,
    /// The process, where it is known.
    instance: Option<String>,
    /// Where it is known.
    routing_id: Option<Vec<u8>>,
    /// Another process has taken over the worker's ID.
    is_displaced: bool,
}

impl Control {
    /// No workers yet.
    pub fn new(settings: Settings) -> Self {
        Control {
            settings,
            workers: BTreeMap::new(),
            routes: BTreeMap::new(),
            contenders: BTreeMap::new(),
            orphans: BTreeMap::new(),
            expired: VecDeque::new(),
            ending: BTreeSet::new(),
            exclusive: Exclusive::default(),
            settling: Settling::default(),
            has_freed: false,
            changes: Vec::new(),
            receipts_size: 0,
            outgoing: Vec::new(),
            next_expiry: None,
            seen_at: None,
            earlier_until: None,
            draining: false,
            dispatch_parts: BTreeMap::new(),
            remembered: BTreeMap::new(),
            remembered_routes: BTreeMap::new(),
            wanted: Vec::new(),
            wanted_number: 0,
            user_limits: BTreeMap::new(),
            error_logged_at: None,
            refusal_logged_at: None,
            trust: Trust::default(),
            deploys_size: 0,
            deploy_refusal_logged_at: None,
            refusals_unlogged: 0,
        }
    }

    /// A worker that an earlier sentinel on this database knew. One of the old system identifies
    /// itself once in its life, so when it is heard again this stands for it.
    /// `routing_id` is what it is heard by, as text. Of workers with one routing ID the one that was
    /// heard last must come first.
    pub fn remember_worker(
        &mut self,
        worker_id: &str,
        user: Option<User>,
        routing_id: Option<String>,
        identify: Identify<'static>,
    ) {
        if let Some(routing_id) = routing_id {
            let known = self.remembered_routes.entry(routing_id).or_default();
            known.push((user.clone(), worker_id.to_owned()));
        }
        let worker = (user, identify);
        self.remembered.insert(worker_id.to_owned(), worker);
    }

    /// The ID of the worker that a sender without IDENTIFY is, as far as that can be known: the last
    /// one of its user that had its routing ID.
    fn presumed_id(&self, from: &Sender<'_>) -> String {
        let text = printable(from.routing_id);
        let known = self.remembered_routes.get(&text);
        let theirs = known.into_iter().flatten();
        let mut theirs = theirs.filter(|(user, _)| !users::are_different(user.as_ref(), from.user));
        match theirs.next() {
            Some((_, worker_id)) => worker_id.clone(),
            None => text,
        }
    }

    /// What is known of a worker that earlier sentinels have heard, unless it is another user's.
    fn take_remembered(&mut self, from: &Sender<'_>) -> Option<Identify<'static>> {
        let worker_id = self.presumed_id(from);
        let (user, _) = self.remembered.get(&worker_id)?;
        if users::are_different(user.as_ref(), from.user) {
            return None;
        }
        let (_, identify) = self.remembered.remove(&worker_id)?;
        Some(identify)
    }

    /// From now on no job is dispatched.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Attempts that connected or returning workers hold.
    pub fn held_count(&self) -> usize {
        self.workers.values().map(|worker| worker.holds.len()).sum()
    }

    /// Attempts that are held, above `after` and rising, at most `limit`, with the IDs of workers
    /// that are known.
    pub fn held_after(&self, after: Attempt, limit: usize) -> Vec<(Attempt, Option<String>)> {
        let theirs = self.workers.values().flat_map(|worker| {
            let holds = worker.holds.iter().filter(|hold| hold.attempt > after);
            holds.map(|hold| (hold.attempt, Some(&worker.worker_id)))
        });
        let above = (Bound::Excluded(after), Bound::Unbounded);
        let orphans = self.orphans.range(above).take(limit);
        let orphans = orphans.map(|(attempt, _)| (*attempt, None));
        let mut held: Vec<_> = theirs.chain(orphans).collect();
        held.sort_unstable();
        held.truncate(limit);
        held.into_iter()
            .map(|(attempt, worker_id)| (attempt, worker_id.cloned()))
            .collect()
    }

    /// Workers with a live connection.
    pub fn online_count(&self) -> usize {
        self.workers
            .values()
            .filter(|worker| worker.peer.is_some())
            .count()
    }

    /// Changes for the iteration's transaction, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.deploys_size = 0;
        self.receipts_size = 0;
        std::mem::take(&mut self.changes)
    }

    /// The transaction failed: its changes come first in the next one.
    pub fn restore_changes(&mut self, mut changes: Vec<Change>) {
        self.deploys_size += Self::deploys_size(&changes);
        self.receipts_size += changes.iter().map(Change::receipt_size).sum::<usize>();
        changes.append(&mut self.changes);
        self.changes = changes;
    }

    /// True when so many changes wait for a failing database that nothing more may be read.
    pub fn is_full(&self) -> bool {
        self.changes.len() >= limits::CHANGES_MAX || self.receipts_size >= limits::RECEIPTS_SIZE_MAX
    }

    /// IDs of workers with a live connection.
    fn online(&self) -> Vec<String> {
        self.workers
            .values()
            .filter(|worker| worker.peer.is_some())
            .map(|worker| worker.worker_id.clone())
            .collect()
    }

    /// Messages that may leave now that the transaction is committed.
    pub fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing)
    }

    /// A message. Gives the reason when it is not one that its sender may send.
    pub fn handle_message(
        &mut self,
        from: &Sender<'_>,
        job_id: u64,
        payload: Payload<'_>,
        now: BootTime,
    ) -> Option<&'static str> {
        let (peer, routing_id) = (from.peer, from.routing_id);
        let is_anothers = match self.workers.get(routing_id) {
            Some(worker) => users::are_different(worker.user.as_ref(), from.user),
            // IDENTIFY may bring another ID than the routing ID.
            None if matches!(payload, Payload::Identify(_)) => false,
            None => self.is_anothers_route(from),
        };
        if is_anothers {
            return Some(ANOTHERS);
        }
        if let Some(worker) = self.workers.get_mut(routing_id)
            && worker.peer == Some(peer)
        {
            worker.heard_at = now;
            self.has_freed |= std::mem::take(&mut worker.is_backed_up);
        }
        match payload {
            Payload::Identify(identify) => return self.handle_identify(from, &identify, now),
            Payload::Heartbeat(heartbeat) => return self.handle_heartbeat(from, heartbeat, now),
            Payload::Conclude(receipt) => return self.conclude(from, job_id, receipt),
            Payload::Err(error) => return self.failed(from, job_id, &error, now),
            Payload::EnvReady(ready) => {
                self.environment_ready(routing_id, &ready, now);
            }
            Payload::Deploy(deploy) => self.handle_deploy(from, job_id, *deploy, now),
            // Accepted and ignored.
            Payload::Unknown => {}
            Payload::Dispatch(_) | Payload::Abort | Payload::Reload | Payload::PrepareEnv(_) => {
                return Some("only a sentinel sends such a message");
            }
        }
        None
    }

    fn send_error(&mut self, peer: PeerId, job_id: u64, message: String, refused: bool) {
        self.outgoing.push(Outgoing {
            peer,
            job_id,
            body: Body::Payload(Payload::Err(ErrorMessage {
                message: message.into(),
                traceback: None,
                refused,
                env_hash: None,
            })),
        });
    }

    fn handle_heartbeat(
        &mut self,
        from: &Sender<'_>,
        heartbeat: Heartbeat,
        now: BootTime,
    ) -> Option<&'static str> {
        if heartbeat.answer.is_some() {
            return Some("only a sentinel answers requests");
        }
        if let Some(why) = caps::refuse_heartbeat(&heartbeat) {
            return Some(why);
        }
        if !self.workers.contains_key(from.routing_id) {
            if self.contenders.contains_key(from.routing_id) {
                return None;
            }
            // Old workers only: newer ones identify themselves on each connection.
            let remembered = match heartbeat.sequence {
                Some(_) => None,
                None => self.take_remembered(from),
            };
            let Some(mut identify) = remembered else {
                self.ask_to_identify(from.peer);
                return None;
            };
            let current = heartbeat.current_job_id.map(|job| Attempt::new(job, -1));
            identify.running = heartbeat
                .running
                .or_else(|| Some(current.into_iter().collect()));
            return self.handle_identify(from, &identify, now);
        }
        self.connected(from);
        let running = match heartbeat.running {
            Some(running) => running,
            None => {
                let current = heartbeat.current_job_id.map(|job| Attempt::new(job, -1));
                current.into_iter().collect()
            }
        };
        if let Some(sequence) = heartbeat.sequence {
            self.handle_request(from.routing_id, sequence, now);
            self.give_up_missing(from.routing_id, &running, heartbeat.answered);
            self.ask_exclusive(from.routing_id, &heartbeat.publish);
            self.set_waiting(from.routing_id, &heartbeat.waiting);
        }
        self.adopt(from.routing_id, &running, now);
        self.set_state(
            from.routing_id,
            heartbeat.draining,
            heartbeat.trouble,
            heartbeat.environments,
        );
        self.limit_jobs(from.routing_id, heartbeat.takes, &running);
        None
    }

    /// A worker that talks without having identified itself to this process is asked by RELOAD,
    /// which newer workers answer with IDENTIFY.
    fn ask_to_identify(&mut self, peer: PeerId) {
        self.outgoing.push(Outgoing {
            peer,
            job_id: 0,
            body: Body::Payload(Payload::Reload),
        });
    }

    fn conclude(
        &mut self,
        from: &Sender<'_>,
        job_id: u64,
        mut receipt: Receipt,
    ) -> Option<&'static str> {
        let Ok(job_id) = i64::try_from(job_id) else {
            return Some("a receipt for an impossible job ID");
        };
        caps::bound(&mut receipt);
        let is_known = self.workers.contains_key(from.routing_id);
        if is_known && self.settled(from.routing_id, job_id, &receipt) {
            return None;
        }
        let Some(worker) = self.workers.get_mut(from.routing_id) else {
            if let Some(number) = receipt.attempt {
                let attempt = Attempt::new(job_id, number);
                if let Some(worker_id) = self.take_displaced(from, attempt) {
                    self.end_held(from.routing_id, worker_id, attempt, receipt);
                } else if !self.contenders.contains_key(from.routing_id) {
                    // It is sent again after IDENTIFY.
                    self.ask_to_identify(from.peer);
                }
                return None;
            }
            let worker_id = self.presumed_id(from);
            let known = self.orphans.iter().find(|(attempt, orphan)| {
                attempt.job_id == job_id && orphan.worker_id == worker_id
            });
            let attempt = known.map_or(Attempt::new(job_id, 0), |(attempt, _)| *attempt);
            self.orphans.remove(&attempt);
            self.end(from.routing_id, worker_id, attempt, receipt);
            return None;
        };
        let index = worker.holds.iter().position(|hold| {
            let number = hold.attempt.number;
            hold.attempt.job_id == job_id && receipt.attempt.is_none_or(|sent| sent == number)
        });
        let held = index.map(|index| worker.holds.swap_remove(index));
        worker.overdue.retain(|attempt| attempt.job_id != job_id);
        if held.as_ref().is_some_and(|hold| hold.is_overdue)
            && receipt.status == JobStatus::Failed
            && receipt.cause.is_none_or(|cause| cause == Cause::Operator)
        {
            // It was asked to stop.
            receipt.cause = Some(Cause::Lost);
        }
        let worker_id = worker.worker_id.clone();
        let attempt = match held {
            Some(hold) => hold.attempt,
            None => Attempt::new(job_id, receipt.attempt.unwrap_or(0)),
        };
        self.end_held(from.routing_id, worker_id, attempt, receipt);
        None
    }

    /// An attempt ends that its worker held.
    fn end_held(
        &mut self,
        routing_id: &[u8],
        worker_id: String,
        attempt: Attempt,
        receipt: Receipt,
    ) {
        match receipt.cause {
            // Its writer may still publish, by the worker's own report.
            Some(Cause::Lost) => self.exclusive.abandon(attempt),
            _ => self.exclusive.release(attempt),
        }
        self.end(routing_id, worker_id, attempt, receipt);
    }

    fn end(&mut self, routing_id: &[u8], worker_id: String, attempt: Attempt, receipt: Receipt) {
        if attempt.is_numbered() && !self.ending.insert(attempt) {
            return;
        }
        self.receipts_size += caps::size(&receipt);
        self.changes.push(Change::End {
            routing_id: routing_id.to_vec(),
            worker_id,
            attempt,
            receipt: Box::new(receipt),
        });
    }

    fn failed(
        &mut self,
        from: &Sender<'_>,
        job_id: u64,
        error: &ErrorMessage<'_>,
        now: BootTime,
    ) -> Option<&'static str> {
        if job_id == 0 {
            if let Some(hash) = &error.env_hash {
                self.environment_failed(from.routing_id, hash, now);
            }
            let second = Duration::from_secs(1);
            if self.error_logged_at.is_none_or(|at| at + second <= now) {
                self.error_logged_at = Some(now);
                let who = printable(from.routing_id);
                log::warn!("{who}: {}", text::prefix(&error.message, 1000));
            }
            return None;
        }
        let message = match &error.traceback {
            Some(traceback) => format!("{}\n{traceback}", error.message),
            None => error.message.to_string(),
        };
        let receipt = Receipt {
            status: JobStatus::Failed,
            error_message: Some(message),
            ..Receipt::default()
        };
        self.conclude(from, job_id, receipt)
    }

    /// When [`Control::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        let contenders = self.contenders.values().map(|contender| contender.until);
        let absent = self.workers.values().filter_map(Worker::offline_at);
        contenders
            .chain(absent)
            .chain(self.next_expiry)
            .chain(self.release_at())
            .chain(self.seen_at)
            .min()
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: BootTime) {
        self.admit_contenders(now);
        self.report_absent(now);
        if self.next_expiry.is_some_and(|at| at <= now) {
            self.expire(now);
        }
        self.release_expired();
        if self.seen_at.is_some_and(|at| at <= now) {
            self.seen_at = (!self.workers.is_empty()).then(|| now + limits::SEEN_INTERVAL);
            self.apply_user_limits();
            let workers = self.online();
            if !workers.is_empty() && !self.is_full() {
                self.changes.push(Change::Seen { workers });
            }
        }
    }

    /// The sentinel itself was stopped or suspended for so long: leases, and what contenders for an
    /// ID wait for, run on from now. Contenders that came at `now` wait from then on anyway.
    pub fn handle_absence(&mut self, away: Duration, now: BootTime) {
        log::warn!("this sentinel did not run for {} s", away.as_secs());
        let theirs = self.workers.values_mut();
        let holds = theirs.flat_map(|worker| &mut worker.holds);
        let orphans = self.orphans.values_mut().map(|orphan| &mut orphan.hold);
        for hold in holds.chain(orphans) {
            hold.until = hold.until + away;
            hold.due = hold.due + away;
        }
        let contenders = self.contenders.values_mut();
        for contender in contenders.filter(|contender| contender.since < now) {
            contender.until = contender.until + away;
        }
        self.next_expiry = self.next_expiry.map(|at| at + away);
        self.earlier_until = self.earlier_until.map(|at| at + away);
    }

    /// True when an attempt is held, or its end waits for the transaction.
    pub fn is_known(&self, attempt: Attempt) -> bool {
        let mut theirs = self.workers.values().flat_map(|worker| &worker.holds);
        self.ending.contains(&attempt)
            || self.orphans.contains_key(&attempt)
            || theirs.any(|hold| hold.attempt == attempt)
    }

    /// The sentinel stops: connected workers are noted as offline.
    pub fn close(&mut self) {
        for worker in self.workers.values() {
            self.changes.push(Change::WorkerOffline {
                worker_id: worker.worker_id.clone(),
            });
        }
    }

    fn release(&mut self, attempt: Attempt, cause: Cause, loss: Loss, reason: String) {
        if self.ending.insert(attempt) {
            self.changes.push(Change::Release {
                attempt,
                cause,
                loss,
                reason,
            });
        }
    }
}

/// A routing ID as text.
pub(crate) fn printable(routing_id: &[u8]) -> String {
    match std::str::from_utf8(routing_id) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => text::hex(routing_id),
    }
}

#[cfg(test)]
mod tests;
