//! Why an environment could not be created.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::job::Cause;

/// Why an environment could not be created.
#[derive(Debug)]
pub enum Error {
    /// The hash is not a SHA-256, or not that of the lockfile.
    Hash {
        /// The hash, as received.
        hash: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A tool is missing or cannot be installed.
    Tool(String),
    /// A tool failed, or an interpreter is not usable.
    Failed {
        /// The command, or the file.
        what: String,
        /// Its last lines of output, or the reason.
        tail: String,
    },
    /// A tool took too long.
    Timeout {
        /// The command.
        what: String,
        /// The limit.
        limit: Duration,
        /// Its last lines of output.
        tail: String,
    },
    /// Another process has held a lock for too long.
    Held {
        /// The process and the lock.
        what: String,
        /// How long this process waited for it.
        waited: Duration,
    },
    /// An existing environment is broken and could not be created again.
    Broken {
        /// Its folder.
        folder: PathBuf,
        /// How it is broken.
        reason: String,
        /// Why it could not be created again.
        error: Box<Error>,
    },
    /// The worker that asked for it is stopping.
    Cancelled,
    /// A file could not be read or written.
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Error::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn failed(what: &str, error: io::Error) -> Self {
        Error::Failed {
            what: what.to_owned(),
            tail: error.to_string(),
        }
    }

    /// The cause of the failure. It is the environment also where the home cannot be written, because that
    /// affects only environments that are to be created there.
    pub fn cause(&self) -> Cause {
        match self {
            Error::Cancelled => Cause::Worker,
            Error::Broken { error, .. } => error.cause(),
            _ => Cause::Environment,
        }
    }

    /// True if the same call may succeed shortly after.
    pub fn may_pass(&self) -> bool {
        match self {
            Error::Failed { .. } | Error::Io { .. } => true,
            Error::Broken { error, .. } => error.may_pass(),
            _ => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Hash { hash, reason } => write!(f, "environment {hash:?}: {reason}"),
            Error::Tool(reason) => f.write_str(reason),
            Error::Failed { what, tail } => write!(f, "{what} failed: {tail}"),
            Error::Timeout { what, limit, tail } => {
                write!(f, "{what} took longer than {} s", limit.as_secs())?;
                match tail.is_empty() {
                    true => f.write_str(" and printed nothing"),
                    false => write!(f, ": {tail}"),
                }
            }
            Error::Held { what, waited } => {
                write!(f, "{what}: given up after {} s", waited.as_secs())
            }
            Error::Broken {
                folder,
                reason,
                error,
            } => write!(
                f,
                "{error}\nThe environment {} was to be made again, since it is broken: {reason}. Once the reason \
                 above is removed, the next run makes it; `casparian env prune` removes all that are not in use",
                folder.display()
            ),
            Error::Cancelled => f.write_str("interrupted"),
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {}
