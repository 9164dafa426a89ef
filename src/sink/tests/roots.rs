//! Roots: shared roots, unusual paths, other mounts, limits.

use std::process::Command;

use super::*;
use crate::limits;

const SINKS: &[(&str, &str, &str)] = &[("a", "parquet://set/a.parquet", "append")];

fn of(job_id: i64, number: i64) -> Job {
    job(Some(A), Attempt::new(job_id, number), SINKS)
}

#[test]
fn what_dead_workers_left_is_removed_and_what_live_ones_hold_stays() {
    let fixture = Fixture::new();
    let dead = open(fixture.dir.path());
    let left = stage(&dead, &of(1, 1), &[1]).unwrap();
    let live = stage(&fixture.root, &of(2, 1), &[2]).unwrap();
    dead.die();
    let staging = fixture.path(".casparian/staging");
    fs::create_dir_all(staging.join("123-dead")).unwrap();
    fs::write(staging.join("123-dead/lock"), "").unwrap();
    fs::create_dir_all(staging.join("new~1-0-0")).unwrap();
    fs::create_dir_all(staging.join("unknown")).unwrap();
    fs::write(staging.join("gate"), "").unwrap();
    // Folders nested too deeply for a recursive removal.
    let script = "import os\nfor _ in range(15000):\n    os.mkdir('d')\n    os.chdir('d')\n";
    let deep = Command::new("python3")
        .args(["-c", script])
        .current_dir(staging.join("123-dead"))
        .status();
    assert!(deep.unwrap().success());
    let _third = open(fixture.dir.path());
    let live_name = format!("{A}.2.1");
    assert_eq!(fixture.staged(), [live_name.as_str(), "gate", "unknown"]);
    assert_eq!(names_in(&fixture.path(".casparian/workers")).len(), 2);
    granted(live).unwrap();
    assert!(granted(left).is_err());
    assert_eq!(fixture.files(), ["set/a_2.parquet"]);
}

#[test]
fn workers_that_start_at_once_on_one_root_all_start() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let root = dir.path().join(format!("r{round}"));
        let roots: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|at| {
                    let root = &root;
                    scope.spawn(move || {
                        let opened = open(root);
                        publish(&opened, &of(at, 1), &[at]).unwrap();
                        opened
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(
            names_in(&root.join(".casparian/workers")).len(),
            roots.len()
        );
        drop(roots);
        assert_eq!(names_in(&root.join(".casparian/workers")), [""; 0]);
        assert_eq!(visible(&root).len(), 8);
    }
}

#[test]
fn roots_that_cannot_be_used_are_refused_with_their_path() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    fs::create_dir(dir.path().join("odd")).unwrap();
    fs::write(dir.path().join("odd/.casparian"), "x").unwrap();
    fs::create_dir_all(dir.path().join("deep/.casparian")).unwrap();
    fs::write(dir.path().join("deep/.casparian/staging"), "x").unwrap();
    for (name, named) in [
        ("file", "file"),
        ("file/below", "file"),
        ("odd", "odd/.casparian"),
        ("deep", "deep/.casparian/staging"),
    ] {
        let error = Root::open(&dir.path().join(name), RootOptions::default()).unwrap_err();
        let want = format!("/{named}: it is not a folder");
        assert!(error.to_string().ends_with(&want), "{name}: {error}");
        assert_eq!(error.cause(), crate::job::Cause::Worker);
    }
    let missing = dir.path().join("a/b/c");
    Root::open(&missing, RootOptions::default()).unwrap();
}

/// A mount that is unmounted when it is dropped.
pub(super) struct Mount(pub(super) PathBuf);

impl Mount {
    /// `None` where this process may not mount.
    pub(super) fn new(kind: &[&str], at: PathBuf) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let run = Command::new("mount").args(kind).arg(&at).output();
        run.is_ok_and(|run| run.status.success())
            .then_some(Mount(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let run = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(run.unwrap().success());
    }
}

#[test]
fn a_sink_folder_on_another_mount_works_and_is_fenced() {
    let other = tempfile::tempdir().unwrap();
    let bind = other.path().to_str().unwrap().to_owned();
    for kind in [&["-t", "tmpfs", "tmpfs"][..], &["--bind", &bind]] {
        let fixture = Fixture::new();
        let Some(mount) = Mount::new(kind, fixture.path("set")) else {
            eprintln!("skipped: this process may not mount");
            return;
        };
        let successor = open(fixture.dir.path());
        let paused = stage(&fixture.root, &of(7, 1), &[1]).unwrap();
        assert_eq!(names_in(&mount.0.join(".casparian")).len(), 1);
        publish(&successor, &of(7, 2), &[2]).unwrap();
        assert!(matches!(granted(paused), Err(Error::Barred { .. })));
        assert_eq!(fixture.files(), ["set/a_7.parquet"]);
        assert_eq!(values(&fixture.path("set/a_7.parquet")), [2]);
        // The bay of a dead worker's attempt is also removed.
        let left = stage(&successor, &of(8, 1), &[1]).unwrap();
        successor.die();
        let root = open(fixture.dir.path());
        drop(left);
        let mut replace = of(9, 1);
        replace.sinks = [Sink::parse("a", "parquet://set/a.parquet", "replace").unwrap()].into();
        publish(&root, &replace, &[9]).unwrap();
        assert_eq!(fixture.files(), ["set/a_9.parquet"]);
        assert_eq!(names_in(&mount.0.join(".casparian")), [""; 0]);
        assert_eq!(fixture.staged(), [""; 0]);
        drop(root);
    }
}

#[test]
fn topics_with_similar_names_get_files_of_their_own() {
    let fixture = Fixture::new();
    let job = Arc::new(job(Some(A), Attempt::new(1, 1), &[]));
    let mut output = JobOutput::new(fixture.root.clone(), job).unwrap();
    let long = "x".repeat(1 << 16);
    let longer = "x".repeat(1 << 17);
    let topics = ["東京", "大阪", "a/b", "a_b", &long, &longer];
    for topic in topics {
        output.write(Some(topic), &numbers(&[1])).unwrap();
        output.write(Some(topic), &numbers(&[2])).unwrap();
    }
    let artifacts = finish(output).unwrap();
    assert_eq!(artifacts.len(), topics.len());
    assert_eq!(fixture.files().len(), topics.len());
    for artifact in artifacts {
        assert_eq!(artifact.rows, 2);
        assert!(artifact.topic.len() <= 255);
    }
}

#[test]
fn a_job_has_a_bounded_number_of_topics() {
    let fixture = Fixture::new();
    let topics: Vec<String> = (0..limits::TOPICS_MAX + 1)
        .map(|at| format!("parquet://t{at}.parquet"))
        .collect();
    let sinks: Vec<_> = topics
        .iter()
        .map(|uri| (uri.as_str(), uri.as_str(), ""))
        .collect();
    let error = fixture.output(1, &sinks).map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("more than 10000 topics"),
        "{error}"
    );
    assert_eq!(error.cause(), crate::job::Cause::Plugin);
    fixture.output(1, &sinks[1..]).unwrap();
}

#[test]
fn the_limit_of_descriptors_is_raised_and_named() {
    let raised = raise_descriptor_limit().unwrap();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    assert_eq!(raised, limit.current);
    let full = std::io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
    let error = Error::io(Path::new("x"), full);
    let text = error.to_string();
    assert!(text.contains("ulimit -n"), "{text}");
    assert!(text.contains(&format!("{}", raised.unwrap())), "{text}");
}

#[test]
fn panics_are_errors_and_quiet() {
    let text = quiet_panics(|| panic!("no kernel for {}", 5)).unwrap_err();
    // The message has no path of the machine that built the program.
    assert_eq!(text, "no kernel for 5");
    assert_eq!(quiet_panics(|| 7), Ok(7));
    let nested = quiet_panics(|| quiet_panics(|| panic!("inner")).unwrap_err());
    assert!(nested.unwrap().starts_with("inner"));
}

#[test]
fn two_thousand_topics_are_published_together() {
    raise_descriptor_limit().unwrap();
    let fixture = Fixture::new();
    let job = Arc::new(job(Some(A), Attempt::new(1, 1), &[]));
    let mut output = JobOutput::new(fixture.root.clone(), job).unwrap();
    for topic in 0..2000 {
        output
            .write(Some(&format!("t{topic}")), &numbers(&[topic]))
            .unwrap();
    }
    assert_eq!(finish(output).unwrap().len(), 2000);
    assert_eq!(values(&fixture.path("plug_in_t1999_1.parquet")), [1999]);
    assert_eq!(fixture.staged(), [""; 0]);
}

/// A FIFO at the path of one of Casparian's own files is an error with its path. Opening it does not
/// block.
#[test]
fn a_fifo_among_our_files_is_an_error_that_names_it() {
    let other = Job {
        database: Some(B.into()),
        ..of(3, 1)
    };
    let run = format!(".casparian/staging/{A}.2.2");
    let cases = [
        ("record", format!(".casparian/outputs/{A}/0/2"), of(2, 3)),
        ("bar", format!(".casparian/barred/{A}/0/2/2"), of(2, 3)),
        ("owner", ".casparian/owner".to_owned(), other),
        ("bays", format!("{run}/bays"), of(2, 3)),
        ("worker", format!("{run}/worker"), of(2, 2)),
    ];
    for (name, path, job) in cases {
        let fixture = Fixture::new();
        publish(&fixture.root, &of(1, 1), &[1]).unwrap();
        let dead = open(fixture.dir.path());
        let _left = stage(&dead, &of(2, 2), &[1]).unwrap();
        dead.die();
        let fifo = fixture.path(&path);
        fs::create_dir_all(fifo.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&fifo);
        assert!(
            Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
        let error = publish(&fixture.root, &job, &[1]).unwrap_err().to_string();
        let names = match name {
            // The attempt's folder is claimed before the file is read, so its path differs.
            "bays" => "bays".to_owned(),
            _ => fifo.to_string_lossy().into_owned(),
        };
        assert!(error.contains(&names), "{name}: {error}");
        assert!(error.contains("not a regular file"), "{name}: {error}");
    }
}

#[test]
fn a_sink_whose_location_cannot_be_used_is_the_operators_fault() {
    use std::os::unix::fs::symlink;
    let fixture = Fixture::new();
    fs::write(fixture.path("file"), "x").unwrap();
    symlink("/nonexistent/x", fixture.path("dangling")).unwrap();
    symlink("loop", fixture.path("loop")).unwrap();
    let long = ["d"; 190].concat();
    let deep = vec![long.as_str(); 22].join("/");
    let deep = format!("parquet://{deep}/o.parquet");
    let below_file = format!("sqlite://{}/x.db/rows", fixture.path("file").display());
    let cases = [
        ("parquet://file/o.parquet", "file: it is not a folder"),
        ("parquet://file/below/o.parquet", "file: it is not a folder"),
        ("parquet://dangling/o.parquet", "leads to nothing"),
        ("parquet://loop/o.parquet", "circle"),
        (deep.as_str(), "too long"),
        ("sqlite://file/x.db/rows", "file: it is not a folder"),
        ("sqlite://dangling/rows", "leads to nothing"),
        ("sqlite://dangling/x.db/rows", "leads to nothing"),
        (below_file.as_str(), "file: it is not a folder"),
        (
            "sqlite:///nonexistent/dir/x.db/rows",
            "/nonexistent/dir does not exist",
        ),
        ("sqlite:///proc/x.db/rows", "/proc/x.db"),
    ];
    for (uri, want) in cases {
        let job = job(Some(A), Attempt::new(1, 1), &[("a", uri, "append")]);
        let error = publish(&fixture.root, &job, &[1]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(want) && text.contains("sink"),
            "{uri}: {text}"
        );
        assert_eq!(error.cause(), crate::job::Cause::Operator, "{uri}: {text}");
    }
    assert_eq!(fixture.files(), ["dangling", "file", "loop"]);
}

#[test]
fn a_database_on_storage_that_fails_is_the_workers_fault() {
    let fixture = Fixture::new();
    let Some(mount) = Mount::new(&["-t", "tmpfs", "tmpfs"], fixture.path("ro")) else {
        eprintln!("skipped: this process may not mount");
        return;
    };
    let sinks = [("a", "sqlite://ro/x.db/rows", "append")];
    let of = |number| job(Some(A), Attempt::new(1, number), &sinks);
    for number in [1, 2] {
        let remount = |how: &str| {
            let options = format!("remount,{how}");
            let mut run = Command::new("mount");
            let run = run.args(["-o", &options]).arg(&mount.0).status();
            assert!(run.unwrap().success());
        };
        remount("ro");
        let error = publish(&fixture.root, &of(number), &[1]).unwrap_err();
        assert_eq!(error.cause(), crate::job::Cause::Worker, "{error}");
        remount("rw");
        // In the second iteration the database exists.
        publish(&fixture.root, &of(number), &[1]).unwrap();
    }
}

#[test]
fn a_root_that_is_taken_away_is_the_workers_fault() {
    let sinks: [&[(&str, &str, &str)]; 3] = [
        SINKS,
        &[("a", "sqlite://x.db/rows", "append")],
        &[("a", "parquet://o.parquet", "replace")],
    ];
    for sinks in sinks {
        for returns in [false, true] {
            for is_staged in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().canonicalize().unwrap().join("out");
                let root = open(&path);
                let job = job(Some(A), Attempt::new(7, 1), sinks);
                let mut output = JobOutput::new(root.clone(), Arc::new(job)).unwrap();
                let take = || {
                    fs::rename(&path, dir.path().join("away")).unwrap();
                    if returns {
                        fs::create_dir(&path).unwrap();
                        root.ensure().unwrap_err();
                    }
                };
                let error = if is_staged {
                    output.write(None, &numbers(&[1])).unwrap();
                    let staged = output.stage().unwrap();
                    take();
                    granted(staged).unwrap_err()
                } else {
                    take();
                    let written = output.write(None, &numbers(&[1]));
                    let staged = written.and_then(|()| output.stage());
                    root.judged(staged.and_then(granted).unwrap_err())
                };
                let case = format!("{sinks:?} {returns} {is_staged}: {error}");
                assert_eq!(error.cause(), crate::job::Cause::Worker, "{case}");
                assert!(case.contains(path.to_str().unwrap()), "{case}");
                assert!(case.contains("put it back"), "{case}");
            }
        }
    }
}

/// A fault of the output folder itself is the worker's, for all sinks and errors. Below it, only errors
/// that the URI or existing files cause are the operator's. Outside it, missing permissions are the
/// operator's, too.
#[test]
fn whose_fault_a_sink_is_depends_on_the_location_and_the_error() {
    use crate::job::Cause::{self, Operator, Worker};
    use rustix::io::Errno;
    let fixture = Fixture::new();
    let root = fixture.root.path().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let of_permissions = [Errno::ACCESS, Errno::PERM];
    let of_worker = [
        Errno::ROFS,
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::IO,
        Errno::STALE,
        Errno::MFILE,
    ];
    let check = |errno: Errno, at: &Path, want: Cause| {
        for name in ["x.db", "o.parquet"] {
            let file = root.join("set").join(name);
            let error = files::sink_failure(at, &file, errno.into());
            let error = fixture.root.judged(error);
            assert_eq!(error.cause(), want, "{errno} {at:?}: {error}");
            let is_named = error.to_string().contains(at.to_str().unwrap());
            assert!(is_named, "{errno} {at:?}: {error}");
        }
    };
    for below in ["set", "set/deep", "set/x.db"] {
        let below = root.join(below);
        for errno in of_permissions.into_iter().chain(of_worker) {
            check(errno, &below, Worker);
        }
    }
    for errno in of_permissions {
        check(errno, dir.path(), Operator);
    }
    for errno in of_worker {
        check(errno, dir.path(), Worker);
    }
    for errno in of_permissions.into_iter().chain(of_worker) {
        check(errno, &root, Worker);
    }
}

#[test]
fn an_attempt_that_finds_the_root_full_leaves_nothing_in_staging() {
    let fixture = Fixture::new();
    let kind = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
    let Some(mount) = Mount::new(&kind, fixture.path("full")) else {
        eprintln!("skipped: this process may not mount");
        return;
    };
    let root = open(&mount.0);
    let filler = mount.0.join("filler");
    assert!(fs::write(&filler, vec![1; 2 << 20]).is_err());
    for number in 1..5 {
        let error = JobOutput::new(root.clone(), Arc::new(of(1, number))).map(drop);
        assert_eq!(error.unwrap_err().cause(), crate::job::Cause::Worker);
        assert_eq!(names_in(&mount.0.join(".casparian/staging")), [""; 0]);
    }
    fs::remove_file(&filler).unwrap();
    publish(&root, &of(1, 5), &[1]).unwrap();
}

/// A failure below the output folder is a fault of the sink when the folder itself works.
#[test]
fn a_location_of_a_sink_fails_for_its_own_jobs_while_the_root_works() {
    let fixture = Fixture::new();
    let (small, root) = (["-t", "tmpfs", "-o", "size=1m", "tmpfs"], fixture.path("r"));
    let Some(mount) = Mount::new(&small, root) else {
        eprintln!("skipped: this process may not mount");
        return;
    };
    let root = open(&mount.0);
    let sub = Mount::new(&small, mount.0.join("sub")).unwrap();
    let fill = |folder: &Path| assert!(fs::write(folder.join("filler"), vec![1; 2 << 20]).is_err());
    let uris = ["parquet://sub/o.parquet", "sqlite://sub/x.db/rows"];
    let faults = |number: i64| {
        uris.map(|uri| {
            let job = job(Some(A), Attempt::new(1, number), &[("a", uri, "append")]);
            let error = publish(&root, &job, &[1]).unwrap_err();
            assert_eq!(error.cause(), crate::job::Cause::Worker, "{uri}: {error}");
            root.fault(&error)
        })
    };
    fill(&sub.0);
    assert_eq!(faults(1), [Fault::Job, Fault::Job]);
    fill(&mount.0);
    assert_eq!(faults(2), [Fault::Worker, Fault::Worker]);
    fs::remove_file(mount.0.join("filler")).unwrap();
    assert_eq!(faults(3), [Fault::Job, Fault::Job]);
}

/// SQLite frees the space of a failed transaction. So a small file fits on a disk that is too full for
/// jobs.
#[test]
fn a_full_disk_is_the_workers_whatever_the_sink_until_it_has_room() {
    let fixture = Fixture::new();
    let (small, root) = (["-t", "tmpfs", "-o", "size=4m", "tmpfs"], fixture.path("r"));
    let Some(mount) = Mount::new(&small, root) else {
        eprintln!("skipped: this process may not mount");
        return;
    };
    let root = open(&mount.0);
    let sub = Mount::new(&small, mount.0.join("sub")).unwrap();
    let rows: Vec<i64> = (0..400_000).collect();
    for uri in ["sqlite://x.db/rows", "parquet://set/"] {
        root.test().unwrap();
        let filler = mount.0.join("filler");
        fs::write(&filler, vec![1; (4 << 20) - (700 << 10)]).unwrap();
        let job = job(Some(A), Attempt::new(1, 1), &[("a", uri, "append")]);
        let error = publish(&root, &job, &rows).unwrap_err();
        assert_eq!(root.fault(&error), Fault::Worker, "{error}");
        let tested = root.test().unwrap_err().to_string();
        // A process that another thread is starting may keep a removed file open for a moment, and so its
        // space in use.
        let is_full = |reason| tested.contains(reason);
        assert!(
            is_full("bytes free") || is_full("No space left"),
            "{tested}"
        );
        fs::remove_file(&filler).unwrap();
        root.test().unwrap();
    }
    let full = |path: PathBuf| Error::io(&path, rustix::io::Errno::NOSPC.into());
    assert_eq!(root.fault(&full(sub.0.join("x.db"))), Fault::Job);
    root.test().unwrap();
    for path in ["x.db", "set/deep/o.parquet", ".casparian/staging/x"] {
        assert_eq!(
            root.fault(&full(mount.0.join(path))),
            Fault::Worker,
            "{path}"
        );
    }
}

#[test]
fn a_root_of_another_database_is_refused_until_its_owner_or_the_database_is_another() {
    let fixture = Fixture::new();
    publish(&fixture.root, &of(1, 1), &[1]).unwrap();
    let refuse = || {
        let other = Job {
            database: Some(B.into()),
            ..of(2, 1)
        };
        // The error also occurs before the first batch.
        let error = JobOutput::new(fixture.root.clone(), Arc::new(other)).map(drop);
        let error = error.unwrap_err();
        assert_eq!(fixture.root.fault(&error), Fault::Owner, "{error}");
        let tested = fixture.root.test().unwrap_err();
        assert_eq!(tested.to_string(), error.to_string());
    };
    refuse();
    fixture.root.forget_database();
    fixture.root.test().unwrap();
    refuse();
    fs::remove_file(fixture.path(".casparian/owner")).unwrap();
    fixture.root.test().unwrap();
    publish(&fixture.root, &of(3, 1), &[1]).unwrap();
    refuse();
    // A foreign table is a fault of this sink only.
    let sqlite = [("a", "sqlite://x.db/rows", "append")];
    let of = |database, job_id| job(Some(database), Attempt::new(job_id, 1), &sqlite);
    publish(&fixture.root, &of(A, 4), &[1]).unwrap();
    let error = publish(&fixture.root, &of(B, 5), &[1]).unwrap_err();
    assert!(matches!(error, Error::OtherDatabase { .. }), "{error}");
    assert_eq!(fixture.root.fault(&error), Fault::Job);
}

#[test]
fn the_self_test_tries_what_has_failed_last() {
    let fixture = Fixture::new();
    let records = fixture.path(&format!(".casparian/outputs/{A}"));
    let Some(mount) = Mount::new(&["-t", "tmpfs", "-o", "ro", "tmpfs"], records) else {
        eprintln!("skipped: this process may not mount");
        return;
    };
    fixture.root.test().unwrap();
    let error = publish(&fixture.root, &of(1, 1), &[1]).unwrap_err();
    assert_eq!(fixture.root.fault(&error), Fault::Worker, "{error}");
    let tested = fixture.root.test().unwrap_err().to_string();
    assert!(tested.contains("Read-only file system"), "{tested}");
    drop(mount);
    fixture.root.test().unwrap();
    publish(&fixture.root, &of(1, 2), &[1]).unwrap();
}
