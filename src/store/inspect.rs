//! The read side, for the command line: it never waits for the writer and never writes.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

use super::{Error, connect, schema};

/// A reading connection.
pub struct Inspector {
    connection: Connection,
}

/// Which jobs to list.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// Only this status.
    pub status: Option<String>,
    /// Only this plugin.
    pub plugin: Option<String>,
    /// The newest this many.
    pub limit: usize,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRow {
    /// The job.
    pub job_id: i64,
    /// Its plugin.
    pub plugin_name: String,
    /// Its status.
    pub status: String,
    /// Its priority.
    pub priority: i64,
    /// Its input; none when the catalogue does not know it.
    pub file_path: Option<String>,
    /// Attempts so far.
    pub attempt: i64,
    /// The worker that has or had it.
    pub worker_id: Option<String>,
    /// Claimed at, as text.
    pub claim_time: Option<String>,
    /// Ended at, as text.
    pub end_time: Option<String>,
    /// Why it failed, or why it was put back.
    pub error_message: Option<String>,
    /// JSON of the receipt.
    pub receipt: Option<String>,
}

/// Everything about one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobDetail {
    /// The line of the listing.
    pub row: JobRow,
    /// The version of its input.
    pub file_version_id: i64,
    /// Overrides as they stand.
    pub config_overrides: Option<String>,
    /// How often it lost its worker.
    pub retry_count: i64,
    /// One line of the result.
    pub result_summary: Option<String>,
    /// Hash of the code that ran.
    pub artifact_hash: Option<String>,
    /// The plugin's last lines.
    pub log_tail: Option<String>,
    /// Why a QUEUED job is not running; none = it waits for a free slot.
    pub waiting_for: Option<String>,
}

const JOB_COLUMNS: &str = "SELECT q.id, q.plugin_name, coalesce(q.status, ''), \
     coalesce(q.priority, 0), CASE WHEN r.path IS NOT NULL \
     THEN rtrim(r.path, '/') || '/' || l.rel_path END, \
     q.attempt, q.worker_id, q.claim_time, q.end_time, q.error_message, q.receipt, \
     q.file_version_id, q.config_overrides, coalesce(q.retry_count, 0), q.result_summary, \
     q.artifact_hash, q.log_tail FROM cf_processing_queue q \
     LEFT JOIN cf_file_version v ON v.id = q.file_version_id \
     LEFT JOIN cf_file_location l ON l.id = v.location_id \
     LEFT JOIN cf_source_root r ON r.id = l.source_root_id";

fn job_row(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    Ok(JobRow {
        job_id: row.get(0)?,
        plugin_name: row.get(1)?,
        status: row.get(2)?,
        priority: row.get(3)?,
        file_path: row.get(4)?,
        attempt: row.get(5)?,
        worker_id: row.get(6)?,
        claim_time: row.get(7)?,
        end_time: row.get(8)?,
        error_message: row.get(9)?,
        receipt: row.get(10)?,
    })
}

impl Inspector {
    /// Opens an existing database for reading.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if !path.exists() {
            return Err(Error::Missing {
                path: path.to_owned(),
            });
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = connect(path, flags)?;
        let version = schema::version(&connection)?;
        if version < schema::VERSION {
            return Err(Error::NotMigrated {
                path: path.to_owned(),
            });
        }
        if version > schema::VERSION {
            return Err(Error::Newer {
                path: path.to_owned(),
                version,
                known: schema::VERSION,
            });
        }
        Ok(Inspector { connection })
    }

    /// Jobs, newest first.
    pub fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobRow>, Error> {
        let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
        // Conditions stand in the query only where asked for, so that an index can serve them.
        let mut query = format!("{JOB_COLUMNS} WHERE true");
        let mut values: Vec<&dyn rusqlite::ToSql> = Vec::new();
        if let Some(status) = &filter.status {
            query.push_str(" AND q.status = ?");
            values.push(status);
        }
        if let Some(plugin) = &filter.plugin {
            query.push_str(" AND q.plugin_name = ?");
            values.push(plugin);
        }
        query.push_str(" ORDER BY q.id DESC LIMIT ?");
        values.push(&limit);
        let mut statement = self.connection.prepare(&query)?;
        let rows = statement.query_map(values.as_slice(), job_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Everything about one job; none when there is no such job.
    pub fn job(&self, job_id: i64) -> Result<Option<JobDetail>, Error> {
        let query = format!("{JOB_COLUMNS} WHERE q.id = ?1");
        let detail = self
            .connection
            .query_row(&query, [job_id], |row| {
                Ok(JobDetail {
                    row: job_row(row)?,
                    file_version_id: row.get(11)?,
                    config_overrides: row.get(12)?,
                    retry_count: row.get(13)?,
                    result_summary: row.get(14)?,
                    artifact_hash: row.get(15)?,
                    log_tail: row.get(16)?,
                    waiting_for: None,
                })
            })
            .optional()?;
        let Some(mut detail) = detail else {
            return Ok(None);
        };
        if detail.row.status == "QUEUED" {
            detail.waiting_for = self.waiting_for(&detail.row.plugin_name)?;
        }
        Ok(Some(detail))
    }

    /// Why jobs of a plugin cannot run now; none = a worker that may run them is there.
    pub fn waiting_for(&self, plugin: &str) -> Result<Option<String>, Error> {
        let deployed = self
            .connection
            .prepare_cached(
                "SELECT 1 FROM cf_plugin_manifest WHERE plugin_name = ?1 AND status = 'ACTIVE'",
            )?
            .exists([plugin])?;
        if !deployed {
            return Ok(Some(format!(
                "plugin {plugin} is not deployed; `casparian deploy {plugin}.py` does it"
            )));
        }
        let mut statement = self
            .connection
            .prepare_cached("SELECT capabilities FROM cf_worker_session WHERE status = 'ONLINE'")?;
        let mut rows = statement.query([])?;
        let mut online = 0;
        while let Some(row) = rows.next()? {
            online += 1;
            let names: Vec<String> =
                serde_json::from_str(&row.get::<_, String>(0)?).unwrap_or_default();
            if names.iter().any(|name| name == "*" || name == plugin) {
                return Ok(None);
            }
        }
        Ok(Some(match online {
            0 => "no worker is connected to a sentinel".to_owned(),
            count => format!("none of the {count} connected workers may run plugin {plugin}"),
        }))
    }

    /// Number of jobs of each status.
    pub fn counts(&self) -> Result<Vec<(String, i64)>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT coalesce(status, ''), count(*) FROM cf_processing_queue GROUP BY status",
        )?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl std::fmt::Debug for Inspector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inspector").finish_non_exhaustive()
    }
}
