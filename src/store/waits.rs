//! An attempt whose sink of mode `error` has output of another job that may not stay.
//!
//! Output is a reason to fail for good once it has a receipt, or once nothing can remove it any
//! more. Before that the attempt waits (PENDING with a pause) and nothing is counted: the other job
//! may be cancelled or fail, and its output goes then. What the worker saw is older than what the
//! row of the other job says now. So output that can only stay is checked once more by another
//! attempt before it counts.
//!
//! Jobs do not wait for each other for ever: an attempt that fails removes what its job has
//! published without a receipt. For output that outlives that, and for settlements, the waits are
//! bounded.

use rusqlite::{OptionalExtension, params};

use super::value::{cell, count, shown};
use super::{Error, Transaction};
use crate::job::{Attempt, Receipt};
use crate::limits;

/// Metrics of a receipt that the sentinel adds to the row: how often in a row the job has waited
/// for this output; how often since it waits for a settlement; and since the output can only stay.
const WAITS: [&str; 3] = ["waits", "waits_unsettled", "waits_settled"];

/// What is known of the output in the way: ?1 its job, ?2 its attempt.
pub(super) const OTHER_QUERY: &str = "SELECT attempt, status IN ('RUNNING', 'QUEUED') \
     OR status = 'PENDING' AND next_run IS NOT NULL, unsettled = 1, \
     EXISTS (SELECT 1 FROM cf_job_attempt WHERE job_id = ?1 AND attempt >= ?2 \
     AND status = 'COMPLETED'), \
     EXISTS (SELECT 1 FROM cf_job_attempt WHERE job_id = ?1 AND attempt > ?2 \
     AND status = 'FAILED' AND cause IN ('plugin', 'input', 'operator')) \
     FROM cf_processing_queue WHERE id = ?1";

/// The job that holds the output in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    /// Its output has a receipt, or the job is none of the database.
    Final,
    /// It runs, or will.
    Runs,
    /// Its output should have gone with a later attempt that failed, or waits for a worker to
    /// settle the job.
    Unsettled,
    /// Nothing removes its output any more.
    Settled,
}

/// How often a job has waited in a row, as [`WAITS`].
type Counts = [i64; 3];

/// The counts after one more wait; none when there is nothing to wait for.
fn next(other: Other, [waits, unsettled, settled]: Counts) -> Option<Counts> {
    let waits = waits.saturating_add(1);
    match other {
        Other::Final => None,
        Other::Runs => Some([waits, 0, 0]),
        Other::Unsettled if unsettled >= limits::UNSETTLED_WAITS_MAX => None,
        Other::Unsettled => Some([waits, unsettled.saturating_add(1), 0]),
        Other::Settled if settled > 0 => None,
        Other::Settled => Some([waits, 0, 1]),
    }
}

/// A wait for the output of another job.
pub(super) struct Wait {
    /// The job.
    pub(super) job_id: i64,
    /// How often it has waited before.
    pub(super) before: i64,
    /// The metrics to keep in the row.
    pub(super) counts: Vec<(&'static str, i64)>,
}

impl Wait {
    /// The message of a row that waits.
    pub(super) fn reason(&self, failure: &str) -> String {
        let job_id = self.job_id;
        format!("waits for job {job_id}, whose output is not settled: {failure}")
    }
}

impl Transaction<'_> {
    /// What a failed attempt waits for; none when its failure is final.
    pub(super) fn waits_for(
        &self,
        attempt: Attempt,
        receipt: &Receipt,
    ) -> Result<Option<Wait>, Error> {
        let Some(by) = receipt.taken_by().filter(|by| by.job_id != attempt.job_id) else {
            return Ok(None);
        };
        let counts = self.waited(attempt.job_id, by)?;
        let Some(counts) = next(self.other(by)?, counts) else {
            return Ok(None);
        };
        Ok(Some(Wait {
            job_id: by.job_id,
            before: counts[0].saturating_sub(1),
            counts: WAITS.into_iter().zip(counts).collect(),
        }))
    }

    fn other(&self, by: Attempt) -> Result<Other, Error> {
        let mut statement = self.inner.prepare_cached(OTHER_QUERY)?;
        let found = statement.query_row(params![by.job_id, by.number], |row| {
            let last = Attempt::new(by.job_id, count(cell(row, 0)));
            let is = |index| count(cell(row, index)) != 0;
            let is_other_job = last.incarnation() != by.incarnation();
            Ok(match (is(1), is(2), is(3), is(4)) {
                // Of attempt 0 a receipt alone is known.
                (_, _, is_receipted, _) if is_receipted || is_other_job || by.ordinal() == 0 => {
                    Other::Final
                }
                (true, _, _, false) => Other::Runs,
                (true, _, _, true) | (false, true, _, _) => Other::Unsettled,
                (false, false, _, _) => Other::Settled,
            })
        });
        Ok(found.optional()?.unwrap_or(Other::Final))
    }

    /// How often a job has waited in a row for this output.
    fn waited(&self, job_id: i64, by: Attempt) -> Result<Counts, Error> {
        let mut statement = self
            .inner
            .prepare_cached("SELECT receipt FROM cf_processing_queue WHERE id = ?1")?;
        let text = statement.query_row([job_id], |row| Ok(shown(cell(row, 0))))?;
        let last = text.and_then(|text| serde_json::from_str::<Receipt>(&text).ok());
        let Some(mut last) = last else {
            return Ok(Counts::default());
        };
        // Rows keep no cause in the receipt.
        last.cause = Some(crate::job::Cause::Operator);
        Ok(match last.taken_by() == Some(by) {
            true => WAITS.map(|name| last.metrics.get(name).copied().unwrap_or(0).max(0)),
            false => Counts::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_waits_as_long_as_the_output_may_go() {
        let max = limits::UNSETTLED_WAITS_MAX;
        for (other, before, want) in [
            (Other::Final, [0, 0, 0], None),
            (Other::Runs, [0, 0, 0], Some([1, 0, 0])),
            (Other::Runs, [900, 3, 1], Some([901, 0, 0])),
            (Other::Unsettled, [900, 0, 0], Some([901, 1, 0])),
            (Other::Unsettled, [900, max, 0], None),
            (Other::Settled, [900, max, 0], Some([901, 0, 1])),
            (Other::Settled, [901, 0, 1], None),
        ] {
            assert_eq!(next(other, before), want, "{other:?} {before:?}");
        }
    }
}
