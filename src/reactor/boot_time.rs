//! A clock that includes time in suspend.

use std::ops::Add;
use std::time::Duration;

/// A time of CLOCK_BOOTTIME: time since boot, including suspend. Changes of the wall clock do not
/// affect it. On systems other than Linux it is the monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(Duration);

impl BootTime {
    /// The current time.
    pub fn now() -> Self {
        #[cfg(target_os = "linux")]
        let clock = rustix::time::ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let clock = rustix::time::ClockId::Monotonic;
        let now = rustix::time::clock_gettime(clock);
        BootTime(Duration::new(
            u64::try_from(now.tv_sec).unwrap_or(0),
            u32::try_from(now.tv_nsec).unwrap_or(0),
        ))
    }

    /// The time that is `since` after boot.
    pub const fn after_boot(since: Duration) -> Self {
        BootTime(since)
    }

    /// Time since boot.
    pub fn since_boot(self) -> Duration {
        self.0
    }

    /// The duration from `earlier` to this time; zero if `earlier` is later.
    pub fn saturating_duration_since(self, earlier: BootTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// The processor time that this thread has used.
pub fn thread_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(used.tv_sec).unwrap_or(0),
        u32::try_from(used.tv_nsec).unwrap_or(0),
    )
}

impl Add<Duration> for BootTime {
    type Output = BootTime;

    /// Saturates at the maximum.
    fn add(self, wait: Duration) -> BootTime {
        BootTime(self.0.saturating_add(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_and_does_not_overflow() {
        let now = BootTime::now();
        assert!(BootTime::now() >= now && now > BootTime::default());
        let later = now + Duration::MAX;
        assert_eq!(now.saturating_duration_since(later), Duration::ZERO);
        assert!(later > now + Duration::from_secs(1));
    }
}
