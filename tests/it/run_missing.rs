//! `casparian run`: the last good output of a file that fails or is gone, and inputs by their names.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use arrow::array::AsArray;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::common::*;
use crate::run::{Folder, run_json, totals};

/// Yields each line with the path that the plugin got.
const PATHS: &str = r#"
import pyarrow as pa
class Handler:
    def execute(self, path):
        lines = open(path).read().splitlines()
        if "fail" in lines:
            raise ValueError("told to fail")
        yield pa.table({"line": lines, "path": [path] * len(lines)})
"#;

impl Folder {
    fn with_paths(files: &[(&str, &str)]) -> Self {
        let folder = Folder::new(files);
        folder.write("count.py", PATHS);
        folder
    }

    fn run_over(&self, inputs: &[&str], more: &[&str]) -> (Value, Option<i32>) {
        let inputs: Vec<String> = inputs.iter().map(|input| self.path(input)).collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let out = self.path("out");
        run_json(&self.path("count.py"), &inputs, Path::new(&out), more)
    }

    fn run_over_text(&self, inputs: &[&str], more: &[&str]) -> std::process::Output {
        let mut command = program("casparian");
        command.arg("run").arg(self.path("count.py"));
        command.args(inputs.iter().map(|input| self.path(input)));
        command.arg("-o").arg(self.path("out")).args(more);
        command.output().unwrap()
    }

    /// Lines of the output by the path that the plugin got, relative to the test's folder.
    fn lines(&self) -> BTreeMap<String, String> {
        let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for file in visible_files(Path::new(&self.path("out"))) {
            for (line, path) in rows_of(&file) {
                let below = path.strip_prefix(&self.path("")).unwrap_or(&path);
                lines.entry(below.to_owned()).or_default().push(line);
            }
        }
        let lines = lines.into_iter();
        lines.map(|(path, all)| (path, all.join(" "))).collect()
    }
}

/// Line and path of each row.
fn rows_of(file: &Path) -> Vec<(String, String)> {
    let file = fs::File::open(file).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let mut rows = Vec::new();
    for batch in reader.build().unwrap().map(Result::unwrap) {
        let column = |name| batch.column_by_name(name).unwrap().as_string::<i32>();
        let values = column("line").iter().zip(column("path"));
        rows.extend(values.map(|(line, path)| (line.unwrap().into(), path.unwrap().into())));
    }
    rows
}

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let text = |(path, lines): &(&str, &str)| ((*path).to_owned(), (*lines).to_owned());
    pairs.iter().map(text).collect()
}

fn of_file<'a>(summary: &'a Value, name: &str) -> &'a Value {
    let files = summary["files"].as_array().unwrap();
    let is_it = |file: &&Value| file["file"].as_str().unwrap().ends_with(name);
    files.iter().find(is_it).unwrap()
}

/// Names of the files that a summary lists as gone.
fn gone(summary: &Value) -> Vec<String> {
    let gone = summary["gone"].as_array().unwrap().iter();
    let name = |file: &Value| {
        let path = file["file"].as_str().unwrap().to_owned();
        path.rsplit('/').next().unwrap().to_owned()
    };
    gone.map(name).collect()
}

#[test]
fn a_file_that_fails_keeps_its_output_until_it_succeeds_and_counts_as_stale() {
    let folder = Folder::with_paths(&[("a.csv", "1"), ("b.csv", "2")]);
    folder.run_over(&["in"], &[]);
    let good = texts(&[("in/a.csv", "1"), ("in/b.csv", "2")]);
    // Other content, an input that cannot be read, and the same content.
    folder.write("in/a.csv", "fail");
    for _ in 0..2 {
        let (summary, code) = folder.run_over(&["in"], &[]);
        assert_eq!((totals(&summary).2, code), (1, Some(1)), "{summary}");
        let file = of_file(&summary, "a.csv");
        assert_eq!(file["stale"], true, "{file}");
        assert_eq!(file["kept"].as_array().unwrap().len(), 1, "{file}");
        assert!(file["removed"].is_null(), "{file}");
        assert_eq!(summary["totals"]["stale"], 1);
        assert_eq!(folder.lines(), good);
        folder.check();
    }
    let words = ["run", &folder.path("count.py"), &folder.path("in"), "-o"];
    let output = casparian(&[&words[..], &[&folder.path("out")]].concat());
    let text = stdout(&output);
    assert!(text.contains("Stale: the output of 1 file is"), "{text}");
    assert!(text.contains("in/a.csv"), "{text}");
    folder.write("in/a.csv", "3");
    let (summary, code) = folder.run_over(&["in"], &[]);
    assert_eq!((totals(&summary).0, code), (1, Some(0)), "{summary}");
    assert_eq!(summary["totals"]["stale"], 0);
    assert_eq!(
        folder.lines(),
        texts(&[("in/a.csv", "3"), ("in/b.csv", "2")])
    );
    // It goes when that is wanted.
    folder.write("in/a.csv", "fail");
    let (summary, _) = folder.run_over(&["in"], &["--failed-output", "remove"]);
    let removed = of_file(&summary, "a.csv")["removed"].as_array();
    assert_eq!(removed.unwrap().len(), 1, "{summary}");
    assert_eq!(folder.lines(), texts(&[("in/b.csv", "2")]));
    folder.check();
}

/// Fails over the line "odd" by a parameter, or while there is a file.
const FAILS: &str = r#"
import os
import pyarrow as pa
class Handler:
    def configure(self, ctx, config):
        self.fails = config.get("fails", False)
    def execute(self, path):
        lines = open(path).read().splitlines()
        fails = self.fails or os.path.exists(os.path.dirname(path) + "/../broken")
        if fails and "odd" in lines or "fail" in lines:
            raise ValueError("told to fail")
        yield pa.table({"line": lines, "path": [path] * len(lines)})
"#;

/// A file that fails after a change of its content, its plugin or its parameters: its output of before is
/// stale, and goes when that is wanted, however often it has failed meanwhile.
#[test]
fn output_of_other_content_code_or_parameters_is_stale() {
    let code = FAILS.replace("= self.fails", "= True");
    let cases: [(&str, &str, &str, &[&str], bool); 5] = [
        ("content", "in/b.csv", "fail", &[], true),
        ("code", "count.py", &code, &[], true),
        ("parameters", "x", "", &["--param", "fails=true"], true),
        ("nothing", "broken", "", &["--force"], false),
        (
            "parameters, back",
            "broken",
            "",
            &["--force", "--param", "year=1"],
            false,
        ),
    ];
    for (name, file, text, more, is_stale) in cases {
        let folder = Folder::with_paths(&[("a.csv", "1"), ("b.csv", "odd")]);
        folder.write("count.py", FAILS);
        let all = texts(&[("in/a.csv", "1"), ("in/b.csv", "odd")]);
        let first = match name {
            "parameters, back" => &["--param", "year=1"][..],
            _ => &[],
        };
        folder.run_over(&["in"], first);
        if name == "parameters, back" {
            folder.write("broken", "");
            let (summary, _) = folder.run_over(&["in"], &["--param", "year=2"]);
            assert_eq!(summary["totals"]["stale"], 1, "{name}: {summary}");
        }
        folder.write(file, text);
        for _ in 0..2 {
            let (summary, code) = folder.run_over(&["in"], more);
            assert_eq!(
                (totals(&summary).2, code),
                (1, Some(1)),
                "{name}: {summary}"
            );
            let found = of_file(&summary, "b.csv");
            assert_eq!(found["stale"], is_stale, "{name}: {found}");
            assert_eq!(found["kept"].as_array().unwrap().len(), 1, "{name}");
            let count = u32::from(is_stale);
            assert_eq!(summary["totals"]["stale"], count, "{name}: {summary}");
            assert_eq!(folder.lines(), all, "{name}");
            folder.check();
        }
        let text = stdout(&folder.run_over_text(&["in"], more));
        let line = "Stale: the output of 1 file is of other content, code or parameters";
        assert_eq!(text.contains(line), is_stale, "{name}: {text}");
        let remove = [more, &["--failed-output", "remove"]].concat();
        let (summary, _) = folder.run_over(&["in"], &remove);
        let removed = of_file(&summary, "b.csv")["removed"].as_array();
        assert_eq!(removed.is_some(), is_stale, "{name}: {summary}");
        assert_eq!(folder.lines().len(), 2 - usize::from(is_stale), "{name}");
        assert_eq!(summary["totals"]["stale"], 0, "{name}: {summary}");
        folder.check();
    }
}

#[test]
fn output_of_missing_files_is_listed_and_removed_by_prune() {
    for input in ["in", "in/*.csv", "in/**"] {
        let names = ["a", "b", "c"].map(|name| format!("{name}.csv"));
        let files = names.each_ref().map(|name| (name.as_str(), name.as_str()));
        let folder = Folder::with_paths(&files);
        folder.run_over(&[input], &[]);
        fs::remove_file(folder.path("in/a.csv")).unwrap();
        fs::remove_file(folder.path("in/b.csv")).unwrap();
        let (summary, code) = folder.run_over(&[input], &[]);
        assert_eq!(code, Some(0), "{input}: {summary}");
        assert_eq!(gone(&summary), ["a.csv", "b.csv"], "{input}: {summary}");
        assert_eq!(folder.lines().len(), 3);
        // Other inputs say nothing about them.
        let (summary, _) = folder.run_over(&["in/c.csv"], &["--prune"]);
        assert_eq!(gone(&summary), [""; 0], "{input}: {summary}");
        let (summary, _) = folder.run_over(&["in"], &["--prune", "--pattern", "[!a]*"]);
        assert_eq!(gone(&summary), ["b.csv"], "{input}: {summary}");
        let words = ["run", &folder.path("count.py"), &folder.path(input), "-o"];
        let output = casparian(&[&words[..], &[&folder.path("out"), "--prune"]].concat());
        let text = stdout(&output);
        assert!(
            text.contains("Missing: the output of 1 file was removed"),
            "{text}"
        );
        assert_eq!(folder.lines(), texts(&[("in/c.csv", "c.csv")]), "{input}");
        folder.check();
        let (summary, _) = folder.run_over(&[input], &["--prune"]);
        assert_eq!(gone(&summary), [""; 0], "{input}: {summary}");
        // It comes back with the file.
        folder.write("in/a.csv", "4");
        folder.run_over(&[input], &[]);
        let want = texts(&[("in/a.csv", "4"), ("in/c.csv", "c.csv")]);
        assert_eq!(folder.lines(), want, "{input}");
        folder.check();
    }
}

/// Rows of tables go as files do, and a sink of mode `error` is free for the others.
/// As where a program writes parts into a folder that has the name of its earlier file.
#[test]
fn a_file_whose_name_a_folder_has_now_is_missing() {
    for input in ["in", "in/*", "in/**"] {
        let folder = Folder::with_paths(&[("a.csv", "1"), ("b.csv", "2"), ("c", "3")]);
        folder.run_over(&["in"], &[]);
        for name in ["a.csv", "b.csv"] {
            fs::remove_file(folder.path(&format!("in/{name}"))).unwrap();
        }
        fs::create_dir(folder.path("in/a.csv")).unwrap();
        folder.write("in/a.csv/part-0", "4");
        let pipe = folder.path("in/b.csv");
        assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
        let (summary, code) = folder.run_over(&[input], &[]);
        assert_eq!(code, Some(0), "{input}: {summary}");
        assert_eq!(gone(&summary), ["a.csv", "b.csv"], "{input}: {summary}");
        let (summary, _) = folder.run_over(&[input], &["--prune"]);
        assert_eq!(gone(&summary), ["a.csv", "b.csv"], "{input}: {summary}");
        let mut want = texts(&[("in/c", "3")]);
        if input != "in/*" {
            want = texts(&[("in/a.csv/part-0", "4"), ("in/c", "3")]);
        }
        assert_eq!(folder.lines(), want, "{input}");
        folder.check();
    }
}

#[test]
fn rows_of_missing_files_are_removed_by_prune() {
    let folder = Folder::new(&[("a.csv", "1"), ("b.csv", "2")]);
    let manifest = |mode: &str| {
        let sink = format!("{{'uri': 'sqlite://x.db/rows', 'mode': '{mode}'}}");
        format!(
            "from casparian_flow.sdk import PluginMetadata\n\
             MANIFEST = PluginMetadata(pattern='*', topic='output', sinks={{'output': {sink}}})\n\
             {PATHS}"
        )
    };
    let lines = || {
        let database = folder.path("out/x.db");
        let query = "SELECT group_concat(line, ' ') FROM (SELECT line FROM rows ORDER BY line)";
        sql(Path::new(&database), query)
    };
    folder.write("count.py", &manifest("append"));
    folder.run_over(&["in"], &[]);
    assert_eq!(lines(), "1 2");
    fs::remove_file(folder.path("in/a.csv")).unwrap();
    let (summary, _) = folder.run_over(&["in"], &[]);
    assert_eq!(
        (gone(&summary), lines()),
        (vec!["a.csv".into()], "1 2".into())
    );
    let (summary, _) = folder.run_over(&["in"], &["--prune"]);
    assert_eq!(
        (gone(&summary), lines()),
        (vec!["a.csv".into()], "2".into())
    );
    folder.check();
    // The one that had the sink is gone.
    fs::remove_dir_all(folder.path("out")).unwrap();
    folder.write("in/a.csv", "1");
    folder.write("count.py", &manifest("error"));
    let (summary, _) = folder.run_over(&["in"], &["--slots", "1"]);
    assert_eq!((totals(&summary).2, lines()), (1, "1".into()), "{summary}");
    fs::remove_file(folder.path("in/a.csv")).unwrap();
    let (summary, code) = folder.run_over(&["in"], &["--prune"]);
    assert_eq!((lines(), code), ("2".into(), Some(0)), "{summary}");
}

/// What a run did not see is not gone.
#[test]
fn nothing_is_pruned_that_the_run_could_not_see() {
    let folder = Folder::with_paths(&[("a.csv", "1")]);
    let away = folder.path("away");
    fs::create_dir_all(folder.path("in/link-to")).unwrap();
    fs::create_dir_all(&away).unwrap();
    folder.write("away/b.csv", "2");
    folder.write("in/link-to/c.csv", "3");
    folder.write("in/.d.csv", "4");
    symlink(&away, folder.path("in/away")).unwrap();
    symlink(folder.path("away/b.csv"), folder.path("in/e.csv")).unwrap();
    folder.run_over(&["in", "in/.d.csv"], &["--follow"]);
    assert_eq!(folder.lines().len(), 5);
    // Links that lead nowhere, or are not followed; a name that no folder is asked for.
    fs::rename(&away, folder.path("elsewhere")).unwrap();
    fs::remove_file(folder.path("in/.d.csv")).unwrap();
    for more in [&["--prune", "--follow"][..], &["--prune"]] {
        let (summary, _) = folder.run_over(&["in"], more);
        assert_eq!(gone(&summary), [""; 0], "{summary}");
    }
    fs::rename(folder.path("elsewhere"), &away).unwrap();
    fs::remove_file(folder.path("away/b.csv")).unwrap();
    folder.write("away/other", "x");
    let (summary, _) = folder.run_over(&["in"], &["--prune"]);
    assert_eq!(gone(&summary), [""; 0], "{summary}");
    assert_eq!(folder.lines().len(), 5);
    // A run that is over before it listed its inputs.
    fs::remove_dir_all(folder.path("in/link-to")).unwrap();
    let (summary, _) = folder.run_over(&["in"], &["--prune", "--follow"]);
    let removed = gone(&summary);
    assert_eq!(removed, ["b.csv", "c.csv"], "{summary}");
}

/// All files of an input are gone: the other inputs are run, and the output is listed or removed.
#[test]
fn inputs_that_were_emptied_are_listed_and_pruned() {
    let folder = Folder::with_paths(&[("a.csv", "1")]);
    fs::create_dir(folder.path("other")).unwrap();
    folder.write("other/b.csv", "2");
    let (_, code) = folder.run_over(&["in", "other"], &[]);
    assert_eq!(code, Some(0));
    fs::remove_file(folder.path("in/a.csv")).unwrap();
    folder.write("other/c.csv", "3");
    // The storage of an empty folder may not be mounted.
    for more in [&[][..], &["--prune"]] {
        let (summary, code) = folder.run_over(&["in", "other"], more);
        assert_eq!((gone(&summary), code), (vec!["a.csv".to_owned()], Some(0)));
        assert_eq!(folder.lines().len(), 3, "{summary}");
    }
    fs::write(folder.path("in/.keep"), "").unwrap();
    for inputs in [&["in", "other"][..], &["in"], &["in/*.csv"]] {
        let (summary, code) = folder.run_over(inputs, &["--prune"]);
        assert_eq!(code, Some(0), "{inputs:?} {summary}");
        let lines = folder.lines();
        assert_eq!(lines, texts(&[("other/b.csv", "2"), ("other/c.csv", "3")]));
    }
    // A folder of which nothing was ever run, and a pattern that nothing had, are mistakes.
    fs::create_dir(folder.path("new")).unwrap();
    folder.write("other/d.csv", "4");
    for (inputs, more, lines) in [
        (&["new", "other"][..], &[][..], 3),
        (&["in"], &["--pattern", "*.x"], 3),
    ] {
        let out = folder.run_over_text(inputs, more);
        assert_eq!(out.status.code(), Some(1), "{inputs:?}");
        assert!(stderr(&out).contains("no file"), "{}", stderr(&out));
        assert_eq!(folder.lines().len(), lines, "{inputs:?}");
    }
}

/// The plugin sees the new name, and there is one output.
#[test]
fn a_renamed_file_replaces_the_output_of_its_earlier_name() {
    let folder = Folder::with_paths(&[("a.csv", "1"), ("z.csv", "1")]);
    folder.run_over(&["in"], &[]);
    fs::rename(folder.path("in/a.csv"), folder.path("in/b.csv")).unwrap();
    let (summary, code) = folder.run_over(&["in"], &[]);
    assert_eq!((totals(&summary).0, code), (1, Some(0)), "{summary}");
    let before = of_file(&summary, "b.csv")["renamed_from"].as_str();
    assert!(before.unwrap().ends_with("in/a.csv"), "{summary}");
    let want = texts(&[("in/b.csv", "1"), ("in/z.csv", "1")]);
    assert_eq!(folder.lines(), want, "{summary}");
    assert_eq!(gone(&summary), [""; 0]);
    folder.check();
    assert_eq!(totals(&folder.run_over(&["in"], &[]).0).0, 0);
    // A file with the same content and another time is another one.
    fs::remove_file(folder.path("in/b.csv")).unwrap();
    folder.write("in/c.csv", "1");
    let day = std::time::SystemTime::now() - std::time::Duration::from_secs(86_400);
    let file = fs::File::options()
        .write(true)
        .open(folder.path("in/c.csv"));
    file.unwrap().set_modified(day).unwrap();
    let (summary, _) = folder.run_over(&["in"], &[]);
    assert_eq!(gone(&summary), ["b.csv"], "{summary}");
    assert_eq!(folder.lines().len(), 3, "{summary}");
    // Wherever the file was, and however it is named now.
    for (from, to, input) in [
        ("in/a.csv", "in/b.csv", "in/b.csv"),
        ("in", "in2", "in2"),
        ("in", "deep", "deep/**"),
        ("in/a.csv", "other/a.csv", "other"),
    ] {
        let folder = Folder::with_paths(&[("a.csv", "1")]);
        folder.run_over(&["in"], &[]);
        fs::create_dir(folder.path("other")).unwrap();
        fs::rename(folder.path(from), folder.path(to)).unwrap();
        let (summary, code) = folder.run_over(&[input], &[]);
        assert_eq!(
            (totals(&summary).0, code),
            (1, Some(0)),
            "{input}: {summary}"
        );
        assert!(summary["files"][0]["renamed_from"].is_string(), "{summary}");
        assert_eq!(gone(&summary), [""; 0]);
        assert_eq!(folder.lines().len(), 1, "{input}: {summary}");
        folder.check();
    }
    // Of several the likeliest: one that the listing has lost, and none of another folder and name.
    let folder = Folder::with_paths(&[("b.csv", "1")]);
    fs::create_dir(folder.path("day1")).unwrap();
    let (from, to) = (folder.path("in/b.csv"), folder.path("day1/a.csv"));
    let copied = Command::new("cp").args(["-p", &from, &to]).status();
    assert!(copied.unwrap().success());
    folder.run_over(&["day1"], &[]);
    folder.run_over(&["in"], &[]);
    fs::remove_dir_all(folder.path("day1")).unwrap();
    fs::rename(folder.path("in/b.csv"), folder.path("in/c.csv")).unwrap();
    let (summary, _) = folder.run_over(&["in"], &["--prune"]);
    let before = of_file(&summary, "c.csv")["renamed_from"].as_str();
    assert!(before.unwrap().ends_with("in/b.csv"), "{summary}");
    assert_eq!(folder.lines().len(), 2, "{summary}");
    fs::rename(folder.path("in"), folder.path("in2")).unwrap();
    fs::rename(folder.path("in2/c.csv"), folder.path("in2/d.csv")).unwrap();
    let (summary, _) = folder.run_over(&["in2"], &["--prune"]);
    assert!(
        of_file(&summary, "d.csv")["renamed_from"].is_null(),
        "{summary}"
    );
    // A copy is another file.
    let folder = Folder::with_paths(&[("a.csv", "1")]);
    folder.run_over(&["in"], &[]);
    fs::create_dir(folder.path("in2")).unwrap();
    let (from, to) = (folder.path("in/a.csv"), folder.path("in2"));
    let copied = Command::new("cp").args(["-p", &from, &to]).status();
    assert!(copied.unwrap().success());
    folder.run_over(&["in2"], &[]);
    assert_eq!(folder.lines().len(), 2);
    // Where the new one fails, the output of before stays, and is called stale.
    let folder = Folder::with_paths(&[("a.csv", "1")]);
    folder.run_over(&["in"], &[]);
    fs::rename(folder.path("in/a.csv"), folder.path("in/b.csv")).unwrap();
    folder.write("count.py", &PATHS.replace("\"fail\" in lines", "True"));
    for _ in 0..2 {
        let (summary, code) = folder.run_over(&["in"], &[]);
        assert_eq!((totals(&summary).2, code), (1, Some(1)), "{summary}");
        assert_eq!(of_file(&summary, "b.csv")["stale"], true, "{summary}");
        assert_eq!(folder.lines(), texts(&[("in/a.csv", "1")]));
    }
    let (summary, _) = folder.run_over(&["in"], &["--failed-output", "remove"]);
    let removed = of_file(&summary, "b.csv")["removed"].as_array();
    assert_eq!(removed.map(Vec::len), Some(1), "{summary}");
    assert_eq!(folder.lines(), texts(&[]));
}

#[test]
fn the_output_of_an_input_that_cannot_be_opened_any_more_is_reported_as_kept() {
    let folder = Folder::with_paths(&[("a.csv", "1")]);
    folder.write("target", "2");
    symlink("../target", folder.path("in/b.csv")).unwrap();
    let run = || {
        let mut command = program("casparian");
        command.args(["run", "count.py", "in", "-L", "-o", "out", "--json"]);
        let output = output(command.current_dir(folder.dir.path()));
        let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
        (summary, output.status.code())
    };
    assert_eq!(run().1, Some(0));
    fs::remove_file(folder.path("target")).unwrap();
    for _ in 0..2 {
        let (summary, code) = run();
        assert_eq!(code, Some(1), "{summary}");
        let file = of_file(&summary, "in/b.csv");
        let kept = file["kept"].as_array().unwrap();
        assert!(kept[0].as_str().unwrap().ends_with("b_2.parquet"), "{file}");
        assert!(file["file"].as_str().unwrap().starts_with('/'), "{file}");
    }
}

#[test]
fn a_plugin_gets_the_path_that_was_named_and_each_name_is_an_input() {
    let folder = Folder::with_paths(&[("a.csv", "1")]);
    fs::hard_link(folder.path("in/a.csv"), folder.path("in/b.csv")).unwrap();
    symlink("a.csv", folder.path("in/c.csv")).unwrap();
    fs::copy(folder.path("in/a.csv"), folder.path("in/d.csv")).unwrap();
    symlink("in", folder.path("link")).unwrap();
    fs::create_dir(folder.path("in/sub")).unwrap();
    for (inputs, names) in [
        (
            &["in"][..],
            &["in/a.csv", "in/b.csv", "in/c.csv", "in/d.csv"][..],
        ),
        (&["link/a.csv"], &["link/a.csv"]),
        (&["in/sub/../a.csv", "in/./a.csv"], &["in/a.csv"]),
    ] {
        let out = folder.path("out");
        let _ = fs::remove_dir_all(&out);
        let (summary, code) = folder.run_over(inputs, &[]);
        assert_eq!(code, Some(0), "{summary}");
        let want: Vec<(&str, &str)> = names.iter().map(|name| (*name, "1")).collect();
        assert_eq!(folder.lines(), texts(&want), "{inputs:?}");
        // The catalogue has the same paths.
        let database = rusqlite::Connection::open(format!("{out}/.casparian/queue.sqlite"));
        let database = database.unwrap();
        let query = "SELECT r.path || '/' || l.rel_path FROM cf_file_location l \
                     JOIN cf_source_root r ON r.id = l.source_root_id ORDER BY 1";
        let mut statement = database.prepare(query).unwrap();
        let found = statement
            .query_map([], |row| row.get::<_, String>(0))
            .unwrap();
        let found: Vec<String> = found.map(Result::unwrap).collect();
        let want: Vec<String> = names.iter().map(|name| folder.path(name)).collect();
        assert_eq!(found, want, "{inputs:?}");
    }
}

/// Earlier releases registered files with the links of their paths followed.
#[test]
fn output_of_a_release_that_followed_links_is_replaced() {
    let folder = Folder::with_paths(&[("a.csv", "1")]);
    symlink("in", folder.path("link")).unwrap();
    folder.run_over(&["in"], &[]);
    let queue = folder.path("out/.casparian/queue.sqlite");
    let mark = "UPDATE cf_casparian SET value = 1 WHERE key = 'resolved_locations'";
    sql(Path::new(&queue), mark);
    // Of several names that lead there, one takes the output over.
    symlink("in", folder.path("other")).unwrap();
    let (summary, code) = folder.run_over(&["link", "other"], &[]);
    assert_eq!((totals(&summary).0, code), (2, Some(0)), "{summary}");
    let want = texts(&[("link/a.csv", "1"), ("other/a.csv", "1")]);
    assert_eq!(folder.lines(), want, "{summary}");
    fs::remove_dir_all(folder.path("out")).unwrap();
    folder.run_over(&["in"], &[]);
    sql(Path::new(&queue), mark);
    let (summary, code) = folder.run_over(&["link"], &[]);
    assert_eq!((totals(&summary).0, code), (1, Some(0)), "{summary}");
    assert_eq!(folder.lines(), texts(&[("link/a.csv", "1")]), "{summary}");
    // Two names that are both there are two inputs.
    let (summary, _) = folder.run_over(&["link", "in"], &[]);
    assert_eq!(totals(&summary).0, 1, "{summary}");
    assert_eq!(folder.lines().len(), 2, "{summary}");
}

#[test]
fn markers_and_half_written_files_are_ignored_by_rule_and_reported() {
    let folder = Folder::with_paths(&[
        ("a.csv", "1"),
        ("_SUCCESS", "x"),
        ("b.csv._COPYING_", "x"),
        ("c.crc", "x"),
        ("d.tmp", "x"),
    ]);
    fs::create_dir(folder.path("in/_temporary")).unwrap();
    folder.write("in/_temporary/e.csv", "x");
    let rules = ["--ignore", "*.crc", "--ignore", "*.tmp"];
    let (summary, code) = folder.run_over(&["in"], &rules);
    assert_eq!(code, Some(0), "{summary}");
    assert_eq!(folder.lines(), texts(&[("in/a.csv", "1")]));
    let want = serde_json::json!({
        "_SUCCESS": 1, "_temporary": 1, "*._COPYING_": 1, "*.crc": 1, "*.tmp": 1,
    });
    assert_eq!(summary["ignored"], want, "{summary}");
    let words = ["run", &folder.path("count.py"), &folder.path("in"), "-o"];
    let output = casparian(&[&words[..], &[&folder.path("out")], &rules].concat());
    let text = stdout(&output);
    assert!(
        text.contains("Ignored: 1 name is ignored by the rule _SUCCESS"),
        "{text}"
    );
    // A file that is named itself is meant.
    let (summary, _) = folder.run_over(&["in/_SUCCESS"], &[]);
    assert_eq!(totals(&summary).0, 1, "{summary}");
}

#[test]
fn a_fifo_is_refused_at_once() {
    let folder = Folder::with_paths(&[("a.csv", "1")]);
    let fifo = folder.path("in/fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    symlink("fifo", folder.path("in/link")).unwrap();
    let out = folder.path("out");
    for (plugin, inputs) in [
        ("count.py", &["in/fifo"][..]),
        ("count.py", &["in/a.csv", "in/link"]),
        ("in/fifo", &["in/a.csv"]),
    ] {
        let inputs: Vec<String> = inputs.iter().map(|input| folder.path(input)).collect();
        let mut command = program("casparian");
        command
            .args(["run", &folder.path(plugin), "-o", &out])
            .args(&inputs);
        let refused = output(&mut command);
        let text = stderr(&refused);
        assert_eq!(refused.status.code(), Some(1), "{text}");
        assert!(text.contains("in/"), "{text}");
    }
}
