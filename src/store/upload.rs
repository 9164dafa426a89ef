//! Deployments over the wire: writes the same rows as the reference system.

use std::fmt;

use rusqlite::{OptionalExtension, params};

use super::{Deploy, Deployed, Error, Manifest, Transaction, artifact_hash, format_time};
use crate::limits;

/// The publisher of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Author {
    /// The publisher's name.
    pub name: String,
    /// The mail address.
    pub email: Option<String>,
    /// The directory ID.
    pub azure_oid: Option<String>,
}

/// A deployment whose fields, hashes and signature have been checked.
#[derive(Clone, PartialEq)]
pub struct Upload {
    /// The plugin.
    pub plugin_name: String,
    /// Its version. The next patch number when absent.
    pub version: Option<String>,
    /// The source.
    pub source_code: String,
    /// The lockfile. Empty = the default environment.
    pub lockfile_content: String,
    /// The signature over the artifact hash, if it was verified.
    pub signature: Option<String>,
    /// Its publisher.
    pub author: Author,
    /// What a host must have, for people.
    pub system_requirements: Vec<String>,
    /// The source's MANIFEST.
    pub manifest: Manifest,
}

/// Omits source and lockfile.
impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("plugin_name", &self.plugin_name)
            .field("version", &self.version)
            .field("author", &self.author)
            .finish_non_exhaustive()
    }
}

/// Checks that source and lockfile are not larger than what may be deployed.
pub fn check_deploy_size(source_code: &str, lockfile_content: &str) -> Result<(), String> {
    let (source, lockfile) = (source_code.len(), lockfile_content.len());
    for (what, size, size_max) in [
        ("source_code has", source, limits::DEPLOY_SOURCE_SIZE_MAX),
        (
            "lockfile_content has",
            lockfile,
            limits::DEPLOY_LOCKFILE_SIZE_MAX,
        ),
        (
            "source_code and lockfile_content together have",
            source.saturating_add(lockfile),
            limits::DEPLOY_SIZE_MAX,
        ),
    ] {
        if size > size_max {
            return Err(format!("{what} {size} bytes, at most {size_max}"));
        }
    }
    Ok(())
}

impl Transaction<'_> {
    /// Registers a deployment with its publisher and routing, as the deployed code of its plugin. All of it
    /// or nothing: the inner error is the reason why the database refuses this deployment.
    pub fn deploy_upload(
        &mut self,
        upload: &Upload,
        now_ms: i64,
    ) -> Result<Result<Deployed, String>, Error> {
        let artifact = artifact_hash(&upload.source_code, &upload.lockfile_content);
        let name = format!("{}\0{artifact}", upload.plugin_name);
        self.change_all(&name, |transaction| {
            let author_id = transaction.author(&upload.author, now_ms)?;
            transaction.upload(upload, author_id, now_ms)
        })
    }

    fn upload(&mut self, upload: &Upload, author_id: i64, now_ms: i64) -> Result<Deployed, Error> {
        let deployed = self.deploy(
            &Deploy {
                plugin_name: &upload.plugin_name,
                version: upload.version.as_deref(),
                source_code: &upload.source_code,
                lockfile_content: &upload.lockfile_content,
                sinks: &upload.manifest.sinks,
            },
            now_ms,
        )?;
        let requirements =
            serde_json::to_string(&upload.system_requirements).unwrap_or_else(|_| "[]".to_owned());
        self.inner.execute(
            "UPDATE cf_plugin_manifest SET signature = ?2, publisher_id = ?3, \
             system_requirements = ?4, validation_error = NULL WHERE id = ?1",
            params![
                deployed.manifest_id,
                upload.signature,
                author_id,
                requirements
            ],
        )?;
        self.route(&upload.plugin_name, &upload.manifest)?;
        Ok(deployed)
    }

    /// Finds or adds the row of a publisher, who is identified by the name. Signatures do not cover directory
    /// IDs. So a directory ID that another publisher already has is ignored.
    fn author(&mut self, author: &Author, now_ms: i64) -> Result<i64, Error> {
        let now = format_time(now_ms);
        let query = "SELECT EXISTS (SELECT 1 FROM cf_publisher \
                     WHERE azure_oid = ?1 AND name IS NOT ?2)";
        let mut oid = author.azure_oid.as_deref();
        let row = params![oid, author.name];
        if self.inner.query_row(query, row, |row| row.get(0))? {
            oid = None;
        }
        let found: Option<i64> = self
            .inner
            .query_row(
                "SELECT id FROM cf_publisher WHERE name = ?1 \
                 ORDER BY azure_oid IS ?2 DESC, id LIMIT 1",
                params![author.name, oid],
                |row| row.get(0),
            )
            .optional()?;
        if let Some(id) = found {
            self.inner.execute(
                "UPDATE cf_publisher SET last_active = ?2, email = coalesce(?3, email), \
                 azure_oid = coalesce(azure_oid, ?4) WHERE id = ?1",
                params![id, now, author.email, oid],
            )?;
            return Ok(id);
        }
        self.inner.execute(
            "INSERT INTO cf_publisher (azure_oid, name, email, created_at, last_active) \
             VALUES (?1, ?2, ?3, ?4, ?4)",
            params![oid, author.name, author.email, now],
        )?;
        Ok(self.inner.last_insert_rowid())
    }

    /// Adds the routing rule and subscriptions: files with names that match the pattern get the tag
    /// `auto_<plugin>`, to which the plugin subscribes. What operators have added stays.
    fn route(&mut self, plugin: &str, manifest: &Manifest) -> Result<(), Error> {
        let tag = format!("auto_{plugin}");
        let changed = self.inner.execute(
            "UPDATE cf_routing_rule SET pattern = ?2, priority = ?3 \
             WHERE id = (SELECT min(id) FROM cf_routing_rule WHERE tag = ?1)",
            params![tag, manifest.pattern, manifest.priority],
        )?;
        if changed == 0 {
            self.inner.execute(
                "INSERT INTO cf_routing_rule (pattern, tag, priority) VALUES (?2, ?1, ?3)",
                params![tag, manifest.pattern, manifest.priority],
            )?;
        }
        self.inner.execute(
            "UPDATE cf_plugin_config SET default_parameters = coalesce(default_parameters, '{}'), \
             subscription_tags = CASE \
             WHEN coalesce(subscription_tags, '') = '' THEN ?2 \
             WHEN instr(',' || replace(subscription_tags, ' ', '') || ',', \
                 ',' || replace(?2, ' ', '') || ',') > 0 THEN subscription_tags \
             ELSE subscription_tags || ',' || ?2 END WHERE plugin_name = ?1",
            params![plugin, tag],
        )?;
        for topic in &manifest.subscriptions {
            self.inner.execute(
                "INSERT INTO cf_plugin_subscription (plugin_name, topic_name, is_active) \
                 VALUES (?1, ?2, 1) ON CONFLICT (plugin_name, topic_name) DO NOTHING",
                params![plugin, topic],
            )?;
        }
        Ok(())
    }
}
