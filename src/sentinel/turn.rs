//! One turn's transaction: changes are applied, free slots are filled, all of it is committed.

use std::collections::HashSet;
use std::time::Instant;

use super::control::{Capabilities, Change, Control, Opening};
use super::serve::Options;
use crate::job::{Attempt, Cause, Job, Receipt};
use crate::limits;
use crate::reactor::BootTime;
use crate::store::{self, Claim, Code, Completion, Ended, Now, Store, WorkerSession};

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

/// At the start nobody is connected. RUNNING rows of an earlier sentinel keep a lease.
pub(crate) fn recover(
    store: &mut Store,
    options: &Options,
    now_ms: i64,
) -> Result<(), store::Error> {
    let now = moment(now_ms);
    let mut turn = store.begin()?;
    turn.all_workers_offline(now_ms)?;
    turn.commit()?;
    if !options.exclusive {
        return Ok(());
    }
    loop {
        let mut turn = store.begin()?;
        let reason = "the run was interrupted";
        let count = turn.release_all(reason, limits::EXPIRED_PER_TURN, &now)?;
        turn.commit()?;
        if count < limits::EXPIRED_PER_TURN {
            return Ok(());
        }
    }
}

fn moment(now_ms: i64) -> Now {
    let since_boot = BootTime::now().since_boot().as_millis();
    Now {
        unix_ms: now_ms,
        boot_ms: u64::try_from(since_boot).unwrap_or(u64::MAX),
        boot_id: store::boot_id(),
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
        let now = moment(self.now_ms);
        if expire {
            self.control.forget_claimants(self.now);
        }
        let due = self.store.next_due_boot_ms(&now)?;
        let due = due.is_some_and(|due_ms| due_ms <= now.boot_ms);
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
            waiting = self
                .store
                .queued_plugins(limits::QUEUED_PLUGINS_MAX, self.now_ms)?;
            *queue_changed = !waiting.is_empty();
        }
        if changes.is_empty() && !expire && !due && waiting.is_empty() {
            return Ok(());
        }
        match self.transact(&changes, expire, waiting, &now) {
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
        now: &Now,
    ) -> Result<Outcome, store::Error> {
        let mut outcome = Outcome::default();
        let running = if expire {
            self.store.running()?
        } else {
            Vec::new()
        };
        let openings = self.control.openings();
        let mut turn = self.store.begin()?;
        for change in changes {
            apply(&mut turn, change, self.options, now, &mut outcome)?;
        }
        let came = |change: &Change| matches!(change, Change::WorkerOnline { .. });
        if changes.iter().any(came) {
            turn.forget_old_workers()?;
        }
        outcome.queued |= turn.wake_due(now)? > 0;
        for running in running {
            if !self.control.holds(running.attempt.job_id) {
                let (hold, reason) = (running.attempt, "its lease ran out");
                outcome.revoked.push(hold.job_id);
                release(&mut turn, hold, reason, self.options, now, &mut outcome)?;
            }
        }
        // Rows that were released in this very transaction are seen by the next turn.
        if !waiting.is_empty() {
            outcome.looked = true;
            let mut deployed = Vec::with_capacity(waiting.len());
            for plugin in waiting {
                match turn.plugin_code(&plugin)? {
                    Code::Runs(_) => deployed.push(plugin),
                    Code::Waits(reason) => {
                        if self.waiting_said.insert(plugin) {
                            log::warn!("jobs wait: {reason}");
                        }
                    }
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
    now: &Now,
    outcome: &mut Outcome,
) -> Result<(), store::Error> {
    let now_ms = now.unix_ms;
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
                trouble: None,
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
            let attempt = Attempt::new(*job_id, attempt.unwrap_or(0));
            let ended = complete(turn, worker_id, attempt, receipt, options, now)?;
            outcome.queued |= ended == Ended::Queued;
            if ended == Ended::Stale {
                log::warn!("job {job_id}: receipt of {worker_id} ignored, it is not the holder");
            }
        }
        Change::Release { hold, reason } => {
            release(turn, *hold, reason, options, now, outcome)?;
        }
        Change::Reconcile { worker_id, running } => {
            for held in turn.running_of(worker_id)? {
                let kept = running.iter().any(|hold| {
                    hold.job_id == held.job_id && (hold.number < 0 || hold.number == held.number)
                });
                if !kept {
                    let reason = format!("worker {worker_id} came back without the job");
                    release(turn, held, &reason, options, now, outcome)?;
                }
            }
        }
        Change::Adopt {
            identity,
            worker_id,
            job_id,
            attempt,
        } => {
            let held = turn.running_attempt(*job_id, worker_id)?;
            let held = held
                .map(|held| held.number)
                .filter(|number| attempt.is_none_or(|attempt| attempt == *number));
            outcome.adopted.push((identity.clone(), *job_id, held));
        }
        Change::Renew { workers, .. } => {
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
    now: &Now,
    outcome: &mut Outcome,
) -> Result<(), store::Error> {
    match turn.release(hold, Cause::Lost, reason, options.retries_max, now)? {
        Ended::Queued => {
            log::info!("job {} goes back to the queue: {reason}", hold.job_id);
            outcome.queued = true;
        }
        Ended::Waits { .. } => log::info!("job {} is retried later: {reason}", hold.job_id),
        Ended::Failed => log::warn!("job {} failed: {reason}", hold.job_id),
        Ended::Completed | Ended::Stale => {}
    }
    Ok(())
}

fn complete(
    turn: &mut store::Turn<'_>,
    worker_id: &str,
    attempt: Attempt,
    receipt: &Receipt,
    options: &Options,
    now: &Now,
) -> Result<Ended, store::Error> {
    let completion = Completion {
        attempt,
        worker_id,
        receipt,
        retries_max: options.retries_max,
    };
    turn.complete(&completion, now)
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
            outcome.more |= claimed.more;
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
