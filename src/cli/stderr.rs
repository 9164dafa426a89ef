//! What is written to stderr. Whether it can be written is never an error: a reader that has gone
//! away, a full disk and a size limit do not change what a program does.

use std::io::{self, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::clean::clean;
use crate::limits;

/// Writes a line, however long its reader takes.
pub(super) fn tell(line: impl std::fmt::Display) {
    // There is nowhere to say that it failed.
    let _ = io::stderr()
        .lock()
        .write_all(clean(&format!("{line}\n")).as_bytes());
}

/// Writes a program's last line, unless its reader takes too long.
pub(super) fn tell_last(line: impl std::fmt::Display) {
    let line = format!("{line}\n");
    write(clean(&line).as_bytes(), limits::LAST_LINE_TIMEOUT);
}

/// Writes as much as is taken without a wait of more than `wait` for a part; gives how much.
///
/// The lock of [`io::stderr`] is not taken: a thread that waits for its reader may hold it.
pub(super) fn write(bytes: &[u8], wait: Duration) -> usize {
    let stderr = io::stderr();
    let mut written = 0;
    for part in bytes.chunks(limits::STDERR_PART_SIZE) {
        if !is_writable(&stderr, wait) {
            break;
        }
        let taken = rustix::io::retry_on_intr(|| rustix::io::write(&stderr, part)).unwrap_or(0);
        written += taken;
        if taken < part.len() {
            break;
        }
    }
    written
}

fn is_writable(stderr: &io::Stderr, wait: Duration) -> bool {
    let Ok(wait) = Timespec::try_from(wait) else {
        return false;
    };
    let mut waiting = [PollFd::new(stderr, PollFlags::OUT)];
    rustix::io::retry_on_intr(|| poll(&mut waiting, Some(&wait))).is_ok_and(|ready| ready > 0)
}
