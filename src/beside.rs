//! The files that SQLite keeps beside a database (`-journal`, `-wal`, `-shm`): it takes what it finds
//! under their names for its own, and so changes the database by them.

use std::fs::{self, File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

const SUFFIXES: [&str; 3] = ["-journal", "-wal", "-shm"];
/// Write permission of the group and of others.
const SHARED: u32 = 0o022;

/// The file of a suffix. Links to the database are followed, as SQLite does.
pub(crate) fn path(database: &Path, suffix: &str) -> PathBuf {
    let database = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    let mut name = database.into_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

/// The file beside a database that must not be opened, and why. None of what is there was put there by
/// somebody who may not change the database anyway: its owner is this user, root, or the owner of the database or
/// of its folder, unless group or others may write to the database.
pub(crate) fn refusal(database: &Path) -> Option<(PathBuf, String)> {
    let own = fs::metadata(database).ok();
    let is_shared = own.as_ref().is_some_and(|own| own.mode() & SHARED != 0);
    let folder = folder_of(database);
    let owners = [own.as_ref(), folder.as_ref()].map(|found| found.map(MetadataExt::uid));
    let is_trusted = |user: u32| {
        is_shared || user == 0 || user == geteuid().as_raw() || owners.contains(&Some(user))
    };
    SUFFIXES.into_iter().find_map(|suffix| {
        let beside = path(database, suffix);
        let found = beside.symlink_metadata().ok()?;
        let reason = if !found.is_file() {
            "it is not a regular file, and SQLite needs the name for its own; remove it".to_owned()
        } else if !is_trusted(found.uid()) {
            format!(
                "it belongs to user {}, who could change the database by it; remove it",
                found.uid()
            )
        } else if found.nlink() > 1 {
            "it has several names (hard links), so it is another file's; remove it".to_owned()
        } else {
            return None;
        };
        Some((beside, reason))
    })
}

fn folder_of(database: &Path) -> Option<Metadata> {
    let database = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    let folder = match database.parent()? {
        folder if folder.as_os_str().is_empty() => Path::new("."),
        folder => folder,
    };
    fs::metadata(folder).ok()
}

/// A journal of ours that keeps the name while a database is opened; removed when it is dropped.
#[derive(Default)]
pub(crate) struct Kept(Option<(File, PathBuf)>);

/// Takes the names beside this user's own database, so that nobody else puts a file there before it is
/// opened. SQLite takes empty files for none. Nothing is done in a folder where only this user, or root, may
/// create files, and for a database that others may change.
pub(crate) fn keep(database: &Path) -> Kept {
    let user = geteuid().as_raw();
    let own = fs::metadata(database);
    let is_own = own.is_ok_and(|own| own.uid() == user && own.mode() & SHARED == 0);
    let is_open = |folder: Metadata| folder.permissions().mode() & SHARED != 0;
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
        // SQLite may use it by now, or have removed it.
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
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder(mode: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        dir
    }

    fn database(dir: &Path, mode: u32) -> PathBuf {
        let path = dir.join("q.db");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn what_others_put_beside_a_database_is_refused() {
        let is_root = geteuid().is_root();
        for suffix in SUFFIXES {
            let dir = folder(0o1777);
            let path = database(dir.path(), 0o600);
            assert_eq!(refusal(&path), None);
            let beside = super::path(&path, suffix);
            let reason = |path: &Path| refusal(path).map(|(_, reason)| reason).unwrap_or_default();
            symlink("nowhere", &beside).unwrap();
            assert!(reason(&path).contains("regular"));
            fs::remove_file(&beside).unwrap();
            fs::write(dir.path().join("other"), "").unwrap();
            fs::hard_link(dir.path().join("other"), &beside).unwrap();
            assert!(reason(&path).contains("hard links"));
            fs::remove_file(dir.path().join("other")).unwrap();
            assert_eq!(refusal(&path), None);
            if is_root {
                std::os::unix::fs::chown(&beside, Some(1000), None).unwrap();
                assert!(reason(&path).contains("belongs to user 1000"));
                // Who may change the database anyway.
                let shared = fs::Permissions::from_mode(0o660);
                fs::set_permissions(&path, shared).unwrap();
                assert_eq!(refusal(&path), None);
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
                assert_eq!(refusal(&path), None);
            }
        }
    }

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
