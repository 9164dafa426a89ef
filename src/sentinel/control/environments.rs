//! Messages to workers before there are jobs: PREPARE_ENV for environments that they should create, and
//! RELOAD when a plugin or its sinks have changed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Body, Capabilities, Change, Control, Outgoing};
use crate::job::text::prefix;
use crate::limits;
use crate::protocol::{EnvReady, Payload, PrepareEnv};
use crate::reactor::BootTime;

/// An environment that workers should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The lockfile's hash.
    pub env_hash: String,
    /// The plugins that run in it.
    pub plugins: Vec<String>,
}

/// The environments of one worker.
#[derive(Debug, Default)]
pub(super) struct Environments {
    /// Environments that it was asked to prepare, or has reported.
    known: BTreeSet<String>,
    /// Environments for which its answer is pending, and until when that counts.
    pending: BTreeMap<String, BootTime>,
    /// Environments that it has reported as ready since it was last asked.
    ready: BTreeSet<String>,
    /// Environments that it has reported as missing since it was last asked.
    failed: BTreeMap<String, Failed>,
    /// The number of the list of wanted environments ([`Control::want_environments`]) of which it needs no
    /// more.
    done: u64,
    /// It has reported an environment that it was not asked for. This was logged once.
    has_unasked: bool,
}

/// Reports that an environment is missing.
#[derive(Debug)]
struct Failed {
    /// Number of reports, each soon after the one before.
    count: u32,
    /// Time of the last report.
    at: BootTime,
}

impl Failed {
    /// True for a report `ready` at `now` that follows soon after many alternating reports.
    fn is_one_of_many(&self, now: BootTime) -> bool {
        self.count >= limits::ENVIRONMENT_FLIPS_MAX && now < self.at + limits::ENVIRONMENT_FLIP
    }
}

impl Environments {
    pub(super) fn knows(&self, hash: &str) -> bool {
        self.known.contains(hash)
    }

    /// Number of environments for which its answer is pending.
    pub(super) fn pending(&mut self, now: BootTime) -> usize {
        self.pending.retain(|_, until| *until > now);
        self.pending.len()
    }

    /// Notes that the worker is asked for an environment. Returns a ready one that is forgotten to make room.
    pub(super) fn ask(&mut self, hash: &str) -> Option<String> {
        self.ready.remove(hash);
        self.failed.remove(hash);
        self.add(hash)
    }

    /// Adds an environment to the bounded set. If the set is full, another one is forgotten, and returned if
    /// it was ready. The worker is then asked for that one again, which it answers from its cache.
    fn add(&mut self, hash: &str) -> Option<String> {
        if !self.known.insert(hash.to_owned())
            || self.known.len() <= limits::WORKER_ENVIRONMENTS_MAX
        {
            return None;
        }
        let mut others = self.known.iter().filter(|other| *other != hash);
        let oldest = others.find(|other| !self.pending.contains_key(*other))?;
        let forgotten = oldest.clone();
        self.known.remove(&forgotten);
        self.failed.remove(&forgotten);
        self.ready.remove(&forgotten).then_some(forgotten)
    }
}

impl Control {
    /// Sets the environments that workers should have, the most urgent first.
    pub fn want_environments(&mut self, wanted: Vec<Wanted>) {
        if self.wanted != wanted {
            self.wanted = wanted;
            self.wanted_number += 1;
        }
    }

    /// Removes an environment that cannot be sent from the wanted ones.
    pub fn want_no_longer(&mut self, env_hash: &str) {
        self.wanted.retain(|one| one.env_hash != env_hash);
    }

    /// The environments to send next, each with the routing ID of a worker: at most `limit`, and one for each
    /// worker.
    pub fn to_prepare(&mut self, limit: usize, now: BootTime) -> Vec<(Vec<u8>, String)> {
        let mut found = Vec::new();
        if self.draining {
            return found;
        }
        for (routing_id, worker) in &mut self.workers {
            if found.len() >= limit {
                break;
            }
            if worker.environments.done == self.wanted_number || !worker.may_prepare(now) {
                continue;
            }
            let next = self.wanted.iter().find(|one| {
                let runs = |plugin: &String| worker.capabilities.allows(plugin);
                !worker.environments.knows(&one.env_hash)
                    && !worker.avoids.contains_key(&one.env_hash)
                    && one.plugins.iter().any(runs)
            });
            match next {
                Some(one) => found.push((routing_id.clone(), one.env_hash.clone())),
                None => worker.environments.done = self.wanted_number,
            }
        }
        found
    }

    /// Asks a worker to prepare an environment.
    pub fn prepare(&mut self, routing_id: &[u8], env_hash: &str, lockfile: &str, now: BootTime) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        let Some(peer) = worker.peer else {
            return;
        };
        if let Some(forgotten) = worker.environments.ask(env_hash) {
            self.changes.push(worker.without(forgotten));
        }
        let until = now + limits::PREPARE_WAIT;
        let pending = &mut worker.environments.pending;
        pending.insert(env_hash.to_owned(), until);
        self.outgoing.push(prepare_env(peer, env_hash, lockfile));
    }

    /// Sends RELOAD to workers that may run one of these plugins, because a plugin or its sinks have changed.
    pub fn reload(&mut self, plugins: &[&str]) {
        let is_concerned = |capabilities: &Capabilities| {
            let mut plugins = plugins.iter();
            plugins.any(|plugin| capabilities.allows(plugin))
        };
        for worker in self.workers.values() {
            if let Some(peer) = worker.peer
                && is_concerned(&worker.capabilities)
            {
                self.outgoing.push(Outgoing {
                    peer,
                    job_id: 0,
                    body: Body::Payload(Payload::Reload),
                });
            }
        }
    }

    /// Records an ENV_READY, once for each time that the worker was asked. One that was not asked for counts
    /// when the environment is wanted: the worker may have created it while the sentinel restarted. Others
    /// are ignored, because a worker can invent any number of hashes. An environment that the worker has
    /// often reported as failed and as ready alternately is ignored, too, because each change is written.
    pub(super) fn environment_ready(
        &mut self,
        routing_id: &[u8],
        ready: &EnvReady<'_>,
        now: BootTime,
    ) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        let hash = ready.env_hash.as_ref();
        if !is_hash(hash) {
            return;
        }
        let is_wanted = || {
            let mut wanted = self.wanted.iter().filter(|one| one.env_hash == hash);
            wanted.any(|one| {
                one.plugins
                    .iter()
                    .any(|name| worker.capabilities.allows(name))
            })
        };
        if !worker.environments.knows(hash) && !is_wanted() {
            if !std::mem::replace(&mut worker.environments.has_unasked, true) {
                log::warn!(
                    "worker {} reports environment {hash}, which it was not asked for; such \
                     reports of it are ignored",
                    worker.worker_id
                );
            }
            return;
        }
        log::debug!("{}: environment {hash} ready", worker.worker_id);
        if let Some(forgotten) = worker.environments.add(hash) {
            self.changes.push(worker.without(forgotten));
        }
        worker.environments.pending.remove(hash);
        let failed = worker.environments.failed.get(hash);
        if failed.is_some_and(|failed| failed.is_one_of_many(now)) {
            return;
        }
        if !worker.environments.ready.insert(hash.to_owned()) {
            return;
        }
        let path = prefix(&ready.interpreter_path, limits::NAME_SIZE_MAX);
        self.changes.push(Change::EnvironmentReady {
            worker_id: worker.worker_id.clone(),
            env_hash: hash.to_owned(),
            interpreter_path: path.to_owned(),
            cached: ready.cached,
        });
    }

    /// Processes an ERR that names an environment: the worker does not have it.
    pub(super) fn environment_failed(&mut self, routing_id: &[u8], hash: &str, now: BootTime) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        let was_asked = worker.environments.pending.remove(hash).is_some();
        if worker.environments.ready.remove(hash) || was_asked {
            let failed = worker.environments.failed.entry(hash.to_owned());
            let failed = failed.or_insert(Failed { count: 0, at: now });
            failed.count = match now < failed.at + limits::ENVIRONMENT_FLIP {
                true => failed.count.saturating_add(1),
                false => 1,
            };
            failed.at = now;
            self.changes.push(worker.without(hash.to_owned()));
        }
    }
}

fn is_hash(text: &str) -> bool {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == 64 && text.bytes().all(is_digit)
}

pub(super) fn prepare_env(peer: crate::socket::PeerId, env_hash: &str, lockfile: &str) -> Outgoing {
    Outgoing {
        peer,
        job_id: 0,
        body: Body::Payload(Payload::PrepareEnv(PrepareEnv {
            env_hash: env_hash.to_owned().into(),
            lockfile_content: lockfile.to_owned().into(),
            python_version: None,
        })),
    }
}
