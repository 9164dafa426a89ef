//! A user namespace inside the first layer, for a fork server that runs code of its environment.
//!
//! A process in it may create mounts of its own, as the fork server's children do. It cannot undo the
//! mounts that existed before: the kernel locks mounts from a namespace with more privileges
//! (mount_namespaces(7)). Its capabilities apply only inside this namespace. User and group IDs are the
//! same as outside.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

/// Descriptors and a process that are needed to enter the namespace. They are opened before the mounts
/// are changed.
pub(super) struct Nest {
    /// This process's folder in `/proc`.
    own: std::os::fd::OwnedFd,
    /// The folder `/proc/sys/user`, with the limits of namespaces.
    limits: std::os::fd::OwnedFd,
    /// A process of root outside the namespace, which may map all IDs. `None` for other users.
    mapper: Option<Child>,
}

/// How many objects of each kind all processes in the namespace may have together. They also count
/// towards the limits of the user outside (namespaces(7), "The /proc/sys/user directory"), which are some
/// ten thousands.
const LIMITS: &[(&str, &str)] = &[
    ("max_cgroup_namespaces", "2048"),
    ("max_ipc_namespaces", "2048"),
    ("max_mnt_namespaces", "2048"),
    ("max_net_namespaces", "2048"),
    ("max_pid_namespaces", "2048"),
    ("max_time_namespaces", "2048"),
    ("max_user_namespaces", "2048"),
    ("max_uts_namespaces", "2048"),
    ("max_inotify_instances", "64"),
    ("max_inotify_watches", "65536"),
    ("max_fanotify_groups", "64"),
    ("max_fanotify_marks", "65536"),
];

/// Waits for a byte on stdin and maps the IDs of the process with this ID. Maps nothing when stdin is
/// closed first.
pub(super) fn map(process: &str) -> Result<String, String> {
    let mut line = [0u8; 1];
    let read = io::stdin()
        .read(&mut line)
        .map_err(|error| error.to_string())?;
    if read == 0 {
        return Ok(String::new());
    }
    let folder = Path::new("/proc").join(process);
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).map_err(|error| format!("{name}: {error}"))
    };
    let all = format!("0 0 {}", u32::MAX);
    if write("uid_map", &all).is_ok() {
        write("gid_map", &all)?;
        return Ok(String::new());
    }
    // This process is root of a user namespace in which only ID 0 is mapped.
    write("setgroups", "deny")?;
    write("uid_map", "0 0 1")?;
    write("gid_map", "0 0 1")?;
    Ok(String::new())
}

impl Nest {
    /// `mapper` = the command of [`map`] for this process.
    pub(super) fn prepare(mut mapper: Command) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let own = openat(CWD, "/proc/self", flags, Mode::empty())?;
        let limits = openat(CWD, "/proc/sys/user", flags, Mode::empty())?;
        let mapper = match rustix::process::geteuid().is_root() {
            true => {
                let mapper = mapper.stdin(Stdio::piped()).stdout(Stdio::null());
                Some(mapper.spawn()?)
            }
            false => None,
        };
        Ok(Nest {
            own,
            limits,
            mapper,
        })
    }

    /// Enters the namespace.
    pub(super) fn enter(mut self) -> io::Result<()> {
        self.map_ids()?;
        for (name, count) in LIMITS {
            match openat(
                &self.limits,
                *name,
                OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                // The kernel does not have this limit, or a container has it read-only.
                Err(Errno::NOENT | Errno::ROFS | Errno::ACCESS | Errno::PERM) => continue,
                file => rustix::io::write(file?, count.as_bytes())?,
            };
        }
        Ok(())
    }

    fn map_ids(&mut self) -> io::Result<()> {
        let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        if let Some(mapper) = &mut self.mapper {
            if let Some(mut go) = mapper.stdin.take() {
                go.write_all(b"\n")?;
            }
            return match mapper.wait()?.success() {
                true => Ok(()),
                false => Err(io::Error::other("its IDs cannot be mapped")),
            };
        }
        let maps = [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("{0} {0} 1", user.as_raw())),
            ("gid_map", format!("{0} {0} 1", group.as_raw())),
        ];
        for (name, text) in maps {
            let file = openat(
                &self.own,
                name,
                OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            rustix::io::write(file, text.as_bytes())?;
        }
        Ok(())
    }
}
