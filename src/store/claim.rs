//! Claims QUEUED rows: they become RUNNING jobs of a worker.
//!
//! The claim reads `ix_casparian_claim`, one plugin at a time, and merges by priority in memory. The index
//! orders the rows of a plugin by whether they run alone, by priority and by ID. A row that cannot be used
//! ends as FAILED, and the claim continues behind it, up to a bound for one transaction. [`Claimed::more`] is
//! set when the bound was reached. A row with a priority that is no number (SQLite sorts it first) cannot be
//! used.
//!
//! A job that was lost several times together with other jobs of its worker runs alone: an idle worker takes
//! it and nothing else. Where no worker is idle, one worker is emptied: it gets no more jobs until it is
//! idle. Meanwhile the other workers take the jobs behind this one. While one worker is being emptied, or
//! runs a job alone, no second worker is emptied for a plugin that the first one may run.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashSet};
use std::path::Path;
use std::sync::Arc;

use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use super::change::Check;
use super::code::PluginCode;
use super::content::registered;
use super::identity::last_attempt;
use super::parameters::parameters;
use super::value::{Malformed, cell, count, integer, malformed, needed, number, shown, text};
use super::{Code, Error, Transaction, format_time, sinks};
use crate::job::{Attempt, Cause, Content, History, Job, Parameters, Past, PastEnd, Sink};
use crate::limits;

/// The parameters of a claim.
#[derive(Clone, Copy, Debug)]
pub struct ClaimRequest<'a> {
    /// The worker that will hold the jobs.
    pub worker_id: &'a str,
    /// Its host (`worker_host`).
    pub hostname: &'a str,
    /// Its process (`worker_pid`).
    pub pid: Option<i64>,
    /// Plugins whose jobs may be claimed. Plugins without usable code ([`Code::Waits`]) are skipped.
    pub plugins: &'a [String],
    /// The maximum number of jobs.
    pub limit: usize,
    /// The worker holds no job.
    pub is_idle: bool,
    /// It is a worker of the reference system.
    pub is_old: bool,
    /// End of the first lease, milliseconds since the epoch. For display only.
    pub lease_until_ms: i64,
}

/// A job that could not be claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// The job.
    pub job_id: i64,
    /// Why.
    pub reason: String,
    /// It is FAILED. Otherwise the database refuses even that, and the job is skipped for a while.
    pub is_ended: bool,
}

/// The result of a claim.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// Jobs to dispatch, in order.
    pub jobs: Vec<Job>,
    /// Jobs that could not be claimed.
    pub unresolved: Vec<Unresolved>,
    /// The bound of unusable rows was reached. The rest is left for the next transaction.
    pub more: bool,
    /// The claimed job runs alone: its worker may have no other.
    pub alone: bool,
    /// The worker is being emptied: it gets no more jobs until it is idle.
    pub is_reserved: bool,
}

/// The order of the queue: highest priority first (rows without a priority last), then lowest ID.
type Rank = (Reverse<Option<i64>>, i64);

/// A QUEUED row among the first ones of its plugin.
struct Candidate {
    rank: Rank,
    /// Index of the plugin.
    plugin: usize,
    /// Why it cannot be used, where its priority already shows that.
    malformed: Option<Malformed>,
    /// It must be the only job of its worker.
    runs_alone: bool,
}

/// The rows of one plugin in the order of the claim: rows that run alone (?2 = 1), or the others (?2 = 0).
/// The bound 2 is [`limits::SHARED_LOSSES_TOGETHER`].
pub(super) const CLAIM_QUERY: &str = "SELECT id, priority FROM cf_processing_queue \
     INDEXED BY ix_casparian_claim WHERE status = 'QUEUED' AND plugin_name = ?1 \
     AND (coalesce(shared_count, 0) >= 2) = ?2 ORDER BY priority DESC, id";

/// Those of these rows that have the priority ?3 and an ID of at least ?4.
pub(super) const CLAIM_FROM_QUERY: &str = "SELECT id, priority FROM cf_processing_queue \
     INDEXED BY ix_casparian_claim WHERE status = 'QUEUED' AND plugin_name = ?1 \
     AND (coalesce(shared_count, 0) >= 2) = ?2 AND priority IS ?3 AND id >= ?4 ORDER BY id";

/// Those of these rows that have a priority below ?3, without rows that have none.
pub(super) const CLAIM_BELOW_QUERY: &str = "SELECT id, priority FROM cf_processing_queue \
     INDEXED BY ix_casparian_claim WHERE status = 'QUEUED' AND plugin_name = ?1 \
     AND (coalesce(shared_count, 0) >= 2) = ?2 AND priority < ?3 ORDER BY priority DESC, id";
const _: () = assert!(limits::SHARED_LOSSES_TOGETHER == 2);

/// All values that a DISPATCH of a job needs from its rows.
pub(super) const RESOLVE_QUERY: &str = "SELECT q.file_version_id, q.config_overrides, q.attempt, \
     coalesce(q.published, q.receipt), v.id, v.location_id, l.id, l.source_root_id, r.id, r.path, \
     l.rel_path, q.published IS NULL, \
     (SELECT value FROM cf_casparian WHERE key = 'incarnation'), \
     (SELECT max(a.attempt) FROM cf_job_attempt a WHERE a.job_id = q.id AND a.attempt <= \
     (SELECT (max(1, min(2147483647, CAST(value AS INTEGER))) << 32) + 4294967293 \
     FROM cf_casparian WHERE key = 'incarnation')), v.size_bytes, v.modified_time, v.content_hash, \
     iif(l.current_version_id = v.id, l.last_known_mtime, NULL), q.parameters FROM cf_processing_queue q \
     LEFT JOIN cf_file_version v ON v.id = q.file_version_id \
     LEFT JOIN cf_file_location l ON l.id = v.location_id \
     LEFT JOIN cf_source_root r ON r.id = l.source_root_id WHERE q.id = ?1";

/// The claim itself. ?11 = its time where the worker is one of the reference system, else NULL.
pub(super) const TAKE: &str = "UPDATE cf_processing_queue SET status = 'RUNNING', \
     attempt = ?8, claim_time = ?2, lease_until_ms = ?3, worker_id = ?4, worker_host = ?5, \
     worker_pid = ?6, artifact_hash = ?7, end_time = NULL, error_message = NULL, \
     result_summary = NULL, failure_cause = NULL, next_run = NULL, next_run_boot_ms = NULL, \
     next_run_boot_id = NULL, unsettled = NULL, attempt_key = ?9, sinks_hash = ?10, \
     old_since_ms = coalesce(old_since_ms, ?11), \
     dispatched = file_version_id || ' ' || plugin_name \
     WHERE id = ?1 AND status = 'QUEUED'";

/// Checks that a row is as [`TAKE`] left it.
pub(super) const TAKEN: &str = "SELECT 1 FROM cf_processing_queue WHERE id = ?1 \
     AND status = 'RUNNING' AND attempt = ?2 AND attempt_key = ?3 AND worker_id = ?4 \
     AND dispatched = file_version_id || ' ' || plugin_name";

/// Since when programs of the reference system may have run a job.
pub(super) const OLD_SINCE_QUERY: &str =
    "SELECT old_since_ms FROM cf_processing_queue WHERE id = ?1";

/// Inserts the last attempt of a row into the history, where another program has removed it. The record of
/// its output contains its key.
pub(super) const REMEMBER: &str = "INSERT OR IGNORE INTO cf_job_attempt \
     (job_id, attempt, status, attempt_key, dispatched, artifact_hash, sinks_hash) \
     SELECT id, attempt, 'TAKEN', attempt_key, coalesce(dispatched, ''), artifact_hash, sinks_hash \
     FROM cf_processing_queue WHERE id = ?1 AND typeof(attempt) = 'integer' \
     AND attempt & 4294967295 > 0 AND attempt_key IS NOT NULL";

/// The attempts of a job before ?2, the last one first.
pub(super) const HISTORY_QUERY: &str = "SELECT attempt, attempt_key, status, cause \
     FROM cf_job_attempt WHERE job_id = ?1 AND attempt > 0 AND attempt < ?2 ORDER BY attempt DESC LIMIT ?3";

/// The end of a row that cannot be used.
pub(super) const FAIL: &str = "UPDATE cf_processing_queue SET status = 'FAILED', end_time = ?2, \
     error_message = ?3, failure_cause = ?4 WHERE id = ?1 AND status = 'QUEUED'";

/// Checks that a row is as [`FAIL`] left it.
pub(super) const IS_FAILED: &str =
    "SELECT 1 FROM cf_processing_queue WHERE id = ?1 AND status = 'FAILED'";

/// The reason for a row whose claim code in the schema refuses.
const REFUSED: &str = "a constraint or trigger of the database refuses or undoes the claim";

struct Resolved {
    attempt: i64,
    file_path: String,
    file_version_id: i64,
    content: Content,
    sinks: Arc<[Sink]>,
    parameters: Parameters,
    previous: Vec<String>,
}

// Read and moved for each claimed row.
const _: () = assert!(size_of::<Resolved>() <= 160);

impl Transaction<'_> {
    /// In this transaction no worker is emptied for a job of this plugin, because a worker that may run it is
    /// already being emptied or runs a job alone.
    pub fn empty_none_for(&mut self, plugin: &str) {
        self.emptying.insert(plugin.to_owned());
    }

    /// Claims up to [`ClaimRequest::limit`] QUEUED jobs of the given plugins: highest priority first, then lowest
    /// ID.
    pub fn claim(&mut self, claim: &ClaimRequest<'_>, now_ms: i64) -> Result<Claimed, Error> {
        let mut codes: Vec<Arc<PluginCode>> = Vec::with_capacity(claim.plugins.len());
        let mut seen: HashSet<&str> = HashSet::new();
        for plugin in claim.plugins {
            if seen.insert(plugin)
                && let Code::Runs(code) = self.plugin_code(plugin)?
            {
                codes.push(code);
            }
        }
        self.begin_claim();
        let mut claimed = Claimed::default();
        while claimed.jobs.len() < claim.limit {
            let want = claim.limit - claimed.jobs.len();
            let mut poll_again = false;
            let mut heap = self.candidates(&codes, want)?;
            while claimed.jobs.len() < claim.limit
                && let Some(Reverse(candidate)) = heap.pop()
            {
                let job_id = candidate.rank.1;
                let Some(code) = codes.get(candidate.plugin) else {
                    continue;
                };
                if self.refused.is_passed_over(job_id) {
                    continue;
                }
                let alone = candidate.runs_alone;
                let must_wait = alone && !(claim.is_idle && claimed.jobs.is_empty());
                // A job whose change was refused before does not cause a worker to be emptied. It waits for
                // an idle one.
                let is_behind =
                    self.emptying.contains(&code.plugin.name) || self.refused.was_refused(job_id);
                if must_wait && is_behind {
                    continue;
                }
                if self.unusable_left == 0 {
                    claimed.more = true;
                    return Ok(claimed);
                }
                let resolved = match candidate.malformed {
                    Some(malformed) => Err(malformed.to_string()),
                    None if self.refused.is_noted(job_id) => Err(REFUSED.to_owned()),
                    None => self.resolve(job_id, code)?,
                };
                let reason = match resolved {
                    Ok(_) if must_wait => {
                        self.emptying.extend(claim.plugins.iter().cloned());
                        claimed.is_reserved = true;
                        return Ok(claimed);
                    }
                    Ok(resolved) => match self.take(job_id, claim, code, resolved, now_ms)? {
                        Some(job) => {
                            self.note_claimed();
                            claimed.jobs.push(job);
                            claimed.alone = alone;
                            if alone {
                                return Ok(claimed);
                            }
                            continue;
                        }
                        None => REFUSED.to_owned(),
                    },
                    Err(reason) => reason,
                };
                poll_again = true;
                self.unusable_left -= 1;
                let is_ended = self.fail(job_id, &reason, now_ms)?;
                match is_ended {
                    true => self.note_claimed(),
                    false => self.refused.give_up(job_id),
                }
                claimed.unresolved.push(Unresolved {
                    job_id,
                    reason,
                    is_ended,
                });
            }
            if !poll_again {
                break;
            }
        }
        Ok(claimed)
    }

    /// The next rows of each plugin: at most `want` that do not run alone, and one that does.
    fn candidates(
        &mut self,
        codes: &[Arc<PluginCode>],
        want: usize,
    ) -> Result<BinaryHeap<Reverse<Candidate>>, Error> {
        let mut heap = BinaryHeap::new();
        for (plugin, code) in codes.iter().enumerate() {
            for (want, runs_alone) in [(want, false), (1, true)] {
                let found = self.range(&code.plugin.name, runs_alone, want)?;
                heap.extend(found.into_iter().map(|(rank, malformed)| {
                    Reverse(Candidate {
                        rank,
                        plugin,
                        malformed,
                        runs_alone,
                    })
                }));
            }
        }
        Ok(heap)
    }

    /// The first rows of a plugin's range that are not skipped, at most `want`, each with the reason why it
    /// cannot be used, if any. Skipped rows at the head of the range are not read again while the range is
    /// unchanged.
    fn range(
        &mut self,
        plugin: &str,
        runs_alone: bool,
        want: usize,
    ) -> Result<Vec<(Rank, Option<Malformed>)>, Error> {
        let begin = self.refused.passed.get(plugin, runs_alone).cloned();
        let key = |last: [Value; 2]| {
            let [third, fourth] = last;
            let plugin = Value::Text(plugin.to_owned());
            [plugin, Value::from(runs_alone), third, fourth]
        };
        let mut parts = vec![(CLAIM_QUERY, 2, key([Value::Null, Value::Null]))];
        if let Some((priority, job_id)) = &begin {
            let from = Value::Integer(job_id.saturating_add(1));
            parts = vec![(CLAIM_FROM_QUERY, 4, key([priority.clone(), from]))];
            if *priority != Value::Null {
                let from = Value::Integer(i64::MIN);
                parts.push((CLAIM_BELOW_QUERY, 3, key([priority.clone(), Value::Null])));
                parts.push((CLAIM_FROM_QUERY, 4, key([Value::Null, from])));
            }
        }
        let mut found = Vec::new();
        let mut passed = None;
        'parts: for (sql, count, values) in &parts {
            let mut statement = self.inner.prepare_cached(sql)?;
            let mut rows = statement.query(params_from_iter(values.iter().take(*count)))?;
            while found.len() < want
                && let Some(row) = rows.next()?
            {
                let job_id = row.get(0)?;
                let is_passed_over = self.refused.is_passed_over(job_id);
                match (is_passed_over, found.is_empty()) {
                    (true, true) => passed = kept(cell(row, 1)).map(|value| (value, job_id)),
                    (true, false) => {}
                    (false, _) => {
                        let (priority, malformed) = ranked(job_id, cell(row, 1));
                        found.push(((Reverse(priority), job_id), malformed));
                    }
                }
            }
            if found.len() >= want {
                break 'parts;
            }
        }
        if let Some(passed) = passed {
            self.refused.passed.set(plugin, runs_alone, passed);
        }
        Ok(found)
    }

    /// Changes a row to RUNNING. None when the database refuses the change.
    fn take(
        &mut self,
        job_id: i64,
        claim: &ClaimRequest<'_>,
        code: &PluginCode,
        resolved: Resolved,
        now_ms: i64,
    ) -> Result<Option<Job>, Error> {
        let attempt = Attempt::new(job_id, resolved.attempt);
        if attempt.ordinal() > 1 {
            self.change_job(job_id, REMEMBER, [job_id])?;
        }
        let key = self.next_key();
        let parameters = params![
            job_id,
            format_time(now_ms),
            claim.lease_until_ms,
            claim.worker_id,
            claim.hostname,
            claim.pid,
            code.plugin.artifact_hash,
            resolved.attempt,
            key,
            sinks::hash(&resolved.sinks, &resolved.parameters),
            claim.is_old.then_some(now_ms),
        ];
        let check: Check<'_> = (TAKEN, &[&job_id, &resolved.attempt, &key, &claim.worker_id]);
        if !self.change_job_to(job_id, TAKE, parameters, check)? {
            return Ok(None);
        }
        Ok(Some(Job {
            attempt,
            history: history(&self.inner, key, attempt)?,
            file_path: resolved.file_path,
            file_version_id: resolved.file_version_id,
            content: Some(resolved.content),
            sinks: resolved.sinks,
            parameters: resolved.parameters,
            plugin: code.plugin.clone(),
            database: Some(self.database.clone()),
            previous: resolved.previous,
        }))
    }

    /// Ends a QUEUED row that cannot be used. False when the database refuses even that.
    pub(super) fn fail(&mut self, job_id: i64, reason: &str, now_ms: i64) -> Result<bool, Error> {
        let cause = Cause::Operator.as_str();
        let parameters = params![job_id, format_time(now_ms), reason, cause];
        let is_ended = self.change_job_to(job_id, FAIL, parameters, (IS_FAILED, &[&job_id]))?;
        if !is_ended {
            match self.refused.len().cmp(&limits::ENDS_LOGGED_MAX) {
                Ordering::Less => {
                    log::warn!("job {job_id} is skipped, it cannot be ended: {reason}");
                }
                Ordering::Equal => log::warn!("more jobs are skipped, which cannot be ended"),
                Ordering::Greater => {}
            }
        }
        Ok(is_ended)
    }

    /// What a job needs from its rows, or why it cannot be used.
    fn resolve(&self, job_id: i64, code: &PluginCode) -> Result<Result<Resolved, String>, Error> {
        let mut statement = self.inner.prepare_cached(RESOLVE_QUERY)?;
        Ok(statement.query_row([job_id], |row| {
            Ok(resolved(row, job_id, code).map_err(|error| error.to_string()))
        })?)
    }
}

/// The priority of a skipped row, from which the next claim continues. None where it is long or cannot be
/// converted: then the rows are read again.
fn kept(priority: ValueRef<'_>) -> Option<Value> {
    match priority {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) if bytes.len() > 64 => None,
        value => value.try_into().ok(),
    }
}

/// The priority by which a row is ordered, and, where it is no number, why the row cannot be used.
fn ranked(job_id: i64, priority: ValueRef<'_>) -> (Option<i64>, Option<Malformed>) {
    match priority {
        ValueRef::Null => (None, None),
        ValueRef::Integer(priority) => (Some(priority), None),
        ValueRef::Real(priority) => (Some(priority as i64), None),
        value => {
            let column = "cf_processing_queue.priority";
            let reason = malformed(column, job_id, value, "a whole number");
            (Some(i64::MAX), Some(reason))
        }
    }
}

fn resolved(row: &Row<'_>, job_id: i64, code: &PluginCode) -> Result<Resolved, Malformed> {
    if job_id <= 0 {
        // On the wire IDs are unsigned, and 0 means no job.
        let value = ValueRef::Integer(job_id);
        let expected = "a positive ID";
        return Err(malformed("cf_processing_queue.id", job_id, value, expected));
    }
    let column = "cf_processing_queue.file_version_id";
    let version = integer(cell(row, 0), column, job_id)?
        .ok_or_else(|| malformed(column, job_id, ValueRef::Null, "a file version"))?;
    // For each of the three catalogue tables: the index of its row's ID, and of the value that refers to it.
    for (found, named, table) in [
        (4, 0, "cf_file_version"),
        (6, 5, "cf_file_location"),
        (8, 7, "cf_source_root"),
    ] {
        if cell(row, found) == ValueRef::Null {
            let key = super::value::abridged(cell(row, named));
            return Err(Malformed(format!(
                "file version {version} has no file: {table} has no row {key}"
            )));
        }
    }
    let path_size_max = 64 << 10;
    let root_id = row.get(8).unwrap_or(0);
    let root = needed(cell(row, 9), path_size_max, "cf_source_root.path", root_id)?;
    let location_id: i64 = row.get(6).unwrap_or(0);
    let rel_path = needed(
        cell(row, 10),
        path_size_max,
        "cf_file_location.rel_path",
        location_id,
    )?;
    let last = last_attempt([cell(row, 2), cell(row, 13)], cell(row, 12), job_id)?;
    let overrides = text(
        cell(row, 1),
        limits::OVERRIDES_SIZE_MAX,
        "cf_processing_queue.config_overrides",
        job_id,
    )?;
    let sinks = match overrides.filter(|text| !text.trim().is_empty()) {
        Some(text) => sinks::overridden(&code.sinks, &text, &code.plugin.name)
            .map_err(Malformed)?
            .into(),
        None => code.sinks.clone(),
    };
    let own = parameters(cell(row, 18), "cf_processing_queue.parameters", job_id)?;
    let path = Path::new(&root).join(rel_path);
    Ok(Resolved {
        attempt: last.number + 1,
        file_path: path.to_string_lossy().into_owned(),
        file_version_id: version,
        content: registered(cell(row, 14), cell(row, 15), cell(row, 16), cell(row, 17)),
        sinks,
        parameters: code.parameters.with(&own),
        previous: previous(cell(row, 3), cell(row, 11) != ValueRef::Integer(0), job_id)?,
    })
}

/// As [`published`]. An error where the text is too large for a message.
pub(super) fn previous(
    value: ValueRef<'_>,
    is_receipt: bool,
    job_id: i64,
) -> Result<Vec<String>, Malformed> {
    let size_max = limits::PUBLISHED_SIZE_MAX;
    match value {
        ValueRef::Text(bytes) if bytes.len() > size_max => {
            let column = match is_receipt {
                true => "cf_processing_queue.receipt",
                false => "cf_processing_queue.published",
            };
            let expected = format!("at most {size_max} bytes, not {}", bytes.len());
            Err(malformed(column, job_id, value, &expected))
        }
        _ => Ok(published(value)),
    }
}

/// The attempts before one that has this key.
pub(super) fn history(
    connection: &Connection,
    key: i64,
    attempt: Attempt,
) -> Result<History, Error> {
    let mut history = History {
        key,
        old_since_ms: connection
            .prepare_cached(OLD_SINCE_QUERY)?
            .query_row([attempt.job_id], |row| Ok(number(cell(row, 0))))
            .optional()?
            .flatten(),
        ..History::default()
    };
    if attempt.ordinal() <= 1 {
        return Ok(history);
    }
    let mut statement = connection.prepare_cached(HISTORY_QUERY)?;
    let limit = i64::try_from(limits::HISTORY_MAX).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![attempt.job_id, attempt.number, limit], |row| {
        let text = |index| shown(cell(row, index)).unwrap_or_default();
        Ok(Past {
            number: count(cell(row, 0)),
            key: number(cell(row, 1)).unwrap_or(0),
            end: match (text(2).as_str(), Cause::parse(&text(3))) {
                ("COMPLETED", _) => PastEnd::Completed,
                ("FAILED", Some(cause)) if cause.is_final() => PastEnd::Failed,
                _ => PastEnd::Unknown,
            },
        })
    })?;
    history.past = rows.collect::<Result<_, _>>()?;
    history.past.reverse();
    Ok(history)
}

/// The URIs of artifacts in a value of `published` (a list of URIs) or in a receipt. Empty for anything else.
pub(super) fn published(value: ValueRef<'_>) -> Vec<String> {
    use serde_json::Value;
    let ValueRef::Text(bytes) = value else {
        return Vec::new();
    };
    let mut uris = match serde_json::from_slice(bytes) {
        Ok(Value::Array(uris)) => uris,
        Ok(Value::Object(mut receipt)) => match receipt.remove("artifacts") {
            Some(Value::Array(artifacts)) => artifacts
                .into_iter()
                .filter_map(|mut artifact| artifact.get_mut("uri").map(Value::take))
                .collect(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    uris.drain(..)
        .filter_map(|uri| match uri {
            Value::String(uri) => Some(uri),
            _ => None,
        })
        .collect()
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank.cmp(&other.rank)
    }
}
