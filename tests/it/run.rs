//! `casparian run`.

use std::path::Path;

use serde_json::Value;

use casparian::plugin::environment;

use crate::common::*;

pub(crate) fn run_json(
    plugin: &str,
    inputs: &[&str],
    out: &Path,
    more: &[&str],
) -> (Value, Option<i32>) {
    let mut command = program("casparian");
    command
        .arg("run")
        .arg(plugin)
        .args(inputs)
        .arg("--output")
        .arg(out)
        .arg("--json")
        .args(more);
    let output = output(command.current_dir(root()));
    let value = serde_json::from_str(&stdout(&output))
        .unwrap_or_else(|error| panic!("{error}: {}{}", stdout(&output), stderr(&output)));
    (value, output.status.code())
}

#[test]
fn the_example_gives_parquet_that_every_engine_reads_with_the_sums_of_the_input() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let (summary, code) = run_json(
        "examples/plugins/flights.py",
        &["examples/data/flights"],
        &out,
        &[],
    );
    assert_eq!(code, Some(0), "{summary}");
    let expected: Value = serde_json::from_str(
        &std::fs::read_to_string(root().join("examples/data/expected.json")).unwrap(),
    )
    .unwrap();
    let total = &expected["total"];
    assert_eq!(summary["totals"]["rows"], total["rows"]);
    assert_eq!(summary["totals"]["done"], 12);
    let engines = read_parquet(&out);
    assert_eq!(engines.len(), 3);
    for engine in engines {
        assert_eq!(engine["rows"], total["rows"], "{engine}");
        for (column, sum) in total["sums"].as_object().unwrap() {
            assert_eq!(
                &engine["sums"][column], sum,
                "{} {column}",
                engine["engine"]
            );
        }
        for (column, nulls) in total["nulls"].as_object().unwrap() {
            assert_eq!(
                &engine["nulls"][column], nulls,
                "{} {column}",
                engine["engine"]
            );
        }
        let ids = engine["sums"]["_job_id"].as_u64().unwrap();
        assert!(ids > 0 && engine["sums"]["_file_version_id"].as_u64().unwrap() > 0);
    }
}

#[test]
fn topics_go_to_files_of_their_own_and_pandas_works() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("topics");
    let plugin = "examples/plugins/flights_topics.py";
    let (summary, code) = run_json(plugin, &["examples/data/flights"], &out, &[]);
    assert_eq!(code, Some(0), "{summary}");
    // The folders are those of the MANIFEST.
    for folder in ["departed", "cancelled"] {
        assert_eq!(visible_files(&out.join(folder)).len(), 12, "{folder}");
    }
    assert_eq!(visible_files(&out).len(), 24);
    assert_eq!(summary["totals"]["rows"], 10_530);
    let out = dir.path().join("pandas");
    let plugin = "examples/plugins/flights_pandas.py";
    let (summary, code) = run_json(plugin, &["examples/data/flights"], &out, &["--slots", "1"]);
    assert_eq!(code, Some(0), "{summary}");
    assert!(
        read_parquet(&out)
            .iter()
            .all(|engine| engine["rows"] == summary["totals"]["rows"])
    );
}

const COUNT_LINES: &str = r#"
import pyarrow as pa
class Handler:
    def execute(self, path):
        lines = open(path).read().splitlines()
        if "fail" in lines:
            raise ValueError("told to fail")
        yield pa.table({"line": lines})
"#;

pub(crate) struct Folder {
    pub(crate) dir: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let folder = Folder {
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(folder.path("in")).unwrap();
        folder.write("count.py", COUNT_LINES);
        for (name, text) in files {
            folder.write(&format!("in/{name}"), text);
        }
        folder
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn run(&self, more: &[&str]) -> (Value, Option<i32>) {
        let out = self.path("out");
        run_json(
            &self.path("count.py"),
            &[&self.path("in")],
            Path::new(&out),
            more,
        )
    }

    /// `casparian fsck` finds nothing.
    pub(crate) fn check(&self) {
        let (queue, out) = (self.path("out/.casparian/queue.sqlite"), self.path("out"));
        let output = casparian(&["fsck", "--database", &queue, "--output", &out]);
        let text = stdout(&output) + &stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{text}");
    }
}

pub(crate) fn totals(summary: &Value) -> (u64, u64, u64, u64) {
    let number = |name: &str| summary["totals"][name].as_u64().unwrap();
    (
        number("done"),
        number("skipped"),
        number("failed"),
        number("rows"),
    )
}

#[test]
fn a_second_run_does_only_what_has_changed_or_failed() {
    let folder = Folder::new(&[("a", "1\n2\n"), ("b", "3\n"), ("c", "fail\n")]);
    let (summary, code) = folder.run(&[]);
    assert_eq!(
        (totals(&summary), code),
        ((2, 0, 1, 3), Some(1)),
        "{summary}"
    );
    let failed = summary["files"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["status"] == "FAILED");
    assert!(
        failed.unwrap()["error"]
            .as_str()
            .unwrap()
            .contains("ValueError: told to fail")
    );
    // The failed one is tried again, the others are not.
    let (summary, _) = folder.run(&[]);
    assert_eq!(totals(&summary), (0, 2, 1, 3), "{summary}");
    folder.write("in/c", "4\n5\n");
    folder.write("in/b", "6\n7\n8\n");
    let (summary, code) = folder.run(&[]);
    assert_eq!(
        (totals(&summary), code),
        ((2, 1, 0, 7), Some(0)),
        "{summary}"
    );
    // A file that is run again replaces its own output.
    let out = folder.path("out");
    assert_eq!(visible_files(Path::new(&out)).len(), 3);
    assert!(
        read_parquet(Path::new(&out))
            .iter()
            .all(|engine| engine["rows"] == 7)
    );
    // An output that was removed is made again.
    std::fs::remove_file(&visible_files(Path::new(&out))[0]).unwrap();
    assert_eq!(totals(&folder.run(&[]).0), (1, 2, 0, 7));
    assert_eq!(totals(&folder.run(&["--force"]).0), (3, 0, 0, 7));
    // Another plugin of the same name is another plugin.
    folder.write("count.py", &format!("{COUNT_LINES}# changed\n"));
    assert_eq!(totals(&folder.run(&[]).0), (3, 0, 0, 7));
    // A file that fails now keeps its output of before, unless it is to go.
    folder.write("in/a", "fail\n");
    assert_eq!(totals(&folder.run(&[]).0), (0, 2, 1, 5));
    assert_eq!(visible_files(Path::new(&out)).len(), 3);
    let remove = folder.run(&["--failed-output", "remove"]);
    assert_eq!(totals(&remove.0), (0, 2, 1, 5));
    assert_eq!(visible_files(Path::new(&out)).len(), 2);
}

#[test]
fn patterns_globs_and_single_files_choose_the_input() {
    let folder = Folder::new(&[("a.csv", "1\n"), ("b.csv", "2\n"), ("c.txt", "3\n")]);
    assert_eq!(totals(&folder.run(&["--pattern", "*.csv"]).0), (2, 0, 0, 2));
    let out = folder.path("out");
    let plugin = folder.path("count.py");
    let glob = folder.path("in/*.txt");
    let (summary, _) = run_json(
        &plugin,
        &[&glob, &folder.path("in/a.csv")],
        Path::new(&out),
        &[],
    );
    assert_eq!(totals(&summary), (1, 1, 0, 2), "{summary}");
}

#[test]
fn plain_output_has_a_line_a_file_and_a_table() {
    let folder = Folder::new(&[("a", "1\n2\n"), ("b", "fail\n")]);
    let output = casparian(&[
        "run",
        &folder.path("count.py"),
        &folder.path("in"),
        "--output",
        &folder.path("out"),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let (out, err) = (stdout(&output), stderr(&output));
    assert!(err.contains("/2] a: 2 rows"), "{err}");
    assert!(
        out.contains("FAILED") && out.contains("ValueError: told to fail"),
        "{out}"
    );
    assert!(out.contains("FILES  DONE  SKIPPED  FAILED"), "{out}");
}

#[test]
fn mistakes_are_one_clear_line_and_an_exit_code() {
    let folder = Folder::new(&[("a", "1\n")]);
    folder.write(
        "bad_syntax.py",
        "class Handler:\n    def execute(self, path)\n        pass\n",
    );
    folder.write("bad_block.py", "# /// script\n# dependencies = 3\n# ///\n");
    folder.write("no_such_package.py", "# /// script\n# dependencies = [\"casparian-no-such-package==1\"]\n# ///\nclass Handler: pass\n");
    folder.write("plain_file", "x");
    folder.write("no_database", &"not a database ".repeat(100));
    let (plugin, input, out) = (
        folder.path("count.py"),
        folder.path("in"),
        folder.path("out"),
    );
    let at = |name: &str| folder.path(name);
    let cases: Vec<(Vec<String>, i32, &str)> = vec![
        (vec![], 2, "no command"),
        (vec!["nope".into()], 2, "unknown command"),
        (vec!["run".into()], 2, "expected a plugin"),
        (vec!["run".into(), plugin.clone()], 2, "at least one input"),
        (
            vec!["run".into(), plugin.clone(), input.clone()],
            2,
            "--output is missing",
        ),
        (
            run(&plugin, &input, &out, &["--slots", "0"]),
            2,
            "--slots 0",
        ),
        (
            run(&plugin, &input, &out, &["--slots", "x"]),
            2,
            "--slots x",
        ),
        (
            run(&plugin, &input, &out, &["--nope"]),
            2,
            "unknown option --nope",
        ),
        (
            run(&plugin, &input, &out, &["--plugin-start", "x"]),
            2,
            "warm or spawn",
        ),
        (
            // Its name in earlier releases.
            run(&plugin, &input, &out, &["--guest-start", "x"]),
            2,
            "warm or spawn",
        ),
        (run(&at("missing.py"), &input, &out, &[]), 1, "No such file"),
        (
            run(&at("bad_syntax.py"), &input, &out, &[]),
            1,
            "line 2: expected ':'",
        ),
        (run(&at("bad_block.py"), &input, &out, &[]), 1, "PEP 723"),
        (
            run(&at("no_such_package.py"), &input, &out, &[]),
            1,
            "casparian-no-such-package",
        ),
        (
            run(&plugin, &at("in/missing"), &out, &[]),
            1,
            "No such file",
        ),
        (
            run(&plugin, &input, &out, &["--pattern", "*.x"]),
            1,
            "no file in it matches *.x",
        ),
        (
            run(&plugin, &input, &at("plain_file"), &[]),
            1,
            "plain_file: it is not a folder",
        ),
        (
            run(&plugin, &input, &at("plain_file/out"), &[]),
            1,
            "plain_file: it is not a folder",
        ),
        (
            vec!["worker".into(), "--output".into(), at("plain_file")],
            1,
            "plain_file: it is not a folder",
        ),
        (
            run(&plugin, &input, "/proc/nowhere", &[]),
            1,
            "/proc/nowhere",
        ),
        (
            run(&plugin, &input, &out, &["--requirements", &at("none")]),
            1,
            "none: No such file",
        ),
        (vec!["jobs".into()], 2, "--database is missing"),
        (
            vec!["jobs".into(), "-d".into(), at("missing.db")],
            1,
            "no such file",
        ),
        (
            vec!["jobs".into(), "-d".into(), at("no_database")],
            1,
            "no SQLite database",
        ),
        (
            vec!["jobs".into(), "-d".into(), "postgres://x".into()],
            2,
            "sqlite",
        ),
        (vec!["jobs".into(), "-d".into(), at("in")], 1, "directory"),
        (
            vec!["init".into(), at("no_database")],
            1,
            "no SQLite database",
        ),
        (
            vec!["init".into(), at("none/x.db")],
            1,
            "cannot open or make",
        ),
        (
            vec!["sentinel".into(), "--bind".into(), "udp://x".into()],
            2,
            "transport",
        ),
        (
            vec!["sentinel".into(), "--bind".into(), "tcp://*:5555".into()],
            1,
            "--insecure",
        ),
        (
            vec!["sentinel".into(), "-d".into(), at("no_database")],
            1,
            "no SQLite database",
        ),
        (
            vec!["worker".into(), "extra".into()],
            2,
            "unexpected argument",
        ),
    ];
    for (arguments, code, want) in cases {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = casparian(&words);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        assert!(text.contains(want), "{words:?}: {text}");
        // A failed tool's own last lines stand behind the line that says what failed.
        let said = text
            .lines()
            .filter(|line| line.starts_with("casparian: "))
            .count();
        assert_eq!(said, 1, "{words:?}: {text}");
        assert!(
            !text.contains("panicked") && !text.contains("RUST_BACKTRACE"),
            "{text}"
        );
    }
    let bound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", bound.local_addr().unwrap());
    let output = casparian(&["sentinel", "--bind", &endpoint, "-d", &at("q.db")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("cannot bind tcp://127.0.0.1"),
        "{}",
        stderr(&output)
    );
}

fn run(plugin: &str, input: &str, out: &str, more: &[&str]) -> Vec<String> {
    let base = ["run", plugin, input, "--output", out];
    base.iter()
        .chain(more)
        .map(|word| (*word).to_owned())
        .collect()
}

#[test]
fn help_and_version_are_on_stdout() {
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["init", "--help"],
        &["deploy", "-h"],
        &["submit", "--help"],
        &["jobs", "--help"],
        &["job", "--help"],
        &["sentinel", "--help"],
        &["worker", "--help"],
    ] {
        let text = casparian_ok(arguments);
        assert!(text.contains("Usage: casparian"), "{arguments:?}: {text}");
    }
    assert!(casparian_ok(&["--version"]).starts_with("casparian "));
}

#[test]
fn an_interrupt_stops_cleanly_and_the_next_run_goes_on() {
    let files: Vec<(String, &str)> = (0..6).map(|n| (format!("f{n}"), "1\n")).collect();
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(name, text)| (name.as_str(), *text))
        .collect();
    let folder = Folder::new(&files);
    let gate = folder.path("gate");
    folder.write(
        "slow.py",
        &format!(
            "import os, time\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        while not path.endswith('f0') and not os.path.exists({gate:?}):\n            time.sleep(0.01)\n        yield pa.table({{'x': [1]}})\n"
        ),
    );
    let (plugin, input, out) = (
        folder.path("slow.py"),
        folder.path("in"),
        folder.path("out"),
    );
    let arguments = ["run", &plugin, &input, "--output", &out, "--slots", "2"];
    let mut first = Background::start(program("casparian").args(arguments));
    first.line_with("f0: 1 rows");
    let locked = casparian(&arguments);
    assert!(
        stderr(&locked).contains("another casparian run"),
        "{}",
        stderr(&locked)
    );
    first.signal("-INT");
    assert_eq!(first.wait(), Some(130), "{:#?}", first.seen);
    assert_eq!(visible_files(Path::new(&out)).len(), 1);
    let database = format!("{out}/.casparian/queue.sqlite");
    let jobs = casparian_ok(&["jobs", "--status", "RUNNING", "--json", "-d", &database]);
    assert_eq!(jobs.trim(), "[]");
    std::fs::write(&gate, "").unwrap();
    let (summary, code) = run_json(&plugin, &[&input], Path::new(&out), &[]);
    assert_eq!(
        (totals(&summary), code),
        ((5, 1, 0, 6), Some(0)),
        "{summary}"
    );
}

/// The rows as a run leaves them that is killed after it has published and before the receipt has
/// arrived. Of the second job a part of the output is missing.
#[test]
fn what_a_killed_run_has_published_is_settled_by_the_next() {
    let folder = Folder::new(&[("a", "1\n"), ("b", "2\n"), ("c", "3\n")]);
    folder.write(
        "two.py",
        "import pyarrow as pa\nclass Handler:\n    def configure(self, ctx, config):\n        self.ctx = ctx\n        self.topics = [ctx.register_topic(name) for name in ('x', 'y')]\n    def execute(self, path):\n        for topic in self.topics:\n            self.ctx.publish(topic, pa.table({'v': [1]}))\n",
    );
    let (plugin, out) = (folder.path("two.py"), folder.path("out"));
    let (a, b, c) = (
        folder.path("in/a"),
        folder.path("in/b"),
        folder.path("in/c"),
    );
    let (summary, code) = run_json(&plugin, &[&a, &b], Path::new(&out), &[]);
    assert_eq!(code, Some(0), "{summary}");
    let files = visible_files(Path::new(&out));
    assert_eq!(files.len(), 4, "{files:?}");
    let store = rusqlite::Connection::open(format!("{out}/.casparian/queue.sqlite")).unwrap();
    store
        .execute_batch(
            "DELETE FROM cf_job_attempt; UPDATE cf_processing_queue SET status = 'RUNNING', \
             unsettled = NULL, receipt = NULL, published = NULL, end_time = NULL",
        )
        .unwrap();
    let of_second = |file: &&std::path::PathBuf| file.to_string_lossy().contains("_2.");
    std::fs::remove_file(files.iter().find(of_second).unwrap()).unwrap();
    std::fs::remove_file(&a).unwrap();
    let (summary, code) = run_json(&plugin, &[&c], Path::new(&out), &[]);
    assert_eq!(
        (totals(&summary), code),
        ((1, 0, 0, 2), Some(0)),
        "{summary}"
    );
    let row = |id: i64| -> (String, Option<String>, i64) {
        let query = "SELECT status, receipt, unsettled FROM cf_processing_queue WHERE id = ?1";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        store.query_row(query, [id], row).unwrap()
    };
    let (status, receipt, unsettled) = row(1);
    assert_eq!((status.as_str(), unsettled), ("COMPLETED", 0));
    let receipt: Value = serde_json::from_str(&receipt.unwrap()).unwrap();
    assert_eq!(receipt["artifacts"].as_array().unwrap().len(), 2);
    let (status, receipt, unsettled) = row(2);
    assert_eq!((status.as_str(), receipt, unsettled), ("FAILED", None, 0));
    let left = visible_files(Path::new(&out));
    assert_eq!(left.len(), 4, "{left:?}");
    assert_eq!(left.iter().filter(of_second).count(), 0, "{left:?}");
    // What is completed is not done again.
    std::fs::write(&a, "1\n").unwrap();
    let (summary, _) = run_json(&plugin, &[&a, &b], Path::new(&out), &[]);
    let (done, skipped, failed, _) = totals(&summary);
    assert_eq!((done, skipped, failed), (1, 1, 0), "{summary}");
}

#[test]
fn what_uv_logs_is_not_the_reason() {
    let folder = Folder::new(&[("a", "1\n")]);
    folder.write("wants.py", "# /// script\n# dependencies = [\"casparian-no-such-package==1\"]\n# ///\nclass Handler: pass\n");
    let words = run(
        &folder.path("wants.py"),
        &folder.path("in"),
        &folder.path("out"),
        &[],
    );
    let mut command = program("casparian");
    command.args(words).env("RUST_LOG", "uv=debug,info");
    let output = output(&mut command);
    let text = stderr(&output);
    let line = text.lines().find(|line| line.starts_with("casparian: "));
    let line = line.unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("No solution found"), "{text}");
}

/// A home in which the environment of plugins without metadata has this interpreter.
fn home_with_python(folder: &Folder, text: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let hash = environment::hash(&environment::requirements_lockfile(&[], None, &[]));
    let bin = folder.path(&format!("home/.casparian_flow/venvs/{hash}/bin"));
    std::fs::create_dir_all(&bin).unwrap();
    let packages = format!("{bin}/../lib/python3.11/site-packages/pyarrow");
    std::fs::create_dir_all(&packages).unwrap();
    std::fs::write(format!("{packages}/__init__.py"), "").unwrap();
    std::fs::write(format!("{bin}/../pyvenv.cfg"), "version_info = 3.11.7\n").unwrap();
    let python = folder.path("python");
    std::fs::write(&python, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let link = format!("{bin}/python");
    if !Path::new(&link).exists() {
        std::os::unix::fs::symlink(&python, &link).unwrap();
    }
    python
}

#[test]
fn an_interpreter_that_does_not_work_is_named_and_can_be_interrupted() {
    let folder = Folder::new(&[("a", "1\n")]);
    let (plugin, input, out) = (
        folder.path("count.py"),
        folder.path("in"),
        folder.path("out"),
    );
    let words = run(&plugin, &input, &out, &[]);
    let command = || {
        let mut command = program("casparian");
        command.args(&words).env("HOME", folder.path("home"));
        command
    };
    let python = home_with_python(&folder, "echo cannot find libpython; exit 127");
    let failed = output(&mut command());
    let text = stderr(&failed);
    assert_eq!(failed.status.code(), Some(1), "{text}");
    assert!(
        text.contains(&format!("{python} failed: cannot find libpython")),
        "{text}"
    );
    for signal in ["-INT", "-TERM"] {
        let mark = folder.path(signal);
        home_with_python(
            &folder,
            &format!("echo $$ > {mark}.new; mv {mark}.new {mark}; sleep 1000; echo"),
        );
        let mut run = Background::start(&mut command());
        let pid = until("the interpreter runs", || {
            std::fs::read_to_string(&mark).ok()
        });
        run.signal(signal);
        assert_eq!(run.wait(), Some(130), "{:#?}", run.seen);
        let proc = format!("/proc/{}", pid.trim());
        assert!(!Path::new(&proc).exists(), "the interpreter is left");
    }
}

#[test]
fn fifos_given_for_files_are_refused_at_once() {
    let folder = Folder::new(&[("a", "1\n")]);
    let fifo = folder.path("fifo.lock");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let at = |name: &str| folder.path(name);
    casparian_ok(&["init", &at("q.db")]);
    let mut runs = vec![run(&at("count.py"), &at("in"), &at("out"), &["-r", &fifo])];
    runs.push(run(&fifo, &at("in"), &at("out"), &[]));
    runs.push(
        ["deploy", &at("count.py"), "-l", &fifo, "-d", &at("q.db")]
            .map(str::to_owned)
            .to_vec(),
    );
    runs.push(
        ["deploy", &fifo, "-d", &at("q.db")]
            .map(str::to_owned)
            .to_vec(),
    );
    for words in runs {
        let mut command = Background::start(program("casparian").args(&words));
        assert_eq!(command.wait(), Some(1), "{words:?}");
        let text = command.seen.join("\n");
        assert!(
            text.contains("it is not a regular file"),
            "{words:?}: {text}"
        );
    }
}

#[test]
fn links_that_lead_nowhere_cost_only_themselves() {
    let folder = Folder::new(&[("a", "1\n"), ("b", "2\n")]);
    let looping = folder.path("in/loop");
    std::os::unix::fs::symlink("loop", &looping).unwrap();
    let (summary, code) = folder.run(&[]);
    assert_eq!(
        (totals(&summary), code),
        ((2, 0, 1, 2), Some(1)),
        "{summary}"
    );
    let text = summary.to_string();
    assert!(
        text.contains(&format!("input {looping}: Too many levels")),
        "{text}"
    );
    assert_eq!(folder.run(&[]).1, Some(1));
    let database = database_with(
        folder.dir.path(),
        "count",
        &std::fs::read_to_string(folder.path("count.py")).unwrap(),
    );
    let database = database.to_str().unwrap();
    let submitted = casparian(&["submit", "-p", "count", &folder.path("in"), "-d", database]);
    assert_eq!(submitted.status.code(), Some(1));
    assert_eq!(stdout(&submitted).lines().count(), 2);
    let text = stderr(&submitted);
    assert!(
        text.contains(&looping) && text.contains("1 of 3 files"),
        "{text}"
    );
}

#[test]
fn a_lock_file_that_is_a_fifo_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let private = dir.path().join("out/.casparian");
    std::fs::create_dir_all(&private).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(private.join("run.lock"))
        .status();
    assert!(made.unwrap().success());
    let plugin = dir.path().join("p.py");
    std::fs::write(&plugin, "class Handler: pass\n").unwrap();
    let mut command = program("casparian");
    command.arg("run").arg(&plugin).arg(&plugin).arg("--output");
    let output = output(command.arg(dir.path().join("out")));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("run.lock"), "{}", stderr(&output));
}

/// The input changes while the job runs: in place, by another file, or once too often.
#[test]
fn a_file_that_changes_while_its_job_runs_is_run_again() {
    // What the plugin does to its input once it has read it, and how often.
    for (change, times, code) in [
        ("open(path, 'a').write('9\\n')", 1, 0),
        (
            "open(path + '.new', 'w').write('7\\n9\\n'); os.rename(path + '.new', path)",
            2,
            0,
        ),
        (
            "s = os.stat(path); open(path, 'r+').write('7'); os.utime(path, ns=(s.st_atime_ns, s.st_mtime_ns))",
            1,
            0,
        ),
        ("open(path, 'a').write('9\\n')", 99, 1),
        // A plugin that moves its input away has read it whole.
        ("os.rename(path, path + '.done')", 1, 0),
    ] {
        let folder = Folder::new(&[("a", "1\n"), ("b", "1\n2\n")]);
        let plugin = format!(
            "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        rows = open(path).read().split()\n        runs = path.replace('/in/', '/runs-')\n        with open(runs, 'a') as file: file.write('.')\n        if path.endswith('a') and os.path.getsize(runs) <= {times}:\n            {change}\n        yield pa.table({{'x': rows}})\n"
        );
        std::fs::write(folder.path("count.py"), plugin).unwrap();
        let (summary, exit) = folder.run(&[]);
        assert_eq!(exit, Some(code), "{change} {times}: {summary}");
        let (done, _, failed, rows) = totals(&summary);
        assert_eq!((done + failed, failed), (2, u64::try_from(code).unwrap()));
        if code == 1 {
            let text = summary.to_string();
            // The last attempt may find it changed before it starts.
            assert!(text.contains("it changed each time"), "{summary}");
            continue;
        }
        let left = std::fs::read_to_string(folder.path("in/a"));
        let now = left.map_or(1, |text| text.lines().count() as u64);
        assert_eq!(rows, 2 + now, "{change} {times}: {summary}");
        if !change.contains(".done") {
            let (summary, _) = folder.run(&[]);
            let skipped = totals(&summary).1;
            assert_eq!(skipped, 2, "{change}: what was hashed was read: {summary}");
        }
    }
}

/// The input changes after it was hashed and before its job begins.
#[test]
fn a_file_that_changes_while_its_job_waits_is_run_again() {
    let folder = Folder::new(&[("a", "1\n"), ("b", "1\n")]);
    let plugin = "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        rows = open(path).read().split()\n        if path.endswith('a'):\n            with open(path[:-1] + 'b', 'w') as file: file.write('1\\n2\\n3\\n')\n        yield pa.table({'x': rows})\n";
    std::fs::write(folder.path("count.py"), plugin).unwrap();
    let (summary, exit) = folder.run(&["--slots", "1"]);
    assert_eq!(
        (totals(&summary), exit),
        ((2, 0, 0, 4), Some(0)),
        "{summary}"
    );
    let (summary, _) = folder.run(&["--slots", "1"]);
    assert_eq!(
        totals(&summary).1,
        2,
        "what was hashed is what was read: {summary}"
    );
}

/// The database of the output folder is put back to an earlier state: what was published since
/// is not known to it.
#[test]
fn a_restored_database_costs_no_output() {
    let folder = Folder::new(&[("a", "1\n")]);
    let private = |name: &str| folder.path(&format!("out/.casparian/{name}"));
    assert_eq!(folder.run(&[]).1, Some(0));
    let database = private("queue.sqlite");
    std::fs::copy(&database, folder.path("saved")).unwrap();
    folder.write("in/a", "1\n2\n");
    assert_eq!(folder.run(&[]).1, Some(0));
    for name in ["queue.sqlite-wal", "queue.sqlite-shm"] {
        drop(std::fs::remove_file(private(name)));
    }
    std::fs::copy(folder.path("saved"), &database).unwrap();
    let files = visible_files(Path::new(&folder.path("out")));
    assert_eq!(files.len(), 1);
    folder.write("in/a", "1\n2\n3\n");
    for _ in 0..2 {
        let (summary, code) = folder.run(&[]);
        assert_eq!(code, Some(1), "{summary}");
        let text = summary.to_string();
        assert!(
            text.contains("--new-identity") && text.contains("--share-output"),
            "{text}"
        );
        assert_eq!(visible_files(Path::new(&folder.path("out"))), files);
    }
    casparian_ok(&["init", "--new-identity", &database]);
    let (summary, code) = folder.run(&["--share-output"]);
    assert_eq!((totals(&summary).3, code), (3, Some(0)), "{summary}");
}

#[test]
fn an_output_folder_whose_path_is_not_utf_8_is_refused_at_the_start() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join(std::ffi::OsStr::from_bytes(b"odd\xff"));
    let plugin = root().join("examples/plugins/flights.py");
    let mut run = program("casparian");
    run.arg("run").arg(&plugin).arg(dir.path());
    let mut worker = program("casparian-worker");
    worker.args(["--connect", "tcp://127.0.0.1:9"]);
    for command in [&mut run, &mut worker] {
        let ended = output(command.arg("--output").arg(&out));
        assert_eq!(ended.status.code(), Some(1), "{command:?}");
        let text = stderr(&ended);
        assert!(text.contains("must be UTF-8"), "{command:?}: {text}");
        assert!(!out.exists());
    }
}
