//! The table of open descriptors.

use std::fs;
use std::io;
use std::os::fd::RawFd;

use nix::sched::CloneFlags;

/// Gives this thread a table of its own, with the standard descriptors alone: a process that another
/// thread starts closes its copy of each in the program's, which waits for storage that does not respond.
pub(crate) fn unshare() -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_FILES)?;
    close_others()
}

/// Closes all of the caller's table but the standard ones. Nothing of the program may own one.
pub(crate) fn close_others() -> io::Result<()> {
    let listed = fs::read_dir("/proc/thread-self/fd")?;
    let numbers = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let numbers: Vec<RawFd> = numbers.filter(|number| *number > 2).collect();
    for number in numbers {
        // That of the list is closed by now.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}
