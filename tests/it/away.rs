//! An output folder that is renamed or unmounted under a running worker.

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
            workers.contains(reason).then_some(())
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
