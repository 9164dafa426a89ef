//! What happens when: sentinel, workers, connections, faults, and what must hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use casparian::job::{Attempt, User};
use casparian::protocol::{Payload, View};
use casparian::reactor::BootTime;
use casparian::sentinel::control::Sender;
use casparian::sentinel::scheduler::{Scheduler, Settings};
use casparian::socket::PeerId;
use casparian::store::{Deploy, Now, Open, Store};
use rusqlite::Connection;

use crate::random::Random;
use crate::storage::Storage;
use crate::worker::{Bytes, Worker};

const JOBS: u64 = 6;
/// A request, its answer and the poll of the queue, with a failed transaction between them; an ID
/// that another process may have, asked for before the sentinel was stopped.
const IDLE_MAX_MS: u64 = 12_000;
const FAULTS_UNTIL_MS: u64 = 120_000;
const END_MS: u64 = 1_200_000;
const START_UNIX_MS: i64 = 1_766_232_000_000;

/// A database that is copied for every seed.
pub(crate) struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let memory = std::path::Path::new("/dev/shm");
        let dir = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let folder = Folder { dir: dir.unwrap() };
        let mut store = Store::open(&folder.path("template"), Open::Create).unwrap();
        let mut transaction = store.begin().unwrap();
        let deploy = Deploy {
            plugin_name: "p",
            version: None,
            source_code: "class Handler: pass\n",
            lockfile_content: "",
            sinks: &[],
        };
        transaction.deploy(&deploy, START_UNIX_MS).unwrap();
        transaction.commit().unwrap();
        drop(store);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn fresh(&self) -> PathBuf {
        let path = self.path("queue.sqlite");
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(self.path(&format!("queue.sqlite{end}")));
        }
        std::fs::copy(self.path("template"), &path).unwrap();
        path
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    messages: VecDeque<(u64, Bytes)>,
}

struct Link {
    worker: usize,
    is_cut: bool,
    /// When each side notices the cut.
    worker_notices_at: u64,
    sentinel_notices_at: u64,
    worker_noticed: bool,
    sentinel_noticed: bool,
    is_established: bool,
    to_sentinel: Pipe,
    to_worker: Pipe,
}

/// A process: when it goes on after a pause, and how far its machine's clock is behind.
#[derive(Clone, Copy, Default)]
struct Process {
    paused_until: u64,
    behind_ms: u64,
}

impl Process {
    fn clock(&self, now_ms: u64) -> BootTime {
        BootTime::after_boot(Duration::from_millis(1_000_000 + now_ms - self.behind_ms))
    }
}

pub(crate) struct World<'a> {
    random: Random,
    now_ms: u64,
    path: PathBuf,
    other: Connection,
    scheduler: Option<Scheduler>,
    sentinel: Process,
    sentinel_starts_at: u64,
    wall_offset_ms: i64,
    locked_until: u64,
    workers: Vec<(Worker, Process)>,
    links: BTreeMap<u64, Link>,
    reconnect_at: Vec<u64>,
    next_link: u64,
    next_instance: u64,
    storage: Storage,
    jobs: u64,
    /// Since when a job is QUEUED while a worker could run it and has none.
    idle_since: Option<u64>,
    retries_max: u32,
    /// Jobs that an operator took from their holders: only the storage keeps those apart.
    queued_by_sql: BTreeSet<i64>,
    trace: bool,
    _folder: &'a Folder,
}

impl<'a> World<'a> {
    pub(crate) fn new(seed: u64, folder: &'a Folder) -> Self {
        let mut random = Random::new(seed);
        let path = folder.fresh();
        let other = Connection::open(&path).unwrap();
        other.pragma_update(None, "foreign_keys", false).unwrap();
        let mut storage = Storage::default();
        // Jobs of one in three seeds write into one sink of mode `error`.
        let is_exclusive = random.chance(33);
        if is_exclusive {
            other
                .execute(
                    "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode) \
                     VALUES ('p', 'output', 'parquet://o.parquet', 'error')",
                    [],
                )
                .unwrap();
            storage.exclusive_jobs = (1..=JOBS as i64).collect();
        }
        let mut world = World {
            now_ms: 0,
            path,
            other,
            scheduler: None,
            sentinel: Process::default(),
            sentinel_starts_at: 0,
            wall_offset_ms: 0,
            locked_until: 0,
            workers: Vec::new(),
            links: BTreeMap::new(),
            reconnect_at: Vec::new(),
            next_link: 1,
            next_instance: 0,
            storage,
            jobs: JOBS,
            idle_since: None,
            // Jobs of one in four seeds are given up with the first loss.
            retries_max: if random.chance(25) { 0 } else { 3 },
            queued_by_sql: BTreeSet::new(),
            trace: std::env::var_os("CASPARIAN_SIMULATION_TRACE").is_some(),
            random,
            _folder: folder,
        };
        world.other.execute_batch("BEGIN").unwrap();
        {
            let mut store_file = world
                .other
                .prepare(
                    "INSERT INTO cf_processing_queue (file_version_id, plugin_name, status, \
                     priority) VALUES (1, 'p', 'QUEUED', 0)",
                )
                .unwrap();
            for _ in 0..JOBS {
                store_file.execute([]).unwrap();
            }
        }
        world
            .other
            .execute_batch(
                "INSERT INTO cf_source_root (id, path, active) VALUES (1, '/data', 1);\
                 INSERT INTO cf_file_location (id, source_root_id, rel_path, filename) \
                 VALUES (1, 1, 'a.csv', 'a.csv');\
                 INSERT INTO cf_file_version (id, location_id, content_hash, size_bytes, \
                 modified_time) VALUES (1, 1, 'h', 1, '2025-01-01'); COMMIT",
            )
            .unwrap();
        let count = world.random.between(1, 4);
        for index in 0..count {
            world.add_worker(format!("w{index}"));
        }
        world
    }

    fn note(&self, text: &str) {
        if self.trace {
            eprintln!("{:>9} ms  {text}", self.now_ms);
        }
    }

    fn add_worker(&mut self, name: String) {
        self.next_instance += 1;
        let instance = format!("i{}", self.next_instance);
        let slots = self.random.between(1, 3) as usize;
        let process = Process::default();
        let worker = Worker::new(name, instance, slots, process.clock(self.now_ms));
        self.workers.push((worker, process));
        self.reconnect_at.push(self.now_ms + self.random.below(500));
    }

    fn at(&self) -> Now {
        let clock = self.sentinel.clock(self.now_ms);
        Now {
            unix_ms: START_UNIX_MS + self.now_ms as i64 + self.wall_offset_ms,
            boot_ms: clock.since_boot().as_millis() as u64,
            boot_id: "boot".into(),
        }
    }

    /// Gives the rows at the end, and the next random number: it differs as soon as one decision
    /// did.
    pub(crate) fn run(mut self) -> (Vec<(i64, String, i64, i64)>, u64) {
        while self.now_ms < END_MS {
            if self.now_ms < FAULTS_UNTIL_MS && self.random.chance(6) {
                self.fault();
            }
            self.pause_publishers();
            self.silence_publishers();
            self.network();
            self.run_sentinel();
            self.run_workers();
            self.check_holders();
            self.check_waiting();
            if self.now_ms >= FAULTS_UNTIL_MS && self.is_over() {
                break;
            }
            self.now_ms += if self.now_ms < FAULTS_UNTIL_MS {
                self.random.between(1, 150)
            } else {
                250
            };
        }
        self.check_end();
        (self.rows(), self.random.below(u64::MAX))
    }

    // ---- faults ----

    fn fault(&mut self) {
        let index = self.random.below(self.workers.len() as u64) as usize;
        let short = self.random.between(10, 6000);
        let long = self.random.between(1000, 40_000);
        match self.random.below(12) {
            0 | 1 => self.cut(index),
            2 => {
                self.note(&format!("worker {index} is stopped for {long} ms"));
                self.pause_worker(index, long, false);
            }
            3 => {
                self.note(&format!(
                    "the machine of worker {index} is paused for {long} ms"
                ));
                self.pause_worker(index, long, true);
            }
            4 => {
                self.note(&format!("worker {index} is killed"));
                self.kill_worker(index);
            }
            5 => {
                self.note("the sentinel is killed");
                self.scheduler = None;
                self.sentinel_starts_at = self.now_ms + short;
                self.drop_links();
            }
            6 => {
                self.note(&format!("the sentinel is stopped for {short} ms"));
                self.sentinel.paused_until = self.now_ms + short;
            }
            7 => {
                self.note(&format!("the database is locked for {short} ms"));
                if self.locked_until <= self.now_ms
                    && self.other.execute_batch("BEGIN IMMEDIATE").is_ok()
                {
                    self.locked_until = self.now_ms + short;
                }
            }
            8 => {
                self.wall_offset_ms = match self.random.below(3) {
                    0 => -400 * 86_400_000,
                    1 => 400 * 86_400_000,
                    _ => self.random.below(7_200_000) as i64 - 3_600_000,
                };
                self.note(&format!(
                    "the wall clock jumps by {} ms",
                    self.wall_offset_ms
                ));
            }
            9 => {
                // An operator queues a running job again, or cancels one.
                if self.locked_until <= self.now_ms {
                    let job = self.random.between(1, JOBS);
                    let (status, from) = match self.random.below(3) {
                        0 | 1 => ("QUEUED", "'RUNNING'"),
                        _ => ("SKIPPED", "'RUNNING', 'QUEUED', 'PENDING'"),
                    };
                    self.cancel(job as i64, from, status);
                }
            }
            10 => {
                self.note(&format!("worker {index} drains"));
                let now = self.workers[index].1.clock(self.now_ms);
                self.workers[index].0.drain(now);
            }
            _ => {
                // A copied unit file.
                if self.workers.len() < 6 {
                    let name = self.workers[index].0.name.clone();
                    self.note(&format!("a second worker {name} starts"));
                    self.add_worker(name);
                }
            }
        }
    }

    /// Machines are paused in the middle of a publish more often than chance would have it.
    fn pause_publishers(&mut self) {
        if self.now_ms >= FAULTS_UNTIL_MS {
            return;
        }
        for index in 0..self.workers.len() {
            if self.workers[index].0.is_renaming() && self.random.chance(5) {
                let length = self.random.between(5000, 40_000);
                self.note(&format!("worker {index} is paused while it publishes"));
                let stops_clock = self.random.chance(50);
                self.pause_worker(index, length, stops_clock);
            }
        }
    }

    /// Workers die between a publish and its receipt, and operators cancel jobs with such output, more
    /// often than chance would have it: it is output that may go.
    fn silence_publishers(&mut self) {
        if self.now_ms >= FAULTS_UNTIL_MS || self.storage.exclusive_jobs.is_empty() {
            return;
        }
        for index in 0..self.workers.len() {
            if self.workers[index].0.owes_output() && self.random.chance(15) {
                self.note(&format!("worker {index} is killed before its receipt"));
                self.kill_worker(index);
                return;
            }
        }
        if !self.random.chance(4) || self.locked_until > self.now_ms {
            return;
        }
        let mut workers = self.workers.iter();
        if workers.any(|(worker, _)| worker.owes_output()) {
            return;
        }
        let unknown = self.storage.visible.iter();
        let silent = self.other.query_row(
            &format!(
                "SELECT id FROM cf_processing_queue AS q WHERE id IN ({}) \
                 AND status IN ('RUNNING', 'QUEUED', 'PENDING') AND NOT EXISTS (SELECT 1 \
                 FROM cf_job_attempt WHERE job_id = q.id AND status = 'COMPLETED')",
                Vec::from_iter(unknown.map(|(job, _)| job.to_string())).join(", ")
            ),
            [],
            |row| row.get::<_, i64>(0),
        );
        if let Ok(job) = silent {
            self.cancel(job, "'RUNNING', 'QUEUED', 'PENDING'", "SKIPPED");
        }
    }

    fn kill_worker(&mut self, index: usize) {
        let name = self.workers[index].0.name.clone();
        self.cut(index);
        self.remove_worker(index);
        self.add_worker(name);
    }

    /// An operator sets the status of a job.
    fn cancel(&mut self, job: i64, from: &str, status: &str) {
        self.note(&format!("job {job} is {status} by SQL"));
        self.queued_by_sql.insert(job);
        let _ = self.other.execute(
            &format!(
                "UPDATE cf_processing_queue SET status = '{status}' \
                 WHERE id = ?1 AND status IN ({from})"
            ),
            [job],
        );
    }

    fn pause_worker(&mut self, index: usize, length_ms: u64, stops_clock: bool) {
        let process = &mut self.workers[index].1;
        if process.paused_until > self.now_ms {
            return;
        }
        process.paused_until = self.now_ms + length_ms;
        if stops_clock {
            process.behind_ms += length_ms;
        }
    }

    fn cut(&mut self, index: usize) {
        for link in self.links.values_mut() {
            if link.worker == index && !link.is_cut {
                link.is_cut = true;
                link.worker_notices_at = self.now_ms + self.random.below(15_000);
                link.sentinel_notices_at = self.now_ms + self.random.below(15_000);
            }
        }
    }

    fn remove_worker(&mut self, index: usize) {
        self.workers.remove(index);
        self.reconnect_at.remove(index);
        for link in self.links.values_mut() {
            if link.worker == index {
                link.worker = usize::MAX;
                link.worker_noticed = true;
            } else if link.worker != usize::MAX && link.worker > index {
                link.worker -= 1;
            }
        }
    }

    fn drop_links(&mut self) {
        for link in self.links.values_mut() {
            link.is_cut = true;
            link.sentinel_noticed = true;
            link.worker_notices_at = self.now_ms + self.random.below(3000);
        }
    }

    // ---- network ----

    fn network(&mut self) {
        if self.locked_until > 0 && self.locked_until <= self.now_ms {
            self.locked_until = 0;
            self.other.execute_batch("ROLLBACK").unwrap();
        }
        let now_ms = self.now_ms;
        // Both sides notice a cut on their own.
        let ids: Vec<u64> = self.links.keys().copied().collect();
        for id in ids {
            let link = self.links.get_mut(&id).unwrap();
            if link.is_cut && !link.worker_noticed && link.worker_notices_at <= now_ms {
                link.worker_noticed = true;
                let index = link.worker;
                self.workers[index].0.disconnected();
                self.reconnect_at[index] = now_ms + self.random.below(2000);
            }
            let link = self.links.get_mut(&id).unwrap();
            if link.is_cut && !link.sentinel_noticed && link.sentinel_notices_at <= now_ms {
                self.sentinel_notices(id);
            }
            let link = &self.links[&id];
            if link.worker_noticed && link.sentinel_noticed {
                self.links.remove(&id);
            }
        }
        // Workers without a connection connect.
        for index in 0..self.workers.len() {
            let has_link = self
                .links
                .values()
                .any(|link| link.worker == index && !link.worker_noticed);
            if !has_link && self.scheduler.is_some() && self.reconnect_at[index] <= now_ms {
                self.connect(index);
            }
        }
    }

    fn routing_id(&self, link: &Link) -> Vec<u8> {
        match self.workers.get(link.worker) {
            Some((worker, _)) => worker.routing_id(),
            None => Vec::new(),
        }
    }

    fn sentinel_notices(&mut self, id: u64) {
        let link = self.links.get_mut(&id).unwrap();
        link.sentinel_noticed = true;
        let clock = self.sentinel.clock(self.now_ms);
        if let Some(scheduler) = &mut self.scheduler {
            // The loop learns of lost connections by comparing, whatever the routing ID.
            let links = &self.links;
            let is_connected = |peer: PeerId| {
                links
                    .iter()
                    .any(|(id, link)| PeerId::from_u64(*id) == peer && !link.sentinel_noticed)
            };
            scheduler.control.check_connections(is_connected, clock);
        }
    }

    fn connect(&mut self, index: usize) {
        // The socket hands a routing ID over to its new connection.
        let routing_id = self.workers[index].0.routing_id();
        let old: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, link)| self.routing_id(link) == routing_id && !link.sentinel_noticed)
            .map(|(id, _)| *id)
            .collect();
        for id in old {
            self.sentinel_notices(id);
        }
        let id = self.next_link;
        self.next_link += 1;
        self.links.insert(
            id,
            Link {
                worker: index,
                is_cut: false,
                worker_notices_at: 0,
                sentinel_notices_at: 0,
                worker_noticed: false,
                sentinel_noticed: false,
                is_established: false,
                to_sentinel: Pipe::default(),
                to_worker: Pipe::default(),
            },
        );
    }

    // ---- sentinel ----

    fn run_sentinel(&mut self) {
        if self.sentinel.paused_until > self.now_ms {
            return;
        }
        let (now, at) = (self.sentinel.clock(self.now_ms), self.at());
        if self.scheduler.is_none()
            && self.sentinel_starts_at <= self.now_ms
            && self.locked_until <= self.now_ms
        {
            let settings = Settings {
                lease: Duration::from_secs(if self.random.chance(30) { 4 } else { 10 }),
                lease_margin: Duration::from_secs(2),
                attempt_timeout: Duration::from_secs(86_400),
                retries_max: self.retries_max,
                exclusive: false,
            };
            self.scheduler = Some(Scheduler::open(&self.path, settings, now, &at).unwrap());
        }
        let Some(scheduler) = &mut self.scheduler else {
            return;
        };
        scheduler.set_busy_timeout(Duration::ZERO).unwrap();
        for (id, link) in &mut self.links {
            // What had arrived before a cut was noticed is still read.
            while !link.sentinel_noticed
                && link
                    .to_sentinel
                    .messages
                    .front()
                    .is_some_and(|(at, _)| *at <= self.now_ms)
            {
                let (_, message) = link.to_sentinel.messages.pop_front().unwrap();
                let Some((worker, _)) = self.workers.get(link.worker) else {
                    continue;
                };
                let routing_id = worker.routing_id();
                let view = View::decode(message.iter().map(Vec::as_slice)).unwrap();
                let payload = Payload::decode(&view).unwrap();
                let user: Option<&User> = None;
                let sender = Sender {
                    peer: PeerId::from_u64(*id),
                    routing_id: &routing_id,
                    user,
                };
                let refused =
                    scheduler
                        .control
                        .handle_message(&sender, view.header.job_id, payload, now);
                assert_eq!(refused, None);
            }
        }
        let out = scheduler.iterate(now, &at);
        for message in out {
            let (header, json) = message.encode().unwrap();
            let delay = self.random.between(1, 200);
            let link = self
                .links
                .iter_mut()
                .find(|(id, _)| PeerId::from_u64(**id) == message.peer);
            if let Some((_, link)) = link
                && !link.is_cut
            {
                push(
                    &mut link.to_worker,
                    self.now_ms + delay,
                    vec![header.to_vec(), json],
                );
            }
        }
    }

    // ---- workers ----

    fn run_workers(&mut self) {
        for index in 0..self.workers.len() {
            let (_, process) = self.workers[index];
            if process.paused_until > self.now_ms {
                continue;
            }
            let now = process.clock(self.now_ms);
            let link = self
                .links
                .values_mut()
                .find(|link| link.worker == index && !link.worker_noticed);
            let worker = &mut self.workers[index].0;
            if let Some(link) = link {
                if !std::mem::replace(&mut link.is_established, true) {
                    worker.connected(now);
                }
                while link
                    .to_worker
                    .messages
                    .front()
                    .is_some_and(|(at, _)| *at <= self.now_ms)
                {
                    let (_, message) = link.to_worker.messages.pop_front().unwrap();
                    worker.receive(&message, now, &mut self.random);
                }
            }
            worker.step(now, &mut self.storage);
            let acknowledged = std::mem::take(&mut worker.acknowledged);
            if !acknowledged.is_empty() {
                self.check_acknowledged(&acknowledged);
            }
            let worker = &mut self.workers[index].0;
            let out = std::mem::take(&mut worker.out);
            let delay = self.random.between(1, 200);
            let link = self
                .links
                .values_mut()
                .find(|link| link.worker == index && !link.worker_noticed);
            if let Some(link) = link
                && !link.is_cut
            {
                for message in out {
                    push(&mut link.to_sentinel, self.now_ms + delay, message);
                }
            }
        }
        // A refused or drained worker ends; a supervisor starts another.
        for index in (0..self.workers.len()).rev() {
            let worker = &self.workers[index].0;
            let is_done = worker.is_draining && !worker.is_busy();
            if worker.is_refused || is_done {
                let name = worker.name.clone();
                let is_refused = worker.is_refused;
                self.note(&format!("worker {name} ends"));
                self.cut(index);
                self.remove_worker(index);
                let is_last = !self.workers.iter().any(|(other, _)| other.name == name);
                if !is_refused || is_last {
                    self.add_worker(name);
                }
            }
        }
    }

    // ---- what must hold ----

    /// One worker at a time may publish a job, as far as clocks can tell: a machine that was
    /// paused is left to the storage.
    fn check_holders(&self) {
        let mut holders: BTreeMap<i64, (usize, i64)> = BTreeMap::new();
        for (index, (worker, process)) in self.workers.iter().enumerate() {
            if process.behind_ms > 0 || self.sentinel.behind_ms > 0 {
                continue;
            }
            for attempt in worker.may_publish(process.clock(self.now_ms)) {
                let other = holders.insert(attempt.job_id, (index, attempt.number));
                assert!(
                    other.is_none() || self.queued_by_sql.contains(&attempt.job_id),
                    "{attempt}: a second holder beside attempt {other:?}"
                );
            }
        }
    }

    /// No job waits while an able worker idles: for longer than messages and polls take.
    fn check_waiting(&mut self) {
        let works = self.scheduler.is_some()
            && self.sentinel.paused_until <= self.now_ms
            && self.locked_until <= self.now_ms;
        let is_idle = |index: usize| {
            let (worker, process) = &self.workers[index];
            let links = self.links.values();
            let mut links = links.filter(|link| link.worker == index);
            let is_connected =
                links.any(|link| link.is_established && !link.is_cut && !link.worker_noticed);
            is_connected
                && process.paused_until <= self.now_ms
                && !worker.is_busy()
                && !worker.is_draining
                && !worker.is_refused
        };
        let waits = works
            && (0..self.workers.len()).any(is_idle)
            && self.count("SELECT count(*) FROM cf_processing_queue WHERE status = 'QUEUED'") > 0;
        if !waits {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert(self.now_ms);
        assert!(
            self.now_ms - since <= IDLE_MAX_MS,
            "a job is QUEUED beside an idle worker since {since} ms: {:?} {:#?}",
            self.rows(),
            self.scheduler
        );
    }

    /// A receipt is acknowledged after its commit: its job does not run by that attempt any more.
    fn check_acknowledged(&self, acknowledged: &[Attempt]) {
        let rows = self.rows();
        for attempt in acknowledged {
            let (_, status, current, _) = rows
                .iter()
                .find(|(job, ..)| *job == attempt.job_id)
                .unwrap();
            assert!(
                *current > attempt.number || status != "RUNNING",
                "{attempt} was acknowledged and is {status}"
            );
        }
    }

    fn rows(&self) -> Vec<(i64, String, i64, i64)> {
        let mut statement = self
            .other
            .prepare_cached(
                "SELECT id, status, attempt, coalesce(retry_count, 0) \
                 FROM cf_processing_queue ORDER BY id",
            )
            .unwrap();
        let rows = statement.query_map([], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    fn count(&self, query: &str) -> i64 {
        let mut statement = self.other.prepare_cached(query).unwrap();
        statement.query_row([], |row| row.get(0)).unwrap()
    }

    fn is_over(&self) -> bool {
        let ended = |status: &str| matches!(status, "COMPLETED" | "FAILED" | "SKIPPED");
        self.locked_until <= self.now_ms
            && self.rows().iter().all(|(_, status, _, _)| ended(status))
            && self.count("SELECT count(*) FROM cf_processing_queue WHERE unsettled = 1") == 0
            && !self.workers.iter().any(|(worker, _)| worker.is_busy())
    }

    fn check_end(&self) {
        let rows = self.rows();
        assert_eq!(rows.len() as u64, self.jobs);
        for (job, status, attempt, _) in rows {
            let completed = self.count(&format!(
                "SELECT coalesce(max(attempt), 0) FROM cf_job_attempt \
                 WHERE job_id = {job} AND status = 'COMPLETED'"
            ));
            match status.as_str() {
                "COMPLETED" => assert!(completed > 0, "job {job}"),
                "FAILED" | "SKIPPED" => {}
                other => panic!(
                    "job {job} is {other} after {} ms: {:#?}",
                    self.now_ms, self.scheduler
                ),
            }
            let visible = self.storage.visible.get(&job).copied().unwrap_or(0);
            assert_eq!(
                visible, completed,
                "job {job}, {status}: the file of another attempt than the receipt"
            );
            assert!(attempt <= 40, "job {job}: {attempt} attempts");
        }
        self.check_taken();
        for (worker, _) in &self.workers {
            assert!(!worker.is_busy(), "worker {} still has jobs", worker.name);
        }
    }

    /// A job fails for good because of another one's output only where that has a receipt.
    fn check_taken(&self) {
        let mut statement = self
            .other
            .prepare_cached(
                "SELECT id, json_extract(receipt, '$.metrics.taken_by'), \
                 json_extract(receipt, '$.metrics.taken_by_attempt') FROM cf_processing_queue \
                 WHERE status = 'FAILED' AND error_message = 'barred or taken' \
                 AND json_extract(receipt, '$.metrics.taken_by') > 0",
            )
            .unwrap();
        let failed = statement.query_map([], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                Attempt::new(row.get(1)?, row.get(2)?),
            ))
        });
        for (job, by) in failed.unwrap().map(Result::unwrap) {
            let completed = self.count(&format!(
                "SELECT count(*) FROM cf_job_attempt WHERE job_id = {} AND attempt >= {} \
                 AND status = 'COMPLETED'",
                by.job_id, by.number
            ));
            assert!(
                completed > 0,
                "job {job} failed because of the output of {by}, which went"
            );
        }
    }
}

/// Messages of a connection arrive in order.
fn push(pipe: &mut Pipe, at: u64, message: Bytes) {
    let last = pipe.messages.back().map_or(0, |(at, _)| *at);
    pipe.messages.push_back((at.max(last), message));
}
