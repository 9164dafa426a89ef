//! Where secrets stand in memory, and that they do not stay.

use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::process::Command;
use std::time::Duration;

use casparian::socket::{Dealer, Options, PlainClient, PlainServer, Router};
use zeroize::Zeroizing;

use crate::common::*;
use crate::curve::keygen;
use crate::memory::Needle;

#[test]
fn a_secret_key_stands_in_memory_once_and_its_text_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, key) = keygen(dir.path(), "sentinel");
    let (worker_secret, worker_key) = keygen(dir.path(), "worker");
    let list = dir.path().join("authorized");
    std::fs::write(&list, format!("{worker_key} worker\n")).unwrap();
    let (sentinel, endpoint) = sentinel(
        &dir.path().join("q.sqlite"),
        &[
            "--curve-secret-key",
            secret.to_str().unwrap(),
            "--authorized-keys",
            list.to_str().unwrap(),
        ],
    );
    let mut worker = worker(
        &endpoint,
        &dir.path().join("out"),
        &[
            "--curve-secret-key",
            worker_secret.to_str().unwrap(),
            "--curve-server-key",
            &key,
        ],
    );
    worker.line_with("connected");
    for (program, file) in [(&sentinel, &secret), (&worker, &worker_secret)] {
        let held = std::fs::read_to_string(file).unwrap();
        let held = held.lines().last().unwrap();
        let bytes = z85::decode(held).unwrap();
        // Clamping changes the first and the last byte.
        let copies = [held.as_bytes(), &bytes[1..31]].map(Needle::new);
        assert_eq!(copies.map(|needle| needle.copies(program.pid())), [0, 1]);
    }
}

#[test]
fn a_password_goes_with_the_sockets_that_knew_it() {
    let mut password = Zeroizing::new(String::with_capacity(256));
    for count in 0..4u8 {
        write!(password, "{:016x}", RandomState::new().hash_one(count)).unwrap();
    }
    let needle = Needle::new(password.as_bytes());
    let server = Options::new().plain_server(PlainServer::new([("user", password.as_str())]));
    let client = PlainClient::new("user", &password).unwrap();
    drop(password);
    let mut router = Router::new(server).unwrap();
    let bound = router.bind("tcp://127.0.0.1:*").unwrap().to_string();
    let mut dealer = Dealer::new(Options::new().plain_client(client)).unwrap();
    dealer.connect(&bound).unwrap();
    dealer.send(&[b"hello"]).unwrap();
    until("it is let in", || {
        dealer.flush().unwrap();
        let wait = Some(Duration::from_millis(5));
        router.receive(wait).unwrap().map(drop)
    });
    let alive = needle.copies(std::process::id());
    drop((router, dealer));
    let after = needle.copies(std::process::id());
    assert_eq!((alive, after), (2, 0), "while alive, after");
}

/// A plugin is a process of the worker's user.
#[test]
fn processes_of_the_same_user_cannot_read_the_memory_of_a_program() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(dir.path(), open).unwrap();
    // The superuser may read everything, so the programs run as nobody.
    let nobody = rustix::process::geteuid().is_root().then_some(65_534);
    let own = |command: &mut Command| {
        if let Some(id) = nobody {
            command.uid(id).gid(id);
        }
        command.env("HOME", dir.path()).current_dir(dir.path());
    };
    let database = dir.path().join("q.db");
    let output = dir.path().join("out");
    for (name, words) in [
        (
            "casparian-sentinel",
            vec![
                "--bind",
                "tcp://127.0.0.1:0",
                "--database",
                database.to_str().unwrap(),
            ],
        ),
        (
            "casparian-worker",
            vec![
                "--connect",
                "tcp://127.0.0.1:1",
                "--output",
                output.to_str().unwrap(),
            ],
        ),
    ] {
        // Its folder may be one that only this user may enter.
        let copy = dir.path().join(name);
        let original = program(name).get_program().to_owned();
        std::fs::hard_link(&original, &copy)
            .or_else(|_| std::fs::copy(&original, &copy).map(drop))
            .unwrap();
        let mut command = Command::new(&copy);
        own(command.args(words));
        let mut running = Background::start(&mut command);
        running.line_with(if name.ends_with("worker") {
            "worker"
        } else {
            "listens"
        });
        let script = format!(
            "import os\nfor name in ('mem', 'environ', 'maps'):\n    try:\n        open(f'/proc/{}/{{name}}', 'rb').read(1)\n        print(name, 'was read')\n    except PermissionError:\n        print(name, 'refused')\n",
            running.pid()
        );
        let mut reader = Command::new("python3");
        own(reader.args(["-c", &script]));
        let read = crate::common::output(&mut reader);
        assert_eq!(
            stdout(&read),
            "mem refused\nenviron refused\nmaps refused\n",
            "{name}: {}",
            stderr(&read)
        );
        running.kill();
    }
}
