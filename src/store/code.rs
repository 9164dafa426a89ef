//! The deployed code of a plugin: its newest ACTIVE manifest with its environment and sinks.
//!
//! "Newest" is an order, not a time (`deploy_order`, which triggers also set for programs of the reference
//! system). So a clock that jumps does not change which code runs. When the newest manifest cannot be used,
//! the plugin's jobs wait, with a reason. An older manifest is not used instead.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row};

use super::value::{Malformed, cell, malformed, needed, shown, text};
use super::{Error, Transaction, artifact_hash, parameters, sha256_hex, sinks};
use crate::job::{Parameters, Plugin, Sink};
use crate::limits;

/// The code of a plugin's newest ACTIVE manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginCode {
    /// The ID of the manifest's row.
    pub manifest_id: i64,
    /// Its version.
    pub version: String,
    /// The plugin as it is dispatched.
    pub plugin: Arc<Plugin>,
    /// The sinks of its topics, unless a job overrides them. The topic `output` always has a sink.
    pub sinks: Arc<[Sink]>,
    /// Its default parameters. A job may have further ones.
    pub parameters: Parameters,
}

impl PluginCode {
    /// True when a job with these overrides and parameters has the hash `known` of sinks and parameters. None in
    /// `known` = the hash of no parameters and the sinks of a plugin without configured sinks.
    pub(super) fn matches(
        &self,
        overrides: Option<&str>,
        own: &Parameters,
        known: Option<&str>,
    ) -> bool {
        let overrides = overrides.filter(|text| !text.trim().is_empty());
        let sinks = match overrides {
            Some(text) => sinks::overridden(&self.sinks, text, &self.plugin.name),
            None => Ok(self.sinks.to_vec()),
        };
        let known = match known {
            Some(known) => Ok(known.to_owned()),
            None => sinks::with_output(Vec::new(), &self.plugin.name)
                .map(|sinks| sinks::hash(&sinks, &Parameters::default())),
        };
        let parameters = self.parameters.with(own);
        // Unusable sinks are reported when the job is claimed.
        sinks.is_ok_and(|sinks| Ok(sinks::hash(&sinks, &parameters)) == known)
    }
}

/// Whether jobs of a plugin can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Code {
    /// They run with this code.
    Runs(Arc<PluginCode>),
    /// They wait. The reason, in one line: the plugin is not deployed, or a row of it cannot be used.
    Waits(String),
}

impl Code {
    /// The code, if there is usable code.
    #[cfg(test)]
    pub(crate) fn runs(self) -> Option<Arc<PluginCode>> {
        match self {
            Code::Runs(code) => Some(code),
            Code::Waits(_) => None,
        }
    }
}

impl Transaction<'_> {
    /// The code of a plugin, or why its jobs wait. Cached until another program commits.
    pub fn plugin_code(&mut self, plugin: &str) -> Result<Code, Error> {
        if let Some(code) = self.cache.codes.get(plugin) {
            return Ok(code.clone());
        }
        let code = read(&self.inner, plugin)?;
        if self.cache.codes.len() >= limits::PLUGINS_CACHED_MAX {
            self.cache.codes.clear();
        }
        self.cache.codes.insert(plugin.to_owned(), code.clone());
        Ok(code)
    }
}

/// The newest manifest of a plugin.
pub(super) const CODE_QUERY: &str = "SELECT m.id, m.version, m.source_code, m.env_hash, \
     e.hash IS NOT NULL, e.lockfile_content, m.artifact_hash FROM cf_plugin_manifest m \
     LEFT JOIN cf_plugin_environment e ON e.hash = m.env_hash \
     WHERE m.plugin_name = ?1 AND m.status = 'ACTIVE' \
     ORDER BY CAST(m.deploy_order AS INTEGER) DESC, m.id DESC LIMIT 1";

/// Reads the code of a plugin.
pub(super) fn read(connection: &Connection, plugin: &str) -> Result<Code, Error> {
    let found = connection
        .prepare_cached(CODE_QUERY)?
        .query_row([plugin], |row| Ok(manifest(row, plugin)))
        .optional()?;
    let (manifest_id, version, plugin) = match found {
        Some(Ok(manifest)) => manifest,
        Some(Err(reason)) => {
            return Ok(Code::Waits(format!(
                "plugin {plugin} cannot run: {reason}; `casparian deploy {plugin}.py` replaces it"
            )));
        }
        None => {
            return Ok(Code::Waits(format!(
                "plugin {plugin} is not deployed; `casparian deploy {plugin}.py` does it"
            )));
        }
    };
    let parameters = match parameters::defaults(connection, &plugin.name)? {
        Ok(parameters) => parameters,
        Err(reason) => {
            let plugin = &plugin.name;
            return Ok(Code::Waits(format!("plugin {plugin} cannot run: {reason}")));
        }
    };
    Ok(match sinks::configured(connection, &plugin.name)? {
        Ok(sinks) => Code::Runs(Arc::new(PluginCode {
            manifest_id,
            version,
            plugin: Arc::new(plugin),
            sinks: sinks.into(),
            parameters,
        })),
        Err(reason) => Code::Waits(format!("plugin {} cannot run: {reason}", plugin.name)),
    })
}

fn manifest(row: &Row<'_>, name: &str) -> Result<(i64, String, Plugin), Malformed> {
    let id = row.get(0).unwrap_or(0);
    let size_max = limits::SOURCE_SIZE_MAX;
    let source_code = needed(cell(row, 2), size_max, "cf_plugin_manifest.source_code", id)?;
    let column = "cf_plugin_manifest.env_hash";
    let mut env_hash = text(cell(row, 3), 1024, column, id)?.unwrap_or_default();
    let has_environment = row.get(4).unwrap_or(false);
    if !env_hash.is_empty() && !has_environment {
        let expected = "the hash of a row in cf_plugin_environment";
        return Err(malformed(column, id, cell(row, 3), expected));
    }
    let lockfile_content = text(
        cell(row, 5),
        size_max,
        "cf_plugin_environment.lockfile_content",
        &env_hash,
    )?
    .unwrap_or_default();
    if lockfile_content.is_empty() {
        env_hash.clear();
    } else if env_hash != sha256_hex(&[lockfile_content.as_bytes()]) {
        // Workers refuse an environment with another hash.
        let expected = "the SHA-256 of its lockfile in lower-case hex";
        return Err(malformed(column, id, cell(row, 3), expected));
    }
    let column = "cf_plugin_manifest.artifact_hash";
    let artifact_hash = text(cell(row, 6), 1024, column, id)?
        .unwrap_or_else(|| artifact_hash(&source_code, &lockfile_content));
    let version = shown(cell(row, 1)).unwrap_or_default();
    let plugin = Plugin {
        name: name.to_owned(),
        source_code,
        env_hash,
        lockfile_content,
        artifact_hash,
    };
    Ok((id, version, plugin))
}
