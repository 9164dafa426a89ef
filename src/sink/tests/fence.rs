//! Barred attempts, and attempts of old sentinels.

use super::*;

const SINKS: &[(&str, &str, &str)] = &[("a", "parquet://a.parquet", "append")];

fn attempt(number: i64) -> Job {
    job(Some(A), Attempt::new(7, number), SINKS)
}

#[test]
fn a_barred_attempt_publishes_nothing_whenever_it_is_barred() {
    for staged_before in [false, true] {
        for bars in [&[3][..], &[3, 1], &[1, 3, 2]] {
            let fixture = Fixture::new();
            let other = open(fixture.dir.path());
            let staged = staged_before.then(|| stage(&fixture.root, &attempt(3), &[1]).unwrap());
            for &number in bars {
                other.bar(A, Attempt::new(7, number)).unwrap();
            }
            let result = match staged {
                Some(staged) => granted(staged),
                None => publish(&fixture.root, &attempt(3), &[1]),
            };
            assert!(matches!(result, Err(Error::Barred { .. })), "{result:?}");
            assert_eq!(fixture.files(), [""; 0]);
            // Not barred are a later attempt, another job, and another database.
            publish(&other, &attempt(4), &[4]).unwrap();
            publish(&other, &job(Some(A), Attempt::new(8, 1), SINKS), &[8]).unwrap();
            assert_eq!(fixture.files(), ["a_7.parquet", "a_8.parquet"]);
        }
    }
}

#[test]
fn bars_that_are_set_at_a_time_are_never_lowered() {
    let fixture = Fixture::new();
    let roots: Vec<_> = (0..4).map(|_| open(fixture.dir.path())).collect();
    std::thread::scope(|scope| {
        for (at, root) in roots.iter().enumerate() {
            scope.spawn(move || {
                for round in 0..50i64 {
                    let number = round * 4 + i64::try_from(at).unwrap() + 1;
                    root.bar(A, Attempt::new(7, number)).unwrap();
                    for lower in [1, number] {
                        let by = root.barred_by(A, Attempt::new(7, lower)).unwrap();
                        assert!(by >= Some(lower));
                    }
                }
            });
        }
    });
    let barred_by = |number| {
        let attempt = Attempt::new(7, number);
        fixture.root.barred_by(A, attempt).unwrap()
    };
    assert_eq!(barred_by(1), Some(200));
    assert_eq!(barred_by(200), Some(200));
    assert_eq!(barred_by(201), None);
}

#[test]
fn attempts_of_other_jobs_are_barred_before_a_publish() {
    let fixture = Fixture::new();
    let paused = stage(&fixture.root, &attempt(1), &[1]).unwrap();
    let staged = stage(
        &fixture.root,
        &job(Some(A), Attempt::new(8, 1), SINKS),
        &[8],
    )
    .unwrap();
    staged.publish(&[Attempt::new(7, 1)], &|| true).unwrap();
    assert!(matches!(granted(paused), Err(Error::Barred { .. })));
    assert_eq!(fixture.files(), ["a_8.parquet"]);
    publish(&fixture.root, &attempt(2), &[2]).unwrap();
    assert_eq!(fixture.files(), ["a_7.parquet", "a_8.parquet"]);
}

#[test]
fn a_database_name_that_is_none_reaches_no_path() {
    let fixture = Fixture::new();
    for name in [
        "",
        "..",
        "a/b",
        "../../x",
        "A",
        "a.b",
        "a~b",
        &"a".repeat(65),
    ] {
        let refused = stage(
            &fixture.root,
            &job(Some(name), Attempt::new(1, 1), SINKS),
            &[1],
        );
        let error = refused.map(|_| ()).unwrap_err();
        assert!(
            matches!(error, Error::DatabaseName { .. }),
            "{name}: {error}"
        );
        assert!(fixture.root.bar(name, Attempt::new(1, 1)).is_err());
    }
}

#[test]
fn runs_of_an_old_sentinel_are_apart_and_the_last_stands() {
    let fixture = Fixture::new();
    let old = job(None, Attempt::new(7, 0), SINKS);
    let first = stage(&fixture.root, &old, &[1]).unwrap();
    let second = stage(&fixture.root, &old, &[2]).unwrap();
    assert_eq!(fixture.staged().len(), 2);
    granted(second).unwrap();
    granted(first).unwrap();
    assert_eq!(values(&fixture.path("a_7.parquet")), [1]);
    // For an old sentinel, a file without a record is the job's if it has its name.
    fs::write(fixture.path("a_8.parquet"), "of an earlier release").unwrap();
    publish(&fixture.root, &job(None, Attempt::new(8, 0), SINKS), &[8]).unwrap();
    assert_eq!(values(&fixture.path("a_8.parquet")), [8]);
    assert_eq!(fixture.staged(), [""; 0]);
}

#[test]
fn a_publish_without_output_removes_that_of_earlier_attempts() {
    let fixture = Fixture::new();
    let both = [SINKS[0], ("b", "parquet://set/b.parquet", "append")];
    let first = job(Some(A), Attempt::new(7, 1), &both);
    let uris = publish(&fixture.root, &first, &[1]).unwrap().artifacts;
    assert_eq!(uris.len(), 2);
    let second = publish(&fixture.root, &attempt(2), &[2]).unwrap();
    assert_eq!(second.removed, [uris[1].uri.as_str()]);
    assert_eq!(fixture.files(), ["a_7.parquet"]);
    let output = JobOutput::new(fixture.root.clone(), Arc::new(attempt(3))).unwrap();
    let third = granted(output.stage().unwrap()).unwrap();
    assert_eq!((third.artifacts.len(), third.removed.len()), (0, 1));
    assert_eq!(fixture.files(), [""; 0]);
    publish(&fixture.root, &attempt(4), &[4]).unwrap();
    assert_eq!(values(&fixture.path("a_7.parquet")), [4]);
}
