//! Mounts of the host: those that change while a worker runs, those that cover others, and further mounts of what
//! plugins may not change. Each test has a mount namespace of its own, so no mount is left behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::common::*;

/// A process with a mount namespace of its own. It ends with the test.
struct Namespace {
    process: Background,
}

impl Namespace {
    /// None for users who may create none. `propagation` = that of all mounts in it.
    fn new(propagation: &str) -> Option<Self> {
        if !rustix::process::getuid().is_root() {
            eprintln!("not run: only root can mount");
            return None;
        }
        let mut command = Command::new("unshare");
        let script =
            "mount --make-rprivate / && mount --make-r$0 / && echo ready && exec sleep infinity";
        command.args([
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            script,
            propagation,
        ]);
        let mut process = Background::start(&mut command);
        process.line_with("ready");
        Some(Namespace { process })
    }

    /// A command that runs there.
    fn command(&self, program: &Command) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.process.pid().to_string(), "-m", "--"]);
        command.arg(program.get_program()).args(program.get_args());
        command.env("HOME", home()).env_remove("RUST_LOG");
        command
    }

    fn output(&self, program: &mut Command) -> Output {
        output(&mut self.command(program))
    }

    /// Runs a script with arguments, which must succeed.
    fn shell(&self, script: &str, arguments: &[&Path]) {
        let mut command = Command::new("sh");
        command.args(["-ec", script, "sh"]).args(arguments);
        let output = self.output(&mut command);
        assert!(output.status.success(), "{script}: {}", stderr(&output));
    }

    fn run(&self, plugin: &Path, input: &Path, out: &Path, more: &[&str]) -> Output {
        let mut command = program("casparian");
        command.arg("run").args([plugin, input]).arg("-o").arg(out);
        self.output(command.args(more))
    }

    fn worker(&self, endpoint: &str, out: &Path, more: &[&str]) -> Background {
        let mut command = program("casparian-worker");
        command.args(["--connect", endpoint, "--output"]).arg(out);
        Background::start(&mut self.command(command.args(more)))
    }

    /// Submits a file there and waits for the end of its job.
    fn job(&self, database: &Path, plugin: &str, file: &Path) -> Value {
        let mut command = program("casparian");
        command.args(["submit", "--plugin", plugin, "--database"]);
        let output = self.output(command.arg(database).arg(file));
        assert!(output.status.success(), "{}", stderr(&output));
        ended(database, stdout(&output).trim().parse().unwrap())
    }
}

/// Returns the text of its input.
const READER: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        \
    return pa.table({'text': [open(path).read()]})\n";

/// The texts of all rows below a folder.
fn texts(out: &Path) -> Vec<String> {
    let mut read = Command::new(python());
    let code = "import sys, pyarrow.parquet as pq\nfor path in sys.argv[1:]:\n    for row in pq.ParquetFile(path).read().to_pylist(): print(row['text'].strip())";
    let read = output(read.args(["-c", code]).args(visible_files(out)));
    assert!(read.status.success(), "{}", stderr(&read));
    let mut texts: Vec<String> = stdout(&read).lines().map(str::to_owned).collect();
    texts.sort();
    texts
}

/// The children of a worker.
fn fork_servers(worker: u32) -> Vec<u32> {
    let children = format!("/proc/{worker}/task/{worker}/children");
    let children = fs::read_to_string(children).unwrap();
    let children = children.split_whitespace();
    children.map(|pid| pid.parse().unwrap()).collect()
}

/// True if a process has a mount at this path.
fn has_mount(pid: u32, path: &Path) -> bool {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"));
    let path = format!(" {} ", path.display());
    mounts.unwrap_or_default().contains(&path)
}

#[test]
fn jobs_read_the_file_systems_that_are_mounted_when_they_start() {
    for (propagation, mode) in [("private", "on"), ("shared", "on"), ("shared", "strict")] {
        let Some(namespace) = Namespace::new(propagation) else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "reader", READER);
        let (out, share) = (dir.path().join("out"), dir.path().join("share"));
        fs::create_dir(&share).unwrap();
        let first = dir.path().join("first");
        fs::write(&first, "first").unwrap();
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let worker = namespace.worker(&endpoint, &out, &["--slots", "1", "--sandbox", mode]);
        let run = |file: &Path| {
            let job = namespace.job(&database, "reader", file);
            assert_eq!(job["status"], "COMPLETED", "{propagation} {mode}: {job}");
            assert_eq!(job["attempts"].as_array().unwrap().len(), 1, "{job}");
        };
        run(&first);
        let mount = "mount -t tmpfs none \"$1\"; printf %s \"$2\" > \"$1/file\"";
        let file = share.join("file");
        // A share that appears, is mounted again, is covered, and has another folder above it.
        namespace.shell(mount, &[&share, Path::new("one")]);
        run(&file);
        namespace.shell("umount \"$1\"", &[&share]);
        namespace.shell(mount, &[&share, Path::new("another")]);
        run(&file);
        namespace.shell(mount, &[&share, Path::new("cover")]);
        run(&file);
        namespace.shell("umount \"$1\"", &[&share]);
        namespace.shell(
            "mkdir \"$1/a\" \"$1/b\"; for n in a b; do printf %s \"bound $n\" > \"$1/$n/file\"; done; mkdir \"$1/at\"; mount --bind \"$1/a\" \"$1/at\"",
            &[dir.path()],
        );
        let bound = dir.path().join("at/file");
        run(&bound);
        namespace.shell(
            "umount \"$1/at\"; mount --bind \"$1/b\" \"$1/at\"",
            &[dir.path()],
        );
        run(&bound);
        assert_eq!(
            texts(&out),
            ["another", "bound a", "bound b", "cover", "first", "one"],
            "{propagation} {mode}"
        );
        // The disk can be removed.
        namespace.shell("umount \"$1\"", &[&share]);
        until("no fork server has the share", || {
            let servers = fork_servers(worker.pid());
            let has = servers.iter().any(|pid| has_mount(*pid, &share));
            (!has).then_some(())
        });
    }
}

/// Remounts with other options are followed, also of a folder that a plugin writes to.
#[test]
fn jobs_find_the_options_of_mounts_that_hold_when_they_start() {
    let Some(namespace) = Namespace::new("private") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let share = dir.path().join("share");
    fs::create_dir(&share).unwrap();
    let plugin = format!(
        "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        open({:?} + '/' + open(path).read().strip(), 'w')\n        return pa.table({{'x': [1]}})\n",
        share.display().to_string()
    );
    let database = database_with(dir.path(), "writer", &plugin);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    namespace.shell("mount -t tmpfs -o ro none \"$1\"", &[&share]);
    let _worker = namespace.worker(&endpoint, &dir.path().join("out"), &["--slots", "1"]);
    for (options, expected) in [("ro", "FAILED"), ("rw", "COMPLETED"), ("ro", "FAILED")] {
        let script = "mount -o \"remount,bind,$2\" \"$1\"; mount -o \"remount,$2\" \"$1\"";
        namespace.shell(script, &[&share, Path::new(options)]);
        let file = dir.path().join("in");
        fs::write(&file, options).unwrap();
        let job = namespace.job(&database, "writer", &file);
        assert_eq!(job["status"], expected, "{options}: {job}");
    }
}

/// The mounts of the worker look the same again after a change. Only the plugin process finds another file, or
/// none.
#[test]
fn a_job_whose_process_has_another_file_than_the_worker_runs_again_uncounted() {
    for other in ["printf %s other > \"$1/file\"", "true"] {
        let Some(namespace) = Namespace::new("private") else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "reader", READER);
        let (out, share) = (dir.path().join("out"), dir.path().join("share"));
        fs::create_dir(&share).unwrap();
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let worker = namespace.worker(&endpoint, &out, &["--slots", "1"]);
        let file = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, name).unwrap();
            path
        };
        let first = namespace.job(&database, "reader", &file("first"));
        assert_eq!(first["status"], "COMPLETED", "{first}");
        let [server] = fork_servers(worker.pid())[..] else {
            panic!("one fork server");
        };
        let script = format!("mount -t tmpfs none \"$1\"; {other}");
        let mut command = Command::new("nsenter");
        command.args([
            "-t",
            &server.to_string(),
            "-m",
            "--",
            "sh",
            "-ec",
            &script,
            "sh",
        ]);
        let mounted = output(command.arg(&share));
        assert!(mounted.status.success(), "{}", stderr(&mounted));
        // No mount of the worker differs in the end.
        namespace.shell("mount -t tmpfs none \"$1\"; umount \"$1\"", &[&share]);
        let job = namespace.job(&database, "reader", &file("share/file"));
        assert_eq!(job["status"], "COMPLETED", "{other}: {job}");
        assert_eq!(job["retries"], 0, "{other}: {job}");
        assert_eq!(texts(&out), ["first", "share/file"], "{other}");
        assert_ne!(fork_servers(worker.pid()), [server], "{other}");
    }
}

/// The run has begun when the share is mounted again.
#[test]
fn a_share_that_is_mounted_again_while_a_run_works_is_read_as_it_is_then() {
    let Some(namespace) = Namespace::new("private") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("share")).unwrap();
    let mount = "mount -t tmpfs none \"$1\"; printf %s \"$2\" > \"$1/2\"";
    namespace.shell(mount, &[&path("share"), Path::new("old")]);
    fs::write(path("1"), "first").unwrap();
    let plugin = format!(
        "import os, time\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        \
         text = open(path).read()\n        if text == 'first':\n            open({0:?} + '/begun', 'w')\n            \
         while not os.path.exists({0:?} + '/go'): time.sleep(0.01)\n        return pa.table({{'text': [text]}})\n",
        dir.path().display().to_string()
    );
    fs::write(path("p.py"), plugin).unwrap();
    let mut command = program("casparian");
    command
        .arg("run")
        .args([path("p.py"), path("1"), path("share/2")]);
    command.arg("-o").arg(path("out")).args(["--slots", "1"]);
    let mut run = Background::start(&mut namespace.command(&command));
    until("the first job runs", || {
        path("begun").exists().then_some(())
    });
    namespace.shell("umount \"$1\"", &[&path("share")]);
    namespace.shell(mount, &[&path("share"), Path::new("new and longer")]);
    fs::write(path("go"), "").unwrap();
    assert_eq!(run.wait(), Some(0), "{:#?}", run.seen);
    assert_eq!(texts(&path("out")), ["first", "new and longer"]);
}

/// A mount that another one covers has no path.
#[test]
fn a_covered_mount_keeps_no_job_from_running() {
    let covers: [(&str, &str); 3] = [
        (
            "mkdir -p \"$1/out/sub\"; mount -t tmpfs none \"$1/out/sub\"; mount -t tmpfs none \"$1/out\"",
            "a folder above it",
        ),
        (
            "mkdir -p \"$1/out/sub\"; mount -t tmpfs none \"$1/out\"; mkdir \"$1/out/sub\"; mount -t tmpfs none \"$1/out/sub\"; \
             mkdir \"$1/out/sub/a\"; mount -t tmpfs none \"$1/out/sub/a\"; mount -t tmpfs none \"$1/out/sub\"",
            "the same folder",
        ),
        (
            "mkdir -p \"$1/cg\"; mount -t tmpfs none /sys/fs/cgroup; mkdir /sys/fs/cgroup/a; \
             mount -t tmpfs none /sys/fs/cgroup/a; mount -t tmpfs none /sys/fs/cgroup",
            "in /sys",
        ),
    ];
    for (script, what) in covers {
        let Some(namespace) = Namespace::new("private") else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        namespace.shell(script, &[dir.path()]);
        let plugin = format!(
            "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        \
             for name in ('/x', '/sub/x'):\n            try:\n                open({0:?} + name, 'w')\n            \
             except OSError: continue\n            raise Exception(name)\n        return pa.table({{'x': [1]}})\n",
            path("out").display().to_string()
        );
        fs::write(path("p.py"), plugin).unwrap();
        fs::write(path("in"), "").unwrap();
        let output = namespace.run(&path("p.py"), &path("in"), &path("out"), &[]);
        let (out, err) = (stdout(&output), stderr(&output));
        assert_eq!(output.status.code(), Some(0), "{what}: {out}{err}");
    }
}

/// Opens what its input lists for writing, and fails if one of these could be opened.
const TRIES: &str = "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        did = []\n        \
    for name in open(path).read().split('\\n'):\n            try:\n                os.close(os.open(name, os.O_WRONLY | os.O_CREAT))\n                \
    did.append(name)\n            except OSError: pass\n        assert not did, did\n        return pa.table({'x': [1]})\n";

/// What a plugin may not change is protected at all of its mount points, with the mounts below it.
#[test]
fn further_mounts_of_what_is_protected_are_protected_too() {
    let Some(namespace) = Namespace::new("private") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in [
        "named/sub",
        "real",
        "disk",
        "named/deep",
        "out/one",
        "data",
        "proc",
        "sys",
        "cgroup",
        "debug",
    ] {
        fs::create_dir_all(path(name)).unwrap();
    }
    namespace.shell(
        "mount --bind \"$1/real\" \"$1/named/sub\"; mount -t tmpfs none \"$1/disk\"; mkdir \"$1/disk/in\"; \
         mount --bind \"$1/disk/in\" \"$1/named/deep\"; mount --bind \"$1/data\" \"$1/out/one\"; \
         mount -t proc none \"$1/proc\"; mount -t sysfs none \"$1/sys\"; mount -t cgroup2 none \"$1/cgroup\"",
        &[dir.path()],
    );
    fs::write(path("p.py"), TRIES).unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or("/")
        .to_owned();
    let tried: Vec<PathBuf> = [
        "named/sub/x",
        "real/x",
        "named/deep/x",
        "disk/in/x",
        "out/one/x",
        "data/x",
        "proc/sys/kernel/core_pattern",
        "proc/sysrq-trigger",
        "proc/1/oom_score_adj",
        "proc/1/comm",
    ]
    .map(path)
    .into_iter()
    .chain([path(&format!("cgroup{own}/cgroup.procs"))])
    .collect();
    let tried: Vec<String> = tried
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    fs::write(path("in"), tried.join("\n")).unwrap();
    let named = path("named").display().to_string();
    let more = ["--protect", &named];
    let output = namespace.run(&path("p.py"), &path("in"), &path("out"), &more);
    let (out, err) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
}

/// The message about an input that plugins cannot read names the reason.
#[test]
fn an_input_that_is_hidden_from_plugins_is_reported_as_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("data")).unwrap();
    sql(&path("data/a.db"), "create table t(x)");
    fs::write(path("data/b"), "b").unwrap();
    fs::write(path("p.py"), READER).unwrap();
    for mode in ["on", "strict"] {
        let mut command = program("casparian");
        command
            .arg("run")
            .args([path("p.py"), path("data")])
            .arg("-o");
        command
            .arg(path("out"))
            .args(["--sandbox", mode, "--protect"]);
        let output = output(command.arg(path("data")).arg("--force"));
        let text = stdout(&output) + &stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{mode}: {text}");
        assert!(
            text.contains("--protect") && text.contains("data/a.db"),
            "{mode}: {text}"
        );
        assert_eq!(texts(&path("out")), ["b"], "{mode}: {text}");
    }
}
