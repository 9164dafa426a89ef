//! The content of a job's input: that of its file version, and what a worker found instead.
//!
//! A worker that finds other content than that of the file version refuses the job and reports the content.
//! The content is registered as a version of the same location. The row gets that version before the next
//! attempt.

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, params};

use super::time;
use super::value::{cell, count, number, shown};
use super::{Error, Now, Store, Transaction};
use crate::job::{Attempt, Content, mtime_s, text};
use crate::limits;

/// The location of a RUNNING row's file, and its version.
pub(super) const LOCATION_QUERY: &str = "SELECT v.id, v.location_id FROM cf_processing_queue q \
     JOIN cf_file_version v ON v.id = q.file_version_id \
     JOIN cf_file_location l ON l.id = v.location_id \
     WHERE q.id = ?1 AND q.status = 'RUNNING'";

/// Gives the row of an ended attempt another file version.
pub(super) const MOVE: &str = "UPDATE cf_processing_queue SET file_version_id = ?3 \
     WHERE id = ?1 AND file_version_id = ?2 AND status IS NOT 'RUNNING'";

/// How many consecutive attempts before ?2, and above ?3, were refused because of other content.
pub(super) const MOVED_QUERY: &str = "SELECT count(*) FROM cf_job_attempt \
     WHERE job_id = ?1 AND attempt < ?2 AND status = 'RETURNED' AND cause = 'input' \
     AND attempt > coalesce((SELECT max(attempt) FROM cf_job_attempt WHERE job_id = ?1 \
     AND attempt < ?2 AND NOT (coalesce(status, '') = 'RETURNED' AND coalesce(cause, '') \
     IN ('input', 'lost', ''))), ?3)";

/// A change of a job's file version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub(super) from: i64,
    pub(super) to: i64,
    /// Consecutive earlier attempts that ended with such a change.
    pub(super) before: i64,
}

/// Size, time and hash of the version ?1, where it is of the same file as the version ?2.
pub(super) const SIBLING_QUERY: &str = "SELECT v.size_bytes, v.modified_time, v.content_hash, \
     iif(l.current_version_id = v.id, l.last_known_mtime, NULL) FROM cf_file_version v \
     JOIN cf_file_version o ON o.location_id = v.location_id AND o.id = ?2 \
     JOIN cf_file_location l ON l.id = v.location_id WHERE v.id = ?1";

/// A version's content by the catalogue: size, hash and modification time. `mtime` = the location's time,
/// which is more exact, where the version is the current one. Values that cannot be read are None.
pub(super) fn registered(
    size: ValueRef<'_>,
    modified: ValueRef<'_>,
    hash: ValueRef<'_>,
    mtime: ValueRef<'_>,
) -> Content {
    let mtime_ns = match mtime {
        // The cast saturates. NaN becomes 0.
        ValueRef::Real(seconds) => Some((seconds * 1e9).round() as i64),
        ValueRef::Integer(seconds) => Some(seconds.saturating_mul(1_000_000_000)),
        _ => {
            let ms = shown(modified).and_then(|text| time::parse(&text));
            ms.map(|ms| ms.saturating_mul(1_000_000))
        }
    };
    Content {
        size_bytes: number(size).and_then(|size| u64::try_from(size).ok()),
        mtime_ns,
        hash: match hash {
            ValueRef::Text(bytes) if bytes.len() <= limits::CONTENT_HASH_SIZE_MAX => shown(hash),
            _ => None,
        },
    }
}

impl Store {
    /// The content of a version, where it is of the same file as another version.
    pub fn content_of(&self, version_id: i64, other: i64) -> Result<Option<Content>, Error> {
        let mut statement = self.connection.prepare_cached(SIBLING_QUERY)?;
        let found = statement.query_row([version_id, other], |row| {
            let [size, modified, hash, mtime] = [0, 1, 2, 3].map(|index| cell(row, index));
            Ok(registered(size, modified, hash, mtime))
        });
        Ok(found.optional()?)
    }
}

impl Transaction<'_> {
    /// Registers the content that a worker has found instead of the content of a RUNNING job's file version.
    /// None when it is the same content, or when the report is incomplete. The inner error is the reason why
    /// the database refuses it.
    pub(super) fn register_found(
        &mut self,
        attempt: Attempt,
        found: &Content,
        now: &Now,
    ) -> Result<Result<Option<Moved>, String>, Error> {
        let (Some(size), Some(mtime_ns), Some(hash)) =
            (found.size_bytes, found.mtime_ns, found.sha256())
        else {
            return Ok(Ok(None));
        };
        let location = self
            .inner
            .prepare_cached(LOCATION_QUERY)?
            .query_row([attempt.job_id], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((from, location_id)) = location else {
            return Ok(Ok(None));
        };
        let hash = hash.to_ascii_lowercase();
        let name = format!("the input of job {}", attempt.job_id);
        let registered = self.change_all(&name, |transaction| {
            transaction.register_version(location_id, size, mtime_s(mtime_ns), &hash, now.unix_ms)
        })?;
        Ok(match registered {
            Ok((to, _)) if to == from => Ok(None),
            Ok((to, _)) => Ok(Some(Moved {
                from,
                to,
                before: self.moved_before(attempt)?,
            })),
            Err(mut reason) => {
                log::warn!("{attempt}: what its input is now cannot be registered: {reason}");
                text::cut(&mut reason, limits::ERROR_TEXT_SIZE_MAX);
                Err(reason)
            }
        })
    }

    /// Gives the row of an ended attempt its new file version.
    pub(super) fn move_to(&mut self, attempt: Attempt, moved: Moved) -> Result<(), Error> {
        let parameters = [attempt.job_id, moved.from, moved.to];
        if self.change_job(attempt.job_id, MOVE, parameters)? == Some(1) {
            log::info!(
                "{attempt}: its input has other content than file version {}; the job's file version \
                 is {} now",
                moved.from,
                moved.to
            );
        }
        Ok(())
    }

    fn moved_before(&self, attempt: Attempt) -> Result<i64, Error> {
        let mut statement = self.inner.prepare_cached(MOVED_QUERY)?;
        let first = attempt.incarnation() << 32;
        let parameters = params![attempt.job_id, attempt.number, first];
        Ok(statement.query_row(parameters, |row| Ok(count(cell(row, 0))))?)
    }
}
