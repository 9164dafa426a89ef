//! Decides what a run has to do: which files are queued, skipped, or queued again.

use std::collections::BTreeSet;
use std::path::Path;

use super::layout::arrange;
use super::missing::Lost;
use super::queue::{End, GO_ON, Queue, Stop};
use crate::cli::content::{self, Fingerprint, Reader};
use crate::cli::input::{Found, LeftOut};
use crate::cli::plugin::register;
use crate::cli::progress::Progress;
use crate::cli::summary::{Item, MissingInput, Outcome, Source, counts, receipted, topics};
use crate::cli::{Failure, failed};
use crate::job::{Parameters, Sink, mtime_s, text};
use crate::limits;
use crate::reactor::BootTime;
use crate::sentinel::clock::{moment, unix_ms};
use crate::sink::{MadeWith, PublishedOutput, Root};
use crate::store::{Code, Deploy, Transaction, artifact_hash};

/// Retries after faults of the worker. Their pauses, 255 s in total, are almost as long as the run waits for
/// free disk space by default.
const RETRIES: u32 = 8;
/// How often a file may be run again in one run because it changes.
const REQUEUES_MAX: u32 = 3;

/// An input that cannot be used, which fails without a job.
pub(super) fn unusable(input: LeftOut) -> Item {
    Item::new(input.path, unusable_outcome(input.reason), None)
}

/// A failure that is not final.
pub(super) fn unusable_outcome(reason: String) -> Outcome {
    Outcome::Failed {
        reason,
        log: None,
        sandbox: None,
        is_final: false,
        is_taken: false,
    }
}

/// The start of a run.
pub(super) struct Enqueued {
    pub(super) items: Vec<Item>,
    /// Sinks of the plugin.
    pub(super) sinks: Vec<Sink>,
    /// Jobs with output whose files do not exist any more.
    pub(super) missing: Vec<MissingInput>,
    /// For each input without files that never had a file in an earlier run: the reason.
    pub(super) mistaken: Vec<String>,
    /// Number of files of earlier runs that were moved.
    pub(super) moved: usize,
}

/// The code and parameters that a run uses.
#[derive(Clone, Copy)]
pub(super) struct Own<'a> {
    pub(super) deploy: Deploy<'a>,
    /// The parameters of the command line.
    pub(super) parameters: &'a Parameters,
}

/// Jobs that are run even if their output is up to date.
#[derive(Default)]
struct Force {
    all: bool,
    some: BTreeSet<i64>,
}

/// Registers plugin and files, and queues the files that are to be run.
pub(super) fn enqueue(
    queue: &mut Queue<'_>,
    reader: &mut Reader<'_>,
    progress: &Progress,
    own: &Own<'_>,
    found: &Found,
    force: bool,
    root: &Root,
) -> Result<Enqueued, End> {
    let mut items: Vec<Item> = Vec::with_capacity(found.files.len());
    let note = |text: &str| progress.note(text);
    for input in &found.files {
        let path = input.path.clone();
        items.push(match reader.fingerprint(&path, &note) {
            Ok(print) => {
                let source = Source {
                    input: input.clone(),
                    print,
                    requeued: 0,
                    version_id: 0,
                };
                Item::new(path, Outcome::Waiting, Some(source))
            }
            Err(Failure::Failed(reason)) => unusable(LeftOut { path, reason }),
            Err(other) => return Err(other.into()),
        });
    }
    items.extend(found.left_out.iter().cloned().map(unusable));
    queue.step(progress, |store| {
        let mut transaction = store.begin()?;
        // Jobs that an earlier command line queued and did not finish are set aside.
        transaction.park_queued()?;
        transaction.deploy(&own.deploy, unix_ms())?;
        transaction.set_retries(own.deploy.plugin_name, RETRIES)?;
        Ok(transaction.commit()?)
    })?;
    let arranged = arrange(queue, progress, own.deploy.plugin_name, root)?;
    let force = Force {
        all: force,
        some: arranged.left,
    };
    let database = queue.database();
    let (sinks, missing, mistaken) = queue.step(progress, |store| {
        let id = store.database_id();
        let mut transaction = store.begin()?;
        let mut published = PublishedOutput::new(root, &id);
        let mut lost = Lost::find(&transaction, own.deploy.plugin_name, found, &mut items)?;
        let all = items.iter_mut();
        let sinks = plan(
            &mut transaction,
            database,
            own,
            &force,
            &mut published,
            &mut lost,
            all,
        )?;
        transaction.commit()?;
        let mistaken = lost.mistaken(found);
        Ok((sinks, lost.missing(found), mistaken))
    })?;
    Ok(Enqueued {
        items,
        sinks,
        missing,
        mistaken,
        moved: arranged.moved,
    })
}

/// Queues files into whose sinks they could not publish because of output that has been removed since. Such
/// files were skipped or failed.
pub(super) fn enqueue_freed(
    queue: &mut Queue<'_>,
    progress: &Progress,
    own: &Own<'_>,
    items: &mut [Item],
    root: &Root,
) -> Result<(), End> {
    let mut freed: Vec<&mut Item> = items
        .iter_mut()
        .filter(|item| item.may_be_freed())
        .collect();
    let database = queue.database();
    queue.step(progress, |store| {
        let id = store.database_id();
        let mut transaction = store.begin()?;
        let mut published = PublishedOutput::new(root, &id);
        let items = freed.iter_mut().map(|item| &mut **item);
        let lost = &mut Lost::default();
        let force = Force::default();
        plan(
            &mut transaction,
            database,
            own,
            &force,
            &mut published,
            lost,
            items,
        )?;
        transaction.commit()?;
        Ok(())
    })
}

/// Decides which of the items are run, and queues them. Results in the items replace those of an earlier
/// attempt.
fn plan<'i>(
    transaction: &mut Transaction<'_>,
    database: &Path,
    own: &Own<'_>,
    force: &Force,
    published: &mut PublishedOutput<'_>,
    lost: &mut Lost,
    items: impl Iterator<Item = &'i mut Item>,
) -> Result<Vec<Sink>, Stop> {
    let plugin = own.deploy.plugin_name;
    let now_ms = unix_ms();
    let code = match transaction.plugin_code(plugin)? {
        Code::Runs(code) => code,
        Code::Waits(reason) => {
            let database = database.display();
            return Err(failed(format!("database {database}: {reason}")).into());
        }
    };
    published.check_owners(&code.sinks).map_err(failed)?;
    if let Some(error) = published.locked() {
        return Err(failed(format!("{error}; once it is free, {GO_ON}")).into());
    }
    let artifact = artifact_hash(own.deploy.source_code, own.deploy.lockfile_content);
    let made_with = MadeWith::new(&artifact, &code.parameters.with(own.parameters));
    // They are queued last, because what is skipped must not depend on the order of the files.
    let mut wanted = Vec::new();
    for item in items {
        let Some(Source { input, print, .. }) = &item.source else {
            continue;
        };
        item.outcome = Outcome::Waiting;
        item.job_id = None;
        item.old_outputs = BTreeSet::new();
        item.old_hash = None;
        item.old_is_renamed = false;
        item.old_is_made_otherwise = false;
        item.others.clear();
        item.renamed_from = None;
        item.is_cleared = false;
        item.is_stale = false;
        let version = register(transaction, input, print, now_ms)?;
        // Other programs may have queued further jobs for the file. These have output of their own.
        let mut jobs = transaction
            .jobs_of_file(plugin, version.location_id)?
            .into_iter();
        let mut last = jobs.next();
        if last.is_none()
            && let Some((job, path)) = lost.take(transaction, plugin, &input.path, print)?
        {
            // The path is an input of the plugin, so it runs again. The earlier output is kept until it is
            // done.
            item.renamed_from = Some(path);
            last = Some(job);
        }
        for other in jobs {
            let published = transaction.publication(other.job_id)?;
            if let Some(hash) = published
                .filter(|published| !published.uris.is_empty())
                .and_then(|published| published.content_hash)
            {
                item.others.push((other.job_id, hash));
            }
        }
        if let Some(last) = &last
            && let Some(before) = transaction.publication(last.job_id)?
        {
            let receipt = last.receipt.as_deref();
            let outputs = receipted(receipt);
            let is_unchanged = last.content_hash == print.hash
                && item.renamed_from.is_none()
                && transaction.is_done(last.job_id, plugin, &artifact, &code, own.parameters)?;
            let mut failure = None;
            let mut others = |job_id: i64| {
                let found =
                    match transaction.is_done(job_id, plugin, &artifact, &code, own.parameters) {
                        Ok(true) => transaction.publication(job_id),
                        Ok(false) => Ok(None),
                        Err(error) => Err(error),
                    };
                let found = found.unwrap_or_else(|error| {
                    failure = Some(error);
                    None
                });
                found.map(|found| (found.attempt, found.key))
            };
            let stands = is_unchanged
                && !(force.all || force.some.contains(&last.job_id))
                && published.has(before.attempt, before.key, &outputs, &mut others);
            if let Some(error) = failure {
                return Err(error.into());
            }
            if let Some(error) = published.locked() {
                return Err(failed(format!("{error}; once it is free, {GO_ON}")).into());
            }
            if stands {
                item.topics = topics(receipt);
                item.output_of = Some(last.job_id);
                let (rows, size_bytes) = counts(receipt);
                item.outcome = Outcome::Skipped {
                    rows,
                    size_bytes,
                    outputs: outputs.into_iter().map(|output| output.uri).collect(),
                };
                continue;
            }
            item.old_outputs = before.uris.into_iter().collect();
            item.old_hash = before.content_hash;
            let location = before.location_id;
            item.old_is_renamed = location.is_some_and(|id| id != version.location_id);
            let old = published.made_with(before.attempt, before.key);
            item.old_is_made_otherwise = old.is_some() && old != made_with;
        }
        wanted.push((item, last.map(|last| last.job_id), version.version_id));
    }
    for (item, last, version_id) in wanted {
        let job_id = match last {
            // A file and plugin keep one row, so that the output keeps its name and is replaced.
            Some(job_id) if transaction.requeue(job_id, version_id)? => job_id,
            _ => transaction.enqueue(plugin, version_id, 0, now_ms)?,
        };
        transaction.set_parameters(job_id, own.parameters)?;
        item.job_id = Some(job_id);
        if let Some(source) = &mut item.source {
            source.version_id = version_id;
        }
    }
    Ok(code.sinks.to_vec())
}

/// Fails if a job did not run the run's own code. Then another program has deployed other code under the
/// plugin's name, and the file does not count as done.
pub(super) fn check_artifact(
    queue: &mut Queue<'_>,
    progress: &Progress,
    own: &Deploy<'_>,
    item: &Item,
) -> Result<(), End> {
    let (true, Some(job_id)) = (is_over_content(item), item.job_id) else {
        return Ok(());
    };
    let ran = queue.step(progress, |store| Ok(store.ran_with(job_id)?))?;
    if ran == Some(artifact_hash(own.source_code, own.lockfile_content)) {
        return Ok(());
    }
    Err(failed(format!(
        "plugin {}: other code was deployed under this name into queue {} during the run \
         (`casparian deploy`), and ran over {}, which does not count; deploy into a database of its \
         own, and {GO_ON}",
        own.plugin_name,
        queue.database().display(),
        item.path.display()
    ))
    .into())
}

/// Fails a file whose job has run over another file, because another program has changed the file version of
/// its row. Then returns false. If the version is another one of the same file, the sentinel has registered
/// it, and it is recorded in the item.
pub(super) fn check_file(
    queue: &mut Queue<'_>,
    progress: &Progress,
    item: &mut Item,
) -> Result<bool, End> {
    let is_over_content = is_over_content(item);
    let (true, Some(source), Some(job_id)) = (is_over_content, &mut item.source, item.job_id)
    else {
        return Ok(true);
    };
    let own = source.version_id;
    let found = queue.step(progress, |store| {
        let Some(ran) = store.file_version(job_id)? else {
            return Ok(None);
        };
        let content = match ran == own {
            true => None,
            false => store.content_of(ran, own)?,
        };
        Ok(Some((ran, content)))
    })?;
    match found {
        Some((ran, None)) if ran == own => return Ok(true),
        Some((ran, Some(content))) => {
            source.version_id = ran;
            source.print = Fingerprint {
                size_bytes: content.size_bytes.unwrap_or(0),
                mtime_s: content.mtime_ns.map_or(0.0, mtime_s),
                hash: content.hash.unwrap_or_default(),
            };
            return Ok(true);
        }
        _ => {}
    }
    let reason = "another program has given its row in the queue to another file";
    item.outcome = unusable_outcome(reason.to_owned());
    Ok(false)
}

/// True for an outcome that depends on the content of the file. After other failures the job was tried again.
fn is_over_content(item: &Item) -> bool {
    matches!(
        item.outcome,
        Outcome::Done { .. } | Outcome::Failed { is_final: true, .. }
    )
}

/// Queues a job again if its file has changed since the job was queued. Returns false if it was not queued.
///
/// Whether the job has succeeded is decided by its row alone: a file that was moved, or replaced by something
/// else, after it was read is done. If a file that is done has other content now, its output is stale.
pub(super) fn queue_again(
    queue: &mut Queue<'_>,
    reader: &mut Reader<'_>,
    progress: &Progress,
    item: &mut Item,
) -> Result<bool, End> {
    let is_over_content = is_over_content(item);
    let (true, Some(source), Some(job_id)) = (is_over_content, &mut item.source, item.job_id)
    else {
        return Ok(false);
    };
    let note = |text: &str| progress.note(text);
    let known = Some((source.print.size_bytes, source.print.mtime_s));
    let print = match reader.read(&item.path, known, &note) {
        Ok(content::Found::Content(print)) => print,
        Ok(content::Found::NothingNew) => return Ok(false),
        Ok(content::Found::Unreadable(_)) => {
            note_change(item);
            return Ok(false);
        }
        // What the file is now is not known.
        Err(Failure::Failed(_)) => {
            note_doubt(item);
            return Ok(false);
        }
        // Its job is left unchanged.
        Err(Failure::Interrupted(_)) => return Ok(false),
        Err(other) => return Err(other.into()),
    };
    if print.hash == source.print.hash {
        source.print = print;
        return Ok(false);
    }
    if source.requeued == REQUEUES_MAX {
        if let Outcome::Failed { reason, .. } = &mut item.outcome {
            *reason = text::with_first_line(reason, text::CHANGED_EACH_TIME);
        }
        note_change(item);
        return Ok(false);
    }
    let (is_queued, version_id) = queue.step(progress, |store| {
        let mut transaction = store.begin()?;
        let version = register(&mut transaction, &source.input, &print, unix_ms())?;
        let is_queued = transaction.requeue(job_id, version.version_id)?;
        transaction.commit()?;
        Ok((is_queued, version.version_id))
    })?;
    if !is_queued {
        // Another program has changed the row.
        note_change(item);
        return Ok(false);
    }
    source.requeued += 1;
    source.version_id = version_id;
    let hash = std::mem::replace(&mut source.print, print).hash;
    if let Outcome::Done { outputs, .. } = &item.outcome {
        item.old_outputs.extend(outputs.iter().cloned());
        item.old_hash = Some(hash);
        item.old_is_made_otherwise = false;
    }
    item.outcome = Outcome::Waiting;
    Ok(true)
}

/// Records that a file is not the one that its job has read, and that the job does not run again.
fn note_change(item: &mut Item) {
    item.is_stale = matches!(item.outcome, Outcome::Done { .. });
    note_doubt(item);
}

/// Records that a file may not be the one that its job has read. Then a failure is not final.
fn note_doubt(item: &mut Item) {
    if let Outcome::Failed { is_final, .. } = &mut item.outcome {
        *is_final = false;
    }
}

/// Releases all RUNNING jobs after the run.
pub(super) fn settle(queue: &mut Queue<'_>, progress: &Progress) -> Result<(), End> {
    loop {
        let put_back = queue.step(progress, |store| {
            let mut transaction = store.begin()?;
            let put_back = transaction.requeue_running(
                "the run ended",
                limits::EXPIRED_PER_ITERATION,
                &moment(BootTime::now()),
            )?;
            transaction.commit()?;
            Ok(put_back)
        })?;
        if put_back < limits::EXPIRED_PER_ITERATION {
            return Ok(());
        }
    }
}
