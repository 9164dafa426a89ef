//! Durable claim and completion of jobs: one transaction a batch, fsync at its end, in a real
//! file, with many other rows queued.
//!
//! `cargo bench --bench queue`; `CASPARIAN_BENCH_LARGE=1` adds a million queued rows, and
//! `CASPARIAN_BENCH_SMOKE=1` (or `--test`) runs a few batches only. Set TMPDIR to choose the disk.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Instant;

use casparian::job::{Attempt, JobStatus, Receipt};
use casparian::store::{ClaimRequest, Completion, Deploy, Ended, Now, Open, Store};

fn fill(store: &mut Store, rows: usize) {
    let mut transaction = store.begin().expect("transaction");
    let deploy = Deploy {
        plugin_name: "p",
        version: None,
        source_code: "class Handler: pass\n",
        lockfile_content: "",
        sinks: &[],
    };
    transaction.deploy(&deploy, 0).expect("deploy");
    let file = transaction
        .register_file("/data", "x", 0, 0.0, "0", 0)
        .expect("file");
    for row in 0..rows {
        transaction
            .enqueue("p", file.version_id, (row % 7) as i64, 0)
            .expect("row");
    }
    transaction.commit().expect("commit");
}

/// Seconds for one turn that completes the batch before and claims the next, as the sentinel's
/// does under load.
fn transaction(store: &mut Store, batch: usize, held: &mut Vec<Attempt>) -> f64 {
    let plugins = ["p".to_owned()];
    let start = Instant::now();
    let mut transaction = store.begin().expect("transaction");
    let receipt = Receipt {
        status: JobStatus::Success,
        metrics: [("rows".to_owned(), 3)].into(),
        ..Receipt::default()
    };
    let now = Now {
        unix_ms: 1,
        boot_ms: 1,
        boot_id: "".into(),
    };
    for attempt in held.drain(..) {
        let completion = Completion {
            attempt,
            worker_id: "w",
            receipt: &receipt,
            retries_max: 3,
        };
        let ended = transaction.complete(&completion, &now).expect("complete");
        assert_eq!(ended, Ended::Completed, "only the holder's attempt counts");
    }
    let claimed = transaction
        .claim(
            &ClaimRequest {
                worker_id: "w",
                hostname: "h",
                pid: None,
                plugins: &plugins,
                limit: batch,
                is_idle: true,
                is_old: false,
                lease_until_ms: 60_000,
            },
            1,
        )
        .expect("claim");
    held.extend(claimed.jobs.iter().map(|job| job.attempt));
    transaction.commit().expect("commit");
    start.elapsed().as_secs_f64()
}

fn main() {
    let smoke = std::env::var_os("CASPARIAN_BENCH_SMOKE").is_some()
        || std::env::args().any(|argument| argument == "--test");
    let mut sizes = vec![1_000usize, 100_000];
    if std::env::var_os("CASPARIAN_BENCH_LARGE").is_some() {
        sizes.push(1_000_000);
    }
    if smoke {
        sizes = vec![1_000];
    }
    for rows in sizes {
        for batch in [1usize, 64] {
            let folder = tempfile::tempdir().expect("folder");
            let mut store = Store::open(&folder.path().join("q.db"), Open::Create).expect("open");
            let turns = if smoke {
                5
            } else {
                (rows / batch / 2).clamp(7, 2_000)
            };
            fill(&mut store, rows + (turns + 2) * batch);
            let mut held = Vec::new();
            transaction(&mut store, batch, &mut held);
            let mut seconds: Vec<f64> = (0..turns)
                .map(|_| transaction(&mut store, batch, &mut held))
                .collect();
            seconds.sort_by(f64::total_cmp);
            let median = seconds[seconds.len() / 2];
            println!(
                "{rows:>8} queued, batches of {batch:>2}: median {:>7.3} ms a turn, {:>8.0} jobs/s claimed and completed",
                median * 1e3,
                batch as f64 / median,
            );
        }
    }
}
