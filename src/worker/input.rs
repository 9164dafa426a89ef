//! Checks a job's input before and after the job. A thread of its own does that, because the input's storage
//! may not respond. That is a fault of the input, not of the output folder.
//!
//! At the start, size and modification time are compared with those of the job's file version. Where they
//! differ or are unknown, the content is hashed. At the end, the file is compared with its state at the
//! start.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::descriptors::start_failure;
use super::slot::Failure;
use crate::input_file;
use crate::job::{Cause, Content, mtime_ns};
use crate::limits;
use crate::plugin::bridge::InputState;
use crate::reactor::BootTime;
use crate::thread;

/// Number of threads that check an input now. A thread whose storage does not respond stays counted.
static WATCHERS: AtomicUsize = AtomicUsize::new(0);

/// What a plugin process found at the path of its input, before the plugin ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Found {
    /// It has not reported it.
    #[default]
    Unknown,
    /// A regular file.
    File(InputState),
    /// Nothing that it could read.
    Refused,
}

/// Identity and state of a file, from its metadata.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Time of status change. It also changes with permissions, names and links, and cannot be set.
    changed: (i64, i64),
    /// Mode, owner, group and number of links.
    attributes: (u32, u32, u32, u64),
}

impl Identity {
    fn new(found: &Metadata) -> Self {
        Identity {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
            attributes: (found.mode(), found.uid(), found.gid(), found.nlink()),
        }
    }

    /// None if it is not a regular file, or its metadata cannot be read.
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        found.is_file().then(|| Identity::new(&found))
    }

    /// True if this is the file that a plugin process has found. Attributes may differ
    /// ([`Identity::differs_in_attributes_alone`]). Numbers of users are not compared: user namespaces have
    /// others.
    fn is_found(&self, found: &InputState) -> bool {
        let (mode, _, _, links) = self.attributes;
        let ns = |(seconds, nanoseconds)| mtime_ns(seconds, nanoseconds);
        let is_same_file = (self.device, self.inode, self.size, ns(self.modified))
            == (found.device, found.inode, found.size, found.mtime_ns);
        let is_same_state = ns(self.changed) == found.ctime_ns;
        is_same_file && (is_same_state || (u64::from(mode), links) != (found.mode, found.links))
    }

    /// True if attributes have changed and no other difference is visible. If only `changed` differs, the
    /// file may have been written to and its modification time restored (`cp -p`), so that is false.
    fn differs_in_attributes_alone(&self, other: &Identity) -> bool {
        let Identity {
            changed,
            attributes,
            ..
        } = *other;
        let is_same = Identity {
            changed,
            attributes,
            ..*self
        } == *other;
        is_same && attributes != self.attributes
    }
}

/// A folder or link on the path to a file, with its metadata.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Step {
    device: u64,
    inode: u64,
    is_link: bool,
    modified: (i64, i64),
    changed: (i64, i64),
    attributes: (u32, u32, u32),
}

impl Step {
    /// True if the folder or link was replaced or renamed between these two states. Then the path may have
    /// led to another file in between, even if it leads to the same file again.
    fn was_moved(&self, after: &Step) -> bool {
        let is_same =
            (self.device, self.inode, self.is_link) == (after.device, after.inode, after.is_link);
        // A new entry sets `mtime` and `ctime` of a folder to the same time. A rename of the folder sets only
        // its `ctime`. utimes sets `mtime`, usually to an earlier time, and `ctime` to the current time.
        let set_by_entries = after.modified == self.modified || after.modified > self.changed;
        let is_renamed = self.is_link
            || after.changed != after.modified
                && set_by_entries
                && self.attributes == after.attributes;
        !is_same || self.changed != after.changed && is_renamed
    }
}

/// The folders and links of a path, first as it is written, then with all links followed.
fn steps_to(path: &Path) -> Vec<Step> {
    let real = fs::canonicalize(path).unwrap_or_default();
    let folders = path.ancestors().skip(1);
    let links = path
        .symlink_metadata()
        .is_ok_and(|found| found.is_symlink());
    folders
        .chain(real.ancestors().skip(1))
        .chain(links.then_some(path))
        .filter_map(|step| {
            let found = step.symlink_metadata().ok()?;
            Some(Step {
                device: found.dev(),
                inode: found.ino(),
                is_link: found.is_symlink(),
                modified: (found.mtime(), found.mtime_nsec()),
                changed: (found.ctime(), found.ctime_nsec()),
                attributes: (found.mode(), found.uid(), found.gid()),
            })
        })
        .collect()
}

/// An input that is checked from the start of its job.
pub(super) struct Input {
    path: PathBuf,
    /// Requests the second check.
    again: Sender<Check>,
    answers: Receiver<Result<(), Failure>>,
    progress: Arc<Progress>,
}

/// A request for the second check.
struct Check {
    /// See [`Input::check_briefly`].
    is_brief: bool,
    found: Found,
}

/// State that an input shares with its thread.
#[derive(Default)]
struct Progress {
    /// Number of steps of reading that have completed.
    steps: AtomicU64,
    is_unwanted: AtomicBool,
}

impl Drop for Input {
    fn drop(&mut self) {
        self.progress.is_unwanted.store(true, Ordering::Relaxed);
    }
}

impl Input {
    /// Starts the first check. Fails if no thread can be started, or if too many threads wait for storage
    /// that does not respond. `serial` = the job's serial number in this worker process.
    pub(super) fn watch(
        path: &Path,
        content: Option<&Content>,
        serial: u64,
    ) -> Result<Self, Failure> {
        if WATCHERS.load(Ordering::SeqCst) >= limits::INPUTS_WATCHED_MAX {
            let reason = "the storage of too many inputs does not respond";
            return Err(failure(path, reason));
        }
        let (again, wanted) = channel();
        let (answer, answers) = channel();
        WATCHERS.fetch_add(1, Ordering::SeqCst);
        let counted = Counted;
        let progress = Arc::new(Progress::default());
        let watcher = Watcher {
            path: path.to_owned(),
            content: content.cloned(),
            progress: progress.clone(),
        };
        thread::start(format!("input-{serial}"), move || {
            let _counted = counted;
            // Before the thread opens a descriptor.
            if let Err(error) = crate::descriptors::unshare() {
                log::warn!("descriptors of the thread that reads an input: {error}");
            }
            let (before, begun) = match watcher.begin() {
                Ok(before) => (before, Ok(())),
                Err(failure) => {
                    // It does not count against the worker, and does not show that the worker works: the
                    // plugin may not have run.
                    let is_neutral_for_worker = true;
                    let failure = Failure {
                        is_neutral_for_worker,
                        ..failure
                    };
                    (None, Err(failure))
                }
            };
            let goes_on = begun.is_ok();
            let kept = before.and_then(|before| watcher.keep(before));
            let steps = steps_to(&watcher.path);
            // The receiver may have been dropped.
            let _ = answer.send(begun);
            if goes_on && let Ok(Check { is_brief, found }) = wanted.recv() {
                let ended = watcher.end(before, kept, &steps, is_brief);
                let _ = answer.send(ended.and_then(|()| watcher.compare(before, found)));
            }
        })
        .map_err(|error| start_failure("thread for the input", &error))?;
        Ok(Input {
            path: path.to_owned(),
            again,
            answers,
            progress,
        })
    }

    /// Waits for the first check. Fails if the input is not that of the job's file version, or if its storage
    /// has not responded for `silence_max`. Returns none once `is_wanted` is false, which is polled every 100
    /// ms.
    pub(super) fn begin(
        &self,
        silence_max: Duration,
        is_wanted: impl Fn() -> bool,
    ) -> Option<Result<(), Failure>> {
        self.answer(silence_max, is_wanted)
    }

    /// Starts the second check, at the job's end and after [`Input::begin`], and waits for it. Fails if the
    /// input has changed or is not what the plugin process has found, or if its storage has not responded for
    /// `silence_max`. Returns none as [`Input::begin`] does.
    pub(super) fn compare(
        &self,
        found: Found,
        silence_max: Duration,
        is_wanted: impl Fn() -> bool,
    ) -> Option<Result<(), Failure>> {
        // If the thread has ended, there is no answer.
        let is_brief = false;
        let _ = self.again.send(Check { is_brief, found });
        self.answer(silence_max, is_wanted)
    }

    /// As [`Input::compare`], after the plugin has failed. `has_begun`: [`Input::begin`] has returned. No
    /// more is read than the next attempt needs to detect what has changed.
    pub(super) fn check_briefly(
        &self,
        found: Found,
        has_begun: bool,
        silence_max: Duration,
        is_wanted: impl Fn() -> bool,
    ) -> Option<Result<(), Failure>> {
        let is_brief = true;
        let _ = self.again.send(Check { is_brief, found });
        if !has_begun {
            let begun = self.answer(silence_max, &is_wanted)?;
            if begun.is_err() {
                return Some(begun);
            }
        }
        self.answer(silence_max, is_wanted)
    }

    fn answer(
        &self,
        silence_max: Duration,
        is_wanted: impl Fn() -> bool,
    ) -> Option<Result<(), Failure>> {
        let mut moved_at = BootTime::now();
        let mut steps = self.progress.steps.load(Ordering::Relaxed);
        loop {
            match self.answers.recv_timeout(Duration::from_millis(100)) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Disconnected) => return Some(Ok(())),
                Err(RecvTimeoutError::Timeout) if !is_wanted() => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = BootTime::now();
            let taken = self.progress.steps.load(Ordering::Relaxed);
            if taken != steps {
                (steps, moved_at) = (taken, now);
            }
            let waited = now.saturating_duration_since(moved_at);
            if waited >= silence_max {
                let reason = format!(
                    "its storage has not responded for {} s, so it is not known whether it changed",
                    waited.as_secs()
                );
                return Some(Err(failure(&self.path, &reason)));
            }
        }
    }
}

const MOVED: &str = "a folder or link above it was replaced or renamed while the job ran, so the job may \
                     have read another file";

/// The thread's side of an input.
struct Watcher {
    path: PathBuf,
    /// Content of the job's file version.
    content: Option<Content>,
    progress: Arc<Progress>,
}

impl Watcher {
    /// The state of the file at the start. Fails if its content is not that of the file version.
    fn begin(&self) -> Result<Option<Identity>, Failure> {
        let Some(known) = self
            .content
            .as_ref()
            .filter(|known| known.sha256().is_some())
        else {
            return Ok(Identity::of(&self.path));
        };
        // The plugin process refuses paths without metadata, and kinds of files that no plugin could read. A
        // plugin may read a folder, if a folder was registered.
        let Ok(found) = fs::metadata(&self.path) else {
            return Ok(None);
        };
        if found.is_dir() {
            return Err(failure(&self.path, "it is a folder, not a file"));
        }
        if !found.is_file() {
            return Ok(None);
        }
        if known.has_metadata(found.size(), mtime_ns(found.mtime(), found.mtime_nsec())) {
            return Ok(Some(Identity::new(&found)));
        }
        let hashed = self
            .hash()
            .map_err(|error| failure(&self.path, &error.to_string()))?;
        match hashed {
            Some((identity, content))
                if content
                    .hash
                    .as_deref()
                    .is_some_and(|hash| known.has_hash(hash)) =>
            {
                Ok(Some(identity))
            }
            Some((_, content)) => {
                let reason = "its content is not that of the job's file version any more";
                Err(self.changed(reason, Some(content)))
            }
            None => Err(self.changed(input_file::CHANGED, None)),
        }
    }

    /// A descriptor that refers to the file wherever it is moved. It can neither read nor lock the file
    /// (O_PATH).
    fn keep(&self, before: Identity) -> Option<File> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let kept = rustix::fs::open(&self.path, flags, Mode::empty()).ok()?;
        let kept = File::from(kept);
        let is_it = kept
            .metadata()
            .is_ok_and(|found| found.ino() == before.inode);
        is_it.then_some(kept)
    }

    /// Whether the file at the end is that of the start. `is_brief`: see [`Input::check_briefly`].
    fn end(
        &self,
        before: Option<Identity>,
        kept: Option<File>,
        steps: &[Step],
        is_brief: bool,
    ) -> Result<(), Failure> {
        let reason = "it changed while the job ran, so the job may have read parts of both";
        let Some(after) = Identity::of(&self.path) else {
            // A plugin may have moved it. The descriptor still refers to it.
            let now = kept.and_then(|kept| Some(Identity::new(&kept.metadata().ok()?)));
            let content = |it: Identity| (it.size, it.modified);
            return match before.zip(now) {
                Some((before, now)) if content(before) != content(now) => {
                    Err(self.changed(reason, None))
                }
                _ => Ok(()),
            };
        };
        let known = self.content.as_ref();
        let is_comparable = known.is_some_and(|known| known.sha256().is_some());
        let is_other = match before {
            Some(before) if before == after => {
                let now = steps_to(&self.path);
                let mut pairs = steps.iter().zip(&now);
                let is_moved =
                    steps.len() != now.len() || pairs.any(|(old, new)| old.was_moved(new));
                return match is_moved {
                    true => Err(self.changed(MOVED, None)),
                    false => Ok(()),
                };
            }
            Some(before) => !before.differs_in_attributes_alone(&after),
            // The file did not exist at the start.
            None if is_comparable => true,
            None => return Ok(()),
        };
        if !is_other && !is_comparable {
            return Ok(());
        }
        let (seconds, nanoseconds) = after.modified;
        let shows = |known: &Content| {
            is_comparable && !known.has_metadata(after.size, mtime_ns(seconds, nanoseconds))
        };
        if is_brief && is_other && known.is_some_and(shows) {
            return Err(self.changed(reason, None));
        }
        let hashed = known.map(|_| self.hash());
        let content = match hashed {
            // Only its attributes differ.
            Some(Err(_)) if !is_other => return Ok(()),
            Some(Ok(hashed)) => hashed.map(|(_, content)| content),
            Some(Err(_)) | None => None,
        };
        let hash = content.as_ref().and_then(|content| content.hash.as_deref());
        let is_known = hash
            .zip(known)
            .is_some_and(|(hash, known)| known.has_hash(hash));
        if is_known && !is_other {
            return Ok(());
        }
        Err(self.changed(reason, content.filter(|_| !is_known)))
    }

    /// Whether the plugin process had the file that this thread has checked. They may be in different mount
    /// namespaces, and so have different files at one path. `before`: the file at the start.
    fn compare(&self, before: Option<Identity>, found: Found) -> Result<(), Failure> {
        let own = before.or_else(|| Identity::of(&self.path));
        let reason = match (found, own) {
            (Found::Unknown, _) => return Ok(()),
            (Found::File(found), Some(own)) if own.is_found(&found) => return Ok(()),
            (Found::File(_), Some(_)) => "the plugin process had another file at this path",
            (Found::File(_), None) => {
                "the plugin process had a file at this path, and the worker finds none"
            }
            // Neither finds a file that it can read.
            (Found::Refused, _) if before.is_none() || input_file::open(&self.path).is_err() => {
                return Ok(());
            }
            (Found::Refused, _) => "the worker can read it, and the plugin process could not",
        };
        Err(Failure {
            other_input: true,
            is_neutral_for_worker: true,
            ..failure(&self.path, reason)
        })
    }

    /// Hashes the file. None if it was written to or replaced while it was read.
    fn hash(&self) -> io::Result<Option<(Identity, Content)>> {
        let mut file = input_file::open(&self.path)?;
        let before = Identity::new(&file.metadata()?);
        let hashed = input_file::hash(&mut file, || {
            self.progress.steps.fetch_add(1, Ordering::Relaxed);
            !self.progress.is_unwanted.load(Ordering::Relaxed)
        })?;
        let is_whole = Identity::of(&self.path) == Some(before);
        let (seconds, nanoseconds) = before.modified;
        let whole = hashed.filter(|_| is_whole).map(|(size, hash)| {
            let content = Content {
                size_bytes: Some(size),
                mtime_ns: Some(mtime_ns(seconds, nanoseconds)),
                hash: Some(hash),
            };
            (before, content)
        });
        Ok(whole)
    }

    fn changed(&self, reason: &str, content: Option<Content>) -> Failure {
        Failure {
            input_changed: true,
            content: content.map(Box::new),
            ..failure(&self.path, reason)
        }
    }
}

fn failure(path: &Path, reason: &str) -> Failure {
    Failure::new(Cause::Input, format!("input: {}: {reason}", path.display()))
}

/// Decrements [`WATCHERS`] when it is dropped at the end of a thread.
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        WATCHERS.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
