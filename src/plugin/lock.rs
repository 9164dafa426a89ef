//! File locks, so that only one program creates an environment, and the holder of such a lock.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::Error;
use super::folders::open;
use super::tool::POLL_INTERVAL;
use crate::limits;
use crate::lock_file::{self, Holder, holder};
use crate::reactor::BootTime;

/// A file lock, held until it is dropped.
pub(super) struct Lock {
    _file: fs::File,
}

impl Lock {
    /// Waits for the lock. Gives up after `LOCK_STOPPED_TIMEOUT` if the holder is stopped (SIGSTOP), after
    /// `LOCK_TIMEOUT` in any case.
    ///
    /// # Errors
    ///
    /// [`Error::Held`] after these times, [`Error::Cancelled`] when `cancel` is set, [`Error::Io`] for the
    /// file.
    pub(super) fn take(
        path: &Path,
        cancel: &AtomicBool,
        message: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        if let Some(folder) = path.parent() {
            super::home::create(folder)?;
        }
        let file = lock_file::open(path).map_err(|error| Error::io(path, error))?;
        Self::wait(file, path, |_| false, cancel, message)
    }

    /// As [`Lock::take`], for a folder that processes share by locks. None if there is no folder, if it cannot be
    /// locked, or if its lock is held by another user, who may hold it for any time.
    pub(super) fn take_folder(
        path: &Path,
        cancel: &AtomicBool,
        message: &mut dyn FnMut(&str),
    ) -> Result<Option<Self>, Error> {
        let Ok(folder) = open(path) else {
            return Ok(None);
        };
        let is_strange = |holder: Holder| holder.other_user.is_some_and(|user| user != 0);
        match Self::wait(folder, path, is_strange, cancel, message) {
            Ok(lock) => Ok(Some(lock)),
            Err(Error::Io { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `is_strange` = a holder for which this does not wait; that is an [`Error::Io`].
    fn wait(
        file: fs::File,
        path: &Path,
        is_strange: impl Fn(Holder) -> bool,
        cancel: &AtomicBool,
        message: &mut dyn FnMut(&str),
    ) -> Result<Self, Error> {
        let begun = BootTime::now();
        let mut poll_at = begun;
        let mut stopped_since = None;
        let mut reported = None;
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
            if now >= poll_at {
                poll_at = now + limits::LOCK_POLL_INTERVAL;
                let holder = holder(path);
                if holder.is_some_and(&is_strange) {
                    return Err(Error::io(path, io::ErrorKind::WouldBlock.into()));
                }
                let is_stopped = holder.is_some_and(|holder| holder.is_stopped);
                stopped_since = is_stopped.then(|| stopped_since.unwrap_or(now));
                if reported != Some(holder) {
                    message(&waits_for(path, holder));
                    reported = Some(holder);
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

/// The text to report while another process holds a lock, or none.
pub(super) fn held_by_another(path: &Path) -> Option<String> {
    let holder = holder(path)?;
    let is_another = holder.pid.unsigned_abs() != std::process::id();
    is_another.then(|| waits_for(path, Some(holder)))
}

fn waits_for(path: &Path, holder: Option<Holder>) -> String {
    let path = path.display();
    match holder {
        Some(holder) => {
            let stopped = if holder.is_stopped {
                " and is stopped"
            } else {
                ""
            };
            format!("waiting for {holder}, which holds {path}{stopped}")
        }
        None => format!("waiting for another process, which holds {path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_a_fifo_replaces_does_not_hang() {
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
                other_user: None,
                is_stopped: false
            })
        );
        assert_eq!(held_by_another(&path), None, "it is this process itself");
        drop(lock);
    }
}
