//! Finds the input files of a command line: files, folders and globs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use globset::{Glob, GlobMatcher};
use walkdir::WalkDir;

use super::clean::path_text;

/// An input file of a command line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Input {
    /// Its absolute path, as it was named or listed. Symbolic links in it are not followed.
    pub(crate) path: PathBuf,
    /// The folder that was given, or the folder of the file. It becomes the file's source root, unless the
    /// database already has a source root above it.
    pub(crate) root: PathBuf,
}

/// An entry of a folder that cannot be used: a symbolic link without a target or in a loop, a folder that may
/// not be read, a path that is not UTF-8 (the catalogue and DISPATCH contain paths as text).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeftOut {
    /// Its absolute path.
    pub(crate) path: PathBuf,
    /// One line with the path and the reason.
    pub(crate) reason: String,
}

/// The inputs of a command line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// The files, with absolute paths, sorted, without duplicates.
    pub(crate) files: Vec<Input>,
    /// Entries of folders that could not be used, and named files whose path is not UTF-8.
    pub(crate) left_out: Vec<LeftOut>,
    /// Lines about entries that are skipped: links to folders above them, whose files are found there, links
    /// that lead out of the folder, entries that are neither file nor folder, and the number of names that
    /// begin with a dot.
    pub(crate) warnings: Vec<String>,
    /// Names in folders that `--ignore` and the default rules have excluded, by rule.
    pub(crate) ignored: BTreeMap<String, Ignored>,
    /// Folders and globs in which no file was found.
    pub(crate) without: Vec<Without>,
    listings: Vec<Listing>,
}

/// A folder or glob of the command line in which no file was found: all of its files were removed, or the
/// name is misspelt.
#[derive(Clone, Debug)]
pub(crate) struct Without {
    /// The folder, absolute.
    base: PathBuf,
    /// One line with the name and the reason.
    pub(crate) reason: String,
}

impl Without {
    /// True if the path is below the folder.
    pub(crate) fn is_of(&self, path: &Path) -> bool {
        path.starts_with(&self.base)
    }
}

/// What one rule excluded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ignored {
    /// Number of files, and of folders with everything in them.
    pub(crate) count: u64,
    /// True for a default rule, which is not of the command line.
    pub(crate) is_default: bool,
}

/// Limit of the notes that explain why an input has no files.
const NOTES_MAX: usize = 3;

/// Names that are never data: markers and incomplete output of Hadoop and Spark.
const IGNORED: [&str; 3] = ["_SUCCESS", "_temporary", "*._COPYING_"];

/// A folder or glob that was listed completely, except for the paths in `unseen`.
#[derive(Clone, Debug)]
struct Listing {
    /// The absolute path of the folder, as it was named.
    base: PathBuf,
    /// The same path with links followed.
    real: PathBuf,
    /// The folder's path as paths below it were matched with the globs.
    written: PathBuf,
    glob: Option<GlobMatcher>,
    pattern: Option<GlobMatcher>,
    /// Paths below `base` that were ignored or could not be read.
    unseen: Vec<PathBuf>,
    /// True if the folder has no entries.
    is_empty: bool,
}

impl Listing {
    /// True if a file at this path would have been found.
    fn covers(&self, path: &Path) -> bool {
        let mut bases = [&self.base, &self.real].into_iter();
        let Some(rest) = bases.find_map(|base| path.strip_prefix(base).ok()) else {
            return false;
        };
        let is_hidden = |part: &OsStr| part.as_encoded_bytes().starts_with(b".");
        let matches = |pattern: &Option<GlobMatcher>, path: &Path| {
            pattern.as_ref().is_none_or(|glob| glob.is_match(path))
        };
        let at = self.base.join(rest);
        let written = self.written.join(rest);
        let name = Path::new(path.file_name().unwrap_or_default());
        !rest.iter().any(is_hidden)
            && !self.unseen.iter().any(|unseen| at.starts_with(unseen))
            && matches(&self.glob, written.strip_prefix(".").unwrap_or(&written))
            && matches(&self.pattern, name)
    }
}

impl Found {
    /// True for a file that does not exist any more: a folder or glob that was listed completely would
    /// contain it.
    pub(crate) fn has_lost(&self, path: &Path) -> bool {
        self.listings.iter().any(|listing| listing.covers(path)) && is_absent(path)
    }

    /// True if the file would be in a folder of the command line that has no entries at all: its storage may
    /// not be mounted.
    pub(crate) fn may_be_unmounted(&self, path: &Path) -> bool {
        let mut listings = self.listings.iter().filter(|listing| listing.covers(path));
        listings.any(|listing| listing.is_empty)
    }

    fn ignored_count(&self) -> u64 {
        self.ignored.values().map(|ignored| ignored.count).sum()
    }

    /// One line for each rule that excluded names.
    pub(crate) fn ignored_lines(&self) -> impl Iterator<Item = String> {
        self.ignored.iter().map(|(rule, ignored)| {
            let names = match ignored.count {
                1 => "1 name is".to_owned(),
                count => format!("{count} names are"),
            };
            let why = match ignored.is_default {
                true => "always, unless a file is named itself",
                false => "--ignore",
            };
            format!("{names} ignored by the rule {rule} ({why})")
        })
    }
}

/// True if there is no file at a path: nothing, or a folder, FIFO or device. False if the path cannot be
/// read, or is a link without a target, because the file may exist.
pub(crate) fn is_absent(path: &Path) -> bool {
    let found = match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => path.metadata().ok(),
        Ok(found) => Some(found),
        Err(error) => {
            let kind = error.kind();
            return matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory);
        }
    };
    found.is_some_and(|found| !found.is_file())
}

/// Which entries of folders are inputs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Choice<'a> {
    /// If set, only files whose names match.
    pub(crate) pattern: Option<&'a str>,
    /// A folder that is skipped.
    pub(crate) skip: Option<&'a Path>,
    /// Follow symbolic links that lead out of the given folder.
    pub(crate) follow: bool,
    /// Names of files and folders that are skipped, in addition to [`IGNORED`].
    pub(crate) ignore: &'a [String],
}

/// Finds the input files of a command line.
///
/// A folder stands for every file below it that `choice` selects, except files and folders whose names begin
/// with a dot. A glob (`*`, `?`, `[`, `{`) stands for every file whose path matches. Anything else must be a
/// file.
pub(crate) fn collect(inputs: &[OsString], choice: Choice<'_>) -> Result<Found, String> {
    let pattern = choice.pattern.map(glob).transpose()?;
    let mut rules = Vec::new();
    for text in choice.ignore.iter().map(String::as_str).chain(IGNORED) {
        rules.push((text, glob(text)?));
    }
    let mut found = Found::default();
    for input in inputs {
        let input = Path::new(input);
        collect_one(input, pattern.as_ref(), choice, &rules, &mut found)?;
    }
    for (rule, ignored) in &mut found.ignored {
        ignored.is_default = !choice.ignore.contains(rule);
    }
    // If a file has several roots, the highest one sorts first and is kept.
    found.files.sort();
    found
        .files
        .dedup_by(|later, earlier| later.path == earlier.path);
    for left in &mut found.left_out {
        if let Ok(path) = as_named(&left.path) {
            left.path = path;
        }
    }
    found
        .left_out
        .sort_by(|one, other| one.path.cmp(&other.path));
    found.left_out.dedup();
    Ok(found)
}

fn collect_one(
    input: &Path,
    pattern: Option<&GlobMatcher>,
    choice: Choice<'_>,
    rules: &[(&str, GlobMatcher)],
    found: &mut Found,
) -> Result<(), String> {
    let wanted = |path: &Path| match (pattern, path.file_name()) {
        (Some(matcher), Some(name)) => matcher.is_match(Path::new(name)),
        _ => true,
    };
    let before = found.left_out.len();
    let warned = found.warnings.len();
    let ignored = found.ignored_count();
    let (files, folder) = match std::fs::metadata(input) {
        Ok(kind) if kind.is_dir() => {
            let files = walk(input, (None, pattern), choice, rules, &wanted, found)?;
            (files, Some(input.to_path_buf()))
        }
        // A named file is used, whatever the pattern is.
        Ok(kind) if kind.is_file() => {
            match locate(input, None) {
                Ok(file) => found.files.push(file),
                // Not an error of the command, because a shell may expand a glob to such names.
                Err(out) => found.left_out.push(out),
            }
            return Ok(());
        }
        Ok(_) => {
            return Err(format!(
                "input {}: it is neither a file nor a folder",
                path_text(input)
            ));
        }
        Err(error) => {
            let text = input
                .to_str()
                .filter(|text| text.contains(['*', '?', '[', '{']))
                .ok_or_else(|| format!("input {}: {error}", path_text(input)))?;
            let matcher = glob(text)?;
            let base = fixed_part(text);
            match base.exists() {
                true => {
                    let wanted = |path: &Path| matcher.is_match(path) && wanted(path);
                    let globs = (Some(&matcher), pattern);
                    let files = walk(&base, globs, choice, rules, &wanted, found)?;
                    (files, Some(base))
                }
                false => (Vec::new(), None),
            }
        }
    };
    if files.is_empty() && found.left_out.len() == before {
        let name = path_text(input);
        // The reason, where it is known.
        let is_output = match (folder.as_deref(), choice.skip) {
            (Some(folder), Some(skip)) => is_same(folder, skip),
            _ => false,
        };
        // The last note is the one on hidden names, the most frequent reason.
        let notes = found.warnings.iter().skip(warned).rev().take(NOTES_MAX);
        let mut notes: Vec<String> = notes.cloned().collect();
        if found.ignored_count() > ignored {
            notes.extend(found.ignored_lines());
        }
        let what = match pattern {
            Some(pattern) => format!("no file in it matches {}", pattern.glob()),
            None => "no file found".to_owned(),
        };
        let reason = match notes.is_empty() {
            _ if is_output => format!(
                "input {name}: it is the output folder, whose files are no inputs; choose another \
                 one (--output)"
            ),
            true => format!("input {name}: {what}"),
            false => format!("input {name}: {what} ({})", notes.join("; ")),
        };
        let Some(folder) = &folder else {
            return Err(reason);
        };
        let base = as_named(folder).map_err(|out| out.reason)?;
        found.without.push(Without { base, reason });
        return Ok(());
    }
    let folder = folder.as_deref().map(as_named).transpose();
    let folder = folder.map_err(|out| out.reason)?;
    for file in files {
        match locate(&file, folder.as_deref()) {
            Ok(file) => found.files.push(file),
            Err(out) => found.left_out.push(out),
        }
    }
    Ok(())
}

/// The absolute path of a name. Links are not followed, except in the part before a `..`, which leads to the
/// parent of the link's target.
fn as_named(path: &Path) -> Result<PathBuf, LeftOut> {
    let absolute = std::path::absolute(path).map_err(|error| LeftOut {
        path: path.to_path_buf(),
        reason: format!("input {}: {error}", path_text(path)),
    })?;
    let parts: Vec<Component<'_>> = absolute.components().collect();
    let is_up = |part: &Component<'_>| *part == Component::ParentDir;
    let end = parts.iter().rposition(is_up).map_or(0, |at| at + 1);
    let (before, rest) = parts.split_at(end);
    let start = match before.is_empty() {
        true => PathBuf::new(),
        false => real(&before.iter().collect::<PathBuf>())?,
    };
    Ok(rest.iter().fold(start, |path, part| path.join(part)))
}

/// The path with all symbolic links followed.
fn real(path: &Path) -> Result<PathBuf, LeftOut> {
    std::fs::canonicalize(path).map_err(|error| LeftOut {
        path: path.to_path_buf(),
        reason: format!("input {}: {error}", path_text(path)),
    })
}

/// The input for a file below a given folder, or for a given file.
fn locate(file: &Path, folder: Option<&Path>) -> Result<Input, LeftOut> {
    let path = as_named(file)?;
    if path.to_str().is_none() {
        return Err(LeftOut {
            reason: format!("input {}: the path is not UTF-8", path_text(&path)),
            path,
        });
    }
    let root = match folder {
        Some(folder) if path.starts_with(folder) => folder.to_path_buf(),
        _ => path.parent().unwrap_or(Path::new("/")).to_path_buf(),
    };
    Ok(Input { path, root })
}

/// The components of a glob, except for empty ones and `.`.
fn parts(text: &str) -> impl Iterator<Item = Component<'_>> {
    let parts = Path::new(text).components();
    parts.filter(|part| *part != Component::CurDir)
}

/// Normalises a glob to the form of the paths that are found: `a//./b` becomes `a/b`. A glob that ends with a
/// slash keeps it, so that it matches no file.
fn normal(text: &str) -> String {
    let path: PathBuf = parts(text).collect();
    let end = match text.ends_with('/') || text.ends_with("/.") {
        true => "/",
        false => "",
    };
    format!("{}{end}", path.display())
}

pub(super) fn glob(text: &str) -> Result<GlobMatcher, String> {
    globset::GlobBuilder::new(&normal(text))
        .literal_separator(true)
        .build()
        .map(|glob: Glob| glob.compile_matcher())
        .map_err(|error| format!("pattern {text:?}: {}", error.kind()))
}

/// The part of a glob before the first component with a glob character.
pub(super) fn fixed_part(text: &str) -> PathBuf {
    let mut base = PathBuf::new();
    for part in parts(text) {
        let part = part.as_os_str();
        if part
            .to_str()
            .is_none_or(|part| part.contains(['*', '?', '[', '{']))
        {
            break;
        }
        base.push(part);
    }
    if base.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        base
    }
}

/// True if two paths lead to the same folder.
fn is_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// The wanted files below a folder. Entries that cannot be used are reported in `found`. An error only if
/// `base` itself cannot be read.
fn walk(
    base: &Path,
    (glob, pattern): (Option<&GlobMatcher>, Option<&GlobMatcher>),
    choice: Choice<'_>,
    rules: &[(&str, GlobMatcher)],
    wanted: &dyn Fn(&Path) -> bool,
    found: &mut Found,
) -> Result<Vec<PathBuf>, String> {
    let root = real(base).map_err(|out| out.reason)?;
    let named = as_named(base).map_err(|out| out.reason)?;
    // The path of an entry for the listing.
    let below = |path: &Path| named.join(path.strip_prefix(base).unwrap_or(path));
    let unseen = RefCell::new(Vec::new());
    let warnings = RefCell::new(Vec::new());
    let hidden_count = Cell::new(0);
    let hidden = |entry: &walkdir::DirEntry| {
        let is_hidden = entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".");
        if is_hidden && entry.file_name() != ".casparian" && wanted(entry.path()) {
            hidden_count.set(hidden_count.get() + 1);
        }
        is_hidden
    };
    let location = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    // Compared by device and inode. Comparing real paths would resolve every folder above each entry.
    let skip = choice.skip.and_then(location);
    let skipped = |entry: &walkdir::DirEntry| {
        let is_skipped =
            skip.is_some() && entry.file_type().is_dir() && location(entry.path()) == skip;
        if is_skipped {
            unseen.borrow_mut().push(below(entry.path()));
        }
        is_skipped
    };
    let mut ignored: BTreeMap<String, Ignored> = BTreeMap::new();
    let mut is_ignored = |entry: &walkdir::DirEntry| {
        let name = Path::new(entry.file_name());
        let mut rules = rules.iter().filter(|_| entry.depth() > 0);
        let rule = rules.find(|(_, rule)| rule.is_match(name));
        if let Some((text, _)) = rule
            && (entry.file_type().is_dir() || wanted(entry.path()))
        {
            ignored.entry((*text).to_owned()).or_default().count += 1;
        }
        rule.is_some()
    };
    // Links without a target or in a loop are errors of the walk.
    let leads_out = |entry: &walkdir::DirEntry| {
        let target = match entry.depth() > 0 && entry.path_is_symlink() && !choice.follow {
            true => std::fs::canonicalize(entry.path()).ok(),
            false => None,
        };
        let out = target.filter(|target| !target.starts_with(&root));
        if out.is_some() {
            unseen.borrow_mut().push(below(entry.path()));
        }
        if let Some(out) = &out
            && (entry.file_type().is_dir() || wanted(entry.path()))
        {
            warnings.borrow_mut().push(format!(
                "input {}: it leads out of the folder, to {}, and is not followed (--follow does)",
                path_text(entry.path()),
                path_text(out)
            ));
        }
        out.is_some()
    };
    let entries = WalkDir::new(base)
        .follow_links(true)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| {
            !hidden(entry) && !skipped(entry) && !is_ignored(entry) && !leads_out(entry)
        });
    let mut files = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) if entry.file_type().is_file() => {
                let path = entry.into_path();
                let path = path
                    .strip_prefix(".")
                    .map_or(path.clone(), Path::to_path_buf);
                if wanted(&path) {
                    files.push(path);
                }
            }
            Ok(entry) if entry.file_type().is_dir() || !wanted(entry.path()) => {}
            Ok(entry) => {
                let (path, kind) = (path_text(entry.path()), kind(entry.file_type()));
                let line = format!("input {path}: it is {kind}, and is skipped");
                warnings.borrow_mut().push(line);
            }
            Err(error) => {
                // An error without a path may concern any folder.
                unseen
                    .borrow_mut()
                    .push(below(error.path().unwrap_or(base)));
                match (error.loop_ancestor(), error.io_error()) {
                    (Some(ancestor), _) => {
                        let link = path_text(error.path().unwrap_or(base));
                        let above = path_text(ancestor);
                        let line =
                            format!("input {link}: it leads back to {above} and is not followed");
                        warnings.borrow_mut().push(line);
                    }
                    (None, Some(reason)) if error.depth() == 0 => {
                        return Err(format!("input {}: {reason}", path_text(base)));
                    }
                    (None, Some(reason)) => {
                        let path = error.path().unwrap_or(base);
                        found.left_out.extend(unusable(path, reason, wanted));
                    }
                    (None, None) => return Err(format!("input {}: {error}", path_text(base))),
                }
            }
        }
    }
    for (rule, more) in ignored {
        found.ignored.entry(rule).or_default().count += more.count;
    }
    found.listings.push(Listing {
        base: named,
        real: root,
        written: base.to_path_buf(),
        glob: glob.cloned(),
        pattern: pattern.cloned(),
        unseen: unseen.into_inner(),
        is_empty: std::fs::read_dir(base).is_ok_and(|mut entries| entries.next().is_none()),
    });
    found.warnings.append(&mut warnings.borrow_mut());
    let names = match hidden_count.get() {
        0 => return Ok(files),
        1 => "1 name that begins with '.' is".to_owned(),
        count => format!("{count} names that begin with '.' are"),
    };
    let base = path_text(base);
    found
        .warnings
        .push(format!("input {base}: {names} skipped"));
    Ok(files)
}

/// The kind of an entry that is neither a file nor a folder.
fn kind(found: std::fs::FileType) -> &'static str {
    match found {
        found if found.is_fifo() => "a FIFO",
        found if found.is_socket() => "a socket",
        _ => "a device",
    }
}

/// The report on an entry below a folder that cannot be used. None if the entry would not be used anyway: a
/// hidden name, or a file that is not wanted.
fn unusable(
    path: &Path,
    reason: &std::io::Error,
    wanted: &dyn Fn(&Path) -> bool,
) -> Option<LeftOut> {
    let name = path.file_name().unwrap_or_default();
    let is_hidden = name.as_encoded_bytes().starts_with(b".");
    let is_folder = std::fs::metadata(path).is_ok_and(|found| found.is_dir());
    (!is_hidden && (is_folder || wanted(path))).then(|| LeftOut {
        path: path.to_path_buf(),
        reason: format!("input {}: {reason}", path_text(path)),
    })
}

#[cfg(test)]
mod tests;
