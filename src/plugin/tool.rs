//! Runs the tools that create environments. Everything here blocks, with a deadline.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use super::error::Error;
use super::folders::{Scratch, Step, sweep_killed};
use super::programs::check_path;
use super::{kept_variables, operator, programs, strays, uv_folders};
use crate::limits;
use crate::reactor::BootTime;
use crate::sandbox::{Mounts, launch};

/// Interval at which a tool or a lock is polled.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits for that time, or until it is cancelled.
pub fn sleep(wait: Duration, cancel: &AtomicBool) {
    let until = BootTime::now() + wait;
    while BootTime::now() < until && !cancel.load(Ordering::Relaxed) {
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// How environments are built.
#[derive(Clone, Debug, Default)]
pub struct Build {
    /// Dependencies are installed only from wheels, so none of their code runs.
    pub no_build: bool,
    /// The program that restricts the tools (see [`crate::sandbox::launch`]), and their mounts. None = tools
    /// may do what their user may. This process starts the launcher itself, not by a shell, so that
    /// `/proc/self/exe` is this program.
    pub launcher: Option<(PathBuf, Mounts)>,
    /// Folders in which uv installs Pythons. Only tools that run no code of dependencies may change them.
    pub pythons: Vec<PathBuf>,
}

impl Build {
    /// The restrictions of tools that may run code of dependencies.
    pub(super) fn untrusted_launcher(&self) -> Option<(&Path, Mounts)> {
        let (program, mounts) = self.launcher.as_ref()?;
        let mut mounts = mounts.clone();
        mounts.writable.retain(|path| !self.pythons.contains(path));
        mounts.read_only.extend(self.pythons.clone());
        Some((program, mounts))
    }

    /// The restrictions of tools that run no code of dependencies.
    fn trusted_launcher(&self) -> Option<(&Path, Mounts)> {
        let (program, mounts) = self.launcher.as_ref()?;
        Some((program, mounts.clone()))
    }
}

/// Runs the tools that build one environment, each in a folder of its own ([`Step`]).
pub(super) struct Tools<'a> {
    build: &'a Build,
    scratch: Scratch,
    cancel: &'a AtomicBool,
}

impl<'a> Tools<'a> {
    pub(super) fn new(
        home: &Path,
        build: &'a Build,
        cancel: &'a AtomicBool,
    ) -> Result<Self, Error> {
        check_path()?;
        sweep_killed(home);
        Ok(Tools {
            build,
            scratch: Scratch::new(home)?,
            cancel,
        })
    }

    /// True if dependencies are installed only from wheels.
    pub(super) fn no_build(&self) -> bool {
        self.build.no_build
    }

    /// Creates the folder of one tool. It has no files of earlier tools. It is removed at the end.
    pub(super) fn step(&self) -> Result<Step, Error> {
        self.scratch.step()
    }

    /// Runs a tool in its step. The tool may run code of dependencies.
    pub(super) fn run(&self, step: &Step, command: &Command, what: &str) -> Result<(), Error> {
        self.ask(step, command, what).map(|_| ())
    }

    /// Runs a tool that runs no code of dependencies. It may install Pythons.
    pub(super) fn run_trusted(
        &self,
        step: &Step,
        command: &Command,
        what: &str,
    ) -> Result<(), Error> {
        let limit = limits::PROVISION_TIMEOUT;
        let launcher = self.build.trusted_launcher();
        self.contained(step, command, launcher, what, limit)
            .map(|_| ())
    }

    /// Runs a tool in its step, and returns its last lines of output.
    pub(super) fn ask(&self, step: &Step, command: &Command, what: &str) -> Result<String, Error> {
        self.ask_within(step, command, what, limits::PROVISION_TIMEOUT)
    }

    /// As [`Tools::ask`], with another time limit.
    pub(super) fn ask_within(
        &self,
        step: &Step,
        command: &Command,
        what: &str,
        limit: Duration,
    ) -> Result<String, Error> {
        self.contained(step, command, self.build.untrusted_launcher(), what, limit)
    }

    fn contained(
        &self,
        step: &Step,
        command: &Command,
        launcher: Option<(&Path, Mounts)>,
        what: &str,
        limit: Duration,
    ) -> Result<String, Error> {
        let launcher = launcher.map(|(program, mut mounts)| {
            mounts.private.push(self.scratch.shown(step));
            (program, mounts)
        });
        let mut own = Command::new(command.get_program());
        own.args(command.get_args())
            .current_dir(step.path())
            .env("TMPDIR", step.temporary());
        for (name, value) in command.get_envs() {
            own.env(name, value.unwrap_or_default());
        }
        guarded(&own, launcher, what, limit, self.cancel)
    }

    /// Runs a tool that installs dependencies.
    pub(super) fn install(
        &self,
        step: &Step,
        command: &mut Command,
        what: &str,
    ) -> Result<(), Error> {
        if !self.build.no_build {
            return self.run(step, command, what);
        }
        let failed = self.run(step, command.arg("--no-build"), what);
        failed.map_err(|error| match error {
            Error::Failed { what, tail } if tail.to_lowercase().contains("buil") => Error::Failed {
                what,
                tail: format!("{tail}\n{NO_BUILD_HINT}"),
            },
            other => other,
        })
    }
}

const NO_BUILD_HINT: &str = "--no-build allows dependencies with wheels alone: use a version of \
    this one that has a wheel for this platform, or leave the option out to run its build code";

/// Executes a tool in the process of the shell. Another process of the group kills the group when the pipe on
/// stdin ends. By the umask other users cannot change what the tool creates.
const GUARD: &str = "umask go-w
exec 3<&0 </dev/null
(read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 &
exec 3<&- \"$@\"";

/// Runs a tool to its end, for at most [`limits::PROVISION_TIMEOUT`]. A failure and a time-out have its last
/// lines.
#[cfg(test)]
fn run(command: &Command, what: &str, cancel: &AtomicBool) -> Result<(), Error> {
    let limit = limits::PROVISION_TIMEOUT;
    guarded(command, None, what, limit, cancel).map(|_| ())
}

/// Runs a tool that must succeed, and returns its last lines. The tool, and what it starts in its process
/// group, are killed when this process ends for any reason, because the kernel then closes the pipe. The
/// shell is restricted as the tool is.
fn guarded(
    command: &Command,
    launcher: Option<(&Path, Mounts)>,
    what: &str,
    limit: Duration,
    cancel: &AtomicBool,
) -> Result<String, Error> {
    let (ours, theirs) = io::pipe().map_err(|error| Error::failed(what, error))?;
    let mut shell = Command::new("/bin/sh");
    shell
        .args(["-c", GUARD, "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    let mut guarded = restricted(&shell, launcher).map_err(|error| Error::failed(what, error))?;
    guarded.stdin(ours);
    if let Some(folder) = command.get_current_dir() {
        guarded.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        guarded.env(name, value.unwrap_or_default());
    }
    let end = output(&mut guarded, what, limit, cancel);
    drop(theirs);
    let end = end?;
    if end.status.success() {
        return Ok(end.tail);
    }
    Err(Error::Failed {
        what: what.to_owned(),
        tail: end.reason(),
    })
}

/// A command with the same program and arguments, started by the launcher if there is one.
pub(super) fn restricted(
    command: &Command,
    launcher: Option<(&Path, Mounts)>,
) -> io::Result<Command> {
    let program = command.get_program();
    let mut restricted = match launcher {
        Some((launcher, mounts)) => launch::command(launcher, &mounts, Path::new(program))?,
        None => Command::new(program),
    };
    restricted.args(command.get_args());
    Ok(restricted)
}

/// Fails if a tool that succeeded has not created the given file.
pub(super) fn made(folder: &Path, name: &str, what: &str) -> Result<(), Error> {
    match folder.join(name).exists() {
        true => Ok(()),
        false => Err(Error::Failed {
            what: what.to_owned(),
            tail: format!("it ended with success and left no {name}"),
        }),
    }
}

/// How a tool ended.
pub(super) struct End {
    pub(super) status: ExitStatus,
    /// Its last lines of output.
    pub(super) tail: String,
}

impl End {
    /// Its last lines, or its exit status if it printed nothing.
    pub(super) fn reason(self) -> String {
        match self.tail.is_empty() {
            true => self.status.to_string(),
            false => self.tail,
        }
    }
}

/// Runs a tool to its end, for at most `limit`, and kills the rest of its process group. Its last lines are
/// those of stdout and stderr.
pub(super) fn output(
    command: &mut Command,
    what: &str,
    limit: Duration,
    cancel: &AtomicBool,
) -> Result<End, Error> {
    let fail = |error: io::Error| Error::failed(what, error);
    scrub(command);
    let (pipe, writer) = io::pipe().map_err(fail)?;
    let mut printed = Printed::new(pipe).map_err(fail)?;
    command
        .stdout(writer.try_clone().map_err(fail)?)
        .stderr(writer)
        .process_group(0);
    let mut child = strays::spawn(command).map_err(fail)?;
    // `command` keeps the writing end of the pipe open until its stdout and stderr are replaced.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let waited = wait(&child, &mut printed, what, limit, cancel);
    let status = end(&mut child);
    if !waited? {
        return Err(Error::Timeout {
            what: what.to_owned(),
            limit,
            tail: printed.rest(),
        });
    }
    let status = status.ok_or_else(|| fail(io::Error::other("its end was not seen")))?;
    let tail = match status.success() {
        true => printed.at_hand(),
        false => printed.rest(),
    };
    Ok(End { status, tail })
}

/// Gives a tool only the variables of [`variables`] and those that are set in its command.
fn scrub(command: &mut Command) {
    let own = command.get_envs();
    let own: Vec<(OsString, OsString)> = own
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command
        .env_clear()
        .envs(variables())
        .env("UV_NO_PROGRESS", "1")
        .envs(own);
}

/// The variables that tools get from this process: those that plugin processes get, and what uv and pip need
/// for indexes, proxies, certificates and caches ([`operator`]).
fn variables() -> impl Iterator<Item = (OsString, OsString)> {
    let is_kept = |name: &str| {
        operator::is_kept(name)
            || KEPT.contains(&name)
            || PROXIES.contains(&name.to_ascii_uppercase().as_str())
    };
    let own = std::env::vars_os().filter(move |(name, _)| name.to_str().is_some_and(is_kept));
    let path = programs::path().map(|path| ("PATH".into(), path));
    own.chain(kept_variables())
        .chain(uv_folders::variables())
        .chain(path)
}

const KEPT: &[&str] = &[
    "HOME",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "NETRC",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "SSL_CLIENT_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
];
/// The names count in upper and in lower case.
const PROXIES: &[&str] = &["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];

/// Reads what a tool prints until it has exited. Returns false if it has not exited in time. The tool is not
/// reaped, so that its ID still identifies its process group.
fn wait(
    child: &Child,
    printed: &mut Printed,
    what: &str,
    limit: Duration,
    cancel: &AtomicBool,
) -> Result<bool, Error> {
    let deadline = BootTime::now() + limit;
    let id = WaitId::Pid(Pid::from_child(child));
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    loop {
        let exited = waitid(id.clone(), options).map_err(|e| Error::failed(what, e.into()))?;
        if exited.is_some() {
            return Ok(true);
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        if BootTime::now() >= deadline {
            return Ok(false);
        }
        printed.read();
    }
}

/// Kills a tool and its process group, and waits for a short time to reap it.
fn end(child: &mut Child) -> Option<ExitStatus> {
    let group = Pid::from_child(child);
    // ESRCH: it has just ended by itself.
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    let until = BootTime::now() + limits::TOOL_STDERR_TIMEOUT;
    let status = loop {
        match child.try_wait() {
            Ok(None) if BootTime::now() < until => std::thread::sleep(POLL_INTERVAL),
            end => break end.ok().flatten(),
        }
    };
    strays::forget(group);
    // Processes that have left the group.
    while BootTime::now() < until && strays::kill_adopted() {
        std::thread::sleep(POLL_INTERVAL);
    }
    status
}

/// The output of a tool, of which the last lines are kept.
struct Printed {
    /// None after the end of the pipe.
    pipe: Option<io::PipeReader>,
    lines: VecDeque<String>,
    /// The last line, if it has no line end yet.
    line: Vec<u8>,
}

impl Printed {
    fn new(pipe: io::PipeReader) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Printed {
            pipe: Some(pipe),
            lines: VecDeque::new(),
            line: Vec::new(),
        })
    }

    /// Reads what is available. Waits at most [`POLL_INTERVAL`] for it.
    fn read(&mut self) {
        let Some(pipe) = &mut self.pipe else {
            return std::thread::sleep(POLL_INTERVAL);
        };
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: POLL_INTERVAL.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&*pipe, PollFlags::IN)];
        if !poll(&mut fds, Some(&wait)).is_ok_and(|ready| ready > 0) {
            return;
        }
        let mut space = [0; 16 << 10];
        match pipe.read(&mut space) {
            Ok(0) => self.pipe = None,
            Ok(count) => self.push(space.get(..count).unwrap_or(&[])),
            Err(error) if is_temporary(&error) => {}
            Err(_) => self.pipe = None,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_SIZE_MAX.saturating_sub(self.line.len());
            self.line.extend(part.iter().take(room));
            if part.ends_with(b"\n") {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&self.line);
        let text: String = text.trim_end().chars().take(LINE_CHARACTERS_MAX).collect();
        self.line.clear();
        if text.is_empty() {
            return;
        }
        if self.lines.len() == limits::TOOL_LINES_KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(text);
    }

    /// The last lines after the tool's end, as far as they can be read at once.
    fn at_hand(mut self) -> String {
        for _ in 0..4 {
            if self.pipe.is_some() {
                self.read();
            }
        }
        self.end_line();
        Vec::from(self.lines).join("\n")
    }

    /// The last lines after the tool's end. A process that left the group may keep the pipe open, so this
    /// waits for its end only for a short time.
    fn rest(mut self) -> String {
        let until = BootTime::now() + limits::TOOL_STDERR_TIMEOUT;
        while self.pipe.is_some() && BootTime::now() < until {
            self.read();
        }
        self.end_line();
        Vec::from(self.lines).join("\n")
    }
}

/// Limits of a kept line, in characters and bytes.
const LINE_CHARACTERS_MAX: usize = 500;
const LINE_SIZE_MAX: usize = 4 * LINE_CHARACTERS_MAX;

fn is_temporary(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), Interrupted | WouldBlock)
}

#[cfg(test)]
mod tests;
