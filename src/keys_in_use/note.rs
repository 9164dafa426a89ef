//! Writes the list of the key files that this program uses.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rustix::fs::{FlockOperation, flock};

use super::{KeysInUse, folder, prepare};

/// A program's locked list. It is removed when the value is dropped.
pub(crate) struct Noted {
    _locked: File,
    path: PathBuf,
}

impl Drop for Noted {
    fn drop(&mut self) {
        // If this fails, the next worker removes it.
        let _ = fs::remove_file(&self.path);
    }
}

impl KeysInUse {
    /// Lists these files until the returned value is dropped. `home` = the folder of environments.
    pub(crate) fn note(&self, home: &Path) -> io::Result<Noted> {
        prepare(home)?;
        let folder = folder(home);
        let named = unique_name();
        let (new, path) = (folder.join(format!("{named}~")), folder.join(named));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&new)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let mut bytes = Vec::new();
        for (mark, paths) in [(b'S', &self.secret), (b'L', &self.lists)] {
            for path in paths {
                bytes.push(mark);
                bytes.extend(path.as_os_str().as_bytes());
                bytes.push(0);
            }
        }
        file.write_all(&bytes)?;
        fs::rename(&new, &path)?;
        Ok(Noted {
            _locked: file,
            path,
        })
    }
}

/// A name that no other process of this host has.
fn unique_name() -> String {
    let now = UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}
