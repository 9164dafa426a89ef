//! Inserts rows of the stage into a table, which may be another program's: it may have columns of other
//! types, constraints and triggers. Either all rows are inserted with unchanged values, or none.

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::target::{Table, Target};
use super::target_failure as failure;
use super::{Marks, column_names, quoted, triggers};
use crate::job::text::prefix;
use crate::sink::Error;

/// Column affinity: how SQLite may convert a value that is stored in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Affinity {
    Blob,
    Text,
    Real,
    /// INTEGER and NUMERIC.
    Numeric,
}

/// The affinity of a declared type (<https://sqlite.org/datatype3.html>, 3.1).
fn affinity(declared: &str) -> Affinity {
    let declared = declared.to_ascii_uppercase();
    let has = |parts: &[&str]| parts.iter().any(|part| declared.contains(part));
    if has(&["INT"]) {
        Affinity::Numeric
    } else if has(&["CHAR", "CLOB", "TEXT"]) {
        Affinity::Text
    } else if declared.is_empty() || has(&["BLOB"]) {
        Affinity::Blob
    } else if has(&["REAL", "FLOA", "DOUB"]) {
        Affinity::Real
    } else {
        Affinity::Numeric
    }
}

/// SQL condition for values that a column with this affinity would change. `None` if it changes none.
fn changes(affinity: Affinity, column: &str) -> Option<String> {
    // The comparison is numeric, so it is true for a text that is the text of a number.
    let number = format!("typeof({column}) = 'text' AND {column} = CAST({column} AS NUMERIC)");
    match affinity {
        Affinity::Blob => None,
        Affinity::Text => Some(format!("typeof({column}) IN ('integer', 'real')")),
        Affinity::Numeric => Some(number),
        Affinity::Real => Some(format!(
            "{number} OR typeof({column}) = 'integer' AND CAST({column} AS REAL) <> {column}"
        )),
    }
}

/// Names and declared types of a table's columns.
fn declared(
    connection: &Connection,
    schema: &str,
    table: &str,
) -> rusqlite::Result<Vec<(String, String)>> {
    let query = format!("PRAGMA {schema}.table_info({})", quoted(table));
    let mut statement = connection.prepare(&query)?;
    let rows = statement.query_map([], |row| Ok((row.get(1)?, row.get(2)?)))?;
    rows.collect()
}

/// An error when the table's columns would change a staged value.
fn check_types(target: &Target, connection: &Connection, sink: &Table) -> Result<(), Error> {
    let fail = |error: rusqlite::Error| failure(&target.database, &error);
    let source = format!("s{}", sink.index);
    let types = format!("d{}", sink.index);
    let staged = declared(connection, "staging", &types).map_err(fail)?;
    for (column, declared) in declared(connection, "main", &sink.name).map_err(fail)? {
        let own = staged.iter().find(|(name, _)| *name == column);
        let is_other = own.is_some_and(|(_, own)| affinity(own) != affinity(&declared));
        let Some(condition) = changes(affinity(&declared), &quoted(&column)) else {
            continue;
        };
        // A staged column without a type may have both numbers and texts.
        let has_texts = own.is_some_and(|(_, own)| own.is_empty());
        if !is_other && !has_texts {
            continue;
        }
        let name = quoted(&column);
        let query = format!("SELECT {name} FROM staging.{source} WHERE {condition} LIMIT 1");
        let mut statement = connection.prepare(&query).map_err(fail)?;
        let mut rows = statement.query([]).map_err(fail)?;
        if let Some(row) = rows.next().map_err(fail)? {
            let value = row.get_ref(0).map_err(fail)?;
            let value = shown(value);
            return Err(Error::Column {
                column,
                reason: format!(
                    "the table {} has it as {declared}, which would change the value {value}; \
                     use another table, or one type in all jobs",
                    sink.name
                ),
            });
        }
    }
    Ok(())
}

/// A value as messages show it.
fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(bytes) => format!("{:?}", prefix(&String::from_utf8_lossy(bytes), 60)),
        ValueRef::Null | ValueRef::Blob(_) => String::new(),
    }
}

/// Inserts a sink's rows. False when the statement also changed other rows.
pub(super) fn insert(
    target: &Target,
    connection: &Connection,
    sink: &Table,
    columns: &[String],
    first: &[String],
    marks: &Marks,
) -> Result<bool, Error> {
    let fail = |error: rusqlite::Error| failure(&target.database, &error);
    let source = format!("s{}", sink.index);
    let staged = column_names(connection, "staging", &source).map_err(fail)?;
    let is_mark = |name: &&String| {
        [Marks::DATABASE, Marks::INCARNATION].contains(&name.as_str()) && !first.contains(name)
    };
    let data: Vec<&String> = columns.iter().filter(|name| !is_mark(name)).collect();
    let missing: Vec<String> = staged
        .iter()
        .filter(|name| !data.contains(name))
        .cloned()
        .collect();
    let extra = data.into_iter().filter(|name| !staged.contains(name));
    let extra: Vec<String> = extra.cloned().collect();
    if !missing.is_empty() || !extra.is_empty() {
        return Err(Error::TableColumns {
            path: target.database.join(&sink.name),
            missing,
            extra,
        });
    }
    check_types(target, connection, sink)?;
    let list = |names: &[String]| -> String {
        let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        names.join(", ")
    };
    let has = |name: &str| columns.iter().any(|column| column == name);
    let (mut names, mut values) = (list(&staged), list(&staged));
    for (name, parameter, is_needed) in [
        (Marks::DATABASE, "?1", marks.database.is_some()),
        (Marks::INCARNATION, "?2", marks.incarnation.is_some()),
    ] {
        if is_needed && has(name) {
            names.push_str(&format!(", {name}"));
            values.push_str(&format!(", {parameter}"));
        }
    }
    // OR ABORT overrides ON CONFLICT clauses of the table, which could drop or replace rows.
    let before = connection.total_changes();
    let inserted = connection
        .execute(
            &format!(
                "INSERT OR ABORT INTO main.{} ({names}) SELECT {values} FROM staging.{source}
                 WHERE ?1 IS ?1 AND ?2 IS ?2",
                quoted(&sink.name)
            ),
            (&marks.database, &marks.incarnation),
        )
        .map_err(fail)?;
    let inserted = u64::try_from(inserted).unwrap_or(u64::MAX);
    if inserted != sink.rows {
        let path = &target.database;
        return Err(triggers::refusal(
            path, connection, &sink.name, inserted, sink.rows,
        ));
    }
    let changed = connection.total_changes().saturating_sub(before);
    Ok(changed == inserted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_affinity_of_a_declared_type_is_sqlites() {
        for (declared, want) in [
            ("INTEGER", Affinity::Numeric),
            ("bigint", Affinity::Numeric),
            ("POINT", Affinity::Numeric),
            ("VARCHAR(10)", Affinity::Text),
            ("CHARINT", Affinity::Numeric),
            ("clob", Affinity::Text),
            ("BLOB", Affinity::Blob),
            ("", Affinity::Blob),
            ("double precision", Affinity::Real),
            ("DECIMAL(10,5)", Affinity::Numeric),
            ("ANY", Affinity::Numeric),
        ] {
            assert_eq!(affinity(declared), want, "{declared}");
        }
    }
}
