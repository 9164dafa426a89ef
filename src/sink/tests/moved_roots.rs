//! A root is renamed, replaced or unmounted while a worker has it open. Nothing is created at its path.
//! Published output counts again when the root is restored.

use super::roots::Mount;
use super::*;
use crate::job::{Cause, Settlement};

const SINKS: &[(&str, &str, &str)] = &[("a", "parquet://set/a.parquet", "append")];
const SINK_LISTS: [&[(&str, &str, &str)]; 5] = [
    SINKS,
    &[("a", "parquet://a.parquet", "replace")],
    &[("a", "parquet://a.parquet", "error"), SINKS[0]],
    &[("a", "sqlite://x.db/rows", "append")],
    &[("a", "sqlite://x.db/rows", "replace"), SINKS[0]],
];

fn of(job_id: i64, number: i64) -> Job {
    job(Some(A), Attempt::new(job_id, number), SINKS)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Nothing is at its path.
    Renamed,
    /// An empty folder is at its path.
    Replaced,
    /// The root of another worker is at its path.
    Used,
    /// It was a mount point, and the folder below the mount is at its path.
    Unmounted,
}

/// An output folder that can be removed from its path and restored.
struct Moved {
    dir: tempfile::TempDir,
    path: PathBuf,
    way: Way,
    mount: Option<Mount>,
    other: Option<Arc<Root>>,
}

impl Moved {
    /// `None` where this process may not mount.
    fn new(way: Way) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("out");
        let mut folder = Moved {
            dir,
            path,
            way,
            mount: None,
            other: None,
        };
        if way == Way::Unmounted {
            fs::create_dir(folder.away()).unwrap();
            folder.give();
            folder.mount.as_ref()?;
        }
        Some(folder)
    }

    fn away(&self) -> PathBuf {
        self.dir.path().join("away")
    }

    fn take(&mut self) {
        if self.way == Way::Unmounted {
            self.mount = None;
            return;
        }
        fs::rename(&self.path, self.away()).unwrap();
        match self.way {
            Way::Replaced => fs::create_dir(&self.path).unwrap(),
            Way::Used => self.other = Some(open(&self.path)),
            Way::Renamed | Way::Unmounted => {}
        }
    }

    fn give(&mut self) {
        if self.way == Way::Unmounted {
            let away = self.away();
            self.mount = Mount::new(&["--bind", away.to_str().unwrap()], self.path.clone());
            return;
        }
        self.other = None;
        if self.way != Way::Renamed {
            fs::remove_dir_all(&self.path).unwrap();
        }
        fs::rename(self.away(), &self.path).unwrap();
    }

    /// All paths below the folder; `None` where it does not exist.
    fn all(&self) -> Option<Vec<String>> {
        self.path.exists().then(|| {
            let mut found = Vec::new();
            let mut folders = vec![self.path.clone()];
            while let Some(folder) = folders.pop() {
                for name in names_in(&folder) {
                    let path = folder.join(name);
                    found.push(path.to_string_lossy().into_owned());
                    folders.extend(path.is_dir().then_some(path));
                }
            }
            found.sort();
            found
        })
    }
}

/// Runs a test for each way; the way with a mount only where this process may mount.
fn each_way(run: impl Fn(Moved)) {
    for way in [Way::Renamed, Way::Replaced, Way::Used, Way::Unmounted] {
        match Moved::new(way) {
            Some(folder) => run(folder),
            None => eprintln!("without a mount: this process may not mount"),
        }
    }
}

fn assert_gone(error: &Error, folder: &Path, case: &str) {
    let want = format!(
        "the output folder {} is not the one that this worker has opened (unmounted, renamed or \
         removed): put it back, or restart the worker",
        folder.display()
    );
    assert_eq!(error.to_string(), want, "{case}");
    assert_eq!(error.cause(), Cause::Worker, "{case}");
}

fn settlement() -> Settlement {
    Settlement {
        attempt: Attempt::new(1, 2),
        database: A.to_owned(),
        previous: Vec::new(),
        history: Default::default(),
        keep: false,
    }
}

#[test]
fn nothing_is_created_at_the_path_of_a_root_that_was_moved() {
    each_way(|mut folder| {
        let root = open(&folder.path);
        publish(&root, &of(1, 1), &[1]).unwrap();
        let staged = stage(&root, &of(2, 1), &[2]).unwrap();
        let mut output = JobOutput::new(root.clone(), Arc::new(of(3, 1))).unwrap();
        folder.take();
        let before = folder.all();
        let written = output.write(None, &numbers(&[3]));
        let written = written.and_then(|()| output.stage()).and_then(granted);
        let errors = [
            ("publish", granted(staged).err()),
            ("write", written.map_err(|error| root.judged(error)).err()),
            ("start", stage(&root, &of(4, 1), &[4]).err()),
            ("ensure", root.ensure().err()),
            ("bar", root.bar(A, Attempt::new(5, 1)).err()),
            ("settle", root.settle(&settlement()).err()),
            ("settle_failed", root.settle_failed(&of(1, 2)).err()),
        ];
        for (what, error) in errors {
            let case = format!("{what} {:?}", folder.way);
            assert_gone(&error.expect(&case), &folder.path, &case);
            assert_eq!(folder.all(), before, "{case}");
        }
        folder.give();
        root.ensure().unwrap();
        for (job_id, number) in [(2, 2), (3, 2), (4, 1)] {
            publish(&root, &of(job_id, number), &[job_id]).unwrap();
        }
        let files: Vec<String> = (1..5).map(|id| format!("set/a_{id}.parquet")).collect();
        assert_eq!(visible(&folder.path), files, "{:?}", folder.way);
        assert_eq!(names_in(&folder.path.join(".casparian/staging")), [""; 0]);
    });
}

#[test]
fn a_root_that_goes_at_any_step_of_a_publish_fails_the_attempt() {
    for sinks in SINK_LISTS {
        each_way(|folder| {
            let folder = std::cell::RefCell::new(folder);
            let root = open(&folder.borrow().path);
            for stop in 0.. {
                let attempt = |number| job(Some(A), Attempt::new(stop + 1, number), sinks);
                if sinks[0].2 == "error" {
                    let path = &folder.borrow().path;
                    for file in visible(path) {
                        fs::remove_file(path.join(file)).unwrap();
                    }
                }
                let staged = stage(&root, &attempt(1), &[1]).unwrap();
                let (at, before) = (std::cell::Cell::new(0), std::cell::RefCell::new(None));
                let hook = |step| {
                    if at.replace(at.get() + 1) == stop {
                        folder.borrow_mut().take();
                        *before.borrow_mut() = Some((folder.borrow().all(), step));
                    }
                    Ok(())
                };
                let result = staged.publish_by_steps(&[], &|| true, &hook);
                let Some((before, step)) = before.take() else {
                    result.unwrap();
                    assert!(stop > 3);
                    break;
                };
                let case = format!("{sinks:?} {:?} {step:?}", folder.borrow().way);
                match result {
                    Err(Refused::Failed(error)) => {
                        assert_gone(&error, &folder.borrow().path, &case);
                    }
                    other => panic!("{case}: {other:?}"),
                }
                assert_eq!(folder.borrow().all(), before, "{case}");
                folder.borrow_mut().give();
                let published = publish(&root, &attempt(2), &[2]).unwrap();
                assert_eq!(published.artifacts.len(), sinks.len(), "{case}");
                for artifact in published.artifacts {
                    if let Some(file) = artifact.uri.strip_prefix("file://") {
                        assert_eq!(values(Path::new(file)), [2], "{case}");
                    }
                }
                let table = folder.borrow().path.join("x.db");
                if table.exists() {
                    let query = "SELECT x FROM rows WHERE _job_id = ?1";
                    let table = rusqlite::Connection::open(table).unwrap();
                    let value = table.query_row(query, [stop + 1], |row| row.get(0));
                    assert_eq!(value, Ok(2), "{case}");
                }
                let staging = folder.borrow().path.join(".casparian/staging");
                assert_eq!(names_in(&staging), [""; 0], "{case}");
            }
        });
    }
}

/// A file system may give the inode number of a removed folder to a new one.
#[test]
fn a_root_that_was_removed_is_another_one_when_it_is_created_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("out");
    let root = open(&path);
    publish(&root, &of(1, 1), &[1]).unwrap();
    fs::remove_dir_all(&path).unwrap();
    assert_gone(&root.ensure().unwrap_err(), &path, "removed");
    assert!(!path.exists());
    for _ in 0..100 {
        fs::create_dir(&path).unwrap();
        assert_gone(&root.ensure().unwrap_err(), &path, "created again");
        let error = stage(&root, &of(2, 1), &[2]).err().unwrap();
        assert_gone(&error, &path, "created again");
        assert_eq!(names_in(&path), [""; 0]);
        fs::remove_dir(&path).unwrap();
    }
    let again = open(&path);
    publish(&again, &of(2, 2), &[2]).unwrap();
}

/// A file system that is mounted again may have another device number. But these are not the root:
/// another folder with a file of the worker's name, a copy by hard links, a link to the root's new path.
#[test]
fn what_resembles_the_root_is_not_the_root() {
    let mut folder = Moved::new(Way::Renamed).unwrap();
    let root = open(&folder.path);
    let own = format!(".casparian/workers/{}", root.worker());
    let staged = stage(&root, &of(1, 1), &[1]).unwrap();
    folder.take();
    fs::create_dir_all(folder.path.join(".casparian/workers")).unwrap();
    fs::write(folder.path.join(&own), "").unwrap();
    assert_gone(&root.ensure().unwrap_err(), &folder.path, "a file");
    fs::remove_dir_all(&folder.path).unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-al")
        .args([folder.away(), folder.path.clone()])
        .status();
    assert!(copied.unwrap().success());
    assert_gone(&root.ensure().unwrap_err(), &folder.path, "a copy");
    fs::remove_dir_all(&folder.path).unwrap();
    std::os::unix::fs::symlink(folder.away(), &folder.path).unwrap();
    assert_gone(&root.ensure().unwrap_err(), &folder.path, "a link");
    let error = publish(&root, &of(2, 1), &[2]).unwrap_err();
    assert_gone(&error, &folder.path, "a link");
    fs::remove_file(&folder.path).unwrap();
    folder.give();
    root.ensure().unwrap();
    granted(staged).unwrap();
    publish(&root, &of(2, 1), &[2]).unwrap();
    assert_eq!(
        visible(&folder.path),
        ["set/a_1.parquet", "set/a_2.parquet"]
    );
}

#[test]
fn the_folder_of_ours_alone_is_created_again() {
    let fixture = Fixture::new();
    let staged = stage(&fixture.root, &of(1, 1), &[1]).unwrap();
    let output = JobOutput::new(fixture.root.clone(), Arc::new(of(2, 1))).unwrap();
    fs::remove_dir_all(fixture.path(".casparian")).unwrap();
    let error = granted(staged).unwrap_err();
    assert_eq!(error.cause(), Cause::Worker, "{error}");
    let error = stage(&fixture.root, &of(3, 1), &[3]).err().unwrap();
    assert_eq!(error.cause(), Cause::Worker, "{error}");
    fixture.root.ensure().unwrap();
    drop(output);
    for job_id in 1..4 {
        publish(&fixture.root, &of(job_id, 2), &[1]).unwrap();
    }
    assert_eq!(fixture.files().len(), 3);
    assert_eq!(names_in(&fixture.path(".casparian/workers")).len(), 1);
}

/// The file system of a sink's folder, below the root or outside it, is unmounted and mounted again.
#[test]
fn nothing_is_published_into_the_folder_below_a_mount_that_went() {
    let outside = tempfile::tempdir().unwrap();
    let absolute = outside.path().canonicalize().unwrap().join("mount");
    for is_bind in [false, true] {
        for (below, uri) in [
            ("", "parquet://set/a.parquet".to_owned()),
            ("/sub", "parquet://set/sub/a.parquet".to_owned()),
            ("", "sqlite://set/x.db/rows".to_owned()),
            ("/sub", "sqlite://set/sub/x.db/rows".to_owned()),
            ("", format!("sqlite://{}/x.db/rows", absolute.display())),
        ] {
            let (fixture, away) = (Fixture::new(), tempfile::tempdir().unwrap());
            let kind = match is_bind {
                true => ["--bind", away.path().to_str().unwrap()].to_vec(),
                false => vec!["-t", "tmpfs", "tmpfs"],
            };
            let point = match uri.contains("set") {
                true => fixture.path("set"),
                false => absolute.clone(),
            };
            let case = format!("{kind:?} {uri}");
            let of = |job_id| {
                let sinks = [("a", &uri[..], "append")];
                job(Some(A), Attempt::new(job_id, 1), &sinks)
            };
            let Some(mount) = Mount::new(&kind, point.clone()) else {
                eprintln!("skipped: this process may not mount");
                return;
            };
            publish(&fixture.root, &of(1), &[1]).unwrap();
            drop(mount);
            for job_id in [2, 3] {
                let error = publish(&fixture.root, &of(job_id), &[2]).unwrap_err();
                assert_eq!(error.cause(), Cause::Worker, "{case}: {error}");
                let text = error.to_string();
                let want = format!("{}: a file system was mounted there", point.display());
                assert!(text.contains(&want), "{case}: {text}");
                assert_eq!(names_in(&point), [""; 0], "{case}");
            }
            // Published output does not count as removed, either.
            let error = fixture.root.settle(&settlement()).unwrap_err();
            assert!(error.to_string().contains("was mounted"), "{case}: {error}");
            fs::remove_dir(&point).unwrap();
            publish(&fixture.root, &of(4), &[2]).unwrap_err();
            assert!(!point.exists(), "{case}");
            // The file system may have another device number now.
            let _mount = Mount::new(&kind, point.clone()).unwrap();
            publish(&fixture.root, &of(5), &[3]).unwrap();
            assert!(point.join(below.trim_start_matches('/')).is_dir(), "{case}");
        }
    }
}
