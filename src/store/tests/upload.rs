//! Tests of the rows of deployments over the wire.

use super::*;

const SOURCE: &str = "MANIFEST = PluginMetadata(pattern='*.csv', topic='sales')\n";

fn upload(lockfile: &str) -> Upload {
    Upload {
        plugin_name: "sales".to_owned(),
        version: Some("1.2.0".to_owned()),
        source_code: SOURCE.to_owned(),
        lockfile_content: lockfile.to_owned(),
        signature: Some("ff".repeat(64)),
        author: Author {
            name: "ana".to_owned(),
            email: Some("ana@example.com".to_owned()),
            azure_oid: None,
        },
        system_requirements: vec!["glibc_2.31".to_owned()],
        manifest: Manifest {
            pattern: "*.csv".to_owned(),
            topic: "sales".to_owned(),
            subscriptions: vec!["raw".to_owned()],
            priority: 50,
            sinks: Vec::new(),
            version: None,
            description: None,
        },
    }
}

impl Scene {
    fn upload(&mut self, upload: &Upload, at_ms: i64) -> Result<Deployed, String> {
        let mut transaction = self.store.begin().unwrap();
        let done = transaction.deploy_upload(upload, DAY_MS + at_ms).unwrap();
        transaction.commit().unwrap();
        done
    }
}

#[test]
fn an_upload_writes_the_rows_of_the_reference() {
    let mut scene = Scene::legacy();
    // Plugin and publisher exist, written by the reference system.
    let first = scene.upload(&upload("version = 1\n"), 0).unwrap();
    assert!(first.new);
    let row = scene.text(&format!(
        "SELECT plugin_name || '|' || version || '|' || source_hash || '|' || status || '|' || \
         signature || '|' || deployed_at || '|' || env_hash || '|' || artifact_hash || '|' || \
         publisher_id || '|' || system_requirements FROM cf_plugin_manifest WHERE id = {}",
        first.manifest_id
    ));
    let want = [
        "sales",
        "1.2.0",
        &sha256_hex(&[SOURCE.as_bytes()]),
        "ACTIVE",
        &"ff".repeat(64),
        "2025-12-20 12:00:00.000000",
        &sha256_hex(&[b"version = 1\n"]),
        &artifact_hash(SOURCE, "version = 1\n"),
        "1",
        "[\"glibc_2.31\"]",
    ];
    assert_eq!(row, want.join("|"));
    assert_eq!(
        scene.text("SELECT count(*) || max(name) FROM cf_publisher"),
        "1ana"
    );
    let rules =
        "SELECT group_concat(pattern || ' ' || tag || ' ' || priority) FROM cf_routing_rule";
    assert_eq!(scene.text(rules), "*.csv auto_sales 50");
    let config = "SELECT subscription_tags || default_parameters FROM cf_plugin_config \
                  WHERE plugin_name = 'sales'";
    assert_eq!(scene.text(config), "auto_sales{}");
    let subscriptions = "SELECT plugin_name || topic_name || is_active FROM cf_plugin_subscription";
    assert_eq!(scene.text(subscriptions), "salesraw1");
    // A repeated deployment changes only times. A new lockfile updates the row of the source.
    let again = scene.upload(&upload("version = 1\n"), 1000).unwrap();
    assert_eq!((again.manifest_id, again.new), (first.manifest_id, false));
    let mut other = upload("version = 2\n");
    other.signature = None;
    let updated = scene.upload(&other, 2000).unwrap();
    assert_eq!(updated.manifest_id, first.manifest_id);
    let row = scene.text(&format!(
        "SELECT env_hash || coalesce(signature, '-') FROM cf_plugin_manifest WHERE id = {}",
        first.manifest_id
    ));
    assert_eq!(row, format!("{}-", sha256_hex(&[b"version = 2\n"])));
    assert_eq!(scene.text(rules), "*.csv auto_sales 50");
    // Values that operators have set stay.
    scene.sql(
        "UPDATE cf_plugin_config SET subscription_tags = 'mine' WHERE plugin_name = 'sales'; \
         UPDATE cf_plugin_subscription SET is_active = 0",
    );
    scene.upload(&other, 3000).unwrap();
    assert_eq!(scene.text(config), "mine,auto_sales{}");
    assert_eq!(scene.text(subscriptions), "salesraw0");
    let mut transaction = scene.store.begin().unwrap();
    let code = transaction.plugin_code("sales").unwrap().runs().unwrap();
    assert_eq!(
        (code.manifest_id, code.version.as_str()),
        (first.manifest_id, "1.2.0")
    );
}

/// The value of `signature` was verified over the value of `artifact_hash`.
#[test]
fn a_signature_goes_with_the_artifact_that_it_is_of() {
    let mut scene = Scene::new();
    scene.upload(&upload("version = 1\n"), 0).unwrap();
    let local = |lockfile| Deploy {
        plugin_name: "sales",
        version: None,
        source_code: SOURCE,
        lockfile_content: lockfile,
        sinks: &[],
    };
    let row = "SELECT coalesce(signature, '-') || coalesce(publisher_id, '-') \
               FROM cf_plugin_manifest WHERE plugin_name = 'sales'";
    for (lockfile, want) in [
        ("version = 1\n", format!("{}1", "ff".repeat(64))),
        ("", "--".into()),
    ] {
        let mut transaction = scene.store.begin().unwrap();
        transaction.deploy(&local(lockfile), DAY_MS + 1).unwrap();
        transaction.commit().unwrap();
        assert_eq!(scene.text(row), want);
    }
}

#[test]
fn publishers_are_known_by_name_and_keep_their_directory_ids() {
    let mut scene = Scene::new();
    let by = |name: &str, oid: Option<&str>| Upload {
        author: Author {
            name: name.to_owned(),
            email: None,
            azure_oid: oid.map(str::to_owned),
        },
        ..upload("")
    };
    scene.upload(&by("ana", None), 0).unwrap();
    scene.upload(&by("ana", Some("oid-1")), 0).unwrap();
    scene.upload(&by("bob", Some("oid-2")), 0).unwrap();
    // Signatures do not cover the directory ID. So its sender cannot prevent other publishers from deploying.
    scene.upload(&by("bob", Some("oid-1")), 0).unwrap();
    scene.upload(&by("cyd", Some("oid-1")), 0).unwrap();
    let all = "SELECT group_concat(name || coalesce(azure_oid, '')) FROM (SELECT * FROM cf_publisher ORDER BY id)";
    assert_eq!(scene.text(all), "anaoid-1,boboid-2,cyd");
}

/// A deployment that the database refuses is rolled back completely. Other changes of the transaction stay.
#[test]
fn a_refused_upload_leaves_nothing_and_takes_nothing_with_it() {
    let trigger = |action: &str| {
        format!(
            "CREATE TRIGGER no AFTER INSERT ON cf_routing_rule BEGIN SELECT RAISE({action}, 'no'); END"
        )
    };
    for action in ["ABORT", "FAIL", "ROLLBACK"] {
        let mut scene = Scene::new();
        scene.sql(&trigger(action));
        let mut tries = 0;
        let refused = loop {
            tries += 1;
            let mut transaction = scene.store.begin().unwrap();
            transaction.enqueue("p", 1, 0, DAY_MS).unwrap();
            match transaction.deploy_upload(&upload(""), DAY_MS) {
                Ok(done) => {
                    transaction.commit().unwrap();
                    break done.unwrap_err();
                }
                Err(Error::RolledBack { .. }) => assert!(tries < 2, "it is not tried again"),
                Err(other) => panic!("{other}"),
            }
        };
        assert!(refused.contains("the database"), "{action}: {refused}");
        for table in ["cf_routing_rule", "cf_publisher"] {
            assert_eq!(
                scene.text(&format!("SELECT count(*) || '' FROM {table}")),
                "0"
            );
        }
        let manifests = "SELECT group_concat(plugin_name) FROM cf_plugin_manifest";
        assert_eq!(scene.text(manifests), "p");
        assert_eq!(
            scene.text("SELECT count(*) || '' FROM cf_processing_queue"),
            "1"
        );
    }
    let mut scene = Scene::new();
    scene.sql("DROP TABLE cf_publisher");
    let refused = scene.upload(&upload(""), 0).unwrap_err();
    assert!(refused.contains("cf_publisher"), "{refused}");
}
