//! Workers as operators see them.

use rusqlite::params;

use super::{Error, Store, Turn, format_time};

/// What a worker said of itself when it was last heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSession {
    /// Its id.
    pub worker_id: String,
    /// Who it proved to be to the sentinel; none where nobody has to.
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
    /// Workers that were online when a sentinel last wrote, newest first.
    pub fn workers(&self) -> Result<Vec<WorkerSession>, Error> {
        let mut statement = self.connection.prepare(
            "SELECT worker_id, hostname, pid, capabilities, slots, user_id \
             FROM cf_worker_session \
             ORDER BY last_seen_ms DESC LIMIT 10000",
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

impl Turn<'_> {
    /// A worker is there. Its row in the reference's `cf_worker_node` is kept true as well.
    pub fn save_worker(&mut self, worker: &WorkerSession, now_ms: i64) -> Result<(), Error> {
        let names = serde_json::to_string(&worker.capabilities)
            .map_err(|error| Error::Row(error.to_string()))?;
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
