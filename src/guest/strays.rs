//! Processes that others have left to this one: children of it that it has not started.
//!
//! A worker is a subreaper, and so are its fork servers and their plugin processes (`shim.py`): what
//! a plugin starts stays below its process, whatever session or process group it makes. A fork server
//! kills what an ended plugin process has left. When the fork server itself is lost, that comes to
//! the worker.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};

use crate::proc_file;

/// Children that were started here and have not been waited for.
static KNOWN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn known() -> MutexGuard<'static, BTreeSet<i32>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether [`adopt`] has been called.
static ADOPTED: AtomicBool = AtomicBool::new(false);

/// Starts a child that [`kill`] spares until [`forget`].
pub(super) fn spawn(command: &mut Command) -> io::Result<Child> {
    // Held meanwhile: a child is known before anybody can take it for a stray.
    let mut known = known();
    let child = command.spawn()?;
    known.insert(Pid::from_child(&child).as_raw_pid());
    Ok(child)
}

/// A child has been waited for: its number may become another's.
pub(super) fn forget(pid: Pid) {
    known().remove(&pid.as_raw_pid());
}

/// Makes this process the parent of what its descendants leave behind. For a process that has no other
/// children than those of this library.
pub fn adopt() -> io::Result<()> {
    // Any number but none turns it on.
    set_child_subreaper(Some(rustix::process::getpid()))?;
    ADOPTED.store(true, Ordering::Relaxed);
    Ok(())
}

/// [`kill`] in a process that has called [`adopt`]; false in others, whose children may be anybody's.
pub(super) fn kill_adopted() -> bool {
    ADOPTED.load(Ordering::Relaxed) && kill()
}

/// Kills and reaps the strays; true when some have not ended yet or may have left others.
pub fn kill() -> bool {
    let known = known();
    let strays = children()
        .into_iter()
        .filter(|pid| !known.contains(&pid.as_raw_pid()));
    strays.fold(false, |_, pid| {
        // Fails for one that has ended, which is still there to be reaped.
        let _ = kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        true
    })
}

/// This process's children; those that have ended and were not waited for are among them.
fn children() -> Vec<Pid> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let children = children_of(own).into_iter();
    children.filter_map(Pid::from_raw).collect()
}

/// A process's children; those that have ended and were not waited for are among them.
pub fn children_of(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let lists: Vec<String> = (tasks.into_iter().flatten().flatten())
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .collect();
    if !lists.is_empty() {
        let pids = lists.iter().flat_map(|list| list.split_ascii_whitespace());
        return pids.filter_map(|pid| pid.parse().ok()).collect();
    }
    // A kernel without these files (CONFIG_PROC_CHILDREN).
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
