use super::*;
use crate::job::SinkError;

#[test]
fn modes_keep_replace_or_refuse_what_other_jobs_made() {
    let root = Fixture::new();
    fs::write(root.path("o_notes.parquet"), "unrelated").unwrap();
    root.publish(1, "parquet://o.parquet", "append").unwrap();
    root.publish(2, "parquet://o.parquet", "append").unwrap();
    root.publish(2, "parquet://o.parquet", "append").unwrap();
    assert_eq!(
        root.files(),
        ["o_1.parquet", "o_2.parquet", "o_notes.parquet"]
    );
    assert!(matches!(
        root.publish(3, "parquet://o.parquet", "error"),
        Err(Error::Exists { .. })
    ));
    root.publish(4, "parquet://o.parquet", "replace").unwrap();
    assert_eq!(root.files(), ["o_4.parquet", "o_notes.parquet"]);
    root.publish(4, "parquet://o.parquet", "error").unwrap();
    assert!(matches!(
        root.publish(5, "parquet://o.parquet", "sideways"),
        Err(Error::Sink(SinkError::Mode { .. }))
    ));
    let same = [
        ("a", "parquet://o.parquet", "append"),
        ("b", "parquet://./o.parquet", "append"),
    ];
    assert!(matches!(root.output(6, &same), Err(Error::SameFile { .. })));
}

fn of(job_id: i64, mode: &str) -> Job {
    let sinks = [("a", "parquet://a.parquet", mode)];
    job(Some(A), Attempt::new(job_id, 1), &sinks)
}

/// Publishes, and tries again while another job publishes into the sink.
fn publish_at_last(root: &Arc<Root>, job: &Job) -> Result<Published, Error> {
    let mut staged = stage(root, job, &[job.attempt.job_id])?;
    loop {
        match staged.publish(&[], &|| true) {
            Ok(published) => return Ok(published),
            Err(Refused::NotGranted(back)) => staged = *back,
            Err(Refused::Failed(error)) => return Err(error),
        }
    }
}

#[test]
fn of_eight_jobs_of_mode_error_exactly_one_publishes() {
    for _ in 0..10 {
        let fixture = Fixture::new();
        let roots: Vec<_> = (0..2).map(|_| open(fixture.dir.path())).collect();
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (1..=8)
                .map(|id| {
                    let root = roots[usize::try_from(id).unwrap() % 2].clone();
                    scope.spawn(move || publish_at_last(&root, &of(id, "error")))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        for result in results {
            assert!(
                matches!(result, Ok(_) | Err(Error::Exists { .. })),
                "{result:?}"
            );
        }
        assert_eq!(fixture.files().len(), 1);
        assert_eq!(fixture.staged(), [""; 0]);
    }
}

#[test]
fn two_replacing_jobs_leave_one_output_and_a_reader_always_finds_one() {
    let fixture = Fixture::new();
    let other = open(fixture.dir.path());
    publish(&fixture.root, &of(1, "replace"), &[1]).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                // A file may be removed after it was listed. Then another file exists.
                let complete = (0..1000).any(|_| {
                    let names = fixture.files();
                    assert!(!names.is_empty(), "no output is visible");
                    names.iter().any(|name| {
                        let file = File::open(fixture.path(name));
                        file.is_ok_and(|file| {
                            ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
                            true
                        })
                    })
                });
                assert!(complete);
            }
        });
        for round in 1..=400 {
            std::thread::scope(|pair| {
                for (at, root) in [&fixture.root, &other].into_iter().enumerate() {
                    let id = round * 2 + i64::try_from(at).unwrap();
                    pair.spawn(move || publish_at_last(root, &of(id, "replace")).unwrap());
                }
            });
            let files = fixture.files();
            assert_eq!(files.len(), 1, "{files:?}");
            values(&fixture.path(&files[0]));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        reader.join().unwrap();
    });
}

#[test]
fn replacing_removes_only_files_that_a_record_names() {
    let fixture = Fixture::new();
    publish(&fixture.root, &of(1, "append"), &[1]).unwrap();
    publish(&fixture.root, &of(2, "append"), &[2]).unwrap();
    fs::write(fixture.path("a_3.parquet"), "mine").unwrap();
    fs::remove_file(fixture.path("a_2.parquet")).unwrap();
    fs::write(fixture.path("a_2.parquet"), "mine too").unwrap();
    let published = publish(&fixture.root, &of(4, "replace"), &[4]).unwrap();
    let one = format!("file://{}", fixture.path("a_1.parquet").display());
    assert_eq!(published.removed, [one]);
    assert_eq!(
        fixture.files(),
        ["a_2.parquet", "a_3.parquet", "a_4.parquet"]
    );
    // For mode `error` these files count as output.
    let error = publish(&fixture.root, &of(5, "error"), &[5]).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
}

#[test]
fn output_that_comes_while_a_job_of_mode_error_runs_refuses_it() {
    let fixture = Fixture::new();
    let staged = stage(&fixture.root, &of(1, "error"), &[1]).unwrap();
    publish(&fixture.root, &of(2, "append"), &[2]).unwrap();
    let error = granted(staged).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    assert_eq!(error.cause(), crate::job::Cause::Operator);
    assert_eq!(fixture.files(), ["a_2.parquet"]);
}

#[test]
fn a_job_that_is_paused_in_a_replace_holds_up_others_for_a_bounded_time() {
    use crate::sink::publish::Step;
    let fixture = Fixture::new();
    let staged = stage(&fixture.root, &of(1, "replace"), &[1]).unwrap();
    let other = open(fixture.dir.path());
    let hook = |step| {
        if step != Step::Keep {
            return Ok(());
        }
        let refused = stage(&other, &of(2, "replace"), &[2])
            .unwrap()
            .publish(&[], &|| true);
        let Err(Refused::NotGranted(back)) = refused else {
            panic!("{refused:?}");
        };
        // The sentinel orders that the first attempt is barred.
        back.publish(&[Attempt::new(1, 1)], &|| true).unwrap();
        Ok(())
    };
    let refused = staged.publish_by_steps(&[], &|| true, &hook).unwrap_err();
    assert!(
        matches!(refused, Refused::Failed(Error::Barred { .. })),
        "{refused:?}"
    );
    assert_eq!(fixture.files(), ["a_2.parquet"]);
}

#[test]
fn a_refusal_names_the_attempt_whose_output_is_there() {
    let other_job = |uri: &str| job(Some(A), Attempt::new(1, 3), &[("a", uri, "append")]);
    let refused = |fixture: &Fixture, uri: &str| {
        let second = job(Some(A), Attempt::new(2, 1), &[("a", uri, "error")]);
        publish(&fixture.root, &second, &[2]).unwrap_err()
    };
    let [files, rows] = ["parquet://a.parquet", "sqlite://a.db/rows"];
    for uri in [files, rows] {
        let fixture = Fixture::new();
        publish(&fixture.root, &other_job(uri), &[1]).unwrap();
        let error = refused(&fixture, uri);
        assert_eq!(error.taken_by(), Some(Attempt::new(1, 3)), "{error}");
        // Output without rows is output, too.
        publish(
            &fixture.root,
            &job(Some(A), Attempt::new(1, 4), &[("a", uri, "append")]),
            &[],
        )
        .unwrap();
        let error = refused(&fixture, uri);
        assert_eq!(error.taken_by(), Some(Attempt::new(1, 4)), "{error}");
        assert!(
            uri == rows || error.to_string().contains("(output of job 1)"),
            "{error}"
        );
    }
    // Output of a job with the ID of a deleted job.
    let fixture = Fixture::new();
    let reused = Attempt::new(1, (1 << 32) + 1);
    publish(
        &fixture.root,
        &job(Some(A), reused, &[("a", files, "append")]),
        &[1],
    )
    .unwrap();
    assert_eq!(refused(&fixture, files).taken_by(), Some(reused));
    // A file that no record names, and one that is not as its record has it.
    let fixture = Fixture::new();
    fs::write(fixture.path("a_1.parquet"), "mine").unwrap();
    assert_eq!(refused(&fixture, files).taken_by(), None);
    fs::remove_file(fixture.path("a_1.parquet")).unwrap();
    publish(&fixture.root, &other_job(files), &[1]).unwrap();
    fs::write(fixture.path("a_1.parquet"), "mine").unwrap();
    assert_eq!(refused(&fixture, files).taken_by(), None);
    // Rows without an entry in the side table.
    let fixture = Fixture::new();
    let table =
        "CREATE TABLE rows (x, _job_id, _file_version_id); INSERT INTO rows VALUES (1, 1, 1)";
    let database = rusqlite::Connection::open(fixture.path("a.db")).unwrap();
    database.execute_batch(table).unwrap();
    assert_eq!(refused(&fixture, rows).taken_by(), None);
    // Output of another database.
    for uri in [files, rows] {
        let fixture = Fixture::new();
        publish(&fixture.root, &other_job(uri), &[1]).unwrap();
        let share = RootOptions {
            share: true,
            ..RootOptions::default()
        };
        let shared = Arc::new(Root::open(fixture.dir.path(), share).unwrap());
        for id in [1, 2] {
            let second = job(Some(B), Attempt::new(id, 1), &[("a", uri, "error")]);
            let error = publish(&shared, &second, &[2]).unwrap_err();
            assert!(matches!(error, Error::Exists { by: None, .. }), "{error}");
        }
    }
}

/// The first job has renamed its file and fails before its rows are committed.
#[test]
fn output_that_is_taken_back_keeps_no_other_job_from_its_sink() {
    use crate::sink::publish::Step;
    let fixture = Fixture::new();
    let other = open(fixture.dir.path());
    let sinks = [
        ("a", "parquet://a.parquet", "error"),
        ("b", "sqlite://x.db/rows", "append"),
    ];
    let mut output = JobOutput::new(
        fixture.root.clone(),
        Arc::new(job(Some(A), Attempt::new(1, 1), &sinks)),
    )
    .unwrap();
    for topic in ["a", "b"] {
        output.write(Some(topic), &numbers(&[1])).unwrap();
    }
    let hook = |step| {
        if step != Step::Table(0) {
            return Ok(());
        }
        let error = JobOutput::new(other.clone(), Arc::new(of(2, "error"))).err();
        let by = error.and_then(|error| error.taken_by());
        assert_eq!(by, Some(Attempt::new(1, 1)));
        Err(Error::Moved {
            path: PathBuf::new(),
        })
    };
    let staged = output.stage().unwrap();
    staged.publish_by_steps(&[], &|| true, &hook).unwrap_err();
    publish(&other, &of(2, "error"), &[2]).unwrap();
    assert_eq!(fixture.files(), ["a_2.parquet", "x.db"]);
}

/// `o_1_12345678.parquet` is output of job 12345678 in the sink `o_1.parquet`, or output of job 1 of the
/// database 12345678… in the sink `o.parquet`.
#[test]
fn output_of_another_sink_does_not_count_because_of_its_name() {
    const DIGITS: &str = "12345678000000000000000000000003";
    let share = RootOptions {
        share: true,
        ..RootOptions::default()
    };
    let attempt = |id| Attempt::new(id, 1);
    for (database, id, uri, refused) in [
        (
            A,
            12345678,
            "parquet://o_1.parquet",
            Some("parquet://o_1.parquet"),
        ),
        (
            DIGITS,
            1,
            "parquet://o.parquet",
            Some("parquet://o.parquet"),
        ),
        // A file that no record names counts as output of both sinks.
        ("", 0, "", None),
    ] {
        let fixture = Fixture::new();
        let root = Arc::new(Root::open(fixture.dir.path(), share.clone()).unwrap());
        publish(
            &root,
            &job(Some(A), attempt(5), &[("t", "parquet://z.parquet", "")]),
            &[5],
        )
        .unwrap();
        match database {
            "" => fs::write(fixture.path("o_1_12345678.parquet"), "mine").unwrap(),
            _ => drop(
                publish(
                    &root,
                    &job(Some(database), attempt(id), &[("t", uri, "")]),
                    &[1],
                )
                .unwrap(),
            ),
        }
        assert_eq!(fixture.files(), ["o_1_12345678.parquet", "z_5.parquet"]);
        for uri in ["parquet://o.parquet", "parquet://o_1.parquet"] {
            let published = publish(
                &root,
                &job(Some(A), attempt(20), &[("t", uri, "error")]),
                &[2],
            );
            let want = refused.is_none_or(|refused| refused == uri);
            assert_eq!(published.is_err(), want, "{database} {uri}: {published:?}");
        }
    }
}

/// The record of a job whose file another one has replaced names this file again when an attempt of the job
/// is undone, as its receipt does.
#[test]
fn an_attempt_that_is_undone_leaves_the_record_of_a_replaced_file() {
    use crate::job::{Past, PastEnd};
    use crate::sink::publish::Step;
    use crate::sink::{Check, Expected, Named};
    let all: [&[(&str, &str, &str)]; 2] = [
        &[("c", "parquet://c/", "replace")],
        &[
            ("a", "parquet://a/", "append"),
            ("c", "parquet://c/", "replace"),
        ],
    ];
    for (sinks, is_dead) in all.into_iter().flat_map(|it| [(it, false), (it, true)]) {
        let fixture = Fixture::new();
        let first = job(Some(A), Attempt::new(7, 1), sinks);
        let published = publish(&fixture.root, &first, &[1]).unwrap();
        let outputs: Vec<Named> = published
            .artifacts
            .into_iter()
            .map(|artifact| Named {
                uri: artifact.uri,
                rows: Some(artifact.rows),
                size_bytes: Some(artifact.size_bytes),
                sha256: artifact.sha256,
            })
            .collect();
        let other = job(Some(A), Attempt::new(9, 1), sinks);
        publish(&fixture.root, &other, &[9]).unwrap();
        let mut second = job(Some(A), Attempt::new(7, 2), sinks);
        second.previous = outputs.iter().map(|output| output.uri.clone()).collect();
        second.history.past.push(Past {
            number: 1,
            key: 0,
            end: PastEnd::Completed,
        });
        let check = |what: &str| {
            let expected = Expected {
                last: Attempt::new(7, 2),
                is_running: false,
                runs_again: false,
                is_unsettled: false,
                publisher: Attempt::new(7, 1),
                key: 0,
                outputs: &outputs,
                is_truncated: false,
                history: &second.history,
                is_adopting: false,
            };
            let root = open(fixture.dir.path());
            let found = Check::new(&root, A).job(&expected);
            assert_eq!(found.problems, [], "{what} {is_dead} {sinks:?}");
        };
        check("replaced");
        let folder = fixture.path(&format!(".casparian/staging/{A}.7.2"));
        let aside = fixture.path("aside");
        for number in 0..2 {
            let mut again = second.clone();
            again.attempt.number += number;
            let staged = stage(&fixture.root, &again, &[2]).unwrap();
            let hook = |step| match step {
                Step::Rename(at) if at + 1 == sinks.len() => {
                    if is_dead && number == 0 {
                        fs::rename(&folder, &aside).unwrap();
                    }
                    Err(Error::Io {
                        path: folder.clone(),
                        source: std::io::Error::other("stopped"),
                    })
                }
                _ => Ok(()),
            };
            staged
                .publish_by_steps(&[], &|| true, &hook)
                .map(drop)
                .unwrap_err();
            if is_dead && number == 0 {
                fs::rename(&aside, &folder).unwrap();
                fixture.root.bar(A, Attempt::new(7, 2)).unwrap();
            }
            check("undone");
        }
        assert!(fixture.path("c").join("data_9.parquet").exists());
    }
}
