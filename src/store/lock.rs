//! One sentinel at a time works on a database: a lock file beside it.
//!
//! The lock is the kernel's (`flock`) and ends with its holder, however that ends. The file stays:
//! removing it would let two programs lock two files of one name.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};

use super::Error;

/// The right to be the one sentinel of a database, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Lock {
    /// Unlocks explicitly: a child that was forked meanwhile and has not called exec yet has the
    /// descriptor, too, and would keep the lock for that long.
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.file, FlockOperation::Unlock) {
            log::debug!("lock file {}: {error}", self.path.display());
        }
    }
}

/// How often a lock file that was removed meanwhile is opened again.
const TRIES_MAX: usize = 10;

/// Locks a database against other sentinels; does not wait. The lock file is
/// `<name>.sentinel-lock` beside the file that the path leads to, symbolic links followed, so
/// that all paths of a database have one lock.
///
/// # Errors
/// [`Error::Locked`] when another program holds it, [`Error::Lock`] when the file cannot be
/// created or is not a regular one. The database itself need not exist, its folder must.
pub fn lock_database(database: &Path) -> Result<Lock, Error> {
    let path = lock_path(database)?;
    let fail = |reason: String| Error::Lock {
        lock: path.clone(),
        reason,
    };
    // Not blocking, so that a FIFO of that name does not hang.
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    for _ in 0..TRIES_MAX {
        let descriptor = rustix::fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| fail(format!("cannot open it: {error}")))?;
        let file = File::from(descriptor);
        let opened = file.metadata().map_err(|error| fail(error.to_string()))?;
        if !opened.is_file() {
            return Err(fail("it is not a regular file".to_owned()));
        }
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
                return Err(Error::Locked {
                    path: database.to_owned(),
                    lock: path,
                });
            }
            Err(error) => return Err(fail(format!("cannot lock it: {error}"))),
        }
        let same = std::fs::symlink_metadata(&path)
            .is_ok_and(|named| (named.dev(), named.ino()) == (opened.dev(), opened.ino()));
        if same {
            return Ok(Lock { path, file });
        }
    }
    Err(fail("another program keeps removing it".to_owned()))
}

fn lock_path(database: &Path) -> Result<PathBuf, Error> {
    let fail = |reason: String| Error::Open {
        path: database.to_owned(),
        reason,
    };
    let real = match std::fs::canonicalize(database) {
        Ok(real) => real,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let absolute =
                std::path::absolute(database).map_err(|error| fail(error.to_string()))?;
            let parent = absolute.parent().unwrap_or(Path::new("/"));
            let folder = std::fs::canonicalize(parent)
                .map_err(|error| fail(format!("its folder: {error}")))?;
            match absolute.file_name() {
                Some(name) => folder.join(name),
                None => return Err(fail("it names no file".to_owned())),
            }
        }
        Err(error) => return Err(fail(error.to_string())),
    };
    let mut name: OsString = real
        .file_name()
        .ok_or_else(|| fail("it names no file".to_owned()))?
        .to_owned();
    name.push(".sentinel-lock");
    Ok(real.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn one_program_at_a_time_by_whatever_path() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("q.db");
        let link = dir.path().join("link.db");
        std::fs::write(&database, "").unwrap();
        symlink(&database, &link).unwrap();
        let lock = lock_database(&database).unwrap();
        assert!(lock.path().ends_with("q.db.sentinel-lock"));
        let mode = std::fs::metadata(lock.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for path in [&database, &link, &dir.path().join("./q.db")] {
            let error = lock_database(path).unwrap_err().to_string();
            assert!(error.contains("another sentinel"), "{error}");
        }
        // A database that is not there yet has its lock, too.
        lock_database(&dir.path().join("new.db")).unwrap();
        drop(lock);
        lock_database(&link).unwrap();
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| dir.path().join(format!("{name}.sentinel-lock"));
        std::fs::create_dir(make("folder")).unwrap();
        symlink(dir.path().join("elsewhere"), make("link")).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(make("fifo"))
            .status();
        assert!(made.unwrap().success());
        for name in ["folder", "link", "fifo", "no/such"] {
            let error = lock_database(&dir.path().join(name)).unwrap_err();
            assert!(!error.to_string().contains('\n'), "{error}");
        }
        assert!(!dir.path().join("elsewhere").exists());
    }
}
