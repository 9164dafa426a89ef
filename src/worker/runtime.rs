//! A worker's private folder for sockets and working directories. Its path is short enough for a socket's
//! path.
//!
//! Names of sockets and working directories are never used twice. So a process that escaped cannot change the
//! folder of a later job. A folder that another program removed (for example tmpwatch) is created again.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::cleaner::Cleaner;
use super::scratch;
use crate::plugin::SHIM;
use crate::reactor::BootTime;
use crate::sink::Root;
use crate::{limits, lock_file, remover};

/// Paths of a job's socket and working directory.
#[derive(Clone, Debug, Default)]
pub(super) struct JobPaths {
    /// The folder of the job's environment.
    pub(super) folder: PathBuf,
    pub(super) socket: PathBuf,
    pub(super) work_dir: PathBuf,
}

impl JobPaths {
    /// The paths of a job, by its serial number in this worker process.
    pub(super) fn new(folder: PathBuf, serial: u64) -> Self {
        JobPaths {
            socket: folder.join(format!("s{serial}")),
            work_dir: folder.join(format!("w{serial}")),
            folder,
        }
    }
}

/// The private folder. It is removed when this is dropped. The next worker removes what a killed worker left.
#[derive(Debug)]
pub(super) struct Runtime {
    folder: PathBuf,
    /// Held while the folder is used.
    lock: fs::File,
    cleaner: Cleaner,
    /// Numbers of the environments that have a folder here, by hash.
    environments: HashMap<String, u64>,
    next_environment: u64,
}

const PREFIX: &str = "casparian-";
const LOCK: &str = "lock";
const TRASH: &str = "trash";
const SHIM_NAME: &str = "shim.py";
/// Prefix of a worker's own folder, inside its user's folder.
const OWN_PREFIX: &str = "w";
/// Highest number in a name that is tried for the folder of a user.
const USER_FOLDERS_MAX: u32 = 999;

/// Limit of the base folder's path in bytes. A socket's path has at most 107 bytes. The user's folder, the
/// worker's own, that of an environment, and `s` with a number need some of them.
fn base_size_max() -> usize {
    let user = user_folder_name(USER_FOLDERS_MAX).len();
    107 - user - "//w123456/e12345678/s123456789012".len()
}

/// Name of a user's folder. Other users may have taken the names with lower numbers.
fn user_folder_name(number: u32) -> String {
    let user = rustix::process::getuid().as_raw();
    match number {
        0 => format!("{PREFIX}{user}"),
        number => format!("{PREFIX}{user}-{number}"),
    }
}

impl Runtime {
    pub(super) fn new() -> io::Result<Self> {
        let cleaner = Cleaner::start()?;
        let (folder, lock) = create()?;
        let runtime = Runtime {
            folder,
            lock,
            cleaner,
            environments: HashMap::new(),
            next_environment: 0,
        };
        runtime.sweep();
        Ok(runtime)
    }

    /// Creates the private folder again if it is missing, or files in it that are missing.
    pub(super) fn ensure(&mut self) -> io::Result<()> {
        let missing = |path: &Path| !path.exists();
        if missing(&self.folder) {
            log::warn!("{} was removed; using a new one", self.folder.display());
            (self.folder, self.lock) = create()?;
            return Ok(());
        }
        if missing(&self.folder.join(TRASH)) {
            fs::create_dir(self.folder.join(TRASH))?;
        }
        if missing(&self.shim()) {
            fs::write(self.shim(), SHIM)?;
        }
        if missing(&self.folder.join(LOCK)) {
            self.lock = locked(&self.folder)?;
        }
        Ok(())
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder that is hidden from plugins: that of all workers of the user.
    pub(super) fn hidden_folder(&self) -> &Path {
        self.folder.parent().unwrap_or(&self.folder)
    }

    pub(super) fn shim(&self) -> PathBuf {
        self.folder.join(SHIM_NAME)
    }

    /// The folder of an environment's jobs. Other environments do not see it. Environments that are not
    /// `in_use` may lose their folders.
    pub(super) fn environment_folder(
        &mut self,
        hash: &str,
        in_use: &dyn Fn(&str) -> bool,
    ) -> io::Result<PathBuf> {
        let base = self.folder.clone();
        let path = |number: u64| base.join(format!("e{number}"));
        if let Some(number) = self.environments.get(hash) {
            let folder = path(*number);
            if fs::symlink_metadata(&folder).is_ok_and(|found| found.is_dir()) {
                return Ok(folder);
            }
            self.forget_environment(hash);
        }
        if self.environments.len() >= limits::WORKER_ENVIRONMENTS_MAX {
            for (_, number) in self.environments.extract_if(|hash, _| !in_use(hash)) {
                // What is left in it is removed with the private folder.
                let _ = fs::remove_dir(path(number));
            }
        }
        let folder = path(self.next_environment);
        self.next_environment += 1;
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let number = self.next_environment - 1;
        self.environments.insert(hash.to_owned(), number);
        Ok(folder)
    }

    /// Gives the next job of the environment another folder. Fork servers that see the old folder never see
    /// what is created at its path later.
    pub(super) fn forget_environment(&mut self, hash: &str) {
        self.environments.remove(hash);
    }

    /// Creates the working directory of a job.
    pub(super) fn create_work_dir(paths: &JobPaths) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(&paths.work_dir)
    }

    /// Removes a job's socket and working directory with everything in it. The removal itself runs in the
    /// background.
    pub(super) fn clear(&self, paths: &JobPaths, serial: u64) {
        let socket = fs::remove_file(&paths.socket);
        let from = &paths.work_dir;
        let trash = self.folder.join(TRASH);
        let moved = fs::rename(from, trash.join(serial.to_string()));
        for result in [socket, moved] {
            if let Err(error) = result
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!("cannot clear {}: {error}", from.display());
            }
        }
        self.cleaner.empty(&trash);
    }

    /// Removes folders whose lock is free, because their workers have ended. A new folder without a lock file
    /// is kept: its worker may just be starting.
    fn sweep(&self) {
        let entries = fs::read_dir(self.hidden_folder());
        let entries = entries.into_iter().flatten().flatten().filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().starts_with(OWN_PREFIX.as_bytes())
        });
        for (number, entry) in entries.enumerate() {
            if entry.path() == self.folder {
                continue;
            }
            let lock = open_lock(&entry.path().join(LOCK));
            let free = match &lock {
                Ok(file) => file.try_lock().is_ok(),
                Err(error) => error.kind() == io::ErrorKind::NotFound && is_old(&entry.path()),
            };
            let away = self.folder.join(TRASH).join(format!("old-{number}"));
            if free && let Err(error) = fs::rename(entry.path(), away) {
                log::debug!("cannot remove {}: {error}", entry.path().display());
            }
        }
        self.cleaner.empty(&self.folder.join(TRASH));
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let deadline = BootTime::now() + limits::CLEAN_AT_STOP;
        let removed = remove_unlocked(&self.folder, deadline);
        // The lock is free now, so the next worker removes the rest.
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            log::info!("{} is left behind: {error}", self.folder.display());
        }
    }
}

/// Removes the private folder. Its lock file is removed last, so that the next worker finds what is left when
/// this is cut off.
fn remove_unlocked(folder: &Path, deadline: BootTime) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() != LOCK {
            remover::remove(&entry.path(), Some(deadline))?;
        }
    }
    fs::remove_file(folder.join(LOCK))?;
    fs::remove_dir(folder)
}

/// True if a folder was not changed for so long that no worker starts in it, nor uses it without its lock file.
fn is_old(folder: &Path) -> bool {
    let changed = fs::symlink_metadata(folder).and_then(|found| found.modified());
    let age = changed.map(|at| at.elapsed().unwrap_or_default());
    age.is_ok_and(|age| age >= limits::UNLOCKED_FOLDER_MAX)
}

/// Opens an existing lock file. It may be a FIFO, so the open does not block.
fn open_lock(path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    fs::OpenOptions::new()
        .write(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

/// Creates the private folder below the first base folder that is short enough and usable.
fn create() -> io::Result<(PathBuf, fs::File)> {
    create_below(usual_bases(), create_in)
}

/// A locked folder for a socket, named as a worker's folder is. So workers remove it after its program has
/// ended.
#[cfg(all(feature = "sentinel", feature = "cli"))]
pub(crate) fn private_folder() -> io::Result<(tempfile::TempDir, fs::File)> {
    create_below(usual_bases(), |base| {
        let folder = own_folder(base)?;
        let lock = locked(folder.path())?;
        Ok((folder, lock))
    })
}

fn usual_bases() -> impl Iterator<Item = (&'static str, PathBuf)> {
    let variable = |name| std::env::var_os(name).map(|value| (name, PathBuf::from(value)));
    let usual = ["/tmp", "/dev/shm"].map(|base| Some(("", PathBuf::from(base))));
    let bases = [variable("TMPDIR"), variable("XDG_RUNTIME_DIR")];
    bases.into_iter().chain(usual).flatten()
}

/// Calls `create` for the base folders until it succeeds. Each base has the name of the variable it comes
/// from.
fn create_below<T>(
    bases: impl Iterator<Item = (&'static str, PathBuf)>,
    create: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let mut reasons = Vec::new();
    for (variable, base) in bases {
        let size = base.as_os_str().len();
        let reason = if !base.is_absolute() {
            "it is not an absolute path".to_owned()
        } else if size > base_size_max() {
            format!("its {size} bytes are more than {}", base_size_max())
        } else {
            match create(&base) {
                Ok(created) => return Ok(created),
                Err(error) => error.to_string(),
            }
        };
        let equals = if variable.is_empty() { "" } else { "=" };
        reasons.push(format!("{variable}{equals}{}: {reason}", base.display()));
    }
    let reasons = reasons.join("; ");
    Err(io::Error::other(format!(
        "{reasons}; set TMPDIR to a folder that can be used"
    )))
}

/// Creates a folder that only this user may enter, whatever the umask is.
fn private_below(base: &Path, prefix: &str) -> io::Result<tempfile::TempDir> {
    let private = fs::Permissions::from_mode(0o700);
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).permissions(private).tempdir_in(base)
}

/// Creates a folder inside that of the user.
fn own_folder(base: &Path) -> io::Result<tempfile::TempDir> {
    let mut made = Err(io::ErrorKind::NotFound.into());
    for _ in 0..10 {
        made = private_below(&user_folder(base)?, OWN_PREFIX);
        // The last program that used it may have removed it in the meantime.
        let is_missing = made.as_ref().err().map(io::Error::kind) == Some(io::ErrorKind::NotFound);
        if !is_missing {
            break;
        }
    }
    made
}

/// The folder of all workers of a user, which is hidden from their plugins. Programs that start at different
/// times use the same one, also while other users take and release its possible names: it is the first
/// existing one. Only if there is none, one is created. It is never removed: otherwise a plugin could create
/// it, and know the folder of the next worker.
fn user_folder(base: &Path) -> io::Result<PathBuf> {
    if let Some(folder) = first_user_folder(base) {
        return Ok(folder);
    }
    for number in 0..=USER_FOLDERS_MAX {
        let folder = base.join(user_folder_name(number));
        match ensure_private(&folder) {
            // Another program may have created one with another name at the same time.
            Ok(()) => return Ok(first_user_folder(base).unwrap_or(folder)),
            Err(error) if !folder.exists() => return Err(error),
            Err(_) if number == 0 => log::warn!(
                "{} is another user's, or others may enter it: using another name",
                folder.display()
            ),
            Err(_) => {}
        }
    }
    let name = user_folder_name(0);
    Err(io::Error::other(format!(
        "all names from {name} to {name}-{USER_FOLDERS_MAX} are other users'"
    )))
}

/// The first folder in a base that has the name of a user's folder and that only this user may enter.
fn first_user_folder(base: &Path) -> Option<PathBuf> {
    let first = user_folder_name(0);
    let number = |name: &std::ffi::OsStr| match name.to_str()?.strip_prefix(&first)? {
        "" => Some(0),
        number => {
            let number: u32 = number.strip_prefix('-')?.parse().ok()?;
            (name == user_folder_name(number).as_str() && number > 0).then_some(number)
        }
    };
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| Some((number(&entry.file_name())?, entry.path())));
    let own = found.filter(|(_, path)| is_private(path).unwrap_or(false));
    own.min().map(|(_, path)| path)
}

/// Creates a folder that only this user may enter, unless it exists.
fn ensure_private(folder: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    match is_private(folder)? {
        true => Ok(()),
        false => Err(io::Error::other("it is not this user's alone")),
    }
}

/// True for a folder of this user that no other user may enter.
fn is_private(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let found = fs::symlink_metadata(path)?;
    let user = rustix::process::getuid().as_raw();
    Ok(found.is_dir() && found.uid() == user && found.mode() & 0o077 == 0)
}

fn create_in(base: &Path) -> io::Result<(PathBuf, fs::File)> {
    let folder = own_folder(base)?;
    let lock = locked(folder.path())?;
    fs::create_dir(folder.path().join(TRASH))?;
    fs::write(folder.path().join(SHIM_NAME), SHIM)?;
    // From here on `Runtime` removes it. Its removal does not recurse.
    Ok((folder.keep(), lock))
}

/// Creates and locks the lock file of a private folder. While the lock is held, no worker removes the folder.
/// The file gets its name after it is locked, so no worker finds it unlocked.
fn locked(folder: &Path) -> io::Result<fs::File> {
    let fresh = folder.join("lock.new");
    let lock = lock_file::open(&fresh)?;
    lock.try_lock().map_err(io::Error::other)?;
    fs::rename(&fresh, folder.join(LOCK))?;
    Ok(lock)
}

/// Tests what jobs need of the private folder and the output root: folders, sockets, durable files, disk
/// space. Blocks while the disk does not respond.
pub(super) fn self_test(runtime: &Path, root: &Root) -> io::Result<()> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", runtime.display()));
    let test = private_below(runtime, "t").map_err(named)?;
    drop(UnixListener::bind(test.path().join("s")).map_err(named)?);
    durable_file(test.path()).map_err(named)?;
    scratch::check(runtime).map_err(named)?;
    root.test().map_err(io::Error::other)
}

fn durable_file(folder: &Path) -> io::Result<()> {
    let path = folder.join("a");
    let mut file = fs::File::create_new(&path)?;
    // As much as a small output, so that a disk with less free space fails the test.
    file.write_all(&[1; 256 << 10])?;
    file.sync_all()?;
    fs::rename(&path, folder.join("b"))
}

#[cfg(test)]
mod tests;
