//! Deploys plugins: writes manifests, environments and the sinks that manifests declare.

use rusqlite::{OptionalExtension, params};
use sha2::{Digest, Sha256};

use super::value::{cell, shown};
use super::{Error, ManifestSink, Transaction, format_time};
use crate::job::text;

/// SHA-256 as lower-case hex.
pub fn sha256_hex(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    text::hex(&hasher.finalize())
}

/// SHA-256 of source and lockfile in hex. It identifies the code that a job ran.
pub fn artifact_hash(source_code: &str, lockfile_content: &str) -> String {
    sha256_hex(&[source_code.as_bytes(), lockfile_content.as_bytes()])
}

/// A deployment of a plugin.
#[derive(Clone, Copy, Debug)]
pub struct Deploy<'a> {
    /// The plugin.
    pub plugin_name: &'a str,
    /// Its version. The next patch number when absent.
    pub version: Option<&'a str>,
    /// The source.
    pub source_code: &'a str,
    /// The lockfile. Empty = the default environment.
    pub lockfile_content: &'a str,
    /// Sinks of its MANIFEST. They replace those of the previous version. A topic that operators have
    /// configured keeps their sinks.
    pub sinks: &'a [ManifestSink],
}

/// The result of a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    /// The manifest's row.
    pub manifest_id: i64,
    /// Its version.
    pub version: String,
    /// False when the same source was already registered.
    pub new: bool,
}

impl Transaction<'_> {
    /// Sets how often the plugin's jobs are retried, unless a number is already set.
    pub fn set_retries(&mut self, plugin: &str, retries: u32) -> Result<(), Error> {
        self.inner.execute(
            "UPDATE cf_plugin_config SET retries = coalesce(retries, ?2) WHERE plugin_name = ?1",
            params![plugin, retries],
        )?;
        Ok(())
    }

    /// Registers a plugin's source as the deployed one.
    pub fn deploy(&mut self, deploy: &Deploy<'_>, now_ms: i64) -> Result<Deployed, Error> {
        let now = format_time(now_ms);
        self.cache.codes.remove(deploy.plugin_name);
        self.cache.uncommitted = true;
        self.inner.execute(
            "INSERT INTO cf_plugin_config (plugin_name, last_updated) VALUES (?1, ?2) \
             ON CONFLICT (plugin_name) DO UPDATE SET last_updated = ?2",
            params![deploy.plugin_name, now],
        )?;
        let env_hash = (!deploy.lockfile_content.is_empty())
            .then(|| sha256_hex(&[deploy.lockfile_content.as_bytes()]));
        if let Some(hash) = &env_hash {
            self.inner.execute(
                "INSERT INTO cf_plugin_environment (hash, lockfile_content, size_mb, last_used, \
                 created_at) VALUES (?1, ?2, 0.0, ?3, ?3) \
                 ON CONFLICT (hash) DO UPDATE SET lockfile_content = ?2, last_used = ?3",
                params![hash, deploy.lockfile_content, now],
            )?;
        }
        let artifact = artifact_hash(deploy.source_code, deploy.lockfile_content);
        let mut source_hash = sha256_hex(&[deploy.source_code.as_bytes()]);
        let registered: Option<(i64, String, String)> = self.manifest(&source_hash)?;
        let known = match registered {
            Some((_, plugin, _)) if plugin != deploy.plugin_name => {
                // `source_hash` is unique over all plugins, so the same source under another name gets a hash
                // of name and source.
                source_hash = sha256_hex(&[
                    deploy.plugin_name.as_bytes(),
                    b"\0",
                    deploy.source_code.as_bytes(),
                ]);
                self.manifest(&source_hash)?
            }
            known => known,
        };
        if let Some((manifest_id, _, old_version)) = known {
            let version = deploy.version.map_or(old_version, str::to_owned);
            self.inner.execute(
                "UPDATE cf_plugin_manifest SET status = 'ACTIVE', deployed_at = ?2, \
                 env_hash = ?3, artifact_hash = ?4, version = ?5, source_code = ?6, \
                 plugin_name = ?7, \
                 signature = CASE WHEN artifact_hash IS ?4 THEN signature END, \
                 publisher_id = CASE WHEN artifact_hash IS ?4 THEN publisher_id END \
                 WHERE id = ?1",
                params![
                    manifest_id,
                    now,
                    env_hash,
                    artifact,
                    version,
                    deploy.source_code,
                    deploy.plugin_name
                ],
            )?;
            self.make_newest(manifest_id)?;
            self.declare_sinks(deploy, manifest_id)?;
            return Ok(Deployed {
                manifest_id,
                version,
                new: false,
            });
        }
        let version = match deploy.version {
            Some(version) => version.to_owned(),
            None => self.next_version(deploy.plugin_name)?,
        };
        self.inner.execute(
            "INSERT INTO cf_plugin_manifest (plugin_name, version, source_code, source_hash, \
             status, created_at, deployed_at, env_hash, artifact_hash, system_requirements) \
             VALUES (?1, ?2, ?3, ?4, 'ACTIVE', ?5, ?5, ?6, ?7, '[]')",
            params![
                deploy.plugin_name,
                version,
                deploy.source_code,
                source_hash,
                now,
                env_hash,
                artifact
            ],
        )?;
        let manifest_id = self.inner.last_insert_rowid();
        self.make_newest(manifest_id)?;
        self.declare_sinks(deploy, manifest_id)?;
        Ok(Deployed {
            manifest_id,
            version,
            new: true,
        })
    }

    /// Gives a manifest the highest `deploy_order`. The triggers do this only when `deployed_at` changes,
    /// which does not change when the clock shows the same time.
    fn make_newest(&self, manifest_id: i64) -> Result<(), Error> {
        self.inner.execute(
            "UPDATE cf_plugin_manifest SET deploy_order = \
             (SELECT coalesce(max(deploy_order), 0) + 1 FROM cf_plugin_manifest \
             WHERE typeof(deploy_order) = 'integer' AND deploy_order < 1 << 62) WHERE id = ?1",
            [manifest_id],
        )?;
        Ok(())
    }

    fn declare_sinks(&self, deploy: &Deploy<'_>, manifest_id: i64) -> Result<(), Error> {
        self.inner.execute(
            "DELETE FROM cf_topic_config WHERE plugin_name = ?1 AND manifest_id IS NOT NULL",
            [deploy.plugin_name],
        )?;
        for sink in deploy.sinks {
            self.inner.execute(
                "INSERT INTO cf_topic_config (plugin_name, topic_name, uri, mode, manifest_id) \
                 SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS (SELECT 1 FROM cf_topic_config \
                 WHERE plugin_name = ?1 AND topic_name = ?2)",
                params![
                    deploy.plugin_name,
                    sink.topic,
                    sink.uri,
                    sink.mode.as_deref().unwrap_or("append"),
                    manifest_id
                ],
            )?;
        }
        Ok(())
    }

    fn manifest(&self, source_hash: &str) -> Result<Option<(i64, String, String)>, Error> {
        Ok(self
            .inner
            .query_row(
                "SELECT id, plugin_name, version FROM cf_plugin_manifest WHERE source_hash = ?1",
                [source_hash],
                |row| {
                    let text = |index| shown(cell(row, index)).unwrap_or_default();
                    Ok((row.get(0)?, text(1), text(2)))
                },
            )
            .optional()?)
    }

    fn next_version(&self, plugin: &str) -> Result<String, Error> {
        let last: Option<String> = self
            .inner
            .query_row(
                "SELECT version FROM cf_plugin_manifest WHERE plugin_name = ?1 \
                 ORDER BY id DESC LIMIT 1",
                [plugin],
                |row| Ok(shown(cell(row, 0))),
            )
            .optional()?
            .flatten();
        let Some(last) = last else {
            return Ok("1.0.0".to_owned());
        };
        let next = last.rsplit_once('.').and_then(|(head, patch)| {
            Some(format!(
                "{head}.{}",
                patch.parse::<u64>().ok()?.checked_add(1)?
            ))
        });
        Ok(next.unwrap_or_else(|| format!("{last}.1")))
    }
}
