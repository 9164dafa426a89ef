//! What workers receive before jobs: environments to prepare (PREPARE_ENV), and that a
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
    /// It has reported that it has not got them since it was asked last.
    failed: BTreeMap<String, Failed>,
    /// It needs none of the wanted ones of this number ([`Control::want_environments`]).
    done: u64,
    /// It has reported one that it was not asked for, which was logged.
    has_unasked: bool,
}

/// Reports that an environment is not there.
#[derive(Debug)]
struct Failed {
    /// How many have come, each soon after the one before.
    count: u32,
    /// When the last one came.
    at: BootTime,
}

impl Failed {
    /// A report that it is ready comes soon after the last of many that it is not.
    fn is_one_of_many(&self, now: BootTime) -> bool {
        self.count >= limits::ENVIRONMENT_FLIPS_MAX && now < self.at + limits::ENVIRONMENT_FLIP
    }
}

impl Environments {
    pub(super) fn knows(&self, hash: &str) -> bool {
        self.known.contains(hash)
    }

    /// It is asked for an environment. Gives the one that was ready and is forgotten for it.
    pub(super) fn ask(&mut self, hash: &str) -> Option<String> {
        self.ready.remove(hash);
        self.failed.remove(hash);
        self.add(hash)
    }

    /// The set is bounded: another one makes room, which costs a message that the worker answers
    /// from its cache. Gives that one if it was ready.
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
        if let Some(forgotten) = worker.environments.ask(env_hash) {
            self.changes.push(worker.without(forgotten));
        }
        let until = now + limits::PREPARE_WAIT;
        let pending = &mut worker.environments.pending;
        pending.insert(env_hash.to_owned(), until);
        self.outgoing.push(prepare_env(peer, env_hash, lockfile));
    }

    /// A plugin or its sinks have changed: workers that may run it receive RELOAD.
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

    /// ENV_READY: recorded once for each time that the worker was asked. A worker that creates an
    /// environment while the sentinel is restarted reports one that this sentinel wants, too. Others
    /// are ignored: a worker can make up any number of hashes. So is one that the worker has often reported
    /// as failed and as ready in turns: each change is written.
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

    /// ERR that names an environment: the worker has not got it.
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

impl Worker {
    /// It is not known to have an environment (any more).
    pub(super) fn without(&self, env_hash: String) -> Change {
        Change::EnvironmentFailed {
            worker_id: self.worker_id.clone(),
            env_hash,
        }
    }

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
