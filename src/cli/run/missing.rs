//! Inputs of earlier runs that do not exist any more: finds them, finds those that have been renamed, and
//! removes the output of the others.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::output::{forget, report_left, withdraw};
use super::queue::{End, Queue};
use crate::cli::content::Fingerprint;
use crate::cli::failed;
use crate::cli::input::{Found, is_absent};
use crate::cli::progress::Progress;
use crate::cli::summary::{Item, MissingInput};
use crate::job::Attempt;
use crate::sink::{PublishedOutput, Root};
use crate::store::{Error, FileJob, PublishedInput, Transaction};

/// Jobs with output whose files this run did not find, and the paths that it found.
#[derive(Default)]
pub(super) struct Lost {
    jobs: Vec<Job>,
    /// Indexes into `jobs` by the print of their files, in descending order.
    by_print: HashMap<Print, Vec<usize>>,
    found: HashSet<PathBuf>,
    /// Jobs that renamed files have taken over.
    taken: HashSet<i64>,
    /// Indexes of folders and globs without files that had files in an earlier run.
    emptied: BTreeSet<usize>,
}

struct Job {
    input: PublishedInput,
    /// True by [`Found::has_lost`]. Otherwise the file is in no folder of this command line.
    is_listed: bool,
}

/// Hash of a file's content, and bits of its modification time. A rename keeps both.
type Print = (String, u64);

fn print_of(input: &PublishedInput) -> Option<Print> {
    Some((input.content_hash.clone()?, input.mtime_s?.to_bits()))
}

impl Lost {
    /// Finds such jobs. Also gives the items whose content could not be read their jobs.
    pub(super) fn find(
        transaction: &Transaction<'_>,
        plugin: &str,
        found: &Found,
        items: &mut [Item],
    ) -> Result<Self, Error> {
        let paths: HashSet<PathBuf> = items.iter().map(|item| item.path.clone()).collect();
        let unread = items.iter().filter(|item| item.source.is_none());
        let unread: HashSet<PathBuf> = unread.map(|item| item.path.clone()).collect();
        let prints = items.iter().filter_map(|item| item.source.as_ref());
        let prints =
            prints.map(|source| (source.print.hash.clone(), source.print.mtime_s.to_bits()));
        let prints: HashSet<Print> = prints.collect();
        let mut emptied = BTreeSet::new();
        let mut is_wanted = |input: &PublishedInput| {
            let path = &input.path;
            if paths.contains(path) {
                return unread.contains(path);
            }
            let is_lost = found.has_lost(path);
            let without = found.without.iter().enumerate();
            let of = without.filter(|(_, without)| is_lost && without.is_of(path));
            emptied.extend(of.map(|(at, _)| at));
            // A renamed file may have been in any folder before.
            is_lost || (print_of(input).is_some_and(|it| prints.contains(&it)) && is_absent(path))
        };
        let (unread, jobs): (Vec<_>, Vec<_>) = transaction
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
            is_listed: found.has_lost(&input.path),
            input,
        });
        let jobs: Vec<Job> = jobs.collect();
        let mut by_print: HashMap<Print, Vec<usize>> = HashMap::new();
        for (at, job) in jobs.iter().enumerate().rev() {
            if let Some(print) = print_of(&job.input) {
                by_print.entry(print).or_default().push(at);
            }
        }
        Ok(Lost {
            jobs,
            by_print,
            found: paths,
            taken: HashSet::new(),
            emptied,
        })
    }

    /// Finds the earlier job of a new file, and its earlier path. Either a file that does not exist any more
    /// had the same content and modification time, or an earlier release has followed the links of the file's
    /// path.
    pub(super) fn take(
        &mut self,
        transaction: &Transaction<'_>,
        plugin: &str,
        path: &Path,
        print: &Fingerprint,
    ) -> Result<Option<(FileJob, PathBuf)>, Error> {
        let print = (print.hash.clone(), print.mtime_s.to_bits());
        if let Some(before) = self.earlier(&print, path).and_then(|at| self.jobs.get(at)) {
            self.taken.insert(before.input.job_id);
            let job = transaction.file_job(before.input.job_id)?;
            return Ok(job.map(|job| (job, before.input.path.clone())));
        }
        let real = fs::canonicalize(path).ok();
        let real = real.filter(|real| real != path && !self.found.contains(real));
        let Some(real) = real else { return Ok(None) };
        let Some(location) = transaction.resolved_location(&real)? else {
            return Ok(None);
        };
        let mut jobs = transaction.jobs_of_file(plugin, location)?.into_iter();
        let job = jobs.find(|job| self.taken.insert(job.job_id));
        Ok(job.map(|job| (job, real)))
    }

    /// Reasons for folders and globs without files of which no earlier run had a file.
    pub(super) fn mistaken(&self, found: &Found) -> Vec<String> {
        let without = found.without.iter().enumerate();
        let mistaken = without.filter(|(at, _)| !self.emptied.contains(at));
        mistaken
            .map(|(_, without)| without.reason.clone())
            .collect()
    }

    /// Removes and returns the most likely job for a print. A job in another folder that was not listed does
    /// not count if its file also had another name.
    fn earlier(&mut self, print: &Print, path: &Path) -> Option<usize> {
        let (jobs, candidates) = (&self.jobs, self.by_print.get_mut(print)?);
        let likeness = |at: &usize| {
            let job = jobs.get(*at)?;
            let before = &job.input.path;
            let is_near = before.parent() == path.parent();
            let is_named_alike = before.file_name() == path.file_name();
            (job.is_listed || is_near || is_named_alike).then_some((
                job.is_listed,
                is_near,
                is_named_alike,
            ))
        };
        let found = candidates.iter().enumerate();
        let found = found.filter_map(|(index, at)| Some((likeness(at)?, index)));
        let (_, index) = found.max()?;
        Some(candidates.remove(index))
    }

    /// The jobs whose files do not exist any more and were not renamed.
    pub(super) fn missing(self, found: &Found) -> Vec<MissingInput> {
        let taken = self.taken;
        let jobs = self.jobs.into_iter();
        jobs.filter(|job| job.is_listed && !taken.contains(&job.input.job_id))
            .map(|job| MissingInput {
                may_be_unmounted: found.may_be_unmounted(&job.input.path),
                path: job.input.path,
                job_id: job.input.job_id,
                outputs: job.input.uris,
                removed: Vec::new(),
            })
            .collect()
    }
}

/// Removes jobs from the list whose output does not exist. With `prune` the output of the others is removed.
/// Returns true if output was removed, because it may have prevented other jobs from publishing into its
/// sink.
pub(super) fn settle(
    missing: &mut Vec<MissingInput>,
    prune: bool,
    queue: &mut Queue<'_>,
    progress: &Progress,
    root: &Root,
) -> Result<bool, End> {
    let id = queue.step(progress, |store| Ok(store.database_id()))?;
    let mut published = PublishedOutput::new(root, &id);
    for missing in missing.iter_mut() {
        let job_id = missing.job_id;
        let before = queue.step(progress, |store| Ok(store.begin()?.publication(job_id)?))?;
        let attempt = before.map_or(Attempt::new(job_id, 1), |before| before.attempt);
        let there = published.present(attempt, missing.outputs.iter());
        missing.outputs = there.map_err(failed)?;
        // A run was interrupted between the removal of output and the change of its row.
        let is_left = missing.outputs.is_empty();
        if is_left && published.is_withdrawn(attempt).map_err(failed)? {
            forget(job_id, queue, progress)?;
        }
    }
    drop(published);
    missing.retain(|missing| !missing.outputs.is_empty());
    let mut frees = false;
    let mut is_blocked = false;
    let is_pruned = |missing: &&mut MissingInput| prune && !missing.may_be_unmounted;
    for missing in missing.iter_mut().filter(is_pruned) {
        // The file may exist again.
        if is_blocked || !is_absent(&missing.path) {
            continue;
        }
        let (removed, left) = withdraw(missing.job_id, queue, progress, root)?;
        is_blocked = report_left(&left, &missing.path, progress);
        frees |= !removed.is_empty();
        missing.outputs.retain(|uri| !removed.contains(uri));
        missing.removed = removed;
    }
    Ok(frees)
}
