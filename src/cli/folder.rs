//! Reads a plugin that is a folder: which files belong to it, which one is its entry, and its source text.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fmt::Display;
use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use globset::GlobMatcher;

use super::clean::path_text;
use super::entry;
use super::input::{fixed_part, glob};
use super::plugin_file::{NOT_UTF_8, PluginFile, read_text};
use super::summary::{Item, Outcome};
use super::table::one_line;
use crate::input_file;
use crate::job::text;
use crate::limits;
use crate::plugin::folder::{self, Folder};
use crate::plugin::metadata;
use crate::plugin::project::{self, Project};

/// How often a folder is read if its files change in the meantime.
const TRIES_MAX: u32 = 3;
/// Number of the largest files that an error names.
const LARGEST_SHOWN: usize = 5;
const LEAVE_OUT: &str = "leave files out by `exclude = [\"NAME\", …]` in [tool.casparian] of the folder's \
     pyproject.toml, or move them into a package that the plugin depends on";

/// Paths that a command line names besides the plugin. They do not belong to the plugin.
#[derive(Default)]
pub(super) struct Others {
    paths: HashSet<PathBuf>,
    globs: Vec<Named>,
}

/// A glob, its fixed folder as it is named, and that folder with links followed.
struct Named {
    matcher: GlobMatcher,
    base: PathBuf,
    real: PathBuf,
}

impl Others {
    /// Paths and globs of files and folders.
    pub(super) fn new<'a>(named: impl IntoIterator<Item = &'a OsStr>) -> Self {
        let mut others = Others::default();
        for name in named {
            if let Ok(path) = fs::canonicalize(name) {
                others.paths.insert(path);
            } else if let Some(text) = name.to_str()
                && let Ok(matcher) = glob(text)
            {
                let base = fixed_part(text);
                let real = fs::canonicalize(&base);
                let named = real.map(|real| Named {
                    matcher,
                    base,
                    real,
                });
                others.globs.extend(named);
            }
        }
        others
    }

    /// Adds a database and the files that SQLite keeps beside it.
    pub(super) fn add_database(&mut self, path: &Path) {
        if let Ok(path) = fs::canonicalize(path) {
            for end in ["", "-wal", "-shm", "-journal"] {
                let mut name = path.as_os_str().to_owned();
                name.push(end);
                self.paths.insert(name.into());
            }
        }
    }

    /// True if the command line names the path. Links in it must have been followed.
    fn has(&self, path: &Path) -> bool {
        let is_match = |named: &Named| {
            let below = path
                .strip_prefix(&named.real)
                .map(|below| named.base.join(below));
            below.is_ok_and(|path| {
                named
                    .matcher
                    .is_match(path.strip_prefix(".").unwrap_or(&path))
            })
        };
        self.paths.contains(path) || self.globs.iter().any(is_match)
    }
}

/// State of a file when it was listed.
#[derive(Clone, PartialEq, Eq)]
struct Seen {
    size: u64,
    mtime: (i64, i64),
    inode: u64,
    mode: u32,
}

impl Seen {
    fn of(found: &Metadata) -> Self {
        Seen {
            size: found.size(),
            mtime: (found.mtime(), found.mtime_nsec()),
            inode: found.ino(),
            mode: found.mode(),
        }
    }
}

/// Why a folder is refused, in one line.
struct Refused(String);

fn refused(path: &Path, reason: impl Display) -> Refused {
    Refused(format!("{}: {reason}", one_line(&path_text(path))))
}

/// Reads a folder as a plugin. Without the run's output, inputs and database the result is the same before
/// and after a run.
pub(super) fn read(path: &Path, others: &Others) -> Result<PluginFile, String> {
    let root = fs::canonicalize(path).map_err(|error| error.to_string())?;
    let name = root.file_name().and_then(|name| name.to_str());
    let name = name
        .filter(|name| name.len() <= 100 && !name.contains(char::is_control))
        .ok_or_else(|| "the folder's name is not usable".to_owned())?;
    for _ in 0..TRIES_MAX {
        let read = read_once(&root, name, others).map_err(|Refused(reason)| reason)?;
        if let Some(plugin) = read {
            return Ok(plugin);
        }
    }
    Err("its files change while they are read; try again when nothing writes into it".to_owned())
}

/// Reads the folder once. None if a file has changed in the meantime.
fn read_once(root: &Path, name: &str, others: &Others) -> Result<Option<PluginFile>, Refused> {
    let project = read_project(root)?;
    let rules = Rules::new(&project, others)?;
    let files = list(root, &rules)?;
    check_size(&files)?;
    let mut contents = BTreeMap::new();
    for (path, seen) in &files {
        match read_file(&root.join(path), seen)? {
            Some(content) => drop(contents.insert(path.clone(), content)),
            None => return Ok(None),
        }
    }
    if list(root, &rules)? != files {
        return Ok(None);
    }
    let chosen = entry::choose(name, project.entry.as_deref(), &contents).map_err(Refused)?;
    let module = |path: &String| entry::top_module(path).to_owned();
    let own: HashSet<String> = match contents.contains_key("__init__.py") {
        true => HashSet::from([name.to_owned()]),
        false => contents.keys().map(module).collect(),
    };
    let source = contents.remove(&chosen).unwrap_or_default();
    let source = String::from_utf8(source).map_err(|_| refused(&root.join(&chosen), NOT_UTF_8))?;
    let file = |(path, content): (&String, &Vec<u8>)| folder::File {
        path: path.clone(),
        size: content.len(),
        executable: files.get(path).is_some_and(|seen| seen.mode & 0o100 != 0),
    };
    let folder = Folder {
        name: name.to_owned(),
        entry: chosen.clone(),
        files: contents.iter().map(file).collect(),
    };
    let all: Vec<u8> = contents.into_values().flatten().collect();
    let source = folder::pack(&folder, &source, &all);
    if let Ok(Some(script)) = metadata::of_plugin(&source)
        && let Some(preload) = script.preload.iter().find(|name| {
            let module = name.split('.').next().unwrap_or_default();
            own.contains(module)
        })
    {
        return Err(Refused(format!(
            "preload {preload:?}: it is a module of the folder; only packages of its environment can be \
             preloaded"
        )));
    }
    Ok(Some(PluginFile {
        name: name.to_owned(),
        source,
        folder: root.to_owned(),
        locks: vec![root.join(format!("{chosen}.lock")), root.join("uv.lock")],
    }))
}

fn read_project(root: &Path) -> Result<Project, Refused> {
    let path = root.join(project::FILE);
    match read_text(&path, limits::FOLDER_SIZE_MAX as u64) {
        Ok(text) => project::read(&text).map_err(|error| Refused(error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Project::default()),
        Err(error) => Err(refused(&path, error)),
    }
}

/// The content of a file. None if the file has changed since it was listed.
fn read_file(path: &Path, seen: &Seen) -> Result<Option<Vec<u8>>, Refused> {
    let fail = |error| refused(path, error);
    let file = input_file::open(path).map_err(fail)?;
    let mut content = Vec::new();
    let limit = limits::FOLDER_SIZE_MAX as u64 + 1;
    (&file)
        .take(limit)
        .read_to_end(&mut content)
        .map_err(fail)?;
    let now = Seen::of(&file.metadata().map_err(fail)?);
    let is_whole = now == *seen && content.len() as u64 == seen.size;
    Ok(is_whole.then_some(content))
}

/// Which files are left out.
struct Rules<'a> {
    exclude: Vec<GlobMatcher>,
    others: &'a Others,
}

impl<'a> Rules<'a> {
    fn new(project: &Project, others: &'a Others) -> Result<Self, Refused> {
        let matcher = |pattern: &String| {
            let pattern = pattern.strip_suffix('/').unwrap_or(pattern);
            let path = |reason| Refused(format!("pyproject.toml: exclude: {reason}"));
            glob(pattern).map_err(path)
        };
        Ok(Rules {
            exclude: project
                .exclude
                .iter()
                .map(matcher)
                .collect::<Result<_, _>>()?,
            others,
        })
    }

    /// True for a path that does not belong to the plugin. `path` is relative to `root`.
    fn leave_out(&self, root: &Path, path: &Path, name: &str, is_folder: bool) -> bool {
        let whole = root.join(path);
        let is_made = match is_folder {
            true => {
                ["__pycache__", "node_modules"].contains(&name)
                    || name.ends_with(".egg-info")
                    // Of a virtual environment, and of an output folder.
                    || whole.join("pyvenv.cfg").exists()
                    || whole.join(".casparian").exists()
            }
            false => [".pyc", ".pyo", ".lock"]
                .iter()
                .any(|end| name.ends_with(end)),
        };
        is_made
            || name.starts_with('.')
            || self.others.has(&whole)
            || self
                .exclude
                .iter()
                .any(|matcher| matcher.is_match(name) || matcher.is_match(path))
    }
}

/// The files of a folder that belong to the plugin, by their relative paths.
fn list(root: &Path, rules: &Rules<'_>) -> Result<BTreeMap<String, Seen>, Refused> {
    let mut files = BTreeMap::new();
    let mut entries = 0;
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        if folder.components().count() > limits::FOLDER_DEPTH_MAX {
            let most = limits::FOLDER_DEPTH_MAX;
            let reason = format!("it is more than {most} folders deep; {LEAVE_OUT}");
            return Err(refused(&root.join(&folder), reason));
        }
        let path = root.join(&folder);
        let listed = fs::read_dir(&path).map_err(|error| refused(&path, error))?;
        for found in listed {
            let found = found.map_err(|error| refused(&path, error))?;
            entries += 1;
            if entries > limits::FOLDER_ENTRIES_MAX {
                let most = limits::FOLDER_ENTRIES_MAX;
                return Err(Refused(format!(
                    "more than {most} files and folders stand in it; {LEAVE_OUT}"
                )));
            }
            let path = found.path();
            let below = folder.join(found.file_name());
            let (Some(text), Some(name)) = (
                below.to_str(),
                found.file_name().to_str().map(str::to_owned),
            ) else {
                return Err(refused(&path, "its name is not UTF-8; rename it"));
            };
            let kind = found.metadata().map_err(|error| refused(&path, error))?;
            if rules.leave_out(root, &below, &name, kind.is_dir()) {
                continue;
            }
            if text.contains(char::is_control) {
                let reason = "its name has control characters; rename it, or leave it out";
                return Err(refused(&path, reason));
            }
            if kind.is_dir() {
                folders.push(below);
                continue;
            }
            let kind = match kind.is_symlink() {
                true => linked(root, &path)?,
                false => kind,
            };
            if !kind.is_file() {
                let reason = "it is neither a file nor a folder (a FIFO, a socket or a device); leave it out";
                return Err(refused(&path, reason));
            }
            files.insert(text.to_owned(), Seen::of(&kind));
        }
    }
    Ok(files)
}

/// Metadata of the file to which a link within the folder leads.
fn linked(root: &Path, path: &Path) -> Result<Metadata, Refused> {
    let target = fs::canonicalize(path).map_err(|error| {
        refused(
            path,
            format_args!("a symbolic link that cannot be followed ({error})"),
        )
    })?;
    if !target.starts_with(root) {
        let target = path_text(&target);
        let reason = format!(
            "a symbolic link that leads out of the folder, to {target}; replace it with a copy, or remove it"
        );
        return Err(refused(path, reason));
    }
    let kind = fs::metadata(&target).map_err(|error| refused(path, error))?;
    match kind.is_dir() {
        true => Err(refused(path, "a symbolic link to a folder; leave it out")),
        false => Ok(kind),
    }
}

fn check_size(files: &BTreeMap<String, Seen>) -> Result<(), Refused> {
    let (count, most) = (files.len(), limits::FOLDER_FILES_MAX);
    if count > most {
        let mut folders: BTreeMap<&str, usize> = BTreeMap::new();
        for path in files.keys() {
            let top = path.split_once('/').map_or(".", |(top, _)| top);
            *folders.entry(top).or_default() += 1;
        }
        let largest = folders.into_iter().max_by_key(|(_, count)| *count);
        let (folder, in_it) = largest.unwrap_or_default();
        return Err(Refused(format!(
            "it has {count} files, at most {most}; {in_it} of them are in {folder}; {LEAVE_OUT}"
        )));
    }
    let paths: usize = files.keys().map(String::len).sum();
    if paths > limits::FOLDER_PATHS_SIZE_MAX {
        let most = limits::FOLDER_PATHS_SIZE_MAX;
        return Err(Refused(format!(
            "the paths of its files have {paths} bytes, at most {most}; {LEAVE_OUT}"
        )));
    }
    let size: u64 = files.values().map(|seen| seen.size).sum();
    if size <= limits::FOLDER_SIZE_MAX as u64 {
        return Ok(());
    }
    let mut sizes: Vec<(u64, &String)> =
        files.iter().map(|(path, seen)| (seen.size, path)).collect();
    sizes.sort_by(|one, other| other.cmp(one));
    let shown = sizes.iter().take(LARGEST_SHOWN);
    let shown: Vec<String> = shown
        .map(|(size, path)| format!("{path} ({size})"))
        .collect();
    Err(Refused(format!(
        "its files have {size} bytes, at most {}; the largest are {}; {LEAVE_OUT}",
        limits::FOLDER_SIZE_MAX,
        shown.join(", ")
    )))
}

/// Adds advice to the reason of a failed file, if there is any.
pub(super) fn add_hint(plugin: &Path, item: &mut Item) {
    if let Outcome::Failed { reason, .. } = &mut item.outcome
        && let Some(hint) = hint(plugin, reason)
    {
        *reason = text::with_first_line(reason, &hint);
    }
}

/// Advice if a plugin's module is not found although it is beside the plugin.
fn hint(plugin: &Path, reason: &str) -> Option<String> {
    let first = reason.lines().next()?;
    if first.contains("attempted relative import with no known parent package") {
        return Some(match plugin.is_file() {
            true => {
                "a plugin that is one file has no package: give its folder as the plugin, with a \
                     file __init__.py in it"
                    .to_owned()
            }
            false => format!(
                "{} is no package: add a file __init__.py to it, or import its modules without the dot",
                path_text(plugin)
            ),
        });
    }
    let (_, rest) = first.split_once("ModuleNotFoundError: No module named '")?;
    let module = rest.split(['\'', '.']).next()?;
    let is_file = plugin.is_file();
    let folder = match is_file {
        true => plugin.parent()?,
        false => plugin,
    };
    let file = folder.join(format!("{module}.py"));
    let found = [file, folder.join(module)]
        .into_iter()
        .find(|path| path.exists())?;
    let name = path_text(Path::new(found.file_name()?));
    if is_file {
        let folder = match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        };
        let folder = path_text(folder);
        return Some(format!(
            "{name} lies beside the plugin and is no part of it: give the folder {folder} as the plugin"
        ));
    }
    folder.join("__init__.py").exists().then(|| {
        format!("{name} is a module of the plugin's package: import it by `from . import {module}`")
    })
}
