//! Names of published files, and their URIs.

use std::fs;
use std::path::{Path, PathBuf};

use crate::job::{Attempt, name_parts};

/// The job that published a file, as the file's name identifies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) job_id: i64,
    pub(super) incarnation: i64,
    /// First 8 digits of the UUID of the job's database, if another database owns the root.
    pub(super) suffix: Option<String>,
}

impl Holder {
    pub(super) fn new(attempt: Attempt, suffix: Option<String>) -> Self {
        Holder {
            job_id: attempt.job_id,
            incarnation: attempt.incarnation(),
            suffix,
        }
    }

    /// `7`, `7r2`, `7_0123abcd`, `7r2_0123abcd`.
    fn text(&self) -> String {
        let mut text = self.job_id.to_string();
        if self.incarnation > 0 {
            text.push_str(&format!("r{}", self.incarnation));
        }
        if let Some(suffix) = &self.suffix {
            text.push_str(&format!("_{suffix}"));
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let (number, suffix) = match text.split_once('_') {
            Some((number, suffix)) => {
                let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
                if suffix.len() != SUFFIX_SIZE || !suffix.bytes().all(hex) {
                    return None;
                }
                (number, Some(suffix.to_owned()))
            }
            None => (text, None),
        };
        let (job, incarnation) = number.split_once('r').unwrap_or((number, "0"));
        if !digits(job.strip_prefix('-').unwrap_or(job)) || !digits(incarnation) {
            return None;
        }
        Some(Holder {
            job_id: job.parse().ok()?,
            incarnation: incarnation.parse().ok()?,
            suffix,
        })
    }
}

const SUFFIX_SIZE: usize = 8;

/// The suffix of the names of a database's files in a root that another database owns.
pub(super) fn suffix(database: &str) -> String {
    let hex = |c: &char| matches!(c, '0'..='9' | 'a'..='f');
    let digits: String = database.chars().filter(hex).take(SUFFIX_SIZE).collect();
    format!("{digits:0<8}")
}

/// The path of a job's file for a sink's path: `o.parquet` gives `o_<job>.parquet`. A path without an
/// extension is a folder, in which the file is `data_<job>.parquet`.
pub(super) fn file(path: &Path, holder: &Holder) -> PathBuf {
    let (folder, stem, extension) = name_parts(path);
    folder.join(format!("{stem}_{}.{extension}", holder.text()))
}

/// Files of other jobs (of any database) for the sink at `path`, by their names.
pub(super) fn siblings(path: &Path, own: &Holder) -> Vec<(PathBuf, Holder)> {
    let (folder, stem, extension) = name_parts(path);
    let Ok(entries) = fs::read_dir(&folder) else {
        return Vec::new();
    };
    let (prefix, suffix) = (format!("{stem}_"), format!(".{extension}"));
    let holder = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        Holder::parse(name.strip_prefix(&prefix)?.strip_suffix(&suffix)?)
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter_map(|path| holder(&path).map(|holder| (path, holder)))
        .filter(|(_, holder)| holder != own)
        .collect()
}

/// The other meaning of an ambiguous file name: `o_1_01234567` is a file of sink `o` and job 1 of another
/// database, or of sink `o_1` and job 01234567. `None` if the name has only the meaning of `holder`.
pub(super) fn other_reading(path: &Path, holder: &Holder) -> Option<Holder> {
    let stem = path.file_stem()?.to_str()?;
    let (before, last) = stem.rsplit_once('_')?;
    let other = match holder.suffix {
        Some(_) => Holder::parse(last),
        None => Holder::parse(&format!("{}_{last}", before.rsplit_once('_')?.1)),
    };
    other.filter(|other| is_of(path, other))
}

/// The path of the sink for which a holder's file was published. `None` if the name is not one of the
/// holder.
pub(super) fn sink_of(path: &Path, holder: &Holder) -> Option<PathBuf> {
    let stem = path.file_stem()?.to_str()?;
    let stem = stem.strip_suffix(&format!("_{}", holder.text()))?;
    let extension = path.extension()?.to_str()?;
    Some(path.with_file_name(format!("{stem}.{extension}")))
}

/// True when a file's name is one of a holder's output.
pub(super) fn is_of(path: &Path, holder: &Holder) -> bool {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let text = format!("_{}", holder.text());
    stem.is_some_and(|stem| stem.ends_with(&text))
}

/// Limit of the bytes of a topic's name.
const TOPIC_SIZE_MAX: usize = 255;

/// A topic's name. Longer names are cut to 255 bytes with a hash, which distinguishes names with the same
/// beginning.
pub(super) fn topic(name: &str) -> String {
    if name.len() <= TOPIC_SIZE_MAX {
        return name.to_owned();
    }
    let hash = format!("~{:016x}", crate::job::hash(name));
    let mut end = TOPIC_SIZE_MAX - hash.len();
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{hash}", name.get(..end).unwrap_or_default())
}

/// Converts a text to a name that every file system and reader accepts, of at most `size_max` bytes. It
/// has letters and digits of any script, `-`, `_` and `.`; other characters are replaced by `_`. It does
/// not begin with `_` or `.`, because readers ignore such files.
pub(super) fn readable(text: &str, size_max: usize) -> String {
    let is_plain = |c: char| match c.is_ascii() {
        true => c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'),
        false => !c.is_control() && !c.is_whitespace() && !is_invisible(c),
    };
    let text: String = text
        .trim_start_matches(['_', '.'])
        .chars()
        .map(|c| if is_plain(c) { c } else { '_' })
        .collect();
    let text = text.trim_start_matches(['_', '.']);
    let mut end = text.len().min(size_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

/// True for characters that are invisible, or that change how others are shown.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff0}'..='\u{ffff}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{10ffff}')
}

/// URI of a published file.
pub(super) fn file_uri(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// URI of a table.
pub(super) fn table_uri(database: &Path, table: &str) -> String {
    format!("sqlite://{}/{table}", database.display())
}

/// The absolute path in the URI of a file.
pub(super) fn file_of(uri: &str) -> Option<&Path> {
    let path = Path::new(uri.strip_prefix("file://")?);
    path.is_absolute().then_some(path)
}

/// The absolute path of the database and the table in the URI of a table.
pub(super) fn table_of(uri: &str) -> Option<(&str, &str)> {
    let (database, table) = uri.strip_prefix("sqlite://")?.rsplit_once('/')?;
    database.starts_with('/').then_some((database, table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_in_any_script_and_bounded() {
        let long = "長".repeat(100);
        for (text, want) in [
            ("a.b-c_d", "a.b-c_d"),
            ("東京", "東京"),
            ("हिन्दी", "हिन्दी"),
            ("a/b c=d%20?", "a_b_c_d_20_"),
            ("a\u{0}b\u{202e}c\u{a0}d\n", "a_b_c_d_"),
            ("__x", "x"),
            ("._.x_", "x_"),
            ("/x", "x"),
            ("..", ""),
            (&long, &"長".repeat(33)),
        ] {
            assert_eq!(readable(text, 100), want, "{text:?}");
        }
    }

    #[test]
    fn names_identify_the_publisher_of_a_file() {
        for (job, incarnation, suffix, name) in [
            (7, 0, None, "d/o_7.parquet"),
            (7, 2, None, "d/o_7r2.parquet"),
            (7, 0, Some("0123abcd"), "d/o_7_0123abcd.parquet"),
            (-7, 1, Some("0123abcd"), "d/o_-7r1_0123abcd.parquet"),
        ] {
            let holder = Holder {
                job_id: job,
                incarnation,
                suffix: suffix.map(str::to_owned),
            };
            let path = file(Path::new("d/o.parquet"), &holder);
            assert_eq!(path, Path::new(name));
            assert!(is_of(&path, &holder), "{name}");
            let sink = PathBuf::from("d/o.parquet");
            assert_eq!(sink_of(&path, &holder), Some(sink));
            for other in [Attempt::new(70, 1), Attempt::new(8, 1)] {
                assert!(!is_of(&path, &Holder::new(other, None)), "{name}");
            }
            assert_eq!(Holder::parse(&holder.text()), Some(holder));
        }
        for text in [
            "",
            "x",
            "7_",
            "7r",
            "r7",
            "7_0123ABCD",
            "7_0123abc",
            "7-1",
            "notes",
        ] {
            assert_eq!(Holder::parse(text), None, "{text}");
        }
    }
}
