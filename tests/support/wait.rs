//! Waiting with a deadline.

use std::time::{Duration, Instant};

/// Repeats `step`, with pauses between, until it gives a value. Fails after the longest wait.
#[track_caller]
pub(crate) fn until<T>(
    what: &str,
    longest: Duration,
    pause: Duration,
    mut step: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + longest;
    loop {
        if let Some(value) = step() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {longest:?}");
        std::thread::sleep(pause);
    }
}
