//! Functions for text: truncation, line ends, bytes as text, sizes.

#[cfg(feature = "worker")]
use std::ffi::OsStr;

/// The end of a text that was truncated.
pub(crate) const CUT_MARK: &str = " … (truncated)";

/// Ends the reason of a failure whose input had changed in each attempt.
#[cfg(feature = "sentinel")]
pub(crate) const CHANGED_EACH_TIME: &str = "it changed each time, perhaps by the plugin itself";

/// The longest prefix of a text with at most `size_max` bytes that ends between characters.
pub(crate) fn prefix(text: &str, size_max: usize) -> &str {
    let mut end = size_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or("")
}

/// Truncates a text to at most `size_max` bytes, including the mark at its end.
pub(crate) fn cut(text: &mut String, size_max: usize) {
    if text.len() > size_max {
        let end = prefix(text, size_max.saturating_sub(CUT_MARK.len())).len();
        text.truncate(end);
        text.push_str(CUT_MARK);
    }
}

/// A Python source with all line ends that Python recognizes (`\n`, `\r\n` and `\r`) as `\n`.
#[cfg(any(feature = "sentinel", feature = "worker", feature = "cli"))]
pub(crate) fn with_line_feeds(source: &str) -> std::borrow::Cow<'_, str> {
    match source.contains('\r') {
        true => source.replace("\r\n", "\n").replace('\r', "\n").into(),
        false => source.into(),
    }
}

/// A text with `; ` and `more` appended to its first line.
#[cfg(feature = "sentinel")]
pub(crate) fn with_first_line(text: &str, more: &str) -> String {
    let (first, rest) = text.split_at(text.find('\n').unwrap_or(text.len()));
    format!("{first}; {more}{rest}")
}

/// Bytes as lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let digits = String::with_capacity(2 * bytes.len());
    bytes.iter().fold(digits, |mut digits, byte| {
        // Writing to a String does not fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// Bytes as text, for paths and variables in JSON that need not be UTF-8: one character for each
/// byte, U+0000 to U+00FF (ISO 8859-1).
#[cfg(feature = "worker")]
pub(crate) fn of_bytes(bytes: impl AsRef<OsStr>) -> String {
    let bytes = bytes.as_ref().as_encoded_bytes();
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Serde functions for a list of paths, each as the text of [`of_bytes`].
#[cfg(feature = "worker")]
pub(crate) mod paths {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(super::of_bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<PathBuf>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|text| of_text(text)).collect()
    }

    pub(super) fn of_text<E: Error>(text: &str) -> Result<PathBuf, E> {
        let bytes: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
        let bytes = bytes.map_err(E::custom)?;
        Ok(OsString::from_vec(bytes).into())
    }
}

/// Serde functions for one path, as in [`paths`].
#[cfg(feature = "worker")]
pub(crate) mod path {
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::of_bytes(path))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        super::paths::of_text(&String::deserialize(from)?)
    }
}

/// Parses a number of bytes, such as `500M`, `20G` or, with powers of 1024, `20Gi`.
#[cfg(any(feature = "worker", feature = "cli"))]
pub(crate) fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..)?.trim_end_matches('B');
    let (letter, base) = match unit.strip_suffix('i') {
        Some(letter) => (letter, 1024u64),
        None => (unit, 1000),
    };
    let power = match letter {
        "" if base == 1000 => 0,
        "K" | "k" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return None,
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| is_number)?;
    number.checked_mul(base.pow(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(prefix("aé", 2), "a");
        assert_eq!(prefix("aé", 3), "aé");
        let mut short = "short".to_owned();
        cut(&mut short, 5);
        assert_eq!(short, "short");
        for size_max in CUT_MARK.len()..40 {
            let mut long = "é".repeat(100);
            cut(&mut long, size_max);
            assert!(long.len() <= size_max && long.ends_with(CUT_MARK), "{long}");
        }
    }
}
