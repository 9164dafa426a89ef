//! Rows of workers, for operators: what they have reported, and whether they are connected.

use std::collections::BTreeMap;

use rusqlite::{Row, params};

use super::value::{cell, count, number, shown};
use super::{Error, Store, Transaction, format_time};
use crate::limits;

/// What a worker last reported about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSession {
    /// Its id.
    pub worker_id: String,
    /// Its authenticated user ([`crate::socket::Socket::user`]).
    pub user_id: Option<String>,
    /// Its host.
    pub hostname: String,
    /// Its process.
    pub pid: Option<i64>,
    /// Plugins that it runs. `*` = any.
    pub capabilities: Vec<String>,
    /// Jobs at a time.
    pub slots: i64,
    /// Why it accepts no jobs, in one line. None while it accepts jobs.
    pub trouble: Option<String>,
    /// Environments that it reports as unusable for now, with the reason. It gets none of their jobs.
    pub environments: BTreeMap<String, String>,
    /// The routing ID as text, by which a worker of the reference system is recognized after a restart of the
    /// sentinel. Rows of earlier releases have none where it is the worker ID.
    pub routing_id: Option<String>,
}

/// Reads a worker's row, with values of any types. Capabilities that cannot be read count as none.
pub(super) fn session(row: &Row<'_>) -> WorkerSession {
    let names = shown(cell(row, 3)).unwrap_or_default();
    let environments = shown(cell(row, 7)).unwrap_or_default();
    WorkerSession {
        worker_id: shown(cell(row, 0)).unwrap_or_default(),
        user_id: shown(cell(row, 5)),
        hostname: shown(cell(row, 1)).unwrap_or_default(),
        pid: number(cell(row, 2)),
        capabilities: serde_json::from_str(&names).unwrap_or_default(),
        slots: count(cell(row, 4)),
        trouble: shown(cell(row, 6)),
        environments: serde_json::from_str(&environments).unwrap_or_default(),
        routing_id: shown(cell(row, 8)),
    }
}

/// The columns in the order in which [`session`] reads them.
pub(super) const SESSION_COLUMNS: &str = "worker_id, hostname, pid, capabilities, slots, user_id, trouble, environments, \
     routing_id";

impl Store {
    /// Workers that have been connected to a sentinel, the last seen one first.
    pub fn workers(&self) -> Result<Vec<WorkerSession>, Error> {
        let mut statement = self.connection.prepare(&format!(
            "SELECT {SESSION_COLUMNS} FROM cf_worker_session ORDER BY last_seen_ms DESC"
        ))?;
        let sessions = statement.query_map([], |row| Ok(session(row)))?;
        Ok(sessions.collect::<Result<_, _>>()?)
    }
}

impl Transaction<'_> {
    /// Writes the row of a connected worker, and its row in `cf_worker_node` of the reference system.
    pub fn save_worker(&mut self, worker: &WorkerSession, now_ms: i64) -> Result<(), Error> {
        let names = serde_json::to_string(&worker.capabilities)
            .map_err(|error| Error::Row(error.to_string()))?;
        let environments = match worker.environments.is_empty() {
            true => None,
            false => serde_json::to_string(&worker.environments).ok(),
        };
        let id = worker.worker_id.as_str();
        // The worker's previous host and process are offline.
        let before = "UPDATE cf_worker_node SET status = 'OFFLINE' WHERE (hostname, pid) IN \
             (SELECT hostname, coalesce(pid, 0) FROM cf_worker_session WHERE worker_id = ?1)";
        self.change_worker(id, before, [id])?;
        let session = "INSERT INTO cf_worker_session \
             (worker_id, hostname, pid, capabilities, slots, status, last_seen_ms, user_id, \
             trouble, environments, routing_id) \
             VALUES (?1, ?2, ?3, ?4, ?5, 'ONLINE', ?6, ?7, ?8, ?9, ?10) \
             ON CONFLICT (worker_id) DO UPDATE SET hostname = ?2, pid = ?3, \
             capabilities = ?4, slots = ?5, status = 'ONLINE', last_seen_ms = ?6, \
             user_id = ?7, trouble = ?8, environments = ?9, routing_id = ?10";
        let parameters = params![
            id,
            worker.hostname,
            worker.pid,
            names,
            worker.slots,
            now_ms,
            worker.user_id,
            worker.trouble,
            environments,
            worker.routing_id
        ];
        self.change_worker(id, session, parameters)?;
        if let Some(routing_id) = &worker.routing_id {
            // Another worker of the same user that had this routing ID before is no longer recognized by it.
            let reused = "UPDATE cf_worker_session SET routing_id = NULL \
                 WHERE routing_id = ?1 AND worker_id <> ?2 AND user_id IS ?3";
            self.change_worker(id, reused, params![routing_id, id, worker.user_id])?;
        }
        let node = "INSERT INTO cf_worker_node \
             (hostname, pid, started_at, last_heartbeat, status) \
             VALUES (?1, ?2, ?3, ?3, 'ONLINE') ON CONFLICT (hostname, pid) DO UPDATE SET \
             last_heartbeat = ?3, status = 'ONLINE'";
        let pid = worker.pid.unwrap_or(0);
        let parameters = params![worker.hostname, pid, format_time(now_ms)];
        self.change_worker(id, node, parameters)
    }

    /// Deletes rows of offline workers after [`limits::WORKER_SESSION_KEPT`], and the oldest ones above
    /// [`limits::WORKER_SESSIONS_MAX`], because any peer that may connect can invent IDs. Workers with
    /// RUNNING jobs are kept. The environments of a worker are deleted with it.
    pub fn forget_old_workers(&mut self, now_ms: i64) -> Result<(), Error> {
        let kept_ms = i64::try_from(limits::WORKER_SESSION_KEPT.as_millis()).unwrap_or(i64::MAX);
        let oldest_ms = now_ms.saturating_sub(kept_ms);
        let aged = "DELETE FROM cf_worker_session WHERE status = 'OFFLINE' AND last_seen_ms < ?1 \
             AND worker_id NOT IN (SELECT worker_id FROM cf_processing_queue \
             INDEXED BY ix_casparian_running WHERE status = 'RUNNING' AND worker_id IS NOT NULL)";
        self.change_rows(aged, [oldest_ms])?;
        let aged = "DELETE FROM cf_worker_node WHERE status = 'OFFLINE' AND last_heartbeat < ?1";
        self.change_rows(aged, [format_time(oldest_ms)])?;
        for (table, script) in [
            (
                "cf_worker_session",
                "DELETE FROM cf_worker_session WHERE worker_id IN (SELECT worker_id \
                 FROM cf_worker_session WHERE status = 'OFFLINE' AND worker_id NOT IN \
                 (SELECT worker_id FROM cf_processing_queue INDEXED BY ix_casparian_running \
                 WHERE status = 'RUNNING' AND worker_id IS NOT NULL) ORDER BY last_seen_ms \
                 LIMIT ?1)",
            ),
            (
                "cf_worker_node",
                "DELETE FROM cf_worker_node WHERE rowid IN (SELECT rowid \
                 FROM cf_worker_node WHERE status = 'OFFLINE' ORDER BY last_heartbeat \
                 LIMIT ?1)",
            ),
        ] {
            let known: i64 = self
                .inner
                .prepare_cached(&format!("SELECT count(*) FROM {table}"))?
                .query_row([], |row| row.get(0))?;
            if known > limits::WORKER_SESSIONS_MAX {
                let excess = known - limits::WORKER_SESSIONS_MAX * 9 / 10;
                self.change_rows(script, [excess])?;
            }
        }
        let environments = "DELETE FROM cf_worker_environment WHERE worker_id NOT IN \
             (SELECT worker_id FROM cf_worker_session)";
        self.change_rows(environments, [])?;
        Ok(())
    }

    /// Notes that workers are still connected.
    pub fn touch_workers(&mut self, worker_ids: &[String], now_ms: i64) -> Result<(), Error> {
        let touch = "UPDATE cf_worker_session SET last_seen_ms = ?2 WHERE worker_id = ?1";
        for worker_id in worker_ids {
            self.change_worker(worker_id, touch, params![worker_id, now_ms])?;
        }
        Ok(())
    }

    /// Notes that a worker is disconnected. The environments that it has reported as ready or unusable are
    /// deleted, because its next process reports them again.
    pub fn worker_offline(&mut self, worker_id: &str, now_ms: i64) -> Result<(), Error> {
        let session = "UPDATE cf_worker_session SET status = 'OFFLINE', last_seen_ms = ?2, \
             capabilities = iif(length(capabilities) > ?3, '[]', capabilities), \
             environments = NULL WHERE worker_id = ?1";
        let size_max = limits::CAPABILITIES_OFFLINE_SIZE_MAX;
        self.change_worker(worker_id, session, params![worker_id, now_ms, size_max])?;
        self.forget_environments(worker_id)?;
        let node = "UPDATE cf_worker_node SET status = 'OFFLINE', last_heartbeat = ?2 \
             WHERE (hostname, pid) IN (SELECT hostname, coalesce(pid, 0) \
             FROM cf_worker_session WHERE worker_id = ?1)";
        self.change_worker(worker_id, node, params![worker_id, format_time(now_ms)])
    }

    /// Notes that no worker is connected, for a sentinel that has just started.
    pub fn all_workers_offline(&mut self, now_ms: i64) -> Result<(), Error> {
        let sessions = "UPDATE cf_worker_session SET status = 'OFFLINE', environments = NULL, \
             capabilities = iif(length(capabilities) > ?1, '[]', capabilities) WHERE status = 'ONLINE'";
        self.change_rows(sessions, [limits::CAPABILITIES_OFFLINE_SIZE_MAX])?;
        self.change_rows("DELETE FROM cf_worker_environment", [])?;
        let nodes = "UPDATE cf_worker_node SET status = 'OFFLINE', last_heartbeat = ?1 \
             WHERE status = 'ONLINE'";
        self.change_rows(nodes, [format_time(now_ms)])?;
        Ok(())
    }
}
