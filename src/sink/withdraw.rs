//! Withdrawal: the removal of a job's output, for a program with exclusive use of root and database. It
//! removes rows, and files that are as the record has them. The order: the record is written with the
//! files to remove; the files are removed and their folders synced; the record is removed; the caller
//! changes the database.

use std::collections::BTreeSet;
use std::path::Path;

use super::folder::Name;
use super::published::is_by;
use super::record::{self, FileOutput, Outputs, Record, State};
use super::table_output::TableOutput;
use super::{Error, PublishedOutput, files, location, moving, names, recover, sqlite};
use crate::job::Attempt;

/// The result of a withdrawal.
#[derive(Debug, Default)]
pub struct Withdrawn {
    /// URIs of what was removed.
    pub removed: Vec<String>,
    /// Why some of the output was not removed.
    pub left: Vec<Error>,
    /// No output of the job is left, so the database must be changed.
    pub is_all_removed: bool,
    /// A file that was not removed may be a copy of the output, because it has the recorded size.
    may_be_copy: bool,
}

impl PublishedOutput<'_> {
    /// Removes what the attempt with this key has published: the files that the job's record names, if
    /// they are as recorded, and the rows in tables below the root that `uris` name. Removes nothing when
    /// the record is of another attempt.
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
        // A program may have removed the output and ended before it changed the database.
        let was_empty = record.as_ref().is_none_or(is_empty);
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
                let is_reported = |error: &Error| matches!(error, Error::NotOurs { path: known, .. } if *known == path);
                let is_there = files::identity(&path)?.is_some();
                if is_there && !withdrawn.left.iter().any(is_reported) {
                    withdrawn.left.push(Error::not_ours(path));
                }
            }
        }
        // The size of a receipt is bounded, so it may not list all files.
        let more = paths.iter().map(|below| self.root.path().join(below));
        withdrawn
            .removed
            .extend(more.map(|path| names::file_uri(&path)));
        // When no file was found, their storage may not be mounted. So this does not count as removed.
        let is_known = was_empty || !withdrawn.removed.is_empty() || !withdrawn.left.is_empty();
        withdrawn.is_all_removed =
            is_known && !withdrawn.may_be_copy && withdrawn.left.iter().all(Error::is_not_ours);
        Ok(withdrawn)
    }

    /// True when a job has no record, or a record without output.
    pub fn is_withdrawn(&self, job: Attempt) -> Result<bool, Error> {
        let name = Name::numbered(self.database, job)?;
        let record = record::read(self.root, &name)?;
        Ok(record.as_ref().is_none_or(is_empty))
    }

    /// Removes the files that a record names. Also removes the record, unless `stays` is set or some
    /// output was not removed. Returns the paths of the removed files.
    fn withdraw_files(
        &self,
        mut name: Name,
        mut record: Record,
        stays: bool,
        withdrawn: &mut Withdrawn,
    ) -> Result<BTreeSet<String>, Error> {
        let root = self.root;
        name.attempt.number = record.attempt;
        let mut folder = recover::create(root, name)?;
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
        // If this process ends here, another worker continues.
        folder.leave();
        end.write(root, &folder)?;
        let before = withdrawn.left.len();
        let finished = recover::finish(root, &folder, &mut end)?;
        withdrawn.left.extend(finished.left);
        if !stays && !withdrawn.may_be_copy && withdrawn.left.len() == before {
            record::remove(root, &folder)?;
        }
        folder.remove_on_drop();
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
