//! A worker with the real state machines for leases and slots, and a plugin that takes some time.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use casparian::job::{
    Attempt, BARRED_BY, Cause, JobStatus, Lease, LimitOf, Receipt, SETTLED_ATTEMPT, Settlement,
};
use casparian::plugin::Exit;
use casparian::protocol::{Dispatch, Heartbeat, HeartbeatStatus, Identify, Payload, View};
use casparian::reactor::BootTime;
use casparian::worker::leases::Leases;
use casparian::worker::slot::{Action, Failure, Slot, Timeouts};

use crate::random::Random;
use crate::storage::{Step, Storage};

pub(crate) type Bytes = Vec<Vec<u8>>;

const TIMEOUTS: Timeouts = Timeouts {
    job: Duration::from_secs(20),
    job_of: LimitOf::Operator,
    writer: Duration::from_secs(40),
    publish: Duration::from_secs(300),
};

/// What a plugin process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Succeeds,
    Raises,
    /// Its output cannot be written.
    CannotWrite,
    /// It never ends.
    Hangs,
}

/// A job in a worker.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) attempt: Attempt,
    slot: Slot,
    /// Its sinks let one job at a time publish.
    exclusive: Vec<String>,
    /// The plugin process ends then, by the worker's clock.
    ends_at: BootTime,
    plan: Plan,
    /// Being published, at this step.
    step: Option<Step>,
    is_unwanted: bool,
}

pub(crate) struct Worker {
    pub(crate) name: String,
    pub(crate) instance: String,
    pub(crate) leases: Leases,
    pub(crate) slots: usize,
    pub(crate) running: Vec<Run>,
    pub(crate) publishing: Vec<Run>,
    backlog: VecDeque<Run>,
    heartbeat_at: BootTime,
    pub(crate) is_connected: bool,
    pub(crate) is_draining: bool,
    pub(crate) is_refused: bool,
    pub(crate) out: Vec<Bytes>,
    /// Published attempts whose receipts were acknowledged.
    pub(crate) acknowledged: Vec<Attempt>,
    published: BTreeSet<Attempt>,
    /// Settlements, and whether the bar stands.
    settlements: VecDeque<(Settlement, bool)>,
}

impl Worker {
    pub(crate) fn new(name: String, instance: String, slots: usize, now: BootTime) -> Self {
        Worker {
            name,
            instance,
            leases: Leases::default(),
            slots,
            running: Vec::new(),
            publishing: Vec::new(),
            backlog: VecDeque::new(),
            heartbeat_at: now,
            is_connected: false,
            is_draining: false,
            is_refused: false,
            out: Vec::new(),
            acknowledged: Vec::new(),
            published: BTreeSet::new(),
            settlements: VecDeque::new(),
        }
    }

    pub(crate) fn routing_id(&self) -> Vec<u8> {
        format!("{}.{}", self.name, self.instance).into_bytes()
    }

    pub(crate) fn is_busy(&self) -> bool {
        let jobs = self.running.len() + self.publishing.len() + self.backlog.len();
        let settles = !self.settlements.is_empty() && !self.is_draining;
        jobs > 0 || settles || self.leases.owed().next().is_some()
    }

    fn send(&mut self, job_id: u64, payload: &Payload<'_>) {
        if self.is_connected {
            let (header, json) = payload.encode(job_id).unwrap();
            self.out.push(vec![header.to_vec(), json]);
        }
    }

    fn holds(&self) -> Vec<Attempt> {
        let runs = self
            .running
            .iter()
            .chain(&self.publishing)
            .chain(&self.backlog);
        runs.map(|run| run.attempt)
            .chain(self.leases.owed())
            .collect()
    }

    pub(crate) fn connected(&mut self, now: BootTime) {
        self.is_connected = true;
        self.leases.handle_connected();
        let identify = Payload::Identify(Identify {
            capabilities: vec!["*".into()],
            worker_id: Some(self.name.clone().into()),
            slots: Some(self.slots as u32),
            running: Some(self.holds()),
            instance: Some(self.instance.clone().into()),
            sequence: Some(self.leases.request(now)),
            draining: self.is_draining,
            ..Identify::default()
        });
        self.send(0, &identify);
        self.heartbeat_at = now;
    }

    pub(crate) fn disconnected(&mut self) {
        self.is_connected = false;
        self.leases.handle_connected();
    }

    pub(crate) fn drain(&mut self, now: BootTime) {
        self.is_draining = true;
        for run in std::mem::take(&mut self.backlog) {
            let mut receipt = Receipt::failed(run.attempt, Cause::Operator, "stopped");
            receipt.returned = true;
            self.leases.owe(run.attempt, receipt);
        }
        self.heartbeat_at = now;
    }

    pub(crate) fn receive(&mut self, message: &Bytes, now: BootTime, random: &mut Random) {
        let view = View::decode(message.iter().map(Vec::as_slice)).unwrap();
        match Payload::decode(&view).unwrap() {
            Payload::Dispatch(dispatch) => {
                self.dispatched(view.header.job_id as i64, &dispatch, now, random);
            }
            Payload::Heartbeat(heartbeat) => {
                let answer = heartbeat.answer.expect("an answer");
                let known = answer.acknowledged.iter();
                self.acknowledged
                    .extend(known.filter(|attempt| self.published.contains(attempt)));
                for attempt in self.leases.handle_answer(&answer) {
                    self.stop(attempt);
                }
                let settlements = answer.settle.into_iter();
                self.settlements
                    .extend(settlements.map(|settlement| (settlement, false)));
            }
            Payload::Reload => self.connected(now),
            Payload::Err(error) if error.refused => self.is_refused = true,
            Payload::PrepareEnv(_) => {}
            other => panic!("{other:?}"),
        }
    }

    fn dispatched(
        &mut self,
        job_id: i64,
        dispatch: &Dispatch<'_>,
        now: BootTime,
        random: &mut Random,
    ) {
        let attempt = Attempt::new(job_id, dispatch.attempt.unwrap());
        if self.holds().contains(&attempt) {
            return;
        }
        let lease = Lease {
            bound: Duration::from_millis(dispatch.lease_ms.unwrap()),
            request: dispatch.lease_of.unwrap(),
        };
        self.leases.handle_dispatch(attempt, lease);
        let earlier: Vec<Attempt> = self.holds();
        for other in earlier {
            if other.job_id == job_id && other != attempt {
                self.stop(other);
            }
        }
        let plan = match random.below(40) {
            0 | 1 => Plan::Raises,
            2 | 3 => Plan::CannotWrite,
            4 => Plan::Hangs,
            _ => Plan::Succeeds,
        };
        let sinks = dispatch.sinks.iter().filter(|sink| sink.mode != "append");
        let length = Duration::from_millis(random.between(1, 8000));
        self.backlog.push_back(Run {
            attempt,
            slot: Slot::new(TIMEOUTS),
            exclusive: sinks.map(|sink| sink.uri.clone()).collect(),
            ends_at: now + length,
            plan,
            step: None,
            is_unwanted: false,
        });
        if self.is_draining {
            self.drain(now);
        }
    }

    fn stop(&mut self, attempt: Attempt) {
        self.backlog.retain(|run| run.attempt != attempt);
        for run in self.running.iter_mut().chain(&mut self.publishing) {
            if run.attempt == attempt {
                run.is_unwanted = true;
                run.slot.handle_abort("not held any more");
            }
        }
        self.leases.forget(attempt);
    }

    /// Lets the worker do what is due. One storage step a call: it may be paused after any.
    pub(crate) fn step(&mut self, now: BootTime, storage: &mut Storage) {
        while self.running.len() < self.slots
            && let Some(mut run) = self.backlog.pop_front()
        {
            storage.create_folder(run.attempt);
            run.slot.handle_started(now);
            run.slot.handle_connected();
            self.running.push(run);
        }
        for mut run in std::mem::take(&mut self.running) {
            run.advance_process(now);
            if !self.act(&mut run, false, now, storage) {
                continue;
            }
            match run.slot.is_staged() {
                true => self.publishing.push(run),
                false => self.running.push(run),
            }
        }
        for mut run in std::mem::take(&mut self.publishing) {
            if self.advance(&mut run, now, storage) {
                self.publishing.push(run);
            }
        }
        self.settle(storage);
        for (attempt, receipt) in self.leases.due_receipts(now) {
            self.send(attempt.job_id as u64, &Payload::Conclude(receipt));
        }
        if now >= self.heartbeat_at && self.is_connected {
            self.heartbeat_at = now + self.leases.interval();
            let payload = Payload::Heartbeat(Heartbeat {
                status: HeartbeatStatus::Idle,
                running: Some(self.holds()),
                sequence: Some(self.leases.request(now)),
                answered: self.leases.answered(),
                publish: self.leases.publish_requests(),
                draining: self.is_draining,
                ..Heartbeat::default()
            });
            self.send(0, &payload);
        }
    }

    /// One step of a settlement.
    fn settle(&mut self, storage: &mut Storage) {
        let Some((settlement, is_barring)) = self.settlements.pop_front() else {
            return;
        };
        let attempt = settlement.attempt;
        let before = Attempt::new(attempt.job_id, attempt.number - 1);
        if !is_barring {
            storage.bar(before);
            self.settlements.push_front((settlement, true));
            return;
        }
        storage.move_folders(before);
        if let Some(by) = storage.barred_by(attempt) {
            let mut receipt = Receipt::failed(attempt, Cause::Worker, "barred");
            receipt.metrics.insert(BARRED_BY.to_owned(), by);
            return self.leases.owe(attempt, receipt);
        }
        let kept = storage.settle(&settlement);
        let receipt = Receipt {
            status: JobStatus::Success,
            attempt: Some(attempt.number),
            metrics: kept
                .map(|number| (SETTLED_ATTEMPT.to_owned(), number))
                .into_iter()
                .collect(),
            ..Receipt::default()
        };
        self.leases.owe(attempt, receipt);
    }

    /// Carries out what a slot wants done; false when the job is over.
    fn act(&mut self, run: &mut Run, allowed: bool, now: BootTime, storage: &mut Storage) -> bool {
        while let Some(action) = run.slot.poll(allowed, now) {
            match action {
                Action::Kill => run.slot.handle_exited(exit(None, Some(9)), now),
                Action::Stage => run.slot.handle_staged(),
                Action::Publish => run.step = Some(Step::BarEarlier),
                Action::Discard => {
                    storage.remove_folder(run.attempt);
                    run.slot.handle_discarded();
                }
                Action::GiveUp(_) => panic!("{}: its writer answers", run.attempt),
                Action::Conclude(failure) => {
                    self.conclude(run, failure);
                    return false;
                }
            }
        }
        true
    }

    /// One step of a publish; false when the job is over.
    fn advance(&mut self, run: &mut Run, now: BootTime, storage: &mut Storage) -> bool {
        let attempt = run.attempt;
        let is_allowed = |leases: &Leases| {
            leases
                .may_publish_until(attempt)
                .is_some_and(|until| now < until)
        };
        let Some(step) = run.step else {
            if self.leases.ask_exclusive(attempt, run.exclusive.clone()) {
                self.heartbeat_at = now;
            }
            let allowed = is_allowed(&self.leases);
            if !self.act(run, allowed, now, storage) {
                return false;
            }
            if run.step.is_some() {
                for other in self.leases.to_bar(attempt) {
                    storage.bar(other);
                    storage.move_folders(other);
                }
            } else if self.leases.must_ask(attempt, now) {
                self.heartbeat_at = now;
            }
            return true;
        };
        let earlier = Attempt::new(attempt.job_id, attempt.number - 1);
        match step {
            Step::BarEarlier => storage.bar(earlier),
            Step::MoveEarlier => storage.move_folders(earlier),
            Step::CheckLease => {
                if !is_allowed(&self.leases) {
                    run.slot.handle_not_granted();
                    run.step = None;
                    return true;
                }
            }
            Step::CheckBar => {
                let taken_by = storage.taken_by(attempt);
                let barred = if taken_by.is_some() {
                    Cause::Operator
                } else {
                    Cause::Worker
                };
                let barred_by = storage.barred_by(attempt);
                if barred_by.is_some() || taken_by.is_some() {
                    storage.remove_folder(attempt);
                    run.slot.handle_output_failed(Failure {
                        barred_by,
                        taken_by,
                        ..Failure::new(barred, "barred or taken")
                    });
                    return self.act(run, false, now, storage);
                }
            }
            Step::Rename => {
                let is_visible = storage.rename(attempt);
                if is_visible {
                    self.published.insert(attempt);
                }
                match is_visible {
                    true => run.slot.handle_published(),
                    false => {
                        let moved = Failure::new(Cause::Worker, "its folder was moved");
                        run.slot.handle_output_failed(moved);
                    }
                }
                return self.act(run, false, now, storage);
            }
            Step::Done => {}
        }
        run.step = Some(step.next());
        true
    }

    /// True while the sentinel has not acknowledged the receipt of a publish.
    pub(crate) fn owes_output(&self) -> bool {
        let mut owed = self.leases.owed();
        owed.any(|attempt| self.published.contains(&attempt))
    }

    /// True between a publish's last check and its rename.
    pub(crate) fn is_renaming(&self) -> bool {
        let mut steps = self.publishing.iter().map(|run| run.step);
        steps.any(|step| matches!(step, Some(Step::CheckBar | Step::Rename)))
    }

    /// Attempts that this worker may publish at this moment of its clock.
    pub(crate) fn may_publish(&self, now: BootTime) -> Vec<Attempt> {
        let runs = self.running.iter().chain(&self.publishing);
        runs.map(|run| run.attempt)
            .filter(|attempt| {
                let until = self.leases.may_publish_until(*attempt);
                until.is_some_and(|until| now < until)
            })
            .collect()
    }

    fn conclude(&mut self, run: &Run, failure: Option<Failure>) {
        let attempt = run.attempt;
        if run.is_unwanted && failure.is_some() {
            return self.leases.forget(attempt);
        }
        let receipt = match failure {
            Some(failure) => {
                let mut receipt = Receipt::failed(attempt, failure.cause, failure.message);
                receipt.note_others(failure.barred_by, failure.taken_by);
                receipt
            }
            None => Receipt {
                status: JobStatus::Success,
                attempt: Some(attempt.number),
                ..Receipt::default()
            },
        };
        self.leases.owe(attempt, receipt);
    }
}

impl Run {
    /// What its plugin process does, and what time does to it.
    fn advance_process(&mut self, now: BootTime) {
        if self.ends_at <= now && !self.slot.has_process_ended() {
            match self.plan {
                Plan::Succeeds => {
                    self.slot.handle_end(now);
                    self.slot.handle_exited(exit(Some(0), None), now);
                }
                Plan::Raises => {
                    self.slot.handle_failure("ValueError".to_owned(), now);
                    self.slot.handle_exited(exit(Some(1), None), now);
                }
                Plan::CannotWrite => self
                    .slot
                    .handle_output_failed(Failure::new(Cause::Worker, "no space")),
                Plan::Hangs => {}
            }
        }
        self.slot.handle_timeout(now);
    }
}

fn exit(code: Option<i32>, signal: Option<i32>) -> Exit {
    Exit {
        code,
        signal,
        rss_max_bytes: 0,
    }
}
