//! Segments: complete Parquet files in staging with the rows of a sink that were written before its
//! schema changed, one for each earlier schema. When the output is staged, they are read back and written
//! as one file.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::parquet::{ParquetFile, failure};
use super::{Error, files};

/// A file with rows of one schema.
pub(super) struct Segment {
    path: PathBuf,
    size: u64,
    rows: usize,
    rows_at_once: usize,
}

/// The segments of a sink.
#[derive(Default)]
pub(super) struct Segments(Vec<Segment>);

impl Segments {
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Bytes of all files.
    pub(super) fn size(&self) -> u64 {
        self.0.iter().map(|segment| segment.size).sum()
    }

    /// Completes the file of a sink and renames it, so that another file can be created at its path. A
    /// file without rows is removed.
    pub(super) fn add(&mut self, mut file: ParquetFile, path: &Path) -> Result<(), Error> {
        if file.rows() == 0 {
            return std::fs::remove_file(path).map_err(|error| Error::io(path, error));
        }
        file.end()?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let to = path.with_file_name(format!("{name}.{}", self.0.len()));
        files::rename(path, &to)?;
        self.0.push(Segment {
            path: to,
            size: file.size(),
            rows: file.rows(),
            rows_at_once: file.rows_at_once(),
        });
        Ok(())
    }

    pub(super) fn into_list(self) -> Vec<Segment> {
        self.0
    }
}

impl Segment {
    /// Passes all rows to `take`, without the two ID columns, and removes the file.
    pub(super) fn read(
        self,
        mut take: impl FnMut(RecordBatch) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let fail = |reason: String| Error::Parquet(format!("rows in staging: {reason}"));
        let mut rows = 0;
        for batch in self.open()? {
            let batch = batch.map_err(|error| fail(error.to_string()))?;
            rows += batch.num_rows();
            let columns: Vec<usize> = (0..batch.num_columns().saturating_sub(2)).collect();
            let batch = batch.project(&columns);
            take(batch.map_err(|error| fail(error.to_string()))?)?;
        }
        if rows != self.rows {
            return Err(fail(format!("{rows} rows instead of {}", self.rows)));
        }
        std::fs::remove_file(&self.path).map_err(|error| Error::io(&self.path, error))
    }

    fn open(&self) -> Result<ParquetRecordBatchReader, Error> {
        let file = File::open(&self.path).map_err(|error| Error::io(&self.path, error))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file);
        let builder = builder.map_err(|error| failure(&self.path, error))?;
        let reader = builder.with_batch_size(self.rows_at_once).build();
        reader.map_err(|error| failure(&self.path, error))
    }
}
