//! The loop around the slots.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::environments::Environments;
use super::event::ThreadEvent;
use super::health::Health;
use super::interpreters::Interpreters;
use super::job::{Order, Run, owner};
use super::leftovers::Leftovers;
use super::runtime::Runtime;
use crate::guest::environment;
use crate::limits;
use crate::reactor::{BootTime, Endpoint, Reactor, Signals, Stopper, token};
use crate::sink::{self, Staging};
use crate::socket::{self, PeerId, Security, Socket, SocketType};

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
    /// How the worker proves who it is, and knows that it talks to its sentinel.
    pub security: Security,
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
    /// Longest a warm interpreter's imports may take.
    pub interpreter_start_timeout: Duration,
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
            security: Security::Null,
            output,
            worker_id: None,
            slots: std::thread::available_parallelism().map_or(1, usize::from),
            capabilities: vec!["*".to_owned()],
            job_timeout: limits::JOB_TIMEOUT,
            guest_start: GuestStart::Warm,
            interpreter_start_timeout: limits::WARM_START_TIMEOUT,
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

const SOCKET: u8 = 0;
const SIGNALS: u8 = 1;
const WAKER: u8 = 2;
pub(super) const WARM: u8 = 8;

/// A worker that is ready to run.
pub struct Worker {
    pub(super) options: Options,
    pub(super) worker_id: String,
    pub(super) hostname: String,
    pub(super) reactor: Reactor,
    pub(super) socket: Socket,
    pub(super) sentinel: PeerId,
    pub(super) staging: Arc<Staging>,
    pub(super) runtime: Runtime,
    pub(super) slots: Vec<Option<Run>>,
    pub(super) backlog: VecDeque<Order>,
    pub(super) environments: Environments,
    pub(super) interpreters: Interpreters,
    pub(super) leftovers: Leftovers,
    pub(super) health: Health,
    pub(super) reports: Receiver<ThreadEvent>,
    pub(super) report_sender: Sender<ThreadEvent>,
    pub(super) waker: Arc<mio::Waker>,
    pub(super) signals: Option<Signals>,
    pub(super) stopper: Stopper,
    pub(super) next_serial: u64,
    pub(super) heartbeat_at: Instant,
    pub(super) draining_until: Option<Instant>,
    pub(super) unreachable_said: bool,
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
        let socket_options = socket::Options::new()
            .routing_id(worker_id.clone())
            .heartbeat_ivl(limits::HEARTBEAT_INTERVAL)
            .heartbeat_timeout(limits::HEARTBEAT_TIMEOUT)
            .heartbeat_ttl(limits::HEARTBEAT_TIMEOUT)
            .security(options.security.clone());
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
        let stopper = Stopper::new(waker.clone());
        let slots = options.slots.clamp(1, limits::WORKER_SLOTS_MAX);
        Ok(Worker {
            environments: Environments::new(
                options.home.clone(),
                report_sender.clone(),
                waker.clone(),
            ),
            interpreters: Interpreters::new(options.interpreter_start_timeout),
            leftovers: Leftovers::default(),
            health: Health::new(),
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
            unreachable_said: false,
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
            let (now, boot) = (Instant::now(), BootTime::now());
            self.receive(now);
            self.socket.handle_timeout(now);
            self.connection_events(now);
            while let Ok(event) = self.reports.try_recv() {
                self.thread_event(event, boot);
            }
            for (place, slot) in self.slots.iter_mut().enumerate() {
                if let Some(run) = slot {
                    run.advance(place, self.reactor.registry(), boot);
                }
            }
            self.tend(boot);
            self.start_jobs(boot);
            self.act(now, boot);
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

    fn wait(&mut self, now: Instant) -> Result<(), Error> {
        let busy = self.socket.has_ready() || self.slots.iter().flatten().any(Run::is_busy);
        let deadline = if busy {
            Some(now)
        } else {
            let boot = BootTime::now();
            self.slots
                .iter()
                .flatten()
                .filter_map(|run| run.slot.poll_timeout())
                .chain(self.tend_timeout())
                .map(|at| limits::after(now, at.saturating_duration_since(boot)))
                .chain(self.socket.poll_timeout())
                .chain(self.draining_until)
                .chain([self.heartbeat_at])
                .min()
        };
        self.reactor
            .wait(deadline, now)
            .map_err(io_error("event loop"))?;
        let (now, boot) = (Instant::now(), BootTime::now());
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
                        owner::LISTENER => run.accept(place, self.reactor.registry(), boot),
                        owner::STREAM => run.set_readable(),
                        owner::STDOUT | owner::STDERR => run.read_logs(),
                        _ => {}
                    }
                }
            }
        }
        for place in warm_ready {
            self.warm_events(place, boot);
        }
        for place in exited {
            self.process_exit(place, boot);
        }
        Ok(())
    }

    fn is_over(&mut self, now: Instant) -> bool {
        let requests = self.signals.as_mut().map(Signals::take).unwrap_or_default();
        if self.stopper.wants_stop() {
            return true;
        }
        let busy = self.slots.iter().flatten().count();
        let drain = requests.stops > 0 || self.stopper.wants_drain();
        match self.draining_until {
            None if drain => {
                log::info!("stopping: waiting for {busy} running job(s), again to stop at once");
                self.draining_until = Some(now + self.options.drain_timeout);
                self.backlog.clear();
                busy == 0 || requests.stops > 1
            }
            None => false,
            Some(until) => requests.stops > 0 || now >= until || busy == 0,
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

fn unique() -> u32 {
    use std::hash::BuildHasher;
    (std::hash::RandomState::new().hash_one(0) & u64::from(u32::MAX)) as u32
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("worker_id", &self.worker_id)
            .finish_non_exhaustive()
    }
}
