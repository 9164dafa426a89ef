//! Other paths of the same folders and files. A file system, or a part of it, can be mounted at several
//! mount points. A change of one mount does not affect the others.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::mount_list::{Mount, MountList};

/// The other paths of `path`, of folders below it, and of the mounts below it that are not in `spared`.
pub(super) fn aliases(listed: &MountList, path: &Path, spared: &[PathBuf]) -> Vec<PathBuf> {
    let Ok(path) = fs::canonicalize(path) else {
        return Vec::new();
    };
    let mut found = listed_aliases(listed, &path, spared);
    // A path that another mount covers leads to a different file.
    found.retain(|(alias, original)| is_same(alias, original));
    let found: BTreeSet<PathBuf> = found.into_iter().map(|(alias, _)| alias).collect();
    found.into_iter().collect()
}

pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    let file = |path| {
        let found = fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    file(one).is_some_and(|one| Some(one) == file(other))
}

/// Pairs of an alias outside `path`, and the path at or below `path` that it is an alias of.
fn listed_aliases(listed: &MountList, path: &Path, spared: &[PathBuf]) -> Vec<(PathBuf, PathBuf)> {
    let own = listed.at(path).into_iter();
    let own = own.flat_map(|mount| aliases_in(listed, mount, path));
    let is_spared = |mount: &&Mount| {
        let mut spared = spared.iter().filter(|spared| !path.starts_with(spared));
        spared.any(|spared| mount.mount_point.starts_with(spared))
    };
    let below = listed.below(path).filter(|mount| mount.mount_point != path);
    let below = below.filter(|mount| !is_spared(mount));
    let below = below.flat_map(|mount| aliases_in(listed, mount, &mount.mount_point));
    let mut found: Vec<_> = own.chain(below).collect();
    found.retain(|(alias, _)| !alias.starts_with(path));
    found
}

/// As [`listed_aliases`], of the part of `mount` that is at and below `path`.
fn aliases_in(listed: &MountList, mount: &Mount, path: &Path) -> Vec<(PathBuf, PathBuf)> {
    let Ok(below) = path.strip_prefix(&mount.mount_point) else {
        return Vec::new();
    };
    let inside = mount.root.join(below);
    let others = listed.iter().filter(|other| other.device == mount.device);
    let alias = |other: &Mount| {
        if let Ok(rest) = inside.strip_prefix(&other.root) {
            return Some((joined(&other.mount_point, rest), path.to_owned()));
        }
        let rest = other.root.strip_prefix(&inside).ok()?;
        Some((other.mount_point.clone(), joined(path, rest)))
    };
    let found = others.filter_map(alias);
    found
        .filter(|(alias, _)| !alias.starts_with(path))
        .collect()
}

/// Joins two paths, without the trailing slash that joining an empty path would add.
fn joined(base: &Path, rest: &Path) -> PathBuf {
    match rest.as_os_str().is_empty() {
        true => base.to_owned(),
        false => base.join(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_mounts_of_a_path_are_found() {
        let listed = b"22 1 0:2 / / rw - ext4 /dev/a rw\n\
            23 22 0:3 / /data rw - ext4 /dev/b rw\n\
            24 22 0:3 /out /alias\\040b rw - ext4 /dev/b rw\n\
            25 22 0:3 / /host rw - ext4 /dev/b rw\n\
            26 22 0:3 /out/deep /part rw - ext4 /dev/b rw\n\
            27 22 0:3 /other /elsewhere rw - ext4 /dev/b rw\n\
            28 22 0:4 /out /not rw - ext4 /dev/c rw\n\
            29 23 0:3 /out/deep /data/out/again rw - ext4 /dev/b rw\n";
        let listed = MountList::parse(listed);
        let found = listed_aliases(&listed, Path::new("/data/out"), &[]);
        let expected = [
            ("/alias b", "/data/out"),
            ("/host/out", "/data/out"),
            ("/part", "/data/out/deep"),
            // Of the mount below it.
            ("/alias b/deep", "/data/out/again"),
            ("/host/out/deep", "/data/out/again"),
            ("/part", "/data/out/again"),
        ];
        let expected = expected.map(|(alias, path)| (PathBuf::from(alias), PathBuf::from(path)));
        assert_eq!(found, expected);
        let found = listed_aliases(&listed, Path::new("/alias b/x"), &[]);
        let paths: Vec<PathBuf> = found.into_iter().map(|(alias, _)| alias).collect();
        assert_eq!(paths, ["/data/out/x", "/host/out/x"].map(PathBuf::from));
    }

    #[test]
    fn other_mounts_of_what_is_mounted_below_a_path_are_found() {
        let listed = b"22 1 0:2 / / rw - ext4 /dev/a rw\n\
            23 22 0:3 / /disk rw - ext4 /dev/b rw\n\
            24 22 0:3 /one /out/one rw - ext4 /dev/b rw\n\
            25 22 0:2 /real /out/real rw - ext4 /dev/a rw\n\
            26 22 0:4 / /out/work rw - tmpfs t rw\n\
            27 22 0:4 / /work rw - tmpfs t rw\n\
            28 22 0:5 / /hidden rw - tmpfs t rw\n\
            29 22 0:5 / /out/covered/sub rw - tmpfs t rw\n\
            30 22 0:6 / /out/covered rw - tmpfs t rw\n";
        let listed = MountList::parse(listed);
        let found = listed_aliases(&listed, Path::new("/out"), &["/out/work".into()]);
        let expected = [("/disk/one", "/out/one"), ("/real", "/out/real")];
        let expected = expected.map(|(alias, path)| (PathBuf::from(alias), PathBuf::from(path)));
        assert_eq!(found, expected);
    }
}
