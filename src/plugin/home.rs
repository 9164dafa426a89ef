//! The folder of environments, `~/.casparian_flow`: its path, and whether another user could have put
//! programs there.

use std::env;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::Error;

/// `$HOME/.casparian_flow`. HOME must be absolute: any user's files may be below the working directory.
pub fn home() -> Result<PathBuf, Error> {
    let refused = |reason: &str| {
        Error::Tool(format!(
            "HOME {reason}: set it to an absolute path, the folder that .casparian_flow is in"
        ))
    };
    let home = env::var_os("HOME").filter(|home| !home.is_empty());
    let home = PathBuf::from(home.ok_or_else(|| refused("is not set"))?);
    match home.is_absolute() {
        true => Ok(home.join(".casparian_flow")),
        false => Err(refused(&format!("is {home:?}, a relative path"))),
    }
}

/// Creates a folder below the home, and the folders above it, with mode 0700.
pub(super) fn create(folder: &Path) -> Result<(), Error> {
    let mut builder = DirBuilder::new();
    let created = builder.recursive(true).mode(0o700).create(folder);
    created.map_err(|error| Error::io(folder, error))
}

/// Checks a folder in the home and the folders above it, up to the one that contains the home. Refuses one
/// that a user other than this one and root owns or can change. Missing folders are skipped.
pub(super) fn check(home: &Path, folder: &Path) -> Result<(), Error> {
    let top = home.parent().unwrap_or(home);
    let mut at = Some(folder);
    while let Some(folder) = at.filter(|folder| folder.starts_with(top)) {
        check_folder(folder)?;
        if fs::symlink_metadata(folder).is_ok_and(|found| found.is_symlink())
            && let Ok(real) = fs::canonicalize(folder)
        {
            check_folder(real.parent().unwrap_or(&real))?;
        }
        at = folder.parent();
    }
    Ok(())
}

fn check_folder(folder: &Path) -> Result<(), Error> {
    let Ok(found) = fs::metadata(folder) else {
        return Ok(());
    };
    let refused = |reason: String| {
        let folder = folder.display();
        Err(Error::Tool(format!(
            "{folder}: {reason}, who could put programs there"
        )))
    };
    let us = rustix::process::geteuid().as_raw();
    if !found.is_dir() {
        return Ok(());
    }
    if ![us, 0].contains(&found.uid()) {
        return refused(format!("it belongs to user {}", found.uid()));
    }
    let is_set = |bits| found.mode() & bits != 0;
    // In a sticky folder no user can replace entries of other users, and the entries are checked as well. A
    // group whose ID equals the user's ID is taken for the user's private group.
    let is_shared = is_set(0o002) || is_set(0o020) && found.gid() != found.uid();
    match is_shared && !is_set(0o1000) {
        true => refused("other users can change it (chmod go-w)".to_owned()),
        false => Ok(()),
    }
}
