//! Every storage step of a publish on the real programs: a worker runs one job of two topics and
//! is killed, or stops while a successor publishes and then goes on, before its n-th change below
//! the output root.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::checks::{check, staged};
use crate::faults::At;
use crate::programs::{Program, Reaper, orphans, sentinel, wait, worker};
use crate::reader::visible;
use crate::scene::{PAIR, Scene, reading, rows};

const DEADLINE: Duration = Duration::from_secs(60);

/// What happened at a point.
#[derive(Debug)]
pub(crate) struct Point {
    pub(crate) number: i64,
    pub(crate) action: At,
    /// The call, none when the job needs fewer.
    pub(crate) call: String,
    pub(crate) problems: Vec<String>,
}

fn is_completed(database: &Path) -> bool {
    let rows = rows(&reading(database)).unwrap_or_default();
    !rows.is_empty() && rows.iter().all(|row| row.status == "COMPLETED")
}

fn identities(out: &Path) -> BTreeMap<PathBuf, u64> {
    let inode = |path: &PathBuf| std::fs::metadata(path).map_or(0, |data| data.ino());
    visible(out)
        .into_iter()
        .map(|path| (path.clone(), inode(&path)))
        .collect()
}

/// How many changes a job of two topics makes below the root, with the worker's start and end.
pub(crate) fn count() -> i64 {
    let point = Stage::new();
    let mut first = point.worker("first");
    first.start();
    let done = wait("the job completes", DEADLINE, || {
        is_completed(&point.scene.database).then_some(())
    });
    done.unwrap_or_else(|problem| panic!("{problem}: {}", first.log_text()));
    first.shut_down(DEADLINE).unwrap();
    first.faults.calls()
}

struct Stage {
    scene: Scene,
    out: PathBuf,
    endpoint: String,
    sentinel: Program,
    _reaper: Reaper,
    dir: tempfile::TempDir,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let reaper = Reaper(dir.path().to_owned());
        let out = dir.path().join("out");
        let scene = Scene::new(dir.path(), &[PAIR], 1);
        let queue = "UPDATE cf_processing_queue SET status = 'QUEUED'";
        scene.connection().execute_batch(queue).unwrap();
        let command = sentinel(&scene.database, "1");
        let mut sentinel = Program::new("sentinel", dir.path(), &out, &command);
        let endpoint = format!("tcp://127.0.0.1:{}", sentinel.start_sentinel());
        Stage {
            scene,
            out,
            endpoint,
            sentinel,
            _reaper: reaper,
            dir,
        }
    }

    fn worker(&self, name: &str) -> Program {
        let more = [
            "--slots",
            "1",
            "--guest-start",
            "spawn",
            "--worker-id",
            name,
        ];
        let command = worker(&self.endpoint, &self.out, &more);
        Program::new(name, self.dir.path(), &self.out, &command)
    }

    fn check(&self, when: &str) -> Vec<String> {
        let problems = check(&self.scene, &self.out).problems.into_iter();
        problems
            .map(|problem| format!("{when}: {problem}"))
            .collect()
    }
}

/// One point. Without a call in the answer the worker made fewer.
pub(crate) fn point(number: i64, action: At) -> Point {
    let mut stage = Stage::new();
    let mut point = Point {
        number,
        action,
        call: String::new(),
        problems: Vec::new(),
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
    let mut first = stage.worker("first");
    first.faults.stop_at(point.number, point.action);
    first.start();
    let has_stopped = |first: &Program| !first.faults.stopped_at().is_empty();
    let is_early = wait("the job completes or the worker stops", DEADLINE, || {
        if has_stopped(&first) {
            return Some(true);
        }
        is_completed(&stage.scene.database).then_some(false)
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
    let mut second = stage.worker("second");
    second.start();
    wait("the successor completes the job", DEADLINE, || {
        is_completed(&stage.scene.database).then_some(())
    })
    .map_err(|problem| format!("{problem}: {:?}", rows(&reading(&stage.scene.database))))?;
    let when = if is_early {
        "after the successor"
    } else {
        "at the worker's end"
    };
    point.problems.extend(stage.check(when));
    let published = identities(&stage.out);
    if point.action == At::Stop {
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
