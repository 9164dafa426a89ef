//! Stops an event loop from another thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A handle by which another thread can stop a sentinel or worker.
#[derive(Clone, Debug)]
pub struct Stopper {
    drain: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    waker: Arc<mio::Waker>,
}

impl Stopper {
    /// Creates a handle that wakes the event loop by `waker`.
    pub fn new(waker: Arc<mio::Waker>) -> Self {
        Stopper {
            drain: Arc::default(),
            stop: Arc::default(),
            waker,
        }
    }

    /// Asks the loop to start nothing new and to end when running work is finished.
    pub fn drain(&self) {
        self.drain.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Asks the loop to end at once.
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
