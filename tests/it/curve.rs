//! CURVE on the command lines: keygen, key files, who is let in, and a job over it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::*;

const ONE_ROW: &str = "import pyarrow as pa\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1]})\n";

/// A key pair in a folder: the path of its secret file, and its public key.
pub(crate) fn keygen(dir: &Path, name: &str) -> (PathBuf, String) {
    let path = dir.join(name);
    let line = casparian_ok(&["keygen", path.to_str().unwrap(), "--name", name]);
    let (key, shown) = line.trim_end().split_once(' ').unwrap();
    assert_eq!((key.len(), shown), (40, name));
    (path, key.to_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn keygen_writes_a_pair_and_shows_its_public_key() {
    let dir = tempfile::tempdir().unwrap();
    let (path, key) = keygen(dir.path(), "w-1");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let secret = std::fs::read_to_string(&path).unwrap();
    assert!(!secret.contains(&key));
    let public = std::fs::read_to_string(dir.path().join("w-1.pub")).unwrap();
    assert_eq!(public, format!("{key} w-1\n"));
    let shown = casparian_ok(&["keygen", "--show", text(&path)]);
    assert_eq!(shown, public);
    let again = casparian(&["keygen", text(&path)]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("--force"), "{}", stderr(&again));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), secret);
    let forced = casparian_ok(&["keygen", "--force", text(&path)]);
    assert!(!forced.starts_with(&key));
    for (arguments, want) in [
        (&["keygen"][..], "FILE is missing"),
        (&["keygen", "a", "b"], "more than one FILE"),
        (&["keygen", "x.pub"], "a name without .pub"),
        (&["keygen", "--publisher", "x.pub"], "a name without .pub"),
        (&["keygen", "--name", "a\nb", "x"], "control characters"),
    ] {
        let refused = casparian(arguments);
        assert_eq!(refused.status.code(), Some(2));
        assert!(stderr(&refused).contains(want), "{}", stderr(&refused));
    }
    let nowhere = casparian(&["keygen", "/nowhere/key"]);
    assert_eq!(nowhere.status.code(), Some(1));
}

#[test]
fn wrong_command_lines_about_keys_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, key) = keygen(dir.path(), "s");
    let open = dir.path().join("open");
    std::fs::copy(&secret, &open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let list = dir.path().join("list");
    std::fs::write(&list, "not a key\n").unwrap();
    let shared = dir.path().join("shared");
    std::fs::write(&shared, format!("{key}\n")).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o666)).unwrap();
    let public = dir.path().join("s.pub");
    let database = dir.path().join("q.sqlite");
    let everywhere = "tcp://0.0.0.0:0";
    let secret = text(&secret);
    let sentinel: &[(&[&str], i32, &str)] = &[
        (
            &["--bind", everywhere],
            1,
            "--curve-secret-key, or --insecure",
        ),
        (
            &["--curve-secret-key", secret],
            2,
            "--authorized-keys or --authorize-any-key",
        ),
        (
            &[
                "--curve-secret-key",
                secret,
                "--authorize-any-key",
                "--authorized-keys",
                text(&public),
            ],
            2,
            "not both",
        ),
        (
            &["--authorized-keys", text(&public)],
            2,
            "need --curve-secret-key",
        ),
        (
            &["--curve-secret-key", text(&open), "--authorize-any-key"],
            1,
            "chmod 600",
        ),
        (
            &["--curve-secret-key", text(&public), "--authorize-any-key"],
            1,
            "the secret one is in",
        ),
        (
            &["--curve-secret-key", secret, "--authorized-keys", secret],
            1,
            "file of a secret key",
        ),
        (
            &["--curve-secret-key", "/nowhere", "--authorize-any-key"],
            1,
            "/nowhere: cannot be read",
        ),
        (
            &[
                "--curve-secret-key",
                secret,
                "--authorized-keys",
                text(&list),
            ],
            1,
            "line 1",
        ),
        (
            &[
                "--curve-secret-key",
                secret,
                "--authorized-keys",
                text(&shared),
            ],
            1,
            "chmod go-w",
        ),
    ];
    for (arguments, code, want) in sentinel {
        let refused = output(
            program("casparian-sentinel")
                .arg("--database")
                .arg(&database)
                .args(*arguments),
        );
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(*code), "{arguments:?}: {said}");
        assert!(said.contains(want), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert!(!database.exists());
    let out = dir.path().join("out");
    let worker: &[(&[&str], i32, &str)] = &[
        (
            &["--connect", "tcp://127.0.0.1:0"],
            2,
            "cannot connect to the wildcard",
        ),
        (
            &["--connect", "ipc://*"],
            2,
            "cannot connect to the wildcard",
        ),
        (
            &["--curve-secret-key", secret],
            2,
            "needs --curve-server-key",
        ),
        (
            &["--curve-server-key", "short"],
            1,
            "neither a file nor a key",
        ),
        (&["--curve-server-key", text(&list)], 1, "40 characters"),
        (
            &[
                "--curve-server-key",
                &key,
                "--curve-secret-key",
                text(&open),
            ],
            1,
            "chmod 600",
        ),
    ];
    for (arguments, code, want) in worker {
        let refused = output(
            program("casparian-worker")
                .arg("--output")
                .arg(&out)
                .args(*arguments),
        );
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(*code), "{arguments:?}: {said}");
        assert!(said.contains(want), "{arguments:?}: {said}");
    }
}

#[test]
fn an_open_address_is_bound_with_curve_or_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, _) = keygen(dir.path(), "s");
    for (arguments, warned) in [
        (&["--insecure"][..], true),
        (
            &["--curve-secret-key", text(&secret), "--authorize-any-key"],
            false,
        ),
    ] {
        let mut sentinel = Background::start(
            program("casparian-sentinel")
                .args(["--bind", "tcp://0.0.0.0:0", "--database"])
                .arg(dir.path().join("q.sqlite"))
                .args(arguments),
        );
        sentinel.line_with("listens on ");
        let warning = sentinel
            .seen
            .iter()
            .any(|line| line.contains("not encrypted"));
        assert_eq!(warning, warned, "{:#?}", sentinel.seen);
        sentinel.signal("-TERM");
        assert_eq!(sentinel.wait(), Some(0));
    }
}

#[test]
fn a_job_runs_over_curve_and_keys_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let input = dir.path().join("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let (secret, key) = keygen(dir.path(), "sentinel");
    let (first_secret, first) = keygen(dir.path(), "first");
    let (second_secret, second) = keygen(dir.path(), "second");
    let list = dir.path().join("authorized");
    std::fs::write(&list, format!("# workers\n{first} first\n")).unwrap();
    let (mut sentinel, endpoint) = sentinel(
        &database,
        &[
            "--curve-secret-key",
            text(&secret),
            "--authorized-keys",
            text(&list),
        ],
    );
    let with = |secret: &Path, server: &str, id: &str| {
        worker(
            &endpoint,
            &dir.path().join("out"),
            &[
                "--worker-id",
                id,
                "--curve-secret-key",
                text(secret),
                "--curve-server-key",
                server,
            ],
        )
    };
    let mut able = with(&first_secret, &key, "w-1");
    able.line_with("connected");
    let id = submit(&database, "one", std::slice::from_ref(&input))[0];
    assert_eq!(ended(&database, id)["status"], "COMPLETED");

    // Neither an unlisted key, nor none at all, nor the wrong sentinel's.
    let mut unlisted = with(
        &second_secret,
        text(&dir.path().join("sentinel.pub")),
        "w-2",
    );
    let said = sentinel.line_with("handshake failed");
    assert!(said.contains(&second), "{said}");
    let mut plain = worker(&endpoint, &dir.path().join("out"), &[]);
    sentinel.line_with("mechanism");
    let mut misled = with(&first_secret, &second, "w-3");
    misled.line_with("handshake failed");

    // A slip in the list changes nothing; a good list lets the second worker in and the first
    // out.
    std::fs::write(&list, "nonsense\n").unwrap();
    sentinel.line_with("stay as they were");
    // Said once, and again when asked to read.
    sentinel.signal("-HUP");
    sentinel.line_with("stay as they were");
    std::fs::write(&list, format!("{second} second\n")).unwrap();
    sentinel.line_with("1 listed");
    sentinel.line_with("no longer authorized");
    unlisted.line_with("connected");
    let id = submit(&database, "one", std::slice::from_ref(&input))[0];
    assert_eq!(ended(&database, id)["status"], "COMPLETED");
    sentinel.signal("-HUP");
    sentinel.line_with("authorized keys: unchanged");
    // Two keys of one name may be meant, or not.
    std::fs::write(&list, format!("{first} same\n{second} same\n")).unwrap();
    sentinel.line_with("several have the name \"same\"");

    for program in [
        &mut able,
        &mut unlisted,
        &mut plain,
        &mut misled,
        &mut sentinel,
    ] {
        program.signal("-TERM");
        assert_eq!(program.wait(), Some(0), "{:#?}", program.seen);
        for file in [&secret, &first_secret, &second_secret] {
            let held = std::fs::read_to_string(file).unwrap();
            let held = held.lines().last().unwrap();
            assert!(!program.seen.iter().any(|line| line.contains(held)));
        }
    }
}

#[test]
fn any_key_is_let_in_by_an_option_of_that_name() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, key) = keygen(dir.path(), "sentinel");
    let (_sentinel, endpoint) = sentinel(
        &dir.path().join("q.sqlite"),
        &["--curve-secret-key", text(&secret), "--authorize-any-key"],
    );
    let mut worker = worker(
        &endpoint,
        &dir.path().join("out"),
        &["--curve-server-key", &key],
    );
    worker.line_with("connected");
}

#[test]
fn a_worker_with_the_id_of_another_keys_worker_ends_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with(dir.path(), "one", ONE_ROW);
    let (secret, key) = keygen(dir.path(), "sentinel");
    let keys = ["first", "second"].map(|name| keygen(dir.path(), name));
    let list = dir.path().join("authorized");
    let lines = keys.each_ref().map(|(_, key)| key.as_str()).join("\n");
    std::fs::write(&list, lines + "\n").unwrap();
    let (_sentinel, endpoint) = sentinel(
        &database,
        &[
            "--curve-secret-key",
            text(&secret),
            "--authorized-keys",
            text(&list),
        ],
    );
    let [mut first, mut second] = keys.each_ref().map(|(secret, _)| {
        let mut started = worker(
            &endpoint,
            &dir.path().join("out"),
            &[
                "--worker-id",
                "w-1",
                "--curve-secret-key",
                text(secret),
                "--curve-server-key",
                &key,
            ],
        );
        started.line_with("connected");
        until("the ID is taken", || {
            let shown = casparian_ok(&["workers", "--database", text(&database)]);
            shown.contains("w-1").then_some(())
        });
        started
    });
    assert_eq!(second.wait(), Some(1));
    let refused = second.seen.join("\n");
    assert!(refused.contains("--worker-id"), "{refused}");
    first.signal("-TERM");
    assert_eq!(first.wait(), Some(0), "{:#?}", first.seen);
}
