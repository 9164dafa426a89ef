//! Plugins, inputs and jobs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::common::{casparian_ok, submit};

/// Every row carries the number in the input, and a token of the run that is printed too, so
/// that a file can be compared with the log of its receipt.
const HEAD: &str = r#"
import os, time
import pyarrow as pa

class Run:
    def begin(self, path):
        with open(path) as file:
            self.number = int(file.read())
        self.token = os.urandom(8).hex()
        print("token=" + self.token, flush=True)

    def table(self, rows):
        return pa.table({"input": [self.number] * rows, "token": [self.token] * rows})
"#;

/// A plugin and what its jobs must give.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    class: &'static str,
    /// Topics and rows of each.
    pub(crate) topics: &'static [&'static str],
    pub(crate) rows: u64,
    /// Of 16 jobs.
    share: usize,
    pub(crate) mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Append,
    Replace,
    Error,
    /// The plugin raises.
    Fails,
}

pub(crate) const PAIR: Kind = Kind {
    name: "pair",
    class: r#"
class Handler(Run):
    def configure(self, ctx, config):
        self.ctx = ctx
        self.topics = [ctx.register_topic(name) for name in ("left", "right")]

    def execute(self, path):
        self.begin(path)
        for topic in self.topics:
            self.ctx.publish(topic, self.table(100))
            time.sleep(0.02)
        for topic in self.topics:
            self.ctx.publish(topic, self.table(100))
"#,
    topics: &["left", "right"],
    rows: 200,
    share: 3,
    mode: Mode::Append,
};

pub(crate) const LATEST: Kind = Kind {
    name: "latest",
    class: r#"
class Handler(Run):
    def execute(self, path):
        self.begin(path)
        yield self.table(20)
        time.sleep(0.05)
"#,
    topics: &["output"],
    rows: 20,
    share: 2,
    mode: Mode::Replace,
};

/// Plugins without one of these names do not exist; the names are no prefixes of each other.
pub(crate) const KINDS: &[Kind] = &[
    Kind {
        name: "quick",
        class: r#"
class Handler(Run):
    def execute(self, path):
        self.begin(path)
        return self.table(10)
"#,
        topics: &["output"],
        rows: 10,
        share: 5,
        mode: Mode::Append,
    },
    Kind {
        name: "slow",
        class: r#"
class Handler(Run):
    def execute(self, path):
        self.begin(path)
        for batch in range(4):
            yield self.table(250)
            time.sleep(0.05 * (1 + self.number % 7))
"#,
        topics: &["output"],
        rows: 1000,
        share: 3,
        mode: Mode::Append,
    },
    PAIR,
    Kind {
        name: "fails",
        class: r#"
class Handler(Run):
    def execute(self, path):
        self.begin(path)
        yield self.table(100)
        time.sleep(0.05)
        raise ValueError("on purpose")
"#,
        topics: &[],
        rows: 0,
        share: 2,
        mode: Mode::Fails,
    },
    LATEST,
    Kind {
        name: "first",
        class: r#"
class Handler(Run):
    def execute(self, path):
        self.begin(path)
        time.sleep(0.1)
        yield self.table(20)
"#,
        topics: &["output"],
        rows: 20,
        share: 1,
        mode: Mode::Error,
    },
];

/// A database with plugins and jobs that are not queued yet.
pub(crate) struct Scene {
    pub(crate) database: PathBuf,
    /// Job → its kind and the number in its input.
    pub(crate) jobs: BTreeMap<i64, (Kind, i64)>,
}

impl Scene {
    pub(crate) fn new(dir: &Path, kinds: &[Kind], count: usize) -> Self {
        let database = dir.join("queue.sqlite");
        let location = database.to_str().unwrap();
        casparian_ok(&["init", location]);
        let mut jobs = BTreeMap::new();
        let shares: usize = kinds.iter().map(|kind| kind.share).sum();
        for kind in kinds {
            let source = dir.join(format!("{}.py", kind.name));
            std::fs::write(&source, format!("{HEAD}{}", kind.class)).unwrap();
            casparian_ok(&["deploy", source.to_str().unwrap(), "--database", location]);
            let inputs: Vec<PathBuf> = (0..(count * kind.share / shares).max(1))
                .map(|index| {
                    let number = jobs.len() + index;
                    // Padded: jobs are numbered in the order of the names.
                    let path = dir.join(format!("in{number:06}"));
                    std::fs::write(&path, number.to_string()).unwrap();
                    path
                })
                .collect();
            let from = jobs.len() as i64;
            let ids = submit(&database, kind.name, &inputs);
            jobs.extend(ids.into_iter().zip((from..).map(|number| (*kind, number))));
        }
        let store = Connection::open(&database).unwrap();
        store
            .execute_batch(
                "UPDATE cf_processing_queue SET status = 'PENDING';
                 INSERT OR IGNORE INTO cf_plugin_config (plugin_name) VALUES ('latest');
                 INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode)
                     VALUES ('latest', 'output', 'parquet://latest.parquet', 'replace');
                 UPDATE cf_processing_queue SET config_overrides =
                     '{\"output\": {\"uri\": \"parquet://first.parquet\", \"mode\": \"error\"}}'
                     WHERE plugin_name = 'first';",
            )
            .unwrap();
        Scene { database, jobs }
    }

    /// A connection that writes.
    pub(crate) fn connection(&self) -> Connection {
        let connection = Connection::open(&self.database).unwrap();
        connection.busy_timeout(Duration::from_millis(200)).unwrap();
        connection
    }
}

/// The kind of a visible file.
pub(crate) fn kind_of(path: &Path) -> Option<&'static Kind> {
    let name = path.file_name()?.to_str()?;
    KINDS.iter().find(|kind| name.starts_with(kind.name))
}

/// A row of the queue.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) status: String,
    pub(crate) worker: String,
    pub(crate) is_waiting: bool,
}

impl Row {
    pub(crate) fn is_active(&self) -> bool {
        match self.status.as_str() {
            "QUEUED" | "RUNNING" => true,
            "PENDING" => self.is_waiting,
            _ => false,
        }
    }
}

/// A connection that reads.
pub(crate) fn reading(database: &Path) -> Connection {
    let connection =
        Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
}

/// All rows; an error while the database is busy.
pub(crate) fn rows(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let mut statement = connection.prepare_cached(
        "SELECT id, status, coalesce(worker_id, ''), next_run IS NOT NULL FROM cf_processing_queue",
    )?;
    statement
        .query_map([], |row| {
            Ok(Row {
                id: row.get(0)?,
                status: row.get(1)?,
                worker: row.get(2)?,
                is_waiting: row.get(3)?,
            })
        })?
        .collect()
}
