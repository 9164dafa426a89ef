//! Tests that statements of the hot path use their indexes with any statistics.

use super::*;
use crate::store::{
    attempts, catalogue, claim, code, content, lease_check, queue, retry, settle, sinks, waits,
};
use rusqlite::StatementStatus;
use rusqlite::types::Value;

/// Every statement that runs for a job or in each event-loop iteration of the sentinel, with parameters for
/// which it finds rows.
fn hot() -> Vec<(&'static str, Vec<Value>)> {
    let text = |text: &str| Value::Text(text.to_owned());
    let number = Value::Integer;
    let start = || vec![text("this-start"), number(1), number(10)];
    let mut hot = vec![
        (queue::NEXT_PLUGIN_QUERY, vec![Value::Blob(vec![])]),
        (queue::NEXT_PLUGIN_QUERY, vec![Value::Blob(b"p".to_vec())]),
        (queue::RUNNING_QUERY, vec![number(0), number(10)]),
        (
            lease_check::HELD_QUERY,
            vec![number(1), number(1), text("w")],
        ),
        (claim::CLAIM_QUERY, vec![text("p"), number(0)]),
        (claim::CLAIM_QUERY, vec![text("p"), number(1)]),
        (
            claim::CLAIM_FROM_QUERY,
            vec![text("p"), number(0), number(6), number(50)],
        ),
        (
            claim::CLAIM_FROM_QUERY,
            vec![text("p"), number(0), Value::Null, number(i64::MIN)],
        ),
        (
            claim::CLAIM_BELOW_QUERY,
            vec![text("p"), number(0), number(5)],
        ),
        (claim::RESOLVE_QUERY, vec![number(150)]),
        (content::LOCATION_QUERY, vec![number(150)]),
        (content::MOVED_QUERY, vec![number(1), number(5), number(0)]),
        (claim::REMEMBER, vec![number(150)]),
        (catalogue::PUBLICATION_QUERY, vec![number(150)]),
        (claim::TAKE, {
            let mut values = vec![Value::Null; 11];
            (values[0], values[7]) = (number(150), number(1));
            values
        }),
        (
            claim::TAKEN,
            vec![number(150), number(1), number(1), text("w")],
        ),
        (claim::IS_FAILED, vec![number(150)]),
        (
            claim::FAIL,
            vec![number(150), Value::Null, Value::Null, Value::Null],
        ),
        (attempts::HELD_QUERY, vec![number(1), text("w"), number(1)]),
        (attempts::END, {
            let mut values = vec![Value::Null; 21];
            (values[0], values[1]) = (number(1), text("COMPLETED"));
            values
        }),
        (attempts::RECORD, {
            let mut values = vec![Value::Null; 19];
            (values[0], values[1]) = (number(1), number(1));
            values
        }),
        (code::CODE_QUERY, vec![text("p")]),
        (sinks::SINKS_QUERY, vec![text("p"), number(10)]),
        (catalogue::ROOT_QUERY, vec![text("/data"), text("/data/")]),
        (catalogue::HIGHEST_ROOT_QUERY, vec![number(1 << 62)]),
        (catalogue::HIGHEST_LOCATION_QUERY, vec![number(1 << 62)]),
        (catalogue::HIGHEST_VERSION_QUERY, vec![number(1 << 62)]),
        (retry::DUE_QUERY, start()),
        (retry::WAKE, vec![number(150)]),
        (retry::IS_QUEUED, vec![number(150)]),
        (retry::NEXT_DUE_QUERY, vec![text("this-start")]),
        (claim::OLD_SINCE_QUERY, vec![number(150)]),
        (claim::HISTORY_QUERY, vec![number(1), number(9), number(9)]),
        (audit::AUDIT_QUERY, vec![number(1), number(2)]),
        (audit::PUBLISHER_QUERY, vec![number(1)]),
        (audit::NEXT_QUERY, vec![number(1)]),
        (audit::HELD_QUERY, vec![number(0), number(10)]),
        (settle::UNSETTLED_QUERY, vec![number(0), number(10)]),
        (settle::SILENT_QUERY, vec![number(10)]),
        (settle::SETTLE_QUERY, vec![number(1)]),
        (waits::OTHER_QUERY, vec![number(1), number(1)]),
        (settle::WITHOUT_OUTPUT_QUERY, vec![number(1), number(0)]),
        (
            settle::STANDING_QUERY,
            vec![number(1), number(1), text("another")],
        ),
        (
            attempts::STOPPED_QUERY,
            vec![number(1), number(9), number(0)],
        ),
    ];
    hot.extend(retry::OTHER_BOOT_QUERIES.map(|query| (query, start())));
    hot
}

/// A database with `rows` QUEUED rows, some rows of each other status, and statistics.
fn filled(mut scene: Scene, rows: usize) -> Scene {
    scene.deploy("p", "class Handler: y = 1\n");
    scene.enqueue("p", 0);
    scene.sql(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
         INSERT INTO cf_processing_queue \
         (file_version_id, plugin_name, status, priority, shared_count) \
         SELECT 1, 'p', 'QUEUED', i % 7, i % 3 FROM n"
    ));
    for _ in 0..3 {
        let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
        scene.report("w", attempt, &failure(Some(Cause::Worker), "disk"), 0);
        scene.claim(&["p"], 1);
    }
    scene.sql("ANALYZE");
    let path = scene.path();
    scene.store = Store::open(&path, Open::Existing).unwrap();
    scene
}

#[test]
fn no_hot_statement_reads_the_whole_queue_whatever_the_statistics() {
    let fresh = Scene::new();
    let scenes = [
        ("fresh", fresh),
        ("analysed", filled(Scene::new(), 500)),
        ("legacy analysed", filled(Scene::legacy(), 500)),
    ];
    for (name, scene) in scenes {
        for (sql, values) in hot() {
            let mut statement = scene
                .store
                .connection
                .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
                .unwrap();
            let plan: Vec<String> = statement
                .query_map(rusqlite::params_from_iter(values), |row| row.get(3))
                .unwrap()
                .map(Result::unwrap)
                .collect();
            for line in &plan {
                let is_queue = line.contains("cf_processing_queue") || line.contains(" q ");
                let is_bounded = line.contains("SEARCH") || line.contains("ix_casparian_retry");
                assert!(!is_queue || is_bounded, "{name}: {sql}: {plan:?}");
                assert!(!line.contains("queue_status"), "{name}: {sql}: {plan:?}");
                let sorts = line.contains("TEMP B-TREE") && sql.contains("cf_processing_queue");
                assert!(!sorts, "{name}: {sql}: {plan:?}");
            }
        }
    }
}

#[test]
fn the_cost_of_hot_statements_does_not_grow_with_the_queue() {
    let costs = |rows: usize| -> Vec<i32> {
        let mut scene = filled(Scene::new(), rows);
        let transaction = scene.store.connection.transaction().unwrap();
        let cost = |(sql, values): (&str, Vec<Value>)| {
            let mut statement = transaction.prepare(sql).unwrap();
            // A claim reads only as many rows as it needs.
            let most = match sql.starts_with("SELECT id, priority") {
                true => 8,
                false => usize::MAX,
            };
            {
                let mut rows = statement.query(rusqlite::params_from_iter(values)).unwrap();
                let mut count = 0;
                while count < most && rows.next().unwrap().is_some() {
                    count += 1;
                }
            }
            statement.get_status(StatementStatus::VmStep)
        };
        hot().into_iter().map(cost).collect()
    };
    let (short, long) = (costs(200), costs(20_000));
    for (((sql, _), short), long) in hot().iter().zip(&short).zip(&long) {
        assert!(*long <= short + 10, "{sql}: {short} steps, then {long}");
    }
}

#[test]
fn a_dropped_index_is_created_again() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    for index in ["claim", "running", "retry"] {
        scene.sql(&format!("DROP INDEX ix_casparian_{index}"));
    }
    let path = scene.path();
    scene.store = Store::open(&path, Open::Existing).unwrap();
    assert_eq!(scene.claim(&["p"], 1).jobs.len(), 1);
}
