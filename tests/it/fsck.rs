//! `casparian fsck`: what it finds, what it leaves as it is, and what it repairs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::common::*;

const THREE_ROWS: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1, 2, 3]})\n";

struct Scene {
    dir: tempfile::TempDir,
    database: PathBuf,
}

impl Scene {
    /// A database with plugin `p`, which writes files, and `t`, which writes rows into a table.
    fn with_plugins() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "p", THREE_ROWS);
        let scene = Scene { database, dir };
        let plugin = scene.dir.path().join("t.py");
        fs::write(&plugin, THREE_ROWS).unwrap();
        let text = scene.database.to_str().unwrap();
        casparian_ok(&["deploy", plugin.to_str().unwrap(), "--database", text]);
        scene.sql(
            "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
             VALUES ('t', 'output', 'sqlite://x.db/rows', 'append')",
        );
        scene
    }

    /// So many jobs have published files, and after them one rows into a table; no program of ours
    /// runs.
    fn published(files: i64) -> Self {
        let scene = Scene::with_plugins();
        let inputs: Vec<PathBuf> = (0..=files)
            .map(|number| {
                let path = scene.dir.path().join(format!("in{number}"));
                fs::write(&path, number.to_string()).unwrap();
                path
            })
            .collect();
        submit(&scene.database, "p", &inputs[1..]);
        submit(&scene.database, "t", &inputs[..1]);
        scene.run(files + 1);
        scene
    }

    /// Runs a job again; gives how it ends.
    fn run_again(&self, job: i64) -> Value {
        self.sql(&format!(
            "UPDATE cf_processing_queue SET status = 'QUEUED' WHERE id = {job}"
        ));
        let (_sentinel, endpoint) = sentinel(&self.database, &[]);
        let _worker = worker(&endpoint, &self.out(), &[]);
        ended(&self.database, job)
    }

    /// A sentinel and a worker until jobs have ended.
    fn run(&self, jobs: i64) {
        let (mut sentinel, endpoint) = sentinel(&self.database, &[]);
        let mut worker = worker(&endpoint, &self.out(), &["--worker-id", "w-1"]);
        for id in 1..=jobs {
            let job = ended(&self.database, id);
            assert_eq!(job["status"], "COMPLETED", "{job}");
        }
        worker.signal("-TERM");
        worker.wait();
        sentinel.signal("-TERM");
        sentinel.wait();
    }

    fn out(&self) -> PathBuf {
        let copy = self.dir.path().join("copy");
        match copy.exists() {
            true => copy,
            false => self.dir.path().join("out"),
        }
    }

    fn private(&self, name: &str) -> PathBuf {
        self.out().join(".casparian").join(name)
    }

    fn id(&self) -> String {
        fs::read_to_string(self.private("owner")).unwrap()
    }

    fn file(&self, job: i64) -> PathBuf {
        self.out().join(format!("p_output_{job}.parquet"))
    }

    fn record(&self, job: i64) -> PathBuf {
        self.private("outputs")
            .join(self.id())
            .join(format!("0/{job}"))
    }

    fn sql(&self, sql: &str) {
        let store = rusqlite::Connection::open(&self.database).unwrap();
        store.execute_batch(sql).unwrap();
    }

    fn status(&self, job: i64) -> String {
        let store = rusqlite::Connection::open(&self.database).unwrap();
        let query = "SELECT status FROM cf_processing_queue WHERE id = ?1";
        store.query_row(query, [job], |row| row.get(0)).unwrap()
    }

    fn fsck(&self, more: &[&str]) -> (Option<i32>, String) {
        let mut command = program("casparian");
        command.args(["fsck", "--database"]).arg(&self.database);
        command.arg("--output").arg(self.out()).args(more);
        let output = output(&mut command);
        (output.status.code(), stdout(&output) + &stderr(&output))
    }

    fn json(&self, more: &[&str]) -> Value {
        let (_, text) = self.fsck(&[&["--json"], more].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Kind and job of each finding.
    fn kinds(&self) -> Vec<(String, Option<i64>)> {
        let findings = self.json(&[])["findings"].take();
        let kind = |finding: &Value| {
            let kind = finding["kind"].as_str().unwrap();
            (kind.to_owned(), finding["job"].as_i64())
        };
        findings.as_array().unwrap().iter().map(kind).collect()
    }
}

/// Everything below a folder: path, size, inode, mode and time of modification.
fn state(folder: &Path) -> Vec<(PathBuf, u64, u64, u32, i64, i64)> {
    let entries = walkdir::WalkDir::new(folder).sort_by_file_name();
    let look = |entry: walkdir::Result<walkdir::DirEntry>| {
        let entry = entry.unwrap();
        let found = entry.metadata().unwrap();
        let time = (found.mtime(), found.mtime_nsec());
        let path = entry.into_path();
        (
            path,
            found.size(),
            found.ino(),
            found.mode(),
            time.0,
            time.1,
        )
    };
    entries.into_iter().map(look).collect()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Changes a byte of a data page and nothing else, as a disk may.
fn rot(path: &Path) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    change(path, |bytes| bytes[16] ^= 1);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(modified).unwrap();
}

#[test]
fn each_difference_is_found_and_nothing_is_changed() {
    let scene = Scene::published(12);
    let (code, text) = scene.fsck(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(
        text,
        "13 jobs, 13 outputs compared; 0 errors, 0 warnings, 0 notes\n"
    );
    let id = scene.id();

    fs::remove_file(scene.file(1)).unwrap();
    change(&scene.file(2), |bytes| bytes.truncate(bytes.len() - 1));
    change(&scene.file(3), |bytes| {
        let end = bytes.len() - 4;
        bytes[end..].copy_from_slice(b"none");
    });
    change(&scene.file(4), |_| {});
    scene.sql("UPDATE cf_processing_queue SET receipt = replace(receipt, '\"rows\":\"3\"', '\"rows\":\"4\"') WHERE id = 5");
    scene.sql("UPDATE cf_processing_queue SET status = 'SKIPPED', published = '[]', receipt = NULL WHERE id = 6");
    scene.sql("UPDATE cf_job_attempt SET status = 'FAILED', cause = 'lost' WHERE job_id = 6");
    scene.sql("DELETE FROM cf_processing_queue WHERE id = 7");
    scene.sql("UPDATE cf_processing_queue SET status = 'RUNNING', worker_id = 'w-9' WHERE id = 8");
    scene.sql("UPDATE cf_processing_queue SET attempt_key = 5 WHERE id = 9; UPDATE cf_job_attempt SET attempt_key = 5 WHERE job_id = 9");
    let bars = scene.private("barred").join(&id).join("0/10");
    fs::create_dir_all(&bars).unwrap();
    fs::write(bars.join("9"), "").unwrap();
    fs::write(scene.record(11), "{").unwrap();
    rot(&scene.file(12));
    let table = rusqlite::Connection::open(scene.out().join("x.db")).unwrap();
    table.execute("DELETE FROM rows WHERE x = 2", []).unwrap();
    drop(table);
    let dead = scene.private("staging").join(format!("{id}.1.2"));
    fs::create_dir_all(&dead).unwrap();
    fs::write(dead.join("worker"), "1-0").unwrap();
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(scene.private("outputs"), open).unwrap();

    let before = state(&scene.out());
    let found = scene.kinds();
    let want = [
        ("permissions", None),
        ("dead-attempt", None),
        ("no-holder", Some(8)),
        ("missing", Some(1)),
        ("changed", Some(2)),
        ("damaged", Some(3)),
        ("touched", Some(4)),
        ("rows", Some(5)),
        ("no-receipt", Some(6)),
        ("no-row", Some(7)),
        ("foreign", Some(9)),
        ("barred", Some(10)),
        ("record", Some(11)),
        ("changed", Some(12)),
        ("rows", Some(13)),
    ];
    let want: Vec<_> = want.map(|(kind, job)| (kind.to_owned(), job)).into();
    assert_eq!(found, want);
    let (code, text) = scene.fsck(&[]);
    assert_eq!(code, Some(1), "{text}");
    assert_eq!(text.lines().count(), want.len() + 1, "{text}");
    assert_eq!(scene.fsck(&[]), (code, text.clone()));
    let (_, quick) = scene.fsck(&["--quick"]);
    assert_eq!(quick.lines().count(), want.len(), "{quick}");
    assert!(!quick.contains("(job 12)"), "{quick}");
    let out = scene.out().canonicalize().unwrap();
    let missing = format!(
        "error: missing: {}/p_output_1.parquet (job 1): the file is not there; run the job again",
        out.display()
    );
    assert!(text.contains(&missing), "{missing}\n{text}");
    assert_eq!(state(&scene.out()), before);
}

/// Jobs start and end while it looks, and their files are replaced.
#[test]
fn it_finds_nothing_beside_a_sentinel_and_a_worker_that_go_on() {
    let scene = Scene::published(8);
    let (_sentinel, endpoint) = sentinel(&scene.database, &[]);
    let _worker = worker(&endpoint, &scene.out(), &[]);
    for _ in 0..5 {
        scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED' WHERE status = 'COMPLETED'");
        until("the jobs have ended", || {
            let (code, text) = scene.fsck(&[]);
            assert_eq!(code, Some(0), "{text}");
            let store = rusqlite::Connection::open(&scene.database).unwrap();
            let left = "SELECT count(*) FROM cf_processing_queue WHERE status != 'COMPLETED'";
            let left: i64 = store.query_row(left, [], |row| row.get(0)).unwrap();
            (left == 0).then_some(())
        });
    }
    assert!(scene.fsck(&["--json"]).1.contains("\"errors\":0"));
}

#[test]
fn command_lines_that_cannot_work_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("q.db");
    casparian_ok(&["init", database.to_str().unwrap()]);
    let (database, missing) = (database.to_str().unwrap(), dir.path().join("none"));
    let missing = missing.to_str().unwrap();
    for (arguments, code, want) in [
        (vec!["--database", database], 2, "--output is missing"),
        (vec!["--output", "x"], 2, "--database is missing"),
        (vec!["--database", database, "-o", missing], 1, "none"),
        (vec!["--database", missing, "-o", "/tmp"], 1, "none"),
        (
            vec!["--database", database, "-o", "/tmp", "x"],
            2,
            "unexpected",
        ),
    ] {
        let output = casparian(&[vec!["fsck"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(want), "{}", stderr(&output));
    }
}

#[test]
fn what_can_be_repaired_is_and_a_run_does_the_rest() {
    let scene = Scene::published(9);
    fs::remove_file(scene.file(1)).unwrap();
    change(&scene.file(2), |bytes| bytes.truncate(bytes.len() - 1));
    change(&scene.file(3), |bytes| {
        let end = bytes.len() - 4;
        bytes[end..].copy_from_slice(b"none");
    });
    let table = rusqlite::Connection::open(scene.out().join("x.db")).unwrap();
    table.execute("DELETE FROM rows WHERE x = 2", []).unwrap();
    drop(table);
    // Lost after they had published: to be settled, and settled by nobody.
    scene.sql(
        "UPDATE cf_processing_queue SET status = 'FAILED', failure_cause = 'lost', \
         published = '[]', receipt = NULL, unsettled = iif(id = 4, 1, 0) WHERE id IN (4, 5); \
         UPDATE cf_job_attempt SET status = 'FAILED', cause = 'lost' WHERE job_id IN (4, 5)",
    );
    // Cancelled by another program.
    scene.sql(
        "UPDATE cf_processing_queue SET status = 'SKIPPED', published = '[]', receipt = NULL \
         WHERE id = 6; UPDATE cf_job_attempt SET status = 'TAKEN' WHERE job_id = 6",
    );
    scene.sql("UPDATE cf_processing_queue SET status = 'FAILED' WHERE id = 7");
    fs::remove_file(scene.file(7)).unwrap();
    scene.sql("DELETE FROM cf_processing_queue WHERE id = 8");
    let dead = scene.private("staging").join(format!("{}.1.2", scene.id()));
    fs::create_dir_all(&dead).unwrap();
    fs::write(dead.join("worker"), "1-0").unwrap();
    // It has a name of ours, and nothing says that it is.
    let strangers = scene.out().join("p_output_99.parquet");
    fs::write(&strangers, "").unwrap();

    let value = scene.json(&["--repair"]);
    let summary = &value["summary"];
    let counts = [
        "errors",
        "warnings",
        "notes",
        "repaired",
        "queued_again",
        "settled",
    ];
    let counts = counts.map(|name| summary[name].as_u64().unwrap());
    // Job 7 is not COMPLETED: nothing asks for its output.
    assert_eq!(counts, [0, 1, 1, 8, 4, 3], "{value}");
    assert!(!dead.exists() && strangers.exists());
    assert!(scene.file(8).exists() && !scene.file(6).exists());
    for (job, status) in [
        (1, "QUEUED"),
        (4, "COMPLETED"),
        (5, "COMPLETED"),
        (6, "SKIPPED"),
    ] {
        assert_eq!(scene.status(job), status, "{job}");
    }
    scene.sql("UPDATE cf_processing_queue SET published = '[]' WHERE id = 7");
    let (sentinel, endpoint) = sentinel(&scene.database, &[]);
    let worker = worker(&endpoint, &scene.out(), &[]);
    for job in [1, 2, 3, 10] {
        assert_eq!(ended(&scene.database, job)["status"], "COMPLETED");
    }
    drop((worker, sentinel));
    let (code, text) = scene.fsck(&[]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn output_of_another_version_than_the_job_has_is_found_and_made_again() {
    let scene = Scene::published(2);
    // By another program, while the job is COMPLETED.
    scene.sql(
        "INSERT INTO cf_file_hash_registry (content_hash, size_bytes) VALUES ('other', 1); \
         INSERT INTO cf_file_version (location_id, content_hash, size_bytes, modified_time) \
         SELECT location_id, 'other', 1, modified_time FROM cf_file_version \
         WHERE id = (SELECT file_version_id FROM cf_processing_queue WHERE id = 1); \
         UPDATE cf_processing_queue SET published_version_id = last_insert_rowid() \
         WHERE id = 1",
    );
    assert_eq!(scene.kinds(), [("stale".to_owned(), Some(1))]);
    let value = scene.json(&["--repair"]);
    assert_eq!(value["summary"]["queued_again"], 1, "{value}");
    assert_eq!(value["findings"].as_array().unwrap().len(), 1, "{value}");
    assert_eq!(scene.status(1), "QUEUED");
    assert_eq!(scene.run_again(1)["status"], "COMPLETED");
    let (code, text) = scene.fsck(&[]);
    assert_eq!(code, Some(0), "{text}");
}

/// Something else in the place of a file keeps a job from publishing: the job is queued again once it
/// has been removed.
#[test]
fn what_is_in_the_way_of_a_file_must_be_removed_before_a_repair() {
    let scene = Scene::published(4);
    for (job, kind) in [(1, "link"), (2, "FIFO"), (3, "folder")] {
        let path = scene.file(job);
        fs::remove_file(&path).unwrap();
        match kind {
            "link" => std::os::unix::fs::symlink("elsewhere", &path).unwrap(),
            "folder" => fs::create_dir(&path).unwrap(),
            _ => assert!(
                Command::new("mkfifo")
                    .arg(&path)
                    .status()
                    .unwrap()
                    .success()
            ),
        }
    }
    fs::remove_file(scene.file(4)).unwrap();
    let (table, other) = (scene.out().join("x.db"), scene.out().join("y.db"));
    fs::rename(&table, &other).unwrap();
    fs::create_dir(&table).unwrap();
    let value = scene.json(&["--repair"]);
    assert_eq!(value["summary"]["queued_again"], 1, "{value}");
    for (job, what) in [
        (1, "a symbolic link"),
        (2, "a FIFO"),
        (3, "a folder"),
        (5, "a folder"),
    ] {
        let mut findings = value["findings"].as_array().unwrap().iter();
        let finding = findings
            .find(|finding| finding["job"] == job)
            .unwrap_or_else(|| panic!("{job}: {value}"));
        assert_eq!(finding["kind"], "changed", "{finding}");
        assert!(finding["repaired"].is_null(), "{finding}");
        assert!(
            finding["what"].as_str().unwrap().contains(what),
            "{finding}"
        );
        let to_do = finding["to_do"].as_str().unwrap();
        assert!(to_do.starts_with("remove it"), "{finding}");
        assert_eq!(scene.status(job), "COMPLETED");
    }
    assert_eq!(scene.fsck(&[]).0, Some(1));
    fs::remove_file(scene.file(1)).unwrap();
    fs::remove_file(scene.file(2)).unwrap();
    fs::remove_dir(scene.file(3)).unwrap();
    fs::remove_dir(&table).unwrap();
    fs::rename(&other, &table).unwrap();
    let value = scene.json(&["--repair"]);
    assert_eq!(value["summary"]["queued_again"], 3, "{value}");
    let (_sentinel, endpoint) = sentinel(&scene.database, &[]);
    let _worker = worker(&endpoint, &scene.out(), &[]);
    for job in 1..=4 {
        assert_eq!(ended(&scene.database, job)["status"], "COMPLETED");
    }
}

/// A plugin's sinks lie in a folder in whose place there is a file, or a link that leads elsewhere.
#[test]
fn what_is_in_the_way_of_a_folder_must_be_removed_before_a_repair() {
    let scene = Scene::published(1);
    scene.sql("UPDATE cf_topic_config SET uri = 'parquet://sub/of/'");
    assert_eq!(scene.run_again(2)["status"], "COMPLETED");
    let folder = scene.out().join("sub");
    fs::remove_dir_all(&folder).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::create_dir(elsewhere.path().join("of")).unwrap();
    for kind in ["a file", "a symbolic link"] {
        match kind {
            "a file" => fs::write(&folder, "").unwrap(),
            _ => std::os::unix::fs::symlink(elsewhere.path(), &folder).unwrap(),
        }
        let (code, text) = scene.fsck(&["--repair"]);
        assert_eq!(code, Some(1));
        let wanted = format!("{kind} is at its path, not a folder; remove it");
        assert!(text.contains(&wanted), "{text}");
        assert_eq!(scene.status(2), "COMPLETED");
        fs::remove_file(&folder).unwrap();
    }
    scene.fsck(&["--repair"]);
    assert_eq!(scene.status(2), "QUEUED");
}

#[test]
fn a_repair_is_refused_while_a_sentinel_or_a_worker_works() {
    let scene = Scene::published(1);
    fs::remove_file(scene.file(1)).unwrap();
    let (mut sentinel, endpoint) = sentinel(&scene.database, &[]);
    let mut worker = worker(&endpoint, &scene.out(), &["--worker-id", "w-2"]);
    worker.line_with("connected");
    for (what, ends) in [("sentinel", &mut sentinel), ("workers", &mut worker)] {
        let (code, text) = scene.fsck(&["--repair"]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(what), "{text}");
        assert_eq!(scene.status(1), "COMPLETED");
        ends.kill();
    }
    assert_eq!(scene.fsck(&["--repair"]).0, Some(0));
    assert_eq!(scene.status(1), "QUEUED");
}

/// Two workers with folders of their own have published the job.
#[test]
fn a_repair_creates_nothing_beside_a_file_that_is_no_queue() {
    for content in ["text", "empty", "sqlite"] {
        let dir = tempfile::tempdir().unwrap();
        let (elsewhere, out) = (dir.path().join("elsewhere"), dir.path().join("out"));
        let (file, link) = (elsewhere.join("q"), out.join("queue.sqlite"));
        fs::create_dir(&elsewhere).unwrap();
        fs::create_dir(&out).unwrap();
        match content {
            "text" => fs::write(&file, "a text of others, no database").unwrap(),
            "empty" => fs::write(&file, "").unwrap(),
            _ => drop(sql(&file, "CREATE TABLE t (a)")),
        }
        let before = fs::read(&file).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let paths = [link.to_str().unwrap(), out.to_str().unwrap()];
        let ended = casparian(&["fsck", "--repair", "-d", paths[0], "-o", paths[1]]);
        assert_eq!(ended.status.code(), Some(1), "{content}: {ended:?}");
        assert!(stderr(&ended).contains(paths[0]), "{content}: {ended:?}");
        let names = fs::read_dir(&elsewhere).unwrap();
        assert_eq!(names.count(), 1, "{content}: {ended:?}");
        assert_eq!(fs::read(&file).unwrap(), before, "{content}");
    }
}

#[test]
fn output_of_a_job_in_a_second_folder_is_found_and_removed() {
    let scene = Scene::published(1);
    let second = scene.dir.path().join("second");
    scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED' WHERE id = 1");
    let (sentinel, endpoint) = sentinel(&scene.database, &[]);
    let worker = worker(&endpoint, &second, &[]);
    assert_eq!(ended(&scene.database, 1)["status"], "COMPLETED");
    drop((worker, sentinel));
    let (code, text) = scene.fsck(&[]);
    assert!(text.contains("warning: duplicate: file://"), "{text}");
    assert_eq!(code, Some(1), "{text}");
    let both = ["--output", second.to_str().unwrap()];
    let (code, text) = scene.fsck(&[&both[..], &["--repair"]].concat());
    assert_eq!(code, Some(0), "{text}");
    assert!(!scene.file(1).exists());
    assert!(second.join("p_output_1.parquet").exists());
    assert_eq!(scene.fsck(&both).0, Some(0));
}

/// Both ways out of a refusal are named by it.
fn assert_refused(job: &Value) {
    assert_eq!(job["status"], "FAILED", "{job}");
    let error = job["error"].as_str().unwrap();
    assert!(error.contains("casparian fsck --adopt"), "{error}");
}

#[test]
fn a_restored_database_adopts_what_was_published_after_its_backup() {
    let scene = Scene::published(3);
    let backup = scene.dir.path().join("backup");
    fs::copy(&scene.database, &backup).unwrap();
    scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED' WHERE id != 3");
    scene.run(4);
    fs::copy(&backup, &scene.database).unwrap();
    let foreign = [1, 2, 4].map(|job| ("foreign".to_owned(), Some(job)));
    assert_eq!(scene.kinds(), foreign);
    let refused = scene.run_again(2);
    assert_refused(&refused);
    assert!(
        refused["error"]
            .as_str()
            .unwrap()
            .contains("--new-identity")
    );

    let (code, text) = scene.fsck(&["--adopt"]);
    // The refused job is settled by the next sentinel.
    assert_eq!(
        text.matches("the database owns it now").count(),
        3,
        "{text}"
    );
    // The file of job 1 has the hash that its earlier receipt has. Rows of tables have no hash.
    assert_eq!(scene.kinds(), [("stale".to_owned(), Some(4))], "{text}");
    assert_eq!(code, Some(1), "{text}");
    for job in [1, 2, 4] {
        let done = scene.run_again(job);
        assert_eq!(done["status"], "COMPLETED", "{done}");
        assert!(done["attempt"].as_i64().unwrap() > 2, "{done}");
    }
    assert_eq!(scene.fsck(&[]).0, Some(0));
    assert_eq!(visible_files(&scene.out()).len(), 4);
}

/// Writes the content of its file, its parameter and a text of its code into a table and into a file.
fn echo(code: &str) -> String {
    format!(
        "import pyarrow as pa\nfrom casparian_flow.sdk import PluginMetadata\nMANIFEST = PluginMetadata(pattern='*', topic='output', sinks={{'t': 'sqlite://x.db/t'}})\nclass Handler:\n    def configure(self, ctx, config):\n        self.ctx, self.x = ctx, config.get('x')\n    def execute(self, path):\n        table = pa.table({{'x': [f'{{open(path).read()}} {{self.x}} {code}']}})\n        self.ctx.publish('t', table)\n        self.ctx.publish('b', table)\n"
    )
}

fn echoed(out: &Path) -> Vec<String> {
    let database = rusqlite::Connection::open(out.join("x.db")).unwrap();
    let mut rows = database.prepare("SELECT x FROM t ORDER BY 1").unwrap();
    let rows = rows.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// The queue of a run is restored, and so are the file, the code or the parameter. What was published in
/// between with others is adopted, and does not count as made with those of the backup.
#[test]
fn adopted_output_that_was_made_otherwise_is_not_skipped() {
    let before = ("one", "c1", "1");
    for between in [
        ("two", "c1", "1"),
        ("one", "c2", "1"),
        ("one", "c1", "2"),
        before,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("in")).unwrap();
        let run = |(content, code, x): (&str, &str, &str), more: &[&str]| {
            fs::write(path("in/a"), content).unwrap();
            fs::write(path("p.py"), echo(code)).unwrap();
            let mut command = program("casparian");
            command.arg("run").args([path("p.py"), path("in")]);
            command.arg("-o").arg(path("out")).args(["--json"]);
            command.arg("--param").arg(format!("x={x}")).args(more);
            let output = output(&mut command);
            assert!(output.status.success(), "{}", stderr(&output));
            let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(echoed(&path("out")), [format!("{content} {x} {code}")]);
            summary["totals"]["skipped"].as_i64().unwrap()
        };
        let database = path("out/.casparian/queue.sqlite");
        let fsck = |more: &[&str]| {
            let mut command = program("casparian");
            command.args(["fsck", "--database"]).arg(&database);
            command.arg("--output").arg(path("out")).args(more);
            let output = output(&mut command);
            (output.status.code(), stdout(&output) + &stderr(&output))
        };
        assert_eq!(run(before, &[]), 0);
        fs::copy(&database, path("backup")).unwrap();
        assert_eq!(run(between, &["--force"]), 0);
        fs::copy(path("backup"), &database).unwrap();
        let (code, text) = fsck(&["--adopt"]);
        assert!(text.contains("error: stale: "), "{between:?} {text}");
        assert_eq!(code, Some(1), "{between:?} {text}");
        assert_eq!(run(before, &[]), 0, "{between:?}");
        let (code, text) = fsck(&[]);
        assert_eq!(code, Some(0), "{between:?} {text}");
        assert_eq!(run(before, &[]), 1, "{between:?}");
    }
}

/// The same in the database of a deployment: the job is reported and queued again.
#[test]
fn adopted_output_of_a_completed_job_is_stale() {
    for options in [&["--adopt"][..], &["--adopt", "--repair"]] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "p", &echo("c1"));
        let scene = Scene { database, dir };
        let input = scene.dir.path().join("in");
        fs::write(&input, "one").unwrap();
        submit(&scene.database, "p", std::slice::from_ref(&input));
        scene.run(1);
        let backup = scene.dir.path().join("backup");
        fs::copy(&scene.database, &backup).unwrap();
        fs::write(&input, "two, longer").unwrap();
        scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
        scene.run(1);
        assert_eq!(echoed(&scene.out()), ["two, longer None c1"]);
        fs::copy(&backup, &scene.database).unwrap();
        fs::write(&input, "one").unwrap();
        let (code, text) = scene.fsck(options);
        assert!(text.contains("1 adopted"), "{text}");
        if !options.contains(&"--repair") {
            assert_eq!(code, Some(1), "{text}");
            assert_eq!(scene.kinds(), [("stale".to_owned(), Some(1))]);
            let value = scene.json(&["--repair"]);
            assert_eq!(value["summary"]["queued_again"], 1, "{value}");
        }
        assert_eq!(scene.status(1), "QUEUED", "{text}");
        assert_eq!(echoed(&scene.out()), ["two, longer None c1"]);
        scene.run(1);
        assert_eq!(echoed(&scene.out()), ["one None c1"]);
        let (code, text) = scene.fsck(&[]);
        assert_eq!(code, Some(0), "{text}");
    }
}

/// Jobs of a restored database whose output was published after the backup. Adoption, and what follows it,
/// removes none of this output, whatever the row of the job is: it stays until another attempt has published.
#[test]
fn adopted_output_stays_until_another_attempt_publishes() {
    // What the row is when it is adopted, and its status after that. The table is of the first job.
    let cases = [
        ("the refused job of the table", "", "QUEUED"),
        ("refused", "", "QUEUED"),
        ("refused twice", "", "QUEUED"),
        (
            "queued, never run",
            "status = 'QUEUED', attempt = 0, attempt_key = NULL",
            "QUEUED",
        ),
        (
            "failed before the backup",
            "status = 'FAILED', failure_cause = 'plugin', attempt = 0, unsettled = 0",
            "FAILED",
        ),
        (
            "lost",
            "status = 'FAILED', failure_cause = 'lost', unsettled = 1",
            "QUEUED",
        ),
        ("cancelled", "status = 'SKIPPED', unsettled = 1", "SKIPPED"),
        (
            "completed without output",
            "status = 'COMPLETED', published = '[]', failure_cause = NULL, attempt = 0",
            "COMPLETED",
        ),
    ];
    let scene = Scene::with_plugins();
    let inputs: Vec<PathBuf> = (1..=cases.len())
        .map(|number| scene.dir.path().join(format!("in{number}")))
        .collect();
    let write = || {
        for (number, input) in inputs.iter().enumerate() {
            fs::write(input, number.to_string()).unwrap();
        }
    };
    write();
    submit(&scene.database, "t", &inputs[..1]);
    submit(&scene.database, "p", &inputs[1..]);
    let jobs = i64::try_from(cases.len()).unwrap();
    let backup = scene.dir.path().join("backup");
    fs::copy(&scene.database, &backup).unwrap();
    scene.run(jobs);
    let published = || -> Vec<Vec<u8>> {
        let rows = rusqlite::Connection::open(scene.out().join("x.db")).unwrap();
        let query = "SELECT count(*) FROM rows WHERE x IN (1, 2, 3)";
        let count: i64 = rows.query_row(query, [], |row| row.get(0)).unwrap();
        let files = (2..=jobs).map(|job| fs::read(scene.file(job)).unwrap_or_default());
        files.chain([count.to_string().into_bytes()]).collect()
    };
    let before = published();
    fs::copy(&backup, &scene.database).unwrap();
    let end_all = || {
        let (_sentinel, endpoint) = sentinel(&scene.database, &[]);
        let _worker = worker(&endpoint, &scene.out(), &[]);
        let is_waiting = |job| ["QUEUED", "RUNNING", "PENDING"].contains(&&*scene.status(job));
        let ended = |job| until("the job ends", || (!is_waiting(job)).then_some(()));
        (1..=jobs).for_each(ended);
    };
    end_all();
    (1..=jobs).for_each(|id| assert_refused(&job(&scene.database, id)));
    scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED' WHERE id = 3");
    end_all();
    assert_eq!(job(&scene.database, 3)["attempt"], 2);
    for (id, (_, row, _)) in (1..).zip(&cases) {
        if !row.is_empty() {
            scene.sql(&format!(
                "UPDATE cf_processing_queue SET {row} WHERE id = {id}"
            ));
        }
    }
    assert_eq!(published(), before, "refused");

    let (_, text) = scene.fsck(&["--adopt"]);
    assert!(text.contains(&format!("{jobs} adopted")), "{text}");
    for (id, (name, _, status)) in (1..).zip(&cases) {
        assert_eq!(scene.status(id), *status, "{name}: {text}");
    }
    let queued = "the database owns it now, and the job is queued again: the output stays until";
    assert_eq!(text.matches(queued).count(), 4, "{text}");
    assert_eq!(published(), before, "adopted");
    let (_, text) = scene.fsck(&["--repair"]);
    assert_eq!(published(), before, "repaired {text}");
    // The jobs that are queued again fail, because their inputs do not exist.
    inputs
        .iter()
        .for_each(|input| fs::remove_file(input).unwrap());
    end_all();
    assert_eq!(scene.status(1), "FAILED");
    assert_eq!(published(), before, "failed again");
    let (_, text) = scene.fsck(&["--repair"]);
    assert_eq!(published(), before, "repaired again {text}");
    write();
    scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
    scene.run(jobs);
    let (code, text) = scene.fsck(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(visible_files(&scene.out()).len(), cases.len());
}

/// The content of a database is set back to a backup while its sentinel works, as `.restore` of sqlite3 does. In
/// releases in which all attempts of a sentinel had one key, the attempts before and after that had the same.
#[test]
fn a_database_that_is_restored_under_its_sentinel_can_be_adopted() {
    for has_same_keys in [false, true] {
        let scene = Scene::published(2);
        let restore = "DELETE FROM cf_job_attempt; \
             UPDATE cf_processing_queue SET status = 'QUEUED', attempt = 0, attempt_key = NULL, \
             receipt = NULL, published = NULL, unsettled = NULL";
        scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
        let (sentinel, endpoint) = sentinel(&scene.database, &[]);
        let worker = worker(&endpoint, &scene.out(), &[]);
        (1..=3).for_each(|id| assert_eq!(ended(&scene.database, id)["status"], "COMPLETED"));
        // The numbers of the attempts before it are used again.
        for again in [
            "",
            restore,
            "UPDATE cf_processing_queue SET status = 'QUEUED'",
        ] {
            scene.sql(again);
            let is_refused = !again.is_empty();
            (1..=3)
                .map(|id| ended(&scene.database, id))
                .filter(|_| is_refused)
                .for_each(|job| assert_refused(&job));
        }
        drop((worker, sentinel));
        if has_same_keys {
            for id in 1..=3 {
                let record: Value =
                    serde_json::from_slice(&fs::read(scene.record(id)).unwrap()).unwrap();
                let key = &record["key"];
                scene.sql(&format!(
                    "UPDATE cf_job_attempt SET attempt_key = {key} WHERE job_id = {id}; \
                     UPDATE cf_processing_queue SET attempt_key = {key} WHERE id = {id}"
                ));
            }
        }
        let foreign = [1, 2, 3].map(|job| ("foreign".to_owned(), Some(job)));
        let mut found = scene.kinds();
        // Attempts that were barred by those before the restore count as lost.
        found.retain(|(kind, _)| kind != "unsettled");
        assert_eq!(found, foreign, "{has_same_keys}");
        let (code, text) = scene.fsck(&["--adopt"]);
        assert_eq!(code, Some(0), "{has_same_keys} {text}");
        assert!(
            text.contains("3 jobs queued again, 0 settled, 3 adopted"),
            "{text}"
        );
        scene.run(3);
        assert_eq!(scene.fsck(&[]).0, Some(0), "{has_same_keys}");
        assert_eq!(visible_files(&scene.out()).len(), 3);
    }
}

/// Another program has emptied the columns of a row that had a receipt. An empty list is ours: the
/// output was removed, and is there again.
#[test]
fn output_of_a_row_without_its_list_is_named_again() {
    let scene = Scene::published(3);
    scene.sql(
        "UPDATE cf_processing_queue SET published = NULL, receipt = NULL WHERE id IN (1, 4); \
         UPDATE cf_processing_queue SET status = 'FAILED', published = NULL, receipt = NULL \
         WHERE id = 2; \
         UPDATE cf_processing_queue SET published = '[]', receipt = NULL WHERE id = 3",
    );
    let (_, found) = scene.fsck(&[]);
    for job in 1..=4 {
        assert!(
            found.contains(&format!("(job {job}): no receipt names it")),
            "{found}"
        );
    }
    let (code, text) = scene.fsck(&["--repair"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("its row names it again"), "{text}");
    let files = [1, 2, 3].map(|job| scene.file(job).exists());
    assert_eq!(files, [true, true, false], "{text}");
    assert_eq!(scene.fsck(&[]).0, Some(0));
    let done = scene.run_again(1);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert_eq!(scene.fsck(&[]).0, Some(0));
}

/// Another program has deleted the history of attempts. The row still has its last attempt.
#[test]
fn output_of_the_last_attempt_is_known_without_the_history() {
    let scene = Scene::published(2);
    scene.sql("UPDATE cf_processing_queue SET status = 'FAILED' WHERE id = 2");
    scene.sql("DELETE FROM cf_job_attempt");
    let (code, text) = scene.fsck(&[]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = scene.fsck(&["--repair"]);
    assert_eq!(code, Some(0), "{text}");
    // The row has a later attempt than the one that has published.
    scene.sql("UPDATE cf_processing_queue SET attempt = 2, attempt_key = 5 WHERE id = 1");
    let (_, text) = scene.fsck(&[]);
    assert!(
        text.contains("or rows of cf_job_attempt were deleted"),
        "{text}"
    );
    assert_eq!(scene.fsck(&["--adopt"]).0, Some(0));
    assert_eq!(scene.run_again(1)["status"], "COMPLETED");
    assert_eq!(scene.fsck(&[]).0, Some(0));
}

/// A repair reports what it has changed, once.
#[test]
fn a_repair_that_changes_nothing_is_not_reported_as_one() {
    let scene = Scene::published(2);
    // The row has another name of the output than its record, as after a move that was taken back.
    let elsewhere = scene.out().join("p_output/in1_1.parquet");
    scene.sql(&format!(
        "UPDATE cf_processing_queue SET published = '[\"file://{}\"]' WHERE id = 1; \
         UPDATE cf_processing_queue SET status = 'FAILED', published = '[]' WHERE id = 2",
        elsewhere.display()
    ));
    let value = scene.json(&["--repair"]);
    let findings = value["findings"].as_array().unwrap();
    let of = |job: i64| {
        let found = findings.iter().filter(move |finding| finding["job"] == job);
        found.collect::<Vec<_>>()
    };
    let named = of(1);
    assert!(!named.is_empty(), "{value}");
    for finding in named {
        let repaired = finding["repaired"].as_str().unwrap_or_default();
        assert!(repaired.contains("its row names it again"), "{value}");
    }
    // Nothing shows whether this output is to stay.
    let stuck = of(2);
    assert_eq!(stuck.len(), 1, "{value}");
    assert_eq!(stuck[0]["repaired"], Value::Null, "{value}");
    let to_do = stuck[0]["to_do"].as_str().unwrap();
    assert!(to_do.contains("--repair cannot settle it"), "{value}");
    assert_eq!(value["summary"]["settled"], 1, "{value}");
    assert_eq!(value["summary"]["warnings"], 1, "{value}");
    assert!(scene.file(1).exists() && scene.file(2).exists());
    assert_eq!(scene.kinds(), [("no-receipt".to_owned(), Some(2))]);
    // As the advice says.
    assert_eq!(scene.run_again(2)["status"], "COMPLETED");
    assert_eq!(scene.fsck(&[]).0, Some(0));
}

#[test]
fn a_copy_with_another_identity_adopts_the_output_of_its_original() {
    let scene = Scene::published(1);
    let id = scene.id();
    let text = scene.database.to_str().unwrap();
    casparian_ok(&["init", "--new-identity", text]);
    let other = scene.dir.path().join("other.db");
    casparian_ok(&["init", other.to_str().unwrap()]);
    let out = scene.out();
    let arguments = [
        "fsck",
        "--adopt",
        "--database",
        other.to_str().unwrap(),
        "--output",
    ];
    let refused = casparian(&[&arguments[..], &[out.to_str().unwrap()]].concat());
    assert!(
        stderr(&refused).contains("no receipt"),
        "{}",
        stderr(&refused)
    );

    let (code, text) = scene.fsck(&[]);
    assert!(text.contains("error: owner: "), "{text}");
    assert_eq!(code, Some(1), "{text}");
    let (code, text) = scene.fsck(&["--adopt"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(&format!("its identity is {id}")), "{text}");
    for job in [1, 2] {
        let done = scene.run_again(job);
        assert_eq!(done["status"], "COMPLETED", "{done}");
    }
    assert_eq!(scene.fsck(&[]).0, Some(0));
    assert_eq!(visible_files(&scene.out()).len(), 2);
}

/// Files have other inodes there, and receipts name the folder that they were copied from.
#[test]
fn a_copied_output_folder_is_adopted() {
    for is_moved in [false, true] {
        let scene = Scene::published(1);
        let (out, copy) = (scene.out(), scene.dir.path().join("copy"));
        let status = std::process::Command::new("cp")
            .arg("-a")
            .args([&out, &copy])
            .status();
        assert!(status.unwrap().success());
        if is_moved {
            fs::remove_dir_all(&out).unwrap();
        }
        // A file that was damaged on the way is not what was published.
        change(&scene.file(1), |bytes| bytes[16] ^= 1);
        let (code, text) = scene.fsck(&["--adopt"]);
        assert_eq!(code, Some(1), "{is_moved} {text}");
        assert!(
            text.contains("error: changed:") && text.contains("(job 1)"),
            "{text}"
        );
        change(&scene.file(1), |bytes| bytes[16] ^= 1);
        let (code, text) = scene.fsck(&["--adopt"]);
        assert_eq!(code, Some(0), "{is_moved} {text}");
        for job in [1, 2] {
            let done = scene.run_again(job);
            assert_eq!(done["status"], "COMPLETED", "{is_moved} {done}");
        }
        let (code, text) = scene.fsck(&[]);
        assert_eq!(code, Some(0), "{is_moved} {text}");
        assert!(text.starts_with("2 jobs, 2 outputs compared;"), "{text}");
        assert_eq!(visible_files(&copy).len(), 2);
    }
}

/// A scene whose sink of mode `replace` three jobs have published into, one after another. `ABS` in
/// the URI stands for a folder outside the root.
fn replaced(uri: &str) -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "p", THREE_ROWS);
    let scene = Scene { database, dir };
    scene.sql(&format!(
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
         VALUES ('p', 'output', '{}', 'replace')",
        uri.replace("ABS", scene.dir.path().to_str().unwrap())
    ));
    for id in 1..=3 {
        let input = scene.dir.path().join(format!("in{id}"));
        fs::write(&input, id.to_string()).unwrap();
        submit(&scene.database, "p", &[input]);
        scene.run(id);
    }
    scene
}

/// Jobs whose output another one has replaced stay COMPLETED, and their receipts name what went.
#[test]
fn output_that_another_job_has_replaced_is_not_missed() {
    for uri in [
        "parquet://o.parquet",
        "sqlite://o.db/rows",
        "sqlite://ABS/o.db/rows",
    ] {
        let scene = replaced(uri);
        let (code, text) = scene.fsck(&[]);
        assert_eq!(code, Some(0), "{uri} {text}");
        // What is known of the last one makes no difference.
        for change in [
            "DELETE FROM cf_processing_queue WHERE id = 3",
            "UPDATE cf_topic_config SET mode = 'append'",
            "UPDATE cf_topic_config SET mode = 'replace'",
        ] {
            scene.sql(change);
            let (_, text) = scene.fsck(&["--repair"]);
            assert!(
                text.contains("0 jobs queued again"),
                "{uri} {change} {text}"
            );
            assert!(!text.contains("missing"), "{uri} {change} {text}");
        }
        // Where that one has gone, too, all of them are.
        match uri.starts_with("parquet") {
            true => fs::remove_file(scene.out().join("o_3.parquet")).unwrap(),
            false if uri.contains("ABS") => fs::remove_file(scene.dir.path().join("o.db")).unwrap(),
            false => fs::remove_file(scene.out().join("o.db")).unwrap(),
        }
        let kinds = scene.kinds();
        let missing = kinds.iter().filter(|(kind, _)| kind == "missing");
        assert_eq!(missing.count(), 2, "{uri} {kinds:?}");
        // The output of the last one of those that are known is what comes back.
        let (_, text) = scene.fsck(&["--repair"]);
        assert!(text.contains("1 jobs queued again"), "{uri} {text}");
        assert_eq!(job(&scene.database, 1)["status"], "COMPLETED", "{uri}");
    }
}

/// The last publisher's other attempts went elsewhere: what stood before is not put in its place.
#[test]
fn a_repair_queues_no_job_that_would_replace_the_output_of_another() {
    for uri in ["parquet://o.parquet", "sqlite://o.db/rows"] {
        let scene = replaced(uri);
        let elsewhere = uri.replace("o.", "elsewhere.");
        scene.sql(&format!("UPDATE cf_topic_config SET uri = '{elsewhere}'"));
        assert_eq!(scene.run_again(3)["status"], "COMPLETED");
        let (_, text) = scene.fsck(&["--repair"]);
        assert!(text.contains("0 jobs queued again"), "{uri} {text}");
        assert!(scene.out().join("elsewhere_3.parquet").exists() || uri.contains("sqlite"));
    }
}

/// Of the jobs of a sink as it was when they published.
#[test]
fn a_repair_knows_the_sinks_of_then() {
    for change in ["uri = 'parquet://p.parquet'", "mode = 'append'"] {
        let scene = replaced("parquet://o.parquet");
        scene.sql(&format!("UPDATE cf_topic_config SET {change}"));
        fs::remove_file(scene.out().join("o_3.parquet")).unwrap();
        let (_, text) = scene.fsck(&["--repair"]);
        assert!(text.contains("1 jobs queued again"), "{change} {text}");
        assert_eq!(job(&scene.database, 3)["status"], "QUEUED", "{change}");
    }
    // One that was added to it since is another matter.
    let scene = replaced("parquet://o.parquet");
    scene.sql("UPDATE cf_topic_config SET mode = 'append'");
    let input = scene.dir.path().join("in4");
    fs::write(&input, "4").unwrap();
    submit(&scene.database, "p", &[input]);
    scene.run(4);
    fs::remove_file(scene.out().join("o_4.parquet")).unwrap();
    let (_, text) = scene.fsck(&["--repair"]);
    assert!(text.contains("1 jobs queued again"), "{text}");
    assert_eq!(job(&scene.database, 4)["status"], "QUEUED");
}

/// A restored database can own attempts whose output has gone since, too.
#[test]
fn attempts_without_their_output_are_adopted() {
    for has_replaced in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "p", THREE_ROWS);
        let scene = Scene { database, dir };
        if has_replaced {
            scene.sql(
                "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
                 VALUES ('p', 'output', 'parquet://o.parquet', 'replace')",
            );
        }
        let inputs = ["a", "b"].map(|name| scene.dir.path().join(name));
        for input in &inputs {
            fs::write(input, "").unwrap();
        }
        submit(&scene.database, "p", &inputs[..1]);
        scene.run(1);
        let backup = scene.dir.path().join("backup");
        fs::copy(&scene.database, &backup).unwrap();
        scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
        scene.run(1);
        match has_replaced {
            true => {
                submit(&scene.database, "p", &inputs[1..]);
                scene.run(2);
            }
            false => fs::remove_file(&visible_files(&scene.out())[0]).unwrap(),
        }
        fs::copy(&backup, &scene.database).unwrap();
        let (_, text) = scene.fsck(&["--adopt"]);
        assert!(text.contains("the database owns it now"), "{text}");
        let left = scene.kinds();
        assert!(
            left.iter()
                .all(|(kind, job)| kind != "foreign" || *job != Some(1)),
            "{left:?}"
        );
        let done = scene.run_again(1);
        assert_eq!(done["status"], "COMPLETED", "{has_replaced} {done}");
    }
}

/// A run over the copy fails, since the files there are of its original. Its files can still be
/// adopted, and none is forgotten.
#[test]
fn a_copied_output_folder_is_adopted_after_a_run_over_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let plugin = "import pyarrow as pa\nfrom casparian_flow.sdk import PluginMetadata\nMANIFEST = PluginMetadata(pattern='*', topic='output', sinks={'t': 'sqlite://x.db/t'})\nclass Handler:\n    def configure(self, ctx, config):\n        self.ctx = ctx\n    def execute(self, path):\n        self.ctx.publish('t', pa.table({'x': [open(path).read()]}))\n        self.ctx.publish('b', pa.table({'x': [1, 2, 3]}))\n";
    fs::write(path("p.py"), plugin).unwrap();
    let rows = |out: &str| -> Vec<String> {
        let database = rusqlite::Connection::open(path(out).join("x.db")).unwrap();
        let mut rows = database.prepare("SELECT x FROM t ORDER BY 1").unwrap();
        let rows = rows.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    fs::create_dir(path("in")).unwrap();
    for name in ["a", "b"] {
        fs::write(path("in").join(name), name).unwrap();
    }
    let run = |out: &str, options: &[&str]| {
        let mut command = program("casparian");
        command.arg("run").args([path("p.py"), path("in")]);
        command.arg("-o").arg(path(out)).args(options);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), stderr)
    };
    let (code, text) = run("out", &[]);
    assert_eq!(code, Some(0), "{text}");
    let mut copy = Command::new("cp");
    copy.arg("-a").args([path("out"), path("copy")]);
    assert!(copy.status().unwrap().success());
    fs::write(path("in/a"), "changed").unwrap();
    fs::remove_file(path("in/b")).unwrap();
    let (code, text) = run("copy", &["--prune"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("casparian fsck --adopt"), "{text}");

    let database = path("copy/.casparian/queue.sqlite");
    let adopted = program("casparian")
        .args(["fsck", "--adopt", "--database"])
        .arg(&database)
        .arg("--output")
        .arg(path("copy"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&adopted.stdout).into_owned();
    assert!(text.contains("2 adopted"), "{text}");
    let (code, text) = run("copy", &["--prune"]);
    assert_eq!(code, Some(0), "{text}");
    let parquet = |out: &str| {
        let files = visible_files(&path(out)).into_iter();
        let is_parquet = |file: &PathBuf| file.extension().is_some_and(|end| end == "parquet");
        files.filter(is_parquet).count()
    };
    assert_eq!(
        (parquet("copy"), rows("copy")),
        (1, vec!["changed".to_owned()])
    );
    assert_eq!((parquet("out"), rows("out").len()), (2, 2));
}

/// What stands in a database that a backup brought back is of earlier attempts and jobs.
#[test]
fn a_restored_database_of_a_sink_is_noticed_and_repaired() {
    for mode in ["append", "replace"] {
        let scene = replaced("sqlite://o.db/rows");
        scene.sql(&format!("UPDATE cf_topic_config SET mode = '{mode}'"));
        let (database, backup) = (scene.out().join("o.db"), scene.dir.path().join("backup"));
        if mode == "append" {
            fs::copy(&database, &backup).unwrap();
            scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED' WHERE id = 3");
            scene.run(3);
        } else {
            fs::copy(&database, &backup).unwrap();
            let input = scene.dir.path().join("in4");
            fs::write(&input, "4").unwrap();
            submit(&scene.database, "p", &[input]);
            scene.run(4);
        }
        fs::copy(&backup, &database).unwrap();
        let job = if mode == "append" { 3 } else { 4 };
        let kind = if mode == "append" {
            "changed"
        } else {
            "missing"
        };
        assert_eq!(scene.kinds(), [(kind.to_owned(), Some(job))], "{mode}");
        let (_, text) = scene.fsck(&["--repair"]);
        if mode == "append" {
            assert!(text.contains("1 jobs queued again"), "{text}");
            scene.run(3);
            assert_eq!(scene.kinds(), [], "{mode}");
        } else {
            // The rows of an earlier job are in its place.
            assert!(text.contains("not queued again"), "{text}");
        }
    }
}

/// A backup of the whole folder has brought back what earlier attempts published, and their records.
#[test]
fn a_restored_output_folder_is_noticed_and_repaired() {
    for uri in ["parquet://o.parquet", "sqlite://o.db/rows"] {
        let dir = tempfile::tempdir().unwrap();
        let source = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': open(path).read().split()})\n";
        let database = database_with(dir.path(), "p", source);
        let scene = Scene { database, dir };
        scene.sql(&format!(
            "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
             VALUES ('p', 'output', '{uri}', 'append')"
        ));
        let input = scene.dir.path().join("in");
        fs::write(&input, "one").unwrap();
        submit(&scene.database, "p", std::slice::from_ref(&input));
        scene.run(1);
        let (out, backup) = (scene.out(), scene.dir.path().join("backup"));
        let copied = Command::new("cp").arg("-a").args([&out, &backup]).status();
        assert!(copied.unwrap().success());
        fs::write(&input, "two other rows").unwrap();
        scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
        scene.run(1);
        fs::remove_dir_all(&out).unwrap();
        fs::rename(&backup, &out).unwrap();
        let kinds = scene.kinds();
        let is_told = |(kind, job): &(String, Option<i64>)| {
            ["changed", "rows"].contains(&kind.as_str()) && *job == Some(1)
        };
        assert!(kinds.iter().any(is_told), "{uri} {kinds:?}");
        let (_, text) = scene.fsck(&["--repair"]);
        assert!(text.contains("1 jobs queued again"), "{uri} {text}");
        scene.run(1);
        assert_eq!(scene.kinds(), [], "{uri}");
    }
}

/// Workers with roots of their own share an absolute sink: the last publisher of all comes back.
#[test]
fn the_sink_of_several_roots_is_repaired_once() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "p", THREE_ROWS);
    let scene = Scene { database, dir };
    let sink = scene.dir.path().join("x.db");
    scene.sql(&format!(
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
         VALUES ('p', 'output', 'sqlite://{}/t', 'replace')",
        sink.display()
    ));
    let roots = ["one", "two"].map(|name| scene.dir.path().join(name));
    for (job, root) in (1..).zip(&roots) {
        let input = scene.dir.path().join(format!("in{job}"));
        fs::write(&input, job.to_string()).unwrap();
        submit(&scene.database, "p", &[input]);
        let (mut sentinel, endpoint) = sentinel(&scene.database, &[]);
        let mut worker = worker(&endpoint, root, &[]);
        assert_eq!(ended(&scene.database, job)["status"], "COMPLETED");
        worker.signal("-TERM");
        worker.wait();
        sentinel.signal("-TERM");
        sentinel.wait();
    }
    fs::remove_file(&sink).unwrap();
    let [one, two] = roots.each_ref().map(|root| root.to_str().unwrap());
    let database = scene.database.to_str().unwrap();
    let arguments = [
        "fsck",
        "--repair",
        "--database",
        database,
        "--output",
        one,
        "--output",
        two,
    ];
    let output = casparian(&arguments);
    let text = stdout(&output);
    assert!(
        text.contains("1 jobs queued again"),
        "{text}{}",
        stderr(&output)
    );
    assert_eq!(job(&scene.database, 2)["status"], "QUEUED");
}

#[test]
fn what_others_have_put_into_the_folders_of_a_root_is_noted() {
    let scene = Scene::published(1);
    assert_eq!(scene.kinds(), []);
    let outputs = scene.private("outputs");
    let records = outputs.join(scene.id());
    let mut strangers = vec![
        scene.private("staging/file"),
        scene.private("staging/odd folder"),
        scene.private("staging/link"),
        outputs.join("FIFO"),
        records.join("link"),
        records.join("0/FIFO"),
    ];
    for (path, kind) in strangers
        .iter()
        .zip(["file", "dir", "link", "fifo", "link", "fifo"])
    {
        match kind {
            "file" => fs::write(path, "x").unwrap(),
            "dir" => fs::create_dir(path).unwrap(),
            "link" => std::os::unix::fs::symlink("/", path).unwrap(),
            _ => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        }
    }
    let (code, text) = scene.fsck(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("remove it"), "{text}");
    let found = scene.json(&[])["findings"].take();
    let place = |finding: &Value| {
        assert_eq!(finding["kind"], "stranger", "{finding}");
        assert_eq!(finding["severity"], "note", "{finding}");
        PathBuf::from(finding["place"].as_str().unwrap())
    };
    let found: Vec<PathBuf> = found.as_array().unwrap().iter().map(place).collect();
    strangers.sort();
    assert_eq!(found, strangers);
}

/// The owner of a folder is another database, none, or unreadable, as after a wrong copy.
#[test]
fn a_wrong_owner_of_a_folder_is_found() {
    let scene = Scene::published(1);
    let owner = scene.private("owner");
    let right = fs::read_to_string(&owner).unwrap();
    for (content, words) in [
        (Some(right.as_str()), ""),
        (
            Some("8f3e1c2b9a7d4e5f8091a2b3c4d5e6f7"),
            "the output folder belongs to database 8f3e1c2b",
        ),
        (Some(""), "it does not contain the ID of a database"),
        (Some("../x"), "it does not contain the ID of a database"),
        (None, "it is missing, and this database has output here"),
    ] {
        match content {
            Some(content) => fs::write(&owner, content).unwrap(),
            None => fs::remove_file(&owner).unwrap(),
        }
        let (code, text) = scene.fsck(&[]);
        let is_wrong = !words.is_empty();
        assert_eq!(code, Some(i32::from(is_wrong)), "{content:?}: {text}");
        assert_eq!(text.contains("error: owner: "), is_wrong, "{text}");
        assert!(text.contains(words), "{content:?}: {text}");
    }
}

/// An output folder of `casparian run` over one file, with rows or files at a sink.
struct Run {
    dir: tempfile::TempDir,
}

impl Run {
    fn with_sink(uri: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plugin = format!(
            "import pyarrow as pa\nfrom casparian_flow.sdk import PluginMetadata\nMANIFEST = PluginMetadata(pattern='*', topic='output', sinks={{'output': '{uri}'}})\nclass Handler:\n    def execute(self, path):\n        yield pa.table({{'x': list(range(2000)), 's': ['abc%d' % i for i in range(2000)]}})\n"
        );
        fs::write(dir.path().join("p.py"), plugin).unwrap();
        fs::write(dir.path().join("in"), "").unwrap();
        let run = Run { dir };
        assert_eq!(run.again(), Some(0));
        run
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn again(&self) -> Option<i32> {
        let mut command = program("casparian");
        command
            .arg("run")
            .args([self.path("p.py"), self.path("in")]);
        let output = output(command.arg("-o").arg(self.path("out")));
        output.status.code()
    }

    /// Exit code and findings of a check.
    fn fsck(&self, more: &[&str]) -> (Option<i32>, Vec<Value>) {
        let mut command = program("casparian");
        command.args(["fsck", "--json", "--database"]);
        command.arg(self.path("out/.casparian/queue.sqlite"));
        command.arg("--output").arg(self.path("out")).args(more);
        let output = output(&mut command);
        let mut value: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
        let findings = value["findings"].as_array_mut().map(std::mem::take);
        (output.status.code(), findings.unwrap())
    }
}

/// The link is to be removed and not what it leads to, which may be the machine's.
#[test]
fn a_link_that_leads_out_of_the_folder_is_found_with_and_without_repair() {
    for (uri, entry, wanted) in [
        ("sqlite://s.db/t", "s.db", "regular file"),
        ("sqlite://d/null/t", "d", "folder"),
        ("parquet://d/", "d", "folder"),
    ] {
        let run = Run::with_sink(uri);
        let (link, away, text) = (
            run.path("out").join(entry),
            run.path("away"),
            run.path("text"),
        );
        fs::write(&text, "no database").unwrap();
        fs::rename(&link, &away).unwrap();
        for target in [
            away.as_path(),
            &text,
            Path::new("/etc"),
            Path::new("/dev"),
            Path::new("/dev/zero"),
            &run.path("none"),
        ] {
            let case = format!("{uri} {}", target.display());
            std::os::unix::fs::symlink(target, &link).unwrap();
            for more in [&[][..], &["--repair"], &[]] {
                let (code, findings) = run.fsck(more);
                let [finding] = findings.as_slice() else {
                    panic!("{case}: {findings:?}");
                };
                assert_eq!(code, Some(1), "{case}");
                assert_eq!(finding["severity"], "error", "{case}");
                assert_eq!(finding["place"], link.to_str().unwrap(), "{case}");
                let what = format!("a symbolic link is at its path, not a {wanted}");
                assert_eq!(finding["what"], what, "{case}");
                let to_do = finding["to_do"].as_str().unwrap();
                assert!(to_do.starts_with("remove it"), "{case}: {finding}");
            }
            fs::remove_file(&link).unwrap();
        }
        // After an attempt that has failed because of it, too.
        std::os::unix::fs::symlink(&away, &link).unwrap();
        assert_eq!(run.again(), Some(1), "{uri}");
        for more in [&[][..], &["--repair"], &[]] {
            let (code, findings) = run.fsck(more);
            assert_eq!((code, findings.len()), (Some(1), 1), "{uri} {findings:?}");
            assert_eq!(findings[0]["place"], link.to_str().unwrap(), "{uri}");
        }
        fs::remove_file(&link).unwrap();
        fs::rename(&away, &link).unwrap();
        assert_eq!(run.again(), Some(0), "{uri}");
        assert_eq!(run.fsck(&[]).0, Some(0), "{uri}");
    }
}

/// Outside the folder fsck advises to remove nothing, and names the path of the receipt.
#[test]
fn what_is_in_the_way_outside_the_folder_is_not_to_be_removed() {
    let scene = Scene::published(1);
    let outside = scene.dir.path().join("outside.db");
    let uri = format!("sqlite://{}/rows", outside.display());
    scene.sql(&format!("UPDATE cf_topic_config SET uri = '{uri}'"));
    assert_eq!(scene.run_again(2)["status"], "COMPLETED");
    for target in ["/etc", "/dev/zero", "/nonexistent", ""] {
        let _ = fs::remove_file(&outside);
        match target {
            "" => fs::create_dir(&outside).unwrap(),
            _ => std::os::unix::fs::symlink(target, &outside).unwrap(),
        }
        for more in [&[][..], &["--repair"]] {
            let (code, text) = scene.fsck(more);
            assert_eq!(code, Some(1), "{target}: {text}");
            assert!(text.contains(outside.to_str().unwrap()), "{target}: {text}");
            assert!(!text.contains("remove"), "{target}: {text}");
            assert!(!text.contains("dev/zero"), "{target}: {text}");
            assert_eq!(scene.status(2), "COMPLETED");
        }
    }
}

/// A database with other content than was written: how it is damaged, and words of the finding.
type Damage = (&'static str, fn(&Path), &'static [&'static str]);

const RESTORE: &[&str] = &[
    "s.db: ",
    "restore the database from a backup, or move it away",
];

const DAMAGES: &[Damage] = &[
    (
        "a page in the middle",
        |path| overwrite(path, 4096, 1500),
        RESTORE,
    ),
    (
        "all pages but two",
        |path| {
            let size = fs::metadata(path).unwrap().len();
            overwrite(path, 8192, usize::try_from(size).unwrap() - 8192);
        },
        RESTORE,
    ),
    (
        "other text",
        |path| fs::write(path, "text\n".repeat(2000)).unwrap(),
        RESTORE,
    ),
    (
        "half of it",
        |path| {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        },
        RESTORE,
    ),
    (
        "an empty table of another kind",
        |path| {
            let database = rusqlite::Connection::open(path).unwrap();
            let sql = "ALTER TABLE t RENAME TO u; CREATE TABLE t (_job_id, x UNIQUE CHECK (x < 0))";
            database.execute_batch(sql).unwrap();
        },
        &["the job has 0 rows there", "run the job again"],
    ),
];

fn overwrite(path: &Path, at: u64, size: usize) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&vec![0xA7; size], at).unwrap();
}

#[test]
fn a_damaged_database_of_a_sink_is_reported_after_a_failed_run_too() {
    for (name, damage, words) in DAMAGES {
        let run = Run::with_sink("sqlite://s.db/t");
        let database = run.path("out/s.db");
        damage(&database);
        for severity in ["error", "warning"] {
            for more in [&[][..], &["--repair"], &[]] {
                if more == ["--repair"] && severity == "error" && words != &RESTORE {
                    continue;
                }
                let (code, findings) = run.fsck(more);
                assert_eq!(code, Some(1), "{name} {severity} {more:?}");
                assert_eq!(findings.len(), 1, "{name}: {findings:?}");
                let finding = findings[0].to_string();
                assert_eq!(findings[0]["severity"], severity, "{name}: {finding}");
                for word in *words {
                    assert!(finding.contains(word), "{name}: {finding}");
                }
                let subject = database.join("t");
                assert_eq!(findings[0]["place"], subject.to_str().unwrap(), "{name}");
            }
            assert_eq!(run.again(), Some(1), "{name}");
        }
        // As the advice says.
        fs::rename(&database, run.path("damaged")).unwrap();
        assert_eq!(run.again(), Some(0), "{name}");
        assert_eq!(run.fsck(&[]).0, Some(0), "{name}");
    }
}

/// A program was killed in a transaction. A check that changes nothing cannot undo that, a repair does.
#[test]
fn a_journal_that_a_killed_program_left_is_named_and_rolled_back() {
    let run = Run::with_sink("sqlite://s.db/t");
    let code = "import os, sqlite3, sys\n\
        db = sqlite3.connect(sys.argv[1], isolation_level=None)\n\
        db.execute('pragma cache_size=5')\n\
        db.execute('begin')\n\
        db.execute('delete from t')\n\
        for i in range(3000): db.execute('insert into t(x, s) values (?, ?)', (i, 'z' * 300))\n\
        os._exit(0)";
    let mut writer = Command::new(python());
    output(writer.args(["-c", code]).arg(run.path("out/s.db")));
    assert!(run.path("out/s.db-journal").exists());
    let (code, findings) = run.fsck(&[]);
    assert_eq!(code, Some(1));
    let finding = findings[0].to_string();
    for words in ["a program ended while it wrote into it", "use --repair"] {
        assert!(finding.contains(words), "{finding}");
    }
    assert_eq!(run.fsck(&["--repair"]), (Some(0), Vec::new()));
    assert_eq!(run.fsck(&[]), (Some(0), Vec::new()));
}
