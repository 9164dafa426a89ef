//! The layout of the output folder: moves files of earlier runs to their paths in the layout of this run.

use std::collections::BTreeSet;

use super::queue::{End, Queue, Stop};
use crate::cli::progress::Progress;
use crate::limits;
use crate::sink::{self, PublishedJob, Relocation, Root};
use crate::store::{Code, PublishedInput};

/// Result of moving files.
#[derive(Debug, Default)]
pub(super) struct Arranged {
    /// Number of files that were moved.
    pub(super) moved: usize,
    /// Jobs whose files could not be moved. They are run again.
    pub(super) left: BTreeSet<i64>,
}

/// Moves files of the plugin's jobs.
pub(super) fn arrange(
    queue: &mut Queue<'_>,
    progress: &Progress,
    plugin: &str,
    root: &Root,
) -> Result<Arranged, End> {
    let (id, sinks) = queue.step(progress, |store| {
        let id = store.database_id();
        let sinks = match store.begin()?.plugin_code(plugin)? {
            Code::Runs(code) => Some(code.sinks.clone()),
            // The reason is reported when the files are queued.
            Code::Waits(_) => None,
        };
        Ok((id, sinks))
    })?;
    finish(queue, progress, root, &id)?;
    let mut arranged = Arranged::default();
    let Some(sinks) = sinks else {
        return Ok(arranged);
    };
    let jobs = queue.step(progress, |store| {
        let transaction = store.begin()?;
        let mut is_wanted = |input: &PublishedInput| root.may_be_misplaced(&input.uris);
        Ok(transaction.published_inputs(plugin, &mut is_wanted)?)
    })?;
    let mut found = Vec::new();
    for job in &jobs {
        let job_id = job.job_id;
        let before = queue.step(progress, |store| Ok(store.begin()?.publication(job_id)?))?;
        let Some(before) = before else { continue };
        let job = PublishedJob {
            attempt: before.attempt,
            key: before.key,
            plugin,
            input: &job.path.to_string_lossy(),
            sinks: &sinks,
        };
        match waited(queue, progress, || root.misplaced(&id, job))? {
            Ok(relocation) => found.extend(relocation),
            Err(error) => note_left(job_id, &error, progress, &mut arranged),
        }
        let count: usize = found.iter().map(Relocation::count).sum();
        if count >= limits::MOVED_AT_ONCE {
            move_files(
                std::mem::take(&mut found),
                &id,
                queue,
                progress,
                root,
                &mut arranged,
            )?;
        }
    }
    move_files(found, &id, queue, progress, root, &mut arranged)?;
    match arranged.moved {
        0 => {}
        count => progress.note(&format!(
            "files of earlier runs ({count}) were moved to where --layout {} has them",
            match root.has_datasets() {
                true => "datasets",
                false => "flat",
            }
        )),
    }
    Ok(arranged)
}

/// Finishes or undoes moves of an interrupted run.
fn finish(queue: &mut Queue<'_>, progress: &Progress, root: &Root, id: &str) -> Result<(), End> {
    queue.step(progress, |store| {
        let mut named = |job_id| {
            let found = store.begin()?.publication(job_id)?;
            Ok::<_, Stop>(found.map(|found| found.uris).unwrap_or_default())
        };
        root.finish_moves(id, &mut named).map(drop)
    })
}

/// Runs a step on the output folder. It is tried again while its disk is full.
fn waited<T>(
    queue: &mut Queue<'_>,
    progress: &Progress,
    mut step: impl FnMut() -> Result<T, sink::Error>,
) -> Result<Result<T, sink::Error>, End> {
    queue.wait_for(progress, |_| match step() {
        Err(error) if error.may_pass() || error.is_trouble() => Err(Stop::Output(error)),
        done => Ok(done),
    })
}

fn move_files(
    found: Vec<Relocation>,
    id: &str,
    queue: &mut Queue<'_>,
    progress: &Progress,
    root: &Root,
    arranged: &mut Arranged,
) -> Result<(), End> {
    if found.is_empty() {
        return Ok(());
    }
    waited(queue, progress, || root.begin_moves(id, &found))??;
    let mut jobs = Vec::with_capacity(found.len());
    if let Err(end) = add_names(found, &mut jobs, queue, progress, root, arranged) {
        // What cannot be undone now is undone by the next run or worker.
        if let Err(error) = root.end_moves(&mut jobs, false) {
            log::warn!("{error}");
        }
        return Err(end);
    }
    waited(queue, progress, || root.note_deciding(id))??;
    queue.step(progress, |store| {
        let mut transaction = store.begin()?;
        for job in &jobs {
            transaction.rename_outputs(job.job_id(), &root.renamed(job))?;
        }
        Ok(transaction.commit()?)
    })?;
    waited(queue, progress, || root.note_moved(id))??;
    waited(queue, progress, || root.end_moves(&mut jobs, true))??;
    waited(queue, progress, || root.forget_moves(id))??;
    arranged.moved += jobs.iter().map(Relocation::count).sum::<usize>();
    Ok(())
}

/// Creates the new names of files. `jobs` gets the jobs whose files have them.
fn add_names(
    found: Vec<Relocation>,
    jobs: &mut Vec<Relocation>,
    queue: &mut Queue<'_>,
    progress: &Progress,
    root: &Root,
    arranged: &mut Arranged,
) -> Result<(), End> {
    for job in found {
        jobs.push(job);
        let Some(job) = jobs.last_mut() else { continue };
        if let Err(error) = waited(queue, progress, || root.add_names(job))? {
            note_left(job.job_id(), &error, progress, arranged);
            let mut left: Vec<Relocation> = jobs.pop().into_iter().collect();
            waited(queue, progress, || root.end_moves(&mut left, false))??;
        }
    }
    Ok(waited(queue, progress, || root.sync_names(jobs))??)
}

fn note_left(job_id: i64, error: &sink::Error, progress: &Progress, arranged: &mut Arranged) {
    progress.note(&format!(
        "output of job {job_id} cannot be moved, and its file is run again: {error}"
    ));
    arranged.left.insert(job_id);
}
