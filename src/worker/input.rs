//! A job's input before and after the job, looked at by a thread of its own, because the input's
//! storage may not respond: that is a fault of the input, not of the output folder.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::descriptors::worker_failure;
use super::slot::Failure;
use crate::job::Cause;
use crate::limits;
use crate::reactor::BootTime;

/// Threads that look at an input now. One whose storage does not respond stays.
static LOOKING: AtomicUsize = AtomicUsize::new(0);

/// What a file is, as far as its metadata show it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Identity {
    /// None of what is not a regular file, or cannot be asked for.
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        found.is_file().then(|| Identity {
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }
}

/// An input that is watched from the start of its job.
pub(super) struct Input {
    path: PathBuf,
    /// Asks for what it is now, for which the answer comes second.
    again: Sender<()>,
    answers: Receiver<Option<Identity>>,
}

impl Input {
    /// Looks at it for the first time. A failure when no thread can be had, or when too many wait
    /// for storage that does not respond. `serial` = the job's number in the worker's life.
    pub(super) fn watch(path: &Path, serial: u64) -> Result<Self, Failure> {
        if LOOKING.load(Ordering::SeqCst) >= limits::INPUTS_WATCHED_MAX {
            let reason = format!(
                "input: {}: the storage of too many inputs does not respond",
                path.display()
            );
            return Err(Failure::new(Cause::Input, reason));
        }
        let (again, wanted) = channel();
        let (answer, answers) = channel();
        LOOKING.fetch_add(1, Ordering::SeqCst);
        let looking = Looking;
        let input = path.to_owned();
        std::thread::Builder::new()
            .name(format!("input-{serial}"))
            .spawn(move || {
                let _looking = looking;
                // Nobody may wait for the answers any more.
                let _ = answer.send(Identity::of(&input));
                if wanted.recv().is_ok() {
                    let _ = answer.send(Identity::of(&input));
                }
            })
            .map_err(|error| worker_failure("thread for the input", &error))?;
        Ok(Input {
            path: path.to_owned(),
            again,
            answers,
        })
    }

    /// Looks at it again, at the job's end: a failure when it has changed. None once `is_wanted`
    /// is false, which is asked every tenth of a second.
    pub(super) fn compare(&self, is_wanted: impl Fn() -> bool) -> Option<Result<(), Failure>> {
        let began = BootTime::now();
        // A thread that has ended gives no answer.
        let _ = self.again.send(());
        let mut both = [None; 2];
        for found in &mut both {
            *found = loop {
                match self.answers.recv_timeout(Duration::from_millis(100)) {
                    Ok(found) => break found,
                    Err(RecvTimeoutError::Disconnected) => break None,
                    Err(RecvTimeoutError::Timeout) if !is_wanted() => return None,
                    Err(RecvTimeoutError::Timeout) => {}
                }
                let waited = BootTime::now().saturating_duration_since(began);
                if waited >= limits::INPUT_TIMEOUT {
                    return Some(Err(self.silent(waited)));
                }
            };
        }
        match both {
            [Some(before), Some(after)] if before != after => Some(Err(self.changed())),
            _ => Some(Ok(())),
        }
    }

    fn silent(&self, waited: Duration) -> Failure {
        let reason = format!(
            "input: {}: its storage has not responded for {} s, so it is not known whether it \
             changed while the job ran",
            self.path.display(),
            waited.as_secs()
        );
        Failure::new(Cause::Input, reason)
    }

    fn changed(&self) -> Failure {
        let reason = format!(
            "input: {}: it changed while the job ran, so the job may have read parts of both",
            self.path.display()
        );
        Failure {
            input_changed: true,
            ..Failure::new(Cause::Input, reason)
        }
    }
}

/// Counts a thread until it ends.
struct Looking;

impl Drop for Looking {
    fn drop(&mut self) {
        LOOKING.fetch_sub(1, Ordering::SeqCst);
    }
}
