//! Plugin processes: environments, warm interpreters, bridge frames.
//!
//! - [`script`]: what a plugin's source says of its environment (PEP 723, or its folder's `pyproject.toml`).
//! - [`project`]: the `pyproject.toml` of a folder.
//! - [`folder`]: a folder as one source text, which `folder.py` unpacks.
//! - [`request`]: what an environment is to contain, with `[tool.uv]` or from a requirements file.
//! - [`resolve`]: the lockfile of a request, with exact versions and hashes.
//! - [`environment`]: `~/.casparian_flow/venvs/<hash>`, made by uv. It and [`resolve`] block.
//! - [`syntax`]: whether a source is Python, as an interpreter sees it.
//! - [`process`] and [`warm`]: a plugin process, started fresh or forked from a warm
//!   interpreter; `outputs.py`, `values.py`, `work.py`, `daemons.py`, `folder.py` and `shim.py` are the program that runs in it.
//! - [`programs`]: which programs are run with more rights than plugins have.
//! - [`bridge`]: frames from the plugin process's Unix socket → Arrow record batches.
//!
//! Plugin processes are hostile until proven otherwise: each has its own process group, which is killed
//! whole, a scrubbed environment and a private working directory; its bytes are checked before
//! they are believed, and no length it declares is reserved before the bytes arrive.
//!
//! What it does not do: it decides nothing about jobs (see `crate::worker`) and writes no
//! output.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

pub mod bridge;
pub mod cache;
mod direct;
pub mod environment;
pub mod folder;
mod folders;
mod frame_head;
mod home;
mod installation;
mod local;
mod lock;
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
pub mod source;
pub mod strays;
pub mod syntax;
mod tool;
mod uv;
pub mod uv_folders;
pub mod warm;

use std::ffi::OsString;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::job::Parameters;

pub use uv::{find_or_install as uv, lock_file as uv_lock_file};

/// How the text of a failure begins that the shim found in the input, before the plugin ran.
pub const INPUT_MARK: &str = "input: ";

/// How the text of a failure begins when the environment lacks what the shim itself needs.
pub const ENVIRONMENT_MARK: &str = "environment: ";

/// The plugin process's program; written to a private file, run by the environment's interpreter.
pub const SHIM: &str = concat!(
    include_str!("outputs.py"),
    "\n\n",
    include_str!("values.py"),
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
    /// The job.
    pub job_id: u64,
    /// The input's version.
    pub file_version_id: i64,
    /// For tracebacks.
    pub plugin_name: &'a str,
    /// The input.
    pub file_path: &'a str,
    /// The plugin's source.
    pub source: &'a source::Source,
    /// What it is configured with.
    pub parameters: &'a Parameters,
    /// The program that runs the plugin, instead of our own shim.
    pub shim: Option<&'a Path>,
    /// The interpreter that its process becomes once it is restricted; none when it runs the plugin as it is
    /// forked.
    pub interpreter: Option<&'a Path>,
    /// What it may do; none = all that its user may.
    pub sandbox: Option<Sandbox<'a>>,
    /// Files that each of its processes may open; 0 = no limit of its own.
    pub open_files: u64,
    /// Where the worker listens.
    pub socket_path: &'a Path,
    /// The plugin process's private directory; also its HOME and TMPDIR.
    pub work_dir: &'a Path,
}

/// The second layer of [`crate::sandbox`], as a plugin process applies it to itself.
#[derive(Clone, Copy, Debug)]
pub struct Sandbox<'a> {
    /// The folder of which it sees its own paths alone; none without a mount namespace.
    pub hide: Option<&'a Path>,
    /// Its own paths there.
    pub keep: &'a [&'a Path],
    /// A socket that it cannot connect to; none without a mount namespace.
    pub cover: Option<&'a Path>,
    /// With that namespace, all file systems are read-only but for its private directory.
    pub is_strict: bool,
    /// As root it may signal its descendants of other users: its ruleset or its user namespace lets it signal
    /// no others.
    pub kills: bool,
    /// A Landlock ruleset.
    pub ruleset: Option<BorrowedFd<'a>>,
    /// A file with a seccomp filter.
    pub seccomp: Option<BorrowedFd<'a>>,
}

/// How a plugin process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, when it exited.
    pub code: Option<i32>,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Most memory it ever had, in bytes; 0 = not known.
    pub rss_max_bytes: u64,
}

impl Exit {
    /// Exit code 0.
    pub fn is_clean(&self) -> bool {
        self.code == Some(0)
    }

    /// An end of which nothing is known.
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

/// The variables of a plugin process that come from its job. The source reaches our own shim by a
/// descriptor.
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

/// The source as a variable, for shims of the old system. An argument or variable of more than
/// 128 KiB is refused by execve, so a longer one has none.
fn code_variable(source_code: &str) -> Option<String> {
    use base64::Engine as _;
    let code = base64::engine::general_purpose::STANDARD.encode(source_code);
    (code.len() <= CODE_VARIABLE_SIZE_MAX).then_some(code)
}

const CODE_VARIABLE_SIZE_MAX: usize = 120 << 10;

/// The variables that interpreters and tools get of the worker's own: what a program needs to find its
/// way, and no secrets. Values need not be UTF-8; PATH has its absolute folders alone.
fn kept_variables() -> impl Iterator<Item = (OsString, OsString)> {
    let kept = std::env::vars_os().filter(|(name, _)| {
        let name = name.to_str();
        name.is_some_and(|name| ["LANG", "TZ"].contains(&name) || name.starts_with("LC_"))
    });
    kept.chain(programs::path_of_plugins().map(|path| ("PATH".into(), path)))
}

/// Writes the plugin's source where another shim than our own reads it. Code of the job's environment can put
/// links there already.
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
