//! Free slots of workers, and the dispatching of jobs into them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::environments::prepare_env;
use super::leases::Claim;
use super::members::Worker;
use super::{Able, Body, Change, Control, Opening, Outgoing};
use crate::job::{Attempt, Cause, Job, Lease, Loss, Plugin, text};
use crate::limits;
use crate::protocol::DispatchPart;
use crate::reactor::BootTime;

impl Control {
    /// Dispatches jobs, after the transaction that claimed them is committed.
    pub fn handle_claimed(&mut self, routing_id: &[u8], jobs: Vec<Job>, now: BootTime) {
        let bound = self.settings.lease + self.settings.margin;
        let worker = self.workers.get_mut(routing_id);
        let Some((worker, peer)) = worker.and_then(|worker| {
            let peer = worker.peer?;
            Some((worker, peer))
        }) else {
            for job in jobs {
                let reason = "its worker disconnected before it was dispatched".to_owned();
                self.give_back(job.attempt, reason);
            }
            return;
        };
        let lease = worker.request.map(|request| Lease {
            bound: self.settings.lease,
            request: request.sequence,
        });
        worker.idle_since = None;
        let mut first: Option<BootTime> = None;
        for job in jobs {
            let until = worker.request.map_or(now, |request| request.received_at) + bound;
            let due = now + self.settings.attempt_timeout;
            first = Some(first.map_or(until, |at| at.min(until)).min(due));
            worker.claims.push(Claim {
                attempt: job.attempt,
                until,
                due,
                is_overdue: false,
                sent_after: worker.answered,
                wants: Vec::new(),
                wants_since: 0,
                is_alone: false,
                is_waiting: false,
            });
            let plugin = &job.plugin;
            if !plugin.env_hash.is_empty() && !worker.environments.knows(&plugin.env_hash) {
                if let Some(forgotten) = worker.environments.ask(&plugin.env_hash) {
                    self.changes.push(worker.without(forgotten));
                }
                let lockfile = &plugin.lockfile_content;
                let prepare = prepare_env(peer, &plugin.env_hash, lockfile);
                self.outgoing.push(prepare);
            }
            self.outgoing.push(Outgoing {
                peer,
                job_id: job.attempt.job_id.unsigned_abs(),
                body: Body::Dispatch {
                    attempt: job.attempt,
                    json: part(&mut self.dispatch_parts, plugin).with_job(&job, lease.as_ref()),
                },
            });
        }
        if let Some(until) = first {
            self.expect_expiry(until);
        }
    }

    /// Keeps other jobs from the worker of an attempt that runs alone.
    pub fn keep_alone(&mut self, routing_id: &[u8], attempt: Attempt) {
        let worker = self.workers.get_mut(routing_id);
        for claim in worker.into_iter().flat_map(|worker| &mut worker.claims) {
            claim.is_alone |= claim.attempt == attempt;
        }
    }

    /// What the workers that run a job alone may run.
    pub fn alone(&self) -> Vec<Able> {
        let is_alone = |worker: &&Worker| worker.claims.iter().any(|claim| claim.is_alone);
        let workers = self.workers.values().filter(is_alone);
        workers.map(able).collect()
    }

    /// True when a connected worker may run the plugin.
    pub fn may_run(&self, plugin: &str) -> bool {
        let mut connected = self.workers.values().filter(|worker| worker.peer.is_some());
        connected.any(|worker| worker.capabilities.allows(plugin))
    }

    /// Releases an attempt whose DISPATCH could not be sent. `is_final`: it can never be sent.
    pub fn handle_unsent(&mut self, attempt: Attempt, reason: &str, is_final: bool) {
        for worker in self.workers.values_mut() {
            let before = worker.claims.len();
            worker.claims.retain(|claim| claim.attempt != attempt);
            worker.is_backed_up |= worker.claims.len() < before && !is_final;
        }
        match is_final {
            true => self.release(attempt, Cause::Operator, Loss::Alone, reason.to_owned()),
            false => self.give_back(attempt, reason.to_owned()),
        }
    }

    /// Workers with free slots, the least loaded one first. Empty while draining.
    pub fn openings(&self, now: BootTime) -> Vec<Opening> {
        if self.draining {
            return Vec::new();
        }
        let mut openings: Vec<(usize, Opening)> = self
            .workers
            .iter()
            .filter(|(_, worker)| self.takes_jobs(worker, now))
            .map(|(routing_id, worker)| {
                let opening = Opening {
                    routing_id: routing_id.clone(),
                    worker_id: worker.worker_id.clone(),
                    hostname: worker.hostname.clone(),
                    pid: worker.pid,
                    able: able(worker),
                    free: worker.free(),
                    is_idle: worker.claims.iter().all(|claim| claim.is_waiting),
                    is_old: worker.instance.is_none(),
                };
                (worker.claims.len(), opening)
            })
            .collect();
        openings.sort_by(|a, b| (a.0, &a.1.worker_id).cmp(&(b.0, &b.1.worker_id)));
        openings.into_iter().map(|(_, opening)| opening).collect()
    }

    /// True when a connected worker has a free slot.
    pub fn has_openings(&self, now: BootTime) -> bool {
        !self.draining
            && self
                .workers
                .values()
                .any(|worker| self.takes_jobs(worker, now))
    }

    /// True if a slot has become free since the last call without a change for the database.
    pub fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.has_freed)
    }

    /// Free slots of each worker that accepts jobs, by routing ID.
    pub fn open_slots(&self, now: BootTime) -> BTreeMap<Vec<u8>, usize> {
        let open = self.workers.iter();
        let open = open.filter(|(_, worker)| !self.draining && self.takes_jobs(worker, now));
        open.map(|(routing_id, worker)| (routing_id.clone(), worker.free()))
            .collect()
    }

    /// True when a worker accepts jobs now. False when its last request is older than half a lease, because
    /// the lease of a new job would soon end.
    fn takes_jobs(&self, worker: &Worker, now: BootTime) -> bool {
        let is_fresh = match worker.request {
            Some(request) => request.received_at + self.settings.lease / 2 > now,
            None => worker.instance.is_none(),
        };
        worker.peer.is_some()
            && worker.free() > 0
            && !worker.draining
            && worker.trouble.is_none()
            && !worker.is_backed_up
            && is_fresh
    }

    /// Sets which attempts of a worker wait for the creation of their environments.
    pub(super) fn set_waiting(&mut self, routing_id: &[u8], waiting: &[Attempt]) {
        let worker = self.workers.get_mut(routing_id);
        let waiting: HashSet<&Attempt> = waiting.iter().collect();
        for claim in worker.into_iter().flat_map(|worker| &mut worker.claims) {
            let is_waiting = waiting.contains(&claim.attempt);
            self.has_freed |= is_waiting && !claim.is_waiting;
            claim.is_waiting = is_waiting;
        }
    }

    /// Sets how many jobs a worker accepts in addition to those that it lists. A dispatched job that it does
    /// not list yet is one of these.
    pub(super) fn limit_jobs(
        &mut self,
        routing_id: &[u8],
        takes: Option<u32>,
        running: &[Attempt],
    ) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        let running: HashSet<&Attempt> = running.iter().collect();
        let listed = |claim: &&Claim| running.contains(&claim.attempt);
        let count = worker.claims.iter().filter(listed).count();
        worker.claims_max = takes.map(|takes| count.saturating_add(takes as usize));
    }

    /// Sets what a worker reports about its state.
    pub(super) fn set_state(
        &mut self,
        routing_id: &[u8],
        draining: bool,
        mut trouble: Option<String>,
        environments: BTreeMap<String, String>,
    ) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        worker.draining = draining;
        if let Some(text) = &mut trouble {
            text::cut(text, limits::TROUBLE_SIZE_MAX);
        }
        let environments = environments
            .iter()
            .take(limits::WORKER_ENVIRONMENTS_MAX)
            .map(|(hash, reason)| {
                let hash = text::prefix(hash, limits::NAME_SIZE_MAX).to_owned();
                let reason = text::prefix(reason, limits::TROUBLE_SIZE_MAX);
                (hash, reason.to_owned())
            })
            .collect();
        if worker.trouble != trouble || worker.avoids != environments {
            worker.trouble = trouble;
            worker.avoids = environments;
            let online = worker.online();
            self.push_online(online);
        }
    }

    /// Adds a worker's WorkerOnline change. It replaces an earlier one of the same worker.
    pub(super) fn push_online(&mut self, online: Change) {
        let Change::WorkerOnline { worker_id, .. } = &online else {
            return;
        };
        self.changes.retain(|change| {
            !matches!(change, Change::WorkerOnline { worker_id: other, .. } if other == worker_id)
        });
        self.changes.push(online);
    }
}

fn able(worker: &Worker) -> Able {
    Able {
        capabilities: worker.capabilities.clone(),
        avoids: worker.avoids.keys().cloned().collect(),
    }
}

/// The serialised part of DISPATCH for a plugin version. It is created when the version is new.
fn part<'a>(
    parts: &'a mut BTreeMap<String, (Arc<Plugin>, DispatchPart)>,
    plugin: &Arc<Plugin>,
) -> &'a DispatchPart {
    if parts.len() >= limits::PLUGINS_CACHED_MAX && !parts.contains_key(&plugin.name) {
        parts.clear();
    }
    let entry = parts
        .entry(plugin.name.clone())
        .or_insert_with(|| (plugin.clone(), DispatchPart::new(plugin)));
    if !Arc::ptr_eq(&entry.0, plugin) && entry.0 != *plugin {
        *entry = (plugin.clone(), DispatchPart::new(plugin));
    }
    &entry.1
}
