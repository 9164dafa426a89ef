//! The worker's side of the control protocol.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::environments::State;
use super::event_loop::{STOPPED, Worker};
use super::job::Assignment;
use super::plugins::Plugins;
use crate::job::{
    ARTIFACTS_TRUNCATED, Attempt, Cause, Job, Lease, Plugin, Receipt, Sink, SinkError, text,
};
use crate::limits;
use crate::plugin::environment::Environment;
use crate::protocol::{
    Answer, Dispatch, EnvReady, ErrorMessage, Heartbeat, HeartbeatStatus, Identify, OpCode,
    Payload, View,
};
use crate::reactor::BootTime;
use crate::socket::Event;

impl Worker {
    pub(super) fn receive(&mut self, clock: Instant, now: BootTime) {
        for _ in 0..limits::MESSAGES_PER_ITERATION {
            let Some(id) = self.socket.receive(clock) else {
                return;
            };
            let Some(message) = self.socket.message(id) else {
                continue;
            };
            // An empty delimiter frame, which some ROUTERs send first, is accepted.
            let empty_first = message.get(0).is_some_and(<[u8]>::is_empty);
            let view = View::decode(message.iter().skip(usize::from(empty_first)));
            let mut repaired = Vec::new();
            let mut answer = None;
            let decoded = view.and_then(|view| {
                let payload = Payload::decode_repaired(&view, &mut repaired);
                if let Err(error) = &payload
                    && view.header.opcode == OpCode::Dispatch
                {
                    let reason = format!("the job cannot be read: {error}");
                    answer = Some((view.header.job_id, error_payload(&reason, None)));
                }
                Ok((view.header, payload?))
            });
            let (header, payload) = match decoded {
                Ok(decoded) => decoded,
                Err(error) => {
                    log::warn!("message of the sentinel refused: {error}");
                    if let Some((job_id, payload)) = answer {
                        self.send(job_id, &payload);
                    }
                    continue;
                }
            };
            match payload {
                Payload::Dispatch(dispatch) => {
                    let is_leased = dispatch.lease_of.is_some();
                    match i64::try_from(header.job_id) {
                        Ok(job_id) => {
                            let read = read_dispatch(job_id, &dispatch, &mut self.plugins);
                            self.dispatched(read, is_leased, now);
                        }
                        Err(_) => {
                            answer = Some((header.job_id, error_payload("impossible job ID", None)))
                        }
                    }
                }
                Payload::Abort => self.abort(header.job_id),
                Payload::Heartbeat(heartbeat) => {
                    if let Some(sent) = &heartbeat.answer {
                        self.answered(sent);
                    }
                }
                Payload::PrepareEnv(prepare) => {
                    let state = self
                        .environments
                        .prepare(&prepare.env_hash, &prepare.lockfile_content);
                    if let State::Ready(environment) = state {
                        answer = Some((0, env_ready(&prepare.env_hash, &environment, true)));
                    }
                }
                Payload::Reload => answer = Some((0, self.identify(now))),
                Payload::Err(error) if error.refused => {
                    self.refused = Some(error.message.into_owned());
                }
                Payload::Err(error) => log::warn!("sentinel: {}", error.message),
                other => log::debug!("message ignored: {other:?}"),
            }
            if let Some((job_id, payload)) = answer {
                self.send(job_id, &payload);
            }
        }
    }

    fn dispatched(
        &mut self,
        read: Result<Assignment, (Attempt, Cause, String)>,
        is_leased: bool,
        now: BootTime,
    ) {
        let mut assignment = match read {
            Ok(assignment) => assignment,
            Err((attempt, cause, reason)) => {
                let receipt = Receipt::failed(attempt, cause, reason);
                self.report(attempt, is_leased, receipt);
                return;
            }
        };
        assignment.environment = self.environments.key(&assignment.environment);
        let attempt = assignment.job.attempt;
        if let Some(lease) = assignment.lease {
            if self.holds().contains(&attempt) {
                return;
            }
            self.leases.handle_dispatch(attempt, lease);
            // The next request may be scheduled later than this lease allows.
            self.heartbeat_at = self.heartbeat_at.min(now + self.leases.interval());
            // A new attempt of a job means that this worker no longer has the earlier one.
            let earlier = self.holds().into_iter();
            let earlier = earlier.filter(|other| other.job_id == attempt.job_id);
            for other in earlier.collect::<Vec<_>>() {
                self.stop(|assignment| assignment.job.attempt == other, None);
            }
        }
        if self.draining_until.is_some() {
            self.give_back(&assignment, STOPPED, false);
        } else if self.backlog.len() >= limits::BACKLOG_MAX {
            let receipt = Receipt::failed(attempt, Cause::Worker, "too many jobs dispatched");
            self.report(attempt, assignment.lease.is_some(), receipt);
        } else {
            self.backlog.push_back(assignment);
        }
    }

    /// Gives the job back to the sentinel.
    pub(super) fn give_back(&mut self, assignment: &Assignment, reason: &str, was_running: bool) {
        let attempt = assignment.job.attempt;
        let mut receipt = Receipt::failed(attempt, Cause::Operator, reason);
        receipt.cause = None;
        receipt.returned = true;
        receipt.was_running = was_running;
        match assignment.lease {
            Some(_) => self.leases.owe(attempt, receipt),
            // A sentinel of the reference system would end the job as failed.
            None => log::warn!("{attempt} is left to the sentinel: {reason}"),
        }
    }

    /// Gives back jobs that have not started, while writers do not respond. Jobs of a sentinel without leases
    /// wait.
    pub(super) fn give_back_waiting(&mut self) {
        let backlog = std::mem::take(&mut self.backlog);
        for assignment in backlog {
            match assignment.lease {
                Some(_) => {
                    let reason = "its worker's storage does not respond";
                    self.give_back(&assignment, reason, false);
                }
                None => self.backlog.push_back(assignment),
            }
        }
    }

    /// Gives back jobs that wait for an environment whose creation takes long, all but one. That one fails if
    /// the creation fails. Other workers may have the environment.
    pub(super) fn give_back_surplus(&mut self, now: BootTime) {
        let slow: BTreeSet<String> = self.environments.slow(now).map(str::to_owned).collect();
        if slow.is_empty() {
            return;
        }
        let mut kept: BTreeSet<String> = BTreeSet::new();
        let backlog = std::mem::take(&mut self.backlog);
        for assignment in backlog {
            let environment = &assignment.environment;
            let stays = !slow.contains(environment) || kept.insert(environment.clone());
            if stays || assignment.lease.is_none() {
                self.backlog.push_back(assignment);
                continue;
            }
            self.give_back(&assignment, "its environment is being created", false);
            // The sentinel must learn by a HEARTBEAT that the environment is being created.
            self.heartbeat_at = now;
        }
    }

    fn answered(&mut self, answer: &Answer) {
        for attempt in self.leases.handle_answer(answer) {
            if self.stop(|assignment| assignment.job.attempt == attempt, None) {
                log::info!("{attempt}: not held any more, stopped");
            }
        }
        self.update_permits();
        self.settle(&answer.settle);
    }

    /// Updates the writers' permits from the leases.
    pub(super) fn update_permits(&mut self) {
        for run in self.publishing.iter().chain(self.slots.iter().flatten()) {
            if run.assignment.lease.is_some() {
                let until = self.leases.may_publish_until(run.assignment.job.attempt);
                run.permit.set(until);
            }
        }
    }

    /// Sends a receipt. It is kept until it is acknowledged, if the sentinel acknowledges receipts.
    pub(super) fn report(&mut self, attempt: Attempt, is_leased: bool, receipt: Receipt) {
        let receipt = bounded(attempt, receipt);
        if is_leased {
            self.leases.owe(attempt, receipt);
        } else {
            let job_id = attempt.job_id.unsigned_abs();
            self.send(job_id, &Payload::Conclude(receipt));
        }
    }

    pub(super) fn send_receipts(&mut self, now: BootTime) {
        if self.socket.received_at(self.sentinel).is_none() {
            return;
        }
        for (attempt, receipt) in self.leases.due_receipts(now) {
            let job_id = attempt.job_id.unsigned_abs();
            if !self.send(job_id, &Payload::Conclude(receipt)) {
                self.leases.handle_unsent(attempt);
                return;
            }
        }
    }

    /// Queues a message for the sentinel. Returns false if that is not possible now.
    pub(super) fn send(&mut self, job_id: u64, payload: &Payload<'_>) -> bool {
        let sent = payload
            .encode(job_id)
            .map_err(|error| error.to_string())
            .and_then(|(header, json)| {
                self.socket
                    .send_to(self.sentinel, &[&header, &json])
                    .map_err(|error| error.to_string())
            });
        if let Err(error) = &sent {
            log::error!("cannot queue a message for the sentinel: {error}");
        }
        sent.is_ok()
    }

    /// The attempts that this worker has, including those with an unacknowledged receipt.
    pub(super) fn holds(&self) -> Vec<Attempt> {
        let running = self.slots.iter().flatten().chain(&self.publishing);
        running
            .map(|run| &run.assignment)
            .chain(&self.backlog)
            .filter_map(Assignment::attempt)
            .chain(self.leases.owed())
            .collect()
    }

    pub(super) fn identify(&mut self, now: BootTime) -> Payload<'static> {
        Payload::Identify(Identify {
            capabilities: self.options.capabilities.clone(),
            worker_id: Some(self.worker_id.clone().into()),
            slots: u32::try_from(self.slots.len()).ok(),
            hostname: Some(self.hostname.clone().into()),
            pid: Some(std::process::id()),
            running: Some(self.holds()),
            instance: Some(self.instance.clone().into()),
            sequence: Some(self.leases.request(now)),
            draining: self.draining_until.is_some(),
        })
    }

    pub(super) fn connection_events(&mut self, now: BootTime) {
        while let Some(event) = self.socket.poll_event() {
            match event {
                Event::Established { .. } => {
                    log::info!("connected to the sentinel");
                    self.is_unreachable_logged = false;
                    self.leases.handle_connected();
                    self.staging.forget_database();
                    self.update_permits();
                    let identify = self.identify(now);
                    self.send(0, &identify);
                    // A HEARTBEAT with what IDENTIFY does not contain follows at once.
                    self.heartbeat_at = now;
                }
                Event::Disconnected { reason, .. } => {
                    log::warn!("connection to the sentinel lost: {reason}");
                    self.leases.handle_connected();
                    self.update_permits();
                }
                // Logged once; the socket continues to try. Failed handshakes are logged by the socket.
                Event::ConnectFailed { reason, .. } if !self.is_unreachable_logged => {
                    self.is_unreachable_logged = true;
                    log::warn!(
                        "no connection to the sentinel at {}: {reason}; trying again",
                        self.options.connect
                    );
                }
                _ => {}
            }
        }
    }

    /// Sends a HEARTBEAT when one is due.
    pub(super) fn heartbeat(&mut self, now: BootTime) {
        if now < self.heartbeat_at {
            return;
        }
        self.heartbeat_at = now + self.leases.interval();
        if self.socket.received_at(self.sentinel).is_none() {
            return;
        }
        for (hash, environment) in self.environments.changed(now) {
            if !self.environments.is_named(&hash) {
                continue;
            }
            let payload = match environment {
                Some(environment) => env_ready(&hash, &environment, true),
                None => {
                    let message =
                        format!("environment {hash}: it is not there any more, or broken");
                    log::info!("{message}; it is created again for the next job");
                    error_payload(&message, Some(&hash))
                }
            };
            self.send(0, &payload);
        }
        let current = self.slots.iter().flatten().next();
        let current = current.map(|run| run.assignment.job.attempt.job_id);
        let status = match current {
            Some(_) => HeartbeatStatus::Busy,
            None => HeartbeatStatus::Idle,
        };
        let payload = Payload::Heartbeat(Heartbeat {
            status,
            current_job_id: current,
            running: Some(self.holds()),
            sequence: Some(self.leases.request(now)),
            answered: self.leases.answered(),
            publish: self.leases.publish_requests(),
            waiting: self.waiting(),
            draining: self.draining_until.is_some(),
            trouble: self.trouble(),
            takes: self.takes(now),
            environments: self.avoided(now),
            answer: None,
        });
        self.send(current.map_or(0, i64::unsigned_abs), &payload);
    }

    /// Stops all attempts of the job that ABORT names.
    fn abort(&mut self, job_id: u64) {
        let reason = "aborted by the sentinel";
        log::info!("job {job_id}: {reason}");
        self.stop(
            |assignment| assignment.job.attempt.job_id.unsigned_abs() == job_id,
            Some(reason),
        );
    }

    /// Stops jobs, both waiting and running. With a reason, receipts are sent; without one, the sentinel does
    /// not want receipts. Returns false if there was no job to stop.
    fn stop(
        &mut self,
        mut is_meant: impl FnMut(&Assignment) -> bool,
        reason: Option<&str>,
    ) -> bool {
        let backlog = std::mem::take(&mut self.backlog);
        let (stopped, rest): (VecDeque<Assignment>, VecDeque<Assignment>) = backlog
            .into_iter()
            .partition(|assignment| is_meant(assignment));
        self.backlog = rest;
        let mut is_any = !stopped.is_empty();
        for assignment in stopped {
            let attempt = assignment.job.attempt;
            self.leases.forget(attempt);
            if let Some(reason) = reason {
                let receipt = Receipt::failed(attempt, Cause::Operator, reason);
                self.report(attempt, assignment.lease.is_some(), receipt);
            }
        }
        for run in self.slots.iter_mut().flatten().chain(&mut self.publishing) {
            if is_meant(&run.assignment) {
                is_any = true;
                run.is_unwanted |= reason.is_none();
                run.slot.handle_abort(reason.unwrap_or("not held any more"));
            }
        }
        is_any
    }
}

/// Limits a receipt to the size of a message. An oversized one lists the first of its files and the number of
/// the others ([`ARTIFACTS_TRUNCATED`]).
fn bounded(attempt: Attempt, mut receipt: Receipt) -> Receipt {
    let size =
        |receipt: &Receipt| serde_json::to_vec(receipt).map_or(usize::MAX, |json| json.len());
    let texts = [
        (&mut receipt.error_message, limits::ERROR_TEXT_SIZE_MAX),
        (&mut receipt.log_tail, limits::LOG_TAIL_SIZE_MAX),
    ];
    for (text, size_max) in texts {
        if let Some(text) = text {
            text::cut(text, size_max);
        }
    }
    if size(&receipt) > limits::RECEIPT_SIZE_MAX {
        for artifact in &mut receipt.artifacts {
            artifact.remove("columns");
        }
    }
    if size(&receipt) > limits::RECEIPT_SIZE_MAX {
        let artifacts = std::mem::take(&mut receipt.artifacts);
        let all = artifacts.len();
        let name = ARTIFACTS_TRUNCATED.to_owned();
        receipt.metrics.insert(name, i64::MAX);
        let mut room = limits::RECEIPT_SIZE_MAX.saturating_sub(size(&receipt));
        let fits = |artifact: &BTreeMap<String, String>| {
            // Including the comma after it.
            let size = serde_json::to_vec(artifact).map_or(usize::MAX, |json| json.len() + 1);
            let left = room.checked_sub(size);
            room = left.unwrap_or(0);
            left.is_some()
        };
        receipt.artifacts = artifacts.into_iter().take_while(fits).collect();
        let left_out = all - receipt.artifacts.len();
        log::warn!(
            "{attempt}: its receipt has no room for {left_out} of its {all} files; they are there"
        );
        let name = ARTIFACTS_TRUNCATED.to_owned();
        let left_out = i64::try_from(left_out).unwrap_or(i64::MAX);
        receipt.metrics.insert(name, left_out);
    }
    receipt
}

/// Reads the job of a DISPATCH. The error is the reason why it cannot be run.
fn read_dispatch(
    job_id: i64,
    dispatch: &Dispatch<'_>,
    plugins: &mut Plugins,
) -> Result<Assignment, (Attempt, Cause, String)> {
    let attempt = Attempt::new(job_id, dispatch.attempt.unwrap_or(0));
    let sinks: Result<Vec<Sink>, SinkError> =
        dispatch.sinks.iter().map(|sink| sink.parse()).collect();
    let plugin = Plugin {
        name: dispatch.plugin_name.to_string(),
        source_code: dispatch.source_code.to_string(),
        env_hash: dispatch.env_hash.to_string(),
        lockfile_content: String::new(),
        artifact_hash: dispatch.artifact_hash.as_deref().unwrap_or("").to_owned(),
    };
    let sinks = sinks.map_err(|error| (attempt, Cause::Operator, error.to_string()))?;
    let source = plugins.intern(plugin).map_err(|error| {
        let reason = format!("cannot keep the plugin's source in memory: {error}");
        (attempt, Cause::Worker, reason)
    })?;
    Ok(Assignment {
        job: Arc::new(Job {
            attempt,
            file_path: dispatch.file_path.to_string(),
            file_version_id: dispatch.file_version_id,
            content: dispatch.input.clone(),
            sinks: sinks.into(),
            parameters: dispatch.parameters.clone().unwrap_or_default(),
            plugin: source.plugin().clone(),
            database: dispatch.database.as_deref().map(Arc::from),
            previous: dispatch.previous.clone(),
            history: dispatch.history.clone().unwrap_or_default(),
        }),
        source,
        lease: dispatch
            .lease_ms
            .zip(dispatch.lease_of)
            .map(|(bound_ms, request)| Lease {
                bound: Duration::from_millis(bound_ms),
                request,
            }),
        environment: dispatch.env_hash.to_string(),
    })
}

pub(super) fn env_ready(hash: &str, environment: &Environment, cached: bool) -> Payload<'static> {
    Payload::EnvReady(EnvReady {
        env_hash: hash.to_owned().into(),
        interpreter_path: environment
            .interpreter
            .to_string_lossy()
            .into_owned()
            .into(),
        cached,
    })
}

pub(super) fn error_payload(message: &str, env_hash: Option<&str>) -> Payload<'static> {
    Payload::Err(ErrorMessage {
        message: message.to_owned().into(),
        traceback: None,
        refused: false,
        env_hash: env_hash.map(|hash| hash.to_owned().into()),
    })
}

#[cfg(test)]
mod tests;
