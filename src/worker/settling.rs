//! Settlements: brings the output of ended jobs in line with their rows, when the sentinel requests it. They
//! run one after the other on a thread, because storage may not respond.

use super::event::{KeptOutput, ThreadEvent};
use super::event_loop::Worker;
use super::receipt;
use super::slot::Failure;
use crate::job::{Attempt, Cause, JobStatus, Receipt, SETTLED_ATTEMPT, Settlement};
use crate::limits;
use crate::thread;

impl Worker {
    /// The sentinel requests settlements. A newer one of a job replaces an older one.
    pub(super) fn settle(&mut self, settlements: &[Settlement]) {
        for settlement in settlements {
            let waiting = &mut self.settlements.waiting;
            waiting.retain(|other| other.attempt.job_id != settlement.attempt.job_id);
            if waiting.len() < limits::SETTLING_MAX {
                waiting.push_back(settlement.clone());
            }
        }
        self.settle_next();
    }

    fn settle_next(&mut self) {
        if self.settlements.is_running {
            return;
        }
        let Some(settlement) = self.settlements.waiting.pop_front() else {
            return;
        };
        let attempt = settlement.attempt;
        let root = self.staging.clone();
        let (events, waker) = (self.report_sender.clone(), self.waker.clone());
        let started = thread::start("settlement", move || {
            let result = root.settle(&settlement);
            let result = result.map_err(|error| root.judged(error).into());
            // The receiver is dropped only when the worker stops.
            if events
                .send(ThreadEvent::Settled { attempt, result })
                .is_ok()
                && let Err(error) = waker.wake()
            {
                log::error!("cannot wake the worker: {error}");
            }
        });
        match started {
            Ok(_) => self.settlements.is_running = true,
            Err(error) => {
                let failure = Failure::new(Cause::Worker, error.to_string());
                self.owe_settlement(attempt, Err(failure));
            }
        }
    }

    /// A settlement has ended.
    pub(super) fn handle_settled(&mut self, attempt: Attempt, result: Result<KeptOutput, Failure>) {
        self.settlements.is_running = false;
        self.owe_settlement(attempt, result);
        self.settle_next();
    }

    fn owe_settlement(&mut self, attempt: Attempt, result: Result<KeptOutput, Failure>) {
        let receipt = match result {
            Ok(kept) => settled(attempt, kept),
            Err(failure) => {
                let Failure { message, .. } = failure;
                log::warn!(
                    "job {}: cannot settle its output: {message}",
                    attempt.job_id
                );
                let mut receipt = Receipt::failed(attempt, Cause::Worker, message);
                receipt.note_others(failure.barred_by, None);
                receipt
            }
        };
        self.report(attempt, true, receipt);
    }
}

/// The receipt for a settlement.
pub(crate) fn settled(attempt: Attempt, kept: KeptOutput) -> Receipt {
    let mut receipt = Receipt {
        status: JobStatus::Success,
        attempt: Some(attempt.number),
        ..Receipt::default()
    };
    if let Some((number, artifacts)) = kept {
        log::info!(
            "job {}: the output of a lost attempt is kept",
            attempt.job_id
        );
        receipt.metrics = receipt::totals(&artifacts);
        receipt.metrics.insert(SETTLED_ATTEMPT.to_owned(), number);
        receipt.artifacts = artifacts.iter().map(receipt::described).collect();
    }
    receipt
}
