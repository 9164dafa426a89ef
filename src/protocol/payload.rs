//! The JSON payloads, one type an opcode.
//!
//! Absent optional fields are omitted when written; `null` and absent are the same when read;
//! unknown fields are ignored.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Error, HEADER_SIZE, Header, OpCode, View};

/// A job that a worker holds: the job and which of its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The job.
    pub job_id: i64,
    /// The attempt it was dispatched as.
    pub attempt: i64,
}

/// IDENTIFY.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identify<'a> {
    /// Names of plugins this worker can run; `*` = any.
    pub capabilities: Vec<String>,
    /// The worker's name; its routing id when absent.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<Cow<'a, str>>,
    /// Jobs it runs at a time; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// Its host's name.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Cow<'a, str>>,
    /// Its process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Jobs it holds now, all of them; absent from workers that cannot say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Vec<Hold>>,
}

/// One sink of a DISPATCH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkConfig {
    /// The topic whose batches it takes.
    pub topic: String,
    /// `parquet://…` or `sqlite://…`.
    pub uri: String,
    /// `append`, `replace` or `error`.
    #[serde(default = "mode_default", deserialize_with = "mode_or_null")]
    pub mode: String,
    /// JSON schema text, handed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_def: Option<String>,
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
    /// Where its topics go.
    pub sinks: Vec<SinkConfig>,
    /// Goes into every row.
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
    /// Which attempt of the job this is, to be given back with the receipt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,
    /// How long the sentinel waits for a sign of life before it gives the job to another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeartbeatStatus {
    /// No job.
    #[serde(rename = "IDLE")]
    Idle,
    /// At least one job.
    #[serde(rename = "BUSY")]
    Busy,
}

/// HEARTBEAT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Idle or busy.
    pub status: HeartbeatStatus,
    /// The job it runs, or one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_job_id: Option<i64>,
    /// All jobs it holds; absent from workers that cannot say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Vec<Hold>>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobStatus {
    /// All output is published.
    #[serde(rename = "SUCCESS")]
    Success,
    /// No output is visible.
    #[serde(rename = "FAILED")]
    Failed,
}

/// CONCLUDE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conclude<'a> {
    /// How the job ended.
    pub status: JobStatus,
    /// Counts: `rows`, `size_bytes`, `batches`, durations in milliseconds.
    #[serde(default)]
    pub metrics: BTreeMap<String, i64>,
    /// One map a published file: `topic`, `uri`, and counts as text.
    #[serde(default)]
    pub artifacts: Vec<BTreeMap<String, String>>,
    /// Why it failed.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<Cow<'a, str>>,
    /// The attempt of the DISPATCH this answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i64>,
    /// The last lines the plugin printed.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub log_tail: Option<Cow<'a, str>>,
}

/// ERR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Err<'a> {
    /// What went wrong.
    #[serde(borrow)]
    pub message: Cow<'a, str>,
    /// Where, if it was Python.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub traceback: Option<Cow<'a, str>>,
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
    /// Its `bin/python`.
    #[serde(borrow)]
    pub interpreter_path: Cow<'a, str>,
    /// It was there already.
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
    /// Who publishes it.
    #[serde(borrow)]
    pub publisher_name: Cow<'a, str>,
    /// Their mail address.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub publisher_email: Option<Cow<'a, str>>,
    /// Their directory id.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub azure_oid: Option<Cow<'a, str>>,
    /// What the host must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_requirements: Option<Vec<String>>,
}

/// Any payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// UNKNOWN: nothing is read from it.
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
    Conclude(Conclude<'a>),
    /// ERR.
    Err(Err<'a>),
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
    /// Decodes the payload of a message; text without escapes is borrowed.
    pub fn decode(view: &View<'a>) -> Result<Payload<'a>, Error> {
        fn json<'a, T: Deserialize<'a>>(opcode: OpCode, octets: &'a [u8]) -> Result<T, Error> {
            serde_json::from_slice(octets).map_err(|error| Error::BadPayload {
                opcode,
                reason: error.to_string(),
            })
        }
        let (opcode, octets) = (view.header.opcode, view.payload);
        Ok(match opcode {
            OpCode::Unknown => Payload::Unknown,
            OpCode::Identify => Payload::Identify(json(opcode, octets)?),
            OpCode::Dispatch => Payload::Dispatch(json(opcode, octets)?),
            OpCode::Abort => Payload::Abort,
            OpCode::Heartbeat => Payload::Heartbeat(json(opcode, octets)?),
            OpCode::Conclude => Payload::Conclude(json(opcode, octets)?),
            OpCode::Err => Payload::Err(json(opcode, octets)?),
            OpCode::Reload => Payload::Reload,
            OpCode::PrepareEnv => Payload::PrepareEnv(json(opcode, octets)?),
            OpCode::EnvReady => Payload::EnvReady(json(opcode, octets)?),
            OpCode::Deploy => Payload::Deploy(json(opcode, octets)?),
        })
    }

    /// Encodes header and payload.
    pub fn encode(&self, job_id: u64) -> Result<([u8; HEADER_SIZE], Vec<u8>), Error> {
        let (opcode, octets) = match self {
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
        let octets = octets.map_err(|error| Error::BadPayload {
            opcode,
            reason: error.to_string(),
        })?;
        let payload_size = u32::try_from(octets.len())
            .map_err(|_| Error::PayloadTooLarge { got: octets.len() })?;
        Ok((
            Header {
                opcode,
                job_id,
                payload_size,
            }
            .encode(),
            octets,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../tests/data/protocol/v4.json")).unwrap()
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len() / 2)
            .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
            .collect()
    }

    fn frames(case: &Value) -> Vec<Vec<u8>> {
        let header = unhex(case["header_hex"].as_str().unwrap());
        let payload = match case.get("payload_utf8") {
            Some(text) => text.as_str().unwrap().as_bytes().to_vec(),
            None => unhex(case["payload_hex"].as_str().unwrap()),
        };
        vec![header, payload]
    }

    fn decode(frames: &[Vec<u8>]) -> Result<(Header, Payload<'_>), Error> {
        let view = View::decode(frames.iter().map(Vec::as_slice))?;
        Ok((view.header, Payload::decode(&view)?))
    }

    #[test]
    fn messages_of_the_reference_round_trip() {
        let vectors = vectors();
        let cases = vectors["valid"].as_array().unwrap();
        assert_eq!(cases.len(), 18);
        for case in cases {
            let name = case["name"].as_str().unwrap();
            let theirs = frames(case);
            let (header, payload) = decode(&theirs).expect(name);
            let (octets, json) = payload.encode(header.job_id).expect(name);
            let ours = vec![octets.to_vec(), json];
            let (again, same) = decode(&ours).expect(name);
            assert_eq!(
                (again.opcode, again.job_id),
                (header.opcode, header.job_id),
                "{name}"
            );
            assert_eq!(same, payload, "{name}");
            // Every value the reference wrote and that is not null is still there.
            if !theirs[1].is_empty() {
                let before: Value = serde_json::from_slice(&theirs[1]).unwrap();
                let after: Value = serde_json::from_slice(&ours[1]).unwrap();
                for (key, value) in before.as_object().unwrap() {
                    if !value.is_null() && key != "sinks" {
                        assert_eq!(after.get(key), Some(value), "{name}.{key}");
                    }
                }
            }
        }
    }

    #[test]
    fn unusual_messages_are_tolerated_and_extra_frames_ignored() {
        let vectors = vectors();
        for case in vectors["tolerated"].as_array().unwrap() {
            let mut frames = frames(case);
            decode(&frames).unwrap_or_else(|error| panic!("{case}: {error}"));
            frames.push(b"extra".to_vec());
            decode(&frames).expect("extra frames are ignored");
        }
    }

    #[test]
    fn invalid_messages_give_the_named_error() {
        let vectors = vectors();
        for case in vectors["invalid"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            let frames = frames(case);
            let error = decode(&frames).expect_err(name);
            let kind = format!("{error:?}");
            let want = case["want"].as_str().unwrap();
            assert!(kind.starts_with(want), "{name}: {kind}");
            assert!(!error.to_string().is_empty());
        }
        let missing = View::decode([[4u8; 16].as_slice()].into_iter());
        assert_eq!(missing, Err(Error::MissingFrame { got: 1 }));
    }

    #[test]
    fn text_without_escapes_is_borrowed() {
        let json = br#"{"message":"plain","traceback":"with \n"}"#;
        let header = Header {
            opcode: OpCode::Err,
            job_id: 1,
            payload_size: json.len() as u32,
        }
        .encode();
        let view = View::decode([&header[..], &json[..]].into_iter()).unwrap();
        let Payload::Err(error) = Payload::decode(&view).unwrap() else {
            panic!()
        };
        assert!(matches!(error.message, Cow::Borrowed("plain")));
    }
}
