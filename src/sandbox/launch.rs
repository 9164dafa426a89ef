//! The launcher, a program that applies the first layer: it changes its mounts and then becomes the
//! interpreter (exec).
//!
//! It is a process of its own, because a process with several threads cannot enter these namespaces, and
//! because running code between fork and exec needs `unsafe`. As root it unshares its mounts. Any other
//! user also needs a user namespace. In it the process keeps its IDs, and has CAP_SYS_ADMIN over these
//! mounts only. Plugin processes use this capability for the second layer and then drop it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, StatVfsMountFlags, statvfs};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_bind,
    mount_bind_recursive, mount_change, mount_remount, move_mount, open_tree,
};
use rustix::net::SendFlags;
use rustix::thread::{
    CapabilitySet, capabilities, configure_capability_in_ambient_set, set_capabilities,
    set_no_new_privs,
};

use super::aliases::{aliases, is_same};
use super::mount_list::MountList;
use super::nest::{self, Nest};
use super::pins::Anchors;
use super::{Mounts, Private, Restricted, Support, calls, folders_in, pins, rules};
use crate::{descriptors, keys_in_use, limits};

/// First argument with which a program runs as the launcher.
pub const ARGUMENT: &str = "sandbox-launch";
/// Second argument with which it only prints its [`Support`] as JSON.
const PROBE: &str = "--probe";
/// Second argument with which it maps the IDs of a process. The third argument is the process ID.
const MAP: &str = "--map";

/// A command that runs `interpreter` in the first layer. `program` must call [`main`] when its first
/// argument is [`ARGUMENT`].
pub fn command(program: &Path, mounts: &Mounts, interpreter: &Path) -> io::Result<Command> {
    let mut command = Command::new(program);
    command
        .arg(ARGUMENT)
        .arg(serde_json::to_string(mounts).map_err(io::Error::other)?)
        .arg(interpreter);
    Ok(command)
}

/// A command that prints the kernel's [`Support`] as JSON.
pub fn probe_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.args([ARGUMENT, PROBE]);
    command
}

/// The launcher, with the arguments `mounts interpreter arguments…`, `--probe` or `--map process`. A
/// probe returns the text to print. Otherwise it returns only on failure, with the reason why the
/// interpreter does not run. That reason is also sent to the socket on stdin as a message `{"unstarted":
/// reason}`.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Result<String, String> {
    let first = arguments.next().unwrap_or_default();
    if first == OsStr::new(PROBE) {
        let probed = serde_json::to_string(&probe());
        return probed.map_err(|error| error.to_string());
    }
    if first == OsStr::new(MAP) {
        let process = arguments.next().unwrap_or_default();
        return nest::map(&process.to_string_lossy());
    }
    let reason = match become_interpreter(&first, arguments) {
        Ok(never) => match never {},
        Err(reason) => reason,
    };
    // The parent also reads messages of the interpreter from this socket.
    let message = serde_json::json!({ "unstarted": reason }).to_string();
    let _ = rustix::net::send(io::stdin(), message.as_bytes(), SendFlags::NOSIGNAL);
    Err(reason)
}

fn become_interpreter(
    mounts: &OsStr,
    mut arguments: impl Iterator<Item = OsString>,
) -> Result<Infallible, String> {
    let mounts: Mounts = mounts
        .to_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or("the mounts are not readable")?;
    let interpreter = arguments.next().ok_or("the interpreter is missing")?;
    restrict_process(&mounts).map_err(|reason| format!("sandbox: {reason}"))?;
    let text = |word: &OsStr| CString::new(word.as_encoded_bytes()).map_err(|e| e.to_string());
    let program = text(&interpreter)?;
    let mut words = vec![program.clone()];
    for argument in arguments {
        words.push(text(&argument)?);
    }
    // Code of the environment may run before the shim could set this signal. The setting survives exec.
    if mounts.restricted.as_ref().is_some_and(|held| held.forks) {
        let parent = rustix::process::getppid();
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(|error| format!("parent: {error}"))?;
        if rustix::process::getppid() != parent {
            return Err("the worker has ended".to_owned());
        }
    }
    // `Command::exec` would run a file that is not executable code with a shell.
    nix::unistd::execv(&program, &words).map_err(|error| {
        format!(
            "cannot start {}: {}",
            Path::new(&interpreter).display(),
            io::Error::from(error)
        )
    })
}

/// Restricts this process.
fn restrict_process(mounts: &Mounts) -> Result<(), String> {
    // An inherited descriptor of a folder would give access to files that mounts cover.
    descriptors::close_others().map_err(|error| format!("descriptors: {error}"))?;
    let restricted = mounts.restricted.as_ref();
    // A tool that builds environments stays in its process group, which is killed as a whole.
    if restricted.is_none_or(|restricted| restricted.forks) {
        nix::unistd::setsid().map_err(|error| format!("session: {error}"))?;
    }
    let forks = restricted.is_some_and(|restricted| restricted.forks);
    let nest = match mounts.namespaces && forks {
        true => Some(prepare_nest()?),
        false => None,
    };
    if mounts.namespaces {
        let folder = std::env::current_dir();
        enter(mounts)?;
        // The working directory still is the folder that new mounts may cover. It is entered again by its
        // path.
        let again = folder.and_then(std::env::set_current_dir);
        again
            .or_else(|_| std::env::set_current_dir("/"))
            .map_err(|error| format!("working directory: {error}"))?;
    }
    if let Some(nest) = nest {
        nest.enter()
            .map_err(|error| format!("user namespace: {error}"))?;
    }
    match restricted {
        Some(restricted) => restrict(restricted),
        None => Ok(()),
    }
}

fn prepare_nest() -> Result<Nest, String> {
    let mut mapper = Command::new("/proc/self/exe");
    mapper.args([ARGUMENT, MAP, &std::process::id().to_string()]);
    Nest::prepare(mapper).map_err(|error| format!("user namespace: {error}"))
}

/// Tries all features in this process, which cannot do anything else afterwards.
fn probe() -> Support {
    let landlock = rules::landlock_version();
    let nest = prepare_nest();
    let own = |error| format!("one for each plugin process: {error}");
    let unshare_own = || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC).map_err(io::Error::from)?;
        // The probe does not use /mnt otherwise.
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("none", "/mnt", "tmpfs", flags, None).or_else(|error| {
            match Path::new("/mnt").exists() {
                true => Err(io::Error::from(error)),
                false => Ok(()),
            }
        })
    };
    let unshare_own = || unshare_own().map_err(own);
    let no_namespaces = enter(&Mounts::default()).and_then(|()| unshare_own()).err();
    let nested = nest.and_then(|nest| nest.enter().map_err(|error| error.to_string()));
    let no_nesting = nested.and_then(|()| unshare_own()).err();
    Support {
        no_namespaces,
        no_nesting,
        landlock,
        no_seccomp: calls::try_seccomp(calls::Kind::On).err(),
    }
}

/// Enters new namespaces, and changes the mounts there.
fn enter(mounts: &Mounts) -> Result<(), String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("{what}: {error}")
    };
    unshare_mounts().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSPC) => "user.max_user_namespaces allows none".to_owned(),
        Some(libc::EPERM) => "this user may create none".to_owned(),
        _ => error.to_string(),
    })?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|error| failed("mounts")(error.into()))?;
    let (mut fixed, mut hidden) = (mounts.read_only.clone(), mounts.hidden.clone());
    let listed = list().map_err(failed(MOUNTS))?;
    for (paths, more) in [
        (&mounts.read_only, &mut fixed),
        (&mounts.hidden, &mut hidden),
    ] {
        more.extend(
            paths
                .iter()
                .flat_map(|path| aliases(&listed, path, &mounts.writable)),
        );
    }
    // The visible parts of a private folder are visible only at its own path, not at its aliases.
    let private = mounts.private.iter().map(|private| &private.folder);
    hidden.extend(private.flat_map(|folder| aliases(&listed, folder, &[])));
    for path in fixed.clone() {
        if let Some((folder, files)) = database_files(&path) {
            fixed.push(folder);
            hidden.extend(files);
        }
        if keys_in_use::is_secret(&path) {
            hidden.push(path);
        }
    }
    let (entries, beside) = entries(&listed, &mounts.entries, &fixed);
    // Without read-only paths there is only the worker's folder, which needs no pins.
    if !fixed.is_empty() {
        let ways = [
            &mounts.named,
            &fixed,
            &mounts.entries,
            &hidden,
            &mounts.writable,
        ];
        let all = ways.into_iter().flatten().map(PathBuf::as_path);
        for location in pins::to_pin(all, &fixed) {
            match pins::pin(&location) {
                // Some kernels cannot mount onto links. A path that does not exist needs no pin.
                Err(_) if location.is_symlink() || !location.exists() => {}
                pinned => pinned.map_err(failed(&location.display().to_string()))?,
            }
        }
    }
    let spared = [mounts.writable.clone(), beside].concat();
    for path in &spared {
        mount_bind_recursive(path, path)
            .map_err(|error| failed(&path.display().to_string())(error.into()))?;
    }
    for path in &entries {
        read_only(path, &spared)?;
    }
    for path in &fixed {
        match read_only(path, &mounts.writable) {
            Err(_) if !path.exists() => {}
            done => done?,
        }
    }
    for path in hidden.iter().filter(|path| path.exists()) {
        let hidden = match path.is_dir() {
            true => {
                let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RDONLY;
                mount("none", path, "tmpfs", flags, Some(c"mode=0711,size=64k"))
            }
            false => cover(path),
        };
        if hidden.is_err() && !path.exists() {
            continue;
        }
        hidden.map_err(|error| failed(&path.display().to_string())(error.into()))?;
    }
    let served = SERVED.map(Path::new).into_iter();
    let served = served.flat_map(|path| {
        let others = aliases(&listed, path, &[]).into_iter();
        others.chain([path.to_owned()])
    });
    for path in served.collect::<Vec<PathBuf>>() {
        if path.exists() {
            cover(&path).map_err(|error| failed(&path.display().to_string())(error.into()))?;
        }
    }
    own_terminals(&listed);
    let others = mounts
        .fixed
        .iter()
        .flat_map(|path| aliases(&listed, path, &[]));
    let is_fixed = |path: &&Path| fixed.iter().any(|fixed| path.starts_with(fixed));
    let kernel = listed
        .of_kernel()
        .filter(|path| mounts.kernel && !is_fixed(path));
    let others: Vec<PathBuf> = others.chain(kernel.map(Path::to_owned)).collect();
    for path in mounts.fixed.iter().chain(&others) {
        read_only(path, &[])?;
    }
    let mut anchors = match mounts.anchored.is_empty() {
        true => None,
        false => Some(Anchors::take(&mounts.anchored).map_err(failed("folders of environments"))?),
    };
    for private in mounts
        .private
        .iter()
        .filter(|private| private.folder.is_dir())
    {
        let shown = show_only(private, anchors.take());
        shown.map_err(failed(&private.folder.display().to_string()))?;
    }
    Ok(())
}

/// The folders of `named` with their aliases, and their subfolders, which stay writable. `fixed` are
/// folders that are read-only with all that is below them; what is in these is left out.
fn entries(
    listed: &MountList,
    named: &[PathBuf],
    fixed: &[PathBuf],
) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let named = named.iter().flat_map(fs::canonicalize);
    let whole: Vec<PathBuf> = fixed.iter().flat_map(fs::canonicalize).collect();
    let is_whole = |path: &Path| whole.iter().any(|folder| path.starts_with(folder));
    let locations = named.flat_map(|folder| {
        let others = aliases(listed, &folder, &[]).into_iter();
        let others: Vec<_> = others.filter(|alias| is_same(alias, &folder)).collect();
        others.into_iter().chain([folder])
    });
    let locations: BTreeSet<PathBuf> = locations.filter(|location| !is_whole(location)).collect();
    let beside = |folder: &PathBuf| folders_in(folder).take(limits::FOLDERS_BESIDE_PROGRAMS_MAX);
    let beside = locations.iter().flat_map(beside);
    let beside = beside.filter(|folder| !is_whole(folder)).collect();
    (locations.into_iter().collect(), beside)
}

/// Devices with which a process can implement a file system or a device, also in a user namespace. A
/// process that waits for a response of such an implementation cannot be killed.
const SERVED: [&str; 2] = ["/dev/fuse", "/dev/cuse"];

/// Mounts pseudo-terminals of its own over those of the host, of which all users of the machine have
/// kernel.pty.max together. `/dev/ptmx` uses what is mounted at `pts` beside it. Each plugin process mounts
/// others again (`shim.py`). Where it is not permitted, those of the host stay.
fn own_terminals(listed: &MountList) {
    for path in listed.terminals() {
        let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
        let _ = mount("none", path, "devpts", flags, Some(TERMINALS));
    }
}

/// As in `shim.py`.
const TERMINALS: &CStr = c"newinstance,ptmxmode=0666,mode=0620,max=64";

/// True for a file that appears empty to plugins when its path is read-only: a secret key or a SQLite
/// database.
pub(crate) fn is_hidden_file(path: &Path) -> bool {
    keys_in_use::is_secret(path) || database_files(path).is_some()
}

/// The folder of a SQLite database and the database's files in it; `None` for other files. It is not
/// enough that the database file is read-only. The WAL and the journal may be created later, and a
/// process that can read one of these files can lock it.
fn database_files(path: &Path) -> Option<(PathBuf, Vec<PathBuf>)> {
    let path = fs::canonicalize(path).ok().filter(|path| path.is_file())?;
    let mut magic = [0u8; 16];
    let mut file = fs::File::open(&path).ok()?;
    file.read_exact(&mut magic).ok()?;
    if magic != *b"SQLite format 3\0" {
        return None;
    }
    let folder = path.parent()?;
    let name = path.file_name()?.as_encoded_bytes();
    let entries = fs::read_dir(folder).ok()?.flatten();
    let files = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(name));
    let files = files.map(|entry| entry.path()).collect();
    Some((folder.to_owned(), files))
}

/// Mounts the null device over a file. The mount is read-only, so that mode and owner of the machine's
/// null device cannot be changed through it. Writing to a device works on a read-only mount.
fn cover(path: &Path) -> rustix::io::Result<()> {
    mount_bind(NULL, path)?;
    let found = statvfs(NULL)?.f_flag;
    let kept = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let kept = kept
        .into_iter()
        .filter(|(found_as, _)| found.contains(*found_as));
    let flags = kept.fold(MountFlags::empty(), |flags, (_, flag)| flags | flag);
    mount_remount(path, flags | MountFlags::BIND | MountFlags::RDONLY, "")
}

const NULL: &str = "/dev/null";

/// Mounts an empty file system over a folder, in which only the files and folders to keep are visible.
fn show_only(private: &Private, anchors: Option<Anchors>) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let mut kept = Vec::new();
    for path in &private.keep {
        kept.push((path, path.is_dir(), open_tree(CWD, path, flags)?));
    }
    let own = MountFlags::NOSUID | MountFlags::NODEV;
    mount(
        "none",
        &private.folder,
        "tmpfs",
        own,
        Some(c"mode=0711,size=64k"),
    )?;
    if let Some(anchors) = anchors {
        anchors.attach(&private.folder)?;
    }
    for (path, is_folder, tree) in kept {
        match is_folder {
            true => fs::create_dir_all(path)?,
            false => fs::write(path, "")?,
        }
        move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    let fixed = own | MountFlags::BIND | MountFlags::RDONLY;
    Ok(mount_remount(&private.folder, fixed, "")?)
}

/// Applies the second layer of [`super::Mode::On`] to this process, as `shim.py` does to plugin
/// processes. A fork server keeps the privileges that its children need for mounts of their own.
fn restrict(restricted: &Restricted) -> Result<(), String> {
    let Restricted { support, forks } = restricted;
    let mut kept = match rustix::process::geteuid().is_root() {
        true => ROOT_KEEPS,
        false => CapabilitySet::empty(),
    };
    let makes_mounts = *forks && support.no_namespaces.is_none();
    if makes_mounts {
        kept |= CapabilitySet::SYS_ADMIN;
    }
    // Needed to kill processes that jobs and tools leave behind as other users. It applies only to
    // processes in its user namespace, or in its ruleset.
    if rustix::process::geteuid().is_root() && (makes_mounts || support.scopes_signals()) {
        kept |= CapabilitySet::KILL;
    }
    capabilities(None)
        .and_then(|mut sets| {
            sets.effective &= kept;
            sets.permitted &= kept;
            sets.inheritable = if makes_mounts {
                kept
            } else {
                sets.inheritable & kept
            };
            set_capabilities(None, sets)
        })
        .and_then(|()| match makes_mounts {
            true => configure_capability_in_ambient_set(CapabilitySet::SYS_ADMIN, true),
            false => Ok(()),
        })
        .map_err(|error| format!("capabilities: {error}"))?;
    set_no_new_privs(true).map_err(|error| format!("no_new_privs: {error}"))?;
    // In a ruleset for files the kernel refuses mounts.
    if !makes_mounts || support.scopes_signals() {
        rules::restrict(support.landlock).map_err(|error| format!("Landlock: {error}"))?;
    }
    let kind = match forks {
        true => calls::Kind::Fork,
        false => calls::Kind::On,
    };
    match support.no_seccomp {
        Some(_) => Ok(()),
        None => calls::try_seccomp(kind).map_err(|error| format!("seccomp: {error}")),
    }
}

/// The same capabilities as `ROOT_KEEPS` in `shim.py`.
const ROOT_KEEPS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::SETFCAP);

fn unshare_mounts() -> io::Result<()> {
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    // Objects in the System V IPC of the host would persist when their process has ended.
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    if user.is_root() && unshare(own).is_ok() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER | own)?;
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{0} {0} 1", user.as_raw())),
        ("gid_map", format!("{0} {0} 1", group.as_raw())),
    ];
    for (name, text) in maps {
        fs::write(format!("/proc/self/{name}"), text)?;
    }
    // Plugin processes need this capability, so it must survive exec.
    let mut sets = capabilities(None)?;
    sets.inheritable = CapabilitySet::SYS_ADMIN;
    set_capabilities(None, sets)?;
    configure_capability_in_ambient_set(CapabilitySet::SYS_ADMIN, true)?;
    Ok(())
}

/// Makes a path and all mounts below it read-only, except for mounts in the `spared` folders. The error names
/// the mount.
fn read_only(path: &Path, spared: &[PathBuf]) -> Result<(), String> {
    if !path.exists() {
        return Ok(());
    }
    let failed = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
    let path = fs::canonicalize(path).map_err(|error| failed(path, error))?;
    mount_bind_recursive(&path, &path).map_err(|error| failed(&path, error.into()))?;
    let listed = list().map_err(|error| failed(Path::new(MOUNTS), error))?;
    // A path inside a spared folder was named explicitly, so it becomes read-only.
    let spared = spared.iter().filter(|spared| !path.starts_with(spared));
    let spared: Vec<_> = spared.collect();
    let is_spared = |location: &Path| spared.iter().any(|spared| location.starts_with(spared));
    for mount in listed.below(&path) {
        let location = &mount.mount_point;
        if is_spared(location) {
            continue;
        }
        let flags = mount.flags | MountFlags::BIND | MountFlags::RDONLY;
        match mount_remount(location, flags, "") {
            Err(Errno::NOENT) if !is_listed(mount.id) => {}
            Err(Errno::ACCESS) if !may_ever_reach(location) => {}
            done => done.map_err(|error| {
                format!(
                    "the mount at {} cannot be made read-only: {error}",
                    location.display()
                )
            })?,
        }
    }
    Ok(())
}

/// True if a mount still exists. It ends when another program removes its mount point.
fn is_listed(id: u32) -> bool {
    list().is_ok_and(|listed| listed.iter().any(|mount| mount.id == id))
}

/// False if a folder above a path refuses access to this process's user, and this user cannot change that.
fn may_ever_reach(path: &Path) -> bool {
    let is_refused = |path: &Path| {
        let found = fs::symlink_metadata(path);
        found.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    let refused = path.ancestors().filter(|path| is_refused(path)).last();
    let folder = refused
        .and_then(Path::parent)
        .and_then(|folder| fs::metadata(folder).ok());
    folder.is_none_or(|folder| folder.uid() == rustix::process::getuid().as_raw())
}

fn list() -> io::Result<MountList> {
    Ok(MountList::parse(&fs::read(MOUNTS)?))
}

const MOUNTS: &str = "/proc/self/mountinfo";
