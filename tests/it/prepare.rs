//! What running workers are told of deployments, and what is shown of it.

use serde_json::Value;

use crate::common::*;

/// A plugin with an environment of its own.
const PLUGIN: &str = "# /// script\n# dependencies = [\"six==1.16.0\"]\n# ///\n\
     import pyarrow as pa\nimport six\n\nclass Handler:\n    def execute(self, path):\n        \
     yield pa.table({'x': [1]})\n";

fn workers(database: &std::path::Path) -> Vec<Value> {
    let database = database.to_str().unwrap();
    let text = casparian_ok(&["workers", "--json", "--database", database]);
    serde_json::from_str(&text).unwrap()
}

#[test]
fn an_environment_is_prepared_before_there_are_jobs_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "p", PLUGIN);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let _worker = worker(&endpoint, &out, &["--worker-id", "w", "--slots", "1"]);
    let ready = until("the environment is ready", || {
        let rows = workers(&database);
        let ready = rows.first()?.get("ready")?.as_array()?.first()?.clone();
        Some(ready)
    });
    let interpreter = ready["interpreter"].as_str().unwrap();
    assert!(std::path::Path::new(interpreter).exists(), "{ready}");
    let hash = ready["environment"].as_str().unwrap();
    assert_eq!(
        sql(&database, "SELECT env_hash FROM cf_plugin_manifest"),
        hash
    );
    let input = dir.path().join("in");
    std::fs::write(&input, "x").unwrap();
    let id = submit(&database, "p", &[input])[0];
    let job = ended(&database, id);
    assert_eq!(job["status"], "COMPLETED", "{job}");
    assert_eq!(job["environment"]["hash"], hash);
    assert_eq!(job["environment"]["ready_on"], 1);
    let text = casparian_ok(&[
        "job",
        &id.to_string(),
        "--database",
        database.to_str().unwrap(),
    ]);
    let line = format!("{}, ready on 1 connected worker", &hash[..12]);
    assert!(text.contains(&line), "{text}");
}

#[test]
fn a_change_of_sinks_holds_for_the_next_job_of_a_running_worker() {
    let dir = tempfile::tempdir().unwrap();
    let source = "import pyarrow as pa\n\nclass Handler:\n    def execute(self, path):\n        \
         yield pa.table({'x': [1]})\n";
    let database = database_with(dir.path(), "p", source);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let _worker = worker(&endpoint, &out, &["--slots", "1"]);
    let run = |name: &str| {
        let input = dir.path().join(name);
        std::fs::write(&input, name).unwrap();
        let id = submit(&database, "p", &[input])[0];
        let job = ended(&database, id);
        assert_eq!(job["status"], "COMPLETED", "{job}");
        id
    };
    let first = run("a");
    sql(
        &database,
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
         VALUES ('p', 'output', 'parquet://elsewhere/o.parquet', 'append')",
    );
    let second = run("b");
    let path = format!("elsewhere/o_{second}.parquet");
    assert!(out.join(path).exists());
    assert!(out.join(format!("p_output_{first}.parquet")).exists());
}
