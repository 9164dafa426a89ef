//! One job in one slot: a state machine that decides what is to be done next.
//!
//! It has no process, socket, file, thread or clock. The event loop reports events with the `handle_*`
//! methods and carries out the actions that [`Slot::poll`] returns, until [`Action::Conclude`].
//!
//! Three activities run at the same time and end in any order: the bridge (bytes from the plugin process),
//! the process, and the output. A job succeeds if the bridge ended with its end of output, the process exited
//! with code 0, and the output was published.
//!
//! A failure that the worker detects (a limit, an abort, output that cannot be written, bytes that are no
//! frame) is decided at once: the process is killed and the output discarded. How the plugin itself failed is
//! decided from both the bridge and the exit, in whichever order they are observed. After the process's exit
//! the bridge is read to its end, and after the bridge's end the slot waits for the exit. Each of the two
//! waits has a deadline, because a process that escaped may keep the other one open.
//!
//! A writer that was ordered to publish or to remove the output has a deadline too, because its storage may
//! not respond. The deadline counts from the writer's last step. When it has passed, the writer is given up
//! ([`Action::GiveUp`]), and its later reports are ignored.
//!
//! ```text
//!           connected          end of output, failure or EOF
//! Waiting ────────────▶ Open ──────────────────────────────▶ Ended │ Failed │ Closed
//!                        │ exit seen: drain deadline            │ exit deadline
//!                        ▼                                      ▼
//!                     decided when the process has exited and the bridge is not open
//! ```

mod verdict;

use std::time::Duration;

pub use verdict::Failure;
use verdict::verdict;

use crate::job::{Cause, LimitOf};
use crate::limits;
use crate::plugin::{ENVIRONMENT_MARK, Exit, INPUT_MARK};
use crate::reactor::BootTime;

/// State of the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bridge {
    /// Not connected yet.
    Waiting,
    Open,
    /// The end of output was received.
    Ended,
    /// A failure was received.
    Failed,
    /// It closed without an end of output and without a failure, or is no longer read.
    Closed,
}

/// State of the plugin process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    NotStarted,
    Running,
    /// Killed by the worker. Given up at that time.
    Killed {
        until: BootTime,
    },
    Ended,
}

/// State of the job's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// Batches are accepted.
    Open,
    /// Being finished and synced.
    Staging,
    /// Complete on disk, not yet visible.
    Staged,
    /// Being made visible.
    Publishing,
    Published,
    /// Being removed.
    Discarding,
    Discarded,
    /// The writer has not responded in time.
    Silent(Cause),
    /// The writer was given up.
    GivenUp,
}

/// An action for the event loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Kill the plugin process.
    Kill,
    /// Finish the output, because no more batches follow.
    Stage,
    /// Make the output visible.
    Publish,
    /// Remove the output.
    Discard,
    /// Revoke the writer's permit, no longer wait for the writer, and call [`Slot::handle_given_up`] with a
    /// failure of this cause.
    GiveUp(Cause),
    /// Send the receipt and free the slot. None = success.
    Conclude(Option<Failure>),
}

// Returned at each event of a slot.
const _: () = assert!(size_of::<Action>() <= 104);

/// Time limits of a job.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For the whole job.
    pub job: Duration,
    /// Who has set that.
    pub job_of: LimitOf,
    /// For a step of a writer that was ordered to remove the output.
    pub writer: Duration,
    /// For a step of a writer that was ordered to publish.
    pub publish: Duration,
}

/// State of one job, see the module's documentation.
#[derive(Debug)]
pub struct Slot {
    bridge: Bridge,
    connected: bool,
    process: Process,
    killed: bool,
    /// How the process ended, or the failure if its exit status is lost.
    end: Option<Result<Exit, Failure>>,
    output: Output,
    failure: Option<Failure>,
    /// Until then the process must have connected.
    connect_deadline: Option<BootTime>,
    /// Until then the process must have exited, and its output must be complete on disk.
    job_deadline: Option<BootTime>,
    /// Until then the process must exit, because the bridge is closed.
    exit_deadline: Option<BootTime>,
    /// Until then the bridge must close, because the process has exited.
    drain_deadline: Option<BootTime>,
    /// The process has exited. If the fork server does not report the exit until then, this exit counts.
    unreaped: Option<(BootTime, Exit)>,
    /// Until then the writer must have responded or done a step.
    writer_deadline: Option<BootTime>,
    timeouts: Timeouts,
    /// The failure is the job's time-out.
    timed_out: bool,
    /// The writer waits for the check of the input, so a time-out is not the plugin's fault.
    reads_input: bool,
    concluded: bool,
}

// One for each slot.
const _: () = assert!(size_of::<Slot>() <= 408);

impl Slot {
    /// A job whose process is to be started. Its time-out counts from [`Slot::handle_started`] to the
    /// moment when the process has exited and the output is staged.
    pub fn new(timeouts: Timeouts) -> Self {
        Slot {
            bridge: Bridge::Waiting,
            connected: false,
            process: Process::NotStarted,
            killed: false,
            end: None,
            output: Output::Open,
            failure: None,
            connect_deadline: None,
            job_deadline: None,
            exit_deadline: None,
            drain_deadline: None,
            unreaped: None,
            writer_deadline: None,
            timeouts,
            timed_out: false,
            reads_input: false,
            concluded: false,
        }
    }

    /// A fork server was asked for a process. The fork server has deadlines of its own.
    pub fn handle_requested(&mut self) {
        self.process = Process::Running;
    }

    /// The process runs.
    pub fn handle_started(&mut self, now: BootTime) {
        if self.process == Process::NotStarted {
            self.process = Process::Running;
        }
        if self.bridge == Bridge::Waiting {
            self.connect_deadline = Some(now + limits::PLUGIN_CONNECT_TIMEOUT);
        }
        self.job_deadline = Some(now + self.timeouts.job);
    }

    /// The process could not be started.
    pub fn handle_start_failed(&mut self, failure: Failure) {
        self.process = Process::Ended;
        self.bridge = Bridge::Closed;
        self.connect_deadline = None;
        self.fail(failure);
    }

    /// The process has connected.
    pub fn handle_connected(&mut self) {
        if self.bridge == Bridge::Waiting {
            self.bridge = Bridge::Open;
            self.connected = true;
            self.connect_deadline = None;
        }
    }

    /// Bytes have arrived, or the writer has no room for them. After the exit, the drain deadline is
    /// extended.
    pub fn handle_progress(&mut self, now: BootTime) {
        if self.drain_deadline.is_some() {
            self.drain_deadline = Some(now + limits::BRIDGE_DRAIN_TIMEOUT);
        }
    }

    /// The end of output was received.
    pub fn handle_end(&mut self, now: BootTime) {
        self.bridge_over(Bridge::Ended, limits::PLUGIN_EXIT_TIMEOUT, now);
    }

    /// A failure was received. The prefix of its text shows whether it is one of the plugin, the input or the
    /// environment. The process gets a short time to exit by itself, so that its last lines reach the log.
    pub fn handle_failure(&mut self, text: String, now: BootTime) {
        let cause = if text.starts_with(INPUT_MARK) {
            Cause::Input
        } else if text.starts_with(ENVIRONMENT_MARK) {
            Cause::Environment
        } else {
            Cause::Plugin
        };
        let text = match text.trim().is_empty() {
            true => "the plugin failed and gave no reason".to_owned(),
            false => text,
        };
        self.fail(Failure {
            ended_by_plugin_code: cause == Cause::Plugin,
            ..Failure::new(cause, text)
        });
        self.bridge_over(Bridge::Failed, limits::PLUGIN_LAST_WORDS_TIMEOUT, now);
    }

    /// The bridge was closed without an end of output. The exit status may show the cause.
    pub fn handle_closed(&mut self, now: BootTime) {
        self.bridge_over(Bridge::Closed, limits::PLUGIN_LAST_WORDS_TIMEOUT, now);
    }

    /// The bridge cannot be read further: its bytes are invalid, or the worker cannot process them.
    pub fn handle_bridge_broken(&mut self, failure: Failure) {
        self.fail(failure);
        self.bridge = Bridge::Closed;
        self.drain_deadline = None;
        self.decide();
    }

    fn bridge_over(&mut self, bridge: Bridge, exit_timeout: Duration, now: BootTime) {
        self.bridge = bridge;
        self.drain_deadline = None;
        if matches!(self.process, Process::Running) && self.unreaped.is_none() {
            self.exit_deadline = Some(now + exit_timeout);
        }
        self.decide();
    }

    /// The process has exited, as its pidfd shows, but the fork server that reaps it has not reported how.
    /// `exit` is read from /proc.
    pub fn handle_exit_seen(&mut self, exit: Exit, now: BootTime) {
        if self.process != Process::Ended && self.unreaped.is_none() {
            self.unreaped = Some((now + limits::FORK_SERVER_REPORT_TIMEOUT, exit));
            self.connect_deadline = None;
            self.exit_deadline = None;
        }
    }

    /// The exit that was seen and has not been reported.
    pub fn exit_seen(&self) -> Option<Exit> {
        self.unreaped.map(|(_, exit)| exit)
    }

    /// The process has exited. Bytes that it sent before may still be unread.
    pub fn handle_exited(&mut self, exit: Exit, now: BootTime) {
        self.end_process(Ok(exit), now);
    }

    /// The process has exited, and its exit status is lost.
    pub fn handle_lost(&mut self, failure: Failure, now: BootTime) {
        self.end_process(Err(failure), now);
    }

    fn end_process(&mut self, end: Result<Exit, Failure>, now: BootTime) {
        if self.process == Process::Ended {
            return;
        }
        self.process = Process::Ended;
        self.end = Some(end);
        self.connect_deadline = None;
        self.exit_deadline = None;
        self.unreaped = None;
        match self.bridge {
            Bridge::Waiting => self.bridge = Bridge::Closed,
            Bridge::Open if self.failure.is_none() => {
                self.drain_deadline = Some(now + limits::BRIDGE_DRAIN_TIMEOUT);
            }
            _ => {}
        }
        self.decide();
    }

    /// Decides how the plugin ended, once both the bridge and the process have ended.
    fn decide(&mut self) {
        let Some(end) = self.end.clone() else {
            return;
        };
        if self.bridge == Bridge::Open && self.failure.is_none() {
            return;
        }
        if let Some(failure) = &mut self.failure {
            let by_worker = |exit: &Exit| self.killed && exit.signal == Some(9);
            if let Ok(exit) = end
                && !exit.is_clean()
                && !by_worker(&exit)
                && failure.exit.is_none()
            {
                failure.exit = Some(exit.to_string());
            }
            return;
        }
        self.failure = verdict(end, self.connected, self.bridge == Bridge::Ended);
    }

    /// The output could not be written (a full disk, a schema that changed).
    pub fn handle_output_failed(&mut self, failure: Failure) {
        if self.writer_answered(Output::Discarded) {
            let is_for_input = failure.input_changed || failure.other_input;
            if is_for_input && self.may_be_for_input() {
                self.failure = None;
            }
            self.fail(failure);
        }
    }

    /// True for a failure that a change of the input may explain: one of the plugin or the input, not a
    /// time-out.
    pub fn may_be_for_input(&self) -> bool {
        let is_own = |failure: &Failure| {
            matches!(failure.cause, Cause::Plugin | Cause::Input) && !failure.input_changed
        };
        self.failure.as_ref().is_some_and(is_own) && !self.timed_out
    }

    /// Why the plugin process refused its input, if it did.
    pub fn refused_input(&self) -> Option<&str> {
        let failure = self.failure.as_ref()?;
        let is_own = failure.cause == Cause::Input && !failure.input_changed;
        (is_own && !self.timed_out).then_some(failure.message.as_str())
    }

    /// All output is complete on disk.
    pub fn handle_staged(&mut self) {
        if self.output == Output::Staging {
            self.output = Output::Staged;
        }
    }

    /// All output is visible.
    pub fn handle_published(&mut self) {
        self.writer_answered(Output::Published);
    }

    /// The output is removed.
    pub fn handle_discarded(&mut self) {
        self.writer_answered(Output::Discarded);
    }

    /// The writer has reported. Returns false if it was given up.
    fn writer_answered(&mut self, output: Output) -> bool {
        if matches!(self.output, Output::Silent(_) | Output::GivenUp) {
            return false;
        }
        self.output = output;
        self.writer_deadline = None;
        true
    }

    /// The time of the writer's last step, and whether it waits for the check of the input.
    pub fn handle_writer_progress(&mut self, at: BootTime, reads_input: bool) {
        self.reads_input = reads_input;
        let wait = match self.output {
            Output::Publishing => self.timeouts.publish,
            _ => self.timeouts.writer,
        };
        if let Some(deadline) = &mut self.writer_deadline {
            *deadline = (*deadline).max(at + wait);
        }
    }

    /// The writer was given up. That is the job's failure, unless there is an earlier one that is not a
    /// time-out of the job.
    pub fn handle_given_up(&mut self, failure: Failure) {
        if std::mem::take(&mut self.timed_out) {
            self.failure = None;
        }
        self.fail(failure);
    }

    /// The job exceeds a limit. Ignored if its process has exited.
    pub fn handle_excess(&mut self, message: String) {
        if self.process == Process::Running && self.unreaped.is_none() {
            self.fail(Failure::new(Cause::Plugin, message));
        }
    }

    /// The sentinel or the operator stops the job. Output that is being published is still published, because
    /// it must not be visible in part.
    pub fn handle_abort(&mut self, reason: &str) {
        if !matches!(self.output, Output::Publishing | Output::Published) {
            self.fail(Failure::new(Cause::Operator, reason));
        }
    }

    /// The first failure is that of the job. The waits for further data of the plugin end.
    fn fail(&mut self, failure: Failure) {
        if self.failure.is_none() {
            self.failure = Some(failure);
            self.drain_deadline = None;
            self.exit_deadline = None;
            self.connect_deadline = None;
        }
    }

    /// True while batches may be read from the bridge and given to the output.
    pub fn reads(&self) -> bool {
        self.bridge == Bridge::Open && self.failure.is_none()
    }

    /// True once the process has exited or was given up.
    pub fn has_process_ended(&self) -> bool {
        self.process == Process::Ended
    }

    /// How the process ended by itself. None if it runs, was killed, or its exit is unknown.
    pub fn own_exit(&self) -> Option<Exit> {
        let exit = self.end.clone()?.ok()?;
        (!(self.killed && exit.signal == Some(9))).then_some(exit)
    }

    fn job_deadline(&self) -> Option<BootTime> {
        let complete = matches!(
            self.output,
            Output::Staged | Output::Publishing | Output::Published
        );
        // An exit that was seen ends the job's time, even if its report is late.
        let has_exited = self.process == Process::Ended || self.unreaped.is_some();
        let over = self.failure.is_some() || (complete && has_exited);
        self.job_deadline.filter(|_| !over)
    }

    /// When [`Slot::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        let kill = match self.process {
            Process::Killed { until } => Some(until),
            _ => None,
        };
        [
            self.job_deadline(),
            self.connect_deadline,
            self.exit_deadline,
            self.drain_deadline,
            self.unreaped.map(|(until, _)| until),
            self.writer_deadline,
            kill,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Applies the deadlines that have passed.
    pub fn handle_timeout(&mut self, now: BootTime) {
        let due = |deadline: Option<BootTime>| deadline.is_some_and(|at| at <= now);
        if let Some((until, exit)) = self.unreaped
            && until <= now
        {
            self.handle_exited(exit, now);
        }
        if due(self.connect_deadline) {
            self.bridge = Bridge::Closed;
            self.fail(Failure::new(
                Cause::Worker,
                format!(
                    "the plugin's process did not connect within {} s",
                    limits::PLUGIN_CONNECT_TIMEOUT.as_secs()
                ),
            ));
        }
        if due(self.exit_deadline) {
            self.exit_deadline = None;
            self.fail(Failure::new(
                Cause::Plugin,
                match self.bridge {
                    Bridge::Ended => format!(
                        "the plugin's process did not exit within {} s after its end of output",
                        limits::PLUGIN_EXIT_TIMEOUT.as_secs()
                    ),
                    _ => "the plugin closed the bridge without an end of output".to_owned(),
                },
            ));
        }
        if due(self.drain_deadline) {
            // Another process keeps the connection open.
            self.handle_closed(now);
        }
        if due(self.job_deadline()) {
            self.timed_out = true;
            let limit = format!(
                "the job took longer than its limit of {} s ({})",
                self.timeouts.job.as_secs(),
                self.timeouts.job_of.shown("job-timeout")
            );
            self.fail(match self.reads_input {
                true => Failure::new(
                    Cause::Input,
                    format!("{limit} while the worker read its input"),
                ),
                false => Failure::new(Cause::Plugin, limit),
            });
        }
        if due(self.writer_deadline) {
            self.writer_deadline = None;
            self.output = Output::Silent(match self.output {
                // Output may be visible, as after the loss of a worker.
                Output::Publishing => Cause::Lost,
                _ => Cause::Worker,
            });
        }
        if let Process::Killed { until } = self.process
            && until <= now
        {
            self.end_process(
                Err(Failure::new(
                    Cause::Worker,
                    "the plugin's process did not end after SIGKILL",
                )),
                now,
            );
        }
    }

    /// The next action. Each is returned once. `publish_allowed` = the attempt has a lease.
    pub fn poll(&mut self, publish_allowed: bool, now: BootTime) -> Option<Action> {
        if self.concluded {
            return None;
        }
        if let Output::Silent(cause) = self.output {
            self.output = Output::GivenUp;
            return Some(Action::GiveUp(cause));
        }
        if self.failure.is_some() {
            return self.poll_failed(now);
        }
        match self.output {
            Output::Open if self.bridge == Bridge::Ended => {
                self.output = Output::Staging;
                Some(Action::Stage)
            }
            Output::Staged if self.process == Process::Ended && publish_allowed => {
                self.output = Output::Publishing;
                self.writer_deadline = Some(now + self.timeouts.publish);
                Some(Action::Publish)
            }
            Output::Published => {
                self.concluded = true;
                Some(Action::Conclude(None))
            }
            _ => None,
        }
    }

    /// True while a publish that was ordered has not ended.
    pub fn is_publishing(&self) -> bool {
        self.output == Output::Publishing
    }

    /// Nothing became visible, because the lease had ended. The output is staged as before.
    pub fn handle_not_granted(&mut self) {
        if self.output == Output::Publishing {
            self.output = Output::Staged;
            self.writer_deadline = None;
        }
    }

    /// True if the plugin process has exited and complete output waits to be published.
    pub fn is_staged(&self) -> bool {
        self.failure.is_none() && self.output == Output::Staged && self.process == Process::Ended
    }

    fn poll_failed(&mut self, now: BootTime) -> Option<Action> {
        if self.process == Process::Running
            && self.exit_deadline.is_none()
            && self.unreaped.is_none()
        {
            self.process = Process::Killed {
                until: now + limits::KILL_TIMEOUT,
            };
            self.killed = true;
            return Some(Action::Kill);
        }
        match self.output {
            Output::Open | Output::Staged | Output::Staging => {
                self.output = Output::Discarding;
                self.writer_deadline = Some(now + self.timeouts.writer);
                return Some(Action::Discard);
            }
            Output::Publishing | Output::Discarding | Output::Silent(_) => return None,
            Output::Published | Output::Discarded | Output::GivenUp => {}
        }
        if matches!(self.process, Process::NotStarted | Process::Ended) {
            self.concluded = true;
            return Some(Action::Conclude(self.failure.take()));
        }
        None
    }
}

#[cfg(test)]
mod tests;
