//! Where output lies until it is published.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::Error;

/// A folder `<root>/.casparian/staging/<worker>` of one worker process, locked for its life.
#[derive(Debug)]
pub struct Staging {
    root: PathBuf,
    path: PathBuf,
    count: AtomicU64,
    _lock: fs::File,
}

const LOCK: &str = "lock";

impl Staging {
    /// Makes the output root and a staging folder in it, and removes the folders of workers
    /// that are gone. Several workers may share a root.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let base = root.join(".casparian").join("staging");
        fs::create_dir_all(&base).map_err(|error| Error::io(&base, error))?;
        let root = fs::canonicalize(root).map_err(|error| Error::io(root, error))?;
        let base = root.join(".casparian").join("staging");
        // Held while folders are made and swept, so that none is swept before it is locked.
        let gate_path = base.join("gate");
        let gate = open_lock(&gate_path)?;
        gate.lock().map_err(|error| Error::io(&gate_path, error))?;
        sweep(&base)?;
        let path = base.join(format!("{}-{:x}", std::process::id(), unique()));
        fs::create_dir_all(&path).map_err(|error| Error::io(&path, error))?;
        let lock_path = path.join(LOCK);
        let lock = open_lock(&lock_path)?;
        lock.lock().map_err(|error| Error::io(&lock_path, error))?;
        Ok(Staging {
            root,
            path,
            count: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// The output root, canonical.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in the staging folder that was not given out before.
    pub(super) fn fresh(&self, job_id: i64) -> PathBuf {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        self.path.join(format!("{job_id}-{count}"))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn unique() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(0)
}

fn open_lock(path: &Path) -> Result<fs::File, Error> {
    fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| Error::io(path, error))
}

fn sweep(base: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(base).map_err(|error| Error::io(base, error))?;
    for entry in entries {
        let path = entry.map_err(|error| Error::io(base, error))?.path();
        if !path.is_dir() {
            continue;
        }
        let free = match fs::OpenOptions::new().write(true).open(path.join(LOCK)) {
            Ok(file) => file.try_lock().is_ok(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if free {
            log::info!(
                "removing what a worker that is gone left in {}",
                path.display()
            );
            if let Err(error) = fs::remove_dir_all(&path) {
                log::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }
    Ok(())
}
