//! The present time for the database, which does not read a clock itself.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::reactor::BootTime;
use crate::store::{Now, boot_id};

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

/// This moment on both clocks; `now` is the one since boot.
pub(crate) fn moment(now: BootTime) -> Now {
    Now {
        unix_ms: unix_ms(),
        boot_ms: u64::try_from(now.since_boot().as_millis()).unwrap_or(u64::MAX),
        boot_id: boot_id(),
    }
}
