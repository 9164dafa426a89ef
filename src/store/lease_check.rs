//! Compares the attempts that a sentinel has in memory with their rows, and stores the length of its leases.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use super::value::{abridged, cell, number, shown};
use super::{Error, Now, Store, Transaction};
use crate::job::Attempt;
use crate::limits;

/// Whether an attempt's row is still RUNNING with its number and worker.
pub(super) const HELD_QUERY: &str = "SELECT 1 FROM cf_processing_queue \
     WHERE id = ?1 AND status = 'RUNNING' AND (attempt = ?2 OR ?2 <= 0) \
     AND (?3 IS NULL OR worker_id = ?3)";

impl Transaction<'_> {
    /// Stores that a sentinel gives leases of `own_ms` from now on, and that leases of earlier sentinels may
    /// still last `earlier_ms`. `lease_ms` is the longer of both. Where the earlier ones are longer,
    /// `lease_until` has that length, `own_ms`, when the earlier ones end (in milliseconds since boot), and
    /// the boot ID.
    pub fn set_lease_ms(&mut self, own_ms: u64, earlier_ms: u64, now: &Now) -> Result<(), Error> {
        let longest_ms = own_ms.max(earlier_ms);
        let until_ms = now.boot_ms.saturating_add(earlier_ms);
        let until = (earlier_ms > own_ms)
            .then(|| format!("{longest_ms} {own_ms} {until_ms} {}", now.boot_id));
        let longest_ms = i64::try_from(longest_ms).unwrap_or(i64::MAX);
        let mut statement = self.inner.prepare_cached(
            "INSERT INTO cf_casparian (key, value) VALUES (?1, ?2) \
             ON CONFLICT (key) DO UPDATE SET value = ?2",
        )?;
        statement.execute(params!["lease_ms", longest_ms])?;
        statement.execute(params!["lease_until", until])?;
        Ok(())
    }
}

/// The rest of the longest lease in milliseconds, from the text of `lease_until`. None where the text belongs
/// to another length of leases or to another boot.
fn left_ms(until: &str, longest_ms: u64, now: &Now) -> Option<u64> {
    let mut words = until.splitn(4, ' ');
    let mut number = || words.next()?.parse::<u64>().ok();
    let (of_ms, own_ms, until_ms) = (number()?, number()?, number()?);
    let is_current = of_ms == longest_ms && words.next() == Some(&now.boot_id);
    let left_ms = until_ms.saturating_sub(now.boot_ms).max(own_ms);
    is_current.then_some(left_ms.min(longest_ms))
}

impl Store {
    /// Those attempts whose rows are no longer RUNNING with their number and worker, because another program
    /// has changed them. `attempts` = each with its worker, where that is known.
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

    /// How long leases of earlier sentinels may still last, in milliseconds, as [`Transaction::set_lease_ms`]
    /// stored it. After a reboot it is unknown how much of a lease has passed, so its full length is
    /// returned.
    pub fn lease_ms(&self, now: &Now) -> Result<u64, Error> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT value FROM cf_casparian WHERE key = ?1")?;
        let longest = statement
            .query_row(["lease_ms"], |row| {
                let (value, longest_max) = (cell(row, 0), limits::LEASE_SECONDS_MAX * 1000);
                let ms = number(value).filter(|ms| (0..=longest_max).contains(ms));
                Ok(ms.ok_or_else(|| abridged(value)))
            })
            .optional()?;
        let longest_ms = match longest {
            None => return Ok(0),
            Some(Ok(ms)) => u64::try_from(ms).unwrap_or(0),
            Some(Err(found)) => {
                let default_ms = limits::LEASE.as_millis();
                log::warn!(
                    "cf_casparian: lease_ms is {found}, which no sentinel sets: {default_ms} is taken"
                );
                u64::try_from(default_ms).unwrap_or(u64::MAX)
            }
        };
        let until = statement
            .query_row(["lease_until"], |row| Ok(shown(cell(row, 0))))
            .optional()?
            .flatten();
        let left_ms = until.and_then(|until| left_ms(&until, longest_ms, now));
        Ok(left_ms.unwrap_or(longest_ms))
    }

    /// Sets how long a statement waits for another program's transaction.
    pub fn set_busy_timeout(&self, wait: Duration) -> Result<(), Error> {
        Ok(self.connection.busy_timeout(wait)?)
    }
}
