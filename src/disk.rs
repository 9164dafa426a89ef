//! The room on the disk of a folder.

use std::io;
use std::path::Path;

use rustix::fs::statvfs;

/// An error when a folder's file system has less room than that, in bytes. Of a small file system a quarter
/// is enough.
pub(crate) fn check_room(folder: &Path, room: u64) -> io::Result<()> {
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
pub(crate) fn size(folder: &Path) -> u64 {
    statvfs(folder).map_or(u64::MAX, |found| {
        found.f_blocks.saturating_mul(found.f_frsize)
    })
}

/// True where a disk or a quota is used up.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
