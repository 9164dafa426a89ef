//! Limits the log lines about bad connections.

use std::time::{Duration, Instant};

use crate::limits;

/// Allows a number of lines per second and counts those left out.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    window: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl LogLimit {
    /// If a line may be written now, returns the number of lines left out before it; else `None`.
    pub(crate) fn allow(&mut self, now: Instant) -> Option<u64> {
        let fresh = self
            .window
            .is_none_or(|start| now.saturating_duration_since(start) >= Duration::from_secs(1));
        if fresh {
            self.window = Some(now);
            self.lines = 0;
        }
        if self.lines >= limits::SOCKET_LOG_LINES_PER_SECOND {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_costs_a_few_lines_and_the_next_second_has_the_number_left_out() {
        let start = Instant::now();
        let mut limit = LogLimit::default();
        let allowed = (0..1000).filter(|_| limit.allow(start).is_some()).count();
        assert_eq!(allowed, limits::SOCKET_LOG_LINES_PER_SECOND as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(limit.allow(later), Some(1000 - allowed as u64));
        assert_eq!(limit.allow(later), Some(0));
    }
}
