//! Reads what is deployed. A sentinel announces it to workers before there are jobs: environments, and
//! changes of plugins and their sinks.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, params};

use super::value::{cell, number, shown};
use super::{Error, Store, Transaction, format_time, sha256_hex};
use crate::limits;

/// The deployment of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// The plugin.
    pub plugin_name: String,
    /// The environment of its newest ACTIVE manifest; empty = the default one.
    pub env_hash: String,
    /// The position of that manifest in the order of all deployments.
    pub order: i64,
    /// It has QUEUED jobs.
    pub has_jobs: bool,
}

/// All deployments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deployments {
    /// One for each plugin.
    pub plugins: Vec<Deployment>,
    /// A hash of each plugin's deployment and sinks, by plugin. It changes when one of them changes.
    pub states: BTreeMap<String, u64>,
}

/// The newest manifest of each plugin.
pub(super) const DEPLOYED_QUERY: &str = "SELECT plugin_name, env_hash, \
     max(CAST(deploy_order AS INTEGER)), EXISTS (SELECT 1 FROM cf_processing_queue AS q \
     INDEXED BY ix_casparian_claim WHERE q.status = 'QUEUED' AND q.plugin_name = m.plugin_name), \
     id, source_hash FROM cf_plugin_manifest AS m WHERE status = 'ACTIVE' GROUP BY plugin_name LIMIT ?1";

/// An environment that is ready on a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerEnvironment {
    /// The lockfile's hash.
    pub env_hash: String,
    /// The path of its `bin/python` on the worker's host.
    pub interpreter_path: String,
    /// It existed before the sentinel asked for it.
    pub cached: bool,
    /// When the worker reported it.
    pub ready_at: String,
}

impl Store {
    /// All deployments. Plugins and sinks beyond [`limits::DEPLOYMENTS_MAX`] are left out.
    pub fn deployments(&self) -> Result<Deployments, Error> {
        let mut found = Deployments::default();
        let most = i64::try_from(limits::DEPLOYMENTS_MAX).unwrap_or(i64::MAX);
        let mut hashers: BTreeMap<String, DefaultHasher> = BTreeMap::new();
        let mut statement = self.connection.prepare_cached(DEPLOYED_QUERY)?;
        let mut rows = statement.query([most])?;
        while let Some(row) = rows.next()? {
            let ValueRef::Text(name) = cell(row, 0) else {
                continue;
            };
            let Ok(name) = std::str::from_utf8(name) else {
                continue;
            };
            let deployment = Deployment {
                plugin_name: name.to_owned(),
                env_hash: shown(cell(row, 1)).unwrap_or_default(),
                order: number(cell(row, 2)).unwrap_or(0),
                has_jobs: row.get(3).unwrap_or(false),
            };
            let hasher = hashers.entry(name.to_owned()).or_default();
            // The order is not hashed, because a repeated deployment of the newest manifest is no change.
            for index in [1, 4, 5] {
                hash_value(cell(row, index), hasher);
            }
            found.plugins.push(deployment);
        }
        let mut statement = self.connection.prepare_cached(
            "SELECT plugin_name, topic_name, uri, mode, schema_json FROM cf_topic_config \
             ORDER BY id LIMIT ?1",
        )?;
        let mut rows = statement.query([most])?;
        while let Some(row) = rows.next()? {
            let Some(name) = shown(cell(row, 0)) else {
                continue;
            };
            let hasher = hashers.entry(name).or_default();
            for index in 1..5 {
                hash_value(cell(row, index), hasher);
            }
        }
        let states = hashers.into_iter();
        found.states = states.map(|(name, state)| (name, state.finish())).collect();
        Ok(found)
    }

    /// The lockfile of an environment, if it can be used.
    pub fn lockfile(&self, env_hash: &str) -> Result<Option<String>, Error> {
        let query = "SELECT lockfile_content FROM cf_plugin_environment WHERE hash = ?1";
        let found = self
            .connection
            .prepare_cached(query)?
            .query_row([env_hash], |row| {
                Ok(match cell(row, 0) {
                    ValueRef::Text(text) if text.len() <= limits::SOURCE_SIZE_MAX => {
                        String::from_utf8(text.to_vec()).ok()
                    }
                    _ => None,
                })
            })
            .optional()?;
        let lockfile = found.flatten();
        Ok(lockfile.filter(|text| sha256_hex(&[text.as_bytes()]) == env_hash))
    }
}

fn hash_value(value: ValueRef<'_>, hasher: &mut DefaultHasher) {
    match value {
        ValueRef::Null => 0.hash(hasher),
        ValueRef::Integer(number) => (1, number).hash(hasher),
        ValueRef::Real(number) => (2, number.to_bits()).hash(hasher),
        ValueRef::Text(bytes) => (3, bytes).hash(hasher),
        ValueRef::Blob(bytes) => (4, bytes).hash(hasher),
    }
}

impl Transaction<'_> {
    /// Notes that a worker has reported an environment as ready.
    pub fn environment_ready(
        &mut self,
        worker_id: &str,
        env_hash: &str,
        interpreter_path: &str,
        cached: bool,
        now_ms: i64,
    ) -> Result<(), Error> {
        let insert = "INSERT INTO cf_worker_environment \
             (worker_id, env_hash, interpreter_path, cached, ready_at) \
             VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (worker_id, env_hash) DO UPDATE SET \
             interpreter_path = ?3, cached = ?4, ready_at = ?5";
        let at = format_time(now_ms);
        let parameters = params![worker_id, env_hash, interpreter_path, cached, at];
        self.change_worker(worker_id, insert, parameters)
    }

    /// Deletes everything that a worker has reported about its environments.
    pub fn forget_environments(&mut self, worker_id: &str) -> Result<(), Error> {
        let delete = "DELETE FROM cf_worker_environment WHERE worker_id = ?1";
        self.change_worker(worker_id, delete, params![worker_id])
    }

    /// Notes that a worker has reported that it does not have an environment.
    pub fn environment_failed(&mut self, worker_id: &str, env_hash: &str) -> Result<(), Error> {
        let delete = "DELETE FROM cf_worker_environment WHERE worker_id = ?1 AND env_hash = ?2";
        self.change_worker(worker_id, delete, params![worker_id, env_hash])
    }
}
