//! Output of the reference system that has the names of a job's output.

use std::time::{Duration, SystemTime};

use super::*;
use crate::job::Cause;

const FILE: (&str, &str, &str) = ("a", "parquet://a.parquet", "append");
const ROWS: (&str, &str, &str) = ("t", "sqlite://x.db/rows", "append");
/// The file version of [`job`].
const VERSION: i64 = 42;

/// An attempt of job 7, which the reference system may have run within the last minute.
fn attempt(number: i64, sink: (&str, &str, &str)) -> Job {
    let mut job = job(Some(A), Attempt::new(7, number), &[sink]);
    job.history.old_since_ms = Some(unix_ms(SystemTime::now() - Duration::from_secs(60)));
    job
}

fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

fn integers(fixture: &Fixture, sql: &str) -> i64 {
    let connection = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    connection.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// A file as an old worker writes it.
fn write_file(path: &Path, ids: &[(&str, i64)]) {
    let numbers = |value: i64| Arc::new(Int64Array::from(vec![value; 2])) as ArrayRef;
    let mut columns = vec![("x", numbers(100))];
    columns.extend(ids.iter().map(|(name, value)| (*name, numbers(*value))));
    let batch = batch(columns);
    let file = File::create(path).unwrap();
    let mut writer = ::parquet::arrow::ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn what_our_worker_published_for_an_old_sentinel_is_replaced() {
    for sink in [FILE, ROWS] {
        let fixture = Fixture::new();
        let root = &fixture.root;
        let mut old = job(None, Attempt::new(7, 0), &[sink]);
        // The record identifies the output, even with another file version.
        old.file_version_id = VERSION - 1;
        publish(root, &old, &[1, 2]).unwrap();
        publish(root, &job(None, Attempt::new(8, 0), &[sink]), &[10]).unwrap();
        // A database whose job was never run by the reference system.
        let mut stranger = attempt(1, sink);
        stranger.history.old_since_ms = None;
        let error = publish(root, &stranger, &[9]).unwrap_err();
        assert!(matches!(error, Error::NotOurs { .. }), "{error}");
        publish(root, &attempt(2, sink), &[3]).unwrap();
        publish(root, &attempt(3, sink), &[4]).unwrap();
        if sink == ROWS {
            assert_eq!(integers(&fixture, "SELECT sum(x) FROM rows"), 14);
        } else {
            assert_eq!(fixture.files(), ["a_7.parquet", "a_8.parquet"]);
            assert_eq!(values(&fixture.path("a_7.parquet")), [4]);
            assert_eq!(values(&fixture.path("a_8.parquet")), [10]);
        }
    }
}

#[test]
fn a_file_of_an_old_worker_is_replaced_when_time_and_content_show_that_it_is_the_jobs() {
    let fixture = Fixture::new();
    let path = fixture.path("a_7.parquet");
    let ids = [("_job_id", 7), ("_file_version_id", VERSION)];
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let refused = |number: i64, change: &dyn Fn(&mut Job)| {
        let mut job = attempt(number, FILE);
        change(&mut job);
        let before = fs::read(&path).unwrap();
        let error = publish(&fixture.root, &job, &[1]).unwrap_err();
        assert!(matches!(error, Error::NotOurs { .. }), "{number}: {error}");
        assert_eq!(error.cause(), Cause::Operator);
        fixture.root.settle_failed(&job).unwrap();
        assert_eq!(fs::read(&path).unwrap(), before, "{number}");
    };
    let contents: [&[(&str, i64)]; 4] = [
        &[],
        &ids[..1],
        &[("_job_id", 8), ("_file_version_id", VERSION)],
        &[("_job_id", 7), ("_file_version_id", VERSION + 1)],
    ];
    for (number, content) in (1..).zip(contents) {
        write_file(&path, content);
        refused(number, &|_| {});
    }
    fs::write(&path, "PAR1 nonsense PAR1").unwrap();
    refused(5, &|_| {});
    write_file(&path, &ids);
    // The job was never run by the reference system.
    refused(6, &|job| job.history.old_since_ms = None);
    // The file is older than the time since when the reference system may have run the job.
    let file = File::options().write(true).open(&path).unwrap();
    file.set_modified(hour_ago).unwrap();
    refused(7, &|_| {});
    file.set_modified(SystemTime::now()).unwrap();
    publish(&fixture.root, &attempt(8, FILE), &[8]).unwrap();
    assert_eq!(values(&path), [8]);
    // Now the job has a record, so only the record counts.
    fs::remove_file(&path).unwrap();
    write_file(&path, &[]);
    refused(9, &|_| {});
}

#[test]
fn old_workers_write_no_files_with_the_mark_of_a_database() {
    let fixture = Fixture::new();
    publish(
        &fixture.root,
        &job(Some(B), Attempt::new(1, 1), &[FILE]),
        &[1],
    )
    .unwrap();
    let options = RootOptions {
        share: true,
        ..RootOptions::default()
    };
    let shared = Arc::new(Root::open(fixture.dir.path(), options).unwrap());
    let path = fixture.path("a_7_aaaaaaaa.parquet");
    write_file(&path, &[("_job_id", 7), ("_file_version_id", VERSION)]);
    let error = publish(&shared, &attempt(1, FILE), &[1]).unwrap_err();
    assert!(matches!(error, Error::NotOurs { .. }), "{error}");
    assert_eq!(values(&path), [100, 100]);
}

#[test]
fn rows_of_an_old_worker_are_replaced_when_all_are_of_the_jobs_file() {
    let fixture = Fixture::new();
    let connection = rusqlite::Connection::open(fixture.path("x.db")).unwrap();
    connection
        .execute_batch(
            "CREATE TABLE rows (x INTEGER, _job_id INTEGER, _file_version_id INTEGER);
             INSERT INTO rows VALUES (1, 7, 42), (2, 7, 41), (400, 8, 42)",
        )
        .unwrap();
    let error = publish(&fixture.root, &attempt(1, ROWS), &[3]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("_job_id = 7"), "{text}");
    assert!(!text.contains("move it away"), "{text}");
    connection
        .execute_batch("UPDATE rows SET _file_version_id = 42")
        .unwrap();
    let mut stranger = attempt(2, ROWS);
    stranger.history.old_since_ms = None;
    assert!(publish(&fixture.root, &stranger, &[3]).is_err());
    assert_eq!(integers(&fixture, "SELECT sum(x) FROM rows"), 403);
    publish(&fixture.root, &attempt(3, ROWS), &[5]).unwrap();
    assert_eq!(integers(&fixture, "SELECT sum(x) FROM rows"), 405);
}
