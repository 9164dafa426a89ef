//! Settlements: whatever an attempt left, the visible output of an ended job is the output that the
//! settlement returns.

use super::steps::{FILES, Scene, TABLES, crash, each_step, is_committed, pause};
use super::*;
use crate::job::{History, Past, PastEnd, Settlement};

/// A history with one completed attempt (0: none) and some failed ones.
fn history(completed: i64, failed: &[i64]) -> History {
    let past = |number, end| Past {
        number,
        key: 0,
        end,
    };
    let failed = failed.iter().map(|number| past(*number, PastEnd::Failed));
    let completed = (completed > 0).then(|| past(completed, PastEnd::Completed));
    History {
        key: 0,
        past: completed.into_iter().chain(failed).collect(),
        ..History::default()
    }
}

/// A settlement of job 7 after its attempt 2.
fn settlement(scene: &Scene, keep: bool) -> Settlement {
    Settlement {
        attempt: Attempt::new(7, 3),
        database: A.to_owned(),
        previous: scene.previous.clone(),
        history: history(i64::from(scene.case.has_previous), &[]),
        keep,
    }
}

/// True when attempt 2 replaces output with a receipt.
fn replaces(scene: &Scene) -> bool {
    scene.case.has_previous || scene.case.mode == "replace"
}

/// Settles the job and checks that the visible output is the one that is returned. True when it is
/// attempt 2's.
fn settle(scene: &Scene, root: &Root, keep: bool) -> bool {
    let kept = root.settle(&settlement(scene, keep)).unwrap();
    let (shown, case) = (scene.shown(7), scene.case);
    let Some((attempt, artifacts)) = kept else {
        assert_eq!(shown, scene.before(), "{keep} {case:?}");
        return false;
    };
    assert_eq!(attempt, 2, "{case:?}");
    assert_eq!(shown, scene.all(Some(2)), "{keep} {case:?}");
    assert!(keep || replaces(scene), "{case:?}");
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
            let is_kept = settle(&scene, &other, keep);
            if is_committed(step) {
                assert_eq!(is_kept, keep || replaces(&scene), "{:?}", scene.case);
            }
            assert_eq!(scene.fixture.staged(), [""; 0], "{step:?}");
            // A second settlement has the same result. Then the next attempt can publish.
            assert_eq!(settle(&scene, &other, keep), is_kept, "{:?}", scene.case);
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
            let mut is_kept = false;
            let paused = pause(&scene, |_| is_kept = settle(&scene, &other, keep));
            let Some((step, result)) = paused else {
                return false;
            };
            assert!(result.is_err(), "{step:?} {result:?}");
            let want = match is_kept {
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
        history: history(completed, failed),
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
    // A file that another program replaced is not the job's output.
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

/// An attempt of job 7 with a file for each topic, and this history.
fn job_of(number: i64, history: History, topics: &[&str]) -> Job {
    let sinks: Vec<(String, String)> = topics
        .iter()
        .map(|topic| ((*topic).to_owned(), format!("parquet://{topic}.parquet")))
        .collect();
    let sinks: Vec<(&str, &str, &str)> = sinks
        .iter()
        .map(|(topic, uri)| (topic.as_str(), uri.as_str(), "append"))
        .collect();
    let mut job = job(Some(A), Attempt::new(7, number), &sinks);
    job.history = history;
    job
}

fn with_key(key: i64, mut history: History) -> History {
    history.key = key;
    history
}

#[test]
fn a_copied_database_neither_takes_nor_removes_what_the_original_published() {
    let fixture = Fixture::new();
    let original = job_of(1, with_key(5, history(0, &[])), &["a"]);
    publish(&fixture.root, &original, &[1]).unwrap();
    let other = open(fixture.dir.path());
    // Attempt 1 of the copy was dispatched by another sentinel, so it has another key.
    for end in [PastEnd::Unknown, PastEnd::Failed, PastEnd::Completed] {
        let past = vec![Past {
            number: 1,
            key: 6,
            end,
        }];
        let copy = History {
            key: 6,
            past,
            ..History::default()
        };
        for root in [&other, &fixture.root] {
            let error = publish(root, &job_of(2, copy.clone(), &["a"]), &[2]).unwrap_err();
            assert!(matches!(error, Error::Copied { .. }), "{end:?} {error}");
            let failed = job_of(1, with_key(6, history(0, &[])), &["a"]);
            root.settle_failed(&failed).unwrap();
            root.settle_failed(&job_of(2, copy.clone(), &["a"]))
                .unwrap();
            for keep in [true, false] {
                let settlement = Settlement {
                    attempt: Attempt::new(7, 2),
                    database: A.to_owned(),
                    previous: Vec::new(),
                    history: copy.clone(),
                    keep,
                };
                assert_eq!(root.settle(&settlement).unwrap(), None, "{end:?} {keep}");
            }
            assert_eq!(values(&fixture.path("a_7.parquet")), [1], "{end:?}");
        }
    }
}

#[test]
fn output_with_a_receipt_stays_whatever_path_the_receipt_names() {
    let fixture = Fixture::new();
    publish(
        &fixture.root,
        &job_of(1, history(0, &[]), &["a", "b"]),
        &[1],
    )
    .unwrap();
    // The receipt names the files by another path of the root, or does not list them because of its size
    // limit.
    for previous in [vec!["file:///elsewhere/a_7.parquet".to_owned()], Vec::new()] {
        let mut failed = job_of(2, history(1, &[]), &["a", "b"]);
        failed.previous = previous;
        assert_eq!(fixture.root.settle_failed(&failed).unwrap(), [""; 0]);
        assert_eq!(fixture.files(), ["a_7.parquet", "b_7.parquet"]);
    }
}

#[test]
fn an_attempt_that_replaced_output_with_a_receipt_stands_whole() {
    let fixture = Fixture::new();
    let root = &fixture.root;
    let first = publish(root, &job_of(1, history(0, &[]), &["a", "b"]), &[1]).unwrap();
    let previous: Vec<String> = first.artifacts.into_iter().map(|one| one.uri).collect();
    // Two attempts are lost after their commit. The second replaces the output of the first.
    for (number, topics) in [(2, ["a", "c"]), (3, ["a", "d"])] {
        let mut job = job_of(number, history(1, &[]), &topics);
        job.previous.clone_from(&previous);
        publish(root, &job, &[number]).unwrap();
    }
    let mut failed = job_of(4, history(1, &[]), &["a"]);
    failed.previous.clone_from(&previous);
    assert_eq!(root.settle_failed(&failed).unwrap(), [""; 0]);
    let settlement = Settlement {
        attempt: Attempt::new(7, 5),
        database: A.to_owned(),
        previous,
        history: history(1, &[4]),
        keep: false,
    };
    let (attempt, artifacts) = root.settle(&settlement).unwrap().unwrap();
    let topics: Vec<&str> = artifacts.iter().map(|one| one.topic.as_str()).collect();
    assert_eq!((attempt, topics), (3, vec!["a", "d"]));
    assert_eq!(fixture.files(), ["a_7.parquet", "d_7.parquet"]);
    for name in fixture.files() {
        assert_eq!(values(&fixture.path(&name)), [3], "{name}");
    }
    // Another job has replaced a part of the output since. The settlement still returns all of it.
    fs::remove_file(fixture.path("a_7.parquet")).unwrap();
    let (attempt, artifacts) = root.settle(&settlement).unwrap().unwrap();
    assert_eq!((attempt, artifacts.len()), (3, 2));
    fs::remove_file(fixture.path("d_7.parquet")).unwrap();
    assert_eq!(root.settle(&settlement).unwrap(), None);
}

#[test]
fn what_a_copy_has_barred_names_the_number_to_go_on_from() {
    let fixture = Fixture::new();
    // Attempt 9 of the copy bars the attempts before it, and fails.
    let copy = job_of(9, with_key(6, history(0, &[])), &["a"]);
    fixture.root.settle_failed(&copy).unwrap();
    let original = |number| job_of(number, with_key(5, history(0, &[])), &["a"]);
    let other = open(fixture.dir.path());
    for number in [1, 8] {
        let error = publish(&other, &original(number), &[1]).unwrap_err();
        assert_eq!(error.barred_by(), Some(8), "{error}");
        let settlement = Settlement {
            attempt: Attempt::new(7, number),
            database: A.to_owned(),
            previous: Vec::new(),
            history: History::default(),
            keep: true,
        };
        let error = other.settle(&settlement).unwrap_err();
        assert_eq!(error.barred_by(), Some(8), "{error}");
    }
    publish(&other, &original(9), &[1]).unwrap();
    assert_eq!(values(&fixture.path("a_7.parquet")), [1]);
}
