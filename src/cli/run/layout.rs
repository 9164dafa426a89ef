//! The layout of the output folder: files of earlier runs are moved to where the layout of this run has
//! them.

use std::collections::BTreeSet;

use super::queue::{End, Queue, Stop};
use crate::cli::failed;
use crate::cli::progress::Progress;
use crate::job::Sink;
use crate::limits;
use crate::sink::{self, Placed, Root};
use crate::store::{self, Code};

/// What became of files that were to be moved.
#[derive(Debug, Default)]
pub(super) struct Arranged {
    /// Files that were moved.
    pub(super) moved: usize,
    /// Jobs whose files could not be moved: they are run again.
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
            // Why is said when the files are queued.
            Code::Waits(_) => None,
        };
        Ok((id, sinks))
    })?;
    let mut named = |job_id| {
        let found = queue.step(progress, |store| Ok(store.begin()?.publication(job_id)?))?;
        Ok(found.map(|found| found.uris).unwrap_or_default())
    };
    root.finish_moves::<End>(&id, &mut named)?;
    let mut arranged = Arranged::default();
    let Some(sinks) = sinks else {
        return Ok(arranged);
    };
    let jobs = queue.step(progress, |store| {
        let turn = store.begin()?;
        let mut is_wanted = |_: &std::path::Path, uris: &[String]| root.may_be_misplaced(uris);
        Ok(turn.published_inputs(plugin, &mut is_wanted)?)
    })?;
    for jobs in jobs.chunks(limits::MOVED_AT_ONCE) {
        arrange_some(
            jobs,
            (&*id, plugin, &sinks),
            queue,
            progress,
            root,
            &mut arranged,
        )?;
    }
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

fn arrange_some(
    jobs: &[store::PublishedInput],
    (id, plugin, sinks): (&str, &str, &[Sink]),
    queue: &mut Queue<'_>,
    progress: &Progress,
    root: &Root,
    arranged: &mut Arranged,
) -> Result<(), End> {
    let mut relocations = Vec::new();
    for job in jobs {
        let job_id = job.job_id;
        let before = queue.step(progress, |store| Ok(store.begin()?.publication(job_id)?))?;
        let Some(before) = before else { continue };
        let placed = Placed {
            attempt: before.attempt,
            key: before.key,
            uris: &before.uris,
            plugin,
            input: &job.path.to_string_lossy(),
            sinks,
        };
        match root.misplaced(id, placed) {
            Ok(found) => relocations.extend(found),
            Err(error) => note_left(job_id, &error, progress, arranged),
        }
    }
    let mut commit = |renamed: &[sink::Renamed]| {
        queue.step(progress, |store| {
            let mut turn = store.begin()?;
            for (job_id, uris) in renamed {
                turn.rename_outputs(*job_id, uris)?;
            }
            Ok::<_, Stop>(turn.commit()?)
        })
    };
    let relocated = root.relocate::<End>(id, relocations, &mut commit)?;
    arranged.moved += relocated.count;
    for (job_id, error) in relocated.left {
        note_left(job_id, &error, progress, arranged);
    }
    Ok(())
}

fn note_left(job_id: i64, error: &sink::Error, progress: &Progress, arranged: &mut Arranged) {
    progress.note(&format!(
        "output of job {job_id} cannot be moved, and its file is run again: {error}"
    ));
    arranged.left.insert(job_id);
}

impl From<sink::Error> for End {
    fn from(error: sink::Error) -> Self {
        failed(format!("output folder: {error}")).into()
    }
}
