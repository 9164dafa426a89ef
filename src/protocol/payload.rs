//! The JSON payloads, one type for each opcode.
//!
//! Optional fields without a value are omitted when written. `null` is read like a missing field.
//! Unknown fields are ignored.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Error, HEADER_SIZE, Header, OpCode, View};
use crate::job::{
    Attempt, Content, History, Job, Lease, Parameters, Plugin, Receipt, Settlement, Sink, SinkError,
};
use crate::limits;

/// IDENTIFY.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identify<'a> {
    /// Names of the plugins that the worker can run; `*` = any.
    pub capabilities: Vec<String>,
    /// The worker's ID. If absent, it is the routing ID.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<Cow<'a, str>>,
    /// Number of slots; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Its host's name.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Cow<'a, str>>,
    /// Its process ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// All attempts that the worker has, including those with an unacknowledged receipt. Absent
    /// from old workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Vec<Attempt>>,
    /// A random text of the process, which distinguishes two processes with the same worker ID. A
    /// worker that sends it requests leases and acknowledgements of receipts.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Cow<'a, str>>,
    /// Number of this request; see [`Heartbeat::sequence`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The worker is stopping and takes no further jobs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub draining: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// One sink of a DISPATCH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkConfig {
    /// The topic whose batches are written to it.
    pub topic: String,
    /// `parquet://…` or `sqlite://…`.
    pub uri: String,
    /// `append`, `replace` or `error`.
    #[serde(default = "mode_default", deserialize_with = "mode_or_null")]
    pub mode: String,
    /// JSON schema text, passed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_def: Option<String>,
    /// No sink is configured for the topic; `uri` is the default.
    #[serde(default, skip_serializing_if = "is_false")]
    pub default: bool,
}

impl SinkConfig {
    /// Parses the sink's texts.
    pub fn parse(&self) -> Result<Sink, SinkError> {
        let mut sink = Sink::parse(&self.topic, &self.uri, &self.mode)?;
        sink.schema_def.clone_from(&self.schema_def);
        sink.is_default = self.default;
        Ok(sink)
    }
}

impl From<&Sink> for SinkConfig {
    fn from(sink: &Sink) -> Self {
        SinkConfig {
            topic: sink.topic.clone(),
            uri: sink.uri.clone(),
            mode: sink.mode.as_str().to_owned(),
            schema_def: sink.schema_def.clone(),
            default: sink.is_default,
        }
    }
}

fn mode_default() -> String {
    "append".to_owned()
}

fn mode_or_null<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(from)?.unwrap_or_else(mode_default))
}

/// DISPATCH.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispatch<'a> {
    /// The plugin's name.
    #[serde(borrow)]
    pub plugin_name: Cow<'a, str>,
    /// The input file.
    #[serde(borrow)]
    pub file_path: Cow<'a, str>,
    /// The sinks of its topics.
    pub sinks: Vec<SinkConfig>,
    /// ID of the input's file version; a column of every output row.
    pub file_version_id: i64,
    /// SHA-256 hex of the lockfile; empty = the default environment.
    #[serde(borrow)]
    pub env_hash: Cow<'a, str>,
    /// The plugin's source.
    #[serde(borrow)]
    pub source_code: Cow<'a, str>,
    /// SHA-256 hex of source and lockfile.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub artifact_hash: Option<Cow<'a, str>>,
    /// Number of the attempt. The receipt repeats it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,
    /// Length of the lease: how long the worker may publish the attempt without a further answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// The number of the request ([`Heartbeat::sequence`]). The lease counts from when that request
    /// was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_of: Option<u64>,
    /// UUID of the database, 32 hex digits.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub database: Option<Cow<'a, str>>,
    /// URIs of the files and tables in earlier receipts of the job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub previous: Vec<String>,
    /// The earlier attempts of the job, and the key of this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
    /// The input's content, according to the file version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Content>,
    /// The parameters of the plugin; old workers ignore them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Parameters>,
}

/// The part of DISPATCH that is the same for all jobs of a plugin version, as JSON fields.
#[derive(Clone, Debug)]
pub struct DispatchPart(String);

impl DispatchPart {
    /// Serializes the fields of a plugin version.
    pub fn new(plugin: &Plugin) -> Self {
        #[derive(Serialize)]
        struct Fields<'a> {
            plugin_name: &'a str,
            env_hash: &'a str,
            source_code: &'a str,
            artifact_hash: &'a str,
        }
        let fields = Fields {
            plugin_name: &plugin.name,
            env_hash: &plugin.env_hash,
            source_code: &plugin.source_code,
            artifact_hash: &plugin.artifact_hash,
        };
        // Serializing strings does not fail.
        let json = serde_json::to_string(&fields).unwrap_or_default();
        DispatchPart(json.trim_end_matches('}').to_owned())
    }

    /// The complete payload of a job's DISPATCH.
    pub fn with_job(&self, job: &Job, lease: Option<&Lease>) -> Vec<u8> {
        #[derive(Serialize)]
        struct Fields<'a> {
            file_path: &'a str,
            sinks: Vec<SinkConfig>,
            file_version_id: i64,
            attempt: i64,
            #[serde(skip_serializing_if = "Option::is_none")]
            lease_ms: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            lease_of: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            database: Option<&'a str>,
            #[serde(skip_serializing_if = "<[String]>::is_empty")]
            previous: &'a [String],
            history: &'a History,
            #[serde(skip_serializing_if = "Option::is_none")]
            input: Option<&'a Content>,
            #[serde(skip_serializing_if = "Parameters::is_empty")]
            parameters: &'a Parameters,
        }
        let fields = Fields {
            file_path: &job.file_path,
            sinks: job.sinks.iter().map(Into::into).collect(),
            file_version_id: job.file_version_id,
            attempt: job.attempt.number,
            lease_ms: lease.map(|lease| u64::try_from(lease.bound.as_millis()).unwrap_or(u64::MAX)),
            lease_of: lease.map(|lease| lease.request),
            database: job.database.as_deref(),
            previous: &job.previous,
            history: &job.history,
            input: job.content.as_ref(),
            parameters: &job.parameters,
        };
        let own = serde_json::to_vec(&fields).unwrap_or_default();
        let mut json = Vec::with_capacity(self.0.len() + own.len());
        json.extend_from_slice(self.0.as_bytes());
        json.push(b',');
        json.extend_from_slice(own.get(1..).unwrap_or(b"}"));
        json
    }
}

/// Whether a worker runs jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeartbeatStatus {
    /// The worker runs no job.
    #[default]
    #[serde(rename = "IDLE")]
    Idle,
    /// The worker runs at least one job.
    #[serde(rename = "BUSY")]
    Busy,
}

/// HEARTBEAT. A worker sends it as a request. If it has a [`Heartbeat::sequence`], the sentinel
/// answers with a HEARTBEAT that has an [`Answer`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Idle or busy.
    pub status: HeartbeatStatus,
    /// The job that the worker runs, or one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_job_id: Option<i64>,
    /// All attempts that the worker has, as in IDENTIFY. Absent from old workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Vec<Attempt>>,
    /// Number of this request. It increases within a worker's process. Leases count from when the
    /// request was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The last request whose answer was received on this connection. So everything that the
    /// sentinel sent before that answer was received, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<u64>,
    /// Attempts that are ready to publish into sinks of mode `replace` or `error`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<PublishRequest>,
    /// Attempts whose environment is being created. They do not occupy a slot yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Attempt>,
    /// The worker is stopping and takes no further jobs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub draining: bool,
    /// Why the worker takes no jobs at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Number of jobs that the worker takes in addition to those in `running`; absent = as many as
    /// it has free slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes: Option<u32>,
    /// Environments whose jobs fail on the worker at present, each with the reason. The worker
    /// takes no jobs of these environments. Key: the lockfile's hash, as in DISPATCH.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environments: BTreeMap<String, String>,
    /// The sentinel's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
}

/// An attempt that waits to publish into sinks into which only one attempt at a time may publish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishRequest {
    /// The attempt.
    #[serde(flatten)]
    pub attempt: Attempt,
    /// The sinks' URIs.
    pub exclusive: Vec<String>,
}

/// The sentinel's answer to a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The request's number.
    pub sequence: u64,
    /// Length of the leases of all attempts in `leases`, counted from when the request was sent.
    pub lease_ms: u64,
    /// Attempts of the worker whose lease is renewed.
    #[serde(default)]
    pub leases: Vec<Attempt>,
    /// Attempts whose receipts are stored in the database or are not needed. The worker stops
    /// sending them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acknowledged: Vec<Attempt>,
    /// Attempts that may publish into the exclusive sinks that they requested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Attempt>,
    /// Attempts of other jobs that were permitted to publish into those sinks and whose end was not
    /// reported. They must be barred on the storage first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bar: Vec<Attempt>,
    /// Attempts that are not assigned to the worker (any more). It must stop them and drop their
    /// receipts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub abort: Vec<Attempt>,
    /// Settlements to be done by the worker. It answers each with a receipt for the settlement's
    /// attempt: SUCCESS when done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settle: Vec<Settlement>,
}

/// ERR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorMessage<'a> {
    /// The error message.
    #[serde(borrow)]
    pub message: Cow<'a, str>,
    /// The Python traceback, if any.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub traceback: Option<Cow<'a, str>>,
    /// The sentinel refuses this worker. The worker must not reconnect with the same configuration.
    #[serde(default, skip_serializing_if = "is_false")]
    pub refused: bool,
    /// If the error concerns an environment that the worker cannot provide: the hash of its
    /// lockfile.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub env_hash: Option<Cow<'a, str>>,
}

/// PREPARE_ENV.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrepareEnv<'a> {
    /// SHA-256 hex of the lockfile.
    #[serde(borrow)]
    pub env_hash: Cow<'a, str>,
    /// The lockfile.
    #[serde(borrow)]
    pub lockfile_content: Cow<'a, str>,
    /// The interpreter's version, e.g. `3.11`.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub python_version: Option<Cow<'a, str>>,
}

/// ENV_READY.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvReady<'a> {
    /// SHA-256 hex of the lockfile.
    #[serde(borrow)]
    pub env_hash: Cow<'a, str>,
    /// Path of its `bin/python`.
    #[serde(borrow)]
    pub interpreter_path: Cow<'a, str>,
    /// The environment existed already.
    #[serde(default)]
    pub cached: bool,
}

/// DEPLOY.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deploy<'a> {
    /// The plugin's name.
    #[serde(borrow)]
    pub plugin_name: Cow<'a, str>,
    /// Its version.
    #[serde(borrow)]
    pub version: Cow<'a, str>,
    /// Its source.
    #[serde(borrow)]
    pub source_code: Cow<'a, str>,
    /// Its lockfile.
    #[serde(borrow)]
    pub lockfile_content: Cow<'a, str>,
    /// SHA-256 hex of the lockfile.
    #[serde(borrow)]
    pub env_hash: Cow<'a, str>,
    /// SHA-256 hex of source and lockfile.
    #[serde(borrow)]
    pub artifact_hash: Cow<'a, str>,
    /// Signature over the artifact hash.
    #[serde(borrow)]
    pub signature: Cow<'a, str>,
    /// Name of the publisher.
    #[serde(borrow)]
    pub publisher_name: Cow<'a, str>,
    /// Mail address of the publisher.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub publisher_email: Option<Cow<'a, str>>,
    /// Object ID of the publisher in the Azure directory.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub azure_oid: Option<Cow<'a, str>>,
    /// Requirements on the host.
    #[serde(
        default,
        deserialize_with = "few",
        skip_serializing_if = "Option::is_none"
    )]
    pub system_requirements: Option<Vec<String>>,
}

/// Reads null or a list of at most `SYSTEM_REQUIREMENTS_MAX` texts. A long list of short texts
/// would need many times the memory of its JSON.
fn few<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    struct Few(Vec<String>);
    impl<'de> Deserialize<'de> for Few {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            from.deserialize_seq(FewVisitor).map(Few)
        }
    }
    struct FewVisitor;
    impl<'de> serde::de::Visitor<'de> for FewVisitor {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "at most {} texts", limits::SYSTEM_REQUIREMENTS_MAX)
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut seq: A,
        ) -> Result<Vec<String>, A::Error> {
            let mut texts = Vec::new();
            while let Some(text) = seq.next_element()? {
                if texts.len() == limits::SYSTEM_REQUIREMENTS_MAX {
                    return Err(serde::de::Error::invalid_length(texts.len() + 1, &self));
                }
                texts.push(text);
            }
            Ok(texts)
        }
    }
    Ok(Option::<Few>::deserialize(from)?.map(|few| few.0))
}

/// Removes the quoted text from a parser's error: it may be a plugin's source, and these errors are
/// logged.
fn without_values(reason: &str) -> String {
    let quotes = reason.find('"').zip(reason.rfind('"'));
    let parts = quotes.and_then(|(from, to)| reason.get(..from).zip(reason.get(to + 1..)));
    match parts {
        Some((before, after)) => format!("{before}\"…\"{after}"),
        None => reason.to_owned(),
    }
}

/// Any payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// UNKNOWN; its payload is ignored.
    Unknown,
    /// IDENTIFY.
    Identify(Identify<'a>),
    /// DISPATCH.
    Dispatch(Box<Dispatch<'a>>),
    /// ABORT.
    Abort,
    /// HEARTBEAT.
    Heartbeat(Heartbeat),
    /// CONCLUDE.
    Conclude(Receipt),
    /// ERR.
    Err(ErrorMessage<'a>),
    /// RELOAD.
    Reload,
    /// PREPARE_ENV.
    PrepareEnv(PrepareEnv<'a>),
    /// ENV_READY.
    EnvReady(EnvReady<'a>),
    /// DEPLOY.
    Deploy(Box<Deploy<'a>>),
}

impl<'a> Payload<'a> {
    /// Decodes the payload of a message. Strings without escapes are borrowed.
    pub fn decode(view: &View<'a>) -> Result<Payload<'a>, Error> {
        fn json<'a, T: Deserialize<'a>>(opcode: OpCode, bytes: &'a [u8]) -> Result<T, Error> {
            serde_json::from_slice(bytes).map_err(|error| Error::BadPayload {
                opcode,
                reason: without_values(&error.to_string()),
            })
        }
        let (opcode, bytes) = (view.header.opcode, view.payload);
        Ok(match opcode {
            OpCode::Unknown => Payload::Unknown,
            OpCode::Identify => Payload::Identify(json(opcode, bytes)?),
            OpCode::Dispatch => Payload::Dispatch(json(opcode, bytes)?),
            OpCode::Abort => Payload::Abort,
            OpCode::Heartbeat => Payload::Heartbeat(json(opcode, bytes)?),
            OpCode::Conclude => Payload::Conclude(json(opcode, bytes)?),
            OpCode::Err => Payload::Err(json(opcode, bytes)?),
            OpCode::Reload => Payload::Reload,
            OpCode::PrepareEnv => Payload::PrepareEnv(json(opcode, bytes)?),
            OpCode::EnvReady => Payload::EnvReady(json(opcode, bytes)?),
            OpCode::Deploy => Payload::Deploy(json(opcode, bytes)?),
        })
    }

    /// Like [`Payload::decode`], for texts of other programs: halves of surrogate pairs become U+FFFD, and
    /// numbers that JSON does not have become null. The repaired text is in `repaired`.
    pub fn decode_repaired(
        view: &View<'a>,
        repaired: &'a mut Vec<u8>,
    ) -> Result<Payload<'a>, Error> {
        let error = match Self::decode(view) {
            Err(error) => error,
            decoded => return decoded,
        };
        let Some(text) = super::repair::repaired(view.payload) else {
            return Err(error);
        };
        *repaired = text;
        Self::decode(&View {
            header: view.header,
            payload: repaired,
        })
    }

    /// A CONCLUDE that is not a valid receipt, as the receipt of a failure. Its worker has ended the attempt
    /// and would only send the same receipt again.
    pub fn failure(view: &View<'_>, error: &Error) -> Payload<'static> {
        let text = super::repair::repaired(view.payload);
        let text = text.as_deref().unwrap_or(view.payload);
        let fields: Option<serde_json::Map<String, serde_json::Value>> =
            serde_json::from_slice(text).ok();
        let attempt = fields.and_then(|fields| fields.get("attempt")?.as_i64());
        Payload::Conclude(Receipt {
            attempt,
            ..Receipt::unreadable(error)
        })
    }

    /// Encodes header and payload.
    pub fn encode(&self, job_id: u64) -> Result<([u8; HEADER_SIZE], Vec<u8>), Error> {
        let (opcode, bytes) = match self {
            Payload::Unknown => (OpCode::Unknown, Ok(Vec::new())),
            Payload::Identify(payload) => (OpCode::Identify, serde_json::to_vec(payload)),
            Payload::Dispatch(payload) => (OpCode::Dispatch, serde_json::to_vec(payload)),
            Payload::Abort => (OpCode::Abort, Ok(Vec::new())),
            Payload::Heartbeat(payload) => (OpCode::Heartbeat, serde_json::to_vec(payload)),
            Payload::Conclude(payload) => (OpCode::Conclude, serde_json::to_vec(payload)),
            Payload::Err(payload) => (OpCode::Err, serde_json::to_vec(payload)),
            Payload::Reload => (OpCode::Reload, Ok(Vec::new())),
            Payload::PrepareEnv(payload) => (OpCode::PrepareEnv, serde_json::to_vec(payload)),
            Payload::EnvReady(payload) => (OpCode::EnvReady, serde_json::to_vec(payload)),
            Payload::Deploy(payload) => (OpCode::Deploy, serde_json::to_vec(payload)),
        };
        let bytes = bytes.map_err(|error| Error::BadPayload {
            opcode,
            reason: error.to_string(),
        })?;
        let payload_size =
            u32::try_from(bytes.len()).map_err(|_| Error::PayloadTooLarge { got: bytes.len() })?;
        Ok((
            Header {
                opcode,
                job_id,
                payload_size,
            }
            .encode(),
            bytes,
        ))
    }
}

#[cfg(test)]
mod tests;
