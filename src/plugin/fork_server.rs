//! A fork server: an interpreter that forks a child for each job. A warm one has imported pyarrow and the
//! modules that the plugin preloads.
//!
//! Nothing here blocks, except where noted. A request to a fork server that does not read its requests is an
//! error. Dropping a [`ForkServer`] kills the fork server without waiting for its end. Its children have set a
//! parent-death signal, so the kernel kills them too.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, BufReader, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use mio::unix::pipe::{self, Receiver};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use super::process::{Pipes, Process};
use super::{Exit, Job, code_variable, kept_variables, strays, variables, write_plugin};
use crate::job::text::of_bytes;
use crate::proc_file;
use crate::reactor::rights;
use crate::sandbox::{Mounts, launch};
use crate::thread;

/// A child that a fork server has started.
#[derive(Debug)]
pub enum Started {
    /// The child, which leads its own process group.
    Running(Process),
    /// The process ID of a child that has ended and has been reaped.
    Ended(i32),
}

/// A report of a fork server.
#[derive(Debug)]
pub enum Event {
    /// Its imports are done.
    Ready,
    /// The answer to a ping.
    Pong,
    /// The child of the job runs.
    Started {
        /// Key of the request.
        key: u64,
        /// The child, or the reason why it cannot be watched.
        process: io::Result<Started>,
    },
    /// The child of the job has exited and its process group was killed.
    Exited {
        /// Key of the request.
        key: u64,
        /// How it ended.
        exit: Exit,
    },
    /// The child of the job could not be created.
    Failed {
        /// Key of the request.
        key: u64,
        /// The reason.
        message: String,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Ready {
        #[allow(dead_code)]
        ready: bool,
    },
    Pong {
        #[allow(dead_code)]
        pong: u64,
    },
    /// Sent by the launcher: it could not start the interpreter.
    Unstarted {
        unstarted: String,
    },
    Started {
        started: u64,
        pid: i32,
    },
    Failed {
        failed: u64,
        message: String,
    },
    Exited {
        exited: u64,
        code: Option<i32>,
        signal: Option<i32>,
        #[serde(default)]
        rss_max_kib: u64,
    },
}

/// A request to a fork server. Paths and values are bytes, written by [`of_bytes`].
#[derive(Serialize)]
struct Request {
    job: u64,
    env: BTreeMap<&'static str, String>,
    cwd: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    shim: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interpreter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    open_files: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<Restricted>,
}

/// [`super::Sandbox`] in a request. `ruleset` and `seccomp`: whether such a descriptor is sent with it.
#[derive(Serialize)]
struct Restricted {
    hide: Option<String>,
    keep: Vec<String>,
    cover: Option<String>,
    writable: Option<String>,
    ruleset: bool,
    seccomp: bool,
    kills: bool,
}

/// Why a fork server cannot be used.
#[derive(Debug)]
pub enum Error {
    /// An I/O error, when starting it or on its socket.
    Io(io::Error),
    /// It has ended.
    Ended,
    /// It has not read earlier requests, and the socket's buffer is full.
    Full,
    /// Its launcher could not start it.
    Unstarted(String),
    /// It sent an invalid answer.
    Answer(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) => write!(f, "the fork server cannot be used: {error}"),
            Error::Ended => f.write_str("the fork server has died"),
            Error::Full => f.write_str("the fork server takes no more requests now"),
            Error::Unstarted(reason) => f.write_str(reason),
            Error::Answer(text) => write!(f, "the fork server sent an invalid answer: {text}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Io(error)
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(error: rustix::io::Errno) -> Self {
        Error::Io(error.into())
    }
}

/// One fork server. Dropping it kills it and its children.
#[derive(Debug)]
pub struct ForkServer {
    process: Process,
    control: OwnedFd,
    pings: u64,
}

/// What a fork server imports before its first request.
#[derive(Clone, Copy, Debug)]
pub enum Imports<'a> {
    /// pyarrow and these modules.
    These(&'a [String]),
    /// Only what Python itself runs when it starts, such as `.pth` files of packages.
    None,
    /// Nothing except Python's own library.
    NoPackages,
}

/// Bytes of a request or an answer. Requests do not contain the source, which is passed as a descriptor.
const MESSAGE_SIZE_MAX: usize = 1 << 20;

impl ForkServer {
    /// Starts a fork server. Its imports run in the background. `launcher` is the program that runs it with
    /// the given mounts.
    pub fn start(
        interpreter: &Path,
        shim: &Path,
        imports: Imports<'_>,
        launcher: Option<(&Path, &Mounts)>,
    ) -> Result<Self, Error> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        rights::refuse(&ours);
        // The control socket is passed as stdin, the only descriptor that a child inherits without clearing
        // its close-on-exec flag.
        let mut command = match launcher {
            Some((program, mounts)) => launch::command(program, mounts, interpreter)?,
            None => Command::new(interpreter),
        };
        let (options, kind, modules): (&[&str], _, &[String]) = match imports {
            Imports::These(modules) => (&[], "--warm", modules),
            Imports::None => (&[], "--bare", &[]),
            // Isolated (`-I`), and without the packages of its installation (`-S`).
            Imports::NoPackages => (&["-I", "-S"], "--bare", &[]),
        };
        command
            .args(options)
            .arg(shim)
            .args([kind, "0"])
            .args(modules)
            .env_clear()
            .envs(kept_variables())
            .env("PYTHONIOENCODING", "utf-8:backslashreplace")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("CASPARIAN_PARENT", std::process::id().to_string())
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if launcher.is_none() {
            command.process_group(0);
        }
        let mut child = strays::spawn(&mut command)?;
        let errors = child.stderr.take();
        let process = Process::of_child(child)?;
        if let Some(errors) = errors {
            thread::start("interpreter", move || log_lines(errors))?;
        }
        Ok(ForkServer {
            process,
            control: ours,
            pings: 0,
        })
    }

    /// The descriptor to poll for readability.
    pub fn raw_fd(&self) -> RawFd {
        self.control.as_raw_fd()
    }

    /// Its process. The end of the process must be polled here, because another process may keep the control
    /// socket open.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Returns the process, which the caller must kill and reap.
    pub fn into_process(self) -> Process {
        self.process
    }

    /// Sends a ping. Returns false if the socket's buffer is full, which also shows that it does not respond.
    pub fn ping(&mut self) -> bool {
        self.pings = self.pings.wrapping_add(1);
        let request = serde_json::json!({ "ping": self.pings }).to_string();
        let sent = rustix::net::send(
            &self.control,
            request.as_bytes(),
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        );
        sent.is_ok()
    }

    /// Requests a child that runs the job. `key` identifies it in the events, because a job may have two
    /// children for a short time: a further attempt may start before the first has ended. A fork server that
    /// has closed its socket and has not exited yet also gets requests without an error: its end is detected
    /// soon.
    pub fn request(&mut self, key: u64, job: &Job<'_>) -> Result<Pipes, Error> {
        let mut variables: BTreeMap<_, _> = variables(job).into_iter().collect();
        if job.shim.is_some() {
            let file = write_plugin(job)?;
            variables.insert("CASPARIAN_PLUGIN_FILE", file.into());
            let code = code_variable(&job.source.plugin().source_code);
            variables.extend(code.map(|code| ("BRIDGE_PLUGIN_CODE", code.into())));
        }
        let request = Request {
            job: key,
            env: variables
                .into_iter()
                .map(|(name, value)| (name, of_bytes(value)))
                .collect(),
            cwd: of_bytes(job.work_dir),
            shim: job.shim.map(of_bytes),
            interpreter: job.interpreter.map(of_bytes),
            open_files: Some(job.open_files).filter(|limit| *limit > 0),
            sandbox: job.sandbox.as_ref().map(|sandbox| Restricted {
                hide: sandbox.hide.map(of_bytes),
                keep: sandbox.keep.iter().map(of_bytes).collect(),
                cover: sandbox.cover.map(of_bytes),
                writable: sandbox.is_strict.then(|| of_bytes(job.work_dir)),
                ruleset: sandbox.ruleset.is_some(),
                seccomp: sandbox.seccomp.is_some(),
                kills: sandbox.kills,
            }),
        };
        let request = serde_json::to_string(&request).map_err(io::Error::other)?;
        let (stdout_write, stdout) = pipe_pair()?;
        let (stderr_write, stderr) = pipe_pair()?;
        let mut fds = vec![
            stdout_write.as_fd(),
            stderr_write.as_fd(),
            job.source.as_fd(),
        ];
        if let Some(sandbox) = &job.sandbox {
            fds.extend(sandbox.ruleset.into_iter().chain(sandbox.seccomp));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let sent = rustix::net::sendmsg(
            &self.control,
            &[IoSlice::new(request.as_bytes())],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
        match sent {
            Ok(_) => {}
            Err(Errno::PIPE | Errno::CONNRESET) if self.process.has_exited() => {
                return Err(Error::Ended);
            }
            Err(Errno::PIPE | Errno::CONNRESET) => {}
            // TOOMANYREFS: too many descriptors are in flight.
            Err(Errno::AGAIN | Errno::TOOMANYREFS) => return Err(Error::Full),
            Err(error) => return Err(error.into()),
        }
        Ok(Pipes { stdout, stderr })
    }

    /// The child with a process ID that the fork server reported. Only a child of the fork server is
    /// accepted, because the process will be killed.
    fn child_process(&self, number: i32) -> io::Result<Started> {
        let pid = Some(number)
            .filter(|number| *number > 0)
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other(format!("{number} is no process ID")))?;
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(Started::Ended(number)),
            pidfd => pidfd?,
        };
        match self.has_child(number, &pidfd)? {
            Parent::Own => Ok(Started::Running(Process::adopt(pid, pidfd))),
            Parent::None => Ok(Started::Ended(number)),
            Parent::Other => Err(io::Error::other(format!(
                "process {number} is none of the interpreter's"
            ))),
        }
    }

    /// Which parent the process has that had this ID when the pidfd was opened.
    fn has_child(&self, number: i32, pidfd: &OwnedFd) -> io::Result<Parent> {
        let stat = proc_file::read(format!("/proc/{number}/stat"));
        let has_ended = |error: &io::Error| {
            let gone = Some(Errno::SRCH.raw_os_error());
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == gone
        };
        let stat = match stat {
            Err(error) if has_ended(&error) => return Ok(Parent::None),
            stat => stat?,
        };
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let parent = fields.split_ascii_whitespace().nth(1);
        let is_child = parent.and_then(|parent| parent.parse().ok()) == Some(self.process.id());
        // The parent that was read is the process's if the pidfd still has this ID.
        Ok(match (number_of(pidfd)? == Some(number), is_child) {
            (false, _) => Parent::None,
            (true, true) => Parent::Own,
            (true, false) => Parent::Other,
        })
    }

    /// Reads one answer; none if there is none now.
    pub fn next_event(&mut self) -> Result<Option<Event>, Error> {
        let mut bytes = vec![0u8; MESSAGE_SIZE_MAX.min(64 << 10)];
        let mut receive =
            || rustix::net::recv(&self.control, bytes.as_mut_slice(), RecvFlags::DONTWAIT);
        // A peer that closed with unread messages causes ECONNRESET once. What it has sent can be read after
        // that.
        let received = match receive() {
            Err(rustix::io::Errno::CONNRESET) => receive(),
            received => received,
        };
        let size = match received {
            Ok((size, _)) => size,
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(rustix::io::Errno::CONNRESET) => return Err(Error::Ended),
            Err(error) => return Err(error.into()),
        };
        if size == 0 {
            return Err(Error::Ended);
        }
        let bytes = bytes.get(..size).unwrap_or(&[]);
        let answer: Answer = serde_json::from_slice(bytes).map_err(|_| {
            Error::Answer(String::from_utf8_lossy(bytes).chars().take(200).collect())
        })?;
        Ok(Some(match answer {
            Answer::Ready { .. } => Event::Ready,
            Answer::Pong { .. } => Event::Pong,
            Answer::Unstarted { unstarted } => return Err(Error::Unstarted(unstarted)),
            Answer::Started { started, pid } => Event::Started {
                key: started,
                process: self.child_process(pid),
            },
            Answer::Failed { failed, message } => Event::Failed {
                key: failed,
                message,
            },
            Answer::Exited {
                exited,
                code,
                signal,
                rss_max_kib,
            } => Event::Exited {
                key: exited,
                exit: Exit {
                    code,
                    signal,
                    rss_max_bytes: rss_max_kib.saturating_mul(1024),
                },
            },
        }))
    }
}

/// Logs what a fork server writes to stderr, until no process has its stderr open.
fn log_lines(errors: impl Read) {
    let mut errors = BufReader::new(errors);
    loop {
        let mut line = Vec::new();
        let part = errors.by_ref().take(LINE_SIZE_MAX);
        match { part }.read_until(b'\n', &mut line) {
            Ok(size) if size > 0 => {
                log::warn!("interpreter: {}", String::from_utf8_lossy(&line).trim_end());
            }
            _ => return,
        }
    }
}

/// Bytes of a line that are logged as one.
const LINE_SIZE_MAX: u64 = 4096;

/// Which parent a process has.
enum Parent {
    /// The fork server.
    Own,
    /// Another process.
    Other,
    /// The process has been reaped.
    None,
}

/// The process ID of a pidfd's process; -1 if it has been reaped.
fn number_of(pidfd: &OwnedFd) -> io::Result<Option<i32>> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    Ok(number.and_then(|number| number.trim().parse().ok()))
}

/// A pipe whose reading end is non-blocking and whose writing end is blocking.
fn pipe_pair() -> io::Result<(OwnedFd, Receiver)> {
    let (sender, receiver) = pipe::new()?;
    sender.set_nonblocking(false)?;
    Ok((OwnedFd::from(sender), receiver))
}

#[cfg(test)]
mod tests;
