//! The job queue: claim, complete, release, leases.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rusqlite::{OptionalExtension, Row, params};
use serde::Deserialize;

use super::{Error, PluginCode, Store, Turn, format_time};
use crate::job::{Attempt, Job, Sink};

/// What is claimed, for whom.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The worker that will hold the jobs.
    pub worker_id: &'a str,
    /// Its host (`worker_host`).
    pub hostname: &'a str,
    /// Its process (`worker_pid`).
    pub pid: Option<i64>,
    /// Plugins that may be claimed; each must have code ([`Turn::plugin_code`]).
    pub plugins: &'a [String],
    /// Jobs at most.
    pub limit: usize,
    /// End of the lease, milliseconds since the epoch.
    pub lease_until_ms: i64,
}

/// A job that could not be handed out and was ended as FAILED.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unresolved {
    /// The job.
    pub job_id: i64,
    /// Why.
    pub reason: String,
}

/// What a claim came to.
#[derive(Clone, Debug, Default)]
pub struct Claimed {
    /// Jobs to dispatch, in order.
    pub jobs: Vec<Job>,
    /// Jobs that failed instead.
    pub unresolved: Vec<Unresolved>,
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// COMPLETED.
    Completed,
    /// FAILED.
    Failed,
}

/// The end of a job, as its holder reports it.
#[derive(Clone, Copy, Debug)]
pub struct Completion<'a> {
    /// The job.
    pub job_id: i64,
    /// The attempt, where the holder knows it; otherwise its id decides.
    pub attempt: Option<i64>,
    /// The holder.
    pub worker_id: &'a str,
    /// How.
    pub end: End,
    /// One line.
    pub summary: &'a str,
    /// Why it failed.
    pub error_message: Option<&'a str>,
    /// JSON, opaque here.
    pub receipt: Option<&'a str>,
    /// The plugin's last lines.
    pub log_tail: Option<&'a str>,
}

/// What became of a job that lost its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// It waits again.
    Requeued,
    /// It lost its holder too often.
    Failed,
    /// The hold was not current; nothing was changed.
    Stale,
}

/// A job whose lease had run out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// The job.
    pub job_id: i64,
    /// What became of it.
    pub released: Released,
}

/// `config_overrides`: a topic's sink or sinks.
#[derive(Deserialize)]
#[serde(untagged)]
enum Override {
    One(OverrideSink),
    Many(Vec<OverrideSink>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OverrideSink {
    Uri(String),
    Sink {
        uri: String,
        mode: Option<String>,
        schema_def: Option<String>,
    },
}

/// A sink before it is read.
struct SinkText {
    topic: String,
    uri: String,
    mode: String,
    schema_def: Option<String>,
}

/// The order of the queue: highest priority first (none last), then lowest id.
type Rank = (Reverse<Option<i64>>, i64);

impl Store {
    /// Names of plugins with QUEUED rows, at most `limit`, by jumping from name to name in the
    /// claim's index.
    pub fn queued_plugins(&self, limit: usize) -> Result<Vec<String>, Error> {
        let mut first = self.connection.prepare_cached(
            "SELECT min(plugin_name) FROM cf_processing_queue WHERE status = 'QUEUED'",
        )?;
        let mut next = self.connection.prepare_cached(
            "SELECT min(plugin_name) FROM cf_processing_queue \
             WHERE status = 'QUEUED' AND plugin_name > ?1",
        )?;
        let mut names: Vec<String> = Vec::new();
        let mut found: Option<String> = first.query_row([], |row| row.get(0))?;
        while let Some(name) = found {
            if names.len() >= limit {
                break;
            }
            found = next.query_row([&name], |row| row.get(0))?;
            names.push(name);
        }
        Ok(names)
    }

    /// True when [`Turn::requeue_expired`] would find something.
    pub fn has_expired(&self, now_ms: i64) -> Result<bool, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT 1 FROM cf_processing_queue WHERE status = 'RUNNING' \
             AND lease_until_ms IS NULL LIMIT 1",
        )?;
        if statement.exists([])? {
            return Ok(true);
        }
        let mut statement = self.connection.prepare_cached(
            "SELECT 1 FROM cf_processing_queue WHERE status = 'RUNNING' \
             AND lease_until_ms <= ?1 LIMIT 1",
        )?;
        Ok(statement.exists([now_ms])?)
    }
}

/// The claim's range of one plugin.
pub(super) const CLAIM_QUERY: &str = "SELECT id, priority FROM cf_processing_queue \
     WHERE status = 'QUEUED' AND plugin_name = ?1 ORDER BY priority DESC, id LIMIT ?2";

impl Turn<'_> {
    /// Claims up to `limit` QUEUED jobs of the given plugins together: highest priority first,
    /// then lowest id. A job that cannot be resolved ends as FAILED here and now.
    pub fn claim(&mut self, claim: &Claim<'_>, now_ms: i64) -> Result<Claimed, Error> {
        let mut heap: BinaryHeap<Reverse<(Rank, usize)>> = BinaryHeap::new();
        {
            let mut statement = self.transaction.prepare_cached(CLAIM_QUERY)?;
            let limit = i64::try_from(claim.limit).unwrap_or(i64::MAX);
            for (index, plugin) in claim.plugins.iter().enumerate() {
                let mut rows = statement.query(params![plugin, limit])?;
                while let Some(row) = rows.next()? {
                    let rank = (Reverse(row.get::<_, Option<i64>>(1)?), row.get(0)?);
                    heap.push(Reverse((rank, index)));
                }
            }
        }
        let mut claimed = Claimed::default();
        while claimed.jobs.len() < claim.limit {
            let Some(Reverse(((_, job_id), index))) = heap.pop() else {
                break;
            };
            let Some(plugin) = claim.plugins.get(index) else {
                continue;
            };
            let Some(code) = self.plugin_code(plugin)? else {
                continue;
            };
            match self.resolve(job_id, plugin)? {
                Ok((file_path, file_version_id, sinks)) => {
                    let attempt = self.take(job_id, claim, &code, now_ms)?;
                    claimed.jobs.push(Job {
                        attempt: Attempt::new(job_id, attempt),
                        file_path,
                        file_version_id,
                        sinks: sinks.into(),
                        plugin: code.plugin.clone(),
                        database: None,
                        previous: Vec::new(),
                    });
                }
                Err(reason) => {
                    let mut statement = self.transaction.prepare_cached(
                        "UPDATE cf_processing_queue SET status = 'FAILED', end_time = ?2, \
                         error_message = ?3 WHERE id = ?1",
                    )?;
                    statement.execute(params![job_id, format_time(now_ms), reason])?;
                    claimed.unresolved.push(Unresolved { job_id, reason });
                }
            }
        }
        Ok(claimed)
    }

    fn take(
        &self,
        job_id: i64,
        claim: &Claim<'_>,
        code: &PluginCode,
        now_ms: i64,
    ) -> Result<i64, Error> {
        let mut statement = self.transaction.prepare_cached(
            "UPDATE cf_processing_queue SET status = 'RUNNING', attempt = attempt + 1, \
             claim_time = ?2, lease_until_ms = ?3, worker_id = ?4, worker_host = ?5, \
             worker_pid = ?6, artifact_hash = ?7, end_time = NULL, error_message = NULL, \
             result_summary = NULL WHERE id = ?1 RETURNING attempt",
        )?;
        Ok(statement.query_row(
            params![
                job_id,
                format_time(now_ms),
                claim.lease_until_ms,
                claim.worker_id,
                claim.hostname,
                claim.pid,
                code.plugin.artifact_hash
            ],
            |row| row.get(0),
        )?)
    }

    /// The input's path and version and the sinks of a job, or why there are none.
    #[allow(clippy::type_complexity)]
    fn resolve(
        &self,
        job_id: i64,
        plugin: &str,
    ) -> Result<Result<(String, i64, Vec<Sink>), String>, Error> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT q.file_version_id, q.config_overrides, r.path, l.rel_path \
             FROM cf_processing_queue q \
             LEFT JOIN cf_file_version v ON v.id = q.file_version_id \
             LEFT JOIN cf_file_location l ON l.id = v.location_id \
             LEFT JOIN cf_source_root r ON r.id = l.source_root_id WHERE q.id = ?1",
        )?;
        let (version, overrides, root, rel_path) = statement.query_row([job_id], |row| {
            Ok((
                row.get::<_, i64>(0)?,
                row.get::<_, Option<String>>(1)?,
                row.get::<_, Option<String>>(2)?,
                row.get::<_, Option<String>>(3)?,
            ))
        })?;
        let Some((root, rel_path)) = root.zip(rel_path) else {
            return Ok(Err(format!(
                "file version {version} has no file in cf_file_version, cf_file_location and cf_source_root"
            )));
        };
        let path = std::path::Path::new(&root)
            .join(rel_path)
            .to_string_lossy()
            .into_owned();
        let sinks = match self.sinks(plugin, overrides.as_deref())? {
            Ok(sinks) => sinks,
            Err(reason) => return Ok(Err(reason)),
        };
        Ok(Ok((path, version, sinks)))
    }

    fn sinks(
        &self,
        plugin: &str,
        overrides: Option<&str>,
    ) -> Result<Result<Vec<Sink>, String>, Error> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT topic_name, uri, mode, schema_json FROM cf_topic_config AS sink \
             WHERE plugin_name = ?1 AND (manifest_id IS NULL OR NOT EXISTS ( \
                 SELECT 1 FROM cf_topic_config AS theirs WHERE theirs.plugin_name = ?1 \
                 AND theirs.topic_name = sink.topic_name AND theirs.manifest_id IS NULL)) \
             ORDER BY id",
        )?;
        let rows = statement.query_map([plugin], |row| {
            Ok(SinkText {
                topic: row.get(0)?,
                uri: row.get(1)?,
                mode: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
                schema_def: row.get(3)?,
            })
        })?;
        let mut sinks: Vec<SinkText> = rows.collect::<Result<_, _>>()?;
        if let Some(text) = overrides.filter(|text| !text.trim().is_empty()) {
            let parsed: Result<Option<std::collections::BTreeMap<String, Override>>, _> =
                serde_json::from_str(text);
            let parsed = match parsed {
                Ok(parsed) => parsed.unwrap_or_default(),
                Err(error) => {
                    return Ok(Err(format!(
                        "config_overrides is not {{topic: sink or [sinks]}}: {error}"
                    )));
                }
            };
            for (topic, replacement) in parsed {
                sinks.retain(|sink| sink.topic != topic);
                let replacement = match replacement {
                    Override::One(sink) => vec![sink],
                    Override::Many(sinks) => sinks,
                };
                for sink in replacement {
                    let (uri, mode, schema_def) = match sink {
                        OverrideSink::Uri(uri) => (uri, None, None),
                        OverrideSink::Sink {
                            uri,
                            mode,
                            schema_def,
                        } => (uri, mode, schema_def),
                    };
                    sinks.push(SinkText {
                        topic: topic.clone(),
                        uri,
                        mode: mode.unwrap_or_default(),
                        schema_def,
                    });
                }
            }
        }
        if !sinks.iter().any(|sink| sink.topic == "output") {
            sinks.push(SinkText {
                topic: "output".to_owned(),
                uri: format!("parquet://{plugin}_output.parquet"),
                mode: String::new(),
                schema_def: None,
            });
        }
        let read = |text: SinkText| {
            let mut sink = Sink::parse(&text.topic, &text.uri, &text.mode)?;
            sink.schema_def = text.schema_def;
            Ok(sink)
        };
        let read: Result<Vec<Sink>, crate::job::SinkError> = sinks.into_iter().map(read).collect();
        Ok(read.map_err(|error| error.to_string()))
    }

    /// Ends a job if it is RUNNING with this holder and attempt; otherwise changes nothing and
    /// gives false.
    pub fn complete(&mut self, completion: &Completion<'_>, now_ms: i64) -> Result<bool, Error> {
        let status = match completion.end {
            End::Completed => "COMPLETED",
            End::Failed => "FAILED",
        };
        let mut statement = self.transaction.prepare_cached(
            "UPDATE cf_processing_queue SET status = ?4, end_time = ?5, result_summary = ?6, \
             error_message = ?7, receipt = ?8, log_tail = ?9, lease_until_ms = NULL \
             WHERE id = ?1 AND status = 'RUNNING' AND worker_id = ?2 \
             AND (?3 IS NULL OR attempt = ?3)",
        )?;
        let changed = statement.execute(params![
            completion.job_id,
            completion.worker_id,
            completion.attempt,
            status,
            format_time(now_ms),
            completion.summary,
            completion.error_message,
            completion.receipt,
            completion.log_tail,
        ])?;
        Ok(changed == 1)
    }

    /// A job whose holder is gone: back to the queue, or FAILED when that has happened more
    /// than `retries_max` times.
    pub fn release(
        &mut self,
        hold: Attempt,
        reason: &str,
        retries_max: u32,
        now_ms: i64,
    ) -> Result<Released, Error> {
        let retries: Option<i64> = {
            let mut statement = self.transaction.prepare_cached(
                "SELECT coalesce(retry_count, 0) FROM cf_processing_queue \
                 WHERE id = ?1 AND attempt = ?2 AND status = 'RUNNING'",
            )?;
            statement
                .query_row(params![hold.job_id, hold.number], |row| row.get(0))
                .optional()?
        };
        let Some(retries) = retries else {
            return Ok(Released::Stale);
        };
        if retries >= i64::from(retries_max) {
            let mut statement = self.transaction.prepare_cached(
                "UPDATE cf_processing_queue SET status = 'FAILED', end_time = ?2, \
                 error_message = ?3, lease_until_ms = NULL, retry_count = ?4 WHERE id = ?1",
            )?;
            let message = format!("{reason}; it was tried {} times", retries + 1);
            statement.execute(params![
                hold.job_id,
                format_time(now_ms),
                message,
                retries + 1
            ])?;
            return Ok(Released::Failed);
        }
        let mut statement = self.transaction.prepare_cached(
            "UPDATE cf_processing_queue SET status = 'QUEUED', lease_until_ms = NULL, \
             worker_id = NULL, worker_host = NULL, worker_pid = NULL, claim_time = NULL, \
             error_message = ?2, retry_count = ?3 WHERE id = ?1",
        )?;
        statement.execute(params![hold.job_id, reason, retries + 1])?;
        Ok(Released::Requeued)
    }

    /// Extends leases of holds that are still current.
    pub fn renew(&mut self, holds: &[Attempt], lease_until_ms: i64) -> Result<(), Error> {
        let mut statement = self.transaction.prepare_cached(
            "UPDATE cf_processing_queue SET lease_until_ms = ?3 \
             WHERE id = ?1 AND attempt = ?2 AND status = 'RUNNING'",
        )?;
        for hold in holds {
            statement.execute(params![hold.job_id, hold.number, lease_until_ms])?;
        }
        Ok(())
    }

    /// Releases RUNNING jobs whose lease is over, or that have none (the reference wrote none),
    /// at most `limit`.
    pub fn requeue_expired(
        &mut self,
        now_ms: i64,
        retries_max: u32,
        limit: usize,
    ) -> Result<Vec<Expired>, Error> {
        let holds: Vec<Attempt> = {
            let mut statement = self.transaction.prepare_cached(
                "SELECT id, attempt FROM cf_processing_queue \
                 WHERE status = 'RUNNING' AND lease_until_ms IS NULL \
                 UNION ALL SELECT id, attempt FROM cf_processing_queue \
                 WHERE status = 'RUNNING' AND lease_until_ms <= ?1 LIMIT ?2",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            statement
                .query_map(params![now_ms, limit], hold)?
                .collect::<Result<_, _>>()?
        };
        let mut expired = Vec::with_capacity(holds.len());
        for hold in holds {
            let reason = "its lease ran out without a sign of life of its worker";
            let released = self.release(hold, reason, retries_max, now_ms)?;
            expired.push(Expired {
                job_id: hold.job_id,
                released,
            });
        }
        Ok(expired)
    }

    /// The RUNNING jobs of a worker.
    pub fn running_of(&self, worker_id: &str) -> Result<Vec<Attempt>, Error> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT id, attempt FROM cf_processing_queue \
             WHERE status = 'RUNNING' AND worker_id = ?1",
        )?;
        Ok(statement
            .query_map([worker_id], hold)?
            .collect::<Result<_, _>>()?)
    }

    /// The current attempt of a RUNNING job, if it is this worker's (and this attempt).
    pub fn held_by(
        &self,
        worker_id: &str,
        job_id: i64,
        attempt: Option<i64>,
    ) -> Result<Option<i64>, Error> {
        let mut statement = self.transaction.prepare_cached(
            "SELECT attempt FROM cf_processing_queue WHERE id = ?1 AND status = 'RUNNING' \
             AND worker_id = ?2 AND (?3 IS NULL OR attempt = ?3)",
        )?;
        Ok(statement
            .query_row(params![job_id, worker_id, attempt], |row| row.get(0))
            .optional()?)
    }

    /// Adds a job; gives its id.
    pub fn enqueue(
        &mut self,
        plugin: &str,
        file_version_id: i64,
        priority: i64,
        now_ms: i64,
    ) -> Result<i64, Error> {
        let mut statement = self.transaction.prepare_cached(
            "INSERT INTO cf_processing_queue \
             (file_version_id, plugin_name, status, priority, retry_count, created_at) \
             VALUES (?1, ?2, 'QUEUED', ?3, 0, ?4)",
        )?;
        statement.execute(params![
            file_version_id,
            plugin,
            priority,
            format_time(now_ms)
        ])?;
        Ok(self.transaction.last_insert_rowid())
    }

    /// QUEUED → PENDING, so that no worker takes them; [`Turn::requeue`] brings one back.
    pub fn park_queued(&mut self) -> Result<usize, Error> {
        Ok(self.transaction.execute(
            "UPDATE cf_processing_queue SET status = 'PENDING' WHERE status = 'QUEUED'",
            [],
        )?)
    }

    /// Puts a job that is not RUNNING back into the queue, for a (new) version of its file.
    /// The attempt number goes on counting. False when it is RUNNING or gone.
    pub fn requeue(&mut self, job_id: i64, file_version_id: i64) -> Result<bool, Error> {
        let mut statement = self.transaction.prepare_cached(
            "UPDATE cf_processing_queue SET status = 'QUEUED', file_version_id = ?2, \
             end_time = NULL, error_message = NULL, result_summary = NULL, retry_count = 0, \
             claim_time = NULL, worker_id = NULL, lease_until_ms = NULL, log_tail = NULL \
             WHERE id = ?1 AND status IS NOT 'RUNNING'",
        )?;
        Ok(statement.execute(params![job_id, file_version_id])? == 1)
    }
}

fn hold(row: &Row<'_>) -> rusqlite::Result<Attempt> {
    Ok(Attempt {
        job_id: row.get(0)?,
        number: row.get(1)?,
    })
}
