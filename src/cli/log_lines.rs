//! Log lines on stderr. What they contain comes from databases, peers and plugins as well, so the
//! message of a record is bounded, and its control characters are escaped: no text can move a
//! terminal's cursor.
//!
//! A log line never waits for whoever reads stderr. What is not taken at once is dropped and
//! counted.

use std::fmt::{self, Write};
use std::io::{self, IsTerminal};
use std::time::Duration;

use env_logger::fmt::{ConfigurableFormat, TimestampPrecision};
use env_logger::{Target, WriteStyle};

use super::clean::is_unsafe;
use super::stderr;

use crate::job::text::CUT_MARK;
use crate::limits;

/// Starts the log at `level`, unless `RUST_LOG` has another one.
pub(super) fn start(level: &str) {
    let environment = env_logger::Env::default().default_filter_or(level);
    let mut format = ConfigurableFormat::default();
    format
        .target(false)
        .timestamp(Some(TimestampPrecision::Millis));
    let mut builder = env_logger::Builder::from_env(environment);
    if is_coloured() {
        builder.write_style(WriteStyle::Always);
    }
    let started = builder
        .target(Target::Pipe(Box::new(Lines::new(|bytes: &[u8]| {
            stderr::write(bytes, Duration::ZERO)
        }))))
        .format(move |formatter, record| {
            let message = Message::new(*record.args());
            format.format(
                formatter,
                &log::Record::builder()
                    .metadata(record.metadata().clone())
                    .args(format_args!("{message}"))
                    .build(),
            )
        })
        .try_init();
    if let Err(error) = started {
        stderr::tell(format_args!("log: {error}"));
    }
}

/// Whether lines are coloured: on a terminal, unless the environment says something else. Of a
/// target that is no stream of the standard library `env_logger` cannot tell.
fn is_coloured() -> bool {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    io::stderr().is_terminal()
        && variable("RUST_LOG_STYLE").is_none_or(|style| style == "auto")
        && variable("NO_COLOR").is_none()
        && variable("TERM").is_some_and(|terminal| terminal != "dumb")
}

/// Log lines on their way to where `take` puts them: it gives how many bytes it took.
struct Lines<T> {
    take: T,
    dropped: u64,
    /// The last line that was begun lacks its end.
    torn: bool,
}

impl<T: FnMut(&[u8]) -> usize> Lines<T> {
    fn new(take: T) -> Self {
        Lines {
            take,
            dropped: 0,
            torn: false,
        }
    }

    /// True when all of it was taken.
    fn put(&mut self, bytes: &[u8]) -> bool {
        let taken = (self.take)(bytes);
        let whole = taken >= bytes.len();
        self.torn = !whole && (self.torn || taken > 0);
        whole
    }

    /// Says how many lines are missing, where they are missing.
    fn own_up(&mut self) -> bool {
        if self.dropped == 0 {
            return true;
        }
        let end = if self.torn { "\n" } else { "" };
        let notice = format!(
            "{end}{} log lines were dropped, because stderr did not take them\n",
            self.dropped
        );
        let whole = self.put(notice.as_bytes());
        if whole {
            self.dropped = 0;
        }
        whole
    }
}

/// Takes a line at a time; never fails.
impl<T: FnMut(&[u8]) -> usize> io::Write for Lines<T> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.own_up() || !self.put(line) {
            self.dropped += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A record's message, as it is written.
struct Message(String);

impl Message {
    /// Formats no more than it keeps.
    fn new(arguments: fmt::Arguments<'_>) -> Self {
        let mut message = Message(String::new());
        if message.write_fmt(arguments).is_err() {
            message.0.push_str(CUT_MARK);
        }
        message
    }

    /// Fails at the bound.
    fn push(&mut self, c: char) -> fmt::Result {
        if self.0.len() + c.len_utf8() + CUT_MARK.len() > limits::LOG_MESSAGE_SIZE_MAX {
            return Err(fmt::Error);
        }
        self.0.push(c);
        Ok(())
    }
}

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            match is_unsafe(c) {
                true => c.escape_default().try_for_each(|c| self.push(c))?,
                false => self.push(c)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_not_taken_are_counted() {
        use std::io::Write as _;
        let taken = std::cell::RefCell::new(Vec::new());
        let room = std::cell::Cell::new(10);
        let mut lines = Lines::new(|bytes: &[u8]| {
            let part = bytes.get(..room.get()).unwrap_or(bytes);
            room.set(room.get() - part.len());
            taken.borrow_mut().extend_from_slice(part);
            part.len()
        });
        for (space, line) in [
            (10, "first\n"),
            (4, "second\n"),
            (0, "third\n"),
            (5, "fourth\n"),
            (100, "fifth\n"),
            (100, "sixth\n"),
        ] {
            room.set(space);
            lines.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(
            String::from_utf8(taken.take()).unwrap(),
            "first\nseco\n2 lo\n3 log lines were dropped, because stderr did not take them\nfifth\nsixth\n"
        );
    }

    #[test]
    fn messages_are_bounded_and_clean() {
        let shown = |text: &str| Message::new(format_args!("plugin {text}")).0;
        for (text, want) in [
            ("é … 漢", "plugin é … 漢"),
            ("two\nlines\tand", "plugin two\nlines\tand"),
            (
                "\x1b[2J\r\u{9b}\x7f\0",
                r"plugin \u{1b}[2J\r\u{9b}\u{7f}\u{0}",
            ),
        ] {
            assert_eq!(shown(text), want);
        }
        for c in ["x", "é", "漢", "\x1b", "\n"] {
            let long = shown(&c.repeat(3_000_000));
            let size = long.len();
            assert!(size <= limits::LOG_MESSAGE_SIZE_MAX, "{c:?}: {size}");
            assert!(size > limits::LOG_MESSAGE_SIZE_MAX - 8, "{c:?}: {size}");
            assert!(long.ends_with(CUT_MARK), "{c:?}");
        }
    }
}
