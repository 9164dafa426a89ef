//! The reason of a failure is the plugin's own, complete and in its first line, and its cause is
//! the right one, in both ways to start a plugin.

use std::path::Path;

use casparian::job::{Cause, JobStatus};
use casparian::protocol::Payload;

use crate::common::*;
use crate::dispatcher::*;
use crate::environments::program_in;
use crate::stderr::limit_files;

#[test]
fn no_exit_hides_an_exception() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&["--slots", "2", "--plugin-start", start]);
        let jobs: Vec<u64> = (0..60)
            .map(|_| rig.start("raise ValueError('my message')"))
            .collect();
        for job in jobs {
            let receipt = rig.dispatcher.receipt(job);
            let line = first_line(&receipt);
            assert_eq!(line, "ValueError: my message", "{start}: {receipt:?}");
            assert_eq!(receipt.cause, Some(Cause::Plugin), "{start}: {receipt:?}");
            assert_eq!(receipt.metrics["exit_code"], 1, "{start}: {receipt:?}");
        }
    }
}

/// Name, body of `execute`, first line of the reason, words of the rest.
const EXCEPTIONS: &[(&str, &str, &str, &[&str])] = &[
    (
        "syntax_error",
        "raise SyntaxError('bad thing', ('data.xml', 3, 1, '<x>'))",
        "SyntaxError: bad thing (data.xml, line 3)",
        &["<x>"],
    ),
    (
        "indentation_error",
        "exec(compile('if 1:\\nx', 'rules.cfg', 'exec'))",
        "IndentationError: expected an indented block after 'if' statement on line 1 (rules.cfg, line 2)",
        &[],
    ),
    (
        "parse_error",
        "import xml.etree.ElementTree as tree\ntree.fromstring('<x>')",
        "xml.etree.ElementTree.ParseError: no element found: line 1, column 3",
        &[],
    ),
    (
        "broken_str",
        "class Odd(Exception):\n    def __str__(self): raise SystemExit(3)\nraise Odd()",
        "Handler.execute.<locals>.Odd: (its text cannot be had: SystemExit)",
        &["plugin.py"],
    ),
    (
        "broken_metaclass",
        "class Meta(type):\n    def __getattribute__(cls, name): raise RuntimeError(name)\nclass Odd(Exception, metaclass=Meta): pass\nraise Odd('what')",
        "Handler.execute.<locals>.Odd: what",
        &["plugin.py"],
    ),
    (
        "broken_attributes",
        "class Odd(Exception):\n    def __getattribute__(self, name): raise RuntimeError(name)\nraise Odd('what')",
        "Handler.execute.<locals>.Odd: what",
        &[],
    ),
    (
        "broken_exit",
        "class Odd(SystemExit):\n    def __getattribute__(self, name): raise SystemExit(name)\nraise Odd(3)",
        "Odd: no message",
        &[],
    ),
    (
        "broken_import",
        "class Odd(ImportError):\n    name = property(lambda self: 1 / 0)\nraise Odd('what')",
        "Handler.execute.<locals>.Odd: what",
        &["plugin.py"],
    ),
    (
        "surrogates",
        "raise ValueError('a \\udcff b')",
        "ValueError: a \\udcff b",
        &[],
    ),
    (
        "notes",
        "error = ValueError('no total')\nerror.__notes__ = ['in sheet 2']\nraise error",
        "ValueError: no total",
        &["in sheet 2"],
    ),
    (
        "cause",
        "try: int('x')\nexcept ValueError as error: raise KeyError('total') from error",
        "KeyError: 'total'",
        &["caused by ValueError: invalid literal for int()"],
    ),
    (
        "cycle",
        "a, b = ValueError('a'), ValueError('b')\na.__cause__, b.__cause__ = b, a\nraise a",
        "ValueError: a",
        &["caused by ValueError: b"],
    ),
    (
        "interrupt",
        "raise KeyboardInterrupt",
        "KeyboardInterrupt: no message",
        &[],
    ),
    (
        "sys_exit",
        "raise SystemExit(4)",
        "SystemExit: the plugin called sys.exit(4)",
        &[],
    ),
    (
        "lines",
        "raise ValueError('first\\nsecond')",
        "ValueError: first",
        &["\nsecond"],
    ),
    (
        "memory",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))\nkept = []\nwhile True: kept.append(bytearray(1 << 20))",
        "MemoryError: no message",
        &[],
    ),
    (
        "own_broken_pipe",
        "raise BrokenPipeError(32, 'the plugin has pipes of its own')",
        "BrokenPipeError: [Errno 32] the plugin has pipes of its own",
        &[],
    ),
    (
        "closed_stderr",
        "import sys\nsys.stderr.close()\nsys.stdout = None\nraise ValueError('still told')",
        "ValueError: still told",
        &[],
    ),
    (
        "no_builtins",
        "import builtins, sys\nerror = ValueError('still told')\nspace = vars(builtins)\nfor name in [name for name in space if name[0] != '_']: space[name] = None\nos.getpid = os._exit = sys.exit = None\nraise error",
        "ValueError: still told",
        &[],
    ),
    (
        "thread_exits",
        "threading.Thread(target=lambda: os._exit(7)).start()\ntime.sleep(1000)",
        "the plugin's process ended with exit code 7",
        &[],
    ),
    (
        "exits_well",
        "os._exit(0)",
        "the plugin closed the bridge without an end of output",
        &[],
    ),
    (
        "fails_then_crashes",
        "self.bridge.fail('ValueError: told before')\nos.kill(os.getpid(), signal.SIGSEGV)",
        "ValueError: told before; its process ended with signal 11 (SIGSEGV)",
        &[],
    ),
    (
        "behind_much_output",
        "for _ in range(60): yield pa.table({'x': bytes(1 << 20).split(b'x')})\nraise ValueError('after the output')",
        "ValueError: after the output",
        &[],
    ),
    (
        "holds_the_bridge",
        "if os.fork() == 0:\n    os.setsid()\n    time.sleep(30)\nos._exit(0)",
        "the plugin closed the bridge without an end of output",
        &[],
    ),
];

#[test]
fn every_exception_and_exit_is_reported_in_the_first_line() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&["--slots", "2", "--plugin-start", start]);
        let jobs: Vec<u64> = EXCEPTIONS
            .iter()
            .map(|(_, body, ..)| rig.start(body))
            .collect();
        for (job, (name, _, line, rest)) in jobs.into_iter().zip(EXCEPTIONS) {
            let receipt = rig.dispatcher.receipt(job);
            assert_eq!(first_line(&receipt), *line, "{start} {name}: {receipt:?}");
            let text = receipt.error_message.as_deref().unwrap();
            for words in *rest {
                assert!(text.contains(words), "{start} {name}: {text}");
            }
            assert_eq!(receipt.cause, Some(Cause::Plugin), "{start} {name}");
        }
    }
}

#[test]
fn an_exception_of_a_plugin_that_closes_its_bridge_is_in_the_log() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&["--slots", "1", "--plugin-start", start]);
        for reuses in ["pass", "while os.open('/dev/null', os.O_RDWR) < 64: pass"] {
            let body = format!("os.closerange(3, 4096)\n{reuses}\nyield pa.table({{'x': [1]}})");
            let receipt = rig.run(&body);
            let line = first_line(&receipt);
            assert_eq!(
                line, "the plugin's process ended with exit code 1",
                "{start}"
            );
            let log = receipt.log_tail.unwrap();
            assert!(log.contains("OSError: [Errno "), "{start} {reuses}: {log}");
        }
    }
}

#[test]
fn an_enormous_message_is_cut() {
    let mut rig = Rig::new(&["--slots", "1"]);
    let receipt = rig.run("raise ValueError('x' * 50_000_000)");
    let text = receipt.error_message.as_deref().unwrap();
    assert!(
        first_line(&receipt).starts_with("ValueError: xxx"),
        "{text}"
    );
    assert!(text.len() <= 16 << 10, "{}", text.len());
    assert!(text.contains("50000000 characters"), "{text}");
}

#[test]
fn an_exception_group_names_its_parts() {
    let mut rig = Rig::new(&["--slots", "1", "--plugin-start", "spawn"]);
    // Python 3.11 and later have them; only their shape matters.
    let body = "class Group(Exception):\n    exceptions = (ValueError('one'), TypeError('two'))\nraise Group('both')";
    let receipt = rig.run(body);
    let text = receipt.error_message.as_deref().unwrap();
    assert!(first_line(&receipt).ends_with("Group: both"), "{text}");
    let parts = "\n- ValueError: one\n- TypeError: two";
    assert!(text.contains(parts), "{text}");
}

#[test]
fn output_that_waits_when_the_process_exits_is_written() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&["--slots", "1", "--plugin-start", start]);
        // More than the kernel holds for a socket, and an exit right behind the end.
        let receipt = rig.run(
            "for n in range(40): self.bridge.send(pa.table({'x': list(range(n * 10000, n * 10000 + 10000))}))\nself.bridge.end()\nos._exit(0)",
        );
        assert_eq!(receipt.status, JobStatus::Success, "{start}: {receipt:?}");
        assert_eq!(receipt.metrics["rows"], 400_000, "{start}");
        assert_eq!(receipt.metrics["exit_code"], 0, "{start}");
    }
}

#[test]
fn what_is_printed_before_an_exit_is_in_the_log() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&["--slots", "2", "--plugin-start", start]);
        let body = "print('x' * 50_000)\nprint('last out')\nos.write(2, b'last err')\nos._exit(3)";
        let jobs: Vec<u64> = (0..20).map(|_| rig.start(body)).collect();
        for job in jobs {
            let receipt = rig.dispatcher.receipt(job);
            let line = first_line(&receipt);
            assert_eq!(
                line, "the plugin's process ended with exit code 3",
                "{start}"
            );
            let log = receipt.log_tail.unwrap();
            assert!(log.contains("last out"), "{start}: {log}");
            assert!(log.ends_with("last err"), "{start}: {log}");
        }
    }
}

#[test]
fn peak_memory_and_ends_are_in_the_metrics() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&[
            "--slots",
            "1",
            "--plugin-start",
            start,
            "--job-timeout",
            "2",
        ]);
        let fill = "kept = bytearray(os.urandom(1 << 20) * 100)\n";
        for (end, exit_code, signal) in [
            ("yield pa.table({'x': [1]})", Some(0), None),
            ("raise ValueError('x')", Some(1), None),
            // Killed by the worker: no signal of the plugin's own.
            ("time.sleep(1000)", None, None),
        ] {
            let receipt = rig.run(&format!("{fill}{end}"));
            let metrics = &receipt.metrics;
            let rss = metrics["plugin_rss_max_bytes"];
            assert!(rss > 100 << 20, "{start} {end}: {receipt:?}");
            assert_eq!(metrics["guest_rss_max_bytes"], rss, "the earlier name");
            let ends = (
                metrics.get("exit_code").copied(),
                metrics.get("signal").copied(),
            );
            assert_eq!(ends, (exit_code, signal), "{start} {end}: {receipt:?}");
            let text = receipt.error_message.unwrap_or_default();
            assert!(!text.contains("signal"), "{start} {end}: {text}");
        }
        let receipt = rig.run("os.kill(os.getpid(), signal.SIGKILL)");
        assert_eq!(receipt.metrics["signal"], 9, "{start}: {receipt:?}");
        assert_eq!(receipt.cause, Some(Cause::Lost), "{start}: {receipt:?}");
        assert!(!receipt.beside_others);
        let text = receipt.error_message.unwrap_or_default();
        assert!(text.contains("MiB"), "{start}: {text}");
    }
}

#[test]
fn inputs_that_cannot_be_read_are_the_inputs_fault_at_once() {
    let fifo = |path: &Path| {
        let made = std::process::Command::new("mkfifo").arg(path).status();
        assert!(made.unwrap().success());
    };
    let nothing = |_: &Path| {};
    let itself = |path: &Path| std::os::unix::fs::symlink(path, path).unwrap();
    let file = |path: &Path| std::fs::write(path, "x").unwrap();
    let folder = |path: &Path| std::fs::create_dir(path).unwrap();
    let long = "x".repeat(5000);
    type Make<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Make<'_>, &str, Option<Cause>, &str); 8] = [
        ("fifo", &fifo, "path", Some(Cause::Input), "it is a FIFO"),
        (
            "missing",
            &nothing,
            "path",
            Some(Cause::Input),
            "No such file",
        ),
        (
            "loop",
            &itself,
            "path",
            Some(Cause::Input),
            "symbolic links",
        ),
        (
            "file/below",
            &nothing,
            "path",
            Some(Cause::Input),
            "No such file",
        ),
        (&long, &nothing, "path", Some(Cause::Input), "too long"),
        ("nul\0", &nothing, "path", Some(Cause::Input), "a NUL"),
        ("folder", &folder, "path + '/../in'", None, ""),
        (
            "other",
            &file,
            "path + '.missing'",
            Some(Cause::Plugin),
            "FileNotFoundError",
        ),
    ];
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&["--slots", "2", "--plugin-start", start]);
        for (name, make, opened, cause, words) in &cases {
            let input = rig.path(name);
            make(Path::new(&input));
            let source = handler(&format!("open({opened}).close()"));
            let job = rig.dispatcher.dispatch(&source, &input, "");
            let receipt = rig.dispatcher.receipt(job);
            let name: String = name.chars().take(20).collect();
            assert_eq!(receipt.cause, *cause, "{start} {name}: {receipt:?}");
            let line = first_line(&receipt);
            assert!(line.contains(words), "{start} {name}: {line}");
            if *cause == Some(Cause::Input) {
                assert!(line.starts_with("input: "), "{start} {name}: {line}");
            }
        }
        // A device, which ends at once too.
        let source = handler("open(path).close()");
        let job = rig.dispatcher.dispatch(&source, "/dev/tty", "");
        let receipt = rig.dispatcher.receipt(job);
        assert_eq!(receipt.cause, Some(Cause::Input), "{receipt:?}");
    }
}

#[test]
fn an_abort_is_the_operators_doing() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&["--slots", "1", "--plugin-start", start]);
        let mark = rig.path("mark");
        let running = rig.start(&format!("open({mark:?}, 'w').close()\ntime.sleep(1000)"));
        let waiting = rig.start("time.sleep(1000)");
        until("it runs", || Path::new(&mark).exists().then_some(()));
        for job in [waiting, running] {
            rig.dispatcher.send(job, &Payload::Abort);
            let receipt = rig.dispatcher.receipt(job);
            assert_eq!(receipt.cause, Some(Cause::Operator), "{start}: {receipt:?}");
            assert_eq!(first_line(&receipt), "aborted by the sentinel", "{start}");
        }
    }
}

#[test]
fn environments_that_do_not_work_are_not_the_plugins_fault() {
    use std::os::unix::fs::PermissionsExt;
    let script = |text: &'static str| {
        move |python: &Path| {
            std::fs::write(python, text).unwrap();
            std::fs::set_permissions(python, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
    };
    let exits = script("#!/bin/sh\nexit 7\n");
    let crashes = script("#!/bin/sh\nkill -SEGV $$\n");
    let no_program = script("not a program");
    let no_execute = |python: &Path| std::fs::write(python, "").unwrap();
    let nothing = |_: &Path| {};
    type Make<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Make<'_>, &str); 5] = [
        ("exits", &exits, "exit code 7"),
        ("crashes", &crashes, "signal 11 (SIGSEGV)"),
        ("no program", &no_program, "cannot start"),
        ("may not be executed", &no_execute, "cannot start"),
        ("missing", &nothing, ""),
    ];
    for start in ["warm", "spawn"] {
        let arguments = ["--slots", "2", "--plugin-start", start];
        let mut rig = Rig::with(&arguments, |command, dir| {
            command.env("HOME", dir);
        });
        let input = rig.path("in");
        for (number, (name, make, words)) in cases.iter().enumerate() {
            let hash = number.to_string().repeat(64);
            let bin = rig.path(&format!(".casparian_flow/venvs/{hash}/bin"));
            std::fs::create_dir_all(&bin).unwrap();
            make(&Path::new(&bin).join("python"));
            let receipts = [(); 4].map(|()| {
                let job = rig.dispatcher.dispatch(&handler("pass"), &input, &hash);
                rig.dispatcher.receipt(job)
            });
            for receipt in &receipts {
                let cause = Some(Cause::Environment);
                assert_eq!(receipt.cause, cause, "{start} {name}: {receipt:?}");
                let said = first_line(receipt).contains(words);
                assert!(said, "{start} {name}: {receipts:?}");
            }
        }
    }
}

/// The kernel's OOM killer and operators say nothing about an environment.
#[test]
fn an_interpreter_that_is_killed_once_while_it_starts_costs_nothing() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::with(&["--plugin-start", start], |command, dir| {
            command.env("HOME", dir);
        });
        let (input, once) = (rig.path("in"), rig.path("once"));
        let hash = "a".repeat(64);
        let bin = rig.path(&format!(".casparian_flow/venvs/{hash}/bin"));
        std::fs::create_dir_all(&bin).unwrap();
        let interpreter = python();
        let python = Path::new(&bin).join("python");
        let script = format!(
            "#!/bin/sh\n[ -e {once} ] || {{ : > {once}; kill -KILL $$; }}\nexec {} \"$@\"\n",
            interpreter.display()
        );
        std::fs::write(&python, script).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&python, executable).unwrap();
        let receipts = [(); 2].map(|()| {
            let job = rig.dispatcher.dispatch(&handler("pass"), &input, &hash);
            rig.dispatcher.receipt(job)
        });
        for receipt in &receipts {
            assert_eq!(receipt.status, JobStatus::Success, "{start}: {receipts:?}");
        }
    }
}

/// The kernel closes the files of a process before its end can be seen.
#[test]
fn the_error_of_an_interpreter_that_ends_while_it_is_asked_has_the_signal() {
    let mut rig = Rig::with(&["--slots", "2"], |command, dir| {
        command.env("HOME", dir);
    });
    let (input, closed) = (rig.path("in"), rig.path("closed"));
    let hash = "a".repeat(64);
    let bin = rig.path(&format!(".casparian_flow/venvs/{hash}/bin"));
    std::fs::create_dir_all(&bin).unwrap();
    let python = Path::new(&bin).join("python");
    let script = format!("#!/bin/sh\nexec 0<&-\n: > {closed}\nsleep 0.5\nkill -SEGV $$\n");
    std::fs::write(&python, script).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&python, executable).unwrap();
    let source = handler("pass");
    let first = rig.dispatcher.dispatch(&source, &input, &hash);
    until("its socket is closed", || {
        Path::new(&closed).exists().then_some(())
    });
    let second = rig.dispatcher.dispatch(&source, &input, &hash);
    for job in [first, second] {
        let receipt = rig.dispatcher.receipt(job);
        let line = first_line(&receipt);
        let want = "the environment's interpreter does not start: the fork server has died: signal 11 (SIGSEGV)";
        assert!(line.starts_with(want), "{line}");
        assert_eq!(receipt.cause, Some(Cause::Environment), "{receipt:?}");
    }
}

/// Jobs name the default environment by nothing, or by its hash as `casparian run` does.
#[test]
fn a_default_environment_that_cannot_be_made_again_is_avoided_by_both_its_names() {
    use casparian::plugin::environment::{hash, requirements_lockfile};
    let default = hash(&requirements_lockfile(&[], None, &[]));
    for name in ["", &default] {
        let mut rig = Rig::with(&[], |command, dir| {
            let bin = dir.join("tools");
            program_in(
                &bin,
                "uv",
                "#!/bin/sh\necho 'no registry answers'; exit 3\n",
            );
            let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
            command.env("HOME", dir).env("PATH", path);
        });
        let bin = rig.path(&format!(".casparian_flow/venvs/{default}/bin"));
        std::fs::create_dir_all(&bin).unwrap();
        let python = Path::new(&bin).join("python");
        std::fs::write(&python, "#!/bin/sh\nexit 2\n").unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&python, executable).unwrap();
        let input = rig.path("in");
        let job = rig.dispatcher.dispatch(&handler("pass"), &input, name);
        let receipt = rig.dispatcher.receipt(job);
        assert_eq!(receipt.cause, Some(Cause::Environment), "{receipt:?}");
        for known in ["", &default] {
            rig.dispatcher.avoided_for(known, "no registry answers");
        }
    }
}

/// A worker that cannot create the environment of a plugin fails quickly and so is always free: it
/// must not draw the jobs from the one that works, and heals by itself.
#[test]
fn jobs_go_where_their_environment_works() {
    let dir = tempfile::tempdir().unwrap();
    let source = "import time\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        time.sleep(0.1)\n        return pa.table({'x': [1]})\n";
    let database = database_with(dir.path(), "p", source);
    let inputs: Vec<_> = (0..30)
        .map(|number| {
            let path = dir.path().join(format!("in{number}"));
            std::fs::write(&path, number.to_string()).unwrap();
            path
        })
        .collect();
    let ids = submit(&database, "p", &inputs);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    // Its uv does not work.
    let broken_home = dir.path().join("home");
    let uv = broken_home.join(".casparian_flow/uv/bin/uv");
    std::fs::create_dir_all(uv.parent().unwrap()).unwrap();
    std::fs::write(&uv, "#!/bin/sh\necho no network >&2\nexit 1\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&uv, executable).unwrap();
    let mut command = program("casparian-worker");
    command
        .args([
            "--connect",
            &endpoint,
            "--slots",
            "2",
            "--worker-id",
            "broken",
        ])
        .arg("--output")
        .arg(dir.path().join("out"))
        .env("HOME", &broken_home);
    let _broken = Background::start(&mut command);
    let workers = || -> serde_json::Value {
        let text = casparian_ok(&["workers", "--json", "-d", database.to_str().unwrap()]);
        serde_json::from_str(&text).unwrap()
    };
    until("the broken worker says what is wrong", || {
        let reasons = workers()[0]["environments"].as_object()?.clone();
        assert_eq!(workers()[0]["trouble"], serde_json::Value::Null);
        (!reasons.is_empty()).then_some(())
    });
    let waiting = until("a job says what it waits for", || {
        let job = ids.iter().map(|id| job(&database, *id));
        job.into_iter()
            .find_map(|job| job["waiting_for"].as_str().map(str::to_owned))
    });
    assert!(waiting.contains("broken"), "{waiting}");
    let good = worker(&endpoint, &dir.path().join("out"), &["--worker-id", "good"]);
    let mut failed = 0;
    for id in &ids {
        let done = ended(&database, *id);
        assert_eq!(done["status"], "COMPLETED", "{done}");
        assert_eq!(done["worker"], "good");
        failed += done["attempts"].as_array().unwrap().len() - 1;
    }
    // Those it held, and a few that tried it again after its pauses.
    assert!(failed < 12, "{failed}");
    drop(good);
    // Mended: the next job after the pause shows it.
    std::fs::remove_dir_all(broken_home.join(".casparian_flow")).unwrap();
    let shared = home().join(".casparian_flow");
    std::os::unix::fs::symlink(shared, broken_home.join(".casparian_flow")).unwrap();
    let input = dir.path().join("last");
    std::fs::write(&input, "last").unwrap();
    let last = submit(&database, "p", &[input])[0];
    let done = ended(&database, last);
    assert_eq!(
        (&done["status"], &done["worker"]),
        (&"COMPLETED".into(), &"broken".into())
    );
}

/// Ends of a forked child, and the exit code that its parent sees.
const CHILDREN: &[(&str, i32)] = &[
    ("sys.exit(0)", 0),
    ("sys.exit(3)", 3),
    ("raise ValueError('the child fails')", 1),
    ("self.bridge.fail('ValueError: told by the child')", 1),
    ("self.bridge.end()", 1),
    ("os._exit(5)", 5),
];

#[test]
fn a_forked_child_does_not_speak_for_the_job() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&["--slots", "2", "--plugin-start", start]);
        for (end, code) in CHILDREN {
            let body = format!(
                "import sys\npid = os.fork()\nif pid == 0:\n    {end}\n    return None\nstatus = os.waitpid(pid, 0)[1]\nif os.WEXITSTATUS(status) != {code} or os.WIFSIGNALED(status): raise ValueError(str(status))\nreturn pa.table({{'x': [1]}})"
            );
            let receipt = rig.run(&body);
            assert_eq!(
                receipt.status,
                JobStatus::Success,
                "{start} {end}: {receipt:?}"
            );
            assert_eq!(receipt.metrics["rows"], 1, "{start} {end}");
        }
        // A child that lives on holds nothing.
        let receipt = rig.run("if os.fork() == 0: time.sleep(1000)\nreturn pa.table({'x': [1]})");
        assert_eq!(receipt.status, JobStatus::Success, "{start}: {receipt:?}");
    }
}

/// Its rows would be missing, whatever its parent makes of its exit code.
#[test]
fn what_a_forked_child_would_publish_fails_the_job() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&["--slots", "2", "--plugin-start", start]);
        for publishes in [
            "if os.fork() == 0: return pa.table({'x': [2, 3]})\nos.wait()",
            "if os.fork() == 0:\n    self.bridge.send(pa.table({'x': [2, 3]}))\nos.wait()",
            "import multiprocessing\nchild = multiprocessing.get_context('fork').Process(target=lambda: self.bridge.send({'x': [2]}))\nchild.start()\nchild.join()",
        ] {
            let receipt = rig.run(&format!("{publishes}\nreturn pa.table({{'x': [1]}})"));
            let error = receipt.error_message.as_deref().unwrap_or_default();
            let is_told = error.contains("a child process of the plugin cannot publish");
            assert!(is_told, "{start} {publishes}: {receipt:?}");
        }
    }
}

#[test]
fn an_environment_without_pyarrow_is_not_the_plugins_fault() {
    let system = casparian::plugin::environment::python().unwrap();
    let plain = |command: &str, dir: &Path| {
        let mut made = std::process::Command::new(&system);
        made.args(["-m", "venv", "--without-pip"]);
        assert!(made.arg(dir).status().unwrap().success(), "{command}");
    };
    for start in ["warm", "spawn"] {
        let arguments = ["--slots", "1", "--plugin-start", start];
        let mut rig = Rig::with(&arguments, |command, dir| {
            command.env("HOME", dir);
        });
        let input = rig.path("in");
        let hash = "a".repeat(64);
        let place = rig.path(&format!(".casparian_flow/venvs/{hash}"));
        plain(start, Path::new(&place));
        let plugin =
            |text: &str| format!("class Handler:\n    def execute(self, path):\n        {text}\n");
        for (text, cause) in [
            ("return {'x': [1]}.keys()", Cause::Environment),
            ("import pyarrow", Cause::Environment),
            ("from pyarrow import parquet", Cause::Environment),
            ("import pandas", Cause::Plugin),
            ("import pyarrows", Cause::Plugin),
            ("raise ImportError('pyarrow')", Cause::Plugin),
        ] {
            let job = rig.dispatcher.dispatch(&plugin(text), &input, &hash);
            let receipt = rig.dispatcher.receipt(job);
            assert_eq!(receipt.cause, Some(cause), "{start} {text}: {receipt:?}");
            if cause == Cause::Environment {
                let line = first_line(&receipt);
                let want = "environment: ModuleNotFoundError: No module named 'pyarrow'";
                assert!(line.starts_with(want), "{start} {text}: {line}");
                assert!(line.contains(&place), "{start} {text}: {line}");
                assert!(line.contains("`casparian env prune`"), "{line}");
            }
        }
    }
}

#[test]
fn a_source_that_begins_with_a_mark_of_the_byte_order_is_python() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&["--slots", "1", "--plugin-start", start]);
        let source = format!("\u{feff}{}", handler("return pa.table({'x': [1]})"));
        let input = rig.path("in");
        let job = rig.dispatcher.dispatch(&source, &input, "");
        let receipt = rig.dispatcher.receipt(job);
        assert_eq!(receipt.status, JobStatus::Success, "{start}: {receipt:?}");
    }
}

/// A job whose environment is still being created has not started: a stopping worker does not wait
/// for it.
#[test]
fn a_stopping_worker_does_not_wait_for_environments() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "p", "class Handler: pass\n");
    let input = dir.path().join("in");
    std::fs::write(&input, "x").unwrap();
    let id = submit(&database, "p", &[input])[0];
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let home = dir.path().join("home");
    let uv = home.join(".casparian_flow/uv/bin/uv");
    std::fs::create_dir_all(uv.parent().unwrap()).unwrap();
    let called = dir.path().join("called");
    let script = format!(
        "#!/bin/sh\n: > {}\nexec /bin/sleep 1000\n",
        called.display()
    );
    std::fs::write(&uv, script).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&uv, executable).unwrap();
    let mut command = program("casparian-worker");
    command
        .args(["--connect", &endpoint, "--output"])
        .arg(dir.path().join("out"))
        .env("HOME", &home);
    let mut worker = Background::start(&mut command);
    until("the environment is being created", || {
        called.exists().then_some(())
    });
    worker.signal("-TERM");
    assert_eq!(worker.wait(), Some(0));
    let job = job(&database, id);
    assert_eq!(
        (&job["status"], &job["attempts"][0]["status"]),
        (&"QUEUED".into(), &"RETURNED".into()),
        "{job}"
    );
}

const LARGE: &str = "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [os.urandom(1 << 20)]})\n";

/// The self-test writes less than the jobs do, and succeeds.
#[test]
fn a_healed_worker_tries_one_job_before_it_takes_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "large", LARGE);
    let inputs: Vec<_> = (0..12)
        .map(|number| {
            let path = dir.path().join(format!("in{number}"));
            std::fs::write(&path, number.to_string()).unwrap();
            path
        })
        .collect();
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let mut worker = worker(&endpoint, &dir.path().join("out"), &["--slots", "4"]);
    worker.line_with("connected to the sentinel");
    limit_files(&worker, Some(600 << 10));
    let jobs = submit(&database, "large", &inputs);
    worker.line_with("works again");
    worker.seen.clear();
    for round in 1..=3 {
        if round == 3 {
            worker.line_with("in trouble");
            limit_files(&worker, None);
        }
        worker.line_with("works again");
        let ends = |line: &&String| line.contains("failed:") || line.contains(": done");
        let count = worker.seen.iter().filter(ends).count();
        assert_eq!(count, 1, "round {round}: {:#?}", worker.seen);
        worker.seen.clear();
    }
    for job in jobs {
        assert_eq!(ended(&database, job)["status"], "COMPLETED");
    }
}

/// Columns that no sink can store, as Python; their names with a Parquet sink, their types.
const UNSTORED: &[(&str, &str, &str)] = &[
    (
        "pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(['x', 'y'])])",
        "a",
        "Union(",
    ),
    (
        "pa.StructArray.from_arrays([pa.UnionArray.from_dense(pa.array([0], pa.int8()), \
         pa.array([0], pa.int32()), [pa.array([1])])], ['b'])",
        "a.b",
        "Union(",
    ),
    (
        "pa.array([pa.MonthDayNano([1, 2, 3])])",
        "a",
        "Interval(MonthDayNano)",
    ),
    (
        "pa.array([[pa.MonthDayNano([1, 2, 3])]])",
        "a.item",
        "Interval(MonthDayNano)",
    ),
];

#[test]
fn a_column_of_a_type_that_a_sink_cannot_store_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = "import pyarrow as pa\n\nclass Handler:\n    def execute(self, path):\n        \
         yield pa.table({'a': eval(open(path).read())})\n";
    let database = database_with(dir.path(), "p", source);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let mut worker = worker(&endpoint, &dir.path().join("out"), &["--slots", "2"]);
    for (sink, uri) in [
        ("Parquet", "parquet://o.parquet"),
        ("SQLite", "sqlite://o.db/rows"),
    ] {
        let set = format!(
            "DELETE FROM cf_topic_config; INSERT INTO cf_topic_config \
             (plugin_name, topic_name, uri, mode) VALUES ('p', 'output', '{uri}', 'append')"
        );
        sql(&database, &set);
        for (index, (column, name, words)) in UNSTORED.iter().enumerate() {
            let input = dir.path().join(format!("{sink}{index}"));
            std::fs::write(&input, column).unwrap();
            let id = submit(&database, "p", &[input])[0];
            let job = ended(&database, id);
            let text = job.to_string();
            let name = if sink == "SQLite" { "a" } else { name };
            let start = format!("column \\\"{name}\\\": a {sink} sink cannot store type ");
            assert_eq!(job["status"], "FAILED", "{text}");
            assert!(text.contains(&start) && text.contains(words), "{text}");
        }
    }
    worker.signal("-TERM");
    assert_eq!(worker.wait(), Some(0));
    let log = worker.seen.join("\n");
    assert!(!log.contains("panic"), "{log}");
}

/// As rows of earlier releases and clients of the wire may have them: without them the plugin would be restricted
/// less than its author asks for.
#[test]
fn settings_that_cannot_be_read_fail_the_job() {
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&["--slots", "1", "--plugin-start", start]);
        let input = rig.path("in");
        for (block, want) in [
            (
                "# sandbox = \"strict\"\n# job-memory-max = \"1G\"",
                "no setting \"job-memory-max\"",
            ),
            ("# sandbox = \"STRICT\"", "sandbox \"STRICT\""),
        ] {
            let block = format!("# /// script\n# [tool.casparian]\n{block}\n# ///\n");
            let source = block + &handler("return pa.table({'x': [1]})");
            let job = rig.dispatcher.dispatch(&source, &input, "");
            let receipt = rig.dispatcher.receipt(job);
            assert_eq!(receipt.cause, Some(Cause::Plugin), "{start}: {receipt:?}");
            assert!(first_line(&receipt).contains(want), "{start}: {receipt:?}");
        }
    }
}

/// A limit of time for each part, as packages of decorators set it: the frame is sent all the same.
#[test]
fn an_exception_of_a_signal_handler_cuts_no_frame() {
    let source = |handler: &str, rest: &str| {
        format!(
            "import pyarrow as pa, signal, array\nDATA = pa.array(array.array('d', bytes(4_000_000)))\nclass Slow(BaseException): pass\nclass Handler:\n    def configure(self, ctx, config):\n        self.ctx = ctx\n    def slow(self, *_):\n        {handler}\n    def execute(self, path):\n        signal.signal(signal.SIGALRM, self.slow)\n        late = 0\n        for part in range(40):\n            try:\n                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0001 * (part % 20))\n                try:\n                    self.ctx.publish('m', pa.table({{'a': DATA}}))\n                finally:\n                    signal.setitimer(signal.ITIMER_REAL, 0)\n            {rest}\n        print('late', late)\n"
        )
    };
    for start in ["warm", "spawn"] {
        let mut rig = Rig::new(&["--slots", "1", "--plugin-start", start]);
        let input = rig.path("in");
        let raises = source("raise Slow()", "except Slow: late += 1");
        let job = rig.dispatcher.dispatch(&raises, &input, "");
        let receipt = rig.dispatcher.receipt(job);
        assert_eq!(receipt.status, JobStatus::Success, "{start}: {receipt:?}");
        assert!(!receipt.log_tail.unwrap().contains("late 0\n"), "{start}");
        // A publish within a publish of the same thread would wait for itself.
        let publishes = source(
            "self.ctx.publish('m', pa.table({'a': [1.0]}))",
            "except Slow: pass",
        );
        let job = rig.dispatcher.dispatch(&publishes, &input, "");
        let receipt = rig.dispatcher.receipt(job);
        assert_eq!(receipt.cause, Some(Cause::Plugin), "{start}: {receipt:?}");
        let line = first_line(&receipt);
        assert!(
            line.contains("a signal handler or finaliser published"),
            "{start}: {line}"
        );
    }
}
