//! Peers of a sentinel: who may connect without CURVE, and what a worker that does harm costs
//! others.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::*;

const ONE_ROW: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";

/// No user of the system.
const OTHER: u32 = 61_234;

/// A database with jobs of a plugin `p`.
fn queue(dir: &Path, jobs: usize) -> (PathBuf, Vec<i64>) {
    let database = database_with(dir, "p", ONE_ROW);
    let files: Vec<PathBuf> = (0..jobs)
        .map(|number| {
            let file = dir.join(format!("in-{number}"));
            std::fs::write(&file, number.to_string()).unwrap();
            file
        })
        .collect();
    let ids = submit(&database, "p", &files);
    (database, ids)
}

fn hostile(endpoint: &str, identity: &str) -> std::process::Command {
    let mut command = peer("hostile.py");
    command.args([endpoint, identity]);
    command
}

/// The next event of a hostile peer.
fn next(peer: &mut Background) -> Value {
    let line = peer.line_with("{\"event\"");
    serde_json::from_str(&line).unwrap()
}

/// The next event that is one of these.
fn next_of(peer: &mut Background, names: &[&str]) -> Value {
    loop {
        let event = next(peer);
        if names.contains(&event["event"].as_str().unwrap()) {
            return event;
        }
    }
}

/// The endpoint is where a sentinel with these flags listens.
fn sentinel_at(bind: &str, database: &Path, more: &[&str]) -> (Background, String) {
    let mut sentinel = Background::start(
        program("casparian-sentinel")
            .args(["--bind", bind, "--database"])
            .arg(database)
            .args(more),
    );
    let line = sentinel.line_with("listens on ");
    let endpoint = line.split("listens on ").nth(1).unwrap().trim().to_owned();
    (sentinel, endpoint)
}

#[test]
fn without_curve_peers_of_this_host_are_admitted_by_their_user() {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: it needs a second user, which only root can be");
        return;
    }
    let abstract_name = format!("ipc://@casparian-test-{}", std::process::id());
    let allowed = OTHER.to_string();
    let allowed = ["--allow-uid", "1", "--allow-uid", &allowed];
    for bind in ["tcp://127.0.0.1:0", "tcp://[::1]:0", &abstract_name] {
        for (user, flags, admitted) in [
            (None, &[][..], true),
            (Some(OTHER), &[][..], false),
            (Some(OTHER), &allowed[..2], false),
            (Some(OTHER), &allowed[..], true),
        ] {
            let what = format!("{bind} {user:?} {flags:?}");
            let dir = tempfile::tempdir().unwrap();
            let (database, ids) = queue(dir.path(), 1);
            let (mut sentinel, endpoint) = sentinel_at(bind, &database, flags);
            let mut command = hostile(&endpoint, "w");
            if let Some(user) = user {
                command.arg(user.to_string());
            }
            let mut peer = Background::start(&mut command);
            peer.write("IDENTIFY 0 1 {'capabilities': ['*']}");
            let event = next_of(&mut peer, &["DISPATCH", "closed"]);
            let expected = if admitted { "DISPATCH" } else { "closed" };
            assert_eq!(event["event"], expected, "{what}");
            if admitted {
                continue;
            }
            let line = sentinel.line_with("may not connect");
            assert!(line.contains(&format!("--allow-uid {OTHER}")), "{line}");
            assert_eq!(job(&database, ids[0])["status"], "QUEUED", "{what}");
            // It costs its own user nothing.
            let mut own = Background::start(&mut hostile(&endpoint, "w"));
            own.write("IDENTIFY 0 1 {'capabilities': ['*']}");
            next_of(&mut own, &["DISPATCH"]);
        }
    }
}

/// The system forgets the owner of a socket that its process has closed: such a peer is not
/// taken for root.
#[test]
fn a_peer_that_has_closed_its_socket_does_not_count_as_root() {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: it needs a second user, which only root can be");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (database, _) = queue(dir.path(), 1);
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    // All at once while the sentinel is stopped: connect, handshake, IDENTIFY, close.
    let script = r#"
import encodings.idna, os, socket, sys, wire
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
host, port = sys.argv[1].removeprefix("tcp://").split(":")
peer = socket.create_connection((host, int(port)))
greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
text = lambda name, value: bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
ready = b"\x05READY" + text(b"Socket-Type", b"DEALER") + text(b"Identity", b"thief")
frames = wire.encode("IDENTIFY", 0, {"capabilities": ["*"]})
frame = lambda flags, body: bytes([flags, len(body)]) + body
peer.sendall(greeting + frame(4, ready) + frame(1, frames[0]) + frame(0, frames[1]))
peer.close()
"#;
    sentinel.signal("-STOP");
    let mut command = std::process::Command::new(python());
    command
        .args(["-c", script, &endpoint, &OTHER.to_string()])
        .env("PYTHONPATH", root().join("tests/peers"));
    let done = output(&mut command);
    assert!(done.status.success(), "{}", stderr(&done));
    sentinel.signal("-CONT");
    sentinel.line_with("the user of this connection cannot be determined");
    let workers = casparian_ok(&["workers", "--json", "-d", database.to_str().unwrap()]);
    assert!(!workers.contains("thief"), "{workers}");
}

#[test]
fn a_worker_that_only_beats_loses_its_job_and_nobody_else_pays() {
    let dir = tempfile::tempdir().unwrap();
    let (database, ids) = queue(dir.path(), 1);
    let flags = ["--attempt-timeout", "1", "--lease", "1"];
    let (_sentinel, endpoint) = sentinel(&database, &flags);
    let mut hoarder = Background::start(&mut hostile(&endpoint, "hoarder"));
    hoarder.write("IDENTIFY 0 1 {'capabilities': ['*'], 'slots': 1}");
    next_of(&mut hoarder, &["DISPATCH"]);
    hoarder.write(&format!(
        "HEARTBEAT 0 50 {{'status': 'BUSY', 'current_job_id': {}}}",
        ids[0]
    ));
    next_of(&mut hoarder, &["ABORT"]);
    let _worker = worker(&endpoint, &dir.path().join("out"), &[]);
    let more = submit(&database, "p", &[dir.path().join("in-0")]);
    for id in ids.iter().chain(&more) {
        let done = ended(&database, *id);
        assert_eq!(done["status"], "COMPLETED", "{done}");
    }
    let done = job(&database, ids[0]);
    assert_eq!(done["attempt"], 2, "{done}");
    let text = done.to_string();
    assert!(
        text.contains("worker hoarder did not end it within 1 s"),
        "{text}"
    );
    assert_eq!(job(&database, more[0])["attempt"], 1);
}
