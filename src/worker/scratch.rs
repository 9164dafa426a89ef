//! Free disk space for the working directories of jobs, which are HOME and TMPDIR of their processes.
//!
//! A plugin that fails while other jobs or programs have filled that file system has often failed for this
//! reason. Then the failure is the worker's. If the plugin has filled it itself, the failure stays the
//! plugin's.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::meter::folder_size;
use super::slot::Failure;
use crate::job::Cause;
use crate::{disk, limits};

/// Texts that Python and libraries use when a disk or a quota is full (ENOSPC, EDQUOT).
const WORDS: &[&str] = &[
    "[Errno 28]",
    "[Errno 122]",
    "No space left on device",
    "Disk quota exceeded",
    "database or disk is full",
];

/// Decides again about the cause of a plugin's failure, by the free space for its working directory. The
/// job's processes have ended. `folder` = the worker's private folder, which contains the working directory.
pub(super) fn judged(failure: Failure, folder: &Path, work_dir: &Path) -> Failure {
    if !failure.ended_by_plugin_code {
        return failure;
    }
    let is_named = WORDS.iter().any(|words| failure.message.contains(words));
    let tested = if is_named {
        check(folder).and_then(|()| write(folder))
    } else {
        disk::check_room(folder, limits::SCRATCH_ROOM_LEAST)
    };
    let Err(lack) = tested else {
        return failure;
    };
    let most = limits::SCRATCH_OWN_MAX.min(disk::size(folder) / 2);
    let used = folder_size(work_dir, most);
    let path = folder.display();
    if used >= most {
        let message = format!(
            "{}\n(the job has filled the file system of its working directory: it had {used} bytes or more there)",
            failure.message
        );
        return Failure { message, ..failure };
    }
    let message = format!(
        "no room for working directories of jobs in {path}: {lack}; free some, or set TMPDIR of the worker to \
         a folder elsewhere. The plugin failed meanwhile:\n{}",
        failure.message
    );
    Failure {
        cause: Cause::Worker,
        message,
        is_trouble: true,
        ..failure
    }
}

/// Fails if a folder's file system is almost full.
pub(super) fn check(folder: &Path) -> io::Result<()> {
    disk::check_room(folder, limits::DISK_ROOM)
}

/// Fails if a write exceeds a quota. Other errors do not concern free space.
fn write(folder: &Path) -> io::Result<()> {
    let written = || -> io::Result<()> {
        let mut file: File = tempfile::tempfile_in(folder)?;
        file.write_all(&[1; 256 << 10])
    };
    match written() {
        Err(error) if disk::is_full(&error) => Err(error),
        _ => Ok(()),
    }
}
