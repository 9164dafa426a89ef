//! What programs inherit of signals changes nothing: started with all signals blocked and SIGCHLD
//! ignored, they end when they are told to and see how their processes end.

use std::process::Command;

use casparian::job::JobStatus;

use crate::common::*;
use crate::dispatcher::*;

const LAUNCHER: &str = "\
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
";

/// The same command, started with signals as no program wants them.
fn odd(command: &Command) -> Command {
    let mut odd = Command::new(python());
    odd.args(["-c", LAUNCHER])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => odd.env(name, value),
            None => odd.env_remove(name),
        };
    }
    odd
}

/// A plugin that succeeds when its own signals are as usual.
const USUAL: &str = "\
import subprocess
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
if blocked: raise ValueError(str(blocked))
if signal.getsignal(signal.SIGCHLD) != signal.SIG_DFL: raise ValueError('SIGCHLD')
if subprocess.run(['/bin/sh', '-c', 'exit 3']).returncode != 3: raise ValueError('exit code')
yield pa.table({'x': [1]})";

#[test]
fn a_worker_sees_ends_and_stops_whatever_signals_it_inherits() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::with(&["--plugin-start", start], |command, _| {
            *command = odd(command);
        });
        let receipt = rig.run(USUAL);
        assert_eq!(receipt.status, JobStatus::Success, "{start}: {receipt:?}");
        let receipt = rig.run("os._exit(7)");
        assert_eq!(receipt.metrics["exit_code"], 7, "{start}: {receipt:?}");
        rig.worker.signal("-TERM");
        assert_eq!(rig.worker.wait(), Some(0), "{start}");
    }
}

#[test]
fn a_sentinel_stops_whatever_signals_it_inherits() {
    let dir = tempfile::tempdir().unwrap();
    for signal in ["-TERM", "-INT"] {
        let mut command = program("casparian-sentinel");
        command
            .args(["--bind", "tcp://127.0.0.1:0", "--database"])
            .arg(dir.path().join("queue.sqlite"));
        let mut sentinel = Background::start(&mut odd(&command));
        sentinel.line_with("listens on ");
        sentinel.signal(signal);
        assert_eq!(sentinel.wait(), Some(0), "{signal}");
    }
}

#[test]
fn a_run_ends_and_stops_whatever_signals_it_inherits() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("in"), "x").unwrap();
    std::fs::write(path("good.py"), handler(USUAL)).unwrap();
    let waits = format!(
        "open({:?}, 'w').close()\ntime.sleep(1000)",
        path("mark").to_str().unwrap()
    );
    std::fs::write(path("waits.py"), handler(&waits)).unwrap();
    let run = |plugin: &str| {
        let mut command = program("casparian");
        command
            .args(["run", "--plugin-start", "spawn"])
            .args([path(plugin), path("in")])
            .arg("--output")
            .arg(path(&format!("out-{plugin}")));
        odd(&command)
    };
    let good = output(&mut run("good.py"));
    assert_eq!(good.status.code(), Some(0), "{}", stderr(&good));
    let mut waiting = Background::start(&mut run("waits.py"));
    until("the plugin runs", || path("mark").exists().then_some(()));
    waiting.signal("-TERM");
    waiting.signal("-TERM");
    assert_eq!(waiting.wait(), Some(130));
}
