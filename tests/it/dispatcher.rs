//! A minimal sentinel: it dispatches jobs to one worker and keeps their receipts as they come,
//! so tests see a worker's messages and not their effect.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use casparian::job::{Attempt, Receipt};
use casparian::protocol::{Answer, Dispatch, Heartbeat, Payload, PrepareEnv, SinkConfig, View};
use casparian::socket::{Options, Router};

use crate::common::*;

/// Longer than any test.
const LEASE_MS: u64 = 3_600_000;

pub(crate) struct Dispatcher {
    router: Router,
    pub(crate) endpoint: String,
    worker: Option<Vec<u8>>,
    receipts: BTreeMap<u64, Receipt>,
    /// Environments that the worker last wanted no jobs of, and why.
    pub(crate) avoided: BTreeMap<String, String>,
    /// Attempts that last waited for their environments.
    pub(crate) waiting: Vec<Attempt>,
    next_job: u64,
    /// Dispatches attempts with leases, which may be given back.
    pub(crate) gives_leases: bool,
    next_attempt: i64,
    last_attempts: BTreeMap<u64, i64>,
    last_request: Option<u64>,
}

impl Dispatcher {
    pub(crate) fn new() -> Self {
        let mut router = Router::new(Options::new()).unwrap();
        let endpoint = router.bind("tcp://127.0.0.1:0").unwrap().to_string();
        Dispatcher {
            router,
            endpoint,
            worker: None,
            receipts: BTreeMap::new(),
            avoided: BTreeMap::new(),
            waiting: Vec::new(),
            next_job: 1,
            gives_leases: false,
            next_attempt: 1,
            last_attempts: BTreeMap::new(),
            last_request: None,
        }
    }

    /// Takes messages until `done` gives a value.
    fn receive_until<T>(&mut self, what: &str, mut done: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(value) = done(self) {
                return value;
            }
            assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
            let wait = Some(Duration::from_millis(20));
            let Some((id, message)) = self.router.receive(wait).unwrap() else {
                continue;
            };
            let view = View::decode(message.iter()).unwrap();
            let job_id = view.header.job_id;
            match Payload::decode(&view).unwrap() {
                Payload::Identify(identify) => {
                    self.worker = Some(id.to_vec());
                    let (request, running) = (identify.sequence, identify.running);
                    self.answer(request, running, Vec::new());
                }
                Payload::Heartbeat(heartbeat) => {
                    self.avoided = heartbeat.environments;
                    self.waiting = heartbeat.waiting;
                    self.answer(heartbeat.sequence, heartbeat.running, Vec::new());
                }
                Payload::Conclude(receipt) => {
                    let job_id_signed = i64::try_from(job_id).unwrap();
                    let number = receipt.attempt;
                    let attempt = number.map(|number| Attempt::new(job_id_signed, number));
                    self.receipts.insert(job_id, receipt);
                    self.answer(self.last_request, None, attempt.into_iter().collect());
                }
                _ => {}
            }
        }
    }

    /// Renews the leases of what the worker has, where leases are given.
    fn answer(
        &mut self,
        request: Option<u64>,
        running: Option<Vec<Attempt>>,
        acknowledged: Vec<Attempt>,
    ) {
        self.last_request = request;
        let Some(sequence) = request.filter(|_| self.gives_leases) else {
            return;
        };
        let answer = Answer {
            sequence,
            lease_ms: LEASE_MS,
            leases: running.unwrap_or_default(),
            acknowledged,
            ..Answer::default()
        };
        let heartbeat = Heartbeat {
            answer: Some(answer),
            ..Heartbeat::default()
        };
        self.send(0, &Payload::Heartbeat(heartbeat));
    }

    pub(crate) fn send(&mut self, job_id: u64, payload: &Payload<'_>) {
        let worker = self.receive_until("the worker connects", |this| this.worker.clone());
        let (header, body) = payload.encode(job_id).unwrap();
        self.router.send(&worker, &[&header, &body]).unwrap();
        self.router.flush().unwrap();
    }

    pub(crate) fn prepare(&mut self, env_hash: &str, lockfile: &str) {
        let payload = Payload::PrepareEnv(PrepareEnv {
            env_hash: env_hash.into(),
            lockfile_content: lockfile.into(),
            python_version: None,
        });
        self.send(0, &payload);
    }

    /// Dispatches a new job; gives its ID.
    pub(crate) fn dispatch(&mut self, source: &str, input: &str, env_hash: &str) -> u64 {
        let job_id = self.next_job;
        self.next_job += 1;
        self.dispatch_as(job_id, source, input, env_hash);
        job_id
    }

    /// Dispatches a job under an ID; an earlier receipt of it is forgotten.
    pub(crate) fn dispatch_as(&mut self, job_id: u64, source: &str, input: &str, env_hash: &str) {
        self.receipts.remove(&job_id);
        self.receive_until("the worker connects", |this| this.worker.clone());
        let mut lease = None;
        if self.gives_leases {
            lease = Some(self.next_attempt);
            self.last_attempts.insert(job_id, self.next_attempt);
            self.next_attempt += 1;
        }
        let dispatch = Dispatch {
            plugin_name: "plugin".into(),
            file_path: input.into(),
            sinks: vec![SinkConfig {
                topic: "output".to_owned(),
                uri: "parquet://o.parquet".to_owned(),
                mode: "append".to_owned(),
                schema_def: None,
                default: false,
            }],
            env_hash: env_hash.into(),
            source_code: source.into(),
            attempt: lease,
            lease_ms: lease.map(|_| LEASE_MS),
            lease_of: lease.and(self.last_request),
            ..Dispatch::default()
        };
        self.send(job_id, &Payload::Dispatch(Box::new(dispatch)));
    }

    /// The receipt of the last attempt of a job, once it has come.
    pub(crate) fn receipt(&mut self, job_id: u64) -> Receipt {
        let what = format!("job {job_id} ends");
        let last = self.last_attempts.get(&job_id).copied();
        self.receive_until(&what, |this| {
            let receipt = this.receipts.get(&job_id);
            receipt.filter(|found| found.attempt == last).cloned()
        })
    }

    /// The same if it comes within a moment.
    pub(crate) fn try_receipt(&mut self, job_id: u64) -> Option<Receipt> {
        let deadline = Instant::now() + Duration::from_millis(50);
        let last = self.last_attempts.get(&job_id).copied();
        self.receive_until("a moment passes", |this| {
            let receipt = this.receipts.get(&job_id);
            let receipt = receipt.filter(|found| found.attempt == last).cloned();
            (receipt.is_some() || Instant::now() >= deadline).then_some(receipt)
        })
    }

    /// Why the worker wants no jobs of an environment, once it has said it.
    pub(crate) fn avoided(&mut self, env_hash: &str) -> String {
        self.receive_until("the environment is avoided", |this| {
            this.avoided.get(env_hash).cloned()
        })
    }

    /// Waits until the worker says that it wants no jobs of an environment for a reason with these words.
    pub(crate) fn avoided_for(&mut self, env_hash: &str, words: &str) {
        self.receive_until(&format!("{env_hash:?} is avoided: {words}"), |this| {
            let reason = this.avoided.get(env_hash)?;
            reason.contains(words).then_some(())
        });
    }
}

/// A dispatcher, a worker of it, and a folder with an input.
pub(crate) struct Rig {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) worker: Background,
}

impl Rig {
    pub(crate) fn new(arguments: &[&str]) -> Self {
        Rig::with(arguments, |_, _| {})
    }

    /// `change` sets up the worker's command, given the folder.
    pub(crate) fn with(
        arguments: &[&str],
        change: impl FnOnce(&mut std::process::Command, &Path),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("in"), "x").unwrap();
        let dispatcher = Dispatcher::new();
        let mut command = program("casparian-worker");
        command
            .args(["--connect", &dispatcher.endpoint, "--output"])
            .arg(dir.path().join("out"))
            .args(arguments);
        change(&mut command, dir.path());
        let worker = Background::start(&mut command);
        Rig {
            dir,
            dispatcher,
            worker,
        }
    }

    /// A path in the rig's folder.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Dispatches a plugin whose `execute` has this body, over the rig's input.
    pub(crate) fn start(&mut self, body: &str) -> u64 {
        let input = self.path("in");
        self.dispatcher.dispatch(&handler(body), &input, "")
    }

    /// Runs such a plugin to its end.
    pub(crate) fn run(&mut self, body: &str) -> Receipt {
        let job = self.start(body);
        self.dispatcher.receipt(job)
    }
}

/// A plugin whose `execute(path)` has this body.
pub(crate) fn handler(body: &str) -> String {
    let body = body.replace('\n', "\n        ");
    format!(
        "import ctypes, os, signal, threading, time\nimport pyarrow as pa\nclass Handler:\n    def configure(self, ctx, config):\n        self.bridge = ctx._bridge\n    def execute(self, path):\n        {body}\n"
    )
}

/// The first line of the reason of a failure.
pub(crate) fn first_line(receipt: &Receipt) -> &str {
    let text = receipt.error_message.as_deref().unwrap_or("");
    text.lines().next().unwrap_or("")
}
