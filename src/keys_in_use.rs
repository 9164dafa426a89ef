//! Lists the key files that the sentinels and workers of this user use, so that the user's workers hide or
//! protect these key files from plugins. Each sentinel and each worker has a list
//! `~/.casparian_flow/keys/<name>`, locked while it runs.
//!
//! A list has one record for each path: `S` for a secret key or `L` for a list of keys, the path's bytes, and
//! a NUL.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

#[cfg(all(any(feature = "sentinel", feature = "worker"), feature = "cli"))]
mod note;
#[cfg(feature = "worker")]
mod read;

#[cfg(all(any(feature = "sentinel", feature = "worker"), feature = "cli"))]
pub(crate) use note::Noted;
#[cfg(feature = "worker")]
pub(crate) use read::{files, is_secret, state};

/// Key files, by absolute paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeysInUse {
    /// Secret keys, which plugins may not read.
    pub(crate) secret: Vec<PathBuf>,
    /// Lists of keys that may connect or deploy, which plugins may not change.
    pub(crate) lists: Vec<PathBuf>,
}

/// The folder of these lists. `home` = the folder of environments (`~/.casparian_flow`).
pub(crate) fn folder(home: &Path) -> PathBuf {
    home.join("keys")
}

/// Creates the folder of these lists, before another program can create it. Fails when its path is not a
/// folder of this user or of root, or when others may write to it.
pub(crate) fn prepare(home: &Path) -> io::Result<()> {
    let folder = folder(home);
    let mut builder = fs::DirBuilder::new();
    let created = builder.recursive(true).mode(0o700).create(&folder);
    let found = match fs::symlink_metadata(&folder) {
        Ok(found) => found,
        Err(error) => return created.and(Err(error)),
    };
    let own = rustix::process::geteuid().as_raw();
    let reason = if !found.is_dir() {
        "it is no folder"
    } else if found.uid() != own && found.uid() != 0 && own != 0 {
        "another user owns it"
    } else if found.mode() & 0o022 != 0 {
        "others may write to it"
    } else {
        return Ok(());
    };
    let path = folder.display();
    Err(io::Error::other(format!(
        "{path}: {reason}; the keys of sentinels cannot be kept from plugins by it: remove it"
    )))
}

#[cfg(all(test, feature = "sentinel", feature = "worker", feature = "cli"))]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::read::all;
    use super::*;

    #[test]
    fn files_are_known_as_long_as_their_sentinel_runs() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(all(home.path()), KeysInUse::default());
        let odd = PathBuf::from(std::ffi::OsString::from_vec(b"/k/\xff\n".to_vec()));
        let first = KeysInUse {
            secret: vec![odd, "/k/s".into()],
            lists: vec!["/k/l".into()],
        };
        let second = KeysInUse {
            secret: vec!["/other".into()],
            lists: Vec::new(),
        };
        let noted = first.note(home.path()).unwrap();
        assert_eq!(all(home.path()), first);
        let also = second.note(home.path()).unwrap();
        assert_eq!(all(home.path()).secret.len(), 3);
        drop(noted);
        assert_eq!(all(home.path()), second);
        // As after SIGKILL: the file stays, without a lock.
        let stale = folder(home.path()).join("stale");
        fs::write(&stale, "S/gone\0").unwrap();
        fs::write(folder(home.path()).join("new~"), "").unwrap();
        assert_eq!(all(home.path()), second);
        assert!(!stale.exists());
        drop(also);
    }

    #[test]
    fn what_others_put_at_the_folders_path_is_refused_by_both_sides() {
        let home = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let folder = folder(home.path());
        let keys = KeysInUse {
            secret: vec!["/k/s".into()],
            lists: Vec::new(),
        };
        let check = |words: &str| {
            for error in [
                prepare(home.path()).unwrap_err(),
                keys.note(home.path()).map(drop).unwrap_err(),
            ] {
                let text = error.to_string();
                assert!(text.contains(words) && text.contains("/keys:"), "{text}");
            }
            assert_eq!(all(home.path()), KeysInUse::default());
        };
        symlink(elsewhere.path(), &folder).unwrap();
        check("it is no folder");
        fs::remove_file(&folder).unwrap();
        fs::write(&folder, "").unwrap();
        check("it is no folder");
        fs::remove_file(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
        check("others may write");
        fs::remove_dir(&folder).unwrap();
        prepare(home.path()).unwrap();
        let mode = fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn unfinished_files_keep_no_sentinel_from_being_known() {
        let home = tempfile::tempdir().unwrap();
        prepare(home.path()).unwrap();
        let old = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        for number in 0..2 * crate::limits::KEY_NOTES_MAX {
            let path = folder(home.path()).join(format!("{number:05}~"));
            let file = fs::File::create(path).unwrap();
            file.set_times(old).unwrap();
        }
        let keys = KeysInUse {
            secret: vec!["/k/s".into()],
            lists: Vec::new(),
        };
        let noted = keys.note(home.path()).unwrap();
        assert_eq!(all(home.path()), keys);
        assert_eq!(fs::read_dir(folder(home.path())).unwrap().count(), 1);
        drop(noted);
    }
}
