//! The mounts of a `/proc/self/mountinfo`, and which of them can be reached by paths.
//!
//! A mount is covered when another one is mounted over its mount point or over a folder above it. A covered
//! mount is still listed, but its mount point leads to another mount or to nothing.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

/// A mount.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) id: u32,
    parent: u32,
    /// `major:minor` of its file system.
    pub(super) device: Vec<u8>,
    /// The folder of the file system that is mounted.
    pub(super) root: PathBuf,
    pub(super) mount_point: PathBuf,
    /// The flags that a remount must repeat: in a user namespace they cannot be removed.
    pub(super) flags: MountFlags,
    /// Type of its file system.
    kind: Vec<u8>,
}

/// All mounts, in the order of mountinfo.
#[derive(Debug)]
pub(super) struct MountList {
    mounts: Vec<Mount>,
    /// Indexes of the mounts on each mount, by its ID. 0 = on a mount that is not listed.
    on: HashMap<u32, Vec<usize>>,
}

/// File systems by which a process can change the kernel, the machine or processes, apart from `/proc`.
const KERNEL: [&str; 15] = [
    "sysfs",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "efivarfs",
    "pstore",
    "bpf",
    "fusectl",
    "binfmt_misc",
    "resctrl",
    "selinuxfs",
    "nfsd",
];

impl MountList {
    pub(super) fn parse(mountinfo: &[u8]) -> Self {
        let lines = mountinfo.split(|byte| *byte == b'\n');
        let mounts: Vec<Mount> = lines.filter_map(parse).collect();
        let ids: HashSet<u32> = mounts.iter().map(|mount| mount.id).collect();
        let mut on: HashMap<u32, Vec<usize>> = HashMap::new();
        for (index, mount) in mounts.iter().enumerate() {
            let is_listed = ids.contains(&mount.parent) && mount.parent != mount.id;
            let parent = if is_listed { mount.parent } else { 0 };
            on.entry(parent).or_default().push(index);
        }
        MountList { mounts, on }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }

    /// The mount in which an absolute path without links ends.
    pub(super) fn at(&self, path: &Path) -> Option<&Mount> {
        let mut found: Option<&Mount> = None;
        // Each step enters another mount.
        for _ in 0..self.mounts.len() {
            let on = self.on.get(&found.map_or(0, |mount| mount.id));
            let on = on.into_iter().flatten();
            let next = on
                .filter_map(|index| self.mounts.get(*index))
                .filter(|mount| path.starts_with(&mount.mount_point))
                // Of several ones at one mount point the last one is visible.
                .rev()
                .min_by_key(|mount| mount.mount_point.components().count());
            match next {
                Some(next) => found = Some(next),
                None => break,
            }
        }
        found
    }

    fn is_visible(&self, mount: &Mount) -> bool {
        let at = self.at(&mount.mount_point);
        at.is_some_and(|found| found.id == mount.id)
    }

    /// The mounts at and below an absolute path without links that are not covered.
    pub(super) fn below(&self, path: &Path) -> impl Iterator<Item = &Mount> {
        let below = self
            .iter()
            .filter(move |mount| mount.mount_point.starts_with(path));
        below.filter(|mount| self.is_visible(mount))
    }

    /// The mount points of the kernel's own file systems that are not covered, wherever they are mounted. Of
    /// procfs these are the ones outside `/proc`.
    pub(super) fn of_kernel(&self) -> impl Iterator<Item = &Path> {
        let is_kernel = |mount: &&Mount| match mount.kind.as_slice() {
            b"proc" => !mount.mount_point.starts_with("/proc"),
            kind => KERNEL.iter().any(|name| name.as_bytes() == kind),
        };
        let found = self.iter().filter(is_kernel);
        let found = found.filter(|mount| self.is_visible(mount));
        found.map(|mount| mount.mount_point.as_path())
    }

    /// The mount points of whole file systems of pseudo-terminals (devpts) that are not covered.
    pub(super) fn terminals(&self) -> impl Iterator<Item = &Path> {
        let found = self.iter().filter(|mount| mount.kind == b"devpts");
        // A container's console is a mount of a single file of it.
        let found = found.filter(|mount| mount.root == Path::new("/"));
        let found = found.filter(|mount| self.is_visible(mount));
        found.map(|mount| mount.mount_point.as_path())
    }
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let device = fields.next()?.to_vec();
    let (root, mount_point) = (unescaped(fields.next()?), unescaped(fields.next()?));
    let options = std::str::from_utf8(fields.next()?).ok()?;
    let flags = options
        .split(',')
        .fold(MountFlags::empty(), |flags, option| {
            flags
                | match option {
                    "nosuid" => MountFlags::NOSUID,
                    "nodev" => MountFlags::NODEV,
                    "noexec" => MountFlags::NOEXEC,
                    "noatime" => MountFlags::NOATIME,
                    "nodiratime" => MountFlags::NODIRATIME,
                    "relatime" => MountFlags::RELATIME,
                    "nosymfollow" => MountFlags::NOSYMFOLLOW,
                    _ => MountFlags::empty(),
                }
        });
    // Optional fields end with a hyphen.
    let kind = fields.skip_while(|field| *field != b"-").nth(1);
    Some(Mount {
        id,
        parent,
        device,
        root,
        mount_point,
        flags,
        kind: kind.unwrap_or_default().to_vec(),
    })
}

/// Decodes a path of mountinfo, in which some characters (such as blanks and backslashes) are octal
/// escapes.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match (first, octal) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points<'a>(mounts: impl Iterator<Item = &'a Mount>) -> Vec<(u32, &'a Path)> {
        mounts
            .map(|mount| (mount.id, mount.mount_point.as_path()))
            .collect()
    }

    #[test]
    fn mounts_below_a_path_are_found_with_their_flags() {
        let listed = b"22 1 0:2 / / rw,relatime - ext4 /dev/a rw\n\
            23 22 0:3 / /out rw - ext4 /dev/b rw\n\
            24 26 0:4 / /out/a\\040b rw,nosuid,nodev,noatime shared:1 - tmpfs t rw\n\
            25 22 0:5 / /output rw - ext4 /dev/c rw\n\
            26 23 0:6 / /out rw,noexec - ext4 /dev/d rw\n";
        let listed = MountList::parse(listed);
        let found = listed.below(Path::new("/out"));
        let found: Vec<_> = found
            .map(|mount| (mount.mount_point.as_path(), mount.flags))
            .collect();
        let expected = [
            (
                Path::new("/out/a b"),
                MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME,
            ),
            (Path::new("/out"), MountFlags::NOEXEC),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn pseudo_terminals_are_found_wherever_they_are_mounted() {
        let listed = b"22 1 0:2 / / rw - ext4 a rw\n\
            30 22 0:3 / /dev/pts rw - devpts devpts rw,ptmxmode=000\n\
            31 30 0:4 / /dev/pts rw - devpts devpts rw,ptmxmode=000\n\
            32 22 0:4 /0 /dev/console rw - devpts devpts rw\n\
            33 22 0:5 / /jail/dev/pts rw - devpts devpts rw\n\
            34 22 0:6 / /jail/dev/shm rw - tmpfs t rw\n";
        let listed = MountList::parse(listed);
        let found: Vec<_> = listed.terminals().collect();
        assert_eq!(found, ["/dev/pts", "/jail/dev/pts"].map(Path::new));
    }

    #[test]
    fn covered_mounts_are_not_found() {
        // 31 is covered by 32, which is at the folder above it. 41 is covered by 42, which is at the mount
        // point of the mount that 41 is on. 50 is on a mount that is not listed.
        let listed = b"22 1 0:2 / / rw - ext4 a rw\n\
            31 22 0:3 / /out/sub rw - tmpfs t rw\n\
            32 22 0:4 / /out rw - tmpfs t rw\n\
            40 22 0:5 / /sys/fs rw - tmpfs t rw\n\
            41 40 0:6 / /sys/fs/cpu rw - cgroup t rw\n\
            42 40 0:7 / /sys/fs rw - cgroup2 t rw\n\
            43 42 0:8 / /sys/fs/deep rw - debugfs t rw\n\
            60 22 0:9 / /proc rw - proc p rw\n\
            61 22 0:10 / /jail/proc rw - proc p rw\n\
            62 22 0:10 / /jail/proc rw - tmpfs p rw\n\
            63 22 0:11 / /root/proc rw master:3 - proc p rw\n";
        let listed = MountList::parse(listed);
        let below = |path: &str| points(listed.below(Path::new(path)));
        assert_eq!(below("/out"), [(32, Path::new("/out"))]);
        let sys = [(42, Path::new("/sys/fs")), (43, Path::new("/sys/fs/deep"))];
        assert_eq!(below("/sys"), sys);
        assert_eq!(listed.at(Path::new("/out/sub/x")).unwrap().id, 32);
        assert_eq!(listed.at(Path::new("/outer")).unwrap().id, 22);
        let kernel: Vec<_> = listed.of_kernel().collect();
        let expected = ["/sys/fs", "/sys/fs/deep", "/root/proc"].map(Path::new);
        assert_eq!(kernel, expected);
        // The root folder of the process is no mount point.
        let listed = MountList::parse(b"50 9 0:2 / /out rw - ext4 a rw\n");
        assert_eq!(listed.at(Path::new("/out/x")).unwrap().id, 50);
        assert!(listed.at(Path::new("/other")).is_none());
        // A file system without a parent of its own.
        let listed = MountList::parse(b"1 1 0:2 / / rw - rootfs a rw\n");
        assert_eq!(points(listed.below(Path::new("/"))), [(1, Path::new("/"))]);
    }
}
