//! Opens a target database and commits its transaction. Other programs may move the database meanwhile.
//!
//! SQLite writes to the file that it has opened, not to the path. So rows could be committed into a file
//! with another path than the receipt names. To detect this, device and inode at the path are compared
//! with those of the opened file: when the transaction begins, before each try to commit, and after the
//! commit. An inode number is not used again while the file is open. No descriptor besides SQLite's is
//! opened: closing one would release the locks that this process has on the file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::wait::{self, Patience};
use super::{clear_exact_in, clear_where, is_by, target_failure as failure};
use crate::sink::Error;
use crate::sink::folder::Name;

/// Device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn at(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(FileId {
            device: found.dev(),
            inode: found.ino(),
        })
    }

    /// The present path of a file that this process has open. `None` when the file was removed.
    fn path(self) -> Option<PathBuf> {
        let descriptors = fs::read_dir("/proc/self/fd").ok()?;
        let mut paths = descriptors.filter_map(|descriptor| {
            let descriptor = descriptor.ok()?.path();
            let is_it = FileId::at(&descriptor) == Some(self);
            is_it.then(|| fs::read_link(descriptor).ok())?
        });
        paths.find(|path| FileId::at(path) == Some(self))
    }
}

/// Opens the database at a path, and returns the file's identity.
pub(super) fn open(path: &Path) -> Result<(Connection, FileId), Error> {
    let open = || Connection::open(path).map_err(|error| failure(path, &error));
    if !path.exists() {
        // Creates the file, so that its inode is known before it is opened again below.
        open()?;
    }
    let before = FileId::at(path);
    let connection = open()?;
    match FileId::at(path) {
        Some(file) if before == Some(file) => Ok((connection, file)),
        _ => Err(moved(path)),
    }
}

fn moved(path: &Path) -> Error {
    Error::Moved {
        path: path.to_owned(),
    }
}

/// An open transaction with all rows inserted. Dropping it rolls it back.
pub(in crate::sink) struct Prepared {
    pub(super) path: PathBuf,
    pub(super) connection: Connection,
    pub(super) file: FileId,
    pub(super) tables: Vec<String>,
    pub(super) run: Name,
    pub(super) key: i64,
}

impl Prepared {
    pub(in crate::sink) fn database(&self) -> &Path {
        &self.path
    }

    fn is_moved(&self) -> bool {
        FileId::at(&self.path) != Some(self.file)
    }

    /// Commits when no reader has the database locked. False when the lease ended before that. If the
    /// file was moved from its path, the rows are deleted from it again, and the error is
    /// [`Error::Moved`].
    pub(in crate::sink) fn commit(self, patience: &Patience<'_>) -> Result<bool, Error> {
        let commit = || match self.is_moved() {
            true => Ok(false),
            false => self.connection.execute_batch("COMMIT").map(|()| true),
        };
        let committed = patience.run(commit);
        match committed.map_err(|error| failure(&self.path, &error))? {
            Some(true) => self.check_committed().map(|()| true),
            Some(false) => Err(moved(&self.path)),
            None => Ok(false),
        }
    }

    fn check_committed(self) -> Result<(), Error> {
        if !self.is_moved() {
            return Ok(());
        }
        let path = self.path.clone();
        self.delete_committed_rows();
        Err(moved(&path))
    }

    /// Deletes rows that were committed into a file that was moved from its path.
    fn delete_committed_rows(mut self) {
        for table in &self.tables {
            let path = &self.path;
            // In WAL mode the open connection can do this. With a rollback journal SQLite refuses,
            // because the journal would have the old name. Then the file is opened by its new path.
            let goes = |connection: &Connection| is_by(connection, table, &self.run, self.key);
            let connection = &mut self.connection;
            let until = wait::end();
            let cleared = clear_where(path, connection, table, &self.run, until, goes);
            let cleared = cleared.or_else(|error| match self.file.path() {
                Some(path) => clear_exact_in(&path, table, &self.run, self.key),
                // The file was removed, and the rows with it.
                None if !matches!(error, Error::Moved { .. }) => Err(error),
                None => Ok(false),
            });
            if let Err(error) = cleared {
                let path = path.display();
                log::error!(
                    "the file that was {path} keeps rows of {}: {error}",
                    self.run.run()
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Attempt;

    /// A database in a folder, after the commit of a transaction with rows of attempt 1 of job 7.
    fn committed(folder: &Path, journal: &str) -> Prepared {
        let path = folder.join("x.db");
        let (connection, file) = open(&path).unwrap();
        connection
            .pragma_update(None, "journal_mode", journal)
            .unwrap();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        connection.execute_batch(super::super::SIDE_TABLES).unwrap();
        let rows = "CREATE TABLE rows (x, _job_id); INSERT INTO rows VALUES (1, 7), (2, 7), (3, 8);
             INSERT INTO _casparian_table VALUES ('rows', 'a');
             INSERT INTO _casparian_output VALUES ('rows', 'a', 7, 0, 't', 1, 2, 1);
             INSERT INTO _casparian_key VALUES ('rows', 'a', 7, 0, 1, 5); COMMIT";
        connection.execute_batch(rows).unwrap();
        Prepared {
            path,
            connection,
            file,
            tables: vec!["rows".to_owned()],
            run: Name::numbered("a", Attempt::new(7, 1)).unwrap(),
            key: 5,
        }
    }

    fn values(path: &Path) -> Vec<i64> {
        let connection = Connection::open(path).unwrap();
        let mut statement = connection.prepare("SELECT x FROM rows").unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn rows_do_not_stay_in_a_file_that_has_left_its_path() {
        for journal in ["delete", "wal"] {
            for how in ["stays", "moved", "replaced", "removed"] {
                let case = format!("{journal} {how}");
                let dir = tempfile::tempdir().unwrap();
                let prepared = committed(dir.path(), journal);
                let (path, moved) = (prepared.path.clone(), dir.path().join("moved.db"));
                let beside = |path: &Path| path.with_extension("db-wal");
                if how != "stays" {
                    fs::rename(&path, &moved).unwrap();
                    if journal == "wal" {
                        fs::rename(beside(&path), beside(&moved)).unwrap();
                    }
                }
                match how {
                    "replaced" => fs::write(&path, "other").unwrap(),
                    "removed" => fs::remove_file(&moved).unwrap(),
                    _ => {}
                }
                let checked = prepared.check_committed();
                assert_eq!(checked.is_ok(), how == "stays", "{case}: {checked:?}");
                match how {
                    "stays" => assert_eq!(values(&path), [1, 2, 3], "{case}"),
                    "removed" => assert!(!path.exists() && !moved.exists(), "{case}"),
                    _ => assert_eq!(values(&moved), [3], "{case}"),
                }
                if how == "replaced" {
                    assert_eq!(fs::read(&path).unwrap(), b"other", "{case}");
                }
            }
        }
    }

    /// Rows in a WAL at the old path would become part of a copy of the database there.
    #[test]
    fn rows_do_not_stay_in_a_wal_that_was_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let prepared = committed(dir.path(), "wal");
        let (path, moved) = (prepared.path.clone(), dir.path().join("moved.db"));
        fs::rename(&path, &moved).unwrap();
        fs::copy(&moved, &path).unwrap();
        prepared.check_committed().unwrap_err();
        assert_eq!(values(&path), [3]);
    }

    #[test]
    fn a_database_that_is_missing_is_created_and_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let (_connection, file) = open(&path).unwrap();
        assert_eq!(FileId::at(&path), Some(file));
        assert_eq!(file.path(), Some(path.canonicalize().unwrap()));
        assert!(open(&dir.path().join("none/x.db")).is_err());
    }
}
