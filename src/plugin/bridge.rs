//! Reads bridge frames from a plugin process's Unix socket and decodes them to Arrow record batches.
//!
//! A frame is a u32 big-endian length, followed by that many bytes of one complete Arrow IPC stream. Length 0
//! ends the output. Length 0xFFFFFFFF announces a failure: a u32 length and UTF-8 text follow, then a 0. Length
//! 0xFFFFFFFE announces the state of the input file, seven i64 ([`InputState`]). All bytes come from a plugin
//! process and are checked. Buffers grow with bytes received, never with a declared length. A panic of the
//! decoder is an error of the frame.

#![cfg_attr(
    not(test),
    deny(clippy::cast_possible_truncation, clippy::cast_sign_loss)
)]

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::RecordBatch;
use arrow::buffer::{Buffer, MutableBuffer};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc;
use arrow::ipc::reader::{StreamDecoder, StreamReader};
use byteorder::{BigEndian, ByteOrder};

use super::frame_head;
use crate::job::text::prefix;
use crate::limits;

/// Key in the schema's metadata. Its value is the topic to which a frame's batches were published.
pub const TOPIC_KEY: &str = "casparian.topic";

const FAILURE: u32 = u32::MAX;
const INPUT: u32 = u32::MAX - 1;

/// The input file as the plugin process finds it before the plugin runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputState {
    /// Number of its device.
    pub device: u64,
    /// Number of its inode.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Time of its last modification, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Time of its last status change, in nanoseconds since 1970.
    pub ctime_ns: i64,
    /// Its mode.
    pub mode: u64,
    /// Number of its hard links.
    pub links: u64,
}

/// Bytes of an [`InputState`].
const INPUT_SIZE: usize = 7 * 8;

impl InputState {
    fn from_bytes(bytes: &[u8; INPUT_SIZE]) -> Self {
        let (values, _) = bytes.as_chunks::<8>();
        let mut values = values.iter().map(|value| BigEndian::read_i64(value));
        let mut next = || values.next().unwrap_or_default();
        InputState {
            device: next().cast_unsigned(),
            inode: next().cast_unsigned(),
            size: next().cast_unsigned(),
            mtime_ns: next(),
            ctime_ns: next(),
            mode: next().cast_unsigned(),
            links: next().cast_unsigned(),
        }
    }
}

/// Why a plugin process's bytes are refused.
#[derive(Debug)]
pub enum Error {
    /// A frame declares more bytes than the limit.
    FrameTooLarge {
        /// Declared size.
        size: u32,
        /// The limit.
        limit: usize,
        /// Its largest column and the size of that column in bytes, if known.
        column: Option<(String, u64)>,
    },
    /// The stream ended inside a frame or without an end of output.
    Closed,
    /// Reading failed.
    Io(io::Error),
    /// A frame is not a complete Arrow IPC stream.
    Arrow(String),
    /// The names and metadata of a frame's columns are too large.
    Schema(String),
    /// The values of a column are damaged.
    Column {
        /// Its name.
        column: String,
        /// The reason.
        reason: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::FrameTooLarge {
                size,
                limit,
                column,
            } => {
                if let Some((name, size)) = column {
                    let name = prefix(name, 80);
                    write!(f, "column {name:?}: it has {size} bytes in one batch; ")?;
                }
                write!(
                    f,
                    "publish smaller batches, or give --cell-max for a cell that is so large (the \
                     plugin sent a frame of {size} bytes, the limit is {limit}: half of --job-buffer, \
                     1 GiB at most)"
                )
            }
            Error::Schema(reason) => f.write_str(reason),
            Error::Column { column, reason } => {
                let column = prefix(column, 80);
                write!(
                    f,
                    "column {column:?}: its values are no valid Arrow data ({reason})"
                )?;
                match reason.contains("UTF") {
                    true => f.write_str("; publish text in UTF-8, and other bytes as binary"),
                    false => Ok(()),
                }
            }
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

/// Result of [`BridgeReader::read`].
#[derive(Debug)]
pub enum Step {
    /// A complete frame.
    Frame(Buffer),
    /// The state of the input file.
    Input(InputState),
    /// The end of output. Nothing more is read.
    End,
    /// The plugin failed, with this text. Nothing more is read.
    Failure(String),
    /// No bytes are available now.
    Blocked,
    /// Bytes were read, and the frame is not complete. Call again.
    More,
}

// Returned by each read of a bridge.
const _: () = assert!(size_of::<Step>() <= 64);

#[derive(Debug)]
enum State {
    Length,
    Body,
    Input,
    FailureLength,
    FailureText,
    Over,
}

/// Reads frames from a stream that may block after any byte.
#[derive(Debug)]
pub struct BridgeReader {
    state: State,
    head: [u8; 4],
    head_have: usize,
    /// Size in bytes of the body or text that is being read.
    size: usize,
    have: usize,
    body: MutableBuffer,
    input: [u8; INPUT_SIZE],
    text: Vec<u8>,
    frame_size_max: usize,
    /// Declared size of a frame that is refused. Only its beginning is read.
    refused: Option<u32>,
}

impl Default for BridgeReader {
    fn default() -> Self {
        Self::new(limits::BRIDGE_FRAME_SIZE_MAX as usize)
    }
}

/// Bytes allocated first for a body. The allocation doubles as bytes arrive.
const BODY_STEP: usize = 256 << 10;

impl BridgeReader {
    /// A reader that accepts frames of at most that many bytes.
    pub fn new(frame_size_max: usize) -> Self {
        BridgeReader {
            state: State::Length,
            head: [0; 4],
            head_have: 0,
            size: 0,
            have: 0,
            body: MutableBuffer::new(0),
            input: [0; INPUT_SIZE],
            text: Vec::new(),
            frame_size_max,
            refused: None,
        }
    }

    /// Declared size in bytes of the frame that is being read; 0 between frames.
    pub fn frame_size(&self) -> usize {
        match self.state {
            State::Body => self.size,
            _ => 0,
        }
    }

    /// Reads at most once. Call until the result is not [`Step::More`].
    pub fn read(&mut self, from: &mut impl Read) -> Result<Step, Error> {
        match self.state {
            State::Length | State::FailureLength => self.read_head(from),
            State::Body => self.read_body(from),
            State::Input => self.read_input(from),
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
        let length = BigEndian::read_u32(&self.head);
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
            INPUT => {
                self.state = State::Input;
                Ok(Step::More)
            }
            size => {
                self.size = size as usize;
                if self.size > self.frame_size_max {
                    self.refused = Some(size);
                    self.size = self.size.min(frame_head::SIZE);
                }
                self.body = MutableBuffer::from_len_zeroed(self.size.min(BODY_STEP));
                self.state = State::Body;
                Ok(Step::More)
            }
        }
    }

    fn read_input(&mut self, from: &mut impl Read) -> Result<Step, Error> {
        let space = self.input.get_mut(self.have..).unwrap_or(&mut []);
        let Some(count) = read(from, space)? else {
            return Ok(Step::Blocked);
        };
        self.have += count;
        if self.have < self.input.len() {
            return Ok(Step::More);
        }
        self.state = State::Length;
        Ok(Step::Input(InputState::from_bytes(&self.input)))
    }

    fn read_body(&mut self, from: &mut impl Read) -> Result<Step, Error> {
        if self.have == self.body.len() {
            if self.have >= self.size / 16 && self.body.capacity() < self.size {
                // The rest is reserved at once, to avoid further copies: while a body grows, it is in memory
                // twice.
                self.body.reserve(self.size - self.have);
            }
            let grown = self.body.len().saturating_mul(2).min(self.size);
            self.body.resize(grown, 0);
        }
        let space = self
            .body
            .as_slice_mut()
            .get_mut(self.have..)
            .unwrap_or(&mut []);
        let count = match (read(from, space), self.refused) {
            (Err(_), Some(size)) => return Err(self.refusal(size)),
            (count, _) => count?,
        };
        let Some(count) = count else {
            return Ok(Step::Blocked);
        };
        self.have += count;
        if self.have < self.size {
            return Ok(Step::More);
        }
        if let Some(size) = self.refused {
            return Err(self.refusal(size));
        }
        self.state = State::Length;
        let body = std::mem::replace(&mut self.body, MutableBuffer::new(0));
        Ok(Step::Frame(body.into()))
    }

    /// The error for a frame that is refused, after its beginning was read.
    fn refusal(&mut self, size: u32) -> Error {
        self.state = State::Over;
        let head = self.body.as_slice().get(..self.have).unwrap_or_default();
        Error::FrameTooLarge {
            size,
            limit: self.frame_size_max,
            column: frame_head::largest_column(head),
        }
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

/// None if the read would block.
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
    /// The batches' schema, including the topic in its metadata.
    pub schema: SchemaRef,
    /// The topic to which they were published; none = every sink of the job.
    pub topic: Option<String>,
    /// The batches. They borrow from the frame where its alignment allows it.
    pub batches: Vec<RecordBatch>,
}

/// Decodes a complete frame.
pub fn decode(frame: Buffer) -> Result<Decoded, Error> {
    let mut batches = Vec::new();
    let mut stream = Stream::open(frame)?;
    while let Some(batch) = stream.next_batch()? {
        batches.push(batch);
    }
    let schema = match (stream.decoder.schema(), batches.first()) {
        (Some(schema), _) => schema,
        (None, Some(batch)) => batch.schema(),
        (None, None) => return Err(Error::Arrow("it has no schema".to_owned())),
    };
    Ok(Decoded {
        topic: topic(&schema),
        schema,
        batches,
    })
}

/// The topic of batches with this schema.
pub fn topic(schema: &SchemaRef) -> Option<String> {
    schema.metadata().get(TOPIC_KEY).cloned()
}

/// A frame that is decoded one batch at a time.
pub struct Stream {
    frame: Buffer,
    rest: Buffer,
    size: usize,
    decoder: StreamDecoder,
}

impl Stream {
    /// Checks the lengths that a frame declares, before memory is reserved for them.
    pub fn open(frame: Buffer) -> Result<Self, Error> {
        check_lengths(&frame)?;
        Ok(Stream {
            size: frame.len(),
            rest: frame.clone(),
            frame,
            decoder: StreamDecoder::new(),
        })
    }

    /// The next batch, or none at the end. It borrows from the frame where its alignment allows it.
    pub fn next_batch(&mut self) -> Result<Option<RecordBatch>, Error> {
        let reason = match catch_unwind(AssertUnwindSafe(|| self.decode_batch())) {
            Ok(Err(Error::Arrow(reason))) => reason,
            Ok(result) => return result,
            Err(_) => "its lengths or offsets make no sense".to_owned(),
        };
        match damaged_column(&self.frame) {
            Some(column) => Err(Error::Column { column, reason }),
            None => Err(Error::Arrow(reason)),
        }
    }

    fn decode_batch(&mut self) -> Result<Option<RecordBatch>, Error> {
        let fail = |error: arrow::error::ArrowError| Error::Arrow(error.to_string());
        while !self.rest.is_empty() {
            let before = self.rest.len();
            match self.decoder.decode(&mut self.rest).map_err(fail)? {
                Some(batch) => {
                    check_rows(&batch, self.size)?;
                    return Ok(Some(batch));
                }
                None if self.rest.len() == before => {
                    return Err(Error::Arrow(format!("{before} bytes behind its end")));
                }
                None => {}
            }
        }
        self.decoder.finish().map_err(fail)?;
        match self.decoder.schema() {
            Some(_) => Ok(None),
            None => Err(Error::Arrow("it has no schema".to_owned())),
        }
    }
}

/// The name of the only column that cannot be decoded. None if the error is not in one column alone.
fn damaged_column(frame: &Buffer) -> Option<String> {
    let open = |columns: Option<Vec<usize>>| StreamReader::try_new(frame.as_slice(), columns);
    let fails = |columns: Range<usize>| {
        let decoded = catch_unwind(|| match open(Some(columns.collect())) {
            Ok(reader) => reader.into_iter().any(|batch| batch.is_err()),
            Err(_) => true,
        });
        decoded.unwrap_or(true)
    };
    let schema = open(None).ok()?.schema();
    let (mut from, mut to) = (0, schema.fields().len());
    if fails(0..0) {
        // Dictionaries are decoded even if no column is requested.
        let mut with = schema
            .fields()
            .iter()
            .filter(|field| has_dictionary(field.data_type()));
        return match (with.next(), with.next()) {
            (Some(only), None) => Some(only.name().clone()),
            _ => None,
        };
    }
    if !fails(from..to) {
        return None;
    }
    while to.saturating_sub(from) > 1 {
        let middle = from + (to - from) / 2;
        match fails(from..middle) {
            true => to = middle,
            false => from = middle,
        }
    }
    schema.fields().get(from).map(|field| field.name().clone())
}

fn has_dictionary(data_type: &DataType) -> bool {
    use DataType as T;
    match data_type {
        T::Dictionary(..) => true,
        T::List(item)
        | T::LargeList(item)
        | T::ListView(item)
        | T::LargeListView(item)
        | T::FixedSizeList(item, _)
        | T::Map(item, _) => has_dictionary(item.data_type()),
        T::Struct(fields) => fields.iter().any(|field| has_dictionary(field.data_type())),
        _ => false,
    }
}

/// Checks that every message of a stream has the bytes that it declares, because the decoder reserves
/// declared lengths.
fn check_lengths(stream: &[u8]) -> Result<(), Error> {
    let cut = || Error::Arrow("it ends inside a message".to_owned());
    let mut rest = stream;
    while !rest.is_empty() {
        let mut size = frame_head::take_size(&mut rest).ok_or_else(cut)?;
        if size == u32::MAX {
            size = frame_head::take_size(&mut rest).ok_or_else(cut)?;
        }
        if size == 0 {
            return Ok(());
        }
        let (message, behind) = rest.split_at_checked(size as usize).ok_or_else(cut)?;
        let message = ipc::root_as_message(message)
            .map_err(|error| Error::Arrow(format!("a message is damaged: {error}")))?;
        let body = usize::try_from(message.bodyLength()).map_err(|_| cut())?;
        check_message(&message, body)?;
        rest = behind.get(body..).ok_or_else(cut)?;
    }
    Ok(())
}

/// Refuses a schema that needs more memory than its limits allow, and buffers that overlap. Overlapping
/// buffers that are not aligned would be copied once for each column.
fn check_message(message: &ipc::Message<'_>, body: usize) -> Result<(), Error> {
    if let Some(schema) = message.header_as_schema() {
        let mut seen = Fields {
            size: metadata_size(schema.custom_metadata().into_iter().flatten()),
            count: 0,
        };
        seen.check("")?;
        let mut fields = schema.fields().into_iter().flatten();
        return fields.try_for_each(|field| seen.add(&field));
    }
    let dictionary = message.header_as_dictionary_batch();
    let batch = message
        .header_as_record_batch()
        .or_else(|| dictionary.and_then(|dictionary| dictionary.data()));
    let buffers = batch.and_then(|batch| batch.buffers());
    let sizes = buffers.into_iter().flatten();
    let sum = sizes.fold(0usize, |sum, buffer| {
        sum.saturating_add(usize::try_from(buffer.length()).unwrap_or(usize::MAX))
    });
    match sum > body {
        true => Err(Error::Arrow(
            "a message has less bytes than its buffers".to_owned(),
        )),
        false => Ok(()),
    }
}

/// Memory that the fields of a schema need.
struct Fields {
    /// Bytes of names and metadata.
    size: usize,
    count: usize,
}

impl Fields {
    /// Counts a field and its nested fields. Arrow has checked the depth.
    fn add(&mut self, field: &ipc::Field<'_>) -> Result<(), Error> {
        let name = field.name().unwrap_or("");
        let shown = prefix(name, 80);
        if name.len() > limits::COLUMN_NAME_SIZE_MAX {
            return Err(Error::Schema(format!(
                "column {shown:?}: its name has {} bytes; the limit is {}",
                name.len(),
                limits::COLUMN_NAME_SIZE_MAX
            )));
        }
        let metadata = metadata_size(field.custom_metadata().into_iter().flatten());
        self.count += 1;
        self.size = self
            .size
            .saturating_add(name.len())
            .saturating_add(metadata);
        if self.count > limits::SCHEMA_FIELDS_MAX {
            return Err(Error::Schema(format!(
                "column {shown:?}: a batch has at most {} columns, nested ones counted",
                limits::SCHEMA_FIELDS_MAX
            )));
        }
        self.check(shown)?;
        let mut children = field.children().into_iter().flatten();
        children.try_for_each(|child| self.add(&child))
    }

    fn check(&self, column: &str) -> Result<(), Error> {
        if self.size <= limits::SCHEMA_SIZE_MAX {
            return Ok(());
        }
        let at = match column {
            "" => "the schema's metadata".to_owned(),
            name => format!("column {name:?}"),
        };
        Err(Error::Schema(format!(
            "{at}: names and metadata of a batch have {} bytes up to here; the limit is {}",
            self.size,
            limits::SCHEMA_SIZE_MAX
        )))
    }
}

fn metadata_size<'a>(entries: impl Iterator<Item = ipc::KeyValue<'a>>) -> usize {
    let sizes = entries.map(|entry| {
        let size = |text: Option<&str>| text.map_or(0, str::len);
        size(entry.key()).saturating_add(size(entry.value()))
    });
    sizes.fold(0, usize::saturating_add)
}

/// Bounds the rows of a batch, because rows of the null type or without columns need no bytes. The limit is
/// `BRIDGE_BATCH_ROWS_MAX`, or the number of bits of the frame if that is larger.
fn check_rows(batch: &RecordBatch, frame_size: usize) -> Result<(), Error> {
    let limit = limits::BRIDGE_BATCH_ROWS_MAX.max(frame_size.saturating_mul(8));
    if batch.num_rows() > limit {
        return Err(Error::Schema(format!(
            "the plugin sent a batch of {} rows in {frame_size} bytes, the limit is {limit}; publish \
             smaller batches",
            batch.num_rows()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
