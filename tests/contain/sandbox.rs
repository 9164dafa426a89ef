//! What a plugin can do to others of its user, by `--sandbox`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::*;
use crate::copy_program;

/// Does what its input names, and gives "done" or the name of the error.
const ATTACKER: &str = r#"
import ctypes, fcntl, os, resource, shutil, signal, socket, struct, subprocess, sys, threading, time
import pyarrow as pa

own_folder = os.path.dirname(os.environ["BRIDGE_SOCKET"])
runtime = os.path.dirname(own_folder)

def parent(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])

def write(path):
    with open(path, "a") as file:
        file.write("x")

def call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result

def limits_of(pid):
    resource.prlimit(pid, resource.RLIMIT_CORE, resource.prlimit(pid, resource.RLIMIT_CORE))

def affinity_of(pid):
    os.sched_setaffinity(pid, os.sched_getaffinity(pid))

def priority_of(kind, who):
    os.setpriority(kind, who, os.getpriority(kind, who))

def scheduler_of(pid):
    os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
    os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))

def normal_scheduler_of_a_thread():
    """As glibc's pthread_setschedparam does it for the caller."""
    failed = []
    def of_itself():
        try:
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_OTHER, os.sched_param(0))
        except OSError as error:
            failed.append(error)
    thread = threading.Thread(target=of_itself)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]

def attributes_of(pid):
    call(314, pid, struct.pack("IIQiIQQQ", 48, 0, 0, os.getpriority(os.PRIO_PROCESS, pid), 0, 0, 0, 0), 0)

def io_priority_of(pid):
    call(251, 1, pid, call(252, 1, pid))

def rewrite(path):
    with open(path, "r+") as file:
        text = file.read()
        file.write(text)

def rename(path):
    os.rename(path, path + ".moved")
    os.rename(path + ".moved", path)

def rename_without_mounts(path):
    """In a mount namespace of its own, all mounts of which it has given up."""
    folder = os.open(os.path.dirname(path), os.O_PATH)
    name = os.path.basename(path)
    ids = os.getuid(), os.getgid()
    child = os.fork()
    if child == 0:
        try:
            os.mkdir("root")
            call(272, 0x10000000 | 0x20000)
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.mount(b"none", b"root", b"tmpfs", 0, None):
                os._exit(1)
            os.chdir("root")
            call(155, b".", b".")
            call(166, b".", 2)
            os.rename(name, name + ".moved", src_dir_fd=folder, dst_dir_fd=folder)
            os.rename(name + ".moved", name, src_dir_fd=folder, dst_dir_fd=folder)
            os._exit(0)
        except OSError:
            pass
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise PermissionError("not renamed")

def move_to(folder):
    write("moved")
    shutil.move("moved", folder + "/casparian-moved-" + str(os.getpid()))
    os.unlink(folder + "/casparian-moved-" + str(os.getpid()))

def pool():
    import multiprocessing
    with multiprocessing.Pool(2) as pool:
        pool.map(abs, [1, 2])

def file_flags(path):
    with open(path, "rb") as file:
        flags = bytearray(8)
        fcntl.ioctl(file, 0x80086601, flags)
        fcntl.ioctl(file, 0x40086602, flags)

def lease(path):
    with open(path, "rb") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)

def changed_descriptor(path):
    with open(path, "rb") as file:
        os.fchmod(file.fileno(), 0o644)

def standard_input():
    os.fchmod(0, os.fstat(0).st_mode & 0o7777)

def user_namespace():
    child = os.fork()
    if child == 0:
        try:
            call(272, 0x10000000)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise PermissionError("none")

def pseudo_terminal():
    own, other = os.openpty()
    os.write(other, b"x")
    assert os.read(own, 1) == b"x" and os.ttyname(other).startswith("/dev/pts/")
    os.close(own)
    os.close(other)

def terminals_of_others():
    """The test has opened some."""
    if set(os.listdir("/dev/pts")) <= {"ptmx"}:
        raise PermissionError("nothing of others is seen")

def serve_file_system():
    """In namespaces of its own, where it may mount."""
    os.mkdir("served")
    user, group = os.getuid(), os.getgid()
    child = os.fork()
    if child == 0:
        try:
            call(272, 0x10000000 | 0x20000)
            for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
                with open("/proc/self/" + name, "w") as file:
                    file.write(text)
            device = os.open("/dev/fuse", os.O_RDWR)
            options = f"fd={device},rootmode=40000,user_id={user},group_id={group}".encode()
            libc = ctypes.CDLL(None, use_errno=True)
            os._exit(1 if libc.mount(b"x", b"served", b"fuse", 0, options) else 0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise PermissionError("not mounted")

def metadata(path):
    os.chmod(path, 0o600)
    os.utime(path, (1, 1))
    os.chown(path, os.getuid(), -1)
    os.setxattr(path, "user.a", b"b")
    os.removexattr(path, "user.a")

def copies():
    write("copied")
    metadata("copied")
    shutil.copy2("copied", "copy")
    os.mkdir("private", 0o700)
    os.chmod("private", 0o755)

def own(*changes):
    for change in changes:
        for pid in (0, os.getpid()):
            change(pid)

def shell(command):
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr)

def others():
    known = {os.path.basename(os.getcwd()), os.path.basename(os.environ["BRIDGE_SOCKET"])}
    found = set(os.listdir(runtime)) - {"shim.py", os.path.basename(own_folder)}
    if found | set(os.listdir(own_folder)) - known == set():
        raise PermissionError("nothing of others is seen")

def other_workers():
    if set(os.listdir(os.path.dirname(runtime))) == {os.path.basename(runtime)}:
        raise PermissionError("nothing of others is seen")

def attacks(out, path):
    worker = parent(parent(os.getpid()))
    interpreter = parent(os.getpid())
    victim = os.path.dirname(out) + "/victim"
    return {
        "write output": lambda: write(out + "/new.parquet"),
        "remove output": lambda: os.rename(out + "/.casparian", out + "/moved"),
        "rename folder of output": lambda: rename(os.path.dirname(out)),
        "rename folder of output without mounts": lambda: rename_without_mounts(os.path.dirname(out)),
        "rename home of environments": lambda: rename(sys.prefix.partition("/.casparian_flow")[0]),
        "rename link to output": lambda: rename(os.path.dirname(out) + "/link"),
        "move to another folder": lambda: move_to("/tmp"),
        "multiprocessing": pool,
        "mode of another file": lambda: os.chmod(victim, 0o644),
        "mode of another file by descriptor": lambda: changed_descriptor(victim),
        "owner of another file": lambda: os.chown(victim, os.getuid(), -1),
        "times of another file": lambda: os.utime(victim),
        "attributes of another file": lambda: os.setxattr(victim, "user.a", b"b"),
        "flags of another file": lambda: file_flags(victim),
        "mode of output": lambda: os.chmod(out, 0o755),
        "mode of standard input": standard_input,
        "truncate another file": lambda: os.truncate(victim, os.path.getsize(victim)),
        "lease on another file": lambda: lease(victim),
        "watch": lambda: call(254, call(294, 0), os.path.dirname(path).encode(), 2),
        "inotify instance": lambda: call(294, 0),
        "contexts of asynchronous I/O": lambda: call(206, 128, ctypes.byref(ctypes.c_ulong())),
        "pseudo-terminal": pseudo_terminal,
        "a hundred pseudo-terminals": lambda: [os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY) for _ in range(100)],
        "pseudo-terminals of others": terminals_of_others,
        "user namespace": user_namespace,
        "serve a file system": serve_file_system,
        "shared memory": lambda: call(29, 0x43415350, 4096, 0o1600),
        "metadata in the work folder": copies,
        "write queue": lambda: write(out + "/.casparian/queue.sqlite"),
        "lock queue": lambda: open(out + "/.casparian/queue.sqlite-shm").close(),
        "write record": lambda: write(out + "/.casparian/owner"),
        "link into output": lambda: os.link(path, out + "/linked"),
        "write environment": lambda: write(sys.prefix + "/pyvenv.cfg"),
        "write installation": lambda: write(os.__file__),
        "write shim": lambda: write(runtime + "/shim.py"),
        "folders of others": others,
        "folders of other workers": other_workers,
        "output through the worker": lambda: write(f"/proc/{worker}/root{out}/new.parquet"),
        "output through init": lambda: write(f"/proc/1/root{out}/new.parquet"),
        "unmount": lambda: shell(f"umount {out}"),
        "remount": lambda: shell(f"mount -o remount,bind,rw {out}"),
        "remount in namespaces": lambda: shell(f"unshare -Urm sh -c 'mount -o remount,bind,rw {out} && touch {out}/new.parquet'"),
        "signal worker": lambda: os.kill(worker, 0),
        "signal interpreter": lambda: os.kill(interpreter, 0),
        "signal init": lambda: os.kill(1, 0),
        "limits of worker": lambda: limits_of(worker),
        "limits of interpreter": lambda: limits_of(interpreter),
        "affinity of worker": lambda: affinity_of(worker),
        "priority of worker": lambda: priority_of(os.PRIO_PROCESS, worker),
        "priority of its group": lambda: priority_of(os.PRIO_PGRP, os.getpgid(worker)),
        "scheduler of worker": lambda: scheduler_of(worker),
        "scheduler parameters of worker": lambda: os.sched_setparam(worker, os.sched_param(0)),
        "scheduler attributes of worker": lambda: attributes_of(worker),
        "input and output priority of worker": lambda: io_priority_of(worker),
        "oom score of worker": lambda: rewrite(f"/proc/{worker}/oom_score_adj"),
        "oom score of interpreter": lambda: rewrite(f"/proc/{interpreter}/oom_score_adj"),
        "settings of the kernel": lambda: open("/proc/sys/kernel/core_pattern", "r+").close(),
        "devices of the kernel": lambda: open("/sys/kernel/mm/transparent_hugepage/enabled", "r+").close(),
        "limits of worker, read": lambda: resource.prlimit(worker, resource.RLIMIT_CORE),
        "own limits, priority and processors": lambda: own(
            limits_of, affinity_of, scheduler_of, attributes_of, io_priority_of,
            lambda pid: priority_of(os.PRIO_PROCESS, pid), lambda pid: priority_of(os.PRIO_PGRP, 0)),
        "programs that change their own": lambda: shell(
            "taskset -c 0 true && nice true && ionice -c 3 true && prlimit --core=0 true"),
        "normal scheduler of a thread": normal_scheduler_of_a_thread,
        "signal all": lambda: os.kill(-1, 0),
        "trace worker": lambda: call(101, 16, worker, 0, 0),
        "memory of worker": lambda: open(f"/proc/{worker}/mem", "rb").read(1),
        "environment of interpreter": lambda: open(f"/proc/{interpreter}/environ", "rb").read(1),
        "keyring": lambda: call(248, b"user", b"x", b"x", 1, -3),
        "write beside input": lambda: write(path + ".beside"),
        "read beside input": lambda: open(os.path.dirname(path) + "/../p.py").read(),
        "temporary file": lambda: write("/tmp/casparian-test-" + str(os.getpid())) or os.unlink("/tmp/casparian-test-" + str(os.getpid())),
        "network": lambda: socket.socket(socket.AF_INET).close(),
        "local sockets": lambda: socket.socketpair(),
        "child": lambda: subprocess.run(["true"], check=True),
        "signal child": lambda: signal_child(),
        "signal child of another user": lambda: signal_child(user=None if os.geteuid() else 1234),
        "work folder": lambda: write("here"),
        "rename between folders": lambda: (os.mkdir("d"), write("f"), os.rename("f", "d/f")),
        "threads": lambda: __import__("concurrent.futures").futures.ThreadPoolExecutor(2).submit(abs, -1).result(),
    }

def signal_child(user=None):
    child = subprocess.Popen(["sleep", "100"], user=user)
    child.send_signal(signal.SIGTERM)
    child.wait()

class Handler:
    def execute(self, path):
        name, out = open(path).read().split("|")
        try:
            attacks(out, path)[name]()
            result = "done"
        except OSError as error:
            result = "refused"
        except Exception as error:
            result = type(error).__name__ + ": " + str(error)
        yield pa.table({"attack": [name], "result": [result]})
"#;

/// What the modes "on" and "strict" let a plugin do.
const TABLE: &[(&str, bool, bool)] = &[
    ("write output", false, false),
    ("remove output", false, false),
    ("rename folder of output", false, false),
    ("rename folder of output without mounts", false, false),
    ("rename home of environments", false, false),
    ("rename link to output", false, false),
    ("move to another folder", true, false),
    ("multiprocessing", true, false),
    ("mode of another file", true, false),
    ("mode of another file by descriptor", true, false),
    ("owner of another file", true, false),
    ("times of another file", true, false),
    ("attributes of another file", true, false),
    ("flags of another file", true, false),
    ("mode of output", false, false),
    ("mode of standard input", true, false),
    ("truncate another file", true, false),
    ("lease on another file", false, false),
    ("watch", true, false),
    ("inotify instance", true, false),
    ("contexts of asynchronous I/O", false, false),
    ("pseudo-terminal", true, false),
    ("a hundred pseudo-terminals", false, false),
    ("pseudo-terminals of others", false, false),
    ("user namespace", true, false),
    ("serve a file system", false, false),
    ("shared memory", true, true),
    ("metadata in the work folder", true, true),
    ("write queue", false, false),
    ("lock queue", false, false),
    ("write record", false, false),
    ("link into output", false, false),
    ("write environment", false, false),
    ("write installation", false, false),
    ("write shim", false, false),
    ("folders of others", false, false),
    ("folders of other workers", false, false),
    ("output through the worker", false, false),
    ("output through init", false, false),
    ("unmount", false, false),
    ("remount", false, false),
    ("remount in namespaces", false, false),
    ("signal worker", false, false),
    ("signal interpreter", false, false),
    ("signal init", false, false),
    ("limits of worker", false, false),
    ("limits of interpreter", false, false),
    ("affinity of worker", false, false),
    ("priority of worker", false, false),
    ("priority of its group", false, false),
    ("scheduler of worker", false, false),
    ("scheduler parameters of worker", false, false),
    ("scheduler attributes of worker", false, false),
    ("input and output priority of worker", false, false),
    ("oom score of worker", false, false),
    ("oom score of interpreter", false, false),
    ("settings of the kernel", false, false),
    ("devices of the kernel", false, false),
    ("limits of worker, read", true, true),
    ("own limits, priority and processors", true, true),
    ("programs that change their own", true, true),
    ("normal scheduler of a thread", true, true),
    ("trace worker", false, false),
    ("memory of worker", false, false),
    ("environment of interpreter", false, false),
    ("keyring", false, false),
    ("write beside input", true, false),
    ("read beside input", true, false),
    ("temporary file", true, false),
    ("network", true, false),
    ("local sockets", true, true),
    ("child", true, true),
    ("signal child", true, true),
    ("signal child of another user", true, true),
    ("work folder", true, true),
    ("rename between folders", true, true),
    ("threads", true, true),
];

/// Changes of what is not a file's content.
const METADATA: &[&str] = &[
    "mode of another file",
    "mode of another file by descriptor",
    "owner of another file",
    "times of another file",
    "attributes of another file",
    "flags of another file",
    "mode of standard input",
    "lease on another file",
];

/// What is possible without a sandbox, and harms nobody here.
const POSSIBLE: &[&str] = &[
    "write output",
    "link into output",
    "folders of others",
    "folders of other workers",
    "output through the worker",
    "signal worker",
    "signal interpreter",
    "environment of interpreter",
    "write beside input",
    "network",
];

/// Who runs it.
#[derive(Clone, Copy, Debug)]
enum By {
    /// The user of the test.
    Us,
    /// A user who is not root.
    User(u32),
    /// A process that may have no mount namespaces.
    Unprivileged,
}

/// The program, as [`By::Unprivileged`] runs it.
fn unprivileged(program: &str) -> Command {
    let script = "echo 0 > /proc/sys/user/max_user_namespaces\n\
        exec setpriv --bounding-set=-all --inh-caps=-all \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c", script, "sh"]);
    command.arg(program).env("HOME", home());
    command
}

/// A run of attacks; the results by name.
fn attack(dir: &Path, names: &[&str], mode: &str, start: &str, by: By) -> BTreeMap<String, String> {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (inputs, out) = (dir.join("in"), dir.join("out"));
    fs::create_dir(&inputs).unwrap();
    fs::write(dir.join("p.py"), ATTACKER).unwrap();
    fs::write(dir.join("victim"), "x").unwrap();
    for (number, name) in names.iter().enumerate() {
        let text = format!("{name}|{}", out.display());
        fs::write(inputs.join(format!("{number:02}")), text).unwrap();
    }
    let mut command = program("casparian");
    if let By::User(user) = by {
        for folder in ["", "in", "p.py", "victim"] {
            std::os::unix::fs::chown(dir.join(folder), Some(user), Some(user)).unwrap();
        }
        let copy = dir.join("casparian");
        copy_program(command.get_program(), &copy);
        command = Command::new(copy);
        command
            .uid(user)
            .gid(user)
            .env("HOME", dir)
            .env("PATH", "/usr/bin:/bin");
    }
    if matches!(by, By::Unprivileged) {
        command = unprivileged(command.get_program().to_str().unwrap());
    }
    std::os::unix::fs::symlink(".", dir.join("link")).unwrap();
    // A pseudo-terminal, as other programs of the user have them.
    let _terminal = fs::File::options().read(true).write(true).open("/dev/ptmx");
    command.args(["run", &path("p.py"), &path("in"), "-o", &path("link/out")]);
    command.args(["--sandbox", mode, "--plugin-start", start, "--slots", "2"]);
    let output = output(&mut command);
    assert!(
        output.status.success(),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
    let lacks_namespaces = matches!(by, By::Unprivileged) && mode != "off";
    let reports = stderr(&output).contains("sandbox: no mount namespace");
    assert_eq!(
        reports,
        lacks_namespaces,
        "{mode} {by:?}: {}",
        stderr(&output)
    );
    for made in ["new.parquet", "linked"] {
        let made = out.join(made);
        let is_open = mode == "off" || (mode == "on" && matches!(by, By::Unprivileged));
        assert_eq!(made.exists(), is_open, "{mode}: {}", made.display());
        let _ = fs::remove_file(made);
    }
    let files = visible_files(&out);
    assert_eq!(files.len(), names.len());
    let read = "import sys, pyarrow.parquet as pq\nfor path in sys.argv[1:]:\n    for row in pq.read_table(path).to_pylist(): print(row['attack'], row['result'], sep='|')";
    let mut command = Command::new(python());
    let read = crate::common::output(command.args(["-c", read]).args(files));
    assert!(read.status.success(), "{}", stderr(&read));
    stdout(&read)
        .lines()
        .filter_map(|line| line.split_once('|'))
        .map(|(name, result)| (name.to_owned(), result.to_owned()))
        .collect()
}

fn check(mode: &str, start: &str, by: By) {
    let dir = tempfile::tempdir().unwrap();
    let mut names: Vec<&str> = match mode {
        "off" => POSSIBLE.to_vec(),
        _ => TABLE.iter().map(|(name, ..)| *name).collect(),
    };
    // It belongs to root.
    names.retain(|name| *name != "mode of standard input" || matches!(by, By::Us));
    let results = attack(dir.path(), &names, mode, start, by);
    let mut wrong = Vec::new();
    let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap();
    if segments.contains(&0x4341_5350.to_string()) {
        wrong.push("a segment of shared memory is left".to_owned());
    }
    for (name, on, strict) in TABLE.iter().filter(|(name, ..)| names.contains(name)) {
        let allowed = match mode {
            "off" => true,
            "on" => *on,
            _ => *strict,
        };
        let expected = if allowed { "done" } else { "refused" };
        if results[*name] != expected {
            wrong.push(format!("{name}: {}, not {expected}", results[*name]));
        }
    }
    assert!(wrong.is_empty(), "{mode} {start} {by:?}: {wrong:#?}");
}

#[test]
fn a_plugin_reaches_what_its_mode_allows() {
    for start in ["warm", "spawn"] {
        for mode in ["off", "on", "strict"] {
            check(mode, start, By::Us);
        }
    }
}

/// Another user has no rights over mounts, and gets them by a user namespace.
#[test]
fn plugins_of_a_user_who_is_not_root_reach_no_more() {
    if !rustix::process::getuid().is_root() {
        // The other test is this one.
        return;
    }
    for mode in ["on", "strict"] {
        check(mode, "warm", By::User(65_534));
    }
}

/// Only root can map the IDs of others in a user namespace.
#[test]
fn a_user_who_is_not_root_has_only_its_own_user_and_group_in_a_sandbox() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let (user, further) = (1234, 5678);
    for (mode, expected) in [
        ("off", "0 0 [1234, 5678] 5678"),
        ("on", "65534 65534 [1234, 65534] 22"),
        ("strict", "65534 65534 [1234, 65534] 22"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let plugin = "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        \
            found = os.stat(path)\n        open('own', 'w')\n        try:\n            os.chown('own', -1, 5678)\n            \
            changed = os.stat('own').st_gid\n        except OSError as error:\n            changed = error.errno\n        \
            raise Exception('seen ' + \
            f'{found.st_uid} {found.st_gid} {sorted(os.getgroups())} {changed} end')\n";
        fs::write(path("p.py"), plugin).unwrap();
        fs::write(path("in"), "").unwrap();
        copy_program(program("casparian").get_program(), path("casparian"));
        std::os::unix::fs::chown(dir.path(), Some(user), Some(user)).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user.to_string(), "--regid", &user.to_string()]);
        command.args(["--groups", &format!("{user},{further}")]);
        command.arg(path("casparian")).arg("run");
        command.args([path("p.py"), path("in")]).arg("-o");
        command.arg(path("out")).args(["--sandbox", mode]);
        command.env("HOME", dir.path()).env("PATH", "/usr/bin:/bin");
        let output = output(&mut command);
        let text = stdout(&output) + &stderr(&output);
        assert!(
            text.contains(&format!("seen {expected} end")),
            "{mode}: {text}"
        );
    }
}

#[test]
fn without_namespaces_the_rest_applies_and_is_reported() {
    let worker = program("casparian-worker");
    let mut check = unprivileged(worker.get_program().to_str().unwrap());
    let output = output(check.arg("--check-sandbox"));
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = stdout(&output);
    assert!(said.contains("mount namespace no"), "{said}");
    assert!(said.contains("can change the output folder"), "{said}");

    let dir = tempfile::tempdir().unwrap();
    let refused = [
        "signal worker",
        "limits of worker",
        "limits of interpreter",
        "affinity of worker",
        "priority of worker",
        "scheduler of worker",
        "trace worker",
        "memory of worker",
        "environment of interpreter",
        "output through the worker",
        "keyring",
        "contexts of asynchronous I/O",
    ];
    let allowed = ["write output", "link into output", "network", "child"];
    let names = [refused.as_slice(), &allowed].concat();
    let results = attack(dir.path(), &names, "on", "warm", By::Unprivileged);
    for (names, expected) in [(refused.as_slice(), "refused"), (&allowed, "done")] {
        for name in names {
            assert_eq!(results[*name], expected, "{name}");
        }
    }

    // What mounts and namespaces do elsewhere, the filter does, in the work folder too.
    let dir = tempfile::tempdir().unwrap();
    let strictly = METADATA
        .iter()
        .chain(&["shared memory", "metadata in the work folder", "watch"])
        .chain(&["inotify instance", "contexts of asynchronous I/O"]);
    let names: Vec<&str> = strictly
        .copied()
        .chain(["child", "work folder", "threads"])
        .collect();
    let results = attack(dir.path(), &names, "strict", "warm", By::Unprivileged);
    for (index, name) in names.iter().enumerate() {
        let expected = if index < METADATA.len() + 5 {
            "refused"
        } else {
            "done"
        };
        assert_eq!(results[*name], expected, "{name}");
    }
}

#[test]
fn a_plugin_can_ask_to_be_held_more_closely() {
    for (mode, end) in [("off", "\n"), ("on", "\n"), ("on", "\r\n"), ("on", "\r")] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let beside = path("beside");
        let source = format!(
            "# /// script\n# dependencies = [\"pyarrow\"]\n# [tool.casparian]\n\
             # sandbox = \"strict\"\n# ///\n\
             class Handler:\n    def execute(self, path):\n        open({beside:?}, 'w')\n"
        );
        fs::write(path("p.py"), source.replace('\n', end)).unwrap();
        fs::write(path("in"), "").unwrap();
        let output = casparian(&[
            "run",
            &path("p.py"),
            &path("in"),
            "-o",
            &path("out"),
            "--sandbox",
            mode,
        ]);
        assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
        assert!(
            stdout(&output).contains("Read-only file system"),
            "{}",
            stdout(&output)
        );
        assert!(!Path::new(&beside).exists(), "{end:?}");
    }
}

/// A plugin that gives one row, with lines of `[tool.casparian]`.
fn one_row(settings: &str) -> String {
    format!(
        "# /// script\n# dependencies = [\"pyarrow\"]\n# [tool.casparian]\n{settings}# ///\n\
         import pyarrow as pa\n\nclass Handler:\n    def execute(self, path):\n        \
         yield pa.table({{'x': [1]}})\n"
    )
}

#[test]
fn the_sandbox_of_each_job_is_reported_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "plain", &one_row(""));
    let held = dir.path().join("held.py");
    fs::write(&held, one_row("# sandbox = \"strict\"\n")).unwrap();
    let location = database.to_str().unwrap();
    casparian_ok(&["deploy", held.to_str().unwrap(), "--database", location]);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let mut number = 0;
    let mut run = |plugin: &str| {
        number += 1;
        let input = dir.path().join(format!("{plugin}{number}"));
        fs::write(&input, "x").unwrap();
        let id = submit(&database, plugin, &[input])[0];
        let job = ended(&database, id);
        assert_eq!(job["status"], "COMPLETED", "{job}");
        let found = job["attempts"][0]["sandbox"].as_str();
        let found = found.unwrap_or_else(|| panic!("{job}")).to_owned();
        let text = casparian_ok(&["job", &id.to_string(), "--database", location]);
        let line = format!("{:21}{found}\n", "sandbox");
        assert!(text.contains(&line), "{text}");
        found
    };
    let out = dir.path().join("out");
    for (mode, plain, held) in [
        ("off", "off", "strict"),
        ("on", "on", "strict"),
        ("strict", "strict", "strict"),
    ] {
        let mut worker = worker(&endpoint, &out, &["--sandbox", mode]);
        assert_eq!(run("plain"), plain, "{mode}");
        assert_eq!(run("held"), held, "{mode}");
        worker.signal("-TERM");
        assert_eq!(worker.wait(), Some(0));
    }
    let without = program("casparian-worker");
    let without = without.get_program().to_str().unwrap();
    let mut without = unprivileged(without);
    without.args(["--connect", &endpoint, "--output"]).arg(&out);
    let _worker = Background::start(&mut without);
    assert_eq!(run("plain"), "on without namespaces");
    assert_eq!(run("held"), "strict without namespaces");

    let text = casparian_ok(&[
        "run",
        held.to_str().unwrap(),
        held.to_str().unwrap(),
        "-o",
        dir.path().join("run").to_str().unwrap(),
        "--json",
    ]);
    let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["files"][0]["sandbox"], "strict", "{text}");
}

/// The memory file with a plugin's source is the same one for all its processes.
#[test]
fn a_plugin_cannot_take_its_source_from_the_next_job() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("in")).unwrap();
    for name in ["in/1", "in/2", "in/3"] {
        fs::write(path(name), name).unwrap();
    }
    let source = "import os\nclass Handler:\n    def execute(self, path):\n\
        \u{20}       for fd in map(int, os.listdir('/proc/self/fd')):\n\
        \u{20}           try:\n\
        \u{20}               if 'memfd' in os.readlink(f'/proc/self/fd/{fd}'):\n\
        \u{20}                   os.lseek(fd, 0, os.SEEK_END)\n\
        \u{20}                   os.fchmod(fd, 0)\n\
        \u{20}           except OSError:\n                pass\n";
    fs::write(path("p.py"), source).unwrap();
    // Root reads whatever the mode.
    let user = 65_534;
    for name in ["", "in", "p.py"] {
        std::os::unix::fs::chown(dir.path().join(name), Some(user), Some(user)).unwrap();
    }
    copy_program(program("casparian").get_program(), path("casparian"));
    let mut command = Command::new(path("casparian"));
    command.uid(user).gid(user).env("HOME", dir.path());
    command.args(["run", &path("p.py"), &path("in"), "-o", &path("out")]);
    let output = output(command.args(["--slots", "1"]).env("PATH", "/usr/bin:/bin"));
    assert!(output.status.success(), "{}", stdout(&output));
}

/// What a plugin gets of a database beside which its input is.
const INTRUDER: &str = r#"
import os
import pyarrow as pa

def write(path):
    with open(path, "r+b") as file:
        file.truncate(0)

class Handler:
    def execute(self, path):
        folder = os.path.dirname(path)
        name = folder + "/queue.sqlite"
        attacks = {
            "write": lambda: write(name),
            "read": lambda: open(name, "rb").read(16) or os.stat("/missing"),
            "truncate wal": lambda: write(name + "-wal"),
            "lock shm": lambda: open(name + "-shm", "rb").read(1) or os.stat("/missing"),
            "rename wal": lambda: os.rename(name + "-wal", folder + "/away"),
            "journal": lambda: open(name + "-journal", "wb").write(b"x") and os.path.getsize(name + "-journal") or os.stat("/missing"),
            "lock": lambda: write(name + ".sentinel-lock"),
            "beside": lambda: open(folder + "/beside", "wb").close(),
            "input": lambda: open(path).read(),
            "elsewhere": lambda: open(os.path.dirname(folder) + "/written", "wb").close(),
        }
        done = []
        for what, attack in attacks.items():
            try:
                attack()
                done.append(what)
            except OSError:
                pass
        yield pa.table({"done": [" ".join(done)]})
"#;

#[test]
fn a_protected_database_is_out_of_reach() {
    for (mode, done) in [("on", "input elsewhere"), ("strict", "input")] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("queue");
        fs::create_dir(&folder).unwrap();
        let database = database_with(&folder, "p", INTRUDER);
        let renamed = folder.join("queue.sqlite");
        assert_eq!(database.file_name(), renamed.file_name());
        let input = folder.join("in");
        fs::write(&input, "x").unwrap();
        let jobs = submit(&database, "p", &[input]);
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let out = dir.path().join("out");
        let protect = database.to_str().unwrap();
        let _worker = worker(&endpoint, &out, &["--protect", protect, "--sandbox", mode]);
        let job = ended(&database, jobs[0]);
        assert_eq!(job["status"], "COMPLETED", "{job}");
        let read = "import sys, pyarrow.parquet as pq\nprint(*pq.read_table(sys.argv[1])['done'].to_pylist())";
        let mut command = Command::new(python());
        let read = output(command.args(["-c", read]).args(visible_files(&out)));
        assert_eq!(stdout(&read).trim(), done, "{mode}: {}", stderr(&read));
    }
}

#[test]
fn a_worker_whose_program_is_replaced_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let source = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";
    let database = database_with(dir.path(), "p", source);
    let (_sentinel, endpoint) = sentinel(&database, &[]);
    let copy = dir.path().join("casparian-worker");
    copy_program(program("casparian-worker").get_program(), &copy);
    let mut command = Command::new(&copy);
    command.env("HOME", home()).args(["--connect", &endpoint]);
    command.args(["--plugin-start", "spawn", "--output"]);
    let _worker = Background::start(command.arg(dir.path().join("out")));
    for round in 0..2 {
        let input = dir.path().join(format!("in{round}"));
        fs::write(&input, "x").unwrap();
        let job = ended(&database, submit(&database, "p", &[input])[0]);
        assert_eq!(job["status"], "COMPLETED", "{job}");
        assert_eq!(job["attempt"], 1, "{job}");
        let other = dir.path().join("other");
        fs::write(&other, "").unwrap();
        fs::rename(&other, &copy).unwrap();
    }
}

#[test]
fn a_secret_key_is_hidden_by_whatever_path_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let line = casparian_ok(&["keygen", &path("sentinel")]);
    let public = line.split_whitespace().next().unwrap().to_owned();
    casparian_ok(&["keygen", &path("worker")]);
    let source = "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        key = open(os.path.dirname(path) + '/worker').read()\n        yield pa.table({'size': [len(key)]})\n";
    let database = database_with(dir.path(), "p", source);
    fs::write(path("in"), "x").unwrap();
    let jobs = submit(&database, "p", &[dir.path().join("in")]);
    let secret = path("sentinel");
    let more = ["--curve-secret-key", &secret, "--authorize-any-key"];
    let (_sentinel, endpoint) = sentinel(&database, &more);
    let mut command = program("casparian-worker");
    command.args(["--connect", &endpoint, "--curve-server-key", &public]);
    command.args(["--curve-secret-key", "worker", "--output", "out"]);
    let _worker = Background::start(command.current_dir(dir.path()));
    let job = ended(&database, jobs[0]);
    assert_eq!(job["status"], "COMPLETED", "{job}");
    let read = read_parquet(&dir.path().join("out"))[0].to_string();
    assert!(read.contains("\"size\":0"), "{read}");
}

/// The key files of a sentinel of the same user, wherever they are, and those that the worker names.
#[test]
fn key_files_are_neither_read_nor_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("keys")).unwrap();
    let server = casparian_ok(&["keygen", &path("keys/sentinel")]);
    let listed = casparian_ok(&["keygen", &path("keys/worker")]);
    casparian_ok(&["keygen", &path("other")]);
    let publisher = casparian_ok(&["keygen", "--publisher", &path("publisher")]);
    // In a folder that is protected as one.
    fs::create_dir(path("folder")).unwrap();
    casparian_ok(&["keygen", "--publisher", &path("folder/publisher")]);
    casparian_ok(&["init", &path("folder/queue.sqlite")]);
    let names = [
        ("authorized", &listed),
        ("publishers", &publisher),
        ("server.pub", &server),
    ];
    for (name, line) in names {
        fs::write(path(name), format!("{line}\n")).unwrap();
    }
    let source = format!(
        "import os, shutil\nimport pyarrow as pa\nROOT = {:?} + '/'\nclass Handler:\n    def execute(self, path):\n        did = []\n        for name in ('keys/sentinel', 'keys/worker', 'publisher', 'folder/publisher', 'folder/queue.sqlite'):\n            if open(ROOT + name, 'rb').read(): did.append('read ' + name)\n        def append(name): open(ROOT + name, 'a').write('x')\n        def replace(name): shutil.copy(ROOT + 'other.pub', ROOT + '~'); os.rename(ROOT + '~', ROOT + name)\n        def remove(name): os.remove(ROOT + name)\n        def mode(name): os.chmod(ROOT + name, 0o600)\n        def owner(name): os.chown(ROOT + name, os.getuid(), os.getgid())\n        for name in ('authorized', 'publishers', 'server.pub', 'keys/sentinel'):\n            # What is hidden is the null device.\n            for change in (append, replace, remove, mode, owner)[name == 'keys/sentinel':]:\n                try:\n                    change(name)\n                    did.append(change.__name__ + ' ' + name)\n                except OSError: pass\n        print(did)\n        yield pa.table({{'did': [1 + len(did)], 'other': [int(bool(open(ROOT + 'other').read()))]}})\n",
        dir.path()
    );
    let database = database_with(dir.path(), "p", &source);
    fs::write(path("in"), "x").unwrap();
    let jobs = submit(&database, "p", &[dir.path().join("in")]);
    let (key, list, publishers) = (
        path("keys/sentinel"),
        path("authorized"),
        path("publishers"),
    );
    let more = ["--curve-secret-key", &key, "--authorized-keys", &list];
    let more = [&more[..], &["--trusted-publishers", &publishers]].concat();
    let (_sentinel, endpoint) = sentinel(&database, &more);
    let (server, key, protect) = (path("server.pub"), path("keys/worker"), path("publisher"));
    let more = ["--curve-server-key", &server, "--curve-secret-key", &key];
    let folder = path("folder");
    let more = [&more[..], &["--protect", &protect, "--protect", &folder]].concat();
    let _worker = worker(&endpoint, &dir.path().join("out"), &more);
    let job = ended(&database, jobs[0]);
    assert_eq!(job["status"], "COMPLETED", "{job}");
    let read = read_parquet(&dir.path().join("out"))[0].to_string();
    assert!(read.contains("\"did\":1"), "{read} {job}");
    // What no sentinel and no worker names is as the user may.
    assert!(read.contains("\"other\":1"), "{read}");
}

/// A worker's interpreters live long: sentinels start with other keys meanwhile, and lists are replaced.
#[test]
fn key_files_that_come_later_are_kept_from_the_next_job() {
    for start in ["warm", "spawn"] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        casparian_ok(&["keygen", &path("key")]);
        let listed = casparian_ok(&["keygen", &path("w")]);
        let write = |name: &str| fs::write(path(name), format!("{listed}\n")).unwrap();
        write("list");
        let source = format!(
            "import os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        try:\n            open({:?}, 'a')\n            did = 10\n        except OSError: did = 20\n        yield pa.table({{'x': [did + sum(len(open(key).read(1)) for key in ({:?}, {:?}, {:?}) if os.path.exists(key))]}})\n",
            dir.path().join("list"),
            dir.path().join("key"),
            dir.path().join("folder/new"),
            dir.path().join("w")
        );
        fs::create_dir(path("folder")).unwrap();
        let database = database_with(dir.path(), "p", &source);
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let out = dir.path().join("out");
        let _worker = worker(
            &endpoint,
            &out,
            &["--plugin-start", start, "--protect", &path("folder")],
        );
        let run = |number: usize| {
            let input = dir.path().join(format!("in{number}"));
            fs::write(&input, number.to_string()).unwrap();
            let jobs = submit(&database, "p", &[input]);
            let job = ended(&database, jobs[0]);
            assert_eq!(job["status"], "COMPLETED", "{job}");
            read_parquet(&out)[0]["sums"]["x"].as_u64()
        };
        assert_eq!(run(0), Some(12), "{start}");
        let other = path("other.sqlite");
        casparian_ok(&["init", &other]);
        let (key, list) = (path("key"), path("list"));
        let more = ["--curve-secret-key", &key, "--authorized-keys", &list];
        let (_other, others) = crate::common::sentinel(Path::new(&other), &more);
        assert_eq!(run(1), Some(12 + 21), "{start}");
        write("new");
        fs::rename(path("new"), path("list")).unwrap();
        assert_eq!(run(2), Some(12 + 2 * 21), "{start}");
        // The number of its inode may be given again.
        fs::remove_file(path("list")).unwrap();
        write("list");
        assert_eq!(run(3), Some(12 + 3 * 21), "{start}");
        // A key that comes into a folder of --protect.
        casparian_ok(&["keygen", &path("folder/new")]);
        assert_eq!(run(4), Some(12 + 4 * 21), "{start}");
        // The key of another worker.
        let (server, key) = (path("key.pub"), path("w"));
        let more = ["--curve-server-key", &server, "--curve-secret-key", &key];
        let _second = worker(&others, &dir.path().join("second"), &more);
        assert_eq!(run(5), Some(12 + 4 * 21 + 20), "{start}");
    }
}

/// Names that mean another file in each process, and what took the place of a list since.
#[test]
fn odd_key_files_of_a_sentinel_harm_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    casparian_ok(&["keygen", &path("s")]);
    let listed = casparian_ok(&["keygen", &path("w")]);
    for name in ["stdin", "list"] {
        fs::write(path(name), format!("{listed}\n")).unwrap();
    }
    let source = format!(
        "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        did = []\n        for name in ('stdin', 'list'):\n            try:\n                open({:?} + '/' + name, 'a')\n                did.append(name)\n            except OSError: pass\n        print(did)\n        yield pa.table({{'x': [len(did)]}})\n",
        dir.path()
    );
    fs::write(path("p.py"), source).unwrap();
    fs::write(path("in"), "x").unwrap();
    let mut sentinels = Vec::new();
    for list in ["/dev/stdin", "/proc/self/fd/0", &path("list")] {
        let database = path(&format!("{}.sqlite", sentinels.len()));
        casparian_ok(&["init", &database]);
        let mut sentinel = Command::new("sh");
        sentinel.args(["-c", "exec \"$@\" < \"$0\"", &path("stdin")]);
        sentinel.arg(program("casparian-sentinel").get_program());
        sentinel.args(["--bind", "tcp://127.0.0.1:0", "--database", &database]);
        sentinel.args(["--curve-secret-key", &path("s"), "--authorized-keys", list]);
        let mut sentinel = Background::start(&mut sentinel);
        sentinel.line_with("listens on ");
        sentinels.push(sentinel);
    }
    let run = |out: &str, want: &str| {
        let out = path(out);
        casparian_ok(&["run", &path("p.py"), &path("in"), "--output", &out]);
        let read = read_parquet(Path::new(&out))[0].to_string();
        assert!(read.contains(want), "{read}");
    };
    run("kept", "\"x\":0");
    for target in ["/", "/dev/null"] {
        fs::remove_file(path("list")).unwrap();
        std::os::unix::fs::symlink(target, path("list")).unwrap();
        run(&format!("linked{}", target.len()), "\"x\":");
    }
}

/// The output folder, mounted at a second place.
struct Alias(PathBuf);

impl Drop for Alias {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn other_mounts_of_the_output_folder_are_held_alike() {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: only root can mount a folder at a second place");
        return;
    }
    for whole in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("base/out")).unwrap();
        fs::create_dir(path("alias")).unwrap();
        let (mounted, seen) = match whole {
            true => ("base", "alias/out"),
            false => ("base/out", "alias"),
        };
        let mut mount = Command::new("mount");
        mount.arg("--bind").args([path(mounted), path("alias")]);
        assert!(mount.status().unwrap().success());
        let _alias = Alias(path("alias"));
        let plugin = format!(
            "import pyarrow as pa\nSEEN = {:?}\nclass Handler:\n    def execute(self, path):\n        did = []\n        for name in ('x', '.casparian/x'):\n            try:\n                open(SEEN + '/' + name, 'w')\n                did.append(name)\n            except OSError: pass\n        try:\n            if open(SEEN + '/.casparian/queue.sqlite', 'rb').read(6): did.append('queue')\n        except OSError: pass\n        assert not did, did\n        return pa.table({{'x': [1]}})\n",
            path(seen)
        );
        fs::write(path("p.py"), plugin).unwrap();
        fs::write(path("in"), "").unwrap();
        let mut command = program("casparian");
        command.arg("run").args([path("p.py"), path("in")]);
        let output = command.arg("-o").arg(path("base/out")).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{whole} {}", stderr(&output));
    }
}

/// The worker's folder and the devices of the machine, too.
#[test]
fn other_mounts_of_the_workers_folder_and_of_devices_show_nothing() {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: only root can mount a folder at a second place");
        return;
    }
    for start in ["warm", "spawn"] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut aliases = Vec::new();
        for (of, at) in [(path("tmp"), path("alias")), ("/dev".into(), path("dev"))] {
            fs::create_dir_all(&of).unwrap();
            fs::create_dir(&at).unwrap();
            let mut mount = Command::new("mount");
            assert!(
                mount
                    .arg("--bind")
                    .args([&of, &at])
                    .status()
                    .unwrap()
                    .success()
            );
            aliases.push(Alias(at));
        }
        let plugin = format!(
            "import glob, os\nimport pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        found = glob.glob({:?} + '/casparian-*/*/*')\n        assert not found, found\n        real, fuse = os.stat('/dev/null').st_rdev, {:?}\n        assert not os.path.exists(fuse) or os.stat(fuse).st_rdev == real\n        return pa.table({{'x': [1]}})\n",
            path("alias"),
            path("dev/fuse"),
        );
        fs::write(path("p.py"), plugin).unwrap();
        fs::write(path("in"), "").unwrap();
        let mut command = program("casparian");
        command
            .arg("run")
            .args([path("p.py"), path("in")])
            .arg("-o");
        command.arg(path("out")).args(["--plugin-start", start]);
        let output = command.env("TMPDIR", path("tmp")).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{start} {}", stderr(&output));
    }
}
