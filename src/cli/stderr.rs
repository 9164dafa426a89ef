//! Writes to stderr. A failed write is never an error: a closed pipe, a full disk or a size limit does not
//! change what a program does.

use std::io::{self, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::clean::clean;
use crate::job::text::cut;
use crate::limits;

/// Writes a line. Blocks while its reader does not read.
pub(super) fn print_line(line: impl std::fmt::Display) {
    // A failed write cannot be reported anywhere.
    let _ = io::stderr().lock().write_all(shown(line).as_bytes());
}

/// The text of a message as it is written: control characters escaped, of bounded length, further lines
/// indented. So a line end in a name cannot start a new line.
fn shown(message: impl std::fmt::Display) -> String {
    let mut text = message.to_string();
    cut(&mut text, limits::STDERR_MESSAGE_SIZE_MAX);
    let text = clean(text.trim_end_matches('\n')).replace('\n', "\n    ");
    format!("{text}\n")
}

/// Reports panics like other errors, because their texts may contain data of other programs as well.
pub(super) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("?").to_owned();
        let trace = std::backtrace::Backtrace::capture();
        match trace.status() {
            std::backtrace::BacktraceStatus::Captured => {
                print_last_line(format_args!("thread {name}: {panic}\n{trace}"));
            }
            _ => print_last_line(format_args!("thread {name}: {panic}")),
        }
    }));
}

/// Writes a program's last line, unless its reader does not read for `LAST_LINE_TIMEOUT`.
pub(super) fn print_last_line(line: impl std::fmt::Display) {
    write(shown(line).as_bytes(), limits::LAST_LINE_TIMEOUT);
}

/// Writes parts until one would block for more than `wait`. Returns the number of bytes written.
///
/// The lock of [`io::stderr`] is not taken, because a thread that is blocked by the reader may hold it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_begins_one_line_and_is_bounded() {
        for (text, want) in [
            ("plain", "plain\n"),
            ("lines\nof a tool\n", "lines\n    of a tool\n"),
            (
                "a\n[error] forged\x1b[2J\r",
                "a\n    [error] forged\\u001b[2J\\u000d\n",
            ),
        ] {
            assert_eq!(shown(text), want);
        }
        let long = shown("\x1b".repeat(1 << 20));
        assert!(long.len() <= 6 * limits::STDERR_MESSAGE_SIZE_MAX + 1);
    }
}
