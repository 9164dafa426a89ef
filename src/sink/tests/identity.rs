//! Which database and job an output belongs to.

use super::*;
use crate::job::{Past, PastEnd};

const SINKS: &[(&str, &str, &str)] = &[("a", "parquet://a.parquet", "append")];

fn of(database: &str, job_id: i64, number: i64) -> Job {
    job(Some(database), Attempt::new(job_id, number), SINKS)
}

#[test]
fn a_root_belongs_to_the_first_database_unless_it_is_shared() {
    let fixture = Fixture::new();
    publish(&fixture.root, &of(A, 7, 1), &[1]).unwrap();
    let error = publish(&fixture.root, &of(B, 7, 1), &[2]).unwrap_err();
    let text = error.to_string();
    for part in [A, B, "--share-output"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(error.cause(), crate::job::Cause::Worker);
    let shared = Root::open(
        fixture.dir.path(),
        RootOptions {
            share: true,
            ..RootOptions::default()
        },
    );
    let shared = Arc::new(shared.unwrap());
    publish(&shared, &of(B, 7, 1), &[2]).unwrap();
    publish(&shared, &of(A, 8, 1), &[3]).unwrap();
    assert_eq!(
        fixture.files(),
        ["a_7.parquet", "a_7_bbbbbbbb.parquet", "a_8.parquet"]
    );
    publish(&shared, &of(B, 7, 2), &[4]).unwrap();
    assert_eq!(values(&fixture.path("a_7.parquet")), [1]);
    assert_eq!(values(&fixture.path("a_7_bbbbbbbb.parquet")), [4]);
    // Mode `replace` removes output of the same database only.
    let mut replace = of(B, 9, 1);
    replace.sinks = [Sink::parse("a", "parquet://a.parquet", "replace").unwrap()].into();
    publish(&shared, &replace, &[5]).unwrap();
    assert_eq!(
        fixture.files(),
        ["a_7.parquet", "a_8.parquet", "a_9_bbbbbbbb.parquet"]
    );
}

#[test]
fn of_two_databases_that_publish_at_once_one_owns_the_root() {
    for _ in 0..20 {
        let fixture = Fixture::new();
        let roots = [A, B].map(|database| (database, open(fixture.dir.path())));
        let results = std::thread::scope(|scope| {
            let run = |(database, root): &(&'static str, Arc<Root>)| {
                let (database, root) = (*database, root.clone());
                scope.spawn(move || publish(&root, &of(database, 7, 1), &[1]).is_ok())
            };
            roots
                .each_ref()
                .map(run)
                .map(|thread| thread.join().unwrap())
        });
        assert_eq!(results.iter().filter(|&&ok| ok).count(), 1);
        assert_eq!(fixture.files(), ["a_7.parquet"]);
    }
}

#[test]
fn a_copied_database_cannot_run_the_same_attempt_again() {
    let fixture = Fixture::new();
    let running = stage(&fixture.root, &of(A, 7, 1), &[1]).unwrap();
    let copy = open(fixture.dir.path());
    let error = stage(&copy, &of(A, 7, 1), &[2]).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("--new-identity"), "{error}");
    granted(running).unwrap();
    publish(&fixture.root, &of(A, 7, 2), &[3]).unwrap();
    for number in [1, 2] {
        let error = publish(&copy, &of(A, 7, number), &[4]).unwrap_err();
        let refused = matches!(error, Error::Copied { .. } | Error::Barred { .. });
        assert!(refused, "{number}: {error}");
    }
    assert_eq!(values(&fixture.path("a_7.parquet")), [3]);
}

#[test]
fn a_job_under_the_id_of_a_deleted_one_has_output_of_its_own() {
    let fixture = Fixture::new();
    let reused = (1 << 32) + 1;
    publish(&fixture.root, &of(A, 7, 1), &[1]).unwrap();
    publish(&fixture.root, &of(A, 7, reused), &[2]).unwrap();
    publish(&fixture.root, &of(A, 7, reused + 1), &[3]).unwrap();
    assert_eq!(values(&fixture.path("a_7.parquet")), [1]);
    assert_eq!(values(&fixture.path("a_7r1.parquet")), [3]);
    fixture.root.settle_failed(&of(A, 7, reused + 2)).unwrap();
    assert_eq!(fixture.files(), ["a_7.parquet"]);
}

#[test]
fn files_that_nothing_names_are_neither_replaced_nor_removed() {
    let fixture = Fixture::new();
    let path = fixture.path("a_7.parquet");
    fs::write(&path, "mine").unwrap();
    let error = publish(&fixture.root, &of(A, 7, 1), &[1]).unwrap_err();
    assert!(error.to_string().contains("move it away"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    // The file is replaced if a receipt (here of an earlier release) names it.
    let mut named = of(A, 7, 2);
    named.previous = vec![format!("file://{}", path.display())];
    publish(&fixture.root, &named, &[2]).unwrap();
    assert_eq!(values(&path), [2]);
    // The job's file was replaced by another file.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "mine").unwrap();
    let error = publish(&fixture.root, &of(A, 7, 3), &[3]).unwrap_err();
    assert!(matches!(error, Error::NotOurs { .. }), "{error}");
    fixture.root.settle_failed(&of(A, 7, 4)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    // A folder or a link is at the file's path.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(publish(&fixture.root, &of(A, 7, 5), &[3]).is_err());
    fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink("elsewhere", &path).unwrap();
    let error = publish(&fixture.root, &of(A, 7, 6), &[3]).unwrap_err();
    assert!(matches!(error, Error::NotOurs { .. }), "{error}");
}

#[test]
fn what_a_receipt_names_is_removed_only_below_the_root_and_with_the_jobs_name() {
    let fixture = Fixture::new();
    let outside = tempfile::tempdir().unwrap();
    let strange = outside.path().join("a_7.parquet");
    let files = [
        strange.clone(),
        fixture.path("notes.txt"),
        fixture.path("a_70.parquet"),
        fixture.path(".casparian/a_7.parquet"),
    ];
    std::os::unix::fs::symlink(outside.path(), fixture.path("link")).unwrap();
    let mut job = of(A, 7, 2);
    for file in &files {
        fs::write(file, "mine").unwrap();
        job.previous.push(format!("file://{}", file.display()));
    }
    let root = fixture.path("");
    job.previous
        .push(format!("file://{}link/a_7.parquet", root.display()));
    job.previous
        .push(format!("file://{}x/../a_7.parquet", root.display()));
    job.previous.push("file://relative_7.parquet".to_owned());
    job.previous.push("nonsense".to_owned());
    fs::write(fixture.path("old_7.parquet"), "earlier release").unwrap();
    let old = fixture.path("old_7.parquet");
    job.previous.push(format!("file://{}", old.display()));
    let published = publish(&fixture.root, &job, &[1]).unwrap();
    assert_eq!(published.removed, [format!("file://{}", old.display())]);
    for file in &files {
        assert_eq!(fs::read(file).unwrap(), b"mine", "{}", file.display());
    }
}

#[test]
fn output_without_a_receipt_goes_when_the_job_fails_for_good() {
    let fixture = Fixture::new();
    // Attempt 1 published and its worker was lost before the receipt arrived.
    publish(&fixture.root, &of(A, 7, 1), &[1]).unwrap();
    let removed = fixture.root.settle_failed(&of(A, 7, 2)).unwrap();
    assert_eq!(removed.len(), 1);
    assert_eq!(fixture.files(), [""; 0]);
    // Output with a receipt stays.
    let uri = publish(&fixture.root, &of(A, 7, 3), &[3])
        .unwrap()
        .artifacts[0]
        .uri
        .clone();
    let mut failed = of(A, 7, 4);
    failed.previous = vec![uri];
    assert_eq!(fixture.root.settle_failed(&failed).unwrap(), [""; 0]);
    assert_eq!(values(&fixture.path("a_7.parquet")), [3]);
    let mut next = of(A, 7, 5);
    next.previous = failed.previous;
    publish(&fixture.root, &next, &[5]).unwrap();
    assert_eq!(values(&fixture.path("a_7.parquet")), [5]);
    // A job that never published has nothing to settle.
    assert_eq!(fixture.root.settle_failed(&of(A, 8, 1)).unwrap(), [""; 0]);
    assert_eq!(fixture.staged(), [""; 0]);
}

#[test]
fn a_record_that_cannot_be_read_is_named() {
    let fixture = Fixture::new();
    publish(&fixture.root, &of(A, 7, 1), &[1]).unwrap();
    let record = fixture.path(&format!(".casparian/outputs/{A}/0/7"));
    for text in ["", "{", r#"{"version":2}"#, "[]"] {
        fs::write(&record, text).unwrap();
        let error = publish(&fixture.root, &of(A, 7, 2), &[2]).unwrap_err();
        assert!(error.to_string().contains("outputs"), "{error}");
        assert_eq!(error.cause(), crate::job::Cause::Operator);
        assert_eq!(values(&fixture.path("a_7.parquet")), [1]);
    }
}

#[test]
fn a_copy_with_an_identity_of_its_own_leaves_the_originals_output() {
    let fixture = Fixture::new();
    let original = publish(&fixture.root, &of(A, 7, 1), &[1]).unwrap();
    let shared = Root::open(
        fixture.dir.path(),
        RootOptions {
            share: true,
            ..RootOptions::default()
        },
    );
    let shared = Arc::new(shared.unwrap());
    let sets: [&[(&str, &str, &str)]; 2] = [SINKS, &[("t", "sqlite://x.db/t", "")]];
    for (at, sinks) in [2, 20].into_iter().zip(sets) {
        let mut copy = job(Some(B), Attempt::new(7, at), sinks);
        // The receipt was copied with the row.
        copy.previous = vec![original.artifacts[0].uri.clone()];
        publish(&shared, &copy, &[2]).unwrap();
        shared
            .settle_failed(&job(Some(B), Attempt::new(7, at + 10), sinks))
            .unwrap();
        assert_eq!(values(&fixture.path("a_7.parquet")), [1]);
    }
}

#[test]
fn a_refused_copy_leaves_the_originals_output_whatever_it_tries_again() {
    use std::os::unix::fs::MetadataExt;
    let fixture = Fixture::new();
    publish(&fixture.root, &of(A, 7, 1), &[1]).unwrap();
    let inode = || fs::metadata(fixture.path("a_7.parquet")).unwrap().ino();
    let before = inode();
    // The copy runs in another worker. Its first attempt has the same number as the original's. Each
    // further attempt lists the failed attempts of the copy.
    let other = open(fixture.dir.path());
    let mut failed = Vec::new();
    for number in 1..=3 {
        let mut job = of(A, 7, number);
        job.history.past = failed.clone();
        // The attempt may also fail before it publishes.
        other.settle_failed(&job).unwrap();
        assert_eq!(inode(), before, "attempt {number}");
        let error = publish(&other, &job, &[9]).unwrap_err();
        assert!(matches!(error, Error::Copied { .. }), "{error}");
        other.settle_failed(&job).unwrap();
        assert_eq!(inode(), before, "attempt {number}");
        failed.push(Past {
            number,
            key: 0,
            end: PastEnd::Failed,
        });
    }
}

/// A folder was restored without its staging, so nothing can finish or undo an attempt that ended before its
/// commit.
#[test]
fn output_before_an_attempt_without_a_commit_is_adopted() {
    let fixture = Fixture::new();
    let mut first = of(A, 7, 1);
    first.history.key = 5;
    publish(&fixture.root, &first, &[1]).unwrap();
    let record = fixture.path(&format!(".casparian/outputs/{A}/0/7"));
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let published = json["outputs"].take();
    for (name, value) in [
        ("attempt", 2.into()),
        ("key", 6.into()),
        ("state", "intent".into()),
        ("previous_attempt", 1.into()),
        ("previous_key", 5.into()),
        ("previous", published.clone()),
    ] {
        json[name] = value;
    }
    json["outputs"] = published;
    json["outputs"]["files"][0]["identity"]["size"] = 1.into();
    fs::write(&record, json.to_string()).unwrap();
    let root = open(fixture.dir.path());
    let adopted = root.adopt(A, Attempt::new(7, 2), &[]).unwrap().unwrap();
    assert_eq!((adopted.attempt, adopted.key), (1, 5));
    assert_eq!(adopted.others.len(), 1);
    let mut next = of(A, 7, 3);
    next.history.key = 7;
    next.history.past = vec![Past {
        number: 1,
        key: 5,
        end: PastEnd::Completed,
    }];
    root.settle_failed(&next).unwrap();
    assert_eq!(values(&fixture.path("a_7.parquet")), [1]);
    assert_eq!(fixture.staged(), Vec::<String>::new());
}
