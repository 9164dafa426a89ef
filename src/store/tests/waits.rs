use super::*;
use crate::limits;

/// A receipt that refuses a job because of output that attempt `by` has published.
fn refusal(by: Attempt) -> Receipt {
    let mut receipt = failure(Some(Cause::Operator), "o_1.parquet exists already");
    receipt.note_others(None, Some(by));
    receipt
}

/// Two jobs. The first one is claimed, and then `then` is called with its attempt.
fn scene(then: impl Fn(&mut Scene, Attempt)) -> Scene {
    let mut scene = Scene::new();
    scene.enqueue("p", 9);
    scene.enqueue("p", 0);
    let first = scene.claim(&["p"], 1).jobs[0].attempt;
    assert_eq!(first, Attempt::new(1, 1));
    then(&mut scene, first);
    scene
}

/// Runs job 2, which is refused. Returns its end, and when it may be tried again.
fn refused(scene: &mut Scene, by: Attempt, at: u64) -> (Ended, u64) {
    scene.wake(&now(at));
    let taken = "UPDATE cf_processing_queue SET status = 'HELD' WHERE id = 1 AND status = 'QUEUED'";
    scene.sql(taken);
    let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
    scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED' WHERE status = 'HELD'");
    assert_eq!(attempt.job_id, 2);
    let ended = scene.report("w", attempt, &refusal(by), at);
    match ended {
        Ended::Waits { until_boot_ms } => (ended, until_boot_ms - now(0).boot_ms),
        _ => (ended, at),
    }
}

fn set(scene: &mut Scene, columns: &str) {
    scene.sql(&format!(
        "UPDATE cf_processing_queue SET {columns} WHERE id = 1"
    ));
}

#[test]
fn output_of_another_job_is_final_when_it_has_a_receipt_or_can_only_stay() {
    const LAST: i64 = limits::UNSETTLED_WAITS_MAX + 1;
    /// (name, what happens to job 1, the attempt that has published, how often job 2 polls before it fails).
    type Case = (&'static str, fn(&mut Scene, Attempt), i64, Option<i64>);
    let cases: [Case; 13] = [
        ("runs", |_, _| {}, 1, None),
        (
            "completed",
            |scene, first| {
                scene.report("w", first, &success(&[]), 0);
            },
            1,
            Some(0),
        ),
        (
            "runs again after it was completed",
            |scene, first| {
                scene.report("w", first, &success(&["file:///a"]), 0);
                set(scene, "status = 'QUEUED'");
            },
            1,
            Some(0),
        ),
        (
            "published again after it was completed",
            |scene, first| {
                scene.report("w", first, &success(&["file:///a"]), 0);
                set(scene, "status = 'RUNNING', attempt = 2");
            },
            2,
            None,
        ),
        (
            "lost",
            |scene, first| {
                scene.release(first, 0);
            },
            1,
            None,
        ),
        (
            "pauses",
            |scene, first| {
                scene.report("w", first, &failure(Some(Cause::Worker), "disk"), 0);
            },
            1,
            None,
        ),
        (
            "cancelled",
            |scene, _| set(scene, "status = 'SKIPPED'"),
            1,
            Some(LAST),
        ),
        (
            "set aside",
            |scene, _| set(scene, "status = 'PENDING'"),
            1,
            Some(LAST),
        ),
        (
            "settled",
            |scene, _| set(scene, "status = 'SKIPPED', unsettled = 0"),
            1,
            Some(2),
        ),
        (
            "given up",
            |scene, _| set(scene, "status = 'SKIPPED', unsettled = 2"),
            1,
            Some(2),
        ),
        (
            "deleted",
            |scene, _| scene.sql("DELETE FROM cf_processing_queue WHERE id = 1"),
            1,
            Some(0),
        ),
        ("another under its ID", |_, _| {}, (1 << 32) + 1, Some(0)),
        (
            "waits itself, and its output has outlived that",
            |scene, first| {
                scene.release(first, 0);
                let second = scene.claim(&["p"], 1).jobs[0].attempt;
                let ended = scene.report("w", second, &refusal(Attempt::new(2, 1)), 0);
                assert!(matches!(ended, Ended::Waits { .. }), "{ended:?}");
            },
            1,
            Some(LAST),
        ),
    ];
    for (case, then, number, polls) in cases {
        let mut scene = scene(then);
        let by = Attempt::new(1, number);
        let mut at = 0;
        let mut waits = 0;
        loop {
            let (ended, until) = refused(&mut scene, by, at);
            let row = scene.inspect(2);
            assert_eq!((row.retry_count, row.infra_count), (0, 0), "{case}");
            let reason = row.row.error_message.unwrap();
            if ended == Ended::Failed {
                assert_eq!(reason, "o_1.parquet exists already", "{case}");
                break;
            }
            waits += 1;
            assert_eq!(row.row.status, "PENDING", "{case}");
            let want = "waits for job 1, whose output is not settled: o_1.parquet exists already";
            assert_eq!(reason, want, "{case}");
            // From 1 s to 32 s, plus or minus a fifth.
            let pause = until - at;
            assert!((800..=38_400).contains(&pause), "{case}: {pause}");
            assert!(waits < 7 || pause >= 25_600, "{case}: {pause}");
            at = until;
            if waits == LAST + 10 {
                break;
            }
        }
        let want = polls.map_or(LAST + 10, |polls| (polls - 1).max(0));
        assert_eq!(waits, want, "{case}");
        let failed = "SELECT group_concat(DISTINCT status || ' ' || cause) FROM cf_job_attempt \
                    WHERE job_id = 2";
        assert_eq!(scene.text(failed), "FAILED operator", "{case}");
    }
}

/// A worker's observation is older than the end of the other job.
#[test]
fn output_that_goes_while_its_refusal_is_on_its_way_fails_no_job() {
    let mut scene = scene(|scene, first| {
        scene.release(first, 0);
    });
    let by = Attempt::new(1, 1);
    let (_, until) = refused(&mut scene, by, 0);
    let retry = scene.claim(&["p"], 1).jobs[0].attempt;
    scene.wake(&now(until));
    let second = scene.claim(&["p"], 1).jobs[0].attempt;
    assert_eq!((retry.job_id, second.job_id), (1, 2));
    scene.report(
        "w",
        retry,
        &failure(Some(Cause::Plugin), "ValueError"),
        until,
    );
    let ended = scene.report("w", second, &refusal(by), until);
    assert!(matches!(ended, Ended::Waits { .. }), "{ended:?}");
    let Ended::Waits { until_boot_ms } = ended else {
        panic!()
    };
    scene.wake(&now(until_boot_ms - now(0).boot_ms));
    let third = scene.claim(&["p"], 1).jobs[0].attempt;
    assert_eq!(
        scene.report("w", third, &success(&[]), until),
        Ended::Completed
    );
}
