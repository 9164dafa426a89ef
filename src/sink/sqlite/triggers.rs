//! Triggers of other programs on a sink's table. They may keep, drop or add rows, which a count of the
//! rows detects. Rows of tables without triggers are not counted.

use std::path::Path;

use rusqlite::{Connection, Params};

use super::{key, target_failure as failure};
use crate::sink::Error;

/// Number of triggers that a message names.
const NAMES_MAX: usize = 4;

/// Names of the first triggers of a table, or of a view of this name.
fn names(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let query = "SELECT name FROM main.sqlite_master WHERE type = 'trigger'
         AND lower(tbl_name) = ?1 ORDER BY name LIMIT ?2";
    let mut statement = connection.prepare(query)?;
    let limit = i64::try_from(NAMES_MAX).unwrap_or(i64::MAX);
    let rows = statement.query_map((key(table), limit), |row| row.get(0))?;
    rows.collect()
}

/// An error when the number of rows in `rows` (a FROM clause without FROM, and its parameters) is not the
/// expected one. Rows are counted only if the table has triggers or `is_odd` is set.
pub(super) fn check(
    path: &Path,
    connection: &Connection,
    table: &str,
    is_odd: bool,
    rows: (&str, impl Params),
    expected: u64,
) -> Result<(), Error> {
    let fail = |error: rusqlite::Error| failure(path, &error);
    let triggers = names(connection, table).map_err(fail)?;
    if triggers.is_empty() && !is_odd {
        return Ok(());
    }
    let (rows, parameters) = rows;
    let query = format!("SELECT count(*) FROM {rows}");
    let found: i64 = connection
        .query_row(&query, parameters, |row| row.get(0))
        .map_err(fail)?;
    let found = u64::try_from(found).unwrap_or(0);
    match found == expected {
        true => Ok(()),
        false => Err(refusal(path, connection, table, found, expected)),
    }
}

/// The error for a table with an unexpected number of rows.
pub(super) fn refusal(
    path: &Path,
    connection: &Connection,
    table: &str,
    found: u64,
    expected: u64,
) -> Error {
    Error::Rows {
        path: path.to_owned(),
        table: table.to_owned(),
        triggers: names(connection, table).unwrap_or_default(),
        found,
        expected,
    }
}
