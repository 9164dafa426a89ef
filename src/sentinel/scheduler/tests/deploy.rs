//! Tests of deployments with the other changes of an iteration.

use super::*;
use crate::protocol::Deploy;
use crate::sentinel::control::Body;
use crate::sentinel::publishers::Trust;

const SOURCE: &str = "MANIFEST = PluginMetadata(pattern='*.csv', topic='sales')\n";

impl Scene {
    /// Passes in a DEPLOY of plugin `sales` by a client.
    fn deploy_over_the_wire(&mut self) {
        self.upload("");
    }

    /// The same with a lockfile.
    fn upload(&mut self, lockfile: &str) {
        let trust = Trust {
            publishers: None,
            allow_unsigned: true,
        };
        let control = &mut self.scheduler.as_mut().unwrap().control;
        control.set_trust(trust);
        let deploy = Deploy {
            plugin_name: "sales".into(),
            version: "1".into(),
            source_code: SOURCE.into(),
            lockfile_content: lockfile.into(),
            env_hash: store::sha256_hex(&[lockfile.as_bytes()]).into(),
            artifact_hash: store::artifact_hash(SOURCE, lockfile).into(),
            signature: "".into(),
            publisher_name: "ana".into(),
            publisher_email: None,
            azure_oid: None,
            system_requirements: None,
        };
        self.send_as("c", 7, Payload::Deploy(Box::new(deploy)));
    }
}

/// The answers to the client: the manifest, or the reason.
fn answers(outgoing: &[Outgoing]) -> Vec<Result<i64, String>> {
    let to_client = outgoing.iter().filter(|message| message.job_id == 7);
    let answer = |message: &Outgoing| match &message.body {
        Body::Payload(Payload::Conclude(receipt)) => Some(Ok(receipt.metrics["manifest_id"])),
        Body::Payload(Payload::Err(error)) => Some(Err(error.message.to_string())),
        _ => None,
    };
    to_client.filter_map(answer).collect()
}

#[test]
fn a_deployment_that_the_database_refuses_costs_nothing_else() {
    for action in ["ABORT", "FAIL", "ROLLBACK"] {
        let mut scene = Scene::new();
        let version = scene.deploy("p");
        scene.sql(&format!(
            "INSERT INTO cf_processing_queue (id, file_version_id, plugin_name, status) \
             VALUES (1, {version}, 'p', 'QUEUED'); \
             CREATE TRIGGER no AFTER INSERT ON cf_routing_rule BEGIN \
             SELECT RAISE({action}, 'no'); END"
        ));
        scene.identify();
        scene.settle();
        assert_eq!(scene.status(1), "RUNNING");
        scene.deploy_over_the_wire();
        let receipt = Receipt {
            status: JobStatus::Success,
            attempt: Some(1),
            ..Receipt::default()
        };
        scene.send(1, Payload::Conclude(receipt));
        let answers_now = answers(&scene.tick());
        assert!(
            matches!(&answers_now[..], [Err(reason)] if reason.contains("the database")),
            "{action}: {answers_now:?}"
        );
        assert_eq!(scene.status(1), "COMPLETED", "{action}");
        let manifests = "SELECT '' || count(*) FROM cf_plugin_manifest";
        assert_eq!(scene.text(manifests), "1");
        // After the trigger is dropped, the deployment is accepted, possibly after several tries.
        scene.sql("DROP TRIGGER no");
        let taken = (0..600).any(|_| {
            scene.deploy_over_the_wire();
            matches!(&answers(&scene.tick())[..], [Ok(_)])
        });
        assert!(taken, "{action}");
    }
}

#[test]
fn a_deployment_is_answered_after_its_commit_and_its_jobs_run() {
    let mut scene = Scene::new();
    let version = scene.deploy("p");
    scene.sql(&format!(
        "INSERT INTO cf_processing_queue (id, file_version_id, plugin_name, status) \
         VALUES (1, {version}, 'sales', 'QUEUED')"
    ));
    scene.identify();
    scene.settle();
    assert_eq!(scene.status(1), "QUEUED");
    let other = Connection::open(scene.dir.path().join("q.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    scene.deploy_over_the_wire();
    assert_eq!(answers(&scene.tick()), []);
    other.execute_batch("COMMIT").unwrap();
    // The database is tried again after a pause.
    let mut ticks = (0..5).map(|_| answers(&scene.tick()));
    let found = ticks.find(|answers| !answers.is_empty());
    assert!(matches!(found.as_deref(), Some([Ok(_)])), "{found:?}");
    assert_eq!(scene.status(1), "RUNNING", "in the same transaction");
}

#[test]
fn workers_are_notified_of_a_deployment_in_the_iteration_that_commits_it() {
    let mut scene = Scene::new();
    scene.deploy("p");
    scene.introduce_as("x", &["*"], &[]);
    scene.introduce_as("y", &["p"], &[]);
    scene.tick();
    for lockfile in [
        "version = 1\n[options]\n",
        "version = 1\n# another\n[options]\n",
    ] {
        scene.upload(lockfile);
        // An iteration without time passing.
        let (now, at) = scene.now();
        let outgoing = scene.scheduler.as_mut().unwrap().iterate(now, &at);
        let sent: Vec<(PeerId, &str)> = outgoing
            .iter()
            .filter_map(|message| match &message.body {
                Body::Payload(Payload::Conclude(_)) => Some((message.peer, "conclude")),
                Body::Payload(Payload::Reload) => Some((message.peer, "reload")),
                Body::Payload(Payload::PrepareEnv(prepare)) => {
                    assert_eq!(prepare.lockfile_content, lockfile);
                    Some((message.peer, "prepare"))
                }
                _ => None,
            })
            .collect();
        let peer = |name: char| PeerId::from_u64(u64::from(name));
        assert_eq!(
            sent,
            [
                (peer('c'), "conclude"),
                (peer('x'), "reload"),
                (peer('x'), "prepare")
            ]
        );
    }
}
