use super::publish::Step;
use super::writing::every_type;
use super::*;
use crate::job::{History, Past, PastEnd};

fn table(root: &Fixture, sql: &str) -> i64 {
    let connection = rusqlite::Connection::open(root.path("x.db")).unwrap();
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn rows_go_into_a_sqlite_table_once_per_job() {
    let root = Fixture::new();
    let uri = "sqlite://x.db/my rows";
    root.publish(1, uri, "append").unwrap();
    root.publish(2, uri, "append").unwrap();
    root.publish(2, uri, "append").unwrap();
    let count = "SELECT count(*) FROM \"my rows\"";
    assert_eq!(
        table(&root, count),
        6,
        "a second attempt replaces its own rows"
    );
    assert!(matches!(
        root.publish(3, uri, "error"),
        Err(Error::Exists { .. })
    ));
    root.publish(4, uri, "replace").unwrap();
    assert_eq!(table(&root, count), 3);
    assert_eq!(
        table(
            &root,
            "SELECT sum(x) + max(_job_id) + max(_file_version_id) FROM \"my rows\""
        ),
        52
    );
    let mut output = root.output(5, &[("output", uri, "append")]).unwrap();
    output
        .write(
            None,
            &batch(vec![("other", Arc::new(Int64Array::from(vec![1])))]),
        )
        .unwrap();
    let error = finish(output).unwrap_err().to_string();
    assert!(
        error.contains("it lacks \"other\"; it also has \"x\""),
        "{error}"
    );
    assert_eq!(table(&root, count), 3);
}

#[test]
fn sqlite_stores_what_it_can_and_names_what_it_cannot() {
    let root = Fixture::new();
    let whole = every_type();
    let uri = format!("sqlite://{}/t", root.path("x.db").display());
    for nested in ["list", "struct"] {
        let column = whole.column_by_name(nested).unwrap().clone();
        let mut output = root.output(1, &[("output", &uri, "append")]).unwrap();
        let error = output
            .write(None, &batch(vec![(nested, column)]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(nested) && error.contains("cannot store"),
            "{error}"
        );
    }
    let schema = whole.schema();
    let flat: Vec<(&str, ArrayRef)> = schema
        .fields()
        .iter()
        .zip(whole.columns())
        .filter(|(field, _)| !["list", "struct"].contains(&field.name().as_str()))
        .map(|(field, column)| (field.name().as_str(), column.clone()))
        .collect();
    let mut output = root.output(1, &[("output", &uri, "append")]).unwrap();
    output.write(None, &batch(flat)).unwrap();
    finish(output).unwrap();
    let connection = rusqlite::Connection::open(root.path("x.db")).unwrap();
    let row: (
        String,
        Option<i64>,
        String,
        String,
        Vec<u8>,
        String,
        i64,
        String,
    ) = connection
        .query_row(
            "SELECT dictionary, \"null\", decimal, large, binary, date, bool, u64 FROM t LIMIT 1",
            [],
            |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get(3)?,
                    row.get(4)?,
                    row.get(5)?,
                    row.get(6)?,
                    row.get(7)?,
                ))
            },
        )
        .unwrap();
    assert_eq!(
        row,
        (
            "a".into(),
            None,
            "123.45".into(),
            "x".into(),
            vec![0],
            "1970-01-01".into(),
            1,
            u64::MAX.to_string()
        )
    );
}

const ROWS: &str = "sqlite://x.db/rows";

fn of(database: &str, job_id: i64, number: i64, mode: &str) -> Job {
    let sinks = [("t", ROWS, mode)];
    job(Some(database), Attempt::new(job_id, number), &sinks)
}

fn shared(fixture: &Fixture) -> Arc<Root> {
    Arc::new(
        Root::open(
            fixture.dir.path(),
            RootOptions {
                share: true,
                ..RootOptions::default()
            },
        )
        .unwrap(),
    )
}

#[test]
fn a_table_belongs_to_the_first_database_unless_it_is_shared() {
    let fixture = Fixture::new();
    publish(&fixture.root, &of(A, 7, 1, ""), &[1]).unwrap();
    let error = publish(&fixture.root, &of(B, 7, 1, ""), &[2]).unwrap_err();
    assert!(matches!(error, Error::OtherDatabase { .. }), "{error}");
    let shared = shared(&fixture);
    publish(&shared, &of(B, 7, 1, ""), &[2]).unwrap();
    publish(&shared, &of(B, 7, 2, ""), &[3]).unwrap();
    publish(&shared, &of(A, 7, 2, ""), &[4]).unwrap();
    let count = |condition: &str| {
        let sql = format!("SELECT ifnull(sum(x * 10 + 1), 0) FROM rows WHERE {condition}");
        table(&fixture, &sql)
    };
    assert_eq!(
        (count("_database IS NULL"), count("_database = 'bbbbbbbb'")),
        (41, 31)
    );
    // Mode `replace` and the settlement of a failed job affect only rows of the same database.
    publish(&shared, &of(B, 8, 1, "replace"), &[5]).unwrap();
    assert_eq!(
        (count("_database IS NULL"), count("_database = 'bbbbbbbb'")),
        (41, 51)
    );
    shared.settle_failed(&of(A, 7, 3, "")).unwrap();
    assert_eq!(
        (count("_database IS NULL"), count("_database = 'bbbbbbbb'")),
        (0, 51)
    );
}

#[test]
fn rows_of_a_job_under_the_id_of_a_deleted_one_are_apart() {
    let fixture = Fixture::new();
    let reused = (1 << 32) + 1;
    publish(&fixture.root, &of(A, 7, 1, ""), &[1]).unwrap();
    publish(&fixture.root, &of(A, 7, reused, ""), &[2]).unwrap();
    publish(&fixture.root, &of(A, 7, reused + 1, ""), &[3]).unwrap();
    publish(&fixture.root, &of(A, 8, 1, ""), &[4]).unwrap();
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 1 + 3 + 4);
    publish(&fixture.root, &of(A, 9, 1, "replace"), &[5]).unwrap();
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 5);
}

#[test]
fn rows_that_nothing_names_are_neither_replaced_nor_removed() {
    let fixture = Fixture::new();
    let connection = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE rows (x INTEGER, _job_id INTEGER, _file_version_id INTEGER);
             INSERT INTO rows VALUES (100, 7, 1), (200, NULL, 1)",
        )
        .unwrap();
    let error = publish(&fixture.root, &of(A, 7, 1, ""), &[1]).unwrap_err();
    assert!(matches!(error, Error::NotOurs { .. }), "{error}");
    publish(&fixture.root, &of(A, 8, 1, "replace"), &[8]).unwrap();
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 308);
    let error = publish(&fixture.root, &of(A, 9, 1, "error"), &[9]).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    // The rows are replaced if a receipt (here of an earlier release) names the table.
    let mut named = of(A, 7, 2, "");
    named.previous = vec![format!("sqlite://{}/rows", fixture.path("x.db").display())];
    publish(&fixture.root, &named, &[1]).unwrap();
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 209);
}

#[test]
fn output_without_rows_counts_for_mode_error() {
    let fixture = Fixture::new();
    let root = &fixture.root;
    publish(root, &of(A, 1, 1, "error"), &[]).unwrap();
    for values in [&[][..], &[2]] {
        let error = publish(root, &of(A, 2, 1, "error"), values).unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error}");
    }
    publish(root, &of(A, 1, 2, "error"), &[]).unwrap();
    publish(root, &of(A, 3, 1, "replace"), &[3]).unwrap();
    // Output whose rows were deleted by another program does not count.
    let connection = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    connection.execute_batch("DELETE FROM rows").unwrap();
    publish(root, &of(A, 4, 1, "error"), &[4]).unwrap();
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 4);
}

#[test]
fn an_attempt_before_the_one_in_the_table_is_refused_there_too() {
    let fixture = Fixture::new();
    publish(&fixture.root, &of(A, 7, 3, ""), &[3]).unwrap();
    fs::remove_dir_all(fixture.path(".casparian/outputs")).unwrap();
    for (number, want) in [(3, "--new-identity"), (2, "may not publish")] {
        let other = Fixture::new();
        let mut late = of(A, 7, number, "");
        let uri = format!("sqlite://{}/rows", fixture.path("x.db").display());
        late.sinks = [Sink::parse("t", &uri, "").unwrap()].into();
        let error = publish(&other.root, &late, &[2]).unwrap_err().to_string();
        assert!(error.contains(want), "{number}: {error}");
    }
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 3);
}

#[test]
fn topics_of_one_table_and_tables_of_two_databases_are_published_together() {
    let fixture = Fixture::new();
    let sinks = [
        ("a", "sqlite://x.db/rows", ""),
        ("b", "sqlite://x.db/ROWS", ""),
        ("c", "sqlite://y.db/rows", ""),
        ("d", "sqlite://x.db/more", ""),
        ("e", "parquet://o.parquet", ""),
    ];
    for number in [1, 2] {
        let job = job(Some(A), Attempt::new(7, number), &sinks);
        let published = publish(&fixture.root, &job, &[1, 2]).unwrap();
        assert_eq!(published.artifacts.len(), sinks.len());
        assert_eq!(table(&fixture, "SELECT count(*) FROM rows"), 4);
        assert_eq!(table(&fixture, "SELECT count(*) FROM more"), 2);
    }
    // The job's rows are deleted from tables that the next attempt does not have.
    let next = job(Some(A), Attempt::new(7, 3), &sinks[..1]);
    let removed = publish(&fixture.root, &next, &[1]).unwrap().removed;
    assert_eq!(removed.len(), 3, "{removed:?}");
    assert_eq!(table(&fixture, "SELECT count(*) FROM rows"), 1);
    assert_eq!(table(&fixture, "SELECT count(*) FROM more"), 0);
    assert_eq!(fixture.files(), ["x.db", "y.db"]);
}

#[test]
fn a_failure_in_one_database_leaves_the_other_as_it_was() {
    let fixture = Fixture::new();
    let other = rusqlite::Connection::open(fixture.path("y.db")).unwrap();
    other
        .execute_batch(
            "CREATE TABLE rows (x INTEGER CHECK (x < 5), _job_id INTEGER, _file_version_id INTEGER)",
        )
        .unwrap();
    let sinks = [
        ("a", "sqlite://x.db/rows", ""),
        ("b", "sqlite://y.db/rows", ""),
        ("c", "parquet://o.parquet", ""),
    ];
    let of = |number| job(Some(A), Attempt::new(7, number), &sinks);
    publish(&fixture.root, &of(1), &[1]).unwrap();
    let error = publish(&fixture.root, &of(2), &[9]).unwrap_err();
    assert_eq!(error.cause(), crate::job::Cause::Operator, "{error}");
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 1);
    assert_eq!(values(&fixture.path("o_7.parquet")), [1]);
}

#[test]
fn a_locked_database_is_waited_for_no_longer_than_the_lease() {
    let fixture = Fixture::new();
    publish(&fixture.root, &of(A, 7, 1, ""), &[1]).unwrap();
    let lock = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let staged = stage(&fixture.root, &of(A, 7, 2, ""), &[2]).unwrap();
    let questions = std::cell::Cell::new(0);
    let is_granted = || questions.replace(questions.get() + 1) < 3;
    let refused = staged.publish(&[], &is_granted).unwrap_err();
    let Refused::NotGranted(back) = refused else {
        panic!("{refused:?}");
    };
    lock.execute_batch("COMMIT").unwrap();
    granted(*back).unwrap();
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 2);
}

#[test]
fn a_reader_of_the_database_is_waited_for_no_longer_than_the_lease() {
    let fixture = Fixture::new();
    publish(&fixture.root, &of(A, 7, 1, ""), &[1]).unwrap();
    let path = fixture.path("x.db");
    let reader = rusqlite::Connection::open(&path).unwrap();
    let read = "BEGIN; SELECT sum(x) FROM rows";
    reader.execute_batch(read).unwrap();
    // While a commit waits for readers, new readers are excluded.
    let is_commit_waiting = || {
        let other = rusqlite::Connection::open(&path).unwrap();
        other.busy_timeout(std::time::Duration::ZERO).unwrap();
        other
            .query_row("SELECT sum(x) FROM rows", [], |_| Ok(()))
            .is_err()
    };

    let staged = stage(&fixture.root, &of(A, 7, 2, ""), &[2]).unwrap();
    let refused = staged.publish(&[], &|| !is_commit_waiting()).unwrap_err();
    let Refused::NotGranted(back) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 1);

    let has_waited = std::cell::Cell::new(false);
    let is_granted = || {
        if !has_waited.get() && is_commit_waiting() {
            has_waited.set(true);
            reader.execute_batch("COMMIT").unwrap();
        }
        true
    };
    back.publish(&[], &is_granted).unwrap();
    assert!(has_waited.get());
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 2);
}

#[test]
fn every_statement_waits_for_a_locked_database() {
    let fixture = Fixture::new();
    publish(&fixture.root, &of(A, 7, 1, ""), &[1]).unwrap();
    let lock = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let questions = std::cell::Cell::new(0);
    let is_granted = || {
        if questions.replace(questions.get() + 1) == 5 {
            lock.execute_batch("COMMIT").unwrap();
        }
        true
    };
    let staged = stage(&fixture.root, &of(A, 7, 2, ""), &[2]).unwrap();
    staged.publish(&[], &is_granted).unwrap();
    assert!(questions.get() > 5);
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 2);
}

#[test]
fn recovery_waits_for_a_locked_database() {
    let fixture = Fixture::new();
    publish(&fixture.root, &of(A, 7, 1, ""), &[1]).unwrap();
    let lock = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(2500));
            lock.execute_batch("COMMIT").unwrap();
        });
        let removed = fixture.root.settle_failed(&of(A, 7, 2, "")).unwrap();
        assert_eq!(removed.len(), 1);
    });
}

#[test]
fn a_database_that_others_lock_is_not_the_workers_fault() {
    let error = Error::Locked {
        path: "/x.db".into(),
    };
    assert_eq!(error.cause(), crate::job::Cause::Worker);
    assert!(error.is_contention() && error.to_string().contains("/x.db"));
    assert!(!Error::io(Path::new("/x"), std::io::ErrorKind::StorageFull.into()).is_contention());
}

#[test]
fn nothing_is_committed_before_every_database_can_be() {
    let fixture = Fixture::new();
    let sinks = [
        ("a", "sqlite://x.db/rows", ""),
        ("b", "sqlite://y.db/rows", ""),
    ];
    let of = |number| job(Some(A), Attempt::new(7, number), &sinks);
    publish(&fixture.root, &of(1), &[1]).unwrap();
    let reader = rusqlite::Connection::open(fixture.path("y.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM rows").unwrap();
    let staged = stage(&fixture.root, &of(2), &[2]).unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
    let is_granted = || std::time::Instant::now() < until;
    let refused = staged.publish(&[], &is_granted).unwrap_err();
    let Refused::NotGranted(back) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 1);
    reader.execute_batch("COMMIT").unwrap();
    granted(*back).unwrap();
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 2);
}

#[test]
fn what_is_committed_in_one_database_is_committed_in_all() {
    let fixture = Fixture::new();
    let sinks = [
        ("a", "sqlite://x.db/rows", ""),
        ("b", "sqlite://y.db/rows", ""),
    ];
    let of = |number| job(Some(A), Attempt::new(7, number), &sinks);
    publish(&fixture.root, &of(1), &[1]).unwrap();
    let staged = stage(&fixture.root, &of(2), &[2]).unwrap();
    let is_late = std::cell::Cell::new(false);
    let hook = |step| {
        is_late.set(matches!(step, Step::Table(_)));
        Ok(())
    };
    let is_granted = || !is_late.get();
    staged.publish_by_steps(&[], &is_granted, &hook).unwrap();
    assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 2);
}

#[test]
fn a_database_that_is_no_regular_file_is_refused_at_once() {
    for has_earlier in [false, true] {
        let fixture = Fixture::new();
        let path = fixture.path("x.db");
        if has_earlier {
            publish(&fixture.root, &of(A, 7, 1, ""), &[1]).unwrap();
            std::fs::remove_file(&path).unwrap();
        }
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let error = publish(&fixture.root, &of(A, 7, 2, ""), &[1]).unwrap_err();
        assert_eq!(error.cause(), crate::job::Cause::Operator, "{error}");
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
}

/// When a process closes a file, it loses all its locks on the file.
#[test]
fn to_ask_why_a_database_cannot_be_written_keeps_its_locks() {
    use std::os::unix::fs::MetadataExt;
    let fixture = Fixture::new();
    let path = fixture.path("x.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    let file = format!(":{} ", path.metadata().unwrap().ino());
    let locks = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().filter(|lock| lock.contains(&file)).count()
    };
    let before = locks();
    assert!(before > 0);
    assert!(files::write_refusal(&path).is_none());
    assert_eq!(locks(), before);
}

#[test]
fn a_database_that_is_a_link_out_of_the_root_is_refused() {
    let fixture = Fixture::new();
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("other.db");
    rusqlite::Connection::open(&target)
        .unwrap()
        .execute_batch("CREATE TABLE t (x)")
        .unwrap();
    std::os::unix::fs::symlink(&target, fixture.path("x.db")).unwrap();
    let error = publish(&fixture.root, &of(A, 7, 1, ""), &[1]).unwrap_err();
    assert!(matches!(error, Error::Outside { .. }), "{error}");
}

/// A database and its copy, each with an output root, write into the same table.
#[test]
fn a_copied_database_does_not_take_the_rows_of_the_original() {
    let (first, second) = (Fixture::new(), Fixture::new());
    let uri = format!("sqlite://{}/t", first.path("x.db").display());
    let publish = |root: &Fixture, number: i64, key: i64, past: &[(i64, i64)]| {
        let mut job = job(
            Some(A),
            Attempt::new(7, number),
            &[("output", &uri, "append")],
        );
        let end = PastEnd::Unknown;
        let past = past.iter().map(|&(number, key)| Past { number, key, end });
        job.history = History {
            key,
            past: past.collect(),
            ..Default::default()
        };
        let mut output = JobOutput::new(root.root.clone(), Arc::new(job)).unwrap();
        output.write(None, &numbers(&[number])).unwrap();
        finish(output)
    };
    publish(&first, 1, 5, &[]).unwrap();
    for number in [1, 2, 3] {
        let error = publish(&second, number, 6, &[(1, 6), (2, 6)]).unwrap_err();
        assert!(matches!(error, Error::Copied { .. }), "{number}: {error}");
        assert_eq!(table(&first, "SELECT sum(x) FROM t"), 1);
    }
    // The original is accepted after a restart of its sentinel (another key), and when the key of the
    // rows is unknown.
    publish(&first, 2, 7, &[(1, 5)]).unwrap();
    let connection = rusqlite::Connection::open(first.path("x.db")).unwrap();
    for (number, unknown) in [
        (4, "UPDATE _casparian_output SET attempt = attempt + 1"),
        (5, "DROP TABLE _casparian_key"),
    ] {
        connection.execute_batch(unknown).unwrap();
        publish(
            &first,
            number,
            8,
            &[(1, 5), (2, 7), (4, 8)][..number as usize - 2],
        )
        .unwrap();
        assert_eq!(table(&first, "SELECT sum(x) FROM t"), number);
    }
}

/// Names of the indexes of `x.db`.
fn indexes(fixture: &Fixture) -> Vec<String> {
    let connection = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    let query =
        "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY 1";
    let mut statement = connection.prepare(query).unwrap();
    let names = statement.query_map([], |row| row.get(0)).unwrap();
    names.collect::<Result<_, _>>().unwrap()
}

#[test]
fn a_table_has_an_index_of_its_jobs_whichever_program_created_it() {
    const COLUMNS: &str = "(x INTEGER, _job_id INTEGER, _file_version_id INTEGER";
    let first = "_casparian_job_rows";
    let cases = [
        (String::new(), vec![first]),
        (format!("CREATE TABLE rows {COLUMNS})"), vec![first]),
        (
            format!("CREATE TABLE Rows {COLUMNS}, PRIMARY KEY (x)) WITHOUT ROWID"),
            vec![first],
        ),
        // If the table has a suitable index, none is created.
        (
            format!("CREATE TABLE rows {COLUMNS}); CREATE INDEX own ON rows (_job_id, x)"),
            vec!["own"],
        ),
        (
            format!(
                "CREATE TABLE rows {COLUMNS}); CREATE INDEX part ON rows (_job_id) WHERE x > 9"
            ),
            vec![first, "part"],
        ),
        // The name is in use: by the index of a table that was renamed, or by a table.
        (
            format!(
                "CREATE TABLE rows {COLUMNS}); CREATE INDEX {first} ON rows (_job_id);
                 ALTER TABLE rows RENAME TO rows_2025"
            ),
            vec![first, "_casparian_job_rows_2"],
        ),
        (
            "CREATE TABLE _casparian_job_ROWS (x)".to_owned(),
            vec!["_casparian_job_rows_2"],
        ),
    ];
    for (before, want) in cases {
        let fixture = Fixture::new();
        let connection = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
        connection.execute_batch(&before).unwrap();
        publish(&fixture.root, &of(A, 7, 1, ""), &[1]).unwrap();
        publish(&fixture.root, &of(A, 8, 1, ""), &[2]).unwrap();
        assert_eq!(indexes(&fixture), want, "{before}");
        assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 3, "{before}");
        // If the index is missing (dropped, or a table of an earlier release), the next job creates it.
        for name in want.iter().filter(|name| name.starts_with("_casparian")) {
            connection
                .execute_batch(&format!("DROP INDEX {name}"))
                .unwrap();
        }
        publish(&fixture.root, &of(A, 7, 2, ""), &[4]).unwrap();
        assert!(!indexes(&fixture).is_empty(), "{before}");
        assert_eq!(table(&fixture, "SELECT sum(x) FROM rows"), 6, "{before}");
    }
}

#[test]
fn a_view_with_the_name_of_a_table_is_refused_as_before() {
    let fixture = Fixture::new();
    let connection = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    let view = "CREATE TABLE u (x INTEGER, _job_id INTEGER, _file_version_id INTEGER);
         CREATE VIEW rows AS SELECT * FROM u;
         CREATE TRIGGER i INSTEAD OF INSERT ON rows BEGIN
         INSERT INTO u VALUES (NEW.x, NEW._job_id, NEW._file_version_id); END";
    connection.execute_batch(view).unwrap();
    let error = publish(&fixture.root, &of(A, 7, 1, ""), &[1]).unwrap_err();
    assert!(matches!(error, Error::Rows { .. }), "{error}");
    assert_eq!(indexes(&fixture), [""; 0]);
}

/// Output of another job in a table of mode `error` is reported before the plugin runs.
#[test]
fn a_table_that_is_taken_is_refused_before_the_job_runs() {
    let fixture = Fixture::new();
    let absolute = format!("sqlite://{}/Rows", fixture.path("x.db").display());
    let attempt = |id, number, uri: &str| {
        let sinks = [("t", uri, "error")];
        job(Some(A), Attempt::new(id, number), &sinks)
    };
    let start = |job: Job| JobOutput::new(fixture.root.clone(), Arc::new(job)).map(drop);
    // The database does not exist yet.
    start(attempt(1, 1, ROWS)).unwrap();
    assert_eq!(fixture.files(), [""; 0]);
    for values in [&[1][..], &[]] {
        publish(
            &fixture.root,
            &of(A, 1, 1 + i64::from(values.is_empty()), ""),
            values,
        )
        .unwrap();
        for uri in [ROWS, &absolute] {
            let error = start(attempt(2, 1, uri)).unwrap_err();
            let by = Attempt::new(1, 1 + i64::from(values.is_empty()));
            assert_eq!(error.taken_by(), Some(by), "{error}");
        }
        start(attempt(1, 9, ROWS)).unwrap();
        start(attempt(2, 1, "sqlite://x.db/free")).unwrap();
        start(of(A, 2, 1, "replace")).unwrap();
    }
    // If the check is not possible now, the job may start. The publish checks again.
    let lock = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    lock.execute_batch("BEGIN EXCLUSIVE").unwrap();
    start(attempt(2, 1, ROWS)).unwrap();
    lock.execute_batch("ROLLBACK; DELETE FROM _casparian_output")
        .unwrap();
    start(attempt(2, 1, ROWS)).unwrap();
    lock.execute_batch("DROP TABLE rows; CREATE TABLE rows (x)")
        .unwrap();
    start(attempt(2, 1, ROWS)).unwrap();
    fs::write(fixture.path("y.db"), "no database").unwrap();
    start(attempt(2, 1, "sqlite://y.db/rows")).unwrap();
    fs::create_dir(fixture.path("z.db")).unwrap();
    start(attempt(2, 1, "sqlite://z.db/rows")).unwrap();
}
