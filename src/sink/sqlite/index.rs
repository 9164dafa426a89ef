//! The index on `_job_id` of a sink's table. Each publish queries the rows of its job.

use std::path::Path;

use rusqlite::Connection;

use super::quoted;
use crate::limits;

/// Number of names that are tried for an index. A name may be in use, because an index keeps its name
/// when its table is renamed.
const NAMES_MAX: usize = 100;

/// Query for a non-partial index whose first column is `_job_id`.
const INDEX_QUERY: &str = "SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1, 'main') AS list,
     pragma_index_info(list.name, 'main') AS part
     WHERE NOT list.partial AND part.seqno = 0 AND part.name = '_job_id')";

/// Query for a real table. Views and virtual tables have no root page.
const TABLE_QUERY: &str = "SELECT EXISTS (SELECT 1 FROM main.sqlite_master
     WHERE type = 'table' AND rootpage > 0 AND name = ?1 COLLATE NOCASE)";

const NAME_QUERY: &str = "SELECT EXISTS (SELECT 1 FROM main.sqlite_master
     WHERE name = ?1 COLLATE NOCASE)";

/// Creates the index for a table with the column `_job_id` that has no such index. Creating an index
/// scans the table. So in a large database only new tables get an index.
pub(super) fn ensure(
    connection: &Connection,
    database: &Path,
    table: &str,
    is_new: bool,
) -> rusqlite::Result<()> {
    let is = |query: &str, name: &str| -> rusqlite::Result<bool> {
        connection
            .prepare_cached(query)?
            .query_row([name], |row| row.get(0))
    };
    let size = database.metadata().map_or(0, |found| found.len());
    let is_cheap = is_new || size <= limits::SQLITE_INDEXED_SIZE_MAX;
    if !is_cheap || is(INDEX_QUERY, table)? || !is(TABLE_QUERY, table)? {
        return Ok(());
    }
    for number in 1..=NAMES_MAX {
        let name = match number {
            1 => format!("_casparian_job_{table}"),
            number => format!("_casparian_job_{table}_{number}"),
        };
        if !is(NAME_QUERY, &name)? {
            let (name, table) = (quoted(&name), quoted(table));
            return connection
                .execute_batch(&format!("CREATE INDEX main.{name} ON {table} (_job_id)"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Marks, SIDE_TABLES, deletion, existence, own_rows, tables};
    use super::*;

    const MARKS: [&str; 2] = [Marks::DATABASE, Marks::INCARNATION];

    /// A table with rows of one job. `columns` are its columns besides `x`; the last is `_job_id`.
    fn scene(columns: &[String]) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(SIDE_TABLES).unwrap();
        let columns = columns.join(", ");
        let create = format!("CREATE TABLE rows (x, {columns} INTEGER)");
        connection.execute_batch(&create).unwrap();
        ensure(&connection, Path::new(""), "rows", true).unwrap();
        let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
             INSERT INTO rows (x, _job_id) SELECT i, 7 FROM n";
        connection.execute_batch(fill).unwrap();
        connection
    }

    fn plan(connection: &Connection, query: &str) -> Vec<String> {
        let explain = format!("EXPLAIN QUERY PLAN {query}");
        let mut statement = connection.prepare(&explain).unwrap();
        let lines = statement.raw_query().mapped(|row| row.get(3));
        lines.collect::<Result<_, _>>().unwrap()
    }

    fn check(connection: &Connection, query: &str) {
        let plan = plan(connection, query);
        let search = "INDEX _casparian_job_rows (_job_id=?)";
        assert!(
            plan.iter().any(|line| line.contains(search)),
            "{query}: {plan:?}"
        );
        let is_scan = |line: &String| line.starts_with("SCAN main.rows") || line == "SCAN t";
        assert!(!plan.iter().any(is_scan), "{query}: {plan:?}");
    }

    #[test]
    fn statements_of_a_publish_do_not_read_the_whole_table() {
        for marks in [&[][..], &MARKS[..1], &MARKS[1..], &MARKS] {
            let mut columns: Vec<String> = marks.iter().map(|&name| name.to_owned()).collect();
            columns.push("_job_id".to_owned());
            let connection = scene(&columns);
            let replaced = tables::replaced_rows("rows", &columns);
            check(&connection, &deletion(&replaced));
            check(&connection, &format!("SELECT count(*) FROM {replaced}"));
            let rows = own_rows("rows", &columns);
            // After ANALYZE the statistics show that one job has all rows.
            for statistics in ["", "ANALYZE"] {
                connection.execute_batch(statistics).unwrap();
                check(&connection, &existence(&rows));
                check(&connection, &deletion(&rows));
                check(&connection, &format!("SELECT count(*) FROM {rows}"));
            }
        }
    }

    #[test]
    fn a_table_of_a_large_database_is_not_read_for_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("CREATE TABLE rows (_job_id)")
            .unwrap();
        let file = dir.path().join("x.db");
        let size = std::fs::File::create(&file).unwrap();
        let has_index = || -> bool {
            let mut statement = connection.prepare(INDEX_QUERY).unwrap();
            statement.query_row(["rows"], |row| row.get(0)).unwrap()
        };
        for (extra, is_new, want) in [(1, false, false), (1, true, true), (0, false, true)] {
            connection
                .execute_batch("DROP INDEX IF EXISTS _casparian_job_rows")
                .unwrap();
            size.set_len(limits::SQLITE_INDEXED_SIZE_MAX + extra)
                .unwrap();
            ensure(&connection, &file, "rows", is_new).unwrap();
            assert_eq!(has_index(), want, "{extra} {is_new}");
        }
    }
}
