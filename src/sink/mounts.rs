//! Mount points above the files of sinks, below the root and outside it.
//!
//! A folder may be a mount point when output is first published below it. Then it must be a mount point
//! at each later publish. Otherwise the file system was unmounted, and the folder is the one that it
//! covered. File systems are not compared: one that is mounted again may have another device number.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::files::{self, is_absent};
use super::{Error, location};
use crate::limits;

/// The mount points above sinks that this worker has found.
#[derive(Debug, Default)]
pub(super) struct Mounts(Mutex<BTreeSet<PathBuf>>);

impl Mounts {
    /// An error when a file system above a sink's file is no longer mounted.
    pub(super) fn check(&self, root: &Path, file: &Path) -> Result<(), Error> {
        let file = location::real(file);
        // Storage may not respond, so it is not queried while the mutex is locked.
        let known = self.known().clone();
        for point in known.iter().filter(|point| file.starts_with(point)) {
            if !is_mount_point(point)? {
                let reason = "a file system was mounted there and is not any more: mount it \
                              again, or restart the worker";
                return Err(Error::io(point, std::io::Error::other(reason)));
            }
        }
        if let Some(point) = mount_point(&file)?
            && !root.starts_with(&point)
            && known.len() < limits::MOUNTS_MAX
        {
            self.known().insert(point);
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_mount_point(folder: &Path) -> Result<bool, Error> {
    let Some(above) = folder.parent() else {
        return Ok(true);
    };
    match files::mount(folder) {
        Ok(mount) => Ok(mount != files::mount(above)?),
        Err(Error::Io { source, .. }) if is_absent(&source) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The nearest mount point above a file. `None` for `/`.
fn mount_point(file: &Path) -> Result<Option<PathBuf>, Error> {
    let mut folders = files::existing_folder(file).ancestors();
    let point = folders.find_map(|folder| match is_mount_point(folder) {
        Ok(false) => None,
        found => Some(found.map(|_| folder.to_owned())),
    });
    let point = point.transpose()?;
    Ok(point.filter(|point| point.parent().is_some()))
}
