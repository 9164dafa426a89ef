//! Building environments: programs that others have planted, code of dependencies, locks and folders
//! of other users.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use casparian::plugin::environment::{hash, requirements_lockfile};

use crate::common::*;

const OTHER: u32 = 65_533;

const PLUGIN: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        \
    yield pa.table({'x': [1]})\n";

fn program_at(path: &Path, script: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A folder with a plugin, an input, and a home that borrows uv.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shared = home().join(".casparian_flow");
        let uv = casparian::plugin::uv(&shared, &AtomicBool::new(false), &mut |_| {}).unwrap();
        let bin = dir.path().join("home/.casparian_flow/uv/bin");
        fs::create_dir_all(&bin).unwrap();
        symlink(uv, bin.join("uv")).unwrap();
        fs::write(dir.path().join("p.py"), PLUGIN).unwrap();
        fs::write(dir.path().join("in"), "x").unwrap();
        Scene { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program that works in the folder.
    fn program(&self, name: &str) -> Command {
        let mut command = program(name);
        command
            .current_dir(self.dir.path())
            .env("HOME", self.path("home"))
            .env("UV_CACHE_DIR", home().join(".cache/uv"));
        command
    }

    fn casparian(&self, arguments: &[&str]) -> Command {
        let mut command = self.program("casparian");
        command.args(arguments);
        command
    }

    fn run(&self) -> Command {
        self.casparian(&["run", "p.py", "in", "-o", "out"])
    }

    /// The environment of the plugin, whose interpreter only leaves a mark.
    fn plant_environment(&self, folder: &Path) {
        let hash = hash(&requirements_lockfile(&[], None, &[]));
        let mark = self.path("planted");
        let script = format!(": > {mark:?}\nexit 1");
        let place = folder.join("venvs").join(hash);
        program_at(&place.join("bin/python"), &script);
        let packages = place.join("lib/python3.11/site-packages/pyarrow");
        fs::create_dir_all(&packages).unwrap();
        fs::write(packages.join("__init__.py"), "").unwrap();
        fs::write(place.join("pyvenv.cfg"), "version_info = 3.11.7\n").unwrap();
    }

    /// Runs the plugin, with a stack as threads have, until nothing is in some folders of its home: each start
    /// removes leftovers for a bounded time.
    fn run_until_gone(&self, folders: &[&str]) {
        let is_empty = |name: &&str| {
            let folder = self.path("home/.casparian_flow").join(name);
            fs::read_dir(folder).map_or(0, Iterator::count) == 0
        };
        for _ in 0..200 {
            let mut limited = Command::new("sh");
            limited.args(["-c", "ulimit -s 2048; exec \"$@\"", "sh"]);
            let run = self.run();
            limited.arg(run.get_program()).args(run.get_args());
            limited.current_dir(self.path(""));
            let variables = run.get_envs();
            limited.envs(variables.filter_map(|(name, value)| Some((name, value?))));
            let ran = output(&mut limited);
            assert!(ran.status.success(), "{}", stderr(&ran));
            if folders.iter().all(is_empty) {
                return;
            }
        }
        panic!("{folders:?} have leftovers");
    }

    fn assert_not_run(&self, case: &str) {
        assert!(!self.path("planted").exists(), "{case}");
    }
}

/// What of PATH is the working directory, or below it, is never searched.
#[test]
fn programs_of_the_working_directory_are_never_run() {
    for path in [
        None,
        Some(""),
        Some("."),
        Some("bin"),
        Some(":bin:.:/usr/bin:/bin:"),
    ] {
        let scene = Scene::new();
        for name in [
            "uv",
            "python3",
            "python",
            "sh",
            "bin/uv",
            "bin/python3",
            "bin/sh",
        ] {
            let script = format!(": > {:?}\nexit 1", scene.path("planted"));
            program_at(&scene.path(name), &script);
        }
        let mut command = scene.run();
        match path {
            Some(path) => command.env("PATH", path),
            None => command.env_remove("PATH"),
        };
        let output = output(&mut command);
        scene.assert_not_run(&format!("{path:?}"));
        if path.is_some_and(|path| path.contains('/')) {
            assert!(output.status.success(), "{path:?}: {}", stderr(&output));
        } else {
            assert_eq!(output.status.code(), Some(1), "{path:?}");
            let reason = stderr(&output);
            assert!(
                reason.contains("PATH is not set or has no absolute"),
                "{reason}"
            );
        }
    }
}

/// Without a HOME there is no folder of environments, least of all that of the working directory.
#[test]
fn without_an_absolute_home_no_environment_is_used() {
    let commands: &[&[&str]] = &[
        &["run", "p.py", "in", "-o", "out"],
        &["worker", "--connect", "tcp://127.0.0.1:9", "-o", "out"],
        &["env", "list"],
        &["env", "prune"],
        &["deploy", "p.py", "--database", "q.db"],
    ];
    let scene = Scene::new();
    scene.plant_environment(&scene.path(".casparian_flow"));
    fs::create_dir(scene.path("sub")).unwrap();
    assert!(
        output(&mut scene.casparian(&["init", "q.db"]))
            .status
            .success()
    );
    for home in [None, Some(""), Some("."), Some("sub/..")] {
        for arguments in commands {
            let mut command = scene.casparian(arguments);
            match home {
                Some(home) => command.env("HOME", home),
                None => command.env_remove("HOME"),
            };
            let output = output(&mut command);
            let case = format!("{home:?} {arguments:?}");
            assert_eq!(output.status.code(), Some(1), "{case}");
            let reason = stderr(&output);
            assert!(reason.contains("HOME is"), "{case}: {reason}");
            assert!(
                reason.contains("set it to an absolute path"),
                "{case}: {reason}"
            );
            scene.assert_not_run(&case);
        }
    }
}

/// How a folder of the home can be another user's.
const FOLDERS: &[(&str, Option<u32>, u32)] = &[
    ("home", None, 0o777),
    ("home", Some(OTHER), 0o755),
    ("home/.casparian_flow", None, 0o757),
    ("home/.casparian_flow", Some(OTHER), 0o1777),
    ("home/.casparian_flow/venvs", Some(OTHER), 0o700),
    ("home/.casparian_flow/venvs", None, 0o707),
    ("home/.casparian_flow/venvs/HASH", Some(OTHER), 0o755),
    ("home/.casparian_flow/venvs/HASH", None, 0o777),
    ("home/.casparian_flow/venvs/HASH/bin", Some(OTHER), 0o755),
];

#[test]
fn environments_that_another_user_could_change_are_refused_by_name() {
    let is_root = rustix::process::getuid().is_root();
    let hash = hash(&requirements_lockfile(&[], None, &[]));
    for (folder, owner, mode) in FOLDERS {
        if owner.is_some() && !is_root {
            continue;
        }
        let scene = Scene::new();
        scene.plant_environment(&scene.path("home/.casparian_flow"));
        let place = scene.path(&folder.replace("HASH", &hash));
        chown(&place, *owner, None).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(*mode)).unwrap();
        let output = output(&mut scene.run());
        let case = format!("{folder} {owner:?} {mode:o}");
        assert_eq!(output.status.code(), Some(1), "{case}");
        let reason = stderr(&output);
        assert!(
            reason.contains(&format!("{}: ", place.display())),
            "{case}: {reason}"
        );
        scene.assert_not_run(&case);
    }
}

/// A dependency whose build code tries what it must not.
const BACKEND: &str = r#"
import json, os, subprocess, sys, zipfile
HERE = os.path.dirname(os.path.abspath(__file__))
def attempt(action):
    try:
        action()
        return "done"
    except Exception as error:
        return f"refused: {error}"
def build_wheel(folder, config_settings=None, metadata_directory=None):
    with open("TARGET/target.json") as file:
        target = json.load(file)
    results = {
        "variables": dict(os.environ),
        "cwd": os.getcwd(),
        "stdin": os.readlink("/proc/self/fd/0"),
        "write output": attempt(lambda: open(target["out"] + "/planted", "w")),
        "write record": attempt(lambda: open(target["out"] + "/.casparian/planted", "w")),
        "write protected": attempt(lambda: open(target["protected"], "a")),
        "signal": attempt(lambda: os.kill(target["pid"], 0)),
        "unmount": attempt(lambda: subprocess.run(["umount", target["out"]], check=True)),
    }
    left = subprocess.Popen(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE)
    results["left"] = int(left.stdout.readline())
    with open("TARGET/results.json", "w") as file:
        json.dump(results, file)
    exec(target["more"])
    name = "evil-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("evil.py", "")
        info = "evil-1.0.dist-info/"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(info + "RECORD", "")
    return name
"#;

/// Adds the dependency to a scene, and makes the plugin need it. Its build code runs `more` at last.
fn add_dependency(scene: &Scene, more: &str) {
    let folder = scene.path("evil-1.0");
    fs::create_dir(&folder).unwrap();
    let target = scene.path("").display().to_string();
    let backend = BACKEND.replace("TARGET/", &target);
    fs::write(folder.join("backend.py"), backend).unwrap();
    let project = "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n\
        [project]\nname = \"evil\"\nversion = \"1.0\"\n";
    fs::write(folder.join("pyproject.toml"), project).unwrap();
    let archive = scene.path("evil-1.0.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(scene.path("")).arg("-czf").arg(&archive);
    assert!(tar.arg("evil-1.0").status().unwrap().success());
    let script = format!(
        "# /// script\n# dependencies = [\"evil @ file://{}\"]\n# ///\n{PLUGIN}",
        archive.display()
    );
    fs::write(scene.path("p.py"), script).unwrap();
    fs::create_dir(scene.path("out")).unwrap();
    fs::write(scene.path("protected"), "").unwrap();
    let target = serde_json::json!({
        "out": scene.path("out"), "protected": scene.path("protected"), "pid": std::process::id(),
        "more": more,
    });
    fs::write(scene.path("target.json"), target.to_string()).unwrap();
}

/// Variables of the worker, and whether build code gets them.
const VARIABLES: &[(&str, bool)] = &[
    ("MY_SECRET_TOKEN", false),
    ("AWS_SECRET_ACCESS_KEY", false),
    ("PYTHONPATH", false),
    ("LD_LIBRARY_PATH", false),
    ("SSH_AUTH_SOCK", false),
    ("UV_PUBLISH_TOKEN", false),
    ("UV_HTTP_TIMEOUT", true),
    ("no_proxy", true),
    ("NETRC", true),
];

#[test]
fn the_build_code_of_a_dependency_is_contained() {
    for mode in ["off", "on"] {
        let scene = Scene::new();
        add_dependency(&scene, "");
        let mut command = scene.run();
        command.args(["--sandbox", mode, "--protect", "protected"]);
        for (name, _) in VARIABLES {
            command.env(name, "60");
        }
        let output = output(&mut command);
        let text = fs::read_to_string(scene.path("results.json"));
        let text = text.unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
        let results: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        for (name, is_kept) in VARIABLES {
            let has = results["variables"].get(name).is_some();
            assert_eq!(has, *is_kept, "{mode}: {name}: {text}");
        }
        assert_eq!(results["stdin"], "/dev/null", "{mode}");
        let left = format!("/proc/{}/stat", results["left"]);
        let is_left = fs::read_to_string(left).is_ok_and(|stat| !stat.contains(") Z "));
        assert!(!is_left, "{mode}: a process is left");
        for attack in [
            "write output",
            "write record",
            "write protected",
            "signal",
            "unmount",
        ] {
            let result = results[attack].as_str().unwrap();
            let expected = if mode == "on" { "refused" } else { "" };
            assert!(result.starts_with(expected), "{attack}: {result}");
        }
        assert!(
            scene
                .path("home/.casparian_flow/tmp")
                .read_dir()
                .unwrap()
                .next()
                .is_none()
        );
    }
}

/// The output folder is read-only for tools, but for what they must write to.
#[test]
fn a_new_home_may_be_the_output_folder_or_lie_in_it() {
    for name in ["out", "out/home"] {
        let scene = Scene::new();
        fs::create_dir_all(scene.path(name)).unwrap();
        let uv = scene.path("home/.casparian_flow/uv/bin");
        let mut command = scene.run();
        command.env("HOME", scene.path(name));
        command.env("PATH", format!("{}:/usr/bin:/bin", uv.display()));
        let done = output(&mut command);
        assert!(done.status.success(), "{name}: {}", stderr(&done));
    }
}

#[test]
fn without_builds_a_dependency_that_has_no_wheel_is_refused_by_name() {
    let scene = Scene::new();
    add_dependency(&scene, "");
    let output = output(scene.run().arg("--no-build"));
    assert_eq!(output.status.code(), Some(1));
    let reason = stderr(&output);
    for part in ["evil", "--no-build allows dependencies with wheels alone"] {
        assert!(reason.contains(part), "{reason}");
    }
    assert!(!scene.path("results.json").exists());
}

/// Lock files of a run and of its environment.
const LOCKS: &[&str] = &[
    "out/.casparian/run.lock",
    "home/.casparian_flow/venvs/.HASH.lock",
    "home/.casparian_flow/venvs/.evict.lock",
];

/// Who can open a lock file can keep it locked: all of them are their owner's alone, whatever the umask.
#[test]
fn lock_files_can_be_opened_by_their_owner_alone() {
    let hash = hash(&requirements_lockfile(&[], None, &[]));
    for exist in [false, true] {
        let scene = Scene::new();
        if exist {
            for lock in LOCKS {
                let path = scene.path(&lock.replace("HASH", &hash));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, "").unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            }
        }
        for arguments in [
            &["run", "p.py", "in", "-o", "out"][..],
            &["env", "prune", "--keep", "20G"],
        ] {
            let mut command = Command::new("sh");
            command.args(["-c", "umask 0; exec \"$@\"", "sh"]);
            command.arg(program("casparian").get_program());
            let asked = scene.casparian(arguments);
            command.args(arguments).current_dir(scene.path(""));
            command.envs(
                asked
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            );
            let output = output(&mut command);
            assert!(output.status.success(), "{}", stderr(&output));
        }
        for lock in LOCKS {
            let path = scene.path(&lock.replace("HASH", &hash));
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{} {exist}", path.display());
        }
    }
}

/// A lock that another user holds by a file that could once be opened is not waited for for ever, and
/// the message names process and user; a lock file of another user is refused.
#[test]
fn locks_that_other_users_hold_are_named_and_given_up() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let hash = hash(&requirements_lockfile(&[], None, &[]));
    let cases = [
        (LOCKS[0], "works on it (process PID of user 65533)"),
        (LOCKS[1], "process PID of user 65533, which holds"),
    ];
    for (lock, reason) in cases {
        let scene = Scene::new();
        let lock = scene.path(&lock.replace("HASH", &hash));
        fs::create_dir_all(lock.parent().unwrap()).unwrap();
        fs::write(&lock, "").unwrap();
        let mut holder = hold(&lock, "SH");
        let refused = output(&mut scene.run());
        assert_eq!(refused.status.code(), Some(1));
        let reason = reason.replace("PID", &holder.pid().to_string());
        let message = stderr(&refused);
        assert!(message.contains(&reason), "{message}");
        holder.kill();
        chown(&lock, Some(OTHER), None).unwrap();
        let message = stderr(&output(&mut scene.run()));
        assert!(message.contains("belongs to user 65533"), "{message}");
    }
}

/// A process of another user that holds a lock and is stopped.
fn hold(path: &Path, kind: &str) -> Background {
    let script = "import fcntl, os, signal, sys\n\
        fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), getattr(fcntl, 'LOCK_' + sys.argv[2]))\n\
        os.setgid(65533); os.setuid(65533)\n\
        print('locked', file=sys.stderr, flush=True)\n\
        os.kill(os.getpid(), signal.SIGSTOP)\n";
    let mut python = Command::new("python3");
    let mut holder = Background::start(python.args(["-c", script]).arg(path).arg(kind));
    holder.line_with("locked");
    holder
}

#[test]
fn an_environment_that_another_user_locks_is_used_all_the_same() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let scene = Scene::new();
    assert!(output(&mut scene.run()).status.success());
    let hash = hash(&requirements_lockfile(&[], None, &[]));
    let mut holder = hold(&scene.path("home/.casparian_flow/venvs").join(hash), "EX");
    let again = output(scene.run().arg("--force"));
    assert!(again.status.success(), "{}", stderr(&again));
    holder.kill();
}

/// A uv on PATH that is older than the one that is installed by us is not used, nor is one that is none.
#[test]
fn an_old_uv_is_not_used() {
    for version in ["uv 0.4.1", "hello"] {
        let scene = Scene::new();
        let mark = scene.path("planted");
        let script =
            format!("[ \"$1\" = --version ] && echo '{version}' && exit\n: > {mark:?}\nexit 1");
        program_at(&scene.path("bin/uv"), &script);
        let path = format!("{}:/usr/bin:/bin", scene.path("bin").display());
        let ran = output(scene.run().env("PATH", path));
        assert!(ran.status.success(), "{}", stderr(&ran));
        scene.assert_not_run(version);
    }
}

/// uv is installed by its hashes: no index can give another one.
#[test]
fn uv_is_installed_by_its_hashes() {
    for is_genuine in [true, false] {
        let scene = Scene::new();
        let home = scene.path("home/.casparian_flow");
        fs::remove_dir_all(home.join("uv")).unwrap();
        let mut run = scene.run();
        if !is_genuine {
            let wheels = scene.path("wheels");
            fs::create_dir(&wheels).unwrap();
            let version = fs::read_to_string(root().join("src/plugin/uv.txt")).unwrap();
            let version = version
                .split("uv==")
                .nth(1)
                .unwrap()
                .split(' ')
                .next()
                .unwrap();
            fs::write(wheels.join(format!("uv-{version}-py3-none-any.whl")), "x").unwrap();
            run.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", &wheels);
        }
        let ran = output(&mut run);
        assert_eq!(ran.status.success(), is_genuine, "{}", stderr(&ran));
        assert_eq!(home.join("uv/bin/uv").exists(), is_genuine);
        if !is_genuine {
            assert!(stderr(&ran).contains("Expected     or"), "{}", stderr(&ran));
        }
    }
}

/// A local package for the plugin of a scene, whose build code runs `attack` when it is asked for metadata and
/// when it is built.
fn add_attack(scene: &Scene, attack: &str) {
    let folder = scene.path("evil");
    fs::create_dir(&folder).unwrap();
    let backend = ATTACK
        .replace("@SCENE@", &scene.path("").display().to_string())
        .replace("    @ATTACK@\n", attack);
    fs::write(folder.join("backend.py"), backend).unwrap();
    let project = "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n\
        [project]\nname = \"evil\"\ndynamic = [\"version\"]\n";
    fs::write(folder.join("pyproject.toml"), project).unwrap();
    let script = "# /// script\n# dependencies = [\"evil @ file:./evil\"]\n# ///\n";
    fs::write(scene.path("p.py"), format!("{script}{PLUGIN}")).unwrap();
    fs::create_dir(scene.path("out")).unwrap();
}

const ATTACK: &str = r#"
import json, os, zipfile
SCENE_FOLDER = "@SCENE@"
HOME = SCENE_FOLDER + "home/.casparian_flow"
OWN = os.path.dirname(os.environ["TMPDIR"])
INFO = "evil-1.0.dist-info"
FILES = {
    "METADATA": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
    "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "RECORD": "",
}
def attempt(action):
    try:
        action()
        return "done"
    except Exception as error:
        return f"refused: {error}"
def attack():
    @ATTACK@
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    os.makedirs(os.path.join(folder, INFO), exist_ok=True)
    for name, text in FILES.items():
        with open(os.path.join(folder, INFO, name), "w") as file:
            file.write(text)
    attack()
    return INFO
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "evil-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("evil.py", "")
        for part, text in FILES.items():
            wheel.writestr(f"{INFO}/{part}", text)
    attack()
    return name
"#;

/// Puts a link to a program of its own in the place of the Python of the environment that is being built.
const REPLACE_PYTHON: &str = r##"
import glob
home = "@SCENE@home/.casparian_flow"
for python in glob.glob(home + "/venvs/.*/it/bin/python"):
    planted = "@SCENE@evil/bin/python3.11"
    os.makedirs(os.path.dirname(planted))
    with open(planted, "w") as file:
        file.write(f"""#!/bin/bash
: > @SCENE@ran
grep -q 'NoNewPrivs:.*0' /proc/self/status && : > @SCENE@unrestricted
(: > @SCENE@out/planted) 2>/dev/null
exec -a "$0" {os.path.realpath(python)} "$@"
""")
    os.chmod(planted, 0o755)
    os.unlink(python)
    os.symlink(planted, python)
"##;

#[test]
fn the_python_that_build_code_puts_into_its_environment_is_restricted() {
    for (mode, is_done) in [("on", true), ("strict", false)] {
        let scene = Scene::new();
        let more = REPLACE_PYTHON.replace("@SCENE@", &scene.path("").display().to_string());
        add_dependency(&scene, &more);
        let run = scene.run();
        // In mode strict the job waits for the environment to be mended.
        let mut command = Command::new("timeout");
        command.arg("40").arg(run.get_program());
        command.args(run.get_args()).args(["--sandbox", mode]);
        command.current_dir(scene.path(""));
        let variables = run.get_envs();
        command.envs(variables.filter_map(|(name, value)| Some((name, value?))));
        let ran = output(&mut command);
        let said = stdout(&ran) + &stderr(&ran);
        assert!(scene.path("ran").exists(), "{mode}: {said}");
        assert!(!scene.path("unrestricted").exists(), "{mode}: {said}");
        assert!(!scene.path("out/planted").exists(), "{mode}: {said}");
        assert_eq!(ran.status.success(), is_done, "{mode}: {said}");
    }
}

/// Files that our programs write for tools, and that build code replaces.
const REPLACE: &str = r#"
    names = ["pyproject.toml", "uv.toml", "setuptools.cfg", "requirements.txt", "uv.txt"]
    for folder in [OWN, os.path.dirname(OWN)]:
        for number, name in enumerate(names):
            path = os.path.join(folder, name)
            victim = SCENE_FOLDER + ["out/kept", "protected"][number % 2]
            attempt(lambda: os.unlink(path))
            attempt(lambda: PUT)
"#;

#[test]
fn what_build_code_puts_at_the_paths_of_our_files_is_neither_followed_nor_opened() {
    for mode in ["off", "on"] {
        for put in ["os.symlink(victim, path)", "os.mkfifo(path)"] {
            let scene = Scene::new();
            add_attack(&scene, &REPLACE.replace("PUT", put));
            for victim in ["out/kept", "protected"] {
                fs::write(scene.path(victim), "kept").unwrap();
            }
            let mut run = scene.run();
            run.args(["--sandbox", mode, "--protect", "protected"]);
            let ran = output(&mut run);
            let case = format!("{mode} {put}: {}", stderr(&ran));
            assert!(ran.status.success(), "{case}");
            for victim in ["out/kept", "protected"] {
                let text = fs::read_to_string(scene.path(victim)).unwrap();
                assert_eq!(text, "kept", "{victim} {case}");
            }
        }
    }
}

/// Puts a link to the output in the place of the folder of built wheels.
const REPLACE_WHEELS: &str = r#"
    for folder in [OWN + "/out", OWN + "/build-0/out"]:
        if os.path.isdir(folder):
            os.rename(folder, folder + "-away")
            os.symlink(SCENE_FOLDER + "out", folder)
"#;

#[test]
fn no_wheel_is_taken_from_where_a_link_of_build_code_leads() {
    let scene = Scene::new();
    add_attack(&scene, REPLACE_WHEELS);
    let wheel = scene.path("out/evil-1.0-py3-none-any.whl");
    fs::write(&wheel, "kept").unwrap();
    let ran = output(&mut scene.run());
    assert_eq!(ran.status.code(), Some(1), "{}", stderr(&ran));
    assert!(stderr(&ran).contains("/out: "), "{}", stderr(&ran));
    assert_eq!(fs::read_to_string(&wheel).unwrap(), "kept");
}

/// What build code tries in the folder of environments.
const AMONG_OTHERS: &str = r#"
    other = HOME + "/tmp/build-other"
    results = {
        "found": os.listdir(HOME + "/tmp"),
        "write other": attempt(lambda: open(other + "/requirements.txt", "a")),
        "create scratch": attempt(lambda: os.mkdir(HOME + "/tmp/build-new")),
        "move scratch": attempt(lambda: os.rename(HOME + "/tmp", HOME + "/t")),
        "move environments": attempt(lambda: os.rename(HOME + "/venvs", HOME + "/v")),
        "move home": attempt(lambda: os.rename(HOME, HOME + "-away")),
        "write uv": attempt(lambda: open(HOME + "/uv/x", "w")),
        "write wheels": attempt(lambda: open(HOME + "/wheels/x", "w")),
        "write resolved": attempt(lambda: open(HOME + "/resolved/x", "w")),
        "write a Python of uv": attempt(lambda: open(os.path.dirname(HOME) + "/.local/share/uv/x", "w")),
        "write the installation": attempt(lambda: open(os.__file__, "a")),
    }
    with open(SCENE_FOLDER + "results.json", "w") as file:
        json.dump(results, file)
"#;

#[test]
fn a_build_finds_its_own_scratch_folder_alone_and_moves_no_folder_of_the_home() {
    let scene = Scene::new();
    add_attack(&scene, AMONG_OTHERS);
    let other = scene.path("home/.casparian_flow/tmp/build-other");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("requirements.txt"), "kept").unwrap();
    let lock = fs::File::open(&other).unwrap();
    lock.lock().unwrap();
    let ran = output(&mut scene.run());
    assert!(ran.status.success(), "{}", stderr(&ran));
    let text = fs::read_to_string(scene.path("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (attack, result) in results.as_object().unwrap() {
        match attack.as_str() {
            "found" => assert!(!text.contains("build-other\""), "{text}"),
            _ => assert!(result.as_str().unwrap().starts_with("refused"), "{text}"),
        }
    }
    let kept = fs::read_to_string(other.join("requirements.txt")).unwrap();
    assert_eq!(kept, "kept");
}

const PLANT_NOTES: &str = r#"
    keys, loot = HOME + "/keys", SCENE_FOLDER + "loot"
    os.makedirs(loot, exist_ok=True)
    attempt(lambda: os.rename(keys, keys + "x"))
    attempt(lambda: os.rmdir(keys))
    attempt(lambda: os.symlink(loot, keys))
    attempt(lambda: os.mkdir(keys))
    for number in range(300):
        attempt(lambda: open(f"{keys}/{number:05}~", "w").close())
    attempt(lambda: os.chmod(keys, 0o777))
"#;

/// Sentinels note their key files there, and workers keep plugins from them.
#[test]
fn build_code_puts_nothing_at_the_paths_of_notes_of_key_files() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    add_attack(&scene, PLANT_NOTES);
    let ran = output(&mut scene.run());
    assert!(ran.status.success(), "{}", stderr(&ran));
    assert!(scene.path("loot").exists(), "the attack ran");
    let keys = scene.path("home/.casparian_flow/keys");
    let found = fs::symlink_metadata(&keys).unwrap();
    assert!(found.is_dir());
    assert_eq!(found.permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(&keys).unwrap().count(), 0);
    // What stood there before is refused by name.
    fs::remove_dir(&keys).unwrap();
    std::os::unix::fs::symlink(scene.path("loot"), &keys).unwrap();
    let refused = output(&mut scene.run());
    assert_eq!(refused.status.code(), Some(1));
    let text = stderr(&refused);
    assert!(text.contains("/keys: it is no folder"), "{text}");
}

const DEEP: &str = r#"
    at = os.open(TOP, os.O_RDONLY)
    for _ in range(15000):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
"#;

#[test]
fn folders_of_any_depth_that_build_code_leaves_are_removed() {
    let scene = Scene::new();
    let once = "\n    if os.path.exists(SCENE_FOLDER + 'once'):\n        return\n    \
        os.mkdir(SCENE_FOLDER + 'once')";
    let attack = DEEP.replace("TOP", "os.environ['TMPDIR']");
    add_attack(&scene, &format!("{once}{attack}"));
    scene.run_until_gone(&["tmp"]);
}

/// What is found at the start among scratch folders and environments.
#[test]
fn leftovers_of_any_kind_hold_up_no_start() {
    let scene = Scene::new();
    let home = scene.path("home/.casparian_flow");
    let hash = hash(&requirements_lockfile(&[], None, &[]));
    let deep = [
        "tmp/build-deep".to_owned(),
        format!("venvs/.{hash}.new-deep"),
    ];
    for name in &deep {
        let top = home.join(name);
        fs::create_dir_all(&top).unwrap();
        let script = DEEP.replace("\n    ", "\n").replace("TOP", "sys.argv[1]");
        let mut python = Command::new("python3");
        python
            .args(["-c", &format!("import os, sys{script}")])
            .arg(top);
        assert!(python.status().unwrap().success());
    }
    for name in ["tmp/build-zz", "resolved/zz", "wheels/zz"] {
        let fifo = home.join(name);
        fs::create_dir_all(fifo.parent().unwrap()).unwrap();
        let made = Command::new("mkfifo").arg(fifo).status().unwrap();
        assert!(made.success());
    }
    let victim = scene.path("victim");
    fs::create_dir(&victim).unwrap();
    symlink(&victim, home.join("tmp/build-link")).unwrap();
    scene.run_until_gone(&["tmp", &deep[1]]);
    assert!(victim.exists());
}
