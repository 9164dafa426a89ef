//! Small Python jobs end to end: queue, sentinel, worker, guest, Parquet, receipt.
//!
//! Each job runs a plugin that yields three rows. Printed: jobs per second from the first
//! receipt to the last, and the time before the first, for warm and for fresh interpreters.
//!
//! `cargo bench --bench jobs [-- JOBS]`; with `CASPARIAN_BENCH_SMOKE` set (or `--test`) a few
//! jobs only. Environments are made below `target/`, so the first run downloads pyarrow.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use casparian::guest::environment;
use casparian::reactor::Endpoint;
use casparian::sentinel::{self, Sentinel};
use casparian::store::{Deploy, Inspector, Open, Store};
use casparian::worker::{self, GuestStart, Worker};

const PLUGIN: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'id': [1, 2, 3], 'value': [10.5, 20.3, 30.1]})\n";

struct Figures {
    first_s: f64,
    jobs_per_s: f64,
}

fn queue(folder: &Path, jobs: usize) -> PathBuf {
    let database = folder.join("queue.sqlite");
    let mut store = Store::open(&database, Open::Create).expect("database");
    let mut turn = store.begin().expect("transaction");
    let deploy = Deploy {
        plugin_name: "small",
        version: None,
        source_code: PLUGIN,
        lockfile_content: "",
        sinks: &[],
    };
    turn.deploy(&deploy, 0).expect("deploy");
    std::fs::write(folder.join("input"), "").expect("input");
    let root = folder.to_str().expect("a path of text");
    let file = turn
        .register_file(root, "input", 0, 0.0, "0", 0)
        .expect("file");
    for _ in 0..jobs {
        turn.enqueue("small", file.version_id, 0, 0).expect("job");
    }
    turn.commit().expect("commit");
    database
}

fn measure(jobs: usize, start: GuestStart, slots: usize, home: &Path) -> Figures {
    let folder = tempfile::tempdir().expect("folder");
    let database = queue(folder.path(), jobs);
    let endpoint = Endpoint::Ipc(folder.path().join("s"));
    let mut options = sentinel::Options::new(endpoint.clone(), database.clone());
    options.signals = false;
    let sentinel = Sentinel::open(options).expect("sentinel");
    let mut options = worker::Options::new(endpoint, folder.path().join("out"));
    options.signals = false;
    options.guest_start = start;
    options.slots = slots;
    options.home = home.to_owned();
    let worker = Worker::open(options).expect("worker");
    let (stop_sentinel, stop_worker) = (sentinel.stopper(), worker.stopper());
    let began = Instant::now();
    let sentinel = std::thread::spawn(move || sentinel.run());
    let worker = std::thread::spawn(move || worker.run());
    let inspector = Inspector::open(&database).expect("database");
    let mut first: Option<(Instant, i64)> = None;
    let figures = loop {
        let counts = inspector.counts().expect("counts");
        let count = |status: &str| {
            counts
                .iter()
                .find(|(name, _)| name == status)
                .map_or(0, |(_, count)| *count)
        };
        assert_eq!(count("FAILED"), 0, "a job failed");
        let done = count("COMPLETED");
        let now = Instant::now();
        if done > 0 {
            let (first_at, first_done) = *first.get_or_insert((now, done));
            if done == jobs as i64 {
                break Figures {
                    first_s: (first_at - began).as_secs_f64(),
                    jobs_per_s: (done - first_done) as f64
                        / (now - first_at).as_secs_f64().max(1e-9),
                };
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    stop_worker.stop();
    stop_sentinel.stop();
    worker.join().expect("worker").expect("worker");
    sentinel.join().expect("sentinel").expect("sentinel");
    figures
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let smoke = std::env::var_os("CASPARIAN_BENCH_SMOKE").is_some()
        || arguments.iter().any(|argument| argument == "--test");
    let jobs = arguments
        .iter()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(1000usize);
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("home/.casparian_flow");
    let lockfile = environment::requirements_lockfile(&[], None, &[]);
    environment::provision(
        &home,
        &lockfile,
        None,
        &AtomicBool::new(false),
        &mut |line| {
            eprintln!("{line}");
        },
    )
    .expect("the default environment");
    let slots = std::thread::available_parallelism().map_or(1, usize::from);
    let rounds = if smoke { 1 } else { 5 };
    for (name, start, jobs) in [
        ("warm", GuestStart::Warm, if smoke { 8 } else { jobs }),
        (
            "spawn",
            GuestStart::Spawn,
            if smoke { 4 } else { jobs / 20 },
        ),
    ] {
        let mut rates = Vec::new();
        let mut firsts = Vec::new();
        for _ in 0..rounds {
            let figures = measure(jobs, start, slots, &home);
            rates.push(figures.jobs_per_s);
            firsts.push(figures.first_s);
        }
        rates.sort_by(f64::total_cmp);
        firsts.sort_by(f64::total_cmp);
        println!(
            "{name:6} {jobs} jobs, {slots} slots, {rounds} rounds: median {:.1} jobs/s (min {:.1}, max {:.1}), first receipt after {:.3} s",
            rates[rounds / 2],
            rates[0],
            rates[rounds - 1],
            firsts[rounds / 2],
        );
    }
}
