//! Follows the queue's rows while they change: when jobs end, whether an end is taken back, and
//! how long it takes after a worker was disturbed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::scene::{reading, rows};

/// A worker was killed, stopped or cut off.
struct Disturbance {
    at: Instant,
    held: BTreeSet<i64>,
}

#[derive(Default)]
struct Seen {
    /// Worker → the jobs that it runs.
    held: BTreeMap<String, BTreeSet<i64>>,
    ended: BTreeMap<i64, (Instant, String)>,
    active: usize,
    disturbances: Vec<Disturbance>,
    /// When the sentinel or its database did not work.
    outages: Vec<(Instant, Instant)>,
    taken_back: BTreeSet<String>,
}

/// What is known of the queue.
#[derive(Default)]
pub(crate) struct Monitor(Mutex<Seen>);

/// What a sentinel that starts waits for: the lease (2 s) and its margin.
const LEASE: Duration = Duration::from_secs(4);

/// Durations after disturbances: to the next job that completed, and to the end of all jobs that
/// the worker held; the latter also without those in which the sentinel did not work. Sorted.
#[derive(Default)]
pub(crate) struct Recovery {
    pub(crate) next: Vec<Duration>,
    pub(crate) held: Vec<Duration>,
    pub(crate) held_by_working: Vec<Duration>,
}

impl Monitor {
    /// Polls until it is over.
    pub(crate) fn follow(&self, database: &Path, over: &AtomicBool) {
        let connection = reading(database);
        while !over.load(Ordering::SeqCst) {
            // Busy for ten seconds: it is asked again.
            if let Ok(rows) = rows(&connection) {
                let mut seen = self.0.lock().unwrap();
                let now = Instant::now();
                seen.held.clear();
                seen.active = 0;
                for row in rows {
                    seen.active += usize::from(row.is_active());
                    match row.status.as_str() {
                        "RUNNING" => {
                            seen.held.entry(row.worker).or_default().insert(row.id);
                        }
                        "COMPLETED" | "FAILED" | "SKIPPED" => {
                            let end = (now, row.status.clone());
                            let (_, first) = seen.ended.entry(row.id).or_insert(end);
                            if *first != row.status {
                                let what =
                                    format!("job {} was {first}, then {}", row.id, row.status);
                                seen.taken_back.insert(what);
                            }
                        }
                        other if seen.ended.contains_key(&row.id) => {
                            seen.taken_back
                                .insert(format!("job {} ended and is {other}", row.id));
                        }
                        _ => {}
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn disturbed(&self, worker: &str) {
        let mut seen = self.0.lock().unwrap();
        let held = seen.held.get(worker).cloned().unwrap_or_default();
        let at = Instant::now();
        seen.disturbances.push(Disturbance { at, held });
    }

    /// The sentinel is disturbed for so long.
    pub(crate) fn sentinel_fails(&self, length: Duration) {
        let now = Instant::now();
        let mut seen = self.0.lock().unwrap();
        seen.outages.push((now, now + length + LEASE));
    }

    /// Jobs that are queued, running or wait for another attempt.
    pub(crate) fn active(&self) -> usize {
        self.0.lock().unwrap().active
    }

    /// Ends that were not the last.
    pub(crate) fn taken_back(&self) -> Vec<String> {
        self.0.lock().unwrap().taken_back.iter().cloned().collect()
    }

    pub(crate) fn recovery(&self) -> Recovery {
        let seen = self.0.lock().unwrap();
        let mut recovery = Recovery::default();
        for Disturbance { at, held } in &seen.disturbances {
            let completed = seen
                .ended
                .values()
                .filter(|(_, status)| status == "COMPLETED");
            let next = completed.map(|(end, _)| *end).filter(|end| end > at).min();
            recovery.next.extend(next.map(|end| end - *at));
            let ends = held
                .iter()
                .filter_map(|id| seen.ended.get(id))
                .map(|(end, _)| *end);
            let Some(end) = ends.max() else { continue };
            let took = end.saturating_duration_since(*at);
            recovery.held.push(took);
            if !seen
                .outages
                .iter()
                .any(|(from, to)| *from <= end && at <= to)
            {
                recovery.held_by_working.push(took);
            }
        }
        recovery.held_by_working.sort();
        recovery.next.sort();
        recovery.held.sort();
        recovery
    }
}

/// `p50 / p99 / n`.
pub(crate) fn percentiles(sorted: &[Duration]) -> String {
    let at = |percent: usize| {
        let last = sorted.len().saturating_sub(1);
        sorted
            .get(last * percent / 100)
            .map_or("-".to_owned(), |time| {
                format!("{:.2} s", time.as_secs_f64())
            })
    };
    format!("p50 {}, p99 {}, {} times", at(50), at(99), sorted.len())
}
