//! The commands `sentinel` and `worker`, and what both have.

#[cfg(feature = "worker")]
pub(super) mod job_flags;
#[cfg(feature = "sentinel")]
pub(super) mod sentinel;
#[cfg(feature = "worker")]
pub(super) mod worker;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::keys_in_use::{KeysInUse, Noted};
use crate::limits;
use crate::reactor::Endpoint;

/// The endpoint of a sentinel without `--bind`.
fn default_endpoint() -> Endpoint {
    Endpoint::Tcp {
        host: "127.0.0.1".to_owned(),
        port: limits::PORT_DEFAULT,
        source: None,
    }
}

/// The paths by which other processes can open these files: the file's real path and that of a link to it. A
/// process's paths of its own descriptors (`/dev/stdin`) are left out, because they name another file in each
/// process.
fn names_of(paths: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut names = Vec::new();
    for path in absolute(paths) {
        match std::fs::canonicalize(&path) {
            Ok(own) if own.is_file() => {
                let found = std::fs::metadata(&own);
                if found.is_ok_and(|found| found.nlink() > 1) {
                    log::warn!(
                        "{}: the file has other names, too (hard links), which plugins are not kept from",
                        own.display()
                    );
                }
                names.push(own);
            }
            Ok(_) | Err(_) => log::warn!(
                "{}: it is no file with a name, which plugins of this user's workers could be kept from",
                path.display()
            ),
        }
        let is_of_process = ["/proc", "/dev"]
            .iter()
            .any(|folder| path.starts_with(folder));
        if !is_of_process && !names.contains(&path) {
            names.push(path);
        }
    }
    names
}

/// Lists the key files for the workers of this user, which hide them from plugins.
fn note_keys(secret: Option<PathBuf>, lists: impl IntoIterator<Item = PathBuf>) -> Option<Noted> {
    let keys = KeysInUse {
        secret: names_of(secret),
        lists: names_of(lists),
    };
    if keys == KeysInUse::default() {
        return None;
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let noted = match home.filter(|home| home.is_absolute()) {
        Some(home) => keys.note(&home.join(".casparian_flow")),
        None => Err(std::io::Error::other("HOME is no absolute path")),
    };
    let warned = noted.inspect_err(|error| {
        log::warn!(
            "cannot list the key files for workers of this user ({error}): name them by --protect there"
        );
    });
    warned.ok()
}

/// The absolute paths of what a command line names.
pub(super) fn absolute(paths: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let whole = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    paths.into_iter().map(whole).collect()
}
