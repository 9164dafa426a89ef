//! Signals as readiness.

use std::io;

use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

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

    /// How many requests to stop (SIGINT or SIGTERM) have come since the last call.
    pub fn stop_requests(&mut self) -> usize {
        self.inner
            .pending()
            .filter(|signal| *signal != SIGHUP)
            .count()
    }
}
