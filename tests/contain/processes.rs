//! Plugin processes against other jobs of the same worker.

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
        let more = ["--slots", "2", "--guest-start", start];
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
