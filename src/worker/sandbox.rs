//! The sandbox of a worker's plugin processes: its settings, what the kernel supports, and what all of these
//! processes share.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::slot::Failure;
use crate::job::Cause;
use crate::keys_in_use;
use crate::limits;
use crate::plugin;
use crate::plugin::environment::{self, Environment};
use crate::plugin::programs;
use crate::plugin::source::Source;
use crate::plugin::uv_folders;
use crate::sandbox::{Mode, Mounts, Private, Restricted, Support, calls, launch, rules};

/// Sandbox settings of a worker.
#[derive(Clone, Debug)]
pub struct SandboxOptions {
    /// How plugin processes are restricted. Plugins may ask for a stricter mode.
    pub mode: Mode,
    /// A program whose `main` calls [`crate::sandbox::launch::main`] when its first argument is
    /// [`crate::sandbox::launch::ARGUMENT`].
    pub launcher: PathBuf,
    /// What the kernel supports for such a program.
    pub support: Support,
    /// Files that appear empty to plugins, such as secret keys.
    pub hidden: Vec<PathBuf>,
    /// Further files and folders that plugins cannot change.
    pub read_only: Vec<PathBuf>,
    /// Other paths of these files and folders. Plugins cannot change the links in these paths.
    pub named: Vec<PathBuf>,
}

impl SandboxOptions {
    /// The program that restricts tools which build environments, and its mounts. Writable for tools are uv's
    /// cache and Pythons ([`environment::Build`] decides for which tools) and the folder of environments. Of
    /// the scratch folders each tool sees only its own.
    pub(super) fn build(
        &self,
        output: &Path,
        home: PathBuf,
        hidden: &[&Path],
    ) -> io::Result<Option<(PathBuf, Mounts)>> {
        if self.mode == Mode::Off {
            return Ok(None);
        }
        // The folder must exist to be hidden.
        if let Err(error) = keys_in_use::prepare(&home) {
            match keys_in_use::folder(&home).symlink_metadata() {
                Ok(_) => return Err(error),
                Err(_) => log::warn!("{error}: the folder of environments cannot be written"),
            }
        }
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let read_only = [output.to_owned()].into_iter();
        let read_only = read_only.chain(self.read_only.iter().cloned());
        let programs = programs::kept().clone();
        let keys = keys_in_use::files(&home);
        let read_only = read_only.chain(programs.whole).chain(keys.lists);
        let read_only: Vec<_> = read_only.map(|path| absolute(&path)).collect();
        // Only folders inside read-only ones get mounts of their own. uv creates hard links to files of its
        // cache, which is not possible across mounts.
        let is_in = |path: &PathBuf| {
            let mut held = read_only.iter().chain(&programs.entries);
            held.any(|folder| path.starts_with(folder))
        };
        let writable = [home.clone()].into_iter().chain(uv_folders::all());
        // Created now, because a folder that is created later would be read-only.
        let writable = writable
            .filter(|path| fs::create_dir_all(path).is_ok() && is_in(path))
            .collect();
        let hidden = hidden.iter().map(|path| path.to_path_buf());
        // Environments are built in this folder, with hard links to files of uv's cache.
        let environments = environment::folder(&home);
        let mounts = Mounts {
            fixed: environment::FIXED.map(|name| home.join(name)).to_vec(),
            anchored: vec![environments],
            kernel: false,
            namespaces: self.support.no_namespaces.is_none(),
            writable,
            read_only,
            entries: programs.entries,
            hidden: hidden
                .chain(self.hidden.iter().cloned())
                .chain([output.join(".casparian")])
                .chain(keys.secret)
                // Build code can write to the rest of the home.
                .chain([keys_in_use::folder(&home)])
                .map(|path| absolute(&path))
                .collect(),
            named: self.named.iter().map(absolute).collect(),
            private: Vec::new(),
            restricted: Some(Restricted {
                support: self.support.clone(),
                forks: false,
            }),
        };
        Ok(Some((self.launcher.clone(), mounts)))
    }
}

/// The sandbox of a worker, see the module's documentation.
#[derive(Debug)]
pub(super) struct Sandbox {
    options: SandboxOptions,
    /// The sentinel's socket. Plugins cannot connect to it.
    control_socket: Option<PathBuf>,
    /// The ruleset of [`Mode::On`].
    ruleset: io::Result<Option<OwnedFd>>,
    filter: io::Result<OwnedFd>,
    strict_filter: io::Result<OwnedFd>,
    /// The secret keys and databases in folders of `--protect`, and when the folder had changed before they were
    /// found.
    in_folders: Mutex<HashMap<PathBuf, (SystemTime, Vec<PathBuf>)>>,
}

/// The restrictions of one job's process.
#[derive(Debug)]
pub(super) struct Layer {
    mode: Mode,
    /// The job's own ruleset, in mode `strict`.
    strict: Option<OwnedFd>,
}

/// What a process in mode `strict` may use.
pub(super) struct Reachable<'a> {
    pub(super) source: &'a Source,
    pub(super) input: &'a Path,
    pub(super) work_dir: &'a Path,
    pub(super) shims: [Option<&'a Path>; 2],
    pub(super) environment: &'a Environment,
}

impl Sandbox {
    pub(super) fn new(options: SandboxOptions, control_socket: Option<PathBuf>) -> Self {
        Sandbox {
            control_socket,
            ruleset: rules::on(options.support.landlock),
            filter: calls::filter_file(calls::Kind::On),
            strict_filter: calls::filter_file(match options.support.no_namespaces {
                None => calls::Kind::Strict,
                Some(_) => calls::Kind::StrictAlone,
            }),
            in_folders: Mutex::default(),
            options,
        }
    }

    /// The restrictions of a job's process. Fails if the kernel cannot enforce the mode.
    pub(super) fn layer(&self, reachable: &Reachable<'_>) -> Result<Layer, Failure> {
        let mode = match reachable.source.is_strict() {
            true => Mode::Strict,
            false => self.options.mode,
        };
        if mode != Mode::Strict {
            return Ok(Layer { mode, strict: None });
        }
        let refused = |reason: &dyn std::fmt::Display| {
            let message = format!("the sandbox \"strict\" cannot be had here: {reason}");
            Failure::new(Cause::Environment, message)
        };
        if let Some(reason) = self.options.support.strict_lacks() {
            return Err(refused(&reason));
        }
        let strict = strict_ruleset(reachable).map_err(|error| refused(&error))?;
        Ok(Layer { mode, strict })
    }

    /// Files and folders that plugins cannot use because of options of the worker.
    pub(super) fn named_files(&self) -> Vec<PathBuf> {
        let folders = self.options.read_only.iter();
        let inner = folders.flat_map(|path| self.hidden_in(path));
        let named = self.options.hidden.iter().chain(&self.options.read_only);
        inner.chain(named.cloned()).collect()
    }

    /// The secret keys and databases directly in a folder. It is read again after it has changed.
    fn hidden_in(&self, folder: &Path) -> Vec<PathBuf> {
        let changed = fs::metadata(folder).ok().filter(fs::Metadata::is_dir);
        let Some(changed) = changed.and_then(|found| found.modified().ok()) else {
            return Vec::new();
        };
        let mut known = self
            .in_folders
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((at, found)) = known.get(folder)
            && *at == changed
        {
            return found.clone();
        }
        let found = files_in(folder);
        // A later change may have the same time, while that is now.
        if changed
            .elapsed()
            .is_ok_and(|age| age >= limits::FILE_TIME_STEP)
        {
            known.insert(folder.to_owned(), (changed, found.clone()));
        }
        found
    }

    /// The restrictions that a process of the job applies to itself. None in mode `off`.
    pub(super) fn of_process<'a>(
        &'a self,
        layer: &'a Layer,
        folder: &'a Path,
        keep: &'a [&'a Path],
    ) -> Option<plugin::Sandbox<'a>> {
        if layer.mode == Mode::Off {
            return None;
        }
        let shared = self.ruleset.as_ref().ok().and_then(Option::as_ref);
        let filter = match layer.mode {
            Mode::Strict => &self.strict_filter,
            _ => &self.filter,
        };
        let has_seccomp = self.options.support.no_seccomp.is_none();
        let has_namespaces = self.options.support.no_namespaces.is_none();
        Some(plugin::Sandbox {
            hide: has_namespaces.then_some(folder),
            keep,
            cover: self.control_socket.as_deref().filter(|_| has_namespaces),
            is_strict: layer.mode == Mode::Strict,
            kills: self.options.support.scopes_signals()
                || has_namespaces && !self.is_isolated(layer),
            ruleset: layer.strict.as_ref().or(shared).map(AsFd::as_fd),
            seccomp: filter
                .as_ref()
                .ok()
                .filter(|_| has_seccomp)
                .map(AsFd::as_fd),
        })
    }

    /// Text for the receipt: how a process of the job is restricted.
    pub(super) fn described(&self, layer: &Layer, applied: Option<&plugin::Sandbox<'_>>) -> String {
        let Some(applied) = applied else {
            return Mode::Off.name().to_owned();
        };
        let has_rules = applied.ruleset.is_some();
        let has_scopes = self.options.support.scopes_signals();
        let parts = [
            ("namespaces", applied.hide.is_some()),
            ("Landlock", has_rules),
            ("signal scopes", has_scopes || !has_rules),
            ("seccomp", applied.seccomp.is_some()),
        ];
        let missing = parts.iter().filter(|(_, is_there)| !is_there);
        let missing: Vec<&str> = missing.map(|(name, _)| *name).collect();
        match missing.is_empty() {
            true => layer.mode.name().to_owned(),
            false => format!("{} without {}", layer.mode.name(), missing.join(", ")),
        }
    }

    /// True if a job's process must not be forked from a process that has run code of its environment.
    pub(super) fn is_isolated(&self, layer: &Layer) -> bool {
        let support = &self.options.support;
        let can_nest = support.no_namespaces.is_some() || support.no_nesting.is_none();
        match layer.mode {
            Mode::Off => false,
            Mode::On => !can_nest,
            Mode::Strict => true,
        }
    }

    /// True if a fork server has a mount namespace of its own. `is_isolated`: see [`ForkServer`].
    pub(super) fn has_own_mounts(&self, is_isolated: bool) -> bool {
        let is_restricted = is_isolated || self.options.mode != Mode::Off;
        is_restricted && self.options.support.no_namespaces.is_none()
    }

    /// The mounts of a fork server, and the launcher that creates them. None if the fork server is not
    /// restricted.
    pub(super) fn first_layer(&self, of: &ForkServer<'_>) -> Option<(&Path, Mounts)> {
        let support = &self.options.support;
        let has_namespaces = support.no_namespaces.is_none();
        // A fork server that runs code of its environment is restricted as its children are.
        let is_held = !of.is_isolated && self.options.mode != Mode::Off;
        if !is_held && !of.is_isolated {
            return None;
        }
        let restricted = is_held.then(|| Restricted {
            support: support.clone(),
            forks: true,
        });
        let own = (is_held && has_namespaces).then(|| Private {
            folder: of.folder.to_owned(),
            keep: vec![of.own_folder.to_owned(), of.shim.to_owned()],
        });
        let mut mounts = Mounts {
            namespaces: has_namespaces,
            writable: vec![of.folder.to_owned()],
            private: own.into_iter().collect(),
            restricted,
            ..Mounts::default()
        };
        if self.options.mode != Mode::Off {
            let ours = [of.output, of.home, of.shim].map(Path::to_owned);
            mounts.read_only = ours.into_iter().chain(uv_folders::all()).collect();
            let base = fs::canonicalize(&of.environment.interpreter);
            let base = base
                .map(|base| programs::of_base(&base))
                .unwrap_or_default();
            for programs in [programs::kept(), &base] {
                mounts.read_only.extend(programs.whole.iter().cloned());
                mounts.entries.extend(programs.entries.iter().cloned());
            }
            mounts.read_only.extend(kernel_files());
            mounts.kernel = true;
            mounts
                .read_only
                .extend(own_prefix(&of.environment.interpreter));
            mounts.read_only.extend(self.options.read_only.clone());
            // Secret keys and databases directly in a read-only folder are hidden, as those that are named
            // themselves.
            let folders = self.options.read_only.iter();
            mounts
                .read_only
                .extend(folders.flat_map(|path| self.hidden_in(path)));
            mounts.hidden = self.options.hidden.clone();
            let keys = keys_in_use::files(of.home);
            mounts.read_only.extend(keys.lists);
            mounts.hidden.extend(keys.secret);
            // A process that can read a file or folder can lock it. So the queue's files, uv's locks and
            // other environments are hidden.
            mounts.hidden.push(of.output.join(".casparian"));
            mounts.hidden.extend([plugin::uv_lock_file(of.home)]);
            mounts.hidden.extend(uv_folders::locks());
            let environments = environment::folder(of.home);
            let keep = prefixes(of.environment).into_iter();
            mounts.private.push(Private {
                keep: keep
                    .filter(|path| path.starts_with(&environments))
                    .collect(),
                folder: environments,
            });
            // Its children cover the socket again, because it may have been created anew by then.
            mounts.hidden.extend(self.control_socket.clone());
            mounts.named = self.options.named.clone();
            mounts.named.push(of.environment.interpreter.clone());
        }
        Some((&self.options.launcher, mounts))
    }
}

/// What the mounts of a fork server depend on.
pub(super) struct ForkServer<'a> {
    /// True if it runs no code of its environment.
    pub(super) is_isolated: bool,
    pub(super) output: &'a Path,
    pub(super) home: &'a Path,
    /// The folder with the private folders of all workers of the user.
    pub(super) folder: &'a Path,
    /// The folder of the environment's jobs inside it.
    pub(super) own_folder: &'a Path,
    pub(super) shim: &'a Path,
    pub(super) environment: &'a Environment,
}

/// The files directly in a folder that must be hidden. The number of entries is limited, because they are
/// read for each fork server.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let entries = entries.take(limits::PROTECTED_FILES_MAX);
    let is_file = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
    let files = entries.filter(is_file).map(|entry| entry.path());
    files.filter(|path| launch::is_hidden_file(path)).collect()
}

/// Files of the kernel by which the worker, the interpreter of its plugins and the machine can be changed.
fn kernel_files() -> Vec<PathBuf> {
    let worker = format!("/proc/{}", std::process::id());
    // `/proc/self` is resolved by the launcher, whose process becomes the interpreter.
    let names = [
        &worker,
        "/proc/self",
        "/proc/sys",
        "/proc/sysrq-trigger",
        "/sys",
    ];
    names.map(PathBuf::from).to_vec()
}

/// The folders of an environment and of the Python installation from which it was created.
fn prefixes(environment: &Environment) -> Vec<PathBuf> {
    let interpreter = &environment.interpreter;
    let base = fs::canonicalize(interpreter).ok();
    let both = [Some(interpreter), base.as_ref()];
    both.into_iter().flatten().filter_map(own_prefix).collect()
}

fn own_prefix(interpreter: impl AsRef<Path>) -> Option<PathBuf> {
    let prefix = interpreter.as_ref().parent()?.parent()?;
    (prefix != Path::new("/")).then(|| prefix.to_owned())
}

fn strict_ruleset(reachable: &Reachable<'_>) -> io::Result<Option<OwnedFd>> {
    let own = prefixes(reachable.environment);
    let mut readable: Vec<&Path> = SYSTEM.iter().map(Path::new).collect();
    readable.extend(own.iter().map(PathBuf::as_path));
    readable.extend(reachable.shims.iter().flatten());
    readable.push(reachable.input);
    let writable = [reachable.work_dir, Path::new("/dev/null")];
    rules::strict(rules::Reach {
        readable: &readable,
        writable: &writable,
    })
}

/// Files and folders of the system that interpreters and libraries read.
const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc",
    "/proc",
    "/sys",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];
