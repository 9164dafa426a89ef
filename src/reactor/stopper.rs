//! Ending a loop from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A handle on a sentinel or worker that runs elsewhere.
#[derive(Clone, Debug)]
pub struct Stopper {
    drain: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    waker: Arc<mio::Waker>,
}

impl Stopper {
    /// A handle that wakes its loop by `waker`.
    pub fn new(waker: Arc<mio::Waker>) -> Self {
        Stopper {
            drain: Arc::default(),
            stop: Arc::default(),
            waker,
        }
    }

    /// Takes up nothing new and ends when what runs is over.
    pub fn drain(&self) {
        self.drain.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Ends at once.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// [`Stopper::drain`] was called.
    pub fn wants_drain(&self) -> bool {
        self.drain.load(Ordering::SeqCst)
    }

    /// [`Stopper::stop`] was called.
    pub fn wants_stop(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            log::error!("cannot wake the loop: {error}");
        }
    }
}
