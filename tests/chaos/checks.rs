//! What must hold once every job has ended: nothing lost, nothing twice, and what is visible is
//! what the receipts say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde_json::Value;

use crate::reader::{contents, visible};
use crate::scene::{Kind, Mode, Scene, reading};

/// Counts for the table, and every violation in words.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) jobs: usize,
    pub(crate) completed: usize,
    pub(crate) failed: usize,
    pub(crate) cancelled: usize,
    pub(crate) lost: usize,
    pub(crate) twice: usize,
    pub(crate) differs: usize,
    pub(crate) unnamed: usize,
    pub(crate) of_failed: usize,
    /// Jobs that failed although their plugin does not, because its process was killed.
    pub(crate) killed: usize,
    pub(crate) attempts: usize,
    pub(crate) problems: Vec<String>,
}

struct Ended {
    status: String,
    receipt: Value,
    published: Vec<String>,
    token: String,
    cause: String,
    error: String,
}

fn ended(store: &Connection, id: i64) -> Option<Ended> {
    let query = "SELECT status, receipt, published, log_tail, failure_cause, error_message
         FROM cf_processing_queue WHERE id = ?1";
    store
        .query_row(query, [id], |row| {
            let text = |index: usize| -> rusqlite::Result<String> {
                Ok(row.get::<_, Option<String>>(index)?.unwrap_or_default())
            };
            let json = |text: String| serde_json::from_str(&text).unwrap_or(Value::Null);
            let log = text(3)?;
            let token = log
                .lines()
                .rev()
                .find_map(|line| line.strip_prefix("token="));
            let published: Value = json(text(2)?);
            let uris = published.as_array().into_iter().flatten();
            Ok(Ended {
                status: text(0)?,
                receipt: json(text(1)?),
                published: uris
                    .filter_map(|uri| uri.as_str().map(str::to_owned))
                    .collect(),
                token: token.unwrap_or("").to_owned(),
                cause: text(4)?,
                error: text(5)?,
            })
        })
        .ok()
}

fn file_of(uri: &str) -> PathBuf {
    PathBuf::from(uri.strip_prefix("file://").unwrap_or(uri))
}

/// What becomes of a job whose worker was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// It completes.
    IsRetried,
    /// It completes by its output or fails without.
    IsGivenUp,
}

impl Lost {
    pub(crate) fn retries(self) -> &'static str {
        match self {
            Lost::IsRetried => "1000000",
            Lost::IsGivenUp => "0",
        }
    }
}

/// Checks the whole database against the whole output. Each job was queued `queued` times at most.
pub(crate) fn check(scene: &Scene, out: &Path, queued: u32, lost: Lost) -> Verdict {
    let store = reading(&scene.database);
    let mut verdict = Verdict {
        jobs: scene.jobs.len(),
        ..Verdict::default()
    };
    let seen: BTreeSet<PathBuf> = visible(out).into_iter().collect();
    // Visible file → the job whose receipt names it.
    let mut named: BTreeMap<PathBuf, i64> = BTreeMap::new();
    for (&id, (kind, number)) in &scene.jobs {
        let Some(row) = ended(&store, id) else {
            verdict.lost += 1;
            verdict.problems.push(format!("job {id} has no row"));
            continue;
        };
        match row.status.as_str() {
            "COMPLETED" => {
                verdict.completed += 1;
                let differs = receipt_differs(&row, id, *number, kind, &seen, &mut named, lost);
                if !differs.is_empty() {
                    verdict.differs += 1;
                }
                let text = |what| format!("job {id} ({}): {what}", kind.name);
                verdict.problems.extend(differs.into_iter().map(text));
            }
            "FAILED" => {
                verdict.failed += 1;
                named.extend(row.published.iter().map(|uri| (file_of(uri), id)));
                if lost == Lost::IsGivenUp && row.cause == "lost" {
                    if !row.published.is_empty() {
                        let differs =
                            receipt_differs(&row, id, *number, kind, &seen, &mut named, lost);
                        verdict.problems.extend(differs);
                    }
                    continue;
                }
                let is_meant = match kind.mode {
                    Mode::Fails => row.cause == "plugin",
                    Mode::Error => ["plugin", "operator"].contains(&row.cause.as_str()),
                    _ => row.cause == "plugin",
                };
                let is_raised = row.error.contains("on purpose") || kind.mode == Mode::Error;
                verdict.killed += usize::from(is_meant && !is_raised);
                if !is_meant {
                    verdict.problems.push(format!(
                        "job {id} ({}) FAILED with cause {:?}: {}",
                        kind.name, row.cause, row.error
                    ));
                }
            }
            "SKIPPED" => verdict.cancelled += 1,
            other => {
                verdict.lost += 1;
                let problem = format!("job {id} ({}) is {other}: {}", kind.name, row.error);
                verdict.problems.push(problem);
            }
        }
    }
    for path in &seen {
        if !named.contains_key(path) {
            verdict.unnamed += 1;
            let of = job_of(path).and_then(|id| ended(&store, id));
            let status = of.map_or("of no job".to_owned(), |row| row.status);
            verdict.of_failed += usize::from(status == "FAILED");
            let problem = format!("{}: no receipt names it; job: {status}", path.display());
            verdict.problems.push(problem);
        }
    }
    check_modes(scene, &store, &seen, &mut verdict);
    check_attempts(&store, queued, &mut verdict);
    verdict
}

/// What a COMPLETED job's visible files lack of its receipt.
fn receipt_differs(
    row: &Ended,
    id: i64,
    number: i64,
    kind: &Kind,
    seen: &BTreeSet<PathBuf>,
    named: &mut BTreeMap<PathBuf, i64>,
    lost: Lost,
) -> Vec<String> {
    let mut differs = Vec::new();
    let artifacts = row.receipt["artifacts"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let topics: BTreeSet<&str> = artifacts
        .iter()
        .filter_map(|map| map["topic"].as_str())
        .collect();
    if topics != kind.topics.iter().copied().collect() {
        differs.push(format!(
            "topics {topics:?} in the receipt, not {:?}",
            kind.topics
        ));
    }
    for artifact in &artifacts {
        let text = |key: &str| artifact[key].as_str().unwrap_or("").to_owned();
        let path = file_of(&text("uri"));
        if let Some(other) = named.insert(path.clone(), id)
            && other != id
        {
            differs.push(format!("{} is named by job {other} too", path.display()));
        }
        if !seen.contains(&path) {
            if kind.mode != Mode::Replace {
                differs.push(format!("{} is not visible", path.display()));
            }
            continue;
        }
        let found = match contents(&path) {
            Ok(found) => found,
            Err(error) => {
                differs.push(error);
                continue;
            }
        };
        if (text("rows"), text("size_bytes")) != (found.rows.to_string(), found.size.to_string())
            || found.rows != kind.rows
            || found.inputs != BTreeSet::from([number])
            || found.jobs != BTreeSet::from([id])
            // The log of a lost attempt is lost with its worker.
            || (lost == Lost::IsRetried && found.tokens != BTreeSet::from([row.token.clone()]))
        {
            differs.push(format!(
                "{}: {found:?}; the receipt says {artifact}, token {:?}, input {number}",
                path.display(),
                row.token
            ));
        }
    }
    differs
}

/// `o_7.parquet` and `o_7r1.parquet` → 7.
fn job_of(path: &Path) -> Option<i64> {
    let (_, id) = path.file_stem()?.to_str()?.rsplit_once('_')?;
    id.split('r').next()?.parse().ok()
}

/// One file of all jobs that replace, and of all that may not.
fn check_modes(scene: &Scene, store: &Connection, seen: &BTreeSet<PathBuf>, verdict: &mut Verdict) {
    for mode in [Mode::Replace, Mode::Error] {
        let of_mode = |id: &i64| {
            scene
                .jobs
                .get(id)
                .is_some_and(|(kind, _)| kind.mode == mode)
        };
        let files = seen
            .iter()
            .filter(|path| job_of(path).is_some_and(|id| of_mode(&id)))
            .count();
        let completed = scene.jobs.keys().filter(|id| of_mode(id));
        let completed = completed
            .filter(|id| ended(store, **id).is_some_and(|row| row.status == "COMPLETED"))
            .count();
        let most = if mode == Mode::Error { 1 } else { usize::MAX };
        if files != completed.min(1) || completed > most {
            verdict.twice += files.saturating_sub(1);
            let problem = format!("mode {mode:?}: {files} files of {completed} completed jobs");
            verdict.problems.push(problem);
        }
    }
}

/// No job has completed more often than it was queued.
fn check_attempts(store: &Connection, queued: u32, verdict: &mut Verdict) {
    let query = "SELECT job_id, count(*), sum(status = 'COMPLETED') FROM cf_job_attempt GROUP BY 1";
    let mut statement = store.prepare(query).unwrap();
    let counts: Vec<(i64, u32, u32)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for (id, attempts, completed) in counts {
        verdict.attempts += attempts as usize;
        if completed > queued {
            verdict.twice += 1;
            verdict
                .problems
                .push(format!("job {id} has {completed} completed attempts"));
        }
    }
}

/// What is left of attempts in staging.
pub(crate) fn staged(out: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(out.join(".casparian/staging"));
    let names = entries.into_iter().flatten().flatten();
    // Files there are locks; each attempt has a folder.
    let folders = names.filter(|entry| entry.path().is_dir());
    folders
        .map(|entry| entry.path().display().to_string())
        .collect()
}
