//! Size, modification time and hash of an input.

use serde::{Deserialize, Serialize};

const SECOND: i64 = 1_000_000_000;
const MILLISECOND: i64 = 1_000_000;
const MICROSECOND: i64 = 1_000;

/// The content of an input, as far as it is known: in DISPATCH that of the row's file version, in a
/// receipt that of the file which the worker found instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Its size, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Time of modification, in nanoseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_ns: Option<i64>,
    /// Its hash: SHA-256 in hex, or another text that the program which registered the file has
    /// stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
}

impl Content {
    /// The hash, if it has the form of SHA-256: 64 hex digits.
    pub fn sha256(&self) -> Option<&str> {
        let is_hex = |hash: &&str| hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        self.hash.as_deref().filter(is_hex)
    }

    /// True if the SHA-256 hash is `hash`.
    pub fn has_hash(&self, hash: &str) -> bool {
        self.sha256()
            .is_some_and(|known| known.eq_ignore_ascii_case(hash))
    }

    /// True if a file of this size and time of modification counts as unchanged. If the known time
    /// is a whole number of seconds or milliseconds, times are compared with that precision. False
    /// if size or time is unknown.
    pub fn has_metadata(&self, size_bytes: u64, mtime_ns: i64) -> bool {
        let has_time = |known: i64| {
            let is_within = |unit: i64| {
                known % unit == 0 && mtime_ns.div_euclid(unit) == known.div_euclid(unit)
            };
            // A time stored as floating-point seconds has an error below a microsecond.
            known.abs_diff(mtime_ns) <= MICROSECOND.unsigned_abs()
                || is_within(SECOND)
                || is_within(MILLISECOND)
        };
        self.size_bytes == Some(size_bytes) && self.mtime_ns.is_some_and(has_time)
    }
}

/// Converts seconds and nanoseconds, as the kernel returns them, to nanoseconds.
pub fn mtime_ns(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(SECOND).saturating_add(nanoseconds)
}

/// Converts nanoseconds to seconds.
pub fn mtime_s(mtime_ns: i64) -> f64 {
    let fraction = mtime_ns.rem_euclid(SECOND) as f64 / SECOND as f64;
    mtime_ns.div_euclid(SECOND) as f64 + fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_compared_as_exactly_as_they_are_known() {
        let now = 1_700_000_000_123_456_789;
        for (known, found, is_same) in [
            (Some(now), now, true),
            (Some((mtime_s(now) * 1e9).round() as i64), now, true),
            (Some(1_700_000_000_000_000_000), now, true),
            (Some(1_700_000_001_000_000_000), now, false),
            (Some(1_700_000_000_123_000_000), now, true),
            (Some(1_700_000_000_124_000_000), now, false),
            (Some(now + 2_000), now, false),
            (None, now, false),
            (Some(-1_500_000_000), -1_500_000_000, true),
            (Some(-2_000_000_000), -1_500_000_000, true),
            (Some(-1_000_000_000), -1_500_000_000, false),
            (Some(i64::MIN), i64::MAX, false),
        ] {
            let mut content = Content {
                size_bytes: Some(3),
                mtime_ns: known,
                hash: None,
            };
            assert_eq!(content.has_metadata(3, found), is_same, "{known:?} {found}");
            assert!(!content.has_metadata(4, found), "{known:?} {found}");
            content.size_bytes = None;
            assert!(!content.has_metadata(3, found), "{known:?} {found}");
        }
        assert_eq!(mtime_s(-1_500_000_000), -1.5);
        assert_eq!(mtime_ns(-2, 500_000_000), -1_500_000_000);
    }
}
