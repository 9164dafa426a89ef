//! Guests of the slots: started, watched, ended.

use std::io;

use mio::Interest;
use mio::net::UnixListener;

use super::control::{env_ready, error_payload};
use super::environments::State;
use super::event::ThreadEvent;
use super::job::{Guest, Run, owner};
use super::serve::{GuestStart, WARM, Worker};
use super::slot::{Action, Slot};
use super::writer::{Address, Report, Writer};
use crate::guest::environment::Environment;
use crate::guest::warm::WarmEvent;
use crate::guest::{Exit, Job, process};
use crate::limits;
use crate::reactor::{BootTime, token};

impl Worker {
    pub(super) fn start_jobs(&mut self, now: BootTime) {
        while self.draining_until.is_none()
            && let Some(place) = self.slots.iter().position(Option::is_none)
            && let Some(order) = self.backlog.pop_front()
        {
            self.next_serial += 1;
            let mut run = Run::new(self.next_serial, order, self.options.job_timeout, now);
            run.waits_for_environment = true;
            if run.order.lease.is_some() {
                let until = self.leases.may_publish_until(run.order.job.attempt);
                run.permit.set(until);
            }
            if let Some(slot) = self.slots.get_mut(place) {
                *slot = Some(run);
            }
            self.start_guest(place, now);
        }
    }

    /// Starts the guest of a slot whose environment is ready.
    pub(super) fn start_guest(&mut self, place: usize, now: BootTime) {
        let Some(Some(run)) = self.slots.get_mut(place) else {
            return;
        };
        let environment = match self.environments.state(&run.order.environment) {
            State::Making => return,
            State::Ready(environment) => environment,
            State::Failed { message, .. } => {
                run.waits_for_environment = false;
                run.slot.handle_start_failed(message);
                return;
            }
        };
        run.waits_for_environment = false;
        run.slot = Slot::new(self.options.job_timeout, now);
        if let Err(message) = self.launch(place, &environment, now)
            && let Some(Some(run)) = self.slots.get_mut(place)
        {
            run.slot.handle_start_failed(message);
        }
    }

    pub(super) fn launch(
        &mut self,
        place: usize,
        environment: &Environment,
        now: BootTime,
    ) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let work_dir = self.runtime.work_dir(place).map_err(text)?;
        let socket_path = self.runtime.socket(place);
        if let Err(error) = std::fs::remove_file(&socket_path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(text(error));
        }
        let mut listener = UnixListener::bind(&socket_path).map_err(text)?;
        let registry = self.reactor.registry();
        registry
            .register(
                &mut listener,
                token::new(owner::LISTENER, place),
                Interest::READABLE,
            )
            .map_err(text)?;
        let warm_place = match self.options.guest_start {
            GuestStart::Spawn => None,
            GuestStart::Warm => {
                let used: Vec<usize> = self
                    .slots
                    .iter()
                    .flatten()
                    .filter_map(|run| match run.guest {
                        Guest::Warm { place, .. } => Some(place),
                        _ => None,
                    })
                    .collect();
                let Some(Some(run)) = self.slots.get(place) else {
                    return Ok(());
                };
                let hash = run.order.environment.clone();
                Some(self.environments.warm(
                    &hash,
                    environment,
                    &self.shim,
                    registry,
                    WARM,
                    &|place| used.contains(&place),
                )?)
            }
        };
        let Some(Some(run)) = self.slots.get_mut(place) else {
            return Ok(());
        };
        let order = &run.order;
        let writer = Writer::start(
            order.job.clone(),
            self.staging.clone(),
            run.permit.clone(),
            Address {
                serial: run.serial,
                reports: self.report_sender.clone(),
                waker: self.waker.clone(),
            },
        )
        .map_err(text)?;
        run.writer = Some(writer);
        run.listener = Some(listener);
        let job = Job {
            job_id: order.job.attempt.job_id.unsigned_abs(),
            file_version_id: order.job.file_version_id,
            plugin_name: &order.job.plugin.name,
            file_path: &order.job.file_path,
            source_code: &order.job.plugin.source_code,
            socket_path: &socket_path,
            work_dir: &work_dir,
        };
        let pipes = match warm_place {
            Some(warm_place) => {
                let warm = self
                    .environments
                    .warm_at(warm_place)
                    .ok_or("no warm interpreter")?;
                let pipes = warm
                    .request(run.serial, &job)
                    .map_err(|error| error.to_string())?;
                run.guest = Guest::Warm {
                    place: warm_place,
                    pid: None,
                    kill: false,
                };
                pipes
            }
            None => {
                let (process, pipes) = process::spawn(&environment.interpreter, &self.shim, &job)
                    .map_err(|error| {
                    format!(
                        "cannot start {}: {error}",
                        environment.interpreter.display()
                    )
                })?;
                run.guest = Guest::Spawned(process);
                pipes
            }
        };
        run.started_at = Some(now);
        run.slot.handle_started(limits::GUEST_CONNECT_TIMEOUT, now);
        log::debug!(
            "job {}: guest started for {}",
            order.job.attempt.job_id,
            order.job.file_path
        );
        run.watch_exit(place, registry).map_err(text)?;
        run.watch_pipes(pipes, place, registry).map_err(text)
    }

    pub(super) fn thread_event(&mut self, event: ThreadEvent, now: BootTime) {
        match event {
            ThreadEvent::Writer { serial, report } => {
                let Some(run) = self.run_of(serial) else {
                    return;
                };
                match report {
                    Report::Room => {
                        if let Some(writer) = &mut run.writer {
                            writer.retry();
                        }
                    }
                    Report::Failed { cause: _, message } => run.slot.handle_output_failed(message),
                    Report::Staged => run.slot.handle_staged(),
                    Report::NotGranted => run.slot.handle_not_granted(),
                    Report::Published(artifacts) => {
                        run.artifacts = artifacts;
                        run.slot.handle_published();
                    }
                    Report::Discarded => run.slot.handle_discarded(),
                }
            }
            ThreadEvent::Environment { hash, result } => {
                match &result {
                    Ok(environment) => {
                        let payload = env_ready(&hash, environment, environment.cached);
                        self.send(0, &payload);
                    }
                    Err(message) => {
                        log::error!("environment {hash}: {message}");
                        let payload = error_payload(&format!("environment {hash}: {message}"));
                        self.send(0, &payload);
                    }
                }
                self.environments.handle_made(&hash, result);
                for place in 0..self.slots.len() {
                    let waits = self
                        .slots
                        .get(place)
                        .and_then(Option::as_ref)
                        .is_some_and(|run| {
                            run.waits_for_environment && run.order.environment == hash
                        });
                    if waits {
                        self.start_guest(place, now);
                    }
                }
            }
        }
    }

    /// Carries out what the slots want done. Staged output is [`Worker::publish`]'s.
    pub(super) fn act(&mut self, now: BootTime) {
        for place in 0..self.slots.len() {
            while let Some(Some(run)) = self.slots.get_mut(place) {
                match run.slot.poll(false) {
                    None | Some(Action::Publish) => break,
                    Some(Action::KillGuest) => run.kill(),
                    Some(Action::Stage) => with_writer(run, Writer::stage),
                    Some(Action::Discard) => match &mut run.writer {
                        Some(writer) => writer.discard(),
                        None => run.slot.handle_discarded(),
                    },
                    Some(Action::Conclude(failure)) => {
                        if let Some(mut run) = self.slots.get_mut(place).and_then(Option::take) {
                            run.failure = failure;
                            self.runtime.clear(place);
                            self.conclude(run, now);
                            self.start_jobs(now);
                        }
                    }
                }
            }
        }
    }

    /// A job by its number in this worker's life, in a slot or past it.
    fn run_of(&mut self, serial: u64) -> Option<&mut Run> {
        let slots = self.slots.iter_mut().flatten();
        slots
            .chain(&mut self.publishing)
            .find(|run| run.serial == serial)
    }

    pub(super) fn process_exit(&mut self, place: usize, now: BootTime) {
        let Some(Some(run)) = self.slots.get_mut(place) else {
            return;
        };
        let Guest::Spawned(process) = &mut run.guest else {
            return;
        };
        match process.try_exit() {
            Ok(None) => {}
            Ok(Some(exit)) => run.handle_exit(&exit, place, self.reactor.registry(), now),
            Err(error) => {
                log::error!("job {}: {error}", run.order.job.attempt.job_id);
                let exit = Exit {
                    code: None,
                    signal: None,
                    rss_max_bytes: 0,
                };
                run.handle_exit(&exit, place, self.reactor.registry(), now);
            }
        }
    }

    pub(super) fn warm_events(&mut self, warm_place: usize, now: BootTime) {
        loop {
            let Some(warm) = self.environments.warm_at(warm_place) else {
                return;
            };
            let event = match warm.next_event() {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(error) => {
                    log::error!("{error}");
                    self.warm_lost(warm_place, &error.to_string(), now);
                    return;
                }
            };
            let (key, exit) = match event {
                WarmEvent::Ready => continue,
                WarmEvent::Started { key, pid } => {
                    if let Some((place, run)) = self.warm_run(warm_place, key) {
                        let mut kill_now = false;
                        if let Guest::Warm {
                            pid: known, kill, ..
                        } = &mut run.guest
                        {
                            *known = Some(pid);
                            kill_now = *kill;
                        }
                        if kill_now {
                            run.kill();
                        }
                        // It may have connected before its start was told.
                        if let Some(Some(run)) = self.slots.get_mut(place) {
                            run.accept(place, self.reactor.registry(), now);
                        }
                    }
                    continue;
                }
                WarmEvent::Failed { key, message } => {
                    if let Some((_, run)) = self.warm_run(warm_place, key) {
                        run.guest = Guest::None;
                        run.slot.handle_start_failed(message);
                    }
                    continue;
                }
                WarmEvent::Exited { key, exit } => (key, exit),
            };
            if let Some((place, _)) = self.warm_run(warm_place, key)
                && let Some(Some(run)) = self.slots.get_mut(place)
            {
                run.handle_exit(&exit, place, self.reactor.registry(), now);
            }
        }
    }

    /// The slot whose guest is a child of the warm interpreter and was asked for by that key.
    pub(super) fn warm_run(&mut self, warm_place: usize, key: u64) -> Option<(usize, &mut Run)> {
        self.slots.iter_mut().enumerate().find_map(|(place, slot)| {
            let run = slot.as_mut()?;
            let ours = matches!(run.guest, Guest::Warm { place, .. } if place == warm_place);
            (ours && run.serial == key).then_some((place, run))
        })
    }

    /// A warm interpreter is gone, and its children with it.
    pub(super) fn warm_lost(&mut self, warm_place: usize, reason: &str, now: BootTime) {
        self.environments
            .drop_warm(warm_place, self.reactor.registry());
        for place in 0..self.slots.len() {
            let Some(Some(run)) = self.slots.get_mut(place) else {
                continue;
            };
            if !matches!(run.guest, Guest::Warm { place, .. } if place == warm_place) {
                continue;
            }
            run.kill();
            if run.started_at.is_some() && run.slot.reads() {
                let exit = Exit {
                    code: None,
                    signal: Some(9),
                    rss_max_bytes: 0,
                };
                run.handle_exit(&exit, place, self.reactor.registry(), now);
            } else {
                run.guest = Guest::None;
                run.slot.handle_start_failed(reason.to_owned());
            }
        }
    }
}

fn with_writer(run: &mut Run, order: impl FnOnce(&mut Writer)) {
    match &mut run.writer {
        Some(writer) => order(writer),
        None => run
            .slot
            .handle_output_failed("the job has no writer".to_owned()),
    }
}
