//! Unit tests of `lock.rs`.

use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

fn refused(path: &Path) -> String {
    let error = lock_database(path, Open::Existing).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    error.to_string()
}

#[test]
fn one_program_at_a_time_by_whatever_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let database = path("q.db");
    symlink(&database, path("link.db")).unwrap();
    // A database that does not exist yet is created, also through a link.
    let lock = lock_database(&path("link.db"), Open::Create).unwrap();
    assert!(lock.path().ends_with("q.db.sentinel-lock"));
    let mode = std::fs::metadata(lock.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    std::fs::hard_link(&database, path("hard.db")).unwrap();
    std::fs::create_dir(path("folder")).unwrap();
    let working = std::env::current_dir().unwrap();
    let up = "../".repeat(working.components().count());
    let relative = Path::new(&up).join(database.strip_prefix("/").unwrap());
    let names = [
        ("symbolic link", path("link.db")),
        ("hard link", path("hard.db")),
        ("relative path", relative),
        ("dots", path("folder/../q.db")),
    ];
    for has_lock_file in [true, false] {
        for (name, path) in &names {
            assert!(refused(path).contains("another sentinel"), "{name}");
        }
        if has_lock_file {
            std::fs::remove_file(lock.path()).unwrap();
        }
    }
    drop(lock);
    for (_, path) in &names {
        lock_database(path, Open::Existing).unwrap();
    }
}

#[test]
fn a_check_for_a_sentinel_neither_takes_nor_breaks_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("q.db");
    assert_eq!(has_sentinel(&database), None, "there is no database");
    std::fs::write(&database, "").unwrap();
    let lock_file = dir.path().join("q.db.sentinel-lock");
    for _ in 0..2 {
        assert_eq!(has_sentinel(&database), Some(false));
        let lock = lock_database(&database, Open::Existing).unwrap();
        for is_removed in [false, true] {
            assert_eq!(has_sentinel(&database), Some(true), "{is_removed}");
            refused(&database);
            let _ = std::fs::remove_file(&lock_file);
        }
        drop(lock);
    }
    // An own descriptor, as another process would have it.
    let open = |path: &Path| {
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    };
    for path in [&lock_file, &database] {
        let _ = std::fs::remove_file(&lock_file);
        let file = open(path).unwrap();
        file.lock().unwrap();
        assert_eq!(has_sentinel(&database), Some(true), "{}", path.display());
        assert_eq!(has_sentinel(&database), Some(true), "{}", path.display());
        drop(file);
        // A shared lock is that of a program that checks for a sentinel at the same moment.
        let file = open(path).unwrap();
        file.lock_shared().unwrap();
        assert_eq!(has_sentinel(&database), Some(false), "{}", path.display());
    }
    let _ = std::fs::remove_file(&lock_file);
    symlink("elsewhere", &lock_file).unwrap();
    assert_eq!(has_sentinel(&database), None);
}

#[test]
fn a_file_that_replaces_a_locked_database_is_locked_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("q.db");
    let lock = lock_database(&database, Open::Create).unwrap();
    lock.check(&database).unwrap();
    std::fs::remove_file(&database).unwrap();
    assert!(lock.check(&database).is_err());
    std::fs::write(&database, "").unwrap();
    let error = lock.check(&database).unwrap_err();
    assert!(error.to_string().contains("replaced"), "{error}");
    refused(&database);
    drop(lock);
    lock_database(&database, Open::Existing).unwrap();
}

#[test]
fn what_is_not_a_regular_file_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let fifo = |name: &str| {
        let made = std::process::Command::new("mkfifo")
            .arg(path(name))
            .status();
        assert!(made.unwrap().success());
    };
    std::fs::create_dir(path("folder.sentinel-lock")).unwrap();
    symlink(path("elsewhere"), path("link.sentinel-lock")).unwrap();
    fifo("fifo.sentinel-lock");
    std::fs::create_dir(path("directory")).unwrap();
    fifo("pipe");
    let cases = [
        ("folder", "lock file"),
        ("link", "lock file"),
        ("fifo", "lock file"),
        ("directory", "it is a directory"),
        ("pipe", "it is not a regular file"),
        ("no/such", "No such file"),
    ];
    for (name, words) in cases {
        let error = lock_database(&path(name), Open::Create).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(words) && !error.contains('\n'), "{error}");
    }
    assert!(!path("elsewhere").exists());
    std::fs::write(path("text"), "a text of more than 16 bytes").unwrap();
    std::fs::write(path("short"), "a text").unwrap();
    symlink(path("text"), path("to-text")).unwrap();
    for name in ["text", "short", "to-text"] {
        let error = lock_database(&path(name), Open::Existing).unwrap_err();
        assert!(error.to_string().contains("no SQLite database"), "{error}");
    }
    for name in ["text.sentinel-lock", "short.sentinel-lock"] {
        assert!(!path(name).exists(), "{name}");
    }
    let missing = lock_database(&path("missing"), Open::Existing).unwrap_err();
    assert!(matches!(missing, Error::Missing { .. }), "{missing}");
    assert!(!path("missing").exists());
}
