//! Whose a worker is: no user speaks for another user's worker.

use super::{Control, Sender, printable};
use crate::job::User;

impl Control {
    /// True when a peer has connected under the routing ID of another user's worker. It must not
    /// keep that ID from its owner.
    pub fn is_anothers(&self, from: &Sender<'_>) -> bool {
        self.belongs_to_another(&printable(from.routing_id), from.user)
            || self
                .workers
                .get(from.routing_id)
                .is_some_and(|worker| are_different(worker.user.as_ref(), from.user))
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
