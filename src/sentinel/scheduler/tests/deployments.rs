//! Tests of the announcements of deployments: PREPARE_ENV and RELOAD to workers, and ENV_READY from them.

use super::*;
use crate::protocol::{EnvReady, ErrorMessage};
use crate::store::sha256_hex;

impl Scene {
    /// Another program deploys a plugin with a lockfile. Returns the lockfile's hash.
    fn deploys(&self, plugin: &str, lockfile: &str) -> String {
        let hash = sha256_hex(&[lockfile.as_bytes()]);
        let source = format!("# {plugin} {lockfile}");
        self.sql(&format!(
            "INSERT OR IGNORE INTO cf_plugin_config (plugin_name) VALUES ('{plugin}'); \
             INSERT OR IGNORE INTO cf_plugin_environment (hash, lockfile_content) \
             VALUES ('{hash}', '{lockfile}'); \
             INSERT INTO cf_plugin_manifest (plugin_name, version, source_code, source_hash, \
             status, env_hash, deployed_at) VALUES ('{plugin}', '1', '{source}', '{source}', \
             'ACTIVE', '{hash}', '2026-01-01')"
        ));
        hash
    }

    /// Two seconds pass, with a request of each worker. Returns what each worker receives, in order.
    fn sent(&mut self, workers: &[&str]) -> Vec<String> {
        let mut sent = Vec::new();
        for _ in 0..2 {
            for message in self.tick() {
                let is_theirs = |name: &char| PeerId::from_u64(u64::from(*name)) == message.peer;
                let worker = ('a'..='z').find(is_theirs).unwrap();
                let (header, bytes) = message.encode().unwrap();
                let view = View::decode([&header[..], &bytes].into_iter()).unwrap();
                match Payload::decode(&view).unwrap() {
                    Payload::PrepareEnv(prepare) => {
                        let lockfile = &prepare.lockfile_content;
                        assert_eq!(sha256_hex(&[lockfile.as_bytes()]), prepare.env_hash);
                        sent.push(format!("{worker} prepare {lockfile}"));
                    }
                    Payload::Reload => sent.push(format!("{worker} reload")),
                    Payload::Dispatch(dispatch) => {
                        sent.push(format!("{worker} dispatch {}", dispatch.sinks[0].uri));
                    }
                    _ => {}
                }
            }
            for worker in workers {
                self.sequence += 1;
                let request = Heartbeat {
                    running: Some(vec![]),
                    sequence: Some(self.sequence),
                    ..Heartbeat::default()
                };
                self.send_as(worker, 0, Payload::Heartbeat(request));
            }
        }
        sent
    }

    fn ready(&mut self, worker: &str, hash: &str) {
        let ready = EnvReady {
            env_hash: hash.to_owned().into(),
            interpreter_path: "/venvs/x/bin/python".into(),
            cached: false,
        };
        self.send_as(worker, 0, Payload::EnvReady(ready));
    }

    fn recorded_count(&self) -> String {
        self.text("SELECT CAST(count(*) AS TEXT) FROM cf_worker_environment")
    }

    fn recorded(&self) -> String {
        self.text(
            "SELECT coalesce(group_concat(worker_id || ' ' || substr(env_hash, 1, 8) || ' ' \
             || interpreter_path || ' ' || ready_at, ','), '') FROM cf_worker_environment",
        )
    }
}

#[test]
fn workers_prepare_environments_when_they_join_and_when_a_plugin_is_deployed() {
    let mut scene = Scene::new();
    let a = scene.deploys("pa", "lock a");
    scene.deploys("pb", "lock b");
    scene.introduce_as("x", &["*"], &[]);
    scene.introduce_as("y", &["pb"], &[]);
    assert_eq!(
        scene.sent(&["x", "y"]),
        ["x prepare lock b", "y prepare lock b", "x prepare lock a"],
        "the newest first, those that it may run, each once"
    );
    assert_eq!(scene.sent(&["x", "y"]), [""; 0]);
    scene.ready("x", &a);
    scene.ready("x", &a);
    scene.ready("x", "no hash");
    scene.deploys("pa", "lock c");
    let sent = scene.sent(&["x", "y"]);
    assert_eq!(sent, ["x reload", "x prepare lock c"]);
    let recorded = scene.recorded();
    assert!(recorded.starts_with(&format!("x {} /venvs/x/bin/python 2025-", &a[..8])));
    assert!(!recorded.contains(','), "{recorded}");
    // The environment is removed on the worker's host, and cannot be created again.
    let failed = ErrorMessage {
        message: "no space".into(),
        traceback: None,
        refused: false,
        env_hash: Some(a.into()),
    };
    scene.send_as("x", 0, Payload::Err(failed));
    scene.sent(&["x", "y"]);
    assert_eq!(scene.recorded(), "");
}

#[test]
fn environments_with_waiting_jobs_are_prepared_first_and_a_few_at_once() {
    let mut scene = Scene::new();
    let mut hashes = Vec::new();
    for number in 0..limits::PREPARED_AT_ONCE + 3 {
        hashes.push(scene.deploys(&format!("p{number}"), &format!("lock {number}")));
    }
    scene.sql(
        "INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
         VALUES (1, 'p0', 'QUEUED')",
    );
    // The worker accepts no job yet.
    scene.introduce_as("x", &["*"], &[]);
    scene.sequence += 1;
    let busy = Heartbeat {
        running: Some(vec![]),
        sequence: Some(scene.sequence),
        takes: Some(0),
        ..Heartbeat::default()
    };
    scene.send_as("x", 0, Payload::Heartbeat(busy));
    let sent = |scene: &mut Scene| {
        let mut sent = scene.sent(&["x"]);
        sent.retain(|line| line.contains("prepare"));
        sent
    };
    let mut all = scene.sent(&[]);
    assert_eq!(all, ["x prepare lock 0", "x prepare lock 4"]);
    for _ in 0..10 {
        let more = sent(&mut scene);
        assert_eq!(more, [""; 0], "none is ready");
    }
    for round in 0..10 {
        let hash = all.get(round).map(|line| {
            let number: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
            hashes[number].clone()
        });
        let Some(hash) = hash else { break };
        scene.ready("x", &hash);
        all.extend(sent(&mut scene));
    }
    assert_eq!(all.len(), hashes.len(), "{all:?}");
    // A worker that does not answer gets the next environments after a time.
    scene.deploys("p1", "lock slow 1");
    scene.deploys("p2", "lock slow 2");
    scene.deploys("p3", "lock slow 3");
    let mut seen = 0;
    for _ in 0..=limits::PREPARE_WAIT.as_secs() {
        seen += sent(&mut scene).len();
    }
    assert_eq!(seen, 3);
}

#[test]
fn old_workers_prepare_one_environment_at_a_time_while_they_are_idle() {
    let mut scene = Scene::new();
    let first = scene.deploys("p0", "lock 0");
    scene.deploys("p1", "lock 1");
    scene.send_as(
        "o",
        0,
        Payload::Identify(Identify {
            capabilities: vec!["*".into()],
            ..Identify::default()
        }),
    );
    let sent = |scene: &mut Scene| scene.sent(&[]);
    assert_eq!(sent(&mut scene), ["o prepare lock 1"]);
    assert_eq!(sent(&mut scene), [""; 0]);
    scene.ready("o", &sha256_hex(&[b"lock 1"]));
    assert_eq!(sent(&mut scene), ["o prepare lock 0"]);
    scene.ready("o", &first);
    sent(&mut scene);
    assert_eq!(scene.recorded().matches("o.a ").count(), 2);
    scene.sql("INSERT INTO cf_topic_config (plugin_name, topic_name, uri) VALUES ('p1', 't', 'x')");
    assert_eq!(sent(&mut scene), ["o reload"]);
}

#[test]
fn a_change_of_sinks_reloads_those_that_may_run_the_plugin_and_holds_for_the_next_job() {
    let mut scene = Scene::new();
    scene.deploys("p", "lock");
    scene.introduce_as("x", &["*"], &[]);
    scene.introduce_as("y", &["other"], &[]);
    scene.sent(&["x", "y"]);
    let changes = [
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri) \
         VALUES ('p', 'output', 'parquet://a.parquet')",
        "UPDATE cf_topic_config SET uri = 'parquet://b.parquet'",
        "UPDATE cf_topic_config SET mode = 'replace'",
        "DELETE FROM cf_topic_config",
        "INSERT INTO cf_topic_config (plugin_name, topic_name, uri) \
         VALUES ('p', 'output', 'parquet://c.parquet')",
    ];
    for change in changes {
        scene.sql(change);
        assert_eq!(scene.sent(&["x", "y"]), ["x reload"], "{change}");
        // Its answer to RELOAD is no new connection, so it is not asked again.
        scene.introduce_as("x", &["*"], &[]);
        assert_eq!(scene.sent(&["x", "y"]), [""; 0], "{change}");
    }
    scene.sql("UPDATE cf_plugin_config SET retries = 1");
    assert_eq!(scene.sent(&["x", "y"]), [""; 0], "nothing of theirs");
}

#[test]
fn what_is_known_of_a_worker_stays_when_it_answers_reload() {
    let mut scene = Scene::new();
    scene.deploys("p", "lock");
    scene.introduce_as("x", &["*"], &[]);
    scene.sent(&["x"]);
    scene.sequence += 1;
    let trouble = Heartbeat {
        running: Some(vec![]),
        sequence: Some(scene.sequence),
        trouble: Some("its disk is full".to_owned()),
        ..Heartbeat::default()
    };
    scene.send_as("x", 0, Payload::Heartbeat(trouble));
    scene.introduce_as("x", &["*"], &[]);
    scene.tick();
    let trouble = "SELECT trouble FROM cf_worker_session";
    assert_eq!(scene.text(trouble), "its disk is full");
}

#[test]
fn workers_that_are_disconnected_for_long_are_forgotten_with_their_environments() {
    let mut scene = Scene::new();
    let hash = scene.deploys("p", "lock");
    scene.introduce_as("x", &["*"], &[]);
    scene.introduce_as("y", &["*"], &[]);
    scene.sent(&["x", "y"]);
    scene.ready("x", &hash);
    scene.ready("y", &hash);
    scene.tick();
    assert_eq!(scene.recorded().matches(&hash[..8]).count(), 2);
    scene.sql(
        "INSERT INTO cf_worker_session (worker_id, hostname, capabilities, slots, status, \
         last_seen_ms) VALUES ('z', 'h', '[]', 1, 'OFFLINE', 0); \
         INSERT INTO cf_processing_queue (id, file_version_id, plugin_name, status, attempt, \
         worker_id) VALUES (7, 1, 'q', 'RUNNING', 1, 'z'), (8, 1, 'q', 'RUNNING', 1, NULL)",
    );
    let (now, _) = scene.now();
    let control = &mut scene.scheduler.as_mut().unwrap().control;
    control.handle_disconnected(PeerId::from_u64('y'.into()), b"y.a", now);
    scene.sent(&["x"]);
    scene.sent(&["x"]);
    scene.sent(&["x"]);
    let recorded = scene.recorded();
    assert!(
        recorded.contains("x ") && !recorded.contains("y "),
        "{recorded}: what was ready on a worker goes when it is offline"
    );
    let known = |scene: &Scene| {
        scene.text("SELECT group_concat(worker_id) FROM (SELECT worker_id FROM cf_worker_session ORDER BY 1)")
    };
    let kept = limits::WORKER_SESSION_KEPT.as_secs();
    let day = 24 * 3600;
    scene.seconds += kept - day;
    scene.introduce_as("x", &["*"], &[]);
    scene.sent(&["x"]);
    assert_eq!(known(&scene), "x,y,z");
    scene.seconds += 2 * day;
    // One `SEEN_INTERVAL` passes.
    for _ in 0..limits::SEEN_INTERVAL.as_secs() {
        scene.sent(&["x"]);
    }
    assert!(!known(&scene).contains('y'), "{}", known(&scene));
    assert!(scene.recorded().contains("x "));
}

#[test]
fn what_another_process_of_a_worker_has_reported_as_ready_does_not_count() {
    let mut scene = Scene::new();
    let a = scene.deploys("pa", "lock a");
    scene.introduce_as("x", &["*"], &[]);
    scene.sent(&["x"]);
    scene.ready("x", &a);
    scene.sent(&["x"]);
    assert_ne!(scene.recorded(), "");
    // After a restart of the sentinel, its workers send IDENTIFY again.
    scene.restart(LEASE);
    assert_eq!(scene.recorded(), "");
    scene.introduce_as("x", &["*"], &[]);
    assert_eq!(scene.sent(&["x"]), ["x prepare lock a"]);
    assert_eq!(scene.recorded(), "");
    scene.ready("x", &a);
    scene.sent(&["x"]);
    assert_ne!(scene.recorded(), "");
}

#[test]
fn environments_that_a_worker_makes_up_are_not_recorded() {
    let mut scene = Scene::new();
    let deployed = scene.deploys("p", "lock");
    scene.introduce_as("x", &["none"], &[]);
    scene.introduce_as("y", &["p"], &[]);
    assert_eq!(scene.sent(&["x", "y"]), ["y prepare lock"]);
    for number in 0..3 * limits::WORKER_ENVIRONMENTS_MAX {
        let hash = sha256_hex(&[number.to_string().as_bytes()]);
        scene.ready("x", &hash);
        scene.ready("y", &hash);
    }
    // An environment that only another worker should have, by its plugins.
    scene.ready("x", &deployed);
    scene.sent(&["x", "y"]);
    assert_eq!(scene.recorded_count(), "0");
    scene.ready("y", &deployed);
    assert_eq!(scene.sent(&["x", "y"]), [""; 0]);
    assert!(
        scene
            .recorded()
            .starts_with(&format!("y {}", &deployed[..8]))
    );
}

/// Otherwise each change would be written.
#[test]
fn an_environment_that_is_reported_as_failed_and_as_ready_alternately_is_recorded_a_few_times() {
    let mut scene = Scene::new();
    let hash = scene.deploys("p", "lock");
    scene.introduce_as("x", &["p"], &[]);
    scene.sent(&["x"]);
    scene.ready("x", &hash);
    scene.sent(&["x"]);
    assert_eq!(scene.recorded_count(), "1");
    for _ in 0..2 * limits::ENVIRONMENT_FLIPS_MAX {
        let failed = ErrorMessage {
            message: "no space".into(),
            traceback: None,
            refused: false,
            env_hash: Some(hash.clone().into()),
        };
        scene.send_as("x", 0, Payload::Err(failed));
        scene.ready("x", &hash);
    }
    scene.sent(&["x"]);
    assert_eq!(scene.recorded_count(), "0");
    scene.seconds += limits::ENVIRONMENT_RETRY_AFTER.as_secs();
    scene.ready("x", &hash);
    scene.sent(&["x"]);
    assert_eq!(scene.recorded_count(), "1");
}

#[test]
fn an_environment_of_before_a_restart_of_the_sentinel_is_recorded_unasked() {
    let mut scene = Scene::new();
    let hash = scene.deploys("p", "lock");
    scene.introduce_as("x", &["p"], &[]);
    assert_eq!(scene.sent(&["x"]), ["x prepare lock"]);
    scene.restart(LEASE);
    scene.sent(&[]);
    scene.introduce_as("x", &["p"], &[]);
    scene.ready("x", &hash);
    assert_eq!(scene.sent(&["x"]), [""; 0]);
    assert!(scene.recorded().starts_with(&format!("x {}", &hash[..8])));
}

#[test]
fn rows_of_a_worker_that_is_asked_for_many_environments_are_bounded() {
    let mut scene = Scene::new();
    scene.introduce_as("x", &["*"], &[]);
    scene.tick();
    let hash_of = |number: usize| sha256_hex(&[number.to_string().as_bytes()]);
    let most = limits::WORKER_ENVIRONMENTS_MAX;
    for number in 0..most + 100 {
        let hash = hash_of(number);
        let (now, _) = scene.now();
        let control = &mut scene.scheduler.as_mut().unwrap().control;
        control.prepare(b"x.a", &hash, &number.to_string(), now);
        scene.ready("x", &hash);
    }
    scene.sent(&["x"]);
    assert_eq!(scene.recorded_count(), most.to_string());
    let last = &hash_of(most + 99)[..8];
    assert!(scene.recorded().contains(last), "the last one is known");
}
