//! Plugin processes: environments, fork servers, bridge frames.
//!
//! - [`script`]: what a plugin's source requires of its environment (PEP 723, or its folder's
//!   `pyproject.toml`).
//! - [`project`]: the `pyproject.toml` of a plugin's folder.
//! - [`folder`]: a folder as one source text, which `folder.py` unpacks.
//! - [`request`]: what an environment is to contain, with `[tool.uv]` or from a requirements file.
//! - [`resolve`]: the lockfile of a request, with exact versions and hashes.
//! - [`environment`]: `~/.casparian_flow/venvs/<hash>`, created by uv. Functions there and in [`resolve`]
//!   block.
//! - [`syntax`]: checks by an interpreter that a source is valid Python.
//! - [`process`] and [`fork_server`]: a plugin process, which a fork server forks. The program that runs in it is
//!   `outputs.py`, `values.py`, `tasks.py`, `work.py`, `daemons.py`, `folder.py` and `shim.py`.
//! - [`programs`]: which programs run with more rights than plugins have.
//! - [`bridge`]: frames from the plugin process's Unix socket, decoded to Arrow record batches.
//!
//! Plugin processes are treated as hostile. Each has its own process group, which is killed as a whole, a
//! scrubbed environment and a private working directory. Its bytes are checked before they are used. Buffers
//! grow with bytes received, never with a declared length.
//!
//! This module does not decide about jobs (see `crate::worker`) and does not write output.

pub mod bridge;
pub mod cache;
mod direct;
pub mod environment;
mod error;
pub mod folder;
mod folders;
pub mod fork_server;
mod frame_head;
mod home;
mod installation;
mod local;
mod lock;
pub mod metadata;
mod operator;
pub mod process;
pub mod programs;
pub mod project;
mod python;
pub mod quota;
pub mod request;
mod requirements;
pub mod resolve;
pub mod script;
mod signs;
pub mod source;
pub mod strays;
pub mod syntax;
mod tool;
mod uses;
mod uv;
pub mod uv_folders;

use std::ffi::OsString;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::job::Parameters;

pub use uv::{find_or_install as uv, lock_file as uv_lock_file};

/// Prefix of a failure's text when the shim found the fault in the input, before the plugin ran.
pub const INPUT_MARK: &str = "input: ";

/// Prefix of a failure's text when the environment lacks what the shim itself needs.
pub const ENVIRONMENT_MARK: &str = "environment: ";

/// Source of the plugin process's program. The environment's interpreter runs it.
pub const SHIM: &str = concat!(
    include_str!("outputs.py"),
    "\n\n",
    include_str!("values.py"),
    "\n\n",
    include_str!("tasks.py"),
    "\n\n",
    include_str!("work.py"),
    "\n\n",
    include_str!("daemons.py"),
    "\n\n",
    include_str!("folder.py"),
    "\n\n",
    include_str!("shim.py")
);

/// A job as its plugin process sees it.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// ID of the job.
    pub job_id: u64,
    /// ID of the input's file version.
    pub file_version_id: i64,
    /// Name of the plugin, for tracebacks.
    pub plugin_name: &'a str,
    /// Path of the input.
    pub file_path: &'a str,
    /// The plugin's source.
    pub source: &'a source::Source,
    /// Parameters of the job.
    pub parameters: &'a Parameters,
    /// The program that runs the plugin instead of [`SHIM`].
    pub shim: Option<&'a Path>,
    /// The interpreter that the plugin process executes (exec) once it is restricted. None when the forked
    /// process itself runs the plugin.
    pub interpreter: Option<&'a Path>,
    /// How it is restricted; none = not restricted.
    pub sandbox: Option<Sandbox<'a>>,
    /// Limit of open files of each of its processes; 0 = no limit of its own.
    pub open_files: u64,
    /// Path of the socket on which the worker listens.
    pub socket_path: &'a Path,
    /// The plugin process's private directory; also its HOME and TMPDIR.
    pub work_dir: &'a Path,
}

/// The second layer of [`crate::sandbox`], as a plugin process applies it to itself.
#[derive(Clone, Copy, Debug)]
pub struct Sandbox<'a> {
    /// The folder in which it sees only the paths in `keep`; none without a mount namespace.
    pub hide: Option<&'a Path>,
    /// The paths in `hide` that it sees.
    pub keep: &'a [&'a Path],
    /// A socket that it cannot connect to; none without a mount namespace.
    pub cover: Option<&'a Path>,
    /// With a mount namespace: all file systems are read-only except its private directory.
    pub is_strict: bool,
    /// True when it, as root, may signal its descendants that run as other users. Its ruleset or its user
    /// namespace then prevents signals to all other processes.
    pub kills: bool,
    /// The Landlock ruleset that it applies.
    pub ruleset: Option<BorrowedFd<'a>>,
    /// A file that contains its seccomp filter.
    pub seccomp: Option<BorrowedFd<'a>>,
}

/// How a plugin process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, when it exited.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Largest resident size that it had, in bytes; 0 = unknown.
    pub rss_max_bytes: u64,
}

impl Exit {
    /// Exit code 0.
    pub fn is_clean(&self) -> bool {
        self.code == Some(0)
    }

    /// An end whose exit code and signal are unknown.
    pub const UNKNOWN: Exit = Exit {
        code: None,
        signal: None,
        rss_max_bytes: 0,
    };
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.signal {
            Some(4) => " (SIGILL)",
            Some(6) => " (SIGABRT)",
            Some(7) => " (SIGBUS)",
            Some(9) => " (SIGKILL)",
            Some(11) => " (SIGSEGV)",
            Some(15) => " (SIGTERM)",
            _ => "",
        };
        match (self.signal, self.code) {
            (Some(signal), _) => write!(f, "signal {signal}{name}"),
            (None, Some(code)) => write!(f, "exit code {code}"),
            (None, None) => f.write_str("an unknown status"),
        }
    }
}

/// The variables of a plugin process that come from its job. [`SHIM`] gets the source by a descriptor, not by
/// a variable.
fn variables(job: &Job<'_>) -> Vec<(&'static str, OsString)> {
    let path = |path: &Path| path.as_os_str().to_owned();
    let mut variables = vec![
        ("BRIDGE_SOCKET", path(job.socket_path)),
        ("BRIDGE_FILE_PATH", job.file_path.into()),
        ("BRIDGE_JOB_ID", job.job_id.to_string().into()),
        (
            "BRIDGE_FILE_VERSION_ID",
            job.file_version_id.to_string().into(),
        ),
        ("CASPARIAN_PLUGIN_NAME", job.plugin_name.into()),
        ("HOME", path(job.work_dir)),
        ("TMPDIR", path(job.work_dir)),
        ("PYTHONDONTWRITEBYTECODE", "1".into()),
        ("PYTHONIOENCODING", "utf-8:backslashreplace".into()),
    ];
    if !job.parameters.is_empty() {
        variables.push(("CASPARIAN_PARAMETERS", job.parameters.to_json().into()));
    }
    variables
}

/// The source as a variable, for shims of the reference system. execve refuses an argument or variable of
/// more than 128 KiB, so there is no variable for a longer source.
fn code_variable(source_code: &str) -> Option<String> {
    use base64::Engine as _;
    let code = base64::engine::general_purpose::STANDARD.encode(source_code);
    (code.len() <= CODE_VARIABLE_SIZE_MAX).then_some(code)
}

const CODE_VARIABLE_SIZE_MAX: usize = 120 << 10;

/// The variables that interpreters and tools get from the worker's own environment: locale, time zone and
/// PATH, no secrets. Values need not be UTF-8. PATH has only its absolute folders.
fn kept_variables() -> impl Iterator<Item = (OsString, OsString)> {
    let kept = std::env::vars_os().filter(|(name, _)| {
        let name = name.to_str();
        name.is_some_and(|name| ["LANG", "TZ"].contains(&name) || name.starts_with("LC_"))
    });
    kept.chain(programs::path_of_plugins().map(|path| ("PATH".into(), path)))
}

/// Writes the plugin's source to the file where a shim other than [`SHIM`] reads it. Code of the job's
/// environment may already have created links there, so links are not followed.
fn write_plugin(job: &Job<'_>) -> std::io::Result<std::path::PathBuf> {
    use rustix::fs::{Mode, OFlags, open, openat};
    let own = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let folder = open(job.work_dir, own | OFlags::DIRECTORY, Mode::empty())?;
    let fresh = own | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let file = openat(&folder, "plugin.py", fresh, Mode::RUSR | Mode::WUSR)?;
    let source = job.source.plugin().source_code.as_bytes();
    std::io::Write::write_all(&mut std::fs::File::from(file), source)?;
    Ok(job.work_dir.join("plugin.py"))
}
