use super::*;
use crate::store::schema::{MIGRATIONS, VERSION};

#[test]
fn a_legacy_database_opens_in_place_and_works() {
    let mut scene = Scene::legacy();
    let claimed = scene.claim(&["sales"], 10);
    assert_eq!(ids(&claimed), [2, 1], "priority 10 before 0");
    let first = &claimed.jobs[0];
    assert_eq!(first.file_path, "/data/in/2025/f2.csv");
    assert_eq!(first.sinks.len(), 1);
    assert_eq!(first.sinks[0].uri, "parquet://other.parquet");
    assert_eq!(first.sinks[0].mode, Mode::Replace);
    assert_eq!(
        claimed.jobs[1].sinks[0].uri,
        "parquet://sales.parquet?compression=zstd"
    );
    assert!(first.plugin.source_code.contains("class Handler"));
    assert_eq!(
        first.plugin.env_hash,
        sha256_hex(&[first.plugin.lockfile_content.as_bytes()])
    );
    // The reference system writes no worker. Its RUNNING job can be queued again.
    let running = scene.store.running().unwrap();
    let legacy = Running {
        attempt: Attempt::new(3, 0),
        worker_id: String::new(),
        user: None,
        runs_alone: false,
    };
    assert!(running.contains(&legacy), "{running:?}");
    assert_eq!(running.len(), 3);
    assert_eq!(scene.release(legacy.attempt, 0), Ended::Queued);
    assert_eq!(scene.status(3), "QUEUED");
    // Programs of the reference system can still insert their rows.
    scene.sql(
        "INSERT INTO cf_processing_queue (file_version_id, plugin_name, config_overrides, status, \
         priority, retry_count) VALUES (4, 'sales', NULL, 'QUEUED', 99, 0)",
    );
    assert!(scene.store.changed().unwrap());
    assert_eq!(ids(&scene.claim(&["sales"], 1)), [8]);
}

#[test]
fn every_table_and_column_of_the_reference_is_in_a_new_database_too() {
    let legacy = Connection::open(legacy_path()).unwrap();
    let ours = Scene::new();
    let columns = |connection: &Connection, table: &str| -> Vec<String> {
        let mut statement = connection
            .prepare(&format!("PRAGMA table_info({table})"))
            .unwrap();
        let rows = statement
            .query_map([], |row| {
                Ok(format!(
                    "{} {} {} {:?} {}",
                    row.get::<_, String>(1)?,
                    row.get::<_, String>(2)?,
                    row.get::<_, i64>(3)?,
                    row.get::<_, Option<String>>(4)?,
                    row.get::<_, i64>(5)?
                ))
            })
            .unwrap();
        rows.map(Result::unwrap).collect()
    };
    let mut statement = legacy
        .prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'cf_%'")
        .unwrap();
    let tables: Vec<String> = statement
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert!(tables.len() >= 16);
    for table in tables {
        let theirs = columns(&legacy, &table);
        let mine = columns(&ours.store.connection, &table);
        assert_eq!(mine[..theirs.len()], theirs, "{table}");
    }
    assert_eq!(ours.text("PRAGMA journal_mode"), "wal");
    assert_eq!(ours.text("PRAGMA synchronous"), "Integer(2)");
}

#[test]
fn a_dropped_transaction_changes_nothing() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let mut transaction = scene.store.begin().unwrap();
    transaction.enqueue("p", 1, 0, DAY_MS).unwrap();
    transaction.park_queued().unwrap();
    // A deployment in a dropped transaction does not stay in the cache.
    let deploy = Deploy {
        plugin_name: "p",
        version: None,
        source_code: "undone",
        lockfile_content: "",
        sinks: &[],
    };
    transaction.deploy(&deploy, DAY_MS).unwrap();
    transaction.plugin_code("p").unwrap();
    drop(transaction);
    let mut transaction = scene.store.begin().unwrap();
    let code = transaction.plugin_code("p").unwrap().runs().unwrap();
    assert_eq!(code.plugin.source_code, "class Handler: pass\n");
    drop(transaction);
    assert_eq!(scene.status(id), "QUEUED");
    assert_eq!(
        scene.text("SELECT count(*) FROM cf_processing_queue"),
        "Integer(1)"
    );
}

#[test]
fn what_is_no_database_of_ours_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text");
    std::fs::write(&file, "text ".repeat(1000)).unwrap();
    let newer = dir.path().join("newer.db");
    Connection::open(&newer)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let missing = dir.path().join("missing.db");
    let fifo = dir.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    for (path, open, want) in [
        (&file, Open::Create, "no SQLite database"),
        (&dir.path().to_path_buf(), Open::Create, "directory"),
        (&missing, Open::Existing, "no such file"),
        (&missing.join("x"), Open::Create, "cannot open or make"),
        (&newer, Open::Create, "newer"),
        (&fifo, Open::Create, "not a regular file"),
        (&fifo, Open::Existing, "not a regular file"),
    ] {
        let error = Store::open(path, open).unwrap_err().to_string();
        assert!(error.contains(want) && !error.contains('\n'), "{error}");
    }
    let error = Inspector::open(&fifo).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
    let legacy = dir.path().join("legacy.sqlite");
    std::fs::copy(legacy_path(), &legacy).unwrap();
    let error = Inspector::open(&legacy).unwrap_err().to_string();
    assert!(error.contains("casparian init"), "{error}");
}

#[test]
fn columns_that_a_table_lacks_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("partial");
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("CREATE TABLE cf_processing_queue (id INTEGER PRIMARY KEY, Status TEXT)")
        .unwrap();
    drop(connection);
    let refused = |path: &Path| Store::open(path, Open::Existing).unwrap_err().to_string();
    let error = refused(&path);
    let wants = "table cf_processing_queue has no column file_version_id, plugin_name, ";
    assert!(error.contains(wants), "{error}");
    assert!(!error.contains("status"), "{error}");
    // A database of the current version.
    let path = dir.path().join("dropped");
    drop(Store::open(&path, Open::Create).unwrap());
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "DROP INDEX ix_casparian_claim; \
             ALTER TABLE cf_processing_queue DROP COLUMN shared_count",
        )
        .unwrap();
    drop(connection);
    let more = refused(&path);
    let wants = "table cf_processing_queue has no column shared_count; ";
    assert!(more.contains(wants), "{more}");
    for error in [error, more] {
        assert!(!error.contains('\n') && error.len() < 600, "{error}");
    }
}

#[test]
fn another_programs_database_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    for (name, script, is_foreign) in [
        ("table", "CREATE TABLE users (id INTEGER PRIMARY KEY)", true),
        ("view", "CREATE VIEW one AS SELECT 1", true),
        (
            "versioned",
            "CREATE TABLE users (id INTEGER); PRAGMA user_version = 3",
            true,
        ),
        (
            "current",
            "CREATE TABLE users (id INTEGER); PRAGMA user_version = {VERSION}",
            true,
        ),
        ("prefix", "CREATE TABLE cf_cache (key TEXT)", true),
        ("empty", "", false),
        (
            "beside",
            "CREATE TABLE users (id INTEGER); \
             CREATE TABLE cf_routing_rule (id INTEGER NOT NULL, pattern VARCHAR(500) NOT NULL, \
             tag VARCHAR(50) NOT NULL, priority INTEGER, PRIMARY KEY (id))",
            false,
        ),
    ] {
        let path = dir.path().join(name);
        let connection = Connection::open(&path).unwrap();
        let script = script.replace("{VERSION}", &crate::store::schema::VERSION.to_string());
        connection.execute_batch(&script).unwrap();
        // For an empty script the file has 0 bytes.
        drop(connection);
        let before = std::fs::read(&path).unwrap();
        if !is_foreign {
            Store::open(&path, Open::Existing).unwrap();
            Store::open(&path, Open::Create).unwrap();
            continue;
        }
        for open in [Open::Create, Open::Existing] {
            let error = Store::open(&path, open).unwrap_err().to_string();
            assert!(error.contains("of another program"), "{name}: {error}");
        }
        let error = Inspector::open(&path).unwrap_err().to_string();
        assert!(error.contains("of another program"), "{name}: {error}");
        assert!(std::fs::read(&path).unwrap() == before, "{name}");
    }
}

#[test]
fn programs_that_migrate_at_once_do_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let alone = dir.path().join("alone.sqlite");
    std::fs::copy(legacy_path(), &alone).unwrap();
    drop(Store::open(&alone, Open::Existing).unwrap());
    for number in 0..10 {
        let path = dir.path().join(format!("legacy{number}.sqlite"));
        std::fs::copy(legacy_path(), &path).unwrap();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| Store::open(&path, Open::Existing).map(drop)))
                .collect();
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
        assert_eq!(objects(&path), objects(&alone));
        assert_eq!(tables(&path), tables(&alone));
    }
}

/// The tables of a database: name, text, number of rows.
fn tables(path: &Path) -> Vec<(String, String, i64)> {
    let connection = Connection::open(path).unwrap();
    let query = "SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY 1";
    let mut statement = connection.prepare(query).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    let rows = rows
        .unwrap()
        .map(|row| -> (String, String) { row.unwrap() });
    let counted = rows.map(|(name, text)| {
        let query = format!("SELECT count(*) FROM \"{name}\"");
        let count = connection.query_row(&query, [], |row| row.get(0)).unwrap();
        (name, text, count)
    });
    counted.collect()
}

#[test]
fn a_full_disk_is_named_where_sqlite_reports_something_else() {
    let dir = tempfile::tempdir().unwrap();
    let reason = |code: i32, is_full| {
        let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        open_reason(&dir.path().join("q.db"), &error, is_full)
    };
    for code in [
        rusqlite::ffi::SQLITE_IOERR_WRITE,
        rusqlite::ffi::SQLITE_IOERR_SHMSIZE,
        rusqlite::ffi::SQLITE_CANTOPEN,
    ] {
        assert_eq!(reason(code, true), "the disk is full");
        assert!(!reason(code, false).contains("full"), "{code}");
    }
    assert_eq!(
        reason(rusqlite::ffi::SQLITE_FULL, false),
        "the disk is full"
    );
    assert!(reason(rusqlite::ffi::SQLITE_BUSY, true).contains("locked"));
    assert!(!is_full(&dir.path().join("q.db")));
}

#[test]
fn errors_that_may_pass_are_distinguished_from_others() {
    use rusqlite::ffi;
    for (code, passes) in [
        (ffi::SQLITE_BUSY, true),
        (ffi::SQLITE_LOCKED, true),
        (ffi::SQLITE_FULL, true),
        (ffi::SQLITE_IOERR_WRITE, true),
        (ffi::SQLITE_CANTOPEN, false),
        (ffi::SQLITE_CORRUPT, false),
        (ffi::SQLITE_NOTADB, false),
        (ffi::SQLITE_READONLY, false),
        (ffi::SQLITE_CONSTRAINT, false),
    ] {
        let error = || rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        assert_eq!(Error::from(error()).may_pass(), passes, "{code}");
        let at_open = open_error(std::path::Path::new("/missing/q.db"), &error());
        assert_eq!(at_open.may_pass(), passes, "{at_open}");
    }
    let dir = tempfile::tempdir().unwrap();
    let missing = Store::open(&dir.path().join("q.db"), Open::Existing).unwrap_err();
    let folder = lock_database(dir.path(), Open::Create).unwrap_err();
    assert!(!missing.may_pass() && !folder.may_pass());
    let full = std::io::Error::from(rustix::io::Errno::NOSPC);
    let refused = std::io::Error::from(rustix::io::Errno::ACCESS);
    assert!(io_passes(&full) && !io_passes(&refused));
}

/// The indexes and triggers of a database: kind, name and text.
fn objects(path: &Path) -> Vec<(String, String, String)> {
    let connection = Connection::open(path).unwrap();
    let query = "SELECT type, name, sql FROM sqlite_master \
         WHERE type IN ('index', 'trigger') AND sql IS NOT NULL ORDER BY 1, 2";
    let mut statement = connection.prepare(query).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

/// What a migration tool runs to change a table: SQLite drops its indexes and triggers with it.
const RECREATE: &str = "PRAGMA foreign_keys = off; BEGIN IMMEDIATE; \
     CREATE TABLE again AS SELECT * FROM cf_processing_queue; \
     DROP TABLE cf_processing_queue; \
     {TABLE}; INSERT INTO cf_processing_queue SELECT * FROM again; DROP TABLE again; COMMIT";

#[test]
fn indexes_and_triggers_that_other_programs_drop_or_change_are_restored() {
    let new = Scene::new();
    let all = objects(&new.path());
    let table = new.text("SELECT sql FROM sqlite_master WHERE name = 'cf_processing_queue'");
    drop(new);
    let mut changes: Vec<String> = all
        .iter()
        .map(|(kind, name, _)| format!("DROP {kind} {name}"))
        .collect();
    let own = all
        .iter()
        .filter(|(_, name, _)| name.contains("casparian_"));
    changes.extend(own.map(|(kind, name, _)| {
        let other = match kind.as_str() {
            "index" => format!("CREATE INDEX {name} ON cf_processing_queue (status)"),
            _ => format!(
                "CREATE TRIGGER {name} AFTER DELETE ON cf_processing_queue BEGIN SELECT 1; END"
            ),
        };
        format!("DROP {kind} {name}; {other}")
    }));
    changes.push(RECREATE.replace("{TABLE}", &table));
    let others = "CREATE TRIGGER other_t AFTER DELETE ON cf_plugin_config BEGIN SELECT 1; END; \
         CREATE INDEX other_i ON cf_plugin_config (plugin_name)";
    for is_open in [false, true] {
        let mut scene = Scene::new();
        scene.sql(others);
        let path = scene.path();
        for change in &changes {
            scene.sql(change);
            match is_open {
                true => scene.store.begin().unwrap().commit().unwrap(),
                false => scene.store = Store::open(&path, Open::Existing).unwrap(),
            }
            let mut found = objects(&path);
            found.retain(|(_, name, _)| !name.starts_with("other_"));
            assert_eq!(found, all, "{is_open} {change}");
        }
        let count = objects(&path).len();
        assert_eq!(count, all.len() + 2, "those of other programs stay");
        scene.enqueue("p", 0);
        assert_eq!(scene.claim(&["p"], 1).jobs.len(), 1);
    }
}

/// What the triggers would have noted is noted when they are restored.
#[test]
fn a_job_that_was_taken_while_a_trigger_was_missing_is_settled() {
    let mut scene = Scene::new();
    for _ in 0..3 {
        scene.enqueue("p", 0);
    }
    let claimed = scene.claim(&["p"], 3).jobs;
    scene.report("w", claimed[2].attempt, &success(&["file:///o"]), 0);
    scene.sql(
        "DROP TRIGGER casparian_job_taken; \
         UPDATE cf_processing_queue SET status = 'SKIPPED' WHERE id = 1",
    );
    scene.store.begin().unwrap().commit().unwrap();
    let unsettled = "SELECT group_concat(coalesce(unsettled, 'null')) FROM cf_processing_queue";
    assert_eq!(scene.text(unsettled), "1,null,0");
    let mut transaction = scene.store.begin().unwrap();
    let (settlement, _) = transaction.take_settlement(1).unwrap().unwrap();
    let past = settlement.history.past.iter();
    let past: Vec<_> = past.map(|past| (past.number, past.key)).collect();
    assert_eq!(past, [(1, claimed[0].history.key)]);
}

#[test]
fn what_cannot_be_restored_keeps_no_open_database_from_working() {
    for change in [
        "DROP TABLE cf_surveyor_session",
        "DROP INDEX ix_casparian_deployed; CREATE TABLE ix_casparian_deployed (x)",
        "PRAGMA user_version = 99; DROP TRIGGER casparian_job_taken",
    ] {
        let mut scene = Scene::new();
        scene.enqueue("p", 0);
        scene.sql(change);
        let before = objects(&scene.path());
        for _ in 0..2 {
            scene.store.begin().unwrap().commit().unwrap();
        }
        assert_eq!(objects(&scene.path()), before, "{change}");
        assert_eq!(scene.claim(&["p"], 1).jobs.len(), 1, "{change}");
        if change.contains("surveyor") {
            Store::open(&scene.path(), Open::Existing).unwrap();
        }
    }
}

#[test]
fn code_of_others_that_refuses_to_note_a_taken_job_keeps_no_database_closed() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    scene.claim(&["p"], 1);
    scene.sql(
        "DROP TRIGGER casparian_job_taken; UPDATE cf_processing_queue SET status = 'SKIPPED'; \
         CREATE TRIGGER guard BEFORE UPDATE OF unsettled ON cf_processing_queue \
         BEGIN SELECT RAISE(ABORT, 'no'); END",
    );
    let path = scene.path();
    scene.store = Store::open(&path, Open::Existing).unwrap();
    let names = objects(&path).into_iter().map(|(_, name, _)| name);
    assert!(names.into_iter().any(|name| name == "casparian_job_taken"));
}

/// `.dump` of sqlite3 writes no `user_version`.
#[test]
fn a_database_that_was_restored_from_a_dump_is_recognized_by_its_tables() {
    let dir = tempfile::tempdir().unwrap();
    let new = Scene::new();
    let all = objects(&new.path());
    for version in 1..=MIGRATIONS.len() {
        let path = dir.path().join(format!("{version}.db"));
        let connection = Connection::open(&path).unwrap();
        for script in &MIGRATIONS[..version] {
            connection.execute_batch(script).unwrap();
        }
        drop(connection);
        Store::open(&path, Open::Existing).unwrap_or_else(|error| panic!("{version}: {error}"));
        assert_eq!(objects(&path), all, "{version}");
        let connection = Connection::open(&path).unwrap();
        let found: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap();
        assert_eq!(found, VERSION);
        let keys = "SELECT count(*) FROM cf_casparian WHERE key = 'resolved_locations'";
        let keys: i64 = connection.query_row(keys, [], |row| row.get(0)).unwrap();
        assert_eq!(keys, 1, "{version}");
    }
    // A column is missing, so it is no version.
    let path = new.path();
    drop(new.store);
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "PRAGMA user_version = 0; ALTER TABLE cf_processing_queue DROP COLUMN attempt_key",
        )
        .unwrap_or_else(|_| {
            connection
                .execute_batch(
                    "DROP TRIGGER casparian_job_taken; DROP TRIGGER casparian_attempt_overwritten; \
                     ALTER TABLE cf_processing_queue DROP COLUMN attempt_key",
                )
                .unwrap();
        });
    drop(connection);
    let error = Store::open(&path, Open::Existing).unwrap_err().to_string();
    assert!(error.contains("no column attempt_key"), "{error}");
}

/// Programs that only read open a database that was restored from a dump, and change nothing in it.
#[test]
fn a_database_that_was_restored_from_a_dump_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    for version in 1..=MIGRATIONS.len() {
        let path = dir.path().join(format!("{version}.db"));
        let connection = Connection::open(&path).unwrap();
        for script in &MIGRATIONS[..version] {
            connection.execute_batch(script).unwrap();
        }
        drop(connection);
        let before = std::fs::read(&path).unwrap();
        match Inspector::open(&path) {
            Ok(inspector) if version == MIGRATIONS.len() => {
                assert!(inspector.counts().unwrap().is_empty());
                assert!(inspector.workers().unwrap().is_empty());
                assert!(inspector.audited(0, 999).unwrap().is_empty());
            }
            Err(Error::NotMigrated { .. }) if version < MIGRATIONS.len() => {}
            other => panic!("{version}: {other:?}"),
        }
        assert_eq!(std::fs::read(&path).unwrap(), before, "{version}");
    }
    // It may lack a part of the version, or have another number.
    let path = dir.path().join(format!("{}.db", MIGRATIONS.len()));
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("PRAGMA user_version = 99")
        .unwrap();
    assert!(matches!(Inspector::open(&path), Err(Error::Newer { .. })));
    connection
        .execute_batch("PRAGMA user_version = 0; DROP TABLE cf_worker_environment")
        .unwrap();
    assert!(matches!(
        Inspector::open(&path),
        Err(Error::NotMigrated { .. })
    ));
}
