//! The limit of file descriptors (RLIMIT_NOFILE) of a worker, and the number of slots for which it suffices.

use std::fmt;
use std::io;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::slot::Failure;
use crate::job::Cause;
use crate::limits;
use crate::plugin::process::Process;

/// The soft limit with which the program was started.
static AT_START: OnceLock<Option<u64>> = OnceLock::new();

/// Raises the soft limit to the hard limit. Plugin processes get the earlier soft limit.
#[cfg(feature = "cli")]
pub(crate) fn raise_limit() -> io::Result<()> {
    AT_START.get_or_init(|| getrlimit(Resource::Nofile).current);
    crate::sink::raise_descriptor_limit().map(|_| ())
}

/// Sets the soft limit of a process that was just started to the one with which this program was started.
pub(super) fn restore_limit(process: &Process) {
    if let Some(limit) = AT_START.get()
        && let Err(error) = process.limit_descriptors(*limit)
    {
        log::debug!("process {}: cannot limit its files: {error}", process.id());
    }
}

/// The limit does not suffice for the requested slots.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    wanted: usize,
    needed: u64,
    limit: u64,
    /// Number of slots for which it suffices.
    pub(super) slots: usize,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shortage {
            wanted,
            needed,
            limit,
            slots,
        } = self;
        let noun = if *wanted == 1 {
            "slot needs"
        } else {
            "slots need"
        };
        write!(
            f,
            "{wanted} {noun} {needed} descriptors, the limit is {limit}"
        )?;
        match slots {
            0 => f.write_str(": it suffices for no slot")?,
            slots => write!(f, ": runs with {slots}")?,
        }
        f.write_str("; raise it with `ulimit -n`")
    }
}

/// Checks whether the current limit suffices for that many slots.
pub(super) fn check(wanted: usize) -> Result<(), Shortage> {
    // If the folder cannot be read, only stdin, stdout and stderr are counted.
    let open = std::fs::read_dir("/proc/self/fd").map_or(3, Iterator::count);
    shortage(wanted, open as u64, getrlimit(Resource::Nofile).current)
}

fn shortage(wanted: usize, open: u64, limit: Option<u64>) -> Result<(), Shortage> {
    let Some(limit) = limit else {
        return Ok(());
    };
    let slot = limits::SLOT_DESCRIPTORS + limits::INTERPRETER_DESCRIPTORS;
    let base = open.saturating_add(limits::WORKER_DESCRIPTORS);
    let needed = base.saturating_add(slot.saturating_mul(wanted as u64));
    if needed <= limit {
        return Ok(());
    }
    let slots = limit.saturating_sub(base) / slot;
    Err(Shortage {
        wanted,
        needed,
        limit,
        slots: usize::try_from(slots).unwrap_or(usize::MAX),
    })
}

/// Text of an OS error, with advice if descriptors are used up.
fn explained(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE) => match getrlimit(Resource::Nofile).current {
            Some(limit) => format!(
                "too many open files (limit {limit}); raise it with `ulimit -n`, or use fewer --slots"
            ),
            None => error.to_string(),
        },
        _ => error.to_string(),
    }
}

/// A failure of a job because of an OS error that is the worker's fault.
pub(super) fn worker_failure(what: &str, error: &io::Error) -> Failure {
    Failure::new(Cause::Worker, format!("{what}: {}", explained(error)))
}

/// As [`worker_failure`], before the job's process runs. If threads, memory or descriptors are used up, other
/// jobs have used them. So the job is given back, and the worker takes no more jobs until it has tested
/// itself.
pub(super) fn start_failure(what: &str, error: &io::Error) -> Failure {
    let used_up = matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory
    ) || matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE)
    );
    Failure {
        is_uncounted: used_up,
        is_trouble: used_up,
        ..worker_failure(what, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_cannot_start_because_of_others_is_given_back() {
        for (errno, given_back) in [
            (Errno::AGAIN, true),
            (Errno::NOMEM, true),
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::NOSPC, false),
            (Errno::ACCESS, false),
        ] {
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            let failure = start_failure("writer thread", &error);
            let found = (failure.cause, failure.is_uncounted, failure.is_trouble);
            assert_eq!(found, (Cause::Worker, given_back, given_back), "{errno}");
            // An error as for a thread, without an errno.
            let named = io::Error::new(error.kind(), "thread writer-1 cannot be started");
            if matches!(errno, Errno::AGAIN | Errno::NOMEM) {
                assert!(
                    start_failure("writer thread", &named).is_uncounted,
                    "{errno}"
                );
            }
        }
    }

    #[test]
    fn slots_are_bounded_by_the_limit() {
        let per_slot = limits::SLOT_DESCRIPTORS + limits::INTERPRETER_DESCRIPTORS;
        let base = 10 + limits::WORKER_DESCRIPTORS;
        let slots = |wanted, limit| {
            let found = shortage(wanted, 10, Some(limit));
            found.map_or_else(|shortage| shortage.slots, |()| wanted)
        };
        assert_eq!(slots(64, base + 64 * per_slot), 64);
        assert_eq!(slots(64, base + 64 * per_slot - 1), 63);
        assert_eq!(slots(64, base + per_slot), 1);
        assert_eq!(slots(64, base + per_slot - 1), 0);
        assert_eq!(slots(1, 0), 0);
        assert_eq!(shortage(1024, 10, None), Ok(()));
        let text = shortage(1, 0, Some(5)).unwrap_err().to_string();
        assert!(
            text.contains("the limit is 5: it suffices for no slot"),
            "{text}"
        );
    }

    #[test]
    fn the_error_of_a_lack_of_descriptors_states_what_to_do() {
        let full = io::Error::from_raw_os_error(Errno::MFILE.raw_os_error());
        let failure = worker_failure("bridge", &full);
        assert_eq!(failure.cause, Cause::Worker);
        assert!(
            failure
                .message
                .starts_with("bridge: too many open files (limit ")
        );
        assert!(failure.message.contains("ulimit -n"), "{}", failure.message);
        let other = io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error());
        let failure = worker_failure("bridge", &other);
        assert_eq!(failure.message, format!("bridge: {other}"));
    }
}
