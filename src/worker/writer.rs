//! A job's writer thread: frames → record batches → output.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, sync_channel};

use arrow::buffer::Buffer;

use super::permit::Permit;
use crate::guest::bridge;
use crate::job::{Attempt, Cause, Job};
use crate::reactor::BootTime;
use crate::sink::{self, Artifact, JobOutput, Refused, Root};

/// What a writer is told. A closed channel means: remove the output.
enum Order {
    Frame(Buffer),
    Stage,
    /// Publish after these attempts of other jobs are barred.
    Publish(Vec<Attempt>),
}

/// What a writer tells.
#[derive(Debug)]
pub(super) enum Report {
    /// It can take a frame again, after it could not.
    Room,
    /// It is over: the output could not be written and is removed.
    Failed {
        /// Whose fault it is.
        cause: Cause,
        /// Why.
        message: String,
    },
    /// All output is complete on disk.
    Staged,
    /// Nothing was published, because the lease had run out; the output is staged as before.
    NotGranted,
    /// It is over: the output is visible.
    Published(Vec<Artifact>),
    /// It is over: the output is removed.
    Discarded,
}

/// Where reports go: the number of the job in this worker's life.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) serial: u64,
    pub(super) reports: Sender<super::event::ThreadEvent>,
    pub(super) waker: Arc<mio::Waker>,
}

impl Address {
    fn report(&self, report: Report) {
        let event = super::event::ThreadEvent::Writer {
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
        root: Arc<Root>,
        permit: Permit,
        address: Address,
    ) -> std::io::Result<Self> {
        let (orders, from_loop) = sync_channel(1);
        let wanted = Arc::new(AtomicBool::new(false));
        let for_thread = wanted.clone();
        std::thread::Builder::new()
            .name(format!("writer-{}", address.serial))
            .spawn(move || {
                let run = || write_job(job, root, &permit, &from_loop, &for_thread, &address);
                let report = sink::quiet_panics(run).unwrap_or_else(|panic| Report::Failed {
                    cause: Cause::Plugin,
                    message: format!("the plugin's data cannot be written: {panic}"),
                });
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
    pub(super) fn publish(&mut self, bar: Vec<Attempt>) {
        self.order(Order::Publish(bar));
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

/// Writes a job to its end. An attempt that fails leaves the root as its earlier attempts'
/// receipts describe it.
fn write_job(
    job: Arc<Job>,
    root: Arc<Root>,
    permit: &Permit,
    orders: &Receiver<Order>,
    wanted: &AtomicBool,
    address: &Address,
) -> Report {
    let report = match write_output(job.clone(), root.clone(), permit, orders, wanted, address) {
        Ok(report) => report,
        Err(error) => Report::Failed {
            cause: error.cause(),
            message: error.to_string(),
        },
    };
    // The receipt of an earlier attempt's output may never have arrived.
    let has_failed = !matches!(report, Report::Published(_));
    if has_failed
        && permit.is_valid(BootTime::now())
        && let Err(error) = root.settle_failed(&job)
    {
        log::error!("{}: {error}", job.attempt);
    }
    report
}

fn write_output(
    job: Arc<Job>,
    root: Arc<Root>,
    permit: &Permit,
    orders: &Receiver<Order>,
    wanted: &AtomicBool,
    address: &Address,
) -> Result<Report, sink::Error> {
    let mut output = JobOutput::new(root, job)?;
    let mut staged = loop {
        let Ok(order) = orders.recv() else {
            return Ok(Report::Discarded);
        };
        if wanted.swap(false, Ordering::SeqCst) {
            address.report(Report::Room);
        }
        match order {
            Order::Frame(frame) => {
                let decoded = match bridge::decode(frame) {
                    Ok(decoded) => decoded,
                    Err(error) => {
                        return Ok(Report::Failed {
                            cause: Cause::Plugin,
                            message: error.to_string(),
                        });
                    }
                };
                for batch in &decoded.batches {
                    output.write(decoded.topic.as_deref(), batch)?;
                }
            }
            Order::Stage => break output.stage()?,
            // The slot orders it after Staged only.
            Order::Publish(_) => return Ok(Report::Discarded),
        }
    };
    address.report(Report::Staged);
    loop {
        let Ok(Order::Publish(bar)) = orders.recv() else {
            return Ok(Report::Discarded);
        };
        let is_granted = || permit.is_valid(BootTime::now());
        match staged.publish(&bar, &is_granted) {
            Ok(published) => return Ok(Report::Published(published.artifacts)),
            Err(Refused::Failed(error)) => return Err(error),
            Err(Refused::NotGranted(back)) => {
                staged = *back;
                address.report(Report::NotGranted);
            }
        }
    }
}
