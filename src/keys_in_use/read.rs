//! The worker's side.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::{KeysInUse, folder, prepare};
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
    let entries = prepare(home).and_then(|()| fs::read_dir(folder(home)));
    let entries = match entries {
        Ok(entries) => entries,
        Err(error) => {
            log::warn!("keys of sentinels are not kept from plugins: {error}");
            return all;
        }
    };
    let mut left = limits::KEY_NOTES_MAX;
    for entry in entries.flatten() {
        let path = entry.path();
        let is_unfinished = path.as_os_str().as_bytes().ends_with(b"~");
        if is_unfinished && !is_old(&path) {
            continue;
        }
        match read(&path) {
            Ok(Some(bytes)) if !is_unfinished => {
                let Some(now_left) = left.checked_sub(1) else {
                    log::warn!("key files of more than {} sentinels", limits::KEY_NOTES_MAX);
                    break;
                };
                left = now_left;
                all.add(&bytes);
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                let _ = fs::remove_file(&path);
            }
            Err(error) => log::warn!("{}: {error}", path.display()),
        }
    }
    all
}

/// A sentinel locks and renames its file at once.
fn is_old(path: &Path) -> bool {
    let written = fs::symlink_metadata(path).and_then(|found| found.modified());
    let age = written.map(|at| at.elapsed().unwrap_or_default());
    age.is_ok_and(|age| age >= limits::KEY_NOTE_UNFINISHED_MAX)
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
