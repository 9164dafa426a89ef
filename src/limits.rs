//! Every bound of the system, with its reason.
//!
//! A bound that an operator may change is an option whose default stands here.

/// Octets of one ZMTP frame; a plugin's source and lockfile travel in one frame.
pub const ZMTP_FRAME_SIZE_MAX: u64 = 64 << 20;
/// Octets of one ZMTP message.
pub const ZMTP_MESSAGE_SIZE_MAX: u64 = 64 << 20;
/// Frames of one ZMTP message; the control protocol needs two.
pub const ZMTP_FRAMES_MAX: usize = 4096;
/// Octets of one ZMTP command: READY with metadata is the largest.
pub const ZMTP_COMMAND_SIZE_MAX: u64 = 64 << 10;

/// First receive buffer of a connection; an idle one holds none.
pub const RECEIVE_BUFFER_SIZE_MIN: usize = 4 << 10;
/// Read-ahead of a busy connection; a larger message grows it for as long as it lasts.
pub const RECEIVE_BUFFER_SIZE_MAX: usize = 256 << 10;

/// First chunk of a send queue.
pub const SEND_CHUNK_SIZE_MIN: usize = 4 << 10;
/// Further chunks of a send queue.
pub const SEND_CHUNK_SIZE_MAX: usize = 64 << 10;

const _: () = assert!(ZMTP_FRAME_SIZE_MAX <= ZMTP_MESSAGE_SIZE_MAX);
const _: () = assert!(ZMTP_COMMAND_SIZE_MAX <= ZMTP_FRAME_SIZE_MAX);
const _: () = assert!(ZMTP_MESSAGE_SIZE_MAX <= u32::MAX as u64);
const _: () = assert!(RECEIVE_BUFFER_SIZE_MIN <= RECEIVE_BUFFER_SIZE_MAX);
const _: () = assert!(SEND_CHUNK_SIZE_MIN <= SEND_CHUNK_SIZE_MAX);

/// Readiness events taken per wait.
pub const EVENTS_PER_WAIT: usize = 1024;
