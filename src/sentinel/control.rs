//! The sentinel's decisions: which workers there are, what they hold, what becomes of a message.
//!
//! No socket, no database, no clock. The loop feeds it messages and time; it answers with
//! [`Change`]s for the turn's transaction and [`Outgoing`] messages that may leave only after
//! that transaction is durable. Claims are made by the loop from [`Control::openings`] and come
//! back through [`Control::handle_claimed`] once they are committed.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use crate::job::{Attempt, JobStatus, Receipt};
use crate::limits;
use crate::protocol::{Err as ErrPayload, Identify, Payload};
use crate::socket::{LogLimit, PeerId};

mod capabilities;
mod claims;
mod exchange;
mod users;

use users::{ANOTHERS, are_different};

pub use capabilities::Capabilities;
pub use exchange::{Change, Opening, Outgoing, Sender};

/// A worker, known by its routing id from IDENTIFY until it is gone for good.
#[derive(Debug)]
struct Worker {
    worker_id: String,
    /// Who it proved to be; nobody else speaks for it before it is gone for good.
    user: Option<String>,
    /// Its connection; none while it is away.
    peer: Option<PeerId>,
    capabilities: Capabilities,
    slots: usize,
    hostname: String,
    pid: Option<i64>,
    holds: Vec<Attempt>,
    /// Environments it has been told to make.
    environments: HashSet<String>,
    away_since: Option<Instant>,
}

/// What the control state is told when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Lease of a claim, renewed while the worker's connection lives.
    pub lease: Duration,
    /// How long a worker whose connection is lost may stay away before its jobs are requeued.
    pub grace: Duration,
}

/// See the module's head.
#[derive(Debug)]
pub struct Control {
    settings: Settings,
    workers: HashMap<Vec<u8>, Worker>,
    changes: Vec<Change>,
    outgoing: Vec<Outgoing>,
    renew_at: Option<Instant>,
    draining: bool,
    /// The routing ids of `workers` by their ids; of several with one id, the latest.
    identities: HashMap<String, Vec<u8>>,
    /// Workers of an earlier life of this sentinel, by id: what they said of themselves.
    remembered: HashMap<String, Identify<'static>>,
    /// The users whose workers hold claims of that life, by the workers' ids, and when the last
    /// of these runs out.
    claimants: HashMap<String, (String, Instant)>,
    /// Of lines about what workers complain of.
    log_limit: LogLimit,
}

impl Control {
    /// No workers yet.
    pub fn new(settings: Settings) -> Self {
        Control {
            settings,
            workers: HashMap::new(),
            changes: Vec::new(),
            outgoing: Vec::new(),
            renew_at: None,
            draining: false,
            identities: HashMap::new(),
            remembered: HashMap::new(),
            claimants: HashMap::new(),
            log_limit: LogLimit::default(),
        }
    }

    /// A worker that an earlier sentinel on this database knew. One of the old system says
    /// IDENTIFY once a life, so when it is heard again this stands for it.
    pub fn remember_worker(&mut self, worker_id: &str, identify: Identify<'static>) {
        self.remembered.insert(worker_id.to_owned(), identify);
    }

    /// From now on no job is given out.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// True while a worker has the job.
    pub fn holds(&self, job_id: i64) -> bool {
        let mut workers = self.workers.values();
        workers.any(|worker| worker.holds.iter().any(|hold| hold.job_id == job_id))
    }

    /// Jobs that are out with workers.
    pub fn held_count(&self) -> usize {
        self.workers.values().map(|worker| worker.holds.len()).sum()
    }

    /// Workers with a live connection.
    pub fn online_count(&self) -> usize {
        self.workers
            .values()
            .filter(|worker| worker.peer.is_some())
            .count()
    }

    /// Changes for the turn's transaction, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// The transaction failed: its changes come first in the next one.
    pub fn restore_changes(&mut self, mut changes: Vec<Change>) {
        changes.append(&mut self.changes);
        self.changes = changes;
    }

    /// Ids of workers with a live connection.
    pub fn online(&self) -> Vec<String> {
        self.workers
            .values()
            .filter(|worker| worker.peer.is_some())
            .map(|worker| worker.worker_id.clone())
            .collect()
    }

    /// Messages that may leave now that the turn is committed.
    pub fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing)
    }

    /// A message. Gives the reason when it is none that its sender may send.
    pub fn handle_message(
        &mut self,
        from: &Sender<'_>,
        job_id: u64,
        payload: Payload<'_>,
        now: Instant,
    ) -> Option<&'static str> {
        let (peer, identity) = (from.peer, from.identity);
        let is_anothers = match self.workers.get(identity) {
            Some(worker) => are_different(worker.user.as_deref(), from.user),
            // IDENTIFY may bring another id than the routing id.
            None if matches!(payload, Payload::Identify(_)) => false,
            None => self.belongs_to_another(&printable(identity), from.user),
        };
        if is_anothers {
            return Some(ANOTHERS);
        }
        match payload {
            Payload::Identify(identify) => return self.identify(from, &identify, now),
            Payload::Heartbeat(heartbeat) => {
                if !self.workers.contains_key(identity) {
                    let Some(mut identify) = self.remembered.remove(&printable(identity)) else {
                        self.ask_to_identify(peer);
                        return None;
                    };
                    let job = heartbeat.current_job_id;
                    identify.running = heartbeat.running.clone().or_else(|| {
                        Some(
                            job.map(|job_id| Attempt::new(job_id, -1))
                                .into_iter()
                                .collect(),
                        )
                    });
                    return self.identify(from, &identify, now);
                }
                let worker = self.workers.get_mut(identity)?;
                worker.peer = Some(peer);
                worker.away_since = None;
                let known =
                    |worker: &Worker, job_id| worker.holds.iter().any(|hold| hold.job_id == job_id);
                let said: Vec<(i64, Option<i64>)> = match &heartbeat.running {
                    Some(running) => running
                        .iter()
                        .map(|hold| (hold.job_id, Some(hold.number)))
                        .collect(),
                    None => heartbeat
                        .current_job_id
                        .map(|job| (job, None))
                        .into_iter()
                        .collect(),
                };
                let strangers: Vec<_> = said
                    .into_iter()
                    .filter(|(job_id, _)| !known(worker, *job_id))
                    .collect();
                let worker_id = worker.worker_id.clone();
                self.adopt(identity, &worker_id, strangers);
            }
            Payload::Conclude(conclude) => return self.conclude(identity, job_id, conclude),
            Payload::Err(error) => return self.failed(identity, job_id, &error, now),
            Payload::EnvReady(ready) => {
                if let Some(worker) = self.workers.get_mut(identity) {
                    log::debug!("{}: environment {} ready", worker.worker_id, ready.env_hash);
                    remember(&mut worker.environments, &ready.env_hash);
                }
            }
            Payload::Deploy(deploy) => {
                self.outgoing.push(Outgoing {
                    peer,
                    job_id,
                    payload: Payload::Err(ErrPayload {
                        message: format!(
                            "plugin {:?} was not deployed: this sentinel takes deployments \
                             through `casparian deploy` only",
                            deploy.plugin_name
                        )
                        .into(),
                        traceback: None,
                    }),
                });
            }
            // Accepted and ignored.
            Payload::Unknown => {}
            Payload::Dispatch(_) | Payload::Abort | Payload::Reload | Payload::PrepareEnv(_) => {
                return Some("only a sentinel sends such a message");
            }
        }
        None
    }

    /// A worker of the old system says IDENTIFY once a life; one that talks without having said
    /// it to us (we were restarted) is asked by RELOAD, which newer workers answer.
    fn ask_to_identify(&mut self, peer: PeerId) {
        self.outgoing.push(Outgoing {
            peer,
            job_id: 0,
            payload: Payload::Reload,
        });
    }

    /// Takes a worker out; gives what it was.
    fn remove(&mut self, identity: &[u8]) -> Option<Worker> {
        let worker = self.workers.remove(identity)?;
        let worker_id = &worker.worker_id;
        if self.identities.get(worker_id).map(Vec::as_slice) == Some(identity) {
            self.identities.remove(worker_id);
            // Two connections of one user may have one id.
            let other = self
                .workers
                .iter()
                .find(|(_, other)| other.worker_id == *worker_id);
            if let Some((other, _)) = other {
                self.identities.insert(worker_id.clone(), other.clone());
            }
        }
        Some(worker)
    }

    fn identify(
        &mut self,
        from: &Sender<'_>,
        identify: &Identify<'_>,
        now: Instant,
    ) -> Option<&'static str> {
        let (peer, identity) = (from.peer, from.identity);
        let worker_id = match &identify.worker_id {
            Some(name) if !name.is_empty() => cut(name, limits::NAME_SIZE_MAX),
            _ => printable(identity),
        };
        if self.belongs_to_another(&worker_id, from.user) {
            return Some(ANOTHERS);
        }
        self.remembered.remove(&worker_id);
        let user = from.user.map(str::to_owned);
        let capabilities = Capabilities::new(&identify.capabilities);
        let slots = identify.slots.unwrap_or(1) as usize;
        let slots = slots.clamp(1, limits::WORKER_SLOTS_MAX);
        let hostname = match &identify.hostname {
            Some(name) => cut(name, limits::NAME_SIZE_MAX),
            None => worker_id.clone(),
        };
        self.changes.push(Change::WorkerOnline {
            worker_id: worker_id.clone(),
            user: user.clone(),
            hostname: hostname.clone(),
            pid: identify.pid.map(i64::from),
            capabilities: capabilities.names(),
            slots,
        });
        let old_holds = match self.remove(identity) {
            Some(old) => {
                if old.worker_id != worker_id {
                    self.changes.push(Change::WorkerOffline {
                        worker_id: old.worker_id,
                    });
                }
                old.holds
            }
            None => Vec::new(),
        };
        // A worker that cannot say what it runs identifies itself once, when it starts.
        let mut running = identify.running.clone().unwrap_or_default();
        running.truncate(limits::WORKER_SLOTS_MAX);
        let kept: Vec<Attempt> = old_holds
            .into_iter()
            .filter(|hold| running.contains(hold))
            .collect();
        let strangers: Vec<_> = running
            .iter()
            .filter(|hold| !kept.contains(hold))
            .map(|hold| (hold.job_id, (hold.number >= 0).then_some(hold.number)))
            .collect();
        self.changes.push(Change::Reconcile {
            worker_id: worker_id.clone(),
            running,
        });
        log::info!(
            "worker {worker_id} is here: {slots} slot(s), plugins {}",
            capabilities.names().join(", ")
        );
        self.identities.insert(worker_id.clone(), identity.to_vec());
        self.workers.insert(
            identity.to_vec(),
            Worker {
                worker_id: worker_id.clone(),
                user,
                peer: Some(peer),
                capabilities,
                slots,
                hostname,
                pid: identify.pid.map(i64::from),
                holds: kept,
                environments: HashSet::new(),
                away_since: None,
            },
        );
        self.adopt(identity, &worker_id, strangers);
        self.renew_at.get_or_insert(now + self.settings.lease / 3);
        None
    }

    fn adopt(&mut self, identity: &[u8], worker_id: &str, jobs: Vec<(i64, Option<i64>)>) {
        for (job_id, attempt) in jobs {
            self.changes.push(Change::Adopt {
                identity: identity.to_vec(),
                worker_id: worker_id.to_owned(),
                job_id,
                attempt,
            });
        }
    }

    fn conclude(
        &mut self,
        identity: &[u8],
        job_id: u64,
        mut receipt: Receipt,
    ) -> Option<&'static str> {
        let Ok(job_id) = i64::try_from(job_id) else {
            return Some("a receipt for a job that cannot be");
        };
        let (worker_id, held) = match self.workers.get_mut(identity) {
            Some(worker) => {
                let place = worker.holds.iter().position(|hold| {
                    hold.job_id == job_id
                        && receipt.attempt.is_none_or(|attempt| attempt == hold.number)
                });
                (
                    worker.worker_id.clone(),
                    place.map(|place| worker.holds.swap_remove(place)),
                )
            }
            None => (printable(identity), None),
        };
        let attempt = held.map(|hold| hold.number).or(receipt.attempt);
        let shorten = |text: &mut Option<String>, size_max| {
            if let Some(text) = text {
                *text = cut(text, size_max);
            }
        };
        shorten(&mut receipt.error_message, limits::ERROR_TEXT_SIZE_MAX);
        shorten(&mut receipt.log_tail, limits::LOG_TAIL_SIZE_MAX);
        self.changes.push(Change::Complete {
            worker_id,
            job_id,
            attempt,
            receipt: Box::new(receipt),
        });
        None
    }

    fn failed(
        &mut self,
        identity: &[u8],
        job_id: u64,
        error: &ErrPayload<'_>,
        now: Instant,
    ) -> Option<&'static str> {
        if job_id == 0 {
            if self.log_limit.allow(now).is_some() {
                log::warn!("{}: {}", printable(identity), cut(&error.message, 1000));
            }
            return None;
        }
        let message = match &error.traceback {
            Some(traceback) => format!("{}\n{traceback}", error.message),
            None => error.message.to_string(),
        };
        self.conclude(
            identity,
            job_id,
            Receipt {
                status: JobStatus::Failed,
                error_message: Some(message),
                ..Receipt::default()
            },
        )
    }

    /// Ends of connections may have gone untold: who is not connected is away.
    pub fn check_connections(&mut self, is_connected: impl Fn(PeerId) -> bool, now: Instant) {
        for worker in self.workers.values_mut() {
            if worker.peer.is_some_and(|peer| !is_connected(peer)) {
                worker.peer = None;
                worker.away_since = Some(now);
            }
        }
    }

    /// The connection of the peer with a routing id has ended.
    pub fn handle_disconnected(&mut self, peer: PeerId, identity: &[u8], now: Instant) {
        if let Some(worker) = self.workers.get_mut(identity)
            && worker.peer == Some(peer)
        {
            log::info!("worker {} has lost its connection", worker.worker_id);
            worker.peer = None;
            worker.away_since = Some(now);
        }
    }

    /// When [`Control::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let away = self
            .workers
            .values()
            .filter_map(|worker| Some(worker.away_since? + self.settings.grace))
            .min();
        [away, self.renew_at].into_iter().flatten().min()
    }

    /// Lets time pass: leases of connected workers are renewed, jobs of workers that stayed
    /// away are released.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.renew_at.is_some_and(|at| at <= now) {
            self.renew_at = (!self.workers.is_empty()).then(|| now + self.settings.lease / 3);
            let holds: Vec<Attempt> = self
                .workers
                .values()
                .filter(|worker| worker.peer.is_some())
                .flat_map(|worker| worker.holds.iter().copied())
                .collect();
            let workers = self.online();
            if !workers.is_empty() {
                self.changes.push(Change::Renew { holds, workers });
            }
        }
        let grace = self.settings.grace;
        let gone: Vec<Vec<u8>> = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.away_since.is_some_and(|since| since + grace <= now))
            .map(|(identity, _)| identity.clone())
            .collect();
        for identity in gone {
            let Some(worker) = self.remove(&identity) else {
                continue;
            };
            log::warn!(
                "worker {} is gone; {} job(s) go back to the queue",
                worker.worker_id,
                worker.holds.len()
            );
            for hold in worker.holds {
                let reason = format!("worker {} was lost", worker.worker_id);
                self.changes.push(Change::Release { hold, reason });
            }
            if !self.identities.contains_key(&worker.worker_id) {
                self.changes.push(Change::WorkerOffline {
                    worker_id: worker.worker_id,
                });
            }
        }
    }

    /// The sentinel stops: who is still connected is noted as gone.
    pub fn close(&mut self) {
        for worker in self.workers.values() {
            self.changes.push(Change::WorkerOffline {
                worker_id: worker.worker_id.clone(),
            });
        }
    }
}

/// Remembers an environment; the set is bounded by starting over, which costs a message that
/// the worker answers from its cache.
fn remember(environments: &mut HashSet<String>, hash: &str) {
    if environments.len() >= limits::WORKER_ENVIRONMENTS_MAX {
        environments.clear();
    }
    environments.insert(cut(hash, limits::NAME_SIZE_MAX));
}

/// A routing id as text.
pub(crate) fn printable(identity: &[u8]) -> String {
    match std::str::from_utf8(identity) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => identity
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect(),
    }
}

/// At most `size_max` octets of a text, cut at a character's end.
pub(crate) fn cut(text: &str, size_max: usize) -> String {
    let mut end = size_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or("").to_owned()
}

#[cfg(test)]
mod tests;
