//! Working directories of jobs (TMPDIR of the worker) on a file system without room.

use std::path::{Path, PathBuf};

use crate::common::*;
use crate::sink_locations::Mount;

const MIB: usize = 1 << 20;

/// A plugin with this body before its row.
fn plugin(body: &str) -> String {
    let body = body.replace('\n', "\n        ");
    format!(
        "import mmap, os, tempfile\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        {body}\n        yield pa.table({{'x': [1]}})\n"
    )
}

const WRITES: &str =
    "with tempfile.NamedTemporaryFile() as file:\n    file.write(b'x' * 1000000)\n    file.flush()";
const EXITS: &str =
    "try:\n    open('a', 'wb').write(b'x' * 1000000)\nexcept OSError:\n    os._exit(3)";
const MAPS: &str = "with open('a', 'wb+') as file:\n    file.truncate(1000000)\n    mmap.mmap(file.fileno(), 0)[:] = b'x' * 1000000";
const FILLS: &str = "with open('a', 'wb') as file:\n    while True:\n        file.write(b'x' * 100000)\n        file.flush()";
const ELSEWHERE: &str = "raise OSError(28, 'No space left on device', '/elsewhere')";

/// A file system for working directories, and what of it others have filled.
fn small_disk(dir: &Path, filled: usize) -> (Mount, PathBuf) {
    let mount = Mount::new(dir.join("tmp"), 8);
    std::fs::write(dir.join("tmp/fill"), vec![1; filled]).unwrap();
    (mount, dir.join("tmp"))
}

fn is_root() -> bool {
    let is_root = rustix::process::getuid().is_root();
    if !is_root {
        eprintln!("not run: only root can mount a file system");
    }
    is_root
}

fn worker_in(tmp: &Path, endpoint: &str, out: &Path) -> Background {
    let mut command = program("casparian-worker");
    command
        .args(["--connect", endpoint, "--slots", "1", "--output"])
        .arg(out)
        .env("TMPDIR", tmp);
    Background::start(&mut command)
}

#[test]
fn a_disk_that_others_have_filled_fails_no_job() {
    if !is_root() {
        return;
    }
    for body in [WRITES, EXITS, MAPS] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "p", &plugin(body));
        let (mount, tmp) = small_disk(dir.path(), 8 * MIB - 700_000);
        let input = dir.path().join("in");
        std::fs::write(&input, "1").unwrap();
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let mut worker = worker_in(&tmp, &endpoint, &dir.path().join("out"));
        let id = submit(&database, "p", &[input])[0];
        let line = worker.line_with("in trouble");
        assert!(line.contains("no room for working directories"), "{line}");
        assert!(line.contains(tmp.to_str().unwrap()), "{line}");
        until("the job waits", || {
            let job = job(&database, id);
            (job["status"] == "PENDING").then(|| assert_eq!(job["cause"], "worker", "{job}"))
        });
        mount.repair("full");
        let done = ended(&database, id);
        let shown = (done["status"].as_str(), done["attempt"].as_i64());
        assert_eq!(shown, (Some("COMPLETED"), Some(2)), "{body}: {done}");
    }
}

#[test]
fn a_plugin_that_fills_the_disk_itself_or_another_one_fails_alone() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "fills", &plugin(FILLS));
    database_with(dir.path(), "elsewhere", &plugin(ELSEWHERE));
    database_with(dir.path(), "writes", &plugin(WRITES));
    let (_mount, tmp) = small_disk(dir.path(), 0);
    let input = dir.path().join("in");
    std::fs::write(&input, "1").unwrap();
    let inputs = [input];
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let mut worker = worker_in(&tmp, &endpoint, &dir.path().join("out"));
    for (plugin, words) in [
        ("fills", "the job has filled the file system"),
        ("elsewhere", "/elsewhere"),
    ] {
        let id = submit(&database, plugin, &inputs)[0];
        let failed = ended(&database, id);
        let shown = (failed["status"].as_str(), failed["cause"].as_str());
        assert_eq!(shown, (Some("FAILED"), Some("plugin")), "{failed}");
        assert!(failed.to_string().contains(words), "{failed}");
    }
    let id = submit(&database, "writes", &inputs)[0];
    assert_eq!(ended(&database, id)["status"], "COMPLETED");
    worker.signal("-TERM");
    assert_eq!(worker.wait(), Some(0));
    assert_eq!(worker.count("in trouble"), 0, "{:#?}", worker.seen);
}

#[test]
fn a_run_waits_for_room_in_its_working_directories() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mount, tmp) = small_disk(dir.path(), 8 * MIB - 700_000);
    let file = dir.path().join("p.py");
    std::fs::write(&file, plugin(WRITES)).unwrap();
    let inputs = dir.path().join("in");
    std::fs::create_dir(&inputs).unwrap();
    for name in ["a", "b", "c"] {
        std::fs::write(inputs.join(name), name).unwrap();
    }
    let out = dir.path().join("out");
    let mut command = program("casparian");
    command.arg("run").arg(&file).arg(&inputs).arg("--output");
    let mut run = Background::start(command.arg(&out).env("TMPDIR", &tmp));
    let line = run.line_with("no jobs are taken");
    assert!(line.contains("no room for working directories"), "{line}");
    mount.repair("full");
    assert_eq!(run.wait(), Some(0), "{:#?}", run.seen);
    assert_eq!(visible_files(&out).len(), 3);
}
