//! The table of open descriptors.

use std::fs;
use std::io;
use std::os::fd::RawFd;

use nix::sched::CloneFlags;

/// Gives this thread a descriptor table of its own, with only the standard descriptors. Otherwise a process
/// that another thread starts would have copies of this thread's open files. To close a copy, that process
/// would wait for storage that does not respond.
pub(crate) fn unshare() -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_FILES)?;
    close_others()
}

/// Closes all descriptors of the caller's table except the standard ones. No value of the program may own one
/// of them.
pub(crate) fn close_others() -> io::Result<()> {
    let listed = fs::read_dir("/proc/thread-self/fd")?;
    let numbers = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let numbers: Vec<RawFd> = numbers.filter(|number| *number > 2).collect();
    for number in numbers {
        // The descriptor of the list itself is already closed.
        let _ = nix::unistd::close(number);
    }
    Ok(())
}
