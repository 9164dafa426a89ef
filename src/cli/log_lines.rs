//! Log lines on stderr. What they contain comes from databases, peers and plugins as well, so the
//! message of a record is bounded, and its control characters are escaped: no text can move a
//! terminal's cursor.

use std::fmt::{self, Write};

use env_logger::fmt::{ConfigurableFormat, TimestampPrecision};

use crate::job::text::CUT_MARK;
use crate::limits;

/// Starts the log at `level`, unless `RUST_LOG` has another one.
pub(super) fn start(level: &str) {
    let environment = env_logger::Env::default().default_filter_or(level);
    let mut format = ConfigurableFormat::default();
    format
        .target(false)
        .timestamp(Some(TimestampPrecision::Millis));
    let started = env_logger::Builder::from_env(environment)
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
        eprintln!("log: {error}");
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
            match c.is_control() && !matches!(c, '\n' | '\t') {
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
