//! The worker's event loop.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::descriptors;
use super::environments::Environments;
use super::event::ThreadEvent;
use super::fork_servers::{FORK_SERVER, ForkServers};
use super::health::Health;
use super::job::{Assignment, Run, slot_event};
use super::leases::Leases;
use super::leftovers::Leftovers;
use super::meter::Meter;
use super::mounts::MountTable;
use super::plugins::Plugins;
use super::runtime::Runtime;
use super::sandbox::{Sandbox, SandboxOptions};
use crate::job::Settlement;
use crate::limits;
use crate::plugin::quota::Quota;
use crate::plugin::{environment, strays, uv_folders};
use crate::reactor::{BootTime, Endpoint, Reactor, Signals, Stopper, token};
use crate::sink::{self, Bounds, Root, RootOptions};
use crate::socket::{self, LocalUsers, PeerId, Security, Socket, SocketType};

/// How plugin processes are started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginStart {
    /// Forked from a fork server that has done the environment's imports.
    Warm,
    /// Each by a fork server of its own, which has imported nothing.
    Spawn,
}

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct Options {
    /// Endpoint of the sentinel.
    pub connect: Endpoint,
    /// How the worker authenticates itself and its sentinel.
    pub security: Security,
    /// Without CURVE: users of this host whose sentinel is accepted, besides the worker's user and root.
    pub allowed_uids: Vec<u32>,
    /// Output root; created if it is missing.
    pub output: PathBuf,
    /// Publish into a root whose files belong to another database, with other file names.
    pub share_output: bool,
    /// SQLite sinks outside the output root are refused.
    pub closed_output: bool,
    /// Topics without sinks have folders of their own (`casparian run`).
    pub datasets: bool,
    /// Folders besides the output root in which SQLite sinks may be; none = anywhere.
    pub sink_roots: Option<Vec<PathBuf>>,
    /// Worker ID; generated if none.
    pub worker_id: Option<String>,
    /// Number of jobs at a time.
    pub slots: usize,
    /// Names of the plugins that it runs; `*` = any.
    pub capabilities: Vec<String>,
    /// Time limit of a job.
    pub job_timeout: Duration,
    /// Limits of a job's resources.
    pub quota: Quota,
    /// Limits of the memory for a job's output.
    pub bounds: Bounds,
    /// Time limit of each step of a writer that was ordered to stop.
    pub writer_timeout: Duration,
    /// Time limit of each step of a writer that was ordered to publish.
    pub publish_timeout: Duration,
    /// How plugin processes are started.
    pub plugin_start: PluginStart,
    /// Time limit of a fork server's imports.
    pub fork_server_start_timeout: Duration,
    /// The shim that plugin processes run; Casparian's own if none.
    pub shim: Option<PathBuf>,
    /// Folder of environments and of the private uv; empty = `~/.casparian_flow`.
    pub home: PathBuf,
    /// Limit of the bytes of all environments there. Above it the least recently used are evicted. 0 = no
    /// limit.
    pub cache_max: u64,
    /// Environments get only dependencies that have wheels.
    pub no_build: bool,
    /// How long running jobs may continue when the worker stops.
    pub drain_timeout: Duration,
    /// How plugin processes are restricted; none = not restricted.
    pub sandbox: Option<SandboxOptions>,
    /// Handle SIGINT, SIGTERM and SIGHUP.
    pub signals: bool,
    /// The process has no children except this worker's. Then it becomes a subreaper, and orphans of plugin
    /// processes are killed.
    pub owns_process: bool,
}

impl Options {
    /// Defaults for a sentinel and an output root: one slot for each core, any plugin.
    pub fn new(connect: Endpoint, output: PathBuf) -> Self {
        Options {
            connect,
            security: Security::Null,
            allowed_uids: Vec::new(),
            output,
            share_output: false,
            closed_output: false,
            datasets: false,
            sink_roots: None,
            worker_id: None,
            slots: std::thread::available_parallelism().map_or(1, usize::from),
            capabilities: vec!["*".to_owned()],
            job_timeout: limits::JOB_TIMEOUT,
            quota: Quota {
                processes: limits::JOB_PROCESSES,
                log: limits::JOB_LOG_SIZE,
                ..Quota::default()
            },
            bounds: Bounds::default(),
            writer_timeout: limits::WRITER_TIMEOUT,
            publish_timeout: limits::PUBLISH_TIMEOUT,
            plugin_start: PluginStart::Warm,
            fork_server_start_timeout: limits::FORK_SERVER_START_TIMEOUT,
            shim: None,
            home: PathBuf::new(),
            cache_max: limits::ENVIRONMENT_CACHE_SIZE_MAX,
            no_build: false,
            drain_timeout: limits::DRAIN_TIMEOUT,
            sandbox: None,
            signals: true,
            owns_process: false,
        }
    }

    /// How environments are built. The folders in `hidden` appear empty to the build code of tools.
    ///
    /// # Errors
    ///
    /// If the sandbox cannot hide key files from build code.
    pub fn build(&self, hidden: &[&Path]) -> io::Result<environment::Build> {
        let sandbox = self.sandbox.as_ref();
        let home = match self.home.as_os_str().is_empty() {
            true => environment::home().unwrap_or_default(),
            false => self.home.clone(),
        };
        let launcher = match sandbox {
            Some(sandbox) => sandbox.build(&self.output, home, hidden)?,
            None => None,
        };
        Ok(environment::Build {
            no_build: self.no_build,
            launcher,
            pythons: uv_folders::pythons(),
        })
    }
}

/// Why a worker did not start or has stopped.
#[derive(Debug)]
pub enum Error {
    /// The output root cannot be used.
    Output(sink::Error),
    /// The sentinel refuses this worker.
    Refused {
        /// Its reason.
        reason: String,
    },
    /// The folder for environments cannot be determined.
    Home(environment::Error),
    /// The limit of open files is too low for one slot.
    Descriptors(String),
    /// An operation of the operating system failed.
    Io {
        /// The operation's purpose.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Output(error) => write!(f, "output folder: {error}"),
            Error::Refused { reason } => write!(f, "refused by the sentinel: {reason}"),
            Error::Home(error) => error.fmt(f),
            Error::Descriptors(reason) => f.write_str(reason),
            Error::Io { what, source } => write!(f, "{what}: {source}"),
        }
    }
}

impl std::error::Error for Error {}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { what, source }
}

// Owners of tokens. Those of slots are in `job`, that of fork servers is in `fork_servers`.
const SOCKET: u8 = 0;
const SIGNALS: u8 = 1;
const WAKER: u8 = 2;
const MOUNTS: u8 = 9;

/// The reason when a stopping worker gives back its jobs.
pub(super) const STOPPED: &str = "its worker was stopped";

/// Settlements that wait or run.
#[derive(Debug, Default)]
pub(super) struct Settlements {
    pub(super) waiting: VecDeque<Settlement>,
    pub(super) is_running: bool,
}

/// A worker that is ready to run.
pub struct Worker {
    pub(super) options: Options,
    pub(super) worker_id: String,
    /// Random text that identifies this process.
    pub(super) instance: String,
    pub(super) hostname: String,
    pub(super) reactor: Reactor,
    pub(super) socket: Socket,
    pub(super) sentinel: PeerId,
    pub(super) staging: Arc<Root>,
    pub(super) runtime: Runtime,
    pub(super) slots: Vec<Option<Run>>,
    /// Jobs whose output is staged and whose process has exited. They wait for a lease or are being
    /// published, and occupy no slot.
    pub(super) publishing: Vec<Run>,
    /// Jobs that wait for a slot or for their environment.
    pub(super) backlog: VecDeque<Assignment>,
    pub(super) leases: Leases,
    pub(super) plugins: Plugins,
    pub(super) environments: Environments,
    pub(super) fork_servers: ForkServers,
    pub(super) mounts: MountTable,
    /// Some fork servers may have file systems that are unmounted.
    pub(super) may_be_unmounted: bool,
    pub(super) leftovers: Leftovers,
    pub(super) meter: Meter,
    pub(super) sandbox: Option<Arc<Sandbox>>,
    pub(super) health: Health,
    pub(super) settlements: Settlements,
    pub(super) reports: Receiver<ThreadEvent>,
    pub(super) report_sender: Sender<ThreadEvent>,
    pub(super) waker: Arc<mio::Waker>,
    pub(super) signals: Option<Signals>,
    pub(super) stopper: Stopper,
    pub(super) next_serial: u64,
    pub(super) heartbeat_at: BootTime,
    pub(super) draining_until: Option<BootTime>,
    /// The reason for which the sentinel refuses this worker.
    pub(super) refused: Option<String>,
    pub(super) is_unreachable_logged: bool,
}

impl Worker {
    /// Creates the output root, removes what killed workers left, and starts to connect.
    pub fn open(mut options: Options) -> Result<Self, Error> {
        // Plugin processes have working directories of their own.
        let absolute =
            |path: &PathBuf| std::path::absolute(path).map_err(io_error("the working directory"));
        if options.home.as_os_str().is_empty() {
            options.home = environment::home().map_err(Error::Home)?;
        }
        options.home = absolute(&options.home)?;
        options.shim = options.shim.as_ref().map(absolute).transpose()?;
        options.slots = options.slots.clamp(1, limits::WORKER_SLOTS_MAX);
        match descriptors::check(options.slots) {
            Ok(()) => {}
            Err(shortage) if shortage.slots == 0 => {
                return Err(Error::Descriptors(shortage.to_string()));
            }
            Err(shortage) => {
                log::warn!("{shortage}");
                options.slots = shortage.slots;
            }
        }
        // Output may be in them, too.
        for folder in options.sink_roots.iter().flatten() {
            if let Some(sandbox) = &mut options.sandbox {
                sandbox.read_only.push(absolute(folder)?);
            }
        }
        let control_socket = match &options.connect {
            Endpoint::Ipc(path) => Some(absolute(path)?),
            _ => None,
        };
        let root_options = RootOptions {
            share: options.share_output,
            is_closed: options.closed_output,
            sink_roots: options.sink_roots.clone(),
            datasets: options.datasets,
        };
        let staging = Arc::new(Root::open(&options.output, root_options).map_err(Error::Output)?);
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
        let instance = format!("{:08x}{:08x}", unique(), unique());
        let mut socket_options = socket::Options::new()
            .routing_id(routing_id(&worker_id, &instance))
            .heartbeat_ivl(limits::HEARTBEAT_INTERVAL)
            .heartbeat_timeout(limits::HEARTBEAT_TIMEOUT)
            .heartbeat_ttl(limits::HEARTBEAT_TIMEOUT)
            .security(options.security.clone());
        if matches!(options.security, Security::Null) {
            let what = "any user of this host may listen at the sentinel's address and run code on this worker";
            let users = LocalUsers::of_endpoint(&options.connect, &options.allowed_uids, what);
            if let Some(users) = users.map_err(io_error("users of this host"))? {
                socket_options = socket_options.local_users(users);
            }
        }
        let mut socket = Socket::new(
            SocketType::Dealer,
            socket_options,
            reactor.registry(),
            token::new(SOCKET, 0),
            Instant::now(),
        )
        .map_err(io::Error::from)
        .map_err(io_error("control socket"))?;
        let sentinel = socket.connect(&options.connect, Instant::now());
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
        let slots = options.slots;
        Ok(Worker {
            environments: Environments::new(
                options.home.clone(),
                options.cache_max,
                options
                    .build(&[runtime.hidden_folder()])
                    .map_err(io_error("sandbox"))?,
                report_sender.clone(),
                waker.clone(),
            ),
            fork_servers: ForkServers::new(options.fork_server_start_timeout),
            mounts: MountTable::open(reactor.registry(), token::new(MOUNTS, 0)),
            may_be_unmounted: false,
            leftovers: Leftovers::new(options.owns_process),
            meter: Meter::start(report_sender.clone(), waker.clone())
                .map_err(io_error("thread"))?,
            sandbox: options
                .sandbox
                .clone()
                .map(|sandbox| Arc::new(Sandbox::new(sandbox, control_socket))),
            health: Health::new(),
            settlements: Settlements::default(),
            slots: (0..slots).map(|_| None).collect(),
            publishing: Vec::new(),
            leases: Leases::default(),
            plugins: Plugins::default(),
            options,
            worker_id,
            instance,
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
            heartbeat_at: BootTime::now(),
            draining_until: None,
            refused: None,
            is_unreachable_logged: false,
        })
    }

    /// A handle that stops the worker.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Runs until a signal or a [`Stopper`] stops it.
    pub fn run(mut self) -> Result<(), Error> {
        log::info!(
            "worker {} with {} slot(s) connects to {}",
            self.worker_id,
            self.slots.len(),
            self.options.connect
        );
        if self.options.owns_process
            && let Err(error) = strays::adopt()
        {
            log::warn!(
                "what plugins leave behind is not killed when their fork server is: {error}"
            );
        }
        self.environments.evict();
        loop {
            let (clock, now) = (Instant::now(), BootTime::now());
            self.receive(clock, now);
            self.socket.handle_timeout(clock);
            self.connection_events(now);
            while let Ok(event) = self.reports.try_recv() {
                self.thread_event(event, now);
            }
            for (index, slot) in self.slots.iter_mut().enumerate() {
                if let Some(run) = slot {
                    run.advance(index, self.reactor.registry(), now);
                }
            }
            self.tend(now);
            self.start_jobs(now);
            self.give_back_surplus(now);
            self.act(now);
            self.publish(now);
            self.release_replaced(now);
            // The HEARTBEAT lists the jobs that the worker does not take. It is sent before the receipts,
            // which free slots.
            self.heartbeat(now);
            self.send_receipts(now);
            self.socket.flush(Instant::now());
            if let Some(reason) = self.refused.take() {
                self.close(&format!("its worker was refused: {reason}"));
                return Err(Error::Refused { reason });
            }
            if self.is_over(now) {
                break;
            }
            self.wait(clock, now)?;
        }
        self.close(STOPPED);
        Ok(())
    }

    fn wait(&mut self, clock: Instant, now: BootTime) -> Result<(), Error> {
        let is_busy = self.socket.has_ready() || self.slots.iter().flatten().any(Run::is_busy);
        let deadline = if is_busy {
            Some(clock)
        } else {
            let ours = self
                .slots
                .iter()
                .flatten()
                .chain(&self.publishing)
                .filter_map(|run| run.slot.poll_timeout())
                .chain(self.tend_timeout())
                .chain(self.draining_until)
                .chain([self.heartbeat_at])
                .min();
            let ours = ours.map(|at| limits::after(clock, at.saturating_duration_since(now)));
            ours.into_iter().chain(self.socket.poll_timeout()).min()
        };
        self.reactor
            .wait(deadline, clock)
            .map_err(io_error("event loop"))?;
        let (clock, now) = (Instant::now(), BootTime::now());
        let mut readable = Vec::new();
        let mut exited = Vec::new();
        for event in self.reactor.events() {
            let index = token::index(event.token());
            match token::owner(event.token()) {
                SOCKET => self.socket.handle_ready(event, clock),
                FORK_SERVER => readable.push(index),
                MOUNTS => self.may_be_unmounted = true,
                slot_event::EXIT => exited.push(index),
                owner => {
                    let Some(Some(run)) = self.slots.get_mut(index) else {
                        continue;
                    };
                    match owner {
                        slot_event::LISTENER => run.accept(index, self.reactor.registry(), now),
                        slot_event::STREAM => run.set_readable(),
                        slot_event::STDOUT | slot_event::STDERR => run.read_logs(),
                        _ => {}
                    }
                }
            }
        }
        for index in readable {
            self.fork_server_events(index, now);
        }
        for index in exited {
            self.process_exit(index, now);
        }
        Ok(())
    }

    /// Number of jobs in slots and of jobs that are being published.
    fn unfinished(&self) -> usize {
        self.slots.iter().flatten().count() + self.publishing.len()
    }

    /// True when the worker should end. A stopping worker reports at once that it takes no more jobs, and
    /// gives back those that have not started. It ends when the others have ended and their receipts are
    /// acknowledged.
    fn is_over(&mut self, now: BootTime) -> bool {
        let requests = self.signals.as_mut().map(Signals::take).unwrap_or_default();
        if self.stopper.wants_stop() {
            return true;
        }
        let count = self.unfinished();
        let is_done =
            |worker: &Self| worker.unfinished() == 0 && worker.leases.owed().next().is_none();
        let drain = requests.stops > 0 || self.stopper.wants_drain();
        match self.draining_until {
            None if drain => {
                log::info!("stopping: waiting for {count} running job(s), again to stop at once");
                self.draining_until = Some(now + self.options.drain_timeout);
                for assignment in std::mem::take(&mut self.backlog) {
                    self.give_back(&assignment, STOPPED, false);
                }
                self.heartbeat_at = now;
                self.heartbeat(now);
                self.send_receipts(now);
                self.socket.flush(Instant::now());
                is_done(self) || requests.stops > 1
            }
            None => false,
            Some(until) => requests.stops > 0 || now >= until || is_done(self),
        }
    }

    /// Kills plugin processes, removes staged output, and gives the jobs back for this reason. Waits for a
    /// short time for the acknowledgement of receipts.
    fn close(&mut self, reason: &str) {
        self.environments.cancel();
        for assignment in std::mem::take(&mut self.backlog) {
            self.give_back(&assignment, reason, false);
        }
        let mut unfinished: Vec<(Assignment, bool)> = Vec::new();
        let slots = self.slots.iter_mut().filter_map(Option::take);
        for mut run in slots.chain(std::mem::take(&mut self.publishing)) {
            run.kill();
            // Output that is being published may become visible, so the job is not given back: its lease must
            // end.
            if !run.slot.is_publishing() {
                unfinished.push((run.assignment.clone(), run.started_at.is_some()));
            }
            if let Some(writer) = &mut run.writer {
                writer.discard();
            }
        }
        for (assignment, was_running) in unfinished {
            self.give_back(&assignment, reason, was_running);
        }
        let fork_servers = self.fork_servers.close(self.reactor.registry());
        let deadline = Instant::now() + limits::LINGER;
        loop {
            let (clock, now) = (Instant::now(), BootTime::now());
            self.receive(clock, now);
            self.send_receipts(now);
            self.socket.flush(Instant::now());
            let is_connected = self.socket.received_at(self.sentinel).is_some();
            let owes = self.leases.owed().next().is_some();
            if !is_connected || !(owes || self.socket.pending_bytes() > 0) || clock >= deadline {
                break;
            }
            if self.reactor.wait(Some(deadline), clock).is_err() {
                break;
            }
            let clock = Instant::now();
            for event in self.reactor.events() {
                if token::owner(event.token()) == SOCKET {
                    self.socket.handle_ready(event, clock);
                }
            }
        }
        self.leftovers.end(fork_servers);
        log::info!("worker {} stopped", self.worker_id);
    }
}

/// The routing ID. Two processes with the same worker ID have different routing IDs, so the sentinel decides
/// which of them it admits.
fn routing_id(worker_id: &str, instance: &str) -> String {
    let both = format!("{worker_id}.{instance}");
    match both.len() <= limits::NAME_SIZE_MAX {
        true => both,
        false => instance.to_owned(),
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
