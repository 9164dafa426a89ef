//! A warm interpreter: it has imported pyarrow (and what the plugin preloads) and forks a child
//! for every job.
//!
//! Nothing here blocks: requests to an interpreter that takes none are an error, and dropping a
//! [`Warm`] kills it without waiting for its end. Its children ask the kernel to be killed with
//! it.

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

/// A child that an interpreter has started.
#[derive(Debug)]
pub enum Started {
    /// Its process, which leads its own group.
    Running(Process),
    /// The number of a process that has ended and was reaped since.
    Ended(i32),
}

/// What a warm interpreter reports.
#[derive(Debug)]
pub enum WarmEvent {
    /// Its imports are done.
    Ready,
    /// It answers a ping.
    Pong,
    /// The job's child runs.
    Started {
        /// Of the request.
        key: u64,
        /// Its process; else why it cannot be watched.
        process: io::Result<Started>,
    },
    /// The job's child has exited and its group is dead.
    Exited {
        /// Of the request.
        key: u64,
        /// How.
        exit: Exit,
    },
    /// The job's child could not be made.
    Failed {
        /// Of the request.
        key: u64,
        /// Why.
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
    /// Of the launcher.
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

/// What a fork server is asked for. Paths and values are bytes as [`of_bytes`] writes them.
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

/// [`super::Sandbox`], with what of its descriptors comes with the request.
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

/// Why a warm interpreter is of no more use.
#[derive(Debug)]
pub enum Error {
    /// It could not be started or talked to.
    Io(io::Error),
    /// It is gone.
    Gone,
    /// It has not read the requests before this one, and the kernel keeps no more of them.
    Full,
    /// Its launcher could not start it.
    Unstarted(String),
    /// It answered what it must not.
    Answer(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(error) => write!(f, "the warm interpreter cannot be used: {error}"),
            Error::Gone => f.write_str("the warm interpreter has died"),
            Error::Full => f.write_str("the warm interpreter takes no more requests now"),
            Error::Unstarted(reason) => f.write_str(reason),
            Error::Answer(text) => write!(f, "the warm interpreter gave an odd answer: {text}"),
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

/// One warm interpreter. Dropping it kills it and with it its children.
#[derive(Debug)]
pub struct Warm {
    process: Process,
    control: OwnedFd,
    pings: u64,
}

/// What an interpreter runs before the first request.
#[derive(Clone, Copy, Debug)]
pub enum Imports<'a> {
    /// pyarrow and these modules.
    These(&'a [String]),
    /// What Python itself runs at its start, such as `.pth` files of packages.
    None,
    /// Nothing but Python's own library.
    NoPackages,
}

/// Bytes of one message either way; requests carry no source, which lies in a file.
const MESSAGE_SIZE_MAX: usize = 1 << 20;

impl Warm {
    /// Starts an interpreter; its imports go on in the background. The launcher is a program of ours that
    /// runs it with those mounts.
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
        // Handed on as stdin: the one descriptor that reaches a child without being marked.
        let mut command = match launcher {
            Some((program, mounts)) => launch::command(program, mounts, interpreter)?,
            None => Command::new(interpreter),
        };
        let (options, kind, modules): (&[&str], _, &[String]) = match imports {
            Imports::These(modules) => (&[], "--warm", modules),
            Imports::None => (&[], "--bare", &[]),
            // Isolated, and without the packages of its installation.
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
        Ok(Warm {
            process,
            control: ours,
            pings: 0,
        })
    }

    /// The descriptor to watch for readability.
    pub fn raw_fd(&self) -> RawFd {
        self.control.as_raw_fd()
    }

    /// Its process. Another one may hold the control socket open, which then shows no end.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Gives up the interpreter: what must be killed and reaped.
    pub fn into_process(self) -> Process {
        self.process
    }

    /// Asks whether it still answers. False when it takes no message, which is an answer too.
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

    /// Asks for a child that runs the job. `key` names it in the events: a job may have two
    /// children for a moment, when a further attempt comes before the first has gone. An interpreter
    /// that has closed its socket and has not exited yet takes requests too: how it ends is seen soon.
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
                return Err(Error::Gone);
            }
            Err(Errno::PIPE | Errno::CONNRESET) => {}
            // The latter: too many descriptors are on their way.
            Err(Errno::AGAIN | Errno::TOOMANYREFS) => return Err(Error::Full),
            Err(error) => return Err(error.into()),
        }
        Ok(Pipes { stdout, stderr })
    }

    /// A child by its number. Whatever the interpreter says, a process must be a child of it: it will be
    /// killed.
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

    /// Whose child a process is that had that number when the pidfd was opened.
    fn has_child(&self, number: i32, pidfd: &OwnedFd) -> io::Result<Parent> {
        let stat = proc_file::read(format!("/proc/{number}/stat"));
        let is_gone = |error: &io::Error| {
            let gone = Some(Errno::SRCH.raw_os_error());
            error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == gone
        };
        let stat = match stat {
            Err(error) if is_gone(&error) => return Ok(Parent::None),
            stat => stat?,
        };
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let parent = fields.split_ascii_whitespace().nth(1);
        let is_child = parent.and_then(|parent| parent.parse().ok()) == Some(self.process.id());
        // The number was this process's when its parent was read, if it still is.
        Ok(match (number_of(pidfd)? == Some(number), is_child) {
            (false, _) => Parent::None,
            (true, true) => Parent::Own,
            (true, false) => Parent::Other,
        })
    }

    /// Takes one answer; none when there is none now.
    pub fn next_event(&mut self) -> Result<Option<WarmEvent>, Error> {
        let mut bytes = vec![0u8; MESSAGE_SIZE_MAX.min(64 << 10)];
        let mut receive =
            || rustix::net::recv(&self.control, bytes.as_mut_slice(), RecvFlags::DONTWAIT);
        // An end that left messages of ours unread shows as an error once, before what it sent.
        let received = match receive() {
            Err(rustix::io::Errno::CONNRESET) => receive(),
            received => received,
        };
        let size = match received {
            Ok((size, _)) => size,
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(rustix::io::Errno::CONNRESET) => return Err(Error::Gone),
            Err(error) => return Err(error.into()),
        };
        if size == 0 {
            return Err(Error::Gone);
        }
        let bytes = bytes.get(..size).unwrap_or(&[]);
        let answer: Answer = serde_json::from_slice(bytes).map_err(|_| {
            Error::Answer(String::from_utf8_lossy(bytes).chars().take(200).collect())
        })?;
        Ok(Some(match answer {
            Answer::Ready { .. } => WarmEvent::Ready,
            Answer::Pong { .. } => WarmEvent::Pong,
            Answer::Unstarted { unstarted } => return Err(Error::Unstarted(unstarted)),
            Answer::Started { started, pid } => WarmEvent::Started {
                key: started,
                process: self.child_process(pid),
            },
            Answer::Failed { failed, message } => WarmEvent::Failed {
                key: failed,
                message,
            },
            Answer::Exited {
                exited,
                code,
                signal,
                rss_max_kib,
            } => WarmEvent::Exited {
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

/// Logs what an interpreter prints, until no process has its stderr open.
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

/// Bytes of a line of an interpreter that are logged as one.
const LINE_SIZE_MAX: u64 = 4096;

/// Whose child a process is.
enum Parent {
    /// The interpreter's.
    Own,
    /// Another's.
    Other,
    /// It has been reaped.
    None,
}

/// The number of a pidfd's process, -1 when it is reaped.
fn number_of(pidfd: &OwnedFd) -> io::Result<Option<i32>> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    Ok(number.and_then(|number| number.trim().parse().ok()))
}

/// A pipe whose reading end does not block and whose writing end does.
fn pipe_pair() -> io::Result<(OwnedFd, Receiver)> {
    let (sender, receiver) = pipe::new()?;
    sender.set_nonblocking(false)?;
    Ok((OwnedFd::from(sender), receiver))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Parameters, Plugin};
    use crate::plugin::source::Source;

    #[test]
    fn only_children_of_an_interpreter_are_taken_for_such() {
        let dir = tempfile::tempdir().unwrap();
        let shim = dir.path().join("shim");
        let text = format!(
            "sleep 1000 & echo $! > {0}/new; mv {0}/new {0}/child; wait",
            dir.path().display()
        );
        std::fs::write(&shim, text).unwrap();
        let warm = Warm::start(Path::new("/bin/sh"), &shim, Imports::None, None).unwrap();
        let child = loop {
            if let Ok(text) = std::fs::read_to_string(dir.path().join("child")) {
                break text.trim().parse().unwrap();
            }
            std::thread::yield_now();
        };
        let own = i32::try_from(std::process::id()).unwrap();
        let mut reaped = std::process::Command::new("true").spawn().unwrap();
        let ended = i32::try_from(reaped.id()).unwrap();
        reaped.wait().unwrap();
        let taken = |number| warm.child_process(number);
        let Started::Running(process) = taken(child).unwrap() else {
            panic!("it runs");
        };
        assert_eq!(process.id(), child);
        // Reaped, and beyond the kernel's highest process ID.
        for number in [ended, 1 << 30] {
            let taken = taken(number).unwrap();
            assert!(matches!(taken, Started::Ended(ended) if ended == number));
        }
        for (number, words) in [
            (own, "is none of the interpreter's"),
            (0, "0 is no process ID"),
            (-child, "is no process ID"),
        ] {
            let error = taken(number).unwrap_err().to_string();
            assert!(error.contains(words), "{number}: {error}");
        }
        warm.process.kill();
    }

    #[test]
    fn an_interpreter_that_reads_no_requests_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let shim = dir.path().join("shim");
        std::fs::write(&shim, "exec sleep 1000").unwrap();
        let mut warm = Warm::start(Path::new("/bin/sh"), &shim, Imports::None, None).unwrap();
        let source = Source::new(Plugin::default().into()).unwrap();
        let job = Job {
            job_id: 1,
            file_version_id: 1,
            plugin_name: "p",
            file_path: "in",
            source: &source,
            parameters: &Parameters::default(),
            shim: None,
            interpreter: None,
            sandbox: None,
            open_files: 0,
            socket_path: &shim,
            work_dir: dir.path(),
        };
        let refused = (0..100_000).find_map(|key| warm.request(key, &job).err());
        assert!(matches!(refused, Some(Error::Full)), "{refused:?}");
        assert!(!warm.process().has_exited());
    }
}
