//! How much memory a job's output may take in the worker, and how it is counted.
//!
//! The buffer of a job (`--job-buffer`) has four parts: frames that are not written yet, the row groups
//! that are being written, what files keep until they are finished (schemas, footers), and one row that
//! is being written, of which the writers have several copies. `--cell-max` raises only the limits of a
//! frame and of a row, to one cell of that size. That memory is not part of the buffer.

use arrow::datatypes::{DataType, SchemaRef};

use crate::job::{Compression, LimitOf};
use crate::limits;

/// Bounds of one job's output.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of the job's buffer; see the module's documentation.
    pub buffer: u64,
    /// Bytes of all files together; 0 = no limit.
    pub output: u64,
    /// Who has set that.
    pub output_of: LimitOf,
    /// Bytes of the largest cell that is accepted although it exceeds the buffer's parts; 0 = none.
    /// Memory of its frame and of the writers' copies is not part of the buffer.
    pub cell: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            buffer: limits::JOB_BUFFER_SIZE,
            output: 0,
            output_of: LimitOf::Operator,
            cell: 0,
        }
    }
}

impl Bounds {
    fn part(&self, divisor: u64) -> usize {
        usize::try_from(self.buffer / divisor).unwrap_or(usize::MAX)
    }

    /// Limit of the bytes of frames that have been read and are not written yet.
    pub fn frames(&self) -> usize {
        self.part(2)
    }

    /// Limit of the bytes of one frame.
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

    /// Limit of the bytes of the row groups that are being written, with their columns' encoders.
    pub(super) fn row_groups(&self) -> usize {
        self.part(4)
    }

    /// Limit of the bytes that files keep in memory until they are finished.
    pub(super) fn files(&self) -> usize {
        self.part(8)
    }

    /// Limit of the bytes of one row, expanded.
    pub(super) fn row(&self) -> usize {
        self.part(32).max(self.cell_row())
    }
}

/// Number of Parquet columns for a column of this type.
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

/// Number of columns of a Parquet file with this schema.
pub(super) fn columns(schema: &SchemaRef) -> usize {
    let fields = schema.fields().iter();
    fields.map(|field| leaves(field.data_type())).sum()
}

/// Bytes of memory of a schema while its file is being written.
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

/// Bytes of memory that a column's compressor keeps, for the data it has compressed.
pub(super) fn codec_size(compression: Compression) -> usize {
    match compression {
        Compression::None => 0,
        Compression::Snappy => 32 << 10,
        Compression::Lz4 => 16 << 10,
        Compression::Zstd => 1 << 20,
    }
}
