//! Log lines on stderr. They contain data from databases, peers and plugins. So the message of a record is
//! bounded, and its control characters are escaped: no text can control a terminal.
//!
//! Each log statement in the source writes a bounded number of lines a second, so that no peer or plugin can
//! fill a disk with log lines. Omitted lines are counted.
//!
//! Writing a log line never blocks. A line that stderr does not accept at once is dropped and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use env_logger::fmt::{ConfigurableFormat, TimestampPrecision};
use env_logger::{Target, WriteStyle};

use super::clean::is_unsafe;
use super::stderr;

use crate::job::text::{self, CUT_MARK};
use crate::limits;

fn has_text(value: &impl fmt::Display) -> bool {
    write!(String::new(), "{value}").is_ok()
}

/// Starts logging at `level`, unless `RUST_LOG` sets another level.
pub(super) fn start(level: &str) {
    let environment = env_logger::Env::default().default_filter_or(level);
    let formats = [Some(TimestampPrecision::Millis), None].map(|precision| {
        let mut format = ConfigurableFormat::default();
        format.target(false).timestamp(precision);
        format
    });
    let sites = Mutex::new(Sites::default());
    let mut builder = env_logger::Builder::from_env(environment);
    if is_coloured() {
        builder.write_style(WriteStyle::Always);
    }
    let started = builder
        .target(Target::Pipe(Box::new(Lines::new(|bytes: &[u8]| {
            stderr::write(bytes, Duration::ZERO)
        }))))
        .format(move |formatter, record| {
            // A time after the year 9999 has no text.
            let has_time = has_text(&formatter.timestamp_millis());
            let [timed, untimed] = &formats;
            let format = if has_time { timed } else { untimed };
            let mut write = |metadata: &log::Metadata<'_>, message: &dyn fmt::Display| {
                format.format(
                    formatter,
                    &log::Record::builder()
                        .metadata(metadata.clone())
                        .args(format_args!("{message}"))
                        .build(),
                )
            };
            // Debug lines are not limited.
            if record.level() > log::Level::Info {
                return write(record.metadata(), &Message::new(*record.args()));
            }
            let site = (record.file_static(), record.line());
            let now = Instant::now();
            let (is_written, omitted) = {
                let mut sites = sites.lock().unwrap_or_else(PoisonError::into_inner);
                let omitted = sites.take_omitted(now);
                (sites.admit(site, now, *record.args()), omitted)
            };
            for Omitted { count, example } in omitted {
                let notice = format!("{count} more lines were left out like: {example}");
                write(record.metadata(), &notice)?;
            }
            match is_written {
                true => write(record.metadata(), &Message::new(*record.args())),
                false => Ok(()),
            }
        })
        .try_init();
    if let Err(error) = started {
        stderr::print_line(format_args!("log: {error}"));
    }
}

/// True if lines are coloured: on a terminal, unless the environment sets otherwise. `env_logger` detects
/// that only for streams of the standard library.
fn is_coloured() -> bool {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    io::stderr().is_terminal()
        && variable("RUST_LOG_STYLE").is_none_or(|style| style == "auto")
        && variable("NO_COLOR").is_none()
        && variable("TERM").is_some_and(|terminal| terminal != "dumb")
}

/// Writes log lines by `take`, which returns the number of bytes that it accepted.
struct Lines<T> {
    take: T,
    dropped: u64,
    /// The last line was written only in part.
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

    /// Returns true if all bytes were accepted.
    fn put(&mut self, bytes: &[u8]) -> bool {
        let taken = (self.take)(bytes);
        let whole = taken >= bytes.len();
        self.torn = !whole && (self.torn || taken > 0);
        whole
    }

    /// Writes the number of dropped lines at the position where they are missing.
    fn report_dropped(&mut self) -> bool {
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

/// Accepts one line per write. Never fails.
impl<T: FnMut(&[u8]) -> usize> io::Write for Lines<T> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if !self.report_dropped() || !self.put(line) {
            self.dropped += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A log statement in the source: file and line.
type Site = (Option<&'static str>, Option<u32>);

/// Lines that each log statement has written within the last second.
#[derive(Default)]
struct Sites {
    sites: BTreeMap<Site, Window>,
    /// Log statements with omitted lines.
    omitting: BTreeSet<Site>,
}

struct Window {
    began: Instant,
    written: u32,
    omitted: u64,
    example: String,
}

/// Lines of a log statement that were omitted.
#[derive(Debug, PartialEq)]
struct Omitted {
    count: u64,
    /// One of them, shortened.
    example: String,
}

impl Sites {
    /// True if a line may be written.
    fn admit(&mut self, site: Site, now: Instant, message: fmt::Arguments<'_>) -> bool {
        let window = self.sites.entry(site).or_insert_with(|| Window {
            began: now,
            written: 0,
            omitted: 0,
            example: String::new(),
        });
        if now.saturating_duration_since(window.began) >= WINDOW {
            (window.began, window.written) = (now, 0);
        }
        if window.written < limits::LOG_LINES_PER_SECOND {
            window.written += 1;
            return true;
        }
        if window.omitted == 0 {
            let mut example = Message::new(message).0.replace('\n', " ");
            text::cut(&mut example, EXAMPLE_SIZE_MAX);
            window.example = example;
            self.omitting.insert(site);
        }
        window.omitted += 1;
        false
    }

    /// Returns the omitted lines of seconds that are over.
    fn take_omitted(&mut self, now: Instant) -> Vec<Omitted> {
        let mut omitted = Vec::new();
        let sites = &mut self.sites;
        self.omitting.retain(|site| {
            let Some(window) = sites.get_mut(site) else {
                return false;
            };
            let is_over = now.saturating_duration_since(window.began) >= WINDOW;
            if is_over {
                omitted.push(Omitted {
                    count: std::mem::take(&mut window.omitted),
                    example: std::mem::take(&mut window.example),
                });
            }
            !is_over
        });
        omitted
    }
}

const WINDOW: Duration = Duration::from_secs(1);
/// Size limit, in bytes, of the example of omitted lines.
const EXAMPLE_SIZE_MAX: usize = 200;

/// The message of a record, as it is written.
struct Message(String);

impl Message {
    /// Formats only as much as is kept.
    fn new(arguments: fmt::Arguments<'_>) -> Self {
        let mut message = Message(String::new());
        if message.write_fmt(arguments).is_err() {
            message.0.push_str(CUT_MARK);
        }
        message
    }

    /// Fails when the limit is reached.
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
    fn a_value_without_a_text_is_found_out() {
        struct Wordless;
        impl fmt::Display for Wordless {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                Err(fmt::Error)
            }
        }
        assert!(has_text(&1) && !has_text(&Wordless));
    }

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
    fn each_log_statement_writes_a_bounded_number_of_lines_and_counts_the_others() {
        let (start, flood, other) = (Instant::now(), (Some("a.rs"), Some(1)), (None, Some(2)));
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut sites = Sites::default();
        let write = |sites: &mut Sites, site, now| {
            let omitted = sites.take_omitted(now);
            (
                sites.admit(site, now, format_args!("w\n{}", "x".repeat(9999))),
                omitted,
            )
        };
        let max = limits::LOG_LINES_PER_SECOND as usize;
        let written = (0..1000)
            .filter(|_| write(&mut sites, flood, at(0)).0)
            .count();
        assert_eq!(written, max);
        // Other log statements are not affected. They report the omitted lines once their second is over.
        assert_eq!(write(&mut sites, other, at(999)), (true, vec![]));
        let (is_written, omitted) = write(&mut sites, other, at(1000));
        assert!(is_written);
        assert_eq!(omitted[0].count, (1000 - max) as u64);
        assert!(omitted[0].example.starts_with("w x"), "{omitted:?}");
        assert!(omitted[0].example.len() <= EXAMPLE_SIZE_MAX);
        assert_eq!(write(&mut sites, flood, at(1000)), (true, vec![]));
        assert_eq!(sites.sites.len(), 2);
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
