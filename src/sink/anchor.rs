//! Which folder the root is: the one that the worker has opened, whatever is at its path later.
//!
//! It is the same as long as its device and inode are. The folder is kept open, so that no other
//! one gets its inode number. A file system that is mounted again may have another device number:
//! then it is the same where the worker's own file is in it.

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

/// A root as it was when it was opened.
#[derive(Debug)]
pub(super) struct Anchor {
    root: PathBuf,
    /// The worker's own file in the root.
    own: PathBuf,
    held: Mutex<Held>,
    mounts: Mounts,
}

#[derive(Debug)]
struct Held {
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

/// True when the folder that is found has the worker's own file on another device. On the same
/// device that is a copy by hard links.
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
    /// For a root in which the worker has created its own file, and locked it.
    pub(super) fn new(root: &Path, own: PathBuf, lock: File) -> Result<Self, Error> {
        let (folder, id) = open(root)?;
        let held = Held {
            folder,
            id,
            inode: inode(&lock, &own)?,
            lock,
        };
        Ok(Anchor {
            root: root.to_owned(),
            own,
            held: Mutex::new(held),
            mounts: Mounts::default(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The root's path.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// [`Error::RootGone`] where the root's path does not name the folder that was opened.
    pub(super) fn check(&self) -> Result<(), Error> {
        let gone = || Error::RootGone {
            path: self.root.clone(),
        };
        let found = match fs::metadata(&self.root) {
            Ok(found) => (found.dev(), found.ino()),
            Err(error) if is_absent(&error) => return Err(gone()),
            Err(error) => return Err(Error::io(&self.root, error)),
        };
        let (id, inode) = {
            let held = self.held();
            (held.id, held.inode)
        };
        // Paths are compared with the one that was opened: a link there is another place.
        if fs::canonicalize(&self.root).is_ok_and(|real| real != self.root) {
            return Err(gone());
        }
        if found == id {
            return Ok(());
        }
        let own = files::identity(&self.own)?.map(|own| own.inode);
        match is_mounted_again(id, inode, found, own) {
            true => self.hold_again(),
            false => Err(gone()),
        }
    }

    /// An error when what was mounted above a sink's file is not any more.
    pub(super) fn check_mounts(&self, file: &Path) -> Result<(), Error> {
        self.mounts.check(&self.root, file)
    }

    /// Holds the root that was mounted again, and the lock there.
    fn hold_again(&self) -> Result<(), Error> {
        let file = files::open(&self.own).map_err(|error| Error::io(&self.own, error))?;
        // Not free where the earlier lock still holds.
        if file.try_lock().is_ok() {
            let (folder, id) = open(&self.root)?;
            let mut held = self.held();
            held.lock = file;
            held.folder = folder;
            held.id = id;
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
                let mut held = self.held();
                held.inode = inode(&file, &self.own)?;
                held.lock = file;
                Ok(())
            }
            // Another worker asks at this moment; the next call locks a file of its own.
            Err(fs::TryLockError::WouldBlock) => fs::remove_file(&self.own).map_err(fail),
            Err(fs::TryLockError::Error(error)) => Err(fail(error)),
        }
    }

    /// Gives up the lock: others take the worker for ended.
    pub(super) fn unlock(&self) {
        if let Err(error) = self.held().lock.unlock() {
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
