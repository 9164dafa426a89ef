//! Whether a failed attempt is a fault of the root or of the attempt's sink, and the root's self-test.
//!
//! A sink may be on storage of its own: a mount, a folder, a database, inside the root or outside it.
//! When such a sink fails and the root works, jobs with other sinks are not affected. What failed in the
//! root itself is remembered, and the self-test tries it too. So the test does not succeed before the
//! next job could.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::Access;

use super::files::{self, is_absent};
use super::{Error, Root};
use crate::job::Cause;
use crate::{disk, limits};

/// What an error is a fault of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The job or its sink; the root works.
    Job,
    /// The root or the worker.
    Worker,
    /// The root belongs to another database, so no job of this database can publish here.
    Owner,
}

/// The last failures of the root, for the self-test.
#[derive(Debug, Default)]
pub(super) struct Failed(Mutex<Last>);

#[derive(Debug, Default)]
struct Last {
    /// The database of a job that was refused because it is not the root's owner.
    database: Option<String>,
    /// A failed path: the root, or a path in `.casparian`.
    path: Option<PathBuf>,
    /// The root's disk was full.
    is_full: bool,
}

impl Failed {
    fn last(&self) -> MutexGuard<'_, Last> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Root {
    /// Decides what an attempt's error, as classified by [`Root::judged`], is a fault of. It may run the
    /// self-test.
    pub fn fault(&self, error: &Error) -> Fault {
        if error.cause() != Cause::Worker {
            return Fault::Job;
        }
        match error {
            Error::Locked { .. } | Error::Moved { .. } => Fault::Job,
            Error::OtherDatabase { path, database, .. } if path == self.path() => {
                self.failed().last().database = Some(database.clone());
                Fault::Owner
            }
            // A table of a sink.
            Error::OtherDatabase { .. } => Fault::Job,
            // All jobs share the disk.
            Error::Io { path, source } if disk::is_full(source) && self.is_on_disk(path) => {
                self.failed().last().is_full = true;
                Fault::Worker
            }
            Error::Io { path, .. } | Error::Sqlite { path, .. } => {
                if path != self.path() && !path.starts_with(self.base()) {
                    return match self.test() {
                        Ok(()) => Fault::Job,
                        Err(_) => Fault::Worker,
                    };
                }
                self.failed().last().path = Some(path.clone());
                Fault::Worker
            }
            _ => Fault::Worker,
        }
    }

    /// True for a path on the file system of the output folder.
    fn is_on_disk(&self, path: &Path) -> bool {
        let device = |path: &Path| Some(fs::metadata(path).ok()?.dev());
        let own = device(self.path());
        let folder = match path.is_dir() {
            true => path,
            false => files::existing_folder(path),
        };
        own.is_some() && device(folder) == own
    }

    /// Forgets the refused database: the next jobs may be of another database.
    pub fn forget_database(&self) {
        self.failed().last().database = None;
    }

    /// The self-test. It tries what a publish needs of the root: it syncs a file and renames it into the
    /// root. It also tries what failed last.
    pub fn test(&self) -> Result<(), Error> {
        self.ensure()?;
        let tried = self.try_file();
        tried.map_err(|error| self.judged(Error::io(self.path(), error)))?;
        if self.failed().last().is_full {
            disk::check_room(self.path(), limits::DISK_ROOM)
                .map_err(|error| Error::io(self.path(), error))?;
            self.failed().last().is_full = false;
        }
        let path = self.failed().last().path.clone();
        if let Some(path) = path {
            self.try_folder(files::existing_folder(&path))
                .map_err(|error| self.judged(error))?;
        }
        let database = self.failed().last().database.clone();
        database.map_or(Ok(()), |database| self.check_owner(&database))
    }

    /// An error when the root belongs to another database and is not shared.
    pub(super) fn check_owner(&self, database: &str) -> Result<(), Error> {
        let owner = files::read_short(&self.base().join("owner"))?;
        match owner.as_deref().map(str::trim) {
            Some(owner) if owner != database && !self.shares() => {
                Err(self.other_database(owner, database))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn other_database(&self, owner: &str, database: &str) -> Error {
        Error::OtherDatabase {
            path: self.path().to_owned(),
            owner: owner.chars().take(64).collect(),
            database: database.to_owned(),
            is_final: self.is_closed(),
        }
    }

    fn try_folder(&self, folder: &Path) -> Result<(), Error> {
        if !folder.is_dir() {
            return Err(Error::io(folder, io::Error::other("it is not a folder")));
        }
        let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::access(folder, all).map_err(|errno| Error::io(folder, errno.into()))
    }

    fn try_file(&self) -> io::Result<()> {
        let folder = tempfile::Builder::new()
            .prefix("test-")
            .tempdir_in(self.base())?;
        let path = folder.path().join("a");
        let mut file = File::create_new(&path)?;
        // As much as a small output. A disk with less free space counts as full.
        file.write_all(&[1; 256 << 10])?;
        file.sync_all()?;
        // All workers use the same name, so that files of killed workers do not accumulate.
        let public = self.path().join(".casparian-test");
        fs::rename(&path, &public)?;
        match fs::remove_file(&public) {
            Err(error) if !is_absent(&error) => return Err(error),
            _ => {}
        }
        File::open(self.path())?.sync_all()
    }
}
