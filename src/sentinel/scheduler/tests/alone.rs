//! Tests of jobs that run alone on a worker, and of their effect on other jobs.

use super::*;

impl Scene {
    /// Queues jobs of plugin `p`. If `runs_alone`, they have been lost with other jobs before.
    fn queue(&self, version_id: i64, ids: std::ops::RangeInclusive<i64>, runs_alone: bool) {
        let shared = i64::from(runs_alone) * limits::SHARED_LOSSES_TOGETHER;
        for job_id in ids {
            self.sql(&format!(
                "INSERT INTO cf_processing_queue (id, file_version_id, plugin_name, status, \
                 shared_count) VALUES ({job_id}, {version_id}, 'p', 'QUEUED', {shared})"
            ));
        }
    }

    /// A second passes, in which each worker reports what it runs.
    fn pass(&mut self, workers: &[&str]) {
        self.seconds += 1;
        for worker in workers {
            self.sequence += 1;
            let heartbeat = Heartbeat {
                running: Some(self.runs(worker)),
                sequence: Some(self.sequence),
                ..Heartbeat::default()
            };
            self.send_as(worker, 0, Payload::Heartbeat(heartbeat));
        }
        self.settle();
    }

    fn runs(&self, worker: &str) -> Vec<Attempt> {
        let running = self.text(&format!(
            "SELECT coalesce(group_concat(id, ' '), '') FROM cf_processing_queue \
             WHERE status = 'RUNNING' AND worker_id = '{worker}'"
        ));
        let ids = running.split_whitespace().map(|id| id.parse().unwrap());
        ids.map(|id| Attempt::new(id, 1)).collect()
    }

    fn jobs_of(&self, worker: &str) -> Vec<i64> {
        let runs = self.runs(worker);
        runs.iter().map(|attempt| attempt.job_id).collect()
    }

    fn end(&mut self, worker: &str, job_id: i64) {
        let receipt = Receipt {
            status: JobStatus::Success,
            attempt: Some(1),
            ..Receipt::default()
        };
        self.send_as(worker, job_id, Payload::Conclude(receipt));
    }
}

/// Two workers with two slots each, which run the long jobs 1 to 4. Behind these, jobs that run alone and
/// jobs that do not are queued.
fn full(capabilities: [&[&str]; 2]) -> Scene {
    let mut scene = Scene::new();
    let version_id = scene.deploy("p");
    scene.queue(version_id, 1..=4, false);
    for (worker, capabilities) in ["v", "w"].into_iter().zip(capabilities) {
        scene.introduce_as(worker, capabilities, &[]);
    }
    scene.pass(&["v", "w"]);
    assert_eq!(scene.running(), 4);
    scene.queue(version_id, 5..=6, true);
    scene.queue(version_id, 7..=19, false);
    scene
}

#[test]
fn jobs_that_run_alone_empty_one_worker_at_a_time() {
    let both = ["v", "w"];
    let mut scene = full([&["*"], &["p"]]);
    let (of_v, of_w) = (scene.jobs_of("v"), scene.jobs_of("w"));
    // Each worker gets a free slot. One worker is being emptied, the slot of the other one is filled.
    scene.end("v", of_v[0]);
    scene.end("w", of_w[0]);
    for _ in 0..3 {
        scene.pass(&both);
        assert_eq!(scene.running(), 3);
    }
    let emptied = if scene.jobs_of("v").len() == 1 {
        "v"
    } else {
        "w"
    };
    let other = if emptied == "v" { "w" } else { "v" };
    let last = scene.jobs_of(emptied)[0];
    scene.end(emptied, last);
    scene.pass(&both);
    assert_eq!(scene.jobs_of(emptied), [5]);
    // While one job runs alone, the others run on the other worker.
    for next in [8, 9] {
        let done = scene.jobs_of(other)[0];
        scene.end(other, done);
        scene.pass(&both);
        assert_eq!(scene.jobs_of(other).len(), 2);
        assert_eq!(scene.status(next), "RUNNING");
    }
    // After the first job the worker is idle, so it gets the second one.
    scene.end(emptied, 5);
    scene.pass(&both);
    assert_eq!(scene.jobs_of(emptied), [6]);
    scene.end(emptied, 6);
    scene.pass(&both);
    assert_eq!((scene.jobs_of(emptied).len(), scene.running()), (2, 4));
}

#[test]
fn a_job_that_runs_alone_takes_an_idle_worker_beside_another_one() {
    let both = ["v", "w"];
    let mut scene = full([&["*"], &["*"]]);
    for worker in both {
        for job_id in scene.jobs_of(worker) {
            scene.end(worker, job_id);
        }
    }
    scene.pass(&both);
    let mut alone = [scene.jobs_of("v"), scene.jobs_of("w")];
    alone.sort();
    assert_eq!(alone, [vec![5], vec![6]]);
}

/// A worker that cannot run the job is not emptied for it. If it is being emptied for another job, it does
/// not count for this one.
#[test]
fn workers_are_emptied_for_what_they_may_run() {
    let mut scene = full([&["*"], &["*"]]);
    let other = scene.deploy("q");
    scene.introduce_as("u", &["q"], &[]);
    scene.sql(&format!(
        "INSERT INTO cf_processing_queue (id, file_version_id, plugin_name, status, priority, \
         shared_count) VALUES (21, {other}, 'q', 'QUEUED', 9, 9), (20, {other}, 'q', 'QUEUED', 9, 0)"
    ));
    let three = ["u", "v", "w"];
    scene.pass(&three);
    // The idle worker gets the job that runs alone, independent of the workers that are being emptied.
    scene.sql("UPDATE cf_processing_queue SET priority = 10 WHERE id = 21");
    let first = scene.jobs_of("u")[0];
    assert_eq!(first, 20);
}

/// Busy workers find the rows behind any number of rows that run alone.
#[test]
fn many_rows_that_run_alone_do_not_stall_those_behind_them() {
    let both = ["v", "w"];
    let mut scene = full([&["*"], &["*"]]);
    scene.sql(&format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) \
         INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, priority, \
         shared_count) SELECT file_version_id, 'p', 'QUEUED', 5, {} \
         FROM n, (SELECT file_version_id FROM cf_processing_queue WHERE id = 1)",
        limits::SHARED_LOSSES_TOGETHER
    ));
    let (of_v, of_w) = (scene.jobs_of("v"), scene.jobs_of("w"));
    scene.end("v", of_v[0]);
    scene.end("w", of_w[0]);
    scene.pass(&both);
    assert_eq!(scene.running(), 3, "one is emptied");
    assert_eq!(scene.status(7), "RUNNING");
}

/// A worker that runs a job alone does not prevent another worker from being emptied for jobs of an
/// environment that the first one avoids.
#[test]
fn a_worker_that_avoids_an_environment_is_not_kept_for_it() {
    for (avoids, want) in [(false, 3), (true, 2)] {
        let mut scene = full([&["*"], &["*"]]);
        let other = scene.deploy_with("q", "six==1.16.0");
        let env_hash =
            scene.text("SELECT env_hash FROM cf_plugin_manifest WHERE plugin_name = 'q'");
        for job_id in scene.jobs_of("v") {
            scene.end("v", job_id);
        }
        scene.pass(&["v", "w"]);
        assert_eq!(scene.jobs_of("v"), [5], "alone");
        scene.sql("DELETE FROM cf_processing_queue WHERE id = 6");
        scene.sql(&format!(
            "INSERT INTO cf_processing_queue (id, file_version_id, plugin_name, status, priority, \
             shared_count) VALUES (30, {other}, 'q', 'QUEUED', 9, 2)"
        ));
        scene.sequence += 1;
        let environments = BTreeMap::from([(env_hash, "no uv".to_owned())]);
        let heartbeat = Heartbeat {
            running: Some(scene.runs("v")),
            sequence: Some(scene.sequence),
            environments: if avoids {
                environments
            } else {
                BTreeMap::new()
            },
            ..Heartbeat::default()
        };
        scene.send_as("v", 0, Payload::Heartbeat(heartbeat));
        let done = scene.jobs_of("w")[0];
        scene.end("w", done);
        scene.pass(&["w"]);
        assert_eq!(scene.running(), want, "{avoids}");
    }
}
