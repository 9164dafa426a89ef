//! Tests of `old_since_ms`: jobs that programs of the reference system, which keep no records, may have run.

use super::*;

fn old_since(scene: &mut Scene) -> Option<i64> {
    let job = scene.claim(&["p"], 1).jobs.remove(0);
    let since = job.history.old_since_ms;
    scene.report("w", job.attempt, &success(&["file:///a"]), 0);
    since
}

#[test]
fn an_attempt_that_an_old_worker_had_is_reported_until_one_of_ours_is_completed() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    let again = "UPDATE cf_processing_queue SET status = 'QUEUED'";
    assert_eq!(old_since(&mut scene), None);
    scene.sql(again);
    for _ in 0..2 {
        let lost = scene.claim_for("old", &["p"], 1, true).jobs.remove(0);
        scene.release(lost.attempt, 0);
        scene.sql(again);
    }
    let job = scene.claim(&["p"], 1).jobs.remove(0);
    assert_eq!(job.history.old_since_ms, Some(DAY_MS));
    // A receipt of a worker of the reference system has no number.
    scene.report("w", job.attempt, &success(&[]), 0);
    scene.sql(again);
    let job = scene.claim(&["p"], 1).jobs.remove(0);
    assert_eq!(job.history.old_since_ms, Some(DAY_MS));
    let mut numbered = success(&["file:///a"]);
    numbered.attempt = Some(job.attempt.number);
    scene.report("w", job.attempt, &numbered, 0);
    scene.sql(again);
    assert_eq!(old_since(&mut scene), None);
}

#[test]
fn a_job_that_an_old_sentinel_has_run_is_reported() {
    // One day before, because the time zone is unknown.
    let since = parse_time("2025-03-03 00:00:00").unwrap();
    let by_old = "UPDATE cf_processing_queue SET claim_time = '2025-03-04 00:00:00', attempt = 0, ";
    for end in ["COMPLETED", "FAILED", "RUNNING"] {
        for (queued, want) in [
            ("status = 'QUEUED'", Some(since)),
            ("status = 'QUEUED', claim_time = NULL", Some(since)),
        ] {
            let mut scene = Scene::new();
            let id = scene.enqueue("p", 0);
            scene.sql(&format!("{by_old} status = '{end}'"));
            if end == "RUNNING" {
                let ended = scene.release(Attempt::new(id, 0), 0);
                assert_eq!(ended, Ended::Queued);
            }
            scene.sql(&format!("UPDATE cf_processing_queue SET {queued}"));
            assert_eq!(old_since(&mut scene), want, "{end} {queued}");
        }
    }
    // Invalid times, and a row that was never claimed.
    for time in ["'soon'", "x'00'", "NULL"] {
        let mut scene = Scene::new();
        scene.enqueue("p", 0);
        scene.sql(&format!(
            "UPDATE cf_processing_queue SET claim_time = {time}"
        ));
        assert_eq!(old_since(&mut scene), None, "{time}");
    }
}
