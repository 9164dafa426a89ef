//! Until when a writer thread may publish. The event loop sets it; the thread reads it after every wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::reactor::BootTime;

/// Shared by the event loop and the writer of a job.
#[derive(Clone, Debug, Default)]
pub(super) struct Permit(Arc<State>);

#[derive(Debug, Default)]
struct State {
    until_ns: AtomicU64,
    is_revoked: AtomicBool,
}

impl Permit {
    /// For jobs of a sentinel without leases.
    pub(super) fn unlimited() -> Self {
        let permit = Permit::default();
        permit.0.until_ns.store(u64::MAX, Ordering::SeqCst);
        permit
    }

    /// Allows publishing until then; none = not now.
    pub(super) fn set(&self, until: Option<BootTime>) {
        let until_ns = until.map_or(0, |until| {
            u64::try_from(until.since_boot().as_nanos()).unwrap_or(u64::MAX)
        });
        self.0.until_ns.store(until_ns, Ordering::SeqCst);
    }

    /// Ends the permission for good.
    pub(super) fn revoke(&self) {
        self.0.is_revoked.store(true, Ordering::SeqCst);
    }

    /// True while publishing is allowed.
    pub(super) fn is_valid(&self, now: BootTime) -> bool {
        let until_ns = self.0.until_ns.load(Ordering::SeqCst);
        !self.0.is_revoked.load(Ordering::SeqCst)
            && now.since_boot().as_nanos() < u128::from(until_ns)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_permit_ends_at_its_moment() {
        let at = |seconds| BootTime::after_boot(Duration::from_secs(seconds));
        let permit = Permit::default();
        assert!(!permit.is_valid(at(0)));
        permit.set(Some(at(10)));
        assert!(permit.is_valid(at(9)) && !permit.is_valid(at(10)));
        permit.set(None);
        assert!(!permit.is_valid(at(9)));
        let unlimited = Permit::unlimited();
        assert!(unlimited.is_valid(at(u64::from(u32::MAX))));
        unlimited.revoke();
        unlimited.set(Some(at(10)));
        assert!(!unlimited.is_valid(at(9)), "revoked for good");
    }
}
