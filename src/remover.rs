//! Removes folders that plugins or build code have filled, with any number of files and any depth.
//!
//! There is no recursion, and no path grows: a nested folder that is not empty is moved into the folder that
//! is being removed, before its own content is listed. Symbolic links are not followed. Files that other
//! processes add meanwhile may stay.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, chmod, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::limits;
use crate::reactor::BootTime;

/// Removes a file, a link or a folder, at most until a deadline ([`io::ErrorKind::TimedOut`]). Succeeds where
/// the path does not exist.
pub(crate) fn remove(path: &Path, deadline: Option<BootTime>) -> io::Result<()> {
    match unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    empty(path, deadline)?;
    match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes everything in a folder, at most until a deadline. The folder itself stays.
pub(crate) fn empty(folder: &Path, deadline: Option<BootTime>) -> io::Result<()> {
    let root = open_folder(CWD, folder)?;
    let late = || deadline.is_some_and(|at| at <= BootTime::now());
    let mut failed = Ok(());
    // Each round removes one level of folders. The folders in them are moved up for the next round. A round
    // that removes nothing is the last.
    for _ in 0..limits::CLEANER_ROUNDS_MAX {
        let mut progress = false;
        for name in Dir::read_from(&root)? {
            if late() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let name = name?;
            let name = name.file_name();
            if is_self_or_parent(name) {
                continue;
            }
            match remove_entry(&root, name, &root, &late) {
                Ok(()) | Err(Errno::NOENT) => progress = true,
                Err(error) => failed = Err(error.into()),
            }
        }
        if !progress {
            return failed;
        }
        failed = Ok(());
    }
    failed
}

fn is_self_or_parent(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Removes one entry. A folder's own folders are moved up into `root` unless they are empty.
fn remove_entry(
    parent: &OwnedFd,
    name: &CStr,
    root: &OwnedFd,
    late: &dyn Fn() -> bool,
) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        result => return result,
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {}
        result => return result,
    }
    let folder = open_folder(parent, name)?;
    for entry in Dir::read_from(&folder)? {
        if late() {
            return Err(Errno::TIMEDOUT);
        }
        let entry = entry?;
        let entry = entry.file_name();
        if is_self_or_parent(entry) {
            continue;
        }
        match unlinkat(&folder, entry, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => match move_up(&folder, entry, root) {
                // To move a folder it must be writable itself: its parent entry changes.
                Err(Errno::ACCESS) => {
                    drop(open_folder(&folder, entry)?);
                    move_up(&folder, entry, root)?;
                }
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn move_up(folder: &OwnedFd, name: &CStr, root: &OwnedFd) -> Result<(), Errno> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if unlinkat(folder, name, AtFlags::REMOVEDIR).is_ok() {
        return Ok(());
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    renameat(folder, name, root, format!("moved-{count:x}"))
}

/// Opens a folder, never through a symbolic link, and gives its owner all permissions.
fn open_folder<P: rustix::path::Arg + Copy>(
    parent: impl std::os::fd::AsFd + Copy,
    name: P,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = openat(parent, name, flags | OFlags::PATH, Mode::empty())?;
    let mode = rustix::fs::fstat(&handle)?.st_mode;
    if mode & 0o700 != 0o700 {
        chmod(format!("/proc/self/fd/{}", handle.as_raw_fd()), Mode::RWXU)?;
    }
    openat(parent, name, flags | OFlags::RDONLY, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn everything_goes_whatever_its_depth_and_modes() {
        let dir = tempfile::tempdir().unwrap();
        let trash = dir.path().join("trash");
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(trash.join("job/wide/inner")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "x").unwrap();
        for number in 0..500 {
            std::fs::write(trash.join(format!("job/wide/{number}")), "x").unwrap();
        }
        std::os::unix::fs::symlink(&outside, trash.join("job/link")).unwrap();
        std::fs::write(trash.join("file"), "x").unwrap();
        let locked = trash.join("job/wide");
        std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o000)).unwrap();
        // Deeper than the longest path and than a recursion should be.
        let script = "import os\nfor _ in range(3000):\n    os.mkdir('d' * 50)\n    os.chdir('d' * 50)\n    open('f', 'w').close()\n";
        let deep = std::process::Command::new("python3")
            .args(["-c", script])
            .current_dir(&trash)
            .status()
            .unwrap();
        assert!(deep.success());
        empty(&trash, None).unwrap();
        assert_eq!(std::fs::read_dir(&trash).unwrap().count(), 0);
        std::os::unix::fs::symlink(&outside, trash.join("link")).unwrap();
        for path in [trash.join("link"), trash.clone(), trash.join("missing")] {
            remove(&path, None).unwrap();
            assert!(!path.exists());
        }
        assert!(outside.join("kept").exists());
        assert!(empty(&dir.path().join("missing"), None).is_err());
    }

    #[test]
    fn a_deadline_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let error = empty(dir.path(), Some(BootTime::default())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
