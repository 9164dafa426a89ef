//! `casparian env`: lists and removes the environments of this user.

use std::ffi::OsString;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::args::{Command, Flag};
use super::table::{bytes, render};
use super::{Failure, failed, print};
use crate::plugin::cache::{Entry, evict, excess, list};
use crate::plugin::environment;
use crate::store::format_time;

pub(super) const COMMAND: Command = Command {
    name: "casparian env",
    about: "Lists or removes Python environments of this user",
    usage: "list|prune [OPTIONS]",
    flags: &[
        Flag {
            long: "keep",
            short: None,
            value: Some("SIZE"),
            help: "prune: keep those used last, up to so many bytes, as 500M or\n20G (default 0)",
        },
        Flag {
            long: "dry-run",
            short: None,
            value: None,
            help: "prune: list what would be removed, and remove nothing",
        },
        Flag {
            long: "json",
            short: None,
            value: None,
            help: "One JSON value on stdout",
        },
    ],
    notes: "list shows the environments in ~/.casparian_flow/venvs, those used last first. SIZE is what an\nenvironment has on the disk beyond those above it: a file that several share counts once. uv links\nfiles of environments to its own cache where it can; such a file is freed only when it is removed there\nas well (`uv cache prune`).\n\nprune removes those that no worker of this host uses. They are created again when a job needs them.",
};

pub(super) fn main(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let typed = COMMAND.parse(arguments)?;
    let [what] = typed.positionals.as_slice() else {
        return Err(COMMAND.usage_error("expected list or prune").into());
    };
    let keep = COMMAND.size(&typed, "keep")?;
    let is_dry = typed.has("dry-run");
    let home = environment::home().map_err(failed)?;
    let found = match what.to_str() {
        Some("list") if keep.is_some() || is_dry => {
            let message = "--keep and --dry-run are options of prune";
            return Err(COMMAND.usage_error(message).into());
        }
        Some("list") => list(&home),
        Some("prune") if is_dry => excess(&list(&home), keep.unwrap_or(0)),
        Some("prune") => {
            evict(&home, keep.unwrap_or(0), &AtomicBool::new(false)).map_err(failed)?
        }
        _ => {
            let message = format!("{:?}: expected list or prune", what.to_string_lossy());
            return Err(COMMAND.usage_error(message).into());
        }
    };
    if typed.has("json") {
        let rows: Vec<Value> = found.iter().map(row_json).collect();
        return print(&format!("{}\n", Value::from(rows)));
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|entry| {
            let used = used_at(entry);
            vec![
                entry.hash.get(..12).unwrap_or(&entry.hash).to_owned(),
                bytes(entry.size),
                used.get(..19).unwrap_or(&used).to_owned(),
                if entry.in_use { "in use" } else { "" }.to_owned(),
            ]
        })
        .collect();
    let header = ["ENVIRONMENT", "SIZE", "LAST USED", "NOTE"];
    print(&render(&header, &[false, true], &rows))
}

fn used_at(entry: &Entry) -> String {
    let since = entry.used_at.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default().as_millis();
    format_time(i64::try_from(since).unwrap_or(0))
}

fn row_json(entry: &Entry) -> Value {
    json!({
        "environment": entry.hash,
        "bytes": entry.size,
        "used_at": used_at(entry),
        "in_use": entry.in_use,
    })
}
