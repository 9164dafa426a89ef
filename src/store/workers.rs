//! Workers as operators see them.

use rusqlite::params;

use super::{Error, Store, Turn, format_time};
use crate::limits;

/// What a worker said of itself when it was last heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSession {
    /// Its id.
    pub worker_id: String,
    /// Who it proved to be to the sentinel, as [`crate::socket::Socket::user`] says it.
    pub user_id: Option<String>,
    /// Its host.
    pub hostname: String,
    /// Its process.
    pub pid: Option<i64>,
    /// Plugins it runs; `*` = any.
    pub capabilities: Vec<String>,
    /// Jobs at a time.
    pub slots: i64,
}

impl Store {
    /// Workers that a sentinel has heard, the latest first.
    pub fn workers(&self) -> Result<Vec<WorkerSession>, Error> {
        let mut statement = self.connection.prepare(
            "SELECT worker_id, hostname, pid, capabilities, slots, user_id \
             FROM cf_worker_session \
             ORDER BY last_seen_ms DESC",
        )?;
        let sessions = statement.query_map([], |row| {
            let names: String = row.get(3)?;
            Ok(WorkerSession {
                worker_id: row.get(0)?,
                hostname: row.get(1)?,
                pid: row.get(2)?,
                capabilities: serde_json::from_str(&names).unwrap_or_default(),
                slots: row.get(4)?,
                user_id: row.get(5)?,
            })
        })?;
        Ok(sessions.collect::<Result<_, _>>()?)
    }
}

/// A worker that holds claims, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// Its id.
    pub worker_id: String,
    /// Its user.
    pub user_id: String,
    /// When the last of its leases ends, Unix time in milliseconds.
    pub lease_until_ms: i64,
}

impl Store {
    /// Workers with running jobs that have proved to be some user.
    pub fn claimants(&self) -> Result<Vec<Claimant>, Error> {
        let mut statement = self.connection.prepare(
            "SELECT job.worker_id, session.user_id, max(job.lease_until_ms) \
             FROM cf_processing_queue AS job \
             JOIN cf_worker_session AS session USING (worker_id) \
             WHERE job.status = 'RUNNING' AND session.user_id IS NOT NULL \
             AND job.lease_until_ms IS NOT NULL GROUP BY job.worker_id",
        )?;
        let claimants = statement.query_map([], |row| {
            Ok(Claimant {
                worker_id: row.get(0)?,
                user_id: row.get(1)?,
                lease_until_ms: row.get(2)?,
            })
        })?;
        Ok(claimants.collect::<Result<_, _>>()?)
    }
}

impl Turn<'_> {
    /// A worker is there. Its row in the reference's `cf_worker_node` is kept true as well.
    pub fn save_worker(&mut self, worker: &WorkerSession, now_ms: i64) -> Result<(), Error> {
        let names = serde_json::to_string(&worker.capabilities)
            .map_err(|error| Error::Row(error.to_string()))?;
        // The host and process that it was before are no more.
        self.transaction
            .prepare_cached(
                "UPDATE cf_worker_node SET status = 'OFFLINE' WHERE (hostname, pid) IN \
                 (SELECT hostname, coalesce(pid, 0) FROM cf_worker_session WHERE worker_id = ?1)",
            )?
            .execute([&worker.worker_id])?;
        self.transaction
            .prepare_cached(
                "INSERT INTO cf_worker_session \
                 (worker_id, hostname, pid, capabilities, slots, status, last_seen_ms, user_id) \
                 VALUES (?1, ?2, ?3, ?4, ?5, 'ONLINE', ?6, ?7) \
                 ON CONFLICT (worker_id) DO UPDATE SET hostname = ?2, pid = ?3, \
                 capabilities = ?4, slots = ?5, status = 'ONLINE', last_seen_ms = ?6, \
                 user_id = ?7",
            )?
            .execute(params![
                worker.worker_id,
                worker.hostname,
                worker.pid,
                names,
                worker.slots,
                now_ms,
                worker.user_id
            ])?;
        self.transaction
            .prepare_cached(
                "INSERT INTO cf_worker_node (hostname, pid, started_at, last_heartbeat, status) \
                 VALUES (?1, ?2, ?3, ?3, 'ONLINE') ON CONFLICT (hostname, pid) DO UPDATE SET \
                 last_heartbeat = ?3, status = 'ONLINE'",
            )?
            .execute(params![
                worker.hostname,
                worker.pid.unwrap_or(0),
                format_time(now_ms)
            ])?;
        Ok(())
    }

    /// Whoever may connect can make up ids, so only so many of those that have gone are kept;
    /// those that have running jobs are.
    pub fn forget_old_workers(&mut self) -> Result<(), Error> {
        for script in [
            "DELETE FROM cf_worker_session WHERE worker_id IN (SELECT worker_id \
             FROM cf_worker_session WHERE status = 'OFFLINE' AND worker_id NOT IN \
             (SELECT worker_id FROM cf_processing_queue \
             WHERE status = 'RUNNING' AND worker_id IS NOT NULL) ORDER BY last_seen_ms \
             LIMIT (SELECT iif(count(*) > ?1, count(*) - ?1 * 9 / 10, 0) \
             FROM cf_worker_session))",
            "DELETE FROM cf_worker_node WHERE rowid IN (SELECT rowid \
             FROM cf_worker_node WHERE status = 'OFFLINE' ORDER BY last_heartbeat \
             LIMIT (SELECT iif(count(*) > ?1, count(*) - ?1 * 9 / 10, 0) \
             FROM cf_worker_node))",
        ] {
            let mut statement = self.transaction.prepare_cached(script)?;
            statement.execute([limits::WORKER_SESSIONS_MAX])?;
        }
        Ok(())
    }

    /// Workers are still there.
    pub fn touch_workers(&mut self, worker_ids: &[String], now_ms: i64) -> Result<(), Error> {
        let mut statement = self.transaction.prepare_cached(
            "UPDATE cf_worker_session SET last_seen_ms = ?2 WHERE worker_id = ?1",
        )?;
        for worker_id in worker_ids {
            statement.execute(params![worker_id, now_ms])?;
        }
        Ok(())
    }

    /// A worker is gone.
    pub fn worker_offline(&mut self, worker_id: &str, now_ms: i64) -> Result<(), Error> {
        self.transaction
            .prepare_cached(
                "UPDATE cf_worker_session SET status = 'OFFLINE', last_seen_ms = ?2 \
                 WHERE worker_id = ?1",
            )?
            .execute(params![worker_id, now_ms])?;
        self.transaction
            .prepare_cached(
                "UPDATE cf_worker_node SET status = 'OFFLINE', last_heartbeat = ?2 \
                 WHERE (hostname, pid) IN (SELECT hostname, coalesce(pid, 0) \
                 FROM cf_worker_session WHERE worker_id = ?1)",
            )?
            .execute(params![worker_id, format_time(now_ms)])?;
        Ok(())
    }

    /// Nobody is there: a sentinel has just started.
    pub fn all_workers_offline(&mut self, now_ms: i64) -> Result<(), Error> {
        self.transaction.execute(
            "UPDATE cf_worker_session SET status = 'OFFLINE' WHERE status = 'ONLINE'",
            [],
        )?;
        self.transaction.execute(
            "UPDATE cf_worker_node SET status = 'OFFLINE', last_heartbeat = ?1 \
             WHERE status = 'ONLINE'",
            [format_time(now_ms)],
        )?;
        Ok(())
    }
}
