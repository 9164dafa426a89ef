//! The keys of attempts and settlements (`attempt_key`). A key is a random number of the process and a counter, so
//! that no two attempts have the same one, also when the content of the database is set back to a backup while
//! the process works. Two attempts with the same number are then distinguished by their keys.

use rusqlite::Connection;

use super::{Error, Transaction};
use crate::job::KEY_COUNT_BITS;

/// Gives keys.
#[derive(Debug)]
pub(super) struct Keys {
    /// The upper bits.
    process: i64,
    /// The last counter that was given.
    count: i64,
}

impl Keys {
    pub(super) fn new(connection: &Connection) -> Result<Self, Error> {
        let process = connection.query_row("SELECT random()", [], |row| row.get(0))?;
        Ok(Keys { process, count: 0 })
    }

    /// A new key. Not 0, because 0 means that a key is unknown.
    fn next(&mut self) -> i64 {
        self.count += 1;
        if self.count >> KEY_COUNT_BITS > 0 {
            // The next number of a generator that has every number in its period (Knuth, MMIX).
            let next = self.process.wrapping_mul(6_364_136_223_846_793_005);
            self.process = next.wrapping_add(1_442_695_040_888_963_407);
            self.count = 1;
        }
        (self.process >> KEY_COUNT_BITS << KEY_COUNT_BITS) | self.count
    }
}

impl Transaction<'_> {
    /// A key that no other attempt or settlement has.
    pub(super) fn next_key(&mut self) -> i64 {
        self.keys.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_given_again() {
        for process in [0, -1, i64::MAX, i64::MIN, 1 << KEY_COUNT_BITS] {
            let mut keys = Keys {
                process,
                count: (1 << KEY_COUNT_BITS) - 3,
            };
            let given: Vec<i64> = (0..6).map(|_| keys.next()).collect();
            let mut different = given.clone();
            different.sort_unstable();
            different.dedup();
            assert_eq!(different.len(), given.len(), "{given:?}");
            assert!(!given.contains(&0), "{given:?}");
            let processes: Vec<i64> = given.iter().map(|key| key >> KEY_COUNT_BITS).collect();
            assert_eq!(processes[0], processes[1], "{given:?}");
            assert_ne!(processes[1], processes[2], "{given:?}");
            assert_eq!(processes[2], processes[5], "{given:?}");
        }
    }
}
