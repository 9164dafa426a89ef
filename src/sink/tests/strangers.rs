//! SQLite tables that another program created, or a job with columns of other types: either all rows are
//! inserted unchanged, or none.

use super::*;
use arrow::array::{Float64Array, StringArray, UInt64Array};

use crate::job::Cause;

const URI: &str = "sqlite://x.db/t";

fn sql(fixture: &Fixture, text: &str) {
    let connection = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    connection.execute_batch(text).unwrap();
}

/// Types and values of a job's rows, in the order of the rows.
fn stored(fixture: &Fixture, job_id: i64) -> Vec<String> {
    let connection = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    let query = "SELECT typeof(x) || ' ' || ifnull(x, '') FROM t WHERE _job_id = ?1 ORDER BY rowid";
    let mut statement = connection.prepare(query).unwrap();
    let rows = statement.query_map([job_id], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

fn give(fixture: &Fixture, job_id: i64, column: ArrayRef) -> Result<Vec<Artifact>, Error> {
    let mut output = fixture.output(job_id, &[("output", URI, "append")])?;
    output.write(None, &batch(vec![("x", column)]))?;
    finish(output)
}

#[test]
fn a_column_of_another_type_keeps_the_values_or_is_refused() {
    let texts = |values: &[&str]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let ints = |values: &[i64]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
    let reals = |values: &[f64]| Arc::new(Float64Array::from(values.to_vec())) as ArrayRef;
    let unsigned = |values: &[u64]| Arc::new(UInt64Array::from(values.to_vec())) as ArrayRef;
    // The first job's column, the second job's column, and the stored values of the second; `None` =
    // refused.
    let cases: Vec<(ArrayRef, ArrayRef, Option<&[&str]>)> = vec![
        (ints(&[1]), ints(&[2]), Some(&["integer 2"])),
        (ints(&[1]), texts(&["007"]), None),
        (ints(&[1]), texts(&["a", "1e3"]), None),
        (
            ints(&[1]),
            texts(&["a", "0x1"]),
            Some(&["text a", "text 0x1"]),
        ),
        (
            ints(&[1]),
            reals(&[1.5, 2.0]),
            Some(&["real 1.5", "integer 2"]),
        ),
        (ints(&[1]), unsigned(&[7]), Some(&["integer 7"])),
        (ints(&[1]), unsigned(&[u64::MAX]), None),
        (reals(&[1.0]), ints(&[2]), Some(&["real 2.0"])),
        (reals(&[1.0]), ints(&[(1 << 53) + 1]), None),
        (reals(&[1.0]), texts(&[" 7 "]), None),
        (texts(&["a"]), ints(&[1]), None),
        (texts(&["a"]), reals(&[1.0]), None),
        (texts(&["a"]), texts(&["1"]), Some(&["text 1"])),
        (unsigned(&[1]), texts(&["007"]), Some(&["text 007"])),
        (unsigned(&[1]), ints(&[-1]), Some(&["integer -1"])),
    ];
    for (number, (first, second, want)) in cases.into_iter().enumerate() {
        let fixture = Fixture::new();
        give(&fixture, 1, first).unwrap();
        let before = stored(&fixture, 1);
        match (give(&fixture, 2, second), want) {
            (Ok(_), Some(want)) => assert_eq!(stored(&fixture, 2), want, "{number}"),
            (Err(error), None) => {
                let text = error.to_string();
                assert!(
                    text.contains("column x") || text.contains("\"x\""),
                    "{number}: {text}"
                );
                assert!(text.contains("would change the value"), "{number}: {text}");
                assert_eq!(stored(&fixture, 2), [""; 0], "{number}");
            }
            (result, want) => panic!("{number}: {result:?}, expected {want:?}"),
        }
        assert_eq!(stored(&fixture, 1), before, "{number}");
    }
}

#[test]
fn a_table_that_does_not_keep_rows_fails_the_job_that_meets_it() {
    let table = "CREATE TABLE t (x INTEGER, _job_id INTEGER, _file_version_id INTEGER";
    for (code, want) in [
        (format!("{table}, UNIQUE (x) ON CONFLICT IGNORE)"), "UNIQUE"),
        (
            format!("{table}, UNIQUE (x) ON CONFLICT REPLACE)"),
            "UNIQUE",
        ),
        (
            format!(
                "{table}); CREATE TRIGGER i BEFORE INSERT ON t WHEN NEW.x = 2 BEGIN SELECT RAISE(IGNORE); END"
            ),
            "the trigger \"i\" of the table t leaves 2 rows",
        ),
        (
            format!(
                "{table}); CREATE TRIGGER i AFTER INSERT ON t WHEN NEW.x = 2 BEGIN DELETE FROM t WHERE x = 2; END"
            ),
            "the trigger \"i\" of the table t leaves 2 rows",
        ),
    ] {
        let fixture = Fixture::new();
        sql(
            &fixture,
            &format!("{code}; INSERT INTO t VALUES (3, 99, 0)"),
        );
        let error = fixture.publish(1, URI, "append").unwrap_err();
        assert!(error.to_string().contains(want), "{code}: {error}");
        assert_eq!(stored(&fixture, 1), [""; 0], "{code}");
        assert_eq!(stored(&fixture, 99), ["integer 3"], "{code}");
    }
    // A trigger that changes neither the number of rows in the table nor the number that the statement
    // reports.
    let fixture = Fixture::new();
    sql(
        &fixture,
        &format!(
            "{table}); CREATE TRIGGER i AFTER INSERT ON T WHEN NEW.x = 2 BEGIN \
             UPDATE t SET _job_id = 98 WHERE x = 2; END"
        ),
    );
    let error = fixture.publish(1, URI, "append").unwrap_err().to_string();
    assert!(
        error.contains("\"i\" of the table t leaves 2 rows"),
        "{error}"
    );
    // Triggers that write to other tables are accepted, and so is another order of columns.
    let fixture = Fixture::new();
    sql(
        &fixture,
        "CREATE TABLE t (_file_version_id INTEGER, _job_id INTEGER, x INTEGER); \
         CREATE TABLE log (x); \
         CREATE TRIGGER i AFTER INSERT ON t BEGIN INSERT INTO log VALUES (NEW.x); END",
    );
    fixture.publish(1, URI, "append").unwrap();
    assert_eq!(stored(&fixture, 1).len(), 3);
}

#[test]
fn what_is_no_usable_table_is_the_operators_fault() {
    for (code, want) in [
        (
            "CREATE VIEW t AS SELECT 1 AS x, 2 AS _job_id, 3 AS _file_version_id",
            "t because it is a view",
        ),
        (
            "PRAGMA encoding = 'UTF-16'; CREATE TABLE other (x)",
            "encoding",
        ),
        (
            "CREATE TABLE t (x INTEGER)",
            "it lacks \"_job_id\", \"_file_version_id\"",
        ),
        (
            "CREATE TABLE t (_job_id INTEGER, y)",
            "it lacks \"x\", \"_file_version_id\"; it also has \"y\"",
        ),
        (
            "CREATE TABLE _casparian_output (a, b)",
            "its table _casparian_output is another program's: it lacks the column sink_table",
        ),
        (
            "CREATE VIEW _casparian_key AS SELECT 1 AS x",
            "its table _casparian_key is another program's",
        ),
        (
            "CREATE TABLE _casparian_table (sink_table)",
            "it lacks the column database",
        ),
    ] {
        for mode in ["append", "replace", "error"] {
            // The view has a row, so mode `error` is refused for another reason.
            if (mode, want) == ("error", "t because it is a view") {
                continue;
            }
            let fixture = Fixture::new();
            sql(&fixture, code);
            let error = fixture.publish(1, URI, mode).unwrap_err();
            assert_eq!(error.cause(), Cause::Operator, "{code}: {error}");
            let text = error.to_string();
            assert!(text.contains(want), "{code} {mode}: {text}");
        }
    }
}

/// The sink of a job changes, and its earlier output cannot be removed.
#[test]
fn earlier_output_that_cannot_be_removed_costs_no_new_output() {
    for obstacle in [
        "CREATE TRIGGER d BEFORE DELETE ON t BEGIN SELECT RAISE(ABORT, 'kept'); END",
        "CREATE TRIGGER d BEFORE DELETE ON t BEGIN SELECT RAISE(IGNORE); END",
        "DROP INDEX _casparian_job_t; ALTER TABLE t DROP COLUMN _job_id",
        "ALTER TABLE t RENAME TO u; CREATE VIEW t AS SELECT * FROM u",
    ] {
        let fixture = Fixture::new();
        let parquet = &[("output", "parquet://o.parquet", "append")];
        let attempt = |number, sinks| job(Some(A), Attempt::new(7, number), sinks);
        publish(
            &fixture.root,
            &attempt(1, &[("output", URI, "append")]),
            &[1],
        )
        .unwrap();
        sql(&fixture, obstacle);
        for number in 2..4 {
            let published = publish(&fixture.root, &attempt(number, parquet), &[number]).unwrap();
            assert_eq!(published.artifacts.len(), 1, "{obstacle}");
            assert_eq!(values(&fixture.path("o_7.parquet")), [number], "{obstacle}");
        }
        // After the trigger was dropped, the next attempt removes the old rows.
        if obstacle.contains("TRIGGER") {
            sql(&fixture, "DROP TRIGGER d");
            publish(&fixture.root, &attempt(4, parquet), &[4]).unwrap();
            assert_eq!(stored(&fixture, 7), [""; 0]);
        }
    }
}

/// Triggers that prevent rows from being deleted, or insert them again.
#[test]
fn a_table_that_keeps_earlier_rows_fails_the_job_that_replaces_them() {
    for (obstacle, trigger) in [
        (
            "CREATE TRIGGER d BEFORE DELETE ON t BEGIN SELECT RAISE(IGNORE); END",
            "\"d\"",
        ),
        (
            "CREATE TRIGGER d AFTER DELETE ON T BEGIN \
             INSERT INTO t VALUES (OLD.x, OLD._job_id, OLD._file_version_id); END",
            "\"d\"",
        ),
        (
            "ALTER TABLE t RENAME TO u; CREATE VIEW t AS SELECT * FROM u; \
             CREATE TRIGGER i INSTEAD OF INSERT ON t BEGIN INSERT INTO u \
             VALUES (NEW.x, NEW._job_id, NEW._file_version_id); END; \
             CREATE TRIGGER d INSTEAD OF DELETE ON t BEGIN SELECT 1; END",
            "\"d\", \"i\"",
        ),
    ] {
        for (mode, next) in [("append", 7), ("replace", 7), ("replace", 8)] {
            let fixture = Fixture::new();
            let of = |job_id, number, mode| {
                job(
                    Some(A),
                    Attempt::new(job_id, number),
                    &[("output", URI, mode)],
                )
            };
            publish(&fixture.root, &of(7, 1, "append"), &[1]).unwrap();
            sql(&fixture, obstacle);
            let number = if next == 7 { 2 } else { 1 };
            let error = publish(&fixture.root, &of(next, number, mode), &[2]).unwrap_err();
            assert_eq!(error.cause(), Cause::Operator, "{obstacle}: {error}");
            let text = error.to_string();
            let want = format!("{trigger} of the table t leaves 1 row");
            assert!(text.contains(&want), "{obstacle} {mode} {next}: {text}");
            let connection = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
            let query = "SELECT group_concat(_job_id || ':' || x) FROM t";
            let all: String = connection.query_row(query, [], |row| row.get(0)).unwrap();
            assert_eq!(all, "7:1", "{obstacle} {mode} {next}");
        }
    }
}

/// When rows are reported as removed, the table has no rows of the job.
#[test]
fn rows_that_a_trigger_keeps_are_not_reported_as_removed() {
    let fixture = Fixture::new();
    let of = |number| {
        job(
            Some(A),
            Attempt::new(7, number),
            &[("output", URI, "append")],
        )
    };
    publish(&fixture.root, &of(1), &[1]).unwrap();
    sql(
        &fixture,
        "CREATE TRIGGER d BEFORE DELETE ON t BEGIN SELECT RAISE(IGNORE); END",
    );
    let error = fixture.root.settle_failed(&of(2)).unwrap_err().to_string();
    assert!(
        error.contains("\"d\" of the table t leaves 1 row"),
        "{error}"
    );
    sql(&fixture, "DROP TRIGGER d");
    fixture.root.settle_failed(&of(3)).unwrap();
    assert_eq!(stored(&fixture, 7), [""; 0]);
}

#[test]
fn rows_that_go_take_no_rows_of_other_jobs_with_them() {
    let fixture = Fixture::new();
    sql(
        &fixture,
        "CREATE TABLE a (x INTEGER UNIQUE, _job_id INTEGER, _file_version_id INTEGER); \
         CREATE TABLE t (x INTEGER REFERENCES a (x) ON DELETE CASCADE, _job_id INTEGER, \
         _file_version_id INTEGER)",
    );
    fixture.publish(1, "sqlite://x.db/a", "append").unwrap();
    fixture.publish(2, URI, "append").unwrap();
    fixture.publish(1, "sqlite://x.db/a", "append").unwrap();
    assert_eq!(stored(&fixture, 2).len(), 3);
}

/// Creates something other than a regular file at a path.
fn obstruct(path: &Path, kind: &str) {
    match kind {
        "folder" => fs::create_dir(path).unwrap(),
        "link" => std::os::unix::fs::symlink("/nowhere", path).unwrap(),
        "socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        _ => {
            let made = std::process::Command::new("mkfifo").arg(path).status();
            assert!(made.unwrap().success());
        }
    }
}

#[test]
fn what_stands_beside_a_database_is_the_operators_fault() {
    for suffix in ["-journal", "-wal", "-shm"] {
        for kind in ["fifo", "folder", "link", "socket"] {
            let fixture = Fixture::new();
            sql(&fixture, "CREATE TABLE other (x)");
            let beside = fixture.path(&format!("x.db{suffix}"));
            obstruct(&beside, kind);
            let error = fixture.publish(1, URI, "append").unwrap_err();
            assert_eq!(error.cause(), Cause::Operator, "{suffix} {kind}: {error}");
            let name = beside.to_str().unwrap();
            assert!(error.to_string().contains(name), "{suffix} {kind}: {error}");
        }
    }
}

/// A hot journal of a transaction over several databases, as after a crash. `list` is the super-journal,
/// which lists the journals.
fn hot_journal(list: &Path) -> Vec<u8> {
    const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
    let mut journal = MAGIC.to_vec();
    // Number of pages, nonce, size of the database in pages, sector size, page size.
    for number in [0u32, 0, 2, 512, 4096] {
        journal.extend(number.to_be_bytes());
    }
    journal.resize(512, 0);
    let name = list.to_str().unwrap().as_bytes();
    let sum = name.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    journal.extend([0, 4, 0, 1]);
    journal.extend(name);
    journal.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
    journal.extend(sum.to_be_bytes());
    journal.extend(MAGIC);
    journal
}

/// SQLite reads the file that a journal names as its super-journal, and may remove it.
#[test]
fn a_journal_of_another_user_removes_nothing_but_a_list_that_names_it() {
    const LIST: &str = "other.db-mj0123459AB";
    for (name, names_journal, stays) in [
        ("notes.txt", false, true),
        ("notes.txt", true, true),
        (LIST, false, true),
        (LIST, true, false),
    ] {
        let (fixture, outside) = (Fixture::new(), Fixture::new());
        sql(&fixture, "CREATE TABLE other (x)");
        fs::copy(fixture.path("x.db"), outside.path("other.db")).unwrap();
        let other = fs::read(outside.path("other.db")).unwrap();
        let journal = fixture.path("x.db-journal");
        let mut content = format!("{}\0", outside.path("other.db-journal").display());
        if names_journal {
            content.push_str(&format!("{}\0", journal.display()));
        }
        let list = outside.path(name);
        fs::write(&list, &content).unwrap();
        fs::write(&journal, hot_journal(&list)).unwrap();
        fixture.publish(1, URI, "append").unwrap();
        assert_eq!(stored(&fixture, 1).len(), 3);
        assert!(!journal.exists(), "it was rolled back");
        assert_eq!(list.exists(), stays, "{name} {names_journal}");
        assert_eq!(fs::read(outside.path("other.db")).unwrap(), other);
    }
}

#[test]
fn a_truncated_database_is_called_damaged() {
    for size in [100, 4096, 6000] {
        let fixture = Fixture::new();
        fixture.publish(1, URI, "append").unwrap();
        let file = fs::OpenOptions::new()
            .write(true)
            .open(fixture.path("x.db"));
        file.unwrap().set_len(size).unwrap();
        let error = fixture.publish(2, URI, "append").unwrap_err();
        assert_eq!(error.cause(), Cause::Operator, "{size}: {error}");
        let text = error.to_string();
        assert!(
            text.contains("malformed") && text.contains("x.db"),
            "{size}: {text}"
        );
    }
}

/// The sink of a job changes, or the job fails, while a FIFO is beside the earlier database.
#[test]
fn a_fifo_beside_a_database_keeps_no_recovery_waiting() {
    let fixture = Fixture::new();
    let attempt = |number, sinks| job(Some(A), Attempt::new(7, number), sinks);
    let sqlite = &[("output", URI, "append")];
    let parquet = &[("output", "parquet://o.parquet", "append")];
    publish(&fixture.root, &attempt(1, sqlite), &[1]).unwrap();
    let fifo = fixture.path("x.db-journal");
    obstruct(&fifo, "fifo");
    let error = fixture.root.settle_failed(&attempt(2, sqlite)).unwrap_err();
    assert!(error.to_string().contains("x.db-journal"), "{error}");
    let published = publish(&fixture.root, &attempt(3, parquet), &[3]).unwrap();
    assert_eq!(published.removed, [""; 0]);
    fs::remove_file(fifo).unwrap();
    let published = publish(&fixture.root, &attempt(4, parquet), &[4]).unwrap();
    assert_eq!(published.removed.len(), 1);
    assert_eq!(stored(&fixture, 7), [""; 0]);
}

#[test]
fn a_table_with_other_columns_is_the_operators_fault_and_they_are_named() {
    for (change, want) in [
        ("ALTER TABLE rows ADD COLUMN note", "it also has \"note\""),
        (
            "ALTER TABLE rows RENAME COLUMN x TO y",
            "it lacks \"x\"; it also has \"y\"",
        ),
        ("ALTER TABLE rows DROP COLUMN x", "it lacks \"x\""),
    ] {
        let fixture = Fixture::new();
        let of = |number| {
            let sinks = [("t", "sqlite://x.db/rows", "append")];
            job(Some(A), Attempt::new(7, number), &sinks)
        };
        publish(&fixture.root, &of(1), &[1]).unwrap();
        let database = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
        database.execute_batch(change).unwrap();
        let error = publish(&fixture.root, &of(2), &[2]).unwrap_err();
        assert_eq!(error.cause(), crate::job::Cause::Operator, "{error}");
        let want = format!("has other columns than the output: {want}; change the table");
        assert!(error.to_string().contains(&want), "{error}");
    }
}

#[test]
fn a_database_of_utf_16_is_refused_with_what_to_do() {
    let fixture = Fixture::new();
    let database = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    let made = "PRAGMA encoding = 'UTF-16'; CREATE TABLE other (a)";
    database.execute_batch(made).unwrap();
    let sinks = [("t", "sqlite://x.db/rows", "append")];
    let job = job(Some(A), Attempt::new(7, 1), &sinks);
    let error = publish(&fixture.root, &job, &[1]).unwrap_err();
    assert_eq!(error.cause(), crate::job::Cause::Operator, "{error}");
    assert!(error.to_string().contains("PRAGMA encoding"), "{error}");
}
