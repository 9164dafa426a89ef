//! A guest in a fresh interpreter.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use mio::unix::pipe::Receiver;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::{Exit, Job, variables, write_plugin};

/// The guest's stdout and stderr.
#[derive(Debug)]
pub struct Pipes {
    /// Its stdout.
    pub stdout: Receiver,
    /// Its stderr.
    pub stderr: Receiver,
}

/// A guest's process that is our child.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: Pid,
    /// Readable once the process has exited.
    pidfd: OwnedFd,
}

/// Starts an interpreter for one job: own process group, scrubbed environment, working
/// directory of its own. The shim asks the kernel to be killed with its parent.
pub fn spawn(interpreter: &Path, shim: &Path, job: &Job<'_>) -> io::Result<(Process, Pipes)> {
    let plugin_file = write_plugin(job)?;
    let mut child = Command::new(interpreter)
        .arg(shim)
        .env_clear()
        .envs(variables(job, &plugin_file))
        .current_dir(job.work_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let set_up = |child: &mut Child| -> io::Result<(Pid, OwnedFd, Pipes)> {
        let pid = Pid::from_child(child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let missing = || io::Error::other("a pipe of the child is missing");
        let stdout = Receiver::from(child.stdout.take().ok_or_else(missing)?);
        let stderr = Receiver::from(child.stderr.take().ok_or_else(missing)?);
        stdout.set_nonblocking(true)?;
        stderr.set_nonblocking(true)?;
        Ok((pid, pidfd, Pipes { stdout, stderr }))
    };
    match set_up(&mut child) {
        Ok((pid, pidfd, pipes)) => Ok((Process { child, pid, pidfd }, pipes)),
        Err(error) => {
            // Both fail only when it has just exited by itself.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

impl Process {
    /// A descriptor that is readable once the process has exited.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Its id, which is also its process group's.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Kills the whole process group.
    pub fn kill_group(&self) {
        // ESRCH: it is gone already.
        let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
    }

    /// How it ended, once it has: its group is killed before it is reaped, so its id cannot
    /// belong to anybody else.
    pub fn try_exit(&mut self) -> io::Result<Option<Exit>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if rustix::process::waitid(WaitId::Pid(self.pid), options)?.is_none() {
            return Ok(None);
        }
        self.kill_group();
        let status = self.child.wait()?;
        use std::os::unix::process::ExitStatusExt;
        Ok(Some(Exit {
            code: status.code(),
            signal: status.signal(),
            rss_max_bytes: 0,
        }))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill_group();
            if let Err(error) = self.child.wait() {
                log::warn!("cannot reap process {}: {error}", self.child.id());
            }
        }
    }
}
