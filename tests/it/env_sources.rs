//! An environment contains what the plugin's author wrote: PEP 723 with `[tool.uv]`, requirements files,
//! and local packages, in `run` and in `deploy`.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;

use crate::common::*;
use crate::environments::program_in;

/// A HOME without environments, and a folder of a project with an input.
struct Host {
    dir: tempfile::TempDir,
}

fn real_uv() -> PathBuf {
    let shared = home().join(".casparian_flow");
    casparian::plugin::uv(&shared, &AtomicBool::new(false), &mut |_| {}).unwrap()
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Host { dir };
        let bin = host.home().join(".casparian_flow/uv/bin");
        fs::create_dir_all(&bin).unwrap();
        std::os::unix::fs::symlink(real_uv(), bin.join("uv")).unwrap();
        host.write("in/a.csv", "1\n");
        host
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Below the folder of the project, so that its files are above those of the tools.
    fn home(&self) -> PathBuf {
        self.at("home")
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A plugin that gives the value of an expression, with a block of metadata.
    fn plugin(&self, name: &str, block: &[&str], import: &str, value: &str) {
        let block: String = block.iter().map(|line| format!("# {line}\n")).collect();
        let seen = self.at("seen");
        let source = format!(
            "# /// script\n{block}# ///\nimport pyarrow as pa\nimport {import}\n\n\
             class Handler:\n    def execute(self, path):\n        open({seen:?}, 'w').write(str({value}))\n        \
             yield pa.table({{'x': [1]}})\n"
        );
        self.write(name, &source);
    }

    /// A package `mylib` whose `V` is a value.
    fn package(&self, folder: &str, value: &str) {
        let project = "[project]\nname = \"mylib\"\nversion = \"0.1\"\n[build-system]\n\
                       requires = [\"setuptools\"]\nbuild-backend = \"setuptools.build_meta\"\n";
        self.write(&format!("{folder}/pyproject.toml"), project);
        self.write(
            &format!("{folder}/mylib/__init__.py"),
            &format!("V = {value:?}\n"),
        );
    }

    fn command(&self) -> Command {
        let mut command = program("casparian");
        command
            .current_dir(self.dir.path())
            .env("HOME", self.home())
            .env("UV_CACHE_DIR", home().join(".cache/uv"));
        command
    }

    fn run_command(&self, plugin: &str, out: &str, more: &[&str]) -> Command {
        let mut command = self.command();
        command
            .args(["run", plugin, "in", "--output", out])
            .args(more);
        command
    }

    /// What a plugin saw; else the error of its run.
    fn run(&self, plugin: &str, more: &[&str]) -> Result<String, String> {
        let _ = fs::remove_file(self.at("seen"));
        let out = format!("out_{}", plugin.replace('/', "_"));
        let ended = output(&mut self.run_command(plugin, &out, more));
        self.seen(&ended)
    }

    fn seen(&self, ended: &Output) -> Result<String, String> {
        match ended.status.success() {
            true => Ok(fs::read_to_string(self.at("seen")).unwrap_or_default()),
            false => Err(format!("{}{}", stdout(ended), stderr(ended))),
        }
    }

    /// The lockfile that a plugin is deployed with; else why it is not.
    fn deploy(&self, plugin: &str, more: &[&str]) -> Result<String, String> {
        let database = self.at("queue.sqlite");
        if !database.exists() {
            assert!(
                output(self.command().arg("init").arg(&database))
                    .status
                    .success()
            );
        }
        let mut command = self.command();
        command
            .args(["deploy", plugin, "--database"])
            .arg(&database);
        let ended = output(command.args(more));
        if !ended.status.success() {
            return Err(stderr(&ended));
        }
        let query = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT \
                     lockfile_content FROM cf_plugin_environment ORDER BY rowid DESC').fetchone()[0])";
        Ok(stdout(&output(
            Command::new(python()).args(["-c", query]).arg(&database),
        )))
    }
}

const SIX: &str = "six.__version__";

#[test]
fn what_a_block_sets_for_uv_applies_or_is_refused_by_its_name() {
    let host = Host::new();
    host.package("lib", "own");
    let six = "dependencies = [\"six\"]";
    let lib = "dependencies = [\"mylib\"]";
    let cases: &[(&str, &[&str], Result<&str, &str>)] = &[
        (
            SIX,
            &[six, "[tool.uv]", "constraint-dependencies = [\"six<1.16\"]"],
            Ok("1.15.0"),
        ),
        (
            SIX,
            &[
                six,
                "[tool.uv]",
                "override-dependencies = [\"six==1.14.0\"]",
            ],
            Ok("1.14.0"),
        ),
        (
            SIX,
            &[six, "[tool.uv]", "exclude-newer = \"2021-01-01T00:00:00Z\""],
            Ok("1.15.0"),
        ),
        (
            SIX,
            &[
                "dependencies = [\"six>=1.13\"]",
                "[tool.uv]",
                "resolution = \"lowest\"",
            ],
            Ok("1.13.0"),
        ),
        (
            SIX,
            &[six, "requires-python = \">=3.99\""],
            Err("Python >=3.99,>=3.9 is required"),
        ),
        (
            SIX,
            &[six, "[tool.uv]", "no-such-key = 1"],
            Err("[tool.uv] no-such-key"),
        ),
        (
            SIX,
            &[six, "[tool.uv]", "build-constraint-dependencies = []"],
            Err("build-constraint-dependencies"),
        ),
        (
            "mylib.V",
            &[lib, "[tool.uv.sources]", "mylib = { path = \"./lib\" }"],
            Ok("own"),
        ),
        (
            "mylib.V",
            &[
                lib,
                "[tool.uv.sources]",
                "mylib = { path = \"lib\", editable = true }",
            ],
            Ok("own"),
        ),
        (
            "mylib.V",
            &[lib, "[tool.uv.sources]", "mylib = { workspace = true }"],
            Err("mylib: workspace"),
        ),
        (
            "mylib.V",
            &["dependencies = [\"mylib @ file:./lib\"]"],
            Ok("own"),
        ),
        (
            "mylib.V",
            &["dependencies = [\"mylib @ ./missing\"]"],
            Err("missing"),
        ),
    ];
    for (value, block, want) in cases {
        let module = value.split('.').next().unwrap();
        host.plugin("p.py", block, module, value);
        match (host.run("p.py", &["--force"]), want) {
            (Ok(seen), Ok(want)) => assert_eq!(&seen, want, "{block:?}"),
            (Err(reason), Err(want)) => assert!(reason.contains(want), "{block:?}: {reason}"),
            (found, want) => panic!("{block:?}: {found:?}, not {want:?}"),
        }
    }
    // The folder of the package is as it was.
    assert_eq!(fs::read_dir(host.at("lib")).unwrap().count(), 2);
}

#[test]
fn a_local_package_is_that_of_the_plugins_folder_and_as_it_is_now() {
    let host = Host::new();
    for folder in ["a", "b"] {
        host.package(&format!("{folder}/lib"), folder);
        let block = ["dependencies = [\"mylib @ file:./lib\"]"];
        host.plugin(&format!("{folder}/p.py"), &block, "mylib", "mylib.V");
    }
    assert_eq!(host.run("a/p.py", &[]).unwrap(), "a");
    assert_eq!(host.run("b/p.py", &[]).unwrap(), "b");
    assert_eq!(host.run("a/p.py", &[]).unwrap(), "", "it is skipped");
    host.package("a/lib", "edited");
    assert_eq!(host.run("a/p.py", &[]).unwrap(), "edited");
    assert_eq!(host.run("a/p.py", &[]).unwrap(), "", "it is skipped");
    // A package that another local one asks for, by its own `[tool.uv.sources]`.
    host.package("c/lib", "c");
    let outer = "[project]\nname = \"outer-of-mylib\"\nversion = \"1\"\ndependencies = [\"mylib\"]\n\
                 [tool.uv.sources]\nmylib = { path = \"../lib\" }\n[build-system]\n\
                 requires = [\"setuptools\"]\nbuild-backend = \"setuptools.build_meta\"\n";
    host.write("c/outer/pyproject.toml", outer);
    host.write("c/outer/outer/__init__.py", "from mylib import V\n");
    let block = [
        "dependencies = [\"outer-of-mylib\"]",
        "[tool.uv.sources]",
        "outer-of-mylib = { path = \"outer\" }",
    ];
    host.plugin("c/p.py", &block, "outer", "outer.V");
    assert_eq!(host.run("c/p.py", &[]).unwrap(), "c");
    host.package("c/lib", "c2");
    assert_eq!(host.run("c/p.py", &[]).unwrap(), "c2");
}

#[test]
fn archives_repositories_and_local_indexes_count_by_their_content() {
    let host = Host::new();
    let run = |command: &mut Command| {
        let ended = output(command);
        assert!(ended.status.success(), "{}", stderr(&ended));
    };
    let pack = |value: &str| {
        host.package("lib", value);
        let _ = fs::remove_dir_all(host.at("lib/build"));
        let mut build = Command::new(real_uv());
        build
            .args(["build", "--quiet", "--no-config", "--out-dir"])
            .arg(host.at("wheels"));
        run(build
            .arg(host.at("lib"))
            .env("UV_CACHE_DIR", home().join(".cache/uv")));
    };
    let commit = || {
        let git = |words: &[&str]| {
            let mut git = Command::new("git");
            git.args(["-c", "user.name=x", "-c", "user.email=x@x", "-C"])
                .arg(host.at("lib"));
            run(git.args(words));
        };
        git(&["init", "--quiet"]);
        git(&["add", "pyproject.toml", "mylib"]);
        git(&["commit", "--quiet", "--message", "x"]);
    };
    let repository = format!(
        "mylib = {{ git = \"file://{}\" }}",
        host.at("lib").display()
    );
    let lib = "dependencies = [\"mylib\"]";
    let index = [
        lib,
        "[tool.uv]",
        "no-index = true",
        "find-links = [\"wheels\"]",
    ];
    host.plugin(
        "wheel.py",
        &["dependencies = [\"mylib @ file:wheels/mylib-0.1-py3-none-any.whl\"]"],
        "mylib",
        "mylib.V",
    );
    host.plugin(
        "sdist.py",
        &["dependencies = [\"mylib @ ./wheels/mylib-0.1.tar.gz\"]"],
        "mylib",
        "mylib.V",
    );
    host.plugin("index.py", &index, "mylib", "mylib.V");
    host.plugin(
        "git.py",
        &[lib, "[tool.uv.sources]", &repository],
        "mylib",
        "mylib.V",
    );
    for value in ["first", "second"] {
        pack(value);
        commit();
        for plugin in ["wheel.py", "sdist.py", "index.py", "git.py"] {
            assert_eq!(host.run(plugin, &[]).as_deref(), Ok(value), "{plugin}");
        }
    }
    // Another host has none of these.
    for plugin in ["wheel.py", "sdist.py", "index.py", "git.py"] {
        let reason = host.deploy(plugin, &[]).unwrap_err();
        assert!(
            reason.contains("other hosts cannot install"),
            "{plugin}: {reason}"
        );
        assert!(reason.contains("mylib ("), "{plugin}: {reason}");
    }
}

const HASHED: &str = "six==1.16.0 \\\n    --hash=sha256:1e61c37477a1626458e36f7b1d82aa5c9b094fa4802892072e49de9c60c4c926 \\\n    \
     --hash=sha256:8abb2f1d86890a2dfb989f9a77cfcfd3e47c2a354b01111771326f8aa26e0254\n";

#[test]
fn a_requirements_file_is_read_as_pip_reads_it_or_refused_by_line() {
    let host = Host::new();
    host.package("more/lib", "own");
    host.write("six.txt", "six<1.16\n");
    host.write("more/list.txt", "-r sub/list.txt # why\n-c ../six.txt\n");
    host.write("more/sub/list.txt", "six ; python_version > '3'\n");
    host.write("more/lib.txt", "-e ./lib\n");
    let wrong = HASHED.replace("1e61", "2e61").replace("8abb", "9abb");
    let cases: &[(&str, &str, Result<&str, &str>)] = &[
        (SIX, HASHED, Ok("1.16.0")),
        (SIX, "six\n-c six.txt\n", Ok("1.15.0")),
        (SIX, "-r more/list.txt\n", Ok("1.15.0")),
        (SIX, "--no-binary six\nsix==1.15.0\n", Ok("1.15.0")),
        ("mylib.V", "-r more/lib.txt\n", Ok("own")),
        ("mylib.V", "./more/lib", Ok("own")),
        ("mylib.V", "./more/lib; python_version > '3'", Ok("own")),
        (
            SIX,
            &wrong,
            Err("six 1.16.0 failed: none of its files has a hash of list.txt:1"),
        ),
        (
            SIX,
            "six\n--trusted-host h\n",
            Err("list.txt:2: --trusted-host is not supported"),
        ),
        (
            SIX,
            "-r missing.txt\n",
            Err("list.txt:1: requirements missing.txt: No such file"),
        ),
    ];
    for (value, list, want) in cases {
        host.plugin("p.py", &[], value.split('.').next().unwrap(), value);
        host.write("list.txt", list);
        match (
            host.run("p.py", &["--requirements", "list.txt", "--force"]),
            want,
        ) {
            (Ok(seen), Ok(want)) => assert_eq!(&seen, want, "{list:?}"),
            (Err(reason), Err(want)) => assert!(reason.contains(want), "{list:?}: {reason}"),
            (found, want) => panic!("{list:?}: {found:?}, not {want:?}"),
        }
    }
    // What others bring needs a hash, too, and the one of a local file is compared.
    let date = "python-dateutil==2.9.0.post0 --hash=sha256:a8b2bc7bffae282281c8140a97d3aa9c14da0b136dfe83f850eea9a5f7470427\n";
    host.write("list.txt", date);
    let reason = host.run("p.py", &["--requirements", "list.txt", "--force"]);
    let reason = reason.unwrap_err();
    assert!(reason.contains("dependency six"), "{reason}");
    assert!(
        reason.contains("no --hash, and list.txt:1 asks for one of each package"),
        "{reason}"
    );
    let wheel = format!(
        "six @ file:six-1.15.0-py2.py3-none-any.whl#sha256={}",
        "0".repeat(64)
    );
    host.write("list.txt", &wheel);
    let fetched = "https://files.pythonhosted.org/packages/ee/ff/48bde5c0f013094d729fe4b0316ba2a24774b3ff1c52d924a8a4cb04078a/six-1.15.0-py2.py3-none-any.whl";
    let mut fetch = Command::new(python());
    fetch.args(["-m", "pip", "download", "--quiet", "--no-deps", "-d"]);
    let fetch = output(fetch.arg(host.at("")).arg(fetched));
    assert!(fetch.status.success(), "{}", stderr(&fetch));
    let reason = host.run("p.py", &["--requirements", "list.txt", "--force"]);
    let reason = reason.unwrap_err();
    assert!(
        reason.contains("none of its files has a hash of six @"),
        "{reason}"
    );
    host.write("list.txt", HASHED);
    let lockfile = host.deploy("p.py", &["--lockfile", "list.txt"]).unwrap();
    assert!(lockfile.contains("version = \"1.16.0\""), "{lockfile}");
    host.write("list.txt", "more/lib\n");
    let reason = host
        .deploy("p.py", &["--lockfile", "list.txt"])
        .unwrap_err();
    assert!(
        reason.contains("other hosts cannot install") && reason.contains("mylib ("),
        "{reason}"
    );
}

#[test]
fn a_lockfile_beside_the_plugin_that_uv_refuses_is_named() {
    let host = Host::new();
    host.package("lib", "own");
    let block = ["dependencies = [\"mylib @ file:./lib\"]"];
    host.plugin("p.py", &block, "mylib", "mylib.V");
    for (text, why) in [
        ("not toml [", "expected `=`"),
        ("", "missing field `version`"),
        (
            "version = 99\nrequires-python = \">=3.9\"\n",
            "unsupported schema version",
        ),
        (
            "version = 1\nrequires-python = \">=3.9\"\n[[package]]\nname = \"mylib\"\n",
            "missing field `source`",
        ),
    ] {
        host.write("p.py.lock", text);
        let reason = host.run("p.py", &[]).unwrap_err();
        for want in ["reading the lockfile p.py.lock failed", why, "remove it"] {
            assert!(reason.contains(want), "{text:?}: {reason}");
        }
        assert!(!reason.contains("uv.lock"), "{text:?}: {reason}");
    }
    fs::remove_file(host.at("p.py.lock")).unwrap();
    assert_eq!(host.run("p.py", &[]).as_deref(), Ok("own"));
}

#[test]
fn a_deployed_plugin_has_exact_versions_and_what_its_block_sets() {
    let host = Host::new();
    let block = [
        "requires-python = \">=3.9\"",
        "dependencies = [\"six\"]",
        "[tool.uv]",
        "constraint-dependencies = [\"six<1.16\"]",
        "[tool.casparian]",
        "preload = [\"six\"]",
    ];
    host.plugin("p.py", &block, "six", SIX);
    let lockfile = host.deploy("p.py", &[]).unwrap();
    for want in [
        "requires-python = \">=3.9\"",
        "name = \"six\"\nversion = \"1.15.0\"",
        "sha256:",
        "name = \"pyarrow\"",
    ] {
        assert!(lockfile.contains(want), "{want}: {lockfile}");
    }
    assert_eq!(
        casparian::plugin::environment::preload(lockfile.trim_end()),
        ["six"]
    );
    // Versions of a lockfile beside the plugin (`uv lock --script`) are kept.
    host.plugin("p.py", &["dependencies = [\"six\"]"], "six", SIX);
    let lock = lockfile.replace("[manifest]", "[ignored]");
    host.write("p.py.lock", &lock);
    let again = host.deploy("p.py", &[]).unwrap();
    assert!(
        again.contains("name = \"six\"\nversion = \"1.15.0\""),
        "{again}"
    );
}

#[test]
fn nothing_but_the_plugin_decides_what_its_environment_contains() {
    let host = Host::new();
    let limit = "constraint-dependencies = [\"six<1.15\"]\nresolution = \"lowest\"\n";
    let project = format!(
        "[project]\nname = \"x\"\nversion = \"1\"\n[tool.uv]\n{limit}[tool.uv.workspace]\nmembers = [\"**\"]\n"
    );
    for folder in ["", "home/", "in/"] {
        host.write(&format!("{folder}pyproject.toml"), &project);
        host.write(&format!("{folder}uv.toml"), limit);
        host.write(&format!("{folder}.env"), "UV_CONSTRAINT=six.txt\n");
    }
    host.write("home/.config/uv/uv.toml", limit);
    host.write("six.txt", "six<1.15\n");
    host.plugin("p.py", &["dependencies = [\"six<1.17\"]"], "six", SIX);
    let six = host.at("six.txt");
    let mut command = host.run_command("p.py", "out", &["--pattern", "*.csv"]);
    command
        .env("UV_CONSTRAINT", &six)
        .env("UV_OVERRIDE", &six)
        .env("UV_RESOLUTION", "lowest")
        .env("UV_PYTHON", "2.7")
        .env("UV_CONFIG_FILE", "uv.toml")
        .env("PIP_CONSTRAINT", &six)
        // Nor do variables that are not UTF-8 matter.
        .env("FOO", std::ffi::OsString::from_vec(vec![0xff]))
        .env(
            "UV_INDEX_X_PASSWORD",
            std::ffi::OsString::from_vec(vec![0xff]),
        );
    assert_eq!(host.seen(&output(&mut command)).unwrap(), "1.16.0");
    let lockfile = host.deploy("p.py", &[]).unwrap();
    assert!(lockfile.contains("version = \"1.16.0\""), "{lockfile}");
    // Where packages come from is the operator's to say.
    fs::remove_dir_all(host.home().join(".casparian_flow/venvs")).unwrap();
    host.write("home/.config/uv/uv.toml", "no-index = true\n");
    let reason = host.run("p.py", &["--force"]).unwrap_err();
    assert!(reason.contains("six was not found"), "{reason}");
}

/// Each step of a build is killed after it has done its work, with the run that waits for it.
#[test]
fn a_build_that_was_killed_is_cleaned_up_by_the_next_run() {
    let host = Host::new();
    host.package("lib", "own");
    host.plugin(
        "p.py",
        &["dependencies = [\"mylib @ file:./lib\"]"],
        "mylib",
        "mylib.V",
    );
    let script = format!(
        "#!/bin/sh\n{0:?} \"$@\" || exit\nif [ \"$1\" = \"$(cat {1:?})\" ]; then touch {2:?}; exec sleep 1000; fi\n",
        real_uv(),
        host.at("stop_at"),
        host.at("stopped"),
    );
    program_in(&host.at("bin"), "uv", &script);
    let path = format!(
        "{}:{}",
        host.at("bin").display(),
        std::env::var("PATH").unwrap()
    );
    for step in ["python", "lock", "build", "venv", "sync"] {
        let _ = fs::remove_file(host.at("stopped"));
        host.package("lib", step);
        host.write("stop_at", step);
        let mut command = host.run_command("p.py", "out", &[]);
        let mut killed = Background::start(command.env("PATH", &path));
        until(step, || host.at("stopped").exists().then_some(()));
        killed.kill();
        host.write("stop_at", "never");
        let mut command = host.run_command("p.py", "out", &[]);
        let ended = output(command.env("PATH", &path));
        assert_eq!(host.seen(&ended).as_deref(), Ok(step));
        let left = left(&host.home().join(".casparian_flow"));
        assert_eq!(left, Vec::<String>::new(), "after {step}");
    }
}

/// What stands in a home beside environments, wheels and locks.
fn left(home: &Path) -> Vec<String> {
    let names = |folder: &str| {
        let entries = fs::read_dir(home.join(folder))
            .into_iter()
            .flatten()
            .flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.collect::<Vec<_>>()
    };
    let mut left = names("tmp");
    let begun = |name: &String| name.contains(".new") || name.contains(".old");
    left.extend(names("venvs").into_iter().filter(begun));
    left.extend(names("wheels").into_iter().filter(begun));
    left
}
