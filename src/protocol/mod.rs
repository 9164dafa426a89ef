//! Control protocol v4: the 16-byte header, the opcodes, and their JSON payloads.
//!
//! A message consists of two ZMTP frames behind the routing ID: header, then payload. All numbers
//! are big-endian (`!BBHQI` in Python's struct notation):
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version, 4 |
//! | 1 | opcode |
//! | 2-3 | reserved, sent as 0, ignored |
//! | 4-11 | job ID, 0 if there is none |
//! | 12-15 | payload length: the size of the second frame |
//!
//! Frames behind the second are ignored, and so are bytes behind the first 16 of a header. Parsing
//! borrows from the received bytes. Fields that the first release of the protocol did not have are
//! optional, so programs of the reference system can be at either end.
//!
//! The payload types need the feature `sentinel` or `worker`; the header does not.

#![cfg_attr(
    not(test),
    deny(clippy::cast_possible_truncation, clippy::cast_sign_loss)
)]

mod header;
#[cfg(feature = "json")]
mod payload;
#[cfg(feature = "json")]
mod repair;

pub use header::{Error, HEADER_SIZE, Header, OpCode, PROTOCOL_VERSION, View};
#[cfg(feature = "json")]
pub use payload::{
    Answer, Deploy, Dispatch, DispatchPart, EnvReady, ErrorMessage, Heartbeat, HeartbeatStatus,
    Identify, Payload, PrepareEnv, PublishRequest, SinkConfig,
};
