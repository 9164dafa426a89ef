//! One turn's transaction: changes are applied, free slots are filled, all of it is committed.

use std::collections::HashSet;
use std::time::Instant;

use super::control::{Capabilities, Change, Control, Opening};
use super::serve::Options;
use crate::job::{Attempt, Job, JobStatus, Receipt};
use crate::limits;
use crate::store::{self, Claim, Completion, End, Released, Store, WorkerSession};

pub(crate) struct Turn<'a> {
    pub(crate) store: &'a mut Store,
    pub(crate) control: &'a mut Control,
    pub(crate) options: &'a Options,
    pub(crate) waiting_said: &'a mut HashSet<String>,
    pub(crate) now: Instant,
    /// The same as Unix time.
    pub(crate) now_ms: i64,
}

/// What the control state is told once the transaction is durable.
#[derive(Default)]
struct Outcome {
    adopted: Vec<(Vec<u8>, i64, Option<i64>)>,
    revoked: Vec<i64>,
    claimed: Vec<(Vec<u8>, Vec<Job>)>,
    /// Rows were put (back) into the queue.
    queued: bool,
    /// A claim looked at what was waiting.
    looked: bool,
    /// Claims took all that was asked for, so there may be more.
    more: bool,
}

/// At the start nobody is connected, and RUNNING rows without a live lease are nobody's.
pub(crate) fn recover(
    store: &mut Store,
    options: &Options,
    now_ms: i64,
) -> Result<(), store::Error> {
    loop {
        let mut turn = store.begin()?;
        turn.all_workers_offline(now_ms)?;
        let (until_ms, retries_max) = match options.exclusive {
            true => (i64::MAX, u32::MAX),
            false => (now_ms, options.retries_max),
        };
        let expired = turn.requeue_expired(until_ms, retries_max, limits::EXPIRED_PER_TURN)?;
        turn.commit()?;
        if !expired.is_empty() {
            log::info!(
                "{} job(s) of an earlier run go back to the queue",
                expired.len()
            );
        }
        if expired.len() < limits::EXPIRED_PER_TURN {
            return Ok(());
        }
    }
}

impl Turn<'_> {
    /// `queue_changed` = rows may wait that no claim has looked at; it is kept true while there
    /// may be more. `expire` = look for leases that are over.
    pub(crate) fn run(
        &mut self,
        queue_changed: &mut bool,
        expire: bool,
    ) -> Result<(), store::Error> {
        let has_expired = expire && self.store.has_expired(self.now_ms)?;
        if expire && !has_expired {
            self.control.forget_claimants(self.now);
        }
        let expire = has_expired;
        let changes = self.control.take_changes();
        // A worker that has just come may be able to run what nobody could, and a job's end
        // frees a slot of a worker that may be the only one that can run what waits.
        *queue_changed |= changes.iter().any(|change| {
            matches!(
                change,
                Change::WorkerOnline { .. } | Change::Complete { .. }
            )
        });
        let mut waiting = Vec::new();
        if *queue_changed && self.control.has_openings() {
            waiting = self.store.queued_plugins(limits::QUEUED_PLUGINS_MAX)?;
            *queue_changed = !waiting.is_empty();
        }
        if changes.is_empty() && !expire && waiting.is_empty() {
            return Ok(());
        }
        match self.transact(&changes, expire, waiting) {
            Ok(outcome) => {
                *queue_changed = self.absorb(outcome, *queue_changed);
                Ok(())
            }
            Err(error) => {
                self.control.restore_changes(changes);
                Err(error)
            }
        }
    }

    fn transact(
        &mut self,
        changes: &[Change],
        expire: bool,
        waiting: Vec<String>,
    ) -> Result<Outcome, store::Error> {
        let mut outcome = Outcome::default();
        let openings = self.control.openings();
        let mut turn = self.store.begin()?;
        for change in changes {
            apply(&mut turn, change, self.options, self.now_ms, &mut outcome)?;
        }
        let came = |change: &Change| matches!(change, Change::WorkerOnline { .. });
        if changes.iter().any(came) {
            turn.forget_old_workers()?;
        }
        if expire {
            let expired = turn.requeue_expired(
                self.now_ms,
                self.options.retries_max,
                limits::EXPIRED_PER_TURN,
            )?;
            for job in expired {
                log::warn!("job {}: its lease ran out ({:?})", job.job_id, job.released);
                outcome.revoked.push(job.job_id);
                outcome.queued = true;
            }
        }
        // Rows that were released in this very transaction are seen by the next turn.
        if !waiting.is_empty() {
            outcome.looked = true;
            let mut deployed = Vec::with_capacity(waiting.len());
            for plugin in waiting {
                if turn.plugin_code(&plugin)?.is_some() {
                    deployed.push(plugin);
                } else if self.waiting_said.insert(plugin.clone()) {
                    log::warn!("jobs of plugin {plugin} wait: it is not deployed");
                }
            }
            for plugin in &deployed {
                let able = openings
                    .iter()
                    .any(|opening| opening.capabilities.allows(plugin));
                if !able && self.waiting_said.insert(plugin.clone()) {
                    log::info!("jobs of plugin {plugin} wait for a worker that may run it");
                }
            }
            if self.waiting_said.len() > limits::QUEUED_PLUGINS_MAX {
                self.waiting_said.clear();
            }
            claim(
                &mut turn,
                &openings,
                &deployed,
                self.options,
                self.now_ms,
                &mut outcome,
            )?;
        }
        turn.commit()?;
        Ok(outcome)
    }

    /// Gives the new value of `queue_changed`.
    fn absorb(&mut self, outcome: Outcome, queue_changed: bool) -> bool {
        for (identity, job_id, attempt) in outcome.adopted {
            self.control.handle_adopted(&identity, job_id, attempt);
        }
        for job_id in outcome.revoked {
            self.control.handle_revoked(job_id);
        }
        for (identity, jobs) in outcome.claimed {
            self.control.handle_claimed(&identity, jobs);
        }
        outcome.queued || outcome.more || (queue_changed && !outcome.looked)
    }
}

fn apply(
    turn: &mut store::Turn<'_>,
    change: &Change,
    options: &Options,
    now_ms: i64,
    outcome: &mut Outcome,
) -> Result<(), store::Error> {
    let lease_ms = i64::try_from(options.lease.as_millis()).unwrap_or(i64::MAX);
    match change {
        Change::WorkerOnline {
            worker_id,
            user,
            hostname,
            pid,
            capabilities,
            slots,
        } => {
            let session = WorkerSession {
                worker_id: worker_id.clone(),
                user_id: user.clone(),
                hostname: hostname.clone(),
                pid: *pid,
                capabilities: capabilities.clone(),
                slots: i64::try_from(*slots).unwrap_or(i64::MAX),
            };
            turn.save_worker(&session, now_ms)?;
        }
        Change::WorkerOffline { worker_id } => turn.worker_offline(worker_id, now_ms)?,
        Change::Complete {
            worker_id,
            job_id,
            attempt,
            receipt,
        } => {
            if !complete(turn, worker_id, *job_id, *attempt, receipt, now_ms)? {
                log::warn!("job {job_id}: receipt of {worker_id} ignored, it is not the holder");
            }
        }
        Change::Release { hold, reason } => {
            release(turn, *hold, reason, options, now_ms, outcome)?;
        }
        Change::Reconcile { worker_id, running } => {
            for held in turn.running_of(worker_id)? {
                let kept = running.iter().any(|hold| {
                    hold.job_id == held.job_id && (hold.number < 0 || hold.number == held.number)
                });
                if !kept {
                    let reason = format!("worker {worker_id} came back without the job");
                    release(turn, held, &reason, options, now_ms, outcome)?;
                }
            }
        }
        Change::Adopt {
            identity,
            worker_id,
            job_id,
            attempt,
        } => {
            let held = turn.held_by(worker_id, *job_id, *attempt)?;
            if let Some(attempt) = held {
                turn.renew(
                    &[Attempt::new(*job_id, attempt)],
                    now_ms.saturating_add(lease_ms),
                )?;
            }
            outcome.adopted.push((identity.clone(), *job_id, held));
        }
        Change::Renew { holds, workers } => {
            turn.renew(holds, now_ms.saturating_add(lease_ms))?;
            turn.touch_workers(workers, now_ms)?;
        }
    }
    Ok(())
}

fn release(
    turn: &mut store::Turn<'_>,
    hold: Attempt,
    reason: &str,
    options: &Options,
    now_ms: i64,
    outcome: &mut Outcome,
) -> Result<(), store::Error> {
    match turn.release(hold, reason, options.retries_max, now_ms)? {
        Released::Requeued => {
            log::info!("job {} goes back to the queue: {reason}", hold.job_id);
            outcome.queued = true;
        }
        Released::Failed => log::warn!("job {} failed: {reason}", hold.job_id),
        Released::Stale => {}
    }
    Ok(())
}

fn complete(
    turn: &mut store::Turn<'_>,
    worker_id: &str,
    job_id: i64,
    attempt: Option<i64>,
    receipt: &Receipt,
    now_ms: i64,
) -> Result<bool, store::Error> {
    let json = serde_json::json!({
        "status": receipt.status,
        "metrics": receipt.metrics,
        "artifacts": receipt.artifacts,
    })
    .to_string();
    let (end, summary) = match receipt.status {
        JobStatus::Success => (End::Completed, "Success"),
        JobStatus::Failed => (End::Failed, "Failed"),
    };
    let error_message = match (receipt.status, &receipt.error_message) {
        (JobStatus::Success, _) => None,
        (JobStatus::Failed, Some(message)) => Some(message.as_str()),
        (JobStatus::Failed, None) => Some("the worker gave no reason"),
    };
    turn.complete(
        &Completion {
            job_id,
            attempt,
            worker_id,
            end,
            summary,
            error_message,
            receipt: Some(&json),
            log_tail: receipt.log_tail.as_deref(),
        },
        now_ms,
    )
}

/// Fills free slots in rounds, one job a worker in the first and twice as many in each further
/// one, so that a short queue is spread and a long one is taken in large steps.
fn claim(
    turn: &mut store::Turn<'_>,
    openings: &[Opening],
    deployed: &[String],
    options: &Options,
    now_ms: i64,
    outcome: &mut Outcome,
) -> Result<(), store::Error> {
    let lease_ms = i64::try_from(options.lease.as_millis()).unwrap_or(i64::MAX);
    let mut open: Vec<(&Opening, Vec<String>, Vec<Job>)> = openings
        .iter()
        .map(|opening| {
            let plugins = match &opening.capabilities {
                Capabilities::Any => deployed.to_vec(),
                some => deployed
                    .iter()
                    .filter(|name| some.allows(name))
                    .cloned()
                    .collect(),
            };
            (opening, plugins, Vec::new())
        })
        .filter(|(_, plugins, _)| !plugins.is_empty())
        .collect();
    let mut step = 1usize;
    let mut filled: Vec<(Vec<u8>, Vec<Job>)> = Vec::new();
    while !open.is_empty() {
        let mut next = Vec::with_capacity(open.len());
        for (opening, plugins, mut jobs) in open {
            let limit = step.min(opening.free - jobs.len());
            let claimed = turn.claim(
                &Claim {
                    worker_id: &opening.worker_id,
                    hostname: &opening.hostname,
                    pid: opening.pid,
                    plugins: &plugins,
                    limit,
                    lease_until_ms: now_ms.saturating_add(lease_ms),
                },
                now_ms,
            )?;
            for failed in claimed.unresolved {
                log::warn!("job {} failed: {}", failed.job_id, failed.reason);
            }
            let got = claimed.jobs.len();
            jobs.extend(claimed.jobs);
            if got == limit && jobs.len() < opening.free {
                next.push((opening, plugins, jobs));
            } else {
                outcome.more |= got == limit;
                filled.push((opening.identity.clone(), jobs));
            }
        }
        open = next;
        step = step.saturating_mul(2);
    }
    outcome.claimed = filled;
    Ok(())
}
