//! Plugin processes that do what they must not: the job fails with a reason, and the slot is free again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::*;

/// The programs in `tests/it/bad_plugins/`: name, job status, words of the error.
const PLUGINS: &[(&str, &str, &str)] = &[
    ("raises", "FAILED", "ValueError: bad row 17"),
    ("exits", "FAILED", "exit code 3"),
    ("sys_exit", "FAILED", "sys.exit(0)"),
    ("kills_itself", "FAILED", "SIGKILL"),
    ("crashes", "FAILED", "SIGSEGV"),
    ("no_handler", "FAILED", "no class Handler"),
    ("bad_import", "FAILED", "ModuleNotFoundError"),
    ("wrong_type", "FAILED", "must be a pandas DataFrame"),
    ("changes_schema", "FAILED", "schema of topic output changed"),
    ("own_job_id", "FAILED", "rename yours"),
    ("garbage", "FAILED", "no Arrow stream"),
    ("huge_frame", "FAILED", "frame of"),
    ("closes_bridge", "FAILED", "without an end of output"),
    ("hangs", "FAILED", "limit of 3 s"),
    ("ignores_sigterm", "FAILED", "limit of 3 s"),
    ("no_output", "COMPLETED", ""),
    ("empty_table", "COMPLETED", ""),
    ("prints_much", "COMPLETED", ""),
    ("leaves_grandchild", "COMPLETED", ""),
    ("consume", "COMPLETED", ""),
    ("falls_back", "COMPLETED", ""),
    ("scrubbed", "COMPLETED", ""),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/bad_plugins")
}

#[test]
fn every_bad_plugin_has_a_row() {
    let files = std::fs::read_dir(folder()).unwrap();
    let files: BTreeSet<String> = files
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let rows = PLUGINS.iter().map(|(name, ..)| format!("{name}.py"));
    assert_eq!(files, rows.collect());
}

fn run_all(start: &str) {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "first", "class Handler: pass\n");
    let input = dir.path().join("in");
    std::fs::write(&input, "x").unwrap();
    let text = database.to_str().unwrap();
    let mut ids = Vec::new();
    for (name, ..) in PLUGINS {
        let file = folder().join(format!("{name}.py"));
        casparian_ok(&["deploy", file.to_str().unwrap(), "-d", text]);
        ids.push(submit(&database, name, std::slice::from_ref(&input))[0]);
    }
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let out = dir.path().join("out");
    let mut command = program("casparian-worker");
    command.args([
        "--connect",
        &endpoint,
        "--slots",
        "1",
        "--job-timeout",
        "3",
        "--output",
    ]);
    command
        .arg(&out)
        .args(["--plugin-start", start])
        .env("SECRET_TOKEN", "x");
    let _worker = Background::start(&mut command);
    for (id, (name, status, words)) in ids.into_iter().zip(PLUGINS) {
        let job = ended(&database, id);
        assert_eq!(job["status"], *status, "{start} {name}: {job}");
        let error = job["error"].as_str().unwrap_or("");
        assert!(error.contains(words), "{start} {name}: {job}");
        let artifacts = job["receipt"]["artifacts"].as_array().unwrap();
        let expected = usize::from(*status == "COMPLETED" && *name != "no_output");
        assert_eq!(artifacts.len(), expected, "{start} {name}: {job}");
        if *name == "prints_much" {
            assert!(
                job["log"].as_str().unwrap().contains("line 199999"),
                "{job}"
            );
        }
    }
    no_process("98765");
}

fn no_process(argument: &str) {
    until("the grandchild is gone", || {
        let alive = std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
                line.split(|byte| *byte == 0)
                    .any(|word| word == argument.as_bytes())
            })
        });
        (!alive).then_some(())
    });
}

#[test]
fn bad_plugins_fail_with_a_reason_and_free_the_slot_warm() {
    run_all("warm");
}

#[test]
fn bad_plugins_fail_with_a_reason_and_free_the_slot_spawned() {
    run_all("spawn");
}

#[test]
fn an_input_that_cannot_be_read_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = dir.path().join("p.py");
    std::fs::write(&plugin, "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [open(path).read()]})\n").unwrap();
    let folder = dir.path().join("in");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("good"), "x").unwrap();
    // Not UTF-8: the plugin cannot read it. (Permissions do not stop root.)
    std::fs::write(folder.join("bad"), [0xFF, 0xFE, 0xFF]).unwrap();
    let output = casparian(&[
        "run",
        plugin.to_str().unwrap(),
        folder.to_str().unwrap(),
        "--json",
        "--output",
        dir.path().join("out").to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let summary: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(summary["totals"]["done"], 1);
    assert!(
        summary.to_string().contains("UnicodeDecodeError"),
        "{summary}"
    );
}
