//! The worker's side.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::{KeysInUse, folder};
use crate::{input_file, limits};

/// True for the file of a secret key.
pub(crate) fn is_secret(path: &Path) -> bool {
    let marks = limits::SECRET_KEY_MARKS.map(str::as_bytes);
    let longest = marks.map(<[u8]>::len).into_iter().max().unwrap_or(0);
    let mut start = Vec::new();
    let read =
        input_file::open(path).and_then(|file| file.take(longest as u64).read_to_end(&mut start));
    read.is_ok() && marks.iter().any(|mark| start.starts_with(mark))
}

/// The key files of all sentinels of this user that run. Files of others that have ended are removed.
pub(crate) fn all(home: &Path) -> KeysInUse {
    let mut all = KeysInUse::default();
    let Ok(entries) = fs::read_dir(folder(home)) else {
        return all;
    };
    for entry in entries.flatten().take(limits::KEY_NOTES_MAX) {
        let path = entry.path();
        if path.as_os_str().as_bytes().ends_with(b"~") {
            continue;
        }
        match read(&path) {
            Ok(Some(bytes)) => all.add(&bytes),
            Ok(None) => {
                let _ = fs::remove_file(&path);
            }
            Err(error) => log::warn!("{}: {error}", path.display()),
        }
    }
    all
}

/// The content of a file that a sentinel holds; none when it has ended.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(flags.bits().cast_signed());
    let file = match file.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Vec::new())),
        Err(error) => return Err(error),
    };
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(limits::KEY_NOTE_SIZE_MAX)
        .read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

impl KeysInUse {
    fn add(&mut self, bytes: &[u8]) {
        for record in bytes.split(|byte| *byte == 0) {
            let Some((mark, path)) = record.split_first() else {
                continue;
            };
            let path = PathBuf::from(OsString::from_vec(path.to_vec()));
            match (mark, path.is_absolute()) {
                (b'S', true) => self.secret.push(path),
                (b'L', true) => self.lists.push(path),
                _ => {}
            }
        }
    }
}
