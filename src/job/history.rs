//! What a database knows of the earlier attempts of a job.

use serde::{Deserialize, Serialize};

use super::Attempt;

/// How an earlier attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PastEnd {
    /// Its receipt names the output.
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

/// An attempt among those of its job, as the database that it is from knows them. Two copies of a
/// database give the same numbers to different attempts; keys differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// A random number that the sentinel which dispatched the attempt has drawn; 0 = not known.
    #[serde(default)]
    pub key: i64,
    /// The attempts before, rising. The first ones of very many are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub past: Vec<Past>,
    /// Since when a sentinel or a worker of the old system may have run the job, in milliseconds
    /// since the epoch. They keep no records of what they publish under the names of its output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_since_ms: Option<i64>,
}

impl History {
    /// The last attempt whose receipt names the output; 0 for none.
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

    /// True when what a root has of an attempt was not made by that attempt of this database, but
    /// by one of a copy: `current` is the attempt that this is the history of.
    pub fn is_foreign(&self, number: i64, key: i64, current: Attempt) -> bool {
        if number == current.number {
            return self.key != key;
        }
        let is_other = |known: i64| known != 0 && known != key;
        let found = self.past.iter().find(|past| past.number == number);
        match (found, self.past.first()) {
            _ if key == 0 => false,
            (Some(past), _) => is_other(past.key),
            // Of those that are left out only the sentinel can be known.
            (None, Some(first)) => number > first.number || !self.knows(key),
            (None, None) => true,
        }
    }
}

impl History {
    /// True for the key of an attempt that is listed.
    fn knows(&self, key: i64) -> bool {
        self.key == key || self.past.iter().any(|past| past.key == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_of_a_copy_is_told_by_its_key() {
        let past = |number, key, end| Past { number, key, end };
        let history = History {
            key: 9,
            past: vec![
                past(3, 7, PastEnd::Completed),
                past(4, 0, PastEnd::Failed),
                past(6, 9, PastEnd::Unknown),
            ],
            ..History::default()
        };
        let current = Attempt::new(1, 7);
        for (number, key, want) in [
            (7, 9, false),
            (7, 8, true),
            (3, 7, false),
            (3, 8, true),
            // Of releases without keys.
            (3, 0, false),
            (4, 8, false),
            (6, 9, false),
            // A settlement or an attempt that this database has no row of.
            (5, 7, true),
            // Older than what is kept: by a sentinel that this database has had, or not.
            (2, 7, false),
            (2, 8, true),
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
