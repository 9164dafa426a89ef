//! Commands of operators: `jobs`, `job`, `workers`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::args::{Command, Values, flags, no_positionals, values};
use super::stderr::print_line;
use super::table::{bytes, first_line, one_line, render, thousands};
use super::{Failure, failed, failed_in, print, usage_error};
use crate::job::ARTIFACTS_TRUNCATED;
use crate::limits;
use crate::sentinel::clock::unix_ms;
use crate::store::{
    AttemptRow, Inspector, JobDetail, JobFilter, JobRow, SET_ASIDE, WorkerRow, format_time,
    parse_location,
};

flags! {
    /// The database of most commands.
    pub(super) struct DatabaseFlag {
        /// Path or sqlite:// URL
        database: Option<PathBuf> = "database" | 'd', "DB" => location;
    }
}

flags! {
    /// The format of what is printed.
    pub(super) struct JsonFlag {
        /// One JSON value on stdout
        json: bool = "json";
    }
}

flags! {
    /// The flags of `jobs`.
    pub(super) struct JobsFlags {
        /// The database.
        location: DatabaseFlag;
        /// PENDING, QUEUED, RUNNING, COMPLETED, FAILED or SKIPPED
        status: Option<String> = "status" | 's', "STATUS" => status;
        /// Only this plugin's
        plugin: Option<String> = "plugin" | 'p', "NAME" => values::text;
        /// The newest N (default 100)
        limit: Option<usize> = "limit" | 'n', "N" => values::number(1..=10_000_000);
        /// The format.
        format: JsonFlag;
    }
}

pub(super) const JOBS: Command<JobsFlags> = Command {
    name: "casparian jobs",
    about: "Lists jobs, newest first",
    usage: "--database DB [OPTIONS]",
    flags: JobsFlags::TABLE,
    notes: "",
};

flags! {
    /// The flags of commands that show a part of a database.
    pub(super) struct ShowFlags {
        /// The database.
        location: DatabaseFlag;
        /// The format.
        format: JsonFlag;
    }
}

pub(super) const JOB: Command<ShowFlags> = Command {
    name: "casparian job",
    about: "Shows everything about one job",
    usage: "ID --database DB [OPTIONS]",
    flags: ShowFlags::TABLE,
    notes: "",
};

pub(super) const WORKERS: Command<ShowFlags> = Command {
    name: "casparian workers",
    about: "Lists the workers that have reported to a sentinel",
    usage: "--database DB [OPTIONS]",
    flags: ShowFlags::TABLE,
    notes: "STATUS (`status` of --json) is ONLINE for a worker that is connected to the sentinel of the\ndatabase, and OFFLINE for all while no sentinel works on it. NOTE states why a worker takes no jobs.",
};

const STATUSES: &[&str] = &[
    "PENDING",
    "QUEUED",
    "RUNNING",
    "COMPLETED",
    "FAILED",
    "SKIPPED",
];

/// The path of a database from its path or URL.
fn location(values: &Values) -> Result<Option<PathBuf>, Failure> {
    let location = values::path(values)?;
    location
        .map(parse_location)
        .transpose()
        .map_err(usage_error)
}

impl DatabaseFlag {
    /// The database of a command that needs one.
    pub(super) fn required(self) -> Result<PathBuf, Failure> {
        let missing = || usage_error("--database is missing");
        self.database.ok_or_else(missing)
    }
}

/// Warns if other users can change the database, because they then decide what workers run.
pub(super) fn warn_of_owner(database: &Path) {
    if let Some(what) = crate::store::shared_with(database, false) {
        print_line(format_args!("database {}: {what}", database.display()));
    }
}

/// Opens the database for reading, and checks whether a sentinel works on it.
pub(super) fn inspect(path: &Path) -> Result<Inspector, Failure> {
    let mut inspector = Inspector::open(path).map_err(failed_in(path))?;
    inspector
        .find_sentinel(unix_ms())
        .map_err(failed_in(path))?;
    Ok(inspector)
}

/// A job's status, in any case.
fn status(values: &Values) -> Result<Option<String>, Failure> {
    let status = values::text(values)?.map(|status| status.to_uppercase());
    match status {
        Some(status) if !STATUSES.contains(&status.as_str()) => {
            let expected = format!("expected one of {}", STATUSES.join(", "));
            Err(values.error(status, expected))
        }
        status => Ok(status),
    }
}

pub(super) fn jobs(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let (flags, positionals) = JOBS.parse(arguments)?;
    no_positionals(&positionals)?;
    let path = flags.location.required()?;
    let inspector = inspect(&path)?;
    let filter = JobFilter {
        status: flags.status,
        plugin: flags.plugin,
        limit: flags.limit.unwrap_or(100),
    };
    let rows = inspector.jobs(&filter).map_err(failed_in(&path))?;
    if flags.format.json {
        let rows: Vec<_> = rows.iter().map(row_json).collect();
        return print(&format!("{}\n", serde_json::Value::from(rows)));
    }
    let mut lines = Vec::with_capacity(rows.len());
    let mut reasons: HashMap<&str, Option<String>> = HashMap::new();
    for row in &rows {
        let reason = match row.status.as_str() {
            "QUEUED" => match reasons.get(row.plugin_name.as_str()) {
                Some(reason) => reason.clone(),
                None => {
                    let reason = inspector
                        .waiting_for(&row.plugin_name)
                        .map_err(failed_in(&path))?;
                    reasons.insert(&row.plugin_name, reason.clone());
                    reason
                }
            },
            _ if row.is_set_aside() => Some(SET_ASIDE.to_owned()),
            _ => retry_at(row),
        };
        let note = match (reason, &row.error_message) {
            (Some(reason), Some(error)) if row.status == "PENDING" => format!("{reason}: {error}"),
            (Some(reason), _) => reason,
            (None, error) => error.clone().unwrap_or_default(),
        };
        lines.push(vec![
            row.job_id.to_string(),
            row.status.clone(),
            row.plugin_name.clone(),
            row.file_path.clone().unwrap_or_else(|| "?".to_owned()),
            metric(row, "rows").map_or(String::new(), thousands),
            row.attempt.ordinal().to_string(),
            first_line(&note, 80),
        ]);
    }
    let header = ["ID", "STATUS", "PLUGIN", "FILE", "ROWS", "ATTEMPT", "NOTE"];
    let right = [true, false, false, false, true, true, false];
    print(&render(&header, &right, &lines))
}

/// When a PENDING job is queued again, as text.
fn retry_at(row: &JobRow) -> Option<String> {
    let at = row
        .next_run
        .as_deref()
        .filter(|_| row.status == "PENDING")?;
    let to_the_second = at.get(..19).unwrap_or(at);
    Some(format!("retry at {to_the_second}"))
}

fn metric(row: &JobRow, name: &str) -> Option<u64> {
    let receipt: serde_json::Value = serde_json::from_str(row.receipt.as_deref()?).ok()?;
    receipt.get("metrics")?.get(name)?.as_u64()
}

fn row_json(row: &JobRow) -> serde_json::Value {
    json!({
        "id": row.job_id,
        "plugin": row.plugin_name,
        "status": row.status,
        "priority": row.priority,
        "file": row.file_path,
        "attempt": row.attempt.ordinal(),
        "worker": row.worker_id,
        "claimed_at": row.claim_time,
        "ended_at": row.end_time,
        "error": row.error_message,
        "cause": row.cause,
        "next_run": row.next_run,
        "receipt": row.receipt.as_deref().and_then(|text| {
            serde_json::from_str::<serde_json::Value>(text).ok()
        }),
    })
}

fn detail_json(detail: &JobDetail) -> serde_json::Value {
    let mut value = row_json(&detail.row);
    if let Some(map) = value.as_object_mut() {
        map.insert("file_version_id".into(), detail.file_version_id.into());
        map.insert("overrides".into(), detail.config_overrides.clone().into());
        let parameters = detail.parameters.as_deref();
        let parameters = parameters.and_then(|text| serde_json::from_str::<Value>(text).ok());
        map.insert("parameters".into(), parameters.into());
        map.insert("retries".into(), detail.retry_count.into());
        map.insert("infrastructure_retries".into(), detail.infra_count.into());
        map.insert(
            "incarnation".into(),
            detail.row.attempt.incarnation().into(),
        );
        let attempts: Vec<Value> = detail.attempts.iter().map(attempt_json).collect();
        map.insert("attempts".into(), attempts.into());
        let environment = detail.environment.as_ref();
        let environment = environment.map(|(hash, ready)| json!({"hash": hash, "ready_on": ready}));
        map.insert("environment".into(), environment.into());
        map.insert("artifact_hash".into(), detail.artifact_hash.clone().into());
        map.insert("log".into(), detail.log_tail.clone().into());
        map.insert("waiting_for".into(), detail.waiting_for.clone().into());
    }
    value
}

fn attempt_json(row: &AttemptRow) -> Value {
    json!({
        "attempt": row.attempt.ordinal(),
        "status": row.status,
        "cause": row.cause,
        "worker": row.worker_id,
        "host": row.hostname,
        "started_at": row.started,
        "ended_at": row.ended,
        "exit_code": row.exit_code,
        "signal": row.signal,
        "rss_max_bytes": row.rss_max_bytes,
        "error": row.error_message,
        "log": row.log_tail,
        "sandbox": row.sandbox,
    })
}

pub(super) fn job(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let (flags, positionals) = JOB.parse(arguments)?;
    let [id] = positionals.as_slice() else {
        return Err(usage_error("expected one job id"));
    };
    let id: i64 = id
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| usage_error(format!("{:?} is no job id", id.to_string_lossy())))?;
    let path = flags.location.required()?;
    let inspector = inspect(&path)?;
    let Some(detail) = inspector.job(id).map_err(failed_in(&path))? else {
        return Err(failed(format!(
            "there is no job {id} in {}",
            path.display()
        )));
    };
    if flags.format.json {
        return print(&format!("{}\n", detail_json(&detail)));
    }
    print(&describe(&detail))
}

fn describe(detail: &JobDetail) -> String {
    let row = &detail.row;
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            out.push_str(&format!(
                "{name:21}{}\n",
                value.replace('\n', &format!("\n{:21}", ""))
            ));
        }
    };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    line("job", &row.job_id.to_string());
    line("status", &row.status);
    line("waits for", &text(&detail.waiting_for));
    line("plugin", &one_line(&row.plugin_name));
    if let Some((hash, ready)) = &detail.environment {
        let on = match ready {
            0 => "ready on no connected worker".to_owned(),
            1 => "ready on 1 connected worker".to_owned(),
            count => format!("ready on {count} connected workers"),
        };
        let short = hash.get(..12).unwrap_or(hash);
        line("environment", &format!("{}, {on}", one_line(short)));
    }
    line("file", &one_line(&text(&row.file_path)));
    line("priority", &row.priority.to_string());
    line("attempt", &row.attempt.ordinal().to_string());
    line("worker", &one_line(&text(&row.worker_id)));
    line("claimed", &text(&row.claim_time));
    line("ended", &text(&row.end_time));
    line("overrides", &text(&detail.config_overrides));
    line("parameters", &one_line(&text(&detail.parameters)));
    line("next run", &text(&row.next_run));
    line("cause", &text(&row.cause));
    line("error", &text(&row.error_message));
    let receipt: serde_json::Value = row
        .receipt
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    for (name, value) in receipt
        .get("metrics")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        line(&one_line(name), &value.to_string());
    }
    for artifact in receipt
        .get("artifacts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let uri = artifact.get("uri").and_then(Value::as_str).unwrap_or("");
        line("output", &one_line(uri));
    }
    let truncated = receipt.get("metrics");
    let truncated = truncated.and_then(|metrics| metrics.get(ARTIFACTS_TRUNCATED)?.as_i64());
    if let Some(count) = truncated {
        let more = format!("and {count} more, for which the receipt had no room");
        line("output", &more);
    }
    let last = detail.attempts.last();
    let sandbox = last.and_then(|attempt| attempt.sandbox.as_deref());
    line("sandbox", &one_line(sandbox.unwrap_or_default()));
    line("log", &text(&detail.log_tail));
    if !detail.attempts.is_empty() {
        out.push('\n');
        out.push_str(&attempts_table(&detail.attempts));
    }
    out
}

fn attempts_table(attempts: &[AttemptRow]) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let time = |value: &Option<String>| {
        let value = value.as_deref().unwrap_or_default();
        value.get(..19).unwrap_or(value).to_owned()
    };
    let rows: Vec<Vec<String>> = attempts
        .iter()
        .map(|row| {
            let exit = match (row.signal, row.exit_code) {
                (Some(signal), _) => format!("signal {signal}"),
                (None, Some(code)) => format!("exit {code}"),
                (None, None) => String::new(),
            };
            let memory = row
                .rss_max_bytes
                .and_then(|bytes| u64::try_from(bytes).ok())
                .map_or(String::new(), bytes);
            vec![
                row.attempt.ordinal().to_string(),
                row.status.clone(),
                text(&row.cause),
                text(&row.worker_id),
                time(&row.started),
                time(&row.ended),
                exit,
                memory,
                first_line(&text(&row.error_message), 80),
            ]
        })
        .collect();
    let header = [
        "ATTEMPT", "STATUS", "CAUSE", "WORKER", "STARTED", "ENDED", "EXIT", "MEMORY", "NOTE",
    ];
    render(&header, &[true], &rows)
}

pub(super) fn workers(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let (flags, positionals) = WORKERS.parse(arguments)?;
    no_positionals(&positionals)?;
    let path = flags.location.required()?;
    let inspector = inspect(&path)?;
    let workers = inspector.workers().map_err(failed_in(&path))?;
    if flags.format.json {
        let rows: Vec<Value> = workers.iter().map(worker_json).collect();
        return print(&format!("{}\n", Value::from(rows)));
    }
    let now_ms = unix_ms();
    let lines: Vec<Vec<String>> = workers
        .iter()
        .map(|row| {
            let session = &row.session;
            let seen = format_time(row.last_seen_ms);
            vec![
                session.worker_id.clone(),
                row.status.clone(),
                session.hostname.clone(),
                session.slots.to_string(),
                first_line(&session.capabilities.join(","), 40),
                row.ready.len().to_string(),
                seen.get(..19).unwrap_or(&seen).to_owned(),
                first_line(&note(row, now_ms), NOTE_SHOWN_MAX),
            ]
        })
        .collect();
    let header = [
        "WORKER",
        "STATUS",
        "HOST",
        "SLOTS",
        "PLUGINS",
        "READY",
        "LAST SEEN",
        "NOTE",
    ];
    let right = [false, false, false, true, false, true];
    print(&render(&header, &right, &lines))
}

/// Limit of a note in characters. It is the last column, and the advice is at its end.
const NOTE_SHOWN_MAX: usize = 2000;

/// Why a worker takes no jobs, or which jobs it does not take.
fn note(row: &WorkerRow, now_ms: i64) -> String {
    let session = &row.session;
    let age = Duration::from_millis(
        now_ms
            .saturating_sub(row.last_seen_ms)
            .max(0)
            .unsigned_abs(),
    );
    let is_stale = row.status == "ONLINE" && age > limits::SEEN_AGE_MAX;
    let stale = is_stale.then(|| {
        let age = age.as_secs();
        format!(
            "not noted as seen for {age} s: its sentinel cannot write to the database, or hangs; \
             see its log"
        )
    });
    let environments = session.environments.iter();
    let environments = environments.map(|(hash, reason)| match hash.get(..8) {
        Some(short) => format!("environment {short}: {reason}"),
        None => format!("default environment: {reason}"),
    });
    let lines: Vec<String> = stale
        .into_iter()
        .chain(session.trouble.clone())
        .chain(environments)
        .collect();
    lines.join("; ")
}

fn worker_json(row: &WorkerRow) -> Value {
    let session = &row.session;
    json!({
        "id": session.worker_id,
        "status": row.status,
        "host": session.hostname,
        "pid": session.pid,
        "user": session.user_id,
        "slots": session.slots,
        "plugins": session.capabilities,
        "last_seen_at": format_time(row.last_seen_ms),
        "trouble": session.trouble,
        "environments": session.environments,
        "ready": row.ready.iter().map(|ready| json!({
            "environment": ready.env_hash,
            "interpreter": ready.interpreter_path,
            "cached": ready.cached,
            "at": ready.ready_at,
        })).collect::<Vec<Value>>(),
    })
}
