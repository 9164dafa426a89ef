//! The output folder of a run: checks whether it can be used, and removes or settles output of earlier runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::queue::{End, Queue};
use crate::cli::content::mtime_s;
use crate::cli::progress::Progress;
use crate::cli::summary::{Item, Outcome};
use crate::cli::{Failure, failed};
use crate::job::Attempt;
use crate::lock_file;
use crate::reactor::BootTime;
use crate::sentinel::clock::moment;
use crate::sink::{self, PublishedOutput, Root, create_folder, create_own_folder};
use crate::worker;

/// How long to wait for the lock of an output folder.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Interval between attempts to lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// Creates the output folder and locks it against a second run.
pub(super) fn open_output(output: &Path) -> Result<(PathBuf, fs::File), Failure> {
    let fail = |error: std::io::Error| failed(format!("output {}: {error}", output.display()));
    create_folder(output).map_err(|error| failed(format!("output folder: {error}")))?;
    let output = &fs::canonicalize(output).map_err(fail)?;
    let private = output.join(".casparian");
    create_own_folder(&private).map_err(|error| failed(format!("output folder: {error}")))?;
    check_private(&private)?;
    let path = private.join("run.lock");
    let lock = lock_file::open(&path)
        .map_err(|error| failed(format!("lock file {}: {error}", path.display())))?;
    // When a run is killed while it starts a tool, its lock is held until the tool has been executed.
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_INTERVAL);
            }
            Err(fs::TryLockError::WouldBlock) => {
                let holder = lock_file::holder(&path);
                let holder = holder.map_or_else(String::new, |holder| format!(" ({holder})"));
                return Err(failed(format!(
                    "output {}: another casparian run works on it{holder}",
                    output.display()
                )));
            }
            Err(fs::TryLockError::Error(error)) => return Err(fail(error)),
        }
    }
    Ok((output.clone(), lock))
}

/// Refuses symbolic links in `.casparian`, because an output folder may come from another user or host.
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

/// Refuses foreign code in the database, because an output folder may come from another user or host.
pub(super) fn check_code(queue: &mut Queue<'_>, progress: &Progress) -> Result<(), End> {
    let found = queue.step(progress, |store| Ok(store.foreign_code()?))?;
    match found.first() {
        None => Ok(()),
        Some(name) => Err(failed(format!(
            "{}: {name:?} is a trigger or view of another program; drop it, or use another output folder",
            queue.database().display()
        ))
        .into()),
    }
}

/// Settles jobs of interrupted runs. They may have published without a receipt, and their files may not be
/// inputs of this run. Complete output completes its job, other output is removed.
pub(super) fn settle_interrupted(
    queue: &mut Queue<'_>,
    progress: &Progress,
    root: &Root,
) -> Result<(), End> {
    let mut found = queue.step(progress, |store| {
        let mut transaction = store.begin()?;
        transaction.fail_unsettled("its run was interrupted", &moment(BootTime::now()))?;
        transaction.commit()?;
        Ok(store.unsettled(0)?)
    })?;
    while let Some(last) = found.last().copied() {
        for job_id in found {
            let taken = queue.step(progress, |store| {
                let mut transaction = store.begin()?;
                let taken = transaction.take_settlement(job_id)?;
                transaction.commit()?;
                Ok(taken)
            })?;
            let Some((settlement, _)) = taken else {
                continue;
            };
            let attempt = settlement.attempt;
            let kept = match root.settle(&settlement) {
                Ok(kept) => kept,
                // Its row stays unsettled. The next run tries again.
                Err(error) => {
                    progress.note(&format!("job {job_id} of an interrupted run: {error}"));
                    continue;
                }
            };
            let receipt = worker::settled(attempt, kept);
            queue.step(progress, |store| {
                let mut transaction = store.begin()?;
                transaction.settle(attempt, &receipt, &moment(BootTime::now()))?;
                Ok(transaction.commit()?)
            })?;
        }
        found = queue.step(progress, |store| Ok(store.unsettled(last)?))?;
    }
    Ok(())
}

/// Removes outdated outputs of earlier runs: those of other jobs for a file that has output now, and, with
/// `removes_failed`, the stale output of a file whose failure is final. Other failures remove no output. Returns
/// true if output of a job was removed, because it may have prevented other jobs from publishing into its sink.
pub(super) fn remove_stale(
    items: &mut [Item],
    removes_failed: bool,
    queue: &mut Queue<'_>,
    progress: &Progress,
    root: &Root,
) -> Result<bool, End> {
    // When a sink is locked, no further output is removed, so that the run waits only once. The next run
    // tries again.
    let mut is_blocked = false;
    let mut frees = false;
    for item in items.iter_mut().filter(|item| !item.is_cleared) {
        if queue.interrupted().load(Ordering::SeqCst) || is_blocked {
            continue;
        }
        item.is_cleared = true;
        let removes_others = match &item.outcome {
            // Other outputs may be of the content that the file has now.
            Outcome::Done { .. } | Outcome::Skipped { .. } => !item.is_stale,
            Outcome::Failed { is_final, .. } => removes_failed && *is_final && is_as_it_ran(item),
            Outcome::Waiting => false,
        };
        let hash = item.source.as_ref().map(|source| &source.print.hash);
        for (job_id, of) in &item.others {
            if !removes_others || hash == Some(of) || is_blocked {
                continue;
            }
            let (removed, left) = withdraw(*job_id, queue, progress, root)?;
            frees |= !removed.is_empty();
            is_blocked = report_left(&left, &item.path, progress);
        }
        match (&item.outcome, item.job_id) {
            (Outcome::Failed { is_final: true, .. }, Some(job_id))
                if removes_failed && is_outdated(item) && is_as_it_ran(item) =>
            {
                let (removed, left) = withdraw(job_id, queue, progress, root)?;
                is_blocked |= report_left(&left, &item.path, progress);
                frees |= !removed.is_empty();
                item.removed = removed;
            }
            _ => {}
        }
    }
    Ok(frees)
}

/// Records which files keep earlier output although they fail or have not been run to their end.
pub(super) fn note_kept(
    items: &mut [Item],
    queue: &mut Queue<'_>,
    progress: &Progress,
    root: &Root,
) -> Result<(), End> {
    let id = queue.step(progress, |store| Ok(store.database_id()))?;
    let mut published = PublishedOutput::new(root, &id);
    for item in items {
        let is_done = matches!(item.outcome, Outcome::Done { .. } | Outcome::Skipped { .. });
        let Some(job_id) = item.job_id.filter(|_| !is_done) else {
            continue;
        };
        let old = item.old_outputs.iter();
        let mut old = old.filter(|uri| !item.removed.contains(uri)).peekable();
        if old.peek().is_none() {
            continue;
        }
        let before = queue.step(progress, |store| Ok(store.begin()?.publication(job_id)?))?;
        let attempt = before.map_or(Attempt::new(job_id, 1), |before| before.attempt);
        item.kept = published.present(attempt, old).map_err(failed)?;
        item.is_stale = !item.kept.is_empty() && is_outdated(item);
    }
    Ok(())
}

/// Reports why earlier output is kept. Returns true if a sink is locked.
pub(super) fn report_left(left: &[sink::Error], file: &Path, progress: &Progress) -> bool {
    for error in left {
        let file = file.display();
        progress.note(&match error {
            sink::Error::NotOurs { path, .. } => format!(
                "earlier output of {file} is not there any more, and another file at its path \
                 is kept: {} (where the output folder is a copy: `casparian fsck --adopt`)",
                path.display()
            ),
            error => format!("earlier output of {file} cannot be removed: {error}"),
        });
    }
    left.iter().any(sink::Error::is_contention)
}

/// True if a file still has the size and time with which its job ran.
fn is_as_it_ran(item: &Item) -> bool {
    item.source.as_ref().is_some_and(|source| {
        let print = &source.print;
        fs::metadata(&item.path).is_ok_and(|found| {
            found.is_file() && found.len() == print.size_bytes && mtime_s(&found) == print.mtime_s
        })
    })
}

/// True if the earlier output of a file is of other content than the file has, of other code or parameters than
/// those of the run, or of an earlier name of the file. What is unknown does not count.
fn is_outdated(item: &Item) -> bool {
    let hash = item.source.as_ref().map(|source| &source.print.hash);
    let is_other = |old: &String| hash.is_some_and(|hash| hash != old);
    item.old_is_renamed
        || item.old_is_made_otherwise
        || item.old_hash.as_ref().is_some_and(is_other)
}

/// Removes what a job has published, files and rows of tables. Returns the URIs that were removed, and the
/// errors for the others.
pub(super) fn withdraw(
    job_id: i64,
    queue: &mut Queue<'_>,
    progress: &Progress,
    root: &Root,
) -> Result<(Vec<String>, Vec<sink::Error>), End> {
    // Outside of a transaction, because a sink may be locked for long. No other program changes the row
    // meanwhile.
    let (id, before) = queue.step(progress, |store| {
        let id = store.database_id();
        let before = store.begin()?.publication(job_id)?;
        Ok((id, before))
    })?;
    let Some(before) = before.filter(|before| !before.uris.is_empty()) else {
        return Ok(Default::default());
    };
    let published = PublishedOutput::new(root, &id);
    let withdrawn = queue.wait_for(progress, |_| {
        Ok(published.withdraw(before.attempt, before.key, &before.uris)?)
    })?;
    if withdrawn.is_all_removed {
        forget(job_id, queue, progress)?;
    }
    Ok((withdrawn.removed, withdrawn.left))
}

/// Records in a job's row that its output does not exist any more.
pub(super) fn forget(job_id: i64, queue: &mut Queue<'_>, progress: &Progress) -> Result<(), End> {
    queue.step(progress, |store| {
        let mut transaction = store.begin()?;
        transaction.forget_publication(job_id)?;
        Ok(transaction.commit()?)
    })
}

/// Refuses an output folder of another database before anything is changed.
pub(super) fn check_owner(
    output: &Path,
    queue: &mut Queue<'_>,
    progress: &Progress,
) -> Result<(), End> {
    let database = queue.database();
    let Some(owner) = sink::owner(output).map_err(failed)? else {
        return Ok(());
    };
    let (is_own, queue) = match database.exists() {
        false => (false, "its queue is missing".to_owned()),
        true => {
            let id = queue.wait_for(progress, |queue| Ok(queue.open()?.database_id()))?;
            (*id == *owner, format!("its queue is that of {id}"))
        }
    };
    match is_own {
        true => Ok(()),
        false => Err(failed(format!(
            "output {}: it belongs to another database ({owner}; {queue}); put back that one as {}, \
             use another output folder, or --share-output for files with names of their own; a copy \
             of that database becomes the owner by `casparian fsck --adopt`",
            output.display(),
            database.display()
        ))
        .into()),
    }
}
