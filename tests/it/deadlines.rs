//! Whatever a plugin process, an interpreter or a folder does, its job ends in bounded time and
//! the slot, and the worker, go on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use casparian::job::{Cause, JobStatus, Receipt};
use casparian::plugin::environment;
use casparian::worker::{Options, Worker};

use crate::common::*;
use crate::dispatcher::*;

const GOOD: &str = "yield pa.table({'x': [1]})";

fn succeeds(rig: &mut Rig) {
    let receipt = rig.run(GOOD);
    assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
}

fn caused(receipt: &Receipt, cause: Cause, words: &str) {
    assert_eq!(receipt.cause, Some(cause), "{receipt:?}");
    assert!(first_line(receipt).contains(words), "{receipt:?}");
}

/// Writes its process ID, then does something.
fn marked(mark: &str, body: &str) -> String {
    format!(
        "with open({mark:?} + '.tmp', 'w') as file: file.write(str(os.getpid()))\nos.rename({mark:?} + '.tmp', {mark:?})\n{body}"
    )
}

fn read_mark(mark: &str) -> i32 {
    until("the plugin has started", || {
        std::fs::read_to_string(mark).ok()?.parse().ok()
    })
}

fn has_ended(pid: i32) {
    until("the process is gone", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
            .then_some(())
    });
}

#[test]
fn a_time_out_holds_wherever_the_process_has_gone() {
    let bodies = [
        ("stopped", "os.kill(os.getpid(), signal.SIGSTOP)"),
        (
            "that wants into another group",
            "try: os.setpgid(0, os.getpgid(os.getppid()))\nexcept PermissionError: pass\nwhile True: time.sleep(1)",
        ),
        (
            "with an escaped child",
            "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)\nwhile True: time.sleep(1)",
        ),
        (
            "not dying with its parent",
            "ctypes.CDLL(None).prctl(1, 0)\nfor number in range(1, 32):\n    try: signal.signal(number, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
        ),
    ];
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&[
            "--slots",
            "1",
            "--plugin-start",
            start,
            "--job-timeout",
            "2",
        ]);
        for (name, body) in bodies {
            let mark = rig.path("mark");
            let receipt = rig.run(&marked(&mark, body));
            caused(&receipt, Cause::Plugin, "limit of 2 s");
            assert!(!first_line(&receipt).contains("signal"), "{start} {name}");
            has_ended(read_mark(&mark));
            std::fs::remove_file(&mark).unwrap();
            succeeds(&mut rig);
        }
    }
}

/// The job is given back: it has not brought its end about.
fn given_back(receipt: &Receipt, words: &str) {
    caused(receipt, Cause::Worker, words);
    assert!(receipt.returned, "{receipt:?}");
}

#[test]
fn a_stopped_interpreter_is_replaced_and_its_jobs_are_innocent() {
    let mut rig = Rig::new(&["--slots", "4", "--sandbox", "off"]);
    rig.dispatcher.gives_leases = true;
    let (gate, mark) = (rig.path("gate"), rig.path("mark"));
    let waits = marked(
        &mark,
        &format!("while not os.path.exists({gate:?}): time.sleep(0.01)\n{GOOD}"),
    );
    // The second time another job kills the interpreter, and has ended before that is seen.
    for words in ["does not answer", "has died"] {
        let innocent = rig.start(&waits);
        let process = read_mark(&mark);
        std::fs::remove_file(&mark).unwrap();
        let (kill_gate, kill_mark) = (rig.path("kill-gate"), rig.path("kill-mark"));
        let kills = (words == "has died").then(|| {
            let kills = format!(
                "while not os.path.exists({kill_gate:?}): time.sleep(0.01)\nos.kill(os.getppid(), signal.SIGKILL)\nos._exit(3)"
            );
            let job = rig.start(&marked(&kill_mark, &kills));
            read_mark(&kill_mark);
            job
        });
        // What it has done itself is known, though it is not reaped.
        let stops = rig.start(&format!("os.kill(os.getppid(), signal.SIGSTOP)\n{GOOD}"));
        let receipt = rig.dispatcher.receipt(stops);
        assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
        if let Some(kills) = kills {
            std::fs::write(&kill_gate, "").unwrap();
            rig.dispatcher.receipt(kills);
        }
        let receipt = rig.dispatcher.receipt(innocent);
        given_back(&receipt, words);
        has_ended(process);
        succeeds(&mut rig);
    }
}

/// A process that a module forked when it was imported holds all that the interpreter had.
#[test]
fn an_interpreter_whose_socket_another_process_holds_is_missed_when_it_dies() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (input, mark, holds) = (path("in"), path("mark"), path("holds"));
    std::fs::write(&input, "x").unwrap();
    std::fs::write(&holds, "").unwrap();
    let fork = format!(
        "def main():\n    import time\n    if '--warm' in sys.argv and os.fork() == 0:\n        while os.path.exists({holds:?}): time.sleep(0.05)\n        os._exit(0)"
    );
    let shim = casparian::plugin::SHIM.replace("def main():", &fork);
    std::fs::write(path("shim.py"), shim).unwrap();
    let mut dispatcher = Dispatcher::new();
    dispatcher.gives_leases = true;
    let mut options = Options::new(dispatcher.endpoint.parse().unwrap(), path("out").into());
    options.home = home().join(".casparian_flow");
    options.shim = Some(path("shim.py").into());
    options.slots = 2;
    options.signals = false;
    let worker = Worker::open(options).unwrap();
    let stopper = worker.stopper();
    let thread = std::thread::spawn(move || worker.run().unwrap());
    let waits = handler(&marked(&mark, "time.sleep(1000)"));
    let innocent = dispatcher.dispatch(&waits, &input, "");
    read_mark(&mark);
    let kills = handler("os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(1000)");
    let killer = dispatcher.dispatch(&kills, &input, "");
    for job in [innocent, killer] {
        given_back(&dispatcher.receipt(job), "has died");
    }
    std::fs::remove_file(&holds).unwrap();
    stopper.stop();
    thread.join().unwrap();
}

#[test]
fn jobs_that_come_while_no_interpreter_is_started_are_given_back() {
    let mut rig = Rig::new(&["--slots", "1", "--sandbox", "off"]);
    rig.dispatcher.gives_leases = true;
    let input = rig.path("in");
    let kills = handler("os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(1000)");
    // No job ends by itself in between, so the pauses grow: 0, 1, 2, 4 s.
    for _ in 0..4 {
        let job = rig.dispatcher.dispatch(&kills, &input, "");
        until("it has run", || {
            let receipt = rig.dispatcher.receipt(job);
            given_back(&receipt, "has died");
            let has_run = receipt.metrics.contains_key("start_ms");
            if !has_run {
                rig.dispatcher.dispatch_as(job, &kills, &input, "");
            }
            has_run.then_some(())
        });
    }
    let receipt = rig.run(GOOD);
    given_back(&receipt, "has died");
    assert!(!receipt.metrics.contains_key("start_ms"), "{receipt:?}");
    let reason = rig.dispatcher.avoided("");
    assert!(reason.contains("has died"), "{reason}");
    until("the pause is over", || {
        (rig.run(GOOD).status == JobStatus::Success).then_some(())
    });
    rig.worker.signal("-TERM");
    rig.worker.wait();
    let lines = rig.worker.seen.join("\n");
    assert!(!lines.contains("in trouble"), "{lines}");
}

#[test]
fn an_idle_interpreter_that_is_killed_costs_no_job() {
    let mut rig = Rig::new(&["--slots", "1"]);
    let mark = rig.path("mark");
    for _ in 0..3 {
        let tells = format!("open({mark:?}, 'w').write(str(os.getppid()))\n{GOOD}");
        let receipt = rig.run(&tells);
        assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
        let interpreter = read_mark(&mark).to_string();
        let mut kill = std::process::Command::new("kill");
        assert!(output(kill.args(["-KILL", &interpreter])).status.success());
        succeeds(&mut rig);
    }
}

#[test]
fn a_job_that_kills_its_interpreter_is_blamed_alone() {
    let mut rig = Rig::new(&["--slots", "2", "--sandbox", "off"]);
    rig.dispatcher.gives_leases = true;
    let (gate, mark) = (rig.path("gate"), rig.path("mark"));
    let input = rig.path("in");
    let waits = handler(&marked(
        &mark,
        &format!("while not os.path.exists({gate:?}): time.sleep(0.01)\n{GOOD}"),
    ));
    let kills = handler("os.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(1000)");
    let innocent = rig.dispatcher.dispatch(&waits, &input, "");
    read_mark(&mark);
    let killer = rig.dispatcher.dispatch(&kills, &input, "");
    for job in [innocent, killer] {
        given_back(&rig.dispatcher.receipt(job), "has died");
    }
    // Both again: the innocent one is not harmed any more.
    std::fs::remove_file(&mark).unwrap();
    rig.dispatcher.dispatch_as(innocent, &waits, &input, "");
    until("the innocent one runs again", || {
        // The killer may have been faster than the report of its start. It had a second
        // interpreter then, and the third is started after a pause.
        if let Some(receipt) = rig.dispatcher.try_receipt(innocent) {
            given_back(&receipt, "has died");
            rig.dispatcher.dispatch_as(innocent, &waits, &input, "");
        }
        Path::new(&mark).exists().then_some(())
    });
    for cause in [Cause::Worker, Cause::Plugin] {
        // A pause after two interpreters that died in a row is over at some time.
        let receipt = until("it runs again", || {
            rig.dispatcher.dispatch_as(killer, &kills, &input, "");
            let receipt = rig.dispatcher.receipt(killer);
            receipt.metrics.contains_key("start_ms").then_some(receipt)
        });
        caused(&receipt, cause, "has died");
        assert!(!receipt.returned, "{receipt:?}");
    }
    std::fs::write(&gate, "").unwrap();
    let receipt = rig.dispatcher.receipt(innocent);
    assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
    // Jobs that died with another's interpreter do not count against the worker.
    rig.worker.signal("-TERM");
    rig.worker.wait();
    let lines = rig.worker.seen.join("\n");
    assert!(!lines.contains("in trouble"), "{lines}");
}

/// The site-packages folder of an environment.
fn site_packages(interpreter: &Path) -> PathBuf {
    let mut command = std::process::Command::new(interpreter);
    let script = "import sysconfig; print(sysconfig.get_path('purelib'))";
    PathBuf::from(stdout(&output(command.args(["-c", script]))).trim())
}

#[test]
fn imports_that_do_not_end_fail_the_jobs_of_their_environment_only() {
    let preload = ["casparian_blocks".to_owned()];
    let lockfile = environment::requirements_lockfile(&[], None, &preload);
    let hash = environment::hash(&lockfile);
    let home = home().join(".casparian_flow");
    let never = std::sync::atomic::AtomicBool::new(false);
    let made = environment::provision(
        &home,
        &lockfile,
        None,
        &environment::Build::default(),
        &never,
        &mut |_| {},
    )
    .unwrap();
    std::fs::write(
        site_packages(&made.interpreter).join("casparian_blocks.py"),
        "import threading\nthreading.Event().wait()\n",
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in");
    std::fs::write(&input, "x").unwrap();
    let input = input.to_str().unwrap();
    let mut dispatcher = Dispatcher::new();
    let endpoint = dispatcher.endpoint.parse().unwrap();
    let mut options = Options::new(endpoint, dir.path().join("out"));
    options.fork_server_start_timeout = Duration::from_secs(2);
    options.home = home;
    options.slots = 2;
    options.signals = false;
    let worker = Worker::open(options).unwrap();
    let stopper = worker.stopper();
    let thread = std::thread::spawn(move || worker.run().unwrap());
    dispatcher.prepare(&hash, &lockfile);
    let blocked = dispatcher.dispatch(&handler(GOOD), input, &hash);
    let other = dispatcher.dispatch(&handler(GOOD), input, "");
    assert_eq!(dispatcher.receipt(other).status, JobStatus::Success);
    let receipt = dispatcher.receipt(blocked);
    caused(&receipt, Cause::Environment, "does not start");
    let other = dispatcher.dispatch(&handler(GOOD), input, "");
    assert_eq!(dispatcher.receipt(other).status, JobStatus::Success);
    stopper.stop();
    thread.join().unwrap();
}

#[test]
fn a_removed_runtime_folder_is_created_again() {
    for start in ["warm", "spawn"] {
        let arguments = ["--slots", "2", "--plugin-start", start];
        let mut rig = Rig::with(&arguments, |command, dir| {
            let base = dir.join("tmp");
            std::fs::create_dir(&base).unwrap();
            command.env("TMPDIR", base);
        });
        succeeds(&mut rig);
        for entry in std::fs::read_dir(rig.path("tmp")).unwrap() {
            std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
        for _ in 0..3 {
            succeeds(&mut rig);
        }
    }
}

/// The folder of one environment's jobs, below the worker's.
#[test]
fn a_folder_of_an_environment_that_cannot_be_used_is_replaced() {
    type Spoil<'a> = &'a dyn Fn(&Path);
    let remove = |folder: &Path| std::fs::remove_dir_all(folder).unwrap();
    let file = |folder: &Path| {
        std::fs::remove_dir_all(folder).unwrap();
        std::fs::write(folder, "").unwrap();
    };
    let moved = |folder: &Path| std::fs::rename(folder, folder.with_extension("away")).unwrap();
    let fixed = |folder: &Path| {
        if rustix::process::getuid().is_root() {
            let mount = ["-t", "tmpfs", "-o", "ro", "none"];
            let mut command = std::process::Command::new("mount");
            assert!(command.args(mount).arg(folder).status().unwrap().success());
        }
    };
    let cases: [(&str, Spoil<'_>); 4] = [
        ("removed", &remove),
        ("a file", &file),
        ("moved", &moved),
        ("read-only", &fixed),
    ];
    for (name, spoil) in cases {
        for (start, sandbox) in [("warm", "on"), ("spawn", "on"), ("warm", "off")] {
            let arguments = [
                "--slots",
                "2",
                "--plugin-start",
                start,
                "--sandbox",
                sandbox,
            ];
            let mut rig = Rig::with(&arguments, |command, dir| {
                let base = dir.join("tmp");
                std::fs::create_dir(&base).unwrap();
                command.env("TMPDIR", base);
            });
            succeeds(&mut rig);
            let only = |folder: PathBuf| std::fs::read_dir(folder).unwrap().next();
            let user = only(rig.path("tmp").into()).unwrap().unwrap().path();
            let folder = only(user).unwrap().unwrap().path().join("e0");
            spoil(&folder);
            for _ in 0..3 {
                succeeds(&mut rig);
            }
            let _ = std::process::Command::new("umount")
                .arg(&folder)
                .stderr(std::process::Stdio::null())
                .status();
            println!("{name} {start} {sandbox}");
        }
    }
}

#[test]
fn what_a_job_leaves_in_its_folder_delays_no_other() {
    let mut rig = Rig::with(&["--slots", "1"], |command, dir| {
        let base = dir.join("tmp");
        std::fs::create_dir(&base).unwrap();
        command.env("TMPDIR", base);
    });
    let debris = "os.mkdir('many')\nfor n in range(20000): os.close(os.open(f'many/{n}', os.O_CREAT))\nos.chmod('many', 0)\nfor n in range(2000):\n    os.mkdir('d' * 100)\n    os.chdir('d' * 100)\n";
    for _ in 0..3 {
        let receipt = rig.run(&format!("{debris}{GOOD}"));
        assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
    }
    succeeds(&mut rig);
    let base = PathBuf::from(rig.path("tmp"));
    until("all of it is removed", || {
        let user = std::fs::read_dir(&base).unwrap().next()?.unwrap().path();
        let runtime = std::fs::read_dir(user).unwrap().next()?.unwrap().path();
        let folders = std::fs::read_dir(&runtime).unwrap().flatten();
        let folders = folders.filter(|entry| entry.file_name().as_encoded_bytes()[0] == b'e');
        let names = folders.flat_map(|folder| std::fs::read_dir(folder.path()).unwrap().flatten());
        let jobs = names.filter(|entry| entry.file_name().as_encoded_bytes()[0] == b'w');
        let trash = std::fs::read_dir(runtime.join("trash")).unwrap().count();
        (jobs.count() + trash == 0).then_some(())
    });
    rig.worker.signal("-TERM");
    assert_eq!(rig.worker.wait(), Some(0));
    // The folder of the user's workers stays, empty.
    let mut left = std::fs::read_dir(&base).unwrap();
    let user = left.next().unwrap().unwrap().path();
    assert!(left.next().is_none());
    assert_eq!(std::fs::read_dir(user).unwrap().count(), 0);
}

#[test]
fn variables_that_are_no_text_harm_nothing() {
    use std::os::unix::ffi::OsStrExt;
    let odd = std::ffi::OsStr::from_bytes(b"\xff");
    for start in ["warm", "spawn"] {
        let arguments = ["--slots", "1", "--plugin-start", start];
        let mut rig = Rig::with(&arguments, |command, _| {
            command.env("FOO", odd).env("LC_ODD", odd);
        });
        let checks = format!("assert 'FOO' not in os.environ\n{GOOD}");
        let receipt = rig.run(&checks);
        assert_eq!(receipt.status, JobStatus::Success, "{start}: {receipt:?}");
    }
}
