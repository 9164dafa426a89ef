//! The present time as an argument: the store itself does not read a clock.

use std::sync::{Arc, OnceLock};

/// One moment on two clocks. The wall clock is for people. Pauses are computed with the clock since boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the epoch, UTC.
    pub unix_ms: i64,
    /// Milliseconds of CLOCK_BOOTTIME (see [`crate::reactor::BootTime`]).
    pub boot_ms: u64,
    /// The boot from which `boot_ms` counts (see [`boot_id`]).
    pub boot_id: Arc<str>,
}

/// The kernel's random ID of this boot, read once. Empty where there is none.
pub fn boot_id() -> Arc<str> {
    static ID: OnceLock<Arc<str>> = OnceLock::new();
    ID.get_or_init(|| {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .unwrap_or_default()
            .trim()
            .into()
    })
    .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_one_and_has_no_spaces() {
        assert_eq!(boot_id(), boot_id());
        assert!(!boot_id().contains(char::is_whitespace));
    }
}
