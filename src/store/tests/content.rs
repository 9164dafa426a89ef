//! Tests of workers that find other content than that of the file version.

use super::*;
use crate::job::Content;

/// A receipt of a worker that refuses a job because of other content.
fn found(hash: &str) -> Receipt {
    Receipt {
        input_changed: true,
        input: Some(Content {
            size_bytes: Some(7),
            mtime_ns: Some(-1_500_000_000),
            hash: Some(hash.repeat(64)),
        }),
        ..failure(Some(Cause::Input), "input: /f: other content\nlast lines")
    }
}

/// The row's file version, how many there are, and the failures that are counted.
fn row(scene: &Scene) -> (String, String, String) {
    (
        scene.text("SELECT file_version_id FROM cf_processing_queue"),
        scene.text("SELECT count(*) FROM cf_file_version"),
        scene.text("SELECT coalesce(changed_count, 0) FROM cf_processing_queue"),
    )
}

fn integers(values: [i64; 3]) -> (String, String, String) {
    let [a, b, c] = values.map(|value| format!("Integer({value})"));
    (a, b, c)
}

#[test]
fn a_row_gets_the_version_that_was_found_uncounted_within_a_bound() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let mut at_ms = 0;
    for (round, hash) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        let round = i64::try_from(round).unwrap();
        let job = scene.claim(&["p"], 1).jobs.remove(0);
        let known = job.content.unwrap();
        let is_current = match round {
            0 => known.size_bytes == Some(3) && known.mtime_ns == Some(1_500_000_000),
            _ => known.size_bytes == Some(7) && known.mtime_ns == Some(-1_500_000_000),
        };
        assert!(is_current, "{round}: {known:?}");
        let ended = scene.report("w", job.attempt, &found(hash), at_ms);
        assert_eq!(row(&scene), integers([round + 2, round + 2, 0]));
        match (round, ended) {
            (0, Ended::Queued) => {}
            (limits::VERSION_CHANGES_MAX, Ended::Failed) => {}
            (_, Ended::Waits { until_boot_ms }) => {
                at_ms = until_boot_ms - 1_000_000;
                let mut transaction = scene.store.begin().unwrap();
                assert_eq!(transaction.wake_due(&now(at_ms)).unwrap(), 1);
                transaction.commit().unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    let detail = scene.inspect(id);
    assert_eq!(detail.attempts.len(), 5);
    let first = detail.attempts[0].error_message.clone().unwrap_or_default();
    assert_eq!(
        first,
        "input: /f: other content; the job runs over it as file version 2\nlast lines"
    );
    assert_eq!(detail.attempts[0].status, "RETURNED");
    assert_eq!(detail.row.cause.as_deref(), Some("input"));
    // After an operator has queued it again, the count begins from zero.
    scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
    let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
    let again = scene.report("w", attempt, &found("f"), at_ms);
    assert_eq!(again, Ended::Queued);
}

#[test]
fn content_that_was_there_before_is_the_version_of_then() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    for (hash, version) in [("a", 2), ("b", 3), ("a", 2)] {
        let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
        scene.report("w", attempt, &found(hash), 0);
        scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
        assert_eq!(row(&scene).0, format!("Integer({version})"));
    }
}

#[test]
fn what_cannot_be_a_version_is_a_change_of_the_input_that_is_counted() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    scene.sql(
        "CREATE TRIGGER refuse BEFORE INSERT ON cf_file_version \
         WHEN NEW.content_hash GLOB 'b*' BEGIN SELECT RAISE(ABORT, 'no'); END",
    );
    let mut without_size = found("a");
    without_size.input.as_mut().unwrap().size_bytes = None;
    for (round, receipt) in [found("no hash "), found("b"), without_size]
        .iter()
        .enumerate()
    {
        let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
        let ended = scene.report("w", attempt, receipt, 0);
        assert!(matches!(ended, Ended::Waits { .. }), "{ended:?}");
        let counted = i64::try_from(round).unwrap() + 1;
        assert_eq!(row(&scene), integers([1, 1, counted]));
        let error = scene.text("SELECT error_message FROM cf_processing_queue");
        let is_refused = error.contains(
            "other content; what it is now cannot be registered: the database refuses it: no\n",
        );
        assert_eq!(is_refused, round == 1, "{error}");
        scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED', next_run = NULL");
    }
}

/// Other programs may write any values into the catalogue.
#[test]
fn what_cannot_be_read_of_a_version_is_not_known() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    scene.sql("UPDATE cf_file_location SET last_known_mtime = NULL");
    for (values, size, mtime, hash) in [
        (
            "3, '2023-11-14 22:13:20', 'h'",
            Some(3),
            Some(1_700_000_000),
            Some("h"),
        ),
        ("-1, 'yesterday', X'00'", None, None, None),
        ("'three', 7, printf('%.*c', 300, 'x')", None, None, None),
    ] {
        scene.sql(&format!(
            "UPDATE cf_file_version SET (size_bytes, modified_time, content_hash) = ({values})"
        ));
        scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
        let known = scene.claim(&["p"], 1).jobs.remove(0).content.unwrap();
        let wanted = Content {
            size_bytes: size,
            mtime_ns: mtime.map(|seconds: i64| seconds * 1_000_000_000),
            hash: hash.map(str::to_owned),
        };
        assert_eq!(known, wanted, "{values}");
    }
}
