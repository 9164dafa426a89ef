//! Python environments, made by a real uv.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use casparian::plugin::cache::{InUse, Taken};
use casparian::plugin::environment::{
    Build, Environment, Error, find, hash, provision, requirements_lockfile,
};

use casparian::job::{Cause, JobStatus};

use crate::common::*;
use crate::dispatcher::*;

/// A home of its own that borrows the shared private uv, so that it is installed once.
fn fresh_home() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let uv = casparian::plugin::uv(
        &home().join(".casparian_flow"),
        &AtomicBool::new(false),
        &mut |_| {},
    )
    .unwrap();
    let bin = dir.path().join("uv/bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(uv, bin.join("uv")).unwrap();
    dir
}

fn make(home: &Path, lockfile: &str) -> Result<Environment, Error> {
    provision(
        home,
        lockfile,
        Some(&hash(lockfile)),
        &Build::default(),
        &AtomicBool::new(false),
        &mut |_| {},
    )
}

fn imports(environment: &Environment, module: &str) -> bool {
    let mut command = Command::new(&environment.interpreter);
    output(command.args(["-c", &format!("import {module}")]))
        .status
        .success()
}

/// What stands in `venvs`, lock files left out.
fn left_behind(home: &Path) -> Vec<String> {
    let names = std::fs::read_dir(home.join("venvs")).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    names.sort();
    names
}

#[test]
fn one_environment_that_many_want_is_made_once() {
    let home = fresh_home();
    let lockfile = requirements_lockfile(&["six==1.16.0".to_owned()], None, &[]);
    let messages = Mutex::new(Vec::new());
    let made: Vec<Environment> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut note = |line: &str| messages.lock().unwrap().push(line.to_owned());
                    provision(
                        home.path(),
                        &lockfile,
                        None,
                        &Build::default(),
                        &AtomicBool::new(false),
                        &mut note,
                    )
                    .unwrap()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let count = messages
        .lock()
        .unwrap()
        .iter()
        .filter(|line| line.contains("making"))
        .count();
    assert_eq!(count, 1, "{messages:?}");
    assert_eq!(
        made.iter()
            .filter(|environment| !environment.cached)
            .count(),
        1
    );
    assert!(imports(&made[0], "six, pyarrow"));
    assert_eq!(left_behind(home.path()), [hash(&lockfile)]);
}

#[test]
fn a_failed_environment_leaves_nothing_and_reports_what_uv_printed() {
    let home = fresh_home();
    let lockfile = requirements_lockfile(&["casparian-no-such-package==9".to_owned()], None, &[]);
    let error = make(home.path(), &lockfile).unwrap_err().to_string();
    assert!(error.contains("casparian-no-such-package"), "{error}");
    assert_eq!(left_behind(home.path()), Vec::<String>::new());
    // What a killed attempt left is swept by the next.
    let lockfile = requirements_lockfile(&[], None, &[]);
    let debris = home
        .path()
        .join("venvs")
        .join(format!(".{}.new", hash(&lockfile)));
    std::fs::create_dir_all(debris.join("bin")).unwrap();
    assert!(find(home.path(), &hash(&lockfile)).is_none());
    let made = make(home.path(), &lockfile).unwrap();
    assert!(imports(&made, "pyarrow"));
    assert_eq!(left_behind(home.path()), [hash(&lockfile)]);
}

#[test]
fn a_uv_lockfile_is_synced_without_its_dev_group_and_gets_pyarrow() {
    let home = fresh_home();
    let project = tempfile::tempdir().unwrap();
    std::fs::write(
        project.path().join("pyproject.toml"),
        "[project]\nname = \"team-plugins\"\nversion = \"1\"\nrequires-python = \">=3.9\"\ndependencies = [\"six==1.16.0\"]\n[dependency-groups]\ndev = [\"iniconfig\"]\n",
    )
    .unwrap();
    let mut lock = Command::new(home.path().join("uv/bin/uv"));
    let locked = output(lock.arg("lock").current_dir(project.path()));
    assert!(locked.status.success(), "{}", stderr(&locked));
    let lockfile = std::fs::read_to_string(project.path().join("uv.lock")).unwrap();
    let made = make(home.path(), &lockfile).unwrap();
    assert_eq!(made.interpreter, environment_path(home.path(), &lockfile));
    assert!(imports(&made, "six"));
    assert!(!imports(&made, "iniconfig"));
    assert!(imports(&made, "pyarrow"));
    assert!(make(home.path(), &lockfile).unwrap().cached);
}

/// Makes it look like an environment of another Python, as one does whose Python was upgraded.
fn rename_version(place: &Path) {
    let lib = place.join("lib");
    let name = std::fs::read_dir(&lib).unwrap().next().unwrap().unwrap();
    std::fs::rename(name.path(), lib.join("python3.1")).unwrap();
    std::fs::write(place.join("pyvenv.cfg"), "version_info = 3.1.0\n").unwrap();
}

fn packages(place: &Path) -> PathBuf {
    let name = std::fs::read_dir(place.join("lib")).unwrap().next();
    name.unwrap().unwrap().path().join("site-packages")
}

/// Makes pyarrow one that cannot be imported, though its first module is there.
fn break_pyarrow(place: &Path) {
    for entry in std::fs::read_dir(packages(place).join("pyarrow")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "so") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn an_environment_that_is_broken_is_made_again() {
    let home = fresh_home();
    let lockfile = requirements_lockfile(&[], None, &[]);
    type Change<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Change<'_>); 5] = [
        ("upgraded", &rename_version),
        ("settings", &|place| {
            std::fs::remove_file(place.join("pyvenv.cfg")).unwrap();
        }),
        ("packages", &|place| {
            std::fs::remove_dir_all(place.join("lib")).unwrap();
        }),
        ("pyarrow", &|place| {
            std::fs::remove_dir_all(packages(place).join("pyarrow")).unwrap();
        }),
        ("folder", &|place| {
            std::fs::remove_file(place.join("bin/python")).unwrap();
            std::fs::create_dir(place.join("bin/python")).unwrap();
        }),
    ];
    let made = make(home.path(), &lockfile).unwrap();
    let place = home.path().join("venvs").join(hash(&lockfile));
    for (name, change) in cases {
        change(&place);
        let again = make(home.path(), &lockfile).unwrap();
        assert!(!again.cached, "{name}");
        assert!(imports(&again, "pyarrow"), "{name}");
        assert_eq!(again.interpreter, made.interpreter, "{name}");
        assert!(make(home.path(), &lockfile).unwrap().cached, "{name}");
        assert_eq!(left_behind(home.path()), [hash(&lockfile)], "{name}");
    }
    // A process uses it meanwhile: the folder stays until that has ended.
    rename_version(&place);
    let Taken::Held(used) = InUse::take(home.path(), &hash(&lockfile)) else {
        panic!("it is there");
    };
    let cancel = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (waits, waited) = std::sync::mpsc::channel();
        let (cancel, lockfile) = (&cancel, &lockfile);
        let (home, how) = (home.path(), Build::default());
        let maker = scope.spawn(move || {
            let mut note = |line: &str| waits.send(line.to_owned()).unwrap();
            provision(home, lockfile, None, &how, cancel, &mut note)
        });
        let until_waits = waited
            .iter()
            .find(|line| line.starts_with("waiting for process"));
        assert!(until_waits.is_some());
        assert!(place.join("lib/python3.1").exists());
        drop(used);
        let again = maker.join().unwrap().unwrap();
        assert!(!again.cached && imports(&again, "pyarrow"));
    });
}

/// A home, as [`fresh_home`], in which programs run, with an environment that was broken.
fn home_of_programs(lockfile: &str, change: &dyn Fn(&Path)) -> tempfile::TempDir {
    let home = fresh_home();
    let flow = home.path().join(".casparian_flow");
    std::fs::create_dir(&flow).unwrap();
    std::fs::rename(home.path().join("uv"), flow.join("uv")).unwrap();
    let made = make(&flow, lockfile).unwrap();
    change(made.interpreter.parent().unwrap().parent().unwrap());
    home
}

#[test]
fn a_worker_makes_an_environment_again_that_breaks_under_it() {
    let lockfile = requirements_lockfile(&[], None, &[]);
    type Change<'a> = &'a dyn Fn(&Path);
    // Whether a job is given back, uncounted, before a test shows that the environment is broken.
    let cases: [(&str, Change<'_>, bool); 2] = [
        ("upgraded", &rename_version, false),
        ("no import", &break_pyarrow, true),
    ];
    for (name, change, is_tried) in cases {
        for named in ["", &hash(&lockfile)] {
            let own = home_of_programs(&lockfile, &|_| {});
            let mut rig = Rig::with(
                &["--slots", "2", "--plugin-start", "spawn"],
                |command, _| {
                    let cache = home().join(".cache/uv");
                    command.env("HOME", own.path()).env("UV_CACHE_DIR", cache);
                },
            );
            if !named.is_empty() {
                rig.dispatcher.prepare(named, &lockfile);
            }
            rig.dispatcher.gives_leases = true;
            let input = rig.path("in");
            let source = handler("return pa.table({'x': [1]})");
            let mut run = || {
                let job = rig.dispatcher.dispatch(&source, &input, named);
                rig.dispatcher.receipt(job)
            };
            let receipt = run();
            assert_eq!(receipt.status, JobStatus::Success, "{name}: {receipt:?}");
            let venvs = own.path().join(".casparian_flow/venvs");
            change(&venvs.join(hash(&lockfile)));
            if is_tried {
                let receipt = run();
                assert_eq!(
                    receipt.cause,
                    Some(Cause::Environment),
                    "{name}: {receipt:?}"
                );
                let reason = receipt.error_message.as_deref().unwrap_or_default();
                assert!(reason.contains("is tested now"), "{name}: {reason}");
                assert!(receipt.returned, "{name}: {receipt:?}");
            }
            let receipt = run();
            assert_eq!(receipt.status, JobStatus::Success, "{name}: {receipt:?}");
        }
    }
}

/// A plugin can claim a fault of its environment: one test, and then its failures count.
#[test]
fn a_plugin_that_blames_its_environment_has_it_tested_once() {
    let mut rig = Rig::new(&["--slots", "1"]);
    rig.dispatcher.gives_leases = true;
    let input = rig.path("in");
    let source = handler("import sys; sys.modules['pyarrow'] = None; import pyarrow");
    let mut run = || {
        let job = rig.dispatcher.dispatch(&source, &input, "");
        rig.dispatcher.receipt(job)
    };
    for returned in [true, false, false] {
        let receipt = run();
        assert_eq!(receipt.cause, Some(Cause::Environment), "{receipt:?}");
        assert_eq!(receipt.returned, returned, "{receipt:?}");
        let reason = receipt.error_message.unwrap_or_default();
        let first = reason.lines().next().unwrap_or_default();
        assert!(first.contains("/venvs/"), "{reason}");
        assert_eq!(
            first.contains("`casparian env prune`"),
            !returned,
            "{reason}"
        );
    }
}

#[test]
fn a_run_makes_a_broken_environment_again_or_ends_with_what_to_do() {
    let lockfile = requirements_lockfile(&[], None, &[]);
    type Change<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Change<'_>, bool); 4] = [
        ("upgraded", &rename_version, true),
        ("upgraded", &rename_version, false),
        ("no import", &break_pyarrow, true),
        ("no import", &break_pyarrow, false),
    ];
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("p.py");
    std::fs::write(&plugin, handler("return pa.table({'x': [1]})")).unwrap();
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "x").unwrap();
    for (number, (name, change, has_uv)) in cases.into_iter().enumerate() {
        let own = home_of_programs(&lockfile, change);
        if !has_uv {
            let bin = own.path().join(".casparian_flow/uv/bin");
            std::fs::remove_file(bin.join("uv")).unwrap();
            program_in(
                &bin,
                "uv",
                "#!/bin/sh\necho 'no registry answers' >&2; exit 3\n",
            );
        }
        let mut command = program("casparian");
        command
            .env("HOME", own.path())
            .env("UV_CACHE_DIR", home().join(".cache/uv"))
            .arg("run")
            .args([&plugin, &input])
            .args(["--outage-timeout", "5", "--output"])
            .arg(dir.path().join(format!("out{number}")));
        let begun = std::time::Instant::now();
        let ended = output(&mut command);
        let text = stderr(&ended);
        assert_eq!(ended.status.success(), has_uv, "{name}: {text}");
        if !has_uv {
            for want in ["no registry answers", "/venvs/", "`casparian env prune`"] {
                assert!(text.contains(want), "{name}: {want}: {text}");
            }
        }
        assert!(begun.elapsed().as_secs() < 100, "{name}: {text}");
    }
}

fn environment_path(home: &Path, lockfile: &str) -> PathBuf {
    home.join("venvs").join(hash(lockfile)).join("bin/python")
}

/// A `uv` that never ends and takes no signal that can be refused, with a child like itself.
#[test]
fn a_uv_that_hangs_ends_with_its_worker() {
    let lockfile = requirements_lockfile(&["six==1.16.0".to_owned()], None, &[]);
    let stops: [&[&str]; 4] = [
        &["-TERM"],
        &["-TERM", "-TERM"],
        &["-KILL"],
        &["-STOP", "-KILL"],
    ];
    for signals in stops {
        let mut rig = Rig::with(&["--slots", "2"], |command, dir| {
            let bin = dir.join("bin");
            let marks = dir.join("marks");
            std::fs::create_dir(&marks).unwrap();
            let script = format!(
                "#!/bin/sh\ntrap '' HUP INT TERM PIPE\n(while [ -e {marks:?} ]; do sleep 1; done) &\ntouch {marks:?}/$$ {marks:?}/$!\nwhile [ -e {marks:?} ]; do sleep 1; done\n"
            );
            program_in(&bin, "uv", &script);
            let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
            command.env("PATH", path).env("HOME", dir);
        });
        rig.dispatcher.prepare(&hash(&lockfile), &lockfile);
        let marks = rig.path("marks");
        let processes: Vec<String> = until("uv runs", || {
            let names = std::fs::read_dir(&marks).unwrap().flatten();
            let names = names.map(|entry| entry.file_name().into_string().unwrap());
            let names: Vec<String> = names.collect();
            (names.len() == 2).then_some(names)
        });
        for signal in signals {
            rig.worker.signal(signal);
        }
        rig.worker.wait();
        for process in processes {
            until(&format!("{process} is gone after {signals:?}"), || {
                let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
                stat.map_or(true, |stat| stat.contains(") Z "))
                    .then_some(())
            });
        }
    }
}

pub(crate) fn program_in(bin: &Path, name: &str, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(bin).unwrap();
    let path = bin.join(name);
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A folder with a `uv` that fails as often as there are marks beside the folder, and then is the real one.
fn failing_uv(dir: &Path, failures: usize) -> PathBuf {
    let bin = dir.join("bin");
    std::fs::create_dir(&bin).unwrap();
    for number in 0..failures {
        std::fs::write(dir.join(format!("fails-{number}")), "").unwrap();
    }
    let shared = home().join(".casparian_flow");
    let real = casparian::plugin::uv(&shared, &AtomicBool::new(false), &mut |_| {}).unwrap();
    let script = format!(
        "#!/bin/sh\nfor mark in {dir:?}/fails-*; do\n  if [ -e \"$mark\" ]; then rm \"$mark\"; echo 'the registry does not answer' >&2; exit 3; fi\ndone\nexec {real:?} \"$@\"\n"
    );
    program_in(&bin, "uv", &script);
    bin
}

#[test]
fn a_uv_that_fails_once_fails_no_job() {
    let lockfile = requirements_lockfile(&["six==1.16.0".to_owned()], None, &[]);
    for (failures, cause) in [(1, None), (3, Some(Cause::Environment))] {
        let mut rig = Rig::with(&["--slots", "2"], |command, dir| {
            let bin = failing_uv(dir, failures);
            let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
            let cache = home().join(".cache/uv");
            command
                .env("PATH", path)
                .env("HOME", dir)
                .env("UV_CACHE_DIR", cache);
        });
        rig.dispatcher.prepare(&hash(&lockfile), &lockfile);
        let input = rig.path("in");
        let source = handler("import six\nyield pa.table({'x': [1]})");
        let mut run = || {
            let job = rig.dispatcher.dispatch(&source, &input, &hash(&lockfile));
            rig.dispatcher.receipt(job)
        };
        let receipt = run();
        assert_eq!(receipt.cause, cause, "{receipt:?}");
        if cause.is_some() {
            assert!(first_line(&receipt).contains("registry"), "{receipt:?}");
            // No further PREPARE_ENV comes, and it is created all the same.
            until("the environment is tried again", || {
                let receipt = run();
                let done = receipt.status == JobStatus::Success;
                assert!(done || receipt.cause == cause, "{receipt:?}");
                done.then_some(())
            });
        }
    }
}

/// What a `uv` makes of the folder that it is given as its last argument, and what is said of it.
const EMPTY_TOOLS: &[(&str, &str)] = &[
    (
        ":",
        "uv venv failed: it ended with success and left no bin/python",
    ),
    (
        ": > \"$last\"",
        "uv venv failed: it ended with success and left no bin/python",
    ),
    (
        "[ $1 = venv ] || exit 0\nmkdir -p \"$last/bin\"\nprintf '#!/bin/sh\\nexit 7\\n' > \"$last/bin/python\"\nchmod +x \"$last/bin/python\"",
        "import pyarrow failed: exit status: 7",
    ),
];

/// A rig whose `uv` is a shell script with this body; `$last` is its last argument.
fn rig_with_uv(body: &str) -> Rig {
    Rig::with(&["--slots", "2"], |command, dir| {
        let bin = dir.join("bin");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] && echo 'uv 99.0.0' && exit\nfor last; do :; done\n{body}\n"
        );
        program_in(&bin, "uv", &script);
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        command.env("PATH", path).env("HOME", dir);
    })
}

#[test]
fn a_uv_that_succeeds_and_makes_nothing_is_the_environments_fault() {
    let lockfile = requirements_lockfile(&["six==1.16.0".to_owned()], None, &[]);
    let hash = hash(&lockfile);
    let mut rigs: Vec<(Rig, u64, &str)> = Vec::new();
    for (body, reason) in EMPTY_TOOLS {
        let mut rig = rig_with_uv(body);
        rig.dispatcher.prepare(&hash, &lockfile);
        let input = rig.path("in");
        let job = rig.dispatcher.dispatch(&handler("pass"), &input, &hash);
        rigs.push((rig, job, reason));
    }
    for (mut rig, job, reason) in rigs {
        let receipt = rig.dispatcher.receipt(job);
        assert_eq!(receipt.cause, Some(Cause::Environment), "{receipt:?}");
        assert_eq!(first_line(&receipt), reason, "{receipt:?}");
    }
}

/// A home that cannot be written spoils environments that are to be created, nothing else.
#[test]
fn a_home_that_cannot_be_used_is_no_trouble_of_the_worker() {
    let lockfile = requirements_lockfile(&["six==1.16.0".to_owned()], None, &[]);
    let mut rig = Rig::with(&["--slots", "4"], |command, _| {
        command.env("HOME", "/dev/null");
    });
    rig.dispatcher.prepare(&hash(&lockfile), &lockfile);
    let input = rig.path("in");
    let source = handler("pass");
    let jobs: Vec<u64> = (0..4)
        .map(|_| rig.dispatcher.dispatch(&source, &input, &hash(&lockfile)))
        .collect();
    for job in jobs {
        let receipt = rig.dispatcher.receipt(job);
        assert_eq!(receipt.cause, Some(Cause::Environment), "{receipt:?}");
        assert!(first_line(&receipt).contains("/dev/null"), "{receipt:?}");
    }
}

/// Plugin processes have a working directory of their own: paths of the worker do not depend on it.
#[test]
fn a_shim_may_be_relative() {
    let arguments = ["--plugin-start", "spawn", "--shim", "shim.py"];
    let mut rig = Rig::with(&arguments, |command: &mut Command, dir: &Path| {
        std::fs::write(dir.join("shim.py"), casparian::plugin::SHIM).unwrap();
        command.current_dir(dir);
    });
    let receipt = rig.run("yield pa.table({'x': [1]})");
    assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
}

/// The worker says that it wants no jobs of the environment before it frees the slot, and those
/// that are on their way by then are given back.
#[test]
fn jobs_that_come_while_an_environment_is_not_tried_again_are_given_back() {
    let lockfile = requirements_lockfile(&["six==1.16.0".to_owned()], None, &[]);
    let hash = hash(&lockfile);
    let mut rig = rig_with_uv("echo 'no network' >&2\nexit 1");
    rig.dispatcher.gives_leases = true;
    rig.dispatcher.prepare(&hash, &lockfile);
    let input = rig.path("in");
    let source = handler("pass");
    let first = rig.dispatcher.dispatch(&source, &input, &hash);
    let receipt = rig.dispatcher.receipt(first);
    let said = rig.dispatcher.avoided.clone();
    assert_eq!(receipt.cause, Some(Cause::Environment), "{receipt:?}");
    assert!(!receipt.returned, "{receipt:?}");
    assert_eq!(said[&hash], "uv venv failed: no network");
    for _ in 0..4 {
        let job = rig.dispatcher.dispatch(&source, &input, &hash);
        let receipt = rig.dispatcher.receipt(job);
        assert!(receipt.returned, "{receipt:?}");
        assert_eq!(first_line(&receipt), "uv venv failed: no network");
    }
}

/// The tools of a killed program may go on writing for a moment.
#[test]
fn a_run_that_was_killed_while_it_made_an_environment_is_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("p.py");
    std::fs::write(&plugin, "# /// script\n# dependencies = [\"six==1.16.0\"]\n# ///\nimport six\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n").unwrap();
    let input = dir.path().join("in");
    std::fs::write(&input, "x").unwrap();
    for round in 0..4 {
        let home = fresh_home();
        let flow = home.path().join(".casparian_flow");
        std::fs::create_dir(&flow).unwrap();
        std::fs::rename(home.path().join("uv"), flow.join("uv")).unwrap();
        let mut command = program("casparian");
        command
            .env("HOME", home.path())
            .env("UV_CACHE_DIR", crate::common::home().join(".cache/uv"))
            .env("UV_LINK_MODE", "copy")
            .arg("run")
            .args([&plugin, &input])
            .arg("--output")
            .arg(dir.path().join(format!("out{round}")));
        let mut first = Background::start(&mut command);
        // Ever deeper into it: the folder, the interpreter, the first package, the last one.
        let depth = [
            "",
            "bin/python",
            "lib/*/site-packages/six.py",
            "lib/*/site-packages/pyarrow/*.so",
        ];
        until("the environment is being made", || {
            let venvs = flow.join("venvs");
            let venvs = venvs.display();
            let wanted = depth[round];
            let script = format!(
                "for path in {venvs}/.*.new*/it/{wanted} {venvs}/.*.new*/{wanted} {venvs}/[0-9a-f]*; do [ -e \"$path\" ] && exit 0; done; exit 1"
            );
            let found = Command::new("sh").args(["-c", &script]).status().unwrap();
            found.success().then_some(())
        });
        first.kill();
        let second = output(&mut command);
        assert_eq!(second.status.code(), Some(0), "{}", stderr(&second));
    }
}

/// A rig of one slot that has the environment of jobs which name none, and whose `uv` waits for a
/// file `gate`.
fn rig_with_gate() -> Rig {
    let other = requirements_lockfile(&[], None, &[]);
    let shared = home().join(".casparian_flow");
    make(&shared, &other).unwrap();
    let real = casparian::plugin::uv(&shared, &AtomicBool::new(false), &mut |_| {}).unwrap();
    Rig::with(&["--slots", "1"], |command, dir| {
        let bin = dir.join("bin");
        let gate = dir.join("gate");
        let script = format!(
            "#!/bin/sh\nwhile [ ! -e {gate:?} ]; do sleep 0.05; done\nexec {real:?} \"$@\"\n"
        );
        program_in(&bin, "uv", &script);
        let venvs = dir.join(".casparian_flow/venvs");
        std::fs::create_dir_all(&venvs).unwrap();
        let name = hash(&other);
        std::os::unix::fs::symlink(shared.join("venvs").join(&name), venvs.join(&name)).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let cache = home().join(".cache/uv");
        command
            .env("PATH", path)
            .env("HOME", dir)
            .env("UV_CACHE_DIR", cache);
    })
}

/// A process that holds the lock of an environment and is stopped makes nothing: who waits for it
/// says so at once, goes on with other jobs, and gives up after a while.
#[test]
fn a_stopped_process_that_holds_the_lock_of_an_environment_is_named_and_given_up() {
    let lockfile = requirements_lockfile(&["six==1.16.0".to_owned()], None, &[]);
    let hash = hash(&lockfile);
    let mut rig = rig_with_gate();
    rig.dispatcher.gives_leases = true;
    let lock = rig.path(&format!(".casparian_flow/venvs/.{hash}.lock"));
    let script = "import fcntl, os, signal, sys\n\
         lock = open(sys.argv[1], 'w')\n\
         fcntl.flock(lock, fcntl.LOCK_EX)\n\
         print('locked', file=sys.stderr, flush=True)\n\
         os.kill(os.getpid(), signal.SIGSTOP)\n";
    let mut python = Command::new("python3");
    let mut holder = Background::start(python.args(["-c", script]).arg(&lock));
    holder.line_with("locked");
    until("it is stopped", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", holder.pid())).unwrap();
        stat.contains(") T ").then_some(())
    });
    rig.dispatcher.prepare(&hash, &lockfile);
    let input = rig.path("in");
    let first = rig.dispatcher.dispatch(&handler("pass"), &input, &hash);
    let wants = [
        format!("process {}", holder.pid()),
        lock.clone(),
        "is stopped".to_owned(),
    ];
    let names_it = |text: &str| wants.iter().all(|want| text.contains(want));
    let said = rig.dispatcher.avoided(&hash);
    assert!(said.starts_with("it is being created: "), "{said}");
    assert!(names_it(&said), "{said}");
    rig.worker.line_with(&wants[0]);
    let source = handler("yield pa.table({'x': [1]})");
    let other = rig.dispatcher.dispatch(&source, &input, "");
    let receipt = rig.dispatcher.receipt(other);
    assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
    let receipt = rig.dispatcher.receipt(first);
    assert_eq!(receipt.cause, Some(Cause::Environment), "{receipt:?}");
    assert!(names_it(first_line(&receipt)), "{receipt:?}");
    holder.kill();
}

/// A job occupies no slot while its environment is being created, and the worker asks for no others
/// of that environment.
#[test]
fn other_jobs_run_while_an_environment_is_being_created() {
    let lockfile = requirements_lockfile(&["six==1.16.0".to_owned()], None, &[]);
    let mut rig = rig_with_gate();
    rig.dispatcher.gives_leases = true;
    let hash = hash(&lockfile);
    rig.dispatcher.prepare(&hash, &lockfile);
    let input = rig.path("in");
    let source = handler("import six\nyield pa.table({'x': [1]})");
    let first = rig.dispatcher.dispatch(&source, &input, &hash);
    assert_eq!(rig.dispatcher.avoided(&hash), "it is being created");
    let waiting: Vec<i64> = rig.dispatcher.waiting.iter().map(|at| at.job_id).collect();
    assert_eq!(waiting, [first as i64]);
    // One job is enough to wait; others may find the environment elsewhere.
    let surplus = rig.dispatcher.dispatch(&source, &input, &hash);
    let receipt = rig.dispatcher.receipt(surplus);
    let reason = receipt.error_message.as_deref();
    assert_eq!(reason, Some("its environment is being created"));
    assert!(receipt.returned, "{receipt:?}");
    for _ in 0..2 {
        let source = handler("yield pa.table({'x': [1]})");
        let second = rig.dispatcher.dispatch(&source, &input, "");
        let receipt = rig.dispatcher.receipt(second);
        assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
    }
    assert_eq!(rig.dispatcher.try_receipt(first), None);
    std::fs::write(rig.path("gate"), "").unwrap();
    let receipt = rig.dispatcher.receipt(first);
    assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
}
