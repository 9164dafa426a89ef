//! The programs under test: started, killed, stopped and found again. Nothing of them is left
//! when they are dropped.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::common::program;
use crate::faults::Faults;

/// Poll interval of waits.
pub(crate) const PERIOD: Duration = Duration::from_millis(10);

/// Sends a signal; a process that has ended is fine.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// A program that is started again and again with the same arguments. It must be started by a
/// thread that outlives it: the kernel kills it with that thread.
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) faults: Faults,
    command: Vec<String>,
    log: PathBuf,
    temporary: PathBuf,
    child: Option<Child>,
    is_stopped: bool,
    /// It was told to end or killed by us.
    is_ending: bool,
    /// How it ended without being told to.
    pub(crate) ends: Vec<String>,
}

impl Program {
    /// `command`: the program's name and its arguments. Logs and temporary files are kept in `dir`.
    pub(crate) fn new(name: &str, dir: &Path, out: &Path, command: &[&str]) -> Self {
        let temporary = dir.join("t");
        std::fs::create_dir_all(&temporary).unwrap();
        Program {
            name: name.to_owned(),
            faults: Faults::new(&dir.join(format!("{name}.faults")), out),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            log: dir.join(format!("{name}.log")),
            temporary,
            child: None,
            is_stopped: false,
            is_ending: false,
            ends: Vec::new(),
        }
    }

    pub(crate) fn start(&mut self) {
        if self.is_up() {
            return;
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let mut command = program(&self.command[0]);
        command
            .args(&self.command[1..])
            .env("TMPDIR", &self.temporary)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.faults.load(&mut command);
        self.child = Some(command.spawn().expect("the program starts"));
        self.is_stopped = false;
        self.is_ending = false;
    }

    /// Starts a sentinel and waits for its port, which it keeps over restarts.
    pub(crate) fn start_sentinel(&mut self) -> u16 {
        self.start();
        let endpoint = self.log_line("listens on ");
        let port = endpoint.rsplit(':').next().unwrap().trim().parse().unwrap();
        let bind = self
            .command
            .iter_mut()
            .find(|word| word.starts_with("tcp://"));
        *bind.unwrap() = format!("tcp://127.0.0.1:{port}");
        port
    }

    /// Waits for a line of its log.
    pub(crate) fn log_line(&self, text: &str) -> String {
        wait(
            &format!("{} says {text:?}", self.name),
            Duration::from_secs(60),
            || {
                self.log_text()
                    .lines()
                    .find(|line| line.contains(text))
                    .map(str::to_owned)
            },
        )
        .unwrap_or_else(|problem| panic!("{problem}: {}", self.log_text()))
    }

    pub(crate) fn log_text(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.child.is_some()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM; [`Program::poll`] sees the end.
    pub(crate) fn terminate(&mut self) {
        if let Some(pid) = self.pid() {
            self.is_ending = true;
            signal(pid, Signal::TERM);
        }
    }

    pub(crate) fn stop(&mut self) {
        if let Some(pid) = self.pid() {
            self.is_stopped = true;
            signal(pid, Signal::STOP);
        }
    }

    pub(crate) fn resume(&mut self) {
        if let Some(pid) = self.pid() {
            self.is_stopped = false;
            signal(pid, Signal::CONT);
        }
    }

    /// Polls for its exit; an unexpected one is kept in `ends`.
    pub(crate) fn poll(&mut self) {
        let Some(child) = &mut self.child else { return };
        let Some(status) = child.try_wait().unwrap() else {
            return;
        };
        self.child = None;
        if !self.is_ending || status.code() == Some(101) {
            let text = self.log_text();
            let last = text.lines().last().unwrap_or("");
            self.ends
                .push(format!("{} ended with {status}: {last}", self.name));
        }
    }

    /// SIGTERM and the end; SIGKILL when that takes too long, which is a problem.
    pub(crate) fn shut_down(&mut self, deadline: Duration) -> Result<(), String> {
        self.resume();
        self.terminate();
        let done = wait(
            &format!("{} ends after SIGTERM", self.name),
            deadline,
            || {
                self.poll();
                (!self.is_up()).then_some(())
            },
        );
        self.kill();
        done
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Repeats `step` until it gives a value; the error names what did not come.
pub(crate) fn wait<T>(
    what: &str,
    deadline: Duration,
    mut step: impl FnMut() -> Option<T>,
) -> Result<T, String> {
    let until = Instant::now() + deadline;
    loop {
        if let Some(value) = step() {
            return Ok(value);
        }
        if Instant::now() > until {
            return Err(format!("{what}: not within {deadline:?}"));
        }
        std::thread::sleep(PERIOD);
    }
}

/// What a process below our folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// An interpreter that forks children for jobs.
    Warm,
    /// It runs a plugin.
    Plugin,
    Program,
}

/// The live processes whose command line or BRIDGE_SOCKET is below a folder.
pub(crate) fn processes(dir: &Path) -> Vec<(u32, Role)> {
    let dir = dir.to_str().unwrap();
    let mut found = Vec::new();
    let mut programs = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok());
        let Some(pid) = pid else { continue };
        let read = |name: &str| {
            let bytes = std::fs::read(entry.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        // Empty for a process that has ended and is not reaped.
        let line = read("cmdline");
        let socket = format!("BRIDGE_SOCKET={dir}");
        let is_ours = line.contains(dir) || read("environ").contains(&socket);
        if line.is_empty() || !is_ours || pid == std::process::id() {
            continue;
        }
        let is_program = line
            .split('\0')
            .next()
            .is_some_and(|name| name.contains("casparian-"));
        if is_program {
            programs.insert(pid);
        }
        let stat = read("stat");
        let after_name = stat.rsplit(") ").next().unwrap_or("");
        let parent = after_name
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse::<u32>().ok());
        found.push((
            pid,
            parent.unwrap_or(0),
            is_program,
            line.contains("\0--warm\0"),
        ));
    }
    let role = |(pid, parent, is_program, is_warm): (u32, u32, bool, bool)| {
        let role = match (is_program, is_warm && programs.contains(&parent)) {
            (true, _) => Role::Program,
            (false, true) => Role::Warm,
            (false, false) => Role::Plugin,
        };
        (pid, role)
    };
    found.into_iter().map(role).collect()
}

/// Waits for the end of everything below a folder; gives what lives on, and kills it.
pub(crate) fn orphans(dir: &Path, deadline: Duration) -> usize {
    let gone = wait("all processes end", deadline, || {
        processes(dir).is_empty().then_some(())
    });
    if gone.is_ok() {
        return 0;
    }
    let left = processes(dir);
    for (pid, _) in &left {
        signal(*pid, Signal::KILL);
    }
    left.len()
}

/// Kills what still runs below a folder when it is dropped.
pub(crate) struct Reaper(pub(crate) PathBuf);

impl Drop for Reaper {
    fn drop(&mut self) {
        orphans(&self.0, Duration::from_secs(2));
    }
}

/// The command line of a worker.
pub(crate) fn worker<'a>(endpoint: &'a str, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["casparian-worker", "--connect", endpoint, "--output"];
    words.push(out.to_str().unwrap());
    words.extend(more);
    words
}

/// The command line of a sentinel on a free port. Lost workers fail no job.
pub(crate) fn sentinel<'a>(database: &'a Path, lease: &'a str, retries: &'a str) -> Vec<&'a str> {
    let mut words = vec![
        "casparian-sentinel",
        "--bind",
        "tcp://127.0.0.1:0",
        "--database",
    ];
    words.push(database.to_str().unwrap());
    words.extend(["--lease", lease, "--retries", retries]);
    words
}
