//! What workers are told before they get jobs: environments to prepare (PREPARE_ENV), and that a
//! plugin or its sinks have changed (RELOAD).

use std::collections::{BTreeMap, BTreeSet};

use super::members::Worker;
use super::{Body, Capabilities, Change, Control, Outgoing};
use crate::job::text::prefix;
use crate::limits;
use crate::protocol::{EnvReady, Payload, PrepareEnv};
use crate::reactor::BootTime;

/// An environment that workers are to have.
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
    /// It has been asked to prepare them, or has reported them.
    known: BTreeSet<String>,
    /// It has not answered yet; until when that counts.
    pending: BTreeMap<String, BootTime>,
    /// It has reported them as ready since it was asked last.
    ready: BTreeSet<String>,
    /// It needs none of the wanted ones of this number ([`Control::want_environments`]).
    done: u64,
}

impl Environments {
    pub(super) fn knows(&self, hash: &str) -> bool {
        self.known.contains(hash)
    }

    /// It is asked for an environment. The set is bounded by starting over, which costs a message
    /// that the worker answers from its cache.
    pub(super) fn ask(&mut self, hash: &str) {
        self.ready.remove(hash);
        self.add(hash);
    }

    fn add(&mut self, hash: &str) {
        if self.known.len() >= limits::WORKER_ENVIRONMENTS_MAX {
            self.known.clear();
            self.ready.clear();
        }
        self.known.insert(hash.to_owned());
    }
}

impl Control {
    /// The environments that workers are to have, the most urgent first.
    pub fn want_environments(&mut self, wanted: Vec<Wanted>) {
        if self.wanted != wanted {
            self.wanted = wanted;
            self.wanted_number += 1;
        }
    }

    /// An environment cannot be sent.
    pub fn want_no_longer(&mut self, env_hash: &str) {
        self.wanted.retain(|one| one.env_hash != env_hash);
    }

    /// Which environment to send to which worker next, by routing ID: at most `limit`, and of each
    /// worker one. A worker that waits for others creates its environments one after the other.
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

    /// A worker is to prepare an environment.
    pub fn prepare(&mut self, routing_id: &[u8], env_hash: &str, lockfile: &str, now: BootTime) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        let Some(peer) = worker.peer else {
            return;
        };
        worker.environments.ask(env_hash);
        let until = now + limits::PREPARE_WAIT;
        let pending = &mut worker.environments.pending;
        pending.insert(env_hash.to_owned(), until);
        self.outgoing.push(prepare_env(peer, env_hash, lockfile));
    }

    /// A plugin or its sinks have changed: workers that may run it are told.
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

    /// ENV_READY: recorded once for each time that the worker was asked.
    pub(super) fn environment_ready(&mut self, routing_id: &[u8], ready: &EnvReady<'_>) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        let hash = ready.env_hash.as_ref();
        if !is_hash(hash) {
            return;
        }
        log::debug!("{}: environment {hash} ready", worker.worker_id);
        worker.environments.add(hash);
        worker.environments.pending.remove(hash);
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

    /// ERR that names an environment: the worker has not got it.
    pub(super) fn environment_failed(&mut self, routing_id: &[u8], hash: &str) {
        let Some(worker) = self.workers.get_mut(routing_id) else {
            return;
        };
        let was_asked = worker.environments.pending.remove(hash).is_some();
        if worker.environments.ready.remove(hash) || was_asked {
            self.changes.push(Change::EnvironmentFailed {
                worker_id: worker.worker_id.clone(),
                env_hash: hash.to_owned(),
            });
        }
    }
}

impl Worker {
    /// True when it may be asked for one more environment. An old worker does nothing else
    /// meanwhile.
    fn may_prepare(&mut self, now: BootTime) -> bool {
        let pending = &mut self.environments.pending;
        pending.retain(|_, until| *until > now);
        let room = match self.instance {
            Some(_) => limits::PREPARED_AT_ONCE,
            None => usize::from(self.holds.is_empty()),
        };
        self.peer.is_some()
            && pending.len() < room
            && !self.draining
            && self.trouble.is_none()
            && !self.is_backed_up
    }
}

fn is_hash(text: &str) -> bool {
    let is_digit = |octet: u8| matches!(octet, b'0'..=b'9' | b'a'..=b'f');
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
