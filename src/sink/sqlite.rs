//! The SQLite sink: rows gather in a database file in staging and go into their table in one
//! transaction.

use std::path::{Path, PathBuf};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, SchemaRef, UInt64Type};
use arrow::error::ArrowError;
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, ToSql, params_from_iter};

use super::Error;
use crate::job::Mode;

/// What a column is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Integer,
    Unsigned,
    Real,
    Text,
    Blob,
    Null,
}

fn kind(data_type: &DataType) -> Option<Kind> {
    use DataType as T;
    Some(match data_type {
        T::Boolean | T::Int8 | T::Int16 | T::Int32 | T::Int64 => Kind::Integer,
        T::UInt8 | T::UInt16 | T::UInt32 => Kind::Integer,
        T::UInt64 => Kind::Unsigned,
        T::Float16 | T::Float32 | T::Float64 => Kind::Real,
        T::Utf8 | T::LargeUtf8 | T::Utf8View => Kind::Text,
        // ISO 8601 text for dates and times, exact text for decimals.
        T::Date32 | T::Date64 | T::Timestamp(..) | T::Time32(_) | T::Time64(_) => Kind::Text,
        T::Decimal32(..) | T::Decimal64(..) | T::Decimal128(..) | T::Decimal256(..) => Kind::Text,
        T::Binary | T::LargeBinary | T::BinaryView | T::FixedSizeBinary(_) => Kind::Blob,
        T::Null => Kind::Null,
        T::Dictionary(_, values) => return kind(values),
        _ => return None,
    })
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn failure(path: &Path, error: &rusqlite::Error) -> Error {
    Error::Sqlite {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// Columns of a `CREATE TABLE`.
fn columns(schema: &SchemaRef) -> Result<String, Error> {
    let mut out = Vec::new();
    for field in schema.fields() {
        let sql = match kind(field.data_type()) {
            Some(Kind::Integer) => "INTEGER",
            // No affinity: INTEGER would turn the text of a number beyond 63 bits into a float.
            Some(Kind::Unsigned) => "",
            Some(Kind::Real) => "REAL",
            Some(Kind::Text) => "TEXT",
            Some(Kind::Blob) => "BLOB",
            Some(Kind::Null) => "",
            None => {
                return Err(Error::Column {
                    column: field.name().clone(),
                    reason: format!("a SQLite sink cannot store type {}", field.data_type()),
                });
            }
        };
        out.push(format!("{} {sql}", quoted(field.name())));
    }
    Ok(out.join(", "))
}

/// The rows of a job, in a database file of their own.
pub(super) struct SqliteRows {
    path: PathBuf,
    connection: Connection,
    insert: String,
}

const STAGED_TABLE: &str = "staged";

impl SqliteRows {
    pub(super) fn create(path: &Path, schema: &SchemaRef) -> Result<Self, Error> {
        let definition = columns(schema)?;
        let fail = |error: rusqlite::Error| failure(path, &error);
        let connection = Connection::open(path).map_err(fail)?;
        // The file is only read after it is complete, so it needs no journal of its own.
        connection
            .pragma_update(None, "journal_mode", "OFF")
            .map_err(fail)?;
        connection
            .pragma_update(None, "synchronous", "OFF")
            .map_err(fail)?;
        connection
            .execute_batch(&format!(
                "CREATE TABLE {STAGED_TABLE} ({definition}); BEGIN"
            ))
            .map_err(fail)?;
        let marks = vec!["?"; schema.fields().len()].join(", ");
        let insert = format!("INSERT INTO {STAGED_TABLE} VALUES ({marks})");
        Ok(SqliteRows {
            path: path.to_owned(),
            connection,
            insert,
        })
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        let mut columns = Vec::with_capacity(batch.num_columns());
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            let kind = kind(field.data_type()).unwrap_or(Kind::Null);
            let stored = match kind {
                Kind::Integer => DataType::Int64,
                Kind::Unsigned => DataType::UInt64,
                Kind::Real => DataType::Float64,
                Kind::Text => DataType::LargeUtf8,
                Kind::Blob => DataType::LargeBinary,
                Kind::Null => DataType::Null,
            };
            let column = in_utc(column).and_then(|column| cast(&column, &stored));
            let column = column.map_err(|error| Error::Column {
                column: field.name().clone(),
                reason: error.to_string(),
            })?;
            columns.push((kind, column));
        }
        let fail = |error: rusqlite::Error| failure(&self.path, &error);
        let mut statement = self.connection.prepare_cached(&self.insert).map_err(fail)?;
        for row in 0..batch.num_rows() {
            let values = columns.iter().map(|(kind, column)| Cell {
                kind: *kind,
                column,
                row,
            });
            statement.execute(params_from_iter(values)).map_err(fail)?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<(), Error> {
        let fail = |error: rusqlite::Error| failure(&self.path, &error);
        self.connection.execute_batch("COMMIT").map_err(fail)?;
        self.connection
            .close()
            .map_err(|(_, error)| failure(&self.path, &error))
    }
}

/// Timestamps with a zone hold UTC; they are given the zone `+00:00`, whose text needs no zone
/// database.
fn in_utc(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    match column.data_type() {
        DataType::Timestamp(unit, Some(_)) => {
            let utc = DataType::Timestamp(*unit, Some("+00:00".into()));
            cast(&cast(column, &DataType::Int64)?, &utc)
        }
        _ => Ok(column.clone()),
    }
}

struct Cell<'a> {
    kind: Kind,
    column: &'a dyn Array,
    row: usize,
}

impl ToSql for Cell<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        if self.column.is_null(self.row) || self.kind == Kind::Null {
            return Ok(ToSqlOutput::Owned(Value::Null));
        }
        let row = self.row;
        Ok(match self.kind {
            Kind::Integer => ToSqlOutput::Owned(Value::Integer(
                self.column.as_primitive::<Int64Type>().value(row),
            )),
            Kind::Unsigned => {
                let value = self.column.as_primitive::<UInt64Type>().value(row);
                // Beyond 63 bits SQLite has no integer; text keeps every digit.
                ToSqlOutput::Owned(match i64::try_from(value) {
                    Ok(value) => Value::Integer(value),
                    Err(_) => Value::Text(value.to_string()),
                })
            }
            Kind::Real => ToSqlOutput::Owned(Value::Real(
                self.column.as_primitive::<Float64Type>().value(row),
            )),
            Kind::Text => ToSqlOutput::Borrowed(ValueRef::Text(
                self.column.as_string::<i64>().value(row).as_bytes(),
            )),
            Kind::Blob => {
                ToSqlOutput::Borrowed(ValueRef::Blob(self.column.as_binary::<i64>().value(row)))
            }
            Kind::Null => ToSqlOutput::Owned(Value::Null),
        })
    }
}

/// The table the rows go to.
pub(super) struct SqliteTarget<'a> {
    pub(super) database: &'a Path,
    pub(super) table: &'a str,
    pub(super) mode: Mode,
}

impl SqliteTarget<'_> {
    /// Moves staged rows into the table, in one transaction. Rows of an earlier attempt of the
    /// job are replaced.
    pub(super) fn publish(&self, staged: &Path, job_id: i64) -> Result<(), Error> {
        let fail = |error: rusqlite::Error| failure(self.database, &error);
        let mut connection = Connection::open(self.database).map_err(fail)?;
        connection
            .busy_timeout(Duration::from_secs(30))
            .map_err(fail)?;
        connection
            .execute("ATTACH DATABASE ?1 AS staging", [staged.to_string_lossy()])
            .map_err(fail)?;
        let transaction = connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(fail)?;
        let names = |schema: &str, table: &str| -> Result<Vec<String>, Error> {
            let query = format!("PRAGMA {schema}.table_info({})", quoted(table));
            let mut statement = transaction.prepare(&query).map_err(fail)?;
            let rows = statement
                .query_map([], |row| row.get::<_, String>(1))
                .map_err(fail)?;
            rows.collect::<Result<_, _>>().map_err(fail)
        };
        let table = quoted(self.table);
        let there = names("main", self.table)?;
        let ours = names("staging", STAGED_TABLE)?;
        if there.is_empty() {
            let definition: String = transaction
                .query_row(
                    "SELECT sql FROM staging.sqlite_master WHERE name = ?1",
                    [STAGED_TABLE],
                    |row| row.get(0),
                )
                .map_err(fail)?;
            let columns = definition
                .split_once('(')
                .map_or("", |(_, columns)| columns);
            transaction
                .execute_batch(&format!("CREATE TABLE main.{table} ({columns}"))
                .map_err(fail)?;
        } else if there != ours {
            return Err(Error::SchemaChanged {
                topic: self.table.to_owned(),
                expected: format!("the table's columns {}", there.join(", ")),
                got: ours.join(", "),
            });
        }
        let condition = match self.mode {
            Mode::Replace => "",
            Mode::Append | Mode::Error => " WHERE _job_id = ?1",
        };
        if self.mode == Mode::Error {
            let others: bool = transaction
                .query_row(
                    &format!("SELECT EXISTS (SELECT 1 FROM main.{table} WHERE _job_id IS NOT ?1)"),
                    [job_id],
                    |row| row.get(0),
                )
                .map_err(fail)?;
            if others {
                return Err(Error::Exists {
                    path: self.database.join(self.table),
                });
            }
        }
        let delete = format!("DELETE FROM main.{table}{condition}");
        match condition.is_empty() {
            true => transaction.execute(&delete, []),
            false => transaction.execute(&delete, [job_id]),
        }
        .map_err(fail)?;
        transaction
            .execute_batch(&format!(
                "INSERT INTO main.{table} SELECT * FROM staging.{STAGED_TABLE}"
            ))
            .map_err(fail)?;
        transaction.commit().map_err(fail)
    }
}
