//! A job's writer thread: decodes frames to record batches and writes the output.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow::buffer::Buffer;

use super::event::Report;
use super::input::{Found, Input};
use super::permit::Permit;
use super::slot::Failure;
use crate::job::{Attempt, Cause, Job};
use crate::limits;
use crate::plugin::bridge::{self, InputState};
use crate::reactor::BootTime;
use crate::sink::{self, Bounds, Fault, JobOutput, Refused, Root, Staged};
use crate::thread;

/// Orders to a writer. A closed channel is the order to remove the output.
enum Command {
    Frame(Buffer),
    Stage,
    /// Publish after these attempts of other jobs are barred.
    Publish(Vec<Attempt>),
}

/// The time of the thread's last step. The thread sets it, the event loop reads it.
#[derive(Clone, Default)]
struct Progress(Arc<AtomicU64>);

impl Progress {
    fn note(&self) -> BootTime {
        let now = BootTime::now();
        let since_boot = u64::try_from(now.since_boot().as_nanos()).unwrap_or(u64::MAX);
        self.0.store(since_boot, Ordering::SeqCst);
        now
    }

    fn last(&self) -> BootTime {
        BootTime::after_boot(Duration::from_nanos(self.0.load(Ordering::SeqCst)))
    }
}

/// State that the event loop and the thread share.
#[derive(Clone, Default)]
struct Shared {
    /// The event loop waits for [`Report::Room`].
    wanted: Arc<AtomicBool>,
    /// Bytes of the frames that were given to the writer and are not written yet.
    held: Arc<AtomicUsize>,
    /// The output is to be removed.
    stopped: Arc<AtomicBool>,
    /// The plugin failed, and a change of its input may be the reason. So the input is still compared.
    checks: Arc<AtomicBool>,
    /// What the plugin process found at the path of its input.
    found: Arc<OnceLock<Found>>,
    /// The thread waits for a check of the input.
    reads_input: Arc<AtomicBool>,
    progress: Progress,
}

/// Destination of reports. `serial` is the job's serial number in this worker process.
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
        // The receiver is dropped only when the worker stops.
        if self.reports.send(event).is_ok()
            && let Err(error) = self.waker.wake()
        {
            log::error!("cannot wake the worker: {error}");
        }
    }
}

/// The event loop's side of a writer.
pub(super) struct Writer {
    commands: Option<SyncSender<Command>>,
    shared: Shared,
    /// Limit of the bytes of frames that the event loop and the writer have together.
    frames_size_max: usize,
    /// Orders for which the channel was full.
    pending: VecDeque<Command>,
}

impl Writer {
    pub(super) fn start(
        job: Arc<Job>,
        root: Arc<Root>,
        permit: Permit,
        bounds: Bounds,
        address: Address,
    ) -> std::io::Result<Self> {
        let (commands, from_loop) = sync_channel(1);
        let shared = Shared::default();
        shared.reads_input.store(true, Ordering::SeqCst);
        let task = Task {
            job,
            root,
            permit,
            bounds,
            commands: from_loop,
            shared: shared.clone(),
            address: address.clone(),
        };
        thread::start(format!("writer-{}", address.serial), move || {
            let run = || task.run();
            let report = sink::quiet_panics(run).unwrap_or_else(|panic| {
                let message = format!("the plugin's data cannot be written: {panic}");
                Report::Failed(Failure::new(Cause::Plugin, message))
            });
            drop(task);
            address.report(report);
        })?;
        Ok(Writer {
            commands: Some(commands),
            shared,
            frames_size_max: bounds.frames(),
            pending: VecDeque::new(),
        })
    }

    /// The time of the thread's last step.
    pub(super) fn progress_at(&self) -> BootTime {
        self.shared.progress.last()
    }

    /// True while the thread waits for a check of the input.
    pub(super) fn reads_input(&self) -> bool {
        self.shared.reads_input.load(Ordering::SeqCst)
    }

    /// True while nothing should be read from the plugin process. `frame_size` is the size of the frame that
    /// is being read. [`Report::Room`] is sent when there is room again.
    pub(super) fn is_full(&self, frame_size: usize) -> bool {
        let has_room = || match self.shared.held.load(Ordering::SeqCst) {
            0 => true,
            held => held.saturating_add(frame_size) <= self.frames_size_max,
        };
        if !self.pending.is_empty() {
            return true;
        }
        if has_room() {
            return false;
        }
        self.shared.wanted.store(true, Ordering::SeqCst);
        // Checked again, because room may have become free in between.
        !has_room()
    }

    /// Passes a frame to the writer, or keeps it until there is room.
    pub(super) fn give(&mut self, frame: Buffer) {
        self.shared.held.fetch_add(frame.len(), Ordering::SeqCst);
        self.command(Command::Frame(frame));
    }

    /// Orders the writer to stage the output. No frames may follow.
    pub(super) fn stage(&mut self) {
        self.command(Command::Stage);
    }

    /// Orders the writer to publish staged output.
    pub(super) fn publish(&mut self, bar: Vec<Attempt>) {
        self.command(Command::Publish(bar));
    }

    fn command(&mut self, command: Command) {
        self.pending.push_back(command);
        self.retry();
    }

    /// Sends kept orders, as far as there is room.
    pub(super) fn retry(&mut self) {
        let mut asked = false;
        while let (Some(commands), Some(command)) = (&self.commands, self.pending.pop_front()) {
            match commands.try_send(command) {
                Ok(()) => {}
                Err(TrySendError::Full(command)) => {
                    self.pending.push_front(command);
                    // Tried again, because room may have become free in between.
                    self.shared.wanted.store(true, Ordering::SeqCst);
                    if std::mem::replace(&mut asked, true) {
                        return;
                    }
                }
                // A thread that has ended has reported why.
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
    }

    /// What the plugin process found at the path of its input, before the plugin ran. Only its first report
    /// counts.
    pub(super) fn note_input(&self, found: InputState) {
        let _ = self.shared.found.set(Found::File(found));
    }

    /// As [`Writer::discard`], for a plugin that failed by itself. If its input has changed, that is reported
    /// as the failure. `is_refused` = the plugin process could not use its input.
    pub(super) fn discard_and_check(&mut self, is_refused: bool) {
        if is_refused {
            let _ = self.shared.found.set(Found::Refused);
        }
        self.shared.checks.store(true, Ordering::SeqCst);
        self.discard();
    }

    pub(super) fn discard(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.commands = None;
        self.pending.clear();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.discard();
    }
}

/// The thread's side of a writer.
struct Task {
    job: Arc<Job>,
    root: Arc<Root>,
    permit: Permit,
    bounds: Bounds,
    commands: Receiver<Command>,
    shared: Shared,
    address: Address,
}

impl Task {
    /// Writes the output of a job until the thread ends. A failed attempt leaves the root as the receipts of
    /// earlier attempts describe it.
    fn run(&self) -> Report {
        let written = self.write();
        // The output under the attempt's number is not of this database's attempt.
        let is_copy = matches!(written, Err(sink::Error::Copied { .. }));
        let report = written.unwrap_or_else(|error| Report::Failed(self.failure(error)));
        // The receipt for an earlier attempt's output may never have arrived.
        let has_failed = !matches!(report, Report::Published(_));
        if has_failed
            && !is_copy
            && self.permit.is_valid(self.shared.progress.note())
            && let Err(error) = self.root.settle_failed(&self.job)
        {
            log::error!("{}: {error}", self.job.attempt);
        }
        report
    }

    /// Converts an error of the output, and decides whether it counts against the worker.
    fn failure(&self, error: sink::Error) -> Failure {
        let error = self.root.judged(error);
        self.shared.progress.note();
        let fault = self.root.fault(&error);
        let failure = Failure::from(error);
        match fault {
            Fault::Job => Failure {
                is_neutral_for_worker: failure.is_neutral_for_worker
                    || failure.cause == Cause::Worker,
                ..failure
            },
            Fault::Worker => failure,
            // Another worker may be able to run the job.
            Fault::Owner => Failure {
                is_uncounted: true,
                is_trouble: true,
                ..failure
            },
        }
    }

    fn write(&self) -> Result<Report, sink::Error> {
        let input = Path::new(&self.job.file_path);
        let content = self.job.content.as_ref();
        let watched = match Input::watch(input, content, self.address.serial) {
            Ok(watched) => watched,
            Err(failure) => return Ok(Report::Failed(failure)),
        };
        let begun = watched.begin(limits::INPUT_TIMEOUT, || self.goes_on());
        self.shared.reads_input.store(false, Ordering::SeqCst);
        let has_begun = begun.is_some();
        let report = match begun {
            Some(Ok(())) => self.write_output(&watched)?,
            Some(Err(failure)) => Report::Failed(failure),
            None => Report::Discarded,
        };
        let is_discarded = matches!(report, Report::Discarded);
        if !is_discarded || !self.shared.checks.load(Ordering::SeqCst) {
            return Ok(report);
        }
        let until = self.shared.progress.note() + limits::INPUT_CHECK_TIME_MAX;
        let goes_on = || self.shared.progress.note() < until;
        let wait = limits::INPUT_CHECK_TIMEOUT;
        Ok(
            match watched.check_briefly(self.found(), has_begun, wait, goes_on) {
                Some(Err(failure)) if failure.input_changed || failure.other_input => {
                    Report::Failed(failure)
                }
                _ => Report::Discarded,
            },
        )
    }

    fn found(&self) -> Found {
        self.shared.found.get().copied().unwrap_or_default()
    }

    /// Writes what the plugin sends. The first check of the input has succeeded.
    fn write_output(&self, watched: &Input) -> Result<Report, sink::Error> {
        let mut output = JobOutput::bounded(self.root.clone(), self.job.clone(), self.bounds)?;
        loop {
            let Ok(command) = self.commands.recv() else {
                return Ok(Report::Discarded);
            };
            self.report_room();
            self.shared.progress.note();
            match command {
                Command::Frame(frame) => {
                    let size = frame.len();
                    if let Some(report) = self.write_frame(&mut output, frame)? {
                        return Ok(report);
                    }
                    self.shared.held.fetch_sub(size, Ordering::SeqCst);
                    self.report_room();
                }
                Command::Stage => break,
                // The slot orders a publish only after `Staged`.
                Command::Publish(_) => return Ok(Report::Discarded),
            }
        }
        self.shared.reads_input.store(true, Ordering::SeqCst);
        let found = self.found();
        let compared = watched.compare(found, limits::INPUT_TIMEOUT, || self.goes_on());
        self.shared.reads_input.store(false, Ordering::SeqCst);
        match compared {
            Some(Ok(())) => {}
            Some(Err(failure)) => return Ok(Report::Failed(failure)),
            None => return Ok(Report::Discarded),
        }
        let staged = match output.stage_while(&|| self.goes_on()) {
            Err(sink::Error::Stopped) => return Ok(Report::Discarded),
            staged => staged?,
        };
        let notes = staged.notes().to_vec();
        self.address.report(Report::Staged { notes });
        self.publish(staged)
    }

    /// Records a step of the work. Returns false if the output is to be removed.
    fn goes_on(&self) -> bool {
        self.shared.progress.note();
        !self.shared.stopped.load(Ordering::SeqCst)
    }

    /// Writes the batches of a frame. Returns a report if the thread ends with it.
    fn write_frame(
        &self,
        output: &mut JobOutput,
        frame: Buffer,
    ) -> Result<Option<Report>, sink::Error> {
        let failed = |error: bridge::Error| {
            let failure = Failure::new(Cause::Plugin, error.to_string());
            Ok(Some(Report::Failed(failure)))
        };
        let mut stream = match bridge::Stream::open(frame) {
            Ok(stream) => stream,
            Err(error) => return failed(error),
        };
        loop {
            let batch = match stream.next_batch() {
                Ok(Some(batch)) => batch,
                Ok(None) => return Ok(None),
                Err(error) => return failed(error),
            };
            let topic = bridge::topic(&batch.schema());
            match output.write_while(topic.as_deref(), &batch, &|| self.goes_on()) {
                Err(sink::Error::Stopped) => return Ok(Some(Report::Discarded)),
                written => written?,
            }
        }
    }

    fn report_room(&self) {
        if self.shared.wanted.swap(false, Ordering::SeqCst) {
            self.address.report(Report::Room);
        }
    }

    fn publish(&self, mut staged: Staged) -> Result<Report, sink::Error> {
        loop {
            let Ok(Command::Publish(bar)) = self.commands.recv() else {
                return Ok(Report::Discarded);
            };
            let is_granted = || self.permit.is_valid(self.shared.progress.note());
            match staged.publish(&bar, &is_granted) {
                Ok(published) => return Ok(Report::Published(published.artifacts)),
                Err(Refused::Failed(error)) => return Err(error),
                Err(Refused::NotGranted(back)) => {
                    staged = *back;
                    self.address.report(Report::NotGranted);
                }
            }
        }
    }
}
