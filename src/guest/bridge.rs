//! Bridge frames from a guest's Unix socket → Arrow record batches.
//!
//! A frame is a u32 big-endian length and that many octets of one complete Arrow IPC stream.
//! Length 0 ends the output; 0xFFFFFFFF announces a failure: a u32 length and UTF-8 text, then
//! a 0. Everything comes from a guest and is checked: no declared length is reserved before
//! the octets arrive, and a panic of the decoder is an error of the frame.

use std::fmt;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::RecordBatch;
use arrow::buffer::{Buffer, MutableBuffer};
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamDecoder;

use crate::limits;

/// Schema metadata key of the topic that a frame's batches were published to.
pub const TOPIC_KEY: &str = "casparian.topic";

const FAILURE: u32 = u32::MAX;

/// Why a guest's octets are refused.
#[derive(Debug)]
pub enum Error {
    /// A frame declares more octets than the limit.
    FrameTooLarge {
        /// Declared size.
        size: u32,
        /// The limit.
        limit: u32,
    },
    /// The stream ended inside a frame or without an end of output.
    Closed,
    /// The stream failed.
    Io(io::Error),
    /// A frame is no complete Arrow IPC stream.
    Arrow(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::FrameTooLarge { size, limit } => write!(
                f,
                "the plugin sent a frame of {size} octets, the limit is {limit}; publish smaller batches"
            ),
            Error::Closed => f.write_str("the plugin closed the bridge without an end of output"),
            Error::Io(error) => write!(f, "the bridge failed: {error}"),
            Error::Arrow(reason) => {
                write!(
                    f,
                    "the plugin sent a frame that is no Arrow stream: {reason}"
                )
            }
        }
    }
}

impl std::error::Error for Error {}

/// What reading came to.
#[derive(Debug)]
pub enum Step {
    /// A whole frame.
    Frame(Buffer),
    /// The end of the output; nothing more is read.
    End,
    /// The plugin failed, with its text; nothing more is read.
    Failure(String),
    /// No octets now.
    Blocked,
    /// Octets were read, the frame is not whole; call again.
    More,
}

#[derive(Debug)]
enum State {
    Length,
    Body,
    FailureLength,
    FailureText,
    Over,
}

/// Reads frames from a stream that may block at any octet.
#[derive(Debug)]
pub struct BridgeReader {
    state: State,
    head: [u8; 4],
    head_have: usize,
    /// Octets of the body or text being read.
    size: usize,
    have: usize,
    body: MutableBuffer,
    text: Vec<u8>,
}

impl Default for BridgeReader {
    fn default() -> Self {
        BridgeReader {
            state: State::Length,
            head: [0; 4],
            head_have: 0,
            size: 0,
            have: 0,
            body: MutableBuffer::new(0),
            text: Vec::new(),
        }
    }
}

/// First reservation of a body; it doubles as octets arrive.
const BODY_STEP: usize = 256 << 10;

impl BridgeReader {
    /// One read at most; call until it gives something other than [`Step::More`].
    pub fn read(&mut self, from: &mut impl Read) -> Result<Step, Error> {
        match self.state {
            State::Length | State::FailureLength => self.read_head(from),
            State::Body => self.read_body(from),
            State::FailureText => self.read_text(from),
            State::Over => Ok(Step::Blocked),
        }
    }

    fn read_head(&mut self, from: &mut impl Read) -> Result<Step, Error> {
        let space = self.head.get_mut(self.head_have..).unwrap_or(&mut []);
        let Some(count) = read(from, space)? else {
            return Ok(Step::Blocked);
        };
        self.head_have += count;
        if self.head_have < self.head.len() {
            return Ok(Step::More);
        }
        self.head_have = 0;
        self.have = 0;
        let length = u32::from_be_bytes(self.head);
        if matches!(self.state, State::FailureLength) {
            self.size = length as usize;
            self.state = State::FailureText;
            return if self.size == 0 {
                Ok(self.failure())
            } else {
                Ok(Step::More)
            };
        }
        match length {
            0 => {
                self.state = State::Over;
                Ok(Step::End)
            }
            FAILURE => {
                self.state = State::FailureLength;
                Ok(Step::More)
            }
            size if size > limits::BRIDGE_FRAME_SIZE_MAX => Err(Error::FrameTooLarge {
                size,
                limit: limits::BRIDGE_FRAME_SIZE_MAX,
            }),
            size => {
                self.size = size as usize;
                self.body = MutableBuffer::from_len_zeroed(self.size.min(BODY_STEP));
                self.state = State::Body;
                Ok(Step::More)
            }
        }
    }

    fn read_body(&mut self, from: &mut impl Read) -> Result<Step, Error> {
        if self.have == self.body.len() {
            let grown = self.body.len().saturating_mul(2).min(self.size);
            self.body.resize(grown, 0);
        }
        let space = self
            .body
            .as_slice_mut()
            .get_mut(self.have..)
            .unwrap_or(&mut []);
        let Some(count) = read(from, space)? else {
            return Ok(Step::Blocked);
        };
        self.have += count;
        if self.have < self.size {
            return Ok(Step::More);
        }
        self.state = State::Length;
        let body = std::mem::replace(&mut self.body, MutableBuffer::new(0));
        Ok(Step::Frame(body.into()))
    }

    fn read_text(&mut self, from: &mut impl Read) -> Result<Step, Error> {
        let mut space = [0u8; 4096];
        let want = (self.size - self.have).min(space.len());
        let Some(count) = read(from, space.get_mut(..want).unwrap_or(&mut []))? else {
            return Ok(Step::Blocked);
        };
        self.have += count;
        let room = limits::BRIDGE_TEXT_SIZE_MAX.saturating_sub(self.text.len());
        self.text
            .extend_from_slice(space.get(..count.min(room)).unwrap_or(&[]));
        Ok(if self.have == self.size {
            self.failure()
        } else {
            Step::More
        })
    }

    fn failure(&mut self) -> Step {
        self.state = State::Over;
        Step::Failure(String::from_utf8_lossy(&std::mem::take(&mut self.text)).into_owned())
    }
}

/// None = would block.
fn read(from: &mut impl Read, space: &mut [u8]) -> Result<Option<usize>, Error> {
    loop {
        return match from.read(space) {
            Ok(0) => Err(Error::Closed),
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(Error::Closed),
            Err(error) => Err(Error::Io(error)),
        };
    }
}

/// A decoded frame.
#[derive(Debug)]
pub struct Decoded {
    /// The batches' schema, topic included.
    pub schema: SchemaRef,
    /// The topic they were published to; none = every sink of the job.
    pub topic: Option<String>,
    /// The batches, borrowing from the frame where its alignment allows it.
    pub batches: Vec<RecordBatch>,
}

/// Decodes one frame.
pub fn decode(frame: Buffer) -> Result<Decoded, Error> {
    match catch_unwind(AssertUnwindSafe(|| decode_stream(frame))) {
        Ok(result) => result,
        Err(_) => Err(Error::Arrow(
            "its lengths or offsets make no sense".to_owned(),
        )),
    }
}

/// Checks that every message of a stream has the octets that it declares: the decoder reserves
/// what is declared.
fn check_lengths(stream: &[u8]) -> Result<(), Error> {
    let cut = || Error::Arrow("it ends inside a message".to_owned());
    let mut rest = stream;
    let take_size = |rest: &mut &[u8]| -> Result<u32, Error> {
        let (size, behind) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        *rest = behind;
        Ok(u32::from_le_bytes(*size))
    };
    while !rest.is_empty() {
        let mut size = take_size(&mut rest)?;
        if size == u32::MAX {
            size = take_size(&mut rest)?;
        }
        if size == 0 {
            return Ok(());
        }
        let (message, behind) = rest.split_at_checked(size as usize).ok_or_else(cut)?;
        let message = arrow::ipc::root_as_message(message)
            .map_err(|error| Error::Arrow(format!("a message is damaged: {error}")))?;
        let body = usize::try_from(message.bodyLength()).map_err(|_| cut())?;
        rest = behind.get(body..).ok_or_else(cut)?;
    }
    Ok(())
}

/// Rows that need no octets (of the null type, or without columns) are bounded by those that a
/// frame of this size could hold as bits, and by a number that is still handled with ease.
fn check_rows(batch: &RecordBatch, frame_size: usize) -> Result<(), Error> {
    let limit = limits::BRIDGE_BATCH_ROWS_MAX.max(frame_size.saturating_mul(8));
    if batch.num_rows() > limit {
        return Err(Error::Arrow(format!(
            "a batch of {} rows in {frame_size} octets",
            batch.num_rows()
        )));
    }
    Ok(())
}

fn decode_stream(mut frame: Buffer) -> Result<Decoded, Error> {
    check_lengths(&frame)?;
    let frame_size = frame.len();
    let fail = |error: arrow::error::ArrowError| Error::Arrow(error.to_string());
    let mut decoder = StreamDecoder::new();
    let mut batches = Vec::new();
    while !frame.is_empty() {
        let before = frame.len();
        match decoder.decode(&mut frame).map_err(fail)? {
            Some(batch) => {
                check_rows(&batch, frame_size)?;
                batches.push(batch);
            }
            None if frame.len() == before => {
                return Err(Error::Arrow(format!("{before} octets behind its end")));
            }
            None => {}
        }
    }
    decoder.finish().map_err(fail)?;
    let schema = match (decoder.schema(), batches.first()) {
        (Some(schema), _) => schema,
        (None, Some(batch)) => batch.schema(),
        (None, None) => return Err(Error::Arrow("it has no schema".to_owned())),
    };
    let topic = schema.metadata().get(TOPIC_KEY).cloned();
    Ok(Decoded {
        schema,
        topic,
        batches,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives `step` octets a read and blocks after each.
    struct Chunks<'a> {
        octets: &'a [u8],
        step: usize,
        block: bool,
    }

    impl Read for Chunks<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.block = !self.block;
            if self.block {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = self.step.min(into.len()).min(self.octets.len());
            into[..count].copy_from_slice(&self.octets[..count]);
            self.octets = &self.octets[count..];
            Ok(count)
        }
    }

    #[derive(Debug, PartialEq)]
    struct Seen {
        rows: usize,
        frames: usize,
        end: String,
    }

    fn read_all(octets: &[u8], step: usize) -> Seen {
        let mut reader = BridgeReader::default();
        let mut from = Chunks {
            octets,
            step,
            block: true,
        };
        let mut seen = Seen {
            rows: 0,
            frames: 0,
            end: String::new(),
        };
        loop {
            match reader.read(&mut from) {
                Ok(Step::Frame(frame)) => match decode(frame) {
                    Ok(decoded) => {
                        seen.frames += 1;
                        seen.rows += decoded.batches.iter().map(|b| b.num_rows()).sum::<usize>();
                    }
                    Err(error) => seen.end = error.to_string(),
                },
                Ok(Step::End) => {
                    return Seen {
                        end: "end".into(),
                        ..seen
                    };
                }
                Ok(Step::Failure(text)) => return Seen { end: text, ..seen },
                Ok(Step::Blocked | Step::More) => {}
                Err(error) => {
                    return Seen {
                        end: error.to_string(),
                        ..seen
                    };
                }
            }
        }
    }

    #[test]
    fn captures_of_the_reference_decode_at_every_split() {
        let cases = [
            ("three_rows", 3, 1, "end"),
            ("two_batches_strings_nulls", 4, 2, "end"),
            ("pandas_frame", 1, 1, "end"),
            ("no_output", 0, 0, "end"),
            ("error_after_one_batch", 1, 1, "bad row 17"),
            ("dictionary_column", 3, 1, "end"),
            ("schema_changes", 2, 2, "end"),
        ];
        for (name, rows, frames, end) in cases {
            let path = format!(
                "{}/tests/data/bridge/{name}.bin",
                env!("CARGO_MANIFEST_DIR")
            );
            let octets = std::fs::read(&path).expect("tests/data/bridge is in the repository");
            let want = Seen {
                rows,
                frames,
                end: end.to_owned(),
            };
            for step in [1, 2, 3, 5, 7, 64, 1000, usize::MAX] {
                assert_eq!(read_all(&octets, step), want, "{name} by {step}");
            }
            // Cut anywhere, it is never taken for whole.
            let whole = octets.len() - if end == "end" { 0 } else { 4 };
            for cut in 0..whole {
                let seen = read_all(&octets[..cut], usize::MAX);
                assert!(
                    seen.end.contains("without an end of output"),
                    "{name} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn hostile_frames_are_errors() {
        let path = format!(
            "{}/tests/data/bridge/three_rows.bin",
            env!("CARGO_MANIFEST_DIR")
        );
        let good = std::fs::read(path).unwrap();
        let body = &good[4..good.len() - 4];
        for at in 0..body.len() {
            for value in [0x00, 0x7F, 0x80, 0xFF] {
                let mut octets = body.to_vec();
                octets[at] = value;
                // An error or other values, but no panic and no large allocation.
                let _ = decode(Buffer::from_vec(octets));
            }
        }
        let mut trailing = body.to_vec();
        trailing.extend([1, 2, 3]);
        assert!(decode(Buffer::from_vec(trailing)).is_err());
        assert!(decode(Buffer::from_vec(vec![9u8; 100])).is_err());
        let huge = read_all(&0xFFFF_FFFEu32.to_be_bytes(), 1);
        assert!(huge.end.contains("limit"), "{huge:?}");
        // A declared gigabyte costs nothing before it arrives.
        let mut reader = BridgeReader::default();
        let declared = limits::BRIDGE_FRAME_SIZE_MAX.to_be_bytes();
        let mut from = Chunks {
            octets: &declared,
            step: 4,
            block: true,
        };
        while !matches!(reader.state, State::Body) {
            reader.read(&mut from).unwrap();
        }
        assert!(reader.body.capacity() <= 2 * BODY_STEP);
    }
}
