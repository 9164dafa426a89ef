use std::time::Duration;

use super::*;
use crate::reactor::thread_time;
use crate::sentinel::control::Settings;
use crate::sentinel::publishers::{Publisher, Publishers};
use crate::socket::secured::KeyList;

const SOURCE: &str =
    "MANIFEST = PluginMetadata(pattern='*.csv', topic='sales')\nclass Handler: pass\n";
const LOCK: &str = "version = 1\nrequires-python = \">=3.10\"\n";

fn ana() -> Publisher {
    Publisher::new(&[1; 32], "ana").unwrap()
}

fn trust() -> Trust {
    let list = Publishers::parse(&ana().public_line()).unwrap();
    Trust {
        publishers: Some(Arc::new(list)),
        allow_unsigned: false,
    }
}

/// A deployment that is signed by `ana`.
fn signed(source: &str, lockfile: &str) -> Deploy<'static> {
    let hash = artifact_hash(source, lockfile);
    Deploy {
        plugin_name: "sales".into(),
        version: "1.2.0".into(),
        source_code: source.to_owned().into(),
        lockfile_content: lockfile.to_owned().into(),
        env_hash: sha256_hex(&[lockfile.as_bytes()]).into(),
        signature: ana().sign(&hash).unwrap().into(),
        artifact_hash: hash.into(),
        publisher_name: "ana".into(),
        publisher_email: Some("ana@example.com".into()),
        azure_oid: None,
        system_requirements: Some(vec!["glibc_2.31".to_owned()]),
    }
}

fn reason(deploy: Deploy<'_>) -> String {
    match check(deploy, &trust()) {
        Err(refusal) => refusal.reason,
        Ok(upload) => panic!("{upload:?} was taken"),
    }
}

#[test]
fn a_signed_deployment_is_taken_as_it_is() {
    let upload = check(signed(SOURCE, LOCK), &trust()).unwrap();
    assert_eq!(
        upload.signature.as_deref(),
        Some(&*signed(SOURCE, LOCK).signature)
    );
    assert_eq!(
        (
            upload.source_code.as_str(),
            upload.lockfile_content.as_str()
        ),
        (SOURCE, LOCK)
    );
    assert_eq!(upload.manifest.pattern, "*.csv");
    assert_eq!(upload.author.email.as_deref(), Some("ana@example.com"));
    // Upper-case hashes, and the default environment in both spellings.
    let mut upper = signed(SOURCE, LOCK);
    upper.artifact_hash = upper.artifact_hash.to_uppercase().into();
    upper.env_hash = upper.env_hash.to_uppercase().into();
    check(upper, &trust()).unwrap();
    for env_hash in [String::new(), sha256_hex(&[b""])] {
        let deploy = Deploy {
            env_hash: env_hash.into(),
            version: "".into(),
            ..signed(SOURCE, "")
        };
        assert_eq!(check(deploy, &trust()).unwrap().version, None);
    }
    assert_eq!(
        check(signed(SOURCE, LOCK), &Trust::default())
            .unwrap_err()
            .kind,
        "none are taken"
    );
}

#[test]
fn what_is_malformed_is_refused_with_its_reason() {
    type Change = fn(&mut Deploy<'static>);
    let cases: &[(Change, &str)] = &[
        (|d| d.plugin_name = "".into(), "plugin_name"),
        (|d| d.plugin_name = "a/b".into(), "plugin_name"),
        (|d| d.plugin_name = "..".into(), "plugin_name"),
        (|d| d.plugin_name = " a".into(), "plugin_name"),
        (|d| d.plugin_name = "*".into(), "plugin_name"),
        (
            |d| d.plugin_name = "a?compression=none".into(),
            "plugin_name",
        ),
        (
            |d| d.plugin_name = "a\nb".into(),
            "plugin_name contains control",
        ),
        (
            |d| d.plugin_name = "x".repeat(101).into(),
            "plugin_name has 101 bytes, at most 100",
        ),
        (
            |d| d.version = "1".repeat(51).into(),
            "version has 51 bytes",
        ),
        (
            |d| d.version = "1\x1b[2J".into(),
            "version contains control",
        ),
        (|d| d.publisher_name = "".into(), "publisher_name"),
        (
            |d| d.publisher_name = "x".repeat(256).into(),
            "publisher_name has 256",
        ),
        (
            |d| d.publisher_name = "bob".into(),
            "not one of the sentinel's trusted",
        ),
        (
            |d| d.publisher_email = Some("x".repeat(256).into()),
            "publisher_email has 256",
        ),
        (
            |d| d.azure_oid = Some("x".repeat(37).into()),
            "azure_oid has 37",
        ),
        (
            |d| d.system_requirements = Some(vec!["x".repeat(256)]),
            "system_requirements has 256",
        ),
        (
            |d| d.system_requirements = Some(vec![String::new(); 101]),
            "101 entries, at most 100",
        ),
        (
            |d| d.source_code = "x".repeat((8 << 20) + 1).into(),
            "source_code has 8388609 bytes, at most 8388608",
        ),
        (
            |d| d.lockfile_content = "x".repeat((4 << 20) + 1).into(),
            "lockfile_content has 4194305 bytes, at most 4194304",
        ),
        (
            |d| {
                d.source_code = "x".repeat(7 << 20).into();
                d.lockfile_content = "x".repeat((3 << 20) + 1).into();
            },
            "source_code and lockfile_content together have 10485761 bytes, at most 10485760",
        ),
        (
            |d| d.source_code.to_mut().push('\0'),
            "source_code contains a zero",
        ),
        (
            |d| d.source_code.to_mut().push(' '),
            "artifact_hash is not the SHA-256",
        ),
        (
            |d| d.lockfile_content = "".into(),
            "artifact_hash is not the SHA-256",
        ),
        (
            |d| d.artifact_hash = "".into(),
            "artifact_hash is not a SHA-256",
        ),
        (
            |d| d.artifact_hash = "zz".repeat(32).into(),
            "artifact_hash is not a SHA-256",
        ),
        (
            |d| d.artifact_hash = "ee".repeat(32).into(),
            "signature is not one by",
        ),
        (|d| d.signature = "".into(), "signature is missing"),
        (
            |d| d.signature.to_mut().truncate(126),
            "signature is not 64 bytes",
        ),
        (
            |d| d.signature = "ff".repeat(64).into(),
            "signature is not one by",
        ),
        (
            |d| d.env_hash = "dd".repeat(32).into(),
            "env_hash is not the SHA-256",
        ),
        (|d| d.env_hash = "".into(), "env_hash is not the SHA-256"),
    ];
    for (change, want) in cases {
        let mut deploy = signed(SOURCE, LOCK);
        change(&mut deploy);
        let reason = reason(deploy);
        assert!(reason.contains(want), "{want}: {reason}");
    }
}

#[test]
fn a_deployment_as_large_as_it_may_be_is_taken_and_fits_into_a_frame() {
    let filled = |text: &str, size: usize| {
        let rest = size - text.len() - 1;
        format!("{text}#{}", "\u{1}".repeat(rest))
    };
    let source = filled(SOURCE, limits::DEPLOY_SOURCE_SIZE_MAX);
    let rest = limits::DEPLOY_SIZE_MAX - source.len();
    let deploy = signed(&source, &filled(LOCK, rest));
    let message = Payload::Deploy(Box::new(deploy.clone()));
    let (_, body) = message.encode(1).unwrap();
    assert!(body.len() as u64 <= limits::ZMTP_FRAME_SIZE_MAX);
    check(deploy, &trust()).unwrap();
}

#[test]
fn the_manifest_is_needed_and_read_as_data() {
    let with =
        |arguments: &str| format!("MANIFEST = PluginMetadata({arguments})\nclass Handler: pass\n");
    let many: Vec<String> = (0..1001).map(|number| format!("'t{number}'")).collect();
    for (source, want) in [
        ("class Handler: pass\n".to_owned(), "no MANIFEST"),
        (with("topic='t'"), "pattern is missing"),
        (with("pattern='*'"), "topic is missing"),
        (
            with("pattern='*', topic=__import__('os').system('true')"),
            "MANIFEST",
        ),
        (
            with("pattern='*', topic='t', sinks={'t': 'ftp://x'}"),
            "sink of \"t\"",
        ),
        (
            with(&format!("pattern='{}', topic='t'", "x".repeat(501))),
            "pattern has 501 bytes",
        ),
        (
            with(&format!(
                "pattern='*', topic='t', subscriptions=[{}]",
                many.join(",")
            )),
            "1001 subscriptions, at most 1000",
        ),
    ] {
        let reason = reason(signed(&source, ""));
        assert!(reason.contains(want), "{want}: {reason}");
    }
}

/// The hash does not determine where the source ends. So bytes must not move from one part to the other.
#[test]
fn a_signature_is_good_for_one_division_into_source_and_lockfile() {
    let list = "# casparian requirements 1\nsix\n";
    let versioned = format!("schema_version = 1\nversion = 1\n\n{SOURCE}version = 2\n");
    for (source, lockfile) in [
        (SOURCE, LOCK),
        (SOURCE, list),
        (SOURCE.trim_end(), list),
        (SOURCE.trim_end(), LOCK),
        (&versioned, LOCK),
        (&versioned, list),
        (SOURCE, ""),
        (&versioned, ""),
    ] {
        let whole = format!("{source}{lockfile}");
        check(signed(source, lockfile), &trust()).unwrap();
        for at in (0..=whole.len()).filter(|at| *at != source.len()) {
            let (head, tail) = whole.split_at(at);
            let moved = check(signed(head, tail), &trust());
            assert!(moved.is_err(), "{head:?} {tail:?}");
        }
    }
    let twice = format!("version = 1\nrevision = 2\n{SOURCE}");
    let refusal = reason(signed(&twice, LOCK));
    assert!(
        refusal.contains("begins a lockfile is in line 1"),
        "{refusal}"
    );
    assert!(reason(signed(SOURCE, "requests==2\n")).contains("no uv.lock"));
}

#[test]
fn a_refusal_is_answered_and_logs_nothing_of_the_source() {
    let mut control = Control::new(Settings {
        attempt_timeout: limits::ATTEMPT_TIMEOUT,
        lease: Duration::from_secs(10),
        margin: Duration::from_secs(2),
    });
    let from = Sender {
        peer: PeerId::from_u64(1),
        routing_id: b"client",
        user: None,
    };
    let now = BootTime::after_boot(Duration::from_secs(1));
    control.set_trust(trust());
    let deploy = |deploy| Payload::Deploy(Box::new(deploy));
    control.handle_message(&from, 9, deploy(signed("secret", LOCK)), now);
    assert!(control.take_changes().is_empty());
    let [answer] = &control.take_outgoing()[..] else {
        panic!("one answer is expected");
    };
    assert_eq!(answer.job_id, 9);
    assert!(matches!(&answer.body, Body::Payload(Payload::Err(error)) if !error.refused));
    // A valid deployment is answered only after its transaction.
    control.handle_message(&from, 9, deploy(signed(SOURCE, LOCK)), now);
    let changes = control.take_changes();
    assert!(control.take_outgoing().is_empty());
    assert!(!format!("{changes:?}").contains("Handler"));
    control.handle_deployed(PeerId::from_u64(1), 9, Ok(5));
    let [answer] = &control.take_outgoing()[..] else {
        panic!("one answer is expected");
    };
    match &answer.body {
        Body::Payload(Payload::Conclude(receipt)) => assert_eq!(receipt.metrics["manifest_id"], 5),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_waits_for_a_failing_database_is_bounded_in_bytes() {
    let mut control = Control::new(Settings {
        attempt_timeout: limits::ATTEMPT_TIMEOUT,
        lease: Duration::from_secs(10),
        margin: Duration::from_secs(2),
    });
    let from = Sender {
        peer: PeerId::from_u64(1),
        routing_id: b"client",
        user: None,
    };
    let now = BootTime::after_boot(Duration::from_secs(1));
    control.set_trust(trust());
    let source = format!("{SOURCE}#{}", "x".repeat(1 << 20));
    let deploy = signed(&source, &format!("{LOCK}#{}", "x".repeat(3 << 20)));
    for _ in 0..20 {
        control.handle_message(&from, 0, Payload::Deploy(Box::new(deploy.clone())), now);
    }
    assert_eq!(control.take_outgoing().len(), 4, "answered with ERR");
    let changes = control.take_changes();
    assert_eq!(changes.len(), 16);
    // Their transaction fails, so they wait again.
    control.restore_changes(changes);
    control.handle_message(&from, 0, Payload::Deploy(Box::new(deploy.clone())), now);
    assert_eq!(control.take_outgoing().len(), 1);
    assert_eq!(control.take_changes().len(), 16);
    control.handle_message(&from, 0, Payload::Deploy(Box::new(deploy)), now);
    assert_eq!(control.take_changes().len(), 1);
}

/// The thread time of the checks of a source that consists of a line and a repeated piece. The shortest of
/// three measurements.
fn time(piece: &str, size: usize) -> Duration {
    let mut source = SOURCE.to_owned();
    source.push_str(&piece.repeat(size / piece.len()));
    let deploy = signed(&source, LOCK);
    let times = (0..3).map(|_| {
        let before = thread_time();
        let _ = check(deploy.clone(), &trust());
        thread_time().saturating_sub(before)
    });
    times.min().unwrap_or_default()
}

#[test]
fn checks_take_time_in_proportion_to_the_size() {
    for piece in [
        "#version = 1\n",
        "version = 1\n",
        "version = 1\n#\n",
        "version ",
        "version =",
        "version = 1 ",
        "version = 0",
        "version\u{85}",
        "version = 1\n \n",
        "# casparian requirements ",
        "MANIFEST:[}\n",
        "MANIFEST:{]\n",
        "MANIFEST:[#'''\n]\n",
        "MANIFEST:\\'''\n",
        "MANIFEST:[\\'''\n]\n",
        "MANIFEST:[\n",
        "MANIFEST:'''\n",
        "MANIFEST\\\n",
        "MANIFEST ",
        "MANIFEST==\n",
        "\x0c \n",
        " \x0c",
        "'''\n",
        "(\n",
        "\r",
        "\u{1}",
    ] {
        let (small, large) = (time(piece, 16 << 10), time(piece, 128 << 10));
        assert!(
            large < 20 * small.max(Duration::from_millis(1)),
            "{piece:?}: {small:?} for 16 KiB, {large:?} for 128 KiB"
        );
    }
}
