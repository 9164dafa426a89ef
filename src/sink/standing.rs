//! Whether published output is still what a receipt says.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::folder::Name;
use super::names::Holder;
use super::record::{self, FileOutput, Record, TableOutput};
use super::sqlite::Tables;
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

/// Gives the attempt that has published a job's output, and its key, where that output may stand for
/// that of other jobs.
pub type Publisher<'p> = dyn FnMut(i64) -> Option<(Attempt, i64)> + 'p;

/// Jobs and their incarnations.
type Jobs = Rc<[(i64, i64)]>;

/// Looks at the output of many jobs. Tables are read once: what changes meanwhile is not seen.
pub struct Standing<'a> {
    pub(super) root: &'a Root,
    pub(super) database: &'a str,
    /// None for what is no database of ours, or cannot be read.
    tables: HashMap<PathBuf, Option<Tables>>,
    locked: Option<Error>,
    /// Sinks of mode `replace` by place and topic: jobs whose output stands there.
    holders: HashMap<(PathBuf, String), Jobs>,
}

impl<'a> Standing<'a> {
    /// Of jobs of that database.
    pub fn new(root: &'a Root, database: &'a str) -> Self {
        Standing {
            root,
            database,
            tables: HashMap::new(),
            locked: None,
            holders: HashMap::new(),
        }
    }

    /// Reads tables anew, and closes their databases.
    pub(super) fn forget(&mut self) {
        self.tables.clear();
        self.holders.clear();
        self.locked = None;
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
    /// standing, while that job's output stands and `others` knows its publisher.
    pub fn has(
        &mut self,
        publisher: Attempt,
        key: i64,
        outputs: &[Receipted],
        others: &mut Publisher<'_>,
    ) -> bool {
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
            if !self.stands(file) && !self.is_file_replaced(&name, file, others) {
                return false;
            }
        }
        // Several topics may go into one table, whatever its URI.
        let table = |output: &Receipted| {
            let (database, table) = names::table_of(&output.uri)?;
            let (database, _) = place::database(self.root.path(), database);
            Some((database, table.to_ascii_lowercase()))
        };
        let tables: Vec<_> = outputs.iter().map(table).collect();
        let mut rows: HashMap<_, u64> = HashMap::new();
        for (table, output) in tables.iter().zip(outputs) {
            *rows.entry(table).or_default() += output.rows;
        }
        outputs.iter().zip(&tables).all(|(output, at)| {
            let rows = rows.get(at).copied().unwrap_or(0);
            match (names::file_of(&output.uri), at) {
                (Some(path), _) => self.has_file(path, output, record.as_ref(), &name, others),
                (None, Some((database, table))) => {
                    let stands = |tables: &mut Tables| tables.has(table, &name, key, rows);
                    self.tables_of(database).is_some_and(stands)
                        || self.is_table_replaced(&name, record.as_ref(), database, table, others)
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
    pub(super) fn is_file_replaced(
        &mut self,
        name: &Name,
        file: &FileOutput,
        others: &mut Publisher<'_>,
    ) -> bool {
        let path = self.root.path().join(&file.path);
        if file.mode != Mode::Replace.as_str() || !matches!(files::identity(&path), Ok(None)) {
            return false;
        }
        let suffixes = [None, Some(names::suffix(self.database))];
        let own = suffixes.map(|suffix| Holder::new(name.attempt, suffix));
        let mut sinks = own.into_iter();
        let Some((own, sink)) =
            sinks.find_map(|holder| Some((holder.clone(), names::sink_of(&path, &holder)?)))
        else {
            return false;
        };
        let known = (sink, file.topic.clone());
        let found = self.holders.get(&known).cloned().unwrap_or_else(|| {
            let mut found = Vec::new();
            for (path, holder) in names::siblings(&known.0, &own) {
                let below =
                    Path::new(&file.path).with_file_name(path.file_name().unwrap_or_default());
                if holder.suffix == own.suffix
                    && let Some((record, _)) =
                        self.published_by(holder.job_id, holder.incarnation, others)
                    && record.outputs.files.iter().any(|other| {
                        Path::new(&other.path) == below
                            && (&other.mode, &other.topic) == (&file.mode, &file.topic)
                            && self.stands(other)
                    })
                {
                    found.push((holder.job_id, holder.incarnation));
                }
            }
            found.into()
        });
        self.holders.insert(known, found.clone());
        is_by_other(&found, name)
    }

    /// True when the job's rows have gone from a table, and rows of another job stand there, where
    /// both were published by mode `replace` for the same topics.
    pub(super) fn is_table_replaced(
        &mut self,
        name: &Name,
        record: Option<&Record>,
        database: &str,
        table: &str,
        others: &mut Publisher<'_>,
    ) -> bool {
        let is_it = |output: &&TableOutput| {
            output.database == database && output.table.eq_ignore_ascii_case(table)
        };
        let own = record.into_iter().flat_map(|record| &record.outputs.tables);
        let own: Vec<&TableOutput> = own.filter(is_it).collect();
        let has_gone = |tables: &mut Tables| !tables.has_any(table, name);
        !own.is_empty()
            && self.tables_of(database).is_some_and(has_gone)
            && own.into_iter().all(|output| {
                if output.mode != Mode::Replace.as_str() {
                    return false;
                }
                let place = Path::new(database).join(table.to_ascii_lowercase());
                let known = (place, output.topic.clone());
                let found = self.holders.get(&known).cloned();
                let found = found.unwrap_or_else(|| self.holders_of(output, others));
                self.holders.insert(known, found.clone());
                is_by_other(&found, name)
            })
    }

    /// Jobs whose rows stand in a table, published by mode `replace` for this topic.
    fn holders_of(&mut self, output: &TableOutput, others: &mut Publisher<'_>) -> Jobs {
        let (database, table) = (&output.database, &output.table);
        let id = self.database;
        let tables = self.tables_of(database);
        let jobs = tables.map(|tables| tables.jobs(table, id));
        let jobs = jobs.unwrap_or_default().into_iter();
        let stands = |(job_id, incarnation): &(i64, i64)| {
            let Some((record, other)) = self.published_by(*job_id, *incarnation, others) else {
                return false;
            };
            let tables = record.outputs.tables.iter();
            let tables = tables.filter(|other| other.identity() == output.identity());
            let tables: Vec<&TableOutput> = tables.collect();
            let rows = tables.iter().map(|other| other.rows).sum();
            let is_like =
                |other: &&TableOutput| (&other.mode, &other.topic) == (&output.mode, &output.topic);
            tables.iter().any(is_like)
                && self
                    .tables_of(database)
                    .is_some_and(|tables| tables.has(table, &other, record.key, rows))
        };
        jobs.filter(stands).collect()
    }

    /// The record of a job whose publisher `others` knows, and the attempt that wrote it.
    fn published_by(
        &self,
        job_id: i64,
        incarnation: i64,
        others: &mut Publisher<'_>,
    ) -> Option<(Record, Name)> {
        let (publisher, key) = others(job_id)?;
        let mut name = Name::numbered(self.database, publisher).ok()?;
        let record = record::read(self.root, &name).ok().flatten()?;
        name.attempt.number = record.attempt;
        (publisher.incarnation() == incarnation && is_by(&record, publisher, key))
            .then_some((record, name))
    }

    fn has_file(
        &mut self,
        path: &Path,
        output: &Receipted,
        record: Option<&Record>,
        name: &Name,
        others: &mut Publisher<'_>,
    ) -> bool {
        let Ok(Some(found)) = files::identity(path) else {
            let below = place::below(self.root.path(), path);
            let mut files = record.into_iter().flat_map(|record| &record.outputs.files);
            let file = files.find(|file| Some(&file.path) == below.as_ref());
            return file.is_some_and(|file| self.is_file_replaced(name, file, others));
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

    pub(super) fn tables_of(&mut self, database: &str) -> Option<&mut Tables> {
        let (path, below) = place::database(self.root.path(), database);
        below?;
        let path = PathBuf::from(path);
        let found = self.tables.entry(path.clone());
        let opened = found.or_insert_with(|| match Tables::open(&path, self.root.access()) {
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

    /// Those of these outputs of an attempt's job that are there, as it published them or not. What
    /// cannot be read counts as being there.
    pub fn present<'u>(
        &mut self,
        publisher: Attempt,
        uris: impl Iterator<Item = &'u String>,
    ) -> Result<Vec<String>, Error> {
        let name = Name::numbered(self.database, publisher)?;
        let mut present = Vec::new();
        for uri in uris {
            let is_there = match (names::file_of(uri), names::table_of(uri)) {
                (Some(path), _) => !matches!(files::identity(path), Ok(None)),
                (None, Some((database, table))) => match self.tables_of(database) {
                    Some(tables) => tables.has_any(table, &name),
                    None => self.locked.is_some(),
                },
                (None, None) => false,
            };
            if is_there {
                present.push(uri.clone());
            }
        }
        Ok(present)
    }
}

/// True when one of these jobs is another than that of the name.
fn is_by_other(found: &[(i64, i64)], name: &Name) -> bool {
    let own = (name.attempt.job_id, name.attempt.incarnation());
    found.iter().any(|job| *job != own)
}

/// True for the record of that attempt. Without a key the attempt may be a later one.
pub(super) fn is_by(record: &Record, publisher: Attempt, key: i64) -> bool {
    match key {
        0 => record.attempt <= publisher.number,
        key => record.attempt == publisher.number && [0, key].contains(&record.key),
    }
}
