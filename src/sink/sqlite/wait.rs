//! Waiting for a database that other connections have locked.

use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use crate::limits;

/// SQLite's own wait, after which the lease is asked for.
pub(super) const STEP: Duration = Duration::from_millis(100);
/// SQLite answers some conflicts at once.
const PAUSE: Duration = Duration::from_millis(5);

/// A wait for a database that ends with the lease, and after [`limits::SQLITE_WAIT`].
pub(super) struct Patience<'a> {
    until: Instant,
    is_granted: &'a dyn Fn() -> bool,
}

impl<'a> Patience<'a> {
    pub(super) fn new(is_granted: &'a dyn Fn() -> bool) -> Self {
        Self::for_at_most(limits::SQLITE_WAIT, is_granted)
    }

    fn for_at_most(wait: Duration, is_granted: &'a dyn Fn() -> bool) -> Self {
        Patience {
            until: Instant::now() + wait,
            is_granted,
        }
    }

    /// Works until no lock of another connection is in the way. None when the lease ended before
    /// that.
    pub(super) fn run<T>(
        &self,
        mut work: impl FnMut() -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Option<T>> {
        loop {
            match work() {
                Err(error) if is_busy(&error) && Instant::now() < self.until => {}
                result => return result.map(Some),
            }
            if !(self.is_granted)() {
                return Ok(None);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Executes statements; false when the lease ended before they could be.
    pub(super) fn execute(
        &self,
        connection: &Connection,
        statements: &str,
    ) -> rusqlite::Result<bool> {
        let done = self.run(|| connection.execute_batch(statements))?;
        Ok(done.is_some())
    }
}

/// The end of a wait that starts now.
pub(super) fn end() -> Instant {
    Instant::now() + limits::SQLITE_WAIT
}

/// The connection's next statement waits no longer than that.
pub(super) fn limit(connection: &Connection, until: Instant) -> rusqlite::Result<()> {
    connection.busy_timeout(until.saturating_duration_since(Instant::now()))
}

/// True when locks of other connections are the reason.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_lock_the_lease_or_the_time() {
        let locked = || {
            let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
            rusqlite::Error::SqliteFailure(busy, None)
        };
        let mut calls = 0;
        let free_at_third = || {
            calls += 1;
            if calls < 3 { Err(locked()) } else { Ok(calls) }
        };
        let patience = Patience::new(&|| true);
        assert_eq!(patience.run(free_at_third).unwrap(), Some(3));
        let patience = Patience::new(&|| false);
        assert_eq!(patience.run(|| Err::<(), _>(locked())).unwrap(), None);
        let patience = Patience::for_at_most(Duration::from_millis(20), &|| true);
        let error = patience.run(|| Err::<(), _>(locked())).unwrap_err();
        assert!(is_busy(&error));
    }
}
