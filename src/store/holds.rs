//! What a sentinel asks of the store about the attempts that it holds in memory.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::value::{cell, number};
use super::{Error, Store, Turn};
use crate::job::Attempt;

/// Whether an attempt's row is as its sentinel left it.
pub(super) const HELD_QUERY: &str = "SELECT 1 FROM cf_processing_queue \
     WHERE id = ?1 AND status = 'RUNNING' AND (attempt = ?2 OR ?2 <= 0) \
     AND (?3 IS NULL OR worker_id = ?3)";

/// A day: no sentinel gives longer leases.
const LEASE_MS_MAX: u64 = 86_400_000;

impl Turn<'_> {
    /// Sentinels give leases of so many milliseconds from now on.
    pub fn set_lease_ms(&mut self, lease_ms: u64) -> Result<(), Error> {
        let mut statement = self.transaction.prepare_cached(
            "INSERT INTO cf_casparian (key, value) VALUES ('lease_ms', ?1) \
             ON CONFLICT (key) DO UPDATE SET value = ?1",
        )?;
        statement.execute([i64::try_from(lease_ms).unwrap_or(i64::MAX)])?;
        Ok(())
    }
}

impl Store {
    /// Of these attempts, with their workers where those are known, the ones whose rows are not RUNNING with that number and
    /// worker any more: another program has changed them.
    pub fn not_running(
        &self,
        attempts: &[(Attempt, Option<String>)],
    ) -> Result<Vec<Attempt>, Error> {
        let mut statement = self.connection.prepare_cached(HELD_QUERY)?;
        let mut changed = Vec::new();
        for (attempt, worker_id) in attempts {
            if !statement.exists(params![attempt.job_id, attempt.number, worker_id])? {
                changed.push(*attempt);
            }
        }
        Ok(changed)
    }

    /// The longest lease that a sentinel of this database may have given and that may not be over,
    /// in milliseconds, as [`Turn::set_lease_ms`] left it.
    pub fn lease_ms(&self) -> Result<u64, Error> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT value FROM cf_casparian WHERE key = 'lease_ms'")?;
        let found = statement.query_row([], |row| Ok(number(cell(row, 0))));
        let found = found.optional()?.flatten().unwrap_or(0);
        // A value that makes no sense must not keep jobs for ever.
        Ok(u64::try_from(found).unwrap_or(0).min(LEASE_MS_MAX))
    }

    /// How long a statement waits for another program's transaction.
    pub fn set_busy_timeout(&self, wait: Duration) -> Result<(), Error> {
        Ok(self.connection.busy_timeout(wait)?)
    }
}
