//! Settlements: what is visible of a job that has ended is what it gives, whatever an attempt left.

use super::steps::{FILES, Scene, TABLES, crash, each_step, is_committed, pause};
use super::*;
use crate::job::Settlement;

/// A settlement of job 7 behind its attempt 2.
fn settlement(scene: &Scene, keep: bool) -> Settlement {
    Settlement {
        attempt: Attempt::new(7, 3),
        database: A.to_owned(),
        previous: scene.previous.clone(),
        failed: Vec::new(),
        completed: i64::from(scene.case.has_previous),
        keep,
    }
}

/// Settles the job; the output that stands is the one that it gives. True for attempt 2's.
fn settle(scene: &Scene, root: &Root, keep: bool) -> bool {
    let standing = root.settle(&settlement(scene, keep)).unwrap();
    let (shown, case) = (scene.shown(7), scene.case);
    let Some((attempt, artifacts)) = standing else {
        assert_eq!(shown, scene.before(), "{keep} {case:?}");
        return false;
    };
    assert_eq!(attempt, 2, "{case:?}");
    assert_eq!(shown, scene.all(Some(2)), "{keep} {case:?}");
    assert!(keep || case.has_previous, "{case:?}");
    let topics: Vec<&str> = artifacts.iter().map(|one| one.topic.as_str()).collect();
    let expected: Vec<&str> = case.sinks.iter().map(|(topic, _)| *topic).collect();
    assert_eq!(topics, expected);
    for artifact in &artifacts {
        assert_eq!(artifact.rows, 1, "{artifact:?}");
        let path = artifact.uri.strip_prefix("file://");
        let size = path.map_or(0, |path| fs::metadata(path).unwrap().len());
        assert_eq!(artifact.size_bytes, size, "{artifact:?}");
    }
    true
}

#[test]
fn what_a_lost_attempt_left_at_any_step_stands_whole_or_goes() {
    for keep in [true, false] {
        each_step(&[FILES, TABLES], |scene| {
            let other = open(scene.fixture.dir.path());
            let Some(step) = crash(&scene) else {
                return false;
            };
            let stands = settle(&scene, &other, keep);
            if is_committed(step) {
                assert_eq!(stands, keep || scene.case.has_previous, "{:?}", scene.case);
            }
            assert_eq!(scene.fixture.staged(), [""; 0], "{step:?}");
            // A second time, and by the next number, it gives the same.
            assert_eq!(settle(&scene, &other, keep), stands, "{:?}", scene.case);
            publish(&other, &scene.job(7, 4), &[3]).unwrap();
            scene.check_success();
            true
        });
    }
}

#[test]
fn an_attempt_that_was_paused_changes_nothing_after_a_settlement() {
    for keep in [true, false] {
        each_step(&[FILES], |scene| {
            let other = open(scene.fixture.dir.path());
            let mut stands = false;
            let paused = pause(&scene, |_| stands = settle(&scene, &other, keep));
            let Some((step, result)) = paused else {
                return false;
            };
            assert!(result.is_err(), "{step:?} {result:?}");
            let want = match stands {
                true => scene.all(Some(2)),
                false => scene.before(),
            };
            assert_eq!(scene.shown(7), want, "{step:?} {:?}", scene.case);
            true
        });
    }
}

#[test]
fn only_output_without_a_receipt_is_settled() {
    let fixture = Fixture::new();
    let of = |number| {
        job(
            Some(A),
            Attempt::new(7, number),
            &[("a", "parquet://a.parquet", "append")],
        )
    };
    let settlement = |completed, failed: &[i64]| Settlement {
        attempt: Attempt::new(7, 9),
        database: A.to_owned(),
        previous: vec![format!("file://{}", fixture.path("a_7.parquet").display())],
        failed: failed.to_vec(),
        completed,
        keep: true,
    };
    let settle = |settlement| fixture.root.settle(&settlement).unwrap();
    assert_eq!(settle(settlement(0, &[])), None, "there is none");
    publish(&fixture.root, &of(11), &[1]).unwrap();
    for (completed, failed) in [(11, &[][..]), (3, &[11]), (0, &[11])] {
        let mut later = settlement(completed, failed);
        later.attempt.number = 12;
        assert_eq!(settle(later), None, "{completed} {failed:?}");
        assert_eq!(values(&fixture.path("a_7.parquet")), [1]);
    }
    // Of a file that somebody exchanged nothing is known.
    fs::remove_file(fixture.path("a_7.parquet")).unwrap();
    fs::write(fixture.path("a_7.parquet"), "mine").unwrap();
    let mut later = settlement(0, &[]);
    later.attempt.number = 13;
    assert_eq!(settle(later), None);
    assert_eq!(fs::read(fixture.path("a_7.parquet")).unwrap(), b"mine");
    // A name that could leave the folder is refused.
    let mut foreign = settlement(0, &[]);
    foreign.database = "../x".to_owned();
    fixture.root.settle(&foreign).unwrap_err();
}
