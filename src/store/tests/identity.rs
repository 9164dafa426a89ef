use super::*;

#[test]
fn each_database_has_an_identity_of_its_own_and_a_copy_can_get_one() {
    let mut scene = Scene::new();
    let id = scene.store.database_id();
    assert!(
        id.len() == 32
            && id
                .chars()
                .all(|c| c.is_ascii_hexdigit() && !c.is_uppercase())
    );
    assert_ne!(Scene::new().store.database_id(), id);
    assert_ne!(Scene::legacy().store.database_id(), id);
    let again = Store::open(&scene.path(), Open::Existing).unwrap();
    assert_eq!(again.database_id(), id);
    scene.enqueue("p", 0);
    let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
    scene.report("w", attempt, &success(&["file:///a"]), 0);
    let new = scene.store.new_identity().unwrap();
    assert_ne!(new, id);
    assert_eq!(scene.store.database_id(), new);
    scene.store.check_identity().unwrap();
    let error = again.check_identity().unwrap_err().to_string();
    assert!(error.contains("another UUID"), "{error}");
    // Published output belongs to the old UUID.
    scene.sql("UPDATE cf_processing_queue SET status = 'QUEUED'");
    let job = scene.claim(&["p"], 1).jobs.remove(0);
    assert_eq!(job.previous, Vec::<String>::new());
    assert_eq!(job.database, Some(new));
    // An invalid UUID is replaced.
    for value in ["NULL", "'x'", "x'00'", "7"] {
        scene.sql(&format!(
            "UPDATE cf_casparian SET value = {value} WHERE key = 'database'"
        ));
        let store = Store::open(&scene.path(), Open::Existing).unwrap();
        assert_eq!(store.database_id().len(), 32, "{value}");
    }
}

#[test]
fn a_database_that_is_removed_or_replaced_is_noticed() {
    let scene = Scene::new();
    let path = scene.path();
    let copy = path.with_extension("copy");
    scene.store.check_identity().unwrap();
    std::fs::copy(&path, &copy).unwrap();
    std::fs::remove_file(&path).unwrap();
    let error = scene.store.check_identity().unwrap_err();
    assert!(matches!(error, Error::Replaced { .. }));
    assert!(error.to_string().contains("removed"), "{error}");
    std::fs::rename(&copy, &path).unwrap();
    let error = scene.store.check_identity().unwrap_err().to_string();
    assert!(error.contains("replaced by another file"), "{error}");
}

/// SQLite removes the WAL of an empty database when another program opens it.
#[test]
fn a_database_that_is_truncated_is_not_called_one_without_its_wal() {
    let scene = Scene::new();
    let file = std::fs::OpenOptions::new().write(true).open(scene.path());
    file.unwrap().set_len(0).unwrap();
    let other = rusqlite::Connection::open(scene.path()).unwrap();
    let tables = "SELECT count(*) FROM sqlite_master";
    let tables: i64 = other.query_row(tables, [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 0);
    assert!(!crate::beside::path(&scene.path(), "-wal").exists());
    let error = scene.store.check_identity().unwrap_err();
    assert!(matches!(error, Error::Replaced { .. }), "{error}");
    assert!(error.to_string().contains("it was truncated"), "{error}");
}

#[test]
fn a_wal_that_is_removed_or_replaced_is_noticed() {
    for (suffix, names) in [("-wal", "its -wal file"), ("-shm", "its -shm file")] {
        for replaced in [false, true] {
            let scene = Scene::new();
            // Other connections and their checkpoints do not change the identity.
            scene.sql("PRAGMA wal_checkpoint(TRUNCATE)");
            scene.store.check_identity().unwrap();
            let mut path = scene.path().into_os_string();
            path.push(suffix);
            let kept = std::fs::read(&path).unwrap();
            // A copy created while the original exists has another inode.
            std::fs::rename(&path, scene.dir.path().join("away")).unwrap();
            if replaced {
                std::fs::write(&path, kept).unwrap();
            }
            let error = scene.store.check_identity().unwrap_err();
            assert!(matches!(error, Error::Replaced { .. }), "{error}");
            assert!(error.to_string().contains(names), "{error}");
        }
    }
}

#[test]
fn a_name_that_leads_to_a_database_is_checked_by_what_it_leads_to() {
    let scene = Scene::new();
    let link = scene.dir.path().join("link");
    std::os::unix::fs::symlink(scene.path(), &link).unwrap();
    let store = Store::open(&link, Open::Existing).unwrap();
    store.check_identity().unwrap();
    // The link stays, and leads to another file.
    std::fs::copy(scene.path(), scene.dir.path().join("copy")).unwrap();
    std::fs::rename(scene.dir.path().join("copy"), scene.path()).unwrap();
    let error = store.check_identity().unwrap_err();
    assert!(matches!(error, Error::Replaced { .. }), "{error}");
}

#[test]
fn files_beside_a_database_that_are_no_regular_files_are_named() {
    for suffix in ["-journal", "-wal", "-shm"] {
        let scene = Scene::new();
        let path = scene.path();
        drop(scene.store);
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        let beside = PathBuf::from(name);
        let _ = std::fs::remove_file(&beside);
        rustix::fs::mkfifoat(rustix::fs::CWD, &beside, rustix::fs::Mode::RWXU).unwrap();
        let errors = [
            Store::open(&path, Open::Existing).map(drop).unwrap_err(),
            Inspector::open(&path).map(drop).unwrap_err(),
        ];
        for error in errors {
            let error = error.to_string();
            let named = beside.to_str().unwrap();
            assert!(
                error.contains(named) && error.contains("regular"),
                "{error}"
            );
        }
    }
}

/// The attempt of a row that a program inserts under an ID.
fn inserted(scene: &Scene, verb: &str, id: &str) -> Attempt {
    scene.sql(&format!(
        "{verb} INTO cf_processing_queue (id, file_version_id, plugin_name, status) \
         VALUES ({id}, 1, 'p', 'QUEUED')"
    ));
    let number = |column: &str| -> i64 {
        let text = scene.text(&format!(
            "SELECT CAST({column} AS TEXT) FROM cf_processing_queue ORDER BY rowid DESC LIMIT 1"
        ));
        text.parse().unwrap()
    };
    Attempt::new(number("id"), number("attempt"))
}

#[test]
fn an_id_that_is_used_again_is_another_job() {
    let delete = "DELETE FROM cf_processing_queue";
    let cases: [(&str, &str, &str); 5] = [
        (
            "DELETE FROM cf_processing_queue WHERE id = 2",
            "INSERT",
            "NULL",
        ),
        (
            "DELETE FROM cf_processing_queue WHERE id = 2",
            "INSERT",
            "2",
        ),
        (delete, "INSERT", "2"),
        ("SELECT 1", "INSERT OR REPLACE", "2"),
        (
            "UPDATE cf_processing_queue SET id = 9 WHERE id = 2; DELETE FROM cf_processing_queue WHERE id = 9",
            "INSERT",
            "2",
        ),
    ];
    for (script, verb, id) in cases {
        let mut scene = Scene::new();
        let ids = [scene.enqueue("p", 0), scene.enqueue("p", 0)];
        let last = scene.inspect(ids[1]).row.attempt;
        assert_eq!((ids, last.incarnation()), ([1, 2], 0));
        scene.claim(&["p"], 2);
        scene.release(Attempt::new(2, 1), 0);
        scene.sql(script);
        let mut before = 0;
        for _ in 0..3 {
            let attempt = inserted(&scene, verb, id);
            assert_eq!(attempt.job_id, 2, "{script} {verb}");
            assert!(
                attempt.incarnation() > before,
                "{script} {verb} {attempt:?}"
            );
            assert_eq!(attempt.ordinal(), 0);
            before = attempt.incarnation();
            assert!(scene.inspect(2).attempts.is_empty(), "of the job before");
            let claimed = scene.claim(&["p"], 9);
            let job = claimed.jobs.iter().find(|job| job.attempt.job_id == 2);
            assert_eq!(job.unwrap().attempt, Attempt::new(2, attempt.number + 1));
            if verb == "INSERT" {
                scene.sql("DELETE FROM cf_processing_queue WHERE id = 2");
            }
        }
    }
}

#[test]
fn incarnations_rise_once_for_many_deletions_and_new_ids_have_none() {
    let mut scene = Scene::new();
    for round in 0..3 {
        for _ in 0..50 {
            scene.enqueue("p", 0);
        }
        let incarnation =
            "SELECT min(attempt >> 32) || ' ' || max(attempt >> 32) FROM cf_processing_queue";
        assert_eq!(scene.text(incarnation), format!("{round} {round}"));
        scene.sql("DELETE FROM cf_processing_queue");
    }
    assert_eq!(
        scene.text("SELECT value FROM cf_casparian WHERE key = 'incarnation'"),
        "Integer(3)"
    );
    // Above the highest deleted ID, IDs are new.
    assert_eq!(inserted(&scene, "INSERT", "51").incarnation(), 0);
    assert_eq!(inserted(&scene, "INSERT", "NULL").job_id, 52);
    // INSERT OR IGNORE of other programs does not change an existing job.
    let attempt = scene.claim(&["p"], 1).jobs[0].attempt;
    scene.report("w", attempt, &success(&[]), 0);
    inserted(&scene, "INSERT OR IGNORE", "51");
    assert_eq!(scene.inspect(51).attempts.len(), 1);
    assert_eq!(scene.inspect(51).row.attempt, attempt);
}

#[test]
fn insertions_of_other_programs_write_nothing_more() {
    let scene = Scene::new();
    let before = scene.text("SELECT group_concat(value) FROM cf_casparian");
    for _ in 0..3 {
        inserted(&scene, "INSERT", "NULL");
    }
    assert_eq!(
        scene.text("SELECT group_concat(value) FROM cf_casparian"),
        before
    );
}

#[test]
fn a_row_whose_attempt_makes_no_sense_fails_alone_and_its_id_is_used_again() {
    let top = i64::from(i32::MAX) << 32;
    for attempt in [i64::MAX, i64::MAX - 1, top + 5, top - 1, 7 << 32, -7] {
        let mut scene = Scene::new();
        let ids = [scene.enqueue("p", 0), scene.enqueue("p", 0)];
        scene.sql(&format!(
            "UPDATE cf_processing_queue SET attempt = {attempt} WHERE id = 2"
        ));
        let claimed = scene.claim(&["p"], 9);
        assert_eq!(super::ids(&claimed), [ids[0]], "{attempt}");
        let reason = &claimed.unresolved[0].reason;
        assert!(
            reason.contains("cf_processing_queue.attempt of row 2"),
            "{reason}"
        );
        // No settlement gets a number above that one, which would bar all later attempts.
        scene.sql("UPDATE cf_processing_queue SET unsettled = 1 WHERE id = 2");
        let mut transaction = scene.store.begin().unwrap();
        assert_eq!(transaction.take_settlement(2).unwrap(), None);
        transaction.commit().unwrap();
        assert_eq!(
            scene.inspect(2).row.attempt.number,
            attempt.max(0),
            "{attempt}"
        );
        assert_eq!(scene.store.unsettled(0).unwrap(), [0i64; 0], "{attempt}");
        let mut before = 0;
        for _ in 0..3 {
            scene.sql("DELETE FROM cf_processing_queue WHERE id = 2");
            let inserted = inserted(&scene, "INSERT", "2");
            let incarnation = inserted.incarnation();
            assert!(
                incarnation > before && incarnation < 9,
                "{attempt}: {inserted:?}"
            );
            before = incarnation;
            let claimed = scene.claim(&["p"], 9);
            let want = Attempt::new(2, inserted.number + 1);
            assert_eq!(claimed.jobs[0].attempt, want, "{attempt}");
        }
        // Another program sets such a number to an invalid one before it deletes the row.
        let change = "UPDATE cf_processing_queue SET attempt = -1, status = 'FAILED' WHERE id = 2";
        scene.sql(change);
        scene.sql("DELETE FROM cf_processing_queue WHERE id = 2");
        assert!(self::inserted(&scene, "INSERT", "2").incarnation() > before);
    }
}

#[test]
fn ids_that_cannot_be_used_again_are_refused_until_the_database_has_a_new_identity() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    // The state that earlier releases have left.
    scene.sql(
        "DELETE FROM cf_processing_queue; \
         UPDATE cf_casparian SET value = 2147483647 WHERE key = 'incarnation'",
    );
    inserted(&scene, "INSERT", "1");
    let claimed = scene.claim(&["p"], 1);
    assert_eq!(ids(&claimed), [0i64; 0]);
    let reason = &claimed.unresolved[0].reason;
    assert!(reason.contains("--new-identity"), "{reason}");
    // An ID that was never used.
    assert_eq!(scene.enqueue("p", 0), 2);
    assert_eq!(ids(&scene.claim(&["p"], 1)), [2]);
    scene.store.new_identity().unwrap();
    scene.sql("DELETE FROM cf_processing_queue WHERE id = 1");
    inserted(&scene, "INSERT", "1");
    assert_eq!(ids(&scene.claim(&["p"], 1)), [1]);
}
