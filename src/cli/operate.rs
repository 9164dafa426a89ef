//! `init`, `jobs`, `job`: what operators look at.

use std::ffi::OsString;
use std::path::PathBuf;

use serde_json::Value;

use super::args::{Command, Flag, Typed};
use super::table::{first_line, render, thousands};
use super::{Failure, failed, say};
use crate::store::{Inspector, JobDetail, JobFilter, JobRow, Open, Store, parse_location};

pub(super) const DATABASE_FLAG: Flag = Flag {
    long: "database",
    short: Some('d'),
    value: Some("DB"),
    help: "Path or sqlite:// URL",
};

const JSON_FLAG: Flag = Flag {
    long: "json",
    short: None,
    value: None,
    help: "One JSON value on stdout",
};

pub(super) const INIT: Command = Command {
    name: "casparian init",
    about: "Makes a database, or brings an existing one up to date",
    usage: "DB",
    flags: &[],
    notes: "A database of the old system is kept as it is and gets new columns, tables and\nindexes; the old programs go on working with it.",
};

pub(super) const JOBS: Command = Command {
    name: "casparian jobs",
    about: "Lists jobs, newest first",
    usage: "--database DB [OPTIONS]",
    flags: &[
        DATABASE_FLAG,
        Flag {
            long: "status",
            short: Some('s'),
            value: Some("STATUS"),
            help: "PENDING, QUEUED, RUNNING, COMPLETED, FAILED or SKIPPED",
        },
        Flag {
            long: "plugin",
            short: Some('p'),
            value: Some("NAME"),
            help: "Only this plugin's",
        },
        Flag {
            long: "limit",
            short: Some('n'),
            value: Some("N"),
            help: "The newest N (default 100)",
        },
        JSON_FLAG,
    ],
    notes: "",
};

pub(super) const JOB: Command = Command {
    name: "casparian job",
    about: "Shows everything about one job",
    usage: "ID --database DB [OPTIONS]",
    flags: &[DATABASE_FLAG, JSON_FLAG],
    notes: "",
};

const STATUSES: &[&str] = &[
    "PENDING",
    "QUEUED",
    "RUNNING",
    "COMPLETED",
    "FAILED",
    "SKIPPED",
];

pub(super) fn database(command: &Command, typed: &Typed) -> Result<PathBuf, Failure> {
    let text = command.required(typed, "database")?;
    Ok(parse_location(&text).map_err(|error| command.usage_error(error))?)
}

pub(super) fn init(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let typed = INIT.parse(arguments)?;
    let [text] = typed.positionals.as_slice() else {
        return Err(INIT.usage_error("expected one database").into());
    };
    let text = text
        .to_str()
        .ok_or_else(|| INIT.usage_error("DB is not UTF-8"))?;
    let path = parse_location(text).map_err(|error| INIT.usage_error(error))?;
    let was_there = path.exists();
    Store::open(&path, Open::Create).map_err(failed)?;
    let what = if was_there { "is up to date" } else { "made" };
    say(&format!("{} {what}\n", path.display()))
}

pub(super) fn jobs(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let typed = JOBS.parse(arguments)?;
    if let Some(word) = typed.positionals.first() {
        let message = format!("unexpected argument {:?}", word.to_string_lossy());
        return Err(JOBS.usage_error(message).into());
    }
    let path = database(&JOBS, &typed)?;
    let status = JOBS
        .text(&typed, "status")?
        .map(|status| status.to_uppercase());
    if let Some(status) = &status
        && !STATUSES.contains(&status.as_str())
    {
        return Err(JOBS
            .usage_error(format!(
                "--status {status}: expected one of {}",
                STATUSES.join(", ")
            ))
            .into());
    }
    let limit = JOBS.number(&typed, "limit", 1..=10_000_000)?.unwrap_or(100);
    let inspector = Inspector::open(&path).map_err(failed)?;
    let filter = JobFilter {
        status,
        plugin: JOBS.text(&typed, "plugin")?,
        limit: usize::try_from(limit).unwrap_or(usize::MAX),
    };
    let rows = inspector.jobs(&filter).map_err(failed)?;
    if typed.has("json") {
        let rows: Vec<_> = rows.iter().map(row_json).collect();
        return say(&format!("{}\n", serde_json::Value::from(rows)));
    }
    let mut lines = Vec::with_capacity(rows.len());
    for row in &rows {
        let note = match row.status.as_str() {
            "QUEUED" => match inspector.waiting_for(&row.plugin_name).map_err(failed)? {
                Some(reason) => reason,
                None => row.error_message.clone().unwrap_or_default(),
            },
            _ => row.error_message.clone().unwrap_or_default(),
        };
        lines.push(vec![
            row.job_id.to_string(),
            row.status.clone(),
            row.plugin_name.clone(),
            row.file_path.clone().unwrap_or_else(|| "?".to_owned()),
            metric(row, "rows").map_or(String::new(), thousands),
            row.attempt.to_string(),
            first_line(&note, 80),
        ]);
    }
    let header = ["ID", "STATUS", "PLUGIN", "FILE", "ROWS", "ATTEMPT", "NOTE"];
    let right = [true, false, false, false, true, true, false];
    say(&render(&header, &right, &lines))
}

fn metric(row: &JobRow, name: &str) -> Option<u64> {
    let receipt: serde_json::Value = serde_json::from_str(row.receipt.as_deref()?).ok()?;
    receipt.get("metrics")?.get(name)?.as_u64()
}

fn row_json(row: &JobRow) -> serde_json::Value {
    serde_json::json!({
        "id": row.job_id,
        "plugin": row.plugin_name,
        "status": row.status,
        "priority": row.priority,
        "file": row.file_path,
        "attempt": row.attempt,
        "worker": row.worker_id,
        "claimed_at": row.claim_time,
        "ended_at": row.end_time,
        "error": row.error_message,
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
        map.insert("retries".into(), detail.retry_count.into());
        map.insert("artifact_hash".into(), detail.artifact_hash.clone().into());
        map.insert("log".into(), detail.log_tail.clone().into());
        map.insert("waiting_for".into(), detail.waiting_for.clone().into());
    }
    value
}

pub(super) fn job(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let typed = JOB.parse(arguments)?;
    let [id] = typed.positionals.as_slice() else {
        return Err(JOB.usage_error("expected one job id").into());
    };
    let id: i64 = id
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| JOB.usage_error(format!("{:?} is no job id", id.to_string_lossy())))?;
    let path = database(&JOB, &typed)?;
    let inspector = Inspector::open(&path).map_err(failed)?;
    let Some(detail) = inspector.job(id).map_err(failed)? else {
        return Err(failed(format!(
            "there is no job {id} in {}",
            path.display()
        )));
    };
    if typed.has("json") {
        return say(&format!("{}\n", detail_json(&detail)));
    }
    say(&describe(&detail))
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
    line("plugin", &row.plugin_name);
    line("file", &text(&row.file_path));
    line("priority", &row.priority.to_string());
    line("attempt", &row.attempt.to_string());
    line("worker", &text(&row.worker_id));
    line("claimed", &text(&row.claim_time));
    line("ended", &text(&row.end_time));
    line("overrides", &text(&detail.config_overrides));
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
        line(name, &value.to_string());
    }
    for artifact in receipt
        .get("artifacts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        line(
            "output",
            artifact.get("uri").and_then(Value::as_str).unwrap_or(""),
        );
    }
    line("log", &text(&detail.log_tail));
    out
}
