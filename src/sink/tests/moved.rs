//! A SQLite database that another program renames, replaces or removes while rows are written into it.

use super::*;
use crate::job::Cause;
use crate::sink::publish::Step;

fn of(number: i64) -> Job {
    job(
        Some(A),
        Attempt::new(7, number),
        &[("t", "sqlite://x.db/rows", "append")],
    )
}

/// Values in the table; empty when the database or the table does not exist.
fn stored(database: &Path) -> Vec<i64> {
    if !database.exists() {
        return Vec::new();
    }
    let connection = rusqlite::Connection::open(database).unwrap();
    if !connection.table_exists(None, "rows").unwrap() {
        return Vec::new();
    }
    let mut statement = connection.prepare("SELECT x FROM rows").unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

/// A root with a database in this journal mode, in which attempt 1 has published if `has_earlier`.
fn scene(journal: &str, has_earlier: bool) -> Fixture {
    let fixture = Fixture::new();
    let connection = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    connection
        .pragma_update(None, "journal_mode", journal)
        .unwrap();
    // SQLite writes the database file with the first table.
    connection.execute_batch("CREATE TABLE other (x)").unwrap();
    if has_earlier {
        publish(&fixture.root, &of(1), &[1]).unwrap();
    }
    fixture
}

/// Moves `x.db`, with the files that SQLite keeps beside it, to `moved.db`.
fn remove_recorded(fixture: &Fixture, how: &str) {
    let database = fixture.path("x.db");
    if how == "replaced" {
        fs::copy(&database, fixture.path("copy.db")).unwrap();
    }
    fs::rename(&database, fixture.path("moved.db")).unwrap();
    for suffix in ["-wal", "-shm"] {
        let beside = fixture.path(&format!("x.db{suffix}"));
        if beside.exists() {
            fs::rename(beside, fixture.path(&format!("moved.db{suffix}"))).unwrap();
        }
    }
    match how {
        "replaced" => fs::rename(fixture.path("copy.db"), &database).unwrap(),
        "removed" => fs::remove_file(fixture.path("moved.db")).unwrap(),
        _ => {}
    }
}

fn check_refused(error: &Error) {
    assert_eq!(error.cause(), Cause::Worker, "{error}");
    let text = error.to_string();
    assert!(text.contains("x.db") && text.contains("moved"), "{text}");
}

#[test]
fn a_database_that_is_moved_before_its_commit_gets_no_rows() {
    for journal in ["delete", "wal"] {
        for how in ["moved", "replaced", "removed"] {
            for has_earlier in [false, true] {
                let case = format!("{journal} {how} {has_earlier}");
                let fixture = scene(journal, has_earlier);
                let before = stored(&fixture.path("x.db"));
                let staged = stage(&fixture.root, &of(2), &[2]).unwrap();
                let hook = |step| {
                    if step == Step::Table(0) {
                        remove_recorded(&fixture, how);
                    }
                    Ok(())
                };
                match staged.publish_by_steps(&[], &|| true, &hook).unwrap_err() {
                    Refused::Failed(error) => check_refused(&error),
                    other => panic!("{case}: {other:?}"),
                }
                if how != "removed" {
                    assert_eq!(stored(&fixture.path("moved.db")), before, "{case}");
                }
                // The next attempt writes into the database that is at the path now.
                publish(&fixture.root, &of(3), &[3]).unwrap();
                assert_eq!(stored(&fixture.path("x.db")), [3], "{case}");
            }
        }
    }
}

/// The database is moved while SQLite waits in COMMIT. The commit continues immediately.
#[test]
fn a_database_that_is_moved_while_a_reader_keeps_it_gets_no_rows() {
    for how in ["moved", "replaced"] {
        let fixture = scene("delete", true);
        let path = fixture.path("x.db");
        let reader = rusqlite::Connection::open(&path).unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM rows").unwrap();
        let staged = stage(&fixture.root, &of(2), &[2]).unwrap();
        let is_commit_waiting = || {
            let other = rusqlite::Connection::open(&path).unwrap();
            other.busy_timeout(std::time::Duration::ZERO).unwrap();
            let read = other.query_row("SELECT sum(x) FROM rows", [], |_| Ok(()));
            read.is_err()
        };
        let refused = std::thread::scope(|scope| {
            let fixture = &fixture;
            scope.spawn(move || {
                let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
                while !is_commit_waiting() && std::time::Instant::now() < end {
                    std::thread::yield_now();
                }
                remove_recorded(fixture, how);
                reader.execute_batch("COMMIT").unwrap();
            });
            staged.publish(&[], &|| true).unwrap_err()
        });
        match refused {
            Refused::Failed(error) => check_refused(&error),
            other => panic!("{how}: {other:?}"),
        }
        let before = [1];
        assert!(
            [&before[..], &[]].contains(&&stored(&fixture.path("moved.db"))[..]),
            "{how}"
        );
        publish(&fixture.root, &of(3), &[3]).unwrap();
        assert_eq!(stored(&fixture.path("x.db")), [3], "{how}");
    }
}
