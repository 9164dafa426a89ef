//! Whether published output is still what a receipt says, and its removal: for a program that has
//! root and database to itself.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::folder::Name;
use super::record::{self, FileOutput, Record, TableOutput};
use super::sqlite::{self, Tables};
use super::{Error, Root, files, names, place};
use crate::job::{Attempt, Sink, Target};

/// An output as a receipt names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipted {
    /// Where it is.
    pub uri: String,
    /// Its rows.
    pub rows: u64,
    /// Bytes of a file; none where the receipt does not say it.
    pub size_bytes: Option<u64>,
}

/// Looks at the output of many jobs. Tables are read once: what changes meanwhile is not seen.
pub struct Standing<'a> {
    root: &'a Root,
    database: &'a str,
    /// None for what is no database of ours, or cannot be read.
    tables: HashMap<PathBuf, Option<Tables>>,
    locked: Option<Error>,
}

impl<'a> Standing<'a> {
    /// Of jobs of that database.
    pub fn new(root: &'a Root, database: &'a str) -> Self {
        Standing {
            root,
            database,
            tables: HashMap::new(),
            locked: None,
        }
    }

    /// Why it is not known what stands in a table: another program locks its database.
    pub fn locked(&self) -> Option<&Error> {
        self.locked.as_ref()
    }

    /// Refuses tables below the root that belong to another database, unless they are shared.
    pub fn check_owners(&mut self, sinks: &[Sink]) -> Result<(), Error> {
        for sink in sinks {
            let Target::Sqlite { database, table } = &sink.target else {
                continue;
            };
            let path = self.root.path().join(database);
            let Some(found) = self.tables_of(&path.to_string_lossy()) else {
                continue;
            };
            match found.owner(table) {
                Some(owner) if owner != self.database && !self.root.shares() => {
                    return Err(Error::OtherDatabase {
                        path: path.join(table),
                        owner,
                        database: self.database.to_owned(),
                        is_final: true,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// True when all of this stands as the attempt with this key published it. Files are compared by
    /// size and time of modification, tables by the number of the job's rows. What cannot be read
    /// does not stand.
    pub fn has(&mut self, publisher: Attempt, key: i64, outputs: &[Receipted]) -> bool {
        let Ok(name) = Name::numbered(self.database, publisher) else {
            return false;
        };
        let Ok(record) = record::read(self.root, &name) else {
            return false;
        };
        let is_ours = |record: &Record| is_by(record, publisher, key);
        if !outputs.is_empty() && !record.as_ref().is_none_or(is_ours) {
            return false;
        }
        // A receipt may have no room for all files.
        let stands = |file: &FileOutput| {
            let found = files::identity(&self.root.path().join(&file.path));
            let known = file.identity;
            found.is_ok_and(|found| {
                found.is_some_and(|found| {
                    (known.size, known.modified_s, known.modified_ns)
                        == (found.size, found.modified_s, found.modified_ns)
                })
            })
        };
        if let Some(record) = &record
            && !record.outputs.files.iter().all(stands)
        {
            return false;
        }
        // Several topics may go into one table.
        let mut rows: HashMap<&str, u64> = HashMap::new();
        for output in outputs {
            *rows.entry(&output.uri).or_default() += output.rows;
        }
        outputs.iter().all(|output| {
            let rows = rows.get(output.uri.as_str()).copied().unwrap_or(0);
            match (names::file_of(&output.uri), names::table_of(&output.uri)) {
                (Some(path), _) => self.has_file(path, output, record.as_ref()),
                (None, Some((database, table))) => self
                    .tables_of(database)
                    .is_some_and(|tables| tables.has(table, &name, key, rows)),
                (None, None) => false,
            }
        })
    }

    fn has_file(&self, path: &Path, output: &Receipted, record: Option<&Record>) -> bool {
        let Ok(Some(found)) = files::identity(path) else {
            return false;
        };
        let Some(record) = record else {
            return found.inode != 0 && output.size_bytes.is_none_or(|size| size == found.size);
        };
        let Some(below) = place::below(self.root.path(), path) else {
            return false;
        };
        let mut files = record.outputs.files.iter();
        files.any(|file| {
            let known = file.identity;
            file.path == below
                && (known.size, known.modified_s, known.modified_ns)
                    == (found.size, found.modified_s, found.modified_ns)
        })
    }

    fn tables_of(&mut self, database: &str) -> Option<&mut Tables> {
        let (path, below) = place::database(self.root.path(), database);
        below?;
        let path = PathBuf::from(path);
        let found = self.tables.entry(path.clone());
        let opened = found.or_insert_with(|| match Tables::open(&path) {
            Ok(tables) => tables,
            Err(error) => {
                log::warn!("{error}");
                if error.is_contention() {
                    self.locked = Some(error);
                }
                None
            }
        });
        opened.as_mut()
    }

    /// Removes what the attempt with this key has published, of what is named: files and rows below
    /// the root, unless they are another attempt's by their record. Gives what was removed, and why
    /// the rest was not.
    pub fn withdraw<'u>(
        &self,
        publisher: Attempt,
        key: i64,
        uris: impl Iterator<Item = &'u String>,
    ) -> Result<(Vec<String>, Vec<Error>), Error> {
        let name = Name::numbered(self.database, publisher)?;
        let (mut removed, mut left) = (Vec::new(), Vec::new());
        let record = record::read(self.root, &name)?;
        if record
            .as_ref()
            .is_some_and(|record| !is_by(record, publisher, key))
        {
            return Ok((removed, left));
        }
        // A receipt may have no room for all files.
        let mut all: BTreeSet<String> = uris.cloned().collect();
        for file in record.iter().flat_map(|record| &record.outputs.files) {
            let path = self.root.path().join(&file.path);
            all.insert(format!("file://{}", path.display()));
        }
        for uri in &all {
            let gone = match (names::file_of(uri), names::table_of(uri)) {
                (Some(path), _) => self.remove_file(path),
                (None, Some((database, table))) => self.clear(&name, key, database, table),
                (None, None) => Ok(false),
            };
            match gone {
                Ok(true) => removed.push(uri.clone()),
                Ok(false) => {}
                Err(error) => left.push(error),
            }
        }
        Ok((removed, left))
    }

    fn remove_file(&self, path: &Path) -> Result<bool, Error> {
        let is_there = files::identity(path)?.is_some();
        let below = place::below(self.root.path(), path);
        if !is_there || below.is_none_or(|below| below.starts_with(".casparian/")) {
            return Ok(false);
        }
        files::remove(path)?;
        Ok(true)
    }

    fn clear(&self, name: &Name, key: i64, database: &str, table: &str) -> Result<bool, Error> {
        let (database, below) = place::database(self.root.path(), database);
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

/// True for the record of that attempt. Without a key the attempt may be a later one.
fn is_by(record: &Record, publisher: Attempt, key: i64) -> bool {
    match key {
        0 => record.attempt <= publisher.number,
        key => record.attempt == publisher.number && [0, key].contains(&record.key),
    }
}
