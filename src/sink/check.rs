//! Compares a root with a database: receipts and records with files and tables, the staging folder, bars,
//! the owner, and the folders of `.casparian`. Nothing is changed. The root is opened by
//! [`Root::open_to_read`], or by a program that repairs it and has exclusive use of it.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::files::{self, Identity};
use super::folder::{self, Entry, Name};
use super::footer::{Footer, rows_in};
use super::problem::{Kind, Problem, kind_of, no_database, obstruction};
use super::published::is_by;
use super::record::{self, FileOutput, Record};
use super::root::{self, FOLDERS};
use super::sqlite::{self, Tables};
use super::table_output::TableOutput;
use super::{Error, PublishedOutput, Root, location, moving, names};
use crate::job::{Attempt, History, PastEnd};

/// An output that a receipt names. Fields are `None` where the receipt does not have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Its URI.
    pub uri: String,
    /// Its number of rows.
    pub rows: Option<u64>,
    /// Bytes of a file.
    pub size_bytes: Option<u64>,
    /// Hash of the file's content, in lower-case hex digits.
    pub sha256: Option<String>,
}

/// The state of a job by its database.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// The number of its last attempt.
    pub last: Attempt,
    /// An attempt is running, so output may change at any time.
    pub is_running: bool,
    /// An attempt is running or will run. It replaces what earlier attempts left.
    pub runs_again: bool,
    /// The job is to be settled.
    pub is_unsettled: bool,
    /// The last attempt with a receipt for its output.
    pub publisher: Attempt,
    /// Its key; 0 if unknown.
    pub key: i64,
    /// The outputs that its receipt names.
    pub outputs: &'a [Named],
    /// The receipt does not list all files, because its size is bounded.
    pub is_truncated: bool,
    /// All attempts of the job.
    pub history: &'a History,
    /// The receipt's files are the files in this root, even if the receipt names another folder.
    pub is_adopting: bool,
}

/// The result of checking a job in one root.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The differences.
    pub problems: Vec<Problem>,
    /// Indices in [`Expected::outputs`] of the outputs that are in this root.
    pub named: BTreeSet<usize>,
}

/// Seconds for which a folder without the name of its worker counts as being removed.
const GOING_AGE_MAX_S: i64 = 60;
/// Limit of the databases of sinks that are kept open.
const TABLES_MAX: usize = 16;
/// Limit of the names that are read from a folder of records, which has a thousand jobs and their
/// incarnations.
const NAMES_MAX: usize = 100_000;
/// Number of records from which it is decided whether a database has been the owner of a root.
const OWNER_RECORDS_MAX: usize = 1000;

/// Checks one root for one database.
pub struct Check<'a> {
    root: &'a Root,
    database: &'a str,
    published: PublishedOutput<'a>,
    reads_content: bool,
    jobs: (i64, i64),
    tables: HashMap<PathBuf, Option<Tables>>,
}

impl<'a> Check<'a> {
    /// A check of a root for the database with this UUID.
    pub fn new(root: &'a Root, database: &'a str) -> Self {
        Check {
            reads_content: true,
            root,
            database,
            published: PublishedOutput::new(root, database),
            jobs: (0, 0),
            tables: HashMap::new(),
        }
    }

    /// Sets whether files are read completely and their hashes compared (the default).
    pub fn with_content(mut self, is_read: bool) -> Self {
        self.reads_content = is_read;
        self
    }

    /// Begins the check of the jobs from `first` to `last`. Rows of tables are counted only for these.
    pub fn begin(&mut self, first: i64, last: i64) {
        self.jobs = (first, last);
        self.forget();
    }

    /// Closes the databases, so that tables are read again.
    pub fn forget(&mut self) {
        self.tables.clear();
        self.published.forget();
    }

    /// Checks the folders of `.casparian` and their permissions. The `bool` is true if the rest of the
    /// root can be checked.
    pub fn folders(&self) -> (Vec<Problem>, bool) {
        let mut problems = Vec::new();
        let base = self.root.base();
        let mut is_usable = true;
        for (index, name) in [""].iter().chain(&FOLDERS).enumerate() {
            let path = match index {
                0 => base.to_owned(),
                _ => base.join(name),
            };
            let found = match fs::symlink_metadata(&path) {
                Ok(found) => found,
                // Nothing was published here yet.
                Err(error) if files::is_absent(&error) && index == 0 => return (problems, false),
                Err(error) if files::is_absent(&error) => continue,
                Err(error) => {
                    problems.push(Problem::at(Kind::Folder, &path, error.to_string()));
                    is_usable = false;
                    continue;
                }
            };
            if !found.is_dir() {
                let what = match found.is_symlink() {
                    true => "it is a symbolic link",
                    false => "it is not a folder",
                };
                problems.push(Problem::at(Kind::Folder, &path, what));
                is_usable = false;
            } else if let Err(error) = fs::read_dir(&path) {
                problems.push(Problem::at(Kind::Folder, &path, error.to_string()));
                is_usable = false;
            } else if files::mount(&path).ok() != files::mount(self.root.path()).ok() {
                let what = "it is on another file system or mount than the output folder";
                problems.push(Problem::at(Kind::Folder, &path, what));
            }
            if !found.is_symlink() && found.permissions().mode() & 0o002 != 0 {
                let what = "every user may change it";
                problems.push(Problem::at(Kind::Permissions, &path, what));
            }
        }
        (problems, is_usable)
    }

    /// Checks the owner of the root.
    pub fn owner(&self) -> Option<Problem> {
        let path = self.root.base().join("owner");
        let problem = |what: &str| Some(Problem::at(Kind::Owner, &path, what));
        let has_records = self.root.has_records(self.database);
        let other = match root::owner(self.root.path()) {
            Ok(Some(owner)) if owner == self.database => return None,
            Ok(Some(owner)) => owner,
            // Rows of tables need no owner.
            Ok(None) if !has_records || !self.has_names_of_owner() => return None,
            Ok(None) => {
                return problem(
                    "it is missing, and this database has output here: the next database that publishes \
                     takes the folder",
                );
            }
            Err(error) => return problem(&error.to_string()),
        };
        if folder::checked(&other).is_err() {
            return problem(
                "it does not contain the ID of a database, so no database can publish here",
            );
        }
        // A root may be shared. Then files of this database have a suffix in their names.
        if has_records && !self.has_names_of_owner() {
            return None;
        }
        problem(&format!(
            "the output folder belongs to database {other}, this one is {}",
            self.database
        ))
    }

    /// Whether files of this database have names as those of the root's owner. The first
    /// [`OWNER_RECORDS_MAX`] records are read.
    fn has_names_of_owner(&self) -> bool {
        let parts = self.parts().unwrap_or_default();
        let jobs = parts
            .iter()
            .flat_map(|part| self.recorded(*part).unwrap_or_default());
        let mut files = jobs
            .take(OWNER_RECORDS_MAX)
            .filter_map(|(job_id, incarnation)| {
                let attempt = Attempt::new(job_id, incarnation << 32);
                let name = Name::numbered(self.database, attempt).ok()?;
                let record = record::read(self.root, &name).ok()??;
                let holder = names::Holder::new(attempt, None);
                let mut files = record.outputs.files.iter();
                Some(files.any(|file| names::is_of(Path::new(&file.path), &holder)))
            });
        files.any(|is| is)
    }

    /// Checks whether a move of the database's files to another layout has stopped.
    pub fn moves(&self) -> Option<Problem> {
        let (path, journal) = match moving::read(self.root, self.database) {
            Ok(found) => found?,
            Err(error) => return Some(Problem::unchecked(self.root.base().display(), &error)),
        };
        let what = format!(
            "a move of {} files to another layout (--layout) has stopped: some may have two names, or \
             another one than in their receipt",
            journal.moves.len()
        );
        (!self.root.is_alive(&journal.worker)).then(|| Problem::at(Kind::Moving, &path, what))
    }

    /// `.casparian/<folder>/<database>`
    fn of_database(&self, folder: &str) -> PathBuf {
        self.root.base().join(folder).join(self.database)
    }

    /// Folders in staging that attempts of dead workers left, sorted by name. `now_s` is the present time
    /// in seconds since the epoch.
    pub fn staging(&self, now_s: i64) -> Vec<Problem> {
        let entries = match folder::entries(self.root) {
            Ok(entries) => entries,
            Err(_) if !self.root.staging().exists() => return Vec::new(),
            Err(error) => return vec![Problem::unchecked(self.root.staging().display(), &error)],
        };
        let mut problems: Vec<Problem> = entries
            .into_iter()
            .filter_map(|entry| {
                let (path, worker) = match entry {
                    Entry::Attempt(name, worker) => (name.path_in(self.root), worker),
                    Entry::Unnamed(path, worker) => (path, worker),
                    Entry::Legacy(path) => {
                        let free = files::open(&path.join("lock"));
                        free.is_ok_and(|file| file.try_lock_shared().is_ok())
                            .then_some((path, String::new()))?
                    }
                };
                // The attempt may have ended since, and its folder is missing or being removed. The file
                // that names its worker may be removed before the folder.
                let changed = fs::symlink_metadata(&path).ok()?.mtime();
                let is_going = worker.is_empty() && now_s.saturating_sub(changed) < GOING_AGE_MAX_S;
                let is_left = !is_going && !self.root.is_alive(&worker);
                let what = "its worker has ended";
                is_left.then(|| Problem::at(Kind::DeadAttempt, &path, what))
            })
            .collect();
        problems.sort_by(|a, b| a.subject.cmp(&b.subject));
        problems
    }

    /// Foreign entries in the folders of attempts and records, sorted by name. Other code that reads
    /// these folders ignores them.
    pub fn strangers(&self) -> Vec<Problem> {
        let mut found = folder::strangers(self.root).unwrap_or_default();
        let outputs = self.root.base().join("outputs");
        let is_number = |text: &str| text.parse::<i64>().is_ok();
        let is_record = |text: &str| {
            let (job, incarnation) = text.split_once('r').unwrap_or((text, "0"));
            is_number(job) && is_number(incarnation)
        };
        let is_database = |text: &str| folder::checked(text).is_ok();
        for database in folders_of(&outputs, &mut found, is_database) {
            for part in folders_of(&database, &mut found, is_number) {
                // An entry with the name of a record is checked with its job.
                let entries = fs::read_dir(part).into_iter().flatten().flatten();
                let strange =
                    entries.filter(|entry| !entry.file_name().to_str().is_some_and(is_record));
                found.extend(strange.map(|entry| entry.path()));
            }
        }
        found.sort();
        let more = found.len().saturating_sub(STRANGERS_MAX);
        let problem = |path: &PathBuf| {
            let kind = kind_of(path)?;
            let what = format!("{kind} that no program of ours has put there");
            Some(Problem::at(Kind::Stranger, path, what))
        };
        let shown = found.iter().take(STRANGERS_MAX).filter_map(problem);
        let mut problems: Vec<Problem> = shown.collect();
        if more > 0 {
            let what = format!("{more} more that no program of ours has put there");
            problems.push(Problem::at(Kind::Stranger, self.root.base(), what));
        }
        problems
    }

    /// Number of other workers that have the root open.
    pub fn workers(&self) -> Result<usize, Error> {
        let folder = self.root.base().join("workers");
        let names = names_in(&folder, usize::MAX)?;
        let alive = names
            .iter()
            .filter(|name| *name != self.root.worker() && self.root.is_alive(name));
        Ok(alive.count())
    }

    /// The parts (job ID / 1000) that have records or bars, in ascending order.
    pub fn parts(&self) -> Result<BTreeSet<i64>, Error> {
        let mut parts = BTreeSet::new();
        for folder in ["outputs", "barred"] {
            let names = names_in(&self.of_database(folder), usize::MAX)?;
            parts.extend(names.iter().filter_map(|name| name.parse::<i64>().ok()));
        }
        Ok(parts)
    }

    /// The jobs of a part that have records, each as job ID and incarnation.
    pub fn recorded(&self, part: i64) -> Result<BTreeSet<(i64, i64)>, Error> {
        let folder = self.of_database("outputs").join(part.to_string());
        let parse = |name: &String| {
            let (job, incarnation) = name.split_once('r').unwrap_or((name, "0"));
            let found: (i64, i64) = (job.parse().ok()?, incarnation.parse().ok()?);
            let name = Name::numbered(self.database, Attempt::new(found.0, found.1 << 32)).ok()?;
            let is_its = record::path(self.root, &name).file_name()
                == Some(name_of(job, incarnation).as_ref());
            (is_its && found.0.div_euclid(1000) == part).then_some(found)
        };
        Ok(names_in(&folder, NAMES_MAX)?
            .iter()
            .filter_map(parse)
            .collect())
    }

    /// Checks whether a job whose row was deleted has output.
    pub fn without_row(&self, job_id: i64, incarnation: i64) -> Option<Problem> {
        let attempt = Attempt::new(job_id, incarnation << 32);
        let name = Name::numbered(self.database, attempt).ok()?;
        let path = record::path(self.root, &name);
        let record = match record::read(self.root, &name) {
            Ok(record) => record?,
            Err(error) => return Some(Problem::at(Kind::Record, &path, reason(&error))),
        };
        let mut uris: Vec<String> = record
            .outputs
            .files
            .iter()
            .filter(|file| self.is_as_recorded(file))
            .map(|file| names::file_uri(&self.root.path().join(&file.path)))
            .collect();
        let tables = record.outputs.tables.iter();
        uris.extend(tables.map(|table| names::table_uri(table.database.as_ref(), &table.table)));
        let (first, count) = (uris.first()?, uris.len());
        let more = match count {
            1 => String::new(),
            _ => format!(" and {} more", count - 1),
        };
        let what = format!(
            "its record ({}) is of a row that was deleted{more}",
            path.display()
        );
        Some(Problem::new(Kind::NoRow, first, what))
    }

    /// True if a file exists with the identity in its record.
    fn is_as_recorded(&self, file: &FileOutput) -> bool {
        let path = self.root.path().join(&file.path);
        files::identity(&path).ok().flatten() == Some(file.identity)
    }

    /// Compares a job's output in this root with the database.
    pub fn job(&mut self, expected: &Expected<'_>) -> Found {
        let mut found = Found::default();
        let name = match Name::numbered(self.database, expected.last) {
            Ok(name) => name,
            Err(error) => {
                found.problems.push(Problem::unchecked("", &error));
                return found;
            }
        };
        let path = record::path(self.root, &name);
        let record = match record::read(self.root, &name) {
            Ok(record) => record,
            Err(error) => {
                let problem = Problem::at(Kind::Record, &path, reason(&error));
                found.problems.push(problem);
                None
            }
        };
        if !expected.is_running {
            found.problems.extend(self.bars(expected));
        }
        let is_current = record
            .as_ref()
            .is_none_or(|record| is_by(record, expected.publisher, expected.key));
        for (index, output) in expected.outputs.iter().enumerate() {
            let known = record.as_ref().filter(|_| is_current);
            let Some(target) = self.locate(&output.uri, record.as_ref(), expected.is_adopting)
            else {
                continue;
            };
            found.named.insert(index);
            if expected.runs_again || expected.is_unsettled {
                continue;
            }
            // A worker refuses such a path.
            if let Target::Outside(link, is_whole) = &target {
                let wanted = if *is_whole { "regular file" } else { "folder" };
                found.problems.push(obstruction(link, wanted));
                continue;
            }
            // Output that the record's attempt has replaced is checked by the record. With a record of an
            // earlier attempt this applies only to URIs outside this root, because the root may have had
            // another path.
            let is_later = |record: &Record| {
                record.attempt >= expected.publisher.number || !self.is_below(&output.uri)
            };
            let is_in = |record: &Record| target.is_in(record) && is_later(record);
            if !is_current && record.as_ref().is_some_and(is_in) {
                continue;
            }
            let now = target.uri(self.root.path());
            let problem = match target {
                Target::File(below) => self.file(&below, output, known, &name),
                // It was reported above.
                Target::Outside(..) => None,
                Target::Table(database, table) => {
                    let publisher = (expected.publisher, expected.key);
                    self.table(&database, &table, output, known, &name, publisher)
                }
            };
            let moved = || {
                let what = format!("its receipt names {}", output.uri);
                Problem::new(Kind::Touched, &now, what)
            };
            let is_moved = expected.is_adopting && is_current && now != output.uri;
            let problem = problem.or_else(|| is_moved.then(moved));
            found.problems.extend(problem);
        }
        if let Some(record) = &record
            && !expected.is_running
        {
            let problem = self.record(record, expected, &name);
            found.problems.extend(problem);
        }
        found
    }

    /// True if a URI is below the present path of this root.
    fn is_below(&self, uri: &str) -> bool {
        let root = self.root.path();
        match (names::file_of(uri), names::table_of(uri)) {
            (Some(path), _) => location::below(root, path).is_some(),
            (None, Some((database, _))) => location::database(root, database).1.is_some(),
            (None, None) => false,
        }
    }

    /// Finds a receipt's output in this root. `None` if it is elsewhere.
    fn locate(&self, uri: &str, record: Option<&Record>, is_adopting: bool) -> Option<Target> {
        let root = self.root.path();
        // The root may have had another path when the receipt was created.
        let is_same_output =
            |path: &Path, below: &str| path.ends_with(below) && (is_adopting || !path.exists());
        let way_out = |path: &Path| location::way_out(root, path);
        if let Some((link, is_whole)) = path_of(uri).and_then(way_out) {
            return Some(Target::Outside(link, is_whole));
        }
        if let Some((database, table)) = names::table_of(uri) {
            let (path, below) = location::database(root, database);
            if below.is_some() {
                return Some(Target::Table(path.into(), table.to_owned()));
            }
            let mut tables = record?.outputs.tables.iter();
            let known = tables.find(|known| {
                let below = known.below.as_deref();
                known.table.eq_ignore_ascii_case(table)
                    && (known.database == path
                        || below.is_some_and(|below| is_same_output(database.as_ref(), below)))
            })?;
            let database = PathBuf::from(&known.database);
            return Some(Target::Table(database, known.table.clone()));
        }
        let path = names::file_of(uri)?;
        if let Some(below) = location::below(root, path) {
            return Some(Target::File(below));
        }
        let mut files = record?.outputs.files.iter();
        let file = files.find(|file| is_same_output(path, &file.path))?;
        Some(match way_out(&root.join(&file.path)) {
            Some((link, is_whole)) => Target::Outside(link, is_whole),
            None => Target::File(file.path.clone()),
        })
    }

    fn file(
        &mut self,
        below: &str,
        output: &Named,
        record: Option<&Record>,
        name: &Name,
    ) -> Option<Problem> {
        let path = self.root.path().join(below);
        let known = record.and_then(|record| {
            let mut files = record.outputs.files.iter();
            files.find(|file| file.path == below)
        });
        let found = match files::identity(&path) {
            Ok(Some(found)) => found,
            Ok(None) => {
                let is_replaced =
                    known.is_some_and(|file| self.published.is_file_replaced(name, file, None));
                let missing = || Problem::at(Kind::Missing, &path, "the file is not there");
                return (!is_replaced).then(|| self.no_folder(&path).unwrap_or_else(missing));
            }
            Err(error) => return Some(Problem::unchecked(path.display(), &error)),
        };
        if found == Identity::default() {
            return Some(obstruction(&path, "regular file"));
        }
        let size = output.size_bytes.or(known.map(|file| file.identity.size));
        if let Some(size) = size.filter(|size| *size != found.size) {
            let what = format!("it has {} bytes; its receipt has {size}", found.size);
            return Some(Problem::at(Kind::Changed, &path, what));
        }
        match rows_in(&path, found.size) {
            Err(Footer::Damaged(reason)) => {
                let what = format!("it cannot be read as Parquet: {reason}");
                return Some(Problem::at(Kind::Damaged, &path, what));
            }
            Err(Footer::Unchecked(reason)) => {
                return Some(Problem::at(Kind::Unchecked, &path, reason));
            }
            Ok(rows) => {
                let expected = output.rows.or(known.map(|file| file.rows));
                if let Some(expected) = expected.filter(|expected| *expected != rows) {
                    let what = format!("it has {rows} rows; its receipt has {expected}");
                    return Some(Problem::at(Kind::Rows, &path, what));
                }
            }
        }
        let hash = output.sha256.as_ref();
        let hash = hash.or(known.and_then(|file| file.sha256.as_ref()));
        if let Some(hash) = hash.filter(|_| self.reads_content) {
            match files::sha256(&path) {
                Ok(found) if found == *hash => {}
                Ok(found) => {
                    let what = format!("its SHA-256 is {found}; its receipt has {hash}");
                    return Some(Problem::at(Kind::Changed, &path, what));
                }
                Err(error) => return Some(Problem::unchecked(path.display(), &error)),
            }
        }
        if known.is_some_and(|file| file.identity != found) {
            let what = "it has another inode or time of modification than when it was published";
            return Some(Problem::at(Kind::Touched, &path, what));
        }
        None
    }

    /// The problem that a parent of a file is not a folder, or is a link that leads out of the root.
    fn no_folder(&self, path: &Path) -> Option<Problem> {
        let root = self.root.path();
        let folders = path.ancestors().skip(1);
        let mut folders = folders.take_while(|folder| *folder != root);
        let first = folders.find(|folder| folder.symlink_metadata().is_ok())?;
        if !first.is_dir() {
            return Some(obstruction(first, "folder"));
        }
        let leads_out = match (first.canonicalize(), root.canonicalize()) {
            (Ok(real), Ok(root)) => !real.starts_with(root),
            _ => false,
        };
        let mut above = [first].into_iter().chain(folders);
        let link = above.find(|folder| folder.is_symlink() && leads_out)?;
        Some(obstruction(link, "folder"))
    }

    fn table(
        &mut self,
        database: &Path,
        table: &str,
        output: &Named,
        record: Option<&Record>,
        name: &Name,
        publisher: (Attempt, i64),
    ) -> Option<Problem> {
        let path = database.join(table);
        let root = self.root.path();
        let given = path_of(&output.uri).unwrap_or(database);
        let missing = |what: &str| {
            let missing = || Problem::at(Kind::Missing, &path, what);
            Some(no_database(root, database, given).unwrap_or_else(missing))
        };
        let rows = match self.tables_of(database) {
            Err(error) => return Some(Problem::unchecked(path.display(), &error)),
            Ok(None) => None,
            Ok(Some(tables)) => match tables.rows(table, name) {
                Ok(rows) => rows,
                Err(error) => return Some(Problem::unchecked(path.display(), &error)),
            },
        };
        let (attempt, key) = match record {
            Some(record) => (record.attempt, record.key),
            None => (publisher.0.number, publisher.1),
        };
        let mut published = name.clone();
        published.attempt.number = attempt;
        let mut tables = self.tables.get_mut(database).and_then(Option::as_mut);
        let is_removed = tables
            .as_ref()
            .is_some_and(|tables| tables.is_removed(table, &published));
        // A damaged database may appear to have fewer rows.
        let mut damage = || {
            let damage = tables.as_mut()?.damage()?;
            let what = format!("database {}: {damage}", database.display());
            Some(Problem::at(Kind::DamagedDatabase, &path, what))
        };
        // After a failed attempt the receipt does not have the number.
        let of_record = || Some((rows_of(record?, database, table)?, "record"));
        let expected = output.rows.map(|rows| (rows, "receipt"));
        match (rows, expected.or_else(of_record)) {
            (None, Some((0, _))) => None,
            (None, _) if is_removed => None,
            (None, _) => damage().or_else(|| missing("the job's rows are not there")),
            (Some(found), Some((expected, of))) if found != expected => {
                let what = format!("the job has {found} rows there; its {of} has {expected}");
                damage().or_else(|| Some(Problem::at(Kind::Rows, &path, what)))
            }
            _ => {
                let what = "the job's rows there are of another attempt than its receipt's";
                let is_other = !tables?.is_of(table, &published, key);
                is_other.then(|| Problem::at(Kind::Changed, &path, what))
            }
        }
    }

    fn tables_of(&mut self, database: &Path) -> Result<Option<&mut Tables>, Error> {
        if !self.tables.contains_key(database) {
            if self.tables.len() >= TABLES_MAX {
                self.tables.clear();
            }
            let mut tables = Tables::open(database, self.root.access())?;
            if let Some(tables) = &mut tables {
                tables.count_jobs(self.jobs.0, self.jobs.1);
            }
            self.tables.insert(database.to_owned(), tables);
        }
        Ok(self.tables.get_mut(database).and_then(Option::as_mut))
    }

    /// Checks a job's record, and output that only the record names.
    fn record(&self, record: &Record, expected: &Expected<'_>, name: &Name) -> Option<Problem> {
        let path = record::path(self.root, name);
        let mut next = expected.last;
        next.number = next.number.saturating_add(1);
        let is_foreign = record.attempt > expected.last.number
            || expected
                .history
                .is_foreign(record.attempt, record.key, next)
            // An attempt that was reported as failed leaves no output without a receipt.
            || (expected.history.end(record.attempt) == PastEnd::Failed
                && !self.unnamed(record, expected).is_empty());
        if is_foreign {
            let ordinal = Attempt::new(name.attempt.job_id, record.attempt).ordinal();
            let what = format!(
                "attempt {ordinal} of the job has published, and the database does not have it: \
                 the database was copied or restored, or rows of cf_job_attempt were deleted"
            );
            return Some(Problem::at(Kind::Foreign, &path, what));
        }
        if expected.runs_again || expected.is_unsettled {
            return None;
        }
        let is_current = is_by(record, expected.publisher, expected.key);
        if record.attempt <= expected.history.completed() && !is_current {
            return self.duplicate(record, expected);
        }
        let mut of_record = name.clone();
        of_record.attempt.number = record.attempt;
        match record.is_committed(self.root, &of_record) {
            Ok(true) => {}
            Ok(false) if is_current => return None,
            Ok(false) => {
                let what = "an attempt ended while it published";
                return Some(Problem::at(Kind::Unfinished, &path, what));
            }
            Err(error) => return Some(Problem::unchecked(path.display(), &error)),
        }
        let uris = self.unnamed(record, expected);
        let first = uris.first()?;
        match is_current && expected.is_truncated {
            true => None,
            false => {
                let what = format!("no receipt names it, its record does ({})", path.display());
                Some(Problem::new(Kind::NoReceipt, first, what))
            }
        }
    }

    /// Checks for output of an earlier attempt, when the output of the receipt is in another root.
    fn duplicate(&self, record: &Record, expected: &Expected<'_>) -> Option<Problem> {
        let uris = self.unnamed(record, expected);
        let what = "the job's receipt names output in another folder";
        Some(Problem::new(Kind::Duplicate, uris.first()?, what))
    }

    /// URIs of the record's output that is still as it was published and that no receipt names.
    fn unnamed(&self, record: &Record, expected: &Expected<'_>) -> Vec<String> {
        let uris: Vec<String> = expected
            .outputs
            .iter()
            .map(|output| output.uri.clone())
            .collect();
        let named = location::named(self.root.path(), &uris);
        // The root may have had another path, or be a copy.
        let is_current = is_by(record, expected.publisher, expected.key);
        let is_same_output =
            |path: &Path, below: &str| path.ends_with(below) && (is_current || !path.exists());
        let files = record.outputs.files.iter().filter(|file| {
            let mut paths = uris.iter().filter_map(|uri| names::file_of(uri));
            self.is_as_recorded(file) && !paths.any(|path| is_same_output(path, &file.path))
        });
        let files = files.map(|file| names::file_uri(&self.root.path().join(&file.path)));
        let tables = record.outputs.tables.iter().filter(|table| {
            let mut tables = uris.iter().filter_map(|uri| names::table_of(uri));
            let below = table.below.as_deref();
            let is_named = tables.any(|(path, name)| {
                name.eq_ignore_ascii_case(&table.table)
                    && below.is_some_and(|below| is_same_output(path.as_ref(), below))
            });
            !is_named && self.has_rows(table, record, expected.last)
        });
        let tables = tables.map(|table| names::table_uri(table.database.as_ref(), &table.table));
        let all = files.chain(tables);
        all.filter(|uri| !named.contains(uri)).collect()
    }

    fn has_rows(&self, table: &TableOutput, record: &Record, last: Attempt) -> bool {
        let attempt = Attempt::new(last.job_id, record.attempt);
        let access = self.root.access();
        Name::numbered(self.database, attempt).is_ok_and(|name| {
            sqlite::is_published(table, &name, record.key, access).unwrap_or(false)
        })
    }

    fn bars(&self, expected: &Expected<'_>) -> Option<Problem> {
        let last = expected.last;
        let path = self.of_database("barred");
        match self.root.bar_of(self.database, last) {
            Ok(by) => {
                let what = format!(
                    "attempts of the job up to {} are barred, its last one was {}: the database \
                     was copied or restored",
                    Attempt::new(last.job_id, by?).ordinal(),
                    last.ordinal()
                );
                Some(Problem::at(Kind::Barred, &path, what))
            }
            Err(error) => Some(Problem::unchecked(path.display(), &error)),
        }
    }
}

impl Root {
    /// True when jobs of a database have records here.
    pub fn has_records(&self, database: &str) -> bool {
        let is_name = folder::checked(database).is_ok();
        is_name && self.base().join("outputs").join(database).is_dir()
    }

    /// The highest bar above the last attempt of a job.
    pub fn bar_of(&self, database: &str, last: Attempt) -> Result<Option<i64>, Error> {
        let database = folder::checked(database)?;
        let mut first = last;
        first.number = first.number.saturating_add(1);
        let by = self.barred_by(&database, first)?;
        let is_its = |by: &i64| Attempt::new(last.job_id, *by).incarnation() == last.incarnation();
        Ok(by.filter(is_its))
    }
}

/// Where an output is in a root.
enum Target {
    /// A file, by its path below the root.
    File(String),
    /// A database and a table.
    Table(PathBuf, String),
    /// Behind a link on its path that leads out of the root, or to nothing. True if the link is the whole
    /// path.
    Outside(PathBuf, bool),
}

impl Target {
    /// True if a record names it as published.
    fn is_in(&self, record: &Record) -> bool {
        let Record { outputs, .. } = record;
        match self {
            Target::File(below) => outputs.files.iter().any(|file| file.path == *below),
            Target::Table(database, table) => outputs.tables.iter().any(|known| {
                Path::new(&known.database) == database && known.table.eq_ignore_ascii_case(table)
            }),
            Target::Outside(..) => false,
        }
    }

    fn uri(&self, root: &Path) -> String {
        match self {
            Target::File(below) => names::file_uri(&root.join(below)),
            Target::Table(database, table) => names::table_uri(database, table),
            Target::Outside(link, _) => names::file_uri(link),
        }
    }
}

/// The path of the file or database that a URI names.
fn path_of(uri: &str) -> Option<&Path> {
    let database = || Some(Path::new(names::table_of(uri)?.0));
    names::file_of(uri).or_else(database)
}

/// The number of a job's rows in a table by its record. Several topics may write into one table.
fn rows_of(record: &Record, database: &Path, table: &str) -> Option<u64> {
    let tables = record.outputs.tables.iter().filter(|known| {
        Path::new(&known.database) == database && known.table.eq_ignore_ascii_case(table)
    });
    tables.map(|known| known.rows).reduce(u64::saturating_add)
}

/// The reason why a record cannot be read, without the record's path.
fn reason(error: &Error) -> String {
    match error {
        Error::Record { reason, .. } => reason.clone(),
        Error::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

fn name_of(job: &str, incarnation: &str) -> String {
    match incarnation {
        "0" => job.to_owned(),
        incarnation => format!("{job}r{incarnation}"),
    }
}

/// Limit of the foreign entries of a root that are listed.
const STRANGERS_MAX: usize = 100;

/// The subfolders whose names are good. Adds all other entries to `others`.
fn folders_of(
    folder: &Path,
    others: &mut Vec<PathBuf>,
    is_good: impl Fn(&str) -> bool,
) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let (good, bad): (Vec<_>, Vec<_>) = entries.partition(|entry| {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        is_folder && entry.file_name().to_str().is_some_and(&is_good)
    });
    others.extend(bad.iter().map(fs::DirEntry::path));
    good.iter().map(fs::DirEntry::path).collect()
}

/// The names in a folder; empty when it does not exist. An error when it has more than `names_max` names.
fn names_in(folder: &Path, names_max: usize) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if files::is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(folder, error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io(folder, error))?;
        if names.len() >= names_max {
            let reason = format!("it has more than {names_max} names");
            return Err(Error::io(folder, std::io::Error::other(reason)));
        }
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}
