//! The sentinel without its socket: control state, database, and timers.
//!
//! The event loop (and the simulation) passes messages and ends of connections to [`Scheduler::control`],
//! calls [`Scheduler::iterate`], sends the messages that it returns, and waits at most until
//! [`Scheduler::poll_timeout`].

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::control::{self, Control, Outgoing};
use super::deployments::Deployments;
use super::outcome::JobEnd;
use super::round::Round;
use super::transaction::{self, Due, Iteration, Sweep};
use crate::job::User;
use crate::limits;
use crate::protocol::Identify;
use crate::reactor::BootTime;
use crate::store::{self, Now, Open, Store};

/// What an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Length of a lease.
    pub lease: Duration,
    /// Time between the end of a lease and the next dispatch of its job.
    pub lease_margin: Duration,
    /// Time in which a worker must end an attempt.
    pub attempt_timeout: Duration,
    /// How often a job is retried after it lost its worker.
    pub retries_max: u32,
    /// No other program works on this database, so RUNNING rows at the start have no holder.
    pub exclusive: bool,
}

/// A sentinel without its socket, as the head of the module describes.
pub struct Scheduler {
    /// The control state.
    pub control: Control,
    store: Store,
    settings: Settings,
    round: Round,
    /// None where environments are not created before there are jobs.
    deployments: Option<Deployments>,
    /// The free slots at the last slow poll.
    open_slots: BTreeMap<Vec<u8>, usize>,
    /// Another program has committed since claims were compared with the rows.
    claims_changed: bool,
    sweep: Sweep,
    /// When the next part of the sweep is due.
    sweep_at: BootTime,
    /// When the next sweep begins at the latest, because a trigger may have refused the end of a row.
    claims_poll_at: BootTime,
    /// When rows are tried again whose changes code in the schema refused.
    retry_refused_at: BootTime,
    forgive_pause: Duration,
    /// The processor time of this program in the last iteration.
    last_work: Duration,
    queue_poll_at: BootTime,
    slow_poll_at: BootTime,
    outage: Outage,
    /// Plugins for which it was logged that their jobs wait for a deployment or a worker.
    waiting: HashSet<String>,
    iterated_at: Option<BootTime>,
    /// The processor time of this program since then.
    worked: Duration,
    /// When the leases of earlier sentinels end, if they were longer.
    lease_noted_at: Option<BootTime>,
    observer: Option<Sender<JobEnd>>,
}

impl Scheduler {
    /// Opens a database, which is created when it is missing. RUNNING rows stay with their
    /// holders.
    pub fn open(
        database: &Path,
        settings: Settings,
        now: BootTime,
        at: &Now,
    ) -> Result<Self, store::Error> {
        let store = Store::open(database, Open::Create)?;
        Self::on(store, settings, now, at)
    }

    /// As [`Scheduler::open`], on an open database.
    pub fn on(
        mut store: Store,
        settings: Settings,
        now: BootTime,
        at: &Now,
    ) -> Result<Self, store::Error> {
        store.set_busy_timeout(limits::STORE_BUSY_TIMEOUT)?;
        let mut control = Control::new(control::Settings {
            lease: settings.lease,
            margin: settings.lease_margin,
            attempt_timeout: settings.attempt_timeout,
        });
        for worker in store.workers()? {
            control.remember_worker(
                &worker.worker_id,
                worker.user_id.as_deref().map(User::parse),
                worker.routing_id,
                Identify {
                    capabilities: worker.capabilities,
                    worker_id: Some(worker.worker_id.clone().into()),
                    slots: u32::try_from(worker.slots).ok(),
                    hostname: Some(worker.hostname.into()),
                    pid: worker.pid.and_then(|pid| u32::try_from(pid).ok()),
                    ..Identify::default()
                },
            );
        }
        let earlier = transaction::recover(&mut store, &mut control, settings.exclusive, now, at)?;
        let lease_noted_at = (earlier > settings.lease).then(|| now + earlier);
        Ok(Scheduler {
            control,
            store,
            settings,
            round: Round::stale(),
            // `casparian run` has one worker, and only runs the jobs that are queued now.
            deployments: (!settings.exclusive).then(|| Deployments::new(now)),
            open_slots: BTreeMap::new(),
            claims_changed: false,
            sweep: Sweep::default(),
            sweep_at: now,
            claims_poll_at: now,
            retry_refused_at: now,
            forgive_pause: limits::REFUSED_ROWS_PAUSE,
            last_work: Duration::ZERO,
            queue_poll_at: now,
            slow_poll_at: now,
            outage: Outage::default(),
            waiting: HashSet::new(),
            lease_noted_at,
            iterated_at: None,
            worked: Duration::ZERO,
            observer: None,
        })
    }

    /// Sets a channel to which ends of jobs are reported after their commit.
    pub fn observe(&mut self, observer: Sender<JobEnd>) {
        self.observer = Some(observer);
    }

    /// Notes processor time of this program. Time of its own work does not count as an absence.
    pub fn note_work(&mut self, worked: Duration) {
        self.worked += worked;
        self.last_work = worked;
    }

    /// One iteration: processes what is due, runs the transaction, and returns the messages to send. While
    /// the database fails the transaction is tried again with a growing pause.
    ///
    /// DISPATCH messages come before the answers to the same worker. The messages must be sent in this order,
    /// because the receipt of an answer shows that everything before it has arrived.
    pub fn iterate(&mut self, now: BootTime, at: &Now) -> Vec<Outgoing> {
        let before = self.iterated_at.replace(now).unwrap_or(now);
        let passed = now.saturating_duration_since(before);
        let suspended = passed.saturating_sub(std::mem::take(&mut self.worked));
        if suspended > limits::SUSPENDED_AFTER {
            self.control.handle_suspension(suspended, now);
        }
        self.control.handle_timeout(now);
        if self.outage.retry_at.is_none_or(|retry_at| retry_at <= now) {
            match self.transact(now, at) {
                Ok(()) => self.outage.handle_success(now),
                Err(error) => {
                    if error.is_index_missing()
                        && let Err(error) = self.store.restore_schema()
                    {
                        log::warn!("{error}");
                    }
                    self.outage.handle_error(error, now);
                }
            }
        }
        let mut outgoing = self.control.take_outgoing();
        outgoing.extend(self.control.poll_answers(now));
        outgoing
    }

    fn transact(&mut self, now: BootTime, at: &Now) -> Result<(), store::Error> {
        // A database that was moved counts as failed until it is back, although its open file works.
        if self.outage.since.is_some() {
            self.store.check_identity()?;
        }
        if now >= self.queue_poll_at {
            self.queue_poll_at = now + limits::QUEUE_POLL_INTERVAL;
            let changed = self.store.changed()?;
            self.round.is_stale |= changed;
            self.claims_changed |= changed;
            if let Some(deployments) = &mut self.deployments {
                deployments.is_stale |= changed;
            }
        }
        let is_slow = now >= self.slow_poll_at;
        if is_slow {
            self.slow_poll_at = now + limits::EXPIRE_INTERVAL;
            self.store.check_identity()?;
        }
        self.round.is_stale |= is_slow && self.round.is_emptying();
        self.round.is_stale |= self.control.take_freed();
        if is_slow {
            // A worker may have openings again only because it has sent a message again, which is no change.
            let open = self.control.open_slots(now);
            let is_more = |(worker, free): (&Vec<u8>, &usize)| {
                *free > self.open_slots.get(worker).copied().unwrap_or(0)
            };
            self.round.is_stale |= open.iter().any(is_more);
            self.open_slots = open;
        }
        let wants_sweep = self.claims_changed || now >= self.claims_poll_at;
        if is_slow && wants_sweep && !self.sweep.is_open() {
            self.sweep = Sweep::begin();
            self.sweep_at = now;
            self.claims_changed = false;
            self.claims_poll_at = now + limits::CLAIMS_POLL_INTERVAL;
        }
        let holds = self.sweep.is_open() && now >= self.sweep_at;
        if is_slow && self.outage.since.is_none() && now >= self.retry_refused_at {
            let forgiven = self.store.retry_refused();
            if !forgiven.more {
                self.forgive_pause = match forgiven.any {
                    true => (self.forgive_pause * 2).min(limits::REFUSED_ROWS_PAUSE_MAX),
                    false => limits::REFUSED_ROWS_PAUSE,
                };
                self.retry_refused_at = now + self.forgive_pause;
            }
            self.round.is_stale |= forgiven.any;
        }
        if is_slow {
            self.round.is_stale |= self.store.resume_changed_rows(at.boot_ms);
        }
        let due = Due {
            retries: is_slow,
            holds,
            settlements: is_slow,
            lease: is_slow && self.lease_noted_at.is_some_and(|at| at <= now),
        };
        let mut iteration = Iteration {
            store: &mut self.store,
            control: &mut self.control,
            retries_max: self.settings.retries_max,
            lease: self.settings.lease,
            round: &mut self.round,
            sweep: &mut self.sweep,
            waiting: &mut self.waiting,
            deployments: self.deployments.as_mut(),
            observer: self.observer.as_ref(),
            now,
            at,
        };
        let is_done = iteration.run(due)?;
        if !is_done || self.round.is_bounded {
            // The pause of refused rows counts from the end of the pass that finds them.
            let retry_refused_at = now + limits::REFUSED_ROWS_PAUSE;
            self.retry_refused_at = self.retry_refused_at.max(retry_refused_at);
        }
        if !is_done {
            return Ok(());
        }
        if due.holds {
            self.sweep_at = now + limits::QUEUE_POLL_INTERVAL;
        }
        if due.lease {
            self.lease_noted_at = None;
        }
        match &mut self.deployments {
            Some(deployments) if is_slow || deployments.is_urgent => {
                deployments.announce(&self.store, &mut self.control, now)
            }
            _ => Ok(()),
        }
    }

    /// When [`Scheduler::iterate`] is due without a message.
    pub fn poll_timeout(&self, now: BootTime) -> Option<BootTime> {
        let has_openings = self.control.has_openings(now);
        let works = self.outage.since.is_none();
        if works && self.round.is_due() && has_openings {
            // Other programs can write in this pause.
            return Some(match self.round.is_bounded {
                true => now + self.last_work + limits::BOUNDED_PAUSE,
                false => now,
            });
        }
        [
            self.control.poll_timeout(),
            (works && has_openings).then_some(self.queue_poll_at),
            works.then_some(self.slow_poll_at),
            (works && self.sweep.is_open()).then_some(self.sweep_at),
            self.outage.retry_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Makes the scheduler give up a database that is removed or replaced, or that fails for longer than
    /// `longest`.
    pub fn give_up_after(&mut self, longest: Duration) {
        self.outage.longest = Some(longest);
    }

    /// Why the database was given up, if it was.
    pub fn given_up(&mut self) -> Option<store::Error> {
        self.outage.given_up.take()
    }

    /// Sets how long a transaction waits for another program's transaction.
    pub fn set_busy_timeout(&self, wait: Duration) -> Result<(), store::Error> {
        self.store.set_busy_timeout(wait)
    }

    /// Notes connected workers as offline, because the sentinel stops.
    pub fn close(&mut self, now: BootTime, at: &Now) {
        self.control.close();
        self.control.drain();
        if let Err(error) = self.transact(now, at) {
            log::error!("{error}");
        }
    }
}

/// The state of a failing database.
#[derive(Debug, Default)]
struct Outage {
    since: Option<BootTime>,
    retry_at: Option<BootTime>,
    pause: Duration,
    logged_at: Option<BootTime>,
    /// The time after which it is given up, if ever.
    longest: Option<Duration>,
    given_up: Option<store::Error>,
}

impl Outage {
    fn handle_error(&mut self, error: store::Error, now: BootTime) {
        let since = *self.since.get_or_insert(now);
        let is_final = |longest| {
            let is_replaced = matches!(error, store::Error::Replaced { .. });
            is_replaced || now.saturating_duration_since(since) >= longest
        };
        if self.longest.is_some_and(is_final) {
            self.given_up = Some(error);
            return;
        }
        let pause = self.pause * 2;
        self.pause = pause.clamp(limits::STORE_RETRY_PAUSE, limits::STORE_RETRY_PAUSE_MAX);
        self.retry_at = Some(now + self.pause);
        let interval = limits::STORE_LOG_INTERVAL;
        if self.logged_at.is_none_or(|at| at + interval <= now) {
            self.logged_at = Some(now);
            let seconds = now.saturating_duration_since(since).as_secs();
            let until = match self.longest {
                Some(longest) => format!("for at most {} s", longest.as_secs()),
                None => "until it works again".to_owned(),
            };
            log::error!(
                "{error}; failing for {seconds} s: workers keep their jobs, and nothing is \
                 dispatched {until}"
            );
        }
    }

    fn handle_success(&mut self, now: BootTime) {
        if let Some(since) = self.since {
            let seconds = now.saturating_duration_since(since).as_secs();
            log::info!("database: works again after {seconds} s");
            *self = Outage {
                longest: self.longest,
                ..Outage::default()
            };
        }
    }
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler")
            .field("control", &self.control)
            .field("round", &self.round)
            .field("outage", &self.outage)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
