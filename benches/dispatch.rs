//! Dispatch by the built sentinel to stub workers, which answer each job at once: no plugin, no output.
//!
//! For queues of 10³ and 10⁵ rows (10⁶ and 10⁷ with `CASPARIAN_BENCH_ROWS=N,...`), 1 to 1,000 workers and 1
//! to 1,000 plugins. Printed for each: jobs per second from the first job to the last that was acknowledged
//! or to the end of the measured time, the time from the start of the sentinel to the first job, CPU time of
//! the sentinel per job, and its resident memory. The floor of one worker with one slot is printed first: a
//! durable commit and a round trip, measured in the same run.
//!
//! `cargo bench --bench dispatch`; `CASPARIAN_BENCH_SMOKE=1` (or `--test`) runs the smallest case for a
//! moment. Set TMPDIR to choose the disk.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use casparian::protocol::{Header, OpCode};
use casparian::reactor::mio::Token;
use casparian::reactor::{Endpoint, Reactor};
use casparian::socket::{Event, Options, PeerId, Socket, SocketType};
use casparian::store::{Deploy, Open, Store};

/// How often a worker asks for its leases.
const BEAT: Duration = Duration::from_secs(2);
/// Time for which a case that does not end by itself is measured.
const MEASURED: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
struct Case {
    rows: usize,
    plugins: usize,
    workers: usize,
    slots: usize,
}

/// A program that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A queue with rows of equal shares of the plugins.
fn queue(folder: &Path, rows: usize, plugins: usize) -> PathBuf {
    let database = folder.join("queue.sqlite");
    let mut store = Store::open(&database, Open::Create).expect("database");
    let mut transaction = store.begin().expect("transaction");
    let names: Vec<String> = (0..plugins).map(|number| format!("p{number}")).collect();
    for plugin_name in &names {
        let deploy = Deploy {
            plugin_name,
            version: None,
            source_code: "class Handler: pass\n",
            lockfile_content: "",
            sinks: &[],
        };
        transaction.deploy(&deploy, 0).expect("deploy");
    }
    let file = transaction
        .register_file("/data", "x", 0, 0.0, "0", 0)
        .expect("file");
    transaction.commit().expect("commit");
    for chunk in (0..rows).collect::<Vec<_>>().chunks(50_000) {
        let mut transaction = store.begin().expect("transaction");
        for row in chunk {
            let name = &names[row % plugins];
            transaction
                .enqueue(name, file.version_id, 0, 0)
                .expect("row");
        }
        transaction.commit().expect("commit");
    }
    database
}

/// A sentinel and where it listens.
fn sentinel(database: &Path, folder: &Path) -> (Running, Endpoint) {
    let bind = format!("ipc://{}", folder.join("s").display());
    let mut sentinel = Command::new(env!("CARGO_BIN_EXE_casparian-sentinel"))
        .args(["--bind", &bind, "--database"])
        .arg(database)
        .env("HOME", folder)
        .stderr(Stdio::piped())
        .spawn()
        .map(Running)
        .expect("sentinel");
    let errors = BufReader::new(sentinel.0.stderr.take().expect("its log"));
    let mut lines = errors.lines().map(|line| line.expect("a line"));
    let found = lines.find(|line| line.contains("listens on "));
    found.expect("the line that it listens");
    // Its log is read to the end, so that it never waits.
    std::thread::spawn(move || lines.for_each(drop));
    (sentinel, bind.parse().expect("an endpoint"))
}

/// Stub workers, all in one thread, each with a connection of its own.
struct Workers {
    reactor: Reactor,
    socket: Socket,
    slots: usize,
    /// The last request of each worker.
    sequences: HashMap<PeerId, u64>,
    /// The plugin of each worker, or `*`.
    plugin: String,
    first: Option<Instant>,
    jobs: u64,
}

impl Workers {
    fn connect(endpoint: &Endpoint, case: Case) -> Workers {
        let reactor = Reactor::new().expect("reactor");
        let now = Instant::now();
        let mut socket = Socket::new(
            SocketType::Router,
            Options::new(),
            reactor.registry(),
            Token(0),
            now,
        )
        .expect("socket");
        for _ in 0..case.workers {
            socket.connect(endpoint, now);
        }
        let plugin = match case.plugins {
            1 => "*".to_owned(),
            // Of many plugins most have no worker.
            _ => "p7".to_owned(),
        };
        Workers {
            reactor,
            socket,
            slots: case.slots,
            sequences: HashMap::new(),
            plugin,
            first: None,
            jobs: 0,
        }
    }

    fn send(&mut self, to: PeerId, opcode: OpCode, job_id: u64, json: &str) {
        let header = Header {
            opcode,
            job_id,
            payload_size: u32::try_from(json.len()).expect("a small payload"),
        };
        self.socket
            .send_to(to, &[&header.encode(), json.as_bytes()])
            .expect("send");
    }

    fn identify(&mut self, worker: PeerId) {
        let number = self.sequences.len();
        self.sequences.insert(worker, 1);
        let json = format!(
            r#"{{"capabilities":["{}"],"worker_id":"w{number}","slots":{},"running":[],"instance":"i{number}","sequence":1}}"#,
            self.plugin, self.slots
        );
        self.send(worker, OpCode::Identify, 0, &json);
    }

    fn beat(&mut self) {
        let workers: Vec<PeerId> = self.sequences.keys().copied().collect();
        for worker in workers {
            let sequence = self.sequences.get_mut(&worker).expect("a known worker");
            *sequence += 1;
            let json = format!(r#"{{"status":"BUSY","sequence":{sequence}}}"#);
            self.send(worker, OpCode::Heartbeat, 0, &json);
        }
    }

    /// Answers jobs until `jobs` are done, or `until`.
    fn run(&mut self, jobs: u64, limit: Duration) {
        let mut until = Instant::now() + Duration::from_secs(60);
        let mut beat_at = Instant::now() + BEAT;
        while self.jobs < jobs {
            let now = Instant::now();
            if now >= until {
                return;
            }
            if now >= beat_at {
                beat_at = now + BEAT;
                self.beat();
            }
            while let Some(worker) = self.socket.receive(now) {
                let Some(message) = self.socket.message(worker) else {
                    continue;
                };
                let mut frames = message.iter();
                let header = frames.next().and_then(|head| Header::decode(head).ok());
                let header = header.expect("a header");
                if header.opcode != OpCode::Dispatch {
                    continue;
                }
                let attempt = attempt(frames.next().expect("a payload"));
                if self.first.is_none() {
                    self.first = Some(now);
                    until = now + limit;
                }
                self.jobs += 1;
                let json = format!(
                    r#"{{"status":"SUCCESS","metrics":{{"rows":3}},"artifacts":[],"attempt":{attempt}}}"#
                );
                self.send(worker, OpCode::Conclude, header.job_id, &json);
            }
            self.socket.handle_timeout(now);
            while let Some(event) = self.socket.poll_event() {
                if let Event::Established { peer, .. } = event {
                    self.identify(peer);
                }
            }
            self.socket.flush(Instant::now());
            let wait = match self.socket.has_ready() {
                true => Some(now),
                false => [self.socket.poll_timeout(), Some(beat_at), Some(until)]
                    .into_iter()
                    .flatten()
                    .min(),
            };
            self.reactor.wait(wait, now).expect("wait");
            let now = Instant::now();
            for event in self.reactor.events() {
                self.socket.handle_ready(event, now);
            }
        }
    }
}

/// The number of the attempt in the JSON of a DISPATCH.
fn attempt(json: &[u8]) -> i64 {
    const NAME: &[u8] = b"\"attempt\":";
    let at = json.windows(NAME.len()).position(|part| part == NAME);
    let digits = &json[at.expect("an attempt") + NAME.len()..];
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |value, digit| value * 10 + i64::from(digit - b'0'))
}

/// CPU milliseconds and resident KiB of a process.
fn usage(process: &Child) -> (f64, u64) {
    let read = |name: &str| {
        std::fs::read_to_string(format!("/proc/{}/{name}", process.id())).unwrap_or_default()
    };
    let stat = read("stat");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    let status = read("status");
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss = rss.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
    // A tick has 10 ms.
    ((ticks(11) + ticks(12)) * 10.0, rss.unwrap_or(0))
}

/// Milliseconds of a durable write of a page to the disk of the queue.
fn commit_ms(folder: &Path, rounds: usize) -> f64 {
    let mut file = std::fs::File::create(folder.join("floor")).expect("file");
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            file.write_all(&[1; 4096]).expect("write");
            file.sync_data().expect("sync");
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[rounds / 2]
}

fn measure(case: Case, limit: Duration) {
    let folder = tempfile::tempdir().expect("folder");
    let database = queue(folder.path(), case.rows, case.plugins);
    let began = Instant::now();
    let (sentinel, endpoint) = sentinel(&database, folder.path());
    let mut workers = Workers::connect(&endpoint, case);
    let (before, _) = usage(&sentinel.0);
    let able = match case.plugins {
        1 => case.rows,
        plugins => case.rows / plugins,
    };
    workers.run(able as u64, limit);
    let first = workers.first.expect("a job");
    let seconds = first.elapsed().as_secs_f64();
    let (cpu, rss) = usage(&sentinel.0);
    println!(
        "{:>9} rows {:>5} plugins {:>5} workers × {}: {:>8.0} jobs/s, first job after {:>6.1} ms, \
         {:>6.1} µs of CPU a job, {:>6.1} MB",
        case.rows,
        case.plugins,
        case.workers,
        case.slots,
        workers.jobs as f64 / seconds,
        (first - began).as_secs_f64() * 1e3,
        (cpu - before) * 1e3 / workers.jobs as f64,
        rss as f64 / 1024.0,
    );
}

fn main() {
    let smoke = std::env::var_os("CASPARIAN_BENCH_SMOKE").is_some()
        || std::env::args().any(|argument| argument == "--test");
    let folder = tempfile::tempdir().expect("folder");
    let rounds = if smoke { 5 } else { 500 };
    println!(
        "durable write of 4 KiB: median {:.3} ms",
        commit_ms(folder.path(), rounds)
    );
    let rows: Vec<usize> = match std::env::var("CASPARIAN_BENCH_ROWS") {
        Ok(text) => text
            .split(',')
            .map(|number| number.parse().expect("a number of rows"))
            .collect(),
        Err(_) => vec![1_000, 100_000],
    };
    let of = |rows, plugins, workers, slots| Case {
        rows,
        plugins,
        workers,
        slots,
    };
    if smoke {
        measure(of(200, 1, 2, 1), Duration::from_millis(500));
        return;
    }
    for &rows in &rows {
        for (workers, slots) in [(1, 1), (16, 2), (256, 2), (1_000, 2)] {
            measure(of(rows, 1, workers, slots), MEASURED);
        }
        if rows >= 100_000 {
            measure(of(rows, 1_000, 200, 1), MEASURED);
        }
    }
}
