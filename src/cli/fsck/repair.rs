//! `--repair`: corrects findings. The database is locked as by a sentinel, and no worker has an output folder
//! open. So nothing else changes rows or output at the same time.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::cli::clean::path_text;
use crate::cli::{Failure, failed};
use crate::job::{Attempt, Cause, Mode, Receipt, Settlement, Target};
use crate::limits::PUBLISHED_SIZE_MAX;
use crate::reactor::BootTime;
use crate::sentinel::clock::moment;
use crate::sink::{Check, Error, Kind, Problem, PublishedOutput, Root, RootOptions};
use crate::store::{self, Audited, Inspector, Lock, Open, Settled, Store, lock_database};
use crate::worker;

/// Access to a database that may be changed, together with its output folders.
pub(super) struct Repair {
    pub(super) store: Store,
    /// By path: the last attempt that has published there by mode `replace`.
    last_publishers: HashMap<PathBuf, Option<Attempt>>,
    _lock: Lock,
}

/// What was done about a job.
pub(super) enum Done {
    Settled(&'static str),
    /// The row names the output of its attempt with a receipt again.
    Named,
    QueuedAgain,
    Adopted,
    /// The job runs again, because it was refused or lost.
    AdoptedAndQueued,
}

/// How often a barred settlement is tried again with a number above the bar.
const TRIES_MAX: u32 = 3;

impl Repair {
    /// Locks the database. Fails while a sentinel works on it.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        // First, because no files may be created beside a file that is not a queue. A link may lead there.
        let is_empty = std::fs::metadata(path).is_ok_and(|found| found.len() == 0);
        match Inspector::open(path) {
            Ok(_) => {}
            Err(store::Error::NotMigrated { .. }) if !is_empty => {}
            Err(error) => return Err(failed(error)),
        }
        let lock = lock_database(path, Open::Existing).map_err(|error| match error {
            store::Error::Locked { .. } => failed(format!(
                "{error}; stop the sentinel (or casparian run), or check without changing anything"
            )),
            error => failed(error),
        })?;
        let store = Store::open(path, Open::Existing).map_err(failed)?;
        Ok(Repair {
            store,
            last_publishers: HashMap::new(),
            _lock: lock,
        })
    }

    /// Opens an output folder, which finishes or undoes what dead attempts left in it. Fails while a worker
    /// has it open.
    pub(super) fn open_root(database: &Path, output: &Path) -> Result<Root, Failure> {
        let options = root_options(database, output);
        let fail = |error: Error| failed(format!("output folder: {error}"));
        let refuse = |root: &Root| match Check::new(root, "").workers().map_err(fail)? {
            0 => Ok(()),
            count => Err(failed(format!(
                "output folder {}: {count} workers have it open; stop them, or check without \
                 changing anything",
                output.display()
            ))),
        };
        refuse(&Root::open_to_read(output, options.clone()).map_err(fail)?)?;
        let root = Root::open(output, options).map_err(fail)?;
        // A worker may have started in the meantime.
        refuse(&root)?;
        Ok(root)
    }

    /// Finishes or undoes moves of files to another layout, so that they have the names in the database.
    pub(super) fn finish_moves(&mut self, id: &str, root: &Root) -> Result<(), Failure> {
        let mut named = |job_id| -> Result<Vec<String>, Failure> {
            let transaction = self.store.begin().map_err(failed)?;
            let found = transaction.publication(job_id).map_err(failed)?;
            Ok(found.map(|found| found.uris).unwrap_or_default())
        };
        root.finish_moves(id, &mut named).map(drop)
    }

    /// Corrects the problems of a job. None if that is not possible.
    pub(super) fn job(
        &mut self,
        row: &Audited,
        problems: &[(usize, Problem)],
        roots: &[&Root],
    ) -> Result<Option<Done>, Failure> {
        let has = |kinds: &[Kind]| {
            let mut problems = problems.iter();
            problems.any(|(_, problem)| kinds.contains(&problem.kind))
        };
        let is_unclear = has(&[
            Kind::Foreign,
            Kind::Record,
            Kind::Barred,
            Kind::Unchecked,
            Kind::UnfinishedDatabase,
            Kind::DamagedDatabase,
        ]);
        if is_unclear || row.runs_again() {
            return Ok(None);
        }
        if row.is_unsettled || has(&[Kind::NoReceipt, Kind::Unfinished, Kind::Duplicate]) {
            let of = |kind| {
                let problems = problems.iter();
                let problems = problems.filter(move |(_, problem)| problem.kind == kind);
                problems.map(|(index, _)| *index).collect::<Vec<usize>>()
            };
            // An empty list means that the output was removed.
            let may_name = row.is_list_missing || !row.outputs.is_empty();
            if may_name && self.name_output(row, &of(Kind::NoReceipt), roots)? {
                return Ok(Some(Done::Named));
            }
            // The output that the row named was removed, and exists again.
            let forgotten = match row.status == "COMPLETED" && row.outputs.is_empty() {
                true => of(Kind::NoReceipt),
                false => Vec::new(),
            };
            return self.settle(row, roots, &of(Kind::Duplicate), &forgotten);
        }
        let is_damaged = has(&[Kind::Missing, Kind::Changed, Kind::Rows, Kind::Damaged]);
        // Another attempt would fail because of it.
        let is_obstructed = has(&[Kind::Obstructed, Kind::ObstructedOutside]);
        if (is_damaged || super::is_stale(row)) && !is_obstructed && row.status == "COMPLETED" {
            if let Some(why) = self.replaces(row, roots)? {
                crate::cli::stderr::print_line(format_args!(
                    "job {}: it is not queued again: {why}; set its status to QUEUED if its \
                     output is to be there",
                    row.job_id
                ));
                return Ok(None);
            }
            let mut transaction = self.store.begin().map_err(failed)?;
            let is_queued = transaction.requeue(row.job_id, row.file_version_id);
            let is_queued = is_queued.map_err(failed)?;
            transaction.commit().map_err(failed)?;
            return Ok(is_queued.then_some(Done::QueuedAgain));
        }
        Ok(None)
    }

    /// Writes the output of the last attempt with a receipt into a row that does not name it. Returns false
    /// if no folder has such output, or if the list would be too long for a row.
    fn name_output(
        &mut self,
        row: &Audited,
        indexes: &[usize],
        roots: &[&Root],
    ) -> Result<bool, Failure> {
        let id = self.store.database_id();
        for root in indexes.iter().filter_map(|index| roots.get(*index)) {
            let found = root.published_by(&id, row.publisher, row.publisher_key);
            let uris = found.map_err(failed)?;
            if uris.is_empty() || serde_json::json!(uris).to_string().len() > PUBLISHED_SIZE_MAX {
                continue;
            }
            let mut transaction = self.store.begin().map_err(failed)?;
            transaction
                .set_published(row.job_id, uris)
                .map_err(failed)?;
            transaction.commit().map_err(failed)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Why another attempt of a job would replace later output of another job in a sink of mode `replace`:
    /// one that the job has now, or had when it published. None if it would not.
    fn replaces(&mut self, row: &Audited, roots: &[&Root]) -> Result<Option<String>, Failure> {
        let id = self.store.database_id();
        let transaction = self.store.begin().map_err(failed)?;
        // Unusable sinks are reported when the job runs.
        let sinks = transaction.sinks_of(row.job_id).map_err(failed)?;
        let mut sinks = sinks.unwrap_or_default();
        sinks.retain(|sink| sink.mode == Mode::Replace);
        let mut outputs: Vec<PublishedOutput<'_>> = roots
            .iter()
            .map(|root| PublishedOutput::new(root, &id).anywhere())
            .collect();
        let mut locations: BTreeSet<PathBuf> = BTreeSet::new();
        for published in &mut outputs {
            let found = published.locations(row.publisher);
            let is_in_root = !found.is_empty();
            locations.extend(found.into_iter().map(|(location, _)| location));
            for sink in &sinks {
                // A sink with an absolute path is the same one for all roots.
                let is_one = matches!(&sink.target, Target::Sqlite { database, .. } if database.is_absolute());
                if !is_in_root && !is_one {
                    continue;
                }
                if let Some(other) = published.of_others(sink, row.last).map_err(failed)? {
                    let other = path_text(&other);
                    return Ok(Some(format!("it would replace {other} of another job")));
                }
                locations.insert(published.location_of(sink));
            }
        }
        for location in locations {
            let last = match self.last_publishers.get(&location) {
                Some(last) => *last,
                None => {
                    let mut is_published_there = |attempt| {
                        let mut outputs = outputs.iter();
                        outputs.any(|published| {
                            let found = published.locations(attempt);
                            found.contains(&(location.clone(), true))
                        })
                    };
                    let last = transaction
                        .latest_completed(&mut is_published_there)
                        .map_err(failed)?;
                    self.last_publishers.insert(location.clone(), last);
                    last
                }
            };
            let Some(last) = last.filter(|last| last.job_id != row.job_id) else {
                continue;
            };
            if !transaction
                .ended_after(row.publisher, last)
                .map_err(failed)?
            {
                let location = path_text(&location);
                return Ok(Some(format!(
                    "job {} was the last one to publish into {location}, which replaces output of other jobs",
                    last.job_id
                )));
            }
        }
        Ok(None)
    }

    /// Settles a job in the roots, as workers do.
    fn settle(
        &mut self,
        row: &Audited,
        roots: &[&Root],
        duplicates: &[usize],
        forgotten: &[usize],
    ) -> Result<Option<Done>, Failure> {
        for _ in 0..TRIES_MAX {
            let Some(settlement) = self.take(row.job_id).map_err(failed)? else {
                return Ok(None);
            };
            let receipt = match settle_in(&settlement, roots, duplicates, forgotten) {
                Ok((kept, is_removed)) => {
                    let receipt = worker::settled(settlement.attempt, kept.clone());
                    let became = self.note(&settlement, &receipt).map_err(failed)?;
                    return Ok(Some(Done::Settled(match (kept, became) {
                        (Some(_), Settled::Completed) => {
                            "settled: the job is COMPLETED by this output"
                        }
                        (Some(_), Settled::QueuedAgain) => {
                            "settled: the output is of another file version or plugin and has a \
                             receipt, and the job is queued again"
                        }
                        (Some(_), Settled::Unchanged) => {
                            "settled: the output stays and has a receipt"
                        }
                        (None, _) if is_removed => "settled: the output was removed",
                        (None, _) => "settled: no output is left without a receipt",
                    })));
                }
                Err(error) => {
                    let mut receipt =
                        Receipt::failed(settlement.attempt, Cause::Worker, error.to_string());
                    receipt.note_others(barred_by(&error), None);
                    receipt
                }
            };
            self.note(&settlement, &receipt).map_err(failed)?;
            if receipt.barred_by(settlement.attempt).is_none() {
                let reason = receipt.error_message.unwrap_or_default();
                crate::cli::stderr::print_line(format_args!("job {}: {reason}", row.job_id));
                return Ok(None);
            }
        }
        Ok(None)
    }

    fn take(&mut self, job_id: i64) -> Result<Option<Settlement>, store::Error> {
        let mut transaction = self.store.begin()?;
        transaction.unsettle(job_id)?;
        let taken = transaction.take_settlement(job_id)?;
        transaction.commit()?;
        Ok(taken.map(|(settlement, _)| settlement))
    }

    fn note(
        &mut self,
        settlement: &Settlement,
        receipt: &Receipt,
    ) -> Result<Settled, store::Error> {
        let mut transaction = self.store.begin()?;
        let became = transaction.settle(settlement.attempt, receipt, &moment(BootTime::now()))?;
        transaction.commit()?;
        Ok(became)
    }
}

type Settling = Option<(i64, Vec<crate::sink::Artifact>)>;

/// Settles a job in each root. Returns complete output without a receipt, and whether something was removed.
fn settle_in(
    settlement: &Settlement,
    roots: &[&Root],
    duplicates: &[usize],
    forgotten: &[usize],
) -> Result<(Settling, bool), Error> {
    let mut kept = None;
    let mut is_removed = false;
    for (index, root) in roots.iter().enumerate() {
        let before = root.has_record(settlement)?;
        let found = root.settle(settlement)?;
        let is_forgotten = found.is_none() && forgotten.contains(&index);
        is_removed |= before && !root.has_record(settlement)?;
        kept = kept.or(found);
        if is_forgotten || duplicates.contains(&index) {
            is_removed |= !root.settle_duplicate(settlement)?.is_empty();
        }
    }
    Ok((kept, is_removed))
}

fn barred_by(error: &Error) -> Option<i64> {
    match error {
        Error::Barred { by, .. } => Some(*by),
        _ => None,
    }
}

/// How an output folder is opened, for a check too: both compare the same databases.
pub(super) fn root_options(database: &Path, output: &Path) -> RootOptions {
    RootOptions {
        share: true,
        is_closed: is_of_run(database, output),
        ..RootOptions::default()
    }
}

/// True for the queue of `casparian run` in its output folder. Its sinks must be in this folder.
fn is_of_run(database: &Path, output: &Path) -> bool {
    let queue = output.join(".casparian").join("queue.sqlite");
    let real = std::fs::canonicalize(database);
    real.is_ok_and(|real| std::fs::canonicalize(queue).is_ok_and(|queue| queue == real))
}
