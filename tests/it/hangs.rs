//! Storage that does not respond: jobs end in bounded time, the worker reports trouble and heals.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use casparian::worker::{Options, Worker};

use crate::common::*;
use crate::faults::Faults;

/// Longer than any test.
const FOR_EVER_MS: i64 = 3_600_000;

const PLUGIN: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";

/// A database with a plugin, inputs for its jobs, and an output folder.
struct Scene {
    dir: tempfile::TempDir,
    database: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "plug", PLUGIN);
        database_with(dir.path(), "other", PLUGIN);
        Scene { dir, database }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn submit(&self, name: &str) -> i64 {
        let input = self.path(name);
        std::fs::write(&input, name).unwrap();
        submit(&self.database, "plug", &[input])[0]
    }

    /// The job, once its row contains all the words.
    fn job_with(&self, id: i64, words: &[&str]) -> serde_json::Value {
        until(&format!("job {id} has {words:?}"), || {
            let job = job(&self.database, id);
            let text = job.to_string();
            words.iter().all(|word| text.contains(word)).then_some(job)
        })
    }

    fn workers(&self) -> String {
        casparian_ok(&["workers", "-d", self.database.to_str().unwrap()])
    }
}

fn mkfifo(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_fifo_where_a_record_should_be_fails_the_job_at_once() {
    let scene = Scene::new();
    let out = scene.path("out");
    let identity = sql(
        &scene.database,
        "SELECT value FROM cf_casparian WHERE key = 'database'",
    );
    let fifo = out.join(format!(".casparian/outputs/{identity}/0/1"));
    mkfifo(&fifo);
    let (_sentinel, endpoint) = sentinel(&scene.database, &["--retries", "0"]);
    let _worker = worker(&endpoint, &out, &[]);
    let failed = ended(&scene.database, scene.submit("a"));
    assert_eq!(failed["status"], "FAILED", "{failed}");
    assert_eq!(failed["cause"], "operator", "{failed}");
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains("not a regular file"), "{error}");
    let name = fifo.file_name().unwrap().to_str().unwrap();
    assert!(error.contains(&format!("{identity}/0/{name}")), "{error}");
    // The others go on.
    let other = ended(&scene.database, scene.submit("b"));
    assert_eq!(other["status"], "COMPLETED", "{other}");
}

/// The renames below the staging folder hang: no writer gets a folder for its job.
#[test]
fn a_hanging_output_folder_costs_bounded_time_and_heals() {
    let scene = Scene::new();
    let out = scene.path("out");
    let (_sentinel, endpoint) = sentinel(&scene.database, &[]);
    std::fs::create_dir_all(&out).unwrap();
    let root = out.canonicalize().unwrap();
    let faults = Faults::new(&scene.path("faults"), &root.join(".casparian/staging"));
    let start = || {
        let mut command = program("casparian-worker");
        command
            .args(["--connect", &endpoint, "--slots", "2", "--output"])
            .arg(&out)
            .args(["--job-timeout", "1"]);
        faults.load(&mut command);
        let mut worker = Background::start(&mut command);
        worker.line_with("connected to the sentinel");
        worker
    };
    let mut first = start();
    faults.delay(FOR_EVER_MS);
    let hung = scene.submit("a");
    let reason = format!("the output folder {} does not respond", root.display());
    let pending = scene.job_with(hung, &[&reason]);
    assert_eq!(pending["status"], "PENDING", "{pending}");
    assert_eq!(pending["cause"], "worker", "{pending}");
    until("the worker reports its trouble", || {
        scene.workers().contains(&reason).then_some(())
    });
    // It takes no jobs, heals when the storage responds, and goes on.
    let next = scene.submit("b");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(job(&scene.database, next)["status"], "QUEUED");
    faults.heal_disk();
    first.line_with("has ended");
    first.line_with("works again");
    for id in [next, hung] {
        let done = ended(&scene.database, id);
        assert_eq!(done["status"], "COMPLETED", "{done}");
    }
    // With a writer that hangs it still stops.
    faults.delay(FOR_EVER_MS);
    let last = scene.submit("c");
    scene.job_with(last, &["RUNNING"]);
    first.signal("-TERM");
    assert_eq!(first.wait(), Some(0));
    faults.heal_disk();
    let _second = start();
    let done = ended(&scene.database, last);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert_eq!(visible_files(&out).len(), 3);
}

/// Variables of [`a_worker_with_a_short_time_out`].
const ENDPOINT: &str = "CASPARIAN_TEST_ENDPOINT";
const OUT: &str = "CASPARIAN_TEST_OUT";

/// The worker of the test below, which runs this in a process of its own: the program has no option
/// for the time-out, and the faults need a process.
#[test]
#[ignore = "the worker of another test"]
fn a_worker_with_a_short_time_out() {
    let (Some(endpoint), Some(out)) = (std::env::var(ENDPOINT).ok(), std::env::var_os(OUT)) else {
        return;
    };
    let mut options = Options::new(endpoint.parse().unwrap(), out.into());
    options.publish_timeout = Duration::from_secs(8);
    options.home = home().join(".casparian_flow");
    options.slots = 2;
    Worker::open(options).unwrap().run().unwrap();
}

/// The rename of a job's record hangs, with the transaction in the sink's database open: a publish
/// that was ordered does not end.
#[test]
fn a_publish_that_hangs_counts_as_lost_and_is_tried_again() {
    let scene = Scene::new();
    let out = scene.path("out");
    std::fs::create_dir_all(&out).unwrap();
    let root = out.canonicalize().unwrap();
    let (_sentinel, endpoint) = sentinel(&scene.database, &[]);
    sql(
        &scene.database,
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) VALUES \
         ('plug', 'output', 'sqlite://x.db/rows', 'replace')",
    );
    let identity = sql(
        &scene.database,
        "SELECT value FROM cf_casparian WHERE key = 'database'",
    );
    let record = root.join(format!(".casparian/outputs/{identity}/0/2"));
    let faults = Faults::new(&scene.path("faults"), &record);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "hangs::a_worker_with_a_short_time_out"])
        .args(["--ignored", "--nocapture"])
        .env("HOME", home())
        .env(ENDPOINT, &endpoint)
        .env(OUT, &out);
    faults.load(&mut command);
    let mut worker = Background::start(&mut command);
    let first = ended(&scene.database, scene.submit("a"));
    assert_eq!(first["status"], "COMPLETED", "{first}");
    faults.delay(FOR_EVER_MS);
    let hung = scene.submit("b");
    assert_eq!(hung, 2, "the record of another job hangs");
    // In the other slot jobs go on.
    scene.job_with(hung, &["RUNNING"]);
    let input = scene.path("c");
    std::fs::write(&input, "c").unwrap();
    let other = submit(&scene.database, "other", &[input])[0];
    let done = ended(&scene.database, other);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert_eq!(job(&scene.database, hung)["status"], "RUNNING");
    let queued = scene.job_with(hung, &["does not respond", "QUEUED"]);
    assert_eq!(queued["cause"], "lost", "{queued}");
    assert_eq!(queued["retries"], 1, "{queued}");
    // The storage responds again.
    faults.heal_disk();
    let done = ended(&scene.database, hung);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert_eq!(done["attempt"], 2);
    let count = "SELECT count(*) || ' of ' || max(_job_id) FROM rows";
    assert_eq!(sql(&root.join("x.db"), count), format!("1 of {hung}"));
    worker.signal("-TERM");
    assert_eq!(worker.wait(), Some(0), "{:?}", worker.seen);
}
