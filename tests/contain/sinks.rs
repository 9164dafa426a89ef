//! Where SQLite sinks may have their databases.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::common::*;

const ONE_ROW: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";

/// A database with a table of another program.
fn create_database(path: &Path) {
    let store = rusqlite::Connection::open(path).unwrap();
    store.execute_batch("CREATE TABLE own (x)").unwrap();
}

fn tables(path: &Path) -> Vec<String> {
    let store = rusqlite::Connection::open(path).unwrap();
    let query = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name";
    let mut statement = store.prepare(query).unwrap();
    let names = statement.query_map([], |row| row.get(0)).unwrap();
    names.collect::<Result<_, _>>().unwrap()
}

/// The sink's database below the folder of the scene, the worker's `--sink-root`, and what the
/// failure says; none for a job that is done.
const CASES: &[(&str, Option<&str>, Option<&str>)] = &[
    ("elsewhere/x.db", None, None),
    ("elsewhere/x.db", Some("listed"), Some("--sink-root")),
    ("listed-too/x.db", Some("listed"), Some("--sink-root")),
    ("listed/x.db", Some("listed"), None),
    ("listed/deep/x.db", Some("listed"), None),
    ("out/x.db", Some("listed"), None),
    ("link-to-listed/x.db", Some("listed"), None),
    ("listed/x.db", Some("link-to-listed"), None),
    ("listed/link/x.db", Some("listed"), Some("--sink-root")),
    ("listed/link.db", Some("listed"), Some("--sink-root")),
    ("out/link/x.db", Some("listed"), Some("--sink-root")),
    (
        "listed/link-to-odd/x.db",
        Some("listed"),
        Some("--sink-root"),
    ),
    ("link-to-odd/x.db", Some("link-to-odd"), None),
    ("queue.sqlite", None, Some("job queue")),
    ("listed/queue.db", None, Some("job queue")),
    ("old-queue.db", None, Some("job queue")),
    ("link-to-ours/x.db", None, Some(".casparian")),
];

#[test]
fn databases_of_sinks_are_where_they_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for folder in ["elsewhere", "listed/deep", "listed-too", "out"] {
        fs::create_dir_all(path(folder)).unwrap();
    }
    let database = database_with(dir.path(), "p", ONE_ROW);
    let old = "CREATE TABLE cf_processing_queue (id INTEGER PRIMARY KEY)";
    create_database(&path("old-queue.db"));
    sql(&path("old-queue.db"), old);
    create_database(&path("elsewhere/x.db"));
    let odd = OsStr::from_bytes(b"odd\xff");
    fs::create_dir(dir.path().join(odd)).unwrap();
    symlink(dir.path().join(odd), path("link-to-odd")).unwrap();
    symlink(dir.path().join(odd), path("listed/link-to-odd")).unwrap();
    for (target, link) in [
        ("elsewhere", "listed/link"),
        ("elsewhere/x.db", "listed/link.db"),
        ("elsewhere", "out/link"),
        ("listed", "link-to-listed"),
        ("queue.sqlite", "listed/queue.db"),
        ("out/.casparian", "link-to-ours"),
    ] {
        symlink(path(target), path(link)).unwrap();
    }
    let input = path("in");
    fs::write(&input, "in").unwrap();
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    for (place, listed, want) in CASES {
        let store = rusqlite::Connection::open(&database).unwrap();
        let uri = format!("sqlite://{}/rows", path(place).display());
        store.execute("DELETE FROM cf_topic_config", []).unwrap();
        let insert = "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
             VALUES ('p', 'output', ?1, 'append')";
        store.execute(insert, [&uri]).unwrap();
        let before = (tables(&path("elsewhere/x.db")), tables(&database));
        let listed: Option<PathBuf> = listed.map(&path);
        let more = match &listed {
            Some(listed) => vec!["--sink-root", listed.to_str().unwrap()],
            None => Vec::new(),
        };
        let _worker = worker(&endpoint, &path("out"), &more);
        let ids = submit(&database, "p", std::slice::from_ref(&input));
        let job = ended(&database, ids[0]);
        match want {
            None => assert_eq!(job["status"], "COMPLETED", "{place} {job}"),
            Some(want) => {
                assert_eq!(job["status"], "FAILED", "{place} {job}");
                assert_eq!(job["cause"], "operator", "{place} {job}");
                let error = job["error"].as_str().unwrap();
                assert!(error.contains(want), "{place} {error}");
                let after = (tables(&path("elsewhere/x.db")), tables(&database));
                assert_eq!(after, before, "{place}");
            }
        }
    }
}

#[test]
fn a_sink_root_that_is_missing_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let out = dir.path().join("out");
    let output = output(
        program("casparian-worker")
            .args(["--connect", "tcp://127.0.0.1:1", "--sink-root"])
            .arg(&missing)
            .arg("--output")
            .arg(out),
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("missing"), "{}", stderr(&output));
}

/// What a plugin tries in folders of output.
const INTRUDER: &str = r#"
import os, sqlite3
import pyarrow as pa

def change(path):
    with sqlite3.connect(path) as database:
        database.execute("UPDATE own SET x = 666")

def create(path):
    with open(path, "w"):
        pass

class Handler:
    def execute(self, path):
        scene = os.path.dirname(path)
        done = []
        for folder in ("listed", "linked", "other"):
            place = f"{scene}/{folder}"
            for name, attack in (
                ("change", lambda: change(place + "/x.db")),
                ("create", lambda: create(place + "/new")),
                ("unlink", lambda: os.unlink(place + "/file")),
                ("rename", lambda: os.rename(place, place + ".away")),
            ):
                try:
                    attack()
                    done.append(f"{folder} {name}")
                except (OSError, sqlite3.OperationalError):
                    pass
        yield pa.table({"done": done})
"#;

#[test]
fn plugins_cannot_change_output_in_listed_folders() {
    for (mode, others) in [
        (
            "on",
            [
                "other change",
                "other create",
                "other unlink",
                "other rename",
            ]
            .as_slice(),
        ),
        ("strict", &[]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for folder in ["listed", "real", "other"] {
            fs::create_dir(path(folder)).unwrap();
            fs::write(path(folder).join("file"), "").unwrap();
            create_database(&path(folder).join("x.db"));
            let insert = "INSERT INTO own VALUES (1)";
            sql(&path(folder).join("x.db"), insert);
        }
        symlink("real", path("linked")).unwrap();
        let database = database_with(dir.path(), "p", INTRUDER);
        let store = rusqlite::Connection::open(&database).unwrap();
        let uri = format!("sqlite://{}/done", path("linked/x.db").display());
        let insert = "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
             VALUES ('p', 'output', ?1, 'append')";
        store.execute(insert, [&uri]).unwrap();
        fs::write(path("in"), "in").unwrap();
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let roots = ["listed", "linked"].map(|name| path(name).display().to_string());
        let more = ["--sink-root", &roots[0], "--sink-root", &roots[1]];
        let more = [more.as_slice(), &["--sandbox", mode]].concat();
        let _worker = worker(&endpoint, &path("out"), &more);
        let job = ended(&database, submit(&database, "p", &[path("in")])[0]);
        assert_eq!(job["status"], "COMPLETED", "{mode}: {job}");
        let output = rusqlite::Connection::open(path("real/x.db")).unwrap();
        let mut rows = output.prepare("SELECT done FROM done").unwrap();
        let done = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
        let done: Vec<String> = done.map(Result::unwrap).collect();
        assert_eq!(done, others, "{mode}");
    }
}
