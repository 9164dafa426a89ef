//! Footers of Parquet files, read to check the files.

use std::os::unix::fs::FileExt;
use std::path::Path;

use ::parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::{files, quiet_panics};

/// Limit of the size of a footer that is read, in bytes.
const FOOTER_SIZE_MAX: u64 = 64 << 20;

/// Why the footer of a file could not be read.
pub(super) enum Footer {
    Damaged(String),
    Unchecked(String),
}

/// The number of rows of a Parquet file, by its footer.
pub(super) fn rows_in(path: &Path, size: u64) -> Result<u64, Footer> {
    let found = footer_of(path, size)?;
    u64::try_from(found.file_metadata().num_rows())
        .map_err(|_| Footer::Damaged("its number of rows is negative".to_owned()))
}

/// The footer of a Parquet file.
pub(super) fn footer_of(path: &Path, size: u64) -> Result<ParquetMetaData, Footer> {
    let unchecked = |error: std::io::Error| Footer::Unchecked(error.to_string());
    let damaged = |reason: &str| Err(Footer::Damaged(reason.to_owned()));
    let file = files::open(path).map_err(unchecked)?;
    let Some(end) = size.checked_sub(8) else {
        return damaged("it is too short");
    };
    let mut tail = [0; 8];
    file.read_exact_at(&mut tail, end).map_err(unchecked)?;
    let [a, b, c, d, magic @ ..] = tail;
    let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
    if magic != *b"PAR1" || footer > end {
        return damaged("it has no footer");
    }
    if footer > FOOTER_SIZE_MAX {
        return Err(Footer::Unchecked(format!("its footer has {footer} bytes")));
    }
    match quiet_panics(|| ParquetMetaDataReader::new().parse_and_finish(&file)) {
        Ok(found) => found.map_err(|error| Footer::Damaged(error.to_string())),
        Err(panic) => Err(Footer::Damaged(panic)),
    }
}
