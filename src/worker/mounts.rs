//! The mounts that the worker sees, and whether they have changed.
//!
//! A fork server with a mount namespace of its own has the mounts of its start. File systems that are mounted
//! or unmounted later are not mounted or unmounted there. So a job gets a new fork server once the worker's
//! mounts differ from those at the fork server's start, and an idle fork server ends once a file system is
//! unmounted.
//!
//! The kernel reports changes of a mount namespace by POLLPRI of `/proc/self/mountinfo`. Each open file reports
//! each change once.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::limits;

const PATH: &str = "/proc/self/mountinfo";

/// The mounts at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Hashes of their lines in mountinfo, sorted.
    lines: Arc<[u64]>,
    /// Number of [`MountTable::distrust`] calls before.
    distrusted: u64,
}

impl Mounted {
    /// True if one of these mounts is not among the later ones.
    pub(super) fn lacks_in(&self, later: &Mounted) -> bool {
        let is_there = |line: &u64| later.lines.binary_search(line).is_ok();
        !self.lines.iter().all(is_there)
    }
}

/// The mounts of this process's namespace.
#[derive(Debug, Default)]
pub(super) struct MountTable {
    /// None where mountinfo cannot be read. Then no change is seen.
    file: Option<File>,
    /// The open file by which the event loop wakes up. It is another one, because a poll of the event loop
    /// takes the report of a change.
    _watched: Option<File>,
    current: Mounted,
    /// Number of changes that were seen.
    changes: u64,
    /// Jobs that were given back because their process had other mounts, with the number of times.
    given_back: BTreeMap<i64, u32>,
}

impl MountTable {
    /// Reads the mounts, and registers for changes.
    pub(super) fn open(registry: &Registry, token: Token) -> Self {
        let open = || -> io::Result<MountTable> {
            let (file, watched) = (File::open(PATH)?, File::open(PATH)?);
            let source = watched.as_raw_fd();
            registry.register(&mut SourceFd(&source), token, Interest::PRIORITY)?;
            let mut table = MountTable {
                file: Some(file),
                _watched: Some(watched),
                ..MountTable::default()
            };
            table.read()?;
            Ok(table)
        };
        open().unwrap_or_else(|error| {
            log::warn!("{PATH}: {error}: fork servers do not follow changes of mounts");
            MountTable::default()
        })
    }

    /// The present mounts. Without a change this is one system call.
    pub(super) fn current(&mut self) -> &Mounted {
        if self.has_changed() {
            self.changes += 1;
            if let Err(error) = self.read() {
                log::warn!("{PATH}: {error}");
            }
        }
        &self.current
    }

    /// Number of changes until now.
    pub(super) fn changes(&mut self) -> u64 {
        self.current();
        self.changes
    }

    fn has_changed(&self) -> bool {
        let Some(file) = &self.file else {
            return false;
        };
        let mut polled = [PollFd::new(file, PollFlags::PRI)];
        let found = poll(&mut polled, Some(&Timespec::default()));
        let reported = polled.first().map_or(PollFlags::empty(), PollFd::revents);
        found.is_ok() && reported.intersects(PollFlags::PRI | PollFlags::ERR)
    }

    fn read(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        self.current.lines = hashes(&bytes);
        Ok(())
    }

    /// A process had another file at the path of its input, although the mounts of its fork server were equal to
    /// those of the worker: a file system may be unmounted and another one mounted with the same line in
    /// mountinfo. So from now on the mounts differ from those of all running fork servers.
    ///
    /// Returns true if the job may be given back for that. After some times it may not, because other programs
    /// may change mounts all the time.
    pub(super) fn distrust(&mut self, job_id: i64) -> bool {
        self.current.distrusted += 1;
        let count = self.given_back.entry(job_id).or_insert(0);
        *count += 1;
        let may = *count <= limits::OTHER_MOUNTS_MAX;
        if !may {
            self.given_back.remove(&job_id);
        }
        while self.given_back.len() > limits::SUSPECTS_MAX {
            self.given_back.pop_first();
        }
        may
    }

    /// A job has ended without being given back for its mounts.
    pub(super) fn handle_job_end(&mut self, job_id: i64) {
        self.given_back.remove(&job_id);
    }
}

fn hashes(mountinfo: &[u8]) -> Arc<[u64]> {
    let hash = |line: &[u8]| {
        let mut hasher = DefaultHasher::new();
        line.hash(&mut hasher);
        hasher.finish()
    };
    let mut lines: Vec<u64> = mountinfo.split(|byte| *byte == b'\n').map(hash).collect();
    lines.sort_unstable();
    lines.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_that_has_ended_or_changed_is_seen() {
        let mounted = |text: &[u8]| Mounted {
            lines: hashes(text),
            distrusted: 0,
        };
        let before = mounted(b"22 1 0:2 / / rw - ext4 a rw\n23 22 0:3 / /m rw - tmpfs t rw\n");
        let more = mounted(
            b"22 1 0:2 / / rw - ext4 a rw\n24 22 0:3 / /n rw - tmpfs t rw\n23 22 0:3 / /m rw - tmpfs t rw\n",
        );
        let changed = mounted(b"22 1 0:2 / / rw - ext4 a rw\n23 22 0:3 / /m ro - tmpfs t rw\n");
        for (one, other, lacks) in [
            (&before, &before, false),
            (&before, &more, false),
            (&more, &before, true),
            (&before, &changed, true),
        ] {
            assert_eq!(one.lacks_in(other), lacks);
            assert_eq!(one == other, std::ptr::eq(one, other));
        }
    }

    #[test]
    fn a_job_is_given_back_a_few_times_for_other_mounts() {
        let mut table = MountTable::default();
        let first = table.current().clone();
        for _ in 0..2 {
            for _ in 0..limits::OTHER_MOUNTS_MAX {
                assert!(table.distrust(7));
            }
            assert!(!table.distrust(7));
        }
        assert_ne!(*table.current(), first);
        assert!(!first.lacks_in(table.current()), "all are still mounted");
        for job in 0..2 * i64::try_from(limits::SUSPECTS_MAX).unwrap() {
            table.distrust(job);
        }
        assert_eq!(table.given_back.len(), limits::SUSPECTS_MAX);
    }
}
