//! Adoption: a copied or restored database takes over the output in a root.

use std::path::Path;

use super::folder::Name;
use super::record::{self, Record, State};
use super::recover::{self, Before};
use super::{Artifact, Error, Root, files, location, names};
use crate::job::Attempt;

/// The attempt that published a job's output, by the job's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Its number.
    pub attempt: i64,
    /// Its key.
    pub key: i64,
    /// Its output that the receipt names, with present paths.
    pub named: Vec<Artifact>,
    /// Its other output.
    pub others: Vec<Artifact>,
}

impl Root {
    /// True when a record of `owner` names a file or table that is among `uris`.
    pub fn is_output_of(&self, owner: &str, job: Attempt, uris: &[String]) -> Result<bool, Error> {
        let name = Name::numbered(owner, job)?;
        let Some(record) = record::read(self, &name)? else {
            return Ok(false);
        };
        let artifacts = record.artifacts(self);
        Ok(artifacts.iter().any(|artifact| self.names(uris, artifact)))
    }

    /// URIs of what an attempt has published by its record, with present paths. Empty where the record is
    /// of another attempt or is not committed.
    pub fn published_by(
        &self,
        database: &str,
        attempt: Attempt,
        key: i64,
    ) -> Result<Vec<String>, Error> {
        let name = Name::numbered(database, attempt)?;
        let Some(record) = record::read(self, &name)? else {
            return Ok(Vec::new());
        };
        let is_its_own = record.attempt == attempt.number && record.key == key && key != 0;
        if !is_its_own || !record.is_committed(self, &name)? {
            return Ok(Vec::new());
        }
        let artifacts = record.artifacts(self).into_iter();
        Ok(artifacts.map(|artifact| artifact.uri).collect())
    }

    /// Takes over the output that a job's record names. A restored or copied file of the recorded size
    /// and content counts as the published file: the record gets its identity. `uris` are those of the
    /// job's receipt. `None` where the job has no record. The result has no output where the record is
    /// not committed.
    pub fn adopt(
        &self,
        database: &str,
        job: Attempt,
        uris: &[String],
    ) -> Result<Option<Adopted>, Error> {
        let mut name = Name::numbered(database, job)?;
        let Some(mut record) = record::read(self, &name)? else {
            return Ok(None);
        };
        name.attempt.number = record.attempt;
        let mut is_changed = false;
        for file in &mut record.outputs.files {
            let path = self.path().join(&file.path);
            let Some(found) = files::identity(&path)? else {
                continue;
            };
            let is_copy = found.inode != 0
                && found != file.identity
                && found.size == file.identity.size
                && match &file.sha256 {
                    Some(hash) => files::sha256(&path)? == *hash,
                    None => true,
                };
            if is_copy {
                file.identity = found;
                is_changed = true;
            }
        }
        if !record.is_committed(self, &name)? {
            let has_output = self.has_output_of(&record)?;
            if record.previous_attempt == 0 || has_output {
                // Its record shows the next attempt, or a settlement, which files are the attempt's.
                for file in &mut record.previous.files {
                    is_changed |= file.recognize(self)?;
                }
                let adopted = Adopted {
                    attempt: record.attempt,
                    key: record.key,
                    named: Vec::new(),
                    others: Vec::new(),
                };
                if is_changed {
                    record.write(self, &recover::create(self, name)?)?;
                }
                return Ok(Some(adopted));
            }
            // The attempt ended before its commit, so the output of the one before it stands.
            let before = Before {
                attempt: record.previous_attempt,
                key: record.previous_key,
                replaces: record.previous_replaces,
            };
            let folder = recover::create(self, name)?;
            recover::put_back_record(self, &folder, before, record.earlier())?;
            drop(folder);
            return self.adopt(database, job, uris);
        }
        if is_changed {
            record.state = State::Committed;
            let folder = recover::create(self, name)?;
            record.write(self, &folder)?;
        }
        let all = record.artifacts(self).into_iter();
        let (named, others): (Vec<_>, Vec<_>) =
            all.partition(|artifact| self.names(uris, artifact));
        Ok(Some(Adopted {
            attempt: record.attempt,
            key: record.key,
            named,
            others,
        }))
    }

    /// True when a file of an attempt without a commit is visible.
    fn has_output_of(&self, record: &Record) -> Result<bool, Error> {
        for file in &record.outputs.files {
            let found = files::identity(&self.path().join(&file.path))?;
            let mut earlier = record.previous.files.iter();
            if found == Some(file.identity) && !earlier.any(|earlier| earlier.is_as(file)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True when a receipt names an artifact. The root may have had another path when the receipt was
    /// created.
    fn names(&self, uris: &[String], artifact: &Artifact) -> bool {
        if let Some(path) = names::file_of(&artifact.uri) {
            let below = location::below(self.path(), path);
            let mut named = uris.iter().filter_map(|uri| names::file_of(uri));
            return below.is_some_and(|below| named.any(|path| path.ends_with(&below)));
        }
        let Some((database, table)) = names::table_of(&artifact.uri) else {
            return false;
        };
        let (_, below) = location::database(self.path(), database);
        let mut named = uris.iter().filter_map(|uri| names::table_of(uri));
        named.any(|(other, of)| {
            let is_same = match &below {
                Some(below) => Path::new(other).ends_with(below),
                None => other == database,
            };
            is_same && of.eq_ignore_ascii_case(table)
        })
    }
}
