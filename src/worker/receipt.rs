//! Builds the receipt of an attempt.

use std::collections::BTreeMap;
use std::time::Duration;

use super::job::Run;
use super::meter::oom_kills;
use super::slot::Failure;
use crate::job::{Cause, JobStatus, Receipt, text};
use crate::limits;
use crate::reactor::BootTime;
use crate::sink::Artifact;

/// An artifact in the form in which receipts list it.
pub(super) fn described(artifact: &Artifact) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::from([
        ("topic".to_owned(), artifact.topic.clone()),
        ("uri".to_owned(), artifact.uri.clone()),
        ("rows".to_owned(), artifact.rows.to_string()),
        ("size_bytes".to_owned(), artifact.size_bytes.to_string()),
    ]);
    if let Some(hash) = &artifact.sha256 {
        fields.insert("sha256".to_owned(), hash.clone());
    }
    if let Some(columns) = &artifact.columns {
        fields.insert("columns".to_owned(), columns.clone());
    }
    fields
}

/// Rows and bytes of all artifacts together.
pub(super) fn totals(artifacts: &[Artifact]) -> BTreeMap<String, i64> {
    let sum = |count: fn(&Artifact) -> u64| {
        i64::try_from(artifacts.iter().map(count).sum::<u64>()).unwrap_or(i64::MAX)
    };
    BTreeMap::from([
        ("rows".to_owned(), sum(|artifact| artifact.rows)),
        ("size_bytes".to_owned(), sum(|artifact| artifact.size_bytes)),
    ])
}

impl Run {
    /// The receipt of the attempt.
    pub(super) fn conclude(&self, failure: Option<&Failure>, now: BootTime) -> Receipt {
        let (printed, summary) = self.log();
        let log = with_notes(&self.notes, printed);
        let mut receipt = Receipt {
            status: if failure.is_some() {
                JobStatus::Failed
            } else {
                JobStatus::Success
            },
            metrics: self.metrics(&summary, now),
            artifacts: self.artifacts.iter().map(described).collect(),
            error_message: failure.map(|failure| self.describe(failure)),
            cause: failure.map(|failure| failure.cause),
            returned: false,
            input_changed: failure.is_some_and(|failure| failure.input_changed),
            input: failure.and_then(|failure| failure.content.as_deref().cloned()),
            sink_locked: failure.is_some_and(|failure| failure.sink_locked),
            was_running: false,
            beside_others: false,
            attempt: self.assignment.attempt().map(|attempt| attempt.number),
            sandbox: self.sandbox.clone(),
            log_tail: (!log.is_empty()).then_some(log),
        };
        if let Some(failure) = failure {
            receipt.note_others(failure.barred_by, failure.taken_by);
        }
        receipt
    }

    fn metrics(&self, summary: &Summary, now: BootTime) -> BTreeMap<String, i64> {
        let ms = |from: Option<BootTime>, to: BootTime| {
            let span = from.map_or(Duration::ZERO, |from| to.saturating_duration_since(from));
            i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
        };
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let mut metrics = totals(&self.artifacts);
        let mut put = |name: &str, value: i64| metrics.insert(name.to_owned(), value);
        put("batches", count(self.frames));
        put("bridge_bytes", count(self.bytes));
        put("duration_ms", ms(Some(self.dispatched_at), now));
        if let Some(connected) = self.connected_at {
            put("start_ms", ms(self.started_at, connected));
            put("run_ms", ms(self.connected_at, now));
        }
        // The largest of the worker's samples, the fork server's report and the process's own report.
        let rss = self.rss_max_bytes.max(summary.rss_max_bytes);
        if rss > 0 {
            put("plugin_rss_max_bytes", count(rss));
            // The name of earlier releases.
            put("guest_rss_max_bytes", count(rss));
        }
        if let Some(exit) = self.slot.own_exit() {
            if let Some(code) = exit.code {
                put("exit_code", i64::from(code));
            }
            if let Some(signal) = exit.signal {
                put("signal", i64::from(signal));
            }
        }
        metrics
    }

    /// The failure's text with the last lines of stderr, unless it contains them.
    fn describe(&self, failure: &Failure) -> String {
        let mut text = failure.message.clone();
        if failure.cause == Cause::Lost {
            self.add_memory(&mut text);
        }
        if let Some(exit) = &failure.exit
            && exit != "exit code 1"
        {
            let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
            let rest = if rest.is_empty() {
                String::new()
            } else {
                format!("\n{rest}")
            };
            text = format!("{first}; its process ended with {exit}{rest}");
        }
        let stderr = self.stderr.text();
        let last: Vec<&str> = stderr.lines().rev().take(limits::TOOL_LINES_KEPT).collect();
        let is_included = last.first().is_some_and(|line| text.contains(line.trim()));
        if !last.is_empty() && !is_included {
            text.push_str("\nlast lines of stderr:");
            for line in last.iter().rev() {
                text.push('\n');
                text.push_str(line);
            }
        }
        text::cut(&mut text, limits::ERROR_TEXT_SIZE_MAX);
        text
    }

    /// Adds whether memory ran out on the machine, and how much the process had.
    fn add_memory(&self, text: &mut String) {
        if let (Some(before), Some(now)) = (self.oom_kills, oom_kills())
            && now > before
        {
            text.push_str("; memory ran out meanwhile on this machine or in a control group of it");
        }
        if self.rss_max_bytes > 0 {
            let mib = self.rss_max_bytes.div_ceil(1 << 20);
            text.push_str(&format!("; it had up to {mib} MiB"));
        }
    }

    /// The log, which is stdout (without the shim's summary) and stderr, and the summary.
    fn log(&self) -> (String, Summary) {
        let stdout = self.stdout.text();
        let trimmed = stdout.trim_end();
        let (rest, last) = trimmed.rsplit_once('\n').unwrap_or(("", trimmed));
        let summary = Summary::parse(last);
        let stdout = if summary.is_some() { rest } else { trimmed };
        let stderr = self.stderr.text();
        let stderr = stderr.trim_end();
        let log = match (stdout.is_empty(), stderr.is_empty()) {
            (_, true) => stdout.to_owned(),
            (true, false) => stderr.to_owned(),
            (false, false) => format!("{stdout}\n--- stderr ---\n{stderr}"),
        };
        (log, summary.unwrap_or_default())
    }
}

/// A log that begins with the notes of the job's writer. A long log is cut at its end.
fn with_notes(notes: &[String], printed: String) -> String {
    let mut lines: Vec<String> = Vec::new();
    for note in notes.iter().take(limits::OUTPUT_NOTES_MAX) {
        let mut line = format!("casparian: {note}");
        text::cut(&mut line, limits::OUTPUT_NOTE_SIZE_MAX);
        lines.push(line);
    }
    match notes.len().saturating_sub(limits::OUTPUT_NOTES_MAX) {
        0 => {}
        more => lines.push(format!("casparian: {more} more notes of this kind")),
    }
    if !printed.is_empty() {
        lines.push(printed);
    }
    lines.join("\n")
}

/// The last line that a shim prints to stdout. It comes from the plugin process, so it is used only where a
/// wrong value does no harm.
#[derive(Debug, Default)]
struct Summary {
    rss_max_bytes: u64,
}

impl Summary {
    fn parse(line: &str) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        value.get("status")?;
        let kib = value.get("rss_max_kib").and_then(serde_json::Value::as_u64);
        Some(Summary {
            rss_max_bytes: kib.unwrap_or(0).saturating_mul(1024),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_before_the_log_and_bounded() {
        let log = |notes: &[String], printed: &str| with_notes(notes, printed.to_owned());
        assert_eq!(log(&[], ""), "");
        assert_eq!(log(&[], "printed"), "printed");
        assert_eq!(log(&["note".to_owned()], ""), "casparian: note");
        assert_eq!(
            log(&["note".to_owned()], "printed"),
            "casparian: note\nprinted"
        );
        let notes = vec!["n".repeat(1 << 20); limits::OUTPUT_NOTES_MAX + 2];
        let many = log(&notes, "printed");
        assert!(many.ends_with("casparian: 2 more notes of this kind\nprinted"));
        assert!(many.len() < limits::LOG_TAIL_SIZE_MAX, "{}", many.len());
    }

    #[test]
    fn only_a_shims_line_is_a_summary() {
        let kib = |line| Summary::parse(line).map(|summary| summary.rss_max_bytes);
        assert_eq!(
            kib(r#"{"status": "SUCCESS", "rss_max_kib": 2}"#),
            Some(2048)
        );
        assert_eq!(kib(r#"{"status": "SUCCESS"}"#), Some(0));
        assert_eq!(kib(r#"{"x": 1}"#), None);
        assert_eq!(kib("status"), None);
    }
}
