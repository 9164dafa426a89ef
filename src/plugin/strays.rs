//! Strays: children of this process that it has not started. They are orphans that it got as a subreaper.
//!
//! A worker, its fork servers and their plugin processes (`shim.py`) are subreapers. So all processes that a
//! plugin starts stay descendants of its plugin process, in whatever session or process group they are. A
//! fork server kills what an ended plugin process has left. When a fork server is lost, its descendants
//! become children of the worker.
//!
//! Two kinds of children are not strays although this process has not started them:
//!
//! - Children of the shell script that became this program by `exec`, and their descendants (`INHERITED`).
//! - Where this process is the first one of a container: orphans of other programs (see `Held`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};

use crate::{limits, proc_file};

/// Children that were started here and have not been waited for.
static KNOWN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn known() -> MutexGuard<'static, BTreeSet<i32>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processes that existed before [`adopt`], and their descendants found since. Values: start times as
/// [`started`] returns them.
static INHERITED: Mutex<BTreeMap<i32, u64>> = Mutex::new(BTreeMap::new());

/// Whether [`adopt`] has been called.
static ADOPTED: AtomicBool = AtomicBool::new(false);

/// Starts a child that [`kill`] spares until [`forget`].
pub(super) fn spawn(command: &mut Command) -> io::Result<Child> {
    // The lock is held over both steps, so that [`kill`] never takes the new child for a stray.
    let mut known = known();
    let child = command.spawn()?;
    known.insert(Pid::from_child(&child).as_raw_pid());
    Ok(child)
}

/// Forgets a child that has been waited for. Its process ID may be used again.
pub(super) fn forget(pid: Pid) {
    known().remove(&pid.as_raw_pid());
}

/// Makes this process a subreaper. The children that it has at the first call are spared by [`kill`].
pub fn adopt() -> io::Result<()> {
    let known = known();
    if !ADOPTED.load(Ordering::Relaxed) {
        let others = children().into_iter().map(Pid::as_raw_pid);
        let others = others.filter(|pid| !known.contains(pid));
        let mut inherited = inherited();
        inherited.extend(others.filter_map(|pid| Some((pid, started(pid)?))));
        follow(&mut inherited);
    }
    // Any process ID enables it; `None` disables it.
    set_child_subreaper(Some(rustix::process::getpid()))?;
    ADOPTED.store(true, Ordering::Relaxed);
    Ok(())
}

fn inherited() -> MutexGuard<'static, BTreeMap<i32, u64>> {
    INHERITED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes processes that have ended, and adds the descendants of the others.
fn follow(inherited: &mut BTreeMap<i32, u64>) {
    inherited.retain(|pid, start| {
        if started(*pid) != Some(*start) {
            return false;
        }
        // Reaps the process if it is a child that has ended.
        let ended = waitpid(Pid::from_raw(*pid), WaitOptions::NOHANG);
        !matches!(ended, Ok(Some(_)))
    });
    let mut above: Vec<i32> = inherited.keys().copied().collect();
    while let Some(pid) = above.pop() {
        if inherited.len() >= limits::INHERITED_MAX {
            return;
        }
        for child in children_of(pid) {
            if let Some(start) = started(child)
                && inherited.insert(child, start).is_none()
            {
                above.push(child);
            }
        }
    }
}

/// The start time of a process, in clock ticks since boot.
fn started(pid: i32) -> Option<u64> {
    let stat = proc_file::read(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Calls [`kill`] if [`adopt`] was called in this process. Otherwise returns false, because children that
/// this process has not started may belong to another program.
pub(super) fn kill_adopted() -> bool {
    ADOPTED.load(Ordering::Relaxed) && kill()
}

/// Kills and reaps the strays. Returns true if there were any: some may not have ended yet, or may have left
/// further orphans.
pub fn kill() -> bool {
    let known = known();
    let mut inherited = inherited();
    if !inherited.is_empty() {
        follow(&mut inherited);
    }
    let strays = children().into_iter().filter(|pid| {
        let pid = pid.as_raw_pid();
        !known.contains(&pid) && !inherited.contains_key(&pid)
    });
    let own = (own_id() == 1).then(|| Held::of(1)).flatten();
    strays.fold(false, |left, pid| {
        if own.is_some_and(|own| !own.is_passed(pid)) {
            // Reaps the process if it has ended.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            return left;
        }
        // Fails for a process that has ended and is still to be reaped.
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        true
    })
}

/// The restrictions of a process that its children inherit.
#[derive(Clone, Copy)]
struct Held {
    no_new_privs: u32,
    filters: u32,
}

impl Held {
    fn of(pid: i32) -> Option<Self> {
        let status = proc_file::read(format!("/proc/{pid}/status")).ok()?;
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        Some(Held {
            no_new_privs: value("NoNewPrivs:")?,
            filters: value("Seccomp_filters:").unwrap_or(0),
        })
    }

    /// True for a process that is more restricted than this one, as plugin processes and tools are except in
    /// mode `off`. The first process of a container is the parent of all orphans in it, also of those that an
    /// operator has started.
    fn is_passed(self, pid: Pid) -> bool {
        Held::of(pid.as_raw_pid()).is_some_and(|other| {
            other.no_new_privs > self.no_new_privs || other.filters > self.filters
        })
    }
}

fn own_id() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

/// The children of this process, including those that have ended and have not been waited for.
fn children() -> Vec<Pid> {
    let children = children_of(own_id()).into_iter();
    children.filter_map(Pid::from_raw).collect()
}

/// The children of a process, including those that have ended and have not been waited for.
pub fn children_of(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let lists: Vec<String> = (tasks.into_iter().flatten().flatten())
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .collect();
    if !lists.is_empty() {
        let pids = lists.iter().flat_map(|list| list.split_ascii_whitespace());
        return pids.filter_map(|pid| pid.parse().ok()).collect();
    }
    // The kernel has no such files (it lacks CONFIG_PROC_CHILDREN).
    let parent = pid.to_string();
    let is_child = |name: &str| {
        let stat = proc_file::read(format!("/proc/{name}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        Some(fields.split_ascii_whitespace().nth(1)? == parent)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| is_child(name) == Some(true))
        .filter_map(|name| name.parse().ok())
        .collect()
}
