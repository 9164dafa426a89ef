//! How much memory a job's output may take in the worker, and what it is counted as.
//!
//! The buffer of a job (`--job-buffer`) has four parts: frames on their way, the row groups that are
//! being written, what files keep until they are finished (schemas, footers), and one row as it is
//! written, of which the writers have several copies. `--cell-max` raises the limits of a frame and of a
//! row alone, to one cell of that size: its memory is beside the buffer.

use arrow::datatypes::{DataType, SchemaRef};

use crate::job::Compression;
use crate::limits;

/// Bounds of one job's output.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of memory; see the module's head.
    pub buffer: u64,
    /// Bytes of all files together; 0 = any number.
    pub output: u64,
    /// Bytes of a cell that is taken beyond the buffer's parts; 0 = none. Its frame, and what the
    /// writers keep of it, is memory beside the buffer.
    pub cell: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            buffer: limits::JOB_BUFFER_SIZE,
            output: 0,
            cell: 0,
        }
    }
}

impl Bounds {
    fn part(&self, divisor: u64) -> usize {
        usize::try_from(self.buffer / divisor).unwrap_or(usize::MAX)
    }

    /// Bytes of frames that have been read and are not written yet.
    pub fn frames(&self) -> usize {
        self.part(2)
    }

    /// Bytes of one frame.
    pub fn frame(&self) -> usize {
        let usual = self.frames().min(limits::BRIDGE_FRAME_SIZE_MAX as usize);
        usual.max(self.cell_row())
    }

    /// Bytes of a row with the largest cell; 0 without one.
    fn cell_row(&self) -> usize {
        match usize::try_from(self.cell) {
            Ok(0) => 0,
            Ok(cell) => cell.saturating_add(limits::CELL_OVERHEAD),
            Err(_) => usize::MAX,
        }
    }

    /// Bytes of the row groups that are being written, with their columns' encoders.
    pub(super) fn row_groups(&self) -> usize {
        self.part(4)
    }

    /// Bytes that files keep until they are finished.
    pub(super) fn files(&self) -> usize {
        self.part(8)
    }

    /// Bytes of one row, expanded.
    pub(super) fn row(&self) -> usize {
        self.part(32).max(self.cell_row())
    }
}

/// Columns of a Parquet file with that type of column.
fn leaves(data_type: &DataType) -> usize {
    match data_type {
        DataType::Struct(fields) => fields.iter().map(|field| leaves(field.data_type())).sum(),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => leaves(field.data_type()),
        DataType::RunEndEncoded(_, values) => leaves(values.data_type()),
        _ => 1,
    }
}

/// Columns of a Parquet file with that schema.
pub(super) fn columns(schema: &SchemaRef) -> usize {
    let fields = schema.fields().iter();
    fields.map(|field| leaves(field.data_type())).sum()
}

/// Memory of a schema for as long as its file is written.
pub(super) fn schema_size(schema: &SchemaRef) -> usize {
    let metadata = schema.metadata().iter();
    let metadata = metadata.map(|(key, value)| key.len() + value.len());
    let fields = schema.flattened_fields().into_iter().map(|field| {
        let metadata = field.metadata().iter();
        let metadata: usize = metadata.map(|(key, value)| key.len() + value.len()).sum();
        limits::FIELD_MEMORY + (field.name().len() + metadata) * limits::SCHEMA_COPIES
    });
    fields.sum::<usize>() + metadata.sum::<usize>() * limits::SCHEMA_COPIES
}

/// Memory that a column's compressor keeps, of what it has compressed.
pub(super) fn codec_size(compression: Compression) -> usize {
    match compression {
        Compression::None => 0,
        Compression::Snappy => 32 << 10,
        Compression::Lz4 => 16 << 10,
        Compression::Zstd => 1 << 20,
    }
}
