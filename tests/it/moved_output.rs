//! An output folder that is renamed, unmounted or protected under a running worker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::*;

const PLUGIN: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";

/// An output folder that is taken away and put back: by a mount where `is_mount`.
struct Out {
    path: PathBuf,
    away: PathBuf,
    is_mount: bool,
}

impl Out {
    fn run(&self, program: &str, arguments: &[&Path]) -> bool {
        let run = Command::new(program).args(arguments).output();
        run.is_ok_and(|run| run.status.success())
    }

    fn mount(&self) -> bool {
        self.run("mount", &[Path::new("--bind"), &self.away, &self.path])
    }

    fn take(&self) {
        if self.is_mount {
            assert!(self.run("umount", &[Path::new("-l"), &self.path]));
        } else {
            fs::rename(&self.path, &self.away).unwrap();
        }
    }

    fn give(&self) {
        if self.is_mount {
            assert!(self.mount());
        } else {
            fs::rename(&self.away, &self.path).unwrap();
        }
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        if self.is_mount {
            self.run("umount", &[Path::new("-l"), &self.path]);
        }
    }
}

/// Renames are always tried, a mount where this process may mount.
#[test]
fn a_worker_waits_for_its_output_folder_and_goes_on_when_it_is_back() {
    for is_mount in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "plug", PLUGIN);
        let out = Out {
            path: dir.path().join("out"),
            away: dir.path().join("away"),
            is_mount,
        };
        if is_mount {
            fs::create_dir(&out.path).unwrap();
            fs::create_dir(&out.away).unwrap();
            if !out.mount() {
                eprintln!("without a mount: this process may not mount");
                continue;
            }
        }
        let submit = |name: &str| {
            let input = dir.path().join(name);
            fs::write(&input, name).unwrap();
            submit(&database, "plug", &[input])[0]
        };
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let mut worker = worker(&endpoint, &out.path, &["--slots", "2"]);
        let first = submit("in0");
        assert_eq!(ended(&database, first)["status"], "COMPLETED");
        out.take();
        let jobs: Vec<i64> = (1..4).map(|at| submit(&format!("in{at}"))).collect();
        worker.line_with("in trouble");
        until("the sentinel knows the reason", || {
            let workers = casparian_ok(&["workers", "-d", database.to_str().unwrap()]);
            let reason = "is not the one that this worker has opened";
            let advice = "put it back, or restart the worker";
            let is_whole = workers.contains(advice);
            assert!(is_whole || !workers.contains(reason), "{workers}");
            is_whole.then_some(())
        });
        match is_mount {
            true => assert_eq!(fs::read_dir(&out.path).unwrap().count(), 0),
            false => assert!(!out.path.exists()),
        }
        for id in &jobs {
            assert_ne!(job(&database, *id)["status"], "COMPLETED");
        }
        out.give();
        worker.line_with("works again");
        for id in jobs {
            let done = ended(&database, id);
            assert_eq!(done["status"], "COMPLETED", "{done}");
            let uri = done["receipt"]["artifacts"][0]["uri"].as_str().unwrap();
            let file = uri.strip_prefix("file://").unwrap();
            assert!(Path::new(file).exists(), "{done}");
        }
        assert_eq!(visible_files(&out.path).len(), 4);
    }
}

/// A worker without the superuser's right to write where permissions forbid it.
fn plain_worker(endpoint: &str, out: &Path, more: &[&str]) -> Background {
    let worker = program("casparian-worker");
    let mut command = match rustix::process::geteuid().is_root() {
        true => {
            let mut command = Command::new("setpriv");
            command
                .arg("--bounding-set=-dac_override,-dac_read_search")
                .arg(worker.get_program())
                .env("HOME", home());
            command
        }
        false => worker,
    };
    let command = command.args(["--connect", endpoint, "--output"]);
    Background::start(command.arg(out).args(more))
}

/// Whatever its sink, no job fails for good because of the folder, and the worker does not believe
/// that it works before it does.
#[test]
fn an_output_folder_without_write_permission_fails_no_job() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "files", PLUGIN);
    for plugin in ["rows", "below"] {
        let source = dir.path().join(format!("{plugin}.py"));
        fs::write(&source, PLUGIN).unwrap();
        let database = database.to_str().unwrap();
        casparian_ok(&["deploy", source.to_str().unwrap(), "--database", database]);
    }
    let insert = "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) VALUES";
    sql(
        &database,
        &format!(
            "{insert} ('rows', 'output', 'sqlite://x.db/t', 'append'), \
             ('below', 'output', 'sqlite://set/x.db/t', 'append')"
        ),
    );
    let out = dir.path().join("out");
    let protect = |mode: u32| {
        fs::set_permissions(&out, fs::Permissions::from_mode(mode)).unwrap();
    };
    let submit = |at: usize| -> Vec<i64> {
        let input = dir.path().join(format!("in{at}"));
        fs::write(&input, "x").unwrap();
        let plugins = ["rows", "below", "files"];
        let jobs = plugins.map(|plugin| submit(&database, plugin, std::slice::from_ref(&input))[0]);
        jobs.to_vec()
    };
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let mut worker = plain_worker(&endpoint, &out, &["--slots", "2"]);
    for id in submit(0) {
        assert_eq!(ended(&database, id)["status"], "COMPLETED");
    }
    for (mode, place) in [(0o555, ""), (0o000, "/.casparian")] {
        protect(mode);
        let jobs: Vec<i64> = (1..4).flat_map(submit).collect();
        worker.line_with("in trouble");
        // What the self-test has found.
        let reason = format!("{}{place}: Permission denied", out.display());
        until("the self-test names the folder", || {
            let workers = casparian_ok(&["workers", "-d", database.to_str().unwrap()]);
            workers.contains(&reason).then_some(())
        });
        protect(0o755);
        worker.line_with("works again");
        for id in jobs {
            let done = ended(&database, id);
            assert_eq!(done["status"], "COMPLETED", "{mode:o}: {done}");
        }
    }
    // A folder below it keeps its own jobs waiting.
    let set = out.join("set");
    fs::set_permissions(&set, fs::Permissions::from_mode(0o555)).unwrap();
    let jobs = submit(4);
    until("it waits", || {
        let job = job(&database, jobs[1]);
        let words = job.to_string();
        (job["status"] == "PENDING").then(|| {
            assert_eq!(job["cause"], "worker", "{job}");
            assert!(words.contains("cannot be written: Permission"), "{job}");
        })
    });
    for id in [jobs[0], jobs[2]] {
        assert_eq!(ended(&database, id)["status"], "COMPLETED");
    }
    fs::set_permissions(&set, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(ended(&database, jobs[1])["status"], "COMPLETED");
    let hidden = fs::read_dir(&out).unwrap();
    let hidden = hidden.map(|entry| entry.unwrap().file_name());
    let hidden = hidden.filter(|name| name.as_encoded_bytes().starts_with(b"."));
    assert_eq!(hidden.collect::<Vec<_>>(), [".casparian"]);
}
