//! The sentinel's decisions: which workers are connected, which attempts they hold and for how
//! long, and what follows from a message.
//!
//! This module has no socket, no database and no clock. The event loop passes in messages and the time, and
//! then calls in this order:
//!
//! 1. [`Control::take_changes`]: changes for the iteration's transaction.
//! 2. After the commit, [`Control::handle_claimed`], [`Control::handle_ended`] and the like with its results.
//! 3. [`Control::take_outgoing`]: messages that may be sent now.
//!
//! [`Control::poll_answers`] renews leases. It does not depend on the transaction.
//!
//! Invariants:
//! - Every RUNNING row of the database is a claim here until its lease has ended: of a worker, or of a worker
//!   that is not connected (any more).
//! - An attempt is released only after its lease and the margin have passed, or after its holder has
//!   reported that it does not have it. Connections are no evidence.
//! - Changes are bounded while the database fails: [`Control::is_full`] stops the receiving of messages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use crate::job::{Attempt, Cause, JobStatus, Loss, Plugin, Receipt, User, text};
use crate::limits;
use crate::protocol::{DispatchPart, ErrorMessage, Heartbeat, HeartbeatStatus, Identify, Payload};
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
use leases::Claim;
use members::{Contender, Worker};
use settling::Settling;

pub use capabilities::Capabilities;
pub use caps::payload_size_max;
pub use environments::Wanted;
pub use exchange::{Able, Body, Change, Opening, Outgoing, Sender};
pub use users::UserLimits;

/// Durations that an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Length of a lease.
    pub lease: Duration,
    /// Time between the end of a lease and the release of its attempt: how far the clocks of two hosts may
    /// drift apart during a lease.
    pub margin: Duration,
    /// Time in which a worker must end an attempt.
    pub attempt_timeout: Duration,
}

/// The control state, as the head of the module describes.
#[derive(Debug)]
pub struct Control {
    settings: Settings,
    /// By routing ID.
    workers: BTreeMap<Vec<u8>, Worker>,
    /// The routing IDs of `workers` by worker ID.
    routes: BTreeMap<String, Vec<u8>>,
    /// Connections that ask for the ID of a connected worker, by routing ID.
    contenders: BTreeMap<Vec<u8>, Contender>,
    /// Claims of workers that are not in `workers`, by attempt.
    orphans: BTreeMap<Attempt, Orphan>,
    /// Releases of attempts with expired leases, for the next transactions.
    expired: VecDeque<Change>,
    /// Attempts whose end is in `changes` or `expired`.
    ending: BTreeSet<Attempt>,
    exclusive: Exclusive,
    settling: Settling,
    /// A slot has become free without a change for the database.
    has_freed: bool,
    changes: Vec<Change>,
    /// Bytes of receipts in `changes`.
    receipts_size: usize,
    outgoing: Vec<Outgoing>,
    /// No lease ends before this time.
    next_expiry: Option<BootTime>,
    seen_at: Option<BootTime>,
    /// When the leases that earlier sentinels may have given end.
    earlier_until: Option<BootTime>,
    draining: bool,
    /// Serialised parts of DISPATCH by plugin name, each with its plugin version.
    dispatch_parts: BTreeMap<String, (Arc<Plugin>, DispatchPart)>,
    /// Workers, with their users, that have been connected to earlier sentinels of this database, by worker
    /// ID.
    remembered: BTreeMap<String, (Option<User>, Identify<'static>)>,
    /// By routing ID as text: the users and IDs of workers that have had it, the last one first.
    remembered_routes: BTreeMap<String, Vec<(Option<User>, String)>>,
    /// Environments that workers should have, the most urgent first, and how often this list has changed.
    wanted: Vec<Wanted>,
    wanted_number: u64,
    /// Limits by the users' keys.
    user_limits: BTreeMap<String, UserLimits>,
    /// When an error that a worker reported was last logged. At most one a second is logged.
    error_logged_at: Option<BootTime>,
    /// When it was last logged that a worker asked for the ID of another user's worker.
    refusal_logged_at: Option<BootTime>,
    /// The publishers whose deployments are accepted.
    trust: Trust,
    /// Bytes of the deployments in `changes`.
    deploys_size: usize,
    /// When a refused deployment was last logged, and the number of refusals since then.
    deploy_refusal_logged_at: Option<BootTime>,
    refusals_unlogged: u64,
}

/// A claim of a worker that is not in `workers` (any more).
#[derive(Clone, Debug)]
struct Orphan {
    claim: Claim,
    worker_id: String,
    user: Option<User>,
    /// The worker's process, where it is known.
    instance: Option<String>,
    /// The worker's routing ID, where it is known.
    routing_id: Option<Vec<u8>>,
    /// Another process has taken over the worker's ID.
    is_displaced: bool,
}

impl Control {
    /// A control state without workers.
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

    /// Adds a worker that has been connected to an earlier sentinel of this database. A worker of the
    /// reference system sends IDENTIFY only once, so this `identify` is used at its next message.
    /// `routing_id` = its routing ID as text. Of several workers with the same routing ID, the last seen one
    /// must be added first.
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

    /// The worker ID of a sender that has not sent IDENTIFY: the ID of its user's last worker with this
    /// routing ID, or else the routing ID as text.
    fn presumed_id(&self, from: &Sender<'_>) -> String {
        let text = printable(from.routing_id);
        let known = self.remembered_routes.get(&text);
        let theirs = known.into_iter().flatten();
        let mut theirs = theirs.filter(|(user, _)| !are_different(user.as_ref(), from.user));
        match theirs.next() {
            Some((_, worker_id)) => worker_id.clone(),
            None => text,
        }
    }

    /// The IDENTIFY of a remembered worker, unless it is another user's.
    fn take_remembered(&mut self, from: &Sender<'_>) -> Option<Identify<'static>> {
        let worker_id = self.presumed_id(from);
        let (user, _) = self.remembered.get(&worker_id)?;
        if are_different(user.as_ref(), from.user) {
            return None;
        }
        let (_, identify) = self.remembered.remove(&worker_id)?;
        Some(identify)
    }

    /// Stops the dispatching of jobs.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Number of attempts that workers hold which are connected or may reconnect.
    pub fn claim_count(&self) -> usize {
        self.workers
            .values()
            .map(|worker| worker.claims.len())
            .sum()
    }

    /// Claimed attempts above `after` in ascending order, at most `limit`, each with its worker's ID where
    /// that is known.
    pub fn claims_after(&self, after: Attempt, limit: usize) -> Vec<(Attempt, Option<String>)> {
        let theirs = self.workers.values().flat_map(|worker| {
            let claims = worker.claims.iter().filter(|claim| claim.attempt > after);
            claims.map(|claim| (claim.attempt, Some(&worker.worker_id)))
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

    /// Number of connected workers.
    #[cfg(test)]
    fn online_count(&self) -> usize {
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

    /// Puts the changes of a failed transaction before all later ones.
    pub fn restore_changes(&mut self, mut changes: Vec<Change>) {
        self.deploys_size += Self::deploys_size(&changes);
        self.receipts_size += changes.iter().map(Change::receipt_size).sum::<usize>();
        changes.append(&mut self.changes);
        self.changes = changes;
    }

    /// True when so many changes wait for a failing database that no more messages may be received.
    pub fn is_full(&self) -> bool {
        self.changes.len() >= limits::CHANGES_MAX || self.receipts_size >= limits::RECEIPTS_SIZE_MAX
    }

    /// IDs of connected workers.
    fn online(&self) -> Vec<String> {
        self.workers
            .values()
            .filter(|worker| worker.peer.is_some())
            .map(|worker| worker.worker_id.clone())
            .collect()
    }

    /// Messages that may be sent after the transaction is committed.
    pub fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing)
    }

    /// Processes a message. Returns the reason when its sender must not send such a message.
    pub fn handle_message(
        &mut self,
        from: &Sender<'_>,
        job_id: u64,
        payload: Payload<'_>,
        now: BootTime,
    ) -> Option<&'static str> {
        let (peer, routing_id) = (from.peer, from.routing_id);
        let is_anothers = match self.workers.get(routing_id) {
            Some(worker) => are_different(worker.user.as_ref(), from.user),
            // IDENTIFY may contain another ID than the routing ID.
            None if matches!(payload, Payload::Identify(_)) => false,
            None => self.is_anothers_route(from),
        };
        if is_anothers {
            return Some(ANOTHERS);
        }
        if let Some(worker) = self.workers.get_mut(routing_id)
            && worker.peer == Some(peer)
        {
            worker.received_at = now;
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
            // Only for workers of the reference system. Others send IDENTIFY on each connection.
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
        let is_idle =
            heartbeat.status == HeartbeatStatus::Idle && heartbeat.current_job_id.is_none();
        self.handle_status(from.routing_id, is_idle, now);
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

    /// Sends RELOAD to a worker that has not sent IDENTIFY to this sentinel. Casparian's workers answer it
    /// with IDENTIFY.
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
                    self.end_claim(from.routing_id, worker_id, attempt, receipt);
                } else if !self.contenders.contains_key(from.routing_id) {
                    // The worker sends the receipt again after IDENTIFY.
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
        let index = worker.claims.iter().position(|claim| {
            let number = claim.attempt.number;
            claim.attempt.job_id == job_id && receipt.attempt.is_none_or(|sent| sent == number)
        });
        let held = index.map(|index| worker.claims.swap_remove(index));
        worker.overdue.retain(|attempt| attempt.job_id != job_id);
        if held.as_ref().is_some_and(|claim| claim.is_overdue)
            && receipt.status == JobStatus::Failed
            && receipt.cause.is_none_or(|cause| cause == Cause::Operator)
        {
            // The worker was asked to stop it, because it was overdue.
            receipt.cause = Some(Cause::Lost);
        }
        let worker_id = worker.worker_id.clone();
        let attempt = match held {
            Some(claim) => claim.attempt,
            None => Attempt::new(job_id, receipt.attempt.unwrap_or(0)),
        };
        self.end_claim(from.routing_id, worker_id, attempt, receipt);
        None
    }

    /// Ends an attempt by its holder's receipt.
    pub(super) fn end_claim(
        &mut self,
        routing_id: &[u8],
        worker_id: String,
        attempt: Attempt,
        receipt: Receipt,
    ) {
        match receipt.cause {
            // By the worker's own report the attempt may still publish.
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

    /// Processes what is due at `now`.
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

    /// Extends leases, and the waits of contenders, by the time for which the sentinel itself was stopped or
    /// suspended. Contenders that arrived at `now` are not affected.
    pub fn handle_suspension(&mut self, duration: Duration, now: BootTime) {
        log::warn!("this sentinel did not run for {} s", duration.as_secs());
        let theirs = self.workers.values_mut();
        let claims = theirs.flat_map(|worker| &mut worker.claims);
        let orphans = self.orphans.values_mut().map(|orphan| &mut orphan.claim);
        for claim in claims.chain(orphans) {
            claim.until = claim.until + duration;
            claim.due = claim.due + duration;
        }
        let contenders = self.contenders.values_mut();
        for contender in contenders.filter(|contender| contender.since < now) {
            contender.until = contender.until + duration;
        }
        self.next_expiry = self.next_expiry.map(|at| at + duration);
        self.earlier_until = self.earlier_until.map(|at| at + duration);
    }

    /// True when an attempt is claimed, or its end waits for the transaction.
    pub fn is_known(&self, attempt: Attempt) -> bool {
        let mut theirs = self.workers.values().flat_map(|worker| &worker.claims);
        self.ending.contains(&attempt)
            || self.orphans.contains_key(&attempt)
            || theirs.any(|claim| claim.attempt == attempt)
    }

    /// Notes all workers as offline, because the sentinel stops.
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

/// True when both users are known and not the same.
fn are_different(one: Option<&User>, other: Option<&User>) -> bool {
    one.zip(other).is_some_and(|(one, other)| !one.is(other))
}

const ANOTHERS: &str = "the worker's ID belongs to another user";

/// A routing ID as text: as it is if it is printable UTF-8, else in hex.
pub(crate) fn printable(routing_id: &[u8]) -> String {
    match std::str::from_utf8(routing_id) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => text::hex(routing_id),
    }
}

#[cfg(test)]
mod tests;
