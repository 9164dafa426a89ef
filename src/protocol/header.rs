//! The fixed header and the split of a message into header and payload.

use std::fmt;

/// The only version this side speaks.
pub const PROTOCOL_VERSION: u8 = 4;
/// Bytes of a header.
pub const HEADER_SIZE: usize = 16;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpCode {
    /// Not used by either side; accepted and ignored.
    Unknown = 0,
    /// Worker → sentinel: who I am and what I can run.
    Identify = 1,
    /// Sentinel → worker: run this job.
    Dispatch = 2,
    /// Sentinel → worker: stop this job. No payload.
    Abort = 3,
    /// Worker → sentinel: still here.
    Heartbeat = 4,
    /// Worker → sentinel: the receipt of a job; sentinel → client: the answer to DEPLOY.
    Conclude = 5,
    /// Either way: something went wrong.
    Err = 6,
    /// Sentinel → worker: forget cached configuration.
    Reload = 7,
    /// Sentinel → worker: make this environment.
    PrepareEnv = 8,
    /// Worker → sentinel: the environment is there.
    EnvReady = 9,
    /// Client → sentinel: register this plugin.
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
    /// There is no payload frame behind the header.
    MissingFrame {
        /// Frames that came.
        got: usize,
    },
    /// The first frame is shorter than a header.
    HeaderTooShort {
        /// Its length.
        got: usize,
    },
    /// Another protocol version.
    VersionMismatch {
        /// Byte 0.
        got: u8,
    },
    /// An opcode that does not exist.
    InvalidOpCode {
        /// Byte 1.
        got: u8,
    },
    /// The header's length is not the second frame's.
    PayloadLengthMismatch {
        /// What the header says.
        expected: u32,
        /// What came.
        got: usize,
    },
    /// The payload is no JSON of the opcode's shape.
    BadPayload {
        /// The opcode.
        opcode: OpCode,
        /// The parser's reason.
        reason: String,
    },
    /// The payload is larger than its receiver takes of the opcode.
    PayloadOverLimit {
        /// The opcode.
        opcode: OpCode,
        /// Its length.
        got: usize,
        /// What is taken.
        limit: usize,
    },
    /// The payload does not fit the header's 32-bit length.
    PayloadTooLarge {
        /// Its length.
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
                write!(f, "payload of {got} bytes, the header says {expected}")
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
    /// What the message is about.
    pub opcode: OpCode,
    /// The job meant, or 0.
    pub job_id: u64,
    /// Bytes of the payload.
    pub payload_size: u32,
}

impl Header {
    /// Decodes the first 16 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Header, Error> {
        let Some(&[version, opcode, _, _, rest @ ..]) = bytes.first_chunk::<HEADER_SIZE>() else {
            return Err(Error::HeaderTooShort { got: bytes.len() });
        };
        if version != PROTOCOL_VERSION {
            return Err(Error::VersionMismatch { got: version });
        }
        let opcode = OpCode::from_byte(opcode).ok_or(Error::InvalidOpCode { got: opcode })?;
        let [j0, j1, j2, j3, j4, j5, j6, j7, p0, p1, p2, p3] = rest;
        Ok(Header {
            opcode,
            job_id: u64::from_be_bytes([j0, j1, j2, j3, j4, j5, j6, j7]),
            payload_size: u32::from_be_bytes([p0, p1, p2, p3]),
        })
    }

    /// The header's bytes; reserved ones are 0.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let [j0, j1, j2, j3, j4, j5, j6, j7] = self.job_id.to_be_bytes();
        let [p0, p1, p2, p3] = self.payload_size.to_be_bytes();
        let opcode = self.opcode as u8;
        [
            PROTOCOL_VERSION,
            opcode,
            0,
            0,
            j0,
            j1,
            j2,
            j3,
            j4,
            j5,
            j6,
            j7,
            p0,
            p1,
            p2,
            p3,
        ]
    }
}

/// A message split into header and payload bytes, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// The header.
    pub header: Header,
    /// The payload, of the length the header says.
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

    /// Fails when the payload is larger than `limit`.
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
