use super::*;

fn register(scene: &mut Scene, root: &str, name: &str, hash: &str) -> FileVersion {
    let mut transaction = scene.store.begin().unwrap();
    let file = transaction.register_file(root, name, 3, 1.5, hash, DAY_MS);
    transaction.commit().unwrap();
    file.unwrap()
}

fn enqueue(scene: &mut Scene, file: FileVersion) -> i64 {
    let mut transaction = scene.store.begin().unwrap();
    let id = transaction
        .enqueue("p", file.version_id, 0, DAY_MS)
        .unwrap();
    transaction.commit().unwrap();
    id
}

fn last_job(scene: &mut Scene, file: FileVersion) -> Option<i64> {
    let transaction = scene.store.begin().unwrap();
    let last = transaction
        .jobs_of_file("p", file.location_id)
        .unwrap()
        .pop();
    last.map(|last| last.job_id)
}

#[test]
fn no_file_gets_the_ids_of_a_deleted_one_that_the_queue_names() {
    let tables = ["cf_file_version", "cf_file_location", "cf_source_root"];
    // The tables from which another program deletes rows without foreign keys, in this order.
    for deleted in [
        &tables[..1],
        &tables[1..2],
        &tables[2..],
        &tables[..2],
        &tables,
    ] {
        let mut scene = Scene::new();
        let old = register(&mut scene, "/old", "old", "h1");
        let job = enqueue(&mut scene, old);
        for table in deleted {
            scene.sql(&format!("DELETE FROM {table}"));
        }
        let new = register(&mut scene, "/new", "new", "h2");
        assert_eq!(last_job(&mut scene, new), None, "{deleted:?}");
        let shown = Inspector::open(&scene.path()).unwrap();
        let file = shown.job(job).unwrap().unwrap().row.file_path;
        assert_ne!(file.as_deref(), Some("/new/new"), "{deleted:?}");
        let next = enqueue(&mut scene, new);
        assert_eq!(last_job(&mut scene, new), Some(next), "{deleted:?}");
        let file = shown.job(next).unwrap().unwrap().row.file_path;
        assert_eq!(file.as_deref(), Some("/new/new"), "{deleted:?}");
    }
}

#[test]
fn ids_that_other_programs_have_set_keep_no_file_out() {
    for odd in [
        "9223372036854775807",
        "4611686018427387904",
        "1.5",
        "'text'",
        "x'ff'",
        "-7",
    ] {
        let mut scene = Scene::new();
        scene.sql(&format!(
            "INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
             VALUES ({odd}, 'p', 'FAILED'); \
             INSERT INTO cf_file_version (location_id, content_hash, size_bytes, modified_time) \
             VALUES ({odd}, 'h', 1, ''); \
             INSERT INTO cf_file_location (source_root_id, rel_path, filename) \
             VALUES ({odd}, 'a', 'a');"
        ));
        if odd.starts_with('9') {
            scene.sql("UPDATE cf_file_version SET id = 9223372036854775807");
        }
        let one = register(&mut scene, "/data", "one", "h1");
        let two = register(&mut scene, "/data", "two", "h2");
        assert_ne!(one.version_id, two.version_id, "{odd}");
        assert_ne!(one.location_id, two.location_id, "{odd}");
        assert_eq!(
            register(&mut scene, "/data", "two", "h2").version_id,
            two.version_id
        );
    }
}
