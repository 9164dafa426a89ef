//! Tests of the scheduler with messages in, messages out, and a database.

use rusqlite::Connection;

mod alone;
mod deploy;
mod deployments;
mod routes;

use super::*;
use crate::job::{Attempt, Cause, JobStatus, Receipt, Settlement};
use crate::protocol::{Heartbeat, Payload, View};
use crate::sentinel::control::{Body, Sender};
use crate::socket::PeerId;

const LEASE: Duration = Duration::from_secs(10);

/// A database, the sentinel that works on it, and the time of its clock.
struct Scene {
    dir: tempfile::TempDir,
    scheduler: Option<Scheduler>,
    seconds: u64,
    sequence: u64,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Scene {
            dir: tempfile::tempdir().unwrap(),
            scheduler: None,
            seconds: 0,
            sequence: 0,
        };
        scene.restart(LEASE);
        scene
    }

    fn now(&self) -> (BootTime, Now) {
        let since_boot = Duration::from_secs(1_000 + self.seconds);
        let at = Now {
            unix_ms: 1_766_232_000_000 + 1000 * self.seconds as i64,
            boot_ms: since_boot.as_millis() as u64,
            boot_id: "this-start".into(),
        };
        (BootTime::after_boot(since_boot), at)
    }

    /// Replaces the sentinel of the database by another one.
    fn restart(&mut self, lease: Duration) {
        self.scheduler = None;
        let settings = Settings {
            lease,
            lease_margin: Duration::ZERO,
            attempt_timeout: limits::ATTEMPT_TIMEOUT,
            retries_max: 0,
            exclusive: false,
        };
        let (now, at) = self.now();
        let path = self.dir.path().join("q.db");
        self.scheduler = Some(Scheduler::open(&path, settings, now, &at).unwrap());
    }

    fn sql(&self, sql: &str) {
        let other = Connection::open(self.dir.path().join("q.db")).unwrap();
        other.pragma_update(None, "foreign_keys", false).unwrap();
        other.execute_batch(sql).unwrap();
    }

    fn text(&self, query: &str) -> String {
        let other = Connection::open(self.dir.path().join("q.db")).unwrap();
        other.query_row(query, [], |row| row.get(0)).unwrap()
    }

    /// Passes in a message of worker `w`.
    fn send(&mut self, job_id: i64, payload: Payload<'_>) {
        self.send_as("w", job_id, payload);
    }

    /// Passes in a message of a worker with a name of one byte.
    fn send_as(&mut self, worker: &str, job_id: i64, payload: Payload<'_>) {
        let (now, _) = self.now();
        let routing_id = format!("{worker}.a");
        let from = Sender {
            peer: PeerId::from_u64(worker.as_bytes()[0].into()),
            routing_id: routing_id.as_bytes(),
            user: None,
        };
        let control = &mut self.scheduler.as_mut().unwrap().control;
        let refused = control.handle_message(&from, job_id as u64, payload, now);
        assert_eq!(refused, None);
    }

    fn identify(&mut self) {
        self.introduce(&["*"]);
    }

    fn introduce(&mut self, capabilities: &[&str]) {
        self.introduce_as("w", capabilities, &[]);
    }

    fn introduce_as(&mut self, worker: &str, capabilities: &[&str], running: &[Attempt]) {
        self.sequence += 1;
        let identify = Identify {
            capabilities: capabilities.iter().map(|name| (*name).into()).collect(),
            worker_id: Some(worker.to_owned().into()),
            slots: Some(2),
            running: Some(running.to_vec()),
            instance: Some(format!("{worker}.a").into()),
            sequence: Some(self.sequence),
            ..Identify::default()
        };
        self.send_as(worker, 0, Payload::Identify(identify));
    }

    /// One iteration, a second later.
    fn tick(&mut self) -> Vec<Outgoing> {
        self.seconds += 1;
        let (now, at) = self.now();
        self.scheduler.as_mut().unwrap().iterate(now, &at)
    }
}

/// The settlements that a message asks for, as the worker decodes it. Checks that the message is small enough
/// to be sent.
fn settlements(message: &Outgoing) -> Vec<Settlement> {
    let (header, bytes) = message.encode().unwrap();
    let size = (header.len() + bytes.len()) as u64;
    assert!(size <= limits::ZMTP_MESSAGE_SIZE_MAX, "{size} bytes");
    let view = View::decode([&header[..], &bytes].into_iter()).unwrap();
    match Payload::decode(&view).unwrap() {
        Payload::Heartbeat(heartbeat) => heartbeat.answer.map_or(vec![], |answer| answer.settle),
        _ => vec![],
    }
}

/// Each of many large settlements fits into an answer, but not all of them together. The last one is too
/// large by itself.
#[test]
fn settlements_that_do_not_fit_into_one_answer_go_into_the_next() {
    let mut scene = Scene::new();
    for job_id in 1..=13 {
        let size = if job_id == 13 { 65 << 20 } else { 6 << 20 };
        scene.sql(&format!(
            "INSERT INTO cf_processing_queue (id, file_version_id, plugin_name, status, attempt, \
             unsettled, published) VALUES ({job_id}, 1, 'p', 'SKIPPED', 1, 1, \
             '[\"file:///' || printf('%.*c', {size}, 'x') || '\"]')"
        ));
    }
    scene.identify();
    let mut asked = Vec::new();
    for _ in 0..30 {
        let outgoing = scene.tick();
        let settle: Vec<_> = outgoing.iter().flat_map(settlements).collect();
        for Settlement { attempt, .. } in &settle {
            asked.push(attempt.job_id);
            let receipt = Receipt {
                status: JobStatus::Success,
                attempt: Some(attempt.number),
                ..Receipt::default()
            };
            scene.send(attempt.job_id, Payload::Conclude(receipt));
        }
        scene.sequence += 1;
        let request = Heartbeat {
            running: Some(vec![]),
            sequence: Some(scene.sequence),
            ..Heartbeat::default()
        };
        scene.send(0, Payload::Heartbeat(request));
    }
    assert_eq!(asked, (1..=12).collect::<Vec<i64>>(), "each once");
    let row = |id: i64, column: &str| {
        scene.text(&format!(
            "SELECT '' || {column} FROM cf_processing_queue WHERE id = {id}"
        ))
    };
    for job_id in 1..=12 {
        assert_eq!(row(job_id, "unsettled"), "0", "job {job_id}");
    }
    // The last one is given up: its row gets no other attempt, and is not considered again.
    assert_eq!(
        (row(13, "unsettled"), row(13, "attempt")),
        ("2".into(), "1".into())
    );
}

/// The second at which the job of a lost worker is released.
fn given_up_at(scene: &mut Scene) -> u64 {
    while scene.text("SELECT status FROM cf_processing_queue") == "RUNNING" {
        scene.tick();
    }
    scene.seconds
}

impl Scene {
    /// A database in which an earlier sentinel has left a job of a lost worker, and a length of leases.
    fn left_behind(lease_ms: &str) -> Self {
        let scene = Scene::new();
        scene.sql(&format!(
            "INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, attempt, worker_id) \
             VALUES (1, 'p', 'RUNNING', 1, 'dead'); \
             UPDATE cf_casparian SET value = {lease_ms} WHERE key = 'lease_ms'"
        ));
        scene
    }
}

#[test]
fn the_long_lease_of_an_earlier_sentinel_counts_once() {
    let mut scene = Scene::left_behind("3600000");
    for seconds in [0, 1000, 2000, 3000] {
        scene.seconds = seconds;
        scene.restart(LEASE);
        scene.tick();
    }
    scene.seconds = 3500;
    scene.restart(LEASE);
    // It is released at the first tick after the end of the lease.
    assert!(
        (3600..=3602).contains(&given_up_at(&mut scene)),
        "{}",
        scene.seconds
    );
    // From now on the length of this sentinel's leases counts.
    scene.sql("UPDATE cf_processing_queue SET status = 'RUNNING', attempt = 2");
    scene.restart(LEASE);
    let passed = given_up_at(&mut scene) - 3600;
    assert!((10..=15).contains(&passed), "{passed}");
}

#[test]
fn what_another_program_sets_to_running_is_held_no_longer_than_leases_are() {
    let mut scene = Scene::left_behind("60000");
    scene.restart(LEASE);
    assert!(
        (60..=62).contains(&given_up_at(&mut scene)),
        "{}",
        scene.seconds
    );
    scene.tick();
    scene.sql("UPDATE cf_processing_queue SET status = 'RUNNING', attempt = 7");
    let before = scene.seconds;
    let passed = given_up_at(&mut scene) - before;
    assert!((10..=14).contains(&passed), "{passed}");
}

#[test]
fn after_another_start_of_the_machine_a_long_lease_counts_anew() {
    let mut scene = Scene::left_behind("60000");
    scene.restart(LEASE);
    scene.seconds = 50;
    scene.sql("UPDATE cf_casparian SET value = replace(value, 'this-start', 'the-one-before') WHERE key = 'lease_until'");
    scene.restart(LEASE);
    assert!(
        (110..=112).contains(&given_up_at(&mut scene)),
        "{}",
        scene.seconds
    );
}

#[test]
fn a_lease_that_no_sentinel_gives_counts_as_the_default() {
    for lease_ms in [
        "'x'",
        "-5",
        "1e300",
        "86400001",
        "9223372036854775807",
        "x'00'",
        "CAST(x'ff' AS TEXT)",
    ] {
        let mut scene = Scene::left_behind(lease_ms);
        scene.sql("UPDATE cf_casparian SET value = CAST(x'ff' AS TEXT) WHERE key = 'lease_until'");
        scene.restart(Duration::from_secs(2));
        let passed = given_up_at(&mut scene);
        assert!((10..=12).contains(&passed), "{lease_ms}: {passed}");
    }
}

impl Scene {
    /// Deploys a plugin. Returns the ID of a file version.
    fn deploy(&self, plugin_name: &str) -> i64 {
        self.deploy_with(plugin_name, "")
    }

    fn deploy_with(&self, plugin_name: &str, lockfile_content: &str) -> i64 {
        let mut store = Store::open(&self.dir.path().join("q.db"), Open::Existing).unwrap();
        let mut transaction = store.begin().unwrap();
        let deploy = store::Deploy {
            plugin_name,
            version: None,
            source_code: "class Handler: pass",
            lockfile_content,
            sinks: &[],
        };
        transaction.deploy(&deploy, 1).unwrap();
        let file = transaction
            .register_file("/data", "a", 1, 0.0, "h", 1)
            .unwrap();
        transaction.commit().unwrap();
        file.version_id
    }
}

#[test]
fn a_job_that_must_run_alone_does_so_after_a_restart_too() {
    for (losses, neighbour) in [(0, "RUNNING"), (limits::SHARED_LOSSES_TOGETHER, "QUEUED")] {
        let mut scene = Scene::new();
        let version = scene.deploy("p");
        let queue = |scene: &Scene, job_id: i64, losses: i64| {
            scene.sql(&format!(
                "INSERT INTO cf_processing_queue (id, file_version_id, plugin_name, status, \
                 shared_count) VALUES ({job_id}, {version}, 'p', 'QUEUED', {losses})"
            ));
        };
        queue(&scene, 1, losses);
        scene.identify();
        scene.settle();
        assert_eq!(scene.status(1), "RUNNING");
        scene.restart(LEASE);
        queue(&scene, 2, 0);
        scene.introduce_as("w", &["*"], &[Attempt::new(1, 1)]);
        scene.settle();
        assert_eq!(
            (scene.status(1), scene.status(2)),
            ("RUNNING".into(), neighbour.into())
        );
    }
}

/// A database with plugins whose jobs no worker may run, first in the order of names, and behind them `p`
/// with a job.
fn behind_others(others: &str) -> Scene {
    let mut scene = Scene::new();
    let version = scene.deploy("p");
    scene.sql(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10500) \
         INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
         SELECT {version}, printf('a%05d', i), 'QUEUED' FROM n; {others}; \
         INSERT INTO cf_processing_queue (id, file_version_id, plugin_name, status) \
         VALUES (99999, {version}, 'p', 'QUEUED')"
    ));
    let (now, at) = scene.now();
    // The sentinel has polled the queue before its worker connects.
    scene.scheduler.as_mut().unwrap().iterate(now, &at);
    scene
}

impl Scene {
    /// Runs iterations without a pause until nothing is due at once. Returns their number.
    fn settle(&mut self) -> usize {
        let (now, at) = self.now();
        for count in 1..100 {
            let scheduler = self.scheduler.as_mut().unwrap();
            scheduler.iterate(now, &at);
            if scheduler.poll_timeout(now).is_none_or(|at| at > now) {
                return count;
            }
        }
        panic!("it does not come to rest");
    }

    fn status(&self, job_id: i64) -> String {
        self.text(&format!(
            "SELECT status FROM cf_processing_queue WHERE id = {job_id}"
        ))
    }
}

#[test]
fn plugins_that_cannot_run_do_not_stall_those_behind_them() {
    let deployed = "INSERT INTO cf_plugin_manifest (plugin_name, version, source_code, \
         source_hash, status) SELECT plugin_name, '1', 'x', plugin_name, 'ACTIVE' \
         FROM cf_processing_queue";
    for others in ["SELECT 1", deployed] {
        let mut scene = behind_others(others);
        scene.introduce(&["p", "q"]);
        let count = scene.settle();
        assert_eq!(scene.status(99_999), "RUNNING", "{others}");
        assert!(count < 30, "{count}");
        // Nothing has changed, so nothing is read until the next poll.
        assert_eq!(scene.settle(), 1, "{others}");
        // Another program gives the job to a plugin before the others, and deploys one behind them.
        scene.seconds += 1;
        scene.sql("UPDATE cf_processing_queue SET plugin_name = 'p' WHERE id = 7");
        scene.settle();
        assert_eq!(scene.status(7), "RUNNING", "{others}");
    }
}

#[test]
fn rows_that_roll_the_transaction_back_cost_themselves_alone() {
    let mut scene = behind_others("SELECT 1");
    scene.sql(
        "UPDATE cf_processing_queue SET plugin_name = 'p', priority = 5 WHERE id <= 600; \
         CREATE TRIGGER theirs AFTER UPDATE ON cf_processing_queue WHEN OLD.priority = 5 \
         BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
    );
    scene.introduce(&["p"]);
    scene.seconds += 1;
    scene.settle();
    assert_eq!(scene.status(99_999), "RUNNING");
    assert_eq!(scene.text("SELECT worker_id FROM cf_worker_session"), "w");
    // They are tried again after a while.
    scene.sql("DROP TRIGGER theirs");
    scene.seconds += 11;
    scene.introduce(&["p"]);
    scene.settle();
    let running = "SELECT '' || count(*) FROM cf_processing_queue WHERE status = 'RUNNING'";
    assert_eq!(scene.text(running), "2", "as many as there are slots");
}

impl Scene {
    /// Ends all jobs that were dispatched to worker `w`, in the order of the dispatches. Returns the jobs.
    fn end_dispatched(&mut self, outgoing: &[Outgoing]) -> Vec<i64> {
        self.end_dispatched_as(outgoing, |_| false)
    }

    fn end_dispatched_as(
        &mut self,
        outgoing: &[Outgoing],
        fails: impl Fn(i64) -> bool,
    ) -> Vec<i64> {
        let mut jobs = Vec::new();
        for message in outgoing {
            if let Body::Dispatch { attempt, .. } = &message.body {
                jobs.push(attempt.job_id);
                let (status, cause) = match fails(attempt.job_id) {
                    true => (JobStatus::Failed, Some(Cause::Plugin)),
                    false => (JobStatus::Success, None),
                };
                let receipt = Receipt {
                    status,
                    cause,
                    attempt: Some(attempt.number),
                    ..Receipt::default()
                };
                self.send(attempt.job_id, Payload::Conclude(receipt));
            }
        }
        jobs
    }
}

/// Another program queues a row again immediately after each of its claims, in a transaction of its own.
#[test]
fn a_row_that_is_queued_again_while_it_runs_does_not_stall_those_behind_it() {
    for back in ["status = 'QUEUED'", "status = 'QUEUED', attempt = 0"] {
        let mut scene = Scene::new();
        let version = scene.deploy("p");
        scene.sql(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6) \
             INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
             SELECT {version}, 'p', 'QUEUED' FROM n"
        ));
        let mut dispatched = Vec::new();
        for _ in 0..60 {
            scene.introduce_as("w", &["*"], &[]);
            let outgoing = scene.tick();
            scene.sql(&format!(
                "UPDATE cf_processing_queue SET {back} WHERE id = 1 AND status = 'RUNNING'"
            ));
            dispatched.extend(scene.end_dispatched(&outgoing));
        }
        let of = |job_id: i64| dispatched.iter().filter(|id| **id == job_id).count();
        assert!((4..=10).contains(&of(1)), "{back}: {dispatched:?}");
        for job_id in 2..=6 {
            assert_eq!((of(job_id), scene.status(job_id)), (1, "COMPLETED".into()));
        }
        let inspector = store::Inspector::open(&scene.dir.path().join("q.db")).unwrap();
        let reason = inspector.job(1).unwrap().unwrap().waiting_for.unwrap();
        assert!(reason.contains("another program"), "{reason}");
        // It completes when the other program stops.
        for _ in 0..200 {
            scene.introduce_as("w", &["*"], &[]);
            let outgoing = scene.tick();
            scene.end_dispatched(&outgoing);
        }
        assert_eq!(scene.status(1), "COMPLETED", "{back}");
    }
}

/// A trigger of another program, for example one that queues failed jobs again.
#[test]
fn rows_that_are_queued_again_when_they_end_do_not_stall_those_behind_them() {
    for (condition, fails) in [("new.id <= 2", false), ("new.status = 'FAILED'", true)] {
        let mut scene = Scene::new();
        let version = scene.deploy("p");
        scene.sql(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6) \
             INSERT INTO cf_processing_queue (file_version_id, plugin_name, status) \
             SELECT {version}, 'p', 'QUEUED' FROM n; \
             CREATE TRIGGER again AFTER UPDATE OF status ON cf_processing_queue \
             WHEN new.status IN ('COMPLETED', 'FAILED') AND {condition} \
             BEGIN UPDATE cf_processing_queue SET status = 'QUEUED' WHERE id = new.id; END"
        ));
        let mut dispatched = Vec::new();
        for _ in 0..60 {
            scene.introduce_as("w", &["*"], &[]);
            let outgoing = scene.tick();
            dispatched.extend(scene.end_dispatched_as(&outgoing, |job_id| fails && job_id <= 2));
        }
        let of = |job_id: i64| dispatched.iter().filter(|id| **id == job_id).count();
        for job_id in 1..=2 {
            assert!(
                (4..=10).contains(&of(job_id)),
                "{condition}: {dispatched:?}"
            );
        }
        for job_id in 3..=6 {
            assert_eq!((of(job_id), scene.status(job_id)), (1, "COMPLETED".into()));
        }
    }
}

/// Adds RUNNING rows of lost workers.
fn many_running(scene: &Scene, count: usize) {
    scene.sql(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
         INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, attempt, worker_id) \
         SELECT 1, 'p', 'RUNNING', 1, 'dead' || (i % 50) FROM n"
    ));
}

impl Scene {
    fn running(&self) -> usize {
        let count = "SELECT '' || count(*) FROM cf_processing_queue WHERE status = 'RUNNING'";
        self.text(count).parse().unwrap()
    }

    /// How many of the jobs up to this ID have an attempt 1 that is a claim of the control state.
    fn known(&self, jobs: usize) -> usize {
        let control = &self.scheduler.as_ref().unwrap().control;
        let attempts = (1..=jobs as i64).map(|job_id| Attempt::new(job_id, 1));
        attempts.filter(|one| control.is_known(*one)).count()
    }
}

#[test]
fn leases_that_run_out_together_are_ended_in_parts_and_messages_are_answered_between() {
    let mut scene = Scene::new();
    let count = 2 * limits::EXPIRED_PER_ITERATION + 10;
    many_running(&scene, count);
    scene.restart(LEASE);
    scene.seconds += 9;
    scene.identify();
    scene.settle();
    assert_eq!(scene.running(), count, "before the end of the lease");
    scene.seconds += 1;
    let mut left = count;
    for step in 1.. {
        scene.sequence += 1;
        let request = Heartbeat {
            running: Some(vec![]),
            sequence: Some(scene.sequence),
            ..Heartbeat::default()
        };
        scene.send(0, Payload::Heartbeat(request));
        let (now, at) = scene.now();
        let outgoing = scene.scheduler.as_mut().unwrap().iterate(now, &at);
        assert_eq!(outgoing.len(), 1, "the request is answered");
        let after = scene.running();
        assert!(
            left - after <= limits::EXPIRED_PER_ITERATION,
            "{left} {after}"
        );
        left = after;
        if left == 0 {
            assert!(step < 9, "{step}");
            break;
        }
        let due = scene.scheduler.as_ref().unwrap().poll_timeout(now);
        assert!(due.is_some_and(|due| due <= now), "{due:?} at {left}");
    }
}

#[test]
fn rows_that_others_set_to_running_are_compared_in_parts() {
    let mut scene = Scene::new();
    scene.tick();
    let count = 2 * limits::CLAIMS_PER_ITERATION + 10;
    many_running(&scene, count);
    let mut known = 0;
    for step in 1.. {
        scene.tick();
        let now = scene.known(count);
        assert!(now - known <= limits::CLAIMS_PER_ITERATION, "{known} {now}");
        assert!(step < 9, "{known}");
        known = now;
        if known == count {
            break;
        }
    }
    // The same for rows that another program changes.
    scene.sql("UPDATE cf_processing_queue SET status = 'SKIPPED'");
    for step in 1.. {
        scene.tick();
        let now = scene.known(count);
        assert!(known - now <= limits::CLAIMS_PER_ITERATION, "{known} {now}");
        assert!(step < 9, "{known}");
        known = now;
        if known == 0 {
            break;
        }
    }
}

#[test]
fn a_sentinel_that_is_slow_by_its_own_work_was_not_absent() {
    for (works, want) in [(true, 9..=12), (false, 30..=99)] {
        let mut scene = Scene::left_behind("1000");
        scene.restart(LEASE);
        while scene.text("SELECT status FROM cf_processing_queue") == "RUNNING" {
            scene.seconds += 3;
            assert!(scene.seconds < 99, "{works}: its lease does not end");
            if works || scene.seconds > 30 {
                let worked = Duration::from_secs(3);
                scene.scheduler.as_mut().unwrap().note_work(worked);
            }
            let (now, at) = scene.now();
            scene.scheduler.as_mut().unwrap().iterate(now, &at);
        }
        assert!(want.contains(&scene.seconds), "{works}: {}", scene.seconds);
    }
}

/// Code in the schema refuses the rows at the head of the queue in different ways. The rows behind them run
/// after a bounded number of short iterations, between which messages are answered.
#[test]
fn rows_that_the_schema_refuses_do_not_stall_those_behind_them() {
    let rows: usize = 6000;
    let in_parts = rows.div_ceil(limits::UNUSABLE_ROWS_PER_TRANSACTION);
    let rolled_back = (2 * rows).div_ceil(limits::ROLLBACKS_PER_ITERATION);
    for (code, most, work) in [
        ("RAISE(ABORT, 'no')", in_parts, 0),
        ("abs(-9223372036854775808)", in_parts, 0),
        ("RAISE(ROLLBACK, 'no')", rolled_back, 0),
        // The first rows are not tried again before the last ones have been.
        ("RAISE(ABORT, 'no')", in_parts, 1),
    ] {
        let work = Duration::from_secs(work);
        let mut scene = Scene::new();
        let version = scene.deploy("p");
        scene.sql(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
             INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, priority) \
             SELECT {version}, 'p', 'QUEUED', 5 FROM n; \
             INSERT INTO cf_processing_queue (id, file_version_id, plugin_name, status) \
             VALUES (999999, {version}, 'p', 'QUEUED'); \
             CREATE TRIGGER theirs AFTER UPDATE ON cf_processing_queue WHEN OLD.priority = 5 \
             BEGIN SELECT {code}; END"
        ));
        scene.introduce(&["p"]);
        let (begin, at) = scene.now();
        let (mut now, mut count) = (begin, 0);
        while scene.status(999_999) != "RUNNING" {
            scene.sequence += 1;
            let request = Heartbeat {
                running: Some(vec![]),
                sequence: Some(scene.sequence),
                ..Heartbeat::default()
            };
            scene.send(0, Payload::Heartbeat(request));
            let scheduler = scene.scheduler.as_mut().unwrap();
            let outgoing = scheduler.iterate(now, &at);
            scheduler.note_work(work);
            assert!(!outgoing.is_empty(), "{code}: the request is answered");
            count += 1;
            assert!(count <= most + 9, "{code}: {count} iterations");
            now = scheduler.poll_timeout(now).unwrap().max(now);
            scene.seconds = now.saturating_duration_since(begin).as_secs();
        }
        let waited = now.saturating_duration_since(begin);
        let waited = waited.saturating_sub(work * u32::try_from(count).unwrap());
        assert!(waited < Duration::from_secs(2), "{code}: {waited:?}");
    }
}
