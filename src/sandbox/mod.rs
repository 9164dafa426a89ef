//! What plugin processes may do beside reading their input and giving their output.
//!
//! Two layers. The first is around a fork server: [`launch`] puts it into a mount namespace of its own,
//! where the output root, the environments and the shim are read-only and keys are hidden, and runs the
//! interpreter there. The second is each plugin process's own, applied by `shim.py` before the plugin's
//! code: the folders of other jobs are hidden, the capabilities that the first layer needed are given
//! up, and a Landlock ruleset ([`rules`]) and a seccomp filter ([`calls`]) hold for all that the process starts.
//!
//! A fork server of [`Mode::On`] runs code of its environment already: what Python runs at its start, and
//! preloads. So its first layer holds it as the second one would, but for what its children need: it is
//! in a user namespace of its own (`nest`), whose mounts cannot be undone there, and sees of the worker's
//! folder the part of its environment alone. One that may not run such code, because the second layer of its
//! children is closer ([`Mode::Strict`]) or because there is no such namespace, is the Python that the environment was
//! made from, without the environment's packages; its children become the environment's interpreter in the second layer.
//!
//! [`Mode::On`] takes nothing away from a plugin that reads, writes and talks to the network as its user
//! may, but for writing to what is named above, and for signalling, tracing or reading the memory of
//! processes other than those it has started. [`Mode::Strict`] lets it write to its working directory
//! alone, read its input, its environment and the system's files, and use no network.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod aliases;
pub mod calls;
pub mod launch;
mod nest;
mod pins;
pub mod rules;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// How closely plugin processes are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Not at all.
    Off,
    /// What plugins that were written without a sandbox never do is refused.
    #[default]
    On,
    /// Only what a plugin needs to turn its input into output is allowed.
    Strict,
}

impl Mode {
    /// By its name on the command line and in `[tool.casparian]`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "off" => Some(Mode::Off),
            "on" => Some(Mode::On),
            "strict" => Some(Mode::Strict),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::On => "on",
            Mode::Strict => "strict",
        }
    }
}

/// What the kernel offers this process for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Support {
    /// Why there is no mount namespace; none when there is.
    pub no_namespaces: Option<String>,
    /// Why there is no user namespace within it; none when there is.
    pub no_nesting: Option<String>,
    /// Version of Landlock's interface; 0 = none.
    pub landlock: u32,
    /// Why there are no seccomp filters; none when there are.
    pub no_seccomp: Option<String>,
}

impl Support {
    /// Nothing, for that reason.
    pub fn none(reason: &str) -> Self {
        Support {
            no_namespaces: Some(reason.to_owned()),
            no_nesting: Some(reason.to_owned()),
            landlock: 0,
            no_seccomp: Some(reason.to_owned()),
        }
    }

    /// Why [`Mode::Strict`] cannot be had; none when it can. It needs Landlock's rules for files and TCP
    /// (version 4, Linux 6.7) and seccomp.
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

    /// True when a ruleset keeps plugins from signalling other processes.
    pub fn scopes_signals(&self) -> bool {
        self.landlock >= LANDLOCK_SIGNALS
    }

    /// What of [`Mode::On`] cannot be had, a line each.
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

/// Landlock's version that scopes signals (Linux 6.12).
const LANDLOCK_SIGNALS: u32 = 6;
/// Landlock's version with rules for TCP (Linux 6.7).
const LANDLOCK_STRICT: u32 = 4;

/// The first layer: what [`launch`] does before it runs the interpreter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounts {
    /// It enters namespaces at all.
    pub namespaces: bool,
    /// Files and folders that can be read and not changed, with all that is mounted below. A SQLite database is
    /// found empty, and its folder cannot be changed.
    #[serde(with = "crate::job::text::paths")]
    pub read_only: Vec<PathBuf>,
    /// Folders whose own files and links can be read and not changed, and in which nothing can be added or renamed. What is in
    /// the folders there stays as it is.
    #[serde(
        default,
        with = "crate::job::text::paths",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub entries: Vec<PathBuf>,
    /// Folders that stay as they are where they lie in one of these.
    #[serde(with = "crate::job::text::paths")]
    pub writable: Vec<PathBuf>,
    /// Files and folders that are found empty.
    #[serde(with = "crate::job::text::paths")]
    pub hidden: Vec<PathBuf>,
    /// Other names of these. The folders and links on the way to all of them cannot be renamed or removed.
    #[serde(with = "crate::job::text::paths")]
    pub named: Vec<PathBuf>,
    /// Folders that can be read and not changed, as `read_only`, but that are no databases, and to which ways are as
    /// `anchored` says.
    #[serde(
        default,
        with = "crate::job::text::paths",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub fixed: Vec<PathBuf>,
    /// Folders that cannot be renamed or removed, nor those on the way to them, while hard links between what is in
    /// them and elsewhere can be made. They count where a folder is `private`.
    #[serde(
        default,
        with = "crate::job::text::paths",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub anchored: Vec<PathBuf>,
    /// Folders of which only some folders and files are found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub private: Vec<Private>,
    /// How the program itself is held, when it does not hold itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restricted: Option<Restricted>,
}

/// The folders in a folder; links to some are none.
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
    /// What is found below it.
    #[serde(with = "crate::job::text::paths")]
    pub keep: Vec<PathBuf>,
}

/// A program that is put into the second layer of [`Mode::On`], as far as the kernel offers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restricted {
    /// What the kernel offers.
    pub support: Support,
    /// It is a fork server, whose children make mounts of their own.
    pub forks: bool,
}
