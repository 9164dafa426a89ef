//! The room that jobs have in their working directories, which are HOME and TMPDIR of their processes.
//!
//! A plugin that fails while others have filled that file system has often failed for this reason: then the
//! failure is the worker's. A plugin that has filled it itself keeps its failure.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::statvfs;

use super::meter::folder_size;
use super::slot::Failure;
use crate::job::Cause;
use crate::limits;

/// What Python and libraries say where a disk or a quota is used up (ENOSPC, EDQUOT).
const WORDS: &[&str] = &[
    "[Errno 28]",
    "[Errno 122]",
    "No space left on device",
    "Disk quota exceeded",
    "database or disk is full",
];

/// A plugin's failure with the cause that it has by the room in its working directory, whose processes
/// have ended. `folder` = the worker's own, in which it is.
pub(super) fn judged(failure: Failure, folder: &Path, work_dir: &Path) -> Failure {
    if !failure.is_plugins_end {
        return failure;
    }
    let is_named = WORDS.iter().any(|words| failure.message.contains(words));
    let tested = if is_named {
        check(folder).and_then(|()| write(folder))
    } else {
        check_for(folder, limits::SCRATCH_ROOM_LEAST)
    };
    let Err(lack) = tested else {
        return failure;
    };
    let most = limits::SCRATCH_OWN_MAX.min(size(folder) / 2);
    let used = folder_size(work_dir, most);
    let place = folder.display();
    if used >= most {
        let message = format!(
            "{}\n(the job has filled the file system of its working directory: it had {used} bytes or more there)",
            failure.message
        );
        return Failure { message, ..failure };
    }
    let message = format!(
        "no room for working directories of jobs in {place}: {lack}; free some, or set TMPDIR of the worker to \
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

/// An error when a folder's file system is about full.
pub(super) fn check(folder: &Path) -> io::Result<()> {
    check_for(folder, limits::SCRATCH_ROOM)
}

/// The same with another bound. Of a small file system a quarter is enough.
fn check_for(folder: &Path, room: u64) -> io::Result<()> {
    let Ok(found) = statvfs(folder) else {
        return Ok(());
    };
    // What is kept for root counts for root.
    let (blocks, files) = match rustix::process::getuid().is_root() {
        true => (found.f_bfree, found.f_ffree),
        false => (found.f_bavail, found.f_favail),
    };
    let free = blocks.saturating_mul(found.f_frsize);
    if free < room.min(size(folder) / 4) {
        return Err(io::Error::other(format!(
            "its file system has {free} bytes free"
        )));
    }
    // Some have no number of files.
    if found.f_files > 0 && files == 0 {
        return Err(io::Error::other("its file system can hold no more files"));
    }
    Ok(())
}

/// Bytes of a folder's file system.
fn size(folder: &Path) -> u64 {
    statvfs(folder).map_or(u64::MAX, |found| {
        found.f_blocks.saturating_mul(found.f_frsize)
    })
}

/// A quota shows when something is written. Other errors are not about room.
fn write(folder: &Path) -> io::Result<()> {
    let written = || -> io::Result<()> {
        let mut file: File = tempfile::tempfile_in(folder)?;
        file.write_all(&[1; 256 << 10])
    };
    match written() {
        Err(error) if is_full(&error) => Err(error),
        _ => Ok(()),
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
