//! What a package does when Python starts in its environment, or when it is imported before the jobs come.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use casparian::plugin::environment::{hash, requirements_lockfile};

use crate::common::*;

/// A package whose import tries what it must not, once in a process and its children.
const PACKAGE: &str = r#"
import ctypes, fcntl, os, shutil, socket, struct, subprocess, sys

DIR = "TARGET"
libc = ctypes.CDLL(None, use_errno=True)

def attempt(action):
    try:
        action()
        return "done"
    except Exception as error:
        return "refused"

def write(path):
    with open(path, "a") as file:
        file.write("x")

def unmount(path):
    if libc.umount2(path.encode(), 2) and libc.umount2(path.encode(), 0):
        raise OSError(ctypes.get_errno(), "umount2")
    write(path + "/unmounted.parquet")

def remount(path):
    if libc.mount(b"none", path.encode(), None, 32 | 4096, None):
        raise OSError(ctypes.get_errno(), "mount")
    write(path + "/remounted.parquet")

def recursive(path):
    """Binds what is mounted around it elsewhere, without what is mounted on it."""
    bound = "/tmp/bound-" + str(os.getpid())
    os.mkdir(bound)
    try:
        if libc.mount(os.path.dirname(path).encode(), bound.encode(), None, 4096, None):
            raise OSError(ctypes.get_errno(), "mount")
        write(bound + "/" + os.path.basename(path) + "/bound.parquet")
    finally:
        libc.umount2(bound.encode(), 2)
        os.rmdir(bound)

def lock(path):
    with open(path) as file:
        if os.fstat(file.fileno()).st_rdev:
            raise PermissionError("it is hidden")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

def lock_an_environment():
    folder = os.path.dirname(sys.prefix)
    lock(os.path.join(folder, next(name for name in os.listdir(folder) if name.endswith(".lock"))))

def linger():
    one = socket.socketpair()[0]
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
    if not struct.unpack("ii", one.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0]:
        raise PermissionError("it has no effect")

def many_namespaces():
    if int(open("/proc/sys/user/max_ipc_namespaces").read()) < 5000:
        raise PermissionError("it has a limit of its own")

def cgroups():
    child = os.fork()
    if child == 0:
        try:
            if libc.unshare(0x10000000 | 0x20000 | 0x2000000):
                os._exit(1)
            os._exit(libc.mount(b"none", b"/tmp", b"cgroup2", 0, None) & 1)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise PermissionError("not mounted")

def others():
    shim = next(word for word in sys.orig_argv if word.endswith("/shim.py"))
    if {"trash", "lock"} & set(os.listdir(os.path.dirname(shim))) == set():
        raise PermissionError("nothing of others is seen")

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name + ":"))

def parents():
    pid, found = os.getppid(), []
    while pid > 1 and len(found) < 2:
        found.append(pid)
        pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
    return found

OUT = DIR + "/out"
ATTACKS = {
    "write output": lambda: write(OUT + "/new.parquet"),
    "write output from the working directory": lambda: write("out/new.parquet"),
    "write output through the parent's directory": lambda: write("../" + os.path.basename(DIR) + "/out/new.parquet"),
    "write output by a descriptor": lambda: os.close(os.open("out/new.parquet", os.O_WRONLY | os.O_CREAT, dir_fd=9)),
    "write by a descriptor": lambda: os.write(8, b"x"),
    "cgroups": cgroups,
    "session of the parent": lambda: os.getsid(0) == os.getsid(os.getppid()) or write("/"),
    "log": lambda: os.readlink("/proc/self/fd/2").startswith("pipe:") and write("/"),
    "unmount": lambda: unmount(OUT),
    "remount": lambda: remount(OUT),
    "mounts elsewhere": lambda: recursive(OUT),
    "unmount in a shell": lambda: subprocess.run(["umount", "-l", OUT], check=True, stderr=subprocess.DEVNULL),
    "write environment": lambda: write(sys.prefix + "/planted"),
    "write installation": lambda: write(os.__file__),
    "folders of others": others,
    "signal parent": lambda: os.kill(parents()[0], 0),
    "memory of parent": lambda: open(f"/proc/{parents()[0]}/mem", "rb").read(1),
    "folder of parent": lambda: os.listdir(f"/proc/{parents()[0]}/root"),
    "keyring": lambda: libc.syscall(248, b"user", b"x", b"x", 1, -3) > 0 or write("/"),
    "write elsewhere": lambda: write(DIR + "/planted"),
    "read elsewhere": lambda: open(DIR + "/victim").read(),
    "lock an environment": lock_an_environment,
    "lock uv": lambda: lock(os.path.dirname(os.path.dirname(sys.prefix)) + "/uv.lock"),
    "shared memory of others": lambda: os.readlink("/proc/self/ns/ipc") == "IPC" and write("/nowhere/x"),
    "linger": linger,
    "many namespaces": many_namespaces,
    "network": lambda: socket.socket(socket.AF_INET).close(),
}
RESULTS = {name: attempt(attack) for name, attack in ATTACKS.items()}
RESULTS["no new privileges"] = status("NoNewPrivs")
RESULTS["filters"] = status("Seccomp")
"#;

const PLUGIN: &str = r#"
import evilpre
import pyarrow as pa
class Handler:
    def execute(self, path):
        yield pa.table({"attack": list(evilpre.RESULTS), "result": list(evilpre.RESULTS.values())})
"#;

/// Makes the package a wheel, which Python imports at its start, too.
const WHEEL: &str = r#"
import sys, zipfile
folder, source = sys.argv[1], sys.argv[2].replace("TARGET", sys.argv[1])
with zipfile.ZipFile(folder + "/evilpre-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("evilpre.py", source)
    wheel.writestr("evilpre.pth", "import evilpre\n")
    info = "evilpre-1.0.dist-info/"
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: evilpre\nVersion: 1.0\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(info + "RECORD", "")
"#;

/// What is possible in the modes "off", "on" and "strict".
const TABLE: &[(&str, [&str; 3])] = &[
    ("write output", ["done", "refused", "refused"]),
    (
        "write output from the working directory",
        ["done", "refused", "refused"],
    ),
    (
        "write output through the parent's directory",
        ["done", "refused", "refused"],
    ),
    ("write output by a descriptor", ["", "refused", "refused"]),
    ("write by a descriptor", ["", "refused", "refused"]),
    ("cgroups", ["", "refused", "refused"]),
    ("session of the parent", ["", "refused", "refused"]),
    ("log", ["refused", "refused", "refused"]),
    ("unmount", ["refused", "refused", "refused"]),
    ("remount", ["", "refused", "refused"]),
    ("mounts elsewhere", ["", "refused", "refused"]),
    ("unmount in a shell", ["refused", "refused", "refused"]),
    ("write environment", ["done", "refused", "refused"]),
    ("write installation", ["", "refused", "refused"]),
    ("folders of others", ["done", "refused", "refused"]),
    ("signal parent", ["done", "refused", "refused"]),
    ("memory of parent", ["", "refused", "refused"]),
    ("folder of parent", ["done", "refused", "refused"]),
    ("keyring", ["", "refused", "refused"]),
    ("write elsewhere", ["done", "done", "refused"]),
    ("read elsewhere", ["done", "done", "refused"]),
    ("lock an environment", ["done", "refused", "refused"]),
    ("lock uv", ["", "refused", "refused"]),
    ("shared memory of others", ["", "done", "done"]),
    ("linger", ["done", "refused", "refused"]),
    ("many namespaces", ["", "refused", ""]),
    ("network", ["done", "done", "refused"]),
    ("no new privileges", ["", "1", "1"]),
    ("filters", ["", "2", "2"]),
];

/// The plugin's text, with the package as a wheel in the folder.
fn with_package(dir: &Path, package: &str, table: &str, plugin: &str) -> String {
    let mut wheel = Command::new(python());
    wheel.args(["-c", WHEEL, dir.to_str().unwrap(), package]);
    let made = output(&mut wheel);
    assert!(made.status.success(), "{}", stderr(&made));
    format!(
        "# /// script\n# dependencies = [\"pyarrow\", \"evilpre @ file://{}\"]\n# [tool.casparian]\n# preload = [\"evilpre\"]\n# {table}\n# ///\n{plugin}",
        dir.join("evilpre-1.0-py3-none-any.whl").display()
    )
}

/// A command with descriptors of a file and of a folder.
fn with_descriptors(command: &Command, dir: &Path, user: Option<u32>) -> Command {
    let script = format!("exec 8>>{0}/descriptor 9<{0}; exec \"$@\"", dir.display());
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, "sh"]).arg(command.get_program());
    shell.args(command.get_args()).current_dir(dir);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    if let Some(user) = user {
        shell.uid(user).gid(user);
    }
    shell
}

/// A run; what came of the package's tries, and its output.
fn attack(
    dir: &Path,
    cache: &Path,
    options: &[&str],
    own: &str,
    user: Option<u32>,
) -> BTreeMap<String, String> {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    for name in ["victim", "in"] {
        std::fs::write(path(name), "x").unwrap();
    }
    // "done" where the package is in another one.
    let ipc = std::fs::read_link("/proc/self/ns/ipc").unwrap();
    let package = PACKAGE.replace("IPC\"", &format!("{}\"", ipc.display()));
    let script = with_package(dir, &package, own, PLUGIN);
    std::fs::write(path("p.py"), script).unwrap();
    let mut command = program("casparian");
    if let Some(user) = user {
        let copy = dir.join("casparian");
        crate::copy_program(command.get_program(), &copy);
        command = Command::new(copy);
        command.env("PATH", "/usr/bin:/bin");
        for entry in std::fs::read_dir(dir).unwrap() {
            std::os::unix::fs::chown(entry.unwrap().path(), Some(user), Some(user)).unwrap();
        }
        std::os::unix::fs::chown(dir, Some(user), Some(user)).unwrap();
        std::os::unix::fs::chown(cache, Some(user), Some(user)).unwrap();
        command.env("UV_CACHE_DIR", cache);
    } else {
        command.env("UV_CACHE_DIR", home().join(".cache/uv"));
    }
    // An environment of its own, which the package may change.
    command.env("HOME", dir);
    command.args(["run", &path("p.py"), &path("in"), "-o", &path("out")]);
    command.args(options).current_dir(dir);
    let done = output(&mut with_descriptors(&command, dir, user));
    assert!(done.status.success(), "{}{}", stdout(&done), stderr(&done));
    let out = dir.join("out");
    let read = "import sys, pyarrow.parquet as pq\nfor row in pq.read_table(sys.argv[1]).to_pylist(): print(row['attack'], row['result'], sep='|')";
    let files = visible_files(&out);
    let ours = files
        .iter()
        .filter(|file| file.parent().unwrap().file_name().unwrap() == "p");
    let mut command = Command::new(python());
    let shown = output(command.args(["-c", read]).args(ours));
    let mut results: BTreeMap<String, String> = stdout(&shown)
        .lines()
        .filter_map(|line| line.split_once('|'))
        .map(|(name, result)| (name.to_owned(), result.to_owned()))
        .collect();
    results.insert("files".to_owned(), files.len().to_string());
    results
}

#[test]
fn code_of_an_environment_is_held_from_its_first_line() {
    let cases: &[(&[&str], &str, usize)] = &[
        (&["--sandbox", "off"], "", 0),
        (&["--sandbox", "on"], "", 1),
        (&["--sandbox", "on", "--plugin-start", "spawn"], "", 1),
        (&["--sandbox", "strict"], "", 2),
        (&["--sandbox", "strict", "--plugin-start", "spawn"], "", 2),
        (&["--sandbox", "on"], "sandbox = \"strict\"", 2),
        (&["--sandbox", "off"], "sandbox = \"strict\"", 2),
    ];
    // Of the user who is not root; filled by the first of these runs.
    let cache = tempfile::tempdir().unwrap();
    for (options, own, mode) in cases {
        let users = match (mode, options.len()) {
            (1 | 2, 2) if own.is_empty() => &[None, Some(1234)],
            _ => &[None][..],
        };
        for user in users {
            let dir = tempfile::tempdir().unwrap();
            let results = attack(dir.path(), cache.path(), options, own, *user);
            for (name, expected) in TABLE {
                let expected = expected[*mode];
                let got = &results[*name];
                assert!(
                    expected.is_empty() || got == expected,
                    "{options:?} {own} {user:?}: {name}: {got}"
                );
            }
            // Without a sandbox of the worker's, environments are built without one.
            if *mode > 0 && options[1] != "off" {
                let files = &results["files"];
                assert_eq!(files, "1", "{options:?} {own} {user:?}");
            }
        }
    }
}

/// What the package says on the control socket of its interpreter, in a process that stays.
const LIAR: &str = r#"
import os, socket, stat, sys, time
MESSAGES = [MESSAGE]
found = []
for fd in map(int, os.listdir("/proc/self/fd")):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            found.append(socket.socket(fileno=os.dup(fd)))
    except OSError:
        pass
if "casparian_liar" not in os.environ and any("--warm" in word for word in sys.orig_argv) and os.fork() == 0:
    while True:
        for one in found:
            for message in MESSAGES:
                try:
                    one.send(message)
                except OSError:
                    time.sleep(0.01)
"#;

#[test]
fn whatever_a_fork_server_sends_the_worker_serves_others() {
    let pid = std::process::id();
    let own = format!("b'{{\"started\": 1, \"pid\": {pid}}}'");
    let cases = [
        "b'{\"pong\": 1}'",
        "b'{\"ready\": true}'",
        "b'{\"started\": 1, \"pid\": -1}'",
        "*(b'{\"failed\": %d, \"message\": \"no\"}' % n for n in range(40))",
        "*(b'{\"started\": %d, \"pid\": 1}' % n for n in range(40))",
        "*(b'{\"started\": %d, \"pid\": 1073741824}' % n for n in range(40))",
        "b'{\"exited\": 2, \"code\": 0}', b'{\"failed\": 3, \"message\": \"no\"}'",
        "b'x' * 100000",
        &own,
    ];
    let good = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";
    for messages in cases {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "good", good);
        let package = LIAR.replace("MESSAGE]", &format!("{messages}]"));
        let liar = dir.path().join("liar.py");
        with_package(dir.path(), &package, "", good);
        std::fs::write(&liar, good).unwrap();
        casparian_ok(&[
            "deploy",
            liar.to_str().unwrap(),
            "--database",
            database.to_str().unwrap(),
        ]);
        // `deploy` takes no package of this host, and earlier releases did.
        let wheel = dir.path().join("evilpre-1.0-py3-none-any.whl");
        let wheel = format!("evilpre @ file://{}", wheel.display());
        let lockfile = requirements_lockfile(&[wheel], None, &["evilpre".to_owned()]);
        let of_liar = "UPDATE cf_plugin_manifest SET artifact_hash = NULL, env_hash";
        sql(
            &database,
            &format!(
                "INSERT INTO cf_plugin_environment (hash, lockfile_content) VALUES ('{0}', '{lockfile}'); \
                 {of_liar} = '{0}' WHERE plugin_name = 'liar'",
                hash(&lockfile)
            ),
        );
        let inputs: Vec<_> = (0..8).map(|n| dir.path().join(format!("in{n}"))).collect();
        for input in &inputs {
            std::fs::write(input, "x").unwrap();
        }
        submit(&database, "liar", &inputs);
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let mut worker = worker(&endpoint, &dir.path().join("out"), &["--slots", "2"]);
        worker.line_with("fork server");
        for job in submit(&database, "good", &inputs) {
            let job = ended(&database, job);
            assert_eq!(job["status"], "COMPLETED", "{messages}: {job}");
            assert_eq!(job["attempt"], 1, "{messages}: {job}");
        }
        worker.signal("-TERM");
        assert_eq!(worker.wait(), Some(0), "{messages}");
    }
}

#[test]
fn an_interpreter_that_names_itself_in_any_bytes_works() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let package = "with open('/proc/self/comm', 'wb') as file: file.write(b'\\xff) Z 1')\n";
    let plugin = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";
    std::fs::write(path("p.py"), with_package(dir.path(), package, "", plugin)).unwrap();
    std::fs::write(path("in"), "").unwrap();
    let mut command = program("casparian");
    let done = output(command.args(["run", &path("p.py"), &path("in"), "-o", &path("out")]));
    assert!(done.status.success(), "{}{}", stdout(&done), stderr(&done));
}

#[test]
fn an_interpreter_that_has_not_begun_ends_with_its_worker() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let pid = path("pid");
    let package = format!(
        "import os, sys, time\nif '--warm' in sys.orig_argv:\n    open({pid:?} + '.new', 'w').write(str(os.getpid()))\n    os.rename({pid:?} + '.new', {pid:?})\n    time.sleep(1000)\n"
    );
    let plugin = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";
    std::fs::write(path("p.py"), with_package(dir.path(), &package, "", plugin)).unwrap();
    std::fs::write(path("in"), "").unwrap();
    let mut command = program("casparian");
    command.args(["run", &path("p.py"), &path("in"), "-o", &path("out")]);
    let mut run = Background::start(&mut command);
    let number = until("the package is imported", || {
        std::fs::read_to_string(&pid).ok()
    });
    let process = format!("/proc/{number}");
    assert!(Path::new(&process).exists());
    run.signal("-KILL");
    run.wait();
    until("the interpreter has ended", || {
        (!Path::new(&process).exists()).then_some(())
    });
}
