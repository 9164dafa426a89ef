//! Opens the files that Casparian's programs lock by `flock`, and finds the process that has a lock.
//!
//! A process that can open a file can lock it. So only the owner of a lock file can open it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
#[cfg(feature = "worker")]
use rustix::fs::{major, minor};
use rustix::process::geteuid;

#[cfg(feature = "worker")]
use crate::proc_file;

/// Opens a lock file, and creates it where it is missing. It must be a regular file of this user, of root, or
/// of the owner of its folder, who can replace it anyway. A file of this user gets the mode 0600. Never
/// blocks, and does not follow a symbolic link at the path.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let found = file.metadata()?;
    let us = geteuid().as_raw();
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if ![us, 0].contains(&found.uid()) {
        let folder = path.parent().map(fs::metadata).transpose()?;
        if folder.is_none_or(|folder| folder.uid() != found.uid()) {
            return Err(io::Error::other(format!(
                "it belongs to user {}, who could keep it locked; remove it",
                found.uid()
            )));
        }
    }
    if found.uid() == us && found.mode() & 0o777 != 0o600 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Creates a lock file. Fails where it exists.
#[cfg(feature = "worker")]
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path)
}

/// A process that has a lock.
#[cfg(feature = "worker")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its process ID.
    pub(crate) pid: i32,
    /// Its user, where that is not the user of this process.
    pub(crate) other_user: Option<u32>,
    /// It is stopped (SIGSTOP), so it does not release the lock.
    pub(crate) is_stopped: bool,
}

#[cfg(feature = "worker")]
impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {}", self.pid)?;
        match self.other_user {
            Some(user) => write!(f, " of user {user}"),
            None => Ok(()),
        }
    }
}

/// The process that has the lock of a file, by `/proc/locks`. None for locks of other hosts.
#[cfg(feature = "worker")]
pub(crate) fn holder(path: &Path) -> Option<Holder> {
    let found = fs::metadata(path).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let device = (major(found.dev()), minor(found.dev()));
    let pid = pid_of(&locks, device, found.ino())?;
    let process = format!("/proc/{pid}");
    let stat = proc_file::read(format!("{process}/stat")).ok()?;
    // For a process that is not dumpable the owner of `/proc/<pid>` is root. Its status has the user.
    let status = proc_file::read(format!("{process}/status")).ok()?;
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let user = user.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    // The name of the program comes before the state, and may contain any text.
    let (_, state) = stat.rsplit_once(") ")?;
    Some(Holder {
        pid,
        other_user: user.filter(|user| *user != geteuid().as_raw()),
        is_stopped: state.starts_with(['T', 't']),
    })
}

/// The process that has the lock on an inode, from the text of `/proc/locks`. Some file systems have another
/// device number there. Then the result is the process of the only lock on that inode number, if there is
/// one.
#[cfg(feature = "worker")]
fn pid_of(locks: &str, device: (u32, u32), inode: u64) -> Option<i32> {
    let mut others = Vec::new();
    for line in locks.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE" | "READ", pid, file, ..] = words.as_slice() else {
            continue;
        };
        let mut parts = file.split(':');
        let mut number = |base| u64::from_str_radix(parts.next()?, base).ok();
        let (Some(major), Some(minor), Some(found)) = (number(16), number(16), number(10)) else {
            continue;
        };
        let pid = pid.parse().ok().filter(|pid| *pid > 0);
        if found == inode {
            if (major, minor) == (device.0.into(), device.1.into()) {
                return pid;
            }
            others.push(pid);
        }
    }
    match others.as_slice() {
        [pid] => *pid,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_file_is_a_regular_one_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mode = || fs::metadata(&path).unwrap().mode() & 0o777;
        open(&path).unwrap();
        assert_eq!(mode(), 0o600);
        for open_to in [0o644, 0o666, 0o400] {
            fs::set_permissions(&path, Permissions::from_mode(open_to)).unwrap();
            if open(&path).is_ok() {
                assert_eq!(mode(), 0o600, "{open_to:o}");
            }
        }
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        for refused in [link.as_path(), &fifo, dir.path()] {
            assert!(open(refused).is_err(), "{}", refused.display());
        }
        if geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(65_533), None).unwrap();
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains("belongs to user 65533"), "{error}");
            std::os::unix::fs::chown(dir.path(), Some(65_533), None).unwrap();
            open(&path).unwrap();
        }
    }

    #[cfg(feature = "worker")]
    #[test]
    fn the_process_of_a_lock_is_found_in_what_the_kernel_lists() {
        let locks = "1: FLOCK  ADVISORY  WRITE 7 fe:0a:12 0 EOF\n\
             2: POSIX  ADVISORY  WRITE 8 fe:0b:12 0 EOF\n\
             3: FLOCK  ADVISORY  WRITE 9 fe:0b:12 0 EOF\n\
             3: -> FLOCK  ADVISORY  WRITE 10 fe:0b:12 0 EOF\n\
             4: FLOCK  ADVISORY  READ 11 00:31:13 0 EOF\nx\n";
        assert_eq!(pid_of(locks, (0xfe, 0xb), 12), Some(9));
        assert_eq!(pid_of(locks, (1, 1), 13), Some(11), "on btrfs");
        assert_eq!(pid_of(locks, (1, 1), 12), None);
        assert_eq!(pid_of(locks, (1, 1), 14), None);
    }
}
