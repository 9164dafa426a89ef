//! Pauses for jobs whose rows another program changes while they run, so that their attempts do not count. If
//! the other program queues such a job again after each claim, it would occupy a slot again and again, before
//! all jobs behind it. So after some such attempts in a row it is claimed only after a growing pause.
//!
//! This is kept in memory only. After a restart of the sentinel the counts begin from zero.

use std::collections::HashMap;

use super::Store;
use super::retry::pause_ms;
use crate::job::Attempt;
use crate::limits;

#[derive(Debug, Default)]
pub(super) struct ChangedRows {
    jobs: HashMap<i64, ChangedRow>,
}

#[derive(Debug)]
struct ChangedRow {
    /// The last attempt whose row was changed.
    number: i64,
    /// How many such attempts there were in a row.
    times: u32,
    /// The end of the pause ([`super::Now::boot_ms`]).
    until_boot_ms: Option<u64>,
}

impl ChangedRows {
    /// True while the job is not claimed.
    pub(super) fn is_paused(&self, job_id: i64) -> bool {
        let row = self.jobs.get(&job_id);
        row.is_some_and(|row| row.until_boot_ms.is_some())
    }
}

impl Store {
    /// Notes that an attempt has ended after another program had changed its row. When the job is paused,
    /// returns the number of such attempts in a row and the pause in milliseconds.
    pub fn note_row_changed(&mut self, attempt: Attempt, boot_ms: u64) -> Option<(u32, u64)> {
        let jobs = &mut self.refused.changed_rows.jobs;
        if !jobs.contains_key(&attempt.job_id) && jobs.len() >= limits::REFUSED_ROWS_MAX {
            jobs.clear();
            self.refused.passed.clear();
        }
        let jobs = &mut self.refused.changed_rows.jobs;
        let row = jobs.entry(attempt.job_id).or_insert(ChangedRow {
            number: 0,
            times: 0,
            until_boot_ms: None,
        });
        // A receipt may arrive twice.
        if attempt.number <= row.number {
            return None;
        }
        row.number = attempt.number;
        row.times = row.times.saturating_add(1);
        let paused = row
            .times
            .checked_sub(limits::ROW_CHANGED_ATTEMPTS_MAX + 1)?;
        let pause_ms = pause_ms(paused.into(), attempt);
        row.until_boot_ms = Some(boot_ms.saturating_add(pause_ms));
        Some((row.times, pause_ms))
    }

    /// Notes that an attempt of the job has ended without such a change.
    pub fn note_row_unchanged(&mut self, job_id: i64) {
        let row = self.refused.changed_rows.jobs.remove(&job_id);
        if row.is_some_and(|row| row.until_boot_ms.is_some()) {
            self.refused.passed.clear();
        }
    }

    /// Ends pauses that are over, so that these jobs are claimed again. True when there are any.
    pub fn resume_changed_rows(&mut self, boot_ms: u64) -> bool {
        let mut any = false;
        for row in self.refused.changed_rows.jobs.values_mut() {
            let is_over = row.until_boot_ms.is_some_and(|until| until <= boot_ms);
            if is_over {
                row.until_boot_ms = None;
                any = true;
            }
        }
        if any {
            self.refused.passed.clear();
        }
        any
    }
}
