//! Starts threads by name.

use std::io;
use std::thread::{Builder, JoinHandle};

/// Starts a thread with a name. The error contains the name, and what the user can do.
pub(crate) fn start<T: Send + 'static>(
    name: impl Into<String>,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let name = name.into();
    let started = Builder::new().name(name.clone()).spawn(run);
    started.map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            error.kind(),
            format!(
                "thread {name} cannot be started: {error}; allow this user more processes and threads \
                 (`ulimit -u`, or pids.max of the control group)"
            ),
        ),
        _ => io::Error::new(error.kind(), format!("thread {name} cannot be started: {error}")),
    })
}
