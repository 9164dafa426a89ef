//! The SQLite database: schema and migrations, job queue, plugin registry, file catalogue.
//!
//! The database is the operators' interface. Tables and columns of the reference system keep
//! their names and meaning. Other programs insert QUEUED rows with plain SQL, and so does the command
//! line. The columns that Casparian adds are nullable or have defaults.
//!
//! Invariants:
//! - Every change is in an explicit transaction ([`Transaction`]). Dropping it rolls it back. There is no
//!   slow work in a transaction: files are read and checked before it begins.
//! - `synchronous=FULL`, WAL: a committed transaction survives kill -9 and a power failure.
//! - Only the holder of the current attempt ends a job (compare-and-set on job and attempt).
//! - The store does not read the clock. The present time is an argument ([`Now`], or `now_ms`: milliseconds
//!   since the epoch, UTC).
//! - A value of any type in any column affects only its own row: no function fails because of it.
//!   A job that cannot be used ends as FAILED with a message that names table, column and value.
//!   While a plugin's manifest or sinks cannot be used, its jobs wait ([`Code::Waits`]).
//! - Statements of the hot path name their index (`INDEXED BY`), so that the statistics of an
//!   ANALYZE cannot make them read the whole queue.

mod attempts;
mod audit;
mod catalogue;
mod change;
mod changed_rows;
mod claim;
mod clock;
mod code;
mod content;
mod deployments;
mod identity;
mod inspect;
mod keys;
mod lease_check;
mod location;
mod lock;
mod manifest;
mod parameters;
mod passed;
mod queue;
mod registry;
mod retry;
mod schema;
mod settle;
mod sinks;
mod time;
mod upload;
mod value;
mod waits;
mod workers;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::{beside, limits};

pub(crate) use attempts::ROW_CHANGED;
pub use attempts::{Completion, Ended};
pub use audit::{Audited, Claimant, Output};
pub use catalogue::{FileJob, FileVersion, Publication, PublishedInput};
pub use change::RetriedRows;
pub use claim::{ClaimRequest, Claimed, Unresolved};
pub use clock::{Now, boot_id};
pub use code::{Code, PluginCode};
pub use deployments::{Deployment, Deployments, WorkerEnvironment};
pub use inspect::{AttemptRow, Inspector, JobDetail, JobFilter, JobRow, SET_ASIDE, WorkerRow};
pub use location::parse as parse_location;
pub use lock::{Lock, lock_database};
pub use manifest::{Manifest, ManifestError, ManifestSink, read_manifest};
pub use queue::{QueuedPlugins, Running};
pub use registry::{Deploy, Deployed, artifact_hash, sha256_hex};
pub use settle::Settled;
pub use time::{format as format_time, parse as parse_time};
pub use upload::{Author, Upload, check_deploy_size};
pub use workers::WorkerSession;

/// Whether a missing database is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Create it.
    Create,
    /// Fail with [`Error::Missing`].
    Existing,
}

/// What went wrong with a database.
#[derive(Debug)]
pub enum Error {
    /// A text that is neither a path nor a `sqlite://` URL.
    Location {
        /// The text.
        text: String,
        /// Why.
        reason: &'static str,
    },
    /// The database does not exist.
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// The file could not be opened.
    Open {
        /// The path.
        path: PathBuf,
        /// SQLite's reason.
        reason: String,
        /// See [`Error::may_pass`].
        passes: bool,
    },
    /// The file is a database of another program.
    Foreign {
        /// The path.
        path: PathBuf,
    },
    /// A table lacks columns.
    Columns {
        /// The path.
        path: PathBuf,
        /// The table.
        table: String,
        /// The missing columns.
        columns: Vec<String>,
    },
    /// The schema is newer than this program.
    Newer {
        /// The path.
        path: PathBuf,
        /// Its `user_version`.
        version: i64,
        /// The newest version that this program supports.
        known: i64,
    },
    /// The schema is older than a reader needs.
    NotMigrated {
        /// The path.
        path: PathBuf,
    },
    /// Another sentinel works on the database.
    Locked {
        /// The database.
        path: PathBuf,
        /// The file that it has locked: the database, or the lock file.
        lock: PathBuf,
    },
    /// The lock file of a database cannot be used.
    Lock {
        /// The lock file.
        lock: PathBuf,
        /// Why.
        reason: String,
        /// See [`Error::may_pass`].
        passes: bool,
    },
    /// The database at the path is no longer the one that was opened.
    Replaced {
        /// The path.
        path: PathBuf,
        /// What happened to it.
        reason: &'static str,
    },
    /// Code in the schema has rolled the transaction back. It can be repeated without that row.
    RolledBack {
        /// The row whose change caused it.
        row: String,
    },
    /// SQLite failed.
    Sqlite(rusqlite::Error),
    /// A row has an invalid value.
    Row(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Location { text, reason } => write!(
                f,
                "database {text:?}: {reason}; expected a path or sqlite://PATH"
            ),
            Error::Missing { path } => write!(
                f,
                "database {}: no such file; `casparian init {}` makes it",
                path.display(),
                path.display()
            ),
            Error::Open { path, reason, .. } => {
                write!(f, "database {}: {reason}", path.display())
            }
            Error::Foreign { path } => write!(
                f,
                "database {}: it is one of another program (it has tables, but no job queue) and is left as it is; use another file",
                path.display()
            ),
            Error::Columns {
                path,
                table,
                columns,
            } => write!(
                f,
                "database {}: its table {table} has no column {}; add what is missing (ALTER TABLE {table} ADD COLUMN), or use another file",
                path.display(),
                columns.join(", ")
            ),
            Error::Newer {
                path,
                version,
                known,
            } => write!(
                f,
                "database {}: its schema version {version} is newer than this program's {known}",
                path.display()
            ),
            Error::NotMigrated { path } => write!(
                f,
                "database {}: it has no job queue of this version; `casparian init {}` adds it and keeps what is there",
                path.display(),
                path.display()
            ),
            Error::Locked { path, lock } => write!(
                f,
                "database {}: another sentinel works on it (it has locked {}); stop that one first, or use another database",
                path.display(),
                lock.display()
            ),
            Error::Lock { lock, reason, .. } => write!(
                f,
                "lock file {}: {reason}; the folder of the database must be writable, and the file a regular one of this user",
                lock.display()
            ),
            Error::Replaced { path, reason } => write!(
                f,
                "database {}: {reason} while this program had it open; restart the program",
                path.display()
            ),
            Error::RolledBack { row } => write!(
                f,
                "database: a trigger or constraint rolls back the transaction that changes {row}"
            ),
            Error::Sqlite(error) => write!(f, "database: {}", without_statement(error)),
            Error::Row(reason) => write!(f, "database: {reason}"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// True when the same operation may succeed later: another program has the database locked, or its
    /// storage is full or fails.
    pub fn may_pass(&self) -> bool {
        match self {
            Error::Open { passes, .. } | Error::Lock { passes, .. } => *passes,
            Error::Sqlite(error) => passes(error),
            _ => false,
        }
    }

    /// True when another program has dropped an index that a statement names.
    /// [`Store::restore_schema`] creates it again.
    pub fn is_index_missing(&self) -> bool {
        matches!(self, Error::Sqlite(error) if schema::is_index_missing(error))
    }

    /// The reason, without the path.
    pub fn reason(&self) -> String {
        match self {
            Error::Open { reason, .. } | Error::Row(reason) => reason.clone(),
            Error::Sqlite(error) => error.to_string(),
            other => other.to_string(),
        }
    }
}

fn passes(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{
        DatabaseBusy, DatabaseLocked, DiskFull, FileLockingProtocolFailed, OutOfMemory,
        SystemIoFailure,
    };
    matches!(
        error.sqlite_error_code(),
        Some(
            DatabaseBusy
                | DatabaseLocked
                | DiskFull
                | FileLockingProtocolFailed
                | OutOfMemory
                | SystemIoFailure
        )
    )
}

/// The same for I/O errors outside SQLite.
fn io_passes(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::IO,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
    ];
    let code = error.raw_os_error();
    passing
        .iter()
        .any(|errno| code == Some(errno.raw_os_error()))
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Error::Sqlite(error)
    }
}

/// A program's only writing connection to a database.
pub struct Store {
    connection: Connection,
    data_version: i64,
    /// UUID and file of the database.
    identity: identity::Identity,
    /// The keys of the attempts that this store claims (`attempt_key`).
    keys: keys::Keys,
    cache: Cache,
    refused: change::Refused,
    /// The plugin name behind which [`Store::queued_plugins`] continues, in the database's encoding.
    names_after: Vec<u8>,
    /// Its value before the last call of that.
    names_before: Vec<u8>,
}

/// Values that were read from the database. They are read again after another program has committed.
#[derive(Default)]
struct Cache {
    /// The `PRAGMA data_version` at which `codes` were read.
    data_version: i64,
    /// The code of each plugin, by its name.
    codes: HashMap<String, Code>,
    /// The schema with this number has all indexes and triggers. None = it must be compared.
    schema: Option<i64>,
    /// The cache contains an uncommitted deployment of this connection.
    uncommitted: bool,
}

/// One transaction. [`Transaction::commit`] makes it durable. Dropping it rolls it back.
pub struct Transaction<'a> {
    inner: rusqlite::Transaction<'a>,
    cache: &'a mut Cache,
    refused: &'a mut change::Refused,
    database: &'a Arc<str>,
    keys: &'a mut keys::Keys,
    /// How many more unusable rows this transaction may end.
    unusable_left: usize,
    /// Plugins for whose jobs no further worker is emptied, see [`Transaction::empty_none_for`].
    emptying: HashSet<String>,
}

impl Store {
    /// Names of triggers and views that no release of Casparian has created.
    pub fn foreign_code(&self) -> Result<Vec<String>, Error> {
        schema::foreign_code(&self.connection)
    }

    /// Opens a database and migrates its schema in place. A new database has mode 600, independent of
    /// the umask, because a user who can write to it decides what code the workers run.
    pub fn open(path: &Path, open: Open) -> Result<Self, Error> {
        Self::open_within(path, open, limits::STORE_OPEN_WAIT)
    }

    /// As [`Store::open`]. Each statement, here and later, waits at most `wait` for another program's
    /// transaction.
    pub fn open_within(path: &Path, open: Open, wait: Duration) -> Result<Self, Error> {
        if open == Open::Create {
            create_private(path);
        }
        let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        match open {
            Open::Create => flags |= OpenFlags::SQLITE_OPEN_CREATE,
            Open::Existing if !path.exists() => {
                return Err(Error::Missing {
                    path: path.to_owned(),
                });
            }
            Open::Existing => {}
        }
        let mut connection = connect(path, flags, wait)?;
        check_ours(&connection, path)?;
        let describe = |error: rusqlite::Error| open_error(path, &error);
        change_to_wal(&connection, wait).map_err(describe)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(describe)?;
        connection
            .pragma_update(None, "foreign_keys", false)
            .map_err(describe)?;
        connection.set_prepared_statement_cache_capacity(128);
        let name = |error: Error| match error {
            Error::Sqlite(error) => describe(error),
            other => other,
        };
        schema::migrate(&mut connection, path).map_err(name)?;
        let identity = identity::Identity::read(&mut connection, path).map_err(name)?;
        let data_version = data_version(&connection)?;
        let keys = keys::Keys::new(&connection)?;
        Ok(Store {
            connection,
            data_version,
            identity,
            keys,
            cache: Cache::default(),
            refused: change::Refused::default(),
            names_after: Vec::new(),
            names_before: Vec::new(),
        })
    }

    /// Begins a transaction that may write. Waits a bounded time for another program's transaction. After a
    /// change of the schema, indexes and triggers that are missing are created again.
    pub fn begin(&mut self) -> Result<Transaction<'_>, Error> {
        let behavior = TransactionBehavior::Immediate;
        let transaction = rusqlite::Transaction::new(&mut self.connection, behavior)?;
        let version = data_version(&transaction)?;
        let is_changed = version != self.cache.data_version;
        let changes = transaction.total_changes();
        self.refused.passed.begin(is_changed, changes);
        if is_changed || self.cache.uncommitted {
            self.cache.data_version = version;
            self.cache.uncommitted = false;
            self.cache.codes.clear();
        }
        if is_changed || self.cache.schema.is_none() {
            let cookie = schema::cookie(&transaction)?;
            if self.cache.schema != Some(cookie) {
                let is_complete = schema::restore_within(&transaction)?;
                self.cache.schema = is_complete.then_some(cookie);
            }
        }
        Ok(Transaction {
            inner: transaction,
            cache: &mut self.cache,
            refused: &mut self.refused,
            database: self.identity.database(),
            keys: &mut self.keys,
            unusable_left: limits::UNUSABLE_ROWS_PER_TRANSACTION,
            emptying: HashSet::new(),
        })
    }

    /// Creates the indexes and triggers again that another program has dropped or changed.
    pub fn restore_schema(&mut self) -> Result<(), Error> {
        schema::restore(&mut self.connection)
    }

    /// True when another connection has committed since the last call.
    pub fn changed(&mut self) -> Result<bool, Error> {
        let version = data_version(&self.connection)?;
        let changed = version != self.data_version;
        if changed {
            self.data_version = version;
        }
        Ok(changed)
    }
}

impl Transaction<'_> {
    /// Makes everything of this transaction durable.
    pub fn commit(self) -> Result<(), Error> {
        let changes = self.inner.total_changes();
        self.inner.commit()?;
        self.cache.uncommitted = false;
        self.refused.passed.commit(changes);
        Ok(())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl fmt::Debug for Transaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}

fn data_version(connection: &Connection) -> Result<i64, Error> {
    let mut statement = connection.prepare_cached("PRAGMA data_version")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

fn connect(path: &Path, flags: OpenFlags, wait: Duration) -> Result<Connection, Error> {
    // To open a FIFO for reading would block until it has a writer.
    if let Ok(metadata) = std::fs::metadata(path)
        && !metadata.is_file()
    {
        let reason = match metadata.is_dir() {
            true => "it is a directory",
            false => "it is not a regular file",
        };
        return Err(Error::Open {
            path: path.to_owned(),
            reason: reason.to_owned(),
            passes: false,
        });
    }
    let kept = beside::keep(path);
    if let Some((beside, reason)) = beside::refusal(path) {
        return Err(Error::Open {
            path: path.to_owned(),
            reason: format!("{}: {reason}", beside.display()),
            passes: false,
        });
    }
    let connection =
        Connection::open_with_flags(path, flags).map_err(|error| open_error(path, &error))?;
    let configured = connection
        .busy_timeout(wait)
        .and_then(|()| harden(&connection));
    configured.map_err(|error| open_error(path, &error))?;
    // SQLite does not read the file when it opens it. This statement fails when the file is no database.
    connection
        .query_row("SELECT count(*) FROM sqlite_master", [], |row| {
            row.get::<_, i64>(0)
        })
        .map_err(|error| open_error(path, &error))?;
    drop(kept);
    Ok(connection)
}

/// Changes to WAL mode, and repeats that while the database is locked. SQLite's busy timeout does not apply
/// to a change from a rollback journal to WAL, and another program may read or make the same change.
fn change_to_wal(connection: &Connection, wait: Duration) -> rusqlite::Result<()> {
    let began = Instant::now();
    loop {
        let changed = connection.pragma_update(None, "journal_mode", "WAL");
        let is_busy = |error: &rusqlite::Error| {
            error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
        };
        match changed {
            Err(error) if is_busy(&error) && began.elapsed() < wait => {
                std::thread::sleep(limits::WAL_CHANGE_PAUSE);
            }
            changed => return changed,
        }
    }
}

/// Refuses a database of another program. Called before anything is changed.
fn check_ours(connection: &Connection, path: &Path) -> Result<(), Error> {
    match schema::is_foreign(connection)? {
        true => Err(Error::Foreign {
            path: path.to_owned(),
        }),
        false => Ok(()),
    }
}

/// Restricts what code in the schema can do: it may only call functions without side effects, and no
/// statement may write to the schema tables. Also makes plans independent of the values of parameters (QPSG).
/// Otherwise SQLite would compile each statement with `LIMIT ?` again at every execution.
pub(crate) fn harden(connection: &Connection) -> rusqlite::Result<()> {
    use rusqlite::config::DbConfig::{
        SQLITE_DBCONFIG_DEFENSIVE, SQLITE_DBCONFIG_ENABLE_QPSG, SQLITE_DBCONFIG_TRUSTED_SCHEMA,
    };
    connection.set_db_config(SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_db_config(SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    Ok(())
}

/// Creates an empty file with mode 0600 for a database that does not exist. SQLite creates the files
/// beside it with the same mode.
fn create_private(path: &Path) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let options = options.write(true).create_new(true).mode(0o600);
    // SQLite creates the file at the target of a link.
    let mut target = path.to_owned();
    for _ in 0..limits::LINKS_MAX {
        let Ok(to) = std::fs::read_link(&target) else {
            break;
        };
        target = target.parent().unwrap_or(Path::new("")).join(to);
    }
    if let Err(error) = options.open(target) {
        // If the path is invalid, opening it by SQLite returns the error.
        log::debug!("{}: not created: {error}", path.display());
    }
}

/// What other users may do with a database. None = nothing. `others` = also check what its mode permits, not
/// only its owner.
pub fn shared_with(path: &Path, others: bool) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(path).ok()?;
    let (owner, mode) = (found.uid(), found.mode());
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Some(format!("user {owner}, whose it is, may change it"));
    }
    match (mode & 0o022, mode & 0o044) {
        _ if !others => None,
        (0, 0) => None,
        (0, _) => Some("other users may read it".to_owned()),
        _ => Some("other users may change it".to_owned()),
    }
}

/// Reason for [`Error::Open`] when another program has the database locked.
const LOCKED: &str = "another program keeps it locked";
/// Reason for [`Error::Open`] when the disk is full.
const FULL: &str = "the disk is full";

fn open_error(path: &Path, error: &rusqlite::Error) -> Error {
    let reason = open_reason(path, error, is_full(path));
    Error::Open {
        path: path.to_owned(),
        passes: reason == FULL || passes(error),
        reason,
    }
}

/// Whether the file system of a database has no space left. False where it cannot be queried.
fn is_full(path: &Path) -> bool {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let found = rustix::fs::statvfs(folder.unwrap_or(Path::new(".")));
    found.is_ok_and(|found| found.f_bavail == 0 || (found.f_files > 0 && found.f_favail == 0))
}

/// Bytes of a database's path as SQLite uses it: absolute, with links followed.
fn path_size(path: &Path) -> usize {
    let real = std::fs::canonicalize(path).or_else(|_| std::path::absolute(path));
    real.map_or(0, |real| real.as_os_str().len())
}

/// The reason why a database cannot be opened. `is_full`: for some writes that fail for lack of space
/// SQLite reports `disk I/O error`.
fn open_reason(path: &Path, error: &rusqlite::Error, is_full: bool) -> String {
    use rusqlite::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => FULL.to_owned(),
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) if is_full => FULL.to_owned(),
        Some(ErrorCode::NotADatabase) => "it is no SQLite database".to_owned(),
        Some(ErrorCode::CannotOpen) if path_size(path) > limits::SQLITE_PATH_SIZE_MAX => format!(
            "its absolute path is too long: {} bytes, and SQLite takes {} at most; use a shorter one",
            path_size(path),
            limits::SQLITE_PATH_SIZE_MAX
        ),
        Some(ErrorCode::CannotOpen) => match std::fs::File::open(path) {
            Err(io) if io.kind() != std::io::ErrorKind::NotFound => format!("cannot open it: {io}"),
            _ => {
                "cannot open or make it; does its folder exist, and may you write there?".to_owned()
            }
        },
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            "it cannot be written to; check its permissions".to_owned()
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => LOCKED.to_owned(),
        Some(ErrorCode::DatabaseCorrupt) => "it is damaged".to_owned(),
        _ => without_statement(error),
    }
}

/// SQLite's reason, without the text of the statement, which may be long.
fn without_statement(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
