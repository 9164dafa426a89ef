//! What another user of the host may do with what we create, whatever our umask is.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::*;

/// No user of the system.
const OTHER: u32 = 61_234;

/// Runs until the file beside its input is there.
const WAITS: &str = "import os, time\nimport pyarrow as pa\n\nclass Handler:\n    def execute(self, path):\n        open('data', 'w').write('x')\n        print('runs', flush=True)\n        while not os.path.exists(path + '.go'):\n            time.sleep(0.01)\n        yield pa.table({'x': [1]})\n";

/// Lists folders, reads files and connects to sockets; prints what works.
const INTRUDER: &str = "import os, socket, sys\nfor path in sys.argv[1:]:\n    for name, attempt in [\n        ('list', lambda: os.listdir(path)),\n        ('read', lambda: open(path, 'rb').read(1)),\n        ('write', lambda: open(path, 'ab')),\n        ('connect', lambda: socket.socket(socket.AF_UNIX).connect(path)),\n        ('create', lambda: open(path + '/new', 'x')),\n        ('remove', lambda: os.unlink(path)),\n    ]:\n        try:\n            attempt()\n            print(name, path)\n        except OSError:\n            pass\n";

/// A program of ours with a umask.
fn with_umask(umask: &str, name: &str, tmp: &Path) -> Command {
    let own = program(name);
    let mut command = Command::new("sh");
    let script = format!("umask {umask}; exec \"$@\"");
    command.args(["-c", &script, "sh"]).arg(own.get_program());
    for (name, value) in own.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("TMPDIR", tmp);
    command
}

/// Everything below a folder that we create for ourselves there, with its mode.
fn ours(folder: &Path) -> Vec<(PathBuf, u32)> {
    let entries = walkdir::WalkDir::new(folder).min_depth(1).into_iter();
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.into_path();
            let mode = path.symlink_metadata().ok()?.permissions().mode() & 0o777;
            Some((path, mode))
        })
        .collect()
}

/// Checks modes, and that another user can do nothing with any of these.
fn check(umask: &str, found: &[(PathBuf, u32)]) {
    for (path, mode) in found {
        let kind = path.symlink_metadata().unwrap().file_type();
        let name = path.file_name().unwrap().to_str().unwrap();
        // What lies in a private folder has the mode of the umask, but for sockets and job folders.
        let is_private = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("casparian-") || name.starts_with('w')
        };
        let is_inside = path.parent().is_some_and(is_private);
        let is_job_folder = name.starts_with('w') && is_inside;
        if kind.is_dir() && (!is_inside || is_job_folder) {
            assert_eq!(*mode, 0o700, "umask {umask}: {}", path.display());
        } else if kind.is_socket() || !is_inside {
            assert_eq!(*mode, 0o600, "umask {umask}: {}", path.display());
        }
    }
    if !rustix::process::getuid().is_root() {
        eprintln!("modes alone: a second user is needed for the rest, which only root can be");
        return;
    }
    let mut intruder = Command::new("/usr/bin/python3");
    intruder.args(["-c", INTRUDER]).uid(OTHER).gid(OTHER);
    let done = output(intruder.args(found.iter().map(|(path, _)| path)));
    assert!(done.status.success(), "{}", stderr(&done));
    assert_eq!(stdout(&done), "", "umask {umask}");
}

fn is_socket(path: &Path) -> bool {
    path.symlink_metadata()
        .is_ok_and(|found| found.file_type().is_socket())
}

/// Waits for a job's folder with what the plugin writes there, and its socket.
fn wait_for_job(tmp: &Path) -> Vec<(PathBuf, u32)> {
    until("the plugin runs", || {
        let found = ours(tmp);
        let has = |is: &dyn Fn(&Path) -> bool| found.iter().any(|(path, _)| is(path));
        let has_data = has(&|path| path.ends_with("data"));
        (has_data && has(&is_socket)).then_some(found)
    })
}

#[test]
fn whatever_the_umask_others_can_neither_list_nor_read_nor_connect() {
    for umask in ["000", "077"] {
        let dir = tempfile::tempdir().unwrap();
        // Only our own modes are in the way.
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(dir.path(), open).unwrap();
        let path = |name: &str| dir.path().join(name);
        let (tmp, run_tmp) = (path("t"), path("r"));
        for folder in [&tmp, &run_tmp] {
            fs::create_dir(folder).unwrap();
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(path("p.py"), WAITS).unwrap();
        for name in ["in", "in2"] {
            fs::write(path(name), "x").unwrap();
        }
        let run = |name: &str, words: &[&str]| {
            let mut command = with_umask(umask, name, &tmp);
            let done = output(command.current_dir(dir.path()).args(words));
            assert!(done.status.success(), "{words:?}: {}", stderr(&done));
        };
        run("casparian", &["keygen", "w.key", "--name", "w"]);
        run(
            "casparian",
            &["keygen", "--publisher", "p.key", "--name", "p"],
        );
        run("casparian", &["init", "init.db"]);
        let start = |name: &str, tmp: &Path, words: &[&str]| {
            let mut command = with_umask(umask, name, tmp);
            Background::start(command.current_dir(dir.path()).args(words))
        };
        let endpoint = format!("ipc://{}", path("control").display());
        let words = ["--bind", &*endpoint, "--database", "queue.db"];
        let mut sentinel = start("casparian-sentinel", &tmp, &words);
        sentinel.line_with("listens on ");
        run("casparian", &["deploy", "p.py", "--database", "queue.db"]);
        let words = ["--connect", &*endpoint, "--output", "out"];
        let _worker = start("casparian-worker", &tmp, &words);
        let id = submit(&path("queue.db"), "p", &[path("in")])[0];
        let mut found = wait_for_job(&tmp);
        let files = ["control", "queue.db", "init.db", "w.key", "p.key"].map(path);
        let beside = ours(dir.path()).into_iter().filter(|(path, _)| {
            let text = path.to_string_lossy();
            let mut starts = files.iter().map(|file| file.to_string_lossy());
            starts.any(|start| text.starts_with(&*start)) && !text.ends_with(".pub")
        });
        found.extend(beside);
        let of_run = start(
            "casparian",
            &run_tmp,
            &["run", "p.py", "in2", "-o", "of_run"],
        );
        found.extend(wait_for_job(&run_tmp));
        let queue = path("of_run/.casparian");
        found.extend(ours(&queue).into_iter().filter(|(path, _)| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with("queue.sqlite") || name == "run.lock"
        }));
        let count = |ending: &str| {
            let ends = |(path, _): &&(PathBuf, u32)| path.to_string_lossy().ends_with(ending);
            found.iter().filter(ends).count()
        };
        assert_eq!(count("queue.db-wal") + count("queue.sqlite-wal"), 2);
        assert_eq!(count("sentinel-lock") + count("run.lock"), 3);
        // Folders beside output, which readers may enter.
        for root in ["out", "of_run"] {
            for (path, mode) in ours(&path(root).join(".casparian")) {
                let is_open = path.is_dir() && mode & 0o002 != 0;
                assert!(!is_open, "umask {umask}: {} has {mode:o}", path.display());
            }
        }
        // Control and plugin socket of each.
        assert_eq!(found.iter().filter(|(path, _)| is_socket(path)).count(), 4);
        check(umask, &found);
        for name in ["in.go", "in2.go"] {
            fs::write(path(name), "").unwrap();
        }
        assert_eq!(ended(&path("queue.db"), id)["status"], "COMPLETED");
        let mut of_run = of_run;
        assert_eq!(of_run.wait(), Some(0));
    }
}
