//! What the commands say and refuse.

use std::path::Path;
use std::process::Command;

use crate::common::*;

const ONE_ROW: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";

#[test]
fn deploy_takes_a_version() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let plugin = dir.path().join("one.py");
    let (plugin_text, text) = (plugin.to_str().unwrap(), database.to_str().unwrap());
    for (number, words) in [
        &["--version", "1.0"][..],
        &["--version=2.0"],
        &["-V", "3.0"],
    ]
    .iter()
    .enumerate()
    {
        std::fs::write(&plugin, format!("{ONE_ROW}# {number}\n")).unwrap();
        let mut arguments = vec!["deploy", plugin_text, "-d", text];
        arguments.extend(*words);
        let said = casparian_ok(&arguments);
        assert_eq!(said, format!("one {}.0 deployed\n", number + 1));
    }
    for words in [&["--version"][..], &["jobs", "-V"], &["run", "--version"]] {
        let said = casparian_ok(words);
        assert!(said.starts_with("casparian 0."), "{said}");
    }
}

#[test]
fn without_a_sentinel_workers_are_offline_and_jobs_show_why_they_wait() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let text = database.to_str().unwrap();
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let status = || {
        let workers = casparian_ok(&["workers", "--json", "-d", text]);
        let workers: serde_json::Value = serde_json::from_str(&workers).unwrap();
        workers[0]["status"].as_str().unwrap().to_owned()
    };
    let (sentinel, endpoint) = sentinel(&database, &[]);
    let _worker = worker(&endpoint, &dir.path().join("out"), &[]);
    let first = submit(&database, "one", std::slice::from_ref(&input))[0];
    assert_eq!(ended(&database, first)["status"], "COMPLETED");
    assert_eq!(status(), "ONLINE");
    // The lock file is not all that counts.
    std::fs::remove_file(dir.path().join("queue.sqlite.sentinel-lock")).unwrap();
    assert_eq!(status(), "ONLINE");
    sentinel.signal("-KILL");
    drop(sentinel);
    assert_eq!(status(), "OFFLINE");
    let table = casparian_ok(&["workers", "-d", text]);
    assert!(table.contains("OFFLINE"), "{table}");
    let id = submit(&database, "one", &[input])[0];
    let why = "a sentinel: none works on this database";
    assert_eq!(job(&database, id)["waiting_for"], why);
    for words in [&["job", &id.to_string()][..], &["jobs"]] {
        let shown = casparian_ok(&[words, &["-d", text]].concat());
        assert!(shown.contains(why), "{shown}");
    }
    // Whoever asked has not kept the lock.
    let (_sentinel, _) = crate::common::sentinel(&database, &[]);
    assert_eq!(job(&database, id)["status"], "QUEUED");
    assert_ne!(job(&database, id)["waiting_for"], why);
}

#[test]
fn another_programs_database_is_refused_by_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("app.db");
    sql(&database, "CREATE TABLE users (id INTEGER)");
    let before = std::fs::read(&database).unwrap();
    let text = database.to_str().unwrap();
    let plugin = dir.path().join("one.py");
    std::fs::write(&plugin, ONE_ROW).unwrap();
    let plugin = plugin.to_str().unwrap();
    for words in [
        &["init", text][..],
        &["init", "--new-identity", text],
        &["deploy", plugin, "-d", text],
        &["submit", "--plugin", "one", plugin, "-d", text],
        &["jobs", "-d", text],
        &["sentinel", "--bind", "tcp://127.0.0.1:0", "-d", text],
    ] {
        let refused = casparian(words);
        let error = stderr(&refused);
        assert_eq!(refused.status.code(), Some(1), "{words:?}: {error}");
        assert!(error.contains("of another program"), "{words:?}: {error}");
        assert!(std::fs::read(&database).unwrap() == before, "{words:?}");
    }
}

#[test]
fn no_text_moves_the_cursor_of_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join("odd\x1b[2J\u{9b}1m\nname");
    std::fs::create_dir(&odd).unwrap();
    let database = database_with(&odd, "o\x1b[31mne", ONE_ROW);
    let text = database.to_str().unwrap();
    let input = odd.join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    std::os::unix::fs::symlink("nowhere", odd.join("broken\x1b[2J")).unwrap();
    let submitted = casparian(&[
        "submit",
        "-p",
        "o\x1b[31mne",
        "-d",
        text,
        odd.to_str().unwrap(),
    ]);
    let id = stdout(&submitted);
    let id = id.lines().next().unwrap();
    let missing = odd.join("missing");
    let missing = missing.to_str().unwrap();
    let plugin = odd.join("o\x1b[31mne.py");
    for words in [
        &["job", id, "-d", text][..],
        &["jobs", "-d", text],
        &["workers", "-d", text],
        &["job", id, "-d", text, "--json"],
        &["deploy", plugin.to_str().unwrap(), "-d", text],
        &["job", "99", "-d", text],
        &["jobs", "-d", missing],
        &["init", text],
        &["jobs", "-d", text, "--plugin\x1b[2J"],
        &["\x1b[2J"],
    ] {
        let said = casparian(words);
        for text in [stdout(&said), stderr(&said)] {
            let odd = text.find(|c: char| c.is_control() && c != '\n');
            assert_eq!(odd, None, "{words:?}: {text:?}");
        }
    }
    let error = stderr(&submitted);
    assert!(error.contains("broken\\u001b[2J"), "{error}");
    assert!(!error.contains('\x1b'), "{error}");
    let shown = casparian_ok(&["job", id, "-d", text]);
    let line = shown.lines().find(|line| line.starts_with("file"));
    assert!(line.unwrap().contains("name/"), "{shown}");
    assert_eq!(job(&database, id.parse().unwrap())["plugin"], "o\x1b[31mne");
}

#[test]
fn what_was_done_is_reported_when_stdout_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let text = database.to_str().unwrap();
    let mut files = Vec::new();
    for name in ["a", "b", "c"] {
        files.push(dir.path().join(name));
        std::fs::write(&files[files.len() - 1], name).unwrap();
    }
    let full = |command: &mut Command| {
        let full = std::fs::File::options().write(true).open("/dev/full");
        let said = command.stdout(full.unwrap()).output().unwrap();
        assert_eq!(said.status.code(), Some(1));
        stderr(&said)
    };
    let mut submit = program("casparian");
    let error = full(
        submit
            .args(["submit", "-p", "one", "-d", text])
            .args(&files),
    );
    assert!(error.contains("stdout"), "{error}");
    assert!(error.contains("the jobs are queued (IDs 1-3)"), "{error}");
    assert_eq!(job(&database, 3)["status"], "QUEUED");
    let plugin = dir.path().join("two.py");
    std::fs::write(&plugin, ONE_ROW).unwrap();
    let mut deploy = program("casparian");
    let error = full(deploy.args(["deploy", "-d", text]).arg(&plugin));
    assert!(
        error.contains("stdout") && error.contains("two 1.0.0 deployed"),
        "{error}"
    );
    let error = full(program("casparian").args(["jobs", "-d", text]));
    assert!(
        error.contains("cannot write to stdout: No space left"),
        "{error}"
    );
}

#[test]
fn an_owner_file_that_cannot_be_one_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("one.py");
    std::fs::write(&plugin, ONE_ROW).unwrap();
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let fifo = |path: &Path| {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    type Make<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Make<'_>); 5] = [
        ("fifo", &fifo),
        ("folder", &|path| std::fs::create_dir(path).unwrap()),
        ("junk", &|path| std::fs::write(path, "junk\n").unwrap()),
        ("binary", &|path| std::fs::write(path, [0xff; 32]).unwrap()),
        ("large", &|path| {
            std::fs::write(path, [b'a'; 100_000]).unwrap()
        }),
    ];
    for (name, make) in cases {
        let out = dir.path().join(name);
        std::fs::create_dir_all(out.join(".casparian")).unwrap();
        let owner = out.join(".casparian/owner");
        make(&owner);
        for share in [&["--share-output"][..], &[]] {
            let mut run = program("casparian");
            run.arg("run").args([&plugin, &input]);
            let mut worker = program("casparian-worker");
            worker.args(["-c", "ipc:///nowhere"]);
            for command in [&mut run, &mut worker] {
                let mut refused = Background::start(command.arg("-o").arg(&out).args(share));
                refused.line_with(owner.to_str().unwrap());
                assert_eq!(refused.wait(), Some(1), "{name}: {:?}", refused.seen);
                assert_eq!(refused.seen.len(), 1, "{name}: {:?}", refused.seen);
            }
        }
    }
}
