//! The file catalogue: source roots, file locations, file versions.

use std::path::{Path, PathBuf};

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Row, params};
use serde_json::Value;

use super::claim::published;
use super::value::{cell, count, number, shown};
use super::{Error, PluginCode, Transaction, format_time};
use crate::job::{Attempt, Parameters};

/// A version of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileVersion {
    /// The location of the file.
    pub location_id: i64,
    /// The version: a content of the file.
    pub version_id: i64,
    /// The content is new at this location.
    pub new: bool,
}

/// A job of a plugin for a location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileJob {
    /// The job.
    pub job_id: i64,
    /// Its status.
    pub status: String,
    /// Hash of the content of its input.
    pub content_hash: String,
    /// Hash of the code that it ran.
    pub artifact_hash: Option<String>,
    /// Its receipt.
    pub receipt: Option<String>,
}

/// Output that a job has published with a receipt, also when later attempts have failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The URIs of the output.
    pub uris: Vec<String>,
    /// The attempt that has published it. The row's last attempt where that is unknown.
    pub attempt: Attempt,
    /// That attempt's key, 0 where it is unknown.
    pub key: i64,
    /// Hash of the content from which it was made, where that is known.
    pub content_hash: Option<String>,
    /// The location of the file from which it was made, where that is known.
    pub location_id: Option<i64>,
}

/// A job that has published, and its input.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishedInput {
    /// The job.
    pub job_id: i64,
    /// The file's path.
    pub path: PathBuf,
    /// Hash of the content from which the output was made, where that is known.
    pub content_hash: Option<String>,
    /// The file's modification time when it was last seen, in seconds.
    pub mtime_s: Option<f64>,
    /// The output.
    pub uris: Vec<String>,
}

/// The jobs of a plugin that have published, with their files.
pub(super) const PUBLISHED_INPUTS_QUERY: &str = "SELECT q.id, r.path, l.rel_path, \
     coalesce((SELECT content_hash FROM cf_file_version WHERE id = q.published_version_id), \
     v.content_hash), coalesce(q.published, q.receipt), l.last_known_mtime FROM cf_processing_queue q \
     JOIN cf_file_version v ON v.id = q.file_version_id \
     JOIN cf_file_location l ON l.id = v.location_id \
     JOIN cf_source_root r ON r.id = l.source_root_id \
     WHERE q.plugin_name = ?1 AND coalesce(q.published, q.receipt) IS NOT NULL ORDER BY q.id";

/// What a job has published, and the attempt that published it.
pub(super) const PUBLICATION_QUERY: &str = "SELECT coalesce(q.published, q.receipt), q.attempt, \
     a.attempt, a.attempt_key, \
     (SELECT content_hash FROM cf_file_version WHERE id = q.published_version_id), \
     (SELECT location_id FROM cf_file_version WHERE id = q.published_version_id) \
     FROM cf_processing_queue q LEFT JOIN cf_job_attempt a \
     ON a.job_id = q.id AND a.attempt = (SELECT max(attempt) FROM cf_job_attempt \
     WHERE job_id = ?1 AND status = 'COMPLETED') WHERE q.id = ?1";

/// Whether a job is COMPLETED with this code and the content of its file version. Another program may have
/// set the status. Then the job's output may have been made from other content.
pub(super) const DONE_QUERY: &str = "SELECT 1 FROM cf_processing_queue q WHERE q.id = ?1 \
     AND q.status = 'COMPLETED' AND q.plugin_name = ?2 AND q.artifact_hash = ?3 \
     AND (SELECT content_hash FROM cf_file_version WHERE id = q.file_version_id) IS \
     (SELECT content_hash FROM cf_file_version \
     WHERE id = coalesce(q.published_version_id, q.file_version_id))";

/// Whether a folder is an active source root.
pub(super) const ROOT_QUERY: &str =
    "SELECT 1 FROM cf_source_root WHERE path IN (?1, ?2) AND active IS NOT 0";

/// From this ID on, SQLite chooses the IDs.
const ID_END: i64 = 1 << 62;

/// The highest ID in a table, or the highest one by which other tables refer to it. Such references may exist
/// after the row was deleted.
pub(super) const HIGHEST_ROOT_QUERY: &str = "SELECT max(\
     coalesce((SELECT max(id) FROM cf_source_root), 0), \
     coalesce((SELECT CAST(source_root_id AS INTEGER) FROM cf_file_location \
     WHERE source_root_id < ?1 ORDER BY source_root_id DESC LIMIT 1), 0))";
pub(super) const HIGHEST_LOCATION_QUERY: &str = "SELECT max(\
     coalesce((SELECT max(id) FROM cf_file_location), 0), \
     coalesce((SELECT CAST(location_id AS INTEGER) FROM cf_file_version \
     WHERE location_id < ?1 ORDER BY location_id DESC LIMIT 1), 0))";
pub(super) const HIGHEST_VERSION_QUERY: &str = "SELECT max(\
     coalesce((SELECT max(id) FROM cf_file_version), 0), \
     coalesce((SELECT CAST(file_version_id AS INTEGER) FROM cf_processing_queue \
     WHERE file_version_id < ?1 ORDER BY file_version_id DESC LIMIT 1), 0))";

/// A location that was registered by a release which followed the symbolic links of paths.
pub(super) const RESOLVED_QUERY: &str = "SELECT l.id FROM cf_source_root r \
     JOIN cf_file_location l ON l.source_root_id = r.id AND l.rel_path = ?3 \
     WHERE r.path IN (?1, ?2) \
     AND l.id <= (SELECT value FROM cf_casparian WHERE key = 'resolved_locations')";

/// The text of a receipt, or of a list of URIs, with old URIs replaced by new ones. `uris` = pairs (old,
/// new).
fn renamed(text: &str, uris: &[(String, String)]) -> String {
    let Ok(mut value) = serde_json::from_str::<Value>(text) else {
        return text.to_owned();
    };
    let rename = |value: &mut Value| {
        let is_it = |(from, _): &&(String, String)| value.as_str() == Some(from);
        if let Some((_, to)) = uris.iter().find(is_it) {
            *value = to.as_str().into();
        }
    };
    match &mut value {
        Value::Array(uris) => uris.iter_mut().for_each(rename),
        Value::Object(receipt) => {
            let artifacts = receipt.get_mut("artifacts").and_then(Value::as_array_mut);
            let artifacts = artifacts.into_iter().flatten();
            artifacts
                .filter_map(|file| file.get_mut("uri"))
                .for_each(rename);
        }
        _ => {}
    }
    value.to_string()
}

fn file_job(row: &Row<'_>) -> rusqlite::Result<FileJob> {
    Ok(FileJob {
        job_id: row.get(0)?,
        status: shown(cell(row, 1)).unwrap_or_default(),
        content_hash: shown(cell(row, 2)).unwrap_or_default(),
        artifact_hash: shown(cell(row, 3)),
        receipt: shown(cell(row, 4)),
    })
}

impl Transaction<'_> {
    /// An ID above all IDs that rows have or refer to. None when SQLite is to choose it.
    fn new_id(&self, highest: &str) -> Result<Option<i64>, Error> {
        let mut statement = self.inner.prepare_cached(highest)?;
        let highest: i64 = statement.query_row([ID_END], |row| row.get(0))?;
        Ok((highest < ID_END).then(|| highest + 1))
    }

    /// The longest active source root that contains an absolute path.
    pub fn root_of(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        let mut statement = self.inner.prepare_cached(ROOT_QUERY)?;
        for folder in path.ancestors().skip(1) {
            // A root with a slash at its end is the same folder.
            let text = folder.to_string_lossy();
            if statement.exists([&*text, &format!("{text}/")])? {
                return Ok(Some(folder.to_path_buf()));
            }
        }
        Ok(None)
    }

    /// Finds or adds source root, location, content and version of a file. Added rows have IDs to which no
    /// row refers, not even one that refers to a deleted row. So a job never gets another file.
    pub fn register_file(
        &mut self,
        root: &str,
        rel_path: &str,
        size_bytes: u64,
        mtime_s: f64,
        content_hash: &str,
        now_ms: i64,
    ) -> Result<FileVersion, Error> {
        let now = format_time(now_ms);
        let transaction = &self.inner;
        let root_id: Option<i64> = transaction
            .prepare_cached("SELECT id FROM cf_source_root WHERE path IN (?1, ?1 || '/')")?
            .query_row([root], |row| row.get(0))
            .optional()?;
        let root_id = match root_id {
            Some(id) => id,
            None => {
                transaction
                    .prepare_cached(
                        "INSERT INTO cf_source_root (id, path, type, active) \
                         VALUES (?1, ?2, 'local', 1)",
                    )?
                    .execute(params![self.new_id(HIGHEST_ROOT_QUERY)?, root])?;
                transaction.last_insert_rowid()
            }
        };
        let location: Option<i64> = transaction
            .prepare_cached(
                "SELECT id FROM cf_file_location WHERE source_root_id = ?1 AND rel_path = ?2",
            )?
            .query_row(params![root_id, rel_path], |row| row.get(0))
            .optional()?;
        let location_id = match location {
            Some(id) => id,
            None => {
                let filename = rel_path.rsplit('/').next().unwrap_or(rel_path);
                transaction
                    .prepare_cached(
                        "INSERT INTO cf_file_location (id, source_root_id, rel_path, filename, \
                         discovered_time) VALUES (?1, ?2, ?3, ?4, ?5)",
                    )?
                    .execute(params![
                        self.new_id(HIGHEST_LOCATION_QUERY)?,
                        root_id,
                        rel_path,
                        filename,
                        now
                    ])?;
                transaction.last_insert_rowid()
            }
        };
        let (version_id, new) =
            self.register_version(location_id, size_bytes, mtime_s, content_hash, now_ms)?;
        Ok(FileVersion {
            location_id,
            version_id,
            new,
        })
    }

    /// Finds or adds content and version of a file at a location. Returns the version, and whether the
    /// content is new there.
    pub(super) fn register_version(
        &self,
        location_id: i64,
        size_bytes: u64,
        mtime_s: f64,
        content_hash: &str,
        now_ms: i64,
    ) -> Result<(i64, bool), Error> {
        let now = format_time(now_ms);
        let size = i64::try_from(size_bytes).unwrap_or(i64::MAX);
        let transaction = &self.inner;
        transaction
            .prepare_cached(
                "INSERT INTO cf_file_hash_registry (content_hash, first_seen, size_bytes) \
                 VALUES (?1, ?2, ?3) ON CONFLICT (content_hash) DO NOTHING",
            )?
            .execute(params![content_hash, now, size])?;
        let version: Option<i64> = transaction
            .prepare_cached(
                "SELECT id FROM cf_file_version WHERE location_id = ?1 AND content_hash = ?2 \
                 ORDER BY id DESC LIMIT 1",
            )?
            .query_row(params![location_id, content_hash], |row| row.get(0))
            .optional()?;
        let (version_id, new) = match version {
            Some(id) => (id, false),
            None => {
                // Rounded to microseconds first, so that a whole number of milliseconds stays the same.
                let modified_ms = ((mtime_s * 1e6).round() / 1e3).floor();
                let modified = format_time(modified_ms as i64);
                transaction
                    .prepare_cached(
                        "INSERT INTO cf_file_version (id, location_id, content_hash, size_bytes, \
                         modified_time, detected_at, applied_tags) \
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, '')",
                    )?
                    .execute(params![
                        self.new_id(HIGHEST_VERSION_QUERY)?,
                        location_id,
                        content_hash,
                        size,
                        modified,
                        now
                    ])?;
                (transaction.last_insert_rowid(), true)
            }
        };
        transaction
            .prepare_cached(
                "UPDATE cf_file_location SET current_version_id = ?2, last_known_mtime = ?3, \
                 last_known_size = ?4, last_seen_time = ?5 WHERE id = ?1",
            )?
            .execute(params![location_id, version_id, mtime_s, size, now])?;
        Ok((version_id, new))
    }

    /// The jobs of a plugin for all versions of the file at a location, by ascending ID.
    pub fn jobs_of_file(&self, plugin: &str, location_id: i64) -> Result<Vec<FileJob>, Error> {
        let mut statement = self.inner.prepare_cached(
            "SELECT q.id, q.status, v.content_hash, q.artifact_hash, q.receipt \
             FROM cf_file_version v JOIN cf_processing_queue q \
             ON q.file_version_id = v.id AND q.plugin_name = ?1 \
             WHERE v.location_id = ?2 ORDER BY q.id",
        )?;
        let jobs = statement.query_map(params![plugin, location_id], file_job)?;
        Ok(jobs.collect::<Result<_, _>>()?)
    }

    /// The same for one job. None where it does not exist.
    pub fn file_job(&self, job_id: i64) -> Result<Option<FileJob>, Error> {
        let mut statement = self.inner.prepare_cached(
            "SELECT q.id, q.status, v.content_hash, q.artifact_hash, q.receipt \
             FROM cf_processing_queue q LEFT JOIN cf_file_version v ON v.id = q.file_version_id \
             WHERE q.id = ?1",
        )?;
        Ok(statement.query_row([job_id], file_job).optional()?)
    }

    /// The location of a file at an absolute path that was registered by a release which followed the
    /// symbolic links of paths.
    pub fn resolved_location(&self, path: &Path) -> Result<Option<i64>, Error> {
        let mut statement = self.inner.prepare_cached(RESOLVED_QUERY)?;
        for folder in path.ancestors().skip(1) {
            let Ok(below) = path.strip_prefix(folder) else {
                continue;
            };
            let (text, below) = (folder.to_string_lossy(), below.to_string_lossy());
            let found =
                statement.query_row([&*text, &format!("{text}/"), &*below], |row| row.get(0));
            if let Some(location) = found.optional()? {
                return Ok(Some(location));
            }
        }
        Ok(None)
    }

    /// True when a job is COMPLETED with this code of the plugin, and its last attempt had the sinks and
    /// parameters that the next one would have. `own` = parameters of the job.
    pub fn is_done(
        &self,
        job_id: i64,
        plugin: &str,
        artifact_hash: &str,
        code: &PluginCode,
        own: &Parameters,
    ) -> Result<bool, Error> {
        let mut statement = self.inner.prepare_cached(DONE_QUERY)?;
        Ok(statement.exists(params![job_id, plugin, artifact_hash])?
            && self.has_same_sinks(job_id, code, own)?)
    }

    /// True when the next attempt of a job would have the sinks and parameters of the last one.
    fn has_same_sinks(
        &self,
        job_id: i64,
        code: &PluginCode,
        own: &Parameters,
    ) -> Result<bool, Error> {
        let query = "SELECT config_overrides, sinks_hash FROM cf_processing_queue WHERE id = ?1";
        let mut statement = self.inner.prepare_cached(query)?;
        let found = statement.query_row([job_id], |row| {
            let (overrides, known) = (shown(cell(row, 0)), shown(cell(row, 1)));
            Ok(code.matches(overrides.as_deref(), own, known.as_deref()))
        });
        Ok(found.optional()?.unwrap_or(false))
    }

    /// What a job has published. None when there is no such job.
    pub fn publication(&self, job_id: i64) -> Result<Option<Publication>, Error> {
        let mut statement = self.inner.prepare_cached(PUBLICATION_QUERY)?;
        let found = statement.query_row([job_id], |row| {
            let (attempt, key) = match number(cell(row, 2)) {
                Some(attempt) => (attempt, number(cell(row, 3)).unwrap_or(0)),
                None => (count(cell(row, 1)), 0),
            };
            Ok(Publication {
                uris: published(cell(row, 0)),
                attempt: Attempt::new(job_id, attempt),
                key,
                content_hash: shown(cell(row, 4)),
                location_id: number(cell(row, 5)),
            })
        });
        Ok(found.optional()?)
    }

    /// Jobs of a plugin that have published and for which `is_wanted` returns true, by ascending ID.
    /// `is_wanted` is also called for jobs whose output was removed. These are not returned.
    pub fn published_inputs(
        &self,
        plugin: &str,
        is_wanted: &mut dyn FnMut(&PublishedInput) -> bool,
    ) -> Result<Vec<PublishedInput>, Error> {
        let mut statement = self.inner.prepare_cached(PUBLISHED_INPUTS_QUERY)?;
        let mut rows = statement.query([plugin])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let text = |index| shown(cell(row, index)).unwrap_or_default();
            let input = PublishedInput {
                job_id: row.get(0)?,
                path: Path::new(&text(1)).join(text(2)),
                content_hash: shown(cell(row, 3)),
                mtime_s: match cell(row, 5) {
                    ValueRef::Real(mtime) => Some(mtime),
                    _ => None,
                },
                uris: published(cell(row, 4)),
            };
            if is_wanted(&input) && !input.uris.is_empty() {
                found.push(input);
            }
        }
        Ok(found)
    }

    /// Replaces URIs of a job's output in its row. `uris` = pairs (old, new).
    pub fn rename_outputs(&mut self, job_id: i64, uris: &[(String, String)]) -> Result<(), Error> {
        let query = "SELECT receipt, published FROM cf_processing_queue WHERE id = ?1";
        let found = self.inner.query_row(query, [job_id], |row| {
            let text = |index| shown(cell(row, index)).map(|text| renamed(&text, uris));
            Ok((text(0), text(1)))
        });
        let Some((receipt, published)) = found.optional()? else {
            return Ok(());
        };
        let change = "UPDATE cf_processing_queue SET receipt = ?2, published = ?3 WHERE id = ?1";
        self.change_job(job_id, change, params![job_id, receipt, published])?;
        Ok(())
    }

    /// Notes in the row that a job's output has been removed.
    pub fn forget_publication(&mut self, job_id: i64) -> Result<(), Error> {
        let forget = "UPDATE cf_processing_queue SET published = '[]' WHERE id = ?1";
        self.change_job(job_id, forget, [job_id])?;
        Ok(())
    }
}
