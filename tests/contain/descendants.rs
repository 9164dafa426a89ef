//! Processes that a plugin leaves behind, however it starts them: they end with its job.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::*;

/// Leaves a process as its input says, and ends as it says. What it leaves holds a shared lock on
/// `<input>.alive`, which all its descendants inherit.
const LEAVER: &str = r#"
import ctypes, fcntl, os, signal, subprocess, sys, time
import pyarrow as pa

def hold():
    while True:
        time.sleep(1000)

def apart(*steps):
    """A child that does each step and stays."""
    if os.fork() == 0:
        for step in steps:
            step()
        hold()

def fork_and_leave():
    if os.fork():
        os._exit(0)

def relay():
    # Its process ID changes all the time.
    while True:
        fork_and_leave()
        time.sleep(0.005)

def crowd():
    for _ in range(50):
        apart(os.setsid, fork_and_leave)
    hold()

def deaf():
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)

LEAVE = {
    "child": lambda: apart(),
    "group": lambda: apart(lambda: os.setpgid(0, 0)),
    "session": lambda: apart(os.setsid),
    "daemon": lambda: apart(fork_and_leave, os.setsid, fork_and_leave),
    "deaf": lambda: apart(deaf, os.setsid, fork_and_leave),
    "stopped": lambda: apart(os.setsid, fork_and_leave, lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "relay": lambda: apart(os.setsid, relay),
    "crowd": lambda: apart(os.setsid, crowd),
    "no subreaper": lambda: (ctypes.CDLL(None).prctl(36, 0), apart(os.setsid, fork_and_leave)),
    "another user": lambda: apart(os.setsid, fork_and_leave, lambda: os.geteuid() or os.setresuid(1234, 1234, 1234)),
    "program": lambda: subprocess.Popen(["setsid", "sleep", "1000"], close_fds=False),
}

class Handler:
    def execute(self, path):
        leave, _, end = open(path).read().partition("/")
        lock = open(path + ".alive", "w")
        os.set_inheritable(lock.fileno(), True)
        fcntl.flock(lock, fcntl.LOCK_SH)
        LEAVE[leave]()
        time.sleep(0.05)
        open(path + ".left", "w").close()
        if end == "raise":
            raise ValueError("on purpose")
        if end == "exit":
            os._exit(3)
        if end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == "hang":
            hold()
        if end == "orphan":
            os.kill(os.getppid(), signal.SIGKILL)
            hold()
        yield pa.table({"x": [1]})
"#;

/// Ends when its own child ends, which a job of others must not bring about.
const NEIGHBOUR: &str = r#"
import subprocess
import pyarrow as pa
class Handler:
    def execute(self, path):
        child = subprocess.Popen(["setsid", "--fork", "--wait", "sleep", "3"])
        yield pa.table({"x": [child.wait()]})
"#;

fn input(dir: &Path, name: &str, text: &str) -> PathBuf {
    let file = dir.join(name);
    fs::write(&file, text).unwrap();
    file
}

/// Waits until a job's plugin has left its process.
fn left(file: &Path) {
    let mark = beside(file, ".left");
    until("a process is left", || mark.exists().then_some(()));
}

/// Waits until nobody holds the lock of what a job has left.
fn gone(file: &Path, what: &str) {
    let lock = fs::File::open(beside(file, ".alive")).unwrap();
    until(&format!("{what}: what the plugin left ends"), || {
        lock.try_lock().ok()
    });
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}{ending}", file.to_str().unwrap()))
}

#[test]
fn what_a_plugin_leaves_ends_with_its_job() {
    let leaves = [
        "child",
        "group",
        "session",
        "daemon",
        "deaf",
        "stopped",
        "relay",
        "crowd",
        "no subreaper",
        "another user",
        "program",
    ];
    for start in ["warm", "spawn"] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "leaver", LEAVER);
        let neighbour = input(dir.path(), "neighbour.py", NEIGHBOUR);
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        casparian_ok(&["deploy", &text(&neighbour), "-d", &text(&database)]);
        let mut cases: Vec<(String, &str)> = leaves
            .iter()
            .map(|leave| (format!("{leave}/return"), "COMPLETED"))
            .collect();
        for end in ["raise", "exit", "kill", "hang"] {
            cases.push((format!("daemon/{end}"), "FAILED"));
        }
        let files: Vec<_> = cases
            .iter()
            .enumerate()
            .map(|(number, (text, _))| input(dir.path(), &format!("{number:02}"), text))
            .collect();
        let beside = submit(&database, "neighbour", &[input(dir.path(), "n", "")]);
        let ids = submit(&database, "leaver", &files);
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let out = dir.path().join("out");
        let more = [
            "--slots",
            "2",
            "--plugin-start",
            start,
            "--job-timeout",
            "5",
        ];
        let mut worker = worker(&endpoint, &out, &more);
        for ((id, file), (case, status)) in ids.iter().zip(&files).zip(&cases) {
            let done = ended(&database, *id);
            assert_eq!(done["status"], *status, "{start} {case}: {done}");
            gone(file, &format!("{start} {case}"));
        }
        let done = ended(&database, beside[0]);
        assert_eq!(done["status"], "COMPLETED", "{start}: {done}");
        worker.signal("-TERM");
        worker.wait();
    }
}

#[test]
fn what_a_plugin_leaves_ends_with_its_worker_and_with_its_interpreter() {
    for start in ["warm", "spawn"] {
        for (signal, end) in [("-TERM", "hang"), ("-KILL", "hang"), ("", "orphan")] {
            for leave in ["daemon", "relay"] {
                let what = format!("{start} {signal} {leave}/{end}");
                let dir = tempfile::tempdir().unwrap();
                let database = database_with(dir.path(), "leaver", LEAVER);
                let file = input(dir.path(), "in", &format!("{leave}/{end}"));
                submit(&database, "leaver", std::slice::from_ref(&file));
                let (_sentinel, endpoint) = sentinel(&database, &[]);
                // With a sandbox no plugin can kill its interpreter.
                let sandbox = if signal.is_empty() { "off" } else { "on" };
                let more = [
                    "--slots",
                    "1",
                    "--plugin-start",
                    start,
                    "--sandbox",
                    sandbox,
                ];
                let mut worker = worker(&endpoint, &dir.path().join("out"), &more);
                left(&file);
                match signal {
                    "" => drop(fs::remove_file(beside(&file, ".left"))),
                    "-TERM" => {
                        worker.signal(signal);
                        worker.signal(signal);
                        worker.wait();
                    }
                    _ => worker.kill(),
                }
                if signal.is_empty() {
                    // It is tried again, with the same end: each time what it left goes.
                    left(&file);
                    worker.signal("-TERM");
                    worker.signal("-TERM");
                    worker.wait();
                }
                gone(&file, &what);
            }
        }
    }
}

#[test]
fn what_a_plugin_leaves_ends_with_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = input(dir.path(), "leaver.py", LEAVER);
    for (number, text) in ["daemon/return", "relay/return", "daemon/kill"]
        .iter()
        .enumerate()
    {
        let folder = dir.path().join(format!("in-{number}"));
        fs::create_dir(&folder).unwrap();
        let file = input(&folder, "in", text);
        let out = dir.path().join(format!("out-{number}"));
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        casparian(&["run", &path(&plugin), &path(&file), "-o", &path(&out)]);
        gone(&file, text);
    }
}

/// What a start script has begun before it becomes our program by `exec`; each writes its process ID into the folder.
const HELPERS: &[(&str, &str)] = &[
    ("child", "sleep 300 >&- 2>&- & echo $! > \"$D/child\""),
    (
        "session",
        "setsid sh -c 'echo $$ > \"$D/session\"; exec sleep 300 >&- 2>&-' &",
    ),
    (
        "grandchild",
        "(sleep 300 & echo $! > \"$D/grandchild\"; wait) >&- 2>&- &",
    ),
    (
        "orphan",
        "(sleep 300 & echo $! > \"$D/orphan\"; sleep 2) >&- 2>&- &",
    ),
];

#[test]
fn what_a_start_script_has_begun_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "leaver", LEAVER);
    let file = input(dir.path(), "in", "daemon/return");
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let helpers: Vec<&str> = HELPERS.iter().map(|(_, script)| *script).collect();
    let script = format!(
        "{}\nwhile [ $(ls \"$D\" | wc -l) -lt {} ]; do sleep 0.05; done\nexec \"$@\"",
        helpers.join("\n"),
        HELPERS.len()
    );
    for name in ["casparian-worker", "casparian"] {
        let folder = dir.path().join(format!("{name}.helpers"));
        fs::create_dir(&folder).unwrap();
        let mut command = std::process::Command::new("sh");
        command
            .args(["-c", &script, "sh"])
            .arg(program(name).get_program())
            .env("HOME", home())
            .env("D", &folder);
        if name == "casparian" {
            command.args(["run", &path("leaver.py"), &path("in"), "-o", &path("run")]);
            assert!(command.status().unwrap().success());
        } else {
            command.args(["--connect", &endpoint, "--output", &path("out")]);
            let mut worker = Background::start(&mut command);
            // After the second one's end the orphan is the worker's child.
            for round in 0..2 {
                let ids = submit(&database, "leaver", std::slice::from_ref(&file));
                let done = ended(&database, ids[0]);
                assert_eq!(done["status"], "COMPLETED", "{done}");
                gone(&file, name);
                if round == 0 {
                    let orphan = fs::read_to_string(folder.join("orphan")).unwrap();
                    let status = format!("/proc/{}/status", orphan.trim());
                    let parent = format!("PPid:\t{}\n", worker.pid());
                    until("the orphan comes to the worker", || {
                        let status = fs::read_to_string(&status).unwrap();
                        status.contains(&parent).then_some(())
                    });
                }
            }
            worker.signal("-TERM");
            worker.wait();
        }
        for (helper, _) in HELPERS {
            let pid = fs::read_to_string(folder.join(helper)).unwrap();
            let command = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
            assert!(command.starts_with(b"sleep"), "{name}: {helper} was killed");
            let mut kill = std::process::Command::new("kill");
            assert!(kill.arg(pid.trim()).status().unwrap().success());
        }
    }
}

/// The first process of a container is the parent of all orphans there, as of `docker exec`.
#[test]
fn what_an_operator_starts_beside_the_first_process_of_a_container_goes_on() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "leaver", LEAVER);
    let file = input(dir.path(), "in", "daemon/return");
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let mut command = std::process::Command::new("unshare");
    command
        .args(["-p", "-f", "--mount-proc", "--kill-child"])
        .arg(program("casparian-worker").get_program())
        .env("HOME", home())
        .args(["--connect", &endpoint, "--output"])
        .arg(dir.path().join("out"));
    let worker = Background::start(&mut command);
    let first = until("the worker", || {
        let children = format!("/proc/{0}/task/{0}/children", worker.pid());
        let found = fs::read_to_string(children).unwrap_or_default();
        (!found.trim().is_empty()).then(|| found.trim().to_owned())
    });
    let helper = dir.path().join("helper");
    let script = format!("sleep 300 >&- 2>&- & echo $! > {helper:?}");
    let mut exec = std::process::Command::new("nsenter");
    exec.args(["-t", &first, "-p", "-m", "--", "sh", "-c", &script]);
    assert!(exec.status().unwrap().success());
    for _ in 0..2 {
        let ids = submit(&database, "leaver", std::slice::from_ref(&file));
        let done = ended(&database, ids[0]);
        assert_eq!(done["status"], "COMPLETED", "{done}");
    }
    let pid = fs::read_to_string(&helper).unwrap();
    let command = fs::read(format!("/proc/{first}/root/proc/{}/cmdline", pid.trim()));
    assert!(command.unwrap_or_default().starts_with(b"sleep"));
}
