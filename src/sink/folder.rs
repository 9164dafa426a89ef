//! The folder of an attempt in staging. It is the fence: an attempt changes visible output only by
//! renames from and to paths in its folder. So moving the folder away ends what the attempt can do, in
//! whatever state its process is.
//!
//! Names of folders:
//! - `<database>.<job>.<attempt>` is the folder of a running attempt. Its file `worker` names the worker.
//! - `<database>.<job>.<attempt>~<worker>-<count>` was claimed by a worker that finishes or undoes what
//!   the attempt left. A further claim moves it away from that worker.
//! - `old.<job>.0.<worker>-<count>` is the folder of an attempt that an old sentinel sent without a
//!   number.
//!
//! Renames cannot cross mounts. Where a sink's folder is on another mount, the attempt has a second
//! folder of the same name there (a *bay*), in a folder `.casparian`. The file `bays` lists the bays
//! before they are created, so that a worker that claims the folder finds and moves them too.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::anchor::{Anchor, FolderId, folder_id};
use super::files::{self, is_absent};
use super::{Error, Root};
use crate::job::{self, Attempt, Job};
use crate::{limits, remover};

/// The file in an attempt's folder that names the worker.
pub(super) const WORKER: &str = "worker";
const BAYS: &str = "bays";
/// The name that is used instead of a database's UUID for attempts that an old sentinel sent.
pub(super) const OLD: &str = "old";

/// The name of an attempt's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) database: String,
    pub(super) attempt: Attempt,
    /// Distinguishes attempts without a number.
    run: Option<String>,
    claimed_by: Option<String>,
}

impl Name {
    /// The name for a job's attempt. The database's UUID is checked, because it is input from outside.
    pub(super) fn new(job: &Job, root: &Root) -> Result<Self, Error> {
        match &job.database {
            Some(database) if job.attempt.is_numbered() => Self::numbered(database, job.attempt),
            _ => Ok(Name {
                database: OLD.to_owned(),
                attempt: Attempt::new(job.attempt.job_id, 0),
                run: Some(root.unique()),
                claimed_by: None,
            }),
        }
    }

    /// The name for an attempt of a job of a database.
    pub(super) fn numbered(database: &str, attempt: Attempt) -> Result<Self, Error> {
        Ok(Name {
            database: checked(database)?,
            attempt,
            run: None,
            claimed_by: None,
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (base, claimed_by) = match text.split_once('~') {
            Some((base, worker)) => (base, Some(worker.to_owned())),
            None => (text, None),
        };
        let mut parts = base.splitn(4, '.');
        let database = checked(parts.next()?).ok()?;
        let job_id = parts.next()?.parse().ok()?;
        let number = parts.next()?.parse().ok()?;
        Some(Name {
            database,
            attempt: Attempt::new(job_id, number),
            run: parts.next().map(str::to_owned),
            claimed_by,
        })
    }

    /// The name without the claim, as in the field `run` of a record.
    pub(super) fn run(&self) -> String {
        let Name {
            database, attempt, ..
        } = self;
        let base = format!("{database}.{}.{}", attempt.job_id, attempt.number);
        match &self.run {
            Some(run) => format!("{base}.{run}"),
            None => base,
        }
    }

    fn text(&self) -> String {
        match &self.claimed_by {
            Some(worker) => format!("{}~{worker}", self.run()),
            None => self.run(),
        }
    }

    /// The attempt's number in the side table of a SQLite sink. An attempt without a number gets a
    /// negative number, a hash of its name.
    pub(super) fn stamp(&self) -> i64 {
        match self.is_numbered() {
            true => self.attempt.number,
            false => -1 - i64::try_from(job::hash(&self.run()) >> 1).unwrap_or_default(),
        }
    }

    /// The folder's path.
    pub(super) fn path_in(&self, root: &Root) -> PathBuf {
        root.staging().join(self.text())
    }

    pub(super) fn is_numbered(&self) -> bool {
        self.attempt.is_numbered()
    }
}

/// Checks that a database's UUID can be a part of a path.
pub(super) fn checked(database: &str) -> Result<String, Error> {
    let good = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'-');
    if database.is_empty() || database.len() > 64 || !database.bytes().all(good) {
        return Err(Error::DatabaseName {
            name: database.chars().take(100).collect(),
        });
    }
    Ok(database.to_owned())
}

/// The folder of an attempt, and its bays. Dropping it removes them, unless `is_left` is set.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) name: Name,
    path: PathBuf,
    anchor: Arc<Anchor>,
    staging: FolderId,
    mount: files::Mount,
    /// Folders that contain a bay, as paths below the root, each with its mount.
    bays: Vec<(String, files::Mount)>,
    is_left: bool,
}

impl Folder {
    /// Creates the folder of an attempt that starts. If there is a folder of that name, `recover` is called
    /// with it first; see [`super::recover::create`].
    pub(super) fn create(
        root: &Root,
        name: Name,
        recover: impl FnOnce(&Root, &Path, &Name) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        root.check()?;
        let path = root.staging().join(name.text());
        // The folder gets its name when it is complete, so that its file `worker` is never missing.
        let new = Unnamed::create(root)?;
        let (staging, mount) = (folder_id(root.staging())?, files::mount(&new.0)?);
        let mut moved = fs::rename(&new.0, &path);
        if let Err(error) = &moved
            && is_occupied(error)
        {
            recover(root, &path, &name)?;
            moved = fs::rename(&new.0, &path);
        }
        if let Err(error) = moved {
            return Err(match is_occupied(&error) {
                true => Error::Copied {
                    attempt: name.attempt,
                    recorded: name.attempt.number,
                },
                false => Error::io(&path, error),
            });
        }
        let folder = Folder {
            staging,
            mount,
            name,
            path,
            anchor: root.anchor().clone(),
            bays: Vec::new(),
            is_left: false,
        };
        // Checked again after the creation: renames from this folder stay in the root in which it was
        // created.
        root.check()?;
        Ok(folder)
    }

    /// Claims the folder of an attempt that may not continue, with its bays. `None` when the folder does
    /// not exist, or another worker claimed it first.
    pub(super) fn claim(root: &Root, name: &Name) -> Result<Option<Self>, Error> {
        root.check()?;
        let from = root.staging().join(name.text());
        let claimed = Name {
            claimed_by: Some(root.unique()),
            ..name.clone()
        };
        let path = root.staging().join(claimed.text());
        match fs::rename(&from, &path) {
            Ok(()) => {}
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(Error::io(&from, error)),
        }
        let mut folder = Folder {
            staging: folder_id(root.staging())?,
            mount: files::mount(&path)?,
            name: claimed,
            path,
            anchor: root.anchor().clone(),
            bays: Vec::new(),
            is_left: true,
        };
        for parent in folder.listed_bays()? {
            folder.claim_bay(&parent)?;
        }
        Ok(Some(folder))
    }

    /// Renames the attempt's bay in `parent` to this folder's name. An earlier claim may have renamed it
    /// before.
    fn claim_bay(&mut self, parent: &str) -> Result<(), Error> {
        let base = self.root().join(parent);
        let entries = match fs::read_dir(&base) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(Error::io(&base, error)),
        };
        let run = self.name.run();
        for entry in entries {
            let entry = entry.map_err(|error| Error::io(&base, error))?;
            let name = entry.file_name().to_str().and_then(Name::parse);
            if name.is_some_and(|name| name.run() == run) {
                let to = base.join(self.name.text());
                match fs::rename(entry.path(), &to) {
                    Err(error) if !is_absent(&error) => return Err(Error::io(&to, error)),
                    _ => {}
                }
            }
        }
        self.bays.push((parent.to_owned(), files::mount(&base)?));
        Ok(())
    }

    fn listed_bays(&self) -> Result<Vec<String>, Error> {
        let path = self.path.join(BAYS);
        match files::read(&path, limits::RECORD_SIZE_MAX)? {
            Some(text) => {
                let fail = |source| Error::Io {
                    path: path.clone(),
                    source,
                };
                let bays: Vec<String> =
                    serde_json::from_slice(&text).map_err(|error| fail(error.into()))?;
                for bay in &bays {
                    if !files::is_below(bay) {
                        let reason = format!("{bay:?} is not below the output folder");
                        return Err(fail(std::io::Error::other(reason)));
                    }
                }
                Ok(bays)
            }
            None => Ok(Vec::new()),
        }
    }

    fn root(&self) -> &Path {
        self.anchor.root()
    }

    /// A path in the folder itself.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A path in the folder or in a bay.
    pub(super) fn path_in(&self, bay: Option<&str>, name: &str) -> PathBuf {
        match bay {
            Some(parent) => self.root().join(parent).join(self.name.text()).join(name),
            None => self.path(name),
        }
    }

    /// The bay whose files can be renamed into the folder of `target`, a path below the root. It is
    /// created where it is missing. `None` when the attempt's folder itself is on the same mount.
    pub(super) fn bay(&mut self, target: &Path) -> Result<Option<String>, Error> {
        let target = self.root().join(target);
        self.anchor.check_mounts(&target)?;
        let folder = files::existing_folder(&target);
        let mount = files::mount(folder)?;
        if mount == self.mount {
            return Ok(None);
        }
        if let Some((parent, _)) = self.bays.iter().find(|(_, other)| *other == mount) {
            return Ok(Some(parent.clone()));
        }
        let parent = folder.join(".casparian");
        let outside = || match self.anchor.check() {
            Ok(()) => Error::Outside {
                path: target.clone(),
            },
            Err(error) => error,
        };
        let below = parent.strip_prefix(self.root()).map_err(|_| outside())?;
        let below = below.to_str().ok_or_else(outside)?.to_owned();
        self.bays.push((below.clone(), mount));
        let parents: Vec<&str> = self.bays.iter().map(|(bay, _)| bay.as_str()).collect();
        let list = serde_json::json!(parents).to_string();
        let (new, path) = (self.path.join("bays.new"), self.path.join(BAYS));
        fs::write(&new, list).map_err(|error| self.refusal(Error::io(&new, error)))?;
        files::rename(&new, &path).map_err(|error| self.refusal(error))?;
        let bay = parent.join(self.name.text());
        files::create_folders(self.root(), &bay, files::OWN_MODE)?;
        Ok(Some(below))
    }

    /// False when a worker has claimed the folder, because the attempt is barred.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// The error for a folder that does not exist: the attempt is barred (its folder was claimed), or the
    /// root or the staging folder was removed or replaced.
    pub(super) fn missing_error(&self) -> Error {
        if let Err(error) = self.anchor.check() {
            return error;
        }
        let staging = self.path.parent().unwrap_or(&self.path);
        match folder_id(staging) {
            Ok(now) if now == self.staging => {
                let attempt = self.name.attempt;
                let by = attempt.number;
                Error::Barred { attempt, by }
            }
            _ => Error::Io {
                path: staging.to_owned(),
                source: std::io::Error::other("it was removed or replaced while the job ran"),
            },
        }
    }

    /// The error of a failed operation in the folder. When the folder does not exist, the reason for that
    /// instead.
    pub(super) fn refusal(&self, error: Error) -> Error {
        match error {
            Error::Io { .. } | Error::Sqlite { .. } if !self.exists() => self.missing_error(),
            error => error,
        }
    }

    /// Makes dropping keep the folder: recovery needs its content.
    pub(super) fn leave(&mut self) {
        self.is_left = true;
    }

    /// Makes dropping remove the folder: recovery no longer needs it.
    pub(super) fn remove_on_drop(&mut self) {
        self.is_left = false;
    }

    /// Removes a claimed folder whose attempt is finished or undone.
    pub(super) fn settled(mut self) {
        self.is_left = false;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        // The folder is removed last, because its list is needed to find the bays.
        let bays = self.bays.iter();
        let bays = bays.map(|(bay, _)| self.root().join(bay).join(self.name.text()));
        for path in bays.chain([self.path.clone()]) {
            if !remove(&path) {
                return;
            }
        }
    }
}

/// A new folder before it gets an attempt's name. Dropping it removes the folder at its first path.
struct Unnamed(PathBuf);

impl Unnamed {
    /// Creates such a folder, with the file that names the worker.
    fn create(root: &Root) -> Result<Self, Error> {
        let path = root.staging().join(format!("{NEW}{}", root.unique()));
        let folder = fs::DirBuilder::new().mode(files::OWN_MODE).create(&path);
        folder.map_err(|error| Error::io(&path, error))?;
        let new = Unnamed(path);
        let worker = new.0.join(WORKER);
        fs::write(&worker, root.worker()).map_err(|error| Error::io(&worker, error))?;
        Ok(new)
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes a folder of staging. False when a part of it remains, which the next sweep removes.
pub(super) fn remove(folder: &Path) -> bool {
    match remover::remove(folder, None) {
        Err(error) if !is_absent(&error) => {
            log::warn!("cannot remove {}: {error}", folder.display());
            false
        }
        _ => true,
    }
}

fn is_occupied(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists
    )
}

/// Prefix of the names of folders that are not yet an attempt's.
const NEW: &str = "new~";

/// An entry of the staging folder.
pub(super) enum Entry {
    /// A folder of an attempt, and the worker that uses or claimed it. The worker is empty when it cannot
    /// be read.
    Attempt(Name, String),
    /// A folder that has no attempt's name yet, and the worker that created it.
    Unnamed(PathBuf, String),
    /// A folder of an earlier release, with its worker's lock file in it.
    Legacy(PathBuf),
}

/// The entries of the staging folder. Foreign entries are ignored.
pub(super) fn entries(root: &Root) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    visit(root, |_, entry| entries.extend(entry))?;
    Ok(entries)
}

/// Foreign entries of the staging folder.
pub(super) fn strangers(root: &Root) -> Result<Vec<PathBuf>, Error> {
    let mut strangers = Vec::new();
    visit(root, |path, entry| {
        if entry.is_none() {
            strangers.push(path);
        }
    })?;
    Ok(strangers)
}

fn visit(root: &Root, mut found: impl FnMut(PathBuf, Option<Entry>)) -> Result<(), Error> {
    let staging = root.staging();
    let listed = fs::read_dir(staging).map_err(|error| Error::io(staging, error))?;
    for entry in listed {
        let entry = entry.map_err(|error| Error::io(staging, error))?;
        // A symbolic link is never accepted.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let path = entry.path();
        let known = is_folder.then(|| known(&path)).flatten();
        found(path, known);
    }
    Ok(())
}

fn known(path: &Path) -> Option<Entry> {
    let text = path.file_name()?.to_str()?;
    if let Some(unique) = text.strip_prefix(NEW) {
        return Some(Entry::Unnamed(path.to_owned(), worker_of(unique)));
    }
    if let Some(name) = Name::parse(text) {
        let worker = match &name.claimed_by {
            Some(unique) => worker_of(unique),
            None => worker_in(path),
        };
        return Some(Entry::Attempt(name, worker));
    }
    let is_legacy = path.join("lock").is_file();
    is_legacy.then(|| Entry::Legacy(path.to_owned()))
}

/// The worker that a folder names. Empty when it cannot be read.
fn worker_in(folder: &Path) -> String {
    match files::read_short(&folder.join(WORKER)) {
        Ok(worker) => worker.unwrap_or_default(),
        Err(error) => {
            log::warn!("{error}");
            String::new()
        }
    }
}

/// The worker in a name `<worker>-<count>`.
fn worker_of(unique: &str) -> String {
    let (worker, _) = unique.rsplit_once('-').unwrap_or((unique, ""));
    worker.to_owned()
}
