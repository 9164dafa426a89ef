//! One running job's resources: its guest, its socket, its writer.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use mio::net::{UnixListener, UnixStream};
use mio::unix::SourceFd;
use mio::{Interest, Registry};

use super::log_tail::LogTail;
use super::permit::Permit;
use super::slot::{Failure, Slot};
use super::writer::Writer;
use crate::guest::bridge::{BridgeReader, Step};
use crate::guest::process::{Pipes, Process};
use crate::guest::{Exit, warm};
use crate::job::{Attempt, Job, JobStatus, Lease, Receipt};
use crate::limits;
use crate::reactor::{BootTime, token};
use crate::sink::Artifact;

/// Token owners of a slot's sources; the index is the slot.
pub(super) mod owner {
    pub(in crate::worker) const LISTENER: u8 = 3;
    pub(in crate::worker) const STREAM: u8 = 4;
    pub(in crate::worker) const STDOUT: u8 = 5;
    pub(in crate::worker) const STDERR: u8 = 6;
    pub(in crate::worker) const EXIT: u8 = 7;
}

/// A dispatched job.
#[derive(Clone, Debug)]
pub(super) struct Order {
    pub(super) job: Arc<Job>,
    pub(super) lease: Option<Lease>,
    /// Hash of its environment, never empty.
    pub(super) environment: String,
}

impl Order {
    pub(super) fn attempt(&self) -> Option<Attempt> {
        Some(self.job.attempt).filter(|attempt| attempt.is_numbered())
    }
}

/// The guest's process.
pub(super) enum Guest {
    None,
    Spawned(Process),
    /// A child of the warm interpreter at a place; its process id comes with its start.
    Warm {
        place: usize,
        pid: Option<i32>,
        kill: bool,
    },
}

/// A job in a slot.
pub(super) struct Run {
    pub(super) serial: u64,
    pub(super) order: Order,
    pub(super) slot: Slot,
    /// Its environment is being made.
    pub(super) waits_for_environment: bool,
    pub(super) listener: Option<UnixListener>,
    stream: Option<UnixStream>,
    readable: bool,
    reader: BridgeReader,
    pub(super) writer: Option<Writer>,
    pub(super) guest: Guest,
    pub(super) stdout: LogTail,
    pub(super) stderr: LogTail,
    /// More has been printed than one turn reads; no new readiness will tell.
    pub(super) logs_pending: bool,
    dispatched_at: BootTime,
    pub(super) started_at: Option<BootTime>,
    connected_at: Option<BootTime>,
    frames: u64,
    octets: u64,
    rss_max_bytes: u64,
    pub(super) artifacts: Vec<Artifact>,
    /// Until when its writer may publish.
    pub(super) permit: Permit,
    /// The sentinel wants no receipt.
    pub(super) is_unwanted: bool,
    /// Why it failed, once it is over.
    pub(super) failure: Option<Failure>,
}

impl Run {
    pub(super) fn new(serial: u64, order: Order, job_timeout: Duration, now: BootTime) -> Self {
        let permit = match order.lease {
            Some(_) => Permit::default(),
            None => Permit::unlimited(),
        };
        Run {
            serial,
            order,
            slot: Slot::new(job_timeout, now),
            waits_for_environment: false,
            listener: None,
            stream: None,
            readable: false,
            reader: BridgeReader::default(),
            writer: None,
            guest: Guest::None,
            stdout: LogTail::new(None),
            stderr: LogTail::new(None),
            logs_pending: false,
            dispatched_at: now,
            started_at: None,
            connected_at: None,
            frames: 0,
            octets: 0,
            rss_max_bytes: 0,
            artifacts: Vec::new(),
            permit,
            is_unwanted: false,
            failure: None,
        }
    }

    /// Takes over a guest's pipes and watches them.
    pub(super) fn watch_pipes(
        &mut self,
        pipes: Pipes,
        place: usize,
        registry: &Registry,
    ) -> io::Result<()> {
        self.stdout = LogTail::new(Some(pipes.stdout));
        self.stderr = LogTail::new(Some(pipes.stderr));
        let logs = [
            (&mut self.stdout, owner::STDOUT),
            (&mut self.stderr, owner::STDERR),
        ];
        for (log, owner) in logs {
            if let Some(pipe) = log.pipe() {
                registry.register(pipe, token::new(owner, place), Interest::READABLE)?;
            }
        }
        Ok(())
    }

    /// Watches a spawned guest's exit.
    pub(super) fn watch_exit(&self, place: usize, registry: &Registry) -> io::Result<()> {
        if let Guest::Spawned(process) = &self.guest {
            registry.register(
                &mut SourceFd(&process.pidfd().as_raw_fd()),
                token::new(owner::EXIT, place),
                Interest::READABLE,
            )?;
        }
        Ok(())
    }

    /// The leader of the guest's process group, once it is known.
    fn group(&self) -> Option<i32> {
        match &self.guest {
            Guest::None => None,
            Guest::Spawned(process) => Some(process.id()),
            Guest::Warm { pid, .. } => *pid,
        }
    }

    /// Takes the guest's connection. One from outside the guest's process group is another
    /// guest's and is closed.
    pub(super) fn accept(&mut self, place: usize, registry: &Registry, now: BootTime) {
        let Some(group) = self.group() else {
            return;
        };
        while let Some(listener) = &self.listener {
            let mut stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.slot
                        .handle_bridge_broken(format!("cannot accept: {error}"), now);
                    return;
                }
            };
            if !is_of_group(&stream, group) {
                log::warn!(
                    "job {}: a stranger connected to its bridge",
                    self.order.job.attempt.job_id
                );
                continue;
            }
            let place = token::new(owner::STREAM, place);
            if let Err(error) = registry.register(&mut stream, place, Interest::READABLE) {
                self.slot
                    .handle_bridge_broken(format!("cannot watch the bridge: {error}"), now);
                return;
            }
            self.stream = Some(stream);
            self.listener = None;
            self.readable = true;
            self.connected_at = Some(now);
            self.slot.handle_connected();
        }
    }

    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// True when octets wait that can be taken now.
    pub(super) fn wants_read(&self) -> bool {
        self.readable
            && self.stream.is_some()
            && self.slot.reads()
            && self.writer.as_ref().is_some_and(|writer| !writer.is_full())
    }

    /// Reads the bridge until it blocks, the writer is full, or the turn's budget is used up.
    pub(super) fn read(&mut self, now: BootTime) {
        let mut budget = limits::BRIDGE_OCTETS_PER_TURN;
        while self.wants_read() && budget > 0 {
            let (Some(stream), Some(writer)) = (&mut self.stream, &mut self.writer) else {
                return;
            };
            match self.reader.read(stream) {
                Ok(Step::Frame(frame)) => {
                    self.frames += 1;
                    self.octets += frame.len() as u64;
                    budget = budget.saturating_sub(frame.len());
                    writer.give(frame);
                }
                Ok(Step::More) => budget = budget.saturating_sub(4096),
                Ok(Step::Blocked) => self.readable = false,
                Ok(Step::End) => self.slot.handle_end(now),
                Ok(Step::Failure(text)) => self.slot.handle_failure(text, now),
                Err(error) => self.slot.handle_bridge_broken(error.to_string(), now),
            }
        }
    }

    /// Takes what the guest has printed, a turn's worth.
    pub(super) fn read_logs(&mut self) {
        let stdout = self.stdout.read();
        let stderr = self.stderr.read();
        self.logs_pending = stdout || stderr;
    }

    /// Kills the guest's process group, now or as soon as its id is known.
    pub(super) fn kill(&mut self) {
        match &mut self.guest {
            Guest::None => {}
            Guest::Spawned(process) => process.kill_group(),
            Guest::Warm { pid: Some(pid), .. } => warm::kill_group(*pid),
            Guest::Warm { kill, .. } => *kill = true,
        }
    }

    /// The guest has exited: what it sent and printed before is taken first.
    pub(super) fn handle_exit(
        &mut self,
        exit: &Exit,
        place: usize,
        registry: &Registry,
        now: BootTime,
    ) {
        self.accept(place, registry, now);
        // Bounded: a process that left the group may hold the pipe and go on printing.
        for _ in 0..limits::LOG_TURNS_AT_EXIT {
            self.read_logs();
            if !self.logs_pending {
                break;
            }
        }
        self.logs_pending = false;
        self.rss_max_bytes = exit.rss_max_bytes;
        self.guest = Guest::None;
        self.slot.handle_exited(exit.is_clean(), exit.to_string());
    }

    /// The receipt.
    pub(super) fn conclude(&self, failure: Option<&Failure>, now: BootTime) -> Receipt {
        let ms = |from: Option<BootTime>, to: BootTime| {
            let span = from.map_or(Duration::ZERO, |from| to.saturating_duration_since(from));
            i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
        };
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let mut metrics = BTreeMap::new();
        let mut put = |name: &str, value: i64| metrics.insert(name.to_owned(), value);
        put(
            "rows",
            count(self.artifacts.iter().map(|artifact| artifact.rows).sum()),
        );
        put(
            "size_bytes",
            count(
                self.artifacts
                    .iter()
                    .map(|artifact| artifact.size_bytes)
                    .sum(),
            ),
        );
        put("batches", count(self.frames));
        put("bridge_bytes", count(self.octets));
        put("duration_ms", ms(Some(self.dispatched_at), now));
        if let Some(connected) = self.connected_at {
            put("start_ms", ms(self.started_at, connected));
            put("run_ms", ms(self.connected_at, now));
        }
        if self.rss_max_bytes > 0 {
            put("guest_rss_max_bytes", count(self.rss_max_bytes));
        }
        let artifacts = self.artifacts.iter().map(|artifact| {
            BTreeMap::from([
                ("topic".to_owned(), artifact.topic.clone()),
                ("uri".to_owned(), artifact.uri.clone()),
                ("rows".to_owned(), artifact.rows.to_string()),
                ("size_bytes".to_owned(), artifact.size_bytes.to_string()),
            ])
        });
        let log = self.log();
        Receipt {
            status: if failure.is_some() {
                JobStatus::Failed
            } else {
                JobStatus::Success
            },
            metrics,
            artifacts: artifacts.collect(),
            error_message: failure.map(|failure| self.describe(failure)),
            cause: None,
            returned: false,
            attempt: self.order.attempt().map(|attempt| attempt.number),
            log_tail: (!log.is_empty()).then_some(log),
        }
    }

    /// The failure with what the guest last said, when the failure does not say it itself.
    fn describe(&self, failure: &Failure) -> String {
        let mut text = failure.message.clone();
        if let Some(exit) = &failure.exit
            && exit != "exit code 1"
        {
            text.push_str(&format!("; its process ended with {exit}"));
        }
        let stderr = self.stderr.text();
        let last: Vec<&str> = stderr.lines().rev().take(limits::TOOL_LINES_KEPT).collect();
        let said = last.first().is_some_and(|line| text.contains(line.trim()));
        if !last.is_empty() && !said {
            text.push_str("\nlast lines of stderr:");
            for line in last.iter().rev() {
                text.push('\n');
                text.push_str(line);
            }
        }
        text
    }

    /// stdout (without the shim's summary) and stderr.
    fn log(&self) -> String {
        let stdout = self.stdout.text();
        let trimmed = stdout.trim_end();
        let (rest, last) = trimmed.rsplit_once('\n').unwrap_or(("", trimmed));
        let summary = last.starts_with('{') && last.contains("\"status\"");
        let stdout = if summary { rest } else { trimmed };
        let stderr = self.stderr.text();
        let stderr = stderr.trim_end();
        match (stdout.is_empty(), stderr.is_empty()) {
            (_, true) => stdout.to_owned(),
            (true, false) => stderr.to_owned(),
            (false, false) => format!("{stdout}\n--- stderr ---\n{stderr}"),
        }
    }
}

/// Whether the process at the other end belongs to a process group.
fn is_of_group(stream: &UnixStream, group: i32) -> bool {
    // The descriptor lives as long as `stream`.
    let fd: BorrowedFd<'_> = std::os::fd::AsFd::as_fd(stream);
    rustix::net::sockopt::socket_peercred(fd).is_ok_and(|peer| {
        peer.pid.as_raw_nonzero().get() == group
            || rustix::process::getpgid(Some(peer.pid))
                .is_ok_and(|theirs| theirs.as_raw_nonzero().get() == group)
    })
}
