//! Other paths of the same folders and files. A file system, or a part of it, can be mounted at several
//! mount points. A change of one mount does not affect the others.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::launch::unescaped;

/// A mount of `/proc/self/mountinfo`.
struct Mount {
    /// `major:minor` of its file system.
    device: Vec<u8>,
    /// The folder of the file system that is mounted.
    root: PathBuf,
    mount_point: PathBuf,
}

/// The other paths of `path`, and of folders below it, by the mounts of a `/proc/self/mountinfo`.
pub(super) fn aliases(listed: &[u8], path: &Path) -> Vec<PathBuf> {
    let Ok(path) = fs::canonicalize(path) else {
        return Vec::new();
    };
    let mut found = listed_aliases(listed, &path);
    // A path that another mount covers leads to a different file.
    found.retain(|(alias, original)| is_same(alias, original));
    found.into_iter().map(|(alias, _)| alias).collect()
}

pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    let file = |path| {
        let found = fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    file(one).is_some_and(|one| Some(one) == file(other))
}

/// Pairs of an alias outside `path`, and the path at or below `path` that it is an alias of.
fn listed_aliases(listed: &[u8], path: &Path) -> Vec<(PathBuf, PathBuf)> {
    let parse = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        Some(Mount {
            device: fields.next()?.to_vec(),
            root: unescaped(fields.next()?),
            mount_point: unescaped(fields.next()?),
        })
    };
    let lines = listed.split(|byte| *byte == b'\n');
    let mounts: Vec<Mount> = lines.filter_map(parse).collect();
    let holds = |mount: &&Mount| path.starts_with(&mount.mount_point);
    // Of several mounts at one mount point the last one is visible.
    let Some(own) = mounts
        .iter()
        .filter(holds)
        .max_by_key(|mount| mount.mount_point.components().count())
    else {
        return Vec::new();
    };
    let Ok(below) = path.strip_prefix(&own.mount_point) else {
        return Vec::new();
    };
    let inside = own.root.join(below);
    let others = mounts.iter().filter(|mount| mount.device == own.device);
    others
        .filter_map(|mount| {
            if let Ok(rest) = inside.strip_prefix(&mount.root) {
                return Some((joined(&mount.mount_point, rest), path.to_owned()));
            }
            let rest = mount.root.strip_prefix(&inside).ok()?;
            Some((mount.mount_point.clone(), joined(path, rest)))
        })
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
        let found = listed_aliases(listed, Path::new("/data/out"));
        let expected = [
            ("/alias b", "/data/out"),
            ("/host/out", "/data/out"),
            ("/part", "/data/out/deep"),
        ];
        let expected = expected.map(|(alias, path)| (PathBuf::from(alias), PathBuf::from(path)));
        assert_eq!(found, expected);
        let found = listed_aliases(listed, Path::new("/alias b/x"));
        let paths: Vec<PathBuf> = found.into_iter().map(|(alias, _)| alias).collect();
        assert_eq!(paths, ["/data/out/x", "/host/out/x"].map(PathBuf::from));
    }
}
