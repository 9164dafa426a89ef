//! A process that the worker watches: a fork server, or a plugin process, which is a child of a fork server.
//!
//! Either is watched and killed through a pidfd, which identifies exactly one process. So it does not matter
//! whether the process has left its process group, or whether its parent is stopped. A fork server is a child
//! of the worker and is reaped here. A fork server reaps its own children.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};

use mio::unix::pipe::Receiver;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getrlimit, prlimit,
};

use super::{Exit, strays};
use crate::limits;
use crate::proc_file;
use crate::reactor::BootTime;

/// The process's stdout and stderr.
#[derive(Debug)]
pub struct Pipes {
    /// Its stdout.
    pub stdout: Receiver,
    /// Its stderr.
    pub stderr: Receiver,
}

/// A process. Dropping it kills it without waiting for its end.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    /// Readable once the process has exited.
    pidfd: OwnedFd,
    /// None for a plugin process, which its fork server reaps.
    child: Option<Child>,
    reaped: bool,
}

impl Process {
    /// Watches a child of this process through a pidfd. If no pidfd can be opened, the child is killed.
    pub fn of_child(mut child: Child) -> io::Result<Self> {
        let pid = Pid::from_child(&child);
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Process {
                pid,
                pidfd,
                child: Some(child),
                reaped: false,
            }),
            Err(error) => {
                // Both fail only if the child has just exited by itself.
                let _ = child.kill();
                let _ = child.try_wait();
                Err(error.into())
            }
        }
    }

    /// Watches a process that another process reaps.
    pub fn adopt(pid: Pid, pidfd: OwnedFd) -> Self {
        Process {
            pid,
            pidfd,
            child: None,
            reaped: false,
        }
    }

    /// The pidfd, which is readable once the process has exited.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Its process ID. When it starts, it leads the process group with the same ID.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sets the limits of open files (RLIMIT_NOFILE) of a process that has not been reaped. The hard limit is
    /// below the soft limit of this process. The reason: descriptors in flight over Unix sockets are counted
    /// for all processes of a user, and a process cannot send any while the count is above its own limit
    /// (unix(7), ETOOMANYREFS). So plugin processes cannot prevent this process from sending descriptors.
    pub fn limit_descriptors(&self, soft: Option<u64>) -> io::Result<()> {
        let own = getrlimit(Resource::Nofile);
        let reserved = |limit: u64| match limit >= 8 * limits::DESCRIPTORS_RESERVED {
            true => limit - limits::DESCRIPTORS_RESERVED,
            false => limit,
        };
        let maximum = match (own.current.map(reserved), own.maximum) {
            (Some(below), Some(maximum)) => Some(below.min(maximum)),
            (below, maximum) => below.or(maximum),
        };
        let maximum = maximum.map(|maximum| maximum.max(soft.unwrap_or(0)));
        let limit = Rlimit {
            current: soft.or(maximum),
            maximum,
        };
        prlimit(Some(self.pid), Resource::Nofile, limit)?;
        Ok(())
    }

    /// Kills the process, whatever process group it is in, and the group that it led.
    pub fn kill(&self) {
        // Fails with ESRCH once the process has been reaped. Then the ID of the group may be used again.
        if !self.reaped && rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok() {
            // ESRCH: the group is empty.
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        }
    }

    /// True once the process has exited, reaped or not.
    pub fn has_exited(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    /// Waits until the process has exited, but not longer than until the given time.
    pub fn wait_until(&self, until: BootTime) {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let left = until.saturating_duration_since(BootTime::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        // An interruption by a signal also ends the wait.
        let _ = poll(&mut fds, Some(&left));
    }

    /// Reaps a child of this process once it has exited, and returns how it ended. Its process group is
    /// killed before, while its ID cannot be used again. None while the child runs, and for a process that
    /// another process reaps.
    pub fn try_exit(&mut self) -> io::Result<Option<Exit>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if !self.reaped && rustix::process::waitid(WaitId::Pid(self.pid), options)?.is_none() {
            return Ok(None);
        }
        if !self.reaped {
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        }
        let Some(status) = child.try_wait()? else {
            return Ok(None);
        };
        self.reaped = true;
        strays::forget(self.pid);
        Ok(Some(exit_of(status)))
    }

    /// How a process ended that has exited and has not been reaped, read from /proc.
    pub fn unreaped_exit(&self) -> Option<Exit> {
        let stat = proc_file::read(format!("/proc/{}/stat", self.id())).ok()?;
        // The process name may contain anything, so the fields after it are read: the first is the state, the
        // last the wait status.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        if fields.next() != Some("Z") {
            return None;
        }
        let status: i32 = fields.last()?.parse().ok()?;
        Some(exit_of(ExitStatus::from_raw(status)))
    }

    /// Its largest resident size so far, in bytes; 0 if that is unknown or the process has exited.
    pub fn rss_max_bytes(&self) -> u64 {
        let status = proc_file::read(format!("/proc/{}/status", self.id()));
        status
            .ok()
            .and_then(|status| {
                let line = status
                    .lines()
                    .find_map(|line| line.strip_prefix("VmHWM:"))?;
                line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
            })
            .map_or(0, |kib| kib.saturating_mul(1024))
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    Exit {
        code: status.code(),
        signal: status.signal(),
        rss_max_bytes: 0,
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
            // Reaped here only if it has exited already, because waiting could block without bound.
            if let Err(error) = self.try_exit() {
                log::debug!("process {}: {error}", self.id());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    fn start(script: &str) -> Process {
        let child = Command::new("sh")
            .args(["-c", script])
            .process_group(0)
            .spawn()
            .unwrap();
        Process::of_child(child).unwrap()
    }

    fn exit(process: &mut Process) -> Exit {
        let mut fds = [PollFd::new(&process.pidfd, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        assert!(process.has_exited());
        let unreaped = process.unreaped_exit();
        let exit = process.try_exit().unwrap().unwrap();
        assert_eq!(unreaped, Some(exit), "/proc shows what wait gives");
        exit
    }

    #[test]
    fn ends_are_reported_by_proc_and_by_wait() {
        let cases = [
            ("exit 0", Some(0), None),
            ("exit 3", Some(3), None),
            ("kill -9 $$", None, Some(9)),
        ];
        for (script, code, signal) in cases {
            let exit = exit(&mut start(script));
            assert_eq!((exit.code, exit.signal), (code, signal), "{script}");
        }
    }

    #[test]
    fn a_stopped_process_is_killed() {
        let mut process = start("kill -STOP $$; exit 0");
        assert!(process.rss_max_bytes() > 0);
        process.kill();
        assert_eq!(exit(&mut process).signal, Some(9));
        // The process has been reaped, so its ID may be used again.
        process.kill();
    }
}
