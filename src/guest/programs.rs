//! The programs that are run here with more rights than plugin processes have, and what chooses them. Neither
//! plugins nor build code may change either, so all of it is found once, by [`resolve`], before the first of them runs.
//!
//! | program | run as | chosen by | kept from plugins and build code |
//! |---|---|---|---|
//! | the launcher | unrestricted | `/proc/self/exe` | it is the program that runs |
//! | the fork server of mode `strict` | unrestricted | the link of its environment | neither plugins nor build code can have changed it |
//! | a fork server of mode `on` | as plugins are | its environment | environments are read-only for plugins |
//! | the shell of a tool, uv, the Python that installs uv | as build code is | PATH | folders of PATH: [`kept`] |
//! | a Python that compiles a plugin | as build code is | the link of its environment | nothing needed |
//!
//! Folders of PATH that are missing at the start are never searched: they may be created later. What of it root's
//! programs load of the system (the linker, its libraries) is not here: docs/security.md, "What remains".

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::Access;

use super::environment::Error;
use super::{operator, uv_folders};

/// Finds all of it; later calls change nothing.
pub fn resolve() {
    let found = [folders(), kept()];
    log::debug!("programs: {found:?}");
    operator::resolve();
    uv_folders::resolve();
}

/// The folders of PATH that are there at the start, but for relative ones: an empty entry is the working directory.
fn folders() -> &'static [PathBuf] {
    static FOLDERS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&path);
        folders
            .filter(|folder| folder.is_absolute() && folder.is_dir())
            .collect()
    })
}

/// PATH as what is run here gets it; none where it has no absolute folder.
pub(super) fn path() -> Option<OsString> {
    let folders = folders();
    env::join_paths(folders)
        .ok()
        .filter(|_| !folders.is_empty())
}

/// The first program of that name on PATH.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let programs = folders().iter().map(|folder| folder.join(name));
    let is_program = |program: &PathBuf| {
        let found = program.metadata();
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    programs.into_iter().find(is_program)
}

/// Why tools cannot be run: they search programs themselves.
pub(super) fn check_path() -> Result<(), Error> {
    match path() {
        Some(_) => Ok(()),
        None => Err(Error::Tool(
            "PATH is not set or has no absolute folder that is there: set it, such as \
             PATH=/usr/bin:/bin"
                .to_owned(),
        )),
    }
}

/// The programs' files and folders that this user could change, without those in others of them: the own program,
/// the folders of PATH, the uv there, the installations of the Pythons there, and the settings of uv and pip.
pub fn kept() -> &'static [PathBuf] {
    static KEPT: OnceLock<Vec<PathBuf>> = OnceLock::new();
    KEPT.get_or_init(|| {
        let mut found = BTreeSet::new();
        found.extend(env::current_exe());
        for folder in folders() {
            found.insert(folder.clone());
            found.extend(fs::canonicalize(folder));
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            for program in entries.map(|entry| entry.path()) {
                found.extend(means(&program));
            }
        }
        found.extend(operator::files());
        outermost(found.into_iter().filter(|path| may_change(path)))
    })
}

/// What a program of PATH leads to: the file of a uv, the installation of a Python.
fn means(program: &Path) -> Vec<PathBuf> {
    let name = program.file_name().and_then(|name| name.to_str());
    let is_python = name.is_some_and(is_python);
    let Some(real) = fs::canonicalize(program)
        .ok()
        .filter(|_| is_python || name == Some("uv"))
    else {
        return Vec::new();
    };
    // A virtual environment leads to another installation by its file, and what version managers link is a
    // script of theirs.
    let parent = program.parent();
    let is_shim = parent.is_some_and(|parent| parent.ends_with("shims"));
    let is_venv = parent
        .and_then(Path::parent)
        .is_some_and(|folder| folder.join("pyvenv.cfg").exists());
    let by_name = installation(program).filter(|_| is_shim || is_venv);
    let by_file = installation(&real).filter(|_| is_python);
    [Some(real), by_name, by_file]
        .into_iter()
        .flatten()
        .collect()
}

fn is_python(name: &str) -> bool {
    ["python", "pypy", "graalpy"]
        .iter()
        .any(|begin| name.starts_with(begin))
}

/// The folder of a program's installation; none where it is one for other things as well.
fn installation(program: &Path) -> Option<PathBuf> {
    let prefix = program.parent()?.parent()?;
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let is_shared =
        prefix == Path::new("/") || home.starts_with(prefix) || prefix == home.join(".local");
    (!is_shared).then(|| prefix.to_owned())
}

/// Those that are in none of the others.
fn outermost(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut outermost: Vec<PathBuf> = Vec::new();
    // Sorted: a folder comes before what is in it.
    for path in paths {
        if !outermost.iter().any(|folder| path.starts_with(folder)) {
            outermost.push(path);
        }
    }
    outermost
}

/// True where this process's user may change or replace a file or folder that is there.
fn may_change(path: &Path) -> bool {
    let user = rustix::process::geteuid();
    let may = |place: &Path| {
        let is_owner = fs::metadata(place).is_ok_and(|found| found.uid() == user.as_raw());
        is_owner || rustix::fs::access(place, Access::WRITE_OK).is_ok()
    };
    path.exists() && (user.is_root() || path.ancestors().any(may))
}

/// True for a Python, all links followed, that neither plugins nor build code can change: one of a place that is
/// [`kept`], of uv's Pythons, or of another user's.
pub(super) fn is_kept(python: &Path) -> bool {
    let name = python.file_name().and_then(|name| name.to_str());
    if !name.is_some_and(is_python) {
        return false;
    }
    let of = installation(python).unwrap_or_else(|| python.to_owned());
    let places = kept().iter().cloned().chain(uv_folders::pythons());
    let mut places = places.filter_map(|place| fs::canonicalize(place).ok());
    places.any(|place| of.starts_with(place)) || !may_change(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installations_are_kept_whole_unless_they_are_for_other_things_as_well() {
        let home = env::var("HOME").unwrap();
        let cases = [
            ("/opt/python/bin/python3", Some("/opt/python".to_owned())),
            ("/bin/python3", None),
            (&format!("{home}/bin/python3"), None),
            (&format!("{home}/.local/bin/python3"), None),
            (
                &format!("{home}/.pyenv/shims/python3"),
                Some(format!("{home}/.pyenv")),
            ),
        ];
        for (program, expected) in cases {
            let found = installation(Path::new(program));
            assert_eq!(found, expected.map(PathBuf::from), "{program}");
        }
    }

    #[test]
    fn a_folder_stands_for_what_is_in_it() {
        let paths = ["/a", "/a/b", "/a.b", "/c/d", "/c/d/e/f"].map(PathBuf::from);
        let found = outermost(BTreeSet::from(paths).into_iter());
        assert_eq!(found, ["/a", "/a.b", "/c/d"].map(PathBuf::from));
    }

    #[test]
    fn pythons_that_plugins_could_change_are_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for name in ["x/bin/python3.11", "x/bin/env"] {
            let program = root.join(name);
            fs::create_dir_all(program.parent().unwrap()).unwrap();
            fs::write(&program, "").unwrap();
            assert!(!is_kept(&program), "{name}");
        }
        let python = fs::canonicalize("/usr/bin/python3").unwrap();
        assert!(is_kept(&python), "{kept:?}", kept = kept());
        assert!(!is_kept(Path::new("/usr/bin/env")));
    }
}
