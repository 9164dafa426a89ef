//! Sinks whose own place fails while the output folder works, and an output folder of others.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::*;

const SMALL: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";
const LARGE: &str = "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [os.urandom(50000)]})\n";

/// A file system of so many MiB.
pub(crate) struct Mount(PathBuf, usize);

impl Mount {
    pub(crate) fn new(at: PathBuf, size: usize) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        let mount = Mount(at, size);
        mount.mount();
        mount
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let run = Command::new(program).args(arguments).arg(&self.0).status();
        assert!(run.unwrap().success(), "{program} {arguments:?}");
    }

    fn mount(&self) {
        let size = format!("size={}m", self.1);
        self.run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs"]);
    }

    pub(crate) fn spoil(&self, how: &str) {
        match how {
            "full" => {
                let more = vec![1; (self.1 + 1) << 20];
                assert!(std::fs::write(self.0.join("fill"), more).is_err());
            }
            "read-only" => self.run("mount", &["-o", "remount,ro"]),
            _ => self.run("umount", &["-l"]),
        }
    }

    pub(crate) fn repair(&self, how: &str) {
        match how {
            "full" => std::fs::remove_file(self.0.join("fill")).unwrap(),
            "read-only" => self.run("mount", &["-o", "remount,rw"]),
            _ => self.mount(),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let run = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(run.is_ok_and(|status| status.success()));
    }
}

fn inputs(dir: &Path, count: usize) -> Vec<PathBuf> {
    let input = |number: usize| {
        let path = dir.join(format!("in{number}"));
        std::fs::write(&path, number.to_string()).unwrap();
        path
    };
    (0..count).map(input).collect()
}

fn assert_first(done: &serde_json::Value, case: &str) {
    let shown = (done["status"].as_str(), done["attempt"].as_i64());
    assert_eq!(shown, (Some("COMPLETED"), Some(1)), "{case}: {done}");
}

#[test]
fn a_sink_whose_own_location_fails_costs_its_own_jobs_alone() {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: only root can mount a file system in the output folder");
        return;
    }
    for (how, uri, words) in [
        ("full", "parquet://sub/x/", "No space left"),
        ("full", "sqlite://sub/t.db/t", "full"),
        ("read-only", "parquet://sub/x/", "Read-only file system"),
        ("read-only", "sqlite://sub/t.db/t", "sub"),
        ("unmounted", "parquet://sub/x/", "was mounted there"),
        ("unmounted", "sqlite://sub/t.db/t", "was mounted there"),
    ] {
        let case = format!("{how} {uri}");
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "a", LARGE);
        database_with(dir.path(), "b", SMALL);
        sql(
            &database,
            &format!(
                "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
                 VALUES ('a', 'output', '{uri}', 'append')"
            ),
        );
        let out = dir.path().join("out");
        let mount = Mount::new(out.join("sub"), 1);
        let inputs = inputs(dir.path(), 9);
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let mut worker = worker(&endpoint, &out, &["--slots", "2"]);
        let first = submit(&database, "a", &inputs[..1])[0];
        assert_first(&ended(&database, first), &case);
        mount.spoil(how);
        let failing = submit(&database, "a", &inputs[1..]);
        // Each of them has failed before others come.
        for id in &failing {
            until(&format!("{case}: job {id} waits"), || {
                let job = job(&database, *id);
                (job["status"] == "PENDING").then(|| {
                    assert_eq!(job["cause"], "worker", "{case}: {job}");
                    assert!(job.to_string().contains(words), "{case}: {job}");
                })
            });
        }
        let others = submit(&database, "b", &inputs);
        for id in others {
            assert_first(&ended(&database, id), &case);
        }
        mount.repair(how);
        for id in failing {
            let done = ended(&database, id);
            assert_eq!(done["status"], "COMPLETED", "{case}: {done}");
        }
        worker.signal("-TERM");
        assert_eq!(worker.wait(), Some(0));
        assert_eq!(worker.count("in trouble"), 0, "{case}");
    }
}

/// What the worker's self-test writes there succeeds.
#[test]
fn an_output_folder_of_another_database_counts_for_no_job() {
    for is_owners in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let inputs = inputs(dir.path(), 6);
        let out = dir.path().join("out");
        let database = database_with(dir.path(), "p", SMALL);
        let mut run = program("casparian");
        run.arg("run").arg(dir.path().join("p.py")).arg(&inputs[0]);
        assert!(output(run.arg("--output").arg(&out)).status.success());
        let jobs = submit(&database, "p", &inputs);
        let (mut first, endpoint) = sentinel(&database, &[]);
        let mut worker = worker(&endpoint, &out, &["--slots", "2"]);
        worker.line_with("in trouble");
        until("the worker's note says why", || {
            let workers = casparian_ok(&["workers", "-d", database.to_str().unwrap()]);
            let is_whole = workers.contains("--share-output");
            (is_whole && workers.contains("another database")).then_some(())
        });
        let owner = out.join(".casparian/queue.sqlite");
        let (database, jobs, _second) = match is_owners {
            // It may publish for a sentinel of the folder's owner.
            true => {
                first.kill();
                let jobs = submit(&owner, "p", &inputs[1..]);
                let mut sentinel = program("casparian-sentinel");
                sentinel.args(["--bind", &endpoint, "--database"]);
                let second = Background::start(sentinel.arg(&owner));
                (owner, jobs, Some(second))
            }
            false => {
                for file in visible_files(&out) {
                    std::fs::remove_file(file).unwrap();
                }
                std::fs::remove_file(out.join(".casparian/owner")).unwrap();
                (database, jobs, None)
            }
        };
        for id in jobs {
            let done = ended(&database, id);
            assert_eq!(done["status"], "COMPLETED", "{done}");
            for attempt in done["attempts"].as_array().unwrap() {
                let status = attempt["status"].as_str().unwrap();
                assert!(["RETURNED", "COMPLETED"].contains(&status), "{done}");
            }
        }
        let counted = "SELECT sum(coalesce(infra_count, 0)) FROM cf_processing_queue";
        assert_eq!(sql(&database, counted), "0");
        worker.signal("-TERM");
        assert_eq!(worker.wait(), Some(0));
        assert_eq!(worker.count("works again"), 1);
    }
}
