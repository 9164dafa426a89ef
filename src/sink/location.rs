//! Identity of files: one file may have several paths, by symbolic links, hard links and mounts.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Error, files, names};

/// Identity of a file, independent of the path that leads to it: device and inode of the longest part of
/// the path that exists, and the rest of the path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
    rest: PathBuf,
}

impl FileId {
    /// The file that a path leads to.
    pub(super) fn of(path: &Path) -> Self {
        match fs::metadata(path) {
            Ok(found) => FileId {
                device: found.dev(),
                inode: found.ino(),
                rest: PathBuf::new(),
            },
            Err(_) => FileId::of_name(path),
        }
    }

    /// The directory entry that a path names. A link at its end is not followed.
    pub(super) fn of_name(path: &Path) -> Self {
        let folder = files::existing_folder(path);
        let found = fs::metadata(folder);
        let (device, inode) = found.map_or((0, 0), |found| (found.dev(), found.ino()));
        FileId {
            device,
            inode,
            rest: path.strip_prefix(folder).unwrap_or(path).to_owned(),
        }
    }
}

/// A path with the links of its folders followed. Parts that do not exist are kept.
fn real_name(path: &Path) -> Option<PathBuf> {
    let folder = files::existing_folder(path);
    let rest = path.strip_prefix(folder).ok()?;
    Some(fs::canonicalize(folder).ok()?.join(rest))
}

/// A path with all links followed. Parts that do not exist are kept.
pub(super) fn real(path: &Path) -> PathBuf {
    let real = fs::canonicalize(path).ok().or_else(|| real_name(path));
    real.unwrap_or_else(|| path.to_owned())
}

/// The path relative to the root of a path without links. The root may have another path in it than
/// `root`.
fn strip_root(root: &Path, real: &Path) -> Option<String> {
    let below = match real.strip_prefix(root) {
        Ok(below) => below,
        Err(_) => {
            let id = FileId::of(root);
            let mut above = real.ancestors().skip(1);
            let root = above.find(|path| FileId::of(path) == id)?;
            real.strip_prefix(root).ok()?
        }
    };
    let below = below.to_str()?;
    files::is_below(below).then(|| below.to_owned())
}

/// True for the root and what is below it. `real` is a path without links; the root may have another path
/// in it than `root`.
pub(super) fn is_inside(root: &Path, real: &Path) -> bool {
    let id = FileId::of(root);
    real.starts_with(root) || real.ancestors().any(|path| FileId::of(path) == id)
}

/// The first link of a path below the root that leads out of the root or to nothing. `None` where there is
/// none, or where the path does not begin with the root. The `bool` is true if the whole path is the link.
pub(super) fn way_out(root: &Path, path: &Path) -> Option<(PathBuf, bool)> {
    let below = match path.strip_prefix(root) {
        Ok(below) => below,
        Err(_) => {
            let id = FileId::of(root);
            let mut above = path.ancestors().skip(1);
            path.strip_prefix(above.find(|path| FileId::of(path) == id)?)
                .ok()?
        }
    };
    let mut at = root.to_owned();
    let leads_out = |path: &PathBuf| {
        path.is_symlink() && !fs::canonicalize(path).is_ok_and(|real| is_inside(root, &real))
    };
    let mut parts = below.components().map(|part| {
        at.push(part);
        at.clone()
    });
    let link = parts.find(leads_out)?;
    let is_whole = link == root.join(below);
    Some((link, is_whole))
}

/// The path of a file relative to the root, with the links of its folders followed. `None` where it is
/// outside the root, or is not UTF-8.
pub(super) fn below(root: &Path, file: &Path) -> Option<String> {
    strip_root(root, &real_name(file)?)
}

/// Refuses a sink's file inside `.casparian`. `below` is its path relative to the root, with links
/// followed.
pub(super) fn check_below(file: &Path, below: Option<&str>) -> Result<(), Error> {
    let is_own = |below: &str| Path::new(below).iter().any(|part| part == ".casparian");
    match below.is_some_and(is_own) {
        true => Err(Error::at_path(
            file,
            "the sink's path leads into .casparian",
        )),
        false => Ok(()),
    }
}

/// The path of a database with all links followed, and its path relative to the root if it is below the
/// root.
pub(super) fn database(root: &Path, path: &str) -> (String, Option<String>) {
    let real = real(Path::new(path));
    let below = strip_root(root, &real);
    let path = match &below {
        Some(below) => root.join(below).to_str().map(str::to_owned),
        None => real.to_str().map(str::to_owned),
    }
    .unwrap_or_else(|| path.to_owned());
    (path, below)
}

/// The URIs of receipts, each unchanged and with the path that the file or database has for this worker.
pub(super) fn named(root: &Path, receipts: &[String]) -> HashSet<String> {
    let located = receipts.iter().filter_map(|uri| {
        if let Some((path, table)) = names::table_of(uri) {
            let (path, _) = database(root, path);
            return Some(names::table_uri(Path::new(&path), table));
        }
        let below = below(root, names::file_of(uri)?)?;
        Some(names::file_uri(&root.join(below)))
    });
    located.chain(receipts.iter().cloned()).collect()
}
