//! A minimal sentinel: it dispatches jobs to one worker and keeps their receipts as they come,
//! so tests see a worker's messages and not their effect.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use casparian::job::Receipt;
use casparian::protocol::{Dispatch, Payload, PrepareEnv, SinkConfig, View};
use casparian::socket::{Options, Router};

use crate::common::*;

pub(crate) struct Dispatcher {
    router: Router,
    pub(crate) endpoint: String,
    worker: Option<Vec<u8>>,
    receipts: BTreeMap<u64, Receipt>,
    next_job: u64,
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
            next_job: 1,
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
                Payload::Identify(_) => self.worker = Some(id.to_vec()),
                Payload::Conclude(receipt) => {
                    self.receipts.insert(job_id, receipt);
                }
                _ => {}
            }
        }
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
        let dispatch = Dispatch {
            plugin_name: "plugin".into(),
            file_path: input.into(),
            sinks: vec![SinkConfig {
                topic: "output".to_owned(),
                uri: "parquet://o.parquet".to_owned(),
                mode: "append".to_owned(),
                schema_def: None,
            }],
            env_hash: env_hash.into(),
            source_code: source.into(),
            ..Dispatch::default()
        };
        self.send(job_id, &Payload::Dispatch(Box::new(dispatch)));
    }

    /// The receipt of a job, once it has come.
    pub(crate) fn receipt(&mut self, job_id: u64) -> Receipt {
        let what = format!("job {job_id} ends");
        self.receive_until(&what, |this| this.receipts.get(&job_id).cloned())
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
