//! Unit tests of `payload.rs`.

use super::*;
use crate::job::{Cause, JobStatus};
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/data/protocol/v4.json")).unwrap()
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
        let (bytes, json) = payload.encode(header.job_id).expect(name);
        let ours = vec![bytes.to_vec(), json];
        let (again, same) = decode(&ours).expect(name);
        assert_eq!(
            (again.opcode, again.job_id),
            (header.opcode, header.job_id),
            "{name}"
        );
        assert_eq!(same, payload, "{name}");
        // Every value of the reference system that is not null is kept.
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
fn a_receipt_that_cannot_be_read_is_one_of_a_failure() {
    let read = |opcode: OpCode, text: &str| {
        let view = View {
            header: Header {
                opcode,
                job_id: 7,
                payload_size: 0,
            },
            payload: text.as_bytes(),
        };
        match Payload::decode_repaired(&view, &mut Vec::new()) {
            Ok(Payload::Conclude(receipt)) => Some(receipt),
            Ok(other) => panic!("{other:?}"),
            Err(_) if opcode != OpCode::Conclude => None,
            Err(error) => match Payload::failure(&view, &error) {
                Payload::Conclude(receipt) => Some(receipt),
                other => panic!("{other:?}"),
            },
        }
    };
    let text = r#"{"status": "FAILED", "attempt": 2, "error_message": "bad \ud83d text"}"#;
    let repaired = read(OpCode::Conclude, text).unwrap();
    assert_eq!(repaired.error_message.as_deref(), Some("bad \u{fffd} text"));
    assert_eq!((repaired.attempt, repaired.cause), (Some(2), None));
    let good = read(OpCode::Conclude, r#"{"status": "SUCCESS"}"#).unwrap();
    assert_eq!((good.status, good.cause), (JobStatus::Success, None));
    for (text, attempt) in [
        (r#"{"status": "success", "attempt": 3}"#, Some(3)),
        (
            r#"{"status": "SUCCESS", "metrics": {"rows": 1180591620717411303424}}"#,
            None,
        ),
        (r#"{"attempt": "3"}"#, None),
        (r#"{"attempt": 4, "metrics": {"rows": NaN}}"#, Some(4)),
        ("[]", None),
        ("{", None),
        ("", None),
    ] {
        let receipt = read(OpCode::Conclude, text).unwrap();
        assert_eq!(receipt.status, JobStatus::Failed, "{text}");
        assert_eq!(receipt.attempt, attempt, "{text}");
        assert_eq!(receipt.cause, Some(Cause::Worker));
        let reason = receipt.error_message.unwrap();
        assert!(reason.contains("cannot be read"), "{reason}");
    }
    for (opcode, text) in [
        (OpCode::Err, "{"),
        (OpCode::Identify, r#"{"capabilities": 7}"#),
    ] {
        assert_eq!(read(opcode, text), None, "{text}");
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

/// Errors are logged, and any field of a payload may contain a plugin's source.
#[test]
fn a_reason_does_not_repeat_the_text_that_is_wrong() {
    for opcode in [OpCode::Dispatch, OpCode::Deploy, OpCode::Conclude] {
        for json in [
            r#""the source""#,
            r#"{"plugin_name": "p", "sinks": "the \"source", "system_requirements": "the source"}"#,
            r#"{"plugin_name": ["the source"]}"#,
        ] {
            let header = Header {
                opcode,
                job_id: 1,
                payload_size: json.len() as u32,
            };
            let view = View {
                header,
                payload: json.as_bytes(),
            };
            let reason = Payload::decode(&view).unwrap_err().to_string();
            assert!(!reason.contains("source"), "{reason}");
            assert!(reason.contains("line 1 column"), "{reason}");
        }
    }
}

#[test]
fn a_long_list_of_requirements_is_refused_while_it_is_read() {
    let with = |texts: &str| {
        let json = format!(
            r#"{{"plugin_name":"p","version":"1","source_code":"","lockfile_content":"",
                "env_hash":"","artifact_hash":"","signature":"","publisher_name":"a",
                "system_requirements":{texts}}}"#
        );
        serde_json::from_str::<Deploy<'_>>(&json).map(|deploy| deploy.system_requirements)
    };
    assert_eq!(with("null").unwrap(), None);
    assert_eq!(with("[]").unwrap(), Some(Vec::new()));
    let many = |count: usize| format!("[{}]", vec![r#""a""#; count].join(","));
    assert_eq!(with(&many(100)).unwrap().unwrap().len(), 100);
    let error = with(&many(101)).unwrap_err().to_string();
    assert!(
        error.contains("invalid length 101, expected at most 100 texts"),
        "{error}"
    );
}

#[test]
fn a_reason_keeps_what_is_around_the_text_that_is_wrong() {
    for (reason, want) in [
        (
            r#"invalid type: string "a "b" c", expected i64"#,
            r#"invalid type: string "…", expected i64"#,
        ),
        ("expected value", "expected value"),
    ] {
        assert_eq!(without_values(reason), want);
    }
}

#[test]
fn a_payload_may_be_as_large_as_its_limit() {
    let payload = b"{}";
    let header = Header {
        opcode: OpCode::Unknown,
        job_id: 1,
        payload_size: 2,
    };
    let bytes = header.encode();
    let view = View::decode([&bytes[..], &payload[..]].into_iter()).unwrap();
    assert_eq!(view.header, header);
    for (limit, is_refused) in [(0, true), (1, true), (2, false), (3, false)] {
        assert_eq!(view.check_size(limit).is_err(), is_refused, "{limit}");
    }
    let error = view.check_size(1).unwrap_err().to_string();
    assert!(error.contains("of 2 bytes, the limit is 1"), "{error}");
}

/// The reference system may refuse fields that it does not know, so those that are not set are left out.
#[test]
fn a_field_that_is_not_set_is_left_out() {
    let identify = |draining| Identify {
        draining,
        ..Identify::default()
    };
    for draining in [false, true] {
        let json = serde_json::to_value(identify(draining)).unwrap();
        let want = draining.then_some(Value::Bool(true));
        assert_eq!(json.get("draining").cloned(), want);
    }
}

#[test]
fn a_sink_without_a_mode_appends() {
    for mode in ["", r#","mode":null"#, r#","mode":"append""#] {
        let json = format!(r#"{{"topic":"t","uri":"parquet://out"{mode}}}"#);
        let sink: SinkConfig = serde_json::from_str(&json).unwrap();
        assert_eq!(sink.mode, "append", "{json}");
    }
}

#[test]
fn the_parts_of_a_dispatch_are_one_payload() {
    let plugin = Plugin {
        name: "p".into(),
        source_code: "a = '}'\n}".into(),
        artifact_hash: "abc".into(),
        ..Plugin::default()
    };
    let part = DispatchPart::new(&plugin);
    let job = Job {
        attempt: Attempt::new(7, 2),
        file_path: "/in".into(),
        file_version_id: 3,
        content: None,
        sinks: [].into(),
        parameters: Parameters::default(),
        plugin: std::sync::Arc::new(plugin),
        database: Some("id".into()),
        previous: Vec::new(),
        history: History::default(),
    };
    let lease = Lease {
        bound: std::time::Duration::from_secs(15),
        request: 9,
    };
    let json = part.with_job(&job, Some(&lease));
    let got: Dispatch<'_> = serde_json::from_slice(&json).unwrap();
    assert_eq!(
        (&*got.plugin_name, &*got.source_code, &*got.file_path),
        ("p", "a = '}'\n}", "/in")
    );
    assert_eq!(
        (got.attempt, got.lease_ms, got.lease_of),
        (Some(2), Some(15_000), Some(9))
    );
    assert_eq!(got.database.as_deref(), Some("id"));
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
