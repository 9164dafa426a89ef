//! A job's output is of the content that its row's file version names.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::*;

/// A queue with a plugin that copies its input's text, and appends a point to `<input>.runs`.
struct Scene {
    dir: tempfile::TempDir,
    database: PathBuf,
    input: PathBuf,
}

impl Scene {
    /// `change`: what the plugin does between reading its input and its output, in its first `times`
    /// runs.
    fn new(change: &str, times: u32) -> Self {
        let source = format!(
            "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        text = open(path).read()\n        with open(path + '.runs', 'a') as file: file.write('.')\n        if os.path.getsize(path + '.runs') <= {times}:\n            {change}\n        yield pa.table({{'x': [text]}})\n"
        );
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "p", &source);
        let input = dir.path().join("f");
        std::fs::write(&input, "OLD0").unwrap();
        Scene {
            dir,
            database,
            input,
        }
    }

    fn submit(&self) -> i64 {
        submit(&self.database, "p", std::slice::from_ref(&self.input))[0]
    }

    /// Starts sentinel and worker and waits for the end of a job.
    fn run(&self, job: i64, start: &str, endpoint: &str) -> Value {
        let bind = match endpoint {
            "ipc" => format!("ipc://{}", self.dir.path().join("s").display()),
            _ => "tcp://127.0.0.1:0".to_owned(),
        };
        let mut sentinel = Background::start(
            program("casparian-sentinel")
                .args(["--bind", &bind, "--database"])
                .arg(&self.database),
        );
        let line = sentinel.line_with("listens on ");
        let endpoint = line.split("listens on ").nth(1).unwrap().trim().to_owned();
        let out = self.dir.path().join("out");
        let _worker = worker(&endpoint, &out, &["--plugin-start", start]);
        ended(&self.database, job)
    }

    /// Rows, versions and output, and whether row and file agree.
    fn found(&self, job: i64) -> Value {
        let script = "
import glob, hashlib, json, sqlite3, sys
import pyarrow.parquet as pq
database, job, out, path = sys.argv[1:]
c = sqlite3.connect(database)
version, hash, size = c.execute('SELECT v.id, v.content_hash, v.size_bytes FROM cf_processing_queue q JOIN cf_file_version v ON v.id = q.file_version_id WHERE q.id = ?', (job,)).fetchone()
rows = [row for f in glob.glob(out + '/*.parquet') for row in pq.read_table(f).to_pylist()]
try: data = open(path, 'rb').read()
except OSError: data = b''
print(json.dumps({
    'x': [row['x'] for row in rows],
    'is_of_row': all(row['_file_version_id'] == version for row in rows),
    'is_of_file': (hash, size) == (hashlib.sha256(data).hexdigest(), len(data)),
    'versions': c.execute('SELECT count(*) FROM cf_file_version').fetchone()[0],
    'locations': c.execute('SELECT count(*) FROM cf_file_location').fetchone()[0],
}))";
        let found = output(
            Command::new(python())
                .args(["-c", script])
                .arg(&self.database)
                .arg(job.to_string())
                .arg(self.dir.path().join("out"))
                .arg(&self.input),
        );
        assert!(found.status.success(), "{}", stderr(&found));
        serde_json::from_str(&stdout(&found)).unwrap()
    }
}

/// Both ways to start plugin processes, and both transports.
const WAYS: [(&str, &str); 2] = [("warm", "tcp"), ("spawn", "ipc")];

fn set_time(path: &Path, seconds: f64) {
    let script = "import os, sys; os.utime(sys.argv[1], (float(sys.argv[2]),) * 2)";
    let set = output(
        Command::new(python())
            .args(["-c", script])
            .arg(path)
            .arg(seconds.to_string()),
    );
    assert!(set.status.success(), "{}", stderr(&set));
}

#[test]
fn a_file_that_is_overwritten_before_its_job_starts_is_run_over_as_another_version() {
    for (start, transport) in WAYS {
        for content in ["NEWER CONTENT", "NEW0"] {
            let scene = Scene::new("pass", 0);
            let job = scene.submit();
            std::fs::write(&scene.input, content).unwrap();
            set_time(&scene.input, 1_700_000_000.25);
            let done = scene.run(job, start, transport);
            assert_eq!(done["status"], "COMPLETED", "{start} {done}");
            assert_eq!(done["attempt"], 2, "{start} {done}");
            let wanted = json!({"x": [content], "is_of_row": true, "is_of_file": true,
                "versions": 2, "locations": 1});
            assert_eq!(scene.found(job), wanted, "{start} {done}");
            let first = done["attempts"].to_string();
            assert!(first.contains("file version"), "{start} {first}");
        }
    }
}

#[test]
fn a_file_that_changes_while_its_job_runs_is_run_over_as_another_version() {
    let put_back = "s = os.stat(path); open(path, 'r+').write('NEW1'); os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))";
    let renamed = "s = os.stat(path); open(path + '~', 'w').write('NEW1'); os.utime(path + '~', ns=(s.st_atime_ns, s.st_mtime_ns)); os.rename(path + '~', path)";
    for (change, now) in [
        ("open(path, 'a').write('MORE')", "OLD0MORE"),
        ("open(path, 'w').write('NEW1')", "NEW1"),
        (put_back, "NEW1"),
        (renamed, "NEW1"),
        // The attempt also fails over what it found.
        (
            "open(path, 'w').write('NEW1'); raise ValueError('torn')",
            "NEW1",
        ),
    ] {
        for (start, transport) in WAYS {
            let scene = Scene::new(change, 1);
            let job = scene.submit();
            let done = scene.run(job, start, transport);
            assert_eq!(done["status"], "COMPLETED", "{change}: {done}");
            let wanted = json!({"x": [now], "is_of_row": true, "is_of_file": true,
                "versions": 2, "locations": 1});
            assert_eq!(scene.found(job), wanted, "{change}: {done}");
        }
    }
}

#[test]
fn a_file_whose_content_stays_costs_one_attempt() {
    for (change, is_touched) in [
        ("os.chmod(path, 0o640)", false),
        ("os.link(path, path + '.link')", false),
        ("os.chmod(os.path.dirname(path), 0o750)", false),
        ("os.mkdir(os.path.dirname(path) + '/new')", false),
        ("pass", true),
    ] {
        let scene = Scene::new(change, 1);
        let job = scene.submit();
        if is_touched {
            set_time(&scene.input, 1_700_000_000.5);
        }
        let done = scene.run(job, "warm", "tcp");
        assert_eq!(
            (&done["status"], &done["attempt"]),
            (&json!("COMPLETED"), &json!(1)),
            "{done}"
        );
        let wanted = json!({"x": ["OLD0"], "is_of_row": true, "is_of_file": true,
            "versions": 1, "locations": 1});
        assert_eq!(scene.found(job), wanted, "{change}: {done}");
    }
}

/// As `cp -p` or `rsync --inplace` of the same file: a plugin may have read what was there in between.
#[test]
fn a_file_that_is_written_again_with_its_time_put_back_is_run_over_again() {
    let copied = "s = os.stat(path); old = open(path).read(); open(path, 'w').close(); open(path, 'w').write(old); os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))";
    for (start, transport) in WAYS {
        let scene = Scene::new(copied, 1);
        let job = scene.submit();
        let done = scene.run(job, start, transport);
        assert_eq!(done["status"], "COMPLETED", "{start} {done}");
        assert_eq!(done["attempt"], 2, "{start} {done}");
        let wanted = json!({"x": ["OLD0"], "is_of_row": true, "is_of_file": true,
            "versions": 1, "locations": 1});
        assert_eq!(scene.found(job), wanted, "{start} {done}");
    }
}

/// The path may have led to another file meanwhile, as while a release is rolled forward and back.
#[test]
fn a_file_whose_folder_is_renamed_and_put_back_is_run_over_again() {
    let renamed = "d = os.path.dirname(path); os.rename(d, d + '~'); os.mkdir(d); os.rmdir(d); os.rename(d + '~', d)";
    for folder in ["v1", "v1/deep"] {
        for (start, transport) in WAYS {
            let mut scene = Scene::new(renamed, 1);
            scene.input = scene.dir.path().join(folder).join("f");
            std::fs::create_dir_all(scene.input.parent().unwrap()).unwrap();
            std::fs::write(&scene.input, "OLD0").unwrap();
            let job = scene.submit();
            let done = scene.run(job, start, transport);
            assert_eq!(done["status"], "COMPLETED", "{folder} {done}");
            assert_eq!(done["attempt"], 2, "{folder} {done}");
            let first = done["attempts"][0].to_string();
            assert!(first.contains("a folder or link above it"), "{done}");
            let wanted = json!({"x": ["OLD0"], "is_of_row": true, "is_of_file": true,
                "versions": 1, "locations": 1});
            assert_eq!(scene.found(job), wanted, "{folder}: {done}");
        }
    }
}

/// A link to a folder, or to the file itself.
#[test]
fn a_file_whose_link_is_replaced_and_put_back_is_run_over_again() {
    for (link, input) in [
        ("current", "current"),
        ("current/f", "current/f"),
        ("f", "f"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (version, text) in [("v1", "right"), ("v2", "wrong")] {
            std::fs::create_dir(path(version)).unwrap();
            std::fs::write(path(version).join("f"), text).unwrap();
        }
        let link = match link {
            "f" => ("f", "v1/f", "v2/f"),
            _ => ("current", "v1", "v2"),
        };
        std::os::unix::fs::symlink(link.1, path(link.0)).unwrap();
        let source = format!(
            "import os\nimport pyarrow as pa\nROOT = {root:?}\ndef lead(to):\n    os.symlink(to, ROOT + '/~')\n    os.rename(ROOT + '/~', ROOT + '/{}')\nclass Handler:\n    def execute(self, path):\n        with open(ROOT + '/runs', 'a') as file: file.write('.')\n        is_first = os.path.getsize(ROOT + '/runs') == 1\n        if is_first: lead('{}')\n        text = open(path).read()\n        if is_first: lead('{}')\n        yield pa.table({{'x': [text]}})\n",
            link.0,
            link.2,
            link.1,
            root = dir.path()
        );
        std::fs::write(path("p.py"), source).unwrap();
        let (summary, code) = crate::run::run_json(
            path("p.py").to_str().unwrap(),
            &[path(input).to_str().unwrap()],
            &path("out"),
            &[],
        );
        assert_eq!(code, Some(0), "{summary}");
        let files = visible_files(&path("out"));
        let read = "import sys, pyarrow.parquet as pq; print(pq.read_table(sys.argv[1])['x'][0])";
        let found = output(Command::new(python()).args(["-c", read]).args(files));
        assert_eq!(stdout(&found).trim(), "right", "{input} {summary}");
    }
}

#[test]
fn a_file_that_is_written_to_and_moved_away_fails_the_attempt() {
    let moved = "open(path, 'a').write('MORE'); os.rename(path, path + '.done')";
    let scene = Scene::new(moved, 1);
    let job = scene.submit();
    let done = scene.run(job, "warm", "tcp");
    assert_eq!(done["status"], "FAILED", "{done}");
    let first = done["attempts"][0].to_string();
    assert!(first.contains("it changed while the job ran"), "{done}");
}

/// Scanners of other systems store seconds, and hashes of their own.
#[test]
fn a_version_of_another_scanner_is_not_replaced_while_size_and_second_agree() {
    for (hash, time) in [
        ("f".repeat(64), "2023-11-14 22:13:20"),
        ("f".repeat(64), "2023-11-14T22:13:20Z"),
        ("f".repeat(64), "2023-11-14 22:13:20.250000"),
        ("md5:1".to_owned(), "2023-11-14 22:13:20"),
        // What cannot be compared counts as unchanged.
        ("md5:1".to_owned(), "2001-01-01 00:00:00"),
    ] {
        let scene = Scene::new("pass", 0);
        set_time(&scene.input, 1_700_000_000.25);
        let job = scene.submit();
        sql(
            &scene.database,
            &format!(
                "UPDATE cf_file_version SET content_hash = '{hash}', modified_time = '{time}'; \
                 UPDATE cf_file_location SET last_known_mtime = NULL, current_version_id = NULL"
            ),
        );
        let done = scene.run(job, "warm", "tcp");
        assert_eq!(
            (&done["status"], &done["attempt"]),
            (&json!("COMPLETED"), &json!(1)),
            "{done}"
        );
        let found = scene.found(job);
        assert_eq!(
            (&found["versions"], &found["is_of_row"]),
            (&json!(1), &json!(true)),
            "{time}"
        );
    }
}

/// What cannot be read of a version may hide another content.
#[test]
fn a_version_whose_size_or_time_cannot_be_read_is_compared_by_its_hash() {
    for (values, content) in [
        ("modified_time = 'garbage'", "NEW0"),
        ("modified_time = X'00'", "NEW0"),
        ("size_bytes = 'x'", "NEWER CONTENT"),
    ] {
        let scene = Scene::new("pass", 0);
        set_time(&scene.input, 1_700_000_000.25);
        let job = scene.submit();
        sql(
            &scene.database,
            &format!(
                "UPDATE cf_file_version SET {values}; \
                 UPDATE cf_file_location SET last_known_mtime = NULL"
            ),
        );
        std::fs::write(&scene.input, content).unwrap();
        set_time(&scene.input, 1_700_000_000.25);
        let done = scene.run(job, "warm", "tcp");
        assert_eq!(done["status"], "COMPLETED", "{values} {done}");
        let wanted = json!({"x": [content], "is_of_row": true, "is_of_file": true,
            "versions": 2, "locations": 1});
        assert_eq!(scene.found(job), wanted, "{values} {done}");
    }
}

/// How far a program has read a file that it has open. Each of its threads may have descriptors of
/// its own.
fn read_position(pid: u32, path: &Path) -> Option<u64> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .ok()?
        .flatten()
    {
        let Ok(descriptors) = std::fs::read_dir(task.path().join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            if std::fs::read_link(descriptor.path()).is_ok_and(|target| target == path) {
                let info = task.path().join("fdinfo").join(descriptor.file_name());
                let info = std::fs::read_to_string(info).ok()?;
                return info
                    .strip_prefix("pos:")?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok();
            }
        }
    }
    None
}

#[test]
fn an_input_that_grows_faster_than_it_is_read_fails_alone() {
    const AHEAD: u64 = 512 << 20;
    let source = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";
    for (name, done) in [("submit", "the others are"), ("run", "good: 1 rows")] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "p", source);
        let good = dir.path().join("good");
        std::fs::write(&good, "").unwrap();
        let path = dir.path().canonicalize().unwrap().join("growing");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(AHEAD).unwrap();
        let mut command = program("casparian");
        match name {
            "run" => {
                let plugin = dir.path().join("p.py");
                std::fs::write(&plugin, source).unwrap();
                command.arg("run").arg(plugin).arg("--output");
                command.arg(dir.path().join("out"));
            }
            name => {
                command.args([name, "--plugin", "p", "--database"]);
                command.arg(database);
            }
        }
        let mut running = Background::start(command.arg(&path).arg(&good));
        let deadline = Instant::now() + DEADLINE;
        while !running.has_exited() {
            assert!(Instant::now() < deadline, "{name} does not end");
            if let Some(at) = read_position(running.pid(), &path) {
                file.set_len(at + AHEAD).unwrap();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(running.wait(), Some(1), "{name}");
        for text in ["/growing: it changed while it was read", done] {
            assert_eq!(running.count(text).min(1), 1, "{name}: {text}");
        }
    }
}

#[test]
fn an_input_that_is_read_longer_than_its_job_may_take_is_at_fault() {
    let source = "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        os.truncate(path, 1 << 40)\n        yield pa.table({'x': [1]})\n";
    for is_long_before in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "p", source);
        let input = dir.path().join("f");
        std::fs::write(&input, "OLD0").unwrap();
        let job = submit(&database, "p", std::slice::from_ref(&input))[0];
        if is_long_before {
            let file = std::fs::File::create(&input).unwrap();
            file.set_len(1 << 40).unwrap();
        }
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let out = dir.path().join("out");
        let _worker = worker(&endpoint, &out, &["--job-timeout", "5"]);
        let failed = ended(&database, job);
        assert_eq!(
            (&failed["status"], &failed["cause"]),
            (&json!("FAILED"), &json!("input")),
            "{is_long_before} {failed}"
        );
        let error = failed["error"].as_str().unwrap();
        assert!(error.contains("while the worker read its input"), "{error}");
    }
}

#[test]
fn a_file_that_changes_at_every_attempt_fails_for_its_input() {
    let scene = Scene::new("open(path, 'a').write('MORE')", 99);
    let job = scene.submit();
    let failed = scene.run(job, "warm", "tcp");
    assert_eq!(
        (&failed["status"], &failed["cause"]),
        (&json!("FAILED"), &json!("input")),
        "{failed}"
    );
    let attempts = failed["attempt"].as_i64().unwrap();
    assert!((2..=20).contains(&attempts), "{failed}");
    let error = failed["error"].as_str().unwrap();
    // The worker may look at the file for the first time when the plugin has changed it already.
    assert!(
        error.ends_with("it changed each time, perhaps by the plugin itself"),
        "{failed:#}"
    );
    let found = scene.found(job);
    assert_eq!(
        (&found["x"], &found["is_of_file"]),
        (&json!([]), &json!(true)),
        "{found}"
    );
}

#[test]
fn an_input_that_was_replaced_by_a_folder_is_at_fault() {
    for (start, transport) in WAYS {
        let scene = Scene::new("pass", 0);
        let job = scene.submit();
        std::fs::remove_file(&scene.input).unwrap();
        std::fs::create_dir(&scene.input).unwrap();
        let failed = scene.run(job, start, transport);
        assert_eq!(
            (&failed["status"], &failed["cause"]),
            (&json!("FAILED"), &json!("input")),
            "{failed}"
        );
        let error = failed["error"].as_str().unwrap();
        assert!(error.contains("/f: it is a folder, not a file"), "{error}");
    }
}

#[test]
fn times_before_1970_are_stored_as_they_are() {
    let scene = Scene::new("pass", 0);
    set_time(&scene.input, -86_400.5);
    let job = scene.submit();
    let query = "SELECT v.modified_time, l.last_known_mtime FROM cf_file_version v \
         JOIN cf_file_location l ON l.id = v.location_id";
    let stored = sql(&scene.database, query);
    assert_eq!(stored, "1969-12-30 23:59:59.500000 -86400.5");
    let done = scene.run(job, "warm", "tcp");
    assert_eq!(done["attempt"], 1, "{done}");
}
