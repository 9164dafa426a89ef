//! The programs that run with more rights than plugin processes, and what selects them. Neither plugins nor
//! build code may change either of them. So all are determined once, by [`resolve`], before the first plugin
//! or build runs.
//!
//!  program | runs with the rights of | selected by |
//! ---|---|---|
//!  the launcher | this process | `/proc/self/exe` |
//!  the fork server of mode `strict` | this process | the link of its environment |
//!  a fork server of mode `on` | a plugin | its environment |
//!  the shell of a tool, uv, the Python that installs uv | build code | PATH |
//!  a Python that compiles a plugin | build code | the link of its environment |
//!
//! How each is protected from plugins and build code:
//!
//! - The launcher is the program that runs.
//! - The Python of the fork server of mode `strict` is one that neither plugins nor build code can have
//!   changed.
//! - The Python of a fork server of mode `on` is in its environment, which is read-only for plugins.
//! - Programs that PATH selects are in folders of PATH that are used for programs only. These are protected
//!   ([`kept`]).
//! - A Python that compiles a plugin needs no protection.
//!
//! Folders of PATH that do not exist at the start are never searched, because they may be created later. What
//! these programs load from the system (the linker, its libraries) is not protected here: see
//! docs/security.md, "What remains".

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::Access;

use super::error::Error;
use super::uses::{self, has_too_many_folders, homes, inputs, is_temporary};
use super::{installation, operator, uv_folders};

pub use super::installation::Kept;

/// Determines all of it. Later calls change nothing. `inputs` are the inputs that are known at the start.
pub fn resolve(inputs: &[PathBuf]) {
    uses::set_inputs(inputs);
    for (folder, reason) in &folders().left {
        let folder = folder.display();
        log::warn!(
            "{folder} in PATH is not searched for programs that build environments, and plugins may change it: {reason}"
        );
    }
    log::debug!("programs: {:?} {:?}", folders(), kept());
    operator::resolve();
    uv_folders::resolve();
}

/// The inputs in protected folders, each with its folder. Plugins cannot write beside these inputs.
pub fn inputs_in_kept() -> impl Iterator<Item = (&'static Path, &'static Path)> {
    inputs().iter().filter_map(|input| {
        let is_beside =
            |folder: &&PathBuf| folder.as_path() == input || input.parent() == Some(folder);
        let whole = kept().whole.iter().find(|folder| input.starts_with(folder));
        let kept = whole.or_else(|| kept().entries.iter().find(is_beside))?;
        Some((input.as_path(), kept.as_path()))
    })
}

/// The folders of PATH that exist at the start, without relative ones. An empty entry of PATH is the working
/// directory.
#[derive(Debug)]
struct Folders {
    all: Vec<PathBuf>,
    searched: Vec<PathBuf>,
    /// Folders that are not only for programs, and why. They are not searched.
    left: Vec<(PathBuf, String)>,
}

fn folders() -> &'static Folders {
    static FOLDERS: OnceLock<Folders> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&path);
        let all: Vec<PathBuf> = folders
            .filter(|folder| folder.is_absolute() && folder.is_dir())
            .collect();
        let mut found = Folders {
            all: all.clone(),
            searched: Vec::new(),
            left: Vec::new(),
        };
        for folder in all {
            match other_use(&folder) {
                Some(reason) => found.left.push((folder, reason)),
                None => found.searched.push(folder),
            }
        }
        found
    })
}

/// Folders that count as folders of programs, whatever else is in them.
const SYSTEM: [&str; 6] = [
    "/bin",
    "/sbin",
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
];

/// Why a folder of PATH stays changeable for plugins; none if it is protected or this user cannot change it.
fn other_use(folder: &Path) -> Option<String> {
    let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    if !may_change(&folder) || SYSTEM.iter().any(|system| folder == Path::new(system)) {
        return None;
    }
    let has = |path: &&PathBuf| path.starts_with(&folder);
    if let Some(home) = homes().iter().find(has) {
        return Some(format!("HOME {} is in it", home.display()));
    }
    if is_temporary(&folder) {
        return Some("temporary files are in it".to_owned());
    }
    if let Some(input) = inputs().iter().find(has) {
        return Some(format!("the input {} is in it", input.display()));
    }
    let root = folder == Path::new("/");
    (root || has_too_many_folders(&folder)).then(|| "it has other folders".to_owned())
}

/// PATH for tools, or none if no folder is searched.
pub(super) fn path() -> Option<OsString> {
    joined(&folders().searched)
}

/// PATH for plugins. It includes the folders that plugins may change.
pub(super) fn path_of_plugins() -> Option<OsString> {
    joined(&folders().all)
}

fn joined(folders: &[PathBuf]) -> Option<OsString> {
    env::join_paths(folders)
        .ok()
        .filter(|_| !folders.is_empty())
}

/// The first program with that name in the searched folders of PATH.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    let searched = folders().searched.iter();
    let programs = searched.map(|folder| folder.join(name));
    let is_program = |program: &PathBuf| {
        let found = program.metadata();
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    programs.into_iter().find(is_program)
}

/// The system's `python3`.
pub fn python() -> Result<PathBuf, Error> {
    check_path()?;
    program("python3").ok_or_else(|| {
        Error::Tool("python3 is not on PATH; install Python 3 with its venv module".to_owned())
    })
}

/// Fails if PATH has no folder to search, because tools search for programs themselves.
pub(super) fn check_path() -> Result<(), Error> {
    match path() {
        Some(_) => Ok(()),
        None => Err(Error::Tool(
            "PATH is not set or has no absolute folder that is there and for programs alone: set it, such as \
             PATH=/usr/bin:/bin"
                .to_owned(),
        )),
    }
}

/// The paths that this user could change and that are protected: this program, the folders of PATH, the uv in
/// them, the installations of the Pythons in them, and the settings of uv and pip.
pub fn kept() -> &'static Kept {
    static KEPT: OnceLock<Kept> = OnceLock::new();
    KEPT.get_or_init(|| {
        let mut found = Kept::default();
        found.whole.extend(env::current_exe());
        for folder in &folders().searched {
            found.entries.push(folder.clone());
            found.entries.extend(fs::canonicalize(folder));
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            for program in entries.map(|entry| entry.path()) {
                found.extend(means(&program));
            }
        }
        found.whole.extend(operator::files());
        found.changeable()
    })
}

impl Kept {
    fn extend(&mut self, other: Kept) {
        self.whole.extend(other.whole);
        self.entries.extend(other.entries);
    }

    /// Removes paths that this user cannot change, and paths inside a folder of `whole`.
    fn changeable(self) -> Kept {
        let sorted = |paths: Vec<PathBuf>| BTreeSet::from_iter(paths).into_iter();
        let whole = outermost(sorted(self.whole).filter(|path| may_change(path)));
        let entries = sorted(self.entries).filter(|path| may_change(path));
        let is_in = |path: &PathBuf| whole.iter().any(|folder| path.starts_with(folder));
        let entries = entries.filter(|path| !is_in(path)).collect();
        Kept { whole, entries }
    }
}

/// The installation that an environment was created from.
pub fn of_base(python: &Path) -> Kept {
    installation::of(python).changeable()
}

/// The paths that a program of PATH uses: the file of uv, the installation of a Python.
fn means(program: &Path) -> Kept {
    let mut found = Kept::default();
    let name = program.file_name().and_then(|name| name.to_str());
    let is_python = name.is_some_and(installation::is_python);
    let Some(real) = fs::canonicalize(program)
        .ok()
        .filter(|_| is_python || name == Some("uv"))
    else {
        return found;
    };
    found.whole.push(real.clone());
    if !is_python {
        return found;
    }
    // A virtual environment names another installation in its `pyvenv.cfg`. What version managers link is a
    // script of theirs.
    let parent = program.parent();
    let is_shim = parent.is_some_and(|parent| parent.ends_with("shims"));
    let is_venv = parent
        .and_then(Path::parent)
        .is_some_and(|folder| folder.join("pyvenv.cfg").exists());
    if is_shim || is_venv {
        found.extend(installation::of(program));
    }
    if installation::is_binary(&real) {
        found.extend(installation::of(&real));
    }
    found
}

/// The paths that are in none of the others.
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

/// True if this process's user may change or replace an existing file or folder.
fn may_change(path: &Path) -> bool {
    let user = rustix::process::geteuid();
    let may = |folder: &Path| {
        let is_owner = fs::metadata(folder).is_ok_and(|found| found.uid() == user.as_raw());
        is_owner || rustix::fs::access(folder, Access::WRITE_OK).is_ok()
    };
    path.exists() && (user.is_root() || path.ancestors().any(may))
}

/// True for a Python (with all links followed) that neither plugins nor build code can change: one of an
/// installation in [`kept`], one of uv's, or one that this user cannot change.
pub(super) fn is_kept(python: &Path) -> bool {
    let name = python.file_name().and_then(|name| name.to_str());
    if !name.is_some_and(installation::is_python) {
        return false;
    }
    let of = installation::prefix(python).unwrap_or(python);
    let Kept { whole, entries } = kept();
    let pythons = uv_folders::pythons();
    let folders = whole.iter().chain(&pythons);
    let whole: Vec<PathBuf> = folders.flat_map(fs::canonicalize).collect();
    let is_in_whole = |path: &Path| whole.iter().any(|folder| path.starts_with(folder));
    let is_prefix = entries.iter().any(|folder| folder == of);
    is_in_whole(of) || is_prefix && is_in_whole(python) || !may_change(python)
}

#[cfg(test)]
mod tests {
    use super::*;

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
