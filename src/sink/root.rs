//! The output root: its `.casparian` folder, its owner, and the workers that share it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::anchor::Anchor;
use super::fault::Failed;
use super::files;
use super::folder::{self, Folder, Name};
use super::sqlite::{Access, Stuck};
use super::{Error, datasets, names, recover};
use crate::job::Cause;
use crate::lock_file;

/// How a root is used.
#[derive(Clone, Debug, Default)]
pub struct RootOptions {
    /// Databases other than the root's owner may publish here (`--share-output`). The names of their
    /// files end with 8 digits of the database's UUID.
    pub share: bool,
    /// SQLite sinks must be below the root.
    pub is_closed: bool,
    /// SQLite sinks must be below the root or below one of these folders (`--sink-root`). `None`: they
    /// may be anywhere.
    pub sink_roots: Option<Vec<PathBuf>>,
    /// A topic without a configured sink gets a folder with a file for each input.
    pub datasets: bool,
}

/// Folders in `.casparian`.
pub(super) const FOLDERS: [&str; 4] = ["staging", "workers", "barred", "outputs"];

/// An output root, opened by one worker. Several workers of several databases may share it.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    base: PathBuf,
    staging: PathBuf,
    options: RootOptions,
    worker: String,
    anchor: Arc<Anchor>,
    count: AtomicU64,
    stuck: Stuck,
    failed: Failed,
    folders: datasets::Folders,
}

/// Creates a folder and its parents. When a path of these is not a folder, the error has that path.
pub fn create_folder(folder: &Path) -> Result<(), Error> {
    create(folder, files::PUBLIC_MODE)
}

/// The same as [`create_folder`] for `.casparian` of an output folder, with the mode of Casparian's own
/// folders.
pub fn create_own_folder(folder: &Path) -> Result<(), Error> {
    create(folder, files::OWN_MODE)
}

fn create(folder: &Path, mode: u32) -> Result<(), Error> {
    check_text(folder)?;
    let created = fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(folder);
    created.map_err(|error| {
        let mut above = folder.ancestors();
        let found = above.find(|path| path.symlink_metadata().is_ok());
        match found.filter(|path| !path.is_dir()) {
            Some(path) => Error::Io {
                path: path.to_owned(),
                source: io::Error::other("it is not a folder"),
            },
            None => Error::io(folder, error),
        }
    })
}

/// UUID of the database that owns a root. `None` when nothing was published into the root.
pub fn owner(root: &Path) -> Result<Option<String>, Error> {
    let owner = files::read_short(&root.join(".casparian").join("owner"))?;
    Ok(owner.map(|owner| owner.trim().chars().take(64).collect()))
}

/// The path must be UTF-8, because receipts and records name files as text.
fn check_text(path: &Path) -> Result<(), Error> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(Error::Io {
            path: path.to_owned(),
            source: io::Error::other("the path of an output folder must be UTF-8; use another one"),
        }),
    }
}

/// Creates Casparian's own folders in a root. Files are renamed between them and into the root, so all
/// must be on one file system and mount.
fn create_own(root: &Path) -> Result<(), Error> {
    for name in FOLDERS {
        let folder = root.join(".casparian").join(name);
        files::create_own(root, &folder)?;
        if files::mount(&folder)? != files::mount(root)? {
            let reason = "it is on another file system or mount than the output folder, and \
                          files cannot be renamed between them; unmount it";
            return Err(Error::Io {
                path: folder,
                source: io::Error::other(reason),
            });
        }
    }
    Ok(())
}

/// Warns when other users may write to `.casparian`: they could change the output, and the queue of a
/// run.
fn warn_of_strangers(root: &Path, base: &Path) {
    let (Ok(folder), Ok(found)) = (fs::metadata(root), fs::metadata(base)) else {
        return;
    };
    let is_trusted = [0, rustix::process::geteuid().as_raw(), folder.uid()].contains(&found.uid());
    let (path, user) = (base.display(), found.uid());
    if !is_trusted {
        log::warn!("{path} belongs to user {user}, who can change what is in it");
    } else if found.mode() & 0o002 != 0 {
        log::warn!("{path}: every user can change what is in it; chmod o-w");
    }
}

impl Root {
    /// Opens a root, and creates it where it is missing. Finishes or undoes what dead workers left
    /// unfinished in it. A failure to recover an attempt is logged, and its folder stays.
    pub fn open(path: &Path, mut options: RootOptions) -> Result<Self, Error> {
        create_folder(path)?;
        // Links are resolved once, so that later changes of them have no effect.
        for folder in options.sink_roots.iter_mut().flatten() {
            *folder = fs::canonicalize(&*folder).map_err(|error| Error::io(folder, error))?;
        }
        let path = fs::canonicalize(path).map_err(|error| Error::io(path, error))?;
        check_text(&path)?;
        create_own(&path)?;
        let base = path.join(".casparian");
        warn_of_strangers(&path, &base);
        let workers = base.join("workers");
        let (worker, lock) = register(&workers)?;
        let anchor = Anchor::new(&path, workers.join(&worker), lock)?;
        let root = Root {
            path,
            staging: base.join("staging"),
            base,
            options,
            worker,
            anchor: Arc::new(anchor),
            count: AtomicU64::new(0),
            stuck: Stuck::default(),
            failed: Failed::default(),
            folders: datasets::Folders::default(),
        };
        root.sweep()?;
        Ok(root)
    }

    /// Opens an existing root to read it. Nothing is created, recovered or locked. Methods that change
    /// the root must not be called on it.
    pub fn open_to_read(path: &Path, options: RootOptions) -> Result<Self, Error> {
        let fail = |error| Error::io(path, error);
        let real = fs::canonicalize(path).map_err(fail)?;
        check_text(&real)?;
        let folder = File::open(&real).map_err(fail)?;
        if !folder.metadata().map_err(fail)?.is_dir() {
            return Err(fail(std::io::Error::other("it is not a folder")));
        }
        let base = real.join(".casparian");
        Ok(Root {
            anchor: Arc::new(Anchor::new(&real, real.clone(), folder)?),
            path: real,
            staging: base.join("staging"),
            base,
            options,
            worker: String::new(),
            count: AtomicU64::new(0),
            stuck: Stuck::default(),
            failed: Failed::default(),
            folders: datasets::Folders::default(),
        })
    }

    /// True when the root was opened by [`Root::open_to_read`].
    pub(super) fn is_reader(&self) -> bool {
        self.worker.is_empty()
    }

    /// How databases of sinks are opened.
    pub(super) fn access(&self) -> Access {
        match self.is_reader() {
            true => Access::Read,
            false => Access::Write,
        }
    }

    /// Creates again what was removed from `.casparian`: its folders, and the worker's own file, whose
    /// lock shows other workers that this one is alive. The root itself is never created again.
    pub fn ensure(&self) -> Result<(), Error> {
        self.check()?;
        let created = create_own(&self.path).and_then(|()| self.anchor.ensure_own());
        created.map_err(|error| self.judged(error))?;
        self.check()
    }

    /// [`Error::RootMissing`] where the root's path does not name the folder that was opened.
    pub fn check(&self) -> Result<(), Error> {
        self.anchor.check()
    }

    pub(super) fn anchor(&self) -> &Arc<Anchor> {
        &self.anchor
    }

    /// The output root, canonical.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True when SQLite sinks must be below the root.
    pub(super) fn is_closed(&self) -> bool {
        self.options.is_closed
    }

    /// True if the database of a SQLite sink may have this path. `path` has its links followed. `below`
    /// is the path relative to the root, if it is below the root.
    pub(super) fn may_contain(&self, path: &Path, below: Option<&str>) -> bool {
        let mut folders = self.options.sink_roots.iter().flatten();
        below.is_some()
            || (!self.options.is_closed
                && (self.options.sink_roots.is_none()
                    || folders.any(|folder| path != folder && path.starts_with(folder))))
    }

    /// True when topics without configured sinks get folders ([`RootOptions::datasets`]).
    pub fn has_datasets(&self) -> bool {
        self.options.datasets
    }

    pub(super) fn folders(&self) -> &datasets::Folders {
        &self.folders
    }

    /// True when tables and the root may belong to another database.
    pub(super) fn shares(&self) -> bool {
        self.options.share
    }

    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    pub(super) fn staging(&self) -> &Path {
        &self.staging
    }

    /// SQLite databases that other programs keep locked.
    pub(super) fn stuck(&self) -> &Stuck {
        &self.stuck
    }

    pub(super) fn failed(&self) -> &Failed {
        &self.failed
    }

    /// The name of this worker's file in the root. Empty for a reader.
    pub(super) fn worker(&self) -> &str {
        &self.worker
    }

    /// A name `<worker>-<count>`, different for each call.
    pub(super) fn unique(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        format!("{}-{count}", self.worker)
    }

    /// True unless the worker's process has ended, which a free lock shows. When the lock cannot be
    /// tested, the worker counts as alive.
    pub(super) fn is_alive(&self, worker: &str) -> bool {
        if worker.is_empty() {
            return false;
        }
        if worker == self.worker {
            return true;
        }
        if worker.contains('/') {
            return false;
        }
        match files::open(&self.base.join("workers").join(worker)) {
            // A shared lock, so that two processes that test at the same time do not find each other's
            // lock.
            Ok(file) => file.try_lock_shared().is_err(),
            Err(error) => !files::is_absent(&error),
        }
    }

    /// The suffix of a database's file names in this root, without claiming ownership. `None` for the
    /// root's owner.
    pub(super) fn mark(&self, name: &Name) -> Result<Option<String>, Error> {
        let owner = files::read_short(&self.base.join("owner"))?;
        let is_other = owner.is_some_and(|owner| owner.trim() != name.database);
        Ok((name.is_numbered() && is_other).then(|| names::suffix(&name.database)))
    }

    /// The suffix of a database's file names in this root. `None` for the root's owner. The first
    /// database that publishes becomes the owner.
    pub(super) fn suffix(&self, folder: &Folder) -> Result<Option<String>, Error> {
        let database = &folder.name.database;
        if !folder.name.is_numbered() {
            return Ok(None);
        }
        let path = self.base.join("owner");
        let mut owner = files::read_short(&path)?;
        if owner.is_none() {
            let new = folder.path("owner");
            files::write_synced(&new, database.as_bytes())
                .map_err(|error| folder.refusal(error))?;
            // When several workers do this at the same time, one link succeeds.
            match fs::hard_link(&new, &path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(_) => {
                    files::rename_new(&new, &path)?;
                }
            }
            files::sync_folder(&self.base)?;
            owner = files::read_short(&path)?;
        }
        let owner = owner.unwrap_or_default();
        let owner = owner.trim();
        if owner == database {
            Ok(None)
        } else if self.options.share {
            Ok(Some(names::suffix(database)))
        } else {
            Err(self.other_database(owner, database))
        }
    }

    /// Classifies an error for this root. [`Error::RootMissing`] replaces it when another folder is at the
    /// root's path, because then the error is not about this root.
    pub fn judged(&self, mut error: Error) -> Error {
        if error.cause() != Cause::Plugin
            && let Err(missing @ Error::RootMissing { .. }) = self.check()
        {
            return missing;
        }
        if let Error::OtherDatabase { is_final, .. } = &mut error {
            *is_final = self.is_closed();
        }
        match error {
            Error::Path { path, reason } => self.judged_path(path, reason),
            // Missing permissions in the output folder may be temporary, like a full disk. Missing
            // permissions elsewhere are a fault of the operator, who chose the path.
            Error::Io { path, source }
                if source.kind() == io::ErrorKind::PermissionDenied
                    && !path.starts_with(&self.path) =>
            {
                self.judged_path(path, source.to_string())
            }
            error => error,
        }
    }

    /// An unusable path is the operator's fault. An unusable output folder is the worker's fault, and
    /// while it is unusable, paths below it cannot be judged.
    fn judged_path(&self, path: PathBuf, reason: String) -> Error {
        if path == self.path {
            let source = io::Error::other(reason);
            return Error::Io { path, source };
        }
        let all = rustix::fs::Access::READ_OK
            | rustix::fs::Access::WRITE_OK
            | rustix::fs::Access::EXEC_OK;
        match rustix::fs::access(&self.path, all) {
            Err(errno) => Error::io(&self.path, errno.into()),
            Ok(()) => Error::Path { path, reason },
        }
    }

    fn sweep(&self) -> Result<(), Error> {
        for entry in folder::entries(self)? {
            match entry {
                folder::Entry::Attempt(name, worker) if !self.is_alive(&worker) => {
                    log::info!("recovering {}, whose worker has ended", name.run());
                    if let Err(error) = recover::recover(self, &name) {
                        log::warn!("cannot recover {}: {error}", name.run());
                    }
                }
                folder::Entry::Unnamed(path, worker) if !self.is_alive(&worker) => {
                    remove_folder(&path);
                }
                folder::Entry::Legacy(path) => {
                    let free = files::open(&path.join("lock"));
                    if free.is_ok_and(|file| file.try_lock().is_ok()) {
                        remove_folder(&path);
                    }
                }
                _ => {}
            }
        }
        let workers = self.base.join("workers");
        let entries = fs::read_dir(&workers).map_err(|error| Error::io(&workers, error))?;
        for entry in entries.flatten() {
            // The lock is kept until the name is removed. So a worker that starts at this moment cannot
            // use the file.
            let Ok(file) = files::open(&entry.path()) else {
                continue;
            };
            if file.try_lock_shared().is_ok()
                && let Err(error) = files::remove(&entry.path())
            {
                log::warn!("{error}");
            }
        }
        Ok(())
    }

    /// Releases the worker's lock, as the end of its process does.
    #[cfg(test)]
    pub(super) fn die(&self) {
        self.anchor.unlock();
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.is_reader() {
            return;
        }
        let path = self.base.join("workers").join(&self.worker);
        if let Err(error) = files::remove(&path) {
            log::warn!("{error}");
        }
        // Unlocked after the name is removed, so that other workers never find this file unlocked.
        self.anchor.unlock();
    }
}

fn remove_folder(path: &Path) {
    log::info!("removing {}, whose worker has ended", path.display());
    folder::remove(path);
}

/// Creates the file of a worker and locks it until the worker ends. Returns the file's name.
fn register(workers: &Path) -> Result<(String, File), Error> {
    loop {
        let unique = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        let name = format!("{}-{unique:016x}", std::process::id());
        let path = workers.join(&name);
        let fail = |error| Error::io(&path, error);
        let file = lock_file::create_new(&path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            // Another worker tests whether this one is alive, and may remove the file.
            Err(fs::TryLockError::WouldBlock) => continue,
            Err(fs::TryLockError::Error(error)) => return Err(fail(error)),
        }
        if file.metadata().map_err(fail)?.nlink() > 0 {
            return Ok((name, file));
        }
    }
}
