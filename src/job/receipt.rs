//! The report on an ended attempt.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Attempt, Content};

/// The metric of a barred attempt's receipt: the number of the bar, up to which attempts of the job
/// are barred. If the database has no attempt with that number, a copy of the database has set the
/// bar, or the database was restored from a backup.
pub const BARRED_BY: &str = "barred_by";
/// The metric of a receipt that cannot contain all files: the number of omitted files.
pub const ARTIFACTS_TRUNCATED: &str = "artifacts_truncated";

/// The metric of a receipt whose attempt found output of another job of the same database in its
/// sink of mode `error`: the ID of that job.
const TAKEN_BY: &str = "taken_by";
/// A further metric of such a receipt: the number of the attempt to which that output belongs.
const TAKEN_BY_ATTEMPT: &str = "taken_by_attempt";

/// Whether an attempt has published its output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobStatus {
    /// All output is published.
    #[serde(rename = "SUCCESS")]
    Success,
    /// No output of the attempt is visible.
    #[default]
    #[serde(rename = "FAILED")]
    Failed,
}

/// The cause of a failure. It determines whether the job is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The plugin: an exception, an exit, a limit, output that cannot be stored. Final.
    Plugin,
    /// The input: it is missing or cannot be read. Final.
    Input,
    /// The environment could not be created or started. Retried.
    Environment,
    /// The worker: its disk, folders, memory, processes. Retried.
    Worker,
    /// The worker was lost, or the lease ended; or the plugin process was killed from outside, for
    /// example by the kernel when memory ran out. Retried.
    Lost,
    /// An operator: an abort, a configuration that cannot work. Final.
    Operator,
}

impl Cause {
    /// True if the job is not retried, because another attempt would fail in the same way.
    pub fn is_final(self) -> bool {
        matches!(self, Cause::Plugin | Cause::Input | Cause::Operator)
    }

    /// The name in messages and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Plugin => "plugin",
            Cause::Input => "input",
            Cause::Environment => "environment",
            Cause::Worker => "worker",
            Cause::Lost => "lost",
            Cause::Operator => "operator",
        }
    }

    /// Parses a cause's name; `None` if it is unknown.
    pub fn parse(word: &str) -> Option<Self> {
        [
            Cause::Plugin,
            Cause::Input,
            Cause::Environment,
            Cause::Worker,
            Cause::Lost,
            Cause::Operator,
        ]
        .into_iter()
        .find(|cause| cause.as_str() == word)
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Reads an unknown cause as `None`, so that receipts of later releases are accepted.
fn cause_or_none<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Cause>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.and_then(|word| Cause::parse(&word)))
}

/// How an attempt ended, as its worker reports it: the payload of CONCLUDE.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Whether the output is published.
    pub status: JobStatus,
    /// Counts: `rows`, `size_bytes`, `batches`, `exit_code`, `signal`, durations in milliseconds.
    #[serde(default)]
    pub metrics: BTreeMap<String, i64>,
    /// One map for each published file or table: `topic`, `uri`, and counts as text.
    #[serde(default)]
    pub artifacts: Vec<BTreeMap<String, String>>,
    /// Why the attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// The cause of the failure; `None` from old workers.
    #[serde(
        default,
        deserialize_with = "cause_or_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub cause: Option<Cause>,
    /// The worker returns the job unfinished, because the worker is stopping. The attempt does not
    /// count.
    #[serde(default, skip_serializing_if = "is_false")]
    pub returned: bool,
    /// The attempt failed because the input changed while it ran. Another attempt may read it
    /// completely.
    #[serde(default, skip_serializing_if = "is_false")]
    pub input_changed: bool,
    /// With `input_changed`: the input's present content, if it differs from the file version in
    /// DISPATCH. The job must run over it as another file version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Content>,
    /// The attempt failed because the database of a sink was locked by another process for as long
    /// as the attempt waited.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sink_locked: bool,
    /// With `returned`: the job was running when the worker was stopped. It serves to find jobs
    /// that cause their workers to stop.
    #[serde(default, skip_serializing_if = "is_false")]
    pub was_running: bool,
    /// With the cause `lost`: other jobs ran in the worker and may be the reason.
    #[serde(default, skip_serializing_if = "is_false")]
    pub beside_others: bool,
    /// The attempt's number in DISPATCH; `None` from old workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,
    /// How the plugin process was restricted: the sandbox's mode, and the parts of it that were not
    /// available. `None` if no process was started, and from old workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The last lines that the plugin printed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_tail: Option<String>,
}

impl Receipt {
    /// The receipt of an attempt whose worker has sent one that cannot be read.
    pub fn unreadable(error: &impl std::fmt::Display) -> Receipt {
        Receipt {
            status: JobStatus::Failed,
            error_message: Some(format!("its worker's receipt cannot be read: {error}")),
            cause: Some(Cause::Worker),
            ..Receipt::default()
        }
    }

    /// If `attempt`, the last one of its job, was barred: the number of the bar, above which
    /// numbering must continue. `None` if it was not barred or the number is not possible for this
    /// job.
    pub fn barred_by(&self, attempt: Attempt) -> Option<i64> {
        let by = *self.metrics.get(BARRED_BY)?;
        let barring = Attempt::new(attempt.job_id, by);
        let is_possible = by >= attempt.number
            && barring.incarnation() == attempt.incarnation()
            && barring.ordinal() < i64::from(u32::MAX);
        (self.status == JobStatus::Failed && is_possible).then_some(by)
    }

    /// The attempt of another job whose output caused the failure.
    pub fn taken_by(&self) -> Option<Attempt> {
        let metric = |name| self.metrics.get(name).copied();
        let by = Attempt::new(metric(TAKEN_BY)?, metric(TAKEN_BY_ATTEMPT)?);
        let is_refused = self.status == JobStatus::Failed && self.cause == Some(Cause::Operator);
        (is_refused && !self.returned).then_some(by)
    }

    /// Adds metrics about the attempts that caused a failure: the one whose bar was found, and the
    /// one whose output was found.
    pub fn note_others(&mut self, barred_by: Option<i64>, taken_by: Option<Attempt>) {
        let mut put = |name: &str, value| self.metrics.insert(name.to_owned(), value);
        if let Some(by) = barred_by {
            put(BARRED_BY, by);
        }
        if let Some(by) = taken_by {
            put(TAKEN_BY, by.job_id);
            put(TAKEN_BY_ATTEMPT, by.number);
        }
    }

    /// A receipt of a failure.
    pub fn failed(attempt: Attempt, cause: Cause, message: impl Into<String>) -> Self {
        Receipt {
            status: JobStatus::Failed,
            error_message: Some(message.into()),
            cause: Some(cause),
            attempt: attempt.is_numbered().then_some(attempt.number),
            ..Receipt::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_of_other_releases_are_read() {
        let old = r#"{"status":"FAILED","error_message":null,"cause":null}"#;
        let receipt: Receipt = serde_json::from_str(old).unwrap();
        assert_eq!((receipt.cause, receipt.returned), (None, false));
        let newer = r#"{"status":"FAILED","cause":"weather","returned":true,"more":1}"#;
        let receipt: Receipt = serde_json::from_str(newer).unwrap();
        assert_eq!((receipt.cause, receipt.returned), (None, true));
        let failed = Receipt::failed(Attempt::new(1, 2), Cause::Environment, "no uv");
        let text = serde_json::to_string(&failed).unwrap();
        assert!(text.contains(r#""cause":"environment""#), "{text}");
        assert_eq!(serde_json::from_str::<Receipt>(&text).unwrap(), failed);
    }
}
