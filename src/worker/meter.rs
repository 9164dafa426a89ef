//! Measures what running jobs use, on a thread of its own, because a job may have many processes and its
//! folder any content.
//!
//! A request lists the running jobs. The answer has the resource usage of each. There is one request at a
//! time. A job that ends before the first request is not measured.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::event::{ThreadEvent, Usage};
use crate::job::LimitOf;
use crate::limits;
use crate::plugin::quota::Quota;
use crate::plugin::strays;
use crate::proc_file;
use crate::reactor::BootTime;
use crate::thread;

/// A running job that is measured.
pub(super) struct Subject {
    pub(super) serial: u64,
    /// ID of its first process.
    pub(super) pid: i32,
    pub(super) work_dir: PathBuf,
    /// Bytes of the plugin's own files in the working directory.
    pub(super) plugin_size: u64,
    pub(super) quota: Quota,
}

/// The handle of the thread. The thread ends when it is dropped.
pub(super) struct Meter {
    requests: SyncSender<Vec<Subject>>,
    due_at: Option<BootTime>,
}

impl Meter {
    pub(super) fn start(events: Sender<ThreadEvent>, waker: Arc<mio::Waker>) -> io::Result<Self> {
        let (requests, received) = sync_channel::<Vec<Subject>>(0);
        thread::start("meter", move || {
            for subjects in received {
                let usages = subjects.iter().map(measure).collect();
                // The receiver is dropped only when the worker stops.
                if events.send(ThreadEvent::Usage(usages)).is_ok()
                    && let Err(error) = waker.wake()
                {
                    log::error!("cannot wake the worker: {error}");
                }
            }
        })?;
        Ok(Meter {
            requests,
            due_at: None,
        })
    }

    /// When [`Meter::poll`] is due.
    pub(super) fn poll_timeout(&self) -> Option<BootTime> {
        self.due_at
    }

    /// Requests a measurement if one is due. `subjects` = the running jobs.
    pub(super) fn poll(
        &mut self,
        is_busy: bool,
        subjects: impl FnOnce() -> Vec<Subject>,
        now: BootTime,
    ) {
        if !is_busy {
            self.due_at = None;
            return;
        }
        let due = *self.due_at.get_or_insert(now + limits::METER_INTERVAL);
        if due <= now {
            self.due_at = Some(now + limits::METER_INTERVAL);
            // The thread accepts a request only while it waits for one.
            let _ = self.requests.try_send(subjects());
        }
    }
}

fn measure(subject: &Subject) -> Usage {
    let quota = &subject.quota;
    let mut usage = Usage {
        serial: subject.serial,
        ..Usage::default()
    };
    let most = match quota.processes {
        0 => limits::METER_PROCESSES_MAX,
        limit => limit.saturating_add(1),
    };
    let mut found = vec![subject.pid];
    let mut all = Vec::new();
    while let Some(pid) = found.pop() {
        usage.processes += 1;
        all.push(pid);
        if quota.cpu > 0 {
            usage.cpu += cpu(pid);
        }
        if quota.memory > 0 {
            usage.memory = usage.memory.saturating_add(memory(pid));
        }
        // One list of children may have more than the limit.
        if usage.processes + found.len() as u64 > most {
            usage.processes += found.len() as u64;
            break;
        }
        found.extend(strays::children_of(pid));
    }
    if quota.memory > 0 && usage.memory > quota.memory && all.len() > 1 {
        let shares = all.iter().map(|&pid| memory_share(pid));
        let shared = shares.fold(0, u64::saturating_add);
        usage.memory = shared.max(memory(subject.pid));
    }
    if quota.scratch > 0 {
        let limit = quota.scratch.saturating_add(subject.plugin_size);
        let size = folder_size(&subject.work_dir, limit);
        usage.scratch = size.saturating_sub(subject.plugin_size);
    }
    usage
}

/// CPU time of a process and of children that it has waited for.
fn cpu(pid: i32) -> Duration {
    let stat = proc_file::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The process name may contain anything, so the fields after it are read. The times are fields 14 to 17.
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    let times = fields.split_ascii_whitespace().skip(11).take(4);
    let ticks: u64 = times.filter_map(|time| time.parse::<u64>().ok()).sum();
    // Linux reports hundredths of a second here, whatever its own clock frequency is.
    Duration::from_millis(ticks.saturating_mul(10))
}

/// Resident bytes of a process, including its page tables.
pub(super) fn memory(pid: i32) -> u64 {
    memory_by(&format!("/proc/{pid}/status")).unwrap_or_else(|| {
        // If the first thread has ended, only other threads show the memory.
        let threads = fs::read_dir(format!("/proc/{pid}/task"));
        let mut threads = threads.into_iter().flatten().flatten();
        let found = threads.find_map(|thread| memory_by(thread.path().join("status").to_str()?));
        found.unwrap_or(0)
    })
}

/// Resident bytes of a process, in which a page that n processes have mapped counts 1/n. Where Linux does not
/// report that, all of its resident bytes.
fn memory_share(pid: i32) -> u64 {
    let share = field(&format!("/proc/{pid}/smaps_rollup"), "Pss:").filter(|&share| share > 0);
    let tables = || field(&format!("/proc/{pid}/status"), "VmPTE:").unwrap_or(0);
    share.map_or_else(|| memory(pid), |share| share.saturating_add(tables()))
}

fn memory_by(status: &str) -> Option<u64> {
    let tables = field(status, "VmPTE:").unwrap_or(0);
    Some(field(status, "VmRSS:")?.saturating_add(tables))
}

/// The value of a line in a file of `/proc`, converted from KiB to bytes.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = proc_file::read(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// Bytes that a folder's files occupy on disk. Each entry counts at least 4 KiB, so that the walk ends. It
/// also ends when the limit is exceeded, and after [`limits::METER_WALK_MAX`].
pub(super) fn folder_size(folder: &Path, limit: u64) -> u64 {
    let until = Instant::now() + limits::METER_WALK_MAX;
    let mut size = 0u64;
    let mut folders = vec![folder.to_owned()];
    // Files with several names, which count once.
    let mut linked = HashSet::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if size > limit || Instant::now() >= until {
                return size;
            }
            let Ok(found) = fs::symlink_metadata(entry.path()) else {
                continue;
            };
            let is_linked = found.nlink() > 1 && !found.is_dir();
            if is_linked && !linked.insert((found.dev(), found.ino())) {
                size = size.saturating_add(4096);
                continue;
            }
            size = size.saturating_add(found.blocks().saturating_mul(512).max(4096));
            if found.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    size
}

/// Number of processes that the kernel has killed on this machine for lack of memory since the boot.
pub(super) fn oom_kills() -> Option<u64> {
    let counts = std::fs::read_to_string("/proc/vmstat").ok()?;
    let count = counts
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "));
    count?.parse().ok()
}

/// The message if a job exceeds one of its limits.
pub(super) fn excess(
    usage: &Usage,
    memory_at_start: u64,
    quota: &Quota,
    own: &Quota,
) -> Option<String> {
    let over = |used: u64, limit: u64| limit > 0 && used > limit;
    let cpu = usage.cpu.as_secs_f64();
    let memory = usage.memory.saturating_sub(memory_at_start);
    if quota.cpu > 0 && cpu > quota.cpu as f64 {
        let whose = LimitOf::new(quota.cpu, own.cpu).shown("job-cpu");
        return Some(format!(
            "the job used {cpu:.1} s of processor time; its limit is {} s ({whose})",
            quota.cpu
        ));
    }
    if over(memory, quota.memory) {
        let whose = LimitOf::new(quota.memory, own.memory).shown("job-memory");
        return Some(format!(
            "the job's processes had {memory} bytes in memory more than at its start; its limit is {} ({whose})",
            quota.memory
        ));
    }
    if over(usage.processes, quota.processes) {
        let whose = LimitOf::new(quota.processes, own.processes).shown("job-processes");
        return Some(format!(
            "the job had {} processes or more; its limit is {} ({whose})",
            usage.processes, quota.processes
        ));
    }
    if over(usage.scratch, quota.scratch) {
        let whose = LimitOf::new(quota.scratch, own.scratch).shown("job-scratch");
        return Some(format!(
            "the job had {} bytes or more in its working directory; its limit is {} ({whose})",
            usage.scratch, quota.scratch
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_counts_what_it_holds_up_to_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/c"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).unwrap();
        fs::hard_link(dir.path().join("a/b/c"), dir.path().join("a/same")).unwrap();
        let size = folder_size(dir.path(), u64::MAX);
        assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&size), "{size}");
        assert!(folder_size(dir.path(), 4096) <= 3 * 4096 + (1 << 20));
    }

    /// The first thread of the process ends. Another thread has the memory.
    #[test]
    fn the_memory_of_a_process_without_its_first_thread_counts() {
        use std::process::{Command, Stdio};
        let script = "import ctypes, threading, time\n\
            def hold():\n    held = b'x' * (64 << 20)\n    main.join(0.2)\n    print('up', flush=True)\n    time.sleep(60)\n\
            main = threading.current_thread()\nthreading.Thread(target=hold).start()\n\
            ctypes.CDLL(None).syscall(60 if __import__('os').uname().machine == 'x86_64' else 93, 0)\n";
        let mut child = Command::new("python3")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 3];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let used = memory(pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(used > 64 << 20, "{used}");
    }

    #[test]
    fn a_process_is_measured_with_its_descendants() {
        use std::process::{Command, Stdio};
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60 & sleep 60 & echo up; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 3];
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let quota = Quota {
            cpu: 1,
            memory: 1,
            processes: 2,
            ..Quota::default()
        };
        let pid = i32::try_from(child.id()).unwrap();
        let work_dir = PathBuf::from("/");
        let usage = measure(&Subject {
            serial: 1,
            pid,
            work_dir,
            plugin_size: 0,
            quota,
        });
        assert_eq!(usage.processes, 3);
        assert!(usage.memory > 100_000, "{usage:?}");
        let text = excess(&usage, 0, &Quota { memory: 0, ..quota }, &quota).unwrap();
        assert!(text.contains("its limit is 2 (--job-processes)"), "{text}");
        let text = excess(&usage, 0, &quota, &Quota::default()).unwrap();
        assert!(text.contains("(job-memory of the plugin's"), "{text}");
        for pid in strays::children_of(pid) {
            let _ = Command::new("kill").arg(pid.to_string()).status();
        }
        child.wait().unwrap();
    }
}
