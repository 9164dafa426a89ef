//! The worker's side: reads all lists.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::{KeysInUse, folder, prepare};
use crate::{input_file, limits};

/// True when a file begins with the comment of a secret key ([`limits::SECRET_KEY_MARKS`]).
pub(crate) fn is_secret(path: &Path) -> bool {
    let marks = limits::SECRET_KEY_MARKS.map(str::as_bytes);
    let longest = marks.map(<[u8]>::len).into_iter().max().unwrap_or(0);
    let mut start = Vec::new();
    let read =
        input_file::open(path).and_then(|file| file.take(longest as u64).read_to_end(&mut start));
    read.is_ok() && marks.iter().any(|mark| start.starts_with(mark))
}

/// Those of [`all`] that are files or do not exist at the moment. Other paths, from a wrong option of another
/// program, must not make jobs of this worker fail.
pub(crate) fn files(home: &Path) -> KeysInUse {
    let mut keys = all(home);
    let may_be = |path: &PathBuf| match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            log::warn!(
                "key file of another program: {}: it is no file",
                path.display()
            );
            false
        }
        _ => true,
    };
    keys.secret.retain(may_be);
    keys.lists.retain(may_be);
    keys
}

/// The key files of all running sentinels and workers of this user. Lists of those that have ended are removed.
pub(super) fn all(home: &Path) -> KeysInUse {
    let mut all = KeysInUse::default();
    let entries = prepare(home).and_then(|()| fs::read_dir(folder(home)));
    let entries = match entries {
        Ok(entries) => entries,
        Err(error) => {
            log::warn!("keys of sentinels and other workers are not kept from plugins: {error}");
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
                    log::warn!(
                        "key files of more than {} sentinels and workers",
                        limits::KEY_NOTES_MAX
                    );
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

/// True for an unfinished list that its program must have left: it locks and renames a list at once.
fn is_old(path: &Path) -> bool {
    let written = fs::symlink_metadata(path).and_then(|found| found.modified());
    let age = written.map(|at| at.elapsed().unwrap_or_default());
    age.is_ok_and(|age| age >= limits::KEY_NOTE_UNFINISHED_MAX)
}

/// A number that changes when a program of the user with key files starts or ends, or when one of these
/// files or of `more` is replaced by another file.
pub(crate) fn state(home: &Path, more: &[PathBuf]) -> u64 {
    let mut keys = KeysInUse::default();
    let entries = fs::read_dir(folder(home)).into_iter().flatten().flatten();
    let mut notes: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    notes.retain(|path| !path.as_os_str().as_bytes().ends_with(b"~"));
    notes.sort_unstable();
    notes.truncate(limits::KEY_NOTES_MAX);
    for note in &notes {
        if let Ok(file) = open(note) {
            let mut bytes = Vec::new();
            let _ = file.take(limits::KEY_NOTE_SIZE_MAX).read_to_end(&mut bytes);
            keys.add(&bytes);
        }
    }
    let mut hasher = DefaultHasher::new();
    notes.hash(&mut hasher);
    for path in keys.secret.iter().chain(&keys.lists).chain(more) {
        let found = fs::metadata(path).ok();
        // An inode number is given again once its file is removed.
        let found = found.map(|found| (found.dev(), found.ino(), found.created().ok()));
        (path, found).hash(&mut hasher);
    }
    hasher.finish()
}

fn open(path: &Path) -> io::Result<fs::File> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags.bits().cast_signed());
    options.open(path)
}

/// The content of a list. None when no program has it locked.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match open(path) {
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
