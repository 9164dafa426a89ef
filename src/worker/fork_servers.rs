//! The fork servers of a worker: starting, watching, giving up.
//!
//! When a fork server dies, its children die with it. Which of them caused that, if any, cannot be observed:
//! it may have ended before the loss is detected. So all their jobs are given back, uncounted. But each of
//! these jobs is recorded as a suspect, and its next attempt on this worker gets a fork server of its own.
//! The loss of that one counts ([`Cause::Worker`]). At [`limits::FORK_SERVER_DEATHS_MAX`] such losses the job fails
//! with [`Cause::Plugin`]. In the meantime it cannot harm other jobs.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mio::Interest;
use mio::unix::SourceFd;

use super::descriptors;
use super::mounts::Mounted;
use super::slot::Failure;
use super::watchdog::{Action, Watchdog};
use crate::job::Cause;
use crate::limits;
use crate::plugin::environment::Environment;
use crate::plugin::fork_server::{self, ForkServer, Imports};
use crate::plugin::process::{Pipes, Process};
use crate::plugin::{Exit, Job};
use crate::reactor::{BootTime, token};
use crate::sandbox::Mounts;

/// Token owner of the fork servers. The index of a token is that of the server.
pub(super) const FORK_SERVER: u8 = 8;

struct Entry {
    hash: String,
    /// Folder with the sockets and working directories of its jobs.
    folder: PathBuf,
    outside: Outside,
    /// Number of changes of the worker's mounts before its start.
    mount_changes: u64,
    /// The only job that may use it.
    only: Option<i64>,
    kind: Kind,
    server: ForkServer,
    watchdog: Watchdog,
}

/// What a fork server runs, and for which jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It runs its environment's imports, for all jobs of the environment.
    Warm,
    /// It imports nothing, for a single attempt.
    Bare,
    /// It runs no code of its environment. Its children execute the environment's interpreter.
    Isolated,
}

/// What the mounts of a fork server depend on besides the worker's settings. A fork server is used only while
/// this stays the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outside {
    /// The [`state`](crate::keys_in_use::state) of the key files that are hidden from it.
    pub(super) keys: u64,
    /// The worker's mounts. None for a fork server that has no mount namespace of its own.
    pub(super) mounts: Option<Mounted>,
}

/// The fork server that a job needs.
pub(super) struct Start<'a> {
    pub(super) job_id: i64,
    pub(super) kind: Kind,
    pub(super) hash: &'a str,
    pub(super) folder: &'a Path,
    pub(super) outside: &'a Outside,
    /// Number of changes of the worker's mounts until now.
    pub(super) mount_changes: u64,
    pub(super) environment: &'a Environment,
    /// The program. For [`Kind::Isolated`] it is not the environment's own.
    pub(super) interpreter: &'a Path,
    pub(super) shim: &'a Path,
    /// The program that runs it with the given mounts.
    pub(super) launcher: Option<(&'a Path, &'a Mounts)>,
}

/// Fork servers of an environment that were lost in a row.
struct Losses {
    count: u32,
    start_at: BootTime,
    reason: Failure,
}

/// The fork servers, see the module's documentation. A fork server's index is that of its token.
pub(super) struct ForkServers {
    table: Vec<Option<Entry>>,
    losses: HashMap<String, Losses>,
    /// Jobs that ran while a fork server died, with the number of deaths of fork servers of their own.
    suspects: BTreeMap<i64, u32>,
    start_timeout: Duration,
}

impl ForkServers {
    pub(super) fn new(start_timeout: Duration) -> Self {
        ForkServers {
            table: Vec::new(),
            losses: HashMap::new(),
            suspects: BTreeMap::new(),
            start_timeout,
        }
    }

    /// The fork server that can run a job, if there is one. A suspect has its own.
    pub(super) fn find(
        &self,
        job_id: i64,
        hash: &str,
        (folder, outside): (&Path, &Outside),
        kind: Kind,
    ) -> Option<usize> {
        let only = self.only(job_id);
        let is_it = |found: &Entry| {
            let has_these = found.folder == folder && found.outside == *outside;
            let is_of = found.hash == hash && has_these && found.only == only;
            is_of && found.kind == kind && kind != Kind::Bare
        };
        let is_it = |entry: &Option<Entry>| entry.as_ref().is_some_and(is_it);
        self.table.iter().position(is_it)
    }

    /// The environments of the fork servers.
    pub(super) fn environments(&self) -> impl Iterator<Item = &str> {
        self.table.iter().flatten().map(|found| found.hash.as_str())
    }

    fn only(&self, job_id: i64) -> Option<i64> {
        self.suspects.contains_key(&job_id).then_some(job_id)
    }

    /// Removes an idle fork server if there are too many. The caller kills and reaps it.
    pub(super) fn make_room(
        &mut self,
        in_use: &dyn Fn(usize) -> bool,
        registry: &mio::Registry,
    ) -> Option<Process> {
        let shared = self
            .table
            .iter()
            .flatten()
            .filter(|found| found.kind != Kind::Bare);
        if shared.count() < limits::FORK_SERVERS_MAX {
            return None;
        }
        let has = |index: usize| self.table.get(index).is_some_and(Option::is_some);
        let idle = (0..self.table.len()).find(|index| has(*index) && !in_use(*index))?;
        self.remove(idle, registry)
    }

    /// Removes an idle fork server of an environment whose jobs now have another folder, or from which other
    /// key files must be hidden, or which has other mounts than the worker.
    pub(super) fn remove_stale(
        &mut self,
        hash: &str,
        (folder, outside): (&Path, &Outside),
        in_use: &dyn Fn(usize) -> bool,
        registry: &mio::Registry,
    ) -> Option<Process> {
        let is_stale = |entry: &Option<Entry>| {
            let found = entry.as_ref();
            let differs = |found: &Entry| found.folder != folder || found.outside != *outside;
            found.is_some_and(|found| found.hash == hash && differs(found))
        };
        let mut entries = self.table.iter().enumerate();
        let (index, _) = entries.find(|(index, entry)| is_stale(entry) && !in_use(*index))?;
        self.remove(index, registry)
    }

    /// Removes an idle fork server of an environment.
    pub(super) fn remove_idle(
        &mut self,
        hash: &str,
        in_use: &dyn Fn(usize) -> bool,
        registry: &mio::Registry,
    ) -> Option<Process> {
        let is_of = |entry: &Option<Entry>| entry.as_ref().is_some_and(|found| found.hash == hash);
        let mut entries = self.table.iter().enumerate();
        let (index, _) = entries.find(|(index, entry)| is_of(entry) && !in_use(*index))?;
        self.remove(index, registry)
    }

    /// Removes an idle fork server that has a file system which the worker's host has unmounted, so that its
    /// device or server can be removed. The result also has whether others, which are in use, have one.
    pub(super) fn remove_unmounted(
        &mut self,
        mounts: &Mounted,
        in_use: &dyn Fn(usize) -> bool,
        registry: &mio::Registry,
    ) -> (Option<Process>, bool) {
        let is_stale = |entry: &Option<Entry>| {
            let found = entry.as_ref();
            let of = found.and_then(|found| found.outside.mounts.as_ref());
            of.is_some_and(|of| of.lacks_in(mounts))
        };
        let stale = self.table.iter().enumerate();
        let stale = stale.filter(|(_, entry)| is_stale(entry));
        let (used, idle): (Vec<usize>, Vec<usize>) = stale
            .map(|(index, _)| index)
            .partition(|index| in_use(*index));
        let removed = idle.first().and_then(|index| self.remove(*index, registry));
        (removed, !used.is_empty())
    }

    /// Starts a fork server, unless the pause after losses of its environment's fork servers lasts.
    pub(super) fn start(
        &mut self,
        start: &Start<'_>,
        registry: &mio::Registry,
        now: BootTime,
    ) -> Result<usize, Failure> {
        let Start {
            job_id,
            kind,
            hash,
            environment,
            interpreter,
            ..
        } = *start;
        if let Some(losses) = self.losses.get(hash)
            && now < losses.start_at
        {
            return Err(losses.reason.clone());
        }
        let imports = match kind {
            Kind::Warm => Imports::These(&environment.preload),
            Kind::Bare => Imports::None,
            Kind::Isolated => Imports::NoPackages,
        };
        let started = ForkServer::start(interpreter, start.shim, imports, start.launcher);
        let server = started.map_err(|error| {
            let what = format!("cannot start {}", interpreter.display());
            let failure = match &error {
                fork_server::Error::Io(error) => descriptors::start_failure(&what, error),
                error => Failure::new(Cause::Worker, format!("{what}: {error}")),
            };
            let cause = start_cause(environment, &error);
            let failure = Failure { cause, ..failure };
            self.count_loss(hash, failure.clone(), now);
            failure
        })?;
        descriptors::restore_limit(server.process());
        let index = match self.table.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.table.push(None);
                self.table.len() - 1
            }
        };
        let token = token::new(FORK_SERVER, index);
        for fd in watched(&server) {
            registry
                .register(&mut SourceFd(&fd), token, Interest::READABLE)
                .map_err(|error| descriptors::start_failure("event loop", &error))?;
        }
        if let Some(entry) = self.table.get_mut(index) {
            *entry = Some(Entry {
                hash: hash.to_owned(),
                folder: start.folder.to_owned(),
                outside: start.outside.clone(),
                mount_changes: start.mount_changes,
                only: (kind == Kind::Bare || self.suspects.contains_key(&job_id)).then_some(job_id),
                kind,
                server,
                watchdog: Watchdog::new(self.start_timeout, now),
            });
        }
        Ok(index)
    }

    /// Until when no fork server of an environment is started, because some were lost.
    pub(super) fn paused_until(&self, hash: &str) -> Option<BootTime> {
        self.losses.get(hash).map(|losses| losses.start_at)
    }

    /// Number of changes of the worker's mounts before a fork server was started. None if it has no mounts of
    /// its own.
    pub(super) fn mount_changes(&self, index: usize) -> Option<u64> {
        let found = self.table.get(index).and_then(Option::as_ref)?;
        found.outside.mounts.as_ref().map(|_| found.mount_changes)
    }

    fn at(&mut self, index: usize) -> Option<&mut Entry> {
        self.table.get_mut(index)?.as_mut()
    }

    /// Requests a child that runs a job.
    pub(super) fn request(
        &mut self,
        index: usize,
        key: u64,
        job: &Job<'_>,
        now: BootTime,
    ) -> Result<Pipes, fork_server::Error> {
        let entry = self.at(index).ok_or(fork_server::Error::Ended)?;
        let pipes = entry.server.request(key, job);
        // One that does not read messages has the same deadline.
        entry.watchdog.handle_sent(now);
        pipes
    }

    /// True if a fork server's process has exited. Messages of it may still be unread.
    pub(super) fn has_exited(&self, index: usize) -> bool {
        let entry = self.table.get(index).and_then(Option::as_ref);
        entry.is_some_and(|found| found.server.process().has_exited())
    }

    /// How a fork server ended that has not been reaped. None if that is unknown.
    pub(super) fn exit(&self, index: usize) -> Option<Exit> {
        let entry = self.table.get(index).and_then(Option::as_ref)?;
        let process = entry.server.process();
        process.has_exited().then(|| process.unreaped_exit())?
    }

    /// A fork server has closed its socket. It must exit, or is given up.
    pub(super) fn handle_closed(&mut self, index: usize, now: BootTime) {
        if let Some(entry) = self.at(index) {
            entry.watchdog.handle_closed(now);
        }
    }

    /// Reads one message of a fork server. None if there is none now.
    pub(super) fn next_event(
        &mut self,
        index: usize,
        now: BootTime,
    ) -> Result<Option<fork_server::Event>, fork_server::Error> {
        let Some(entry) = self.at(index) else {
            return Ok(None);
        };
        let event = entry.server.next_event()?;
        let hash = match &event {
            Some(fork_server::Event::Ready) => {
                entry.watchdog.handle_ready(now);
                None
            }
            Some(fork_server::Event::Exited { .. }) => {
                entry.watchdog.handle_message(false, now);
                Some(entry.hash.clone())
            }
            Some(_) => {
                entry.watchdog.handle_message(true, now);
                None
            }
            None => None,
        };
        // It has completed a job, so the next start needs no pause.
        if let Some(hash) = hash {
            self.losses.remove(&hash);
        }
        Ok(event)
    }

    /// When [`ForkServers::check`] is due. `in_use` = jobs need the fork server.
    pub(super) fn poll_timeout(&self, in_use: &dyn Fn(usize) -> bool) -> Option<BootTime> {
        let due = |(index, entry): (usize, &Option<Entry>)| {
            entry.as_ref()?.watchdog.poll_timeout(in_use(index))
        };
        self.table.iter().enumerate().filter_map(due).min()
    }

    /// Pings those that are due. Returns those that do not respond.
    pub(super) fn check(&mut self, in_use: &dyn Fn(usize) -> bool, now: BootTime) -> Vec<usize> {
        let mut silent = Vec::new();
        for (index, entry) in self.table.iter_mut().enumerate() {
            let Some(entry) = entry else {
                continue;
            };
            match entry.watchdog.poll(in_use(index), now) {
                Some(Action::Ping) => {
                    entry.server.ping();
                    entry.watchdog.handle_sent(now);
                }
                Some(Action::GiveUp) => silent.push(index),
                None => {}
            }
        }
        silent
    }

    /// Removes a fork server from the table. The caller kills and reaps it.
    pub(super) fn remove(&mut self, index: usize, registry: &mio::Registry) -> Option<Process> {
        let entry = self.table.get_mut(index)?.take()?;
        for fd in watched(&entry.server) {
            if let Err(error) = registry.deregister(&mut SourceFd(&fd)) {
                log::debug!("fork server: {error}");
            }
        }
        Some(entry.server.into_process())
    }

    /// A fork server is lost, with the children that ran these jobs. Returns the failure of each of these
    /// jobs.
    pub(super) fn handle_lost(
        &mut self,
        index: usize,
        jobs: &[i64],
        reason: &str,
        now: BootTime,
    ) -> Failure {
        let Some(entry) = self.at(index) else {
            return Failure::new(Cause::Worker, reason);
        };
        let hash = entry.hash.clone();
        let (only, ready) = (entry.only, entry.watchdog.is_ready());
        let killed = self.exit(index).is_some_and(|exit| exit.signal == Some(9));
        let is_first = !self.losses.contains_key(&hash);
        let failure = if ready {
            self.blame(only, jobs, reason)
        } else if killed && is_first {
            // The kernel or another program has killed it, as far as one occurrence shows.
            Failure {
                is_neutral_for_worker: true,
                ..Failure::new(Cause::Worker, reason)
            }
        } else {
            Failure::new(
                Cause::Environment,
                format!("the environment's interpreter does not start: {reason}"),
            )
        };
        // Damage that a suspect does to its own fork server does not concern its environment.
        if !(only.is_some() && ready) {
            self.count_loss(&hash, failure.clone(), now);
        }
        failure
    }

    /// Counts the death of a fork server in which these jobs ran. `only`: the job that had it alone.
    fn blame(&mut self, only: Option<i64>, jobs: &[i64], reason: &str) -> Failure {
        for job in jobs {
            self.suspects.entry(*job).or_insert(0);
        }
        while self.suspects.len() > limits::SUSPECTS_MAX {
            self.suspects.pop_first();
        }
        let failure = Failure::new(Cause::Worker, reason);
        let Some(job) = only else {
            return Failure {
                is_uncounted: true,
                ..failure
            };
        };
        match self.suspects.get_mut(&job) {
            Some(deaths) if jobs.contains(&job) => {
                *deaths = deaths.saturating_add(1);
                match *deaths >= limits::FORK_SERVER_DEATHS_MAX {
                    true => Failure::new(
                        Cause::Plugin,
                        format!("{reason}; {deaths} times while only this job ran in it"),
                    ),
                    false => failure,
                }
            }
            _ => failure,
        }
    }

    /// After the first loss the next start is allowed at once.
    fn count_loss(&mut self, hash: &str, reason: Failure, now: BootTime) {
        if self.losses.len() >= limits::WORKER_ENVIRONMENTS_MAX {
            self.losses.clear();
        }
        let losses = self.losses.entry(hash.to_owned()).or_insert(Losses {
            count: 0,
            start_at: now,
            reason: reason.clone(),
        });
        let pause = match losses.count {
            0 => Duration::ZERO,
            count => limits::FORK_SERVER_RESTART_PAUSE
                .saturating_mul(1 << (count - 1).min(16))
                .min(limits::FORK_SERVER_RESTART_PAUSE_MAX),
        };
        losses.count = losses.count.saturating_add(1);
        losses.start_at = now + pause;
        losses.reason = Failure {
            // Jobs that arrive during the pause have not caused it.
            is_uncounted: true,
            cause: match reason.cause {
                Cause::Plugin => Cause::Worker,
                cause => cause,
            },
            ..reason
        };
    }

    /// Removes all fork servers. Each kills the processes that it has started, and ends.
    pub(super) fn close(&mut self, registry: &mio::Registry) -> Vec<Process> {
        (0..self.table.len())
            .filter_map(|index| self.remove(index, registry))
            .collect()
    }

    /// A job has ended that ran in the fork server with that index. A fork server of its own is removed and
    /// returned; the caller kills it. A job that succeeded is no longer a suspect.
    pub(super) fn handle_job_end(
        &mut self,
        job_id: i64,
        index: Option<usize>,
        succeeded: bool,
        registry: &mio::Registry,
    ) -> Option<Process> {
        if succeeded {
            self.suspects.remove(&job_id);
        }
        let index = index?;
        let is_own = self.at(index)?.only == Some(job_id);
        is_own.then(|| self.remove(index, registry))?
    }
}

/// Descriptors that are readable when a fork server has sent something or has exited.
fn watched(server: &ForkServer) -> [RawFd; 2] {
    [server.raw_fd(), server.process().pidfd().as_raw_fd()]
}

/// A missing or broken interpreter is the environment's fault. A lack of processes, memory or descriptors is
/// the worker's.
fn start_cause(environment: &Environment, error: &fork_server::Error) -> Cause {
    match error {
        fork_server::Error::Io(error) => spawn_cause(environment, error),
        _ => Cause::Environment,
    }
}

/// Cause of a failure to start a fork server.
fn spawn_cause(environment: &Environment, error: &std::io::Error) -> Cause {
    use std::io::ErrorKind;
    match error.kind() {
        // The missing file may be the working directory.
        ErrorKind::NotFound if environment.interpreter.exists() => Cause::Worker,
        ErrorKind::NotFound | ErrorKind::PermissionDenied => Cause::Environment,
        _ if error.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
            Cause::Environment
        }
        _ => Cause::Worker,
    }
}

#[cfg(test)]
mod tests;
