//! The run's own access to its queue, in addition to that of its sentinel. While the database is locked or
//! its storage fails, each step is tried again for a bounded time. So are steps on the output folder while
//! its disk is full.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::cli::progress::Progress;
use crate::cli::{Failure, failed};
use crate::limits;
use crate::sink;
use crate::store::{Error, Open, Store};

/// Advice for an end that no file has caused.
pub(super) const GO_ON: &str = "the same command goes on with the rest";

/// Interval at which an interruption is polled for during a wait.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Interval at which a wait is reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Why a run ended before its jobs.
#[derive(Debug)]
pub(super) enum End {
    /// The run failed, and its queue is usable.
    Failed(Failure),
    /// The queue or the output folder is unusable. The run no longer uses them.
    Lost(String),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        End::Failed(failure)
    }
}

impl From<sink::Error> for End {
    fn from(error: sink::Error) -> Self {
        Failure::from(error).into()
    }
}

impl From<End> for Failure {
    fn from(end: End) -> Self {
        match end {
            End::Failed(failure) => failure,
            End::Lost(reason) => Failure::Failed(reason),
        }
    }
}

/// Why one attempt at a step failed.
pub(super) enum Stop {
    /// The queue failed, perhaps temporarily.
    Queue(Error),
    /// The output folder failed, perhaps temporarily.
    Output(sink::Error),
    /// Another failure. The step is not tried again.
    Other(Failure),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Queue(error)
    }
}

impl From<sink::Error> for Stop {
    fn from(error: sink::Error) -> Self {
        Stop::Output(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Other(failure)
    }
}

/// The run's access to its queue, see the module's documentation.
pub(super) struct Queue<'a> {
    database: &'a Path,
    /// Longest time for which a step may fail.
    longest: Duration,
    interrupted: &'a AtomicBool,
    store: Option<Store>,
    reported_at: Option<Instant>,
}

impl<'a> Queue<'a> {
    pub(super) fn new(database: &'a Path, longest: Duration, interrupted: &'a AtomicBool) -> Self {
        Queue {
            database,
            longest,
            interrupted,
            store: None,
            reported_at: None,
        }
    }

    pub(super) fn database(&self) -> &'a Path {
        self.database
    }

    pub(super) fn interrupted(&self) -> &'a AtomicBool {
        self.interrupted
    }

    /// Opens the existing database.
    pub(super) fn open(&self) -> Result<Store, Error> {
        Store::open_within(self.database, Open::Existing, limits::STORE_BUSY_TIMEOUT)
    }

    /// Runs a step on the open queue, e.g. a transaction. A failed step must have no effect, or one that the
    /// next attempt replaces.
    pub(super) fn step<T>(
        &mut self,
        progress: &Progress,
        mut step: impl FnMut(&mut Store) -> Result<T, Stop>,
    ) -> Result<T, End> {
        let mut kept = self.store.take();
        let done = self.wait_for(progress, |queue| {
            let store = match &mut kept {
                Some(store) => {
                    store.check_identity()?;
                    store
                }
                None => kept.insert(queue.open()?),
            };
            step(store)
        });
        self.store = kept;
        done
    }

    /// Tries a step until it succeeds. Gives up at an interruption, at a permanent failure, or when it has
    /// failed for `longest`.
    pub(super) fn wait_for<T>(
        &mut self,
        progress: &Progress,
        mut step: impl FnMut(&Self) -> Result<T, Stop>,
    ) -> Result<T, End> {
        let mut since = None;
        loop {
            let error = match step(self) {
                Ok(done) => return Ok(done),
                Err(Stop::Other(failure)) => return Err(failure.into()),
                Err(Stop::Queue(error)) if !error.may_pass() => return Err(self.refused(&error)),
                Err(Stop::Queue(error)) => shown(self.database, &error),
                Err(Stop::Output(error)) if !error.may_pass() => return Err(error.into()),
                Err(Stop::Output(error)) => format!("output folder: {error}"),
            };
            let now = Instant::now();
            let since = *since.get_or_insert(now);
            if self.interrupted.load(Ordering::SeqCst) {
                return Err(Failure::Interrupted("interrupted").into());
            }
            if now.saturating_duration_since(since) >= self.longest {
                return Err(End::Lost(given_up(&error, self.longest)));
            }
            if self
                .reported_at
                .is_none_or(|at| at + REPORT_INTERVAL <= now)
            {
                self.reported_at = Some(now);
                progress.note(&format!(
                    "{error}; waiting for at most {} s (--outage-timeout)",
                    self.longest.as_secs()
                ));
            }
            let until = now + limits::STORE_RETRY_PAUSE;
            while Instant::now() < until && !self.interrupted.load(Ordering::SeqCst) {
                std::thread::sleep(POLL_INTERVAL);
            }
        }
    }

    /// The end of the run because of a permanent failure.
    fn refused(&self, error: &Error) -> End {
        match error {
            Error::Replaced { .. } => End::Lost(replaced(error)),
            Error::Sqlite(_) | Error::Row(_) => {
                let path = self.database.display();
                failed(format!("queue {path}: {}", error.reason())).into()
            }
            other => failed(other).into(),
        }
    }
}

/// Text about a failure of a queue.
pub(super) fn shown(database: &Path, error: &Error) -> String {
    format!("queue {}: {}", database.display(), error.reason())
}

/// The reason when a step that failed for too long is given up.
pub(super) fn given_up(error: &str, longest: Duration) -> String {
    format!(
        "{error}; it failed for {} s (--outage-timeout); once it works, {GO_ON}",
        longest.as_secs()
    )
}

/// The reason when a queue was replaced or removed.
pub(super) fn replaced(error: &Error) -> String {
    match error {
        Error::Replaced { path, reason } => format!(
            "queue {}: {reason}; put it back if you can, and {GO_ON}",
            path.display()
        ),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> Stop {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
        Stop::Queue(rusqlite::Error::SqliteFailure(code, None).into())
    }

    #[test]
    fn a_step_is_tried_until_it_works_or_cannot() {
        let interrupted = AtomicBool::new(false);
        let path = Path::new("/q");
        let mut queue = Queue::new(path, Duration::from_secs(60), &interrupted);
        let mut tries = 0;
        let done = queue.wait_for(&Progress::Quiet, |_| {
            tries += 1;
            if tries < 3 { Err(busy()) } else { Ok(tries) }
        });
        assert_eq!(done.unwrap(), 3);
        // Permanent errors are reported at once.
        let missing = Error::Missing {
            path: path.to_owned(),
        };
        let mut errors = vec![missing.into(), failed("x").into()];
        for want in ["x", "/q"] {
            let error = errors.pop().unwrap();
            let mut error = Some(error);
            let end = queue.wait_for::<()>(&Progress::Quiet, |_| Err(error.take().unwrap()));
            let Err(End::Failed(Failure::Failed(text))) = end else {
                panic!("{end:?}")
            };
            assert!(text.contains(want), "{text}");
        }
        let mut queue = Queue::new(path, Duration::ZERO, &interrupted);
        let end = queue.wait_for::<()>(&Progress::Quiet, |_| Err(busy()));
        let Err(End::Lost(text)) = end else {
            panic!("{end:?}")
        };
        for want in ["/q", "locked", "--outage-timeout", GO_ON] {
            assert!(text.contains(want), "{text}");
        }
    }

    #[test]
    fn an_interruption_ends_the_wait() {
        let interrupted = AtomicBool::new(false);
        let longest = Duration::from_secs(3600);
        let mut queue = Queue::new(Path::new("/q"), longest, &interrupted);
        let end = queue.wait_for::<()>(&Progress::Quiet, |queue| {
            queue.interrupted().store(true, Ordering::SeqCst);
            Err(busy())
        });
        assert!(matches!(end, Err(End::Failed(Failure::Interrupted(_)))));
    }
}
