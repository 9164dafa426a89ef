//! Every JSON payload: what is decoded is encoded and decoded to the same.

use casparian::protocol::{Header, OpCode, Payload, View};

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
            let (header, octets) = payload.encode(7).expect("what was decoded can be encoded");
            let frames = [&header[..], &octets];
            let again = View::decode(frames.into_iter()).expect("our own message");
            assert_eq!(again.header.opcode, opcode);
            let again = Payload::decode(&again).expect("our own payload");
            assert_eq!(again, payload);
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            // Whatever is refused is refused for a reason that JSON alone can have, too.
            if serde_json::from_slice::<serde_json::Value>(payload).is_err() {
                return;
            }
        }
    }
}
