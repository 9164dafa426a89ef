//! The Parquet writer of one sink.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::{Metadata, Schema, SchemaRef};
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::arrow::{ARROW_SCHEMA_META_KEY, ArrowSchemaConverter, encode_arrow_schema};
use parquet::basic::{Compression as Codec, Type as PhysicalType, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{
    DEFAULT_STATISTICS_TRUNCATE_LENGTH, EnabledStatistics, WriterProperties,
};
use parquet::schema::types::ColumnDescriptor;
use sha2::{Digest, Sha256};

use super::convert::convert;
use super::{Error, budget, files, types};
use crate::job::{Compression, text::hex};
use crate::limits;

/// A Parquet file in staging, to which row groups are appended.
pub(super) struct ParquetFile {
    path: PathBuf,
    writer: ArrowWriter<Hashed>,
    /// The schema as it is written: structs without fields have a field with an empty name.
    schema: SchemaRef,
    is_padded: bool,
    /// Metadata of the schema, which is written with the footer.
    metadata: Metadata,
    /// Number of columns of the file. Each has an encoder.
    columns: usize,
    /// Bytes of memory that a column's compressor keeps.
    codec_size: usize,
    /// Expanded bytes of the row group that is not written out yet.
    pending: usize,
    /// Bytes of memory of the row group's writer without data.
    empty_size: usize,
    /// Number of row groups that are written out.
    row_groups: usize,
    rows: Rows,
}

/// Counts the rows of a file, in parts of up to [`limits::WRITE_SLICE_SIZE`] expanded bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Rows {
    count: usize,
    /// Rows of the part that is not complete.
    part: usize,
    part_size: usize,
    /// Rows of the complete part with the fewest rows.
    part_min: Option<usize>,
}

impl Rows {
    fn add(&mut self, rows: usize, size: usize) {
        self.count = self.count.saturating_add(rows);
        if self.part > 0 && self.part_size.saturating_add(size) > limits::WRITE_SLICE_SIZE {
            self.part_min = Some(self.at_once());
            (self.part, self.part_size) = (0, 0);
        }
        self.part = self.part.saturating_add(rows);
        self.part_size = self.part_size.saturating_add(size);
    }

    fn at_once(&self) -> usize {
        self.part_min.unwrap_or(usize::MAX).min(self.part)
    }
}

/// Bytes of memory of a row group that is being written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    /// Bytes for its data.
    pub(super) data: usize,
    /// Bytes for the encoders and compressors of its columns.
    pub(super) columns: usize,
}

impl Memory {
    pub(super) fn total(self) -> usize {
        self.data.saturating_add(self.columns)
    }
}

/// A file and the hash of all bytes that were written to it. Parquet is written sequentially, so the file
/// can be closed between two writes.
struct Hashed {
    path: PathBuf,
    file: Option<File>,
    hash: Sha256,
}

impl Hashed {
    fn open(&mut self) -> io::Result<&mut File> {
        match self.file.take() {
            Some(file) => Ok(self.file.insert(file)),
            None => Ok(self.file.insert(files::append(&self.path)?)),
        }
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.open()?.write(bytes)?;
        self.hash.update(bytes.get(..count).unwrap_or(bytes));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open()?.flush()
    }
}

/// True for columns of fixed-size values that the writer would truncate in statistics. Readers fail if
/// bounds do not have the size of the column's values.
fn is_cut_in_statistics(column: &ColumnDescriptor) -> bool {
    let size = usize::try_from(column.type_length()).unwrap_or(0);
    column.physical_type() == PhysicalType::FIXED_LEN_BYTE_ARRAY
        && DEFAULT_STATISTICS_TRUNCATE_LENGTH.is_some_and(|size_max| size > size_max)
}

impl ParquetFile {
    pub(super) fn create(
        path: &Path,
        schema: &SchemaRef,
        compression: Compression,
    ) -> Result<Self, Error> {
        let file = files::create(path).map_err(|error| Error::io(path, error))?;
        let codec = match compression {
            Compression::Snappy => Codec::SNAPPY,
            Compression::Zstd => Codec::ZSTD(ZstdLevel::default()),
            Compression::Lz4 => Codec::LZ4_RAW,
            Compression::None => Codec::UNCOMPRESSED,
        };
        let padded = types::padded_schema(schema);
        let mut properties = WriterProperties::builder()
            .set_compression(codec)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_max_row_group_row_count(Some(limits::ROW_GROUP_ROWS_MAX))
            .set_created_by(format!("casparian {}", env!("CARGO_PKG_VERSION")));
        let converted = ArrowSchemaConverter::new().convert(&padded);
        for column in converted.iter().flat_map(|schema| schema.columns()) {
            if is_cut_in_statistics(column) {
                let none = EnabledStatistics::None;
                properties = properties.set_column_statistics_enabled(column.path().clone(), none);
            }
        }
        let properties = properties.build();
        let file = Hashed {
            path: path.to_owned(),
            file: Some(file),
            hash: Sha256::new(),
        };
        let options = ArrowWriterOptions::new()
            .with_properties(properties)
            .with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(file, padded.clone(), options)
            .map_err(|error| failure(path, error))?;
        Ok(ParquetFile {
            path: path.to_owned(),
            writer,
            is_padded: padded != *schema,
            schema: padded,
            metadata: Metadata::new(),
            columns: budget::columns(schema),
            codec_size: budget::codec_size(compression),
            pending: 0,
            empty_size: 0,
            row_groups: 0,
            rows: Rows::default(),
        })
    }

    /// Writes a slice of a batch. `size` is its expanded bytes. Writes out the row group when its data
    /// reaches `row_group_max` bytes.
    pub(super) fn write(
        &mut self,
        slice: &RecordBatch,
        size: usize,
        row_group_max: usize,
    ) -> Result<(), Error> {
        if slice.num_rows() == 0 {
            return Ok(());
        }
        if self.pending.saturating_add(size) > limits::ROW_GROUP_EXPANDED_MAX {
            self.flush()?;
        }
        let is_first = self.pending == 0;
        self.pending = self.pending.saturating_add(size);
        self.rows.add(slice.num_rows(), size);
        let written = match self.is_padded {
            true => self.writer.write(&self.padded(slice)?),
            false => self.writer.write(slice),
        };
        written.map_err(|error| failure(&self.path, error))?;
        if is_first {
            // The encoders allocate tables, most of which are never used.
            let data = size.saturating_mul(2);
            self.empty_size = self.writer.memory_size().saturating_sub(data);
        }
        if self.memory().data >= row_group_max {
            self.flush()?;
        }
        Ok(())
    }

    fn padded(&self, slice: &RecordBatch) -> Result<RecordBatch, Error> {
        let columns = slice.columns().iter().zip(self.schema.fields());
        let columns = columns.map(|(column, field)| convert(column, field.data_type()));
        let columns: Result<Vec<_>, _> = columns.collect();
        let fail = |reason: String| Error::Parquet(format!("structs without fields: {reason}"));
        let columns = columns.map_err(|failure| fail(format!("{failure:?}")))?;
        let batch = RecordBatch::try_new(self.schema.clone(), columns);
        batch.map_err(|error| fail(error.to_string()))
    }

    /// Sets the metadata of the schema. It must be called before the footer is written.
    pub(super) fn set_metadata(&mut self, metadata: Metadata) {
        self.metadata = metadata;
    }

    /// Limit of the bytes of data of a row group. It is larger with many columns, so that each column has
    /// enough data.
    pub(super) fn row_group_max(&self) -> usize {
        let columns = self.columns.saturating_mul(limits::CHUNK_SIZE_MIN);
        limits::ROW_GROUP_SIZE_MAX.max(columns)
    }

    /// Bytes of memory of the row group that is not written out yet.
    pub(super) fn memory(&self) -> Memory {
        match self.pending {
            0 => Memory::default(),
            pending => Memory {
                data: self.writer.memory_size().saturating_sub(self.empty_size),
                columns: self.memory_of_columns()
                    + pending.min(self.columns.saturating_mul(self.codec_size)),
            },
        }
    }

    /// Bytes of memory of the columns of an empty row group.
    pub(super) fn memory_of_columns(&self) -> usize {
        self.columns.saturating_mul(limits::COLUMN_MEMORY)
    }

    /// Bytes of memory of the footer so far.
    pub(super) fn memory_of_footer(&self) -> usize {
        let chunks = self.columns.saturating_mul(self.row_groups);
        chunks.saturating_mul(limits::CHUNK_MEMORY)
    }

    /// Number of columns of the file.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// Number of row groups that are written out.
    pub(super) fn row_groups(&self) -> usize {
        self.row_groups
    }

    /// Bytes that were written to the file.
    pub(super) fn size(&self) -> u64 {
        self.writer.bytes_written() as u64
    }

    /// Number of rows of the file.
    pub(super) fn rows(&self) -> usize {
        self.rows.count
    }

    /// Number of rows that can be read at once: at any position in the file, so many rows have at most a
    /// few times [`limits::WRITE_SLICE_SIZE`] expanded bytes. At least 1.
    pub(super) fn rows_at_once(&self) -> usize {
        self.rows.at_once().clamp(1, limits::SINK_ROWS_MAX)
    }

    /// Writes out the row group.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        if self.pending == 0 {
            return Ok(());
        }
        self.pending = 0;
        self.row_groups += 1;
        let flushed = self.writer.flush();
        flushed.map_err(|error| failure(&self.path, error))
    }

    /// Closes the file. The next write opens it again.
    pub(super) fn close(&mut self) {
        self.writer.inner_mut().file = None;
    }

    /// Writes the footer.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        // Readers of GeoParquet read the metadata from the footer, pyarrow reads it from the Arrow
        // schema.
        let metadata = std::mem::take(&mut self.metadata);
        let mut pairs: Vec<(String, String)> = metadata.clone().into_iter().collect();
        let schema = Schema::new_with_metadata(self.schema.fields().clone(), metadata);
        pairs.push((
            ARROW_SCHEMA_META_KEY.to_owned(),
            encode_arrow_schema(&schema),
        ));
        for (key, value) in pairs {
            self.writer
                .append_key_value_metadata(KeyValue::new(key, value));
        }
        let finished = self.writer.finish();
        finished.map_err(|error| failure(&self.path, error))?;
        Ok(())
    }

    /// Writes the footer and syncs the file. Returns the file's SHA-256 in hex digits.
    pub(super) fn finish(mut self) -> Result<String, Error> {
        self.end()?;
        let written = self.writer.inner_mut();
        let synced = written.open().and_then(|file| file.sync_all());
        synced.map_err(|error| Error::io(&self.path, error))?;
        Ok(hex(&written.hash.clone().finalize()))
    }
}

pub(super) fn failure(path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(source) => Error::io(path, *source),
            Err(inner) => Error::Parquet(inner.to_string()),
        },
        other => Error::Parquet(other.to_string()),
    }
}
