//! Signals as readiness events of a reactor.

use std::io;
use std::sync::Arc;

use mio::{Interest, Registry, Token};
use nix::sys::signal::SigSet;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};

/// Resets inherited signal settings of this program and of the processes that it starts: no signal
/// is blocked, and SIGCHLD is not ignored. (If SIGCHLD is ignored, the kernel keeps no exit status
/// of children.) It must be called before other threads are started, because they inherit the
/// signal mask.
pub fn reset() -> io::Result<()> {
    // Started processes get the default action instead of a handler, but would inherit SIG_IGN.
    signal_hook::flag::register(SIGCHLD, Arc::default())?;
    Ok(SigSet::all().thread_unblock()?)
}

/// SIGINT, SIGTERM and SIGHUP as an event source of a reactor.
pub struct Signals {
    inner: signal_hook_mio::v1_0::Signals,
}

impl Signals {
    /// Installs handlers for the signals, in place of their default actions.
    pub fn register(registry: &Registry, token: Token) -> io::Result<Self> {
        let mut inner = signal_hook_mio::v1_0::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        registry.register(&mut inner, token, Interest::READABLE)?;
        Ok(Signals { inner })
    }

    /// The signals received since the last call.
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

/// Requests made by signals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Number of SIGINT and SIGTERM received.
    pub stops: usize,
    /// SIGHUP was received: read files again.
    pub reload: bool,
}
