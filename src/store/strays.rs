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
pub(super) struct Strays {
    jobs: HashMap<i64, Stray>,
}

#[derive(Debug)]
struct Stray {
    /// The last attempt whose row was changed.
    number: i64,
    /// How many such attempts there were in a row.
    times: u32,
    /// The end of the pause ([`super::Now::boot_ms`]).
    until_boot_ms: Option<u64>,
}

impl Strays {
    /// True while the job is not claimed.
    pub(super) fn is_paused(&self, job_id: i64) -> bool {
        let stray = self.jobs.get(&job_id);
        stray.is_some_and(|stray| stray.until_boot_ms.is_some())
    }
}

impl Store {
    /// Notes that an attempt has ended after another program had changed its row. When the job is paused,
    /// returns the number of such attempts in a row and the pause in milliseconds.
    pub fn note_stray(&mut self, attempt: Attempt, boot_ms: u64) -> Option<(u32, u64)> {
        let jobs = &mut self.refused.strays.jobs;
        if !jobs.contains_key(&attempt.job_id) && jobs.len() >= limits::REFUSED_ROWS_MAX {
            jobs.clear();
            self.refused.passed.clear();
        }
        let jobs = &mut self.refused.strays.jobs;
        let stray = jobs.entry(attempt.job_id).or_insert(Stray {
            number: 0,
            times: 0,
            until_boot_ms: None,
        });
        // A receipt may arrive twice.
        if attempt.number <= stray.number {
            return None;
        }
        stray.number = attempt.number;
        stray.times = stray.times.saturating_add(1);
        let paused = stray.times.checked_sub(limits::STRAY_ATTEMPTS_MAX + 1)?;
        let pause_ms = pause_ms(paused.into(), attempt);
        stray.until_boot_ms = Some(boot_ms.saturating_add(pause_ms));
        Some((stray.times, pause_ms))
    }

    /// Notes that an attempt of the job has ended without such a change.
    pub fn note_no_stray(&mut self, job_id: i64) {
        let stray = self.refused.strays.jobs.remove(&job_id);
        if stray.is_some_and(|stray| stray.until_boot_ms.is_some()) {
            self.refused.passed.clear();
        }
    }

    /// Ends pauses that are over, so that these jobs are claimed again. True when there are any.
    pub fn resume_strays(&mut self, boot_ms: u64) -> bool {
        let mut any = false;
        for stray in self.refused.strays.jobs.values_mut() {
            let is_over = stray.until_boot_ms.is_some_and(|until| until <= boot_ms);
            if is_over {
                stray.until_boot_ms = None;
                any = true;
            }
        }
        if any {
            self.refused.passed.clear();
        }
        any
    }
}
