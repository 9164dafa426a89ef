//! Pins: folders and links in the path of a protected file or folder, which plugins may not replace.
//! Otherwise a plugin could rename a folder above a read-only path and create another folder under its
//! name.
//!
//! The kernel refuses to rename or remove a mount point of the caller's mount namespace. So each of these
//! folders and links is mounted onto itself. Renames and hard links into or out of such a folder fail as
//! between file systems.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, CWD};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};

/// Symbolic links that are followed in one path. The kernel has the same limit.
const LINKS_MAX: usize = 40;

/// The folders and links in some paths that must be pinned: those that this process's user can rename,
/// parents first. The last component of each path is not among them, unless it is a link. Nothing inside
/// a folder of `read_only` is among them.
pub(super) fn to_pin<'a>(
    paths: impl Iterator<Item = &'a Path>,
    read_only: &[PathBuf],
) -> BTreeSet<PathBuf> {
    let mut locations = BTreeSet::new();
    for path in paths {
        let Ok(path) = std::path::absolute(path) else {
            continue;
        };
        let (links, folders): (Vec<_>, Vec<_>) = way(&path)
            .into_iter()
            .partition(|location| location.is_symlink());
        let above = folders.len().saturating_sub(1);
        locations.extend(links.into_iter().chain(folders.into_iter().take(above)));
    }
    let read_only = read_only.iter().flat_map(fs::canonicalize);
    let fixed: Vec<PathBuf> = read_only.chain(["/proc".into()]).collect();
    let is_fixed = |location: &Path| fixed.iter().any(|path| location.starts_with(path));
    locations.retain(|location| !is_fixed(location) && location.parent().is_some_and(may_change));
    locations
}

/// All folders and links in some paths that this process's user can rename, with the last component of
/// each path.
fn whole_ways(paths: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut locations: BTreeSet<_> = paths.iter().flat_map(|path| way(path)).collect();
    locations.retain(|location| location.parent().is_some_and(may_change));
    locations
}

/// All folders and links that the kernel visits when it resolves a path, and the path itself, without
/// `/`. It ends at the first component that does not exist.
fn way(path: &Path) -> Vec<PathBuf> {
    let mut passed = Vec::new();
    let mut location = PathBuf::from("/");
    let mut rest = path.to_owned();
    let mut links = 0;
    loop {
        let mut parts = rest.components();
        let Some(part) = parts.next() else {
            return passed;
        };
        let mut left = parts.as_path().to_owned();
        match part {
            Component::ParentDir => {
                location.pop();
            }
            Component::Normal(name) => {
                let entry = location.join(name);
                match fs::read_link(&entry) {
                    Ok(target) if links < LINKS_MAX => {
                        links += 1;
                        left = target.join(left);
                        passed.push(entry);
                    }
                    _ if entry.exists() => {
                        passed.push(entry.clone());
                        location = entry;
                    }
                    _ => return passed,
                }
            }
            _ => location = PathBuf::from("/"),
        }
        rest = left;
    }
}

/// True where this process's user may rename entries of the folder, now or after changing its mode.
fn may_change(folder: &Path) -> bool {
    let user = rustix::process::getuid();
    let is_owner = fs::metadata(folder).is_ok_and(|folder| folder.uid() == user.as_raw());
    user.is_root() || is_owner || rustix::fs::access(folder, Access::WRITE_OK).is_ok()
}

/// Mounts a folder or a link onto itself.
pub(super) fn pin(location: &Path) -> io::Result<()> {
    attach(tree(location)?, location)
}

/// A detached copy of the mounts at and below a folder or a link.
fn tree(location: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    Ok(open_tree(CWD, location, flags)?)
}

fn attach(tree: OwnedFd, location: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(tree, "", CWD, location, flags)?)
}

/// Copies of mounts in which folders are made mount points, while they stay plain folders in the mounts
/// in which they are used. The kernel refuses to rename a folder that is a mount point in any mount of
/// the namespace.
pub(super) struct Anchors(Vec<OwnedFd>);

impl Anchors {
    /// Copies the mounts of the folders in some paths. Links in these paths are pinned: that prevents no
    /// hard links.
    pub(super) fn take(paths: &[PathBuf]) -> io::Result<Self> {
        let (links, folders): (Vec<_>, Vec<_>) = whole_ways(paths)
            .into_iter()
            .partition(|location| location.is_symlink());
        for link in links {
            // Some kernels cannot mount onto links.
            let _ = pin(&link);
        }
        let trees: io::Result<_> = folders.iter().map(|location| tree(location)).collect();
        Ok(Anchors(trees?))
    }

    /// Attaches each copy in an empty folder and mounts an empty file system over it there.
    pub(super) fn attach(self, empty: &Path) -> io::Result<()> {
        for (number, tree) in self.0.into_iter().enumerate() {
            let spot = empty.join(format!(".{number}"));
            fs::create_dir(&spot)?;
            attach(tree, &spot)?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RDONLY;
            mount("none", &spot, "tmpfs", flags, Some(c"mode=0700,size=4k"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_a_path_goes_by_its_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/f"), "").unwrap();
        std::os::unix::fs::symlink("b/../../a", root.join("a/up")).unwrap();
        std::os::unix::fs::symlink(root.join("a/up/b"), root.join("direct")).unwrap();
        std::os::unix::fs::symlink("round", root.join("round")).unwrap();
        let cases: [(&str, &[&str]); 4] = [
            ("a/b/f", &["a", "a/b"]),
            ("direct/f", &["a", "a/b", "a/up", "direct"]),
            ("a/up/b", &["a", "a/b", "a/up"]),
            ("a/missing/f", &[]),
        ];
        for (path, expected) in cases {
            let path = root.join(path);
            let mut found = to_pin(std::iter::once(path.as_path()), &[]);
            found.retain(|location| location.starts_with(&root) && *location != root);
            let expected: BTreeSet<_> = expected.iter().map(|name| root.join(name)).collect();
            assert_eq!(found, expected, "{}", path.display());
        }
        to_pin(std::iter::once(root.join("round/f").as_path()), &[]);
        let path = root.join("a/up/b");
        let found = to_pin(std::iter::once(path.as_path()), &[root.join("direct")]);
        assert!(found.contains(&root.join("a/up")));
        let found = to_pin(std::iter::once(path.as_path()), &[root.join("a")]);
        assert!(!found.contains(&root.join("a/up")));
    }
}
