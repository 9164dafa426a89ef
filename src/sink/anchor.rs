//! The identity of the root: the folder that the worker opened at its start. Another folder at the same
//! path is not the root.
//!
//! A folder is the same if its device and inode are the same. It is kept open, so that no other folder
//! gets its inode number. A file system that is mounted again may have another device number. Then the
//! folder is the same if the worker's own file is in it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Error;
use super::files::{self, is_absent};
use super::mounts::Mounts;
use crate::lock_file;

/// Device and inode.
pub(super) type FolderId = (u64, u64);

/// The identity of an opened root.
#[derive(Debug)]
pub(super) struct Anchor {
    root: PathBuf,
    /// The worker's own file in the root.
    own: PathBuf,
    opened: Mutex<Opened>,
    mounts: Mounts,
}

#[derive(Debug)]
struct Opened {
    folder: File,
    id: FolderId,
    /// The worker's own file, locked.
    lock: File,
    inode: u64,
}

/// Device and inode of what is at a path.
pub(super) fn folder_id(path: &Path) -> Result<FolderId, Error> {
    let found = fs::metadata(path).map_err(|error| Error::io(path, error))?;
    Ok((found.dev(), found.ino()))
}

/// True when the folder at the path is on another device and has the worker's own file in it. On the same
/// device it would be a copy by hard links.
fn is_mounted_again(id: FolderId, inode: u64, found: FolderId, own: Option<u64>) -> bool {
    own == Some(inode) && found.0 != id.0
}

/// Opens a folder, and returns its identity.
fn open(folder: &Path) -> Result<(File, FolderId), Error> {
    let fail = |error| Error::io(folder, error);
    let file = File::open(folder).map_err(fail)?;
    let found = file.metadata().map_err(fail)?;
    Ok((file, (found.dev(), found.ino())))
}

fn inode(file: &File, path: &Path) -> Result<u64, Error> {
    let found = file.metadata().map_err(|error| Error::io(path, error))?;
    Ok(found.ino())
}

impl Anchor {
    /// For a root in which the worker has created and locked its own file.
    pub(super) fn new(root: &Path, own: PathBuf, lock: File) -> Result<Self, Error> {
        let (folder, id) = open(root)?;
        let opened = Opened {
            folder,
            id,
            inode: inode(&lock, &own)?,
            lock,
        };
        Ok(Anchor {
            root: root.to_owned(),
            own,
            opened: Mutex::new(opened),
            mounts: Mounts::default(),
        })
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The root's path.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// [`Error::RootMissing`] where the root's path does not name the folder that was opened.
    pub(super) fn check(&self) -> Result<(), Error> {
        let missing = || Error::RootMissing {
            path: self.root.clone(),
        };
        let found = match fs::metadata(&self.root) {
            Ok(found) => (found.dev(), found.ino()),
            Err(error) if is_absent(&error) => return Err(missing()),
            Err(error) => return Err(Error::io(&self.root, error)),
        };
        let (id, inode) = {
            let opened = self.opened();
            (opened.id, opened.inode)
        };
        // The path must have no links: a link that was created later may lead to another folder.
        if fs::canonicalize(&self.root).is_ok_and(|real| real != self.root) {
            return Err(missing());
        }
        if found == id {
            return Ok(());
        }
        let own = files::identity(&self.own)?.map(|own| own.inode);
        match is_mounted_again(id, inode, found, own) {
            true => self.reopen(),
            false => Err(missing()),
        }
    }

    /// An error when a file system above a sink's file is no longer mounted.
    pub(super) fn check_mounts(&self, file: &Path) -> Result<(), Error> {
        self.mounts.check(&self.root, file)
    }

    /// Opens the root that was mounted again, and locks the worker's own file there.
    fn reopen(&self) -> Result<(), Error> {
        let file = files::open(&self.own).map_err(|error| Error::io(&self.own, error))?;
        // The lock is not free while the earlier one is in effect.
        if file.try_lock().is_ok() {
            let (folder, id) = open(&self.root)?;
            let mut opened = self.opened();
            opened.lock = file;
            opened.folder = folder;
            opened.id = id;
        }
        Ok(())
    }

    /// Creates the worker's own file again where it was removed.
    pub(super) fn ensure_own(&self) -> Result<(), Error> {
        let fail = |error| Error::io(&self.own, error);
        let file = match lock_file::create_new(&self.own) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => return Err(fail(error)),
        };
        match file.try_lock() {
            Ok(()) => {
                let mut opened = self.opened();
                opened.inode = inode(&file, &self.own)?;
                opened.lock = file;
                Ok(())
            }
            // Another worker tests the lock at this moment. The next call creates and locks a new file.
            Err(fs::TryLockError::WouldBlock) => fs::remove_file(&self.own).map_err(fail),
            Err(fs::TryLockError::Error(error)) => Err(fail(error)),
        }
    }

    /// Releases the lock. Other workers then regard this worker as ended.
    pub(super) fn unlock(&self) {
        if let Err(error) = self.opened().lock.unlock() {
            log::warn!("cannot unlock {}: {error}", self.own.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_mounted_again_where_the_own_file_is_on_another_device() {
        let was = (1, 20);
        for (found, own, want) in [
            ((2, 20), Some(7), true),
            ((2, 99), Some(7), true),
            ((2, 20), Some(8), false),
            ((2, 20), None, false),
            ((1, 99), Some(7), false),
        ] {
            let got = is_mounted_again(was, 7, found, own);
            assert_eq!(got, want, "{found:?} {own:?}");
        }
    }
}
