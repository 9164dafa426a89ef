//! JSON payloads: encoding and decoding a decoded payload again must give the same payload. A
//! deployment is also checked as in a sentinel, with correct hashes, which a fuzzer would not find.

use casparian::limits;
use casparian::protocol::{Deploy, Header, OpCode, Payload, View};
use casparian::sentinel::control::deploy::check;
use casparian::sentinel::publishers::Trust;
use casparian::store::{artifact_hash, sha256_hex};

const OPCODES: [OpCode; 11] = [
    OpCode::Unknown,
    OpCode::Identify,
    OpCode::Dispatch,
    OpCode::Abort,
    OpCode::Heartbeat,
    OpCode::Conclude,
    OpCode::Err,
    OpCode::Reload,
    OpCode::PrepareEnv,
    OpCode::EnvReady,
    OpCode::Deploy,
];

pub fn run(data: &[u8]) {
    let Some((choice, payload)) = data.split_first() else {
        return;
    };
    let opcode = OPCODES[usize::from(*choice) % OPCODES.len()];
    let header = Header {
        opcode,
        job_id: 7,
        payload_size: payload.len() as u32,
    };
    let view = View { header, payload };
    match Payload::decode(&view) {
        Ok(payload) => {
            let (header, bytes) = payload.encode(7).expect("what was decoded can be encoded");
            let frames = [&header[..], &bytes];
            let again = View::decode(frames.into_iter()).expect("our own message");
            assert_eq!(again.header.opcode, opcode);
            let again = Payload::decode(&again).expect("our own payload");
            assert_eq!(again, payload);
            if let Payload::Deploy(deploy) = again {
                checked(*deploy);
            }
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            // If the text is not JSON, refusing it is right.
            if serde_json::from_slice::<serde_json::Value>(payload).is_err() {
                return;
            }
        }
    }
}

/// An accepted deployment must be within its limits and equal to what was sent.
fn checked(mut deploy: Deploy<'_>) {
    let hash = artifact_hash(&deploy.source_code, &deploy.lockfile_content);
    let trust = Trust {
        publishers: None,
        allow_unsigned: true,
    };
    if deploy.artifact_hash != hash {
        assert!(
            check(deploy.clone(), &trust).is_err() || deploy.artifact_hash.to_lowercase() == hash
        );
    }
    deploy.env_hash = sha256_hex(&[deploy.lockfile_content.as_bytes()]).into();
    deploy.artifact_hash = hash.into();
    assert!(check(deploy.clone(), &Trust::default()).is_err());
    match check(deploy.clone(), &trust) {
        Ok(upload) => {
            assert_eq!(upload.source_code, deploy.source_code);
            assert_eq!(upload.signature, None, "nobody's signature was verified");
            assert!(!upload.plugin_name.is_empty());
            assert!(upload.plugin_name.len() <= limits::PLUGIN_NAME_SIZE_MAX);
            assert!(!upload.plugin_name.contains(['/', '\0', '\n']));
            assert!(upload.manifest.sinks.len() <= limits::MANIFEST_ENTRIES_MAX);
        }
        Err(refusal) => assert!(!refusal.reason.is_empty()),
    }
}
