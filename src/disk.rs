//! Free space of a folder's file system.

use std::io;
use std::path::Path;

use rustix::fs::statvfs;

/// Checks that a folder's file system has `room` bytes free, or a quarter of its size if that is less. It
/// must also be able to have further files. Passes where the file system cannot be queried.
pub(crate) fn check_room(folder: &Path, room: u64) -> io::Result<()> {
    let Ok(found) = statvfs(folder) else {
        return Ok(());
    };
    // Root may also use the reserved blocks and files.
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
    // Some file systems do not report a number of files.
    if found.f_files > 0 && files == 0 {
        return Err(io::Error::other("its file system can hold no more files"));
    }
    Ok(())
}

/// Size of a folder's file system in bytes.
pub(crate) fn size(folder: &Path) -> u64 {
    statvfs(folder).map_or(u64::MAX, |found| {
        found.f_blocks.saturating_mul(found.f_frsize)
    })
}

/// True where the disk is full or a quota is exceeded.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
