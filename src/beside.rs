//! The files that SQLite keeps beside a database (`-journal`, `-wal`, `-shm`). SQLite uses any files with
//! these names as its own. So another user who puts such a file there can change the database.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

#[cfg(feature = "sentinel")]
pub(crate) use keep::keep;

#[cfg(feature = "sentinel")]
mod keep;

const SUFFIXES: [&str; 3] = ["-journal", "-wal", "-shm"];
/// Write permission of the group and of others.
const SHARED: u32 = 0o022;

/// The path of the file with a suffix. Symbolic links to the database are followed, as SQLite does.
pub(crate) fn path(database: &Path, suffix: &str) -> PathBuf {
    let database = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    let mut name = database.into_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

/// A file beside a database because of which the database must not be opened, and why. None when all of these
/// files are regular files with one hard link and a trusted owner: this user, root, the owner of the
/// database, or the owner of its folder. Where group or others may write to the database, every owner is
/// trusted.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    pub(super) fn folder(mode: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        dir
    }

    pub(super) fn database(dir: &Path, mode: u32) -> PathBuf {
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
                // User 1000 may change the database anyway: by its mode, then as its owner.
                let shared = fs::Permissions::from_mode(0o660);
                fs::set_permissions(&path, shared).unwrap();
                assert_eq!(refusal(&path), None);
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
                assert_eq!(refusal(&path), None);
            }
        }
    }
}
