//! A plugin that is a folder, as one source text: the source of the entry file, then the folder's other files
//! as comment lines. `folder.py` unpacks them in the plugin process.
//!
//! ```text
//! <source of the entry file>
//!
//! # casparian folder 1
//! # {"name":"sales","entry":"plugin.py","files":[{"path":"helper.py","size":12}, …]}
//! # <base64 of the files' contents, one after the other>
//! # casparian folder 1: <bytes of the entry file's source>
//! ```
//!
//! So a folder has a source, hash, signature and version as a single file has. A worker that does not read
//! the comments fails at the first import of another module of the folder. The text does not depend on times,
//! owners, or the release of a compressor. It is parsed from its end, so no text in the entry file can be
//! mistaken for these lines.

use std::collections::BTreeSet;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::limits;

const MARK: &str = "# casparian folder 1";
/// Characters in a line of base64; a multiple of four.
const LINE_SIZE: usize = 1024;

/// Content of the JSON line in the comment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// The folder's name. Of a package, the name of the module.
    pub name: String,
    /// Path of the entry file.
    pub entry: String,
    /// The other files, in ascending order of their paths.
    pub files: Vec<File>,
}

/// A file of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Path relative to the folder, separated by `/`.
    pub path: String,
    /// Size in bytes.
    pub size: usize,
    /// True if the file is executable.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

impl Folder {
    /// Upper bound of the bytes on disk that the folder's files and folders, and what `work.py` adds, occupy.
    /// `entry_size_max` bounds the size of the entry file.
    pub fn unpacked_size(&self, entry_size_max: usize) -> u64 {
        let on_disk = |size: usize| (size as u64).max(1).next_multiple_of(4096);
        let folders: BTreeSet<&str> = self
            .files
            .iter()
            .flat_map(|file| parents(&file.path))
            .collect();
        let files = self
            .files
            .iter()
            .map(|file| on_disk(file.size.min(limits::SOURCE_SIZE_MAX)));
        let files: u64 = files.sum();
        // `work.py` adds at most eight files and folders.
        files + on_disk(entry_size_max) + on_disk(0) * (folders.len() as u64 + 8)
    }
}

/// The paths of the folders above a file.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/')
        .filter_map(move |(end, _)| path.get(..end))
}

/// Why the comment lines cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the plugin's folder in its source: {}; deploy the folder again",
            self.0
        )
    }
}

impl std::error::Error for Error {}

/// The text of a folder. `contents` is the contents of `folder.files`, concatenated.
pub fn pack(folder: &Folder, entry_source: &str, contents: &[u8]) -> String {
    // Serialising strings and numbers cannot fail.
    let head = serde_json::to_string(folder).unwrap_or_default();
    let data = STANDARD.encode(contents);
    let room = entry_source.len() + head.len() + data.len() / LINE_SIZE * 3 + data.len() + 128;
    let mut text = String::with_capacity(room);
    text.push_str(entry_source);
    for part in ["\n\n", MARK, "\n# ", &head, "\n"] {
        text.push_str(part);
    }
    let mut rest = data.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(LINE_SIZE.min(rest.len()));
        for part in ["# ", line, "\n"] {
            text.push_str(part);
        }
        rest = more;
    }
    text.push_str(&format!("{MARK}: {}\n", entry_source.len()));
    text
}

/// The source of the entry file, and the text after its mark if the plugin is a folder.
fn split(source: &str) -> (&str, Option<&str>) {
    let found = || {
        let (rest, last) = source.strip_suffix('\n')?.rsplit_once('\n')?;
        let size = last.strip_prefix(MARK)?.strip_prefix(": ")?;
        if size.is_empty() || size.len() > 9 || !size.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (entry, behind) = rest.split_at_checked(size.parse().ok()?)?;
        let behind = behind.strip_prefix("\n\n")?.strip_prefix(MARK)?;
        Some((entry, behind.strip_prefix('\n')?))
    };
    match found() {
        Some((entry, behind)) => (entry, Some(behind)),
        None => (source, None),
    }
}

/// The source of the entry file: all of it where the plugin is a single file.
pub fn entry_source(source: &str) -> &str {
    split(source).0
}

/// The folder of a source, or none if the plugin is a single file. The contents are not decoded.
pub fn of_source(source: &str) -> Result<Option<Folder>, Error> {
    match split(source).1 {
        Some(behind) => Ok(Some(read(behind)?.0)),
        None => Ok(None),
    }
}

/// The list of files, and the lines of their contents.
fn read(behind: &str) -> Result<(Folder, &str), Error> {
    let (head, lines) = behind.split_once('\n').unwrap_or((behind, ""));
    let head = head.strip_prefix("# ").unwrap_or_default();
    let folder: Folder = serde_json::from_str(head)
        .map_err(|error| Error(format!("the list of its files cannot be read: {error}")))?;
    let count = folder.files.len();
    if count > limits::FOLDER_FILES_MAX {
        let most = limits::FOLDER_FILES_MAX;
        return Err(Error(format!("{count} files, at most {most}")));
    }
    Ok((folder, lines))
}

/// The content of one file of a folder, or none if there is no such file.
pub fn content(source: &str, path: &str) -> Result<Option<Vec<u8>>, Error> {
    let Some(behind) = split(source).1 else {
        return Ok(None);
    };
    let (folder, lines) = read(behind)?;
    let mut start = 0usize;
    let mut found = None;
    for file in &folder.files {
        let end = start.saturating_add(file.size);
        if file.path == path {
            found = Some(start..end);
        }
        start = end;
    }
    let Some(range) = found else {
        return Ok(None);
    };
    let lines = lines.lines().map(|line| line.strip_prefix("# "));
    let data: Option<String> = lines.collect();
    let data = data.and_then(|data| STANDARD.decode(data).ok());
    let Some(data) = data.filter(|data| data.len() == start) else {
        let reason = "the contents of its files are not those of its list";
        return Err(Error(reason.to_owned()));
    };
    Ok(data.get(range).map(<[u8]>::to_vec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, usize)]) -> Folder {
        let file = |(path, size): &(&str, usize)| File {
            path: (*path).to_owned(),
            size: *size,
            executable: false,
        };
        Folder {
            name: "p".to_owned(),
            entry: "plugin.py".to_owned(),
            files: files.iter().map(file).collect(),
        }
    }

    #[test]
    fn a_folder_comes_back_whatever_its_entry_file_contains() {
        let inner = pack(&folder(&[("x", 1)]), "x = 1\n", b"x");
        let contents = vec![0xff; 5000];
        for entry in [
            "",
            "x = 1",
            "x = 1\n",
            "\u{feff}é\r\n",
            &inner,
            "# casparian folder 1: 0\n",
        ] {
            for size in [0, 1, 766, 768, 5000] {
                let given = folder(&[("a", 0), ("b", size)]);
                let text = pack(&given, entry, &contents[..size]);
                assert_eq!(entry_source(&text), entry);
                assert_eq!(of_source(&text).unwrap().as_ref(), Some(&given));
                assert_eq!(content(&text, "b").unwrap().unwrap(), &contents[..size]);
                assert_eq!(content(&text, "c").unwrap(), None);
                assert!(text.lines().all(|line| line.len() <= LINE_SIZE + 2));
            }
        }
    }

    #[test]
    fn what_only_resembles_a_folder_is_a_single_file() {
        let text = pack(&folder(&[("x", 1)]), "x = 1\n", b"x");
        let more = format!("{text}\n");
        for source in [
            "",
            "\n",
            "# casparian folder 1: 0\n",
            "# casparian folder 1\n# casparian folder 1: 0\n",
            "x = 1\n\n# casparian folder 1\n# {}\n# casparian folder 1: 99\n",
            "x = 1\n\n# casparian folder 1\n# {}\n# casparian folder 1: -5\n",
            "é\n\n# casparian folder 1\n# casparian folder 1: 1\n",
            text.trim_end(),
            &more,
        ] {
            assert_eq!(entry_source(source), source);
            assert_eq!(of_source(source), Ok(None));
            assert_eq!(content(source, "x"), Ok(None));
        }
    }

    #[test]
    fn a_damaged_folder_is_an_error() {
        let text = pack(&folder(&[("x", 3)]), "", b"xyz");
        for (from, to) in [
            ("\"size\":3", "\"size\":4"),
            ("\"size\":3", "\"size\":18446744073709551615"),
            ("\"size\":3", "\"size\":-1"),
            ("# eHl6", "# eHl"),
            ("# eHl6", "eHl6"),
            ("# {", "# ["),
        ] {
            let damaged = text.replace(from, to);
            assert_ne!(damaged, text);
            assert!(content(&damaged, "x").is_err(), "{damaged}");
        }
    }
}
