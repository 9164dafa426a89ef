//! The cache of environments, `<home>/venvs`: which environments are in use, and which are evicted when the
//! total size is above its limit.
//!
//! A process that uses an environment holds a shared lock on its folder. The kernel releases the lock when
//! the process is killed. An environment is evicted only under the exclusive lock. It is renamed before it is
//! removed, so its name never belongs to an incomplete environment. The next eviction removes what a program
//! that died in between has renamed. The time of last use is the folder's modification time. If the clock
//! jumps, only the order of eviction changes; locks do not depend on it.
//!
//! Sizes are the bytes that the file system has allocated. A file with several hard links, as uv creates them
//! to its own cache, counts once for all environments.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustix::fs::{Timespec, Timestamps, UTIME_OMIT, futimens};

use super::environment::is_hash;
use super::error::Error;
use super::folders::{is_at, move_away, open, sweep};
use crate::lock_file;

/// Prefix of the names of folders with evicted environments.
const EVICTED: &str = ".evicted-";
/// Name of the file that is locked while environments are evicted.
const EVICT_LOCK: &str = ".evict.lock";

/// The shared lock on an environment. The environment is not evicted before this is dropped.
#[derive(Debug)]
pub struct InUse {
    folder: File,
}

/// Result of [`InUse::take`].
#[derive(Debug)]
pub enum Taken {
    /// The environment is locked.
    Held(InUse),
    /// The environment exists and cannot be locked. It is never evicted.
    Unlockable,
    /// Another program holds the exclusive lock for a short time, to check or to evict the environment.
    Busy,
    /// The environment does not exist.
    Missing,
}

impl InUse {
    /// Locks an environment and sets its time of last use. Does not block.
    pub fn take(home: &Path, hash: &str) -> Taken {
        let path = home.join("venvs").join(hash);
        let folder = match open(&path) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Taken::Missing,
            Err(_) => return Taken::Unlockable,
        };
        match folder.try_lock_shared() {
            Ok(()) => {}
            // The holder is not allowed to evict, so it may hold the lock for any time.
            Err(fs::TryLockError::WouldBlock) if is_held_by_stranger(&folder, &path) => {
                return Taken::Unlockable;
            }
            Err(fs::TryLockError::WouldBlock) => return Taken::Busy,
            Err(fs::TryLockError::Error(_)) => return Taken::Unlockable,
        }
        // It may have been renamed between open and lock.
        if !is_at(&folder, &path) {
            return Taken::Missing;
        }
        let taken = InUse { folder };
        taken.touch();
        Taken::Held(taken)
    }

    /// Sets the time of last use.
    pub fn touch(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: i64::try_from(now.as_secs()).unwrap_or(0),
                tv_nsec: now.subsec_nanos().into(),
            },
        };
        // Fails for a folder of another user or on a read-only file system. Then its time of last use is
        // outdated.
        let _ = futimens(&self.folder, &times);
    }
}

/// One environment of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The lockfile's hash.
    pub hash: String,
    /// Time of last use.
    pub used_at: SystemTime,
    /// True if a program uses it.
    pub in_use: bool,
    /// Size in bytes, without files that are also in entries before this one in the list.
    pub size: u64,
}

/// The environments below a home: first those in use, then the others, the last used first.
fn entries(venvs: &Path) -> Vec<Entry> {
    let now = SystemTime::now();
    let mut found = Vec::new();
    for entry in fs::read_dir(venvs).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(hash) = name.to_str().filter(|name| is_hash(name)) else {
            continue;
        };
        let Ok(folder) = open(&entry.path()) else {
            continue;
        };
        let used_at = folder.metadata().and_then(|found| found.modified());
        found.push(Entry {
            hash: hash.to_owned(),
            // A time in the future, set before the clock was moved back, counts as now.
            used_at: used_at.map_or(SystemTime::UNIX_EPOCH, |at| at.min(now)),
            in_use: folder.try_lock().is_err(),
            size: 0,
        });
    }
    found.sort_by(|a, b| (b.in_use, b.used_at, &a.hash).cmp(&(a.in_use, a.used_at, &b.hash)));
    found
}

/// The environments below a home with their sizes: first those in use, then the others, the last used first.
pub fn list(home: &Path) -> Vec<Entry> {
    let venvs = home.join("venvs");
    let mut found = entries(&venvs);
    let mut seen = HashSet::new();
    for entry in &mut found {
        entry.size = size(&venvs.join(&entry.hash), &mut seen, &AtomicBool::new(false));
    }
    found
}

/// The listed environments that are to be evicted so that the others have at most `size_max` bytes: from
/// where the sum of the sizes exceeds `size_max`, all that are not in use.
pub fn excess(listed: &[Entry], size_max: u64) -> Vec<Entry> {
    let mut sum = 0u64;
    let over = |entry: &&Entry| {
        sum = sum.saturating_add(entry.size);
        sum > size_max && !entry.in_use
    };
    listed.iter().filter(over).cloned().collect()
}

/// Evicts the least recently used environments until the others have at most `size_max` bytes. Returns the
/// evicted ones. Blocks while files are read and removed. Does nothing while another program evicts.
pub fn evict(home: &Path, size_max: u64, cancel: &AtomicBool) -> Result<Vec<Entry>, Error> {
    let venvs = home.join("venvs");
    let Some(_lock) = lock(&venvs)? else {
        return Ok(Vec::new());
    };
    for entry in fs::read_dir(&venvs).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(EVICTED.as_bytes()) {
            sweep(&entry.path(), None);
        }
    }
    let mut listed = entries(&venvs);
    let mut seen = HashSet::new();
    let mut sum = 0u64;
    for entry in &mut listed {
        // The sum is already too large, so this one is evicted whatever its size.
        if sum > size_max && !entry.in_use {
            entry.size = 0;
            continue;
        }
        entry.size = size(&venvs.join(&entry.hash), &mut seen, cancel);
        sum = sum.saturating_add(entry.size);
    }
    let mut removed = Vec::new();
    // The least recently used first.
    for entry in excess(&listed, size_max).into_iter().rev() {
        if cancel.load(Ordering::Relaxed) {
            break;
        }
        if remove(&venvs, &entry.hash)? {
            removed.push(entry);
        }
    }
    Ok(removed)
}

/// Removes an environment. Returns false if it is in use or does not exist.
fn remove(venvs: &Path, hash: &str) -> Result<bool, Error> {
    let path = venvs.join(hash);
    let Ok(folder) = open(&path) else {
        return Ok(false);
    };
    if folder.try_lock().is_err() || !is_at(&folder, &path) {
        return Ok(false);
    }
    let away = move_away(&path, venvs, EVICTED)?;
    drop(folder);
    sweep(&away, None);
    Ok(true)
}

/// The lock for eviction. None while another program holds it, or if there are no environments.
fn lock(venvs: &Path) -> Result<Option<File>, Error> {
    let path = venvs.join(EVICT_LOCK);
    let file = match lock_file::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(&path, error)),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(Error::io(&path, error)),
    }
}

/// True if the lock is held by a process of a user who may not evict (neither root nor the folder's owner).
fn is_held_by_stranger(folder: &File, path: &Path) -> bool {
    let holder = lock_file::holder(path);
    let other = holder.and_then(|holder| holder.other_user);
    let owner = folder.metadata().map_or(0, |found| found.uid());
    other.is_some_and(|user| ![0, owner].contains(&user))
}

/// Bytes allocated for a folder and its contents, without files with several links that are in `seen`.
fn size(folder: &Path, seen: &mut HashSet<(u64, u64)>, cancel: &AtomicBool) -> u64 {
    let mut sum = 0u64;
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        if cancel.load(Ordering::Relaxed) {
            break;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(found) = entry.metadata() else {
                continue;
            };
            if found.is_dir() {
                folders.push(entry.path());
            } else if found.nlink() > 1 && !seen.insert((found.dev(), found.ino())) {
                continue;
            }
            // Blocks of 512 bytes, whatever the block size of the file system.
            sum = sum.saturating_add(found.blocks().saturating_mul(512));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    fn hash(number: u32) -> String {
        format!("{number:064x}")
    }

    /// A home with environments of 64 KiB each. The times of last use are given in seconds after 2020-01-01.
    fn home(used: &[(u32, u64)]) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        for (number, at) in used {
            let path = home.path().join("venvs").join(hash(*number));
            fs::create_dir_all(path.join("bin")).unwrap();
            fs::write(path.join("bin/python"), vec![b'x'; 64 << 10]).unwrap();
            set_used(&path, *at);
        }
        home
    }

    fn set_used(path: &Path, at: u64) {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_577_836_800 + at);
        open(path).unwrap().set_modified(time).unwrap();
    }

    /// The numbers of the environments that exist, and the count of other names.
    fn left(home: &Path) -> (Vec<u32>, usize) {
        let names = fs::read_dir(home.join("venvs")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let (hashes, others): (Vec<_>, Vec<_>) = names
            .filter(|name| !name.ends_with(".lock"))
            .partition(|name| is_hash(name));
        let number = |hash: &String| u32::from_str_radix(hash, 16).unwrap();
        let mut numbers: Vec<u32> = hashes.iter().map(number).collect();
        numbers.sort_unstable();
        (numbers, others.len())
    }

    fn evicted(home: &Path, size_max: u64) -> usize {
        evict(home, size_max, &AtomicBool::new(false))
            .unwrap()
            .len()
    }

    #[test]
    fn those_used_longest_ago_go_and_no_more_than_have_to() {
        let home = home(&[(1, 30), (2, 10), (3, 20), (4, 40)]);
        assert_eq!(evicted(home.path(), u64::MAX), 0);
        assert_eq!(evicted(home.path(), 160 * KIB), 2);
        assert_eq!(left(home.path()), (vec![1, 4], 0));
        // Using environment 1 makes environment 4 the least recently used.
        assert!(matches!(InUse::take(home.path(), &hash(1)), Taken::Held(_)));
        assert_eq!(evicted(home.path(), 100 * KIB), 1);
        assert_eq!(left(home.path()), (vec![1], 0));
        assert_eq!(evicted(home.path(), 0), 1);
        assert!(matches!(InUse::take(home.path(), &hash(1)), Taken::Missing));
    }

    #[test]
    fn one_in_use_stays_whatever_the_clock_showed() {
        let home = home(&[(1, 10), (2, 20), (3, 30)]);
        let Taken::Held(in_use) = InUse::take(home.path(), &hash(1)) else {
            panic!("it is there");
        };
        set_used(&home.path().join("venvs").join(hash(1)), 0);
        // The time of last use of another one is in the future.
        set_used(&home.path().join("venvs").join(hash(3)), 10_000_000_000);
        let listed = list(home.path());
        assert!(listed[0].in_use && listed[0].hash == hash(1), "{listed:?}");
        assert!(
            listed
                .iter()
                .all(|entry| entry.used_at <= SystemTime::now())
        );
        assert_eq!(evicted(home.path(), 0), 2);
        assert_eq!(left(home.path()), (vec![1], 0));
        drop(in_use);
        assert_eq!(evicted(home.path(), 0), 1);
    }

    #[test]
    fn a_file_of_several_links_counts_once() {
        let home = home(&[(1, 10), (2, 20)]);
        let file = |number: u32| home.path().join("venvs").join(hash(number)).join("shared");
        fs::write(file(1), vec![b'x'; 1 << 20]).unwrap();
        fs::hard_link(file(1), file(2)).unwrap();
        let sizes: Vec<u64> = list(home.path())
            .iter()
            .map(|entry| entry.size / KIB)
            .collect();
        assert!(sizes[0] >= 1024 + 64 && sizes[1] < 128, "{sizes:?}");
        assert_eq!(evicted(home.path(), 1300 * KIB), 0);
        assert_eq!(excess(&list(home.path()), 1100 * KIB).len(), 1);
    }

    #[test]
    fn what_an_eviction_that_was_killed_has_left_goes_and_nothing_else() {
        let home = home(&[(1, 10)]);
        let venvs = home.path().join("venvs");
        for name in [".evicted-a/it/bin", ".evicted-b", ".0.new-x", "notes"] {
            fs::create_dir_all(venvs.join(name)).unwrap();
        }
        let other = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(other.path(), venvs.join(hash(2))).unwrap();
        assert_eq!(evicted(home.path(), u64::MAX), 0);
        assert_eq!(left(home.path()), (vec![1, 2], 2));
        assert_eq!(evicted(home.path(), 0), 1);
        assert_eq!(left(home.path()), (vec![2], 2), "a link is an operator's");
        assert!(matches!(
            InUse::take(home.path(), &hash(2)),
            Taken::Unlockable
        ));
    }

    #[test]
    fn while_another_program_evicts_nothing_goes() {
        let home = home(&[(1, 10)]);
        let held = lock(&home.path().join("venvs")).unwrap();
        assert!(held.is_some());
        assert_eq!(evicted(home.path(), 0), 0);
        drop(held);
        assert_eq!(evicted(home.path(), 0), 1);
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(evicted(empty.path(), 0), 0);
    }
}
