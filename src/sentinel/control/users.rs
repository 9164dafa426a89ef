//! Users of workers: a user cannot act as another user's worker, and a user's limits apply to all of the
//! user's workers together.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::members::Worker;
use super::{Capabilities, Control, Sender, are_different, printable};
use crate::job::User;
use crate::reactor::BootTime;

/// Interval between log lines about refused workers.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The limits of a user's workers. None = as the workers ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserLimits {
    /// Jobs at a time of all the user's workers together.
    pub slots: Option<usize>,
    /// Plugins that they may run.
    pub plugins: Option<Capabilities>,
}

impl Control {
    /// Replaces the limits of all users. `limits` = by the users' keys.
    pub fn set_user_limits(&mut self, limits: BTreeMap<String, UserLimits>) {
        let had_any = !self.user_limits.is_empty();
        self.user_limits = limits;
        if had_any {
            self.limit_workers();
        } else {
            self.apply_user_limits();
        }
    }

    /// Divides the slots of each limited user among the user's workers again, because workers or their claims
    /// have changed.
    pub(super) fn apply_user_limits(&mut self) {
        if !self.user_limits.is_empty() {
            self.limit_workers();
        }
    }

    fn limit_workers(&mut self) {
        // By name, because keys with the same name are the same user.
        let mut used: HashMap<String, usize> = HashMap::new();
        // Jobs of disconnected workers may still run.
        let orphans = self.orphans.values().map(|orphan| (&orphan.user, 1));
        let workers = self.workers.values();
        let disconnected = workers.filter(|worker| worker.peer.is_none());
        let disconnected = disconnected.map(|worker| (&worker.user, worker.occupied()));
        for (user, jobs) in orphans.chain(disconnected) {
            if let Some(user) = user {
                *used.entry(user.name.clone()).or_default() += jobs;
            }
        }
        let limits = &self.user_limits;
        let limits_of = |worker: &Worker| {
            let key = worker.user.as_ref()?.key.as_deref()?;
            limits.get(key)
        };
        // First the slots that each worker already uses, then the others that it asks for.
        let mut slots: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for is_first in [true, false] {
            for (routing_id, worker) in &self.workers {
                let max = limits_of(worker).and_then(|limits| limits.slots);
                let (Some(user), Some(max), Some(_)) = (&worker.user, max, worker.peer) else {
                    continue;
                };
                let granted = slots.entry(routing_id.clone()).or_default();
                let asked = match is_first {
                    true => worker.occupied().min(worker.asked.slots),
                    false => worker.asked.slots,
                };
                let used = used.entry(user.name.clone()).or_default();
                let more = asked
                    .saturating_sub(*granted)
                    .min(max.saturating_sub(*used));
                *granted += more;
                *used += more;
            }
        }
        let mut changed = Vec::new();
        for (routing_id, worker) in &mut self.workers {
            let plugins = limits_of(worker).and_then(|limits| limits.plugins.as_ref());
            let plugins = plugins.unwrap_or(&Capabilities::Any);
            let capabilities = worker.asked.capabilities.within(plugins);
            let slots = slots.get(routing_id).copied();
            let slots = slots.unwrap_or(worker.asked.slots);
            if (&capabilities, slots) != (&worker.capabilities, worker.slots) {
                self.has_freed = true;
                worker.capabilities = capabilities;
                worker.slots = slots;
                changed.push(worker.online());
            }
        }
        for online in changed {
            self.push_online(online);
        }
    }

    /// True when a peer has connected with the routing ID of another user's worker. It must be disconnected,
    /// because it would keep the ID from its owner.
    pub fn is_anothers(&self, from: &Sender<'_>) -> bool {
        self.is_anothers_route(from)
            || self
                .workers
                .get(from.routing_id)
                .is_some_and(|worker| are_different(worker.user.as_ref(), from.user))
    }

    /// True when the last worker with this routing ID is another user's, and is known or holds attempts.
    pub(super) fn is_anothers_route(&self, from: &Sender<'_>) -> bool {
        let text = printable(from.routing_id);
        let known = self.remembered_routes.get(&text);
        let last = known.and_then(|known| known.first());
        self.belongs_to_another(last.map_or(&text, |(_, worker_id)| worker_id), from.user)
    }

    /// Sends ERR to a worker that asks for the ID of another user's worker. The worker ends then. The message
    /// only contains that the ID is in use.
    pub(super) fn refuse_anothers(&mut self, from: &Sender<'_>, worker_id: &str, now: BootTime) {
        let message = format!(
            "worker ID {worker_id} belongs to a worker of another user; give this worker an ID of \
             its own with --worker-id"
        );
        if self
            .refusal_logged_at
            .is_none_or(|at| at + LOG_INTERVAL <= now)
        {
            self.refusal_logged_at = Some(now);
            let who = from.user.map(ToString::to_string).unwrap_or_default();
            log::warn!("a worker of user {who} was refused: {message}");
        }
        self.send_error(from.peer, 0, message, true);
    }

    /// True when a worker ID belongs to another user's worker that is known or holds attempts.
    pub(super) fn belongs_to_another(&self, worker_id: &str, user: Option<&User>) -> bool {
        if user.is_none() {
            return false;
        }
        let route = self.routes.get(worker_id);
        let known = route.and_then(|routing_id| self.workers.get(routing_id));
        are_different(known.and_then(|worker| worker.user.as_ref()), user)
            || self.orphans.values().any(|orphan| {
                orphan.worker_id == worker_id && are_different(orphan.user.as_ref(), user)
            })
    }
}
