//! Running the tools that make environments, and the files around them. Everything here blocks,
//! with a deadline.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use super::environment::Error;
use super::home::{self, check_path};
use super::{kept_variables, operator, strays};
use crate::reactor::BootTime;
use crate::sandbox::{Mounts, launch};
use crate::{limits, lock_file};

/// How often a tool or a lock is asked.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits, but not when it is cancelled.
pub fn sleep(wait: Duration, cancel: &AtomicBool) {
    let until = BootTime::now() + wait;
    while BootTime::now() < until && !cancel.load(Ordering::Relaxed) {
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// How environments are built.
#[derive(Clone, Debug, Default)]
pub struct Build {
    /// Dependencies are installed from wheels alone: no code of theirs runs.
    pub no_build: bool,
    /// The program that restricts the tools (see [`crate::sandbox::launch`]), and how; none = they
    /// may do what their user may.
    pub launcher: Option<(PathBuf, Mounts)>,
}

/// What builds one environment: tools that run in a folder of their own.
pub(super) struct Tools<'a> {
    build: &'a Build,
    folder: Scratch,
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
        let folder = Scratch::new(home)?;
        let temporary = folder.path().join(TEMPORARY);
        fs::create_dir(&temporary).map_err(|error| Error::io(&temporary, error))?;
        Ok(Tools {
            build,
            folder,
            cancel,
        })
    }

    /// Dependencies are installed from wheels alone.
    pub(super) fn no_build(&self) -> bool {
        self.build.no_build
    }

    /// Their working directory, removed at the end.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes settings for uv; gives the options by which it reads no others. Without them it reads those of
    /// the folders above its own.
    pub(super) fn configure(&self, settings: &toml::Table) -> Result<[OsString; 3], Error> {
        let path = self.folder().join("uv.toml");
        fs::write(&path, settings.to_string()).map_err(|error| Error::io(&path, error))?;
        Ok(["--no-config".into(), "--config-file".into(), path.into()])
    }

    /// Runs one, as [`run`].
    pub(super) fn run(&self, command: &Command, what: &str) -> Result<(), Error> {
        self.ask(command, what).map(|_| ())
    }

    /// Runs one, and gives its last lines.
    pub(super) fn ask(&self, command: &Command, what: &str) -> Result<String, Error> {
        let mut contained = match &self.build.launcher {
            Some((program, mounts)) => {
                launch::command(program, mounts, command.get_program().as_ref())
                    .map_err(|error| Error::failed(what, error))?
            }
            None => Command::new(command.get_program()),
        };
        contained
            .args(command.get_args())
            .current_dir(self.folder())
            .env("TMPDIR", self.folder().join(TEMPORARY));
        for (name, value) in command.get_envs() {
            contained.env(name, value.unwrap_or_default());
        }
        guarded(&contained, what, limits::PROVISION_TIMEOUT, self.cancel)
    }

    /// Runs an installation of dependencies.
    pub(super) fn install(&self, command: &mut Command, what: &str) -> Result<(), Error> {
        if !self.build.no_build {
            return self.run(command, what);
        }
        let failed = self.run(command.arg("--no-build"), what);
        failed.map_err(|error| match error {
            Error::Failed { what, tail } if tail.to_lowercase().contains("buil") => Error::Failed {
                what,
                tail: format!("{tail}\n{NO_BUILD_HINT}"),
            },
            other => other,
        })
    }
}

const TEMPORARY: &str = "tmp";

const NO_BUILD_HINT: &str = "--no-build allows dependencies with wheels alone: use a version of \
    this one that has a wheel for this platform, or leave the option out to run its build code";

/// Starts a tool in place of the shell, beside a process of its group that kills the group when
/// the pipe on stdin ends. Others cannot change what it creates.
const GUARD: &str = "umask go-w
exec 3<&0 </dev/null
(read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 &
exec 3<&- \"$@\"";

/// Runs a tool to its end, at most [`limits::PROVISION_TIMEOUT`]; a failure carries its last
/// lines, and so does a time-out.
#[cfg(test)]
fn run(command: &Command, what: &str, cancel: &AtomicBool) -> Result<(), Error> {
    let limit = limits::PROVISION_TIMEOUT;
    guarded(command, what, limit, cancel).map(|_| ())
}

/// Runs a tool that must succeed, and gives its last lines. The tool and what it starts in its group
/// end with this process, however that ends: the kernel closes the pipe.
pub(super) fn guarded(
    command: &Command,
    what: &str,
    limit: Duration,
    cancel: &AtomicBool,
) -> Result<String, Error> {
    let (ours, theirs) = io::pipe().map_err(|error| Error::failed(what, error))?;
    let mut guarded = Command::new("/bin/sh");
    guarded
        .args(["-c", GUARD, "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(ours);
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

/// Refuses the success of a tool that has not left what it was run for.
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
    /// Its last lines.
    pub(super) tail: String,
}

impl End {
    /// What it said; else its exit status.
    pub(super) fn reason(self) -> String {
        match self.tail.is_empty() {
            true => self.status.to_string(),
            false => self.tail,
        }
    }
}

/// Runs a tool to its end, at most `limit`, and kills what it leaves in its group. Its last lines
/// are those of its stdout and stderr.
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
    // The command holds the pipe until it has others.
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

/// Gives a tool the variables of [`variables`] and its own, and no others.
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

/// The variables that tools get of this process's own: those that plugin processes get, and what uv and
/// pip need for indexes, proxies, certificates and their caches ([`operator`]).
fn variables() -> impl Iterator<Item = (OsString, OsString)> {
    let is_kept = |name: &str| {
        operator::is_kept(name)
            || KEPT.contains(&name)
            || PROXIES.contains(&name.to_ascii_uppercase().as_str())
    };
    let own = std::env::vars_os().filter(move |(name, _)| name.to_str().is_some_and(is_kept));
    own.chain(kept_variables())
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
/// In upper or lower case.
const PROXIES: &[&str] = &["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];

/// Reads what a tool prints until it has exited; false when it has not in time. It is not reaped, so
/// its group has its number.
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

/// Kills a tool with its group, and gives it a moment to be reaped.
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
    // What has left the group.
    while BootTime::now() < until && strays::kill_adopted() {
        std::thread::sleep(POLL_INTERVAL);
    }
    status
}

/// What a tool prints: its last lines are kept.
struct Printed {
    /// None after its end.
    pipe: Option<io::PipeReader>,
    lines: VecDeque<String>,
    /// The line that has not ended.
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

    /// Takes what is there, and waits [`POLL_INTERVAL`] for it at most.
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

    /// The last lines after the tool's end. What it printed is in the pipe, which a process that
    /// left its group may hold: that is waited for no longer than a moment.
    fn rest(mut self) -> String {
        let until = BootTime::now() + limits::TOOL_STDERR_TIMEOUT;
        while self.pipe.is_some() && BootTime::now() < until {
            self.read();
        }
        self.end_line();
        Vec::from(self.lines).join("\n")
    }
}

/// Characters of a line that are kept, and the bytes that they may have.
const LINE_CHARACTERS_MAX: usize = 500;
const LINE_SIZE_MAX: usize = 4 * LINE_CHARACTERS_MAX;

fn is_temporary(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), Interrupted | WouldBlock)
}

/// A folder that goes when it is dropped. It is locked as long as its program lives.
struct Scratch {
    folder: tempfile::TempDir,
    _lock: fs::File,
}

/// How names of scratch folders begin.
const SCRATCH: &str = "build-";
/// How they began in releases that locked none.
const SCRATCH_UNLOCKED: &str = "scratch-";

impl Scratch {
    /// A fresh folder below `home`.
    fn new(home: &Path) -> Result<Self, Error> {
        let base = home.join("tmp");
        home::create(&base)?;
        loop {
            let folder = tempfile::Builder::new().prefix(SCRATCH).tempdir_in(&base);
            let folder = folder.map_err(|error| Error::io(&base, error))?;
            let failed = |error| Error::io(folder.path(), error);
            let lock = match fs::File::open(folder.path()) {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            // Before this lock another program may have taken it for one that was left.
            lock.lock().map_err(failed)?;
            if folder.path().exists() {
                return Ok(Scratch {
                    folder,
                    _lock: lock,
                });
            }
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes what programs that were killed have left of builds: their scratch folders, and what they have
/// begun beside environments.
pub(super) fn sweep_killed(home: &Path) {
    for entry in fs::read_dir(home.join("tmp"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let (path, name) = (entry.path(), entry.file_name());
        let begins = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
        if begins(SCRATCH) {
            sweep_unlocked(fs::File::open(&path), &path);
        } else if begins(SCRATCH_UNLOCKED) {
            let age = entry.metadata().and_then(|found| found.modified());
            let age = age.ok().and_then(|changed| changed.elapsed().ok());
            if age.is_some_and(|age| age > 2 * limits::PROVISION_TIMEOUT) {
                sweep(&path);
            }
        }
    }
    let venvs = home.join("venvs");
    for entry in fs::read_dir(&venvs).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if let Some((hash, _)) = name.to_str().and_then(|name| name.split_once(BEGUN)) {
            // Who builds an environment has its lock.
            let lock = lock_file::open(&venvs.join(format!("{hash}.lock")));
            sweep_unlocked(lock, &entry.path());
        }
    }
}

/// Removes a folder under its lock, unless a program has that.
fn sweep_unlocked(lock: io::Result<fs::File>, folder: &Path) {
    if let Ok(lock) = lock
        && lock.try_lock().is_ok()
    {
        sweep(folder);
    }
}

/// What stands in the name of a folder in which an environment is built, after a dot and its hash.
pub(super) const BEGUN: &str = ".new";

/// A folder below `parent` in which something is built. No other attempt has its name, not even
/// one whose program was killed and whose tools go on writing. Removed when it is dropped.
pub(super) struct Building {
    folder: PathBuf,
}

impl Building {
    /// Removes what other attempts left under the same prefix, as far as that can be done: a tool
    /// that outlives its program may be writing there still. The caller holds the lock.
    pub(super) fn new(parent: &Path, prefix: &str) -> Result<Self, Error> {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(prefix.as_bytes()) {
                sweep(&entry.path());
            }
        }
        let folder = tempfile::Builder::new()
            .prefix(&format!("{prefix}-"))
            .tempdir_in(parent)
            .map_err(|error| Error::io(parent, error))?;
        Ok(Building {
            folder: folder.keep(),
        })
    }

    /// What is to be built; not there yet.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("it")
    }

    /// Gives what was built its name.
    pub(super) fn finish(self, target: &Path) -> Result<(), Error> {
        fs::rename(self.path(), target).map_err(|error| Error::io(target, error))
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        sweep(&self.folder);
    }
}

/// Removes a file or a folder of ours; what cannot be removed stays for the next attempt.
pub(super) fn sweep(path: &Path) {
    let result = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    if let Err(error) = result
        && error.kind() != io::ErrorKind::NotFound
    {
        log::debug!("cannot remove {}: {error}", path.display());
    }
}

/// Moves a folder out of the way of its name, then removes it. `prefix` is that of the [`Building`] that is
/// to have the name.
pub(super) fn displace(path: &Path, prefix: &str) -> Result<(), Error> {
    let (Some(parent), true) = (path.parent(), path.symlink_metadata().is_ok()) else {
        return Ok(());
    };
    let away = tempfile::Builder::new()
        .prefix(&format!("{prefix}-old-"))
        .tempdir_in(parent)
        .map_err(|error| Error::io(parent, error))?
        .keep();
    let moved = fs::rename(path, away.join("it")).map_err(|error| Error::io(path, error));
    sweep(&away);
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_tool_that_fails_says_its_last_lines() {
        let cancel = AtomicBool::new(false);
        let command = shell("for i in 1 2 3; do echo line $i >&2; done; exit 3");
        let error = run(&command, "sh", &cancel).unwrap_err().to_string();
        assert_eq!(error, "sh failed: line 1\nline 2\nline 3");
        let error = run(&shell("exit 3"), "sh", &cancel).unwrap_err();
        assert_eq!(error.to_string(), "sh failed: exit status: 3");
        let cancelled = run(&shell("sleep 1000"), "sleep", &AtomicBool::new(true));
        assert!(matches!(cancelled, Err(Error::Cancelled)));
    }

    #[test]
    fn a_tool_that_takes_too_long_says_its_last_lines() {
        let cancel = AtomicBool::new(false);
        let limit = Duration::from_secs(1);
        let fails = |script: &str| {
            let ended = output(&mut shell(script), "sh", limit, &cancel);
            ended.err().expect("it takes too long").to_string()
        };
        let reason = fails("echo waiting for x >&2; printf half; sleep 1000");
        assert_eq!(reason, "sh took longer than 1 s: waiting for x\nhalf");
        let reason = fails("exec sleep 1000");
        assert_eq!(reason, "sh took longer than 1 s and printed nothing");
    }

    #[test]
    fn a_tool_gets_its_words_and_variables_and_leaves_nothing_in_its_group() {
        let cancel = AtomicBool::new(false);
        let dir = tempfile::tempdir().unwrap();
        let (out, left) = (dir.path().join("out"), dir.path().join("left"));
        let mut command =
            shell("printf '%s|' \"$@\" \"$A\" \"$(cat)\" > $0; sleep 1000 & echo $! > $1");
        command
            .arg(&out)
            .arg(&left)
            .args(["a b", "$A"])
            .env("A", "'\"");
        run(&command, "sh", &cancel).unwrap();
        let words = format!("{}|a b|$A|'\"||", left.display());
        assert_eq!(fs::read_to_string(&out).unwrap(), words);
        let pid = fs::read_to_string(&left).unwrap();
        let stat = format!("/proc/{}/stat", pid.trim());
        let until = BootTime::now() + Duration::from_secs(20);
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(BootTime::now() < until, "{pid} is left");
            std::thread::sleep(POLL_INTERVAL);
        }
        let missing = Command::new(dir.path().join("missing"));
        let error = run(&missing, "it", &cancel).unwrap_err().to_string();
        assert!(error.contains("not found"), "{error}");
    }

    #[test]
    fn a_grandchild_that_holds_stderr_delays_nothing() {
        let cancel = AtomicBool::new(false);
        let before = BootTime::now();
        run(&shell("setsid sleep 30 & exit 0"), "sh", &cancel).unwrap();
        let failed = run(&shell("setsid sleep 30 & exit 3"), "sh", &cancel).unwrap_err();
        assert!(failed.to_string().contains("exit status: 3"), "{failed}");
        let took = BootTime::now().saturating_duration_since(before);
        assert!(took < Duration::from_secs(25), "{took:?}");
    }

    #[test]
    fn a_grandchild_that_holds_stderr_takes_no_reason_away() {
        let cancel = AtomicBool::new(false);
        let dir = tempfile::tempdir().unwrap();
        let over = dir.path().join("over");
        let fails = |script: &str| {
            let mut command = shell(script);
            command.arg(&over);
            run(&command, "sh", &cancel).unwrap_err().to_string()
        };
        for stays in ["sleep 1000", "setsid sleep 1000"] {
            let reason = fails(&format!("echo why >&2; {stays} & exit 3"));
            assert_eq!(reason, "sh failed: why", "{stays}");
        }
        for floods in ["yes '' >&2 & yes ''", "setsid yes '' >&2"] {
            let reason = fails(&format!("echo why >&2; {floods} & exit 3"));
            assert_eq!(reason, "sh failed: why", "{floods}");
        }
        // Nobody reads on: the pipe is closed.
        let goes_on =
            "trap '' PIPE; : > $0.up; while echo x; do sleep 0.01; done 2>/dev/null; : > $0";
        // Before that it is in the group, which is killed.
        let until_up = "while [ ! -e $0.up ]; do sleep 0.01; done";
        fails(&format!("setsid sh -c {goes_on:?} & {until_up}; exit 3"));
        let until = BootTime::now() + Duration::from_secs(20);
        while !over.exists() {
            assert!(BootTime::now() < until, "the pipe is read for ever");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    #[test]
    fn a_building_folder_is_fresh_whatever_other_attempts_left() {
        let dir = tempfile::tempdir().unwrap();
        let leftover = dir.path().join(".x.new-dead");
        fs::create_dir_all(leftover.join("bin")).unwrap();
        fs::create_dir_all(dir.path().join(".x.new")).unwrap();
        let building = Building::new(dir.path(), ".x.new").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let target = dir.path().join("x");
        fs::create_dir_all(target.join("old")).unwrap();
        displace(&target, ".x.new").unwrap();
        fs::create_dir(building.path()).unwrap();
        building.finish(&target).unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        drop(Building::new(dir.path(), ".x.new").unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
