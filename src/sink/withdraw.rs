//! The removal of a job's output, for a program that has root and database to itself: of files that are
//! as its record has them, and of rows. The record says that they go before the first one does, and is gone
//! when they are durably gone. The database forgets them after that.

use std::collections::BTreeSet;
use std::path::Path;

use super::folder::{Folder, Name};
use super::record::{self, FileOutput, Outputs, Record, State, TableOutput};
use super::standing::is_by;
use super::{Error, Standing, files, location, moving, names, recover, sqlite};
use crate::job::Attempt;

/// What became of a job's output.
#[derive(Debug, Default)]
pub struct Withdrawn {
    /// URIs of what was removed.
    pub removed: Vec<String>,
    /// Why something stays.
    pub left: Vec<Error>,
    /// No output of the job is there any more: the database is to forget it.
    pub is_gone: bool,
    /// Some of what stays may be a copy of the output: it has its size.
    may_be_copy: bool,
}

impl Standing<'_> {
    /// Removes what the attempt with this key has published: the files that the job's record names, where
    /// they are the ones that it means, and the rows in the tables below the root that `uris` name. Nothing
    /// where the record is another attempt's.
    pub fn withdraw(
        &self,
        publisher: Attempt,
        key: i64,
        uris: &[String],
    ) -> Result<Withdrawn, Error> {
        let name = Name::numbered(self.database, publisher)?;
        let mut withdrawn = Withdrawn::default();
        let record = record::read(self.root, &name)?;
        let is_other = |record: &Record| !is_by(record, publisher, key);
        if record.as_ref().is_some_and(is_other) {
            return Ok(withdrawn);
        }
        for uri in uris {
            let Some((database, table)) = names::table_of(uri) else {
                continue;
            };
            match self.clear(&name, key, database, table) {
                Ok(true) => withdrawn.removed.push(uri.clone()),
                Ok(false) => {}
                Err(error) => withdrawn.left.push(error),
            }
        }
        let stays = !withdrawn.left.is_empty();
        // A program was stopped before the database forgot the output.
        let was_gone = record.as_ref().is_none_or(is_empty);
        let mut paths = BTreeSet::new();
        if let Some(record) = record {
            paths = self.withdraw_files(name, record, stays, &mut withdrawn)?;
        }
        for uri in uris {
            let below =
                names::file_of(uri).and_then(|path| location::below(self.root.path(), path));
            let Some(below) = below else { continue };
            if paths.remove(&below) {
                withdrawn.removed.push(uri.clone());
            } else {
                let path = self.root.path().join(below);
                let is_told = |error: &Error| matches!(error, Error::NotOurs { path: told, .. } if *told == path);
                let is_there = files::identity(&path)?.is_some();
                if is_there && !withdrawn.left.iter().any(is_told) {
                    withdrawn.left.push(Error::not_ours(path));
                }
            }
        }
        // A receipt may have no room for all files.
        let more = paths.iter().map(|below| self.root.path().join(below));
        withdrawn
            .removed
            .extend(more.map(|path| names::file_uri(&path)));
        // Storage that is not mounted has none of the files: then nothing is known.
        let is_known = was_gone || !withdrawn.removed.is_empty() || !withdrawn.left.is_empty();
        withdrawn.is_gone =
            is_known && !withdrawn.may_be_copy && withdrawn.left.iter().all(Error::is_not_ours);
        Ok(withdrawn)
    }

    /// True where a job has no output by its record.
    pub fn is_withdrawn(&self, job: Attempt) -> Result<bool, Error> {
        let name = Name::numbered(self.database, job)?;
        let record = record::read(self.root, &name)?;
        Ok(record.as_ref().is_none_or(is_empty))
    }

    /// Removes the files that a record names, and the record, unless something of the job stays. Gives the
    /// paths of the files that were removed.
    fn withdraw_files(
        &self,
        mut name: Name,
        mut record: Record,
        stays: bool,
        withdrawn: &mut Withdrawn,
    ) -> Result<BTreeSet<String>, Error> {
        let root = self.root;
        name.attempt.number = record.attempt;
        let mut folder = Folder::create(root, name)?;
        moving::end(root, &folder, &mut record)?;
        let mut goes: Vec<FileOutput> = record.outputs.files.clone();
        if record.has_leftovers {
            goes.extend(record.removes.iter().cloned());
        }
        let mut known = Vec::new();
        let mut copies = Vec::new();
        for mut file in goes {
            let path = root.path().join(&file.path);
            match files::identity(&path)? {
                Some(found) if found == file.identity => {
                    file.bay = folder.bay(Path::new(&file.path))?;
                    known.push(file);
                }
                Some(found) => {
                    if found.size == file.identity.size {
                        copies.push(file);
                    }
                    withdrawn.left.push(Error::not_ours(path));
                }
                None => {}
            }
        }
        let is_found = !known.is_empty() || !withdrawn.left.is_empty();
        if !is_found && withdrawn.removed.is_empty() {
            return Ok(BTreeSet::new());
        }
        let mut end = Record::intent(root, &folder.name, Outputs::default());
        end.key = record.key;
        end.replaces = record.replaces;
        end.state = State::Committed;
        if stays || !copies.is_empty() {
            end.outputs.tables.clone_from(&record.outputs.tables);
        }
        withdrawn.may_be_copy = !copies.is_empty();
        end.outputs.files = copies;
        end.removes = known;
        // Another worker goes on where this one stops.
        folder.leave();
        end.write(root, &folder)?;
        let before = withdrawn.left.len();
        let finished = recover::finish(root, &folder, &mut end)?;
        withdrawn.left.extend(finished.left);
        if !stays && !withdrawn.may_be_copy && withdrawn.left.len() == before {
            record::remove(root, &folder)?;
        }
        folder.unleave();
        let path = |uri: &String| location::below(root.path(), names::file_of(uri)?);
        Ok(finished.removed.iter().filter_map(path).collect())
    }

    fn clear(&self, name: &Name, key: i64, database: &str, table: &str) -> Result<bool, Error> {
        let (database, below) = location::database(self.root.path(), database);
        if below.is_none() || !sqlite::is_usable(Path::new(&database)) {
            return Ok(false);
        }
        let output = TableOutput::named(database, below, table);
        match key {
            0 => sqlite::clear(&output, name, name.attempt.number),
            key => sqlite::clear_exact(&output, name, key),
        }
    }
}

/// True for a record without output.
fn is_empty(record: &Record) -> bool {
    record.outputs.is_empty() && !record.has_leftovers
}
