//! Publishing is stopped at each of its steps. The process fails, ends, or is paused and continues after
//! a successor has published. The visible output must be correct in each case.

use std::cell::Cell;
use std::sync::mpsc::channel;

use super::*;
use crate::sink::publish::Step;

pub(super) type Sinks = &'static [(&'static str, &'static str)];

const FILE: (&str, &str) = ("a", "parquet://a.parquet");
const OTHER_FILE: (&str, &str) = ("b", "parquet://set/b.parquet");
const TABLE: (&str, &str) = ("t", "sqlite://x.db/rows");
pub(super) const FILES: &[Sinks] = &[&[FILE], &[FILE, OTHER_FILE]];
pub(super) const TABLES: &[Sinks] = &[&[TABLE], &[FILE, TABLE], &[FILE, OTHER_FILE, TABLE]];
const MODES: &[&str] = &["append", "replace", "error"];
const STEPS_MAX: usize = 20;

/// The publish that is stopped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) mode: &'static str,
    pub(super) sinks: Sinks,
    /// Attempt 1 has published and has a receipt.
    pub(super) has_previous: bool,
    /// Index of the step at which it stops.
    stop: usize,
}

/// All cases, with step 0.
fn cases(sinks: &[&'static [Sinks]]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &mode in MODES {
        for &sinks in sinks.iter().copied().flatten() {
            for has_previous in [false, true] {
                let stop = 0;
                cases.push(Case {
                    mode,
                    sinks,
                    has_previous,
                    stop,
                });
            }
        }
    }
    cases
}

/// A root with foreign files, in which job 9 has published and job 7 will publish.
pub(super) struct Scene {
    pub(super) fixture: Fixture,
    pub(super) case: Case,
    pub(super) previous: Vec<String>,
}

impl Scene {
    fn new(case: Case) -> Self {
        let fixture = Fixture::new();
        fs::write(fixture.path("a_notes.parquet"), "unrelated").unwrap();
        let mut scene = Scene {
            fixture,
            case,
            previous: Vec::new(),
        };
        if case.has_previous {
            let first = scene.job(7, 1);
            let published = publish(&scene.fixture.root, &first, &[1]).unwrap();
            let uris = published.artifacts.into_iter().map(|artifact| artifact.uri);
            scene.previous = uris.collect();
        }
        if case.mode != "error" {
            let mut other = scene.job(9, 1);
            let append = other.sinks.iter().map(|sink| Sink {
                mode: crate::job::Mode::Append,
                ..sink.clone()
            });
            other.sinks = append.collect();
            publish(&scene.fixture.root, &other, &[9]).unwrap();
        }
        scene
    }

    pub(super) fn job(&self, job_id: i64, number: i64) -> Job {
        let sinks = self.case.sinks.iter();
        let sinks: Vec<_> = sinks.map(|(t, uri)| (*t, *uri, self.case.mode)).collect();
        let mut job = job(Some(A), Attempt::new(job_id, number), &sinks);
        job.previous = self.previous.clone();
        job
    }

    /// The attempt that is stopped. It writes the value 2, its successor 3.
    pub(super) fn stopped(&self) -> Job {
        self.job(7, 2)
    }

    /// The visible value of a job in each sink.
    pub(super) fn shown(&self, job_id: i64) -> Vec<Option<i64>> {
        let show = |(topic, _): &(&str, &str)| match *topic {
            "t" => self.table_value(job_id),
            topic => {
                let folder = if topic == "b" { "set/" } else { "" };
                let path = self
                    .fixture
                    .path(&format!("{folder}{topic}_{job_id}.parquet"));
                path.exists().then(|| {
                    let found = values(&path);
                    assert_eq!(found.len(), 1, "{:?}", self.case);
                    found[0]
                })
            }
        };
        self.case.sinks.iter().map(show).collect()
    }

    fn table_value(&self, job_id: i64) -> Option<i64> {
        let path = self.fixture.path("x.db");
        if !path.exists() {
            return None;
        }
        let connection = rusqlite::Connection::open(path).unwrap();
        let exists = connection.table_exists(None, "rows").unwrap();
        let found: (i64, Option<i64>) = match exists {
            false => return None,
            true => connection
                .query_row(
                    "SELECT count(*), max(x) FROM rows WHERE _job_id = ?1",
                    [job_id],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .unwrap(),
        };
        assert!(found.0 <= 1, "{:?}: {} rows", self.case, found.0);
        found.1
    }

    pub(super) fn all(&self, value: Option<i64>) -> Vec<Option<i64>> {
        vec![value; self.case.sinks.len()]
    }

    pub(super) fn before(&self) -> Vec<Option<i64>> {
        self.all(self.case.has_previous.then_some(1))
    }

    /// Checks conditions that must be true at any time.
    pub(super) fn check(&self, what: &str) {
        let notes = fs::read_to_string(self.fixture.path("a_notes.parquet")).unwrap();
        assert_eq!(notes, "unrelated");
        let other = self.shown(9);
        let own = self.shown(7);
        if self.case.mode == "append" {
            assert_eq!(other, self.all(Some(9)), "{what} {:?}", self.case);
        } else if self.case.mode == "replace" {
            let covered = own
                .iter()
                .zip(&other)
                .all(|(a, b)| a.is_some() || b.is_some());
            assert!(covered, "{what} {:?}: {own:?} {other:?}", self.case);
        }
        for name in self.fixture.files() {
            if name.ends_with(".parquet") && name != "a_notes.parquet" {
                values(&self.fixture.path(&name));
            }
        }
    }

    /// Another worker publishes the next attempt. Afterwards exactly its output is visible.
    pub(super) fn succeed(&self, root: &Arc<Root>) {
        publish(root, &self.job(7, 3), &[3]).unwrap_or_else(|e| panic!("{:?}: {e}", self.case));
        self.check_success();
    }

    pub(super) fn check_success(&self) {
        self.check("successor");
        assert_eq!(self.shown(7), self.all(Some(3)), "{:?}", self.case);
        if self.case.mode == "replace" {
            assert_eq!(self.shown(9), self.all(None), "{:?}", self.case);
        }
        let leftover = self.fixture.staged();
        let is_live = |name: &String| !name.contains(".7.");
        assert!(
            leftover.iter().all(is_live),
            "{:?}: {leftover:?}",
            self.case
        );
    }
}

fn stop_here() -> Error {
    Error::Io {
        path: PathBuf::from("stopped"),
        source: std::io::Error::other("stopped"),
    }
}

/// Publishes the attempt with an error at the step. Returns the step; `None` when it ended before the
/// step.
pub(super) fn stop(scene: &Scene, at_stop: impl Fn()) -> Option<Step> {
    let staged = stage(&scene.fixture.root, &scene.stopped(), &[2]).unwrap();
    let (count, stopped) = (Cell::new(0), Cell::new(None));
    let hook = |step| {
        if count.replace(count.get() + 1) == scene.case.stop {
            stopped.set(Some(step));
            at_stop();
            return Err(stop_here());
        }
        Ok(())
    };
    let result = staged.publish_by_steps(&[], &|| true, &hook);
    assert_eq!(result.is_err(), stopped.get().is_some(), "{result:?}");
    stopped.get()
}

/// True when the output is committed before this step.
pub(super) fn is_committed(step: Step) -> bool {
    matches!(step, Step::Remove | Step::Done)
}

pub(super) fn each_step(sinks: &[&'static [Sinks]], run: impl Fn(Scene) -> bool) {
    for case in cases(sinks) {
        let went_on = (0..STEPS_MAX).take_while(|&stop| run(Scene::new(Case { stop, ..case })));
        assert!((5..STEPS_MAX).contains(&went_on.count()), "{case:?}");
    }
}

#[test]
fn a_failure_at_any_step_shows_what_was_before() {
    each_step(&[FILES, TABLES], |scene| {
        let Some(step) = stop(&scene, || ()) else {
            return false;
        };
        scene.check("failure");
        let want = match is_committed(step) {
            true => scene.all(Some(2)),
            false => scene.before(),
        };
        assert_eq!(scene.shown(7), want, "{step:?} {:?}", scene.case);
        scene.succeed(&open(scene.fixture.dir.path()));
        true
    });
}

#[test]
fn a_job_that_failed_for_good_shows_what_a_receipt_names() {
    let run = |scene: Scene, last| {
        let Some(step) = stop(&scene, || ()) else {
            return false;
        };
        // The job ends with the attempt that was stopped (2), or with a later one in another worker (3).
        let root = match last {
            2 => scene.fixture.root.clone(),
            _ => open(scene.fixture.dir.path()),
        };
        root.settle_failed(&scene.job(7, last)).unwrap();
        // Output that replaced output with a receipt is not removed.
        let replaces = scene.case.mode == "replace" && is_committed(step);
        let want = match (scene.case.has_previous, is_committed(step)) {
            (false, _) if replaces => scene.all(Some(2)),
            (false, _) => scene.all(None),
            (true, true) => scene.all(Some(2)),
            (true, false) => scene.all(Some(1)),
        };
        assert_eq!(scene.shown(7), want, "{step:?} {:?}", scene.case);
        publish(&root, &scene.job(7, 4), &[3]).unwrap();
        scene.check_success();
        true
    };
    for last in [2, 3] {
        each_step(&[FILES, TABLES], |scene| run(scene, last));
    }
}

/// Simulates the end of the process at a step: the attempt cannot clean up, because its folder is renamed
/// until its worker counts as ended.
pub(super) fn crash(scene: &Scene) -> Option<Step> {
    let folder = scene.fixture.path(&format!(".casparian/staging/{A}.7.2"));
    let aside = scene.fixture.path("aside");
    let step = stop(scene, || fs::rename(&folder, &aside).unwrap())?;
    fs::rename(&aside, &folder).unwrap();
    scene.fixture.root.die();
    Some(step)
}

#[test]
fn the_next_worker_finishes_or_undoes_what_a_dead_one_left() {
    each_step(&[FILES, TABLES], |scene| {
        let Some(step) = crash(&scene) else {
            return false;
        };
        scene.check("crash");
        let root = open(scene.fixture.dir.path());
        scene.check("recovery");
        let shown = scene.shown(7);
        let complete = shown == scene.all(Some(2));
        // If one rename is the commit, the output may be committed before the step of the sync.
        assert!(
            complete || (shown == scene.before() && !is_committed(step)),
            "{step:?} {:?}: {shown:?}",
            scene.case
        );
        assert_eq!(scene.fixture.staged(), [""; 0], "{step:?}");
        scene.succeed(&root);
        true
    });
}

#[test]
fn a_successor_of_a_dead_worker_replaces_what_it_left() {
    each_step(&[FILES, TABLES], |scene| {
        let successor = open(scene.fixture.dir.path());
        if crash(&scene).is_none() {
            return false;
        }
        scene.succeed(&successor);
        true
    });
}

/// Publishes the attempt and pauses it at the step while `meanwhile` runs. Returns the step and the
/// result of the publish. `None` when it ended before the step.
pub(super) fn pause(
    scene: &Scene,
    meanwhile: impl FnOnce(Step),
) -> Option<(Step, Result<Published, Refused>)> {
    let staged = stage(&scene.fixture.root, &scene.stopped(), &[2]).unwrap();
    let (stopped, at_stop) = channel();
    let (resume, resumed) = channel::<()>();
    let wanted = scene.case.stop;
    let paused = std::thread::spawn(move || {
        let count = Cell::new(0);
        let hook = |step| {
            if count.replace(count.get() + 1) == wanted {
                stopped.send(step).unwrap();
                resumed.recv().unwrap();
            }
            Ok(())
        };
        staged.publish_by_steps(&[], &|| true, &hook)
    });
    let Ok(step) = at_stop.recv() else {
        paused.join().unwrap().unwrap();
        return None;
    };
    scene.check("pause");
    meanwhile(step);
    resume.send(()).unwrap();
    Some((step, paused.join().unwrap()))
}

#[test]
fn an_attempt_that_was_paused_changes_nothing_after_its_successor() {
    each_step(&[FILES], |scene| {
        let successor = open(scene.fixture.dir.path());
        let Some((step, result)) = pause(&scene, |_| scene.succeed(&successor)) else {
            return false;
        };
        assert!(result.is_err(), "{step:?} {result:?}");
        scene.check_success();
        // An attempt with the successor's number is refused, because the record has that number.
        let again = publish(&successor, &scene.job(7, 3), &[4]).unwrap_err();
        assert!(
            matches!(again, Error::Copied { recorded: 3, .. }),
            "{again}"
        );
        scene.check_success();
        true
    });
}

#[test]
fn a_lease_that_ends_at_any_question_gives_the_output_back() {
    for case in cases(&[FILES, TABLES]) {
        for questions in 0.. {
            let scene = Scene::new(case);
            let staged = stage(&scene.fixture.root, &scene.stopped(), &[2]).unwrap();
            let asked = Cell::new(0);
            let is_granted = || asked.replace(asked.get() + 1) != questions;
            let back = match staged.publish(&[], &is_granted) {
                Ok(_) => {
                    assert!(questions > 1, "{case:?}: the lease is asked for");
                    break;
                }
                Err(Refused::NotGranted(staged)) => *staged,
                Err(Refused::Failed(error)) => panic!("{case:?} {questions}: {error}"),
            };
            scene.check("no lease");
            assert_eq!(scene.shown(7), scene.before(), "{case:?} {questions}");
            granted(back).unwrap();
            assert_eq!(scene.shown(7), scene.all(Some(2)), "{case:?} {questions}");
        }
    }
}

#[test]
fn an_attempt_that_was_paused_before_a_removal_does_not_remove_its_successors_output() {
    let fixture = Fixture::new();
    let both = [("a", FILE.1, "append"), ("b", OTHER_FILE.1, "append")];
    let of = |number, sinks| job(Some(A), Attempt::new(7, number), sinks);
    publish(&fixture.root, &of(1, &both), &[1]).unwrap();
    let staged = stage(&fixture.root, &of(2, &both[..1]), &[2]).unwrap();
    let other = open(fixture.dir.path());
    let hook = |step| {
        if step == Step::Remove {
            publish(&other, &of(3, &both), &[3]).unwrap();
        }
        Ok(())
    };
    let refused = staged.publish_by_steps(&[], &|| true, &hook).unwrap_err();
    assert!(
        matches!(refused, Refused::Failed(Error::Barred { .. })),
        "{refused:?}"
    );
    for name in ["a_7.parquet", "set/b_7.parquet"] {
        assert_eq!(values(&fixture.path(name)), [3], "{name}");
    }
}

#[test]
fn the_lease_is_asked_for_before_each_change_that_shows() {
    for case in cases(&[FILES, TABLES]) {
        let scene = Scene::new(case);
        let staged = stage(&scene.fixture.root, &scene.stopped(), &[2]).unwrap();
        // `None` is a check of the lease.
        let events = std::cell::RefCell::new(Vec::new());
        let is_granted = || {
            events.borrow_mut().push(None);
            true
        };
        let hook = |step| {
            events.borrow_mut().push(Some(step));
            Ok(())
        };
        staged.publish_by_steps(&[], &is_granted, &hook).unwrap();
        let events = events.into_inner();
        let mut changes = 0;
        for (at, event) in events.iter().enumerate() {
            if let Some(Step::Keep | Step::Rename(_) | Step::Table(_)) = event {
                changes += 1;
                assert_eq!(events[at - 1], None, "{case:?} {events:?}");
            }
        }
        assert!(changes > 1, "{case:?} {events:?}");
    }
}
