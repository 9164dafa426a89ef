//! Whose a worker is: nobody speaks for another user's.

use std::time::Instant;

use super::{Control, Sender, printable};

impl Control {
    /// A worker of an earlier sentinel has claims that run out then: nobody but its user speaks
    /// for it before [`Control::forget_claimants`].
    pub fn remember_claimant(&mut self, worker_id: String, user: String, until: Instant) {
        self.claimants.insert(worker_id, (user, until));
    }

    /// No row is RUNNING by a claim that has run out.
    pub fn forget_claimants(&mut self, now: Instant) {
        self.claimants.retain(|_, (_, until)| now <= *until);
    }

    /// Whether a peer has come under the routing id of another user's worker. Nobody is to keep
    /// that from its own.
    pub fn is_anothers(&self, from: &Sender<'_>) -> bool {
        self.belongs_to_another(&printable(from.identity), from.user)
            || self
                .workers
                .get(from.identity)
                .is_some_and(|worker| are_different(worker.user.as_deref(), from.user))
    }

    /// Whether a worker that is here, may come back, or has claims is another user's.
    pub(super) fn belongs_to_another(&self, worker_id: &str, user: Option<&str>) -> bool {
        let identity = self.identities.get(worker_id);
        let here = identity.and_then(|identity| self.workers.get(identity));
        let claimant = self.claimants.get(worker_id);
        are_different(here.and_then(|worker| worker.user.as_deref()), user)
            || are_different(claimant.map(|(user, _)| user.as_str()), user)
    }
}

/// Whether both users are known and not the same, as [`crate::socket::Socket::user`] says them.
/// In the list of keys a key may get another name, and a name another key.
pub(super) fn are_different(one: Option<&str>, other: Option<&str>) -> bool {
    let Some((one, other)) = one.zip(other) else {
        return false;
    };
    match key_and_name(one).zip(key_and_name(other)) {
        Some(((key, name), (other_key, other_name))) => key != other_key && name != other_name,
        None => one != other,
    }
}

fn key_and_name(user: &str) -> Option<(&str, &str)> {
    let (key, name) = user.split_once(' ')?;
    (key.len() == KEY_TEXT_SIZE).then_some((key, name))
}

/// Characters of a CURVE key as text.
const KEY_TEXT_SIZE: usize = 40;

pub(super) const ANOTHERS: &str = "the worker's id belongs to another user";
