//! The output root, as far as several attempts can meet there: folders, bars, visible files.
//! A publish is a sequence of steps, and a worker may be paused between any two.

use std::collections::{BTreeMap, BTreeSet};

use casparian::job::{Attempt, PastEnd, Settlement};

/// The steps of publishing one attempt, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    BarEarlier,
    MoveEarlier,
    CheckLease,
    CheckBar,
    Rename,
    Done,
}

impl Step {
    pub(crate) fn next(self) -> Step {
        match self {
            Step::BarEarlier => Step::MoveEarlier,
            Step::MoveEarlier => Step::CheckLease,
            Step::CheckLease => Step::CheckBar,
            Step::CheckBar => Step::Rename,
            Step::Rename | Step::Done => Step::Done,
        }
    }
}

#[derive(Default)]
pub(crate) struct Storage {
    folders: BTreeSet<Attempt>,
    /// By job: attempts up to this number are barred.
    barred: BTreeMap<i64, i64>,
    /// By job: the attempt whose file is visible.
    pub(crate) visible: BTreeMap<i64, i64>,
    /// Jobs whose sink lets one job publish (mode `error`).
    pub(crate) exclusive_jobs: BTreeSet<i64>,
}

impl Storage {
    pub(crate) fn create_folder(&mut self, attempt: Attempt) {
        self.folders.insert(attempt);
    }

    pub(crate) fn remove_folder(&mut self, attempt: Attempt) {
        self.folders.remove(&attempt);
    }

    pub(crate) fn bar(&mut self, attempt: Attempt) {
        let barred = self.barred.entry(attempt.job_id).or_default();
        *barred = (*barred).max(attempt.number);
    }

    pub(crate) fn move_folders(&mut self, attempt: Attempt) {
        self.folders
            .retain(|other| other.job_id != attempt.job_id || other.number > attempt.number);
    }

    /// The number up to which attempts are barred, when the given one is among them.
    pub(crate) fn barred_by(&self, attempt: Attempt) -> Option<i64> {
        let barred = self.barred.get(&attempt.job_id).copied();
        barred.filter(|barred| *barred >= attempt.number)
    }

    /// The attempt of another job that has output in the sink of mode `error`.
    pub(crate) fn taken_by(&self, attempt: Attempt) -> Option<Attempt> {
        if !self.exclusive_jobs.contains(&attempt.job_id) {
            return None;
        }
        let mut others = self.exclusive_jobs.iter();
        others.find_map(|job| {
            let number = self.visible.get(job).filter(|_| *job != attempt.job_id)?;
            Some(Attempt::new(*job, *number))
        })
    }

    /// The last step of a settlement, whose attempt must not be barred: gives the attempt whose
    /// output stands without a receipt.
    pub(crate) fn settle(&mut self, settlement: &Settlement) -> Option<i64> {
        let job_id = settlement.attempt.job_id;
        let visible = self.visible.get(&job_id).copied();
        let silent = visible.filter(|number| *number > settlement.history.completed())?;
        assert_ne!(
            settlement.history.end(silent),
            PastEnd::Failed,
            "{settlement:?}"
        );
        // What took the place of output with a receipt stays: the other is gone.
        if settlement.keep || settlement.history.completed() > 0 {
            return Some(silent);
        }
        self.visible.remove(&job_id);
        None
    }

    /// Renames by path: fails when the folder was moved.
    pub(crate) fn rename(&mut self, attempt: Attempt) -> bool {
        if !self.folders.remove(&attempt) {
            return false;
        }
        let before = self.visible.insert(attempt.job_id, attempt.number);
        assert!(
            before.is_none_or(|before| before < attempt.number),
            "{attempt} replaced the output of attempt {before:?}"
        );
        assert!(
            self.taken_by(attempt).is_none(),
            "{attempt}: a second job published into an exclusive sink"
        );
        true
    }
}
