//! The cache of environments: what is evicted, and what is in use.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use casparian::job::JobStatus;
use casparian::plugin::cache::{InUse, Taken};
use casparian::plugin::environment::{hash, requirements_lockfile};
use serde_json::Value;

use crate::common::*;
use crate::dispatcher::*;
use crate::environments::program_in;

/// A name that an environment may have.
fn fake_hash(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// Sets a command up with a home in a folder, which borrows uv and its cache.
fn at_home(command: &mut Command, dir: &Path) {
    let shared = home().join(".casparian_flow");
    let uv = casparian::plugin::uv(&shared, &AtomicBool::new(false), &mut |_| {}).unwrap();
    let bin = dir.join(".casparian_flow/uv/bin");
    if !bin.exists() {
        std::fs::create_dir_all(&bin).unwrap();
        std::os::unix::fs::symlink(uv, bin.join("uv")).unwrap();
    }
    command
        .env("HOME", dir)
        .env("UV_CACHE_DIR", home().join(".cache/uv"));
}

/// An environment of 1 MiB that nothing can run in.
fn fake(dir: &Path, digit: char) -> PathBuf {
    let place = dir.join(".casparian_flow/venvs").join(fake_hash(digit));
    std::fs::create_dir_all(place.join("bin")).unwrap();
    std::fs::write(place.join("bin/python"), vec![b'x'; 1 << 20]).unwrap();
    place
}

fn env(dir: &Path, arguments: &[&str]) -> Vec<Value> {
    let mut command = program("casparian");
    at_home(&mut command, dir);
    let output = output(command.arg("env").args(arguments).arg("--json"));
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn a_worker_keeps_the_cache_within_its_bound_and_no_worker_takes_what_another_uses() {
    let mut used = None;
    let mut places = Vec::new();
    let mut rig = Rig::with(&["--env-cache-max", "1500K"], |command, dir| {
        at_home(command, dir);
        places.extend(['a', 'b', 'c'].map(|digit| fake(dir, digit)));
        // As another worker uses it.
        let Taken::Held(lock) = InUse::take(&dir.join(".casparian_flow"), &fake_hash('b')) else {
            panic!("it is there");
        };
        used = Some(lock);
    });
    until("the idle ones are evicted", || {
        (!places[0].exists() && !places[2].exists()).then_some(())
    });
    assert!(places[1].exists());
    let receipt = rig.run("yield pa.table({'x': [1]})");
    assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
    // What the worker runs is far too large, and stays.
    let dir = rig.dir.path();
    let listed = env(dir, &["list"]);
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert!(listed.iter().all(|one| one["in_use"] == true), "{listed:?}");
    assert!(
        listed
            .iter()
            .any(|one| one["bytes"].as_u64() > Some(10_000_000))
    );
    assert_eq!(env(dir, &["prune"]).len(), 0);
    drop(used);
    assert_eq!(env(dir, &["prune", "--dry-run"]).len(), 1);
    assert!(places[1].exists());
    assert_eq!(env(dir, &["prune"]).len(), 1);
    assert!(!places[1].exists());
    // A killed worker uses nothing.
    rig.worker.kill();
    until("its interpreter has gone with it", || {
        (env(rig.dir.path(), &["prune"]).len() == 1).then_some(())
    });
    assert!(env(rig.dir.path(), &["list"]).is_empty());
}

#[test]
fn an_environment_that_was_evicted_is_created_again_for_the_next_job() {
    let mut rig = Rig::with(&["--plugin-start", "spawn"], at_home);
    for _ in 0..2 {
        let receipt = rig.run("yield pa.table({'x': [1]})");
        assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
        until("nothing runs in it", || {
            (env(rig.dir.path(), &["prune"]).len() == 1).then_some(())
        });
    }
}

/// An environment that goes while nothing uses it, as when another worker of the host evicts it.
#[test]
fn an_environment_that_is_missing_does_not_count_as_ready() {
    let dir = tempfile::tempdir().unwrap();
    let source = "import pyarrow as pa\n\nclass Handler:\n    def execute(self, path):\n        \
         yield pa.table({'x': [1]})\n";
    let database = database_with(dir.path(), "p", source);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let mut command = program("casparian-worker");
    at_home(&mut command, dir.path());
    command.args(["--connect", &endpoint, "--output"]);
    let _worker = Background::start(command.arg(dir.path().join("out")));
    let location = database.to_str().unwrap();
    let ready = || {
        let text = casparian_ok(&["workers", "--json", "--database", location]);
        let workers: Value = serde_json::from_str(&text).unwrap();
        let ready = workers[0]["ready"].as_array().cloned();
        ready.unwrap_or_default()
    };
    let first = until("it is prepared", || ready().first().cloned());
    let venvs = dir.path().join(".casparian_flow/venvs");
    let name = first["environment"].as_str().unwrap();
    std::fs::rename(venvs.join(name), dir.path().join("gone")).unwrap();
    until("the worker reports it", || ready().is_empty().then_some(()));
    std::fs::rename(dir.path().join("gone"), venvs.join(name)).unwrap();
    until("it is there again", || ready().first().cloned());
    std::fs::rename(venvs.join(name), dir.path().join("gone")).unwrap();
    until("the worker reports it again", || {
        ready().is_empty().then_some(())
    });
    let input = dir.path().join("in");
    std::fs::write(&input, "x").unwrap();
    let id = submit(&database, "p", &[input])[0];
    assert_eq!(ended(&database, id)["status"], "COMPLETED");
    until("it was created for the job", || ready().first().cloned());
}

/// Environments that are prepared ahead hang; one that a job needs does not.
#[test]
fn jobs_do_not_wait_behind_environments_that_none_needs() {
    let at_once = 4;
    let mut rig = Rig::with(&["--slots", "1"], |command, dir| {
        at_home(command, dir);
        let bin = dir.join("bin");
        std::fs::create_dir(&bin).unwrap();
        let uv = dir.join(".casparian_flow/uv/bin/uv");
        // Waits with each `uv venv`, which has the environment's name in its last argument, until
        // that stands in `go`, or `all` is there.
        let script = format!(
            "#!/bin/sh\nfor last; do :; done\nif [ $1 = venv ]; then\n  echo $last >> {dir:?}/begun\n  \
             while [ ! -e {dir:?}/all ] && ! grep -qsxF $last {dir:?}/go; do sleep 0.05; done\nfi\nexec {uv:?} \"$@\"\n"
        );
        program_in(&bin, "uv", &script);
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        command.env("PATH", path);
    });
    let lockfile = |number: usize| requirements_lockfile(&[], None, &[format!("json{number}")]);
    for number in 0..at_once + 3 {
        let lockfile = lockfile(number);
        rig.dispatcher.prepare(&hash(&lockfile), &lockfile);
    }
    let wanted = hash(&lockfile(at_once + 2));
    let input = rig.path("in");
    let source = handler("yield pa.table({'x': [1]})");
    let begun_path = rig.path("begun");
    let begun = || {
        let text = std::fs::read_to_string(&begun_path).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    until("four are begun", || {
        (begun().len() == at_once).then_some(())
    });
    rig.dispatcher.gives_leases = true;
    let job = rig.dispatcher.dispatch(&source, &input, &wanted);
    until("the worker says that the job waits", || {
        let ended = rig.dispatcher.try_receipt(job);
        assert!(ended.is_none(), "{ended:?}");
        (!rig.dispatcher.waiting.is_empty()).then_some(())
    });
    assert_eq!(begun().len(), at_once);
    // One ends: the next that begins is the job's.
    std::fs::write(rig.path("go"), format!("{}\n", begun()[0])).unwrap();
    let next = until("a fifth is begun", || begun().get(at_once).cloned());
    assert!(next.contains(&wanted), "{next} is not {wanted}");
    std::fs::write(rig.path("all"), "").unwrap();
    let receipt = rig.dispatcher.receipt(job);
    assert_eq!(receipt.status, JobStatus::Success, "{receipt:?}");
}

#[test]
fn mistakes_are_one_line() {
    let mistakes: &[(&[&str], &str)] = &[
        (&["env"], "expected list or prune"),
        (&["env", "drop"], "expected list or prune"),
        (&["env", "list", "--dry-run"], "options of prune"),
        (&["env", "prune", "--keep", "x"], "expected bytes"),
        (&["worker", "--env-cache-max", "-"], "expected bytes"),
    ];
    for (arguments, expected) in mistakes {
        let output = casparian(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = stderr(&output);
        assert!(said.contains(expected), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
