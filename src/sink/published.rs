//! Checks whether published output is still as a receipt describes it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::folder::Name;
use super::names::Holder;
use super::record::{self, FileOutput, MadeWith, Record};
use super::sqlite::Tables;
use super::table_output::TableOutput;
use super::{Error, Root, files, location, names};
use crate::job::{Attempt, Mode, Sink, Target};

/// An output as a receipt names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipted {
    /// Its URI.
    pub uri: String,
    /// Its number of rows.
    pub rows: u64,
    /// Bytes of a file; `None` where the receipt does not have the size.
    pub size_bytes: Option<u64>,
}

/// Returns the attempt that published a job's output, and its key, if this output counts as a replacement
/// of other jobs' output. Where no such function is given, the output of every job counts.
pub type Publisher<'p> = dyn FnMut(i64) -> Option<(Attempt, i64)> + 'p;

/// Jobs, each as job ID and incarnation.
type Jobs = Rc<[(i64, i64)]>;

/// Jobs, each as job ID and incarnation, with the modification time of the file (seconds and
/// nanoseconds).
type FileJobs = Rc<[((i64, i64), (i64, i64))]>;

/// Checks the output of many jobs. Tables are read once, so later changes are not found.
pub struct PublishedOutput<'a> {
    pub(super) root: &'a Root,
    pub(super) database: &'a str,
    /// Opened databases by path. `None` for a file that is no database of a sink, or that cannot be read.
    tables: HashMap<PathBuf, Option<Tables>>,
    locked: Option<Error>,
    /// Jobs that published with mode `replace` and whose rows are unchanged, by table.
    holders: HashMap<PathBuf, Jobs>,
    /// The same for files, by the path of their sink, with the times of the files.
    file_holders: HashMap<PathBuf, FileJobs>,
    /// Databases of sinks outside the root are opened, too.
    anywhere: bool,
}

impl<'a> PublishedOutput<'a> {
    /// A check of the jobs of a database (UUID).
    pub fn new(root: &'a Root, database: &'a str) -> Self {
        PublishedOutput {
            root,
            database,
            tables: HashMap::new(),
            locked: None,
            holders: HashMap::new(),
            file_holders: HashMap::new(),
            anywhere: false,
        }
    }

    /// Opens databases of sinks outside the root, too.
    pub fn anywhere(mut self) -> Self {
        self.anywhere = true;
        self
    }

    /// Closes the databases, so that tables are read again.
    pub(super) fn forget(&mut self) {
        self.tables.clear();
        self.holders.clear();
        self.file_holders.clear();
        self.locked = None;
    }

    /// The error when a table could not be read because another program had locked its database.
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

    /// True when all these outputs are as the attempt with this key published them. Files are compared by
    /// size and modification time, tables by the number of the job's rows. Output that cannot be read
    /// counts as changed. Output that another job of the database has replaced with mode `replace` counts
    /// as unchanged, while that job's output is unchanged and `others` returns its publisher.
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
        // The size of a receipt is bounded, so it may not list all files.
        for file in record.iter().flat_map(|record| &record.outputs.files) {
            if !self.is_unchanged(file) && !self.is_file_replaced(&name, file, Some(others)) {
                return false;
            }
        }
        // Several topics may write to one table. Their rows are added.
        let table = |output: &Receipted| {
            let (database, table) = names::table_of(&output.uri)?;
            let (database, _) = location::database(self.root.path(), database);
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
                    let is_unchanged = |tables: &mut Tables| tables.has(table, &name, key, rows);
                    self.tables_of(database).is_some_and(is_unchanged) || {
                        let record = record.as_ref();
                        self.is_table_replaced(&name, record, database, table, others)
                    }
                }
                (None, None) => false,
            }
        })
    }

    /// The code and parameters with which the attempt with this key made a job's output. `None` where that
    /// is unknown.
    pub fn made_with(&self, publisher: Attempt, key: i64) -> Option<MadeWith> {
        let name = Name::numbered(self.database, publisher).ok()?;
        let record = record::read(self.root, &name).ok()??;
        if is_by(&record, publisher, key) {
            return record.outputs.made_with;
        }
        let is_previous = (record.previous_attempt, record.previous_key) == (publisher.number, key);
        record.previous.made_with.filter(|_| is_previous)
    }

    /// True when a file exists with the recorded size and modification time.
    fn is_unchanged(&self, file: &FileOutput) -> bool {
        let found = files::identity(&self.root.path().join(&file.path));
        let known = file.identity;
        matches!(found, Ok(Some(found)) if (known.size, known.modified_s, known.modified_ns)
            == (found.size, found.modified_s, found.modified_ns))
    }

    /// True when a file does not exist, and its sink has an unchanged file of another job that was
    /// published with mode `replace`. Such a publish removes the files of all jobs of the database. If
    /// the missing file was published with another mode, it may have been added after that publish. Then
    /// it counts as replaced only if it is older than the other job's file.
    pub(super) fn is_file_replaced(
        &mut self,
        name: &Name,
        file: &FileOutput,
        mut others: Option<&mut Publisher<'_>>,
    ) -> bool {
        let path = self.root.path().join(&file.path);
        if !matches!(files::identity(&path), Ok(None)) {
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
        let found = self.file_holders.get(&sink).cloned().unwrap_or_else(|| {
            let mut found = Vec::new();
            for (path, holder) in names::siblings(&sink, &own) {
                let below =
                    Path::new(&file.path).with_file_name(path.file_name().unwrap_or_default());
                if holder.suffix == own.suffix
                    && let Some(record) =
                        self.record_of(holder.job_id, holder.incarnation, others.as_deref_mut())
                    && let Some(other) = record.outputs.files.iter().find(|other| {
                        Path::new(&other.path) == below
                            && other.mode == Mode::Replace.as_str()
                            && self.is_unchanged(other)
                    })
                {
                    found.push(((holder.job_id, holder.incarnation), time_of(other)));
                }
            }
            found.into()
        });
        self.file_holders.insert(sink, found.clone());
        let own = (name.attempt.job_id, name.attempt.incarnation());
        let is_older = |time| file.mode == Mode::Replace.as_str() || time_of(file) < time;
        let mut found = found.iter();
        found.any(|(job, time)| *job != own && is_older(*time))
    }

    /// True when a table's database records that a later publish removed the rows that the job's record
    /// names, and the table has unchanged rows that another job published with mode `replace`.
    fn is_table_replaced(
        &mut self,
        name: &Name,
        record: Option<&Record>,
        database: &str,
        table: &str,
        others: &mut Publisher<'_>,
    ) -> bool {
        let Some(record) = record else {
            return false;
        };
        let is_it = |output: &&TableOutput| {
            output.database == database && output.table.eq_ignore_ascii_case(table)
        };
        let Some(output) = record.outputs.tables.iter().find(is_it) else {
            return false;
        };
        let mut of_record = name.clone();
        of_record.attempt.number = record.attempt;
        let is_removed = |tables: &mut Tables| tables.is_removed(table, &of_record);
        if !self.tables_of(database).is_some_and(is_removed) {
            return false;
        }
        let key = Path::new(database).join(table.to_ascii_lowercase());
        let found = self.holders.get(&key).cloned();
        let found = found.unwrap_or_else(|| self.holders_of(output, Some(others)));
        self.holders.insert(key, found.clone());
        is_by_other(&found, name)
    }

    /// Jobs that published into a table with mode `replace` and whose rows are unchanged.
    fn holders_of(&mut self, output: &TableOutput, mut others: Option<&mut Publisher<'_>>) -> Jobs {
        let (database, table) = (&output.database, &output.table);
        let id = self.database;
        let tables = self.tables_of(database);
        let jobs = tables.map(|tables| tables.jobs(table, id));
        let jobs = jobs.unwrap_or_default().into_iter();
        let is_unchanged = |(job_id, incarnation): &(i64, i64)| {
            let Some(record) = self.record_of(*job_id, *incarnation, others.as_deref_mut()) else {
                return false;
            };
            let tables = record.outputs.tables.iter();
            let tables = tables.filter(|other| other.identity() == output.identity());
            let tables: Vec<&TableOutput> = tables.collect();
            let rows = tables.iter().map(|other| other.rows).sum();
            let other = Attempt::new(*job_id, record.attempt);
            let Ok(other) = Name::numbered(id, other) else {
                return false;
            };
            let mut modes = tables.iter().map(|other| other.mode.as_str());
            modes.any(|mode| mode == Mode::Replace.as_str())
                && self
                    .tables_of(database)
                    .is_some_and(|tables| tables.has(table, &other, record.key, rows))
        };
        jobs.filter(is_unchanged).collect()
    }

    /// Output of another job in a sink, which output of this attempt's job would replace: the path of a
    /// file or of a table. `None` if there is no such output.
    pub fn of_others(&mut self, sink: &Sink, job: Attempt) -> Result<Option<PathBuf>, Error> {
        let name = Name::numbered(self.database, job)?;
        match &sink.target {
            Target::Parquet { path, .. } => {
                let path = self.root.path().join(path);
                let suffixes = [None, Some(names::suffix(self.database))];
                let own = suffixes.map(|suffix| Holder::new(job, suffix));
                let found = own.iter().flat_map(|own| {
                    let siblings = names::siblings(&path, own).into_iter();
                    siblings.filter(|(_, other)| other.suffix == own.suffix)
                });
                let found: Vec<(PathBuf, Holder)> = found.collect();
                let is_recorded = |(path, holder): &(PathBuf, Holder)| {
                    let record = self.record_of(holder.job_id, holder.incarnation, None);
                    let below = location::below(self.root.path(), path);
                    let files = record.into_iter().flat_map(|record| record.outputs.files);
                    let mut paths = files.map(|file| file.path);
                    (holder.job_id, holder.incarnation) != (job.job_id, job.incarnation())
                        && paths.any(|path| Some(path) == below)
                };
                let mut found = found.into_iter();
                Ok(found.find(is_recorded).map(|(path, _)| path))
            }
            Target::Sqlite { database, table } => {
                let path = self.root.path().join(database);
                let id = self.database;
                let tables = self.tables_of(&path.to_string_lossy());
                let jobs = tables.map(|tables| tables.jobs(table, id));
                let is_other = is_by_other(&jobs.unwrap_or_default(), &name);
                Ok(is_other.then(|| path.join(table)))
            }
        }
    }

    /// The sinks and tables in which a job's record names output, as paths, each with whether it was
    /// published with mode `replace`. The output need not exist.
    pub fn locations(&self, job: Attempt) -> Vec<(PathBuf, bool)> {
        let Some(record) = self.record_of(job.job_id, job.incarnation(), None) else {
            return Vec::new();
        };
        let suffixes = [None, Some(names::suffix(self.database))];
        let own = suffixes.map(|suffix| Holder::new(job, suffix));
        let replaces = |mode: &str| mode == Mode::Replace.as_str();
        let files = record.outputs.files.iter().filter_map(|file| {
            let path = self.root.path().join(&file.path);
            let mut own = own.iter();
            let sink = own.find_map(|own| names::sink_of(&path, own))?;
            Some((sink, replaces(&file.mode)))
        });
        let tables = record.outputs.tables.iter().map(|table| {
            let name = table.table.to_ascii_lowercase();
            (Path::new(&table.database).join(name), replaces(&table.mode))
        });
        files.chain(tables).collect()
    }

    /// The path of a sink or table, in the form of [`PublishedOutput::locations`].
    pub fn location_of(&self, sink: &Sink) -> PathBuf {
        let root = self.root.path();
        match &sink.target {
            Target::Parquet { path, .. } => root.join(path),
            Target::Sqlite { database, table } => {
                let path = root.join(database);
                let (path, _) = location::database(root, &path.to_string_lossy());
                Path::new(&path).join(table.to_ascii_lowercase())
            }
        }
    }

    /// The record of a job, if `others` returns its publisher as the job's publisher.
    fn record_of(
        &self,
        job_id: i64,
        incarnation: i64,
        others: Option<&mut Publisher<'_>>,
    ) -> Option<Record> {
        let name = Name::numbered(self.database, Attempt::first(job_id, incarnation)).ok()?;
        let record = record::read(self.root, &name).ok().flatten()?;
        let Some(others) = others else {
            return Some(record);
        };
        let (publisher, key) = others(job_id)?;
        (publisher.incarnation() == incarnation && is_by(&record, publisher, key)).then_some(record)
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
            let below = location::below(self.root.path(), path);
            let mut files = record.into_iter().flat_map(|record| &record.outputs.files);
            let file = files.find(|file| Some(&file.path) == below.as_ref());
            return file.is_some_and(|file| self.is_file_replaced(name, file, Some(others)));
        };
        let Some(record) = record else {
            return found.inode != 0 && output.size_bytes.is_none_or(|size| size == found.size);
        };
        let Some(below) = location::below(self.root.path(), path) else {
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
        let (path, below) = location::database(self.root.path(), database);
        if below.is_none() && !self.anywhere {
            return None;
        }
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

    /// Those of these outputs of an attempt's job that exist, unchanged or not. Output that cannot be
    /// read counts as existing.
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

fn time_of(file: &FileOutput) -> (i64, i64) {
    (file.identity.modified_s, file.identity.modified_ns)
}

/// True when one of these jobs is not the job of the name.
fn is_by_other(found: &[(i64, i64)], name: &Name) -> bool {
    let own = (name.attempt.job_id, name.attempt.incarnation());
    found.iter().any(|job| *job != own)
}

/// True when a record is of this attempt. With key 0 (unknown) a record of an earlier attempt is
/// accepted, too.
pub(super) fn is_by(record: &Record, publisher: Attempt, key: i64) -> bool {
    match key {
        0 => record.attempt <= publisher.number,
        key => record.attempt == publisher.number && [0, key].contains(&record.key),
    }
}
