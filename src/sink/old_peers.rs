//! Output of the reference system. Its workers write no records, and a file's name alone is no evidence
//! that the file is a job's output. The database has the time since when the reference system may have
//! run the job (`History::old_since_ms`). Where that is set, a file is the job's output in two cases:
//! - The record of a worker of Casparian that served an old sentinel names it.
//! - It was written since that time, and all its rows have the ID of the job and of its file version.

use std::path::Path;

use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::file::statistics::Statistics;

use super::columns::{FILE_VERSION_ID, JOB_ID};
use super::files::{self, Identity};
use super::folder::{Name, OLD};
use super::names::Holder;
use super::panics::quiet_panics;
use super::{Error, Root, record};
use crate::job::{Attempt, Job};
use crate::limits;

/// True when the file at the path of a job's output, which has this identity, is that output.
pub(super) fn is_output(
    root: &Root,
    job: &Job,
    holder: &Holder,
    (path, identity): (&Path, Identity),
) -> Result<bool, Error> {
    let Some(since_ms) = job.history.old_since_ms else {
        return Ok(false);
    };
    // The reference system has neither suffixes of databases nor incarnations.
    if holder.suffix.is_some() || holder.incarnation != 0 || identity == Identity::default() {
        return Ok(false);
    }
    let name = Name::numbered(OLD, Attempt::new(holder.job_id, 0))?;
    if let Ok(Some(record)) = record::read(root, &name)
        && record
            .possible_outputs()
            .files
            .iter()
            .any(|file| file.identity == identity)
    {
        return Ok(true);
    }
    let modified_ms = identity.modified_s.saturating_mul(1000) + identity.modified_ns / 1_000_000;
    let slack = i64::try_from(limits::OLD_PEER_CLOCK_SLACK.as_millis()).unwrap_or_default();
    let is_since = modified_ms >= since_ms.saturating_sub(slack);
    let ids = [
        (JOB_ID, holder.job_id),
        (FILE_VERSION_ID, job.file_version_id),
    ];
    let is_its = is_since && has_ids(path, ids);
    Ok(is_its && files::identity(path)? == Some(identity))
}

/// True when each row of a Parquet file has these values, by the statistics of its columns. False for
/// other files and for files without rows.
fn has_ids(path: &Path, ids: [(&str, i64); 2]) -> bool {
    let read = || -> Option<bool> {
        let reader = SerializedFileReader::new(files::open(path).ok()?).ok()?;
        let metadata = reader.metadata();
        let groups = metadata.row_groups();
        let has = |(name, value): (&str, i64)| {
            groups.iter().all(|group| {
                let mut columns = group.columns().iter();
                let column = columns.find(|column| column.column_path().string() == name);
                column
                    .and_then(|column| column.statistics())
                    .is_some_and(|found| is_always(found, value))
            })
        };
        Some(metadata.file_metadata().num_rows() > 0 && ids.into_iter().all(has))
    };
    matches!(quiet_panics(read), Ok(Some(true)))
}

fn is_always(statistics: &Statistics, value: i64) -> bool {
    let range = match statistics {
        Statistics::Int64(found) => found.min_opt().copied().zip(found.max_opt().copied()),
        Statistics::Int32(found) => {
            let [min, max] = [found.min_opt(), found.max_opt()];
            min.map(|min| i64::from(*min))
                .zip(max.map(|max| i64::from(*max)))
        }
        _ => None,
    };
    range == Some((value, value)) && statistics.null_count_opt().is_none_or(|nulls| nulls == 0)
}
