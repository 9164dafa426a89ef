//! The whole control plane under a seeded clock: the real sentinel (control state, store,
//! transactions) and the real leases of workers, with a network that delays and cuts, processes
//! that crash and pause, machines whose clock stops, wall clocks that jump, programs that change
//! rows, and a storage that may be paused between any two steps of a publish.
//!
//! After every step: no attempt replaces the output of a later one, and one job at most publishes
//! into a sink of mode `error`. At the end, with everything healed: every job has ended, a
//! COMPLETED job's visible output is that of its receipt's attempt, attempts are bounded, and no
//! job waits while a worker is idle.
//!
//! `cargo test --release --test simulation` runs `CASPARIAN_SIMULATION_SEEDS` seeds (default
//! 10,000 in release, 300 in debug) from `CASPARIAN_SIMULATION_FIRST` on; a failure names its
//! seed, and `CASPARIAN_SIMULATION_FIRST=<seed> CASPARIAN_SIMULATION_SEEDS=1` replays it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod random;
mod storage;
mod worker;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: no number")),
        Err(_) => default,
    }
}

#[test]
fn a_seed_gives_the_same_twice() {
    let folder = world::Folder::new();
    let run = |seed| world::World::new(seed, &folder).run();
    for seed in 1..20 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

#[test]
fn every_job_ends_once_with_the_output_of_its_receipt() {
    let seeds = if cfg!(debug_assertions) { 300 } else { 10_000 };
    let first = number("CASPARIAN_SIMULATION_FIRST", 1);
    let end = first + number("CASPARIAN_SIMULATION_SEEDS", seeds);
    let next = AtomicU64::new(first);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failed: Vec<(u64, String)> = std::thread::scope(|scope| {
        let next = &next;
        let runs: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(move || {
                    let mut failed = Vec::new();
                    let folder = world::Folder::new();
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end || failed.len() >= 5 {
                            return failed;
                        }
                        let run = || drop(world::World::new(seed, &folder).run());
                        let run = std::panic::AssertUnwindSafe(run);
                        if let Err(panic) = std::panic::catch_unwind(run) {
                            let text = panic.downcast_ref::<String>().cloned();
                            failed.push((seed, text.unwrap_or_default()));
                        }
                    }
                })
            })
            .collect();
        runs.into_iter()
            .flat_map(|run| run.join().unwrap())
            .collect()
    });
    assert!(failed.is_empty(), "seeds that failed: {failed:#?}");
}
