//! The stage: a database file in staging that collects the rows of a job's tables.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, LargeStringArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, SchemaRef, UInt64Type};
use arrow::error::ArrowError;
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, ToSql, params_from_iter};

use super::{failure, quoted};
use crate::limits::SQLITE_VALUE_MAX;
use crate::sink::{Error, convert, types};

/// How SQLite stores a column.
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

/// Advice for messages: what to publish instead of a type.
fn advice(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Duration(_) | DataType::Interval(_) => {
            "publish it as a number of a unit, or as text"
        }
        data_type if data_type.is_nested() => {
            "publish its parts as columns of their own, or as JSON text"
        }
        _ => "publish it as another type",
    }
}

/// Column definitions for a `CREATE TABLE`.
fn columns(schema: &SchemaRef) -> Result<Vec<String>, Error> {
    let mut out = Vec::new();
    for field in schema.fields() {
        let sql = match kind(field.data_type()) {
            Some(Kind::Integer) => "INTEGER",
            // No affinity, because INTEGER would convert the text of a number above 63 bits to a float.
            Some(Kind::Unsigned) => "",
            Some(Kind::Real) => "REAL",
            Some(Kind::Text) => "TEXT",
            Some(Kind::Blob) => "BLOB",
            Some(Kind::Null) => "",
            None => {
                return Err(Error::Column {
                    column: field.name().clone(),
                    reason: format!(
                        "a SQLite sink cannot store type {}; {}",
                        types::shown(field.data_type()),
                        advice(field.data_type())
                    ),
                });
            }
        };
        out.push(format!("{} {sql}", quoted(field.name())));
    }
    Ok(out)
}

/// The rows of a job's tables, in one database file in staging. The table `s<i>` has the rows of sink
/// *i*. Its columns have no types, so that values are not converted when types change. The table `d<i>`
/// has no rows; its columns have the types.
pub(in crate::sink) struct Stage {
    path: PathBuf,
    connection: Connection,
    /// Columns of the tables `d<i>`.
    definitions: BTreeMap<usize, Vec<String>>,
}

/// A sink's table in the stage, as the statement that inserts a row.
pub(in crate::sink) struct Rows {
    insert: String,
}

impl Stage {
    pub(in crate::sink) fn create(path: &Path) -> Result<Self, Error> {
        let fail = |error: rusqlite::Error| failure(path, &error);
        let connection = Connection::open(path).map_err(fail)?;
        // No journal is needed, because the file is read only after it is complete.
        connection
            .pragma_update(None, "journal_mode", "OFF")
            .map_err(fail)?;
        connection
            .pragma_update(None, "synchronous", "OFF")
            .map_err(fail)?;
        connection.execute_batch("BEGIN").map_err(fail)?;
        Ok(Stage {
            path: path.to_owned(),
            connection,
            definitions: BTreeMap::new(),
        })
    }

    /// Creates the table `s<index>` of a sink.
    pub(in crate::sink) fn table(
        &mut self,
        index: usize,
        schema: &SchemaRef,
    ) -> Result<Rows, Error> {
        let rows = self.change(index, schema)?;
        let names = schema.fields().iter().map(|field| quoted(field.name()));
        let names: Vec<String> = names.collect();
        self.connection
            .execute_batch(&format!("CREATE TABLE s{index} ({})", names.join(", ")))
            .map_err(|error| failure(&self.path, &error))?;
        Ok(rows)
    }

    /// Changes the types of the columns of a sink's table.
    pub(in crate::sink) fn change(
        &mut self,
        index: usize,
        schema: &SchemaRef,
    ) -> Result<Rows, Error> {
        let columns = columns(schema)?;
        let before = self.definitions.get(&index);
        let pairs = columns.iter().zip(before.into_iter().flatten());
        for (field, (column, before)) in schema.fields().iter().zip(pairs) {
            if column != before {
                self.check_numbers(index, field)?;
            }
        }
        self.definitions.insert(index, columns);
        let marks = vec!["?"; schema.fields().len()].join(", ");
        Ok(Rows {
            insert: format!("INSERT INTO s{index} VALUES ({marks})"),
        })
    }

    /// An error when earlier rows have a number that the column's new type would change.
    fn check_numbers(&self, index: usize, field: &Field) -> Result<(), Error> {
        let name = quoted(field.name());
        // Integers above 63 bits are stored as text.
        let condition = match kind(field.data_type()) {
            Some(Kind::Integer) => format!("typeof({name}) = 'text'"),
            Some(Kind::Real) => format!(
                "typeof({name}) = 'text' OR typeof({name}) = 'integer' AND CAST({name} AS REAL) <> {name}"
            ),
            _ => return Ok(()),
        };
        let fail = |error: rusqlite::Error| failure(&self.path, &error);
        let query = format!("SELECT CAST({name} AS TEXT) FROM s{index} WHERE {condition} LIMIT 1");
        let mut statement = self.connection.prepare(&query).map_err(fail)?;
        let mut rows = statement.query([]).map_err(fail)?;
        let Some(row) = rows.next().map_err(fail)? else {
            return Ok(());
        };
        let value: String = row.get(0).map_err(fail)?;
        Err(Error::Column {
            column: field.name().clone(),
            reason: format!(
                "type {}, which holds the other values of all batches, cannot hold {value} exactly; \
                 publish all batches with one type",
                types::shown(field.data_type())
            ),
        })
    }

    pub(in crate::sink) fn write(&self, rows: &Rows, batch: &RecordBatch) -> Result<(), Error> {
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
            let column = match zoned(field.data_type()) {
                Some(zoned) => utc_text(column, zoned),
                None => convert::cast(column, &stored),
            };
            let refused = |reason: String| Error::Column {
                column: field.name().clone(),
                reason,
            };
            let column = column.map_err(|error| refused(error.to_string()))?;
            if kind == Kind::Real && has_nan(&column) {
                let reason =
                    "it has a NaN, which SQLite would store as NULL; publish null, or text";
                return Err(refused(reason.to_owned()));
            }
            if let Some(size) = longest(kind, &column).filter(|size| *size > SQLITE_VALUE_MAX) {
                let reason = format!(
                    "it has a value of {size} bytes; SQLite takes {SQLITE_VALUE_MAX}: use a Parquet sink"
                );
                return Err(refused(reason));
            }
            columns.push((kind, column));
        }
        let fail = |error: rusqlite::Error| failure(&self.path, &error);
        let mut statement = self.connection.prepare_cached(&rows.insert).map_err(fail)?;
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

    /// Bytes of all tables.
    pub(in crate::sink) fn size(&self) -> Result<u64, Error> {
        let number = |name: &str| -> Result<u64, Error> {
            let number = self
                .connection
                .pragma_query_value(None, name, |row| row.get(0));
            let number: i64 = number.map_err(|error| failure(&self.path, &error))?;
            Ok(number.unsigned_abs())
        };
        Ok(number("page_count")?.saturating_mul(number("page_size")?))
    }

    pub(in crate::sink) fn finish(self) -> Result<(), Error> {
        let fail = |error: rusqlite::Error| failure(&self.path, &error);
        for (index, columns) in &self.definitions {
            let create = format!("CREATE TABLE d{index} ({})", columns.join(", "));
            self.connection.execute_batch(&create).map_err(fail)?;
        }
        self.connection.execute_batch("COMMIT").map_err(fail)?;
        self.connection
            .close()
            .map_err(|(_, error)| failure(&self.path, &error))
    }
}

/// The type if values are timestamps with a zone, also in a dictionary.
fn zoned(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::Dictionary(_, values) => zoned(values),
        DataType::Timestamp(_, Some(_)) => Some(data_type),
        _ => None,
    }
}

/// Timestamps with a zone, as UTC text with the suffix `+00:00`. The character `+` sorts before `.` and
/// digits, so texts with and without fractions of seconds sort in the order of their times. With the
/// suffix `Z` they would not.
fn utc_text(column: &ArrayRef, zoned: &DataType) -> Result<ArrayRef, ArrowError> {
    let DataType::Timestamp(unit, _) = zoned else {
        return Ok(column.clone());
    };
    // The values are UTC. Without a zone the conversion to text needs no time zone database.
    let numbers = convert::cast(&convert::cast(column, zoned)?, &DataType::Int64)?;
    let local = convert::cast(&numbers, &DataType::Timestamp(*unit, None))?;
    let texts = convert::cast(&local, &DataType::LargeUtf8)?;
    let texts = texts.as_string::<i64>().iter();
    let texts: LargeStringArray = texts
        .map(|text| text.map(|text| format!("{text}+00:00")))
        .collect();
    Ok(Arc::new(texts))
}

/// Size in bytes of the largest text or blob.
fn longest(kind: Kind, column: &ArrayRef) -> Option<usize> {
    let offsets = match kind {
        Kind::Text => column.as_string::<i64>().value_offsets(),
        Kind::Blob => column.as_binary::<i64>().value_offsets(),
        _ => return None,
    };
    let lengths = offsets.windows(2).map(|pair| match pair {
        [start, end] => usize::try_from(end - start).unwrap_or(usize::MAX),
        _ => 0,
    });
    lengths.max()
}

fn has_nan(column: &ArrayRef) -> bool {
    let column = column.as_primitive::<Float64Type>();
    column.iter().flatten().any(f64::is_nan)
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
                // SQLite has no integers above 63 bits. Text keeps all digits.
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
