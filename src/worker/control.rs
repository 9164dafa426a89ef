//! The worker's side of the control protocol.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::environments::State;
use super::job::{Order, Run};
use super::serve::Worker;
use super::slot::Failure;
use crate::guest::environment::Environment;
use crate::job::{Attempt, Cause, Job, Lease, Plugin, Sink, SinkError};
use crate::limits;
use crate::protocol::{
    Dispatch, EnvReady, Err as ErrPayload, Heartbeat, HeartbeatStatus, Identify, Payload, View,
};
use crate::reactor::BootTime;
use crate::socket::Event;

impl Worker {
    pub(super) fn receive(&mut self, now: Instant) {
        for _ in 0..limits::MESSAGES_PER_TURN {
            let Some(id) = self.socket.receive(now) else {
                return;
            };
            let Some(message) = self.socket.message(id) else {
                continue;
            };
            // A ROUTER that puts an empty delimiter in front is understood too.
            let empty_first = message.get(0).is_some_and(<[u8]>::is_empty);
            let decoded = View::decode(message.iter().skip(usize::from(empty_first)))
                .and_then(|view| Payload::decode(&view).map(|payload| (view.header, payload)));
            let (header, payload) = match decoded {
                Ok(decoded) => decoded,
                Err(error) => {
                    log::warn!("message of the sentinel refused: {error}");
                    continue;
                }
            };
            let mut answer = None;
            match payload {
                Payload::Dispatch(dispatch) => match read_dispatch(header.job_id, &dispatch) {
                    Ok(mut order) => {
                        order.environment = self.environments.key(&order.environment);
                        if self.backlog.len() < limits::BACKLOG_MAX {
                            self.backlog.push_back(order);
                        } else {
                            answer =
                                Some((header.job_id, error_payload("too many jobs dispatched")));
                        }
                    }
                    Err(reason) => answer = Some((header.job_id, error_payload(&reason))),
                },
                Payload::Abort => self.abort(header.job_id),
                Payload::PrepareEnv(prepare) => {
                    let state = self
                        .environments
                        .prepare(&prepare.env_hash, &prepare.lockfile_content);
                    if let State::Ready(environment) = state {
                        answer = Some((0, env_ready(&prepare.env_hash, &environment, true)));
                    }
                }
                Payload::Reload => answer = Some((0, self.identify())),
                Payload::Err(error) => log::warn!("sentinel: {}", error.message),
                other => log::debug!("message ignored: {other:?}"),
            }
            if let Some((job_id, payload)) = answer {
                self.send(job_id, &payload);
            }
        }
    }

    pub(super) fn send(&mut self, job_id: u64, payload: &Payload<'_>) {
        let sent = payload
            .encode(job_id)
            .map_err(|error| error.to_string())
            .and_then(|(header, octets)| {
                self.socket
                    .send_to(self.sentinel, &[&header, &octets])
                    .map_err(|error| error.to_string())
            });
        if let Err(error) = sent {
            log::error!("cannot queue a message for the sentinel: {error}");
        }
    }

    pub(super) fn holds(&self) -> Vec<Attempt> {
        let running = self.slots.iter().flatten().map(|run| &run.order);
        running
            .chain(&self.backlog)
            .filter_map(Order::attempt)
            .collect()
    }

    pub(super) fn identify(&self) -> Payload<'static> {
        Payload::Identify(Identify {
            capabilities: self.options.capabilities.clone(),
            worker_id: Some(self.worker_id.clone().into()),
            slots: u32::try_from(self.slots.len()).ok(),
            hostname: Some(self.hostname.clone().into()),
            pid: Some(std::process::id()),
            running: Some(self.holds()),
            ..Identify::default()
        })
    }

    pub(super) fn connection_events(&mut self, now: Instant) {
        while let Some(event) = self.socket.poll_event() {
            match event {
                Event::Established { .. } => {
                    log::info!("connected to the sentinel");
                    self.unreachable_said = false;
                    let identify = self.identify();
                    self.send(0, &identify);
                    self.heartbeat_at = now + limits::WORKER_HEARTBEAT_INTERVAL;
                }
                Event::Disconnected { reason, .. } => {
                    log::warn!("connection to the sentinel lost: {reason}");
                }
                // Said once; the attempts go on. Failed handshakes the socket tells itself.
                Event::ConnectFailed { reason, .. } if !self.unreachable_said => {
                    self.unreachable_said = true;
                    log::warn!(
                        "no connection to the sentinel at {}: {reason}; trying on",
                        self.options.connect
                    );
                }
                _ => {}
            }
        }
    }

    pub(super) fn heartbeat(&mut self, now: Instant) {
        if now < self.heartbeat_at {
            return;
        }
        self.heartbeat_at = now + limits::WORKER_HEARTBEAT_INTERVAL;
        if self.socket.heard_at(self.sentinel).is_none() {
            return;
        }
        let current = self
            .slots
            .iter()
            .flatten()
            .next()
            .map(|run| run.order.job.attempt.job_id);
        let status = match current {
            Some(_) => HeartbeatStatus::Busy,
            None => HeartbeatStatus::Idle,
        };
        let payload = Payload::Heartbeat(Heartbeat {
            status,
            current_job_id: current,
            running: Some(self.holds()),
            ..Heartbeat::default()
        });
        self.send(current.map_or(0, i64::unsigned_abs), &payload);
    }

    pub(super) fn abort(&mut self, job_id: u64) {
        let reason = "aborted by the sentinel";
        let (aborted, rest): (VecDeque<Order>, VecDeque<Order>) = std::mem::take(&mut self.backlog)
            .into_iter()
            .partition(|order| order.job.attempt.job_id.unsigned_abs() == job_id);
        self.backlog = rest;
        for order in aborted {
            let now = BootTime::now();
            let run = Run::new(0, order, self.options.job_timeout, now);
            let failure = Failure::new(Cause::Operator, reason);
            let receipt = run.conclude(Some(&failure), now);
            self.send(job_id, &Payload::Conclude(receipt));
        }
        for run in self.slots.iter_mut().flatten() {
            if run.order.job.attempt.job_id.unsigned_abs() == job_id {
                log::info!("job {job_id}: {reason}");
                run.slot.handle_abort(reason);
            }
        }
    }
}

/// The job of a DISPATCH, or why it cannot be run.
fn read_dispatch(job_id: u64, dispatch: &Dispatch<'_>) -> Result<Order, String> {
    let job_id = i64::try_from(job_id).map_err(|_| "impossible job id".to_owned())?;
    let sinks: Result<Vec<Sink>, SinkError> =
        dispatch.sinks.iter().map(|sink| sink.parse()).collect();
    let plugin = Plugin {
        name: dispatch.plugin_name.to_string(),
        source_code: dispatch.source_code.to_string(),
        env_hash: dispatch.env_hash.to_string(),
        lockfile_content: String::new(),
        artifact_hash: dispatch.artifact_hash.as_deref().unwrap_or("").to_owned(),
    };
    Ok(Order {
        job: Arc::new(Job {
            attempt: Attempt::new(job_id, dispatch.attempt.unwrap_or(0)),
            file_path: dispatch.file_path.to_string(),
            file_version_id: dispatch.file_version_id,
            sinks: sinks.map_err(|error| error.to_string())?.into(),
            plugin: Arc::new(plugin),
            database: dispatch.database.as_deref().map(Arc::from),
            previous: dispatch.previous.clone(),
        }),
        lease: dispatch.lease_ms.map(|bound_ms| Lease {
            bound: Duration::from_millis(bound_ms),
            request: dispatch.lease_of.unwrap_or(0),
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

pub(super) fn error_payload(message: &str) -> Payload<'static> {
    Payload::Err(ErrPayload {
        message: message.to_owned().into(),
        traceback: None,
    })
}
