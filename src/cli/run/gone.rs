//! Inputs of earlier runs that are not there any more: which those are, which of them have another
//! name now, and the removal of the output of the others.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::output::{forget, say_left, withdraw};
use super::queue::{End, Queue};
use crate::cli::content::Fingerprint;
use crate::cli::failed;
use crate::cli::input::Found;
use crate::cli::progress::Progress;
use crate::cli::summary::{Gone, Item};
use crate::job::Attempt;
use crate::sink::{Root, Standing};
use crate::store::{Error, FileJob, PublishedInput, Turn};

/// Jobs with output whose files this run did not find, and the paths that it found.
#[derive(Default)]
pub(super) struct Lost {
    jobs: Vec<Job>,
    found: HashSet<PathBuf>,
    /// Jobs that files with other names have taken over.
    taken: HashSet<i64>,
    /// Folders and globs without files that have lost some of an earlier run, by position.
    emptied: BTreeSet<usize>,
}

struct Job {
    input: PublishedInput,
    /// By [`Found::has_lost`]; else it is missing in a folder in which a file was named.
    is_gone: bool,
    /// A file that seems to be it.
    renamed_to: Option<PathBuf>,
}

impl Lost {
    /// Looks for them. Files whose content could not be read get their jobs.
    pub(super) fn look(
        turn: &Turn<'_>,
        plugin: &str,
        found: &Found,
        items: &mut [Item],
    ) -> Result<Self, Error> {
        let paths: HashSet<PathBuf> = items.iter().map(|item| item.path.clone()).collect();
        let unread = items.iter().filter(|item| item.source.is_none());
        let unread: HashSet<PathBuf> = unread.map(|item| item.path.clone()).collect();
        let mut emptied = BTreeSet::new();
        let mut is_wanted = |path: &Path, _: &[String]| {
            if paths.contains(path) {
                return unread.contains(path);
            }
            let without = found.without.iter().enumerate();
            let of = without.filter(|(_, without)| without.is_of(path));
            let of: Vec<usize> = of.map(|(at, _)| at).collect();
            if !of.is_empty() && found.has_lost(path) {
                emptied.extend(of);
            }
            found.may_be_renamed(path)
        };
        let (unread, jobs): (Vec<_>, Vec<_>) = turn
            .published_inputs(plugin, &mut is_wanted)?
            .into_iter()
            .partition(|job| unread.contains(&job.path));
        for job in unread.into_iter().rev() {
            let mut items = items.iter_mut();
            if let Some(item) = items.find(|item| item.path == job.path) {
                item.job_id = Some(job.job_id);
                item.old_outputs = job.uris.into_iter().collect();
            }
        }
        let jobs = jobs.into_iter().map(|input| Job {
            is_gone: found.has_lost(&input.path),
            renamed_to: None,
            input,
        });
        Ok(Lost {
            jobs: jobs.collect(),
            found: paths,
            taken: HashSet::new(),
            emptied,
        })
    }

    /// The job of a new file under its earlier name, and that name: a file that is gone had the same
    /// content and modification time, or an earlier release has followed the links of its path.
    pub(super) fn take(
        &mut self,
        turn: &Turn<'_>,
        plugin: &str,
        path: &Path,
        print: &Fingerprint,
    ) -> Result<Option<(FileJob, PathBuf)>, Error> {
        let mut jobs = self.jobs.iter();
        let is_it = |job: &Job| is_same(&job.input, print);
        match jobs.position(is_it) {
            Some(at) if self.jobs.get(at).is_some_and(|job| job.is_gone) => {
                let before = self.jobs.remove(at).input;
                self.taken.insert(before.job_id);
                let job = turn.file_job(before.job_id)?;
                return Ok(job.map(|job| (job, before.path)));
            }
            // Its folder was not listed: it may be that other files of it are wanted no more, so this
            // is only said.
            Some(at) => {
                if let Some(job) = self.jobs.get_mut(at) {
                    job.renamed_to.get_or_insert_with(|| path.to_owned());
                }
                return Ok(None);
            }
            None => {}
        }
        let real = fs::canonicalize(path).ok();
        let real = real.filter(|real| real != path && !self.found.contains(real));
        let Some(real) = real else { return Ok(None) };
        let Some(location) = turn.resolved_location(&real)? else {
            return Ok(None);
        };
        let mut jobs = turn.jobs_of_file(plugin, location)?.into_iter();
        let job = jobs.find(|job| self.taken.insert(job.job_id));
        Ok(job.map(|job| (job, real)))
    }

    /// Why nothing was found in folders and globs of which no earlier run has had a file.
    pub(super) fn mistaken(&self, found: &Found) -> Vec<String> {
        let without = found.without.iter().enumerate();
        let mistaken = without.filter(|(at, _)| !self.emptied.contains(at));
        mistaken
            .map(|(_, without)| without.reason.clone())
            .collect()
    }

    /// Those that are gone, and those that another file of this run seems to be.
    pub(super) fn gone(self, found: &Found) -> Vec<Gone> {
        let jobs = self.jobs.into_iter();
        jobs.filter(|job| job.is_gone || job.renamed_to.is_some())
            .map(|job| Gone {
                may_be_unmounted: found.may_be_unmounted(&job.input.path),
                path: job.input.path,
                job_id: job.input.job_id,
                is_listed: job.is_gone,
                renamed_to: job.renamed_to,
                outputs: job.input.uris,
                removed: Vec::new(),
            })
            .collect()
    }
}

/// True for a file with the content and the modification time that another had: a rename keeps both.
fn is_same(before: &PublishedInput, print: &Fingerprint) -> bool {
    before.content_hash.as_deref() == Some(&print.hash) && before.mtime_s == Some(print.mtime_s)
}

/// Keeps those of which output is there, and removes that output where it is wanted. True when output
/// was removed: others may have been kept from its sink.
pub(super) fn settle(
    gone: &mut Vec<Gone>,
    prune: bool,
    queue: &mut Queue<'_>,
    progress: &Progress,
    root: &Root,
) -> Result<bool, End> {
    let id = queue.step(progress, |store| Ok(store.database_id()))?;
    let mut standing = Standing::new(root, &id);
    for gone in gone.iter_mut() {
        let job_id = gone.job_id;
        let before = queue.step(progress, |store| Ok(store.begin()?.publication(job_id)?))?;
        let attempt = before.map_or(Attempt::new(job_id, 1), |before| before.attempt);
        let there = standing.present(attempt, gone.outputs.iter());
        gone.outputs = there.map_err(failed)?;
        // A run was stopped between the removal and the change of its row.
        let is_left = gone.is_listed && gone.outputs.is_empty();
        if is_left && standing.is_withdrawn(attempt).map_err(failed)? {
            forget(job_id, queue, progress)?;
        }
    }
    drop(standing);
    gone.retain(|gone| !gone.outputs.is_empty());
    let mut frees = false;
    let mut is_blocked = false;
    let is_pruned = |gone: &&mut Gone| prune && gone.is_listed && !gone.may_be_unmounted;
    for gone in gone.iter_mut().filter(is_pruned) {
        // The file may have come back.
        if is_blocked || gone.path.symlink_metadata().is_ok() {
            continue;
        }
        let (removed, left) = withdraw(gone.job_id, queue, progress, root)?;
        is_blocked = say_left(&left, &gone.path, progress);
        frees |= !removed.is_empty();
        gone.outputs.retain(|uri| !removed.contains(uri));
        gone.removed = removed;
    }
    Ok(frees)
}
