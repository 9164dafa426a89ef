//! One running job's resources: its plugin process, its socket, its writer.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use mio::net::{UnixListener, UnixStream};
use mio::unix::SourceFd;
use mio::{Interest, Registry};

use super::descriptors::worker_failure;
use super::event::Usage;
use super::log_tail::LogTail;
use super::meter::{self, Subject};
use super::permit::Permit;
use super::runtime::JobPaths;
use super::slot::{Failure, Slot, Timeouts};
use super::writer::Writer;
use crate::job::{Attempt, Cause, Job, Lease, LimitOf};
use crate::limits;
use crate::plugin::Exit;
use crate::plugin::bridge::{self, BridgeReader, Step};
use crate::plugin::process::{Pipes, Process};
use crate::plugin::quota::Quota;
use crate::plugin::source::Source;
use crate::reactor::{BootTime, token};
use crate::sink::{Artifact, Bounds};

/// Token owners of a slot's event sources. The index of a token is that of the slot.
pub(super) mod slot_event {
    pub(in crate::worker) const LISTENER: u8 = 3;
    pub(in crate::worker) const STREAM: u8 = 4;
    pub(in crate::worker) const STDOUT: u8 = 5;
    pub(in crate::worker) const STDERR: u8 = 6;
    pub(in crate::worker) const EXIT: u8 = 7;
}

/// A job that the sentinel has dispatched.
#[derive(Clone, Debug)]
pub(super) struct Assignment {
    pub(super) job: Arc<Job>,
    /// The plugin's source. `source.plugin()` equals `job.plugin`.
    pub(super) source: Source,
    pub(super) lease: Option<Lease>,
    /// Hash of its environment, never empty.
    pub(super) environment: String,
}

impl Assignment {
    pub(super) fn attempt(&self) -> Option<Attempt> {
        Some(self.job.attempt).filter(|attempt| attempt.is_numbered())
    }
}

/// State of a job's plugin process.
pub(super) enum ProcessState {
    None,
    /// Requested from a fork server.
    Requested {
        /// Kill it when it starts.
        kill: bool,
    },
    Running(Process),
    /// The process with that ID had ended before it could be watched. Its fork server reports how.
    Ended(i32),
}

/// A job in a slot, or one that has left its slot.
pub(super) struct Run {
    pub(super) serial: u64,
    /// Empty until the job is started.
    pub(super) paths: JobPaths,
    pub(super) assignment: Assignment,
    /// Limits of the job, and the operator's limits alone.
    pub(super) quota: Quota,
    own_quota: Quota,
    memory_at_start: u64,
    pub(super) slot: Slot,
    pub(super) listener: Option<UnixListener>,
    stream: Option<UnixStream>,
    readable: bool,
    reader: BridgeReader,
    pub(super) writer: Option<Writer>,
    pub(super) process: ProcessState,
    /// Index of the fork server whose child the process is.
    pub(super) fork_server: Option<usize>,
    /// Number of changes of the worker's mounts before that fork server was started. None if its mounts are
    /// the worker's.
    pub(super) mount_changes: Option<u64>,
    /// True if its process was requested again, because a fork server was lost before the process started.
    pub(super) asked_again: bool,
    pub(super) stdout: LogTail,
    pub(super) stderr: LogTail,
    /// What its writer has noted for its log.
    pub(super) notes: Vec<String>,
    /// One call has not read all printed bytes. No further readiness event follows for them.
    logs_pending: bool,
    /// More connections are waiting than one call accepts.
    accepts_pending: bool,
    pub(super) dispatched_at: BootTime,
    pub(super) started_at: Option<BootTime>,
    pub(super) connected_at: Option<BootTime>,
    pub(super) frames: u64,
    pub(super) bytes: u64,
    pub(super) rss_max_bytes: u64,
    rss_sampled_at: BootTime,
    /// The machine's count of processes killed for lack of memory, when the plugin process started.
    pub(super) oom_kills: Option<u64>,
    pub(super) artifacts: Vec<Artifact>,
    /// How its process is restricted, once one was requested.
    pub(super) sandbox: Option<String>,
    /// Until when its writer may publish.
    pub(super) permit: Permit,
    /// The sentinel does not want a receipt.
    pub(super) is_unwanted: bool,
    /// The failure, once the job has ended.
    pub(super) failure: Option<Failure>,
}

impl Run {
    pub(super) fn new(
        serial: u64,
        assignment: Assignment,
        timeouts: Timeouts,
        bounds: &Bounds,
        own_quota: Quota,
        now: BootTime,
    ) -> Self {
        let order_quota = assignment.source.quota();
        let permit = match assignment.lease {
            Some(_) => Permit::default(),
            None => Permit::unlimited(),
        };
        Run {
            serial,
            paths: JobPaths::default(),
            assignment,
            quota: own_quota.lowered(order_quota),
            own_quota,
            memory_at_start: 0,
            slot: Slot::new(timeouts),
            listener: None,
            stream: None,
            readable: false,
            reader: BridgeReader::new(bounds.frame()),
            writer: None,
            process: ProcessState::None,
            fork_server: None,
            mount_changes: None,
            asked_again: false,
            stdout: LogTail::new(None),
            stderr: LogTail::new(None),
            notes: Vec::new(),
            logs_pending: false,
            accepts_pending: false,
            dispatched_at: now,
            started_at: None,
            connected_at: None,
            frames: 0,
            bytes: 0,
            rss_max_bytes: 0,
            rss_sampled_at: now,
            oom_kills: None,
            artifacts: Vec::new(),
            sandbox: None,
            permit,
            is_unwanted: false,
            failure: None,
        }
    }

    /// Takes the pipes of a process and registers them.
    pub(super) fn watch_pipes(
        &mut self,
        pipes: Pipes,
        slot_index: usize,
        registry: &Registry,
    ) -> io::Result<()> {
        self.stdout = LogTail::new(Some(pipes.stdout));
        self.stderr = LogTail::new(Some(pipes.stderr));
        let logs = [
            (&mut self.stdout, slot_event::STDOUT),
            (&mut self.stderr, slot_event::STDERR),
        ];
        for (log, event) in logs {
            if let Some(pipe) = log.pipe() {
                registry.register(pipe, token::new(event, slot_index), Interest::READABLE)?;
            }
        }
        Ok(())
    }

    /// Takes a process that has started, and registers its pidfd.
    pub(super) fn watch_process(
        &mut self,
        process: Process,
        slot_index: usize,
        registry: &Registry,
    ) -> io::Result<()> {
        let fd = process.pidfd().as_raw_fd();
        self.process = ProcessState::Running(process);
        let token = token::new(slot_event::EXIT, slot_index);
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)
    }

    /// Continues work for which no readiness event follows, and applies deadlines.
    pub(super) fn advance(&mut self, slot_index: usize, registry: &Registry, now: BootTime) {
        if self.accepts_pending {
            self.accept(slot_index, registry, now);
        }
        self.read(now);
        if self.logs_pending {
            self.read_logs();
        }
        self.handle_timeout(now);
    }

    /// Applies deadlines that have passed.
    pub(super) fn handle_timeout(&mut self, now: BootTime) {
        if let Some(writer) = &self.writer {
            self.slot
                .handle_writer_progress(writer.progress_at(), writer.reads_input());
        }
        self.slot.handle_timeout(now);
    }

    /// Gives up the writer: it may no longer publish, and its reports are ignored. Its thread ends when its
    /// storage responds.
    pub(super) fn give_up_writer(&mut self, failure: Failure) {
        self.permit.revoke();
        self.writer = None;
        self.slot.handle_given_up(failure);
    }

    /// True when [`Run::advance`] has something to do at once.
    pub(super) fn is_busy(&self) -> bool {
        self.wants_read() || self.logs_pending || self.accepts_pending
    }

    /// Accepts the connection of the plugin process. Connections of other processes are closed.
    pub(super) fn accept(&mut self, slot_index: usize, registry: &Registry, now: BootTime) {
        let process = match &self.process {
            ProcessState::Running(process) => process.id(),
            ProcessState::Ended(number) => *number,
            ProcessState::None | ProcessState::Requested { .. } => return,
        };
        self.accepts_pending = false;
        for _ in 0..limits::BRIDGE_ACCEPTS_PER_CALL {
            let Some(listener) = &self.listener else {
                return;
            };
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.slot
                        .handle_bridge_broken(worker_failure("cannot accept", &error));
                    return;
                }
            };
            if !is_by(&stream, process) {
                log::warn!(
                    "job {}: a stranger connected to its bridge",
                    self.assignment.job.attempt.job_id
                );
                continue;
            }
            let token = token::new(slot_event::STREAM, slot_index);
            if let Err(error) = registry.register(&mut stream, token, Interest::READABLE) {
                self.slot
                    .handle_bridge_broken(worker_failure("cannot watch the bridge", &error));
                return;
            }
            self.stream = Some(stream);
            self.listener = None;
            self.readable = true;
            self.connected_at = Some(now);
            self.slot.handle_connected();
        }
        self.accepts_pending = self.listener.is_some();
    }

    fn bridge_broken(&mut self, cause: Cause, reason: String) {
        self.slot.handle_bridge_broken(Failure::new(cause, reason));
    }

    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// True if there are bytes to read and the writer has room for them.
    fn wants_read(&self) -> bool {
        self.readable && self.stream.is_some() && self.slot.reads() && !self.is_writer_full()
    }

    fn is_writer_full(&self) -> bool {
        let frame_size = self.reader.frame_size();
        let is_full = |writer: &Writer| writer.is_full(frame_size);
        self.writer.as_ref().is_none_or(is_full)
    }

    /// Reads the bridge until it would block, the writer is full, or the byte limit of a call is reached.
    fn read(&mut self, now: BootTime) {
        if self.slot.reads() && self.is_writer_full() {
            // The bytes that the process has sent wait for the disk, not for the process.
            self.slot.handle_progress(now);
        }
        let mut budget = limits::BRIDGE_BYTES_PER_ITERATION;
        while self.wants_read() && budget > 0 {
            let (Some(stream), Some(writer)) = (&mut self.stream, &mut self.writer) else {
                return;
            };
            let step = self.reader.read(stream);
            if matches!(step, Ok(Step::Frame(_) | Step::Input(_) | Step::More)) {
                self.slot.handle_progress(now);
            }
            match step {
                Ok(Step::Frame(frame)) => {
                    self.frames += 1;
                    self.bytes += frame.len() as u64;
                    budget = budget.saturating_sub(frame.len());
                    writer.give(frame);
                }
                Ok(Step::Input(found)) => {
                    budget = budget.saturating_sub(4096);
                    writer.note_input(found);
                }
                Ok(Step::More) => budget = budget.saturating_sub(4096),
                Ok(Step::Blocked) => self.readable = false,
                Ok(Step::End) => {
                    self.sample_rss();
                    self.slot.handle_end(now);
                }
                Ok(Step::Failure(mut text)) => {
                    if self.quota.open_files > 0 && text.contains("Too many open files") {
                        let (limit, own) = (self.quota.open_files, self.own_quota.open_files);
                        let by = LimitOf::new(limit, own).shown("job-open-files");
                        text = format!("{text}\n(its processes may open {limit} files each: {by})");
                    }
                    self.sample_rss();
                    self.slot.handle_failure(text, now);
                }
                Err(bridge::Error::Closed) => self.slot.handle_closed(now),
                Err(error @ bridge::Error::Io(_)) => {
                    self.bridge_broken(Cause::Worker, error.to_string());
                }
                Err(error) => self.bridge_broken(Cause::Plugin, error.to_string()),
            }
        }
        if self.rss_sampled_at + limits::RSS_SAMPLE_INTERVAL <= now {
            self.rss_sampled_at = now;
            self.sample_rss();
        }
    }

    /// Updates the process's largest resident size. Once it has exited, the kernel reports that only to the
    /// process that reaps it.
    fn sample_rss(&mut self) {
        if let ProcessState::Running(process) = &self.process {
            self.rss_max_bytes = self.rss_max_bytes.max(process.rss_max_bytes());
        }
    }

    /// Reads printed bytes, as many as one call may.
    pub(super) fn read_logs(&mut self) {
        let stdout = self.stdout.read();
        let stderr = self.stderr.read();
        self.logs_pending = stdout || stderr;
        let size = self.stdout.size().saturating_add(self.stderr.size());
        if self.quota.log > 0 && size > self.quota.log {
            let limit = self.quota.log;
            let by = LimitOf::new(limit, self.own_quota.log).shown("job-log");
            self.slot.handle_excess(format!(
                "the job printed {size} bytes; its limit is {limit} ({by})"
            ));
        }
    }

    /// What the meter needs to measure the job. None while it has no process.
    pub(super) fn subject(&self) -> Option<Subject> {
        let ProcessState::Running(process) = &self.process else {
            return None;
        };
        Some(Subject {
            serial: self.serial,
            pid: process.id(),
            work_dir: self.paths.work_dir.clone(),
            plugin_size: self.assignment.source.unpacked_size(),
            quota: self.quota,
        })
    }

    /// Records the memory of the process when it has started, which is not the plugin's.
    pub(super) fn note_start(&mut self) {
        if let ProcessState::Running(process) = &self.process
            && self.quota.memory > 0
        {
            self.memory_at_start = meter::memory(process.id());
        }
    }

    /// Applies a measurement of the job's resource usage.
    pub(super) fn handle_usage(&mut self, usage: &Usage) {
        let excess = meter::excess(usage, self.memory_at_start, &self.quota, &self.own_quota);
        if let Some(message) = excess {
            self.slot.handle_excess(message);
        }
    }

    /// Reads all that an exited process has printed. Bounded, because a process that left the group may keep
    /// the pipe open and continue to print.
    fn read_last_logs(&mut self) {
        for _ in 0..limits::LOG_ITERATIONS_AT_EXIT {
            self.read_logs();
            if !self.logs_pending {
                break;
            }
        }
        self.logs_pending = false;
    }

    /// Kills the process, now or as soon as it starts.
    pub(super) fn kill(&mut self) {
        self.sample_rss();
        match &mut self.process {
            ProcessState::None | ProcessState::Ended(_) => {}
            ProcessState::Running(process) => process.kill(),
            ProcessState::Requested { kill } => *kill = true,
        }
    }

    /// The process has exited. What it has sent and printed before is read first.
    pub(super) fn handle_exit(
        &mut self,
        exit: Exit,
        slot_index: usize,
        registry: &Registry,
        now: BootTime,
    ) {
        self.take_last_words(slot_index, registry, now);
        self.rss_max_bytes = self.rss_max_bytes.max(exit.rss_max_bytes);
        self.process = ProcessState::None;
        self.slot.handle_exited(exit, now);
    }

    /// The exit was seen, and the fork server that reaps the process has not reported it yet.
    pub(super) fn handle_exit_seen(
        &mut self,
        slot_index: usize,
        registry: &Registry,
        now: BootTime,
    ) {
        let ProcessState::Running(process) = &self.process else {
            return;
        };
        let exit = process.unreaped_exit().unwrap_or(Exit::UNKNOWN);
        self.take_last_words(slot_index, registry, now);
        self.slot.handle_exit_seen(exit, now);
    }

    /// The process is lost with its fork server. If it ended by itself before, that exit counts. Returns the
    /// process, which is still to be watched.
    pub(super) fn handle_lost(
        &mut self,
        failure: Failure,
        slot_index: usize,
        registry: &Registry,
        now: BootTime,
    ) -> Option<Process> {
        match std::mem::replace(&mut self.process, ProcessState::None) {
            ProcessState::None => None,
            ProcessState::Requested { .. } => {
                self.slot.handle_start_failed(failure);
                None
            }
            ProcessState::Ended(number) => {
                self.process = ProcessState::Ended(number);
                self.take_last_words(slot_index, registry, now);
                self.process = ProcessState::None;
                self.slot.handle_lost(failure, now);
                None
            }
            ProcessState::Running(process) => {
                let unreaped = || process.has_exited().then(|| process.unreaped_exit())?;
                let exit = self.slot.exit_seen().or_else(unreaped);
                self.process = ProcessState::Running(process);
                self.take_last_words(slot_index, registry, now);
                match exit {
                    // Killed by the kernel because of the fork server's end, or unknown.
                    None
                    | Some(
                        Exit::UNKNOWN
                        | Exit {
                            signal: Some(9), ..
                        },
                    ) => {
                        self.slot.handle_lost(failure, now);
                    }
                    Some(exit) => self.slot.handle_exited(exit, now),
                }
                match std::mem::replace(&mut self.process, ProcessState::None) {
                    ProcessState::Running(process) => Some(process),
                    _ => None,
                }
            }
        }
    }

    fn take_last_words(&mut self, slot_index: usize, registry: &Registry, now: BootTime) {
        self.accept(slot_index, registry, now);
        self.readable = true;
        self.read_last_logs();
    }
}

/// True if the process itself has opened the connection. Its children, and processes that joined its group,
/// must not send output for the job.
fn is_by(stream: &UnixStream, process: i32) -> bool {
    let peer = rustix::net::sockopt::socket_peercred(stream);
    peer.is_ok_and(|peer| peer.pid.as_raw_nonzero().get() == process)
}
