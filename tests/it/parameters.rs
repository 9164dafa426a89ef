//! Parameters: from the command line and the database to `configure`, and as a part of what a run compares.

use std::path::Path;

use serde_json::{Value, json};

use crate::common::*;
use crate::returns::rows_of;
use crate::run::run_json;

const SOURCE: &str = "class Handler:\n    def configure(self, ctx, config):\n        self.config = config\n    def execute(self, path):\n        import os\n        assert 'CASPARIAN_PARAMETERS' not in os.environ\n        yield {'c': [repr(sorted(self.config.items()))]}\n";

fn config_of(outputs: &Value) -> String {
    let rows = rows_of(&json!({ "outputs": outputs }));
    rows[0]["c"].as_str().unwrap().to_owned()
}

#[test]
fn values_reach_configure_with_their_types_and_decide_what_is_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let (plugin, input) = (dir.path().join("p.py"), dir.path().join("in"));
    std::fs::write(&plugin, SOURCE).unwrap();
    std::fs::write(&input, "").unwrap();
    let out = dir.path().join("out");
    let inputs = [input.to_str().unwrap()];
    let set = "UPDATE cf_plugin_config SET default_parameters = ";
    let steps: &[(&str, &[&str], &str, &str)] = &[
        ("", &[], "DONE", "[]"),
        ("", &["n=5", "s=abc"], "DONE", "[('n', 5), ('s', 'abc')]"),
        ("", &["s=abc", "n=5"], "SKIPPED", "[('n', 5), ('s', 'abc')]"),
        (
            "",
            &["n=\"5\"", "s=abc"],
            "DONE",
            "[('n', '5'), ('s', 'abc')]",
        ),
        (
            "",
            &[
                "b=true",
                "z=null",
                "l=[1, {\"k\": 1.5}]",
                "big=123456789012345678901",
                "e=",
                "é=ü'",
            ],
            "DONE",
            "[('b', True), ('big', 123456789012345678901), ('e', ''), ('l', [1, {'k': 1.5}]), ('z', None), ('é', \"ü'\")]",
        ),
        (
            "'{\"n\": 1, \"d\": 2}'",
            &["n=5"],
            "DONE",
            "[('d', 2), ('n', 5)]",
        ),
        ("", &["n=5"], "SKIPPED", "[('d', 2), ('n', 5)]"),
        (
            "'{\"d\": 2, \"n\": 7}'",
            &["n=5"],
            "SKIPPED",
            "[('d', 2), ('n', 5)]",
        ),
        (
            "'{\"d\": 3, \"n\": 7}'",
            &["n=5"],
            "DONE",
            "[('d', 3), ('n', 5)]",
        ),
        ("", &[], "DONE", "[('d', 3), ('n', 7)]"),
        ("NULL", &[], "DONE", "[]"),
        ("''", &[], "SKIPPED", "[]"),
    ];
    for (number, (defaults, words, status, want)) in steps.iter().enumerate() {
        if !defaults.is_empty() {
            sql(
                &out.join(".casparian/queue.sqlite"),
                &format!("{set}{defaults}"),
            );
        }
        let mut more: Vec<&str> = words.iter().flat_map(|word| ["--param", *word]).collect();
        // Both ways lead to the same.
        more.extend(["--plugin-start", ["warm", "spawn"][number % 2]]);
        let (summary, _) = run_json(plugin.to_str().unwrap(), &inputs, &out, &more);
        let file = &summary["files"][0];
        assert_eq!(file["status"], *status, "{number} {words:?}: {summary}");
        assert_eq!(config_of(&file["outputs"]), *want, "{number} {words:?}");
    }
}

#[test]
fn parameters_that_nothing_takes_fail_the_job() {
    let dir = tempfile::tempdir().unwrap();
    let (plugin, input) = (dir.path().join("p.py"), dir.path().join("in"));
    std::fs::write(
        &plugin,
        "class Handler:\n    def execute(self, path): pass\n",
    )
    .unwrap();
    std::fs::write(&input, "").unwrap();
    let inputs = [input.to_str().unwrap()];
    let more = ["--param", "b=5", "--param", "a=1"];
    let out = dir.path().join("out");
    let (summary, code) = run_json(plugin.to_str().unwrap(), &inputs, &out, &more);
    assert_eq!(code, Some(1));
    let reason = summary["files"][0]["error"].as_str().unwrap();
    let want = "class Handler has no configure(ctx, config), which takes the parameters a, b";
    assert!(reason.contains(want), "{reason}");
}

#[test]
fn words_that_are_no_parameters_are_refused() {
    let large = format!("a={}", "x".repeat(40_000));
    let cases: &[(&[&str], &str)] = &[
        (&["n"], "--param \"n\": expected NAME=VALUE"),
        (&["=1"], "expected NAME=VALUE"),
        (&["n=1", "n=2"], "n is given twice"),
        (&[&large], "at most 32768"),
        (
            &["n=1e400"],
            "--param n: its value is valid JSON that cannot be passed",
        ),
    ];
    let commands: &[&[&str]] = &[
        &["run", "p.py", "in", "--output", "out"],
        &["deploy", "p.py", "--database", "q.sqlite"],
        &["submit", "--plugin", "p", "in", "--database", "q.sqlite"],
    ];
    for (words, want) in cases {
        for command in commands {
            let params = words.iter().flat_map(|word| ["--param", *word]);
            let arguments: Vec<&str> = command.iter().copied().chain(params).collect();
            let output = casparian(&arguments);
            assert_eq!(output.status.code(), Some(2), "{want}: {}", stderr(&output));
            assert!(stderr(&output).contains(want), "{}", stderr(&output));
        }
    }
    let output = casparian(&[
        "deploy",
        "p.py",
        "--connect",
        "tcp://[::1]:1",
        "--param",
        "a=1",
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("--param: a sentinel takes"),
        "{}",
        stderr(&output)
    );
}

fn deploy(database: &Path, plugin: &Path, params: &[&str]) {
    let (database, plugin) = (database.to_str().unwrap(), plugin.to_str().unwrap());
    let mut arguments = vec!["deploy", plugin, "--database", database];
    arguments.extend(params.iter().flat_map(|word| ["--param", *word]));
    casparian_ok(&arguments);
}

fn submit_with(database: &Path, plugin: &str, input: &Path, params: &[&str]) -> i64 {
    let (database, input) = (database.to_str().unwrap(), input.to_str().unwrap());
    let mut arguments = vec!["submit", "--plugin", plugin, input, "--database", database];
    arguments.extend(params.iter().flat_map(|word| ["--param", *word]));
    casparian_ok(&arguments).trim().parse().unwrap()
}

#[test]
fn a_jobs_own_parameters_come_before_the_plugins_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "p", SOURCE);
    let (plugin, input) = (dir.path().join("p.py"), dir.path().join("in"));
    std::fs::write(&input, "").unwrap();
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let _worker = worker(&endpoint, &dir.path().join("out"), &[]);
    let steps: &[(&[&str], &[&str], Value, &str)] = &[
        (&[], &[], Value::Null, "[]"),
        (
            &["a=1", "b=x"],
            &[],
            json!({"a": 1, "b": "x"}),
            "[('a', 1), ('b', 'x')]",
        ),
        (
            &[],
            &["b=2"],
            json!({"a": 1, "b": 2}),
            "[('a', 1), ('b', 2)]",
        ),
        (
            &["c=3"],
            &["b=2"],
            json!({"b": 2, "c": 3}),
            "[('b', 2), ('c', 3)]",
        ),
    ];
    for (defaults, own, all, want) in steps {
        deploy(&database, &plugin, defaults);
        let id = submit_with(&database, "p", &input, own);
        let job = ended(&database, id);
        assert_eq!(job["status"], "COMPLETED", "{job}");
        assert_eq!(job["parameters"], *all);
        assert_eq!(
            config_of(&json!([job["receipt"]["artifacts"][0]["uri"]])),
            *want
        );
        let text = casparian_ok(&[
            "job",
            &id.to_string(),
            "--database",
            database.to_str().unwrap(),
        ]);
        assert_eq!(text.contains("parameters"), !all.is_null(), "{text}");
    }
}

#[test]
fn columns_that_hold_no_parameters_cost_the_jobs_that_they_are_of() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "p", SOURCE);
    let other = dir.path().join("other.py");
    std::fs::write(&other, SOURCE).unwrap();
    deploy(&database, &other, &[]);
    let input = dir.path().join("in");
    std::fs::write(&input, "").unwrap();
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let _worker = worker(&endpoint, &dir.path().join("out"), &[]);
    for (value, want) in [
        ("'[1]'", "is \"[1]\": expected a JSON object"),
        ("'{a: 1}'", "not JSON"),
        ("x'00ff'", "a BLOB of 2 bytes, expected text"),
        (
            "printf('{\"a\": \"%040000d\"}', 1)",
            "expected at most 32768 bytes",
        ),
    ] {
        // Of the plugin: its jobs wait, those of others run.
        let defaults = |value: &str| {
            let set = "UPDATE cf_plugin_config SET default_parameters =";
            sql(&database, &format!("{set} {value} WHERE plugin_name = 'p'"));
        };
        defaults(value);
        let output = casparian(&[
            "submit",
            "--plugin",
            "p",
            input.to_str().unwrap(),
            "--database",
            database.to_str().unwrap(),
        ]);
        assert_eq!(output.status.code(), Some(1));
        let reason = stderr(&output);
        let column = "cf_plugin_config.default_parameters of row p";
        assert!(reason.contains(column) && reason.contains(want), "{reason}");
        let id = submit_with(&database, "other", &input, &[]);
        assert_eq!(ended(&database, id)["status"], "COMPLETED");
        defaults("'{}'");

        // Of a job: it fails.
        let id: i64 = sql(&database, &format!(
            "INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, priority, parameters) SELECT max(id), 'p', 'QUEUED', 0, {value} FROM cf_file_version; SELECT max(id) FROM cf_processing_queue"
        )).parse().unwrap();
        let job = ended(&database, id);
        assert_eq!(job["status"], "FAILED", "{job}");
        let reason = job["error"].as_str().unwrap();
        let column = format!("cf_processing_queue.parameters of row {id}");
        assert!(
            reason.contains(&column) && reason.contains(want),
            "{reason}"
        );
    }
}
