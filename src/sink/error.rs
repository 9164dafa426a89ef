//! Errors of writing and publishing output.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::job::text::prefix;
use crate::job::{Attempt, Cause, LimitOf, SinkError};
use crate::limits;

/// Number of columns that a message names.
const COLUMNS_SHOWN: usize = 10;

/// Limit of the bytes of a name that a message shows.
const NAME_SHOWN: usize = 80;

/// What is to be done about a database whose file is damaged.
const DAMAGED_ADVICE: &str =
    "restore it from a backup, or move it away and run the jobs again that wrote into it";

/// What a failure of SQLite shows about the file of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseState {
    /// It is damaged, or no database. No later attempt can read it.
    Damaged,
    /// A program ended while it wrote, and what it left can be undone or completed only by a connection
    /// that may write.
    Unfinished,
    /// Anything else.
    Other,
}

/// Why output could not be written.
#[derive(Debug)]
pub enum Error {
    /// A sink's URI or mode is invalid.
    Sink(SinkError),
    /// A symbolic link leads out of the root.
    Outside {
        /// The file.
        path: PathBuf,
    },
    /// A sink's file or folder cannot be created, because of its URI or of other files.
    Path {
        /// The file, folder or database.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The output folder does not exist any more, or another folder is at its path.
    RootMissing {
        /// The output folder.
        path: PathBuf,
    },
    /// Two sinks of the job have the same file.
    SameFile {
        /// The file.
        path: PathBuf,
    },
    /// The sink has output already, and its mode is `error`.
    Exists {
        /// The output.
        path: PathBuf,
        /// The attempt that published it. `None` when no record names an attempt of the same database.
        by: Option<Attempt>,
    },
    /// At the path of the job's output is a file, or in its table are rows, that no record and no receipt
    /// of the job names.
    NotOurs {
        /// The file, or database and table.
        path: PathBuf,
        /// SQL condition for the rows in the table; `None` for a file.
        rows: Option<String>,
    },
    /// The root or the table belongs to another database.
    OtherDatabase {
        /// The root, or database and table.
        path: PathBuf,
        /// UUID of the database that owns it.
        owner: String,
        /// UUID of the job's database.
        database: String,
        /// True when no worker with another root can run the job.
        is_final: bool,
    },
    /// The database's UUID is invalid.
    DatabaseName {
        /// The invalid UUID; at most 100 characters.
        name: String,
    },
    /// The same or a later attempt, or one that the database does not have, has published or is running:
    /// the database was copied or restored.
    Copied {
        /// The refused attempt.
        attempt: Attempt,
        /// The number of the recorded attempt.
        recorded: i64,
    },
    /// A later attempt, or the sentinel, has barred this one.
    Barred {
        /// The refused attempt.
        attempt: Attempt,
        /// The number up to which attempts of the job are barred. The attempt's own number where the bar
        /// is unknown.
        by: i64,
    },
    /// A record of published output cannot be read.
    Record {
        /// The record.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The job has more topics than a job may have.
    Topics {
        /// The limit.
        limit: usize,
    },
    /// The process has reached its limit of open files.
    Descriptors {
        /// The file.
        path: PathBuf,
        /// The soft limit (RLIMIT_NOFILE).
        limit: Option<u64>,
    },
    /// The plugin's batches do not all have the same schema.
    SchemaChanged {
        /// The sink's topic.
        topic: String,
        /// The schema, or a column, of the first batch.
        expected: String,
        /// That of the later batch.
        got: String,
    },
    /// The types of a topic's columns have changed too often (`limits::SEGMENTS_MAX`).
    Segments {
        /// The topic.
        topic: String,
        /// The limit.
        limit: usize,
    },
    /// The columns of a table differ from those of the job's rows.
    TableColumns {
        /// The database and table.
        path: PathBuf,
        /// Columns of the job's rows that the table lacks.
        missing: Vec<String>,
        /// Columns of the table that the job's rows lack.
        extra: Vec<String>,
    },
    /// A table has another number of rows than it should have after inserts or deletes.
    Rows {
        /// The database.
        path: PathBuf,
        /// The table.
        table: String,
        /// Names of its first triggers.
        triggers: Vec<String>,
        /// Number of rows found.
        found: u64,
        /// Number of rows expected.
        expected: u64,
    },
    /// A database was renamed, replaced or removed while rows were written into it.
    Moved {
        /// Its path before.
        path: PathBuf,
    },
    /// A column that the sink cannot store.
    Column {
        /// Its name.
        column: String,
        /// The reason.
        reason: String,
    },
    /// A row exceeds the limit of the bytes of a row.
    Row {
        /// Its largest column.
        column: String,
        /// Its index in the batch.
        row: usize,
        /// Bytes of the row, expanded; at least this number.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The columns of all topics need more memory than a job may use.
    Columns {
        /// The topic.
        topic: String,
        /// The reason, with the number of columns or bytes.
        reason: String,
    },
    /// The job has more output than it may have.
    Output {
        /// Bytes of its files so far.
        size: u64,
        /// The limit.
        limit: u64,
        /// Who has set it.
        of: LimitOf,
    },
    /// The writer was ordered to stop.
    Stopped,
    /// The Parquet writer failed.
    Parquet(String),
    /// SQLite failed.
    Sqlite {
        /// The database.
        path: PathBuf,
        /// The reason.
        reason: String,
        /// The cause of the failure.
        cause: Cause,
        /// The state of the database file.
        state: DatabaseState,
    },
    /// Other connections kept a database locked for longer than a sink waits.
    Locked {
        /// The database.
        path: PathBuf,
    },
    /// An operation on a file or folder failed.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Sink(error) => error.fmt(f),
            Error::Outside { path } => write!(
                f,
                "{}: a symbolic link leads out of the output folder",
                path.display()
            ),
            Error::Path { path, reason } => {
                let advice = match path.iter().any(|part| part == ".casparian") {
                    true => "remove it, or use another output folder",
                    false => "change the sink's URI, or what is there",
                };
                write!(f, "{}: {reason}; {advice}", path.display())
            }
            Error::RootMissing { path } => write!(
                f,
                "the output folder {} is not the one that this worker has opened (unmounted, \
                 renamed or removed): put it back, or restart the worker",
                path.display()
            ),
            Error::SameFile { path } => {
                let path = path.display();
                write!(f, "two sinks of the job write the same file {path}")
            }
            Error::Exists { path, by } => {
                write!(f, "{} exists already", path.display())?;
                if let Some(by) = by {
                    write!(f, " (output of job {})", by.job_id)?;
                }
                write!(f, " and the sink's mode is error")
            }
            Error::NotOurs { path, rows: None } => write!(
                f,
                "{} is not output of this job of this database according to any record or \
                 receipt; move it away and queue the job again (where the output folder is a copy, \
                 or was restored: `casparian fsck --adopt`)",
                path.display()
            ),
            Error::NotOurs {
                path,
                rows: Some(rows),
            } => write!(
                f,
                "table {} has rows with {rows} that are not output of this job of this database \
                 according to any record or receipt; move these rows to another table and queue \
                 the job again",
                path.display()
            ),
            Error::OtherDatabase {
                path,
                owner,
                database,
                ..
            } => write!(
                f,
                "{} belongs to another database; use another output folder or --share-output \
                 (it holds output of {owner}, the job is of {database}); a copy of that database \
                 becomes its owner by `casparian fsck --adopt`",
                path.display()
            ),
            Error::DatabaseName { name } => {
                write!(
                    f,
                    "database identity {name:?}: expected 1 to 64 of a-z, 0-9 and -"
                )
            }
            Error::Copied { attempt, recorded } => write!(
                f,
                "{attempt}: its attempt {} is published already, so the database was copied or \
                 restored, or rows of cf_job_attempt were deleted; `casparian init --new-identity DB` gives it an identity of its own, and \
                 --share-output lets it publish here then; or `casparian fsck --adopt` makes it the \
                 owner of the output, keeps that, and queues the job again",
                Attempt::new(attempt.job_id, *recorded).ordinal()
            ),
            Error::Barred { attempt, .. } => {
                write!(
                    f,
                    "{attempt} may not publish any more: a later attempt replaces it"
                )
            }
            Error::Record { path, reason } => write!(
                f,
                "record {}: {reason}; remove it to discard its data about earlier output",
                path.display()
            ),
            Error::Topics { limit } => {
                write!(f, "the job has more than {limit} topics; publish to fewer")
            }
            Error::Descriptors { path, limit } => {
                write!(f, "{}: too many open files", path.display())?;
                match limit {
                    Some(limit) => write!(f, " (limit {limit}); raise it with ulimit -n"),
                    None => write!(f, "; raise the limit with ulimit -n"),
                }
            }
            Error::TableColumns {
                path,
                missing,
                extra,
            } => write_columns(f, path, missing, extra),
            Error::Rows {
                path,
                table,
                triggers,
                found,
                expected,
            } => write_rows(f, path, table, triggers, [*found, *expected]),
            Error::Moved { path } => write!(
                f,
                "database {}: it was moved, replaced or removed while the job's rows were written \
                 into it, so they do not count",
                path.display()
            ),
            Error::SchemaChanged {
                topic,
                expected,
                got,
            } => write!(
                f,
                "the schema of topic {topic} changed half-way: expected {expected}, got {got}; publish \
                 all batches with one schema, or the others to a topic of their own"
            ),
            Error::Segments { topic, limit } => write!(
                f,
                "the types of the columns of topic {topic} have changed more than {limit} times; \
                 publish all batches with one schema"
            ),
            Error::Column { column, reason } => write!(f, "column {column:?}: {reason}"),
            Error::Row {
                column,
                row,
                size,
                limit,
            } => write!(
                f,
                "column {:?}: row {row} of its batch has {size} bytes or more, the limit is {limit} \
                 (--job-buffer, or --cell-max for a cell that is so large); all columns count, with \
                 dictionaries, runs and views expanded",
                prefix(column, NAME_SHOWN)
            ),
            Error::Columns { topic, reason } => write!(
                f,
                "topic {:?}: {reason} (--job-buffer)",
                prefix(topic, NAME_SHOWN)
            ),
            Error::Output { size, limit, of } => write!(
                f,
                "the job has written {size} bytes of output; the limit is {limit} ({})",
                of.shown("job-output")
            ),
            Error::Stopped => f.write_str("the job was stopped"),
            Error::Parquet(reason) => write!(f, "writing Parquet: {reason}"),
            Error::Sqlite {
                path,
                reason,
                state,
                ..
            } => {
                write!(f, "database {}: {reason}", path.display())?;
                match state {
                    DatabaseState::Damaged => write!(f, "; {DAMAGED_ADVICE}"),
                    DatabaseState::Unfinished | DatabaseState::Other => Ok(()),
                }
            }
            Error::Locked { path } => write!(
                f,
                "database {}: other connections keep it locked",
                path.display()
            ),
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
        }
    }
}

fn write_columns(
    f: &mut fmt::Formatter<'_>,
    path: &Path,
    missing: &[String],
    extra: &[String],
) -> fmt::Result {
    write!(
        f,
        "table {} has other columns than the output:",
        path.display()
    )?;
    for (word, names) in [(" it lacks", missing), (" it also has", extra)] {
        let shown = names.iter().take(COLUMNS_SHOWN);
        let shown: Vec<String> = shown
            .map(|name| format!("{:?}", prefix(name, 60)))
            .collect();
        if !shown.is_empty() {
            write!(f, "{word} {}", shown.join(", "))?;
            let more = names.len() - shown.len();
            if more > 0 {
                write!(f, " and {more} more")?;
            }
            write!(f, ";")?;
        }
    }
    write!(f, " change the table, or use another one")
}

fn write_rows(
    f: &mut fmt::Formatter<'_>,
    path: &Path,
    table: &str,
    triggers: &[String],
    [found, expected]: [u64; 2],
) -> fmt::Result {
    write!(f, "database {}: ", path.display())?;
    let names = triggers
        .iter()
        .map(|name| format!("{:?}", prefix(name, 60)));
    let names: Vec<String> = names.collect();
    match names.as_slice() {
        [] => write!(f, "the table {table}")?,
        [one] => write!(f, "the trigger {one} of the table {table}")?,
        _ => {
            let names = names.join(", ");
            write!(f, "one of the triggers {names} of the table {table}")?;
        }
    }
    let s = if found == 1 { "" } else { "s" };
    write!(f, " leaves {found} row{s} where {expected} should be")
}

impl std::error::Error for Error {}

impl From<SinkError> for Error {
    fn from(error: SinkError) -> Self {
        Error::Sink(error)
    }
}

impl Error {
    /// The cause of the failure.
    pub fn cause(&self) -> Cause {
        match self {
            Error::SchemaChanged { .. }
            | Error::Column { .. }
            | Error::Parquet(_)
            | Error::Row { .. }
            | Error::Columns { .. }
            | Error::Output { .. }
            | Error::Stopped
            | Error::Segments { .. }
            | Error::Topics { .. } => Cause::Plugin,
            Error::Sink(_)
            | Error::Outside { .. }
            | Error::Path { .. }
            | Error::SameFile { .. }
            | Error::Exists { .. }
            | Error::TableColumns { .. }
            | Error::NotOurs { .. }
            | Error::DatabaseName { .. }
            | Error::Copied { .. }
            | Error::Rows { .. }
            | Error::OtherDatabase { is_final: true, .. }
            | Error::Record { .. } => Cause::Operator,
            Error::Barred { .. } => Cause::Lost,
            // A worker with another root may be able to run the job.
            Error::OtherDatabase { .. }
            | Error::Descriptors { .. }
            | Error::RootMissing { .. }
            | Error::Locked { .. }
            | Error::Moved { .. }
            | Error::Io { .. } => Cause::Worker,
            Error::Sqlite { cause, .. } => *cause,
        }
    }

    /// For [`Error::Barred`]: the number up to which attempts of the job are barred.
    pub fn barred_by(&self) -> Option<i64> {
        match self {
            Error::Barred { by, .. } => Some(*by),
            _ => None,
        }
    }

    /// For [`Error::Exists`]: the attempt of another job that published the existing output.
    pub fn taken_by(&self) -> Option<Attempt> {
        match self {
            Error::Exists { by, .. } => *by,
            _ => None,
        }
    }

    /// True when other programs have locked or moved the database. Such an error is no evidence of a
    /// fault of the worker.
    pub fn is_contention(&self) -> bool {
        matches!(self, Error::Locked { .. } | Error::Moved { .. })
    }

    /// The state of a database's file, if SQLite failed.
    pub(super) fn database_state(&self) -> DatabaseState {
        match self {
            Error::Sqlite { state, .. } => *state,
            _ => DatabaseState::Other,
        }
    }

    /// True when a file at the path of output is not that output.
    pub fn is_not_ours(&self) -> bool {
        matches!(self, Error::NotOurs { .. })
    }

    /// True for a full disk or quota, which may be temporary.
    pub fn may_pass(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Error::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// True when the worker can run no job until the fault is repaired.
    pub fn is_trouble(&self) -> bool {
        matches!(self, Error::RootMissing { .. })
    }

    /// A [`Error::NotOurs`] for a file.
    pub(super) fn not_ours(path: PathBuf) -> Self {
        Error::NotOurs { path, rows: None }
    }

    pub(super) fn at_path(path: &Path, reason: impl Into<String>) -> Self {
        Error::Path {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        let errno = rustix::io::Errno::from_io_error(&source);
        if errno == Some(rustix::io::Errno::MFILE) {
            return Error::Descriptors {
                path: path.to_owned(),
                limit: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            };
        }
        if errno == Some(rustix::io::Errno::NAMETOOLONG) {
            return Error::at_path(path, "the path is too long");
        }
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Error::at_path(path, "the path contains a NUL");
        }
        Error::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// Raises the soft limit of open files to the hard limit, at most to `limits::DESCRIPTORS_MAX`, and
/// returns it. `None`: no limit. It is needed because a worker has many files and sockets open.
pub fn raise_descriptor_limit() -> io::Result<Option<u64>> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Without a limit, the kernel's bound (fs.nr_open) still applies.
    let wanted = limit.maximum.unwrap_or(limits::DESCRIPTORS_MAX);
    let wanted = wanted.min(limits::DESCRIPTORS_MAX);
    match limit.current {
        Some(current) if current < wanted => {
            let raised = Rlimit {
                current: Some(wanted),
                maximum: limit.maximum,
            };
            setrlimit(Resource::Nofile, raised)?;
            Ok(Some(wanted))
        }
        current => Ok(current),
    }
}
