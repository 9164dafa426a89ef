//! The loop of a run: sentinel and worker run in threads until all jobs have ended or the run cannot
//! continue.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::plan::unusable_outcome;
use super::queue::{End, GO_ON};
use super::watch::Watch;
use crate::cli::clean::path_text;
use crate::cli::failed;
use crate::cli::progress::{self, Progress};
use crate::cli::summary::{Item, Outcome, by_topic};
use crate::cli::table::first_line;
use crate::job::{Cause, text};
use crate::sentinel::{self, JobEnd, Sentinel};
use crate::store::Ended;
use crate::thread;
use crate::worker::Worker;

/// Interval at which an interruption is polled for.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// Limit of the reports on files that are tried again later.
const PAUSES_REPORTED_MAX: u32 = 20;
/// Interval at which queue, output folder and worker are polled.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Runs sentinel and worker until every queued item has ended, a signal interrupts the run, or it cannot
/// continue. `again` queues an item again if that is needed, and returns whether it did.
pub(super) fn work(
    mut sentinel: Sentinel,
    worker: Worker,
    watch: &mut Watch,
    items: &mut [Item],
    progress: &mut Progress,
    interrupted: &AtomicBool,
    again: &mut dyn FnMut(&mut Item, &Progress) -> Result<bool, End>,
) -> Result<(), End> {
    let mut waiting: BTreeMap<i64, usize> = items
        .iter()
        .enumerate()
        .filter(|(_, item)| item.is_waiting())
        .filter_map(|(index, item)| Some((item.job_id?, index)))
        .collect();
    let (observer, ends) = channel();
    sentinel.observe(observer);
    let (stop_sentinel, stop_worker) = (sentinel.stopper(), worker.stopper());
    let sentinel = spawn("sentinel", move || sentinel.run())?;
    let worker = spawn("worker", move || worker.run())?;
    let mut polled_at = Instant::now();
    let mut pauses = 0_u32;
    let result = loop {
        // Waits for the first end, then takes all others that have arrived.
        let first = ends.recv_timeout(WATCH_INTERVAL).ok();
        let found: Vec<JobEnd> = first.into_iter().chain(ends.try_iter()).collect();
        let now = Instant::now();
        let is_due = now >= polled_at + POLL_INTERVAL;
        // An end counts only if the queue to which it was committed is still the run's queue afterwards.
        if (is_due || !found.is_empty())
            && let Err(reason) = watch.check()
        {
            break Err(End::Lost(reason));
        }
        let mut failure = None;
        for end in found {
            let job_id = end.job_id;
            if matches!(end.ended, Ended::Waits { .. }) {
                if let Some(item) = waiting.get(&job_id).and_then(|index| items.get(*index)) {
                    pauses = pauses.saturating_add(1);
                    report_pause(progress, item, &end, pauses);
                }
                continue;
            }
            let Some(index) = waiting.remove(&job_id) else {
                continue;
            };
            if let Some(item) = items.get_mut(index) {
                let artifacts = end.receipt.iter().flat_map(|receipt| &receipt.artifacts);
                let text = |artifact: &BTreeMap<String, String>, name| artifact.get(name).cloned();
                item.topics = by_topic(
                    artifacts.map(|artifact| (text(artifact, "topic"), text(artifact, "uri"))),
                );
                item.output_of = Some(job_id);
                item.outcome = outcome(end);
                if matches!(item.outcome, Outcome::Done { .. }) {
                    watch.note_success();
                }
                match again(item, progress) {
                    Ok(true) => drop(waiting.insert(job_id, index)),
                    Ok(false) => report(progress, item),
                    Err(error) => {
                        item.outcome = Outcome::Waiting;
                        failure = Some(error);
                    }
                }
            }
        }
        if let Some(failure) = failure {
            break Err(failure);
        }
        if is_due {
            for (job_id, reason) in watch.stuck(&waiting) {
                let index = waiting.remove(&job_id);
                if let Some(item) = index.and_then(|index| items.get_mut(index)) {
                    item.outcome = unusable_outcome(reason);
                    report(progress, item);
                }
            }
        }
        if waiting.is_empty() || interrupted.load(Ordering::SeqCst) {
            break Ok(());
        }
        if sentinel.is_finished() || worker.is_finished() {
            break Err(End::Failed(failed(format!("the run ended early; {GO_ON}"))));
        }
        if is_due {
            polled_at = now;
            match watch.poll_worker(now) {
                Ok(None) => {}
                Ok(Some(message)) => progress.note(&message),
                Err(reason) => break Err(End::Failed(failed(reason))),
            }
        }
    };
    stop_worker.stop();
    let worker = worker.join();
    stop_sentinel.stop();
    let sentinel = sentinel.join();
    if matches!(result, Err(End::Lost(_))) {
        return result;
    }
    match (worker, sentinel) {
        (Ok(Ok(())), Ok(Ok(()))) => result,
        (_, Ok(Err(sentinel::Error::Store(error)))) => {
            watch.check().map_err(End::Lost)?;
            Err(End::Lost(watch.given_up(&error)))
        }
        (_, Ok(Err(error))) => Err(End::Failed(failed(format!("{error}; {GO_ON}")))),
        (Ok(Err(error)), _) => Err(End::Failed(failed(format!("{error}; {GO_ON}")))),
        (Err(_), _) | (_, Err(_)) => Err(End::Failed(failed(format!(
            "an internal error ended the run; {GO_ON}"
        )))),
    }
}

/// Reports that a file is tried again after a pause. The number of such reports is limited.
fn report_pause(progress: &Progress, item: &Item, end: &JobEnd, count: u32) {
    let file = item.path.file_name().unwrap_or_default();
    let reason = end.reason.as_deref().unwrap_or("no reason");
    let more = match count == PAUSES_REPORTED_MAX {
        true => " (further ones are not reported)",
        false => "",
    };
    if count <= PAUSES_REPORTED_MAX {
        progress.note(&format!(
            "{}: tried again later: {}{more}",
            path_text(Path::new(file)),
            first_line(reason, 200)
        ));
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, End> {
    thread::start(name, run).map_err(|error| End::Failed(failed(error)))
}

/// The outcome of a file whose job has ended.
fn outcome(end: JobEnd) -> Outcome {
    let receipt = end.receipt.unwrap_or_default();
    if end.ended != Ended::Completed {
        let is_taken = receipt.taken_by().is_some();
        let reason = end.reason.unwrap_or_else(|| "no reason".to_owned());
        return Outcome::Failed {
            reason: match receipt.input_changed {
                true => text::with_first_line(&reason, text::CHANGED_EACH_TIME),
                false => reason,
            },
            is_final: matches!(receipt.cause, Some(Cause::Plugin | Cause::Input))
                && !receipt.input_changed,
            log: receipt.log_tail,
            sandbox: receipt.sandbox,
            is_taken,
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
        sandbox: receipt.sandbox,
    }
}

pub(super) fn report(progress: &mut Progress, item: &Item) {
    let file = item
        .path
        .file_name()
        .map(|name| path_text(Path::new(name)))
        .unwrap_or_default();
    let (rows, error) = match &item.outcome {
        Outcome::Waiting => return,
        Outcome::Skipped { rows, .. } => (*rows, None),
        Outcome::Done { rows, .. } => (*rows, None),
        Outcome::Failed { reason, .. } => (0, Some(reason.as_str())),
    };
    progress.ended(&progress::Ended {
        file: &file,
        rows,
        error,
    });
}
