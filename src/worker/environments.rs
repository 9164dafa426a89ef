//! The environments of a worker.
//!
//! An environment is created on a thread of its own, in a few attempts. When it cannot be created, the jobs
//! that wait for it fail. The next job that arrives after a pause starts another creation. The pause grows.
//! Jobs that arrive before its end do not count the failure (`is_uncounted`). Lockfiles are kept for later
//! creations, within a bound.
//!
//! An environment that has become broken is created again: when a job needs it and its signs show it, or, once,
//! when a job has failed because its Python cannot import pyarrow. Nothing may run in it any more before it is
//! replaced, so this worker lets go of its lock (`replaced`).
//!
//! A few environments are created at the same time, those that jobs wait for first. Environments in which
//! jobs and fork servers run are locked (`plugin/cache.rs`). After an environment has been created, the least
//! recently used ones are evicted if the cache is too large.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::event::ThreadEvent;
use super::slot::Failure;
use crate::job::Cause;
use crate::limits;
use crate::plugin::cache::{self, InUse, Taken};
use crate::plugin::environment::{self, Build, Environment, Signs, provision, verify};
use crate::reactor::BootTime;
use crate::thread;

/// State of an environment.
#[derive(Clone, Debug)]
pub(super) enum State {
    Making,
    Ready(Environment),
    Failed(Failure),
}

/// An environment that a job or PREPARE_ENV has requested.
#[derive(Debug)]
struct Known {
    state: State,
    /// None after it was dropped because the lockfiles were too large together.
    lockfile: Option<Arc<str>>,
    /// Number of failed creations in a row, and the time from which the next one is allowed.
    failures: u32,
    retry_at: BootTime,
    /// When its creation began.
    begun_at: BootTime,
    /// It was created, and was missing or broken at the last poll.
    is_missing: bool,
    /// Signs that it is whole. None where it never had them: it then counts as whole while it exists.
    signs: Option<Signs>,
    /// From when a failure of a job may let the import of pyarrow be tested. None = not again.
    test_at: Option<BootTime>,
    /// That test is under way, or the creation that follows it.
    is_tested: bool,
}

impl Known {
    /// True if an environment that was ready is still there and whole.
    fn is_whole(&mut self) -> bool {
        let State::Ready(environment) = &self.state else {
            return false;
        };
        match &self.signs {
            None => environment.interpreter.exists(),
            Some(signs) if signs.hold() => true,
            Some(_) => match signs_of(environment) {
                None => false,
                found => {
                    self.signs = found;
                    true
                }
            },
        }
    }

    /// Its state for a job that arrives now. A job that arrives before the next creation is allowed does not
    /// count the failure.
    fn after_failure(&self, now: BootTime) -> State {
        match &self.state {
            State::Failed(failure) => State::Failed(Failure {
                is_uncounted: now < self.retry_at,
                ..failure.clone()
            }),
            state => state.clone(),
        }
    }
}

/// The lock of an environment that is used by this worker.
struct Held {
    lock: InUse,
    used_at: BootTime,
    noted_at: BootTime,
}

pub(super) struct Environments {
    home: PathBuf,
    /// Limit of the bytes of all environments in the cache; 0 = no limit.
    cache_max: u64,
    build: Arc<Build>,
    held: HashMap<String, Held>,
    /// Environments that are to be created and have no thread yet.
    queue: VecDeque<(String, Arc<str>)>,
    /// Number of threads that create environments.
    threads: usize,
    known: HashMap<String, Known>,
    /// When to check again which environments exist.
    poll_at: Option<BootTime>,
    /// The environment of jobs that name none.
    default_lockfile: Arc<str>,
    default_hash: String,
    /// The sentinel has also named it by its hash.
    default_is_named: bool,
    cancel: Arc<AtomicBool>,
    events: Sender<ThreadEvent>,
    waker: Arc<mio::Waker>,
}

impl Environments {
    pub(super) fn new(
        home: PathBuf,
        cache_max: u64,
        build: Build,
        events: Sender<ThreadEvent>,
        waker: Arc<mio::Waker>,
    ) -> Self {
        let default_lockfile = environment::requirements_lockfile(&[], None, &[]);
        Environments {
            home,
            cache_max,
            build: Arc::new(build),
            held: HashMap::new(),
            queue: VecDeque::new(),
            threads: 0,
            known: HashMap::new(),
            poll_at: None,
            default_hash: environment::hash(&default_lockfile),
            default_lockfile: default_lockfile.into(),
            default_is_named: false,
            cancel: Arc::default(),
            events,
            waker,
        }
    }

    /// Hash of the environment of jobs that name none.
    pub(super) fn default_hash(&self) -> &str {
        &self.default_hash
    }

    /// Key of the environment that a job names.
    pub(super) fn key(&mut self, env_hash: &str) -> String {
        self.default_is_named |= env_hash == self.default_hash;
        match env_hash {
            "" => self.default_hash.clone(),
            hash => hash.to_owned(),
        }
    }

    /// True if the sentinel has named the environment by its hash.
    pub(super) fn is_named(&self, hash: &str) -> bool {
        self.default_is_named || hash != self.default_hash
    }

    /// The state of an environment that a job needs. If it is not in the table, it is searched for on disk,
    /// or created if it is the default one. If it has failed or was removed, it is created again, but not
    /// before [`Environments::paused_until`]. If it is ready, it is locked.
    pub(super) fn state(&mut self, hash: &str) -> State {
        match self.unlocked(hash) {
            State::Ready(environment) => self.lock(hash, environment),
            State::Making => {
                // A job waits for it, so it is created before those without jobs.
                let index = self.queue.iter().position(|(queued, _)| queued == hash);
                if let Some(entry) = index.and_then(|index| self.queue.remove(index)) {
                    self.queue.push_front(entry);
                }
                State::Making
            }
            failed => failed,
        }
    }

    /// Locks an environment that is ready. If another program is checking or evicting it, a thread waits for
    /// the result, as for a creation.
    fn lock(&mut self, hash: &str, environment: Environment) -> State {
        let now = BootTime::now();
        if let Some(held) = self.held.get_mut(hash) {
            held.used_at = now;
            if held.noted_at + limits::ENVIRONMENT_NOTED_INTERVAL <= now {
                held.noted_at = now;
                held.lock.touch();
            }
            return State::Ready(environment);
        }
        match InUse::take(&self.home, hash) {
            Taken::Held(lock) => self.keep(hash, lock, now),
            Taken::Unlockable => {}
            Taken::Busy | Taken::Missing => {
                let known = self.known.get(hash);
                if let Some(lockfile) = known.and_then(|known| known.lockfile.clone()) {
                    self.known.remove(hash);
                    return self.make(hash, lockfile);
                }
                if hash == self.default_hash {
                    return self.make(hash, self.default_lockfile.clone());
                }
            }
        }
        State::Ready(environment)
    }

    fn keep(&mut self, hash: &str, lock: InUse, now: BootTime) {
        let held = Held {
            lock,
            used_at: now,
            noted_at: now,
        };
        self.held.insert(hash.to_owned(), held);
    }

    /// True if the lock of an environment may be released.
    pub(super) fn has_idle(&self, now: BootTime) -> bool {
        let mut held = self.held.values();
        held.any(|held| held.used_at + limits::ENVIRONMENT_IDLE <= now)
    }

    /// Releases the locks of environments in which nothing has run for `ENVIRONMENT_IDLE`.
    pub(super) fn release(&mut self, in_use: &BTreeSet<&str>, now: BootTime) {
        self.held.retain(|hash, held| {
            if in_use.contains(hash.as_str()) {
                held.used_at = now;
                return true;
            }
            let stays = held.used_at + limits::ENVIRONMENT_IDLE > now;
            if !stays {
                held.lock.touch();
            }
            stays
        });
    }

    fn unlocked(&mut self, hash: &str) -> State {
        let is_whole = self.known.get_mut(hash).is_some_and(Known::is_whole);
        if let Some(known) = self.known.get(hash) {
            return match (&known.state, known.lockfile.clone()) {
                (State::Making, _) => State::Making,
                (State::Ready(_), _) if is_whole => known.state.clone(),
                (State::Ready(_), None) => self.on_disk(hash),
                (State::Failed(_), None) => match self.on_disk(hash) {
                    State::Failed(_) => known.after_failure(BootTime::now()),
                    found => found,
                },
                (_, Some(lockfile)) => self.make(hash, lockfile),
            };
        }
        if hash == self.default_hash {
            return self.make(hash, self.default_lockfile.clone());
        }
        self.on_disk(hash)
    }

    fn on_disk(&self, hash: &str) -> State {
        let found = environment::find(&self.home, hash);
        if found.is_some()
            && let Err(error) = environment::check_owners(&self.home, hash)
        {
            return State::Failed(Failure::new(error.cause(), error.to_string()));
        }
        match found {
            Some(interpreter) => State::Ready(Environment {
                interpreter,
                cached: true,
                preload: Vec::new(),
            }),
            None => State::Failed(Failure::new(
                Cause::Environment,
                format!("environment {hash} is not on this worker and no PREPARE_ENV came for it"),
            )),
        }
    }

    /// Environments that were ready and are missing or broken since the last poll (none), or that exist again.
    /// Other programs of the host also evict and create environments.
    pub(super) fn changed(&mut self, now: BootTime) -> Vec<(String, Option<Environment>)> {
        if self.poll_at.is_some_and(|at| now < at) {
            return Vec::new();
        }
        self.poll_at = Some(now + limits::ENVIRONMENTS_POLL_INTERVAL);
        let mut changed = Vec::new();
        for (hash, known) in &mut self.known {
            if !matches!(known.state, State::Ready(_)) {
                continue;
            }
            let is_whole = known.is_whole();
            if let State::Ready(environment) = &known.state
                && is_whole == known.is_missing
            {
                let there = known.is_missing.then(|| environment.clone());
                known.is_missing = !known.is_missing;
                changed.push((hash.clone(), there));
            }
        }
        changed
    }

    /// True while an environment is being created.
    pub(super) fn is_making(&self, hash: &str) -> bool {
        let known = self.known.get(hash);
        known.is_some_and(|known| matches!(known.state, State::Making))
    }

    /// Environments whose creation takes longer than `ENVIRONMENT_SLOW`.
    pub(super) fn slow(&self, now: BootTime) -> impl Iterator<Item = &str> {
        let is_slow = move |known: &Known| {
            matches!(known.state, State::Making) && known.begun_at + limits::ENVIRONMENT_SLOW <= now
        };
        let slow = self.known.iter().filter(move |(_, known)| is_slow(known));
        slow.map(|(hash, _)| hash.as_str())
    }

    /// The process of another program for which the creation of an environment waits.
    pub(super) fn waits_for(&self, hash: &str) -> Option<String> {
        environment::waits_for(&self.home, hash)
    }

    /// Until when the creation of a failed environment is not repeated.
    pub(super) fn paused_until(&self, hash: &str) -> Option<BootTime> {
        let known = self.known.get(hash)?;
        matches!(known.state, State::Failed(_)).then_some(known.retry_at)
    }

    /// Creates the environment of a lockfile, unless it exists or is being created.
    pub(super) fn prepare(&mut self, hash: &str, lockfile: &str) -> State {
        self.default_is_named |= hash == self.default_hash;
        self.make(hash, lockfile.into())
    }

    fn make(&mut self, hash: &str, lockfile: Arc<str>) -> State {
        let now = BootTime::now();
        let failures = match self.known.get_mut(hash) {
            Some(known) => {
                known.lockfile.get_or_insert_with(|| lockfile.clone());
                let is_whole = known.is_whole();
                match &known.state {
                    State::Ready(_) if !is_whole => 0,
                    State::Failed(_) if known.retry_at <= now => known.failures,
                    _ => return known.after_failure(now),
                }
            }
            None => 0,
        };
        self.make_room(hash, lockfile.len());
        let state = match self.threads < limits::ENVIRONMENTS_MADE_AT_ONCE {
            true => self.start(hash, lockfile.clone(), false),
            false => {
                self.queue.push_back((hash.to_owned(), lockfile.clone()));
                State::Making
            }
        };
        let known = Known {
            state: state.clone(),
            lockfile: Some(lockfile),
            failures,
            retry_at: now,
            begun_at: now,
            is_missing: false,
            signs: None,
            test_at: Some(now),
            is_tested: false,
        };
        self.known.insert(hash.to_owned(), known);
        state
    }

    /// Removes entries that are not being created if there are too many, and the lockfiles of other entries
    /// if they are too large together.
    fn make_room(&mut self, hash: &str, size: usize) {
        if self.known.len() >= limits::WORKER_ENVIRONMENTS_MAX {
            self.known
                .retain(|_, known| matches!(known.state, State::Making));
        }
        let kept = |known: &Known| known.lockfile.as_ref().map_or(0, |lockfile| lockfile.len());
        let sum: usize = self.known.values().map(kept).sum();
        if sum.saturating_add(size) > limits::LOCKFILES_KEPT_SIZE_MAX {
            for (other, known) in &mut self.known {
                if other != hash {
                    known.lockfile = None;
                }
            }
        }
    }

    /// A job has failed because of its environment. Lets a thread test whether the environment's Python imports
    /// pyarrow, and create it again if not. Returns false if the failure stands: the environment was tested, or its
    /// lockfile is not known. Plugins can cause such failures, too, and a test that succeeds is not repeated.
    pub(super) fn test(&mut self, hash: &str, now: BootTime) -> bool {
        let is_free = self.threads < limits::ENVIRONMENTS_MADE_AT_ONCE;
        let Some(known) = self.known.get_mut(hash) else {
            return false;
        };
        match (&known.state, &known.lockfile) {
            (State::Making, _) => known.is_tested,
            (State::Ready(_), Some(lockfile))
                if is_free && known.test_at.is_some_and(|at| at <= now) =>
            {
                log::warn!("environment {hash}: testing whether its Python can import pyarrow");
                let lockfile = lockfile.clone();
                known.test_at = None;
                known.is_tested = true;
                known.begun_at = now;
                let state = self.start(hash, lockfile, true);
                if let Some(known) = self.known.get_mut(hash) {
                    known.state = state;
                }
                true
            }
            _ => false,
        }
    }

    /// The failure of a job. If its environment may be the reason, that is tested, and the job is tried again,
    /// uncounted. If it was tested, the failure names the environment, and what to do.
    pub(super) fn judged(&mut self, failure: Failure, hash: &str, now: BootTime) -> Failure {
        if failure.cause != Cause::Environment || failure.is_uncounted {
            return failure;
        }
        let known = self.known.get(hash);
        if known.is_some_and(|known| matches!(known.state, State::Failed(_))) {
            return failure;
        }
        let is_tested = self.test(hash, now);
        let folder = environment::folder(&self.home).join(hash);
        let folder = folder.display();
        let note = match is_tested {
            true => format!("the environment {folder} is tested now"),
            false => format!(
                "the environment is {folder}; if it is broken, remove that folder, or by `casparian env prune` all \
                 that are not in use, and it is made again"
            ),
        };
        let (first, rest) = match failure.message.split_once('\n') {
            Some((first, rest)) => (first, format!("\n{rest}")),
            None => (failure.message.as_str(), String::new()),
        };
        Failure {
            is_uncounted: is_tested,
            message: format!("{first} ({note}){rest}"),
            ..failure
        }
    }

    /// Environments that this worker has locked and that are being created or tested.
    pub(super) fn replaced(&self) -> Vec<String> {
        let held = self.held.keys().filter(|hash| self.is_making(hash));
        held.cloned().collect()
    }

    /// Releases the lock of an environment in which nothing runs.
    pub(super) fn unlock(&mut self, hash: &str) {
        self.held.remove(hash);
    }

    fn start(&mut self, hash: &str, lockfile: Arc<str>, tests: bool) -> State {
        let (home, cancel) = (self.home.clone(), self.cancel.clone());
        let (events, waker) = (self.events.clone(), self.waker.clone());
        let (cache_max, build) = (self.cache_max, self.build.clone());
        let hash = hash.to_owned();
        let started = thread::start("provision", move || {
            let made = make_and_lock(&home, &lockfile, &hash, &build, tests, &cancel);
            let (result, lock) = match made {
                Ok((environment, lock)) => (Ok(environment), lock),
                Err(failure) => (Err(failure), None),
            };
            let is_new = result.as_ref().is_ok_and(|made| !made.cached);
            let event = ThreadEvent::Environment { hash, result, lock };
            // The receiver is dropped only when the worker stops.
            if events.send(event).is_ok()
                && let Err(error) = waker.wake()
            {
                log::error!("cannot wake the worker: {error}");
            }
            if is_new {
                evict(&home, cache_max, &cancel);
            }
        });
        match started {
            Ok(_) => {
                self.threads += 1;
                State::Making
            }
            Err(error) => State::Failed(Failure::new(Cause::Worker, error.to_string())),
        }
    }

    /// Evicts environments until the cache is within its limit, on a thread.
    pub(super) fn evict(&self) {
        let (home, cancel, cache_max) = (self.home.clone(), self.cancel.clone(), self.cache_max);
        let started = thread::start("evict", move || evict(&home, cache_max, &cancel));
        if let Err(error) = started {
            log::warn!("{error}");
        }
    }

    /// A thread has ended that created an environment.
    pub(super) fn handle_made(
        &mut self,
        hash: &str,
        result: Result<Environment, Failure>,
        lock: Option<InUse>,
        now: BootTime,
    ) {
        if let Some(lock) = lock {
            self.keep(hash, lock, now);
        }
        self.threads = self.threads.saturating_sub(1);
        if let Some((next, lockfile)) = self.queue.pop_front() {
            let state = self.start(&next, lockfile, false);
            if let Some(known) = self.known.get_mut(&next) {
                known.state = state;
            }
        }
        let Some(known) = self.known.get_mut(hash) else {
            return;
        };
        match result {
            Ok(environment) => {
                known.failures = 0;
                known.is_missing = false;
                known.signs = signs_of(&environment);
                if std::mem::take(&mut known.is_tested) && !environment.cached {
                    known.test_at = Some(now + limits::ENVIRONMENT_CHECK_PAUSE);
                }
                known.state = State::Ready(environment);
            }
            Err(failure) => {
                known.retry_at = now + pause_after(known.failures);
                known.failures = known.failures.saturating_add(1);
                known.state = State::Failed(failure);
            }
        }
    }

    /// Cancels the creation of environments.
    pub(super) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}

/// The signs that an environment is whole, if it has them.
fn signs_of(environment: &Environment) -> Option<Signs> {
    let folder = environment.interpreter.parent()?.parent()?;
    Signs::of(folder).ok()
}

/// The pause after a failure, by the number of failures before it.
pub(super) fn pause_after(failures: u32) -> Duration {
    limits::ENVIRONMENT_RETRY_AFTER
        .saturating_mul(1 << failures.min(16))
        .min(limits::ENVIRONMENT_RETRY_AFTER_MAX)
}

/// Creates an environment and locks it. `tests` = also if it exists and cannot import pyarrow. If another program evicts it in between, it is created again.
fn make_and_lock(
    home: &Path,
    lockfile: &str,
    hash: &str,
    build: &Build,
    tests: bool,
    cancel: &AtomicBool,
) -> Result<(Environment, Option<InUse>), Failure> {
    loop {
        let environment = try_to_make(home, lockfile, hash, build, tests, cancel)?;
        match InUse::take(home, hash) {
            Taken::Held(lock) => return Ok((environment, Some(lock))),
            Taken::Unlockable => return Ok((environment, None)),
            Taken::Busy | Taken::Missing if cancel.load(Ordering::Relaxed) => {
                let reason = "interrupted".to_owned();
                return Err(Failure::new(Cause::Worker, reason));
            }
            Taken::Busy | Taken::Missing => environment::sleep(limits::EVICTION_PAUSE, cancel),
        }
    }
}

/// Evicts the least recently used environments if the cache is too large.
fn evict(home: &Path, cache_max: u64, cancel: &AtomicBool) {
    if cache_max == 0 {
        return;
    }
    match cache::evict(home, cache_max, cancel) {
        Ok(evicted) => {
            for one in evicted {
                let hash = &one.hash;
                log::info!("environment {hash}: evicted, it was not used for longest");
            }
        }
        Err(error) => log::warn!("environments that are not used stay: {error}"),
    }
}

/// Creates an environment, in several attempts: a temporary failure (a registry that does not respond, a full
/// disk) should not fail every job that waits.
fn try_to_make(
    home: &Path,
    lockfile: &str,
    hash: &str,
    build: &Build,
    tests: bool,
    cancel: &AtomicBool,
) -> Result<Environment, Failure> {
    let mut pause = limits::PROVISION_PAUSE;
    let mut attempt = 1;
    loop {
        let mut message = |line: &str| log::info!("{line}");
        let result = match tests {
            true => verify(home, lockfile, build, cancel, &mut message),
            false => provision(home, lockfile, Some(hash), build, cancel, &mut message),
        };
        let error = match result {
            Ok(environment) => return Ok(environment),
            Err(error) => error,
        };
        if !error.may_pass() || attempt >= limits::PROVISION_ATTEMPTS {
            return Err(Failure::new(error.cause(), error.to_string()));
        }
        log::warn!("environment {hash}, try {attempt}: {error}");
        environment::sleep(pause, cancel);
        attempt += 1;
        pause *= 2;
    }
}

#[cfg(test)]
mod tests;
