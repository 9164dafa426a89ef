//! The environments a worker knows, and their warm interpreters.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Instant;

use mio::Interest;
use mio::unix::SourceFd;

use super::event::ThreadEvent;
use crate::guest::environment::{self, Environment, provision};
use crate::guest::warm::Warm;
use crate::limits;
use crate::reactor::token;

/// Where an environment stands.
#[derive(Clone, Debug)]
pub(super) enum State {
    Making,
    Ready(Environment),
    Failed { message: String, at: Instant },
}

pub(super) struct Environments {
    home: PathBuf,
    states: HashMap<String, State>,
    /// The environment of jobs that name none.
    default_lockfile: String,
    default_hash: String,
    cancel: Arc<AtomicBool>,
    events: Sender<ThreadEvent>,
    waker: Arc<mio::Waker>,
    /// Warm interpreters by place; a place's number is its token's.
    warm: Vec<Option<(String, Warm)>>,
}

impl Environments {
    pub(super) fn new(home: PathBuf, events: Sender<ThreadEvent>, waker: Arc<mio::Waker>) -> Self {
        let default_lockfile = environment::requirements_lockfile(&[], None, &[]);
        Environments {
            home,
            states: HashMap::new(),
            default_hash: environment::hash(&default_lockfile),
            default_lockfile,
            cancel: Arc::default(),
            events,
            waker,
            warm: Vec::new(),
        }
    }

    /// The hash under which a job's environment is kept.
    pub(super) fn key(&self, env_hash: &str) -> String {
        match env_hash {
            "" => self.default_hash.clone(),
            hash => hash.to_owned(),
        }
    }

    /// The state of an environment. One that nobody asked for is looked for on disk, and the
    /// default one is made.
    pub(super) fn state(&mut self, hash: &str) -> State {
        if let Some(state) = self.states.get(hash) {
            return state.clone();
        }
        if hash == self.default_hash {
            let lockfile = self.default_lockfile.clone();
            return self.prepare(hash, &lockfile);
        }
        match environment::find(&self.home, hash) {
            Some(interpreter) => State::Ready(Environment {
                interpreter,
                cached: true,
                preload: Vec::new(),
            }),
            None => State::Failed {
                message: format!(
                    "environment {hash} is not on this worker and no PREPARE_ENV came for it"
                ),
                at: Instant::now(),
            },
        }
    }

    /// Makes the environment of a lockfile unless it is there or being made.
    pub(super) fn prepare(&mut self, hash: &str, lockfile: &str) -> State {
        match self.states.get(hash) {
            Some(State::Failed { at, .. }) if at.elapsed() >= limits::ENVIRONMENT_RETRY_AFTER => {}
            Some(state) => return state.clone(),
            None => {}
        }
        if self.states.len() >= limits::WORKER_ENVIRONMENTS_MAX {
            self.states
                .retain(|_, state| matches!(state, State::Making));
        }
        let (home, cancel) = (self.home.clone(), self.cancel.clone());
        let (events, waker) = (self.events.clone(), self.waker.clone());
        let (key, lockfile) = (hash.to_owned(), lockfile.to_owned());
        let thread = std::thread::Builder::new()
            .name("provision".to_owned())
            .spawn(move || {
                let result = provision(&home, &lockfile, Some(&key), &cancel, &mut |line| {
                    log::info!("{line}");
                });
                let result = result.map_err(|error| error.to_string());
                // The loop is gone only when the whole worker stops.
                if events
                    .send(ThreadEvent::Environment { hash: key, result })
                    .is_ok()
                    && let Err(error) = waker.wake()
                {
                    log::error!("cannot wake the worker: {error}");
                }
            });
        let state = match thread {
            Ok(_) => State::Making,
            Err(error) => State::Failed {
                message: format!("cannot start a thread: {error}"),
                at: Instant::now(),
            },
        };
        self.states.insert(hash.to_owned(), state.clone());
        state
    }

    /// A thread has ended.
    pub(super) fn handle_made(&mut self, hash: &str, result: Result<Environment, String>) {
        let state = match result {
            Ok(environment) => State::Ready(environment),
            Err(message) => State::Failed {
                message,
                at: Instant::now(),
            },
        };
        self.states.insert(hash.to_owned(), state);
    }

    /// The warm interpreter of an environment, started when there is none; the least recently
    /// made one goes when there are too many and it is idle.
    pub(super) fn warm(
        &mut self,
        hash: &str,
        environment: &Environment,
        shim: &std::path::Path,
        registry: &mio::Registry,
        owner: u8,
        in_use: &dyn Fn(usize) -> bool,
    ) -> Result<usize, String> {
        let found = self
            .warm
            .iter()
            .position(|warm| warm.as_ref().is_some_and(|(key, _)| key == hash));
        if let Some(place) = found {
            return Ok(place);
        }
        let live = self.warm.iter().flatten().count();
        if live >= limits::WARM_INTERPRETERS_MAX
            && let Some(place) =
                (0..self.warm.len()).find(|place| self.has(*place) && !in_use(*place))
        {
            self.drop_warm(place, registry);
        }
        let place = match self.warm.iter().position(Option::is_none) {
            Some(place) => place,
            None => {
                self.warm.push(None);
                self.warm.len() - 1
            }
        };
        let warm = Warm::start(&environment.interpreter, shim, &environment.preload)
            .map_err(|error| error.to_string())?;
        registry
            .register(
                &mut SourceFd(&warm.raw_fd()),
                token::new(owner, place),
                Interest::READABLE,
            )
            .map_err(|error| error.to_string())?;
        if let Some(slot) = self.warm.get_mut(place) {
            *slot = Some((hash.to_owned(), warm));
        }
        Ok(place)
    }

    fn has(&self, place: usize) -> bool {
        self.warm.get(place).is_some_and(Option::is_some)
    }

    pub(super) fn warm_at(&mut self, place: usize) -> Option<&mut Warm> {
        self.warm.get_mut(place)?.as_mut().map(|(_, warm)| warm)
    }

    /// Kills a warm interpreter; its children die with it.
    pub(super) fn drop_warm(&mut self, place: usize, registry: &mio::Registry) {
        if let Some((_, warm)) = self.warm.get_mut(place).and_then(Option::take)
            && let Err(error) = registry.deregister(&mut SourceFd(&warm.raw_fd()))
        {
            log::debug!("warm interpreter: {error}");
        }
    }

    /// Environments that are being made are given up.
    pub(super) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }
}
