//! Values of flags: how numbers, sizes, paths and words are read from what was given.
//!
//! If a flag that is not repeatable is given several times, its last value counts.

use std::ffi::OsString;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::{Failure, usage_error};
use crate::reactor::Endpoint;

/// The longest time that flags allow.
pub(crate) const YEAR_SECONDS: u64 = 365 * 86_400;

/// What was given for one flag.
#[derive(Debug, Default)]
pub(crate) struct Values {
    long: &'static str,
    all: Vec<OsString>,
}

impl Values {
    /// No values yet, of a flag with this name.
    pub(super) fn of(long: &'static str) -> Self {
        Values {
            long,
            all: Vec::new(),
        }
    }

    /// Adds a value, or the fact that a flag without a value was given.
    pub(super) fn push(&mut self, value: OsString) {
        self.all.push(value);
    }

    /// True if the flag was given.
    pub(super) fn is_given(&self) -> bool {
        !self.all.is_empty()
    }

    /// All values in their order.
    pub(crate) fn all(&self) -> &[OsString] {
        &self.all
    }

    /// The error of a value.
    pub(crate) fn error(&self, value: impl Display, what: impl Display) -> Failure {
        usage_error(format!("--{} {value}: {what}", self.long))
    }

    fn utf_8(&self, value: &OsString) -> Result<String, Failure> {
        let text = value.to_str().map(str::to_owned);
        text.ok_or_else(|| self.error(value.display(), "not UTF-8"))
    }
}

/// A text.
pub(crate) fn text(values: &Values) -> Result<Option<String>, Failure> {
    let last = values.all.last();
    last.map(|value| values.utf_8(value)).transpose()
}

/// Texts of a repeatable flag.
pub(crate) fn texts(values: &Values) -> Result<Vec<String>, Failure> {
    values.all.iter().map(|value| values.utf_8(value)).collect()
}

/// A path, or something else that need not be UTF-8.
pub(crate) fn bytes(values: &Values) -> Result<Option<OsString>, Failure> {
    Ok(values.all.last().cloned())
}

/// A path, which must not be empty.
pub(crate) fn path(values: &Values) -> Result<Option<PathBuf>, Failure> {
    match values.all.last() {
        Some(value) if value.is_empty() => Err(usage_error(format!(
            "--{} is empty: expected a path",
            values.long
        ))),
        value => Ok(value.map(PathBuf::from)),
    }
}

/// Paths of a repeatable flag.
pub(crate) fn paths(values: &Values) -> Result<Vec<PathBuf>, Failure> {
    Ok(values.all.iter().map(PathBuf::from).collect())
}

/// A whole number in a range.
pub(crate) fn number<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&Values) -> Result<Option<T>, Failure> {
    move |values| {
        let Some(text) = text(values)? else {
            return Ok(None);
        };
        let number = text.parse().ok().filter(|number| range.contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        let (start, end) = (range.start(), range.end());
        let expected = || format!("expected a whole number from {start} to {end}");
        number
            .map(Some)
            .ok_or_else(|| values.error(&text, expected()))
    }
}

/// A duration in whole seconds.
pub(crate) fn seconds(
    range: RangeInclusive<u64>,
) -> impl Fn(&Values) -> Result<Option<Duration>, Failure> {
    move |values| Ok(number(range.clone())(values)?.map(Duration::from_secs))
}

/// A number of bytes: `500M`, `20G` or, by powers of 1024, `20Gi`.
pub(crate) fn size(values: &Values) -> Result<Option<u64>, Failure> {
    let Some(text) = text(values)? else {
        return Ok(None);
    };
    let size = crate::job::text::size(&text).map(Some);
    size.ok_or_else(|| values.error(&text, "expected bytes, such as 500M or 20G"))
}

/// One of at least two words, each with its meaning.
pub(crate) fn word<T: Copy>(
    words: &'static [(&'static str, T)],
) -> impl Fn(&Values) -> Result<Option<T>, Failure> {
    move |values| {
        let Some(text) = text(values)? else {
            return Ok(None);
        };
        let known = words.iter().find(|(word, _)| *word == text);
        let expected = || {
            let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let (last, others) = names.split_last().unwrap_or((&"", &[]));
            format!("expected {} or {last}", others.join(", "))
        };
        known
            .map(|(_, meaning)| Some(*meaning))
            .ok_or_else(|| values.error(&text, expected()))
    }
}

/// An endpoint of a socket.
pub(crate) fn endpoint(values: &Values) -> Result<Option<Endpoint>, Failure> {
    let text = text(values)?;
    let endpoint = text.map(|text| text.parse()).transpose();
    endpoint.map_err(|error| usage_error(format!("--{}: {error}", values.long)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(words: &[&str]) -> Values {
        Values {
            long: "flag",
            all: words.iter().map(OsString::from).collect(),
        }
    }

    fn line<T: std::fmt::Debug>(read: Result<T, Failure>) -> String {
        match read {
            Err(Failure::Usage(line)) => line,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn words_have_meanings() {
        let read = word(&[("off", 0), ("on", 1), ("strict", 2)]);
        assert_eq!(read(&given(&[])).unwrap(), None);
        assert_eq!(read(&given(&["x", "on"])).unwrap(), Some(1));
        let error = line(read(&given(&["On"])));
        assert_eq!(error, "--flag On: expected off, on or strict");
        let error = line(word(&[("warm", ()), ("spawn", ())])(&given(&[""])));
        assert_eq!(error, "--flag : expected warm or spawn");
    }

    #[test]
    fn numbers_are_in_their_range_and_fit_their_type() {
        let read = number::<u8>(1..=1000);
        assert_eq!(read(&given(&["255"])).unwrap(), Some(255));
        for text in ["0", "256", "1001", "-1", "1.0", "x", ""] {
            let error = line(read(&given(&[text])));
            assert!(error.ends_with("from 1 to 1000"), "{error}");
        }
        let read = seconds(1..=9);
        assert_eq!(read(&given(&["9"])).unwrap(), Some(Duration::from_secs(9)));
    }

    #[test]
    fn sizes_have_units_by_powers_of_1000_or_1024() {
        let sizes = [
            ("0", Some(0)),
            ("17", Some(17)),
            ("17B", Some(17)),
            ("500M", Some(500_000_000)),
            ("2GB", Some(2_000_000_000)),
            ("2Gi", Some(2 << 30)),
            ("1TiB", Some(1 << 40)),
            ("3k", Some(3000)),
            ("", None),
            ("G", None),
            ("1i", None),
            ("-1", None),
            ("+1", None),
            ("1.5G", None),
            ("1E", None),
            ("99999999T", None),
            ("ü", None),
        ];
        for (text, want) in sizes {
            assert_eq!(crate::job::text::size(text), want, "{text}");
            assert_eq!(size(&given(&[text])).ok(), want.map(Some), "{text}");
        }
    }

    #[test]
    fn text_must_be_utf_8_and_bytes_need_not() {
        use std::os::unix::ffi::OsStringExt;
        let odd = OsString::from_vec(vec![b'a', 0xff]);
        let values = Values {
            long: "flag",
            all: vec![odd.clone()],
        };
        assert!(line(text(&values)).ends_with("not UTF-8"));
        assert!(line(texts(&values)).ends_with("not UTF-8"));
        assert_eq!(bytes(&values).unwrap(), Some(odd.clone()));
        assert_eq!(path(&values).unwrap(), Some(odd.into()));
    }
}
