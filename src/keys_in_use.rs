//! Which key files the sentinels of this user use, so that the workers of the user keep plugins from
//! them: files `~/.casparian_flow/keys/<name>`, each locked as long as its sentinel runs.
//!
//! A file has one record for each path: `S` for a secret key, `L` for a list of keys, the path's bytes
//! and a NUL.

use std::path::{Path, PathBuf};

#[cfg(all(feature = "sentinel", feature = "cli"))]
mod note;
#[cfg(feature = "worker")]
mod read;

#[cfg(all(feature = "sentinel", feature = "cli"))]
pub(crate) use note::Noted;
#[cfg(feature = "worker")]
pub(crate) use read::{all, is_secret};

/// Key files, by absolute paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeysInUse {
    /// Secret keys, which plugins may not read.
    pub(crate) secret: Vec<PathBuf>,
    /// Lists of those who may connect or deploy, which plugins may not change.
    pub(crate) lists: Vec<PathBuf>,
}

/// The folder of these files, below that of environments.
pub(crate) fn folder(home: &Path) -> PathBuf {
    home.join("keys")
}

#[cfg(all(test, feature = "sentinel", feature = "worker", feature = "cli"))]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStringExt;

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
        // As after SIGKILL: the lock goes, the file stays.
        let stale = folder(home.path()).join("stale");
        fs::write(&stale, "S/gone\0").unwrap();
        fs::write(folder(home.path()).join("new~"), "").unwrap();
        assert_eq!(all(home.path()), second);
        assert!(!stale.exists());
        drop(also);
    }
}
