//! Plugin processes against other jobs of the same worker and sentinel.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::*;

/// Connects to the bridges of other jobs before their own processes do, from their process groups.
const THIEF: &str = r#"
import os, socket, time
import pyarrow as pa

def others():
    own = os.environ["BRIDGE_SOCKET"]
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                words = dict(word.split(b"=", 1) for word in file.read().split(b"\0") if b"=" in word)
        except (OSError, ValueError):
            continue
        path = words.get(b"BRIDGE_SOCKET", b"").decode()
        if path and path != own:
            yield int(pid), path

def steal(until):
    seen = set()
    while time.monotonic() < until:
        for pid, path in others():
            if path in seen:
                continue
            try:
                os.setpgid(0, pid)
                peer = socket.socket(socket.AF_UNIX)
                peer.connect(path)
                peer.sendall(bytes(4))
                seen.add(path)
            except OSError:
                pass

class Handler:
    def execute(self, path):
        until = time.monotonic() + 4
        child = os.fork()
        if child == 0:
            try:
                steal(until)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        yield pa.table({"x": [1]})
"#;

const HONEST: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1, 2]})\n";

#[test]
fn no_process_speaks_for_the_job_of_another() {
    for start in ["warm", "spawn"] {
        let dir = tempfile::tempdir().unwrap();
        let database = database_with(dir.path(), "honest", HONEST);
        let thief = dir.path().join("thief.py");
        std::fs::write(&thief, THIEF).unwrap();
        let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        casparian_ok(&["deploy", &text(&thief), "-d", &text(&database)]);
        let files: Vec<_> = (0..12)
            .map(|number| {
                let file = dir.path().join(format!("in-{number}"));
                std::fs::write(&file, number.to_string()).unwrap();
                file
            })
            .collect();
        let theft = submit(&database, "thief", &files[..1]);
        let honest = submit(&database, "honest", &files[1..]);
        let (_sentinel, endpoint) = sentinel(&database, &[]);
        let out = dir.path().join("out");
        let more = ["--slots", "2", "--plugin-start", start];
        let mut worker = worker(&endpoint, &out, &more);
        for id in honest {
            let done = ended(&database, id);
            assert_eq!(done["status"], "COMPLETED", "{start}: {done}");
            assert_eq!(done["receipt"]["metrics"]["rows"], 2, "{start}: {done}");
        }
        let done = ended(&database, theft[0]);
        assert_eq!(done["status"], "COMPLETED", "{start}: {done}");
        worker.signal("-TERM");
        worker.wait();
    }
}

/// Over the input `00` it poses as a worker to each sentinel that it finds a Unix socket of, and reports
/// success for all jobs that it gets. Gives a line for what came of each try.
const FORGER: &str = r#"
import json, os, socket, struct, time
import pyarrow as pa

def read(peer, size):
    data = b""
    while len(data) < size:
        data += peer.recv(size - len(data)) or end()
    return data

def end():
    raise EOFError

def frame(peer):
    flags = read(peer, 1)[0]
    size = struct.unpack("!Q", read(peer, 8))[0] if flags & 2 else read(peer, 1)[0]
    return flags, read(peer, size)

def message(peer):
    parts = []
    while True:
        flags, body = frame(peer)
        if not flags & 4:
            parts.append(body)
            if not flags & 1:
                return parts

HEAD = struct.Struct("!BBHQI")

def send(peer, opcode, job, payload):
    body = json.dumps(payload).encode()
    head = HEAD.pack(4, opcode, 0, job, len(body))
    size = bytes([0, len(body)]) if len(body) < 256 else struct.pack("!BQ", 2, len(body))
    peer.sendall(bytes([1, len(head)]) + head + size + body)

def command(peer, body):
    peer.sendall(bytes([4, len(body)]) + body)

def forge(name, mechanism):
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(3)
    try:
        peer.connect("\0" + name[1:] if name.startswith("@") else name)
    except OSError as error:
        yield type(error).__name__
        return
    yield "connected"
    try:
        peer.sendall(b"\xff" + bytes(8) + b"\x7f\3\1" + mechanism.ljust(20, b"\0") + bytes(32))
        read(peer, 64)
        text = lambda name, value: bytes([len(name)]) + name + struct.pack("!I", len(value)) + value
        metadata = text(b"Socket-Type", b"DEALER") + text(b"Identity", b"ev" b"il")
        if mechanism == b"NULL":
            command(peer, b"\5READY" + metadata)
            frame(peer)
        elif mechanism == b"PLAIN":
            command(peer, b"\5HELLO\1u\1p")
            frame(peer)
            command(peer, b"\x08INITIATE" + metadata)
            frame(peer)
        else:
            command(peer, b"\5HELLO\1\0" + bytes(72) + bytes(32) + bytes(8) + bytes(80))
            frame(peer)
        send(peer, 1, 0, {"capabilities": ["*"], "worker_id": "ev" "il", "slots": 50})
        until = time.monotonic() + 2
        while time.monotonic() < until:
            parts = message(peer)
            _, opcode, _, job, _ = HEAD.unpack(parts[0])
            if opcode == 2:
                yield "forged"
                send(peer, 5, job, {"status": "SUCCESS", "metrics": {"rows": 7}, "artifacts": []})
    except (OSError, EOFError):
        pass

class Handler:
    def execute(self, path):
        if not path.endswith("00"):
            yield pa.table({"log": ["honest"]})
            return
        own = os.environ["BRIDGE_SOCKET"]
        worker = os.path.dirname(os.path.dirname(own))
        below = os.path.dirname(worker) + "/"
        named = open(path).read()
        lines = [line.split() for line in open("/proc/net/unix", errors="surrogateescape")]
        names = {line[7] for line in lines if len(line) == 8 and line[3] == "00010000"}
        found = sorted(name for name in names if name == named or name.startswith(below))
        log = [f"sockets {len(found) - (own in found)}"]
        for name in found:
            if not name.startswith(worker + "/"):
                for mechanism in (b"NULL", b"PLAIN", b"CURVE") + (b"NULL",) * 50:
                    if "forged" not in log:
                        log += forge(name, mechanism)
        yield pa.table({"log": log})
"#;

/// A folder with the forger, and the inputs `00` to `11`, of which `00` is for the forger itself.
fn forger(dir: &Path, named: &str) -> Vec<PathBuf> {
    std::fs::write(dir.join("forger.py"), FORGER).unwrap();
    std::fs::create_dir(dir.join("in")).unwrap();
    let files = (0..12).map(|number| {
        let file = dir.join(format!("in/{number:02}"));
        let text = if number == 0 {
            named
        } else {
            &file.to_string_lossy()
        };
        std::fs::write(&file, text).unwrap();
        file
    });
    files.collect()
}

/// Checks that each job was run by its worker, and gives what came of the forger's tries.
fn check_unforged(what: &str, database: &Path, out: &Path) -> BTreeSet<String> {
    let rows = "SELECT count(*) FROM cf_processing_queue WHERE status = 'COMPLETED'";
    assert_eq!(sql(database, rows), "12", "{what}");
    let data: Vec<u8> = [database.to_owned(), suffixed(database, "-wal")]
        .iter()
        .flat_map(|file| std::fs::read(file).unwrap_or_default())
        .collect();
    let evil = data.windows(4).filter(|data| data == b"evil").count();
    assert_eq!(evil, 0, "{what}");
    let read = "import sys, pyarrow.parquet as pq\nfor path in sys.argv[1:]:\n    print(*pq.read_table(path)['log'].to_pylist(), sep='\\n')";
    let mut command = Command::new(python());
    let shown = output(command.args(["-c", read]).args(visible_files(out)));
    let shown = stdout(&shown);
    let honest = shown.lines().filter(|line| *line == "honest").count();
    assert_eq!(honest, 11, "{what}: {shown}");
    let lines = shown.lines().filter(|line| *line != "honest");
    lines.map(str::to_owned).collect()
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn no_plugin_speaks_as_the_worker_of_its_run() {
    for (mode, outcome) in [
        ("off", "connected"),
        // Its folder is hidden.
        ("on", "FileNotFoundError"),
        ("strict", "FileNotFoundError"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        forger(dir.path(), "");
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let mut command = program("casparian");
        command
            .args(["run", &path("forger.py"), &path("in"), "-o", &path("out")])
            .args(["--sandbox", mode, "--slots", "1", "--json"])
            .env("TMPDIR", dir.path());
        let done = output(&mut command);
        assert!(
            done.status.success(),
            "{mode}: {}{}",
            stdout(&done),
            stderr(&done)
        );
        let out = dir.path().join("out");
        let tried = check_unforged(mode, &out.join(".casparian/queue.sqlite"), &out);
        // Its run's socket, and none of others.
        assert_eq!(tried, set(&["sockets 1", outcome]), "{mode}");
        assert_eq!(stderr(&done), "", "{mode}");
    }
}

/// Over the input `00` it holds as many connections to its run's socket as it may until the other ten jobs
/// have run.
const HOLDER: &str = r#"
import os, socket, time
import pyarrow as pa

def hold(name, full):
    """Connects again and again for each connection that is closed."""
    held = [None] * 200
    try:
        while True:
            for index, peer in enumerate(held):
                try:
                    if peer is None or peer.recv(1) == b"":
                        held[index] = socket.socket(socket.AF_UNIX)
                        held[index].connect(name)
                        held[index].setblocking(False)
                except BlockingIOError:
                    pass
                except OSError:
                    held[index] = None
            full()
    finally:
        os._exit(1)

def wait(condition):
    until = time.monotonic() + 20
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("the other jobs do not run")
        time.sleep(0.02)

class Handler:
    def execute(self, path):
        done = os.path.dirname(os.path.dirname(path)) + "/done/"
        yield pa.table({"x": [1]})
        if not path.endswith("00"):
            wait(lambda: os.path.exists(done + "00"))
            open(done + os.path.basename(path), "w").close()
            return
        own = os.path.dirname(os.path.dirname(os.environ["BRIDGE_SOCKET"]))
        below = os.path.dirname(own) + "/"
        lines = [line.split() for line in open("/proc/net/unix", errors="surrogateescape")]
        names = {line[7] for line in lines if len(line) == 8 and line[3] == "00010000"}
        name, = (name for name in names if name.startswith(below) and not name.startswith(own + "/"))
        for _ in range(4):
            if os.fork() == 0:
                hold(name, lambda: open(done + "00", "w").close())
        wait(lambda: len(os.listdir(done)) == 11)
"#;

#[test]
fn connections_that_a_plugin_holds_keep_no_job_of_its_run_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("holder.py"), HOLDER).unwrap();
    for folder in ["in", "done"] {
        std::fs::create_dir(path(folder)).unwrap();
    }
    for number in 0..11 {
        std::fs::write(path(&format!("in/{number:02}")), number.to_string()).unwrap();
    }
    let run = program("casparian");
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 256; exec \"$@\"", "sh"])
        .arg(run.get_program())
        .args(["run", &path("holder.py"), &path("in"), "-o", &path("out")])
        .args(["--sandbox", "off", "--slots", "2", "--json"])
        .env("HOME", home())
        .env("TMPDIR", dir.path());
    let done = output(&mut command);
    assert!(done.status.success(), "{}{}", stdout(&done), stderr(&done));
    assert_eq!(stderr(&done), "");
}

#[test]
fn no_plugin_speaks_as_the_worker_of_a_sentinel_on_a_unix_socket() {
    let abstract_name = format!("@casparian-forger-{}", std::process::id());
    for (name, mode, curve, outcome) in [
        ("s", "on", false, "ConnectionRefusedError"),
        ("s", "strict", false, "ConnectionRefusedError"),
        (abstract_name.as_str(), "on", false, "PermissionError"),
        (abstract_name.as_str(), "strict", false, "PermissionError"),
        ("s", "off", true, "connected"),
        (abstract_name.as_str(), "off", true, "connected"),
    ] {
        let what = format!("{name} {mode}");
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let place = if name == "s" {
            path("s")
        } else {
            name.to_owned()
        };
        let files = forger(dir.path(), &place);
        let database = database_with(dir.path(), "forger", FORGER);
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        if curve {
            casparian_ok(&["keygen", &path("sentinel")]);
            let line = casparian_ok(&["keygen", &path("worker")]);
            std::fs::write(path("authorized"), line).unwrap();
            let key = "--curve-secret-key".to_owned();
            theirs = vec![
                key.clone(),
                path("sentinel"),
                "--authorized-keys".to_owned(),
            ];
            theirs.push(path("authorized"));
            ours = vec![key, path("worker"), "--curve-server-key".to_owned()];
            ours.push(path("sentinel.pub"));
        }
        let endpoint = format!("ipc://{place}");
        let open = || {
            let mut command = program("casparian-sentinel");
            command.args(["--bind", &endpoint, "--database"]);
            let mut sentinel = Background::start(command.arg(&database).args(&theirs));
            sentinel.line_with("listens on ");
            sentinel
        };
        let mut sentinel = open();
        let mut command = program("casparian-worker");
        command
            .args(["--connect", &endpoint, "--sandbox", mode, "--slots", "1"])
            .args(["--output", &path("out")])
            .args(&ours)
            .env("TMPDIR", dir.path());
        let _worker = Background::start(&mut command);
        // The interpreter is older than the socket of the second sentinel.
        let first = submit(&database, "forger", &files[1..2]);
        assert_eq!(ended(&database, first[0])["status"], "COMPLETED", "{what}");
        sentinel.signal("-TERM");
        sentinel.wait();
        sentinel = open();
        let mut rest = files.clone();
        rest.remove(1);
        for id in submit(&database, "forger", &rest) {
            assert_eq!(ended(&database, id)["status"], "COMPLETED", "{what}");
        }
        sentinel.signal("-TERM");
        sentinel.wait();
        let tried = check_unforged(&what, &database, &dir.path().join("out"));
        assert_eq!(tried, set(&["sockets 1", outcome]), "{what}");
    }
}

/// Sends a descriptor to the worker. Gives whether the kernel lets a socket refuse them, and what came of it.
const SENDER: &str = r#"
import gc, socket
import pyarrow as pa
class Handler:
    def execute(self, path):
        try:
            socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, 83, 0)
        except OSError:
            yield pa.table({"x": ["the kernel cannot"]})
            return
        bridge = next(one for one in gc.get_objects() if type(one).__name__ == "Bridge")
        try:
            socket.send_fds(bridge.socket, [b"x"], [0])
            yield pa.table({"x": ["sent"]})
        except PermissionError:
            yield pa.table({"x": ["refused"]})
"#;

/// What is sent is closed by the worker, for which it may wait as long as the plugin likes.
#[test]
fn a_plugin_sends_the_worker_no_descriptors() {
    for (start, mode) in [("warm", "off"), ("warm", "on"), ("spawn", "strict")] {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("p.py"), SENDER).unwrap();
        std::fs::write(path("in"), "").unwrap();
        let mut command = program("casparian");
        command.args(["run", &path("p.py"), &path("in"), "-o", &path("out")]);
        command.args(["--plugin-start", start, "--sandbox", mode]);
        let done = output(&mut command);
        assert!(done.status.success(), "{}{}", stdout(&done), stderr(&done));
        let read = "import glob, sys, pyarrow.parquet as pq\nfor file in glob.glob(sys.argv[1] + '/*/*.parquet'): print(pq.read_table(file)['x'][0])";
        let shown = output(Command::new(python()).args(["-c", read, &path("out")]));
        let shown = stdout(&shown);
        assert!(
            ["refused\n", "the kernel cannot\n"].contains(&&*shown),
            "{start} {mode}: {shown}"
        );
    }
}
