//! A clock that is read in a few nanoseconds.

/// A time of the system's coarse monotonic clock, which advances every 1 to 10 ms. Two times are
/// compared to find out whether some milliseconds have passed.
///
/// Only Linux has this clock. Elsewhere the monotonic clock is read, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CoarseTime(i64);

impl CoarseTime {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[inline]
    pub(crate) fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        CoarseTime(
            time.tv_sec
                .wrapping_mul(1_000_000_000)
                .wrapping_add(time.tv_nsec),
        )
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(crate) fn now() -> Self {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        CoarseTime(START.get_or_init(Instant::now).elapsed().as_millis() as i64)
    }
}
