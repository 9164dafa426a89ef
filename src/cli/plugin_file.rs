//! The source text of a plugin, read from its file or folder.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::input_file;

/// The reason if a plugin's file has another encoding.
pub(super) const NOT_UTF_8: &str =
    "it is not UTF-8 text, which a plugin must be whatever its coding line is; save it as UTF-8";

/// A plugin's file or folder, read.
pub(super) struct PluginFile {
    pub(super) name: String,
    pub(super) source: String,
    /// Folder to which relative paths in its metadata are relative.
    pub(super) folder: PathBuf,
    /// Possible paths of the lockfile for its metadata.
    pub(super) locks: Vec<PathBuf>,
}

/// The text of a file of at most `size_max` bytes, without a byte order mark.
pub(super) fn read_text(path: &Path, size_max: u64) -> io::Result<String> {
    let mut text = String::new();
    let file = input_file::open(path)?;
    if file.metadata()?.len() > size_max {
        return Err(io::Error::other(format!("larger than {size_max} bytes")));
    }
    file.take(size_max).read_to_string(&mut text)?;
    match text.strip_prefix('\u{feff}') {
        Some(text) => Ok(text.to_owned()),
        None => Ok(text),
    }
}
