//! One job in one slot, as a state machine: what has happened and what is to be done next.
//!
//! It owns no process, socket, file, thread or clock. The loop reports events with the
//! `handle_*` methods and carries out what [`Slot::poll`] says, until [`Action::Conclude`].
//!
//! Three things go on at the same time and end in any order: the bridge (octets from the
//! guest), the guest's process, and the output. A job succeeds when the bridge ended with its
//! end of output, the guest exited with code 0, and the output was published. The first thing
//! that goes wrong is the job's failure; then the guest is killed, the output discarded, and
//! only after both the slot is free.

use std::time::Duration;

use crate::limits;
use crate::reactor::BootTime;

/// The guest's octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bridge {
    Waiting,
    Connected,
    Ended,
    Broken,
}

/// The guest's process.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Guest {
    NotStarted,
    Running { kill_sent: bool },
    Gone,
}

/// The job's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// Batches are taken.
    Open,
    /// Being finished and synced.
    Staging,
    /// Complete on disk, not visible.
    Staged,
    /// Being made visible.
    Publishing,
    Published,
    /// Being removed.
    Discarding,
    Discarded,
}

/// What the loop has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Kill the guest's process group.
    KillGuest,
    /// No more batches come: finish the output.
    Stage,
    /// Make the output visible.
    Publish,
    /// Remove the output.
    Discard,
    /// Send the receipt and free the slot. None = success.
    Conclude(Option<Failure>),
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What happened.
    pub message: String,
    /// How the guest ended, when that adds something.
    pub exit: Option<String>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Slot {
    bridge: Bridge,
    guest: Guest,
    output: Output,
    failure: Option<Failure>,
    /// The guest must have connected.
    connect_deadline: Option<BootTime>,
    /// The job must be over.
    job_deadline: BootTime,
    /// The bridge is over, so the guest must be gone.
    exit_deadline: Option<BootTime>,
    job_timeout: Duration,
    concluded: bool,
}

impl Slot {
    /// A job whose guest is about to be started.
    pub fn new(job_timeout: Duration, now: BootTime) -> Self {
        Slot {
            bridge: Bridge::Waiting,
            guest: Guest::NotStarted,
            output: Output::Open,
            failure: None,
            connect_deadline: None,
            job_deadline: now + job_timeout,
            exit_deadline: None,
            job_timeout,
            concluded: false,
        }
    }

    /// The guest's process runs (or is being forked).
    pub fn handle_started(&mut self, connect_timeout: Duration, now: BootTime) {
        self.guest = Guest::Running { kill_sent: false };
        self.connect_deadline = Some(now + connect_timeout);
    }

    /// The guest could not be started.
    pub fn handle_start_failed(&mut self, message: String) {
        self.guest = Guest::Gone;
        self.bridge = Bridge::Broken;
        self.fail(message);
    }

    /// The guest has connected.
    pub fn handle_connected(&mut self) {
        if self.bridge == Bridge::Waiting {
            self.bridge = Bridge::Connected;
            self.connect_deadline = None;
        }
    }

    /// The guest has said that its output is over.
    pub fn handle_end(&mut self, now: BootTime) {
        self.bridge = Bridge::Ended;
        self.exit_deadline = Some(now + limits::GUEST_EXIT_TIMEOUT);
    }

    /// The guest has reported a failure of the plugin. It gets a moment to exit by itself, so
    /// that its last words reach the log.
    pub fn handle_failure(&mut self, message: String, now: BootTime) {
        self.bridge = Bridge::Broken;
        self.exit_deadline = Some(now + limits::GUEST_LAST_WORDS_TIMEOUT);
        self.fail(message);
    }

    /// The guest's octets ended without an end of output, or make no sense.
    pub fn handle_bridge_broken(&mut self, message: String, now: BootTime) {
        self.bridge = Bridge::Broken;
        self.exit_deadline = Some(now + limits::GUEST_LAST_WORDS_TIMEOUT);
        self.fail(message);
    }

    /// The guest's process is gone. `clean` = exit code 0; `exit` says how for people.
    /// `connected` = octets may still be in the stream, which has its own end.
    pub fn handle_exited(&mut self, clean: bool, exit: String) {
        self.guest = Guest::Gone;
        self.exit_deadline = None;
        self.connect_deadline = None;
        match (&mut self.failure, clean) {
            (Some(failure), false) => failure.exit = Some(exit),
            (Some(_), true) => {}
            (None, false) => {
                self.failure = Some(Failure {
                    message: format!("the plugin's process ended with {exit}"),
                    exit: None,
                });
            }
            (None, true) if self.bridge == Bridge::Waiting => {
                self.fail("the plugin's process ended before it connected".to_owned());
            }
            (None, true) => {}
        }
        if self.bridge == Bridge::Waiting {
            self.bridge = Bridge::Broken;
        }
    }

    /// The output could not be written (a full disk, a schema that changed).
    pub fn handle_output_failed(&mut self, message: String) {
        self.output = Output::Discarded;
        self.fail(message);
    }

    /// All output is complete on disk.
    pub fn handle_staged(&mut self) {
        if self.output == Output::Staging {
            self.output = Output::Staged;
        }
    }

    /// All output is visible.
    pub fn handle_published(&mut self) {
        self.output = Output::Published;
    }

    /// The output is removed.
    pub fn handle_discarded(&mut self) {
        self.output = Output::Discarded;
    }

    /// The sentinel (or the operator) wants it stopped. What is being published is published:
    /// it cannot be half visible.
    pub fn handle_abort(&mut self, reason: &str) {
        if !matches!(self.output, Output::Publishing | Output::Published) {
            self.fail(reason.to_owned());
        }
    }

    fn fail(&mut self, message: String) {
        self.failure.get_or_insert(Failure {
            message,
            exit: None,
        });
    }

    /// True while batches may be read from the guest and given to the output.
    pub fn reads(&self) -> bool {
        self.bridge == Bridge::Connected && self.failure.is_none()
    }

    /// When [`Slot::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<BootTime> {
        let job = (self.failure.is_none()).then_some(self.job_deadline);
        [job, self.connect_deadline, self.exit_deadline]
            .into_iter()
            .flatten()
            .min()
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: BootTime) {
        let due = |deadline: Option<BootTime>| deadline.is_some_and(|at| at <= now);
        if due(self.connect_deadline) {
            self.connect_deadline = None;
            self.bridge = Bridge::Broken;
            self.fail(format!(
                "the plugin's process did not connect within {} s",
                limits::GUEST_CONNECT_TIMEOUT.as_secs()
            ));
        }
        if due(self.exit_deadline) {
            self.exit_deadline = None;
            self.fail(format!(
                "the plugin's process did not exit within {} s after its end of output",
                limits::GUEST_EXIT_TIMEOUT.as_secs()
            ));
        }
        let over = matches!(self.output, Output::Publishing | Output::Published);
        if now >= self.job_deadline && !over {
            self.fail(format!(
                "the job took longer than its limit of {} s",
                self.job_timeout.as_secs()
            ));
        }
    }

    /// The next thing to do; each is given once. `publish_allowed` = the sentinel has been heard
    /// lately, so nobody else can have been given the job meanwhile.
    pub fn poll(&mut self, publish_allowed: bool) -> Option<Action> {
        if self.concluded {
            return None;
        }
        if self.failure.is_some() {
            return self.poll_failed();
        }
        match self.output {
            Output::Open if self.bridge == Bridge::Ended => {
                self.output = Output::Staging;
                Some(Action::Stage)
            }
            Output::Staged if self.guest == Guest::Gone && publish_allowed => {
                self.output = Output::Publishing;
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

    /// Nothing became visible, because the lease had run out: the output is staged as before.
    pub fn handle_not_granted(&mut self) {
        if self.output == Output::Publishing {
            self.output = Output::Staged;
        }
    }

    /// True when the plugin process is gone and complete output waits to be published.
    pub fn is_staged(&self) -> bool {
        self.failure.is_none() && self.output == Output::Staged && self.guest == Guest::Gone
    }

    fn poll_failed(&mut self) -> Option<Action> {
        if let Guest::Running { kill_sent } = &mut self.guest
            && !*kill_sent
            && self.exit_deadline.is_none()
        {
            *kill_sent = true;
            return Some(Action::KillGuest);
        }
        match self.output {
            Output::Open | Output::Staged | Output::Staging => {
                self.output = Output::Discarding;
                return Some(Action::Discard);
            }
            Output::Publishing | Output::Discarding => return None,
            Output::Published | Output::Discarded => {}
        }
        if self.guest == Guest::NotStarted || self.guest == Guest::Gone {
            self.concluded = true;
            return Some(Action::Conclude(self.failure.take()));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(100);

    fn drain(slot: &mut Slot) -> Vec<Action> {
        std::iter::from_fn(|| slot.poll(true)).collect()
    }

    fn running(now: BootTime) -> Slot {
        let mut slot = Slot::new(TIMEOUT, now);
        slot.handle_started(Duration::from_secs(30), now);
        slot.handle_connected();
        slot
    }

    fn failure(actions: &[Action]) -> &Failure {
        match actions.last() {
            Some(Action::Conclude(Some(failure))) => failure,
            other => panic!("no failure: {other:?}"),
        }
    }

    #[test]
    fn a_good_job_is_staged_then_published_then_concluded() {
        let now = BootTime::now();
        let mut slot = running(now);
        assert!(drain(&mut slot).is_empty());
        slot.handle_end(now);
        assert_eq!(drain(&mut slot), [Action::Stage]);
        slot.handle_staged();
        assert!(
            drain(&mut slot).is_empty(),
            "the exit code is not known yet"
        );
        slot.handle_exited(true, "exit code 0".into());
        assert_eq!(slot.poll(false), None, "the sentinel has not been heard");
        assert!(slot.is_staged());
        assert_eq!(drain(&mut slot), [Action::Publish]);
        slot.handle_published();
        assert_eq!(drain(&mut slot), [Action::Conclude(None)]);
        assert_eq!(drain(&mut slot), []);
    }

    #[test]
    fn every_way_to_fail_kills_discards_and_names_its_first_cause() {
        let now = BootTime::now();
        type Step = fn(&mut Slot, BootTime);
        let cases: [(&str, Step, &str); 8] = [
            (
                "abort",
                |slot, _| slot.handle_abort("aborted by the sentinel"),
                "aborted",
            ),
            (
                "garbage",
                |slot, now| slot.handle_bridge_broken("garbage".into(), now),
                "garbage",
            ),
            (
                "disk full",
                |slot, _| slot.handle_output_failed("disk full".into()),
                "disk full",
            ),
            (
                "job timeout",
                |slot, now| slot.handle_timeout(now + TIMEOUT),
                "limit of 100 s",
            ),
            (
                "plugin",
                |slot, now| slot.handle_failure("ValueError".into(), now),
                "ValueError",
            ),
            (
                "exit code",
                |slot, _| slot.handle_exited(false, "exit code 3".into()),
                "code 3",
            ),
            (
                "end, then a bad exit code",
                |slot, now| {
                    slot.handle_end(now);
                    slot.handle_exited(false, "signal 9 (SIGKILL)".into());
                },
                "SIGKILL",
            ),
            (
                "end, then never exits",
                |slot, now| {
                    slot.handle_end(now);
                    slot.handle_timeout(now + limits::GUEST_EXIT_TIMEOUT);
                },
                "did not exit",
            ),
        ];
        for (name, step, want) in cases {
            let mut slot = running(now);
            step(&mut slot, now);
            slot.handle_timeout(now + limits::GUEST_EXIT_TIMEOUT);
            let mut actions = drain(&mut slot);
            if actions.contains(&Action::Discard) {
                slot.handle_discarded();
            }
            let was_gone = !actions.contains(&Action::KillGuest);
            if !was_gone {
                actions.extend(drain(&mut slot));
                assert!(
                    !matches!(actions.last(), Some(Action::Conclude(_))),
                    "{name}: alive"
                );
                slot.handle_exited(false, "signal 9 (SIGKILL)".into());
            }
            actions.extend(drain(&mut slot));
            assert!(
                failure(&actions).message.contains(want),
                "{name}: {actions:?}"
            );
            assert!(!actions.contains(&Action::Publish), "{name}");
        }
    }

    #[test]
    fn a_guest_that_never_connects_has_a_deadline() {
        let now = BootTime::now();
        let mut slot = Slot::new(TIMEOUT, now);
        slot.handle_started(Duration::from_secs(30), now);
        let deadline = now + Duration::from_secs(30);
        assert_eq!(slot.poll_timeout(), Some(deadline));
        slot.handle_timeout(deadline);
        assert_eq!(drain(&mut slot), [Action::KillGuest, Action::Discard]);
        slot.handle_exited(false, "signal 9".into());
        slot.handle_discarded();
        assert!(
            failure(&drain(&mut slot))
                .message
                .contains("did not connect")
        );
    }

    #[test]
    fn an_abort_that_comes_too_late_changes_nothing() {
        let now = BootTime::now();
        let mut slot = running(now);
        slot.handle_end(now);
        drain(&mut slot);
        slot.handle_staged();
        slot.handle_exited(true, String::new());
        assert_eq!(drain(&mut slot), [Action::Publish]);
        slot.handle_abort("too late");
        slot.handle_timeout(now + TIMEOUT);
        slot.handle_published();
        assert_eq!(drain(&mut slot), [Action::Conclude(None)]);
    }

    #[test]
    fn a_guest_that_cannot_be_started_is_a_failure() {
        let mut slot = Slot::new(TIMEOUT, BootTime::now());
        slot.handle_start_failed("no such interpreter".into());
        assert_eq!(drain(&mut slot), [Action::Discard]);
        slot.handle_discarded();
        assert!(failure(&drain(&mut slot)).message.contains("interpreter"));
    }
}
