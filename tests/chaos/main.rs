//! Chaos on the real programs: a sentinel, workers and Python plugins while processes are killed
//! and stopped, connections cut and stalled, the database locked, disks failing and clocks
//! jumping, all by a seed; and a kill or stop at every storage step of a publish.
//!
//! `cargo test --release --test chaos -- --nocapture`; `CASPARIAN_CHAOS_SECONDS` (default 20, in
//! debug 6) is the time of the storm, `CASPARIAN_CHAOS_SEED` its seed (default 1),
//! `CASPARIAN_CHAOS_POINTS` how many storage steps are tried (default 90, in debug 12; there are
//! some 400; `CASPARIAN_CHAOS_STEP="Another 11 Stop"` picks those whose name begins so),
//! `CASPARIAN_CHAOS_KEEP=1` keeps the folders. A seed fixes what is done to whom and
//! when, not how the programs' threads run.
//!
//! Disk faults and wall clocks are changed by `faults.c`, which stands between the program and
//! libc. Of the system calls that rustix makes directly it reaches `renameat2`; it does not reach
//! `statx`, `flock`, the clock since boot and, for removing working folders, `unlinkat`.

#![cfg(all(
    target_os = "linux",
    feature = "cli",
    feature = "sentinel",
    feature = "worker"
))]
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod checks;
#[allow(dead_code)]
#[path = "../it/common.rs"]
mod common;
mod faults;
mod monitor;
mod points;
mod programs;
mod proxy;
#[path = "../soak/random.rs"]
mod random;
mod reader;
mod scene;
mod storm;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use checks::{Lost, check, staged};
use faults::At;
use monitor::{Monitor, percentiles};
use points::{Over, Point, Step};
use programs::{Program, Reaper, orphans, sentinel, wait, worker};
use proxy::Proxy;
use reader::read_on;
use scene::{KINDS, Scene};
use storm::{Cluster, SENTINEL, Storm};

/// Storage steps that are tried at a time: they wait for leases most of the time.
const LANES: usize = 6;

/// One test at a time: each uses the whole machine.
static MACHINE: Mutex<()> = Mutex::new(());

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text}: not a number")),
        Err(_) => default,
    }
}

/// Ends the threads that watch, whatever happens.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn every_job_ends_once_with_the_files_of_its_receipt() {
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let seconds = setting(
        "CASPARIAN_CHAOS_SECONDS",
        if cfg!(debug_assertions) { 6 } else { 20 },
    );
    let seed = setting("CASPARIAN_CHAOS_SEED", 1);
    let mut dir = tempfile::tempdir().unwrap();
    let _reaper = Reaper(dir.path().to_owned());
    let out = dir.path().join("out");
    let scene = Scene::new(dir.path(), KINDS, 16 * seconds as usize);
    let (monitor, over) = (Monitor::default(), AtomicBool::new(false));
    let began = Instant::now();

    let path = dir.path().to_owned();
    let program = |name: &str, command: &[&str]| Program::new(name, &path, &out, command);
    let mut programs = vec![program(
        "sentinel",
        &sentinel(&scene.database, "2", "1000000"),
    )];
    let port = programs[SENTINEL].start_sentinel();
    let direct = format!("tcp://127.0.0.1:{port}");
    let proxies: Vec<Proxy> = (0..2).map(|_| Proxy::start(port)).collect();
    let more = |id, start| ["--slots", "2", "--worker-id", id, "--plugin-start", start];
    for (name, id, endpoint, start) in [
        ("w1", "w1", &proxies[0].endpoint(), "warm"),
        ("w2", "w2", &proxies[1].endpoint(), "warm"),
        ("w3", "w3", &direct, "spawn"),
        ("w1-again", "w1", &direct, "warm"),
    ] {
        programs.push(program(name, &worker(endpoint, &out, &more(id, start))));
    }
    let last = programs.len() - 1;
    programs[..last].iter_mut().for_each(Program::start);
    let other = scene.connection();
    let cluster = Cluster {
        dir: &path,
        programs,
        proxies,
        other,
        monitor: &monitor,
    };
    let mut storm = Storm::new(cluster, seed, seconds);

    let (seen, problems) = std::thread::scope(|scope| {
        let ending = Ending(&over);
        let reading = scope.spawn(|| read_on(&out, &over));
        scope.spawn(|| monitor.follow(&scene.database, &over));
        let storm_end = Instant::now() + Duration::from_secs(seconds);
        let mut feeder = Feeder::new(&scene, storm_end);
        storm.rage(storm_end, || feeder.tick());
        storm.heal();
        let deadline = Duration::from_secs(60 + 2 * seconds);
        let mut problems = Vec::new();
        let done = wait("all jobs end", deadline, || {
            feeder.tick();
            storm.keep_up();
            (feeder.is_done() && monitor.active() == 0).then_some(())
        });
        problems.extend(done.err());
        drop(ending);
        (reading.join().unwrap(), problems)
    });
    let healed = began.elapsed();
    let (counts, failed_calls, ends) = (storm.counts(), storm.failed_calls(), storm.ends());
    let plugins_killed = storm.plugins_killed;
    let stopping = Instant::now();
    let mut problems = [problems, storm.shut_down()].concat();
    let stopped = stopping.elapsed();
    let left = orphans(&path, Duration::from_secs(10));
    // What a worker that starts leaves of the dead.
    let mut last = program("last", &worker(&direct, &out, &[]));
    last.start();
    last.log_line(" connects to ");
    problems.extend(last.shut_down(Duration::from_secs(45)).err());
    let staged = staged(&out);

    let verdict = check(&scene, &out, 1, Lost::IsRetried);
    let recovery = monitor.recovery();
    let twice = verdict.twice + monitor.taken_back().len();
    println!(
        "chaos: seed {seed}, {seconds} s of faults, {:.1} s until all jobs had ended",
        healed.as_secs_f64()
    );
    println!("faults: {counts}; {failed_calls} system calls failed");
    for (what, value) in [
        ("jobs", verdict.jobs.to_string()),
        ("completed", verdict.completed.to_string()),
        ("failed", verdict.failed.to_string()),
        (
            "failed with their plugin process killed",
            format!("{} of {plugins_killed} kills", verdict.killed),
        ),
        ("cancelled", verdict.cancelled.to_string()),
        ("lost", verdict.lost.to_string()),
        ("twice", twice.to_string()),
        ("attempts", verdict.attempts.to_string()),
        (
            "files that differ from their receipt",
            verdict.differs.to_string(),
        ),
        ("files without a receipt", verdict.unnamed.to_string()),
        (
            "visible files of failed jobs",
            verdict.of_failed.to_string(),
        ),
        (
            "partial files seen",
            format!(
                "{} in {} reads of {} passes",
                seen.partial.len(),
                seen.files,
                seen.passes
            ),
        ),
        (
            "all programs had stopped after",
            format!("{:.1} s", stopped.as_secs_f64()),
        ),
        ("processes that live on", left.to_string()),
        ("attempts left in staging", staged.len().to_string()),
        ("programs that ended by themselves", ends.len().to_string()),
        (
            "after a worker was disturbed: next job completed",
            percentiles(&recovery.next),
        ),
        (
            "after a worker was disturbed: its jobs ended",
            percentiles(&recovery.held),
        ),
        (
            "after a worker was disturbed: the same while the sentinel worked",
            percentiles(&recovery.held_by_working),
        ),
    ] {
        println!("| {what} | {value} |");
    }
    for end in &ends {
        println!("ended by itself: {end}");
    }
    problems.extend(verdict.problems);
    problems.extend(monitor.taken_back());
    problems.extend(
        seen.partial
            .into_iter()
            .map(|problem| format!("partial: {problem}")),
    );
    problems.extend(
        staged
            .into_iter()
            .map(|path| format!("left in staging: {path}")),
    );
    if left > 0 {
        problems.push(format!("{left} processes live on"));
    }
    if verdict.killed > plugins_killed {
        problems.push(format!(
            "{} jobs failed by their plugin's process",
            verdict.killed
        ));
    }
    let is_healthy = problems.is_empty();
    if std::env::var_os("CASPARIAN_CHAOS_KEEP").is_some() {
        dir.disable_cleanup(true);
        println!("kept in {}", dir.path().display());
    }
    for problem in problems.iter().take(50) {
        println!("problem: {problem}");
    }
    assert!(is_healthy, "seed {seed}: {} problems", problems.len());
}

/// Queues jobs evenly until a time, in an order that mixes the kinds.
struct Feeder {
    store: rusqlite::Connection,
    jobs: Vec<i64>,
    next: usize,
    began: Instant,
    end: Instant,
}

impl Feeder {
    fn new(scene: &Scene, end: Instant) -> Self {
        let mut jobs: Vec<i64> = scene.jobs.keys().copied().collect();
        jobs.sort_by_key(|id| (id.wrapping_mul(7919) % 1009, *id));
        Feeder {
            store: scene.connection(),
            jobs,
            next: 0,
            began: Instant::now(),
            end,
        }
    }

    fn is_done(&self) -> bool {
        self.next == self.jobs.len()
    }

    /// Queues what is due; while the database is locked it is tried again.
    fn tick(&mut self) {
        let share = self.began.elapsed().as_secs_f64() / (self.end - self.began).as_secs_f64();
        let due = ((share * 1.25 * self.jobs.len() as f64) as usize + 1).min(self.jobs.len());
        while let Some(id) = self.jobs[..due].get(self.next) {
            let queue = "UPDATE cf_processing_queue SET status = 'QUEUED' WHERE id = ?1";
            if self.store.execute(queue, [id]).is_err() {
                return;
            }
            self.next += 1;
        }
    }
}

#[test]
fn a_worker_that_dies_or_stops_at_any_storage_step_leaves_one_output() {
    let _machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let counts =
        [Over::Nothing, Over::Itself, Over::Another].map(|over| (over, points::count(over)));
    for (over, count) in counts {
        println!("storage steps over {over:?}, with a worker's start and end: {count}");
        assert!(count > 5, "the library of faults is not loaded");
    }
    let all: Vec<Step> = counts
        .into_iter()
        .flat_map(|(over, count)| (1..=count).map(move |number| (over, number)))
        .flat_map(|(over, number)| {
            let actions = [At::Stop, At::Kill].into_iter();
            actions.flat_map(move |action| {
                [Lost::IsRetried, Lost::IsGivenUp].map(|lost| Step {
                    over,
                    number,
                    action,
                    lost,
                })
            })
        })
        .collect();
    let default = if cfg!(debug_assertions) { 12 } else { 90 };
    let wanted = (setting("CASPARIAN_CHAOS_POINTS", default) as usize).clamp(1, all.len());
    let seed = setting("CASPARIAN_CHAOS_SEED", 1);
    // Spread evenly where not all are wanted, or those whose name begins so: `Another 11 Stop IsGivenUp`.
    let name = |step: &Step| {
        let Step {
            over,
            number,
            action,
            lost,
        } = step;
        format!("{over:?} {number} {action:?} {lost:?}")
    };
    let chosen: Vec<Step> = match std::env::var("CASPARIAN_CHAOS_STEP") {
        Ok(begin) => all
            .into_iter()
            .filter(|step| name(step).starts_with(&begin))
            .collect(),
        Err(_) => (0..wanted)
            .map(|index| all[(index * all.len() / wanted + seed as usize) % all.len()])
            .collect(),
    };
    let next = AtomicUsize::new(0);
    let points: Vec<Point> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES)
            .map(|_| {
                scope.spawn(|| {
                    let mut points = Vec::new();
                    while let Some(&step) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                        points.push(points::point(step));
                    }
                    points
                })
            })
            .collect();
        let joined = lanes.into_iter().map(|lane| lane.join().unwrap());
        joined.flatten().collect()
    });
    for point in &points {
        let result = match point.problems.is_empty() {
            true => "ok".to_owned(),
            false => point.problems.join("; "),
        };
        let name = name(&point.step).replace(' ', " | ");
        println!("| {name} | {} | {result} |", point.call);
    }
    let failed = points.iter().filter(|point| !point.problems.is_empty());
    assert_eq!(failed.count(), 0, "seed {seed}: points with problems");
}
