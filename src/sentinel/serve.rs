//! The loop around the control state.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::control::{Control, Sender, Settings};
use super::turn;
use crate::limits;
use crate::protocol::{Identify, Payload, View};
use crate::reactor::{Endpoint, Reactor, Requests, Signals, Stopper, token};
use crate::socket::{self, Event, PeerId, Security, Socket, SocketType};
#[cfg(feature = "curve")]
use crate::socket::{
    curve::{AuthorizedKeys, Clients},
    keyfile::AuthorizedKeysFile,
};
use crate::store::{self, Open, Store};

/// What a sentinel is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where workers connect.
    pub bind: Endpoint,
    /// How workers prove who they are.
    pub security: Security,
    /// The list behind `security`, which is followed while the sentinel runs and read again at
    /// SIGHUP; a worker whose key has gone from it is closed.
    #[cfg(feature = "curve")]
    pub authorized_keys: Option<AuthorizedKeysFile>,
    /// The database file; made when it is missing.
    pub database: PathBuf,
    /// Lease of a claim.
    pub lease: Duration,
    /// How long a worker may be away before its jobs are requeued.
    pub grace: Duration,
    /// How often a job may lose its worker before it fails.
    pub retries_max: u32,
    /// How long to wait for running jobs at a stop.
    pub drain_timeout: Duration,
    /// Take SIGINT, SIGTERM and SIGHUP over.
    pub signals: bool,
    /// Nobody else works on this database: RUNNING rows found at the start are nobody's.
    pub exclusive: bool,
}

impl Options {
    /// Defaults for a database and an endpoint.
    pub fn new(bind: Endpoint, database: PathBuf) -> Self {
        Options {
            bind,
            security: Security::Null,
            #[cfg(feature = "curve")]
            authorized_keys: None,
            database,
            lease: limits::LEASE,
            grace: limits::WORKER_GRACE,
            retries_max: limits::RETRIES_MAX,
            drain_timeout: limits::DRAIN_TIMEOUT,
            signals: true,
            exclusive: false,
        }
    }
}

/// Why a sentinel did not start or had to stop.
#[derive(Debug)]
pub enum Error {
    /// The endpoint could not be bound.
    Bind {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// The database failed, and went on failing.
    Store(store::Error),
    /// The event loop failed.
    Io(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Bind { endpoint, source } => write!(f, "cannot bind {endpoint}: {source}"),
            Error::Store(error) => error.fmt(f),
            Error::Io(error) => write!(f, "event loop failed: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        Error::Store(error)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Io(error)
    }
}

const SOCKET: u8 = 0;
const SIGNALS: u8 = 1;
const WAKER: u8 = 2;

/// A bound sentinel with its database open.
pub struct Sentinel {
    options: Options,
    endpoint: Endpoint,
    reactor: Reactor,
    socket: Socket,
    store: Store,
    control: Control,
    signals: Option<Signals>,
    stopper: Stopper,
    draining_until: Option<Instant>,
    /// Rows may be waiting that no claim has looked at.
    queue_changed: bool,
    look_at: Instant,
    expire_at: Instant,
    /// Until then RUNNING jobs of an earlier sentinel may have a lease.
    leases_until: Instant,
    #[cfg(feature = "curve")]
    keys_look_at: Instant,
    /// Plugins that wait for a deployment or a worker, so that it is said once.
    waiting_said: HashSet<String>,
    /// Events of the socket that were too many, so far.
    events_dropped: u64,
}

/// Names of keys are users, and often by a slip.
#[cfg(feature = "curve")]
fn warn_of_shared_names(keys: &AuthorizedKeys) {
    for name in keys.shared_names() {
        log::warn!("authorized keys: several have the name {name:?} and count as one user");
    }
}

/// Milliseconds since the epoch.
fn unix_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

impl Sentinel {
    /// Opens the database, binds, and puts jobs without a live lease back into the queue.
    pub fn open(options: Options) -> Result<Self, Error> {
        #[cfg(feature = "curve")]
        if let Some(file) = &options.authorized_keys {
            warn_of_shared_names(&file.keys());
        }
        let mut store = Store::open(&options.database, Open::Create)?;
        let reactor = Reactor::new()?;
        let socket_options = socket::Options::new()
            .router_handover(true)
            .heartbeat_ivl(limits::HEARTBEAT_INTERVAL)
            .heartbeat_timeout(limits::HEARTBEAT_TIMEOUT)
            .heartbeat_ttl(limits::HEARTBEAT_TIMEOUT)
            .security(options.security.clone());
        let mut socket = Socket::new(
            SocketType::Router,
            socket_options,
            reactor.registry(),
            SOCKET,
        )?;
        let endpoint = socket.bind(&options.bind).map_err(|source| Error::Bind {
            endpoint: options.bind.clone(),
            source,
        })?;
        let signals = match options.signals {
            true => Some(Signals::register(
                reactor.registry(),
                token::new(SIGNALS, 0),
            )?),
            false => None,
        };
        let stopper = Stopper::new(Arc::new(reactor.waker(token::new(WAKER, 0))?));
        let mut control = Control::new(Settings {
            lease: options.lease,
            grace: options.grace,
        });
        for worker in store.workers()? {
            control.remember_worker(
                &worker.worker_id,
                Identify {
                    capabilities: worker.capabilities,
                    worker_id: Some(worker.worker_id.clone().into()),
                    slots: u32::try_from(worker.slots).ok(),
                    hostname: Some(worker.hostname.into()),
                    pid: worker.pid.and_then(|pid| u32::try_from(pid).ok()),
                    running: None,
                    ..Identify::default()
                },
            );
        }
        let now_ms = unix_ms();
        turn::recover(&mut store, &options, now_ms)?;
        let now = Instant::now();
        let leases_until = limits::after(now, options.lease);
        for running in store.running()? {
            if let Some(user) = running.user {
                control.remember_claimant(running.worker_id, user.to_string(), leases_until);
            }
        }
        Ok(Sentinel {
            endpoint,
            reactor,
            socket,
            store,
            control,
            signals,
            stopper,
            draining_until: None,
            queue_changed: true,
            look_at: now,
            expire_at: now + limits::EXPIRE_INTERVAL,
            leases_until,
            #[cfg(feature = "curve")]
            keys_look_at: now + limits::KEY_LOOK_INTERVAL,
            waiting_said: HashSet::new(),
            events_dropped: 0,
            options,
        })
    }

    /// Where it is bound, with the port the system chose.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A handle that ends it.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Runs until a signal or a [`Stopper`] ends it.
    pub fn run(mut self) -> Result<(), Error> {
        log::info!("sentinel listens on {}", self.endpoint);
        let mut failures = 0u32;
        loop {
            let now = Instant::now();
            self.receive(now);
            self.socket.handle_timeout(now);
            self.connection_events(now);
            self.control.handle_timeout(now);
            match self.commit(now) {
                Ok(()) => failures = 0,
                Err(error) => {
                    failures += 1;
                    log::error!("database: {error} (attempt {failures})");
                    if failures >= limits::STORE_RETRIES_MAX {
                        return Err(Error::Store(error));
                    }
                    std::thread::sleep(limits::STORE_RETRY_PAUSE);
                }
            }
            self.send();
            let requests = self.signals.as_mut().map(Signals::take).unwrap_or_default();
            self.look_at_keys(requests.reload, now);
            if self.is_over(requests, now) {
                break;
            }
            self.wait(now)?;
        }
        self.close();
        Ok(())
    }

    /// Takes messages, at most a turn's worth, so that a flood cannot put the commit off.
    fn receive(&mut self, now: Instant) {
        for _ in 0..limits::MESSAGES_PER_TURN {
            let Some(id) = self.socket.receive(now) else {
                return;
            };
            // A connection can end in the same call; its message is gone with it.
            let Some((identity, message)) = self.socket.identity(id).zip(self.socket.message(id))
            else {
                continue;
            };
            let user = self.socket.user(id);
            let from = Sender {
                peer: id,
                identity,
                user: user.as_deref(),
            };
            let decoded = View::decode(message.iter())
                .and_then(|view| Payload::decode(&view).map(|payload| (view.header, payload)));
            let refused = match decoded {
                Ok((header, payload)) => self
                    .control
                    .handle_message(&from, header.job_id, payload, now)
                    .map(str::to_owned),
                Err(error) => Some(error.to_string()),
            };
            if let Some(reason) = refused {
                let who = super::control::printable(identity);
                self.socket
                    .reject(id, &format!("{who}: message refused: {reason}"), now);
            }
        }
    }

    fn connection_events(&mut self, now: Instant) {
        while let Some(event) = self.socket.poll_event() {
            match event {
                Event::Disconnected { peer, identity, .. } => {
                    self.control.handle_disconnected(peer, &identity, now);
                }
                Event::Established { peer, identity } => {
                    let user = self.socket.user(peer);
                    let from = Sender {
                        peer,
                        identity: &identity,
                        user: user.as_deref(),
                    };
                    if self.control.is_anothers(&from) {
                        let who = super::control::printable(&identity);
                        let why = format!("{who}: that is another user's worker");
                        self.socket.reject(peer, &why, now);
                    }
                }
                _ => {}
            }
        }
        let dropped = self.socket.counters().events_dropped;
        if dropped > self.events_dropped {
            self.events_dropped = dropped;
            let socket = &self.socket;
            let is_connected = |peer| socket.identity(peer).is_some();
            self.control.check_connections(is_connected, now);
        }
    }

    /// The turn's transaction.
    fn commit(&mut self, now: Instant) -> Result<(), store::Error> {
        if now >= self.look_at {
            self.look_at = now + limits::QUEUE_LOOK_INTERVAL;
            self.queue_changed |= self.store.changed()?;
        }
        let expire = now >= self.expire_at;
        if expire {
            self.expire_at = now + limits::EXPIRE_INTERVAL;
        }
        let mut turn = turn::Turn {
            store: &mut self.store,
            control: &mut self.control,
            options: &self.options,
            waiting_said: &mut self.waiting_said,
            now,
            now_ms: unix_ms(),
        };
        turn.run(&mut self.queue_changed, expire && now >= self.leases_until)
    }

    /// Hands committed answers to the socket. A worker whose queue is full is not reading; its
    /// connection is closed, and its jobs come back when it stays away.
    fn send(&mut self) {
        for outgoing in self.control.take_outgoing() {
            let sent = outgoing
                .payload
                .encode(outgoing.job_id)
                .map(|(header, payload)| self.socket.send_to(outgoing.peer, &[&header, &payload]));
            match sent {
                Ok(Ok(())) | Ok(Err(socket::SendError::Unroutable)) => {}
                Ok(Err(error)) => self.drop_peer(outgoing.peer, &error.to_string()),
                Err(error) => self.drop_peer(outgoing.peer, &error.to_string()),
            }
        }
        self.socket.flush();
    }

    fn drop_peer(&mut self, peer: PeerId, reason: &str) {
        log::warn!("a worker's connection is closed: {reason}");
        self.socket.disconnect(peer, Instant::now());
    }

    /// Follows the list of authorized keys.
    #[cfg(feature = "curve")]
    fn look_at_keys(&mut self, reload: bool, now: Instant) {
        let Some(file) = &mut self.options.authorized_keys else {
            return;
        };
        if !reload && now < self.keys_look_at {
            return;
        }
        self.keys_look_at = now + limits::KEY_LOOK_INTERVAL;
        match file.look(reload) {
            Ok(None) if reload => log::info!("authorized keys: unchanged"),
            Ok(None) => {}
            Ok(Some(keys)) => {
                log::info!("authorized keys: read again, {} listed", keys.len());
                warn_of_shared_names(&keys);
                if let Security::CurveServer(server) = &self.options.security {
                    let mut server = server.clone();
                    server.clients = Clients::Listed(keys);
                    self.options.security = Security::CurveServer(server);
                    let security = self.options.security.clone();
                    if let Err(error) = self.socket.set_security(security, now) {
                        log::error!("authorized keys: {error}");
                    }
                    self.connection_events(now);
                }
            }
            Err(error) => log::warn!("authorized keys stay as they were: {error}"),
        }
    }

    #[cfg(not(feature = "curve"))]
    fn look_at_keys(&mut self, _reload: bool, _now: Instant) {}

    #[cfg(feature = "curve")]
    fn next_look_at_keys(&self) -> Option<Instant> {
        self.options
            .authorized_keys
            .as_ref()
            .map(|_| self.keys_look_at)
    }

    #[cfg(not(feature = "curve"))]
    fn next_look_at_keys(&self) -> Option<Instant> {
        None
    }

    fn is_over(&mut self, requests: Requests, now: Instant) -> bool {
        if self.stopper.wants_stop() {
            return true;
        }
        let drain = requests.stops > 0 || self.stopper.wants_drain();
        match self.draining_until {
            None if drain => {
                self.control.drain();
                self.draining_until = Some(now + self.options.drain_timeout);
                let held = self.control.held_count();
                log::info!("stopping: waiting for {held} running job(s), again to stop at once");
                held == 0 || requests.stops > 1
            }
            None => false,
            Some(until) => requests.stops > 0 || now >= until || self.control.held_count() == 0,
        }
    }

    fn wait(&mut self, now: Instant) -> Result<(), Error> {
        let look = (self.control.has_openings()).then_some(self.look_at);
        let claimable = self.queue_changed && self.control.has_openings();
        let deadline = if self.socket.has_ready() || claimable {
            Some(now)
        } else {
            [
                self.socket.poll_timeout(),
                self.control.poll_timeout(),
                self.draining_until,
                look,
                Some(self.expire_at),
                self.next_look_at_keys(),
            ]
            .into_iter()
            .flatten()
            .min()
        };
        self.reactor.wait(deadline, now)?;
        let now = Instant::now();
        for event in self.reactor.events() {
            if token::owner(event.token()) == SOCKET {
                self.socket.handle_ready(event, now);
            }
        }
        Ok(())
    }

    fn close(&mut self) {
        self.control.close();
        let mut turn = turn::Turn {
            store: &mut self.store,
            control: &mut self.control,
            options: &self.options,
            waiting_said: &mut self.waiting_said,
            now: Instant::now(),
            now_ms: unix_ms(),
        };
        if let Err(error) = turn.run(&mut false, false) {
            log::error!("database: {error}");
        }
        log::info!("sentinel stopped");
    }
}

impl fmt::Debug for Sentinel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sentinel")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}
