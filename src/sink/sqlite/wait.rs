//! Waiting for a database that other connections have locked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use crate::limits;

/// How long SQLite itself waits for a lock. Then the lease is checked.
pub(super) const STEP: Duration = Duration::from_millis(100);
/// Pause before a retry. SQLite reports some conflicts without a wait.
const PAUSE: Duration = Duration::from_millis(5);

/// Databases for which a wait has timed out, and that have not been written since. Further publishes wait
/// for these for a short time only.
#[derive(Debug, Default)]
pub(in crate::sink) struct Stuck(Mutex<BTreeSet<PathBuf>>);

impl Stuck {
    /// How long a publish waits for a database.
    pub(in crate::sink) fn wait(&self, database: &Path) -> Duration {
        let stuck = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match stuck.contains(database) {
            true => limits::SQLITE_STUCK_WAIT,
            false => limits::SQLITE_WAIT,
        }
    }

    /// Notes the end of a wait for a database, and whether it timed out.
    pub(in crate::sink) fn note(&self, database: &Path, was_in_vain: bool) {
        let mut stuck = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !was_in_vain {
            stuck.remove(database);
        } else if stuck.insert(database.to_owned()) && stuck.len() > limits::SQLITE_STUCK_MAX {
            stuck.pop_first();
        }
    }
}

/// Limits of a wait for a database: a time, and the end of the lease.
pub(in crate::sink) struct Patience<'a> {
    until: Instant,
    is_granted: &'a dyn Fn() -> bool,
}

impl<'a> Patience<'a> {
    pub(in crate::sink) fn new(wait: Duration, is_granted: &'a dyn Fn() -> bool) -> Self {
        Patience {
            until: Instant::now() + wait,
            is_granted,
        }
    }

    /// Repeats `work` while it fails because of locks of other connections. `None` when the lease ended
    /// before it succeeded.
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

    /// Executes statements in the same way. False when the lease ended before they succeeded.
    pub(super) fn execute(
        &self,
        connection: &Connection,
        statements: &str,
    ) -> rusqlite::Result<bool> {
        let done = self.run(|| connection.execute_batch(statements))?;
        Ok(done.is_some())
    }
}

/// The time limit of a wait that starts now.
pub(super) fn end() -> Instant {
    Instant::now() + limits::SQLITE_WAIT
}

/// Limits the time for which the connection's next statement waits for locks.
pub(super) fn limit(connection: &Connection, until: Instant) -> rusqlite::Result<()> {
    connection.busy_timeout(until.saturating_duration_since(Instant::now()))
}

/// True for errors that locks of other connections cause.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed
        )
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
        let patience = Patience::new(limits::SQLITE_WAIT, &|| true);
        assert_eq!(patience.run(free_at_third).unwrap(), Some(3));
        let patience = Patience::new(limits::SQLITE_WAIT, &|| false);
        assert_eq!(patience.run(|| Err::<(), _>(locked())).unwrap(), None);
        let patience = Patience::new(Duration::from_millis(20), &|| true);
        let error = patience.run(|| Err::<(), _>(locked())).unwrap_err();
        assert!(is_busy(&error));
        // This occurs when another program was stopped during a checkpoint, with the WAL's read marks
        // locked.
        let marks = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_PROTOCOL);
        assert!(is_busy(&rusqlite::Error::SqliteFailure(marks, None)));
    }

    #[test]
    fn a_database_that_was_waited_for_in_vain_is_waited_for_less_until_it_is_written() {
        let stuck = Stuck::default();
        let (one, other) = (Path::new("/a.db"), Path::new("/b.db"));
        stuck.note(one, true);
        assert_eq!(stuck.wait(one), limits::SQLITE_STUCK_WAIT);
        assert_eq!(stuck.wait(other), limits::SQLITE_WAIT);
        stuck.note(one, false);
        assert_eq!(stuck.wait(one), limits::SQLITE_WAIT);
        for number in 0..2 * limits::SQLITE_STUCK_MAX {
            stuck.note(Path::new(&format!("/{number}.db")), true);
        }
        assert_eq!(stuck.0.lock().unwrap().len(), limits::SQLITE_STUCK_MAX);
    }
}
