//! Signals as readiness.

use std::io;
use std::sync::Arc;

use mio::{Interest, Registry, Token};
use nix::sys::signal::SigSet;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

/// Undoes what a program may inherit of signals, for itself and the processes that it starts: no
/// signal is blocked, and SIGCHLD is not ignored, since the kernel would keep no exit status then.
/// Called before there are other threads, which inherit what is blocked.
pub fn reset() -> io::Result<()> {
    // A handler is replaced by the default in processes that are started, SIG_IGN is not.
    signal_hook::flag::register(SIGCHLD, Arc::default())?;
    Ok(SigSet::all().thread_unblock()?)
}

/// SIGINT, SIGTERM and SIGHUP as a source of a reactor.
pub struct Signals {
    inner: signal_hook_mio::v1_0::Signals,
}

impl Signals {
    /// Takes the signals over from their default actions.
    pub fn register(registry: &Registry, token: Token) -> io::Result<Self> {
        let mut inner = signal_hook_mio::v1_0::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        registry.register(&mut inner, token, Interest::READABLE)?;
        Ok(Signals { inner })
    }

    /// What has come since the last call.
    pub fn take(&mut self) -> Requests {
        let mut requests = Requests::default();
        for signal in self.inner.pending() {
            if signal == SIGHUP {
                requests.reload = true;
            } else {
                requests.stops += 1;
            }
        }
        requests
    }
}

/// What signals ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// SIGINT and SIGTERM: how many came.
    pub stops: usize,
    /// SIGHUP: read files again.
    pub reload: bool,
}
