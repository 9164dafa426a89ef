//! `init`, `deploy`, `submit`, `jobs`, `job`, `workers`, with a sentinel and workers.

use std::path::Path;
use std::process::Command;

use casparian::socket::{Dealer, Options};

use crate::common::*;

const ONE_ROW: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        print('reading', path)\n        yield pa.table({'x': [1]})\n";

#[test]
fn a_submitted_job_runs_and_shows_its_receipt() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    // Before anybody can run it, the reason is visible.
    let ids = submit(&database, "one", std::slice::from_ref(&input));
    let waiting = job(&database, ids[0]);
    assert_eq!(waiting["status"], "QUEUED");
    assert!(
        waiting["waiting_for"]
            .as_str()
            .unwrap()
            .contains("a sentinel"),
        "{waiting}"
    );
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let mut incapable = worker(&endpoint, &out, &["--plugins", "other"]);
    incapable.line_with("connected");
    until("the incapable worker is known", || {
        let job = job(&database, ids[0]);
        assert_eq!(job["status"], "QUEUED");
        job["waiting_for"]
            .as_str()
            .filter(|text| text.contains("none of the 1"))
            .map(drop)
    });
    let mut able = worker(&endpoint, &out, &["--slots", "1"]);
    let done = ended(&database, ids[0]);
    assert_eq!(done["status"], "COMPLETED", "{done}");
    assert_eq!(done["receipt"]["metrics"]["rows"], 1);
    assert!(done["log"].as_str().unwrap().contains("reading"), "{done}");
    let uri = done["receipt"]["artifacts"][0]["uri"].as_str().unwrap();
    assert!(std::path::Path::new(uri.strip_prefix("file://").unwrap()).exists());
    assert!(
        uri.ends_with(&format!("one_output_{}.parquet", ids[0])),
        "{uri}"
    );
    // A row that another program inserts with plain SQL is noticed.
    let script = format!(
        "import sqlite3; c = sqlite3.connect({:?}); c.execute(\"INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, priority, retry_count) VALUES (1, 'one', 'QUEUED', 5, 0)\"); c.commit()",
        database
    );
    assert!(
        output(std::process::Command::new(python()).args(["-c", &script]))
            .status
            .success()
    );
    assert_eq!(ended(&database, ids[0] + 1)["status"], "COMPLETED");
    // A new version of the plugin runs without a restart.
    let plugin = dir.path().join("one.py");
    std::fs::write(&plugin, ONE_ROW.replace("[1]", "[1, 2]")).unwrap();
    let database_text = database.to_str().unwrap();
    casparian_ok(&["deploy", plugin.to_str().unwrap(), "-d", database_text]);
    let ids = submit(&database, "one", &[input]);
    assert_eq!(ended(&database, ids[0])["receipt"]["metrics"]["rows"], 2);
    let lockfile = dir.path().join("uv.lock");
    std::fs::write(&lockfile, "pandas==2.0\n").unwrap();
    let refused = casparian(&[
        "deploy",
        plugin.to_str().unwrap(),
        "-d",
        database_text,
        "--lockfile",
        lockfile.to_str().unwrap(),
    ]);
    let error = stderr(&refused);
    assert!(error.contains("uv.lock: it is not a uv.lock"), "{error}");
    let table = casparian_ok(&["jobs", "-d", database_text]);
    assert!(
        table.starts_with("ID  STATUS") && table.contains("COMPLETED"),
        "{table}"
    );
    let shown = casparian_ok(&["job", &ids[0].to_string(), "-d", database_text]);
    assert!(shown.contains("status               COMPLETED"), "{shown}");
    for program in [&mut able, &mut incapable, &mut sentinel] {
        program.signal("-TERM");
        assert_eq!(program.wait(), Some(0), "{:#?}", program.seen);
    }
}

#[test]
fn jobs_of_a_plugin_that_is_not_deployed_wait_and_submit_refuses_it() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let refused = casparian(&[
        "submit",
        "--plugin",
        "nope",
        input.to_str().unwrap(),
        "-d",
        database.to_str().unwrap(),
    ]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("not deployed"),
        "{}",
        stderr(&refused)
    );
    let missing = casparian(&["job", "99", "-d", database.to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("no job 99"));
}

#[test]
fn sinks_of_a_topic_and_overrides_decide_where_output_goes() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let ids = submit(&database, "one", &[input.clone(), input]);
    let table = dir.path().join("rows.db");
    let script = format!(
        "import sqlite3, json; c = sqlite3.connect({database:?}); c.execute(\"INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) VALUES ('one', 'output', 'parquet://set/?compression=zstd', 'append')\"); c.execute('UPDATE cf_processing_queue SET config_overrides = ? WHERE id = ?', (json.dumps({{'output': [{{'uri': 'sqlite://{}/rows'}}, {{'uri': 'parquet://extra.parquet', 'mode': 'replace'}}]}}), {})); c.commit()",
        table.display(),
        ids[0],
    );
    let inserted = output(std::process::Command::new(python()).args(["-c", &script]));
    assert!(inserted.status.success(), "{}", stderr(&inserted));
    let second = submit(&database, "one", &[dir.path().join("in.csv")]);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let _worker = worker(&endpoint, &out, &[]);
    assert_eq!(ended(&database, ids[0])["status"], "COMPLETED");
    assert_eq!(ended(&database, second[0])["status"], "COMPLETED");
    assert!(out.join(format!("extra_{}.parquet", ids[0])).exists());
    assert!(out.join(format!("set/data_{}.parquet", second[0])).exists());
    let count = format!(
        "import sqlite3; print(sqlite3.connect({table:?}).execute('select x, _job_id from rows').fetchall())"
    );
    let rows = stdout(&output(
        std::process::Command::new(python()).args(["-c", &count]),
    ));
    assert_eq!(rows.trim(), format!("[(1, {})]", ids[0]));
}

/// A free worker that may not run the waiting plugin must not make the sentinel forget that
/// jobs wait for the busy one that may.
#[test]
fn an_idle_worker_that_cannot_help_does_not_stall_the_one_that_can() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let mut idle = worker(&endpoint, &out, &["--plugins", "other", "--slots", "4"]);
    let mut able = worker(&endpoint, &out, &["--plugins", "one", "--slots", "1"]);
    idle.line_with("connected");
    able.line_with("connected");
    let ids: Vec<i64> = (0..5)
        .flat_map(|_| submit(&database, "one", std::slice::from_ref(&input)))
        .collect();
    for id in ids {
        assert_eq!(ended(&database, id)["status"], "COMPLETED");
    }
}

/// A descriptor a worker, under the soft limit of most shells.
#[test]
fn a_sentinel_may_open_as_many_files_as_the_system_allows() {
    let dir = tempfile::tempdir().unwrap();
    let mut sentinel = Background::start(
        Command::new("sh")
            .args(["-c", "ulimit -Sn 256; exec \"$0\" \"$@\""])
            .arg(program("casparian-sentinel").get_program())
            .args(["--bind", "tcp://127.0.0.1:0", "--database"])
            .arg(dir.path().join("queue.sqlite")),
    );
    sentinel.line_with("listens on ");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", sentinel.pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    assert_eq!(words[3], words[4], "{line:?}");
}

/// Who sends what is no message of the protocol is closed, and does not fill the log.
#[test]
fn messages_that_are_none_close_their_connection_alone() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    let mut good = worker(&endpoint, &dir.path().join("out"), &[]);
    good.line_with("connected");
    let header = |version: u8, opcode: u8, size: u8| {
        let mut header = [0; 16];
        (header[0], header[1], header[15]) = (version, opcode, size);
        header
    };
    let messages: [&[&[u8]]; 6] = [
        &[b"garbage"],
        &[b"", b""],
        &[&header(3, 4, 0), b""],
        &[&header(4, 99, 0), b""],
        &[&header(4, 4, 3), b"{}"],
        &[&header(4, 2, 2), b"{}"],
    ];
    let begun = std::time::Instant::now();
    for round in 0..200 {
        let mut bad = Dealer::new(Options::new().routing_id("bad").no_reconnect()).unwrap();
        bad.connect(&endpoint).unwrap();
        for _ in 0..10 {
            bad.send(messages[round % messages.len()]).unwrap();
        }
        until("it is closed", || {
            bad.flush().unwrap();
            (bad.counters().disconnected == 1).then_some(())
        });
    }
    let id = submit(&database, "one", std::slice::from_ref(&input))[0];
    assert_eq!(ended(&database, id)["status"], "COMPLETED");
    sentinel.signal("-TERM");
    sentinel.wait();
    let refused = |line: &&String| line.contains("message refused");
    let lines = sentinel.seen.iter().filter(refused).count();
    // Ten a second.
    let most = 10 * (usize::try_from(begun.elapsed().as_secs()).unwrap() + 2);
    assert!(
        (1..=most.min(1999)).contains(&lines),
        "{lines} of {most} lines"
    );
    assert!(
        !good.seen.iter().any(|line| line.contains("lost")),
        "{:?}",
        good.seen
    );
}

#[test]
fn many_files_in_many_folders_are_submitted_in_batches_under_one_root() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in");
    for folder in 0..300 {
        let folder = input.join(format!("{folder:03}"));
        std::fs::create_dir_all(&folder).unwrap();
        for file in ["a.csv", "b.csv", "c.csv", "d.csv"] {
            std::fs::write(folder.join(file), file).unwrap();
        }
    }
    // A file that cannot be read costs itself only.
    let submitted = casparian(&[
        "submit",
        "--plugin",
        "one",
        "--database",
        database.to_str().unwrap(),
        "/proc/self/mem",
        input.to_str().unwrap(),
    ]);
    assert_eq!(submitted.status.code(), Some(1));
    let error = stderr(&submitted);
    assert!(error.contains("1 of 1201 files"), "{error}");
    let ids: Vec<i64> = stdout(&submitted)
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(ids, (1..=1200).collect::<Vec<i64>>());
    let roots = sql(&database, "SELECT path FROM cf_source_root");
    assert_eq!(roots, input.canonicalize().unwrap().to_str().unwrap());
    // A single file of it later is the same location, and a folder above keeps it.
    submit(&database, "one", &[input.join("007/a.csv")]);
    submit(&database, "one", &[input.join("007")]);
    let count = "SELECT count(*), count(DISTINCT rel_path) FROM cf_file_location; SELECT count(*) FROM cf_source_root";
    assert_eq!(sql(&database, count), "1200 1200\n1");
    for name in ["fifo", "socket"] {
        let path = dir.path().join(name);
        match name {
            "fifo" => {
                let made = Command::new("mkfifo").arg(&path).status().unwrap();
                assert!(made.success());
            }
            _ => drop(std::os::unix::net::UnixListener::bind(&path).unwrap()),
        }
        let refused = casparian(&[
            "submit",
            "--plugin",
            "one",
            "--database",
            database.to_str().unwrap(),
            path.to_str().unwrap(),
        ]);
        let error = stderr(&refused);
        assert!(error.contains("neither a file nor a folder"), "{error}");
    }
}

#[test]
fn attempts_workers_and_retries_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let failing =
        "class Handler:\n    def execute(self, path):\n        raise ValueError('no good')\n";
    let database = database_with(dir.path(), "bad", failing);
    let text = database.to_str().unwrap();
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let id = submit(&database, "bad", std::slice::from_ref(&input))[0];
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let _worker = worker(&endpoint, &out, &["--worker-id", "w-1", "--slots", "3"]);
    let done = ended(&database, id);
    let attempts = done["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 1, "{done}");
    assert_eq!(attempts[0]["attempt"], 1);
    assert_eq!(attempts[0]["status"], "FAILED");
    assert_eq!(attempts[0]["worker"], "w-1");
    assert_eq!(attempts[0]["started_at"], done["claimed_at"]);
    let error = attempts[0]["error"].as_str().unwrap();
    assert!(error.contains("no good"), "{error}");
    let shown = casparian_ok(&["job", &id.to_string(), "-d", text]);
    let table = shown.split("\n\n").nth(1).unwrap();
    assert!(table.starts_with("ATTEMPT  STATUS  CAUSE"), "{shown}");
    assert!(table.contains("w-1"), "{shown}");

    let workers = casparian_ok(&["workers", "-d", text]);
    assert!(workers.starts_with("WORKER  STATUS"), "{workers}");
    let line = workers.lines().nth(1).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!((words[0], words[1], words[3]), ("w-1", "ONLINE", "3"));
    sql(
        &database,
        "UPDATE cf_worker_session SET trouble = 'its disk is full'",
    );
    let workers = casparian_ok(&["workers", "-d", text, "--json"]);
    let workers: serde_json::Value = serde_json::from_str(&workers).unwrap();
    assert_eq!(workers[0]["trouble"], "its disk is full");
    assert_eq!(workers[0]["slots"], 3);
    // The sentinel may note it as seen in between.
    until(
        "a worker that is not noted as seen any more has a note",
        || {
            sql(
                &database,
                "UPDATE cf_worker_session SET last_seen_ms = last_seen_ms - 3600000",
            );
            let workers = casparian_ok(&["workers", "-d", text]);
            let note = "s: its sentinel cannot write to the database, or hangs; see its log";
            workers.contains(note).then_some(())
        },
    );

    sentinel.signal("-TERM");
    assert_eq!(sentinel.wait(), Some(0));
    sql(
        &database,
        "INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, attempt, next_run, next_run_boot_ms, error_message) VALUES (1, 'bad', 'PENDING', 8589934595, '2099-01-02 03:04:05.678000', 9e15, 'worker w was lost')",
    );
    let jobs = casparian_ok(&["jobs", "-d", text]);
    let line = jobs.lines().nth(1).unwrap();
    assert!(
        line.ends_with("3  retry at 2099-01-02 03:04:05: worker w was lost"),
        "{jobs}"
    );
    // As a later `casparian run` leaves it.
    sql(&database, "UPDATE cf_processing_queue SET next_run = NULL");
    let why = "set aside by a later casparian run; submit it again, or set status to QUEUED";
    let jobs = casparian_ok(&["jobs", "-d", text]);
    assert!(jobs.lines().nth(1).unwrap().contains(why), "{jobs}");
    let id = jobs.lines().nth(1).unwrap().split_whitespace().next();
    let detail = casparian_ok(&["job", id.unwrap(), "-d", text, "--json"]);
    let detail: serde_json::Value = serde_json::from_str(&detail).unwrap();
    assert_eq!(detail["waiting_for"], why, "{detail}");
    let detail = casparian_ok(&["job", id.unwrap(), "-d", text]);
    assert!(detail.contains(why), "{detail}");
}

#[test]
fn a_copy_gets_an_identity_of_its_own_while_no_sentinel_works_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("queue.sqlite");
    let text = database.to_str().unwrap();
    casparian_ok(&["init", text]);
    let identity = || {
        sql(
            &database,
            "SELECT value FROM cf_casparian WHERE key = 'database'",
        )
    };
    let first = identity();
    casparian_ok(&["init", text]);
    assert_eq!(identity(), first);
    let lock =
        casparian::store::lock_database(&database, casparian::store::Open::Existing).unwrap();
    let refused = casparian(&["init", "--new-identity", text]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("another sentinel"));
    assert_eq!(identity(), first);
    drop(lock);
    let said = casparian_ok(&["init", "--new-identity", text]);
    let second = identity();
    assert!(said.contains(&second) && second != first, "{said}");
    assert!(!said.contains("RUNNING"), "{said}");
    let insert = "INSERT INTO cf_processing_queue (id, file_version_id, plugin_name, status)";
    let rows = "(7, 1, 'p', 'RUNNING'), (8, 1, 'p', 'QUEUED'), (9, 1, 'p', 'FAILED')";
    sql(&database, &format!("{insert} VALUES {rows}"));
    sql(
        &database,
        "UPDATE cf_processing_queue SET unsettled = 1 WHERE id = 9",
    );
    let said = casparian_ok(&["init", "--new-identity", text]);
    assert!(said.contains("not settled: 2 (7, 9)"), "{said}");
    let missing = dir.path().join("missing.sqlite");
    let refused = casparian(&["init", "--new-identity", missing.to_str().unwrap()]);
    assert!(stderr(&refused).contains("no such file"));
    assert!(casparian_ok(&["init", "--help"]).contains("copied"));
}

/// Whatever stands in the database, a log line is bounded and moves no terminal's cursor.
#[test]
fn log_lines_are_bounded_and_clean_whatever_the_database_holds() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("queue.sqlite");
    casparian_ok(&["init", database.to_str().unwrap()]);
    for name in [
        "replace(hex(zeroblob(1500000)), '0', 'n')",
        "'clear' || char(27) || '[2J' || char(13) || char(10) || 'forged' || char(155, 9) || 'end'",
    ] {
        sql(
            &database,
            &format!(
                "INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, priority, retry_count) VALUES (1, {name}, 'QUEUED', 5, 0)"
            ),
        );
    }
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    let _worker = worker(&endpoint, &dir.path().join("out"), &[]);
    sentinel.line_with("end wait");
    sentinel.signal("-TERM");
    assert_eq!(sentinel.wait(), Some(0));
    let lines = &sentinel.seen;
    let log = lines.join("\n");
    assert!(
        log.contains("nnnn") && log.contains("… (truncated)"),
        "{log}"
    );
    assert!(log.len() < 32 << 10, "{} bytes", log.len());
    assert!(lines.iter().all(|line| line.len() < 5 << 10));
    let is_clean = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
    assert!(log.chars().all(is_clean), "{log:?}");
    assert!(log.contains(r"clear\u{1b}[2J\r"), "{log}");
    // Further lines of a text are indented, so none passes for a line of the log.
    assert!(
        lines.iter().all(|line| !line.starts_with("forged")),
        "{log}"
    );
}

#[test]
fn the_log_names_rows_whose_claims_and_ends_the_database_refuses() {
    for refuse in ["RAISE(ABORT, 'no')", "RAISE(IGNORE)"] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "one", ONE_ROW);
        let input = dir.path().join("in.csv");
        std::fs::write(&input, "1\n").unwrap();
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.extend(submit(&database, "one", std::slice::from_ref(&input)));
        }
        let (never, endless) = (ids[0], ids[1]);
        let store = rusqlite::Connection::open(&database).unwrap();
        store
            .execute_batch(&format!(
                "CREATE TRIGGER theirs BEFORE UPDATE OF status ON cf_processing_queue \
                 WHEN NEW.id = {never} OR NEW.id = {endless} AND NEW.status <> 'RUNNING' \
                 BEGIN SELECT {refuse}; END"
            ))
            .unwrap();
        let (mut sentinel, endpoint) = sentinel(&database, &[]);
        let _worker = worker(&endpoint, &dir.path().join("out"), &["--slots", "1"]);
        sentinel.line_with(&format!("job {never} is skipped, it cannot be ended"));
        sentinel.line_with(&format!("job {endless} attempt 1: a constraint or trigger"));
        assert_eq!(ended(&database, ids[2])["status"], "COMPLETED");
        let reason = |id| job(&database, id)["waiting_for"].to_string();
        assert!(reason(never).contains("theirs"), "{}", reason(never));
        assert!(reason(endless).contains("theirs"), "{}", reason(endless));
        let log = sentinel.seen.join("\n");
        assert!(!log.contains("not the holder"), "{log}");
    }
}

/// Together they exceed what may be queued for a connection.
#[test]
fn a_worker_with_many_slots_gets_many_large_plugins() {
    let dir = tempfile::tempdir().unwrap();
    let large = format!("{ONE_ROW}# {}\n", "x".repeat(7 << 20));
    let database = database_with(dir.path(), "one", &large);
    let (inputs, out) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir(&inputs).unwrap();
    for number in 0..40 {
        std::fs::write(inputs.join(number.to_string()), number.to_string()).unwrap();
    }
    let ids = submit(&database, "one", &[inputs]);
    let (mut sentinel, endpoint) = sentinel(&database, &["--lease", "3"]);
    let mut worker = worker(&endpoint, &out, &["--slots", "40"]);
    for id in ids {
        let done = ended(&database, id);
        assert_eq!(done["status"], "COMPLETED", "{done}");
        assert_eq!(done["retries"], 0, "{done}");
    }
    for program in [&mut worker, &mut sentinel] {
        program.signal("-TERM");
        program.wait();
        let log = program.seen.join("\n");
        assert!(!log.contains("connection is closed"), "{log}");
        assert!(!log.contains("lost"), "{log}");
    }
}

#[test]
fn a_new_database_is_its_owners_alone_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mode = |name: &str| {
        let found = std::fs::metadata(path(name)).unwrap();
        format!("{:o}", found.permissions().mode() & 0o777)
    };
    // With an umask that takes nothing away.
    let open = |words: &[&str]| {
        let program = program("casparian").get_program().to_owned();
        let mut shell = Command::new("sh");
        shell.args(["-c", "umask 0 && exec \"$0\" \"$@\""]);
        let done = output(shell.arg(program).args(words).env("HOME", home()));
        assert!(done.status.success(), "{words:?}: {}", stderr(&done));
    };
    open(&["init", &path("a.db")]);
    assert_eq!(mode("a.db"), "600");
    open(&["init", "--mode", "660", &path("b.db")]);
    assert_eq!(mode("b.db"), "660");
    std::os::unix::fs::symlink("where.db", path("link.db")).unwrap();
    open(&["init", &path("link.db")]);
    assert_eq!(mode("where.db"), "600", "SQLite follows the link");
    open(&["init", &path("b.db")]);
    assert_eq!(mode("b.db"), "660", "an existing one keeps its own");
    std::fs::write(path("p.py"), ONE_ROW).unwrap();
    std::fs::write(path("in"), "1").unwrap();
    open(&["run", &path("p.py"), &path("in"), "-o", &path("out")]);
    assert_eq!(mode("out/.casparian/queue.sqlite"), "600");
    for bad in ["1777", "060", "8", "rw"] {
        let refused = casparian(&["init", "--mode", bad, &path("c.db")]);
        assert_eq!(refused.status.code(), Some(2), "{bad}");
        assert!(stderr(&refused).contains("octal"), "{}", stderr(&refused));
    }
    assert!(!dir.path().join("c.db").exists());
    // A sentinel says who else may say what its workers run.
    for (name, warns) in [("a.db", false), ("b.db", true), ("new.db", false)] {
        let (mut sentinel, _endpoint) = sentinel(Path::new(&path(name)), &[]);
        sentinel.signal("-TERM");
        sentinel.wait();
        let log = sentinel.seen.join("\n");
        assert_eq!(
            log.contains("other users may change it"),
            warns,
            "{name}: {log}"
        );
        assert_eq!(mode(name), if warns { "660" } else { "600" });
    }
}

/// As in `/tmp`: SQLite would take the content of a planted `-wal` for that of the queue.
#[test]
fn files_of_other_users_beside_a_queue_are_refused() {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: only root can give a file to another user");
        return;
    }
    use std::os::unix::fs::{PermissionsExt, chown};
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "p", ONE_ROW);
    let open = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let text = database.to_str().unwrap();
    for suffix in ["-journal", "-wal", "-shm"] {
        let beside = format!("{text}{suffix}");
        let _ = std::fs::remove_file(&beside);
        std::fs::write(&beside, "planted").unwrap();
        chown(&beside, Some(1000), None).unwrap();
        for words in [
            vec!["jobs", "--database", text],
            vec!["init", text],
            vec![
                "sentinel",
                "--bind",
                "tcp://127.0.0.1:*",
                "--database",
                text,
            ],
        ] {
            let refused = casparian(&words);
            assert_eq!(refused.status.code(), Some(1), "{words:?}");
            let reason = stderr(&refused);
            assert!(
                reason.contains(&format!("{suffix}: it belongs to user 1000")),
                "{words:?}: {reason}"
            );
        }
        std::fs::remove_file(&beside).unwrap();
    }
    casparian_ok(&["jobs", "--database", text]);
    // A database of another user is named.
    chown(&database, Some(1000), None).unwrap();
    let named = casparian(&["init", text]);
    assert!(
        stderr(&named).contains("user 1000, whose it is"),
        "{}",
        stderr(&named)
    );
}

/// The only other worker with a free slot cannot run what waits.
#[test]
fn a_slot_that_a_cancelled_job_frees_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    std::fs::write(
        path("hangs.py"),
        "import time\nclass Handler:\n    def execute(self, path):\n        time.sleep(600)\n",
    )
    .unwrap();
    casparian_ok(&["deploy", &text("hangs.py"), "-d", &text("queue.sqlite")]);
    std::fs::write(path("in"), "1").unwrap();
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let mut idle = worker(&endpoint, &out, &["--plugins", "other"]);
    let mut busy = worker(&endpoint, &out, &["--plugins", "one,hangs", "--slots", "1"]);
    for worker in [&mut idle, &mut busy] {
        worker.line_with("connected");
    }
    let hung = submit(&database, "hangs", &[path("in")]);
    until("it runs", || {
        (job(&database, hung[0])["status"] == "RUNNING").then_some(())
    });
    let waiting = submit(&database, "one", &[path("in")]);
    let store = rusqlite::Connection::open(&database).unwrap();
    store
        .execute(
            "UPDATE cf_processing_queue SET status = 'SKIPPED' WHERE id = ?1",
            [hung[0]],
        )
        .unwrap();
    drop(store);
    assert_eq!(ended(&database, waiting[0])["status"], "COMPLETED");
}

/// As migration tools do whose models do not have our indexes.
#[test]
fn indexes_that_other_programs_drop_are_created_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        return pa.table({'x': [1]})\n";
    let database = database_with(dir.path(), "p", source);
    let input = dir.path().join("in");
    std::fs::write(&input, "x").unwrap();
    let job = submit(&database, "p", &[input])[0];
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let _worker = worker(&endpoint, &out, &[]);
    ended(&database, job);
    let indexes = ["claim", "retry", "running", "unsettled"];
    for index in indexes {
        // The second row is due again since long ago.
        sql(
            &database,
            &format!(
                "DROP INDEX ix_casparian_{index}; \
                 INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
                 SELECT file_version_id, plugin_name, 'QUEUED' FROM cf_processing_queue WHERE id = {job}; \
                 INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, next_run) \
                 SELECT file_version_id, plugin_name, 'PENDING', '2020-01-01T00:00:00+00:00' \
                 FROM cf_processing_queue WHERE id = {job}"
            ),
        );
        let database_text = database.to_str().unwrap();
        casparian_ok(&["jobs", "--database", database_text]);
        casparian_ok(&["job", &job.to_string(), "--database", database_text]);
        casparian_ok(&["workers", "--database", database_text]);
        let last: i64 = sql(&database, "SELECT max(id) FROM cf_processing_queue")
            .parse()
            .unwrap();
        for id in [last - 1, last] {
            assert_eq!(ended(&database, id)["status"], "COMPLETED", "{index}");
        }
    }
    sentinel.line_with("ix_casparian_claim: another program has dropped or changed it");
    // Nothing has created it again yet where no sentinel works.
    drop(sentinel);
    sql(
        &database,
        "DROP INDEX ix_casparian_running; DROP INDEX ix_casparian_unsettled",
    );
    casparian_ok(&[
        "fsck",
        "--database",
        database.to_str().unwrap(),
        "--output",
        out.to_str().unwrap(),
    ]);
}

/// A dump has no `user_version`.
#[test]
fn a_database_that_was_restored_from_a_dump_can_be_inspected() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    submit(&database, "one", std::slice::from_ref(&input));
    let store = rusqlite::Connection::open(&database).unwrap();
    store.execute_batch("PRAGMA user_version = 0").unwrap();
    let version = || -> i64 {
        let query = "PRAGMA user_version";
        store.query_row(query, [], |row| row.get(0)).unwrap()
    };
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let (database_text, out) = (database.to_str().unwrap(), out.to_str().unwrap());
    for arguments in [
        &["jobs"][..],
        &["job", "1"],
        &["workers"],
        &["fsck", "--output", out],
    ] {
        casparian_ok(&[arguments, &["--database", database_text]].concat());
        assert_eq!(version(), 0, "{arguments:?}");
    }
    submit(&database, "one", &[input]);
    assert!(version() > 0);
}
