//! The loop around the slots.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use mio::Interest;
use mio::net::UnixListener;

use super::environments::{Environments, State};
use super::job::{Guest, Order, Run, owner};
use super::runtime::Runtime;
use super::slot::{Action, Failure};
use super::writer::{Address, Report, Writer, WriterJob};
use crate::guest::environment::{self, Environment};
use crate::guest::warm::WarmEvent;
use crate::guest::{Exit, Job, process};
use crate::limits;
use crate::protocol::{
    Dispatch, EnvReady, Err as ErrPayload, Heartbeat, HeartbeatStatus, Hold, Identify, Payload,
    View,
};
use crate::reactor::{Endpoint, Reactor, Signals, token};
use crate::sink::{self, SinkConfig, Staging};
use crate::socket::{self, Event, PeerId, Socket, SocketType};

/// How guests are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestStart {
    /// Forked from an interpreter that has done its imports.
    Warm,
    /// A fresh interpreter each.
    Spawn,
}

/// What a worker is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The sentinel.
    pub connect: Endpoint,
    /// Output root; made when it is missing.
    pub output: PathBuf,
    /// Its name, also its routing id; made up when absent.
    pub worker_id: Option<String>,
    /// Jobs at a time.
    pub slots: usize,
    /// Plugins it runs; `*` = any.
    pub capabilities: Vec<String>,
    /// Longest a job may take.
    pub job_timeout: Duration,
    /// How guests are started.
    pub guest_start: GuestStart,
    /// The shim that guests run; our own when absent.
    pub shim: Option<PathBuf>,
    /// Where environments and the private uv live.
    pub home: PathBuf,
    /// How long to wait for running jobs at a stop.
    pub drain_timeout: Duration,
    /// Take SIGINT, SIGTERM and SIGHUP over.
    pub signals: bool,
}

impl Options {
    /// Defaults for a sentinel and an output root: a slot a core, any plugin.
    pub fn new(connect: Endpoint, output: PathBuf) -> Self {
        Options {
            connect,
            output,
            worker_id: None,
            slots: std::thread::available_parallelism().map_or(1, usize::from),
            capabilities: vec!["*".to_owned()],
            job_timeout: limits::JOB_TIMEOUT,
            guest_start: GuestStart::Warm,
            shim: None,
            home: environment::home(),
            drain_timeout: limits::DRAIN_TIMEOUT,
            signals: true,
        }
    }
}

/// Why a worker did not start or had to stop.
#[derive(Debug)]
pub enum Error {
    /// The output root cannot be used.
    Output(sink::Error),
    /// Something of the operating system is not to be had.
    Io {
        /// What for.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Output(error) => write!(f, "output folder: {error}"),
            Error::Io { what, source } => write!(f, "{what}: {source}"),
        }
    }
}

impl std::error::Error for Error {}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { what, source }
}

/// What a thread of the worker tells its loop.
pub(super) enum ThreadEvent {
    Writer {
        slot: usize,
        serial: u64,
        report: Report,
    },
    Environment {
        hash: String,
        result: Result<Environment, String>,
    },
}

/// Ends a worker from another thread.
#[derive(Clone, Debug)]
pub struct Stopper {
    drain: Arc<AtomicBool>,
    now: Arc<AtomicBool>,
    waker: Arc<mio::Waker>,
}

impl Stopper {
    /// Takes no more jobs and ends when the running ones are over.
    pub fn drain(&self) {
        self.drain.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Kills the guests and ends; the sentinel gives their jobs to others.
    pub fn stop(&self) {
        self.now.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            log::error!("cannot wake the worker: {error}");
        }
    }
}

const SOCKET: u8 = 0;
const SIGNALS: u8 = 1;
const WAKER: u8 = 2;
const WARM: u8 = 8;

/// A worker that is ready to run.
pub struct Worker {
    options: Options,
    worker_id: String,
    hostname: String,
    reactor: Reactor,
    socket: Socket,
    sentinel: PeerId,
    staging: Arc<Staging>,
    runtime: Runtime,
    shim: PathBuf,
    slots: Vec<Option<Run>>,
    backlog: VecDeque<Order>,
    environments: Environments,
    reports: Receiver<ThreadEvent>,
    report_sender: Sender<ThreadEvent>,
    waker: Arc<mio::Waker>,
    signals: Option<Signals>,
    stopper: Stopper,
    next_serial: u64,
    heartbeat_at: Instant,
    draining_until: Option<Instant>,
}

impl Worker {
    /// Makes the output root, sweeps what killed workers left, and starts to connect.
    pub fn open(options: Options) -> Result<Self, Error> {
        let staging = Arc::new(Staging::open(&options.output).map_err(Error::Output)?);
        let runtime = Runtime::new().map_err(io_error("folder for sockets"))?;
        let reactor = Reactor::new().map_err(io_error("event loop"))?;
        let hostname = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let worker_id = match &options.worker_id {
            Some(id) => id.clone(),
            None => format!("w-{hostname}-{}-{:08x}", std::process::id(), unique()),
        };
        let socket_options = socket::Options {
            identity: worker_id.clone().into_bytes(),
            heartbeat: Some(socket::Heartbeat {
                interval: limits::HEARTBEAT_INTERVAL,
                timeout: limits::HEARTBEAT_TIMEOUT,
                ttl: limits::HEARTBEAT_TIMEOUT,
            }),
            ..socket::Options::default()
        };
        let mut socket = Socket::new(
            SocketType::Dealer,
            socket_options,
            reactor.registry(),
            SOCKET,
        )
        .map_err(io_error("control socket"))?;
        let now = Instant::now();
        let sentinel = socket.connect(&options.connect, now);
        let waker = Arc::new(
            reactor
                .waker(token::new(WAKER, 0))
                .map_err(io_error("event loop"))?,
        );
        let signals = match options.signals {
            true => Some(
                Signals::register(reactor.registry(), token::new(SIGNALS, 0))
                    .map_err(io_error("signals"))?,
            ),
            false => None,
        };
        let (report_sender, reports) = channel();
        let stopper = Stopper {
            drain: Arc::default(),
            now: Arc::default(),
            waker: waker.clone(),
        };
        let slots = options.slots.clamp(1, limits::WORKER_SLOTS_MAX);
        Ok(Worker {
            environments: Environments::new(
                options.home.clone(),
                report_sender.clone(),
                waker.clone(),
            ),
            shim: options.shim.clone().unwrap_or_else(|| runtime.shim()),
            slots: (0..slots).map(|_| None).collect(),
            options,
            worker_id,
            hostname,
            reactor,
            socket,
            sentinel,
            staging,
            runtime,
            backlog: VecDeque::new(),
            reports,
            report_sender,
            waker,
            signals,
            stopper,
            next_serial: 0,
            heartbeat_at: now,
            draining_until: None,
        })
    }

    /// A handle that ends it.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Its name.
    pub fn worker_id(&self) -> &str {
        &self.worker_id
    }

    /// Runs until a signal or a [`Stopper`] ends it.
    pub fn run(mut self) -> Result<(), Error> {
        log::info!(
            "worker {} with {} slot(s) connects to {}",
            self.worker_id,
            self.slots.len(),
            self.options.connect
        );
        loop {
            let now = Instant::now();
            self.receive(now);
            self.socket.handle_timeout(now);
            self.connection_events(now);
            while let Ok(event) = self.reports.try_recv() {
                self.thread_event(event, now);
            }
            for run in self.slots.iter_mut().flatten() {
                run.read(now);
                run.slot.handle_timeout(now);
            }
            self.start_jobs(now);
            self.act(now);
            self.heartbeat(now);
            self.socket.flush();
            if self.is_over(now) {
                break;
            }
            self.wait(now)?;
        }
        self.close();
        Ok(())
    }

    // ---- control messages ----

    fn receive(&mut self, now: Instant) {
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
                Payload::Dispatch(dispatch) => match order(header.job_id, &dispatch) {
                    Some(mut order) => {
                        order.environment = self.environments.key(&order.environment);
                        if self.backlog.len() < limits::BACKLOG_MAX {
                            self.backlog.push_back(order);
                        } else {
                            answer =
                                Some((header.job_id, error_payload("too many jobs dispatched")));
                        }
                    }
                    None => answer = Some((header.job_id, error_payload("impossible job id"))),
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

    fn send(&mut self, job_id: u64, payload: &Payload<'_>) {
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

    fn holds(&self) -> Vec<Hold> {
        let running = self.slots.iter().flatten().map(|run| &run.order);
        running
            .chain(&self.backlog)
            .filter_map(Order::hold)
            .collect()
    }

    fn identify(&self) -> Payload<'static> {
        Payload::Identify(Identify {
            capabilities: self.options.capabilities.clone(),
            worker_id: Some(self.worker_id.clone().into()),
            slots: u32::try_from(self.slots.len()).ok(),
            hostname: Some(self.hostname.clone().into()),
            pid: Some(std::process::id()),
            running: Some(self.holds()),
        })
    }

    fn connection_events(&mut self, now: Instant) {
        while let Some(event) = self.socket.poll_event() {
            match event {
                Event::Established { .. } => {
                    log::info!("connected to the sentinel");
                    let identify = self.identify();
                    self.send(0, &identify);
                    self.heartbeat_at = now + limits::WORKER_HEARTBEAT_INTERVAL;
                }
                Event::Disconnected {
                    reason, identity, ..
                } if !identity.is_empty() => {
                    log::warn!("connection to the sentinel lost: {reason}");
                }
                Event::Disconnected { reason, .. } => {
                    log::debug!("no connection to the sentinel: {reason}");
                }
                _ => {}
            }
        }
    }

    fn heartbeat(&mut self, now: Instant) {
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
            .map(|run| run.order.job_id);
        let status = match current {
            Some(_) => HeartbeatStatus::Busy,
            None => HeartbeatStatus::Idle,
        };
        let payload = Payload::Heartbeat(Heartbeat {
            status,
            current_job_id: current,
            running: Some(self.holds()),
        });
        self.send(current.map_or(0, i64::unsigned_abs), &payload);
    }

    fn abort(&mut self, job_id: u64) {
        let reason = "aborted by the sentinel";
        let (aborted, rest): (VecDeque<Order>, VecDeque<Order>) = std::mem::take(&mut self.backlog)
            .into_iter()
            .partition(|order| order.job_id.unsigned_abs() == job_id);
        self.backlog = rest;
        for order in aborted {
            let now = Instant::now();
            let run = Run::new(0, order, self.options.job_timeout, now);
            let failure = Failure {
                message: reason.to_owned(),
                exit: None,
            };
            let receipt = run.conclude(Some(&failure), now);
            self.send(job_id, &Payload::Conclude(receipt));
        }
        for run in self.slots.iter_mut().flatten() {
            if run.order.job_id.unsigned_abs() == job_id {
                log::info!("job {job_id}: {reason}");
                run.slot.handle_abort(reason);
            }
        }
    }

    // ---- jobs ----

    fn start_jobs(&mut self, now: Instant) {
        while self.draining_until.is_none()
            && let Some(place) = self.slots.iter().position(Option::is_none)
            && let Some(order) = self.backlog.pop_front()
        {
            self.next_serial += 1;
            let mut run = Run::new(self.next_serial, order, self.options.job_timeout, now);
            run.waits_for_environment = true;
            if let Some(slot) = self.slots.get_mut(place) {
                *slot = Some(run);
            }
            self.start_guest(place, now);
        }
    }

    /// Starts the guest of a slot whose environment is ready.
    fn start_guest(&mut self, place: usize, now: Instant) {
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
        run.slot = super::slot::Slot::new(self.options.job_timeout, now);
        if let Err(message) = self.launch(place, &environment, now)
            && let Some(Some(run)) = self.slots.get_mut(place)
        {
            run.slot.handle_start_failed(message);
        }
    }

    fn launch(
        &mut self,
        place: usize,
        environment: &Environment,
        now: Instant,
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
            WriterJob {
                job_id: order.job_id,
                file_version_id: order.file_version_id,
                plugin_name: order.plugin_name.clone(),
                sinks: order.sinks.clone(),
                staging: self.staging.clone(),
            },
            Address {
                slot: place,
                serial: run.serial,
                reports: self.report_sender.clone(),
                waker: self.waker.clone(),
            },
        )
        .map_err(text)?;
        run.writer = Some(writer);
        run.listener = Some(listener);
        let job = Job {
            job_id: order.job_id.unsigned_abs(),
            file_version_id: order.file_version_id,
            plugin_name: &order.plugin_name,
            file_path: &order.file_path,
            source_code: &order.source_code,
            socket_path: &socket_path,
            work_dir: &work_dir,
        };
        let pipes = match warm_place {
            Some(warm_place) => {
                let warm = self
                    .environments
                    .warm_at(warm_place)
                    .ok_or("no warm interpreter")?;
                let pipes = warm.request(&job).map_err(|error| error.to_string())?;
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
            order.job_id,
            order.file_path
        );
        run.watch_exit(place, registry).map_err(text)?;
        run.watch_pipes(pipes, place, registry).map_err(text)
    }

    fn thread_event(&mut self, event: ThreadEvent, now: Instant) {
        match event {
            ThreadEvent::Writer {
                slot,
                serial,
                report,
            } => {
                let Some(Some(run)) = self.slots.get_mut(slot) else {
                    return;
                };
                if run.serial != serial {
                    return;
                }
                match report {
                    Report::Room => {
                        if let Some(writer) = &mut run.writer {
                            writer.retry();
                        }
                    }
                    Report::Failed(message) => run.slot.handle_output_failed(message),
                    Report::Staged => run.slot.handle_staged(),
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

    /// Carries out what the slots want done.
    fn act(&mut self, now: Instant) {
        for place in 0..self.slots.len() {
            while let Some(Some(run)) = self.slots.get_mut(place) {
                let heard = self.socket.heard_at(self.sentinel);
                // Half a lease leaves the sentinel no time to give the job to another while
                // its output becomes visible.
                let allowed = run.order.lease.is_none_or(|lease| {
                    heard.is_some_and(|at| now.saturating_duration_since(at) < lease / 2)
                });
                match run.slot.poll(allowed) {
                    None => break,
                    Some(Action::KillGuest) => run.kill(),
                    Some(Action::Stage) => with_writer(run, Writer::stage),
                    Some(Action::Publish) => with_writer(run, Writer::publish),
                    Some(Action::Discard) => match &mut run.writer {
                        Some(writer) => writer.discard(),
                        None => run.slot.handle_discarded(),
                    },
                    Some(Action::Conclude(failure)) => {
                        let receipt = run.conclude(failure.as_ref(), now);
                        let job_id = run.order.job_id;
                        match &receipt.error_message {
                            None => log::info!("job {job_id}: done"),
                            Some(message) => log::warn!(
                                "job {job_id}: failed: {}",
                                message.lines().next().unwrap_or("")
                            ),
                        }
                        if let Some(slot) = self.slots.get_mut(place) {
                            *slot = None;
                        }
                        self.runtime.clear(place);
                        self.send(job_id.unsigned_abs(), &Payload::Conclude(receipt));
                        self.start_jobs(now);
                    }
                }
            }
        }
    }

    // ---- the loop ----

    fn wait(&mut self, now: Instant) -> Result<(), Error> {
        let busy = self.socket.has_ready() || self.slots.iter().flatten().any(Run::wants_read);
        let deadline = if busy {
            Some(now)
        } else {
            self.slots
                .iter()
                .flatten()
                .filter_map(|run| run.slot.poll_timeout())
                .chain(self.socket.poll_timeout())
                .chain(self.draining_until)
                .chain([self.heartbeat_at])
                .min()
        };
        self.reactor
            .wait(deadline, now)
            .map_err(io_error("event loop"))?;
        let now = Instant::now();
        let mut warm_ready = Vec::new();
        let mut exited = Vec::new();
        for event in self.reactor.events() {
            let place = token::index(event.token());
            match token::owner(event.token()) {
                SOCKET => self.socket.handle_ready(event, now),
                WARM => warm_ready.push(place),
                owner::EXIT => exited.push(place),
                owner => {
                    let Some(Some(run)) = self.slots.get_mut(place) else {
                        continue;
                    };
                    match owner {
                        owner::LISTENER => run.accept(place, self.reactor.registry(), now),
                        owner::STREAM => run.set_readable(),
                        owner::STDOUT => {
                            run.stdout.read();
                        }
                        owner::STDERR => {
                            run.stderr.read();
                        }
                        _ => {}
                    }
                }
            }
        }
        for place in warm_ready {
            self.warm_events(place, now);
        }
        for place in exited {
            self.process_exit(place, now);
        }
        Ok(())
    }

    fn process_exit(&mut self, place: usize, now: Instant) {
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
                log::error!("job {}: {error}", run.order.job_id);
                let exit = Exit {
                    code: None,
                    signal: None,
                    rss_max_bytes: 0,
                };
                run.handle_exit(&exit, place, self.reactor.registry(), now);
            }
        }
    }

    fn warm_events(&mut self, warm_place: usize, now: Instant) {
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
            let (job_id, exit) = match event {
                WarmEvent::Ready => continue,
                WarmEvent::Started { job_id, pid } => {
                    if let Some((place, run)) = self.warm_run(warm_place, job_id) {
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
                WarmEvent::Failed { job_id, message } => {
                    if let Some((_, run)) = self.warm_run(warm_place, job_id) {
                        run.guest = Guest::None;
                        run.slot.handle_start_failed(message);
                    }
                    continue;
                }
                WarmEvent::Exited { job_id, exit } => (job_id, exit),
            };
            if let Some((place, _)) = self.warm_run(warm_place, job_id)
                && let Some(Some(run)) = self.slots.get_mut(place)
            {
                run.handle_exit(&exit, place, self.reactor.registry(), now);
            }
        }
    }

    /// The slot whose guest is a child of the warm interpreter and runs the job.
    fn warm_run(&mut self, warm_place: usize, job_id: u64) -> Option<(usize, &mut Run)> {
        self.slots.iter_mut().enumerate().find_map(|(place, slot)| {
            let run = slot.as_mut()?;
            let ours = matches!(run.guest, Guest::Warm { place, .. } if place == warm_place);
            (ours && run.order.job_id.unsigned_abs() == job_id).then_some((place, run))
        })
    }

    /// A warm interpreter is gone, and its children with it.
    fn warm_lost(&mut self, warm_place: usize, reason: &str, now: Instant) {
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

    fn is_over(&mut self, now: Instant) -> bool {
        let requests = self.signals.as_mut().map_or(0, Signals::stop_requests);
        if self.stopper.now.load(Ordering::SeqCst) {
            return true;
        }
        let busy = self.slots.iter().flatten().count();
        let drain = requests > 0 || self.stopper.drain.load(Ordering::SeqCst);
        match self.draining_until {
            None if drain => {
                log::info!("stopping: waiting for {busy} running job(s), again to stop at once");
                self.draining_until = Some(now + self.options.drain_timeout);
                self.backlog.clear();
                busy == 0 || requests > 1
            }
            None => false,
            Some(until) => requests > 0 || now >= until || busy == 0,
        }
    }

    /// Guests are killed with their groups, staged output is removed, and receipts that are
    /// still queued get a moment to leave.
    fn close(&mut self) {
        self.environments.cancel();
        for run in self.slots.iter_mut().flatten() {
            run.kill();
            if let Some(writer) = &mut run.writer {
                writer.discard();
            }
        }
        let deadline = Instant::now() + limits::LINGER;
        let mut now = Instant::now();
        while self.socket.heard_at(self.sentinel).is_some()
            && self.socket.pending_octets() > 0
            && now < deadline
        {
            self.socket.flush();
            if self.reactor.wait(Some(deadline), now).is_err() {
                break;
            }
            now = Instant::now();
            for event in self.reactor.events() {
                if token::owner(event.token()) == SOCKET {
                    self.socket.handle_ready(event, now);
                }
            }
        }
        log::info!("worker {} stopped", self.worker_id);
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

fn unique() -> u32 {
    use std::hash::BuildHasher;
    (std::hash::RandomState::new().hash_one(0) & u64::from(u32::MAX)) as u32
}

fn order(job_id: u64, dispatch: &Dispatch<'_>) -> Option<Order> {
    Some(Order {
        job_id: i64::try_from(job_id).ok()?,
        attempt: dispatch.attempt,
        lease: dispatch.lease_ms.map(Duration::from_millis),
        plugin_name: dispatch.plugin_name.to_string(),
        file_path: dispatch.file_path.to_string(),
        file_version_id: dispatch.file_version_id,
        sinks: dispatch
            .sinks
            .iter()
            .map(|sink| SinkConfig {
                topic: sink.topic.clone(),
                uri: sink.uri.clone(),
                mode: sink.mode.clone(),
            })
            .collect(),
        environment: dispatch.env_hash.to_string(),
        source_code: dispatch.source_code.to_string(),
    })
}

fn env_ready(hash: &str, environment: &Environment, cached: bool) -> Payload<'static> {
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

fn error_payload(message: &str) -> Payload<'static> {
    Payload::Err(ErrPayload {
        message: message.to_owned().into(),
        traceback: None,
    })
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("worker_id", &self.worker_id)
            .finish_non_exhaustive()
    }
}
