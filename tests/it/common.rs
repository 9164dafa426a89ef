//! What the tests share: programs, a Python with the peers' packages, waiting with a deadline.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "../support/wait.rs"]
mod wait;

/// Longest wait for anything; machines may be slow, so it is generous.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn target() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

/// HOME of all programs under test, so that environments are made once and the user's own home
/// is not touched.
pub(crate) fn home() -> PathBuf {
    let home = target().join("home");
    std::fs::create_dir_all(&home).unwrap();
    home
}

/// An interpreter with `tests/peers/requirements.txt` installed; made on first use.
pub(crate) fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let venv = target().join("peers-venv");
        let list = root().join("tests/peers/requirements.txt");
        let wanted = std::fs::read_to_string(&list).unwrap();
        let done = venv.join("installed.txt");
        let lock = std::fs::File::create(target().join("peers-venv.lock")).unwrap();
        lock.lock().unwrap();
        if std::fs::read_to_string(&done).ok().as_deref() != Some(&wanted) {
            let steps = [
                (
                    PathBuf::from("python3"),
                    vec!["-m", "venv", "--clear"],
                    venv.clone(),
                ),
                (
                    venv.join("bin/python"),
                    vec!["-m", "pip", "install", "-q", "-r"],
                    list.clone(),
                ),
            ];
            for (program, arguments, last) in steps {
                let shown = format!(
                    "{} {} {}",
                    program.display(),
                    arguments.join(" "),
                    last.display()
                );
                let status = Command::new(&program).args(&arguments).arg(&last).status();
                assert!(
                    status.as_ref().is_ok_and(|status| status.success()),
                    "the Python peers are missing and this failed: `{shown}` ({status:?}); \
                     Python 3 with venv and pip is needed"
                );
            }
            std::fs::write(&done, &wanted).unwrap();
        }
        venv.join("bin/python")
    })
}

/// One of our programs.
pub(crate) fn program(name: &str) -> Command {
    let path = match name {
        "casparian" => env!("CARGO_BIN_EXE_casparian"),
        "casparian-sentinel" => env!("CARGO_BIN_EXE_casparian-sentinel"),
        "casparian-worker" => env!("CARGO_BIN_EXE_casparian-worker"),
        other => panic!("no program {other}"),
    };
    let mut command = Command::new(path);
    command
        .env("HOME", home())
        .env_remove("RUST_LOG")
        .env_remove("RUST_BACKTRACE");
    command
}

/// A script of `tests/peers`.
pub(crate) fn peer(script: &str) -> Command {
    let mut command = Command::new(python());
    command
        .arg(root().join("tests/peers").join(script))
        .env("PYTHONUNBUFFERED", "1");
    command
}

/// Runs to the end.
pub(crate) fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

/// Runs `casparian` with arguments.
pub(crate) fn casparian(arguments: &[&str]) -> Output {
    output(program("casparian").args(arguments))
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Bytes as hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs `casparian`, which must end with exit code 0; gives its stdout.
pub(crate) fn casparian_ok(arguments: &[&str]) -> String {
    let output = casparian(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {}{}",
        stdout(&output),
        stderr(&output)
    );
    stdout(&output)
}

/// Repeats `step` until it gives a value.
#[track_caller]
pub(crate) fn until<T>(what: &str, step: impl FnMut() -> Option<T>) -> T {
    wait::until(what, DEADLINE, Duration::from_millis(10), step)
}

/// A program in the background, killed when it is dropped; its stdout and stderr come as lines.
pub(crate) struct Background {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    pub(crate) seen: Vec<String>,
}

impl Background {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (sender, lines) = channel();
        let out = child.stdout.take().unwrap();
        let err = child.stderr.take().unwrap();
        for stream in [
            Box::new(out) as Box<dyn std::io::Read + Send>,
            Box::new(err),
        ] {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Background {
            stdin: child.stdin.take(),
            child,
            lines,
            seen: Vec::new(),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// True once the program has ended.
    pub(crate) fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// The next line that contains a text.
    pub(crate) fn line_with(&mut self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no line with {text:?} in {DEADLINE:?}: {:#?}", self.seen)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("ended without a line with {text:?}: {:#?}", self.seen)
                }
            }
        }
    }

    /// The next line that is JSON with `event` of that name.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        loop {
            let line = self.line_with("{");
            if let Ok(value) = serde_json::from_str::<Value>(&line) {
                assert!(name == "error" || value["event"] != "error", "{line}");
                if value["event"] == name {
                    return value;
                }
            }
        }
    }

    /// How many lines with a text have been read so far.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.seen.iter().filter(|line| line.contains(text)).count()
    }

    pub(crate) fn write(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
        stdin.flush().unwrap();
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its exit code, once it ends.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.stdin = None;
        let status = until("the program ends", || self.child.try_wait().unwrap());
        self.seen.extend(self.lines.iter());
        status.code()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A sentinel on a port of its own.
pub(crate) fn sentinel(database: &Path, more: &[&str]) -> (Background, String) {
    let mut sentinel = Background::start(
        program("casparian-sentinel")
            .args(["--bind", "tcp://127.0.0.1:0", "--database"])
            .arg(database)
            .args(more),
    );
    let line = sentinel.line_with("listens on ");
    let endpoint = line.split("listens on ").nth(1).unwrap().trim().to_owned();
    (sentinel, endpoint)
}

/// A worker of that sentinel.
pub(crate) fn worker(endpoint: &str, out: &Path, more: &[&str]) -> Background {
    Background::start(
        program("casparian-worker")
            .args(["--connect", endpoint, "--output"])
            .arg(out)
            .args(more),
    )
}

/// A database with a plugin deployed from a source.
pub(crate) fn database_with(dir: &Path, plugin: &str, source: &str) -> PathBuf {
    let database = dir.join("queue.sqlite");
    let file = dir.join(format!("{plugin}.py"));
    std::fs::write(&file, source).unwrap();
    let database_text = database.to_str().unwrap();
    casparian_ok(&["init", database_text]);
    casparian_ok(&[
        "deploy",
        file.to_str().unwrap(),
        "--database",
        database_text,
    ]);
    database
}

/// Submits files; gives the jobs' ids.
pub(crate) fn submit(database: &Path, plugin: &str, files: &[PathBuf]) -> Vec<i64> {
    let mut command = program("casparian");
    command
        .args(["submit", "--plugin", plugin, "--database"])
        .arg(database)
        .args(files);
    let output = output(&mut command);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
        .lines()
        .map(|line| line.parse().unwrap())
        .collect()
}

/// One job as JSON.
pub(crate) fn job(database: &Path, id: i64) -> Value {
    let text = casparian_ok(&[
        "job",
        &id.to_string(),
        "--json",
        "--database",
        database.to_str().unwrap(),
    ]);
    serde_json::from_str(&text).unwrap()
}

/// Runs SQL as another program does.
pub(crate) fn sql(database: &std::path::Path, script: &str) -> String {
    let program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); [print(*row) for s in sys.argv[2].split(';') for row in c.execute(s)]; c.commit()";
    let output = output(
        Command::new(python())
            .args(["-c", program])
            .arg(database)
            .arg(script),
    );
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).trim().to_owned()
}

/// Waits for the end of a job.
pub(crate) fn ended(database: &Path, id: i64) -> Value {
    until(&format!("job {id} ends"), || {
        let job = job(database, id);
        ["COMPLETED", "FAILED"]
            .contains(&job["status"].as_str().unwrap())
            .then_some(job)
    })
}

/// Files below a folder that a reader could see: no hidden ones.
pub(crate) fn visible_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return found;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with('.') {
            continue;
        }
        if path.is_dir() {
            found.extend(visible_files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What pyarrow, DuckDB and Polars see in a folder's Parquet, one value an engine.
pub(crate) fn read_parquet(dir: &Path) -> Vec<Value> {
    let output = output(peer("read_parquet.py").arg(dir));
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
