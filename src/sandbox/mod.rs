//! The restrictions of plugin processes: what they may do besides reading input and producing output.
//!
//! There are two layers.
//!
//! The first layer is applied to a fork server. [`launch`] enters a new mount namespace. There the output
//! root, the environments and the shim are read-only, and key files are hidden. Then it runs the
//! interpreter.
//!
//! The second layer is applied by each plugin process itself, in `shim.py`, before the plugin's code
//! runs. It hides the folders of other jobs and drops the capabilities that the first layer needed. Then
//! it applies a Landlock ruleset ([`rules`]) and a seccomp filter ([`calls`]), which all descendants
//! inherit.
//!
//! A fork server of [`Mode::On`] already runs code of its environment: what Python runs at startup, and
//! preloaded modules. So its first layer also has the restrictions of the second layer, except for those
//! that would prevent what its children need. It is in a user namespace of its own (`nest`), where
//! existing mounts cannot be undone. Of the worker's folder it sees only the part for its environment.
//!
//! In two cases a fork server must not run code of its environment: when its children have the stricter
//! second layer of [`Mode::Strict`], and when there is no such user namespace. Then it runs the Python
//! that the environment is based on, without the environment's packages. Its children become the
//! environment's interpreter in the second layer.
//!
//! In [`Mode::On`] a plugin may read files, write files and use the network as its user may. It may not
//! write to the paths named above. It may not signal, trace or read the memory of processes other than
//! its descendants. In [`Mode::Strict`] it may write only to its working directory, read only its input,
//! its environment and the system's files, and not use the network.

mod aliases;
pub mod calls;
pub mod launch;
mod mount_list;
mod nest;
mod pins;
pub mod rules;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How far plugin processes are restricted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// No restrictions.
    Off,
    /// Only operations are refused that plugins written without a sandbox never need.
    #[default]
    On,
    /// Only what a plugin needs to convert its input to output is allowed.
    Strict,
}

impl Mode {
    /// The mode's name.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::On => "on",
            Mode::Strict => "strict",
        }
    }
}

/// Which sandbox features the kernel offers this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Support {
    /// Why a mount namespace cannot be created; `None` when it can.
    pub no_namespaces: Option<String>,
    /// Why a user namespace cannot be created inside the mount namespace; `None` when it can.
    pub no_nesting: Option<String>,
    /// Version of the Landlock ABI; 0 = no Landlock.
    pub landlock: u32,
    /// Why seccomp filters cannot be used; `None` when they can.
    pub no_seccomp: Option<String>,
}

impl Support {
    /// Support for nothing, with one reason for all features.
    pub fn none(reason: &str) -> Self {
        Support {
            no_namespaces: Some(reason.to_owned()),
            no_nesting: Some(reason.to_owned()),
            landlock: 0,
            no_seccomp: Some(reason.to_owned()),
        }
    }

    /// Why [`Mode::Strict`] is not available; `None` when it is. It needs Landlock's rules for files and
    /// TCP (ABI version 4, Linux 6.7) and seccomp.
    pub fn strict_lacks(&self) -> Option<String> {
        match (&self.no_seccomp, self.landlock) {
            (Some(reason), _) => Some(format!("seccomp: {reason}")),
            (None, 0) => Some("Landlock is not there".to_owned()),
            (None, version) if version < LANDLOCK_STRICT => Some(format!(
                "Landlock has version {version} here, and {LANDLOCK_STRICT} is needed (Linux 6.7)"
            )),
            (None, _) => None,
        }
    }

    /// True when a Landlock ruleset can prevent plugins from signalling other processes.
    pub fn scopes_signals(&self) -> bool {
        self.landlock >= LANDLOCK_SIGNALS
    }

    /// The missing parts of [`Mode::On`], one line each.
    pub fn lacks(&self) -> Vec<String> {
        let mut lacks = Vec::new();
        if let Some(reason) = &self.no_namespaces {
            lacks.push(format!(
                "no mount namespace ({reason}): plugins can change the output folder, environments and other jobs' folders, and leave shared memory behind; in mode strict they cannot change the mode, owner or times of any file, nor use shared memory"
            ));
        }
        if let (None, Some(reason)) = (&self.no_namespaces, &self.no_nesting) {
            lacks.push(format!(
                "no user namespace within it ({reason}): each job starts an interpreter of its own"
            ));
        }
        match self.landlock {
            0 => lacks.push(
                "no Landlock: plugins can signal processes of their user, and read their memory"
                    .to_owned(),
            ),
            version if !self.scopes_signals() => lacks.push(format!(
                "Landlock version {version} (before Linux 6.12): plugins can signal processes of their user"
            )),
            _ => {}
        }
        if let Some(reason) = &self.no_seccomp {
            lacks.push(format!("no seccomp ({reason}): no system call is refused"));
        }
        lacks
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = |reason: &Option<String>| if reason.is_none() { "yes" } else { "no" };
        write!(
            f,
            "mount namespace {}, Landlock {}, seccomp {}",
            has(&self.no_namespaces),
            self.landlock,
            has(&self.no_seccomp)
        )
    }
}

/// First Landlock ABI version with a scope for signals (Linux 6.12).
const LANDLOCK_SIGNALS: u32 = 6;
/// First Landlock ABI version with rules for TCP (Linux 6.7).
const LANDLOCK_STRICT: u32 = 4;

/// The mounts of the first layer, which [`launch`] creates before it runs the interpreter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounts {
    /// The launcher enters namespaces. Without them no mount is created.
    pub namespaces: bool,
    /// Files and folders that are read-only, with all mounts below them. Of a SQLite database also the
    /// folder is read-only, and its files are hidden.
    #[serde(with = "crate::job::text::paths")]
    pub read_only: Vec<PathBuf>,
    /// Folders that are read-only with the files and links directly in them: no entry can be added,
    /// renamed or removed. Their subfolders keep their access rights.
    #[serde(
        default,
        with = "crate::job::text::paths",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub entries: Vec<PathBuf>,
    /// Folders inside those of `read_only` and `entries` that stay writable.
    #[serde(with = "crate::job::text::paths")]
    pub writable: Vec<PathBuf>,
    /// The kernel's own file systems are read-only wherever they are mounted, except for `/proc`.
    #[serde(default)]
    pub kernel: bool,
    /// Files and folders that appear empty.
    #[serde(with = "crate::job::text::paths")]
    pub hidden: Vec<PathBuf>,
    /// Further paths of the files and folders above. The folders and links in all of these paths cannot
    /// be renamed or removed.
    #[serde(with = "crate::job::text::paths")]
    pub named: Vec<PathBuf>,
    /// Folders that are read-only like those of `read_only`, without the rules for databases. The folders
    /// in their paths are protected by `anchored` only.
    #[serde(
        default,
        with = "crate::job::text::paths",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub fixed: Vec<PathBuf>,
    /// Folders that cannot be renamed or removed, nor the folders in their paths. Hard links between
    /// their content and other folders can still be created. Used only together with `private`.
    #[serde(
        default,
        with = "crate::job::text::paths",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub anchored: Vec<PathBuf>,
    /// Folders of which only some files and subfolders are visible.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private: Vec<Private>,
    /// How the launcher restricts the program, when the program does not restrict itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restricted: Option<Restricted>,
}

/// The subfolders of a folder, without symbolic links to folders.
pub(crate) fn folders_in(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path())
}

/// See [`Mounts::private`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// The folder.
    #[serde(with = "crate::job::text::path")]
    pub folder: PathBuf,
    /// The files and folders below it that stay visible.
    #[serde(with = "crate::job::text::paths")]
    pub keep: Vec<PathBuf>,
}

/// The second layer of [`Mode::On`] for a program, as far as the kernel offers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restricted {
    /// What the kernel offers.
    pub support: Support,
    /// The program is a fork server, whose children create mounts of their own.
    pub forks: bool,
}
