use super::*;

#[test]
fn jobs_come_by_priority_then_id_over_all_plugins_and_only_capable_ones() {
    let mut scene = Scene::new();
    scene.deploy("q", "class Handler: x = 1\n");
    let a = scene.enqueue("p", 0);
    let b = scene.enqueue("q", 5);
    let c = scene.enqueue("p", 5);
    let d = scene.enqueue("other", 100);
    // Each pass continues after the one before, and begins again after the last name.
    for (limit, names, is_end) in [
        (10, &["other", "p", "q"][..], true),
        (2, &["other", "p"], false),
        (2, &["q"], true),
        (1, &["other"], false),
    ] {
        let found = scene.store.queued_plugins(limit, DAY_MS).unwrap();
        assert_eq!(
            (
                found.names.iter().map(String::as_str).collect::<Vec<_>>(),
                found.is_end
            ),
            (names.to_vec(), is_end)
        );
    }
    assert_eq!(ids(&scene.claim(&["p", "q", "other"], 2)), [b, c]);
    assert_eq!(ids(&scene.claim(&["p", "q"], 10)), [a]);
    assert_eq!(scene.status(d), "QUEUED", "not deployed: it waits");
}

#[test]
fn jobs_that_cannot_be_resolved_fail_with_a_reason() {
    let mut scene = Scene::new();
    let bad = scene.enqueue("p", 0);
    scene.sql(&format!(
        "UPDATE cf_processing_queue SET config_overrides = '[1' WHERE id = {bad}; \
         INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
         VALUES (999, 'p', 'QUEUED')"
    ));
    let good = scene.enqueue("p", 0);
    let claimed = scene.claim(&["p"], 10);
    assert_eq!(ids(&claimed), [good]);
    let reasons: Vec<&str> = claimed
        .unresolved
        .iter()
        .map(|job| job.reason.as_str())
        .collect();
    assert_eq!(reasons.len(), 2);
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("config_overrides")),
        "{reasons:?}"
    );
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("file version 999")),
        "{reasons:?}"
    );
    assert_eq!(scene.status(bad), "FAILED");
}

#[test]
fn sinks_have_a_default_and_overrides_take_lists_and_bare_uris() {
    let mut scene = Scene::new();
    scene.sql(
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) VALUES \
         ('p', 'rejects', 'parquet://r.parquet', NULL)",
    );
    let id = scene.enqueue("p", 0);
    let default = scene.enqueue("p", 0);
    scene.sql(&format!(
        "UPDATE cf_processing_queue SET config_overrides = \
         '{{\"output\": [\"parquet://a.parquet\", {{\"uri\": \"parquet://b.parquet\", \"mode\": \"error\"}}]}}' \
         WHERE id = {id}"
    ));
    let claimed = scene.claim(&["p"], 2);
    let sinks = |index: usize| -> Vec<(String, String, String)> {
        let sinks = claimed.jobs[index].sinks.iter();
        sinks
            .map(|s| (s.topic.clone(), s.uri.clone(), s.mode.as_str().to_owned()))
            .collect()
    };
    let sink = |topic: &str, uri: &str, mode: &str| (topic.into(), uri.into(), mode.into());
    assert_eq!(
        sinks(0),
        [
            sink("rejects", "parquet://r.parquet", "append"),
            sink("output", "parquet://a.parquet", "append"),
            sink("output", "parquet://b.parquet", "error"),
        ]
    );
    assert_eq!(claimed.jobs[1].attempt.job_id, default);
    assert_eq!(
        sinks(1)[1],
        sink("output", "parquet://p_output.parquet", "append")
    );
}

#[test]
fn a_job_that_lost_workers_with_others_runs_alone() {
    let mut scene = Scene::new();
    let ids: Vec<i64> = (0..6).map(|_| scene.enqueue("p", 0)).collect();
    scene.sql(&format!(
        "UPDATE cf_processing_queue SET shared_count = {} WHERE id <= {}",
        limits::SHARED_LOSSES_TOGETHER,
        ids[1]
    ));
    // (worker is idle, maximum number of jobs) → (jobs that it gets, alone, reserved).
    let cases = [
        ((false, 4), (vec![], false, true)),
        ((false, 1), (vec![ids[2]], false, false)),
        ((false, 1), (vec![ids[3]], false, false)),
        ((true, 4), (vec![ids[0]], true, false)),
        ((true, 4), (vec![ids[1]], true, false)),
        ((true, 4), (vec![ids[4], ids[5]], false, false)),
    ];
    let plugins = ["p".to_owned()];
    let mut transaction = scene.store.begin().unwrap();
    for ((is_idle, limit), want) in cases {
        let claim = ClaimRequest {
            worker_id: "w",
            hostname: "host",
            pid: None,
            plugins: &plugins,
            limit,
            is_idle,
            is_old: false,
            lease_until_ms: 0,
        };
        let claimed = transaction.claim(&claim, DAY_MS).unwrap();
        let got = (super::ids(&claimed), claimed.alone, claimed.is_reserved);
        assert_eq!(got, want, "{is_idle} {limit}");
    }
    drop(transaction);
    // Behind a job of higher priority it waits until the worker is idle.
    scene.sql(&format!(
        "UPDATE cf_processing_queue SET priority = 9 WHERE id = {}",
        ids[5]
    ));
    let claimed = scene.claim(&["p"], 4);
    assert_eq!(super::ids(&claimed), [ids[5]]);
    assert!(claimed.is_reserved && !claimed.alone);
    let waits = scene.inspect(ids[0]).waiting_for;
    assert!(waits.is_some(), "{waits:?}");
}
