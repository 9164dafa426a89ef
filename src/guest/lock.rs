//! Locks on files, by which programs create an environment once, and who holds them.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{OFlags, major, minor};

use super::environment::Error;
use super::tool::POLL_INTERVAL;
use crate::limits;
use crate::reactor::BootTime;

/// A file lock that is held until it is dropped.
pub(super) struct Lock {
    _file: fs::File,
}

impl Lock {
    /// Waits for the lock, but not for a process that is stopped.
    pub(super) fn take(
        path: &Path,
        cancel: &AtomicBool,
        message: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        if let Some(folder) = path.parent() {
            super::home::create(folder)?;
        }
        // A FIFO in its place must not make it wait.
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed())
            .open(path)
            .map_err(|error| Error::io(path, error))?;
        let begun = BootTime::now();
        let mut look_at = begun;
        let mut stopped_since = None;
        let mut said = None;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(fs::TryLockError::WouldBlock) => {}
                Err(fs::TryLockError::Error(error)) => return Err(Error::io(path, error)),
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let now = BootTime::now();
            if now >= look_at {
                look_at = now + limits::LOCK_LOOK_INTERVAL;
                let holder = holder(path);
                let is_stopped = holder.is_some_and(|holder| holder.is_stopped);
                stopped_since = is_stopped.then(|| stopped_since.unwrap_or(now));
                if said != Some(holder) {
                    message(&waits_for(path, holder));
                    said = Some(holder);
                }
            }
            let is_over = |since: BootTime, limit| now >= since + limit;
            let limit = limits::LOCK_TIMEOUT;
            if stopped_since.is_some_and(|since| is_over(since, limits::LOCK_STOPPED_TIMEOUT))
                || is_over(begun, limit)
            {
                return Err(Error::Held {
                    what: waits_for(path, holder(path)),
                    waited: now.saturating_duration_since(begun),
                });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

/// A process that holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holder {
    pid: i32,
    is_stopped: bool,
}

/// What is waited for while another process holds a lock.
pub(super) fn held_by_another(path: &Path) -> Option<String> {
    let holder = holder(path)?;
    let is_another = holder.pid.unsigned_abs() != std::process::id();
    is_another.then(|| waits_for(path, Some(holder)))
}

fn waits_for(path: &Path, holder: Option<Holder>) -> String {
    let path = path.display();
    match holder {
        Some(Holder { pid, is_stopped }) => {
            let stopped = if is_stopped { " and is stopped" } else { "" };
            format!("waiting for process {pid}, which holds {path}{stopped}")
        }
        None => format!("waiting for another process, which holds {path}"),
    }
}

/// Who holds the lock of a file, where the kernel says so: not across machines.
fn holder(path: &Path) -> Option<Holder> {
    let found = fs::metadata(path).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = pid_of(
        &locks,
        (major(found.dev()), minor(found.dev())),
        found.ino(),
    )?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program before it may contain anything.
    let (_, state) = stat.rsplit_once(") ")?;
    Some(Holder {
        pid,
        is_stopped: state.starts_with(['T', 't']),
    })
}

/// The process that `/proc/locks` names. Some file systems have another device number there; then a
/// single lock on that inode is meant.
fn pid_of(locks: &str, device: (u32, u32), inode: u64) -> Option<i32> {
    let mut others = Vec::new();
    for line in locks.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, file, ..] = words.as_slice() else {
            continue;
        };
        let mut parts = file.split(':');
        let mut number = |base| u64::from_str_radix(parts.next()?, base).ok();
        let (Some(major), Some(minor), Some(found)) = (number(16), number(16), number(10)) else {
            continue;
        };
        let pid = pid.parse().ok().filter(|pid| *pid > 0);
        if found == inode {
            if (major, minor) == (device.0.into(), device.1.into()) {
                return pid;
            }
            others.push(pid);
        }
    }
    match others.as_slice() {
        [pid] => *pid,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_whose_place_a_fifo_takes_does_not_hang() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let made = std::process::Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap();
        assert!(made.success());
        assert!(Lock::take(&path, &AtomicBool::new(false), &mut |_| {}).is_err());
    }

    #[test]
    fn the_holder_of_a_lock_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::take(&path, &AtomicBool::new(false), &mut |_| {}).unwrap();
        let holder = holder(&path);
        assert_eq!(
            holder,
            Some(Holder {
                pid: std::process::id().cast_signed(),
                is_stopped: false
            })
        );
        assert_eq!(held_by_another(&path), None, "it is this process itself");
        drop(lock);
        let locks = "1: FLOCK  ADVISORY  WRITE 7 fe:0a:12 0 EOF\n\
             2: POSIX  ADVISORY  WRITE 8 fe:0b:12 0 EOF\n\
             3: FLOCK  ADVISORY  WRITE 9 fe:0b:12 0 EOF\n\
             3: -> FLOCK  ADVISORY  WRITE 10 fe:0b:12 0 EOF\n\
             4: FLOCK  ADVISORY  WRITE 11 00:31:13 0 EOF\nx\n";
        assert_eq!(pid_of(locks, (0xfe, 0xb), 12), Some(9));
        assert_eq!(pid_of(locks, (1, 1), 13), Some(11), "on btrfs");
        assert_eq!(pid_of(locks, (1, 1), 12), None);
        assert_eq!(pid_of(locks, (1, 1), 14), None);
    }
}
