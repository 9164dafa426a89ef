//! `run`: queue, sentinel and worker in one process, over the files of one command line.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::args::{Command, Flag};
use super::input::{Choice, Input, LeftOut};
use super::plugin::{
    self, Fingerprint, PluginFile, check_syntax, fingerprint, interruptible, now, own_lockfile,
    read, register, requirements_lockfile, tool_failed, unix_ms,
};
use super::progress::{Ended, Progress};
use super::stderr::tell;
use super::summary::{Item, Outcome, Source, Summary, counts, is_there, outputs};
use super::{Failure, failed, log_lines, say};
use crate::guest::environment;
use crate::job::Cause;
use crate::limits;
use crate::reactor::Endpoint;
use crate::sentinel::{self, JobEnd, Sentinel};
use crate::sink::{Root, RootOptions, create_folder};
use crate::store::{Code, Deploy, LastJob, Open, Store, artifact_hash};
use crate::worker::{self, Worker};

pub(super) const COMMAND: Command = Command {
    name: "casparian run",
    about: "Runs a plugin over files and leaves Parquet in a folder",
    usage: "PLUGIN.py INPUT... --output DIR [OPTIONS]",
    flags: &[
        Flag {
            long: "output",
            short: Some('o'),
            value: Some("DIR"),
            help: "Where the Parquet goes; made when it is missing",
        },
        Flag {
            long: "pattern",
            short: Some('p'),
            value: Some("GLOB"),
            help: "In folders only files with such names, e.g. '*.csv'",
        },
        Flag {
            long: "follow",
            short: Some('L'),
            value: None,
            help: "Follow symbolic links that lead out of a folder, too",
        },
        Flag {
            long: "slots",
            short: None,
            value: Some("N"),
            help: "Files at a time (default: the number of cores)",
        },
        Flag {
            long: "requirements",
            short: Some('r'),
            value: Some("FILE"),
            help: "Packages the plugin needs (default: its PEP 723\nmetadata, else pyarrow)",
        },
        Flag {
            long: "force",
            short: Some('f'),
            value: None,
            help: "Run over files that have not changed, too",
        },
        Flag {
            long: "share-output",
            short: None,
            value: None,
            help: "Publish into an output folder of another database too; the\nnames of the files then end with 8 digits of the database's ID",
        },
        Flag {
            long: "job-timeout",
            short: None,
            value: Some("SECONDS"),
            help: "A file that takes longer fails (default 3600)",
        },
        Flag {
            long: "guest-start",
            short: None,
            value: Some("HOW"),
            help: "warm: fork from an interpreter that has done its imports\n(default); spawn: a fresh interpreter each",
        },
        Flag {
            long: "json",
            short: None,
            value: None,
            help: "The summary as one JSON value on stdout, no progress",
        },
    ],
    notes: "INPUT is a file, a folder or a glob. A file whose content, plugin and packages have not\nchanged since it was done is skipped; failed ones are tried again. A file that is run again\nreplaces its own earlier output. Ctrl-C stops; the next run goes on where it was.\nJobs of DIR that the command line does not ask for (of an interrupted run with other inputs, or of\n`casparian submit`) are set aside as PENDING.\n\nExit code: 0 all done, 1 some failed, 2 the command line is wrong, 130 interrupted.",
};

pub(super) fn main(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let started = Instant::now();
    let typed = COMMAND.parse(arguments)?;
    let [plugin_path, inputs @ ..] = typed.positionals.as_slice() else {
        return Err(COMMAND
            .usage_error("expected a plugin and its inputs")
            .into());
    };
    if inputs.is_empty() {
        return Err(COMMAND.usage_error("expected at least one input").into());
    }
    let output = typed
        .path("output")
        .ok_or_else(|| COMMAND.usage_error("--output is missing"))?;
    let pattern = COMMAND.text(&typed, "pattern")?;
    let json = typed.has("json");
    let nowhere = Endpoint::Ipc(PathBuf::new());
    let mut worker_options = worker::Options::new(nowhere, output.clone());
    super::serve::worker_options(&COMMAND, &typed, &mut worker_options)?;
    worker_options.share_output = typed.has("share-output");
    worker_options.closed_output = true;
    log_lines::start("error");

    let plugin_path = PathBuf::from(plugin_path);
    let plugin = read(&plugin_path)?;
    let lockfile = match typed.path("requirements") {
        Some(file) => requirements_lockfile(&file, &plugin_path, &plugin)?,
        None => own_lockfile(&plugin_path, &plugin)?,
    };
    let (output, _lock) = open_output(&output)?;
    let choice = Choice {
        pattern: pattern.as_deref(),
        skip: Some(&output),
        follow: typed.has("follow"),
    };
    let found = super::input::collect(inputs, choice).map_err(failed)?;
    for line in &found.warnings {
        tell(format_args!("casparian: {line}"));
    }
    let interrupted = interruptible()?;
    let progress = Progress::new((found.files.len() + found.left_out.len()) as u64, json);
    let python = provision(&lockfile, &progress, &interrupted)?;
    check_syntax(&python, &plugin_path, &plugin, &interrupted)?;

    // The sentinel opens the database first: it puts back what an interrupted run left.
    let runtime = SocketFolder::new()?;
    let endpoint = Endpoint::Ipc(runtime.folder.path().join("s"));
    let database = output.join(".casparian").join("queue.sqlite");
    let mut sentinel_options = sentinel::Options::new(endpoint.clone(), database.clone());
    sentinel_options.signals = false;
    sentinel_options.exclusive = true;
    let sentinel = Sentinel::open(sentinel_options).map_err(failed)?;
    check_code(&database)?;
    // Nothing else that is in the database runs.
    worker_options.capabilities = vec![plugin.name.clone()];
    settle_interrupted(&database, &output, worker_options.share_output)?;
    let mut items = enqueue(
        &database,
        &plugin,
        &lockfile,
        &found.files,
        typed.has("force"),
    )?;
    items.extend(found.left_out.into_iter().map(unusable));
    worker_options.connect = endpoint;
    worker_options.output = output.clone();
    worker_options.signals = false;
    let mut again = |item: &mut Item| queue_again(&database, item);
    let result = work(
        sentinel,
        worker_options,
        &mut items,
        progress,
        &interrupted,
        &mut again,
    );
    settle(&database)?;
    result?;
    remove_stale(&items, &output);
    let summary = Summary::new(&items, started.elapsed());
    if json {
        say(&format!(
            "{}\n",
            summary.json(&plugin.name, &output, &items)
        ))?;
    } else {
        say(&summary.text(&items, &output))?;
    }
    if interrupted.load(Ordering::SeqCst) {
        return Err(Failure::Interrupted(
            "interrupted; the same command goes on with the rest",
        ));
    }
    if summary.failed > 0 {
        Err(Failure::Said)
    } else {
        Ok(())
    }
}

/// Makes the output folder and locks it against a second run.
fn open_output(output: &Path) -> Result<(PathBuf, fs::File), Failure> {
    let fail = |error: std::io::Error| failed(format!("output {}: {error}", output.display()));
    create_folder(output).map_err(|error| failed(format!("output folder: {error}")))?;
    let output = &fs::canonicalize(output).map_err(fail)?;
    let private = output.join(".casparian");
    create_folder(&private).map_err(|error| failed(format!("output folder: {error}")))?;
    check_private(&private)?;
    let path = private.join("run.lock");
    // Not blocking, so that a FIFO of that name does not hang.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let lock = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(flags.bits().cast_signed())
        .open(&path)
        .map_err(|error| failed(format!("lock file {}: {error}", path.display())))?;
    if !lock.metadata().map_err(fail)?.is_file() {
        let path = path.display();
        return Err(failed(format!(
            "lock file {path}: it is not a regular file"
        )));
    }
    // A run that was killed while it started a tool holds its lock until the tool runs.
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(WATCH_INTERVAL);
            }
            Err(fs::TryLockError::WouldBlock) => {
                return Err(failed(format!(
                    "output {}: another casparian run works on it",
                    output.display()
                )));
            }
            Err(fs::TryLockError::Error(error)) => return Err(fail(error)),
        }
    }
    Ok((output.clone(), lock))
}

/// An output folder may come from elsewhere: what is used in its `.casparian` is never a symbolic
/// link.
fn check_private(private: &Path) -> Result<(), Failure> {
    let names = ["", "queue.sqlite", "queue.sqlite-wal", "queue.sqlite-shm"];
    for name in names.into_iter().chain(["queue.sqlite-journal"]) {
        let path = match name {
            "" => private.to_owned(),
            name => private.join(name),
        };
        if fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink()) {
            let path = path.display();
            return Err(failed(format!(
                "{path}: it is a symbolic link; remove it, or use another output folder"
            )));
        }
    }
    Ok(())
}

/// Makes the plugin's environment while somebody watches.
fn provision(
    lockfile: &str,
    progress: &Progress,
    interrupted: &AtomicBool,
) -> Result<PathBuf, Failure> {
    let made = environment::provision(
        &environment::home(),
        lockfile,
        None,
        interrupted,
        &mut |line| progress.message(line),
    );
    made.map(|environment| environment.interpreter)
        .map_err(tool_failed)
}

/// An output folder may come from elsewhere: code in its database must be ours.
fn check_code(database: &Path) -> Result<(), Failure> {
    let store = Store::open(database, Open::Existing).map_err(failed)?;
    match store.foreign_code().map_err(failed)?.first() {
        None => Ok(()),
        Some(name) => Err(failed(format!(
            "{}: {name:?} is a trigger or view of another program; drop it, or use another output folder",
            database.display()
        ))),
    }
}

/// A private folder for the control socket; the worker sweeps those of killed runs.
struct SocketFolder {
    folder: tempfile::TempDir,
    _lock: fs::File,
}

impl SocketFolder {
    fn new() -> Result<Self, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("casparian-")
            .tempdir()
            .map_err(failed)?;
        let lock = fs::File::create(folder.path().join("lock")).map_err(failed)?;
        lock.try_lock().map_err(failed)?;
        Ok(SocketFolder {
            folder,
            _lock: lock,
        })
    }
}

/// An input that is no file, and so fails without a job.
fn unusable(input: LeftOut) -> Item {
    Item {
        path: input.path,
        job_id: None,
        old_outputs: BTreeSet::new(),
        outcome: unusable_outcome(input.reason),
        source: None,
    }
}

fn unusable_outcome(reason: String) -> Outcome {
    Outcome::Failed {
        reason,
        log: None,
        is_final: false,
    }
}

/// Jobs of interrupted runs may have published without a receipt, and their files may not be among
/// the inputs of this run: complete output completes its job, other output goes.
fn settle_interrupted(database: &Path, output: &Path, share: bool) -> Result<(), Failure> {
    let mut store = Store::open(database, Open::Existing).map_err(failed)?;
    let mut turn = store.begin().map_err(failed)?;
    turn.fail_unsettled("its run was interrupted", &now())
        .map_err(failed)?;
    turn.commit().map_err(failed)?;
    let mut found = store.unsettled(0).map_err(failed)?;
    if found.is_empty() {
        return Ok(());
    }
    let root = Root::open(
        output,
        RootOptions {
            share,
            is_closed: true,
        },
    )
    .map_err(failed)?;
    while let Some(last) = found.last().copied() {
        for job_id in found {
            let mut turn = store.begin().map_err(failed)?;
            let taken = turn.take_settlement(job_id).map_err(failed)?;
            turn.commit().map_err(failed)?;
            let Some((settlement, _)) = taken else {
                continue;
            };
            let attempt = settlement.attempt;
            let standing = match root.settle(&settlement) {
                Ok(standing) => standing,
                // Its row stays unsettled for the next run.
                Err(error) => {
                    tell(format_args!(
                        "casparian: job {job_id} of an interrupted run: {error}"
                    ));
                    continue;
                }
            };
            let mut turn = store.begin().map_err(failed)?;
            turn.settle(attempt, &worker::settled(attempt, standing), &now())
                .map_err(failed)?;
            turn.commit().map_err(failed)?;
        }
        found = store.unsettled(last).map_err(failed)?;
    }
    Ok(())
}

/// Registers plugin and files and queues what is to be done.
fn enqueue(
    database: &Path,
    plugin: &PluginFile,
    lockfile: &str,
    files: &[Input],
    force: bool,
) -> Result<Vec<Item>, Failure> {
    let mut items: Vec<Item> = Vec::with_capacity(files.len());
    for input in files {
        let path = input.path.clone();
        items.push(match fingerprint(&path) {
            Ok(print) => Item {
                path,
                job_id: None,
                old_outputs: BTreeSet::new(),
                outcome: Outcome::Waiting,
                source: Some(Source {
                    input: input.clone(),
                    print,
                    requeued: 0,
                }),
            },
            Err(Failure::Failed(reason)) => unusable(LeftOut { path, reason }),
            Err(other) => return Err(other),
        });
    }
    let now_ms = unix_ms();
    let mut store = Store::open(database, Open::Existing).map_err(failed)?;
    let mut turn = store.begin().map_err(failed)?;
    // What an earlier command line queued and did not finish is not asked for by this one.
    turn.park_queued().map_err(failed)?;
    turn.deploy(
        &Deploy {
            plugin_name: &plugin.name,
            version: None,
            source_code: &plugin.source,
            lockfile_content: lockfile,
            sinks: &[],
        },
        now_ms,
    )
    .map_err(failed)?;
    turn.set_retries(&plugin.name, RETRIES).map_err(failed)?;
    if let Code::Waits(reason) = turn.plugin_code(&plugin.name).map_err(failed)? {
        let database = database.display();
        return Err(failed(format!("database {database}: {reason}")));
    }
    let artifact = artifact_hash(&plugin.source, lockfile);
    for item in &mut items {
        let Some(Source { input, print, .. }) = &item.source else {
            continue;
        };
        let version = register(&mut turn, input, print, now_ms)?;
        let last = turn
            .last_job(&plugin.name, version.location_id)
            .map_err(failed)?;
        if let Some(last) = &last {
            item.old_outputs = outputs(last.receipt.as_deref());
            let unchanged = last.status == "COMPLETED"
                && last.content_hash == print.hash
                && last.artifact_hash.as_deref() == Some(&artifact)
                && item.old_outputs.iter().all(|uri| is_there(uri));
            if unchanged && !force {
                let (rows, size_bytes) = counts(last.receipt.as_deref());
                item.outcome = Outcome::Skipped { rows, size_bytes };
                continue;
            }
        }
        let job_id = match last {
            // One row a file and plugin: its output keeps its name and is replaced.
            Some(LastJob { job_id, .. })
                if turn.requeue(job_id, version.version_id).map_err(failed)? =>
            {
                job_id
            }
            _ => turn
                .enqueue(&plugin.name, version.version_id, 0, now_ms)
                .map_err(failed)?,
        };
        item.job_id = Some(job_id);
    }
    turn.commit().map_err(failed)?;
    Ok(items)
}

/// Queues a job again whose file is not any more what it was when its job was queued; false when
/// there is no need.
fn queue_again(database: &Path, item: &mut Item) -> Result<bool, Failure> {
    let (Outcome::Done { .. }, Some(source), Some(job_id)) =
        (&item.outcome, &mut item.source, item.job_id)
    else {
        return Ok(false);
    };
    // A plugin may have moved its file away.
    let Ok(found) = fs::metadata(&item.path) else {
        return Ok(false);
    };
    let Fingerprint {
        size_bytes,
        mtime_s,
        ..
    } = source.print;
    if found.len() == size_bytes && plugin::mtime_s(&found) == mtime_s {
        return Ok(false);
    }
    let print = match fingerprint(&item.path) {
        Ok(print) => print,
        Err(Failure::Failed(reason)) => {
            item.outcome = unusable_outcome(reason);
            return Ok(false);
        }
        Err(other) => return Err(other),
    };
    if print.hash == source.print.hash {
        return Ok(false);
    }
    if source.requeued == REQUEUES_MAX {
        let path = item.path.display();
        let reason = format!("input {path}: it changed each time while its job waited or ran");
        item.outcome = unusable_outcome(reason);
        return Ok(false);
    }
    source.requeued += 1;
    source.print = print;
    let mut store = Store::open(database, Open::Existing).map_err(failed)?;
    let mut turn = store.begin().map_err(failed)?;
    let version = register(&mut turn, &source.input, &source.print, unix_ms())?;
    let is_queued = turn.requeue(job_id, version.version_id).map_err(failed)?;
    turn.commit().map_err(failed)?;
    if let (true, Outcome::Done { outputs, .. }) = (is_queued, &item.outcome) {
        item.old_outputs.extend(outputs.iter().cloned());
        item.outcome = Outcome::Waiting;
    }
    Ok(is_queued)
}

/// Runs sentinel and worker until every queued item has ended or somebody interrupts.
fn work(
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
    super::serve::raise_worker_descriptor_limit();
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

/// How long an output folder may seem to be in use.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Retries after faults of the worker. A user waits for the run, so it must end in seconds.
const RETRIES: u32 = 3;
/// How often a file is run over again in one run, because it changes.
const REQUEUES_MAX: u32 = 3;
/// How often an interruption is looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);

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

/// No job stays RUNNING after the run.
fn settle(database: &Path) -> Result<(), Failure> {
    let mut store = Store::open(database, Open::Existing).map_err(failed)?;
    loop {
        let mut turn = store.begin().map_err(failed)?;
        let put_back = turn
            .release_all("the run ended", limits::EXPIRED_PER_TURN, &now())
            .map_err(failed)?;
        turn.commit().map_err(failed)?;
        if put_back < limits::EXPIRED_PER_TURN {
            return Ok(());
        }
    }
}

/// True for a file whose folder is the output folder or below it.
fn is_inside(file: &Path, output: &Path) -> bool {
    let folder = file.parent().map(fs::canonicalize);
    file.file_name().is_some()
        && folder.is_some_and(|real| real.is_ok_and(|real| real.starts_with(output)))
}

/// Outputs of earlier runs that the newest run of their file no longer has: a topic that is
/// gone, or a file that the plugin cannot take any more. What is left in the folder is what the
/// newest runs made; a fault of the machine costs no output.
fn remove_stale(items: &[Item], output: &Path) {
    for item in items {
        let current: BTreeSet<String> = match &item.outcome {
            Outcome::Done { outputs, .. } => outputs.iter().cloned().collect(),
            Outcome::Failed { is_final: true, .. } => BTreeSet::new(),
            _ => continue,
        };
        for uri in item.old_outputs.difference(&current) {
            if let Some(path) = uri.strip_prefix("file://").map(Path::new)
                && is_inside(path, output)
                && let Err(error) = fs::remove_file(path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                log::error!("cannot remove old output {}: {error}", path.display());
            }
        }
    }
}
