//! Sinks of a plugin's topics: from `cf_topic_config`, and from the `config_overrides` of a job.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row};
use serde::Deserialize;

use super::value::{cell, needed, text};
use super::{Error, Transaction, sha256_hex};
use crate::job::{Parameters, Sink};
use crate::limits;

/// Maximum size in bytes of a topic's name, a URI or a mode. A schema has the limit of overrides.
const NAME_SIZE_MAX: usize = 4096;
/// The topic of what a plugin returns. It always has a sink.
const OUTPUT: &str = "output";

/// The sink or sinks of one topic in `config_overrides`.
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

/// A plugin's sinks. Where an operator has configured a topic, sinks that a manifest declares for it are
/// ignored.
pub(super) const SINKS_QUERY: &str = "SELECT id, topic_name, uri, mode, schema_json \
     FROM cf_topic_config AS sink \
     WHERE plugin_name = ?1 AND (manifest_id IS NULL OR NOT EXISTS ( \
         SELECT 1 FROM cf_topic_config AS theirs WHERE theirs.plugin_name = ?1 \
         AND theirs.topic_name = sink.topic_name AND theirs.manifest_id IS NULL)) \
     ORDER BY id LIMIT ?2";

/// The sinks that are configured for a plugin, or why one of them cannot be used.
pub(super) fn configured(
    connection: &Connection,
    plugin: &str,
) -> Result<Result<Vec<Sink>, String>, Error> {
    let mut statement = connection.prepare_cached(SINKS_QUERY)?;
    let most = i64::try_from(limits::SINKS_MAX).unwrap_or(i64::MAX);
    let mut rows = statement.query((plugin, most.saturating_add(1)))?;
    let mut sinks = Vec::new();
    while let Some(row) = rows.next()? {
        match sink(row) {
            Ok(sink) => sinks.push(sink),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    if sinks.len() > limits::SINKS_MAX {
        return Ok(Err(format!(
            "cf_topic_config has more than {} rows for it",
            limits::SINKS_MAX
        )));
    }
    Ok(with_output(sinks, plugin))
}

impl Transaction<'_> {
    /// The sinks into which a job would publish now, or why they cannot be used.
    pub fn sinks_of(&self, job_id: i64) -> Result<Result<Vec<Sink>, String>, Error> {
        let query = "SELECT plugin_name, config_overrides FROM cf_processing_queue WHERE id = ?1";
        let mut statement = self.inner.prepare_cached(query)?;
        let found = statement.query_row([job_id], |row| {
            let column = "cf_processing_queue.config_overrides";
            let size_max = limits::OVERRIDES_SIZE_MAX;
            let overrides = text(cell(row, 1), size_max, column, job_id);
            let plugin = needed(cell(row, 0), NAME_SIZE_MAX, "plugin_name", job_id);
            Ok(plugin.and_then(|plugin| Ok((plugin, overrides?))))
        })?;
        let (plugin, overrides) = match found {
            Ok(found) => found,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let sinks = match configured(&self.inner, &plugin)? {
            Ok(sinks) => sinks,
            Err(reason) => return Ok(Err(reason)),
        };
        Ok(match overrides.filter(|text| !text.trim().is_empty()) {
            Some(overrides) => overridden(&sinks, &overrides, &plugin),
            None => Ok(sinks),
        })
    }
}

fn sink(row: &Row<'_>) -> Result<Sink, String> {
    let id: i64 = row.get(0).unwrap_or(0);
    let name = |index: usize, column: &str| {
        needed(cell(row, index), NAME_SIZE_MAX, column, id).map_err(|error| error.to_string())
    };
    let topic = name(1, "cf_topic_config.topic_name")?;
    let uri = name(2, "cf_topic_config.uri")?;
    let mode = text(cell(row, 3), NAME_SIZE_MAX, "cf_topic_config.mode", id)
        .map_err(|error| error.to_string())?
        .unwrap_or_default();
    let mut sink = Sink::parse(&topic, &uri, &mode)
        .map_err(|error| format!("row {id} of cf_topic_config, topic {topic:?}: {error}"))?;
    let size_max = limits::OVERRIDES_SIZE_MAX;
    sink.schema_def = text(cell(row, 4), size_max, "cf_topic_config.schema_json", id)
        .map_err(|error| error.to_string())?;
    Ok(sink)
}

/// The sinks of a job with overrides. Topics in the overrides have only the sinks of the overrides.
pub(super) fn overridden(
    configured: &[Sink],
    overrides: &str,
    plugin: &str,
) -> Result<Vec<Sink>, String> {
    let parsed: Option<BTreeMap<String, Override>> = serde_json::from_str(overrides)
        .map_err(|error| format!("config_overrides is not {{topic: sink or [sinks]}}: {error}"))?;
    let parsed = parsed.unwrap_or_default();
    let kept = |sink: &&Sink| !parsed.contains_key(&sink.topic);
    let mut sinks: Vec<Sink> = configured.iter().filter(kept).cloned().collect();
    for (topic, replacement) in parsed {
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
            let mut sink = Sink::parse(&topic, &uri, mode.as_deref().unwrap_or_default())
                .map_err(|error| format!("config_overrides, topic {topic:?}: {error}"))?;
            sink.schema_def = schema_def;
            sinks.push(sink);
        }
    }
    if sinks.len() > limits::SINKS_MAX {
        return Err(format!(
            "config_overrides gives more than {} sinks",
            limits::SINKS_MAX
        ));
    }
    with_output(sinks, plugin)
}

/// A hash of sinks, independent of their order, and of parameters.
pub(super) fn hash(sinks: &[Sink], parameters: &Parameters) -> String {
    let line = |sink: &Sink| {
        let schema = sink.schema_def.as_deref().unwrap_or_default();
        format!(
            "{:?}\n",
            (&sink.topic, &sink.uri, sink.mode.as_str(), schema)
        )
    };
    let mut lines: Vec<String> = sinks.iter().map(line).collect();
    lines.sort();
    if !parameters.is_empty() {
        lines.push(parameters.to_json());
    }
    let parts: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
    sha256_hex(&parts)
}

pub(super) fn with_output(mut sinks: Vec<Sink>, plugin: &str) -> Result<Vec<Sink>, String> {
    if !sinks.iter().any(|sink| sink.topic == OUTPUT) {
        let uri = format!("parquet://{plugin}_output.parquet");
        let mut sink = Sink::parse(OUTPUT, &uri, "").map_err(|error| error.to_string())?;
        sink.is_default = true;
        sinks.push(sink);
    }
    Ok(sinks)
}
