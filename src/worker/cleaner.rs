//! Removes what jobs leave in their folders, on a thread of its own. A plugin process that escaped may
//! continue to write at the same time. What it adds is removed with the next request, or when the next worker
//! starts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use crate::remover;
use crate::thread;

/// The handle of the thread. The thread ends when it is dropped.
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

    /// Requests that everything in a trash folder is removed. If a request is already waiting, it will cover
    /// the folder's content at its start.
    pub(super) fn empty(&self, trash: &Path) {
        if let Err(TrySendError::Disconnected(_)) = self.requests.try_send(trash.to_owned()) {
            log::warn!("cannot empty {}: the thread has ended", trash.display());
        }
    }
}
