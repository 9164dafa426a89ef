//! POSIX shared memory of a job: other jobs do not find it, and it ends with the job.

use std::fs;
use std::path::Path;

use crate::common::*;

/// Lists what is in /dev/shm under this test's name, beside what the job itself puts there; a child
/// process sees that, too.
const PLUGIN: &str = r#"
import os, glob, subprocess, sys
import pyarrow as pa
from multiprocessing import shared_memory

class Handler:
    def execute(self, path):
        name = "casparian-test-" + open(path).read()
        found = sorted(glob.glob("/dev/shm/casparian-test-*"))
        own = shared_memory.SharedMemory(name=f"{name}-{os.getpid()}", create=True, size=4096)
        own.buf[:2] = b"ok"
        code = f"import sys; sys.exit(open('/dev/shm/{own.name}','rb').read(2) != b'ok')"
        child = subprocess.run([sys.executable, "-c", code]).returncode
        from multiprocessing import resource_tracker
        resource_tracker.unregister(own._name, "shared_memory")
        return pa.table({"found": [len(found)], "child": [child]})
"#;

/// A name that no other test has, by a folder's.
fn marker(folder: &Path) -> String {
    let name = folder.file_name().unwrap().to_str().unwrap();
    name.replace('.', "")
}

fn run(dir: &Path, input: &Path, options: &[&str]) -> (u64, Vec<(i64, i64)>) {
    let path = |name: &str| dir.join(name);
    fs::write(path("p.py"), PLUGIN).unwrap();
    let out = path("out");
    let mut command = program("casparian");
    command.arg("run").args([&path("p.py"), input]).arg("-o");
    command
        .arg(&out)
        .args(options)
        .args(["--slots", "1", "--json"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let mut read = std::process::Command::new(python());
    let code = "import sys, pyarrow.parquet as pq\nfor path in sys.argv[1:]:\n    for row in pq.read_table(path).to_pylist(): print(row['found'], row['child'])";
    let read = crate::common::output(read.args(["-c", code]).args(visible_files(&out)));
    let numbers = |line: &str| {
        let mut words = line.split(' ').map(|word| word.parse().unwrap());
        (words.next().unwrap(), words.next().unwrap())
    };
    let rows = stdout(&read).lines().map(numbers).collect();
    let marker = fs::read_to_string(input.join("a")).unwrap();
    let left = fs::read_dir("/dev/shm").unwrap().flatten();
    let is_ours = |entry: &fs::DirEntry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("casparian-test-{marker}-"))
    };
    let left: Vec<_> = left.filter(is_ours).collect();
    for entry in &left {
        fs::remove_file(entry.path()).unwrap();
    }
    (left.len() as u64, rows)
}

#[test]
fn shared_memory_is_the_jobs_own() {
    for (options, is_own) in [
        (&[][..], true),
        (&["--plugin-start", "spawn"], true),
        (&["--sandbox", "off"], false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let marker = marker(dir.path());
        fs::create_dir(dir.path().join("in")).unwrap();
        for name in ["a", "b", "c"] {
            fs::write(dir.path().join("in").join(name), &marker).unwrap();
        }
        let (left, rows) = run(dir.path(), &dir.path().join("in"), options);
        assert_eq!(left, if is_own { 0 } else { 3 }, "{options:?}");
        assert_eq!(rows.len(), 3);
        for (found, child) in rows {
            assert_eq!(child, 0, "{options:?}");
            assert!(!is_own || found == 0, "{options:?} {found}");
        }
    }
}

/// A job finds its input where it is.
#[test]
fn an_input_in_shared_memory_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let marker = marker(memory.path());
    fs::write(memory.path().join("a"), &marker).unwrap();
    let (_, rows) = run(dir.path(), memory.path(), &[]);
    assert_eq!(rows.len(), 1);
}
