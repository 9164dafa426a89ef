//! Folders in which environments are built, and the removal of leftovers.
//!
//! `<home>/tmp/build-…` is the *scratch folder* of a program that builds. It is locked while the program
//! lives. Each tool gets a new folder in it, a *step*. Code of dependencies may have put anything into the
//! steps of earlier tools: also links, FIFOs and trees of any depth. So files are only written by creating
//! them, and only regular files of bounded size are read. A folder is used through the descriptor that was
//! opened when it was created, so it does not matter what has its name later.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, mkdirat, openat, renameat, statat};

use super::error::Error;
use super::home;
use crate::reactor::BootTime;
use crate::sandbox::Private;
use crate::{input_file, limits, lock_file, remover};

/// Folders of the home that tools only read. They exist before a tool runs.
pub const FIXED: [&str; 3] = ["resolved", "uv", "wheels"];
const VENVS: &str = "venvs";
/// Name of the folder of scratch folders. In a step, name of the folder that is the tool's TMPDIR.
const TEMPORARY: &str = "tmp";
/// Prefix of the names of scratch folders.
const SCRATCH: &str = "build-";
/// Prefix of the names of scratch folders in earlier releases, which did not lock them.
const SCRATCH_UNLOCKED: &str = "scratch-";
/// In the name of a folder in which an environment is built, this follows a dot and the environment's hash.
pub(super) const BEGUN: &str = ".new";

/// A scratch folder. It is removed when it is dropped, and locked as long as its program lives.
pub(super) struct Scratch {
    base: PathBuf,
    path: PathBuf,
    folder: File,
    steps: Cell<u32>,
}

impl Scratch {
    /// Creates a scratch folder below `home`.
    pub(super) fn new(home: &Path) -> Result<Self, Error> {
        for name in FIXED.into_iter().chain([TEMPORARY, VENVS]) {
            home::create(&home.join(name))?;
        }
        let base = home.join(TEMPORARY);
        loop {
            let (path, folder) = fresh(&base, SCRATCH)?;
            // Before the lock was taken, another program may have removed the folder as a leftover.
            if folder.try_lock().is_ok() && is_at(&folder, &path) {
                return Ok(Scratch {
                    base,
                    path,
                    folder,
                    steps: Cell::new(0),
                });
            }
        }
    }

    /// Creates a folder for one tool.
    pub(super) fn step(&self) -> Result<Step, Error> {
        let number = self.steps.get();
        self.steps.set(number.saturating_add(1));
        let path = self.path.join(number.to_string());
        let folder = create_at(&self.folder, &number.to_string());
        let folder = folder.map_err(|error| Error::io(&path, error))?;
        let step = Step { path, folder };
        step.create(TEMPORARY)?;
        Ok(step)
    }

    /// The mount that hides all scratch folders from a tool except its own step.
    pub(super) fn shown(&self, step: &Step) -> Private {
        Private {
            folder: self.base.clone(),
            keep: vec![step.path.clone()],
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        sweep(&self.path, soon());
    }
}

/// The folder of one tool. It is the tool's working directory.
pub(super) struct Step {
    path: PathBuf,
    folder: File,
}

impl Step {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The tool's TMPDIR.
    pub(super) fn temporary(&self) -> PathBuf {
        self.path.join(TEMPORARY)
    }

    /// Creates a folder in the step.
    pub(super) fn create(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        match create_at(&self.folder, name) {
            Ok(_) => Ok(path),
            Err(error) => Err(Error::io(&path, error)),
        }
    }

    /// Creates a file in the step.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o666);
        let file = openat(&self.folder, name, flags, mode).map_err(io::Error::from);
        let written = file.and_then(|file| File::from(file).write_all(text.as_bytes()));
        match written {
            Ok(()) => Ok(path),
            Err(error) => Err(Error::io(&path, error)),
        }
    }

    /// Writes settings for uv, and returns the options by which uv reads no others. Without these options uv
    /// reads the settings in the folders above its working directory.
    pub(super) fn configure(&self, settings: &toml::Table) -> Result<[OsString; 3], Error> {
        let path = self.write("uv.toml", &settings.to_string())?;
        Ok(["--no-config".into(), "--config-file".into(), path.into()])
    }

    /// Reads a file that the tool has left in the step.
    pub(super) fn read(&self, name: &str, size_max: usize) -> Result<String, Error> {
        let file = input_file::open_at(&self.folder, name);
        let text = file.and_then(|file| input_file::text(file, size_max));
        text.map_err(|error| Error::io(&self.path.join(name), error))
    }

    /// Opens a file that the tool has left in nested folders of the step. Follows no links.
    pub(super) fn take(&self, folders: &[&str], name: &str) -> io::Result<File> {
        let mut folder = self.folder.try_clone()?;
        for name in folders {
            folder = open_at(&folder, name)?;
        }
        input_file::open_at(&folder, name)
    }

    /// Opens a folder in the step.
    pub(super) fn open(&self, name: &str) -> Result<File, Error> {
        open_at(&self.folder, name).map_err(|error| Error::io(&self.path.join(name), error))
    }
}

/// Opens a folder. Does not follow a symbolic link at the path, and does not block.
pub(super) fn open(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(OF_FOLDER.bits().cast_signed())
        .open(path)
}

const OF_FOLDER: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

fn open_at(parent: impl AsFd, name: &str) -> io::Result<File> {
    Ok(openat(parent, name, OF_FOLDER, Mode::empty())?.into())
}

/// Creates a folder and opens it.
fn create_at(parent: impl AsFd, name: &str) -> io::Result<File> {
    mkdirat(&parent, name, Mode::RWXU)?;
    open_at(parent, name)
}

/// True if the path still names this folder (same device and inode).
pub(super) fn is_at(folder: &File, path: &Path) -> bool {
    let there = fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
    let here = folder.metadata().map(|found| (found.dev(), found.ino()));
    matches!((there, here), (Ok(there), Ok(here)) if there == here)
}

/// Creates a folder in `parent` and opens it. The open folder stays the same when its name is given to
/// another.
pub(super) fn fresh(parent: &Path, prefix: &str) -> Result<(PathBuf, File), Error> {
    let failed = |error| Error::io(parent, error);
    loop {
        let created = tempfile::Builder::new().prefix(prefix).tempdir_in(parent);
        let path = created.map_err(failed)?.keep();
        match open(&path) {
            // Another program has removed it as a leftover.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            folder => return Ok((path, folder.map_err(failed)?)),
        }
    }
}

/// Removes what killed programs have left of builds: their scratch folders, and incomplete environments. What
/// cannot be removed within [`soon`] is left for the next call.
pub(super) fn sweep_killed(home: &Path) {
    let until = soon();
    let listed = |folder: &Path| {
        let late = move |_: &fs::DirEntry| until.is_none_or(|until| BootTime::now() < until);
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.take_while(late)
    };
    for entry in listed(&home.join(TEMPORARY)) {
        let (path, name) = (entry.path(), entry.file_name());
        let begins = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
        if begins(SCRATCH) {
            match open(&path) {
                Ok(folder) => sweep_unlocked(&folder, &path, until),
                // It is not a folder.
                Err(_) => sweep_other(&path),
            }
        } else if begins(SCRATCH_UNLOCKED) {
            let age = entry.metadata().and_then(|found| found.modified());
            let age = age.ok().and_then(|changed| changed.elapsed().ok());
            if age.is_some_and(|age| age > 2 * limits::PROVISION_TIMEOUT) {
                sweep(&path, until);
            }
        }
    }
    let venvs = home.join(VENVS);
    for entry in listed(&venvs) {
        let name = entry.file_name();
        if let Some((hash, _)) = name.to_str().and_then(|name| name.split_once(BEGUN)) {
            // A program that builds an environment holds the environment's lock.
            if let Ok(lock) = lock_file::open(&venvs.join(format!("{hash}.lock"))) {
                sweep_unlocked(&lock, &entry.path(), until);
            }
        }
    }
}

/// Removes a folder, unless a program holds its lock.
fn sweep_unlocked(lock: &File, folder: &Path, until: Option<BootTime>) {
    if lock.try_lock().is_ok() {
        sweep(folder, until);
    }
}

/// Removes a file or link, not a folder.
fn sweep_other(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir()) {
        sweep(path, None);
    }
}

/// The deadline for the removal of leftovers where the caller waits for it.
pub(super) fn soon() -> Option<BootTime> {
    Some(BootTime::now() + limits::SWEEP_TIME_MAX)
}

/// Removes a file or folder that Casparian has created. What cannot be removed in time is left for the next
/// attempt.
pub(super) fn sweep(path: &Path, until: Option<BootTime>) {
    match remover::remove(path, until) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            log::info!(
                "{} is large: the next start removes the rest",
                path.display()
            );
        }
        Err(error) => log::debug!("cannot remove {}: {error}", path.display()),
    }
}

/// A folder below `parent` in which something is built. Its name is unique, so the tools of a killed program
/// that are still running do not write into it. It is removed when this is dropped.
pub(super) struct Building {
    path: PathBuf,
    folder: File,
}

/// Name, in the new folder, of what is built or moved away.
const IT: &str = "it";

impl Building {
    /// Removes what other attempts left under the same prefix, as far as possible: a tool that outlives its
    /// program may still be writing there. The caller holds the lock.
    pub(super) fn new(parent: &Path, prefix: &str) -> Result<Self, Error> {
        let until = soon();
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
                sweep(&entry.path(), until);
            }
        }
        let (path, folder) = fresh(parent, &format!("{prefix}-"))?;
        Ok(Building { path, folder })
    }

    /// The path at which the caller builds. It does not exist yet.
    pub(super) fn path(&self) -> PathBuf {
        self.path.join(IT)
    }

    /// Moves what was built to its final path.
    pub(super) fn finish(self, target: &Path) -> Result<(), Error> {
        let failed = |error| Error::io(target, error);
        let found = statat(&self.folder, IT, AtFlags::SYMLINK_NOFOLLOW);
        let found = found.map_err(|error| failed(error.into()))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            let reason = "what was built is no folder";
            return Err(failed(io::Error::other(reason)));
        }
        let moved = renameat(&self.folder, IT, CWD, target);
        moved.map_err(|error| failed(error.into()))
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        sweep(&self.path, soon());
    }
}

/// Moves a folder away from its path, then removes it. `prefix` is the prefix of the [`Building`] that is to
/// be moved to this path.
pub(super) fn displace(path: &Path, prefix: &str) -> Result<(), Error> {
    let (Some(parent), true) = (path.parent(), path.symlink_metadata().is_ok()) else {
        return Ok(());
    };
    let away = move_away(path, parent, &format!("{prefix}-old-"))?;
    sweep(&away, soon());
    Ok(())
}

/// Moves a folder into a new folder in `parent`, and returns the path of the new folder.
pub(super) fn move_away(path: &Path, parent: &Path, prefix: &str) -> Result<PathBuf, Error> {
    let (away, folder) = fresh(parent, prefix)?;
    let moved = renameat(CWD, path, &folder, IT);
    if let Err(error) = moved {
        sweep(&away, soon());
        return Err(Error::io(path, error.into()));
    }
    Ok(away)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_building_folder_is_fresh_whatever_other_attempts_left() {
        let dir = tempfile::tempdir().unwrap();
        let leftover = dir.path().join(".x.new-dead");
        fs::create_dir_all(leftover.join("bin")).unwrap();
        fs::create_dir_all(dir.path().join(".x.new")).unwrap();
        let building = Building::new(dir.path(), ".x.new").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let target = dir.path().join("x");
        fs::create_dir_all(target.join("old")).unwrap();
        displace(&target, ".x.new").unwrap();
        fs::create_dir(building.path()).unwrap();
        building.finish(&target).unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        drop(Building::new(dir.path(), ".x.new").unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_replaces_a_building_folder_is_neither_moved_nor_followed() {
        let dir = tempfile::tempdir().unwrap();
        let stranger = dir.path().join("stranger");
        fs::create_dir_all(stranger.join(IT)).unwrap();
        let building = Building::new(dir.path(), ".x.new").unwrap();
        fs::create_dir(building.path()).unwrap();
        fs::rename(&building.path, dir.path().join("moved")).unwrap();
        std::os::unix::fs::symlink(&stranger, &building.path).unwrap();
        building.finish(&dir.path().join("x")).unwrap();
        assert!(stranger.join(IT).exists());
        let building = Building::new(dir.path(), ".y.new").unwrap();
        std::os::unix::fs::symlink(&stranger, building.path()).unwrap();
        let reason = building.finish(&dir.path().join("y")).unwrap_err();
        assert!(reason.to_string().ends_with("what was built is no folder"));
    }

    #[test]
    fn files_of_a_step_are_created_and_only_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "kept").unwrap();
        let scratch = Scratch::new(dir.path()).unwrap();
        let step = scratch.step().unwrap();
        std::os::unix::fs::symlink(&victim, step.path().join("link")).unwrap();
        assert!(step.write("link", "x").is_err());
        assert!(step.read("link", 10).is_err());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "kept");
        step.write("file", "12345").unwrap();
        assert_eq!(step.read("file", 5).unwrap(), "12345");
        let reason = step.read("file", 4).unwrap_err().to_string();
        assert!(reason.ends_with("it has more than 4 bytes"), "{reason}");
        assert!(scratch.step().unwrap().read("file", 5).is_err());
    }
}
