//! A process of the worker's: a fork server, or a plugin process, which is a fork server's child.
//!
//! Either is watched and killed through a pidfd, which names the exact process: neither a
//! process group that it has left nor a stopped parent matters. A process that the worker
//! started is its child, and is reaped here; a fork server reaps its own children.

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

/// A plugin process. Dropping it kills it, and does not wait for its end.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    /// Readable once the process has exited.
    pidfd: OwnedFd,
    /// None of a warm interpreter's child.
    child: Option<Child>,
    reaped: bool,
}

impl Process {
    /// A child of this process, watched through a pidfd. Kills it when that cannot be had.
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
                // Both fail only when it has just exited by itself.
                let _ = child.kill();
                let _ = child.try_wait();
                Err(error.into())
            }
        }
    }

    /// A process that another one reaps.
    pub fn adopt(pid: Pid, pidfd: OwnedFd) -> Self {
        Process {
            pid,
            pidfd,
            child: None,
            reaped: false,
        }
    }

    /// A descriptor that is readable once the process has exited.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Its ID; at its start it leads the process group of the same number.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Sets the limits of open files of a process that has not been reaped: the soft one, and a hard one
    /// below the soft one of this process. As many descriptors as its limit may a process have on the way between sockets before
    /// it can send none, and those of all processes of the user count (unix(7), ETOOMANYREFS).
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

    /// Kills the process, also in another process group, and the group that it led.
    pub fn kill(&self) {
        // Fails with ESRCH once it has been reaped; then its number may be another's.
        if !self.reaped && rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL).is_ok() {
            // ESRCH: the group is empty.
            let _ = rustix::process::kill_process_group(self.pid, Signal::KILL);
        }
    }

    /// True once it has exited, reaped or not.
    pub fn has_exited(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    /// Waits until it has exited, at most until then.
    pub fn wait_until(&self, until: BootTime) {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let left = until.saturating_duration_since(BootTime::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        // An interruption counts as its end.
        let _ = poll(&mut fds, Some(&left));
    }

    /// Reaps a child of the worker once it has exited, and returns how it ended. Its group is
    /// killed before, so the group's number cannot have become another's. None while it runs,
    /// and for a process that another one reaps.
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

    /// How a process ended that has exited and has not been reaped, as the kernel shows it in
    /// /proc.
    pub fn unreaped_exit(&self) -> Option<Exit> {
        let stat = proc_file::read(format!("/proc/{}/stat", self.id())).ok()?;
        // After the name, which may contain anything: state is the first field, the wait
        // status the last.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        if fields.next() != Some("Z") {
            return None;
        }
        let status: i32 = fields.last()?.parse().ok()?;
        Some(exit_of(ExitStatus::from_raw(status)))
    }

    /// Most memory that it has had so far, in bytes; 0 when that is not known or it has exited.
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
            // Reaped here only if it has exited already: a wait could last for ever.
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
    fn ends_are_told_by_proc_and_by_wait() {
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
        // Its number may be another's by now.
        process.kill();
    }
}
