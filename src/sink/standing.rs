//! Whether published output is still what a receipt says, and its removal: for a program that has
//! root and database to itself.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::folder::Name;
use super::names::Holder;
use super::record::{self, FileOutput, Record, TableOutput};
use super::sqlite::{self, Tables};
use super::{Error, Root, files, names, place};
use crate::job::{Attempt, Mode, Sink, Target};

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
    /// Sinks of mode `replace` by place and topic: whether output of a job stands there.
    replaced: HashMap<(PathBuf, String), bool>,
}

impl<'a> Standing<'a> {
    /// Of jobs of that database.
    pub fn new(root: &'a Root, database: &'a str) -> Self {
        Standing {
            root,
            database,
            tables: HashMap::new(),
            locked: None,
            replaced: HashMap::new(),
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
    /// does not stand. What another job of the database has replaced by mode `replace` counts as
    /// standing, while that job's output stands.
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
        for file in record.iter().flat_map(|record| &record.outputs.files) {
            if !self.stands(file) && !self.is_file_replaced(&name, file) {
                return false;
            }
        }
        // Several topics may go into one table.
        let mut rows: HashMap<&str, u64> = HashMap::new();
        for output in outputs {
            *rows.entry(&output.uri).or_default() += output.rows;
        }
        outputs.iter().all(|output| {
            let rows = rows.get(output.uri.as_str()).copied().unwrap_or(0);
            match (names::file_of(&output.uri), names::table_of(&output.uri)) {
                (Some(path), _) => self.has_file(path, output, record.as_ref(), &name),
                (None, Some((database, table))) => {
                    let stands = |tables: &mut Tables| tables.has(table, &name, key, rows);
                    self.tables_of(database).is_some_and(stands)
                        || self.is_table_replaced(&name, record.as_ref(), database, table)
                }
                (None, None) => false,
            }
        })
    }

    /// True when a file is there as a record knows it.
    fn stands(&self, file: &FileOutput) -> bool {
        let found = files::identity(&self.root.path().join(&file.path));
        let known = file.identity;
        matches!(found, Ok(Some(found)) if (known.size, known.modified_s, known.modified_ns)
            == (found.size, found.modified_s, found.modified_ns))
    }

    /// True when a file has gone, and a file of another job stands in its sink of mode `replace`.
    fn is_file_replaced(&mut self, name: &Name, file: &FileOutput) -> bool {
        let path = self.root.path().join(&file.path);
        if file.mode != Mode::Replace.as_str() || !matches!(files::identity(&path), Ok(None)) {
            return false;
        }
        let suffixes = [None, Some(names::suffix(self.database))];
        let holders = suffixes.map(|suffix| Holder::new(name.attempt, suffix));
        let sinks = holders.into_iter();
        let Some((holder, sink)) = sinks
            .filter_map(|holder| Some((holder.clone(), names::sink_of(&path, &holder)?)))
            .next()
        else {
            return false;
        };
        let known = (sink, file.topic.clone());
        if let Some(stands) = self.replaced.get(&known) {
            return *stands;
        }
        let mut others = names::siblings(&known.0, &holder).into_iter();
        let stands = others.any(|(path, other)| {
            let of_other = record::of_other(self.root, name, other.job_id, other.incarnation);
            let files = of_other.into_iter().flat_map(|record| record.outputs.files);
            let below = Path::new(&file.path).with_file_name(path.file_name().unwrap_or_default());
            let mut files = files.filter(|other| Path::new(&other.path) == below);
            other.suffix == holder.suffix
                && files.any(|other| {
                    (&other.mode, &other.topic) == (&file.mode, &file.topic) && self.stands(&other)
                })
        });
        self.replaced.insert(known, stands);
        stands
    }

    /// True when the job's rows have gone from a table, and rows of another job stand there, where
    /// both were published by mode `replace` for one topic.
    fn is_table_replaced(
        &mut self,
        name: &Name,
        record: Option<&Record>,
        database: &str,
        table: &str,
    ) -> bool {
        let (path, _) = place::database(self.root.path(), database);
        let replaces = |record: &Record, topic: Option<&str>| {
            let mut tables = record.outputs.tables.iter().filter(|output| {
                output.database == path && output.table.eq_ignore_ascii_case(table)
            });
            let found = tables.find(|output| {
                output.mode == Mode::Replace.as_str()
                    && topic.is_none_or(|topic| output.topic == topic)
            });
            found.map(|output| output.topic.clone())
        };
        let Some(topic) = record.and_then(|record| replaces(record, None)) else {
            return false;
        };
        let known = (PathBuf::from(&path).join(table), topic);
        if let Some(stands) = self.replaced.get(&known) {
            return *stands;
        }
        let others = self
            .tables_of(database)
            .map(|tables| tables.others(table, name));
        let mut others = others.unwrap_or_default().into_iter();
        let stands = others.any(|(attempt, rows)| {
            let other = Name::numbered(self.database, attempt);
            let record = other.and_then(|name| Ok((record::read(self.root, &name)?, name)));
            let Ok((Some(record), other)) = record else {
                return false;
            };
            replaces(&record, Some(&known.1)).is_some()
                && self
                    .tables_of(database)
                    .is_some_and(|tables| tables.has(table, &other, 0, rows))
        });
        self.replaced.insert(known, stands);
        stands
    }

    fn has_file(
        &mut self,
        path: &Path,
        output: &Receipted,
        record: Option<&Record>,
        name: &Name,
    ) -> bool {
        let Ok(Some(found)) = files::identity(path) else {
            let below = place::below(self.root.path(), path);
            let mut files = record.into_iter().flat_map(|record| &record.outputs.files);
            let file = files.find(|file| Some(&file.path) == below.as_ref());
            return file.is_some_and(|file| self.is_file_replaced(name, file));
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
