//! Unit tests of `runtime.rs`.

use super::*;

#[test]
fn a_removed_folder_is_created_again() {
    let mut runtime = Runtime::new().unwrap();
    let first = runtime.folder().to_owned();
    runtime.ensure().unwrap();
    assert_eq!(runtime.folder(), first);
    let prepare = |runtime: &mut Runtime| {
        let folder = runtime.environment_folder("hash", &|_| true);
        folder.map(|folder| JobPaths::new(folder, 1))
    };
    // It may contain what earlier workers left, of any depth.
    remover::remove(&first, None).unwrap();
    assert!(prepare(&mut runtime).is_err());
    runtime.ensure().unwrap();
    let own = prepare(&mut runtime).unwrap();
    Runtime::create_work_dir(&own).unwrap();
    assert!(runtime.shim().exists());
    let last = runtime.folder().to_owned();
    fs::remove_file(runtime.shim()).unwrap();
    fs::remove_file(last.join(LOCK)).unwrap();
    remover::remove(&last.join(TRASH), None).unwrap();
    runtime.ensure().unwrap();
    assert_eq!(runtime.folder(), last, "jobs may run in it");
    assert!(runtime.shim().exists());
    runtime.clear(&own, 1);
    drop(runtime);
    assert!(!last.exists());
}

/// A folder that others may enter, a link and a file stand for what other users may create there.
/// file.
#[test]
fn programs_of_a_user_agree_on_one_folder_whichever_user_takes_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path();
    let path = |number| base.join(user_folder_name(number));
    let user_folder = || user_folder(base).unwrap();
    fs::create_dir(path(0)).unwrap();
    fs::set_permissions(path(0), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(base, path(1)).unwrap();
    fs::write(path(2), "").unwrap();
    assert_eq!(user_folder(), path(3));
    assert_eq!(user_folder(), path(3));
    fs::remove_dir(path(0)).unwrap();
    assert_eq!(user_folder(), path(3), "programs that run have that one");
    // Names that are not those of a user's folder. A plugin may create them.
    for end in ["x", "-0", "-00", "-+1", "-01", "-"] {
        let other = base.join(format!("{}{end}", user_folder_name(0)));
        fs::DirBuilder::new().mode(0o700).create(&other).unwrap();
        assert_eq!(user_folder(), path(3), "{end}");
    }
    fs::remove_dir(path(3)).unwrap();
    assert_eq!(user_folder(), path(0));
    fs::remove_dir(path(0)).unwrap();
    for number in 0..=USER_FOLDERS_MAX {
        let _ = fs::write(path(number), "");
    }
    let error = super::user_folder(base).unwrap_err().to_string();
    assert!(error.contains("are other users'"), "{error}");
}

#[test]
fn the_folder_of_a_user_stays_and_is_used_again() {
    let runtime = Runtime::new().unwrap();
    let folder = runtime.hidden_folder().to_owned();
    drop(runtime);
    assert!(folder.is_dir());
    assert_eq!(Runtime::new().unwrap().hidden_folder(), folder);
}

#[test]
fn a_removal_that_is_cut_off_leaves_the_lock_file_for_the_next_worker() {
    let runtime = Runtime::new().unwrap();
    let folder = runtime.folder().to_owned();
    let nested = folder.join("w1/a/b");
    fs::create_dir_all(&nested).unwrap();
    fs::write(nested.join("c"), "").unwrap();
    let error = remove_unlocked(&folder, BootTime::default()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!(folder.join(LOCK).exists());
    // As at the end of its process.
    runtime.lock.unlock().unwrap();
    std::mem::forget(runtime);
    let next = Runtime::new().unwrap();
    assert!(!folder.exists());
    // Without a lock file.
    let hidden = next.hidden_folder();
    let (old, new) = (hidden.join("w-test-old"), hidden.join("w-test-new"));
    for folder in [&old, &new] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("a"), "").unwrap();
    }
    let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    fs::File::open(&old).unwrap().set_times(times).unwrap();
    drop(Runtime::new().unwrap());
    assert!(!old.exists());
    assert!(new.exists());
    remover::remove(&new, None).unwrap();
}

/// With the prefix of a user's folder, and with a lock file.
#[test]
fn nothing_is_removed_from_the_folder_of_temporary_files_that_no_worker_made() {
    let base = std::env::temp_dir().join(format!("casparian-t{}", std::process::id()));
    fs::create_dir(&base).unwrap();
    fs::write(base.join(LOCK), "").unwrap();
    drop(Runtime::new().unwrap());
    assert!(base.join(LOCK).exists());
    fs::remove_dir_all(base).unwrap();
}

#[test]
fn environments_have_folders_of_their_own_as_long_as_they_are_used() {
    let mut runtime = Runtime::new().unwrap();
    let used = |hash: &str| hash == "0";
    let first = runtime.environment_folder("0", &used).unwrap();
    let second = runtime.environment_folder("1", &used).unwrap();
    assert_ne!(first, second);
    for number in 2..=limits::WORKER_ENVIRONMENTS_MAX {
        runtime
            .environment_folder(&number.to_string(), &used)
            .unwrap();
    }
    assert_eq!(runtime.environment_folder("0", &used).unwrap(), first);
    assert!(first.exists() && !second.exists());
    assert_eq!(runtime.environments.len(), 2);
    fs::remove_dir(&first).unwrap();
    let again = runtime.environment_folder("0", &used).unwrap();
    assert_ne!(again, first, "a new one has another name");
    fs::remove_dir(&again).unwrap();
    fs::write(&again, "").unwrap();
    assert_ne!(runtime.environment_folder("0", &used).unwrap(), again);
}

#[test]
fn each_folder_that_cannot_be_used_is_named_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let long = PathBuf::from(format!("/{}", "x".repeat(200)));
    let bases = [
        ("TMPDIR", long.clone()),
        ("XDG_RUNTIME_DIR", PathBuf::from("here")),
        ("", missing.clone()),
    ];
    let error = create_below(bases.clone().into_iter(), create_in)
        .unwrap_err()
        .to_string();
    for want in [
        format!("TMPDIR={}: its 201 bytes", long.display()),
        "XDG_RUNTIME_DIR=here: it is not an absolute path".to_owned(),
        format!("; {}: No such file", missing.display()),
        "set TMPDIR".to_owned(),
    ] {
        assert!(error.contains(&want), "{error}");
    }
    let usable = ("", dir.path().to_owned());
    let (folder, _lock) = create_below(bases.into_iter().chain([usable]), create_in).unwrap();
    assert!(folder.starts_with(dir.path()));
}

#[test]
fn the_self_test_creates_what_was_removed_and_names_what_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let root = Root::open(&output, crate::sink::RootOptions::default()).unwrap();
    self_test(dir.path(), &root).unwrap();
    fs::remove_dir_all(output.join(".casparian")).unwrap();
    self_test(dir.path(), &root).unwrap();
    assert!(output.join(".casparian/staging").is_dir());
    let workers = fs::read_dir(output.join(".casparian/workers")).unwrap();
    assert_eq!(workers.count(), 1, "others see that the worker lives");
    fs::remove_dir_all(&output).unwrap();
    let error = self_test(dir.path(), &root).unwrap_err().to_string();
    assert!(error.contains("put it back"), "{error}");
    assert!(!output.exists());
    fs::write(&output, "a file").unwrap();
    let error = self_test(dir.path(), &root).unwrap_err().to_string();
    assert!(error.contains("out"), "{error}");
    let missing = dir.path().join("missing");
    assert!(self_test(&missing, &root).is_err());
}
