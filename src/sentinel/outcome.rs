//! The results of a transaction.

use super::control::Able;
use crate::job::{Attempt, Job, Receipt, Settlement};
use crate::socket::PeerId;
use crate::store::Ended;

/// The committed end of an attempt, if it ends the job, too, or if there is a pause before the next attempt.
#[derive(Clone, Debug)]
pub struct JobEnd {
    /// The job.
    pub job_id: i64,
    /// [`Ended::Completed`], [`Ended::Failed`] or [`Ended::Waits`].
    pub ended: Ended,
    /// The worker's receipt. None when no worker has reported.
    pub receipt: Option<Receipt>,
    /// Why the attempt failed.
    pub reason: Option<String>,
}

/// The results for the control state, which it gets after the commit.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) ended: Vec<(Vec<u8>, Attempt)>,
    pub(super) released: Vec<Attempt>,
    pub(super) revoked: Vec<Attempt>,
    /// Ended attempts, each with whether another program had changed its row.
    pub(super) changed_rows: Vec<(Attempt, bool)>,
    pub(super) claimed: Vec<(Vec<u8>, Vec<Job>)>,
    /// Attempts that run alone on their workers.
    pub(super) alone: Vec<(Vec<u8>, Attempt)>,
    /// Workers that are being emptied.
    pub(super) emptied: Vec<(Vec<u8>, Able)>,
    pub(super) settlements: Vec<(Settlement, Option<String>)>,
    pub(super) settled: Vec<(Vec<u8>, Attempt, bool)>,
    /// Deployments: connection and job ID of the message, and the manifest, or why the database refused it.
    pub(super) uploaded: Vec<(PeerId, u64, Result<i64, String>)>,
    pub(super) ends: Vec<JobEnd>,
    /// Rows were queued.
    pub(super) queued: bool,
    /// A claim stopped at its bound of unusable rows.
    pub(super) is_bounded: bool,
    /// There may be more jobs to claim: a claim reached its limit of jobs, or its bound of unusable rows.
    pub(super) more: bool,
}

impl Outcome {
    pub(super) fn note_end(
        &mut self,
        job_id: i64,
        ended: Ended,
        receipt: Option<&Receipt>,
        reason: Option<&str>,
    ) {
        if matches!(ended, Ended::Queued | Ended::Stale | Ended::Refused) {
            return;
        }
        let reported = receipt.and_then(|receipt| receipt.error_message.clone());
        self.ends.push(JobEnd {
            job_id,
            ended,
            receipt: receipt.cloned(),
            reason: reported.or_else(|| reason.map(str::to_owned)),
        });
    }
}
