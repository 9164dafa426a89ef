//! Inputs and output folders on storage that stops responding.

use std::path::{Path, PathBuf};

use crate::common::*;

/// A mounted file system with a file `f`, whose server runs until this is dropped.
struct SilentFs {
    server: Background,
    folder: PathBuf,
}

impl SilentFs {
    fn mount(folder: &Path, options: &[&str]) -> Self {
        std::fs::create_dir(folder).unwrap();
        let mut server = Background::start(peer("silent_fs.py").arg(folder).args(options));
        server.line_with("mounted");
        SilentFs {
            server,
            folder: folder.to_owned(),
        }
    }
}

impl Drop for SilentFs {
    fn drop(&mut self) {
        self.server.signal("-KILL");
        let unmounted = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.folder)
            .status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[test]
fn an_input_whose_storage_stops_responding_costs_its_own_job_alone() {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: only root can mount a file system that does not respond");
        return;
    }
    for (start, timeout, cause, reason) in [
        ("warm", "3", "input", "longer than its limit"),
        ("spawn", "3", "input", "longer than its limit"),
        (
            "warm",
            "600",
            "input",
            "/f: its storage has not responded for 30 s",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let silent = SilentFs::mount(&dir.path().join("mounted"), &[]);
        let source = format!(
            "import os, signal\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        \
             text = open(path).read()\n        os.kill({}, signal.SIGSTOP)\n        \
             yield pa.table({{'x': [text]}})\n",
            silent.server.pid()
        );
        let database = database_with(dir.path(), "p", &source);
        let other = dir.path().join("other.py");
        let one_row = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";
        std::fs::write(&other, one_row).unwrap();
        let text = database.to_str().unwrap();
        casparian_ok(&["deploy", other.to_str().unwrap(), "--database", text]);
        let job = submit(&database, "p", &[silent.folder.join("f")])[0];
        let files: Vec<PathBuf> = (0..3).map(|n| dir.path().join(format!("in{n}"))).collect();
        for file in &files {
            std::fs::write(file, "").unwrap();
        }
        let others = submit(&database, "other", &files);
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let mut worker = worker(
            &endpoint,
            &dir.path().join("out"),
            &[
                "--slots",
                "1",
                "--sandbox",
                "off",
                "--plugin-start",
                start,
                "--job-timeout",
                timeout,
            ],
        );
        let failed = ended(&database, job);
        assert_eq!(failed["status"], "FAILED", "{start} {failed}");
        assert_eq!(failed["cause"], cause, "{start} {failed}");
        assert!(
            failed["error"].as_str().unwrap().contains(reason),
            "{start} {failed}"
        );
        for other in others {
            let done = ended(&database, other);
            assert_eq!(done["status"], "COMPLETED", "{start} {done}");
            assert_eq!(done["attempt"], 1, "{start} {done}");
        }
        worker.signal("-TERM");
        worker.wait();
        assert_eq!(worker.count("in trouble"), 0, "{start}");
    }
}

#[test]
fn an_input_that_cannot_be_hashed_fails_alone_and_can_be_interrupted() {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: only root can mount a file system that does not respond");
        return;
    }
    let source = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";
    let command = |name: &str, dir: &Path, silent: &SilentFs| {
        let good = dir.join("good");
        std::fs::write(&good, "").unwrap();
        let database = database_with(dir, "p", source);
        let mut command = program("casparian");
        match name {
            "run" => {
                let plugin = dir.join("p.py");
                std::fs::write(&plugin, source).unwrap();
                command.arg("run").arg(plugin).arg("--output");
                command.arg(dir.join("out"));
            }
            name => {
                command.args([name, "--plugin", "p", "--database"]);
                command.arg(database);
            }
        }
        command.arg(silent.folder.join("f")).arg(good);
        Background::start(&mut command)
    };
    for (name, is_interrupted, code, done) in [
        ("run", false, 1, "good: 1 rows"),
        ("submit", false, 1, "the others are"),
        ("run", true, 130, "interrupted"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        // The kernel ends no process that waits for such storage: its server is dropped first.
        let mut running = None;
        let silent = SilentFs::mount(&dir.path().join("mounted"), &["--stop-at-read"]);
        let program = running.insert(command(name, dir.path(), &silent));
        program.line_with("/f: its storage does not respond; waiting");
        if is_interrupted {
            program.signal("-INT");
        } else {
            program.line_with("its storage has not responded for 30 s");
        }
        program.line_with(done);
        silent.server.signal("-KILL");
        assert_eq!(program.wait(), Some(code), "{name} {is_interrupted}");
    }
}

#[test]
fn a_run_reports_that_its_outputs_storage_does_not_respond_and_ends() {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: only root can mount a file system that does not respond");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("p.py");
    std::fs::write(&plugin, "def execute(path):\n    return [{'x': 1}]\n").unwrap();
    // The kernel ends no process that waits for such storage: its server is dropped first.
    let mut running = None;
    let silent = SilentFs::mount(&dir.path().join("mounted"), &[]);
    silent.server.signal("-STOP");
    let mut command = program("casparian");
    command.arg("run").args([&plugin, &plugin]).arg("-o");
    command.arg(silent.folder.join("out"));
    command.args(["--outage-timeout", "12"]);
    let program = running.insert(Background::start(&mut command));
    program.line_with("out: its storage does not respond; waiting for at most 12 s");
    program.line_with("has not responded for 12 s (--outage-timeout); once it responds, the same");
    silent.server.signal("-KILL");
    assert_eq!(program.wait(), Some(1));
}
