//! Whose a worker is: no user speaks for another user's worker.

use std::time::Duration;

use super::{Control, Sender, printable};
use crate::job::User;
use crate::reactor::BootTime;

/// Between two log lines about workers that were refused.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

impl Control {
    /// True when a peer has connected under the routing ID of another user's worker. It must not
    /// keep that ID from its owner.
    pub fn is_anothers(&self, from: &Sender<'_>) -> bool {
        self.is_anothers_route(from)
            || self
                .workers
                .get(from.routing_id)
                .is_some_and(|worker| are_different(worker.user.as_ref(), from.user))
    }

    /// True when the routing ID was last that of another user's worker, which is known or holds
    /// attempts.
    pub(super) fn is_anothers_route(&self, from: &Sender<'_>) -> bool {
        let text = printable(from.routing_id);
        let known = self.remembered_routes.get(&text);
        let last = known.and_then(|known| known.first());
        self.belongs_to_another(last.map_or(&text, |(_, worker_id)| worker_id), from.user)
    }

    /// Tells a worker that asks for the ID of another user's why it gets nothing, which ends it. It
    /// learns no more than that the ID is taken.
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

    /// True when a worker that is known, or that holds attempts, is another user's.
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

/// True when both users are known and not the same.
pub(super) fn are_different(one: Option<&User>, other: Option<&User>) -> bool {
    one.zip(other).is_some_and(|(one, other)| !one.is(other))
}

pub(super) const ANOTHERS: &str = "the worker's ID belongs to another user";
