//! Decides whether a job waits for the output of another job, which it has found in its sink of mode `error`.
//!
//! Such output is a final reason to fail when it has a receipt, or when nothing can remove it any
//! more. Before that the job waits (PENDING with a pause), uncounted, because the other job may be cancelled
//! or may fail, and then its output is removed. The worker's observation is older than the present row of the
//! other job. So before output counts that nothing can remove any more, another attempt checks it once more.
//!
//! Two jobs cannot wait for each other without end, because an attempt that fails removes what its job has
//! published without a receipt. The waits for output that stays nevertheless, and for settlements, are
//! bounded.

use rusqlite::{OptionalExtension, params};

use super::value::{cell, count, shown};
use super::{Error, Transaction};
use crate::job::{Attempt, Receipt};
use crate::limits;

/// Metrics that the sentinel adds to the receipt in the row: how often in a row the job has waited for this
/// output, how often of these for a settlement, and how often since nothing can remove the output any more.
const WAITS: [&str; 3] = ["waits", "waits_unsettled", "waits_settled"];

/// The state of the other output. ?1 = its job, ?2 = its attempt.
pub(super) const OTHER_QUERY: &str = "SELECT attempt, status IN ('RUNNING', 'QUEUED') \
     OR status = 'PENDING' AND next_run IS NOT NULL, unsettled = 1, \
     EXISTS (SELECT 1 FROM cf_job_attempt WHERE job_id = ?1 AND attempt >= ?2 \
     AND status = 'COMPLETED'), \
     EXISTS (SELECT 1 FROM cf_job_attempt WHERE job_id = ?1 AND attempt > ?2 \
     AND status = 'FAILED' AND cause IN ('plugin', 'input', 'operator')) \
     FROM cf_processing_queue WHERE id = ?1";

/// The state of the job that has published the other output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    /// Its output has a receipt, or the database has no such job.
    Final,
    /// It runs or will run.
    Runs,
    /// A later attempt failed, which should have removed the output, or the job must be settled.
    Unsettled,
    /// Nothing will remove its output.
    Settled,
}

/// How often a job has waited in a row, as [`WAITS`].
type Counts = [i64; 3];

/// The counts after one more wait. None when the job must not wait.
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
    /// The other job.
    pub(super) job_id: i64,
    /// How often the job has waited before.
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
    /// What the job of a failed attempt waits for. None when its failure is final.
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
                // Attempt 0 is only known from a receipt.
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
        // The receipt in the row has no cause, which `taken_by` requires.
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
