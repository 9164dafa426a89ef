//! Python environments, made by a real uv.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use casparian::guest::environment::{
    Environment, Error, find, hash, pin, provision, requirements_lockfile,
};

use crate::common::*;

/// A home of its own that borrows the shared private uv, so that it is installed once.
fn fresh_home() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let uv = casparian::guest::uv(
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
fn a_failed_environment_leaves_nothing_and_says_what_uv_said() {
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

fn environment_path(home: &Path, lockfile: &str) -> PathBuf {
    home.join("venvs").join(hash(lockfile)).join("bin/python")
}

#[test]
fn a_pinned_list_names_exact_versions_and_keeps_its_header() {
    let home = fresh_home();
    let open = requirements_lockfile(&["six".to_owned()], Some(">=3.9"), &["six".to_owned()]);
    let pinned = pin(home.path(), &open, &AtomicBool::new(false), &mut |_| {}).unwrap();
    let header = |text: &str| text.lines().take_while(|l| l.starts_with('#')).count();
    assert_eq!(header(&pinned), 3, "{pinned}");
    assert!(
        pinned.lines().skip(3).all(|line| line.contains("==")),
        "{pinned}"
    );
    assert!(pinned.contains("\nsix=="), "{pinned}");
}
