//! Starts the plugin processes of slots, and passes events of threads to their jobs.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::Interest;
use mio::net::UnixListener;

use super::descriptors;
use super::environments::State;
use super::event::{Report, ThreadEvent};
use super::event_loop::{PluginStart, Worker};
use super::fork_servers::{Kind, Outside, Start};
use super::job::{Assignment, ProcessState, Run, slot_event};
use super::messages::{env_ready, error_payload};
use super::meter::oom_kills;
use super::runtime::{JobPaths, Runtime};
use super::sandbox::{ForkServer, Reachable};
use super::slot::{Failure, Timeouts};
use super::writer::{Address, Writer};
use crate::job::{Attempt, Cause, LimitOf};
use crate::keys_in_use;
use crate::limits;
use crate::plugin::environment::{self, Environment};
use crate::plugin::process::Pipes;
use crate::plugin::{Job, fork_server};
use crate::reactor::{BootTime, bind_private, token};
use crate::sandbox::Mode;
use crate::sink::Bounds;

impl Worker {
    pub(super) fn start_jobs(&mut self, now: BootTime) {
        if self.health.has_silent_writers() {
            return self.give_back_waiting();
        }
        while self.draining_until.is_none()
            && let Some(slot_index) = self.slots.iter().position(Option::is_none)
            && let Some((assignment, state)) = self.next_order(now)
        {
            let run = self.new_run(assignment, now);
            if let Some(slot) = self.slots.get_mut(slot_index) {
                *slot = Some(run);
            }
            self.start_plugin(slot_index, state, now);
        }
    }

    fn new_run(&mut self, assignment: Assignment, now: BootTime) -> Run {
        self.next_serial += 1;
        let quota = self.options.quota.lowered(assignment.source.quota());
        let timeout = match quota.timeout {
            0 => self.options.job_timeout,
            seconds => self.options.job_timeout.min(Duration::from_secs(seconds)),
        };
        let timeouts = Timeouts {
            job: timeout,
            job_of: LimitOf::new(timeout, self.options.job_timeout),
            writer: self.options.writer_timeout,
            publish: self.options.publish_timeout,
        };
        let run = Run::new(
            self.next_serial,
            assignment,
            timeouts,
            &self.options.bounds,
            self.options.quota,
            now,
        );
        if run.assignment.lease.is_some() {
            let until = self.leases.may_publish_until(run.assignment.job.attempt);
            run.permit.set(until);
        }
        run
    }

    /// Removes the first job from the backlog whose environment is not being created. Returns it with that
    /// state.
    fn next_order(&mut self, now: BootTime) -> Option<(Assignment, State)> {
        for index in 0..self.backlog.len() {
            let assignment = self.backlog.get(index)?;
            match self.environments.state(&assignment.environment) {
                State::Making => {
                    let report_at = now + limits::ENVIRONMENT_SLOW;
                    self.heartbeat_at = self.heartbeat_at.min(report_at);
                }
                state => {
                    return self
                        .backlog
                        .remove(index)
                        .map(|assignment| (assignment, state));
                }
            }
        }
        None
    }

    /// Attempts whose environments are being created.
    pub(super) fn waiting(&self) -> Vec<Attempt> {
        let waits = |assignment: &&Assignment| self.environments.is_making(&assignment.environment);
        let waiting = self.backlog.iter().filter(waits);
        waiting.filter_map(Assignment::attempt).collect()
    }

    /// Starts the process of a slot whose environment is ready, or could not be created.
    fn start_plugin(&mut self, slot_index: usize, state: State, now: BootTime) {
        let started = match state {
            State::Ready(environment) => self.launch(slot_index, &environment, now),
            State::Making => return,
            State::Failed(failure) => {
                let slot = self.slots.get(slot_index).and_then(Option::as_ref);
                let hash = slot.map(|run| run.assignment.environment.clone());
                if failure.is_uncounted
                    && let Some(hash) = hash
                    && let Some(until) = self.environments.paused_until(&hash)
                {
                    self.avoid(&hash, &failure.message, until, now);
                }
                Err(failure)
            }
        };
        if let Err(failure) = started
            && let Some(Some(run)) = self.slots.get_mut(slot_index)
        {
            run.slot.handle_start_failed(failure);
        }
    }

    /// Reports to the sentinel that this worker should get no jobs of an environment until then.
    fn avoid(&mut self, hash: &str, reason: &str, until: BootTime, now: BootTime) {
        self.health.avoid(hash, reason, until);
        self.heartbeat_at = now;
    }

    fn launch(
        &mut self,
        slot_index: usize,
        environment: &Environment,
        now: BootTime,
    ) -> Result<(), Failure> {
        let Some(Some(run)) = self.slots.get_mut(slot_index) else {
            return Ok(());
        };
        let serial = run.serial;
        let assignment = run.assignment.clone();
        check_path(&assignment.job.file_path)?;
        if let Some(refusal) = assignment.source.refusal() {
            return Err(Failure::new(Cause::Plugin, refusal.to_string()));
        }
        self.runtime
            .ensure()
            .map_err(worker("folder for sockets"))?;
        let hash = &assignment.environment;
        let (own, mut listener) = self.prepare_paths(hash, serial).or_else(|_| {
            // Only the environment's folder may be unusable, so another one is tried.
            self.runtime.forget_environment(hash);
            self.prepare_paths(hash, serial)
        })?;
        let Some(Some(run)) = self.slots.get_mut(slot_index) else {
            return Ok(());
        };
        run.paths = own;
        let token = token::new(slot_event::LISTENER, slot_index);
        let registry = self.reactor.registry();
        registry
            .register(&mut listener, token, Interest::READABLE)
            .map_err(worker("event loop"))?;
        run.listener = Some(listener);
        let address = Address {
            serial,
            reports: self.report_sender.clone(),
            waker: self.waker.clone(),
        };
        let writer = Writer::start(
            assignment.job.clone(),
            self.staging.clone(),
            run.permit.clone(),
            Bounds {
                output: run.quota.output,
                output_of: LimitOf::new(run.quota.output, self.options.quota.output),
                ..self.options.bounds
            },
            address,
        );
        run.writer = Some(writer.map_err(worker("writer thread"))?);
        self.start_process(slot_index, environment, now)
    }

    /// Creates a job's working directory and its socket.
    fn prepare_paths(
        &mut self,
        hash: &str,
        serial: u64,
    ) -> Result<(JobPaths, UnixListener), Failure> {
        let used = self.fork_servers.environments();
        let runs = self.slots.iter().flatten();
        let used = used.chain(runs.map(|run| run.assignment.environment.as_str()));
        let used: HashSet<&str> = used.collect();
        let folder = self
            .runtime
            .environment_folder(hash, &|hash| used.contains(hash))
            .map_err(worker("folder of an environment"))?;
        let own = JobPaths::new(folder, serial);
        Runtime::create_work_dir(&own).map_err(worker("working directory"))?;
        let listener = bind_private(&own.socket).map_err(worker("bridge"))?;
        Ok((own, listener))
    }

    /// Starts the process of a slot that has its paths, socket and writer.
    pub(super) fn start_process(
        &mut self,
        slot_index: usize,
        environment: &Environment,
        now: BootTime,
    ) -> Result<(), Failure> {
        let Some(Some(run)) = self.slots.get_mut(slot_index) else {
            return Ok(());
        };
        let serial = run.serial;
        let assignment = run.assignment.clone();
        let JobPaths {
            folder: own_folder,
            socket: socket_path,
            work_dir,
        } = run.paths.clone();
        run.started_at = Some(now);
        run.oom_kills = oom_kills();
        let shim = self.options.shim.clone();
        let own_shim = self.runtime.shim();
        let shared = self.sandbox.clone();
        let layer = match &shared {
            Some(sandbox) => Some(sandbox.layer(&Reachable {
                source: &assignment.source,
                input: Path::new(&assignment.job.file_path),
                work_dir: &work_dir,
                shims: [Some(own_shim.as_path()), shim.as_deref()],
                environment,
            })?),
            None => None,
        };
        let keep = [socket_path.as_path(), &work_dir, &own_shim];
        let folder = self.runtime.hidden_folder().to_owned();
        let sandbox = match (&shared, &layer) {
            (Some(sandbox), Some(layer)) => sandbox.of_process(layer, &folder, &keep),
            _ => None,
        };
        let held = match (&shared, &layer) {
            (Some(shared), Some(layer)) => shared.described(layer, sandbox.as_ref()),
            _ => Mode::Off.name().to_owned(),
        };
        let is_isolated = match (&shared, &layer) {
            (Some(shared), Some(layer)) => shared.is_isolated(layer),
            _ => false,
        };
        let kind = match self.options.plugin_start {
            _ if is_isolated => Kind::Isolated,
            PluginStart::Spawn => Kind::Bare,
            PluginStart::Warm => Kind::Warm,
        };
        let job = Job {
            job_id: assignment.job.attempt.job_id.unsigned_abs(),
            file_version_id: assignment.job.file_version_id,
            plugin_name: &assignment.job.plugin.name,
            file_path: &assignment.job.file_path,
            source: &assignment.source,
            parameters: &assignment.job.parameters,
            shim: shim.as_deref(),
            interpreter: is_isolated.then_some(environment.interpreter.as_path()),
            sandbox,
            open_files: run.quota.open_files,
            socket_path: &socket_path,
            work_dir: &work_dir,
        };
        log::debug!(
            "job {}: starting for {}",
            assignment.job.attempt.job_id,
            assignment.job.file_path
        );
        let (index, pipes) = self.request(
            &assignment,
            environment,
            (kind, &own_folder),
            serial,
            &job,
            now,
        )?;
        let Some(Some(run)) = self.slots.get_mut(slot_index) else {
            return Ok(());
        };
        run.fork_server = Some(index);
        run.mount_changes = self.fork_servers.mount_changes(index);
        run.sandbox = Some(held);
        run.process = ProcessState::Requested { kill: false };
        run.slot.handle_requested();
        run.watch_pipes(pipes, slot_index, self.reactor.registry())
            .map_err(worker("event loop"))
    }

    /// Requests a process from the fork server of a job. A fork server that has ended is replaced once.
    fn request(
        &mut self,
        assignment: &Assignment,
        environment: &Environment,
        (kind, own_folder): (Kind, &Path),
        serial: u64,
        job: &Job<'_>,
        now: BootTime,
    ) -> Result<(usize, Pipes), Failure> {
        let job_id = assignment.job.attempt.job_id;
        let hash = &assignment.environment;
        let mut replaced = false;
        let outside = match &self.sandbox {
            Some(sandbox) => Outside {
                keys: keys_in_use::state(&self.options.home, &sandbox.named_files()),
                mounts: sandbox
                    .has_own_mounts(kind == Kind::Isolated)
                    .then(|| self.mounts.current().clone()),
            },
            None => Outside::default(),
        };
        let mount_changes = self.mounts.changes();
        let wanted = (own_folder, &outside);
        loop {
            let registry = self.reactor.registry();
            let found = self.fork_servers.find(job_id, hash, wanted, kind);
            let index = match found {
                Some(index) => index,
                None => {
                    let used = self.fork_servers_in_use();
                    let is_used = |index| used.contains(&index);
                    let fork_servers = &mut self.fork_servers;
                    while let Some(stale) =
                        fork_servers.remove_stale(hash, wanted, &is_used, registry)
                    {
                        self.leftovers.add(stale, now);
                    }
                    if let Some(idle) = fork_servers.make_room(&is_used, registry) {
                        self.leftovers.add(idle, now);
                    }
                    let fork_servers = &mut self.fork_servers;
                    let shim = self.runtime.shim();
                    let base = match kind {
                        Kind::Isolated => Some(kept_interpreter(environment)?),
                        Kind::Warm | Kind::Bare => None,
                    };
                    let first = self.sandbox.as_ref().and_then(|sandbox| {
                        sandbox.first_layer(&ForkServer {
                            is_isolated: kind == Kind::Isolated,
                            output: self.staging.path(),
                            home: &self.options.home,
                            folder: self.runtime.hidden_folder(),
                            own_folder,
                            shim: &shim,
                            environment,
                        })
                    });
                    let launcher = first.as_ref().map(|(program, mounts)| (*program, mounts));
                    let start = Start {
                        job_id,
                        kind,
                        hash,
                        folder: own_folder,
                        outside: &outside,
                        mount_changes,
                        environment,
                        interpreter: base.as_deref().unwrap_or(&environment.interpreter),
                        shim: &shim,
                        launcher,
                    };
                    let started = fork_servers.start(&start, registry, now);
                    if let Err(failure) = &started
                        && failure.is_uncounted
                        && let Some(until) = fork_servers.paused_until(hash)
                    {
                        self.avoid(hash, &failure.message, until, now);
                    }
                    started?
                }
            };
            match self.fork_servers.request(index, serial, job, now) {
                Ok(pipes) => return Ok((index, pipes)),
                Err(fork_server::Error::Ended) => {
                    let failure = self.fork_server_ended(index, now);
                    if std::mem::replace(&mut replaced, true) {
                        return Err(failure);
                    }
                }
                Err(error @ fork_server::Error::Full) => {
                    // The cause is not this job, so it is not counted.
                    let failure = Failure {
                        is_uncounted: true,
                        ..Failure::new(Cause::Worker, error.to_string())
                    };
                    let until = now + limits::FORK_SERVER_RESTART_PAUSE;
                    self.avoid(hash, &failure.message, until, now);
                    return Err(failure);
                }
                Err(fork_server::Error::Io(error)) => {
                    let what = "the fork server cannot be sent a request";
                    return Err(descriptors::start_failure(what, &error));
                }
                Err(error) => return Err(Failure::new(Cause::Worker, error.to_string())),
            }
        }
    }

    pub(super) fn thread_event(&mut self, event: ThreadEvent, now: BootTime) {
        match event {
            ThreadEvent::Writer { serial, report } if self.health.is_silent(serial) => {
                if report.is_last() {
                    self.health.handle_writer_end(serial, now);
                    log::info!("a writer that had not answered has ended");
                }
            }
            ThreadEvent::Writer {
                serial,
                report: Report::Failed(failure),
            } if failure.other_input => self.handle_other_input(serial, failure),
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
                    Report::Failed(failure) => run.slot.handle_output_failed(failure),
                    Report::Staged { notes } => {
                        run.notes = notes;
                        run.slot.handle_staged();
                    }
                    Report::NotGranted => run.slot.handle_not_granted(),
                    Report::Published(artifacts) => {
                        run.artifacts = artifacts;
                        run.slot.handle_published();
                    }
                    Report::Discarded => run.slot.handle_discarded(),
                }
            }
            ThreadEvent::Usage(usages) => {
                for usage in usages {
                    let mut runs = self.slots.iter_mut().flatten();
                    if let Some(run) = runs.find(|run| run.serial == usage.serial) {
                        run.handle_usage(&usage);
                    }
                }
            }
            ThreadEvent::Settled { attempt, result } => {
                if let Err(failure) = &result
                    && failure.is_trouble
                {
                    self.note_trouble(&failure.message, now);
                }
                self.handle_settled(attempt, result);
            }
            ThreadEvent::SelfTest(result) => {
                if self.health.handle_test(result, self.next_serial, now) {
                    log::info!("this worker works again");
                    self.heartbeat_at = now;
                }
            }
            ThreadEvent::Environment { hash, result, lock } => {
                self.leftovers.check_soon(now);
                match &result {
                    Ok(environment) if self.environments.is_named(&hash) => {
                        let payload = env_ready(&hash, environment, environment.cached);
                        self.send(0, &payload);
                    }
                    Ok(_) => {}
                    Err(failure) => {
                        let message = format!("environment {hash}: {}", failure.message);
                        log::error!("{message}");
                        let named = self.environments.is_named(&hash);
                        self.send(0, &error_payload(&message, named.then_some(&*hash)));
                    }
                }
                let failure = result.as_ref().err().cloned();
                self.environments.handle_made(&hash, result, lock, now);
                if let (Some(failure), Some(until)) =
                    (&failure, self.environments.paused_until(&hash))
                {
                    self.avoid(&hash, &failure.message, until, now);
                }
                if let Some(failure) = failure {
                    self.fail_waiting(&hash, &failure, now);
                }
                self.heartbeat_at = now;
                self.start_jobs(now);
            }
        }
    }

    /// The plugin process of a job had another input than the worker. If mounts have changed since the start of
    /// its fork server, that is the reason, and the job is given back for a new fork server.
    fn handle_other_input(&mut self, serial: u64, failure: Failure) {
        let changes = self.mounts.changes();
        let Some(run) = self.run_of(serial) else {
            return;
        };
        let job_id = run.assignment.job.attempt.job_id;
        let has_changed = run.mount_changes.is_some_and(|before| before != changes);
        let is_held = run
            .sandbox
            .as_deref()
            .is_some_and(|held| held != Mode::Off.name());
        let refused = run.slot.refused_input().map(str::to_owned);
        let failure = if has_changed && self.mounts.distrust(job_id) {
            Failure {
                cause: Cause::Worker,
                is_uncounted: true,
                message: format!("{}: mounts of this host have changed", failure.message),
                ..failure
            }
        } else {
            match refused {
                Some(reason) if is_held => Failure {
                    message: format!("{reason} for plugins; {HIDDEN}"),
                    ..failure
                },
                Some(message) => Failure { message, ..failure },
                None => Failure {
                    input_changed: true,
                    ..failure
                },
            }
        };
        if let Some(run) = self.run_of(serial) {
            run.slot.handle_output_failed(failure);
        }
    }

    /// Fails the jobs that waited for an environment which could not be created. They are concluded outside
    /// the slots, as staged ones are.
    fn fail_waiting(&mut self, hash: &str, failure: &Failure, now: BootTime) {
        let backlog = std::mem::take(&mut self.backlog);
        for assignment in backlog {
            if assignment.environment != hash {
                self.backlog.push_back(assignment);
                continue;
            }
            let mut run = self.new_run(assignment, now);
            run.slot.handle_start_failed(failure.clone());
            self.publishing.push(run);
        }
    }

    /// A job by its serial number in this worker process, in a slot or after it has left its slot.
    fn run_of(&mut self, serial: u64) -> Option<&mut Run> {
        let slots = self.slots.iter_mut().flatten();
        slots
            .chain(&mut self.publishing)
            .find(|run| run.serial == serial)
    }
}

const HIDDEN: &str = "the worker can read it: it is hidden from plugins (a database or key of --protect, a key in \
                      use, or a folder of Casparian's), or the sandbox gives them no access to it";

fn kept_interpreter(environment: &Environment) -> Result<PathBuf, Failure> {
    environment::kept_interpreter(&environment.interpreter)
        .map_err(|error| Failure::new(Cause::Environment, error.to_string()))
}

/// Converts an I/O error that occurs before the job's process runs to a failure of the worker.
fn worker(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| descriptors::start_failure(what, &error)
}

/// Refuses a path that cannot be passed to a process.
fn check_path(path: &str) -> Result<(), Failure> {
    let refused = |reason: &str| {
        let start: String = path.chars().take(200).collect();
        Err(Failure::new(
            Cause::Input,
            format!("input: {start:?}: {reason}"),
        ))
    };
    match path {
        path if path.contains('\0') => refused("the path contains a NUL"),
        path if path.len() >= PATH_SIZE_MAX => refused("the path is too long"),
        _ => Ok(()),
    }
}

/// Linux's PATH_MAX in bytes, including the NUL at the end.
const PATH_SIZE_MAX: usize = 4096;
