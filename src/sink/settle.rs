//! Settlement: brings the output of an ended job in line with its receipts.

use std::path::Path;

use super::folder::{Folder, Name};
use super::record::{self, Outputs, Record, Remains, State};
use super::recover::Before;
use super::{Artifact, Error, Root, location, moving, names, recover};
use crate::job::{History, Job, PastEnd, Settlement};

impl Root {
    /// Settles an attempt that failed or was aborted, after its [`JobOutput`] or [`Staged`] was dropped.
    /// `job` is that attempt. Earlier attempts are barred, and what they left unfinished is undone.
    /// Output without a receipt (`job.previous` does not name it) is removed. Returns the URIs of what
    /// was removed. It may be called after every failure, whether or not another attempt follows.
    ///
    /// [`JobOutput`]: super::JobOutput
    /// [`Staged`]: super::Staged
    pub fn settle_failed(&self, job: &Job) -> Result<Vec<String>, Error> {
        let name = Name::new(job, self)?;
        if !name.is_numbered() {
            return Ok(Vec::new());
        }
        self.check()?;
        // The attempt may have failed to undo its own changes.
        recover::recover(self, &name)?;
        if name.attempt.ordinal() > 1 {
            let mut before = name.attempt;
            before.number -= 1;
            self.bar(&name.database, before)?;
        }
        if record::read(self, &name)?.is_none() {
            return self.check().map(|()| Vec::new());
        }
        let mut folder = recover::create(self, name)?;
        let settled = self.settle_in(&job.previous, &job.history, &mut folder);
        if settled.is_err() {
            // The next worker that opens the root finishes this settlement.
            folder.leave();
        }
        settled
    }

    /// Brings the output of an ended job in line with its row. Attempts before the settlement's number
    /// are barred, and what they left unfinished is finished or undone. Output without a receipt stays if
    /// `keep` is set, and is removed otherwise.
    ///
    /// Two kinds of output stay even without `keep`: output that replaced output with a receipt, because
    /// the replaced output cannot be restored (a part of it may be missing), and output that another copy
    /// of the database published.
    ///
    /// Returns the attempt whose output stays without a receipt, and that output; `None` when there is no
    /// such output. A settlement that is barred itself is an error and changes nothing: a later
    /// settlement is needed.
    pub fn settle(&self, settlement: &Settlement) -> Result<Option<(i64, Vec<Artifact>)>, Error> {
        let name = Name::numbered(&settlement.database, settlement.attempt)?;
        self.ensure()?;
        recover::recover(self, &name)?;
        let mut before = name.attempt;
        before.number -= 1;
        self.bar(&name.database, before)?;
        self.check_bar(&name.database, name.attempt)?;
        let history = &settlement.history;
        let is_silent = |record: &Record| {
            record.attempt > history.completed()
                && history.end(record.attempt) != PastEnd::Failed
                && !history.is_foreign(record.attempt, record.key, name.attempt)
        };
        let Some(mut record) = record::read(self, &name)? else {
            return self.check().map(|()| None);
        };
        // In a root that was copied, copies of the output count as it.
        if is_silent(&record) && record.recognize(self)? {
            record.write(self, &recover::create(self, name.clone())?)?;
        }
        if !(settlement.keep && is_silent(&record) && record.is_unchanged(self, &name)?) {
            let mut folder = recover::create(self, name.clone())?;
            let settled = self.settle_in(&settlement.previous, &settlement.history, &mut folder);
            if settled.is_err() {
                folder.leave();
            }
            settled?;
        }
        let Some(record) = record::read(self, &name)? else {
            return self.check().map(|()| None);
        };
        // Output with `replaces` is not removed, even if other jobs have replaced a part of it since.
        let is_kept = is_silent(&record)
            && match record.remains(self, &name)? {
                Remains::All => true,
                Remains::Part => record.replaces,
                Remains::Nothing => false,
            };
        self.check()?;
        Ok(is_kept.then(|| (record.attempt, record.artifacts(self))))
    }

    /// True when a settlement's job has a record here.
    pub fn has_record(&self, settlement: &Settlement) -> Result<bool, Error> {
        let name = Name::numbered(&settlement.database, settlement.attempt)?;
        Ok(record::read(self, &name)?.is_some())
    }

    /// Removes a job's output here when the attempt with the job's receipt published into another root.
    /// Removed is what the record names and is still as it was published. Must be called after
    /// [`Root::settle`]. Returns the URIs of what was removed.
    pub fn settle_duplicate(&self, settlement: &Settlement) -> Result<Vec<String>, Error> {
        let name = Name::numbered(&settlement.database, settlement.attempt)?;
        let Some(record) = record::read(self, &name)? else {
            return Ok(Vec::new());
        };
        // The receipt may name the file by an earlier path of this root. Then the file here is the one
        // with the receipt, and no duplicate.
        let named = settlement.previous.iter();
        let mut named = named.filter_map(|uri| names::file_of(uri));
        let is_recorded = |path: &Path| {
            let mut files = record.outputs.files.iter();
            files.any(|file| path.ends_with(&file.path))
        };
        if named.any(|path| is_recorded(path) && !path.exists()) {
            return Ok(Vec::new());
        }
        // No attempt has a receipt for the output in this root.
        let mut own = settlement.history.clone();
        for past in &mut own.past {
            if past.end == PastEnd::Completed {
                past.end = PastEnd::Unknown;
            }
        }
        let mut folder = recover::create(self, name)?;
        let settled = self.settle_in(&settlement.previous, &own, &mut folder);
        if settled.is_err() {
            folder.leave();
        }
        settled
    }

    fn settle_in(
        &self,
        previous: &[String],
        history: &History,
        folder: &mut Folder,
    ) -> Result<Vec<String>, Error> {
        let name = folder.name.clone();
        let Some(mut record) = record::read(self, &name)? else {
            return Ok(Vec::new());
        };
        // A later attempt is responsible for the output.
        let is_barred = self.barred_by(&name.database, name.attempt)?.is_some();
        if is_barred || record.attempt > name.attempt.number {
            return Ok(Vec::new());
        }
        moving::end(self, folder, &mut record)?;
        // Output stays if another copy of the database published it, if its attempt has a receipt, or if
        // it replaced output that cannot be restored.
        let is_own = record.attempt == name.attempt.number && record.worker == self.worker();
        let is_foreign = history.is_foreign(record.attempt, record.key, name.attempt)
            || (record.attempt == name.attempt.number && !is_own)
            || history.end(record.attempt) == PastEnd::Failed;
        if is_foreign || record.attempt <= history.completed() || record.replaces {
            return Ok(Vec::new());
        }
        let named = location::named(self.path(), previous);
        let is_named = |uri: String| named.contains(&uri);
        let (mut stays, mut goes) = (Outputs::default(), Outputs::default());
        let possible = record.possible_outputs();
        stays.made_with = possible.made_with;
        for file in possible.files {
            let list = match is_named(names::file_uri(&self.path().join(&file.path))) {
                true => &mut stays.files,
                false => &mut goes.files,
            };
            list.push(file);
        }
        for table in possible.tables {
            let database = Path::new(&table.database);
            let list = match is_named(names::table_uri(database, &table.table)) {
                true => &mut stays.tables,
                false => &mut goes.tables,
            };
            list.push(table);
        }
        if goes.is_empty() {
            return Ok(Vec::new());
        }
        for file in &mut goes.files {
            // In a root that was copied, the copy is removed.
            file.recognize(self)?;
            file.bay = folder.bay(Path::new(&file.path))?;
        }
        let before = match stays.is_empty() {
            true => Before::default(),
            false => Before {
                attempt: record.attempt,
                key: record.key,
                replaces: record.replaces,
            },
        };
        let mut end = Record::intent(self, &name, stays.clone());
        end.key = history.key;
        end.state = State::Committed;
        end.removes = goes.files;
        end.clears = goes.tables;
        end.write(self, folder)?;
        let finished = recover::finish(self, folder, &mut end)?;
        if let Some(error) = finished.left {
            return Err(error);
        }
        recover::put_back_record(self, folder, before, stays)?;
        Ok(finished.removed)
    }
}
