//! The earlier attempts of a job, according to its database.

use serde::{Deserialize, Serialize};

use super::Attempt;

/// How an earlier attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PastEnd {
    /// It has a receipt, which lists the output.
    Completed,
    /// Its worker reported that it failed and left no output.
    Failed,
    /// It may have left output.
    #[serde(other)]
    Unknown,
}

/// An earlier attempt of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// Its number.
    #[serde(rename = "attempt")]
    pub number: i64,
    /// As in [`History::key`]; 0 = not known.
    #[serde(default)]
    pub key: i64,
    /// How it ended.
    pub end: PastEnd,
}

/// The lower bits of a key. They number the keys of a process. The upper bits are the process's random
/// number. In earlier releases all attempts of a process had the same key.
pub const KEY_COUNT_BITS: u32 = 24;

/// The key of an attempt and the earlier attempts of its job, according to its database. Two copies
/// of a database give the same numbers to different attempts; then the keys differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// A random number that no other attempt or settlement has; 0 = not known. Its upper bits are those of
    /// the sentinel process ([`KEY_COUNT_BITS`]).
    #[serde(default)]
    pub key: i64,
    /// The earlier attempts, in ascending order. If there are very many, the first ones are
    /// omitted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<Past>,
    /// The time since when a program of the reference system may have run the job, in milliseconds
    /// since the epoch. These programs keep no records of the output that they publish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_since_ms: Option<i64>,
}

impl History {
    /// The number of the last attempt with [`PastEnd::Completed`]; 0 if there is none.
    pub fn completed(&self) -> i64 {
        let completed = self.past.iter().rev();
        let mut completed = completed.filter(|past| past.end == PastEnd::Completed);
        completed.next().map_or(0, |past| past.number)
    }

    /// How an earlier attempt ended.
    pub fn end(&self, number: i64) -> PastEnd {
        let found = self.past.iter().find(|past| past.number == number);
        found.map_or(PastEnd::Unknown, |past| past.end)
    }

    /// True if an attempt that an output root has recorded with this number and key is not an
    /// attempt of this database, but of a copy of it. `current` is the attempt to which this
    /// history belongs.
    pub fn is_foreign(&self, number: i64, key: i64, current: Attempt) -> bool {
        if number == current.number {
            return self.key != key;
        }
        let is_other = |known: i64| known != 0 && known != key;
        let found = self.past.iter().find(|past| past.number == number);
        match (found, self.past.first()) {
            _ if key == 0 => false,
            (Some(past), _) => is_other(past.key),
            // For omitted attempts, only the processes of the keys can be compared.
            (None, Some(first)) => number > first.number || !self.has_process_of(key),
            (None, None) => true,
        }
    }
}

impl History {
    /// True if the process that gave this key gave one to this attempt or a listed one.
    fn has_process_of(&self, key: i64) -> bool {
        let is_same = |known: i64| known >> KEY_COUNT_BITS == key >> KEY_COUNT_BITS;
        is_same(self.key) || self.past.iter().any(|past| is_same(past.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_of_a_copy_is_recognized_by_its_key() {
        let past = |number, key, end| Past { number, key, end };
        let (one, two, three) = (
            7 << KEY_COUNT_BITS,
            8 << KEY_COUNT_BITS,
            9 << KEY_COUNT_BITS,
        );
        let history = History {
            key: three + 2,
            past: vec![
                past(3, one, PastEnd::Completed),
                past(4, 0, PastEnd::Failed),
                past(6, three + 1, PastEnd::Unknown),
            ],
            ..History::default()
        };
        let current = Attempt::new(1, 7);
        for (number, key, want) in [
            (7, three + 2, false),
            (7, two, true),
            // Another attempt of the same sentinel.
            (7, three + 1, true),
            (3, one, false),
            (3, one + 1, true),
            (3, two, true),
            // Attempts of releases without keys.
            (3, 0, false),
            (4, two, false),
            (6, three + 1, false),
            (6, three + 2, true),
            // A settlement, or an attempt that is not in this database.
            (5, one, true),
            // Omitted attempts: of a sentinel of this database, and of another one.
            (2, one + 5, false),
            (2, two, true),
        ] {
            assert_eq!(
                history.is_foreign(number, key, current),
                want,
                "{number} {key}"
            );
        }
        assert!(History::default().is_foreign(1, 5, Attempt::new(1, 2)));
        assert_eq!(history.completed(), 3);
        assert_eq!(
            (history.end(4), history.end(5)),
            (PastEnd::Failed, PastEnd::Unknown)
        );
    }
}
