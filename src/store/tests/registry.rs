use super::*;

#[test]
fn the_newest_deployment_runs_even_when_its_source_is_an_old_one() {
    let mut scene = Scene::new();
    let first = scene.deploy("p", "v1");
    let second = scene.deploy("p", "v2");
    assert!(second.new && second.version != first.version);
    let again = scene.deploy("p", "v1");
    assert_eq!((again.manifest_id, again.new), (first.manifest_id, false));
    let mut transaction = scene.store.begin().unwrap();
    let code = transaction.plugin_code("p").unwrap().runs().unwrap();
    assert_eq!(code.plugin.source_code, "v1", "in the same millisecond");
    let deploy = Deploy {
        plugin_name: "p",
        version: Some("9"),
        source_code: "v1",
        lockfile_content: "lock",
        sinks: &[],
    };
    transaction.deploy(&deploy, DAY_MS + 1000).unwrap();
    let code = transaction.plugin_code("p").unwrap().runs().unwrap();
    assert_eq!(
        (code.plugin.source_code.as_str(), code.version.as_str()),
        ("v1", "9")
    );
    assert_eq!(code.plugin.env_hash, sha256_hex(&[b"lock"]));
    transaction.commit().unwrap();
    // The same source under another name is another manifest.
    assert!(scene.deploy("q", "v1").new);
    // Another program's deployment invalidates the cache.
    let mut other = Store::open(&scene.path(), Open::Existing).unwrap();
    let mut transaction = other.begin().unwrap();
    let deploy = Deploy {
        plugin_name: "p",
        version: None,
        source_code: "v3",
        lockfile_content: "",
        sinks: &[],
    };
    transaction.deploy(&deploy, DAY_MS + 2000).unwrap();
    transaction.commit().unwrap();
    assert!(scene.store.changed().unwrap());
    assert!(!scene.store.changed().unwrap());
    let mut transaction = scene.store.begin().unwrap();
    assert_eq!(
        transaction
            .plugin_code("p")
            .unwrap()
            .runs()
            .unwrap()
            .plugin
            .source_code,
        "v3"
    );
}

#[test]
fn sinks_of_a_manifest_follow_its_version_and_leave_those_of_operators() {
    let mut scene = Scene::new();
    scene.sql(
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) VALUES \
         ('p', 'mine', 'parquet://mine.parquet', 'append')",
    );
    let sink = |topic: &str, uri: &str| ManifestSink {
        topic: topic.to_owned(),
        uri: uri.to_owned(),
        mode: None,
    };
    let versions = [
        (
            vec![sink("mine", "parquet://no/"), sink("a", "parquet://1/")],
            "mine,a",
        ),
        (
            vec![sink("b", "parquet://2/"), sink("a", "parquet://3/")],
            "mine,b,a",
        ),
        (vec![], "mine,a,b"),
    ];
    for (count, (sinks, want)) in versions.iter().enumerate() {
        let source = format!("source {count}");
        let mut transaction = scene.store.begin().unwrap();
        let deploy = Deploy {
            plugin_name: "p",
            version: None,
            source_code: &source,
            lockfile_content: "",
            sinks,
        };
        transaction.deploy(&deploy, DAY_MS).unwrap();
        transaction.commit().unwrap();
        let topics = scene.text("SELECT group_concat(topic_name) FROM (SELECT topic_name FROM cf_topic_config ORDER BY id)");
        assert_eq!(topics, *want);
        let uri = scene.text("SELECT uri FROM cf_topic_config WHERE topic_name = 'mine'");
        assert_eq!(uri, "parquet://mine.parquet");
        if count == 1 {
            // An operator adds a row, and changes a declared one.
            scene.sql(
                "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) VALUES \
                 ('p', 'b', 'parquet://theirs/', 'append'); \
                 UPDATE cf_topic_config SET uri = 'parquet://changed/' WHERE topic_name = 'a'",
            );
            scene.enqueue("p", 0);
            let claimed = scene.claim(&["p"], 1);
            let sinks = &claimed.jobs[0].sinks;
            let uris: Vec<&str> = sinks.iter().map(|sink| sink.uri.as_str()).collect();
            let want = [
                "parquet://mine.parquet",
                "parquet://changed/",
                "parquet://theirs/",
            ];
            assert_eq!(uris[..3], want);
            assert_eq!(uris.len(), 4, "and that of output: {uris:?}");
        }
    }
}

#[test]
fn a_file_keeps_its_location_and_gets_versions_and_its_last_job_is_found() {
    let mut scene = Scene::new();
    let mut transaction = scene.store.begin().unwrap();
    let one = transaction
        .register_file("/data", "x.csv", 1, 0.0, "h1", DAY_MS)
        .unwrap();
    let same = transaction
        .register_file("/data", "x.csv", 1, 0.0, "h1", DAY_MS)
        .unwrap();
    let two = transaction
        .register_file("/data", "x.csv", 2, 0.0, "h2", DAY_MS)
        .unwrap();
    assert_eq!(
        (same.location_id, same.version_id, same.new),
        (one.location_id, one.version_id, false)
    );
    assert!(two.location_id == one.location_id && two.version_id != one.version_id);
    let job = transaction.enqueue("p", one.version_id, 0, DAY_MS).unwrap();
    let last = transaction
        .jobs_of_file("p", one.location_id)
        .unwrap()
        .remove(0);
    assert_eq!((last.job_id, last.content_hash.as_str()), (job, "h1"));
    assert!(
        transaction
            .jobs_of_file("q", one.location_id)
            .unwrap()
            .is_empty()
    );
    assert!(transaction.requeue(job, two.version_id).unwrap());
    assert_eq!(
        transaction
            .jobs_of_file("p", one.location_id)
            .unwrap()
            .remove(0)
            .content_hash,
        "h2"
    );
    assert_eq!(
        transaction.root_of(Path::new("/data/y")).unwrap(),
        Some("/data".into())
    );
    assert_eq!(transaction.root_of(Path::new("/database")).unwrap(), None);
    transaction.commit().unwrap();
    scene.claim(&["p"], 1);
    let mut transaction = scene.store.begin().unwrap();
    assert!(
        !transaction.requeue(job, one.version_id).unwrap(),
        "it is RUNNING"
    );
}

/// The deployed source.
fn source(scene: &mut Scene) -> String {
    let mut transaction = scene.store.begin().unwrap();
    let code = transaction.plugin_code("p").unwrap().runs().unwrap();
    code.plugin.source_code.clone()
}

#[test]
fn the_newest_deployment_is_an_order_that_no_clock_and_no_old_program_upsets() {
    let mut scene = Scene::new();
    let deploy = |scene: &mut Scene, source: &str, now_ms: i64| {
        let mut transaction = scene.store.begin().unwrap();
        let deploy = Deploy {
            plugin_name: "p",
            version: None,
            source_code: source,
            lockfile_content: "",
            sinks: &[],
        };
        transaction.deploy(&deploy, now_ms).unwrap();
        transaction.commit().unwrap();
    };
    // The clock runs backwards, stops, and is far ahead for a while.
    for (count, now_ms) in [
        DAY_MS,
        DAY_MS - 1,
        DAY_MS - 1,
        i64::from(u32::MAX) * 1000,
        0,
    ]
    .into_iter()
    .enumerate()
    {
        let wanted = format!("v{count}");
        deploy(&mut scene, &wanted, now_ms);
        assert_eq!(source(&mut scene), wanted);
    }
    deploy(&mut scene, "v1", DAY_MS - 1);
    assert_eq!(source(&mut scene), "v1", "again, at the very same time");
    // A program of the reference system inserts a row, with any time.
    scene.sql(
        "INSERT INTO cf_plugin_manifest (plugin_name, version, source_code, source_hash, status, \
         deployed_at) VALUES ('p', '9', 'theirs', 'h', 'ACTIVE', '1999-01-01 00:00:00')",
    );
    assert_eq!(source(&mut scene), "theirs");
    // It deploys an earlier source again.
    scene.sql(
        "UPDATE cf_plugin_manifest SET deployed_at = '1998-01-01 00:00:00' \
         WHERE source_code = 'v3'",
    );
    assert_eq!(source(&mut scene), "v3");
    deploy(&mut scene, "ours", 0);
    assert_eq!(source(&mut scene), "ours");
    // A change of status is no deployment: the newest manifest stays the newest.
    scene.sql(
        "UPDATE cf_plugin_manifest SET status = 'REJECTED'; \
         UPDATE cf_plugin_manifest SET status = 'ACTIVE' WHERE source_code <> 'ours'",
    );
    assert_eq!(source(&mut scene), "v3");
    scene.sql("UPDATE cf_plugin_manifest SET status = 'ACTIVE'");
    assert_eq!(source(&mut scene), "ours");
}

#[test]
fn deployments_of_before_the_migration_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("legacy.sqlite");
    std::fs::copy(legacy_path(), &path).unwrap();
    let legacy = Connection::open(&path).unwrap();
    for (source, time) in [
        ("newest", "'2026-01-01T12:00:00+00:00'"),
        ("older", "'2026-01-01 11:59:59.000000'"),
        ("without a time", "NULL"),
    ] {
        legacy
            .execute_batch(&format!(
                "INSERT INTO cf_plugin_manifest (plugin_name, version, source_code, source_hash, \
                 status, created_at, deployed_at) \
                 VALUES ('p', '1', '{source}', '{source}', 'ACTIVE', NULL, {time})"
            ))
            .unwrap();
    }
    let store = Store::open(&path, Open::Existing).unwrap();
    let mut scene = Scene { dir, store };
    for wanted in ["newest", "older", "without a time"] {
        assert_eq!(source(&mut scene), wanted);
        scene.sql(&format!(
            "DELETE FROM cf_plugin_manifest WHERE source_code = '{wanted}'"
        ));
    }
}

#[test]
fn a_deployment_that_changes_nothing_is_no_new_state() {
    let mut scene = Scene::new();
    let sink = |uri: &str| ManifestSink {
        topic: "t".to_owned(),
        uri: uri.to_owned(),
        mode: None,
    };
    let mut state = |source: &str, lock: &str, uri: &str| {
        let deploy = Deploy {
            plugin_name: "p",
            version: None,
            source_code: source,
            lockfile_content: lock,
            sinks: &[sink(uri)],
        };
        let mut transaction = scene.store.begin().unwrap();
        transaction.deploy(&deploy, DAY_MS).unwrap();
        transaction.commit().unwrap();
        scene.store.deployments().unwrap().states["p"]
    };
    let first = state("one", "", "parquet://1/");
    assert_eq!(state("one", "", "parquet://1/"), first);
    for (source, lock, uri) in [
        ("two", "", "parquet://1/"),
        ("one", "lock", "parquet://1/"),
        ("one", "", "parquet://2/"),
    ] {
        assert_ne!(state(source, lock, uri), first, "{source} {lock} {uri}");
        assert_eq!(state("one", "", "parquet://1/"), first);
    }
}

#[test]
fn another_programs_changes_count_from_their_commit() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    assert_eq!(scene.claim(&["p"], 1).jobs[0].sinks.len(), 1);
    // There is no poll for changes in between.
    scene.sql(
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri) \
         VALUES ('p', 'more', 'parquet://more/'); \
         INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
         VALUES (1, 'p', 'QUEUED')",
    );
    assert_eq!(scene.claim(&["p"], 1).jobs[0].sinks.len(), 2);
    assert!(scene.store.changed().unwrap());
}

#[test]
fn the_root_of_a_file_is_the_nearest_folder_that_is_known() {
    let scene = Scene::new();
    scene.sql(
        "INSERT INTO cf_source_root (path, active) VALUES ('/data', 1), ('/data/in/', NULL), \
         ('/data/in/off', 0), ('relative', 1), (x'2f', 1), ('/file', 1)",
    );
    let mut scene = scene;
    let mut transaction = scene.store.begin().unwrap();
    for (path, want) in [
        ("/data/x", Some("/data")),
        ("/data/in/x", Some("/data/in")),
        ("/data/in/off/deep/x", Some("/data/in")),
        ("/database/x", None),
        ("/x", None),
        ("/file", None),
    ] {
        let root = transaction.root_of(Path::new(path)).unwrap();
        assert_eq!(root.as_deref(), want.map(Path::new), "{path}");
    }
    // A file that is registered under the root has the same root, with or without the slash.
    transaction
        .register_file("/data/in", "x", 1, 0.0, "h", DAY_MS)
        .unwrap();
    transaction
        .register_file("/data/in", "y", 1, 0.0, "h", DAY_MS)
        .unwrap();
    transaction.commit().unwrap();
    assert_eq!(
        scene.text("SELECT count(*) FROM cf_source_root"),
        "Integer(6)"
    );
}
