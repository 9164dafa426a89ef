//! Read access for the command line. It does not wait for a writer, and never writes.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

use super::parameters::{defaults, parameters};
use super::value::{cell, count, number, shown};
use super::workers::{SESSION_COLUMNS, session};
use super::{
    Code, Error, WorkerEnvironment, WorkerSession, check_ours, code, connect, lock, schema, settle,
};
use crate::job::Attempt;
use crate::limits;

/// A reading connection.
pub struct Inspector {
    pub(super) connection: Connection,
    path: PathBuf,
    /// False when [`Inspector::find_sentinel`] has found that no sentinel works on the database.
    pub(super) has_sentinel: bool,
}

/// Which jobs to list.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    /// Only this status.
    pub status: Option<String>,
    /// Only this plugin.
    pub plugin: Option<String>,
    /// At most this many, the newest ones.
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
    /// The path of its input. None when the catalogue does not have it.
    pub file_path: Option<String>,
    /// Its last attempt. [`Attempt::ordinal`] is for people.
    pub attempt: Attempt,
    /// The worker that has or had it.
    pub worker_id: Option<String>,
    /// Claimed at, as text.
    pub claim_time: Option<String>,
    /// Ended at, as text.
    pub end_time: Option<String>,
    /// Why it failed, or why it was queued again.
    pub error_message: Option<String>,
    /// JSON of the receipt.
    pub receipt: Option<String>,
    /// When a PENDING job is queued again, UTC, as text.
    pub next_run: Option<String>,
    /// The cause of its failure.
    pub cause: Option<String>,
}

/// What jobs wait for when there is no sentinel.
const NO_SENTINEL: &str = "a sentinel: none works on this database";

/// Why a job is set aside ([`JobRow::is_set_aside`]), and what the user can do.
pub const SET_ASIDE: &str =
    "set aside by a later casparian run; submit it again, or set status to QUEUED";

impl JobRow {
    /// True for a PENDING job that no sentinel queues again, because `casparian run`
    /// ([`super::Transaction::park_queued`]) or another program has made it PENDING.
    pub fn is_set_aside(&self) -> bool {
        self.status == "PENDING" && self.next_run.is_none()
    }
}

/// One attempt of a job that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptRow {
    /// Its number.
    pub attempt: Attempt,
    /// COMPLETED, FAILED, RETURNED, INTERRUPTED, TAKEN (another program changed the row), SETTLING or
    /// SETTLED.
    pub status: String,
    /// The cause of its failure.
    pub cause: Option<String>,
    /// The worker that had it.
    pub worker_id: Option<String>,
    /// That worker's host.
    pub hostname: Option<String>,
    /// Claimed at, as text.
    pub started: Option<String>,
    /// Ended at, as text.
    pub ended: Option<String>,
    /// Exit code of the plugin process.
    pub exit_code: Option<i64>,
    /// Signal that ended it.
    pub signal: Option<i64>,
    /// Its peak memory.
    pub rss_max_bytes: Option<i64>,
    /// Why it failed.
    pub error_message: Option<String>,
    /// The plugin's last printed lines.
    pub log_tail: Option<String>,
    /// How its plugin process was restricted.
    pub sandbox: Option<String>,
}

/// A worker as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRow {
    /// What it reported.
    pub session: WorkerSession,
    /// ONLINE or OFFLINE; see [`Inspector::find_sentinel`].
    pub status: String,
    /// When it was last seen, milliseconds since the epoch.
    pub last_seen_ms: i64,
    /// Environments that it has reported as ready.
    pub ready: Vec<WorkerEnvironment>,
}

/// Everything about one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobDetail {
    /// The line of the listing.
    pub row: JobRow,
    /// The version of its input.
    pub file_version_id: i64,
    /// The text of its overrides.
    pub config_overrides: Option<String>,
    /// Its parameters as JSON: the plugin's present defaults merged with its own. None where there are none,
    /// or they cannot be used.
    pub parameters: Option<String>,
    /// How often it lost its worker, or its plugin process was killed.
    pub retry_count: i64,
    /// How often an environment or a worker failed, another program had a sink locked, or its input changed.
    pub infra_count: i64,
    /// The result in one line.
    pub result_summary: Option<String>,
    /// Hash of the code that ran.
    pub artifact_hash: Option<String>,
    /// The plugin's last printed lines.
    pub log_tail: Option<String>,
    /// What a QUEUED job waits for, what may refuse the end of a RUNNING one, what an ended one still waits
    /// for, or why a PENDING one is not queued again.
    pub waiting_for: Option<String>,
    /// The plugin's environment, unless it is the default one, and how many connected workers have
    /// reported it as ready.
    pub environment: Option<(String, i64)>,
    /// Its ended attempts in ascending order.
    pub attempts: Vec<AttemptRow>,
}

const TAKEN_QUERY: &str = "SELECT count(*) FROM cf_job_attempt WHERE job_id = ?1 \
     AND status = 'TAKEN' AND attempt > coalesce((SELECT max(attempt) FROM cf_job_attempt \
     WHERE job_id = ?1 AND status IS NOT 'TAKEN'), 0)";

const JOB_COLUMNS: &str = "SELECT q.id, q.plugin_name, q.status, q.priority, \
     CASE WHEN r.path IS NOT NULL THEN rtrim(r.path, '/') || '/' || l.rel_path END, \
     q.attempt, q.worker_id, q.claim_time, q.end_time, q.error_message, q.receipt, \
     q.next_run, q.failure_cause, \
     q.file_version_id, q.config_overrides, q.retry_count, q.infra_count, q.result_summary, \
     q.artifact_hash, q.log_tail, q.shared_count, q.parameters, \
     q.locked_count, q.changed_count, q.killed_count FROM cf_processing_queue q \
     LEFT JOIN cf_file_version v ON v.id = q.file_version_id \
     LEFT JOIN cf_file_location l ON l.id = v.location_id \
     LEFT JOIN cf_source_root r ON r.id = l.source_root_id";

fn job_row(row: &Row<'_>) -> rusqlite::Result<JobRow> {
    let job_id = row.get(0)?;
    let text = |index| shown(cell(row, index));
    Ok(JobRow {
        job_id,
        plugin_name: text(1).unwrap_or_default(),
        status: text(2).unwrap_or_default(),
        priority: number(cell(row, 3)).unwrap_or(0),
        file_path: text(4),
        attempt: Attempt::new(job_id, count(cell(row, 5))),
        worker_id: text(6),
        claim_time: text(7),
        end_time: text(8),
        error_message: text(9),
        receipt: text(10),
        next_run: text(11),
        cause: text(12),
    })
}

fn job_detail(row: &Row<'_>) -> rusqlite::Result<JobDetail> {
    let text = |index| shown(cell(row, index));
    let counts = |indexes: &[usize]| {
        let counts = indexes.iter().map(|index| count(cell(row, *index)));
        counts.fold(0, i64::saturating_add)
    };
    Ok(JobDetail {
        row: job_row(row)?,
        file_version_id: number(cell(row, 13)).unwrap_or(0),
        config_overrides: text(14),
        parameters: None,
        retry_count: counts(&[15, 24]),
        infra_count: counts(&[16, 22, 23]),
        result_summary: text(17),
        artifact_hash: text(18),
        log_tail: text(19),
        waiting_for: None,
        environment: None,
        attempts: Vec::new(),
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
        let connection = connect(path, flags, limits::STORE_OPEN_WAIT)?;
        check_ours(&connection, path)?;
        let version = schema::version_to_read(&connection)?;
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
        Ok(Inspector {
            connection,
            path: path.to_owned(),
            has_sentinel: true,
        })
    }

    /// Checks whether a sentinel works on the database. Without a sentinel, no worker counts as ONLINE, and
    /// jobs wait for one. Before this is called, a sentinel is assumed.
    pub fn find_sentinel(&mut self, now_ms: i64) -> Result<(), Error> {
        self.has_sentinel = match lock::has_sentinel(&self.path) {
            Some(found) => found,
            None => {
                let seen: Option<i64> = self.connection.query_row(
                    "SELECT max(last_seen_ms) FROM cf_worker_session WHERE status = 'ONLINE'",
                    [],
                    |row| Ok(number(cell(row, 0))),
                )?;
                let age_max = i64::try_from(limits::SEEN_AGE_MAX.as_millis()).unwrap_or(i64::MAX);
                seen.is_none_or(|seen| now_ms.saturating_sub(seen) <= age_max)
            }
        };
        Ok(())
    }

    /// Jobs, newest first.
    pub fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobRow>, Error> {
        let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
        // The query has only the conditions that are asked for, so that it can use an index.
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

    /// JSON of a job's receipt.
    pub fn receipt(&self, job_id: i64) -> Result<Option<String>, Error> {
        let query = "SELECT receipt FROM cf_processing_queue WHERE id = ?1";
        let receipt = self
            .connection
            .query_row(query, [job_id], |row| Ok(shown(cell(row, 0))));
        Ok(receipt.optional()?.flatten())
    }

    /// Everything about one job. None when there is no such job.
    pub fn job(&self, job_id: i64) -> Result<Option<JobDetail>, Error> {
        // One read transaction, so that the row and its attempts are from the same moment.
        let _snapshot = self.connection.unchecked_transaction()?;
        let query = format!("{JOB_COLUMNS} WHERE q.id = ?1");
        let detail = self
            .connection
            .query_row(&query, [job_id], |row| {
                let own = parameters(cell(row, 21), "cf_processing_queue.parameters", job_id);
                Ok((job_detail(row)?, count(cell(row, 20)), own))
            })
            .optional()?;
        let Some((mut detail, shared, own)) = detail else {
            return Ok(None);
        };
        let defaults = defaults(&self.connection, &detail.row.plugin_name)?;
        let all = defaults.and_then(|defaults| Ok(defaults.with(&own?)));
        let all = all.ok().filter(|all| !all.is_empty());
        detail.parameters = all.map(|all| all.to_json());
        if detail.row.status == "QUEUED" {
            detail.waiting_for = self.waiting_for(&detail.row.plugin_name)?;
            if detail.waiting_for.is_none() && shared >= limits::SHARED_LOSSES_TOGETHER {
                let reason = "a worker without other jobs: it was lost with others before";
                detail.waiting_for = Some(reason.to_owned());
            }
            let taken = self.taken_attempts(job_id)?;
            if detail.waiting_for.is_none() && taken > limits::ROW_CHANGED_ATTEMPTS_MAX.into() {
                detail.waiting_for = Some(format!(
                    "a free slot, after a pause: another program changed its row during each of its \
                     last {taken} attempts"
                ));
            }
            if detail.waiting_for.is_none() {
                let free = "a free slot of a worker that may run it".to_owned();
                detail.waiting_for = Some(self.foreign_code()?.map_or(free, |name| {
                    format!(
                        "a free slot, if nothing of other programs in the database ({name}) refuses \
                         its claim; the sentinel's log names jobs that it passes over for that"
                    )
                }));
            }
        } else if detail.row.status == "RUNNING" {
            detail.waiting_for = self.foreign_code()?.map(|name| {
                format!(
                    "its end, if nothing of other programs in the database ({name}) refuses it; the \
                     sentinel's log names jobs whose ends are refused"
                )
            });
        } else if detail.row.is_set_aside() {
            detail.waiting_for = Some(SET_ASIDE.to_owned());
        } else if self.is_unsettled(job_id)? {
            let reason = match self.has_sentinel {
                true => "a worker that checks for output which an attempt may have left",
                false => NO_SENTINEL,
            };
            detail.waiting_for = Some(reason.to_owned());
        } else if detail.row.status == "PENDING" && !self.has_sentinel {
            detail.waiting_for = Some(NO_SENTINEL.to_owned());
        }
        detail.environment = self.readiness(&detail.row.plugin_name)?;
        detail.attempts = self.attempts(job_id)?;
        Ok(Some(detail))
    }

    /// A trigger or view that another program has put into the database.
    fn foreign_code(&self) -> Result<Option<String>, Error> {
        let names = schema::foreign_code(&self.connection)?;
        Ok(names.into_iter().next())
    }

    /// How many consecutive attempts of the job another program has taken.
    fn taken_attempts(&self, job_id: i64) -> Result<i64, Error> {
        let mut statement = self.connection.prepare_cached(TAKEN_QUERY)?;
        Ok(statement.query_row([job_id], |row| row.get(0))?)
    }

    fn is_unsettled(&self, job_id: i64) -> Result<bool, Error> {
        let mut statement = schema::prepare_for_reading(&self.connection, settle::SETTLE_QUERY)?;
        Ok(statement.exists([job_id])?)
    }

    /// The ended attempts of a job in ascending order.
    pub fn attempts(&self, job_id: i64) -> Result<Vec<AttemptRow>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT attempt, status, cause, worker_id, hostname, started, ended, exit_code, \
             signal, rss_max_bytes, error_message, log_tail, sandbox FROM cf_job_attempt \
             WHERE job_id = ?1 ORDER BY attempt",
        )?;
        let rows = statement.query_map([job_id], |row| {
            let text = |index| shown(cell(row, index));
            Ok(AttemptRow {
                attempt: Attempt::new(job_id, count(cell(row, 0))),
                status: text(1).unwrap_or_default(),
                cause: text(2),
                worker_id: text(3),
                hostname: text(4),
                started: text(5),
                ended: text(6),
                exit_code: number(cell(row, 7)),
                signal: number(cell(row, 8)),
                rss_max_bytes: number(cell(row, 9)),
                error_message: text(10),
                log_tail: text(11),
                sandbox: text(12),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Workers that have been connected to sentinels of this database: ONLINE ones first, then by last-seen
    /// time.
    pub fn workers(&self) -> Result<Vec<WorkerRow>, Error> {
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {SESSION_COLUMNS}, status, last_seen_ms FROM cf_worker_session \
             ORDER BY status = 'ONLINE' DESC, last_seen_ms DESC, worker_id"
        ))?;
        let rows = statement.query_map([], |row| {
            let status = shown(cell(row, 9)).unwrap_or_default();
            Ok(WorkerRow {
                session: session(row),
                status: match status == "ONLINE" && !self.has_sentinel {
                    true => "OFFLINE".to_owned(),
                    false => status,
                },
                last_seen_ms: number(cell(row, 10)).unwrap_or(0),
                ready: Vec::new(),
            })
        })?;
        let mut workers: Vec<WorkerRow> = rows.collect::<Result<_, _>>()?;
        for worker in &mut workers {
            worker.ready = self.environments(&worker.session.worker_id)?;
        }
        Ok(workers)
    }

    /// Environments that a worker has reported as ready.
    fn environments(&self, worker_id: &str) -> Result<Vec<WorkerEnvironment>, Error> {
        let mut statement = self.connection.prepare_cached(
            "SELECT env_hash, interpreter_path, cached, ready_at FROM cf_worker_environment \
             WHERE worker_id = ?1 ORDER BY env_hash",
        )?;
        let rows = statement.query_map([worker_id], |row| {
            let text = |index| shown(cell(row, index)).unwrap_or_default();
            Ok(WorkerEnvironment {
                env_hash: text(0),
                interpreter_path: text(1),
                cached: count(cell(row, 2)) != 0,
                ready_at: text(3),
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The environment of a plugin, and how many connected workers have reported it as ready. None for the
    /// default environment.
    fn readiness(&self, plugin: &str) -> Result<Option<(String, i64)>, Error> {
        let Code::Runs(code) = code::read(&self.connection, plugin)? else {
            return Ok(None);
        };
        let hash = &code.plugin.env_hash;
        if hash.is_empty() {
            return Ok(None);
        }
        let ready = self.connection.query_row(
            "SELECT count(*) FROM cf_worker_environment JOIN cf_worker_session \
             USING (worker_id) WHERE env_hash = ?1 AND status = 'ONLINE'",
            [hash],
            |row| row.get(0),
        )?;
        Ok(Some((
            hash.clone(),
            if self.has_sentinel { ready } else { 0 },
        )))
    }

    /// Why jobs of a plugin cannot run now. None = a worker that may run them is connected.
    pub fn waiting_for(&self, plugin: &str) -> Result<Option<String>, Error> {
        let code = match code::read(&self.connection, plugin)? {
            Code::Waits(reason) => return Ok(Some(reason)),
            Code::Runs(code) => code,
        };
        if !self.has_sentinel {
            return Ok(Some(NO_SENTINEL.to_owned()));
        }
        let mut statement = self.connection.prepare_cached(&format!(
            "SELECT {SESSION_COLUMNS} FROM cf_worker_session WHERE status = 'ONLINE'"
        ))?;
        let mut rows = statement.query([])?;
        let mut online = 0;
        let mut trouble = None;
        while let Some(row) = rows.next()? {
            online += 1;
            let worker = session(row);
            let mut names = worker.capabilities.iter();
            if names.any(|name| name == "*" || name == plugin) {
                let id = &worker.worker_id;
                let environment = worker.environments.get(&code.plugin.env_hash);
                trouble = match (worker.trouble, environment) {
                    (None, None) => return Ok(None),
                    (Some(reason), _) => Some(format!("worker {id} takes no jobs: {reason}")),
                    (None, Some(reason)) => Some(format!(
                        "worker {id} takes no jobs of the plugin's environment: {reason}"
                    )),
                };
            }
        }
        Ok(Some(match (trouble, online) {
            (Some(trouble), _) => trouble,
            (None, 0) => "no worker is connected to a sentinel".to_owned(),
            (None, count) => {
                format!("none of the {count} connected workers may run plugin {plugin}")
            }
        }))
    }

    /// Number of jobs of each status.
    pub fn counts(&self) -> Result<Vec<(String, i64)>, Error> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT status, count(*) FROM cf_processing_queue GROUP BY status")?;
        let rows = statement.query_map([], |row| {
            Ok((shown(cell(row, 0)).unwrap_or_default(), row.get(1)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl std::fmt::Debug for Inspector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inspector").finish_non_exhaustive()
    }
}
