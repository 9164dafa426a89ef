//! Reads the content of inputs on a thread of its own. If an input's storage does not respond, only that
//! input fails, not the program.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::{Failure, failed};
use crate::input_file;
use crate::job;
use crate::limits;
use crate::reactor::BootTime;
use crate::thread;

/// State of a file's content.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fingerprint {
    pub(super) size_bytes: u64,
    /// Modification time in seconds.
    pub(super) mtime_s: f64,
    /// SHA-256 in hex.
    pub(super) hash: String,
}

/// What is at the path of a file.
pub(super) enum Found {
    /// A file of the known size and time, or no regular file. A plugin or another program may have moved or
    /// replaced the file.
    NothingNew,
    /// Content.
    Content(Fingerprint),
    /// A file whose content cannot be read. It does not have the known size and time.
    Unreadable(io::Error),
}

/// Reads files one after another.
pub(super) struct Reader<'a> {
    /// Set when the user interrupts the program.
    interrupted: &'a AtomicBool,
    thread: Option<Thread>,
    /// Number of threads that wait for storage which did not respond.
    silent: usize,
}

struct Request {
    path: PathBuf,
    known: Option<(u64, f64)>,
}

struct Thread {
    requests: Sender<Request>,
    answers: Receiver<Found>,
    /// Number of reading steps that have completed.
    steps: Arc<AtomicU64>,
    /// The answer is no longer needed.
    is_unwanted: Arc<AtomicBool>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.is_unwanted.store(true, Ordering::Relaxed);
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(interrupted: &'a AtomicBool) -> Self {
        Reader {
            interrupted,
            thread: None,
            silent: 0,
        }
    }

    /// Reads a file's content, unless its size and time are equal to `known`. Fails if its storage has not
    /// responded for [`limits::INPUT_TIMEOUT`]. `note` is called to report such a wait.
    pub(super) fn read(
        &mut self,
        path: &Path,
        known: Option<(u64, f64)>,
        note: &dyn Fn(&str),
    ) -> Result<Found, Failure> {
        let fail = |error| cannot_read(path, &error);
        if self.silent >= limits::INPUTS_SILENT_MAX {
            let reason = "the storage of too many inputs does not respond";
            return Err(fail(io::Error::other(reason)));
        }
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => Thread::start().map_err(fail)?,
        };
        let request = Request {
            path: path.to_owned(),
            known,
        };
        // If the thread has ended, there is no answer.
        let _ = thread.requests.send(request);
        let mut steps = thread.steps.load(Ordering::Relaxed);
        let mut moved_at = BootTime::now();
        let mut is_reported = false;
        loop {
            match thread.answers.recv_timeout(Duration::from_millis(100)) {
                Ok(found) => {
                    self.thread = Some(thread);
                    return Ok(found);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(fail(io::Error::other(NOT_READ)));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Failure::Interrupted("interrupted"));
            }
            let now = BootTime::now();
            let taken = thread.steps.load(Ordering::Relaxed);
            if taken != steps {
                (steps, moved_at, is_reported) = (taken, now, false);
            }
            let silence = now.saturating_duration_since(moved_at);
            if silence >= limits::INPUT_TIMEOUT {
                self.silent += 1;
                let seconds = silence.as_secs();
                let reason = format!("its storage has not responded for {seconds} s");
                return Err(fail(io::Error::other(reason)));
            }
            if silence >= limits::INPUT_SILENCE_REPORTED && !is_reported {
                is_reported = true;
                let path = path.display();
                note(&format!(
                    "input {path}: its storage does not respond; waiting"
                ));
            }
        }
    }

    /// Reads a file's content. Fails if that is not possible.
    pub(super) fn fingerprint(
        &mut self,
        path: &Path,
        note: &dyn Fn(&str),
    ) -> Result<Fingerprint, Failure> {
        match self.read(path, None, note)? {
            Found::Content(print) => Ok(print),
            Found::Unreadable(error) => Err(cannot_read(path, &error)),
            Found::NothingNew => Err(cannot_read(path, &io::Error::other(NOT_READ))),
        }
    }
}

const NOT_READ: &str = "it could not be read";

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    failed(format!("input {}: {error}", path.display()))
}

impl Thread {
    fn start() -> io::Result<Self> {
        let (requests, wanted) = channel::<Request>();
        let (answer, answers) = channel();
        let steps = Arc::new(AtomicU64::new(0));
        let is_unwanted = Arc::new(AtomicBool::new(false));
        let (done, stop) = (steps.clone(), is_unwanted.clone());
        thread::start("input", move || {
            if let Err(error) = crate::descriptors::unshare() {
                log::warn!("descriptors of the thread that reads inputs: {error}");
            }
            for request in wanted {
                if answer.send(find(&request, &done, &stop)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Thread {
            requests,
            answers,
            steps,
            is_unwanted,
        })
    }
}

fn find(request: &Request, steps: &AtomicU64, is_unwanted: &AtomicBool) -> Found {
    if let Some((size, mtime)) = request.known {
        match fs::metadata(&request.path) {
            Ok(found) if !found.is_file() => return Found::NothingNew,
            Ok(found) if found.len() == size && mtime_s(&found) == mtime => {
                return Found::NothingNew;
            }
            Ok(_) => {}
            Err(_) => return Found::NothingNew,
        }
    }
    match read(&request.path, steps, is_unwanted) {
        Ok(print) => Found::Content(print),
        Err(error) => Found::Unreadable(error),
    }
}

fn read(path: &Path, steps: &AtomicU64, is_unwanted: &AtomicBool) -> io::Result<Fingerprint> {
    let mut file = input_file::open(path)?;
    let metadata = file.metadata()?;
    let hashed = input_file::hash(&mut file, || {
        steps.fetch_add(1, Ordering::Relaxed);
        !is_unwanted.load(Ordering::Relaxed)
    })?;
    let (size_bytes, hash) = hashed.ok_or_else(|| io::Error::other(input_file::CHANGED))?;
    Ok(Fingerprint {
        size_bytes,
        mtime_s: mtime_s(&metadata),
        hash,
    })
}

/// A file's modification time in seconds.
pub(super) fn mtime_s(metadata: &Metadata) -> f64 {
    job::mtime_s(job::mtime_ns(metadata.mtime(), metadata.mtime_nsec()))
}
