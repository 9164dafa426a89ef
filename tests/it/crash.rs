//! kill -9 of everything: after a restart every job ends once, no part of a file is visible, and
//! no RUNNING row stays behind.

use std::path::{Path, PathBuf};

use casparian::socket::{Dealer, Options};

use crate::common::*;
use crate::sink_locations::Mount;

/// Writes a batch, waits at the gate, writes another.
fn gated(gate: &Path) -> String {
    format!(
        "import os, time\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({{'x': list(range(1000))}})\n        with open(path + '.tmp', 'w') as mark: mark.write(str(os.getpid()))\n        os.rename(path + '.tmp', path + '.started')\n        while not os.path.exists({gate:?}):\n            time.sleep(0.01)\n        yield pa.table({{'x': [1]}})\n"
    )
}

struct Scene {
    dir: tempfile::TempDir,
    database: PathBuf,
    gate: PathBuf,
    inputs: Vec<PathBuf>,
    ids: Vec<i64>,
}

impl Scene {
    fn new(jobs: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let gate = dir.path().join("gate");
        let database = database_with(dir.path(), "gated", &gated(&gate));
        let inputs: Vec<PathBuf> = (0..jobs)
            .map(|number| {
                let path = dir.path().join(format!("in{number}"));
                std::fs::write(&path, format!("{number}")).unwrap();
                path
            })
            .collect();
        let ids = submit(&database, "gated", &inputs);
        Scene {
            dir,
            database,
            gate,
            inputs,
            ids,
        }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Waits until a plugin is in the middle of its output; gives its process.
    fn wait_started(&self, number: usize) -> i32 {
        let mark = self.inputs[number].with_extension("started");
        until("the plugin is in the middle of its output", || {
            std::fs::read_to_string(&mark).ok()?.parse().ok()
        })
    }

    fn open_gate(&self) {
        std::fs::write(&self.gate, "").unwrap();
    }

    fn nothing_visible(&self) {
        assert_eq!(visible_files(&self.out()), Vec::<PathBuf>::new());
    }

    fn all_done(&self) {
        for id in &self.ids {
            let done = ended(&self.database, *id);
            assert_eq!(done["status"], "COMPLETED", "{done}");
            assert_eq!(done["receipt"]["metrics"]["rows"], 1001);
        }
        assert_eq!(visible_files(&self.out()).len(), self.ids.len());
        let engines = read_parquet(&self.out());
        assert!(
            engines
                .iter()
                .all(|engine| engine["rows"] == 1001 * self.ids.len())
        );
        let running = casparian_ok(&[
            "jobs",
            "-s",
            "RUNNING",
            "--json",
            "-d",
            self.database.to_str().unwrap(),
        ]);
        assert_eq!(running.trim(), "[]");
        // Staging holds nothing of the dead.
        let staged = std::process::Command::new("find")
            .arg(self.out().join(".casparian/staging"))
            .args(["-type", "f", "-name", "[0-9]*-[0-9]*"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&staged.stdout), "");
    }
}

/// Plugin processes of a killed worker must not live on.
fn has_ended(process: i32) {
    until("the plugin process dies with its worker", || {
        let status = std::fs::read_to_string(format!("/proc/{process}/stat"));
        // A zombie is dead; nobody has reaped it yet.
        status
            .map_or(true, |stat| stat.contains(") Z "))
            .then_some(())
    });
}

#[test]
fn a_killed_worker_loses_nothing() {
    for start in ["warm", "spawn"] {
        let scene = Scene::new(2);
        let (_sentinel, endpoint) = sentinel(&scene.database, &[]);
        let more = ["--slots", "2", "--plugin-start", start];
        let mut first = worker(&endpoint, &scene.out(), &more);
        let processes = [scene.wait_started(0), scene.wait_started(1)];
        first.kill();
        scene.nothing_visible();
        processes.into_iter().for_each(has_ended);
        scene.open_gate();
        let _second = worker(&endpoint, &scene.out(), &more);
        scene.all_done();
        assert_eq!(job(&scene.database, scene.ids[0])["attempt"], 2);
    }
}

#[test]
fn a_killed_sentinel_takes_its_jobs_up_again_and_the_worker_goes_on() {
    let scene = Scene::new(3);
    let (mut first, endpoint) = sentinel(&scene.database, &[]);
    let _worker = worker(&endpoint, &scene.out(), &["--slots", "1"]);
    scene.wait_started(0);
    first.kill();
    scene.nothing_visible();
    let port = endpoint.rsplit(':').next().unwrap();
    let mut second = Background::start(
        program("casparian-sentinel")
            .args(["--bind", &format!("tcp://127.0.0.1:{port}"), "--database"])
            .arg(&scene.database),
    );
    second.line_with("goes on with job");
    scene.open_gate();
    scene.all_done();
    assert_eq!(
        job(&scene.database, scene.ids[0])["attempt"],
        1,
        "it was never interrupted"
    );
}

#[test]
fn killed_sentinel_and_worker_leave_no_running_row() {
    let scene = Scene::new(1);
    let (mut first, endpoint) = sentinel(&scene.database, &["--lease", "2"]);
    let mut dead = worker(&endpoint, &scene.out(), &[]);
    scene.wait_started(0);
    first.kill();
    dead.kill();
    scene.open_gate();
    let (_second, endpoint) = sentinel(&scene.database, &["--lease", "2"]);
    let _worker = worker(&endpoint, &scene.out(), &[]);
    scene.all_done();
}

#[test]
fn a_killed_plugin_process_is_reported_as_a_failure_and_the_slot_is_free() {
    let scene = Scene::new(2);
    let (_sentinel, endpoint) = sentinel(&scene.database, &[]);
    let _worker = worker(
        &endpoint,
        &scene.out(),
        &["--slots", "1", "--plugin-start", "spawn"],
    );
    let process = scene.wait_started(0).to_string();
    let killed = std::process::Command::new("kill")
        .args(["-KILL", &process])
        .status()
        .unwrap();
    assert!(killed.success());
    // It is not the plugin's doing: another attempt follows.
    let failed = until("its first attempt has ended", || {
        let job = job(&scene.database, scene.ids[0]);
        job["attempts"].get(0).cloned()
    });
    assert_eq!(failed["cause"], "lost", "{failed}");
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains("SIGKILL"), "{failed}");
    scene.open_gate();
    for (id, attempts) in scene.ids.iter().zip([2, 1]) {
        let done = ended(&scene.database, *id);
        assert_eq!(
            (&done["status"], &done["attempt"]),
            (&"COMPLETED".into(), &attempts.into()),
            "{done}"
        );
    }
    assert_eq!(visible_files(&scene.out()).len(), 2);
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    let plugin = dir.path().join("gated.py");
    std::fs::write(&plugin, gated(&gate)).unwrap();
    let folder = dir.path().join("in");
    std::fs::create_dir(&folder).unwrap();
    for number in 0..3 {
        std::fs::write(folder.join(format!("f{number}")), number.to_string()).unwrap();
    }
    let out = dir.path().join("out");
    let mut command = program("casparian");
    command
        .arg("run")
        .arg(&plugin)
        .arg(&folder)
        .arg("--pattern")
        .arg("f?")
        .arg("--output")
        .arg(&out);
    let mut first = Background::start(&mut command);
    until("it is in the middle of a file", || {
        folder.join("f0.started").exists().then_some(())
    });
    first.kill();
    assert_eq!(visible_files(&out), Vec::<PathBuf>::new());
    std::fs::write(&gate, "").unwrap();
    let second = output(&mut command);
    assert_eq!(second.status.code(), Some(0), "{}", stderr(&second));
    assert_eq!(visible_files(&out).len(), 3);
    assert!(
        read_parquet(&out)
            .iter()
            .all(|engine| engine["rows"] == 3003)
    );
}

/// A worker that is stopped loses its jobs to another when its lease has run out, and cannot
/// replace that one's output when it goes on.
#[test]
fn a_stopped_worker_cannot_replace_its_successors_output() {
    let scene = Scene::new(1);
    let (mut sentinel, endpoint) = sentinel(&scene.database, &["--lease", "2"]);
    let mut first = worker(&endpoint, &scene.out(), &["--worker-id", "w-1"]);
    scene.wait_started(0);
    first.signal("-STOP");
    sentinel.line_with("its lease ran out");
    scene.open_gate();
    let _second = worker(&endpoint, &scene.out(), &["--worker-id", "w-2"]);
    let done = ended(&scene.database, scene.ids[0]);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    let files = visible_files(&scene.out());
    let before: Vec<_> = files.iter().map(|file| inode(file)).collect();
    first.signal("-CONT");
    // The first one learns that it does not hold the job, and goes on with the next one.
    first.line_with("not held any more");
    let input = scene.dir.path().join("next");
    std::fs::write(&input, "next").unwrap();
    let next = submit(&scene.database, "gated", &[input]);
    assert_eq!(ended(&scene.database, next[0])["status"], "COMPLETED");
    let after: Vec<_> = files.iter().map(|file| inode(file)).collect();
    assert_eq!(before, after);
    let job = job(&scene.database, scene.ids[0]);
    assert_eq!(
        (&job["attempt"], &job["worker"]),
        (&2.into(), &"w-2".into())
    );
}

/// A sentinel that is stopped, or suspended with its machine, takes no jobs from the workers whose
/// requests waited meanwhile.
#[test]
fn a_stopped_sentinel_costs_no_attempt() {
    let scene = Scene::new(1);
    let (mut sentinel, endpoint) = sentinel(&scene.database, &["--lease", "2"]);
    let _worker = worker(&endpoint, &scene.out(), &["--worker-id", "w-1"]);
    scene.wait_started(0);
    sentinel.signal("-STOP");
    std::thread::sleep(std::time::Duration::from_secs(7));
    sentinel.signal("-CONT");
    sentinel.line_with("did not run for");
    std::thread::sleep(std::time::Duration::from_secs(3));
    scene.open_gate();
    scene.all_done();
    assert_eq!(job(&scene.database, scene.ids[0])["attempt"], 1);
}

/// The first request of a worker comes in time for the shortest lease.
#[test]
fn a_short_lease_costs_no_attempt() {
    let scene = Scene::new(2);
    let (_sentinel, endpoint) = sentinel(&scene.database, &["--lease", "1"]);
    let _worker = worker(&endpoint, &scene.out(), &["--slots", "2"]);
    scene.wait_started(0);
    scene.wait_started(1);
    std::thread::sleep(std::time::Duration::from_secs(5));
    scene.open_gate();
    scene.all_done();
    for id in &scene.ids {
        assert_eq!(job(&scene.database, *id)["attempt"], 1);
    }
}

/// RUNNING rows that nobody holds, because another program changed them, do not stay RUNNING.
#[test]
fn rows_that_another_program_changed_while_they_ran_end() {
    for change in [
        "worker_id = 'nobody'",
        "worker_id = NULL",
        "worker_id = x'00ff'",
        "attempt = attempt + 5",
        "attempt = 0",
        "id = id + 100",
    ] {
        let scene = Scene::new(1);
        let (_sentinel, endpoint) = sentinel(&scene.database, &["--lease", "1"]);
        let _worker = worker(&endpoint, &scene.out(), &[]);
        scene.wait_started(0);
        let store = rusqlite::Connection::open(&scene.database).unwrap();
        store.pragma_update(None, "foreign_keys", false).unwrap();
        let update = format!("UPDATE cf_processing_queue SET {change}");
        store.execute(&update, []).unwrap();
        scene.open_gate();
        until(&format!("the job ends after {change}"), || {
            let query = "SELECT 1 FROM cf_processing_queue WHERE end_time IS NOT NULL";
            store.query_row(query, [], |_| Ok(())).ok()
        });
        if !change.starts_with("id") {
            let query = "SELECT status FROM cf_processing_queue";
            let status = store.query_row(query, [], |row| row.get::<_, String>(0));
            assert_eq!(status.unwrap(), "COMPLETED", "{change}");
            until("one output is visible", || {
                (visible_files(&scene.out()).len() == 1).then_some(())
            });
        }
    }
}

/// What was dispatched is not what the row says now.
#[test]
fn a_row_that_gets_another_file_while_it_runs_is_run_again() {
    let scene = Scene::new(2);
    let (_sentinel, endpoint) = sentinel(&scene.database, &[]);
    let _worker = worker(&endpoint, &scene.out(), &[]);
    scene.wait_started(0);
    let (first, second) = (scene.ids[0], scene.ids[1]);
    let of = |id: i64| format!("SELECT file_version_id FROM cf_processing_queue WHERE id = {id}");
    let version = sql(&scene.database, &of(second));
    let update = format!("file_version_id = {version} WHERE id = {first}");
    sql(
        &scene.database,
        &format!("UPDATE cf_processing_queue SET {update}"),
    );
    scene.open_gate();
    let done = ended(&scene.database, first);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert_eq!(done["attempt"], 2, "{done}");
    assert_eq!(ended(&scene.database, second)["status"], "COMPLETED");
    let version: i64 = version.parse().unwrap();
    for engine in read_parquet(&scene.out()) {
        let sum = engine["rows"].as_i64().unwrap() * version;
        assert_eq!(engine["sums"]["_file_version_id"], sum, "{engine}");
    }
}

fn inode(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().ino()
}

/// A peer that takes a worker's ID as its routing ID and is silent keeps nothing from it.
#[test]
fn a_silent_peer_with_a_workers_id_takes_nothing() {
    let scene = Scene::new(1);
    let (_sentinel, endpoint) = sentinel(&scene.database, &[]);
    let mut silent = Dealer::new(Options::new().routing_id("w-1")).unwrap();
    silent.connect(&endpoint).unwrap();
    until("it is connected", || {
        silent.flush().unwrap();
        (silent.counters().established == 1).then_some(())
    });
    let _worker = worker(&endpoint, &scene.out(), &["--worker-id", "w-1"]);
    scene.open_gate();
    let done = ended(&scene.database, scene.ids[0]);
    assert_eq!(
        (&done["status"], &done["attempt"]),
        (&"COMPLETED".into(), &1.into())
    );
}

/// Of two live workers with one ID (a copied unit file) the second is refused, and no job pays
/// for it; when the first is gone, the second gets the ID.
#[test]
fn a_second_worker_with_a_live_ones_id_is_refused() {
    let scene = Scene::new(2);
    let (_sentinel, endpoint) = sentinel(&scene.database, &["--lease", "2"]);
    let more = ["--worker-id", "w-1", "--slots", "2"];
    let mut first = worker(&endpoint, &scene.out(), &more);
    scene.wait_started(0);
    let mut second = worker(&endpoint, &scene.out(), &more);
    assert_eq!(second.wait(), Some(1));
    let refused = second.seen.join("\n");
    assert!(
        refused.contains("--worker-id") && refused.contains("in use"),
        "{refused}"
    );
    scene.wait_started(1);
    // The same while the first one stops.
    first.signal("-TERM");
    first.line_with("stopping: waiting for 2 running job(s)");
    let mut second = worker(&endpoint, &scene.out(), &more);
    assert_eq!(second.wait(), Some(1));
    let refused = second.seen.join("\n");
    assert!(refused.contains("which is stopping: start"), "{refused}");
    first.kill();
    let mut third = worker(&endpoint, &scene.out(), &more);
    third.line_with("connected to the sentinel");
    scene.open_gate();
    scene.all_done();
}

/// A worker that is stopped for seconds loses its ID to a second process. Its jobs end by that one,
/// whether the first comes back or not, and it counts as no loss of theirs.
#[test]
fn a_worker_that_loses_its_id_while_it_is_stopped_costs_no_attempt() {
    for comes_back in [true, false] {
        let scene = Scene::new(1);
        let settings = ["--lease", "4", "--retries", "0"];
        let (mut sentinel, endpoint) = sentinel(&scene.database, &settings);
        let more = ["--worker-id", "w-1", "--slots", "1"];
        let mut first = worker(&endpoint, &scene.out(), &more);
        sentinel.line_with("worker w-1 connected");
        scene.wait_started(0);
        first.signal("-STOP");
        let _second = worker(&endpoint, &scene.out(), &more);
        sentinel.line_with("worker w-1 connected");
        match comes_back {
            true => {
                first.signal("-CONT");
                assert_eq!(first.wait(), Some(1));
                sentinel.line_with("its worker was refused: worker ID w-1 is in use by process");
            }
            false => first.kill(),
        }
        scene.open_gate();
        scene.all_done();
        let done = job(&scene.database, scene.ids[0]);
        assert_eq!(done["retries"], 0, "{done}");
    }
}

/// A worker that is told to stop takes no more jobs, and gives back what it has not started.
#[test]
fn a_draining_worker_gives_back_what_it_has_not_started() {
    let scene = Scene::new(3);
    let (_sentinel, endpoint) = sentinel(&scene.database, &[]);
    let mut first = worker(&endpoint, &scene.out(), &["--slots", "1"]);
    scene.wait_started(0);
    first.signal("-TERM");
    first.line_with("stopping");
    let _second = worker(&endpoint, &scene.out(), &["--slots", "2"]);
    // Both others run beside the one that the stopping worker still has.
    scene.wait_started(1);
    scene.wait_started(2);
    scene.open_gate();
    assert_eq!(first.wait(), Some(0));
    scene.all_done();
    for id in &scene.ids {
        assert_eq!(
            job(&scene.database, *id)["attempt"],
            1,
            "nothing was tried twice"
        );
    }
}

/// A second SIGTERM ends a worker at once; its running jobs are given back and cost nothing.
#[test]
fn jobs_of_a_worker_that_is_stopped_at_once_are_given_back() {
    let scene = Scene::new(1);
    let (_sentinel, endpoint) = sentinel(&scene.database, &["--retries", "0"]);
    let mut first = worker(&endpoint, &scene.out(), &[]);
    scene.wait_started(0);
    first.signal("-TERM");
    first.line_with("stopping");
    first.signal("-TERM");
    assert_eq!(first.wait(), Some(0));
    let queued = job(&scene.database, scene.ids[0]);
    assert_eq!(queued["status"], "QUEUED", "{queued}");
    scene.open_gate();
    let _second = worker(&endpoint, &scene.out(), &[]);
    scene.all_done();
}

/// A database that another program keeps locked for long costs nothing: workers keep their jobs.
#[test]
fn a_locked_database_delays_jobs_and_nothing_else() {
    let scene = Scene::new(2);
    let (mut sentinel, endpoint) = sentinel(&scene.database, &["--lease", "2"]);
    let _worker = worker(&endpoint, &scene.out(), &["--slots", "2"]);
    scene.wait_started(0);
    scene.wait_started(1);
    let other = rusqlite::Connection::open(&scene.database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    scene.open_gate();
    sentinel.line_with("failing for");
    sentinel.line_with("failing for 1");
    other.execute_batch("ROLLBACK").unwrap();
    sentinel.line_with("works again");
    scene.all_done();
    for id in &scene.ids {
        assert_eq!(job(&scene.database, *id)["attempt"], 1, "leases went on");
    }
}

/// A sentinel that starts while another program keeps the database locked waits for it.
#[test]
fn a_sentinel_starts_when_a_locked_database_is_free_again() {
    let scene = Scene::new(1);
    let other = rusqlite::Connection::open(&scene.database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut sentinel = Background::start(
        program("casparian-sentinel")
            .args(["--bind", "tcp://127.0.0.1:0", "--database"])
            .arg(&scene.database),
    );
    sentinel.line_with("trying again");
    other.execute_batch("ROLLBACK").unwrap();
    sentinel.line_with("listens on");
}

/// A sentinel that starts on a full disk waits for room.
#[test]
fn a_sentinel_starts_when_a_full_disk_has_room_again() {
    let dir = tempfile::tempdir().unwrap();
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: only root can mount a file system");
        return;
    }
    let small = Mount::new(dir.path().join("small"), 4);
    let database = dir.path().join("small/queue.sqlite");
    casparian_ok(&["init", database.to_str().unwrap()]);
    let start = || {
        Background::start(
            program("casparian-sentinel")
                .args(["--bind", "tcp://127.0.0.1:0", "--database"])
                .arg(&database),
        )
    };
    // One that is killed leaves a WAL: the next one writes.
    let mut killed = start();
    killed.line_with("listens on");
    killed.signal("-KILL");
    killed.wait();
    small.spoil("full");
    let mut sentinel = start();
    let line = sentinel.line_with("trying again");
    let path = database.display().to_string();
    assert!(line.contains(&path) && line.contains("full"), "{line}");
    small.repair("full");
    sentinel.line_with("listens on");
    sentinel.signal("-TERM");
    sentinel.wait();
}

/// A second sentinel on one database is refused, whatever the path.
#[test]
fn a_second_sentinel_on_a_database_is_refused() {
    let scene = Scene::new(1);
    let (_sentinel, _) = sentinel(&scene.database, &[]);
    let link = scene.dir.path().join("link.sqlite");
    std::os::unix::fs::symlink(&scene.database, &link).unwrap();
    let hard = scene.dir.path().join("hard.sqlite");
    std::fs::hard_link(&scene.database, &hard).unwrap();
    let lock_file = scene.dir.path().join("queue.sqlite.sentinel-lock");
    for (removes, path) in [
        (false, &scene.database),
        (false, &link),
        (false, &hard),
        (true, &scene.database),
        (true, &link),
        (true, &hard),
    ] {
        if removes {
            let _ = std::fs::remove_file(&lock_file);
        }
        let second = output(
            program("casparian-sentinel")
                .args(["--bind", "tcp://127.0.0.1:0", "--database"])
                .arg(path),
        );
        assert_eq!(second.status.code(), Some(1));
        assert!(
            stderr(&second).contains("another sentinel"),
            "{}",
            stderr(&second)
        );
    }
}

/// The lock of a sentinel and SQLite's locks do not touch each other, whatever is tried in one
/// process: another one finds the database locked while it is.
#[test]
fn sqlites_own_locks_hold_beside_a_sentinels() {
    use casparian::store::{Open, Store, lock_database};
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("q.sqlite");
    let statement = |statement: &str| {
        let script = "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\ntry: print(*c.execute(sys.argv[2]).fetchall())\nexcept sqlite3.OperationalError as e: print(e)";
        let mut command = std::process::Command::new(python());
        stdout(&output(
            command.args(["-c", script]).arg(&database).arg(statement),
        ))
    };
    // The first needs the lock of writers, the second a file that no other connection has open.
    let is_locked = |what: &str, writes: bool| {
        let begin = statement("BEGIN IMMEDIATE");
        assert_eq!(begin.contains("locked"), writes, "{what}: {begin}");
        let switch = statement("PRAGMA journal_mode=DELETE");
        assert!(switch.contains("locked"), "{what}: {switch}");
    };
    let mut first = Store::open(&database, Open::Create).unwrap();
    is_locked("no lock", false);
    let lock = lock_database(&database, Open::Existing).unwrap();
    is_locked("locked after the store was opened", false);
    let turn = first.begin().unwrap();
    is_locked("in a transaction", true);
    lock_database(&database, Open::Existing).unwrap_err();
    is_locked("after a failed attempt", true);
    drop(lock);
    is_locked("after the lock's end", true);
    drop(turn);
    let (other, _) = sentinel(&database, &[]);
    lock_database(&database, Open::Existing).unwrap_err();
    drop(other);
    is_locked("after another program's lock", false);
    let _lock = lock_database(&database, Open::Existing).unwrap();
    drop(first);
    let switch = statement("PRAGMA journal_mode=DELETE");
    assert!(
        switch.contains("delete"),
        "no lock of SQLite is left: {switch}"
    );
}

/// A database that is moved away under a running sentinel stops dispatch, and nothing is lost when
/// it is back.
#[test]
fn a_database_that_is_moved_away_is_noticed_and_used_again_when_it_is_back() {
    let scene = Scene::new(2);
    let (mut sentinel, endpoint) = sentinel(&scene.database, &["--lease", "2"]);
    let _worker = worker(&endpoint, &scene.out(), &["--slots", "2"]);
    scene.wait_started(0);
    scene.wait_started(1);
    let away = scene.dir.path().join("away.sqlite");
    std::fs::rename(&scene.database, &away).unwrap();
    sentinel.line_with("it was removed");
    scene.open_gate();
    std::fs::rename(&away, &scene.database).unwrap();
    sentinel.line_with("works again");
    scene.all_done();
    for id in &scene.ids {
        assert_eq!(job(&scene.database, *id)["attempt"], 1, "leases went on");
    }
}

/// A trigger of another program that refuses an attempt's end costs that attempt only. Nothing is
/// committed by others meanwhile.
#[test]
fn an_end_that_a_trigger_refuses_is_tried_again() {
    let scene = Scene::new(2);
    let store = rusqlite::Connection::open(&scene.database).unwrap();
    store
        .execute_batch(
            "CREATE TRIGGER refuses BEFORE UPDATE OF status ON cf_processing_queue \
             WHEN OLD.id = 1 AND OLD.attempt = 1 AND NEW.status = 'COMPLETED' \
             BEGIN SELECT RAISE(ABORT, 'not now'); END",
        )
        .unwrap();
    let (mut sentinel, endpoint) = sentinel(&scene.database, &["--lease", "1"]);
    let _worker = worker(&endpoint, &scene.out(), &[]);
    scene.open_gate();
    sentinel.line_with("refuses its end");
    assert_eq!(ended(&scene.database, scene.ids[1])["status"], "COMPLETED");
    scene.all_done();
}
