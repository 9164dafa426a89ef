//! Peers of a sentinel: who may connect without CURVE, and what a worker that does harm costs
//! others.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::*;

const ONE_ROW: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";

/// No user of the system.
const OTHER: u32 = 61_234;

/// A database with jobs of a plugin `p`.
fn queue(dir: &Path, jobs: usize) -> (PathBuf, Vec<i64>) {
    std::fs::create_dir_all(dir).unwrap();
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
    // From an address of an interface, as far as this host has one.
    let elsewhere = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        Ok(format!("tcp://{}:0;", socket.local_addr()?.ip()))
    });
    let elsewhere = elsewhere.unwrap_or_default();
    for (bind, from) in [
        ("tcp://127.0.0.1:0", ""),
        ("tcp://127.0.0.1:0", &elsewhere),
        ("tcp://[::1]:0", ""),
        (&abstract_name, ""),
    ] {
        for (user, flags, admitted) in [
            (None, &[][..], true),
            (Some(OTHER), &[][..], false),
            (Some(OTHER), &allowed[..2], false),
            (Some(OTHER), &allowed[..], true),
        ] {
            let what = format!("{bind} {from} {user:?} {flags:?}");
            let dir = tempfile::tempdir().unwrap();
            let (database, ids) = queue(dir.path(), 1);
            let (mut sentinel, endpoint) = sentinel_at(bind, &database, flags);
            let endpoint = match from {
                "" => endpoint,
                from => endpoint.replace("tcp://", from),
            };
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

/// Who listens at the sentinel's address while no sentinel does is not taken for one.
#[test]
fn without_curve_who_listens_is_trusted_by_its_user() {
    use std::os::unix::process::CommandExt;
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: it needs a second user, which only root can be");
        return;
    }
    let other = OTHER.to_string();
    let abstract_name = format!("ipc://@casparian-test-listens-{}", std::process::id());
    for bind in [
        "tcp://127.0.0.1:0",
        "tcp://[::1]:0",
        "ipc://FOLDER/s",
        &abstract_name,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let bind = bind.replace("FOLDER", dir.path().to_str().unwrap());
        let (database, ids) = queue(dir.path(), 1);
        let (own, own_ids) = queue(&dir.path().join("own"), 1);
        let owned = [dir.path(), &database];
        for path in owned {
            std::os::unix::fs::chown(path, Some(OTHER), Some(OTHER)).unwrap();
        }
        let mut impostor = Background::start(
            program("casparian-sentinel")
                .args(["--bind", &bind, "--allow-unsigned", "--database"])
                .arg(&database)
                .uid(OTHER)
                .gid(OTHER),
        );
        let line = impostor.line_with("listens on ");
        let endpoint = line.split("listens on ").nth(1).unwrap().trim().to_owned();
        let mut first = worker(&endpoint, &dir.path().join("out"), &["--allow-uid", "1"]);
        let line = first.line_with("listens there");
        assert!(line.contains(&format!("use --allow-uid {OTHER}")), "{line}");
        let plugin = dir.path().join("q.py");
        let manifest = "MANIFEST = PluginMetadata(pattern='*.x', topic='q')\n";
        std::fs::write(&plugin, format!("{manifest}{ONE_ROW}")).unwrap();
        let deploy = |more: &[&str]| {
            let mut command = program("casparian");
            command
                .args(["deploy", "--connect", &endpoint])
                .arg(&plugin);
            output(command.args(more))
        };
        let refused = deploy(&[]);
        assert_eq!(refused.status.code(), Some(1), "{endpoint}");
        let text = stderr(&refused);
        assert!(text.contains("not deployed: user 61234"), "{text}");
        assert_eq!(job(&database, ids[0])["status"], "QUEUED", "{endpoint}");

        let trusted = deploy(&["--allow-uid", &other]);
        assert!(trusted.status.success(), "{}", stderr(&trusted));
        let more = ["--allow-uid", "1", "--allow-uid", &other];
        let mut second = worker(&endpoint, &dir.path().join("out2"), &more);
        assert_eq!(
            ended(&database, ids[0])["status"],
            "COMPLETED",
            "{endpoint}"
        );
        second.signal("-TERM");
        assert_eq!(second.wait(), Some(0));
        impostor.signal("-KILL");
        impostor.wait();

        // The worker that refused has waited for its own sentinel.
        let _sentinel = sentinel_at(&endpoint, &own, &[]);
        assert_eq!(ended(&own, own_ids[0])["status"], "COMPLETED", "{endpoint}");
    }
}

/// The mode of the socket's file lets other users in, and the user of the connection decides.
#[test]
fn users_of_allow_uid_reach_an_ipc_socket_whatever_the_umask() {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: it needs a second user, which only root can be");
        return;
    }
    let allowed = OTHER.to_string();
    for (umask, allowed, admitted) in [
        ("022", &*allowed, true),
        ("077", &*allowed, true),
        ("022", "1", false),
        ("000", "1", false),
    ] {
        let what = format!("{umask} {allowed}");
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let (database, ids) = queue(dir.path(), 1);
        let bind = format!("ipc://{}", dir.path().join("control").display());
        let own = program("casparian-sentinel");
        let mut command = std::process::Command::new("sh");
        let script = format!("umask {umask}; exec \"$@\"");
        command.args(["-c", &script, "sh"]).arg(own.get_program());
        command.args(["--bind", &bind, "--allow-uid", allowed, "--database"]);
        let mut sentinel = Background::start(command.arg(&database));
        sentinel.line_with("listens on ");
        let mut command = hostile(&bind, "w");
        let mut peer = Background::start(command.arg(OTHER.to_string()));
        peer.write("IDENTIFY 0 1 {'capabilities': ['*']}");
        if admitted {
            assert_eq!(
                next_of(&mut peer, &["DISPATCH", "closed"])["event"],
                "DISPATCH",
                "{what}"
            );
            continue;
        }
        sentinel.line_with(&format!("user {OTHER} of this host may not connect"));
        assert_eq!(job(&database, ids[0])["status"], "QUEUED", "{what}");
        let mut own = Background::start(&mut hostile(&bind, "w"));
        own.write("IDENTIFY 0 1 {'capabilities': ['*']}");
        next_of(&mut own, &["DISPATCH"]);
    }
}

/// The routing ID of a worker of the reference system is the time of its start.
#[test]
fn no_user_of_the_host_takes_the_routing_id_of_another() {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: it needs a second user, which only root can be");
        return;
    }
    for transport in ["ipc", "tcp"] {
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let (database, _) = queue(dir.path(), 1);
        let bind = match transport {
            "ipc" => format!("ipc://{}", dir.path().join("control").display()),
            _ => "tcp://127.0.0.1:0".to_owned(),
        };
        let (mut sentinel, endpoint) =
            sentinel_at(&bind, &database, &["--allow-uid", &OTHER.to_string()]);
        let mut own = Background::start(&mut hostile(&endpoint, "w"));
        own.write("IDENTIFY 0 1 {'capabilities': ['*']}");
        let job = next_of(&mut own, &["DISPATCH"])["job_id"].clone();
        let mut other = hostile(&endpoint, "w");
        let mut other = Background::start(other.arg(OTHER.to_string()));
        other.write("IDENTIFY 0 1 {'capabilities': ['*']}");
        sentinel.line_with("its routing ID is in use");
        own.write(&format!(
            "CONCLUDE {job} 1 {{'status': 'SUCCESS', 'metrics': {{}}, 'artifacts': [], 'error_message': None}}"
        ));
        let done = ended(&database, job.as_i64().unwrap());
        assert_eq!(done["status"], "COMPLETED", "{transport}");
        assert_eq!(done["attempts"].as_array().unwrap().len(), 1);
    }
}

/// The mode of the folder is the operator's matter: both sides say what is in the way.
#[test]
fn a_folder_that_keeps_allowed_users_out_is_named() {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: it needs a second user, which only root can be");
        return;
    }
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let (out, closed) = (tempfile::tempdir().unwrap(), dir.path().join("closed"));
    std::os::unix::fs::chown(out.path(), Some(OTHER), Some(OTHER)).unwrap();
    for (folder, mode) in [(dir.path(), 0o711), (&closed, 0o700)] {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let (database, _) = queue(dir.path(), 1);
    let bind = format!("ipc://{}", closed.join("control").display());
    let mut sentinel = Background::start(
        program("casparian-sentinel")
            .args([
                "--bind",
                &bind,
                "--allow-uid",
                &OTHER.to_string(),
                "--database",
            ])
            .arg(&database),
    );
    let line = sentinel.line_with("no other user can reach");
    let named = format!("folder {} has mode 700", closed.display());
    assert!(line.contains(&named), "{line}");
    sentinel.line_with("listens on ");
    let mut worker = Background::start(
        program("casparian-worker")
            .args(["--connect", &bind, "--output"])
            .arg(out.path().join("out"))
            .current_dir(out.path())
            .env("HOME", out.path())
            .env("TMPDIR", out.path())
            .uid(OTHER)
            .gid(OTHER),
    );
    let line = worker.line_with("no connection to the sentinel");
    assert!(line.contains("Permission denied"), "{line}");
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
fn a_worker_that_only_beats_loses_its_job_without_harm_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let (database, ids) = queue(dir.path(), 1);
    let flags = ["--attempt-timeout", "4", "--lease", "1"];
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
        text.contains("worker hoarder did not end it within 4 s"),
        "{text}"
    );
    let other = job(&database, more[0]);
    assert_eq!(other["attempt"], 1, "{other}");
}

#[test]
fn environments_that_a_worker_makes_up_add_no_rows_and_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let (database, _) = queue(dir.path(), 1);
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    let mut peer = Background::start(&mut hostile(&endpoint, "w"));
    peer.write("IDENTIFY 0 1 {'capabilities': ['none']}");
    for number in 0..3000 {
        peer.write(&format!(
            "ENV_READY 0 1 {{'env_hash': '{number:064x}', 'interpreter_path': '/p', 'cached': True}}"
        ));
    }
    // What it sent before has been read when this is answered.
    peer.write("DEPLOY 7 1 {}");
    next_of(&mut peer, &["ERR"]);
    let count = sql(
        &database,
        "SELECT CAST(count(*) AS TEXT) FROM cf_worker_environment",
    );
    assert_eq!(count, "0");
    sentinel.signal("-TERM");
    sentinel.wait();
    assert_eq!(
        sentinel.count("was not asked for"),
        1,
        "{:#?}",
        sentinel.seen
    );
}

/// Text that moves cursors, forges lines and reorders what is shown.
const HOSTILE: &str = "w\\x1b[2J\\r\\n[ERROR] forged\\u202e\\x9b\\u2066\\u2028\\x00";

fn assert_harmless(what: &str, shown: &str) {
    let is_unsafe = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let found = shown.chars().find(|c| is_unsafe(*c));
    assert_eq!(found, None, "{what}: {shown:?}");
    for line in shown.lines() {
        assert!(!line.starts_with("[ERROR] forged"), "{what}: {shown:?}");
    }
}

#[test]
fn text_of_peers_and_rows_is_shown_without_harm() {
    let dir = tempfile::tempdir().unwrap();
    let (database, _) = queue(dir.path(), 1);
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    let mut peer = Background::start(&mut hostile(&endpoint, "w"));
    peer.write(&format!(
        "IDENTIFY 0 1 {{'capabilities': ['p', '{HOSTILE}'], 'worker_id': '{HOSTILE}', \
         'hostname': '{HOSTILE}'}}"
    ));
    let job_id = next_of(&mut peer, &["DISPATCH"])["job_id"].clone();
    peer.write(&format!(
        "HEARTBEAT 0 1 {{'status': 'BUSY', 'trouble': '{HOSTILE}', 'environments': {{'{HOSTILE}': '{HOSTILE}'}}}}"
    ));
    peer.write(&format!("ERR 0 1 {{'message': '{HOSTILE}'}}"));
    peer.write(&format!(
        "CONCLUDE {job_id} 1 {{'status': 'FAILED', 'metrics': {{'{HOSTILE}': 1}}, \
         'artifacts': [{{'uri': '{HOSTILE}', '{HOSTILE}': '{HOSTILE}'}}], \
         'error_message': '{HOSTILE}', 'log_tail': '{HOSTILE}'}}"
    ));
    ended(&database, job_id.as_i64().unwrap());
    let text = "'x' || char(27) || '[2J' || char(13, 10) || '[ERROR] forged' || char(8238)";
    sql(
        &database,
        &format!(
            "INSERT INTO cf_processing_queue (plugin_name, file_version_id, status, error_message, \
             config_overrides) SELECT {text}, file_version_id, 'QUEUED', {text}, {text} FROM cf_processing_queue"
        ),
    );
    let path = database.to_str().unwrap();
    let id = job_id.to_string();
    for words in [
        &["workers"][..],
        &["workers", "--json"],
        &["jobs"],
        &["jobs", "--json"],
        &["job", &id],
        &["job", &id, "--json"],
        &["job", "2"],
        &["job", "2", "--json"],
    ] {
        let shown = casparian_ok(&[words, &["-d", path]].concat());
        assert_harmless(&format!("{words:?}"), &shown);
    }
    let name = "\u{1b}[2J\r\n[ERROR] forged\u{202e}";
    for words in [
        &["jobs", name][..],
        &[name],
        &["job", name, "-d", path],
        &["jobs", "-d", name],
        &["jobs", &format!("--{name}")],
        &["jobs", "--limit", name, "-d", path],
        &["submit", "-p", "p", "-d", path, name],
        &["run", name, name],
        &["deploy", name, "-d", path],
    ] {
        let refused = casparian(words);
        assert!(!refused.status.success(), "{words:?}");
        assert_harmless(&format!("{words:?}"), &stderr(&refused));
    }
    sentinel.signal("-TERM");
    sentinel.wait();
    assert_harmless("log", &sentinel.seen.join("\n"));
    assert!(sentinel.seen.iter().any(|line| line.contains("forged")));
}

#[test]
fn a_worker_cannot_flood_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (database, ids) = queue(dir.path(), 1);
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    let mut peer = Background::start(&mut hostile(&endpoint, "w"));
    let started = std::time::Instant::now();
    peer.write("IDENTIFY 0 3000 {'capabilities': ['none']}");
    peer.write("HEARTBEAT 0 3000 {'status': 'IDLE', 'trouble': 'flooded'}");
    let _worker = worker(&endpoint, &dir.path().join("out"), &[]);
    assert_eq!(ended(&database, ids[0])["status"], "COMPLETED");
    let workers = ["workers", "-d", database.to_str().unwrap()];
    until("the flood has been read", || {
        casparian_ok(&workers).contains("flooded").then_some(())
    });
    // What was left out is counted when its second is over.
    let read = std::time::Instant::now();
    until("a second has passed", || {
        (read.elapsed().as_millis() > 1100).then_some(())
    });
    sentinel.signal("-TERM");
    sentinel.wait();
    let seconds = 2 + started.elapsed().as_secs() as usize;
    let lines = |text: &str| {
        sentinel
            .seen
            .iter()
            .filter(|line| line.contains(text))
            .count()
    };
    assert!(
        lines("worker w connected") <= 22 * seconds,
        "{:#?}",
        sentinel.seen
    );
    assert!(
        lines("more lines were left out like: worker w connected") > 0,
        "{:#?}",
        sentinel.seen
    );
}

#[test]
fn messages_that_are_too_large_cost_their_sender_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (database, _) = queue(dir.path(), 1);
    let (mut sentinel, endpoint) = sentinel(&database, &[]);
    let _worker = worker(&endpoint, &dir.path().join("out"), &[]);
    for (message, event, reason) in [
        (
            "HEARTBEAT 0 1 {'status': 'IDLE', 'trouble': 'x' * (2 << 20)}",
            "closed",
            "payload of Heartbeat of",
        ),
        (
            "ERR 0 1 {'message': 'x' * (2 << 20)}",
            "closed",
            "payload of Err of",
        ),
        (
            "ENV_READY 0 1 {'env_hash': 'x' * (2 << 20), 'interpreter_path': ''}",
            "closed",
            "payload of EnvReady of",
        ),
        (
            "HEARTBEAT 0 1 {'status': 'IDLE', 'sequence': 1, 'running': [{'job_id': 1, 'attempt': 1}] * 20000}",
            "closed",
            "more attempts than a worker can hold",
        ),
        (
            "IDENTIFY 0 1 {'capabilities': ['x' * 50] * 10001}",
            "ERR",
            "at most 10000",
        ),
    ] {
        let mut peer = Background::start(&mut hostile(&endpoint, "w"));
        peer.write("IDENTIFY 0 1 {'capabilities': ['none'], 'slots': 1}");
        peer.write(message);
        next_of(&mut peer, &[event]);
        sentinel.line_with(reason);
        let id = submit(&database, "p", &[dir.path().join("in-0")])[0];
        assert_eq!(ended(&database, id)["status"], "COMPLETED", "{message:.60}");
    }
}

#[test]
fn an_option_allows_larger_messages() {
    let dir = tempfile::tempdir().unwrap();
    let (database, _) = queue(dir.path(), 1);
    let (_sentinel, endpoint) = sentinel(&database, &["--max-message-size", "4194304"]);
    let mut peer = Background::start(&mut hostile(&endpoint, "w"));
    peer.write("IDENTIFY 0 1 {'capabilities': ['none'], 'slots': 1}");
    peer.write("HEARTBEAT 0 1 {'status': 'IDLE', 'trouble': 'x' * (2 << 20)}");
    peer.write("IDENTIFY 0 1 {'capabilities': ['p'], 'slots': 1}");
    let event = next_of(&mut peer, &["DISPATCH", "closed"]);
    assert_eq!(event["event"], "DISPATCH");
}

#[cfg(feature = "curve")]
#[test]
fn a_key_has_the_slots_and_plugins_of_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let (database, ids) = queue(dir.path(), 3);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    casparian_ok(&["keygen", &path("sentinel")]);
    let line = casparian_ok(&["keygen", &path("worker"), "--name", "ann"]);
    let list = path("authorized");
    let limit =
        |limits: &str| std::fs::write(&list, format!("{} {limits}\n", line.trim())).unwrap();
    limit("slots=1 plugins=other,q");
    let keys = [
        "--curve-secret-key",
        &path("sentinel"),
        "--authorized-keys",
        &list,
    ];
    let (_sentinel, endpoint) = sentinel(&database, &keys);
    let flags = [
        "--slots",
        "4",
        "--curve-secret-key",
        &path("worker"),
        "--curve-server-key",
        &path("sentinel.pub"),
    ];
    let _worker = worker(&endpoint, &dir.path().join("out"), &flags);
    let shown = |slots: i64, plugins: &[&str]| {
        let plugins = serde_json::json!(plugins);
        until("the worker is listed with its key's limits", || {
            let text = casparian_ok(&["workers", "--json", "-d", database.to_str().unwrap()]);
            let rows: Value = serde_json::from_str(&text).unwrap();
            let row = rows.get(0)?;
            let is_so = row["slots"] == slots && row["plugins"] == plugins;
            is_so.then_some(())
        });
    };
    shown(1, &["other", "q"]);
    assert_eq!(job(&database, ids[0])["status"], "QUEUED");
    // The list is followed.
    limit("slots=2 plugins=p");
    shown(2, &["p"]);
    for id in ids {
        assert_eq!(ended(&database, id)["status"], "COMPLETED");
    }
}

#[test]
fn arguments_that_are_not_utf_8_are_refused_with_what_they_are() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let bad = std::ffi::OsStr::from_bytes(b"\xff");
    for (name, words, said) in [
        ("casparian", &[][..], "unknown command"),
        ("casparian", &["jobs"][..], "unexpected argument"),
        ("casparian", &["jobs", "-d"], "no such file"),
        ("casparian", &["submit", "--plugin"], "not UTF-8"),
        ("casparian-sentinel", &["--bind"], "not UTF-8"),
        ("casparian-sentinel", &["--allow-uid"], "number of a user"),
        ("casparian-worker", &["--allow-uid"], "number of a user"),
        ("casparian-worker", &["--worker-id"], "not UTF-8"),
        ("casparian-worker", &["--output"], "must be UTF-8"),
    ] {
        let mut command = program(name);
        command.args(words).arg(bad).current_dir(dir.path());
        let refused = output(&mut command);
        assert!(matches!(refused.status.code(), Some(1 | 2)), "{words:?}");
        let text = stderr(&refused);
        assert!(text.contains(said), "{name} {words:?}: {text}");
    }
}

/// A descriptor that it is sent is closed by the sentinel, for which it may wait as long as the sender likes.
#[test]
fn a_sentinel_takes_no_descriptors() {
    let script = "
import socket, sys
try: socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, 83, 0)
except OSError: sys.exit('the kernel cannot')
one = socket.socket(socket.AF_UNIX)
one.connect(sys.argv[1].replace('@', chr(0)))
try: socket.send_fds(one, [b'x'], [0])
except PermissionError: sys.exit('refused')
sys.exit('sent')";
    let dir = tempfile::tempdir().unwrap();
    let (database, _) = queue(dir.path(), 1);
    let name = format!("@casparian-test-{}", std::process::id());
    let file = dir.path().join("s").to_str().unwrap().to_owned();
    for (address, more) in [
        (&file, &[][..]),
        (&file, &["--allow-uid", "1"]),
        (&name, &[]),
    ] {
        let (_sentinel, _) = sentinel_at(&format!("ipc://{address}"), &database, more);
        let mut stranger = std::process::Command::new(python());
        let ended = output(stranger.args(["-c", script, address]));
        let said = stderr(&ended);
        assert!(
            ["refused\n", "the kernel cannot\n"].contains(&&*said),
            "{address} {more:?}: {said}"
        );
    }
}
