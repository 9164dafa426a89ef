//! Programs that a worker runs with more rights than plugins have: neither plugins nor build code choose or change
//! them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use crate::common::*;
use crate::copy_program;

/// Replaces what its input names, and gives what came of each.
const PLANTER: &str = r##"
import os
import pyarrow as pa

SCRIPT = "#!/bin/sh\n: > @SCENE@/planted\nexec @SCENE@/real \"$@\"\n"

def replace(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.rename(path, path + ".away")
    with open(path, "w") as file:
        file.write(SCRIPT)
    os.chmod(path, 0o755)

def overwrite(path):
    with open(path, "r+") as file:
        file.write("#!/bin/sh\n")

class Handler:
    def execute(self, path):
        done = []
        for line in open(path).read().splitlines():
            for attack in (replace, overwrite):
                try:
                    attack(line)
                    done.append(f"{attack.__name__} {line}")
                except OSError:
                    pass
        yield pa.table({"done": [" ".join(done)]})
"##;

/// What a worker's user has in the home, by what a plugin may change of it.
const PATHS: &[(&str, bool)] = &[
    // The program of the worker, and of the folder beside it.
    ("home/.cargo/bin/casparian-worker", false),
    ("home/.local/bin/uv", false),
    // What PATH finds before the system's, and where it leads.
    ("home/.local/bin/python3", false),
    ("home/.local/bin/git", false),
    ("home/.tools/uv", false),
    ("home/.pyenv/shims/python3", false),
    ("home/.pyenv/libexec/pyenv", false),
    ("home/.config/uv/uv.toml", false),
    ("home/.local/share/uv/python/x/bin/python3", false),
    ("home/.casparian_flow/uv/bin/uv", false),
    // A folder of PATH that is missing at the start is not searched.
    ("home/missing/uv", true),
    ("home/elsewhere", true),
];

#[test]
fn plugins_change_none_of_the_programs_that_builds_run() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    for user in [0, 65_534] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let shared = home().join(".casparian_flow");
        let uv = casparian::plugin::uv(&shared, &AtomicBool::new(false), &mut |_| {}).unwrap();
        let copy = |from: &Path, name: &str| {
            fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            copy_program(from, path(name));
        };
        let worker = program("casparian-worker");
        copy(Path::new(worker.get_program()), PATHS[0].0);
        for name in ["home/.tools/uv", "real"] {
            copy(&uv, name);
        }
        fs::create_dir_all(path("home/.local/bin")).unwrap();
        symlink("../../.tools/uv", path("home/.local/bin/uv")).unwrap();
        for name in ["home/.pyenv/shims/python3", "home/.pyenv/libexec/pyenv"] {
            copy(Path::new("/bin/true"), name);
        }
        fs::create_dir_all(path("home/.config/uv")).unwrap();
        fs::write(path("home/.config/uv/uv.toml"), "").unwrap();
        let source = PLANTER.replace("@SCENE@", dir.path().to_str().unwrap());
        let database = database_with(dir.path(), "a", &source);
        let lines = PATHS.iter().map(|(name, _)| path(name));
        let lines: Vec<_> = lines.map(|path| path.display().to_string()).collect();
        fs::write(path("in"), lines.join("\n")).unwrap();
        let (_sentinel, endpoint) = sentinel(&database, &["--allow-uid", &user.to_string()]);
        let entries = Command::new("chown")
            .args(["-R", &format!("{user}:{user}")])
            .args([dir.path().join("home"), dir.path().join("in")])
            .status();
        assert!(entries.unwrap().success());
        chown(dir.path(), Some(user), Some(user)).unwrap();
        let folders = ["missing", ".local/bin", ".pyenv/shims"];
        let folders = folders.map(|name| path("home").join(name).display().to_string());
        let mut command = Command::new(path(PATHS[0].0));
        command
            .uid(user)
            .gid(user)
            .env("HOME", path("home"))
            .env("PATH", format!("{}:/usr/bin:/bin", folders.join(":")))
            .args(["--connect", &endpoint, "--output"])
            .arg(path("out"));
        let _worker = Background::start(&mut command);
        let job = ended(&database, submit(&database, "a", &[path("in")])[0]);
        assert_eq!(job["status"], "COMPLETED", "{user}: {job}");
        let done = done_of(&path("out"));
        for (name, is_allowed) in PATHS {
            let name_of = path(name).display().to_string();
            let changed = [" ", "\""]
                .iter()
                .any(|end| done.contains(&format!("{name_of}{end}")));
            assert_eq!(changed, *is_allowed, "{user} {name}: {done}");
        }
        // Another plugin's environment is created with the programs of the start, whatever has their names now.
        replace(&path(PATHS[0].0), &path("planted"));
        let other = path("b.py");
        fs::write(&other, OTHER).unwrap();
        let location = database.to_str().unwrap();
        casparian_ok(&["deploy", other.to_str().unwrap(), "--database", location]);
        let job = ended(&database, submit(&database, "b", &[path("in")])[0]);
        assert_eq!(job["status"], "COMPLETED", "{user}: {job}");
        assert!(!path("planted").exists(), "{user}");
    }
}

/// What the plugin has done.
fn done_of(out: &Path) -> String {
    let read =
        "import sys, pyarrow.parquet as pq\nprint(*pq.read_table(sys.argv[1])['done'].to_pylist())";
    let mut command = Command::new(python());
    let read = output(command.args(["-c", read]).args(visible_files(out)));
    assert!(read.status.success(), "{}", stderr(&read));
    stdout(&read)
}

/// A plugin with an environment of its own.
const OTHER: &str = "# /// script\n# dependencies = [\"pyarrow\", \"six\"]\n# ///\n\
    import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        \
    yield pa.table({'b': [1]})\n";

/// A program in the place of another one that only leaves a mark.
fn replace(program: &Path, mark: &Path) {
    let beside = program.with_extension("new");
    fs::write(&beside, format!("#!/bin/sh\n: > {mark:?}\nexit 1\n")).unwrap();
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&beside, program).unwrap();
}

/// What stands in the place of an environment's Python leads to a program of others.
#[test]
fn no_program_of_others_is_run_without_a_sandbox_for_an_environment() {
    for (mode, runs) in [("on", true), ("strict", false)] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let source = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        \
            yield pa.table({'b': [1]})\n";
        fs::write(path("p.py"), source).unwrap();
        fs::write(path("in"), "x").unwrap();
        fs::create_dir_all(path("out")).unwrap();
        let run = |seconds: &str| {
            let casparian = program("casparian");
            let mut command = Command::new("timeout");
            command.arg(seconds).arg(casparian.get_program());
            command.args(["run", path("p.py").to_str().unwrap()]);
            command.args([path("in"), "-o".into(), path("out")]);
            command
                .args(["--sandbox", mode, "--force"])
                .env("HOME", path("home"))
                .env("UV_CACHE_DIR", home().join(".cache/uv"));
            command
        };
        let bin = path("home/.casparian_flow/uv/bin");
        fs::create_dir_all(&bin).unwrap();
        let shared = home().join(".casparian_flow");
        let uv = casparian::plugin::uv(&shared, &AtomicBool::new(false), &mut |_| {}).unwrap();
        symlink(uv, bin.join("uv")).unwrap();
        let ran = output(&mut run("100"));
        assert!(ran.status.success(), "{mode}: {}", stderr(&ran));
        let venvs = path("home/.casparian_flow/venvs");
        let found = fs::read_dir(&venvs).unwrap().flatten();
        let found: Vec<PathBuf> = found.map(|entry| entry.path().join("bin/python")).collect();
        let python = found.iter().find(|python| python.exists());
        let python = python.unwrap_or_else(|| panic!("{found:?}"));
        let real = fs::canonicalize(python).unwrap();
        let planted = path("evil/bin/python3.11");
        fs::create_dir_all(planted.parent().unwrap()).unwrap();
        let script = format!(
            "#!/bin/bash\ngrep -q 'NoNewPrivs:.*0' /proc/self/status && : > {:?}\n\
             (: > {:?}) 2>/dev/null\nexec -a \"$0\" {real:?} \"$@\"\n",
            path("unrestricted"),
            path("out/planted"),
        );
        fs::write(&planted, script).unwrap();
        fs::set_permissions(&planted, fs::Permissions::from_mode(0o755)).unwrap();
        fs::remove_file(python).unwrap();
        symlink(&planted, python).unwrap();
        // A fault of the environment: the job waits for it to be mended.
        let ran = output(&mut run("20"));
        let said = stdout(&ran) + &stderr(&ran);
        assert!(!path("unrestricted").exists(), "{mode}: {said}");
        assert!(!path("out/planted").exists(), "{mode}: {said}");
        assert_eq!(ran.status.success(), runs, "{mode}: {said}");
    }
}

/// A program that runs plugins with a home of its own, with uv there.
fn run_at(home_of: &Path, arguments: &[&str]) -> Command {
    let bin = home_of.join(".casparian_flow/uv/bin");
    if !bin.exists() {
        fs::create_dir_all(&bin).unwrap();
        let shared = home().join(".casparian_flow");
        let uv = casparian::plugin::uv(&shared, &AtomicBool::new(false), &mut |_| {}).unwrap();
        copy_program(uv, bin.join("uv"));
    }
    let mut command = program("casparian");
    command.arg("run").args(arguments).env("HOME", home_of);
    command
}

type Variables = &'static [(&'static str, &'static str)];

/// How uv's cache is named: variables and the text of the user's `uv.toml`, where @ is the scene.
const CACHES: &[(&str, Variables, &str)] = &[
    ("variable", &[("UV_CACHE_DIR", "@/cache")], ""),
    ("relative", &[("UV_CACHE_DIR", "cache")], ""),
    ("setting", &[], "cache-dir = \"@/cache\""),
    ("relative setting", &[], "cache-dir = \"cache\""),
    (
        "both",
        &[("UV_CACHE_DIR", "@/cache")],
        "cache-dir = \"@/other\"",
    ),
];

/// Tries to change the cache and to open its lock, and gives what it could do.
const CACHE_CHANGER: &str = r#"
import os, stat
import pyarrow as pa

class Handler:
    def execute(self, path):
        cache = os.path.join(os.path.dirname(path), "cache")
        done = []
        for name in ("planted", "CACHEDIR.TAG"):
            try:
                open(os.path.join(cache, name), "a").close()
                done.append(name)
            except OSError:
                pass
        if stat.S_ISREG(os.stat(os.path.join(cache, ".lock")).st_mode):
            done.append("lock")
        yield pa.table({"done": [" ".join(done)]})
"#;

#[test]
fn plugins_do_not_change_the_cache_of_uv_however_it_is_named() {
    for (name, variables, settings) in CACHES {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let path = |name: &str| root.join(name);
        let text = |text: &str| text.replace('@', root.to_str().unwrap());
        symlink(home().join(".cache/uv"), path("cache")).unwrap();
        fs::create_dir_all(path("home/.config/uv")).unwrap();
        fs::write(path("home/.config/uv/uv.toml"), text(settings)).unwrap();
        fs::write(path("p.py"), CACHE_CHANGER).unwrap();
        fs::write(path("in"), "x").unwrap();
        let mut command = run_at(&path("home"), &["p.py", "in", "-o", "out"]);
        command.current_dir(&root).env_remove("UV_CACHE_DIR");
        for (name, value) in *variables {
            command.env(name, text(value));
        }
        let ran = output(&mut command);
        assert!(ran.status.success(), "{name}: {}", stderr(&ran));
        assert_eq!(done_of(&path("out")), "\n", "{name}");
        assert!(
            !path("other").exists() && !path("home/.cache").exists(),
            "{name}"
        );
    }
}

/// Writes what each line of its input names below the input's folder, and gives what it could not.
const WRITER: &str = r#"
import os
import pyarrow as pa

class Handler:
    def execute(self, path):
        failed = []
        for line in open(path).read().splitlines():
            try:
                target = os.path.join(os.path.dirname(path), line)
                open(target + ".new", "w").close()
                os.rename(target + ".new", target)
            except OSError as error:
                failed.append(line)
        yield pa.table({"done": [" ".join(failed)]})
"#;

/// What is made in the scene, PATH before the system's and HOME there, the input, what its plugin writes, and what of it fails.
struct Beside {
    name: &'static str,
    folders: &'static [&'static str],
    programs: &'static [&'static str],
    path: &'static str,
    home: &'static str,
    input: &'static str,
    writes: &'static [&'static str],
    fails: &'static str,
}

const BESIDE: &[Beside] = &[
    Beside {
        name: "a project with scripts beside its data",
        folders: &["project/data", "project/cache", "home"],
        programs: &["project/tool"],
        path: "@/project",
        home: "home",
        input: "project/data/a",
        writes: &["idx", "../cache/c", "../new"],
        fails: "",
    },
    Beside {
        name: "HOME",
        folders: &["home/data"],
        programs: &["home/tool"],
        path: "@/home",
        home: "home",
        input: "home/data/a",
        writes: &["idx", "../new"],
        fails: "",
    },
    Beside {
        name: "a folder above all",
        folders: &["data", "home"],
        programs: &[],
        path: "/",
        home: "home",
        input: "data/a",
        writes: &["idx", "../new"],
        fails: "",
    },
    Beside {
        name: "programs elsewhere with folders of their own",
        folders: &["data", "tools/state", "home"],
        programs: &["tools/tool"],
        path: "@/tools",
        home: "home",
        input: "data/a",
        writes: &["idx", "../tools/state/x", "../tools/git", "../tools/tool"],
        fails: "../tools/git ../tools/tool",
    },
    Beside {
        name: "a script that begins as a Python in a HOME that is a link",
        folders: &["real/bin", "real/data"],
        programs: &["real/bin/python3-work", "real/bin/python3"],
        path: "@/link/bin",
        home: "link",
        input: "real/data/a",
        writes: &["idx", "../new", "../bin/git"],
        fails: "../bin/git",
    },
    Beside {
        name: "a virtual environment in a project",
        folders: &[
            "project/data",
            "project/bin",
            "project/lib/python3.11",
            "home",
        ],
        programs: &["project/bin/python3", "project/pyvenv.cfg"],
        path: "@/project/bin",
        home: "home",
        input: "project/data/a",
        writes: &[
            "idx",
            "../new",
            "../bin/git",
            "../lib/python3.11/os.py",
            "../pyvenv.cfg",
        ],
        fails: "../bin/git ../lib/python3.11/os.py ../pyvenv.cfg",
    },
];

#[test]
fn plugins_write_beside_their_data_whatever_is_in_path() {
    for case in BESIDE {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let path = |name: &str| root.join(name);
        for folder in case.folders {
            fs::create_dir_all(path(folder)).unwrap();
        }
        for program in case.programs {
            copy_program("/bin/true", path(program));
        }
        if case.home == "link" {
            symlink(path("real"), path("link")).unwrap();
        }
        fs::write(path("p.py"), WRITER).unwrap();
        fs::write(path(case.input), case.writes.join("\n")).unwrap();
        let first = case.path.replace('@', root.to_str().unwrap());
        let mut command = run_at(&path(case.home), &["p.py", case.input, "-o", "out"]);
        command
            .current_dir(&root)
            .env("UV_CACHE_DIR", home().join(".cache/uv"))
            .env("PATH", format!("/usr/bin:/bin:{first}"));
        let ran = output(&mut command);
        assert!(ran.status.success(), "{}: {}", case.name, stderr(&ran));
        assert_eq!(done_of(&path("out")).trim(), case.fails, "{}", case.name);
    }
}

/// As in a container where a service of root works below `/usr`.
#[test]
fn root_writes_beside_data_below_usr() {
    let usr = Path::new("/usr/src");
    if !rustix::process::getuid().is_root() || !usr.is_dir() {
        return;
    }
    let dir = tempfile::tempdir_in(usr).unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::create_dir(path("data")).unwrap();
    fs::write(path("p.py"), WRITER).unwrap();
    let beside = [
        "idx",
        "../new",
        "/usr/casparian-new",
        "/usr/pyvenv.cfg",
        "/usr/bin/casparian-new",
        "/usr/lib/casparian-new",
    ];
    fs::write(path("data/a"), beside.join("\n")).unwrap();
    let mut command = run_at(&path("home"), &["p.py", "data", "-o", "out"]);
    command
        .current_dir(dir.path())
        .env("UV_CACHE_DIR", home().join(".cache/uv"))
        .env("PATH", "/usr/local/bin:/usr/bin:/bin");
    let ran = output(&mut command);
    assert!(ran.status.success(), "{}", stderr(&ran));
    assert_eq!(done_of(&path("out")).trim(), beside[2..].join(" "));
}
