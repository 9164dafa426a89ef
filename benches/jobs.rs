//! Small Python jobs end to end with the built programs: queue, sentinel, worker, plugin process,
//! Parquet, receipt. One table compares how plugins are started, the sandbox's modes, CURVE and
//! limits of a job.
//!
//! Each job runs a plugin that yields three rows. Printed: jobs per second from the first
//! receipt to the last, medians of rounds that alternate between the settings, as a share of the
//! first setting that starts plugins alike, and the time before the first receipt. Then what a
//! worker's own processor time is while one job has 64 processes and 1,000 files and does nothing,
//! with the limits that are on by default and with all of them.
//!
//! `cargo bench --bench jobs [-- JOBS]`; with `CASPARIAN_BENCH_SMOKE` set (or `--test`) a few
//! jobs only. Environments are made below `target/`, so the first run downloads pyarrow.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use casparian::plugin::environment;
use casparian::store::{Deploy, Inspector, Open, Store};

const PLUGIN: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'id': [1, 2, 3], 'value': [10.5, 20.3, 30.1]})\n";

#[derive(Clone, Copy)]
struct Setting {
    start: &'static str,
    sandbox: &'static str,
    transport: Transport,
    limits: Limits,
}

/// Limits of a job.
#[derive(Clone, Copy, PartialEq)]
enum Limits {
    Default,
    /// All that a worker knows, and none that a job here reaches.
    All,
}

const ALL_LIMITS: [&str; 14] = [
    "--job-cpu",
    "3600",
    "--job-memory",
    "64G",
    "--job-processes",
    "1000",
    "--job-open-files",
    "512",
    "--job-output",
    "64G",
    "--job-log",
    "1G",
    "--job-scratch",
    "64G",
];

#[derive(Clone, Copy, PartialEq)]
enum Transport {
    Ipc,
    Tcp,
    Curve,
}

const fn setting(start: &'static str, sandbox: &'static str, transport: Transport) -> Setting {
    Setting {
        start,
        sandbox,
        transport,
        limits: Limits::Default,
    }
}

const fn limited(start: &'static str) -> Setting {
    Setting {
        limits: Limits::All,
        ..setting(start, "off", Transport::Ipc)
    }
}

/// Of each start mode the first is what the others are compared with.
const SETTINGS: [Setting; 10] = [
    setting("warm", "off", Transport::Ipc),
    setting("warm", "on", Transport::Ipc),
    setting("warm", "strict", Transport::Ipc),
    setting("warm", "off", Transport::Tcp),
    setting("warm", "off", Transport::Curve),
    limited("warm"),
    setting("spawn", "off", Transport::Ipc),
    setting("spawn", "on", Transport::Ipc),
    setting("spawn", "strict", Transport::Ipc),
    limited("spawn"),
];

#[derive(Default)]
struct Figures {
    firsts: Vec<f64>,
    rates: Vec<f64>,
}

/// A program that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn queue(folder: &Path, source_code: &str, jobs: usize) -> PathBuf {
    let database = folder.join("queue.sqlite");
    let mut store = Store::open(&database, Open::Create).expect("database");
    let mut transaction = store.begin().expect("transaction");
    let deploy = Deploy {
        plugin_name: "small",
        version: None,
        source_code,
        lockfile_content: "",
        sinks: &[],
    };
    transaction.deploy(&deploy, 0).expect("deploy");
    std::fs::write(folder.join("input"), "").expect("input");
    let root = folder.to_str().expect("a path of text");
    let file = transaction
        .register_file(root, "input", 0, 0.0, "0", 0)
        .expect("file");
    for _ in 0..jobs {
        transaction
            .enqueue("small", file.version_id, 0, 0)
            .expect("job");
    }
    transaction.commit().expect("commit");
    database
}

fn program(path: &str, home: &Path) -> Command {
    let mut command = Command::new(path);
    command.env("HOME", home).stderr(Stdio::null());
    command
}

/// The public key of a new key in a file.
fn key(file: &Path, home: &Path) -> String {
    let made = program(env!("CARGO_BIN_EXE_casparian"), home)
        .arg("keygen")
        .arg(file)
        .output()
        .expect("keygen");
    let line = String::from_utf8(made.stdout).expect("text");
    let key = line.split_whitespace().next();
    key.expect("a public key").to_owned()
}

/// A sentinel and where it listens.
fn sentinel(mut command: Command) -> (Running, String) {
    command.stderr(Stdio::piped());
    let mut sentinel = Running(command.spawn().expect("sentinel"));
    let errors = BufReader::new(sentinel.0.stderr.take().expect("its log"));
    let mut lines = errors.lines().map(|line| line.expect("a line"));
    let line = lines.find(|line| line.contains("listens on "));
    let line = line.expect("the line that it listens");
    // Its log is read to the end, so that it never waits.
    std::thread::spawn(move || lines.for_each(drop));
    let endpoint = line.rsplit("listens on ").next().expect("an endpoint");
    (sentinel, endpoint.trim().to_owned())
}

/// The programs at work.
struct Rig {
    began: Instant,
    inspector: Inspector,
    worker: Running,
    _sentinel: Running,
    folder: tempfile::TempDir,
}

impl Rig {
    fn count(&self, status: &str) -> i64 {
        let counts = self.inspector.counts().expect("counts");
        let mut counts = counts.iter();
        let found = counts.find(|(name, _)| name == status);
        found.map_or(0, |(_, count)| *count)
    }
}

fn start(setting: Setting, source: &str, jobs: usize, home: &Path) -> Rig {
    let folder = tempfile::tempdir().expect("folder");
    let database = queue(folder.path(), source, jobs);
    let bind = match setting.transport {
        Transport::Ipc => format!("ipc://{}", folder.path().join("s").display()),
        Transport::Tcp | Transport::Curve => "tcp://127.0.0.1:0".to_owned(),
    };
    let mut of_sentinel = program(env!("CARGO_BIN_EXE_casparian-sentinel"), home);
    of_sentinel.args(["--bind", &bind, "--database"]);
    of_sentinel.arg(&database);
    let mut of_worker = program(env!("CARGO_BIN_EXE_casparian-worker"), home);
    if setting.transport == Transport::Curve {
        let file = folder.path().join("key");
        of_worker.args(["--curve-server-key", &key(&file, home)]);
        of_sentinel.arg("--curve-secret-key").arg(&file);
        of_sentinel.arg("--authorize-any-key");
    }
    let began = Instant::now();
    let (sentinel, endpoint) = sentinel(of_sentinel);
    of_worker.args([
        "--plugin-start",
        setting.start,
        "--sandbox",
        setting.sandbox,
    ]);
    of_worker.args(["--connect", &endpoint, "--output"]);
    of_worker.arg(folder.path().join("out"));
    if setting.limits == Limits::All {
        of_worker.args(ALL_LIMITS);
    }
    Rig {
        began,
        inspector: Inspector::open(&database).expect("database"),
        worker: Running(of_worker.spawn().expect("worker")),
        _sentinel: sentinel,
        folder,
    }
}

fn measure(jobs: usize, setting: Setting, home: &Path, figures: &mut Figures) {
    let rig = start(setting, PLUGIN, jobs, home);
    let mut first: Option<(Instant, i64)> = None;
    loop {
        assert_eq!(rig.count("FAILED"), 0, "a job failed");
        let done = rig.count("COMPLETED");
        let now = Instant::now();
        if done > 0 {
            let (first_at, first_done) = *first.get_or_insert((now, done));
            if done == jobs as i64 {
                let seconds = (now - first_at).as_secs_f64().max(1e-9);
                figures.rates.push((done - first_done) as f64 / seconds);
                figures.firsts.push((first_at - rig.began).as_secs_f64());
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Processor time of a program, in seconds; Linux counts hundredths.
fn cpu_seconds(program: &Running) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", program.0.id())).expect("stat");
    let (_, fields) = stat.rsplit_once(')').expect("fields");
    let times = fields.split_ascii_whitespace().skip(11).take(2);
    let ticks: f64 = times
        .map(|time| time.parse::<f64>().expect("a number"))
        .sum();
    ticks / 100.0
}

/// The share of one core that a worker uses while a job of many processes and files waits.
fn measure_waiting(limits: Limits, seconds: u64, home: &Path) -> f64 {
    let source = "import os, subprocess, time\nclass Handler:\n    def execute(self, path):\n        for number in range(1000):\n            open(str(number), 'w').write('x')\n        for number in range(64):\n            subprocess.Popen(['sleep', '3600'])\n        open(os.path.dirname(path) + '/up', 'w')\n        time.sleep(3600)\n        return []\n";
    let setting = Setting {
        limits,
        ..setting("warm", "off", Transport::Ipc)
    };
    let rig = start(setting, source, 1, home);
    while !rig.folder.path().join("up").exists() {
        assert_eq!(rig.count("FAILED"), 0, "a job failed");
        std::thread::sleep(Duration::from_millis(2));
    }
    let (before, from) = (cpu_seconds(&rig.worker), Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    (cpu_seconds(&rig.worker) - before) / from.elapsed().as_secs_f64()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let smoke = std::env::var_os("CASPARIAN_BENCH_SMOKE").is_some()
        || arguments.iter().any(|argument| argument == "--test");
    let mut numbers = arguments
        .iter()
        .filter_map(|argument| argument.parse().ok());
    let jobs = numbers.next().unwrap_or(1000usize);
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("home");
    let lockfile = environment::requirements_lockfile(&[], None, &[]);
    environment::provision(
        &home.join(".casparian_flow"),
        &lockfile,
        None,
        &environment::Build::default(),
        &AtomicBool::new(false),
        &mut |line| eprintln!("{line}"),
    )
    .expect("the default environment");
    let rounds = if smoke { 1 } else { 5 };
    let jobs_of = |setting: &Setting| match (smoke, setting.start) {
        (true, _) => 4,
        (false, "warm") => jobs,
        (false, _) => (jobs / 10).max(2),
    };
    let mut all: Vec<Figures> = SETTINGS.iter().map(|_| Figures::default()).collect();
    for _ in 0..rounds {
        for (setting, figures) in SETTINGS.iter().zip(&mut all) {
            measure(jobs_of(setting), *setting, &home, figures);
        }
    }
    println!(
        "start  sandbox transport limits  jobs   jobs/s (min to max)      ratio  ms a job  first after"
    );
    let mut base = ("", 0.0);
    for (setting, figures) in SETTINGS.iter().zip(&mut all) {
        figures.rates.sort_by(f64::total_cmp);
        figures.firsts.sort_by(f64::total_cmp);
        let rate = figures.rates[rounds / 2];
        if base.0 != setting.start {
            base = (setting.start, rate);
        }
        let transport = match setting.transport {
            Transport::Ipc => "ipc",
            Transport::Tcp => "tcp",
            Transport::Curve => "tcp+CURVE",
        };
        let limits = match setting.limits {
            Limits::Default => "-",
            Limits::All => "all",
        };
        println!(
            "{:6} {:7} {transport:9} {limits:6} {:5} {rate:8.1} ({:.1} to {:.1})  {:9.2} {:9.2} {:10.3} s",
            setting.start,
            setting.sandbox,
            jobs_of(setting),
            figures.rates[0],
            figures.rates[rounds - 1],
            rate / base.1,
            1e3 / rate,
            figures.firsts[rounds / 2],
        );
    }
    let seconds = if smoke { 1 } else { 20 };
    for (name, limits) in [("default", Limits::Default), ("all", Limits::All)] {
        let share = measure_waiting(limits, seconds, &home);
        println!(
            "a job with 64 processes and 1,000 files, {name} limits: the worker uses {:.2} % of a core",
            share * 100.0
        );
    }
}
