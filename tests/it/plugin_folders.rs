//! Folders and packages as plugins: what belongs to them, how they are imported, and when they run again.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use casparian::plugin::folder::{File, Folder, pack};
use serde_json::{Value, json};

use crate::common::*;
use crate::returns::rows_of;
use crate::run::run_json;

const HANDLER: &str = "class Handler:\n    def execute(self, path):\n        yield ";
const HELPER: &str = "from pathlib import Path\nfrom casparian_flow.sdk import FileEvent\ndef double(n): return 2 * n\ndef data(): return (Path(__file__).parent / 'data' / 'x.csv').read_text()\n";
/// Child processes of all start methods, which import the function's module.
const POOLS: &str = "        import multiprocessing, joblib\n        for how in ('fork', 'spawn', 'forkserver'):\n            with multiprocessing.get_context(how).Pool(1) as pool: yield {'a': [str(n) for n in pool.map(double, [1])]}\n        yield {'a': [str(n) for n in joblib.Parallel(2)(joblib.delayed(double)(n) for n in (2, 3))]}\n";
const PROJECT: &str = "[project]\nname = 'sales'\nversion = '1'\ndependencies = ['joblib', 'six==1.15.0']\n[tool.uv]\ndev-dependencies = ['pytest']\n[tool.casparian]\nentry = 'jobs/entry.py'\n";

/// Paths and contents.
type Files<'a> = &'a [(&'a str, &'a str)];

fn write(folder: &Path, files: Files<'_>) {
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

fn in_folder(folder: &Path, arguments: &[&str]) -> Output {
    output(program("casparian").args(arguments).current_dir(folder))
}

/// Runs in a folder; gives the summary.
fn run_in(folder: &Path, arguments: &[&str]) -> Value {
    let output = in_folder(folder, &[&["run", "--json"], arguments].concat());
    serde_json::from_str(&stdout(&output)).unwrap_or_else(|_| panic!("{}", stderr(&output)))
}

fn statuses(summary: &Value) -> Vec<&str> {
    let files = summary["files"].as_array().unwrap().iter();
    files.map(|file| file["status"].as_str().unwrap()).collect()
}

#[test]
fn a_folder_and_a_package_run_with_their_modules_and_data() {
    let plain = format!(
        "import helper\nfrom helper import double\n{HANDLER}{{'a': [helper.data(), __name__]}}\n"
    );
    let core = "from importlib.resources import files\nfrom casparian_flow.sdk import BasePlugin\nfrom .sub import double\nfrom sales.sub import double as again\nassert again is double\nclass Handler(BasePlugin):\n    def execute(self, path):\n        yield {'a': [files(__package__).joinpath('data/x.csv').read_text(), __name__]}\n        from concurrent.futures import ProcessPoolExecutor\n        import multiprocessing\n        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:\n            yield {'a': [str(n) for n in pool.map(self.twice, [4])]}\n    def twice(self, n): return double(n)\n";
    let project = format!(
        "from helper import double, data\nimport six\n{HANDLER}{{'a': [six.__version__, __name__]}}\n{POOLS}"
    );
    let cases: &[(&str, Files<'_>, &[&str])] = &[
        (
            "a plain folder",
            &[
                ("plugin.py", &plain),
                ("helper.py", HELPER),
                ("data/x.csv", "5"),
            ],
            &["5", "plugin"],
        ),
        (
            "a package",
            &[
                ("__init__.py", "from .core import Handler\n"),
                ("core.py", core),
                ("sub/__init__.py", "def double(n): return 2 * n\n"),
                ("data/x.csv", "5"),
            ],
            &["5", "sales.core", "8"],
        ),
        (
            "a project",
            &[
                ("pyproject.toml", PROJECT),
                ("jobs/entry.py", &project),
                ("helper.py", HELPER),
            ],
            &["1.15.0", "jobs.entry", "2", "2", "2", "4", "6"],
        ),
    ];
    for (what, files, want) in cases {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sales");
        write(&folder, files);
        write(dir.path(), &[("in", "")]);
        for start in ["warm", "spawn"] {
            let out = dir.path().join(start);
            let inputs = [dir.path().join("in")];
            let more = ["--plugin-start", start];
            let (summary, _) = run_json(
                folder.to_str().unwrap(),
                &[inputs[0].to_str().unwrap()],
                &out,
                &more,
            );
            let file = &summary["files"][0];
            assert_eq!(file["status"], "DONE", "{what} {start}: {summary}");
            let rows = rows_of(file);
            let rows = rows.as_array().unwrap().iter();
            let rows: Vec<&str> = rows.map(|row| row["a"].as_str().unwrap()).collect();
            assert_eq!(rows, *want, "{what} {start}");
            assert!(out.join("sales").is_dir(), "{what}: named like the folder");
        }
    }
}

fn deploy(folder: &str, database: &Path, place: &Path) -> Output {
    let database = database.to_str().unwrap();
    in_folder(place, &["deploy", folder, "--database", database])
}

/// Name and version, and whether it was known.
fn deployed(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    stdout(output).trim().to_owned()
}

#[test]
fn what_belongs_to_a_folder_decides_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("sales");
    let database = folder.join("queue.sqlite");
    write(
        &folder,
        &[
            ("plugin.py", &format!("{HANDLER}{{'a': [1]}}\n")),
            ("helper.py", HELPER),
            (
                "pyproject.toml",
                "[tool.casparian]\nexclude = ['big', 'docs/*.md']\n",
            ),
        ],
    );
    casparian_ok(&["init", database.to_str().unwrap()]);
    let first = deployed(&deploy("sales", &database, dir.path()));
    assert_eq!(first, "sales 1.0.0 deployed");
    let known = "sales 1.0.0 was known, now runs again";
    symlink("sales", dir.path().join("link")).unwrap();
    for (path, place) in [("sales/", dir.path()), ("link", dir.path()), (".", &folder)] {
        assert_eq!(deployed(&deploy(path, &database, place)), known, "{path}");
    }
    // The database is in the folder itself.
    write(
        &folder,
        &[
            ("__pycache__/helper.cpython-311.pyc", "x"),
            ("old.pyc", "x"),
            (".git/config", "x"),
            (".env", "x"),
            ("env/pyvenv.cfg", "x"),
            ("env/lib/x.py", "x"),
            ("sales.egg-info/PKG-INFO", "x"),
            ("poetry.lock", "x"),
            ("big/x.bin", "x"),
            ("docs/a.md", "x"),
            ("out/.casparian/queue.sqlite", "x"),
            ("out/x.parquet", "x"),
        ],
    );
    symlink("/nowhere", folder.join(".link")).unwrap();
    // Its time changes.
    write(&folder, &[("helper.py", HELPER)]);
    assert_eq!(deployed(&deploy("sales", &database, dir.path())), known);

    let helper = folder.join("helper.py");
    let steps: [(&str, &dyn Fn()); 4] = [
        ("content", &|| write(&folder, &[("helper.py", "x = 2\n")])),
        ("mode", &|| {
            std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).unwrap();
        }),
        ("name", &|| {
            std::fs::rename(&helper, folder.join("help.py")).unwrap()
        }),
        ("link", &|| {
            symlink("help.py", folder.join("helper.py")).unwrap()
        }),
    ];
    for (number, (what, step)) in steps.into_iter().enumerate() {
        step();
        let want = format!("sales 1.0.{} deployed", number + 1);
        assert_eq!(
            deployed(&deploy("sales", &database, dir.path())),
            want,
            "{what}"
        );
    }
}

#[test]
fn a_folder_that_cannot_be_a_plugin_is_refused_with_the_reason() {
    type Make = fn(&Path);
    let handler = "class Handler: pass\n";
    let large: Make = |folder| {
        std::fs::write(folder.join("x.bin"), vec![0; 5 << 20]).unwrap();
    };
    let many: Make = |folder| {
        std::fs::create_dir(folder.join("many")).unwrap();
        for number in 0..2001 {
            std::fs::write(folder.join(format!("many/{number}")), "").unwrap();
        }
    };
    let fifo: Make = |folder| {
        let status = Command::new("mkfifo").arg(folder.join("pipe")).status();
        assert!(status.unwrap().success());
    };
    let no_utf8: Make = |folder| {
        use std::os::unix::ffi::OsStrExt;
        std::fs::write(folder.join(std::ffi::OsStr::from_bytes(b"x\xff")), "").unwrap();
    };
    let deep: Make = |folder| {
        std::fs::create_dir_all(folder.join("d/".repeat(40))).unwrap();
    };
    let nothing: Make = |_| {};
    let cases: &[(&str, Files<'_>, Make, &str)] = &[
        ("sales", &[], large, "the largest are x.bin (5242880)"),
        ("sales", &[], many, "2001 of them are in many"),
        (
            "sales",
            &[],
            fifo,
            "pipe: it is neither a file nor a folder",
        ),
        ("sales", &[], no_utf8, "its name is not UTF-8"),
        ("sales", &[], deep, "more than 32 folders deep"),
        ("sales", &[("a\nb", "")], nothing, "control characters"),
        (
            "sales",
            &[],
            |folder| symlink("/etc/hostname", folder.join("link")).unwrap(),
            "link: a symbolic link that leads out of the folder, to /etc/hostname",
        ),
        (
            "sales",
            &[],
            |folder| symlink("nowhere", folder.join("link")).unwrap(),
            "link: a symbolic link that cannot be followed",
        ),
        (
            "sales",
            &[],
            |folder| symlink(".", folder.join("link")).unwrap(),
            "link: a symbolic link to a folder",
        ),
        (
            "sales",
            &[
                (
                    "a.py",
                    "# /// script\n# requires-python = \">=3.9\"\n# ///\nclass Handler: pass\n",
                ),
                ("pyproject.toml", "[tool.casparian]\nsandbox = \"strict\"\n"),
            ],
            nothing,
            "[tool.casparian] has settings, and the entry file has inline metadata",
        ),
        (
            "sales",
            &[("b.py", handler)],
            nothing,
            "several files define class Handler (a.py, b.py)",
        ),
        (
            "sales",
            &[("a.py", "")],
            nothing,
            "none of the folder's files defines class Handler (a.py)",
        ),
        (
            "my-sales",
            &[("__init__.py", "")],
            nothing,
            "\"my-sales\" is no name of one",
        ),
        (
            "sales",
            &[("a.py", "class Handler:\n")],
            nothing,
            "line 1: ",
        ),
        (
            "sales",
            &[("pyproject.toml", "x =\n")],
            nothing,
            "pyproject.toml: line 1: ",
        ),
        (
            "sales",
            &[("pyproject.toml", "[tool.poetry]\n")],
            nothing,
            "[tool.poetry] are not read",
        ),
        (
            "sales",
            &[("pyproject.toml", "[tool.casparian]\npreload = ['a']\n")],
            nothing,
            "preload \"a\": it is a module of the folder",
        ),
        (
            "sales",
            &[(
                "pyproject.toml",
                "[tool.uv.sources]\nx = { workspace = true }\n",
            )],
            nothing,
            "x: workspace",
        ),
    ];
    for (name, files, make, want) in cases {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("queue.sqlite");
        casparian_ok(&["init", database.to_str().unwrap()]);
        let folder = dir.path().join(name);
        write(&folder, &[("a.py", handler)]);
        write(&folder, files);
        make(&folder);
        let output = deploy(name, &database, dir.path());
        assert_eq!(output.status.code(), Some(1), "{want}");
        let reason = stderr(&output);
        let reason = reason.lines().last().unwrap_or_default();
        assert!(reason.contains(want), "{want}: {reason}");
        assert!(reason.contains(&format!("plugin {name}: ")), "{reason}");
    }
}

#[test]
fn a_run_over_data_in_the_folder_itself_is_repeated_when_a_module_changes() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("sales");
    write(
        &folder,
        &[
            (
                "plugin.py",
                &format!("import helper\n{HANDLER}{{'a': [helper.A]}}\n"),
            ),
            ("helper.py", "A = 1\n"),
            ("data/a.csv", "1"),
            ("more/b.csv", "1"),
        ],
    );
    let run = || run_in(&folder, &[".", "data", "more/*.csv", "--output", "out"]);
    let rows = |summary: &Value| rows_of(&summary["files"][0]);
    let first = run();
    assert_eq!(statuses(&first), ["DONE", "DONE"], "{first}");
    assert_eq!(rows(&first), json!([{"a": 1}]));
    assert_eq!(statuses(&run()), ["SKIPPED", "SKIPPED"]);
    write(&folder, &[("data/c.csv", "1"), ("more/d.csv", "1")]);
    assert_eq!(statuses(&run()), ["SKIPPED", "DONE", "SKIPPED", "DONE"]);
    write(&folder, &[("helper.py", "A = 2\n")]);
    let again = run();
    assert_eq!(statuses(&again), ["DONE"; 4], "{again}");
    assert_eq!(rows(&again), json!([{"a": 2}]));
}

#[test]
fn a_file_that_lies_beside_a_single_file_plugin_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &[
            (
                "p/plugin.py",
                &format!("import helper\n{HANDLER}{{'a': [helper.A]}}\n"),
            ),
            ("p/helper.py", "A = 1\n"),
            ("in", ""),
        ],
    );
    let summary = run_in(dir.path(), &["p/plugin.py", "in", "--output", "out"]);
    let reason = summary["files"][0]["error"].as_str().unwrap().to_owned();
    let want =
        "helper.py lies beside the plugin and is no part of it: give the folder p as the plugin";
    assert!(reason.lines().next().unwrap().contains(want), "{reason}");
    let summary = run_in(dir.path(), &["p", "in", "--output", "out"]);
    assert_eq!(statuses(&summary), ["DONE"], "{summary}");
}

#[test]
fn a_relative_import_outside_a_package_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let source = format!("from .helper import A\n{HANDLER}{{'a': [A]}}\n");
    write(
        dir.path(),
        &[
            ("p/plugin.py", source.as_str()),
            ("p/helper.py", "A = 1\n"),
            ("in", ""),
        ],
    );
    for (plugin, want) in [
        ("p", "p is no package: add a file __init__.py to it"),
        (
            "p/plugin.py",
            "a plugin that is one file has no package: give its folder",
        ),
    ] {
        let summary = run_in(dir.path(), &[plugin, "in", "--output", "out"]);
        let reason = summary["files"][0]["error"].as_str().unwrap();
        assert!(reason.lines().next().unwrap().contains(want), "{reason}");
    }
    write(dir.path(), &[("p/__init__.py", "")]);
    let summary = run_in(dir.path(), &["p", "in", "--output", "out"]);
    assert_eq!(statuses(&summary), ["DONE"], "{summary}");
}

/// Deploys through a sentinel and into its database; one worker runs both plugins in one environment.
#[test]
fn plugins_with_modules_of_the_same_name_each_have_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("queue.sqlite");
    casparian_ok(&["init", database.to_str().unwrap()]);
    let key = dir.path().join("one/ana.key");
    for name in ["one", "two"] {
        let source = format!(
            "from casparian_flow.sdk import PluginMetadata\nMANIFEST = PluginMetadata(pattern='*.csv', topic='sales')\nimport helper\n{HANDLER}{{'a': [helper.NAME]}}\n"
        );
        let helper = format!("NAME = '{name}'\n");
        write(
            &dir.path().join(name),
            &[("plugin.py", &source), ("helper.py", &helper)],
        );
    }
    let key_text = key.to_str().unwrap();
    let line = casparian_ok(&["keygen", "--publisher", key_text, "--name", "ana"]);
    write(dir.path(), &[("publishers", &line), ("in.csv", "")]);
    let list = dir.path().join("publishers");
    let (_sentinel, endpoint) =
        sentinel(&database, &["--trusted-publishers", list.to_str().unwrap()]);
    let signed = in_folder(dir.path(), &["sign", "one", "--publisher-key", key_text]);
    assert!(signed.status.success(), "{}", stderr(&signed));
    let text = std::fs::read_to_string(dir.path().join("one.deploy.json")).unwrap();
    let payload: Value = serde_json::from_str(&text).unwrap();
    let source = payload["source_code"].as_str().unwrap();
    assert!(
        source.contains("helper.py") && !source.contains("ana.key\""),
        "{source}"
    );
    let sent = in_folder(
        dir.path(),
        &["deploy", "one.deploy.json", "--connect", &endpoint],
    );
    assert!(sent.status.success(), "{}", stderr(&sent));
    deployed(&deploy("two", &database, dir.path()));
    let out = dir.path().join("out");
    let _worker = worker(&endpoint, &out, &["--slots", "1"]);
    let input = [dir.path().join("in.csv")];
    let mut jobs: Vec<(&str, i64)> = Vec::new();
    for name in ["one", "two", "one", "two"] {
        jobs.push((name, submit(&database, name, &input)[0]));
    }
    for (name, id) in jobs {
        let job = ended(&database, id);
        assert_eq!(job["status"], "COMPLETED", "{job}");
        let uri = &job["receipt"]["artifacts"][0]["uri"];
        let rows = rows_of(&json!({"outputs": [uri]}));
        assert_eq!(rows, json!([{"a": name}]));
    }
}

fn made(files: &[(&str, usize)], contents: &[u8]) -> String {
    let file = |(path, size): &(&str, usize)| File {
        path: (*path).to_owned(),
        size: *size,
        executable: false,
    };
    let folder = Folder {
        name: "sales".to_owned(),
        entry: "plugin.py".to_owned(),
        files: files.iter().map(file).collect(),
    };
    pack(&folder, &format!("{HANDLER}{{'a': [1]}}\n"), contents)
}

#[test]
fn a_source_that_describes_an_invalid_folder_fails_its_jobs() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[("in", "")]);
    let many: Vec<(String, usize)> = (0..2001).map(|number| (number.to_string(), 0)).collect();
    let many: Vec<(&str, usize)> = many
        .iter()
        .map(|(path, size)| (path.as_str(), *size))
        .collect();
    let cases = [
        (made(&[("x", 1)], b"x"), None),
        (
            made(&[("../x", 1)], b"x"),
            Some("the path '../x' is not one below it"),
        ),
        (
            made(&[("/tmp/x", 1)], b"x"),
            Some("the path '/tmp/x' is not one below it"),
        ),
        (
            made(&[("x", 1 << 40)], b"x"),
            Some("the sizes of its files"),
        ),
        (
            made(&[("x", 1)], &[0; 1 << 20]),
            Some("the sizes of its files"),
        ),
        (
            made(&[("x", 1), ("x", 0)], b"x"),
            Some("'x' is there twice"),
        ),
        (
            made(&[("plugin.py", 1)], b"x"),
            Some("'plugin.py' is there twice"),
        ),
        (made(&many, b""), Some("2001 files, at most 2000")),
        (
            made(&[("x", 1)], b"x").replace("\"entry\"", "\"\""),
            Some("the list of its files"),
        ),
        (
            made(&[("x", 1)], b"x").replace("# eA==", "# e\u{e9}"),
            Some("the list of its files"),
        ),
        // Comments of a single file.
        (made(&[("../x", 1)], b"x") + "\n", None),
    ];
    for (number, (source, want)) in cases.into_iter().enumerate() {
        write(dir.path(), &[("p.py", &source)]);
        let out = format!("out{number}");
        // What the command line can tell it says before it runs anything.
        let output = in_folder(dir.path(), &["run", "p.py", "in", "--output", &out]);
        let text = stdout(&output) + &stderr(&output);
        match want {
            None => assert_eq!(output.status.code(), Some(0), "{text}"),
            Some(want) => {
                assert_eq!(output.status.code(), Some(1), "{want}: {text}");
                assert!(text.contains(want), "{want}: {text}");
            }
        }
    }
}

#[test]
fn the_files_of_a_folder_do_not_count_as_the_jobs_own() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("sales");
    let body = "class Handler:\n    def execute(self, path):\n        import os, time\n        from pathlib import Path\n        place = Path(__file__).parent\n        assert place.is_relative_to(os.environ['HOME']), place\n        assert (place / 'x.bin').stat().st_size == 2 << 20\n        assert place.parent.stat().st_mode & 0o777 == 0o700\n        time.sleep(2.5)\n        yield {'a': [str(place)]}\n";
    write(&folder, &[("plugin.py", body)]);
    write(dir.path(), &[("in", "")]);
    std::fs::write(folder.join("x.bin"), vec![0; 2 << 20]).unwrap();
    let summary = run_in(
        dir.path(),
        &["sales", "in", "--output", "out", "--job-scratch", "200K"],
    );
    assert_eq!(statuses(&summary), ["DONE"], "{summary}");
    let rows = rows_of(&summary["files"][0]);
    let place = Path::new(rows[0]["a"].as_str().unwrap());
    assert!(!place.exists(), "it is removed with the job");
}
