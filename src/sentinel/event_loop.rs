//! The event loop of the sentinel.

#[cfg(feature = "curve")]
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clock::moment;
use super::control::deploy::Refusal;
use super::control::{Body, Control, Outgoing, Sender};
#[cfg(feature = "curve")]
use super::control::{Capabilities, UserLimits};
use super::outcome::JobEnd;
use super::publishers::{PublishersFile, Trust};
use super::scheduler::{self, Scheduler};
use crate::job::{Receipt, User};
use crate::limits;
use crate::protocol::{OpCode, Payload, View};
use crate::reactor::{BootTime, Endpoint, Reactor, Requests, Signals, Stopper, thread_time, token};
use crate::socket::{
    self, DisconnectReason, Event, LocalUsers, PeerId, Security, Socket, SocketType,
};
#[cfg(feature = "curve")]
use crate::socket::{
    curve::{AuthorizedKeys, Clients},
    keyfile::AuthorizedKeysFile,
};
use crate::store::{self, Open, Store};
use crate::zmtp;

/// Settings of a sentinel.
#[derive(Clone, Debug)]
pub struct Options {
    /// The endpoint to which workers connect.
    pub bind: Endpoint,
    /// How peers are authenticated.
    pub security: Security,
    /// Connections at a time with an incomplete handshake.
    pub handshakes_max: usize,
    /// Users of this host that may connect, in addition to the sentinel's own user and root, where `security`
    /// does not authenticate peers.
    pub allowed_uids: Vec<u32>,
    /// The list of keys of `security`. It is polled while the sentinel runs, and read again at SIGHUP.
    /// Workers whose key was removed are disconnected.
    #[cfg(feature = "curve")]
    pub authorized_keys: Option<AuthorizedKeysFile>,
    /// The publishers with whose signatures clients may deploy plugins. The file is polled while the sentinel
    /// runs, and read again at SIGHUP.
    pub trusted_publishers: Option<PublishersFile>,
    /// Clients may deploy plugins without such a signature.
    pub allow_unsigned: bool,
    /// The database file. It is created when it is missing.
    pub database: PathBuf,
    /// Length of a lease: how long a worker may publish without a further answer.
    pub lease: Duration,
    /// Time between the end of a lease and the next dispatch of its job.
    pub lease_margin: Duration,
    /// Time in which a worker must end an attempt. After it, the attempt is lost.
    pub attempt_timeout: Duration,
    /// Maximum size in bytes of a message of a worker. Receipts may have 8 MiB.
    pub message_size_max: usize,
    /// How often a job is retried after it lost its worker.
    pub retries_max: u32,
    /// How long a stop waits for running jobs.
    pub drain_timeout: Duration,
    /// Handle SIGINT, SIGTERM and SIGHUP.
    pub signals: bool,
    /// No other sentinel uses this database, so RUNNING rows at the start have no holder.
    pub exclusive: bool,
    /// How long the database may fail. After that, and when it is removed or replaced, the
    /// sentinel ends with the reason. None = it waits until the database works again. With a value,
    /// [`Sentinel::open`] waits only briefly for a locked database, because its caller tries again.
    pub outage_max: Option<Duration>,
    /// The locks on the database, where the caller has them from an earlier [`Sentinel::lock`]. So no other
    /// sentinel can start between two sentinels of the caller.
    pub lock: Option<Arc<store::Lock>>,
}

impl Options {
    /// Defaults for a database and an endpoint.
    pub fn new(bind: Endpoint, database: PathBuf) -> Self {
        Options {
            bind,
            security: Security::Null,
            handshakes_max: limits::HANDSHAKES_MAX,
            allowed_uids: Vec::new(),
            #[cfg(feature = "curve")]
            authorized_keys: None,
            trusted_publishers: None,
            allow_unsigned: false,
            database,
            lease: limits::LEASE,
            lease_margin: limits::LEASE_MARGIN,
            attempt_timeout: limits::ATTEMPT_TIMEOUT,
            message_size_max: limits::WORKER_MESSAGE_SIZE_MAX,
            retries_max: limits::RETRIES_MAX,
            drain_timeout: limits::DRAIN_TIMEOUT,
            signals: true,
            exclusive: false,
            outage_max: None,
            lock: None,
        }
    }
}

/// Why a sentinel did not start or had to stop.
#[derive(Debug)]
pub enum Error {
    /// The endpoint could not be bound.
    Bind {
        /// The endpoint.
        endpoint: Endpoint,
        /// Why.
        source: io::Error,
    },
    /// The database failed for too long.
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

impl Error {
    /// True when opening the database again may succeed: another program has it locked, or its storage is
    /// full or fails.
    pub fn may_pass(&self) -> bool {
        matches!(self, Error::Store(error) if error.may_pass())
    }
}

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
    scheduler: Scheduler,
    signals: Option<Signals>,
    stopper: Stopper,
    /// The locks on the database, kept while the sentinel works on it.
    lock: Arc<store::Lock>,
    draining_until: Option<BootTime>,
    #[cfg(feature = "curve")]
    keys_poll_at: Instant,
    publishers_poll_at: Instant,
    /// Events of the socket that were dropped so far, because there were too many.
    events_dropped: u64,
}

/// Warns of names that several keys have. They count as one user, often by mistake.
#[cfg(feature = "curve")]
fn warn_of_shared_names(keys: &AuthorizedKeys) {
    for name in keys.shared_names() {
        log::warn!("authorized keys: several have the name {name:?} and count as one user");
    }
}

/// Decodes a message's payload. A DEPLOY is not decoded while none is accepted.
fn decode<'a>(
    view: &View<'a>,
    repaired: &'a mut Vec<u8>,
    control: &Control,
    size_max: usize,
) -> Result<Payload<'a>, Refusal> {
    if view.header.opcode == OpCode::Deploy
        && let Some(refusal) = control.closed_to_deployments()
    {
        return Err(refusal);
    }
    let size_max = super::control::payload_size_max(view.header.opcode, size_max);
    let is_receipt = view.header.opcode == OpCode::Conclude;
    let decoded = match view.check_size(size_max) {
        Err(error) if is_receipt => Ok(Payload::Conclude(Receipt::unreadable(&error))),
        Err(error) => Err(error),
        Ok(()) => match Payload::decode_repaired(view, repaired) {
            Err(error) if is_receipt => Ok(Payload::failure(view, &error)),
            decoded => decoded,
        },
    };
    decoded.map_err(|error| Refusal {
        kind: "its payload is not that of DEPLOY",
        reason: error.to_string(),
    })
}

/// Which deployments are accepted.
fn trust(options: &Options) -> Trust {
    let file = options.trusted_publishers.as_ref();
    Trust {
        publishers: file.map(PublishersFile::keys),
        allow_unsigned: options.allow_unsigned,
    }
}

/// The limits in a list of keys, by the text of the keys.
#[cfg(feature = "curve")]
fn user_limits(keys: &AuthorizedKeys) -> BTreeMap<String, UserLimits> {
    let limits = keys.limited().map(|(key, limits)| {
        let plugins = limits.plugins.as_ref();
        let limits = UserLimits {
            slots: limits.slots,
            plugins: plugins.map(|names| Capabilities::new(names)),
        };
        (key.to_string(), limits)
    });
    limits.collect()
}

/// Which users of this host may connect. None where every peer that reaches the endpoint may connect.
fn local_users(options: &Options) -> Result<Option<LocalUsers>, Error> {
    // The only peer of `casparian run` is its own worker, so the user is checked in addition to its key.
    if !matches!(options.security, Security::Null) && !options.exclusive {
        return Ok(None);
    }
    let what = "any user of this host may connect and run code on the workers";
    LocalUsers::of_endpoint(&options.bind, &options.allowed_uids, what).map_err(Error::Io)
}

impl Sentinel {
    /// Opens the database, binds the socket, and inherits the RUNNING rows of earlier sentinels.
    pub fn open(options: Options) -> Result<Self, Error> {
        #[cfg(feature = "curve")]
        if let Some(file) = &options.authorized_keys {
            warn_of_shared_names(&file.keys());
        }
        let lock = match &options.lock {
            Some(lock) => lock.clone(),
            None => Arc::new(store::lock_database(
                &options.database,
                store::Open::Create,
            )?),
        };
        if let Some(what) = store::shared_with(&options.database, true) {
            log::warn!(
                "database {}: {what}, and its plugins are run by the workers; \
                 chmod 600 unless other users are to insert rows",
                options.database.display()
            );
        }
        let now = BootTime::now();
        let settings = scheduler::Settings {
            lease: options.lease,
            lease_margin: options.lease_margin,
            attempt_timeout: options.attempt_timeout,
            retries_max: options.retries_max,
            exclusive: options.exclusive,
        };
        let wait = match options.outage_max {
            Some(_) => limits::STORE_BUSY_TIMEOUT,
            None => limits::STORE_OPEN_WAIT,
        };
        let store = Store::open_within(&options.database, Open::Create, wait)?;
        let mut scheduler = Scheduler::on(store, settings, now, &moment(now))?;
        if let Some(longest) = options.outage_max {
            scheduler.give_up_after(longest);
        }
        scheduler.control.set_trust(trust(&options));
        lock.check(&options.database)?;
        #[cfg(feature = "curve")]
        if let Some(file) = &options.authorized_keys {
            let limits = user_limits(&file.keys());
            scheduler.control.set_user_limits(limits);
        }
        let reactor = Reactor::new()?;
        let socket_options = socket::Options::new()
            .router_handover(true)
            .heartbeat_ivl(limits::HEARTBEAT_INTERVAL)
            .heartbeat_timeout(limits::HEARTBEAT_TIMEOUT)
            .heartbeat_ttl(limits::HEARTBEAT_TIMEOUT)
            .max_handshakes(options.handshakes_max)
            .security(options.security.clone());
        let socket_options = match local_users(&options)? {
            Some(users) => socket_options.local_users(users),
            None => socket_options,
        };
        let mut socket = Socket::new(
            SocketType::Router,
            socket_options,
            reactor.registry(),
            token::new(SOCKET, 0),
            Instant::now(),
        )
        .map_err(io::Error::from)?;
        let endpoint = socket.bind(&options.bind).map_err(|error| Error::Bind {
            endpoint: options.bind.clone(),
            source: error.into(),
        })?;
        let signals = match options.signals {
            true => Some(Signals::register(
                reactor.registry(),
                token::new(SIGNALS, 0),
            )?),
            false => None,
        };
        let stopper = Stopper::new(Arc::new(reactor.waker(token::new(WAKER, 0))?));
        Ok(Sentinel {
            endpoint,
            reactor,
            socket,
            scheduler,
            signals,
            stopper,
            lock,
            draining_until: None,
            #[cfg(feature = "curve")]
            keys_poll_at: Instant::now() + limits::KEY_POLL_INTERVAL,
            publishers_poll_at: Instant::now() + limits::KEY_POLL_INTERVAL,
            events_dropped: 0,
            options,
        })
    }

    /// The locks on the database. They are released when this value and the sentinel are dropped.
    pub fn lock(&self) -> Arc<store::Lock> {
        self.lock.clone()
    }

    /// Sets a channel to which ends of jobs are reported after their commit.
    pub fn observe(&mut self, observer: std::sync::mpsc::Sender<JobEnd>) {
        self.scheduler.observe(observer);
    }

    /// A handle that stops the sentinel.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Runs until a signal or a [`Stopper`] stops it.
    ///
    /// # Errors
    /// The event loop failed, or the database for longer than [`Options::outage_max`].
    pub fn run(mut self) -> Result<(), Error> {
        log::info!("sentinel listens on {}", self.endpoint);
        let mut worked = thread_time();
        loop {
            let (clock, now) = (Instant::now(), BootTime::now());
            if !self.scheduler.control.is_full() {
                self.receive(clock, now);
            }
            self.socket.handle_timeout(clock);
            self.connection_events(clock, now);
            let before = std::mem::replace(&mut worked, thread_time());
            self.scheduler.note_work(worked.saturating_sub(before));
            for message in self.scheduler.iterate(now, &moment(now)) {
                self.send(message);
            }
            self.socket.flush(Instant::now());
            if let Some(error) = self.scheduler.given_up() {
                return Err(error.into());
            }
            let requests = self.signals.as_mut().map(Signals::take).unwrap_or_default();
            self.poll_keys(requests.reload, clock, now);
            self.poll_publishers(requests.reload, clock);
            if self.is_over(requests, now) {
                break;
            }
            self.wait(clock, now)?;
        }
        self.close();
        Ok(())
    }

    /// Receives a bounded number of messages, so that a flood cannot delay the commit.
    fn receive(&mut self, clock: Instant, now: BootTime) {
        let (mut taken, mut deployed) = (0, 0);
        for _ in 0..limits::MESSAGES_PER_ITERATION {
            let is_much = taken >= limits::MESSAGE_BYTES_PER_ITERATION
                || deployed >= limits::DEPLOY_BYTES_PER_ITERATION;
            if is_much || self.scheduler.control.is_full() {
                return;
            }
            let Some(id) = self.socket.receive(clock) else {
                return;
            };
            // A connection can end in the same call. Then its message is dropped.
            let Some((routing_id, message)) =
                self.socket.routing_id(id).zip(self.socket.message(id))
            else {
                continue;
            };
            let user = self.socket.user(id).map(|text| User::parse(&text));
            let from = Sender {
                peer: id,
                routing_id,
                user: user.as_ref(),
            };
            let control = &mut self.scheduler.control;
            let mut repaired = Vec::new();
            let refused = match View::decode(message.iter()) {
                Ok(view) => {
                    taken = taken.saturating_add(view.payload.len());
                    if view.header.opcode == OpCode::Deploy {
                        deployed += view.payload.len();
                    }
                    let size_max = self.options.message_size_max;
                    match decode(&view, &mut repaired, control, size_max) {
                        Ok(payload) => control
                            .handle_message(&from, view.header.job_id, payload, now)
                            .map(str::to_owned),
                        // The client of a DEPLOY waits for an answer.
                        Err(refusal) if view.header.opcode == OpCode::Deploy => {
                            control.refuse_deploy(&from, view.header.job_id, &refusal, now);
                            None
                        }
                        Err(refusal) => Some(refusal.reason),
                    }
                }
                Err(error) => Some(error.to_string()),
            };
            if let Some(reason) = refused {
                let who = super::control::printable(routing_id);
                self.socket
                    .reject(id, &format!("{who}: message refused: {reason}"), clock);
            }
        }
    }

    fn connection_events(&mut self, clock: Instant, now: BootTime) {
        while let Some(event) = self.socket.poll_event() {
            match event {
                Event::Disconnected {
                    peer,
                    routing_id,
                    reason,
                } => {
                    let control = &mut self.scheduler.control;
                    if let DisconnectReason::Protocol(
                        error @ (zmtp::Error::FrameTooLarge { .. }
                        | zmtp::Error::MessageTooLarge { .. }),
                    ) = reason
                    {
                        control.handle_oversized(peer, &routing_id, &error);
                    }
                    control.handle_disconnected(peer, &routing_id, now);
                }
                Event::Established { peer, routing_id } => {
                    let user = self.socket.user(peer).map(|text| User::parse(&text));
                    let from = Sender {
                        peer,
                        routing_id: &routing_id,
                        user: user.as_ref(),
                    };
                    if self.scheduler.control.is_anothers(&from) {
                        let who = super::control::printable(&routing_id);
                        let why = format!("{who}: that is another user's worker");
                        self.socket.reject(peer, &why, clock);
                    }
                }
                _ => {}
            }
        }
        let dropped = self.socket.counters().events_dropped;
        if dropped > self.events_dropped {
            self.events_dropped = dropped;
            let socket = &self.socket;
            let is_connected = |peer| socket.routing_id(peer).is_some();
            self.scheduler.control.check_connections(is_connected, now);
        }
    }

    /// Passes a message to the socket. When a DISPATCH cannot be sent, its attempt is released. When another
    /// message cannot be sent because the send queue of its worker is full, the worker does not read and is
    /// disconnected.
    fn send(&mut self, message: Outgoing) {
        let sent = message
            .encode()
            .map_err(|error| (error.to_string(), true))
            .and_then(|(header, payload)| {
                self.socket
                    .send_to(message.peer, &[&header, &payload])
                    .map_err(|error| (error.to_string(), error == socket::Error::InvalidMessage))
            });
        let Err((reason, is_its_own)) = sent else {
            return;
        };
        if let Body::Dispatch { attempt, .. } = message.body {
            let reason = format!("it cannot be sent to a worker: {reason}");
            self.scheduler
                .control
                .handle_unsent(attempt, &reason, is_its_own);
            return;
        }
        if is_its_own {
            log::error!("a message to a worker is lost: {reason}");
        }
        if !is_its_own && self.socket.routing_id(message.peer).is_some() {
            self.drop_peer(message.peer, &reason);
        }
    }

    fn drop_peer(&mut self, peer: PeerId, reason: &str) {
        log::warn!("a worker's connection is closed: {reason}");
        self.socket.disconnect(peer, Instant::now());
    }

    /// Polls the list of authorized keys.
    #[cfg(feature = "curve")]
    fn poll_keys(&mut self, reload: bool, clock: Instant, now: BootTime) {
        let Some(file) = &mut self.options.authorized_keys else {
            return;
        };
        if !reload && clock < self.keys_poll_at {
            return;
        }
        self.keys_poll_at = clock + limits::KEY_POLL_INTERVAL;
        match file.poll(reload) {
            Ok(None) if reload => log::info!("authorized keys: unchanged"),
            Ok(None) => {}
            Ok(Some(keys)) => {
                log::info!("authorized keys: read again, {} listed", keys.len());
                warn_of_shared_names(&keys);
                let limits = user_limits(&keys);
                self.scheduler.control.set_user_limits(limits);
                if let Security::CurveServer(server) = &self.options.security {
                    let mut server = server.clone();
                    server.clients = Clients::Listed(keys);
                    self.options.security = Security::CurveServer(server);
                    let security = self.options.security.clone();
                    if let Err(error) = self.socket.set_security(security, clock) {
                        log::error!("authorized keys: {error}");
                    }
                    self.connection_events(clock, now);
                }
            }
            Err(error) => log::warn!("authorized keys stay as they were: {error}"),
        }
    }

    #[cfg(not(feature = "curve"))]
    fn poll_keys(&mut self, _reload: bool, _clock: Instant, _now: BootTime) {}

    #[cfg(feature = "curve")]
    fn next_keys_poll(&self) -> Option<Instant> {
        self.options
            .authorized_keys
            .as_ref()
            .map(|_| self.keys_poll_at)
    }

    #[cfg(not(feature = "curve"))]
    fn next_keys_poll(&self) -> Option<Instant> {
        None
    }

    /// Polls the list of trusted publishers.
    fn poll_publishers(&mut self, reload: bool, clock: Instant) {
        let Some(file) = &mut self.options.trusted_publishers else {
            return;
        };
        if !reload && clock < self.publishers_poll_at {
            return;
        }
        self.publishers_poll_at = clock + limits::KEY_POLL_INTERVAL;
        match file.poll(reload) {
            Ok(None) if reload => log::info!("trusted publishers: unchanged"),
            Ok(None) => {}
            Ok(Some(keys)) => {
                log::info!(
                    "trusted publishers: read again, {} key(s) listed",
                    keys.len()
                );
                self.scheduler.control.set_trust(trust(&self.options));
            }
            Err(error) => log::warn!("trusted publishers stay as they were: {error}"),
        }
    }

    fn is_over(&mut self, requests: Requests, now: BootTime) -> bool {
        if self.stopper.wants_stop() {
            return true;
        }
        let drain = requests.stops > 0 || self.stopper.wants_drain();
        match self.draining_until {
            None if drain => {
                self.scheduler.control.drain();
                self.draining_until = Some(now + self.options.drain_timeout);
                let held = self.scheduler.control.claim_count();
                log::info!("stopping: waiting for {held} running job(s), again to stop at once");
                held == 0 || requests.stops > 1
            }
            None => false,
            Some(until) => {
                requests.stops > 0 || now >= until || self.scheduler.control.claim_count() == 0
            }
        }
    }

    fn wait(&mut self, clock: Instant, now: BootTime) -> Result<(), Error> {
        let deadline = if self.socket.has_ready() && !self.scheduler.control.is_full() {
            Some(clock)
        } else {
            let ours = self.scheduler.poll_timeout(now);
            let ours = ours.into_iter().chain(self.draining_until).min();
            let ours = ours.map(|at| limits::after(clock, at.saturating_duration_since(now)));
            let publishers = self.options.trusted_publishers.as_ref();
            let publishers = publishers.map(|_| self.publishers_poll_at);
            let keys = [self.next_keys_poll(), publishers];
            [ours, self.socket.poll_timeout()]
                .into_iter()
                .chain(keys)
                .flatten()
                .min()
        };
        self.reactor.wait(deadline, clock)?;
        let clock = Instant::now();
        for event in self.reactor.events() {
            if token::owner(event.token()) == SOCKET {
                self.socket.handle_ready(event, clock);
            }
        }
        Ok(())
    }

    fn close(&mut self) {
        let now = BootTime::now();
        self.scheduler.close(now, &moment(now));
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
