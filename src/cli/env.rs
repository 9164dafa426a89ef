//! `casparian env`: lists and removes the environments of this user.

use std::ffi::OsString;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::args::{Command, flags, values};
use super::operate::JsonFlag;
use super::table::{bytes, render};
use super::{Failure, failed, print, usage_error};
use crate::plugin::cache::{Entry, evict, excess, list};
use crate::plugin::environment;
use crate::store::format_time;

flags! {
    /// The flags of `env`.
    pub(super) struct EnvFlags {
        /// prune: keep those used last, up to so many bytes, as 500M or
        /// 20G (default 0)
        keep: Option<u64> = "keep", "SIZE" => values::size;
        /// prune: list what would be removed, and remove nothing
        dry_run: bool = "dry-run";
        /// The format.
        format: JsonFlag;
    }
}

pub(super) const COMMAND: Command<EnvFlags> = Command {
    name: "casparian env",
    about: "Lists or removes Python environments of this user",
    usage: "list|prune [OPTIONS]",
    flags: EnvFlags::TABLE,
    notes: "list shows the environments in ~/.casparian_flow/venvs, those used last first. SIZE is what an\nenvironment has on the disk beyond those above it: a file that several share counts once. uv links\nfiles of environments to its own cache where it can; such a file is freed only when it is removed there\nas well (`uv cache prune`).\n\nprune removes those that no worker of this host uses. They are created again when a job needs them.",
};

pub(super) fn main(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let (flags, positionals) = COMMAND.parse(arguments)?;
    let [what] = positionals.as_slice() else {
        return Err(usage_error("expected list or prune"));
    };
    let keep = flags.keep;
    let is_dry = flags.dry_run;
    let home = environment::home().map_err(failed)?;
    let found = match what.to_str() {
        Some("list") if keep.is_some() || is_dry => {
            return Err(usage_error("--keep and --dry-run are options of prune"));
        }
        Some("list") => list(&home),
        Some("prune") if is_dry => excess(&list(&home), keep.unwrap_or(0)),
        Some("prune") => {
            evict(&home, keep.unwrap_or(0), &AtomicBool::new(false)).map_err(failed)?
        }
        _ => {
            let message = format!("{:?}: expected list or prune", what.to_string_lossy());
            return Err(usage_error(message));
        }
    };
    if flags.format.json {
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
