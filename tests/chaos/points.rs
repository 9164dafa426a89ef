//! Every storage step of a publish on the real programs: a worker runs one job of two topics and
//! is killed, or stops while a successor publishes and then goes on, before its n-th change below
//! the output root.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::checks::{Lost, check, staged};
use crate::faults::At;
use crate::programs::{Program, Reaper, orphans, sentinel, wait, worker};
use crate::reader::{contents, visible};
use crate::scene::{Kind, LATEST, PAIR, Scene, reading, rows};

const DEADLINE: Duration = Duration::from_secs(120);

/// What the job publishes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// Nothing; two topics.
    Nothing,
    /// Its own output of before: the job had completed and was queued again; two topics.
    Itself,
    /// The output of another job, by a sink of mode `replace`.
    Another,
}

impl Over {
    fn kind(self) -> Kind {
        match self {
            Over::Nothing | Over::Itself => PAIR,
            Over::Another => LATEST,
        }
    }

    /// The job under test; those before it have completed.
    fn job(self) -> i64 {
        if self == Over::Another { 2 } else { 1 }
    }
}

/// A storage step at which a worker is killed or stops.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) over: Over,
    /// Of the calls that change something below the root, from 1.
    pub(crate) number: i64,
    pub(crate) action: At,
    pub(crate) lost: Lost,
}

/// What happened at a step.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) step: Step,
    /// The call, none when the job needs fewer.
    pub(crate) call: String,
    pub(crate) problems: Vec<String>,
}

fn is_completed(database: &Path, job: i64) -> bool {
    let rows = rows(&reading(database)).unwrap_or_default();
    rows.iter()
        .any(|row| row.id == job && row.status == "COMPLETED")
}

fn identities(out: &Path) -> BTreeMap<PathBuf, u64> {
    let inode = |path: &PathBuf| std::fs::metadata(path).map_or(0, |data| data.ino());
    visible(out)
        .into_iter()
        .map(|path| (path.clone(), inode(&path)))
        .collect()
}

/// How many changes the job makes below the root, with the worker's start and end.
pub(crate) fn count(over: Over) -> i64 {
    let stage = Stage::new(over, Lost::IsRetried).unwrap();
    let mut first = stage.worker("first");
    stage.complete(&mut first, over.job()).unwrap();
    first.faults.calls()
}

struct Stage {
    scene: Scene,
    /// How often its job was queued.
    queued: u32,
    lost: Lost,
    out: PathBuf,
    endpoint: String,
    sentinel: Program,
    _reaper: Reaper,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new(over: Over, lost: Lost) -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let reaper = Reaper(dir.path().to_owned());
        let out = dir.path().join("out");
        let scene = Scene::new(dir.path(), &[over.kind()], over.job() as usize);
        let command = sentinel(&scene.database, "1", lost.retries());
        let mut sentinel = Program::new("sentinel", dir.path(), &out, &command);
        let endpoint = format!("tcp://127.0.0.1:{}", sentinel.start_sentinel());
        let stage = Stage {
            scene,
            queued: if over == Over::Itself { 2 } else { 1 },
            lost,
            out,
            endpoint,
            sentinel,
            _reaper: reaper,
            dir,
        };
        if over != Over::Nothing {
            stage.queue(1);
            stage.complete(&mut stage.worker("before"), 1)?;
        }
        stage.queue(over.job());
        Ok(stage)
    }

    fn queue(&self, job: i64) {
        let queue = "UPDATE cf_processing_queue SET status = 'QUEUED' WHERE id = ?1";
        // The sentinel's transactions are short.
        let queued = wait("the job is queued", DEADLINE, || {
            self.scene.connection().execute(queue, [job]).ok()
        });
        assert_eq!(queued, Ok(1));
    }

    /// A worker's life for one job.
    fn complete(&self, worker: &mut Program, job: i64) -> Result<(), String> {
        worker.start();
        self.wait_completed(job)?;
        worker.shut_down(DEADLINE)
    }

    fn wait_completed(&self, job: i64) -> Result<(), String> {
        let database = &self.scene.database;
        wait("the job completes", DEADLINE, || {
            is_completed(database, job).then_some(())
        })
        .map_err(|problem| format!("{problem}: {:?}", rows(&reading(database))))
    }

    /// Completed, or failed and settled.
    fn wait_ended(&self, job: i64) -> Result<(), String> {
        if self.lost == Lost::IsRetried {
            return self.wait_completed(job);
        }
        let database = &self.scene.database;
        let query = "SELECT 1 FROM cf_processing_queue WHERE id = ?1 AND unsettled = 0 \
             AND status NOT IN ('QUEUED', 'RUNNING', 'PENDING')";
        wait("the job is settled", DEADLINE, || {
            reading(database).query_row(query, [job], |_| Ok(())).ok()
        })
        .map_err(|problem| format!("{problem}: {:?}", rows(&reading(database))))
    }

    fn worker(&self, name: &str) -> Program {
        let more = [
            "--slots",
            "1",
            "--plugin-start",
            "spawn",
            "--worker-id",
            name,
        ];
        let command = worker(&self.endpoint, &self.out, &more);
        Program::new(name, self.dir.path(), &self.out, &command)
    }

    /// In the middle of a publish every visible file is complete, and what was there before has
    /// not gone without its successor.
    fn check_readable(&self, over: Over) -> Vec<String> {
        let seen = visible(&self.out);
        let mut problems: Vec<String> = seen
            .iter()
            .filter_map(|path| match contents(path) {
                Ok(found) if found.rows == over.kind().rows => None,
                other => Some(format!("in the middle: {}: {other:?}", path.display())),
            })
            .collect();
        let fewest = match over {
            Over::Nothing => 0,
            Over::Itself | Over::Another => over.kind().topics.len(),
        };
        if seen.len() < fewest {
            problems.push(format!("in the middle: {} visible files", seen.len()));
        }
        problems
    }

    fn check(&self, when: &str) -> Vec<String> {
        let problems = check(&self.scene, &self.out, self.queued, self.lost)
            .problems
            .into_iter();
        problems
            .map(|problem| format!("{when}: {problem}"))
            .collect()
    }
}

/// One step. Without a call in the answer the worker made fewer.
pub(crate) fn point(step: Step) -> Point {
    let mut point = Point {
        step,
        call: String::new(),
        problems: Vec::new(),
    };
    let mut stage = match Stage::new(step.over, step.lost) {
        Ok(stage) => stage,
        Err(problem) => {
            point.problems.push(problem);
            return point;
        }
    };
    if let Err(problem) = play(&mut stage, &mut point) {
        point.problems.push(problem);
    }
    if !point.problems.is_empty() && std::env::var_os("CASPARIAN_CHAOS_KEEP").is_some() {
        stage.dir.disable_cleanup(true);
        point
            .problems
            .push(format!("kept in {}", stage.dir.path().display()));
    }
    point
}

fn play(stage: &mut Stage, point: &mut Point) -> Result<(), String> {
    let job = point.step.over.job();
    let mut first = stage.worker("first");
    first.faults.stop_at(point.step.number, point.step.action);
    first.start();
    let has_stopped = |first: &Program| !first.faults.stopped_at().is_empty();
    let is_early = wait("the job completes or the worker stops", DEADLINE, || {
        if has_stopped(&first) {
            return Some(true);
        }
        is_completed(&stage.scene.database, job).then_some(false)
    })?;
    if !is_early {
        // The call may be one of its end.
        first.terminate();
        wait("the worker ends or stops", DEADLINE, || {
            first.poll();
            (!first.is_up() || has_stopped(&first)).then_some(())
        })?;
    }
    point.call = first.faults.stopped_at();
    if point.call.is_empty() {
        return Ok(());
    }
    point.problems.extend(stage.check_readable(point.step.over));
    let mut second = stage.worker("second");
    second.start();
    stage.wait_ended(job)?;
    let when = if is_early {
        "after the successor"
    } else {
        "at the worker's end"
    };
    point.problems.extend(stage.check(when));
    let published = identities(&stage.out);
    if point.step.action == At::Stop {
        first.shut_down(DEADLINE)?;
        point
            .problems
            .extend(stage.check("after the first went on"));
        if identities(&stage.out) != published {
            point
                .problems
                .push("the first attempt replaced a file when it went on".to_owned());
        }
    }
    first.kill();
    second.shut_down(DEADLINE)?;
    sweep(stage, point, &published)
}

/// The next start of a worker removes what is left and changes nothing visible.
fn sweep(
    stage: &mut Stage,
    point: &mut Point,
    published: &BTreeMap<PathBuf, u64>,
) -> Result<(), String> {
    let mut third = stage.worker("third");
    third.start();
    third.log_line(" connects to ");
    third.shut_down(DEADLINE)?;
    stage.sentinel.shut_down(DEADLINE)?;
    if orphans(stage.dir.path(), Duration::from_secs(10)) > 0 {
        point.problems.push("processes live on".to_owned());
    }
    let left = staged(&stage.out).into_iter();
    point
        .problems
        .extend(left.map(|path| format!("left in staging: {path}")));
    if identities(&stage.out) != *published {
        point
            .problems
            .push("the next start changed what is visible".to_owned());
    }
    point.problems.extend(stage.check("at the end"));
    Ok(())
}
