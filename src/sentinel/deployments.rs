//! Announces deployments to workers: they create the environments of plugins that they may run before
//! there are jobs, and get RELOAD when a plugin or its sinks have changed.

use std::collections::BTreeMap;

use super::control::{Control, Wanted};
use crate::limits;
use crate::reactor::BootTime;
use crate::store::{self, Deployment, Store};

/// The result of the last poll.
#[derive(Debug)]
pub(super) struct Deployments {
    /// The state of each plugin. None before the first poll.
    states: Option<BTreeMap<String, u64>>,
    /// Another program has committed since then.
    pub(super) is_stale: bool,
    /// This program has committed a deployment since then. It is announced in the same iteration.
    pub(super) is_urgent: bool,
    poll_at: BootTime,
}

impl Deployments {
    pub(super) fn new(now: BootTime) -> Self {
        Deployments {
            states: None,
            is_stale: true,
            is_urgent: false,
            poll_at: now,
        }
    }

    /// Called once a second, and after a deployment over the wire. Polls deployments and sinks if the
    /// database has changed, and announces changes to workers.
    pub(super) fn announce(
        &mut self,
        store: &Store,
        control: &mut Control,
        now: BootTime,
    ) -> Result<(), store::Error> {
        if self.is_stale || self.is_urgent || now >= self.poll_at {
            let found = store.deployments()?;
            (self.is_stale, self.is_urgent) = (false, false);
            self.poll_at = now + limits::DEPLOYMENTS_POLL_INTERVAL;
            control.want_environments(wanted(found.plugins));
            if let Some(before) = self.states.replace(found.states) {
                let after = self.states.iter().flatten();
                let is_new = |(name, state): &(&String, &u64)| before.get(*name) != Some(*state);
                let known = before.keys();
                let is_removed = |name: &&String| {
                    let states = self.states.as_ref();
                    states.is_some_and(|states| !states.contains_key(*name))
                };
                let changed: Vec<&str> = after
                    .filter(is_new)
                    .map(|(name, _)| name.as_str())
                    .chain(known.filter(is_removed).map(String::as_str))
                    .collect();
                if !changed.is_empty() {
                    log::info!("plugins or their sinks have changed: workers are notified");
                    control.reload(&changed);
                }
            }
        }
        for (routing_id, hash) in control.to_prepare(limits::PREPARES_PER_POLL, now) {
            match store.lockfile(&hash)? {
                Some(lockfile) => control.prepare(&routing_id, &hash, &lockfile, now),
                None => control.want_no_longer(&hash),
            }
        }
        Ok(())
    }
}

/// Environments that workers should have: those with waiting jobs first, then the last deployed ones. Their
/// number is bounded, so that a worker can have all of them.
fn wanted(mut plugins: Vec<Deployment>) -> Vec<Wanted> {
    plugins.retain(|one| !one.env_hash.is_empty());
    plugins.sort_by_key(|one| std::cmp::Reverse((one.has_jobs, one.order)));
    let mut found: Vec<Wanted> = Vec::new();
    for one in plugins {
        let has_room = found.len() < limits::ENVIRONMENTS_WANTED_MAX;
        let known = found
            .iter_mut()
            .find(|known| known.env_hash == one.env_hash);
        match known {
            Some(known) => known.plugins.push(one.plugin_name),
            None if has_room => found.push(Wanted {
                env_hash: one.env_hash,
                plugins: vec![one.plugin_name],
            }),
            None => {}
        }
    }
    found
}
