//! Parameters of plugins (`cf_plugin_config.default_parameters`) and of single jobs
//! (`cf_processing_queue.parameters`).

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, params};

use super::value::{Malformed, abridged, cell, text};
use super::{Error, Transaction};
use crate::job::Parameters;
use crate::limits;

/// The default parameters of a plugin.
pub(super) const DEFAULTS_QUERY: &str =
    "SELECT default_parameters FROM cf_plugin_config WHERE plugin_name = ?1";

/// The parameters in a column. Empty for NULL and an empty text.
pub(super) fn parameters(
    value: ValueRef<'_>,
    column: &str,
    row: impl std::fmt::Display + Copy,
) -> Result<Parameters, Malformed> {
    let text = text(value, limits::PARAMETERS_SIZE_MAX, column, row)?.unwrap_or_default();
    Parameters::parse(&text).map_err(|error| {
        let shown = abridged(value);
        Malformed(format!("{column} of row {row} is {shown}: {error}"))
    })
}

/// The default parameters of a plugin, or why they cannot be used.
pub(super) fn defaults(
    connection: &Connection,
    plugin: &str,
) -> Result<Result<Parameters, Malformed>, Error> {
    let column = "cf_plugin_config.default_parameters";
    let mut statement = connection.prepare_cached(DEFAULTS_QUERY)?;
    let found = statement.query_row([plugin], |row| Ok(parameters(cell(row, 0), column, plugin)));
    Ok(found
        .optional()?
        .unwrap_or_else(|| Ok(Parameters::default())))
}

impl Transaction<'_> {
    /// Sets the default parameters of a registered plugin.
    pub fn set_default_parameters(
        &mut self,
        plugin: &str,
        parameters: &Parameters,
    ) -> Result<(), Error> {
        self.cache.codes.remove(plugin);
        self.cache.uncommitted = true;
        self.inner.execute(
            "UPDATE cf_plugin_config SET default_parameters = ?2 WHERE plugin_name = ?1",
            params![plugin, parameters.to_json()],
        )?;
        Ok(())
    }

    /// Sets a job's own parameters.
    pub fn set_parameters(&mut self, job_id: i64, parameters: &Parameters) -> Result<(), Error> {
        let json = (!parameters.is_empty()).then(|| parameters.to_json());
        let mut statement = self.inner.prepare_cached(
            "UPDATE cf_processing_queue SET parameters = ?2 WHERE id = ?1 AND parameters IS NOT ?2",
        )?;
        statement.execute(params![job_id, json])?;
        Ok(())
    }
}
