//! What a reader of the output sees: lists visible files all the time and opens each.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{Array, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::scene::kind_of;

/// The visible files below a folder; hidden folders are skipped, as engines do.
pub(crate) fn visible(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // A folder that vanishes meanwhile is fine.
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        match path.is_dir() {
            true => found.extend(visible(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// Why a file is partial; its rows when it is complete.
fn rows_of(file: &File) -> Result<u64, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let size = file.metadata().map_err(|error| text(&error))?.len();
    let mut head = [0; 4];
    let mut tail = [0; 8];
    if size < 12 {
        return Err(format!("{size} bytes"));
    }
    file.read_exact_at(&mut head, 0)
        .map_err(|error| text(&error))?;
    file.read_exact_at(&mut tail, size - 8)
        .map_err(|error| text(&error))?;
    let [a, b, c, d, ..] = tail;
    let footer = u64::from(u32::from_le_bytes([a, b, c, d]));
    if head != *b"PAR1" || tail[4..] != *b"PAR1" || footer + 12 > size {
        return Err(format!(
            "no Parquet magic, or a footer of {footer} bytes in {size}"
        ));
    }
    let file = file.try_clone().map_err(|error| text(&error))?;
    let reader = SerializedFileReader::new(file).map_err(|error| text(&error))?;
    u64::try_from(reader.metadata().file_metadata().num_rows()).map_err(|error| text(&error))
}

/// What a reader has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) passes: u64,
    pub(crate) files: u64,
    /// Files that were not complete, and why.
    pub(crate) partial: BTreeSet<String>,
}

/// Reads until it is over. A file that did not change since it was read is not read again.
pub(crate) fn read_on(out: &Path, over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut known = HashSet::new();
    while !over.load(Ordering::SeqCst) {
        let began = Instant::now();
        for path in visible(out) {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    seen.partial.insert(format!("{}: {error}", path.display()));
                    continue;
                }
            };
            let data = file.metadata().unwrap();
            if !known.insert((
                path.clone(),
                data.ino(),
                data.size(),
                data.mtime(),
                data.mtime_nsec(),
            )) {
                continue;
            }
            seen.files += 1;
            let expected = kind_of(&path).map(|kind| kind.rows);
            match rows_of(&file) {
                Ok(rows) if Some(rows) == expected => {}
                Ok(rows) => {
                    let problem = format!("{}: {rows} rows, not {expected:?}", path.display());
                    seen.partial.insert(problem);
                }
                Err(error) => {
                    seen.partial.insert(format!("{}: {error}", path.display()));
                }
            }
        }
        seen.passes += 1;
        std::thread::sleep(
            began
                .elapsed()
                .clamp(Duration::from_millis(10), Duration::from_secs(1)),
        );
    }
    seen
}

/// The contents of a file as the plugins wrote it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) rows: u64,
    pub(crate) size: u64,
    pub(crate) inputs: BTreeSet<i64>,
    pub(crate) jobs: BTreeSet<i64>,
    pub(crate) tokens: BTreeSet<String>,
}

/// Reads a whole file.
pub(crate) fn contents(path: &Path) -> Result<Contents, String> {
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| fail(&error))?;
    let mut contents = Contents {
        size: file.metadata().map_err(|error| fail(&error))?.len(),
        ..Contents::default()
    };
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(ParquetRecordBatchReaderBuilder::build)
        .map_err(|error| fail(&error))?;
    for batch in reader {
        let batch = batch.map_err(|error| fail(&error))?;
        contents.rows += batch.num_rows() as u64;
        let column = |name: &str, data_type: &DataType| {
            let column = batch
                .column_by_name(name)
                .ok_or_else(|| fail(&format!("no column {name}")))?;
            cast(column, data_type).map_err(|error| fail(&error))
        };
        for (name, set) in [
            ("input", &mut contents.inputs),
            ("_job_id", &mut contents.jobs),
        ] {
            let column = column(name, &DataType::Int64)?;
            let numbers = column.as_any().downcast_ref::<Int64Array>().unwrap();
            set.extend(numbers.iter().flatten());
        }
        let column = column("token", &DataType::Utf8)?;
        let tokens = column.as_any().downcast_ref::<StringArray>().unwrap();
        contents
            .tokens
            .extend(tokens.iter().flatten().map(str::to_owned));
    }
    Ok(contents)
}
