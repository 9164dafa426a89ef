//! Finds jobs for free slots: plugins with QUEUED rows, and claims for workers.

use std::collections::{BTreeMap, HashSet};

use super::control::{Able, Control, Opening};
use super::outcome::Outcome;
use crate::job::Job;
use crate::limits;
use crate::store::{self, ClaimRequest, Ended, Now, Store};

/// A pass over the whole queue, in which a transaction considers a bounded number of plugins.
#[derive(Debug)]
pub(crate) struct Round {
    /// Since it began, rows were queued or workers got free slots. Another round is needed.
    pub(crate) is_stale: bool,
    /// It has begun, and there are plugins that no claim has considered yet.
    is_open: bool,
    /// The last transaction stopped at its bound of unusable rows.
    pub(crate) is_bounded: bool,
    /// Workers, by routing ID, that are being emptied: they get no jobs until they are idle, so that a job
    /// can run alone there.
    emptied: BTreeMap<Vec<u8>, Able>,
}

impl Round {
    /// A round is needed, and none has begun.
    pub(crate) fn stale() -> Self {
        Round {
            is_stale: true,
            is_open: false,
            is_bounded: false,
            emptied: BTreeMap::new(),
        }
    }

    /// True when there are plugins to consider.
    pub(crate) fn is_due(&self) -> bool {
        self.is_stale || self.is_open
    }

    /// Makes the next pass find again what the last one found, because its claims were rolled back.
    pub(crate) fn reopen(&mut self) {
        (self.is_stale, self.is_open) = (true, true);
    }

    /// The next plugins with QUEUED rows.
    pub(crate) fn pass(
        &mut self,
        store: &mut Store,
        at: &Now,
    ) -> Result<Vec<String>, store::Error> {
        if !self.is_due() {
            return Ok(Vec::new());
        }
        if !self.is_open {
            self.is_stale = false;
            self.emptied.clear();
        }
        let found = store.queued_plugins(limits::QUEUED_PLUGINS_PER_TRANSACTION, at.unix_ms)?;
        self.is_open = !found.is_end;
        Ok(found.names)
    }

    /// Adds workers that are being emptied. They get no more jobs in this round.
    pub(super) fn empty(&mut self, workers: Vec<(Vec<u8>, Able)>) {
        self.emptied.extend(workers);
    }

    /// True when a worker is being emptied. It may become idle without a change for the database.
    pub(crate) fn is_emptying(&self) -> bool {
        !self.emptied.is_empty()
    }

    /// Removes workers that are being emptied from `openings`. Also prevents that a second worker is emptied
    /// for a plugin that one of these, or one of those in `alone`, may run.
    pub(super) fn restrict(
        &self,
        transaction: &mut store::Transaction<'_>,
        deployed: &[Deployed],
        alone: &[Able],
        openings: &mut Vec<Opening>,
    ) {
        for one in deployed {
            let mut kept = self.emptied.values().chain(alone);
            if kept.any(|worker| worker.runs(&one.plugin, &one.env_hash)) {
                transaction.empty_none_for(&one.plugin);
            }
        }
        openings.retain(|opening| !self.emptied.contains_key(&opening.routing_id));
    }
}

/// A plugin with usable code.
pub(super) struct Deployed {
    plugin: String,
    env_hash: String,
}

/// The plugins with usable code. It is logged once what jobs of the others wait for.
pub(super) fn deployed(
    transaction: &mut store::Transaction<'_>,
    plugins: Vec<String>,
    control: &Control,
    waiting: &mut HashSet<String>,
) -> Result<Vec<Deployed>, store::Error> {
    let mut deployed = Vec::with_capacity(plugins.len());
    let mut report = |plugin: &str, level: log::Level, text: &dyn Fn() -> String| {
        if waiting.len() < limits::WAITING_LOGGED_MAX && waiting.insert(plugin.to_owned()) {
            log::log!(level, "jobs of plugin {plugin} wait{}", text());
            if waiting.len() == limits::WAITING_LOGGED_MAX {
                log::warn!("jobs of more plugins may wait: `casparian job` shows what for");
            }
        }
    };
    for plugin in plugins {
        match transaction.plugin_code(&plugin)? {
            store::Code::Runs(code) => {
                if !control.may_run(&plugin) {
                    report(&plugin, log::Level::Info, &|| {
                        " for a worker that may run it".to_owned()
                    });
                }
                deployed.push(Deployed {
                    plugin,
                    env_hash: code.plugin.env_hash.clone(),
                });
            }
            store::Code::Waits(reason) => {
                report(&plugin, log::Level::Warn, &|| format!(": {reason}"));
            }
        }
    }
    Ok(deployed)
}

/// Fills free slots in steps: one job for each worker in the first step, and twice as many in each further
/// one. So a short queue is spread over the workers, and a long one needs few steps.
pub(super) fn claim(
    transaction: &mut store::Transaction<'_>,
    openings: &[Opening],
    deployed: &[Deployed],
    lease_ms: i64,
    at: &Now,
    outcome: &mut Outcome,
) -> Result<(), store::Error> {
    let mut open: Vec<(&Opening, Vec<String>, Vec<Job>)> = openings
        .iter()
        .map(|opening| {
            let takes = |one: &&Deployed| opening.able.runs(&one.plugin, &one.env_hash);
            let plugins = deployed.iter().filter(takes);
            let plugins: Vec<String> = plugins.map(|one| one.plugin.clone()).collect();
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
            let claimed = transaction.claim(
                &ClaimRequest {
                    worker_id: &opening.worker_id,
                    hostname: &opening.hostname,
                    pid: opening.pid,
                    plugins: &plugins,
                    limit,
                    is_idle: opening.is_idle && jobs.is_empty(),
                    is_old: opening.is_old,
                    lease_until_ms: at.unix_ms.saturating_add(lease_ms),
                },
                at.unix_ms,
            )?;
            for failed in claimed.unresolved.iter().filter(|one| one.is_ended) {
                log::warn!("job {} failed: {}", failed.job_id, failed.reason);
                let reason = Some(failed.reason.as_str());
                outcome.note_end(failed.job_id, Ended::Failed, None, reason);
            }
            outcome.more |= claimed.more;
            outcome.is_bounded |= claimed.more;
            if claimed.alone {
                let worker = &opening.worker_id;
                log::info!("worker {worker} runs one job alone, whose workers were lost before");
                let attempts = claimed.jobs.iter().map(|job| job.attempt);
                let alone = attempts.map(|attempt| (opening.routing_id.clone(), attempt));
                outcome.alone.extend(alone);
            }
            if claimed.is_reserved {
                let emptied = (opening.routing_id.clone(), opening.able.clone());
                outcome.emptied.push(emptied);
            }
            let is_done = claimed.alone || claimed.is_reserved;
            let got = claimed.jobs.len();
            jobs.extend(claimed.jobs);
            if is_done {
                filled.push((opening.routing_id.clone(), jobs));
            } else if got == limit && jobs.len() < opening.free {
                next.push((opening, plugins, jobs));
            } else {
                outcome.more |= got == limit;
                filled.push((opening.routing_id.clone(), jobs));
            }
        }
        open = next;
        step = step.saturating_mul(2);
    }
    outcome.claimed = filled;
    Ok(())
}
