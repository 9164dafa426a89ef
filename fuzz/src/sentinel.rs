//! Sentinel and store with any sequence of messages, disconnects, times and changes of rows by
//! other programs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use arbitrary::Unstructured;
use casparian::job::{Attempt, Cause, JobStatus, Receipt, User};
use casparian::protocol::{
    EnvReady, Heartbeat, HeartbeatStatus, Identify, Payload, PublishRequest,
};
use casparian::reactor::BootTime;
use casparian::sentinel::control::{Body, Sender};
use casparian::sentinel::scheduler::{Scheduler, Settings};
use casparian::socket::PeerId;
use casparian::store::{Deploy, Now, Open, Store};
use rusqlite::Connection;

const START_MS: i64 = 1_766_232_000_000;
const WORKERS: [&[u8]; 3] = [b"w-1", b"w-2", b"\xff\0"];
const ROWS: i64 = 6;

/// A database that is reset for every input.
struct Scene {
    dir: tempfile::TempDir,
    other: Connection,
}

fn scene() -> Scene {
    let dir = crate::memory_dir();
    let path = dir.path().join("queue.sqlite");
    let mut store = Store::open(&path, Open::Create).unwrap();
    let mut transaction = store.begin().unwrap();
    for plugin in ["p", "q"] {
        let deploy = Deploy {
            plugin_name: plugin,
            version: None,
            source_code: "class Handler: pass\n",
            lockfile_content: if plugin == "q" { "lock" } else { "" },
            sinks: &[],
        };
        transaction.deploy(&deploy, START_MS).unwrap();
    }
    let file = transaction
        .register_file("/data", "a.csv", 3, 1.5, "hash", START_MS)
        .unwrap();
    for row in 0..ROWS {
        let plugin = ["p", "q", "nobody's"][row as usize % 3];
        transaction.enqueue(plugin, file.version_id, row % 2, START_MS)
            .unwrap();
    }
    transaction.commit().unwrap();
    let other = Connection::open(&path).unwrap();
    other.pragma_update(None, "foreign_keys", false).unwrap();
    Scene { dir, other }
}

thread_local! {
    static SCENE: RefCell<Option<Scene>> = const { RefCell::new(None) };
}

fn holds(plan: &mut Unstructured<'_>) -> Option<Vec<Attempt>> {
    let count = plan.int_in_range(0..=4u8).unwrap_or(0);
    (count < 4).then(|| (0..count).map(|_| attempt(plan)).collect())
}

fn attempt(plan: &mut Unstructured<'_>) -> Attempt {
    Attempt::new(
        plan.int_in_range(0..=ROWS + 1).unwrap_or(1),
        plan.int_in_range(-1..=4i64).unwrap_or(1),
    )
}

fn maybe(plan: &mut Unstructured<'_>, highest: u64) -> Option<u64> {
    let number = plan.int_in_range(0..=highest).unwrap_or(0);
    (number > 0).then_some(number)
}

fn payload(plan: &mut Unstructured<'_>) -> (u64, Payload<'static>) {
    let job_id = plan.int_in_range(0..=ROWS as u64 + 1).unwrap_or(1);
    let job_id = if plan.ratio(1, 50).unwrap_or(false) {
        u64::MAX
    } else {
        job_id
    };
    let payload = match plan.int_in_range(0..=9u8).unwrap_or(0) {
        0 | 1 => Payload::Identify(Identify {
            capabilities: match plan.int_in_range(0..=2u8).unwrap_or(0) {
                0 => vec!["*".to_owned()],
                1 => vec!["p".to_owned()],
                _ => vec![],
            },
            worker_id: plan.ratio(1, 4).unwrap_or(false).then(|| "w-2".into()),
            slots: plan.arbitrary().ok(),
            hostname: Some("host".into()),
            pid: plan.arbitrary().ok(),
            running: holds(plan),
            instance: match plan.int_in_range(0..=2u8).unwrap_or(0) {
                0 => None,
                1 => Some("a".into()),
                _ => Some("b".into()),
            },
            sequence: maybe(plan, 60),
            draining: plan.ratio(1, 8).unwrap_or(false),
        }),
        2 => Payload::Heartbeat(Heartbeat {
            status: HeartbeatStatus::Busy,
            current_job_id: plan
                .arbitrary::<bool>()
                .unwrap_or(false)
                .then_some(job_id as i64),
            running: holds(plan),
            sequence: maybe(plan, 60),
            answered: maybe(plan, 60),
            publish: match plan.ratio(1, 3).unwrap_or(false) {
                true => vec![PublishRequest {
                    attempt: attempt(plan),
                    exclusive: vec!["parquet://o".to_owned()],
                }],
                false => Vec::new(),
            },
            draining: plan.ratio(1, 8).unwrap_or(false),
            trouble: plan.ratio(1, 8).unwrap_or(false).then(|| "disk".to_owned()),
            environments: match plan.ratio(1, 8).unwrap_or(false) {
                true => BTreeMap::from([(String::new(), "no uv".to_owned())]),
                false => BTreeMap::new(),
            },
            waiting: match plan.ratio(1, 8).unwrap_or(false) {
                true => holds(plan).unwrap_or_default(),
                false => Vec::new(),
            },
            takes: match plan.ratio(1, 8).unwrap_or(false) {
                true => plan.arbitrary().ok(),
                false => None,
            },
            answer: None,
        }),
        3..=5 => Payload::Conclude(Receipt {
            status: match plan.int_in_range(0..=3u8).unwrap_or(0) {
                0 => JobStatus::Failed,
                _ => JobStatus::Success,
            },
            metrics: BTreeMap::from([("rows".to_owned(), plan.arbitrary().unwrap_or(0))]),
            cause: match plan.int_in_range(0..=3u8).unwrap_or(0) {
                0 => Some(Cause::Plugin),
                1 => Some(Cause::Worker),
                2 => Some(Cause::Lost),
                _ => None,
            },
            returned: plan.ratio(1, 6).unwrap_or(false),
            attempt: plan
                .int_in_range(-1..=5i64)
                .ok()
                .filter(|attempt| *attempt >= 0),
            ..Receipt::default()
        }),
        6 => Payload::Err(casparian::protocol::ErrorMessage {
            message: "failed".into(),
            traceback: None,
            refused: false,
            env_hash: None,
        }),
        7 => Payload::EnvReady(EnvReady {
            env_hash: "hash".into(),
            interpreter_path: "/python".into(),
            cached: true,
        }),
        8 => Payload::Abort,
        _ => Payload::Unknown,
    };
    (job_id, payload)
}

/// Checks the invariants of the rows.
fn check(scene: &Scene, ended: &mut BTreeSet<i64>) {
    let mut statement = scene
        .other
        .prepare_cached(
            "SELECT id, status, attempt, worker_id, next_run FROM cf_processing_queue ORDER BY id",
        )
        .unwrap();
    let rows: Vec<(i64, String, i64, Option<String>, Option<String>)> = statement
        .query_map([], |row| {
            Ok((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
            ))
        })
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(rows.len() as i64, ROWS, "rows come and go");
    for (id, status, attempt, worker, next_run) in rows {
        match status.as_str() {
            "QUEUED" => assert!(!ended.contains(&id), "job {id} is queued after its end"),
            "RUNNING" => {
                assert!(!ended.contains(&id), "job {id} runs after its end");
                assert!(attempt > 0 && worker.is_some(), "job {id} has no holder");
            }
            "PENDING" => {
                assert!(!ended.contains(&id), "job {id} waits after its end");
                assert!(next_run.is_some(), "job {id} waits for ever");
            }
            "COMPLETED" | "FAILED" => {
                ended.insert(id);
            }
            other => panic!("job {id} is {other}"),
        }
    }
}

pub fn run(data: &[u8]) {
    SCENE.with_borrow_mut(|slot| {
        let scene = slot.get_or_insert_with(scene);
        scene
            .other
            .execute_batch(
                "UPDATE cf_processing_queue SET status = 'QUEUED', attempt = 0, retry_count = 0, \
                 infra_count = 0, next_run = NULL, next_run_boot_ms = NULL, \
                 next_run_boot_id = NULL, lease_until_ms = NULL, worker_id = NULL, receipt = NULL, \
                 log_tail = NULL; DELETE FROM cf_worker_session; DELETE FROM cf_job_attempt;",
            )
            .unwrap();
        let mut plan = Unstructured::new(data);
        let mut elapsed = Duration::from_secs(1000);
        let path = scene.dir.path().join("queue.sqlite");
        let settings = Settings {
            lease: Duration::from_secs(10),
            lease_margin: Duration::from_secs(2),
            attempt_timeout: Duration::from_secs(100),
            retries_max: 3,
            exclusive: false,
        };
        let (now, at) = moment(elapsed);
        let mut sentinel = Scheduler::open(&path, settings, now, &at).unwrap();
        let users = [Some("ann"), Some("ann"), Some("bob"), None].map(|name| name.map(User::parse));
        let mut ended = BTreeSet::new();
        let mut dispatched: HashSet<(u64, i64)> = HashSet::new();
        let mut steps = 0;
        while !plan.is_empty() && steps < 60 {
            steps += 1;
            let who = plan.int_in_range(0..=2usize).unwrap_or(0);
            let peer = PeerId::from_u64(plan.int_in_range(0..=3u64).unwrap_or(0));
            let (now, _) = moment(elapsed);
            match plan.int_in_range(0..=9u8).unwrap_or(0) {
                0..=5 => {
                    let (job_id, payload) = payload(&mut plan);
                    let is_ours = matches!(payload, Payload::Abort);
                    let is_receipt = match &payload {
                        Payload::Conclude(_) => true,
                        Payload::Err(_) => job_id != 0,
                        _ => false,
                    };
                    let is_impossible = is_receipt && i64::try_from(job_id).is_err();
                    // Connections belong to different users or to none.
                    let user = users[peer.to_u64() as usize % 4].as_ref();
                    let from = Sender {
                        peer,
                        routing_id: WORKERS[who],
                        user,
                    };
                    let reason = sentinel.control.handle_message(&from, job_id, payload, now);
                    if reason.is_some_and(|reason| reason.contains("another user")) {
                        assert!(user.is_some(), "a peer without a user was refused");
                        continue;
                    }
                    assert_eq!(reason.is_some(), is_ours || is_impossible, "{reason:?}");
                }
                6 => sentinel
                    .control
                    .handle_disconnected(peer, WORKERS[who], now),
                7 => {
                    let wait = plan.int_in_range(0..=40_000u32).unwrap_or(1000);
                    elapsed += Duration::from_millis(u64::from(wait));
                }
                8 => {
                    // Another program queues a job again, as tools of the reference system do.
                    let id = plan.int_in_range(1..=ROWS).unwrap_or(1);
                    scene
                        .other
                        .execute(
                            "UPDATE cf_processing_queue SET status = 'QUEUED' WHERE id = ?1",
                            [id],
                        )
                        .unwrap();
                    ended.remove(&id);
                }
                _ => sentinel.control.drain(),
            }
            let (now, at) = moment(elapsed);
            for outgoing in sentinel.iterate(now, &at) {
                if let Body::Dispatch { attempt, .. } = &outgoing.body {
                    assert!(
                        dispatched.insert((outgoing.job_id, attempt.number)),
                        "{attempt} is dispatched twice"
                    );
                }
                outgoing.encode().expect("a message that can be sent");
            }
            check(scene, &mut ended);
        }
        let (now, at) = moment(elapsed);
        sentinel.close(now, &at);
        check(scene, &mut ended);
    });
}

fn moment(elapsed: Duration) -> (BootTime, Now) {
    let ms = elapsed.as_millis() as u64;
    let at = Now {
        unix_ms: START_MS + ms as i64,
        boot_ms: ms,
        boot_id: "boot".into(),
    };
    (BootTime::after_boot(elapsed), at)
}
