use super::*;

#[test]
fn the_newest_deployment_runs_even_when_its_source_is_an_old_one() {
    let mut scene = Scene::new();
    let first = scene.deploy("p", "v1");
    let second = scene.deploy("p", "v2");
    assert!(second.new && second.version != first.version);
    let again = scene.deploy("p", "v1");
    assert_eq!((again.manifest_id, again.new), (first.manifest_id, false));
    let mut turn = scene.store.begin().unwrap();
    let code = turn.plugin_code("p").unwrap().runs().unwrap();
    assert_eq!(code.plugin.source_code, "v1", "in the same millisecond");
    let deploy = Deploy {
        plugin_name: "p",
        version: Some("9"),
        source_code: "v1",
        lockfile_content: "lock",
        sinks: &[],
    };
    turn.deploy(&deploy, DAY_MS + 1000).unwrap();
    let code = turn.plugin_code("p").unwrap().runs().unwrap();
    assert_eq!(
        (code.plugin.source_code.as_str(), code.version.as_str()),
        ("v1", "9")
    );
    assert_eq!(code.plugin.env_hash, sha256_hex(&[b"lock"]));
    turn.commit().unwrap();
    // The same source under another name is another manifest.
    assert!(scene.deploy("q", "v1").new);
    // Another program's deployment is noticed.
    let mut other = Store::open(&scene.path(), Open::Existing).unwrap();
    let mut turn = other.begin().unwrap();
    let deploy = Deploy {
        plugin_name: "p",
        version: None,
        source_code: "v3",
        lockfile_content: "",
        sinks: &[],
    };
    turn.deploy(&deploy, DAY_MS + 2000).unwrap();
    turn.commit().unwrap();
    assert!(scene.store.changed().unwrap());
    assert!(!scene.store.changed().unwrap());
    let mut turn = scene.store.begin().unwrap();
    assert_eq!(
        turn.plugin_code("p")
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
        let mut turn = scene.store.begin().unwrap();
        let deploy = Deploy {
            plugin_name: "p",
            version: None,
            source_code: &source,
            lockfile_content: "",
            sinks,
        };
        turn.deploy(&deploy, DAY_MS).unwrap();
        turn.commit().unwrap();
        let topics = scene.text("SELECT group_concat(topic_name) FROM (SELECT topic_name FROM cf_topic_config ORDER BY id)");
        assert_eq!(topics, *want);
        let uri = scene.text("SELECT uri FROM cf_topic_config WHERE topic_name = 'mine'");
        assert_eq!(uri, "parquet://mine.parquet");
        if count == 1 {
            // An operator's row beside, and an operator's change.
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
    let mut turn = scene.store.begin().unwrap();
    let one = turn
        .register_file("/data", "x.csv", 1, 0.0, "h1", DAY_MS)
        .unwrap();
    let same = turn
        .register_file("/data", "x.csv", 1, 0.0, "h1", DAY_MS)
        .unwrap();
    let two = turn
        .register_file("/data", "x.csv", 2, 0.0, "h2", DAY_MS)
        .unwrap();
    assert_eq!(
        (same.location_id, same.version_id, same.new),
        (one.location_id, one.version_id, false)
    );
    assert!(two.location_id == one.location_id && two.version_id != one.version_id);
    let job = turn.enqueue("p", one.version_id, 0, DAY_MS).unwrap();
    let last = turn.last_job("p", one.location_id).unwrap().unwrap();
    assert_eq!((last.job_id, last.content_hash.as_str()), (job, "h1"));
    assert!(turn.last_job("q", one.location_id).unwrap().is_none());
    assert!(turn.requeue(job, two.version_id).unwrap());
    assert_eq!(
        turn.last_job("p", one.location_id)
            .unwrap()
            .unwrap()
            .content_hash,
        "h2"
    );
    assert_eq!(
        turn.root_of(Path::new("/data/y")).unwrap(),
        Some("/data".into())
    );
    assert_eq!(turn.root_of(Path::new("/database")).unwrap(), None);
    turn.commit().unwrap();
    scene.claim(&["p"], 1);
    let mut turn = scene.store.begin().unwrap();
    assert!(!turn.requeue(job, one.version_id).unwrap(), "it is RUNNING");
}
