use super::*;

#[test]
fn the_reason_of_waiting_is_reported() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let other = scene.enqueue("nope", 0);
    let reason = |scene: &Scene, id: i64| {
        Inspector::open(&scene.path())
            .unwrap()
            .job(id)
            .unwrap()
            .unwrap()
            .waiting_for
    };
    assert!(reason(&scene, other).unwrap().contains("not deployed"));
    assert!(reason(&scene, id).unwrap().contains("no worker"));
    let session = |capability: &str| WorkerSession {
        worker_id: format!("w-{capability}"),
        user_id: None,
        hostname: "h".into(),
        pid: None,
        capabilities: vec![capability.to_owned()],
        slots: 1,
        trouble: None,
        environments: Default::default(),
        routing_id: Some("r-1".to_owned()),
    };
    let mut transaction = scene.store.begin().unwrap();
    transaction.save_worker(&session("x"), DAY_MS).unwrap();
    transaction.commit().unwrap();
    assert!(reason(&scene, id).unwrap().contains("none of the 1"));
    let mut transaction = scene.store.begin().unwrap();
    transaction.save_worker(&session("*"), DAY_MS).unwrap();
    transaction.commit().unwrap();
    assert!(reason(&scene, id).unwrap().contains("free slot"));
    let no_uv: std::collections::BTreeMap<_, _> = [("".to_owned(), "no uv".to_owned())].into();
    let broken = WorkerSession {
        environments: no_uv.clone(),
        ..session("*")
    };
    let mut transaction = scene.store.begin().unwrap();
    transaction.save_worker(&broken, DAY_MS).unwrap();
    transaction.commit().unwrap();
    assert!(reason(&scene, id).unwrap().contains("no uv"));
    let workers = scene.store.workers().unwrap();
    assert!(workers.iter().any(|worker| worker.environments == no_uv));
    // Only the last worker that had a routing ID is recognized by it.
    let known: Vec<&WorkerSession> = workers
        .iter()
        .filter(|worker| worker.routing_id.as_deref() == Some("r-1"))
        .collect();
    assert!(known.len() == 1 && known[0].worker_id == "w-*", "{known:?}");
    for trouble in [Some("its disk is full"), None] {
        let mut transaction = scene.store.begin().unwrap();
        let session = WorkerSession {
            trouble: trouble.map(str::to_owned),
            ..session("*")
        };
        transaction.save_worker(&session, DAY_MS).unwrap();
        transaction.commit().unwrap();
        let reported = reason(&scene, id);
        assert_eq!(
            reported.is_some_and(|reported| reported.contains("disk")),
            trouble.is_some()
        );
        let inspector = Inspector::open(&scene.path()).unwrap();
        let workers = inspector.workers().unwrap();
        let worker = workers.iter().find(|row| row.session.worker_id == "w-*");
        let worker = worker.unwrap();
        assert_eq!(worker.session.trouble.as_deref(), trouble);
        assert_eq!(
            (worker.status.as_str(), worker.last_seen_ms),
            ("ONLINE", DAY_MS)
        );
    }
    assert_eq!(scene.store.workers().unwrap().len(), 2);
    let mut transaction = scene.store.begin().unwrap();
    transaction.all_workers_offline(DAY_MS).unwrap();
    transaction.commit().unwrap();
    assert!(reason(&scene, id).unwrap().contains("no worker"));
    let inspector = Inspector::open(&scene.path()).unwrap();
    let filter = JobFilter {
        status: Some("QUEUED".into()),
        plugin: Some("p".into()),
        limit: 9,
    };
    assert_eq!(inspector.jobs(&filter).unwrap().len(), 1);
    assert_eq!(inspector.counts().unwrap(), [("QUEUED".to_owned(), 2)]);
}

#[test]
fn claims_are_their_workers_users_affair_and_old_workers_are_forgotten() {
    let mut scene = Scene::new();
    scene.enqueue("p", 0);
    let session = |worker_id: &str, user_id: Option<&str>| WorkerSession {
        worker_id: worker_id.to_owned(),
        user_id: user_id.map(str::to_owned),
        hostname: worker_id.to_owned(),
        pid: None,
        capabilities: Vec::new(),
        slots: 1,
        trouble: None,
        environments: Default::default(),
        routing_id: None,
    };
    let mut transaction = scene.store.begin().unwrap();
    transaction
        .save_worker(&session("w", None), DAY_MS)
        .unwrap();
    transaction
        .save_worker(&session("idle", Some("bob")), DAY_MS)
        .unwrap();
    transaction.commit().unwrap();
    assert_eq!(scene.claim(&["p"], 1).jobs.len(), 1);
    let user = |scene: &Scene| scene.store.running().unwrap()[0].user.clone();
    assert_eq!(user(&scene), None);
    let mut transaction = scene.store.begin().unwrap();
    transaction
        .save_worker(&session("w", Some("ann")), DAY_MS)
        .unwrap();
    transaction.commit().unwrap();
    assert_eq!(user(&scene), Some(crate::job::User::parse("ann")));

    // A connected worker is kept when many others connect and disconnect.
    let mut transaction = scene.store.begin().unwrap();
    for count in 0..crate::limits::WORKER_SESSIONS_MAX + 50 {
        let worker_id = format!("x-{count}");
        transaction
            .save_worker(&session(&worker_id, None), DAY_MS + count)
            .unwrap();
        transaction
            .worker_offline(&worker_id, DAY_MS + count)
            .unwrap();
    }
    transaction.worker_offline("w", DAY_MS - 1).unwrap();
    transaction.forget_old_workers(DAY_MS).unwrap();
    transaction.commit().unwrap();
    let known = scene.store.workers().unwrap();
    let kept = crate::limits::WORKER_SESSIONS_MAX * 9 / 10;
    assert_eq!(known.len() as i64, kept);
    let is_known = |id: &str| known.iter().any(|worker| worker.worker_id == id);
    assert!(is_known("idle") && is_known("x-10049") && !is_known("x-0"));
    assert!(is_known("w"), "its job runs");
    let count = "SELECT count(*) FROM cf_worker_node WHERE status = ?1";
    let path = scene.path();
    let nodes = |status: &str| -> i64 {
        let connection = Connection::open(&path).unwrap();
        connection
            .query_row(count, [status], |row| row.get(0))
            .unwrap()
    };
    assert_eq!(nodes("OFFLINE") + nodes("ONLINE"), kept);

    // When a worker connects as another process, its previous process is offline.
    let online = nodes("ONLINE");
    for pid in 1..5 {
        let mut transaction = scene.store.begin().unwrap();
        let again = WorkerSession {
            pid: Some(pid),
            ..session("idle", None)
        };
        transaction.save_worker(&again, DAY_MS).unwrap();
        transaction.commit().unwrap();
        assert_eq!(nodes("ONLINE"), online);
    }
}

#[test]
fn where_the_lock_cannot_be_checked_the_age_of_the_last_sign_decides() {
    let mut scene = Scene::new();
    let id = scene.enqueue("p", 0);
    let age_max = i64::try_from(limits::SEEN_AGE_MAX.as_millis()).unwrap();
    let poll = |scene: &Scene, at: i64| {
        let mut inspector = Inspector::open(&scene.path()).unwrap();
        inspector.find_sentinel(DAY_MS + at).unwrap();
        let status = inspector.workers().unwrap();
        let status = status.first().map(|row| row.status.clone());
        (status, inspector.job(id).unwrap().unwrap().waiting_for)
    };
    let none = Some("a sentinel: none works on this database".to_owned());
    assert_eq!(poll(&scene, 0), (None, none.clone()));
    // A lock file that cannot be opened, as another user's cannot.
    let lock = scene.dir.path().join("q.db.sentinel-lock");
    std::os::unix::fs::symlink("elsewhere", lock).unwrap();
    let (_, waits) = poll(&scene, 0);
    assert_eq!(waits.unwrap(), "no worker is connected to a sentinel");
    let session = WorkerSession {
        worker_id: "w".into(),
        user_id: None,
        hostname: "h".into(),
        pid: None,
        capabilities: vec!["*".to_owned()],
        slots: 1,
        trouble: None,
        environments: Default::default(),
        routing_id: None,
    };
    let mut transaction = scene.store.begin().unwrap();
    transaction.save_worker(&session, DAY_MS).unwrap();
    transaction.commit().unwrap();
    let (status, waits) = poll(&scene, age_max);
    assert_eq!(status.as_deref(), Some("ONLINE"));
    assert!(waits.unwrap().contains("free slot"));
    let gone = (Some("OFFLINE".to_owned()), none);
    assert_eq!(poll(&scene, age_max + 1), gone);
}
