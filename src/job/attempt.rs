//! The identity of an attempt.

use serde::{Deserialize, Serialize};

/// Identifies an attempt: a job and a number. Attempts of a job are numbered from 1; later attempts
/// have higher numbers.
///
/// A row that is inserted under the ID of a deleted job is another job. Its attempts count from
/// `incarnation << 32`, so attempt numbers of an ID never repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attempt {
    /// The ID of the job's row.
    pub job_id: i64,
    /// The attempt's number; 0 or less if an old peer did not send it.
    #[serde(rename = "attempt")]
    pub number: i64,
}

// Passed by value; the key of most maps.
const _: () = assert!(size_of::<Attempt>() <= 16);

impl Attempt {
    /// The attempt `number` of a job.
    pub fn new(job_id: i64, number: i64) -> Self {
        Attempt { job_id, number }
    }

    /// The first attempt of a job. `incarnation` is the number of deleted jobs that had the ID
    /// before.
    pub fn first(job_id: i64, incarnation: i64) -> Self {
        Attempt::new(job_id, (incarnation.clamp(0, i64::MAX >> 32) << 32) + 1)
    }

    /// The number of deleted jobs that had the ID before this one.
    pub fn incarnation(self) -> i64 {
        self.number.max(0) >> 32
    }

    /// The number of the attempt within its incarnation, from 1.
    pub fn ordinal(self) -> i64 {
        self.number.max(0) & 0xffff_ffff
    }

    /// False if an old peer did not send the number.
    pub fn is_numbered(self) -> bool {
        self.number > 0
    }
}

impl std::fmt::Display for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "job {} attempt {}", self.job_id, self.ordinal())
    }
}

/// How the worker of an attempt was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The attempt was the worker's only one.
    Alone,
    /// The worker had other attempts, too.
    Shared,
    /// Another process took over the worker's ID. The attempt may still publish within its lease.
    Displaced,
    /// According to the worker's last request, the attempt had not started, because its environment
    /// was being created.
    Waiting,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_id_is_another_incarnation_with_higher_numbers() {
        let first = Attempt::new(7, 3);
        let reused = Attempt::new(7, (1 << 32) + 1);
        assert_eq!((first.incarnation(), first.ordinal()), (0, 3));
        assert_eq!((reused.incarnation(), reused.ordinal()), (1, 1));
        assert!(reused > first);
        assert!(!Attempt::new(7, 0).is_numbered());
        assert_eq!(Attempt::new(7, -1).ordinal(), 0);
    }
}
