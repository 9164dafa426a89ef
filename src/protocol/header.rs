//! The fixed header, and splitting a message into header and payload.

use std::fmt;

use byteorder::{BigEndian, ByteOrder};

/// The only supported protocol version.
pub const PROTOCOL_VERSION: u8 = 4;
/// Size of a header, in bytes.
pub const HEADER_SIZE: usize = 16;

/// The type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpCode {
    /// Not sent by either side; accepted and ignored.
    Unknown = 0,
    /// Worker → sentinel: registers the worker, with its ID, plugins and slots.
    Identify = 1,
    /// Sentinel → worker: starts an attempt of a job.
    Dispatch = 2,
    /// Sentinel → worker: stops a job. No payload.
    Abort = 3,
    /// Worker → sentinel: the worker's state, as a request; sentinel → worker: the answer.
    Heartbeat = 4,
    /// Worker → sentinel: the receipt of an attempt; sentinel → client: the answer to DEPLOY.
    Conclude = 5,
    /// Either direction: an error.
    Err = 6,
    /// Sentinel → worker: discard cached configuration.
    Reload = 7,
    /// Sentinel → worker: create an environment.
    PrepareEnv = 8,
    /// Worker → sentinel: an environment is available.
    EnvReady = 9,
    /// Client → sentinel: deploy a plugin.
    Deploy = 10,
}

impl OpCode {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => OpCode::Unknown,
            1 => OpCode::Identify,
            2 => OpCode::Dispatch,
            3 => OpCode::Abort,
            4 => OpCode::Heartbeat,
            5 => OpCode::Conclude,
            6 => OpCode::Err,
            7 => OpCode::Reload,
            8 => OpCode::PrepareEnv,
            9 => OpCode::EnvReady,
            10 => OpCode::Deploy,
            _ => return None,
        })
    }
}

/// Why a message is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The message has no header frame or no payload frame.
    MissingFrame {
        /// Number of frames received.
        got: usize,
    },
    /// The first frame is shorter than a header.
    HeaderTooShort {
        /// Its size, in bytes.
        got: usize,
    },
    /// The header has another protocol version.
    VersionMismatch {
        /// Byte 0 of the header.
        got: u8,
    },
    /// An opcode that does not exist.
    InvalidOpCode {
        /// Byte 1 of the header.
        got: u8,
    },
    /// The payload length in the header is not the size of the second frame.
    PayloadLengthMismatch {
        /// The length in the header, in bytes.
        expected: u32,
        /// The size of the second frame, in bytes.
        got: usize,
    },
    /// The payload is not valid JSON for the opcode.
    BadPayload {
        /// The opcode.
        opcode: OpCode,
        /// The parser's reason.
        reason: String,
    },
    /// The payload is larger than the receiver's limit for the opcode.
    PayloadOverLimit {
        /// The opcode.
        opcode: OpCode,
        /// The payload's size, in bytes.
        got: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The payload does not fit the header's 32-bit length.
    PayloadTooLarge {
        /// The payload's size, in bytes.
        got: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::MissingFrame { got } => {
                write!(f, "message of {got} frames, expected header and payload")
            }
            Error::HeaderTooShort { got } => {
                write!(f, "header of {got} bytes, expected {HEADER_SIZE}")
            }
            Error::VersionMismatch { got } => {
                write!(f, "protocol version {got}, expected {PROTOCOL_VERSION}")
            }
            Error::InvalidOpCode { got } => write!(f, "opcode {got}, expected 0 to 10"),
            Error::PayloadLengthMismatch { expected, got } => {
                write!(f, "payload of {got} bytes, its header requires {expected}")
            }
            Error::BadPayload { opcode, reason } => {
                write!(f, "payload of {opcode:?} refused: {reason}")
            }
            Error::PayloadOverLimit { opcode, got, limit } => {
                write!(
                    f,
                    "payload of {opcode:?} of {got} bytes, the limit is {limit}"
                )
            }
            Error::PayloadTooLarge { got } => {
                write!(f, "payload of {got} bytes, at most {} fit", u32::MAX)
            }
        }
    }
}

impl std::error::Error for Error {}

/// A decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type of the message.
    pub opcode: OpCode,
    /// The ID of the job that the message refers to, or 0.
    pub job_id: u64,
    /// Size of the payload, in bytes.
    pub payload_size: u32,
}

// Passed by value; as large as on the wire.
const _: () = assert!(size_of::<Header>() <= 16);

impl Header {
    /// Decodes a header from the first 16 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Header, Error> {
        let Some(head) = bytes.first_chunk::<HEADER_SIZE>() else {
            return Err(Error::HeaderTooShort { got: bytes.len() });
        };
        let [version, opcode, ..] = *head;
        if version != PROTOCOL_VERSION {
            return Err(Error::VersionMismatch { got: version });
        }
        let opcode = OpCode::from_byte(opcode).ok_or(Error::InvalidOpCode { got: opcode })?;
        Ok(Header {
            opcode,
            job_id: BigEndian::read_u64(&head[4..12]),
            payload_size: BigEndian::read_u32(&head[12..16]),
        })
    }

    /// Encodes the header; the reserved bytes are 0.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut head = [0; HEADER_SIZE];
        head[0] = PROTOCOL_VERSION;
        head[1] = self.opcode as u8;
        BigEndian::write_u64(&mut head[4..12], self.job_id);
        BigEndian::write_u32(&mut head[12..16], self.payload_size);
        head
    }
}

/// A message split into header and payload bytes, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// The header.
    pub header: Header,
    /// The payload; its size is that in the header.
    pub payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Splits the frames behind the routing ID. Frames behind the second are ignored.
    pub fn decode(mut frames: impl Iterator<Item = &'a [u8]>) -> Result<View<'a>, Error> {
        let first = frames.next().ok_or(Error::MissingFrame { got: 0 })?;
        let header = Header::decode(first)?;
        let payload = frames.next().ok_or(Error::MissingFrame { got: 1 })?;
        if usize::try_from(header.payload_size) != Ok(payload.len()) {
            return Err(Error::PayloadLengthMismatch {
                expected: header.payload_size,
                got: payload.len(),
            });
        }
        Ok(View { header, payload })
    }

    /// Fails if the payload is larger than `limit` bytes.
    pub fn check_size(&self, limit: usize) -> Result<(), Error> {
        match self.payload.len() {
            got if got > limit => Err(Error::PayloadOverLimit {
                opcode: self.header.opcode,
                got,
                limit,
            }),
            _ => Ok(()),
        }
    }
}
