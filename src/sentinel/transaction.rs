//! The transaction of one iteration: applies changes, fills free slots, and commits all of it.

use std::collections::HashSet;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::control::{Change, Control};
use super::deployments::Deployments;
use super::outcome::{JobEnd, Outcome};
use super::round::{Round, claim, deployed};
use crate::job::{Attempt, JobStatus};
use crate::limits;
use crate::reactor::BootTime;
use crate::store::{self, Completion, Deployed, Ended, Now, Settled, Store, Upload, WorkerSession};

/// The state on which one transaction works.
pub(crate) struct Iteration<'a> {
    pub(crate) store: &'a mut Store,
    pub(crate) control: &'a mut Control,
    /// How often a job is retried after it lost its worker.
    pub(crate) retries_max: u32,
    /// Length of a lease.
    pub(crate) lease: Duration,
    pub(crate) round: &'a mut Round,
    pub(crate) sweep: &'a mut Sweep,
    /// Plugins for which it was logged that their jobs wait for a deployment or a worker.
    pub(crate) waiting: &'a mut HashSet<String>,
    /// The last poll of deployments.
    pub(super) deployments: Option<&'a mut Deployments>,
    /// The channel to which ends of jobs are reported.
    pub(crate) observer: Option<&'a Sender<JobEnd>>,
    pub(crate) now: BootTime,
    /// The same time for the database.
    pub(crate) at: &'a Now,
}

/// A comparison of claimed attempts with the rows, which another program may have changed. Each iteration
/// compares a bounded number of claimed attempts, and of RUNNING rows.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    /// Claimed attempts above this one are not compared yet.
    claims_after: Option<Attempt>,
    /// RUNNING rows above this ID are not compared yet.
    rows_after: Option<i64>,
}

impl Sweep {
    pub(crate) fn begin() -> Self {
        Sweep {
            claims_after: Some(Attempt::new(i64::MIN, i64::MIN)),
            rows_after: Some(i64::MIN),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.claims_after.is_some() || self.rows_after.is_some()
    }
}

/// The work that is due in an iteration.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Due {
    /// Queue jobs whose pause before a retry is over.
    pub(crate) retries: bool,
    /// The next part of a [`Sweep`].
    pub(crate) holds: bool,
    /// Find ended jobs that must be settled.
    pub(crate) settlements: bool,
    /// The leases of earlier sentinels have ended: store the length of this sentinel's leases.
    pub(crate) lease: bool,
}

/// Recovers the state of a database at the start of a sentinel. No worker is connected. RUNNING rows stay
/// with their holders, whose leases may still last their full length. If `is_exclusive`, no other program
/// works on the database, so RUNNING rows have no holder and are queued again. Returns how long leases of
/// earlier sentinels may still last.
pub(crate) fn recover(
    store: &mut Store,
    control: &mut Control,
    is_exclusive: bool,
    now: BootTime,
    at: &Now,
) -> Result<Duration, store::Error> {
    let earlier_ms = store.lease_ms(at)?;
    let mut transaction = store.begin()?;
    transaction.all_workers_offline(at.unix_ms)?;
    transaction.set_lease_ms(control.lease_ms(), earlier_ms, at)?;
    transaction.commit()?;
    let earlier = Duration::from_millis(earlier_ms);
    control.set_earlier_lease(now + earlier);
    if is_exclusive {
        loop {
            let mut transaction = store.begin()?;
            let limit = limits::EXPIRED_PER_ITERATION;
            let count = transaction.requeue_running("its run was interrupted", limit, at)?;
            transaction.commit()?;
            if count > 0 {
                log::info!("{count} job(s) of an earlier run are queued again");
            }
            if count < limit {
                return Ok(earlier);
            }
        }
    }
    for row in store.running()? {
        control.inherit(row.attempt, &row.worker_id, row.user, now);
        if row.runs_alone {
            control.inherit_alone(row.attempt);
        }
    }
    for attempt in store.silent()? {
        control.inherit_unreported(attempt, now);
    }
    Ok(earlier)
}

impl Iteration<'_> {
    /// Runs the transaction if there is work. False when so many rows have rolled it back
    /// that it is left to the next iteration.
    pub(crate) fn run(&mut self, due: Due) -> Result<bool, store::Error> {
        let changes = self.control.take_changes();
        // A new worker may be the only one that may run a waiting job. The end of an attempt may free a slot
        // of such a worker.
        let frees = |change: &Change| {
            matches!(
                change,
                Change::WorkerOnline { .. }
                    | Change::End { .. }
                    | Change::Release { .. }
                    | Change::GiveBack { .. }
                    | Change::Deploy { .. }
            )
        };
        self.round.is_stale |= changes.iter().any(frees);
        let (mut changes, mut due, mut claims) = (changes, due, true);
        let mut rollbacks = 0;
        let done = loop {
            let done = self.transact(&changes, due, claims);
            match &done {
                Ok(()) if claims => return Ok(true),
                // The claims are in a transaction of their own, so that they cannot roll back the changes.
                Ok(()) => (changes, due, claims) = (Vec::new(), Due::default(), true),
                Err(error) => {
                    // The jobs that this pass found were not claimed.
                    self.store.poll_again();
                    self.round.reopen();
                    if !matches!(error, store::Error::RolledBack { .. }) {
                        break done;
                    }
                    // The row that caused it is skipped from now on.
                    let count = self.store.refused_rows();
                    if count <= limits::ENDS_LOGGED_MAX {
                        log::warn!("{error}");
                    } else if count == limits::ENDS_LOGGED_MAX + 1 {
                        log::warn!("more rows roll back the transactions that change them");
                    }
                    claims = changes.is_empty();
                    rollbacks += 1;
                    if rollbacks > limits::ROLLBACKS_PER_ITERATION {
                        break Ok(());
                    }
                }
            }
        };
        self.control.restore_changes(changes);
        done.map(|()| false)
    }

    /// One transaction: changes, claims if `claims` is true, and other due work.
    fn transact(&mut self, changes: &[Change], due: Due, claims: bool) -> Result<(), store::Error> {
        let mut outcome = Outcome::default();
        let plugins = match claims && self.control.has_openings(self.now) {
            true => self.round.pass(self.store, self.at)?,
            false => Vec::new(),
        };
        let (revoked, claims_after) = match due.holds {
            true => self.revoked()?,
            false => (Vec::new(), self.sweep.claims_after),
        };
        let retries = due.retries
            && self
                .store
                .next_due_boot_ms(self.at)?
                .is_some_and(|next| next <= self.at.boot_ms);
        let unsettled = match due.settlements {
            true => self.unsettled()?,
            false => Vec::new(),
        };
        let is_idle = changes.is_empty() && plugins.is_empty() && unsettled.is_empty();
        if is_idle && !retries && !due.lease {
            self.revoke(revoked);
            self.sweep.claims_after = claims_after;
            if due.holds {
                self.inherit_unknown()?;
            }
            return Ok(());
        }
        let mut openings = self.control.openings(self.now);
        let mut transaction = self.store.begin()?;
        for change in changes {
            apply(
                &mut transaction,
                change,
                self.retries_max,
                self.at,
                &mut outcome,
            )?;
        }
        // `Seen` occurs at intervals while a worker is connected.
        let cleans =
            |change: &Change| matches!(change, Change::WorkerOnline { .. } | Change::Seen { .. });
        if changes.iter().any(cleans) {
            transaction.forget_old_workers(self.at.unix_ms)?;
        }
        if due.lease {
            transaction.set_lease_ms(self.control.lease_ms(), 0, self.at)?;
        }
        if retries {
            outcome.queued |= transaction.wake_due(self.at)? > 0;
        }
        if !plugins.is_empty() {
            let deployed = deployed(&mut transaction, plugins, self.control, self.waiting)?;
            let alone = self.control.alone();
            self.round
                .restrict(&mut transaction, &deployed, &alone, &mut openings);
            let lease_ms = i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX);
            claim(
                &mut transaction,
                &openings,
                &deployed,
                lease_ms,
                self.at,
                &mut outcome,
            )?;
        }
        let mut room = self.control.settling_room();
        for job_id in unsettled {
            // The next search finds the others again.
            if room == 0 {
                break;
            }
            if let Some(taken) = transaction.take_settlement(job_id)? {
                room = room.saturating_sub(taken.0.size());
                outcome.settlements.push(taken);
            }
        }
        transaction.commit()?;
        note_more(
            "attempts ended without a word of their workers",
            outcome.released.len(),
        );
        outcome.revoked = revoked;
        self.round.empty(std::mem::take(&mut outcome.emptied));
        self.round.is_stale |= outcome.queued || outcome.more;
        self.round.is_bounded = outcome.is_bounded;
        self.absorb(outcome);
        self.sweep.claims_after = claims_after;
        if due.holds {
            self.inherit_unknown()?;
        }
        Ok(())
    }

    fn revoke(&mut self, revoked: Vec<Attempt>) {
        for (index, attempt) in revoked.iter().enumerate() {
            if index < limits::ENDS_LOGGED_MAX {
                log::warn!("{attempt}: another program changed its row; its worker is stopped");
            }
            self.control.handle_revoked(*attempt);
            self.note_row(*attempt, true);
        }
        note_more(
            "rows of running jobs were changed by another program",
            revoked.len(),
        );
    }

    /// Notes that an attempt has ended or is being stopped. `is_changed` = another program had changed its row.
    fn note_row(&mut self, attempt: Attempt, is_changed: bool) {
        if !is_changed {
            self.store.note_row_unchanged(attempt.job_id);
        } else if let Some((times, pause_ms)) =
            self.store.note_row_changed(attempt, self.at.boot_ms)
        {
            log::warn!(
                "job {}: another program changed its row during each of its last {times} attempts: \
                 it is not claimed for {} s",
                attempt.job_id,
                pause_ms.div_ceil(1000)
            );
        }
    }

    /// Inherits RUNNING rows that are no claim here, because another program has changed their attempt or
    /// worker, or has set the status. Their lease begins now.
    fn inherit_unknown(&mut self) -> Result<(), store::Error> {
        let Some(after) = self.sweep.rows_after else {
            return Ok(());
        };
        let limit = limits::CLAIMS_PER_ITERATION;
        let rows = self.store.running_after(after, limit)?;
        let last = rows.last().map(|row| row.attempt.job_id);
        self.sweep.rows_after = last.filter(|_| rows.len() == limit);
        let mut count = 0;
        for row in rows {
            if self.control.is_known(row.attempt) {
                continue;
            }
            let (attempt, worker_id) = (row.attempt, &row.worker_id);
            if count < limits::ENDS_LOGGED_MAX {
                log::warn!(
                    "{attempt}: its row is RUNNING by {worker_id:?}, which this sentinel did not set"
                );
            }
            count += 1;
            self.control.inherit(attempt, worker_id, row.user, self.now);
        }
        note_more("rows are RUNNING, which this sentinel did not set", count);
        Ok(())
    }

    /// Claimed attempts whose rows another program has changed, and where the next comparison continues.
    fn revoked(&mut self) -> Result<(Vec<Attempt>, Option<Attempt>), store::Error> {
        let Some(after) = self.sweep.claims_after else {
            return Ok((Vec::new(), None));
        };
        let limit = limits::CLAIMS_PER_ITERATION;
        let held = self.control.claims_after(after, limit);
        let last = held.last().map(|(attempt, _)| *attempt);
        let left = last.filter(|_| held.len() == limit);
        Ok((self.store.not_running(&held)?, left))
    }

    /// Jobs to settle for which no worker was asked yet.
    fn unsettled(&mut self) -> Result<Vec<i64>, store::Error> {
        let Some(after) = self.control.settles_after(self.now) else {
            return Ok(Vec::new());
        };
        let found = self.store.unsettled(after)?;
        Ok(self.control.to_settle(found))
    }

    fn absorb(&mut self, outcome: Outcome) {
        if let Some(observer) = self.observer {
            for end in outcome.ends {
                // The observer has stopped.
                if observer.send(end).is_err() {
                    break;
                }
            }
        }
        for (attempt, is_row_changed) in outcome.changed_rows {
            self.note_row(attempt, is_row_changed);
        }
        for (routing_id, attempt) in outcome.ended {
            self.control.handle_ended(&routing_id, attempt);
        }
        for attempt in outcome.released {
            self.control.handle_released(attempt);
        }
        self.revoke(outcome.revoked);
        for (routing_id, attempt, is_done) in outcome.settled {
            self.control.handle_settled(&routing_id, attempt, is_done);
        }
        self.control.handle_unsettled(outcome.settlements, self.now);
        for (peer, job_id, result) in outcome.uploaded {
            if let Some(deployments) = &mut self.deployments {
                deployments.is_urgent |= result.is_ok();
            }
            self.control.handle_deployed(peer, job_id, result);
        }
        for (routing_id, jobs) in outcome.claimed {
            self.control.handle_claimed(&routing_id, jobs, self.now);
        }
        for (routing_id, attempt) in outcome.alone {
            self.control.keep_alone(&routing_id, attempt);
        }
    }
}

fn apply(
    transaction: &mut store::Transaction<'_>,
    change: &Change,
    retries_max: u32,
    at: &Now,
    outcome: &mut Outcome,
) -> Result<(), store::Error> {
    match change {
        Change::WorkerOnline {
            worker_id,
            user,
            hostname,
            pid,
            capabilities,
            slots,
            trouble,
            environments,
            routing_id,
        } => {
            let session = WorkerSession {
                worker_id: worker_id.clone(),
                user_id: user.as_ref().map(ToString::to_string),
                hostname: hostname.clone(),
                pid: *pid,
                capabilities: capabilities.clone(),
                slots: i64::try_from(*slots).unwrap_or(i64::MAX),
                trouble: trouble.clone(),
                environments: environments.clone(),
                routing_id: routing_id.clone(),
            };
            transaction.save_worker(&session, at.unix_ms)?;
        }
        Change::WorkerOffline { worker_id } => transaction.worker_offline(worker_id, at.unix_ms)?,
        Change::EnvironmentReady {
            worker_id,
            env_hash,
            interpreter_path,
            cached,
        } => transaction.environment_ready(
            worker_id,
            env_hash,
            interpreter_path,
            *cached,
            at.unix_ms,
        )?,
        Change::EnvironmentFailed {
            worker_id,
            env_hash,
        } => transaction.environment_failed(worker_id, env_hash)?,
        Change::EnvironmentsUnknown { worker_id } => transaction.forget_environments(worker_id)?,
        Change::Seen { workers } => transaction.touch_workers(workers, at.unix_ms)?,
        Change::End {
            routing_id,
            worker_id,
            attempt,
            receipt,
        } => {
            let completion = Completion {
                attempt: *attempt,
                worker_id,
                receipt,
                retries_max,
            };
            let ended = transaction.complete(&completion, at)?;
            let is_success = receipt.status == JobStatus::Success;
            let reason = match &receipt.error_message {
                None if is_success && ended != Ended::Completed => Some(store::ROW_CHANGED),
                reason => reason.as_deref(),
            };
            match ended {
                Ended::Stale => {
                    log::warn!("{attempt}: receipt of {worker_id} ignored: not the holder")
                }
                _ => log_end(*attempt, &ended, reason.unwrap_or("")),
            }
            outcome.queued |= matches!(ended, Ended::Queued);
            let is_row_changed =
                ended == Ended::Stale || transaction.is_end_undone(attempt.job_id, ended)?;
            outcome.changed_rows.push((*attempt, is_row_changed));
            outcome.note_end(attempt.job_id, ended, Some(receipt), reason);
            outcome.ended.push((routing_id.clone(), *attempt));
        }
        Change::Settled {
            routing_id,
            attempt,
            receipt,
        } => {
            let is_done = receipt.status == JobStatus::Success;
            let reason = receipt.error_message.as_deref().unwrap_or("");
            let job_id = attempt.job_id;
            match transaction.settle(*attempt, receipt, at)? {
                Settled::Completed => log::info!("job {job_id}: completed: its output was there"),
                Settled::QueuedAgain => {
                    log::info!(
                        "job {job_id}: queued again: the output that was there is of another file \
                         version or plugin"
                    );
                    outcome.queued = true;
                }
                Settled::Unchanged if !is_done => {
                    log::warn!("job {job_id}: its output is not settled: {reason}");
                }
                Settled::Unchanged => {}
            }
            let report = (routing_id.clone(), *attempt, is_done);
            outcome.settled.push(report);
        }
        Change::Release {
            attempt,
            cause,
            loss,
            reason,
        } => {
            let ended = transaction.release(*attempt, *cause, *loss, reason, retries_max, at)?;
            if outcome.released.len() < limits::ENDS_LOGGED_MAX {
                log_end(*attempt, &ended, reason);
            }
            let is_row_changed =
                ended == Ended::Stale || transaction.is_end_undone(attempt.job_id, ended)?;
            outcome.changed_rows.push((*attempt, is_row_changed));
            outcome.note_end(attempt.job_id, ended, None, Some(reason));
            outcome.queued |= matches!(ended, Ended::Queued);
            outcome.released.push(*attempt);
        }
        Change::Deploy {
            peer,
            job_id,
            from,
            upload,
        } => {
            let done = transaction.deploy_upload(upload, at.unix_ms)?;
            log_upload(from, upload, &done);
            let done = done.map(|deployed| deployed.manifest_id);
            outcome.uploaded.push((*peer, *job_id, done));
        }
        Change::GiveBack { attempt, reason } => {
            let ended = transaction.give_back(*attempt, reason, at)?;
            if outcome.released.len() < limits::ENDS_LOGGED_MAX {
                log_end(*attempt, &ended, reason);
            }
            outcome.queued |= matches!(ended, Ended::Queued);
            let is_row_changed =
                ended == Ended::Stale || transaction.is_end_undone(attempt.job_id, ended)?;
            outcome.changed_rows.push((*attempt, is_row_changed));
            outcome.released.push(*attempt);
        }
    }
    Ok(())
}

fn log_upload(from: &str, upload: &Upload, done: &Result<Deployed, String>) {
    let (plugin, author) = (&upload.plugin_name, &upload.author.name);
    let how = match upload.signature {
        Some(_) => "signed by",
        None => "not signed, as of",
    };
    match done {
        Ok(done) => log::info!(
            "plugin {plugin:?} {:?} deployed by {from}, {how} {author:?}: manifest {}",
            done.version,
            done.manifest_id
        ),
        Err(reason) => {
            log::warn!("plugin {plugin:?} not deployed by {from}, {how} {author:?}: {reason}")
        }
    }
}

/// Logs the number of events that were not logged one by one.
fn note_more(what: &str, count: usize) {
    if count > limits::ENDS_LOGGED_MAX {
        log::warn!("{} more {what}", count - limits::ENDS_LOGGED_MAX);
    }
}

fn log_end(attempt: Attempt, ended: &Ended, reason: &str) {
    let reason = reason.lines().next().unwrap_or("");
    match ended {
        Ended::Completed => log::debug!("{attempt}: completed"),
        Ended::Failed => log::warn!("{attempt}: failed: {reason}"),
        Ended::Queued => log::info!("{attempt}: queued again: {reason}"),
        Ended::Waits { .. } => log::warn!("{attempt}: tried again later: {reason}"),
        Ended::Refused => log::warn!(
            "{attempt}: a constraint or trigger of the database refuses its end: it stays RUNNING"
        ),
        Ended::Stale => {}
    }
}
