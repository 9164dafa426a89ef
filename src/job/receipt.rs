//! How a job's attempt ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Attempt, Content};

/// The metric of a receipt whose attempt was barred: the number up to which attempts of the job
/// are. Where the database knows of no attempt with that number, a copy of it has set the bar, or
/// it was restored from a backup.
pub const BARRED_BY: &str = "barred_by";
/// The metric of a receipt that has no room for all files: how many it leaves out.
pub const ARTIFACTS_TRUNCATED: &str = "artifacts_truncated";

/// The metric of a receipt whose attempt found output of another job of the same database in its
/// sink of mode `error`: that job.
const TAKEN_BY: &str = "taken_by";
/// The metric beside it: the number of the attempt whose output it is.
const TAKEN_BY_ATTEMPT: &str = "taken_by_attempt";

/// How an attempt ended.
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

/// Whose fault a failure is. It decides about retries.
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
    /// The worker was lost, or the lease ran out; or others killed the plugin process, as the
    /// kernel does when memory runs out. Retried.
    Lost,
    /// An operator: an abort, a configuration that cannot work. Final.
    Operator,
}

impl Cause {
    /// True when another attempt cannot end differently.
    pub fn is_final(self) -> bool {
        matches!(self, Cause::Plugin | Cause::Input | Cause::Operator)
    }

    /// The word on the wire and in the database.
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

    /// The cause of a word; none of an unknown one.
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

/// A cause of a later release reads as none, so that its receipt is still taken.
fn cause_or_none<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Cause>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.and_then(|word| Cause::parse(&word)))
}

/// How an attempt ended, as its worker reports it: the payload of CONCLUDE.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Published or not.
    pub status: JobStatus,
    /// Counts: `rows`, `size_bytes`, `batches`, `exit_code`, `signal`, durations in milliseconds.
    #[serde(default)]
    pub metrics: BTreeMap<String, i64>,
    /// One map a published file: `topic`, `uri`, and counts as text.
    #[serde(default)]
    pub artifacts: Vec<BTreeMap<String, String>>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// Whose fault the failure is; none from old workers.
    #[serde(
        default,
        deserialize_with = "cause_or_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub cause: Option<Cause>,
    /// The worker gives the job back unfinished, because it stops: no attempt is counted.
    #[serde(default, skip_serializing_if = "is_false")]
    pub returned: bool,
    /// The input changed while the job ran, which is the failure: another attempt may read it whole.
    #[serde(default, skip_serializing_if = "is_false")]
    pub input_changed: bool,
    /// With `input_changed`: what the input's content is now, where it is not that of the file version
    /// in DISPATCH. The job is to run over it, as another file version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Content>,
    /// The database of a sink was locked by others for as long as the attempt waited, which is the failure.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sink_locked: bool,
    /// With `returned`: the job ran when the worker was stopped. Jobs that stop their worker are
    /// found out by it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub was_running: bool,
    /// With the cause `lost`: other jobs ran in the worker, and may be the reason.
    #[serde(default, skip_serializing_if = "is_false")]
    pub beside_others: bool,
    /// The attempt's number, as DISPATCH had it; none from old workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,
    /// How the plugin process was held: the sandbox's mode, and what of it was missing; none where
    /// no process was started, and from old workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// The last lines that the plugin printed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_tail: Option<String>,
}

impl Receipt {
    /// The number to go on from when `attempt`, the last one, was barred; none when it was not, or
    /// the number cannot be one of this job.
    pub fn barred_by(&self, attempt: Attempt) -> Option<i64> {
        let by = *self.metrics.get(BARRED_BY)?;
        let barring = Attempt::new(attempt.job_id, by);
        let is_possible = by >= attempt.number
            && barring.incarnation() == attempt.incarnation()
            && barring.ordinal() < i64::from(u32::MAX);
        (self.status == JobStatus::Failed && is_possible).then_some(by)
    }

    /// The attempt of another job whose output is the reason of the failure.
    pub fn taken_by(&self) -> Option<Attempt> {
        let metric = |name| self.metrics.get(name).copied();
        let by = Attempt::new(metric(TAKEN_BY)?, metric(TAKEN_BY_ATTEMPT)?);
        let is_refused = self.status == JobStatus::Failed && self.cause == Some(Cause::Operator);
        (is_refused && !self.returned).then_some(by)
    }

    /// Notes which attempts were the reason of a failure: the one that barred this one, and the one
    /// whose output was there.
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

    /// A failure with its cause.
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
