//! Locks a database, so that only one sentinel at a time works on it. There are two `flock` locks, which end
//! with their process:
//!
//! - On the database file itself, so that neither a removed lock file nor another name of the file
//!   (a hard link, a bind mount) admits a second sentinel. On Linux such a lock is independent of
//!   the `fcntl` locks of SQLite on the same file. Network file systems, and other operating systems, convert
//!   one kind into the other. There only the lock file counts.
//! - On `<name>.sentinel-lock` beside it. So a database that replaces another one at the same path is not
//!   used while the sentinel of the first one runs. Both would have the same WAL file. The lock file is never
//!   removed: otherwise two programs could lock two files of the same name.
//!
//! When a process closes any descriptor of a file, it loses all of its `fcntl` locks on the file. So a
//! descriptor of a database that was opened here stays open until the process ends.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};

use super::{Error, Open, io_passes};
use crate::limits;
use crate::lock_file;

/// The locks of a sentinel on its database. Dropping it releases them.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
    inode: Inode,
}

impl Lock {
    /// The lock file.
    #[cfg(test)]
    fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the file at a path is the locked one.
    ///
    /// # Errors
    /// [`Error::Replaced`] when it is another file.
    pub fn check(&self, database: &Path) -> Result<(), Error> {
        match std::fs::metadata(database) {
            Ok(found) if key(&found) == self.inode.key => Ok(()),
            _ => Err(Error::Replaced {
                path: database.to_owned(),
                reason: "it was replaced by another file",
            }),
        }
    }
}

impl Drop for Lock {
    /// Unlocks explicitly. A forked child that has not called exec yet has the descriptor, too, and would
    /// keep the lock until then.
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.file, FlockOperation::Unlock) {
            log::debug!("lock file {}: {error}", self.path.display());
        }
    }
}

/// Device and inode.
type Key = (u64, u64);

fn key(metadata: &std::fs::Metadata) -> Key {
    (metadata.dev(), metadata.ino())
}

/// Database files that this process has opened here, by device and inode.
static FILES: Mutex<BTreeMap<Key, Opened>> = Mutex::new(BTreeMap::new());

#[derive(Debug, Default)]
struct Opened {
    /// One, or more when another file was put at the path between two system calls.
    descriptors: Vec<File>,
    is_locked: bool,
}

fn files() -> MutexGuard<'static, BTreeMap<Key, Opened>> {
    FILES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lock on the database file itself.
#[derive(Debug)]
struct Inode {
    key: Key,
}

impl Inode {
    /// Locks the file at a path. It is created, or must exist ([`Open`]).
    fn lock(database: &Path, open: Open) -> Result<Self, Error> {
        let mut files = files();
        let key = open_once(&mut files, database, open)?;
        let opened = files.entry(key).or_default();
        let locked = || Error::Locked {
            path: database.to_owned(),
            lock: database.to_owned(),
        };
        if opened.is_locked {
            return Err(locked());
        }
        if let Some(file) = opened.descriptors.first()
            && is_independent(file)
        {
            match lock_exclusively(file) {
                Ok(()) => {}
                Err(error) if error == rustix::io::Errno::WOULDBLOCK => return Err(locked()),
                Err(error) => return Err(refusal(database, "cannot lock it", error.into())),
            }
        }
        opened.is_locked = true;
        Ok(Inode { key })
    }

    /// Whether a process has locked the file at a path. None where that cannot be determined.
    fn is_locked(database: &Path) -> Option<bool> {
        let mut files = files();
        let key = open_once(&mut files, database, Open::Existing).ok()?;
        let opened = files.get(&key)?;
        match opened.descriptors.first() {
            _ if opened.is_locked => Some(true),
            Some(file) if is_independent(file) => is_locked(file),
            _ => Some(false),
        }
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        let mut files = files();
        let Some(opened) = files.get_mut(&self.key) else {
            return;
        };
        opened.is_locked = false;
        if let Some(file) = opened.descriptors.first()
            && is_independent(file)
            && let Err(error) = rustix::fs::flock(file, FlockOperation::Unlock)
        {
            log::debug!("database lock: {error}");
        }
    }
}

/// The key of the file at a path. Opens the file unless it is already open.
fn open_once(files: &mut BTreeMap<Key, Opened>, database: &Path, open: Open) -> Result<Key, Error> {
    if let Ok(found) = std::fs::metadata(database)
        && files.contains_key(&key(&found))
    {
        return Ok(key(&found));
    }
    let (key, file) = open_database(database, open)?;
    files.entry(key).or_default().descriptors.push(file);
    Ok(key)
}

/// Locks a file. WOULDBLOCK when another program keeps it locked. Tries several times, because programs that
/// check for a sentinel ([`has_sentinel`]) lock it for a moment.
fn lock_exclusively(file: &File) -> rustix::io::Result<()> {
    for _ in 1..limits::LOCK_TRIES {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(limits::LOCK_PAUSE),
            result => return result,
        }
    }
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// Whether a process has locked a file exclusively. None where that cannot be determined.
fn is_locked(file: &File) -> Option<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            rustix::fs::flock(file, FlockOperation::Unlock).ok()?;
            Some(false)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Some(true),
        Err(_) => None,
    }
}

fn open_database(database: &Path, open: Open) -> Result<(Key, File), Error> {
    let fail = |reason: &str| Error::Open {
        path: database.to_owned(),
        reason: reason.to_owned(),
        passes: false,
    };
    let create = match open {
        Open::Create => OFlags::CREATE,
        Open::Existing => OFlags::empty(),
    };
    // NONBLOCK, so that opening a FIFO does not block.
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | create;
    let mode = Mode::RUSR | Mode::WUSR;
    let open_as = |access| rustix::fs::openat(CWD, database, flags | access, mode);
    // For writing, because an overlay file system gives a file another inode at the first open for writing. A
    // file that can only be read is an error when SQLite opens it.
    let opened = open_as(OFlags::RDWR).or_else(|error| match error {
        rustix::io::Errno::ACCESS | rustix::io::Errno::ROFS => open_as(OFlags::RDONLY),
        error => Err(error),
    });
    let descriptor = match opened {
        Ok(descriptor) => descriptor,
        Err(rustix::io::Errno::NOENT) if open == Open::Existing => {
            return Err(Error::Missing {
                path: database.to_owned(),
            });
        }
        Err(rustix::io::Errno::ISDIR) => return Err(fail("it is a directory")),
        Err(error) => return Err(refusal(database, "cannot open it", error.into())),
    };
    let file = File::from(descriptor);
    let found = file.metadata();
    let found = found.map_err(|error| refusal(database, "cannot read its metadata", error))?;
    match found.is_file() {
        true => Ok((key(&found), file)),
        false if found.is_dir() => Err(fail("it is a directory")),
        false => Err(fail("it is not a regular file")),
    }
}

/// Refuses a file that is no SQLite database, so that no lock file is created beside it. An empty file is
/// accepted, because a database that is being created is empty.
fn check_head(database: &Path) -> Result<(), Error> {
    const HEAD: &[u8; 16] = b"SQLite format 3\0";
    let files = files();
    let found = std::fs::metadata(database);
    let found = found.map_err(|error| refusal(database, "cannot read its metadata", error))?;
    let opened = files.get(&key(&found));
    let Some(file) = opened.and_then(|opened| opened.descriptors.first()) else {
        return Ok(());
    };
    let mut head = [0; 16];
    let is_other = found.len() > 0 && file.read_exact_at(&mut head, 0).is_ok() && head != *HEAD;
    match is_other || (1..16).contains(&found.len()) {
        false => Ok(()),
        true => Err(Error::Open {
            path: database.to_owned(),
            reason: "it is no SQLite database".to_owned(),
            passes: false,
        }),
    }
}

/// The error for a database that cannot be opened.
fn refusal(database: &Path, what: &str, error: std::io::Error) -> Error {
    Error::Open {
        path: database.to_owned(),
        passes: io_passes(&error),
        reason: format!("{what}: {error}"),
    }
}

/// True where `flock` and `fcntl` locks of a file are independent.
#[cfg(target_os = "linux")]
fn is_independent(file: &File) -> bool {
    /// NFS, CIFS, SMB2, SMB, 9P (statfs(2)).
    const DEPENDENT: [i128; 5] = [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x517b, 0x0102_1997];
    rustix::fs::fstatfs(file)
        .is_ok_and(|found| !DEPENDENT.contains(&(i128::from(found.f_type) & 0xffff_ffff)))
}

#[cfg(not(target_os = "linux"))]
fn is_independent(_file: &File) -> bool {
    false
}

/// Tries to open and lock a lock file that another program removes meanwhile.
const TRIES_MAX: usize = 10;

/// Locks a database against other sentinels, as the head of the module describes. Symbolic links are
/// followed. Does not wait for another sentinel to end.
///
/// # Errors
/// [`Error::Locked`] when another sentinel has the locks, [`Error::Lock`] when the lock file cannot be
/// created or is not a regular one, [`Error::Open`] or [`Error::Missing`] when the database
/// cannot be opened.
pub fn lock_database(database: &Path, open: Open) -> Result<Lock, Error> {
    let inode = Inode::lock(database, open)?;
    check_head(database)?;
    let path = lock_path(database)?;
    let fail = |what: &str, error: std::io::Error| Error::Lock {
        lock: path.clone(),
        passes: io_passes(&error),
        reason: format!("{what}: {error}"),
    };
    let no_file = |reason: &str| Error::Lock {
        lock: path.clone(),
        reason: reason.to_owned(),
        passes: false,
    };
    for _ in 0..TRIES_MAX {
        let file = lock_file::open(&path).map_err(|error| fail("cannot open it", error))?;
        let opened = file.metadata();
        let opened = opened.map_err(|error| fail("cannot read its metadata", error))?;
        match lock_exclusively(&file) {
            Ok(()) => {}
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
                return Err(Error::Locked {
                    path: database.to_owned(),
                    lock: path,
                });
            }
            Err(error) => return Err(fail("cannot lock it", error.into())),
        }
        let same = std::fs::symlink_metadata(&path)
            .is_ok_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino()));
        if same {
            return Ok(Lock { path, file, inode });
        }
    }
    Err(no_file("another program keeps removing it"))
}

/// Whether a sentinel works on a database. Does not wait, and does not prevent a sentinel from starting. None
/// where this cannot be determined, because the lock file is another user's.
pub(super) fn has_sentinel(database: &Path) -> Option<bool> {
    let found = std::fs::metadata(database).ok()?;
    // A lock that this process has is not tested, because that would change it.
    if files()
        .get(&key(&found))
        .is_some_and(|opened| opened.is_locked)
    {
        return Some(true);
    }
    let path = lock_path(database).ok()?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
        Ok(file) => match is_locked(&File::from(file)) {
            Some(true) => Some(true),
            // This lock file may have replaced the locked one.
            _ => Inode::is_locked(database),
        },
        // There was no sentinel yet, or its lock file was removed.
        Err(rustix::io::Errno::NOENT) => Inode::is_locked(database),
        Err(_) => None,
    }
}

fn lock_path(database: &Path) -> Result<PathBuf, Error> {
    let real = std::fs::canonicalize(database);
    let real = real.map_err(|error| refusal(database, "cannot resolve its path", error))?;
    let mut name: OsString = real
        .file_name()
        .ok_or_else(|| {
            refusal(
                database,
                "its path",
                std::io::ErrorKind::IsADirectory.into(),
            )
        })?
        .to_owned();
    name.push(".sentinel-lock");
    Ok(real.with_file_name(name))
}

#[cfg(test)]
mod tests;
