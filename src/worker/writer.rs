//! A job's writer thread: frames → record batches → output.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, sync_channel};

use arrow::buffer::Buffer;

use crate::guest::bridge;
use crate::job::Job;
use crate::sink::{Artifact, JobOutput, Refused, Root};

/// What a writer is told. A closed channel means: remove the output.
enum Order {
    Frame(Buffer),
    Stage,
    Publish,
}

/// What a writer tells.
#[derive(Debug)]
pub(super) enum Report {
    /// It can take a frame again, after it could not.
    Room,
    /// It is over: the output could not be written and is removed.
    Failed(String),
    /// All output is complete on disk.
    Staged,
    /// It is over: the output is visible.
    Published(Vec<Artifact>),
    /// It is over: the output is removed.
    Discarded,
}

/// Where reports go: a slot's place and the number of its job in this worker's life.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) slot: usize,
    pub(super) serial: u64,
    pub(super) reports: Sender<super::event::ThreadEvent>,
    pub(super) waker: Arc<mio::Waker>,
}

impl Address {
    fn report(&self, report: Report) {
        let event = super::event::ThreadEvent::Writer {
            slot: self.slot,
            serial: self.serial,
            report,
        };
        // The loop is gone only when the whole worker stops.
        if self.reports.send(event).is_ok()
            && let Err(error) = self.waker.wake()
        {
            log::error!("cannot wake the worker: {error}");
        }
    }
}

/// The loop's end of a writer.
pub(super) struct Writer {
    orders: Option<SyncSender<Order>>,
    /// The loop waits for [`Report::Room`].
    wanted: Arc<AtomicBool>,
    /// Orders that found the channel full.
    pending: VecDeque<Order>,
}

impl Writer {
    pub(super) fn start(
        job: Arc<Job>,
        staging: Arc<Root>,
        address: Address,
    ) -> std::io::Result<Self> {
        let (orders, from_loop) = sync_channel(1);
        let wanted = Arc::new(AtomicBool::new(false));
        let for_thread = wanted.clone();
        std::thread::Builder::new()
            .name(format!("writer-{}", address.slot))
            .spawn(move || {
                let run = || write_job(job, staging, &from_loop, &for_thread, &address);
                let report = match catch_unwind(AssertUnwindSafe(run)) {
                    Ok(report) => report,
                    Err(_) => Report::Failed("the writer failed on the plugin's data".to_owned()),
                };
                drop(from_loop);
                address.report(report);
            })?;
        Ok(Writer {
            orders: Some(orders),
            wanted,
            pending: VecDeque::new(),
        })
    }

    /// True while no further frame should be read from the guest.
    pub(super) fn is_full(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Gives a frame, or keeps it until there is room.
    pub(super) fn give(&mut self, frame: Buffer) {
        self.order(Order::Frame(frame));
    }

    /// No frame comes any more.
    pub(super) fn stage(&mut self) {
        self.order(Order::Stage);
    }

    /// What is staged becomes visible.
    pub(super) fn publish(&mut self) {
        self.order(Order::Publish);
    }

    fn order(&mut self, order: Order) {
        self.pending.push_back(order);
        self.retry();
    }

    /// There may be room now.
    pub(super) fn retry(&mut self) {
        let mut asked = false;
        while let (Some(orders), Some(order)) = (&self.orders, self.pending.pop_front()) {
            match orders.try_send(order) {
                Ok(()) => {}
                Err(TrySendError::Full(order)) => {
                    self.pending.push_front(order);
                    // Tried once more after this, in case it became free in between.
                    self.wanted.store(true, Ordering::SeqCst);
                    if std::mem::replace(&mut asked, true) {
                        return;
                    }
                }
                // A writer that is gone has reported why.
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
    }

    pub(super) fn discard(&mut self) {
        self.orders = None;
        self.pending.clear();
    }
}

fn write_job(
    job: Arc<Job>,
    staging: Arc<Root>,
    orders: &Receiver<Order>,
    wanted: &AtomicBool,
    address: &Address,
) -> Report {
    let failed = |error: &dyn std::fmt::Display| Report::Failed(error.to_string());
    let mut output = match JobOutput::new(staging, job) {
        Ok(output) => output,
        Err(error) => return failed(&error),
    };
    let staged = loop {
        let Ok(order) = orders.recv() else {
            return Report::Discarded;
        };
        if wanted.swap(false, Ordering::SeqCst) {
            address.report(Report::Room);
        }
        match order {
            Order::Frame(frame) => {
                let decoded = match bridge::decode(frame) {
                    Ok(decoded) => decoded,
                    Err(error) => return failed(&error),
                };
                for batch in &decoded.batches {
                    if let Err(error) = output.write(decoded.topic.as_deref(), batch) {
                        return failed(&error);
                    }
                }
            }
            Order::Stage => match output.stage() {
                Ok(staged) => break staged,
                Err(error) => return failed(&error),
            },
            Order::Publish => return Report::Failed("published before it was staged".to_owned()),
        }
    };
    address.report(Report::Staged);
    match orders.recv() {
        Ok(Order::Publish) => match staged.publish(&[], &|| true) {
            Ok(published) => Report::Published(published.artifacts),
            Err(Refused::Failed(error)) => failed(&error),
            Err(Refused::NotGranted(_)) => {
                Report::Failed("another job publishes into the same sink".to_owned())
            }
        },
        _ => Report::Discarded,
    }
}
