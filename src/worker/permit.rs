//! Until when a writer thread may publish: set by the loop, read by the thread after every wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::reactor::BootTime;

/// Shared by a job's loop side and its writer.
#[derive(Clone, Debug, Default)]
pub(super) struct Permit(Arc<AtomicU64>);

impl Permit {
    /// For jobs of a sentinel that gives no leases.
    pub(super) fn unlimited() -> Self {
        Permit(Arc::new(AtomicU64::new(u64::MAX)))
    }

    /// Publishing is allowed until then; none = not now.
    pub(super) fn set(&self, until: Option<BootTime>) {
        let until_ns = until.map_or(0, |until| {
            u64::try_from(until.since_boot().as_nanos()).unwrap_or(u64::MAX)
        });
        self.0.store(until_ns, Ordering::SeqCst);
    }

    /// True while publishing is allowed.
    pub(super) fn is_valid(&self, now: BootTime) -> bool {
        now.since_boot().as_nanos() < u128::from(self.0.load(Ordering::SeqCst))
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
        assert!(Permit::unlimited().is_valid(at(u64::from(u32::MAX))));
    }
}
