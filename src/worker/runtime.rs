//! A private folder for sockets and working directories, short enough for a socket's path.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::guest::SHIM;

/// Removed when it is dropped; what a killed worker left is removed by the next one.
#[derive(Debug)]
pub(super) struct Runtime {
    folder: tempfile::TempDir,
    _lock: fs::File,
}

const PREFIX: &str = "casparian-";
const LOCK: &str = "lock";

impl Runtime {
    pub(super) fn new() -> io::Result<Self> {
        let base = std::env::temp_dir();
        sweep(&base);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&base)?;
        let lock = fs::File::create(folder.path().join(LOCK))?;
        lock.try_lock().map_err(io::Error::other)?;
        fs::write(folder.path().join("shim.py"), SHIM)?;
        Ok(Runtime {
            folder,
            _lock: lock,
        })
    }

    pub(super) fn shim(&self) -> PathBuf {
        self.folder.path().join("shim.py")
    }

    pub(super) fn socket(&self, slot: usize) -> PathBuf {
        self.folder.path().join(format!("s{slot}"))
    }

    /// An empty working directory for a slot's next job.
    pub(super) fn work_dir(&self, slot: usize) -> io::Result<PathBuf> {
        let path = self.folder.path().join(format!("w{slot}"));
        remove(&path)?;
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Removes a slot's working directory with all that its job left there.
    pub(super) fn clear(&self, slot: usize) {
        if let Err(error) = remove(&self.folder.path().join(format!("w{slot}"))) {
            log::warn!("cannot clear the working directory of slot {slot}: {error}");
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Folders whose owner's lock is free belong to nobody. One without a lock file is too young to
/// judge.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX));
        if !ours {
            continue;
        }
        let free = fs::OpenOptions::new()
            .write(true)
            .open(entry.path().join(LOCK))
            .is_ok_and(|file| file.try_lock().is_ok());
        if free && let Err(error) = fs::remove_dir_all(entry.path()) {
            log::debug!("cannot remove {}: {error}", entry.path().display());
        }
    }
}
