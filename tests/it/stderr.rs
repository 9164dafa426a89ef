//! A stderr that nobody reads, or that cannot be written, stops nothing.

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::process::{Child, Command, Stdio};

use rustix::fs::{OFlags, fcntl_setfl};

use crate::common::*;

const FAILS: &str = "class Handler:\n    def execute(self, path):\n        raise ValueError('no sense ' + 'x' * 3000)\n";

/// A program whose stderr is a full pipe that nobody reads.
struct Unread {
    program: Child,
    reader: PipeReader,
}

impl Unread {
    fn start(command: &mut Command) -> Self {
        let (reader, mut writer) = std::io::pipe().unwrap();
        fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        while writer.write(&[b'.'; 4096]).is_ok() {}
        fcntl_setfl(&writer, OFlags::empty()).unwrap();
        let program = command.stdin(Stdio::null()).stderr(writer).spawn().unwrap();
        // It holds the pipe.
        command.stderr(Stdio::null());
        Unread { program, reader }
    }

    /// Reads what is in the pipe, so that lines fit again.
    fn read(&mut self) -> String {
        let mut space = vec![0; 1 << 20];
        let count = self.reader.read(&mut space).unwrap();
        String::from_utf8_lossy(&space[..count]).into_owned()
    }

    /// Ends it as an operator does; gives what was in the pipe.
    fn end(mut self) -> String {
        let pid = self.program.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.unwrap().success());
        let status = until("it ends after SIGTERM", || self.program.try_wait().unwrap());
        assert!(status.success(), "{status}");
        let mut text = String::new();
        self.reader.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn programs_whose_log_is_not_read_go_on_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "fails", FAILS);
    let inputs: Vec<_> = (0..300)
        .map(|number| {
            let path = dir.path().join(format!("in{number}"));
            std::fs::write(&path, number.to_string()).unwrap();
            path
        })
        .collect();
    let jobs = submit(&database, "fails", &inputs);
    let endpoint = format!("ipc://{}", dir.path().join("s").display());
    let mut sentinel = Unread::start(
        program("casparian-sentinel")
            .args(["--bind", &endpoint, "--database"])
            .arg(&database),
    );
    let worker = Unread::start(
        program("casparian-worker")
            .args(["--connect", &endpoint, "--output"])
            .arg(dir.path().join("out")),
    );
    for job in jobs {
        assert_eq!(ended(&database, job)["status"], "FAILED");
    }
    assert!(!sentinel.read().contains("listens on"));
    worker.end();
    let log = sentinel.end();
    assert!(log.contains("log lines were dropped"), "{log}");
}

#[test]
fn a_stderr_that_takes_nothing_changes_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(path("in")).unwrap();
    for number in 0..20 {
        std::fs::write(path(&format!("in/{number}")), number.to_string()).unwrap();
    }
    let source = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";
    std::fs::write(path("good.py"), source).unwrap();
    std::fs::write(path("bad.py"), FAILS).unwrap();
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    // Nobody will ever read it.
    let gone = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    type Make<'a> = &'a dyn Fn() -> Stdio;
    let streams: [(&str, Make<'_>); 2] = [("full", &full), ("gone", &gone)];
    for (name, stderr) in streams {
        for (words, code) in [
            (vec!["run", "good.py", "in", "-o", "out"], 0),
            (vec!["run", "bad.py", "in", "-o", "out-bad"], 1),
            (vec!["run", "missing.py", "in", "-o", "out"], 1),
            (vec!["worker", "--nonsense"], 2),
            (vec!["sentinel", "--nonsense"], 2),
            (vec![], 2),
        ] {
            let mut command = program("casparian");
            command.args(&words).current_dir(dir.path());
            let status = command.stdout(Stdio::null()).stderr(stderr()).status();
            assert_eq!(status.unwrap().code(), Some(code), "{name}: {words:?}");
        }
        assert_eq!(visible_files(&dir.path().join("out")).len(), 20, "{name}");
    }
}

/// Runs one of our programs under `ulimit -f`, which counts blocks of 512 or 1024 bytes.
fn limited(name: &str, blocks: u32) -> Command {
    let program = program(name);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -f \"$1\"; shift; exec \"$@\"", "sh"])
        .arg(blocks.to_string())
        .arg(program.get_program())
        .env("HOME", home())
        .env_remove("RUST_LOG");
    shell
}

#[test]
fn a_limit_of_file_sizes_ends_no_program() {
    let dir = tempfile::tempdir().unwrap();
    let source = "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [os.urandom(8 << 20)]})\n";
    let database = database_with(dir.path(), "large", source);
    let input = dir.path().join("in");
    std::fs::write(&input, "x").unwrap();
    let out = dir.path().join("out");
    let run = output(
        limited("casparian", 2000)
            .arg("run")
            .args([&dir.path().join("large.py"), &input])
            .args(["--outage-timeout", "3", "-o"])
            .arg(dir.path().join("out-of-run")),
    );
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert!(stderr(&run).contains("File too large"), "{run:?}");
    let (_sentinel, endpoint) = sentinel(&database, &["--retries", "0"]);
    let mut worker = Background::start(
        limited("casparian-worker", 2000)
            .args(["--connect", &endpoint, "--output"])
            .arg(&out),
    );
    let [job] = submit(&database, "large", &[input])[..] else {
        panic!("one job")
    };
    let failed = ended(&database, job);
    assert_eq!(failed["cause"], "worker", "{failed}");
    worker.signal("-TERM");
    assert_eq!(worker.wait(), Some(0), "{:#?}", worker.seen);
}

#[test]
fn a_sentinel_whose_database_may_not_grow_reports_it_and_goes_on_later() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "fails", FAILS);
    let inputs: Vec<_> = (0..20)
        .map(|number| {
            let path = dir.path().join(format!("in{number}"));
            std::fs::write(&path, number.to_string()).unwrap();
            path
        })
        .collect();
    let jobs = submit(&database, "fails", &inputs);
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    limit_files(&sentinel, Some(1));
    let _worker = worker(&endpoint, &dir.path().join("out"), &[]);
    sentinel.line_with("; failing for");
    limit_files(&sentinel, None);
    for job in jobs {
        assert_eq!(ended(&database, job)["status"], "FAILED");
    }
    sentinel.signal("-TERM");
    assert_eq!(sentinel.wait(), Some(0), "{:#?}", sentinel.seen);
}

/// Sets how large files may become that a running program writes.
pub(crate) fn limit_files(program: &Background, bytes: Option<u64>) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(program.pid()).unwrap());
    let limit = rustix::process::Rlimit {
        current: bytes,
        maximum: None,
    };
    rustix::process::prlimit(pid, rustix::process::Resource::Fsize, limit).unwrap();
}
