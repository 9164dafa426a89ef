//! What a sentinel asks of the store about the attempts that it holds in memory.

use std::time::Duration;

use rusqlite::params;

use super::{Error, Store};
use crate::job::Attempt;

/// Whether an attempt's row is as its sentinel left it.
pub(super) const HELD_QUERY: &str = "SELECT 1 FROM cf_processing_queue \
     WHERE id = ?1 AND status = 'RUNNING' AND (attempt = ?2 OR ?2 <= 0)";

impl Store {
    /// Of these attempts the ones whose rows are not RUNNING with that number any more: another
    /// program has changed them.
    pub fn not_running(&self, attempts: &[Attempt]) -> Result<Vec<Attempt>, Error> {
        let mut statement = self.connection.prepare_cached(HELD_QUERY)?;
        let mut changed = Vec::new();
        for attempt in attempts {
            if !statement.exists(params![attempt.job_id, attempt.number])? {
                changed.push(*attempt);
            }
        }
        Ok(changed)
    }

    /// How long a statement waits for another program's transaction.
    pub fn set_busy_timeout(&self, wait: Duration) -> Result<(), Error> {
        Ok(self.connection.busy_timeout(wait)?)
    }
}
