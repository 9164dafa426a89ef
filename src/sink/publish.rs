//! Publishing: makes staged output visible.
//!
//! The steps:
//! 1. Earlier attempts are barred.
//! 2. The plan is created and checked, and SQLite transactions are prepared.
//! 3. Lease and bars are checked.
//! 4. Earlier files are kept, and the record is written with the state `intent`.
//! 5. Files are renamed, their folders are synced, and SQLite transactions are committed.
//! 6. The record is written with the state `committed`, unless one rename was all or there are SQLite
//!    transactions.
//! 7. Output that this attempt replaces is removed.
//!
//! Until the commit everything can be undone: by this process after a failure, by any other process after
//! the end of this one.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use super::files;
use super::plan::{self, Plan};
use super::record::{FileOutput, Record, State};
use super::sqlite::{self, Patience, Prepared};
use super::staged::{Artifact, STAGE, Staged};
use super::{Error, claims, recover};
use crate::job::Attempt;
use crate::limits;

/// Why a publish was refused.
pub enum Refused {
    /// The attempt has no lease, or another job publishes into the same sink of mode `replace`
    /// or `error`. Nothing is visible; publish again when the lease is granted.
    NotGranted(Box<Staged>),
    /// It failed. No output of the attempt is visible, or the next attempt removes it.
    Failed(Error),
}

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NotGranted(_) => f.write_str("NotGranted"),
            Refused::Failed(error) => write!(f, "Failed({error:?})"),
        }
    }
}

/// What publishing changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The output that is visible now.
    pub artifacts: Vec<Artifact>,
    /// URIs of removed output: output of earlier attempts, and output that mode `replace` replaced.
    pub removed: Vec<String>,
}

/// The steps of publishing, for tests that stop at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Bar,
    Plan,
    Keep,
    Intent,
    Rename(usize),
    Sync,
    Table(usize),
    Commit,
    Remove,
    Done,
}

/// Called before each step. An error stops the publish there.
pub(super) type Hook<'a> = &'a dyn Fn(Step) -> Result<(), Error>;

impl Staged {
    /// What was left out of the files, for the job's log: one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Number of rows of all sinks.
    #[cfg(test)]
    pub(super) fn rows(&self) -> u64 {
        self.sinks.iter().map(|sink| sink.rows).sum()
    }

    /// Makes the output visible: all of it or (after a refusal) none of it. `barred_others` are attempts
    /// of other jobs of the database that may not publish any more. They are barred first. `is_granted`
    /// returns whether the attempt has a lease. It is called after each step that may take time; output
    /// becomes visible only while it returns true.
    ///
    /// A publish waits only for SQLite databases (30 s), and for other jobs that publish into the same
    /// sink of mode `replace` or `error` (1 s, then it is refused as not granted).
    pub fn publish(
        self,
        barred_others: &[Attempt],
        is_granted: &dyn Fn() -> bool,
    ) -> Result<Published, Refused> {
        self.publish_by_steps(barred_others, is_granted, &|_| Ok(()))
    }

    pub(super) fn publish_by_steps(
        mut self,
        barred_others: &[Attempt],
        is_granted: &dyn Fn() -> bool,
        hook: Hook<'_>,
    ) -> Result<Published, Refused> {
        match self.try_publish(barred_others, is_granted, hook) {
            Ok(Some(published)) => Ok(published),
            Ok(None) => match claims::withdraw(&self.folder) {
                Ok(()) => Err(Refused::NotGranted(Box::new(self))),
                Err(error) => Err(Refused::Failed(self.root.judged(error))),
            },
            Err(error) => Err(Refused::Failed(self.root.judged(error))),
        }
    }

    /// `None` when the lease ended, or another job publishes into the same exclusive sink.
    fn try_publish(
        &mut self,
        barred_others: &[Attempt],
        is_granted: &dyn Fn() -> bool,
        hook: Hook<'_>,
    ) -> Result<Option<Published>, Error> {
        if !is_granted() {
            return Ok(None);
        }
        self.check_folder()?;
        hook(Step::Bar)?;
        self.bar(barred_others)?;
        // Checked before the plan, which would report a barred attempt as one of a copied database.
        self.check_bar()?;
        hook(Step::Plan)?;
        let sinks = plan::exclusive(self);
        if !sinks.is_empty() && !claims::acquire(&self.root, &self.folder, &sinks, is_granted)? {
            return Ok(None);
        }
        self.check_folder()?;
        let Plan {
            mut record,
            tables,
            has_earlier,
        } = plan::make(self)?;
        if record.outputs.is_empty() && !has_earlier {
            return Ok(Some(Published::default()));
        }
        self.root.check()?;
        let Some(prepared) = self.prepare(&tables, is_granted)? else {
            return Ok(None);
        };
        if !is_granted() {
            return Ok(None);
        }
        hook(Step::Keep)?;
        self.check_bar()?;
        self.keep(&record)?;
        let carried_out = self.carry_out(&mut record, prepared, is_granted, hook);
        if !matches!(carried_out, Ok(true))
            && let Err(error) = recover::undo(&self.root, &self.folder, &record)
        {
            // A barred attempt is undone by the worker that barred it.
            if self.folder.exists() {
                log::error!("cannot undo {}: {error}", self.folder.name.run());
            }
            self.folder.leave();
            return carried_out.and(Err(error));
        }
        if !carried_out? {
            return Ok(None);
        }
        hook(Step::Remove).inspect_err(|_| self.folder.leave())?;
        let finished = match recover::finish(&self.root, &self.folder, &mut record) {
            Ok(finished) => finished,
            Err(error) => {
                // The output is committed. The next worker that opens the root continues the removal.
                log::warn!("{}: not finished: {error}", self.folder.name.run());
                self.folder.leave();
                recover::Finished::default()
            }
        };
        hook(Step::Done)?;
        // A successor may have replaced the output since. Then this attempt reports nothing.
        self.check_folder()?;
        Ok(Some(Published {
            artifacts: record.artifacts(&self.root),
            removed: finished.removed,
        }))
    }

    /// Opens the transactions of all databases. `None` when the lease ended.
    ///
    /// A transaction excludes readers in two cases. With several databases none is committed before all
    /// can be, so a reader must not be able to block a commit. A large transaction needs an exclusive
    /// lock when its rows exceed the cache.
    fn prepare(
        &self,
        tables: &[sqlite::Target],
        is_granted: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Prepared>>, Error> {
        let stage = self.folder.path(STAGE);
        let size = stage.metadata().map_or(0, |stage| stage.len());
        let excludes_readers = tables.len() > 1 || size > limits::SQLITE_SHARED_SIZE_MAX;
        let mut prepared = Vec::new();
        for target in tables {
            let stuck = self.root.stuck();
            let patience = Patience::new(stuck.wait(&target.database), is_granted);
            let transaction = sqlite::prepare(target, &stage, excludes_readers, &patience);
            if let Err(Error::Locked { path }) = &transaction {
                stuck.note(path, true);
            }
            match transaction.map_err(|error| self.folder.refusal(error))? {
                Some(transaction) => prepared.push(transaction),
                None => return Ok(None),
            }
        }
        Ok(Some(prepared))
    }

    fn bar(&self, others: &[Attempt]) -> Result<(), Error> {
        let name = &self.folder.name;
        if !name.is_numbered() {
            return Ok(());
        }
        for other in others {
            if other.job_id != name.attempt.job_id {
                self.root.bar(&name.database, *other)?;
            }
        }
        if name.attempt.ordinal() > 1 {
            let before = Attempt::new(name.attempt.job_id, name.attempt.number - 1);
            self.root.bar(&name.database, before)?;
        }
        Ok(())
    }

    fn check_bar(&self) -> Result<(), Error> {
        let name = &self.folder.name;
        if name.is_numbered() {
            self.root.check_bar(&name.database, name.attempt)?;
        }
        self.check_folder()
    }

    fn check_folder(&self) -> Result<(), Error> {
        self.root.check()?;
        match self.folder.exists() {
            true => Ok(()),
            false => Err(self.folder.missing_error()),
        }
    }

    /// Keeps the files that will be replaced under a second name, until the publish is committed.
    fn keep(&self, record: &Record) -> Result<(), Error> {
        let earlier = earlier(record);
        for file in &record.outputs.files {
            let Some(earlier) = earlier.get(file.path.as_str()) else {
                continue;
            };
            let path = self.root.path().join(&file.path);
            let kept = self.kept(file);
            files::remove(&kept)?;
            files::keep(&path, &kept).map_err(|error| self.folder.refusal(error))?;
            let found = files::identity(&kept)?;
            // On file systems without hard links the kept file is a copy: its inode differs, its size
            // does not.
            if found.map(|found| found.size) != Some(earlier.identity.size) {
                return Err(Error::not_ours(path));
            }
        }
        Ok(())
    }

    fn kept(&self, file: &FileOutput) -> PathBuf {
        let name = format!("k{}", file.index);
        self.folder.path_in(file.bay.as_deref(), &name)
    }

    fn commit(&self, transaction: Prepared, is_granted: &dyn Fn() -> bool) -> Result<bool, Error> {
        let (stuck, database) = (self.root.stuck(), transaction.database().to_owned());
        let committed = transaction.commit(&Patience::new(stuck.wait(&database), is_granted));
        match &committed {
            Ok(true) => stuck.note(&database, false),
            Err(Error::Locked { .. }) => stuck.note(&database, true),
            _ => {}
        }
        committed
    }

    /// The steps from the intent to the commit. False when the lease ended before the commit.
    fn carry_out(
        &mut self,
        record: &mut Record,
        prepared: Vec<Prepared>,
        is_granted: &dyn Fn() -> bool,
        hook: Hook<'_>,
    ) -> Result<bool, Error> {
        hook(Step::Intent)?;
        record.write(&self.root, &self.folder)?;
        let earlier = earlier(record);
        for (at, file) in record.outputs.files.iter().enumerate() {
            if !is_granted() {
                return Ok(false);
            }
            hook(Step::Rename(at))?;
            let name = format!("s{}", file.index);
            let staged = self.folder.path_in(file.bay.as_deref(), &name);
            let path = self.root.path().join(&file.path);
            let refusal = |error| self.folder.refusal(error);
            if earlier.contains_key(file.path.as_str()) {
                files::rename(&staged, &path).map_err(refusal)?;
            } else if !files::rename_new(&staged, &path).map_err(refusal)? {
                return Err(Error::not_ours(path));
            }
        }
        hook(Step::Sync)?;
        recover::sync_parents(&self.root, record.outputs.files.iter())?;
        // The root may have been removed or replaced between the check and the renames.
        self.root.check()?;
        for (at, transaction) in prepared.into_iter().enumerate() {
            // Rows that the first commit has replaced cannot be restored, so the others must follow, also
            // without a lease. Successors cannot write to the other databases while these transactions
            // are open.
            if !is_granted() && at == 0 {
                return Ok(false);
            }
            hook(Step::Table(at))?;
            // The last check was before the wait for the transactions.
            self.check_bar()?;
            let is_granted = || is_granted() || at > 0;
            if !self.commit(transaction, &is_granted)? {
                return Ok(false);
            }
        }
        if record.outputs.tables.is_empty() && record.outputs.files.len() > 1 {
            hook(Step::Commit)?;
            record.state = State::Committed;
            if let Err(error) = record.write(&self.root, &self.folder) {
                record.state = State::Intent;
                return Err(error);
            }
        }
        Ok(true)
    }
}

/// The job's earlier files, by path.
fn earlier(record: &Record) -> HashMap<&str, &FileOutput> {
    let previous = record.previous.files.iter();
    previous.map(|file| (file.path.as_str(), file)).collect()
}
