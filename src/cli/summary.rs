//! The summary of a `run`: results of its files, as text and as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::clean::path_text;
use super::content::Fingerprint;
use super::input::{Found, Input};
use super::table::{bytes, first_line, one_line, render, thousands};
use crate::job::{Mode, Sink};
use crate::sink::Receipted;

/// A file of the command line, with its result.
pub(super) struct Item {
    pub(super) path: PathBuf,
    pub(super) job_id: Option<i64>,
    /// The job's outputs before this run.
    pub(super) old_outputs: BTreeSet<String>,
    /// Hash of the content of which they are the output, if known.
    pub(super) old_hash: Option<String>,
    /// They were published when the file had another name.
    pub(super) old_is_renamed: bool,
    /// They were made with other code or parameters than those of the run.
    pub(super) old_is_made_otherwise: bool,
    /// Other jobs of the plugin for the file that have output, each with the hash of the file's content.
    pub(super) others: Vec<(i64, String)>,
    /// URIs of its output, by topic.
    pub(super) topics: BTreeMap<String, Vec<String>>,
    /// The job whose receipt names this output.
    pub(super) output_of: Option<i64>,
    /// Earlier outputs that were removed, because they were stale and the file fails.
    pub(super) removed: Vec<String>,
    /// Earlier outputs that are kept although the file fails or has not been run yet.
    pub(super) kept: Vec<String>,
    /// The outputs of this run are of other content than the file has now, or the kept ones are, or these are
    /// of other code or parameters than those of the run, or of the file's earlier name.
    pub(super) is_stale: bool,
    /// The file's path when its job ran before.
    pub(super) renamed_from: Option<PathBuf>,
    /// Its outdated output has been searched for.
    pub(super) is_cleared: bool,
    pub(super) outcome: Outcome,
    /// The content over which it is run. None if it could not be read.
    pub(super) source: Option<Source>,
}

impl Item {
    pub(super) fn new(path: PathBuf, outcome: Outcome, source: Option<Source>) -> Self {
        Item {
            path,
            job_id: None,
            old_outputs: BTreeSet::new(),
            old_hash: None,
            old_is_renamed: false,
            old_is_made_otherwise: false,
            others: Vec::new(),
            topics: BTreeMap::new(),
            output_of: None,
            removed: Vec::new(),
            kept: Vec::new(),
            is_stale: false,
            renamed_from: None,
            is_cleared: false,
            outcome,
            source,
        }
    }

    /// True while its job has not ended.
    pub(super) fn is_waiting(&self) -> bool {
        self.job_id.is_some() && matches!(self.outcome, Outcome::Waiting)
    }

    /// True if it has output, of this run or an earlier one.
    pub(super) fn has_output(&self) -> bool {
        matches!(self.outcome, Outcome::Done { .. } | Outcome::Skipped { .. })
    }

    /// True if it has output without rows.
    fn is_empty(&self) -> bool {
        matches!(
            self.outcome,
            Outcome::Done { rows: 0, .. } | Outcome::Skipped { rows: 0, .. }
        )
    }

    /// True if output of other jobs may be the reason why it was not run, or failed.
    pub(super) fn may_be_freed(&self) -> bool {
        matches!(
            self.outcome,
            Outcome::Skipped { .. } | Outcome::Failed { is_taken: true, .. }
        )
    }

    /// Removes files from its output that the output of another file has replaced.
    pub(super) fn forget_replaced(&mut self) {
        if let Outcome::Skipped { outputs, .. } | Outcome::Done { outputs, .. } = &mut self.outcome
        {
            outputs.retain(|uri| {
                let path = uri.strip_prefix("file://").map(Path::new);
                path.is_none_or(|path| path.symlink_metadata().is_ok())
            });
        }
    }
}

/// A file's state when its job was queued.
pub(super) struct Source {
    pub(super) input: Input,
    pub(super) print: Fingerprint,
    /// How often its job was queued again because the file had changed.
    pub(super) requeued: u32,
    /// The file version for which its job was queued.
    pub(super) version_id: i64,
}

#[derive(Clone)]
pub(super) enum Outcome {
    Waiting,
    Skipped {
        rows: u64,
        size_bytes: u64,
        outputs: Vec<String>,
    },
    Done {
        rows: u64,
        size_bytes: u64,
        outputs: Vec<String>,
        /// How the plugin process was restricted.
        sandbox: Option<String>,
    },
    Failed {
        reason: String,
        log: Option<String>,
        /// How the plugin process was restricted. None if there was no process.
        sandbox: Option<String>,
        /// The file fails in any case as it is now, independent of the machine.
        is_final: bool,
        /// Output of another job is in a sink of mode `error`.
        is_taken: bool,
    },
}

fn receipt_json(receipt: Option<&str>) -> Value {
    receipt
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// The artifacts of a receipt.
pub(super) fn receipted(receipt: Option<&str>) -> Vec<Receipted> {
    let receipt = receipt_json(receipt);
    let artifacts = receipt.get("artifacts").and_then(Value::as_array);
    let receipted = |artifact: &Value| {
        let text = |name| artifact.get(name).and_then(Value::as_str);
        let number = |name| text(name).and_then(|text| text.parse().ok());
        Some(Receipted {
            uri: text("uri")?.to_owned(),
            rows: number("rows").unwrap_or(0),
            size_bytes: number("size_bytes"),
        })
    };
    artifacts
        .into_iter()
        .flatten()
        .filter_map(receipted)
        .collect()
}

/// The URIs of a receipt's artifacts, by topic.
pub(super) fn topics(receipt: Option<&str>) -> BTreeMap<String, Vec<String>> {
    let receipt = receipt_json(receipt);
    let artifacts = receipt.get("artifacts").and_then(Value::as_array);
    let text = |artifact: &Value, name| Some(artifact.get(name)?.as_str()?.to_owned());
    by_topic(
        artifacts
            .into_iter()
            .flatten()
            .map(|artifact| (text(artifact, "topic"), text(artifact, "uri"))),
    )
}

/// Groups pairs of topic and URI by topic.
pub(super) fn by_topic(
    pairs: impl Iterator<Item = (Option<String>, Option<String>)>,
) -> BTreeMap<String, Vec<String>> {
    let mut topics: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (topic, uri) in pairs {
        if let Some(topic) = topic {
            topics.entry(topic).or_default().extend(uri);
        }
    }
    topics
}

pub(super) fn counts(receipt: Option<&str>) -> (u64, u64) {
    let receipt = receipt_json(receipt);
    let metric = |name: &str| {
        receipt
            .get("metrics")
            .and_then(|metrics| metrics.get(name)?.as_u64())
            .unwrap_or(0)
    };
    (metric("rows"), metric("size_bytes"))
}

/// Output of a file that does not exist any more.
#[derive(Debug)]
pub(super) struct MissingInput {
    pub(super) path: PathBuf,
    pub(super) job_id: i64,
    /// The listed folder has no entries at all.
    pub(super) may_be_unmounted: bool,
    /// URIs of the output that still exists.
    pub(super) outputs: Vec<String>,
    /// URIs of the output that was removed.
    pub(super) removed: Vec<String>,
}

/// A sink of mode `replace` for which several files have output.
pub(super) struct Replaced {
    topic: String,
    sink: String,
    files: usize,
}

fn replaced(items: &[Item], sinks: &[Sink]) -> Vec<Replaced> {
    let count = |sink: &Sink| {
        let ended = items.iter().filter(|item| item.has_output());
        ended
            .filter(|item| item.topics.contains_key(&sink.topic))
            .count()
    };
    let of_mode = sinks.iter().filter(|sink| sink.mode == Mode::Replace);
    let counted = of_mode.map(|sink| Replaced {
        topic: sink.topic.clone(),
        sink: sink.uri.clone(),
        files: count(sink),
    });
    counted.filter(|replaced| replaced.files > 1).collect()
}

/// Number of files without rows that are named.
const EMPTY_SHOWN: usize = 5;

pub(super) struct Summary {
    pub(super) done: u64,
    pub(super) skipped: u64,
    pub(super) failed: u64,
    pub(super) waiting: u64,
    /// Files that have output without rows.
    pub(super) empty: u64,
    pub(super) rows: u64,
    pub(super) size_bytes: u64,
    pub(super) seconds: f64,
    pub(super) replaced: Vec<Replaced>,
    missing: Vec<MissingInput>,
    /// Number of files of earlier runs that were moved to the layout of this run.
    moved: usize,
    /// Number of excluded names, by rule, and one line for each rule.
    ignored: BTreeMap<String, u64>,
    ignored_lines: Vec<String>,
}

/// Number of names in a list.
const NAMES_SHOWN: usize = 5;

/// The first of the names, and the number of the others.
fn names(all: &[String]) -> String {
    let shown = all.get(..NAMES_SHOWN).unwrap_or(all).join(", ");
    match all.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {} more", thousands(more as u64)),
    }
}

/// `1 file`, `2 files`.
fn files(count: usize) -> String {
    match count {
        1 => "1 file".to_owned(),
        count => format!("{} files", thousands(count as u64)),
    }
}

impl Summary {
    pub(super) fn new(
        items: &[Item],
        sinks: &[Sink],
        missing: Vec<MissingInput>,
        moved: usize,
        found: &Found,
        elapsed: Duration,
    ) -> Self {
        let mut summary = Summary {
            done: 0,
            skipped: 0,
            failed: 0,
            waiting: 0,
            empty: items.iter().filter(|item| item.is_empty()).count() as u64,
            rows: 0,
            size_bytes: 0,
            seconds: elapsed.as_secs_f64(),
            replaced: replaced(items, sinks),
            missing,
            moved,
            ignored: (found.ignored.iter())
                .map(|(rule, ignored)| (rule.clone(), ignored.count))
                .collect(),
            ignored_lines: found.ignored_lines().collect(),
        };
        for item in items {
            match &item.outcome {
                Outcome::Waiting => summary.waiting += 1,
                Outcome::Failed { .. } => summary.failed += 1,
                Outcome::Skipped {
                    rows, size_bytes, ..
                } => {
                    summary.skipped += 1;
                    summary.rows += rows;
                    summary.size_bytes += size_bytes;
                }
                Outcome::Done {
                    rows, size_bytes, ..
                } => {
                    summary.done += 1;
                    summary.rows += rows;
                    summary.size_bytes += size_bytes;
                }
            }
        }
        summary
    }

    /// The summary as text. `notes` has further lines.
    pub(super) fn text(&self, items: &[Item], output: &Path, notes: &str) -> String {
        let mut out = String::new();
        let failures: Vec<Vec<String>> = items
            .iter()
            .filter_map(|item| match &item.outcome {
                Outcome::Failed { reason, .. } => Some(vec![
                    path_text(&item.path).into_owned(),
                    first_line(reason, 160),
                ]),
                _ => None,
            })
            .collect();
        if !failures.is_empty() {
            out.push_str(&render(&["FAILED", "REASON"], &[false, false], &failures));
            out.push('\n');
            let removed = items.iter().filter(|item| !item.removed.is_empty()).count();
            let is_kept = |item: &&Item| {
                !item.kept.is_empty() && matches!(item.outcome, Outcome::Failed { .. })
            };
            let kept = items.iter().filter(is_kept).count();
            for (count, what) in [(removed, "was removed"), (kept, "was kept")] {
                let files = match count {
                    0 => continue,
                    1 => "1 failed file".to_owned(),
                    count => format!("{} failed files", thousands(count as u64)),
                };
                out.push_str(&format!("The earlier output of {files} {what}.\n"));
            }
            if removed + kept > 0 {
                out.push('\n');
            }
        }
        let mut header = vec!["FILES", "DONE", "SKIPPED", "FAILED"];
        let mut row = vec![
            thousands(items.len() as u64),
            thousands(self.done),
            thousands(self.skipped),
            thousands(self.failed),
        ];
        if self.waiting > 0 {
            header.push("WAITING");
            row.push(thousands(self.waiting));
        }
        header.extend(["ROWS", "BYTES", "SECONDS"]);
        row.extend([
            thousands(self.rows),
            bytes(self.size_bytes),
            format!("{:.2}", self.seconds),
        ]);
        out.push_str(&render(&header, &[true; 8], &[row]));
        out.push_str(&self.empty_text(items));
        out.push_str(notes);
        for Replaced { topic, sink, files } in &self.replaced {
            let files = thousands(*files as u64);
            let (topic, sink) = (one_line(topic), one_line(sink));
            out.push_str(&format!(
                "Topic {topic} goes to {sink} by mode replace: of {files} files only the output of \
                 the one that was published last is kept.\n"
            ));
        }
        self.add_notes(items, &mut out);
        let output = one_line(&output.display().to_string());
        out.push_str(&format!("output: {output}\n"));
        out
    }

    /// Adds notes on stale, renamed, removed, moved and ignored files.
    fn add_notes(&self, items: &[Item], out: &mut String) {
        let text = |path: &Path| path_text(path).into_owned();
        let stale = items.iter().filter(|item| item.is_stale);
        let stale: Vec<String> = stale.map(|item| text(&item.path)).collect();
        if !stale.is_empty() {
            let (count, names) = (files(stale.len()), names(&stale));
            out.push_str(&format!(
                "Stale: the output of {count} is of other content, code or parameters, or of an \
                 earlier name, until a run over the file succeeds: {names}\n"
            ));
        }
        let renamed = items.iter().filter_map(|item| {
            let before = item.renamed_from.as_deref()?;
            Some(format!("{} (was {})", text(&item.path), text(before)))
        });
        let renamed: Vec<String> = renamed.collect();
        if !renamed.is_empty() {
            let (count, names) = (files(renamed.len()), names(&renamed));
            out.push_str(&format!(
                "Renamed: {count} took the output along: {names}\n"
            ));
        }
        let is_pruned = |missing: &MissingInput| missing.outputs.is_empty();
        for (what, is_it) in [
            (
                "was removed (--prune)",
                &is_pruned as &dyn Fn(&MissingInput) -> bool,
            ),
            ("stays (--prune removes it)", &|missing| {
                !is_pruned(missing) && !missing.may_be_unmounted
            }),
            (
                "stays, since nothing at all is in the folder, whose storage may not be mounted \
                 (--prune removes it once something is)",
                &|missing| !is_pruned(missing) && missing.may_be_unmounted,
            ),
        ] {
            let missing = self.missing.iter().filter(|missing| is_it(missing));
            let mut missing: Vec<String> = missing.map(|missing| text(&missing.path)).collect();
            missing.dedup();
            if !missing.is_empty() {
                let (count, names) = (files(missing.len()), names(&missing));
                out.push_str(&format!("Missing: the output of {count} {what}: {names}\n"));
            }
        }
        if self.moved > 0 {
            let count = files(self.moved);
            out.push_str(&format!(
                "Moved: {count} of earlier runs, to where this layout has them (--layout)\n"
            ));
        }
        for line in &self.ignored_lines {
            out.push_str(&format!("Ignored: {}\n", one_line(line)));
        }
    }

    fn empty_text(&self, items: &[Item]) -> String {
        let empty = items.iter().filter(|item| item.is_empty());
        let names = empty
            .take(EMPTY_SHOWN)
            .map(|item| path_text(&item.path).into_owned());
        let names = names.collect::<Vec<_>>().join(", ");
        let shown = if self.empty > EMPTY_SHOWN as u64 {
            ", …"
        } else {
            ""
        };
        match self.empty {
            0 => String::new(),
            1 => format!("1 file is done with 0 rows: {names}\n"),
            count => format!(
                "{} files are done with 0 rows: {names}{shown}\n",
                thousands(count)
            ),
        }
    }

    pub(super) fn json(&self, plugin: &str, output: &Path, items: &[Item]) -> serde_json::Value {
        let files: Vec<serde_json::Value> = items.iter().map(item_json).collect();
        let mut value = serde_json::json!({
            "plugin": plugin,
            "output": output.to_string_lossy(),
            "files": files,
            "totals": {
                "files": items.len(),
                "done": self.done,
                "skipped": self.skipped,
                "failed": self.failed,
                "waiting": self.waiting,
                "empty": self.empty,
                "rows": self.rows,
                "size_bytes": self.size_bytes,
                "seconds": self.seconds,
                "stale": items.iter().filter(|item| item.is_stale).count(),
                "renamed": items.iter().filter(|item| item.renamed_from.is_some()).count(),
                "gone": self.missing.len(),
                "ignored": self.ignored.values().sum::<u64>(),
                "moved": self.moved,
            },
            "gone": self.missing.iter().map(missing_json).collect::<Vec<_>>(),
            "ignored": self.ignored,
        });
        let replaced = self.replaced.iter().map(|replaced| {
            let Replaced { topic, sink, files } = replaced;
            serde_json::json!({"topic": topic, "sink": sink, "files": files})
        });
        let replaced: Vec<serde_json::Value> = replaced.collect();
        if let Some(value) = value.as_object_mut().filter(|_| !replaced.is_empty()) {
            value.insert("replaced".to_owned(), replaced.into());
        }
        value
    }
}

fn missing_json(missing: &MissingInput) -> serde_json::Value {
    serde_json::json!({
        "file": path_text(&missing.path),
        "job": missing.job_id,
        "outputs": missing.outputs,
        "removed": missing.removed,
    })
}

fn item_json(item: &Item) -> serde_json::Value {
    let mut value = serde_json::json!({
        "file": path_text(&item.path),
        "job": item.job_id,
    });
    let fields = match &item.outcome {
        Outcome::Waiting => serde_json::json!({"status": "WAITING"}),
        Outcome::Skipped {
            rows,
            size_bytes,
            outputs,
        } => serde_json::json!({
            "status": "SKIPPED", "rows": rows, "size_bytes": size_bytes, "outputs": outputs,
        }),
        Outcome::Done {
            rows,
            size_bytes,
            outputs,
            sandbox,
        } => serde_json::json!({
            "status": "DONE", "rows": rows, "size_bytes": size_bytes, "outputs": outputs,
            "sandbox": sandbox,
        }),
        Outcome::Failed {
            reason,
            log,
            sandbox,
            ..
        } => serde_json::json!({
            "status": "FAILED", "error": reason, "log": log, "sandbox": sandbox,
        }),
    };
    if let (Some(value), Some(fields)) = (value.as_object_mut(), fields.as_object()) {
        value.extend(fields.clone());
    }
    if let Some(value) = value.as_object_mut().filter(|_| !item.removed.is_empty()) {
        value.insert("removed".to_owned(), item.removed.clone().into());
    }
    if let Some(value) = value.as_object_mut().filter(|_| !item.kept.is_empty()) {
        value.insert("kept".to_owned(), item.kept.clone().into());
    }
    let shows_stale = item.is_stale || !item.kept.is_empty();
    if let Some(value) = value.as_object_mut().filter(|_| shows_stale) {
        value.insert("stale".to_owned(), item.is_stale.into());
    }
    if let (Some(value), Some(before)) = (value.as_object_mut(), &item.renamed_from) {
        value.insert("renamed_from".to_owned(), path_text(before).into());
    }
    value
}
