//! The loop of a run: sentinel and worker in threads, until everything has ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::cli::progress::{Ended, Progress};
use crate::cli::summary::{Item, Outcome};
use crate::cli::{Failure, failed, serve};
use crate::job::Cause;
use crate::sentinel::{JobEnd, Sentinel};
use crate::worker::{self, Worker};

/// How often an interruption is looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

/// Runs sentinel and worker until every queued item has ended or somebody interrupts.
pub(super) fn work(
    mut sentinel: Sentinel,
    worker_options: worker::Options,
    items: &mut [Item],
    mut progress: Progress,
    interrupted: &AtomicBool,
    again: &mut dyn FnMut(&mut Item) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut waiting: BTreeMap<i64, usize> = items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| Some((item.job_id?, index)))
        .collect();
    for item in items.iter() {
        report(&mut progress, item);
    }
    if waiting.is_empty() {
        progress.finish();
        return Ok(());
    }
    serve::raise_worker_descriptor_limit();
    let (observer, ends) = channel();
    sentinel.observe(observer);
    let worker = Worker::open(worker_options).map_err(failed)?;
    let (stop_sentinel, stop_worker) = (sentinel.stopper(), worker.stopper());
    let sentinel_thread = std::thread::Builder::new()
        .name("sentinel".to_owned())
        .spawn(move || sentinel.run().map_err(|error| error.to_string()))
        .map_err(failed)?;
    let worker_thread = std::thread::Builder::new()
        .name("worker".to_owned())
        .spawn(move || worker.run().map_err(|error| error.to_string()))
        .map_err(failed)?;
    let mut failure = Ok(());
    let watched = loop {
        // The first one is waited for, the others that have come are taken with it.
        let first = ends.recv_timeout(WATCH_INTERVAL).ok();
        for end in first.into_iter().chain(ends.try_iter()) {
            let job_id = end.job_id;
            let Some(index) = waiting.remove(&job_id) else {
                continue;
            };
            if let Some(item) = items.get_mut(index) {
                item.outcome = outcome(end);
                match again(item) {
                    Ok(true) => drop(waiting.insert(job_id, index)),
                    Ok(false) => report(&mut progress, item),
                    Err(error) => failure = Err(error),
                }
            }
        }
        if failure.is_err() {
            break Ok(());
        }
        if waiting.is_empty() || interrupted.load(Ordering::SeqCst) {
            break Ok(());
        }
        if sentinel_thread.is_finished() || worker_thread.is_finished() {
            break Err(());
        }
    };
    stop_worker.stop();
    let worker_end = worker_thread.join();
    stop_sentinel.stop();
    let sentinel_end = sentinel_thread.join();
    progress.finish();
    for end in [worker_end, sentinel_end] {
        match end {
            Ok(Ok(())) => {}
            Ok(Err(message)) => return Err(Failure::Failed(message)),
            Err(_) => {
                return Err(failed(
                    "an internal error ended the run; the rest goes on with the same command",
                ));
            }
        }
    }
    failure?;
    watched.map_err(|()| failed("the run ended early; the same command goes on with the rest"))
}

/// What became of a file whose job has ended.
fn outcome(end: JobEnd) -> Outcome {
    let receipt = end.receipt.unwrap_or_default();
    if !end.is_completed {
        return Outcome::Failed {
            reason: end.reason.unwrap_or_else(|| "no reason".to_owned()),
            is_final: matches!(receipt.cause, Some(Cause::Plugin | Cause::Input))
                && !receipt.input_changed,
            log: receipt.log_tail,
        };
    }
    let metric = |name: &str| {
        let value = receipt.metrics.get(name);
        value.and_then(|value| u64::try_from(*value).ok())
    };
    let uris = receipt.artifacts.iter().filter_map(|file| file.get("uri"));
    Outcome::Done {
        rows: metric("rows").unwrap_or(0),
        size_bytes: metric("size_bytes").unwrap_or(0),
        outputs: uris.cloned().collect(),
    }
}

fn report(progress: &mut Progress, item: &Item) {
    let file = item
        .path
        .file_name()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default();
    let (rows, error) = match &item.outcome {
        Outcome::Waiting => return,
        Outcome::Skipped { rows, .. } => (*rows, None),
        Outcome::Done { rows, .. } => (*rows, None),
        Outcome::Failed { reason, .. } => (0, Some(reason.as_str())),
    };
    progress.ended(&Ended {
        file: &file,
        rows,
        error,
    });
}
