//! Deploying over the wire: clients of the old system and ours, signed and not.

use std::path::{Path, PathBuf};

use casparian::store::{artifact_hash, sha256_hex};
use serde_json::{Value, json};

use crate::common::*;
use crate::curve::keygen;

const SOURCE: &str = "import pyarrow as pa\nfrom casparian_flow.sdk import PluginMetadata\nMANIFEST = PluginMetadata(pattern='*.csv', topic='sales', priority=5)\nclass Handler:\n    def execute(self, path):\n        yield pa.table({'x': [1, 2, 3]})\n";

/// A publisher's key pair: its secret file and the line for a list.
fn publisher(dir: &Path, name: &str) -> (PathBuf, String) {
    let path = dir.join(format!("{name}.key"));
    let text = path.to_str().unwrap();
    let line = casparian_ok(&["keygen", "--publisher", text, "--name", name]);
    assert_eq!(
        casparian_ok(&["keygen", "--publisher", "--show", text]),
        line
    );
    (path, line)
}

/// A folder with a database, a publisher `ana` and a list that has her.
struct Scene {
    dir: tempfile::TempDir,
    database: PathBuf,
    key: PathBuf,
    list: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("queue.sqlite");
        casparian_ok(&["init", database.to_str().unwrap()]);
        let (key, line) = publisher(dir.path(), "ana");
        let list = dir.path().join("publishers");
        std::fs::write(&list, line).unwrap();
        Scene {
            dir,
            database,
            key,
            list,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sentinel(&self, more: &[&str]) -> (Background, String) {
        let list = ["--trusted-publishers", self.list.to_str().unwrap()];
        sentinel(&self.database, &[&list, more].concat())
    }

    /// A payload that ana has signed for the default environment.
    fn signed(&self, plugin: &str, source: &str) -> Value {
        let key = casparian::sentinel::publishers::read_publisher(&self.key).unwrap();
        let hash = artifact_hash(source, "");
        json!({
            "plugin_name": plugin, "version": "1.2.0", "source_code": source,
            "lockfile_content": "", "env_hash": sha256_hex(&[b""]),
            "signature": key.sign(&hash).unwrap(), "artifact_hash": hash,
            "publisher_name": "ana", "publisher_email": null, "azure_oid": null,
            "system_requirements": ["glibc_2.31"],
        })
    }
}

fn old_client(endpoint: &str) -> Background {
    Background::start(peer("old_client.py").args(["--connect", endpoint, "--job-id", "7"]))
}

fn ask(client: &mut Background, message: &Value) -> Value {
    client.write(&message.to_string());
    let answer = client.event("answer");
    assert_eq!(answer["job_id"], 7, "the answer repeats it");
    answer
}

fn manifest_id(answer: &Value) -> i64 {
    assert_eq!(answer["opcode"], "CONCLUDE", "{answer}");
    assert_eq!(answer["payload"]["status"], "SUCCESS");
    answer["payload"]["metrics"]["manifest_id"]
        .as_i64()
        .unwrap()
}

fn refusal(answer: &Value) -> String {
    assert_eq!(answer["opcode"], "ERR", "{answer}");
    answer["payload"]["message"].as_str().unwrap().to_owned()
}

#[test]
fn an_old_client_deploys_what_then_runs() {
    let scene = Scene::new();
    let (_sentinel, endpoint) = scene.sentinel(&[]);
    let out = scene.path("out");
    let _worker = worker(&endpoint, &out, &[]);
    let mut client = old_client(&endpoint);
    let payload = scene.signed("sales", SOURCE);
    let first = manifest_id(&ask(&mut client, &json!({"payload": payload})));
    let input = scene.path("in.csv");
    std::fs::write(&input, "1\n").unwrap();
    let run = |source: &str| {
        let id = submit(&scene.database, "sales", std::slice::from_ref(&input))[0];
        let done = ended(&scene.database, id);
        assert_eq!(done["status"], "COMPLETED", "{done}");
        assert_eq!(done["receipt"]["metrics"]["rows"], 3, "{source}");
    };
    run(SOURCE);
    // The same again is the same manifest; a client of ours does it, too.
    assert_eq!(
        manifest_id(&ask(&mut client, &json!({"payload": payload}))),
        first
    );
    let file = scene.path("sales.deploy.json");
    std::fs::write(&file, payload.to_string()).unwrap();
    let text = file.to_str().unwrap();
    let said = casparian_ok(&["deploy", text, "--connect", &endpoint]);
    assert!(said.contains(&format!("manifest {first}")), "{said}");
    run(SOURCE);
    let rows = sql(
        &scene.database,
        "SELECT m.status, m.version, p.name, length(m.signature), m.system_requirements \
         FROM cf_plugin_manifest m JOIN cf_publisher p ON p.id = m.publisher_id; \
         SELECT pattern, tag, priority FROM cf_routing_rule",
    );
    assert_eq!(
        rows,
        "ACTIVE 1.2.0 ana 128 [\"glibc_2.31\"]\n*.csv auto_sales 5"
    );
}

#[test]
fn a_bad_deployment_costs_only_itself_and_none_of_its_source_is_logged() {
    let scene = Scene::new();
    let (mut sentinel, endpoint) = scene.sentinel(&[]);
    let mut client = old_client(&endpoint);
    let good = scene.signed("sales", SOURCE);
    let with = |field: &str, value: Value| {
        let mut payload = good.clone();
        payload[field] = value;
        json!({"payload": payload})
    };
    let secret = "class Marked: pass\n";
    let other = scene.signed("other", &format!("{SOURCE}{secret}"));
    let broken = scene.signed(
        "sales",
        &format!("MANIFEST = PluginMetadata(pattern={secret:?}[0])\n"),
    );
    let giant = format!("{SOURCE}#{}", "y".repeat(9 << 20));
    let long = format!("[{}]", vec!["\"\""; 1 << 20].join(","));
    for (message, want) in [
        (
            with("signature", other["signature"].clone()),
            "signature is not one by",
        ),
        (with("signature", json!("")), "signature is missing"),
        (with("publisher_name", json!("eve")), "trusted publishers"),
        (
            with("source_code", other["source_code"].clone()),
            "artifact_hash",
        ),
        (with("env_hash", json!("dd".repeat(32))), "env_hash"),
        (with("plugin_name", json!("../../x")), "plugin_name"),
        (with("source_code", json!(null)), "expected a string"),
        (
            json!({"payload": scene.signed("sales", &giant)}),
            "source_code has",
        ),
        (json!({"payload": broken}), "MANIFEST"),
        (
            json!({"raw": format!("{secret:?}")}),
            "payload of Deploy refused",
        ),
        (
            json!({"raw": format!("{{\"plugin_name\": {secret:?}")}),
            "EOF",
        ),
        (json!({"raw": ""}), "EOF"),
        (
            json!({"raw": format!("{{\"system_requirements\":{long}}}")}),
            "at most 100",
        ),
        (json!({"raw": "[".repeat(100_000)}), "refused"),
    ] {
        let reason = refusal(&ask(&mut client, &message));
        assert!(reason.contains(want), "{want}: {reason}");
    }
    assert_eq!(
        sql(&scene.database, "SELECT count(*) FROM cf_plugin_manifest"),
        "0"
    );
    // The same connection goes on, and so does everybody else.
    manifest_id(&ask(&mut client, &json!({"payload": good})));
    sentinel.line_with("manifest 1");
    sentinel.signal("-TERM");
    assert_eq!(sentinel.wait(), Some(0));
    let log = sentinel.seen.join("\n");
    assert!(
        log.contains("deployed by") && log.contains("signed by \"ana\""),
        "{log}"
    );
    assert!(!log.contains("Marked") && !log.contains("Handler"), "{log}");
}

#[test]
fn without_a_list_deployments_are_refused_unless_they_need_no_signature() {
    let scene = Scene::new();
    let signed = scene.signed("sales", SOURCE);
    {
        let (_sentinel, endpoint) = sentinel(&scene.database, &[]);
        let reason = refusal(&ask(
            &mut old_client(&endpoint),
            &json!({"payload": signed}),
        ));
        assert!(reason.contains("--trusted-publishers"), "{reason}");
        let nonsense = json!({"raw": "nonsense"});
        let unread = refusal(&ask(&mut old_client(&endpoint), &nonsense));
        assert_eq!(unread, reason, "it is not read");
    }
    let mut unsigned = signed.clone();
    (unsigned["signature"], unsigned["publisher_name"]) = (json!(""), json!("bob"));
    {
        let (_sentinel, endpoint) = sentinel(&scene.database, &["--allow-unsigned"]);
        let mut client = old_client(&endpoint);
        manifest_id(&ask(&mut client, &json!({"payload": unsigned})));
        manifest_id(&ask(&mut client, &json!({"payload": signed})));
        let stored = "SELECT count(*), count(signature) FROM cf_plugin_manifest";
        assert_eq!(
            sql(&scene.database, stored),
            "1 0",
            "what is not verified is not stored"
        );
        unsigned["artifact_hash"] = json!("ee".repeat(32));
        let reason = refusal(&ask(&mut client, &json!({"payload": unsigned})));
        assert!(reason.contains("artifact_hash"), "{reason}");
    }
    let (_sentinel, endpoint) = scene.sentinel(&["--allow-unsigned"]);
    let mut posing = signed;
    posing["signature"] = json!("");
    let reason = refusal(&ask(
        &mut old_client(&endpoint),
        &json!({"payload": posing}),
    ));
    assert!(reason.contains("trusted publisher"), "{reason}");
}

#[test]
fn the_list_of_publishers_is_followed() {
    let scene = Scene::new();
    let (bob, line) = publisher(scene.dir.path(), "bob");
    let (mut sentinel, endpoint) = scene.sentinel(&[]);
    let mut client = old_client(&endpoint);
    let hash = artifact_hash(SOURCE, "");
    let mut payload = scene.signed("sales", SOURCE);
    let key = casparian::sentinel::publishers::read_publisher(&bob).unwrap();
    payload["publisher_name"] = json!("bob");
    payload["signature"] = json!(key.sign(&hash).unwrap());
    let message = json!({"payload": payload});
    refusal(&ask(&mut client, &message));
    std::fs::write(&scene.list, "nonsense\n").unwrap();
    sentinel.line_with("stay as they were");
    manifest_id(&ask(
        &mut client,
        &json!({"payload": scene.signed("sales", SOURCE)}),
    ));
    std::fs::write(&scene.list, line).unwrap();
    // Ana's key goes with the second look, or at once.
    sentinel.signal("-HUP");
    sentinel.line_with("read again, 1 key");
    manifest_id(&ask(&mut client, &message));
    let reason = refusal(&ask(
        &mut client,
        &json!({"payload": scene.signed("sales", SOURCE)}),
    ));
    assert!(reason.contains("trusted publishers"), "{reason}");
}

#[test]
fn jobs_that_run_keep_their_code_while_another_version_is_deployed() {
    let scene = Scene::new();
    let (_sentinel, endpoint) = scene.sentinel(&[]);
    let mut client = old_client(&endpoint);
    let gate = scene.path("gate");
    let waiting = format!(
        "{}\n",
        SOURCE.replace(
            "        yield",
            &format!("        import os, time\n        while not os.path.exists({gate:?}):\n            time.sleep(0.01)\n        yield")
        )
    );
    let first = manifest_id(&ask(
        &mut client,
        &json!({"payload": scene.signed("sales", &waiting)}),
    ));
    let _worker = worker(&endpoint, &scene.path("out"), &["--slots", "1"]);
    let inputs = [scene.path("a.csv"), scene.path("b.csv")];
    for input in &inputs {
        std::fs::write(input, "1\n").unwrap();
    }
    let ids = submit(&scene.database, "sales", &inputs);
    until("the job runs", || {
        (job(&scene.database, ids[0])["status"] == "RUNNING").then_some(())
    });
    let two_rows = SOURCE.replace("[1, 2, 3]", "[1, 2]");
    let second = manifest_id(&ask(
        &mut client,
        &json!({"payload": scene.signed("sales", &two_rows)}),
    ));
    assert_ne!(first, second);
    std::fs::write(&gate, "").unwrap();
    let rows = ids
        .iter()
        .map(|id| ended(&scene.database, *id)["receipt"]["metrics"]["rows"].clone());
    assert_eq!(rows.collect::<Vec<_>>(), [3, 2]);
}

#[test]
fn a_plugin_is_signed_here_and_deployed_there_over_curve() {
    let scene = Scene::new();
    let (server, server_key) = keygen(scene.dir.path(), "sentinel");
    let (client, client_key) = keygen(scene.dir.path(), "client");
    let (stranger, _) = keygen(scene.dir.path(), "stranger");
    let allowed = scene.path("authorized");
    std::fs::write(&allowed, format!("{client_key} client\n")).unwrap();
    let (_sentinel, endpoint) = scene.sentinel(&[
        "--curve-secret-key",
        server.to_str().unwrap(),
        "--authorized-keys",
        allowed.to_str().unwrap(),
    ]);
    let plugin = scene.path("sales.py");
    std::fs::write(&plugin, SOURCE).unwrap();
    let bundle = scene.path("signed.json");
    let (plugin, bundle) = (plugin.to_str().unwrap(), bundle.to_str().unwrap());
    let key = scene.key.to_str().unwrap();
    let said = casparian_ok(&["sign", plugin, "--publisher-key", key, "--out", bundle]);
    assert!(said.contains("ana"), "{said}");
    let deploy = |what: &str, secret: &Path, more: &[&str]| {
        let secret = secret.to_str().unwrap();
        let connection = [
            "--curve-server-key",
            &server_key,
            "--curve-secret-key",
            secret,
        ];
        let arguments = ["deploy", what, "--connect", &endpoint];
        casparian(&[&arguments[..], &connection, more].concat())
    };
    let done = deploy(bundle, &client, &[]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(stdout(&done).contains("manifest 1"), "{}", stdout(&done));
    // A connection's key is no publisher's: without a signature nothing is deployed.
    let unsigned = deploy(plugin, &client, &[]);
    assert_eq!(unsigned.status.code(), Some(1));
    assert!(
        stderr(&unsigned).contains("trusted publishers"),
        "{}",
        stderr(&unsigned)
    );
    let direct = deploy(
        plugin,
        &client,
        &["--publisher-key", key, "--version", "2.0"],
    );
    assert!(direct.status.success(), "{}", stderr(&direct));
    let versions = "SELECT version FROM cf_plugin_manifest";
    assert_eq!(sql(&scene.database, versions), "2.0");
    // A publisher without a listed connection does not get in.
    let refused = deploy(bundle, &stranger, &[]);
    assert_eq!(refused.status.code(), Some(1), "{}", stdout(&refused));
    assert!(
        stderr(&refused).contains("not let in"),
        "{}",
        stderr(&refused)
    );
    let nobody = scene.path("nobody");
    let nobody = format!("ipc://{}", nobody.display());
    let refused = casparian(&["deploy", bundle, "--connect", &nobody]);
    assert!(
        stderr(&refused).contains("no connection"),
        "{}",
        stderr(&refused)
    );
}

#[test]
fn errors_of_command_lines_about_deployments_state_what_to_do() {
    let scene = Scene::new();
    let database = scene.database.to_str().unwrap();
    let (key, list) = (scene.key.to_str().unwrap(), scene.list.to_str().unwrap());
    let plain = scene.path("plain.py");
    std::fs::write(&plain, "class Handler: pass\n").unwrap();
    let plain = plain.to_str().unwrap();
    let nowhere = "ipc:///nowhere/socket";
    for (arguments, code, want) in [
        (
            &["deploy", "x.json", "-d", database][..],
            2,
            "needs --connect",
        ),
        (
            &["deploy", plain, "--publisher-key", key, "-d", database][..],
            2,
            "needs --connect",
        ),
        (
            &["deploy", plain, "--connect", nowhere, "-d", database],
            2,
            "exclude each other",
        ),
        (&["deploy", plain, "--connect", "http://x"], 2, "--connect"),
        (
            &["deploy", plain, "--connect", nowhere],
            1,
            "has no MANIFEST",
        ),
        (
            &[
                "deploy",
                plain,
                "--connect",
                nowhere,
                "--publisher-key",
                list,
            ],
            1,
            "chmod 600",
        ),
        (
            &["deploy", "x.json", "--connect", nowhere, "--version", "1"],
            2,
            "--version",
        ),
        (
            &["deploy", "/nowhere/x.json", "--connect", nowhere],
            1,
            "/nowhere/x.json",
        ),
        (&["sign", plain], 2, "--publisher-key is missing"),
        (&["keygen", "--publisher", key], 1, "--force"),
        (&["keygen", "--publisher", "x", "--name", " "], 2, "--name"),
    ] {
        let refused = casparian(arguments);
        let text = stderr(&refused);
        assert_eq!(refused.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(want), "{arguments:?}: {text}");
    }
    let refused =
        output(program("casparian-sentinel").args(["-d", database, "--trusted-publishers", key]));
    assert!(
        stderr(&refused).contains("secret key"),
        "{}",
        stderr(&refused)
    );
}

#[test]
fn a_deployment_that_is_too_large_is_refused_with_and_without_a_sentinel() {
    let scene = Scene::new();
    let (_sentinel, endpoint) = scene.sentinel(&[]);
    let big = scene.path("big.py");
    std::fs::write(&big, format!("{SOURCE}#{}", "x".repeat(8 << 20))).unwrap();
    let small = scene.path("small.py");
    std::fs::write(&small, SOURCE).unwrap();
    let lock = scene.path("uv.lock");
    let line = format!("version = 1\n#{}\n", "x".repeat(4 << 20));
    std::fs::write(&lock, line).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (big, small, lock) = (text(&big), text(&small), text(&lock));
    let (database, key) = (text(&scene.database), text(&scene.key));
    for (arguments, want) in [
        (vec![&*big], "larger than 8388608 bytes"),
        (vec![&*small, "--lockfile", &*lock], "lockfile_content has"),
    ] {
        for target in [
            &["--database", &*database][..],
            &["--connect", &*endpoint, "--publisher-key", &*key],
        ] {
            let refused = casparian(&[&["deploy"], &arguments[..], target].concat());
            let text = stderr(&refused);
            assert_eq!(refused.status.code(), Some(1), "{text}");
            assert!(text.contains(want), "{text}");
        }
    }
    // A client that does not check it.
    let mut client = old_client(&endpoint);
    let signed = scene.signed("big", &std::fs::read_to_string(&big).unwrap());
    let answer = ask(&mut client, &json!({"payload": signed}));
    let reason = refusal(&answer);
    assert!(reason.contains("source_code has"), "{reason}");
    let count = sql(&scene.database, "SELECT count(*) FROM cf_plugin_manifest");
    assert_eq!(count, "0");
}
