//! Creates the files that SQLite keeps beside a database, before another user creates them.

use std::fs::{self, File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::{SHARED, SUFFIXES, folder_of, path};

/// An empty journal that reserves its name while a database is opened. It is removed when the value is
/// dropped.
#[derive(Default)]
pub(crate) struct Kept(Option<(File, PathBuf)>);

/// Creates empty files with these names beside this user's own database, so that no other user can create
/// them before the database is opened. SQLite treats empty files as missing. Does nothing in a folder where
/// only its owner may create files, or for a database that other users may change.
pub(crate) fn keep(database: &Path) -> Kept {
    let user = geteuid().as_raw();
    let own = fs::metadata(database);
    let is_own = own.is_ok_and(|own| own.uid() == user && own.mode() & SHARED == 0);
    let is_open = |folder: Metadata| folder.mode() & SHARED != 0;
    if !is_own || !folder_of(database).is_some_and(is_open) {
        return Kept::default();
    }
    let mut kept = Kept::default();
    for suffix in SUFFIXES {
        let beside = path(database, suffix);
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        if let Ok(file) = options.open(&beside)
            && suffix == "-journal"
        {
            kept.0 = Some((file, beside));
        }
    }
    kept
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some((file, path)) = self.0.take() else {
            return;
        };
        // SQLite may use the journal by now, or have removed it.
        let same = |own: Metadata| {
            let found = fs::symlink_metadata(&path).ok()?;
            (found.ino() == own.ino() && own.len() == 0).then_some(())
        };
        if file.metadata().ok().and_then(same).is_some() {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{database, folder};
    use super::*;

    #[test]
    fn names_are_kept_where_others_may_create_files() {
        for (folder_mode, mode, is_kept) in [
            (0o700, 0o600, false),
            (0o1777, 0o660, false),
            (0o1777, 0o600, true),
        ] {
            let dir = folder(folder_mode);
            let path = database(dir.path(), mode);
            let exists = |suffix| super::path(&path, suffix).exists();
            let kept = keep(&path);
            assert_eq!(SUFFIXES.map(exists), [is_kept; 3]);
            drop(kept);
            assert_eq!(SUFFIXES.map(exists), [false, is_kept, is_kept]);
            let connection = rusqlite::Connection::open(&path).unwrap();
            for mode in ["WAL", "DELETE"] {
                let kept = keep(&path);
                let change = format!("PRAGMA journal_mode = {mode}; CREATE TABLE t{mode} (x);");
                connection.execute_batch(&change).unwrap();
                drop(kept);
            }
        }
    }
}
