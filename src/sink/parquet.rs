//! The Parquet writer of one sink.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as Codec, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use sha2::{Digest, Sha256};

use super::{Error, files};
use crate::job::{Compression, text::hex};
use crate::limits;

/// A file in staging that grows a row group at a time.
pub(super) struct ParquetFile {
    path: PathBuf,
    writer: ArrowWriter<Hashed>,
}

/// A file and the hash of all that was written to it. Parquet is written from start to end.
struct Hashed {
    file: File,
    hash: Sha256,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(bytes.get(..count).unwrap_or(bytes));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
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
        let properties = WriterProperties::builder()
            .set_compression(codec)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_max_row_group_row_count(Some(limits::ROW_GROUP_ROWS_MAX))
            .set_created_by(format!("casparian {}", env!("CARGO_PKG_VERSION")))
            .build();
        let file = Hashed {
            file,
            hash: Sha256::new(),
        };
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))
            .map_err(|error| failure(path, error))?;
        Ok(ParquetFile {
            path: path.to_owned(),
            writer,
        })
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        // One batch may be far larger than a row group should be.
        let size = batch.get_array_memory_size().max(1);
        let rows = batch.num_rows();
        let step =
            (rows.saturating_mul(limits::WRITE_SLICE_SIZE) / size).clamp(1024, rows.max(1024));
        let mut start = 0;
        while start < rows {
            let slice = batch.slice(start, step.min(rows - start));
            self.writer
                .write(&slice)
                .map_err(|error| failure(&self.path, error))?;
            start += step;
            if self.writer.memory_size() >= limits::ROW_GROUP_SIZE_MAX {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Bytes of the row group that is not written out yet.
    pub(super) fn memory(&self) -> usize {
        self.writer.memory_size()
    }

    /// Writes out the row group.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        self.writer
            .flush()
            .map_err(|error| failure(&self.path, error))
    }

    /// Writes the footer and syncs. The file's SHA-256 in hex digits.
    pub(super) fn finish(mut self) -> Result<String, Error> {
        self.writer
            .finish()
            .map_err(|error| failure(&self.path, error))?;
        let written = self.writer.inner();
        written
            .file
            .sync_all()
            .map_err(|error| Error::io(&self.path, error))?;
        Ok(hex(&written.hash.clone().finalize()))
    }
}

fn failure(path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(source) => Error::io(path, *source),
            Err(inner) => Error::Parquet(inner.to_string()),
        },
        other => Error::Parquet(other.to_string()),
    }
}
