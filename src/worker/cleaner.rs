//! Removes what jobs leave in their folders, on a thread of its own. A plugin process that got away may
//! go on writing meanwhile; what it adds is removed with the next request, or by the next worker's sweep.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use crate::remover;
use crate::thread;

/// The thread's handle; the thread ends with it.
#[derive(Debug)]
pub(super) struct Cleaner {
    requests: SyncSender<PathBuf>,
}

impl Cleaner {
    pub(super) fn start() -> io::Result<Self> {
        let (requests, received) = sync_channel::<PathBuf>(1);
        thread::start("cleaner", move || {
            for trash in received {
                if let Err(error) = remover::empty(&trash, None) {
                    log::warn!("cannot empty {}: {error}", trash.display());
                }
            }
        })?;
        Ok(Cleaner { requests })
    }

    /// Asks for everything in a trash folder to be removed. A request that waits already will
    /// see what is in the folder then.
    pub(super) fn empty(&self, trash: &Path) {
        if let Err(TrySendError::Disconnected(_)) = self.requests.try_send(trash.to_owned()) {
            log::warn!("cannot empty {}: the thread has ended", trash.display());
        }
    }
}
